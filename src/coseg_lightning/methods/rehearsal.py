"""A rehearsal: all stages of a run with two batches, before the run takes time.

Errors that would stop a run late stop the rehearsal in seconds. Examples are a test loader of
another form, a network that cannot be saved, unsuitable corrected masks, and too little memory for
a batch.
"""

import gc
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng
from tqdm import tqdm

from coseg_lightning.callbacks.best_network import BestNetwork, check_validates
from coseg_lightning.callbacks.enough_epochs import EnoughEpochs, enough_epochs
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.methods.method import Run
from coseg_lightning.modules import compat
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.folder import RunFolder
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.wrapped import Data

log = logging.getLogger(__name__)

BATCHES = 2  # of each loader
EPOCHS = 2  # so that the peers are also ranked during training


@rank_zero_only  # other processes would only repeat the work
def rehearse(
    run: Run, walk: Callable[[Run, Callable[[], Any]], Any], trainer: Callable[..., pl.Trainer]
) -> "Forecast | None":
    """Run all stages with two batches of their real size, in a temporary folder.

    Random states are restored, and only copies of networks are trained.

    Args:
        run: The run, which has not begun yet.
        walk: Runs all stages of a run and writes its results. It is called with the run, and
            with a function to call after each stage.
        trainer: Makes the trainers, see `alone`.

    Returns:
        The forecast of the run's duration; None if there are several processes.

    Raises:
        Exception: Any error that would stop the run.
    """
    start = time.perf_counter()
    run.runner.tester()  # if the trainer cannot be made, there is nothing to rehearse
    stages = len(run.method.stages) + 1
    keywords = getattr(run.runner.trainer, "keywords", {})
    silent = keywords.get("enable_progress_bar") is False or not sys.stderr.isatty()
    watches: list[Stopwatch] = []
    with (
        tempfile.TemporaryDirectory(prefix="rehearsal-", dir=_beside(run.runner.folder)) as folder,
        tqdm(total=stages, desc="Rehearsal", leave=False, disable=silent) as bar,
        isolate_rng(),
        _silence(),
    ):
        short_folder = Path(folder) / "run"
        runner = StageRunner(
            RunFolder(short_folder, {"rehearsal": True}),
            partial(_short_trainer, trainer, run.runner.monitoring, watches),
            run.runner.averaging,
            run.runner.seed,
        )
        if runner.tester().world_size > 1:
            return None  # the user's function decides the number of processes
        short_data = run.data.shortened(BATCHES, short_folder)
        try:
            walk(
                replace(run, data=short_data, runner=runner),
                bar.update,
            )
        except Exception as error:
            error.add_note("This error came up in the rehearsal before training.")
            raise
    gc.collect()  # networks and trainers form cycles, which would keep a device's memory
    return forecast(run, watches, time.perf_counter() - start)


@dataclass(frozen=True)
class Forecast:
    """The durations that a rehearsal found.

    Args:
        seconds: The duration of the run's stages; None if the size of the data is unknown.
        rehearsal: The duration of the rehearsal, in seconds.
    """

    seconds: float | None
    rehearsal: float


def forecast(run: Run, watches: "Sequence[Stopwatch]", rehearsal: float) -> Forecast:
    """Compute the run's duration from the batches of its rehearsal."""
    batches = batches_in_epoch(run.data, run.runner.tester().world_size)
    if batches is None:
        return Forecast(None, rehearsal)
    seconds = 0.0
    for watch in watches:
        share = run.recipe.retraining_share if watch.stage == "retraining" else 1.0
        most = (watch.epochs or enough_epochs(batches)) * batches
        seconds += share * min(most, watch.batches) * watch.seconds
    return Forecast(seconds, rehearsal)


def batches_in_epoch(data: Data, processes: int) -> int | None:
    """Return the number of training batches per epoch and process, or None if unknown."""
    if not isinstance(data, CoSegDataModule):
        return None
    size = data.batch_size * processes
    return max(1, data.drawn_in_epoch // size)


class Stopwatch(pl.Callback):
    """Measures the time per batch of a stage, including loading.

    Args:
        stage: The stage.
        epochs: The number of epochs of the real run; None if `EnoughEpochs` chooses it.
        batches: The most batches of the real run, by its limit of steps.
    """

    def __init__(self, stage: str, epochs: int | None, batches: float) -> None:
        self.stage = stage
        self.epochs = epochs
        self.batches = batches
        self.intervals: list[float] = []
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        """Record the time since the previous batch, except for the first batch of an epoch."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now, batch_idx = time.perf_counter(), rest[-1]
        if batch_idx > 0:
            self.intervals.append(now - self._last)
        self._last = now

    @property
    def seconds(self) -> float:
        """Mean seconds per batch; 0 if there was only one batch."""
        return sum(self.intervals) / max(1, len(self.intervals))


def _beside(folder: RunFolder) -> Path:
    """Return the parent of the run's folder, since its disk must have room for checkpoints."""
    return next(path for path in folder.path.absolute().parents if path.is_dir())


def alone(trainer: Callable[..., pl.Trainer]) -> Callable[..., pl.Trainer]:
    """Make a `partial(pl.Trainer, ...)` create quiet trainers with a single process.

    They have no callbacks or loggers of the user, which would otherwise record training that did
    not happen.
    """
    if not isinstance(trainer, partial):
        return trainer
    devices = trainer.keywords.get("devices")
    return partial(
        trainer,
        devices=devices[:1] if isinstance(devices, list | tuple) else 1,
        num_nodes=1,
        strategy="auto",
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Monitors(pl.Callback):
    """Checks that a stage logs the metrics that the user's callbacks monitor.

    Args:
        callbacks: The callbacks, which are not called in a rehearsal.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks = callbacks

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise an `InputError` if a monitored metric is missing."""
        known = trainer.callback_metrics
        for callback in self.callbacks:
            monitor = getattr(callback, "monitor", None)
            if isinstance(callback, BestNetwork) and not isinstance(pl_module, SegmentationModule):
                continue  # stages of two peers have none
            if (
                isinstance(monitor, str)
                and monitor not in known
                and getattr(callback, "strict", True)
            ):
                raise InputError(
                    f"{type(callback).__name__} monitors {monitor!r}, but a stage that trains a "
                    f"{type(pl_module).__name__} does not log it; it logs "
                    f"{', '.join(sorted(known))}. Monitor one of these, or leave the callback out."
                )


def _short_trainer(
    make: Callable[..., pl.Trainer], own: Sequence[Any], watches: list[Stopwatch], **options: Any
) -> pl.Trainer:
    is_stage = bool(options["logger"])  # false for the test
    if is_stage:
        options["callbacks"] = [*options["callbacks"], Monitors(own)]
    trainer = make(**options)
    stay = options["callbacks"]
    if is_stage:
        stage = Path(options["default_root_dir"]).name
        most = (
            trainer.max_steps * trainer.accumulate_grad_batches
            if trainer.max_steps > 0
            else math.inf
        )
        epochs = epochs_of(trainer)
        if epochs is not None and any(isinstance(callback, BestNetwork) for callback in own):
            check_validates(trainer, epochs)
        watches.append(Stopwatch(stage, epochs, most))
        trainer.callbacks.append(watches[-1])  # type: ignore[attr-defined]
        stay = [*stay, watches[-1]]
    compat.shorten(trainer, BATCHES, EPOCHS, stay, options["logger"])
    return trainer


def epochs_of(trainer: pl.Trainer) -> int | None:
    """Return a trainer's number of epochs; None if `EnoughEpochs` chooses it."""
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        return trainer.max_epochs
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c.epochs for c in callbacks if isinstance(c, EnoughEpochs)), None)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings and messages, which the run itself will show."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
