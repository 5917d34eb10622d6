"""How far outlines are displaced, and the correction of a person's steady displacement.

A person who always draws two pixels too far outside makes displaced masks, not bad ones. The
displacement is the median over many masks of that person. It is subtracted before masks are
judged. It can be measured on outlines alone (`Ladder`), on the networks' evidence, and beside the
other masks of the same image (`beside_others`).

Legend of shapes: N samples, K classes, L places of the ladder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.optimize import isotonic_regression
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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

PLACES = np.arange(-REACH, REACH + 1)  # inward shifts of an outline, in pixels of 256
LEAST = 5  # masks needed to learn how scores depend on displacements
MOST_STEPS = 50  # of fitting persons and images in turn


@dataclass(frozen=True)
class Ladder:
    """Outline evidence of one mask in its place and at shifted places.

    Args:
        displacement: `(K - 1,)` how far the outlines lie outside the image's edges, in its own
            pixels; NaN where it cannot be measured.
        evidence: `(L, K - 1, 2)` `outline_evidence` of the outlines at each of the `PLACES`.
        step: `(K - 1,)` the distance between two places, in the image's own pixels.
    """

    displacement: Floats
    evidence: Floats
    step: Floats

    def moved(self, inwards: Floats) -> Floats:
        """`(K - 1, 2)` evidence of the outlines after shifting them inwards, in own pixels."""
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
    """Compute the evidence of a mask's outlines in their place and shifted to either side.

    The displacement is where the image's gradient, averaged over the outline, is largest. It is
    unreliable for a single mask, but informative over many masks of one person.

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
    """Position of a profile's maximum relative to its middle, by a parabola through 3 values."""
    top = int(profile.argmax())
    if not 0 < top < len(profile) - 1:
        return float(top - REACH)
    before, here, after = profile[top - 1 : top + 2]
    curvature = before - 2 * here + after
    return float(top - REACH + (0.5 * (before - after) / curvature if curvature else 0.0))


def displacement(
    mask: Any, reference: Any, *, classes: int = 2, ignore_index: int = IGNORE_INDEX
) -> Floats:
    """Measure how far the outlines of a mask lie outside those of another mask.

    Args:
        mask: `(H, W)` class ids.
        reference: `(H, W)` class ids, such as a proposal or the consensus of several masks.
        classes: K, background included.
        ignore_index: Marks unlabelled pixels of either mask. Outlines on such pixels, and borders
            between these and a class, are ignored; see `with_nearest_labels`.

    Returns:
        `(K - 1,)` the median over each outline, in pixels, negative inside. It is NaN where a
        mask lacks the class or the reference is full of it.
    """
    mask, reference = np.asarray(mask), np.asarray(reference)
    labelled = (mask != ignore_index) & (reference != ignore_index)
    mask, reference = (with_nearest_labels(one, ignore_index) for one in (mask, reference))
    result = np.full(classes - 1, np.nan)
    for k in range(1, classes):
        inside = reference == k
        outline = (mask == k) & ~binary_erosion(mask == k, border_value=1) & labelled
        if not inside.any() or inside.all() or not outline.any():
            continue
        result[k - 1] = np.median(outside_distance(inside)[outline]) + 0.5
    return result


def with_nearest_labels(mask: NDArray[Any], ignore_index: int = IGNORE_INDEX) -> NDArray[Any]:
    """Give unlabelled pixels the class of the nearest labelled one, if there is any.

    A border between them and a class is then no outline.
    """
    unlabelled = mask == ignore_index
    if not unlabelled.any() or unlabelled.all():
        return mask
    nearest = distance_transform_edt(unlabelled, return_distances=False, return_indices=True)
    filled: NDArray[Any] = mask[tuple(nearest)]
    return filled


def outside_distance(inside: NDArray[np.bool_]) -> Floats:
    """`(H, W)` how far pixels lie outside an area, negative inside.

    Pixel centres lie half a pixel from the outline, which runs between pixels.
    """
    outside = distance_transform_edt(~inside) - 0.5
    return np.where(inside, 0.5 - distance_transform_edt(inside), outside)


def habits(displacement: Floats, people: People) -> Floats:
    """`(N, K - 1)` the steady displacement of each mask's annotator; 0 where unknown.

    Args:
        displacement: `(N, K - 1)` displacement of each mask, NaN where unknown.
        people: Who drew each mask.
    """
    result = np.zeros_like(displacement)
    for column, values in zip(result.T, displacement.T, strict=True):
        of_people = steady_displacement(values, people).mean
        for person, habit in enumerate(of_people):
            column[people.numbers == person] = habit or 0.0
    return result


def beside_all(displacement: Floats, people: People) -> Floats:
    """Subtract the displacement that all annotators have in common, weighted by their masks.

    The strongest edges of real images seldom lie where experts draw, so how far the outlines lie
    outside the edges compares persons, and says nothing of all of them together.

    Args:
        displacement: `(N, K - 1)` displacement of each mask, NaN where unknown.
        people: Who drew each mask.

    Returns:
        `(N, K - 1)`; NaN if fewer than two persons are known, who cannot be compared.
    """
    result = np.full_like(displacement, np.nan)
    for column, values in zip(result.T, displacement.T, strict=True):
        known = ~np.isnan(values) & (people.numbers >= 0)
        of_people = steady_displacement(values, people).mean
        if sum(mean is not None for mean in of_people) > 1:
            means = [of_people[person] for person in people.numbers[known].tolist()]
            column[:] = values - np.mean([mean for mean in means if mean is not None])
    return result


def beside_others(displacement: Floats, people: People, images: NDArray[np.int64]) -> Floats:
    """Subtract from displacements what all masks of the same image have in common.

    This is the median over the masks of the image, so that one bad mask does not move the others,
    and two persons who draw the same images get plus and minus half of their difference. If other
    persons draw other images, their steady displacements are left out of the median, so that nobody
    is charged for the habit of a colleague. Persons' steady displacements and the medians are
    fitted in turn (Tukey's median polish). Persons are only comparable if
    images connect them: the displacements of each connected group add up to about zero.

    Args:
        displacement: `(N, K - 1)` displacement of each mask from a reference that is the same for
            all masks of an image; NaN where unknown.
        people: Who drew each mask.
        images: `(N,)` the number of each mask's image.

    Returns:
        `(N, K - 1)`; NaN where an image has fewer than two known displacements.
    """
    result = np.full_like(displacement, np.nan)
    for column, values in zip(result.T, displacement.T, strict=True):
        known = ~np.isnan(values) & (people.numbers >= 0)
        known &= np.bincount(images[known], minlength=int(images.max(initial=0)) + 1)[images] > 1
        if known.any():
            column[known] = _beside_others(values[known], people.numbers[known], images[known])
    return result


def _beside_others(values: Floats, person: NDArray[np.int64], images: NDArray[np.int64]) -> Floats:
    """Fit persons and images in turn; see `beside_others`."""
    person = np.unique(person, return_inverse=True)[1]
    image = np.unique(images, return_inverse=True)[1]
    persons, drawn = int(person.max()) + 1, np.bincount(image)
    size = persons + len(drawn)
    links = coo_array((np.ones(len(person)), (person, persons + image)), shape=(size, size))
    group = connected_components(links, directed=False)[1][person]
    of_person = [np.flatnonzero(person == n) for n in range(persons)]
    own = np.zeros(persons)
    left = values
    for _ in range(MOST_STEPS):
        left = values - _medians(values - own[person], image, drawn)[image]
        before, own = own, np.array([np.median(left[masks]) for masks in of_person])
        mean = np.bincount(group, own[person]) / np.bincount(group).clip(1)
        own -= mean[[group[masks[0]] for masks in of_person]]
        if np.abs(own - before).max() < 1e-3:
            break
    return left


def _medians(values: Floats, group: NDArray[np.int64], sizes: NDArray[np.int64]) -> Floats:
    """`(G,)` the median of each group's values; all groups have some."""
    ordered = values[np.lexsort((values, group))]
    first = np.cumsum(sizes) - sizes
    result: Floats = (ordered[first + (sizes - 1) // 2] + ordered[first + sizes // 2]) / 2
    return result


def moved_back(
    outline: Floats, ladders: Sequence[Ladder | None], people: People
) -> tuple[Floats, Floats]:
    """Judge the outlines of labels after correcting each annotator's steady displacement.

    Args:
        outline: `(N, K - 1, 4)` see `Evidence`.
        ladders: The ladder of each label, or None.
        people: Who drew each label.

    Returns:
        The evidence on the shifted outlines, and the displacement of each label, `(N, K - 1)`.
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
    """Subtract from scores what a steady displacement adds to them.

    Isotonic regression over all masks learns how a score rises with the distance from the usual
    displacement.

    Shape:
        scores, displacement and habit `(N, K - 1)`. Scores stay as they are where the score is
        not finite or the displacement is NaN.
    """
    result = scores.copy()
    for k, (values, places, habit_of) in enumerate(
        zip(scores.T, displacement.T, habit.T, strict=True)
    ):
        known = np.isfinite(values) & ~np.isnan(places)
        if known.sum() < LEAST or not habit_of[known].any():
            continue
        usual = np.median(habit_of[known])  # typical displacement, which networks learn
        distance = np.abs(places[known] - usual)
        order = np.argsort(distance, kind="stable")
        rising = isotonic_regression(values[known][order]).x
        left = np.abs(places[known] - habit_of[known])
        before, after = (np.interp(x, distance[order], rising) for x in (distance, left))
        result[known, k] = values[known] - before + after
    return result
