"""All of Co-Seg from Python, on a folder with `images/` and `masks/`, without Hydra.

Run it with `python examples/folder_of_masks.py FOLDER`. Without a folder, it first draws one of
phantoms, some of which have bad masks.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from PIL import Image

from coseg_lightning import CoSegDataModule, CoSegModule, SegmentationModule, run_stages
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.phantom import phantom_splits
from coseg_lightning.noise import BiasedAnnotator
from coseg_lightning.noise.noisy_layer import choose_noisy
from coseg_lightning.report.console import show_summary
from coseg_lightning.report.page import write_report


def draw_folder(root: Path, size: int = 40) -> None:
    """Write phantoms, a quarter of them outlined by a careless annotator."""
    phantoms, _, _ = phantom_splits(size, 0, 0, side=128)
    bad = choose_noisy(phantoms.ids, 0.25, seed=0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index, sample_id in enumerate(phantoms.ids):
        mask = phantoms.mask(index)
        if sample_id in bad:
            mask = BiasedAnnotator()(mask, id=sample_id, seed=0)
        Image.fromarray(phantoms.image(index)).save(root / "images" / f"{sample_id}.png")
        Image.fromarray(255 * mask).save(root / "masks" / f"{sample_id}.png")


def main(root: Path | None = None, max_epochs: int = 8) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="coseg_"))
    if root is None:
        root = folder / "data"
        draw_folder(root)
    splits = folder_splits(root)
    data = CoSegDataModule(splits.train, splits.val, splits.test, image_size=64, in_channels=1)
    network = {"encoder_name": "resnet18", "in_channels": 1, "classes": 2}
    summary = run_stages(
        data,
        folder / "run",
        method="coseg",
        peers=partial(CoSegModule, "unet", noise_level=0.25, **network),
        network=partial(SegmentationModule, "unet", **network),
        trainer=partial(pl.Trainer, max_epochs=max_epochs, log_every_n_steps=1),
    )
    write_report(folder / "run", data)
    show_summary(folder / "run", summary)
    return folder / "run"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
