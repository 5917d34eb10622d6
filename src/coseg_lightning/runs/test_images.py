"""The figures of every test image, and their means with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from coseg_lightning.callbacks.evaluation_pass import of_content
from coseg_lightning.callbacks.label_correction import resize_probabilities
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.functional.dice import dice_by_class
from coseg_lightning.functional.equations import IGNORE_INDEX, class_logits
from coseg_lightning.functional.surface import surface_distances
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.report.pairs import interval

DISTANCES = ("hd95", "surface_distance")
MEANS = ("dice", "iou", *DISTANCES)  # those that are averaged over the images

Row = dict[str, Any]


@torch.no_grad()
def image_rows(
    trainer: pl.Trainer,
    module: CoSegModule | SegmentationModule,
    samples: SampleDataset,
    batch_size: int,
    pixel_size: float | None = None,
) -> list[Row]:
    """Compute the figures of each test image; of two peers the first is tested.

    Overlaps are those of the images as the networks get them, and their means are the figures of
    `trainer.test`. Distances are between outlines of the mask as it is stored.

    Args:
        trainer: The trainer, whose device and precision are used.
        module: The module with the network.
        samples: The test samples.
        batch_size: Images per batch.
        pixel_size: The side of a pixel of the stored masks; None for distances in pixels.

    Returns:
        One row per image: `id`, `dice`, `iou`, `hd95`, `surface_distance`, means over the
        foreground classes that are in mask or prediction, and the same of each class; `accuracy`
        and `dice_background`. Distances are None if any of these classes has none.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    precision.convert_module(module.to(device)).eval()
    rows: list[Row] = []
    for batch in DataLoader(samples, batch_size):
        with precision.forward_context():
            output = module(precision.convert_input(batch["image"].to(device)))
        logits = class_logits(output[0] if isinstance(module, CoSegModule) else output)
        probabilities = logits.float().softmax(dim=1).cpu()
        labels = batch["mask"]
        dice, present = dice_by_class(
            probabilities.argmax(dim=1),
            labels,
            max(2, module.classes),
            labels != module.ignore_index,
        )
        for n, sample_id in enumerate(batch["id"]):
            index = len(rows)
            stored = torch.from_numpy(samples.mask(index).astype(np.int64))
            shown = of_content(samples, index, probabilities[n : n + 1], stored.shape)
            larger = resize_probabilities(shown, stored).argmax(dim=1)[0]
            row = row_of(str(sample_id), dice[n], present[n], larger, stored, pixel_size or 1.0)
            there = labels[n] != module.ignore_index
            right = (probabilities[n].argmax(dim=0) == labels[n])[there]
            row["accuracy"] = float(right.float().mean()) if len(right) else None
            row["dice_background"] = float(dice[n][0]) if present[n][0] else None
            rows.append(row)
    module.to("cpu")
    return rows


def row_of(
    sample_id: str,
    dice: Tensor,
    present: Tensor,
    prediction: Tensor,
    label: Tensor,
    pixel_size: float,
) -> Row:
    """Return the figures of one image; None where there is nothing to measure."""
    each: list[dict[str, float | None]] = []
    there = (label != IGNORE_INDEX).numpy()
    for k in range(1, len(dice)):
        values: dict[str, float | None] = dict.fromkeys(MEANS)
        if present[k]:
            overlap = float(dice[k])
            values |= {"dice": overlap, "iou": overlap / (2 - overlap)}
        regions = [(mask.numpy() == k) & there for mask in (prediction, label)]
        if any(region.any() for region in regions):
            distances = surface_distances(regions[0], regions[1], pixel_size)
            if distances is not None:
                values |= {"hd95": distances.hd95, "surface_distance": distances.average}
        each.append(values)
    row: Row = {"id": sample_id}
    for name in MEANS:
        known = [value for values in each if (value := values[name]) is not None]
        found = [values for values in each if values["dice"] is not None]
        if name in DISTANCES and len(known) < len(found):  # one class alone would tell too little
            row[name] = None
        elif known:
            row[name] = float(np.mean(known))
        else:  # right about nothing: Dice 1; no distance where one of the two is empty
            row[name] = 1.0 if name in ("dice", "iou") else None
    if len(each) > 1:
        for k, values in enumerate(each, start=1):
            row |= {f"{name}_class_{k}": value for name, value in values.items()}
    return row


def figures_of_images(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means over images, and what they can be for other such images.

    Returns:
        `images`, `iou`, `hd95`, `surface_distance`, `without_distance` (images where a class is
        in the mask or in the prediction alone), and `interval`: 95 % bootstrap intervals of the
        means over images by name, for at least five images.
    """
    values = {name: _known(rows, name) for name in MEANS}
    means = {name: float(column.mean()) if len(column) else None for name, column in values.items()}
    intervals = {name: interval(column) for name, column in values.items()}
    return {
        "images": len(rows),
        **{name: mean for name, mean in means.items() if name != "dice"},
        "without_distance": len(rows) - len(values["hd95"]),
        "interval": {name: list(ends) for name, ends in intervals.items() if ends is not None},
    }


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows if row[name] is not None], dtype=float)
