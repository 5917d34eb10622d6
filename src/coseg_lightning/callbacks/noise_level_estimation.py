"""NoiseLevelEstimation: estimates the noise level after half of stage 1."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from typing_extensions import override

from coseg_lightning.callbacks.corruption_ranking import (
    CorruptionRanking,
    complete_evidence,
    named_annotators,
)
from coseg_lightning.callbacks.evidence_sum import (
    EvidenceCallback,
    EvidenceSum,
    PredictionObserver,
)
from coseg_lightning.callbacks.outline_record import OutlineRecord
from coseg_lightning.errors import InputError
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.epochs import planned_epochs
from coseg_lightning.modules.noise_level import NoiseLevelEstimator

ALL_ALIKE = "so the peers learn from all samples alike"


class NoiseLevelEstimation(EvidenceCallback, NoiseLevelEstimator):
    """Sets the noise level of `CoSegModule(noise_level="auto")` after half of the epochs.

    Until then the peers learn from all samples. From then on they select, if the level could be
    estimated. Like the scores of `CorruptionRanking`, the estimate, `module.noise.estimate`, comes
    from passes in evaluation mode at the end of the preceding epochs. Kinds of images, and who drew
    the masks, count as in the ranking: those of a `CorruptionRanking` among the callbacks, or else
    of the dataset.

    Args:
        dataset: The dataset to judge; default the training dataset. Give a view without
            augmentation if your dataset augments its samples itself.
        epochs: Number of epochs over which the evidence is averaged.

    Raises:
        InputError: At the start of training, if the module's noise level is given, or if the
            trainer's number of epochs is unlimited or below 2.
    """

    def __init__(self, *, dataset: Any = None, epochs: int = 5) -> None:
        super().__init__(dataset, epochs)
        self._outlines: OutlineRecord | None = None
        self._ends_early = False  # whether training will end before there is an estimate
        self._is_estimated = False

    @override
    def observers(self, trainer: pl.Trainer, module: CoSegModule) -> list[PredictionObserver]:
        if _epochs_left(trainer) > 0 or _is_done(trainer, module):
            return []
        dataset, ranking = self.judged_dataset(trainer), _ranking_in(trainer)
        drawn_by = None if ranking is None else ranking.annotators
        if drawn_by is None:
            drawn_by = named_annotators(dataset)
        self._outlines = OutlineRecord(dataset, module.ignore_index, drawn_by)
        return [self._outlines]

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, CoSegModule) or not pl_module.noise.is_estimated:
            raise InputError(
                'NoiseLevelEstimation needs CoSegModule(noise_level="auto"); leave it out if the '
                "level is given."
            )
        by_steps = trainer.max_epochs == -1 and trainer.max_steps >= 0
        is_tried = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        is_short = trainer.max_epochs is None or trainer.max_epochs < 2
        if is_short and not by_steps and not is_tried:
            steps = f" (max_steps={trainer.max_steps})" if trainer.max_steps >= 0 else ""
            raise InputError(
                f"max_epochs={trainer.max_epochs}{steps} is too few to estimate the noise level, "
                "which needs the first half of training; set 2 epochs or more, or give the level."
            )
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = planned_epochs(trainer)
        self._ends_early = epochs is not None and epochs < 2
        assert isinstance(pl_module, CoSegModule)
        self._is_estimated = pl_module.noise.estimate is not None  # by a fit that this one resumes
        if self._ends_early:
            cause, remedy = f"max_steps={trainer.max_steps}", "give more steps"
            if tried := trainer.fast_dev_run:  # type: ignore[attr-defined]
                cause, remedy = f"fast_dev_run={tried}", "leave it out"
            rank_zero_warn(
                f"{cause} ends training with the first epoch, before the noise level is estimated, "
                f"{ALL_ALIKE}; {remedy}, or give the level."
            )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._ends_early and not self._is_estimated:
            rank_zero_warn(
                "Training ended before the noise level was estimated, which follows half of the "
                f"epochs, {ALL_ALIKE}; set max_epochs to the number of epochs that you train, or "
                "give the level."
            )

    @override
    def on_last_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, CoSegModule)
        if _is_done(trainer, module):
            return
        epochs_left = _epochs_left(trainer)
        if epochs_left >= self.epochs:
            self.evidence = EvidenceSum()  # that of a shorter fit, which this one continues
            return
        self.evidence.add(self.judge(trainer, module))
        if epochs_left <= 0:  # below 0 in a fit that begins after half of the epochs
            ids, peers = self.evidence.gathered()
            ranking, dataset = _ranking_in(trainer), self.judged_dataset(trainer)
            kinds = None if ranking is None else ranking.kinds
            peers, _ = complete_evidence(
                ids, peers, self._outlines, dataset, kinds, numbered=self.evidence.numbered
            )
            self._outlines = None
            module.noise.set_noise_level_from(*peers)
            self._is_estimated = True


def _ranking_in(trainer: pl.Trainer) -> CorruptionRanking | None:
    """Return the ranking among a trainer's callbacks, if there is one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, CorruptionRanking)), None)


def _is_done(trainer: pl.Trainer, module: CoSegModule) -> bool:
    """Whether the level is known, or half of training has told that it cannot be estimated."""
    noise = module.noise
    return noise.known or (noise.estimate is not None and _epochs_left(trainer) < 0)


def _epochs_left(trainer: pl.Trainer) -> int:
    """Number of epochs of the first half that follow the current one."""
    return (planned_epochs(trainer) or 0) // 2 - trainer.current_epoch - 1
