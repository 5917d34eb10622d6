"""Masks of new images by a run's network: python -m coseg_lightning.predict RUN IMAGES OUT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.data.preparation import preprocess
from coseg_lightning.data.samples import standardised
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.images import files_by_stem, read_image, smallest_type
from coseg_lightning.files.mask_folder import same_stem
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.networks.forward import any_size


def main() -> None:
    """Read the command line, predict, and say where the masks are."""
    given = arguments(
        "Masks of new images, at their own size, by the network of a finished run.",
        {
            "run": "the folder of a finished run",
            "images": "a folder of images",
            "out": "a new folder for the masks",
        },
        {
            "probabilities": (False, "also out/probabilities/ID.npy, (K, H, W) float16"),
            "flips": (False, "the mean over the image and its mirror image"),
            "batch_size": (8, "images at a time"),
            "num_workers": (0, "processes that read images"),
            "device": ("auto", "or cpu, cuda, cuda:1, mps"),
        },
    )
    count = predict(**given)
    print(f"{count} masks are in {given['out']}.")


def predict(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    probabilities: bool = False,
    flips: bool = False,
    batch_size: int = 8,
    num_workers: int = 0,
    device: str = "auto",
) -> int:
    """Write a mask of every image of a folder, one batch after the other in constant memory.

    Masks are `OUT/ID.png` of the image's own size, with class ids, or 0 and 255 where there are
    two classes. Where an image cannot be read the others are predicted all the same.

    Args:
        run: The folder of a finished run.
        images: A folder of images.
        out: A new folder.
        probabilities: Whether to write `OUT/probabilities/ID.npy` too, `(K, H, W)` float16, which
            `coseg_lightning.audit` reads as `predictions`.
        flips: Whether to average over the image and its mirror image.
        batch_size: Images at a time.
        num_workers: Processes that read images.
        device: `auto`, or a device of torch.

    Returns:
        How many masks were written.

    Raises:
        InputError: If the run is not finished, `out` holds anything, or images cannot be read.
    """
    finished, out = AppRun(run), Path(out)
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size={batch_size} must be at least 1, num_workers at least 0.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty, and nothing is ever overwritten; give a new folder.")
    by_stem = files_by_stem(Path(images))
    for paths in by_stem.values():
        if len(paths) > 1:
            raise InputError(same_stem(paths))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        network = finished.network().to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device} is not at hand; take auto or cpu ({error}).") from error
    seen = finished.cfg.data
    dataset = _Images(list(by_stem.items()), seen.image_size, seen.in_channels)
    loader: Any = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=_apart, shuffle=False
    )
    unreadable: list[str] = []
    written = 0
    with tqdm(total=len(dataset), desc="Masks", unit="image") as bar, torch.inference_mode():
        for good, bad in loader:
            unreadable += bad
            bar.update(len(bad))
            if not good:
                continue
            batch = torch.stack([image for _, _, image in good]).to(device)
            p = _probabilities(network, batch)
            if flips:
                p = (p + _probabilities(network, batch.flip(-1)).flip(-1)) / 2
            for (id, size, _), of_image in zip(good, p, strict=True):
                full = F.interpolate(of_image[None], size, mode="bilinear", align_corners=False)[0]
                _write(out, id, full.cpu(), probabilities)
                written += 1
                bar.update()
    if unreadable:
        told = " ".join(unreadable[:3]) + (
            f" And {len(unreadable) - 3} more." * (len(unreadable) > 3)
        )
        raise InputError(f"{len(unreadable)} of {len(dataset)} images have no mask: {told}")
    return written


class _Images(Dataset[Any]):
    """Images as the network sees them, and their own size; or why one cannot be read."""

    def __init__(self, files: Sequence[tuple[str, list[Path]]], side: int, channels: int) -> None:
        self.files = files
        self.side = side
        self.channels = channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, tuple[int, int], Tensor] | str:
        id, paths = self.files[index]
        try:
            image = read_image(paths[0])
            seen = standardised(preprocess(image, self.side, self.channels))
        except InputError as error:
            return str(error)
        return id, (image.shape[0], image.shape[1]), seen


def _apart(samples: list[Any]) -> tuple[list[Any], list[str]]:
    """The samples that could be read, and why the others could not."""
    bad = [sample for sample in samples if isinstance(sample, str)]
    return [sample for sample in samples if not isinstance(sample, str)], bad


def _probabilities(network: torch.nn.Module, images: Tensor) -> Tensor:
    return class_logits(any_size(network, images)).softmax(dim=1)


def _write(out: Path, id: str, p: Tensor, probabilities: bool) -> None:
    mask = smallest_type(p.argmax(dim=0).numpy())
    if len(p) == 2:
        mask = mask * np.uint8(255)
    with replacing(out / f"{id}.png") as temporary:
        Image.fromarray(mask).save(temporary, format="PNG")
    if probabilities:
        place = out / "probabilities" / f"{id}.npy"
        with replacing(place) as temporary, temporary.open("wb") as file:
            np.save(file, p.numpy().astype(np.float16))


if __name__ == "__main__":
    cli_errors(main)
