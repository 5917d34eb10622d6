"""LabelCorrection: the peers' vote on the labels of the noisy samples."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.augmentation import REMEDY, detect_augmentation
from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
from coseg_lightning.callbacks.evaluation_pass import (
    evaluation_pass,
    plain_training_set,
    stored_mask,
)
from coseg_lightning.callbacks.prediction_store import PredictionStore, probabilities, quantize
from coseg_lightning.callbacks.processes import gather_objects, gather_rows
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.files.background import background_writer
from coseg_lightning.files.images import smallest_type
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.functional.equations import IGNORE_INDEX, vote
from coseg_lightning.labels.ids import FileNames, sample_name
from coseg_lightning.labels.masks import Mask, mask_digest
from coseg_lightning.labels.store import LabelStore, LabelStoreWriter
from coseg_lightning.modules.batch import read_batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.guard import CorrectionGuard


class LabelCorrection(Callback):
    """Writes corrected masks of the samples ranked noisy into a label layer (section 2.2).

    Where both peers predict the same class and the label says another, the peers win, if they are
    sure enough. If they contradict the labels in doubt little more than each other, they know less
    than the labels, and all of these are left as they are: see `coseg_lightning.ranking.guard`. The vote
    is taken at the masks' own resolution, where the dataset is one of this package's: the peers'
    probabilities are resized, not their labels. Your masks are not touched: see
    `coseg_lightning.labels.updated.updated` for how to use the layer.

    Works with a `CorruptionRanking` among the trainer's callbacks.

    Args:
        folder: A new folder for the layer, conventionally `labels`.
        confidence: The least mean probability of the peers' class: `auto`, or one for all pixels,
            with which nothing is ever left alone; 0 is the vote as printed.
        by_class: Rank each class by itself, and change only pixels that were or become one of the
            mask's noisy classes; default the whole masks of the noisy part.
        run_id: What the layer says of the run that it belongs to.

    Attributes:
        layer: The finished layer, on every process, once `fit` has ended.
        contradiction: How many times more the peers contradict the labels in doubt than each
            other; None where nothing was in doubt, or the confidence was given.
        correction_skipped: Whether the labels were left as they are, since the peers know less.
        wrong_half_suspected: Whether that is because the peers may have learnt from the wrong labels:
            those not in doubt differ more variously from their predictions than those in doubt.

    Raises:
        InputError: At the start of training, if the folder is not new or no ranking is made.
    """

    def __init__(
        self,
        folder: str | Path = "labels",
        *,
        confidence: float | Literal["auto"] = "auto",
        by_class: bool = False,
        run_id: str | None = None,
    ) -> None:
        if confidence != "auto" and not (
            isinstance(confidence, int | float)
            and not isinstance(confidence, bool)
            and 0 <= confidence <= 1
        ):
            raise InputError(f"confidence={confidence} must be auto, or a number from 0 to 1.")
        self.folder = Path(folder)
        self.confidence = confidence
        self.by_class = by_class
        self.run_id = run_id
        self.layer: LabelStore | None = None
        self._names = FileNames()
        self.label_peer_ratio: float | None = None
        self.correction_skipped = False
        self.wrong_half_suspected = False

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
        ranking_callback(trainer).looks = True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if detect_augmentation(trainer, self._dataset(trainer), corrected=True) == "mask":
            raise InputError(
                "The masks of the dataset differ each time they are read, as augmented ones do, "
                f"and a corrected mask could not follow; {REMEDY}."
            )

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the ids of the first epoch: after the last one it would be too late."""
        if trainer.current_epoch == 0:
            ids = read_batch(batch).ids
            self._names.add(map(sample_name, () if ids is None else ids))

    def _dataset(self, trainer: pl.Trainer) -> Any:
        given = ranking_callback(trainer).dataset
        return plain_training_set(trainer) if given is None else given

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The ranking was made in on_train_end, whatever the order of the callbacks.
        callback = ranking_callback(trainer)
        ranking = callback.ranking
        if ranking is None:  # training was interrupted
            return
        assert isinstance(pl_module, CoSegModule)
        dataset = self._dataset(trainer)
        truth = dataset.truth if isinstance(dataset, SampleDataset) else None
        self._names.add(ranking.ids)  # of all processes
        if trainer.is_global_zero:
            LabelStore.create(self.folder)
        trainer.strategy.barrier("label layer begun")
        writer = LabelStoreWriter(self.folder)
        rows: list[tuple[Any, ...]] = []

        ranking.by_class = self.by_class
        noisy_classes = ranking.noisy_classes
        noisy = sorted(ranking.noisy)
        look = callback.prediction_store
        assert look is not None
        confidence = self._confidences(look, noisy, ranking.size_bias)

        def write(index: int, label: Mask, corrected: Mask, original: Mask | None) -> None:
            writer.write(ranking.ids[index], corrected)
            dice = None if original is None else mask_dice(corrected, original)
            changed = int((corrected != label).sum())
            rows.append((index, changed, dice, mask_digest(label)))

        def correct(index: int, peers: Tensor, label: Tensor) -> None:
            stored = stored_mask(dataset, index)
            if stored is not None:
                label = torch.from_numpy(stored.astype(np.int64)).to(label)
            a, b = (resize_probabilities(p[None], label) for p in peers)
            corrected = vote(
                *(a, b, label[None]),
                confidence=confidence[index],
                ignore_index=pl_module.ignore_index,
            )[0]
            if self.by_class:
                classes = torch.tensor(noisy_classes[index], device=label.device)
                concerned = torch.isin(label, classes) | torch.isin(corrected, classes)
                corrected = corrected.where(concerned, label)
            small = (smallest_type(part.cpu().numpy()) for part in (label, corrected))
            # Read here: nobody promised that somebody's dataset may be read by several threads.
            do(write, index, *small, None if truth is None else truth.mask(index))

        def predict(indices: list[int], batch: Any) -> None:
            sample = read_batch(batch)
            peers = probabilities(quantize(pl_module(sample.images)))
            for place, index in enumerate(indices):
                correct(index, peers[:, place], sample.masks[place])

        with background_writer() as do:  # masks are encoded and written beside the computation
            if all(gather_objects(look.keeps_predictions)):
                for index in noisy:
                    kept = look.prediction(index)
                    if kept is not None:  # else another process saw it
                        correct(index, *kept)
            else:
                evaluation_pass(trainer, pl_module, dataset, noisy, predict, "Correction")
        callback.prediction_store = None
        originals: dict[int, str] = {}
        for index, changed, dice, original in gather_rows(rows):
            ranking.changed_pixels[index] = changed
            originals[index] = original
            if dice is not None:
                ranking.corrected_dice[index] = dice
        if trainer.is_global_zero:
            writer.finish(
                {
                    ranking.ids[i]: {
                        "changed_pixels": ranking.changed_pixels[i],
                        "original": originals[i],
                    }
                    for i in noisy
                },
                run_id=self.run_id,
                numbered=ranking.numbered,
            )
            ranking.write(callback.path)
        trainer.strategy.barrier("label layer written")
        self.layer = LabelStore(self.folder)

    def _confidences(
        self, look: PredictionStore, noisy: list[int], excess: NDArray[np.float64] | None
    ) -> dict[int, float]:
        """How sure the peers must be to overrule each noisy label, by the sample's index."""
        if not noisy:
            return {}
        if self.confidence != "auto":
            return dict.fromkeys(noisy, float(self.confidence))
        table = np.concatenate(gather_objects(look.contradictions))
        table = table[np.argsort(table[:, 0]), 1:]
        doubted = np.isin(np.arange(len(table)), noisy)
        assert excess is not None
        trust = CorrectionGuard(
            *(table[doubted, 0], table[doubted, 1], table[~doubted, 0]),
            excluded_size_bias=excess[doubted],
            kept_size_bias=excess[~doubted],
        )
        self.label_peer_ratio = trust.label_peer_ratio
        self.wrong_half_suspected = trust.wrong_half_suspected
        self.correction_skipped = not trust.peers_know_better
        if self.correction_skipped:
            return dict.fromkeys(noisy, math.inf)
        return dict(zip(noisy, map(float, trust.confidence), strict=True))


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
