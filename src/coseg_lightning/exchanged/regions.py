"""Rasterises drawn areas: a pixel belongs to an area if its centre is inside.

The upper left corner of the image is (0, 0), and the centre of its first pixel is (0.5, 0.5), as in
all of the tools. The tools themselves differ in whether they include the outline's pixels.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.exchanged.tasks import Region, Shape

FARTHEST = 1e9  # pixels from an image's corner; anything farther is invalid
Points = Sequence[Sequence[float]] | NDArray[np.float64]


def reach(points: Points) -> tuple[float, float]:
    """The largest y and x of corners; 0 without any.

    Raises:
        ValueError: If a corner is invalid.
    """
    corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if not (abs(corners) < FARTHEST).all():
        raise ValueError("a corner is not a number, or is far outside the image")
    x, y = corners.max(axis=0, initial=0.0)
    return float(y), float(x)


def polygon(points: Points, shape: Shape) -> Region:
    """Fill a polygon by the even-odd rule.

    Args:
        points: `(N, 2)`, x and y of the corners.
        shape: Height and width of the image.

    Raises:
        ValueError: If there are fewer than three corners, or if a corner is invalid.
    """
    corners = np.asarray(points, dtype=np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        raise ValueError(f"a polygon has no corners {corners.shape}")
    if not (abs(corners) < FARTHEST).all():
        raise ValueError("a corner is not a number, or is far outside the image")
    height, width = shape
    is_edge = np.zeros((height, width + 1), np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # The rows whose centres the edge crosses, and in each the first pixel to its right.
        first, last = (math.ceil(y - 0.5) for y in sorted((y0, y1)))
        rows = np.arange(max(first, 0), min(last, height))
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            is_edge[rows, np.ceil(x - 0.5).clip(0, width).astype(int)] ^= True
    filled: Region = np.logical_xor.accumulate(is_edge, axis=1)[:, :width]
    return filled


def box(left: float, top: float, right: float, bottom: float, angle: float = 0.0) -> Points:
    """Return the corners of a box turned clockwise about its centre, by an angle in degrees."""
    x, y = (left + right) / 2, (top + bottom) / 2
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return turned(corners, (x, y), angle)


def turned(points: Points, centre: tuple[float, float], angle: float) -> Points:
    """Turn points clockwise about a centre, by an angle in degrees."""
    if not angle:
        return points
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    offsets = np.asarray(points, dtype=np.float64) - centre
    return np.asarray(offsets @ np.array([[cosine, sine], [-sine, cosine]]) + centre)


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], angle: float, shape: Shape
) -> Region:
    """Fill an ellipse that is turned clockwise about its centre, by an angle in degrees.

    Raises:
        ValueError: If a number is not finite, or a radius not positive.
    """
    if not all(map(math.isfinite, (*centre, *radii, angle))) or min(radii) <= 0:
        raise ValueError("an ellipse has no size")
    y, x = np.ogrid[: shape[0], : shape[1]]
    dx, dy = x + 0.5 - centre[0], y + 0.5 - centre[1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
    inside: Region = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1
    return inside


def pasted(part: Region, left: int, top: int, shape: Shape) -> Region:
    """Paste a part into an image, and crop it at the image's border."""
    height, width = shape
    region = np.zeros(shape, np.bool_)
    rows = slice(max(top, 0), min(top + part.shape[0], height))
    columns = slice(max(left, 0), min(left + part.shape[1], width))
    if rows.start < rows.stop and columns.start < columns.stop:
        region[rows, columns] = part[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
    return region


def bounds(region: Region) -> tuple[int, int, int, int]:
    """Return left, top, width and height of a region that is not empty."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def of_size(part: Region, width: int, height: int) -> Region:
    """Resize a part to a width and height by nearest pixels."""
    if part.shape == (height, width):
        return part
    return cv2.resize(
        part.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    ).astype(np.bool_)
