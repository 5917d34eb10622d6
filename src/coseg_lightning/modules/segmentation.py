"""SegmentationModule: one network, plain supervised (section 2.3, and the baselines)."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    class_logits,
    l2_weight_decay,
    predicted_classes,
    segmentation_loss,
)
from coseg_lightning.functional.losses import PIXEL_LOSSES
from coseg_lightning.functional.metrics import SegmentationScores
from coseg_lightning.modules.batch import ClassIds, images_of, read_batch
from coseg_lightning.modules.buffers import average_buffers
from coseg_lightning.modules.optimizers import GradientGuard, Schedule, made, scheduled
from coseg_lightning.networks.build import build_network
from coseg_lightning.networks.forward import (
    any_size,
    auxiliary_weight,
    check_logits,
    with_auxiliary,
)


class SegmentationModule(pl.LightningModule):
    """Trains one network with the loss of Eq. (2) on the labels as they are.

    Args:
        net: A network, or the name of one: see `coseg_lightning.networks.build.build_network`.
        encoder_name: For a network given by name.
        encoder_weights: For a network given by name; none by default, and nothing is downloaded.
        in_channels: For a network given by name.
        classes: Number of classes K, background included; 1 for a binary network with one
            output, the logit of the foreground, whose masks hold 0 and 1.
        lambda_1: Weight of the Dice loss in Eq. (2).
        lambda_2: Weight of the L2 term in Eq. (2).
        include_background: Whether background is one of the k classes of Eq. (3).
        lr: Learning rate.
        optimizer: Called with the parameter groups and `lr=`.
        scheduler: Called with the optimizer; gives a scheduler of torch, stepped each epoch, or
            Lightning's dict around one. A `ReduceLROnPlateau` goes by `val/dice` unless another
            metric is named.
        ignore_index: Class id of unlabelled pixels.
        pixel_loss: `cross_entropy`, or a robust loss in its place: `generalised_cross_entropy`
            or `symmetric_cross_entropy`, see `coseg_lightning.functional.losses`.
        options: Further arguments of a network given by name.

    Batches are `(image, mask)`, `(image, mask, id)`, or dicts with `image`, `mask` or `label`.

    Shape:
        `forward(images)`: images `(N, C, H, W)`; returns logits `(N, K, H, W)`.
    """

    def __init__(
        self,
        net: str | nn.Module = "unet",
        *,
        encoder_name: str | None = None,
        encoder_weights: str | None = None,
        in_channels: int = 3,
        classes: int = 2,
        lambda_1: float = 1.0,
        lambda_2: float = 1e-5,
        include_background: bool = True,
        lr: float = 1e-3,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        scheduler: Schedule | None = None,
        ignore_index: int = IGNORE_INDEX,
        pixel_loss: str = "cross_entropy",
        **options: Any,
    ) -> None:
        super().__init__()
        if pixel_loss not in PIXEL_LOSSES:
            raise InputError(f"pixel_loss={pixel_loss!r} must be {' or '.join(PIXEL_LOSSES)}.")
        if options and isinstance(net, nn.Module):
            raise InputError(
                f"{', '.join(sorted(options))}: there is no such argument of "
                f"{type(self).__name__}, and the network is given ready."
            )
        given = ["net"] if isinstance(net, nn.Module) else []
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *given])
        if isinstance(net, str):
            net = build_network(
                net,
                encoder_name=encoder_name,
                encoder_weights=encoder_weights,
                in_channels=in_channels,
                classes=classes,
                **options,
            )
        self.net = net
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.include_background = include_background
        self.lr = lr
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.ignore_index = ignore_index
        self.pixel_loss = pixel_loss
        self.classes = max(2, classes)
        self.optimization = GradientGuard("the network")
        self.logits_checked = False
        self.class_ids = ClassIds(self.classes, ignore_index)
        self.scores = nn.ModuleDict(
            {stage: SegmentationScores(self.classes, ignore_index) for stage in ("val", "test")}
        )

    @override
    def forward(self, images: Tensor) -> Tensor:
        return any_size(self.net, images)

    @override
    def configure_callbacks(self) -> list[Callback]:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        self.optimization.watch((self,))  # and what a method learns beside the network
        return [self.optimization]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = made(self, self.optimizer_factory, self.parameter_groups(), self.lr)
        return scheduled(optimizer, self.scheduler_factory, monitor="val/dice")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer is given; a method that learns more than the network adds to it."""
        decay = l2_weight_decay(self.lambda_2)  # lambda_2 ||W||^2 of Eq. (2)
        return [{"params": list(self.net.parameters()), "name": "net", "weight_decay": decay}]

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        sample = read_batch(batch)
        if self.current_epoch == 0:
            self.class_ids.check(sample.masks)
        loss = self.losses(sample.images, sample.masks).mean()
        self.log(
            "train/loss",
            loss.detach(),
            on_step=False,
            on_epoch=True,
            batch_size=len(sample.images),
            sync_dist=True,
        )
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        """Each sample's loss, `(N,)`."""
        logits, auxiliary = self.outputs(images)
        losses = self.supervised_losses(logits, masks)
        for part in auxiliary:
            losses = losses + auxiliary_weight(self.net) * self.supervised_losses(part, masks)
        return losses

    def check_data(self, data: Any) -> None:
        """Raise an `InputError` if a datamodule lacks what the method needs, before training."""

    def outputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits of images to learn from, and the network's auxiliary ones, if it has any."""
        if is_overridden("forward", self, SegmentationModule):
            logits, auxiliary = self(images), list[Tensor]()
        else:
            logits, auxiliary = with_auxiliary(self.net, images)
        if not self.logits_checked:
            check_logits(logits)
            self.logits_checked = True
        return logits, auxiliary

    def supervised_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Eq. (2), or with another loss in the place of its cross-entropy, `(N,)`."""
        return segmentation_loss(
            logits,
            masks,
            lambda_1=self.lambda_1,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
            pixel_loss=PIXEL_LOSSES[self.pixel_loss],
        )

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Not in on_train_epoch_end: there the progress bar of process 0 may already be waiting for
        # the others to reduce its metrics, and two different collectives would meet.
        if self.trainer.is_last_batch:
            average_buffers(self)
            if self.current_epoch == 0:
                self.class_ids.check_epoch(self)

    @override
    def on_validation_start(self) -> None:
        average_buffers(self)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score("val", batch)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score("test", batch)

    def _score(self, stage: str, batch: Any) -> None:
        sample = read_batch(batch)
        scores = self.scores[stage]
        assert isinstance(scores, SegmentationScores)
        scores.update(predicted_classes(class_logits(self(sample.images))), sample.masks)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = self.scores[stage]
        assert isinstance(scores, SegmentationScores)
        self.log_dict(scores.named(stage), sync_dist=True)
        scores.reset()

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities, `(N, K, H, W)`."""
        return class_logits(self(images_of(batch))).softmax(dim=1)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The weights are in the checkpoint: loading it must not download others first.
        checkpoint.get("hyper_parameters", {})["encoder_weights"] = None
