"""MaskFolder: a folder of masks, one file per sample, read as class ids."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import files_by_stem, read_indices_and_mode, smallest_type
from coseg_lightning.files.inspection import (
    FileInfo,
    Inspection,
    links_outside,
    pixel_digest,
    scan_files,
)
from coseg_lightning.files.mask_values import MaskValues

ONE_BIT = "1"  # Pillow's mode of images with one bit per pixel


class FileStyle(NamedTuple):
    """The properties of a mask file that a new mask of the same sample shares."""

    file_format: str | None
    mode: str
    palette: list[int] | None
    options: dict[str, Any]


class MaskFolder:
    """A folder of masks, one file per sample, named `<id>.<suffix>`.

    Masks hold class ids `0 .. classes-1` and 255 for unlabelled pixels. If there are two classes
    and no file holds any value but 0 and 255 (or 0 and 65535), that value means class 1. Two-class
    JPEG masks are thresholded at half of their range, because JPEG blurs values.

    Args:
        folder: The folder.
        classes: Number of classes, background included.
        ids: The samples that will be read, and whose masks decide what 255 means. By default all.
        inspection: Receives the problems. By default they are raised, all together.
        skip: Whether unusable masks are skipped with a warning, if there is no `inspection`.

    Attributes:
        file_info: Size, digest and values of each usable mask, by sample.

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
    ) -> None:
        self.folder = Path(folder)
        self.classes = max(2, classes)  # the single output of a binary network has two classes
        by_stem = files_by_stem(self.folder)
        self._paths = {stem: paths[0] for stem, paths in by_stem.items()}
        self._foreground: int | None = None
        problems = Inspection(self.folder) if inspection is None else inspection
        self.file_info = self._inspect(by_stem, list(by_stem) if ids is None else ids, problems)
        if inspection is None:
            problems.report(skip=skip or None)
            self._paths = {
                sample_id: path
                for sample_id, path in self._paths.items()
                if sample_id not in problems.unusable_ids
            }

    def _inspect(
        self, by_stem: dict[str, list[Path]], ids: Iterable[str], inspection: Inspection
    ) -> dict[str, FileInfo]:
        """Read every mask once before training, and return the information on usable masks."""
        ids_with_file = self._check_files(by_stem, ids, inspection)
        results = scan_files(
            [self._paths[sample_id] for sample_id in ids_with_file],
            self._mask_info,
            kind=f"masks of {'two' if self.classes == 2 else 'several'} classes",
            title=f"Inspecting {self.folder.name}",
            names=("size", "digest", "values", "two_valued"),
        )
        readable: dict[str, FileInfo] = {}
        for sample_id in ids_with_file:
            result = results[self._paths[sample_id]]
            if isinstance(result, InputError):
                inspection.add("unreadable mask", [sample_id], str(result))
            else:
                readable[sample_id] = result
        values = MaskValues(self.folder, self._paths, self.classes, readable)
        self._foreground = values.foreground
        return values.check(inspection)

    def _check_files(
        self, by_stem: dict[str, list[Path]], ids: Iterable[str], inspection: Inspection
    ) -> list[str]:
        """Report the samples that do not have exactly one file, and return the others."""
        ids_with_file = []
        real_parent = Path(os.path.realpath(self.folder)).parent
        for sample_id in ids:
            paths = by_stem.get(sample_id, [])
            if not paths:
                inspection.add("no mask", [sample_id], self._no_mask_message(sample_id))
            elif len(paths) > 1:
                inspection.add("same stem", [sample_id], same_stem(paths))
            elif links_outside(paths[0], [self.folder, self.folder.parent, real_parent]):
                inspection.add("link", [sample_id], link_message(paths[0]))
            else:
                ids_with_file.append(sample_id)
        return ids_with_file

    def _mask_info(self, path: Path) -> FileInfo:
        values, two_valued = self._read(path)
        return {
            "size": list(values.shape),
            "values": _values_of(values),
            "two_valued": two_valued,
            "digest": pixel_digest(values),
        }

    @property
    def ids(self) -> list[str]:
        """The samples that have a mask in this folder."""
        return list(self._paths)

    def path(self, sample_id: str) -> Path:
        """The mask file of one sample."""
        if sample_id not in self._paths:
            raise InputError(self._no_mask_message(sample_id))
        return self._paths[sample_id]

    def _no_mask_message(self, sample_id: str) -> str:
        return f"{self.folder} holds no mask of {sample_id}; every sample needs one."

    def read(self, sample_id: str) -> NDArray[Any]:
        """Read one mask.

        Args:
            sample_id: The sample.

        Shape:
            `(H, W)` uint8 or uint16 class ids, 255 for unlabelled pixels.

        Raises:
            InputError: If the sample has no mask, or it cannot be read.
        """
        return self._class_ids(self.path(sample_id))

    def _class_ids(self, path: Path) -> NDArray[Any]:
        values, two_valued = self._read(path)
        if self._foreground is not None and not two_valued:
            values = values == self._foreground
        return smallest_type(values)

    def _read(self, path: Path) -> tuple[NDArray[Any], bool]:
        """Stored values, and whether the file is two-valued. The file is opened only once."""
        values, mode = read_indices_and_mode(path)
        if _is_jpeg(path) and self.classes == 2 and values.max() > 1:
            values = (values >= 128).astype(np.uint8)
        return values, self._is_two_valued(path, mode)

    def _is_two_valued(self, path: Path, mode: str) -> bool:
        """Whether a file's format says that it holds two classes, which are read as 0 and 1."""
        return self.classes == 2 and (_is_jpeg(path) or mode == ONE_BIT)

    def write_like(self, sample_id: str, path: Path, mask: NDArray[Any]) -> None:
        """Write class ids like a sample's own file: the same format, mode, palette and values.

        Args:
            sample_id: The sample.
            path: The new file.
            mask: `(H, W)` class ids.

        Raises:
            InputError: If such a file cannot hold the class ids, as a JPEG of several classes.
        """
        original = self.path(sample_id)
        style = _file_style(original)
        foreground = self._foreground
        if self._is_two_valued(original, style.mode):
            foreground = 255 if _is_jpeg(original) else None
        _save(mask if foreground is None else (mask > 0) * foreground, path, style)
        if (self._class_ids(path) != mask).any():
            raise InputError(
                f"A noisy mask cannot be written like {original} without losing class ids; "
                "save your masks as PNG."
            )


def same_stem(paths: list[Path]) -> str:
    """Describe the problem that two files belong to one sample."""
    return (
        f"{paths[0]} and {paths[1].name} have the same stem, and only one can be the sample "
        f"{paths[0].stem}; remove one."
    )


def link_message(path: Path) -> str:
    """Describe the problem that a file is a link to a target outside the dataset's folder."""
    return (
        f"{path} is a link to {os.path.realpath(path)}, outside of the dataset's folder; put the "
        "file itself there."
    )


def _values_of(mask: NDArray[Any]) -> list[int]:
    """Return the different values in rising order; of small types without sorting all pixels."""
    if mask.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(mask.ravel())).tolist()
    values: list[int] = np.unique(mask).tolist()
    return values


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _file_style(path: Path) -> FileStyle:
    with Image.open(path) as file:
        options = {k: v for k, v in file.info.items() if k == "transparency"}
        return FileStyle(file.format, file.mode, file.getpalette(), options)


def _save(values: NDArray[Any], path: Path, style: FileStyle) -> None:
    has_16_bits = style.mode.startswith("I;16")
    image = Image.fromarray(values.astype(np.uint16) if has_16_bits else smallest_type(values))
    if style.mode == "P" and style.palette is not None:
        image.putpalette(style.palette)
    elif style.mode == ONE_BIT:
        image = image.point(lambda value: 255 if value else 0).convert(ONE_BIT)
    elif style.mode in ("RGB", "RGBA", "LA", "I"):
        image = image.convert(style.mode)
    # Formats without a quality or a palette ignore these options.
    image.save(path, format=style.file_format, quality=95, optimize=False, **style.options)
