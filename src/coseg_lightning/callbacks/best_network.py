"""BestNetwork: restores the network of the best validated epoch, and may stop training early."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.callbacks.averaged_weights import averaged
from coseg_lightning.errors import InputError
from coseg_lightning.modules.epochs import planned_epochs

METRIC = "val/dice"
NOTHING = (
    f"BestNetwork needs the metric {METRIC}, but nothing is validated; give validation data, or "
    "keep the last network."
)


class BestNetwork(Callback):
    """Restores the weights of the epoch with the highest `val/dice` when training ends.

    If weights are averaged, the average is kept, since it was validated. The callback only helps
    if the validation masks are correct.

    Args:
        patience: The number of epochs without improvement after which training stops; None to
            train for all epochs.

    Attributes:
        best: The highest `val/dice`, None before the first validation.
        epoch: The epoch of `best`.

    Raises:
        InputError: In training, if nothing logs `val/dice`, or if it is not a number.
    """

    monitor = METRIC

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.best: float | None = None
        self.epoch = 0
        self._weights: dict[str, Any] = {}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:
            raise InputError(NOTHING)
        epochs = planned_epochs(trainer)
        if epochs is None:
            return
        check_validates(trainer, epochs)
        batches = epochs * trainer.num_training_batches
        if trainer.check_val_every_n_epoch is None and (trainer.val_check_batch or 0) > batches:
            raise InputError(
                f"val_check_interval={trainer.val_check_interval} validates nothing in the "
                f"{batches:.0f} batches of {epochs} epochs; BestNetwork needs the metric {METRIC}, "
                "so lower it."
            )

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metric = trainer.callback_metrics.get(METRIC)
        if metric is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise InputError(f"BestNetwork needs the metric {METRIC}, but {known} is logged.")
        if bool(torch.isnan(metric)):
            raise InputError(
                f"{METRIC} cannot be measured, since no pixel of the validation masks is labelled; "
                "give validation masks that are labelled, or keep the last network."
            )
        if self.best is None or float(metric) > self.best:
            self.best, self.epoch = float(metric), trainer.current_epoch
            with averaged(trainer, pl_module):
                state = pl_module.state_dict().items()
                self._weights = {name: value.detach().cpu().clone() for name, value in state}
        elif self.patience is not None and trainer.current_epoch - self.epoch >= self.patience:
            trainer.should_stop = True

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._weights:
            if trainer.interrupted:
                return
            raise InputError(NOTHING)
        with averaged(trainer, pl_module):  # in the average, which is saved in checkpoints
            pl_module.load_state_dict(self._weights)
        pl_module.load_state_dict(self._weights)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self._weights}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch = state_dict["best"], int(state_dict["epoch"])
        self._weights = {
            name: torch.as_tensor(value) for name, value in state_dict["weights"].items()
        }


def check_validates(trainer: pl.Trainer, epochs: int) -> None:
    """Raise an `InputError` if a trainer validates too rarely for so many epochs."""
    interval = trainer.check_val_every_n_epoch
    if interval is not None and interval > epochs:
        raise InputError(
            f"check_val_every_n_epoch={interval} validates nothing in {epochs} epochs, but the "
            f"network with the best {METRIC} is to be kept; lower it, or keep the last network."
        )
