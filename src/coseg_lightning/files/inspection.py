"""Looking at all files before training, and telling all that is wrong with them at once."""

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tqdm import tqdm

from coseg_lightning.errors import BadSamplesError, InputError
from coseg_lightning.files.atomic import write_text
from coseg_lightning.files.csv import write_table
from coseg_lightning.files.images import check_image

OnBadSample = Literal["error", "skip"]
FileInfo = dict[str, Any]
# Of the processes of a run, whose messages are all the same.
IS_FIRST = getattr(rank_zero_only, "rank", 0) == 0
SHOWN = 5  # problems of a kind that are told one by one

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """What is wrong with some samples, in a sentence.

    Args:
        kind: What is told of together.
        ids: The samples that cannot be used.
        sentence: What was found, what is wanted, what to do.
    """

    kind: str
    ids: tuple[str, ...]
    sentence: str


class Inspection:
    """Collects what is wrong with a dataset, to tell it all together.

    Args:
        place: What the dataset is called in messages, such as its folder.
    """

    def __init__(self, place: str | Path) -> None:
        self.place = place
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def add(self, kind: str, ids: Iterable[str], sentence: str) -> None:
        """Note why samples cannot be used."""
        self.problems.append(Problem(kind, tuple(ids), printable(sentence)))

    def warn(self, kind: str, ids: Iterable[str], sentence: str) -> None:
        """Note what somebody should know of samples that can be used."""
        self.warnings.append(Problem(kind, tuple(ids), printable(sentence)))

    @property
    def bad(self) -> frozenset[str]:
        """The samples that cannot be used."""
        return frozenset(id for problem in self.problems for id in problem.ids)

    def settle(self, *, skip: bool | None = None, table: str | Path | None = None) -> None:
        """Tell what was found.

        Args:
            skip: Whether bad samples are left out; None where that is not on offer.
            table: A CSV file to write all of it to.

        Raises:
            BadSamplesError: If there are bad samples that are not to be left out.
        """
        if table is not None and IS_FIRST:
            self._write(Path(table))
        if IS_FIRST:
            for line in _shown(self.warnings):
                log.warning("%s", line)
        if not self.problems:
            return
        lines = _shown(self.problems)
        if skip:
            if IS_FIRST:
                log.warning("%d samples of %s are left out:", len(self.bad), self.place)
                for line in lines:
                    log.warning("  %s", line)
            return
        way = "" if skip is None else " on_bad_sample=skip leaves out such samples."
        if len(self.problems) == 1:
            raise BadSamplesError(lines[0] + way)
        every = "" if table is None else f" All are in {table}."
        told = f"{len(self.problems)} problems in {self.place}: mend them.{way}{every}"
        raise BadSamplesError("\n  ".join([told, *lines]))

    def _write(self, path: Path) -> None:
        """Write all of it, in the place of what an earlier look at the same data found."""
        rows = [
            {
                "kind": problem.kind,
                "usable": int(problem in self.warnings),
                "ids": "; ".join(map(printable, problem.ids)),
                "problem": problem.sentence,
            }
            for problem in (*self.problems, *self.warnings)
        ]
        if path.exists():
            if not path.read_bytes().startswith(b"kind,usable,ids,problem\n"):
                raise InputError(
                    f"{path} is in the way, and is not overwritten; move it elsewhere."
                )
            path.unlink()
        if rows:
            write_table(path, rows)


def printable(text: str) -> str:
    """Text with backslashes for what is no UTF-8, as file names from another system may be."""
    return text.encode(errors="backslashreplace").decode()


def _shown(problems: Collection[Problem]) -> list[str]:
    """A line each, but of many that are alike only the first ones."""
    count = Counter(problem.kind for problem in problems)
    shown: Counter[str] = Counter()
    lines = []
    for problem in problems:
        shown[problem.kind] += 1
        if shown[problem.kind] <= SHOWN:
            lines.append(problem.sentence)
        elif shown[problem.kind] == count[problem.kind]:
            lines.append(
                f"... and {count[problem.kind] - SHOWN} more of this kind ({problem.kind})."
            )
    return lines


def scan_files(
    files: Collection[Path],
    look: Callable[[Path], FileInfo],
    *,
    kind: str,
    title: str,
    names: Collection[str] = ("size", "digest"),
) -> dict[Path, FileInfo | InputError]:
    """What there is to know of each file, or the error on reading it; in parallel, with a bar.

    FileInfo are kept in the user's cache folder, and of a file whose size and time are as they were
    the file is not read again. Errors are not kept.

    Args:
        files: The files.
        look: Returns plain values by name, or raises an `InputError`.
        kind: What `look` does, which tells apart what is kept.
        title: Of the bar.
        names: Of the values that `look` returns.
    """
    kept = FileInfoCache(files, kind, set(names))
    new = [path for path in files if path not in kept.facts]

    def try_to(path: Path) -> FileInfo | InputError:
        try:
            return look(path)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = tqdm(
            pool.map(try_to, new),
            desc=title,
            total=len(new),
            delay=1,
            leave=False,
            disable=not IS_FIRST,
        )
        found: dict[Path, FileInfo | InputError] = dict(zip(new, bar, strict=True))
    if new:
        kept.add({path: facts for path, facts in found.items() if isinstance(facts, dict)})
    return {path: kept.facts.get(path) or found[path] for path in files}


class FileInfoCache:
    """FileInfo of files, in a file of the user's cache folder; without one nothing is kept."""

    def __init__(self, files: Collection[Path], kind: str, names: set[str]) -> None:
        folders = sorted({str(path.parent.absolute()) for path in files})
        text = "\0".join([kind, *sorted(names), *folders])
        name = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        self._path = user_cache_path("coseg-lightning") / "files" / f"{name}.json"
        self._files: dict[str, list[Any]] = {}
        self._stamps = {path: _stamp(path) for path in files}
        try:
            self._files = dict(json.loads(self._path.read_text(encoding="utf-8")))
            kept = {path: self._files.get(str(path.absolute())) for path in files}
            self.facts: dict[Path, FileInfo] = {
                path: dict(of_path[1])
                for path, of_path in kept.items()
                if of_path is not None
                and of_path[0] == self._stamps[path]
                and of_path[1].keys() == names
            }
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ):  # none yet, or not ours
            self._files, self.facts = {}, {}

    def add(self, facts: dict[Path, FileInfo]) -> None:
        self.facts |= facts
        self._files |= {
            str(path.absolute()): [self._stamps[path], of_path]
            for path, of_path in self.facts.items()
            if self._stamps[path] is not None
        }
        try:
            write_text(self._path, json.dumps(self._files))
        except OSError as error:
            log.debug("What was found in the files is not kept: %s", error)


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def image_info(path: Path) -> FileInfo:
    """Height and width of an image, and a digest of its pixels; none if they are all alike."""
    image = check_image(path)
    blank = bool((image == image[:1, :1]).all())
    return {"size": list(image.shape[:2]), "digest": None if blank else pixel_digest(image)}


def pixel_digest(pixels: NDArray[Any]) -> str:
    """The same for equal numbers, whatever file holds them."""
    if np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels.astype(np.int32)
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def outside(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a file is a link out of all of these folders."""
    if not path.is_symlink():
        return False
    target = Path(os.path.realpath(path))  # which, unlike resolve, survives a link to itself
    return not any(target.is_relative_to(os.path.realpath(folder)) for folder in folders)


def alike(keys: dict[str, Any]) -> list[list[str]]:
    """The groups of two or more ids that have the same key."""
    groups: defaultdict[Any, list[str]] = defaultdict(list)
    for id, key in keys.items():
        if key is not None:
            groups[key].append(id)
    return [sorted(ids) for ids in groups.values() if len(ids) > 1]
