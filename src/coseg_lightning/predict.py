"""Predicts masks of new images: python -m coseg_lightning.predict RUN IMAGES OUT."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from coseg_lightning.app.build import canvas_of, normalization_of
from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.prediction import (
    ByTiles,
    Masks,
    mean_of_flips,
    overlay,
    predict_large,
    probabilities_of,
    unreadable_message,
    write_picture,
)
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.callbacks.label_correction import disagreement
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT
from coseg_lightning.data.preparation import Statistics, preprocess, without_gaps
from coseg_lightning.data.samples import network_input
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import ImageRules, files_by_stem, smallest_type
from coseg_lightning.files.mask_folder import same_stem
from coseg_lightning.files.naming import PLAIN, Names, advice_on_volumes, unread
from coseg_lightning.files.progress import progress
from coseg_lightning.functional.equations import predicted_classes

log = logging.getLogger(__name__)


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
    two classes. A GeoTIFF gives a georeferenced `OUT/ID.tif`, and a NIfTI volume gives one volume
    of the same name, in the same folder below `OUT`. Where an image is missing, the mask is 0. If
    some images cannot be read, the others are predicted before the error is raised.

    Args:
        run: The folder of a finished run.
        images: A folder of images.
        out: A new folder.
        probabilities: Whether to also write `OUT/probabilities/ID.npy`, `(K, H, W)` float16, which
            `coseg_lightning.audit` reads as `predictions`.
        flips: Whether to average over the image and its mirror image.
        overlays: Whether to also write `OUT/overlays/ID.jpg`, the image with the mask's outlines.
            With `uncertainty`, areas where the peers disagree are red.
        uncertainty: Whether to also write `OUT/uncertainty/ID.png`: the disagreement of the run's
            two peers at each pixel, 0 to 255, see `LabelCorrection.show_in`.
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
    files = image_files(Path(images), data)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _network_on(finished, device)
    peers = _peers_on(finished, device) if uncertainty else None
    paths = dict(files)
    masks = Masks(out, Path(images), paths.values())
    normalization = normalization_of(finished.cfg)
    canvas = canvas_of(finished.cfg)
    if data.get("tile") is not None:
        if num_workers:
            raise InputError(
                f"num_workers={num_workers} has no effect on a run by tiles, which are read in "
                "order; leave it out."
            )
        by_tiles = ByTiles(network, peers, canvas, data, normalization, rules, device, flips)
        wanted = {"probabilities": probabilities, "overlays": overlays}
        return predict_large(by_tiles, files, out, masks, batch_size, **wanted)
    dataset = _Images(files, canvas, data.in_channels, normalization, rules)
    loader: Any = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=_split_readable, shuffle=False
    )
    unreadable: list[str] = []
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
                masks.add(sample_id, mask, path)
                if probabilities:
                    _write_probabilities(out, sample_id, p)
                if unsure is not None:
                    write_picture(out / "uncertainty" / f"{sample_id}.png", unsure)
                if overlays:
                    image = without_gaps(rules.read(paths[sample_id]))
                    picture = overlay(image, p, unsure)
                    write_picture(out / "overlays" / f"{sample_id}.jpg", picture)
                written += 1
                bar.update()
    masks.finish()
    if unreadable:
        raise InputError(unreadable_message(unreadable, len(dataset)))
    return written


def _check_options(out: Path, batch_size: int, num_workers: int) -> None:
    if batch_size < 1 or num_workers < 0:
        raise InputError(
            f"batch_size={batch_size} must be at least 1, and num_workers={num_workers} at least 0."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty, and nothing is ever overwritten; give a new folder.")


def image_files(folder: Path, data: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Find the images of a folder, without masks that lie beside them as in the run's data.

    Args:
        folder: The folder.
        data: The settings of the run's data.

    Returns:
        The id and the file of each image.

    Raises:
        InputError: If there are none, or two of one id.
    """
    names = Names(folder, data.get("image_glob", PLAIN)) if folder.is_dir() else None
    if names is None or not names.files:
        if names is not None and (advice := advice_on_volumes(folder)):
            raise InputError(f"{folder} holds no image files whose ending is known; {advice}.")
        files_by_stem(folder)  # raises if there is none
        names = Names(folder)
    if isinstance(data.get("masks"), str) and data.get("masks") == data.get("images"):
        of_masks = Names(folder, data.get("mask_glob", PLAIN), names.stems).files.values()
        masks = {path for paths in of_masks for path in paths}
        if not masks.issuperset(path for paths in names.files.values() for path in paths):
            names.exclude(masks)
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
        InputError: If the run trained no peers, or their weights are missing.
    """
    path = finished.folder / "robust_training" / CHECKPOINT
    if not path.is_file():
        raise InputError(
            f"uncertainty=true needs the run's two peers, but {path} is missing; give a run of "
            "method=coseg or coteaching."
        )
    return [finished.peer(name).to(device) for name in ("net_a", "net_b")]


class _Sample(NamedTuple):
    sample_id: str
    size: tuple[int, int]  # of the image in its file
    image: Tensor  # input of the network
    missing: NDArray[np.bool_] | None  # pixels that are missing in the file


class _Images(Dataset[Any]):
    """The images of a folder. An image that cannot be read is replaced by the error message."""

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
    p = mean_of_flips(network, images, flips)
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
    """Yield the peers' disagreement on each sample, at the image's own size."""
    if peers is None or not samples:
        yield from (None for _ in samples)
        return
    images = torch.stack([sample.image for sample in samples]).to(device)
    pair = [probabilities_of(peer, images) for peer in peers]
    for n, sample in enumerate(samples):
        larger = [_at_own_size(p[n : n + 1], sample, canvas) for p in pair]
        yield disagreement(*larger)


def _mask_of(sample: _Sample, p: Tensor) -> NDArray[Any]:
    """Class ids, or 0 and 255 if there are two classes; 0 where the image is missing."""
    mask = smallest_type(predicted_classes(p[None])[0].numpy())
    if len(p) == 2:
        mask = mask * np.uint8(255)
    if sample.missing is not None:
        mask[sample.missing] = 0
    return mask


def _write_probabilities(out: Path, sample_id: str, p: Tensor) -> None:
    path = out / "probabilities" / f"{sample_id}.npy"
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, p.numpy().astype(np.float16))


if __name__ == "__main__":
    cli_errors(main)
