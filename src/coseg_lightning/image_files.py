"""Reading images and masks as people store them."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from coseg_lightning.equations import IGNORE_INDEX
from coseg_lightning.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


def files_by_stem(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their stem.

    Raises:
        InputError: If there is no such folder, nothing in it, or two files of one stem.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder that holds the files.")
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    if not by_stem:
        raise InputError(f"{folder} holds no image files ({', '.join(SUFFIXES)}).")
    for stem, paths in by_stem.items():
        if len(paths) > 1:
            raise InputError(
                f"{paths[0]} and {paths[1].name} have the same stem, and only one can be the "
                f"sample {stem}; remove one."
            )
    return {stem: paths[0] for stem, paths in by_stem.items()}


def read_image(path: Path) -> NDArray[Any]:
    """An image, `(H, W)` grey or `(H, W, 3)` RGB, in its own depth; transparency is dropped.

    Raises:
        InputError: If the file cannot be decoded.
    """
    data = np.fromfile(path, dtype=np.uint8)  # imread cannot open every path on Windows
    # Unlike IMREAD_UNCHANGED, these turn a photo the way that viewers, and annotators, see it.
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise InputError(f"{path} cannot be read as an image; restore or remove the file.")
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image[..., ::-1])  # OpenCV stores blue first


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header where that is enough.

    Raises:
        InputError: If the file is no image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            sideways = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (UnidentifiedImageError, OSError, SyntaxError):  # such as float TIFFs in colour
        height, width = read_image(path).shape[:2]
        return height, width
    return (width, height) if sideways else (height, width)


def read_indices(path: Path) -> NDArray[Any]:
    """A mask's stored values, `(H, W)` integers; a palette's indices, not its colours.

    Raises:
        InputError: If the file cannot be decoded, or has colours instead of class ids.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a mask; restore or remove the file.") from error
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise InputError(
                f"{path} is a colour picture, but a mask holds one class id a pixel; "
                "save it as a grey or palette PNG."
            )
        values = colours[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{path} holds {values.dtype} values; save class ids as integers.")
    return values


class MaskFolder:
    """A folder of masks, one file a sample, `<id>.<suffix>`.

    Masks hold class ids `0 .. classes-1` and 255 where unlabelled. If no file holds any value but
    0 and 255 (or 0 and 65535) and there are two classes, that value means class 1. Two-class
    JPEG masks are cut at half of their range, because JPEG blurs values.

    Args:
        folder: The folder.
        classes: Number of classes, background included.
        ids: The samples that will be read, and that decide what 255 means; default all.

    Raises:
        InputError: If there is no such folder, a file is missing or unreadable, or holds a class
            id out of range.
    """

    def __init__(
        self, folder: str | Path, *, classes: int, ids: Iterable[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.classes = max(2, classes)  # a binary network's single output knows two classes
        self._paths = files_by_stem(self.folder)
        self.sizes: dict[str, tuple[int, int]] = {}
        self._foreground: int | None = None
        self._check(list(self._paths) if ids is None else list(ids))

    def path(self, id: str) -> Path:
        """The file of one sample."""
        if id not in self._paths:
            raise InputError(f"{self.folder} holds no mask of {id}; every sample needs one.")
        return self._paths[id]

    def _check(self, ids: list[str]) -> None:
        """Read every mask once, before anything is trained on it."""

        def inspect(id: str) -> tuple[tuple[int, int], NDArray[Any]]:
            values = self._values(id)
            return (values.shape[0], values.shape[1]), np.unique(values)

        with ThreadPoolExecutor() as pool:
            found = dict(zip(ids, pool.map(inspect, ids), strict=True))
        self.sizes = {id: size for id, (size, _) in found.items()}
        union = set[int]().union(*(map(int, values) for _, values in found.values()))
        for highest in (255, 65535):
            if self.classes == 2 and highest in union and union <= {0, highest}:
                self._foreground = highest
                return
        unlabelled = [
            id for id, (_, values) in found.items() if 255 in values and set(values) <= {0, 255}
        ]
        if unlabelled and union <= {0, 255}:
            raise InputError(
                f"{self.folder} holds no class id but 0 and 255, which is unlabelled where there "
                f"are {self.classes} classes; set data.classes=2, or save class ids."
            )
        if unlabelled:
            log.warning(
                "%d masks in %s, such as %s, hold nothing but 0 and 255, others hold 1: there "
                "255 counts as unlabelled. If it means class 1, save them as 0 and 1.",
                len(unlabelled),
                self.folder,
                self.path(unlabelled[0]).name,
            )
        for id, (_, values) in found.items():
            wrong = [int(v) for v in values if not (v < self.classes or v == IGNORE_INDEX)]
            if wrong:
                raise InputError(
                    f"{self.path(id)} holds the class id {wrong[0]}, but data.classes="
                    f"{self.classes} allows 0 to {self.classes - 1} (and 255 for unlabelled "
                    "pixels); set data.classes or mend the mask."
                )

    def _values(self, id: str) -> NDArray[Any]:
        return self._read(self.path(id))

    def _read(self, path: Path) -> NDArray[Any]:
        values = read_indices(path)
        if _is_jpeg(path) and self.classes == 2 and values.max() > 1:
            values = (values >= 128).astype(np.uint8)
        return values

    def read(self, id: str) -> NDArray[Any]:
        """One mask, `(H, W)` uint8 or uint16 class ids, 255 where unlabelled."""
        return self._class_ids(self.path(id))

    def _class_ids(self, path: Path) -> NDArray[Any]:
        values = self._read(path)
        if self._foreground is not None:
            values = values == self._foreground
        return smallest_type(values)

    def write_like(self, id: str, path: Path, mask: NDArray[Any]) -> None:
        """Write class ids as a file like a sample's: the same format, mode, palette and values.

        Raises:
            InputError: If such a file does not hold them, such as a JPEG of several classes.
        """
        foreground = self._foreground
        if foreground is None and self.classes == 2 and _is_jpeg(self.path(id)):
            foreground = 255
        _save_like(self.path(id), path, mask if foreground is None else (mask > 0) * foreground)
        if (self._class_ids(path) != mask).any():
            raise InputError(
                f"A noisy mask cannot be written like {self.path(id)} without losing class ids; "
                "save your masks as PNG."
            )


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _save_like(original: Path, path: Path, values: NDArray[Any]) -> None:
    with Image.open(original) as file:
        kind, mode, palette = file.format, file.mode, file.getpalette()
    sixteen_bits = mode.startswith("I;16")
    image = Image.fromarray(values.astype(np.uint16) if sixteen_bits else smallest_type(values))
    if mode == "P" and palette is not None:
        image.putpalette(palette)
    elif mode == "1":
        image = image.point(lambda value: 255 if value else 0).convert("1")
    elif mode in ("RGB", "RGBA", "LA", "I"):
        image = image.convert(mode)
    # What has no quality or palette takes no notice of these.
    image.save(path, format=kind, quality=95, optimize=False)


def smallest_type(mask: NDArray[Any]) -> NDArray[Any]:
    """Class ids as uint8 where they fit, or else as uint16: what PNG, OpenCV and memory like."""
    small: NDArray[Any] = mask.astype(np.uint8 if mask.max() <= 255 else np.uint16)
    return small
