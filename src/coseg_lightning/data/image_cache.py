"""ImageCache: images as networks see them, on disk, so that they are decoded only once."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from coseg_lightning.data.preparation import preprocess
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.inspection import IS_FIRST
from coseg_lightning.labels.masks import MaskedImages


class ImageCache:
    """The images of a dataset, decoded, resized and stretched, in one memory-mapped file.

    All workers and processes share its pages, and what is read is, to the bit, what would be made
    of the files. It is named by what the files hold (the dataset's `digest`, which knows by size
    and time whether a file has changed), so that it is never a wrong one; files of earlier
    datasets may be deleted at any time when nothing runs. One takes 4 bytes a pixel and channel.

    Args:
        folder: Where it lies; may be shared by runs and by datasets.
        dataset: Images with a `digest`.
        side: The side that the networks see.
        channels: Channels that the networks see.

    Raises:
        InputError: If the dataset has no `digest`.
    """

    def __init__(self, folder: str | Path, dataset: MaskedImages, side: int, channels: int) -> None:
        digest = getattr(dataset, "digest", None)
        if digest is None:
            raise InputError(
                f"The images of a {type(dataset).__name__} cannot be cached, since it does not "
                "know what its files hold; leave out data.cache."
            )
        self.dataset = dataset
        self.side = side
        self.channels = channels
        about = json.dumps([1, list(dataset.ids), digest, side, channels])
        name = hashlib.blake2b(about.encode(), digest_size=12).hexdigest()
        self.path = Path(folder).expanduser() / f"{name}.npy"
        self._places = {id: place for place, id in enumerate(dataset.ids)}
        self._images: NDArray[np.float32] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the file themselves: sent to them, it would be copied.
        return {**self.__dict__, "_images": None}

    def build(self) -> None:
        """Make the file, unless it is there."""
        if self.path.exists():
            return
        shape = (len(self.dataset.ids), self.side, self.side, self.channels)
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            # Written, not mapped: on a full disk that is an error, and not the end of the process.
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            shown = tqdm(total=shape[0], desc="Caching images", disable=not IS_FIRST)
            with shown, ThreadPoolExecutor(max_workers=4) as threads:
                for start in range(0, shape[0], 64):
                    places = range(start, min(start + 64, shape[0]))
                    for image in threads.map(self._prepared, places):
                        file.write(image.astype("<f4").tobytes())
                        shown.update()

    def _prepared(self, place: int) -> NDArray[Any]:
        return preprocess(self.dataset.image(place), self.side, self.channels)

    def image(self, id: str) -> NDArray[np.float32]:
        """One image, `(side, side, channels)` in [0, 1], of which the caller may do anything."""
        if self._images is None:
            self.build()  # somebody may have deleted it
            self._images = np.load(self.path, mmap_mode="r")
        return np.array(self._images[self._places[id]])
