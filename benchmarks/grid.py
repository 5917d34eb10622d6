"""Runs the app over methods, noise levels and seeds, and prints the table of test Dice.

    python benchmarks/grid.py phantom --jobs 2    # what has no result yet, then the table
    python benchmarks/grid.py phantom --table     # the table alone

Each cell is one `python -m coseg_lightning.run`, so that what is measured is what users get.
Results lie in `benchmarks/results/<grid>.csv`, one row a cell; finished cells are not run again.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("COSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))
SETTINGS = {
    # the embedded default, as the README's command runs it
    "phantom": {"data": [], "noises": {"type2": ["noise=type2"]}, "levels": [0.3, 0.5], "seeds": 3},
    # microscopy; half of the training masks drawn by crowd workers
    "bubil": {
        "data": [
            "data=folder",
            f"data.root={DATA / 'bubil'}",
            "data.image_size=96",
            "trainer.max_epochs=40",
        ],
        "noises": {"crowd1": ["noise=annotator", "noise.masks=masks_crowd1"]},
        "levels": [0.5],
        "seeds": 1,
    },
}
COLUMNS = ["method", "noise", "nol", "seed", "dice", "accuracy", "auroc"]
COLUMNS += ["label_dice_before", "label_dice_after", "seconds"]


def cells(grid: str) -> list[dict[str, str]]:
    settings = SETTINGS[grid]
    found = []
    for seed in range(settings["seeds"]):
        found.append({"method": "supervised", "noise": "none", "nol": "0", "seed": str(seed)})
        for noise in settings["noises"]:
            for level in settings["levels"]:
                for method in ("supervised", "coteaching", "coseg"):
                    found.append(
                        {"method": method, "noise": noise, "nol": str(level), "seed": str(seed)}
                    )
    return found


def measure(grid: str, cell: dict[str, str]) -> dict[str, str]:
    settings = SETTINGS[grid]
    noise = settings["noises"].get(cell["noise"], ["noise=none"])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "coseg_lightning.run", f"hydra.run.dir={folder}/run"]
        command += [f"method={cell['method']}", f"nol={cell['nol']}", f"seed={cell['seed']}"]
        command += [*settings["data"], *noise, "+trainer.enable_progress_bar=false"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    correction = summary["correction"]
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    figures = {
        "dice": summary["test"]["dice"],
        "accuracy": summary["test"]["accuracy"],
        "auroc": summary["ranking"]["auroc"],
        "label_dice_before": correction["label_dice_before"],
        "label_dice_after": correction["label_dice_after"],
    }
    rounded = {name: "" if value is None else f"{value:.5f}" for name, value in figures.items()}
    return {**cell, **rounded, "seconds": f"{seconds:.0f}"}


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(grid: str, jobs: int) -> None:
    path = RESULTS / f"{grid}.csv"
    keys = ("method", "noise", "nol", "seed")
    done = {tuple(row[key] for key in keys) for row in read(path)}
    left = [cell for cell in cells(grid) if tuple(cell[key] for key in keys) not in done]
    path.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        for number, row in enumerate(pool.map(lambda cell: measure(grid, cell), left), start=1):
            new = not path.is_file()
            with path.open("a", newline="") as file:
                table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    table.writeheader()
                table.writerow(row)
            print(f"{number} of {len(left)}: {row}", flush=True)


def table(grid: str) -> str:
    groups = defaultdict(list)
    for row in read(RESULTS / f"{grid}.csv"):
        groups[row["noise"], row["nol"], row["method"]].append(row)

    def mean(rows: list[dict[str, str]], name: str) -> str:
        values = [100 * float(row[name]) for row in rows if row[name]]
        if not values:
            return "-"
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    lines = [  # Dice, ACC and AUROC in percent, mean and standard deviation over seeds
        "| labels | NoL | method | test Dice | ACC | AUROC | labels before | after | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (noise, level, method), rows in sorted(groups.items(), key=lambda item: item[0][:2]):
        cells_of_row = [noise if noise != "none" else "clean", level, method]
        names = ("dice", "accuracy", "auroc", "label_dice_before", "label_dice_after")
        cells_of_row += [mean(rows, name) for name in names]
        lines.append(f"| {' | '.join(cells_of_row)} | {len(rows)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("grid", choices=SETTINGS)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--table", action="store_true", help="print the table alone")
    arguments = parser.parse_args()
    if not arguments.table:
        os.environ.setdefault("OMP_NUM_THREADS", "1" if arguments.jobs > 1 else "2")
        run(arguments.grid, arguments.jobs)
    print(table(arguments.grid))


if __name__ == "__main__":
    main()
