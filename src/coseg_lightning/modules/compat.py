"""Everything that needs a private name of Lightning or torch, in one place.

Each function is small, and has a test of its own in `tests/modules/test_compat.py`: when a new
version breaks one of these names, that test tells which. Nothing of Hydra's is private here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.states import RunningStage
from torch import Tensor, nn

HIDDEN = "_coseg_hidden_settings"  # an attribute of the trainer


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The trainer that a module is attached to; its property `trainer` raises where there is none.

    Private: `LightningModule._trainer`.
    """
    trainer: pl.Trainer | None = module._trainer
    return trainer


def loses_results(strategy: Strategy) -> bool:
    """Whether a strategy trains in forked or spawned processes, whose results stay there.

    Private: `_MultiProcessingLauncher`.
    """
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def hide_settings(trainer: pl.Trainer) -> tuple[float | None, int]:
    """Hide clipping and accumulation from Lightning, which refuses them in manual optimization.

    Returns:
        `gradient_clip_val` and `accumulate_grad_batches`, as the user gave them.

    Private: that Lightning reads both attributes after `configure_callbacks`.
    """
    given = (trainer.gradient_clip_val, trainer.accumulate_grad_batches)
    settings: tuple[float | None, int] = getattr(trainer, HIDDEN, given)  # a fit failed before
    setattr(trainer, HIDDEN, settings)
    trainer.gradient_clip_val, trainer.accumulate_grad_batches = None, 1
    return settings


def restore_settings(trainer: pl.Trainer) -> None:
    """Undo `hide_settings`: Lightning counts steps by them."""
    if hasattr(trainer, HIDDEN):
        trainer.gradient_clip_val, trainer.accumulate_grad_batches = getattr(trainer, HIDDEN)
        delattr(trainer, HIDDEN)


def set_max_epochs(trainer: pl.Trainer, max_epochs: int) -> None:
    """Change a trainer's number of epochs before it fits.

    Private: the setter of `trainer.fit_loop.max_epochs`.
    """
    trainer.fit_loop.max_epochs = max_epochs


@contextmanager
def validating(trainer: pl.Trainer) -> Iterator[None]:
    """Let a project's batch hooks see a validation stage: they may augment while training.

    Private: that `trainer.state.stage` may be set.
    """
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


def shuffle_again(trainer: pl.Trainer) -> None:
    """Draw the order of a resumed fit's first epoch anew, from the seed that was just set.

    Lightning draws it before `on_train_epoch_start`, and that of all other epochs after it.

    Private: `fit_loop._data_fetcher`.
    """
    iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def keep_average_on(callback: WeightAveraging, device: torch.device) -> None:
    """Where a `WeightAveraging` keeps its average, once the device is known.

    Private: `WeightAveraging._device`.
    """
    callback._device = device


def has_average(callback: WeightAveraging) -> bool:
    """Whether a `WeightAveraging` holds an average of at least one step.

    Private: `WeightAveraging._average_model`.
    """
    average = callback._average_model
    return average is not None and int(average.n_averaged) > 0


def is_averaging(callback: WeightAveraging) -> bool:
    """Whether a `WeightAveraging` has made its copy of the module, in a fit.

    Private: `WeightAveraging._average_model`.
    """
    return callback._average_model is not None


def swap_average(callback: WeightAveraging, module: pl.LightningModule) -> None:
    """Exchange a module's weights with the average; twice is as before.

    Private: `WeightAveraging._swap_models`.
    """
    callback._swap_models(module)


def lerp_(averages: list[Tensor], current: list[Tensor], weight: float) -> None:
    """Move each tensor towards another one in one kernel.

    Private: `torch._foreach_lerp_`.
    """
    torch._foreach_lerp_(averages, current, weight)


def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each tensor into another one in one kernel.

    Private: `torch._foreach_copy_`.
    """
    torch._foreach_copy_(targets, sources)


def norm_layers(network: nn.Module) -> Sequence[Any]:
    """The layers of a network that keep running statistics.

    Private: `torch.nn.modules.batchnorm._NormBase`.
    """
    kind = nn.modules.batchnorm._NormBase
    layers = [part for part in network.modules() if isinstance(part, kind)]
    return [layer for layer in layers if layer.running_mean is not None]
