"""SegmentationModule: supervised training of one network (section 2.3, and the baselines)."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import IGNORE_INDEX, l2_weight_decay
from coseg_lightning.functional.losses import PIXEL_LOSSES
from coseg_lightning.modules.measurement import measurement_of
from coseg_lightning.modules.optimizers import (
    GradientGuard,
    Schedule,
    build_optimizer,
    parameter_group,
    unassigned,
    with_schedule,
)
from coseg_lightning.modules.passes import check_first_logits
from coseg_lightning.modules.recipe import Recipe, plain_number
from coseg_lightning.modules.steps import SegmentationSteps, of_named_networks
from coseg_lightning.networks.build import build_network
from coseg_lightning.networks.forward import any_size, auxiliary_weight, with_auxiliary


class SegmentationModule(SegmentationSteps):
    """Trains one network with the loss of Eq. (2) on the given labels.

    Batches are `(image, mask)`, `(image, mask, id)`, or dicts with `image` and `mask` or `label`.

    Args:
        net: A network, or its name; see `coseg_lightning.networks.build_network`.
        encoder_name: The encoder, for a network given by name.
        encoder_weights: The encoder's initial weights, for a network given by name. By default
            there are none, and nothing is downloaded.
        in_channels: Number of image channels, for a network given by name.
        classes: Number of classes K, including background. Give 1 for a binary network with a
            single output, the foreground's logit; its masks hold 0 and 1.
        lambda_1: Weight of the Dice loss in Eq. (2).
        lambda_2: Weight of the L2 term in Eq. (2).
        include_background: Whether background is one of the k classes of Eq. (3).
        lr: Learning rate.
        optimizer: Called with the parameter groups and `lr=`.
        scheduler: Called with the optimizer. It returns a torch scheduler, which is stepped each
            epoch, or Lightning's dict around one. A `ReduceLROnPlateau` monitors `val/dice`
            unless it names another metric.
        ignore_index: Class id of unlabelled pixels.
        pixel_loss: `cross_entropy`, or a robust loss in its place: `generalised_cross_entropy`
            or `symmetric_cross_entropy`, see `coseg_lightning.functional.losses`.
        options: Further arguments of a network given by name.

    Shape:
        `forward(images)`: images `(N, C, H, W)`; returns logits `(N, K, H, W)`.
    """

    suffixes = ("",)
    network_names = ("net",)

    def __init__(
        self,
        net: str | nn.Module = "unet",
        *,
        encoder_name: str | None = None,
        encoder_weights: str | None = None,
        in_channels: int = 3,
        classes: int = 2,
        lambda_1: float = Recipe.lambda_1,
        lambda_2: float = Recipe.lambda_2,
        include_background: bool = Recipe.include_background,
        lr: float = Recipe.lr,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        scheduler: Schedule | None = None,
        ignore_index: int = IGNORE_INDEX,
        pixel_loss: str = "cross_entropy",
        **options: Any,
    ) -> None:
        lr, lambda_1, lambda_2 = plain_number(lr), plain_number(lambda_1), plain_number(lambda_2)
        Recipe(lr=lr)  # which checks it
        super().__init__(
            classes,
            ignore_index,
            lambda_1=lambda_1,
            lambda_2=lambda_2,
            include_background=include_background,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        ready = isinstance(net, nn.Module)
        spare = of_named_networks(self, ready, encoder_name, encoder_weights, options)
        own = ["net"] if ready else []
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *own, *spare])
        self.use_pixel_loss(pixel_loss)
        if not isinstance(net, nn.Module):
            net = build_network(
                net,
                encoder_name=encoder_name,
                encoder_weights=encoder_weights,
                in_channels=in_channels,
                classes=classes,
                **options,  # passed here so that LightningCLI finds the possible options
            )
        self.net = net
        self.lr = lr
        self.optimization = GradientGuard("the network")
        self.checked_networks: dict[str, int] = {}

    def use_pixel_loss(self, name: str) -> None:
        """Replace the cross-entropy in Eq. (2) by a loss of `PIXEL_LOSSES`.

        Raises:
            InputError: If there is no loss of this name.
        """
        if name not in PIXEL_LOSSES:
            raise InputError(f"pixel_loss={name!r} must be {' or '.join(PIXEL_LOSSES)}.")
        self.pixel_loss = name
        self.save_hyperparameters({"pixel_loss": name})  # for loggers too

    @override
    def forward(self, images: Tensor) -> Tensor:
        return any_size(self.net, images)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        sample = self.read(batch)
        loss = self.losses(sample.images, sample.targets).mean()
        self.log_epoch({"train/loss": loss.detach()}, batch_size=len(sample.images))
        self.log_progress(loss.detach())
        return loss

    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        """Compute each sample's loss, `(N,)`."""
        logits, auxiliary = self.all_logits(images)
        losses = self.supervised_losses(logits, masks)
        for part in auxiliary:
            losses = losses + auxiliary_weight(self.net) * self.supervised_losses(part, masks)
        return losses

    def all_logits(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the logits of training images, and the auxiliary logits, if there are any."""
        if is_overridden("forward", self, SegmentationModule):
            logits, auxiliary = self(images), list[Tensor]()
        else:
            logits, auxiliary = with_auxiliary(self.net, images)
        check_first_logits(self.checked_networks, self.classes, net=logits)
        return logits, auxiliary

    def summary_parts(self) -> dict[str, dict[str, Any]]:
        """Return the parts that a trained module adds to `summary.json`, as plain values."""
        return {}

    def check_data(self, data: Any) -> None:
        """Raise an `InputError` before training if a datamodule lacks what the method needs."""

    @override
    def configure_callbacks(self) -> list[Callback]:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return measurement_of(self.trainer)
        self.optimization.watch((self,))  # includes parameters that a method adds to the network's
        return [*measurement_of(self.trainer), self.optimization]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = self.parameter_groups()
        if others := list(unassigned(self, groups).values()):  # of a subclass
            decay = l2_weight_decay(self.lambda_2)
            groups.append({"params": others, "name": "others", "weight_decay": decay})
        optimizer = build_optimizer(self, self.optimizer_factory, groups, self.lr)
        return with_schedule(self, optimizer, self.scheduler_factory, monitor="val/dice")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; a method with more parameters adds a group."""
        decay = l2_weight_decay(self.lambda_2)  # lambda_2 ||W||^2 of Eq. (2)
        return [parameter_group(self, "net", self.lr, decay)]
