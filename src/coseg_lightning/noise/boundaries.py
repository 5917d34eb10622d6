"""Noise of outlines: the boundary is drawn in the wrong place."""

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


class BoundaryNoise:
    """Type I noise (section 3, after Zhu et al. 2019 [9]): each class eroded or dilated.

    Each foreground class of each sample draws its own whole number of pixels, uniform in
    `1 .. max_pixels`, and its own sign. Where two classes touch, a boundary that both move
    outwards stays where it is. An erosion that would leave nothing of a class becomes a dilation.

    Args:
        max_pixels: The largest shift.
        element: Structuring element: `disk` (Euclidean distance) or `square` ("in each
            direction": chessboard distance).
        sign: `random`, or always `dilate` or always `erode`.
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
        """See `NoiseModel`; strength multiplies the shift."""
        rng = derive_rng(seed, "type1", id)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            pixels = rng.integers(1, self.max_pixels, endpoint=True)
            # Less than one pixel would change nothing at all on a small mask.
            shift = strength * max(1.0, float(pixels) * scale_of(mask))
            dilate = bool(rng.random() < 0.5) if self.sign == "random" else self.sign == "dilate"
            distance = signed_distance(mask == class_id, self.element)
            moved[class_id] = shifted(distance, shift if dilate else -shift)
        return compose(moved, mask)


class BiasedAnnotator:
    """Type II noise (section 3): one annotator with a habit of over- or under-segmenting.

    The annotator, drawn from the seed, has one direction for all of his masks. In each mask the
    boundary is off by his bias and by a smooth error along it, and sometimes a region is missing:
    one end of a connected part, as the double arrow of the paper's Fig. 3 shows.

    Args:
        bias: Mean shift of the boundary in pixels.
        direction: `over`, `under`, or `random`: one of them for the whole run, by the seed.
        wobble: Standard deviation, in pixels, of the smooth error.
        wavelength: Its correlation length in pixels.
        missing: Probability that a class of a sample lacks a region.
        missing_share: Smallest and largest share of the connected part that is then missing.
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
        """See `NoiseModel`; strength multiplies all lengths and the missing share."""
        over = self.direction == "over"
        if self.direction == "random":
            over = bool(derive_rng(seed, "type2 annotator").random() < 0.5)
        rng = derive_rng(seed, "type2", id)
        scale = scale_of(mask)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = mask == class_id
            wobble = self.wobble * smooth_field(mask.shape, self.wavelength * scale, rng)
            offset = strength * scale * ((self.bias if over else -self.bias) + wobble)
            distance = shifted(signed_distance(region), offset)
            if rng.random() < self.missing:
                lost = end_of_a_part(region, self.missing_share, wobble * scale, rng, strength)
                distance = np.where(lost, -1.0, distance)
            moved[class_id] = distance
        return compose(moved, mask)


class BoundaryWalk:
    """Markov noise (Yao et al. 2023, arXiv 2308.02498): the boundary walks at random.

    In each of many steps the region either grows or shrinks, and every pixel along its boundary
    follows with a small probability. The error is correlated along the boundary, and biased: with
    these values, those of the authors for over-segmentation, it drifts 11 pixels outwards at
    256 x 256 (measured on a disc); `grow=0.2` is theirs for under-segmentation.

    Args:
        steps: Steps at 256 x 256.
        grow: Probability that a step grows the region.
        flip: Probability that a pixel along the boundary follows a step.
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
        """See `NoiseModel`; strength multiplies the number of steps."""
        rng = derive_rng(seed, "walk", id)
        steps = max(1, round(strength * self.steps * scale_of(mask))) if strength > 0 else 0
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = (mask == class_id).astype(np.uint8)
            for _ in range(steps):
                grows = rng.random() < self.grow
                neighbours = (cv2.dilate if grows else cv2.erode)(region, CROSS)
                boundary = np.flatnonzero(neighbours != region)
                follows = boundary[rng.random(len(boundary)) < self.flip]
                if grows or len(follows) < region.sum():  # a class never vanishes
                    region.flat[follows] = grows
            moved[class_id] = signed_distance(region.astype(bool))
        return compose(moved, mask)


class EdgeCircles:
    """Edge distortion (as of PyMIC, Wang et al. 2023): discs added along the boundary, and cut out.

    Half of the discs around random boundary points are added to a class, and then as many around
    the new boundary are taken away.

    Args:
        radius: Smallest and largest radius of a disc, in pixels at 256 x 256.
        spacing: Length of boundary, in pixels at 256 x 256, for each pair of discs.
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
        """See `NoiseModel`; strength multiplies the radii."""
        rng = derive_rng(seed, "circles", id)
        scale = scale_of(mask)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = (mask == class_id).astype(np.uint8)
            for value in (1, 0):
                boundary = np.argwhere(cv2.dilate(region, CROSS) != region)
                changed = region.copy()
                for _ in range(math.ceil(len(boundary) / (self.spacing * scale))):
                    row, column = boundary[rng.integers(len(boundary))]
                    radius = round(strength * scale * rng.uniform(*self.radius))
                    if radius > 0:
                        cv2.circle(changed, (int(column), int(row)), radius, value, cv2.FILLED)
                if changed.any():
                    region = changed
            moved[class_id] = signed_distance(region.astype(bool))
        return compose(moved, mask)


class PolygonOutline:
    """Coarse polygons (as in Zlateski et al., CVPR 2018): the outline has too few corners.

    The outline is simplified by Douglas and Peucker's algorithm; at its coarsest it is a box.

    Args:
        tolerance: How far the polygon may stray, in pixels at 256 x 256.
    """

    def __init__(self, tolerance: float = 8.0) -> None:
        if tolerance <= 0:
            raise InputError(f"noise.polygon.tolerance={tolerance} must be above 0.")
        self.tolerance = tolerance

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """See `NoiseModel`; strength multiplies the tolerance. Nothing is drawn at random."""
        tolerance = strength * self.tolerance * scale_of(mask)
        if tolerance <= 0:
            return mask.copy()
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = (mask == class_id).astype(np.uint8)
            outlines, tree = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            coarse = [coarse_outline(outline, tolerance) for outline in outlines]
            drawn = np.zeros_like(region)
            for number, parent in enumerate(tree[0, :, 3]):
                if parent >= 0:  # a hole, drawn with the part around it
                    continue
                part = cv2.fillPoly(np.zeros_like(region), [coarse[number]], 1)
                for hole in np.flatnonzero(tree[0, :, 3] == number):
                    cv2.fillPoly(part, [coarse[hole]], 0)
                    cv2.polylines(part, [coarse[hole]], True, 1)  # a hole's outline is not hole
                drawn |= part
            moved[class_id] = signed_distance(drawn.astype(bool))
        return compose(moved, mask)


def coarse_outline(outline: NDArray[Any], tolerance: float) -> NDArray[Any]:
    """An outline with fewer corners; at its coarsest a box, since two corners enclose nothing."""
    polygon = cv2.approxPolyDP(outline, tolerance, closed=True)
    if len(polygon) > 2:
        return polygon
    return cv2.boxPoints(cv2.minAreaRect(outline)).round().astype(np.int32)[:, None]


class RandomAnnotators:
    """Annotators, each with habits of his own (after Zhang et al. 2020, arXiv 2007.15963).

    Every annotator, drawn from the seed, has a constant bias of his boundaries (outwards or
    inwards), a constant slip to one side, and a carefulness that scales the smooth error along
    his boundaries. Each image is given to one of them by its id.

    Args:
        count: How many annotators.
        bias: Standard deviation of their biases in pixels at 256 x 256.
        slip: Standard deviation of their slips, in each direction, in pixels.
        wobble: Mean standard deviation of the smooth error in pixels.
        wavelength: Its correlation length in pixels.
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
        """Which annotator drew a sample's mask, from 0."""
        return int(derive_rng(seed, "annotator of", id).integers(self.count))

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """See `NoiseModel`; strength multiplies all lengths."""
        person = derive_rng(seed, "annotator", self.annotator_of(id, seed))
        bias, carefulness = person.normal(0, self.bias), person.uniform(0.5, 1.5)
        slip = person.normal(0, self.slip, 2)
        rng = derive_rng(seed, "annotators", id)
        scale = strength * scale_of(mask)
        matrix = np.array([[1, 0, scale * slip[0]], [0, 1, scale * slip[1]]])
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            wobble = smooth_field(mask.shape, self.wavelength * scale_of(mask), rng)
            offset = scale * (bias + carefulness * self.wobble * wobble)
            distance = shifted(signed_distance(mask == class_id), offset)
            moved[class_id] = moved_field(distance, matrix)
        return compose(moved, mask)


# The pixels beside, above and below.
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
