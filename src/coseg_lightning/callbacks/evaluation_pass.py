"""One pass over chosen samples in evaluation mode, shared by the processes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from coseg_lightning.buffers import average_buffers
from coseg_lightning.errors import InputError


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
    return dataset.plain() if hasattr(dataset, "plain") else dataset


def what_varies(dataset: Any) -> Literal["mask", "image"] | None:
    """Find augmentation inside somebody's dataset: read a few samples several times.

    Returns:
        Whether their masks differ, or else their images; None where neither does, or where samples
        have a form that only the project's own collate function knows.
    """
    varies = set()
    with isolate_rng():  # training is the same as without this look
        for place in {0, len(dataset) // 3, 2 * len(dataset) // 3, len(dataset) - 1}:
            reads = [_parts(dataset[place]) for _ in range(4)]
            if None in reads:
                return None
            for name, (first, *others) in zip(
                ("image", "mask"), zip(*filter(None, reads), strict=True), strict=True
            ):
                if not all(np.array_equal(first, other, equal_nan=True) for other in others):
                    varies.add(name)
    return "mask" if "mask" in varies else "image" if varies else None


def _parts(sample: Any) -> tuple[Any, Any] | None:
    if isinstance(sample, Mapping) and "image" in sample and {"mask", "label"} & set(sample):
        parts = sample["image"], sample.get("mask", sample.get("label"))
    elif isinstance(sample, tuple | list) and len(sample) in (2, 3):
        parts = sample[0], sample[1]
    else:
        return None
    return np.asarray(parts[0]), np.asarray(parts[1])


def stored_mask(dataset: Any, index: int) -> Any:
    """A sample's mask at its own resolution, or None where the dataset cannot tell."""
    if isinstance(dataset, Subset):
        return stored_mask(dataset.dataset, dataset.indices[index])
    return dataset.mask(index) if hasattr(dataset, "mask") else None


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
    training = {part: part.training for part in module.modules()}  # some may be frozen
    module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            progress = tqdm(clean, desc=description, disable=not shown)
            for positions, batch in zip(share, progress, strict=True):
                batch = trainer.precision_plugin.convert_input(batch)
                step(positions, trainer.strategy.batch_to_device(batch))
    finally:
        for part, mode in training.items():
            part.training = mode


def gather_rows(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows of all processes, on all processes, however many each has; sorted."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, rows)
        rows = [row for part in gathered for row in part]
    return sorted(rows)
