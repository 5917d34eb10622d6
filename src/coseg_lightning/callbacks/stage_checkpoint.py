"""StageCheckpoint: saves full epochs and the final state of a stage."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from typing_extensions import override

from coseg_lightning.files.atomic import temporary_name
from coseg_lightning.files.checkpoints import plain_values

CHECKPOINT = "last.ckpt"  # a stage's final state
UNFINISHED = "unfinished.ckpt"  # the last saved epoch of an unfinished stage
MAX_SAVE_SHARE = 0.05  # largest share of the training time that saving epochs may take
FIRST_GUESS = 1.0  # seconds


class StageCheckpoint(Checkpoint):
    """Saves full epochs of a stage during training, and its final state, each in one file.

    If saving every epoch would take more than `MAX_SAVE_SHARE` of the time, only some epochs are
    saved. Before the first save, it is taken to last `FIRST_GUESS`. The last epoch is never saved
    as unfinished. Lightning would not continue from it, and the ranking and correction that follow
    it would be missing.

    Args:
        folder: The stage's folder; each file in it is replaced atomically.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._took = FIRST_GUESS
        self._saved = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The progress bar of process 0 already reduces the metrics, so the other processes must
        # join in before they save.
        _ = trainer.callback_metrics
        if is_last_epoch(trainer):
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
        """Save hyperparameters as plain values, so that loading a checkpoint runs no code."""
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint:
                checkpoint[key] = plain_values(checkpoint[key])

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        temporary = self.folder / temporary_name(name, 0)  # the same name in all processes
        # The whole state of the fit is saved, not only weights; loading it still runs no code.
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            temporary.replace(self.folder / name)
        trainer.strategy.barrier("checkpoint in place")


def is_last_epoch(trainer: pl.Trainer) -> bool:
    """Whether training ends after the current epoch."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    epochs_reached = epochs is not None and 0 <= epochs <= trainer.current_epoch + 1
    return trainer.should_stop or epochs_reached or 0 <= steps <= trainer.global_step
