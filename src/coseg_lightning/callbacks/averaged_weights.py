"""AveragedWeights: evaluates networks with a running average of their weights."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import override

from coseg_lightning.callbacks.epoch_end import EpochEndCallback
from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat
from coseg_lightning.modules.buffers import average_buffers
from coseg_lightning.modules.recipe import Recipe, is_number, plain_number
from coseg_lightning.modules.steps import SegmentationSteps

# Callbacks that replace the weights by averages.
AVERAGING = (WeightAveraging, StochasticWeightAveraging)


class AveragedWeights(EpochEndCallback, WeightAveraging):
    """Averages the weights over the last steps, for validation, ranking, correction and saving.

    With a constant learning rate and few images, a network's Dice varies by points between
    epochs; that of its average does not. This is Lightning's `WeightAveraging`, also in
    checkpoints, with a window that grows with training. No decay rate has to be set. Step t has
    the weight `1 / (1 + share t)`, as in the polynomial-decay averaging of Shamir and Zhang
    (2013, arXiv 1212.1824).

    Args:
        share: The approximate share of the past training that the average covers. With 1, all
            steps have equal weights.

    Raises:
        InputError: If `share` is not above 0 and at most 1.
    """

    def __init__(self, share: float = Recipe.averaging) -> None:
        share = float(share) if isinstance(share, bool) else plain_number(share)
        if not (is_number(share) and 0 < share <= 1):
            raise InputError(f"share={share} must be above 0 and at most 1.")
        super().__init__(multi_avg_fn=partial(_average, share))
        self._share = share
        self._copied: Sequence[str] = ()  # the names of buffers that are not averaged

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._check_alone(trainer)
            _check_copyable(pl_module)
            _warn_of_bare_checkpoints(trainer, pl_module)
            compat.begin_average(self)  # a checkpoint is loaded later
        # The module will be moved to this device later.
        compat.keep_average_on(self, trainer.strategy.root_device)
        if trainer.precision in ("16-true", "bf16-true"):
            # The average is still float32, like the module at first; torch 2.6 cannot pass tensors
            # of two types in one list.
            compat.average_tensor_by_tensor(self, partial(_average_one, self._share))
        super().setup(trainer, pl_module, stage)
        self._copied = _of_no_statistics(pl_module)

    def _check_alone(self, trainer: pl.Trainer) -> None:
        """Raise an `InputError` if another callback would exchange or replace the weights."""
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and isinstance(other, AVERAGING):
                raise InputError(
                    f"AveragedWeights and {type(other).__name__} would both exchange the weights "
                    "for averages, and train on with averages of averages; leave one of them out."
                )
            if isinstance(other, ModelPruning):
                raise InputError(
                    f"{type(other).__name__} replaces weights by new ones, of which "
                    "AveragedWeights has no average; leave one of them out (AveragedWeights in "
                    "run_stages by recipe=Recipe(averaging=0))."
                )

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        compat.copy_into_average(self, pl_module, self._copied)

    @override
    def on_last_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            with _in_place(self, module):  # for this epoch's checkpoint
                average_buffers(module)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # `validate` measures the module as it is
            return
        super().on_validation_epoch_start(trainer, pl_module)
        if compat.is_averaging(self):
            average_buffers(pl_module)  # the module now holds the averaged network's buffers

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A checkpoint's own weights are the average, which `test(ckpt_path="best")` is to measure.
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if compat.has_average(self):  # otherwise a copy of the initial weights would replace all
            super().on_train_end(trainer, pl_module)
        average_buffers(pl_module)


def _check_copyable(module: nn.Module) -> None:
    """Raise an `InputError` if a tensor of a module has no copy, being computed or yet unknown."""
    for part in module.modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(map(is_lazy, own)):
            raise InputError(
                f"{type(part).__name__} knows its sizes from the first batch on, so "
                "AveragedWeights cannot copy the network before; pass a batch through it first."
            )
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise InputError(
                    f"{type(part).__name__}.{name} is computed from other tensors, so "
                    "AveragedWeights cannot copy the network; use the weight_norm or spectral_norm "
                    "of torch.nn.utils.parametrizations, not of torch.nn.utils, and keep no "
                    "outputs in a network."
                )


def _of_no_statistics(module: nn.Module) -> list[str]:
    """Name the buffers that are no running statistics, such as the vectors of spectral norm.

    A mean of unit vectors is no unit vector, and may even be 0.
    """
    return [
        name
        for name, buffer in module.named_buffers()
        if _is_averaged(buffer) and not name.endswith(("running_mean", "running_var"))
    ]


def _warn_of_bare_checkpoints(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Warn of checkpoints that hold the weights as they are, since no callback is asked."""
    is_bare = any(
        isinstance(callback, ModelCheckpoint) and callback.save_weights_only
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )
    if is_bare and not isinstance(module, SegmentationSteps):
        rank_zero_warn(
            "ModelCheckpoint(save_weights_only=True) saves the last step's weights, although the "
            "average is validated; leave save_weights_only out."
        )


def averaged(trainer: pl.Trainer, module: pl.LightningModule) -> AbstractContextManager[None]:
    """Use the averaged weights in the module within a `with` block, if a callback has them."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            return _in_place(callback, module)
    return nullcontext()


def averaged_steps(trainer: pl.Trainer) -> int:
    """Return the number of steps averaged so far, by any callback."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return sum(compat.averaged_steps(c) for c in callbacks if isinstance(c, WeightAveraging))


@contextmanager
def _in_place(callback: WeightAveraging, module: pl.LightningModule) -> Iterator[None]:
    """Use a callback's averaged weights in the module within a `with` block."""
    has_average = compat.has_average(callback)
    if has_average:
        compat.swap_average(callback, module)
    try:
        yield
    finally:
        if has_average:
            compat.swap_average(callback, module)


@torch.no_grad()
def _average(
    share: float, averages: list[Tensor], current: list[Tensor], steps: Tensor | int
) -> None:
    """Move the averages towards the current weights."""
    weight = _weight(share, steps)
    if _is_averaged(averages[0]):
        targets = [part.to(average.dtype) for part, average in zip(current, averages, strict=True)]
        compat.lerp_(averages, targets, weight)
    else:  # BatchNorm's count of batches
        compat.copy_(averages, current)


def _is_averaged(weight: Tensor) -> bool:
    return weight.is_floating_point() or weight.is_complex()


def _average_one(share: float, average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    """Compute the new average of one tensor, whose type may differ from the weights'."""
    if not _is_averaged(average):  # BatchNorm's count of batches
        return current
    return torch.lerp(average, current.to(average.dtype), _weight(share, steps))


def _weight(share: float, steps: Tensor | int) -> float:
    return 1 / (1 + share * float(steps))
