"""Label noise for experiments: which samples get noisy masks, and what happens to a mask.

Every noise model is a callable `noise(mask, id=..., seed=...)`. What it does to a sample depends
on nothing but the seed and the sample's id. Lengths are in pixels of a 256 x 256 image and scale
with the side of the mask, `sqrt(H W) / 256`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from coseg_lightning.equations import IGNORE_INDEX
from coseg_lightning.errors import InputError
from coseg_lightning.image_files import MaskFolder
from coseg_lightning.labels import LabelStore, Mask, MaskedImages
from coseg_lightning.seeding import derive_rng

Field = NDArray[Any]


class NoiseModel(Protocol):
    """Makes a noisy mask of a clean one."""

    def __call__(self, mask: Mask, *, id: str, seed: int) -> Mask:
        """Return the noisy mask; shape `(H, W)`, unlabelled pixels (255) stay so."""


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
            raise InputError(f"noise.max_pixels={max_pixels} must be at least 1.")
        if element not in ("disk", "square"):
            raise InputError(f"noise.element={element} must be disk or square.")
        if sign not in ("random", "dilate", "erode"):
            raise InputError(f"noise.sign={sign} must be random, dilate or erode.")
        self.max_pixels = max_pixels
        self.element = element
        self.sign = sign

    def __call__(self, mask: Mask, *, id: str, seed: int) -> Mask:
        """See `NoiseModel`."""
        rng = derive_rng(seed, "type1", id)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            pixels = rng.integers(1, self.max_pixels, endpoint=True)
            # Less than one pixel would change nothing at all on a small mask.
            shift = max(1.0, float(pixels) * scale_of(mask))
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
            raise InputError(f"noise.direction={direction} must be random, over or under.")
        if not (0 <= missing <= 1 and 0 <= missing_share[0] <= missing_share[1] < 1):
            raise InputError(
                f"noise.missing={missing} and noise.missing_share={list(missing_share)} must be "
                "shares between 0 and 1, the smaller first."
            )
        self.bias = bias
        self.direction = direction
        self.wobble = wobble
        self.wavelength = wavelength
        self.missing = missing
        self.missing_share = (float(missing_share[0]), float(missing_share[1]))

    def __call__(self, mask: Mask, *, id: str, seed: int) -> Mask:
        """See `NoiseModel`."""
        over = self.direction == "over"
        if self.direction == "random":
            over = bool(derive_rng(seed, "type2 annotator").random() < 0.5)
        rng = derive_rng(seed, "type2", id)
        scale = scale_of(mask)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            region = mask == class_id
            wobble = self.wobble * smooth_field(mask.shape, self.wavelength * scale, rng)
            offset = scale * ((self.bias if over else -self.bias) + wobble)
            distance = shifted(signed_distance(region), offset)
            if rng.random() < self.missing:
                lost = self._end_of_a_part(region, wobble * scale, rng)
                distance = np.where(lost, -1.0, distance)
            moved[class_id] = distance
        return compose(moved, mask)

    def _end_of_a_part(
        self, region: NDArray[np.bool_], wobble: Field, rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """The side of a connected part that lies beyond a wavy line, in a random direction."""
        _, parts, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
        areas = statistics[1:, cv2.CC_STAT_AREA].astype(float)
        part = parts == 1 + rng.choice(len(areas), p=areas / areas.sum())
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.indices(region.shape, dtype=np.float32)
        along = math.cos(angle) * x + math.sin(angle) * y + wobble
        line = np.quantile(along[part], 1 - rng.uniform(*self.missing_share))
        # Beyond the line, but nearer to this part than to any other: over-segmentation too.
        nearest = signed_distance(part)
        others = signed_distance(region & ~part) if (region & ~part).any() else nearest - 1
        return np.asarray((along > line) & (nearest > others))


class Annotator:
    """Noisy masks that somebody drew: taken from another folder of masks with the same stems.

    Args:
        masks: Folder of the masks, absolute or relative to `root`.
        root: The dataset's folder.
        classes: Number of classes, as for the dataset's own masks.
    """

    def __init__(self, masks: str | Path, root: str | Path | None = None, classes: int = 2) -> None:
        folder = Path(masks)
        if not folder.is_absolute():
            if root is None:
                raise InputError(
                    "noise=annotator takes masks from a folder beside the dataset's own; "
                    "use it with data=folder data.root=DIR noise.masks=FOLDER."
                )
            folder = Path(root) / folder
        self.masks = MaskFolder(folder, classes=classes)

    def __call__(self, mask: Mask, *, id: str, seed: int) -> Mask:
        """See `NoiseModel`."""
        drawn = self.masks.read(id)
        if drawn.shape != mask.shape:
            raise InputError(
                f"{self.masks.path(id)} is {size_of(drawn)}, but the dataset's own mask of {id} is "
                f"{size_of(mask)}; both must have the image's size."
            )
        return drawn


def choose_noisy(ids: Sequence[str], noise_level: float, seed: int) -> list[str]:
    """The ids of exactly `round(noise_level * N)` samples, chosen by the seed.

    The choice does not depend on the order of the ids, and a lower level's choice is part of a
    higher level's.
    """
    order = derive_rng(seed, "noisy samples").permutation(len(ids))
    ranked = sorted(ids)
    return [ranked[i] for i in order[: round(noise_level * len(ids))]]


def write_noisy_layer(
    dataset: MaskedImages,
    noise: NoiseModel,
    noise_level: float,
    seed: int,
    folder: str | Path,
) -> LabelStore:
    """Write noisy masks for a share of the samples into a new label layer.

    The layer's manifest records each noisy mask's Dice to the original.
    """
    chosen = set(choose_noisy(dataset.ids, noise_level, seed))
    writer = LabelStore.create(folder)
    facts = {}
    for index, id in enumerate(tqdm(dataset.ids, desc="Noisy masks", leave=False)):
        if id in chosen:
            original = dataset.mask(index)
            noisy = noise(original, id=id, seed=seed)
            writer.write(id, noisy)
            facts[id] = {"dice": mask_dice(noisy, original)}
    return writer.finish(facts)


def mask_dice(first: Mask, second: Mask) -> float:
    """Foreground Dice of two masks: the mean over the classes present in either, 1 if none is.

    Pixels unlabelled (255) in either do not count.
    """
    labelled = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    first, second = first[labelled], second[labelled]
    classes = sorted((set(np.unique(first)) | set(np.unique(second))) - {0})
    if not classes:
        return 1.0
    overlaps = [
        2 * np.sum((first == c) & (second == c)) / (np.sum(first == c) + np.sum(second == c))
        for c in classes
    ]
    return float(np.mean(overlaps))


def foreground_classes(mask: Mask) -> list[int]:
    """Class ids that occur in a mask, without background and unlabelled."""
    return [int(c) for c in np.unique(mask) if c not in (0, IGNORE_INDEX)]


def scale_of(mask: Mask) -> float:
    """Pixels of this mask per pixel of a 256 x 256 image."""
    return math.sqrt(mask.shape[0] * mask.shape[1]) / 256


def size_of(mask: Mask) -> str:
    """Width x height, for messages."""
    return f"{mask.shape[1]}x{mask.shape[0]}"


def signed_distance(
    region: NDArray[np.bool_], element: Literal["disk", "square"] = "disk"
) -> Field:
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
