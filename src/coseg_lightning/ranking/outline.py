"""Outline evidence: how well a mask's outline lies on an edge of its image. No network is needed.

A good outline follows an edge: the image's gradient is stronger on it than a few pixels away. The
evidence is a matter of single pixels. It is therefore computed at the mask's own size, not at that
of the networks. The ranking quality is measured by `benchmarks/outline.py`.

Legend of shapes: N samples, K classes, H x W pixels, C bands, P points of an outline.
"""

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError

Floats = NDArray[np.float64]

IGNORE_INDEX = 255
# All lengths are in pixels of an image whose longer side is 256.
SIGMA = 1.5  # of the Gaussian that smooths the image
REACH = 8  # how far the profiles reach to either side of the outline
MARGIN = 2  # points that are nearer to the image's border are not judged
WIDTHS_PER_REACH = 4  # a profile reaches at most over the object's width divided by this
KIND_SHRINKAGE = 10  # samples of a kind that varies as all do; its own statistics count half then
LARGEST_SCALE = 2.0  # larger images are shrunk to this scale, at which no edge is lost
MIN_POINTS = 8
MOST_POINTS = 10_000  # longer outlines are subsampled to at most this number of points
COLUMNS = ("outline_contrast", "outline_rank")


def outline_scores(images: Iterable[Any], masks: Iterable[Any]) -> Floats:
    """Score masks by how badly their outlines follow the edges of their images.

    Images and masks are read one by one, so generators need little memory.

    Args:
        images: `(H, W)` or `(H, W, C)` each, of any type and number of bands.
        masks: `(H, W)` class ids each, of the size of its image: 0 for background, 255 for
            unlabelled pixels.

    Returns:
        `(N,)` scores, higher for worse masks; comparable within one dataset only. NaN where the
        outline cannot be judged. Then the mask has no foreground, or near the outline the image
        has no contrast or values that are not finite.

    Raises:
        InputError: If the size of a mask differs from its image, if their numbers differ, if one
            is no such array, or if masks hold 255 and no outline can be judged.

    Example:
        >>> worst_first = np.argsort(-np.nan_to_num(outline_scores(images, masks), nan=np.inf))
    """
    rows, highest = [], set()
    for number, (image, mask) in enumerate(zip_longest(images, masks)):
        if image is None or mask is None:
            raise InputError("There are not as many images as masks; give one mask per image.")
        image, mask = _checked(f"Image {number}", image, 3), _checked(f"Mask {number}", mask, 2)
        if (mask != np.round(mask)).any() or (mask < 0).any():
            raise InputError(
                f"Mask {number} holds other values than whole numbers from 0; give class ids."
            )
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"Mask {number} is {mask.shape}, but its image is {image.shape[:2]}; give masks "
                "that have the size of their images."
            )
        rows.append(outline_evidence(image, mask))
        highest.add(int(np.max(mask, initial=0)))
    count = max((len(row) for row in rows), default=1)
    table = np.full((len(rows), count, len(COLUMNS)), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    if IGNORE_INDEX in highest and np.isnan(table).all():
        raise InputError(
            "The masks hold 255, which means unlabelled, but no foreground class; give class ids, "
            "such as mask > 0."
        )
    return mean_of_known(outline_misfit(table), axis=1)


def _checked(name: str, given: Any, most_axes: int) -> NDArray[Any]:
    """Return an array of real numbers with two axes, or at most as many as given."""
    array = np.asarray(given)
    if array.dtype.kind not in "buif" or not 2 <= array.ndim <= most_axes:
        raise InputError(
            f"{name} is {array.dtype} of shape {array.shape}; give lists of images, (H, W) or "
            "(H, W, C) each, and of masks, (H, W) each."
        )
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def outline_evidence(
    image: Any,
    mask: Any,
    *,
    classes: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    largest_scale: float = LARGEST_SCALE,
) -> Floats:
    """Compare the image's gradient on the outline of each class with the gradient beside it.

    * `outline_contrast`: the mean log gradient on the outline, minus that within `REACH` to
      either side.
    * `outline_rank`: the mean share of a profile across the outline where the gradient is weaker
      than on the outline itself.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        mask: `(H, W)` class ids.
        classes: K; by default as many as the mask needs.
        ignore_index: Class id of unlabelled pixels.
        largest_scale: Larger images are shrunk to this scale. At 1, an image of 512 x 512 pixels
            takes slightly more than half of the time.

    Returns:
        `(K - 1, 2)`, NaN for a class whose outline cannot be judged.

    Raises:
        InputError: If the size of the mask differs from its image.
    """
    image, mask = np.asarray(image), np.asarray(mask)
    if image.shape[:2] != mask.shape:
        raise InputError(
            f"A mask of {mask.shape} belongs to an image of {image.shape[:2]} pixels; give masks "
            "that have the size of their images."
        )
    labelled = mask != ignore_index
    if classes is None:
        classes = max(2, int(mask[labelled].max(initial=0)) + 1)
    rows = np.full((classes - 1, len(COLUMNS)), np.nan)
    for k in range(1, classes):
        rows[k - 1] = _class_evidence(image, mask == k, labelled, largest_scale)
    return rows


def outline_misfit(evidence: Floats, kinds: NDArray[np.int64] | None = None) -> Floats:
    """Standardise and average both columns of the evidence; high for bad outlines.

    Args:
        evidence: `(N, K - 1, 2)`.
        kinds: See `standardise`.

    Returns:
        `(N, K - 1)`. NaN stays NaN.
    """
    columns = [standardise(evidence[..., column], kinds=kinds) for column in range(2)]
    misfit: Floats = -(columns[0] + columns[1]) / 2
    return misfit


def standardise(
    values: Floats, *, squashed: bool = True, kinds: NDArray[np.int64] | None = None
) -> Floats:
    """Standardise each column of `(N, K)` values by its median and deviation. NaN stays NaN.

    With `squashed`, arsinh limits the influence of outliers.

    Args:
        values: `(N, K)`.
        squashed: See above.
        kinds: `(N,)` numbers of the kinds of the images. The median and deviation of a kind are
            shrunk to those of all.
    """
    result = np.full_like(values, np.nan)
    for k, column in enumerate(values.T):
        known = ~np.isnan(column)
        if known.any():
            centred = column[known] - np.median(column[known])
            deviation = 1.4826 * np.median(np.abs(centred)) or float(centred.std()) or 1.0
            result[known, k] = centred / deviation
    for kind in () if kinds is None else np.unique(kinds):
        for column in result.T:
            chosen = (kinds == kind) & ~np.isnan(column)
            column[chosen] = _within_kind(column[chosen])
    return np.arcsinh(result) if squashed else result


def _within_kind(values: Floats) -> Floats:
    """Standardise `(n,)` values of one kind that were standardised over all samples before."""
    if not len(values):
        return values
    count, median = len(values), np.median(values)
    spread = (1.4826 * float(np.median(np.abs(values - median)))) ** 2
    spread = (count * spread + KIND_SHRINKAGE) / (count + KIND_SHRINKAGE)  # over all it is 1
    # The median of a kind that varies little is known from few samples.
    share = count / (count + KIND_SHRINKAGE * min(1.0, spread))
    result: Floats = (values - share * median) / np.sqrt(spread)
    return result


def image_sharpness(image: NDArray[Any]) -> float:
    """Return the log ratio of an image's strongest gradients to its usual one; NaN without any.

    Args:
        image: `(H, W)` or `(H, W, C)`; it is looked at with a longer side of at most 256 pixels.
    """
    scale, bands = max(image.shape[:2]) / 256, np.atleast_3d(image)
    if not np.isfinite(bands).all():
        return float("nan")
    if scale > 1:
        known = np.ones(image.shape[:2], bool)
        bands, scale = _shrunk(bands, known, known, 1 / scale)[0], 1.0
    usual, strongest = np.quantile(_gradient_magnitude(bands, scale)[::2, ::2], (0.5, 0.99))
    return float(np.log(strongest / usual)) if usual > 0 else float("nan")


def mean_of_known(values: Floats, *, axis: int) -> Floats:
    """Average the known values along an axis; NaN where none is known."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.where(known.any(axis=axis), total / known.sum(axis=axis).clip(1), np.nan)


def _class_evidence(
    image: NDArray[Any], inside: NDArray[Any], labelled: NDArray[Any], largest_scale: float
) -> Floats:
    """`(2,)` evidence on one class, in a window around it."""
    profiles, _ = class_profiles(image, inside, labelled, largest_scale)
    return np.full(len(COLUMNS), np.nan) if profiles is None else evidence_of_profiles(profiles)


def class_profiles(
    image: NDArray[Any],
    inside: NDArray[Any],
    labelled: NDArray[Any],
    largest_scale: float,
    reach: int = REACH,
) -> tuple[Floats | None, float]:
    """Return the gradient along lines across the outline of one class, from outside to inside.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        inside: `(H, W)` the pixels of the class.
        labelled: `(H, W)` the pixels that are judged.
        largest_scale: Images of a larger scale are shrunk to this one.
        reach: R, how far the lines reach to either side of the outline.

    Returns:
        `(P, 2 R + 1)` profiles, or None if the outline cannot be judged, and the length of their
        steps in the image's own pixels.
    """
    unknown = None, 0.0
    if min(inside.shape) < MIN_POINTS or not inside.any() or inside.all():
        return unknown
    scale = _scale_of(inside[_window_around(inside, 0)], max(inside.shape))
    judged = labelled & _off_the_border(inside.shape, max(1, round(MARGIN * scale)))
    window = _window_around(inside, round((reach + 4 * SIGMA) * scale) + 2)
    parts = image[window], inside[window], judged[window]
    if not np.isfinite(parts[0]).all():
        return unknown
    step = scale
    if scale > largest_scale:
        parts, scale = _shrunk(*parts, largest_scale / scale), largest_scale
    bands, inside, judged = parts
    points, normals = _outline_points(inside, judged, scale)
    if len(points) < MIN_POINTS:
        return unknown
    return _profiles(_gradient_magnitude(bands, scale), points, normals, scale, reach), step


def _scale_of(inside: NDArray[Any], side: int) -> float:
    """Length of a pixel of a 256-pixel image in own pixels, or less where objects are small.

    `side` is the longer side of the whole image.
    """
    count, _, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
    areas = stats[1:count, cv2.CC_STAT_AREA].astype(np.float64)
    width = np.sqrt(np.average(areas, weights=areas))  # of the component of a typical pixel
    return float(max(0.5, min(side / 256, width / (WIDTHS_PER_REACH * REACH))))


def _off_the_border(shape: tuple[int, ...], margin: int) -> NDArray[np.bool_]:
    """`(H, W)` whether a pixel is at least `margin` pixels from the image's border."""
    result = np.zeros(shape, bool)
    result[margin : shape[0] - margin, margin : shape[1] - margin] = True
    return result


def _window_around(inside: NDArray[Any], margin: int) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )


def _shrunk(
    image: NDArray[Any], inside: NDArray[Any], judged: NDArray[Any], ratio: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Shrink the image by averaging, and both masks by nearest pixels."""
    size = tuple(max(2, round(side * ratio)) for side in inside.shape[::-1])
    bands = [
        cv2.resize(band.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for band in np.moveaxis(np.atleast_3d(image), 2, 0)
    ]
    masks = [
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
        for mask in (inside, judged)
    ]
    return np.dstack(bands), masks[0], masks[1]


def _outline_points(
    inside: NDArray[Any], judged: NDArray[Any], scale: float
) -> tuple[Floats, Floats]:
    """Return the points of the outline, and the directions across it.

    Points next to pixels that are not judged are left out, since no edge is visible there.

    Returns:
        Both `(P, 2)`, row and column.
    """
    if not judged.all():
        judged = cv2.erode(judged.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    depth = _signed_distance(inside.astype(np.uint8))
    across = np.stack(np.gradient(cv2.GaussianBlur(depth, (0, 0), SIGMA * scale)), axis=-1)
    points = np.argwhere((np.abs(depth) <= 0.5) & judged)
    points = points[:: -(-len(points) // MOST_POINTS) or 1]
    normals = across[points[:, 0], points[:, 1]]
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return points.astype(np.float64), normals / np.maximum(lengths, 1e-6)


def _signed_distance(inside: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`(H, W)` distance to the outline, positive inside; 0.5 in the pixels next to it."""
    parts = [np.pad(part, 1, mode="edge") for part in (inside, 1 - inside)]
    within, beyond = (cv2.distanceTransform(p, cv2.DIST_L2, 5)[1:-1, 1:-1] for p in parts)
    return np.where(inside > 0, within - 0.5, 0.5 - beyond).astype(np.float32)


def _gradient_magnitude(image: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """`(H, W)` length of the gradient of all bands, each scaled to deviation 1."""
    squares = np.zeros(image.shape[:2], np.float32)
    for values in np.moveaxis(np.atleast_3d(image).astype(np.float64), 2, 0):
        largest = float(np.abs(values).max()) or 1.0
        band = ((values - values.mean()) / largest).astype(np.float32)
        band = np.asarray(cv2.GaussianBlur(band, (0, 0), SIGMA * scale), np.float32)
        deviation = float(band.std())
        if deviation > 1e-6:  # else only rounding errors
            squares += sum(part**2 for part in np.gradient(band / deviation))
    return np.sqrt(squares)


def _profiles(
    magnitude: NDArray[np.float32], points: Floats, normals: Floats, scale: float, reach: int
) -> Floats:
    """`(P, 2 R + 1)` the gradient along the lines that cross the outline at its points."""
    steps = scale * np.arange(-reach, reach + 1)
    rows, columns = (points[:, [axis]] + normals[:, [axis]] * steps for axis in (0, 1))
    profiles = cv2.remap(
        magnitude,
        columns.astype(np.float32),
        rows.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return profiles.astype(np.float64)


def evidence_of_profiles(profiles: Floats) -> Floats:
    """`(2,)` contrast and rank of the middle of profiles; NaN without any gradient."""
    mean = profiles.mean()
    if mean <= 0:
        return np.full(len(COLUMNS), np.nan)
    on_outline = profiles[:, [REACH]]
    logs = np.log(profiles + 1e-3 * mean)
    contrast = (logs[:, REACH] - logs.mean(axis=1)).mean()
    return np.array([contrast, (on_outline > profiles).mean()])
