"""A description of the preprocessing, in words for somebody without this package."""

from collections.abc import Sequence

from coseg_lightning.data.preparation import Statistics
from coseg_lightning.files.canvas import Canvas

STRETCHED = "resize to the side (area averaging to shrink, else linear interpolation), "
KEPT = (
    "resize to fit into the upper left corner, with the aspect ratio kept (area averaging to "
    "shrink, else linear interpolation); after the next two steps, fill the rest with the "
    "image's reflection, the last pixel included; "
)
QUANTILES = "map {} 0.5 and 99.5 percent quantiles to 0 and 1 and clip, "
MISSING = "give missing pixels the mean of the others, "
GREY = "make colours grey (0.299 R + 0.587 G + 0.114 B), "
COLOUR = "repeat a grey image in all {} channels, "
BY_ITSELF = "subtract its mean, and divide by its standard deviation"
TILES = (
    "cut the image into tiles of {tile} pixels that overlap by at least {overlap}, without "
    "resizing (an image smaller than a tile is enlarged to {fit}); then, in all tiles, with the "
    "values of the whole image, "
)
FITS = (
    "fit it, and the rest filled with its reflection, the last pixel included, after the next two "
    "steps"
)
BLENDED = (
    "; blend the probabilities where tiles overlap: the outer quarter of the overlap has the "
    "weight 0, and the weight rises from 0 to 1 over the next half"
)


def preparation_in_words(
    canvas: Canvas,
    channels: int,
    normalization: Statistics | None,
    *,
    tile: int | None = None,
    overlap: int = 0,
    bands: Sequence[int] | None = None,
    nodata: float | str | None = None,
) -> str:
    """Describe how `preprocess` and `normalised` prepare an image.

    Args:
        canvas: The size of the network input.
        channels: The channels of the network input.
        normalization: Mean and standard deviation of each channel; None for each image's own.
        tile: The side of the tiles that images are cut into; None if they are not cut.
        overlap: The least overlap of neighbouring tiles.
        bands: The bands that are read from the files, counted from 1; all by default.
        nodata: The value of missing pixels, if it is not that in each file's header.
    """
    text = KEPT if canvas.keeps_shape else STRETCHED
    if tile is not None:
        fit = FITS if canvas.keeps_shape else "its size"
        text = TILES.format(tile=tile, overlap=overlap, fit=fit)
    if bands is not None:
        text = f"take the bands {list(bands)}, counted from 1, {text}"
    elif channels <= 3:
        text = (GREY if channels == 1 else COLOUR.format(channels)) + text
    if nodata is not None:
        text = f"take pixels of the value {nodata} for missing, {text}"
    text += QUANTILES.format("each band's" if channels > 3 else "the image's") + MISSING
    if normalization is None:
        text += BY_ITSELF
    else:
        mean, std = (list(values) for values in normalization)
        text += f"subtract {mean} from the channels, and divide them by {std}"
    return text + (BLENDED if tile else "")
