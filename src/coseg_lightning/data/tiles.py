"""Tiles: large images as samples, each a window of an image that overlaps its neighbours."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.preparation import Scale, Statistics
from coseg_lightning.errors import InputError
from coseg_lightning.files.images import ImageRules
from coseg_lightning.files.inspection import FileInfo
from coseg_lightning.files.mask_folder import MaskFolder, MaskWindows
from coseg_lightning.files.mask_rules import IGNORE_INDEX
from coseg_lightning.files.progress import progress
from coseg_lightning.files.windows import ImageWindows
from coseg_lightning.labels.masks import Mask

Floats = NDArray[np.float32]
OPEN_FILES = 16  # images, and masks, that are kept open


class Span(NamedTuple):
    """A window of one axis, and its core: what it has that no other window has as its core.

    Args:
        start: The first pixel of the window.
        stop: The pixel behind its last.
        core_start: The first pixel of the core.
        core_stop: The pixel behind its last.
        length: Of the whole axis.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int
    length: int

    @property
    def size(self) -> int:
        """The length of the window."""
        return self.stop - self.start

    def shifts(self) -> tuple[int, int]:
        """How far the window may be moved at least and at most, if it keeps its core."""
        first = max(0, self.core_stop - self.size)
        last = min(self.core_start, self.length - self.size)
        return first - self.start, last - self.start


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover an axis by windows of one size, evenly spread.

    Cores end in the middle of what two windows share, and cover the axis without overlap.

    Args:
        length: Of the axis.
        tile: Of a window; a shorter axis is one window.
        overlap: What neighbours share at least.
    """
    size = min(tile, length)
    count = max(1, -(-(length - overlap) // (tile - overlap)))
    starts = [round(n * (length - size) / max(1, count - 1)) for n in range(count)]
    seams = [(first + size + second) // 2 for first, second in pairwise(starts)]
    edges = [0, *seams, length]
    return [
        Span(start, start + size, edges[n], edges[n + 1], length) for n, start in enumerate(starts)
    ]


def weights(span: Span, overlap: int) -> NDArray[np.float32]:
    """How much a window counts at each of its pixels.

    Where another window overlaps it, its outer quarter of the overlap does not count, since a
    network sees too little there, and its weight rises over the next half.
    """
    place = np.arange(span.size) + 0.5
    ends = np.full(span.size, np.inf)
    if span.start > 0:
        ends = np.minimum(ends, place)
    if span.stop < span.length:
        ends = np.minimum(ends, span.size - place)
    return ((ends - overlap / 4) / max(0.5, overlap / 2)).clip(0, 1).astype(np.float32)


class Tile(NamedTuple):
    """One tile of an image.

    Args:
        image_id: The image.
        rows: Its rows.
        columns: Its columns.
    """

    image_id: str
    rows: Span
    columns: Span

    @property
    def window(self) -> tuple[int, int, int, int]:
        """The window's first row and column, its height and its width."""
        return self.rows.start, self.columns.start, self.rows.size, self.columns.size

    @property
    def core(self) -> tuple[slice, slice]:
        """The core, in the window."""
        return tuple(  # type: ignore[return-value]
            slice(span.core_start - span.start, span.core_stop - span.start)
            for span in (self.rows, self.columns)
        )

    @property
    def core_in_image(self) -> tuple[slice, slice]:
        """The core, in the image."""
        return tuple(  # type: ignore[return-value]
            slice(span.core_start, span.core_stop) for span in (self.rows, self.columns)
        )


class Grid(NamedTuple):
    """All tiles of an image.

    Args:
        rows: The rows of each row of tiles.
        columns: The columns of each column of tiles.
    """

    rows: list[Span]
    columns: list[Span]

    @classmethod
    def of(cls, size: Sequence[int], tile: int, overlap: int) -> "Grid":
        """Cover an image of some height and width."""
        return cls(spans(size[0], tile, overlap), spans(size[1], tile, overlap))

    def tiles(self, image_id: str) -> dict[str, Tile]:
        """Return the tiles by their ids, row by row."""
        return {
            f"{image_id}_r{r:02d}_c{c:02d}": Tile(image_id, rows, columns)
            for r, rows in enumerate(self.rows, start=1)
            for c, columns in enumerate(self.columns, start=1)
        }


def check_tile(tile: int, overlap: int) -> None:
    """Raise an `InputError` unless images can be cut into such tiles."""
    if tile < 32:
        raise InputError(f"data.tile={tile} must be at least 32 pixels.")
    if not 0 <= overlap <= tile // 2:
        raise InputError(
            f"data.overlap={overlap} must be from 0 to half of data.tile={tile}; set "
            f"data.overlap={tile // 8}."
        )


class Tiles:
    """The tiles of a folder's images, by their ids.

    A tile is judged, corrected and learnt from as a sample of its own. Around its core, which no
    other tile has, its mask is unlabelled; what the networks see there is context alone.

    Args:
        files: The image file of each image.
        masks: The folder of masks.
        infos: What `tiled_image_info` found of each image.
        rules: What of the image files is read.
        tile: Height and width of a tile, in pixels.
        overlap: What neighbours share at least.
        folder: A folder for decoded copies of files that cannot be read by windows.

    Attributes:
        tiles: The tiles by their ids.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        masks: MaskFolder,
        infos: Mapping[str, FileInfo],
        rules: ImageRules,
        *,
        tile: int,
        overlap: int,
        folder: Path,
    ) -> None:
        check_tile(tile, overlap)
        self.tile, self.overlap = tile, overlap
        self._files, self._masks, self._rules = files, masks, rules
        self._infos, self._folder = infos, folder
        self.tiles: dict[str, Tile] = {}
        self._ids: dict[str, list[str]] = {}
        for image_id, info in infos.items():
            of_image = Grid.of(info["size"], tile, overlap).tiles(image_id)
            self._ids[image_id] = list(of_image)
            self.tiles |= of_image
        self._open_caches()
        self._has_content: dict[str, bool] = {}

    def _open_caches(self) -> None:
        self._image = lru_cache(OPEN_FILES)(self._open_image)
        self._mask = lru_cache(OPEN_FILES)(self._open_mask)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_image", "_mask")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_caches()

    def _open_image(self, image_id: str) -> ImageWindows:
        return ImageWindows(self._files[image_id], self._rules, self._folder)

    def _open_mask(self, image_id: str) -> MaskWindows:
        return self._masks.windows(image_id, self._folder)

    def build(self) -> None:
        """Decode what cannot be read by windows, so that no process has to wait for it later."""
        for image_id in progress(list(self._infos), "Opening images"):
            self._image(image_id)
            self._mask(image_id)

    def ids_of(self, image_id: str) -> list[str]:
        """The ids of an image's tiles, row by row."""
        return self._ids[image_id]

    def labelled_pixels(self, tile_id: str) -> int:
        """How many pixels of a tile are labelled."""
        return int((self.mask(tile_id) != IGNORE_INDEX).sum())

    def digests(self, image_ids: Iterable[str]) -> dict[str, str | None]:
        """A digest of the pixels of each image, None if they are all equal."""
        return {image_id: self._infos[image_id]["digest"] for image_id in image_ids}

    def expanded(self, ids: Iterable[str]) -> list[str]:
        """Replace the ids of images by those of their tiles; others stay."""
        return [tile_id for i in ids for tile_id in self._ids.get(i, [i])]

    def with_kinds(self, kinds: Mapping[str, str]) -> dict[str, str]:
        """Give the tiles of an image the kind that is named for the image."""
        return {tile_id: kind for i, kind in kinds.items() for tile_id in self._ids.get(i, [i])}

    def image(self, tile_id: str, shift: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """Read the values of a tile, as the image's file holds them. Missing values are NaN.

        Args:
            tile_id: The tile.
            shift: Rows and columns by which its window is moved.
        """
        tile = self.tiles[tile_id]
        top, left, height, width = tile.window
        return self._image(tile.image_id).read(top + shift[0], left + shift[1], height, width)

    def mask(self, tile_id: str) -> Mask:
        """Read the class ids of a tile; around its core, and where the image is missing, 255."""
        tile = self.tiles[tile_id]
        read = self._mask(tile.image_id).read(*tile.window)
        mask = np.full_like(read, IGNORE_INDEX)
        mask[tile.core] = read[tile.core]
        if self._infos[tile.image_id]["missing"] > 0:
            image = self.image(tile_id)
            missing = np.isnan(image)
            mask[missing if image.ndim == 2 else missing.all(axis=2)] = IGNORE_INDEX
        return mask

    def scale(self, tile_id: str, channels: int) -> Scale:
        """Return the scale of the tile's image, which all of its tiles share."""
        scales = self._infos[self.tiles[tile_id].image_id]["scale"]
        return Scale.of(scales["bands" if channels > 3 else "all"], channels)

    def statistics(self, tile_id: str, channels: int) -> Statistics:
        """Mean and deviation of the tile's rescaled image, over all of its bands."""
        scales = self._infos[self.tiles[tile_id].image_id]["scale"]
        scale = scales["bands" if channels > 3 else "all"]
        deviation = max(scale["deviation"], 1e-6)
        return (scale["centre"],) * channels, (deviation,) * channels

    def has_content(self, tile_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Whether the core of each tile has a pixel of a class other than the background."""
        new = [tile_id for tile_id in tile_ids if tile_id not in self._has_content]
        for tile_id in progress(new, "Looking for content"):
            self._has_content[tile_id] = is_content(self.mask(tile_id))
        return np.array([self._has_content[tile_id] for tile_id in tile_ids])

    def overlapping(self, tile_id: str) -> list[str]:
        """The tiles of the image whose windows share pixels with a tile's core, and the tile."""
        tile = self.tiles[tile_id]
        return [
            other
            for other in self._ids[tile.image_id]
            if all(
                span.start < own.core_stop and span.stop > own.core_start
                for span, own in zip(self.tiles[other][1:], tile[1:], strict=True)
            )
        ]

    def blend(self, tile_id: str, prediction: Callable[[str], Floats | None]) -> Floats:
        """Blend what was predicted of a tile and of its neighbours, where their windows overlap.

        Each pixel is a mean of all windows that have it. A window counts less towards its ends,
        so that two tiles agree where they meet.

        Args:
            tile_id: The tile.
            prediction: Gives `(..., height, width)` of a tile's window, or None if it has none.

        Returns:
            `(..., height, width)` of the tile's window. Around the core it is not complete.
        """
        tile = self.tiles[tile_id]
        size = tile.window[2:]
        total, count = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for other_id in self.overlapping(tile_id):
            predicted = prediction(other_id)
            if predicted is None:
                continue
            if total.ndim < predicted.ndim:
                total = np.zeros((*predicted.shape[:-2], *size), np.float32)
            other = self.tiles[other_id]
            weight = np.outer(
                weights(other.rows, self.overlap), weights(other.columns, self.overlap)
            )
            into, part = zip(*map(_shared, tile[1:], other[1:]), strict=True)
            total[(..., *into)] += (weight * predicted)[(..., *part)]
            count[into] += weight[part]
        blended: Floats = (total / np.maximum(count, 1e-6)).astype(np.float32)
        return blended


def is_content(mask: Mask) -> bool:
    """Whether a mask has a pixel of a class other than the background."""
    return bool(((mask != 0) & (mask != IGNORE_INDEX)).any())


def _shared(own: Span, other: Span) -> tuple[slice, slice]:
    """What two windows share, in the one and in the other."""
    start, stop = max(own.start, other.start), min(own.stop, other.stop)
    return slice(start - own.start, stop - own.start), slice(
        start - other.start, stop - other.start
    )


class TiledImages:
    """Some images of a folder as their tiles. It implements `MaskedImages`.

    Args:
        image_ids: The images.
        tiles: The tiles of these, and maybe of more images.
        digest: A digest of the files' content.
        trusted: See `FolderImages`.
        groups: The group of each image, if it is known; else each image is a group of its tiles.
        annotators: Who drew the mask of each image, if it is known.

    Attributes:
        ids: The ids of the tiles.
        has_groups: Whether somebody said what the groups are.
        digests: A digest of each image's pixels, None if they are all equal.
        annotators: Who drew the mask of each tile, as far as it is known.
    """

    def __init__(
        self,
        image_ids: Sequence[str],
        tiles: Tiles,
        digest: str,
        *,
        trusted: bool = False,
        groups: Mapping[str, str] | None = None,
        annotators: Mapping[str, str] | None = None,
    ) -> None:
        self.tiles = tiles
        self.trusted = trusted
        self.has_groups = bool(groups)
        self.digests = tiles.digests(image_ids)
        self.digest = f"{digest} {tiles.tile} {tiles.overlap}"
        self.ids = [tile_id for image_id in image_ids for tile_id in tiles.ids_of(image_id)]
        self.groups = {
            tile_id: (groups or {}).get(image_id, image_id)
            for image_id in image_ids
            for tile_id in tiles.ids_of(image_id)
        }
        self.annotators = {
            tile_id: (annotators or {})[image_id]
            for image_id in image_ids
            for tile_id in tiles.ids_of(image_id)
            if image_id in (annotators or {})
        }
        self.sizes = {
            tile_id: [tiles.tiles[tile_id].rows.size, tiles.tiles[tile_id].columns.size]
            for tile_id in self.ids
        }

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """Read the values of one tile, as its image holds them."""
        return self.tiles.image(self.ids[index])

    def mask(self, index: int) -> Mask:
        """Read the mask of one tile, 255 around its core."""
        return self.tiles.mask(self.ids[index])


def blended_rows(
    grid: Grid,
    overlap: int,
    predict: Callable[[Sequence[Tile]], Sequence[Floats]],
    batch_size: int,
) -> Iterator[tuple[int, Floats]]:
    """Predict a large image by its tiles, blended as `Tiles.blend` does, in parts of its rows.

    Args:
        grid: The tiles of the image.
        overlap: What neighbours share at least.
        predict: Predicts tiles, each `(..., height, width)` of its window.
        batch_size: The number of tiles that are predicted at a time.

    Yields:
        The first row of each part, and what was predicted, `(..., rows, width)`.
    """
    count = np.zeros((grid.rows[0].size, grid.columns[0].length), np.float32)
    total = count
    for number, rows in enumerate(grid.rows):
        tiles = [Tile("", rows, columns) for columns in grid.columns]
        for first in range(0, len(tiles), batch_size):
            batch = tiles[first : first + batch_size]
            for tile, predicted in zip(batch, predict(batch), strict=True):
                if total is count:
                    total = np.zeros((*predicted.shape[:-2], *count.shape), np.float32)
                weight = np.outer(weights(rows, overlap), weights(tile.columns, overlap))
                place = slice(tile.columns.start, tile.columns.stop)
                total[..., place] += weight * predicted
                count[:, place] += weight
        is_last = number + 1 == len(grid.rows)
        done = rows.size if is_last else grid.rows[number + 1].start - rows.start
        yield rows.start, total[..., :done, :] / count[:done]
        for sums in (total, count):
            sums[..., :-done, :] = sums[..., done:, :].copy()
            sums[..., sums.shape[-2] - done :, :] = 0
