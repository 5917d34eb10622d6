"""NoiseLevelEstimation: the noise level, estimated when half of stage 1 is over."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.callbacks.averaged_weights import averaged
from coseg_lightning.callbacks.evaluation_pass import plain_training_set
from coseg_lightning.callbacks.evidence_sum import EvidenceSum
from coseg_lightning.errors import InputError
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.evidence import Evidence


class NoiseLevelEstimation(Callback):
    """Sets the noise level of `CoSegModule(noise_level="auto")` after half of the epochs.

    Until then the peers learn from all samples; from then on they select, if the level could be
    told. The estimate, `module.noise_estimate`, rests on passes in evaluation mode at the end of
    the epochs before, as `CorruptionRanking`'s scores do.

    Args:
        dataset: What to judge; default the training dataset. Give a view without augmentation if
            your dataset augments its samples itself.
        epochs: How many epochs are averaged.

    Raises:
        InputError: At the start of training, if the module's noise level is given, or the trainer
            has no number of epochs to halve.
    """

    def __init__(self, *, dataset: Any = None, epochs: int = 5) -> None:
        self.dataset = dataset
        self.epochs = epochs
        self._seen = EvidenceSum()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, CoSegModule) or not pl_module.estimates_noise:
            raise InputError(
                'NoiseLevelEstimation estimates for CoSegModule(noise_level="auto"); leave it out '
                "where the level is given."
            )
        if trainer.max_epochs is None or trainer.max_epochs < 2:
            raise InputError(
                f"max_epochs={trainer.max_epochs} leaves no first half to estimate the noise level "
                "in; give the trainer max_epochs of 2 or more, or give the level."
            )
        pl_module.estimator_found = True
        self._seen = EvidenceSum()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._seen.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen.load_state_dict(state_dict)

    @override
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, CoSegModule)
        assert trainer.max_epochs is not None
        left = trainer.max_epochs // 2 - trainer.current_epoch - 1  # epochs of the first half
        known = pl_module.noise_known
        if known or not trainer.is_last_batch or not 0 <= left < self.epochs:
            return
        dataset = plain_training_set(trainer) if self.dataset is None else self.dataset
        with averaged(trainer, pl_module):
            self._seen.add(trainer, pl_module, dataset)
        if left == 0:
            _, (peer_a, peer_b) = self._seen.gathered()
            pl_module.set_noise_level_from(Evidence.from_table(peer_a), Evidence.from_table(peer_b))
