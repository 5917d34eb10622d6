"""Pretrained weights of an encoder from a file: found in it, checked, and loaded."""

import hashlib
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coseg_lightning.errors import InputError
from coseg_lightning.files.checkpoints import plain_names
from coseg_lightning.files.images import decoding

PRETRAINED_CHANNELS = 3  # encoders are pretrained on colour images
# Values of encoder_weights that somebody means as none; smp would download weights for some.
NOTHING = ("none", "null", "false", "random", "scratch", "no", "")
PARAMETER = re.compile(r"\.(weight|bias|running\.mean|running\.var|num\.batches\.tracked)$")


def weights_file(weights: str | None) -> Path | None:
    """Return the file in `encoder_weights`, or None if it is a name such as `imagenet`.

    Names have no dot or slash. A path must not reach smp: for timm's encoders it takes any text for
    a name, and would download weights that nobody asked for.

    Raises:
        InputError: If it is neither a name, nor a path, nor None.
    """
    if weights is None:
        return None
    if not isinstance(weights, str) or weights.lower() in NOTHING:
        raise InputError(
            f"encoder_weights={weights} must be a file, or the name of weights to download, such "
            "as imagenet; give null for random weights."
        )
    if any(mark in weights for mark in "./\\"):
        return Path(weights).expanduser()
    if Path(weights).is_file():
        raise InputError(
            f"encoder_weights={weights} is a name of weights to download, as it has no dot or "
            f"slash; for the file, write ./{weights}."
        )
    return None


def weights_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file of weights, which tells whether it has changed.

    Raises:
        InputError: If there is no such file.
    """
    _check_is_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load an encoder's weights from a file, without running any code in it.

    The file holds the state of timm's or torchvision's network of the same name, of smp's encoder,
    or of a whole network with this encoder. Names may have a prefix. Other tensors, such as those
    of the classifier, are ignored. If several encoders fit, as in a checkpoint of two peers, the
    first one in the file is taken, with a warning. If the images do not have three channels, the
    first convolution is adapted as in timm and smp. For one channel its weights are summed. For
    other numbers they are repeated and scaled.

    Args:
        encoder: The encoder.
        path: A file of safetensors, or a state dict that `torch.save` wrote.

    Raises:
        InputError: If the file cannot be read, lacks a weight of the encoder, or holds those of a
            deeper one.
    """
    own = encoder.state_dict()
    wanted = [_plain(name) for name in own]
    given = _without_prefix(_read_state(path), wanted, path)
    loaded = {name: _fitting(name, tensor, given, path) for name, tensor in own.items()}
    if deeper := _of_a_deeper_network(wanted, [name for name in given if name not in set(wanted)]):
        raise InputError(
            f"encoder_weights={path} has {deeper}, so it is of a deeper network than the encoder, "
            "which would lack its last blocks; give a file of the same encoder."
        )
    # Some of smp's encoders override load_state_dict, and look for a classifier in it.
    nn.Module.load_state_dict(encoder, loaded)


def _fitting(name: str, tensor: Tensor, given: Mapping[str, Tensor], path: Path) -> Tensor:
    """Return the given weight for one of the encoder's own, or raise an `InputError`."""
    found = given.get(_plain(name))
    if found is None and name.endswith("num_batches_tracked"):
        return tensor
    if found is None:
        others = ", ".join(list(given)[:3])
        raise InputError(
            f"encoder_weights={path} has no {name}, which the encoder needs (it has {others} and "
            "others); give a file of the same encoder, as timm or smp saves it."
        )
    fitting = found if found.shape == tensor.shape else _with_channels(found, tensor.shape)
    if fitting is None:
        raise InputError(
            f"encoder_weights={path} has {name} of the shape {tuple(found.shape)}, but the encoder "
            f"needs {tuple(tensor.shape)}; give a file of the same encoder."
        )
    is_number = not tensor.is_floating_point() or found.is_floating_point()
    if not is_number or not torch.isfinite(fitting).all():
        problem = "values that are not finite" if is_number else f"whole numbers ({found.dtype})"
        raise InputError(
            f"encoder_weights={path} has {problem} in {name}; give weights as floating-point "
            "numbers, as they were before any quantisation."
        )
    return fitting


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"encoder_weights={path} is a folder; give a file of weights in it.")
    if not path.is_file():
        raise InputError(
            f"encoder_weights={path}: there is no such file; give the file where it lies now, or "
            "the name of weights to download, such as imagenet."
        )


def _read_state(path: Path) -> dict[str, Tensor]:
    _check_is_file(path)
    with decoding(path, "weights (a state dict, without code)"):
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # after the length of the header
        if is_safetensors:
            return load_file(path)
        try:
            with path.open("rb") as file:  # by its content, where torch would go by its name
                content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            if not re.search("Unsupported (global|class)|GLOBAL|TorchScript", str(error)):
                raise
            raise InputError(
                f"{path} holds other objects than weights, which may run code, so it is not "
                "loaded; where you trust it, save its state_dict() alone, without code, by "
                "torch.save."
            ) from error
    state = dict(_tensors(content)) if isinstance(content, Mapping) else {}
    if not state:
        kind = type(content).__name__
        raise InputError(f"{path} holds a {kind} without weights; give a file of a state dict.")
    return state


def _tensors(content: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state dict, also of those in a checkpoint, such as `state_dict`."""
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield within + key, value
        elif isinstance(key, str) and isinstance(value, Mapping):
            yield from _tensors(value, f"{within}{key}.")


def _plain(name: str) -> str:
    """Undo the renaming by timm's feature extractors, such as `stages_0` for `stages.0`."""
    return name.removeprefix("model.").replace("_", ".")


def _without_prefix(
    given: Mapping[str, Tensor], wanted: Sequence[str], path: Path
) -> dict[str, Tensor]:
    """Find the prefix with which most wanted names exist, and return its weights without it."""
    plain = {_plain(name): tensor for name, tensor in plain_names(given).items()}
    known, found = set(wanted), Counter[str]()
    for name in plain:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        found.update(name[:start] for start in starts if name[start:] in known)
    if not found:
        return plain
    most = max(found.values())
    best, *others = sorted((prefix for prefix in found if found[prefix] == most), key=len)
    if others and 2 * most > len(known):  # else the encoder is not in it
        names = " and ".join(prefix.rstrip(".") or "the file's own" for prefix in (best, *others))
        warnings.warn(
            f"encoder_weights={path} holds several encoders, {names}; the first one is taken.",
            stacklevel=2,
        )
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


class Block(NamedTuple):
    """A numbered block of a network that a parameter is in, such as `layer1.2`.

    Attributes:
        parent: What holds it, such as `layer1.`.
        container: The name of its blocks without their number, here `layer1.` too.
        number: The block's number.
        layer: The parameter's layer within the block.
    """

    parent: str
    container: str
    number: int
    layer: str


def _blocks(name: str) -> list[Block]:
    """Return the numbered blocks of several layers that a parameter is in."""
    layer, count = PARAMETER.subn("", name)
    found = re.finditer(r"(?<=\d)\.", layer) if count else ()
    blocks = []
    for match in found:
        before = layer[: match.start()]
        container = before.rstrip("0123456789")
        parent, number = before[: before.rfind(".") + 1], int(before[len(container) :])
        blocks.append(Block(parent, container, number, layer[match.end() :]))
    return blocks


def _of_a_deeper_network(own: Sequence[str], others: Sequence[str]) -> str | None:
    """Find a parameter of a block that would follow the encoder's last one of the same kind.

    The last blocks of an encoder may be left out on purpose, so only those count whose parent has
    others after it.

    Args:
        own: The encoder's names, in their order.
        others: The names that the file has beside them.
    """
    layers: dict[str, dict[int, set[str]]] = {}
    for name in own:
        for block in _blocks(name):
            layers.setdefault(block.container, {}).setdefault(block.number, set()).add(block.layer)
    for name in others:
        for block in _blocks(name):
            numbers = layers.get(block.container, {})
            if not numbers or block.number <= max(numbers):
                continue
            is_alike = block.layer in numbers[max(numbers)]
            if is_alike and not own[-1].startswith(block.parent):
                return name
    return None
