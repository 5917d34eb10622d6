"""BatchNorm statistics: the same in all processes, and left alone by a look at the networks."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl


def average_buffers(module: pl.LightningModule) -> None:
    """Give all processes the mean of their running statistics, before anything is evaluated.

    Under DDP each process gathers statistics of its own batches. With automatic optimization
    torch copies those of process 0 to the others, but only when the next training forward begins;
    with manual optimization Lightning switches even that off, and the processes would validate,
    rank and correct with different networks.
    """
    if module.trainer.world_size == 1:
        return
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            how = "mean"
        elif name.endswith("num_batches_tracked"):
            how = "max"  # one process may have had nothing to learn from
        else:
            continue
        buffer.copy_(module.trainer.strategy.reduce(buffer.clone(), reduce_op=how))


@contextmanager
def evaluating(module: pl.LightningModule) -> Iterator[None]:
    """Evaluation mode for a while; parts that are frozen in it stay so."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
