"""Detects random augmentation in a user's dataset."""

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from coseg_lightning.callbacks.evaluation_pass import check_count
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import label_path, sample_name
from coseg_lightning.labels.updated import mask_and_id
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.buffers import evaluating
from coseg_lightning.modules.loaders import found_loader, reading
from coseg_lightning.modules.steps import SegmentationSteps

REMEDY = (
    "augment behind the dataset that is corrected, or in a dataset with the methods plain(), "
    "itself without augmentation, and updated(layer), itself over corrected masks"
)


def detect_augmentation(
    trainer: pl.Trainer, dataset: Any, *, corrected: bool = False
) -> Literal["mask", "image"] | None:
    """Detect augmentation in a dataset or collate function by reading samples several times.

    Args:
        trainer: The trainer, whose training dataloader has the collate function.
        dataset: The dataset.
        corrected: Whether its masks will be corrected. If so, also checks before training that
            ids can name mask files, and that the dataset gives the same ids as the batches.

    Returns:
        `mask` if the masks differ between readings, `image` if only the images differ, else None.

    Raises:
        InputError: If masks will be corrected and an id is unsuitable.
    """
    if isinstance(dataset, SampleDataset):
        return None  # its samples never vary, and it checks its ids itself
    indices = sorted({round(n * (len(dataset) - 1) / 7) for n in range(8)})
    with isolate_rng(), compat.validating(trainer):  # these readings must not change training
        readings = _read_repeatedly(trainer, dataset, indices)
        if corrected:
            names = _names_in_dataset(trainer, dataset, indices)
            _check_names(dataset, names, readings[: len(indices)])
    varying = set()
    for n, again in enumerate(readings):
        first = readings[n % len(indices)]
        if _differ(first.images, again.images):
            varying.add("image")
        if _differ(first.masks, again.masks):
            varying.add("mask")
    if "mask" in varying:
        return "mask"
    return "image" if varying else None


def _read_repeatedly(trainer: pl.Trainer, dataset: Any, indices: list[int]) -> list[Batch]:
    """Read samples five times, each as a batch of one, as the networks would get them."""
    batches = [[index] for index in indices] * 5
    # They are read in a worker if there are any. Otherwise a file that the dataset opens here and
    # keeps open would be shared by all workers.
    loader = reading(trainer.train_dataloader, dataset, batches, workers=1)
    module = trainer.lightning_module
    assert isinstance(module, SegmentationSteps)
    readings = []
    with evaluating(module):
        for batch in loader:
            readings.append(module.as_trained(compat.prepare_batch(trainer, batch)))
            check_count(readings[-1], 1)
    return readings


def _names_in_dataset(trainer: pl.Trainer, dataset: Any, indices: list[int]) -> list[str | None]:
    """Read the names that the dataset itself gives to samples."""
    loader = found_loader(trainer.train_dataloader)
    batches = [[index] for index in indices]
    names = reading(loader, dataset, batches, workers=1, collate=_name_of_first)
    return list(DataLoader.__iter__(names))  # not the iteration of a class of its own


def _name_of_first(samples: list[Any]) -> str | None:
    try:
        _, sample_id = mask_and_id(samples[0])
    except InputError:
        return None
    return None if sample_id is None else sample_name(sample_id)


def _check_names(dataset: Any, names: list[str | None], readings: list[Batch]) -> None:
    for own, reading_of_one in zip(names, readings, strict=True):
        if reading_of_one.ids is None:
            continue
        name = sample_name(reading_of_one.ids[0])
        label_path(Path(), name)
        if name != own and not hasattr(dataset, "updated"):
            raise InputError(
                f"The batch calls a sample {name!r}, the dataset {own!r}; let the dataset give the "
                "id that the batch has, (image, mask, id), so that corrected masks find it again."
            )


def _differ(first: Tensor, second: Tensor) -> bool:
    return first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num())
