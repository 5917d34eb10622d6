"""Detects random augmentation in a user's dataset."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import label_path, sample_name
from coseg_lightning.labels.updated import mask_and_id
from coseg_lightning.modules.batch import Batch, read_batch

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
    with isolate_rng():  # these readings must not change training
        named = _read_repeatedly(dataset, indices, trainer.train_dataloader)
    if corrected:
        _check_names(dataset, named[: len(indices)])
    readings = [reading for _, reading in named]
    varying = set()
    for n, reading in enumerate(readings):
        first = readings[n % len(indices)]
        if _differ(first.images, reading.images):
            varying.add("image")
        if _differ(first.masks, reading.masks):
            varying.add("mask")
    if "mask" in varying:
        return "mask"
    return "image" if varying else None


def _read_repeatedly(
    dataset: Any, indices: list[int], loader: Any
) -> list[tuple[str | None, Batch]]:
    """Read samples five times, each as a batch of one, with their names in the dataset."""
    batches = DataLoader(
        dataset,
        batch_sampler=[[index] for index in indices] * 5,
        # Read in a worker if there are any. Otherwise a file that the dataset opens here and keeps
        # open would be shared by all workers.
        num_workers=min(1, getattr(loader, "num_workers", 0)),
        collate_fn=partial(_with_name, getattr(loader, "collate_fn", None)),
    )
    return [(name, read_batch(batch)) for name, batch in batches]


def _with_name(collate: Any, samples: list[Any]) -> tuple[str | None, Any]:
    """Return a batch of one sample, and the sample's name in the dataset."""
    try:
        _, sample_id = mask_and_id(samples[0])
    except InputError:
        sample_id = None
    name = None if sample_id is None else sample_name(sample_id)
    return name, default_collate(samples) if collate is None else collate(samples)


def _check_names(dataset: Any, named: list[tuple[str | None, Batch]]) -> None:
    for own, reading in named:
        if reading.ids is None:
            continue
        name = sample_name(reading.ids[0])
        label_path(Path(), name)
        if name != own and not hasattr(dataset, "updated"):
            raise InputError(
                f"The batch calls a sample {name!r}, the dataset {own!r}; let the dataset give the "
                "id that the batch has, (image, mask, id), so that corrected masks find it again."
            )


def _differ(first: Tensor, second: Tensor) -> bool:
    return first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num())
