"""How files are named: which image and which mask belong to a sample, and what is not read."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import SUFFIXES
from coseg_lightning.files.volumes import ending, file_of, group_of, is_volume, slices_of

PLAIN = "{id}.*"  # a file's name without its ending is the id
NESTED = "{group}/{id}.*"  # in a folder for each patient, place or part of the split
DEEP = "**/{id}.*"  # in any folders
# What people add to the names of one of the two; longer ones first.
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img", "_sat", "_rgb", "_0000")
MASK_ENDS = (
    *(
        "_gtFine_labelIds",
        "_segmentation",
        "_manual1",
        "_annotation",
        "_masks",
        "_label",
        "_labels",
    ),
    *("_mask", "_seg", "_gt", "-mask", "-label", ".mask", "mask"),
)
PART_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
Files = dict[str, list[Path]]


class Names:
    """The files of a folder by a pattern of their names.

    Args:
        folder: The folder.
        pattern: A path below it, in which `{id}` stands for the sample, `*` for any text within a
            name, `**` for any folders, and `{group}` for a folder whose name precedes the id.

    Attributes:
        files: The files of each sample, in order.
        groups: The group of each sample, if the pattern has one; of a slice its volume.
        stems: What stands for `{id}` in the names, before slices are numbered.
        folders: The first folder on the way to each sample, if there is one.

    Raises:
        InputError: If the pattern has no `{id}`.
    """

    def __init__(self, folder: Path, pattern: str = PLAIN) -> None:
        self.folder = folder
        self.pattern = pattern
        expression = _expression(pattern)
        files: defaultdict[str, list[Path]] = defaultdict(list)
        self.groups: dict[str, str] = {}
        self.stems: set[str] = set()
        self.folders: dict[str, str] = {}
        for path in sorted(_walk(folder, deep="/" in pattern)):
            name = path.relative_to(folder).as_posix()
            if ending(path) == ".nii.gz":
                name = name[: -len(".gz")]
            match = expression.fullmatch(name)
            if match is None or ending(path) not in SUFFIXES:
                continue
            group = match.groupdict().get("group")
            stem = match["id"] if group is None else f"{group}_{match['id']}"
            self.stems.add(stem)
            slices = slices_of(path) if is_volume(path) else [("", path)]
            for number, place in slices:
                files[stem + number].append(place)
                if "/" in name:
                    self.folders[stem + number] = name.partition("/")[0]
                if group is not None:
                    self.groups[stem + number] = group
                elif is_volume(path):
                    self.groups[stem + number] = group_of(path, stem)
        self.files: Files = dict(files)

    def exclude(self, others: Collection[Path]) -> None:
        """Leave out files that are of something else."""
        kept = {i: [p for p in paths if p not in others] for i, paths in self.files.items()}
        self.files = {sample_id: paths for sample_id, paths in kept.items() if paths}


def _expression(pattern: str) -> re.Pattern[str]:
    if pattern.count("{id}") != 1 or pattern.count("{group}") > 1:
        raise InputError(
            f"The pattern {pattern!r} must hold {{id}} once, as in '{{id}}_mask.png' or "
            "'{group}/{id}.*'."
        )
    parts = re.split(r"(\{id\}|\{group\}|\*\*/|\*)", pattern)
    meanings = {
        "{id}": r"(?P<id>[^/]+)",
        "{group}": r"(?P<group>[^/]+)",
        "**/": r"(?:.*/)?",
        "*": r"[^/]*",
    }
    return re.compile("".join(meanings.get(part, re.escape(part)) for part in parts))


def _walk(folder: Path, *, deep: bool) -> Iterator[Path]:
    """All files of a folder, without hidden ones, and of its folders, if they are wanted.

    Folders that are links are not entered: they may lead out of the dataset, or in a circle.
    """
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif deep and not path.is_symlink():
            yield from _walk(path, deep=True)


def guess_patterns(images_folder: Path, masks_folder: Path) -> tuple[str, str]:
    """Find the patterns by which most images have a mask.

    Args:
        images_folder: The folder of images.
        masks_folder: The folder of masks.

    Returns:
        The patterns of images and masks; those of equal names unless others fit far better.
    """
    bases = [PLAIN]
    if images_folder == masks_folder or not _holds_files(images_folder):
        bases = [NESTED, DEEP, PLAIN]
    for base in bases:
        images, masks = Names(images_folder, base), Names(masks_folder, base)
        if not images.files or not masks.files:
            continue
        plain = len(images.stems & masks.stems)
        if images_folder != masks_folder and 2 * plain >= len(images.stems):
            return base, base
        for image_end, mask_end in _endings(images.stems, masks.stems):
            image = base.replace("{id}", "{id}" + image_end)
            mask = base.replace("{id}", "{id}" + mask_end)
            if _fits(images.stems, masks.stems, image_end, mask_end):
                return image, mask
    return PLAIN, PLAIN


def _holds_files(folder: Path) -> bool:
    return any(
        ending(path) in SUFFIXES and not path.name.startswith(".") and path.is_file()
        for path in folder.iterdir()
    )


def _endings(images: Iterable[str], masks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of endings that all images and all masks may have."""
    images, masks = list(images), list(masks)
    image_ends = ["", *(end for end in IMAGE_ENDS if _share(images, end) > 0.5)]
    mask_ends = ["", *(end for end in MASK_ENDS if _share(masks, end) > 0)]
    yield from (
        (image_end, mask_end)
        for image_end in image_ends
        for mask_end in mask_ends
        if image_end or mask_end
    )


def _share(names: Collection[str], end: str) -> float:
    return sum(name.endswith(end) for name in names) / max(1, len(names))


def _fits(images: set[str], masks: set[str], image_end: str, mask_end: str) -> bool:
    of_masks = {name.removesuffix(mask_end) for name in masks if name.endswith(mask_end)}
    of_images = {name.removesuffix(image_end) for name in images if name.endswith(image_end)}
    of_images -= {name for name in of_images if mask_end and name.endswith(mask_end)}
    both = of_images & of_masks
    return bool(both) and len(both) >= 0.8 * max(len(of_masks), 1)


def match_ids(ids: Iterable[str], files: Mapping[str, list[Path]]) -> Files:
    """Name masks by the ids of images, if both differ in their Unicode form alone.

    Args:
        ids: The ids of images.
        files: The masks of each name.
    """
    composed = {unicodedata.normalize("NFC", sample_id): sample_id for sample_id in ids}
    wanted = set(composed.values())
    matched: defaultdict[str, list[Path]] = defaultdict(list)
    for name, paths in files.items():
        same = name if name in wanted else composed.get(unicodedata.normalize("NFC", name), name)
        matched[same] += paths
    return dict(matched)


def unread(names: Names) -> str | None:
    """Say what lies in a folder and is not read: other files, and folders of images.

    Returns:
        A sentence, or None if there is nothing.
    """
    used = {file_of(path) for paths in names.files.values() for path in paths}
    endings: Counter[str] = Counter()
    folders: list[str] = []
    example = None
    for path in sorted(names.folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in SYSTEM_FILES or path in used:
            continue
        if path.is_dir():
            inside = sum(1 for inner in _walk(path, deep=True) if inner not in used)
            if inside and not any(path in one.parents for one in used):
                folders.append(f"{path.name} with {inside} files")
            continue
        endings[path.suffix.lower() or "no ending"] += 1
        example = example or path.name
    parts = []
    if endings:
        kinds = ", ".join(f"{count} of {ending}" for ending, count in endings.most_common(4))
        parts.append(f"{endings.total()} files ({kinds}), such as {example}")
    if folders:
        more = f" and {len(folders) - 2} more" if len(folders) > 2 else ""
        parts.append(f"the folders {', '.join(folders[:2])}{more}")
    if not parts:
        return None
    hint = "; data.image_glob='**/{id}.*' reads folders in it too" if folders else ""
    return f"{names.folder} holds {' and '.join(parts)}, which are not read{hint}."
