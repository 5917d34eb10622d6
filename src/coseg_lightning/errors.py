"""Exceptions for mistakes that the user can correct."""

import difflib
import functools
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InputError(ValueError):
    """Wrong input. The message says what was given, what was wanted and what to do.

    It is a `ValueError`, so callers need not know this class. The app prints its message without
    a traceback.
    """


class BadSamplesError(InputError):
    """Some samples cannot be used. The message lists the problems, one on each line."""


def unknown_name_message(kind: str, name: str, known: Sequence[str]) -> str:
    """Describe the problem that a name does not exist, and suggest a similar one."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}."
    return f"There is no {kind} {name!r}; {hint}"


def renamed_argument(
    before: str, now: str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Let a function still take an argument by its old name.

    Args:
        before: The old name.
        now: The new one.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def call(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
            if before in options:
                warnings.warn(
                    f"{function.__qualname__}({before}=...) is {now}=... now; the old name goes in "
                    "version 0.3.",
                    FutureWarning,
                    stacklevel=2,
                )
                options[now] = options.pop(before)
            return function(*args, **options)

        return call

    return decorate


def renamed(before: str, now: str) -> property:
    """A property that still gives what an attribute is called now.

    Args:
        before: The old name.
        now: The new one, which may be one of an attribute, `selection.exclude`.
    """

    def get(owner: Any) -> Any:
        warnings.warn(
            f"{type(owner).__name__}.{before} is {now} now; the old name goes in version 0.3.",
            FutureWarning,
            stacklevel=2,
        )
        return attrgetter(now)(owner)

    return property(get)
