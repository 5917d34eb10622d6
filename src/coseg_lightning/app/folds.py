"""data.folds: every mask is judged by peers that did not learn from it, one run per fold."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.build import (
    make_method,
    make_peers,
    make_split,
    make_trainer,
    read_parts,
    rehearsal_settings,
    run_arguments,
)
from coseg_lightning.app.checks import (
    check_split_is_drawn,
    is_optimised,
    keeps_best,
    recipe_of,
)
from coseg_lightning.app.command import task_overrides
from coseg_lightning.app.settled import begun_config, begun_data
from coseg_lightning.data.annotators import label_facts
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.subsets import JoinedImages, SomeImages
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import write_text
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.methods.pipeline import run_stages
from coseg_lightning.methods.second_look import Judgement, evidence_of, judge
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking.noise_level import estimate_noise_level
from coseg_lightning.ranking.ranking import Ranking
from coseg_lightning.ranking.scores import mask_scores
from coseg_lightning.report.results import MASKS
from coseg_lightning.runs.finished import write_inputs
from coseg_lightning.runs.folder import RunFolder, stage_weights
from coseg_lightning.runs.summary import peak_memory
from coseg_lightning.runs.tested import MEANS, figures_of_images, mean_of, per_class_dice
from coseg_lightning.seeding import derive_rng

log = logging.getLogger(__name__)


def check_folds(cfg: DictConfig) -> None:
    """Raise an `InputError` for settings that do not work with folds."""
    folds = cfg.data.folds
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 2:
        raise InputError(f"data.folds={folds} must be a whole number of at least 2, or null.")
    if not make_method(cfg).trains_peers:
        raise InputError(
            f"data.folds={folds} judges each mask by two peers, which method={cfg.method.name} "
            "does not train; take method=coseg or coteaching."
        )
    if any(isinstance(node, DictConfig) for node in cfg.noise.values()):
        raise InputError(
            f"data.folds={folds} judges masks as they are, so it cannot be combined with noise; "
            "write noisy masks with coseg corrupt first."
        )
    if cfg.trainer.get("devices") != 1:
        raise InputError(
            f"data.folds={folds} judges masks in one process; leave trainer=ddp and "
            f"trainer.devices={cfg.trainer.get('devices')} out."
        )
    if cfg.baselines:
        raise InputError(f"data.folds={folds} excludes baselines=true; leave one of them out.")
    if keeps_best(cfg):
        raise InputError(
            f"data.folds={folds} leaves no validation masks, which final=best and early_stopping "
            "need; leave these two out."
        )
    if is_optimised() and not cfg.objective.startswith("test/"):
        raise InputError(
            f"The sweep optimises objective={cfg.objective}, but data.folds={folds} logs only the "
            "test of all images; give objective=test/dice."
        )
    if not begun_config(cfg):  # an earlier version refused less
        check_split_is_drawn(f"by data.folds={folds}", task_overrides())


def draw_folds(
    ids: Sequence[str], count: int, seed: int, groups: Mapping[str, str]
) -> list[list[str]]:
    """Draw folds of about equal size; all samples of a group are in one fold.

    Args:
        ids: The ids of the samples.
        count: The number of folds.
        seed: The seed.
        groups: The group of each sample, if known.

    Raises:
        InputError: If there are fewer groups than folds.
    """
    order = [ids[n] for n in derive_rng(seed, "folds").permutation(len(ids))]
    if not groups:
        return [sorted(order[start::count]) for start in range(count)]
    members: dict[str, list[str]] = {}
    for sample_id in order:
        members.setdefault(groups.get(sample_id, sample_id), []).append(sample_id)
    if len(members) < count:
        raise InputError(
            f"data.folds={count} keeps each group in one fold, but there are {len(members)} "
            "groups; give fewer folds."
        )
    folds: list[list[str]] = [[] for _ in range(count)]
    for group in sorted(members.values(), key=len, reverse=True):
        min(folds, key=len).extend(group)
    return [sorted(fold) for fold in folds]


def run_folds(cfg: DictConfig, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Run the method once for each fold, and let its peers judge the fold's masks.

    Args:
        cfg: The composed configuration.
        folder: The folder of the whole run; each fold has its own run in `fold_1` and so on.
        config: The configuration in plain values.

    Returns:
        The content of `summary.json`. The folder also holds `scores.csv` of all masks, `test.csv`
        of all images, and `proposals/` and `uncertainty/` of every mask.

    Raises:
        InputError: If settings do not fit, or the folder holds another run.
    """
    parts = [part for part in read_parts(cfg, folder / "problems.csv") if part is not None]
    everything = JoinedImages(parts)
    ids, count = list(everything.ids), int(cfg.data.folds)
    if len(ids) < 2 * count:
        raise InputError(
            f"data.folds={count} needs two images per fold, but there are only {len(ids)} images; "
            "give fewer folds."
        )
    whole = make_split(cfg, everything, None, None, folder)
    recorded = begun_data(cfg).get("normalization")
    if "normalization" in cfg.data and recorded != "training":  # a fold predicts by the numbers
        numbers: Any = OmegaConf.to_container(cfg.data)
        config = {**config, "data": {**config["data"], "normalization": numbers["normalization"]}}
    identity = {
        "recipe": recipe_of(cfg).of_stages,
        "samples": whole.identity() | whole.annotators_identity(),
    }
    run_folder = RunFolder(folder, {**config, **identity}, resume=cfg.resume is not None)
    if run_folder.summary is not None:
        return run_folder.summary
    run_folder.begin()
    run_folder.clear("scores.csv", "test.csv", "proposals", "uncertainty")
    groups: dict[str, str] = {}
    for part in parts:
        groups |= getattr(part, "groups", {})
    folds = draw_folds(ids, count, cfg.seed, groups)
    log.info("Drew %d folds from %d images. A run on the others judges each.", count, len(ids))
    root = cfg.data.get("root")
    if root is not None and (Path(root).expanduser() / "split.csv").exists():
        log.info("The parts in split.csv are ignored, since folds are drawn from all its images.")
    writers = [LabelStore.create(folder / name) for name in ("proposals", "uncertainty")]
    judged: list[Judged] = []
    for number, held_out in enumerate(folds, start=1):
        others = [sample_id for sample_id in ids if sample_id not in set(held_out)]
        data = make_split(
            cfg, SomeImages(everything, held_out), None, SomeImages(everything, others), folder
        )
        log.info("Fold %d of %d:", number, count)
        summary = _run_fold(cfg, data, folder / f"fold_{number}", config, rehearse=number == 1)
        judged.append(_judge(cfg, data, folder / f"fold_{number}", summary, writers))
    for writer in writers:
        writer.finish({sample_id: {} for sample_id in ids}, run_id=run_folder.id)
    trusted = [i for part in parts if getattr(part, "trusted", False) for i in part.ids]
    if everything.tiles is not None:  # test metrics are of whole images
        trusted = sorted({everything.tiles.tiles[i].image_id for i in trusted})
    return _write(cfg, folder, config, judged, whole, trusted)


def _run_fold(
    cfg: DictConfig, data: CoSegDataModule, folder: Path, config: dict[str, Any], rehearse: bool
) -> dict[str, Any]:
    return run_stages(
        data,
        folder,
        **run_arguments(cfg),
        config={**config, "fold": folder.name},
        resume=True,  # starts the run, or continues an interrupted one
        rehearse=rehearse and cfg.rehearse and partial(make_trainer, rehearsal_settings(cfg)),
        keep_checkpoints=cfg.keep_checkpoints,
    )


@dataclass(frozen=True)
class Judged:
    """The results of one fold.

    Args:
        judgement: The evidence of the fold's peers on the masks that they did not learn from.
        figures: The rows of the fold's `test.csv`.
        summary: The fold's summary.
    """

    judgement: Judgement
    figures: list[dict[str, Any]]
    summary: dict[str, Any]


def _judge(
    cfg: DictConfig,
    data: CoSegDataModule,
    folder: Path,
    summary: dict[str, Any],
    writers: Sequence[Any],
) -> Judged:
    """Let a fold's peers judge the fold's masks, and write their proposals."""
    on_gpu = torch.cuda.is_available() and cfg.trainer.get("accelerator") != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    module = _peers(cfg, folder).to(device)
    samples = data.samples("test")
    assert samples is not None
    judgement = judge(
        lambda images: module(images.to(device)),
        samples,
        batch_size=cfg.data.batch_size,
        classes=max(2, cfg.data.classes),
        proposals=writers[0],
        uncertainty=writers[1],
    )
    rows: list[dict[str, Any]] = []
    for row in read_table(folder / "test.csv", ["id"]):
        rest = {key: float(value) if value else None for key, value in row.items() if key != "id"}
        rows.append({"id": row["id"], "fold": folder.name, **rest})
    return Judged(judgement, rows, summary)


def _peers(cfg: DictConfig, folder: Path) -> CoSegModule:
    module = make_peers(cfg)
    for name in ("net_a", "net_b"):
        state = stage_weights(folder / "robust_training", of=f"{name}.")
        getattr(module, name).load_state_dict(state)  # a mirror has none
    return module.eval()


def _write(
    cfg: DictConfig,
    folder: Path,
    config: dict[str, Any],
    judged: Sequence[Judged],
    whole: CoSegDataModule,
    trusted: Sequence[str],
) -> dict[str, Any]:
    """Rank all masks, and write the tables and the summary of all folds."""
    ids = [sample_id for fold in judged for sample_id in fold.judgement.ids]
    drawn_by = whole.given_samples().annotators
    pair, displacement = evidence_of([fold.judgement for fold in judged], whole.kinds, drawn_by)
    score = recipe_of(cfg).score
    estimate = estimate_noise_level(pair[0], pair[1]) if cfg.nol == "auto" else None
    scores = [mask_scores(peer, score) for peer in pair]
    level = cfg.nol if estimate is None else estimate.noise_level
    ranking = Ranking.of_evidence(
        ids, pair, (scores[0], scores[1]), level, score=score, displacement=displacement
    )
    ranking.write(folder / "scores.csv")
    rows = [row for fold in judged for row in fold.figures]
    checked = set(trusted)
    for row in rows:
        row["trusted"] = int(row["id"] in checked)
    tested = [row for row in rows if row["trusted"]] or rows
    write_table(folder / "test.csv", rows)
    write_inputs(folder, whole.file_digests)
    tests = [fold.summary["test"] for fold in judged]
    guards = [fold.summary["correction"] for fold in judged]
    ratios = [guard["contradiction"] for guard in guards if guard["contradiction"] is not None]
    is_own = str(cfg.data.source["_target_"]).endswith(".folder_splits")
    summary = {
        "config": config,
        "test": {
            "dice": mean_of(tested, "dice"),
            "accuracy": mean_of(tested, "accuracy"),
            "per_class_dice": per_class_dice(tested, cfg.data.classes),
            "masks": MASKS[bool(trusted) or not is_own],
            **figures_of_images([{name: row[name] for name in MEANS} for row in tested]),
            **({} if whole.tiles is None else {"without_distance": 0}),
            "unit": whole.unit,
        },
        "samples": {"train": len(ids)},
        **label_facts(whole),
        "folds": {f"fold_{n}": test["dice"] for n, test in enumerate(tests, start=1)},
        "ranking": {
            "noise_level": level,
            "estimate": None if estimate is None else estimate.as_dict(),
            "bias": ranking.bias,
            "auroc": ranking.auroc,
        },
        "correction": {
            "corrected": 0,
            "contradiction": float(np.mean(ratios)) if ratios else None,
            "left_alone": all(guard["left_alone"] for guard in guards),
            "kept_vary_more": any(guard["kept_vary_more"] for guard in guards),
            "layers": [],
            "left_out": 0,
            "label_dice_before": None,
            "label_dice_after": None,
        },
        "stages": {
            f"fold_{n}": {
                "seconds": round(sum(s["seconds"] for s in fold.summary["stages"].values()), 3),
                "epochs": sum(s["epochs"] for s in fold.summary["stages"].values()),
            }
            for n, fold in enumerate(judged, start=1)
        },
        "peak_memory_bytes": peak_memory(),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    return summary
