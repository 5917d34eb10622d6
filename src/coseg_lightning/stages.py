"""The stages of a run in order, and what each leaves in the run's folder."""

import copy
import csv
import gc
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.atomic import replacing, write_text
from coseg_lightning.callbacks.averaged_weights import AveragedWeights
from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking, label_dice
from coseg_lightning.callbacks.label_correction import LabelCorrection
from coseg_lightning.callbacks.noise_level_estimation import NoiseLevelEstimation
from coseg_lightning.coseg_module import CoSegModule
from coseg_lightning.data.adopted import AdoptedDataModule, adopted
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.labels import LabelStore
from coseg_lightning.networks import save_network
from coseg_lightning.pixel_losses import PIXEL_LOSSES
from coseg_lightning.ranking import Ranking
from coseg_lightning.rivals.early_learning import EarlyLearningCorrection
from coseg_lightning.segmentation_module import SegmentationModule

METHODS: dict[str, tuple[str, ...]] = {
    "coseg": ("robust_training", "correction", "retraining"),
    "coteaching": ("robust_training",),
    "supervised": ("supervised_training",),
    # rivals
    "pixel_coteaching": ("robust_training",),
    "jocor": ("robust_training",),
    "gce": ("supervised_training",),
    "sce": ("supervised_training",),
    "filter": ("robust_training", "filtering", "retraining"),
    "adele": ("early_learning",),
}
# The folders that the stages of any method write into.
STAGES = ("robust_training", "retraining", "supervised_training", "early_learning")

Data = CoSegDataModule | AdoptedDataModule

log = logging.getLogger(__name__)


def run_stages(
    data: pl.LightningDataModule,
    folder: str | Path,
    *,
    method: str = "coseg",
    peers: Callable[[], CoSegModule],
    network: Callable[[], SegmentationModule],
    trainer: Callable[..., pl.Trainer],
    seed: int = 0,
    averaging: float = 0.1,
    score: str = "directed",
    score_epochs: int = 1,
    confidence: float | Literal["auto"] = "auto",
    warm_start: bool = True,
    retraining_loss: str = "generalised_cross_entropy",
    rounds: int = 1,
    by_class: bool = False,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the stages of a method, test its network, and write everything into one folder.

    Args:
        data: The datasets, and the noise if there is to be any: a `CoSegDataModule`, or a
            datamodule of your own, which is not changed. Of its training samples the masks are
            corrected as its dataset gives them, see `coseg_lightning.updated`.
        folder: The run's own folder, without an earlier run in it.
        method: A name in `METHODS`. `coseg`: robust training, correction, retraining.
            `coteaching`: robust training alone, tested by its first peer. `supervised`: one
            network on the labels as they are. The others are rivals.
        peers: Makes the module of stage 1.
        network: Makes the module of stage 3.
        trainer: Makes a new trainer, given `callbacks`, `logger` and `default_root_dir`, such as
            `partial(pl.Trainer, max_epochs=40)`.
        seed: Of the networks' initial weights.
        averaging: The share of an `AveragedWeights`; 0 judges networks as they are at the end.
        score: What the training samples are ranked by: see `coseg_lightning.scores.mask_scores`.
        score_epochs: How many of the last epochs the scores are averaged over.
        confidence: How sure the peers must be to overrule a label: see `LabelCorrection`.
        warm_start: Whether retraining starts from the first peer, if its labels were corrected;
            else from new weights.
        retraining_loss: The pixel loss of retraining on corrected labels, see
            `coseg_lightning.pixel_losses`; a robust one forgives what was not found wrong. If the
            labels were left alone, the network keeps its own.
        rounds: How often the peers are trained, and correct what the round before left.
        by_class: Whether each class is ranked and corrected by itself.
        config: Plain values to keep in `summary.json`.

    Returns:
        The content of `summary.json`.

    Raises:
        InputError: If the folder holds another run, or there is no such method.
    """
    if method not in METHODS:
        raise InputError(f"method={method}: there is no such method; take {', '.join(METHODS)}.")
    if retraining_loss not in PIXEL_LOSSES:
        raise InputError(f"retraining_loss={retraining_loss} must be {' or '.join(PIXEL_LOSSES)}.")
    stages = METHODS[method]
    if not isinstance(data, CoSegDataModule):
        if "filtering" in stages:
            raise InputError(
                f"method={method} leaves samples out, which a CoSegDataModule can; the data is a "
                f"{type(data).__name__}."
            )
        data = adopted(data)
    folder = Path(folder)
    run = _Run(folder, trainer, averaging)
    _check_new(folder)

    rankings: list[Ranking] = []
    correction: LabelCorrection | None = None
    corrected = False
    estimate: dict[str, Any] | None = None
    changed: set[int] = set()
    options: dict[str, Any] = {}
    module: CoSegModule | SegmentationModule
    if "robust_training" in stages:
        for number in range(1, rounds + 1):
            # The last round has the plain names; its labels lie over those of the others.
            suffix = "" if number == rounds else f"_{number}"
            ranking_callback = CorruptionRanking(
                folder / f"scores{suffix}.csv", score=score, epochs=score_epochs
            )
            callbacks: list[pl.Callback] = [ranking_callback]
            if "correction" in stages:
                correction = LabelCorrection(
                    folder / f"labels{suffix}", confidence=confidence, by_class=by_class
                )
                callbacks.append(correction)
            pl.seed_everything(seed, verbose=False)
            module = peers()
            if module.estimates_noise:
                callbacks.insert(0, NoiseLevelEstimation())  # before what selects by it
            final = run.fit(f"robust_training{suffix}", module, data, callbacks)
            assert ranking_callback.ranking is not None
            rankings.append(ranking_callback.ranking)
            if module.noise_estimate is not None:
                estimate = module.noise_estimate.as_dict()
            if correction is not None:
                data.lay(correction.folder)
                corrected |= not correction.left_alone
    if "filtering" in stages:
        assert isinstance(data, CoSegDataModule)
        (ranking,) = rankings
        kept = len(ranking.ids) - len(ranking.noisy)
        data.leave_out([ranking.ids[index] for index in ranking.noisy])
        # As many steps as with all samples.
        options = {"max_epochs": round((final.max_epochs or 0) * len(ranking.ids) / kept)}
    if "early_learning" in stages:
        pl.seed_everything(seed, verbose=False)
        module = network()
        final, changed = run.early_learning(module, data)
    elif stages[-1] != "robust_training":
        learnt = None
        if len(stages) > 1:
            assert isinstance(module, CoSegModule)
            if warm_start and corrected:
                learnt = copy.deepcopy(module.net_a.state_dict())
            del module, final
            gc.collect()
        pl.seed_everything(seed, verbose=False)
        module = network()
        if learnt is not None:
            module.net.load_state_dict(learnt)
        if corrected:
            module.pixel_loss = module.hparams["pixel_loss"] = retraining_loss
        final = run.fit(stages[-1], module, data, **options)

    with run.timed("test"):
        test = _test(final, module, data)
    last = rankings[-1] if rankings else None
    for of_round in rankings:
        changed |= {index for index, pixels in of_round.changed_pixels.items() if pixels}
    summary = {
        "config": {"method": {"name": method}, "seed": seed, **(config or {})},
        "test": test,
        "ranking": {
            "noise_level": None if last is None else last.noise_level,
            "estimate": estimate,
            "bias": None if last is None else last.bias,
            "auroc": None if last is None else last.auroc,
        },
        "correction": {
            "corrected": len(changed),
            "contradiction": None if correction is None else correction.contradiction,
            "left_alone": correction is not None and not corrected,
            **_label_dice(data),
        },
        "stages": run.stages,
        "peak_memory_bytes": _peak_memory(),
    }
    if final.is_global_zero:
        save_network(
            module.net_a if isinstance(module, CoSegModule) else module.net, folder / "model"
        )
        merge_metrics(folder, [name for name in run.stages if name != "test"])
        write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    final.strategy.barrier("run finished")
    return summary


class _Run:
    """What the stages of one run share: a folder, a way to make trainers, a stopwatch."""

    def __init__(self, folder: Path, trainer: Callable[..., pl.Trainer], averaging: float) -> None:
        self.folder = folder
        self.trainer = trainer
        self.averaging = averaging
        self.stages: dict[str, dict[str, Any]] = {}

    def fit(
        self,
        stage: str,
        module: pl.LightningModule,
        data: Data,
        callbacks: list[pl.Callback] | None = None,
        **options: Any,
    ) -> pl.Trainer:
        """Train with a new trainer, since a used one may do nothing."""
        place = self.folder / stage
        checkpoint = ModelCheckpoint(
            place, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        # First, so that the others see the averaged network when training ends.
        averaging = [AveragedWeights(self.averaging)] if self.averaging else []
        trainer = self.trainer(
            callbacks=[*averaging, *(callbacks or []), checkpoint],
            logger=CSVLogger(place, name="", version=""),
            default_root_dir=place,
            **options,
        )
        if not self.stages:  # not before module and trainer could be built
            _prepare_noise(data)
        if trainer.is_global_zero:
            log.info("%s ...", stage.replace("_", " ").capitalize())
        with self.timed(stage):
            trainer.fit(module, datamodule=data)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if trainer.num_training_batches == 0:
            raise InputError(
                "The training loader gives no batch, so nothing was trained; it may have "
                "drop_last=True and a batch_size above the number of samples."
            )
        self.stages[stage]["epochs"] = trainer.current_epoch
        return trainer

    def early_learning(self, module: SegmentationModule, data: Data) -> tuple[pl.Trainer, set[int]]:
        """Fit until early learning is over for a class, correct its labels, and go on.

        Returns:
            The last trainer, and the indices of the samples whose labels were changed.
        """
        changed: set[int] = set()
        classes: set[int] = set(range(1, module.classes))
        history: list[list[float]] = []
        rest: dict[str, int] = {}
        for number in range(1, module.classes + 1):
            name = "" if number == 1 else f"_{number}"
            callback = EarlyLearningCorrection(self.folder / f"labels{name}", classes, history)
            trainer = self.fit(f"early_learning{name}", module, data, [callback], **rest)
            if not callback.corrected:
                break
            data.lay(callback.folder)
            changed |= {index for index, pixels in callback.changed_pixels.items() if pixels}
            classes, history = classes - set(callback.corrected), callback.history
            rest = {"max_epochs": (trainer.max_epochs or 0) - trainer.current_epoch}
        return trainer, changed

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[stage] = {"seconds": round(time.perf_counter() - start, 3), "epochs": 0}


@rank_zero_only
def _check_new(folder: Path) -> None:
    rounds = ("scores_1.csv", "labels_1", "robust_training_1")  # of a run in several
    for name in ("summary.json", "scores.csv", "labels", "model", "noise", *STAGES, *rounds):
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds another run ({name}), and nothing is ever overwritten; choose "
                "another folder (hydra.run.dir=...)."
            )


@rank_zero_only
def _prepare_noise(data: Data) -> None:
    """Write the noisy masks now, not in `fit`, to tell before training how hard the task is."""
    if not isinstance(data, CoSegDataModule):
        return
    data.prepare_data()
    if data.noise_folder is None:
        return
    layer = LabelStore(data.noise_folder)
    samples = data.samples("train")
    assert samples is not None
    told = f"{len(layer)} of {len(samples)} training masks were replaced by noisy ones"
    if len(layer):
        dice = np.array([layer.facts(id)["dice"] for id in layer.ids])
        told += (
            f"; their Dice to the originals is {dice.mean():.3f} "
            f"({dice.min():.3f} to {dice.max():.3f})"
        )
    log.info("%s.", told)


def _test(
    trainer: pl.Trainer, module: CoSegModule | SegmentationModule, data: Data
) -> dict[str, Any]:
    """Test metrics; a pair of peers is tested by its first, chosen in advance."""
    peer = "_a" if isinstance(module, CoSegModule) else ""
    measured: Mapping[str, Any] = {}
    if data.has_test:
        measured = trainer.test(module, datamodule=data, verbose=False)[0]

    def figure(name: str) -> float | None:
        value = float(measured.get(f"test/{name}", math.nan))
        return None if math.isnan(value) else value

    return {
        "dice": figure(f"dice{peer}"),
        "accuracy": figure(f"accuracy{peer}"),
        "per_class_dice": [figure(f"dice{peer}_class_{c}") for c in range(module.classes)],
    }


def _label_dice(data: Data) -> dict[str, float | None]:
    """The mean Dice of the training labels to the original ones, if those are known."""
    means: list[float | None] = [None, None]
    if isinstance(data, CoSegDataModule):
        dice = label_dice(data.given_samples()), label_dice(data.samples("train"))
        means = [None if part is None else float(part.mean()) for part in dice]
    return {"label_dice_before": means[0], "label_dice_after": means[1]}


def _peak_memory() -> int:
    """Bytes: what torch held at most of a GPU, or else this process of main memory; 0 unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merge_metrics(folder: Path, stages: list[str]) -> None:
    """Write `metrics.csv`: the stages' own logs below each other, with a column `stage`."""
    rows: list[dict[str, str]] = []
    for stage in stages:
        path = folder / stage / "metrics.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows += [{"stage": stage, **row} for row in csv.DictReader(file)]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["stage"]
    with (
        replacing(folder / "metrics.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
