"""Schedules for both modules, and what Lightning leaves to one with manual optimization."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from coseg_lightning.errors import InputError

# Called with the optimizer; gives a scheduler of torch, or Lightning's dict around one.
Schedule = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau | Mapping[str, Any]]


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


class ManualSchedules:
    """Steps schedulers as Lightning does with automatic optimization, and only then.

    Args:
        monitor: The metric that a `ReduceLROnPlateau` goes by, if it names none itself.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.strict = True

    def configured(self, optimizer: Optimizer, schedule: Schedule | None) -> OptimizerLRScheduler:
        """As `scheduled`, without the keys that Lightning ignores, and warns of, here."""
        made = scheduled(optimizer, schedule, self.monitor)
        if schedule is not None:
            config = cast(dict[str, Any], made)["lr_scheduler"]
            self.monitor = config.pop("monitor", self.monitor)
            self.strict = config.pop("strict", True)
            config.pop("reduce_on_plateau", None)
        return made

    def step(self, module: pl.LightningModule, interval: str, count: int) -> None:
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


def check_trainer(trainer: pl.Trainer) -> None:
    """Raise an `InputError` for what the trainer cannot do for two peers, and name what can."""
    if trainer.gradient_clip_val:
        raise InputError(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) would clip both peers by one "
            "norm, and Lightning does not do it with manual optimization; give the value to the "
            "module, CoSegModule(..., gradient_clip_val=...), which clips each peer by its own."
        )
    if trainer.accumulate_grad_batches != 1:
        raise InputError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) does nothing "
            "with manual optimization; give it to the module: "
            "CoSegModule(..., accumulate_grad_batches=...)."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            raise InputError(
                "StochasticWeightAveraging needs automatic optimization; use "
                "AveragedWeights(share=1) of this package, or Lightning's WeightAveraging."
            )
        if (
            isinstance(callback, GradientAccumulationScheduler)
            and callback.going_to_accumulate_grad_batches()
        ):
            raise InputError(
                "GradientAccumulationScheduler needs automatic optimization; give the module a "
                "constant: CoSegModule(..., accumulate_grad_batches=...)."
            )
