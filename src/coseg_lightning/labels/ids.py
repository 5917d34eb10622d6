"""Sample ids. Each id is a plain file name, and different ids name different files on any disk."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError

# Most disks allow file names of 255 bytes, and the name of a temporary file is longer than an id.
MAX_ID_BYTES = 220


def label_path(folder: Path, sample_id: str) -> Path:
    """Name the file of a sample's mask in a label layer.

    Args:
        folder: The layer's folder.
        sample_id: The sample.

    Returns:
        The path.

    Raises:
        InputError: If the id is not a plain file name. It might lead out of the folder.
    """
    check_id(sample_id)
    return folder / f"{sample_id}.png"


def check_id(sample_id: str) -> None:
    """Raise an `InputError` unless an id can be a file name."""
    if sample_id in ("", ".", "..") or any(sign in sample_id for sign in "/\\\0"):
        raise InputError(
            f"The sample id {sample_id!r} cannot be a file name; use an id without slashes and "
            "backslashes that is not only dots."
        )
    try:
        length = len(sample_id.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"The sample id {sample_id!r} is not valid UTF-8; rename it.") from error
    if length > MAX_ID_BYTES:
        raise InputError(
            f"The sample id {sample_id[:40]}... is {length} bytes long, which is too long for a "
            f"file name; use ids of at most {MAX_ID_BYTES}."
        )


def check_ids(ids: Iterable[str]) -> None:
    """Raise an `InputError` unless all ids can be names of different files."""
    FileNames().add(ids)


class FileNames:
    """A growing set of ids that are used as file names."""

    def __init__(self) -> None:
        self._id_by_name: dict[str, str] = {}

    def add(self, ids: Iterable[str]) -> None:
        """Add ids. Raise an `InputError` unless all of the set can be names of different files."""
        for sample_id in ids:
            check_id(sample_id)
            other = self._id_by_name.setdefault(portable_name(sample_id), sample_id)
            if other != sample_id:
                raise InputError(same_file_message(other, sample_id))


def portable_name(sample_id: str) -> str:
    """Normalise an id. Ids with equal results may name one file on some disks.

    Such disks ignore letter case or the Unicode form of a name.
    """
    composed = unicodedata.normalize("NFC", sample_id)
    return unicodedata.normalize("NFC", composed.casefold())


def same_file_message(one: str, other: str) -> str:
    """Return the message that two ids would name one file."""
    return (
        f"The sample ids {one} and {other} would be the same file on disks that ignore letter "
        "case; rename one."
    )


def sample_name(sample_id: Any) -> str:
    """Turn a sample's id into text. A batch may hold it as a number in a tensor."""
    return str(sample_id.item() if hasattr(sample_id, "item") else sample_id)


def check_unique(ids: Sequence[str]) -> None:
    """Raise an `InputError` if two samples have the same id, since they would share a mask."""
    sample_id, times = Counter(ids).most_common(1)[0] if ids else ("", 0)
    if times > 1:
        raise InputError(
            f"{times} samples have the id {sample_id!r}, but ids must be unique; give unique ids, "
            "or none. To draw some samples more often, use a WeightedRandomSampler."
        )
