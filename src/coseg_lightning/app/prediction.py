"""Predicts masks: class probabilities, output files, and large images by tiles."""

import contextlib
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from coseg_lightning.data.preparation import Scale, Statistics, preprocess, without_gaps
from coseg_lightning.data.samples import network_input
from coseg_lightning.data.tiles import Grid, Tile, blended_rows
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import ImageRules, smallest_type
from coseg_lightning.files.inspection import FileInfo, tiled_image_info
from coseg_lightning.files.progress import progress
from coseg_lightning.files.tiff import is_georeferenced, write_at_place_of
from coseg_lightning.files.volumes import file_of, is_nifti_slice, write_mask_volume
from coseg_lightning.files.windows import ImageWindows
from coseg_lightning.functional.equations import class_logits, predicted_classes
from coseg_lightning.networks.forward import any_size
from coseg_lightning.report.pictures import outlined

OVERLAY_SIDE = (512, 1024)  # smallest and largest number of pixels of an overlay's longer side


class ByTiles:
    """Predicts large images by overlapping tiles, whose predictions are blended.

    Args:
        network: The network.
        peers: The run's two peers, if their disagreement is requested.
        canvas: The networks' input size.
        data: The settings of the run's data.
        normalization: Mean and deviation that normalise images; None to use each image's own.
        rules: How image files are read.
        device: The device of the networks.
        flips: Whether to average over tiles and their mirror images.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        peers: Sequence[torch.nn.Module] | None,
        canvas: Canvas,
        data: DictConfig,
        normalization: Statistics | None,
        rules: ImageRules,
        device: str,
        flips: bool,
    ) -> None:
        self.peers = peers
        self.classes = max(2, int(data.classes))
        self.rules = rules
        self._network, self._canvas, self._data = network, canvas, data
        self._normalization, self._device, self._flips = normalization, device, flips

    def rows(
        self, windows: ImageWindows, info: FileInfo, batch_size: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Predict an image in blocks of rows.

        Yields:
            The first row of each block, its class probabilities `(K, rows, width)`, and the
            peers' disagreement `(rows, width)` from 0 to 1, which is empty without peers.
        """
        channels, overlap = self._data.in_channels, self._data.overlap
        scales = info["scale"]["bands" if channels > 3 else "all"]
        scale = Scale.of(scales, channels)
        own = (scales["centre"],) * channels, (max(scales["deviation"], 1e-6),) * channels
        statistics = own if self._normalization is None else self._normalization

        def predict(tiles: Sequence[Tile]) -> list[NDArray[np.float32]]:
            values = [windows.read(*tile.window) for tile in tiles]
            inputs = torch.stack(
                [
                    network_input(preprocess(v, self._canvas, channels, scale), statistics)
                    for v in values
                ]
            ).to(self._device)
            parts = [mean_of_flips(self._network, inputs, self._flips)]
            parts += [probabilities_of(peer, inputs) for peer in self.peers or ()]
            return [
                torch.stack([self._at_own_size(p[n], v.shape[:2]) for p in parts]).numpy()
                for n, v in enumerate(values)
            ]

        grid = Grid.of(windows.size, self._data.tile, overlap)
        for top, predicted in blended_rows(grid, overlap, predict, batch_size):
            p, *pair = torch.from_numpy(predicted)
            unsure = (pair[0] - pair[1]).abs().sum(dim=0) / 2 if pair else torch.empty(0)
            yield top, p, unsure

    def _at_own_size(self, p: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = self._canvas.content(size)
        content = p[None, :, :height, :width]
        if content.shape[-2:] != size:
            content = F.interpolate(content, size, mode="bilinear", align_corners=False)
        return content[0].cpu()


class Masks:
    """Writes predicted masks: as PNG, as TIFF if their image is georeferenced, or as volumes.

    Args:
        out: The new folder.
        images: The folder of images.
        paths: The images that are predicted, files or slices.
    """

    def __init__(self, out: Path, images: Path, paths: Iterable[Path]) -> None:
        self._out, self._images = out, images
        self._slices = Counter(path.parent for path in paths if is_nifti_slice(path))
        self._volumes: dict[Path, dict[int, NDArray[Any]]] = {}

    def add(self, sample_id: str, mask: NDArray[Any], image: Path) -> None:
        """Write a mask, or keep it until the other slices of its volume are there."""
        if is_nifti_slice(image):
            slices = self._volumes.setdefault(image.parent, {})
            slices[int(image.name)] = mask
            if len(slices) == self._slices[image.parent]:
                self._write_volume(image.parent)
            return
        is_on_earth = is_georeferenced(file_of(image))
        suffix = "tif" if is_on_earth else "png"
        with replacing(self._out / f"{sample_id}.{suffix}") as temporary:
            if is_on_earth:
                write_at_place_of(image, temporary, mask)
            else:
                Image.fromarray(mask).save(temporary, format="PNG")

    def finish(self) -> None:
        """Write the volumes of which slices could not be predicted; those are background."""
        for path in list(self._volumes):
            self._write_volume(path)

    def _write_volume(self, path: Path) -> None:
        """Write the masks of a volume into a folder as its images are in."""
        with replacing(self._out / path.relative_to(self._images)) as temporary:
            write_mask_volume(path, temporary, self._volumes.pop(path))


@torch.inference_mode()
def predict_large(
    by_tiles: ByTiles,
    files: Sequence[tuple[str, Path]],
    out: Path,
    masks: Masks,
    batch_size: int,
    *,
    probabilities: bool,
    overlays: bool,
) -> int:
    """Write a mask of every image by its tiles; memory only grows with the size of the masks."""
    errors: list[str] = []
    written = 0
    for sample_id, path in files:
        try:
            info = tiled_image_info(path, by_tiles.rules)
            with tempfile.TemporaryDirectory() as copies:
                windows = ImageWindows(path, by_tiles.rules, Path(copies))
                _predict_one(
                    by_tiles,
                    (sample_id, path),
                    windows,
                    info,
                    out,
                    masks,
                    batch_size,
                    probabilities,
                    overlays,
                )
        except InputError as error:
            sentence = str(error)
            errors.append(sentence if str(path) in sentence else f"{path}: {sentence}")
        else:
            written += 1
    masks.finish()
    if errors:
        raise InputError(unreadable_message(errors, len(files)))
    return written


def _predict_one(
    by_tiles: ByTiles,
    file: tuple[str, Path],
    windows: ImageWindows,
    info: FileInfo,
    out: Path,
    masks: Masks,
    batch_size: int,
    probabilities: bool,
    overlays: bool,
) -> None:
    sample_id, path = file
    height, width = windows.size
    kind = np.uint8 if by_tiles.classes <= 256 else np.uint16
    of_image, unsures = CompressedRows(), CompressedRows()
    stored: NDArray[Any] | None = None
    place = out / "probabilities" / f"{sample_id}.npy"
    with progress(title=sample_id, total=height) as bar, contextlib.ExitStack() as stack:
        for top, p, disagreed in by_tiles.rows(windows, info, batch_size):
            rows = slice(top, top + p.shape[1])
            of_rows = smallest_type(predicted_classes(p[None])[0].numpy())
            of_rows = (of_rows * np.uint8(255) if len(p) == 2 else of_rows).astype(kind)
            if info["missing"] > 0:
                values = windows.read(top, 0, p.shape[1], width).reshape(p.shape[1], width, -1)
                of_rows[np.isnan(values).all(axis=2)] = 0
            of_image.add(of_rows)
            if by_tiles.peers:
                unsures.add((255 * disagreed).round().clamp(0, 255).to(torch.uint8).numpy())
            if probabilities:
                if stored is None:
                    temporary = stack.enter_context(replacing(place))
                    shape = (len(p), height, width)
                    stored = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                stored[:, rows] = p.numpy().astype(np.float16)
            bar.update(p.shape[1])
        if isinstance(stored, np.memmap):
            stored.flush()
    mask = of_image.whole()
    masks.add(sample_id, mask, path)
    step = _step(windows.size)
    small = np.ascontiguousarray(mask[::step, ::step])
    del mask  # frees memory before the next array of its size
    small_unsure = None
    if by_tiles.peers:
        unsure = unsures.whole()
        write_picture(out / "uncertainty" / f"{sample_id}.png", unsure)
        small_unsure = np.ascontiguousarray(unsure[::step, ::step])
    if overlays:
        small = small // 255 if small.max() == 255 else small
        classes = np.eye(int(small.max()) + 1, dtype=np.float32)[small]
        image = without_gaps(_shrunk(windows))
        picture = overlay(image, torch.from_numpy(np.moveaxis(classes, 2, 0)), small_unsure)
        write_picture(out / "overlays" / f"{sample_id}.jpg", picture)


class CompressedRows:
    """A large picture that is built from top to bottom, and stays compressed until complete."""

    def __init__(self) -> None:
        self._parts: list[tuple[bytes, tuple[int, ...], np.dtype[Any]]] = []

    def add(self, rows: NDArray[Any]) -> None:
        """Add the next rows, `(h, W)`."""
        self._parts.append((zlib.compress(rows.tobytes(), 1), rows.shape, rows.dtype))

    def whole(self) -> NDArray[Any]:
        """Return the picture, `(H, W)`; this works only once."""
        height = sum(shape[0] for _, shape, _ in self._parts)
        _, (_, width), dtype = self._parts[0]
        picture, top = np.empty((height, width), dtype), 0
        while self._parts:
            content, shape, _ = self._parts.pop(0)
            rows = np.frombuffer(zlib.decompress(content), dtype).reshape(shape)
            picture[top : top + len(rows)] = rows
            top += len(rows)
        return picture


def _shrunk(windows: ImageWindows) -> NDArray[Any]:
    """Return a small copy of a large image, with every n-th row and column."""
    step = _step(windows.size)
    rows = [
        windows.read(top, 0, 1, windows.size[1])[:, ::step]
        for top in range(0, windows.size[0], step)
    ]
    return np.concatenate(rows)


def _step(size: tuple[int, int]) -> int:
    """Return the subsampling step of an overlay; averaging would take 4 bytes per pixel."""
    return max(1, max(size) // OVERLAY_SIDE[1])


def mean_of_flips(network: torch.nn.Module, images: Tensor, flips: bool) -> Tensor:
    """Class probabilities, optionally averaged over images and their mirror images."""
    p = probabilities_of(network, images)
    return (p + probabilities_of(network, images.flip(-1)).flip(-1)) / 2 if flips else p


def probabilities_of(network: torch.nn.Module, images: Tensor) -> Tensor:
    """Class probabilities of a batch, `(N, K, H, W)`."""
    return class_logits(any_size(network, images)).softmax(dim=1)


def overlay(image: NDArray[Any], p: Tensor, unsure: NDArray[Any] | None) -> NDArray[Any]:
    """Draw the mask's outlines over the image, and uncertain areas in red."""
    side = min(OVERLAY_SIDE[1], max(OVERLAY_SIDE[0], *image.shape[:2]))
    picture = outlined(image, [(predicted_classes(p[None])[0].numpy(), None)], side)
    if unsure is None:
        return picture
    size = (picture.shape[1], picture.shape[0])
    share = cv2.resize(unsure, size, interpolation=cv2.INTER_AREA)[..., None] / 255 * 0.8
    red = np.array([255, 0, 0])
    tinted: NDArray[Any] = (picture * (1 - share) + red * share).astype(np.uint8)
    return tinted


def write_picture(path: Path, picture: NDArray[Any]) -> None:
    """Write a picture in the format that its file name gives."""
    with replacing(path) as temporary:
        file_format = "JPEG" if path.suffix == ".jpg" else "PNG"
        Image.fromarray(picture).save(temporary, format=file_format)


def unreadable_message(errors: Sequence[str], images: int) -> str:
    """Explain which images have no mask, and why."""
    shown = " ".join(errors[:3])
    if len(errors) > 3:
        shown += f" And {len(errors) - 3} more."
    return f"{len(errors)} of {images} images have no mask: {shown}"
