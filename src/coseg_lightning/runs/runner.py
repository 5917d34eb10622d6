"""What the stages of a run share: its folder, its trainers, its clock, and what it leaves."""

import copy
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.averaged_weights import AveragedWeights
from coseg_lightning.callbacks.epoch_seeds import EpochSeeds
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT, StageCheckpoint
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.wrapped import Data
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import write_text
from coseg_lightning.files.checkpoints import check_fits, load_checkpoint
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.methods.adele import EarlyLearningCorrection
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.networks.build import save_network
from coseg_lightning.runs.folder import RunFolder, stage_weights
from coseg_lightning.runs.summary import merge_metrics, peak_memory, test_figures

log = logging.getLogger(__name__)

Module = TypeVar("Module", bound=pl.LightningModule)


class StageRunner:
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
        epochs = options.pop("max_epochs", None)
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
        if epochs is not None:  # set here, since the function that makes it may give its own
            trainer.fit_loop.max_epochs = epochs
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
        checkpoint = self.kept.checkpoint(stage, module)
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

    def restored(self, module: Module, stage: str) -> Module:
        """The module with what a finished stage ended with."""
        path = self.kept.path / stage / CHECKPOINT
        state = load_checkpoint(path)["state_dict"]
        check_fits(state, module, path)
        module.load_state_dict(state)
        return module

    def weights(self, stage: str, of: str = "") -> dict[str, Any]:
        """What a finished stage ended with, as a state dict: all of it, or one network's."""
        return stage_weights(self.kept.path / stage, of)

    def tester(self) -> pl.Trainer:
        """A trainer that leaves nothing behind."""
        options = {"logger": False, "enable_checkpointing": False}
        return self.trainer(callbacks=[], default_root_dir=self.kept.path, **options)

    def finish(
        self,
        module: CoSegModule | SegmentationModule,
        data: Data,
        config: Mapping[str, Any],
        **facts: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Test the last network, and write it, `metrics.csv` and `summary.json`.

        Args:
            module: Holds the network; of two peers the first, chosen in advance.
            data: The run's.
            config: What the run is.
            facts: What else the summary tells, by its part.

        Returns:
            The content of `summary.json`.
        """
        folder, tester = self.kept.path, self.tester()
        with self.timed("test"):
            test = test_figures(tester, module, data, self.seed)
        summary = {
            "config": config,
            "test": test,
            **facts,
            "stages": self.stages,
            "peak_memory_bytes": peak_memory(),
        }
        if tester.is_global_zero:
            network = module.net_a if isinstance(module, CoSegModule) else module.net
            save_network(network, folder / "model")
            merge_metrics(folder, [name for name in self.stages if name != "test"])
            write_text(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False))
        tester.strategy.barrier("run finished")
        return summary

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
            data.add_label_layer(callback.folder)
            layers.append(callback.folder.name)
            changed |= {index for index, pixels in callback.changed_pixels.items() if pixels}
            classes, history = classes - set(callback.corrected), callback.history
            rest = {"max_epochs": (trainer.max_epochs or 0) - trainer.current_epoch}
        return {"changed": sorted(changed), "layers": layers, "last": f"early_learning{name}"}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
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


def retraining_length(
    settings: Mapping[str, Any], epochs: int, *, anew: bool = False
) -> dict[str, Any]:
    """How many epochs retraining from a peer takes, if not the trainer's own number.

    Or `anew`, if it is to learn for as long as that peer and it would have done together.
    """
    share = settings.get("retraining_share", 1)
    if share == 1 and not anew:
        return {}
    return {"max_epochs": max(1, round(share * epochs)) + anew * epochs}
