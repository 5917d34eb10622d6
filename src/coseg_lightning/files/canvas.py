"""Canvas: how images of any shape are placed on the network input."""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError


class Canvas(NamedTuple):
    """The size of the network input, and how images of any shape are placed on it.

    Attributes:
        height: Height of the network input.
        width: Width of the network input.
        keeps_shape: Whether an image keeps its aspect ratio. If so, it lies in the upper left
            corner, and its reflection fills the rest, where masks are unlabelled. Otherwise the
            image is stretched.
    """

    height: int
    width: int
    keeps_shape: bool = True

    @classmethod
    def of(cls, size: int | Sequence[int], *, keeps_shape: bool = True) -> "Canvas":
        """Make a canvas from one side, or from height and width.

        Raises:
            InputError: If these are no whole numbers.
        """
        sides: Any = (size, size) if isinstance(size, Real) else size
        is_text = isinstance(sides, str) or not isinstance(sides, Iterable)
        sides = [] if is_text else list(sides)
        if len(sides) != 2 or not all(isinstance(s, Real) and s == s // 1 for s in sides):
            raise InputError(
                f"image_size={size!r} must be a whole number, the side, or [height,width]."
            )
        return cls(int(sides[0]), int(sides[1]), keeps_shape)

    def content(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the area that an image with `shape` covers."""
        if not self.keeps_shape:
            return self.height, self.width
        scale = min(self.height / shape[0], self.width / shape[1])
        height, width = (max(1, round(scale * side)) for side in shape[:2])
        return min(height, self.height), min(width, self.width)


def shrunk_mask(mask: NDArray[Any], canvas: Canvas, ignore_index: int) -> NDArray[Any]:
    """Resize a mask to the networks' size. Pixels outside its content are unlabelled.

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
