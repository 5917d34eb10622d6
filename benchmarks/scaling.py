"""Strong scaling: the app with one process and with two, of one thread each, on the same work.

    python benchmarks/scaling.py

The same samples and, in all, the same batch: eight for one process, four for each of two. Times are
the stages' own (`summary.json`), the best of the rounds. Writes `benchmarks/results/scaling.csv`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "scaling.csv"


def stages_of(processes: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The seconds of each stage of one run."""
    arguments = ["model=unet", "noise=type2", "nol=0.5", f"data.image_size={options.size}"]
    arguments += [f"data.source.train={options.samples}", "data.source.test=16"]
    arguments += [f"data.batch_size={8 // processes}", f"trainer.max_epochs={options.epochs}"]
    arguments += ["trainer.accelerator=cpu"]
    arguments += ["trainer=ddp", f"trainer.devices={processes}"] if processes > 1 else []
    arguments += ["+trainer.enable_progress_bar=false", f"hydra.run.dir={folder}"]
    subprocess.run(
        [sys.executable, "-m", "coseg_lightning.run", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    summary = json.loads((folder / "summary.json").read_text())
    return {name: stage["seconds"] for name, stage in summary["stages"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    best: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for processes in (1, 2):
                found = stages_of(processes, options, Path(folder) / f"{number}-{processes}")
                known = best.setdefault(processes, found)
                best[processes] = {name: min(known[name], found[name]) for name in found}
    with RESULTS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["stage", "seconds, 1 process", "seconds, 2 processes", "speedup"])
        for name in ("robust_training", "retraining"):
            one, two = best[1][name], best[2][name]
            row = [name, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}"]
            table.writerow(row)
            print("  ".join(row))


if __name__ == "__main__":
    main()
