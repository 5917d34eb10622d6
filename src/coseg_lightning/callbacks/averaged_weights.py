"""AveragedWeights: the running average of the weights, by which networks are judged."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.modules.buffers import average_buffers


class AveragedWeights(WeightAveraging):
    """Validates, ranks, corrects and keeps the average of the weights over the last steps.

    A network that learns at a constant rate from few images differs from epoch to epoch by points
    of Dice; its average does not. Lightning's `WeightAveraging` (in checkpoints too) with a window
    that grows with training, so that there is no rate to set: step t enters by `1 / (1 + share t)`,
    as in the polynomial-decay averaging of Shamir and Zhang (2013, arXiv 1212.1824).

    Args:
        share: About how much of the training the average reaches back over; 1 weighs all steps
            alike.

    Raises:
        InputError: If it is not above 0 and at most 1.
    """

    def __init__(self, share: float = 0.1) -> None:
        if not 0 < share <= 1:
            raise InputError(f"share={share} must be above 0 and at most 1.")
        super().__init__(multi_avg_fn=partial(_average, share))

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where the module is about to be moved
        super().setup(trainer, pl_module, stage)

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
        if trainer.is_last_batch and trainer.world_size > 1:
            with _in_place(self, pl_module):  # for the checkpoint of this epoch
                average_buffers(pl_module)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        if self._average_model is not None:
            average_buffers(pl_module)  # which are now those of the averaged network

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        average_buffers(pl_module)


def averaged(trainer: pl.Trainer, module: pl.LightningModule) -> AbstractContextManager[None]:
    """The averaged weights for a while, if a callback averages them: this one, or Lightning's."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            return _in_place(callback, module)
    return nullcontext()


@contextmanager
def _in_place(callback: WeightAveraging, module: pl.LightningModule) -> Iterator[None]:
    """Give the module the averaged weights within training."""
    average = callback._average_model
    ready = average is not None and int(average.n_averaged) > 0
    if ready:
        callback._swap_models(module)
    try:
        yield
    finally:
        if ready:
            callback._swap_models(module)


@torch.no_grad()
def _average(
    share: float, averages: list[Tensor], current: list[Tensor], steps: Tensor | int
) -> None:
    """Move the averages towards the current weights."""
    weight = 1 / (1 + share * float(steps))
    if torch.is_floating_point(averages[0]):
        # With precision="bf16-true" the module was made in float32, as its average still is.
        now = [part.to(average.dtype) for part, average in zip(current, averages, strict=True)]
        torch._foreach_lerp_(averages, now, weight)
    else:  # BatchNorm's count of batches
        torch._foreach_copy_(averages, current)
