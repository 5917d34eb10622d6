"""Reading images and masks in the formats that people store them in."""

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

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
LARGE = 2**24  # pixels; images above this are checked one at a time, which bounds the memory
_one_large_image = threading.Lock()


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
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    if not by_stem:
        raise InputError(f"{folder} holds no image files ({', '.join(SUFFIXES)}).")
    return dict(by_stem)


@contextmanager
def decoding(path: Path, kind: str = "an image") -> Iterator[None]:
    """Turn a decoder's error into one sentence. On a damaged file it may be any exception."""
    try:
        if not path.is_file():  # reading a pipe would block
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
        raise InputError(f"{path} cannot be read as {kind}; restore or remove the file.") from error


def read_image(path: Path) -> NDArray[Any]:
    """Read an image in its own bit depth, without transparency.

    Args:
        path: The file.

    Shape:
        `(H, W)` for grey images, `(H, W, 3)` RGB for colour images.

    Raises:
        InputError: If the file cannot be decoded, or has too many pixels.
    """
    with decoding(path):
        _refuse_bombs(path)
        data = np.fromfile(path, dtype=np.uint8)  # imread cannot open every path on Windows
        # Unlike IMREAD_UNCHANGED, these flags rotate a photo as viewers and annotators see it.
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(data, flags) if data.size else None
        if image is None:
            raise ValueError("OpenCV cannot decode it")
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image[..., ::-1])  # OpenCV stores blue first


def _refuse_bombs(path: Path) -> None:
    """Raise Pillow's error if the header alone claims too many pixels."""
    try:
        with Image.open(path):
            pass
    except Image.DecompressionBombError:
        raise
    except Exception:  # OpenCV reads more formats, and has a limit of its own
        pass


def check_image(path: Path) -> NDArray[Any]:
    """Read an image to its last byte.

    Args:
        path: The file.

    Shape:
        As for `read_image`.

    Raises:
        InputError: If the file is damaged, even where OpenCV would fill in the missing part.
    """
    with decoding(path), contextlib.ExitStack() as stack:
        try:
            with Image.open(path) as file:
                if file.width * file.height > LARGE:
                    stack.enter_context(_one_large_image)
                if file.format != "TIFF":  # Pillow reads only some kinds of TIFF
                    file.load()
        except (UnidentifiedImageError, ValueError):  # OpenCV reads more formats, or is laxer
            pass
        return read_image(path)


def image_size(path: Path) -> tuple[int, int]:
    """Read height and width of an image, from the header alone if possible.

    Args:
        path: The file.

    Returns:
        Height and width, after the rotation that the header asks for.

    Raises:
        InputError: If the file is no image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            sideways = file.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:  # Pillow cannot open, for example, colour TIFFs of floats
        height, width = read_image(path).shape[:2]
        return height, width
    return (width, height) if sideways else (height, width)


def read_indices(path: Path) -> NDArray[Any]:
    """Read the stored values of a mask. Of a palette image these are the indices.

    Args:
        path: The file.

    Shape:
        `(H, W)` integers.

    Raises:
        InputError: If the file cannot be decoded, or holds colours instead of class ids.
    """
    return read_indices_and_mode(path)[0]


def read_indices_and_mode(path: Path) -> tuple[NDArray[Any], str]:
    """Read the stored values of a mask as `read_indices` does, and Pillow's mode of the file.

    Args:
        path: The file.

    Returns:
        The `(H, W)` values, and a mode such as `L`, `P`, or `1` for one bit per pixel.

    Raises:
        InputError: If the file cannot be decoded, or holds colours instead of class ids.
    """
    with decoding(path, "a mask"), Image.open(path) as file:
        mode = file.mode
        values = np.asarray(file)
    if values.dtype == bool:
        return values.astype(np.uint8), mode
    if values.ndim == 3:
        values = _single_channel(path, values)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{path} holds {values.dtype} values; save class ids as integers.")
    return values, mode


def _single_channel(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Reduce a grey mask that was saved in colour to one channel."""
    colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    if (colours != colours[..., :1]).any():
        raise InputError(
            f"{path} is a colour picture, but a mask holds one class id a pixel; "
            "save it as a grey or palette PNG."
        )
    return colours[..., 0]


def smallest_type(mask: NDArray[Any]) -> NDArray[Any]:
    """Convert class ids to uint8 if they fit, or else to uint16.

    PNG and OpenCV support these types, and they take the least memory.

    Args:
        mask: Integer class ids.

    Returns:
        The same class ids.

    Raises:
        InputError: If a class id fits into neither type.
    """
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > 65535:
        wrong = low if low < 0 else high
        raise InputError(f"A mask holds the class id {wrong}; class ids must be 0 to 65535.")
    small: NDArray[Any] = mask.astype(np.uint8 if high <= 255 else np.uint16)
    return small
