"""How far outlines are displaced, and how they would lie without a person's steady displacement.

A person who always draws two pixels too far outside makes no bad masks, but displaced ones, which
can be moved back. Such a habit is told by the median over many masks, and taken off before masks
are judged. Outlines alone show it (`Ladder`), and the networks' evidence too (`of_evidence`).

Legend of shapes: N samples, K classes, L places of the ladder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.optimize import isotonic_regression

from coseg_lightning.ranking.outline import (
    COLUMNS,
    IGNORE_INDEX,
    LARGEST_SCALE,
    REACH,
    class_profiles,
    evidence_of_profiles,
)
from coseg_lightning.ranking.people import People, steady_displacement

Floats = NDArray[np.float64]

PLACES = np.arange(-REACH, REACH + 1)  # of an outline that is moved inwards, in pixels of 256
LEAST = 5  # masks, with fewer of which nothing is learnt on how scores depend on displacements


@dataclass(frozen=True)
class Ladder:
    """The outlines of one mask, and how they would lie if they were moved.

    Args:
        displacement: `(K - 1,)` how far they lie outside of the image's edges, in its own pixels;
            NaN where it cannot be told.
        evidence: `(L, K - 1, 2)` `outline_evidence` of the outlines at each of the `PLACES`.
        step: `(K - 1,)` the distance between two places, in the image's own pixels.
    """

    displacement: Floats
    evidence: Floats
    step: Floats

    def moved(self, inwards: Floats) -> Floats:
        """`(K - 1, 2)` the evidence on the outlines if they are moved by `(K - 1,)` own pixels."""
        result = np.full((len(inwards), len(COLUMNS)), np.nan)
        for k, distance in enumerate(inwards.tolist()):
            place = np.nan_to_num(distance) / (float(self.step[k]) or 1.0)
            for column in range(result.shape[1]):
                result[k, column] = np.interp(place, PLACES, self.evidence[:, k, column])
        return result


def outline_ladder(
    image: Any,
    mask: Any,
    *,
    ignore_index: int = IGNORE_INDEX,
    classes: int = 2,
    largest_scale: float = LARGEST_SCALE,
) -> Ladder:
    """Look at the outlines of a mask in their place, and moved to either side.

    Their displacement is where the gradient of the image, averaged over the outline, is largest. It
    says little of a single mask, but much of many by one person.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        mask: `(H, W)` class ids, 0 for background.
        ignore_index: Marks unlabelled pixels.
        classes: K, background included.
        largest_scale: See `outline_evidence`.
    """
    image, mask = np.asarray(image), np.asarray(mask)
    labelled = mask != ignore_index
    displacement, steps = np.full(classes - 1, np.nan), np.zeros(classes - 1)
    evidence = np.full((len(PLACES), classes - 1, len(COLUMNS)), np.nan)
    for k in range(1, classes):
        profiles, step = class_profiles(image, mask == k, labelled, largest_scale, 2 * REACH)
        if profiles is None or profiles.mean() <= 0:
            continue
        steps[k - 1] = step
        near = profiles[:, REACH:-REACH]
        displacement[k - 1] = step * _peak(np.log(near + 1e-3 * near.mean()).mean(axis=0))
        for n in range(len(PLACES)):
            evidence[n, k - 1] = evidence_of_profiles(profiles[:, n : n + 2 * REACH + 1])
    return Ladder(displacement, evidence, steps)


def _peak(profile: Floats) -> float:
    """Where a profile is largest, from its middle, by a parabola through three values."""
    top = int(profile.argmax())
    if not 0 < top < len(profile) - 1:
        return float(top - REACH)
    before, here, after = profile[top - 1 : top + 2]
    curvature = before - 2 * here + after
    return float(top - REACH + (0.5 * (before - after) / curvature if curvature else 0.0))


def displacement(
    mask: Any, reference: Any, *, classes: int = 2, ignore_index: int = IGNORE_INDEX
) -> Floats:
    """Measure how far the outlines of a mask lie outside of those of another mask.

    Args:
        mask: `(H, W)` class ids.
        reference: `(H, W)` class ids, such as a proposal, or what was made of several masks.
        classes: K, background included.
        ignore_index: Marks pixels that are unlabelled in one of them, whose outlines do not count.

    Returns:
        `(K - 1,)` the median over each outline, in pixels, negative inside; NaN where a mask lacks
        the class.
    """
    mask, reference = np.asarray(mask), np.asarray(reference)
    labelled = (mask != ignore_index) & (reference != ignore_index)
    result = np.full(classes - 1, np.nan)
    for k in range(1, classes):
        inside = reference == k
        outline = (mask == k) & ~binary_erosion(mask == k, border_value=1) & labelled
        if not inside.any() or inside.all() or not outline.any():
            continue
        # Centres of pixels lie half a pixel from the outline that is drawn between them.
        outside = distance_transform_edt(~inside) - 0.5
        distance = np.where(inside, 0.5 - distance_transform_edt(inside), outside)
        result[k - 1] = np.median(distance[outline]) + 0.5
    return result


def habits(displacement: Floats, people: People) -> Floats:
    """`(N, K - 1)` the steady displacement of who drew each mask; 0 where it is not known.

    Args:
        displacement: `(N, K - 1)` that of each mask, NaN where it is not known.
        people: Who drew it.
    """
    result = np.zeros_like(displacement)
    for column, values in zip(result.T, displacement.T, strict=True):
        of_people = steady_displacement(values, people).mean
        for person, habit in enumerate(of_people):
            column[people.numbers == person] = habit or 0.0
    return result


def moved_back(
    outline: Floats, ladders: Sequence[Ladder | None], people: People
) -> tuple[Floats, Floats]:
    """Judge the outlines of labels without the steady displacement of who drew them.

    Args:
        outline: `(N, K - 1, 4)` see `Evidence`.
        ladders: Those of the labels; None of some.
        people: Who drew them.

    Returns:
        The evidence on the moved outlines, and the displacement of each label, `(N, K - 1)`.
    """
    outline, displacement = outline.copy(), np.full(outline.shape[:2], np.nan)
    for row, ladder in zip(displacement, ladders, strict=True):
        if ladder is not None:
            row[:] = ladder.displacement
    for row, ladder, inwards in zip(outline, ladders, habits(displacement, people), strict=True):
        if ladder is not None:
            row[:, : len(COLUMNS)] = ladder.moved(inwards)
    return outline, displacement


def without_habit(scores: Floats, displacement: Floats, habit: Floats) -> Floats:
    """Take off scores what a steady displacement adds to them.

    How a score rises with the distance from the usual displacement is learnt from all masks, by
    isotonic regression.

    Shape:
        scores, displacement and habit `(N, K - 1)`; NaN in the first two stays as it is.
    """
    result = scores.copy()
    for k, (values, places, habit_of) in enumerate(
        zip(scores.T, displacement.T, habit.T, strict=True)
    ):
        known = np.isfinite(values) & ~np.isnan(places)
        if known.sum() < LEAST or not habit_of[known].any():
            continue
        usual = np.median(habit_of[known])  # of all persons, which networks learn
        distance = np.abs(places[known] - usual)
        order = np.argsort(distance, kind="stable")
        rising = isotonic_regression(values[known][order]).x
        left = np.abs(places[known] - habit_of[known])
        before, after = (np.interp(x, distance[order], rising) for x in (distance, left))
        result[known, k] = values[known] - before + after
    return result
