"""MaskFolder: a folder of masks, one file per sample, read as class ids."""

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import Stored, files_by_stem, smallest_type
from coseg_lightning.files.inspection import (
    FileInfo,
    Inspection,
    PixelDigest,
    links_outside,
    place_of,
    scan_files,
)
from coseg_lightning.files.mask_file import (
    FAINT,
    MaskValuesOf,
    highest_if_not_shares,
    interpreted,
    mark_of_missing,
    names_missing,
    new_values,
    read_mask_file,
    where_opaque,
    write_mask_like,
)
from coseg_lightning.files.mask_rules import IGNORE_INDEX, MaskRules
from coseg_lightning.files.mask_values import MaskValues
from coseg_lightning.files.naming import MASK_ENDS
from coseg_lightning.files.tiff import has_validity_mask, is_packed
from coseg_lightning.files.volumes import file_of, name_of_file, write_slices
from coseg_lightning.files.windows import (
    ROWS,
    ArrayWindows,
    TiffWindows,
    decoded_copy,
    has_tiff_windows,
    parts_of_rows,
)

log = logging.getLogger(__name__)

INFO = (
    *("size", "digest", "values", "two_valued", "counts", "border", "left", "turned", "palette"),
    *("place", "has_validity_mask", "is_faint", "missing", "key", "not_shares", "holds_255"),
    "opaque",
)
# Statistics and histograms in GDAL's .aux.xml.
FIGURES = re.compile(
    rb'\s*(<MDI key="STATISTICS_[^>]*>[^<]*</MDI>|<Histograms>.*?</Histograms>)', re.DOTALL
)


class MaskFolder:
    """A folder of masks, one file per sample, named `<id>.<suffix>`.

    Masks hold class ids `0 .. classes-1` and 255 for unlabelled pixels. If there are two classes
    and all files hold only 0 and 255 (or 0 and 65535), that value means class 1. Two-class JPEG
    masks are thresholded at half of their range, because JPEG blurs values. Other meanings are set
    by `rules`.

    Args:
        folder: The folder.
        classes: Number of classes, background included.
        ids: The samples that will be read. Their masks decide what 255 means. By default all.
        inspection: Receives the problems. By default they are raised together.
        skip: Whether unusable masks are skipped with a warning, if there is no `inspection`.
        rules: The meaning of the values; by default they are class ids.
        files: The files of each sample, if their names contain more than the id.
        canvas: The network input, for counting the pixels of each class left at its size.
        allow_links: Whether links may lead out of the dataset's folder.
        dataset: The dataset's folder; by default the parent of the folder of masks.

    Attributes:
        file_info: Size, digest and values of each usable mask, by sample.
        foreground: The value that means class 1, if it is 255 or 65535.

    Raises:
        InputError: If the folder does not exist, or if files are missing, unreadable, or hold a
            class id out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        classes: int,
        ids: Iterable[str] | None = None,
        inspection: Inspection | None = None,
        skip: bool = False,
        rules: MaskRules | None = None,
        files: Mapping[str, list[Path]] | None = None,
        canvas: Canvas | None = None,
        allow_links: bool = False,
        dataset: Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._dataset = self.folder.parent if dataset is None else dataset
        self.classes = max(2, classes)  # the single output of a binary network has two classes
        self.rules = MaskRules(self.classes) if rules is None else rules
        self._canvas = canvas
        self._allow_links = allow_links
        by_stem = files_by_stem(self.folder) if files is None else dict(files)
        self._paths = {stem: paths[0] for stem, paths in by_stem.items()}
        self.foreground: int | None = None
        self._small: frozenset[Path] = frozenset()  # masks that are known to be read as a whole
        problems = Inspection(self.folder) if inspection is None else inspection
        self.file_info = self._inspect(by_stem, list(by_stem) if ids is None else ids, problems)
        self._small = frozenset(
            self._paths[sample_id]
            for sample_id, info in self.file_info.items()
            if info["size"][0] * info["size"][1] < ROWS
        )
        if inspection is None:
            problems.report(skip=skip or None)
            self._paths = {
                sample_id: path
                for sample_id, path in self._paths.items()
                if sample_id not in problems.unusable_ids
            }

    def _inspect(
        self, by_stem: Mapping[str, list[Path]], ids: Iterable[str], inspection: Inspection
    ) -> dict[str, FileInfo]:
        """Read every mask once before training, and return the information on usable masks."""
        ids_with_file = self._check_files(by_stem, ids, inspection)
        results = scan_files(
            [self._paths[sample_id] for sample_id in ids_with_file],
            self._mask_info,
            kind=f"masks, 5, of {self.rules.key} at {self._canvas}",
            title=f"Inspecting {self.folder.name}",
            names=INFO,
        )
        readable: dict[str, FileInfo] = {}
        for sample_id in ids_with_file:
            result = results[self._paths[sample_id]]
            if isinstance(result, InputError):
                inspection.add("unreadable mask", [sample_id], str(result))
            else:
                readable[sample_id] = result
        values = MaskValues(self.folder, self._paths, self.rules, readable)
        self.foreground = values.foreground
        return values.check(inspection)

    def _check_files(
        self, by_stem: Mapping[str, list[Path]], ids: Iterable[str], inspection: Inspection
    ) -> list[str]:
        """Report the samples that do not have exactly one file, and return the others."""
        ids_with_file = []
        allowed = [self.folder, self._dataset]
        if self._dataset == self.folder.parent:
            allowed.append(Path(os.path.realpath(self.folder)).parent)
        for sample_id in ids:
            paths = by_stem.get(sample_id, [])
            if not paths:
                inspection.add("no mask", [sample_id], self._no_mask_message(sample_id))
            elif len(paths) > 1:
                inspection.add("same stem", [sample_id], same_stem(paths))
            elif not self._allow_links and links_outside(paths[0], allowed):
                inspection.add("link", [sample_id], link_message(paths[0]))
            else:
                ids_with_file.append(sample_id)
        return ids_with_file

    def _mask_info(self, path: Path) -> FileInfo:
        counts: Counter[int] = Counter()
        border: Counter[int] = Counter()
        digest: PixelDigest | None = None
        rows, last, wholes = 0, np.empty(0), []
        not_shares: float | None = None
        holds_255 = False
        part: MaskValuesOf | None = None
        windows = self._windows_if_large(path)
        for part in self._parts(path, windows):
            values = part.values
            rows += len(values)
            last = values[-1]
            sides = [values[:, 0], values[:, -1], *([values[0]] if digest is None else [])]
            if digest is None:
                size = values.shape if windows is None else windows.shape[:2]
                digest = PixelDigest(size, values.dtype)
            digest.add(values)
            counts.update(_counts_of(values))
            border.update(_counts_of(np.concatenate(sides)))
            holds_255 |= bool((part.stored.values == IGNORE_INDEX).any())
            not_shares = not_shares or highest_if_not_shares(path, part.stored, self.rules)
            wholes += [] if self._canvas is None else [values]
        assert digest is not None
        assert part is not None
        stored = part.stored
        border.update(_counts_of(last))
        width = len(last)
        found = sorted(counts)
        left = dict(counts)
        if self._canvas is not None:
            left = _counts_of(_left_on(self._canvas, np.concatenate(wholes), found))
        palette = None
        if stored.colours is not None and len(stored.colours) > max(found):
            palette = [stored.colours[value].tolist() for value in found]
        is_missing = names_missing(stored.nodata, self.rules)
        is_missing &= mark_of_missing(self.rules) in found
        return {
            "size": [rows, width],
            "values": found,
            "two_valued": part.two_valued,
            "digest": digest.value,
            "counts": [counts[value] for value in found],
            "border": [border[value] / (2 * (rows + width)) for value in found],
            "left": [left.get(value, 0) for value in found],
            "turned": stored.orientation != 1,
            "palette": palette,
            "place": place_of(path),
            "has_validity_mask": has_validity_mask(file_of(path)),
            "is_faint": stored.is_jpeg and 0 < int(stored.values.max()) <= FAINT,
            "missing": stored.nodata if is_missing else None,
            "key": stored.key,
            "not_shares": not_shares,
            "holds_255": holds_255,
            "opaque": where_opaque(path, stored, self.rules),
        }

    def _windows_if_large(self, path: Path) -> TiffWindows | None:
        """Open the windows of a mask that is read in parts; None if it is read as a whole."""
        if self.rules.instances or path in self._small:
            return None
        return windows_of_mask(path)

    def _parts(self, path: Path, windows: TiffWindows | None) -> Iterator[MaskValuesOf]:
        """Read a mask in parts of its rows, or all at once if it is not large."""
        if windows is None:
            yield read_mask_file(path, self.rules)
            return
        for top, rows in parts_of_rows(windows.shape[:2]):
            values = windows.read(top, 0, rows, windows.shape[1])[..., 0]
            stored = Stored(values, "tiff", nodata=windows.nodata)
            yield interpreted(path, stored, self.rules)

    @property
    def ids(self) -> list[str]:
        """The samples that have a mask in this folder."""
        return list(self._paths)

    def path(self, sample_id: str) -> Path:
        """Return the mask file of one sample."""
        if sample_id not in self._paths:
            raise InputError(self._no_mask_message(sample_id))
        return self._paths[sample_id]

    def _no_mask_message(self, sample_id: str) -> str:
        text = f"{self.folder} holds no mask of {sample_id}; every sample needs one."
        ends = "|".join(map(re.escape, MASK_ENDS))
        named = re.fullmatch(rf"(.+?)(?:{ends})[-_ ]?\(?\d+\)?", sample_id)
        if named and named[1] in self._paths:
            text = (
                f"{sample_id} is probably one more mask of {named[1]}, beside "
                f"{name_of_file(self._paths[named[1]])}; join them into one mask for each image."
            )
        return text

    def read(self, sample_id: str) -> NDArray[Any]:
        """Read one mask.

        Args:
            sample_id: The sample.

        Shape:
            `(H, W)` uint8 or uint16 class ids, 255 for unlabelled pixels.

        Raises:
            InputError: If the sample has no mask, or it cannot be read.
        """
        return self.class_ids(self.path(sample_id))

    def class_ids(self, path: Path) -> NDArray[Any]:
        """Read the class ids of a mask file, `(H, W)`."""
        parts = [
            self._as_class_ids(part) for part in self._parts(path, self._windows_if_large(path))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _as_class_ids(self, part: MaskValuesOf) -> NDArray[Any]:
        values, two_valued, _ = part
        if two_valued:
            return smallest_type(values)
        if self.rules.class_ids is not None:
            return _numbered(values, self.rules.class_ids)
        if self.foreground is not None:
            values = values == self.foreground
        return smallest_type(values)

    def windows(self, sample_id: str, folder: Path) -> "MaskWindows":
        """Open one mask for reading its class ids by windows.

        Args:
            sample_id: The sample.
            folder: A folder for decoded copies of files that cannot be read by windows.
        """
        return MaskWindows(self, self.path(sample_id), folder)

    def class_ids_of(
        self, path: Path, values: NDArray[Any], nodata: float | None = None
    ) -> NDArray[Any]:
        """Convert a window `(H, W)` of stored values, which may have missing ones, to class ids."""
        stored = Stored(values, "tiff", nodata=nodata)
        return self._as_class_ids(interpreted(path, stored, self.rules))

    def left_of(self, sample_id: str, class_id: int) -> tuple[int, int]:
        """Return the number of a class's pixels in a mask, at its own and at the networks' size."""
        info = self.file_info[sample_id]
        value = class_id
        if not info["two_valued"]:
            if self.rules.class_ids is not None:
                value = self.rules.class_ids[class_id]
            elif self.foreground is not None:
                value = self.foreground
        if value not in info["values"]:
            return 0, 0
        index = info["values"].index(value)
        return info["counts"][index], info["left"][index]

    def stored_values(self, sample_id: str, mask: NDArray[Any]) -> NDArray[Any]:
        """Return the values that a sample's file would store for new class ids `(H, W)`."""
        path = self.path(sample_id)
        read, given = read_mask_file(path, self.rules), self.class_ids(path)
        return new_values(read, mask, given, self.rules, self.foreground, path)

    def write_like(self, sample_id: str, path: Path, mask: NDArray[Any]) -> None:
        """Write class ids like a sample's own file: the same format, mode, palette and values.

        Pixels whose class does not change keep their stored value. A TIFF keeps its tags, such as
        its position on the earth, its tiles and its compression.

        Args:
            sample_id: The sample.
            path: The new file.
            mask: `(H, W)` class ids.

        Raises:
            InputError: If such a file cannot hold the class ids.
        """
        original = self.path(sample_id)
        given = self.class_ids(original)
        write_mask_like(original, path, mask, given, self.rules, self.foreground)
        start, is_same = 0, True
        for part in self._parts(path, self._windows_if_large(path)):
            written = self._as_class_ids(part)
            is_same = is_same and np.array_equal(written, mask[start : start + len(written)])
            start += len(written)
        if not is_same and (mask == IGNORE_INDEX).any() and not (given == IGNORE_INDEX).any():
            raise InputError(
                f"The new mask of {sample_id} has unlabelled pixels, which a file like {original} "
                "cannot hold; label these pixels, or save your masks with the class ids 0 and 1."
            )
        if not is_same:
            raise InputError(
                f"The new mask of {sample_id} cannot be written like {original} without losing "
                "class ids; save your masks as PNG."
            )


class MaskWindows:
    """A mask that is read by windows.

    Args:
        masks: The folder of the mask.
        path: The mask's file.
        folder: A folder for a decoded copy, if the file cannot be read by windows.
    """

    def __init__(self, masks: MaskFolder, path: Path, folder: Path) -> None:
        self._masks, self._path = masks, path
        # Whether 255 is an object or unlabelled can only be seen in the whole mask.
        self._tiff = None if masks.rules.instances else windows_of_mask(path, least=0)
        self._copy: ArrayWindows | None = None
        if self._tiff is None:
            kind = f"mask, 4, {masks.rules.key} {masks.foreground}"
            read = partial(masks.class_ids, path)
            self._copy = ArrayWindows(decoded_copy(path, kind, folder, read))

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        """Read the class ids of a window, `(height, width)`."""
        if self._copy is not None:
            return self._copy.read(top, left, height, width)[..., 0]
        assert self._tiff is not None
        values = self._tiff.read(top, left, height, width)[..., 0]
        return self._masks.class_ids_of(self._path, values, self._tiff.nodata)


def windows_of_mask(path: Path, least: int = ROWS) -> TiffWindows | None:
    """Open a mask that can be read by windows: a large TIFF with one band. Else return None.

    Args:
        path: The file.
        least: The least number of pixels of a large mask.
    """
    if not has_tiff_windows(path):
        return None
    windows = TiffWindows(path, of_mask=True)
    height, width, bands = windows.shape
    is_plain = bands == 1 and not windows.is_jpeg
    return windows if is_plain and height * width >= least else None


class MaskWriter:
    """Writes a folder of masks like another one: some are copied, and some have new class ids.

    Slices of a volume are collected, and `finish` writes the volume.

    Args:
        masks: The folder of the originals.
        folder: The new folder.
    """

    def __init__(self, masks: MaskFolder, folder: Path) -> None:
        self._masks = masks
        self._folder = folder
        self._volumes: dict[Path, dict[int, NDArray[Any]]] = {}
        self._packed: list[Path] = []

    def copy(self, path: Path) -> None:
        """Copy an original byte by byte, or leave a slice of a volume unchanged."""
        file = file_of(path)
        if file != path:
            self._volumes.setdefault(file, {})
        else:
            place = self._place(path)
            shutil.copyfile(path, place)
            _copy_position(path, place)

    def write_once(self, sample_id: str, key: str, mask: NDArray[Any] | None) -> None:
        """Write one mask under the sample's id, where the original files name annotators.

        Args:
            sample_id: The sample.
            key: The mask whose file determines the format and the values.
            mask: `(H, W)` class ids; None to copy the file byte by byte.

        Raises:
            InputError: If it is a slice of a volume, or the file's format cannot hold it.
        """
        path = self._masks.path(key)
        if file_of(path) != path:
            raise InputError(
                f"{path.parent} is a volume, but masks of several annotators are written as one "
                "file per image; save its slices as single files."
            )
        place = self._folder / f"{sample_id}{path.suffix}"
        if mask is None:
            shutil.copyfile(path, place)
            _copy_position(path, place)
        else:
            self._write_like(key, place, mask)

    def write(self, sample_id: str, mask: NDArray[Any]) -> None:
        """Write the class ids of one sample; see `MaskFolder.write_like`."""
        path = self._masks.path(sample_id)
        if file_of(path) == path:
            self._write_like(sample_id, self._place(path), mask)
        else:
            slices = self._volumes.setdefault(path.parent, {})
            slices[int(path.name)] = self._masks.stored_values(sample_id, mask)

    def _write_like(self, key: str, place: Path, mask: NDArray[Any]) -> None:
        self._masks.write_like(key, place, mask)
        path = self._masks.path(key)
        _copy_position(path, place, is_changed=True)
        if is_packed(path):
            self._packed.append(path)

    def finish(self) -> None:
        """Write the volumes, and warn of values that now take more bits."""
        for file, slices in self._volumes.items():
            if slices:
                write_slices(file, self._place(file), slices)
            else:
                shutil.copyfile(file, self._place(file))
        if self._packed:
            log.warning(
                "Masks whose values have few bits were written with 8 or 16 bits per value: %d, "
                "such as %s.",
                len(self._packed),
                self._packed[0],
            )

    def _place(self, path: Path) -> Path:
        place = self._folder / path.relative_to(self._masks.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


def _copy_position(path: Path, place: Path, *, is_changed: bool = False) -> None:
    """Copy the files beside a mask that hold its position: a world file, a CRS, GDAL's metadata.

    If the mask is changed, what the metadata say of its values, such as their mean, is left out.
    """
    name = path.suffix[1:].lower()
    world = {f"{name[:1]}{name[-1:]}w", f"{name}w", "wld"}
    for ending in sorted({".prj", *(f".{each}" for each in world)}):
        for written in (ending, ending.upper()):
            if path.with_suffix(written).is_file():
                shutil.copyfile(path.with_suffix(written), place.with_suffix(written))
    metadata = path.with_name(f"{path.name}.aux.xml")
    if metadata.is_file():
        content = metadata.read_bytes()
        place.with_name(f"{place.name}.aux.xml").write_bytes(
            FIGURES.sub(b"", content) if is_changed else content
        )


def same_stem(paths: list[Path]) -> str:
    """Return the message that two files belong to one sample."""
    if file_of(paths[0]).parent == file_of(paths[1]).parent:
        return f"{paths[0]} and {name_of_file(paths[1])} would be the same sample; remove one."
    return (
        f"{paths[0]} and {paths[1]} would be the same sample; rename one, or take the folders into "
        "the ids with a pattern such as data.image_glob={group}/{id}.*, and the same for masks."
    )


def link_message(path: Path) -> str:
    """Return the message that a file is a link out of the dataset's folder, or a broken link."""
    target = os.path.realpath(path)
    if not Path(target).exists():
        return f"{path} is a link to {target}, which does not exist; fetch or restore that file."
    return (
        f"{path} is a link to {target}, outside of the dataset's folder; put the file itself into "
        "the folder, or set data.allow_links=true."
    )


def _counts_of(mask: NDArray[Any]) -> dict[int, int]:
    """Count the pixels that hold each value."""
    if mask.dtype in (np.uint8, np.uint16):  # without sorting all pixels
        counts: dict[int, int] = {}
        for start in range(0, mask.size, ROWS):  # bincount converts each pixel to 64 bits
            part = np.bincount(mask.reshape(-1)[start : start + ROWS])
            for value in np.flatnonzero(part):
                counts[int(value)] = counts.get(int(value), 0) + int(part[value])
        return counts
    found, times = np.unique(mask, return_counts=True)
    return dict(zip(found.tolist(), times.tolist(), strict=True))


def _left_on(canvas: Canvas, values: NDArray[Any], found: list[int]) -> NDArray[Any]:
    """Resize values to the networks' size with nearest neighbours."""
    height, width = canvas.content(values.shape)
    is_plain = values.dtype in (np.uint8, np.uint16)  # OpenCV resizes few types
    indices = values if is_plain else np.searchsorted(found, values).astype(np.uint16)
    small = cv2.resize(indices, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    left: NDArray[Any] = small if is_plain else np.asarray(found)[small]
    return left


def _numbered(values: NDArray[Any], class_ids: tuple[int, ...]) -> NDArray[np.uint8]:
    """Replace the value of each class by its number. All other values become 255, unlabelled."""
    result = np.full(values.shape, IGNORE_INDEX, np.uint8)
    for number, value in enumerate(class_ids):
        result[values == value] = number
    return result
