"""CorruptionRanking: the corruption score of every training sample at the end of stage 1."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from typing_extensions import override

from coseg_lightning.callbacks.augmentation import REMEDY, detect_augmentation
from coseg_lightning.callbacks.evaluation_pass import is_own_dataset
from coseg_lightning.callbacks.evidence_sum import (
    EvidenceCallback,
    EvidenceSum,
    PredictionObserver,
    evidence_pass,
)
from coseg_lightning.callbacks.outline_record import OutlineRecord
from coseg_lightning.callbacks.path_guard import PathGuard, is_of_this_package
from coseg_lightning.callbacks.processes import gather_objects
from coseg_lightning.callbacks.watched import WatchedSamples
from coseg_lightning.data.samples import SampleDataset, label_dice
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import check_place, free_path
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.epochs import planned_epochs
from coseg_lightning.modules.recipe import (
    SCORES_WITH_KINDS,
    Recipe,
    check_by_class,
    is_count,
    plain_number,
)
from coseg_lightning.modules.selection import TrainingSetRanker
from coseg_lightning.modules.steps import SegmentationSteps, look_at_batches, look_no_more
from coseg_lightning.ranking.evidence import (
    Evidence,
    Floats,
    check_names_samples,
    kind_numbers,
)
from coseg_lightning.ranking.ranking import Ranking
from coseg_lightning.ranking.scores import check_score, mask_scores


class CorruptionRanking(EvidenceCallback, TrainingSetRanker):
    """Scores every training sample when training ends, and writes the ranking (section 2.1).

    The scores come from passes in evaluation mode at the end of the last epochs. Each pass covers
    every sample exactly once, without augmentation if the dataset is one of this package's. Single
    epochs differ a lot, but their mean is stable. Averaged weights (`AveragedWeights`) are stable
    too, and are used if there are any. The result is the same for any number of processes.

    If the module selects from the whole set, the set is also ranked during training. This happens
    after half of the epochs, and then after every further eighth of them.

    The defaults are those of `Recipe`. Override `scores` to rank by another score.

    Args:
        path: A new CSV file, conventionally `scores.csv`; see
            `coseg_lightning.ranking.ranking.Ranking`. It is written when the set is ranked, and
            again with the changes of a `LabelCorrection`. If another run has written it meanwhile,
            the ranking gets a name such as `scores-2.csv`, which is told.
        dataset: The dataset to score; default the training dataset. Give a view without
            augmentation if your dataset augments its samples itself.
        score: The name of the score, see `coseg_lightning.ranking.scores.mask_scores`.
        epochs: Number of last epochs over which scores are averaged. 1 uses only the trained
            peers, which suits averaged weights. Training that is stopped before `max_epochs` or
            `max_steps` averages fewer epochs.
        by_class: Whether each class is ranked by itself. A sample is then noisy if one of its
            classes is.
        kinds: The kind of each image by its id, such as its scanner or its site; default the
            dataset's `kinds`. Peers are worse on some kinds, and annotators err differently.
            Scores are therefore standardised within each kind. Samples without a kind form one
            further kind.
        annotators: Who drew each mask, by its id. The default is the dataset's `annotators`, or
            with score=joint the batches' key `annotator`. Each person's steady displacement is
            corrected before masks are judged. A person's record on other masks counts too; see
            `coseg_lightning.annotator_report`.
        run_id: Identifies the run in the file.

    Attributes:
        ranking: The ranking, on every process, once training has ended.
        selected: Whether the peers excluded samples when training ended.

    Raises:
        InputError: If kinds or annotators are no such mappings. At the start of training, if the
            file exists or the module has no peers. As soon as the ids are known, and before the
            second epoch at the latest, if kinds or annotators name no sample at all.
    """

    def __init__(
        self,
        path: str | Path = "scores.csv",
        *,
        dataset: Any = None,
        score: str = Recipe.score,
        epochs: int = Recipe.score_epochs,
        by_class: bool = Recipe.by_class,
        kinds: Mapping[str, str] | None = None,
        annotators: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        check_score(score)
        epochs = plain_number(epochs)
        check_by_class(by_class)
        if not is_count(epochs, least=1):
            raise InputError(f"epochs={epochs} must be a whole number of at least 1.")
        _check_kinds(kinds, score if type(self).scores is CorruptionRanking.scores else None)
        _check_annotators(annotators)
        super().__init__(dataset, epochs)
        self.path = Path(path)
        self.score = score
        self.by_class = by_class
        self.kinds = kinds
        self.annotators = annotators
        self._displacement: Floats | None = None
        self.run_id = run_id
        self.ranking: Ranking | None = None
        self.selected = False
        self._is_written = True  # there is nothing to write yet
        self._is_begun = False  # whether the file is of this fit
        self._has_looked = False
        self._never_ranks = False
        self._watched: WatchedSamples | None = None
        self._numbered: WatchedSamples | None = None  # until the second epoch begins
        self._seen: set[str] | None = None  # ids, until kinds and annotators are checked
        self._known = 0  # how many ids the epochs so far have shown
        self._images_vary = False
        # Ids and masks before training, if masks are the same each time.
        self._first_read: list[tuple[Any, Tensor]] = []
        self.masks_changed = False  # since then
        self._outlines: OutlineRecord | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, CoSegModule):
            raise InputError(
                "CorruptionRanking needs the two peers of a CoSegModule, but "
                f"{type(pl_module).__name__} has none."
            )
        if self.path.exists():
            raise InputError(f"{self.path} exists and is never overwritten; give a new file.")
        if trainer.is_global_zero:
            check_place(self.path)
        if self.by_class:
            self.check_ranks_classes()
        super().setup(trainer, pl_module, stage)
        self.ranking, self.selected = None, False
        self._is_written, self._is_begun = True, False
        self._has_looked, self._watched, self._numbered = False, None, None
        self._first_read, self.masks_changed = [], False
        self._checks_seen, self._known = False, 0
        look_no_more(pl_module)
        pl_module.record_ids()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        if self._has_looked:  # the first epoch follows the module's own on_train_start
            self._check_order(trainer)
            self._check_seen(trainer, pl_module)
            return
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: CoSegModule) -> None:
        """Look at the samples and the path of the first batches, before the first step."""
        self._has_looked = True
        self._warn_if_never_ranked(trainer, pl_module)
        if compat.loses_results(trainer.strategy):
            rank_zero_warn(
                "This strategy trains in processes of its own, so what callbacks know, such as "
                "`ranking` and `correction_skipped`, is lost when they end; read the files that "
                "they write, or use strategy='ddp'."
            )
        dataset = self.judged_dataset(trainer)
        if self.annotators is None:
            named_annotators(dataset)  # which checks them
        watched = self.watched_samples(trainer)
        if watched is None:
            self._check_names(list(map(str, dataset.ids)))
            return
        self._look_for_ids(trainer, watched)
        varies = detect_augmentation(trainer, dataset, watched)
        self._images_vary = varies is not None
        if self.dataset is None and trainer.world_size > 1:
            check_one_set(watched.alone(trainer)[0], len(dataset), varies)
        if varies != "mask":
            self._first_read = [(one.ids, one.masks.cpu()) for one in watched.alone(trainer)[0]]
            if self._first_read[0][0] is None:
                self._numbered = watched
        if varies is not None:
            rank_zero_warn(
                f"The dataset returns different {varies}s each time it is read, so it probably "
                f"augments them, and the scores would differ too; {REMEDY}."
            )
        warn_of_parts(trainer)
        if not is_of_this_package(trainer, pl_module):
            has_view = self.dataset is not None
            ignored = pl_module.ignore_index
            guard = PathGuard(trainer, dataset, watched, ignored, has_view=has_view)
            look_at_batches(pl_module, partial(guard.check, trainer))

    def _waits_for_ranking(self, module: CoSegModule) -> bool:
        """Whether peers learn from all samples alike until the whole set is ranked."""
        return bool(
            module.selection.waits_for_ranking and module.noise.known and module.noise_level
        )

    def _warn_if_never_ranked(self, trainer: pl.Trainer, module: CoSegModule) -> None:
        """Warn before training if no ranking will come in the midst of it."""
        streams = math.isinf(trainer.num_training_batches) and trainer.max_steps >= 0
        epochs = planned_epochs(trainer)
        self._never_ranks = not streams and (epochs is None or epochs < 2)
        if self._never_ranks and self._waits_for_ranking(module):
            what = "the number of epochs is unknown" if epochs is None else "1 epoch is trained"
            rank_zero_warn(
                f"Peers select their samples by a ranking after half of the epochs, but {what}, so "
                "they will learn from all samples alike; set max_epochs to 2 or more, or use "
                "selection='relative'."
            )

    def _check_order(self, trainer: pl.Trainer) -> None:
        """Raise an `InputError` if samples without ids have changed places by the second epoch."""
        before, self._numbered = self._numbered, None
        if before is None:
            return
        now = WatchedSamples(trainer, self.judged_dataset(trainer), times=1)
        pairs = list(zip(before.alone(trainer)[0], now.alone(trainer)[0], strict=False))
        others = [
            index
            for index, (first, again) in zip(before.indices, pairs, strict=False)
            if not torch.equal(first.masks, again.masks)
            or (not self._images_vary and not torch.equal(first.images, again.images))
        ]
        if len(others) >= min(2, len(pairs)):  # a single one may be augmented, though rarely
            raise InputError(
                f"The dataset returns another sample at {others[0]} than in the first epoch, so "
                "it probably shuffles itself; its samples need ids, so let it return "
                "(image, mask, id)."
            )

    def _look_again(self, trainer: pl.Trainer) -> None:
        """Warn if masks are others than before training, as by augmentation that began later."""
        now: list[Batch] = []
        if self._first_read:
            now = WatchedSamples(trainer, self.judged_dataset(trainer), times=1).alone(trainer)[0]
        changed = any(
            ids == again.ids
            and masks.shape == again.masks.shape
            and not torch.equal(masks, again.masks.cpu())
            for (ids, masks), again in zip(self._first_read, now, strict=False)
        )
        self.masks_changed = any(gather_objects(changed))
        if self.masks_changed:
            rank_zero_warn(
                "The dataset returns other masks than before training, so augmentation began in a "
                f"later epoch, or something changed the masks, and scores are of these; {REMEDY}."
            )

    def _check_names(self, ids: list[str]) -> None:
        """Raise an `InputError` if kinds or annotators name samples, but none of these."""
        check_names_samples("kinds", self.kinds or {}, ids)
        check_names_samples("annotators", self.annotators or {}, ids)

    def _look_for_ids(self, trainer: pl.Trainer, watched: WatchedSamples) -> None:
        """Check what kinds and annotators name, now or as batches tell the ids."""
        if not (self.kinds or self.annotators):
            return
        dataset = self.judged_dataset(trainer)
        few = [sample.ids for sample in watched.alone(trainer)[0]]
        if few[0] is None:
            self._check_names([str(index) for index in range(len(dataset))])
        else:
            self._checks_seen = self.dataset is None and trainer.world_size == 1

    def _check_seen(self, trainer: pl.Trainer, module: CoSegModule) -> None:
        """Check what kinds and annotators name, if the first epoch has shown all samples."""
        seen = module.trained_ids or set()
        if self._checks_seen and len(seen) >= len(self.judged_dataset(trainer)):
            self._check_names(sorted(seen))
        self._checks_seen = False

    def _check_new_ids(self, trainer: pl.Trainer, module: CoSegModule) -> None:
        """Raise an `InputError` at the first epoch with samples that a ranking would not find.

        They are looked for only if more ids are known than there are samples. A sample may also
        have several ids, those of its patches. In the first epoch only a given view lacks samples.
        """
        if self._never_ranks or not module.selection.uses_rankings:
            return
        seen = trained_ids(module)
        before, self._known = self._known, len(seen)
        if len(seen) <= before or (before == 0 and self.dataset is None):
            return
        dataset = self.judged_dataset(trainer)
        if len(seen) <= len(dataset):
            return
        share = evidence_pass(trainer, module, dataset).share
        every = gather_objects([] if share is None else share.ids)
        ranked = [sample_id for ids in every for sample_id in ids]
        if message := _left_out(seen, ranked, is_view=self.dataset is not None):
            raise InputError(message)

    def watched_samples(self, trainer: pl.Trainer) -> WatchedSamples | None:
        """Return a few samples of the ranked dataset, as they are ranked.

        They are read once, when a fit begins. What is of this package alone is not watched.
        """
        dataset = self.judged_dataset(trainer)
        if is_own_dataset(dataset) and is_of_this_package(trainer, trainer.lightning_module):
            return None
        if self._watched is None:
            self._watched = WatchedSamples(trainer, dataset)
        return self._watched

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._has_looked:  # a fit that goes on within an epoch does not begin it
            assert isinstance(pl_module, CoSegModule)
            self._look(trainer, pl_module)
        elif batch_idx:
            self._watched = None

    @override
    def observers(self, trainer: pl.Trainer, module: CoSegModule) -> list[PredictionObserver]:
        dataset, drawn_by = self.judged_dataset(trainer), self.annotators
        if drawn_by is None:
            drawn_by = named_annotators(dataset)
        if self.score != "joint" and module.noise.known and not drawn_by:
            return []
        if self._outlines is None:
            self._outlines = OutlineRecord(dataset, module.ignore_index, drawn_by)
        return [self._outlines]

    @override
    def on_last_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, CoSegModule)
        self._watched = None  # all callbacks have begun
        self._check_new_ids(trainer, module)
        epochs_left = (planned_epochs(trainer) or 0) - trainer.current_epoch - 1
        if epochs_left >= self.epochs:
            self.evidence = EvidenceSum()  # that of a shorter fit, which this one continues
        elif epochs_left > 0:
            self.evidence.add(self.judge(trainer, module))
        waits = module.selection.waits_for_ranking  # a fit may begin after half of the epochs
        is_due = is_ranking_due(trainer, at_once=waits)
        if module.selection.uses_rankings and module.noise.known and is_due:
            evidence = EvidenceSum().add(self.judge(trainer, module))
            module.selection.update(self.rank(trainer, module, evidence))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CoSegModule)
        self.selected = pl_module.alpha < 1
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        observers = [c for c in callbacks if isinstance(c, PredictionObserver)]
        observers += self.observers(trainer, pl_module)
        dataset = self.judged_dataset(trainer)
        self._look_again(trainer)
        self.evidence.add(evidence_pass(trainer, pl_module, dataset, "Ranking", observers))
        if self._waits_for_ranking(pl_module) and not self._never_ranks:
            rank_zero_warn(
                "Training ended before the first ranking, which follows half of "
                f"max_epochs={trainer.max_epochs}, so the peers learnt from all samples alike; set "
                "max_epochs to the number of epochs that you train, or use selection='relative'."
            )
        ids, peers = self._gathered(trainer, self.evidence)
        if message := _left_out(trained_ids(pl_module), ids, is_view=self.dataset is not None):
            rank_zero_warn(message)
        is_known = trainer.world_size == 1 and trainer.ckpt_path is None  # what was trained on
        if is_known and (unseen := _never_seen(pl_module, ids)):
            rank_zero_warn(unseen)
        if not pl_module.noise.known:
            pl_module.noise.set_noise_level_from(*peers)
        truth = dataset if isinstance(dataset, SampleDataset) else None
        self._is_written = False
        self.ranking = replace(
            self._ranking(trainer, pl_module, ids, peers, numbered=self.evidence.numbered),
            replaced=None if truth is None else truth.replaced,
            label_dice=label_dice(dataset),
            run_id=self.run_id,
        )
        self._write(trainer)  # before a correction or anything else that may fail

    def check_ranks_classes(self) -> None:
        """Raise an `InputError` if a subclass's own scores would have no effect on classes."""
        if type(self).scores is not CorruptionRanking.scores:
            raise InputError(
                f"by_class ranks each class by score={self.score}, so {type(self).__name__}.scores "
                "would have no effect on which samples count as noisy; leave out one of them."
            )

    def rank(self, trainer: pl.Trainer, module: CoSegModule, evidence: EvidenceSum) -> Ranking:
        """Rank the training set from the evidence of one or more passes, at the module's NoL."""
        ids, peers = self._gathered(trainer, evidence)
        if message := _left_out(trained_ids(module), ids, is_view=self.dataset is not None):
            raise InputError(message)
        return self._ranking(trainer, module, ids, peers, numbered=evidence.numbered)

    def _gathered(
        self, trainer: pl.Trainer, evidence: EvidenceSum
    ) -> tuple[list[str], tuple[Evidence, Evidence]]:
        """Gather the ids and both peers' evidence, with outlines and kinds if there are any."""
        ids, peers = evidence.gathered()
        self._check_names(ids)
        peers, self._displacement = complete_evidence(
            ids,
            peers,
            self._outlines,
            self.judged_dataset(trainer),
            self.kinds,
            numbered=evidence.numbered,
        )
        return ids, peers

    def _ranking(
        self,
        trainer: pl.Trainer,
        module: CoSegModule,
        ids: list[str],
        peers: tuple[Evidence, Evidence],
        *,
        numbered: bool,
    ) -> Ranking:
        dataset = self.judged_dataset(trainer)
        score_a, score_b = (self.scores(peer, ids, dataset) for peer in peers)
        return Ranking.of_evidence(
            ids,
            peers,
            (score_a, score_b),
            module.noise_level,
            score=self.score,
            numbered=numbered,
            by_class=self.by_class,
            displacement=self._displacement,
        )

    def scores(self, evidence: Evidence, ids: list[str], dataset: Any) -> Floats:
        """Compute a peer's corruption scores, higher for worse labels; may be overridden.

        Args:
            evidence: The peer's evidence on all samples.
            ids: The samples' ids.
            dataset: The dataset that is ranked.

        Returns:
            The scores, `(N,)`.
        """
        return mask_scores(evidence, self.score)

    def record_corrections(
        self, changed_pixels: dict[int, int], dice: dict[int, float], *, by_class: bool
    ) -> None:
        """Add the results of a label correction to the ranking, whose file is written again.

        Args:
            changed_pixels: Number of changed pixels, by sample index.
            dice: Dice of the corrected mask to the original mask, by sample index, if known.
            by_class: Whether a sample is noisy if one of its classes is.
        """
        assert self.ranking is not None
        self._is_written = False
        self.ranking = replace(
            self.ranking, changed_pixels=changed_pixels, corrected_dice=dice, by_class=by_class
        )

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.ranking is None and not trainer.interrupted:
            rank_zero_warn("No epoch was trained, so nothing was ranked or corrected.")

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # This hook follows on_fit_end, in which corrections are recorded in any callback order.
        if stage == "fit":
            self._end(pl_module)
            self._write(trainer)
            trainer.strategy.barrier("ranking written")

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._end(pl_module)

    def _end(self, module: pl.LightningModule) -> None:
        """Forget what was kept for the fit."""
        self._watched, self._numbered, self._outlines, self._seen = None, None, None, None
        self._first_read = []
        if isinstance(module, SegmentationSteps):
            look_no_more(module)

    def _write(self, trainer: pl.Trainer) -> None:
        """Write the file, unless it is up to date."""
        if self._is_written:
            return
        self._is_written = True
        if self.ranking is None or not trainer.is_global_zero:
            return
        if not self._is_begun and self.path.exists():
            taken, self.path = self.path, free_path(self.path)
            rank_zero_warn(
                f"{taken} was written by something else during training, and is never "
                f"overwritten; the ranking is in {self.path}. Give each run a path of its own."
            )
        self._is_begun = True
        self.ranking.write(self.path)


def _check_kinds(kinds: Any, score: str | None) -> None:
    """Raise an `InputError` unless kinds map texts to texts, and the score uses kinds."""
    _check_mapping("kinds", "kind", kinds)
    if kinds and score is not None and score not in SCORES_WITH_KINDS:
        raise InputError(
            f"kinds would have no effect with score={score}; leave it out, or take one of the "
            f"scores {', '.join(SCORES_WITH_KINDS)}."
        )
    for sample_id, kind in (kinds or {}).items():
        if not isinstance(sample_id, str) or not isinstance(kind, str):
            raise InputError(
                f"kinds has {sample_id!r}: {kind!r}, but each id and each kind must be a text; "
                "convert them."
            )


def check_one_set(samples: Sequence[Batch], count: int, varies: str | None) -> None:
    """Raise an `InputError` if each process has a training set of its own.

    Args:
        samples: Some samples of this process.
        count: The number of its samples.
        varies: Which part of a sample differs from reading to reading: `image`, `mask` or None.
    """
    parts: list[Any] = [count, varies, [one.ids for one in samples]]
    parts += [[_digest(one.masks) for one in samples], [_digest(one.images) for one in samples]]
    counts, vary, ids, masks, images = zip(*gather_objects(parts), strict=True)
    compared = [counts, ids]
    if "mask" not in vary:
        compared += [masks] if any(vary) else [masks, images]
    if any(part != every[0] for every in compared for part in every):
        raise InputError(
            "Each process has a training set of its own, but all samples are ranked together; let "
            "Lightning distribute the samples, or give CorruptionRanking(dataset=...) the dataset "
            "of all of them, with ids."
        )


def _digest(values: Tensor) -> str:
    return hashlib.blake2b(values.detach().cpu().contiguous().float().numpy().tobytes()).hexdigest()


def mapping_of(dataset: Any, name: str, *, within: bool = True) -> Mapping[str, Any] | None:
    """Return a dataset's mapping from ids, such as its `kinds`; None if it has none.

    Args:
        dataset: The dataset.
        name: The attribute; one that is no mapping has another meaning.
        within: Whether to look into `Subset` and `ConcatDataset`, where ids stay the same.
    """
    own = getattr(dataset, name, None)
    if isinstance(own, Mapping):
        return own
    inner = [dataset.dataset] if within and isinstance(dataset, Subset) else []
    inner += list(dataset.datasets) if within and isinstance(dataset, ConcatDataset) else []
    found = [own for one in inner if (own := mapping_of(one, name)) is not None]
    return {i: value for mapping in found for i, value in mapping.items()} if found else None


def complete_evidence(
    ids: list[str],
    peers: tuple[Evidence, Evidence],
    outlines: OutlineRecord | None,
    dataset: Any,
    kinds: Mapping[str, str] | None,
    *,
    numbered: bool,
) -> tuple[tuple[Evidence, Evidence], Floats | None]:
    """Add outlines and kinds to the evidence, and take off annotators' steady displacements.

    Args:
        ids: The samples' ids.
        peers: Each peer's evidence on them.
        outlines: The outlines of the latest pass, and who drew them; None if they do not count.
        dataset: The dataset that is judged.
        kinds: The kind of each image by its id; None for those that the dataset knows.
        numbered: Whether the samples have no ids of their own.

    Returns:
        The evidence, and the displacement of each label; None if no annotator is known.
    """
    if outlines is not None:
        peers = outlines.added_to(ids, peers)
    if kinds is None:
        kinds = mapping_of(dataset, "kinds", within=not numbered)
        if kinds and not isinstance(dataset, SampleDataset) and kinds.keys().isdisjoint(ids):
            first = next(iter(kinds))
            if kinds is getattr(dataset, "kinds", None):
                rank_zero_warn(
                    f"The dataset's attribute kinds names {first!r} and others, but no sample has "
                    "such an id, so it is not used; if it is the kind of each image, give ids such "
                    f"as {ids[0]!r}."
                )
            kinds = None  # it means something else
    if kinds:
        numbers = kind_numbers(ids, kinds)
        peers = replace(peers[0], kinds=numbers), replace(peers[1], kinds=numbers)
    return (peers, None) if outlines is None else outlines.without_habits(ids, peers)


def named_annotators(dataset: Any) -> Mapping[str, Any] | None:
    """Return who drew the masks by the samples' ids, as a dataset's attribute `annotators` says.

    Raises:
        InputError: If it is a mapping, but not from texts to names.
    """
    annotators = mapping_of(dataset, "annotators")
    try:
        _check_annotators(annotators)
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}, or rename the dataset's attribute annotators if it means "
            "something else."
        ) from error
    return annotators


def _check_annotators(annotators: Any) -> None:
    """Raise an `InputError` unless annotators map texts to names."""
    _check_mapping("annotators", "name", annotators)
    for sample_id, name in (annotators or {}).items():
        if not isinstance(sample_id, str) or not isinstance(name, str | Real | None):
            raise InputError(
                f"annotators has {sample_id!r}: {name!r}, but each id must be a text, and each "
                "name a text or a number; convert them."
            )


def _check_mapping(setting: str, value: str, given: Any) -> None:
    """Raise an `InputError` unless a setting is None or a mapping."""
    if given is not None and not isinstance(given, Mapping):
        shown = f"{given!r:.60}" if isinstance(given, str) else f"a {type(given).__name__}"
        raise InputError(
            f"{setting} is {shown}, but it must be a mapping from each sample's id to its {value}; "
            f"give a dict such as {{'P001': '{'A' if value == 'kind' else 'Anna'}'}}."
        )


def warn_of_parts(trainer: pl.Trainer) -> None:
    """Warn if the trainer trains on a part of the set, although all of it is ranked."""
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        rank_zero_warn(
            f"overfit_batches={trainer.overfit_batches} trains on a few batches, but the whole "  # type: ignore[attr-defined]
            "training set is ranked and corrected, by peers that never saw most of it."
        )


def is_ranking_due(trainer: pl.Trainer, *, at_once: bool = False) -> bool:
    """Whether the whole set should be ranked at the end of the current epoch.

    Args:
        trainer: The trainer.
        at_once: Whether any epoch in the second half will do.
    """
    done, epochs = trainer.current_epoch + 1, planned_epochs(trainer)
    if epochs is None:  # half of them is unknown
        return False
    past_half = done - epochs // 2
    every = 1 if at_once else math.ceil(epochs / 8)
    return past_half >= 0 and done < epochs and past_half % every == 0


def _never_seen(module: CoSegModule, ids: list[str]) -> str:
    """Say which samples are ranked but were never trained on; an empty text if there are none."""
    trained = module.trained_ids or set()
    unseen = sorted(set(ids) - trained)
    if not unseen or trained.isdisjoint(ids):  # without ids, or with others
        return ""
    return (
        f"{len(unseen)} of the {len(ids)} ranked samples were not trained on in this fit, such as "
        f"{unseen[0]}: a limit of batches, drop_last or the sampler left them out. They are judged "
        "by peers that never saw them."
    )


def trained_ids(module: CoSegModule) -> set[str]:
    """Gather the ids of all samples that any process has trained on in this fit."""
    return set[str]().union(*gather_objects(module.trained_ids or set()))


def _left_out(trained: set[str], ids: Sequence[str], *, is_view: bool) -> str:
    """Say which samples were trained on but are not ranked; an empty text if there are none.

    Args:
        trained: The ids of all samples that were trained on.
        ids: Those of the ranked samples.
        is_view: Whether the ranked dataset was given.
    """
    missing = trained - set(ids)
    if not missing or missing == trained:  # the selection tells of ids that are all others
        return ""
    which = f"{len(missing)} samples, such as {min(missing)}, were trained on but are not among the"
    if is_view:
        return (
            f"{which} {len(ids)} of CorruptionRanking(dataset=...); give it the dataset of all "
            "samples that are trained on, with the same ids."
        )
    return (
        f"{which} {len(ids)} that are ranked, since later epochs have other samples than earlier "
        "ones; let train_dataloader always give all of them, from which its sampler may draw "
        "(RandomSampler(dataset, num_samples=...)), or in a fit of your own give "
        "CorruptionRanking(dataset=...) the dataset of all of them."
    )
