"""All masks, corrected where the run did: python -m coseg_lightning.apply RUN DEST."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.labels.masks import mask_digest
from coseg_lightning.labels.store import LabelStore


def main() -> None:
    """Read the command line, write the folder, and say what came out."""
    given = arguments(
        "A complete folder of masks in your own format: corrected where the run corrected them.",
        {"run": "the folder of a finished run", "dest": "a new folder"},
        {"root": ("", "where its data lies now, if it was moved")},
    )
    corrected, newer, masks = apply(**given)
    print(f"{corrected} of {masks} masks in {given['dest']} were corrected.")
    if newer:
        told = ", ".join(newer[:10]) + (", ..." if len(newer) > 10 else "")
        print(f"{len(newer)} were changed after the run, and are as they are now: {told}")


def apply(
    run: str | Path, dest: str | Path, root: str | Path | None = None
) -> tuple[int, list[str], int]:
    """Write all masks of a run's folder, with its corrections, into a new folder.

    A mask that was not corrected is copied byte by byte; a corrected one keeps its file's format,
    palette and values (0/255 stays 0/255). Where the run put noise into the masks for an
    experiment, those that it did not correct stay noisy.

    Args:
        run: The folder of a finished run of `data=folder`.
        dest: A new folder. It appears when it is complete.
        root: Where the run's data lies now, if it was moved.

    Returns:
        How many masks differ from yours; those that you changed after the run, which stay as they
        are now; and how many there are.

    Raises:
        InputError: If `dest` exists, the run is no such run, or a mask cannot be written.
    """
    finished, dest = AppRun(run, root=root), Path(dest)
    if dest.exists():
        raise InputError(f"{dest} exists and is never overwritten; give a new folder.")
    source = finished.cfg.data.source
    if "masks" not in source or "root" not in source:
        raise InputError(
            f"{finished.folder} is no run of data=folder, whose masks lie in a folder."
        )
    folder = Path(source.root).expanduser() / source.masks
    if folder.resolve() in dest.resolve().parents:
        raise InputError(f"{dest} lies in {folder}, which is only read; give a folder elsewhere.")
    given = [] if finished.noise is None else [LabelStore(finished.noise)]
    layers = [LabelStore(layer) for layer in finished.layers]
    masks = MaskFolder(folder, classes=source.classes, skip=source.on_bad_sample == "skip")
    dest.parent.mkdir(parents=True, exist_ok=True)
    changed, newer = 0, []
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as temporary:
        place = Path(temporary) / "masks"
        place.mkdir()
        for id in tqdm(masks.ids, desc="Masks", leave=False):
            path = masks.path(id)
            noisy = [layer for layer in given if id in layer]
            over = [layer for layer in layers if id in layer]
            before = noisy[0].read(id) if noisy else masks.read(id)
            if over and over[0].facts(id).get("original") not in (None, mask_digest(before)):
                newer.append(id)
                noisy, over = [], []
            mask = (over or noisy)[-1].read(id) if over or noisy else None
            if mask is None or np.array_equal(mask, masks.read(id)):
                shutil.copyfile(path, place / path.name)
            else:
                masks.write_like(id, place / path.name, mask)
                changed += 1
        place.replace(dest)
    return changed, newer, len(masks.ids)


if __name__ == "__main__":
    cli_errors(main)
