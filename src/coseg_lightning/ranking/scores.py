"""Corruption scores: Eq. (1), and others computed from the same predictions and labels.

On heterogeneous images, Eq. (1) ranks hard images as high as bad labels. The other scores measure
how much worse a label fits than the network itself expects, and in which direction it is wrong.
The default was chosen by measurement: see `benchmarks/ranking.py`.

Legend of shapes: N samples, K classes, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import lmoment, spearmanr

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.displacement import habits, without_habit
from coseg_lightning.ranking.evidence import EPSILON, Evidence, Floats
from coseg_lightning.ranking.outline import outline_misfit, standardise

SHRINKAGE = 100  # samples; with fewer, image difficulty explains little
DIRECTION_SHRINKAGE = 20  # the same for the direction, which needs more samples


def relative(e: Evidence) -> Floats:
    """Log of the label's cross-entropy over its expectation, the entropy of the prediction."""
    return np.log((e.cross_entropy + EPSILON) / (e.entropy + EPSILON))


def shift(e: Evidence) -> Floats:
    """Signed size difference of label and prediction, in units of the prediction's entropy.

    A prediction is uncertain along its boundary, over an area proportional to the boundary's
    length. The ratio is therefore a displacement of the boundary, computed without distances.
    """
    return e.size_bias / (e.entropy + EPSILON)


def own_shift(e: Evidence) -> Floats:
    """The shift of each label, minus the steady shift of its annotator if known."""
    values = shift(e)
    return values if e.people is None else values - habits(_of_concern(values, e), e.people)


def _without_habit(values: Floats, e: Evidence) -> Floats:
    """Subtract from scores what the steady displacement of each person adds to them."""
    if e.people is None:
        return values
    moved = _of_concern(shift(e), e)
    return without_habit(values, moved, habits(moved, e.people))


def _of_concern(values: Floats, e: Evidence) -> Floats:
    """Set values to NaN where a class is neither labelled nor predicted."""
    return np.where(e.concerns, values, np.nan)


def per_boundary(e: Evidence) -> Floats:
    """Cross-entropy over the length of the label's boundary, along which labels are uncertain."""
    return e.cross_entropy / (e.boundary + EPSILON)


def worst_pixels(e: Evidence) -> Floats:
    """The softmin score, which is dominated by the worst pixels, as log odds."""
    return np.log((e.class_softmin + 1e-6) / (1 - e.class_softmin + 1e-6))


def directed(e: Evidence) -> Floats:
    """The peers' score: the misfit of the label plus the displacement of its boundary.

    The misfit is the mean of `relative`, `per_boundary` and `worst_pixels`. If the noise has no
    direction, half of the absolute displacement is added. If one tail of the displacements is
    clearly heavier, the noise is one-sided: labels tend to be too large, or too small. The
    displacement in that direction then counts in full, and a label that deviates in the other
    direction is less suspicious.

    All terms are standardised over the dataset by median and median absolute deviation. If kinds
    of images are given, this is done within each kind, and each kind has its own direction. If
    the annotators are known, each one's steady displacement is subtracted first.
    """
    scores = (relative, per_boundary, worst_pixels)
    misfits = [standardised(_without_habit(score(e), e), e) for score in scores]
    displacement, sides = standardised(own_shift(e), e), sides_by_sample(e)
    two_sided = (1 - np.abs(sides)) * np.abs(displacement)
    one_sided = sides * displacement
    result: Floats = np.mean(misfits, axis=0) + 0.5 * two_sided + one_sided
    return result


def joint(e: Evidence) -> Floats:
    """The default score: `directed`, plus how badly the outlines follow the edges of the image.

    Networks and outlines make different mistakes. Outlines give two terms: how badly the label's
    outline follows edges, and how much better the prediction's outline does. Their sum is
    weighted by their rank correlation over the dataset, which is high if both find the same bad
    masks. If the outline of the prediction fits badly too, the image is hard, not the mask bad.
    What this explains of `directed` is subtracted. An outline that cannot be judged adds nothing.
    No weight is fitted; `benchmarks/ranking.py` compares others.

    Raises:
        InputError: If there is no evidence on the outlines.
    """
    if e.outline is None:
        raise InputError(
            "score=joint uses the outlines too, but this evidence comes only from networks; give "
            "it an `outline` (ranking.outline.outline_evidence), or use score=directed."
        )
    of_label, of_prediction = e.outline[..., :2], e.outline[..., 2:]
    misfit = outline_misfit(of_label)
    difference = outline_misfit(of_label - of_prediction)
    difficulty = np.nan_to_num(outline_misfit(of_prediction))
    of_networks = standardised(directed(e), e)
    of_networks -= explained(of_networks, by=difficulty)
    of_outlines = np.nan_to_num(misfit) + np.nan_to_num(difference)
    return of_networks + agreement(misfit, difference) * of_outlines


def explained(values: Floats, *, by: Floats) -> Floats:
    """The part of each column that a line through the origin explains, both `(N, K)`.

    The slope is shrunk towards 0 as by `SHRINKAGE` further samples without any relation.
    """
    slopes: Floats = (by * values).sum(axis=0) / (np.square(by).sum(axis=0) + SHRINKAGE)
    return slopes * by


def agreement(first: Floats, second: Floats) -> Floats:
    """`(K,)` Spearman's rank correlation of the columns of two `(N, K)` arrays; 0 if negative.

    Samples with a NaN in either are left out. Without variation the result is 0.
    """
    result = np.zeros(first.shape[1])
    for k, (x, y) in enumerate(zip(first.T, second.T, strict=True)):
        known = ~np.isnan(x) & ~np.isnan(y)
        if known.sum() > 2 and np.ptp(x[known]) > 0 and np.ptp(y[known]) > 0:
            result[k] = max(0.0, float(spearmanr(x[known], y[known]).statistic))
    return result


def direction(e: Evidence) -> Floats:
    """`(K - 1,)` the direction of the noise: 1 too large, -1 too small, 0 for both or none.

    Decided by the L-skewness (Hosking 1990) of the displacements, clipped at four deviations. An
    absolute L-skewness between 0.12 and 0.17 gives a value between 0 and 1. The L-skewness of 140
    symmetric values has a standard deviation of 0.04. A wrong direction costs more than a missed
    one, so the threshold is three times as high.
    """
    return _side(_skewness(e))


def sides_by_sample(e: Evidence) -> Floats:
    """`(N, K - 1)` the direction of the noise on each sample's kind of image.

    The L-skewness of a kind is shrunk towards that of all samples.
    """
    whole = _skewness(replace(e, kinds=None))
    sides = np.tile(_side(whole), (len(e.eq1), 1))
    for kind in () if e.kinds is None else np.unique(e.kinds):
        of_kind = e.kinds == kind
        share = of_kind.sum() / (of_kind.sum() + DIRECTION_SHRINKAGE)
        sides[of_kind] = _side(share * _skewness(e, of_kind) + (1 - share) * whole)
    return sides


def _skewness(e: Evidence, samples: NDArray[np.bool_] | Literal[True] = True) -> Floats:
    """`(K - 1,)` the L-skewness of the displacements of some or all samples."""
    values = standardised(own_shift(e), e, squashed=False).clip(-4, 4)
    return np.array(
        [l_skewness(values[samples & of_class, k]) for k, of_class in enumerate(e.concerns.T)]
    )


def _side(skewness: Floats) -> Floats:
    side: Floats = np.sign(skewness) * np.clip((np.abs(skewness) - 0.12) / 0.05, 0, 1)
    return side


def standardised(values: Floats, e: Evidence, *, squashed: bool = True) -> Floats:
    """Standardise `(N, K - 1)` values by the median and deviation of the samples with the class.

    Samples without the class get 0. With `squashed`, arsinh limits the influence of outliers. If
    kinds of images are given, the median and deviation of a kind are shrunk to those of all.
    """
    known = np.where(e.concerns, values, np.nan)
    return np.nan_to_num(standardise(known, squashed=squashed, kinds=e.kinds))


def l_skewness(values: Floats) -> float:
    """Third L-moment over the second, in [-1, 1]; 0 for symmetric distributions."""
    if len(values) < 4 or values.max() == values.min():
        return 0.0
    return float(lmoment(values, order=3))


# Scores `(N, K - 1)` of each class of each mask, higher for worse labels.
CLASS_SCORES: dict[str, Callable[[Evidence], Floats]] = {
    "joint": joint,
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
# Scores `(N,)` of the whole mask. For these, `class_scores` uses the class's cross-entropy.
MASK_SCORES: dict[str, Callable[[Evidence], Floats]] = {
    "mean": lambda e: e.eq1,
    "sum": lambda e: e.eq1 * e.pixels,
    "softmin": lambda e: e.softmin,
}
SCORES = (*CLASS_SCORES, *MASK_SCORES)


def check_score(name: str) -> None:
    """Raise an `InputError` if there is no score of this name."""
    if name not in SCORES:
        raise InputError(f"score={name}: there is no such score; use one of {', '.join(SCORES)}.")


def class_scores(e: Evidence, name: str) -> Floats:
    """`(N, K - 1)` corruption scores by class; NaN where a class is neither labelled nor predicted.

    Args:
        e: The evidence on all samples of the dataset.
        name: The score: see `mask_scores`.

    Raises:
        InputError: If there is no such score.
    """
    check_score(name)
    values = CLASS_SCORES[name](e) if name in CLASS_SCORES else e.cross_entropy
    return np.where(e.concerns, values, np.nan)


def mask_scores(e: Evidence, name: str) -> Floats:
    """`(N,)` corruption scores, higher for worse labels; comparable within one dataset only.

    Args:
        e: The evidence on all samples of the dataset.
        name: The score. `mean` and `sum` (Eq. (1)) and `softmin` judge the whole mask. All others
            are averaged over the classes present in label or prediction. `joint` is the recipe's:
            `directed`, plus the outlines at the masks' own size. `relative` is the cross-entropy
            over the entropy. `excess` and `standardised` are their difference, plain and in
            standard deviations. `per_boundary` and `per_object` are the cross-entropy over the
            label's boundary or the object's size. `dice` is one minus soft Dice. `shift` is the
            displacement of the boundary in either direction; `larger` and `smaller` are that in
            one direction, if it is known.

    Raises:
        InputError: If there is no such score.
    """
    check_score(name)
    if name in MASK_SCORES:
        return MASK_SCORES[name](e)
    concerned, values = e.concerns, CLASS_SCORES[name](e)
    mean: Floats = np.where(concerned, values, 0).sum(axis=1) / concerned.sum(axis=1).clip(1)
    # An empty label with an empty prediction is the least suspicious of all.
    least: Floats = np.full_like(mean, mean.min(initial=0.0))
    return np.where(concerned.any(axis=1), mean, least)
