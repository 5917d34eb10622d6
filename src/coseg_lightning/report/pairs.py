"""Compares pairs of a sweep's methods, image by image and seed by seed."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from coseg_lightning.files.csv import read_table

RESAMPLES = 2000
FEWEST = 5  # images; fewer are not representative

Figures = Mapping[str, float]  # a metric of each test image, by id


def read_figures(folder: Path, metric: str) -> dict[str, float]:
    """Read a metric of each test image of a run; empty if the run has no such metric."""
    path = folder / "test.csv"
    if not path.is_file():
        return {}
    return {row["id"]: float(row[metric]) for row in read_table(path, ["id"]) if row.get(metric)}


@dataclass(frozen=True)
class Pair:
    """A comparison of two rows of a table in one column.

    Args:
        first: The better row.
        second: The other row.
        column: The column.
        difference: The lead of the first row in the mean over images and seeds.
        interval: The 95 % bootstrap interval of the lead over images; None for fewer than five.
        p: The p-value of Wilcoxon's signed-rank test over images, each averaged over seeds. It is
            adjusted by Holm's method for all pairs of the table.
        images: Number of images that both were tested on.
        seeds: Number of seeds that both were run with.
        ahead: Number of seeds with which the first row is better.
    """

    first: str
    second: str
    column: str
    difference: float
    interval: tuple[float, float] | None
    p: float
    images: int
    seeds: int
    ahead: int

    def as_row(self) -> dict[str, Any]:
        """Return the pair as a row of `pairs.csv`."""
        low, high = self.interval or ("", "")
        return {
            "column": self.column,
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "low": low,
            "high": high,
            "p": self.p,
            "images": self.images,
            "seeds": self.seeds,
            "seeds_ahead": self.ahead,
        }

    def __str__(self) -> str:
        lead = f"{100 * self.difference:.1f}"
        text = f"{self.column}: {self.first} is {lead} ahead of {self.second}"
        if float(lead) == 0:
            text = f"{self.column}: {self.first} and {self.second} are level"
        if self.interval is not None:
            low, high = (100 * end for end in self.interval)
            text += f" ({low:.1f} to {high:.1f})"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{text}, {p}; {self.images} images, with {self.ahead} of {self.seeds} seeds"


def gain(folder: Path, other: Path, metric: str = "dice") -> tuple[float, float] | None:
    """Return the 95 % interval of a run's lead over another on the same test images.

    Args:
        folder: The run's folder.
        other: The folder of the other run, such as its baseline.
        metric: A column of `test.csv`.
    """
    own, others = read_figures(folder, metric), read_figures(other, metric)
    return interval(np.array([own[i] - others[i] for i in sorted(own.keys() & others.keys())]))


def compare(columns: Mapping[str, Mapping[str, Mapping[Any, Figures]]]) -> list[Pair]:
    """Compare all pairs of rows in each column.

    Args:
        columns: The metrics of test images by column, row and seed.

    Returns:
        The pairs that share images and seeds.
    """
    pairs: list[Pair] = []
    for column, rows in columns.items():
        for (name, first), (other_name, second) in itertools.combinations(rows.items(), 2):
            pair = _pair(column, (name, first), (other_name, second))
            pairs += [] if pair is None else [pair]
    return _adjusted(pairs)


def _pair(
    column: str,
    first: tuple[str, Mapping[Any, Figures]],
    second: tuple[str, Mapping[Any, Figures]],
) -> Pair | None:
    seeds = sorted(first[1].keys() & second[1].keys(), key=str)
    if not seeds:
        return None
    shared = set.intersection(*(set(side[1][seed]) for side in (first, second) for seed in seeds))
    if not shared:
        return None
    images = sorted(shared)
    table = np.array([[first[1][s][i] - second[1][s][i] for i in images] for s in seeds])
    if table.mean() < 0:
        table, first, second = -table, second, first
    differences = table.mean(axis=0)
    return Pair(
        first[0],
        second[0],
        column,
        difference=float(table.mean()),
        interval=interval(differences),
        p=_p_value(differences),
        images=len(images),
        seeds=len(seeds),
        ahead=int((table.mean(axis=1) > 0).sum()),
    )


def _p_value(differences: NDArray[np.float64]) -> float:
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    """Adjust the p-values of all pairs by Holm's method."""
    order = sorted(range(len(pairs)), key=lambda n: pairs[n].p)
    adjusted, largest = list(pairs), 0.0
    for position, n in enumerate(order):
        largest = max(largest, min(1.0, pairs[n].p * (len(pairs) - position)))
        adjusted[n] = Pair(**{**vars(pairs[n]), "p": largest})
    return adjusted


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of a mean over images; None for fewer than five.

    Args:
        values: One value per image.
    """
    if len(values) < FEWEST:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = result.confidence_interval
    return float(low), float(high)
