"""EvidenceSum: the peers' evidence on every sample, summed over passes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from coseg_lightning.callbacks.evaluation_pass import evaluation_pass
from coseg_lightning.callbacks.prediction_store import PredictionStore
from coseg_lightning.callbacks.processes import gather_objects
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.modules.batch import read_batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.evidence import Floats, compute_evidence


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
        look: PredictionStore | None = None,
    ) -> None:
        """One more pass over a dataset, at whose predictions somebody else may look too."""
        shares: list[_Share] = []

        def collect(indices: list[int], batch: Any) -> None:
            sample = read_batch(batch)
            peers = module(sample.images)
            tables = [
                compute_evidence(logits, sample.masks, ignore_index=module.ignore_index).numpy()
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
