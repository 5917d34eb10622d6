"""Corruption scores: Eq. (1), and others computed from the same predictions and labels.

On heterogeneous images, Eq. (1) ranks hard images as high as bad labels. The other scores measure
how much worse a label fits than the network itself expects, and in which direction it is wrong.
The choice of the default was measured: see `benchmarks/ranking.py`.

Legend of shapes: N samples, K classes, H x W pixels.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import lmoment

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.evidence import EPSILON, Evidence, Floats
from coseg_lightning.ranking.outline import outline_misfit, standardise


def relative(e: Evidence) -> Floats:
    """Log of the label's cross-entropy over its expectation, the entropy of the prediction."""
    return np.log((e.cross_entropy + EPSILON) / (e.entropy + EPSILON))


def shift(e: Evidence) -> Floats:
    """Signed size difference of label and prediction, in units of the prediction's entropy.

    A prediction is uncertain along its boundary, over an area proportional to the boundary's
    length. The ratio is therefore a displacement of the boundary, computed without distances.
    """
    return e.size_bias / (e.entropy + EPSILON)


def per_boundary(e: Evidence) -> Floats:
    """Cross-entropy over the length of the label's boundary, along which labels are uncertain."""
    return e.cross_entropy / (e.boundary + EPSILON)


def worst_pixels(e: Evidence) -> Floats:
    """The softmin score, which is dominated by the worst pixels, as log odds."""
    return np.log((e.class_softmin + 1e-6) / (1 - e.class_softmin + 1e-6))


def directed(e: Evidence) -> Floats:
    """The default score: the misfit of the label plus the displacement of its boundary.

    The misfit is the mean of `relative`, `per_boundary` and `worst_pixels`. If the noise has no
    direction, half of the absolute displacement is added. If one tail of the displacements is
    clearly heavier, the noise is one-sided: the annotator outlines too much, or too little. The
    displacement in that direction then counts in full, and a label that deviates in the other
    direction is less suspicious. All terms are standardised over the dataset by median and median
    absolute deviation.
    """
    misfits = [standardised(score(e), e) for score in (relative, per_boundary, worst_pixels)]
    displacement, sides = standardised(shift(e), e), direction(e)
    two_sided = (1 - np.abs(sides)) * np.abs(displacement)
    one_sided = sides * displacement
    result: Floats = np.mean(misfits, axis=0) + 0.5 * two_sided + one_sided
    return result


def joint(e: Evidence) -> Floats:
    """`directed` plus the misfit of the outline, which weighs as much.

    One half of that misfit is how badly the label's outline follows the edges of the image. The
    other half is how much better the outline of the prediction does: some images have weak edges,
    whatever their masks are. Networks and outlines err on different masks. An outline that cannot
    be judged adds nothing.

    Raises:
        InputError: If there is no evidence on the outlines.
    """
    if e.outline is None:
        raise InputError(
            "score=joint looks at the outlines too, and this evidence is of networks alone; give "
            "it an `outline` (ranking.outline.outline_evidence), or take score=directed."
        )
    of_label, of_prediction = e.outline[..., :2], e.outline[..., 2:]
    misfits = [outline_misfit(of_label), outline_misfit(of_label - of_prediction)]
    result: Floats = standardised(directed(e), e) + np.nan_to_num(misfits).mean(axis=0)
    return result


def direction(e: Evidence) -> Floats:
    """`(K - 1,)` the direction of the noise: 1 too large, -1 too small, 0 for both or none.

    Decided by the L-skewness (Hosking 1990) of the displacements, clipped at four deviations. An
    absolute L-skewness between 0.08 and 0.13 gives a value between 0 and 1.
    """
    values = standardised(shift(e), e, squashed=False).clip(-4, 4)
    sides = np.zeros(values.shape[1])
    for k in range(values.shape[1]):
        skewness = l_skewness(values[e.concerns[:, k], k])
        sides[k] = np.sign(skewness) * np.clip((abs(skewness) - 0.08) / 0.05, 0, 1)
    return sides


def standardised(values: Floats, e: Evidence, *, squashed: bool = True) -> Floats:
    """Standardise `(N, K - 1)` values by the median and deviation of the samples with the class.

    Samples without the class get 0. With `squashed`, arsinh limits the influence of outliers.
    """
    of_class = np.where(e.concerns, values, np.nan)
    return np.nan_to_num(standardise(of_class, squashed=squashed))


def l_skewness(values: Floats) -> float:
    """Third L-moment over the second, in [-1, 1]; 0 for symmetric distributions."""
    if len(values) < 4 or values.max() == values.min():
        return 0.0
    return float(lmoment(values, order=3))


# Scores `(N, K - 1)` of each class of each mask, higher for worse labels.
CLASS_SCORES: dict[str, Callable[[Evidence], Floats]] = {
    "directed": directed,
    "joint": joint,
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
# Scores `(N,)` of the whole mask. `class_scores` falls back to the class's cross-entropy for them.
MASK_SCORES: dict[str, Callable[[Evidence], Floats]] = {
    "mean": lambda e: e.eq1,
    "sum": lambda e: e.eq1 * e.pixels,
    "softmin": lambda e: e.softmin,
}
SCORES = (*CLASS_SCORES, *MASK_SCORES)


def check_score(name: str) -> None:
    """Raise an `InputError` if there is no score of this name."""
    if name not in SCORES:
        raise InputError(f"score={name}: there is no such score; take one of {', '.join(SCORES)}.")


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
            are averaged over the classes present in label or prediction: `directed` (the recipe's),
            `joint` (`directed` and the outlines at the masks' own size), `relative` (cross-entropy
            over the entropy of the prediction), `excess` and `standardised` (their difference,
            plain and in standard deviations), `per_boundary` and `per_object` (cross-entropy over
            the label's boundary or the object's size), `dice` (one minus soft Dice), `shift`
            (displacement of the boundary in either direction), `larger` and `smaller`
            (displacement in one direction, if it is known).

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
