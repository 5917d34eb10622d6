"""Numbers in settings that say how files are read."""

import math
from collections.abc import Sequence
from typing import Any

from coseg_lightning.errors import InputError


def number_of(name: str, value: Any) -> float:
    """Return a setting's number, which may be NaN.

    Raises:
        InputError: If it is something else, or infinite.
    """
    if isinstance(value, str) and value.strip().lower() in ("nan", ".nan"):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise InputError(f"{name}={value} must be a number.")
    return float(value)


def whole_numbers_of(name: str, values: Any) -> tuple[int, ...]:
    """Return a setting's list of whole numbers.

    Raises:
        InputError: If it is something else.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(map(_is_whole, values)):
        shown = list(values) if is_list else values
        raise InputError(f"{name}={shown} must be a list of whole numbers, such as [0,1].")
    return tuple(map(int, values))


def _is_whole(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value == int(value)
