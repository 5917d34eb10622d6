"""Corruption scores: Eq. (1), and others made of the same predictions and labels.

On images that differ a lot, Eq. (1) ranks hard images as well as bad labels. The other scores ask
how much worse a label fits than the network itself expects, and in which direction it errs. Which
to use was measured: `benchmarks/ranking.py`.

Legend of shapes: N samples, K classes, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import lmoment
from torch import Tensor
from torch.nn import functional as F

from coseg_lightning.equations import (
    IGNORE_INDEX,
    class_logits,
    corruption_score,
    predicted_classes,
)
from coseg_lightning.errors import InputError

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


def evidence(logits: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX) -> Tensor:
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
    """The numbers of `evidence` by name, averaged over passes and peers.

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
    def of(cls, table: Floats) -> "Evidence":
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
    def excess(self) -> Floats:
        """`(N, K - 1)` how much larger the label is than the prediction, in shares of the image."""
        return self.label_area - self.expected_area


def relative(e: Evidence) -> Floats:
    """Log of the label's cross-entropy over the entropy that the network expects."""
    return np.log((e.cross_entropy + EPSILON) / (e.entropy + EPSILON))


def shift(e: Evidence) -> Floats:
    """Signed: how much larger the label is than the prediction, in units of its entropy.

    A prediction is uncertain along its boundary, over an area that is proportional to the
    boundary's length: the ratio is a displacement of the boundary, and needs no distances.
    """
    return e.excess / (e.entropy + EPSILON)


def per_boundary(e: Evidence) -> Floats:
    """Cross-entropy over the length of the label's boundary, where labels are uncertain."""
    return e.cross_entropy / (e.boundary + EPSILON)


def worst_pixels(e: Evidence) -> Floats:
    """The softmin score, which looks at the worst pixels, on the scale of log odds."""
    return np.log((e.class_softmin + 1e-6) / (1 - e.class_softmin + 1e-6))


def directed(e: Evidence) -> Floats:
    """The default: how badly the label fits, plus how far its boundary is off where noise lies.

    The misfit is the mean of three views, `relative`, `per_boundary` and `worst_pixels`. To it
    comes the displacement of the boundary, half of it: to either side, as long as the noise has
    none. Where one tail of the displacements is clearly heavier, the noise is one-sided (an
    annotator who outlines too much, or too little): a label that errs to the other side is then
    all the less suspicious, and the displacement counts in full. Everything is standardised over
    the dataset by median and median absolute deviation.
    """
    views = [standardised(view(e), e) for view in (relative, per_boundary, worst_pixels)]
    displacement, sides = standardised(shift(e), e), direction(e)
    either, one = (1 - np.abs(sides)) * np.abs(displacement), sides * displacement
    result: Floats = np.mean(views, axis=0) + 0.5 * either + one
    return result


def direction(e: Evidence) -> Floats:
    """`(K - 1,)` on which side the noise is: 1 too large, -1 too small, 0 on both or none.

    By the L-skewness (Hosking 1990) of the displacements, cut at four deviations; between 0.08 and
    0.13 it counts in part.
    """
    values = standardised(shift(e), e, squashed=False).clip(-4, 4)
    sides = np.zeros(values.shape[1])
    for k in range(values.shape[1]):
        skewness = l_skewness(values[e.concerns[:, k], k])
        sides[k] = np.sign(skewness) * np.clip((abs(skewness) - 0.08) / 0.05, 0, 1)
    return sides


def standardised(values: Floats, e: Evidence, *, squashed: bool = True) -> Floats:
    """Values `(N, K - 1)` by median and deviation of the samples that the class concerns.

    Others get 0. Squashed by arsinh, few wild values do not outweigh everything else.
    """
    result = np.zeros_like(values)
    for k, concerned in enumerate(e.concerns.T):
        if concerned.any():
            chosen = values[concerned, k]
            centred = chosen - np.median(chosen)
            deviation = 1.4826 * np.median(np.abs(centred)) or float(centred.std()) or 1.0
            result[concerned, k] = centred / deviation
    return np.arcsinh(result) if squashed else result


def l_skewness(values: Floats) -> float:
    """Third L-moment over the second, in [-1, 1]; 0 for a symmetric distribution."""
    if len(values) < 4 or values.max() == values.min():
        return 0.0
    return float(lmoment(values, order=3))


# Each gives a number for every class of every mask, higher for worse labels.
CLASS_SCORES: dict[str, Callable[[Evidence], Floats]] = {
    "directed": directed,
    "relative": relative,
    "excess": lambda e: e.cross_entropy - e.entropy,
    "standardised": lambda e: (
        (e.cross_entropy - e.entropy) * np.sqrt(e.pixels[:, None] / (e.variance + EPSILON))
    ),
    "per_boundary": per_boundary,
    "per_object": lambda e: e.cross_entropy / (e.label_area + e.expected_area + EPSILON),
    "dice": lambda e: 1 - e.dice,
    "shift": lambda e: np.abs(standardised(shift(e), e)),
    "larger": shift,
    "smaller": lambda e: -shift(e),
}
# These judge the whole mask at once; by class they give the class's share of the cross-entropy.
MASK_SCORES: dict[str, Callable[[Evidence], Floats]] = {
    "mean": lambda e: e.eq1,
    "sum": lambda e: e.eq1 * e.pixels,
    "softmin": lambda e: e.softmin,
}
SCORES = (*CLASS_SCORES, *MASK_SCORES)


def check_score(name: str) -> None:
    """Raise an `InputError` if there is no such score."""
    if name not in SCORES:
        raise InputError(f"score={name}: there is no such score; take one of {', '.join(SCORES)}.")


def class_scores(e: Evidence, name: str = "directed") -> Floats:
    """`(N, K - 1)` how suspicious each class of each mask is; NaN where it is not concerned."""
    check_score(name)
    values = CLASS_SCORES[name](e) if name in CLASS_SCORES else e.cross_entropy
    return np.where(e.concerns, values, np.nan)


def mask_scores(e: Evidence, name: str = "directed") -> Floats:
    """`(N,)` corruption scores, higher for worse labels; comparable within one dataset.

    Args:
        e: Of all samples of the dataset.
        name: `directed` (the default), `relative` (cross-entropy over expected entropy),
            `excess` and `standardised` (their difference, plain and in standard deviations),
            `per_boundary` and `per_object` (cross-entropy over the label's boundary or the
            object's size), `dice` (one minus soft Dice), `shift` (displacement of the boundary
            to either side), `larger` and `smaller` (to one side, if you know it), each the mean
            over the classes that concern a mask; `mean` and `sum` (Eq. (1)), `softmin`.

    Raises:
        InputError: If there is no such score.
    """
    check_score(name)
    if name in MASK_SCORES:
        return MASK_SCORES[name](e)
    concerned, values = e.concerns, CLASS_SCORES[name](e)
    mean: Floats = np.where(concerned, values, 0).sum(axis=1) / concerned.sum(axis=1).clip(1)
    # An empty label where nothing is predicted either is the least suspicious of all.
    least: Floats = np.full_like(mean, mean.min(initial=0.0))
    return np.where(concerned.any(axis=1), mean, least)
