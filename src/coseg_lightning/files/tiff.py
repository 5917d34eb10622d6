"""TIFF files: bands, pages, pyramids and compressions are read by their header, or refused."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC

from coseg_lightning.errors import InputError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
MAX_BANDS = 16  # if there are more pages, they are slices or frames, not bands
ORIENTATION, NODATA = 274, 42113
# The axes that each orientation reverses. From 5 on, the axes are exchanged first.
FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
# tifffile's letters for axes of bands: pages or planes (Q and I are unnamed), and samples.
BAND_AXES, SAMPLES = "CQIR", "S"
PIXELS, DEPTH_AND_TIME = "{*}Image/{*}Pixels", ("SizeZ", "SizeT")  # in descriptions of OME
# tifffile's names of formats of slides, and of their pictures that are not the tissue.
SLIDES, BESIDE = (
    ("svs", "bif", "qpi", "ndpi", "avs", "philips"),
    ("Thumbnail", "Label", "Macro", "Map"),
)
PLAIN = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE)
JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY)
FAX = (COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6)
ROUNDED_LIMIT = 1e-5
# Tags that tifffile writes itself. All others are copied unchanged.
STRUCTURE = {
    *range(254, 260),  # subfile type, size, bits, compression
    *(262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 296, 317, 320, 322, 323, 324),
    *(325, 330, 338, 339, 347, 513, 514, 530, 531, 532, 50674),
}
SOFTWARE = 305
METADATA = 42112  # GDAL's
STATISTICS = re.compile(rb'\s*<Item name="STATISTICS_[^>]*>[^<]*</Item>')
RATIONALS = (5, 10)  # types of tags, a value of which is two numbers
ARRAYS = "tifffile"  # the software that says of boolean arrays that 0 is white, and means black


class Tiff(NamedTuple):
    """The content of a TIFF file.

    `has_mask` says that another page holds a mask of valid pixels, which is not read. `bits` are
    those of a stored value.

    Shape:
        `values` is `(H, W)`, or `(H, W, C)` if there are several bands. `colours` is `(N, 3)`.
    """

    values: NDArray[Any]
    alpha: bool
    colours: NDArray[np.uint8] | None
    nodata: float | None
    orientation: int
    is_jpeg: bool
    has_mask: bool
    bits: int


def is_tiff(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF file."""
    return start.startswith(MAGIC)


@contextmanager
def opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file, without tifffile's log lines about values of missing pixels.

    They tell each time of what the type cannot hold, or how its decimals are rounded. Of an OME
    file that is one of several, its own pages are the picture.
    """
    quiet = _Quiet()  # one for each thread
    log = logging.getLogger("tifffile")
    log.addFilter(quiet)
    try:
        with tifffile.TiffFile(path) as file:
            is_part = _is_part(file)
            if not is_part:
                yield file
        if is_part:
            with tifffile.TiffFile(path, is_ome=False, is_mmstack=False) as file:
                yield file
    finally:
        log.removeFilter(quiet)


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "GDAL_NODATA" not in text and "Missing data are zeroed" not in text


def _is_part(file: tifffile.TiffFile) -> bool:
    """Whether an OME file names pages that it does not hold, such as those of other files."""
    description = _ome(file) if file.is_ome else None
    if description is None:
        return False
    own = description.get("UUID")
    for uuid in description.iterfind(f"{PIXELS}/{{*}}TiffData/{{*}}UUID"):
        name = uuid.get("FileName", "").lower()
        if uuid.text != own if own else name != file.filename.lower():
            return True
    return any(page is None for series in file.series for page in series.pages)


def _ome(file: tifffile.TiffFile) -> ElementTree.Element | None:
    """Return the description of an OME file, also of one that `opened` opens without it."""
    page = file.pages.first
    try:
        return ElementTree.fromstring(page.description) if page.is_ome else None
    except ElementTree.ParseError:  # tifffile takes no notice of it either
        return None


def read_tiff(path: Path, *, most_pixels: int = 0, of_mask: bool = False) -> Tiff:
    """Read the only image of a TIFF file. For a pyramid, this is the largest level.

    Args:
        path: The file.
        most_pixels: The limit for an image with one band, if it is above Pillow's limit.
        of_mask: Whether it is a mask.

    Returns:
        Its stored values. If the smallest value means white, they are inverted, see `is_inverted`.

    Raises:
        InputError: If it holds several images, or colours that are not RGB.
    """
    with opened(path) as file:
        series = only_series(path, file)
        page = series.keyframe
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
        if page.samplesperpixel == 1:
            limit = max(limit, most_pixels)
        if page.imagelength * page.imagewidth > limit:
            raise Image.DecompressionBombError(path)
        photometric = page.photometric
        check_colours(path, page)
        values = _bands_last(path, series.asarray(), series.axes)
        if is_inverted(page, of_mask=of_mask):
            values = inverted(values, page.bitspersample)
        if values.dtype == bool:
            values = values.astype(np.uint8)
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        return Tiff(
            native,
            bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2) and native.ndim == 3,
            _colours(page) if photometric == PHOTOMETRIC.PALETTE else None,
            nodata_of(page),
            orientation_of(page),
            page.compression in JPEG,
            _has_validity_mask(file),
            page.bitspersample,
        )


def _has_validity_mask(file: tifffile.TiffFile) -> bool:
    return any(one.keyframe.subfiletype & 4 for one in file.series)


def has_validity_mask(path: Path) -> bool:
    """Whether a file is a TIFF in which another page says which pixels are valid."""
    with path.open("rb") as start:
        if not is_tiff(start.read(4)):
            return False
    with opened(path) as file:
        return _has_validity_mask(file)


def tiff_size(path: Path) -> tuple[int, int]:
    """Read height and width from the header, after the rotation that it asks for."""
    with opened(path) as file:
        page = only_series(path, file).keyframe
        height, width = page.imagelength, page.imagewidth
        return (width, height) if orientation_of(page) >= 5 else (height, width)


def oriented(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rotate and flip stored values by EXIF's orientation, as viewers do.

    Args:
        values: `(H, W)` or `(H, W, C)`.
        orientation: 1 to 8.
    """
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(values, FLIPS.get(orientation, ())))


def stored_again(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo `oriented`."""
    values = np.flip(values, FLIPS.get(orientation, ()))
    return np.ascontiguousarray(values.swapaxes(0, 1) if orientation >= 5 else values)


def only_series(path: Path, file: tifffile.TiffFile) -> Any:
    """Return the only image of a file.

    Smaller copies, transparency masks, and what a slide holds beside the tissue do not count.
    """
    series = [
        one for one in file.series if not one.keyframe.subfiletype & 5 and not _is_beside(one)
    ]
    if not series:
        raise ValueError("it holds no picture")
    if len(series) > 1:
        sizes = ", ".join(f"{s.keyframe.imagewidth}x{s.keyframe.imagelength}" for s in series)
        raise InputError(
            f"{path} holds {len(series)} pictures ({sizes}), but it may hold only one; save each "
            "picture as a separate file."
        )
    pages = len(series[0].pages)
    if pages > 1 and not file.is_ome and not _are_channels(file):
        raise InputError(_slices_message(path, pages))
    return series[0]


def _is_beside(series: Any) -> bool:
    """Whether it is a slide's thumbnail, or a photo of its label or of all of it."""
    return series.kind in SLIDES and series.name in BESIDE


def _are_channels(file: tifffile.TiffFile) -> bool:
    """Whether the pages of one of several OME files have one place in depth and time."""
    description = _ome(file)
    if description is None:
        return True  # it is no OME file
    sizes = {pixels.get(axis) for pixels in description.iterfind(PIXELS) for axis in DEPTH_AND_TIME}
    own = description.get("UUID")
    data = [
        one
        for one in description.iterfind(f"{PIXELS}/{{*}}TiffData")
        if all(uuid.text == own for uuid in one.iterfind("{*}UUID"))
    ]
    places = {(one.get("FirstZ", "0"), one.get("FirstT", "0")) for one in data}
    return sizes == {"1"} or (len(places) == 1 and len(data) == len(file.pages))


def _slices_message(path: Path, pages: int) -> str:
    return (
        f"{path} holds {pages} pages, probably slices or frames; save each page as a separate "
        "file. Only channels, and pages without an axis name, are read as bands, up to "
        f"{MAX_BANDS}."
    )


def check_colours(path: Path, page: Any) -> None:
    """Raise an `InputError` for colours that cannot be decoded to RGB."""
    photometric = page.photometric
    if photometric in PLAIN or (photometric == PHOTOMETRIC.YCBCR and page.compression in JPEG):
        return
    if photometric == PHOTOMETRIC.YCBCR and not _is_subsampled(page):
        return  # JPEG 2000 and WebP decode to RGB
    name = getattr(photometric, "name", photometric)
    raise InputError(f"{path} holds colours as {name}, which cannot be read; save them as RGB.")


def _is_subsampled(page: Any) -> bool:
    decoded = (COMPRESSION.WEBP, COMPRESSION.JPEG2000, COMPRESSION.APERIO_JP2000_RGB)
    return page.compression not in decoded


def _bands_last(path: Path, values: NDArray[Any], axes: str) -> NDArray[Any]:
    others = [(n, axis) for n, axis in enumerate(axes) if axis not in "YX" and values.shape[n] > 1]
    if axes.count("Y") != 1 or axes.count("X") != 1 or len(others) > 1:
        raise InputError(
            f"{path} holds {_several(values, axes)}, but it may hold only one picture; save each "
            "page as a separate file."
        )
    order = [axes.index("Y"), axes.index("X")]
    if not others:
        return values.transpose(order + [n for n in range(len(axes)) if n not in order]).reshape(
            values.shape[order[0]], values.shape[order[1]]
        )
    band, axis = others[0]
    if axis not in SAMPLES and (axis not in BAND_AXES or values.shape[band] > MAX_BANDS):
        raise InputError(_slices_message(path, values.shape[band]))
    order.append(band)
    rest = [n for n in range(len(axes)) if n not in order]
    return values.transpose(order + rest).reshape([values.shape[n] for n in order])


def _several(values: NDArray[Any], axes: str) -> str:
    return " x ".join(f"{n} {axis}" for n, axis in zip(values.shape, axes, strict=True))


def inverted(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Invert values whose smallest means white."""
    if values.dtype == bool:
        return ~values
    if values.dtype.kind != "u":
        return values
    inverted: NDArray[Any] = values.dtype.type(2**bits - 1) - values
    return inverted


def _colours(page: Any) -> NDArray[np.uint8]:
    table = np.asarray(page.colormap)  # (3, N) of 16 bits; some writers use 8
    if table.max(initial=0) > 255:
        table = table >> 8
    return np.ascontiguousarray(table.T.astype(np.uint8))


def nodata_of(page: Any) -> float | None:
    """Return the value of missing pixels according to a page's header.

    Its decimals may follow a comma. The limits of real numbers are often rounded there.
    """
    tag = page.tags.get(NODATA)
    if tag is None:
        return None
    try:
        value = float(str(tag.value).strip("\0 ").replace(",", "."))
    except ValueError:
        return None
    limits = (float(np.finfo(kind).max) for kind in (np.float32, np.float64))
    near = (limit for limit in limits if math.isclose(abs(value), limit, rel_tol=ROUNDED_LIMIT))
    return math.copysign(next(near, abs(value)), value)


def orientation_of(page: Any) -> int:
    """Return the orientation in a page's header, see `oriented`."""
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def can_write_like(path: Path) -> bool:
    """Whether a file is a TIFF that `write_tiff_like` can write. Pillow writes some of the others.

    Those have fax compression, or JPEG.
    """
    with path.open("rb") as start:
        if not is_tiff(start.read(4)):
            return False
    with opened(path) as file:
        return only_series(path, file).keyframe.compression not in (*FAX, *JPEG)


def is_packed(path: Path) -> bool:
    """Whether `write_tiff_like` stores values of such a file with more bits than it has."""
    if not can_write_like(path):
        return False
    with opened(path) as file:
        return _is_packed(only_series(path, file).keyframe)


def _is_packed(page: Any) -> bool:
    """Whether values have a number of bits that tifffile cannot write."""
    if page.bitspersample == 1:
        return bool(page.photometric == PHOTOMETRIC.PALETTE)
    return page.bitspersample not in (8, 16, 32, 64)


def write_tiff_like(original: Path, path: Path, values: NDArray[Any]) -> None:
    """Write stored values with a file's tags, tiles, compression and pyramid.

    Values of few bits, see `is_packed`, are stored in whole bytes.

    Args:
        original: The file whose tags and structure are used.
        path: The new file.
        values: `(H, W)` or `(H, W, C)` values as `read_tiff` returns them.
    """
    with opened(original) as file:
        series = only_series(original, file)
        pages = [series.keyframe]
        beside = {one.keyframe.offset for one in file.series if _is_beside(one)}
        others = [page for page in _pages(file) if page.offset not in beside]
        pages += [page for page in others if _is_smaller_copy(page, series)]
        levels = [level.keyframe for level in series.levels[1:]]
        pages += [page for page in levels if page.offset not in {p.offset for p in pages}]
        in_subifds = bool(levels) and series.keyframe.subifds is not None
        with tifffile.TiffWriter(path, bigtiff=file.is_bigtiff, byteorder=file.byteorder) as out:
            for number, page in enumerate(pages):
                subifds = len(pages) - 1 if number == 0 and in_subifds else 0
                _write_page(out, page, _shrunk(values, page), subifds=subifds)


USER_DEFINED = 32767  # the code of a CRS that has none
PLACE = (33550, 33922, 34264, 34735, 34736, 34737)  # GeoTIFF's tags for transform and CRS


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF with its position on the earth."""
    with path.open("rb") as start:
        if not is_tiff(start.read(4)):
            return False
    with opened(path) as file:
        return any(code in file.pages.first.tags for code in PLACE)


def tiff_place(path: Path) -> list[float] | None:
    """Return the position of a GeoTIFF: its origin, its two axes per pixel, and its CRS.

    Returns:
        `[x, y, dx/dcolumn, dy/dcolumn, dx/drow, dy/drow, EPSG code or 0]`, or None.
    """
    with path.open("rb") as start:
        if not is_tiff(start.read(4)):
            return None
    with opened(path) as file:
        tags = {tag.code: tag.value for tag in file.pages.first.tags if tag.code in PLACE}
    scale, tie, matrix = (tags.get(code) for code in PLACE[:3])
    keys = _geo_keys(tags.get(34735))
    if matrix is not None:
        x, y, *axes = (float(matrix[k]) for k in (3, 7, 0, 4, 1, 5))
    elif scale is not None and tie is not None:
        x, y = float(tie[3] - tie[0] * scale[0]), float(tie[4] + tie[1] * scale[1])
        axes = [float(scale[0]), 0.0, 0.0, -float(scale[1])]
    else:
        return None
    if keys.get(1025) == 2:  # the position is that of a pixel's centre, not of its corner
        x, y = x - (axes[0] + axes[2]) / 2, y - (axes[1] + axes[3]) / 2
    code = keys.get(3072, keys.get(2048, 0))
    return [x, y, *axes, float(0 if code == USER_DEFINED else code)]


def _geo_keys(entries: Any) -> dict[int, int]:
    """Return GeoTIFF's keys whose values are numbers, such as 3072, the projected CRS."""
    found = () if entries is None else range(4, len(entries) - 3, 4)
    return {entries[n]: entries[n + 3] for n in found if entries[n + 1] == 0}


def write_at_place_of(image: Path, path: Path, mask: NDArray[Any]) -> None:
    """Write a mask as a TIFF at the position of a georeferenced image.

    Args:
        image: The image.
        path: The new file.
        mask: `(H, W)` values, oriented as viewers show the image.
    """
    with opened(image) as file:
        page = file.series[0].keyframe
        tags = [
            (tag.code, tag.dtype, tag.count, tag.value, True)
            for tag in page.tags
            if tag.code in PLACE
        ]
        orientation = orientation_of(page)
        if orientation != 1:
            tags.append((ORIENTATION, 3, 1, orientation, True))
        tifffile.imwrite(
            path,
            stored_again(mask, orientation),
            photometric="minisblack",
            compression="zlib",
            metadata=None,
            extratags=tags,
            software=False,
        )


def _is_smaller_copy(page: Any, series: Any) -> bool:
    """Whether a page is a level of the pyramid. A preview in colours shows the old mask."""
    kinds = [(p.samplesperpixel, p.photometric) for p in (page, series.keyframe)]
    return page.subfiletype & 5 == 1 and kinds[0] == kinds[1]


def _pages(file: tifffile.TiffFile) -> Iterator[Any]:
    for page in file.pages[1:]:
        yield page.aspage()


def _shrunk(values: NDArray[Any], page: Any) -> NDArray[Any]:
    """Resize values to a level of the pyramid with nearest neighbours."""
    height, width = page.imagelength, page.imagewidth
    if values.shape[:2] == (height, width):
        return values
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    small: NDArray[Any] = values[rows][:, columns]
    return small


def _write_page(out: tifffile.TiffWriter, page: Any, values: NDArray[Any], *, subifds: int) -> None:
    is_bilevel = page.bitspersample == 1 and not _is_packed(page)
    dtype = np.uint8 if page.dtype == bool else page.dtype
    values = values.astype(bool if is_bilevel else dtype, copy=False)
    if is_inverted(page, of_mask=True):
        values = inverted(values, page.bitspersample)
    separate = values.ndim == 3 and int(page.planarconfig) == 2
    if separate:
        values = np.moveaxis(values, 2, 0)
    options: dict[str, Any] = {}
    if page.is_tiled:
        options["tile"] = (page.tilelength, page.tilewidth)
    else:
        options["rowsperstrip"] = page.rowsperstrip
    if page.photometric == PHOTOMETRIC.PALETTE:
        unused = 2 ** (8 * values.dtype.itemsize) - page.colormap.shape[1]
        options["colormap"] = np.pad(page.colormap, ((0, 0), (0, unused)))
    if page.extrasamples:
        options["extrasamples"] = page.extrasamples
    if values.ndim == 3:
        options["planarconfig"] = page.planarconfig
    resolution = [page.tags.get(code) for code in (282, 283)]
    if all(resolution):
        options["resolution"] = tuple(tag.value for tag in resolution if tag is not None)
        unit = page.tags.get(296)
        options["resolutionunit"] = 1 if unit is None else unit.value
    # The original's tags are passed as extra tags, so that tifffile adds none of its own.
    tags = [_copied(tag) for tag in page.tags if tag.code not in STRUCTURE]
    if orientation_of(page) != 1:
        tags.append((ORIENTATION, 3, 1, orientation_of(page), True))
    out.write(
        np.ascontiguousarray(values),
        photometric=page.photometric,
        compression=page.compression,
        predictor=page.predictor if page.predictor != 1 else None,
        subfiletype=page.subfiletype,
        subifds=subifds or None,
        metadata=None,
        software=False,
        extratags=tags,
        **options,
    )


def _copied(tag: Any) -> tuple[int, int, int, Any, bool]:
    """Return a tag for tifffile's writer, with the bytes that its file holds.

    The writer takes text in ASCII alone, and cannot encode some values as they are decoded.
    """
    value = tag.value
    if tag.dtype not in RATIONALS:  # which it takes as numbers alone
        tag.parent.filehandle.seek(tag.valueoffset)
        value = tag.parent.filehandle.read(tag.valuebytecount)
    if tag.code != METADATA:
        return tag.code, tag.dtype, tag.count, value, True
    value = STATISTICS.sub(b"", value)  # which are of the original's values
    return tag.code, tag.dtype, len(value), value, True


def is_inverted(page: Any, *, of_mask: bool) -> bool:
    """Whether the values of a page must be inverted, since the higher ones are darker.

    tifffile says so of boolean arrays, but writes and reads them as they are. Masks of more than
    one bit are read as they are too: ImageJ writes 255 for objects, and shows them black.
    """
    software = page.tags.get(SOFTWARE)
    is_array = software is not None and str(software.value).startswith(ARRAYS)
    is_raw = is_array if page.bitspersample == 1 else of_mask
    return bool(page.photometric == PHOTOMETRIC.MINISWHITE) and not is_raw
