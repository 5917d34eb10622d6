"""The audit without training: judges all masks in several processes, and ranks them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.build import make_all_masks
from coseg_lightning.data.preparation import without_gaps
from coseg_lightning.errors import InputError
from coseg_lightning.files.progress import is_first_process
from coseg_lightning.files.workers import process_count, workers
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.ranking.annotators import with_record
from coseg_lightning.ranking.blunders import (
    UNJUDGED,
    Fit,
    find_blunders,
    look_again,
    same_masks,
)
from coseg_lightning.ranking.noise_level import NoiseLevelEstimate
from coseg_lightning.ranking.people import People
from coseg_lightning.ranking.ranking import Ranking
from coseg_lightning.ranking.unaided import Look, Opinion, judge, look_at, misplaced_first
from coseg_lightning.seeding import derive_rng

DRAWN = 100  # masks that define what is usual, and are also judged at wrong places
SUSPECTS = 0.2  # share of the masks, those with the worst outlines, that get a second look
MOST_SUSPECTS = 200  # also the largest number of copies; each takes 64 kB
# Settings that are only used for training.
OF_TRAINING = (
    *("model", "peer_b", "method", "trainer", "optimizer", "loss", "averaging", "logger"),
    *("experiment", "rehearse", "resume", "stages", "trust"),
)
# Settings of `run` that no audit uses: it corrects nothing, and keeps no network.
OF_RUNS = (
    *("final", "early_stopping", "data.folds", "objective", "baselines"),
    *("resume", "stages", "keep_checkpoints"),  # nor does it go on where one stopped
    *("data.source.test_share", "data.source.val_share", "data.source.seed"),  # it ranks all masks
)
# With predictions nothing is trained, but a method's score ranks.
OF_STEPS = tuple(name for name in OF_TRAINING if name not in ("method", "experiment", "resume"))
OF_NETWORKS = (
    *(
        "image_size",
        "keep_shape",
        "batch_size",
        "augment",
        "cache",
        "clean_ids",
    ),
    "normalization",
)


def check_training(cfg: DictConfig, overrides: Sequence[str] | None = None) -> None:
    """Raise an `InputError` if `training` is invalid, or if a given setting has no effect.

    Args:
        cfg: The composed configuration.
        overrides: The given settings; by default those that Hydra knows.
    """
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    if cfg.training not in ("peers", "none"):
        raise InputError(
            f"training={cfg.training} must be peers or none; peers trains two networks on the "
            "masks, and none only looks at outlines and shapes, in seconds."
        )
    given = [(override.lstrip("+~"), *_split(override)) for override in overrides]
    is_folder = str(OmegaConf.select(cfg, "data.source._target_")).endswith(".folder_splits")
    for override, key, group, _ in given:
        if key in OF_RUNS and (is_folder or not key.startswith("data.source.")):
            raise InputError(
                f"An audit does not use {override}, so it would have no effect; leave it out."
            )
        if cfg.predictions is not None and cfg.training == "peers" and group in OF_STEPS:
            raise InputError(
                f"predictions={cfg.predictions} replaces training, so {override} would have no "
                "effect; leave it out."
            )
    if cfg.training == "peers":
        return
    if cfg.predictions is not None:
        raise InputError(
            f"training=none judges masks without predictions={cfg.predictions}; leave out one of "
            "the two. Neither of them trains networks."
        )
    for override, _, group, name in given:
        if group in OF_TRAINING or (group == "data" and name in OF_NETWORKS):
            raise InputError(
                f"training=none does not use {override}, so it would have no effect; leave it out."
            )


def _split(override: str) -> tuple[str, str, str]:
    """Return key, group and name of a setting: `data.folds=3` sets `folds` of the group `data`."""
    key = override.lstrip("+~").partition("=")[0]
    group, _, name = key.partition(".")
    return key, group.partition("@")[0].partition("/")[0], name


@dataclass(frozen=True)
class Finding:
    """The result of an audit without training.

    Args:
        samples: All masks as given.
        ranking: The ranking of the masks.
        estimate: The estimated noise level, or None if it was given.
        doubt: Why the outlines are uninformative, in a sentence; None if they are informative.
    """

    samples: Any
    ranking: Ranking
    estimate: NoiseLevelEstimate | None
    doubt: str | None


def rank_without_training(cfg: DictConfig, folder: Path) -> Finding:
    """Rank all masks, and write `scores.csv` into the folder.

    `data.num_workers` is the number of processes that judge the masks, by default one per core.
    """
    samples = make_all_masks(cfg, folder)
    drawn_by = samples.annotators
    opinion, blunders = judge_masks(
        samples.dataset,
        classes=max(2, cfg.data.classes),
        processes=cfg.data.num_workers,
        annotators=drawn_by,
        kinds=samples.kinds,
    )
    estimate = opinion.estimate if cfg.nol == "auto" else None
    own = misplaced_first(opinion.score, blunders)
    score, known = own, dict[str, Any]()
    if drawn_by:
        level = cfg.nol if estimate is None else estimate.noise_level
        names = [drawn_by.get(i, "") for i in samples.ids]
        kinds = None if samples.kinds is None else [samples.kinds[i] for i in samples.ids]
        score = with_record(own, names, noise_level=level, kinds=kinds)
        known = {"annotators": names, "own_score": own, "displacement": opinion.displacement}
    ranking = Ranking(
        list(samples.ids),
        score,
        score,
        cfg.nol if estimate is None else estimate.noise_level,
        replaced=samples.replaced,
        label_dice=samples.label_dice,
        class_scores=opinion.class_scores,
        blunders=blunders,
        **known,
    )
    if is_first_process():
        ranking.write(folder / "scores.csv")
    return Finding(samples, ranking, estimate, opinion.doubt)


def judge_masks(
    dataset: MaskedImages,
    *,
    classes: int = 2,
    processes: int = 0,
    annotators: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> tuple[Opinion, list[list[str]]]:
    """Judge all masks of a dataset by themselves, with the same result for any process count.

    Args:
        dataset: Images and masks at their own resolution.
        classes: K, background included.
        processes: Number of processes; 0 for one per core, if there are many masks.
        annotators: Who drew each mask, by id, if known.
        kinds: The kind of each image, by id, if known.

    Returns:
        The ranking with the noise level, and the names of each mask's blunders.

    Raises:
        InputError: If there are no masks.
    """
    count = len(dataset.ids)
    if not count:
        raise InputError("The dataset holds no masks to judge; give images with masks.")
    generator = derive_rng(0, "drawn masks")
    drawn = np.sort(generator.choice(count, min(DRAWN, count), replace=False)).tolist()
    numbers = None
    if kinds is not None:
        numbers = np.unique([kinds[i] for i in dataset.ids], return_inverse=True)[1]
    people = People.of([annotators.get(i) for i in dataset.ids], numbers) if annotators else None
    looker = _Looker(dataset, classes, frozenset(drawn), moved=people is not None)
    with workers(looker, processes or process_count(count)) as look:
        looks: list[Look] = list(look("first", range(count), "Looking at masks"))
        opinion = judge(looks, people, numbers)
        shapes = [each.shape for each in looks]
        fits: dict[int, Fit] = {}
        if opinion.doubt is None:
            copies = [*chain(*same_masks(shapes))][:MOST_SUSPECTS]
            again = sorted({*_suspects(opinion.misfit), *copies, *drawn})
            again = [i for i in again if 0 < shapes[i].share < 1]  # others have no outline
            fits = dict(zip(again, look("second", again, "Looking again"), strict=True))
    blunders: list[list[str]] = [[] for _ in looks]
    if getattr(dataset, "tiles", None) is None:  # parts of objects have no usual shape
        blunders = find_blunders(shapes, fits, [i for i in drawn if i in fits])
        if opinion.doubt is None:
            has_outline = [0 < shape.share < 1 for shape in shapes]
            unknown = np.isnan(opinion.misfit) & has_outline
            pairs = zip(blunders, unknown.tolist(), strict=True)
            blunders = [names or [UNJUDGED] * is_unknown for names, is_unknown in pairs]
    return opinion, blunders


def _suspects(misfit: NDArray[Any]) -> list[int]:
    """Return the indices of the masks with the worst outlines."""
    known = int((~np.isnan(misfit)).sum())
    worst_first = np.argsort(-np.nan_to_num(misfit, nan=-np.inf), kind="stable")
    suspects: list[int] = worst_first[: min(MOST_SUSPECTS, round(SUSPECTS * known))].tolist()
    return suspects


@dataclass(frozen=True)
class _Looker:
    """Reads one mask and computes its statistics."""

    dataset: MaskedImages
    classes: int
    drawn: frozenset[int]
    moved: bool = False

    def first(self, index: int) -> Look:
        rng = derive_rng(0, "displacements", index) if index in self.drawn else None
        image, mask = without_gaps(self.dataset.image(index)), self.dataset.mask(index)
        return look_at(image, mask, classes=self.classes, rng=rng, moved=self.moved)

    def second(self, index: int) -> Fit:
        return look_again(without_gaps(self.dataset.image(index)), self.dataset.mask(index))
