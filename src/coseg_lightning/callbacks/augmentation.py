"""Detects random augmentation in a user's dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from coseg_lightning.callbacks.evaluation_pass import check_count
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import label_path, sample_name
from coseg_lightning.labels.updated import as_array, has_views, mask_and_id
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch, one_of
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
    own: list[OwnLabel] = []
    with isolate_rng(), compat.validating(trainer):  # these readings must not change training
        readings = _read_repeatedly(trainer, dataset, indices)
        if corrected:
            own = _labels_in_dataset(trainer, dataset, indices)
            _check_names(dataset, own, readings[: len(indices)])
    varying = set()
    for n, again in enumerate(readings):
        first = readings[n % len(indices)]
        if _differ(first.images, again.images):
            varying.add("image")
        if _differ(first.masks, again.masks):
            varying.add("mask")
    if "mask" in varying:
        return "mask"
    if corrected and not has_views(dataset):
        _check_masks(own, readings[: len(indices)])
        with isolate_rng(), compat.validating(trainer):
            _check_masks(own, _read_together(trainer, dataset, indices))
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
    with evaluating(module), _explained(dataset):
        for batch in loader:
            readings.append(module.as_trained(compat.prepare_batch(trainer, batch)))
            check_count(readings[-1], 1)
    return readings


def _read_together(trainer: pl.Trainer, dataset: Any, indices: list[int]) -> list[Batch]:
    """Read samples in one batch, as large as the loader's; none if their sizes do not allow it."""
    size = found_loader(trainer.train_dataloader).batch_size or 1
    module = trainer.lightning_module
    assert isinstance(module, SegmentationSteps)
    loader = reading(trainer.train_dataloader, dataset, [indices[:size]], workers=1)
    try:
        with evaluating(module):
            (batch,) = (module.as_trained(compat.prepare_batch(trainer, b)) for b in loader)
    except RuntimeError:  # images of several sizes, of which the sampler makes batches by size
        return []
    check_count(batch, len(indices[:size]))
    return [one_of(batch, n) for n in range(len(batch.masks))]


@contextmanager
def _explained(dataset: Any) -> Iterator[None]:
    """Explain an error of a dataset that is not read by whole numbers, such as torchgeo's."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        if f"{type(dataset).__module__}".startswith("torch."):
            raise
        raise InputError(
            f"A sample of the {type(dataset).__name__} could not be read as dataset[0] "
            f"({type(error).__name__}: {error}); a set that is read in another way needs a view "
            "that lists its samples: CorruptionRanking(path, dataset=...)."
        ) from error


# The name that a dataset gives to a sample and its mask; None if it does not know them.
OwnLabel = tuple[str | None, NDArray[Any] | None]


def _labels_in_dataset(
    trainer: pl.Trainer, dataset: Any, indices: list[int]
) -> list[OwnLabel]:
    """Read the names and masks that the dataset itself gives to samples."""
    loader = found_loader(trainer.train_dataloader)
    batches = [[index] for index in indices]
    labels = reading(loader, dataset, batches, workers=1, collate=_label_of_first)
    return list(DataLoader.__iter__(labels))  # not the iteration of a class of its own


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
                f"The batch calls a sample {name!r}, the dataset {own!r}; let the dataset give the "
                "id that the batch has, (image, mask, id), so that corrected masks find it again."
            )


def _check_masks(labels: list[OwnLabel], readings: list[Batch]) -> None:
    """Raise an `InputError` if the networks get other masks than the dataset has.

    Corrected masks take the place of the dataset's own, so that they must be alike.
    """
    for (_, own), reading_of_one in zip(labels, readings, strict=False):
        learnt = as_array(reading_of_one.masks[0].cpu())
        if own is not None and (own.shape != learnt.shape or (own != learnt).any()):
            raise InputError(
                f"The dataset has a mask of {_described(own)}, which becomes one of "
                f"{_described(learnt)} in the batch; corrected masks take the place of the "
                "dataset's own, so let the dataset resize, pad or renumber its masks, and not the "
                "collate function, a hook or the step."
            )


def _described(mask: NDArray[Any]) -> str:
    size = " x ".join(map(str, mask.shape))
    return f"{size} pixels and the classes {np.unique(mask)[:4].tolist()}"


def _differ(first: Tensor, second: Tensor) -> bool:
    return first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num())
