"""File names: which image and which mask belong to a sample, and which files are not read."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import NamedTuple

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import SUFFIXES
from coseg_lightning.files.volumes import (
    DICOM,
    UnreadableVolumeError,
    advice_on,
    ending,
    file_of,
    is_volume,
    patient_and_series,
    slices_of,
)

PLAIN = "{id}.*"  # the id is a file's name without its ending
NESTED = "{group}/{id}.*"  # one folder for each patient, place or part of the split
DEEP = "**/{id}.*"  # files in any folders
OF_PEOPLE = "{annotator}/{id}.*"  # one folder for the masks of each annotator
BY_PEOPLE = "{id}__{annotator}.*"  # masks of all annotators in one folder
UNNAMED = "unnamed"  # the annotator of a mask without a name, if the image has other masks
# Usual suffixes of the names of images or of masks; longer ones first.
IMAGE_ENDS = ("_leftImg8bit", "_image", "_img", "_sat", "_rgb", "_0000")
MASK_ENDS = (
    *(
        "_gtFine_labelIds",
        "_segmentation",
        "_manual1",
        "_cp_masks",
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
LAST_WORD = re.compile(r"[-_. ][^-_. ]*[^\W\d_][^-_. ]*$")  # with a letter
SYSTEM_FILES = ("thumbs.db", "desktop.ini")
MOST_LOOKED_AT = 100  # files whose names are not read, in search of volumes
Files = dict[str, list[Path]]


class Names:
    """The files of a folder whose names match a pattern.

    Args:
        folder: The folder.
        pattern: A path below the folder. `{id}` stands for the sample, `*` for any text within a
            name, and `**` for any folders. `{group}` is a folder whose name becomes the start of
            the id. `{annotator}` is who drew the mask. Files that match without `{annotator}` are
            read too, without an annotator.
        stems: The possible values of `{id}`, if known. If a name can be split into id and annotator
            in several ways, the longest of these ids is used.

    Attributes:
        files: The files of each sample, or of each annotator's mask, see `mask_key`.
        groups: The group of each sample, if the pattern has one; for a slice its volume, and for a
            DICOM file its patient, or its series if the files name at most one patient.
        stems: The ids in the names, before slices are numbered.
        folders: The first folder in the path of each sample, if there is one.

    Raises:
        InputError: If the pattern does not have exactly one `{id}`, or repeats a placeholder.
    """

    def __init__(
        self, folder: Path, pattern: str = PLAIN, stems: Collection[str] | None = None
    ) -> None:
        self.folder = folder
        self.pattern = pattern
        # Names are compared without .gz, so that an id does not end in .nii.
        found_in = _Pattern(re.sub(r"(?i)(\.nii)\.gz$", r"\1", pattern), stems)
        files: defaultdict[str, list[Path]] = defaultdict(list)
        self.groups: dict[str, str] = {}
        self.stems: set[str] = set()
        self.folders: dict[str, str] = {}
        of_dicom: dict[str, tuple[str, str]] = {}
        for path in sorted(_walk(folder, deep="/" in pattern)):
            name = path.relative_to(folder).as_posix()
            if ending(path) == ".nii.gz":
                name = name[: -len(".gz")]
            is_other = pattern.lower().endswith(".nii.gz") and ending(path) != ".nii.gz"
            match = found_in.match(name) if ending(path) in SUFFIXES and not is_other else None
            if match is None:
                continue
            group, stem = match.groupdict().get("group"), _stem(match)
            self.stems.add(stem)
            annotator = match.groupdict().get("annotator")
            slices = _slices_of(path) if is_volume(path) else [("", path)]
            for number, place in slices:
                files[mask_key(stem + number, annotator)].append(place)
                if "/" in name:
                    self.folders[stem + number] = name.partition("/")[0]
                if group is not None:
                    self.groups[stem + number] = group
                elif is_volume(path):
                    self.groups[stem + number] = stem
            if group is None and ending(path) in DICOM:
                with suppress(UnreadableVolumeError):
                    known = patient_and_series(path)
                    of_dicom |= dict.fromkeys((stem + n for n, _ in slices), known)
        # In anonymised files, one patient may stand for all.
        has_patients = len({patient for patient, _ in of_dicom.values() if patient}) > 1
        for sample_id, (patient, series) in of_dicom.items():
            group = (patient if has_patients else "") or series or self.groups[sample_id]
            self.groups[sample_id] = group
        self.files: Files = dict(files)

    def exclude(self, others: Collection[Path]) -> None:
        """Exclude files that belong to something else."""
        kept = {i: [p for p in paths if p not in others] for i, paths in self.files.items()}
        self.files = {sample_id: paths for sample_id, paths in kept.items() if paths}


def _slices_of(path: Path) -> list[tuple[str, Path]]:
    """List the slices of a volume. If it cannot be read, it is a sample that cannot be read."""
    try:
        return slices_of(path)
    except UnreadableVolumeError:
        return [("", path)]


def mask_key(sample_id: str, annotator: str | None) -> str:
    """Make the key of an annotator's mask: `id/annotator`. Ids have no slash, so none is a key."""
    return sample_id if annotator is None else f"{sample_id}/{annotator}"


def split_key(key: str) -> tuple[str, str | None]:
    """Split a key of `mask_key` into the sample and the annotator."""
    sample_id, slash, annotator = key.partition("/")
    return sample_id, annotator if slash else None


def without_annotator(pattern: str) -> str | None:
    """Return the pattern that matches masks without an annotator; None if the name is all."""
    if re.search(r"(^|/)\{annotator\}(\.[^/]*)?$", pattern):
        return None
    return re.sub(r"\{annotator\}/|[-_. ]+\{annotator\}|\{annotator\}[-_. ]*", "", pattern)


class _Pattern:
    """Finds group, id and annotator in names; the arguments are those of `Names`."""

    def __init__(self, pattern: str, stems: Collection[str] | None) -> None:
        self._pattern, self._stems = pattern, stems
        self._expression = _expression(pattern)
        plain = without_annotator(pattern) if "{annotator}" in pattern else None
        self._plain = None if plain is None else _expression(plain)
        self._of_length: dict[int, re.Pattern[str]] = {}

    def match(self, name: str) -> re.Match[str] | None:
        match = self._expression.fullmatch(name)
        if "{annotator}" not in self._pattern:
            return match
        plain = None if self._plain is None else self._plain.fullmatch(name)
        if match is None or self._stems is None:
            return match or plain
        if plain is not None and _stem(plain) in self._stems:
            return plain
        for length in range(len(name), 0, -1):
            if length not in self._of_length:
                self._of_length[length] = _expression(self._pattern, length)
            other = self._of_length[length].fullmatch(name)
            if other is not None and _stem(other) in self._stems:
                return other
        return match


def _stem(match: re.Match[str]) -> str:
    group = match.groupdict().get("group")
    return match["id"] if group is None else f"{group}_{match['id']}"


def _expression(pattern: str, length: int | None = None) -> re.Pattern[str]:
    """Compile a pattern. If a length is given, the id must have it."""
    if pattern.count("{id}") != 1 or max(map(pattern.count, ("{group}", "{annotator}"))) > 1:
        raise InputError(
            f"The pattern {pattern!r} must hold {{id}} exactly once, as in '{{id}}_mask.png' or "
            "'{group}/{id}.*'."
        )
    parts = re.split(r"(\{id\}|\{group\}|\{annotator\}|\*\*/|\*)", pattern)
    meanings = {
        "{id}": r"(?P<id>[^/]+)" if length is None else rf"(?P<id>[^/]{{{length}}})",
        "{group}": r"(?P<group>[^/]+)",
        "{annotator}": r"(?P<annotator>[^/]+)",
        "**/": r"(?:.*/)?",
        "*": r"[^/]*",
    }
    return re.compile("".join(meanings.get(part, re.escape(part)) for part in parts))


def _walk(folder: Path, *, deep: bool) -> Iterator[Path]:
    """Yield all files of a folder that are not hidden, and those of its folders if `deep`.

    Folders that are links are skipped: they may lead out of the dataset, or in a circle.
    """
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif deep and not path.is_symlink():
            yield from _walk(path, deep=True)


def guess_patterns(
    images_folder: Path, masks_folder: Path, *, may_be_people: bool = True
) -> tuple[str, str]:
    """Find the patterns with which most images have a mask.

    Args:
        images_folder: The folder of images.
        masks_folder: The folder of masks.
        may_be_people: Whether masks may be by several annotators.

    Returns:
        The patterns of images and masks. Equal names are preferred if half of the images have one.

    Raises:
        InputError: If an image has masks both outside and inside of annotators' folders.
    """
    if may_be_people and images_folder != masks_folder:
        of_people = _guess_people(images_folder, masks_folder)
        if of_people is not None:
            return of_people
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
            if not _fits(images.stems, masks.stems, image_end, mask_end):
                continue
            # The ending may begin with the folder's name, as in `{group}/ct.nii.gz`.
            if base != NESTED or (
                Names(images_folder, image).files and Names(masks_folder, mask).files
            ):
                return image, mask
    return PLAIN, PLAIN


def _guess_people(images_folder: Path, masks_folder: Path) -> tuple[str, str] | None:
    """Find the patterns of masks by several annotators; None if there seem to be none.

    Raises:
        InputError: If an image has masks both outside and inside of annotators' folders.
    """
    inside = list(masks_folder.iterdir())
    has_folders = any(path.is_dir() for path in inside)
    if not (has_folders or any("__" in path.name for path in inside)):
        return None
    if not _holds_files(images_folder):
        return None  # their folders are groups
    names = Names(images_folder, PLAIN).stems
    for image_end in ["", *(end for end in IMAGE_ENDS if _share(names, end) > 0.5)]:
        image = PLAIN.replace("{id}", "{id}" + image_end)
        images = Names(images_folder, image)
        for pattern in [*([OF_PEOPLE] if has_folders else []), BY_PEOPLE]:
            people = _people_of(Names(masks_folder, pattern, images.stems).files, images.files)
            named = {i: found - {None} for i, found in people.items()}
            everybody = {name for found in named.values() for name in found}
            if any(str(name).lower() in PART_FOLDERS for name in everybody):
                continue
            if pattern == OF_PEOPLE and any(len(found) > 1 for found in named.values()):
                _check_beside(masks_folder, people)
                return image, pattern
            # A name after the id is an annotator's only if there are several names.
            if pattern == BY_PEOPLE and len(everybody) > 1:
                if any(len(found) > 1 for found in people.values()):
                    return image, pattern
                if sum(map(bool, named.values())) >= 0.8 * len(images.files):
                    return image, pattern
    return None


def _people_of(files: Files, ids: Collection[str]) -> dict[str, set[str | None]]:
    """Return the annotators of each sample's masks, from the keys of `Names.files`."""
    people: defaultdict[str, set[str | None]] = defaultdict(set)
    for sample_id, annotator in map(split_key, files):
        if sample_id in ids:
            people[sample_id].add(annotator)
    return people


def _check_beside(folder: Path, people: Mapping[str, set[str | None]]) -> None:
    """Raise an `InputError` if an image has masks both outside and inside of the folders."""
    both = sorted(i for i, found in people.items() if None in found and len(found) > 1)
    if both:
        names = sorted({str(name) for i in both for name in people[i] - {None}})
        raise InputError(
            f"{folder} holds a mask of {both[0]} and more of its masks in the folders "
            f"{', '.join(names[:3])}, which may be by other annotators, or old; set "
            f"data.mask_glob='{OF_PEOPLE}' to read all of them, or '{PLAIN}' to leave the folders "
            "out."
        )


def _holds_files(folder: Path) -> bool:
    return any(
        ending(path) in SUFFIXES and not path.name.startswith(".") and path.is_file()
        for path in folder.iterdir()
    )


def _endings(images: Iterable[str], masks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of suffixes that the names of images and masks may have."""
    images, masks = list(images), list(masks)
    image_ends = ["", *(end for end in IMAGE_ENDS if _share(images, end) > 0.5)]
    mask_ends = ["", *(end for end in MASK_ENDS if _share(masks, end) > 0)]
    image_ends += [end for end in _last_word(images) if end not in image_ends]
    mask_ends += [end for end in _last_word(masks) if end not in mask_ends]
    yield from (
        (image_end, mask_end)
        for image_end in image_ends
        for mask_end in mask_ends
        if image_end or mask_end
    )


def _last_word(names: Collection[str]) -> list[str]:
    """Return the word with which all names end, as in `21_training`, if there is one."""
    words = {found.group() if (found := LAST_WORD.search(name)) else "" for name in names}
    return list(words) if len(names) > 1 and len(words) == 1 and "" not in words else []


def _share(names: Collection[str], end: str) -> float:
    return sum(name.endswith(end) for name in names) / max(1, len(names))


def _fits(images: set[str], masks: set[str], image_end: str, mask_end: str) -> bool:
    of_masks = {name.removesuffix(mask_end) for name in masks if name.endswith(mask_end)}
    of_images = {name.removesuffix(image_end) for name in images if name.endswith(image_end)}
    of_images -= {name for name in of_images if mask_end and name.endswith(mask_end)}
    both = of_images & of_masks
    return bool(both) and len(both) >= 0.8 * max(len(of_masks), 1)


def advice_on_volumes(folder: Path) -> str | None:
    """Say what to do with volumes of a folder that are not read because of their ending."""
    others = (path for path in sorted(_walk(folder, deep=True)) if ending(path) not in SUFFIXES)
    return next(filter(None, map(advice_on, islice(others, MOST_LOOKED_AT))), None)


def files_inside(folder: Path) -> list[str]:
    """List the image files in the folders of a folder, by their paths in it."""
    files = (path for path in sorted(_walk(folder, deep=True)) if ending(path) in SUFFIXES)
    return [path.relative_to(folder).as_posix() for path in files]


def holds_files_inside(folder: Path) -> bool:
    """Whether a folder, or a folder in it, holds image files."""
    return any(ending(path) in SUFFIXES for path in _walk(folder, deep=True))


class Likely(NamedTuple):
    """How masks may be named that do not have the names of their images.

    Attributes:
        of_people: The pattern, if the names hold an annotator's, such as
            `{annotator}-final/{id}_seg.*`; else None.
        plain: The pattern, if they hold none, such as `{id}_seg.*`; else None.
        several: Whether images have several masks.
    """

    of_people: str | None = None
    plain: str | None = None
    several: bool = False


def likely_patterns(names: Collection[str], ids: Collection[str]) -> Likely:
    """Find how masks may be named, if all names hold an id in the same way.

    Args:
        names: The paths of masks in their folder, such as `anna-final/P001_seg.png`.
        ids: The ids of the images.
    """
    split = [around for name in names if (around := _around_id(name, ids)) is not None]
    if len(split) < max(1, 0.8 * len(names)) or len({around.marks for around in split}) > 1:
        return Likely()
    several = len({around.id for around in split}) < len(split)
    text, people = "", list[str]()
    for mark, *values in zip(split[0].marks, *(around.parts for around in split), strict=True):
        start, end = _shared_ends(values)
        middles = [value[len(start) : len(value) - len(end)] for value in values]
        if any(middles):
            if not all(map(_is_name, middles)) or people not in ([], middles):
                return Likely(several=several)
            text += start + ("*" if people else "{annotator}") + end
            people = middles
        else:
            text += start
        text += mark
    if not people:
        follows = re.fullmatch(r"(.*\{id\}[^/]*[-_. ])[^-_. /]+", text)
        return Likely(follows and f"{follows[1]}{{annotator}}.*", f"{text}.*", several)
    # Where nearly every file has a name of its own, these are no persons.
    is_telling = 2 * len(set(people)) <= len(split) and all(around.is_word for around in split)
    return Likely(f"{text}.*" if is_telling else None, None, several)


class _Around(NamedTuple):
    """A path split at an image's id.

    Attributes:
        id: The id.
        parts: The parts of the path without the id.
        marks: What follows each part: `/`, `{id}` or nothing.
        is_word: Whether the id stands between separators.
    """

    id: str
    parts: tuple[str, ...]
    marks: tuple[str, ...]
    is_word: bool


def _around_id(name: str, ids: Collection[str]) -> _Around | None:
    """Split a path at the longest id in the file's name, or else in a folder's.

    Returns None if there is no id, or if it may be one of several.
    """
    parts = name.split("/")
    parts[-1] = parts[-1][: len(parts[-1]) - len(ending(Path(name)))]
    for place in reversed(range(len(parts))):
        text = parts[place]
        starts = [match.start() for match in re.finditer(r"^|(?<=[-_. ])", text)]
        ends = [match.start() for match in re.finditer(r"(?=[-_. ])|$", text)]
        found = [(i, j) for i in starts for j in ends if i < j and text[i:j] in ids]
        is_word = bool(found)
        found = found or [(0, j) for j in range(1, len(text)) if text[:j] in ids]
        if found:
            start, end = max(found, key=lambda spot: spot[1] - spot[0])
            sample_id = text[start:end]
            if {text[i:j] for i, j in found if j - i == end - start} != {sample_id}:
                return None
            marks = ["/"] * place + ["{id}"] + ["/"] * (len(parts) - 1 - place) + [""]
            around = [*parts[:place], text[:start], text[end:], *parts[place + 1 :]]
            around = ["*" if part == sample_id else part for part in around]
            return _Around(sample_id, tuple(around), tuple(marks), is_word)
    return None


def _is_name(text: str) -> bool:
    """Whether a part of a path may be a person's name."""
    return bool(text) and text[0] not in "-_. " and text[-1] not in "-_. " and "*" not in text


def _shared_ends(values: Sequence[str]) -> tuple[str, str]:
    """Return the start and the end of all texts; they end and begin between words."""
    if len(set(values)) == 1:
        return values[0], ""
    words = [re.findall(r"[^-_. ]*[-_. ]|[^-_. ]+$", value) for value in values]
    start = "".join(of[0] for of in takewhile(_are_equal, zip(*words, strict=False)))
    start = re.sub(r"[^-_. ]*$", "", start)
    words = [re.findall(r"^[^-_. ]+|[-_. ][^-_. ]*", value[len(start) :]) for value in values]
    backwards = zip(*(reversed(of) for of in words), strict=False)
    end = "".join(reversed([of[0] for of in takewhile(_are_equal, backwards)]))
    return start, re.sub(r"^[^-_. ]*", "", end)


def _are_equal(values: Sequence[str]) -> bool:
    return len(set(values)) == 1


def match_ids(ids: Iterable[str], files: Mapping[str, list[Path]]) -> Files:
    """Replace masks' names by the images' ids if they differ only in their Unicode form.

    Args:
        ids: The ids of images.
        files: The masks of each name.
    """
    id_of = _finder(ids)
    matched: defaultdict[str, list[Path]] = defaultdict(list)
    for key, paths in files.items():
        name, annotator = split_key(key)
        same = id_of(name)
        if annotator is not None:
            annotator = unicodedata.normalize("NFC", annotator)
        matched[mask_key(same, annotator)] += paths
    return dict(matched)


def _finder(ids: Iterable[str]) -> Callable[[str], str]:
    """Return a function from a name to the id that it is in any Unicode form, else to itself."""
    wanted = set(ids)
    composed = {unicodedata.normalize("NFC", sample_id): sample_id for sample_id in wanted}

    def id_of(name: str) -> str:
        return name if name in wanted else composed.get(unicodedata.normalize("NFC", name), name)

    return id_of


def ids_of(names: Iterable[str], ids: Iterable[str]) -> dict[str, str]:
    """Return the id of each name that a user wrote, which may differ in its Unicode form alone.

    Raises:
        InputError: If two names are of the same id.
    """
    id_of = _finder(ids)
    known_as = {name: id_of(name) for name in names}
    for sample_id, times in Counter(known_as.values()).items():
        if times > 1:
            raise InputError(f"{sample_id} is named in {times} Unicode forms; name it once.")
    return known_as


def unread(names: Names) -> str | None:
    """Describe the files and folders of a folder that are not read.

    Returns:
        A sentence, or None if there are none.
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
    hint = "; data.image_glob='**/{id}.*' reads these folders too" if folders else ""
    advice = advice_on_volumes(names.folder)
    hint = (f"; {advice}" if advice else "") + hint
    return f"{names.folder} holds {' and '.join(parts)}, which are not read{hint}."
