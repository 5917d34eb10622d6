"""The stages of a run in order, and what each leaves in the run's folder."""

import copy
import csv
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

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
from coseg_lightning.run_folder import (
    CHECKPOINT,
    EpochSeeds,
    RunFolder,
    StageCheckpoint,
    load_checkpoint,
    plain_values,
)
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
    resume: bool = False,
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
            `partial(pl.Trainer, max_epochs=40)`; callbacks and loggers of such a partial are kept,
            the callbacks as copies in each stage.
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
        config: Plain values to keep in `summary.json`, which say what the run is.
        resume: Whether a run of the same `config` that the folder holds goes on where it was
            interrupted; where there is none it begins. It ends with the same results, to the bit on
            a CPU, as one that was never interrupted.

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
    config = {"method": {"name": method}, "seed": seed, **(config or {})}
    recipe = {
        **{"averaging": averaging, "score": score, "score_epochs": score_epochs},
        **{"confidence": confidence, "warm_start": warm_start, "rounds": rounds},
        **{"retraining_loss": retraining_loss, "by_class": by_class},
    }
    if "data" not in config:  # a project's own, as far as it can be told
        config["data"] = {"class": type(data).__name__, **plain_values(dict(data.hparams))}
        for name, make in (("peers", peers), ("network", network)):
            made = make()
            config[name] = {"class": type(made).__name__, **plain_values(dict(made.hparams))}
        options = getattr(trainer, "keywords", {})
        config["trainer"] = plain_values(
            {key: options[key] for key in options if key not in ("callbacks", "logger")}
        )
    kept = RunFolder(folder, {**config, "recipe": recipe}, resume=resume)
    if kept.summary is not None:
        return kept.summary
    folder = kept.path
    run = _Run(kept, trainer, averaging, seed)
    corrects = "correction" in stages

    def robust_training(stage: str, suffix: str) -> dict[str, Any]:
        ranking = CorruptionRanking(
            folder / f"scores{suffix}.csv", score=score, epochs=score_epochs, run_id=kept.id
        )
        correction = LabelCorrection(
            folder / f"labels{suffix}", confidence=confidence, by_class=by_class, run_id=kept.id
        )
        module = run.built(peers)
        if corrects and warm_start:
            check_same_kind(module.net_a, run.built(network).net)
        run.fit(
            stage,
            module,
            data,
            [
                *([NoiseLevelEstimation()] if module.estimates_noise else []),  # selected by then
                ranking,
                *([correction] if corrects else []),
            ],
        )
        if ranking.ranking is None:
            raise InputError("Nothing was trained; give the trainer max_epochs of at least 1.")
        return {
            **_facts_of(ranking.ranking),
            "estimate": module.noise_estimate and module.noise_estimate.as_dict(),
            "layers": [correction.folder.name] if corrects else [],
            "contradiction": correction.contradiction,
            "left_alone": correction.left_alone,
        }

    def last_training(stage: str) -> dict[str, Any]:
        module = run.built(network)
        if corrected:
            module.pixel_loss = module.hparams["pixel_loss"] = retraining_loss
            if warm_start:
                module.net.load_state_dict(run.weights("robust_training", of="net_a."))
        options = {}
        if "filtering" in stages:
            # As many steps as with all samples.
            share = 1 - len(ranked["noisy"]) / ranked["samples"]
            options["max_epochs"] = round(ranked["epochs"] / share)
        run.fit(stage, module, data, **options)
        return {}

    ranked: dict[str, Any] = {}
    changed: set[int] = set()
    corrected = False
    if "robust_training" in stages:
        for number in range(1, rounds + 1):
            # The last round has the plain names; its labels lie over those of the others.
            suffix = "" if number == rounds else f"_{number}"
            ranked = run.stage(
                f"robust_training{suffix}",
                partial(robust_training, suffix=suffix),
                makes=(f"scores{suffix}.csv", f"labels{suffix}"),
            )
            _lay(data, folder, ranked["layers"])
            changed |= set(ranked["changed"])
            corrected |= bool(ranked["layers"]) and not ranked["left_alone"]
    if "filtering" in stages:
        assert isinstance(data, CoSegDataModule)
        data.leave_out(ranked["noisy"])
    final = stages[-1]
    if final == "early_learning":
        found = run.stage(
            final,
            lambda _: run.early_learning(run.built(network), data),
            makes=[
                f"{name}{part}"
                for name in ("labels", "early_learning")
                for part in ("", *(f"_{number}" for number in range(2, 256)))
            ],
        )
        _lay(data, folder, found["layers"])
        changed |= set(found["changed"])
        final = found["last"]
    elif final != "robust_training":
        run.stage(final, last_training)

    # From the disk, so that a run that goes on here ends with the same.
    module: CoSegModule | SegmentationModule
    module = run.built(peers) if final == "robust_training" else run.built(network)
    module.load_state_dict(run.weights(final))
    tester = run.tester()
    with run.timed("test"):
        test = _test(tester, module, data, seed)
    summary = {
        "config": config,
        "test": test,
        "ranking": {
            name: ranked.get(name) for name in ("noise_level", "estimate", "bias", "auroc")
        },
        "correction": {
            "corrected": len(changed),
            "contradiction": ranked.get("contradiction"),
            "left_alone": "correction" in stages and not corrected,
            "layers": [layer.name for layer in data.label_layers],
            **_label_dice(data),
        },
        "stages": run.stages,
        "peak_memory_bytes": _peak_memory(),
    }
    if tester.is_global_zero:
        save_network(
            module.net_a if isinstance(module, CoSegModule) else module.net, folder / "model"
        )
        merge_metrics(folder, [name for name in run.stages if name != "test"])
        write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
    tester.strategy.barrier("run finished")
    return summary


def _facts_of(ranking: Ranking) -> dict[str, Any]:
    """What later stages and the summary need of a ranking."""
    return {
        "samples": len(ranking.ids),
        "noisy": [ranking.ids[index] for index in ranking.noisy],
        "changed": sorted(index for index, pixels in ranking.changed_pixels.items() if pixels),
        "noise_level": ranking.noise_level,
        "bias": ranking.bias,
        "auroc": ranking.auroc,
    }


def _lay(data: Data, folder: Path, layers: list[str]) -> None:
    """Lay the label layers that a stage made over the training masks, if it did not itself."""
    for name in layers:
        if folder / name not in data.label_layers:
            data.lay(folder / name)


def check_same_kind(first: nn.Module, second: nn.Module) -> None:
    """Raise an `InputError` if a network cannot go on with another one's weights."""
    shapes = [
        {name: value.shape for name, value in network.state_dict().items()}
        for network in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"Retraining starts from the first peer, a {type(first).__name__}, but its network is "
            f"another one, a {type(second).__name__}; give the same kind, or warm_start=False."
        )


Module = TypeVar("Module", bound=pl.LightningModule)


class _Run:
    """What the stages of one run share: a folder, a way to make trainers, a stopwatch."""

    def __init__(
        self, kept: RunFolder, trainer: Callable[..., pl.Trainer], averaging: float, seed: int
    ) -> None:
        self.kept = kept
        self.trainer = trainer
        self.averaging = averaging
        self.seed = seed
        self.stages: dict[str, dict[str, Any]] = {}
        self._begun = False

    def stage(
        self, name: str, do: Callable[[str], dict[str, Any]], makes: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Do a stage, unless it is done.

        Args:
            name: What it is called.
            do: Does it, and returns plain values for those that follow.
            makes: What it makes in the run's folder, which is made anew if it was interrupted.

        Returns:
            What `do` returned, and `stages`, the time and epochs of its fits, and `epochs`.
        """
        facts = self.kept.done(name)
        if facts is None:
            self.kept.clear(*makes)
            before = set(self.stages)
            facts = do(name)
            fits = {part: self.stages[part] for part in self.stages if part not in before}
            facts |= {"stages": fits, "epochs": sum(fit["epochs"] for fit in fits.values())}
            self.kept.finish(name, facts, makes)
        self.stages |= facts["stages"]
        return facts

    def built(self, make: Callable[[], Module]) -> Module:
        """A new module with the run's initial weights."""
        pl.seed_everything(self.seed, verbose=False)
        return make()

    def fit(
        self,
        stage: str,
        module: pl.LightningModule,
        data: Data,
        callbacks: Sequence[pl.Callback] = (),
        **options: Any,
    ) -> pl.Trainer:
        """Train with a new trainer, since a used one may do nothing."""
        place = self.kept.path / stage
        # Averaging first, so that the others see the averaged network when training ends.
        own = self._own("callbacks")
        averages = self.averaging and not any(isinstance(c, WeightAveraging) for c in own)
        averaging = [AveragedWeights(self.averaging)] if averages else []
        always = [EpochSeeds(self.seed), StageCheckpoint(place)]
        trainer = self.trainer(
            callbacks=[*averaging, *own, *callbacks, *always],
            enable_checkpointing=True,
            logger=[
                CSVLogger(place, name="", version=self.kept.log_folder(stage)),
                *self._own("logger"),
            ],
            default_root_dir=place,
            **options,
        )
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _MultiProcessingLauncher):
            raise InputError(
                f"The strategy {type(trainer.strategy).__name__} started by fork or spawn keeps "
                "the results in its child processes; use strategy='ddp'."
            )
        if not self._begun:  # not before module and trainer could be built
            self.kept.begin()
            _prepare_noise(data)
            self._begun = True
        checkpoint = self.kept.checkpoint(stage)
        if trainer.is_global_zero:
            again = "" if checkpoint is None else " goes on"
            log.info("%s%s ...", stage.replace("_", " ").capitalize(), again)
        with self.timed(stage):
            # The same for each stage: a datamodule's setup may split at random.
            pl.seed_everything(self.seed, verbose=False)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if trainer.num_training_batches == 0:
            raise InputError(
                "The training loader gives no batch, so nothing was trained; it may have "
                "drop_last=True and a batch_size above the number of samples."
            )
        self.stages[stage]["epochs"] = trainer.current_epoch
        return trainer

    def _own(self, name: str) -> list[Any]:
        """Callbacks or loggers that a `partial(pl.Trainer, ...)` brings along."""
        given = getattr(self.trainer, "keywords", {}).get(name)
        if given is None or isinstance(given, bool):
            return []
        several = list(given) if isinstance(given, list | tuple) else [given]
        return copy.deepcopy(several) if name == "callbacks" else several

    def weights(self, stage: str, of: str = "") -> dict[str, Any]:
        """What a finished stage ended with, as a state dict: all of it, or one network's."""
        state = load_checkpoint(self.kept.path / stage / CHECKPOINT)["state_dict"]
        return {
            name.removeprefix(of): value for name, value in state.items() if name.startswith(of)
        }

    def tester(self) -> pl.Trainer:
        """A trainer that leaves nothing behind."""
        options = {"logger": False, "enable_checkpointing": False}
        return self.trainer(callbacks=[], default_root_dir=self.kept.path, **options)

    def early_learning(self, module: SegmentationModule, data: Data) -> dict[str, Any]:
        """Fit until early learning is over for a class, correct its labels, and go on."""
        changed: set[int] = set()
        layers: list[str] = []
        classes: set[int] = set(range(1, module.classes))
        history: list[list[float]] = []
        rest: dict[str, int] = {}
        for number in range(1, module.classes + 1):
            name = "" if number == 1 else f"_{number}"
            callback = EarlyLearningCorrection(self.kept.path / f"labels{name}", classes, history)
            trainer = self.fit(f"early_learning{name}", module, data, [callback], **rest)
            if not callback.corrected:
                break
            data.lay(callback.folder)
            layers.append(callback.folder.name)
            changed |= {index for index, pixels in callback.changed_pixels.items() if pixels}
            classes, history = classes - set(callback.corrected), callback.history
            rest = {"max_epochs": (trainer.max_epochs or 0) - trainer.current_epoch}
        return {"changed": sorted(changed), "layers": layers, "last": f"early_learning{name}"}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[stage] = {"seconds": round(time.perf_counter() - start, 3), "epochs": 0}


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
    trainer: pl.Trainer, module: CoSegModule | SegmentationModule, data: Data, seed: int
) -> dict[str, Any]:
    """Test metrics; a pair of peers is tested by its first, chosen in advance."""
    peer = "_a" if isinstance(module, CoSegModule) else ""
    measured: Mapping[str, Any] = {}
    if data.has_test:
        pl.seed_everything(seed, verbose=False)
        measured = next(iter(trainer.test(module, datamodule=data, verbose=False)), {})

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


def merge_metrics(folder: Path, stages: Sequence[str]) -> None:
    """Write `metrics.csv`: the stages' own logs below each other, with a column `stage`.

    A stage that was resumed has several, and each begins where the one before is worth nothing.
    """
    rows: list[dict[str, str]] = []
    for stage in stages:
        of_stage: list[dict[str, str]] = []
        resumed = sorted(
            (folder / stage).glob("resumed_*"), key=lambda path: int(path.name.partition("_")[2])
        )
        for place in (folder / stage, *resumed):
            if not (place / "metrics.csv").is_file():
                continue
            with (place / "metrics.csv").open(newline="", encoding="utf-8") as file:
                read = list(csv.DictReader(file))
            first = min((int(row["epoch"]) for row in read if row.get("epoch")), default=None)
            if first is not None:
                of_stage = [row for row in of_stage if int(row.get("epoch") or 0) < first]
            of_stage += read
        rows += [{"stage": stage, **row} for row in of_stage]
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["stage"]
    with (
        replacing(folder / "metrics.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
