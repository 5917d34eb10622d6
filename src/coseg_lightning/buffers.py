"""BatchNorm statistics under DDP."""

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
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(module.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))
