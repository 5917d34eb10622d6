"""Writes all masks of a run, with its corrections: python -m coseg_lightning.apply RUN DEST."""

import logging
import re
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from coseg_lightning.app.command import arguments, cli_errors, review_paths
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.data.folder import JudgedMasks, judged_masks, judged_tiles
from coseg_lightning.data.tiles import TiledImages
from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.mask_folder import MaskFolder, MaskWriter
from coseg_lightning.files.naming import split_key
from coseg_lightning.files.progress import progress
from coseg_lightning.labels.masks import Mask, mask_digest, with_unlabelled
from coseg_lightning.labels.review import (
    OK,
    REDRAW,
    TAKE,
    Review,
    opened_review,
    proposal_digest,
    unknown_id,
)
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.runs.finished import FinishedRun

log = logging.getLogger(__name__)

PAGES = ("report.html", "review.html")  # where masks are reviewed: of a run, of an audit


def main() -> None:
    """Read the command line, write the folder, and print how many masks were corrected."""
    options = arguments("apply")
    options["review"] = review_paths(options["review"]) if options["review"] else ()
    corrected, newer, pictures, masks, gone, fused, noisy = _applied(**options)
    if not options["review"]:
        corrected -= noisy
    if corrected or options["review"]:
        verb = "differ from yours" if options["review"] else "were corrected"
        print(f"{corrected} of {masks} masks in {options['dest']} {verb}.")
        if fused:
            print(f"{_count(fused, 'mask is', 'masks are')} fused from several masks of an image.")
    else:
        page = next((n for n in PAGES if Path(options["run"], n).is_file()), PAGES[0])
        if fused:
            text = (
                f"None of the {masks} masks in {options['dest']} was corrected, but "
                f"{_count(fused, 'is', 'are')} fused from several masks of an image."
            )
        else:
            text = (
                f"All {masks} masks in {options['dest']} are as you gave them, since none was "
                "corrected."
            )
        if noisy and not fused:
            text = f"None of the {masks} masks in {options['dest']} was corrected."
        print(f"{text} To write your own decisions, save a review in {page}, and give review=FILE.")
    if noisy:
        print(f"{_count(noisy, 'mask holds', 'masks hold')} the noise that the experiment added.")
    others = not_for_training(options["run"], masks + gone)
    if others:
        print(
            f"{_count(others, 'mask is', 'masks are')} not for training, so the run did not "
            f"look at {'them; they were' if others > 1 else 'it; it was'} "
            f"{'copied or fused' if fused else 'copied'}."
        )
    if newer:
        shown = ", ".join(newer[:10]) + (", ..." if len(newer) > 10 else "")
        by_tiles = Path(options["run"], "images.csv").is_file()
        names = ("tile", "tiles") if by_tiles else ("mask", "masks")
        keeps = "is kept as it is now" if len(newer) == 1 else "are kept as they are now"
        print(f"{_count(len(newer), *names)} changed after the run and {keeps}: {shown}")
    if pictures:
        shown = ", ".join(pictures[:10]) + (", ..." if len(pictures) > 10 else "")
        print(
            f"{_count(len(pictures), 'image is', 'images are')} not what the run looked at; "
            f"the masks stay as they are: {shown}"
        )


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def not_for_training(run: str | Path, masks: int) -> int:
    """Return how many of all masks a run did not look at, as far as it is recorded.

    Args:
        run: The folder of the run.
        masks: The number of all masks, also of those that were removed after the run.
    """
    joined = Path(run) / "images.csv"
    if joined.is_file():  # judged by tiles
        return masks - len(read_table(joined, ["id"]))
    if (FinishedRun(run).summary["config"].get("data") or {}).get("tile"):
        return 0  # also by tiles, but nothing was judged
    sizes: dict[str, int] = FinishedRun(run).summary.get("samples") or {}
    return max(0, masks - sizes["train"]) if "train" in sizes else 0


def apply(
    run: str | Path,
    dest: str | Path,
    root: str | Path | None = None,
    *,
    review: str | Path | Sequence[str | Path] = (),
    trust: bool = False,
) -> tuple[int, list[str], int]:
    """Write all masks of a run's mask folder, with the run's corrections, into a new folder.

    A mask that was not corrected is copied byte by byte. A corrected mask keeps its file's format,
    palette and values (0/255 stays 0/255). If the run added noise for an experiment, noisy masks
    that it did not correct stay noisy. If file names include the annotators, one mask per image is
    written under its id; several masks of an image are fused into one.

    Args:
        run: The folder of a finished run of `data=folder`, or of an audit.
        dest: A new folder. It appears only when it is complete.
        root: The current place of the run's data, if it was moved.
        review: People's decisions on the masks, see `opened_review`. Rejected corrections are not
            written, while accepted proposals and drawn masks are.
        trust: See `AppRun`.

    Returns:
        The number of masks that differ from yours; the ids of masks that you changed after the
        run, or whose images did, which are copied in their current form; and the number of all
        masks.

    Raises:
        InputError: If `dest` exists, the run did not use `data=folder`, or a mask cannot be
            written.
    """
    applied = _applied(run, dest, root, review=review, trust=trust)
    return applied.changed, [*applied.newer, *applied.other_images], applied.masks


class _Applied(NamedTuple):
    """What `apply` has written.

    Attributes:
        changed: The number of masks that differ from yours.
        newer: The ids of masks that were changed after the run.
        other_images: The ids of further masks whose images were changed after the run.
        masks: The number of all masks.
        gone: The number of masks that the run looked at and that were removed since.
        fused: The number of masks that are fused from several masks of an image.
        noisy: The number of masks that hold the noise of an experiment, not corrected.
    """

    changed: int
    newer: list[str]
    other_images: list[str]
    masks: int
    gone: int
    fused: int
    noisy: int


def _applied(
    run: str | Path,
    dest: str | Path,
    root: str | Path | None = None,
    *,
    review: str | Path | Sequence[str | Path] = (),
    trust: bool = False,
) -> _Applied:
    """Write all masks; see `apply`."""
    finished, dest = AppRun(run, root=root, trust=trust), Path(dest)
    if dest.exists():
        raise InputError(f"{dest} exists and is never overwritten; give a new folder.")
    for folder in _mask_folders(finished):
        if folder.resolve() in dest.resolve().parents:
            raise InputError(
                f"{dest} lies in {folder}, which is only read; give a folder elsewhere."
            )
    source = finished.cfg.data.source
    judged = judged_masks(source, skip=source.on_bad_sample == "skip")
    with opened_review(review) if review else nullcontext(Review()) as opened:
        labels = _Labels(finished, opened, classes=max(2, source.classes))
        labels.check(judged, by_tiles=source.get("tile") is not None)
        dest.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{dest.name}.", dir=dest.parent) as temporary:
            unfinished = Path(temporary) / "masks"
            unfinished.mkdir()
            writer = MaskWriter(judged.folder, unfinished)
            for path in judged.others:
                writer.copy(path)
            changed = noisy = 0
            if source.get("tile") is not None:
                tiled = judged_tiles(judged, source, Path(temporary) / "copies")
                changed, noisy = _write_tiled(tiled, judged.folder, writer, labels)
            whole = _whole(judged, source)
            for index, sample_id in enumerate(progress(whole, "Masks")):
                original = judged.images.mask(index)
                mask = labels.of(sample_id, original)
                changed += _write(sample_id, judged, writer, mask, original)
            noisy += len(labels.noisy) if whole else 0
            writer.finish()
            unfinished.replace(dest)
    if labels.drawn_over:
        log.warning(
            "Drawings of the review take the place of masks that you changed after the run: %d, "
            "such as that of %s.",
            len(labels.drawn_over),
            labels.drawn_over[0],
        )
    fused = [i for i in _whole(judged, source) if i in (judged.images.several or ())]
    masks = len(judged.images) + len(judged.others)
    joined = finished.folder / "images.csv"  # by tiles
    seen = {row["id"] for row in read_table(joined, ["id"])} if joined.is_file() else set()
    gone = (seen or finished.file_digests.keys()) - set(judged.images.ids)
    return _Applied(
        changed,
        labels.newer,
        labels.other_images,
        masks,
        gone=len(gone),
        fused=len(fused),
        noisy=noisy,
    )


class _Labels:
    """The masks with which a run and a review replace the samples' own.

    Args:
        run: The run.
        review: The review; without decisions, the run's corrections are used.
        classes: The number of classes, background included.

    Attributes:
        newer: The samples whose own masks were changed after the run, and are kept.
        other_images: Those whose images were changed, and whose own masks are kept.
        noisy: Those that keep the noise which an experiment added.
        drawn_over: Those whose own masks were changed after the run, and which a review draws.
    """

    def __init__(self, run: AppRun, review: Review, classes: int) -> None:
        self.newer: list[str] = []
        self.other_images: list[str] = []
        self.noisy: list[str] = []
        self.drawn_over: list[str] = []
        self._noise = None if run.noise is None else LabelStore(run.noise)
        self._layers = [LabelStore(layer) for layer in run.layers]
        self._proposals = run.proposals if review.decisions else None
        self._review, self._classes = review, classes
        self._digests = run.file_digests
        self._changed: set[str] = set()  # the images whose mask files are others now
        self._replaced: set[str] = set()  # the images that are others now
        self._by_tiles = False
        waiting = run.folder / "redraw.csv"  # of a reviewed run
        earlier = read_table(waiting, ["id"]) if waiting.is_file() else []
        undecided = {row["id"] for row in earlier} - set(review.decisions)
        self._to_redraw = review.to_redraw | undecided

    def check(self, judged: JudgedMasks, *, by_tiles: bool) -> None:
        """Refuse a review of other masks, and warn about masks that are not written.

        Raises:
            InputError: If the review names a mask that the run did not look at.
        """
        layers = [*self._layers, *([self._noise] if self._noise is not None else [])]
        corrected = {sample_id for layer in layers for sample_id in layer.ids}
        proposed = set() if self._proposals is None else set(self._proposals.ids)
        read = set(judged.images.ids)
        lost = []
        for sample_id in sorted(corrected | set(self._review.decisions)):
            image_id = _image_of(sample_id)
            is_read = sample_id in read or image_id in read
            if by_tiles and is_read and image_id == sample_id:
                raise InputError(
                    f"The review names {sample_id}, but the run judged images by tiles; name a "
                    f"tile, as in {sample_id}_r01_c01."
                )
            decision = self._review.decisions.get(sample_id)
            if is_read and (decision != TAKE or sample_id in corrected | proposed):
                continue
            if decision is None:
                lost.append(sample_id)
            elif is_read:
                raise InputError(
                    f"The review says take for {sample_id}, but the run proposes no mask for it; "
                    "say ok or redraw."
                )
            else:
                raise unknown_id(sample_id, read, of="in the run's data")
        if lost:
            log.warning(
                "%d corrections, such as that of %s, are not written, since the image or mask is "
                "missing.",
                len(lost),
                lost[0],
            )
        known, infos = self._digests, judged.folder.file_info
        self._changed = {
            i for i in known.keys() & infos.keys() if known[i][1] != str(infos[i]["digest"])
        }
        self._by_tiles = by_tiles
        self._replaced = {
            i
            for i in known.keys() & judged.infos.keys()
            if known[i][0] != str(judged.infos[i]["digest"])
        }
        waiting = sorted(self._to_redraw - self._changed)
        if waiting:
            log.warning(
                "Masks that must still be redrawn are copied as they are: %d, such as that of %s.",
                len(waiting),
                waiting[0],
            )

    def __contains__(self, sample_id: str) -> bool:
        layers = [*self._layers, *([self._noise] if self._noise is not None else [])]
        return sample_id in self._review.decisions or any(sample_id in layer for layer in layers)

    def of(self, sample_id: str, own: Mask) -> Mask | None:
        """Return the mask that replaces a sample's own, or None to keep its own."""
        image_id = _image_of(sample_id) if self._by_tiles else sample_id
        if sample_id in self and image_id in self._replaced:
            self.other_images += [] if image_id in self.other_images else [image_id]
            return None
        noise, decision = self._noise, self._review.decisions.get(sample_id)
        noisy = noise.read(sample_id) if noise is not None and sample_id in noise else None
        if sample_id in self._review.files:
            if not self._changed.isdisjoint((sample_id, image_id)):
                self.drawn_over.append(sample_id)
            return self._review.read(sample_id, own, self._classes)
        if decision in (OK, REDRAW):
            return self._as_noisy(sample_id, own, noisy)
        original = own if noisy is None else noisy
        corrections = [layer for layer in self._layers if sample_id in layer]
        corrected = corrections[-1].read(sample_id) if corrections else original
        changes_nothing = decision == TAKE and np.array_equal(corrected, original)
        if changes_nothing and self._review.taken.get(sample_id) != proposal_digest(corrected):
            assert self._proposals is not None
            if not self._changed.isdisjoint((sample_id, _image_of(sample_id))):
                self.newer.append(sample_id)
                return None
            proposal = self._proposals.read(sample_id)
            kept = with_unlabelled(proposal, original)
            self._review.check_taken(sample_id, kept, proposal)
            return kept
        if not corrections:
            return self._as_noisy(sample_id, own, noisy)
        if corrections[0].facts(sample_id).get("original") not in (None, mask_digest(original)):
            self.newer.append(sample_id)
            return None
        self._review.check_taken(sample_id, corrected)
        return corrected

    def _as_noisy(self, sample_id: str, own: Mask, noisy: Mask | None) -> Mask | None:
        """Keep the noise that an experiment added, and count it."""
        if noisy is not None and not np.array_equal(own, noisy):
            self.noisy.append(sample_id)
        return noisy


def _image_of(sample_id: str) -> str:
    """The image of a tile."""
    return re.sub(r"_r\d+_c\d+$", "", sample_id)


def _whole(judged: JudgedMasks, source: DictConfig) -> list[str]:
    """The samples that are whole images."""
    return judged.images.ids if source.get("tile") is None else []


def _write_tiled(
    tiled: TiledImages,
    masks: MaskFolder,
    writer: MaskWriter,
    labels: _Labels,
) -> tuple[int, int]:
    """Write the masks of images that were judged by tiles, each with the cores of its tiles.

    Returns:
        Number of masks that differ from the originals, and of those that only hold noise.
    """
    tiles, count, noisy = tiled.tiles, 0, 0
    of_image: dict[str, list[str]] = {}
    for tile_id in tiled.ids:
        of_image.setdefault(tiles.tiles[tile_id].image_id, []).append(tile_id)
    for image_id, tile_ids in progress(list(of_image.items()), "Masks"):
        whole: Mask | None = None
        is_changed, is_noise = False, True
        for tile_id in tile_ids:
            if tile_id not in labels:
                continue
            own = tiles.mask(tile_id)
            mask = labels.of(tile_id, own)
            if mask is None or np.array_equal(mask, own):
                continue
            whole = masks.read(image_id) if whole is None else whole
            tile = tiles.tiles[tile_id]
            place = whole[tile.core_in_image]
            seen = place == own[tile.core]  # labels stay where the image is missing
            is_changed |= bool((place[seen] != mask[tile.core][seen]).any())
            place[seen] = mask[tile.core][seen]
            is_noise &= labels.noisy[-1:] == [tile_id]
        if whole is None or not is_changed:
            writer.copy(masks.path(image_id))
        else:
            writer.write(image_id, whole)
            count, noisy = count + 1, noisy + is_noise
    return count, noisy


def _mask_folders(finished: AppRun) -> list[Path]:
    source = finished.cfg.data.source
    if "masks" not in source or "root" not in source:
        raise InputError(
            f"{finished.folder} is not a run of data=folder, so its masks are not in a folder; "
            "give a run of data=folder."
        )
    root = Path(source.root).expanduser()
    names = [source.masks] if isinstance(source.masks, str) else source.masks
    return [root / name for name in names]


def _write(
    sample_id: str, judged: JudgedMasks, writer: MaskWriter, mask: Mask | None, original: Mask
) -> bool:
    """Write a mask into a folder, and return whether it differs from the sample's own."""
    key, masks, several = judged.keys[sample_id], judged.folder, judged.images.several
    is_fused = several is not None and sample_id in several
    by_id = is_fused or split_key(key)[1] is not None  # its file names the annotator
    own = several.fused(sample_id) if several is not None and is_fused else masks.read(key)
    if mask is None or np.array_equal(mask, original):
        if by_id:
            writer.write_once(sample_id, key, own if is_fused else None)
        else:
            writer.copy(masks.path(key))
        return False
    mask = np.where(own != original, own, mask)  # labels stay where the image is missing
    if by_id:
        writer.write_once(sample_id, key, mask)
    else:
        writer.write(key, mask)
    return True


if __name__ == "__main__":
    cli_errors(main)
