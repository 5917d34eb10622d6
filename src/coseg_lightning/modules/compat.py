"""All uses of private names of Lightning and torch, in one place.

Each function is small, and has a test of its own in `tests/modules/test_compat.py`. If a new
version breaks a name, that test shows which one. No private name of Hydra is used.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.states import RunningStage
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _DatasetKind

# The clipping and accumulation that are hidden from Lightning, by trainer.
HIDDEN: WeakKeyDictionary[pl.Trainer, tuple[float | None, int]] = WeakKeyDictionary()


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed in place; None in inference mode, which counts nothing.

    Private: `Tensor._version`.
    """
    return None if tensor.is_inference() else tensor._version


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """Return the trainer that a module is attached to, or None.

    The public property `trainer` raises an error if there is none.

    Private: `LightningModule._trainer`.
    """
    trainer: pl.Trainer | None = module._trainer
    return trainer


def loses_results(strategy: Strategy) -> bool:
    """Whether a strategy trains in forked or spawned processes, which would lose the results.

    Private: `_MultiProcessingLauncher`.
    """
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def computes_bfloat16(accelerator: str) -> bool:
    """Whether Lightning's default device computes natively in bfloat16, and is thus faster.

    Where bfloat16 is only emulated, it is slower than float32.

    Args:
        accelerator: Lightning's name of the kind of device, or `auto`.

    Private: `torch.cpu._is_avx512_bf16_supported` and `torch.cpu._is_amx_tile_supported`.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if is_cpu(accelerator):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def is_cpu(accelerator: str) -> bool:
    """Whether Lightning's default device of a kind, or of `auto`, is the CPU."""
    has_other = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not has_other)


def hide_settings(trainer: pl.Trainer) -> tuple[float | None, int]:
    """Hide clipping and accumulation from Lightning, which refuses them in manual optimization.

    Returns:
        The user's `gradient_clip_val` and `accumulate_grad_batches`.

    Private: the fact that Lightning reads both attributes after `configure_callbacks`.
    """
    current = (trainer.gradient_clip_val, trainer.accumulate_grad_batches)
    # The settings are still hidden if an earlier fit failed before restoring them.
    settings = HIDDEN.setdefault(trainer, current)
    trainer.gradient_clip_val, trainer.accumulate_grad_batches = None, 1
    return settings


def restore_settings(trainer: pl.Trainer) -> None:
    """Undo `hide_settings`, since Lightning needs these settings to count steps."""
    if trainer in HIDDEN:
        trainer.gradient_clip_val, trainer.accumulate_grad_batches = HIDDEN.pop(trainer)


def accumulation(trainer: pl.Trainer) -> int:
    """The number of batches over which gradients accumulate, even if the setting is hidden."""
    return HIDDEN.get(trainer, (None, trainer.accumulate_grad_batches))[1]


def set_max_epochs(trainer: pl.Trainer, max_epochs: int) -> None:
    """Change a trainer's number of epochs before it fits.

    Private: the setter of `trainer.fit_loop.max_epochs`.
    """
    trainer.fit_loop.max_epochs = max_epochs


def set_max_steps(trainer: pl.Trainer, max_steps: int) -> None:
    """Change a trainer's number of steps before it fits.

    Private: `trainer.fit_loop.epoch_loop.max_steps`.
    """
    trainer.fit_loop.epoch_loop.max_steps = max_steps


def shorten(
    trainer: pl.Trainer, batches: int, epochs: int, callbacks: Sequence[pl.Callback], logger: Any
) -> None:
    """Limit a trainer, before it fits or tests, to a few batches of every loader and few epochs.

    Args:
        trainer: The trainer.
        batches: The number of batches.
        epochs: The number of epochs.
        callbacks: The callbacks to keep.
        logger: The loggers to keep, or False.

    Private: the fact that Lightning reads these attributes when a fit or test begins.
    """
    set_max_epochs(trainer, epochs)
    for part in ("train", "val", "test"):
        if getattr(trainer, f"limit_{part}_batches") != 0:
            setattr(trainer, f"limit_{part}_batches", batches)
    trainer.overfit_batches = 0.0  # type: ignore[attr-defined]
    trainer.num_sanity_val_steps = 0
    trainer.val_check_interval, trainer.check_val_every_n_epoch = 1.0, 1
    stay = {id(callback) for callback in callbacks}
    trainer.callbacks[:] = [c for c in trainer.callbacks if id(c) in stay]  # type: ignore[attr-defined]
    trainer.loggers = list(logger) if isinstance(logger, list) else []


def most_batches(trainer: pl.Trainer, batches: int) -> int:
    """The number of training batches per epoch, after the trainer's limit or share.

    Private: `limit_train_batches` is an attribute, and `overfit_batches` sets it.
    """
    limit: int | float = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(limit * batches)


def reload_interval(trainer: pl.Trainer) -> int:
    """The number of epochs after which the training loader is reloaded; 0 for never.

    Private: the trainer keeps this argument as an attribute.
    """
    return int(trainer.reload_dataloaders_every_n_epochs)  # type: ignore[attr-defined]


def prepare_batch(trainer: pl.Trainer, batch: Any) -> Any:
    """Pass a batch through all hooks and to the device, as the training loop does.

    Private: `LightningModule._on_before_batch_transfer`.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch)
    return trainer.strategy.batch_to_device(batch)


class FixedOrder(list[int]):
    """Indices in place of a sampler, with the `set_epoch` that some samplers have."""

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is fixed."""


class FixedBatches(list[Sequence[int]]):
    """Batches in place of a batch sampler, or of a wrapped one, as in timm."""

    @property
    def sampler(self) -> "FixedBatches":
        """These batches."""
        return self


def set_batches(loader: DataLoader[Any], dataset: Any, batches: Sequence[Sequence[int]]) -> None:
    """Make a loader read the given batches of a map-style dataset.

    Private: `DataLoader._dataset_kind`, and the attributes in its `__dict__`.
    """
    vars(loader).update(
        dataset=dataset,
        sampler=FixedOrder(index for batch in batches for index in batch),
        batch_sampler=FixedBatches(batches),
        _dataset_kind=_DatasetKind.Map,
        _IterableDataset_len_called=None,
        in_order=True,  # otherwise the order of batches depends on the workers
    )


def inner_sampler(loader: DataLoader[Any]) -> Any:
    """Return a loader's sampler, even inside Lightning's wrapper for several processes.

    Private: `_DatasetSamplerWrapper._sampler`, the dataset of a `DistributedSamplerWrapper`.
    """
    fixed = isinstance(loader.batch_sampler, FixedBatches)
    sampler = loader.sampler if fixed else getattr(loader.batch_sampler, "sampler", loader.sampler)
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)


def forget_workers(loader: DataLoader[Any]) -> None:
    """Detach the copy of a loader from the original's persistent workers.

    Private: `DataLoader._iterator`.
    """
    vars(loader).update(_iterator=None)


def replace_saved_argument(loader: DataLoader[Any], before: Any, now: Any) -> None:
    """Replace an argument with which Lightning rebuilds a loader for several processes.

    Private: `__pl_saved_args`, `__pl_saved_kwargs` and `__dataset` of a `DataLoader`.
    """
    saved = vars(loader)
    if "__pl_saved_args" in saved:
        args, options = saved["__pl_saved_args"], saved["__pl_saved_kwargs"]
        saved["__pl_saved_args"] = tuple(now if part is before else part for part in args)
        saved["__pl_saved_kwargs"] = {
            name: now if part is before else part for name, part in options.items()
        }
        saved["__dataset"] = now


@contextmanager
def validating(trainer: pl.Trainer) -> Iterator[None]:
    """Show batch hooks a validation stage, since they may augment batches during training.

    Private: `trainer.state.stage` can be set.
    """
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


def shuffle_again(trainer: pl.Trainer) -> None:
    """Draw the sample order of a resumed fit's first epoch again, from the current seed.

    Lightning draws this order before `on_train_epoch_start`, and those of later epochs after it.

    Private: `fit_loop._data_fetcher`.
    """
    iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def end_saved_epoch(checkpoint: dict[str, Any]) -> None:
    """Count the epoch at whose end a checkpoint is saved as completed.

    Lightning counts it after the callbacks that save. With `max_steps` it also repeats the end of
    an epoch that is not completed.

    Private: the names in the state of a `_FitLoop`.
    """
    for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
        counts["completed"] = counts["processed"]


def begin_next_epoch(trainer: pl.Trainer) -> None:
    """Make a fit that goes on from a completed epoch begin the next one; call it as it starts.

    With `max_steps`, Lightning takes every checkpoint for one from within an epoch.

    Private: `_Loop.restarting`, whose setter a `_FitLoop` overrides.
    """
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def skipped_rest_of_epoch(trainer: pl.Trainer) -> bool:
    """Whether the module's `on_train_batch_start` returned -1 in the epoch that ends now.

    Private: `trainer.fit_loop.epoch_loop.batch_progress`, which counts such a batch as ready, but
    not as completed.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch and progress.current.completed < progress.current.ready


def track_statistics(layer: Any, tracks: bool) -> None:
    """Make a layer update its running statistics or not, as `BaseFinetuning` does.

    Private: the fact that such layers read `track_running_stats` in every step.
    """
    layer.track_running_stats = tracks


def keep_average_on(callback: WeightAveraging, device: torch.device) -> None:
    """Set the device of a `WeightAveraging`'s average once it is known.

    Private: `WeightAveraging._device`.
    """
    callback._device = device


def average_tensor_by_tensor(
    callback: WeightAveraging, average: Callable[[Tensor, Tensor, Tensor | int], Tensor]
) -> None:
    """Make a `WeightAveraging` average each tensor separately; call it before the setup.

    Private: `WeightAveraging._kwargs`.
    """
    callback._kwargs = {"avg_fn": average}


def begin_average(callback: WeightAveraging) -> None:
    """Make a `WeightAveraging` average all steps of the next fit, also after an earlier one.

    Private: `WeightAveraging._latest_update_step` and `_latest_update_epoch`.
    """
    callback._latest_update_step, callback._latest_update_epoch = 0, -1


def averaged_steps(callback: WeightAveraging) -> int:
    """The number of steps in the average of a `WeightAveraging`.

    Private: `WeightAveraging._average_model`.
    """
    average = callback._average_model
    return 0 if average is None else int(average.n_averaged)


def has_average(callback: WeightAveraging) -> bool:
    """Whether a `WeightAveraging` holds an average of at least one step.

    Private: `WeightAveraging._average_model`.
    """
    return averaged_steps(callback) > 0


def average_of(callback: WeightAveraging) -> dict[str, Tensor] | None:
    """The averaged weights of a `WeightAveraging`, as a module's `state_dict`, if there are any.

    Private: `WeightAveraging._average_model`.
    """
    average = callback._average_model
    return None if average is None or not has_average(callback) else average.module.state_dict()


def is_averaging(callback: WeightAveraging) -> bool:
    """Whether a `WeightAveraging` has made its copy of the module, in a fit.

    Private: `WeightAveraging._average_model`.
    """
    return callback._average_model is not None


def swap_average(callback: WeightAveraging, module: pl.LightningModule) -> None:
    """Exchange a module's weights with the average; a second call undoes the first.

    Private: `WeightAveraging._swap_models`.
    """
    callback._swap_models(module)


def copy_into_average(
    callback: WeightAveraging, module: pl.LightningModule, names: Sequence[str]
) -> None:
    """Replace buffers in the average of a `WeightAveraging` by those of the module.

    Args:
        callback: The callback.
        module: The module, with its weights as they are.
        names: The names of the buffers.

    Private: `WeightAveraging._average_model`.
    """
    average = callback._average_model
    if average is None or not names:
        return
    ours, others = dict(average.module.named_buffers()), dict(module.named_buffers())
    for name in names:
        if name in ours and name in others:  # a network may replace a buffer
            ours[name].copy_(others[name])


def let_clip(optimizer: Optimizer) -> None:
    """Let Lightning clip the gradients of a fused optimizer in mixed precision without a scaler.

    Lightning refuses it, since a fused optimizer unscales gradients within its step. Without a
    scaler nothing is unscaled.

    Private: `Optimizer._step_supports_amp_scaling`.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def before_clipping(trainer: pl.Trainer, do: Callable[[], bool]) -> None:
    """Call a function once, as soon as Lightning clips the gradients of the current step.

    It clips them if the function says so.

    This is after all hooks, just before the optimizer's own step, also in manual optimization.

    Private: `Precision._clip_gradients`.
    """
    plugin = trainer.precision_plugin

    def clip(*arguments: Any, **options: Any) -> None:
        vars(plugin).pop("_clip_gradients", None)
        if do():
            plugin._clip_gradients(*arguments, **options)

    vars(plugin).update(_clip_gradients=clip)


def lerp_(averages: list[Tensor], current: list[Tensor], weight: float) -> None:
    """Interpolate each tensor in place towards another one, in one kernel.

    Private: `torch._foreach_lerp_`.
    """
    torch._foreach_lerp_(averages, current, weight)


def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each tensor into another one in one kernel.

    Private: `torch._foreach_copy_`.
    """
    torch._foreach_copy_(targets, sources)


def compiled_module(module: Any) -> Any:
    """Return the module that `torch.compile` was given, or the module itself.

    Private: `OptimizedModule._orig_mod`.
    """
    return getattr(module, "_orig_mod", module)


def uncompiled(module: Any) -> Any:
    """Remove the compilation from a module and all its parts, in place.

    Returns:
        The module that `torch.compile` was given, or the module itself.
    """
    module = compiled_module(module)
    for name, part in list(module.named_children()):
        setattr(module, name, uncompiled(part))
    return module


def norm_layers(network: nn.Module) -> Sequence[Any]:
    """Return the layers of a network that keep running statistics.

    Private: `torch.nn.modules.batchnorm._NormBase`.
    """
    kind = nn.modules.batchnorm._NormBase
    layers = [part for part in network.modules() if isinstance(part, kind)]
    return [layer for layer in layers if layer.running_mean is not None]
