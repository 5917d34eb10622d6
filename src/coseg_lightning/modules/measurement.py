"""Measurement: what a module does at the end of a pass and before it is saved."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.modules.batch import reads_all


@runtime_checkable
class Measured(Protocol):
    """A module that measures what its networks predict."""

    def log_measured(self, stage: str, batches: Sequence[float], *, is_whole: bool) -> None:
        """Log the metrics of each loader."""

    def begin_checks(self) -> None:
        """Check the batches of the first epoch of a new fit."""

    def forget_measured(self, stage: str) -> None:
        """Reset the metrics of a stage before its next pass."""

    def make_readable(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint be loaded without a download, and without running code."""


class Measurement(Callback):
    """Logs a module's metrics, and makes its checkpoints readable.

    It is a callback, so that a subclass may have hooks of its own that call no `super()`. It stays
    with the trainer, which may run other modules later.
    """

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Measured):
            pl_module.begin_checks()

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Measured):
            pl_module.forget_measured("val")

    @override
    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Measured):
            pl_module.forget_measured("test")

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Measured):
            batches: list[float] = trainer.num_val_batches
            is_whole = reads_all(trainer.limit_val_batches, *batches) and trainer.state.fn == "fit"
            pl_module.log_measured("val", batches, is_whole=is_whole)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Measured):
            pl_module.log_measured("test", trainer.num_test_batches, is_whole=False)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if isinstance(pl_module, Measured):
            pl_module.make_readable(checkpoint)


def measurement_of(trainer: pl.Trainer) -> list[Callback]:
    """Return a new `Measurement`, unless the trainer has one of an earlier fit."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    has_one = any(isinstance(callback, Measurement) for callback in callbacks)
    return [] if has_one else [Measurement()]
