"""EnoughEpochs: the number of epochs follows from the number of training samples."""

import math

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.modules import compat

STEPS = 680  # of one network; half of them were too few to rank masks (docs/benchmarks.md)
MIN_EPOCHS = 10  # half of them before peers select, and some with the selection
MAX_EPOCHS = 200  # of a few samples, more teach nothing
UNKNOWN = 40  # epochs of a loader without a length


class EnoughEpochs(Callback):
    """Sets the number of epochs where the trainer has none, `Trainer(max_epochs=-1)`.

    Small networks on 137 samples in batches of 8 needed 40 epochs, 680 steps. So there are as many
    epochs as make that number of batches, at least 10 and at most 200; or, if the trainer has
    `max_steps`, as many as make those. The number of devices changes nothing. It must be among the
    first callbacks, since others read the number.

    Args:
        epochs: The number of epochs if the data has one of its own.
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
    """Return the number of epochs for a number of batches, None if it is unknown."""
    if batches is None:
        return UNKNOWN
    return min(max(math.ceil(STEPS / batches), MIN_EPOCHS), MAX_EPOCHS)


def batches_of(trainer: pl.Trainer) -> int | None:
    """Return the number of batches that all processes together train on in an epoch."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    loader = None if data is None else data.train_dataloader()
    try:
        batches = len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a stream, or no datamodule
        return None
    replicas = getattr(getattr(loader, "sampler", None), "num_replicas", 1)
    return max(1, compat.most_batches(trainer, batches) * int(replicas))
