"""EvidenceSum: the peers' evidence on every sample, summed over passes in evaluation mode."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.averaged_weights import averaged
from coseg_lightning.callbacks.epoch_end import EpochEndCallback
from coseg_lightning.callbacks.evaluation_pass import evaluation_pass, plain_training_set
from coseg_lightning.callbacks.processes import gather_objects
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.modules.batch import Batch, read_batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.evidence import Evidence, Floats, compute_evidence


class PredictionObserver:
    """Shares the last pass over the training set with the `CorruptionRanking` that makes it."""

    def observe(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        """See one batch and both peers' logits of it, by its samples' places in the dataset."""


@dataclass
class EvidenceShare:
    """The evidence on some samples.

    Shape:
        indices `(n,)` places in the dataset, rising; n ids; totals `(n, 2, columns)`.
    """

    indices: NDArray[np.int64]
    ids: list[str]
    totals: Floats

    @classmethod
    def joined(cls, shares: "Sequence[EvidenceShare]") -> "EvidenceShare | None":
        """Several of them as one, each sample once; None of none."""
        if not shares:
            return None
        indices = np.concatenate([share.indices for share in shares])
        ids = [sample_id for share in shares for sample_id in share.ids]
        totals = np.concatenate([share.totals for share in shares])
        # After a resumption all processes have all of them.
        indices, order = np.unique(indices, return_index=True)
        if not np.array_equal(order, np.arange(len(ids))):
            ids, totals = [ids[place] for place in order], totals[order]
        return cls(indices, ids, totals)


@dataclass(frozen=True)
class EvidencePass:
    """What one pass over a dataset found.

    Args:
        share: Of this process's samples; None where it had none.
        numbered: Whether the samples have no ids of their own.
        step: The trainer's `global_step` at which the pass was made.
    """

    share: EvidenceShare | None
    numbered: bool
    step: int


def evidence_pass(
    trainer: pl.Trainer,
    module: CoSegModule,
    dataset: Any,
    description: str | None = None,
    observers: Sequence[PredictionObserver] = (),
) -> EvidencePass:
    """Pass over a dataset in evaluation mode, by averaged weights where there are any."""
    shares: list[EvidenceShare] = []
    numbered = False

    def collect(indices: list[int], batch: Any) -> None:
        nonlocal numbered
        sample = read_batch(batch)
        peers = module(sample.images)
        tables = [
            compute_evidence(logits, sample.masks, ignore_index=module.ignore_index).numpy()
            for logits in peers
        ]
        for observer in observers:
            observer.observe(indices, sample, peers)
        numbered = sample.ids is None
        ids = indices if sample.ids is None else list(sample.ids)
        names = list(map(sample_name, ids))
        shares.append(EvidenceShare(np.array(indices), names, np.stack(tables, axis=1)))

    with averaged(trainer, module):
        evaluation_pass(trainer, module, dataset, range(len(dataset)), collect, description)
    return EvidencePass(EvidenceShare.joined(shares), numbered, trainer.global_step)


class EvidenceSum:
    """The peers' evidence on every sample, summed over passes; each process keeps its own share.

    It lies in arrays, since there may be millions of samples.
    """

    def __init__(self) -> None:
        self.share: EvidenceShare | None = None
        self.passes = 0
        self.numbered = False

    def add(self, found: EvidencePass) -> "EvidenceSum":
        """Count one more pass."""
        share = found.share
        if self.share is not None and share is not None:
            # Without those of other processes, which a checkpoint had too.
            places = np.searchsorted(self.share.indices, share.indices)
            totals = share.totals + self.share.totals[places]
            share = EvidenceShare(share.indices, share.ids, totals)
        self.share = share
        self.passes += 1
        self.numbered = found.numbered
        return self

    def gathered(self) -> tuple[list[str], tuple[Evidence, Evidence]]:
        """The ids of N samples and both peers' mean evidence on them, on all processes.

        Raises:
            InputError: If two samples have one id, or the predictions are not numbers any more.
        """
        share = self._of_all_processes()
        check_unique(share.ids)
        tables = np.moveaxis(share.totals / self.passes, 1, 0)
        if not np.isfinite(tables).all():
            diverged = np.flatnonzero(~np.isfinite(share.totals).all(axis=(1, 2)))
            bad = [share.ids[place] for place in diverged]
            raise InputError(
                f"The peers' predictions of {len(bad)} of {len(share.ids)} samples, such as "
                f"{bad[0]!r}, are not numbers, so they cannot be ranked: training diverged (lower "
                "the learning rate), or these images hold NaN."
            )
        peer_a, peer_b = map(Evidence.from_table, tables)
        return share.ids, (peer_a, peer_b)

    def _of_all_processes(self) -> EvidenceShare:
        shares = [part for part in gather_objects(self.share) if part is not None]
        joined = EvidenceShare.joined(shares)
        assert joined is not None
        return joined

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, of all processes, in plain values and tensors."""
        if not self.passes:
            return {}
        share = self._of_all_processes()
        return {
            "passes": self.passes,
            "indices": torch.from_numpy(share.indices),
            "ids": share.ids,
            "totals": torch.from_numpy(share.totals),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state:
            indices, totals = state["indices"].numpy(), state["totals"].numpy()
            self.passes, self.share = state["passes"], EvidenceShare(indices, state["ids"], totals)


class EvidenceCallback(EpochEndCallback):
    """The base of callbacks that judge the training set at the end of epochs.

    Where two of them judge the same set at the same step, one pass serves both.

    Args:
        dataset: What to judge; default the training dataset without augmentation.
        epochs: How many epochs are averaged.
    """

    def __init__(self, dataset: Any, epochs: int) -> None:
        self.dataset = dataset
        self.epochs = epochs
        self.evidence = EvidenceSum()
        self.latest_pass: EvidencePass | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.evidence, self.latest_pass = EvidenceSum(), None

    def judged_dataset(self, trainer: pl.Trainer) -> Any:
        """The dataset that is judged."""
        return plain_training_set(trainer) if self.dataset is None else self.dataset

    def judge(self, trainer: pl.Trainer, module: CoSegModule) -> EvidencePass:
        """Pass over the dataset, unless another callback just did."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EvidenceCallback) and callback.dataset is self.dataset:
                latest = callback.latest_pass
                if latest is not None and latest.step == trainer.global_step:
                    return latest
        self.latest_pass = evidence_pass(trainer, module, self.judged_dataset(trainer))
        return self.latest_pass

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.evidence.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evidence.load_state_dict(state_dict)


def check_unique(ids: Sequence[str]) -> None:
    """Raise an `InputError` if two samples have the same id, and would share a mask."""
    sample_id, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{times} samples have the id {sample_id!r}, but each needs its own; give unique ids, "
            "or none."
        )
