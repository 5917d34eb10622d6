"""Who drew each mask, and the steady displacement of each person's outlines.

Legend of shapes: N masks, P persons.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.seeding import derive_rng

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_SPREAD = 0.1  # pixels; outlines on pixels show no smaller differences
FEWEST_REPEATS = 5  # masks beyond each person's first one that tell the spread within persons
SPREAD_SHRINKAGE = 10  # weight, in masks, of the pooled variance beside a person's own


def numbered_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to `person 1` and so on, in an order that does not reveal the names."""
    given = sorted(set(names))
    order = derive_rng(0, "hidden annotators", *given).permutation(len(given))
    width = len(str(len(given)))
    return {given[n]: f"person {place:0{width}}" for place, n in enumerate(order, start=1)}


def name_of(annotator: Any) -> str:
    """Return who drew a mask as a text, without spaces around it; empty for None, NaN and no text.

    Numbers are names too, 0 included; 1 and 1.0 are one person.

    Raises:
        InputError: If it is a list or the like.
    """
    if getattr(annotator, "ndim", None) == 0 and hasattr(annotator, "item"):
        annotator = annotator.item()  # of NumPy or torch
    if annotator is None or type(annotator).__name__ in ("NAType", "NaTType"):  # of pandas
        return ""
    if isinstance(annotator, bytes):
        annotator = annotator.decode("utf-8", "replace")
    if isinstance(annotator, Real):
        if math.isnan(annotator):
            return ""
        is_whole = not isinstance(annotator, int) and float(annotator).is_integer()
        if is_whole and abs(float(annotator)) < 2**53:
            annotator = int(float(annotator))
    elif isinstance(annotator, Collection) and not isinstance(annotator, str):
        raise InputError(
            f"An annotator is {annotator!r:.60}, a {type(annotator).__name__}; give one text or "
            "number for each mask."
        )
    return str(annotator).replace("\xa0", " ").strip()


@dataclass(frozen=True)
class People:
    """Who drew each mask and the kind of its image, as numbers.

    Args:
        names: The persons, in alphabetical order.
        numbers: `(N,)` who drew each mask; -1 if unknown.
        kinds: `(N,)` the kind of each image.
    """

    names: list[str]
    numbers: Ints
    kinds: Ints

    @classmethod
    def of(
        cls, annotators: Sequence[Any], kinds: Sequence[Any] | NDArray[Any] | None = None
    ) -> "People":
        """Number persons and kinds.

        Args:
            annotators: Who drew each mask, see `name_of`.
            kinds: The kind of each image.

        Raises:
            InputError: If the numbers of kinds and masks differ.
        """
        if kinds is not None and len(kinds) != len(annotators):
            raise InputError(f"There are {len(annotators)} annotators, but {len(kinds)} kinds.")
        drawn_by = [name_of(annotator) for annotator in annotators]
        names = sorted({name for name in drawn_by if name})
        number = {name: n for n, name in enumerate(names)}
        numbers = np.array([number.get(name, -1) for name in drawn_by], dtype=np.int64)
        of_kind = np.zeros(len(numbers), np.int64)
        if kinds is not None:
            of_kind = np.unique(np.array([str(kind) for kind in kinds]), return_inverse=True)[1]
        return cls(names, numbers, of_kind.astype(np.int64))

    def of_masks(self) -> list[str]:
        """List who drew each mask; an empty text if unknown."""
        return [self.names[number] if number >= 0 else "" for number in self.numbers.tolist()]


@dataclass(frozen=True)
class Steady:
    """The steady displacement of every person; None where it is unknown.

    Args:
        mean: The estimates.
        error: The standard deviations of the estimates.
        spread: The standard deviation of each person's displacements from mask to mask.
    """

    mean: list[float | None]
    error: list[float | None]
    spread: list[float | None]

    def interval(self, person: int) -> tuple[float, float] | None:
        """Return the 90 % interval of one person's displacement."""
        mean, error = self.mean[person], self.error[person]
        if mean is None or error is None:
            return None
        reach = 1.645 * error
        return mean - reach, mean + reach


def steady_displacement(values: Floats, people: People) -> Steady:
    """Estimate each person's steady displacement.

    Args:
        values: `(N,)` displacements of masks, NaN where unknown.
        people: Who drew each mask.
    """
    count = len(people.names)
    known = np.flatnonzero(~np.isnan(values) & (people.numbers >= 0))
    if not len(known):
        return Steady([None] * count, [None] * count, [None] * count)
    person, kind, left = people.numbers[known], people.kinds[known], values[known].copy()
    own = np.zeros(count)
    for _ in range(1 if len(np.unique(kind)) == 1 else 10):  # median polish
        for n in np.unique(person):
            middle = float(np.median(left[person == n]))
            own[n] += middle
            left[person == n] -= middle
        offsets = {k: float(np.median(left[kind == k])) for k in np.unique(kind)}
        if len(offsets) > 1:
            left -= np.array([offsets[k] for k in kind])
    sizes = np.bincount(person, minlength=count)
    usual, repeats = _usual_spread(values[known], left, sizes[person], len(np.unique(kind)))
    if usual is None:  # one mask in all
        own_or_none = [float(own[n]) if sizes[n] else None for n in range(count)]
        return Steady(own_or_none, [None] * count, [None] * count)
    variance = np.full(count, usual**2)
    for n in np.flatnonzero(sizes > 1):
        part = _deviation(left[person == n]) ** 2 * sizes[n] / (sizes[n] - 1)
        variance[n] = (sizes[n] * part + SPREAD_SHRINKAGE * usual**2) / (
            sizes[n] + SPREAD_SHRINKAGE
        )
    reached = np.maximum(variance, LEAST_SPREAD**2)
    error = np.sqrt(np.pi / 2 * reached / np.maximum(sizes, 1))
    drawn = np.flatnonzero(sizes)
    mean, posterior_error = _shrunk(own[drawn], error[drawn])
    if not repeats:  # nothing tells how alike persons are
        posterior_error = error[drawn]
    result = Steady([None] * count, [None] * count, [None] * count)
    for n, value, reach in zip(drawn, mean, posterior_error, strict=True):
        result.mean[n], result.error[n] = float(value), float(reach)
        result.spread[n] = float(np.sqrt(variance[n]))
    return result


def _usual_spread(
    values: Floats, left: Floats, sizes: Ints, kinds: int
) -> tuple[float | None, int]:
    """Estimate how much displacements vary from mask to mask of one person.

    Args:
        values: `(N,)` displacements.
        left: `(N,)` the same without the medians of persons and kinds.
        sizes: `(N,)` the number of masks of each mask's person.
        kinds: The number of kinds.

    Returns:
        The standard deviation, and the number of masks beyond each person's first. With fewer than
        `FEWEST_REPEATS` of these, the deviation is at least that between all masks. With one mask
        it is None.
    """
    if len(values) < 2:
        return None, 0
    between = _deviation(values) * np.sqrt(len(values) / (len(values) - 1))
    repeated = sizes > 1
    medians = float((1 / sizes[repeated]).sum()) + kinds - 1  # each costs a degree of freedom
    repeats = round(repeated.sum() - medians)
    if repeats < 1:
        return float(between), 0
    within = _deviation(left[repeated]) * np.sqrt(repeated.sum() / repeats)
    return float(within if repeats >= FEWEST_REPEATS else max(within, between)), repeats


def _deviation(values: Floats) -> float:
    """Standard deviation from the median absolute deviation; the usual one where that is 0."""
    centred = values - np.median(values)
    return float(1.4826 * np.median(np.abs(centred)) or centred.std())


def _shrunk(means: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Shrink means towards their weighted mean (DerSimonian and Laird 1986).

    Returns:
        The shrunk means and their standard deviations.
    """
    errors = np.maximum(errors, 1e-9)
    weights = errors**-2
    middle = float(np.average(means, weights=weights))
    excess = float(weights @ np.square(means - middle)) - (len(means) - 1)
    scale = float(weights.sum() - np.square(weights).sum() / weights.sum())
    between = max(0.0, excess / scale) if len(means) > 1 else 0.0
    if len(means) > 1:
        weights = 1 / (errors**2 + between)
        middle = float(np.average(means, weights=weights))
    share = between / (between + errors**2)
    variance = share * errors**2 + np.square(1 - share) / weights.sum()
    return middle + share * (means - middle), np.sqrt(variance)
