"""StageProgress: one progress bar for a whole stage, with the remaining time of the run."""

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar, Timer
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import override

from coseg_lightning.modules.steps import SegmentationSteps


class StageProgress(ProgressBar):
    """Shows one bar for all epochs of a stage, or one line per epoch if there is no terminal.

    The estimate assumes constant time per batch. Later stages are assumed to train one network
    for as many epochs. Peers get faster once they select, so the estimate is rather too high. It is
    too low where no label is corrected, since the last network then trains for all stages' epochs.

    Args:
        title: The text before the bar, such as the stage's name.
        later_stages: The number of stages that follow.
    """

    def __init__(self, title: str = "Training", later_stages: int = 0) -> None:
        super().__init__()
        self.title = title
        self.later_stages = later_stages
        self.seconds_left: float | None = None
        self._enabled = True
        self._bar: Any = None
        self._start = 0.0
        self._done = 0
        self._losses: list[Tensor] = []  # of this epoch's batches

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._bar is None:
            print(*args, **kwargs)
        else:
            self._bar.write(" ".join(map(str, args)))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._done, self.seconds_left, self._losses = 0, None, []
        if not self._enabled or not is_watched():
            return
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        is_known = epochs is not None and epochs > 0 and not math.isinf(batches)
        self._bar = tqdm(
            desc=self.title,
            total=int(epochs * batches) if epochs and is_known else None,
            initial=int(trainer.current_epoch * batches) if is_known else 0,
            bar_format="{desc} {percentage:3.0f} % |{bar:30}| {elapsed}{postfix}",
            mininterval=0.5,
            dynamic_ncols=True,
        )

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._done == 0:
            self._start = now  # the first batch is left out, since it includes preparations
        self._done += 1
        self.seconds_left = self._left(trainer, pl_module, batch_idx, now)
        if self._bar is not None:
            if self.seconds_left is not None:
                text = f"about {duration(self.seconds_left)} left"
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif self._enabled and (loss := trainer.callback_metrics.get("loss")) is not None:
            self._losses.append(loss.detach())

    def _left(
        self, trainer: pl.Trainer, pl_module: Any, batch_idx: int, now: float
    ) -> float | None:
        """Return the remaining time of this and later stages in seconds, None if unknown."""
        epochs, batches = trainer.max_epochs, trainer.num_training_batches
        if self._done == 1 or epochs is None or epochs < 0 or math.isinf(batches):
            return None
        left, most = (epochs - trainer.current_epoch) * batches - batch_idx - 1, epochs * batches
        if trainer.max_steps >= 0:
            steps = trainer.max_steps - trainer.global_step
            left = min(left, steps * trainer.accumulate_grad_batches)
            most = min(most, trainer.max_steps * trainer.accumulate_grad_batches)
        networks = _learning(pl_module)
        seconds = (now - self._start) / (self._done - 1)
        left *= seconds
        whole = most * seconds / networks
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            limit = callback.time_remaining() if isinstance(callback, Timer) else None
            if limit is not None:  # of each stage
                left, whole = min(left, limit), min(whole, limit + callback.time_elapsed())
        return float(left + self.later_stages * whole)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._enabled or self._bar is not None:
            return
        metrics = dict(trainer.progress_bar_metrics)
        if self._losses:
            metrics["loss"] = float(torch.stack(self._losses).mean())
            self._losses = []
        shown = [f"{n} {value:.3f}" for n, value in metrics.items() if isinstance(value, float)]
        if self.seconds_left:
            shown.append(f"about {duration(self.seconds_left)} left")
        of = f" of {trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        print(
            f"{self.title}: epoch {trainer.current_epoch + 1}{of}; {'; '.join(shown)}", flush=True
        )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str("", refresh=False)
            self._bar.close()
            self._bar = None


def is_watched() -> bool:
    """Whether the output is a visible terminal; a container's terminal may have no width."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def show_progress(
    trainer: pl.Trainer, bar: StageProgress | None, own: Sequence[pl.Callback] = ()
) -> None:
    """Replace Lightning's own bar, if the trainer has one that the user did not give.

    Args:
        trainer: The trainer.
        bar: The bar, or None for no bar.
        own: The callbacks that the user gave.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    lightnings = [c for c in callbacks if isinstance(c, ProgressBar) and c not in own]
    callbacks[:] = [callback for callback in callbacks if callback not in lightnings]
    if lightnings and bar is not None:
        callbacks.insert(0, bar)


def duration(seconds: float) -> str:
    """Return a duration in the unit that people use: `40 s`, `6 min`, `2.5 h`.

    Args:
        seconds: The duration in seconds.
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _learning(module: pl.LightningModule) -> int:
    """Return how many networks of a module learn; a mirror does not."""
    if not isinstance(module, SegmentationSteps):
        return 1
    networks = [cast(nn.Module, getattr(module, name)) for name in module.network_names]
    return sum(any(True for _ in network.parameters()) for network in networks)
