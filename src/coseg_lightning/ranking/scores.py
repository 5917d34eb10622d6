"""Corruption scores: Eq. (1), and others made of the same predictions and labels.

On images that differ a lot, Eq. (1) ranks hard images as well as bad labels. The other scores ask
how much worse a label fits than the network itself expects, and in which direction it errs. Which
to use was measured: `benchmarks/ranking.py`.

Legend of shapes: N samples, K classes, H x W pixels.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import lmoment

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.evidence import EPSILON, Evidence, Floats


def relative(e: Evidence) -> Floats:
    """Log of the label's cross-entropy over the entropy that the network expects."""
    return np.log((e.cross_entropy + EPSILON) / (e.entropy + EPSILON))


def shift(e: Evidence) -> Floats:
    """Signed: how much larger the label is than the prediction, in units of its entropy.

    A prediction is uncertain along its boundary, over an area that is proportional to the
    boundary's length: the ratio is a displacement of the boundary, and needs no distances.
    """
    return e.size_bias / (e.entropy + EPSILON)


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
