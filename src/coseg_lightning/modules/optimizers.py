"""Schedules for both modules, and what Lightning leaves to one with manual optimization."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from coseg_lightning.errors import InputError

MOST_SKIPPED = 20  # steps in a row, after which training has no hope
HIDDEN = "_coseg_hidden_settings"  # an attribute of the trainer

# Called with the optimizer; gives a scheduler of torch, or Lightning's dict around one.
Schedule = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau | Mapping[str, Any]]


def made(
    module: pl.LightningModule,
    factory: Callable[..., Optimizer],
    groups: Sequence[dict[str, Any]],
    lr: float,
) -> Optimizer:
    """The optimizer of these parameter groups of a module.

    On a CPU torch's Adam is told to update everything in one kernel, which takes a half to a fifth
    of the time (benchmarks/step.py). Elsewhere it finds its fast way by itself; and where gradients
    are scaled, a fused one would unscale them after they were clipped.
    """
    trainer = module._trainer
    scaled = trainer is not None and getattr(trainer.precision_plugin, "scaler", None) is not None
    weights = [weight for group in groups for weight in group["params"]]
    on_cpu = all(weight.device.type == "cpu" and weight.is_floating_point() for weight in weights)
    if factory is torch.optim.Adam and on_cpu and not scaled:
        return torch.optim.Adam(groups, lr=lr, fused=True)
    return factory(groups, lr=lr)


def scheduled(
    optimizer: Optimizer, schedule: Schedule | None, monitor: str
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns: the optimizer, with its scheduler if there is one.

    Args:
        optimizer: The optimizer.
        schedule: Makes the scheduler.
        monitor: The metric that a `ReduceLROnPlateau` goes by, if it names none itself.
    """
    if schedule is None:
        return optimizer
    made = schedule(optimizer)
    config: dict[str, Any] = dict(made) if isinstance(made, Mapping) else {"scheduler": made}
    if isinstance(config.get("scheduler"), ReduceLROnPlateau):
        config.setdefault("monitor", monitor)
    return {"optimizer": optimizer, "lr_scheduler": cast(LRSchedulerConfigType, config)}


class GradientGuard(Callback):
    """Leaves a network out of a step for which its gradient is not a number, and counts that.

    Args:
        names: What the networks are called in messages.
    """

    def __init__(self, *names: str) -> None:
        self.names = names
        self.networks: Sequence[nn.Module] = ()
        self.skipped = [0] * len(names)
        self._in_a_row = [0] * len(names)

    def watch(self, networks: Sequence[nn.Module]) -> None:
        """Begin a fit of these networks."""
        self.networks = networks
        self.skipped, self._in_a_row = [0] * len(networks), [0] * len(networks)

    @override
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if not belongs(self, pl_module):
            return
        for place, network in enumerate(self.networks):
            # Of all processes, so that all do the same.
            norm = nn.utils.get_total_norm(
                [weight.grad for weight in network.parameters() if weight.grad is not None]
            )
            if bool(torch.isfinite(norm)):
                self._in_a_row[place] = 0
                self.clip(network, norm)
            elif getattr(trainer.precision_plugin, "scaler", None) is None:
                self._skip(place, network)  # float16's scaler skips by itself, and often at first

    def clip(self, network: nn.Module, norm: Tensor) -> None:
        """Clip a network's gradients, whose norm is given; Lightning does so for a single one."""

    def _skip(self, place: int, network: nn.Module) -> None:
        for weight in network.parameters():
            weight.grad = None
        for part in network.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
                assert part.running_var is not None
                if not bool(torch.isfinite(part.running_mean + part.running_var).all()):
                    part.reset_running_stats()
        name = self.names[place]
        if not self.skipped[place]:
            rank_zero_warn(
                f"The gradient of {name} is not a number in this step, which is left out; train/"
                "skipped counts such steps. Look for images that hold NaN."
            )
        self.skipped[place] += 1
        self._in_a_row[place] += 1
        if self._in_a_row[place] == MOST_SKIPPED:
            raise InputError(
                f"The gradient of {name} was not a number in {MOST_SKIPPED} steps in a row; lower "
                "the learning rate, clip gradients (Trainer(gradient_clip_val=1.0)), or look for "
                "images that hold NaN."
            )


def belongs(callback: Callback, module: pl.LightningModule) -> bool:
    """Whether a callback is this module's: those of a fit before stay with the trainer."""
    return getattr(module, "optimization", None) is callback


class PeerOptimization(GradientGuard):
    """What Lightning leaves to a module with manual optimization, done as with automatic.

    A callback, so that it works on where a subclass has hooks of its own.

    The trainer's `gradient_clip_val`, `gradient_clip_algorithm` and `accumulate_grad_batches` hold
    for the peers, each clipped by itself, though Lightning refuses them, and schedulers step.

    Args:
        monitor: The metric that a `ReduceLROnPlateau` goes by, if it names none itself.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__("peer a", "peer b")
        self.monitor = monitor
        self.strict = True
        self.clip_val: float | None = None
        self.clip_algorithm: str | None = None
        self.batches = 1

    def take_over(self, module: pl.LightningModule, networks: Sequence[nn.Module]) -> None:
        """Read the trainer's settings, and hide them until `setup` from Lightning's refusal.

        Raises:
            InputError: If a callback or a hook cannot work with manual optimization.
        """
        trainer = module.trainer
        for hook in ("optimizer_step", "configure_gradient_clipping", "optimizer_zero_grad"):
            if is_overridden(hook, module, pl.LightningModule):
                raise InputError(
                    f"{type(module).__name__}.{hook} would never be called, since Lightning does "
                    "not with manual optimization; use on_before_optimizer_step, or a callback."
                )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StochasticWeightAveraging):
                raise InputError(
                    "StochasticWeightAveraging needs automatic optimization; use "
                    "AveragedWeights(share=1) of this package, or Lightning's WeightAveraging."
                )
            if isinstance(callback, GradientAccumulationScheduler):
                raise InputError(
                    "GradientAccumulationScheduler needs automatic optimization; give a constant: "
                    "Trainer(accumulate_grad_batches=...)."
                )
        # Still hidden, if a fit before failed between here and its setup.
        hidden = getattr(trainer, HIDDEN, None)
        given = (trainer.gradient_clip_val, trainer.accumulate_grad_batches)
        self.clip_val, self.batches = given if hidden is None else hidden
        self.clip_algorithm = trainer.gradient_clip_algorithm
        self.watch(networks)
        setattr(trainer, HIDDEN, (self.clip_val, self.batches))
        trainer.gradient_clip_val, trainer.accumulate_grad_batches = None, 1

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if hasattr(trainer, HIDDEN):
            # It counts steps by them.
            trainer.gradient_clip_val, trainer.accumulate_grad_batches = getattr(trainer, HIDDEN)
            delattr(trainer, HIDDEN)

    @override
    def clip(self, network: nn.Module, norm: Tensor) -> None:
        if self.clip_val and self.clip_algorithm == "value":
            nn.utils.clip_grad_value_(network.parameters(), self.clip_val)
        elif self.clip_val:  # a joint norm would couple the peers
            nn.utils.clip_grads_with_norm_(network.parameters(), self.clip_val, norm)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if belongs(self, pl_module):
            self.step_schedules(pl_module, "epoch", trainer.current_epoch + 1)

    def configured(self, optimizer: Optimizer, schedule: Schedule | None) -> OptimizerLRScheduler:
        """As `scheduled`, without the keys that Lightning ignores, and warns of, here."""
        made = scheduled(optimizer, schedule, self.monitor)
        if schedule is not None:
            config = cast(dict[str, Any], made)["lr_scheduler"]
            self.monitor = config.pop("monitor", self.monitor)
            self.strict = config.pop("strict", True)
            config.pop("reduce_on_plateau", None)
        return made

    def step_schedules(self, module: pl.LightningModule, interval: str, count: int) -> None:
        """Step the schedulers of an interval.

        Args:
            module: The module with manual optimization.
            interval: `step`, after a step of the optimizer, or `epoch`, at the end of one.
            count: How many of these have ended.

        Raises:
            InputError: If the metric that a `ReduceLROnPlateau` goes by was not logged.
        """
        for config in module.trainer.lr_scheduler_configs:
            if config.interval != interval or count % config.frequency:
                continue
            value = None
            if isinstance(config.scheduler, ReduceLROnPlateau):
                metrics = module.trainer.callback_metrics
                value = metrics.get(self.monitor)
                if value is None and self.strict:
                    raise InputError(
                        f"The scheduler goes by {self.monitor!r}, which was not logged; there are "
                        f"{', '.join(sorted(metrics))}. Name one of them, "
                        '{"scheduler": ..., "monitor": ...}, or give the trainer validation data.'
                    )
                if value is None:
                    continue
            module.lr_scheduler_step(config.scheduler, value)
