"""CorruptionRanking: the corruption score of every training sample at the end of stage 1."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.callbacks.evaluation_pass import (
    evaluation_pass,
    gather_rows,
    plain_training_set,
)
from coseg_lightning.coseg_module import CoSegModule
from coseg_lightning.data.samples import read_batch
from coseg_lightning.equations import corruption_score
from coseg_lightning.errors import InputError
from coseg_lightning.labels import sample_name
from coseg_lightning.noise import mask_dice
from coseg_lightning.ranking import Ranking


class CorruptionRanking(Callback):
    """Scores every training sample when training ends, and writes the ranking (section 2.1).

    The pass runs in evaluation mode over each sample exactly once, without augmentation where the
    dataset is one of this package's. The result is the same for any number of processes.

    Args:
        path: A new CSV file, conventionally `scores.csv`; see `coseg_lightning.ranking.Ranking`.
        dataset: What to score; default the training dataset. Give a view without augmentation if
            your dataset augments its samples itself.
        reduction: `mean` over a sample's pixels, or `sum` as Eq. (1) is printed.

    Attributes:
        ranking: The result, on every process, once training has ended.

    Raises:
        InputError: At the start of training, if the file exists or the module has no peers.
    """

    def __init__(
        self,
        path: str | Path = "scores.csv",
        *,
        dataset: Any = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise InputError(f"reduction={reduction!r} must be mean or sum.")
        self.path = Path(path)
        self.dataset = dataset
        self.reduction: Literal["mean", "sum"] = reduction
        self.ranking: Ranking | None = None

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

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        dataset = plain_training_set(trainer) if self.dataset is None else self.dataset
        rows: list[tuple[Any, ...]] = []

        def score(indices: list[int], batch: Any) -> None:
            sample = read_batch(batch)
            scores = [
                corruption_score(
                    logits,
                    sample.masks,
                    reduction=self.reduction,
                    ignore_index=pl_module.ignore_index,
                ).tolist()
                for logits in pl_module(sample.images)
            ]
            ids = indices if sample.ids is None else list(sample.ids)
            rows.extend(zip(indices, map(sample_name, ids), *scores, strict=True))

        evaluation_pass(trainer, pl_module, dataset, range(len(dataset)), score, "Ranking")
        _, ids, score_a, score_b = zip(*gather_rows(rows), strict=True)
        check_names(ids)
        if not np.isfinite([score_a, score_b]).all():
            raise InputError(
                "The peers' predictions are not numbers any more, so nothing can be ranked or "
                "corrected by them: training diverged; lower the learning rate."
            )
        self.ranking = Ranking(
            ids,
            np.array(score_a),
            np.array(score_b),
            pl_module.noise_level,
            replaced=getattr(dataset, "replaced", None),
            label_dice=label_dice(dataset),
        )
        if trainer.is_global_zero:
            self.ranking.write(self.path)
        trainer.strategy.barrier("ranking written")


def check_names(ids: Sequence[str]) -> None:
    """Raise an `InputError` if two samples have the same id, and would share a mask."""
    id, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{times} samples have the id {id!r}, but each needs its own; give unique ids, or none."
        )


def label_dice(dataset: Any) -> Any:
    """`(N,)` Dice of a dataset's masks to the original ones, or None if those are not known."""
    truth = getattr(dataset, "truth", None)
    if truth is None:
        return None
    return np.array([mask_dice(dataset.mask(i), truth.mask(i)) for i in range(len(dataset))])
