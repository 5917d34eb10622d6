"""Small pictures of samples with their outlines, for a page that stands alone."""

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.preparation import rescale_intensity

# Okabe and Ito's colours, which people of any colour vision can tell apart; RGB.
GIVEN, CORRECTED, ORIGINAL = (230, 159, 0), (86, 180, 233), (255, 255, 255)


def outlined(
    image: NDArray[Any],
    outlines: list[tuple[NDArray[Any], tuple[int, int, int]]],
    side: int,
) -> NDArray[Any]:
    """An image with the outlines of masks, `(h, w, 3)` uint8 with a longer side of `side`.

    Args:
        image: `(H, W)` or `(H, W, C)` of any range.
        outlines: Masks `(H, W)` of class ids, and their colours; the last lies on top.
        side: Pixels.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(rescale_intensity(image.astype(np.float32)), size, interpolation=method)
    small = small[..., None] if small.ndim == 2 else small
    colours = small if small.shape[2] == 3 else small[..., :1].repeat(3, axis=2)
    picture = np.ascontiguousarray(255 * colours, np.uint8)
    for mask, colour in outlines:
        classes = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST).astype(
            np.int64
        )
        for class_id in set(np.unique(classes).tolist()) - {0, 255}:
            region = (classes == class_id).astype(np.uint8)
            found, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, found, -1, colour, max(1, side // 100))
    return picture


def data_url(picture: NDArray[Any]) -> str:
    """A picture as the text of an image's source."""
    done, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
