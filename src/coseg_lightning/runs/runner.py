"""StageRunner: trains the stages of a run and saves their results in its folder."""

import copy
import logging
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from coseg_lightning.callbacks.averaged_weights import AVERAGING, AveragedWeights
from coseg_lightning.callbacks.best_network import METRIC, BestNetwork
from coseg_lightning.callbacks.epoch_seeds import EpochSeeds
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT, StageCheckpoint
from coseg_lightning.callbacks.stage_progress import StageProgress, show_progress
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.files.checkpoints import check_fits, load_checkpoint, load_plain
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.modules import compat
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.modules.steps import SegmentationSteps
from coseg_lightning.runs.folder import RunFolder, stage_weights
from coseg_lightning.runs.wrapped import Data

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=pl.LightningModule)
Facts = TypeVar("Facts")


class StageRunner:
    """Trains the stages of one run, and saves their results.

    Args:
        folder: The run's folder.
        trainer: Makes a new trainer, see `run_stages`.
        averaging: The share of an `AveragedWeights`; 0 for no average.
        seed: Seed of the initial weights, and of everything random in a stage.
    """

    def __init__(
        self, folder: RunFolder, trainer: Callable[..., pl.Trainer], averaging: float, seed: int
    ) -> None:
        self.folder = folder
        self.trainer = trainer
        self.averaging = averaging
        self.seed = seed
        self.stages: dict[str, dict[str, Any]] = {}  # seconds and epochs of each fit
        self.later_stages = 0
        self.best: Callable[[], pl.Callback] | None = None
        self._begun = False

    def keep_best(self, patience: int | None) -> None:
        """Make stages that train one network end with their best epoch, see `BestNetwork`."""
        self.best = partial(BestNetwork, patience)

    def expect(self, later_stages: int) -> None:
        """Set the number of stages that follow the current one, for the progress bar."""
        self.later_stages = later_stages

    @overload
    def stage(
        self, name: str, do: Callable[[], Any], makes: Sequence[str] = ..., returns: None = ...
    ) -> dict[str, Any]: ...

    @overload
    def stage(
        self, name: str, do: Callable[[], Facts], makes: Sequence[str], returns: type[Facts]
    ) -> Facts: ...

    def stage(
        self,
        name: str,
        do: Callable[[], Any],
        makes: Sequence[str] = (),
        returns: type[Any] | None = None,
    ) -> Any:
        """Run a stage, unless it is already finished.

        Args:
            name: The name of the stage.
            do: Runs the stage, and returns plain values for later stages: a dict, a dataclass, or
                nothing.
            makes: Names of the stage's outputs in the run's folder. They are removed and made
                again if the stage was interrupted.
            returns: The dataclass that `do` returns; one of its fields may be `epochs`.

        Returns:
            The values that `do` returned, now or in the earlier run, with the `epochs` of its
            fits.
        """
        facts = self.folder.done(name)
        if facts is None:
            self.folder.clear(*makes)
            before = set(self.stages)
            result = do()
            facts = dict(result or {}) if returns is None else asdict(result)
            fits = {part: self.stages[part] for part in self.stages if part not in before}
            facts |= {"stages": fits, "epochs": sum(fit["epochs"] for fit in fits.values())}
            self.folder.finish(name, facts, makes)
        self.stages |= facts["stages"]
        if returns is None:
            return facts
        try:
            return returns(**{field.name: facts[field.name] for field in fields(returns)})
        except KeyError as error:
            path = self.folder.path / name
            message = f"{path} was changed and cannot be read; start the run in a new folder."
            raise InputError(message) from error

    def built(self, make: Callable[[], Module]) -> Module:
        """Make a new module with the run's initial weights.

        A function that gives ready networks gives the same ones again, so a copy is trained.

        Raises:
            InputError: If the module cannot be copied.
        """
        pl.seed_everything(self.seed, verbose=False)
        module = make()
        try:
            return copy.deepcopy(module)
        except Exception as error:
            raise InputError(
                f"The {type(module).__name__} cannot be copied for a stage ({error}); let its "
                "networks keep no locks, open files or weights that were computed."
            ) from error

    def fit(
        self,
        stage: str,
        module: pl.LightningModule,
        data: Data,
        callbacks: Sequence[pl.Callback] = (),
        *,
        max_epochs: int | None = None,
        share: float = 1.0,
        first_epoch: int = 0,
        averaging: float | None = None,
    ) -> pl.Trainer:
        """Train a module with a new trainer, since a used one might do nothing.

        Args:
            stage: The name of the stage's folder.
            module: The module.
            data: The run's data.
            callbacks: Callbacks in addition to those of every stage.
            max_epochs: The number of epochs; default the trainer's own number.
            share: The share of the trainer's own number of steps, if it has a limit of steps.
            first_epoch: The number of the first epoch, on which order and augmentation depend. It
                follows those of the network from whose weights a module starts.
            averaging: The share of the stage over which weights are averaged; default the run's.

        Raises:
            InputError: If nothing can be trained.
        """
        self._check_free(stage)
        if self.best is not None and isinstance(module, SegmentationModule):
            callbacks = [*callbacks, self.best()]
        averaging = self.averaging if averaging is None else averaging
        trainer = self._new_trainer(stage, callbacks, first_epoch, averaging)
        if isinstance(data, CoSegDataModule):
            data.count_epochs_from(first_epoch)
        longer = 1.0  # by this, than the training that the trainer was made for
        if max_epochs is not None:  # set afterwards, since the function may set its own number
            if trainer.max_epochs is not None and trainer.max_epochs > 0:
                longer = max_epochs / trainer.max_epochs
            compat.set_max_epochs(trainer, max_epochs)
        steps = longer  # by this in steps, of which fewer samples need fewer for an epoch
        if isinstance(data, CoSegDataModule):
            steps *= data.batches_left(trainer.world_size)
        if trainer.max_steps > 0:
            longer, steps = max(longer, share), max(steps, share)
            compat.set_max_steps(trainer, max(1, round(share * trainer.max_steps)))
        if isinstance(module, SegmentationSteps):  # otherwise it would end too soon, or begin anew
            module.stretch_schedule(longer, steps)
        self._begin(data)
        checkpoint = self.folder.checkpoint(stage, module)
        title = stage.replace("_", " ").capitalize()
        if trainer.is_global_zero and checkpoint is not None:
            log.info("%s continues.", title)
        elif trainer.is_global_zero and trainer.progress_bar_callback is None:
            log.info("%s.", title)
        with self.timed(stage):
            # All stages use the same seed, since a datamodule's setup may split at random.
            pl.seed_everything(self.seed, verbose=False)
            with named_by_stage(self._brought_along("logger"), stage):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if trainer.num_training_batches == 0:
            raise InputError(
                "The training loader gives no batch, so nothing was trained; check whether it has "
                "drop_last=True and a batch_size above the number of samples."
            )
        self.stages[stage]["epochs"] = trainer.current_epoch
        best = next((c for c in trainer.callbacks if isinstance(c, BestNetwork)), None)  # type: ignore[attr-defined]
        if best is not None and best.best is not None:
            self.stages[stage] |= {"best_epoch": best.epoch + 1, "best_val_dice": best.best}
            if trainer.is_global_zero:
                log.info(
                    "%s: of %d epochs, the network of epoch %d is kept, with the best %s of %.4f.",
                    title,
                    trainer.current_epoch,
                    best.epoch + 1,
                    METRIC,
                    best.best,
                )
        return trainer

    @rank_zero_only  # other processes start later and find the first one's files
    def _check_free(self, stage: str) -> None:
        """Raise an `InputError` if a new run would write into a folder that is not empty."""
        folder = self.folder.path / stage
        if not self.folder.resumed and folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty, and nothing is ever overwritten; choose another folder "
                "for the run (hydra.run.dir=...), or another name for the stage."
            )

    def _new_trainer(
        self, stage: str, callbacks: Sequence[pl.Callback], first_epoch: int, averaging: float
    ) -> pl.Trainer:
        stage_folder = self.folder.path / stage
        own_folder = getattr(self.trainer, "keywords", {}).get("default_root_dir")
        if own_folder is not None:
            rank_zero_warn(
                f"default_root_dir={own_folder} is not used, since the stage writes to "
                f"{stage_folder}."
            )
        own = self._brought_along("callbacks")
        averages = averaging and not any(isinstance(c, AVERAGING) for c in own)
        # Averaging comes first, so that other callbacks get the averaged network at the end.
        average = [AveragedWeights(averaging)] if averages else []
        always = [
            EpochSeeds(self.seed, first_epoch),
            StageCheckpoint(stage_folder),
        ]
        logger = CSVLogger(stage_folder, name="", version=self.folder.log_folder(stage))
        trainer = self.trainer(
            callbacks=[*average, *own, *callbacks, *always],
            enable_checkpointing=True,
            logger=[logger, *self._brought_along("logger")],
            default_root_dir=stage_folder,
        )
        title = stage.replace("_", " ").capitalize()
        show_progress(trainer, StageProgress(title, self.later_stages), own)
        if compat.loses_results(trainer.strategy):
            raise InputError(
                f"The strategy {type(trainer.strategy).__name__} starts its processes by fork or "
                "spawn, so the results stay in the child processes; use strategy='ddp'."
            )
        return trainer

    @property
    def monitoring(self) -> list[Any]:
        """A `partial(pl.Trainer, ...)`'s callbacks, and the one that keeps the best network."""
        return [*self._brought_along("callbacks"), *([] if self.best is None else [self.best()])]

    def _brought_along(self, name: str) -> list[Any]:
        """Return the callbacks or loggers of a `partial(pl.Trainer, ...)`."""
        value = getattr(self.trainer, "keywords", {}).get(name)
        if value is None or isinstance(value, bool):
            return []
        objects = list(value) if isinstance(value, list | tuple) else [value]
        return _copied(objects) if name == "callbacks" else objects

    def _begin(self, data: Data) -> None:
        """Claim the run's folder once module and trainer have been built."""
        if not self._begun:
            self.folder.begin()
            prepare_noise(data)
            self._begun = True

    def add_label_layers(self, data: Data, names: Sequence[str]) -> None:
        """Add a stage's label layers to the training masks, unless the stage already did."""
        for name in names:
            if self.folder.path / name not in data.label_layers:
                data.add_label_layer(self.folder.path / name)

    def restored(self, module: Module, stage: str) -> Module:
        """Load a finished stage's final state into a module, and undo its compilation."""
        path = self.folder.path / stage / CHECKPOINT
        module = compat.uncompiled(module)
        state = load_checkpoint(path)["state_dict"]
        check_fits(state, module, path)
        load_plain(module, state)
        return module

    def weights(self, stage: str, of: str = "") -> dict[str, Any]:
        """Load the final state dict of a finished stage, see `stage_weights`."""
        return stage_weights(self.folder.path / stage, of)

    def tester(self) -> pl.Trainer:
        """Make a trainer that writes no files."""
        trainer = self.trainer(
            callbacks=[],
            default_root_dir=self.folder.path,
            logger=False,
            enable_checkpointing=False,
        )
        show_progress(trainer, None)
        return trainer

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Record the duration of a stage."""
        start = time.perf_counter()
        yield
        self.stages[stage] = {"seconds": round(time.perf_counter() - start, 3), "epochs": 0}


def _copied(callbacks: list[Any]) -> list[Any]:
    """Copy a user's callbacks together, since each stage needs its own."""
    try:
        return copy.deepcopy(callbacks)
    except Exception as error:
        names = ", ".join(type(callback).__name__ for callback in callbacks)
        raise InputError(
            f"The callbacks {names} cannot be copied for each stage ({error}); let them keep such "
            "objects from setup() on, or give a function that makes the trainer."
        ) from error


@contextmanager
def named_by_stage(loggers: Sequence[Logger], stage: str) -> Iterator[None]:
    """Prefix the names of logged values with the stage, for loggers that all stages share.

    Otherwise stages would overwrite each other's values. MLflow also refuses a second value of a
    hyperparameter.
    """

    def named(logger: Logger) -> dict[str, Any]:
        log_metrics, log_hyperparams = logger.log_metrics, logger.log_hyperparams

        def metrics_of_stage(metrics: Mapping[str, float], step: int | None = None) -> None:
            log_metrics({f"{stage}/{name}": value for name, value in metrics.items()}, step)

        def hyperparams_of_stage(params: Any, *others: Any, **options: Any) -> None:
            plain = dict(vars(params) if isinstance(params, Namespace) else params)
            log_hyperparams({stage: plain}, *others, **options)

        return {"log_metrics": metrics_of_stage, "log_hyperparams": hyperparams_of_stage}

    names = [(logger, named(logger)) for logger in loggers]
    for logger, methods in names:
        vars(logger).update(methods)
    try:
        yield
    finally:
        for logger, methods in names:
            for name in methods:
                del vars(logger)[name]


@rank_zero_only
def prepare_noise(data: Data) -> None:
    """Write the noisy masks before `fit`, and log their Dice before training begins."""
    if not isinstance(data, CoSegDataModule):
        return
    data.prepare_data()
    if data.noise_folder is None:
        return
    layer = LabelStore(data.noise_folder)
    samples = data.samples("train")
    assert samples is not None
    message = f"{len(layer)} of {len(samples)} training masks were replaced by noisy ones"
    if len(layer):
        dice = np.array([layer.facts(sample_id)["dice"] for sample_id in layer.ids])
        message += (
            f"; their Dice to the originals is {dice.mean():.3f} "
            f"({dice.min():.3f} to {dice.max():.3f})"
        )
    log.info("%s.", message)
