"""Which part of a dataset each sample is in: training, validation or test."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from coseg_lightning.data.folder_checks import warn_of_few_groups
from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table, text_encoding
from coseg_lightning.files.inspection import Inspection
from coseg_lightning.files.naming import PART_FOLDERS, Names, ids_of
from coseg_lightning.seeding import derive_rng

YES, NO = ("1", "1.0", "yes", "true"), ("", "0", "0.0", "no", "false")  # in the column trusted
SPLITS = ("train", "val", "test")


class Division(NamedTuple):
    """The part of each sample, and what decided it.

    Attributes:
        parts: The part of each sample that is used: train, val or test.
        named: The samples that the source names, used or not.
        source: Where it was read: a table, folders, or lists.
        has_table: Whether the source is `split.csv`.
        drawn: The parts that were drawn.
        trusted: The samples whose masks somebody checked.
        groups: The group of each sample, such as its patient, if known.
        words: What decided it, in words.
    """

    parts: dict[str, str]
    named: frozenset[str]
    source: Path
    has_table: bool
    drawn: tuple[str, ...]
    trusted: frozenset[str]
    groups: dict[str, str]
    words: str


def divide(
    root: Path,
    images: Names,
    *,
    val_share: float,
    test_share: float,
    seed: int,
    group: str | None,
    trusted_ids: Collection[str] | None,
) -> Division:
    """Decide which samples are for training, for validation and for the test.

    Args:
        root: The dataset's folder.
        images: The images.
        val_share: See `folder_splits`, like all others.
        test_share: See there.
        seed: See there.
        group: See there.
        trusted_ids: See there.

    Raises:
        InputError: If the parts cannot be read or drawn, or leave nothing for training.
    """
    source = root / "split.csv"
    has_table = source.exists() or source.is_symlink()
    trusted = frozenset(trusted_ids or ()) | (_trusted_of(source) if has_table else frozenset())
    if has_table:
        given = read_split(source)
    else:
        given, source = _split_of_folders(root, images)
    known_as = ids_of(trusted, images.files) | ids_of(given, images.files)
    given = {known_as[i]: part for i, part in given.items()}
    trusted = frozenset(known_as[i] for i in trusted)
    unknown = sorted(trusted - given.keys())
    if unknown:
        raise InputError(
            f"data.trusted_ids names {unknown[0]}, but {root} has no such sample; give ids, which "
            "are file names without their extension."
        )
    groups = _groups(given, source if has_table else None, group, images.groups)
    groups = {known_as.get(i, i): unicodedata.normalize("NFC", name) for i, name in groups.items()}
    place = str(source.relative_to(root)) if source != root else "its folders"
    undecided = [i for i, part in given.items() if not part]
    drawn: list[str] = []
    words = f"drawn by seed={seed}" + (", by whole groups" if groups else "")
    if not undecided:
        parts = _tested_on(trusted, given, source)
        words = f"by {place}"
    elif trusted:
        others = [stem for stem in undecided if stem not in trusted]
        parts = _draw_split(others, val_share, 0.0, seed, groups)
        parts |= dict.fromkeys(sorted(trusted), "test")
        drawn = ["val"] if val_share else []
        words = "the trusted masks for the test"
    else:
        parts = given | _draw_split(undecided, val_share, test_share, seed, groups)
        drawn = [part for part, share in (("val", val_share), ("test", test_share)) if share]
    if "train" not in parts.values():
        raise InputError(f"{root} leaves no image for training; check {place} and the shares.")
    return Division(
        dict(sorted(parts.items())),
        frozenset(given),
        source,
        has_table,
        tuple(drawn),
        trusted,
        groups,
        words,
    )


def warn_of_division(
    division: Division,
    images: Collection[str],
    trusted_ids: Collection[str],
    inspection: Inspection,
) -> None:
    """Warn of images that are not used, and of trusted masks that are not tested on.

    Args:
        division: The parts of the samples.
        images: The ids of all images.
        trusted_ids: The ids that the user gave as trusted.
        inspection: Receives the warnings.
    """
    parts, source = division.parts, division.source
    if division.drawn:
        warn_of_few_groups(division.groups, parts, division.drawn, inspection)
    unnamed = [i for i in images if i not in division.named]
    if unnamed:
        inspection.warn(
            "split",
            unnamed,
            f"{len(unnamed)} images, such as {unnamed[0]}, are not named in {source}, and are not "
            "used.",
        )
    dropped = sorted(i for i in division.named if i not in parts)
    if dropped:
        inspection.warn(
            "not checked",
            dropped,
            f"{len(dropped)} test masks of {source}, such as {dropped[0]}, are not used, since "
            "only trusted masks are used for the test.",
        )
    known_as = ids_of(trusted_ids, images)
    idle = [i for i in trusted_ids if parts.get(known_as[i]) != "test"]
    if idle:
        inspection.warn(
            "trusted",
            idle,
            f"Of data.trusted_ids {len(idle)} will not be tested on, such as {idle[0]}, since "
            f"{source} does not put them into the part test.",
        )


def warn_of_lists(root: Path, inspection: Inspection) -> None:
    """Warn of lists of the split that lie where they are not read."""
    found = [f"{part}.txt" for part in SPLITS if (root / f"{part}.txt").is_file()]
    if found:
        inspection.warn(
            "split",
            [],
            f"{root} holds {' and '.join(found)}, which {'are' if len(found) > 1 else 'is'} not "
            "read; name the part of each image in split.csv, in the columns id and split, or move "
            "the lists to ImageSets/Segmentation.",
        )


def read_split(path: Path) -> dict[str, str]:
    """Read a `split.csv`.

    Args:
        path: The file.

    Returns:
        Train, val or test by sample id. It is empty if the table has only a column `group`.

    Raises:
        InputError: If the file is not such a table, or names a sample twice.
    """
    rows = read_table(path, ["id"], guarded=False)
    has_split = bool(rows) and "split" in rows[0]
    if not rows or not (has_split or "group" in rows[0]):
        raise InputError(f"{path} must have the columns id and split, and a row for each sample.")
    for row in rows:
        row["split"] = row.get("split", "").strip().lower()
        if has_split and row["split"] not in SPLITS:
            raise InputError(
                f"{path} puts {row['id']} into {row['split']!r}; a split is train, val or test."
            )
    for sample_id, times in Counter(row["id"] for row in rows).items():
        if times > 1:
            raise InputError(f"{path} lists the sample {sample_id} {times} times; list it once.")
    return {row["id"]: row["split"] for row in rows}


def _split_of_folders(root: Path, images: Names) -> tuple[dict[str, str], Path]:
    """Read the split from folders named train, val and test, or from lists in VOC's `ImageSets`.

    Returns:
        The part of each sample, empty where it must be drawn; and where the split was read.
    """
    parts = {i: PART_FOLDERS.get(images.folders.get(i, "").lower(), "") for i in images.files}
    if all(parts.values()):
        return parts, root
    if any(parts.values()):
        other = next(sample_id for sample_id, part in parts.items() if not part)
        raise InputError(
            f"{images.folder} has folders named train, val or test, and others, such as that of "
            f"{other}; name the part of each image in {root / 'split.csv'}, or rename the folders."
        )
    lists = root / "ImageSets" / "Segmentation"
    known = {unicodedata.normalize("NFC", sample_id) for sample_id in images.files}
    listed = {part: _listed(lists / f"{part}.txt", known) for part in SPLITS}
    both = _listed(lists / "trainval.txt", known)
    if not listed["train"] and (listed["val"] or listed["test"]):
        listed["train"] = [name for name in both if name not in listed["val"]]
    every = [name for names in listed.values() for name in names]
    for name, times in Counter(every).items():
        if times > 1:
            raise InputError(f"The lists in {lists} name {name} {times} times; list it once.")
    if not every:
        place = lists / "trainval.txt" if both else root / "split.csv"
        return dict.fromkeys(both or images.files, ""), place
    return {name: part for part, names in listed.items() for name in names}, lists


def _listed(path: Path, known: Collection[str]) -> list[str]:
    """Read the name at the start of each line; without the file there are none.

    It is a known id, which may hold spaces, or else the first word.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding=text_encoding(path)).splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as text; save it in UTF-8.") from error
    return [_name_in(line.strip(), known) for line in lines if line.strip()]


def _name_in(line: str, known: Collection[str]) -> str:
    for name in (line, line.rsplit(maxsplit=1)[0]):
        if unicodedata.normalize("NFC", name) in known:
            return name
    return line.split()[0]


def _groups(
    ids: Iterable[str], table: Path | None, pattern: str | None, by_folder: Mapping[str, str]
) -> dict[str, str]:
    """Read the group of each sample: from `data.group`, a column `group`, or its folder.

    Raises:
        InputError: If the pattern cannot be used.
    """
    if pattern is None:
        rows = [] if table is None else read_table(table, ["id"], guarded=False)
        if rows and "group" in rows[0]:
            return {row["id"]: row["group"].strip() or row["id"] for row in rows}
        is_split = by_folder and all(g.lower() in PART_FOLDERS for g in by_folder.values())
        return {} if is_split else dict(by_folder)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"data.group={pattern} is no regular expression ({error}).") from error
    if expression.groups != 1:
        raise InputError(
            f"data.group={pattern} must hold one pair of parentheses, around the group in the id."
        )
    groups = {}
    for sample_id in ids:
        match = expression.fullmatch(sample_id)
        if match is None or match[1] is None:
            raise InputError(
                f"data.group={pattern} does not fit the id {sample_id}; every id must have a group."
            )
        groups[sample_id] = match[1]
    return groups


def _trusted_of(table: Path) -> frozenset[str]:
    """Read the trusted samples from the column `trusted` of a `split.csv`, if it has one.

    Raises:
        InputError: If a cell is neither 1 nor 0.
    """
    rows = read_table(table, ["id"], guarded=False)
    for row in rows:
        if row.get("trusted", "").strip().lower() not in (*YES, *NO):
            raise InputError(f"{table} has trusted={row['trusted']} for {row['id']}; give 1 or 0.")
    return frozenset(row["id"] for row in rows if row.get("trusted", "").strip().lower() in YES)


def _tested_on(trusted: Collection[str], split: Mapping[str, str], table: Path) -> dict[str, str]:
    """Remove test samples whose masks are not trusted, if any masks are."""
    if not trusted:
        return dict(split)
    if not any(part == "test" and sample_id in trusted for sample_id, part in split.items()):
        raise InputError(
            f"{table} puts none of the {len(trusted)} trusted masks into the part test, which uses "
            "only trusted masks; put some of them there."
        )
    return {i: part for i, part in split.items() if part != "test" or i in trusted}


def _draw_split(
    ids: Iterable[str],
    val_share: float,
    test_share: float,
    seed: int,
    groups: Mapping[str, str],
) -> dict[str, str]:
    if not (min(val_share, test_share) >= 0 and val_share + test_share < 1):  # nan is neither
        raise InputError(
            f"data.source.val_share={val_share} and data.source.test_share={test_share} must be at "
            "least 0 and leave something for training."
        )
    ranked = sorted(ids)
    order = [ranked[i] for i in derive_rng(seed, "split").permutation(len(ranked))]
    test_count = round(test_share * len(order))
    val_count = round(val_share * len(order))
    if groups:
        return _draw_groups(order, {"test": test_count, "val": val_count}, groups)
    train_count = len(order) - test_count - val_count
    parts = ["test"] * test_count + ["val"] * val_count + ["train"] * train_count
    return dict(zip(order, parts, strict=True))


def _draw_groups(
    order: Sequence[str], wanted: Mapping[str, int], groups: Mapping[str, str]
) -> dict[str, str]:
    """Fill test and val with whole groups in a random order, up to about the wanted sizes."""
    members: dict[str, list[str]] = {}
    for sample_id in order:
        members.setdefault(groups.get(sample_id, sample_id), []).append(sample_id)
    split = dict.fromkeys(order, "train")
    left = list(members)
    for part, count in wanted.items():
        size = 0
        for group in list(left):
            if count and len(left) > 1 and size + len(members[group]) / 2 <= count:
                split |= dict.fromkeys(members[group], part)
                size += len(members[group])
                left.remove(group)
    return split
