"""The cost of the guard over the path to the data, and of a rehearsal, in training steps.

    python benchmarks/guard.py         # ResNet-18 U-Net, 96 x 96, batches of 8, 160 phantoms, CPU

In every round, in this order: an epoch of the peers without any ranking, whose median step is the
unit; the same with ranking and correction, of which the hooks that look at data are timed (before
training, and in each batch of the first epoch); and the rehearsal of all stages. The data is a
datamodule as another project has it, whose images wait in memory. Writes
`benchmarks/results/guard.csv`.
"""

import argparse
import csv
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from coseg_lightning import (
    CorruptionRanking,
    CoSegDataModule,
    CoSegModule,
    LabelCorrection,
    SegmentationModule,
    run_stages,
)
from coseg_lightning.callbacks.path_guard import PathGuard
from coseg_lightning.data.phantom import PhantomImages

RESULTS = Path(__file__).parent / "results" / "guard.csv"
WITHIN: list[float] = []  # the seconds of looking at each batch of the first epoch
EPOCHS = 40  # of the first command of README.md


class Data(pl.LightningDataModule):
    """Phantoms of another project: images, masks and numbers as ids, all in memory."""

    def __init__(self, count: int, size: int, batch: int) -> None:
        super().__init__()
        self.batch = batch
        ours = CoSegDataModule(
            PhantomImages("p", count, size, 0), image_size=size, in_channels=1, augmentation=None
        )
        samples = ours.samples("train")
        assert samples is not None
        images = torch.stack([samples[n]["image"] for n in range(count)])
        masks = torch.stack([samples[n]["mask"] for n in range(count)])
        self.samples = TensorDataset(images, masks, torch.arange(count))

    def train_dataloader(self) -> Any:
        """Shuffle the samples."""
        return DataLoader(self.samples, self.batch, shuffle=True)

    def test_dataloader(self) -> Any:
        """Test on the same ones."""
        return DataLoader(self.samples, self.batch)


class Over(Exception):  # noqa: N818 - it is no error
    """The rehearsal is over, and the run itself would begin."""


class Steps(pl.Callback):
    """The seconds of every training step, without what callbacks do before it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock; this callback comes last."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.start)


def timed(owner: Any, name: str, seconds: list[float]) -> None:
    """Time the calls of a method of an object."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(owner, name, call)


def peers() -> CoSegModule:
    """Two U-Nets."""
    options: dict[str, Any] = {"encoder_name": "resnet18", "in_channels": 1}
    return CoSegModule("unet", noise_level=0.3, **options)


def network() -> SegmentationModule:
    """One U-Net."""
    return SegmentationModule("unet", encoder_name="resnet18", in_channels=1)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One round: what the guard and a rehearsal cost, in training steps."""
    data = Data(options.images, options.size, options.batch)
    make = partial(
        pl.Trainer,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps()
        make(default_root_dir=folder, callbacks=[steps]).fit(peers(), datamodule=data)
        step = statistics.median(steps.seconds)

        before: list[float] = []
        WITHIN.clear()
        callbacks = [CorruptionRanking(f"{folder}/a.csv"), LabelCorrection(f"{folder}/labels")]
        for callback in callbacks:
            timed(callback, "on_train_epoch_start", before)
        timed(callbacks[1], "check_batch", WITHIN)
        make(default_root_dir=folder, callbacks=callbacks).fit(peers(), datamodule=data)

        rehearsal, start = 0.0, time.perf_counter()
        stopped = partial(stop_after_rehearsal, make)
        run = partial(run_stages, data, f"{folder}/run", peers=peers, network=network)
        try:
            run(trainer=stopped, rehearse=make)
        except Over:
            rehearsal = time.perf_counter() - start
    steps_an_epoch = options.images // options.batch
    return {
        "step_milliseconds": 1000 * step,
        "guard_before_training": sum(before) / step,
        "guard_in_first_epoch": sum(WITHIN) / step,
        "guard_an_epoch_of_40": (sum(before) + sum(WITHIN)) / step / EPOCHS,
        "rehearsal_seconds": rehearsal,
        "rehearsal_steps": rehearsal / step,
        "rehearsal_share_of_40_epochs": rehearsal / step / (1.5 * EPOCHS * steps_an_epoch),
    }


def stop_after_rehearsal(make: Callable[..., pl.Trainer], **options: Any) -> pl.Trainer:
    """Make a trainer that ends before its first fit: the rehearsal is over."""

    class Stop(pl.Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            raise Over

    return make(**{**options, "callbacks": [Stop(), *options["callbacks"]]})


def main() -> None:
    """Read the command line, measure, print and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    timed(PathGuard, "check", WITHIN)
    rounds = [measure(options) for _ in range(options.rounds)]
    rows = [
        {
            "figure": name,
            "median": f"{statistics.median(r[name] for r in rounds):.4g}",
            "lowest": f"{min(r[name] for r in rounds):.4g}",
            "highest": f"{max(r[name] for r in rounds):.4g}",
        }
        for name in rounds[0]
    ]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
