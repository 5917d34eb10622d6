"""EpochSeeds: one seed per epoch, so that resumed training is reproducible."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.modules import compat
from coseg_lightning.seeding import derive_seed


class EpochSeeds(Callback):
    """Seeds every epoch separately, so that an epoch repeated after a resume is the same.

    Args:
        seed: The seed.
        first_epoch: The number of the first epoch.
    """

    def __init__(self, seed: int, first_epoch: int = 0) -> None:
        self.seed = seed
        self.first_epoch = first_epoch
        self._goes_on = False

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._goes_on = trainer.current_epoch > 0

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = self.first_epoch + trainer.current_epoch
        pl.seed_everything(derive_seed(self.seed, "epoch", epoch) % 2**32, verbose=False)
        if self._goes_on:
            compat.shuffle_again(trainer)
            self._goes_on = False
