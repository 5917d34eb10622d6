"""EvidenceSum: both peers' evidence on every sample, summed over evaluation passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.averaged_weights import averaged, averaged_steps
from coseg_lightning.callbacks.epoch_end import EpochEndCallback
from coseg_lightning.callbacks.evaluation_pass import Drawable, evaluation_pass, plain_training_set
from coseg_lightning.callbacks.processes import gather_objects
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import check_unique, sample_name
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.evidence import Evidence, Floats, compute_evidence

PATCHES = 2**20  # upper limit of patches per image, used to number them in order


class PredictionObserver:
    """Receives the predictions of the passes of a `CorruptionRanking`."""

    def observe(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        """Called with each batch of the pass.

        Args:
            indices: The indices of the batch's samples in the dataset.
            sample: The batch.
            logits: Both peers' logits of the batch.
        """


@dataclass
class EvidenceShare:
    """The summed evidence on some of the samples.

    Args:
        indices: Numbers that rise in the order of the samples in the dataset.
        ids: The samples' ids.
        totals: The sum of both peers' evidence tables over the passes.

    Shape:
        indices `(n,)`; n ids; totals `(n, 2, columns)`.
    """

    indices: NDArray[np.int64]
    ids: list[str]
    totals: Floats

    @classmethod
    def joined(cls, shares: "Sequence[EvidenceShare]") -> "EvidenceShare | None":
        """Join several shares into one that holds each sample once; None without any share."""
        if not shares:
            return None
        indices = np.concatenate([share.indices for share in shares])
        ids = [sample_id for share in shares for sample_id in share.ids]
        totals = np.concatenate([share.totals for share in shares])
        # After a resumed fit, every process holds all samples.
        indices, order = np.unique(indices, return_index=True)
        if not np.array_equal(order, np.arange(len(ids))):
            ids, totals = [ids[position] for position in order], totals[order]
        return cls(indices, ids, totals)


@dataclass(frozen=True)
class EvidencePass:
    """The evidence of one pass over a dataset.

    Args:
        share: The evidence on this process's samples, or None if it had no samples.
        numbered: Whether the samples have no ids of their own.
        step: See `step_of`; two passes at the same step have the same weights.
    """

    share: EvidenceShare | None
    numbered: bool
    step: tuple[int, int]


def evidence_pass(
    trainer: pl.Trainer,
    module: CoSegModule,
    dataset: Any,
    description: str | None = None,
    observers: Sequence[PredictionObserver] = (),
) -> EvidencePass:
    """Collect the peers' evidence in one evaluation pass, with averaged weights if available.

    Args:
        trainer: The trainer.
        module: The peers.
        dataset: The dataset.
        description: Text of a progress bar; without it there is no bar.
        observers: Objects that receive the predictions too.
    """
    shares: list[EvidenceShare] = []
    numbered = False

    def collect(indices: list[int], sample: Batch) -> None:
        nonlocal numbered
        peers = module(sample.images)
        tables = [
            compute_evidence(logits, sample.masks, ignore_index=module.ignore_index).numpy()
            for logits in peers
        ]
        for observer in observers:
            observer.observe(indices, sample, peers)
        numbered = sample.ids is None
        check_ids(trainer, sample, dataset)
        ids = indices if sample.ids is None else list(sample.ids)
        names, table = list(map(sample_name, ids)), np.stack(tables, axis=1)
        order = PATCHES * np.array(indices)
        if len(names) > len(indices):  # patches of an image, which are joined if they have its id
            names, table = means_by_name(names, table)
        if len(names) != len(indices):  # some may have been left out
            order = order[0] + np.arange(len(names))
        shares.append(EvidenceShare(order, names, table))

    every = range(len(dataset))
    with averaged(trainer, module):
        evaluation_pass(trainer, module, dataset, every, collect, description, patches=True)
    return EvidencePass(EvidenceShare.joined(shares), numbered, step_of(trainer))


def means_by_name(names: Sequence[str], table: Floats) -> tuple[list[str], Floats]:
    """Average the rows of a table with the same name; the names keep their order."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return list(rows), np.stack([table[of_name].mean(axis=0) for of_name in rows.values()])


@dataclass
class EvidencePart:
    """The summed evidence of successive passes over the same samples.

    Args:
        share: The sums over this process's samples.
        first: The number of the first pass.
        last: The number of the last pass.
    """

    share: EvidenceShare
    first: int
    last: int

    def plus(self, share: EvidenceShare) -> "EvidencePart | None":
        """Add one more pass over the same samples; None if the samples differ."""
        # Sums from a checkpoint hold the samples of all processes. Only this process's continue.
        own = self.share
        positions = np.searchsorted(own.indices, share.indices).clip(max=len(own.indices) - 1)
        if share.ids != [own.ids[position] for position in positions]:
            return None
        totals = share.totals + own.totals[positions]
        sums = EvidenceShare(share.indices, share.ids, totals)
        return EvidencePart(sums, self.first, self.last + 1)


class EvidenceSum:
    """The peers' evidence on every sample, summed over passes; each process holds its own share.

    Samples are identified by their ids, since a training set may be redrawn or reshuffled in
    every epoch. The sums are stored in arrays, since there may be millions of samples.
    """

    def __init__(self) -> None:
        self.parts: list[EvidencePart] = []
        self.passes = 0
        self.numbered = False
        self._step: tuple[int, int] | None = None  # of the last pass
        self._before: list[EvidencePart] = []  # the sums without it

    def add(self, evidence: EvidencePass) -> "EvidenceSum":
        """Add one pass to the sums; a second one at the same step replaces the first."""
        if evidence.step == self._step:
            self.parts, self.passes = self._before, self.passes - 1
        self._step, self._before = evidence.step, list(self.parts)
        self.passes += 1
        self.numbered = evidence.numbered
        if evidence.share is not None:
            longer = self.parts[-1].plus(evidence.share) if self.parts else None
            if longer is None:
                self.parts.append(EvidencePart(evidence.share, self.passes, self.passes))
            else:
                self.parts[-1] = longer
        return self

    def gathered(self) -> tuple[list[str], tuple[Evidence, Evidence]]:
        """Gather the mean evidence of all passes and processes, on all processes.

        Returns:
            The ids of the samples of the last pass, and each peer's mean evidence on them. The
            mean is over the passes that contained the sample.

        Raises:
            InputError: If two samples share an id, or predictions are not numbers.
        """
        parts = self._of_all_processes()
        # One process may extend an earlier part while another has begun a new one.
        last = [part for part in parts if part.last == parts[-1].last]
        indices = np.concatenate([part.share.indices for part in last])
        _, order = np.unique(indices, return_index=True)
        every_id = [sample_id for part in last for sample_id in part.share.ids]
        ids = [every_id[place] for place in order]
        check_unique(ids)
        totals = np.concatenate([part.share.totals for part in last])[order]
        passes = [np.full(len(part.share.ids), part.last - part.first + 1) for part in last]
        counts = np.concatenate(passes)[order]
        earlier = [part for part in parts if part.last != parts[-1].last]
        row_of = {sample_id: row for row, sample_id in enumerate(ids)} if earlier else {}
        for part in earlier:
            rows = np.array([row_of.get(sample_id, -1) for sample_id in part.share.ids])
            totals[rows[rows >= 0]] += part.share.totals[rows >= 0]
            counts[rows[rows >= 0]] += part.last - part.first + 1
        tables = np.moveaxis(totals / counts[:, None, None], 1, 0)
        if not np.isfinite(tables).all():
            diverged = np.flatnonzero(~np.isfinite(totals).all(axis=(1, 2)))
            bad = [ids[position] for position in diverged]
            raise InputError(
                f"The peers' predictions of {len(bad)} of {len(ids)} samples, such as "
                f"{bad[0]!r}, are NaN or infinite, so they cannot be ranked; training diverged "
                "(lower the learning rate), or these images hold NaN."
            )
        peer_a, peer_b = map(Evidence.from_table, tables)
        return ids, (peer_a, peer_b)

    def _of_all_processes(self) -> list[EvidencePart]:
        """Join the processes' parts that cover the same passes, in the order of the passes."""
        shares: dict[tuple[int, int], list[EvidenceShare]] = {}
        for parts in gather_objects(self.parts):
            for part in parts:
                shares.setdefault((part.last, part.first), []).append(part.share)
        joined = []
        for (last, first), of_passes in sorted(shares.items(), key=lambda item: item[0]):
            share = EvidenceShare.joined(of_passes)
            assert share is not None
            joined.append(EvidencePart(share, first, last))
        return joined

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of all processes as plain values and tensors, for a checkpoint."""
        if not self.passes:
            return {}
        parts = [
            {
                "first": part.first,
                "last": part.last,
                "indices": torch.from_numpy(part.share.indices),
                "ids": part.share.ids,
                "totals": torch.from_numpy(part.share.totals),
            }
            for part in self._of_all_processes()
        ]
        return {"passes": self.passes, "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums from a checkpoint, also from one of version 0.1."""
        if not state:
            return
        self.passes = state["passes"]
        parts = state.get("parts", [{**state, "first": 1, "last": self.passes}])
        self.parts = [
            EvidencePart(
                EvidenceShare(part["indices"].numpy(), part["ids"], part["totals"].numpy()),
                part["first"],
                part["last"],
            )
            for part in parts
        ]


class EvidenceCallback(EpochEndCallback):
    """The base of callbacks that collect evidence on the training set at the end of epochs.

    If two of them judge the same dataset at the same step, they share one pass.

    Args:
        dataset: The dataset to judge; default the training dataset without augmentation.
        epochs: Number of epochs over which the evidence is averaged.
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
        """Return the dataset that is judged."""
        return plain_training_set(trainer) if self.dataset is None else self.dataset

    def judge(self, trainer: pl.Trainer, module: CoSegModule) -> EvidencePass:
        """Make a pass over the dataset, or reuse the one that another callback just made."""
        sharing = [
            callback
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, EvidenceCallback) and callback.dataset is self.dataset
        ]
        for callback in sharing:
            latest = callback.latest_pass
            if latest is not None and latest.step == step_of(trainer):
                return latest
        observers = [o for callback in sharing for o in callback.observers(trainer, module)]
        dataset = self.judged_dataset(trainer)
        self.latest_pass = evidence_pass(trainer, module, dataset, observers=observers)
        return self.latest_pass

    def observers(self, trainer: pl.Trainer, module: CoSegModule) -> list[PredictionObserver]:
        """Return the observers that receive the predictions of each pass; none by default."""
        return []

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.evidence.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evidence.load_state_dict(state_dict)


def step_of(trainer: pl.Trainer) -> tuple[int, int]:
    """Return the trainer's `global_step`, and the number of steps in the weights' average."""
    return trainer.global_step, averaged_steps(trainer)


def check_ids(trainer: pl.Trainer, sample: Batch, dataset: Any) -> None:
    """Raise an `InputError` if samples without ids cannot be identified by their places."""
    if sample.ids is not None:
        return
    every = compat.reload_interval(trainer)
    if every or isinstance(dataset, Drawable):
        trouble = f"is reloaded every {every} epochs" if every else "is sampled only in part"
        raise InputError(
            f"The training set {trouble}, so its samples need ids; let the dataset return "
            "(image, mask, id)."
        )
