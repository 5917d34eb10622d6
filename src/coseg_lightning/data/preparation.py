"""Preprocessing of images to the size, range and channels of the network input."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.inspection import span_of
from coseg_lightning.files.progress import progress
from coseg_lightning.labels.masks import MaskedImages

# Mean and standard deviation of each channel.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Scale(NamedTuple):
    """The range of an image's values, by which all of its tiles are rescaled.

    Attributes:
        low: The value that becomes 0 in each band.
        high: The value that becomes 1 in each band.
        mean: The rescaled mean, which replaces missing values.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]

    @classmethod
    def of(cls, values: Mapping[str, Any], channels: int) -> "Scale":
        """Read one of the scales of `scale_of`, for a number of channels."""
        parts = [np.array(values[name], np.float32) for name in ("low", "high", "mean")]
        if len(parts[0]) != channels:  # grey images are repeated, or colour images become grey
            parts = [np.full(channels, part.mean(), np.float32) for part in parts]
        return cls(*parts)

    def rescale(self, image: NDArray[Any]) -> NDArray[Any]:
        """Rescale `(H, W, C)` to float32 in [0, 1]."""
        rescaled = ((image - self.low) / span_of(self.low, self.high)).clip(0, 1)
        return np.where(np.isnan(rescaled), self.mean, rescaled).astype(np.float32)


def preprocess(
    image: NDArray[Any], canvas: Canvas | int, channels: int, scale: Scale | None = None
) -> NDArray[Any]:
    """Convert an image to the networks' size and range, before augmentation.

    If the result has more than three bands, each is rescaled by its own range, since such bands are
    rarely of one kind.

    Args:
        image: `(H, W)` or `(H, W, C)`, numbers of any type and range.
        canvas: The size of the result.
        channels: Channels of the result.
        scale: The range of the values; by default the image's own.

    Shape:
        `(height, width, channels)` float32 in [0, 1].

    Raises:
        InputError: If the channels cannot be converted.
    """
    canvas = Canvas.of(canvas) if isinstance(canvas, int) else canvas
    image = with_channels(image.astype(np.float32), channels)
    image = resized(image, canvas.content(image.shape))
    if scale is None:
        image = rescale_intensity(image, by_band=channels > 3)
    else:
        image = scale.rescale(image)
    padding = canvas.height - image.shape[0], canvas.width - image.shape[1]
    if any(padding):
        image = np.pad(image, ((0, padding[0]), (0, padding[1]), (0, 0)), mode="symmetric")
    return image


ENDS = (0.5, 99.5)  # percentiles of the values that become 0 and 1


def rescale_intensity(image: NDArray[Any], *, by_band: bool = False) -> NDArray[Any]:
    """Rescale values of any range to float32 in [0, 1].

    The lowest and the highest 0.5 % of the values are clipped. The range of the type is not used:
    12-bit values in a 16-bit file would be almost black, and brightness augmentation would wipe
    them out. Missing values (NaN) get the mean of the others.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        by_band: Whether each band has its own scale; otherwise all share one.
    """
    if by_band and image.ndim == 3:
        bands = [rescale_intensity(image[..., band]) for band in range(image.shape[2])]
        return np.stack(bands, axis=2)
    if image.dtype == np.uint8:  # the same result, sooner
        low, high = _ends_of_bytes(image)
        table = _between(np.arange(256, dtype=np.uint8), low, high)
        return np.take(table, image)
    missing = np.isnan(image)
    if missing.any():
        if missing.all():
            return np.zeros(image.shape, np.float32)
        rescaled = rescale_intensity(image[~missing])
        filled = np.full(image.shape, rescaled.mean(), np.float32)
        filled[~missing] = rescaled
        return filled
    low, high = np.percentile(image, ENDS)
    return _between(image, low, high)


def _between(values: NDArray[Any], low: np.float64, high: np.float64) -> NDArray[np.float32]:
    rescaled: NDArray[np.float64] = ((values - low) / span_of(low, high)).clip(0, 1)
    return rescaled.astype(np.float32)


def _ends_of_bytes(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute `np.percentile(image, ENDS)` to the bit, from the image's histogram."""
    not_above = np.bincount(image.ravel(), minlength=256).cumsum()
    place = (image.size - 1) * (np.array(ENDS) / 100)
    first = np.floor(place).astype(np.int64)
    second = np.minimum(first + 1, image.size - 1)
    below, above = (np.searchsorted(not_above, rank, "right") for rank in (first, second))
    part, step = place - first, above - below
    return np.where(part < 0.5, below + step * part, above - step * (1 - part))


def training_statistics(dataset: MaskedImages, canvas: Canvas, channels: int) -> Statistics:
    """Compute the mean and standard deviation of each channel over the images of a dataset.

    Args:
        dataset: The images. Each is read once.
        canvas: The size of the network input.
        channels: The channels of the network input.
    """
    sums = np.zeros((2, channels))
    tiles = getattr(dataset, "tiles", None)
    for index in progress(range(len(dataset.ids)), "Measuring bands"):
        scale = None if tiles is None else tiles.scale(dataset.ids[index], channels)
        image = preprocess(dataset.image(index), canvas, channels, scale).astype(np.float64)
        sums += image.mean(axis=(0, 1)), (image**2).mean(axis=(0, 1))
    mean, square = sums / len(dataset.ids)
    std = np.sqrt((square - mean**2).clip(1e-12))
    first, second = (tuple(round(float(value), 6) for value in values) for values in (mean, std))
    return first, second


def normalised(image: NDArray[Any], statistics: Statistics | None = None) -> NDArray[Any]:
    """Subtract the mean and divide by the standard deviation.

    Args:
        image: `(H, W, C)` in [0, 1].
        statistics: Mean and standard deviation of each channel; by default those of the image, over
            all channels together.

    Shape:
        `(H, W, C)` float32.
    """
    if statistics is None:
        image = (image - image.mean()) / max(float(image.std()), 1e-6)
    else:
        mean, std = (np.array(values, np.float32) for values in statistics)
        image = (image - mean) / std
    return image.astype(np.float32)


def without_gaps(image: NDArray[Any]) -> NDArray[Any]:
    """Replace missing values (NaN) by the mean of their band."""
    missing = np.isnan(image) if image.dtype.kind == "f" else None
    if missing is None or not missing.any():
        return image
    bands = image.reshape(*image.shape[:2], -1)
    means = [
        band[~np.isnan(band)].mean() if (~np.isnan(band)).any() else 0
        for band in np.moveaxis(bands, 2, 0)
    ]
    filled = np.where(np.isnan(bands), np.array(means, image.dtype), bands)
    return filled.reshape(image.shape)


def with_channels(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """Convert `(H, W)` or `(H, W, C)` to `(H, W, channels)`: grey to colour, or colour to grey.

    Grey images are repeated to at most three channels. More would be bands that the file lacks.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels <= 3:
        return np.repeat(image, channels, axis=2)
    if image.shape[2] == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    count = image.shape[2]
    raise InputError(
        f"The images have {count} channel{'s' * (count > 1)}; set data.in_channels={count}."
    )


def resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize `(H, W, C)` to a height and width. Pixels are averaged if the image gets smaller.

    A pixel is missing (NaN) if all values that it is averaged from are missing.
    """
    missing = np.isnan(image) if image.dtype.kind == "f" else None
    if missing is None or not missing.any():
        return _resized(image, size)
    weights = _resized((~missing).astype(np.float32), size)
    values = _resized(np.where(missing, 0, image).astype(np.float32), size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weights > 0, values / weights, np.nan).astype(np.float32)


def _resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    # OpenCV averages nothing if only one side gets smaller, as where images are stretched.
    shrunk = min(size[0], image.shape[0]), min(size[1], image.shape[1])
    if shrunk not in (size, image.shape[:2]):
        return _resized_by(_resized_by(image, shrunk, cv2.INTER_AREA), size, cv2.INTER_LINEAR)
    shrinks = shrunk != image.shape[:2]
    return _resized_by(image, size, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _resized_by(image: NDArray[Any], size: tuple[int, int], method: int) -> NDArray[Any]:
    height, width = size
    # OpenCV averages at most four channels.
    parts = [image[..., k : k + 4] for k in range(0, image.shape[2], 4)]
    results = [
        cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=method).reshape(
            height, width, -1
        )
        for part in parts
    ]
    return results[0] if len(results) == 1 else np.concatenate(results, axis=2)
