"""Checkpoints: loading them without running code, and checking that they fit a network."""

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coseg_lightning.errors import InputError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint without running code.

    Args:
        path: The checkpoint's file.

    Returns:
        The checkpoint's content, with a `state_dict`.

    Raises:
        InputError: If the file holds code or is damaged.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
            return checkpoint
        raise ValueError("it is no checkpoint")
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing; restore it, or start the run in a new folder."
        ) from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds objects other than plain values and tensors; these may run code, so the "
            "file is not loaded. Keep such objects out of the state_dict of the datamodule and of "
            "callbacks."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise InputError(
            f"{path} is damaged and cannot be loaded; start the run in a new folder."
        ) from error


COMPILED = "_orig_mod."  # the prefix that torch.compile adds to the names of a module's state


def plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with the names that it has without `torch.compile`."""
    return {name.replace(COMPILED, ""): value for name, value in state.items()}


def load_plain(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict with plain names into a module, which may be compiled."""
    plain = plain_names(state)
    names = {name.replace(COMPILED, ""): name for name in module.state_dict()}
    module.load_state_dict({names.get(name, name): value for name, value in plain.items()})


def check_fits(state: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Raise an `InputError` unless a state has the names and shapes of a module's own state.

    Names are compared without the prefix of `torch.compile`.

    Args:
        state: The loaded state.
        module: The module that will load it.
        path: The state's file, for the message.
    """
    wanted_shapes = {name: value.shape for name, value in plain_names(module.state_dict()).items()}
    given = plain_names(state)
    if wanted_shapes != {name: getattr(value, "shape", None) for name, value in given.items()}:
        raise InputError(
            f"{path} belongs to another network than this run's; restore it, or start the run in a "
            "new folder."
        )


def plain_values(value: Any) -> Any:
    """Keep plain values, also in lists and mappings, and convert all others to text."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no such number
        return str(value)
    if isinstance(value, str | int | float | type(None)):
        return value
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # an address differs in every process
