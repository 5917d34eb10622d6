"""The metrics of every test image, and their means with intervals."""

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
from coseg_lightning.functional.equations import IGNORE_INDEX, class_logits, predicted_classes
from coseg_lightning.functional.surface import surface_distances
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.report.pairs import interval

DISTANCES = ("hd95", "surface_distance")
MEANS = ("dice", "iou", *DISTANCES)  # metrics that are averaged over the images

Row = dict[str, Any]


@torch.no_grad()
def image_rows(
    trainer: pl.Trainer,
    module: CoSegModule | SegmentationModule,
    samples: SampleDataset,
    batch_size: int,
    pixel_size: float | None = None,
) -> list[Row]:
    """Compute the metrics of each test image; of two peers the first is tested.

    Overlaps are measured on the images as the networks get them, and their means equal the
    results of `trainer.test`. Distances are measured between outlines at the stored mask's size.

    Args:
        trainer: The trainer, whose device and precision are used.
        module: The module with the network.
        samples: The test samples.
        batch_size: Images per batch.
        pixel_size: The side of a pixel of the stored masks; None for distances in pixels.

    Returns:
        One row per image, also if it was tested by tiles. `dice`, `iou`, `hd95` and
        `surface_distance` are means over the foreground classes in mask or prediction. With
        several classes, those of each class are added, and of a single one `dice_class_1`, which
        is None if neither has it. `id`, `accuracy` and `dice_background` complete the row. A mean
        distance is None if any of its classes has no distance, and all of an image are None if no
        pixel of its mask is labelled.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    precision.convert_module(module.to(device)).eval()
    rows: list[Row] = []
    counts: dict[str, NDArray[np.int64]] = {}
    for batch in DataLoader(samples, batch_size):
        with precision.forward_context():
            output = module(precision.convert_input(batch["image"].to(device)))
        logits = class_logits(output[0] if isinstance(module, CoSegModule) else output)
        probabilities = logits.float().softmax(dim=1).cpu()
        found, labels = predicted_classes(probabilities), batch["mask"]
        if samples.tiles is not None:
            for tile_id, predicted, label in zip(
                batch["id"], found.numpy(), labels.numpy(), strict=True
            ):
                image_id = samples.tiles.tiles[tile_id].image_id
                of_tile = class_counts(predicted, label, max(2, module.classes))
                counts[image_id] = counts.get(image_id, 0) + of_tile
            continue
        dice, present = dice_by_class(
            found,
            labels,
            max(2, module.classes),
            labels != module.ignore_index,
        )
        for n, sample_id in enumerate(batch["id"]):
            index = len(rows)
            stored = torch.from_numpy(samples.mask(index).astype(np.int64))
            shown = of_content(samples, index, probabilities[n : n + 1], stored.shape)
            larger = predicted_classes(resize_probabilities(shown, stored))[0]
            row = row_of(str(sample_id), dice[n], present[n], larger, stored, pixel_size or 1.0)
            there = labels[n] != module.ignore_index
            right = (found[n] == labels[n])[there]
            row["accuracy"] = float(right.float().mean()) if len(right) else None
            row["dice_background"] = float(dice[n][0]) if present[n][0] else None
            rows.append(row)
    module.to("cpu")
    return rows or [joined_row(image_id, of_image) for image_id, of_image in counts.items()]


def class_counts(predicted: NDArray[Any], label: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Count the labelled pixels of each class: in both masks, in the prediction, in the label.

    Shape:
        masks `(H, W)`; returns `(classes, 3)`.
    """
    there = label != IGNORE_INDEX
    predicted, label = predicted[there], label[there]
    both = predicted[predicted == label]
    parts = [np.bincount(part, minlength=classes)[:classes] for part in (both, predicted, label)]
    return np.stack(parts, axis=1).astype(np.int64)


def joined_row(image_id: str, counts: NDArray[np.int64]) -> Row:
    """Compute an image's metrics from the counts of its tiles; distances are not measured.

    Args:
        image_id: The id of the image.
        counts: The sum of `class_counts` over the image's tiles, `(K, 3)`.
    """
    overlap, predicted, label = counts.T
    size = predicted + label
    dice = [float(2 * a / b) if b else None for a, b in zip(overlap, size, strict=True)]
    known = [value for value in dice[1:] if value is not None]
    empty = 1.0 if label.sum() else None  # nothing but background, or nothing labelled
    row: Row = {
        "id": image_id,
        "dice": float(np.mean(known)) if known else empty,
        "iou": float(np.mean([d / (2 - d) for d in known])) if known else empty,
        **dict.fromkeys(DISTANCES),
    }
    if len(dice) > 2:
        for k, value in enumerate(dice[1:], start=1):
            iou = None if value is None else value / (2 - value)
            of_class = {"dice": value, "iou": iou, **dict.fromkeys(DISTANCES)}
            row |= {f"{name}_class_{k}": of_class[name] for name in MEANS}
    else:
        row["dice_class_1"] = dice[1]
    row["accuracy"] = float(overlap.sum() / label.sum()) if label.sum() else None
    row["dice_background"] = dice[0]
    return row


def figures_of_joined(rows: Sequence[Mapping[str, Any]], classes: int) -> dict[str, Any]:
    """Compute test metrics over whole images that were tested by tiles.

    Args:
        rows: The results of `joined_row`.
        classes: K, or 1 for the single output of a binary network.
    """
    dice, accuracy = (mean_of(rows, name) for name in ("dice", "accuracy"))
    return {"dice": dice, "accuracy": accuracy, "per_class_dice": per_class_dice(rows, classes)}


def per_class_dice(rows: Sequence[Mapping[str, Any]], classes: int) -> list[float | None]:
    """Return the mean Dice of each class, background first, over the images that have it.

    Args:
        rows: The rows of the images, see `image_rows`.
        classes: K, or 1 for the single output of a binary network.
    """
    foreground = [f"dice_class_{k}" for k in range(1, max(2, classes))]
    return [mean_of(rows, name) for name in ("dice_background", *foreground)]


def row_of(
    sample_id: str,
    dice: Tensor,
    present: Tensor,
    prediction: Tensor,
    label: Tensor,
    pixel_size: float,
) -> Row:
    """Return the metrics of one image; None where there is nothing to measure."""
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
        if name in DISTANCES and len(known) < len(found):  # a partial mean would mislead
            row[name] = None
        elif known:
            row[name] = float(np.mean(known))
        else:  # correctly empty: Dice 1; no distance if one of the two is empty
            row[name] = 1.0 if name in ("dice", "iou") else None
    if len(each) > 1:
        for k, values in enumerate(each, start=1):
            row |= {f"{name}_class_{k}": value for name, value in values.items()}
    else:
        row["dice_class_1"] = each[0]["dice"]
    return row if present.any() else {**dict.fromkeys(row), "id": sample_id}


def figures_of_images(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means over images, and intervals for the means over other such images.

    Returns:
        `images`, `iou`, `hd95`, `surface_distance`, `without_distance` and `interval`.
        `images` is the number of images with a labelled pixel, and `without_distance` of those
        without a distance. `interval` holds the 95 %
        bootstrap intervals of the means over images by name, for at least five images.
    """
    values = {name: _known(rows, name) for name in MEANS}
    means = {name: float(column.mean()) if len(column) else None for name, column in values.items()}
    intervals = {name: interval(column) for name, column in values.items()}
    return {
        "images": len(values["dice"]),
        **{name: mean for name, mean in means.items() if name != "dice"},
        "without_distance": len(values["dice"]) - len(values["hd95"]),
        "interval": {name: list(ends) for name, ends in intervals.items() if ends is not None},
    }


def mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of a metric over the images for which it is known; None if for none."""
    column = _known(rows, name)
    return float(column.mean()) if len(column) else None


def _known(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    known = [row[name] for row in rows if row.get(name) is not None]
    return np.array(known, dtype=float)
