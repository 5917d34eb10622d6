"""Three days of use, command by command: `python examples/three_days.py [FOLDER]`.

1. Somebody who has a folder and types `coseg check DIR` and `coseg run DIR`.
2. 300 masks with a crowd's errors, 30 of which somebody checked: which masks are bad, how good is
   the network, what is corrected?
3. A sweep for a paper's table, with intervals.

Pictures are phantoms of 64 x 64 pixels and networks are small, so that it takes minutes on two
cores. It stops at the first command that fails.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from coseg_lightning.data.phantom import phantom_splits

SMALL = ["model=unet_classic", "model.base_channels=8", "data.image_size=64", "data.in_channels=1"]


def coseg(*arguments: object) -> None:
    """Run a command as a user would, and show it."""
    words = list(map(str, arguments))
    print(f"\n$ coseg {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "coseg_lightning", *words], check=True)


def draw(root: Path, size: int) -> list[str]:
    """Write images and masks as somebody else named them, and return the ids."""
    phantoms, _, _ = phantom_splits(size, 0, 0, side=64)
    for name in ("imgs", "labels"):
        (root / name).mkdir(parents=True)
    for index, sample_id in enumerate(phantoms.ids):
        Image.fromarray(phantoms.image(index)).save(root / "imgs" / f"{sample_id}.png")
        mask = Image.fromarray(255 * phantoms.mask(index))
        mask.save(root / "labels" / f"{sample_id}.png")
    return list(phantoms.ids)


def first_run(folder: Path, epochs: list[str]) -> None:
    """The first five minutes of somebody who reads nothing."""
    draw(folder / "mine", 60)
    coseg("check", folder / "mine", *SMALL, *epochs)
    coseg("run", folder / "mine", *SMALL, *epochs, f"hydra.run.dir={folder / 'run1'}")
    coseg("predict", folder / "run1", folder / "mine" / "imgs", folder / "new", "overlays=true")


def crowd(folder: Path, epochs: list[str], masks: int = 300) -> None:
    """Masks of a crowd, and a tenth that somebody checked."""
    root, checked = folder / "crowd", masks // 10
    ids = draw(root, masks)
    with (root / "split.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "split", "trusted"])
        for n, sample_id in enumerate(ids):
            table.writerow([sample_id, "test" if n < checked else "train", int(n < checked)])
    drawn = root / "by_crowd"
    split = f"split={root / 'split.csv'}"
    coseg("corrupt", root / "labels", drawn, "noise=crowd", "nol=0.4", split)
    coseg("audit", root, "masks=by_crowd", "training=none", f"hydra.run.dir={folder / 'audit'}")
    run = folder / "run2"
    coseg("run", root, "masks=by_crowd", "nol=0.4", *SMALL, *epochs, f"hydra.run.dir={run}")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["test"]["masks"] == "trusted test masks"
    assert summary["test"]["images"] == checked
    coseg("apply", run, folder / "corrected")


def table(folder: Path, epochs: list[str]) -> None:
    """Two methods, three seeds, and whether their difference is more than chance."""
    sweep = folder / "sweep"
    data = ["data.source.train=40", "data.source.val=0", "data.source.test=40", *SMALL[:3]]
    methods = ["method=supervised,coseg", "noise=type2", "nol=0.4", "seed=0,1,2"]
    coseg("run", "-m", *methods, *data, *epochs, f"hydra.sweep.dir={sweep}")
    coseg("table", sweep, "format=markdown")
    coseg("table", sweep)
    assert (sweep / "table" / "pairs.csv").is_file()


def main(folder: Path, max_epochs: int = 10) -> None:
    """Go through all three days."""
    epochs = [f"trainer.max_epochs={max_epochs}"]
    for day in (first_run, crowd, table):
        day(folder, epochs)
    print(f"\nAll of it is in {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="coseg_")))
