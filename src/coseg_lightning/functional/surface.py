"""Distances between the outlines of two masks, by the definitions of MONAI."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from coseg_lightning.errors import InputError


class SurfaceDistances(NamedTuple):
    """Distances between two outlines, in pixels, or in the unit of the pixel size.

    Attributes:
        hd95: The 95th percentile of the distances from the points of one outline to the nearest
            point of the other; the larger one of both directions (HD95).
        average: The mean of these distances over the points of both outlines (average symmetric
            surface distance).
    """

    hd95: float
    average: float


def surface_distances(
    first: NDArray[Any], second: NDArray[Any], pixel_size: float = 1.0
) -> SurfaceDistances | None:
    """Compute the distances between the outlines of two regions.

    An outline consists of the region's pixels with a neighbour (above, below, left or right)
    outside the region or the image.

    Args:
        first: A region, bool.
        second: Another region, bool.
        pixel_size: The side of a pixel.

    Shape:
        both `(H, W)`.

    Returns:
        The distances; 0 if both regions are empty, None if only one is.

    Raises:
        InputError: If the regions differ in size, or the pixel size is no positive number.
    """
    first, second = np.asarray(first).astype(bool), np.asarray(second).astype(bool)
    if first.shape != second.shape or first.ndim != 2:
        raise InputError(
            f"Regions of {first.shape} and {second.shape} have no distances; give two (H, W) of "
            "one size."
        )
    if not 0 < pixel_size < np.inf:
        raise InputError(f"pixel_size={pixel_size} must be a number above 0.")
    if not first.any() or not second.any():
        return None if first.any() or second.any() else SurfaceDistances(0.0, 0.0)
    box = ndimage.find_objects((first | second).astype(np.uint8))[0]
    outlines = [_outline(region)[box] for region in (first, second)]
    to_first, to_second = (ndimage.distance_transform_edt(~line) for line in outlines)
    forward, backward = to_second[outlines[0]], to_first[outlines[1]]
    hd95 = max(np.percentile(forward, 95), np.percentile(backward, 95))
    average = np.concatenate([forward, backward]).mean()
    return SurfaceDistances(float(hd95) * pixel_size, float(average) * pixel_size)


def _outline(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner: NDArray[np.bool_] = ndimage.binary_erosion(region)
    return region & ~inner
