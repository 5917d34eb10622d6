"""A pass over chosen samples in evaluation mode, distributed over the processes."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from tqdm import tqdm

from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.buffers import average_buffers, evaluating
from coseg_lightning.modules.loaders import drawable_indices, found_loader, inner_loader, reading
from coseg_lightning.modules.steps import SegmentationSteps


def plain_training_set(trainer: pl.Trainer) -> Any:
    """Return the training dataset, without augmentation if it has a view without.

    Samples that the sampler never draws are left out.

    Raises:
        InputError: If the trainer has no map-style training dataset.
    """
    dataset: Any = getattr(inner_loader(trainer.train_dataloader), "dataset", None)
    if not is_map_style(dataset):
        raise InputError(
            "The training dataloader has no map-style dataset to rank; give one: "
            "CorruptionRanking(path, dataset=...)."
        )
    loader = found_loader(trainer.train_dataloader)
    if loader.batch_sampler is None:
        raise InputError(
            "The training DataLoader has batch_size=None, so its dataset gives whole batches, whose "
            "samples cannot be told apart; let the dataset give one sample each, and the loader "
            "make batches of them."
        )
    indices = drawable_indices(loader)
    return plain(dataset) if indices is None else Drawable(plain(dataset), indices)


def has_plain_view(dataset: Any) -> bool:
    """Whether a dataset or subset has a view without augmentation."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        return any(map(has_plain_view, dataset.datasets))
    return callable(getattr(dataset, "plain", None))


def is_map_style(dataset: Any) -> bool:
    """Whether samples of a dataset can be read by their indices; some streams have a length too."""
    has_both = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return has_both and not isinstance(dataset, IterableDataset)


class Drawable(Subset[Any]):
    """The samples of a dataset that its sampler can draw."""


def plain(dataset: Any) -> Any:
    """Return a dataset, subset or several without augmentation, if it has a method `plain`."""
    if isinstance(dataset, Subset):
        return Subset(plain(dataset.dataset), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset(list(map(plain, dataset.datasets)))
    return dataset.plain() if callable(getattr(dataset, "plain", None)) else dataset


def stored_mask(dataset: Any, index: int) -> Any:
    """Return a sample's mask at its own resolution, or None if the dataset does not know it."""
    if isinstance(dataset, Subset):
        return stored_mask(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        first = dataset.cumulative_sizes[part - 1] if part else 0
        return stored_mask(dataset.datasets[part], index - first)
    return dataset.mask(index) if isinstance(dataset, SampleDataset) else None


def evaluation_pass(
    trainer: pl.Trainer,
    module: SegmentationSteps,
    dataset: Any,
    indices: Sequence[int],
    step: Callable[[list[int], Batch], None],
    description: str | None = None,
) -> None:
    """Call `step(indices, batch)` for this process's share of the samples, without gradients.

    Batches are formed before they are distributed. Each sample is thus always batched with the
    same others, and its logits are equal to the last bit for any number of processes and workers.

    Args:
        trainer: The trainer, whose training dataloader sets batch size and collate function.
        module: The module that is evaluated.
        dataset: The dataset.
        indices: The samples, by their indices in the dataset.
        step: Called with the indices of the samples in each batch, and the batch.
        description: Text of a progress bar that process 0 shows; without it there is no bar.
    """
    average_buffers(module)  # training may have been stopped within an epoch
    loader = trainer.train_dataloader
    # A batch sampler of somebody's own may know which samples have one size; others are read alone.
    size = found_loader(loader).batch_size or 1
    batches = [list(indices[i : i + size]) for i in range(0, len(indices), size)]
    share = batches[trainer.global_rank :: trainer.world_size]
    shown = trainer.global_rank == 0 and trainer.progress_bar_callback is not None and description
    forward_context = trainer.precision_plugin.forward_context
    # A module's batch hooks may augment while training, so they see a validation stage.
    with compat.validating(trainer), evaluating(module), torch.no_grad(), forward_context():
        progress = tqdm(
            reading(loader, dataset, share), total=len(share), desc=description, disable=not shown
        )
        for batch_indices, batch in zip(share, progress, strict=True):
            sample = module.as_trained(compat.prepare_batch(trainer, batch))
            check_count(sample, len(batch_indices))
            step(batch_indices, sample)


def check_count(sample: Batch, expected: int) -> None:
    """Raise an `InputError` unless a batch holds as many samples as were read for it."""
    if len(sample.masks) != expected:
        raise InputError(
            f"Of {expected} samples that were read, a batch of {len(sample.masks)} was made, so "
            "they cannot be told apart; let the collate function make one sample of each, and let "
            "the dataset leave out what cannot be used."
        )
