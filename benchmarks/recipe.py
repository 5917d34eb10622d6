"""The whole recipe's wall time, by stage, against one plain training of the same epochs.

    python benchmarks/recipe.py                        # ResNet-18 U-Net, 96 x 96, CPU
    python benchmarks/recipe.py --accelerator gpu --size 256 --batch 32

Runs of the app on phantoms, one after the other in every round: one plain network; all of Co-Seg by
default, at noise levels 0.5 and 0.3; the same with one network and its mirror; and Co-Seg the usual
way (`step=joint`, selection in every batch, retraining from new weights). Beside them a loop in
plain PyTorch trains smp's network of the same kind in float32 for as many epochs, and does nothing
else. A figure is the median over the rounds of a run's time over the plain one's (`ratio`), or over
the float32 loop's (`to_float32`), in the same round, start and report included. What the file
`benchmarks/results/recipe.csv` holds of other sizes stays.
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
FLOAT32 = "a float32 loop"
COLUMNS = ["kind", "ratio", "lowest", "highest", "to_float32", "seconds", "robust_training"]
COLUMNS += ["retraining", "rest", "rounds", "size", "batch", "epochs", "samples"]
COLUMNS += ["accelerator", "precision", "threads"]


def composed(overrides: list[str]) -> Any:
    """The configuration of the app."""
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def float32_loop(overrides: list[str], folder: Path) -> dict[str, float]:
    """Train a network as a loop in plain PyTorch does; the seconds of its epochs alone."""
    import segmentation_models_pytorch as smp
    import torch
    from torch.nn import functional as F

    from coseg_lightning.app.build import make_data

    cfg = composed(overrides)
    device = "cuda" if cfg.trainer.accelerator == "gpu" else "cpu"
    data = make_data(cfg, folder)
    data.prepare_data()
    data.setup("fit")
    net = smp.Unet(
        cfg.model.encoder_name,
        encoder_weights=None,
        in_channels=cfg.data.in_channels,
        classes=cfg.data.classes,
    ).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(cfg.trainer.max_epochs):
        for batch in data.train_dataloader():
            image, mask = batch["image"].to(device), batch["mask"].to(device)
            optimizer.zero_grad()
            F.cross_entropy(net(image), mask, ignore_index=255).backward()
            optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    return {"seconds": took, "robust_training": 0.0, "retraining": took, "rest": 0.0}


def timed(overrides: list[str], folder: Path) -> dict[str, float]:
    """Run the app; the seconds that it took, and that its stages did."""
    import logging

    from coseg_lightning.run import run

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cfg = composed(overrides)
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
    from coseg_lightning.app.build import precision_of

    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in (FLOAT32, *KINDS)}
    with tempfile.TemporaryDirectory() as folder:
        timed([*common, *KINDS["plain"], "trainer.max_epochs=1"], Path(folder) / "warm-up")
        for number in range(options.rounds):
            for kind in found:
                measure = float32_loop if kind == FLOAT32 else timed
                overrides = [*common, *KINDS.get(kind, KINDS["plain"])]
                found[kind].append(measure(overrides, Path(folder) / f"{number}" / kind[-12:]))
                print(number, kind, found[kind][-1], flush=True)
    given = {n: getattr(options, n) for n in ("rounds", "size", "batch", "epochs", "samples")}
    given |= {
        "accelerator": options.accelerator,
        "precision": precision_of(composed(common).trainer),
    }
    given |= {"threads": os.environ["OMP_NUM_THREADS"]}
    rows = []
    if RESULTS.is_file():
        with RESULTS.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["size"] != str(options.size)]
    for kind, runs in found.items():
        ratios, to_float32 = (
            [own["seconds"] / base["seconds"] for own, base in zip(runs, found[of], strict=True)]
            for of in ("plain", FLOAT32)
        )
        seconds = {name: f"{statistics.median(r[name] for r in runs):.1f}" for name in runs[0]}
        row = {
            "kind": kind,
            "ratio": f"{statistics.median(ratios):.2f}",
            "lowest": f"{min(ratios):.2f}",
            "highest": f"{max(ratios):.2f}",
            "to_float32": f"{statistics.median(to_float32):.2f}",
            **seconds,
            **given,
        }
        rows.append(row)
        print("  ".join(str(row[name]) for name in COLUMNS[:9]), flush=True)
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
