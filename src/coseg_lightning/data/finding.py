"""Which folders hold the images and the masks of a dataset, and how their files are named."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import SUFFIXES
from coseg_lightning.files.naming import (
    LAST_WORD,
    OF_PEOPLE,
    PLAIN,
    Files,
    Likely,
    Names,
    advice_on_volumes,
    files_inside,
    guess_patterns,
    holds_files_inside,
    likely_patterns,
    mask_key,
)
from coseg_lightning.files.volumes import ending

# Usual names of the two folders. The first is preferred. Without it, exactly one other must exist.
IMAGES = (
    *("images", "image", "imgs", "img", "photos", "pictures", "scans", "radiographs"),
    *("imagestr", "jpegimages", "leftimg8bit"),
)
MASKS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground_truth"),
    *("groundtruth", "segmentations", "segmentation", "seg"),
    *("labelstr", "segmentationclass", "gtfine"),
)
MOST_NAMED = 5  # folders that a message lists
JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
# The prefix of an annotator's name in a folder's name, as in masks_anna.
OF_A_PERSON = re.compile(
    r"^(masks?|labels?|annotations?|segmentations?|seg|gt)[-_. ]+(?=.)", re.IGNORECASE
)


class FoundFiles(NamedTuple):
    """The images and masks of a dataset's folder, by their ids.

    Attributes:
        images: The images.
        masks: The masks, one entry per folder. Each of several folders is of one annotator.
        mask_root: The folder that contains all masks.
    """

    images: Names
    masks: list[Names]
    mask_root: Path

    @property
    def mask_files(self) -> Files:
        """The files of each mask, see `files.naming.mask_key`."""
        return files_of(self.masks, self.mask_root)


def files_of(names: Sequence[Names], root: Path) -> Files:
    """Return the files of each mask. The keys of several folders below the root name annotators."""
    if names[0].folder == root:
        return names[0].files
    people = _people_of([each.folder for each in names])
    return {
        mask_key(sample_id, person): paths
        for each, person in zip(names, people, strict=True)
        for sample_id, paths in each.files.items()
    }


def _people_of(folders: Sequence[Path]) -> list[str]:
    """Name each folder's annotator: by its name without `masks_`, or by its distinct path."""
    names = [OF_A_PERSON.sub("", folder.name) for folder in folders]
    if len(set(names)) == len(names):
        return names
    levels = zip(*(folder.parts for folder in folders), strict=False)
    shared = next((n for n, parts in enumerate(levels) if len(set(parts)) > 1), 0)
    return ["/".join(folder.parts[shared:]) for folder in folders]


def mask_names(
    root: Path, masks: Any, pattern: str, stems: Collection[str] | None
) -> tuple[list[Names], Path]:
    """Return the masks in one folder or in several annotators' folders, and their common folder.

    Raises:
        InputError: If folders and pattern contradict each other, or a folder is named twice.
    """
    if isinstance(masks, str):
        return [Names(root / masks, pattern, stems)], root / masks
    if "{annotator}" in pattern:
        raise InputError(
            f"data.mask_glob={pattern} and data.masks={list(masks)} both name the annotators; "
            "give one folder, or a pattern without {annotator}."
        )
    twice = [name for name, count in Counter(masks).items() if count > 1]
    if not masks or twice:
        raise InputError(
            f"data.masks={list(masks)} must name each person's folder once, as in "
            "'[masks_anna,masks_ben]'."
        )
    return [Names(root / name, pattern) for name in masks], root


def find_files(
    root: Path,
    images: str = "auto",
    masks: str | Sequence[str] = "auto",
    image_glob: str = "auto",
    mask_glob: str = "auto",
) -> FoundFiles:
    """Find the images and masks of a dataset; the arguments are those of `folder_splits`.

    Raises:
        InputError: If a folder is missing or holds no such files, or a pattern cannot be used.
    """
    images_folder = root / find_folder(root, images, IMAGES, "images")
    places = find_mask_folders(root, masks)
    masks_folder = root / (places if isinstance(places, str) else places[0])
    guessed = (PLAIN, PLAIN)
    if "auto" in (image_glob, mask_glob):
        may_be_people = mask_glob == "auto" and isinstance(places, str)
        guessed = guess_patterns(images_folder, masks_folder, may_be_people=may_be_people)
    image_glob = guessed[0] if image_glob == "auto" else image_glob
    mask_glob = guessed[1] if mask_glob == "auto" else mask_glob
    if "{annotator}" in image_glob or (
        "{annotator}" in mask_glob and images_folder == masks_folder
    ):
        raise InputError(
            f"data.image_glob={image_glob} data.mask_glob={mask_glob}: {{annotator}} is only for "
            "masks, in a folder without images; put images and masks into two folders."
        )
    of_images = Names(images_folder, image_glob)
    of_masks, mask_root = mask_names(root, places, mask_glob, of_images.stems)
    if images_folder == masks_folder:  # masks are not images
        of_images.exclude({path for paths in of_masks[0].files.values() for path in paths})
    for what, names in (("image", of_images), *(("mask", each) for each in of_masks)):
        if not names.files and names.stems and image_glob == mask_glob == PLAIN:
            raise InputError(_one_folder_message(images_folder))
        if not names.files:
            raise InputError(_nothing_message(what, names, of_images.stems))
    return FoundFiles(of_images, of_masks, mask_root)


def find_mask_folders(root: Path, masks: str | Sequence[str]) -> str | list[str]:
    """Find the folder of masks, or those of several annotators, see `find_folder`."""
    if isinstance(masks, str):
        return find_folder(root, masks, MASKS, "masks")
    if not masks:
        raise InputError(
            "data.masks=[] names no folder; give auto, a folder, or a list of folders, one for "
            "each annotator."
        )
    return [find_folder(root, str(name), (), "masks") for name in masks]


def _one_folder_message(folder: Path) -> str:
    """Say how to tell images from masks in one folder, by their endings if these differ."""
    stems: defaultdict[str, set[str]] = defaultdict(set)
    for path in folder.iterdir():
        if ending(path) in SUFFIXES:
            at = len(path.name) - len(ending(path))
            stems[path.name[at:]].add(path.name[:at])
    by_number = sorted(stems, key=lambda suffix: (-len(stems[suffix]), suffix))
    images = sorted(by_number, key=lambda suffix: suffix.lower() not in JPEG)[0]  # no mask's format
    masks = next((suffix for suffix in by_number if suffix != images), images)
    ends = Counter(
        end for stem in sorted(stems[masks]) if (end := _end(stem, stems[images])) is not None
    )
    end = ends.most_common(1)[0][0] if ends and masks != images else "_mask"
    return (
        f"{folder} holds images and masks, but no usual names that tell them apart; give patterns "
        f"of both, as in data.image_glob='{{id}}{images}' data.mask_glob='{{id}}{end}{masks}'."
    )


def _end(name: str, ids: Collection[str]) -> str | None:
    """Return what follows the longest id with which a name begins."""
    lengths = range(len(name), 0, -1)
    return next((name[length:] for length in lengths if name[:length] in ids), None)


def _nothing_message(what: str, names: Names, ids: Collection[str]) -> str:
    if advice := advice_on_volumes(names.folder):
        return f"{names.folder} holds no {what} files whose ending is known; {advice}."
    files = sorted(p for p in names.folder.iterdir() if p.is_file() and p.suffix)
    readable = [path for path in files if ending(path) in SUFFIXES]
    others = sorted({path.suffix for path in readable or files})
    text = f"{names.folder} holds no image files"
    if not readable and names.pattern == PLAIN and (inside := files_inside(names.folder)):
        example = inside[0]
        advice = _pattern_of_folders(likely_patterns(inside, ids))
        if what == "image":
            example = min(inside, key=_looks_like_a_mask)
            pattern = _pattern_like(example, inside)
            advice = f"give patterns, such as data.image_glob='{pattern}', and alike for masks"
        return f"{text}, but folders with such files, such as {example}; {advice}."
    if names.pattern != PLAIN:
        text += f" named {names.pattern}"
    if what == "mask" and not readable and ".json" in others:
        return (
            f"{text}, but lists of outlines (.json), as in COCO; convert them to PNG masks first."
        )
    if others:
        text += f", but files of {', '.join(others[:4])}"
    if files and not readable:
        return (
            f"{text}, which are not read; save the {what}s as one of {', '.join(SUFFIXES)} (such "
            "as arrays as .npy, and volumes as .nii.gz)."
        )
    return f"{text}; set data.{what}_glob if they are named otherwise."


def _looks_like_a_mask(path: str) -> int:
    """Return -1 for a path with a usual folder of images, 1 for one of masks, and else 0."""
    folders = {folder.lower() for folder in path.split("/")[:-1]}
    return bool(folders & {*MASKS}) - bool(folders & {*IMAGES})


def _pattern_like(example: str, inside: Sequence[str]) -> str:
    """Return a pattern for files that lie in folders like an example among them."""
    *folders, name = example.split("/")
    stem = name[: len(name) - len(ending(Path(name)))]
    places = Counter(path.partition("/")[2] for path in inside)
    if places[example.partition("/")[2]] > 1:  # folders are named by the image, as in KiTS
        return "/".join(["{id}", *folders[1:], f"{stem}.*"])
    end = LAST_WORD.search(stem)
    shared = end is not None and sum(f"{end[0]}." in path for path in inside) > 1
    return "/".join(["**", *folders[1:][-1:], "{id}" + (end[0] if end and shared else "") + ".*"])


def _pattern_of_folders(likely: Likely) -> str:
    """Say which pattern reads masks in folders."""
    if likely.of_people and likely.several:
        return (
            f"give data.mask_glob='{likely.of_people}' if several persons drew the same objects; "
            "masks of single objects or classes must be joined into one for each image"
        )
    if likely.several:
        return (
            "an image has several, with names of their own, as of single objects; join them into "
            "one for each image, or name the persons by data.mask_glob"
        )
    if likely.plain:
        return f"give data.mask_glob='{likely.plain}' to read them"
    of_people = likely.of_people or OF_PEOPLE
    of_groups = f"**/{of_people.rpartition('/')[2]}"
    return (
        f"give data.mask_glob='{of_people}' if each is a person's, or '{of_groups}' if each is a "
        "group"
    )


def find_folder(root: Path, name: str, usual: Sequence[str], what: str) -> str:
    """Find the folder of images or of masks in a dataset's folder.

    Args:
        root: The dataset's folder.
        name: The folder's name in `root`, or `auto`.
        usual: The names that `auto` looks for, in any letter case; the first is preferred.
        what: `images` or `masks`.

    Raises:
        InputError: If there is no such folder, or more than one candidate.
    """
    if name != "auto":
        if not (root / name).is_dir():
            raise InputError(f"data.{what}={name}: there is no such folder in {root}.")
        return name
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = [folder for folder in there if folder.lower() in usual]
    if usual[0] in found:
        return usual[0]
    if len(found) > 1:  # VOC's Annotations hold boxes
        found = [folder for folder in found if holds_files_inside(root / folder)] or found
    if len(found) == 1:
        return found[0]
    reason = f"no folder of {what} with a usual name, such as {usual[0]}, but "
    reason += ", ".join(there[:MOST_NAMED]) or "no folder at all"
    reason += f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
    if not there:
        beside = any(ending(path) in SUFFIXES for path in root.iterdir())
        both = ", or images=. masks=. if both lie here" if beside else ""
        raise InputError(
            f"{root} holds {reason}; give the folder that holds one folder of images and one of "
            f"masks{both}."
        )
    if found:
        reason = f"{' and '.join(found)}, and each may be the folder of {what}"
    several = ""
    if what == "masks" and len(there) > 2:
        several = (
            ". If several people drew masks of the same images, name all of their folders, as in "
            "'data.masks=[masks_anna,masks_ben]'"
        )
    if what == "images" and not found:
        several = ", or give images=. masks=. if each of them holds images and masks"
    raise InputError(f"{root} holds {reason}; name the right one with {what}=NAME{several}.")
