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
    end_of_a_part,
    foreground_classes,
    moved_field,
    scale_of,
    shifted,
    signed_distance,
    smooth_field,
)
from coseg_lightning.seeding import derive_rng

# The structuring element of a pixel and its four neighbours.
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class BoundaryNoise:
    """Type I noise (section 3, after Zhu et al. 2019 [9]): each class is eroded or dilated.

    For each foreground class of each sample, a whole number of pixels, uniform in
    `1 .. max_pixels`, and a sign are drawn. Where two classes touch and both grow, their common
    boundary stays in place. An erosion that would leave nothing of a class becomes a dilation.

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


class BiasedAnnotator:
    """Type II noise (section 3): one annotator who always over- or under-segments.

    The annotator's direction is drawn from the seed, and is the same in all masks. The boundary is
    shifted by the annotator's bias and by a smooth error along the boundary. Sometimes a region is
    missing: one end of a connected part, as the double arrow of the paper's Fig. 3 shows.

    Args:
        bias: Mean shift of the boundary in pixels.
        direction: `over`, `under`, or `random`: one of them for the whole run, by the seed.
        wobble: Standard deviation of the smooth error in pixels.
        wavelength: Correlation length of the smooth error in pixels.
        missing: Probability that a class of a sample lacks a region.
        missing_share: Smallest and largest share of the connected part that is then missing.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        bias: float = 6.0,
        direction: Literal["random", "over", "under"] = "random",
        wobble: float = 4.0,
        wavelength: float = 48.0,
        missing: float = 0.5,
        missing_share: Sequence[float] = (0.15, 0.4),
    ) -> None:
        if direction not in ("random", "over", "under"):
            raise InputError(f"noise.type2.direction={direction} must be random, over or under.")
        if not (0 <= missing <= 1 and 0 <= missing_share[0] <= missing_share[1] < 1):
            raise InputError(
                f"noise.type2.missing={missing} and noise.type2.missing_share="
                f"{list(missing_share)} must be shares between 0 and 1, the smaller first."
            )
        if wobble < 0 or wavelength <= 0:
            raise InputError(
                f"noise.type2.wobble={wobble} must be at least 0, and "
                f"noise.type2.wavelength={wavelength} above 0."
            )
        self.bias = bias
        self.direction = direction
        self.wobble = wobble
        self.wavelength = wavelength
        self.missing = missing
        self.missing_share = (float(missing_share[0]), float(missing_share[1]))

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies lengths and the missing share."""
        bias = self.bias if self._over_segments(seed) else -self.bias
        rng = derive_rng(seed, "type2", id)
        scale = scale_of(mask)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = mask == class_id
            wobble = self.wobble * smooth_field(mask.shape, self.wavelength * scale, rng)
            offset = strength * scale * (bias + wobble)
            distance = shifted(signed_distance(region), offset)
            if rng.random() < self.missing:
                missing = end_of_a_part(region, self.missing_share, wobble * scale, rng, strength)
                distance = np.where(missing, -1.0, distance)
            moved[class_id] = distance
        return compose(moved, mask)

    def _over_segments(self, seed: int) -> bool:
        if self.direction == "random":
            return bool(derive_rng(seed, "type2 annotator").random() < 0.5)
        return self.direction == "over"


class BoundaryWalk:
    """Markov noise (Yao et al. 2023, arXiv 2308.02498): a random walk of the boundary.

    In each of many steps the region either grows or shrinks, and every pixel along its boundary
    follows with a small probability. The error is correlated along the boundary, and biased. The
    defaults are the authors' values for over-segmentation; they use `grow=0.2` for
    under-segmentation. At 256 x 256 the defaults move the boundary 11 pixels outwards (measured on
    a disc).

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
                f"noise.walk.steps={steps} must be at least 1, and noise.walk.grow={grow} and "
                f"noise.walk.flip={flip} probabilities."
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
        """One step of the walk, in place."""
        grows = rng.random() < self.grow
        after_step = (cv2.dilate if grows else cv2.erode)(region, CROSS)
        boundary = np.flatnonzero(after_step != region)
        flipped = boundary[rng.random(len(boundary)) < self.flip]
        if grows or len(flipped) < region.sum():  # a class never vanishes
            region.flat[flipped] = 1 if grows else 0


class EdgeCircles:
    """Edge distortion (as in PyMIC, Wang et al. 2023): discs are added and cut out.

    First, discs around random points of the boundary are added to a class. Then equally many discs
    around points of the new boundary are cut out.

    Args:
        radius: Smallest and largest radius of a disc, in pixels at 256 x 256.
        spacing: Length of boundary per pair of discs, in pixels at 256 x 256.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(self, radius: Sequence[float] = (4.0, 12.0), spacing: float = 40.0) -> None:
        if not 0 < radius[0] <= radius[1] or spacing <= 0:
            raise InputError(
                f"noise.circles.radius={list(radius)} and noise.circles.spacing={spacing} must be "
                "above 0, the smaller radius first."
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
        """A region with discs of 1 or 0 along its boundary. A class never vanishes."""
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
    """A region whose outlines, also those of holes, have fewer corners."""
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


class RandomAnnotators:
    """Several annotators with different habits (after Zhang et al. 2020, arXiv 2007.15963).

    Every annotator is drawn from the seed, with a constant bias of the boundaries (outwards or
    inwards) and a constant slip to one side. A factor scales the annotator's smooth error along the
    boundaries. Each image's id decides which annotator draws its mask.

    Args:
        count: Number of annotators.
        bias: Standard deviation of their biases in pixels at 256 x 256.
        slip: Standard deviation of their slips, in each direction, in pixels.
        wobble: Mean standard deviation of the smooth error in pixels.
        wavelength: Correlation length of the smooth error in pixels.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        count: int = 5,
        bias: float = 5.0,
        slip: float = 2.0,
        wobble: float = 3.0,
        wavelength: float = 48.0,
    ) -> None:
        if count < 1 or min(bias, slip, wobble) < 0 or wavelength <= 0:
            raise InputError(
                f"noise.crowd.count={count} must be at least 1, and no length below 0."
            )
        self.count = count
        self.bias = bias
        self.slip = slip
        self.wobble = wobble
        self.wavelength = wavelength

    def annotator_of(self, id: str, seed: int) -> int:
        """Return the index of the annotator who draws a sample's mask, from 0."""
        return int(derive_rng(seed, "annotator of", id).integers(self.count))

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies all lengths."""
        annotator_rng = derive_rng(seed, "annotator", self.annotator_of(id, seed))
        bias, carelessness = annotator_rng.normal(0, self.bias), annotator_rng.uniform(0.5, 1.5)
        slip = annotator_rng.normal(0, self.slip, 2)
        rng = derive_rng(seed, "annotators", id)
        scale = strength * scale_of(mask)
        matrix = np.array([[1, 0, scale * slip[0]], [0, 1, scale * slip[1]]])
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            wobble = smooth_field(mask.shape, self.wavelength * scale_of(mask), rng)
            offset = scale * (bias + carelessness * self.wobble * wobble)
            distance = shifted(signed_distance(mask == class_id), offset)
            moved[class_id] = moved_field(distance, matrix)
        return compose(moved, mask)
