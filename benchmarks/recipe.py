"""The whole recipe's wall time, by stage, against one plain training of the same epochs.

    python benchmarks/recipe.py                        # ResNet-18 U-Net, 96 x 96, CPU
    python benchmarks/recipe.py --accelerator gpu --size 256 --batch 32

Runs of the app on phantoms, one after the other in every round: one plain network; all of Co-Seg by
default, at noise levels 0.5 and 0.3; the same with one network and its mirror; and Co-Seg the usual
way (`step=joint`, selection in every batch, retraining from new weights). A figure is the median
over the rounds of a run's time over the plain one's in the same round, the report included. Writes
`benchmarks/results/recipe.csv`.
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "recipe.csv"
KINDS = {
    "plain": ["method=supervised", "nol=0.5"],
    "Co-Seg, NoL 0.5": ["nol=0.5"],
    "Co-Seg, NoL 0.3": ["nol=0.3"],
    "one network, NoL 0.5": ["nol=0.5", "model@peer_b=mirror"],
    "one network, NoL 0.3": ["nol=0.3", "model@peer_b=mirror"],
    "the usual way, NoL 0.5": [
        *("nol=0.5", "method.step=joint", "method.selection=eq1", "method.score=mean"),
        *("method.warm_start=false", "method.confidence=0"),
    ],
}
COLUMNS = ["kind", "ratio", "lowest", "highest", "seconds", "robust_training", "retraining"]
COLUMNS += ["rest", "rounds", "size", "batch", "accelerator", "threads"]


def timed(overrides: list[str], folder: Path) -> dict[str, float]:
    """Run the app; the seconds that it took, and that its stages did."""
    import logging

    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF
    from coseg_lightning.run import run

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides)
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout, sys.stderr = nowhere, nowhere
        try:
            start = time.perf_counter()
            summary = run(cfg, folder)
            took = time.perf_counter() - start
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    stages = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    last = stages.get("retraining", stages.get("supervised_training", 0.0))
    first = stages.get("robust_training", 0.0)
    return {
        "seconds": took,
        "robust_training": first,
        "retraining": last,
        "rest": took - first - last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--samples", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    common = ["model=unet", "noise=type2", f"data.image_size={options.size}"]
    common += [f"data.source.train={options.samples}", f"data.batch_size={options.batch}"]
    common += [f"trainer.max_epochs={options.epochs}", f"trainer.accelerator={options.accelerator}"]
    common += ["+trainer.enable_progress_bar=false"]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        timed([*common, *KINDS["plain"], "trainer.max_epochs=1"], Path(folder) / "warm-up")
        for number in range(options.rounds):
            for kind, overrides in KINDS.items():
                found[kind].append(
                    timed([*common, *overrides], Path(folder) / f"{number}" / kind[-12:])
                )
                print(number, kind, found[kind][-1], flush=True)
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for kind, runs in found.items():
            ratios = [
                own["seconds"] / plain["seconds"]
                for own, plain in zip(runs, found["plain"], strict=True)
            ]
            row = {
                "kind": kind,
                "ratio": f"{statistics.median(ratios):.2f}",
                "lowest": f"{min(ratios):.2f}",
                "highest": f"{max(ratios):.2f}",
                **{name: f"{statistics.median(r[name] for r in runs):.1f}" for name in runs[0]},
                **{n: getattr(options, n) for n in ("rounds", "size", "batch", "accelerator")},
                "threads": os.environ["OMP_NUM_THREADS"],
            }
            table.writerow(row)
            print("  ".join(str(row[name]) for name in COLUMNS[:8]), flush=True)


if __name__ == "__main__":
    main()
