"""Tiles: large images are cut into samples, each a window that overlaps its neighbours."""

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
from coseg_lightning.files.naming import ids_of
from coseg_lightning.files.progress import progress
from coseg_lightning.files.windows import ImageWindows
from coseg_lightning.labels.masks import Mask

Floats = NDArray[np.float32]
OPEN_FILES = 16  # this many images, and as many masks, are kept open


class Span(NamedTuple):
    """A window along one axis, and its core. The cores of all windows do not overlap.

    Attributes:
        start: The first pixel of the window.
        stop: The pixel after its last.
        core_start: The first pixel of the core.
        core_stop: The pixel after its last.
        length: The length of the whole axis.
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
        """Return the smallest and largest shift with which the window keeps its core."""
        first = max(0, self.core_stop - self.size)
        last = min(self.core_start, self.length - self.size)
        return first - self.start, last - self.start


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover an axis with evenly spaced windows of one size.

    Cores end in the middle of each overlap. They cover the axis without overlap.

    Args:
        length: The length of the axis.
        tile: The length of a window. A shorter axis has one window.
        overlap: The least overlap of neighbours.
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
    """Return a window's weight at each of its pixels.

    Where another window overlaps it, the outer quarter of the overlap has no weight, since a
    network sees too little context there. The weight rises over the next half.
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

    Attributes:
        image_id: The image.
        rows: The tile's rows.
        columns: The tile's columns.
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
        """The core in the coordinates of the window."""
        return tuple(  # type: ignore[return-value]
            slice(span.core_start - span.start, span.core_stop - span.start)
            for span in (self.rows, self.columns)
        )

    @property
    def core_in_image(self) -> tuple[slice, slice]:
        """The core in the coordinates of the image."""
        return tuple(  # type: ignore[return-value]
            slice(span.core_start, span.core_stop) for span in (self.rows, self.columns)
        )


class Grid(NamedTuple):
    """All tiles of an image.

    Attributes:
        rows: The rows of each row of tiles.
        columns: The columns of each column of tiles.
    """

    rows: list[Span]
    columns: list[Span]

    @classmethod
    def of(cls, size: Sequence[int], tile: int, overlap: int) -> "Grid":
        """Cover an image with `size`, its height and width."""
        return cls(spans(size[0], tile, overlap), spans(size[1], tile, overlap))

    def tiles(self, image_id: str) -> dict[str, Tile]:
        """Return the tiles by their ids, row by row."""
        return {
            f"{image_id}_r{r:02d}_c{c:02d}": Tile(image_id, rows, columns)
            for r, rows in enumerate(self.rows, start=1)
            for c, columns in enumerate(self.columns, start=1)
        }


def check_tile(tile: int, overlap: int) -> None:
    """Raise an `InputError` if images cannot be cut into such tiles."""
    if tile < 32:
        raise InputError(f"data.tile={tile} must be at least 32 pixels.")
    if not 0 <= overlap <= tile // 2:
        raise InputError(
            f"data.overlap={overlap} must be from 0 to half of data.tile={tile}; set "
            f"data.overlap={tile // 8}."
        )


class Tiles:
    """The tiles of a folder's images, by their ids.

    Each tile is ranked, corrected and learnt as a separate sample. No two cores overlap. Around its
    core, a tile's mask is unlabelled, and the image is only context for the networks.

    Args:
        files: The image file of each image.
        masks: The folder of masks.
        infos: The result of `tiled_image_info` for each image.
        rules: Which bands of the image files are read, and how.
        tile: Height and width of a tile, in pixels.
        overlap: The least overlap of neighbours.
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
        """Decode files that cannot be read by windows, so that no process waits for them later."""
        for image_id in progress(list(self._infos), "Opening images"):
            self._image(image_id)
            self._mask(image_id)

    def ids_of(self, image_id: str) -> list[str]:
        """Return the ids of an image's tiles, row by row."""
        return self._ids[image_id]

    def labelled_pixels(self, tile_id: str) -> int:
        """Count the labelled pixels of a tile."""
        return int((self.mask(tile_id) != IGNORE_INDEX).sum())

    def digests(self, image_ids: Iterable[str]) -> dict[str, str | None]:
        """Return a digest of each image's pixels, None if all of its pixels are equal."""
        return {image_id: self._infos[image_id]["digest"] for image_id in image_ids}

    def expanded(self, ids: Iterable[str]) -> list[str]:
        """Replace the ids of images by those of their tiles, and keep other ids."""
        known_as = ids_of(ids, self._ids)
        return [tile_id for i in known_as.values() for tile_id in self._ids.get(i, [i])]

    def with_kinds(self, kinds: Mapping[str, str]) -> dict[str, str]:
        """Give the tiles of an image the image's kind."""
        known_as = ids_of(kinds, self._ids)
        return {
            tile_id: kind
            for i, kind in kinds.items()
            for tile_id in self._ids.get(known_as[i], [known_as[i]])
        }

    def image(self, tile_id: str, shift: tuple[int, int] = (0, 0)) -> NDArray[Any]:
        """Read the values of a tile as they are stored in the image's file. Missing ones are NaN.

        Args:
            tile_id: The tile.
            shift: Number of rows and columns by which its window is moved.
        """
        tile = self.tiles[tile_id]
        top, left, height, width = tile.window
        return self._image(tile.image_id).read(top + shift[0], left + shift[1], height, width)

    def mask(self, tile_id: str) -> Mask:
        """Read the class ids of a tile. Outside its core and at missing pixels they are 255."""
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
        """Return mean and standard deviation of the tile's rescaled image, over all bands."""
        scales = self._infos[self.tiles[tile_id].image_id]["scale"]
        scale = scales["bands" if channels > 3 else "all"]
        deviation = max(scale["deviation"], 1e-6)
        return (scale["centre"],) * channels, (deviation,) * channels

    def has_content(self, tile_ids: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether the core of each tile has a pixel of a class other than the background."""
        new = [tile_id for tile_id in tile_ids if tile_id not in self._has_content]
        for tile_id in progress(new, "Looking for content"):
            self._has_content[tile_id] = is_content(self.mask(tile_id))
        return np.array([self._has_content[tile_id] for tile_id in tile_ids])

    def overlapping(self, tile_id: str) -> list[str]:
        """Return the tile, and the tiles whose windows share pixels with its core."""
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
        """Blend the predictions of a tile and of its neighbours where their windows overlap.

        Each pixel is a weighted mean over all windows that contain it. A window's weight falls
        towards its ends, so that two tiles agree where they meet.

        Args:
            tile_id: The tile.
            prediction: Returns `(..., height, width)` for a tile's window, or None if it has none.

        Returns:
            `(..., height, width)` of the tile's window. It is incomplete outside the core.
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
    """Return whether a mask has a pixel of a class other than the background."""
    return bool(((mask != 0) & (mask != IGNORE_INDEX)).any())


def _shared(own: Span, other: Span) -> tuple[slice, slice]:
    """Return the overlap of two windows, in the coordinates of each."""
    start, stop = max(own.start, other.start), min(own.stop, other.stop)
    return slice(start - own.start, stop - own.start), slice(
        start - other.start, stop - other.start
    )


class TiledImages:
    """The tiles of some images of a folder. It implements `MaskedImages`.

    Args:
        image_ids: The images.
        tiles: The tiles of these images, and possibly of others.
        digest: A digest of the files' content.
        file_digests: Digests of each image and of its mask file, by image.
        trusted: See `FolderImages`.
        groups: The group of each image, if known. By default the tiles of an image are a group.
        annotators: Who drew the mask of each image, if known.

    Attributes:
        ids: The ids of the tiles.
        has_groups: Whether groups were given.
        digests: A digest of each image's pixels, None if all of its pixels are equal.
        annotators: Who drew the mask of each tile, if known.
    """

    def __init__(
        self,
        image_ids: Sequence[str],
        tiles: Tiles,
        digest: str,
        *,
        file_digests: Mapping[str, tuple[str, str]] | None = None,
        trusted: bool = False,
        groups: Mapping[str, str] | None = None,
        annotators: Mapping[str, str] | None = None,
        split_by: str = "",
    ) -> None:
        self.split_by = split_by
        self.tiles = tiles
        self.trusted = trusted
        self.file_digests = dict(file_digests or {})
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
        """Read the values of one tile as they are stored in its image's file."""
        return self.tiles.image(self.ids[index])

    def mask(self, index: int) -> Mask:
        """Read the mask of one tile. It is 255 outside the core."""
        return self.tiles.mask(self.ids[index])


def blended_rows(
    grid: Grid,
    overlap: int,
    predict: Callable[[Sequence[Tile]], Sequence[Floats]],
    batch_size: int,
) -> Iterator[tuple[int, Floats]]:
    """Predict a large image by its tiles, and yield it in parts of its rows.

    Predictions are blended as in `Tiles.blend`.

    Args:
        grid: The tiles of the image.
        overlap: The least overlap of neighbours.
        predict: Predicts tiles, and returns `(..., height, width)` for each window.
        batch_size: The number of tiles that are predicted at a time.

    Yields:
        The first row of each part, and its prediction, `(..., rows, width)`.
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
