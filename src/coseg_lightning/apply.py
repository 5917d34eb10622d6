"""All masks, corrected where the run did: python -m coseg_lightning.apply RUN DEST."""

import shutil
import tempfile
from pathlib import Path

from tqdm import tqdm

from coseg_lightning.command import arguments, told_in_a_sentence
from coseg_lightning.errors import InputError
from coseg_lightning.finished import FinishedRun
from coseg_lightning.labels import LabelStore
from coseg_lightning.mask_folder import MaskFolder


def main() -> None:
    """Read the command line, write the folder, and say what came out."""
    given = arguments(
        "A complete folder of masks in your own format: corrected where the run corrected them.",
        {"run": "the folder of a finished run", "dest": "a new folder"},
        {},
    )
    corrected, masks = apply(**given)
    print(f"{corrected} of {masks} masks in {given['dest']} were corrected.")


def apply(run: str | Path, dest: str | Path) -> tuple[int, int]:
    """Write all masks of a run's folder, with its corrections, into a new folder.

    A mask that was not corrected is copied byte by byte; a corrected one keeps its file's format,
    palette and values (0/255 stays 0/255). Where the run put noise into the masks for an
    experiment, those that it did not correct stay noisy.

    Args:
        run: The folder of a finished run of `data=folder`.
        dest: A new folder. It appears when it is complete.

    Returns:
        How many masks differ from yours, and how many there are.

    Raises:
        InputError: If `dest` exists, the run is no such run, or a mask cannot be written.
    """
    finished, dest = FinishedRun(run), Path(dest)
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
    given = [finished.folder / "noise"] if (finished.folder / "noise").is_dir() else []
    layers = [LabelStore(layer) for layer in (*given, *finished.layers)]
    masks = MaskFolder(folder, classes=source.classes, skip=source.on_bad_sample == "skip")
    dest.parent.mkdir(parents=True, exist_ok=True)
    changed = 0
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as temporary:
        place = Path(temporary) / "masks"
        place.mkdir()
        for id in tqdm(masks.ids, desc="Masks", leave=False):
            path = masks.path(id)
            over = [layer for layer in layers if id in layer]
            mask = over[-1].read(id) if over else None
            if mask is None or (mask == masks.read(id)).all():
                shutil.copyfile(path, place / path.name)
            else:
                masks.write_like(id, place / path.name, mask)
                changed += 1
        place.replace(dest)
    return changed, len(masks.ids)


if __name__ == "__main__":
    told_in_a_sentence(main)
