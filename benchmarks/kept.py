"""Stage 1 of the app's default, whose peers' predictions are kept for other scores to look at.

    python benchmarks/kept.py --jobs 2                       # about three hours on two cores
    python benchmarks/kept.py --jobs 2 --pretrained WEIGHTS  # 128 x 128, EfficientNet-Lite0
    COSEG_EVIDENCE=short python benchmarks/kept.py --jobs 2 --epochs 5

Half of the masks are replaced as in `grid.py`, or none (`bubil-none`), or as many as the name says
(`bubil-worst-0.3`). Predictions at half time and at the end lie in `benchmarks/evidence/kept/`
(`COSEG_EVIDENCE`), which is not committed, and are read by `ranking.py joint`, `votes.py`,
`told.py` and `taught.py`. WEIGHTS is what `lite0.py` writes.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grid
import numpy as np

KEPT = Path(os.environ.get("COSEG_EVIDENCE", Path(__file__).parent / "evidence")) / "kept"
# The score was made while looking at these sets.
SEEN = {
    "phantom-type1": grid.SETS["phantom-type1"],
    "phantom-type2": grid.SETS["phantom-type2"],
    "bubil-crowd1": grid.SETS["bubil-crowd1"],
    "bubil-crowd5": grid.HELD_OUT["bubil-crowd5"],
    "bubil-large": grid.SETS["bubil-large"],
    "bubil-worst": grid.SETS["bubil-worst"],
    "bubil-small": grid.HELD_OUT["bubil-small"],
    "bubil-type2": grid.HELD_OUT["bubil-type2"],
    "usgra-type1": grid.HELD_OUT["usgra-type1"],
    "usgra-type2": grid.SETS["usgra-type2"],
}
# Nobody had looked at these when the score was made.
UNSEEN = {
    "phantom-affine": ["noise=affine"],
    "bubil-crowd2": ["noise=annotator", "noise.masks=masks_crowd2"],
    "bubil-crowd6": ["noise=annotator", "noise.masks=masks_crowd6"],
    "bubil-affine": ["noise=affine"],
    "bubil-polygon": ["noise=polygon"],
    "usgra-affine": ["noise=affine"],
}
# Half of the clean masks count as noisy in the first ones.
OTHER_LEVELS = ["bubil-none", "usgra-none", "phantom-none"]
OTHER_LEVELS += [f"{name}-0.3" for name in grid.SETS]
REGIMES = ("small", "pretrained")
PRETRAINED = ["model=unet", "model.encoder_name=tu-tf_efficientnet_lite0", "data.image_size=128"]
PRETRAINED += ["data.normalization=image", "data.in_channels=3", "trainer.max_epochs=20"]
REPLACED = ("model", "data.image_size", "data.in_channels", "trainer.max_epochs")

Cell = tuple[str, str, int]  # the regime, the set, the seed


def path_of(cell: Cell, *, half: bool = False) -> Path:
    """Where the predictions of a cell lie, those at the end or at half time."""
    regime, name, seed = cell
    return KEPT / f"{regime}_{name}_{seed}{'_half' if half else ''}.npz"


def settings(cell: Cell, weights: str | None = None) -> list[str]:
    """The app's settings of a cell."""
    regime, full_name, seed = cell
    grid.HELD_OUT |= SEEN | UNSEEN
    name = "-".join(full_name.split("-")[:2])
    level = float(full_name.removeprefix(name)[1:] or 0.5)
    if name.endswith("-none"):
        made = [*grid.overrides((name, 0.0, "coseg", seed), large=False), "nol=0.5"]
    else:
        made = grid.overrides((name, level, "coseg", seed), large=False)
    made = [one for one in made if not one.startswith("trainer.precision")]  # the app's default
    if regime == "pretrained":
        made = [one for one in made if not one.startswith(REPLACED)] + PRETRAINED
        made.append(f"model.encoder_weights={weights}")
    return [*made, "rehearse=false", "+method.object=variants.KEPT"]


def train(cell: Cell, weights: str | None, epochs: int | None) -> None:
    """Train the peers of a cell, and keep their predictions."""
    warnings.filterwarnings("ignore")
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF
    from coseg_lightning.run import run

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = settings(cell, weights)
        cfg = compose("config", made + ([f"trainer.max_epochs={epochs}"] if epochs else []))
    with tempfile.TemporaryDirectory() as folder:
        run(cfg, Path(folder) / "run")
        KEPT.mkdir(parents=True, exist_ok=True)
        for half, name in ((True, "predictions_half.npz"), (False, "predictions.npz")):
            shutil.copyfile(Path(folder) / "run" / name, path_of(cell, half=half))


@dataclass(frozen=True)
class Judged:
    """What is known of the training set of a cell.

    Args:
        ids: The samples.
        peers: Each peer's evidence on them, with the outlines.
        replaced: `(N,)` whether a mask was replaced.
        dice: `(N,)` the Dice of each mask to the original one.
        images: Each image at its own size, as are `masks` and `truth`, the original masks.
        labels: `(N, S, S)` the masks as the networks get them.
        probabilities: `(N, 2, K, S, S)` the peers' predictions.
    """

    ids: Sequence[str]
    peers: list[Any]
    replaced: Any
    dice: Any
    images: list[Any]
    masks: list[Any]
    truth: list[Any]
    labels: Any
    probabilities: Any


def judged(cell: Cell, *, half: bool = False) -> Judged:
    """Compute the evidence of the kept predictions, as the ranking of stage 1 does."""
    import torch
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.build import make_data
    from coseg_lightning.app.command import CONF
    from coseg_lightning.data.samples import label_dice

    torch.set_num_threads(1)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", settings(cell))
    with np.load(path_of(cell, half=half)) as file, tempfile.TemporaryDirectory() as folder:
        data = make_data(cfg, Path(folder))
        data.prepare_data()
        samples = data.given_samples().plain()
        assert list(file["ids"]) == list(samples.ids)
        foreground = torch.from_numpy(file["foreground"]).float().div(4).sigmoid()
        background = (1 - foreground.sum(dim=2, keepdim=True)).clamp_min(1e-4)
        peers = torch.cat([background, foreground], dim=2)
        peers = peers / peers.sum(dim=2, keepdim=True)
        every = range(len(samples))
        images = [samples.dataset.image(n) for n in every]
        masks = [samples.mask(n) for n in every]
        original = samples.truth
        truth = masks if original is None else [original.mask(n) for n in every]
        labels = torch.stack([samples[n]["mask"] for n in every])
        replaced = np.array([sample_id in (samples.replaced or ()) for sample_id in samples.ids])
        dice = np.ones(len(samples)) if original is None else label_dice(samples)
    evidence = evidence_of(images, masks, labels, peers)
    return Judged(list(samples.ids), evidence, replaced, dice, images, masks, truth, labels, peers)


def evidence_of(images: list[Any], masks: list[Any], labels: Any, peers: Any) -> list[Any]:
    """Each peer's evidence on the masks, with the outlines; see `Judged`."""
    from coseg_lightning.callbacks.outline_record import predicted_mask
    from coseg_lightning.ranking.evidence import Evidence, compute_evidence
    from coseg_lightning.ranking.outline import outline_evidence

    classes, tables, outlines = peers.shape[2], [], []
    for image, mask, label, probabilities in zip(images, masks, labels, peers, strict=True):
        predicted = predicted_mask(probabilities.mean(dim=0), mask.shape)
        pair = [outline_evidence(image, m, classes=classes) for m in (mask, predicted)]
        outlines.append(np.concatenate(pair, axis=1))
        rows = [compute_evidence(p[None].log(), label[None])[0].numpy() for p in probabilities]
        tables.append(np.stack(rows))
    table = np.stack(tables)
    evidence = [Evidence.from_table(table[:, peer]) for peer in (0, 1)]
    return [replace(peer, outline=np.stack(outlines)) for peer in evidence]


def traits(image: Any) -> Any:
    """`(5,)` brightness, contrast, fine, middle and coarse structure of an image."""
    import cv2

    grey = np.atleast_3d(image).astype(np.float32).mean(axis=2)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.5)
    coarse = cv2.GaussianBlur(grey, (0, 0), max(grey.shape) / 16)
    slope = np.hypot(*np.gradient(smooth)).mean()
    spread = grey.std() + 1e-6
    parts = np.array([np.abs(grey - smooth).mean(), slope, coarse.std()]) / spread
    return np.array([grey.mean(), np.log(spread), *np.log(parts + 1e-3)])


def main() -> None:
    """Train what has not been kept yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--pretrained", metavar="WEIGHTS")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--cell", nargs=2)
    given = parser.parse_args()
    regime = REGIMES[given.pretrained is not None]
    if given.cell:
        train((regime, given.cell[0], int(given.cell[1])), given.pretrained, given.epochs)
        return
    names = [*SEEN, *UNSEEN] + ([] if given.pretrained else OTHER_LEVELS)
    cells: list[Cell] = [(regime, name, seed) for seed in grid.SEEDS for name in names]

    def one(cell: Cell) -> None:
        command = [sys.executable, __file__, "--cell", cell[1], str(cell[2])]
        command += ["--pretrained", given.pretrained] if given.pretrained else []
        command += ["--epochs", str(given.epochs)] if given.epochs else []
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(*cell, flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, [cell for cell in cells if not path_of(cell).exists()]))


if __name__ == "__main__":
    main()
