"""Noise models of simulated annotators, each with constant habits and a smooth error."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

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


class BiasedAnnotator:
    """Type II noise (section 3): one annotator who always over- or under-segments.

    The annotator's direction is drawn from the seed, and is the same in all masks. The boundary is
    shifted by the annotator's bias and by a smooth error along the boundary. Sometimes a region is
    missing: one end of a connected part, as the double arrow of the paper's Fig. 3 shows.

    Args:
        bias: Mean shift of the boundary in pixels.
        direction: `over`, `under`, or `random`, with which the seed draws one for the whole run.
        wobble: Standard deviation of the smooth error in pixels.
        wavelength: Correlation length of the smooth error in pixels.
        missing: Probability that a region of a class is missing in a sample.
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
                f"noise.type2.missing={missing} and "
                f"noise.type2.missing_share={list(missing_share)} must be shares between 0 and 1; "
                "give the smaller share first."
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


class RandomAnnotators:
    """Several annotators with different habits (after Zhang et al. 2020, arXiv 2007.15963).

    The seed draws the habits of every annotator: a constant shift of the boundaries outwards or
    inwards, a constant slip to one side, and a factor on the smooth error along the boundaries.
    Each image's id and the seed decide which annotator draws its mask.

    Args:
        count: Number of annotators.
        bias: Standard deviation of the annotators' shifts in pixels at 256 x 256.
        slip: Standard deviation of the annotators' slips, in each direction, in pixels.
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
                f"count={count} must be at least 1, bias={bias}, slip={slip} and "
                f"wobble={wobble} at least 0, and wavelength={wavelength} above 0."
            )
        self.count = count
        self.bias = bias
        self.slip = slip
        self.wobble = wobble
        self.wavelength = wavelength

    def annotator_of(self, sample_id: str, seed: int) -> int:
        """Return the index of the annotator who draws a sample's mask, from 0."""
        return int(derive_rng(seed, "annotator of", sample_id).integers(self.count))

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
