"""Images and masks at their own resolution: the interface of datasets with label layers."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.files.mask_rules import IGNORE_INDEX

Mask = NDArray[np.integer[Any]]


class MaskedImages(Protocol):
    """A dataset of images and their masks at their own resolution.

    A label layer replaces some of its masks.

    Shape:
        `image(i)` is `(H, W)` or `(H, W, C)`, numbers of any type and range. `mask(i)` is
        `(H, W)` integer class ids, 255 for unlabelled pixels.
    """

    @property
    def ids(self) -> Sequence[str]:
        """One unique name for each sample, in the dataset's order."""

    def image(self, index: int) -> NDArray[Any]:
        """Return the image of one sample."""

    def mask(self, index: int) -> Mask:
        """Return the mask of one sample."""


def with_unlabelled(proposal: Mask, given: Mask) -> Mask:
    """Return a network's mask with the unlabelled pixels of the given mask.

    A network has a class for every pixel, but nobody knows it where a person marked none. A mask
    without any label is the exception, since nothing would be left of its proposal.
    """
    unlabelled = given == IGNORE_INDEX
    if proposal.shape != given.shape or not unlabelled.any() or unlabelled.all():
        return proposal
    kept = proposal.copy()
    kept[unlabelled] = IGNORE_INDEX
    return kept


def mask_digest(mask: NDArray[Any]) -> str:
    """Compute a short digest of a mask's class ids, independent of their integer type."""
    content = np.ascontiguousarray(mask.astype(np.uint16))
    return hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()
