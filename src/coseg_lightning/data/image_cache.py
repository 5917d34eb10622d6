"""ImageCache: preprocessed images in one file on disk, so that they are decoded only once."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.preparation import preprocess
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.progress import progress
from coseg_lightning.labels.masks import MaskedImages

FORMAT_VERSION = 3
CHUNK = 64  # images that are preprocessed before they are written


class ImageCache:
    """The images of a dataset, decoded, resized and rescaled, in one memory-mapped file.

    All workers and processes share the file's pages. Its images equal, to the bit, those computed
    from the image files. It takes 4 bytes per pixel and channel.

    The file's name depends on the dataset's `digest`, which changes with the files' content, so a
    stale cache is never used. Files of earlier datasets may be deleted while nothing runs.

    Args:
        folder: The folder of the file. Runs and datasets may share it.
        dataset: Images with a `digest`.
        canvas: Height and width of the network input, and how images are placed on it.
        channels: Channels of the network input.

    Raises:
        InputError: If the dataset has no `digest`.
    """

    def __init__(
        self, folder: str | Path, dataset: MaskedImages, canvas: Canvas, channels: int
    ) -> None:
        digest = getattr(dataset, "digest", None)
        if digest is None:
            raise InputError(
                f"The images of a {type(dataset).__name__} cannot be cached, since it does not "
                "know what its files hold; leave out data.cache."
            )
        self.dataset = dataset
        self.canvas = canvas
        self.channels = channels
        key = json.dumps([FORMAT_VERSION, list(dataset.ids), digest, canvas, channels])
        name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        self.path = Path(folder).expanduser() / f"{name}.npy"
        self._indices = {sample_id: index for index, sample_id in enumerate(dataset.ids)}
        self._images: NDArray[np.float32] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the file themselves. Pickling the array would copy it.
        return {**self.__dict__, "_images": None}

    def build(self) -> None:
        """Create the file, unless it exists."""
        if self.path.exists():
            return
        count = len(self.dataset.ids)
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            # Writing raises an error on a full disk. A mapped file would kill the process.
            shape = (count, *self.canvas[:2], self.channels)
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            bar = progress(title="Caching images", total=count)
            with bar, ThreadPoolExecutor(max_workers=4) as threads:
                for start in range(0, count, CHUNK):
                    indices = range(start, min(start + CHUNK, count))
                    for image in threads.map(self._preprocessed, indices):
                        file.write(image.astype("<f4").tobytes())
                        bar.update()

    def _preprocessed(self, index: int) -> NDArray[Any]:
        return preprocess(self.dataset.image(index), self.canvas, self.channels)

    def image(self, sample_id: str) -> NDArray[np.float32]:
        """Read one image as a copy, which the caller may change.

        Args:
            sample_id: The sample.

        Shape:
            `(height, width, channels)` in [0, 1].
        """
        if self._images is None:
            self.build()  # the file may have been deleted
            self._images = np.load(self.path, mmap_mode="r")
        return np.array(self._images[self._indices[sample_id]])
