"""Synthetic images that resemble chest radiographs: the built-in default dataset.

They show no patient, but have the features that make lungs hard to outline. The diaphragms are
faint, the heart hides one border, and ribs and clavicles cross the edges. There are opacities, and
gas below the diaphragm that looks like lung. Pose, exposure and noise vary.
"""

import math
from functools import cached_property
from numbers import Integral
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.folder import Splits
from coseg_lightning.errors import InputError
from coseg_lightning.labels.masks import Mask
from coseg_lightning.seeding import derive_rng

Array = NDArray[Any]


class PhantomImages:
    """Phantoms with one seed and name, drawn at the first access. It implements `MaskedImages`.

    Args:
        name: Prefix of the ids.
        size: Number of phantoms.
        side: Height and width in pixels.
        seed: Seed of the phantoms. Each phantom depends only on the seed and its id.
    """

    trusted = True  # the images are drawn from the masks

    def __init__(self, name: str, size: int, side: int, seed: int) -> None:
        self.ids = [f"{name}_{i:03d}" for i in range(size)]
        self.side = side
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _drawn(self) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        return [draw_phantom(self.side, derive_rng(self.seed, "phantom", i)) for i in self.ids]

    def image(self, index: int) -> NDArray[Any]:
        """Return one radiograph, `(side, side)` uint8."""
        return self._drawn[index][0]

    def mask(self, index: int) -> Mask:
        """Return one mask, with the lungs as class 1."""
        return self._drawn[index][1]


def phantom_splits(
    train: int = 80, val: int = 16, test: int = 64, *, side: int = 256, seed: int = 0
) -> Splits:
    """Create phantoms for training, validation and test.

    Args:
        train: Number of phantoms for training.
        val: Number of phantoms for validation. It may be 0.
        test: Number of phantoms for the test. It may be 0.
        side: Height and width in pixels.
        seed: Seed of the phantoms.

    Returns:
        The parts of the dataset.

    Raises:
        InputError: If a number is no whole number.
    """
    sizes = {"train": train, "val": val or 0, "test": test or 0, "side": side}
    for name, size in sizes.items():
        least = int(name == "side")
        if not isinstance(size, Integral) or size < least:
            raise InputError(
                f"{name}={size} must be a whole number of at least {least} for phantoms."
            )
    return Splits(
        PhantomImages("train", train, side, seed),
        PhantomImages("val", val, side, seed) if val else None,
        PhantomImages("test", test, side, seed) if test else None,
    )


def draw_phantom(
    side: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one radiograph and the mask of its lungs.

    Args:
        side: Height and width in pixels.
        rng: Source of all random numbers.

    Shape:
        Both are `(side, side)` uint8.
    """
    x, y = _pose(side, rng)
    blur = side / 256

    lungs = np.zeros((side, side), bool)
    for sign in (-1, 1):  # the patient's right lung is on the left of the picture
        lungs |= _lung(sign * x, y, rng, beside_heart=sign > 0)
    heart = _ellipse(x - rng.uniform(0.08, 0.16), y - rng.uniform(0.18, 0.3), rng, 0.24, 0.27)
    lungs = _two_largest_parts(lungs & ~heart)

    def soft(region: Array, sigma: float) -> Array:
        return cv2.GaussianBlur(region.astype(np.float32), (0, 0), sigma * blur)

    torso = soft(np.abs(x) < 0.78 + 0.12 * np.tanh(2 * y + 0.8), 4)
    air = rng.uniform(0.22, 0.42)  # contrast of the lungs: exposure and breath
    picture = 0.62 * torso - air * soft(lungs, rng.uniform(1.5, 4))
    picture += rng.uniform(0.08, 0.2) * soft(heart, 4) * torso
    picture += rng.uniform(0.1, 0.2) * np.exp(-((x / 0.1) ** 2))  # spine and mediastinum
    picture += _bones(x, y, rng) * torso
    picture += _opacities(x, y, rng, lungs) + _stomach_gas(x, y, rng)
    picture += rng.uniform(-0.08, 0.08) * x + rng.uniform(-0.08, 0.08) * y
    for sigma, strength in ((16, 0.05), (5, 0.03), (1.5, 0.03)):  # tissue, vessels, grain
        grain = cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), sigma * blur)
        picture += strength * grain / grain.std()
    picture += rng.uniform(0.01, 0.05) * rng.standard_normal((side, side))
    picture = np.clip(rng.uniform(0.85, 1.15) * picture + rng.uniform(0, 0.1), 0, 1)
    picture = picture ** rng.uniform(0.75, 1.35)
    return (255 * picture).astype(np.uint8), lungs.astype(np.uint8)


def _pose(side: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw the body coordinates x and y of each pixel. The chest spans about -1 to 1 in both."""
    v, u = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    angle = math.radians(rng.normal(0, 4))
    width, height = rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.1)
    u, v = u - rng.normal(0, 0.05), v - rng.normal(0, 0.05)
    x = (math.cos(angle) * u + math.sin(angle) * v) / width
    y = (-math.sin(angle) * u + math.cos(angle) * v) / height
    return x.astype(np.float32), y.astype(np.float32)


def _lung(x: Array, y: Array, rng: np.random.Generator, *, beside_heart: bool) -> Array:
    """Draw one lung on the side of positive x. The lung beside the heart is smaller."""
    apex, base = rng.uniform(-0.82, -0.68), rng.uniform(0.42, 0.68)
    if beside_heart:
        base -= 0.04
    down = (y - apex) / (base - apex)  # 0 at the apex, 1 at the diaphragm's lateral end
    lateral = rng.uniform(0.62, 0.74) * np.sqrt(np.clip(1 - (1 - down).clip(0) ** 2.4, 0, None))
    lateral += rng.uniform(0.01, 0.03) * np.sin(rng.uniform(4, 8) * y + rng.uniform(0, 6))
    medial = rng.uniform(0.1, 0.16) + rng.uniform(0, 0.05) * np.sin(5 * y + rng.uniform(0, 6))
    dome = rng.uniform(0.12, 0.26) * np.sin(np.clip((x - 0.1) / 0.6, 0, 1) * math.pi)
    return (x > medial) & (x < lateral) & (y > apex) & (y < base - dome)


def _two_largest_parts(region: Array) -> Array:
    """Keep the two lungs, and drop the strips and specks that the heart cuts off."""
    width = max(3, round(len(region) / 24))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    region = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, brush)
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(region)
    largest = 1 + np.argsort(statistics[1:, cv2.CC_STAT_AREA])[-2:]
    return np.isin(parts, largest)


def _ellipse(x: Array, y: Array, rng: np.random.Generator, width: float, height: float) -> Array:
    a, b = width * rng.uniform(0.85, 1.2), height * rng.uniform(0.85, 1.15)
    lean = rng.uniform(0.1, 0.5)
    return ((x - lean * y) / a) ** 2 + (y / b) ** 2 < 1


def _bones(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Draw the brightness of two clavicles and of ribs, which curve down and outwards."""
    spacing, phase = rng.uniform(0.16, 0.22), rng.uniform(0, 1)
    curve = rng.uniform(0.3, 0.6)
    along = (y - curve * np.abs(x) ** 1.5 + 0.35 * (np.abs(x) - 0.4) ** 2) / spacing + phase
    ribs = np.exp(-(((along % 1) - 0.5) ** 2) / 0.02) * (np.abs(x) > 0.1) * (np.abs(x) < 0.8)
    tilt, height = rng.uniform(-0.3, -0.1), rng.uniform(-0.68, -0.56)
    clavicles = np.exp(-(((y - height - tilt * np.abs(x)) / 0.035) ** 2)) * (np.abs(x) < 0.65)
    bones = rng.uniform(0.05, 0.13) * ribs + rng.uniform(0.08, 0.18) * clavicles
    return np.asarray(bones, np.float32)


def _opacities(x: Array, y: Array, rng: np.random.Generator, lungs: Array) -> Array:
    """Draw bright clouds in the lungs, like fluid or infection. They hide parts of the border."""
    clouds = np.zeros(x.shape)
    lung_pixels = np.argwhere(lungs)
    for _ in range(rng.integers(0, 4)):
        row, column = lung_pixels[rng.integers(len(lung_pixels))]
        width, height = rng.uniform(0.06, 0.2, size=2)
        distance = ((x - x[row, column]) / width) ** 2 + ((y - y[row, column]) / height) ** 2
        clouds += rng.uniform(0.1, 0.3) * np.exp(-distance)
    return clouds


def _stomach_gas(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Draw a dark bubble below the left diaphragm, in most images."""
    left, top = rng.uniform(0.2, 0.45), rng.uniform(0.62, 0.8)
    gas = np.exp(-((((x - left) / 0.18) ** 2 + ((y - top) / 0.1) ** 2) ** 2))
    darkness = rng.uniform(0.1, 0.3)
    return -darkness * gas if rng.random() < 0.7 else np.zeros_like(gas)
