"""Encoders of smp and timm by name, and their pretrained weights, downloaded or from a file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import (
    encoders,
    get_encoder,
    get_preprocessing_params,
)
from torch import Tensor, nn

from coseg_lightning.data.preparation import Statistics
from coseg_lightning.errors import InputError, unknown_name_message
from coseg_lightning.files.images import decoding

PRETRAINED_CHANNELS = 3  # encoders are pretrained on colour images
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DPN: Statistics = ((0.4863, 0.4588, 0.4078), (0.2348, 0.2348, 0.2348))
# Statistics of smp's own encoders in pretraining. timm knows those of its encoders.
OTHER_STATISTICS = {"inception": HALF, "xception": HALF, "dpn": DPN}


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
    if name not in encoders and not name.startswith("tu-"):
        raise InputError(unknown_name_message("encoder", name, list(encoders)))


def weights_file(weights: str | None) -> Path | None:
    """Return the file in `encoder_weights`, or None if it is a name such as `imagenet`.

    Names have no dot or slash. A path must not reach smp: for timm's encoders it takes any text for
    a name, and would download weights that nobody asked for.
    """
    if not isinstance(weights, str) or not any(mark in weights for mark in "./\\"):
        return None
    return Path(weights).expanduser()


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


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load an encoder's weights from a file, without running any code in it.

    The file holds the state of timm's or torchvision's network of the same name, of smp's encoder,
    or of a whole network with this encoder. Names may have a prefix. Other tensors, such as those
    of the classifier, are ignored. If the images do not have three channels, the first convolution
    is adapted as in timm and smp. For one channel its weights are summed. For other numbers they
    are repeated and scaled.

    Args:
        encoder: The encoder.
        path: A `.safetensors` file, or a state dict that `torch.save` wrote.

    Raises:
        InputError: If the file cannot be read, or lacks a weight of the encoder.
    """
    own = encoder.state_dict()
    given = _without_prefix(_read_state(path), {_plain(name) for name in own})
    loaded: dict[str, Tensor] = {}
    for name, tensor in own.items():
        found = given.get(_plain(name))
        if found is None and name.endswith("num_batches_tracked"):
            found = tensor
        if found is None:
            raise InputError(
                f"encoder_weights={path} has no {name}, which the encoder needs; give a file of the"
                " same encoder, as timm or smp saves it."
            )
        if found.shape != tensor.shape:
            found = _with_channels(found, tensor.shape)
        if found is None:
            raise InputError(
                f"encoder_weights={path} has {name} of the shape "
                f"{tuple(given[_plain(name)].shape)}, but the encoder needs {tuple(tensor.shape)}; "
                "give a file of the same encoder."
            )
        loaded[name] = found
    # Some of smp's encoders override load_state_dict, and look for a classifier in it.
    nn.Module.load_state_dict(encoder, loaded)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(
            f"encoder_weights={path}: there is no such file; give a file of weights, or the name "
            "of weights to download, such as imagenet."
        )
    with decoding(path, "weights (a state dict, without code)"):
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):  # keys in checkpoints of Lightning, timm and others
            if isinstance(content.get(key), Mapping):
                content = content[key]
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _plain(name: str) -> str:
    """Undo the renaming by timm's feature extractors, such as `stages_0` for `stages.0`."""
    return name.removeprefix("model.").replace("_", ".")


def _without_prefix(given: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Find the prefix with which most wanted names exist, and return its weights without it."""
    plain = {_plain(name): tensor for name, tensor in given.items()}
    prefixes = {""}
    for name in plain:
        parts = name.split(".")
        prefixes |= {".".join(parts[:n]) + "." for n in range(1, min(len(parts), 4))}

    def found(prefix: str) -> int:
        return sum(prefix + name in plain for name in wanted)

    # If several prefixes fit, as in a checkpoint of two peers, take the shortest and first one.
    best = max(sorted(prefixes, key=lambda prefix: (len(prefix), prefix)), key=found)
    return {
        name.removeprefix(best): tensor for name, tensor in plain.items() if name.startswith(best)
    }


def _with_channels(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """Adapt a first convolution with three channels to another number; None if it does not fit."""
    is_first = weight.ndim == 4 and weight.shape[1] == PRETRAINED_CHANNELS
    if not is_first or weight.shape[:1] + weight.shape[2:] != shape[:1] + shape[2:]:
        return None
    if shape[1] == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight[:, torch.arange(shape[1]) % PRETRAINED_CHANNELS]
    return repeated * (PRETRAINED_CHANNELS / shape[1])


def pretraining_statistics(name: str, in_channels: int) -> Statistics:
    """Return the mean and standard deviation for images in [0, 1] in an encoder's pretraining.

    For one channel, the three are averaged. For other numbers they are repeated, like the weights.

    Args:
        name: One of smp's or timm's encoders.
        in_channels: Channels of the images.
    """
    mean, std = _statistics(name)
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
