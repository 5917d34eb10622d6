"""Reading images and masks as people store them."""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from coseg_lightning.errors import InputError

LARGE = 2**24  # pixels; of such images one at a time is decoded to be looked at
_one_large_image = threading.Lock()
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


def files_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The image files of a folder by their stem, of which each should have one.

    Raises:
        InputError: If there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder that holds the files.")
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    if not by_stem:
        raise InputError(f"{folder} holds no image files ({', '.join(SUFFIXES)}).")
    return dict(by_stem)


@contextmanager
def decoding(path: Path, what: str = "an image") -> Iterator[None]:
    """Turn what a decoder raises, which on a damaged file may be anything, into one sentence."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(path)
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels, "
            "as a file made to fill the memory would; make it smaller, or remove the file."
        ) from error
    except Exception as error:
        raise InputError(f"{path} cannot be read as {what}; restore or remove the file.") from error


def read_image(path: Path) -> NDArray[Any]:
    """An image, `(H, W)` grey or `(H, W, 3)` RGB, in its own depth; transparency is dropped.

    Raises:
        InputError: If the file cannot be decoded, or is too large to be.
    """
    with decoding(path):
        _refuse_bombs(path)
        data = np.fromfile(path, dtype=np.uint8)  # imread cannot open every path on Windows
        # Unlike IMREAD_UNCHANGED, these turn a photo the way that viewers, and annotators, see it.
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(data, flags) if data.size else None
        if image is None:
            raise ValueError("OpenCV cannot decode it")
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image[..., ::-1])  # OpenCV stores blue first


def _refuse_bombs(path: Path) -> None:
    """Raise Pillow's error on a picture of too many pixels, by its header alone."""
    try:
        with Image.open(path):
            pass
    except Image.DecompressionBombError:
        raise
    except Exception:  # OpenCV reads more kinds, and has a limit of its own
        pass


def check_image(path: Path) -> NDArray[Any]:
    """Read an image to its last byte.

    Raises:
        InputError: If it is damaged, also where OpenCV would fill up what is missing.
    """
    with decoding(path), contextlib.ExitStack() as stack:
        try:
            with Image.open(path) as file:
                if file.width * file.height > LARGE:
                    stack.enter_context(_one_large_image)
                if file.format != "TIFF":  # of which Pillow knows only some kinds
                    file.load()
        except (UnidentifiedImageError, ValueError):  # OpenCV knows more, or minds less
            pass
        return read_image(path)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header where that is enough.

    Raises:
        InputError: If the file is no image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            sideways = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:  # such as float TIFFs in colour, or a file that is none
        height, width = read_image(path).shape[:2]
        return height, width
    return (width, height) if sideways else (height, width)


def read_indices(path: Path) -> NDArray[Any]:
    """A mask's stored values, `(H, W)` integers; a palette's indices, not its colours.

    Raises:
        InputError: If the file cannot be decoded, or has colours instead of class ids.
    """
    with decoding(path, "a mask"), Image.open(path) as file:
        values = np.asarray(file)
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
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{path} holds {values.dtype} values; save class ids as integers.")
    return values


def smallest_type(mask: NDArray[Any]) -> NDArray[Any]:
    """Class ids as uint8 where they fit, or else as uint16: what PNG, OpenCV and memory like.

    Raises:
        InputError: If they fit into neither.
    """
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 65535:
        wrong = low if low < 0 else high
        raise InputError(f"A mask holds the class id {wrong}; class ids must be 0 to 65535.")
    small: NDArray[Any] = mask.astype(np.uint8 if high <= 255 else np.uint16)
    return small
