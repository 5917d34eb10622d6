"""Encoders of smp by name, for networks and methods that smp does not have."""

from typing import Any

from segmentation_models_pytorch.encoders import encoders, get_encoder

from coseg_lightning.errors import InputError, unknown_name_message


def make_encoder(name: str, *, in_channels: int, depth: int, weights: str | None = None) -> Any:
    """Build one of the encoders of smp or of timm (`tu-...`).

    Args:
        name: The encoder's name.
        in_channels: Channels of the images.
        depth: Number of times that the encoder halves height and width.
        weights: Pretrained weights to download. The default is none.

    Returns:
        The encoder.

    Raises:
        InputError: If there is no such encoder, or it does not have such features.
    """
    check_encoder(name)
    try:
        return get_encoder(name, in_channels=in_channels, depth=depth, weights=weights)
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"encoder {name} cannot be used here ({str(error).strip(chr(34))}); take another one, "
            "such as resnet18."
        ) from error


def check_encoder(name: str) -> None:
    """Raise an `InputError` if there is no such encoder.

    The names of timm's encoders are not checked before they are built.
    """
    if name not in encoders and not name.startswith("tu-"):
        raise InputError(unknown_name_message("encoder", name, list(encoders)))
