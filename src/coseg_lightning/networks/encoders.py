"""Encoders of smp and timm by name, with pretrained weights, and how these saw images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segmentation_models_pytorch.encoders import (
    encoders,
    get_encoder,
    get_preprocessing_params,
)

from coseg_lightning.data.preparation import Statistics
from coseg_lightning.errors import InputError, unknown_name_message
from coseg_lightning.networks.weights import load_encoder_weights, weights_file

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN: Statistics = ((0.4863, 0.4588, 0.4078), (0.2348, 0.2348, 0.2348))
# Statistics of smp's own encoders in pretraining. timm knows those of its encoders.
OTHER_STATISTICS = {"inception": HALF, "xception": HALF, "dpn": DPN}
OTHER_STATISTICS["timm-tf_efficientnet_lite"] = HALF
WEIGHTS_WITH_HALF = "advprop"  # the name of weights of several encoders


def make_encoder(name: str, *, in_channels: int, depth: int, weights: str | None = None) -> Any:
    """Build one of the encoders of smp or of timm (`tu-...`).

    Args:
        name: The encoder's name.
        in_channels: Channels of the images.
        depth: Number of times that the encoder halves height and width.
        weights: Pretrained weights: a name to download them by, or a file. The default is none.

    Returns:
        The encoder.

    Raises:
        InputError: If there is no such encoder, it does not support the depth or channels, or the
            weights do not fit it.
    """
    check_encoder(name)
    file = weights_file(weights)
    try:
        with downloading(weights, name):
            encoder = get_encoder(
                name, in_channels=in_channels, depth=depth, weights=None if file else weights
            )
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"encoder {name} cannot be used here ({str(error).strip(chr(34))}); use another one, "
            "such as resnet18."
        ) from error
    if file is not None:
        load_encoder_weights(encoder, file)
    return encoder


def check_encoder(name: str) -> None:
    """Raise an `InputError` if there is no such encoder.

    The names of timm's encoders are only checked when the encoder is built.
    """
    if not isinstance(name, str):
        raise InputError(f"encoder_name={name!r} must be the name of an encoder, such as resnet18.")
    if name not in encoders and not name.startswith("tu-"):
        raise InputError(unknown_name_message("encoder", name, list(encoders)))


@contextmanager
def downloading(weights: str | None, encoder: str) -> Iterator[None]:
    """Turn the errors of a download into an `InputError`."""
    advice = "give a file of the encoder's weights, as timm or smp saves it, or null for none"
    try:
        yield
    except (KeyError, RuntimeError) as error:
        if weights is None or "pretrained weights" not in str(error):
            raise
        raise InputError(
            f"encoder_weights={weights}: there are no such weights of {encoder} ({error}); "
            f"{advice}."
        ) from error
    except OSError as error:
        if weights is None:
            raise
        raise InputError(
            f"encoder_weights={weights} of {encoder} cannot be downloaded; {advice}."
        ) from error


def pretraining_statistics(name: str, in_channels: int, weights: str | None = None) -> Statistics:
    """Return the mean and standard deviation for images in [0, 1] in an encoder's pretraining.

    For one channel, the three are averaged. For other numbers they are repeated, like the weights.

    Args:
        name: One of smp's or timm's encoders.
        in_channels: Channels of the images.
        weights: The name of the weights, if they were downloaded.
    """
    mean, std = HALF if weights == WEIGHTS_WITH_HALF else _statistics(name)
    if in_channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    channels = [channel % len(mean) for channel in range(in_channels)]
    return tuple(mean[c] for c in channels), tuple(std[c] for c in channels)


def _statistics(name: str) -> Statistics:
    if name.startswith("tu-"):  # for smp's own encoders, this would access the internet
        try:
            given = get_preprocessing_params(name)
            return tuple(given["mean"]), tuple(given["std"])
        except ValueError:  # timm has no weights for it
            return IMAGENET
    for start, statistics in OTHER_STATISTICS.items():
        if name.startswith(start):
            return statistics
    return IMAGENET
