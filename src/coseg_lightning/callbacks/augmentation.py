"""Finding augmentation in somebody's dataset."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, default_collate

from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import label_path, sample_name
from coseg_lightning.labels.updated import mask_and_id
from coseg_lightning.modules.batch import read_batch

REMEDY = (
    "augment behind the dataset that is corrected, or in a dataset with the methods plain(), "
    "itself without augmentation, and updated(layer), itself over corrected masks"
)


def detect_augmentation(
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
