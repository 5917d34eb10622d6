"""Ranks masks without any network, by their outlines and their position relative to other masks.

The score is the misfit of the outlines, plus a small term for the distance from where other masks
lie. Sizes and shapes are not used: none of them raised the mean AUROC by more than 0.2 points
(`benchmarks/unaided.py`). A mask that is large, ragged or in parts is usually right.

Outlines are only informative if the images show edges there. This is tested by a placebo: the same
outlines, moved elsewhere. If the original places are not clearly better, the ranking reports it and
uses the position relative to other masks alone.

Legend of shapes: N samples, K classes, H x W pixels, D displacements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.ranking.blunders import MISPLACED, Shape, describe, mean_place, places
from coseg_lightning.ranking.displacement import Ladder, habits, outline_ladder
from coseg_lightning.ranking.noise_level import FALLBACK, NoiseLevelEstimate, estimate_of_scores
from coseg_lightning.ranking.outline import (
    image_sharpness,
    mean_of_known,
    outline_evidence,
    outline_misfit,
    standardise,
)
from coseg_lightning.ranking.people import People

Floats = NDArray[np.float64]

AGREEMENT = 0.15  # weight of the position beside that of the outlines
SCALE = 1.0  # to which larger images are shrunk; at 2, the results were the same
DISPLACEMENTS = 2  # displaced copies of each mask for the placebo
DISTANCE = 16  # of a displacement, in pixels of an image whose longer side is 256
FEWEST = 10  # masks with an outline that can be judged; with fewer, outlines are not used
BETTER = 0.9  # share of the displaced outlines that a good outline must beat
GOOD_SHARE = 0.25  # share of outlines that must be good; of displaced ones, a tenth is
OTHER_IMAGES = 0.9  # AUROC by which bad masks may be told by their images' sharpness alone
MIN_DISTANCE = 4.0  # Ashman's D of good and bad outlines; correct phantoms alone reach 3.5


class Look(NamedTuple):
    """The statistics that are kept of each mask.

    Attributes:
        outline: `(K - 1, 2)` see `outline_evidence`.
        displaced: `(D, K - 1, 2)` the same of displaced copies of the mask, if computed.
        shape: See `Shape`.
        ladder: The evidence of the outlines at shifted places, if computed.
        sharpness: Of the image, see `image_sharpness`.
    """

    outline: Floats
    displaced: Floats | None
    shape: Shape
    ladder: Ladder | None = None
    sharpness: float = np.nan


@dataclass(frozen=True)
class Opinion:
    """The ranking and noise level from the masks and images alone.

    Args:
        score: `(N,)` higher for worse masks.
        class_scores: `(N, K - 1)` misfit of the outline of each class; None if uninformative.
        misfit: `(N,)` mean misfit over classes, NaN where unknown.
        estimate: The noise level.
        doubt: Why the outlines are uninformative, in a sentence; None if they are informative.
        displacement: `(N, K - 1)` how far each mask's outlines lie outside the image's edges, in
            its own pixels; None if not computed or uninformative.
    """

    score: Floats
    class_scores: Floats | None
    misfit: Floats
    estimate: NoiseLevelEstimate
    doubt: str | None
    displacement: Floats | None = None


def look_at(
    image: NDArray[Any],
    mask: NDArray[Any],
    *,
    classes: int,
    rng: np.random.Generator | None = None,
    moved: bool = False,
) -> Look:
    """Compute the statistics of a mask, and with `rng` also of displaced copies.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        mask: `(H, W)` class ids, 255 for unlabelled pixels.
        classes: K.
        rng: Draws the displacements.
        moved: Whether to compute the ladder of shifted outlines too.
    """
    copies = [] if rng is None else [_displaced(mask, rng) for _ in range(DISPLACEMENTS)]
    rows = [
        outline_evidence(image, some, classes=classes, largest_scale=SCALE)
        for some in (mask, *copies)
    ]
    ladder = outline_ladder(image, mask, classes=classes, largest_scale=SCALE) if moved else None
    displaced = np.stack(rows[1:]) if copies else None
    return Look(rows[0], displaced, describe(image, mask), ladder, image_sharpness(image))


def _displaced(mask: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move a mask in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    right, down = DISTANCE * max(mask.shape) / 256 * np.array([np.cos(angle), np.sin(angle)])
    matrix = np.array([[1, 0, right], [0, 1, down]], np.float32)
    flags, size = cv2.INTER_NEAREST, (mask.shape[1], mask.shape[0])
    moved: NDArray[Any] = cv2.warpAffine(mask.astype(np.uint16), matrix, size, flags=flags)
    return moved


def judge(
    looks: Sequence[Look],
    people: People | None = None,
    kinds: NDArray[np.int64] | None = None,
) -> Opinion:
    """Rank the masks of one dataset.

    Args:
        looks: The statistics of all masks.
        people: Who drew each mask. Each person's steady displacement is then corrected first.
        kinds: `(N,)` numbers of the kinds of the images. Outlines are compared within a kind.
    """
    table = np.stack([look.outline for look in looks])
    displacement = None
    ladders = [look.ladder for look in looks if look.ladder is not None]
    if people is not None and len(ladders) == len(looks):
        displacement = np.stack([ladder.displacement for ladder in ladders])
        inwards = habits(displacement, people)
        table = np.stack([one.moved(by) for one, by in zip(ladders, inwards, strict=True)])
    agreement = np.nan_to_num(standardise(_distance_from_others([look.shape for look in looks])))
    by_class = outline_misfit(table, kinds)
    misfit = mean_of_known(by_class, axis=1)
    doubt = _doubt(looks)
    if doubt is not None:
        reason = "the outlines cannot tell good masks from bad ones"
        estimate = NoiseLevelEstimate(FALLBACK, None, False, {}, 0.0, None, reason)
        return Opinion(agreement[:, 0], None, misfit, estimate, doubt)  # without displacement
    score = np.nan_to_num(misfit) + AGREEMENT * agreement[:, 0]
    halves = {
        name: np.nan_to_num(mean_of_known(-standardise(table[..., column], kinds=kinds), axis=1))
        for column, name in enumerate(("contrast", "rank"))
    }
    estimate = estimate_of_scores(
        {"unaided": score, **halves}, ~np.isnan(misfit), min_distance=MIN_DISTANCE
    )
    if estimate.interval is not None and _are_other_images(
        looks, misfit, estimate.noise_level, kinds
    ):
        reason = (
            "the masks that would be bad are those of the images with the weaker edges, which may "
            "only be another kind of image (name the kind of each image by data.kinds)"
        )
        estimate = NoiseLevelEstimate(FALLBACK, None, False, {}, 0.0, None, reason)
    return Opinion(score, by_class, misfit, estimate, None, displacement)


def _are_other_images(
    looks: Sequence[Look], misfit: Floats, noise_level: float, kinds: NDArray[np.int64] | None
) -> bool:
    """Whether the masks that would be bad are nearly all on less sharp images than the others.

    Images are compared with those of their own kind alone.
    """
    known = np.flatnonzero(~np.isnan(misfit))
    sharpness = np.nan_to_num([looks[i].sharpness for i in known.tolist()])
    worst = misfit[known] > np.quantile(misfit[known], 1 - noise_level)
    kind = np.zeros(len(known)) if kinds is None else kinds[known]
    comparable = kind[worst, None] == kind[~worst]
    if not comparable.any():
        return False
    less = (sharpness[worst, None] - sharpness[~worst])[comparable]
    return float(np.mean((less < 0) + 0.5 * (less == 0))) > OTHER_IMAGES


def misplaced_first(score: Floats, blunders: Sequence[Sequence[str]]) -> Floats:
    """Raise the scores of masks with a blunder in `MISPLACED` above all others."""
    misplaced = np.array([bool(set(names) & set(MISPLACED)) for names in blunders], bool)
    lift = np.ptp(score) + 1 if len(score) else 0.0
    return np.where(misplaced, score + lift, score)


def _distance_from_others(shapes: Sequence[Shape]) -> Floats:
    """One minus the Dice of each mask to the mean of the others, `(N, 1)`; NaN for empty masks."""
    count, mean = len(shapes), mean_place(shapes)
    distance = np.full((count, 1), np.nan)
    for i, shape in enumerate(shapes if count > 1 else []):
        place = places([shape])[0].astype(np.float64)
        others = (count * mean - place) / (count - 1)
        if place.any():
            distance[i] = 1 - 2 * (place @ others) / (place.sum() + others.sum())
    return distance


def _doubt(looks: Sequence[Look]) -> str | None:
    """Say why the outlines are uninformative, or return None if they are informative."""
    last = (
        "masks are ranked by how little they overlap with the other masks, which is a weak sign of "
        "a bad mask"
    )
    judged = sum(not np.isnan(look.outline).all() for look in looks)
    if judged < FEWEST:
        unjudged = [look for look in looks if np.isnan(look.outline).all()]
        beside = sum(look.shape.known < 1 for look in unjudged)
        why = ""
        if 2 * beside > len(unjudged):
            why = f" ({beside} hold unlabelled pixels, 255, beside which no outline is judged)"
        return (
            f"The outlines cannot tell, since only {judged} of {len(looks)} masks have an outline "
            f"that can be judged{why}, and at least {FEWEST} are needed; {last}."
        )
    share, needed = _good_share(looks)
    if share > needed:
        return None
    return (
        f"The outlines cannot tell, since the images show no edges at most outlines, or most masks "
        f"are displaced or belong to other images: {share:.0%} "
        f"of the outlines fit better than {BETTER:.0%} of displaced outlines, but more than "
        f"{needed:.0%} are needed; {last}. Look at some of the masks; if they lie right, use "
        "training=peers."
    )


def _good_share(looks: Sequence[Look]) -> tuple[float, float]:
    """Return the share of outlines that beat nearly all displaced ones, and the share needed.

    If images show no edges at the outlines, a tenth does so by chance. Half of the masks may be
    bad, which rules out comparing means or medians.
    """
    pairs = [
        (mean_of_known(look.outline[:, 0], axis=0), mean_of_known(look.displaced[..., 0], axis=1))
        for look in looks
        if look.displaced is not None
    ]
    pairs = [pair for pair in pairs if not (np.isnan(pair[0]) or np.isnan(pair[1]).all())]
    if not pairs:
        return 0.0, GOOD_SHARE
    own, elsewhere = np.array([own for own, _ in pairs]), np.concatenate([e for _, e in pairs])
    limit = np.nanquantile(elsewhere, BETTER)
    by_chance = (1 - BETTER) + 3 * np.sqrt(BETTER * (1 - BETTER) / len(own))
    return float((own > limit).mean()), max(GOOD_SHARE, by_chance)
