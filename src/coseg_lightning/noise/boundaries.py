"""Noise models of outlines: the boundary is drawn in the wrong place."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.labels.masks import Mask
from coseg_lightning.noise.geometry import (
    Field,
    compose,
    foreground_classes,
    scale_of,
    shifted,
    signed_distance,
)
from coseg_lightning.seeding import derive_rng

# The structuring element with a pixel and its four neighbours.
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class BoundaryNoise:
    """Type I noise (section 3, after Zhu et al. 2019 [9]): each class is eroded or dilated.

    Each foreground class of each sample draws a sign and a whole number of pixels, uniform in
    `1 .. max_pixels`. Where two classes touch and both grow, their common boundary stays in place.
    An erosion that would leave nothing of a class becomes a dilation.

    Args:
        max_pixels: The largest shift.
        element: Structuring element: `disk` (Euclidean distance) or `square` ("in each
            direction": chessboard distance).
        sign: `random`, or always `dilate` or always `erode`.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        max_pixels: int = 8,
        element: Literal["disk", "square"] = "disk",
        sign: Literal["random", "dilate", "erode"] = "random",
    ) -> None:
        if max_pixels < 1:
            raise InputError(f"noise.type1.max_pixels={max_pixels} must be at least 1.")
        if element not in ("disk", "square"):
            raise InputError(f"noise.type1.element={element} must be disk or square.")
        if sign not in ("random", "dilate", "erode"):
            raise InputError(f"noise.type1.sign={sign} must be random, dilate or erode.")
        self.max_pixels = max_pixels
        self.element = element
        self.sign = sign

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the shift."""
        rng = derive_rng(seed, "type1", id)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            pixels = rng.integers(1, self.max_pixels, endpoint=True)
            # On a small mask, a shift of less than one pixel would change nothing.
            shift = strength * max(1.0, float(pixels) * scale_of(mask))
            dilate = bool(rng.random() < 0.5) if self.sign == "random" else self.sign == "dilate"
            distance = signed_distance(mask == class_id, self.element)
            moved[class_id] = shifted(distance, shift if dilate else -shift)
        return compose(moved, mask)


class BoundaryWalk:
    """Markov noise (Yao et al. 2023, arXiv 2308.02498): a random walk of the boundary.

    In each of many steps the region either grows or shrinks, and every pixel along its boundary
    follows with a small probability. The error is biased, and correlated along the boundary. The
    defaults are the authors' values for over-segmentation. For under-segmentation they use
    `grow=0.2`. At 256 x 256 the defaults move the boundary 11 pixels outwards (measured on a disc).

    Args:
        steps: Number of steps at 256 x 256.
        grow: Probability that a step grows the region.
        flip: Probability that a pixel along the boundary follows a step.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(self, steps: int = 200, grow: float = 0.8, flip: float = 0.05) -> None:
        if steps < 1 or not 0 <= grow <= 1 or not 0 < flip <= 1:
            raise InputError(
                f"noise.walk.steps={steps} must be at least 1; noise.walk.grow={grow} and "
                f"noise.walk.flip={flip} must be probabilities."
            )
        self.steps = steps
        self.grow = grow
        self.flip = flip

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the number of steps."""
        rng = derive_rng(seed, "walk", id)
        steps = max(1, round(strength * self.steps * scale_of(mask))) if strength > 0 else 0
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = (mask == class_id).astype(np.uint8)
            for _ in range(steps):
                self._step(region, rng)
            moved[class_id] = signed_distance(region.astype(bool))
        return compose(moved, mask)

    def _step(self, region: NDArray[np.uint8], rng: np.random.Generator) -> None:
        """Do one step of the walk in place."""
        grows = rng.random() < self.grow
        after_step = (cv2.dilate if grows else cv2.erode)(region, CROSS)
        boundary = np.flatnonzero(after_step != region)
        flipped = boundary[rng.random(len(boundary)) < self.flip]
        if grows or len(flipped) < region.sum():  # a class never vanishes
            region.flat[flipped] = 1 if grows else 0


class EdgeCircles:
    """Edge distortion (as in PyMIC, Wang et al. 2023): discs are added and cut out.

    First, discs around random points of the boundary are added to a class. Then discs around random
    points of the new boundary are cut out.

    Args:
        radius: Smallest and largest radius of a disc, in pixels at 256 x 256.
        spacing: Length of boundary per disc, in pixels at 256 x 256.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(self, radius: Sequence[float] = (4.0, 12.0), spacing: float = 40.0) -> None:
        if not 0 < radius[0] <= radius[1] or spacing <= 0:
            raise InputError(
                f"noise.circles.radius={list(radius)} and noise.circles.spacing={spacing} must be "
                "above 0; give the smaller radius first."
            )
        self.radius = (float(radius[0]), float(radius[1]))
        self.spacing = spacing

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the radii."""
        rng = derive_rng(seed, "circles", id)
        scale = scale_of(mask)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = (mask == class_id).astype(np.uint8)
            for value in (1, 0):
                region = self._draw_discs(region, value, scale, strength, rng)
            moved[class_id] = signed_distance(region.astype(bool))
        return compose(moved, mask)

    def _draw_discs(
        self,
        region: NDArray[np.uint8],
        value: int,
        scale: float,
        strength: float,
        rng: np.random.Generator,
    ) -> NDArray[np.uint8]:
        """Draw discs of 1 or 0 along a region's boundary. A class never vanishes."""
        boundary = np.argwhere(cv2.dilate(region, CROSS) != region)
        changed = region.copy()
        for _ in range(math.ceil(len(boundary) / (self.spacing * scale))):
            row, column = boundary[rng.integers(len(boundary))]
            radius = round(strength * scale * rng.uniform(*self.radius))
            if radius > 0:
                cv2.circle(changed, (int(column), int(row)), radius, value, cv2.FILLED)
        return changed if changed.any() else region


class PolygonOutline:
    """Coarse polygons (as in Zlateski et al., CVPR 2018): the outline has too few corners.

    The outline is simplified by Douglas and Peucker's algorithm. The coarsest outline is a box.

    Args:
        tolerance: Largest distance of the polygon from the outline, in pixels at 256 x 256.

    Raises:
        InputError: If the tolerance is out of range.
    """

    def __init__(self, tolerance: float = 8.0) -> None:
        if tolerance <= 0:
            raise InputError(f"noise.polygon.tolerance={tolerance} must be above 0.")
        self.tolerance = tolerance

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the tolerance.

        This noise is not random.
        """
        tolerance = strength * self.tolerance * scale_of(mask)
        if tolerance <= 0:
            return mask.copy()
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            coarse = _coarse_region((mask == class_id).astype(np.uint8), tolerance)
            moved[class_id] = signed_distance(coarse.astype(bool))
        return compose(moved, mask)


def _coarse_region(region: NDArray[np.uint8], tolerance: float) -> NDArray[np.uint8]:
    """Simplify the outlines of a region and of its holes."""
    outlines, tree = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    coarse = [coarse_outline(outline, tolerance) for outline in outlines]
    parents = tree[0, :, 3]
    drawn = np.zeros_like(region)
    for number, parent in enumerate(parents):
        if parent >= 0:  # a hole, which is drawn with the part around it
            continue
        part: NDArray[Any] = cv2.fillPoly(np.zeros_like(region), [coarse[number]], 1)
        for hole in np.flatnonzero(parents == number):
            cv2.fillPoly(part, [coarse[hole]], 0)
            # The outline of a hole belongs to the region.
            cv2.polylines(part, [coarse[hole]], True, 1)
        drawn |= part
    return drawn


def coarse_outline(outline: NDArray[Any], tolerance: float) -> NDArray[Any]:
    """Simplify an outline. The coarsest result is a box, because two corners enclose no area."""
    polygon = cv2.approxPolyDP(outline, tolerance, closed=True)
    if len(polygon) > 2:
        return polygon
    return cv2.boxPoints(cv2.minAreaRect(outline)).round().astype(np.int32)[:, None]
