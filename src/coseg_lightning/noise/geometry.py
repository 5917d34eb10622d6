"""Geometry of masks for the noise models: regions and signed distances."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.functional.equations import IGNORE_INDEX
from coseg_lightning.labels.masks import Mask

Field = NDArray[Any]
Region = NDArray[np.bool_]


def foreground_classes(mask: Mask) -> list[int]:
    """List the class ids in a mask, without background and unlabelled pixels."""
    return [int(c) for c in np.unique(mask) if c not in (0, IGNORE_INDEX)]


def scale_of(mask: Mask) -> float:
    """Return the scale of lengths: this mask's pixels per pixel of a 256 x 256 image."""
    return math.sqrt(mask.shape[0] * mask.shape[1]) / 256


def size_of(mask: Mask) -> str:
    """Format width x height for messages."""
    return f"{mask.shape[1]}x{mask.shape[0]}"


def signed_distance(region: Region, element: Literal["disk", "square"] = "disk") -> Field:
    """Compute the distance of each pixel to the region's boundary, positive inside.

    The boundary runs between pixels, so the first pixel inside has 0.5. The image's edge is not a
    boundary.

    Args:
        region: `(H, W)` pixels of the region.
        element: `disk` for the Euclidean distance, `square` for the chessboard distance.

    Shape:
        `(H, W)` distances in pixels.
    """
    metric = cv2.DIST_L2 if element == "disk" else cv2.DIST_C
    inside = cv2.distanceTransform(region.astype(np.uint8), metric, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform((~region).astype(np.uint8), metric, cv2.DIST_MASK_PRECISE)
    return np.where(region, inside - 0.5, 0.5 - outside)


def shifted(distance: Field, offset: Field | float) -> Field:
    """Move the boundary of a region outwards.

    A shift that would leave nothing of the region is reversed.

    Args:
        distance: Signed distance of the region.
        offset: Shift in pixels, one value or one per pixel. A negative one moves inwards.

    Returns:
        The signed distance of the new region.
    """
    moved = distance + offset
    return moved if (moved > 0).any() else distance - offset


def compose(moved: dict[int, Field], mask: Mask) -> Mask:
    """Draw a mask from the signed distances of its classes.

    A pixel that is inside several classes gets the one with the largest distance. Unlabelled pixels
    stay unlabelled.

    Args:
        moved: Signed distance by class id.
        mask: The original mask.

    Returns:
        The new mask.
    """
    result = np.zeros_like(mask)
    deepest = np.zeros(mask.shape)
    for class_id, distance in moved.items():
        claimed = distance > deepest
        result[claimed] = class_id
        deepest[claimed] = distance[claimed]
    result[mask == IGNORE_INDEX] = IGNORE_INDEX
    return result


def smooth_field(shape: Sequence[int], wavelength: float, rng: np.random.Generator) -> Field:
    """Draw a smooth random field with mean 0 and standard deviation 1 over many draws.

    It is white noise on a grid with the given spacing, interpolated by cubic convolution. The
    interpolation reduces the standard deviation to 0.84 (measured), which is corrected.

    Args:
        shape: `(H, W)` of the field.
        wavelength: Distance of the grid's points in pixels.
        rng: Source of the white noise.
    """
    cells = [max(2, math.ceil(side / wavelength)) + 3 for side in shape]
    grid = rng.standard_normal((cells[0], cells[1])).astype(np.float32)
    size = [round(n * wavelength) for n in cells]
    field = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    top, left = (int(wavelength * 1.5),) * 2  # cubic weights are truncated near the edge
    return field[top : top + shape[0], left : left + shape[1]] / 0.84


def parts_of(region: Region) -> list[Region]:
    """List a region's 8-connected parts, from top to bottom. An empty region has none."""
    count, parts = cv2.connectedComponents(region.astype(np.uint8))
    return [parts == number for number in range(1, count)]


def end_of_a_part(
    region: Region,
    shares: tuple[float, float],
    wobble: Field,
    rng: np.random.Generator,
    strength: float = 1.0,
) -> Region:
    """Select one end of a connected part: its pixels beyond a wavy line of random direction.

    Args:
        region: `(H, W)` pixels of a class. The probability of each part is its share of the area.
        shares: Smallest and largest share of the part that lies beyond the line.
        wobble: `(H, W)` deviation of the line from a straight one, in pixels.
        rng: Source of the part, the direction and the share.
        strength: A factor on the share.

    Shape:
        `(H, W)`. It includes pixels outside the region that are nearest to this part.
    """
    parts = parts_of(region)
    areas = np.array([part.sum() for part in parts], float)
    part = parts[rng.choice(len(parts), p=areas / areas.sum())]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.indices(region.shape, dtype=np.float32)
    along = math.cos(angle) * x + math.sin(angle) * y + wobble
    share = min(0.98, strength * rng.uniform(*shares))
    line = np.quantile(along[part], 1 - share)
    # Pixels outside the part are included, because the mask may be over-segmented there. They must
    # be nearer to this part than to any other.
    nearest = signed_distance(part)
    others = signed_distance(region & ~part) if (region & ~part).any() else nearest - 1
    return np.asarray((along > line) & (nearest > others))


def moved_field(field: Field, matrix: NDArray[np.floating[Any]]) -> Field:
    """Apply an affine transform, a `(2, 3)` matrix, to a signed distance.

    Pixels that come from beyond the image's edge are outside the region.
    """
    height, width = field.shape
    moved: Field = cv2.warpAffine(
        field.astype(np.float32),
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=-float(max(field.shape)),
    )
    return moved
