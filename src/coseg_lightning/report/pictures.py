"""Small pictures of samples with the outlines of their masks, embedded in the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.preparation import rescale_intensity, without_gaps
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.report.figures import BY_CLASS, Pictured
from coseg_lightning.report.payload import jpeg_url

# Colours of Okabe and Ito, distinguishable with any colour vision; RGB.
GIVEN, CORRECTED, ORIGINAL = (230, 159, 0), (86, 180, 233), (255, 255, 255)
# Colours of the classes after the background, in order.
CLASS_COLOURS = [(r, g, b) for r, g, b in (bytes.fromhex(name[1:]) for name in BY_CLASS)]
Colour = tuple[int, int, int]
Outline = tuple[NDArray[Any], Colour | None]  # a mask and its colour; None for one per class
MAX_PICTURES, SIDE = 900, 96  # largest number of pictures, and pixels of their longer side
MAX_CHARACTERS = 2_200_000  # of all pictures; if images compress badly, there are fewer pictures


def add_pictures(
    rows: Sequence[dict[str, Any]],
    samples: Pictured,
    corrected: Mapping[str, LabelStore],
    *,
    by_class: bool = False,
) -> None:
    """Add a `picture` to the most important rows: corrected samples, then the worst.

    Args:
        rows: Rows of the page, with `id`, `rank` and `proposed`.
        samples: The samples with the masks given to the run.
        corrected: The layer of each corrected or proposed mask, by id.
        by_class: Whether there are several classes. Each class then has its own colour, and the
            masks are side by side: the original, if known, the given mask, and the correction.
    """
    index_of = {sample_id: index for index, sample_id in enumerate(samples.ids)}
    by_priority = sorted(rows, key=lambda row: (not row["proposed"], row["rank"]))
    characters = 0
    for row in by_priority[:MAX_PICTURES]:
        index = index_of.get(row["id"])
        if index is None or characters > MAX_CHARACTERS:
            continue
        outlines = _outlines(samples, index, corrected.get(row["id"]))
        image = without_gaps(samples.dataset.image(index))
        if by_class:
            panels = [outlined(image, [(mask, None)], SIDE) for mask, _ in outlines]
            row["picture"] = data_url(side_by_side(panels))
            row["panels"] = len(panels)
        else:
            row["picture"] = data_url(outlined(image, outlines, SIDE))
        characters += len(row["picture"])


def side_by_side(panels: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put pictures of the same size side by side, with a white line between them."""
    line = np.full((panels[0].shape[0], 3, 3), 255, np.uint8)
    parts = [part for panel in panels for part in (line, panel)]
    return np.ascontiguousarray(np.concatenate(parts[1:], axis=1))


def _outlines(samples: Pictured, index: int, correction: LabelStore | None) -> list[Outline]:
    outlines: list[Outline] = [(samples.dataset.mask(index), GIVEN)]
    if samples.truth is not None:
        outlines.insert(0, (samples.truth.mask(index), ORIGINAL))
    if correction is not None:
        outlines.append((correction.read(samples.ids[index]), CORRECTED))
    return outlines


def outlined(
    image: NDArray[Any],
    outlines: Sequence[Outline],
    side: int,
) -> NDArray[Any]:
    """Draw the outlines of masks over a resized image.

    Args:
        image: `(H, W)` or `(H, W, C)` of any range.
        outlines: Masks `(H, W)` of class ids and their colours, None for one colour per class.
            Later ones are drawn on top.
        side: Pixels of the picture's longer side.

    Returns:
        `(h, w, 3)` uint8.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(rescale_intensity(image.astype(np.float32)), size, interpolation=method)
    small = small[..., None] if small.ndim == 2 else small
    colours = small[..., :3] if small.shape[2] >= 3 else small[..., :1].repeat(3, axis=2)
    picture = np.ascontiguousarray(255 * colours, np.uint8)
    for mask, colour in outlines:
        resized = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
        classes = resized.astype(np.int64)
        for class_id in set(np.unique(classes).tolist()) - {0, 255}:
            region = (classes == class_id).astype(np.uint8)
            contours, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            of_class = CLASS_COLOURS[(class_id - 1) % len(CLASS_COLOURS)]
            cv2.drawContours(picture, contours, -1, colour or of_class, max(1, side // 100))
    return picture


def data_url(picture: NDArray[Any]) -> str:
    """Encode an RGB picture as the `src` of an image element."""
    return jpeg_url(picture, 80)
