"""Annotators: how many masks of each are bad, how far they outline too much, and what it is worth.

**Share of bad masks.** Each mask is bad with some probability by its own evidence. A person's log
odds of a bad mask are drawn from a normal distribution over all persons, whose mean and deviation
are averaged over on a grid (full Bayes; a deviation of zero, with which all persons are alike, has
half of the prior). A person with few masks is thereby drawn towards all others, and so is everybody
where names carry nothing. Kinds of images add a term of their own to the log odds, fitted by turns,
so that nobody is blamed for the hard images that he was given.

**Displacement.** The median over a person's masks of how far the outlines lie outside of those that
are proposed, after the median of each kind of image. The medians are shrunk towards all by the
method of DerSimonian and Laird (1986), with standard errors from the spread of all persons.

Its accuracy was measured: `benchmarks/annotators.py`.

Legend of shapes: N masks, K classes, P persons, G points of a grid.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.bad_shares import Shares
from coseg_lightning.ranking.outline import mean_of_known
from coseg_lightning.ranking.people import People, steady_displacement
from coseg_lightning.ranking.priority import SCORE_PRIOR, Views, prior_probability

Floats = NDArray[np.float64]

FEWEST = 5  # masks of a person, below which nothing is said of him or her but the interval
SURE = 0.75  # probability that persons differ, from which their records change the ranking
WEIGHT = 0.4  # of records beside own scores; with 1, scores that tell most by themselves are harmed
NO_VERDICT = f"fewer than {FEWEST} masks, which say little"


@dataclass(frozen=True)
class AnnotatorRecord:
    """What the masks of one person say, in estimates that are shrunk towards all persons.

    Args:
        annotator: The person.
        masks: Number of masks.
        bad_share: Estimated share of bad masks, on a mix of images like that of all persons.
        bad_share_interval: Contains it with a probability of about 90 %.
        displacement: How far outlines lie outside of the proposed ones, in pixels, the mean over
            classes; negative if inside. None if it is not known.
        displacement_interval: Contains it with a probability of about 90 %.
        spread: Standard deviation of the displacement from mask to mask, in pixels.
        displacement_by_class: The displacement of each class; None where it is not known.
        blunders: How many masks have each name of a blunder.
    """

    annotator: str
    masks: int
    bad_share: float
    bad_share_interval: tuple[float, float]
    displacement: float | None = None
    displacement_interval: tuple[float, float] | None = None
    spread: float | None = None
    displacement_by_class: tuple[float | None, ...] = ()
    blunders: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        low, high = self.bad_share_interval
        text = f"{self.annotator}: {self.masks} masks, {low:.0%} to {high:.0%} of them bad"
        if self.displacement_interval is not None:
            least, most = self.displacement_interval
            text += f", outlines displaced by {least:+.1f} to {most:+.1f} pixels"
        return f"{text} (90 % intervals{'; ' + NO_VERDICT if self.masks < FEWEST else ''})."

    def as_row(self) -> dict[str, Any]:
        """Return a row of `annotators.csv`."""
        low, high = self.bad_share_interval
        least, most = self.displacement_interval or (None, None)
        row = {
            "annotator": self.annotator,
            "masks": self.masks,
            "bad_share": round(self.bad_share, 4),
            "bad_share_low": round(low, 4),
            "bad_share_high": round(high, 4),
            "displacement_pixels": _rounded(self.displacement),
            "displacement_low": _rounded(least),
            "displacement_high": _rounded(most),
            "spread_pixels": _rounded(self.spread),
            "blunders": "; ".join(f"{name}: {n}" for name, n in self.blunders.items()),
            "note": NO_VERDICT if self.masks < FEWEST else "",
        }
        if len(self.displacement_by_class) > 1:
            for k, value in enumerate(self.displacement_by_class, start=1):
                row[f"displacement_class_{k}"] = _rounded(value)
        return row


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def annotator_report(
    annotators: Sequence[str | None],
    bad: ArrayLike,
    *,
    noise_level: float | None = None,
    displacement: ArrayLike | None = None,
    kinds: Sequence[str] | None = None,
    blunders: Sequence[Sequence[str]] | None = None,
) -> list[AnnotatorRecord]:
    """Say of each person how many masks are bad, how far outlines are displaced, and what is wrong.

    Args:
        annotators: Who drew each of N masks; None or an empty text if nobody knows.
        bad: `(N,)` how probably each mask is bad; or, with a noise level, corruption scores, higher
            for worse masks.
        noise_level: The share of bad masks among all, by which scores become probabilities.
        displacement: `(N,)` or `(N, K - 1)` how far outlines lie outside of where they should, in
            pixels, such as `ranking.displacement.displacement` of mask and proposal; NaN where it
            is not known.
        kinds: The kind of each image, such as its scanner, for which nobody is blamed.
        blunders: The names of each mask's blunders.

    Returns:
        One record a person, the largest share of bad masks first.

    Raises:
        InputError: If lengths differ, or probabilities are none.

    Example:
        >>> for person in annotator_report(names, scores, noise_level=0.2):
        ...     print(person)
    """
    probability = bad_probability(bad, noise_level)
    people = People.of(annotators, kinds)
    others = {"masks": probability, "blunders": blunders, "displacement": displacement}
    for name, values in others.items():
        if values is not None and len(np.asarray(values, dtype=object)) != len(people.numbers):
            raise InputError(
                f"There are {len(people.numbers)} annotators, but not as many {name}; give one of "
                "each for every mask."
            )
    if not people.names:
        return []
    shares = Shares(probability, people)
    moved = _displacements(displacement, people)
    records = []
    for n, name in enumerate(people.names):
        own = np.flatnonzero(people.numbers == n)
        found = Counter(
            word for i in own.tolist() for word in ([] if blunders is None else blunders[i])
        )
        records.append(
            AnnotatorRecord(
                annotator=name,
                masks=len(own),
                bad_share=float(shares.mean[n]),
                bad_share_interval=shares.interval(n),
                blunders=dict(found.most_common()),
                **moved[n],
            )
        )
    return sorted(records, key=lambda record: (-record.bad_share, record.annotator))


def with_record(
    score: Floats,
    annotators: Sequence[str | None],
    *,
    noise_level: float,
    kinds: Sequence[str] | None = None,
) -> Floats:
    """Add each person's record on the other masks to the scores of the masks.

    A score stands for log odds as in `priority.prior_probability`. The record moves them by what
    the person's share of bad masks, estimated without the mask itself, differs from that of all.
    Where names say nothing (see `SURE`), the scores are returned as they are.

    Args:
        score: `(N,)` corruption scores, higher for worse masks.
        annotators: Who drew each mask.
        noise_level: The share of bad masks among all.
        kinds: The kind of each image.
    """
    shift = record_shift(bad_probability(score, noise_level), People.of(annotators, kinds))
    return moved_scores(score, shift)


def record_shift(probability: Floats, people: People) -> Floats:
    """`(N,)` by how much each person's record on other masks moves the log odds of a bad mask."""
    if len(people.names) < 2:
        return np.zeros(len(probability))
    shares = Shares(probability, people)
    return WEIGHT * shares.shift() if shares.differ >= SURE else np.zeros(len(probability))


def moved_scores(score: Floats, shift: Floats) -> Floats:
    """Move scores by log odds; those that are not finite, and shifts of zero, change nothing."""
    known = np.isfinite(score)
    if not shift.any() or not known.any():
        return score
    median = np.median(score[known])
    deviation = 1.4826 * np.median(np.abs(score[known] - median)) or score[known].std() or 1.0
    moved = np.sinh(np.arcsinh((score - median) / deviation) + shift / SCORE_PRIOR[0])
    result: Floats = np.where(known & (shift != 0), median + deviation * moved, score)
    return result


def bad_probability(bad: ArrayLike, noise_level: float | None = None) -> Floats:
    """Return how probably each mask is bad, `(N,)`; with a noise level, `bad` are scores.

    Raises:
        InputError: If there are no probabilities and no noise level.
    """
    values = np.asarray(bad, dtype=np.float64)
    if noise_level is not None:
        unknown = np.full(len(values), np.nan)
        return prior_probability(
            Views(values, unknown, unknown, np.zeros(len(values))), noise_level
        )
    if np.isnan(values).any() or (len(values) and not 0 <= values.min() <= values.max() <= 1):
        raise InputError(
            "bad must be probabilities between 0 and 1; give scores with their noise_level."
        )
    return values


def _displacements(displacement: ArrayLike | None, people: People) -> list[dict[str, Any]]:
    """Return the arguments of `AnnotatorRecord` on the displacement, of each person."""
    if displacement is None:
        return [{} for _ in people.names]
    table = np.asarray(displacement, dtype=np.float64)
    by_class = table.reshape(len(table), -1)
    parts = [steady_displacement(column, people) for column in by_class.T]
    overall = steady_displacement(mean_of_known(by_class, axis=1), people)
    return [
        {
            "displacement": overall.mean[n],
            "displacement_interval": overall.interval(n),
            "spread": overall.spread[n],
            "displacement_by_class": tuple(part.mean[n] for part in parts),
        }
        for n in range(len(people.names))
    ]
