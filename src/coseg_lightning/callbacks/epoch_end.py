"""EpochEndCallback: the base of callbacks that act after an epoch's last batch."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.modules.short_epoch import ended_by_hook


class EpochEndCallback(Callback):
    """Calls `on_last_batch` once per epoch, at the same point in all processes.

    It does not wait for `on_train_epoch_end`. By then the progress bar of process 0 may already
    reduce its metrics, and two different collectives would mix. Only an epoch of a single process
    may end without a last batch, if the module's `on_train_batch_start` returns -1.
    """

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.is_last_batch:
            self.on_last_batch(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if ended_by_hook(trainer, pl_module):
            self.on_last_batch(trainer, pl_module)

    def on_last_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Called after the training step on an epoch's last batch."""
