"""LabelCorrection: the peers' vote on the labels of noisy samples (section 2.2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.augmentation import REMEDY, detect_augmentation
from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
from coseg_lightning.callbacks.evaluation_pass import (
    check_count,
    check_none_dropped,
    evaluation_pass,
    of_content,
    stored_mask,
)
from coseg_lightning.callbacks.evidence_sum import PredictionObserver
from coseg_lightning.callbacks.prediction_store import PredictionStore, dequantize, quantize
from coseg_lightning.callbacks.processes import gather_objects, gather_rows
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.data.tiles import Tiles
from coseg_lightning.errors import InputError, renamed
from coseg_lightning.files.atomic import check_place, free_path
from coseg_lightning.files.background import background_writer
from coseg_lightning.files.images import smallest_type
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.functional.equations import IGNORE_INDEX, predicted_classes, vote
from coseg_lightning.labels.ids import FileNames, sample_name
from coseg_lightning.labels.masks import Mask, mask_digest
from coseg_lightning.labels.store import LabelStore, LabelStoreWriter
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.recipe import Recipe, check_by_class, is_confidence, plain_number
from coseg_lightning.modules.steps import look_at_batches
from coseg_lightning.ranking.guard import CorrectionGuard
from coseg_lightning.ranking.ranking import Ranking

# Called with a sample's index, both peers' probabilities `(1, K, H, W)`, and its label `(H, W)`.
Then = Callable[[int, Sequence[Tensor], Tensor], None]


class LabelCorrection(Callback, PredictionObserver):
    """Writes corrected masks of the samples ranked noisy into a label layer (section 2.2).

    A label is overruled where both peers predict the same other class with enough confidence.
    Correction is skipped if the peers differ from the noisy labels little more than from each
    other. They are then no better than the labels.
    See `coseg_lightning.ranking.guard`.

    The vote is taken at the masks' own resolution if the dataset is one of this package's. For
    this, the peers' probabilities are resized, not their predicted classes. The original masks
    are not changed; see `coseg_lightning.updated` for how to use the layer.

    A `CorruptionRanking` must be among the trainer's callbacks. The defaults are those of
    `Recipe`. Override `vote` to correct in another way.

    Args:
        folder: A new folder for the layer, conventionally `labels`. If another run has written it
            meanwhile, the layer gets a name such as `labels-2`, which is told.
        confidence: The mean probability that the peers' class needs to overrule a label. `auto`
            chooses it per sample. With a number, correction is never skipped; 0 is the vote as
            printed.
        by_class: Whether to rank each class separately, and change only pixels that were or become
            one of the mask's noisy classes. By default the whole masks of noisy samples change.
        run_id: Identifies the run in the layer.

    Attributes:
        layer: The finished layer, on every process, once `fit` has ended.
        label_peer_ratio: The peers' distance to the noisy labels over their distance to each
            other; None without noisy labels, or with a given confidence.
        correction_skipped: Whether no label was changed because the peers are no better.
        wrong_half_suspected: Whether correction was skipped because the peers may have learnt
            the wrong labels. The kept labels then scatter more around the predictions than the
            noisy ones.

    Raises:
        InputError: At the start of training, if the folder is not new or no ranking is made.
    """

    contradiction = renamed("contradiction", "label_peer_ratio")
    left_alone = renamed("left_alone", "correction_skipped")
    kept_vary_more = renamed("kept_vary_more", "wrong_half_suspected")

    def __init__(
        self,
        folder: str | Path = "labels",
        *,
        confidence: float | Literal["auto"] = Recipe.confidence,
        by_class: bool = Recipe.by_class,
        run_id: str | None = None,
    ) -> None:
        confidence = plain_number(confidence)
        if not is_confidence(confidence):
            raise InputError(f"confidence={confidence} must be auto, or a number from 0 to 1.")
        check_by_class(by_class)
        self.folder = Path(folder)
        self.confidence = confidence
        self.by_class = by_class
        self.run_id = run_id
        self.layer: LabelStore | None = None
        self.label_peer_ratio: float | None = None
        self.correction_skipped = False
        self.wrong_half_suspected = False
        self.uncertainty: Path | None = None
        self.proposals: Path | None = None
        self._names = FileNames()
        self._store: PredictionStore | None = None

    def show_in(self, uncertainty: str | Path, proposals: str | Path) -> None:
        """Also write images for a person's review, one PNG per sample.

        Args:
            uncertainty: A new folder for the peers' disagreement at each pixel of the samples
                ranked noisy. It is the total variation distance of their class probabilities,
                with 0 to 1 stored as 0 to 255.
            proposals: A new folder for the peers' own mask of every sample: at each pixel the
                class with the highest mean probability.
        """
        self.uncertainty, self.proposals = Path(uncertainty), Path(proposals)

    def vote(
        self, peer_a: Tensor, peer_b: Tensor, label: Tensor, confidence: float, ignore_index: int
    ) -> Tensor:
        """Correct a label where both peers agree against it; can be overridden.

        Section 2.2: "For each pixel in the noisy samples, we correct their labels if the prediction
        results from the two networks are the same but different from the input labels."

        Args:
            peer_a: Class probabilities of the first peer, `(1, K, H, W)`.
            peer_b: Class probabilities of the second peer.
            label: The label, `(1, H, W)`.
            confidence: The mean probability that the peers' class needs; infinite to change
                nothing.
            ignore_index: Class id of unlabelled pixels.

        Returns:
            The corrected label, `(1, H, W)`.
        """
        return vote(peer_a, peer_b, label, confidence=confidence, ignore_index=ignore_index)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._store, self._names, self.layer = None, FileNames(), None
        self.label_peer_ratio = None
        self.correction_skipped = self.wrong_half_suspected = False
        ignore_index = getattr(pl_module, "ignore_index", IGNORE_INDEX)
        if not 0 <= ignore_index <= 65535:
            raise InputError(
                f"ignore_index={ignore_index} cannot be stored in a mask; use 255 for unlabelled "
                "pixels."
            )
        if trainer.is_global_zero:
            for folder in (self.folder, self.uncertainty, self.proposals):
                if folder is not None:
                    check_place(folder)
                    LabelStore.check_free(folder)
        ranking = ranking_callback(trainer)
        if self.by_class:
            ranking.check_ranks_classes()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._store is None:  # the first epoch follows the module's own on_train_start
            self._look(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._store is None:  # a fit that goes on within an epoch does not begin it
            self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the samples, and keep what the peers say of them from now on."""
        ranking = ranking_callback(trainer)
        dataset, watched = ranking.judged_dataset(trainer), ranking.watched_samples(trainer)
        if watched and detect_augmentation(trainer, dataset, watched, corrected=True) == "mask":
            raise InputError(
                "The dataset returns different masks each time it is read, so it probably augments "
                f"them, and corrected masks would not fit; {REMEDY}."
            )
        assert isinstance(pl_module, CoSegModule)
        keeps = tiles_of(dataset) is None
        self._store = PredictionStore(len(dataset), pl_module.ignore_index, keeps=keeps)
        look_at_batches(pl_module, partial(self.check_batch, trainer))

    def check_batch(self, trainer: pl.Trainer, sample: Batch) -> None:
        """Check a batch in the first epoch, since an error after training would come too late."""
        check_none_dropped(trainer, sample)
        self._names.add(map(sample_name, () if sample.ids is None else sample.ids))

    @override
    def observe(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        assert self._store is not None
        check_count(sample, len(indices))
        self._store.add(indices, sample, logits)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The ranking was made in on_train_end, so the order of the callbacks does not matter.
        callback = ranking_callback(trainer)
        if callback.ranking is None:  # training was interrupted
            return
        if callback.masks_changed:
            raise InputError(
                "No masks are corrected, since the dataset returns other masks than before "
                f"training, and corrected ones would not fit; {REMEDY}."
            )
        assert isinstance(pl_module, CoSegModule)
        ranking = replace(callback.ranking, by_class=self.by_class)
        self._names.add(ranking.ids)  # the ids of all processes
        confidence = self._confidences(sorted(ranking.noisy), ranking)
        shown = (self.uncertainty, self.proposals)
        free = [None if place is None else still_free(place) for place in shown]
        self.folder = trainer.strategy.broadcast(still_free(self.folder))
        self.uncertainty, self.proposals = trainer.strategy.broadcast(free)
        pictures = [folder for folder in (self.uncertainty, self.proposals) if folder is not None]
        if trainer.is_global_zero:
            for folder in (self.folder, *pictures):
                LabelStore.create(folder)
        trainer.strategy.barrier("label layer begun")
        dataset = callback.judged_dataset(trainer)
        rows = self._correct(trainer, pl_module, dataset, ranking, confidence)
        self._store = None
        changed_pixels = {index: changed for index, changed, _, _ in rows}
        dice = {index: dice for index, _, dice, _ in rows if dice is not None}
        callback.record_corrections(changed_pixels, dice, by_class=self.by_class)
        if trainer.is_global_zero:
            facts = {
                ranking.ids[index]: {"changed_pixels": changed, "original": original}
                for index, changed, _, original in rows
            }
            writer = LabelStoreWriter(self.folder)
            writer.finish(facts, run_id=self.run_id, numbered=ranking.numbered)
            for folder in pictures:
                ids = ranking.ids if folder == self.proposals else facts
                LabelStoreWriter(folder).finish(
                    {sample_id: {} for sample_id in ids},
                    run_id=self.run_id,
                    numbered=ranking.numbered,
                )
        trainer.strategy.barrier("label layer written")
        self.layer = LabelStore(self.folder)

    def _correct(
        self,
        trainer: pl.Trainer,
        module: CoSegModule,
        dataset: Any,
        ranking: Ranking,
        confidence: dict[int, float],
    ) -> list[tuple[Any, ...]]:
        """Write a corrected mask for every noisy sample, and a proposal for every sample.

        Returns:
            On all processes, one row per noisy sample: its index, the number of changed pixels, the
            Dice to the original mask if that is known, and the digest of the mask before.
        """
        noisy_classes = ranking.noisy_classes
        truth = dataset.truth if isinstance(dataset, SampleDataset) else None
        writer = LabelStoreWriter(self.folder)
        rows: list[tuple[Any, ...]] = []

        def draw(folder: Path | None, index: int, picture: Mask) -> None:
            if folder is not None:
                LabelStoreWriter(folder).write(ranking.ids[index], picture)

        def write(index: int, label: Mask, corrected: Mask, original: Mask | None) -> None:
            writer.write(ranking.ids[index], corrected)
            dice = None if original is None else mask_dice(corrected, original)
            rows.append((index, int((corrected != label).sum()), dice, mask_digest(label)))

        def correct(index: int, both: Sequence[Tensor], label: Tensor) -> None:
            write_later(draw, self.proposals, index, proposal(*both))
            if index not in confidence:
                return
            write_later(draw, self.uncertainty, index, disagreement(*both))
            corrected = self.vote(
                both[0], both[1], label[None], confidence[index], module.ignore_index
            )[0]
            if self.by_class:
                corrected = only_of_classes(corrected, label, noisy_classes[index])
            masks = (smallest_type(mask.cpu().numpy()) for mask in (label, corrected))
            # The original is read here, since a dataset need not be safe to read in threads.
            original = None if truth is None else truth.mask(index)
            write_later(write, index, *masks, original)

        wanted = sorted(confidence) if self.proposals is None else list(range(len(ranking.ids)))
        with background_writer() as write_later:
            if tiles_of(dataset) is not None:
                self._predict_tiles(trainer, module, dataset, wanted, correct)
            else:
                self._predict(trainer, module, dataset, wanted, correct)
        return gather_rows(rows)

    def _predict(
        self, trainer: pl.Trainer, module: CoSegModule, dataset: Any, wanted: list[int], then: Then
    ) -> None:
        """Call `then` for the wanted samples, each on one process."""

        def at_own_size(index: int, peers: Tensor, label: Tensor) -> None:
            label = label_at_own_size(dataset, index, label)
            then(index, probabilities_at_own_size(dataset, index, peers, label), label)

        def predict(indices: list[int], sample: Batch) -> None:
            peers = dequantize(quantize(module(sample.images)))
            for n, index in enumerate(indices):
                at_own_size(index, peers[:, n], sample.masks[n])

        assert self._store is not None
        if all(gather_objects(self._store.keeps_predictions)):
            for index in wanted:
                prediction = self._store.prediction(index)
                if prediction is not None:  # otherwise another process holds it
                    at_own_size(index, *prediction)
        else:
            evaluation_pass(trainer, module, dataset, wanted, predict, "Correction")

    def _predict_tiles(
        self,
        trainer: pl.Trainer,
        module: CoSegModule,
        dataset: SampleDataset,
        wanted: list[int],
        then: Then,
    ) -> None:
        """Call `then` for the wanted tiles, after blending them with their neighbours.

        Tiles are predicted in order, and kept as long as another tile needs them.
        """
        tiles = tiles_of(dataset)
        assert tiles is not None
        own = wanted[trainer.global_rank :: trainer.world_size]
        index_of = {tile_id: index for index, tile_id in enumerate(dataset.ids)}
        needs = {
            index: [index_of[i] for i in tiles.overlapping(dataset.ids[index]) if i in index_of]
            for index in own
        }
        waiting = sorted(own, key=lambda index: max(needs[index]))
        last_use = {other: index for index in waiting for other in needs[index]}
        kept: dict[int, Tensor] = {}

        def predict(indices: list[int], sample: Batch) -> None:
            peers = quantize(module(sample.images)).cpu()
            for n, index in enumerate(indices):
                kept[index] = peers[:, n]
                while waiting and max(needs[waiting[0]]) <= index:
                    blend(waiting.pop(0))

        def blend(index: int) -> None:
            label = label_at_own_size(dataset, index, torch.empty(0, dtype=torch.long))

            def prediction(tile_id: str) -> NDArray[np.float32] | None:
                other = index_of.get(tile_id)
                if other is None:
                    return None
                target = torch.empty([span.size for span in tiles.tiles[tile_id][1:]])
                peers = dequantize(kept[other])
                sized = probabilities_at_own_size(dataset, other, peers, target)
                return torch.stack(sized).numpy()

            blended = torch.from_numpy(tiles.blend(dataset.ids[index], prediction))
            then(index, list(blended), label)
            for other in needs[index]:
                if last_use[other] == index:
                    kept.pop(other, None)

        every = sorted(last_use)
        evaluation_pass(trainer, module, dataset, every, predict, "Correction", shared=False)

    def _confidences(self, noisy: list[int], ranking: Ranking) -> dict[int, float]:
        """Return the confidence that the peers need to overrule each noisy label, by index."""
        if not noisy:
            return {}
        if self.confidence != "auto":
            return dict.fromkeys(noisy, float(self.confidence))
        guard = self._guard(noisy, ranking)
        self.label_peer_ratio = guard.label_peer_ratio
        self.wrong_half_suspected = guard.wrong_half_suspected
        self.correction_skipped = not guard.peers_know_better
        if self.correction_skipped:
            return dict.fromkeys(noisy, math.inf)
        return dict(zip(noisy, map(float, guard.confidence), strict=True))

    def _guard(self, noisy: list[int], ranking: Ranking) -> CorrectionGuard:
        assert self._store is not None
        assert ranking.size_bias is not None
        table = np.concatenate(gather_objects(self._store.distances))
        against_label, among_peers = table[np.argsort(table[:, 0]), 1:].T
        is_noisy = np.isin(np.arange(len(table)), noisy)
        return CorrectionGuard(
            against_label[is_noisy],
            among_peers[is_noisy],
            against_label[~is_noisy],
            excluded_size_bias=ranking.size_bias[is_noisy],
            kept_size_bias=ranking.size_bias[~is_noisy],
        )


def still_free(folder: Path) -> Path:
    """Return a folder that was free before training, or another one if it was written meanwhile."""
    try:
        LabelStore.check_free(folder)
    except InputError:
        other = free_path(folder)
        rank_zero_warn(
            f"{folder} was written by something else during training, and is never overwritten; "
            f"the masks of this fit are in {other}. Give each run a folder of its own."
        )
        return other
    return folder


def tiles_of(dataset: Any) -> Tiles | None:
    """The tiles of a dataset; None if its samples are not tiles, or for foreign datasets."""
    return dataset.tiles if isinstance(dataset, SampleDataset) else None


def probabilities_at_own_size(
    dataset: Any, index: int, peers: Tensor, label: Tensor
) -> list[Tensor]:
    """Resize both peers' probabilities to a sample's own size.

    Shape:
        peers `(2, K, h, w)`, label `(H, W)`; returns two of `(1, K, H, W)`.
    """
    return [
        resize_probabilities(of_content(dataset, index, p[None], label.shape), label) for p in peers
    ]


def disagreement(peer_a: Tensor, peer_b: Tensor) -> Mask:
    """Return the disagreement of two peers: the total variation distance, from 0 to 255.

    Shape:
        class probabilities `(1, K, H, W)`; returns `(H, W)`, uint8.
    """
    distance = (peer_a - peer_b).abs().sum(dim=1)[0] / 2
    picture: Mask = (255 * distance).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return picture


def proposal(peer_a: Tensor, peer_b: Tensor) -> Mask:
    """Return the class with the highest mean probability of two peers at each pixel.

    Shape:
        class probabilities `(1, K, H, W)`; returns `(H, W)`.
    """
    return smallest_type(predicted_classes(peer_a + peer_b)[0].cpu().numpy())


def label_at_own_size(dataset: Any, index: int, label: Tensor) -> Tensor:
    """Return a sample's label at its stored size if it is known, else the given resized label."""
    stored = stored_mask(dataset, index)
    return label if stored is None else torch.from_numpy(stored.astype(np.int64)).to(label)


def only_of_classes(corrected: Tensor, label: Tensor, classes: list[int]) -> Tensor:
    """Restrict a correction to pixels that were or become one of the given classes."""
    noisy = torch.tensor(classes, device=label.device)
    concerned = torch.isin(label, noisy) | torch.isin(corrected, noisy)
    return corrected.where(concerned, label)


def ranking_callback(trainer: pl.Trainer) -> CorruptionRanking:
    """Return the trainer's `CorruptionRanking`.

    Raises:
        InputError: If the trainer has none.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CorruptionRanking):
            return callback
    raise InputError(
        "This callback needs the ranking of the samples; add a CorruptionRanking to the "
        "trainer's callbacks."
    )


def resize_probabilities(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Resize class probabilities to a mask's resolution.

    Shape:
        probabilities `(1, K, h, w)`, mask `(H, W)`; returns `(1, K, H, W)`.
    """
    if probabilities.shape[-2:] == mask.shape:
        return probabilities
    size = (mask.shape[0], mask.shape[1])
    return F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
