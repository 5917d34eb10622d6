"""How well does the audit without training rank, what does it name, and how long does it take?

    python benchmarks/unaided.py --jobs 2      # about six minutes on two cores
    python benchmarks/unaided.py --time        # the whole command on 1,000 masks of 512 x 512

The sets are those of `outline.py`, and the three without noise. Writes
`benchmarks/results/unaided.csv`, prints the means over the seeds. `unaided` is the audit's score,
and `kinds` the same where the kinds of images of `bubil` (D1 to D5) are given by `data.kinds`.
The others are the outlines alone, and with 0.15 times one more trait of the masks: how far their
size is from the usual one, how ragged they are, how much of their convex hull they leave out, in
how many parts they are. The weight of the place was chosen on `CHOSEN`, the others are held out.
`named` and `named_wrongly` count the masks with the name of a blunder, of the replaced ones and of
the others; `noise_level` is what the audit says, empty where it cannot tell.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grid
import numpy as np
from outline import MORE, figures_of

RESULTS = Path(__file__).parent / "results" / "unaided.csv"
CHOSEN = ("bubil-crowd1", "bubil-large", "bubil-type2", "usgra-type1", "phantom-type1")
CHOSEN += ("phantom-walk",)
CLEAN = ("bubil-none", "usgra-none", "phantom-none")
FIGURES = ("auroc", "spearman", "kendall", "among_worst_tenth")
WEIGHT = 0.15
TRAITS = ("size", "ragged", "hull", "parts")
SCORES = ("unaided", "kinds", "outline", *TRAITS)


def measure(cell: tuple[str, int]) -> list[dict[str, str]]:
    """One row a score, of one set and seed."""
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.build import make_all_masks
    from coseg_lightning.app.command import CONF
    from coseg_lightning.app.unaided import judge_masks
    from coseg_lightning.ranking.outline import standardise
    from coseg_lightning.ranking.unaided import misplaced_first

    name, seed = cell
    grid.HELD_OUT |= MORE
    level = 0.0 if name in CLEAN else 0.5
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", grid.overrides((name, level, "coseg", seed), large=False))
    with tempfile.TemporaryDirectory() as folder:
        samples = make_all_masks(cfg, Path(folder))
        opinion, names = judge_masks(samples.dataset, classes=cfg.data.classes, processes=1)
        masks = [samples.dataset.mask(n) for n in range(len(samples.ids))]
        within = None
        if name.startswith("bubil"):
            kinds = {i: i.partition("_")[0] for i in samples.ids}
            options = {"classes": cfg.data.classes, "processes": 1, "kinds": kinds}
            within = judge_masks(samples.dataset, **options)[0].score
    replaced = np.array([i in (samples.replaced or ()) for i in samples.ids])
    named = np.array([bool(some) for some in names])
    outline = np.nan_to_num(opinion.misfit)
    traits = np.nan_to_num(np.abs(standardise(np.array([traits_of(m) for m in masks]))))
    scores = [misplaced_first(opinion.score, names)]
    scores += [None if within is None else misplaced_first(within, names), outline]
    scores += [outline + WEIGHT * trait for trait in traits.T]
    rows = []
    for score, values in zip(SCORES, scores, strict=True):
        row = {"set": name, "seed": str(seed), "score": score, **dict.fromkeys(FIGURES, "")}
        if replaced.any() and values is not None:
            figures = figures_of(values, replaced, 1 - samples.label_dice)
            row |= {k: f"{v:.4f}" for k, v in zip(FIGURES, figures, strict=True)}
        is_audit = score == "unaided"
        row["named"] = str((named & replaced).sum()) if is_audit else ""
        row["named_wrongly"] = str((named & ~replaced).sum()) if is_audit else ""
        told = is_audit and opinion.estimate.separable
        row["noise_level"] = f"{opinion.estimate.noise_level:.2f}" if told else ""
        rows.append(row)
    return rows


def traits_of(mask) -> tuple[float, float, float, float]:
    """Log size, raggedness and share of the hull of the foreground, and its number of parts."""
    import cv2

    region = ((mask > 0) & (mask != 255)).astype(np.uint8)
    if region.sum() < 8:
        return (np.nan,) * 4
    contours = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    length = sum(cv2.arcLength(contour, True) for contour in contours)
    hull = sum(cv2.contourArea(cv2.convexHull(contour)) for contour in contours)
    area = float(region.sum())
    return np.log(area), np.log(length**2 / area), np.log((hull + 1) / (area + 1)), len(contours)


def print_table(rows: list[dict[str, str]]) -> None:
    """Print the means over the seeds, and over the sets that were chosen on and held out."""

    def mean(names, score, figure):
        of = [r for r in rows if r["set"] in names and r["score"] == score and r[figure]]
        has_all = {r["set"] for r in of} == set(names)
        return np.mean([float(r[figure]) for r in of]) if has_all else np.nan

    print("| set | " + " | ".join(SCORES) + " | worst 10 % | named | wrongly | noise level |")
    print("|---|" + "---|" * (len(SCORES) + 4))
    names = list(dict.fromkeys(row["set"] for row in rows))
    groups = {name: [name] for name in names}
    groups["chosen on"] = list(CHOSEN)
    groups["held out"] = [name for name in names if name not in (*CHOSEN, *CLEAN)]
    for group, of in groups.items():
        parts = [f"{100 * mean(of, score, 'auroc'):.1f}" for score in SCORES]
        parts.append(f"{100 * mean(of, 'unaided', 'among_worst_tenth'):.1f}")
        parts += [f"{mean(of, 'unaided', figure):.1f}" for figure in ("named", "named_wrongly")]
        told = [r["noise_level"] for r in rows if r["set"] in of and r["noise_level"]]
        parts.append(", ".join(told) if len(of) == 1 else "")
        print(f"| {group} | " + " | ".join(parts).replace("nan", "") + " |")


def print_time(count: int = 1000, side: int = 512) -> None:
    """Run the command on a folder of new masks, and print what it takes."""
    import cv2

    from coseg_lightning.data.phantom import PhantomImages

    phantoms, rng = PhantomImages("p", 40, side, 0), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("images", "masks"):
            (root / part).mkdir()
        for n in range(count):  # phantoms take long to draw; moved ones are other masks, too
            right, down = rng.integers(-side // 40, side // 40, 2).tolist()
            move = np.float32([[1, 0, right], [0, 1, down]])
            image = cv2.warpAffine(phantoms.image(n % 40), move, (side, side), borderMode=1)
            image = np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
            mask = cv2.warpAffine(phantoms.mask(n % 40), move, (side, side), flags=0)
            cv2.imwrite(str(root / "images" / f"{n:04}.png"), image)
            cv2.imwrite(str(root / "masks" / f"{n:04}.png"), 255 * mask)
        command = [sys.executable, "-m", "coseg_lightning.audit", "training=none"]
        command += [f"data.root={root}", f"hydra.run.dir={root}/audit"]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{count} masks of {side} x {side}: {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s "
        f"of all cores, {used.ru_maxrss / 1024:.0f} MB at most in a process; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def main() -> None:
    """Measure all sets, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.time:
        print_time()
        return
    if not grid.DATA.is_dir():  # the results would lack most of their rows
        raise SystemExit(f"There is no folder {grid.DATA}; set COSEG_DATA.")
    cells = [(n, s) for n in dict.fromkeys([*grid.SETS, *grid.HELD_OUT, *MORE]) for s in grid.SEEDS]
    cells += [(name, 0) for name in CLEAN]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = [row for found in pool.map(measure, cells) for row in found]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print_table(rows)


if __name__ == "__main__":
    main()
