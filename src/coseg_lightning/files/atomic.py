"""Atomic writes: a file holds either its old or its new content, never half of one."""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from coseg_lightning.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it to `path` unless an error is raised."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name, os.getpid()))
    # An earlier process may have left it, or it may be a link to another place.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str, process: int) -> str:
    """Name a file while it is incomplete. The suffix stays, because it decides the format."""
    return f".{process}.coseg-new.{name}"


def is_temporary(path: Path) -> bool:
    """Whether a process that was killed while writing left this file."""
    return re.match(r"\.\d+\.coseg-new\.", path.name) is not None


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Text that is not valid UTF-8 gets backslash escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def check_free(folder: str | Path) -> None:
    """Raise an `InputError` if the folder to be written already exists."""
    if Path(folder).expanduser().exists():
        raise InputError(f"{folder} exists and is never overwritten; give a new folder.")


def free_path(path: Path) -> Path:
    """Return a path, or if it exists the first of `NAME-2`, `NAME-3` and so on that does not."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def check_place(path: str | Path) -> None:
    """Raise an `InputError` if nothing can be written at a path, without creating anything."""
    path = Path(path).expanduser()
    try:
        place = next(part for part in (path, *path.absolute().parents) if part.exists())
    except OSError as error:  # a name that is too long, or below a closed folder
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another place."
        ) from error
    if not place.is_dir():
        raise InputError(f"{path} cannot be written, since {place} is a file; give another place.")
    if not os.access(place, os.W_OK):
        raise InputError(f"{place} may not be written to; give another place than {path}.")


@contextmanager
def new_folder(folder: str | Path, apart_from: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder. It is renamed when complete, and removed after an error.

    Args:
        folder: The path of the new folder.
        apart_from: Folders that are only read. The new folder must not lie in them.

    Raises:
        InputError: If the folder exists, or lies in one of `apart_from`.
    """
    check_free(folder)
    path = Path(folder).expanduser()
    for other in apart_from:
        if other.resolve() in path.resolve().parents:
            raise InputError(
                f"{folder} lies in {other}, into which nothing is written; give a folder elsewhere."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        unfinished = Path(temporary) / "new"
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(path)
