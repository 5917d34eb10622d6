"""Exceptions for mistakes that the user can correct."""

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InputError(ValueError):
    """Wrong input. The message states what was given, what was expected and what to do.

    It is a `ValueError`, so callers need not know this class. The app prints its message without
    a traceback.
    """


class BadSamplesError(InputError):
    """Some samples cannot be used. The message lists the problems, one per line."""


def unknown_name_message(kind: str, name: str, known: Sequence[str]) -> str:
    """Return a message that a name does not exist, with a similar known name."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}."
    return f"There is no {kind} {name!r}; {hint}"


def renamed_argument(
    before: str, now: str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Make a function accept an argument by its old name too.

    Args:
        before: The old name.
        now: The new name.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
            if before in options:
                warnings.warn(
                    f"{function.__qualname__}({before}=...) is now called {now}=...; the old name "
                    "goes in version 0.3.",
                    FutureWarning,
                    stacklevel=2,
                )
                options[now] = options.pop(before)
            return function(*args, **options)

        return call

    return decorate


def renamed(before: str, now: str) -> property:
    """Return a property that gives a renamed attribute under its old name.

    Args:
        before: The old name.
        now: The new name, which may have dots, as in `selection.exclude`.
    """

    def get(owner: Any) -> Any:
        frame = inspect.currentframe()
        caller = frame.f_back if frame is not None else None
        # Tracing in torch reads all attributes of a module, whatever their names.
        if caller is None or not caller.f_globals.get("__name__", "").startswith("torch."):
            warnings.warn(
                f"{type(owner).__name__}.{before} is now called {now}; the old name goes in "
                "version 0.3.",
                FutureWarning,
                stacklevel=2,
            )
        return attrgetter(now)(owner)

    return property(get)
