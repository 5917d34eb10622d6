"""How well do scores rank bad masks, and how well is the noise level estimated?

    python benchmarks/ranking.py run --jobs 2     # trains what has no evidence yet
    python benchmarks/ranking.py scores           # the table of AUROC and Spearman correlation
    python benchmarks/ranking.py levels           # the table of estimated noise levels

Two classic U-Nets of 12 channels at 64 x 64, trained for 40 epochs (phantoms: 20) at once. The
evidence of each run (a few numbers per sample and epoch) is kept in `benchmarks/evidence/`, which
is not committed; `scores` and `levels` write their results to `benchmarks/results/`.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
EVIDENCE = Path(os.environ.get("COSEG_EVIDENCE", HERE / "evidence"))
DATA = Path(os.environ.get("COSEG_DATA", HERE.parents[1] / "shared" / "data"))
SIDE, CHANNELS, AVERAGED = 64, 12, 5
REAL = ["bubil-masks_crowd1", "bubil-masks_large", "bubil-masks_worst"]
PHANTOMS = ["phantom-type1", "phantom-type2"]
OTHERS = ["bubil-type1", "bubil-type2", "usgra-type1", "usgra-type2"]
LEVELS = [0.2, 0.4, 0.6]


def cells() -> list[tuple[str, float, int, str]]:
    """Set, noise level, seed, and the peers' selection; plain: they learn from all samples."""
    found = []
    for seed in range(3):
        for name in [*PHANTOMS, *REAL]:
            found += [(name, 0.5, seed, "plain"), (name, 0.5, seed, "relative")]
        found += [(name, 0.0, seed, "plain") for name in ("phantom-none", "bubil-none")]
        for level in LEVELS:
            found += [(name, level, seed, "plain") for name in [*PHANTOMS, *REAL]]
    for seed in range(3):
        found += [(name, 0.5, seed, "relative") for name in OTHERS]
        found += [(name, 0.5, seed, "eq1") for name in [*PHANTOMS, *REAL]]
    return found


def path_of(cell: tuple[str, float, int, str]) -> Path:
    return EVIDENCE / ("_".join(map(str, cell)) + ".npz")


def train(name: str, level: float, seed: int, training: str) -> None:
    """Train two peers and keep the evidence of the epochs before half and before the end."""
    warnings.filterwarnings("ignore")
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    from coseg_lightning import CoSegDataModule, CoSegModule
    from coseg_lightning.data.folder import folder_splits
    from coseg_lightning.data.phantom import phantom_splits
    from coseg_lightning.networks import build_network
    from coseg_lightning.noise import Annotator, BiasedAnnotator, BoundaryNoise, mask_dice
    from coseg_lightning.scores import evidence

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dataset, noise_name = name.split("-")
    classes = 3 if dataset == "usgra" else 2
    if dataset == "phantom":
        splits, epochs = phantom_splits(120, 0, 0), 20
    else:
        splits, epochs = folder_splits(DATA / dataset, classes=classes), 40
    if noise_name in ("type1", "none"):
        noise = BoundaryNoise()
    elif noise_name == "type2":
        noise = BiasedAnnotator()
    else:
        noise = Annotator(noise_name, root=DATA / dataset, classes=classes)

    with tempfile.TemporaryDirectory() as folder:
        data = CoSegDataModule(
            *(splits.train, None, None),
            image_size=SIDE,
            in_channels=1,
            seed=seed,
            noise=noise,
            noise_level=level,
            noise_folder=Path(folder) / "noise",
        )
        data.prepare_data()
        samples = data.given_samples()
        plain = samples.plain()
        pl.seed_everything(seed, verbose=False)
        nets = [
            build_network("unet_classic", in_channels=1, classes=classes, base_channels=CHANNELS)
            for _ in range(2)
        ]
        module = CoSegModule(
            *nets,
            classes=classes,
            noise_level=0.0 if training == "plain" else level,
            selection="eq1" if training == "eq1" else "relative",
        )
        kept: dict[int, list[np.ndarray]] = {}

        class Collect(pl.Callback):
            def on_train_epoch_end(self, trainer, module):
                epoch = trainer.current_epoch + 1
                if not (epochs // 2 - AVERAGED < epoch <= epochs // 2 or epoch > epochs - AVERAGED):
                    return
                module.eval()
                with torch.no_grad():
                    for batch in DataLoader(plain, batch_size=32):
                        tables = [evidence(x, batch["mask"]) for x in module(batch["image"])]
                        kept.setdefault(epoch, []).append(torch.stack(tables).numpy())
                module.train()

        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Collect()],
        )
        trainer.fit(module, data)
        truth = samples.truth
        dice = [mask_dice(plain.mask(i), truth.mask(i)) for i in range(len(plain))]
        EVIDENCE.mkdir(exist_ok=True, parents=True)
        np.savez_compressed(
            path_of((name, level, seed, training)),
            epochs=sorted(kept),
            tables=np.stack([np.concatenate(kept[e], axis=1) for e in sorted(kept)]),
            replaced=np.array([id in samples.replaced for id in samples.ids]),
            dice=dice,
        )


def run(jobs: int) -> None:
    left = [cell for cell in cells() if not path_of(cell).exists()]

    def one(cell: tuple[str, float, int, str]) -> None:
        command = [sys.executable, __file__, "train", *map(str, cell)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        print(" ".join(map(str, cell)), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, left))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "train", "scores", "levels"])
    parser.add_argument("cell", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    if given.what == "run":
        run(given.jobs)
    elif given.what == "train":
        name, level, seed, training = given.cell
        train(name, float(level), int(seed), training)


if __name__ == "__main__":
    main()
