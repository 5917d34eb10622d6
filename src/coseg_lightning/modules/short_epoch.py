"""Epochs that a module's `on_train_batch_start` ends by returning -1."""

import pytorch_lightning as pl

from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat


def ended_by_hook(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether an epoch ended without a last batch; to be called in `on_train_epoch_end`.

    Lightning then skips the hooks of a batch, in which the whole set is ranked and schedules are
    stepped.

    Returns:
        Also false with several processes, unless they train peers.

    Raises:
        InputError: With several processes that train peers, and would wait for each other in
            different hooks.
    """
    if not compat.skipped_rest_of_epoch(trainer):
        return False
    if trainer.world_size > 1 and module.automatic_optimization:
        return False
    if trainer.world_size > 1:
        raise InputError(
            f"{type(module).__name__}.on_train_batch_start returned -1, but with "
            f"{trainer.world_size} processes an epoch needs its last batch; leave it out, and set "
            "Trainer(limit_train_batches=...) to the number of batches in an epoch."
        )
    return True
