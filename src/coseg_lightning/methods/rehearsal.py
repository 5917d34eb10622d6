"""A rehearsal: the whole way of a run with two batches, before it costs time.

Whatever would stop a run late stops the rehearsal in seconds: a test loader of another form, a
network that cannot be saved, corrected masks that do not fit, too little memory for a batch.
"""

import copy
import gc
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng
from tqdm import tqdm

from coseg_lightning.errors import InputError
from coseg_lightning.methods.method import Run
from coseg_lightning.modules import compat
from coseg_lightning.runs.folder import RunFolder
from coseg_lightning.runs.runner import StageRunner

log = logging.getLogger(__name__)
Module = TypeVar("Module", bound=pl.LightningModule)

BATCHES = 2  # of each loader
EPOCHS = 2  # so that the peers are ranked within training too


@rank_zero_only  # the other processes would only repeat it
def rehearse(
    run: Run, walk: Callable[[Run, Callable[[], Any]], Any], trainer: Callable[..., pl.Trainer]
) -> None:
    """Walk the whole way of a run with two batches of their real size, in a folder that is removed.

    Random states are as before, and only copies of networks are trained.

    Args:
        run: The run, which is not begun yet.
        walk: Walks through all stages of a run and writes its results; called with the run, and
            with what to call after each stage.
        trainer: Makes the trainers, see `alone`.

    Raises:
        Exception: Whatever stops the run on its way.
    """
    start = time.perf_counter()
    run.runner.tester()  # what cannot be made need not be rehearsed
    stages = len(run.method.stages) + 1
    keywords = getattr(run.runner.trainer, "keywords", {})
    silent = keywords.get("enable_progress_bar") is False or not sys.stderr.isatty()
    with (
        tempfile.TemporaryDirectory(prefix="rehearsal-", dir=_beside(run.runner.folder)) as folder,
        tqdm(total=stages, desc="Rehearsal", leave=False, disable=silent) as bar,
        isolate_rng(),
        _silence(),
    ):
        short_folder = Path(folder) / "run"
        runner = StageRunner(
            RunFolder(short_folder, {"rehearsal": True}),
            partial(_short_trainer, trainer, run.runner.own_callbacks),
            run.runner.averaging,
            run.runner.seed,
        )
        if runner.tester().world_size > 1:
            return  # what makes the trainer cannot be told to take one process
        short_data = run.data.shortened(BATCHES, short_folder)
        try:
            walk(
                replace(
                    run,
                    data=short_data,
                    runner=runner,
                    make_peers=_copying(run.make_peers),
                    make_network=_copying(run.make_network),
                ),
                bar.update,
            )
        except Exception as error:
            error.add_note("The rehearsal before training found this.")
            raise
    gc.collect()  # networks and trainers refer to each other, and would keep a device's memory
    log.info("The rehearsal of all stages took %.1f s.", time.perf_counter() - start)


def _beside(folder: RunFolder) -> Path:
    """Return the folder that holds the run's, on whose disk checkpoints must have room."""
    return next(path for path in folder.path.absolute().parents if path.is_dir())


def _copying(make: Callable[[], Module]) -> Callable[[], Module]:
    """Let a function return copies of modules, which may be those that the run itself trains."""

    def made() -> Module:
        return copy.deepcopy(make())

    return made


def alone(trainer: Callable[..., pl.Trainer]) -> Callable[..., pl.Trainer]:
    """Let a `partial(pl.Trainer, ...)` make trainers of one quiet process.

    They have neither callbacks nor loggers of the user's own, which would see training that did
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
    """Checks that a stage logs what the user's own callbacks go by.

    Args:
        callbacks: The callbacks, which are not called in a rehearsal.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks = callbacks

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise an `InputError` for a metric that is missing."""
        known = trainer.callback_metrics
        for callback in self.callbacks:
            monitor = getattr(callback, "monitor", None)
            if (
                isinstance(monitor, str)
                and monitor not in known
                and getattr(callback, "strict", True)
            ):
                raise InputError(
                    f"{type(callback).__name__} goes by {monitor!r}, which a stage that trains a "
                    f"{type(pl_module).__name__} does not log; it logs {', '.join(sorted(known))}. "
                    "Leave the callback out, or train that stage alone."
                )


def _short_trainer(
    make: Callable[..., pl.Trainer], own: Sequence[Any], **options: Any
) -> pl.Trainer:
    if options["logger"]:  # a stage, and not the test
        options["callbacks"] = [*options["callbacks"], Monitors(own)]
    trainer = make(**options)
    compat.shorten(trainer, BATCHES, EPOCHS, options["callbacks"], options["logger"])
    return trainer


@contextmanager
def _silence() -> Iterator[None]:
    """Keep warnings and messages for the run itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
