"""A description of the preprocessing, in words for somebody without this package."""

from collections.abc import Sequence

from coseg_lightning.data.preparation import Statistics
from coseg_lightning.files.canvas import Canvas

STRETCHED = "resize to the side (area average where it gets smaller, else linear), "
KEPT = (
    "resize so that it fits in, its aspect ratio kept (area average where it gets smaller, else "
    "linear), and lies in the upper left corner; after the next step fill the rest with its "
    "reflection, the last pixel included, "
)
QUANTILES = "map {} 0.5 and 99.5 percent quantiles to 0 and 1 and clip, "
BY_ITSELF = "subtract its mean, divide by its standard deviation"
TILES = (
    "cut the image into tiles of {tile} pixels that share {overlap} at least and are not resized; "
    "for all tiles of an image alike, by the values of the whole image: "
)
BLENDED = (
    "; blend the probabilities where tiles overlap: the outer quarter of the overlap does not "
    "count, and the weight rises from 0 to 1 over the next half"
)


def preparation_in_words(
    canvas: Canvas,
    channels: int,
    normalization: Statistics | None,
    *,
    tile: int | None = None,
    overlap: int = 0,
    bands: Sequence[int] | None = None,
) -> str:
    """Describe how `preprocess` and `normalised` prepare an image.

    Args:
        canvas: The size of the network input.
        channels: The channels of the network input.
        normalization: Mean and standard deviation of each channel; None for each image's own.
        tile: The side of the tiles that images are cut into; None if they are not cut.
        overlap: The least overlap of neighbouring tiles.
        bands: The bands that are read from the files, counted from 1; all by default.
    """
    text = KEPT if canvas.keeps_shape else STRETCHED
    if tile is not None:
        text = TILES.format(tile=tile, overlap=overlap)
    if bands is not None:
        text = f"take the bands {list(bands)}, counted from 1, {text}"
    text += QUANTILES.format("each band's" if channels > 3 else "the image's")
    if normalization is None:
        text += BY_ITSELF
    else:
        mean, std = (list(values) for values in normalization)
        text += f"subtract {mean} from the channels, divide them by {std}"
    return text + (BLENDED if tile else "")
