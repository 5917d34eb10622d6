"""Class probabilities in files, predicted by any network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import SUFFIXES, Stored, decoding, read_stored
from coseg_lightning.files.mask_file import grey_levels
from coseg_lightning.files.naming import ids_of

Floats = NDArray[np.float32]

ARRAY_SUFFIXES = (".npy", ".npz")
MAX_BYTES = 2**32  # of one sample's probabilities
SUM_TOLERANCE = 0.02
GREY_WANTED = "a picture of probabilities has grey levels; save it in grey, or as a .npy file"
LEAST_PROBABILITY = 1e-6  # no class is impossible, because logarithms are needed


class PredictionFolder:
    """A folder of class probabilities, one file per sample, named `<id>.<suffix>`.

    `.npy` files (or `.npz` with one array) hold `(K, H, W)` real numbers that sum to 1. With two
    classes they may hold `(H, W)` probabilities of the foreground. Grey images hold probabilities
    of the foreground, and white means 1.

    Args:
        folder: The folder.
        classes: K, background included.
        ids: The samples, each of which needs a prediction. Its name may differ in its Unicode form.

    Raises:
        InputError: If there is no such folder, if a sample has none or two files, or if all grey
            images hold class ids.
    """

    def __init__(self, folder: str | Path, *, classes: int, ids: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.classes = max(2, classes)
        if not self.folder.is_dir():
            raise InputError(f"predictions={folder}: there is no such folder.")
        self._paths: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() not in ARRAY_SUFFIXES + SUFFIXES or path.name.startswith("."):
                continue
            if path.stem in self._paths:
                raise InputError(
                    f"{self._paths[path.stem]} and {path.name} both predict {path.stem}; remove "
                    "one."
                )
            self._paths[path.stem] = path
        known_as = ids_of(self._paths, ids)
        self._paths = {known_as[stem]: path for stem, path in self._paths.items()}
        self._check_all_are_predicted(ids)
        self._check_pictures_hold_no_class_ids()

    def _check_all_are_predicted(self, ids: Sequence[str]) -> None:
        missing = [sample_id for sample_id in ids if sample_id not in self._paths]
        if missing:
            others = f" and {len(missing) - 1} others" * (len(missing) > 1)
            raise InputError(
                f"{self.folder} holds no prediction of {missing[0]}{others}; every mask needs one."
            )

    def _check_pictures_hold_no_class_ids(self) -> None:
        pictures = [path for path in self._paths.values() if not _is_array(path)]
        if pictures and all(map(_holds_class_ids, pictures)):
            raise InputError(
                f"The pictures in {self.folder} hold only 0 and 1, which are class ids; "
                "give probabilities, scaled to 0 .. 255 or 0 .. 65535."
            )

    def read(self, sample_id: str, shape: tuple[int, ...]) -> Floats:
        """Read the probabilities of one sample, resized to its mask's size.

        Args:
            sample_id: The sample.
            shape: `(H, W)` of its mask.

        Shape:
            `(K, H, W)`, above 0. They sum to 1 over the classes.

        Raises:
            InputError: If the file is missing, or holds anything other than probabilities.
        """
        if sample_id not in self._paths:
            raise InputError(
                f"{self.folder} holds no prediction of {sample_id}; every mask needs one."
            )
        path = self._paths[sample_id]
        p = self._with_class_axis(_read_values(path), path)
        _check_probabilities(p, path)
        if p.shape[1:] == shape[::-1] != shape:
            raise InputError(
                f"{path} is of {p.shape[1]} x {p.shape[2]} pixels (rows x columns), but the mask "
                f"of {shape[0]} x {shape[1]}; save the transposed array."
            )
        if p.shape[1:] != shape:
            size = (shape[1], shape[0])
            p = np.stack([cv2.resize(q, size, interpolation=cv2.INTER_LINEAR) for q in p])
        p = p.clip(LEAST_PROBABILITY, 1)
        return np.asarray(p / p.sum(axis=0), np.float32)

    def _with_class_axis(self, values: Floats, path: Path) -> Floats:
        """Return values as `(K, H, W)`. If there is only foreground, the background is added."""
        p = values[0] if values.ndim == 3 and len(values) == 1 else values
        if p.ndim == 2 and self.classes == 2:
            p = np.stack([1 - p, p])
        if p.ndim != 3 or p.shape[0] != self.classes:
            raise InputError(
                f"{path} has shape {values.shape}; give (K, H, W) with K = {self.classes} classes"
                + (", or (H, W) of the foreground." if self.classes == 2 else ".")
            )
        return p


def _check_probabilities(p: Floats, path: Path) -> None:
    if not np.isfinite(p).all() or p.min() < 0 or abs(p.sum(axis=0) - 1).max() > SUM_TOLERANCE:
        raise InputError(
            f"{path} holds no probabilities: they must be in [0, 1] and sum to 1 over the "
            "classes; give the softmax of the logits."
        )


def _read_values(path: Path) -> Floats:
    return _read_array(path) if _is_array(path) else _read_picture(path)


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in ARRAY_SUFFIXES


def _read_picture(path: Path) -> Floats:
    stored, levels = _levels_of(path)
    return (levels / (stored.highest or np.iinfo(levels.dtype).max)).astype(np.float32)


def _levels_of(path: Path) -> tuple[Stored, NDArray[Any]]:
    stored = read_stored(path, of_mask=False)
    levels = grey_levels(path, stored, GREY_WANTED)
    if stored.highest is None and levels.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{path} holds {levels.dtype}; save it as a picture of 8 or 16 bits, or as a .npy file."
        )
    return stored, levels


def _holds_class_ids(path: Path) -> bool:
    """Whether a picture holds only 0 and 1 although it can hold more."""
    stored, levels = _levels_of(path)
    if stored.is_binary or stored.colours is not None or stored.highest == 1:
        return False
    return bool(levels.max(initial=0) <= stored.grey_step)


def _read_array(path: Path) -> Floats:
    with decoding(path, "an array of numbers"):
        size = _array_bytes(path)
        if size > MAX_BYTES:
            raise InputError(
                f"{path} claims to hold {size // 2**20} MB, which might fill the memory; give at "
                f"most {MAX_BYTES // 2**20} MB per mask."
            )
        loaded: Any = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.ndarray) and len(loaded.files) != 1:
            raise InputError(
                f"{path} holds {len(loaded.files)} arrays ({', '.join(loaded.files)}); save one, "
                "the probabilities."
            )
        values = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
        if values.dtype.kind in "biu" and values.ndim == 2:
            raise InputError(
                f"{path} holds {values.dtype} values, as of class ids; give probabilities, as real "
                "numbers."
            )
        return np.asarray(values, np.float32)


def _array_bytes(path: Path) -> int:
    """Return the array's size according to the header, before any values are read."""
    if path.suffix.lower() == ".npz":
        with ZipFile(path) as archive:
            return archive.infolist()[0].file_size
    return int(np.load(path, allow_pickle=False, mmap_mode="r").nbytes)
