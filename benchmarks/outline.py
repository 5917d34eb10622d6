"""How well do outlines alone rank bad masks, without any network?

    python benchmarks/outline.py --jobs 1      # two minutes on one core

Half of the masks are replaced as in `grid.py`, with seeds 0 to 2; masks and images are judged at
their own size of 256 x 256. Writes `benchmarks/results/outline.csv`, prints the means over the
seeds. Beside the AUROC: Spearman's and Kendall's correlation with the error (one minus the Dice to
the original mask), and the share of replaced masks among the worst 10 %. `outline` is
`outline_scores`; `contrast` and `rank` are its halves. These two were chosen among 22 summaries of
the same profiles on these same sets, so that the figures flatter them a little. The smoothing of
1.5 pixels and the reach of 8 are those of the first trial.
"""

import argparse
import csv
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import grid
import numpy as np

RESULTS = Path(__file__).parent / "results" / "outline.csv"
MORE = {
    "bubil-crowd4": ["noise=annotator", "noise.masks=masks_crowd4"],
    "bubil-type1": ["noise=type1"],
}
FIGURES = ("auroc", "spearman", "kendall", "among_worst_tenth")
SCORES = ("outline", "contrast", "rank", "components", "weakest")


def measure(cell: tuple[str, int]) -> list[dict[str, str]]:
    """One row a score, of one set and seed."""
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.build import make_data
    from coseg_lightning.app.command import CONF
    from coseg_lightning.data.samples import label_dice
    from coseg_lightning.ranking.outline import mean_of_known, outline_evidence, outline_misfit

    def by_component(image, mask, classes):
        """`(2, K - 1, 2)` mean and lowest evidence of the components of each class."""
        found = np.full((2, classes - 1, 2), np.nan)
        for k in range(1, classes):
            count, parts = cv2.connectedComponents((mask == k).astype(np.uint8))
            each = [
                outline_evidence(image, np.where(mask == 255, 255, parts == n), classes=2)[0]
                for n in range(1, count)
            ]
            each = [row for row in each if not np.isnan(row).any()]
            if each:
                found[:, k - 1] = np.mean(each, axis=0), np.min(each, axis=0)
        return found

    name, seed = cell
    grid.HELD_OUT |= MORE
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", grid.overrides((name, 0.5, "coseg", seed), large=False))
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(cfg, Path(folder))
        data.prepare_data()
        samples = data.given_samples()
        pairs = [(samples.dataset.image(n), samples.mask(n)) for n in range(len(samples))]
        classes = cfg.data.classes
        evidence = np.stack([outline_evidence(*pair, classes=classes) for pair in pairs])
        parts = np.stack([by_component(*pair, classes) for pair in pairs], axis=1)
        replaced = np.array([sample_id in (samples.replaced or ()) for sample_id in samples.ids])
        error = 1 - label_dice(samples)
    contrast, rank = (evidence[..., [c, c]] for c in (0, 1))
    rows = []
    for score, table in zip(SCORES, (evidence, contrast, rank, *parts), strict=True):
        values = np.nan_to_num(mean_of_known(outline_misfit(table), axis=1))
        figures = [f"{figure:.4f}" for figure in figures_of(values, replaced, error)]
        row = {"set": name, "seed": str(seed), "score": score}
        rows.append(row | dict(zip(FIGURES, figures, strict=True)))
    return rows


def figures_of(scores, replaced, error) -> tuple[float, float, float, float]:
    """AUROC, both correlations, and the share of replaced masks among the worst tenth."""
    from scipy.stats import kendalltau, mannwhitneyu, spearmanr

    u = mannwhitneyu(scores[replaced], scores[~replaced]).statistic
    worst = np.argsort(-scores, kind="stable")[: round(0.1 * len(scores))]
    return (
        u / (replaced.sum() * (~replaced).sum()),
        spearmanr(scores, error).statistic,
        kendalltau(scores, error).statistic,
        replaced[worst].mean(),
    )


def main() -> None:
    """Measure all sets, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1)
    jobs = parser.parse_args().jobs
    os.environ["OMP_NUM_THREADS"] = "1"
    if not grid.DATA.is_dir():  # the results would lack most of their rows
        raise SystemExit(f"There is no folder {grid.DATA}; set COSEG_DATA.")
    names = [*grid.SETS, *grid.HELD_OUT, *MORE]
    cells = [(name, seed) for name in dict.fromkeys(names) for seed in grid.SEEDS]
    with ProcessPoolExecutor(jobs) as pool:
        rows = [row for found in pool.map(measure, cells) for row in found]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(
        "| set | AUROC | contrast | rank | components | weakest | Spearman | Kendall | worst 10 % |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["set"] for row in rows):

        def shown(figure: str, score: str = "outline", of: str = name) -> str:
            values = [float(r[figure]) for r in rows if r["set"] == of and r["score"] == score]
            return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"

        parts = [shown("auroc", score) for score in SCORES] + [shown(f) for f in FIGURES[1:]]
        print(f"| {name} | " + " | ".join(parts) + " |")


if __name__ == "__main__":
    main()
