"""Applying networks to images of any size, and reading their logits."""

import re
from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from coseg_lightning.errors import InputError

LOGITS_NAMES = ("out", "logits")  # the names in torchvision and in transformers
DEFAULT_AUXILIARY_WEIGHT = 0.5  # as in torchvision's training of its networks
# What encoders say of images that they cannot take: sizes of features that do not fit together.
OTHER_SIZE = r"(?i)size of tensor a .* must match|sizes of tensors must match|doesn't match model"
MOST_ROUNDING = 0.02  # of probabilities that sum to 1, in bfloat16


def any_size(network: nn.Module, images: Tensor) -> Tensor:
    """Apply a network to images of any height and width.

    The images are padded with zeros, and the logits are cropped. If the network returns several
    outputs by name, the logits are `out` (as in torchvision) or `logits` (as in transformers).
    Smaller logits are enlarged. Those of SegFormer in transformers, for example, have a quarter of
    the size.

    Args:
        network: The network.
        images: The images.

    Shape:
        `(N, C, H, W)` to `(N, K, H, W)`.

    Raises:
        InputError: If the network returns no logits, or logits of another size than the images.
    """
    return with_auxiliary(network, images)[0]


def with_auxiliary(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Apply a network as `any_size` does, and also return its auxiliary logits.

    Auxiliary logits are the network's output `aux` in training, one tensor or several. They are
    trained on the same labels, but are not the prediction. Examples are DoubleU-Net's first mask,
    the second head of torchvision's networks, and deep supervision. Smaller ones are enlarged.

    Args:
        network: The network.
        images: The images.

    Returns:
        The logits and the auxiliary logits.

    Shape:
        `(N, C, H, W)` to `(N, K, H, W)`, also for the auxiliary logits.

    Raises:
        InputError: If the network returns no logits, logits of another size than the images, or
            auxiliary logits with another number of classes.
    """
    height, width = images.shape[-2:]
    padded = _pad(images, output_stride(network))
    logits, parts = _split_output(network, _forward(network, padded, images))
    logits = _at_size_of(network, logits, padded)
    auxiliary = [_enlarge(part, logits, network) for part in parts]
    return logits[..., :height, :width], [part[..., :height, :width] for part in auxiliary]


def output_stride(network: nn.Module) -> int:
    """Return the number that must divide the height and width of a network's input.

    It is 1 for a network that accepts images of any size.
    """
    if getattr(network, "output_stride", None) is not None:
        return int(network.output_stride)  # type: ignore[arg-type]
    if isinstance(network, smp.DPT):  # its decoder halves the encoder's features once more
        return 2 * int(network.encoder.output_stride)
    if getattr(network, "requires_divisible_input_shape", False):
        return int(network.encoder.output_stride)  # type: ignore[union-attr, arg-type]
    return 1


def _pad(images: Tensor, stride: int) -> Tensor:
    height, width = images.shape[-2:]
    right, bottom = -width % stride, -height % stride
    # A network may prepare its input in place, which its peer gets too.
    return F.pad(images, (0, right, 0, bottom)) if right or bottom else images.clone()


def _forward(network: nn.Module, padded: Tensor, images: Tensor) -> Any:
    """Run the network. Explain errors on images of another type or size, and on small batches."""
    try:
        return network(padded)
    except (RuntimeError, AssertionError) as error:
        if isinstance(network, smp.base.SegmentationModel) and re.search(OTHER_SIZE, str(error)):
            height, width = images.shape[-2:]
            raise InputError(
                f"{type(network).__name__} with this encoder cannot take images of {height} x "
                f"{width} pixels ({str(error).rstrip('.')}); give sides that 64 divides, as by "
                "data.image_size=128, or the size of its pretraining, such as 224."
            ) from error
        if isinstance(error, AssertionError):
            raise
        if "Output size is too small" in str(error):
            height, width = images.shape[-2:]
            raise InputError(
                f"Images of {height} x {width} pixels are too small for this "
                f"{type(network).__name__}; use larger images, as by data.image_size=128."
            ) from error
        computes = next((w.dtype for w in network.parameters() if w.is_floating_point()), None)
        is_of_types = re.search("type.* same|expected scalar type", str(error))
        if computes in (None, images.dtype) or not is_of_types:
            raise
        give = f"image.to({computes})" + ("" if images.is_floating_point() else " / 255")
        raise InputError(
            f"The batch's images are {images.dtype}, but {type(network).__name__} computes with "
            f"{computes}; give images of that type, such as {give}."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = images.shape[-2:]
        raise InputError(
            f"BatchNorm cannot learn from a batch of {len(images)} image of {height} x {width} "
            "pixels, which the network reduces to a single value per channel; use larger batches "
            "or larger images, or drop_last=True if it is the last batch."
        ) from error


def _split_output(network: nn.Module, output: Any) -> tuple[Tensor, list[Any]]:
    """Split the output into logits and auxiliary outputs. In evaluation, these are ignored."""
    auxiliary: Any = []
    if isinstance(output, Mapping):
        names = [name for name in LOGITS_NAMES if name in output]
        if not names:
            raise InputError(
                f"{type(network).__name__} returned {', '.join(map(str, output))}; one of its "
                "outputs must be named out or logits."
            )
        auxiliary = output.get("aux", []) if network.training else []
        output = output[names[0]]
    if not isinstance(output, Tensor):
        raise InputError(
            f"{type(network).__name__} returned a {type(output).__name__}; it must return logits, "
            "or a dict with logits or out."
        )
    return output, list(auxiliary) if isinstance(auxiliary, list | tuple) else [auxiliary]


def _enlarge(auxiliary: Any, logits: Tensor, network: nn.Module) -> Tensor:
    """Resize auxiliary logits to the size of the logits."""
    if (
        not isinstance(auxiliary, Tensor)
        or auxiliary.ndim != 4
        or auxiliary.shape[:2] != logits.shape[:2]
    ):
        shape = getattr(auxiliary, "shape", None)
        description = type(auxiliary).__name__ if shape is None else tuple(shape)
        raise InputError(
            f"{type(network).__name__} returned {description} as aux beside its logits of "
            f"{tuple(logits.shape)}; both are trained on the labels, so they must have the same "
            "number of classes."
        )
    if auxiliary.shape == logits.shape:
        return auxiliary
    return F.interpolate(auxiliary, size=logits.shape[-2:], mode="bilinear", align_corners=False)


def _at_size_of(network: nn.Module, logits: Tensor, images: Tensor) -> Tensor:
    """Enlarge logits that are smaller than the images by an integer factor, as SegFormer's are.

    Raises:
        InputError: If they have any other size, or are not `(N, K, H, W)`.
    """
    height, width = images.shape[-2:]
    if logits.ndim != 4:
        raise InputError(
            f"{type(network).__name__} returned logits of {tuple(logits.shape)}, but they must be "
            "(N, K, H, W); return further outputs in a dict with out and aux."
        )
    low, narrow = logits.shape[-2:]
    if (low, narrow) == (height, width):
        return logits
    if height % low or width % narrow or height // low != width // narrow:
        raise InputError(
            f"{type(network).__name__} returned logits of {low} x {narrow} for images of {height} "
            f"x {width}; it must keep the size, or divide both sides by the same whole number. If "
            "the sides must be multiples of a number, set the network's attribute output_stride to "
            "it."
        )
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


def auxiliary_weight(network: nn.Module) -> float:
    """Return the weight of the loss of a network's auxiliary logits.

    It is the network's own `auxiliary_weight`, or 0.5 as in torchvision's training.
    """
    return float(getattr(network, "auxiliary_weight", DEFAULT_AUXILIARY_WEIGHT))


def lie_between_0_and_1(outputs: Tensor) -> bool:
    """Whether outputs lie between 0 and 1, and are not all the same."""
    low, high = float(outputs.detach().min()), float(outputs.detach().max())
    return 0 <= low < high <= 1


def sum_to_1(outputs: Tensor) -> bool:
    """Whether each pixel's outputs sum to 1, as those of a softmax do."""
    sums = outputs.detach().float().sum(dim=1)
    return bool((sums - 1).abs().max() < MOST_ROUNDING)


def warn_of_probabilities(outputs: Tensor) -> None:
    """Warn of outputs that look like probabilities."""
    low, high = float(outputs.detach().min()), float(outputs.detach().max())
    rank_zero_warn(
        f"The network's outputs lie between {low:.3g} and {high:.3g}, so they look like "
        "probabilities; it must return logits: leave out its last sigmoid or softmax."
    )
