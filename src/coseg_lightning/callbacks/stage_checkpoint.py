"""StageCheckpoint: saves full epochs and the final state of a stage."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from coseg_lightning.files.atomic import temporary_name
from coseg_lightning.files.checkpoints import plain_values
from coseg_lightning.modules import compat
from coseg_lightning.modules.steps import as_plain, is_plain

CHECKPOINT = "last.ckpt"  # a stage's final state
UNFINISHED = "unfinished.ckpt"  # the last saved epoch of an unfinished stage
MAX_SAVE_SHARE = 0.05  # largest share of the training time that saving epochs may take
FIRST_GUESS = 1.0  # seconds
TRACKING = "track_running_stats"  # torch's attribute of layers such as BatchNorm


class StageCheckpoint(Checkpoint):
    """Saves full epochs of a stage during training, and its final state, each in one file.

    If saving every epoch would take more than `MAX_SAVE_SHARE` of the time, only some epochs are
    saved. Before the first save, it is taken to last `FIRST_GUESS`. The last epoch is never saved
    as unfinished. Lightning would not continue from it, and the ranking and correction that follow
    it would be missing.

    A saved epoch is one that has ended, also for a trainer with `max_steps`. What Lightning does
    after this callback, or does not save, is saved too and made up for when training continues:
    the steps of plateau schedulers, and which weights learn.

    Args:
        folder: The stage's folder; each file in it is replaced atomically.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._took = FIRST_GUESS
        self._saved = time.monotonic()
        self._state: dict[str, Any] = {}  # while an epoch is saved, and until it is continued

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._state:
            return
        state, self._state = self._state, {}
        compat.begin_next_epoch(trainer)
        set_learning(pl_module, state["learns"])
        for index, value in state["plateaus"]:
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[index].scheduler, value)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The progress bar of process 0 already reduces the metrics, so the other processes must
        # join in before they save.
        _ = trainer.callback_metrics
        if is_last_epoch(trainer):
            return
        start = time.monotonic()
        if trainer.strategy.broadcast(MAX_SAVE_SHARE * (start - self._saved) >= self._took):
            self._state = {"plateaus": waiting_plateaus(trainer), "learns": learning(pl_module)}
            self._save(trainer, UNFINISHED)
            self._state = {}
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
        """Save hyperparameters as plain values, so that loading a checkpoint runs no code.

        The states of a user's callbacks are saved as such values too, if they can be.
        """
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint:
                checkpoint[key] = plain_values(checkpoint[key])
        states = {name: as_plain(state) for name, state in checkpoint.get("callbacks", {}).items()}
        lost = [name for name, state in states.items() if not is_plain(state)]
        checkpoint["callbacks"] = {n: state for n, state in states.items() if n not in lost}
        if lost:
            rank_zero_warn(
                f"The state of {', '.join(lost)} is not saved, since it holds objects, which may "
                "run code when they are loaded; if the run is interrupted, it begins anew there. "
                "Keep numbers, texts and tensors in the state_dict of a callback."
            )
        if self._state:
            compat.end_saved_epoch(checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

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


def waiting_plateaus(trainer: pl.Trainer) -> list[tuple[int, Any]]:
    """Return the plateau schedulers that Lightning steps after this hook, with their metrics.

    With manual optimization it steps none.
    """
    if not trainer.lightning_module.automatic_optimization:
        return []
    metrics, done = trainer.callback_metrics, trainer.current_epoch + 1
    return [
        (index, metrics[config.monitor])
        for index, config in enumerate(trainer.lr_scheduler_configs)
        if config.reduce_on_plateau
        and config.interval == "epoch"
        and done % config.frequency == 0
        and config.monitor in metrics
    ]


def learning(module: nn.Module) -> dict[str, list[str]]:
    """Return the names of the weights that learn, and of the layers that update statistics."""
    weights = [name for name, weight in module.named_parameters() if weight.requires_grad]
    layers = [n for n, layer in module.named_modules() if getattr(layer, TRACKING, False)]
    return {"weights": weights, "layers": layers}


def set_learning(module: nn.Module, names: Mapping[str, Sequence[str]]) -> None:
    """Restore what `learning` returned; callbacks such as `BaseFinetuning` have changed it."""
    weights, layers = set(names["weights"]), set(names["layers"])
    for name, weight in module.named_parameters():
        weight.requires_grad_(name in weights)
    for name, layer in module.named_modules():
        if getattr(layer, TRACKING, name in layers) != (name in layers):
            compat.track_statistics(layer, name in layers)
