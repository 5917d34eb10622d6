"""Statistics that compare predictions with labels, to be averaged over passes and peers.

Legend of shapes: N samples, K classes, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    class_logits,
    corruption_score,
    labelled_mean,
    predicted_classes,
)

if TYPE_CHECKING:
    from coseg_lightning.ranking.people import People

Floats = NDArray[np.float64]

EPSILON = 1e-3  # nats per pixel; keeps ratios finite where label and prediction are both certain
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


@dataclass
class Evidence:
    """The statistics of `compute_evidence` by name, averaged over passes and peers.

    Args:
        outline: `ranking.outline.outline_evidence` of the labels and of the predictions, if it was
            computed.
        kinds: `(N,)` numbers of the kinds of the images, if there are several kinds.
        people: Who drew each label, if known. Each person's steady displacement is then corrected
            before labels are judged.

    Shape:
        eq1, pixels, softmin and kinds `(N,)`; outline `(N, K - 1, 4)`; all others `(N, K - 1)`,
        without background.
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
    outline: Floats | None = None
    kinds: NDArray[np.int64] | None = None
    people: "People | None" = None

    @classmethod
    def from_table(cls, table: Floats) -> "Evidence":
        """Name the columns of a table `(N, 3 + 9 (K - 1))`."""
        count = len(MASK_COLUMNS)
        by_class = table[:, count:].reshape(len(table), -1, len(CLASS_COLUMNS))
        return cls(*table[:, :count].T, *np.moveaxis(by_class, 2, 0))

    @property
    def concerns(self) -> NDArray[np.bool_]:
        """`(N, K - 1)` whether a class is in the label or in the prediction."""
        return (self.label_area > 0) | (self.predicted_area > 0)

    @property
    def dice(self) -> Floats:
        """`(N, K - 1)` soft Dice of label and prediction; 1 where the class is in neither."""
        both = self.label_area + self.expected_area
        return np.where(self.concerns, 2 * self.overlap / np.maximum(both, 1e-12), 1.0)

    @property
    def size_bias(self) -> Floats:
        """`(N, K - 1)` area of the label minus that of the prediction, as a share of the image."""
        return self.label_area - self.expected_area


def kind_numbers(ids: Sequence[str], kinds: Mapping[str, str]) -> NDArray[np.int64]:
    """`(N,)` numbers of the samples' kinds; samples without a kind share the number 0.

    Raises:
        InputError: If no sample has a kind.
    """
    check_names_samples("kinds", kinds, ids)
    number = {kind: n for n, kind in enumerate(sorted(set(kinds.values())), start=1)}
    return np.array([number[kinds[i]] if i in kinds else 0 for i in ids], dtype=np.int64)


def check_names_samples(setting: str, given: Mapping[str, object], ids: Sequence[str]) -> None:
    """Raise an `InputError` if a mapping from ids names samples, but none of the set.

    Args:
        setting: The name of the mapping, for the message.
        given: The mapping.
        ids: The samples' ids.
    """
    if given and ids and not any(sample_id in given for sample_id in ids):
        raise InputError(
            f"{setting} names {next(iter(given))!r} and others, but no sample has such an id; give "
            f"ids such as {ids[0]!r}."
        )


def compute_evidence(logits: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Compare predictions with labels, in statistics that can be averaged over passes and peers.

    The first columns describe the whole mask (`MASK_COLUMNS`):

    * `eq1`: Eq. (1).
    * `pixels`: the number of labelled pixels.
    * `softmin`: the softmin score of Lad and Mueller (2023, arXiv 2307.05080) at temperature 0.1;
      high for bad labels.

    The columns of each foreground class follow (`CLASS_COLUMNS`), with the class against all
    others. Means are over labelled pixels:

    * `cross_entropy`: the mean cross-entropy of the label.
    * `entropy`, `variance`: the cross-entropy's expectation under the network's own prediction,
      which is the entropy, and its variance.
    * `label_area`, `predicted_area`, `expected_area`: the areas of the label, of the prediction
      and of the predicted probability.
    * `overlap`: the overlap of the label and the predicted probability.
    * `boundary`: the length of the label's boundary over the number of pixels.
    * `class_softmin`: the softmin score of this class alone.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2; masks `(N, H, W)` int64. Returns
        `(N, 3 + 9 (K - 1))` float64.
    """
    logits = class_logits(logits)
    labelled = masks != ignore_index
    pixels = labelled.flatten(1).sum(dim=1)
    precise = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no float64
    eq1 = corruption_score(logits, masks, ignore_index=ignore_index)
    p = logits.softmax(dim=1)
    counts = labelled.to(p.dtype)  # converted once, not for each mean

    def mean(values: Tensor) -> Tensor:
        """Average `(N, ..., H, W)` over labelled pixels."""
        shape = [len(values)] + [1] * (values.ndim - 3)
        inside = values * counts.view(*shape, *counts.shape[1:])
        return inside.sum(dim=(-2, -1), dtype=precise) / pixels.clamp_min(1).view(shape)

    def softmin(fits: Tensor) -> Tensor:
        weights = ((1 - fits) / 0.1).exp()
        total = mean(weights)  # 0 without labels, none of which contradicts the network
        return (1 - mean(fits * weights) / total.clamp_min(1e-12)).where(total != 0, 0)

    label_p = p.gather(1, masks.where(labelled, 0).unsqueeze(1))[:, 0]
    mask_columns = torch.stack([eq1.to(precise), pixels.to(precise), softmin(label_p)], dim=-1)

    foreground = torch.arange(1, logits.shape[1], device=masks.device).view(-1, 1, 1)
    y = (masks.where(labelled, 0).unsqueeze(1) == foreground).to(p.dtype)
    q = p[:, 1:].clamp(1e-6, 1 - 1e-6)
    odds = q.logit()
    cross_entropy = -(y * q.log() + (1 - y) * (1 - q).log())
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    variance = q * (1 - q) * odds.square()
    prediction = (predicted_classes(logits).unsqueeze(1) == foreground).to(p.dtype)
    across = y.diff(dim=-1).abs() * (counts[:, None, :, 1:] * counts[:, None, :, :-1])
    down = y.diff(dim=-2).abs() * (counts[:, None, 1:] * counts[:, None, :-1])
    boundary = F.pad(across, (1, 0)) + F.pad(down, (0, 0, 1, 0))  # not to what has no label
    averaged = [cross_entropy, entropy, variance, y, prediction, q, q * y, boundary]
    means = [mean(values) for values in averaged]
    class_columns = torch.stack([*means, softmin(y * q + (1 - y) * (1 - q))], dim=-1)
    return torch.cat([mask_columns, class_columns.flatten(1)], dim=1).cpu().double()


def relative_score(logits: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Divide each label's cross-entropy by the entropy of the prediction; high for bad labels.

    The entropy is the expectation of Eq. (1) if the prediction is well calibrated. Hard images
    have a high cross-entropy for any label, but a high entropy too.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2; masks `(N, H, W)`. Returns `(N,)`.
    """
    log_p = class_logits(logits).log_softmax(dim=1)
    entropy = -(log_p.exp() * log_p).sum(dim=1)
    mean_entropy = labelled_mean(entropy, masks != ignore_index)
    cross_entropy = corruption_score(logits, masks, ignore_index=ignore_index)
    return (cross_entropy + EPSILON) / (mean_entropy + EPSILON)
