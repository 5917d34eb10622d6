"""Detects random augmentation in a user's dataset."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from coseg_lightning.callbacks.evaluation_pass import check_count, stored_sample
from coseg_lightning.callbacks.watched import WatchedSamples, is_reordered
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import label_path, sample_name
from coseg_lightning.labels.updated import as_array, mask_and_id
from coseg_lightning.labels.views import has_views
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.loaders import found_loader, reading

REMEDY = (
    "augment outside of this dataset, or give it two methods: plain(), which returns the dataset "
    "without augmentation, and updated(layer), which returns it with corrected masks"
)


def detect_augmentation(
    trainer: pl.Trainer, dataset: Any, watched: WatchedSamples, *, corrected: bool = False
) -> Literal["mask", "image"] | None:
    """Detect augmentation in a dataset or collate function from repeated readings of samples.

    Args:
        trainer: The trainer, whose training dataloader has the collate function.
        dataset: The dataset.
        watched: Samples of the dataset.
        corrected: Whether its masks will be corrected. If so, also check before training that
            ids can name mask files, and that the dataset gives the same ids and masks as the
            batches.

    Returns:
        `mask` if the masks differ between readings, `image` if only the images differ, else None.

    Raises:
        InputError: If masks will be corrected and an id or a mask is unsuitable.
    """
    readings = watched.alone(trainer)
    first = readings[0]
    for sample in (sample for reading_of_all in readings for sample in reading_of_all):
        check_count(sample, 1, patches=not corrected)
    own = _labels_in_dataset(trainer, dataset, watched.indices) if corrected else []
    if corrected:
        _check_names(dataset, own, first)
    pairs = [pair for again in readings[1:] for pair in zip(first, again, strict=True)]
    if any(_differ(one.masks, other.masks) for one, other in pairs):
        return "mask"
    if corrected and (not has_views(dataset) or stored_sample(dataset, 0) is not None):
        _check_masks(own, first)
        together = watched.together(trainer)[0]
        _check_order(first, together)
        _check_masks(own, together)
    return "image" if any(_differ(one.images, other.images) for one, other in pairs) else None


# The dataset's own name of a sample, and its mask; None if it does not know them.
OwnLabel = tuple[str | None, NDArray[Any] | None]


def _labels_in_dataset(trainer: pl.Trainer, dataset: Any, indices: list[int]) -> list[OwnLabel]:
    """Read the samples' names and masks from the dataset itself."""
    loader = found_loader(trainer.train_dataloader)
    batches = [[index] for index in indices]
    with isolate_rng():
        labels = reading(loader, dataset, batches, workers=1, collate=_label_of_first)
        return list(DataLoader.__iter__(labels))  # not the iteration of a subclass


def _label_of_first(samples: list[Any]) -> OwnLabel:
    try:
        key, sample_id = mask_and_id(samples[0])
    except InputError:
        return None, None
    return None if sample_id is None else sample_name(sample_id), as_array(samples[0][key])


def _check_names(dataset: Any, labels: list[OwnLabel], readings: list[Batch]) -> None:
    for (own, _), reading_of_one in zip(labels, readings, strict=True):
        if reading_of_one.ids is None:
            continue
        name = sample_name(reading_of_one.ids[0])
        label_path(Path(), name)
        if name != own and not has_views(dataset):
            raise InputError(
                f"A sample has the id {name!r} in the batch, but {own!r} in the dataset; let the "
                "dataset return (image, mask, id) with the batch's id, which corrected masks need."
            )


def _check_order(alone: list[Batch], together: list[Batch]) -> None:
    """Raise an `InputError` if samples change their places in a common batch."""

    def same(one: Batch, other: Batch) -> bool:
        if one.ids is None or other.ids is None:
            return torch.equal(one.masks, other.masks)
        return sample_name(one.ids[0]) == sample_name(other.ids[0])

    if is_reordered(alone, together, same):
        raise InputError(
            "Samples have another order in the batch than in the loader, so a collate function or "
            "a hook sorts or shuffles them; corrected masks are written by place, so keep the "
            "order where masks are to be corrected."
        )


def _check_masks(labels: list[OwnLabel], readings: list[Batch]) -> None:
    """Raise an `InputError` if the networks get masks that differ from the dataset's.

    Corrected masks replace the dataset's own, so they must agree.
    """
    for (_, own), reading_of_one in zip(labels, readings, strict=False):
        learnt = as_array(reading_of_one.masks[0].cpu())
        if own is not None and (own.shape != learnt.shape or (own != learnt).any()):
            raise InputError(
                f"A mask has {_described(own)} in the dataset, but {_described(learnt)} in the "
                "batch; corrected masks replace the dataset's own, so resize, pad or renumber "
                "masks in the dataset, not in the collate function, a hook or the step."
            )


def _described(mask: NDArray[Any]) -> str:
    size = " x ".join(map(str, mask.shape))
    return f"{size} pixels and the classes {np.unique(mask)[:4].tolist()}"


def _differ(first: Tensor, second: Tensor) -> bool:
    return first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num())
