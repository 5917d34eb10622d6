"""Does the interval of the noise level from ten judged masks hold what it promises?

    python benchmarks/judged.py audits/*/scores.csv    # rankings whose replaced masks are known

Rankings are simulated too: the masks' scores are normal, and those of bad ones are shifted by 0, 1
or 3 deviations, so that the AUROC is 0.5, 0.76 or 0.98. From a file's ranking, replaced masks are
dropped at random until the level is met. Beside the tool's interval, which is that of Clopper and
Pearson: that of Jeffreys, and a logistic model of how the odds of a bad mask fall with its rank
(weak priors on a grid). Both are narrower, and lost. Writes `benchmarks/results/judged.csv`.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.special import expit, ndtri
from scipy.stats import beta

from coseg_lightning.ranking.judged import masks_to_judge, noise_level_from_judged

RESULTS = Path(__file__).parent / "results" / "judged.csv"
LEVELS = (0.1, 0.2, 0.3, 0.5)
DRAWS = 200
SKILLS = {"0.50": 0.0, "0.76": 1.0, "0.98": 3.0}


def simulated(rng: np.random.Generator, level: float, skill: float) -> np.ndarray:
    """`(137,)` whether each mask is bad, worst first."""
    bad = np.arange(137) < round(level * 137)
    return bad[np.argsort(-(skill * bad + rng.normal(size=137)))]


def thinned(rng: np.random.Generator, bad: np.ndarray, level: float) -> np.ndarray:
    """Drop bad masks from a ranking until a level is met."""
    surplus = round(bad.sum() - level / (1 - level) * (~bad).sum())
    dropped = rng.choice(np.flatnonzero(bad), max(surplus, 0), replace=False)
    return np.delete(bad, dropped)


def by_model(places: np.ndarray, answers: np.ndarray, size: int) -> tuple[float, float]:
    """The 90 % interval of a logistic model of the normal scores of the ranks."""
    z = -ndtri((np.arange(size) + 0.5) / size)
    slopes, intercepts = np.meshgrid(np.linspace(0, 4, 25), np.linspace(-9, 9, 161), indexing="ij")
    odds = intercepts[..., None] + slopes[..., None] * z
    shares = expit(odds).mean(axis=-1)
    chosen = expit(odds[..., places])
    likelihood = np.where(answers, chosen, 1 - chosen).prod(axis=-1)
    prior = np.exp(-slopes) / np.sqrt(shares * (1 - shares)) * np.gradient(shares, axis=1)
    weights = (likelihood * prior).ravel()
    order = np.argsort(shares.ravel())
    cumulated = np.cumsum(weights[order]) / weights.sum()
    low, high = np.searchsorted(cumulated, (0.05, 0.95))
    return shares.ravel()[order][low], shares.ravel()[order][min(high, len(order) - 1)]


def intervals(bad: np.ndarray, trial: str) -> Iterator[tuple[str, float, float]]:
    """The intervals of all methods, from one judged sample of a ranking."""
    ids = [f"{trial} {place}" for place in range(len(bad))]
    judged = {name: bool(bad[int(name.split()[-1])]) for name in masks_to_judge(ids)}
    yield "the tool's", *noise_level_from_judged(ids, judged).interval
    k, n = sum(judged.values()), len(judged)
    low, high = beta.ppf((0.05, 0.95), k + 0.5, n - k + 0.5)
    yield "Jeffreys", 0.0 if k == 0 else low, 1.0 if k == n else high
    places = np.array([int(name.split()[-1]) for name in judged])
    yield "model of the ranks", *by_model(places, np.array(list(judged.values())), len(bad))


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    known = {}
    for path in parser.parse_args().files:
        with path.open(newline="", encoding="utf-8") as file:
            ranking = [row["replaced"] == "1" for row in csv.DictReader(file)]
        known[path.name.removesuffix("_scores.csv")] = np.array(ranking)
    rows = []
    for level in LEVELS:
        for name in [*SKILLS, *known]:
            found: dict[str, list[tuple[bool, float]]] = {}
            for draw in range(DRAWS if name in SKILLS else DRAWS // 5):
                rng = np.random.default_rng([draw, round(100 * level)])
                is_simulated = name in SKILLS
                bad = (
                    simulated(rng, level, SKILLS[name])
                    if is_simulated
                    else thinned(rng, known[name], level)
                )
                # Other masks are drawn from rankings of other lengths.
                bad = np.delete(bad, rng.integers(len(bad), size=draw % 40))
                for method, low, high in intervals(bad, f"{name} {draw}"):
                    held = low - 1e-9 <= bad.mean() <= high + 1e-9
                    found.setdefault(method, []).append((held, high - low))
            for method, values in found.items():
                coverage, width = np.mean(values, axis=0)
                row = {"ranking": name, "level": level, "method": method}
                rows.append(row | {"coverage": f"{coverage:.3f}", "width": f"{width:.3f}"})
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print("| rankings | level | interval | coverage | lowest of a ranking | width |")
    print("|---|---|---|---|---|---|")
    for names, what in ((list(SKILLS), "simulated"), (list(known), "measured")):
        for level in LEVELS if names else ():
            for method in dict.fromkeys(row["method"] for row in rows):
                chosen = [
                    (float(r["coverage"]), float(r["width"]))
                    for r in rows
                    if (r["level"], r["method"]) == (level, method) and r["ranking"] in names
                ]
                coverage, width = np.mean(chosen, axis=0)
                lowest = min(chosen)[0]
                print(
                    f"| {what} | {level} | {method} | {coverage:.2f} | {lowest:.2f} | {width:.2f} |"
                )


if __name__ == "__main__":
    main()
