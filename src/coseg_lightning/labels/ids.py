"""Sample ids: one plain file name each, on any disk."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError

LONGEST_ID = 220  # bytes: most disks allow names of 255, and a temporary file's is longer


def label_path(folder: Path, id: str) -> Path:
    """Where a sample's mask lies.

    Raises:
        InputError: If the id is no plain file name, and might lead out of the folder.
    """
    if id in ("", ".", "..") or any(sign in id for sign in "/\\\0"):
        raise InputError(
            f"The sample id {id!r} cannot be a file name; use ids without slashes, backslashes and "
            "dots alone."
        )
    try:
        length = len(id.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"The sample id {id!r} is no UTF-8, as names from another system may be; rename it."
        ) from error
    if length > LONGEST_ID:
        raise InputError(
            f"The sample id {id[:40]}... is {length} bytes long, too long for a file "
            f"name; use ids of at most {LONGEST_ID}."
        )
    return folder / f"{id}.png"


def check_ids(ids: Iterable[str]) -> None:
    """Raise an `InputError` unless every id can be a file name, and each one of its own."""
    names = FileNames()
    names.add(ids)


class FileNames:
    """The ids that files are named by, as far as they were seen."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def add(self, ids: Iterable[str]) -> None:
        """Raise an `InputError` unless every id can be a file name, and each one of its own."""
        for id in ids:
            label_path(Path(), id)
            other = self._seen.setdefault(on_any_disk(id), id)
            if other != id:
                raise InputError(same_on_some_disks(other, id))


def on_any_disk(id: str) -> str:
    """What ids share that would be one file where letter case or Unicode forms do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", id).casefold())


def same_on_some_disks(one: str, other: str) -> str:
    """That two ids would be one file."""
    return (
        f"The sample ids {one} and {other} would be one file on disks that do not tell letter case "
        "apart; rename one."
    )


def sample_name(id: Any) -> str:
    """A sample's id as text, also where it comes as a number in a tensor."""
    return str(id.item() if hasattr(id, "item") else id)
