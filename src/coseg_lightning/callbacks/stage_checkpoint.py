"""StageCheckpoint: the last full epoch of a stage, and what it ends with."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from typing_extensions import override

from coseg_lightning.files.atomic import temporary_name
from coseg_lightning.files.checkpoints import plain_values

CHECKPOINT = "last.ckpt"  # what a stage ended with
UNFINISHED = "unfinished.ckpt"  # its last full epoch, as long as it is not done
MAX_SAVE_SHARE = 0.05  # the share of the time that saving epochs may take


class StageCheckpoint(Checkpoint):
    """Keeps the last full epoch, and at its end what a stage ends with, each in one file.

    Where epochs are so short that saving each would take more than `MAX_SAVE_SHARE` of the time,
    only some are saved. The last epoch is not: Lightning does not go on from there, and ranking
    and correction, which follow it, would be left out.

    Args:
        folder: The stage's; its files are replaced as a whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._took = 0.0  # to save
        self._saved = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The bar of process 0 is already reducing them; the others must before they save.
        _ = trainer.callback_metrics
        epochs, steps = trainer.max_epochs, trainer.max_steps
        last = trainer.should_stop
        last |= epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
        last |= 0 <= steps <= trainer.global_step
        if last:
            return
        start = time.monotonic()
        if trainer.strategy.broadcast(MAX_SAVE_SHARE * (start - self._saved) >= self._took):
            self._save(trainer, UNFINISHED)
            self._saved = time.monotonic()
            self._took = self._saved - start

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.interrupted:
            self._save(trainer, CHECKPOINT)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep hyperparameters as plain values: a checkpoint must load without running code."""
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint:
                checkpoint[key] = plain_values(checkpoint[key])

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        temporary = self.folder / temporary_name(name, 0)  # of all processes
        # All that a fit goes on with, not the weights alone; it is loaded without running code.
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            temporary.replace(self.folder / name)
        trainer.strategy.barrier("checkpoint in place")
