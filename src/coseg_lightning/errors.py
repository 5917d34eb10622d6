"""Exceptions for mistakes that the user can correct."""


class InputError(ValueError):
    """Wrong input. The message says what was given, what was wanted and what to do.

    It is a `ValueError`, so callers need not know this class. The app prints its message without
    a traceback.
    """


class BadSamplesError(InputError):
    """Some samples cannot be used. The message lists the problems, one on each line."""
