"""EnoughEpochs: chooses the number of epochs from the number of training samples."""

import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.modules import compat
from coseg_lightning.modules.loaders import inner_loader

STEPS = 680  # of one network; half as many were too few to rank (docs/results/benchmarks.md)
MIN_EPOCHS = 10  # half of them pass before peers select, and selection needs some too
MAX_EPOCHS = 200  # with few samples, more epochs do not help
UNKNOWN = 40  # epochs for a loader without a length


class EnoughEpochs(Callback):
    """Sets the number of epochs if the trainer has none, as in `Trainer(max_epochs=-1)`.

    Small networks on 137 samples in batches of 8 needed 40 epochs, which is 680 steps. The number
    of epochs is chosen to give 680 batches, but at least 10 and at most 200. If the trainer has
    `max_steps`, it is chosen to give these steps instead. The number of devices does not matter.
    This must be among the first callbacks, since others read the number.

    Args:
        epochs: The number of epochs if the dataset prescribes one.
    """

    def __init__(self, epochs: int | None = None) -> None:
        self.epochs = epochs

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.max_epochs != -1:
            return
        batches = batches_of(trainer)
        epochs = self.epochs or enough_epochs(batches)
        if trainer.max_steps > 0 and batches is not None:
            epochs = math.ceil(trainer.max_steps * compat.accumulation(trainer) / batches)
        compat.set_max_epochs(trainer, epochs)


def enough_epochs(batches: int | None) -> int:
    """Return the number of epochs for a number of batches, which is None if unknown."""
    if batches is None:
        return UNKNOWN
    return min(max(math.ceil(STEPS / batches), MIN_EPOCHS), MAX_EPOCHS)


def batches_of(trainer: pl.Trainer) -> int | None:
    """Return the number of batches per epoch, as for a single process."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    loader = None if data is None else data.train_dataloader()
    inner = inner_loader(loader)
    batches = _length(loader) or _length(inner)  # Lightning's CombinedLoader has no length
    if batches is None:
        return None
    sampler: Any = getattr(inner, "sampler", None)
    replicas, size = int(getattr(sampler, "num_replicas", 1)), getattr(inner, "batch_size", None)
    taken = compat.most_batches(trainer, batches)
    if replicas > 1 and size and taken == batches:  # samples dropped per process count once
        return max(1, int(len(sampler.dataset) // size))
    return max(1, taken * replicas)


def _length(loader: Any) -> int | None:
    """Return a loader's number of batches, or None if it has no length."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError, RuntimeError):
        return None
