"""What a finished run says of itself: test figures, metrics.csv, memory."""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.samples import label_dice
from coseg_lightning.data.wrapped import Data
from coseg_lightning.files.atomic import replacing
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.segmentation import SegmentationModule


def test_figures(
    trainer: pl.Trainer, module: CoSegModule | SegmentationModule, data: Data, seed: int
) -> dict[str, Any]:
    """Test metrics; a pair of peers is tested by its first, chosen in advance."""
    peer = "_a" if isinstance(module, CoSegModule) else ""
    measured: Mapping[str, Any] = {}
    if data.has_test:
        pl.seed_everything(seed, verbose=False)
        measured = next(iter(trainer.test(module, datamodule=data, verbose=False)), {})

    def figure(name: str) -> float | None:
        value = float(measured.get(f"test/{name}", math.nan))
        return None if math.isnan(value) else value

    return {
        "dice": figure(f"dice{peer}"),
        "accuracy": figure(f"accuracy{peer}"),
        "per_class_dice": [figure(f"dice{peer}_class_{c}") for c in range(module.classes)],
    }


def training_label_dice(data: Data) -> dict[str, float | None]:
    """The mean Dice of the training labels to the original ones, if those are known."""
    means: list[float | None] = [None, None]
    if isinstance(data, CoSegDataModule):
        dice = label_dice(data.given_samples()), label_dice(data.relabelled_samples())
        means = [None if part is None else float(part.mean()) for part in dice]
    return {"label_dice_before": means[0], "label_dice_after": means[1]}


def peak_memory() -> int:
    """Bytes: what torch held at most of a GPU, or else this process of main memory; 0 unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merge_metrics(folder: Path, stages: Sequence[str]) -> None:
    """Write `metrics.csv`: the stages' own logs below each other, with a column `stage`.

    A stage that was resumed has several, and each begins where the one before is worth nothing.
    """
    rows: list[dict[str, str]] = []
    for stage in stages:
        of_stage: list[dict[str, str]] = []
        resumed = sorted(
            (folder / stage).glob("resumed_*"), key=lambda path: int(path.name.partition("_")[2])
        )
        for place in (folder / stage, *resumed):
            if not (place / "metrics.csv").is_file():
                continue
            with (place / "metrics.csv").open(newline="", encoding="utf-8") as file:
                read = list(csv.DictReader(file))
            first = min((int(row["epoch"]) for row in read if row.get("epoch")), default=None)
            if first is not None:
                of_stage = [row for row in of_stage if int(row.get("epoch") or 0) < first]
            of_stage += read
        rows += [{"stage": stage, **row} for row in of_stage]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["stage"]
    with (
        replacing(folder / "metrics.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
