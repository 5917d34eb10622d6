"""Reading images and masks in common formats, as their files' headers describe them."""

import contextlib
import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from coseg_lightning.errors import InputError
from coseg_lightning.files.numbers import number_of, whole_numbers_of
from coseg_lightning.files.tiff import (
    ARRAYS,
    MAX_BANDS,
    SOFTWARE,
    is_tiff,
    oriented,
    read_tiff,
    tiff_size,
)
from coseg_lightning.files.volumes import (
    DICOM,
    NIFTI,
    UnreadableVolumeError,
    ending,
    file_of,
    is_nifti_slice,
    is_volume,
    read_slice,
)

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".j2k"),
    *(".jfif", ".jpe", ".tga", ".pgm", ".ppm", ".pnm", ".pbm", ".npy", ".btf", ".tf8"),
    *(*NIFTI, *DICOM),
)
# Above its limit Pillow raises an error, which `decoding` explains. Below, its warning is ignored.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
MOST_MASK = 2**31  # most pixels of a mask; even the mask of a tiled image is written as a whole
ROUNDING = 1e-3  # tolerance for class ids that a volume stores scaled
LARGE = 2**24  # pixels; images above this are checked one at a time, which bounds the memory
_one_large_image = threading.Lock()
# The first bytes of text files that stand for a file that was never fetched.
POINTERS = {
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself (git lfs pull)",
    b"/annex/objects/": "is a pointer of git-annex; fetch the file itself (git annex get)",
    b"<!DOCTYPE": "is a web page, probably from a failed download; download the file again",
    b"<html": "is a web page, probably from a failed download; download the file again",
}
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # bytes 8 to 12


class Picture(NamedTuple):
    """An image's bands, and facts from its header.

    Attributes:
        values: `(H, W)` for one band, else `(H, W, C)`.
        nodata: The value of missing pixels according to the file's header, if it names one.
        turned: Whether the header asked for a rotation or reflection, which was applied.
        transparent: Whether the file has a transparency channel, with several values, that is not
            among the bands.
    """

    values: NDArray[Any]
    nodata: float | None = None
    turned: bool = False
    transparent: bool = False


class Stored(NamedTuple):
    """A mask's values as its file stores them.

    Attributes:
        values: `(H, W)` or `(H, W, C)`; the indices for a palette image.
        mode: Pillow's mode of the file, such as `L`, `P`, or `1` for one bit per pixel; `tiff`,
            `npy` or `volume` for such files.
        colours: `(N, 3)`, the palette.
        alpha: Whether the last channel is transparency.
        orientation: The orientation in EXIF. It is already applied to the values.
        bits: Bits per value, where the mode does not tell, as for a 2-bit grey PNG.
        is_jpeg: Whether lossy compression may have changed values.
        nodata: The value of missing pixels according to a TIFF's header.
        transparent: The indices of a palette that are more transparent than opaque.
        key: The one grey that a header calls transparent, in the place of a transparency channel.
        highest: The highest value that the file may hold, if its bits do not tell.
    """

    values: NDArray[Any]
    mode: str
    colours: NDArray[np.uint8] | None = None
    alpha: bool = False
    orientation: int = 1
    bits: int = 8
    is_jpeg: bool = False
    nodata: float | None = None
    transparent: tuple[int, ...] = ()
    key: int | None = None
    highest: int | None = None

    @property
    def grey_step(self) -> int:
        """The factor that turns grey of 1, 2 or 4 bits into 0 to 255; 1 for all others."""
        if self.colours is not None or self.bits >= 8:
            return 255 if self.mode == "1" else 1
        return 255 // ((1 << self.bits) - 1)

    @property
    def is_binary(self) -> bool:
        """Whether the format leaves only 0 and 1."""
        return self.grey_step == 255

    def of_rows(self, rows: slice) -> "Stored":
        """Return some rows of the mask."""
        return self._replace(values=self.values[rows])

    def with_values(self, values: NDArray[Any]) -> "Stored":
        """Return the same mask with other values."""
        return self._replace(values=values)


@dataclass(frozen=True)
class ImageRules:
    """Which bands of the image files are read, and which value means missing.

    Args:
        bands: See `read_picture`.
        channels: See `read_picture`.
        nodata: The value of missing pixels, which may be NaN; by default the one in each header.
    """

    bands: tuple[int, ...] | None = None
    channels: int | None = None
    nodata: float | None = None

    @classmethod
    def from_settings(cls, source: Mapping[str, Any]) -> "ImageRules":
        """Build the rules from the settings of a dataset, named as in `folder_splits`."""
        bands, nodata = source.get("bands"), source.get("nodata")
        channels = source.get("in_channels")
        bands = None if bands is None else whole_numbers_of("data.bands", bands)
        if bands is not None and min(bands, default=0) < 1:
            raise InputError(
                f"data.bands={list(bands)} must name at least one band; the first one is 1."
            )
        if bands is not None and channels not in (None, len(bands)):
            raise InputError(
                f"data.bands={list(bands)} chooses {len(bands)} bands, but "
                f"data.in_channels={channels}; set data.in_channels={len(bands)}."
            )
        return cls(bands, channels, None if nodata is None else number_of("data.nodata", nodata))

    def read(self, path: Path) -> NDArray[Any]:
        """Read an image. Missing values are NaN.

        Raises:
            InputError: If it cannot be read, or holds other values that are not finite.
        """
        return self.with_gaps(read_picture(path, bands=self.bands, channels=self.channels), path)

    def check(self, path: Path) -> tuple[NDArray[Any], Picture]:
        """Read an image to its last byte. Return it as `read` does, and the decoded `Picture`."""
        picture = check_picture(path, bands=self.bands, channels=self.channels)
        return self.with_gaps(picture, path), picture

    def with_gaps(self, picture: Picture, path: Path) -> NDArray[Any]:
        """Replace missing values by NaN; see `read`.

        A band may well reach the lowest or highest value of unsigned integers. That is missing only
        where all bands hold it.
        """
        values = picture.values
        nodata = picture.nodata if self.nodata is None else self.nodata
        missing = None
        if nodata is not None:
            missing = np.isnan(values) if np.isnan(nodata) else values == nodata
            if values.ndim == 3 and _is_end_of(nodata, values.dtype):
                missing = np.repeat(missing.all(axis=2, keepdims=True), values.shape[2], axis=2)
        if values.dtype.kind == "f":
            wrong = ~np.isfinite(values)
            if missing is not None:
                wrong &= ~missing
            if wrong.any():
                kinds = sorted({str(value) for value in np.unique(values[wrong]).tolist()})
                remedy = f"or set data.nodata={kinds[0]} if they are missing"
                if len(kinds) > 1 or (missing is not None and missing.any()):
                    remedy = "and save one value for all that are missing"
                raise InputError(
                    f"{path} holds values that are not finite numbers, {wrong.sum()} in all "
                    f"({', '.join(kinds)}); correct the file, {remedy}."
                )
        if values.dtype.kind == "f" and values.dtype.itemsize > 4:
            large = abs(values) > np.finfo(np.float32).max
            if missing is not None:
                large &= ~missing
            if large.any():
                raise InputError(
                    f"{path} holds values that 32 bits cannot hold, {large.sum()} in all, such as "
                    f"{float(values[large][0])!r}; correct the file, or set data.nodata to that "
                    "value if it means missing."
                )
        if missing is None or not missing.any():
            return values
        with_gaps = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        with_gaps[missing] = np.nan
        return with_gaps


def _is_end_of(value: float, dtype: np.dtype[Any]) -> bool:
    """Whether a value is the lowest or the highest of a type of unsigned integers."""
    return dtype.kind == "u" and value in (0, np.iinfo(dtype).max)


def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """List the image files of a folder by their stem. Each stem should have one file.

    Args:
        folder: The folder.

    Returns:
        The sorted files of each stem.

    Raises:
        InputError: If the folder does not exist, or holds no image files.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder that holds it.")
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder that holds the files.")
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if ending(path) in SUFFIXES and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    if not by_stem:
        inside = [path for path in sorted(folder.iterdir()) if _holds_images(path)]
        named = " or ".join(map(str, inside[:3]))
        raise InputError(
            f"{folder} holds no image files ({', '.join(SUFFIXES)})"
            + (f"; did you mean {named}?" if inside else ".")
        )
    return dict(by_stem)


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(ending(path) in SUFFIXES for path in folder.iterdir())


@contextmanager
def decoding(path: Path, kind: str = "an image") -> Iterator[None]:
    """Turn a decoder's error into an `InputError`. A damaged file may raise any exception."""
    try:
        if not file_of(path).is_file():  # reading a pipe would block
            raise FileNotFoundError(path)
        yield
    except UnreadableVolumeError as error:
        with contextlib.suppress(OSError):  # it may not be opened at all
            if sentence := _stands_for_another(file_of(path)):
                raise InputError(sentence) from error
        raise
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels, "
            "which is the limit; remove it, or save a large image as a tiled TIFF and set "
            "data.tile=512."
        ) from error
    except Exception as error:
        raise InputError(_unreadable_message(path, kind, error)) from error


def _unreadable_message(path: Path, kind: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{path} cannot be read with your permissions; change them, or remove the file."
    if path.is_symlink() and not path.exists():
        return (
            f"{path} is a link to {os.path.realpath(path)}, which does not exist; fetch or restore "
            "that file."
        )
    start = b""
    if path.is_file():
        if sentence := _stands_for_another(path):
            return sentence
        start = start_of(path)
    if start.startswith(b"\x93NUMPY") and "bject" in str(error):
        return (
            f"{path} holds Python objects, which are not loaded, since they may run code; save the "
            "array alone, such as by numpy.save(FILE, ARRAY)."
        )
    if start[4:8] == b"ftyp" and start[8:12] in HEIC:
        return f"{path} is a HEIC picture, as of a phone, which is not read; convert it to PNG."
    reason = ""
    if is_tiff(start):
        text = " ".join(str(error).split("\n")[0].split())
        reason = f" ({text[:160]})" if text else ""
    return f"{path} cannot be read as {kind}{reason}; restore or remove the file."


def _stands_for_another(path: Path) -> str | None:
    """Say that a file is empty, or a text in the place of the file; None if it is neither."""
    start = start_of(path)
    if not start:
        return f"{path} is empty; restore or remove the file."
    for beginning, sentence in POINTERS.items():
        if start.lstrip().lower().startswith(beginning.lower()):
            return f"{path} {sentence}."
    return None


def start_of(path: Path) -> bytes:
    """Read the first bytes of a file, which tell its format regardless of its name."""
    with path.open("rb") as file:
        return file.read(32)


def read_image(
    path: Path, *, bands: Sequence[int] | None = None, channels: int | None = None
) -> NDArray[Any]:
    """Read an image at its own bit depth; see `read_picture`.

    Shape:
        `(H, W)` for images with one band, else `(H, W, C)`; colours are RGB.
    """
    return read_picture(path, bands=bands, channels=channels).values


def read_picture(
    path: Path, *, bands: Sequence[int] | None = None, channels: int | None = None
) -> Picture:
    """Read an image at its own bit depth, and facts from its header.

    The format is recognised by the content, not by the name. The decoded image is compared with the
    header, since some decoders leave bands out.

    Args:
        path: The file.
        bands: The bands to read, counted from 1 and in this order; transparency is the last one. By
            default all but the transparency are read.
        channels: The wanted number of bands. The transparency counts as a band if this number is
            reached only with it.

    Raises:
        InputError: If the file cannot be decoded, disagrees with its header, has too many pixels,
            or lacks a band.
    """
    with decoding(path):
        start = b"" if is_volume(file_of(path)) else start_of(path)
        if not start and is_volume(file_of(path)):
            values = read_slice(path)
            padded = values.dtype.kind == "f" and bool(np.isnan(values).any())
            is_padded = padded and not is_nifti_slice(path)
            picture, alpha = Picture(values, np.nan if is_padded else None), False
        elif is_tiff(start):
            picture, alpha = _read_tiff_image(path)
        elif start.startswith(b"\x93NUMPY"):
            picture, alpha = Picture(_array_image(path)), False
        elif start.startswith(PNG) and (plain := _plain_png(path)) is not None:
            picture, alpha = plain, False
        else:
            picture, alpha = _read_with_opencv(path)
    return shown_bands(picture, alpha, bands, channels, path)


def shown_bands(
    picture: Picture,
    alpha: bool,
    bands: Sequence[int] | None,
    channels: int | None,
    path: Path,
) -> Picture:
    """Select the bands of a decoded picture; see `read_picture`.

    Args:
        picture: All bands, or a window of them.
        alpha: Whether the last band is transparency.
        bands: See `read_picture`.
        channels: See `read_picture`.
        path: The file.
    """
    values = picture.values
    if values.dtype.kind not in "uif":
        raise InputError(f"{path} holds {values.dtype} values; save integers or real numbers.")
    if bands is not None:
        return Picture(_chosen(values, bands, path), picture.nodata, picture.turned)
    if alpha and values.shape[2] != channels:
        transparent = bool((values[..., -1] != values[0, 0, -1]).any())
        values = values[..., 0] if values.shape[2] == 2 else values[..., :-1]
        shown = np.ascontiguousarray(values)
        return Picture(shown, picture.nodata, picture.turned, transparent)
    return picture


def _chosen(values: NDArray[Any], bands: Sequence[int], path: Path) -> NDArray[Any]:
    count = 1 if values.ndim == 2 else values.shape[2]
    missing = [band for band in bands if not 1 <= band <= count]
    if missing:
        raise InputError(
            f"{path} has {count} band{'s' * (count > 1)}, but data.bands={list(bands)} asks for "
            f"band {missing[0]}; choose bands from 1 to {count}."
        )
    chosen = values.reshape(*values.shape[:2], count)[..., [band - 1 for band in bands]]
    return np.ascontiguousarray(chosen[..., 0] if len(bands) == 1 else chosen)


def _read_tiff_image(path: Path) -> tuple[Picture, bool]:
    try:
        tiff = read_tiff(path)
    except InputError as error:
        if "SEPARATED" not in str(error):
            raise
        with Image.open(path) as file:  # Pillow converts CMYK inks
            if file.mode != "CMYK":
                raise
            return Picture(np.asarray(file.convert("RGB"))), False
    values = tiff.values
    if tiff.colours is not None:
        values = painted(values, tiff.colours, path)
    values = oriented(values, tiff.orientation)
    return Picture(values, tiff.nodata, tiff.orientation != 1, tiff.has_mask), tiff.alpha


def painted(indices: NDArray[Any], colours: NDArray[np.uint8], path: Path) -> NDArray[Any]:
    """Return the colours of a palette's indices, `(H, W, 3)`, or `(H, W)` if all of them are grey.

    Raises:
        InputError: If an index has no colour.
    """
    if int(indices.max(initial=0)) >= len(colours):
        raise InputError(
            f"{path} holds the index {indices.max()}, but its palette has {len(colours)} colours; "
            "save it again."
        )
    painted: NDArray[Any] = colours[indices]
    if (painted == painted[..., :1]).all():
        return np.ascontiguousarray(painted[..., 0])
    return painted


def _array_image(path: Path) -> NDArray[Any]:
    array = np.load(path, allow_pickle=False)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return np.ascontiguousarray(bands_last(array, path))


def bands_last(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """View an array `(H, W)`, `(H, W, C)` or `(C, H, W)` with its bands as the last axis."""
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        first, last = (array.shape[n] <= MAX_BANDS for n in (0, 2))
        if first != last:
            return np.moveaxis(array, 0, 2) if first else array
    raise InputError(
        f"{path} holds an array of {array.shape}; save it as (H, W), (H, W, bands) or (bands, H, "
        f"W) with at most {MAX_BANDS} bands."
    )


def _plain_png(path: Path) -> Picture | None:
    """Read a PNG of 8-bit grey or colours; None if it is of another kind.

    Pillow is as fast as OpenCV here, and fails if a part of the file is missing.
    """
    header = _header(path)
    if header is None or header.mode not in ("L", "RGB") or header.bits != 8:
        return None
    with Image.open(path) as file:
        values = oriented(np.array(file), header.orientation)
    return Picture(values, turned=header.orientation != 1)


def _is_plain_png(file: Image.Image, path: Path) -> bool:
    return file.format == "PNG" and file.mode in ("L", "RGB") and _png_bits(path) == 8


def _read_with_opencv(path: Path) -> tuple[Picture, bool]:
    """Read an image with OpenCV, or else with Pillow, and compare it with the header."""
    header = _header(path)
    data = np.fromfile(path, dtype=np.uint8)  # imread cannot open every path on Windows
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        image = _read_with_pillow(path)
    elif image.ndim == 3:  # OpenCV stores blue first
        is_grey = header is not None and header.mode in ("L", "LA")
        image = np.ascontiguousarray(image[..., 0] if is_grey else image[..., ::-1])
    if header is None:
        return Picture(image), False
    _check_agrees(path, image, header)
    if header.alpha:
        plane = _alpha_of(path, data, header)
        image = np.dstack([image, plane.astype(image.dtype)])
    image = oriented(image, header.orientation)
    return Picture(image, turned=header.orientation != 1), header.alpha and image.shape[2] in (2, 4)


class _Header(NamedTuple):
    size: tuple[int, int]
    mode: str
    bits: int | None
    alpha: bool
    orientation: int
    is_jpeg: bool


def _header(path: Path) -> _Header | None:
    """Read a file's header with Pillow. Return None if Pillow does not know the format."""
    try:
        with Image.open(path) as file:
            return _header_of(file, path)
    except (InputError, Image.DecompressionBombError, PermissionError):
        raise
    except Exception:  # OpenCV reads more formats
        return None


def _header_of(file: Image.Image, path: Path) -> _Header:
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # a phone's second picture is a preview
        raise InputError(
            f"{path} holds {frames} pictures, like an animation or a stack; save each picture as a "
            "separate file."
        )
    return _Header(
        (file.height, file.width),
        file.mode,
        _png_bits(path) if file.format == "PNG" else None,
        file.mode in ("RGBA", "LA", "PA", "RGBa", "La"),
        _orientation(file, path),
        file.format in ("JPEG", "MPO"),
    )


def _orientation(file: Image.Image, path: Path) -> int:
    try:
        if file.format == "PNG" and not _may_be_turned(path):
            return 1  # Pillow would decode all pixels to see whether a tag follows them
        value = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF
        return 1
    return int(value) if value in range(1, 9) else 1


def _may_be_turned(path: Path) -> bool:
    """Whether a PNG has a chunk that can hold an orientation."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            keyword = file.read(min(length, 24)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
            if kind == b"eXIf" or keyword.startswith(ORIENTED_TEXTS):
                return True
            file.seek(length - len(keyword) + 4, os.SEEK_CUR)
    return False


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]


PNG = b"\x89PNG\r\n\x1a\n"
ORIENTED_TEXTS = (b"Raw profile type ", b"XML:com.adobe.xmp")

# The least channels that OpenCV must return for each of Pillow's modes. A palette (P) may be grey
# or coloured.
CHANNELS = {"1": 1, "L": 1, "I": 1, "F": 1, "I;16": 1, "I;16B": 1, "LA": 1, "RGB": 3, "RGBA": 3}


def _check_agrees(path: Path, image: NDArray[Any], header: _Header) -> None:
    channels = 1 if image.ndim == 2 else image.shape[2]
    wanted = CHANNELS.get(header.mode, channels)
    bits = 8 * image.dtype.itemsize
    shallow = (header.bits or 8) > 8 >= bits or (header.mode[:2] in ("I;", "F") and bits == 8)
    if image.shape[:2] != header.size or channels < wanted or shallow:
        height, width = header.size
        raise InputError(
            f"The header of {path} says {width}x{height} with {wanted} channels of "
            f"{header.bits or 'its own'} bits, but {image.shape[1]}x{image.shape[0]} with "
            f"{channels} of {bits} bits was read; save it as a plain PNG or TIFF."
        )


def _alpha_of(path: Path, data: NDArray[Any], header: _Header) -> NDArray[Any]:
    if header.bits == 16:
        everything = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if everything is not None and everything.ndim == 3 and everything.shape[2] == 4:
            return np.asarray(everything[..., 3])
        raise InputError(
            f"{path} has 16-bit transparency, which cannot be read; save it without transparency."
        )
    with Image.open(path) as file:
        return np.asarray(file.getchannel("A"))


def _read_with_pillow(path: Path) -> NDArray[Any]:
    """Read formats that OpenCV does not know, such as TGA."""
    with Image.open(path) as file:
        if file.mode in ("L", "RGB") or file.mode.startswith(("I", "F")):
            return np.asarray(file)
        return np.asarray(file.convert("L" if file.mode in ("1", "LA", "La") else "RGB"))


def check_picture(
    path: Path, *, bands: Sequence[int] | None = None, channels: int | None = None
) -> Picture:
    """Read an image to its last byte.

    Args:
        path: The file.
        bands: See `read_picture`.
        channels: See `read_picture`.

    Raises:
        InputError: If the file is damaged, even if OpenCV would fill in the missing part.
    """
    with decoding(path), contextlib.ExitStack() as stack:
        try:
            if is_volume(file_of(path)):
                raise ValueError("Pillow does not know it")
            with Image.open(path) as file:
                if file.width * file.height > LARGE:
                    stack.enter_context(_one_large_image)
                if file.format != "TIFF" and not _is_plain_png(file, path):
                    file.load()  # those two are read to their last byte below
        except (UnidentifiedImageError, ValueError):  # OpenCV reads more formats, or is laxer
            pass
        return read_picture(path, bands=bands, channels=channels)


def check_image(path: Path) -> NDArray[Any]:
    """Read an image to its last byte; see `check_picture`.

    Shape:
        As for `read_image`.
    """
    return check_picture(path).values


def image_size(path: Path) -> tuple[int, int]:
    """Read height and width of an image, from the header alone if possible.

    Args:
        path: The file.

    Returns:
        Height and width, after the rotation that the header asks for.

    Raises:
        InputError: If the file is not an image.
    """
    try:
        if path.is_file() and is_tiff(start_of(path)):
            return tiff_size(path)
        with Image.open(path) as file:
            width, height = file.size
            sideways = _orientation(file, path) >= 5
    except InputError:
        raise
    except Exception:  # arrays, for example
        height, width = read_image(path).shape[:2]
        return height, width
    return (width, height) if sideways else (height, width)


def read_stored(path: Path, *, of_mask: bool = True) -> Stored:
    """Read a mask's stored values, oriented as viewers show them.

    Args:
        path: The file.
        of_mask: Whether it is a mask, and not a picture of grey levels; see `tiff.is_inverted`.

    Raises:
        InputError: If the file cannot be decoded, or holds several pictures.
    """
    with decoding(path, "a mask" if of_mask else "an image"):
        if is_volume(file_of(path)):
            return Stored(read_slice(path, of_mask=of_mask), "volume")
        start = start_of(path)
        if is_tiff(start) and not _is_for_fax(path):
            tiff = read_tiff(path, most_pixels=MOST_MASK, of_mask=of_mask)
            values = oriented(tiff.values, tiff.orientation)
            return Stored(
                values,
                "tiff",
                tiff.colours,
                tiff.alpha,
                tiff.orientation,
                min(8, tiff.bits),
                tiff.is_jpeg,
                nodata=tiff.nodata,
                highest=2**tiff.bits - 1 if 8 < tiff.bits < 16 else None,
            )
        if start.startswith(b"\x93NUMPY"):
            bits = 1 if np.load(path, mmap_mode="r").dtype == bool else 8
            return Stored(_array_image(path), "npy", bits=bits)
        return _stored_by_pillow(path)


def _is_for_fax(path: Path) -> bool:
    """Whether a TIFF has one bit per pixel. Pillow knows the polarity and packing of such files.

    It takes no notice of boolean arrays, whose polarity tifffile does not mean.
    """
    try:
        with Image.open(path) as file:
            tags = getattr(file, "tag_v2", {})
            return file.mode == "1" and not str(tags.get(SOFTWARE, "")).startswith(ARRAYS)
    except Exception:  # Pillow does not know all kinds of TIFF
        return False


def _stored_by_pillow(path: Path) -> Stored:
    with Image.open(path) as file:
        header = _header_of(file, path)
        mode, file_format = file.mode, file.format
        if (header.bits or 8) > 8 and mode in ("RGB", "RGBA", "LA"):
            values = _deep_colours(path)  # Pillow drops the lower half of their bits
        else:
            values = np.asarray(file)
        palette = file.getpalette() if mode == "P" else None
        transparency = file.info.get("transparency")
    bits, highest = header.bits or 8, None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif file_format == "PNG" and mode == "L" and bits < 8:
        values = values // (255 // (2**bits - 1))  # Pillow stretches ids to 0 .. 255
    elif file_format == "PPM" and mode in ("L", "I"):
        highest = largest_of_pgm(path)
        values = _unstretched(values, highest)
    colours = None if palette is None else np.array(palette, np.uint8).reshape(-1, 3)
    return Stored(
        oriented(values, header.orientation),
        mode,
        colours,
        header.alpha,
        header.orientation,
        bits,
        header.is_jpeg or _is_lossy(path, file_format),
        transparent=() if palette is None else _transparent_indices(transparency),
        key=_key_of(mode, transparency),
        highest=highest,
    )


def _transparent_indices(transparency: Any) -> tuple[int, ...]:
    """Return the transparent indices of a palette, of which Pillow gives one, or all alphas."""
    if isinstance(transparency, bytes):
        return tuple(index for index, alpha in enumerate(transparency) if alpha < 128)
    return () if transparency is None else (int(transparency),)


def _key_of(mode: str, transparency: Any) -> int | None:
    """Return the grey that is transparent according to a header; None for a colour or a palette."""
    if mode == "P" or transparency is None:
        return None
    if mode == "1":  # Pillow reads it as 0 or 255
        return int(transparency > 0)
    greys = set(transparency) if isinstance(transparency, tuple) else {transparency}
    return int(greys.pop()) if len(greys) == 1 else None


def _is_lossy(path: Path, file_format: str | None) -> bool:
    """Whether a WebP or JPEG 2000 file uses lossy compression."""
    if file_format == "WEBP":
        return b"VP8 " in path.read_bytes()[12:4096]
    if file_format == "JPEG2000":
        content = path.read_bytes()
        at = content.find(b"\xff\x52")  # the coding style, whose last byte names the transform
        return 0 <= at < len(content) - 13 and content[at + 13] == 0
    return False


def _deep_colours(path: Path) -> NDArray[Any]:
    values = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV cannot decode it")
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(values.shape[2] if values.ndim == 3 else 0)
    return np.asarray(values if order is None else values[..., order])


def _unstretched(values: NDArray[Any], largest: int) -> NDArray[Any]:
    """Undo Pillow's stretching of a PGM whose largest value is neither 255 nor 65535."""
    top = 255 if largest < 256 else 65535
    if largest == top:
        return values
    return np.asarray(np.rint(values.astype(np.float64) * largest / top).astype(np.uint16))


def largest_of_pgm(path: Path) -> int:
    """Return the largest value that a PGM's header allows."""
    fields: list[bytes] = []
    with path.open("rb") as file:
        while len(fields) < 4 and (line := file.readline(1024)):
            fields += line.partition(b"#")[0].split()
    return int(fields[3])


def read_indices(path: Path) -> NDArray[Any]:
    """Read the stored values of a mask. For a palette image these are the indices.

    Args:
        path: The file.

    Shape:
        `(H, W)` integers.

    Raises:
        InputError: If the file cannot be decoded, or holds colours instead of class ids.
    """
    return single_channel(path, read_stored(path))


IDS_WANTED = (
    "a mask holds one class id per pixel; name the class of each colour (data.colours=FILE), or "
    "save it as a grey or palette PNG"
)
OBJECTS_WANTED = (
    "data.instances=foreground reads the number of each pixel's object; save these numbers in grey "
    "with 16 bits"
)
LEVELS_WANTED = "data.mask_threshold needs grey levels; save it in grey"


def single_channel(
    path: Path, stored: Stored, *, integers: bool = True, wanted: str = IDS_WANTED
) -> NDArray[Any]:
    """Reduce a mask to one channel, of integers unless `integers` is false.

    A grey mask may be saved as RGB, or be drawn only in the transparency channel.

    Args:
        path: The file, for messages.
        stored: Its stored values.
        integers: Whether only integers are wanted.
        wanted: What the message about a colour picture says is wanted.

    Raises:
        InputError: If it holds colours, or values that are not integers although they must be.
    """
    values = stored.values
    if values.ndim == 3:
        colours = values[..., :-1] if stored.alpha else values
        if (colours != colours[..., :1]).any():
            is_stack = stored.mode in ("npy", "volume") or colours.shape[2] != 3
            if is_stack and wanted == IDS_WANTED:
                raise InputError(
                    f"{path} holds {colours.shape[2]} channels, but a mask holds one class id per "
                    "pixel; if each channel is a class, save the number of the channel instead, as "
                    "by numpy.argmax."
                )
            raise InputError(f"{path} is a colour picture, but {wanted}.")
        grey = colours[..., 0]
        values = _grey_or_alpha(path, grey, values[..., -1]) if stored.alpha else grey
    if not integers:
        return values
    if values.dtype.kind == "f" and np.isfinite(values).all():
        rounded = values.round()
        if (abs(values - rounded) < ROUNDING).all():
            values = rounded.astype(np.int64)
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"{path} holds {values.dtype} values; save class ids as integers, or set "
            "data.mask_threshold if it is a soft mask."
        )
    return values


def _grey_or_alpha(path: Path, grey: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    return alpha if _is_drawn_in_alpha(path, grey, alpha) else grey


def drawn_in_alpha(path: Path, stored: Stored) -> bool:
    """Whether a grey mask with transparency was drawn in the transparency.

    Raises:
        InputError: If both hold different masks.
    """
    return _is_drawn_in_alpha(path, stored.values[..., 0], stored.values[..., -1])


def _is_drawn_in_alpha(path: Path, grey: NDArray[Any], alpha: NDArray[Any]) -> bool:
    """See `drawn_in_alpha`. Paint programs export white or black on a transparent background."""
    if (alpha == alpha[0, 0]).all():  # if nothing is opaque, nothing is drawn
        return not alpha.any() and bool((grey == grey[0, 0]).all())
    drawn = alpha > np.iinfo(alpha.dtype).max // 2
    values = np.unique(grey[drawn])
    if values.any() and (np.where(drawn, grey, 0) == grey).all():
        return False  # class ids where the mask is opaque, 0 elsewhere
    if len(values) <= 1:
        return True
    raise InputError(
        f"{path} holds one mask in its grey values and a different one in its transparency; save "
        "the right mask without transparency."
    )


def smallest_type(mask: NDArray[Any]) -> NDArray[Any]:
    """Convert class ids to uint8 if they fit, or else to uint16.

    PNG and OpenCV support these types, and they need the least memory.

    Args:
        mask: Integer class ids.

    Returns:
        The same class ids.

    Raises:
        InputError: If a class id fits neither type.
    """
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 65535:
        wrong = low if low < 0 else high
        raise InputError(f"A mask holds the class id {wrong}; class ids must be 0 to 65535.")
    small: NDArray[Any] = mask.astype(np.uint8 if high <= 255 else np.uint16)
    return small
