"""Optimizers and schedules, and the tasks that manual optimization leaves to the module."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import ClassIds
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.modules.selection import load_state, save_state
from coseg_lightning.modules.short_epoch import ended_by_hook
from coseg_lightning.networks.mirror import Mirror

MAX_SKIPPED = 20  # consecutive skipped steps after which training stops

# Called with the optimizer; returns a torch scheduler, or Lightning's dict around one.
Schedule = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau | Mapping[str, Any]]


def build_optimizer(
    module: pl.LightningModule,
    factory: Callable[..., Optimizer],
    groups: Sequence[dict[str, Any]],
    lr: float,
) -> Optimizer:
    """Build the optimizer of a module's parameter groups.

    On a CPU, torch's Adam is used in its fused form, which takes a half to a fifth of the time
    (benchmarks/step.py). On other devices torch chooses a fast form by itself. The fused form is
    not used with scaled gradients, since it would unscale them after clipping.
    """
    groups = [{"lr": lr, **group} for group in groups]
    own = _chosen(factory, groups, lr)
    check_one_value(module, own.values)
    recipe = {"lr": module.lr == Recipe.lr, "weight_decay": module.lambda_2 == Recipe.lambda_2}
    given = own.values | {n: value for n, value in own.defaults.items() if recipe[n]}
    groups = [{**group, **given} for group in groups]
    if given or not isinstance(factory, type):
        return _made(factory, groups, lr)
    trainer = compat.trainer_of(module)
    scaled = trainer is not None and getattr(trainer.precision_plugin, "scaler", None) is not None
    weights = [weight for group in groups for weight in group["params"]]
    on_cpu = all(weight.device.type == "cpu" and weight.is_floating_point() for weight in weights)
    if factory is torch.optim.Adam and on_cpu and not scaled:
        adam = torch.optim.Adam(groups, lr=lr, fused=True)
        compat.let_clip(adam)
        return adam
    return cast(Optimizer, factory(groups, lr=lr))


class _Chosen(NamedTuple):
    """The `lr` and `weight_decay` that an optimizer's factory chooses by itself.

    Attributes:
        values: Values that a `partial` has, or that a function passes on.
        defaults: Defaults of a function's or subclass's arguments, which a module's own values
            overrule.
    """

    values: dict[str, Any]
    defaults: dict[str, Any]


def _chosen(
    factory: Callable[..., Optimizer], groups: Sequence[dict[str, Any]], lr: float
) -> _Chosen:
    """Find what an optimizer's factory chooses; the defaults of torch's class are no choice."""
    if isinstance(factory, type):
        return _Chosen({}, _own_defaults(factory))
    own = getattr(factory, "keywords", None)
    if own is None:
        return _chosen_by_function(factory, groups, lr)
    # A partial(Adam, lr=..., weight_decay=...), of a class or of a function.
    given = {name: own[name] for name in CHOSEN if name in own}
    kind = type(_made(factory, groups, lr))
    # LightningCLI passes all defaults of the optimizer's class, which nobody chose.
    if given and set(inspect.signature(kind).parameters) - {"params"} <= set(own):
        of_class = _defaults(kind)
        given = {name: value for name, value in given.items() if value != of_class.get(name)}
    if isinstance(getattr(factory, "func", None), type):
        rest = _Chosen({}, _own_defaults(kind))
    else:
        rest = _chosen_by_function(factory, groups, lr)
    defaults = {name: value for name, value in rest.defaults.items() if name not in own}
    return _Chosen(rest.values | given, defaults)


def _own_defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of an optimizer's class that differ from those of torch's class."""
    base = next((c for c in kind.__mro__ if c.__module__.startswith("torch.")), kind)
    known, of_base = _defaults(kind), _defaults(base)
    return {n: known[n] for n in of_base if n in known and known[n] != of_base[n]}


def _chosen_by_function(
    factory: Callable[..., Optimizer], groups: Sequence[dict[str, Any]], lr: float
) -> _Chosen:
    defaults = _defaults(factory)
    unset = [{n: v for n, v in group.items() if n not in CHOSEN} for group in groups]
    try:
        made = _made(factory, unset, lr)
    except Exception:  # it reads the module's values, and knows about them
        return _Chosen({}, defaults)
    of_class = _defaults(type(made))
    fixed = {n: made.defaults[n] for n in of_class if n in made.defaults and n not in defaults}
    values = {n: v for n, v in fixed.items() if v != of_class[n] and (n, v) != ("lr", lr)}
    return _Chosen(values, defaults)


CHOSEN = ("lr", "weight_decay")


def _defaults(function: Any) -> dict[str, Any]:
    """Return the defaults of a function's or class's `lr` and `weight_decay`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # not written in Python
        return {}
    defaults = {name: parameters[name].default for name in CHOSEN if name in parameters}
    return {n: value for n, value in defaults.items() if value is not inspect.Parameter.empty}


def _made(
    factory: Callable[..., Optimizer], groups: Sequence[dict[str, Any]], lr: float
) -> Optimizer:
    """Call a factory with copies of the groups, and with `lr` unless it has one of its own."""
    groups = [dict(group) for group in groups]
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # not written in Python
        return factory(groups, lr=lr)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    is_asked = "lr" in parameters and parameters["lr"].default is inspect.Parameter.empty
    return factory(groups, lr=lr) if is_asked or takes_all else factory(groups)


def unassigned(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of a module, by name, that are in no parameter group."""
    known = {id(weight) for group in groups for weight in group["params"]}
    named = module.named_parameters()
    return {n: weight for n, weight in named if weight.requires_grad and id(weight) not in known}


def check_nothing_left(module: nn.Module, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise an `InputError` if a trainable parameter belongs to neither of two peers."""
    if others := unassigned(module, groups):
        raise InputError(
            f"{type(module).__name__}.{min(others)} is trainable but belongs to neither peer, so "
            "it would never learn; make it part of net_a and of net_b, or set its requires_grad to "
            "False."
        )


def check_one_value(module: pl.LightningModule, given: Mapping[str, float]) -> None:
    """Raise an `InputError` if a module and its optimizer were given different values.

    Args:
        module: The module; its values equal the recipe's unless others were given.
        given: The `lr` and `weight_decay` that the optimizer was given.
    """
    of_module: dict[str, Any] = {"lr": module.lr, "weight_decay": 2 * float(module.lambda_2)}  # type: ignore[arg-type]
    defaults = {"lr": Recipe.lr, "weight_decay": 2 * Recipe.lambda_2}
    for name, value in given.items():
        if of_module[name] not in (defaults[name], value):
            raise InputError(
                f"The optimizer has {name}={value}, but the module has "
                f"{of_module[name]}{' by lambda_2' if name == 'weight_decay' else ''}; give only "
                "one of them."
            )


def parameter_group(
    module: pl.LightningModule, name: str, lr: float, weight_decay: float
) -> dict[str, Any]:
    """Make a named parameter group of one of a module's networks.

    Weights that `BackboneFinetuning` has frozen are left out. It adds them to the optimizer once
    they learn, and then sets the rate of the last group. Other callbacks may only thaw weights.
    """
    trainer = compat.trainer_of(module)
    callbacks: list[Callback] = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    are_added = any(isinstance(callback, BackboneFinetuning) for callback in callbacks)
    weights = cast(nn.Module, getattr(module, name)).parameters()
    params = [weight for weight in weights if weight.requires_grad or not are_added]
    return {"params": params, "name": name, "lr": lr, "weight_decay": weight_decay}


def with_schedule(
    module: pl.LightningModule, optimizer: Optimizer, schedule: Schedule | None, monitor: str
) -> OptimizerLRScheduler:
    """Combine an optimizer and its scheduler, if any, as `configure_optimizers` returns them.

    Args:
        module: The module.
        optimizer: The optimizer.
        schedule: Makes the scheduler.
        monitor: The metric that a `ReduceLROnPlateau` monitors if it does not name one.

    Raises:
        InputError: If it makes something else than a scheduler.
    """
    if schedule is None:
        return optimizer
    made = schedule(optimizer)
    config: dict[str, Any] = dict(made) if isinstance(made, Mapping) else {"scheduler": made}
    scheduler = config.get("scheduler")
    own_step = is_overridden("lr_scheduler_step", module, pl.LightningModule)
    by_config = bool(config.get("reduce_on_plateau")) and module.automatic_optimization
    is_given_metric = by_config or isinstance(scheduler, ReduceLROnPlateau)
    step = getattr(scheduler, "step", None)
    if step is None or not (own_step or is_given_metric or _can_be_called(step)):
        raise InputError(
            f"scheduler= made a {type(scheduler).__name__}; it must make one of torch's "
            "schedulers, or Lightning's dict with a 'scheduler'. For a class whose step() needs "
            "arguments, also override lr_scheduler_step."
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        config.setdefault("monitor", monitor)
        check_direction(scheduler, config["monitor"])
    return {"optimizer": optimizer, "lr_scheduler": cast(LRSchedulerConfigType, config)}


def _can_be_called(step: Callable[..., Any]) -> bool:
    """Whether a function needs no arguments."""
    try:
        inspect.signature(step).bind()
    except TypeError:
        return False
    except ValueError:  # not written in Python
        return True
    return True


def _is_of_this_package(module: pl.LightningModule) -> bool:
    """Whether a module's `configure_optimizers` is that of this package."""
    package = __name__.partition(".")[0]
    method = type(module).configure_optimizers
    is_replaced = "configure_optimizers" in vars(module)  # as LightningCLI does
    return not is_replaced and method.__module__.startswith(f"{package}.")


def plateau_config(configured: Any) -> Mapping[str, Any]:
    """Return Lightning's settings of a `ReduceLROnPlateau` in what `configure_optimizers` gave."""
    if isinstance(configured, tuple | list) and len(configured) == 2:
        _, second = configured
        if isinstance(second, tuple | list):  # optimizers, schedulers
            configured = [{"lr_scheduler": one} for one in second]
    for part in [configured] if isinstance(configured, Mapping) else configured or ():
        scheduler = part.get("lr_scheduler") if isinstance(part, Mapping) else None
        if isinstance(scheduler, ReduceLROnPlateau):
            return cast(Mapping[str, Any], part)
        if isinstance(scheduler, Mapping) and isinstance(
            scheduler.get("scheduler"), ReduceLROnPlateau
        ):
            return scheduler
    return {}


RISING = ("dice", "accuracy", "iou", "agreement", "purity")
FALLING = ("loss", "error")


def check_direction(scheduler: ReduceLROnPlateau, monitor: str) -> None:
    """Raise an `InputError` if a scheduler's mode contradicts the direction of its metric."""
    mode = better_mode(monitor)
    if mode not in (None, scheduler.mode):
        better = "grows" if mode == "max" else "falls"
        raise InputError(
            f"ReduceLROnPlateau(mode={scheduler.mode!r}) monitors {monitor!r}, which {better} as "
            f"the network gets better; give partial(ReduceLROnPlateau, mode={mode!r}), or another "
            'metric: {"scheduler": ..., "monitor": "train/loss"}.'
        )


def better_mode(monitor: str) -> str | None:
    """Return `max` for a metric that rises as the network gets better, `min`, or None."""
    if any(part in monitor.lower() for part in FALLING):  # also a dice_loss
        return "min"
    return "max" if any(part in monitor.lower() for part in RISING) else None


def warn_of_modes(callbacks: Sequence[Callback]) -> None:
    """Warn of an `EarlyStopping` or `ModelCheckpoint` that takes a metric the wrong way round."""
    for callback in callbacks:
        monitor, mode = (getattr(callback, name, None) for name in ("monitor", "mode"))
        if not isinstance(monitor, str) or mode not in ("min", "max"):
            continue
        if better_mode(monitor) not in (None, mode):
            rank_zero_warn(
                f"{type(callback).__name__} monitors {monitor!r} with mode={mode!r}, so the worst "
                f"value counts as the best; give mode={better_mode(monitor)!r}."
            )


class ChecksMasks(Protocol):
    """A module that checks the masks of the first epoch of a fit."""

    def end_checks(self) -> None:
        """Judge them as a whole, at the epoch's last batch."""


class GradientGuard(Callback):
    """Skips the step of a network whose gradient is not finite, and counts skipped steps.

    Args:
        names: The networks' names in messages.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.networks: Sequence[nn.Module] = ()
        self.skipped = [0] * len(names)
        self.skipped_now = 0  # number of networks skipped in this step
        self._in_a_row = [0] * len(names)

    def watch(self, networks: Sequence[nn.Module]) -> None:
        """Begin a fit of these networks and reset all counts."""
        self.networks = networks
        self.skipped, self._in_a_row = [0] * len(networks), [0] * len(networks)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A schedule has changed the rates of a fit that goes on.
        if belongs(self, pl_module) and trainer.ckpt_path is None:
            _warn_of_unused(pl_module, trainer.optimizers)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if belongs(self, pl_module):  # later hooks, such as the module's, may change gradients
            compat.before_clipping(trainer, partial(self.guard, trainer))

    def guard(self, trainer: pl.Trainer) -> bool:
        """Skip networks whose gradients are not finite, and clip those of the others.

        Returns:
            Whether there are gradients left, that Lightning may clip.
        """
        for index, network in enumerate(self.networks):
            # Gradients are averaged over all processes, so all processes decide the same.
            gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
            if not gradients:
                continue
            norm = nn.utils.get_total_norm(gradients)
            if bool(torch.isfinite(norm)):
                self._in_a_row[index] = 0
                self.clip(network, norm)
            elif getattr(trainer.precision_plugin, "scaler", None) is None:
                self._skip(index, network)  # float16's scaler skips steps by itself
        return any(w.grad is not None for network in self.networks for w in network.parameters())

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        if not belongs(self, pl_module):
            return
        if pl_module.automatic_optimization:  # peers log it in their step
            log_skipped(pl_module, self.skipped_now)
            self.skipped_now = 0
        if trainer.is_last_batch:
            cast(ChecksMasks, pl_module).end_checks()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not belongs(self, pl_module):
            return
        ids = cast(ClassIds, pl_module.class_ids)
        if ids.is_open:  # training ended within the first epoch
            ids.check_pass(pl_module, is_whole=False)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and not compat.has_average(callback):
                rank_zero_warn(
                    f"{type(callback).__name__} averaged no step of this fit, so the weights are "
                    "those from before it; give each fit a new callback, whose average begins "
                    "early enough."
                )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if belongs(self, pl_module):
            warn_of_modes(trainer.callbacks)  # type: ignore[attr-defined]

    def clip(self, network: nn.Module, norm: Tensor) -> None:
        """Clip a network's gradients, given their norm; for one network Lightning does this."""

    def _skip(self, index: int, network: nn.Module) -> None:
        for weight in network.parameters():
            weight.grad = None
        for layer in compat.norm_layers(network):
            if not bool(torch.isfinite(layer.running_mean + layer.running_var).all()):
                layer.reset_running_stats()
        name = self.names[index]
        if not self.skipped[index]:
            rank_zero_warn(
                f"The gradient of {name} is not finite in this step, so the step is skipped; "
                "train/skipped counts such steps. Look for images that hold NaN."
            )
        self.skipped[index] += 1
        self.skipped_now += 1
        self._in_a_row[index] += 1
        if self._in_a_row[index] == MAX_SKIPPED:
            raise InputError(
                f"The gradient of {name} was not finite in {MAX_SKIPPED} steps in a row; lower the "
                "learning rate, clip gradients (Trainer(gradient_clip_val=1.0)), or look for "
                "images that hold NaN."
            )


def log_skipped(module: pl.LightningModule, networks: int) -> None:
    """Log how many networks were skipped in a step; an epoch has their sum."""
    # All processes skip the same networks, since their gradients are the same.
    share = networks / module.trainer.world_size
    module.log(
        "train/skipped", share, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True
    )


def belongs(callback: Callback, module: pl.LightningModule) -> bool:
    """Whether a callback belongs to this module; those of earlier fits stay with the trainer."""
    return getattr(module, "optimization", None) is callback


class PeerOptimization(GradientGuard):
    """Does for two peers what Lightning does in automatic optimization.

    Lightning refuses some of the trainer's settings in manual optimization. This callback applies
    them: `gradient_clip_val` and `gradient_clip_algorithm`, to each peer separately, and
    `accumulate_grad_batches`. It also steps the schedulers. As a callback, it keeps working if a
    subclass overrides the module's hooks.

    Args:
        monitor: The metric that a `ReduceLROnPlateau` monitors if it does not name one.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__("peer a", "peer b")
        self.monitor = monitor
        self.strict = True
        self.clip_val: float | None = None
        self.clip_algorithm: str | None = None
        self.batches = 1
        self._accumulated = 0  # batches since the last step

    def take_over(self, module: pl.LightningModule, networks: Sequence[nn.Module]) -> None:
        """Read the trainer's settings, and hide them until `setup`, as Lightning refuses them.

        Raises:
            InputError: If a callback or a hook cannot work with manual optimization.
        """
        trainer = module.trainer
        refuse_automatic_hooks(module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            refuse_automatic_callback(callback)
        self.watch(networks)
        self.clip_algorithm = trainer.gradient_clip_algorithm
        self.clip_val, self.batches = compat.hide_settings(trainer)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        compat.restore_settings(trainer)
        if stage == "fit" and belongs(self, pl_module):
            # Here all callbacks are known, and no checkpoint is loaded yet.
            pl_module.begin_fit(trainer.callbacks)  # type: ignore[attr-defined, operator]

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if belongs(self, pl_module):  # also if a subclass's own hook calls no super()
            save_state(pl_module, checkpoint)

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if belongs(self, pl_module):
            load_state(pl_module, checkpoint)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what a subclass's own `configure_optimizers` monitors, which Lightning drops."""
        super().on_train_start(trainer, pl_module)
        if belongs(self, pl_module):
            # A subclass's `setup` or `configure_model` may have made other networks.
            self.networks = [getattr(pl_module, name) for name in ("net_a", "net_b")]
            _check_both_learn(pl_module, self.networks, trainer.optimizers)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        plateaus = [one for one in schedulers if isinstance(one, ReduceLROnPlateau)]
        if len(plateaus) != 1 or not belongs(self, pl_module) or _is_of_this_package(pl_module):
            return
        attributes = dict(vars(pl_module))  # those of the first call are used
        own = plateau_config(pl_module.configure_optimizers())
        vars(pl_module).clear()
        vars(pl_module).update(attributes)
        self.monitor = own.get("monitor") or self.monitor
        self.strict = own.get("strict", self.strict)
        if not is_overridden("lr_scheduler_step", pl_module, pl.LightningModule):
            check_direction(plateaus[0], self.monitor)

    def zero_grad(self, module: pl.LightningModule, batch_idx: int) -> None:
        """Reset the gradients before the first of the accumulated batches.

        Batches that a subclass's step leaves out are not counted.
        """
        self.skipped_now = 0
        if batch_idx == 0 or not self._accumulated:
            self._accumulated = 0
            optimizer = self._optimizer_of(module)
            for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_before_zero_grad(module.trainer, module, optimizer.optimizer)
            module.on_before_zero_grad(optimizer.optimizer)
            optimizer.zero_grad()

    def step(self, module: pl.LightningModule, batch_idx: int) -> None:
        """Step the optimizer and its schedules after the last of the accumulated batches."""
        self._accumulated += 1
        if self._accumulated == self.batches or module.trainer.is_last_batch:
            self._accumulated = 0
            self._optimizer_of(module).step()
            self.step_schedules(module, "step", batch_idx + 1)

    def _optimizer_of(self, module: pl.LightningModule) -> LightningOptimizer:
        optimizer = module.optimizers()
        if isinstance(optimizer, list):
            raise InputError(
                f"{type(module).__name__}.configure_optimizers returned {len(optimizer)} "
                "optimizers; return one with a parameter group for each peer, so that each "
                "training step counts once."
            )
        return optimizer

    @override
    def clip(self, network: nn.Module, norm: Tensor) -> None:
        if self.clip_val and self.clip_algorithm == "value":
            nn.utils.clip_grad_value_(network.parameters(), self.clip_val)
        elif self.clip_val:  # a joint norm would couple the peers
            nn.utils.clip_grads_with_norm_(network.parameters(), self.clip_val, norm)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, *rest)
        if trainer.is_last_batch and belongs(self, pl_module):  # before a checkpoint is saved
            self.step_schedules(pl_module, "epoch", trainer.current_epoch + 1, plateaus=False)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if belongs(self, pl_module):  # now that the epoch is validated
            plateaus = None if ended_by_hook(trainer, pl_module) else True
            self.step_schedules(pl_module, "epoch", trainer.current_epoch + 1, plateaus=plateaus)

    def with_schedule(
        self, module: pl.LightningModule, optimizer: Optimizer, schedule: Schedule | None
    ) -> OptimizerLRScheduler:
        """Call `with_schedule`, without the keys that Lightning would ignore with a warning."""
        configured = with_schedule(module, optimizer, schedule, self.monitor)
        if schedule is not None:
            config = cast(dict[str, Any], configured)["lr_scheduler"]
            self.monitor = config.pop("monitor", self.monitor)
            self.strict = config.pop("strict", True)
            config.pop("reduce_on_plateau", None)
        return configured

    def step_schedules(
        self, module: pl.LightningModule, interval: str, count: int, *, plateaus: bool | None = None
    ) -> None:
        """Step the schedulers of an interval, as Lightning does in automatic optimization.

        Args:
            module: The module with manual optimization.
            interval: `step`, after an optimizer step, or `epoch`, at the end of an epoch.
            count: The number of the epoch's batches, or of epochs, so far. A scheduler's
                `frequency` counts batches, also if their gradients are accumulated.
            plateaus: Whether only those that monitor a metric are stepped, or all others; None for
                both.

        Raises:
            InputError: If the metric that a `ReduceLROnPlateau` monitors was not logged.
        """
        for config in module.trainer.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency:
                continue
            is_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
            if plateaus not in (None, is_plateau):
                continue
            if not is_plateau:
                module.lr_scheduler_step(config.scheduler, None)
                continue
            value = self._monitored(module.trainer)
            if value is not None:
                module.lr_scheduler_step(config.scheduler, value)

    def _monitored(self, trainer: pl.Trainer) -> Tensor | None:
        metrics = trainer.callback_metrics
        if self.monitor not in metrics and self.strict:
            raise InputError(
                f"The scheduler monitors {self.monitor!r}, which was not logged; the logged "
                f'metrics are {", ".join(sorted(metrics))}. Name one of them, {{"scheduler": ..., '
                '"monitor": ...}, or give the trainer validation data.'
            )
        return metrics.get(self.monitor)


def _check_both_learn(
    module: pl.LightningModule, networks: Sequence[nn.Module], optimizers: Sequence[Optimizer]
) -> None:
    """Raise an `InputError` if a subclass's own optimizer leaves out all weights of a peer.

    It warns if no weight at all is to learn.
    """
    mirror = networks[-1]
    if isinstance(mirror, Mirror) and not mirror.is_of(networks[0]):
        raise InputError(
            f"{type(module).__name__}.net_a was replaced, but net_b mirrors the network before; "
            "replace both: self.net_b = Mirror(self.net_a)."
        )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    known = {id(weight) for group in groups for weight in group["params"]}
    for name, network in zip(("net_a", "net_b"), networks, strict=True):
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        if weights and not any(id(weight) in known for weight in weights):
            raise InputError(
                f"{type(module).__name__}.configure_optimizers gives the optimizer no weight of "
                f"{name}, which would not learn; add its parameters, or set their requires_grad "
                "to False."
            )
    if not any(weight.requires_grad for network in networks for weight in network.parameters()):
        rank_zero_warn(
            f"No weight of {type(module).__name__} learns, since requires_grad is False for all, "
            "as after freeze(); call unfreeze() before the fit if the peers should learn."
        )


def _warn_of_unused(module: pl.LightningModule, optimizers: Sequence[Optimizer]) -> None:
    """Warn of a module's `lr` or `lambda_2` that another's `configure_optimizers` has not used."""
    if _is_of_this_package(module):
        return
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    groups += [optimizer.defaults for optimizer in optimizers]
    keys = ("lr", "initial_lr", "max_lr")
    rates = {float(group[key]) for group in groups for key in keys if group.get(key) is not None}
    decays = {float(group["weight_decay"]) for group in groups if group.get("weight_decay")}
    lr: Any = module.lr
    given = tuple(lr) if isinstance(lr, list | tuple) else (lr,)
    is_used = lr == Recipe.lr or any(math.isclose(a, b, rel_tol=1e-6) for a in rates for b in given)
    unused = [] if is_used else [f"lr={lr}"]
    decay = 2 * cast(float, module.lambda_2)
    decays.add(2 * Recipe.lambda_2)
    is_used = any(math.isclose(decay, other, rel_tol=1e-6) for other in decays)
    unused += [] if is_used else [f"lambda_2={module.lambda_2}"]
    if unused:
        rank_zero_warn(
            f"{' and '.join(unused)} of {type(module).__name__}: the optimizer has no such value, "
            "since another configure_optimizers makes it (LightningCLI's --optimizer does); give "
            "it lr= and weight_decay=, which is 2 * lambda_2, there."
        )


def refuse_automatic_hooks(module: pl.LightningModule) -> None:
    """Raise an `InputError` for hooks that manual optimization never calls."""
    for hook in ("optimizer_step", "configure_gradient_clipping", "optimizer_zero_grad"):
        if is_overridden(hook, module, pl.LightningModule):
            raise InputError(
                f"{type(module).__name__}.{hook} would never be called, since Lightning does not "
                "call it with manual optimization; use on_before_optimizer_step, or a callback."
            )


def refuse_automatic_callback(callback: Callback) -> None:
    """Raise an `InputError` for a callback that needs automatic optimization."""
    if isinstance(callback, StochasticWeightAveraging):
        raise InputError(
            "StochasticWeightAveraging needs automatic optimization; use "
            "AveragedWeights(share=1) of this package, or Lightning's WeightAveraging."
        )
    if isinstance(callback, GradientAccumulationScheduler):
        raise InputError(
            "GradientAccumulationScheduler needs automatic optimization; give a constant number, "
            "Trainer(accumulate_grad_batches=...)."
        )
