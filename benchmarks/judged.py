"""How well do ten judged masks tell the noise level?

    python benchmarks/judged.py FOLDER  # ten seconds; without a folder, simulated rankings alone

FOLDER holds runs' tables `SET_LEVEL_SEED_scores.csv` in which `replaced` is known, as
`python -m coseg_lightning.run noise=... nol=0.5` writes `scores.csv`. For lower levels replaced
masks are left out at random, 30 times. Simulated rankings are of 140 masks whose scores are normal,
apart by an AUROC. One mask is drawn of each tenth of a ranking; no draw is simulated: each of the
1024 possible outcomes counts by its probability.

`judged` is the package's own estimate; `logistic` is the posterior of a logistic curve over the
ranks; `plain` is the interval of the count alone by Jeffreys' prior, `exact` the one of Clopper and
Pearson. Writes `benchmarks/results/judged.csv`, and prints the lowest and the mean coverage over
the sets, the mean width, and the mean absolute error.
"""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtri
from scipy.stats import beta

from coseg_lightning.ranking.judged import COUNT, TAIL, judged_noise_level

RESULTS = Path(__file__).parent / "results" / "judged.csv"
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5)
AUROCS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
REPEATS, SIZE = 30, 140
OUTCOMES = np.array(list(product((0, 1), repeat=COUNT)))  # (1024, 10), worst first
BAD = OUTCOMES.sum(axis=1)


def judged() -> np.ndarray:
    """`(1024, 3)` the estimate of each outcome and its interval, as of the other methods."""
    found = [judged_noise_level(outcome, 10**9) for outcome in OUTCOMES]
    return np.array([(level.noise_level, *level.interval) for level in found])


def plain() -> np.ndarray:
    return of_ends(BAD / COUNT, *beta.ppf([[TAIL], [1 - TAIL]], BAD + 0.5, COUNT - BAD + 0.5))


def exact() -> np.ndarray:
    low = beta.ppf(TAIL, BAD.clip(1), COUNT - BAD + 1)
    return of_ends(BAD / COUNT, low, beta.isf(TAIL, BAD + 1, (COUNT - BAD).clip(1)))


def logistic(slopes: int = 24, shares: int = 199) -> np.ndarray:
    """Half-Cauchy slopes, Jeffreys' prior of the share, and the median of the posterior."""
    z = -ndtri((np.arange(COUNT) + 0.5) / COUNT)
    z /= z.std()
    share = (np.arange(shares) + 0.5) / shares
    posterior = np.zeros((len(OUTCOMES), shares))
    for slope in np.tan(np.pi / 2 * np.linspace(0, 1, slopes, endpoint=False)):
        intercepts = np.linspace(-30 - 4 * slope, 30 + 4 * slope, 4001)
        means = expit(intercepts[:, None] + slope * z).mean(axis=1)
        p = expit(np.interp(share, means, intercepts)[:, None] + slope * z).clip(1e-12, 1 - 1e-12)
        log_likelihood = OUTCOMES @ np.log(p).T + (1 - OUTCOMES) @ np.log1p(-p).T
        posterior += np.exp(log_likelihood) * beta.pdf(share, 0.5, 0.5)
    below = np.cumsum(posterior, axis=1) / posterior.sum(axis=1, keepdims=True)
    ends = [[np.interp(q, row, share + 0.5 / shares) for row in below] for q in (TAIL, 1 - TAIL)]
    middle = np.array([np.interp(0.5, row, share + 0.5 / shares) for row in below])
    return of_ends(middle, *map(np.array, ends))


def of_ends(level: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.stack([level, np.where(BAD == 0, 0, low), np.where(BAD == COUNT, 1, high)], axis=1)


def measured(ranked: list[np.ndarray], estimates: np.ndarray) -> tuple[float, float, float]:
    """Coverage, width and absolute error, the mean over rankings, each whether masks are bad."""
    sums = np.zeros(3)
    level, low, high = estimates.T
    for bad in ranked:
        edges = np.arange(COUNT + 1) * len(bad) // COUNT
        shares = np.add.reduceat(bad.astype(float), edges[:-1]) / np.diff(edges)
        probability = np.where(OUTCOMES, shares, 1 - shares).prod(axis=1)
        truth = bad.mean()
        holds = (low <= truth + 1e-9) & (truth <= high + 1e-9)
        sums += [probability @ part for part in (holds, high - low, np.abs(level - truth))]
    coverage, width, error = sums / len(ranked)
    return coverage, width, error


def of_runs(folder: Path) -> Iterator[tuple[str, float, list[np.ndarray]]]:
    """Set, level, and its rankings, worst first, of all tables of runs with replaced masks."""
    of_set = defaultdict(list)
    for path in sorted(folder.glob("*scores.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            bad = np.array([row["replaced"] == "1" for row in csv.DictReader(file)])
        if bad.any():
            of_set[re.sub(r"_[\d.]+_\d+_scores$", "", path.stem)].append(bad)
    for name, level in product(of_set, LEVELS):
        rng = np.random.default_rng(0)
        known = [bad for bad in of_set[name] if bad.mean() > level - 0.02]
        if known:
            yield name, level, [thinned(bad, level, rng) for bad in known for _ in range(REPEATS)]


def thinned(bad: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Leave out bad masks until their share is `level`."""
    places = np.flatnonzero(bad)
    kept = min(len(places), round(level * (~bad).sum() / (1 - level)))
    return np.delete(bad, rng.choice(places, len(places) - kept, replace=False))


def simulated() -> Iterator[tuple[str, float, list[np.ndarray]]]:
    for auroc, level in product(AUROCS, LEVELS):
        rng, ranked = np.random.default_rng(0), []
        for _ in range(REPEATS):
            bad = np.arange(SIZE) < round(level * SIZE)
            scores = rng.normal(size=SIZE) + np.sqrt(2) * ndtri(auroc) * bad
            ranked.append(bad[np.argsort(-scores)])
        yield f"simulated-{auroc}", level, ranked


METHODS: tuple[Callable[[], np.ndarray], ...] = (judged, logistic, plain, exact)


def main() -> None:
    estimates = {method.__name__: method() for method in METHODS}
    rows = []
    sets = [*simulated(), *(cell for folder in sys.argv[1:] for cell in of_runs(Path(folder)))]
    for (name, level, ranked), method in product(sets, estimates):
        figures = measured(ranked, estimates[method])
        texts = [f"{figure:.4f}" for figure in figures]
        columns = ("set", "level", "method", "rankings", "coverage", "width", "error")
        rows.append(dict(zip(columns, (name, level, method, len(ranked), *texts), strict=True)))
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    show(rows)


def show(rows: list[dict]) -> None:
    print("| rankings | level | method | sets | lowest coverage | coverage | width | error |")
    print("|" + "---|" * 8)
    for are_runs, level, method in product((True, False), LEVELS, (m.__name__ for m in METHODS)):
        cells = [
            [float(row[key]) for key in ("coverage", "width", "error")]
            for row in rows
            if (row["level"], row["method"]) == (level, method)
            and row["set"].startswith("simulated") != are_runs
        ]
        if cells:
            means = " | ".join(f"{value:.3f}" for value in np.mean(cells, axis=0))
            kind = "of runs" if are_runs else "simulated"
            lowest = min(cell[0] for cell in cells)
            print(f"| {kind} | {level} | {method} | {len(cells)} | {lowest:.3f} | {means} |")


if __name__ == "__main__":
    main()
