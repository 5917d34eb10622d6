"""Proposals: the peers' own masks, for a person's review."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.callbacks.evaluation_pass import (
    evaluation_pass,
    of_content,
    stored_mask,
)
from coseg_lightning.callbacks.label_correction import ranking_callback, resize_probabilities
from coseg_lightning.files.background import background_writer
from coseg_lightning.files.images import smallest_type
from coseg_lightning.functional.equations import class_logits, predicted_classes
from coseg_lightning.labels.store import LabelStore, LabelStoreWriter
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule


class Proposals(Callback):
    """Stores the peers' mean predictions of all samples, for a person's review.

    A `CorruptionRanking` must be among the trainer's callbacks.

    Args:
        folder: A new folder for a label layer, with the predicted class ids of every sample at the
            mask's own resolution.

    Attributes:
        layer: The finished layer, on every process, once `fit` has ended.

    Raises:
        InputError: At the start of training, if the folder is not new or no ranking is made.
    """

    def __init__(self, folder: str | Path = "proposals") -> None:
        self.folder = Path(folder)
        self.layer: LabelStore | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            ranking_callback(trainer)
            if trainer.is_global_zero:
                LabelStore.check_free(self.folder)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        ranking = ranking_callback(trainer).ranking
        if ranking is None:  # training was interrupted
            return
        dataset = ranking_callback(trainer).judged_dataset(trainer)
        if trainer.is_global_zero:
            LabelStore.create(self.folder)
        trainer.strategy.barrier("proposals begun")
        writer = LabelStoreWriter(self.folder)

        def propose(indices: list[int], sample: Batch) -> None:
            peers = [class_logits(logits).softmax(dim=1) for logits in pl_module(sample.images)]
            mean = torch.stack(peers).mean(dim=0)
            for n, index in enumerate(indices):
                stored = stored_mask(dataset, index)
                target = sample.masks[n] if stored is None else torch.empty(stored.shape)
                shown = of_content(dataset, index, mean[n : n + 1], target.shape)
                mask = predicted_classes(resize_probabilities(shown, target))[0]
                write_later(writer.write, ranking.ids[index], smallest_type(mask.cpu().numpy()))

        with background_writer() as write_later:
            evaluation_pass(trainer, pl_module, dataset, range(len(ranking.ids)), propose)
        trainer.strategy.barrier("proposals written")
        if trainer.is_global_zero:
            writer.finish({i: {} for i in ranking.ids}, numbered=ranking.numbered)
        trainer.strategy.barrier("proposals finished")
        self.layer = LabelStore(self.folder)
