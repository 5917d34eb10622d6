"""Preprocessing: images of any size, range and number of channels become network inputs."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError

# Mean and standard deviation of each channel.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def preprocess(image: NDArray[Any], side: int, channels: int) -> NDArray[Any]:
    """Convert an image to the networks' size and range, before augmentation.

    Args:
        image: `(H, W)` or `(H, W, C)`, numbers of any type and range.
        side: Height and width of the result.
        channels: Channels of the result.

    Shape:
        `(side, side, channels)` float32 in [0, 1].

    Raises:
        InputError: If the channels cannot be converted.
    """
    return rescale_intensity(resized(with_channels(image.astype(np.float32), channels), side))


def rescale_intensity(image: NDArray[Any]) -> NDArray[Any]:
    """Rescale values of any range to float32 in [0, 1], with one scale for all channels.

    The lowest and the highest 0.5 % of the values are clipped. The type says little about the
    range: 12 bits in a 16-bit file would be almost black, and augmentation that shifts the
    brightness would wipe them out.
    """
    low, high = np.percentile(image, (0.5, 99.5))
    result: NDArray[Any] = ((image - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)
    return result


def normalised(image: NDArray[Any], statistics: Statistics | None = None) -> NDArray[Any]:
    """Subtract the mean and divide by the standard deviation.

    Args:
        image: `(H, W, C)` in [0, 1].
        statistics: Mean and deviation of each channel; by default those of the image itself, over
            all of its channels.

    Shape:
        `(H, W, C)` float32.
    """
    if statistics is None:
        image = (image - image.mean()) / max(float(image.std()), 1e-6)
    else:
        mean, std = (np.array(values, np.float32) for values in statistics)
        image = (image - mean) / std
    return image.astype(np.float32)


def with_channels(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """Convert `(H, W)` or `(H, W, C)` to `(H, W, channels)`: grey to colour, or colour to grey."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1:
        return np.repeat(image, channels, axis=2)
    if image.shape[2] == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    raise InputError(
        f"The images have {image.shape[2]} channels; set data.in_channels={image.shape[2]}."
    )


def resized(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Resize `(H, W, C)` to `(side, side, C)`. Pixels are averaged if the image gets smaller."""
    shrinks = side < max(image.shape[:2])
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    result = cv2.resize(image, (side, side), interpolation=method)
    return result.reshape(side, side, -1)
