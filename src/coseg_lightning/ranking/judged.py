"""Estimates the noise level from a few masks that a person has judged.

The ranking is cut into equal parts, and one mask of each part is drawn for the person. The estimate
is the share of bad masks among them, which is valid for any ranking. A better ranking makes the
interval narrower: if good and bad judgments are separated along the ranking, most parts are wholly
good or wholly bad. The draw then leaves little to chance. Isotonic regression fits the share of bad
masks along the ranking. The remaining variance gives the equivalent number of masks drawn from the
whole set. The interval is that of Clopper and Pearson (1934) for this number. If the judgments do
not follow the ranking, it is that of the judged masks alone.

The accuracy is measured by `benchmarks/judged.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import beta

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.seeding import derive_rng

Floats = NDArray[np.float64]

COUNT = 10  # masks that a person is asked to judge
DECISIONS = ("good", "bad")
TAIL = 0.05  # largest probability of a miss on either side of the interval


@dataclass(frozen=True)
class JudgedNoiseLevel:
    """A noise level estimated from judged masks.

    Args:
        noise_level: The share of bad masks among the judged ones.
        interval: Contains the share of bad masks among all with a probability of about 90 %.
        judged: Number of judged masks.
        bad: Number of bad ones among them.
    """

    noise_level: float
    interval: tuple[float, float]
    judged: int
    bad: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"estimated {self.noise_level:.2f} (90 % interval {low:.2f} to {high:.2f}), since "
            f"{self.bad} of {self.judged} judged masks are bad."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file, and the estimate as a sentence."""
        return {**asdict(self), "interval": list(self.interval), "sentence": str(self)}


def masks_to_judge(worst_first: Sequence[int], count: int = COUNT) -> list[int]:
    """Draw the masks that a person should judge, one from each of `count` parts of the ranking.

    Args:
        worst_first: The masks' indices as ranked.
        count: Number of masks to draw. If there are fewer, all are taken.

    Returns:
        Their indices in rising order, which does not reveal their ranks.
    """
    edges = _edges(len(worst_first), min(count, len(worst_first)))
    rng = derive_rng(0, "masks to judge", len(worst_first), count)
    return sorted(worst_first[place] for place in rng.integers(edges[:-1], edges[1:]))


def judged_noise_level(is_bad: ArrayLike, size: int) -> JudgedNoiseLevel:
    """Estimate the noise level from judged masks that are spread over the ranking.

    Args:
        is_bad: `(n,)` whether each judged mask is bad, in the order of the ranking, worst first.
        size: The number of all masks.
    """
    bad = np.asarray(is_bad, dtype=np.float64)
    judged, count = len(bad), int(bad.sum())
    worth = _worth(bad)
    low = beta.ppf(TAIL, worth * count, worth * (judged - count) + 1) if count else 0.0
    high = beta.isf(TAIL, worth * count + 1, worth * (judged - count)) if count < judged else 1.0
    least, most = count / size, 1 - (judged - count) / size  # bounds by the judged masks alone
    return JudgedNoiseLevel(
        noise_level=count / judged,
        interval=(float(max(low, least)), float(min(high, most))),
        judged=judged,
        bad=count,
    )


def _worth(bad: Floats) -> float:
    """Number of masks drawn from the whole ranking that equal one judged mask of each part.

    Args:
        bad: `(n,)` 1 for bad masks, worst first.
    """
    fitted = isotonic_regression(bad, increasing=False).x
    shares, sizes = np.unique(fitted, return_counts=True)
    whole = _variance(bad.mean(keepdims=True), np.array([len(bad)]))
    return max(1.0, whole / _variance(shares, sizes))


def _variance(shares: Floats, sizes: NDArray[np.int64]) -> float:
    """Variance of the number of bad masks among groups of judged masks.

    Half a good and half a bad mask are added to each group. A few equal judgments do not show that
    the rest of the group is equal too.

    Args:
        shares: The share of bad masks in each group.
        sizes: The number of masks in each group.
    """
    p = (shares * sizes + 0.5) / (sizes + 1)
    return float(sizes @ (p * (1 - p)))


def _edges(size: int, count: int) -> NDArray[np.int64]:
    """Start of each of `count` equal parts of a ranking, and its end, `(count + 1,)`."""
    return np.arange(count + 1) * size // count


def noise_level_of_review(review: Path) -> JudgedNoiseLevel:
    """Estimate the noise level of an audit from the `review.csv` that a person filled in.

    Args:
        review: The file, beside the audit's `scores.csv`.

    Raises:
        InputError: If a mask is not judged, judged twice or unknown to the audit, or if the
            judged masks are not spread over the ranking.
    """
    judged = read_judged(review)
    ranked = _ranked_ids(review.with_name("scores.csv"))
    unknown = sorted(judged.keys() - set(ranked))
    if unknown:
        raise InputError(
            f"{review} names {unknown[0]}, which is not in the scores.csv beside it; judge the "
            "masks that this audit chose, and keep their ids. A spreadsheet may turn 001 into 1."
        )
    _check_spread(review, [place for place, name in enumerate(ranked) if name in judged], ranked)
    return judged_noise_level([judged[name] for name in ranked if name in judged], len(ranked))


def read_judged(path: Path) -> Mapping[str, bool]:
    """Read a completed `review.csv` with the columns `id` and `decision`: good or bad.

    Returns:
        Whether each mask is bad, by its id.

    Raises:
        InputError: If a mask has no, an unknown or a second decision, or if there is no mask.
    """
    rows = read_table(path, ["id", "decision"])
    words = [row["decision"].strip().lower() for row in rows]
    undecided = [row["id"] for row, word in zip(rows, words, strict=True) if not word]
    if undecided or not rows:
        raise InputError(
            f"{path} lacks the decision for {len(undecided) or 'all'} "
            f"mask{'' if len(undecided) == 1 else 's'}"
            f"{f', such as {undecided[0]}' if undecided else ''}; look at review.png, and write "
            "good or bad into the column decision of every line."
        )
    for row, word in zip(rows, words, strict=True):
        if word not in DECISIONS:
            raise InputError(
                f"{path} has the decision {word!r} for {row['id']}; it must be good or bad."
            )
    name, times = Counter(row["id"] for row in rows).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path} names {name} twice; give one decision for it.")
    return {row["id"]: word == "bad" for row, word in zip(rows, words, strict=True)}


def _ranked_ids(path: Path) -> list[str]:
    """The ids of a `scores.csv`, worst first."""
    ids = {row["rank"]: row["id"] for row in read_table(path, ["id", "rank"])}
    try:
        return [ids[str(rank)] for rank in range(1, len(ids) + 1)]
    except KeyError as error:
        raise InputError(
            f"{path} has no mask of rank {error.args[0]}; restore the file that the audit wrote."
        ) from error


def _check_spread(review: Path, places: Sequence[int], ranked: Sequence[str]) -> None:
    """Raise an `InputError` unless each equal part of the ranking holds one judged mask.

    Args:
        review: The file, for the message.
        places: The judged masks' places in the ranking, rising.
        ranked: All ids.
    """
    wanted = min(COUNT, len(ranked))
    if len(places) != wanted:
        raise InputError(
            f"{review} judges {len(places)} mask{'' if len(places) == 1 else 's'}, but the audit "
            f"chose {wanted}; judge exactly the chosen masks."
        )
    edges = _edges(len(ranked), len(places))
    held, _ = np.histogram(places, edges)
    if (held != 1).any():
        in_worse_half = sum(place < len(ranked) // 2 for place in places)
        raise InputError(
            f"{review}: the {len(places)} judged masks are not spread evenly over the ranking "
            f"({in_worse_half} of them lie in its worse half), so they cannot tell the share of "
            "bad masks; judge exactly the masks that the audit chose."
        )
