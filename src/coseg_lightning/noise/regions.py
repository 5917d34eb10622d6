"""Noise models of objects that are misplaced, missing, invented, or of the wrong class."""

import math
from collections.abc import Sequence

import numpy as np

from coseg_lightning.errors import InputError
from coseg_lightning.labels.masks import Mask
from coseg_lightning.noise.geometry import (
    compose,
    end_of_a_part,
    foreground_classes,
    moved_field,
    parts_of,
    scale_of,
    signed_distance,
    smooth_field,
)
from coseg_lightning.seeding import derive_rng


class AffineNoise:
    """Rotation and shift of the mask (Vorontsov and Kadoury 2021, arXiv 2107.02189).

    All classes move together, and rotate around the foreground's centre. Angle and shift are each
    between half of their maximum and their maximum, so that every mask moves.

    Args:
        rotate: Largest angle in degrees.
        shift: Largest shift in pixels at 256 x 256, in any direction.

    Raises:
        InputError: If an argument is below 0.
    """

    def __init__(self, rotate: float = 15.0, shift: float = 10.0) -> None:
        if rotate < 0 or shift < 0:
            raise InputError(
                f"noise.affine.rotate={rotate} and noise.affine.shift={shift} must be at least 0."
            )
        self.rotate = rotate
        self.shift = shift

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies angle and shift."""
        rng = derive_rng(seed, "affine", id)
        angle = math.radians(strength * self.rotate * rng.uniform(0.5, 1) * rng.choice((-1, 1)))
        length = strength * scale_of(mask) * self.shift * rng.uniform(0.5, 1)
        direction = rng.uniform(0, 2 * math.pi)
        classes = foreground_classes(mask)
        if not classes:
            return mask.copy()
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        centre = np.argwhere(np.isin(mask, classes)).mean(axis=0)[::-1]
        shift = (
            centre
            - rotation @ centre
            + length * np.array([math.cos(direction), math.sin(direction)])
        )
        matrix = np.column_stack([rotation, shift])
        moved = {c: moved_field(signed_distance(mask == c), matrix) for c in classes}
        return compose(moved, mask)


class MissingComponent:
    """Overlooked objects ("drop" of Lad and Mueller 2023, arXiv 2307.05080).

    Args:
        share: Share of the foreground's connected parts that are missing. At least one is missing.

    Raises:
        InputError: If the share is out of range.
    """

    def __init__(self, share: float = 0.3) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"noise.missing_component.share={share} must be between 0 and 1.")
        self.share = share

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the share."""
        rng = derive_rng(seed, "missing component", id)
        parts = [part for c in foreground_classes(mask) for part in parts_of(mask == c)]
        order = rng.permutation(len(parts))
        share = min(1.0, strength * self.share)
        count = max(1, round(share * len(parts))) if strength > 0 else 0
        noisy = mask.copy()
        for number in order[:count]:
            noisy[parts[number]] = 0
        return noisy


class MissingRegion:
    """A missing piece of an object, beyond a wavy line (Co-Seg's Fig. 3, double arrow).

    Args:
        share: Smallest and largest share of the connected part that is missing.
        wobble: Standard deviation of the line in pixels at 256 x 256.
        wavelength: Correlation length of the line in pixels.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self, share: Sequence[float] = (0.15, 0.4), wobble: float = 4.0, wavelength: float = 48.0
    ) -> None:
        if not 0 <= share[0] <= share[1] < 1:
            raise InputError(
                f"noise.missing.share={list(share)} must be shares below 1; give the smaller share "
                "first."
            )
        if wobble < 0 or wavelength <= 0:
            raise InputError(
                f"noise.missing.wobble={wobble} must be at least 0, and "
                f"noise.missing.wavelength={wavelength} above 0."
            )
        self.share = (float(share[0]), float(share[1]))
        self.wobble = wobble
        self.wavelength = wavelength

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the share."""
        rng = derive_rng(seed, "missing", id)
        scale = scale_of(mask)
        noisy = mask.copy()
        for class_id in foreground_classes(mask):
            region = mask == class_id
            wobble = scale * self.wobble * smooth_field(mask.shape, self.wavelength * scale, rng)
            noisy[region & end_of_a_part(region, self.share, wobble, rng, strength)] = 0
        return noisy


class SpuriousBlob:
    """An invented object: a blob of a class, somewhere in the background.

    It is the opposite of "drop" (Lad and Mueller 2023, arXiv 2307.05080). It is just as frequent
    where artefacts look like objects.

    Args:
        radius: Smallest and largest mean radius in pixels at 256 x 256.
        count: Number of blobs in a mask.
        classes: K. The blob's class is drawn from `1 .. K-1`.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self, radius: Sequence[float] = (8.0, 20.0), count: int = 1, classes: int = 2
    ) -> None:
        if not 0 < radius[0] <= radius[1] or count < 1:
            raise InputError(
                f"noise.blob.radius={list(radius)} must be above 0, the smaller radius first; "
                f"noise.blob.count={count} must be at least 1."
            )
        self.radius = (float(radius[0]), float(radius[1]))
        self.count = count
        self.classes = max(2, classes)

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the radius."""
        rng = derive_rng(seed, "blob", id)
        noisy = mask.copy()
        background = np.argwhere(mask == 0)
        y, x = np.indices(mask.shape, dtype=np.float32)
        count = self.count if len(background) and strength > 0 else 0
        for _ in range(count):
            row, column = background[rng.integers(len(background))]
            class_id = int(rng.integers(1, self.classes))
            radius = strength * scale_of(mask) * rng.uniform(*self.radius)
            shape = 0.3 * radius * smooth_field(mask.shape, max(2.0, radius), rng)
            blob = np.hypot(y - row, x - column) < radius + shape
            blob[row, column] = True
            noisy[blob & (mask == 0)] = class_id
        return noisy


class ClassSwap:
    """Exchange of two classes of a mask ("swap" of Lad and Mueller 2023, arXiv 2307.05080).

    The pair is drawn for each mask, which has at least one of the two classes.

    Args:
        classes: K, at least 3.

    Raises:
        InputError: If there are fewer classes.
    """

    adjustable = False

    def __init__(self, classes: int) -> None:
        _check_classes("swap", classes)
        self.classes = classes

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength is ignored."""
        rng = derive_rng(seed, "swap", id)
        present = foreground_classes(mask)
        if not present:
            return mask.copy()
        first = int(rng.choice(present))
        second = int(rng.choice([c for c in range(1, self.classes) if c != first]))
        noisy = mask.copy()
        noisy[mask == first], noisy[mask == second] = second, first
        return noisy


class ClassMerge:
    """Systematic confusion of two classes: an annotator labels one of them as the other.

    It occurs, for example, with coarse label sets. Lad and Mueller (2023, arXiv 2307.05080) call
    the random form "swap". The pair is drawn from the seed, and is the same in the whole run.

    Args:
        classes: K, at least 3.

    Raises:
        InputError: If there are fewer classes.
    """

    adjustable = False

    def __init__(self, classes: int) -> None:
        _check_classes("merge", classes)
        self.classes = classes

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength is ignored."""
        pair = derive_rng(seed, "merge").choice(np.arange(1, self.classes), 2, replace=False)
        noisy = mask.copy()
        noisy[mask == pair[0]] = pair[1]
        return noisy


def _check_classes(name: str, classes: int) -> None:
    if classes < 3:
        raise InputError(
            f"noise={name} swaps foreground classes, but data.classes={classes} leaves only one; "
            "use a dataset with at least three classes."
        )
