"""The noise level from a few masks that a person has judged.

The ranking is cut into equal parts, and one mask is drawn of each. The share of bad ones among them
estimates that of all without bias, however good the ranking is; a good one makes it more precise.
The interval is that of a plain sample (Clopper and Pearson 1934), which holds the truth in 90 % of
cases at least, whatever the ranking is worth. Narrower ones do not (`benchmarks/judged.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import beta

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.seeding import derive_rng

DECISIONS = ("good", "bad")
COUNT = 10
CONFIDENCE = 0.9


@dataclass(frozen=True)
class JudgedNoiseLevel:
    """The share of bad masks among those that were judged.

    Args:
        noise_level: The share.
        interval: Contains the share among all masks with a probability of 90 % at least.
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
            f"{self.noise_level:.2f} (90 % interval {low:.2f} to {high:.2f}), since {self.bad} of "
            f"{self.judged} masks that are spread over the ranking are bad."
        )


def masks_to_judge(worst_first: Sequence[str], count: int = COUNT) -> list[str]:
    """Draw the masks that a person should judge, one from each of equal parts of the ranking.

    Args:
        worst_first: The ids of all masks, worst first.
        count: Number of masks; of fewer, all are taken.

    Returns:
        Their ids in the order of the text, which does not tell how they rank.
    """
    edges = _edges(len(worst_first), count)
    rng = derive_rng(0, "masks to judge", len(worst_first), count)
    drawn = rng.integers(edges[:-1], edges[1:])
    return sorted(worst_first[position] for position in drawn)


def noise_level_from_judged(
    worst_first: Sequence[str], judged: Mapping[str, bool]
) -> JudgedNoiseLevel:
    """Estimate the noise level from masks of which a person says whether they are bad.

    Args:
        worst_first: The ids of all masks, worst first.
        judged: Whether each judged mask is bad, by its id. They must be spread over the ranking as
            those of `masks_to_judge` are, since the worst masks alone say nothing of all others.

    Raises:
        InputError: If a mask is not in the ranking, or the masks are not spread over it.
    """
    position = {sample_id: rank for rank, sample_id in enumerate(worst_first)}
    unknown = sorted(judged.keys() - position.keys())
    if unknown:
        raise InputError(f"{unknown[0]} is judged, but is not in the ranking; give its own review.")
    if not judged:
        raise InputError(f"No mask is judged; say of {COUNT} masks whether they are good or bad.")
    ranks = sorted(position[sample_id] for sample_id in judged)
    edges = _edges(len(worst_first), len(judged))
    if any(
        not low <= rank < high for low, rank, high in zip(edges, ranks, edges[1:], strict=False)
    ):
        raise InputError(
            f"The {len(judged)} judged masks are not spread over the ranking, one in each of "
            f"{len(judged)} equal parts of it, so that they say little of all others; judge the "
            "masks that the audit's review.csv names, all of them and no others."
        )
    bad, count = sum(judged.values()), len(judged)
    if count == len(worst_first):  # nothing is left open
        return JudgedNoiseLevel(bad / count, (bad / count, bad / count), count, bad)
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, bad, count - bad + 1)) if bad else 0.0
    high = float(beta.ppf(1 - tail, bad + 1, count - bad)) if bad < count else 1.0
    return JudgedNoiseLevel(bad / count, (low, high), count, bad)


def read_judged(path: str | Path) -> dict[str, bool]:
    """Read an audit's `review.csv`, with the columns `id` and `decision`: good or bad.

    Returns:
        Whether each mask is bad, by its id.

    Raises:
        InputError: If the file is no such table, names a mask twice, or does not decide on each.
    """
    judged: dict[str, bool] = {}
    for row in read_table(Path(path), ["id", "decision"]):
        sample_id, decision = row["id"], row["decision"].strip().lower()
        if decision not in DECISIONS:
            raise InputError(
                f"{path} says {row['decision']!r} of {sample_id}; write good or bad, which is said "
                "of the given mask, for each mask of the file."
            )
        if sample_id in judged:
            raise InputError(f"{path} names {sample_id} twice; decide once.")
        judged[sample_id] = decision == "bad"
    return judged


def _edges(size: int, count: int) -> list[int]:
    """Cut `size` ranks into at most `count` parts that differ by one at most."""
    count = min(count, size)
    return [part * size // count for part in range(count + 1)] if count else [0]
