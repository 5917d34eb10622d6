"""What are several masks of each image worth to a network? Test Dice by number and label.

    COSEG_DATA=/path/to/data python benchmarks/several.py run --seeds 0 1 2   # hours; restartable
    python benchmarks/several.py table

The training images of `bubil` have masks by seven slots of a crowd. A network (pretrained, 128 x
128, as those of `grid.py`'s grid `real`, 20 epochs) learns from those of one, three or seven slots,
fused by `data.label`, and is tested on the experts' masks. `experts` learns from the experts'
masks. `coseg` ranks and corrects the fused labels with the noise level estimated (`nol=auto`), and
has 20 epochs in each stage; `x2` is a plain network of as many steps, `gce` one with the loss of
Co-Seg's retraining. Slots are drawn by the seed.
Rows go to `results/several.csv`; cells that are there are not repeated.
"""

import argparse
import csv
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import grid

RESULTS = grid.RESULTS / "several.csv"
DATA = grid.DATA / "bubil"
# Method, slots, and data.label; in the order in which they are measured.
CELLS = (
    *(("supervised", 0, "experts"), ("supervised", 1, "one"), ("supervised", 7, "majority")),
    *(("supervised", 3, "majority"), ("supervised", 7, "staple"), ("supervised", 7, "soft")),
    *(("coseg", 7, "majority"), ("supervised x2", 7, "majority"), ("supervised", 3, "soft")),
    *(("coseg", 1, "one"), ("supervised x2", 1, "one"), ("coseg", 3, "majority")),
    *(("supervised x2", 3, "majority"), ("supervised x2", 0, "experts")),
    ("gce x2", 7, "majority"),
)
KEYS = ("method", "masks", "label", "seed")


def write_dataset(root: Path, masks: int, seed: int) -> None:
    """Copy the images, the experts' masks of test images, and the slots' of training images."""
    shutil.copytree(DATA / "images", root / "images")
    shutil.copy(DATA / "split.csv", root / "split.csv")
    (root / "masks").mkdir()
    with (DATA / "split.csv").open(newline="") as file:
        split = {row["id"]: row["split"] for row in csv.DictReader(file)}
    for sample_id, part in split.items():
        experts = DATA / "masks" / f"{sample_id}.png"
        if part != "train" or not masks:
            shutil.copy(experts, root / "masks")
            continue
        # Seldom are slots the same person on two images; each image draws its own.
        rng = np.random.default_rng([seed, *sample_id.encode()])
        for slot in sorted(rng.choice(7, masks, replace=False) + 1):
            name = f"{sample_id}__slot{slot}.png" if masks > 1 else f"{sample_id}.png"
            shutil.copy(DATA / f"masks_crowd{slot}" / f"{sample_id}.png", root / "masks" / name)


def measure(method: str, masks: int, label: str, seed: int) -> dict[str, object]:
    """Train and test one cell."""
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF
    from coseg_lightning.run import run

    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        root.mkdir()
        write_dataset(root, masks, seed)
        settings = [
            *grid.REAL,
            f"model.encoder_weights={grid.WEIGHTS}",
            *("data=folder", f"data.root={root}", f"seed={seed}", "rehearse=false"),
            f"method={method.partition(' ')[0]}",
            "nol=auto",
            "+trainer.enable_progress_bar=false",
        ]
        if method.endswith("x2"):
            settings.append("trainer.max_epochs=40")
        if masks > 1:
            settings.append(f"data.label={label}")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            summary = run(compose("config", settings), Path(name) / "run")
        correction = summary.get("correction") or {}
        return {
            **dict(zip(KEYS, (method, masks, label, seed), strict=True)),
            "dice": round(summary["test"]["dice"], 5),
            "agreement": summary.get("labels", {}).get("agreement"),
            "corrected": correction.get("corrected", 0),
        }


def done(path: Path = RESULTS) -> list[dict[str, str]]:
    """Read the rows that are there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table() -> None:
    """Print mean and standard deviation over seeds."""
    print("| trained by | masks an image | label | test Dice | seeds |\n" + "|---" * 5 + "|")
    rows = done()
    for cell in CELLS:
        found = [
            100 * float(row["dice"])
            for row in rows
            if (row["method"], int(row["masks"]), row["label"]) == cell
        ]
        if found:
            spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
            masks = cell[1] or "experts'"
            print(
                f"| {cell[0]} | {masks} | {cell[2]} | {np.mean(found):.1f}{spread} | {len(found)} |"
            )


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(grid.SEEDS))
    parser.add_argument("--cells", type=int, default=len(CELLS), help="only the first cells")
    options = parser.parse_args()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if options.what == "table":
        return table()
    for seed in options.seeds:
        for cell in CELLS[: options.cells]:
            keys = [*map(str, cell), str(seed)]
            if any([row[key] for key in KEYS] == keys for row in done()):
                continue
            row = measure(*cell, seed)
            grid.append(RESULTS, row)
            print(row, flush=True)
    return None


if __name__ == "__main__":
    main()
