"""The exceptions for what a user can mend."""


class InputError(ValueError):
    """Wrong input: says in one sentence what was given, what was wanted and what to do.

    A `ValueError`, so that callers need not know this class; the app prints its message
    without a traceback.
    """


class BadSamplesError(InputError):
    """Samples that cannot be used: all of them, a line each."""
