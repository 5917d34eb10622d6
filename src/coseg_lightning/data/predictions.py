"""Class probabilities that somebody else's network predicted, in files."""

from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import SUFFIXES, decoding, read_indices

Floats = NDArray[np.float32]
LARGEST = 2**32  # bytes of one sample's probabilities


class PredictionFolder:
    """A folder of class probabilities, one file a sample, `<id>.<suffix>`.

    `.npy` (or `.npz` with one array) holds `(K, H, W)` probabilities that sum to 1, or `(H, W)` of
    the foreground where there are two classes; a grey picture holds the foreground's, its type's
    largest value meaning 1.

    Args:
        folder: The folder.
        classes: K, background included.

    Raises:
        InputError: If a file is missing, or holds anything else than probabilities.
    """

    def __init__(self, folder: str | Path, *, classes: int) -> None:
        self.folder = Path(folder)
        self.classes = max(2, classes)
        if not self.folder.is_dir():
            raise InputError(f"predictions={folder}: there is no such folder.")
        self._paths: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() not in {".npy", ".npz", *SUFFIXES} or path.name.startswith("."):
                continue
            if path.stem in self._paths:
                raise InputError(
                    f"{self._paths[path.stem]} and {path.name} both predict {path.stem}; remove "
                    "one."
                )
            self._paths[path.stem] = path
        pictures = [p for p in self._paths.values() if p.suffix.lower() in SUFFIXES]
        if pictures and all(read_indices(p).max(initial=0) <= 1 for p in pictures):
            raise InputError(
                f"The pictures in {self.folder} hold nothing but 0 and 1, which are class ids; "
                "give probabilities, scaled to 0 .. 255 or 0 .. 65535."
            )

    def read(self, id: str, shape: tuple[int, ...]) -> Floats:
        """`(K, H, W)` probabilities of one sample, resized to a mask's `(H, W)`."""
        if id not in self._paths:
            raise InputError(f"{self.folder} holds no prediction of {id}; every mask needs one.")
        path = self._paths[id]
        values = self._values(path)
        p = values[0] if values.ndim == 3 and len(values) == 1 else values
        if p.ndim == 2 and self.classes == 2:
            p = np.stack([1 - p, p])
        if p.ndim != 3 or p.shape[0] != self.classes:
            raise InputError(
                f"{path} is {values.shape}; (K, H, W) with K = {self.classes} classes is wanted"
                + (", or (H, W) of the foreground." if self.classes == 2 else ".")
            )
        if not np.isfinite(p).all() or p.min() < 0 or abs(p.sum(axis=0) - 1).max() > 0.02:
            raise InputError(
                f"{path} holds no probabilities: they must be in [0, 1] and sum to 1 over the "
                "classes; give the softmax of the logits."
            )
        if p.shape[1:] != shape:
            size = (shape[1], shape[0])
            p = np.stack([cv2.resize(q, size, interpolation=cv2.INTER_LINEAR) for q in p])
        p = p.clip(1e-6, 1)  # nothing is certain, and its logarithm is needed
        return np.asarray(p / p.sum(axis=0), np.float32)

    def _values(self, path: Path) -> Floats:
        if path.suffix.lower() in SUFFIXES:
            picture = read_indices(path)
            if picture.dtype not in (np.uint8, np.uint16):
                raise InputError(
                    f"{path} holds {picture.dtype}; save it as an 8 or 16 bit picture."
                )
            return (picture / np.iinfo(picture.dtype).max).astype(np.float32)
        with decoding(path, "an array of numbers"):
            if path.suffix.lower() == ".npz":
                with ZipFile(path) as archive:
                    size = archive.infolist()[0].file_size
            else:  # whose header tells the shape before the numbers are read
                size = np.load(path, allow_pickle=False, mmap_mode="r").nbytes
            if size > LARGEST:
                raise InputError(
                    f"{path} claims {size // 2**20} MB, as a file made to fill the memory would; "
                    f"give at most {LARGEST // 2**20} MB a mask."
                )
            loaded = np.load(path, allow_pickle=False)
            values = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
            return np.asarray(values, np.float32)
