"""Retrains a run's network on masks that people have reviewed."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.files.settings import setting
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.masks import Mask, mask_digest, with_unlabelled
from coseg_lightning.labels.review import OK, REDRAW, TAKE, Review, unknown_id
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import changed_labels
from coseg_lightning.methods.coseg import retrain
from coseg_lightning.methods.second_look import rank_again
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.report.review_order import views_of, write_review_order
from coseg_lightning.runs.finished import FinishedRun
from coseg_lightning.runs.folder import RunFolder, stage_weights
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.summary import training_label_dice, write_summary


@dataclass(frozen=True)
class ReviewedMasks:
    """The training masks of a run after a review.

    Args:
        samples: The samples with the masks that the run was given, as they are in the files now.
        classes: The number of classes, background included.
        corrected: The layer of each mask that the run changed, by id.
        proposals: The networks' own masks, if the run wrote them.
        review: The review.
        drawn_anew: The samples whose mask files have changed since the run.
        left_out: The samples that an earlier review left out.
        filtered: The samples that the run's method left out, as far as no earlier review decided.
    """

    samples: SampleDataset
    classes: int
    corrected: Mapping[str, LabelStore]
    proposals: LabelStore | None
    review: Review
    drawn_anew: Collection[str] = ()
    left_out: Collection[str] = ()
    filtered: Collection[str] = ()

    def __post_init__(self) -> None:
        for sample_id, decision in self.review.decisions.items():
            if sample_id not in self._index_of:
                raise unknown_id(sample_id, self._index_of, of="a training mask of the run")
            if decision != TAKE:
                continue
            if (layer := self._proposed(sample_id)) is None:
                raise InputError(
                    f"The review takes the proposal for {sample_id}, but the run has no proposal "
                    "for it; decide ok or redraw."
                )
            proposal = layer.read(sample_id)
            self.review.check_taken(sample_id, self._kept(sample_id, proposal), proposal)
        for sample_id in self.review.files:
            self.mask(sample_id)  # raises an error for unusable drawn masks before training

    def mask(self, sample_id: str) -> Mask | None:
        """Return the mask that replaces a sample's given mask; None to keep the given one."""
        decision = self.review.decisions.get(sample_id, TAKE if sample_id in self.corrected else OK)
        if decision == TAKE:
            layer = self._proposed(sample_id)
            return None if layer is None else self._kept(sample_id, layer.read(sample_id))
        if decision == REDRAW and sample_id in self.review.files:
            like = self.samples.mask(self._index_of[sample_id])
            return self.review.read(sample_id, like, self.classes)
        return None

    def _kept(self, sample_id: str, proposal: Mask) -> Mask:
        return with_unlabelled(proposal, self.samples.mask(self._index_of[sample_id]))

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {sample_id: index for index, sample_id in enumerate(self.samples.ids)}

    @property
    def waiting(self) -> list[str]:
        """The samples that wait for a new mask and are left out of training."""
        before = set(self.left_out) - set(self.review.decisions)
        return sorted((self.review.to_redraw | before) - set(self.drawn_anew))

    @property
    def excluded(self) -> list[str]:
        """All samples that are left out of training."""
        filtered = set(self.filtered) - set(self.review.decisions)
        return sorted({*self.waiting, *filtered})

    def counts(self) -> dict[str, int]:
        """Count the decisions and their effects."""
        decisions = self.review.decisions
        undecided = set(self.corrected) - set(decisions)
        kept = [i for i, decision in decisions.items() if decision == TAKE]
        taken = [i for i in kept if i not in self.corrected]
        redrawn = {*self.review.files, *(set(self.drawn_anew) & set(decisions))}
        return {
            "corrected": len(undecided) + len(kept) - len(taken),
            "rejected": sum(decisions.get(i) == OK for i in self.corrected),
            "redraw": len(self.waiting),
            "redrawn": len(redrawn),
            "taken": len(taken),
            "confirmed": len(kept) - len(taken),
            "decided": len(decisions),
        }

    @rank_zero_only
    def recalibrated(
        self,
        folder: Path,
        noise_level: float | None,
        decisions: Mapping[str, str],
        second: LabelStore | None = None,
        decided_on: Mapping[str, Sequence[float]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Write `review_order.csv`, which recalibrates undecided masks from all decisions.

        Args:
            folder: The folder for the table.
            noise_level: The noise level of the run.
            decisions: The decisions of this and all earlier reviews.
            second: The networks' own masks after a second look, if they ranked all masks again.
            decided_on: See `decided_views`.

        Returns:
            The part of the summary's ranking; empty if there are too few decisions.
        """
        proposals = {i: p for i in self.samples.ids if (p := self._proposed(i)) is not None}
        if second is not None:
            proposals = dict.fromkeys(second.ids, second) | dict(self.corrected)
        found = write_review_order(
            folder, self.samples, proposals, noise_level, decisions, decided_on=decided_on
        )
        return {} if found is None else {"review": found.as_dict()}

    def _proposed(self, sample_id: str) -> LabelStore | None:
        if sample_id in self.corrected:
            return self.corrected[sample_id]
        has_proposal = self.proposals is not None and sample_id in self.proposals
        return self.proposals if has_proposal else None

    @rank_zero_only
    def write(self, folder: Path, run_id: str) -> None:
        """Write the masks that replace given ones as a label layer."""
        writer, facts = LabelStore.create(folder), {}
        for index, sample_id in enumerate(self.samples.ids):
            mask = self.mask(sample_id)
            if mask is not None:
                writer.write(sample_id, mask)
                facts[sample_id] = {"original": mask_digest(self.samples.mask(index))}
        writer.finish(facts, run_id=run_id)


def retrain_reviewed(
    run: FinishedRun,
    data: CoSegDataModule,
    folder: str | Path,
    review: Review,
    *,
    recipe: Recipe,
    network: Callable[[], SegmentationModule],
    trainer: Callable[..., pl.Trainer],
    classes: int,
    drawn_anew: Collection[str] = (),
    peer: Callable[[], nn.Module] | None = None,
) -> dict[str, Any]:
    """Retrain a run's network on its masks as reviewed by a person.

    Proposals that were taken and masks that were redrawn replace the run's given masks. Rejected
    corrections are discarded. Samples still to be redrawn are excluded from training and listed
    in `redraw.csv`. The run itself is not changed.

    Args:
        run: A finished run that trained peers, or an earlier review of one.
        data: The run's data, with the masks that it was given.
        folder: The folder for the reviewed layer, the network, and its `summary.json`. An
            interrupted retraining in it is continued.
        review: The review.
        recipe: The run's recipe.
        network: Makes the module to train.
        trainer: Makes a new trainer, see `run_stages`.
        classes: The number of classes, background included.
        drawn_anew: The samples whose mask files have changed since the run.
        peer: Makes the run's second peer. If given, it and the retrained network rank all masks
            again, so that a second look finds remaining errors.

    Returns:
        The content of `summary.json`.

    Raises:
        InputError: If the review belongs to another run, or the folder holds another review.
    """
    samples, origin = data.given_samples(), run.origin
    masks = ReviewedMasks(
        samples,
        classes,
        changed_labels(samples, [LabelStore(layer) for layer in run.layers]),
        run.proposals,
        review,
        drawn_anew,
        left_out=left_out(run),
        filtered=filtered(run) - set(_decided_before(run)),
    )
    config = {
        **run.config,
        "review": _decided_before(run) | review.decisions,
        "drawn": {i: mask_digest(m) for i in review.files if (m := masks.mask(i)) is not None},
        "reviewed_run": str(run.folder.absolute()),
    }
    config_and_data = {**config, "samples": data.identity()}
    _check_same_review(Path(folder), config_and_data)
    run_folder = RunFolder(folder, config_and_data, resume=True)
    is_ranked = peer is None or (run_folder.path / "proposals" / "manifest.json").is_file()
    if run_folder.summary is not None and is_ranked:
        return run_folder.summary
    runner = StageRunner(run_folder, trainer, recipe.averaging, config["seed"])

    def retrain_network() -> None:
        run_folder.begin()
        labels = run_folder.path / "labels"
        masks.write(labels, run_folder.id)
        _use_masks(data, labels, masks.excluded)
        module = runner.built(network)
        weights, epochs = None, origin.epochs("robust_training") or 0
        if recipe.warm_start:
            weights = stage_weights(origin.folder / "robust_training", of="net_a.")
        counts = masks.counts()
        if any(counts[kind] for kind in ("corrected", "taken", "redrawn")):
            module.use_pixel_loss(recipe.retraining_loss)
        retrain(runner, data, module, recipe, weights, epochs)

    runner.stage("retraining", retrain_network, makes=["labels"])
    _use_masks(data, run_folder.path / "labels", masks.excluded)
    module = runner.restored(runner.built(network), "retraining")
    _write_tables(run_folder.path, run.folder / "scores.csv", masks.waiting, data)
    level = run.summary["ranking"]["noise_level"]
    second = None
    if peer is not None:
        rank_masks_again(run_folder, data, (module.net, peer()), level, classes, recipe.score)
        second = LabelStore(run_folder.path / "proposals")
    decided_on = decided_views(run, review.decisions)
    learnt = masks.recalibrated(run_folder.path, level, config["review"], second, decided_on) or {}
    return write_summary(
        runner,
        module,
        data,
        config,
        baselines={"before": run.summary["test"], **run.summary.get("baselines", {})},
        ranking={**run.summary["ranking"], **learnt},
        correction={
            **masks.counts(),
            "contradiction": run.summary["correction"]["contradiction"],
            "left_alone": False,
            "kept_vary_more": run.summary["correction"].get("kept_vary_more", False),
            "layers": ["labels"],
            "left_out": len(masks.excluded),
            **training_label_dice(data),
        },
    )


@rank_zero_only
def rank_masks_again(
    folder: RunFolder,
    data: CoSegDataModule,
    networks: tuple[nn.Module, nn.Module],
    noise_level: float,
    classes: int,
    score: str,
) -> None:
    """Write `scores.csv` and `proposals/` of the reviewed masks, using trained networks."""
    folder.clear("proposals")
    writer = LabelStore.create(folder.path / "proposals")
    for network in networks:
        network.eval()
    ranking = rank_again(
        networks,
        data.relabelled_samples(),
        noise_level,
        batch_size=data.batch_size,
        classes=classes,
        score=score,
        proposals=writer,
    )
    writer.finish({sample_id: {} for sample_id in ranking.ids}, run_id=folder.id)
    ranking.write(folder.path / "scores.csv")


def check_review(run: FinishedRun) -> None:
    """Raise an `InputError` if a run cannot be reviewed.

    This check is quick, so it can run before the data is read.
    """
    if run.is_audit or "folds" in run.summary:
        what = "is an audit" if run.is_audit else "has separate networks for each fold"
        raise InputError(
            f"{run.folder} {what}, so there are no two peers to retrain from; write the reviewed "
            f"masks with coseg apply {run.folder} DEST review=FILE, and start a new run on them."
        )
    if run.origin.epochs("robust_training") is None:
        raise InputError(
            f"{run.folder} has no peers to retrain from, since its method is "
            f"{run.config['method']['name']}; review a run of method=coseg."
        )


def _check_same_review(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise an `InputError` if a folder holds another review of the same run."""
    path = folder / "run.json"
    if not path.is_file():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["config"]
        same = all(before.get(name) == config[name] for name in ("review", "drawn"))
        same_data = before.get("samples") == config["samples"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # the error is reported when the folder is opened
    if not same and "reviewed_run" in before:
        raise InputError(
            f"{folder} holds an earlier review with other decisions; continue from that review "
            f"with {setting('resume', folder)} review=FILE, or write this one into another folder "
            "with hydra.run.dir=FOLDER."
        )
    if not same_data and "reviewed_run" in before:
        raise InputError(
            f"{folder} holds this review, retrained before masks were drawn anew; continue from it "
            f"with {setting('resume', folder)} review=FILE, or write this one into another folder "
            "with hydra.run.dir=FOLDER."
        )


def left_out(run: FinishedRun) -> set[str]:
    """The samples that an earlier review left out of training until they are redrawn."""
    path = run.folder / "redraw.csv"
    if not run.is_reviewed or not path.is_file():
        return set()
    return {row["id"] for row in read_table(path, ["id"])}


def filtered(run: FinishedRun) -> set[str]:
    """The samples that a run's method left out of training, such as those that `filter` ranks bad.

    A review leaves them out too, unless somebody decides on them.
    """
    count = run.origin.summary["correction"].get("left_out")
    if not count:
        return set()
    rows = read_table(run.origin.folder / "scores.csv", ["id", "noisy"])
    noisy = {row["id"] for row in rows if row["noisy"] == "1"}
    return noisy if len(noisy) == count else set()  # a method of your own may choose others


def _decided_before(run: FinishedRun) -> dict[str, str]:
    """The decisions of earlier reviews of a run."""
    return dict(run.config["review"]) if run.is_reviewed else {}


def decided_views(
    run: FinishedRun, decisions: Mapping[str, str]
) -> dict[str, tuple[float, float, float]]:
    """Return the views of each decided mask when it was decided on, see `views_of`.

    A mask that was taken or redrawn since, and ranked again, looks good, but the decision was on
    the mask before.

    Args:
        run: The run that is reviewed.
        decisions: The decisions of this review.
    """
    found: dict[str, tuple[float, float, float]] = {}
    decided = dict(decisions)
    for one in run.with_reviewed():
        before = _decided_before(one)
        new = [i for i, decision in decided.items() if before.get(i) != decision]
        found = {**views_of(one.folder, new), **found}
        decided = before
    return found


def _use_masks(data: CoSegDataModule, labels: Path, excluded: list[str]) -> None:
    """Add the reviewed layer to the training masks, and exclude samples to be redrawn."""
    if labels not in data.label_layers:
        data.add_label_layer(labels)
        data.exclude(excluded)


@rank_zero_only
def _write_tables(folder: Path, scores: Path, waiting: list[str], data: CoSegDataModule) -> None:
    """Write the run's ranking with what became of each mask, and the list of masks to redraw."""
    given, now = data.given_samples(), data.relabelled_samples()
    places = {sample_id: place for place, sample_id in enumerate(now.ids)}
    reviewed = LabelStore(folder / "labels")
    rows = read_table(scores, ["id"])
    for row in rows:
        place = places.get(row["id"])
        if place is None or not (row["id"] in reviewed or row["changed_pixels"]):
            continue
        label, original = now.mask(place), None if given.truth is None else given.truth.mask(place)
        row["changed_pixels"] = str(int((label != given.mask(place)).sum()))
        if original is not None:
            row["corrected_dice"] = repr(mask_dice(label, original))
    write_table(folder / "scores.csv", rows)
    if waiting:
        write_table(folder / "redraw.csv", [{"id": sample_id} for sample_id in waiting])
