"""Reads a person's review of a run's corrections, and retrains accordingly."""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.labels.masks import mask_digest
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import changed_labels
from coseg_lightning.methods.coseg import retrain
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.finished import FinishedRun
from coseg_lightning.runs.folder import RunFolder, stage_weights
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.summary import training_label_dice, write_summary

DECISIONS = ("keep", "reject", "redraw")


def read_review(path: str | Path, corrected: Collection[str]) -> dict[str, str]:
    """Read a `review.csv`, with the columns `id` and `decision`: keep, reject or redraw.

    Args:
        path: The file, as saved by the report.
        corrected: The ids of the samples that the run corrected.

    Returns:
        The decision on each of these samples; those that the file does not name are kept.

    Raises:
        InputError: If the file names another sample, a sample twice, or another decision.
    """
    decisions: dict[str, str] = {}
    for row in read_table(Path(path), ["id", "decision"]):
        sample_id, decision = row["id"], row["decision"]
        if decision not in DECISIONS:
            raise InputError(
                f"{path} says {decision!r} of {sample_id}; it must be keep, reject or redraw."
            )
        if sample_id not in corrected:
            raise InputError(
                f"{path} names {sample_id}, whose mask the run did not change; give its own review."
            )
        if sample_id in decisions:
            raise InputError(f"{path} names {sample_id} twice; decide once.")
        decisions[sample_id] = decision
    return {sample_id: decisions.get(sample_id, "keep") for sample_id in corrected}


def retrain_reviewed(
    run: FinishedRun,
    data: CoSegDataModule,
    folder: str | Path,
    review: str | Path,
    *,
    recipe: Recipe,
    network: Callable[[], SegmentationModule],
    trainer: Callable[..., pl.Trainer],
) -> dict[str, Any]:
    """Retrain a run's network on its masks as reviewed by a person.

    Kept corrections replace the run's given masks, and rejected ones do not. Samples to be redrawn
    are excluded from training and listed in `redraw.csv`. The run itself is not changed.

    Args:
        run: A finished run that corrected masks.
        data: The run's data, with the masks that it was given.
        folder: The folder for the reviewed layer, the network, and its `summary.json`. An
            interrupted retraining in it is continued.
        review: The review's file, see `read_review`.
        recipe: The run's recipe.
        network: Makes the module that is trained.
        trainer: Makes a new trainer, see `run_stages`.

    Returns:
        The content of `summary.json`.

    Raises:
        InputError: If the run corrected nothing, or the review belongs to another run.
    """
    corrected = changed_labels(data.given_samples(), [LabelStore(layer) for layer in run.layers])
    if not corrected:
        raise InputError(f"{run.folder} changed no mask, so that there is nothing to review.")
    decisions = read_review(review, corrected)
    config = {**run.config, "review": decisions, "reviewed_run": str(run.folder.absolute())}
    run_folder = RunFolder(folder, {**config, "samples": data.identity()}, resume=True)
    if run_folder.summary is not None:
        return run_folder.summary
    runner = StageRunner(run_folder, trainer, recipe.averaging, config["seed"])
    redraw = sorted(sample_id for sample_id, choice in decisions.items() if choice == "redraw")

    def retrain_network() -> None:
        run_folder.begin()
        labels = run_folder.path / "labels"
        _write_layer(labels, corrected, decisions, data.given_samples(), run_folder.id)
        _use_decisions(data, labels, redraw)
        module = runner.built(network)
        weights, epochs = None, run.epochs("robust_training") or 0
        if recipe.warm_start:
            weights = stage_weights(run.folder / "robust_training", of="net_a.")
        retrain(runner, data, module, recipe, weights, epochs)

    runner.stage("retraining", retrain_network, makes=["labels"])
    _use_decisions(data, run_folder.path / "labels", redraw)
    module = runner.restored(runner.built(network), "retraining")
    _write_tables(run_folder.path, run.folder / "scores.csv", redraw)
    return write_summary(
        runner,
        module,
        data,
        config,
        baselines={"before": run.summary["test"], **run.summary.get("baselines", {})},
        ranking=run.summary["ranking"],
        correction={
            "corrected": sum(decision == "keep" for decision in decisions.values()),
            "rejected": sum(decision == "reject" for decision in decisions.values()),
            "redraw": len(redraw),
            "contradiction": run.summary["correction"]["contradiction"],
            "left_alone": False,
            "kept_vary_more": run.summary["correction"].get("kept_vary_more", False),
            "layers": ["labels"],
            "left_out": len(redraw),
            **training_label_dice(data),
        },
    )


def check_review(run: FinishedRun, review: str | Path) -> None:
    """Raise an `InputError` if a run cannot be reviewed, or a file is no review.

    This check is quick, so that it can be made before the data is read.
    """
    if run.is_reviewed:
        raise InputError(
            f"{run.folder} is itself a reviewed run; give the run that it came from, and the new "
            "decisions with hydra.run.dir=FOLDER."
        )
    read_table(Path(review), ["id", "decision"])
    if run.epochs("robust_training") is None:
        raise InputError(
            f"{run.folder} has no peers to retrain from, since its method is "
            f"{run.config['method']['name']}; review a run of method=coseg."
        )


def _use_decisions(data: CoSegDataModule, labels: Path, redraw: list[str]) -> None:
    """Add the reviewed layer to the training masks, and exclude the samples to be redrawn."""
    if labels not in data.label_layers:
        data.add_label_layer(labels)
        data.exclude(redraw)


@rank_zero_only
def _write_layer(
    folder: Path,
    corrected: dict[str, LabelStore],
    decisions: dict[str, str],
    samples: SampleDataset,
    run_id: str,
) -> None:
    writer = LabelStore.create(folder)
    layers = {
        sample_id: layer for sample_id, layer in corrected.items() if decisions[sample_id] == "keep"
    }
    for sample_id, layer in layers.items():
        writer.write(sample_id, layer.read(sample_id))
    originals = {
        sample_id: mask_digest(samples.mask(index))
        for index, sample_id in enumerate(samples.ids)
        if sample_id in layers
    }
    facts = {sample_id: {"original": originals[sample_id]} for sample_id in layers}
    writer.finish(facts, run_id=run_id)


@rank_zero_only
def _write_tables(folder: Path, scores: Path, redraw: list[str]) -> None:
    """Write the run's ranking, and the list of masks to redraw."""
    with replacing(folder / "scores.csv") as temporary:
        shutil.copyfile(scores, temporary)
    if redraw:
        write_table(folder / "redraw.csv", [{"id": sample_id} for sample_id in redraw])
