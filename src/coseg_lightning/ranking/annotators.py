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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.outline import mean_of_known
from coseg_lightning.ranking.priority import SCORE_PRIOR, Views, prior_probability
from coseg_lightning.seeding import derive_rng

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 5  # masks of a person, below which nothing is said of him or her but the interval
INTERVAL = 0.9  # probability that an interval holds
STEP = 0.1  # of the grid of log odds
GRID = STEP * np.arange(-70, 51)  # log odds of a bad mask, 0.1 % to 99.3 %
MOST = 30  # steps that a kind of image moves log odds by, at most
DEVIATIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5)  # of persons' log odds
ALIKE = 0.5  # prior probability of the deviation 0
KIND_DEVIATION = 1.0  # of the terms of kinds of images, by which few masks of a kind change little
SURE = 0.75  # probability that persons differ, from which their records change the ranking
WEIGHT = 0.4  # of records beside own scores; with 1, scores that tell most by themselves are harmed
SPREAD_SHRINKAGE = 10  # masks with the spread of all persons that a person's own is averaged with
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


def record_shift(probability: Floats, people: "People") -> Floats:
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


def numbered_names(names: Iterable[str]) -> dict[str, str]:
    """Return `person 1` and so on for each name, in an order that does not tell the names."""
    given = sorted(set(names))
    order = derive_rng(0, "hidden annotators", *given).permutation(len(given))
    width = len(str(len(given)))
    return {given[n]: f"person {place:0{width}}" for place, n in enumerate(order, start=1)}


@dataclass(frozen=True)
class People:
    """Who drew each mask, and of which kind its image is, in numbers.

    Args:
        names: The persons, in alphabetical order.
        numbers: `(N,)` who drew each mask; -1 if nobody knows.
        kinds: `(N,)` the kind of each image.
    """

    names: list[str]
    numbers: Ints
    kinds: Ints

    @classmethod
    def of(
        cls, annotators: Sequence[str | None], kinds: Sequence[Any] | NDArray[Any] | None = None
    ) -> "People":
        """Number persons and kinds.

        Raises:
            InputError: If there are not as many kinds as masks.
        """
        if kinds is not None and len(kinds) != len(annotators):
            raise InputError(f"There are {len(annotators)} annotators, but {len(kinds)} kinds.")
        names = sorted({str(name) for name in annotators if name})
        number = {name: n for n, name in enumerate(names)}
        numbers = np.array([number[str(a)] if a else -1 for a in annotators], dtype=np.int64)
        of_kind = np.zeros(len(numbers), np.int64)
        if kinds is not None:
            of_kind = np.unique(np.array([str(kind) for kind in kinds]), return_inverse=True)[1]
        return cls(names, numbers, of_kind.astype(np.int64))

    def of_masks(self) -> list[str]:
        """List who drew each mask; an empty text if nobody knows."""
        return [self.names[number] if number >= 0 else "" for number in self.numbers.tolist()]


class Shares:
    """The posterior of every person's share of bad masks.

    Args:
        probability: `(N,)` how probably each mask is bad, by itself.
        people: Who drew it.

    Attributes:
        posterior: `(P, G)` that of the log odds of each.
        differ: The probability that persons differ at all.
        mean: `(P,)` estimated shares, on the mix of kinds of all images.
    """

    def __init__(self, probability: Floats, people: People) -> None:
        self.people = people
        self._known = np.flatnonzero(people.numbers >= 0)
        p = np.clip(probability[self._known], 1e-4, 1 - 1e-4)
        level = float(np.clip(p.mean(), 1e-3, 1 - 1e-3)) if len(p) else 0.5
        self._ratio = np.exp(logit(p) - logit(level))  # likelihood of bad to good
        self._person, self._kind = people.numbers[self._known], people.kinds[self._known]
        # Log likelihood of each person's masks of each kind, on a wider grid.
        wide = np.concatenate([GRID[0] - STEP * np.arange(MOST, 0, -1), GRID])
        wide = np.concatenate([wide, GRID[-1] + STEP * np.arange(1, MOST + 1)])
        kinds = int(people.kinds.max(initial=0)) + 1
        table = np.zeros((len(people.names) * kinds, len(wide)))
        for start in range(0, len(p), 4096):
            part = slice(start, start + 4096)
            rows = self._person[part] * kinds + self._kind[part]
            np.add.at(table, rows, _log_likelihood(wide, self._ratio[part, None]))
        self._table = table.reshape(len(people.names), kinds, len(wide))
        self._kind_sizes = np.bincount(self._kind, minlength=kinds)
        self._steps = np.zeros(kinds, np.int64)  # of each kind's log odds
        self._fit()

    def _fit(self) -> None:
        """Fit persons and kinds by turns."""
        for _ in range(1 if len(self._steps) == 1 else 12):
            by_kind = [self._of_kind(k, steps) for k, steps in enumerate(self._steps)]
            likelihood = np.sum(by_kind, axis=0)
            self.posterior, self.differ = _posterior(likelihood)
            if len(self._steps) == 1:
                break
            before = self._steps.copy()
            tried = np.arange(-MOST, MOST + 1)
            prior = np.square(STEP * tried / KIND_DEVIATION) / 2
            for k in range(len(before)):
                values = [np.sum(self.posterior * self._of_kind(k, step)) for step in tried]
                self._steps[k] = tried[int(np.argmax(np.array(values) - prior))]
            mean = np.average(self._steps, weights=np.maximum(self._kind_sizes, 1e-9))
            self._steps = np.clip(self._steps - round(float(mean)), -MOST, MOST)
            if (self._steps == before).all():
                break

    def _of_kind(self, kind: int, steps: Any) -> Floats:
        """`(P, G)` log likelihood of the masks of one kind, whose log odds are moved by steps."""
        start = MOST + int(steps)
        part: Floats = self._table[:, kind, start : start + len(GRID)]
        return part

    @cached_property
    def _share(self) -> Floats:
        """`(G,)` the share of bad masks on the mix of kinds of all images."""
        weights = self._kind_sizes / max(1, self._kind_sizes.sum())
        share: Floats = expit(GRID[:, None] + STEP * self._steps) @ weights
        return share

    @property
    def mean(self) -> Floats:
        """See the class."""
        return self.posterior @ self._share

    def interval(self, person: int) -> tuple[float, float]:
        """Return the interval of one person's share."""
        below = np.cumsum(self.posterior[person]) - self.posterior[person] / 2
        tail = (1 - INTERVAL) / 2
        low, high = np.interp([tail, 1 - tail], below, self._share)
        return float(low), float(high)

    def shift(self) -> Floats:
        """`(N,)` by what each person's record on other masks moves the log odds of a mask."""
        result = np.zeros(len(self.people.numbers))
        reference = logit(float(np.average(self.mean, weights=np.bincount(self._person))))
        for person in range(len(self.people.names)):
            own = np.flatnonzero(self._person == person)
            x = GRID + STEP * self._steps[self._kind[own], None]
            others = np.log(self.posterior[person] + 1e-300) - _log_likelihood(
                x, self._ratio[own, None]
            )
            weights = np.exp(others - others.max(axis=1, keepdims=True))
            share = weights @ self._share / weights.sum(axis=1)
            result[self._known[own]] = logit(share) - reference
        return result


def _log_likelihood(log_odds: Floats, ratio: Floats) -> Floats:
    """Log of how likely evidence is at given log odds of a bad mask, up to a constant."""
    share = expit(log_odds)
    result: Floats = np.log1p(share * (ratio - 1))
    return result


def _posterior(likelihood: Floats) -> tuple[Floats, float]:
    """Average over all normal distributions of persons' log odds.

    Args:
        likelihood: `(P, G)` the logarithm.

    Returns:
        `(P, G)` each person's posterior, and how probably persons differ.
    """
    peak = likelihood.max(axis=1, keepdims=True)
    relative = np.exp(likelihood - peak)
    priors, evidence = [], []
    for deviation in DEVIATIONS:
        z = (GRID - GRID[:, None]) / (deviation or 1e-6)
        prior = np.exp(-np.square(z) / 2)
        prior /= prior.sum(axis=1, keepdims=True)  # (mean, G)
        share = ALIKE if deviation == 0 else (1 - ALIKE) / (len(DEVIATIONS) - 1)
        priors.append(prior)
        evidence.append(np.log(relative @ prior.T + 1e-300).sum(axis=0) + np.log(share))
    log_weights = np.stack(evidence)  # (deviations, means)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    posterior = np.zeros_like(relative)
    for prior, of_means in zip(priors, weights, strict=True):
        marginal = relative @ prior.T + 1e-300  # (P, means)
        posterior += relative * ((of_means / marginal) @ prior)
    return posterior / posterior.sum(axis=1, keepdims=True), float(1 - weights[0].sum())


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


@dataclass(frozen=True)
class Steady:
    """The steady displacement of every person; None where nothing is known of it.

    Args:
        mean: The estimates.
        error: Their standard deviations.
        spread: The standard deviation from mask to mask.
    """

    mean: list[float | None]
    error: list[float | None]
    spread: list[float | None]

    def interval(self, person: int) -> tuple[float, float] | None:
        """Return the interval of one person's displacement."""
        mean, error = self.mean[person], self.error[person]
        if mean is None or error is None:
            return None
        reach = 1.645 * error
        return mean - reach, mean + reach


def steady_displacement(values: Floats, people: People) -> Steady:
    """Estimate each person's steady displacement.

    Args:
        values: `(N,)` displacements of masks, NaN where unknown.
        people: Who drew them.
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
    usual = _deviation(left)
    variance = np.full(count, usual**2)
    for n in np.flatnonzero(sizes > 1):
        part = _deviation(left[person == n]) ** 2 * sizes[n] / (sizes[n] - 1)
        variance[n] = (sizes[n] * part + SPREAD_SHRINKAGE * usual**2) / (
            sizes[n] + SPREAD_SHRINKAGE
        )
    error = np.sqrt(np.pi / 2 * variance / np.maximum(sizes, 1))
    drawn = np.flatnonzero(sizes)
    mean, posterior_error = _shrunk(own[drawn], error[drawn])
    result = Steady([None] * count, [None] * count, [None] * count)
    for n, value, reach in zip(drawn, mean, posterior_error, strict=True):
        result.mean[n], result.error[n] = float(value), float(reach)
        result.spread[n] = float(np.sqrt(variance[n]))
    return result


def _deviation(values: Floats) -> float:
    """The standard deviation by the median absolute deviation, or by squares where that is 0."""
    centred = values - np.median(values)
    return float(1.4826 * np.median(np.abs(centred)) or centred.std())


def _shrunk(means: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Shrink means towards their own mean (DerSimonian and Laird 1986).

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
