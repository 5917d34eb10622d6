"""What a label layer lies over: images and their masks at their own resolution."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.integer[Any]]


class MaskedImages(Protocol):
    """Images and their masks at their own resolution: what a label layer lies over.

    Shape:
        `image(i)` is `(H, W)` or `(H, W, C)`, numbers of any type and range; `mask(i)` is
        `(H, W)` integer class ids, 255 where unlabelled.
    """

    @property
    def ids(self) -> Sequence[str]:
        """One unique name a sample, in the dataset's order."""

    def image(self, index: int) -> NDArray[Any]:
        """The image of one sample."""

    def mask(self, index: int) -> Mask:
        """The mask of one sample."""


def mask_digest(mask: NDArray[Any]) -> str:
    """A short digest of a mask's class ids, whatever type holds them."""
    content = np.ascontiguousarray(mask.astype(np.uint16))
    return hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()
