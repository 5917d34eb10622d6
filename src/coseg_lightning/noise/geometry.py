"""Masks as regions with signed distances: what the noise models are made of."""

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
    """Class ids that occur in a mask, without background and unlabelled."""
    return [int(c) for c in np.unique(mask) if c not in (0, IGNORE_INDEX)]


def scale_of(mask: Mask) -> float:
    """Pixels of this mask per pixel of a 256 x 256 image."""
    return math.sqrt(mask.shape[0] * mask.shape[1]) / 256


def size_of(mask: Mask) -> str:
    """Width x height, for messages."""
    return f"{mask.shape[1]}x{mask.shape[0]}"


def signed_distance(region: Region, element: Literal["disk", "square"] = "disk") -> Field:
    """Distance of each pixel to the region's boundary, positive inside.

    The boundary runs between pixels: the first pixel inside has 0.5. The image's edge is none.
    """
    metric = cv2.DIST_L2 if element == "disk" else cv2.DIST_C
    inside = cv2.distanceTransform(region.astype(np.uint8), metric, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform((~region).astype(np.uint8), metric, cv2.DIST_MASK_PRECISE)
    return np.where(region, inside - 0.5, 0.5 - outside)


def shifted(distance: Field, offset: Field | float) -> Field:
    """A region's signed distance after moving its boundary outwards by `offset` pixels.

    A shift that would leave nothing is made the other way.
    """
    moved = distance + offset
    return moved if (moved > 0).any() else distance - offset


def compose(moved: dict[int, Field], mask: Mask) -> Mask:
    """The mask of classes given by signed distances; where several claim a pixel, the deepest."""
    result = np.zeros_like(mask)
    deepest = np.zeros(mask.shape)
    for class_id, distance in moved.items():
        claimed = distance > deepest
        result[claimed] = class_id
        deepest[claimed] = distance[claimed]
    result[mask == IGNORE_INDEX] = IGNORE_INDEX
    return result


def smooth_field(shape: Sequence[int], wavelength: float, rng: np.random.Generator) -> Field:
    """A smooth random field `shape`, mean 0 and standard deviation 1 over many draws.

    White noise on a grid of the given wavelength, interpolated by cubic convolution, which leaves
    it a standard deviation of 0.84 (measured).
    """
    cells = [max(2, math.ceil(side / wavelength)) + 3 for side in shape]
    grid = rng.standard_normal((cells[0], cells[1])).astype(np.float32)
    size = [round(n * wavelength) for n in cells]
    field = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    top, left = (int(wavelength * 1.5),) * 2  # away from the edge, where cubic weights are cut
    return field[top : top + shape[0], left : left + shape[1]] / 0.84


def parts_of(region: Region) -> list[Region]:
    """A region's connected parts (8-connected), from top to bottom; none of an empty one."""
    count, parts = cv2.connectedComponents(region.astype(np.uint8))
    return [parts == number for number in range(1, count)]


def end_of_a_part(
    region: Region,
    shares: tuple[float, float],
    wobble: Field,
    rng: np.random.Generator,
    strength: float = 1.0,
) -> Region:
    """One side of a connected part: what lies beyond a wavy line in a random direction.

    Args:
        region: A class's pixels; a part of it is drawn by its area.
        shares: Smallest and largest share of the part that lies beyond the line.
        wobble: `(H, W)` how far the line strays, in pixels.
        rng: Draws part, direction and share.
        strength: Multiplies the share.
    """
    parts = parts_of(region)
    areas = np.array([part.sum() for part in parts], float)
    part = parts[rng.choice(len(parts), p=areas / areas.sum())]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.indices(region.shape, dtype=np.float32)
    along = math.cos(angle) * x + math.sin(angle) * y + wobble
    share = min(0.98, strength * rng.uniform(*shares))
    line = np.quantile(along[part], 1 - share)
    # Beyond the line, but nearer to this part than to any other: over-segmentation too.
    nearest = signed_distance(part)
    others = signed_distance(region & ~part) if (region & ~part).any() else nearest - 1
    return np.asarray((along > line) & (nearest > others))


def moved_field(field: Field, matrix: NDArray[np.floating[Any]]) -> Field:
    """A signed distance after an affine motion `(2, 3)`; beyond the picture lies the outside."""
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
