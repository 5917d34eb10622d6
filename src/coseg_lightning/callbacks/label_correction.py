"""LabelCorrection: the peers' vote on the labels of the noisy samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
from coseg_lightning.callbacks.evaluation_pass import (
    evaluation_pass,
    gather_rows,
    plain_training_set,
    stored_mask,
)
from coseg_lightning.coseg_module import CoSegModule
from coseg_lightning.data.samples import read_batch
from coseg_lightning.equations import IGNORE_INDEX, class_logits, vote
from coseg_lightning.errors import InputError
from coseg_lightning.labels import LabelStore, LabelStoreWriter
from coseg_lightning.noise import mask_dice


class LabelCorrection(Callback):
    """Writes corrected masks of the samples ranked noisy into a label layer (section 2.2).

    Where both peers predict the same class and the label says another, the peers win. The vote is
    taken at the masks' own resolution, where the dataset is one of this package's: the peers'
    probabilities are resized, not their labels. Your masks are not touched: see
    `coseg_lightning.labels.updated` for how to use the layer.

    Works with a `CorruptionRanking` among the trainer's callbacks.

    Args:
        folder: A new folder for the layer, conventionally `labels`.
        by_class: Rank each class by itself, and change only pixels that were or become one of the
            mask's noisy classes; default the whole masks of the noisy part.

    Attributes:
        layer: The finished layer, on every process, once `fit` has ended.

    Raises:
        InputError: At the start of training, if the folder is not new or no ranking is made.
    """

    def __init__(self, folder: str | Path = "labels", *, by_class: bool = False) -> None:
        self.folder = Path(folder)
        self.by_class = by_class
        self.layer: LabelStore | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        ignore_index = getattr(pl_module, "ignore_index", IGNORE_INDEX)
        if not 0 <= ignore_index <= 65535:
            raise InputError(
                f"ignore_index={ignore_index} cannot be stored in a mask; use 255 for unlabelled "
                "pixels."
            )
        if trainer.is_global_zero:
            LabelStore.check_free(self.folder)
        ranking_callback(trainer)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The ranking was made in on_train_end, whatever the order of the callbacks.
        callback = ranking_callback(trainer)
        ranking = callback.ranking
        if ranking is None:  # training was interrupted
            return
        assert isinstance(pl_module, CoSegModule)
        dataset = plain_training_set(trainer) if callback.dataset is None else callback.dataset
        truth = getattr(dataset, "truth", None)
        if trainer.is_global_zero:
            LabelStore.create(self.folder)
        trainer.strategy.barrier("label layer begun")
        writer = LabelStoreWriter(self.folder)
        rows: list[tuple[Any, ...]] = []

        ranking.by_class = self.by_class
        noisy_classes = ranking.noisy_classes

        def correct(indices: list[int], batch: Any) -> None:
            sample = read_batch(batch)
            peers = [class_logits(logits).softmax(dim=1) for logits in pl_module(sample.images)]
            for n, index in enumerate(indices):
                label = sample.masks[n]
                stored = stored_mask(dataset, index)
                if stored is not None:
                    label = torch.from_numpy(stored.astype(np.int64)).to(label)
                a, b = (resize_probabilities(p[n : n + 1], label) for p in peers)
                corrected = vote(a, b, label[None], ignore_index=pl_module.ignore_index)[0]
                if self.by_class:
                    classes = torch.tensor(noisy_classes[index], device=label.device)
                    concerned = torch.isin(label, classes) | torch.isin(corrected, classes)
                    corrected = corrected.where(concerned, label)
                mask = corrected.cpu().numpy()
                writer.write(ranking.ids[index], mask)
                changed = int((corrected != label).sum())
                dice = None if truth is None else mask_dice(mask, truth.mask(index))
                rows.append((index, changed, dice))

        noisy = sorted(ranking.noisy)
        evaluation_pass(trainer, pl_module, dataset, noisy, correct, "Correction")
        for index, changed, dice in gather_rows(rows):
            ranking.changed_pixels[index] = changed
            if dice is not None:
                ranking.corrected_dice[index] = dice
        if trainer.is_global_zero:
            writer.finish(
                {ranking.ids[i]: {"changed_pixels": ranking.changed_pixels[i]} for i in noisy}
            )
            ranking.write(callback.path)
        trainer.strategy.barrier("label layer written")
        self.layer = LabelStore(self.folder)


def ranking_callback(trainer: pl.Trainer) -> CorruptionRanking:
    """The trainer's `CorruptionRanking`.

    Raises:
        InputError: If it has none.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CorruptionRanking):
            return callback
    raise InputError(
        "The callback needs to know which samples rank worst; add a CorruptionRanking to the "
        "trainer's callbacks."
    )


def resize_probabilities(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Class probabilities at a mask's resolution.

    Shape:
        probabilities `(1, K, h, w)`, mask `(H, W)`; returns `(1, K, H, W)`.
    """
    if probabilities.shape[-2:] == mask.shape:
        return probabilities
    size = (mask.shape[0], mask.shape[1])
    return F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
