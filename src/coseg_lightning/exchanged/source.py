"""The files of an export: a folder, a zip archive, or one file. Nothing is unpacked to disk."""

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.tasks import reading

MOST_FILES = 200_000
MOST_BYTES = 2**28  # of one file; parsed JSON takes several times as much memory


class Source:
    """The files of an export. Zip archives in a folder are read too.

    Args:
        path: A folder, a zip archive, or a file.

    Attributes:
        names: The path of each file below the source, in order.

    Raises:
        InputError: If there is no such file or folder, or an archive cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._readers: dict[str, Callable[[], bytes]] = {}
        if self.path.is_dir():
            for file in sorted(self.path.rglob("*")):
                name = file.relative_to(self.path)
                if file.is_file() and not any(part.startswith(".") for part in name.parts):
                    self._add(file, name.as_posix())
        elif self.path.is_file():
            self._add(self.path, self.path.name)
        else:
            raise InputError(
                f"source={path}: there is no such file or folder; give the export of your "
                "labelling tool."
            )
        self.names = list(self._readers)

    def _add(self, file: Path, name: str) -> None:
        if file.suffix.lower() != ".zip":
            self._set(name, partial(_read_file, file))
            return
        with reading(file, "a zip archive"):
            try:
                archive = zipfile.ZipFile(file)
                members = archive.infolist()
            except zipfile.BadZipFile as error:
                raise InputError(f"{file} is not a zip archive; export it again.") from error
        prefix = "" if file == self.path else f"{name}/"
        for member in members:
            hidden = any(part.startswith((".", "__MACOSX")) for part in _parts(member.filename))
            if not member.is_dir() and not hidden:
                self._set(
                    prefix + "/".join(_parts(member.filename)),
                    partial(_read_member, file, archive, member),
                )

    def _set(self, name: str, reader: Callable[[], bytes]) -> None:
        self._readers[name] = reader
        if len(self._readers) > MOST_FILES:
            raise InputError(
                f"{self.path} holds more than {MOST_FILES} files; give a folder that holds only "
                "the export."
            )

    def of_type(self, *endings: str) -> list[str]:
        """The names of all files with one of the given suffixes, such as `.xml`."""
        return [name for name in self.names if name.lower().endswith(endings)]

    def place(self, name: str) -> str:
        """Return a file's name for messages."""
        return str(self.path if self.path.name == name else self.path / name)

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            InputError: If it is too large or damaged.
        """
        return self._readers[name]()

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
            InputError: If it is not valid JSON.
        """
        with reading(self.place(name), "JSON"):
            text = self.read(name).decode("utf-8-sig")
            # NaN, which pandas writes, stands for what is missing; a corner of it is refused.
            return json.loads(text, parse_constant=float)


def _parts(name: str) -> list[str]:
    """The parts of a path, without those that lead upwards or to a disk's root."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > MOST_BYTES:
        raise _too_large(path)
    return path.read_bytes()


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MOST_BYTES:
        raise _too_large(path / member.filename)
    with reading(path / member.filename, "a member of a zip archive"):
        try:
            with archive.open(member) as file:
                content = file.read(MOST_BYTES + 1)
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
            raise InputError(  # for a password, an unknown compression, or a damaged file
                f"{path} cannot be unpacked ({error}); export it again without a password."
            ) from error
    if len(content) > MOST_BYTES:
        raise _too_large(path / member.filename)
    return content


def _too_large(path: Path) -> InputError:
    return InputError(
        f"{path} has more than {MOST_BYTES // 2**20} MiB, which is the limit; export fewer images "
        "at once."
    )
