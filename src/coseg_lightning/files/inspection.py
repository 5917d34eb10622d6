"""Inspection of a dataset's files before training. All problems are reported together."""

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from platformdirs import user_cache_path

from coseg_lightning.errors import BadSamplesError, InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.csv import write_table
from coseg_lightning.files.images import ImageRules, Picture, read_stored
from coseg_lightning.files.progress import is_first_process, progress
from coseg_lightning.files.tiff import tiff_place
from coseg_lightning.files.volumes import file_of, volume_place
from coseg_lightning.files.windows import ImageWindows, has_tiff_windows, parts_of_rows

OnBadSample = Literal["error", "skip"]
FileInfo = dict[str, Any]
PICTURE = "doubtful_masks.png"  # shows doubtful masks; it is saved beside the table
LEAST_OUTLIERS, LEAST_LEVELS = 0.005, 16  # share of pixels; different values of the others
MAX_LISTED = 5  # further problems of the same kind are only counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One problem of some samples.

    Args:
        kind: A short name. Problems of one kind are counted together.
        ids: The affected samples.
        sentence: A message that says what was found, what is wanted and what to do.
    """

    kind: str
    ids: tuple[str, ...]
    sentence: str


class Inspection:
    """Collects the problems of a dataset, and reports them together.

    Args:
        dataset: The dataset's name in messages, such as its folder.
    """

    def __init__(self, dataset: str | Path) -> None:
        self.dataset = dataset
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._shown: list[Path] = []

    def add(self, kind: str, ids: Iterable[str], sentence: str) -> None:
        """Record a problem that makes samples unusable."""
        self.problems.append(Problem(kind, tuple(ids), printable(sentence)))

    def warn(self, kind: str, ids: Iterable[str], sentence: str) -> None:
        """Record a warning about usable samples."""
        self.warnings.append(Problem(kind, tuple(ids), printable(sentence)))

    def show(self, masks: Iterable[Path]) -> None:
        """Draw these masks in an image beside the table when problems are reported."""
        self._shown += masks

    @property
    def unusable_ids(self) -> frozenset[str]:
        """The unusable samples, and unusable single masks of samples with several."""
        return frozenset(sample_id for problem in self.problems for sample_id in problem.ids)

    def report(self, *, skip: bool | None = None, table: str | Path | None = None) -> None:
        """Log all warnings, then raise an error for the problems, or log them too.

        Args:
            skip: Whether unusable samples are skipped. None means that the user has no choice, so
                no message mentions it.
            table: A CSV file for all problems and warnings.

        Raises:
            BadSamplesError: If there are unusable samples that are not skipped.
        """
        if is_first_process():
            if table is not None:
                self._write_table(Path(table))
                if self._shown and self.problems and not skip:
                    self._draw(Path(table).with_name(PICTURE))
            for line in _summary_lines(self.warnings):
                log.warning("%s", line)
        if self.problems and skip:
            self._log_skipped()
        elif self.problems:
            raise BadSamplesError(self._error_message(skip, table))

    def _log_skipped(self) -> None:
        if is_first_process():
            log.warning("%s of %s are left out:", self._unusable(), self.dataset)
            for line in _summary_lines(self.problems):
                log.warning("  %s", line)

    def _unusable(self) -> str:
        """Count the unusable samples, and the unusable single masks of samples with several."""
        if not self.unusable_ids:
            return "Parts of tables"
        masks = sum("/" in sample_id for sample_id in self.unusable_ids)
        samples = f"{len(self.unusable_ids) - masks} samples"
        return f"{samples} and {masks} masks of images with several masks" if masks else samples

    def _error_message(self, skip: bool | None, table: str | Path | None) -> str:
        lines = _summary_lines(self.problems)
        if self._shown and table is not None:
            lines.append(f"Two of these masks are drawn in {Path(table).with_name(PICTURE)}.")
        what = "leave these samples out" if self.unusable_ids else "pass over them"
        hint = "" if skip is None else f" Or set on_bad_sample=skip to {what}."
        if len(self.problems) == 1:
            return " ".join(lines) + hint
        table_hint = "" if table is None else f" All are in {table}."
        count = len(self.problems)
        title = f"{count} problems in {self.dataset}: correct them.{hint}{table_hint}"
        return "\n  ".join([title, *lines])

    def _draw(self, path: Path) -> None:
        """Draw some masks side by side, with their values stretched from black to white."""
        panels = []
        for mask in self._shown:
            stored = read_stored(mask)
            shown = stored.values if stored.colours is None else stored.colours[stored.values]
            values = np.nan_to_num(np.atleast_3d(shown).astype(np.float32).mean(axis=2))
            values = 255 * (values - values.min()) / max(float(np.ptp(values)), 1.0)
            panels.append(Image.fromarray(values.astype(np.uint8)).resize((256, 256), 0))
        picture = Image.new("L", (260 * len(panels) - 4, 256), 128)
        for number, panel in enumerate(panels):
            picture.paste(panel, (260 * number, 0))
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG")

    def _write_table(self, path: Path) -> None:
        """Write all problems and warnings. An earlier inspection's table is replaced."""
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
                    f"{path} exists, but is not a table of problems, so it is not overwritten; "
                    "move it elsewhere."
                )
            path.unlink()
        if rows:
            write_table(path, rows)


def printable(text: str) -> str:
    """Escape invalid UTF-8 with backslashes. File names from another system may contain it."""
    return text.encode(errors="backslashreplace").decode()


def _summary_lines(problems: Collection[Problem]) -> list[str]:
    """Return one line per problem, but only for the first few of each kind."""
    count = Counter(problem.kind for problem in problems)
    listed: Counter[str] = Counter()
    lines = []
    for problem in problems:
        listed[problem.kind] += 1
        if listed[problem.kind] <= MAX_LISTED:
            lines.append(problem.sentence)
        elif listed[problem.kind] == count[problem.kind]:
            more = count[problem.kind] - MAX_LISTED
            lines.append(f"... and {more} more of this kind ({problem.kind}).")
    return lines


def scan_files(
    files: Collection[Path],
    read_info: Callable[[Path], FileInfo],
    *,
    kind: str,
    title: str,
    names: Collection[str] = ("size", "digest"),
) -> dict[Path, FileInfo | InputError]:
    """Read the information on each file, in parallel and with a progress bar.

    The information is cached in the user's cache folder. A file is not read again while its size
    and modification time are unchanged. Errors are not cached.

    Args:
        files: The files.
        read_info: Reads one file and returns plain values by name, or raises an `InputError`.
        kind: The name of `read_info` in the cache. Each kind has its own cache file.
        title: The progress bar's title.
        names: The names of the values that `read_info` returns.

    Returns:
        The information on each file, or the error raised by reading it.
    """
    cache = FileInfoCache(files, kind, set(names))
    new_files = [path for path in files if path not in cache.infos]

    def info_or_error(path: Path) -> FileInfo | InputError:
        try:
            return read_info(path)
        except InputError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bar = progress(pool.map(info_or_error, new_files), title, total=len(new_files))
        results: dict[Path, FileInfo | InputError] = dict(zip(new_files, bar, strict=True))
    if new_files:
        cache.add({path: info for path, info in results.items() if isinstance(info, dict)})
    return {path: cache.infos.get(path) or results[path] for path in files}


class FileInfoCache:
    """The information on files, cached in a JSON file of the user's cache folder.

    The JSON file maps each path to its stamp (size and modification time) and its information. If
    the file cannot be written, nothing is cached.

    Args:
        files: The files.
        kind: The kind of information.
        names: The names of its values. A file whose entry has other names is read again.

    Attributes:
        infos: The information on files that have not changed since it was cached.
    """

    def __init__(self, files: Collection[Path], kind: str, names: set[str]) -> None:
        folders = sorted({str(path.parent.absolute()) for path in files})
        key = "\0".join([kind, *sorted(names), *folders])
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        self._path = user_cache_path("coseg-lightning") / "files" / f"{digest}.json"
        self._stamps = {path: _stamp(path) for path in files}
        self._entries: dict[str, list[Any]] = {}
        self.infos: dict[Path, FileInfo] = {}
        # The cache file may be missing, damaged, or of another format.
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
            self._load(names)

    def _load(self, names: set[str]) -> None:
        entries: dict[str, list[Any]] = dict(json.loads(self._path.read_text(encoding="utf-8")))
        infos = {}
        for path, stamp in self._stamps.items():
            entry = entries.get(str(path.absolute()))
            if entry is not None and entry[0] == stamp and entry[1].keys() == names:
                infos[path] = dict(entry[1])
        self._entries, self.infos = entries, infos

    def add(self, infos: dict[Path, FileInfo]) -> None:
        """Add the information on more files, and write the cache file."""
        self.infos |= infos
        self._entries |= {
            str(path.absolute()): [self._stamps[path], info]
            for path, info in self.infos.items()
            if self._stamps[path] is not None
        }
        try:
            write_text(self._path, json.dumps(self._entries))
        except OSError as error:
            log.debug("Facts about the files could not be cached: %s", error)


def _stamp(path: Path) -> list[int] | None:
    try:
        status = file_of(path).stat()
    except OSError:
        return None
    # Archives give other files the same time, and some formats have the same size always.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


IMAGE_INFO = (
    *("size", "digest", "channels", "missing", "spread", "outlier"),
    *("turned", "transparent", "place"),
)


TILE_INFO = (*IMAGE_INFO, "scale")


def tiled_image_info(path: Path, rules: ImageRules) -> FileInfo:
    """Read the information on an image that is cut into tiles.

    Args:
        path: The file.
        rules: Which bands of the file are read, and how.

    Returns:
        The values of `image_info`, and the `scale` of the image's values, see `Scale`.
    """
    if not has_tiff_windows(path):
        image, picture = rules.check(path)
        exact = _some_pixels([(0, image.reshape(*image.shape[:2], -1))], image.shape)
        return {**_info_of(path, image, picture), "scale": scale_of(exact.astype(np.float32))}
    windows = ImageWindows(path, rules, Path())
    height, width = windows.size
    digest, blank, missing = PixelDigest((height, width), np.float64), True, 0
    first: NDArray[Any] | None = None
    samples: list[NDArray[Any]] = []
    for top, rows in parts_of_rows(windows.size):
        values = windows.read(top, 0, rows, width).reshape(rows, width, -1)
        first = values[:1, :1].copy() if first is None else first
        blank = blank and bool((values == first).all())
        if values.dtype.kind == "f":
            missing += int(np.isnan(values).all(axis=2).sum())
        digest.add(values.reshape(rows, -1))
        samples.append(_some_pixels([(top, values)], (height, width)))
    assert first is not None
    exact = np.concatenate(samples)
    some = exact.astype(np.float32)
    return {
        "size": [height, width],
        "digest": None if blank else digest.value,
        "channels": first.shape[2],
        "missing": missing / (height * width),
        "spread": _spread_of(some),
        "outlier": None if first.dtype == np.uint8 else _outlier_of(exact),
        "turned": False,
        "transparent": windows.is_transparent,
        "place": place_of(path),
        "scale": scale_of(some),
    }


def _some_pixels(
    parts: Iterable[tuple[int, NDArray[Any]]], shape: Sequence[int]
) -> NDArray[np.float64]:
    """Sample about a million pixels of an image on a grid, `(n, bands)`, from parts of its rows."""
    step = max(1, int((shape[0] * shape[1] / 2**20) ** 0.5))
    some = [
        part[-top % step :: step, ::step].reshape(-1, part.shape[2]).astype(np.float64)
        for top, part in parts
    ]
    return np.concatenate(some)


def span_of(low: Any, high: Any) -> Any:
    """Return the width of ranges of values, by which these are divided.

    It is never 0. Ranges may be as small as those of physical units, such as 1e-9 m2/s, unless
    they are rounding errors of larger values.
    """
    rounding = 1e-5 * np.maximum(np.abs(low), np.abs(high))
    return np.maximum(np.subtract(high, low), np.clip(rounding, 1e-30, 1e-6))


def scale_of(some: NDArray[np.float32]) -> dict[str, Any]:
    """Compute the ranges of an image's values, by which all of its tiles are rescaled.

    Args:
        some: `(n, bands)`, a sample of its pixels, NaN where they are missing.

    Returns:
        Two scales: `all` with one range for all bands, and `bands` with a range for each. A scale
        has each band's `low` and `high` (the 0.5 and 99.5 % quantiles) and rescaled `mean`. It also
        has `centre` and `deviation`: mean and standard deviation of all rescaled values.
    """
    some = some[np.isfinite(some).all(axis=1)]
    if not len(some):
        some = np.zeros((1, some.shape[1]), np.float32)
    low, high = np.percentile(some, (0.5, 99.5))
    lows, highs = np.percentile(some, (0.5, 99.5), axis=0)
    count = some.shape[1]
    scales = {}
    for name, ends in (("all", ([low] * count, [high] * count)), ("bands", (lows, highs))):
        rescaled = ((some - ends[0]) / span_of(*ends)).clip(0, 1)
        scales[name] = {
            "low": [float(value) for value in ends[0]],
            "high": [float(value) for value in ends[1]],
            "mean": [float(value) for value in rescaled.mean(axis=0)],
            "centre": float(rescaled.mean()),
            "deviation": float(rescaled.std()),
        }
    return scales


def image_info(path: Path, rules: ImageRules) -> FileInfo:
    """Read the information on an image that is needed before training.

    Args:
        path: The file.
        rules: Which bands of the file are read, and how.

    Returns:
        `size`, height and width; `digest` of the pixels, None if all are equal; the number of
        `channels`; the share of `missing` pixels; the `spread` of each band, as a share of the
        range of all bands; the `outlier`, a value far from all others, and its share; whether its
        header's rotation was applied (`turned`); whether it is
        partly `transparent`; its `place`, see `place_of`.
    """
    return _info_of(path, *rules.check(path))


def _info_of(path: Path, image: NDArray[Any], picture: Picture) -> FileInfo:
    blank = bool((image == image[:1, :1]).all())
    bands = image.reshape(*image.shape[:2], -1)
    gaps = np.isnan(bands).all(axis=2) if bands.dtype.kind == "f" else np.zeros(1)
    step = max(1, int((bands.shape[0] * bands.shape[1] / 65536) ** 0.5))
    exact = bands[::step, ::step].reshape(-1, bands.shape[2]).astype(np.float64)
    return {
        "size": list(image.shape[:2]),
        "digest": None if blank else pixel_digest(image),
        "channels": bands.shape[2],
        "missing": float(gaps.mean()),
        "spread": _spread_of(exact.astype(np.float32)),
        "outlier": None if image.dtype == np.uint8 else _outlier_of(exact),
        "turned": picture.turned,
        "transparent": picture.transparent,
        "place": place_of(path),
    }


def place_of(path: Path) -> list[float] | None:
    """Return the position of a file, on the earth or in a scanner; None if it names none."""
    return volume_place(path) or tiff_place(file_of(path))


def _outlier_of(some: NDArray[np.float64]) -> list[float] | None:
    """Return the value that lies far from all others, which often means missing, and its share.

    Args:
        some: `(n, bands)`, a sample of an image's pixels.

    Returns:
        The lowest or highest value, if at least 0.5 % of the pixels have it in all bands and the
        gap to the others is more than half of the others' range; else None.
    """
    some = some[np.isfinite(some).all(axis=1)]
    for value in (some.min(initial=np.inf), some.max(initial=-np.inf)):
        alone = (some == value).all(axis=1)
        others = some[~alone]
        if not len(others) or alone.mean() < LEAST_OUTLIERS:
            continue
        low, high = float(others.min()), float(others.max())
        gap = max(low - float(value), float(value) - high)
        if gap > (high - low) / 2 and len(np.unique(others)) >= LEAST_LEVELS:
            return [float(value), float(alone.mean())]
    return None


def _spread_of(some: NDArray[np.float32]) -> list[float]:
    """Return each band's range without 1 % of its values, as a share of the range of all bands."""
    some = some[np.isfinite(some).all(axis=1)]
    if not len(some):
        return [0.0] * some.shape[1]
    low, high = np.percentile(some, (0.5, 99.5))
    lows, highs = np.array([[low], [high]])
    if some.shape[1] > 1:
        lows, highs = np.percentile(some, (0.5, 99.5), axis=0)
    return [round(float(s), 4) for s in (highs - lows) / span_of(low, high)]


def pixel_digest(pixels: NDArray[Any]) -> str:
    """Digest pixel values. Equal values have equal digests in every file format."""
    digest = PixelDigest(pixels.shape, pixels.dtype)
    digest.add(pixels)
    return digest.value


class PixelDigest:
    """Digests pixel values in parts, in the order of the rows.

    Args:
        shape: The shape of the whole array.
        dtype: Its type. All integer types give the same digest.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.dtype = np.dtype(np.int32) if np.issubdtype(dtype, np.integer) else np.dtype(dtype)
        start = f"{tuple(shape)} {self.dtype}"
        self._digest = hashlib.blake2b(start.encode(), digest_size=16)

    def add(self, rows: NDArray[Any]) -> None:
        """Add the next rows."""
        self._digest.update(np.ascontiguousarray(rows.astype(self.dtype, copy=False)).data)

    @property
    def value(self) -> str:
        """The digest."""
        return self._digest.hexdigest()


def links_outside(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a file is a symbolic link to a target outside all of these folders."""
    if not path.is_symlink():
        return False
    target = Path(os.path.realpath(path))  # Path.resolve would fail on a link to itself
    return not any(target.is_relative_to(os.path.realpath(folder)) for folder in folders)


def groups_of_equal(keys: dict[str, Any]) -> list[list[str]]:
    """Group the ids that share a key. Groups of one, and ids whose key is None, are dropped."""
    groups: defaultdict[Any, list[str]] = defaultdict(list)
    for sample_id, key in keys.items():
        if key is not None:
            groups[key].append(sample_id)
    return [sorted(ids) for ids in groups.values() if len(ids) > 1]
