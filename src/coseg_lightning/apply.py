"""Writes all masks of a run, with its corrections: python -m coseg_lightning.apply RUN DEST."""

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.data.folder import JudgedMasks, judged_masks, judged_tiles
from coseg_lightning.data.tiles import TiledImages
from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.mask_folder import MaskFolder, MaskWriter
from coseg_lightning.files.mask_rules import IGNORE_INDEX
from coseg_lightning.files.progress import progress
from coseg_lightning.labels.masks import Mask, mask_digest
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.runs.finished import FinishedRun

log = logging.getLogger(__name__)


def main() -> None:
    """Read the command line, write the folder, and print how many masks were corrected."""
    options = arguments("apply")
    corrected, newer, masks = apply(**options)
    print(f"{corrected} of {masks} masks in {options['dest']} were corrected.")
    others = not_looked_at(options["run"], masks)
    if others:
        many = "masks were" if others > 1 else "mask was"
        print(
            f"{others} {many} not looked at by the run, since it was for validation or test, and "
            f"{'were' if others > 1 else 'was'} copied."
        )
    if newer:
        shown = ", ".join(newer[:10]) + (", ..." if len(newer) > 10 else "")
        if Path(options["run"], "images.csv").is_file():  # by tiles
            print(f"{len(newer)} tiles changed after the run and stay as they are now: {shown}")
        else:
            print(f"{len(newer)} changed after the run and were copied as they are now: {shown}")


def not_looked_at(run: str | Path, masks: int) -> int:
    """Return how many of all masks a run did not look at, as far as it says so."""
    joined = Path(run) / "images.csv"
    if joined.is_file():  # judged by tiles
        return masks - len(read_table(joined, ["id"]))
    if (FinishedRun(run).summary["config"].get("data") or {}).get("tile"):
        return 0  # by tiles too, but nothing was judged
    sizes: dict[str, int] = FinishedRun(run).summary.get("samples") or {}
    return sum(size for part, size in sizes.items() if part != "train")


def apply(
    run: str | Path, dest: str | Path, root: str | Path | None = None, *, trust: bool = False
) -> tuple[int, list[str], int]:
    """Write all masks of a run's mask folder, with the run's corrections, into a new folder.

    A mask that was not corrected is copied byte by byte. A corrected one keeps its file's format,
    palette and values (0/255 stays 0/255). If the run put noise into the masks for an experiment,
    the noisy masks that it did not correct stay noisy.

    Args:
        run: The folder of a finished run of `data=folder`.
        dest: A new folder. It appears only when it is complete.
        root: Where the run's data is now, if it was moved.
        trust: See `AppRun`.

    Returns:
        The number of masks that differ from yours; the ids of the masks that you changed after the
        run, which are copied as they are now; and the number of all masks.

    Raises:
        InputError: If `dest` exists, the run is not a run of `data=folder`, or a mask cannot be
            written.
    """
    finished, dest = AppRun(run, root=root, trust=trust), Path(dest)
    if dest.exists():
        raise InputError(f"{dest} exists and is never overwritten; give a new folder.")
    folder = _mask_folder(finished)
    if folder.resolve() in dest.resolve().parents:
        raise InputError(f"{dest} lies in {folder}, which is only read; give a folder elsewhere.")
    noise = None if finished.noise is None else LabelStore(finished.noise)
    layers = [LabelStore(layer) for layer in finished.layers]
    source = finished.cfg.data.source
    judged = judged_masks(source, skip=source.on_bad_sample == "skip")
    _warn_of_lost(judged, layers, noise)
    dest.parent.mkdir(parents=True, exist_ok=True)
    changed = 0
    newer: list[str] = []
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as temporary:
        unfinished = Path(temporary) / "masks"
        unfinished.mkdir()
        writer = MaskWriter(judged.folder, unfinished)
        for path in judged.others:
            writer.copy(path)
        if source.get("tile") is not None:
            tiled = judged_tiles(judged, source, Path(temporary) / "copies")
            changed, newer = _write_tiled(tiled, judged.folder, writer, noise, layers)
        for index, sample_id in enumerate(progress(_whole(judged, source), "Masks")):
            original = judged.images.mask(index)
            mask, is_newer = _label_of_run(sample_id, original, noise, layers)
            if is_newer:
                newer.append(sample_id)
            changed += _write(sample_id, judged.folder, writer, mask, original)
        writer.finish()
        unfinished.replace(dest)
    return changed, newer, len(judged.images) + len(judged.others)


def _warn_of_lost(
    judged: JudgedMasks, layers: Sequence[LabelStore], noise: LabelStore | None
) -> None:
    """Warn of corrections that are not written, since the image or the mask is gone."""
    read = set(judged.images.ids)
    ids = {i for layer in (*layers, *([noise] if noise else [])) for i in layer.ids}
    lost = sorted(i for i in ids if i not in read and re.sub(r"_r\d+_c\d+$", "", i) not in read)
    if lost:
        log.warning(
            "%d corrections, such as that of %s, are not written, since its image or mask is gone.",
            len(lost),
            lost[0],
        )


def _whole(judged: JudgedMasks, source: DictConfig) -> list[str]:
    """The samples that are whole images."""
    return judged.images.ids if source.get("tile") is None else []


def _write_tiled(
    tiled: TiledImages,
    masks: MaskFolder,
    writer: MaskWriter,
    noise: LabelStore | None,
    layers: Sequence[LabelStore],
) -> tuple[int, list[str]]:
    """Write the masks of images that were judged by tiles, each with the cores of its tiles.

    Returns:
        How many masks differ from the originals, and the ids of the tiles that were changed after
        the run.
    """
    tiles, count, newer = tiled.tiles, 0, []
    of_image: dict[str, list[str]] = {}
    for tile_id in tiled.ids:
        of_image.setdefault(tiles.tiles[tile_id].image_id, []).append(tile_id)
    for image_id, tile_ids in progress(list(of_image.items()), "Masks"):
        whole: Mask | None = None
        for tile_id in tile_ids:
            if not any(tile_id in layer for layer in (*layers, *([noise] if noise else []))):
                continue
            own = tiles.mask(tile_id)
            mask, is_newer = _label_of_run(tile_id, own, noise, layers)
            newer += [tile_id] if is_newer else []
            if mask is None or np.array_equal(mask, own):
                continue
            whole = masks.read(image_id) if whole is None else whole
            tile = tiles.tiles[tile_id]
            place = whole[tile.core_in_image]
            known = own[tile.core] != IGNORE_INDEX  # else labels stay, as where pixels are missing
            place[known] = mask[tile.core][known]
        if whole is None:
            writer.copy(masks.path(image_id))
        else:
            writer.write(image_id, whole)
            count += 1
    return count, newer


def _mask_folder(finished: AppRun) -> Path:
    source = finished.cfg.data.source
    if "masks" not in source or "root" not in source:
        raise InputError(
            f"{finished.folder} is not a run of data=folder, so its masks are not in a folder; "
            "give a run of data=folder."
        )
    folder: Path = Path(source.root).expanduser() / source.masks
    return folder


def _label_of_run(
    sample_id: str, own: Mask, noise: LabelStore | None, layers: Sequence[LabelStore]
) -> tuple[Mask | None, bool]:
    """Return the mask that the run put in place of a sample's own, or None if it did not.

    The second value says whether the sample's own mask was changed after the run.
    """
    noisy = noise.read(sample_id) if noise is not None and sample_id in noise else None
    corrections = [layer for layer in layers if sample_id in layer]
    if not corrections:
        return noisy, False
    original = own if noisy is None else noisy
    if corrections[0].facts(sample_id).get("original") not in (None, mask_digest(original)):
        return None, True
    return corrections[-1].read(sample_id), False


def _write(
    sample_id: str, masks: MaskFolder, writer: MaskWriter, mask: Mask | None, original: Mask
) -> bool:
    """Write a mask into a folder, and return whether it differs from the sample's own."""
    if mask is None or np.array_equal(mask, original):
        writer.copy(masks.path(sample_id))
        return False
    own = masks.read(sample_id)
    mask = np.where(own != original, own, mask)  # where the image is missing, labels stay
    writer.write(sample_id, mask)
    return True


if __name__ == "__main__":
    cli_errors(main)
