"""Numbers in settings that say how files are read."""

from typing import Any

import numpy as np

from coseg_lightning.errors import InputError


def number_of(name: str, value: Any) -> float:
    """Return a setting's number, which may be NaN or infinite.

    Raises:
        InputError: If it is something else.
    """
    try:
        if not isinstance(value, bool | np.bool_):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise InputError(f"{name}={value} must be a number.")


def whole_numbers_of(name: str, values: Any) -> tuple[int, ...]:
    """Return a setting's list of whole numbers.

    Raises:
        InputError: If it is something else.
    """
    try:
        if not isinstance(values, str):
            numbers = [number_of(name, value) for value in values]
            if all(map(float.is_integer, numbers)):
                return tuple(map(int, numbers))
    except (TypeError, InputError):
        pass
    shown = values if np.ndim(values) == 0 else list(values)
    raise InputError(f"{name}={shown} must be a list of whole numbers, such as [1,2].")
