"""Predicts masks of new images: python -m coseg_lightning.predict RUN IMAGES OUT."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from coseg_lightning.app.build import canvas_of, normalization_of
from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.callbacks.label_correction import disagreement
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT
from coseg_lightning.data.preparation import Scale, Statistics, preprocess, without_gaps
from coseg_lightning.data.samples import network_input
from coseg_lightning.data.tiles import Grid, Tile, blended_rows
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import ImageRules, files_by_stem, smallest_type
from coseg_lightning.files.inspection import FileInfo, tiled_image_info
from coseg_lightning.files.mask_folder import same_stem
from coseg_lightning.files.naming import PLAIN, Names, unread
from coseg_lightning.files.progress import progress
from coseg_lightning.files.tiff import is_georeferenced, write_at_place_of
from coseg_lightning.files.volumes import file_of, is_nifti_slice, write_mask_volume
from coseg_lightning.files.windows import ImageWindows
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.networks.forward import any_size
from coseg_lightning.report.pictures import outlined

log = logging.getLogger(__name__)

OVERLAY_SIDE = (512, 1024)  # pixels of an overlay's longer side, at least and at most


def main() -> None:
    """Read the command line, predict the masks, and print where they are."""
    options = arguments("predict")
    count = predict(**options)
    print(f"{count} masks are in {options['out']}.")


def predict(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    probabilities: bool = False,
    flips: bool = False,
    overlays: bool = False,
    uncertainty: bool = False,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> int:
    """Write a mask of every image in a folder, batch by batch in constant memory.

    Masks are `OUT/ID.png` at the image's own size, with class ids, or with 0 and 255 if there are
    two classes; of a GeoTIFF they are `OUT/ID.tif`, with its place on the earth, and of a NIfTI
    volume one volume of its name. Where an image is
    missing, the mask is 0. If some images cannot be read, the others are predicted before the
    error is raised.

    Args:
        run: The folder of a finished run.
        images: A folder of images.
        out: A new folder.
        probabilities: Whether to write `OUT/probabilities/ID.npy` too, `(K, H, W)` float16, which
            `coseg_lightning.audit` reads as `predictions`.
        flips: Whether to average over the image and its mirror image.
        overlays: Whether to write `OUT/overlays/ID.jpg` too, the image with the mask's outlines,
            and red where the peers disagree, if `uncertainty` is asked for.
        uncertainty: Whether to write `OUT/uncertainty/ID.png` too: how much the run's two peers
            disagree at each pixel, 0 to 255, see `LabelCorrection.show_in`.
        batch_size: Images per batch.
        num_workers: Processes that read images.
        device: `auto`, or a device of torch.
        trust: See `AppRun`.

    Returns:
        The number of masks written.

    Raises:
        InputError: If the run is not finished, `out` is not empty, or images cannot be read.
    """
    finished, out = AppRun(run, trust=trust), Path(out)
    _check_options(out, batch_size, num_workers)
    data = finished.cfg.data
    rules = ImageRules.from_settings(data)
    files = _image_files(Path(images), data.get("image_glob", PLAIN))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _network_on(finished, device)
    peers = _peers_on(finished, device) if uncertainty else None
    paths = dict(files)
    normalization = normalization_of(finished.cfg)
    canvas = canvas_of(finished.cfg)
    if data.get("tile") is not None:
        by_tiles = _ByTiles(network, peers, canvas, data, normalization, rules, device, flips)
        wanted = {"probabilities": probabilities, "overlays": overlays}
        return _predict_large(by_tiles, files, out, batch_size, **wanted)
    dataset = _Images(files, canvas, data.in_channels, normalization, rules)
    loader: Any = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=_split_readable, shuffle=False
    )
    unreadable: list[str] = []
    volumes: dict[Path, dict[int, NDArray[Any]]] = {}
    written = 0
    with (
        progress(title="Masks", total=len(dataset)) as bar,
        torch.inference_mode(),
    ):
        for samples, errors in loader:
            unreadable += errors
            bar.update(len(errors))
            predicted = _predict_batch(network, samples, device, flips, canvas)
            disagreements = _disagreements(peers, samples, device, canvas)
            for sample, (sample_id, p), unsure in zip(
                samples, predicted, disagreements, strict=True
            ):
                mask = _mask_of(sample, p)
                path = paths[sample_id]
                if is_nifti_slice(path):
                    volumes.setdefault(path.parent, {})[int(path.name)] = mask
                else:
                    _write(out, sample_id, mask, path)
                if probabilities:
                    _write_probabilities(out, sample_id, p)
                if unsure is not None:
                    _write_picture(out / "uncertainty" / f"{sample_id}.png", unsure)
                if overlays:
                    image = without_gaps(rules.read(paths[sample_id]))
                    picture = _overlay(image, p, unsure)
                    _write_picture(out / "overlays" / f"{sample_id}.jpg", picture)
                written += 1
                bar.update()
    for path, slices in volumes.items():
        with replacing(out / path.name) as temporary:
            write_mask_volume(path, temporary, slices)
    if unreadable:
        raise InputError(_unreadable_message(unreadable, len(dataset)))
    return written


def _check_options(out: Path, batch_size: int, num_workers: int) -> None:
    if batch_size < 1 or num_workers < 0:
        raise InputError(
            f"batch_size={batch_size} must be at least 1, num_workers={num_workers} at least 0."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty, and nothing is ever overwritten; give a new folder.")


def _image_files(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    files_by_stem(folder)  # raises if there is none
    names = Names(folder, pattern)
    if not names.files:
        names = Names(folder)
    sentence = unread(names)
    if sentence is not None:
        log.warning("%s", sentence.partition("; data.")[0].rstrip(".") + ".")
    by_stem = names.files
    for paths in by_stem.values():
        if len(paths) > 1:
            raise InputError(same_stem(paths))
    return [(sample_id, paths[0]) for sample_id, paths in by_stem.items()]


def _network_on(finished: AppRun, device: str) -> torch.nn.Module:
    try:
        return finished.network().to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={device} is not available; use device=auto or device=cpu ({error})."
        ) from error


def _peers_on(finished: AppRun, device: str) -> list[torch.nn.Module]:
    """Load the two peers of a run.

    Raises:
        InputError: If the run trained none, or their weights are gone.
    """
    path = finished.folder / "robust_training" / CHECKPOINT
    if not path.is_file():
        raise InputError(
            f"uncertainty=true is where the run's two peers disagree, but {path} is missing; give "
            "a run of method=coseg or coteaching."
        )
    return [finished.peer(name).to(device) for name in ("net_a", "net_b")]


def _unreadable_message(errors: Sequence[str], images: int) -> str:
    shown = " ".join(errors[:3])
    if len(errors) > 3:
        shown += f" And {len(errors) - 3} more."
    return f"{len(errors)} of {images} images have no mask: {shown}"


class _Sample(NamedTuple):
    sample_id: str
    size: tuple[int, int]  # of the image in its file
    image: Tensor  # as the network takes it
    missing: NDArray[np.bool_] | None  # pixels of the image that its file lacks


class _Images(Dataset[Any]):
    """The images of a folder; an image that cannot be read is replaced by the error's sentence."""

    def __init__(
        self,
        files: Sequence[tuple[str, Path]],
        canvas: Canvas,
        channels: int,
        normalization: Statistics | None,
        rules: ImageRules,
    ) -> None:
        self.rules = rules
        self.files = files
        self.canvas = canvas
        self.channels = channels
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Sample | str:
        sample_id, path = self.files[index]
        try:
            image = self.rules.read(path)
            prepared = network_input(
                preprocess(image, self.canvas, self.channels), self.normalization
            )
        except InputError as error:
            sentence = str(error)
            return sentence if str(path) in sentence else f"{path}: {sentence}"
        missing = np.isnan(image.reshape(*image.shape[:2], -1)).all(axis=2)
        size = (image.shape[0], image.shape[1])
        return _Sample(sample_id, size, prepared, missing if missing.any() else None)


class _ByTiles:
    """Predicts large images by overlapping tiles, whose predictions are blended.

    Args:
        network: The network.
        peers: The run's two peers, if their disagreement is asked for.
        canvas: What the networks get.
        data: The settings of the run's data.
        normalization: By which images are normalised; None for each image's own.
        rules: What of the image files is read.
        device: Where the networks are.
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
        self.rules = rules
        self._network, self._canvas, self._data = network, canvas, data
        self._normalization, self._device, self._flips = normalization, device, flips

    def rows(
        self, windows: ImageWindows, info: FileInfo, batch_size: int
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Predict an image in parts of its rows.

        Yields:
            The first row of each part; its class probabilities, `(K, rows, width)`; and how much
            the peers disagree, `(rows, width)` from 0 to 1, which is empty without peers.
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
            parts = [_mean_of_flips(self._network, inputs, self._flips)]
            parts += [_probabilities(peer, inputs) for peer in self.peers or ()]
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


@torch.inference_mode()
def _predict_large(
    by_tiles: _ByTiles,
    files: Sequence[tuple[str, Path]],
    out: Path,
    batch_size: int,
    *,
    probabilities: bool,
    overlays: bool,
) -> int:
    """Write a mask of every image by its tiles; memory grows with the masks alone."""
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
                    batch_size,
                    probabilities,
                    overlays,
                )
        except InputError as error:
            sentence = str(error)
            errors.append(sentence if str(path) in sentence else f"{path}: {sentence}")
        else:
            written += 1
    if errors:
        raise InputError(_unreadable_message(errors, len(files)))
    return written


def _predict_one(
    by_tiles: _ByTiles,
    file: tuple[str, Path],
    windows: ImageWindows,
    info: FileInfo,
    out: Path,
    batch_size: int,
    probabilities: bool,
    overlays: bool,
) -> None:
    sample_id, path = file
    height, width = windows.size
    mask = np.zeros((height, width), np.uint8)
    unsure = np.zeros((height, width), np.uint8) if by_tiles.peers else None
    stored: NDArray[Any] | None = None
    place = out / "probabilities" / f"{sample_id}.npy"
    with progress(title=sample_id, total=height) as bar, contextlib.ExitStack() as stack:
        for top, p, disagreed in by_tiles.rows(windows, info, batch_size):
            rows = slice(top, top + p.shape[1])
            of_rows = smallest_type(p.argmax(dim=0).numpy())
            mask[rows] = of_rows * np.uint8(255) if len(p) == 2 else of_rows
            if info["missing"] > 0:
                values = windows.read(top, 0, p.shape[1], width).reshape(p.shape[1], width, -1)
                mask[rows][np.isnan(values).all(axis=2)] = 0
            if unsure is not None:
                unsure[rows] = (255 * disagreed).round().clamp(0, 255).to(torch.uint8).numpy()
            if probabilities:
                if stored is None:
                    temporary = stack.enter_context(replacing(place))
                    shape = (len(p), height, width)
                    stored = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                stored[:, rows] = p.numpy().astype(np.float16)
            bar.update(p.shape[1])
        if isinstance(stored, np.memmap):
            stored.flush()
    _write(out, sample_id, mask, path)
    if unsure is not None:
        _write_picture(out / "uncertainty" / f"{sample_id}.png", unsure)
    if overlays:
        image = without_gaps(_shrunk(windows))
        size = (image.shape[1], image.shape[0])
        small = cv2.resize(mask // 255 if mask.max() == 255 else mask, size, interpolation=0)
        grown = None if unsure is None else cv2.resize(unsure, size, interpolation=cv2.INTER_AREA)
        classes = np.eye(int(small.max()) + 1, dtype=np.float32)[small]
        picture = _overlay(image, torch.from_numpy(np.moveaxis(classes, 2, 0)), grown)
        _write_picture(out / "overlays" / f"{sample_id}.jpg", picture)


def _shrunk(windows: ImageWindows) -> NDArray[Any]:
    """A small copy of a large image, of every so many rows and columns."""
    step = max(1, max(windows.size) // OVERLAY_SIDE[1])
    rows = [
        windows.read(top, 0, 1, windows.size[1])[:, ::step]
        for top in range(0, windows.size[0], step)
    ]
    return np.concatenate(rows)


def _split_readable(items: list[_Sample | str]) -> tuple[list[_Sample], list[str]]:
    samples = [item for item in items if not isinstance(item, str)]
    return samples, [item for item in items if isinstance(item, str)]


def _predict_batch(
    network: torch.nn.Module,
    samples: Sequence[_Sample],
    device: str,
    flips: bool,
    canvas: Canvas,
) -> Iterator[tuple[str, Tensor]]:
    """Yield each sample's id and its `(K, H, W)` probabilities at the image's own size."""
    if not samples:
        return
    images = torch.stack([sample.image for sample in samples]).to(device)
    p = _mean_of_flips(network, images, flips)
    for sample, image_p in zip(samples, p, strict=True):
        yield sample.sample_id, _at_own_size(image_p[None], sample, canvas)[0].cpu()


def _at_own_size(p: Tensor, sample: _Sample, canvas: Canvas) -> Tensor:
    height, width = canvas.content(sample.size)
    content = p[..., :height, :width]
    return F.interpolate(content, sample.size, mode="bilinear", align_corners=False)


def _disagreements(
    peers: Sequence[torch.nn.Module] | None,
    samples: Sequence[_Sample],
    device: str,
    canvas: Canvas,
) -> Iterator[NDArray[Any] | None]:
    """Yield how much the peers disagree on each sample, at the image's own size."""
    if peers is None or not samples:
        yield from (None for _ in samples)
        return
    images = torch.stack([sample.image for sample in samples]).to(device)
    pair = [_probabilities(peer, images) for peer in peers]
    for n, sample in enumerate(samples):
        larger = [_at_own_size(p[n : n + 1], sample, canvas) for p in pair]
        yield disagreement(*larger)


def _overlay(image: NDArray[Any], p: Tensor, unsure: NDArray[Any] | None) -> NDArray[Any]:
    """Draw the mask's outlines over the image, and what is unsure in red."""
    side = min(OVERLAY_SIDE[1], max(OVERLAY_SIDE[0], *image.shape[:2]))
    picture = outlined(image, [(p.argmax(dim=0).numpy(), None)], side)
    if unsure is None:
        return picture
    size = (picture.shape[1], picture.shape[0])
    share = cv2.resize(unsure, size, interpolation=cv2.INTER_AREA)[..., None] / 255 * 0.8
    red = np.array([255, 0, 0])
    tinted: NDArray[Any] = (picture * (1 - share) + red * share).astype(np.uint8)
    return tinted


def _write_picture(path: Path, picture: NDArray[Any]) -> None:
    with replacing(path) as temporary:
        file_format = "JPEG" if path.suffix == ".jpg" else "PNG"
        Image.fromarray(picture).save(temporary, format=file_format)


def _mean_of_flips(network: torch.nn.Module, images: Tensor, flips: bool) -> Tensor:
    p = _probabilities(network, images)
    return (p + _probabilities(network, images.flip(-1)).flip(-1)) / 2 if flips else p


def _probabilities(network: torch.nn.Module, images: Tensor) -> Tensor:
    return class_logits(any_size(network, images)).softmax(dim=1)


def _mask_of(sample: _Sample, p: Tensor) -> NDArray[Any]:
    """Class ids, or 0 and 255 if there are two classes; 0 where the image is missing."""
    mask = smallest_type(p.argmax(dim=0).numpy())
    if len(p) == 2:
        mask = mask * np.uint8(255)
    if sample.missing is not None:
        mask[sample.missing] = 0
    return mask


def _write(out: Path, sample_id: str, mask: NDArray[Any], image: Path) -> None:
    is_on_earth = is_georeferenced(file_of(image))
    with replacing(out / f"{sample_id}.{'tif' if is_on_earth else 'png'}") as temporary:
        if is_on_earth:
            write_at_place_of(image, temporary, mask)
        else:
            Image.fromarray(mask).save(temporary, format="PNG")


def _write_probabilities(out: Path, sample_id: str, p: Tensor) -> None:
    path = out / "probabilities" / f"{sample_id}.npy"
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, p.numpy().astype(np.float16))


if __name__ == "__main__":
    cli_errors(main)
