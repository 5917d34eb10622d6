"""Proposals: the peers' own masks for the samples that rank worst."""

from typing import Any

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.callbacks.evaluation_pass import (
    evaluation_pass,
    of_content,
    stored_mask,
)
from coseg_lightning.callbacks.label_correction import ranking_callback, resize_probabilities
from coseg_lightning.callbacks.processes import gather_rows
from coseg_lightning.files.images import smallest_type
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule


class Proposals(Callback):
    """Stores the peers' mean predictions of the samples that rank worst, for inspection.

    A `CorruptionRanking` must be among the trainer's callbacks.

    Args:
        count: The number of worst samples.

    Attributes:
        masks: By sample index, `(H, W)` predicted class ids at the mask's own resolution.
    """

    def __init__(self, count: int = 24) -> None:
        self.count = count
        self.masks: dict[int, NDArray[Any]] = {}

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            ranking_callback(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        callback = ranking_callback(trainer)
        if callback.ranking is None:  # training was interrupted
            return
        dataset = callback.judged_dataset(trainer)
        rows: list[tuple[Any, ...]] = []

        def propose(indices: list[int], sample: Batch) -> None:
            peers = [class_logits(logits).softmax(dim=1) for logits in pl_module(sample.images)]
            mean = torch.stack(peers).mean(dim=0)
            for n, index in enumerate(indices):
                stored = stored_mask(dataset, index)
                target = sample.masks[n] if stored is None else torch.empty(stored.shape)
                shown = of_content(dataset, index, mean[n : n + 1], target.shape)
                mask = resize_probabilities(shown, target)[0].argmax(dim=0)
                rows.append((index, smallest_type(mask.cpu().numpy())))

        worst = sorted(callback.ranking.worst_first[: self.count])
        evaluation_pass(trainer, pl_module, dataset, worst, propose)
        self.masks = dict(gather_rows(rows))
