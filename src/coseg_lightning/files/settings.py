"""Settings as text: what a shell and Hydra's grammar take as they are, such as a folder's name."""

import re
import shlex

NO_TEXT = r"null|true|false|[-+]?(nan|inf|\d[\d_.e+-]*)"  # in Hydra's grammar


def quoted(text: str) -> str:
    """Quote any text as a value in Hydra's grammar."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", text)
    text = text.replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"


def as_value(text: str) -> str:
    """Write a text as a value in Hydra's grammar, quoted if it needs to be.

    Without quotes, Hydra takes no letters but English ones, no equals sign, makes a choice of what
    has a comma, and something else of names such as `null`.
    """
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII) and not re.fullmatch(
        NO_TEXT, text, re.IGNORECASE
    ):
        return text
    return quoted(text) if re.search(r'["\\$]', text) else f'"{text}"'


def setting(key: str, value: object) -> str:
    """Write a setting for a shell, with the quotes that its value needs."""
    return shlex.quote(f"{key}={as_value(str(value))}")
