"""One pass over chosen samples in evaluation mode, shared by the processes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat
from coseg_lightning.modules.buffers import average_buffers, evaluating


def plain_training_set(trainer: pl.Trainer) -> Any:
    """The training dataset without augmentation, as far as it can tell.

    Raises:
        InputError: If the trainer has no map-style training dataset.
    """
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise InputError(
            "The training dataloader has no map-style dataset to rank; give one: "
            "CorruptionRanking(path, dataset=...)."
        )
    return plain(dataset)


def plain(dataset: Any) -> Any:
    """The dataset, or a part of it, without this package's augmentation."""
    if isinstance(dataset, Subset):
        return Subset(plain(dataset.dataset), dataset.indices)
    return dataset.plain() if callable(getattr(dataset, "plain", None)) else dataset


def stored_mask(dataset: Any, index: int) -> Any:
    """A sample's mask at its own resolution, or None where the dataset cannot tell."""
    if isinstance(dataset, Subset):
        return stored_mask(dataset.dataset, dataset.indices[index])
    return dataset.mask(index) if isinstance(dataset, SampleDataset) else None


def evaluation_pass(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    dataset: Any,
    indices: Sequence[int],
    step: Callable[[list[int], Any], None],
    description: str | None = None,
) -> None:
    """Call `step(indices, batch)` for this process's share of the samples, without gradients.

    With a description, process 0 shows a progress bar.

    Batches are formed before they are dealt out, so that a sample meets the same companions, and
    its logits are the same to the last bit, for any number of processes and workers.
    """
    average_buffers(module)  # training may have been stopped within an epoch
    loader = trainer.train_dataloader
    size = getattr(loader, "batch_size", None) or 8
    batches = [list(indices[i : i + size]) for i in range(0, len(indices), size)]
    share = batches[trainer.global_rank :: trainer.world_size]
    clean = DataLoader(
        dataset,
        batch_sampler=share,
        num_workers=getattr(loader, "num_workers", 0),
        collate_fn=getattr(loader, "collate_fn", None),
    )
    shown = trainer.global_rank == 0 and trainer.progress_bar_callback is not None and description
    forward_context = trainer.precision_plugin.forward_context
    # A project's hooks may augment by the stage.
    with compat.validating(trainer), evaluating(module), torch.no_grad(), forward_context():
        progress = tqdm(clean, desc=description, disable=not shown)
        for positions, batch in zip(share, progress, strict=True):
            batch = trainer.precision_plugin.convert_input(batch)
            step(positions, trainer.strategy.batch_to_device(batch))
