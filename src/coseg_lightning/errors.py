"""Exceptions for mistakes that the user can correct."""

import difflib
from collections.abc import Sequence


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
