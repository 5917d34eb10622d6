"""Networks on images of any size."""

import math
from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from coseg_lightning.errors import InputError


def output_stride(network: nn.Module) -> int:
    """The number that must divide an image's height and width for this network; 1 if none must."""
    if hasattr(network, "output_stride"):
        return int(network.output_stride)  # type: ignore[arg-type]
    if isinstance(network, smp.DPT):  # its decoder halves the encoder's features once more
        return 2 * int(network.encoder.output_stride)
    if getattr(network, "requires_divisible_input_shape", False):
        return int(network.encoder.output_stride)  # type: ignore[union-attr, arg-type]
    return 1


def any_size(network: nn.Module, images: Tensor) -> Tensor:
    """Apply a network to images of any height and width: pad with zeros, crop the logits.

    Of networks that give several outputs by name, the logits are `out` (torchvision's) or `logits`
    (transformers').

    Shape:
        images `(N, C, H, W)`; returns `(N, K, H, W)`.

    Raises:
        InputError: If the logits do not have the images' size all the same.
    """
    return with_auxiliary(network, images)[0]


def with_auxiliary(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of `any_size`, and those that the network calls `aux` in training.

    Auxiliary logits, one tensor or several, are trained on the same labels, and not used:
    DoubleU-Net's first mask, the second head of torchvision's networks, or deep supervision, whose
    smaller maps are enlarged.
    """
    height, width = images.shape[-2:]
    stride = output_stride(network)
    right, bottom = -width % stride, -height % stride
    if right or bottom:
        images = F.pad(images, (0, right, 0, bottom))
    try:
        output = network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"BatchNorm cannot learn from a batch of {len(images)} image of {height} x {width}, of "
            "which the network leaves a single value a channel; give larger batches or images."
        ) from error
    given: Any = []
    if isinstance(output, Mapping):
        names = [name for name in ("out", "logits") if name in output]
        if not names:
            raise InputError(
                f"{type(network).__name__} gave {', '.join(map(str, output))}; one of its outputs "
                "must be called out or logits."
            )
        given = output.get("aux", []) if network.training else []
        output = output[names[0]]
    if not isinstance(output, Tensor):
        raise InputError(
            f"{type(network).__name__} gave a {type(output).__name__}; it must give logits, or a "
            "dict with logits or out."
        )
    auxiliary = [_enlarged(part, output, network) for part in _listed(given)]
    logits: Tensor = output
    if logits.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"{type(network).__name__} gave logits of {tuple(logits.shape[-2:])} for images of "
            f"{tuple(images.shape[-2:])}; it must keep the size, or take images of "
            f"{tuple(math.ceil(side / 32) * 32 for side in (height, width))}."
        )
    return logits[..., :height, :width], [part[..., :height, :width] for part in auxiliary]


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _enlarged(auxiliary: Any, logits: Tensor, network: nn.Module) -> Tensor:
    """Auxiliary logits at the size of those that are used."""
    found = getattr(auxiliary, "shape", None)
    if not isinstance(auxiliary, Tensor) or auxiliary.shape[:2] != logits.shape[:2]:
        what = type(auxiliary).__name__ if found is None else tuple(found)
        raise InputError(
            f"{type(network).__name__} gave {what} as aux beside its logits of "
            f"{tuple(logits.shape)}; both are trained on the labels, and need as many classes."
        )
    if auxiliary.shape == logits.shape:
        return auxiliary
    return F.interpolate(auxiliary, size=logits.shape[-2:], mode="bilinear", align_corners=False)


def auxiliary_weight(network: nn.Module) -> float:
    """The weight of the loss of a network's auxiliary logits.

    The network's own `auxiliary_weight`, or 0.5 as in torchvision's training of its networks.
    """
    return float(getattr(network, "auxiliary_weight", 0.5))


def check_logits(*outputs: Tensor) -> None:
    """Warn of a network that ends in a sigmoid or softmax, whose probabilities are no logits."""
    for logits in outputs:
        low, high = float(logits.detach().min()), float(logits.detach().max())
        if 0 <= low < high <= 1:
            rank_zero_warn(
                f"The network's outputs lie between {low:.3g} and {high:.3g}, as probabilities do; "
                "it must give logits: leave out its last sigmoid or softmax."
            )
