"""Forward passes of the peers in training."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from coseg_lightning.errors import InputError
from coseg_lightning.modules.buffers import evaluating
from coseg_lightning.networks.forward import (
    lie_between_0_and_1,
    sum_to_1,
    warn_of_probabilities,
    with_auxiliary,
)

ENOUGH = 16  # batches after which a network whose outputs lie between 0 and 1 gives probabilities


def judged_logits(module: pl.LightningModule, images: Tensor) -> Any:
    """Compute a module's logits for selection, in evaluation mode and without gradients."""
    with torch.no_grad(), evaluating(module):
        logits = module(images)
    # Older versions of torch cache the weights that autocast cast here without gradients, and would
    # reuse them in the training passes (pytorch/pytorch#158232).
    torch.clear_autocast_cache()
    return logits


def logits_of_picks(
    network: nn.Module, images: Tensor, picks: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Compute a network's logits for some images of a batch, and auxiliary logits, if any.

    At least two images pass through the network. BatchNorm after a global pooling cannot normalise
    a single image, and synchronised BatchNorm needs all processes to take part.
    """
    is_channels_last = images.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if is_channels_last else torch.contiguous_format
    inputs = images[picks]
    if len(picks) < 2:
        inputs = torch.cat([inputs, companions(images, picks)])[: len(images)]
    logits, auxiliary = with_auxiliary(network, inputs.contiguous(memory_format=order))
    return logits[: len(picks)], [part[: len(picks)] for part in auxiliary]


def companions(images: Tensor, picks: Tensor) -> Tensor:
    """Return the images that follow a single pick in the batch, or the first two without a pick."""
    first = int(picks[0]) + 1 if len(picks) else 0
    indices = torch.arange(first, first + 2 - len(picks)) % len(images)
    # Companions may be corrupted images, whose NaN would spoil the gradient.
    return images[indices.to(picks)].nan_to_num(0, 0, 0)


def no_gradient_loss(network: nn.Module) -> Tensor:
    """Return a loss of 0 with gradients of 0: the optimizer's momentum then acts as under DDP."""
    parameters = list(network.parameters())
    zero = torch.zeros((), device=parameters[0].device)
    for weight in parameters:
        zero = zero + weight.sum() * 0
    return zero


def agreement_of_picks(
    classes_a: Tensor,
    classes_b: Tensor,
    picks: tuple[Tensor, Tensor],
    masks: Tensor,
    ignore_index: int,
) -> tuple[Tensor, int]:
    """Compute the share of pixels on which both peers agree, over samples that both learn from.

    Args:
        classes_a: The first peer's predictions; -1 for samples that did not pass through it.
        classes_b: The second peer's predictions.
        picks: The samples that each peer picked.
        masks: The labels.
        ignore_index: Class id of unlabelled pixels.

    Returns:
        The share, a scalar tensor, and the number of samples.
    """
    both = (classes_a >= 0) & (classes_b >= 0) & (masks != ignore_index)
    same = ((classes_a == classes_b) & both).sum() / both.sum().clamp_min(1)
    return same, len(set(picks[0].tolist()) & set(picks[1].tolist()))


def check_first_logits(checked: dict[str, int], classes: int, **logits: Tensor) -> None:
    """Check the first logits of each network, and warn if they look like probabilities.

    Those of a softmax are known at once. Logits may lie between 0 and 1 as the outputs of a sigmoid
    do, but not for long once a network learns.

    Args:
        checked: The number of checked batches by network, which is raised here.
        classes: The module's number of classes.
        logits: Logits by network.

    Raises:
        InputError: If a network has more or fewer outputs than the module has classes.
    """
    for name, values in sorted(logits.items()):
        if checked.get(name, 0) >= ENOUGH or not values.numel():
            continue
        outputs = values.shape[1]
        if outputs != classes and (outputs, classes) != (1, 2):
            raise InputError(
                f"The network {name} gives {outputs} outputs per pixel, but the module has "
                f"classes={classes}; give classes={outputs}, or a network of {classes} outputs."
            )
        checked[name] = checked.get(name, 0) + 1
        if not lie_between_0_and_1(values):
            checked[name] = ENOUGH
        elif sum_to_1(values) or checked[name] == ENOUGH:
            checked[name] = ENOUGH
            warn_of_probabilities(values)
