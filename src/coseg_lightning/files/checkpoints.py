"""Checkpoints, loaded without running code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coseg_lightning.errors import InputError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, which is loaded without running code.

    Raises:
        InputError: If it holds code, or is damaged.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
            return loaded
        raise ValueError("it is no checkpoint")
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than plain values and tensors, which may be code and is not run; "
            "keep such out of the state_dict of the datamodule and of callbacks."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise InputError(
            f"{path} is damaged and cannot be loaded; start the run in a new folder."
        ) from error


def check_fits(state: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Raise an `InputError` unless a state is one of a module."""
    own = {name: value.shape for name, value in module.state_dict().items()}
    if own != {name: getattr(value, "shape", None) for name, value in state.items()}:
        raise InputError(
            f"{path} belongs to another network than this run's; restore it, or start the run in a "
            "new folder."
        )


def plain_values(value: Any) -> Any:
    """Plain values, and text for everything else."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(part) for part in value]
    return value if isinstance(value, str | int | float | type(None)) else str(value)
