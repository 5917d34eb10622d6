"""StageRunner: how a stage is trained, and what of it is kept in the run's folder."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, TypeVar, overload

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.averaged_weights import AveragedWeights
from coseg_lightning.callbacks.epoch_seeds import EpochSeeds
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT, StageCheckpoint
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.wrapped import Data
from coseg_lightning.errors import InputError
from coseg_lightning.files.checkpoints import check_fits, load_checkpoint
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.modules import compat
from coseg_lightning.runs.folder import RunFolder, stage_weights

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=pl.LightningModule)
Facts = TypeVar("Facts")


class StageRunner:
    """Trains the stages of one run, and keeps what they leave.

    Args:
        folder: The run's.
        trainer: Makes a new trainer, see `run_stages`.
        averaging: The share of an `AveragedWeights`; 0 for none.
        seed: Of initial weights, and of everything random in a stage.
    """

    def __init__(
        self, folder: RunFolder, trainer: Callable[..., pl.Trainer], averaging: float, seed: int
    ) -> None:
        self.folder = folder
        self.trainer = trainer
        self.averaging = averaging
        self.seed = seed
        self.stages: dict[str, dict[str, Any]] = {}  # seconds and epochs of each fit
        self._begun = False

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
        """Do a stage, unless it is done.

        Args:
            name: What it is called.
            do: Does it, and returns plain values for those that follow: a dict, a dataclass, or
                nothing.
            makes: What it makes in the run's folder, which is made anew if it was interrupted.
            returns: The dataclass that `do` returns; one of its fields may be `epochs`.

        Returns:
            What `do` returned, now or before the run was resumed, with the `epochs` of its fits.
        """
        facts = self.folder.done(name)
        if facts is None:
            self.folder.clear(*makes)
            before = set(self.stages)
            found = do()
            facts = dict(found or {}) if returns is None else asdict(found)
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
            raise InputError(
                f"{path} was changed and cannot be read; start in a new folder."
            ) from (error)

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
        *,
        max_epochs: int | None = None,
    ) -> pl.Trainer:
        """Train a module with a new trainer, since a used one may do nothing.

        Args:
            stage: The name of the stage's folder.
            module: The module.
            data: The run's data.
            callbacks: Beside those that every stage has.
            max_epochs: How many epochs, if not as many as the trainer says.
        """
        trainer = self._new_trainer(stage, callbacks)
        if max_epochs is not None:  # set here, since the function that makes it may give its own
            compat.set_max_epochs(trainer, max_epochs)
        self._begin(data)
        checkpoint = self.folder.checkpoint(stage, module)
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

    def _new_trainer(self, stage: str, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
        stage_folder = self.folder.path / stage
        own = self._brought_along("callbacks")
        averages = self.averaging and not any(isinstance(c, WeightAveraging) for c in own)
        # Averaging first, so that the others see the averaged network when training ends.
        averaging = [AveragedWeights(self.averaging)] if averages else []
        always = [EpochSeeds(self.seed), StageCheckpoint(stage_folder)]
        logger = CSVLogger(stage_folder, name="", version=self.folder.log_folder(stage))
        trainer = self.trainer(
            callbacks=[*averaging, *own, *callbacks, *always],
            enable_checkpointing=True,
            logger=[logger, *self._brought_along("logger")],
            default_root_dir=stage_folder,
        )
        if compat.loses_results(trainer.strategy):
            raise InputError(
                f"The strategy {type(trainer.strategy).__name__} started by fork or spawn keeps "
                "the results in its child processes; use strategy='ddp'."
            )
        return trainer

    def _brought_along(self, name: str) -> list[Any]:
        """Callbacks or loggers that a `partial(pl.Trainer, ...)` brings along."""
        given = getattr(self.trainer, "keywords", {}).get(name)
        if given is None or isinstance(given, bool):
            return []
        several = list(given) if isinstance(given, list | tuple) else [given]
        return copy.deepcopy(several) if name == "callbacks" else several

    def _begin(self, data: Data) -> None:
        """Take possession of the folder, once module and trainer could be built."""
        if not self._begun:
            self.folder.begin()
            prepare_noise(data)
            self._begun = True

    def add_label_layers(self, data: Data, names: Sequence[str]) -> None:
        """Lay the layers that a stage made over the training masks, unless it did so itself."""
        for name in names:
            if self.folder.path / name not in data.label_layers:
                data.add_label_layer(self.folder.path / name)

    def restored(self, module: Module, stage: str) -> Module:
        """The module with what a finished stage ended with."""
        path = self.folder.path / stage / CHECKPOINT
        state = load_checkpoint(path)["state_dict"]
        check_fits(state, module, path)
        module.load_state_dict(state)
        return module

    def weights(self, stage: str, of: str = "") -> dict[str, Any]:
        """What a finished stage ended with, as a state dict: all of it, or one network's."""
        return stage_weights(self.folder.path / stage, of)

    def tester(self) -> pl.Trainer:
        """A trainer that leaves nothing behind."""
        return self.trainer(
            callbacks=[],
            default_root_dir=self.folder.path,
            logger=False,
            enable_checkpointing=False,
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        start = time.perf_counter()
        yield
        self.stages[stage] = {"seconds": round(time.perf_counter() - start, 3), "epochs": 0}


@rank_zero_only
def prepare_noise(data: Data) -> None:
    """Write the noisy masks now, not in `fit`, to tell before training how hard the task is."""
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
