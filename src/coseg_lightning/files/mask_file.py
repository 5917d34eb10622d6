"""One mask file: reading its values by the user's rules, and writing new values like its own."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import (
    IDS_WANTED,
    LEVELS_WANTED,
    OBJECTS_WANTED,
    Stored,
    drawn_in_alpha,
    painted,
    read_stored,
    single_channel,
)
from coseg_lightning.files.mask_rules import (
    HIGHEST_VALUES,
    IGNORE_INDEX,
    Colour,
    MaskRules,
    classes_of_colours,
    listed,
    nearest_values,
)
from coseg_lightning.files.tiff import can_write_like, stored_again, write_tiff_like

FAINT = 3  # a JPEG whose values are not above is empty, but for noise
MANY_ROWS = 1024  # rows of a mask whose values are set at a time
WHITE = (255, 255, 255)
BLACK_AND_WHITE = {(0, 0, 0), WHITE}


class MaskValuesOf(NamedTuple):
    """The values of one mask.

    Attributes:
        values: `(H, W)` integers.
        two_valued: Whether the file's format, or a rule, leaves only two classes.
        stored: The values that the file stores.
    """

    values: NDArray[Any]
    two_valued: bool
    stored: Stored


def read_mask_file(path: Path, rules: MaskRules) -> MaskValuesOf:
    """Read the values of a mask by the rules, before `class_ids` and the meaning of 255.

    Args:
        path: The file.
        rules: The meaning of the values.

    Raises:
        InputError: If it cannot be read, or holds values that the rules do not allow.
    """
    return interpreted(path, read_stored(path), rules)


def interpreted(path: Path, stored: Stored, rules: MaskRules) -> MaskValuesOf:
    """Interpret the stored values of a mask, or of a window of one.

    Args:
        path: The file.
        stored: Its stored values.
        rules: The meaning of the values.

    Raises:
        InputError: If it holds values that the rules do not allow.
    """
    two = rules.classes == 2
    if rules.colours is not None:
        if stored.is_jpeg:
            raise InputError(jpeg_message(path))
        return MaskValuesOf(_of_colours(path, stored, rules.colours), False, stored)
    if rules.threshold is not None:
        return MaskValuesOf(_above_threshold(path, stored, rules), True, stored)
    wanted = OBJECTS_WANTED if rules.instances else IDS_WANTED
    values = single_channel(path, _with_missing(stored, rules), wanted=wanted)
    if rules.instances:
        if stored.is_jpeg:
            raise InputError(jpeg_message(path))
        if values.min() < 0:
            raise InputError(
                f"{path} holds {values.min()}, but data.instances=foreground reads 0 as background "
                "and larger numbers as objects; correct the mask."
            )
        objects = (values != 0).astype(np.uint8)
        if values.max() == IGNORE_INDEX and not (values == IGNORE_INDEX - 1).any():
            objects[values == IGNORE_INDEX] = IGNORE_INDEX  # unlabelled, not the 255th object
        return MaskValuesOf(objects, True, stored)
    if stored.is_jpeg:
        return MaskValuesOf(_of_jpeg(path, values, two) ^ rules.is_inverted, True, stored)
    drawn = None
    if two and rules.class_ids is None:
        is_white = stored.colours is not None and [*map(tuple, stored.colours[:, :3])] == [WHITE]
        if is_white and 0 not in stored.transparent:
            raise InputError(
                f"{path} has a palette of white alone, which may mean the object or the "
                "background; save the mask as a grey PNG of class ids."
            )
        drawn = _index_of_class_1(stored, values)
    if drawn is not None:
        return MaskValuesOf((values == drawn).astype(np.uint8), True, stored)
    if two and stored.is_binary:
        return MaskValuesOf(values ^ rules.is_inverted, True, stored)
    return MaskValuesOf(values, False, stored)


def _with_missing(stored: Stored, rules: MaskRules) -> Stored:
    """Mark pixels as unlabelled that are missing according to the file's header."""
    missing = stored.nodata
    if missing is None or not names_missing(missing, rules):
        return stored
    mark = mark_of_missing(rules)
    kind = np.uint8 if mark == IGNORE_INDEX else np.int32
    values = stored.values.astype(np.promote_types(stored.values.dtype, kind))
    values[np.isnan(values) if np.isnan(missing) else values == missing] = mark
    return stored.with_values(values)


def mark_of_missing(rules: MaskRules) -> int:
    """Return the value that marks unlabelled pixels: 255 if it is no class, else a negative one."""
    own = rules.class_ids or ()
    return IGNORE_INDEX if IGNORE_INDEX not in own else min(0, *own) - 1


def names_missing(missing: float | None, rules: MaskRules) -> bool:
    """Whether pixels of the value that a header calls missing are unlabelled.

    A missing value of 0 is ignored, since many programs write it and 0 is the background. So are
    255 and 65535, and values that are class ids.
    """
    own = rules.class_ids or ()
    return not (missing is None or missing in (0, *HIGHEST_VALUES, *own))


def jpeg_message(path: Path) -> str:
    """Return the message that a JPEG holds no such mask."""
    return (
        f"{path} is a JPEG, and JPEG compression changes class ids and colours; save masks as PNG. "
        "Only black and white masks of two classes can be read from JPEG."
    )


def _of_jpeg(path: Path, values: NDArray[Any], two_classes: bool) -> NDArray[np.uint8]:
    if not two_classes or FAINT < values.max() < 128 or _has_greys(values):
        raise InputError(jpeg_message(path))
    return (values >= 128).astype(np.uint8)


def _has_greys(values: NDArray[Any]) -> bool:
    """Whether a JPEG has grey areas, beside the outlines of black and white."""
    bright = values >= 64
    greys = (bright & (values < 192)).astype(np.uint8)
    # Pixels within grey areas; outlines are narrower.
    within = int(cv2.erode(greys, np.ones((3, 3), np.uint8)).sum())
    return within >= 16 and 4 * within > int(bright.sum())


def _of_colours(path: Path, stored: Stored, classes: Mapping[Colour, int]) -> NDArray[np.uint8]:
    """Return the class of each pixel's colour. What is transparent is the background."""
    colours, hidden = _as_colours(path, stored), _hidden(stored)
    if not hidden.any() or hidden.all():
        return classes_of_colours(colours, classes, path)
    result = np.zeros(hidden.shape, np.uint8)
    result[~hidden] = classes_of_colours(colours[~hidden][None], classes, path)[0]
    return result


def _hidden(stored: Stored) -> NDArray[np.bool_]:
    """Return the pixels that are more transparent than opaque."""
    values = stored.values
    if stored.alpha and values.ndim == 3:
        return np.asarray(values[..., -1] <= np.iinfo(values.dtype).max // 2)
    if stored.colours is not None:
        return np.isin(values, stored.transparent)
    return np.zeros(values.shape[:2], np.bool_)


def _as_colours(path: Path, stored: Stored) -> NDArray[Any]:
    if stored.colours is not None:
        return np.asarray(stored.colours[stored.values])
    values = stored.values
    if values.ndim == 3 and stored.alpha:
        values = values[..., :-1]
    values = values.reshape(*values.shape[:2], -1)
    count, kind = values.shape[2], values.dtype
    if count == 1:
        if kind.kind in "ui" and values.min() >= 0 and values.max() <= 255:
            values = values.astype(np.uint8)
        values = np.repeat(values * values.dtype.type(stored.grey_step), 3, axis=2)
    if values.dtype != np.uint8 or values.shape[2] != 3:
        raise InputError(
            f"{path} holds {count} channel{'s' * (count > 1)} of {kind}; data.colours needs RGB, "
            "grey or a palette, of values up to 255; save the mask as such a file."
        )
    return values


def _above_threshold(path: Path, stored: Stored, rules: MaskRules) -> NDArray[np.uint8]:
    """Return class 1 where the levels of a soft mask reach the threshold, 255 where it has none."""
    assert rules.threshold is not None
    levels = grey_levels(path, stored)
    missing = _without_level(levels, stored, rules)
    highest = float(levels.max(initial=0, where=~missing))
    is_deep = levels.dtype.kind in "ui" and levels.dtype.itemsize > 1
    if is_deep and 1 < rules.threshold <= 255 and highest > 100 * rules.threshold:
        raise InputError(
            f"{path} holds values up to {highest:.0f}, but data.mask_threshold={rules.threshold:g} "
            "is for values up to 255; give a threshold on the scale of the file."
        )
    result = (levels >= rules.threshold).astype(np.uint8)
    result[missing] = IGNORE_INDEX
    return result


def where_opaque(path: Path, stored: Stored, rules: MaskRules) -> str | None:
    """Return what a grey mask with varying transparency holds where it is opaque.

    Returns:
        `values` of grey, `white` or another single grey that is drawn in the transparency, or
        `black`, which may be drawn, or be the background of an empty mask. None for other masks.
    """
    if not stored.alpha or stored.values.ndim != 3 or rules.colours is not None:
        return None
    grey, alpha = stored.values[..., 0], stored.values[..., -1]
    if (alpha == alpha[0, 0]).all():
        return None
    if not drawn_in_alpha(path, stored):
        return "values"
    return "white" if grey[alpha > np.iinfo(alpha.dtype).max // 2].any() else "black"


def highest_if_not_shares(path: Path, stored: Stored, rules: MaskRules) -> float | None:
    """Return the highest level of a soft mask if a threshold below 1 hardly cuts it, else None.

    Such a threshold is a share. Of levels up to 255, it makes even the faintest class 1.
    """
    if rules.threshold is None or not 0 < rules.threshold < 1:
        return None
    levels = grey_levels(path, stored)
    known = levels[~_without_level(levels, stored, rules)]
    highest = float(known.max(initial=0))
    is_faint = (known >= rules.threshold) & (known < highest / 2)
    return highest if highest > 100 * rules.threshold and is_faint.any() else None


def grey_levels(path: Path, stored: Stored, wanted: str = LEVELS_WANTED) -> NDArray[Any]:
    """Return the levels of a soft mask, `(H, W)`: for a palette its grey, else the values.

    Args:
        path: The file, for messages.
        stored: Its stored values.
        wanted: What the message about colours says is wanted.

    Raises:
        InputError: If it holds colours.
    """
    if stored.colours is None:
        levels = single_channel(path, stored, integers=False, wanted=wanted)
        return levels if stored.grey_step == 1 else levels * levels.dtype.type(stored.grey_step)
    shown = painted(stored.values, stored.colours, path)
    if shown.ndim == 3:
        raise InputError(f"{path} has a palette of colours, but {wanted}.")
    return shown


def _without_level(levels: NDArray[Any], stored: Stored, rules: MaskRules) -> NDArray[np.bool_]:
    """Return the pixels that are not numbers, or that the file's header calls missing."""
    missing = np.isnan(levels)
    if names_missing(stored.nodata, rules):
        missing |= levels == stored.nodata
    return np.asarray(missing)


def _index_of_class_1(stored: Stored, values: NDArray[Any]) -> int | None:
    """Return the index that means class 1 if only black and white of the palette are used.

    It is the opaque one of two if the other is transparent, and else white.
    """
    if stored.colours is None:
        return None
    used = np.unique(values)
    if used.max(initial=0) >= len(stored.colours) or len(used) > 2:
        return None
    first = range(min(2, len(stored.colours)))
    colours = {int(index): tuple(map(int, stored.colours[index])) for index in (*used, *first)}
    shown = {*colours.values()}
    opaque = [index for index in colours if index not in stored.transparent]
    if shown <= BLACK_AND_WHITE and len(colours) == 2 and len(opaque) == 1:
        return opaque[0]
    if shown != BLACK_AND_WHITE:
        return None
    return next(index for index, colour in colours.items() if colour == WHITE)


def write_mask_like(
    original: Path,
    path: Path,
    classes: NDArray[Any],
    given: NDArray[Any],
    rules: MaskRules,
    foreground: int | None,
) -> None:
    """Write class ids in the way the original stores them. Unchanged pixels keep their values.

    Args:
        original: The original file.
        path: The new file.
        classes: `(H, W)` class ids.
        given: `(H, W)` class ids of the original.
        rules: The meaning of the original's values.
        foreground: The value of class 1 if it is 255 or 65535, else None.
    """
    read = read_mask_file(original, rules)
    stored = read.stored
    if stored.is_jpeg:
        white = (classes > 0) ^ rules.is_inverted
        drawn = stored_again(white.astype(np.uint8) * np.uint8(255), stored.orientation)
        with _encoding(original):
            _save_with_pillow(drawn, original, path)
        return
    values = new_values(read, classes, given, rules, foreground, original)
    with _encoding(original):
        save_like(original, path, stored_again(values, stored.orientation), stored)


@contextmanager
def _encoding(original: Path) -> Iterator[None]:
    """Turn an encoder's error into an `InputError`, but not those of a full or read-only disk."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{original} can be read, but a file like it cannot be written ({reason}); save your "
            "masks as PNG."
        ) from error


def new_values(
    read: MaskValuesOf,
    classes: NDArray[Any],
    given: NDArray[Any],
    rules: MaskRules,
    foreground: int | None,
    original: Path,
) -> NDArray[Any]:
    """Return the stored values for new class ids; the arguments are those of `write_mask_like`."""
    values = np.array(read.stored.values)
    if values.ndim == 2 and not (rules.colours or rules.instances or rules.threshold is not None):
        for start in range(0, len(values), MANY_ROWS):  # some steps need 64 bits per pixel
            rows = slice(start, start + MANY_ROWS)
            part = MaskValuesOf(
                read.values[rows],
                read.two_valued,
                read.stored.of_rows(rows),
            )
            changed = classes[rows] != given[rows]
            if changed.any():
                _set(values[rows], changed, classes[rows], part, rules, foreground)
        return values
    changed = classes != given
    if rules.colours is not None:
        _paint(values, given, classes, read.stored, rules, original)
    else:
        _set(values, changed, classes, read, rules, foreground)
    return values


def _paint(
    values: NDArray[Any],
    given: NDArray[Any],
    classes: NDArray[Any],
    stored: Stored,
    rules: MaskRules,
    original: Path,
) -> None:
    assert rules.colours is not None
    alpha = values[..., -1].copy() if stored.alpha and values.ndim == 3 else None
    changed = classes != given
    opaque = np.iinfo(values.dtype).max if alpha is not None else 0
    shown = 1 if values.ndim == 2 else min(3, values.shape[2] - stored.alpha)
    for k in np.unique(classes[changed]):
        colour = next((c for c, number in rules.colours.items() if number == k), None)
        if colour is None:
            raise InputError(f"data.colours names no colour for class {k}; add one.")
        where = changed & (classes == k)
        if stored.colours is not None:
            index = np.flatnonzero((stored.colours == colour).all(axis=1))
            index = index[~np.isin(index, stored.transparent)]
            if k == 0 and not len(index):
                index = np.array(stored.transparent[:1])
            if not len(index):
                raise InputError(
                    f"The palette of {original} has no colour {colour}, so class {k} cannot be "
                    "written with it; save the masks as RGB or with one palette."
                )
            values[where] = index[0]
        elif values.ndim == 2:
            values[where] = colour[0] // stored.grey_step
        else:
            values[where, :shown] = colour[:shown]
            if alpha is not None and (alpha < opaque).any():
                # As where the file has this class; otherwise opaque where drawn.
                alike = alpha[given == k]
                drawn = opaque if k else 0
                values[where, -1] = alike[0] if alike.size else drawn
    is_empty = alpha is not None and _hidden(stored.with_values(values)).all()
    if is_empty and not _hidden(stored).all():  # then the colours count
        background = next(c for c, number in rules.colours.items() if number == 0)
        values[..., :shown] = background[:shown]


def _set(
    values: NDArray[Any],
    changed: NDArray[np.bool_],
    classes: NDArray[Any],
    read: MaskValuesOf,
    rules: MaskRules,
    foreground: int | None,
) -> None:
    """Set the values of the new classes in one channel, or in all channels that show the mask."""
    integers = rules.threshold is None
    flat = values
    if values.ndim != 2:
        flat = single_channel(Path(), read.stored, integers=integers)
    new = _encoded(classes, flat, read, rules, foreground)
    if values.ndim == 2:
        values[changed] = new[changed].astype(values.dtype)
    elif read.stored.alpha and drawn_in_alpha(Path(), read.stored):
        values[changed, -1] = new[changed].astype(values.dtype)
    else:
        shown = values.shape[2] - read.stored.alpha
        values[changed, :shown] = new[changed, None].astype(values.dtype)
        if read.stored.alpha and (values[..., -1] != values[0, 0, -1]).any():  # opaque where drawn
            top = np.iinfo(values.dtype).max
            values[changed, -1] = np.where(new[changed] > 0, top, 0).astype(values.dtype)


def _encoded(
    classes: NDArray[Any],
    flat: NDArray[Any],
    read: MaskValuesOf,
    rules: MaskRules,
    foreground: int | None,
) -> NDArray[Any]:
    if rules.threshold is not None:
        return _soft(classes, flat, read.stored, rules.threshold, rules)
    if rules.instances:
        return np.where(classes > 0, _object_numbers(classes == 1, flat, read), 0)
    if read.two_valued and read.stored.is_binary:
        return np.asarray((classes > 0) ^ rules.is_inverted)
    if rules.class_ids is not None:
        table = np.arange(65536)
        missing = read.stored.nodata
        if IGNORE_INDEX in rules.class_ids and missing is not None and missing == missing // 1:
            table[IGNORE_INDEX] = int(missing)  # 255 means a class, and this unlabelled pixels
        table[: len(rules.class_ids)] = rules.class_ids
        return np.asarray(table[classes])
    drawn = _index_of_class_1(read.stored, flat) if rules.classes == 2 else None
    if drawn is not None:
        return np.where(classes > 0, drawn, 1 - drawn if drawn in (0, 1) else 0)
    if foreground is not None and not read.two_valued:
        return np.where(classes > 0, foreground, 0)
    return classes


def _soft(
    classes: NDArray[Any], flat: NDArray[Any], stored: Stored, threshold: float, rules: MaskRules
) -> NDArray[Any]:
    """Return stored values of a soft mask: its highest for class 1, and 0 or its lowest for 0."""
    if stored.colours is not None:
        grey = (stored.colours == stored.colours[:, :1]).all(axis=1)
        levels = np.where(grey, stored.colours[:, 0].astype(int), -1)
        low, high = np.where(grey, levels, 256).argmin(), levels.argmax()
        return np.where(classes > 0, high, low)
    missing = _without_level(flat, stored, rules)
    limit = threshold / stored.grey_step
    known = flat[~missing]
    high, low = known.max(initial=0), known.min(initial=0)
    high = high if high >= limit else np.ceil(limit)
    # Where thresholds are of logits, 0 would be class 1.
    new = np.where(classes > 0, high, low if limit <= 0 and low < limit else 0)
    if missing.any():
        new = np.where(classes == IGNORE_INDEX, flat[missing][0], new)
    return new


def _object_numbers(
    drawn: NDArray[np.bool_], flat: NDArray[Any], read: MaskValuesOf
) -> NDArray[Any]:
    """Return the object of each pixel: the nearest one, or a new one for areas apart from all.

    Args:
        drawn: The pixels of all objects now.
        flat: The stored numbers of the objects before.
        read: The mask before.

    Raises:
        InputError: If the file cannot hold as many numbers.
    """
    before, stored = read.values, read.stored
    numbers = nearest_values(flat, before == 1)
    count, areas = cv2.connectedComponents(drawn.astype(np.uint8), connectivity=8)
    apart = sorted({*range(1, count)} - set(np.unique(areas[before == 1]).tolist()))
    if not apart:
        return numbers
    top = np.iinfo(flat.dtype).max if np.issubdtype(flat.dtype, np.integer) else 65535
    if stored.bits < 8:
        top = 2**stored.bits - 1
    if stored.colours is not None:
        top = min(top, len(stored.colours) - 1)
    taken = set(np.unique(flat).tolist())
    if (before == IGNORE_INDEX).any():
        taken |= {254, 255}  # 255 is unlabelled only where objects do not count up to it
    highest = int(flat.max(where=before == 1, initial=0))
    order = [*range(highest + 1, min(top, 65535) + 1), *range(1, highest)]
    free = [number for number in order if number not in taken]
    if len(free) < len(apart):
        raise InputError(
            f"A mask would hold {len(apart)} more objects, but its file has numbers up to {top} "
            "only; save the masks of objects with 16 bits."
        )
    new = np.zeros(count, np.int64)
    new[apart] = free[: len(apart)]
    return np.where(new[areas] > 0, new[areas], numbers)


def save_like(original: Path, path: Path, values: NDArray[Any], stored: Stored) -> None:
    """Save stored values in the format of a file, with its other metadata.

    Args:
        original: The file whose format is used.
        path: The new file.
        values: The values, in the file's stored orientation.
        stored: The original's stored values and format.
    """
    if stored.mode == "npy":
        array = np.load(original, allow_pickle=False)
        with path.open("wb") as file:
            if values.ndim == array.ndim == 3 and values.shape != array.shape:
                values = np.moveaxis(values, 2, 0)  # the file's planes come first
            np.save(file, values.astype(array.dtype).reshape(array.shape))
    elif can_write_like(original):
        write_tiff_like(original, path, values)
    else:
        _save_with_pillow(values, original, path, stored)


def _save_with_pillow(
    values: NDArray[Any], original: Path, path: Path, stored: Stored | None = None
) -> None:
    with Image.open(original) as file:
        mode, file_format, palette = file.mode, file.format, file.getpalette()
        info, exif = dict(file.info), file.getexif()
    bits = 8 if stored is None else stored.bits
    if file_format == "PNG" and mode == "L" and bits < 8:
        path.write_bytes(_small_png(values, bits))
        return
    if file_format == "PNG" and bits == 16 and values.ndim == 3:
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]
        path.write_bytes(cv2.imencode(".png", values[..., order])[1].tobytes())
        return
    if file_format == "PPM" and mode in ("L", "I"):
        _write_pgm(original, path, values)
        return
    if mode == "1":
        image = Image.fromarray((values > 0).astype(np.uint8) * np.uint8(255)).convert("1")
    elif mode == "P":
        image = Image.fromarray(values.astype(np.uint8), "L")
        image.putpalette(palette or [])
    elif mode.startswith("I;16"):
        image = Image.fromarray(values.astype(np.uint16))
    elif mode in ("I", "F"):
        image = Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    else:
        image = Image.fromarray(values.astype(np.uint8))
        if image.mode != mode:
            image = image.convert(mode)
    kept = ("transparency", "dpi", "gamma", "icc_profile")
    options: dict[str, Any] = {key: info[key] for key in kept if key in info}
    if mode == "1" and "transparency" in options:
        options["transparency"] = int(options["transparency"] > 0)  # Pillow reads it as 0 or 255
    if file_format == "PNG":
        text = PngImagePlugin.PngInfo()
        for key, value in info.items():
            if isinstance(value, str) and key not in options:
                text.add_text(str(key), value)
        options["pnginfo"] = text
        if mode == "P":
            options["bits"] = bits
    if file_format == "TIFF" and "compression" in info:
        options["compression"] = info["compression"]
    if file_format == "GIF":
        options["optimize"] = False  # it would renumber the indices
    if file_format == "WEBP":
        options["lossless"] = True
    if file_format == "JPEG2000":
        options["irreversible"] = False
    if len(exif):
        options["exif"] = exif
    if file_format in ("JPEG", "MPO"):
        options |= {"quality": 95, "subsampling": 0}
    image.save(path, format="JPEG" if file_format == "MPO" else file_format, **options)


def _small_png(values: NDArray[Any], bits: int) -> bytes:
    """Encode a grey PNG with 1, 2 or 4 bits, which Pillow cannot write.

    Source: https://www.w3.org/TR/png-3/
    """
    height, width = values.shape
    per_byte = 8 // bits
    padded = np.zeros((height, -(-width // per_byte) * per_byte), np.uint8)
    padded[:, :width] = values
    shifts = np.arange(per_byte)[::-1] * bits
    packed = (padded.reshape(height, -1, per_byte) << shifts).sum(axis=2).astype(np.uint8)
    rows = np.hstack([np.zeros((height, 1), np.uint8), packed])  # each row begins with no filter

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _write_pgm(original: Path, path: Path, values: NDArray[Any]) -> None:
    from coseg_lightning.files.images import largest_of_pgm

    largest = largest_of_pgm(original)
    if int(values.max(initial=0)) > largest:
        raise InputError(
            f"{original} can hold values up to {largest}, but {values.max()} must be written; save "
            "the masks as PNG."
        )
    kind = np.uint8 if largest < 256 else np.dtype(">u2")
    header = f"P5\n{values.shape[1]} {values.shape[0]}\n{largest}\n".encode()
    path.write_bytes(header + values.astype(kind).tobytes())


def soft_mask_hint(values: list[int], counts: list[int]) -> str | None:
    """Return advice if values look like grey levels or object numbers instead of class ids.

    Args:
        values: The different values of a mask.
        counts: The number of pixels with each value.
    """
    if len(values) > 40 and max(values) <= 255:
        margin = 0.1 * (max(values) - min(values))
        ends = [min(values) + margin, max(values) - margin]
        between = sum(n for v, n in zip(values, counts, strict=True) if ends[0] < v < ends[1])
        if 2 * between > sum(counts):  # a soft mask is grey at the outline alone
            return (
                f"it holds {len(values)} different values, most pixels between black and white, so "
                "it may be a picture that was saved as a mask, or a soft mask; look at it, and set "
                "data.mask_threshold=128 if values of at least 128 mean class 1"
            )
        return (
            f"it holds {len(values)} different values, so it may be a soft or smoothed mask; set "
            "data.mask_threshold=128 to read values of at least 128 as class 1"
        )
    if len(values) > 3 and max(values) < 65535 and max(values) - min(values) < 2 * len(values):
        return (
            f"it holds {listed(values, 6)}; if each number is an object, set "
            "data.instances=foreground to read all objects as class 1"
        )
    return None
