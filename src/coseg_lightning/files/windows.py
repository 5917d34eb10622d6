"""Windows of large images and masks, which are read from disk in pieces."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tifffile import PHOTOMETRIC

from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.images import (
    ImageRules,
    Picture,
    bands_last,
    decoding,
    shown_bands,
    start_of,
)
from coseg_lightning.files.tiff import (
    BAND_AXES,
    JPEG,
    SAMPLES,
    check_colours,
    inverted,
    is_inverted,
    is_tiff,
    nodata_of,
    only_series,
    opened,
    orientation_of,
)
from coseg_lightning.files.volumes import file_of, is_volume

MOST_PIXELS = 2**33  # most pixels of a file that is read by windows; more are a mistake
PIECE = 2**27  # most bytes of a decoded strip or tile of a TIFF that is read by windows
KEPT = 2**26  # bytes of decoded pieces of all files that a process keeps in memory
ROWS = 2**22  # pixels that are read at a time when a whole file is read in parts


class Windows(Protocol):
    """Values of a file that can be read window by window."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and bands of the whole image."""

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, `(height, width, bands)`."""


class ArrayWindows:
    """Windows of a `.npy` file, which is mapped into memory.

    Args:
        path: The file, an array of `(H, W)`, `(H, W, C)` or `(C, H, W)`.
        is_copy: Whether it is a decoded copy, whose bands come last.
    """

    def __init__(self, path: Path, *, is_copy: bool = False) -> None:
        self.path = path
        self._is_copy = is_copy
        self._array: NDArray[Any] | None = None
        height, width, *bands = self._mapped().shape
        self.shape = (height, width, bands[0] if bands else 1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # another process maps the file itself

    def _mapped(self) -> NDArray[Any]:
        if self._array is None:
            with decoding(self.path):
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
                self._array = array if self._is_copy else bands_last(array, self.path)
        return self._array

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, `(height, width, bands)`."""
        window = np.array(self._mapped()[top : top + height, left : left + width])
        if window.dtype == bool:
            window = window.astype(np.uint8)
        return window.reshape(*window.shape[:2], -1)


class PieceCache:
    """A cache of decoded pieces of files, which keeps those that were used last.

    Args:
        most: The most bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.forget()

    def forget(self) -> None:
        """Drop all pieces."""
        self._bytes = 0
        self._pieces: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, ...]) -> NDArray[Any] | None:
        """Return a piece, or None if it is not kept."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
            return self._pieces.get(key)

    def add(self, key: tuple[int, ...], piece: NDArray[Any]) -> None:
        """Keep a piece, and drop the least recently used ones if there are too many."""
        with self._lock:
            if key not in self._pieces:
                self._pieces[key] = piece
                self._bytes += piece.nbytes
            while self._bytes > self._most:
                self._bytes -= self._pieces.popitem(last=False)[1].nbytes


_kept = PieceCache(KEPT)
_numbers = count(1)
if hasattr(os, "register_at_fork"):  # another thread may hold the lock during the fork
    os.register_at_fork(after_in_child=_kept.forget)


class TiffWindows:
    """Windows of a TIFF file. Only the strips or tiles in a window are decoded.

    Args:
        path: A file for which `has_tiff_windows` is true.
        of_mask: Whether it is a mask, see `is_inverted`.

    Attributes:
        alpha: Whether the last band is transparency.
        is_jpeg: Whether JPEG compression has changed values.
        nodata: The value of missing pixels according to the header.
    """

    def __init__(self, path: Path, *, of_mask: bool = False) -> None:
        self.path = path
        self._of_mask = of_mask
        with opened(path) as file:
            series = only_series(path, file)
            page = series.keyframe
            bands = len(series.pages) if len(series.pages) > 1 else page.samplesperpixel
            self.shape = (page.imagelength, page.imagewidth, bands)
            self.alpha = _has_alpha(page) and bands > 1
            self.is_jpeg = page.compression in JPEG
            self.nodata = nodata_of(page)
            self.dtype = np.dtype(page.dtype).newbyteorder("=")
        self._begin()

    def _begin(self) -> None:
        self._pages: list[Any] = []
        self._number = next(_numbers)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        others = ("_pages", "_number", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in others}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Read a window, `(height, width, bands)`."""
        with self._lock:
            if not self._pages:
                self._open()
            result = np.zeros((height, width, self.shape[2]), self.dtype)
            for number, page in enumerate(self._pages):
                several = len(self._pages) > 1
                into = result[..., number : number + 1] if several else result
                self._read_page(number, page, top, left, into)
            page = self._pages[0]
        if is_inverted(page, of_mask=self._of_mask):
            result = inverted(result, page.bitspersample)
        return result

    def _open(self) -> None:
        with opened(self.path) as file:
            pages = [page.aspage() for page in only_series(self.path, file).pages]
            for page in pages:
                page.decode  # noqa: B018  prepared while the file is open
            self._pages = pages

    def _read_page(self, number: int, page: Any, top: int, left: int, into: NDArray[Any]) -> None:
        """Copy the pieces of a page that overlap a window into the window."""
        rows, columns = _piece_size(page)
        down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
        bottom, right = top + into.shape[0], left + into.shape[1]
        planes = page.samplesperpixel if int(page.planarconfig) == 2 else 1
        for plane in range(planes):
            for row in range(top // rows, -(-bottom // rows)):
                for column in range(left // columns, -(-right // columns)):
                    piece = self._piece(number, page, (plane * down + row) * across + column)
                    y, x = row * rows, column * columns
                    y0, x0 = max(top, y), max(left, x)
                    y1, x1 = min(bottom, y + rows), min(right, x + columns)
                    place = into[y0 - top : y1 - top, x0 - left : x1 - left]
                    part = piece[y0 - y : y1 - y, x0 - x : x1 - x]
                    if planes > 1:
                        place[..., plane] = part[..., 0]
                    else:
                        place[...] = part

    def _piece(self, number: int, page: Any, index: int) -> NDArray[Any]:
        """Return a decoded strip or tile, `(rows, columns, samples)`."""
        key = (self._number, number, index)
        kept = _kept.get(key)
        if kept is not None:
            return kept
        rows, columns = _piece_size(page)
        with decoding(self.path):
            piece = self._plain_rows(page, index) if _is_plain(page) else self._decoded(page, index)
        if piece is None:  # a sparse file omits it
            piece = np.full((rows, columns, 1), page.nodata, self.dtype)
        _kept.add(key, piece)
        return piece

    def _plain_rows(self, page: Any, index: int) -> NDArray[Any]:
        """Read some rows of a page that is stored in one piece, without compression."""
        rows, columns = _piece_size(page)
        planes = page.samplesperpixel if int(page.planarconfig) == 2 else 1
        samples = page.samplesperpixel // planes
        plane, number = divmod(index, -(-page.imagelength // rows))
        kind = np.dtype(page.parent.byteorder + page.dtype.char)
        first = plane * page.imagelength + number * rows
        count = min(rows, page.imagelength - number * rows)
        offset = page.dataoffsets[0] + first * columns * samples * kind.itemsize
        with self.path.open("rb") as file:
            file.seek(offset)
            values = np.fromfile(file, kind, count * columns * samples)
        return values.reshape(count, columns, samples).astype(self.dtype)

    def _decoded(self, page: Any, index: int) -> NDArray[Any] | None:
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(count)
        if len(data) < count:
            raise ValueError("the file ends too early")
        decoded, _, _ = page.decode(data, index, jpegtables=page.jpegtables)
        return None if decoded is None else np.asarray(decoded[0])


def _has_alpha(page: Any) -> bool:
    return bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)


def _is_plain(page: Any) -> bool:
    """Whether the values are stored contiguously, row by row."""
    return bool(page.is_contiguous) and not page.is_tiled and page.predictor == 1


def _piece_size(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    if _is_plain(page):  # a piece may have any number of rows
        row = page.imagewidth * page.samplesperpixel * page.dtype.itemsize
        return max(1, min(page.imagelength, 2**20 // row)), page.imagewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def has_tiff_windows(path: Path) -> bool:
    """Whether a file is a TIFF whose windows can be read without decoding all of it.

    Raises:
        InputError: If it holds several images, or colours that are not RGB.
    """
    with decoding(path):
        if is_volume(file_of(path)) or not is_tiff(start_of(path)):
            return False
        with opened(path) as file:
            series = only_series(path, file)
            page = series.keyframe
            check_colours(path, page)
            axes = {a: n for a, n in zip(series.axes, series.shape, strict=True) if n > 1}
            others = [axis for axis in axes if axis not in "YX"]
            if others and (len(others) > 1 or others[0] not in SAMPLES + BAND_AXES):
                return False
            if page.photometric == PHOTOMETRIC.PALETTE or orientation_of(page) != 1:
                return False
            if page.bitspersample not in (8, 16, 32, 64):
                return False
            if len(series.pages) > 1 and page.samplesperpixel > 1:
                return False
            rows, columns = _piece_size(page)
            piece = rows * columns * page.samplesperpixel * page.dtype.itemsize
            return bool(piece <= PIECE and page.imagelength * page.imagewidth <= MOST_PIXELS)


class ImageWindows:
    """An image that is read by windows, with the same values as from `ImageRules.read`.

    Args:
        path: The file.
        rules: Which bands of it are read, and how.
        folder: A folder for decoded copies of files that cannot be read by windows.

    Attributes:
        size: Height and width.
        is_transparent: Whether a window that was read has varying transparency that is not a band.
    """

    def __init__(self, path: Path, rules: ImageRules, folder: Path) -> None:
        self.path = path
        self._rules: ImageRules | None = rules
        self._nodata: float | None = None
        self._alpha = False
        self.is_transparent = False
        self._values: Windows
        if has_tiff_windows(path):
            tiff = TiffWindows(path)
            self._values, self._nodata, self._alpha = tiff, tiff.nodata, tiff.alpha
        elif not is_volume(file_of(path)) and start_of(path).startswith(b"\x93NUMPY"):
            self._values = ArrayWindows(path)
        else:
            copy = decoded_copy(path, f"image, 3, {rules}", folder, partial(rules.read, path))
            self._values, self._rules = ArrayWindows(copy, is_copy=True), None
        self.size = self._values.shape[:2]

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Read a window: `(height, width)` for one band, else `(height, width, C)`."""
        values = self._values.read(top, left, height, width)
        values = values[..., 0] if values.shape[2] == 1 else values
        if self._rules is None:
            return values
        shown = shown_bands(
            Picture(values, self._nodata),
            self._alpha,
            self._rules.bands,
            self._rules.channels,
            self.path,
        )
        self.is_transparent |= shown.transparent
        return self._rules.with_gaps(shown, self.path)


def decoded_copy(path: Path, kind: str, folder: Path, read: Any) -> Path:
    """Decode a whole file once, into a copy whose windows can be read.

    Args:
        path: The file.
        kind: A text that tells how it is read. Each kind has its own copy.
        folder: The folder of the copies. Copies of files that have changed are not used again.
        read: Reads the file.

    Returns:
        The copy, a `.npy` file.
    """
    status = file_of(path).stat()
    times = [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    key = json.dumps([str(path.absolute()), status.st_size, *times, kind])
    name = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=12).hexdigest()
    copy = folder / f"{name}.npy"
    if not copy.exists():
        values = read()
        with replacing(copy) as temporary, temporary.open("wb") as file:
            np.save(file, np.ascontiguousarray(values))
    return copy


def parts_of_rows(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of parts with at most `ROWS` pixels."""
    height, width = size
    rows = max(1, ROWS // width)
    for top in range(0, height, rows):
        yield top, min(rows, height - top)
