"""Files that are either the old or the new, never half of one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; move it to `path` if nothing was raised."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name, os.getpid()))
    temporary.unlink(missing_ok=True)  # of an earlier process, or a link to somewhere else
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str, process: int) -> str:
    """What a file is called until it is whole; it keeps the suffix, hence the format."""
    return f".{process}.coseg-new.{name}"


def is_temporary(path: Path) -> bool:
    """Whether a file was left by a process that was killed while it wrote."""
    return re.match(r"\.\d+\.coseg-new\.", path.name) is not None


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; names that are no UTF-8 with backslashes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
