"""Writes a finished run's test metrics, summary.json, metrics.csv and network."""

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from coseg_lightning.callbacks.best_network import METRIC
from coseg_lightning.data.annotators import label_facts
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.instructions import preparation_in_words
from coseg_lightning.data.samples import label_dice
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.csv import write_table
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.networks.build import save_network
from coseg_lightning.networks.forward import any_size, output_stride
from coseg_lightning.report.model_card import Inputs, NetworkFile, model_card
from coseg_lightning.report.pairs import gain
from coseg_lightning.report.results import MASKS
from coseg_lightning.runs.finished import write_inputs
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.tested import figures_of_images, figures_of_joined, image_rows
from coseg_lightning.runs.wrapped import Data


def write_summary(
    runner: StageRunner,
    module: CoSegModule | SegmentationModule,
    data: Data,
    config: Mapping[str, Any],
    **facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Test the final network, and save it with `metrics.csv` and `summary.json`.

    Args:
        runner: The run's stage runner.
        module: The module with the network; of two peers always the first is used.
        data: The run's data.
        config: The values that identify the run.
        facts: Further parts of the summary, by name.

    Returns:
        The content of `summary.json`.
    """
    folder, tester = runner.folder.path, runner.tester()
    with runner.timed("test"):
        test = test_figures(tester, module, data, runner.seed)
        test |= images_tested(tester, module, data, folder)
    summary = {
        "config": config,
        "test": test,
        "samples": data.sizes if isinstance(data, CoSegDataModule) else {},
        **(label_facts(data) if isinstance(data, CoSegDataModule) else {}),
        **facts,
        "stages": runner.stages,
        "peak_memory_bytes": peak_memory(),
    }
    if tester.is_global_zero:
        gains = {
            name: list(ends)
            for name in facts.get("baselines", {})
            if (ends := gain(folder, folder / f"{name}_baseline")) is not None
        }
        if gains:
            summary["gain_intervals"] = gains
        network = module.net_a if isinstance(module, CoSegModule) else module.net
        save_network(network, folder / "model", card=card_of(summary, network, data))
        write_inputs(folder, data.file_digests if isinstance(data, CoSegDataModule) else {})
        merge_metrics(folder, [name for name in runner.stages if name != "test"])
        write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    tester.strategy.barrier("run finished")
    return summary


def card_of(summary: Mapping[str, Any], network: nn.Module, data: Data) -> str:
    """Write the model card of a run's network.

    Args:
        summary: The run's summary.
        network: The network.
        data: The run's data.
    """
    inputs = outputs = None
    if isinstance(data, CoSegDataModule):
        canvas = Canvas.of(data.image_size, keeps_shape=data.keep_shape)
        tiles = data.tiles
        settings = summary["config"].get("data") or {}
        preparation = preparation_in_words(
            canvas,
            data.in_channels,
            data.normalization,
            tile=None if tiles is None else tiles.tile,
            overlap=0 if tiles is None else tiles.overlap,
            bands=settings.get("bands"),
            nodata=settings.get("nodata"),
        )
        inputs = Inputs(data.in_channels, canvas.height, canvas.width, preparation)
        like = next(network.parameters(), torch.zeros(()))
        images = like.new_zeros(1, data.in_channels, canvas.height, canvas.width)
        with torch.no_grad():
            outputs = int(any_size(network.eval(), images).shape[1])
    is_smp = isinstance(network, smp.base.SegmentationModel)
    kind, name = "smp" if is_smp else "weights", type(network).__name__
    return model_card(
        summary, NetworkFile("model", kind, outputs, output_stride(network), name), inputs
    )


def test_figures(
    trainer: pl.Trainer, module: CoSegModule | SegmentationModule, data: Data, seed: int
) -> dict[str, Any]:
    """Compute the test metrics; of two peers always the first is tested.

    Returns:
        The metrics of the test loader. If there are several, those of the first, with those of
        each loader under `dataloaders`.
    """
    peer = "_a" if isinstance(module, CoSegModule) else ""
    measured: Mapping[str, Any] = {}
    loaders = 1
    if data.has_test:
        pl.seed_everything(seed, verbose=False)
        measured = next(iter(trainer.test(module, datamodule=data, verbose=False)), {})
        loaders = len(trainer.num_test_batches)
        if not any(name.startswith(f"test/dice{peer}") for name in measured):
            why = "no test batch was read"
            if sum(trainer.num_test_batches):
                why = f"{type(module).__name__}.test_step measures nothing"
            rank_zero_warn(
                f"The run has no test figures, since {why}; leave out limit_test_batches=0, or "
                "call super().test_step(batch, batch_idx)."
            )

    def figure(name: str) -> float | None:
        value = float(measured.get(f"test/{name}", math.nan))
        return None if math.isnan(value) else value

    def figures(suffix: str = "") -> dict[str, Any]:
        per_class = [f"dice{peer}_class_{class_id}{suffix}" for class_id in range(module.classes)]
        return {
            "dice": figure(f"dice{peer}{suffix}"),
            "accuracy": figure(f"accuracy{peer}{suffix}"),
            "per_class_dice": [figure(name) for name in per_class],
        }

    if loaders <= 1:
        return figures()
    each = [figures(f"/dataloader_idx_{index}") for index in range(loaders)]
    return {**each[0], "dataloaders": each}


def images_tested(
    trainer: pl.Trainer, module: CoSegModule | SegmentationModule, data: Data, folder: Path
) -> dict[str, Any]:
    """Write `test.csv` with the metrics of each test image.

    Returns:
        The kind of the test masks, and means over the images, see `figures_of_images`. Images of
        a user's own datamodule are not measured one by one.
    """
    if not data.has_test:
        return {}
    if not isinstance(data, CoSegDataModule):
        return {"masks": MASKS[None]}
    found: dict[str, Any] = {"masks": MASKS[data.trusted_test]}
    if trainer.is_global_zero:  # on one process, so that no image counts twice
        samples = data.samples("test")
        assert samples is not None
        rows = image_rows(trainer, module, samples, data.batch_size, data.pixel_size)
        write_table(folder / "test.csv", rows)
        found |= {**figures_of_images(rows), "unit": data.unit}
        if data.tiles is not None:
            found |= figures_of_joined(rows, module.classes) | {"without_distance": 0}
    return dict(trainer.strategy.broadcast(found))


def objective(
    folder: Path, summary: Mapping[str, Any], name: str, *, required: bool = True
) -> float | None:
    """Find the metric of a finished run that a sweep optimises.

    Args:
        folder: The run's folder.
        summary: The content of its `summary.json`.
        name: A metric of the test images, such as `test/dice`, or one that the last stage logged,
            such as `val/dice`. For a pair of peers the latter is the first peer's. It is that of
            the epoch whose network was kept.
        required: Whether a missing metric is an error.

    Raises:
        InputError: If the metric is required and missing.
    """
    kind, _, metric = name.partition("/")
    tested = summary["test"]
    of_classes = {f"dice_class_{n}": d for n, d in enumerate(tested.get("per_class_dice") or [])}
    if kind == "test" and (figure := tested.get(metric, of_classes.get(metric))) is not None:
        return float(figure)
    *_, last = [stage for stage in summary["stages"] if stage != "test"]
    rows = metrics_of(folder / last)
    kept = summary["stages"][last]
    if name == METRIC and "best_val_dice" in kept:
        return float(kept["best_val_dice"])
    if "best_epoch" in kept:  # of which later ones were not kept
        rows = [row for row in rows if int(row.get("epoch") or 0) < kept["best_epoch"]]
    for column in (name, f"{name}_a", name.replace("_class", "_a_class")):
        values = [row[column] for row in rows if row.get(column)]
        if values:
            return float(values[-1])
    if not required:
        return None
    known = sorted({column for row in rows for column in row if "/" in column})
    raise InputError(
        f"objective={name}: the stage {last} logged no such metric; use one of {', '.join(known)}."
    )


def training_label_dice(data: Data) -> dict[str, float | None]:
    """Compute the mean Dice of the training labels to the original ones, if known."""
    means: list[float | None] = [None, None]
    if isinstance(data, CoSegDataModule):
        dice = label_dice(data.given_samples()), label_dice(data.relabelled_samples())
        means = [None if part is None else float(part.mean()) for part in dice]
    return {"label_dice_before": means[0], "label_dice_after": means[1]}


def peak_memory() -> int:
    """Return torch's peak GPU memory or else the process's peak memory, in bytes; 0 if unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merge_metrics(folder: Path, stages: Sequence[str]) -> None:
    """Write `metrics.csv`: the logs of all stages in one table, with a column `stage`."""
    rows = [{"stage": stage, **row} for stage in stages for row in metrics_of(folder / stage)]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["stage"]
    with (
        replacing(folder / "metrics.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)


def metrics_of(stage_folder: Path) -> list[dict[str, str]]:
    """Read the log of a stage.

    A resumed stage has several logs. Each replaces the epochs of earlier logs that it repeats.
    """
    resumed = sorted(
        stage_folder.glob("resumed_*"), key=lambda path: int(path.name.partition("_")[2])
    )
    logs = [folder / "metrics.csv" for folder in (stage_folder, *resumed)]
    rows: list[dict[str, str]] = []
    for path in (path for path in logs if path.is_file()):
        with path.open(newline="", encoding="utf-8") as file:
            new = list(csv.DictReader(file))
        first = min((int(row["epoch"]) for row in new if row.get("epoch")), default=None)
        if first is not None:
            rows = [row for row in rows if int(row.get("epoch") or 0) < first]
        rows += new
    return rows
