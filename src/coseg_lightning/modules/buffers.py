"""BatchNorm statistics: equal in all processes, and unchanged by evaluation passes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl


def average_buffers(module: pl.LightningModule) -> None:
    """Average the running statistics over all processes, before any evaluation.

    Under DDP each process gathers statistics from its own batches. With automatic optimization,
    torch copies those of process 0 to the others, but only when the next training forward begins.
    With manual optimization, Lightning switches even that off. The processes would then validate,
    rank and correct with different networks.
    """
    if module.trainer.world_size == 1:
        return
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            how = "mean"
        elif name.endswith("num_batches_tracked"):
            how = "max"  # one process may have had no batch to learn from
        else:
            continue
        buffer.copy_(module.trainer.strategy.reduce(buffer.clone(), reduce_op=how))


@contextmanager
def evaluating(module: pl.LightningModule) -> Iterator[None]:
    """Put a module into evaluation mode, and restore each part's own mode afterwards."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode
