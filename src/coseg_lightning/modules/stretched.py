"""Learning rate schedules that span a longer training than the one they were made for."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import override

from coseg_lightning.modules.optimizers import Schedule


class StretchedSchedule(LRScheduler):
    """Steps another scheduler less often, so that its whole curve spans a longer training.

    Args:
        schedule: The scheduler, for the usual number of steps or epochs.
        ratio: How many times longer the training is, at least 1.
    """

    def __init__(self, schedule: LRScheduler, ratio: float) -> None:
        # The other scheduler has set the rates already, so the base class is not to.
        self.optimizer = schedule.optimizer
        self.schedule = schedule
        self.ratio = ratio
        self.calls = 0

    @override
    def step(self, *arguments: Any, **options: Any) -> None:
        before, self.calls = self._own_steps(), self.calls + 1
        if self._own_steps() > before:
            self.schedule.step(*arguments, **options)

    def _own_steps(self) -> int:
        return int(self.calls / self.ratio + 1e-6)  # 19 / 1.9 may be just below 10

    @override
    def get_last_lr(self) -> Any:
        return self.schedule.get_last_lr()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "schedule": self.schedule.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = state_dict.get("schedule", state_dict)  # an earlier version did not stretch it
        self.schedule.load_state_dict(own)
        usual = math.ceil(own.get("last_epoch", 0) * self.ratio)
        self.calls = state_dict.get("calls", usual)


def stretched(schedule: Schedule, epochs: float, steps: float) -> Schedule:
    """Let a schedule span a longer training, unless it follows a metric.

    Args:
        schedule: The schedule.
        epochs: How many times more epochs the training has.
        steps: How many times more steps it has.
    """
    return partial(_stretched, schedule, epochs, steps)


def _stretched(schedule: Schedule, epochs: float, steps: float, optimizer: Optimizer) -> Any:
    made: Any = schedule(optimizer)
    config = made if isinstance(made, Mapping) else {"scheduler": made}
    scheduler = config.get("scheduler")
    ratio = steps if config.get("interval") == "step" else epochs
    follows = isinstance(scheduler, ReduceLROnPlateau)
    if ratio <= 1 or follows or not isinstance(scheduler, LRScheduler):
        return made
    longer = StretchedSchedule(scheduler, ratio)
    return {**made, "scheduler": longer} if isinstance(made, Mapping) else longer
