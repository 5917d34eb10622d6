"""Canvas: how images of any shape are laid on the pixels that networks get."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Canvas(NamedTuple):
    """The pixels that networks get, and how images of any shape are laid on them.

    Args:
        height: Of what the networks get.
        width: Of what the networks get.
        keeps_shape: Whether an image keeps its aspect ratio. It lies in the upper left corner, and
            its reflection fills the rest, where masks are unlabelled. Otherwise it is stretched.
    """

    height: int
    width: int
    keeps_shape: bool = True

    @classmethod
    def of(cls, size: int | Sequence[int], *, keeps_shape: bool = True) -> "Canvas":
        """Make a canvas of one side, or of height and width."""
        height, width = (size, size) if isinstance(size, int) else size
        return cls(int(height), int(width), keeps_shape)

    def content(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of what an image of some shape covers."""
        if not self.keeps_shape:
            return self.height, self.width
        scale = min(self.height / shape[0], self.width / shape[1])
        height, width = (max(1, round(scale * side)) for side in shape[:2])
        return min(height, self.height), min(width, self.width)


def shrunk_mask(mask: NDArray[Any], canvas: Canvas, ignore_index: int) -> NDArray[Any]:
    """Resize a mask to the networks' size; around its content it is unlabelled.

    Args:
        mask: `(H, W)` uint8 or uint16.
        canvas: The size of the result.
        ignore_index: Class id of unlabelled pixels.
    """
    height, width = canvas.content(mask.shape)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    if small.shape == (canvas.height, canvas.width):
        return small
    result = np.full((canvas.height, canvas.width), ignore_index, mask.dtype)
    result[:height, :width] = small
    return result
