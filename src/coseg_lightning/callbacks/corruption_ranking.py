"""CorruptionRanking: the corruption score of every training sample at the end of stage 1."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from typing_extensions import override

from coseg_lightning.callbacks.augmentation import REMEDY, detect_augmentation
from coseg_lightning.callbacks.averaged_weights import averaged
from coseg_lightning.callbacks.evaluation_pass import plain_training_set
from coseg_lightning.callbacks.evidence_sum import EvidenceSum
from coseg_lightning.callbacks.prediction_store import PredictionStore
from coseg_lightning.data.samples import SampleDataset, label_dice
from coseg_lightning.errors import InputError
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.evidence import Evidence
from coseg_lightning.ranking.ranking import Ranking, worst_first
from coseg_lightning.ranking.scores import check_score, mask_scores


class CorruptionRanking(Callback):
    """Scores every training sample when training ends, and writes the ranking (section 2.1).

    The scores rest on passes in evaluation mode at the end of the last epochs, over each sample
    exactly once, without augmentation where the dataset is one of this package's. Single epochs
    differ a lot, their mean does not, nor do averaged weights (`AveragedWeights`), which are used
    where there are any. The result is the same for any number of processes.

    For a module that selects from the whole set, the set is ranked within training too: after half
    of the epochs, and every eighth of them from then on.

    Args:
        path: A new CSV file, conventionally `scores.csv`; see `coseg_lightning.ranking.ranking.Ranking`.
        dataset: What to score; default the training dataset. Give a view without augmentation if
            your dataset augments its samples itself.
        score: Which score: see `coseg_lightning.ranking.scores.mask_scores`.
        epochs: How many of the last epochs are averaged; 1 is the trained peers alone. Training
            that is stopped before its `max_epochs` has fewer of them.
        run_id: What the file says of the run that it belongs to.

    Attributes:
        ranking: The result, on every process, once training has ended.
        selected: Whether the peers left samples out when training ended.

    Raises:
        InputError: At the start of training, if the file exists or the module has no peers.
    """

    def __init__(
        self,
        path: str | Path = "scores.csv",
        *,
        dataset: Any = None,
        score: str = "directed",
        epochs: int = 5,
        run_id: str | None = None,
    ) -> None:
        check_score(score)
        if epochs < 1:
            raise InputError(f"epochs={epochs} must be at least 1.")
        self.path = Path(path)
        self.dataset = dataset
        self.score = score
        self.epochs = epochs
        self.run_id = run_id
        self.ranking: Ranking | None = None
        self.selected = False
        self.prediction_store: PredictionStore | None = None
        self.looks = False  # set by LabelCorrection
        self._seen = EvidenceSum()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, CoSegModule):
            raise InputError(
                f"CorruptionRanking ranks by the peers of a CoSegModule; {type(pl_module).__name__}"
                " has none."
            )
        if self.path.exists():
            raise InputError(f"{self.path} exists and is never overwritten; give a new file.")
        self._seen = EvidenceSum()
        pl_module.ranker_found = True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        varies = detect_augmentation(trainer, self._dataset(trainer))
        if varies is not None:
            rank_zero_warn(
                f"The {varies}s of the dataset differ each time they are read, as augmented ones "
                f"do, and so will the scores; {REMEDY}."
            )

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
        # Not in on_train_epoch_end, where process 0 may already be reducing its progress bar.
        if not trainer.is_last_batch:
            return
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        if 0 < left < self.epochs:
            with averaged(trainer, pl_module):
                self._seen.add(trainer, pl_module, self._dataset(trainer))
        if pl_module.selection == "whole_set" and pl_module.noise_known and _is_due(trainer):
            seen = EvidenceSum()
            with averaged(trainer, pl_module):
                seen.add(trainer, pl_module, self._dataset(trainer))
            ids, tables = seen.gathered()
            count = min(round(pl_module.noise_level * len(ids)), len(ids) - 1)
            doubted = []
            for table in tables:
                worst = worst_first(mask_scores(Evidence.from_table(table), self.score), ids)
                doubted.append([ids[i] for i in worst[:count]])
            by_a, by_b = doubted
            pl_module.doubt(by_a, by_b, among=ids)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        dataset = self._dataset(trainer)
        self.selected = pl_module.alpha < 1
        if self.looks:
            self.prediction_store = PredictionStore(len(dataset), pl_module.ignore_index)
        with averaged(trainer, pl_module):
            self._seen.add(trainer, pl_module, dataset, "Ranking", self.prediction_store)
        ids, tables = self._seen.gathered()
        peer_a, peer_b = map(Evidence.from_table, tables)
        if pl_module.selection == "whole_set" and pl_module.never_selected:
            rank_zero_warn(
                "Training ended before the training set was ranked for the first time, after half "
                "of max_epochs, so the peers learnt from all samples alike; give the max_epochs "
                "that are meant, or selection='relative'."
            )
        if not pl_module.noise_known:
            pl_module.set_noise_level_from(peer_a, peer_b)
        self.ranking = Ranking.of_evidence(
            ids,
            peer_a,
            peer_b,
            pl_module.noise_level,
            score=self.score,
            replaced=dataset.replaced if isinstance(dataset, SampleDataset) else None,
            label_dice=label_dice(dataset),
            run_id=self.run_id,
            numbered=self._seen.numbered,
        )
        if trainer.is_global_zero:
            self.ranking.write(self.path)
        trainer.strategy.barrier("ranking written")

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ranking is None and not trainer.interrupted:
            rank_zero_warn("No epoch was trained, so nothing was ranked or corrected.")

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._seen.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen.load_state_dict(state_dict)

    def _dataset(self, trainer: pl.Trainer) -> Any:
        return plain_training_set(trainer) if self.dataset is None else self.dataset


def _is_due(trainer: pl.Trainer) -> bool:
    """Whether the whole set is to be ranked at the end of this epoch."""
    done, limits = trainer.current_epoch + 1, []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs)
    if trainer.max_steps >= 0:
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits.append(math.ceil(trainer.max_steps / max(1, steps)))
    if not limits:  # training ends after some minutes
        return False
    epochs = min(limits)
    since = done - epochs // 2
    return since >= 0 and done < epochs and since % math.ceil(epochs / 8) == 0
