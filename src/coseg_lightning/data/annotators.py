"""Who drew each mask, and images with masks by several annotators."""

import hashlib
import json
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.inspection import FileInfo, Inspection
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.files.mask_rules import IGNORE_INDEX, MaskRules
from coseg_lightning.files.naming import UNNAMED, mask_key, split_key
from coseg_lightning.labels.fusion import LABELS, Votes, best, majority, staple
from coseg_lightning.labels.masks import Mask
from coseg_lightning.ranking.people import name_of
from coseg_lightning.seeding import derive_rng

TABLE = "annotators.csv"
ANNOTATORS = "annotators"  # the part of a run's identity that says who drew its masks
COLUMNS = ("id", "annotator")
# The error values that spreadsheets show where a formula failed.
ERRORS = ("#REF!", "#N/A", "#NAME?", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!")
# Images by which it is checked that masks are of the same objects: as many as are read, as are
# compared, and as are needed.
MOST_READ, COMPARED, FEWEST_COMPARED = 100, 10, 3
WITHIN, MUCH = 0.99, 0.85  # share of a mask within another; mean Dice of persons who agree
FEWEST_PIXELS = 9  # of masks that are compared
LITTLE = 0.3  # mean Dice of two masks of an image below which they may be of different classes
MISSING = ("NAN", "NULL", "NONE", "N/A", "<NA>")  # what programs write for a missing name

Rows = Sequence[tuple[str, str]]


def read_annotators(path: Path) -> list[tuple[str, str]]:
    """Read the id and the annotator in each row of a table. Other columns are ignored.

    Args:
        path: A CSV file with the columns `id` and `annotator`.

    Raises:
        InputError: If the file is not such a table.
    """
    rows = read_table(path, COLUMNS, guarded=False)
    return [(row["id"].strip(), row["annotator"].strip()) for row in rows]


def annotator_rows(given: Any, root: Path) -> tuple[str, list[tuple[str, str]]]:
    """Read who drew each mask from the setting `data.annotators`.

    Args:
        given: `auto`, a file, pairs of id and annotator, a mapping from id to annotator, or None.
        root: The dataset's folder, in which `auto` looks for `annotators.csv`.

    Returns:
        The name of the source, for messages, and the pairs of id and annotator.

    Raises:
        InputError: If the file is missing or is not such a table, or `given` is something else.
    """
    if given is None:
        return "", []
    if isinstance(given, str | Path):
        path = Path(root / TABLE if given == "auto" else given).expanduser()
        if given == "auto" and not (path.exists() or path.is_symlink()):
            return "", []
        if not path.exists() and (root / path).exists():
            path = root / path
        return str(path), read_annotators(path)
    try:
        pairs = given.items() if isinstance(given, Mapping) else given
        named = [(str(i), name_of(name), name) for i, name in pairs]
        # None and NaN stand for nobody; an empty text, as of a table, is reported.
        known = [(i, text) for i, text, name in named if text or isinstance(name, str)]
        return "data.annotators", known
    except (TypeError, ValueError):
        raise InputError(
            f"data.annotators={given} must be auto, null, or a CSV file with the columns id and "
            "annotator."
        ) from None


def check_annotators(
    source: str,
    rows: Rows,
    ids: Collection[str],
    by_file: Mapping[str, Collection[str | None]],
    inspection: Inspection,
    *,
    hidden: bool = False,
) -> dict[str, str]:
    """Report rows with duplicate or unknown ids, bad names, or names that contradict the files.

    Args:
        source: The name of the rows' source, for messages.
        rows: Pairs of id and annotator.
        ids: The ids of the images.
        by_file: For each image, the annotators that the names of its mask files give.
        inspection: Receives the problems.
        hidden: Whether no problem may name a person.

    Returns:
        The annotator of each image with one mask, by id.
    """
    composed = {unicodedata.normalize("NFC", sample_id): sample_id for sample_id in ids}
    names: dict[str, str] = {}
    contradictory = set()
    for given, count in Counter(given for given, _ in rows).items():
        if count > 1:
            said = {text for one, text in rows if one == given}
            once = "list it once, with one name" if len(said) > 1 else "list it once"
            contradictory |= {given} if len(said) > 1 else set()
            inspection.add(
                "annotator twice",
                [],
                f"{source} lists {given} {count} times; {once}.",
            )
    for given, text in reversed(dict(reversed(rows)).items()):  # the first of each id
        if given in contradictory:
            continue
        sample_id = composed.get(unicodedata.normalize("NFC", given))
        name = unicodedata.normalize("NFC", text.replace("\xa0", " ").strip())
        problem = _problem_of_name(name)
        if sample_id is None:
            inspection.add("annotator of no image", [], _unknown(source, given, composed))
        elif problem is not None:
            shown = "a name" if hidden else f"the annotator {name!r}"
            inspection.add("annotator", [], f"{source} gives {sample_id} {shown}{problem}")
        elif len(by_file.get(sample_id, ())) > 1:
            inspection.add(
                "annotator",
                [],
                f"{source} names an annotator of {sample_id}, but it has several masks, and their "
                "file names already give the annotators; remove the row.",
            )
        else:
            others = {other for other in by_file.get(sample_id, ()) if other not in (None, name)}
            if others:
                other = "another person" if hidden else min(map(str, others))
                inspection.add(
                    "annotator",
                    [],
                    f"{source} says that {'one person' if hidden else name} drew the mask of "
                    f"{sample_id}, but its file name says {other}; correct one of them.",
                )
                continue
            names[sample_id] = name
    return names


def _problem_of_name(name: str) -> str | None:
    if not name:
        return "; give a name, or remove the row."
    if name.upper() in ERRORS:
        return ", an error of a spreadsheet; give a name."
    if name.upper() in MISSING:
        return ", which stands for a missing name; give a name, or remove the row."
    if not name.isprintable():
        return "; give a name on one line, without control characters."
    return None


def _unknown(source: str, given: str, composed: Mapping[str, str]) -> str:
    text = f"{source} names {given or 'an empty id'}, but there is no such image"
    near = [i for i in composed if i.lstrip("0") == given.lstrip("0") != ""]
    if near:
        return f"{text}. A spreadsheet drops leading zeros, so perhaps {near[0]} is meant."
    stem = Path(given.removesuffix(".gz")).stem
    if stem in composed and stem != given:
        return f"{text}. An id is a file name without its extension: {stem}."
    joined = re.sub(r"\.nii(\.gz)?$", "", given).replace("/", "_")
    if joined in composed:
        return f"{text}. The id of a file in a folder is {joined}."
    slices = [i for i in composed if joined and re.fullmatch(re.escape(joined) + r"_\d+", i)]
    if slices:
        return f"{text}. A volume's slices are listed each, as {slices[0]}."
    one, double, _ = given.partition("__")
    if double and one in composed:
        return f"{text}. A row names an image, as {one}, not the mask of one person."
    near = [i for i in composed if i.casefold() == given.casefold()]
    return f"{text}. Letter case matters: {near[0]}." if near else f"{text}; remove the row."


def warn_of_similar_names(
    names: Iterable[str], inspection: Inspection, *, hidden: bool = False
) -> None:
    """Warn of annotators whose names differ only in letter case, spaces, or zeros."""
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        plain = "".join(name.casefold().split())
        number = re.fullmatch(r"0*(\d+)(\.0*)?", plain)
        alike[number[1] if number else plain].add(name)
    for found in alike.values():
        if len(found) > 1:
            who = "of a similar name" if hidden else " and ".join(map(repr, sorted(found)))
            inspection.warn(
                "similar names",
                [],
                f"The annotators {who} count as different people; if they are one person, spell "
                "the name in one way.",
            )


def keys_by_image(files: Iterable[str]) -> dict[str, dict[str, str]]:
    """Group the masks' keys by image and annotator.

    Args:
        files: The masks' keys, see `files.naming.mask_key`.

    Returns:
        For each image, the key of each annotator's mask by the annotator's name, without spaces
        around it.

    Raises:
        InputError: If two masks of an image have the same name.
    """
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for key in sorted(files):
        sample_id, name = split_key(key)
        before = found[sample_id].setdefault(name_of(name), key)
        if before != key:
            raise InputError(
                f"{sample_id} has two masks by {name_of(name)!r}, whose files differ in spaces "
                "around the name alone; keep one of them."
            )
    for sample_id, keys in found.items():  # masks without a name
        if len(keys) > 1 and "" in keys and UNNAMED not in keys:
            found[sample_id] = {UNNAMED: keys[""], **{n: k for n, k in keys.items() if n}}
    return dict(found)


@dataclass(frozen=True, eq=False)
class Fusion:
    """Fuses the masks that several annotators drew of an image into one label.

    The label depends only on the image's own masks and, for `random`, on the seed. It is therefore
    the same in all processes, parts and runs. Fused labels are kept in memory, compressed.

    Args:
        folder: The mask files.
        label: How masks are fused, one of `LABELS`.
        seed: The seed for `random`.
        image: Reads an image by its id. Only `best` needs it.
    """

    folder: MaskFolder
    label: str = "majority"
    seed: int = 0
    image: Callable[[str], NDArray[Any]] | None = None
    _made: dict[str, tuple[tuple[int, ...], str, bytes]] = field(default_factory=dict, repr=False)

    def read(self, sample_id: str, keys: Mapping[str, str]) -> Mask:
        """Return the fused mask `(H, W)` of an image.

        Args:
            sample_id: The image.
            keys: The keys of its masks in `folder`, by annotator.
        """
        if sample_id not in self._made:
            mask = self._make(sample_id, keys)
            self._made[sample_id] = (
                mask.shape,
                mask.dtype.str,
                zlib.compress(np.ascontiguousarray(mask).tobytes(), 1),
            )
        shape, dtype, content = self._made[sample_id]
        return np.frombuffer(bytearray(zlib.decompress(content)), dtype).reshape(shape)

    def _make(self, sample_id: str, keys: Mapping[str, str]) -> Mask:
        if self.label == "random":
            drawn = derive_rng(self.seed, "label", sample_id).integers(len(keys))
            return self.folder.read(list(keys.values())[int(drawn)])
        masks = [self.folder.read(key) for key in keys.values()]
        if self.label == "best":
            assert self.image is not None
            return masks[best(self.image(sample_id), masks)]
        # With `soft`, networks learn from vote shares. Ranking and correction use the majority.
        return staple(masks) if self.label == "staple" else majority(masks)

    def digest(self, keys: Mapping[str, str]) -> str:
        """Return a digest of the files and of the way they are fused."""
        files = [[name, self.folder.file_info[key]["digest"]] for name, key in keys.items()]
        how = [self.label, self.seed if self.label == "random" else None]
        content = json.dumps([how, files]).encode(errors="surrogatepass")
        return hashlib.blake2b(content, digest_size=16).hexdigest()


class SeveralMasks:
    """The images with masks by several annotators.

    Args:
        entries: For each image, its `Fusion`, and the keys of its masks by annotator.
    """

    def __init__(self, entries: Mapping[str, tuple[Fusion, Mapping[str, str]]]) -> None:
        self._entries = dict(entries)

    @property
    def ids(self) -> list[str]:
        """The images."""
        return list(self._entries)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._entries

    def names(self, sample_id: str) -> list[str]:
        """Return the annotators of an image, in order."""
        return list(self._entries[sample_id][1])

    def mask(self, sample_id: str, name: str) -> Mask:
        """Read one annotator's mask of an image, `(H, W)` class ids at the mask's own size."""
        fusion, keys = self._entries[sample_id]
        return fusion.folder.read(keys[name])

    @property
    def classes(self) -> int:
        """K, the number of classes, background included."""
        return max(fusion.folder.classes for fusion, _ in self._entries.values())

    @property
    def soft_classes(self) -> int | None:
        """K if networks learn from vote shares, else None."""
        is_soft = any(fusion.label == "soft" for fusion, _ in self._entries.values())
        return self.classes if is_soft else None

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename annotators: `names` maps old names to new ones."""
        for sample_id, (fusion, keys) in self._entries.items():
            renamed = {names.get(name, name): key for name, key in keys.items()}
            self._entries[sample_id] = (fusion, renamed)

    def fuse(self) -> None:
        """Fuse the masks of all images now, so that processes that start later need not."""
        for sample_id in self.ids:
            self.fused(sample_id)

    def fused(self, sample_id: str) -> Mask:
        """Return the label that is fused from all masks of an image, `(H, W)`."""
        fusion, keys = self._entries[sample_id]
        return fusion.read(sample_id, keys)

    def only(self, ids: Iterable[str]) -> "SeveralMasks | None":
        """Return the entries of some images, or None if there are none."""
        entries = {i: self._entries[i] for i in ids if i in self._entries}
        return SeveralMasks(entries) if entries else None

    def joined(self, other: "SeveralMasks") -> "SeveralMasks":
        """Return these images together with those of another part."""
        return SeveralMasks({**self._entries, **{i: other._entries[i] for i in other.ids}})

    def facts(self) -> dict[str, Any]:
        """Measure the annotators' agreement in foreground Dice, for `summary.json`.

        Returns:
            `fusion`; `images_with_several`, the number of images; `agreement`, the mean over pairs
            of annotators of an image; and `annotators`, with each annotator's number of `masks` and
            mean `agreement` with the others, as in `masks.csv`.
        """
        of_pairs: list[float] = []
        of_person: defaultdict[str, list[float]] = defaultdict(list)
        for sample_id in self.ids:
            names = self.names(sample_id)
            votes = Votes.of([self.mask(sample_id, name) for name in names])
            pairs = votes.pairwise()[np.triu_indices(len(names), 1)]
            if not np.isnan(pairs).all():
                of_pairs.append(float(np.nanmean(pairs)))
            for name, value in zip(names, votes.agreement(), strict=True):
                of_person[name].append(float(value))
        fusions = {fusion.label for fusion, _ in self._entries.values()}
        return {
            "fusion": "+".join(sorted(fusions)),
            "images_with_several": len(self._entries),
            "agreement": _mean(of_pairs),
            "annotators": {
                name: {"masks": len(of_person[name]), "agreement": _mean(of_person[name])}
                for name in sorted(of_person)
            },
        }


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else None


def label_facts(dataset: Any) -> dict[str, Any]:
    """Return the part `labels` of `summary.json`. It is empty if each image has one mask."""
    several = several_of(dataset)
    return {} if several is None else {"labels": several.facts()}


def several_of(dataset: Any) -> SeveralMasks | None:
    """Return a dataset's images with several masks, or None if it has none."""
    several: SeveralMasks | None = getattr(dataset, "several", None)
    return several


def annotators_of(dataset: Any) -> dict[str, str]:
    """Return the known annotators of a dataset's masks, by id."""
    return dict(getattr(dataset, "annotators", {}))


class FusedMasks:
    """The masks of a folder in which images may have several. It is read like a `MaskFolder`.

    Args:
        fusion: Fuses the masks of one image.
        keys: The keys of each image's usable masks, by annotator.

    Attributes:
        file_info: Size and digest of each image's label.
        several: The images with several masks, or None.
        annotators: The annotator of each image with one mask, if the file's name gives it.
    """

    def __init__(self, fusion: Fusion, keys: Mapping[str, Mapping[str, str]]) -> None:
        self._fusion = fusion
        self._keys = {sample_id: dict(masks) for sample_id, masks in keys.items() if masks}
        infos = fusion.folder.file_info
        self.file_info: dict[str, FileInfo] = {}
        self.annotators: dict[str, str] = {}
        for sample_id, masks in self._keys.items():
            first = infos[next(iter(masks.values()))]
            self.file_info[sample_id] = first
            if len(masks) > 1:
                self.file_info[sample_id] = {**first, "digest": fusion.digest(masks)}
            elif (name := next(iter(masks))) not in ("", UNNAMED):
                self.annotators[sample_id] = name
        several = {i: (fusion, masks) for i, masks in self._keys.items() if len(masks) > 1}
        self.several = SeveralMasks(several) if several else None

    @property
    def rules(self) -> MaskRules:
        """The rules that say what the files' values mean."""
        return self._fusion.folder.rules

    def key(self, sample_id: str) -> str:
        """Return the key of an image's first mask, see `files.naming.mask_key`."""
        return next(iter(self._keys[sample_id].values()))

    def read(self, sample_id: str) -> Mask:
        """Read the label of one image, `(H, W)` class ids, 255 for unlabelled pixels."""
        masks = self._keys.get(sample_id, {"": mask_key(sample_id, None)})
        if len(masks) == 1:
            return self._fusion.folder.read(next(iter(masks.values())))
        return self._fusion.read(sample_id, masks)


def doubt_of_agreement(
    several: SeveralMasks, inspection: Inspection, *, hidden: bool = False
) -> str | None:
    """Check by some images whether their masks are of the same objects.

    Masks are compared where both are labelled, and if both have some pixels of foreground there.

    Args:
        several: The images with several masks.
        inspection: Receives a warning if the masks agree little, or lie within each other.
        hidden: Whether no person is named.

    Returns:
        A sentence if the masks of no image overlap, as those of classes or single objects.
    """
    dice: list[float] = []
    within: dict[tuple[str, str], list[bool]] = {}
    of_image = ""
    for sample_id in several.ids[:: max(1, len(several.ids) // MOST_READ)]:
        masks = {name: several.mask(sample_id, name) for name in several.names(sample_id)}
        every = {n: np.where(mask == IGNORE_INDEX, mask, mask > 0) for n, mask in masks.items()}
        by_name = {n: mask for n, mask in every.items() if (mask == 1).sum() >= FEWEST_PIXELS}
        drawn = list(by_name.values())
        if len({mask.shape for mask in drawn}) != 1 or len(drawn) < 2:
            continue
        labelled = np.logical_and.reduce([mask != IGNORE_INDEX for mask in drawn])
        if min(int((mask[labelled] == 1).sum()) for mask in drawn) < FEWEST_PIXELS:
            continue
        dice.append(float(np.nanmean(Votes.of(drawn).pairwise())))
        of_image = of_image or sample_id
        for (inner, a), (outer, b) in permutations(by_name.items(), 2):
            inside = (b[labelled & (a == 1)] == 1).mean()
            within.setdefault((inner, outer), []).append(bool(inside >= WITHIN))
        if len(dice) == COMPARED:
            break
    if len(dice) < FEWEST_COMPARED:
        return None
    if not any(dice):
        return (
            f"The masks of an image never overlap, such as those of {of_image}, so that they are "
            "probably of different classes or single objects, and not by different persons; join "
            "them into one mask for each image, which holds class ids."
        )
    nested = [pair for pair, is_in in within.items() if all(is_in) and len(is_in) == len(dice)]
    if np.mean(dice) < LITTLE:
        inspection.warn(
            "little agreement",
            [],
            f"The masks of an image agree little: the mean Dice of two is {np.mean(dice):.2f} in "
            f"{len(dice)} images, such as {of_image}. If they are of different classes or objects, "
            "and not by different persons, join them into one mask for each image.",
        )
    elif nested and np.mean(dice) < MUCH:
        inner, outer = ("one person", "another") if hidden else nested[0]
        inspection.warn(
            "nested",
            [],
            f"The masks of {inner} lie within those of {outer} in all {len(dice)} images that were "
            "compared. If these are two classes, such as a part of an object, and not two persons, "
            "join them into one mask for each image, which holds class ids.",
        )
    return None


def check_label(label: str | None) -> None:
    """Raise an `InputError` unless `data.label` is a known way to fuse masks, or null."""
    if label is not None and label not in LABELS:
        raise InputError(f"data.label={label} must be {', '.join(LABELS[:-1])} or {LABELS[-1]}.")


def check_several(
    label: str | None,
    keys: Mapping[str, Mapping[str, str]],
    *,
    tile: int | None,
) -> None:
    """Raise an `InputError` if `data.label` has nothing to fuse, or if tiles have several masks.

    Args:
        label: `data.label`.
        keys: The keys of each image's masks, by annotator.
        tile: `data.tile`.
    """
    example = next((i for i, masks in keys.items() if len(masks) > 1), None)
    if example is None and label is not None:
        raise InputError(
            f"data.label={label} would have no effect, since no image has several masks; leave it "
            "out, or name the masks' folders, as in 'data.masks=[masks_anna,masks_ben]'."
        )
    if example is not None and tile is not None:
        raise InputError(
            f"data.tile={tile} does not work with several masks per image, as for {example}; fuse "
            "them first (a run or an audit without data.tile, then coseg apply), or leave it out."
        )
