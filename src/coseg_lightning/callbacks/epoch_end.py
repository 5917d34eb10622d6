"""EpochEndCallback: the base of callbacks that do something when an epoch's last batch is over."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override


class EpochEndCallback(Callback):
    """Calls `on_last_batch` once an epoch, on all processes at the same point.

    It does not wait for `on_train_epoch_end`: there the progress bar of process 0 may already be
    reducing its metrics, and two different collectives would meet.
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

    def on_last_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Called when the last batch of an epoch was learnt from."""
