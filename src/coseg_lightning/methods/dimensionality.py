"""Dimensionality-driven learning (Ma et al. 2018, arXiv 1806.02612) [5]."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits, predicted_classes
from coseg_lightning.methods.method import Method
from coseg_lightning.methods.supervised import supervised_training
from coseg_lightning.modules.epochs import epochs_of_schedule
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.networks.forward import auxiliary_weight

NEIGHBOURS = 20  # k, as published
POINTS = 128  # sampled points per estimate; the published batch size
WINDOW = 5  # preceding epochs that a rise is compared with, as published
FIRST = 5  # initial epochs without a turning point, before the window, as published


class DimensionalityDriven(SegmentationModule):
    """Trains on the network's own predictions once the dimensionality of its features rises.

    Networks compress their representation while they learn clean labels, and expand it to memorise
    noise. The local intrinsic dimensionality (LID) of the representation is averaged over each
    epoch. The turning point is reached when it exceeds the mean of the five epochs before by two
    standard deviations. The network then returns to its state one epoch earlier. From there it
    learns from `alpha` of the label and `1 - alpha` of its prediction, with
    `alpha = exp(-epoch / epochs * LID / smallest LID so far)`.

    The paper is about classification. Here the points are 128 pixels drawn from every batch. They
    are represented by the input of the network's last convolution. Losses are mixed instead of
    labels, which is equivalent for the cross-entropy.

    Args:
        net: The arguments of `SegmentationModule`.
        neighbours: k, the number of neighbours of the estimate.
        options: Further arguments of `SegmentationModule`.
    """

    takes_soft_masks = False

    def __init__(self, *net: Any, neighbours: int = NEIGHBOURS, **options: Any) -> None:
        if not isinstance(neighbours, int) or not 2 <= neighbours < POINTS:
            raise InputError(
                f"neighbours={neighbours} must be a whole number of at least 2 and below {POINTS}."
            )
        super().__init__(*net, **options)
        self.neighbours = neighbours
        self.dimensions: list[float] = []  # the mean LID of each epoch
        self.turning_epoch: int | None = None
        self._of_batches: list[float] = []
        self._seen: Tensor | None = None
        self._before: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        if not self._convolutions():
            raise InputError(
                f"{type(self.net).__name__} has no convolution, whose input this method uses as "
                "features; use another network."
            )

    def _convolutions(self) -> list[nn.Module]:
        """Return all convolutions except those of auxiliary heads; the last gives the logits."""
        parts = [part for name, part in self.net.named_modules() if "aux" not in name]
        return [part for part in parts if isinstance(part, nn.Conv2d)]

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.training:
            self._seen = inputs[0].detach()

    @property
    def alpha(self) -> float:
        """The weight of the labels in the current epoch; predictions have the remaining weight."""
        if self.turning_epoch is None:
            return 1.0
        expansion = self.dimensions[-1] / min(self.dimensions)
        epochs = epochs_of_schedule(self.trainer) or 1
        return math.exp(-self.current_epoch / epochs * expansion)

    @override
    def on_train_start(self) -> None:
        if (self.trainer.max_epochs or 0) < 1:
            raise InputError(
                "The weight of the labels depends on the share of epochs that are over; give the "
                "trainer max_epochs."
            )
        self._hooks = [part.register_forward_pre_hook(self._look) for part in self._convolutions()]
        self._before = self._state()  # in a resumed fit, the state after its last epoch

    @override
    def on_train_end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.net.state_dict().items()}

    @override
    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        logits, auxiliary = self.all_logits(images)
        alpha = self.alpha
        losses = self._mixed(logits, masks, alpha)
        for part in auxiliary:
            losses = losses + auxiliary_weight(self.net) * self._mixed(part, masks, alpha)
        if self._seen is None:
            raise InputError(
                f"The inputs of the convolutions of {type(self.net).__name__} could not be read; "
                "do not compile the network."
            )
        self._of_batches.append(self.dimensionality(self._seen))
        self._seen = None
        return losses

    def _mixed(self, logits: Tensor, masks: Tensor, alpha: float) -> Tensor:
        losses = self.supervised_losses(logits, masks)
        if alpha == 1:
            return losses
        predicted = predicted_classes(class_logits(logits.detach()))
        predicted = predicted.where(masks != self.ignore_index, masks)
        return alpha * losses + (1 - alpha) * self.supervised_losses(logits, predicted)

    def dimensionality(self, features: Tensor) -> float:
        """Estimate the mean LID of pixels drawn from features `(N, C, H, W)`."""
        points = features.movedim(1, -1).flatten(0, 2).float()
        chosen = torch.randperm(len(points))[:POINTS]
        lids = local_intrinsic_dimensionality(points[chosen.to(points.device)], self.neighbours)
        return float(lids.mean())

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if not self.trainer.is_last_batch:
            return
        mean = torch.tensor(np.mean(self._of_batches), dtype=torch.float32, device=self.device)
        dimension = float(self.trainer.strategy.reduce(mean, reduce_op="mean"))
        if dimension > 0:
            self.dimensions.append(dimension)
        elif self.dimensions:  # the points were all equal and have no dimension
            self.dimensions.append(self.dimensions[-1])
        self._of_batches = []
        values = {"train/dimensionality": dimension, "train/alpha": self.alpha}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        if self.turning_epoch is None and is_turning_point(self.dimensions):
            self.turning_epoch = self.current_epoch - 1
            self.net.load_state_dict(self._before)
        if self.turning_epoch is None:
            self._before = self._state()

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["dimensions"] = self.dimensions
        checkpoint["turning_epoch"] = self.turning_epoch

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.dimensions = list(checkpoint.get("dimensions", []))
        self.turning_epoch = checkpoint.get("turning_epoch")


def local_intrinsic_dimensionality(points: Tensor, neighbours: int) -> Tensor:
    """Estimate each point's LID among the others by maximum likelihood (Ma et al., Eq. 3).

    The estimate is `-k / sum(log(r_i / r_k))` over the distances `r_i` to the k nearest neighbours,
    or to all other points if there are fewer. Points whose distances are all equal have no
    dimension and are omitted.

    Shape:
        points `(M, C)`; returns at most `(M,)`, and a single 0 if no point has a dimension.
    """
    k = min(neighbours, len(points) - 1)
    if k < 2:
        return points.new_zeros(1)
    # This mode gives distances of exactly 0 for equal points.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.topk(k + 1, largest=False, sorted=True).values[:, 1:]  # without itself
    ratios = nearest / nearest[:, -1:].clamp_min(1e-12)
    logarithms = ratios.clamp_min(1e-12).log().sum(dim=1)
    is_defined = (nearest[:, -1] > 0) & (logarithms < 0)
    return -k / logarithms[is_defined] if bool(is_defined.any()) else points.new_zeros(1)


def is_turning_point(dimensions: Sequence[float]) -> bool:
    """Whether the last epoch's LID exceeds the mean of the window by two standard deviations."""
    if len(dimensions) <= FIRST + WINDOW:
        return False
    before = np.array(dimensions[-WINDOW - 1 : -1])
    return bool(dimensions[-1] - before.mean() > 2 * before.std())


METHOD = Method("dimensionality", (supervised_training,), module=DimensionalityDriven)
