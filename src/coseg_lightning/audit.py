"""Finds bad masks in a dataset: python -m coseg_lightning.audit data.root=DIR."""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from coseg_lightning import __version__
from coseg_lightning.app.checks import check_count, recipe_of
from coseg_lightning.app.command import command
from coseg_lightning.app.judging import FILES, judge, question, write_review
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_rules import IGNORE_INDEX

if TYPE_CHECKING:
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.labels.store import LabelStore
    from coseg_lightning.ranking.noise_level import NoiseLevelEstimate
    from coseg_lightning.ranking.ranking import Ranking
    from coseg_lightning.report.figures import Pictured

log = logging.getLogger(__name__)


@command("audit")
def main(cfg: DictConfig) -> None:
    """Compose, check and audit, and show the results; or evaluate a person's review of an audit."""
    if cfg.review is not None:
        judge(cfg.review, HydraConfig.get().overrides.task)
        return
    audit(cfg, Path(HydraConfig.get().runtime.output_dir))


def audit(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Rank all masks of a dataset, by trained peers, given predictions, or outlines alone.

    Validation and test samples are used for training too, so that their masks are also ranked.

    Returns:
        The content of `summary.json`. It is written into the folder, with `scores.csv`, the
        contact sheet `worst.png`, and the masks for a person to judge.
    """
    from coseg_lightning.app.build import make_data
    from coseg_lightning.app.checks import check, quiet
    from coseg_lightning.app.settled import settle_folders
    from coseg_lightning.app.unaided import check_training
    from coseg_lightning.data.annotators import label_facts
    from coseg_lightning.report.review_order import show_review_order
    from coseg_lightning.runs.finished import write_inputs

    check(cfg, also=("predictions", "worst", "training"))
    check_count(cfg, "worst", 1)
    if cfg.method.name != "coteaching":
        raise InputError(
            f"method={cfg.method.name} has no effect, since an audit always trains two peers by "
            "co-teaching; leave it out."
        )
    check_training(cfg)
    quiet()
    _check_free(folder)
    if cfg.data.get("root") is not None:  # recorded, for commands that are given elsewhere
        cfg.data.root = str(Path(cfg.data.root).expanduser().absolute())
    settle_folders(cfg)
    if cfg.training == "none":
        return _without_training(cfg, folder)
    data = make_data(cfg, folder, everything=True)
    rank = _by_training if cfg.predictions is None else _by_predictions
    ranking, estimate, proposals, is_global_zero = rank(cfg, folder, data)
    summary = _summary(cfg, ranking, estimate, data.identity(), label_facts(data))
    if is_global_zero:
        write_inputs(folder, data.file_digests)
        _finish(folder, summary, data.given_samples(), ranking, proposals)
        _show(folder, ranking, estimate, facts=summary.get("labels") or {})
        show_review_order(folder, cfg.review_budget)
    return summary


def _without_training(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Rank by outlines, and find blunders; see `audit`."""
    from coseg_lightning.app.unaided import rank_without_training
    from coseg_lightning.data.annotators import label_facts
    from coseg_lightning.files.progress import is_first_process
    from coseg_lightning.files.workers import process_count
    from coseg_lightning.report.review_order import show_review_order
    from coseg_lightning.runs.finished import write_inputs

    found = rank_without_training(cfg, folder)
    names = Counter(name for names in found.ranking.blunders or () for name in names)
    more = {"doubt": found.doubt, "blunders": dict(names)}
    labels = label_facts(found.samples.dataset)
    summary = _summary(cfg, found.ranking, found.estimate, found.samples.identity, labels, more)
    if is_first_process():
        processes = cfg.data.num_workers or process_count(len(found.samples.ids))
        write_inputs(folder, getattr(found.samples.dataset, "file_digests", {}))
        _finish(folder, summary, found.samples, found.ranking, None, processes)
        _show(folder, found.ranking, found.estimate, found.doubt, facts=labels.get("labels") or {})
        show_review_order(folder, cfg.review_budget, proposes=False)
    return summary


def _summary(
    cfg: DictConfig,
    ranking: "Ranking",
    estimate: "NoiseLevelEstimate | None",
    identity: Mapping[str, str],
    labels: Mapping[str, Any],
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `summary.json`, with `more` entries about the ranking."""
    return {
        "begun": {"samples": dict(identity), "version": __version__},
        "config": OmegaConf.to_container(cfg, resolve=True),
        **labels,
        "ranking": {
            "noise_level": ranking.noise_level,
            "estimate": None if estimate is None else estimate.as_dict(),
            "bias": ranking.bias,
            "auroc": ranking.auroc,
            **(more or {}),
        },
        "correction": {"layers": []},
        "stages": {},
    }


def _finish(
    folder: Path,
    summary: dict[str, Any],
    samples: "Pictured",
    ranking: "Ranking",
    proposals: "LabelStore | None",
    processes: int = 1,
) -> None:
    """Write `summary.json`, the pictures, and the files for a review."""
    from coseg_lightning.files.atomic import write_text
    from coseg_lightning.report.figures import contact_sheet, save_sheet
    from coseg_lightning.report.joined import write_image_scores

    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    worst = ranking.worst_first[: summary["config"]["worst"]]
    drawn = {i: None if proposals is None else proposals.read(ranking.ids[i]) for i in worst}
    save_sheet(contact_sheet(samples, ranking, worst, drawn), folder / "worst.png")
    write_review(folder, samples, ranking)
    _write_persons(folder, summary, samples)
    _write_page(folder, summary, samples, {} if proposals is None else proposals, processes)
    tiles = getattr(samples, "tiles", None)
    if tiles is not None:
        write_image_scores(folder, tiles)


def _write_persons(folder: Path, summary: dict[str, Any], samples: "Pictured") -> None:
    """Write the report on annotators, if they are known."""
    from coseg_lightning.ranking.noise_level import plausible_levels
    from coseg_lightning.report.annotators import (
        annotators_figure,
        masks_figure,
        write_annotators,
        write_masks,
    )
    from coseg_lightning.report.figures import save_sheet

    kinds = getattr(samples, "kinds", None)
    masks, _ = write_masks(folder, samples)
    tiles, levels = getattr(samples, "tiles", None), plausible_levels(summary["ranking"])
    records = write_annotators(folder, levels, kinds, masks=masks, tiles=tiles)
    if records:
        save_sheet(annotators_figure(records), folder / "annotators.png")
        if (figure := masks_figure(samples, records, masks)) is not None:
            save_sheet(figure, folder / "masks.png")


def _write_page(
    folder: Path,
    summary: dict[str, Any],
    samples: "Pictured",
    proposals: "LabelStore | dict[str, LabelStore]",
    processes: int,
) -> None:
    """Write `review_order.csv`, and the page for reviewing every mask."""
    from coseg_lightning.files.csv import read_table
    from coseg_lightning.report.review_order import read_order, write_review_order
    from coseg_lightning.report.rows import sample_rows
    from coseg_lightning.report.workbench import write_review_page

    by_id = proposals if isinstance(proposals, dict) else dict.fromkeys(proposals.ids, proposals)
    level = summary["ranking"]["noise_level"]
    write_review_order(folder, samples, by_id, level, processes=processes)
    order, path = read_order(folder), folder / "scores.csv"
    rows = sample_rows(read_table(path, ["id"]), (), path)
    for row in rows:
        row["order"] = order[row["id"]]["order"]
    data = summary["config"]["data"]
    count = max(2, data["classes"]) - 1
    names = data.get("class_names") or [f"class {k}" for k in range(1, count + 1)]
    title = f"Masks of {_name_of(data)}"
    write_review_page(folder, samples, rows, by_id, names, title=title, processes=processes)


def _name_of(data: dict[str, Any]) -> str:
    return Path(data["root"]).name if data.get("root") else str(data.get("name", "an audit"))


def _check_free(folder: Path) -> None:
    """Raise an `InputError` if the folder holds another audit."""
    for name in (
        "summary.json",
        "scores.csv",
        "worst.png",
        "images.csv",
        "inputs.csv",
        "proposals",
        "review_order.csv",
        "review.html",
        "review",
        "annotators.csv",
        "annotators.png",
        "masks.png",
        "disputed.csv",
        "masks.csv",
        *FILES,
        "training",
        "noise",
    ):
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds another audit ({name}), and nothing is ever overwritten; choose "
                "another folder (hydra.run.dir=...)."
            )


# The ranking, the estimated noise level, the proposed masks, and whether to write files.
Result = tuple["Ranking", "NoiseLevelEstimate | None", "LabelStore | None", bool]


def _by_training(cfg: DictConfig, folder: Path, data: "CoSegDataModule") -> Result:
    """Train two peers by co-teaching, and rank by their evidence."""
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger

    from coseg_lightning.app.build import make_peers, make_trainer
    from coseg_lightning.callbacks.averaged_weights import AveragedWeights
    from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
    from coseg_lightning.callbacks.noise_level_estimation import NoiseLevelEstimation
    from coseg_lightning.callbacks.proposals import Proposals
    from coseg_lightning.callbacks.stage_progress import StageProgress, show_progress

    recipe = recipe_of(cfg)
    ranking = CorruptionRanking(
        folder / "scores.csv", score=recipe.score, epochs=recipe.score_epochs
    )
    proposals = Proposals(folder / "proposals")
    callbacks: list[pl.Callback] = [ranking, proposals]
    if cfg.nol == "auto":
        callbacks.insert(0, NoiseLevelEstimation())  # before the ranking, which uses the estimate
    if recipe.averaging:
        callbacks.insert(0, AveragedWeights(recipe.averaging))
    pl.seed_everything(cfg.seed, verbose=False)
    module = make_peers(cfg)
    trainer = make_trainer(
        cfg,
        callbacks=callbacks,
        logger=CSVLogger(folder / "training", name="", version=""),
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    show_progress(trainer, StageProgress("Training two peers"), callbacks)
    trainer.fit(module, datamodule=data)
    if ranking.ranking is None:
        raise KeyboardInterrupt
    return ranking.ranking, module.noise.estimate, proposals.layer, trainer.is_global_zero


def _by_predictions(cfg: DictConfig, folder: Path, data: "CoSegDataModule") -> Result:
    """Rank by given class probabilities, without training."""
    import torch

    from coseg_lightning.data.predictions import PredictionFolder
    from coseg_lightning.data.preparation import without_gaps
    from coseg_lightning.data.samples import label_dice
    from coseg_lightning.labels.store import LabelStore
    from coseg_lightning.ranking.displacement import Ladder, moved_back, outline_ladder
    from coseg_lightning.ranking.evidence import Evidence, compute_evidence, kind_numbers
    from coseg_lightning.ranking.noise_level import estimate_noise_level
    from coseg_lightning.ranking.outline import outline_evidence
    from coseg_lightning.ranking.people import People
    from coseg_lightning.ranking.ranking import Ranking
    from coseg_lightning.ranking.scores import mask_scores

    data.prepare_data()
    samples = data.given_samples()
    predictions = PredictionFolder(cfg.predictions, classes=cfg.data.classes, ids=samples.ids)
    writer = LabelStore.create(folder / "proposals")
    rows, outlines, score = [], [], recipe_of(cfg).score
    agreements: list[float] = []
    ladders: list[Ladder | None] = []
    for index, sample_id in enumerate(samples.ids):
        mask = torch.from_numpy(samples.mask(index).astype(np.int64))
        probabilities = predictions.read(sample_id, mask.shape)
        if score == "joint" or cfg.nol == "auto" or samples.annotators:
            image, classes = without_gaps(samples.dataset.image(index)), predictions.classes
            of_label = outline_evidence(image, mask.numpy(), classes=classes)
            of_prediction = outline_evidence(image, probabilities.argmax(axis=0), classes=classes)
            outlines.append(np.concatenate([of_label, of_prediction], axis=1))
            ladder = None
            if sample_id in samples.annotators:
                ladder = outline_ladder(image, mask.numpy(), classes=classes)
            ladders.append(ladder)
        predicted = probabilities.argmax(axis=0)
        writer.write(sample_id, predicted)
        agrees = (predicted == mask.numpy())[mask.numpy() != IGNORE_INDEX]
        agreements += [float(agrees.mean())] if agrees.size else []
        logits = torch.from_numpy(probabilities).log()
        rows.append(compute_evidence(logits[None], mask[None])[0].numpy())
    if agreements and np.median(agreements) < 1 / 2:
        log.warning(
            "The predictions in %s contradict most masks: in half of them fewer than %.0f %% of "
            "the pixels agree. If their classes are in another order, save the background first.",
            cfg.predictions,
            100 * np.median(agreements),
        )
    evidence = Evidence.from_table(np.array(rows))
    if outlines:
        evidence = replace(evidence, outline=np.stack(outlines))
    if samples.kinds:
        evidence = replace(evidence, kinds=kind_numbers(samples.ids, samples.kinds))
    displacement = None
    if samples.annotators and evidence.outline is not None:
        people = People.of([samples.annotators.get(i) for i in samples.ids], evidence.kinds)
        moved, displacement = moved_back(evidence.outline, ladders, people)
        evidence = replace(evidence, outline=moved, people=people)
    estimate = estimate_noise_level(evidence, evidence) if cfg.nol == "auto" else None
    scores = mask_scores(evidence, score)
    ranking = Ranking.of_evidence(
        list(samples.ids),
        (evidence, evidence),
        (scores, scores),
        cfg.nol if estimate is None else estimate.noise_level,
        score=score,
        replaced=samples.replaced,
        label_dice=label_dice(samples),
        displacement=displacement,
    )
    ranking.write(folder / "scores.csv")
    proposals = writer.finish({sample_id: {} for sample_id in samples.ids})
    return ranking, estimate, proposals, True


def _show(
    folder: Path,
    ranking: "Ranking",
    estimate: "NoiseLevelEstimate | None",
    doubt: str | None = None,
    *,
    facts: Mapping[str, Any],
) -> None:
    """Print the worst masks, the noise level, and the written files.

    Args:
        folder: The audit's folder.
        ranking: The ranking.
        estimate: The estimate of the noise level, if it was not given.
        doubt: Why the ranking may be wrong.
        facts: How several masks of an image were fused.
    """
    from coseg_lightning.report.annotators import in_words

    fused = f", fused by data.label={facts['fusion']}" if facts else ""
    print(
        f"\n  The worst of {len(ranking.ids)} masks{fused}, by score, which is higher for worse "
        "masks:"
    )
    for rank, index in enumerate(ranking.worst_first[:10], start=1):
        line = f"    {rank:>3}  {ranking.ids[index]:<24}  {ranking.score[index]:8.3f}"
        print(f"{line}  {_blunders(ranking, index)}".rstrip())
    _show_more_blunders(ranking)
    if doubt is not None:
        print(f"\n  {doubt}")
    if estimate is not None:
        print(f"\n  Noise level of all {len(ranking.ids)} masks: {estimate}")
    if ranking.bias is not None:
        print(f"  {ranking.bias}")
    if ranking.auroc is not None:
        print(f"  AUROC of the ranking: {ranking.auroc:.4f}")
    for number, line in enumerate(in_words(folder)):
        print(f"  {line}" if number else f"\n  {line}")
    print(f"\n  In {folder}:")
    for name, content in (
        ("scores.csv", "all masks, worst first"),
        (
            "worst.png",
            "the worst masks"
            + ("" if ranking.blunders else ", with the proposals drawn over them"),
        ),
        ("review.html", "every mask, to judge and redraw in the browser; then use coseg apply"),
        ("review_order.csv", "all masks, in the best order for a review"),
        ("proposals", "the networks' own masks"),
        ("summary.json", "the noise level, and the settings"),
        *_files_of_persons(folder),
        *FILES.items(),
    ):
        if name != "proposals" or (folder / name).is_dir():
            print(f"    {name:<16}  {content}")
    print(question(folder))


def _files_of_persons(folder: Path) -> list[tuple[str, str]]:
    contents = {
        "annotators.csv": "each annotator's share of bad masks and displacement, with intervals",
        "annotators.png": "a figure of annotators.csv",
        "masks.csv": "each person's masks of images with several masks, worst first",
        "masks.png": "each person's masks that are least like the others'",
        "disputed.csv": "images whose masks disagree, most disputed first",
    }
    return [(name, text) for name, text in contents.items() if (folder / name).is_file()]


def _blunders(ranking: "Ranking", index: int) -> str:
    """One plain phrase for each blunder of a mask."""
    from coseg_lightning.ranking.blunders import MEANINGS

    names = ranking.blunders[index] if ranking.blunders is not None else ()
    return "; ".join(f"{name}: {MEANINGS[name]}" for name in names)


def _show_more_blunders(ranking: "Ranking", shown: int = 10, most: int = 10) -> None:
    """Print the masks with blunders that are not among the worst masks already shown."""
    if ranking.blunders is None:
        return
    named = [index for index in ranking.worst_first[shown:] if ranking.blunders[index]]
    for index in named[:most]:
        print(f"    ...  {ranking.ids[index]:<24}            {_blunders(ranking, index)}".rstrip())
    if len(named) > most:
        print(f"    ...  and {len(named) - most} more, named in the column blunders")


if __name__ == "__main__":
    main()
