"""Class probabilities that somebody else's network predicted, in files."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.image_files import SUFFIXES, read_indices

Floats = NDArray[np.float32]


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
        known = {".npy", ".npz", *SUFFIXES}
        self._paths = {p.stem: p for p in sorted(self.folder.iterdir()) if p.suffix in known}

    def read(self, id: str, shape: tuple[int, ...]) -> Floats:
        """`(K, H, W)` probabilities of one sample, resized to a mask's `(H, W)`."""
        if id not in self._paths:
            raise InputError(f"{self.folder} holds no prediction of {id}; every mask needs one.")
        path = self._paths[id]
        p = self._probabilities(path)
        if p.ndim == 2:
            p = np.stack([1 - p, p])
        if p.shape[0] != self.classes or p.ndim != 3:
            raise InputError(
                f"{path} is {p.shape}; (K, H, W) with K = {self.classes} classes is wanted"
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

    def _probabilities(self, path: Path) -> Floats:
        if path.suffix in (".npy", ".npz"):
            try:
                loaded = np.load(path, allow_pickle=False)
                values = loaded[loaded.files[0]] if path.suffix == ".npz" else loaded
            except (ValueError, OSError, IndexError) as error:
                raise InputError(f"{path} cannot be read as an array; restore it.") from error
            return np.asarray(values, np.float32)
        picture = read_indices(path)
        return (picture / np.iinfo(picture.dtype).max).astype(np.float32)
