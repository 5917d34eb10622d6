"""The steps that both modules share: batch checks, validation, test and checkpoints."""

import copy
import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.trainer.states import TrainerStatus
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from coseg_lightning.errors import InputError, renamed
from coseg_lightning.functional.equations import (
    class_logits,
    predicted_classes,
    segmentation_loss,
)
from coseg_lightning.functional.losses import PIXEL_LOSSES
from coseg_lightning.functional.metrics import SegmentationScores
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch, ClassIds, images_of, read_batch, reads_all
from coseg_lightning.modules.buffers import average_buffers
from coseg_lightning.modules.measurement import Measurement
from coseg_lightning.modules.optimizers import Schedule
from coseg_lightning.modules.recipe import Recipe, is_count, plain_number
from coseg_lightning.modules.stretched import stretched
from coseg_lightning.modules.untouched import untouched

PACKAGE = __name__.partition(".")[0]
STEPS = {"train": "training_step", "val": "validation_step", "test": "test_step"}
DRAWS = 16  # of a step that may change images at random


class SegmentationSteps(pl.LightningModule):
    """The hooks that modules with one network and modules with two peers share.

    Args:
        classes: Number of classes K, or 1 for a binary network with one output.
        ignore_index: Class id of unlabelled pixels.
        lambda_1: Weight of the Dice loss in Eq. (2).
        lambda_2: Weight of the L2 term in Eq. (2).
        include_background: Whether background is one of the k classes of Eq. (3).
        optimizer: Called with the parameter groups and `lr=`.
        scheduler: Called with the optimizer; returns a torch scheduler, or Lightning's dict.
    """

    scores = renamed("scores", "metrics")
    pixel_loss = "cross_entropy"  # the pixel loss of Eq. (2), see `PIXEL_LOSSES`
    takes_soft_masks = True  # whether the losses accept soft masks
    suffixes: ClassVar[tuple[str, ...]]  # one metric suffix for each output of `forward`
    network_names: ClassVar[tuple[str, ...]]  # the arguments that may be networks

    def __init__(
        self,
        classes: int,
        ignore_index: int,
        *,
        lambda_1: float,
        lambda_2: float,
        include_background: bool,
        optimizer: Callable[..., Optimizer],
        scheduler: Schedule | None,
    ) -> None:
        super().__init__()
        classes, ignore_index = plain_number(classes), plain_number(ignore_index)
        if not is_count(classes, least=1):
            raise InputError(f"classes={classes} must be a whole number of at least 1.")
        if not isinstance(ignore_index, int) or isinstance(ignore_index, bool):
            raise InputError(
                f"ignore_index={ignore_index} must be a whole number; -1, say, if no pixel is "
                "unlabelled."
            )
        if not callable(optimizer):
            raise InputError(
                f"optimizer= is a {type(optimizer).__name__}; give what makes one, such as "
                "torch.optim.AdamW or partial(torch.optim.SGD, momentum=0.9)."
            )
        if scheduler is not None and not callable(scheduler):
            raise InputError(
                f"scheduler= is a {type(scheduler).__name__}; give what makes one from an "
                "optimizer, such as partial(StepLR, step_size=10)."
            )
        is_text = isinstance(include_background, str)
        with_background = include_background if is_text else bool(include_background)
        # The recipe checks them.
        Recipe(lambda_1=lambda_1, lambda_2=lambda_2, include_background=with_background)
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.include_background = include_background
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.classes = max(2, classes)
        self.ignore_index = ignore_index
        self.class_ids = ClassIds(self.classes, ignore_index)
        self.measured_ids = {
            stage: ClassIds(self.classes, ignore_index, of)
            for stage, of in (("val", "validation"), ("test", "test"))
        }
        self._checked_epoch = 0  # the first of a fit
        # Whether that fit goes on within an epoch; None until its first batch.
        self._begins_within: bool | None = False
        self.trained_ids: set[str] | None = None  # of all samples trained on, for who asks
        self.looks_at_batch = False
        self.given_when_saved: dict[str, str] = {}
        self.compared_steps: set[str] = set()
        self._measured = nn.ModuleDict(
            {
                f"{stage}{suffix}": SegmentationScores(self.classes, ignore_index)
                for stage in ("val", "test")
                for suffix in self.suffixes
            }
        )
        self.metrics: Any = self._measured  # a subclass may have metrics of its own by this name

    def stretch_schedule(self, epochs: float, steps: float | None = None) -> None:
        """Let `scheduler` span a training that is longer than the usual one.

        A module with a `lr_scheduler_step` of its own decides itself.

        Args:
            epochs: How many times more epochs the training has.
            steps: How many times more steps it has; default as many times.
        """
        steps = epochs if steps is None else steps
        has_own_step = is_overridden("lr_scheduler_step", self, pl.LightningModule)
        if self.scheduler_factory is not None and max(epochs, steps) > 1 and not has_own_step:
            self.scheduler_factory = stretched(self.scheduler_factory, epochs, steps)

    def read(self, batch: Any) -> Batch:
        """Read a training batch, and check its class ids in the first epoch of a fit."""
        sample = read_batch(batch)
        if self.looks_at_batch:
            raise _Reached(sample)
        if self.trained_ids is not None and sample.ids is not None:
            self.trained_ids.update(map(sample_name, sample.ids))
        if self._begins_within is None:
            is_resumed = self.trainer.ckpt_path is not None
            self._begins_within = is_resumed and self.trainer.fit_loop.batch_idx > 0
        if self.current_epoch == self._checked_epoch:
            self.class_ids.check(sample.masks)
            self._check_soft_masks(sample)
            for look in _LOOKS.get(self, ()):
                look(sample)
        else:
            look_no_more(self)
        return sample

    def begin_checks(self) -> None:
        """Check the batches of the first epoch of a new fit; the module's callback calls it."""
        self.class_ids = ClassIds(self.classes, self.ignore_index)
        self._checked_epoch, self._begins_within = self.current_epoch, None

    def end_checks(self) -> None:
        """Judge the masks of the first epoch of a fit as a whole, at its last batch."""
        if self.current_epoch == self._checked_epoch:
            of_trainer = self.trainer.limit_train_batches, self.trainer.num_training_batches
            is_whole = reads_all(*of_trainer) and not self._begins_within
            self.class_ids.check_pass(self, is_whole=is_whole)

    def record_ids(self) -> None:
        """Record the ids of all samples that are trained on from now on, in `trained_ids`."""
        self.trained_ids = set()

    def _check_soft_masks(self, sample: Batch) -> None:
        if sample.soft_masks is None:
            return
        if not self.takes_soft_masks:
            raise InputError(
                f"{type(self).__name__} learns from one label per pixel, not from shares of votes; "
                "set data.label=majority, or leave soft_mask out of the batch."
            )
        if sample.soft_masks.shape[1] != self.classes:
            raise InputError(
                f"The batch's soft_mask has {sample.soft_masks.shape[1]} classes, but the network "
                f"has {self.classes}; give one share for each class."
            )

    def as_trained(self, batch: Any) -> Batch:
        """Read a batch as `training_step` would, with the changes of a subclass's own step.

        A subclass's step runs until it calls this package's step or a network. Nothing is learnt,
        logged or counted, and the batch is not changed.

        Raises:
            InputError: If a subclass's step changes the images that its network gets without
                calling this package's step.
        """
        if type(self).training_step.__module__.startswith(f"{PACKAGE}."):
            return read_batch(batch)
        nets = [getattr(self, name) for name in self.network_names]
        hooks = [net.register_forward_pre_hook(_stop) for net in nets]
        sample: Batch | Tensor | None = None
        try:
            with untouched(self, nets):  # a step may count, or collect
                self.looks_at_batch = True
                step: Any = self.training_step
                takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
                step(copy.deepcopy(batch), *((0,) if takes_index else ()))
        except _Reached as reached:
            sample = reached.sample
        finally:
            for hook in hooks:
                hook.remove()
        if isinstance(sample, Batch):
            return sample
        given = read_batch(batch)
        if sample is None or sample.shape != given.images.shape or (sample != given.images).any():
            raise InputError(
                f"{type(self).__name__}.training_step changes the images but does not call this "
                "package's step with them, so they cannot be ranked as the networks see them; call "
                "super().training_step(batch, batch_idx), or change them in "
                "on_after_batch_transfer."
            )
        return given

    @override
    def log(self, *arguments: Any, **options: Any) -> None:
        if not self.looks_at_batch:
            super().log(*arguments, **options)

    def supervised_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Compute Eq. (2) for each sample, `(N,)`, with `pixel_loss` as its cross-entropy."""
        return segmentation_loss(
            logits,
            masks,
            lambda_1=self.lambda_1,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
            pixel_loss=PIXEL_LOSSES[self.pixel_loss],
        )

    def log_progress(self, loss: Tensor) -> None:
        """Show the loss in the progress bar, unless a subclass's step may log one of its own."""
        if type(self).training_step.__module__.startswith(f"{PACKAGE}."):
            self.log("loss", loss, prog_bar=True, logger=False)

    def log_epoch(self, values: dict[str, Any], batch_size: int) -> None:
        """Log values as means over the epoch and over all processes.

        Values of no sample are left out, since an epoch of such alone would have the mean NaN. Of
        several processes, another one may have samples.
        """
        if batch_size == 0 and self.trainer.world_size == 1:
            return
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # This cannot be done in on_train_epoch_end. There the progress bar of process 0 may already
        # wait for the other processes to reduce its metrics, and two collectives would mix.
        if self.trainer.is_last_batch:
            average_buffers(self)

    @override
    def on_validation_start(self) -> None:
        average_buffers(self)

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure("val", batch, dataloader_idx)

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure("test", batch, dataloader_idx)

    def _measure(self, stage: str, batch: Any, loader: int) -> None:
        sample = read_batch(batch)
        if stage not in self.compared_steps:
            self.compared_steps.add(stage)
            self._check_callbacks()
            self._check_steps_alike(stage, batch, sample)
        self.measured_ids[stage].check(sample.masks)
        for suffix, logits in zip(self.suffixes, _as_tuple(self(sample.images)), strict=True):
            self._metric(stage, suffix, loader).update(
                predicted_classes(class_logits(logits)), sample.masks
            )

    def log_measured(self, stage: str, batches: Sequence[float], *, is_whole: bool) -> None:
        """Log the metrics of each loader; the first of several is also logged without an index.

        As in Lightning, `/dataloader_idx_0` and so on after the name identifies the loader. Nothing
        is logged where a subclass's step measured nothing. The module's callback calls it, so that
        a subclass may have hooks of its own.

        Args:
            stage: `val` or `test`.
            batches: The number of batches of each loader.
            is_whole: Whether all masks were seen in a fit.
        """
        if not self.trainer.sanity_checking:
            self.measured_ids[stage].check_pass(self, is_whole=is_whole)
        loaders = len(batches)
        for suffix in self.suffixes:
            for index in range(loaders):
                metric = self._metric(stage, suffix, index)
                if self._has_own_step(stage) and not self._is_measured(metric):
                    continue
                values = metric.named(stage, suffix)
                if index == 0:
                    self.log_dict(values, sync_dist=True)
                if loaders > 1:
                    named = {f"{name}/dataloader_idx_{index}": values[name] for name in values}
                    self.log_dict(named, sync_dist=True, add_dataloader_idx=False)

    def _check_callbacks(self) -> None:
        """Warn if a subclass's `configure_callbacks` leaves out those of the module."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        has_own = not type(self).configure_callbacks.__module__.startswith(f"{PACKAGE}.")
        if has_own and not any(isinstance(callback, Measurement) for callback in callbacks):
            rank_zero_warn(
                f"{type(self).__name__}.configure_callbacks leaves out the callbacks that log "
                "metrics and apply the trainer's settings; return [*super().configure_callbacks(), "
                "...]."
            )

    def forget_measured(self, stage: str) -> None:
        """Reset the metrics of a stage before its next pass."""
        for name, metric in self._measured.items():
            if name.startswith(stage):
                metric.reset()  # type: ignore[operator]

    def _has_own_step(self, stage: str) -> bool:
        """Whether a subclass has a step of its own for `train`, `val` or `test`."""
        step = getattr(type(self), STEPS[stage])
        return not step.__module__.startswith(f"{PACKAGE}.")

    def _is_measured(self, metric: SegmentationScores) -> bool:
        """Whether any process has updated a metric; all processes must ask."""
        updates = torch.tensor(float(metric.update_called), device=self.device)
        return bool(self.trainer.strategy.reduce(updates, reduce_op="sum"))

    def _check_steps_alike(self, stage: str, batch: Any, measured: Batch) -> None:
        """Raise an `InputError` if a subclass prepares images only in its training step."""
        if self._has_own_step(stage) or not self._has_own_step("train"):
            return  # a subclass's own step has prepared the batch already
        before = measured.images
        try:
            with isolate_rng():  # a random change differs from another one, or leaves some as is
                for _ in range(DRAWS):
                    images = self.as_trained(batch).images
                    if torch.equal(images, measured.images):
                        return
                    if before is not measured.images and not torch.equal(images, before):
                        return
                    before = images
        except Exception:  # outside a fit, a user's step may lack anything
            return
        raise InputError(
            f"{type(self).__name__}.training_step changes the images but {STEPS[stage]} does not, "
            "so the networks are measured on other images than they learn from; change them in "
            "both, or in on_after_batch_transfer (augmentation there if self.trainer.training)."
        )

    def _metric(self, stage: str, suffix: str, loader: int) -> SegmentationScores:
        name = stage + suffix + (f"_{loader}" if loader else "")
        if name not in self._measured:  # a further loader; the first one's metrics always exist
            made = SegmentationScores(self.classes, self.ignore_index)
            self._measured[name] = made.to(self.device)
        metric = self._measured[name]
        assert isinstance(metric, SegmentationScores)
        return metric

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Predict class probabilities, averaged over the networks, `(N, K, H, W)`."""
        outputs = _as_tuple(self(images_of(batch)))
        probabilities = [class_logits(logits).softmax(dim=1) for logits in outputs]
        return torch.stack(probabilities).sum(dim=0) / len(probabilities)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.make_readable(checkpoint)

    def make_readable(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint be loaded without a download, and without running code.

        The module's callback calls it too, as a subclass may have a hook of its own.
        """
        if {"callbacks", "state_dict"} & checkpoint.keys() == {"state_dict"}:
            # Of weights alone. No callback is asked, so none puts its average in.
            checkpoint["state_dict"] = self._averaged(checkpoint["state_dict"])
        # The checkpoint holds the weights, so loading it must not download pretrained weights.
        saved = {name: as_plain(v) for name, v in checkpoint.get("hyper_parameters", {}).items()}
        # Of a subclass; a file with objects could not be read without running code.
        objects = [name for name, value in saved.items() if not is_plain(value)]
        if objects:
            checkpoint["not_saved"] = objects
            rank_zero_warn(f"{self._to_give_again(objects)}.")
        kept = {name: value for name, value in saved.items() if name not in objects}
        checkpoint["hyper_parameters"] = {**kept, "encoder_weights": None}
        checkpoint["made_with"] = self._made_with()

    def _averaged(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the average that a callback keeps during a fit, else the weights."""
        trainer = compat.trainer_of(self)
        if trainer is None or trainer.state.status != TrainerStatus.RUNNING:
            return weights
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found = (compat.average_of(c) for c in callbacks if isinstance(c, WeightAveraging))
        return next(found, None) or weights

    def _to_give_again(self, names: Sequence[str]) -> str:
        given = ", ".join(f"{name}=..." for name in names)
        return (
            f"{', '.join(names)} of {type(self).__name__} are objects, which a checkpoint does not "
            f"hold; give them again: load_from_checkpoint(path, {given})"
        )

    def _made_with(self) -> dict[str, str]:
        """Name the classes given to this module, which a checkpoint cannot rebuild."""
        given = {
            name: full_name(type(getattr(self, name)))
            for name in self.network_names
            if name not in self.hparams
        }
        return {**given, "optimizer": full_name(self.optimizer_factory)}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        arguments = inspect.signature(type(self).__init__).parameters
        lost = [
            name
            for name in checkpoint.get("not_saved", ())
            if name in arguments and self.hparams.get(name) is arguments[name].default
        ]
        if lost:
            rank_zero_warn(f"{self._to_give_again(lost)}. Their defaults are used now.")
        saved, own = checkpoint.get("made_with", {}), self._made_with()
        self.given_when_saved = {k: kind for k, kind in saved.items() if k != "optimizer"}
        if saved.get("optimizer", own["optimizer"]) != own["optimizer"]:
            rank_zero_warn(
                f"The checkpoint was trained with {saved['optimizer']}, but this module has "
                f"{own['optimizer']}; to continue training, load it with the original optimizer, "
                "optimizer=..."
            )

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict as torch does.

        Raises:
            InputError: If the weights do not fit and networks were given when they were saved.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            if not self.given_when_saved:
                raise
            kinds = " and ".join(
                f"{name}, a {kind}" for name, kind in self.given_when_saved.items()
            )
            wanted = ", ".join(f"{name}=..." for name in self.given_when_saved)
            raise InputError(
                f"The checkpoint holds the weights of {kinds}, which were passed as networks and "
                "differ from those of this module; pass the same kind again: "
                f"{type(self).__name__}.load_from_checkpoint(path, {wanted})."
            ) from error


# The functions that look at the training batches of the first epoch, by module.
_LOOKS: WeakKeyDictionary[SegmentationSteps, list[Callable[[Batch], None]]] = WeakKeyDictionary()


def look_at_batches(module: SegmentationSteps, look: Callable[[Batch], None]) -> None:
    """Call a function with each training batch of the first epoch, as it reaches the networks."""
    _LOOKS.setdefault(module, []).append(look)


def look_no_more(module: SegmentationSteps) -> None:
    """Undo `look_at_batches`, whose functions keep trainer and module in memory."""
    _LOOKS.pop(module, None)


def as_plain(value: Any) -> Any:
    """Convert containers such as OmegaConf's, NumPy's numbers and paths to plain values."""
    if isinstance(value, Mapping) and type(value) not in (OrderedDict, Counter):
        return {as_plain(key): as_plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple):
        return [as_plain(part) for part in value]
    if type(value) is tuple:
        return tuple(as_plain(part) for part in value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, PurePath) else value


def is_plain(value: Any) -> bool:
    """Whether a value can be loaded without running code, as `weights_only=True` does."""
    if type(value) in (dict, OrderedDict, Counter):
        return all(map(is_plain, (*value, *value.values())))
    if type(value) in (list, tuple, set):
        return all(map(is_plain, value))
    torchs = (Tensor, torch.dtype, torch.device, torch.Size)
    scalars = (bool, int, float, complex, str, bytes)
    return value is None or isinstance(value, torchs) or type(value) in scalars


def full_name(made: Any) -> str:
    """Return the full name of a class or function, also inside a partial."""
    made = getattr(made, "func", made)
    return f"{made.__module__}.{getattr(made, '__qualname__', type(made).__name__)}"


class _Reached(Exception):  # noqa: N818 - it is no error
    """Ends a dry run of a step, with the batch or images that it reached."""

    def __init__(self, sample: Batch | Tensor) -> None:
        super().__init__()
        self.sample = sample


def _stop(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])


def _as_tuple(logits: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(logits) if isinstance(logits, tuple | list) else (logits,)


def of_named_networks(
    module: pl.LightningModule,
    is_ready: bool,
    encoder_name: str | None,
    encoder_weights: str | None,
    options: Mapping[str, Any],
) -> list[str]:
    """Return the arguments that serve only networks given by name, if there is none.

    They are no hyperparameters then: Lightning refuses a datamodule with another `in_channels`.

    Args:
        module: The module.
        is_ready: Whether each network is given as a ready module.
        encoder_name: What was given for networks by name, as are `encoder_weights` and `options`.
        encoder_weights: See `encoder_name`.
        options: See `encoder_name`.

    Raises:
        InputError: If options are given that no network can use because all are built.
    """
    if not is_ready:
        return []
    encoder = {"encoder_name": encoder_name, "encoder_weights": encoder_weights}
    given = [*(name for name, value in encoder.items() if value is not None), *sorted(options)]
    if given:
        hint = f" (load_from_checkpoint(..., {given[0]}=None))" if given[0] in encoder else ""
        raise InputError(
            f"{', '.join(given)}: {type(module).__name__} has no such argument, or no use for it, "
            f"since every network is given as a ready module; leave it out{hint}."
        )
    return [*encoder, "in_channels"]
