"""Annotators: each one's share of bad masks, displacement of outlines, and effect on the ranking.

**Share of bad masks.** The evidence on a mask gives the probability that it is bad. The model is
hierarchical: persons' log odds of a bad mask follow a normal distribution. Its mean and deviation
are integrated over a grid (full Bayes). Half of the prior is on a deviation of zero, where all
persons are alike. A person with few masks is thereby shrunk towards all others, and so is everybody
if names carry no information. Each kind of image adds its own term to the log odds. Persons and
kinds are fitted in turn, so that nobody is blamed for being given hard images.

**Displacement.** How far the outlines lie outside a reference: the median over a person's masks,
after subtracting the median of each kind of image. The medians are shrunk towards their common mean
by the method of DerSimonian and Laird (1986). Standard errors use the pooled spread.

The accuracy is measured by `benchmarks/annotators.py`.

Legend of shapes: N masks, K classes, P persons, G points of a grid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.bad_shares import Shares, SharesAtLevels
from coseg_lightning.ranking.outline import mean_of_known
from coseg_lightning.ranking.people import People, steady_displacement
from coseg_lightning.ranking.priority import SCORE_PRIOR, Views, prior_probability

Floats = NDArray[np.float64]

FEWEST = 5  # masks of a person; below this only the interval is meaningful
SURE = 0.75  # probability that persons differ above which their records change the ranking
WEIGHT = 0.4  # of records beside own scores; 1 harms scores that are informative by themselves
NO_VERDICT = f"fewer than {FEWEST} masks are too few for a verdict"


@dataclass(frozen=True)
class AnnotatorRecord:
    """Estimates from the masks of one person, shrunk towards all persons.

    Args:
        annotator: The person.
        masks: Number of masks.
        bad_share: Estimated share of bad masks, on the mix of images of all persons.
        bad_share_interval: Contains `bad_share` with a probability of about 90 %.
        displacement: How far outlines lie outside their reference, in pixels: the mean over
            classes. It is negative if they lie inside, and None if unknown.
        displacement_interval: Contains `displacement` with a probability of about 90 %.
        spread: Standard deviation of the displacement from mask to mask, in pixels.
        displacement_by_class: The displacement of each class; None where it is unknown.
        blunders: The number of masks with each kind of blunder.
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
        masks = "1 mask" if self.masks == 1 else f"{self.masks} masks"
        text = f"{self.annotator}: {masks}, {low:.0%} to {high:.0%} of them bad"
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
    return None if value is None else round(value, 3) + 0.0  # not -0.0


def annotator_report(
    annotators: Sequence[Any],
    bad: ArrayLike,
    *,
    noise_level: float | Sequence[float] | None = None,
    displacement: ArrayLike | None = None,
    kinds: Sequence[str] | None = None,
    blunders: Sequence[Sequence[str]] | None = None,
) -> list[AnnotatorRecord]:
    """Report each person's share of bad masks, displacement of outlines, and blunders.

    Args:
        annotators: Who drew each of the N masks; None, NaN or an empty text if unknown.
        bad: `(N,)` the probability that each mask is bad. With a noise level, give corruption
            scores instead, higher for worse masks; NaN, where a mask cannot be judged, counts
            neither for nor against its annotator.
        noise_level: The share of bad masks among all, above 0 and below 1; it turns scores into
            probabilities. Give several if it is not known, such as `(0.05, 0.1, 0.2)`: they count
            as equally plausible, and widen the intervals.
        displacement: `(N,)` or `(N, K - 1)` how far outlines lie outside their reference, in
            pixels; NaN where unknown. An example is `ranking.displacement.displacement` of mask
            and proposal.
        kinds: The kind of each image, such as its scanner; its effect is not charged to anybody.
        blunders: A list of the names of each mask's blunders.

    Returns:
        One record per person, the largest share of bad masks first.

    Raises:
        InputError: If lengths differ, if `bad` are not probabilities, or if an argument is not
            what is described above.

    Example:
        >>> for person in annotator_report(names, scores, noise_level=0.2):
        ...     print(person)
    """
    if annotators is None:
        raise InputError("annotators is None; give a list of who drew each mask.")
    _check_report(annotators, noise_level, blunders)
    values = _numbers("bad", bad)
    if values.ndim != 1:
        raise InputError(
            f"bad has the shape {values.shape}, but it must hold one number per mask; give an "
            "array with one axis."
        )
    if displacement is not None:
        displacement = _numbers("displacement", displacement)
        if displacement.ndim not in (1, 2) or not displacement.size >= len(displacement):
            raise InputError(
                f"displacement has the shape {displacement.shape}, but it must hold one number per "
                "mask, or one per mask and class; give an array with one or two axes."
            )
        if np.isinf(displacement).any():
            raise InputError(
                f"displacement holds {displacement[np.isinf(displacement)][0]}, but displacements "
                "are finite pixels; give NaN where they are unknown."
            )
    levels = np.atleast_1d(noise_level).tolist() if noise_level is not None else [None]
    probabilities = [bad_probability(values, level) for level in levels]
    people = People.of(annotators, kinds)
    others: dict[str, Any] = {"masks": values, "blunders": blunders}
    others["displacement"] = displacement
    for name, given in others.items():
        if given is not None and len(given) != len(people.numbers):
            raise InputError(
                f"There are {len(people.numbers)} annotators, but not as many {name}; give one "
                f"annotator and one of {name} for each mask."
            )
    return records_of(probabilities, people, displacement, blunders)


def records_of(
    probabilities: Sequence[Floats],
    people: People,
    displacement: Floats | None = None,
    blunders: Sequence[Sequence[str]] | None = None,
) -> list[AnnotatorRecord]:
    """Report each person; see `annotator_report`.

    Args:
        probabilities: `(N,)` the probability that each mask is bad, at each of the levels that are
            equally plausible.
        people: Who drew each mask.
        displacement: `(N,)` or `(N, K - 1)`, NaN where unknown.
        blunders: The names of each mask's blunders.
    """
    if not people.names:
        return []
    shares = SharesAtLevels([Shares(probability, people) for probability in probabilities])
    moved = _displacements(displacement, people)
    records = []
    for n, name in enumerate(people.names):
        own = np.flatnonzero(people.numbers == n)
        found = Counter(
            word for i in own.tolist() for word in ([] if blunders is None else blunders[i] or [])
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


def _check_report(annotators: Any, noise_level: Any, blunders: Any) -> None:
    """Raise an `InputError` if arguments of `annotator_report` are of another form."""
    if isinstance(annotators, str | Mapping):
        raise InputError(
            f"annotators is a {type(annotators).__name__}, but it must be a list of names, one per "
            "mask; give such a list."
        )
    if noise_level is not None and not _are_levels(noise_level):
        raise InputError(
            f"noise_level={noise_level} must be above 0 and below 1; give the share of bad masks "
            "among all, such as 0.2, or several that are plausible."
        )
    if blunders is None:
        return
    texts = [blunders] if isinstance(blunders, str) else [b for b in blunders if isinstance(b, str)]
    if texts:
        raise InputError(
            f"blunders holds the text {texts[0]!r:.60}, but it must hold a list of names for each "
            f"mask; give [{texts[0]!r:.60}] instead."
        )


def _are_levels(noise_level: Any) -> bool:
    """Whether an argument is a share, or some shares."""
    try:
        levels = np.asarray(noise_level)
    except (TypeError, ValueError, RuntimeError):
        return False
    is_list = levels.dtype.kind in "fiu" and levels.ndim < 2 and levels.size > 0
    return is_list and bool(((levels > 0) & (levels < 1)).all())


def _numbers(name: str, values: ArrayLike) -> Floats:
    """Turn an argument into numbers; None becomes NaN."""
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu().double().numpy()
    try:
        if np.iscomplexobj(values):
            raise TypeError
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{name} is not an array of numbers; give one number per mask, and NaN where it is "
            "unknown."
        ) from None


def with_record(
    score: Floats,
    annotators: Sequence[str | None],
    *,
    noise_level: float,
    kinds: Sequence[str] | None = None,
) -> Floats:
    """Add each person's record on the other masks to the scores of the masks.

    Scores are mapped to log odds as in `priority.prior_probability`. The record shifts them by
    `WEIGHT` times the difference in log odds between the person's share of bad masks and that of
    all persons. The share is estimated without the mask itself. The scores are unchanged if
    persons hardly differ (see `SURE`).

    Args:
        score: `(N,)` corruption scores, higher for worse masks.
        annotators: Who drew each mask.
        noise_level: The share of bad masks among all.
        kinds: The kind of each image.
    """
    shift = record_shift(bad_probability(score, noise_level), People.of(annotators, kinds))
    return moved_scores(score, shift)


def record_shift(probability: Floats, people: People) -> Floats:
    """`(N,)` the shift of each mask's log odds by its annotator's record on other masks."""
    if len(people.names) < 2:
        return np.zeros(len(probability))
    shares = Shares(probability, people)
    return WEIGHT * shares.shift() if shares.differ >= SURE else np.zeros(len(probability))


def moved_scores(score: Floats, shift: Floats) -> Floats:
    """Shift scores by log odds. Scores that are not finite stay, and so do those without shift."""
    known = np.isfinite(score)
    if not shift.any() or not known.any():
        return score
    median = np.median(score[known])
    deviation = 1.4826 * np.median(np.abs(score[known] - median)) or score[known].std() or 1.0
    moved = np.sinh(np.arcsinh((score - median) / deviation) + shift / SCORE_PRIOR[0])
    result: Floats = np.where(known & (shift != 0), median + deviation * moved, score)
    return result


def bad_probability(bad: ArrayLike, noise_level: float | None = None) -> Floats:
    """Return the probability that each mask is bad, `(N,)`; with a noise level, `bad` are scores.

    A score that is NaN tells nothing: its mask is bad as probably as the others are in the mean.

    Raises:
        InputError: If `bad` are not probabilities and no noise level is given.
    """
    values = np.asarray(bad, dtype=np.float64)
    if noise_level is not None:
        known = ~np.isnan(values)
        scores, unknown = values[known], np.full(known.sum(), np.nan)
        of_known = prior_probability(
            Views(scores, unknown, unknown, np.zeros(len(scores))), noise_level
        )
        probability = np.full(len(values), of_known.mean() if len(scores) else noise_level)
        probability[known] = of_known
        return probability
    if np.isnan(values).any():
        raise InputError(
            f"bad has no number for {np.isnan(values).sum()} masks, but probabilities are needed; "
            "leave these masks out, or give scores with their noise_level."
        )
    if len(values) and not 0 <= values.min() <= values.max() <= 1:
        raise InputError(
            "bad must be probabilities between 0 and 1; give scores with their noise_level."
        )
    return values


def _displacements(displacement: ArrayLike | None, people: People) -> list[dict[str, Any]]:
    """Return the displacement arguments of each person's `AnnotatorRecord`."""
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
