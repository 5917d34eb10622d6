"""What predictions say of labels, in numbers that may be averaged over passes and peers.

Legend of shapes: N samples, K classes, H x W pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    class_logits,
    corruption_score,
    predicted_classes,
)

Floats = NDArray[np.float64]

MASK_COLUMNS = ("eq1", "pixels", "softmin")


CLASS_COLUMNS = (
    "cross_entropy",
    "entropy",
    "variance",
    "label_area",
    "predicted_area",
    "expected_area",
    "overlap",
    "boundary",
    "class_softmin",
)


# Nats per pixel that are nothing: keeps ratios finite where label and prediction are both sure.
EPSILON = 1e-3


def relative_score(logits: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Each label's cross-entropy over the entropy that the network expects; high for bad labels.

    Eq. (1) divided by its own expectation, if the network is right about itself: a hard image has
    a large cross-entropy whatever its label, but it is expected.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2; masks `(N, H, W)`. Returns `(N,)`.
    """
    log_p = class_logits(logits).log_softmax(dim=1)
    labelled = masks != ignore_index
    expected = -(log_p.exp() * log_p).sum(dim=1) * labelled
    mean = expected.flatten(1).sum(dim=1) / labelled.flatten(1).sum(dim=1).clamp_min(1)
    cross_entropy = corruption_score(logits, masks, ignore_index=ignore_index)
    return (cross_entropy + EPSILON) / (mean + EPSILON)


def compute_evidence(logits: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """What predictions say of labels, in numbers that may be averaged over passes and peers.

    The first columns concern the whole mask (`MASK_COLUMNS`): Eq. (1), the number of labelled
    pixels, and the softmin score of Lad and Mueller (2023, arXiv 2307.05080; temperature 0.1, high
    for bad labels). Then follow, for each class but background, `CLASS_COLUMNS`: with the class
    against all others, the mean over labelled pixels of the label's cross-entropy, of the
    entropy and its variance that the network expects; the areas of label, prediction and predicted
    probability, and the label's and the probability's overlap; the label's boundary length over
    the number of pixels; and the softmin score of this class alone.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2; masks `(N, H, W)` int64. Returns
        `(N, 3 + 9 (K - 1))` float64.
    """
    logits = class_logits(logits)
    labelled = masks != ignore_index
    pixels = labelled.flatten(1).sum(dim=1)
    precise = torch.float32 if logits.device.type == "mps" else torch.float64  # which mps lacks
    eq1 = corruption_score(logits, masks, ignore_index=ignore_index)

    def mean(values: Tensor) -> Tensor:
        """Over labelled pixels of `(N, ..., H, W)`."""
        shape = [len(values)] + [1] * (values.ndim - 3)
        inside = values * counts.view(*shape, *counts.shape[1:])
        return inside.sum(dim=(-2, -1), dtype=precise) / pixels.clamp_min(1).view(shape)

    p = logits.softmax(dim=1)
    counts = labelled.to(p.dtype)  # once, not for each mean
    of_label = p.gather(1, masks.where(labelled, 0).unsqueeze(1))[:, 0]

    def softmin(fits: Tensor) -> Tensor:
        weights = ((1 - fits) / 0.1).exp()
        return 1 - mean(fits * weights) / mean(weights).clamp_min(1e-12)

    classes = logits.shape[1]
    ids = torch.arange(1, classes, device=masks.device).view(-1, 1, 1)  # without background
    y = (masks.where(labelled, 0).unsqueeze(1) == ids).to(p.dtype)
    q = p[:, 1:].clamp(1e-6, 1 - 1e-6)
    odds = q.logit()
    minus_log = -(y * q.log() + (1 - y) * (1 - q).log())
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    changes = F.pad(y.diff(dim=-1).abs(), (1, 0)) + F.pad(y.diff(dim=-2).abs(), (0, 0, 1, 0))
    hard = (predicted_classes(logits).unsqueeze(1) == ids).to(p.dtype)
    by_class = [minus_log, entropy, q * (1 - q) * odds.square(), y, hard, q, q * y, changes]
    means = [mean(values) for values in by_class]
    columns = torch.stack([*means, softmin(y * q + (1 - y) * (1 - q))], dim=-1)
    whole = torch.stack([eq1.to(precise), pixels.to(precise), softmin(of_label)], dim=-1)
    return torch.cat([whole, columns.flatten(1)], dim=1).cpu().double()


@dataclass
class Evidence:
    """The numbers of `compute_evidence` by name, averaged over passes and peers.

    Shape:
        eq1, pixels and softmin `(N,)`; all others `(N, K - 1)`, background left out.
    """

    eq1: Floats
    pixels: Floats
    softmin: Floats
    cross_entropy: Floats
    entropy: Floats
    variance: Floats
    label_area: Floats
    predicted_area: Floats
    expected_area: Floats
    overlap: Floats
    boundary: Floats
    class_softmin: Floats

    @classmethod
    def from_table(cls, table: Floats) -> "Evidence":
        """Read a table `(N, 3 + 9 (K - 1))`."""
        whole = len(MASK_COLUMNS)
        by_class = table[:, whole:].reshape(len(table), -1, len(CLASS_COLUMNS))
        return cls(*table[:, :whole].T, *np.moveaxis(by_class, 2, 0))

    @property
    def concerns(self) -> NDArray[np.bool_]:
        """`(N, K - 1)` whether a class is in the label or in the prediction."""
        return (self.label_area > 0) | (self.predicted_area > 0)

    @property
    def dice(self) -> Floats:
        """`(N, K - 1)` soft Dice of label and prediction; 1 where there is neither."""
        both = self.label_area + self.expected_area
        return np.where(self.concerns, 2 * self.overlap / np.maximum(both, 1e-12), 1.0)

    @property
    def size_bias(self) -> Floats:
        """`(N, K - 1)` how much larger the label is than the prediction, in shares of the image."""
        return self.label_area - self.expected_area
