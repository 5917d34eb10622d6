"""CorruptionRanking: the corruption score of every training sample at the end of stage 1."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from typing_extensions import override

from coseg_lightning.callbacks.averaged_weights import averaged
from coseg_lightning.callbacks.evaluation_pass import (
    REMEDY,
    evaluation_pass,
    gather_objects,
    plain_training_set,
    what_varies,
)
from coseg_lightning.callbacks.last_look import LastLook
from coseg_lightning.coseg_module import CoSegModule
from coseg_lightning.data.samples import SampleDataset, read_batch
from coseg_lightning.errors import InputError
from coseg_lightning.labels import sample_name
from coseg_lightning.noise import mask_dice
from coseg_lightning.ranking import Ranking, worst_first
from coseg_lightning.scores import Evidence, check_score, evidence, mask_scores

Floats = NDArray[np.float64]


class CorruptionRanking(Callback):
    """Scores every training sample when training ends, and writes the ranking (section 2.1).

    The scores rest on passes in evaluation mode at the end of the last epochs, over each sample
    exactly once, without augmentation where the dataset is one of this package's. Single epochs
    differ a lot, their mean does not, nor do averaged weights (`AveragedWeights`), which are used
    where there are any. The result is the same for any number of processes.

    For a module that selects from the whole set, the set is ranked within training too: after half
    of the epochs, and every eighth of them from then on.

    Args:
        path: A new CSV file, conventionally `scores.csv`; see `coseg_lightning.ranking.Ranking`.
        dataset: What to score; default the training dataset. Give a view without augmentation if
            your dataset augments its samples itself.
        score: Which score: see `coseg_lightning.scores.mask_scores`.
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
        self.last_look: LastLook | None = None
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
        varies = what_varies(trainer, self._dataset(trainer))
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
                worst = worst_first(mask_scores(Evidence.of(table), self.score), ids)
                doubted.append([ids[i] for i in worst[:count]])
            by_a, by_b = doubted
            pl_module.doubt(by_a, by_b, among=ids)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        dataset = self._dataset(trainer)
        self.selected = pl_module.alpha < 1
        if self.looks:
            self.last_look = LastLook(len(dataset), pl_module.ignore_index)
        with averaged(trainer, pl_module):
            self._seen.add(trainer, pl_module, dataset, "Ranking", self.last_look)
        ids, tables = self._seen.gathered()
        peer_a, peer_b = map(Evidence.of, tables)
        if pl_module.selection == "whole_set" and pl_module.never_selected:
            rank_zero_warn(
                "Training ended before the training set was ranked for the first time, after half "
                "of max_epochs, so the peers learnt from all samples alike; give the max_epochs "
                "that are meant, or selection='relative'."
            )
        if not pl_module.noise_known:
            pl_module.settle_noise_level(peer_a, peer_b)
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


class EvidenceSum:
    """The peers' evidence on every sample, summed over passes; each process keeps its own share.

    In arrays, since there may be millions of samples.
    """

    def __init__(self) -> None:
        self._share: _Share | None = None
        self._passes = 0
        self.numbered = False  # whether the samples have no ids of their own

    def add(
        self,
        trainer: pl.Trainer,
        module: CoSegModule,
        dataset: Any,
        description: str | None = None,
        look: LastLook | None = None,
    ) -> None:
        """One more pass over a dataset, at whose predictions somebody else may look too."""
        shares: list[_Share] = []

        def collect(indices: list[int], batch: Any) -> None:
            sample = read_batch(batch)
            peers = module(sample.images)
            tables = [
                evidence(logits, sample.masks, ignore_index=module.ignore_index).numpy()
                for logits in peers
            ]
            if look is not None:
                look.see(indices, sample, peers)
            self.numbered = sample.ids is None
            ids = indices if sample.ids is None else list(sample.ids)
            names = list(map(sample_name, ids))
            shares.append(_Share(np.array(indices), names, np.stack(tables, axis=1)))

        evaluation_pass(trainer, module, dataset, range(len(dataset)), collect, description)
        self.count(shares)

    def count(self, shares: "Sequence[_Share]") -> None:
        """Count what one pass found, of this process's samples."""
        found = _Share.joined(shares)
        if self._share is not None and found is not None:
            # Without those of other processes, which a checkpoint had too.
            places = np.searchsorted(self._share.indices, found.indices)
            found.totals += self._share.totals[places]
        self._share = found
        self._passes += 1

    def _gathered(self) -> "_Share":
        """Of all processes, on all processes."""
        shares = [part for part in gather_objects(self._share) if part is not None]
        joined = _Share.joined(shares)
        assert joined is not None
        return joined

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, of all processes, in plain values and tensors."""
        if not self._passes:
            return {}
        share = self._gathered()
        return {
            "passes": self._passes,
            "indices": torch.from_numpy(share.indices),
            "ids": share.ids,
            "totals": torch.from_numpy(share.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state:
            self._passes = state["passes"]
            self._share = _Share(state["indices"].numpy(), state["ids"], state["totals"].numpy())

    def gathered(self) -> tuple[list[str], Floats]:
        """The samples' ids and both peers' mean evidence, on all processes.

        Shape:
            N ids and `(2, N, columns)`.

        Raises:
            InputError: If two samples have one id, or the predictions are not numbers any more.
        """
        share = self._gathered()
        check_names(share.ids)
        peers = np.moveaxis(share.totals / self._passes, 1, 0)
        if not np.isfinite(peers).all():
            wrong = np.flatnonzero(~np.isfinite(share.totals).all(axis=(1, 2)))
            bad = [share.ids[place] for place in wrong]
            raise InputError(
                f"The peers' predictions of {len(bad)} of {len(share.ids)} samples, such as "
                f"{bad[0]!r}, are not numbers, so they cannot be ranked: training diverged (lower "
                "the learning rate), or these images hold NaN."
            )
        return share.ids, peers


@dataclass
class _Share:
    """The evidence on some samples.

    Shape:
        indices `(n,)` places in the dataset, rising; n ids; totals `(n, 2, columns)`.
    """

    indices: NDArray[np.int64]
    ids: list[str]
    totals: Floats

    @classmethod
    def joined(cls, shares: "Sequence[_Share]") -> "_Share | None":
        """Several of them as one, each sample once; None of none."""
        if not shares:
            return None
        indices = np.concatenate([share.indices for share in shares])
        ids = [id for share in shares for id in share.ids]
        totals = np.concatenate([share.totals for share in shares])
        # After a resumption all processes have all of them.
        indices, order = np.unique(indices, return_index=True)
        if not np.array_equal(order, np.arange(len(ids))):
            ids, totals = [ids[place] for place in order], totals[order]
        return cls(indices, ids, totals)


def check_names(ids: Sequence[str]) -> None:
    """Raise an `InputError` if two samples have the same id, and would share a mask."""
    id, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{times} samples have the id {id!r}, but each needs its own; give unique ids, or none."
        )


def label_dice(dataset: Any) -> Any:
    """`(N,)` Dice of a dataset's masks to the original ones, or None if those are not known."""
    truth = dataset.truth if isinstance(dataset, SampleDataset) else None
    if truth is None:
        return None
    return np.array([mask_dice(dataset.mask(i), truth.mask(i)) for i in range(len(dataset))])
