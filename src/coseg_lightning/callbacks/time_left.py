"""TimeLeft: shows in the progress bar how long a run will still take."""

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from coseg_lightning.modules.steps import SegmentationSteps


class TimeLeft(Callback):
    """Shows about how many minutes are left of this stage and those that follow.

    The batches to come are taken to be as slow as those that were, and later stages to train one
    network for as many epochs. Peers that select get faster, so that it is rather too much.

    Args:
        later_stages: The number of stages that follow.
    """

    def __init__(self, later_stages: int = 0) -> None:
        self.later_stages = later_stages
        self.start = 0.0
        self.done = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.done = 0

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, epochs, batches = time.perf_counter(), trainer.max_epochs, trainer.num_training_batches
        if self.done == 0:
            self.start = now  # the first batch also prepares what later ones find
        self.done += 1
        if self.done == 1 or epochs is None or epochs < 0 or math.isinf(batches):
            return
        left = (epochs - trainer.current_epoch) * batches - batch_idx - 1
        if trainer.max_steps >= 0:
            steps = trainer.max_steps - trainer.global_step
            left = min(left, steps * trainer.accumulate_grad_batches)
        networks = len(pl_module.network_names) if isinstance(pl_module, SegmentationSteps) else 1
        left += self.later_stages * epochs * batches / networks
        minutes = left * (now - self.start) / (self.done - 1) / 60
        # A number would be copied to the GPU, which waits for that.
        shown = torch.tensor(minutes, dtype=torch.float32)
        pl_module.log("minutes_left", shown, prog_bar=True, logger=False, batch_size=1)
