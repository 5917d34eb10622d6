"""One pass over chosen samples in evaluation mode, shared by the processes."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm import tqdm

from coseg_lightning.buffers import average_buffers, evaluating
from coseg_lightning.data.samples import SampleDataset, read_batch
from coseg_lightning.errors import InputError
from coseg_lightning.labels import label_path, mask_and_id, sample_name

MOST_WAITING = 8  # masks to be written, which may be large


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


REMEDY = (
    "augment behind the dataset that is corrected, or in a dataset with the methods plain(), "
    "itself without augmentation, and updated(layer), itself over corrected masks"
)


def what_varies(
    trainer: pl.Trainer, dataset: Any, *, corrected: bool = False
) -> Literal["mask", "image"] | None:
    """Find augmentation in somebody's dataset or collate function: read samples several times.

    If its masks are to be corrected, also finds, before training and not after it, ids that cannot
    name a mask's file, and ids that only the collate function gives.

    Returns:
        Whether their masks differ, or else their images; None where neither does.
    """
    if isinstance(dataset, SampleDataset):
        return None  # the same at every reading, and its ids are checked when it is made
    loader = trainer.train_dataloader
    places = sorted({round(n * (len(dataset) - 1) / 7) for n in range(8)})
    with isolate_rng():  # training is the same as without this look
        again = DataLoader(
            dataset,
            batch_sampler=[[place] for place in places] * 5,
            # In a worker, if there are any: a file that a dataset opens here, and keeps open, would
            # be shared by all of them.
            num_workers=min(1, getattr(loader, "num_workers", 0)),
            collate_fn=partial(_with_name, getattr(loader, "collate_fn", None)),
        )
        named = [(own, read_batch(batch)) for own, batch in again]
    reads = [read for _, read in named]
    for own, read in named[: len(places)] if corrected else ():
        if read.ids is None:
            continue
        name = sample_name(read.ids[0])
        label_path(Path(), name)
        if name != own and not hasattr(dataset, "updated"):
            raise InputError(
                f"The batch calls a sample {name!r}, the dataset {own!r}; let the dataset give the "
                "id that the batch has, (image, mask, id), so that corrected masks find it again."
            )
    varies = set()
    for n, read in enumerate(reads):
        first = reads[n % len(places)]
        for name, one, other in (
            ("image", first.images, read.images),
            ("mask", first.masks, read.masks),
        ):
            if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
                varies.add(name)
    return "mask" if "mask" in varies else "image" if varies else None


def _with_name(collate: Any, samples: list[Any]) -> tuple[str | None, Any]:
    """A batch of one sample, and what the dataset itself calls it."""
    try:
        _, id = mask_and_id(samples[0])
    except InputError:
        id = None
    name = None if id is None else sample_name(id)
    return name, default_collate(samples) if collate is None else collate(samples)


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
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING  # a project's hooks may augment by the stage
    try:
        with evaluating(module), torch.no_grad(), trainer.precision_plugin.forward_context():
            progress = tqdm(clean, desc=description, disable=not shown)
            for positions, batch in zip(share, progress, strict=True):
                batch = trainer.precision_plugin.convert_input(batch)
                step(positions, trainer.strategy.batch_to_device(batch))
    finally:
        trainer.state.stage = stage


@contextmanager
def beside() -> Iterator[Callable[..., None]]:
    """Gives `do(function, *arguments)`, which is done in a thread, beside what goes on.

    If too much is waiting, `do` waits too. What was raised there is raised here.
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=2) as threads:

        def do(function: Callable[..., Any], *arguments: Any) -> None:
            waiting.append(threads.submit(function, *arguments))
            if len(waiting) > MOST_WAITING:
                waiting.popleft().result()

        yield do
        for future in waiting:
            future.result()


def gather_rows(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows of all processes, on all processes, however many each has; sorted."""
    return sorted(row for part in gather_objects(rows) for row in part)


def gather_objects(part: Any) -> list[Any]:
    """What each process has, on all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, part)
    return gathered
