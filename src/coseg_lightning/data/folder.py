"""A dataset in a folder: images, masks of the same names, and a split into parts."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from coseg_lightning.data.folder_checks import (
    check_duplicates,
    check_ids_name_different_files,
    check_image_files,
    check_masks_have_an_image,
    check_sizes_agree,
    inspect_images,
    warn_of_blank_images,
)
from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.images import files_by_stem, read_image
from coseg_lightning.files.inspection import FileInfo, Inspection, OnBadSample
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.labels.masks import Mask, MaskedImages
from coseg_lightning.seeding import derive_rng

YES, NO = ("1", "yes", "true"), ("", "0", "no", "false")  # in the column trusted
SPLITS = ("train", "val", "test")
# Names that people give the two folders; the first one is preferred, of the others one alone.
IMAGES = ("images", "image", "imgs", "img", "photos", "pictures", "scans", "radiographs")
MASKS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground_truth"),
    *("groundtruth", "segmentations", "segmentation", "seg"),
)


class Splits(NamedTuple):
    """The three parts of a dataset. Validation and test may be missing."""

    train: MaskedImages
    val: MaskedImages | None
    test: MaskedImages | None


class FolderImages:
    """Some samples of a folder. It implements `MaskedImages`.

    Args:
        ids: The samples.
        images: The image file of each sample.
        masks: The folder of masks.
        digest: A digest of the files' content.
        digests: A digest of each image's pixels, None if they are all equal.
        trusted: Whether somebody checked the masks, so that figures on them are of the network.

    Attributes:
        sizes: Height and width of each sample.
    """

    def __init__(
        self,
        ids: Sequence[str],
        images: Mapping[str, Path],
        masks: MaskFolder,
        digest: str,
        digests: Mapping[str, str | None] | None = None,
        trusted: bool = False,
    ) -> None:
        self.trusted = trusted
        self.ids = list(ids)
        self.digests = {sample_id: (digests or {}).get(sample_id) for sample_id in ids}
        self.digest = digest
        self.sizes = {sample_id: masks.file_info[sample_id]["size"] for sample_id in ids}
        self._images = images
        self._masks = masks

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """Read one image as it is stored."""
        return read_image(self._images[self.ids[index]])

    def mask(self, index: int) -> Mask:
        """Read one mask as class ids, in the size that it is stored in."""
        return self._masks.read(self.ids[index])


def folder_splits(
    root: str | Path,
    *,
    classes: int = 2,
    images: str = "auto",
    masks: str = "auto",
    val_share: float = 0.0,
    test_share: float = 0.2,
    seed: int = 0,
    trusted_ids: Collection[str] | None = None,
    on_bad_sample: OnBadSample = "error",
    problems: str | Path | None = None,
) -> Splits:
    """Open a dataset of a folder of images and one of masks, with files of the same stem.

    Every file is read once before training, and all problems are reported together. If there is a
    `root/split.csv` with the columns `id` and `split` (train, val or test), it decides the split.
    Images that it does not name are not used.

    Args:
        root: The folder.
        classes: Number of classes, background included.
        images: Name of the folder of images in `root`; `auto` finds it, see `find_folder`.
        masks: Name of the folder of masks in `root`; `auto` finds it.
        val_share: Share of the samples for validation, if there is no `split.csv`.
        test_share: Share of the samples for the test, if there is no `split.csv`.
        seed: Seed of the random split, if there is no `split.csv`.
        trusted_ids: Samples whose masks somebody checked; the test is on them alone. A column
            `trusted` of `split.csv`, with 1 or 0, names them too. Without a `split.csv`, all of
            them are test samples, and all others are not.
        on_bad_sample: `error`, or `skip` to skip samples that cannot be used.
        problems: A CSV file that is written if there are problems or warnings.

    Returns:
        The parts of the dataset.

    Raises:
        InputError: If anything is missing or does not fit together.
    """
    check_on_bad_sample(on_bad_sample)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"data.root={root}: there is no such folder; it must hold a folder of images and one "
            "of masks."
        )
    images_folder = root / find_folder(root, images, IMAGES, "images")
    masks_folder = root / find_folder(root, masks, MASKS, "masks")
    by_stem = files_by_stem(images_folder)
    files = {stem: paths[0] for stem, paths in by_stem.items()}
    table = root / "split.csv"
    has_table = table.exists() or table.is_symlink()
    trusted = frozenset(trusted_ids or ()) | (_trusted_of(table) if has_table else frozenset())
    given = read_split(table) if has_table else dict.fromkeys(files, "")
    unknown = sorted(trusted - given.keys())
    if unknown:
        raise InputError(
            f"data.trusted_ids names {unknown[0]}, but {root} has no such sample; give ids that "
            "are files' names without their ending."
        )
    if has_table:
        split = _tested_on(trusted, given, table)
    elif trusted:
        others = [stem for stem in files if stem not in trusted]
        split = _draw_split(others, val_share, 0.0, seed) | dict.fromkeys(trusted, "test")
    else:
        split = _draw_split(files, val_share, test_share, seed)
    split = dict(sorted(split.items()))
    if "train" not in split.values():
        raise InputError(f"{root} leaves no image for training; check {table.name} and the shares.")

    inspection = Inspection(root)
    dropped = [i for i, part in given.items() if part == "test" and i not in split]
    if dropped:
        inspection.warn(
            "not checked",
            dropped,
            f"{len(dropped)} test masks of {table}, such as {dropped[0]}, are not used, since the "
            "test is on trusted masks alone.",
        )
    check_image_files(split, by_stem, images_folder, inspection)
    check_ids_name_different_files(split, inspection)
    image_infos = inspect_images(split, files, inspection)
    with_image = [sample_id for sample_id in split if sample_id in files]
    mask_folder = MaskFolder(masks_folder, classes=classes, ids=with_image, inspection=inspection)
    if not has_table:  # a split.csv says which files are wanted
        check_masks_have_an_image(mask_folder, images_folder, files, inspection)
    check_sizes_agree(image_infos, mask_folder, inspection)
    unusable = inspection.unusable_ids
    good_images = {i: info for i, info in image_infos.items() if i not in unusable}
    warn_of_blank_images(good_images, files, inspection)
    check_duplicates(good_images, files, mask_folder, split, inspection)
    inspection.report(skip=on_bad_sample == "skip", table=problems)

    parts = _usable_parts(split, inspection.unusable_ids)
    if not parts["train"]:
        raise InputError(f"{root} holds no sample for training that can be used.")
    digests = {sample_id: info["digest"] for sample_id, info in image_infos.items()}
    train, val, test = (
        FolderImages(
            ids,
            files,
            mask_folder,
            _digest(ids, image_infos, mask_folder),
            digests,
            trusted=part != "train" and bool(ids) and trusted.issuperset(ids),
        )
        for part, ids in parts.items()
    )
    return Splits(train, val if len(val) else None, test if len(test) else None)


def find_folder(root: Path, name: str, usual: Sequence[str], what: str) -> str:
    """Find the folder of images or of masks in a dataset's folder.

    Args:
        root: The dataset's folder.
        name: The folder's name in `root`, or `auto`.
        usual: The names that `auto` knows, in any case; the first is preferred to the others.
        what: `images` or `masks`.

    Raises:
        InputError: If there is no such folder, or several that may be meant.
    """
    if name != "auto":
        if not (root / name).is_dir():
            raise InputError(f"data.{what}={name}: there is no such folder in {root}.")
        return name
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = [folder for folder in there if folder.lower() in usual]
    if usual[0] in found:
        return usual[0]
    if len(found) == 1:
        return found[0]
    reason = f"no folder {usual[0]} or with another usual name, but {', '.join(there) or 'none'}"
    if found:
        reason = f"{' and '.join(found)}, and each may be the folder of {what}"
    raise InputError(f"{root} holds {reason}; say which one it is, {what}=NAME.")


def check_on_bad_sample(value: str) -> None:
    """Raise an `InputError` unless the value is `error` or `skip`."""
    if value not in ("error", "skip"):
        raise InputError(f"on_bad_sample={value} must be error or skip.")


def read_split(path: Path) -> dict[str, str]:
    """Read a `split.csv`.

    Args:
        path: The file.

    Returns:
        Train, val or test by sample id.

    Raises:
        InputError: If the file is no such table, or names a sample twice.
    """
    rows = read_table(path, ["id", "split"], guarded=False)
    if not rows:
        raise InputError(f"{path} must have the columns id and split, and a row for each sample.")
    for row in rows:
        if row["split"] not in SPLITS:
            raise InputError(
                f"{path} puts {row['id']} into {row['split']!r}; a split is train, val or test."
            )
    for sample_id, times in Counter(row["id"] for row in rows).items():
        if times > 1:
            raise InputError(f"{path} names the sample {sample_id} {times} times; once is wanted.")
    return {row["id"]: row["split"] for row in rows}


def _trusted_of(table: Path) -> frozenset[str]:
    """Read the samples that the column `trusted` of a `split.csv` names, if it has one.

    Raises:
        InputError: If a cell is neither 1 nor 0.
    """
    rows = read_table(table, ["id"], guarded=False)
    for row in rows:
        if row.get("trusted", "").strip().lower() not in (*YES, *NO):
            raise InputError(f"{table} has trusted={row['trusted']} for {row['id']}; give 1 or 0.")
    return frozenset(row["id"] for row in rows if row.get("trusted", "").strip().lower() in YES)


def _tested_on(trusted: Collection[str], split: Mapping[str, str], table: Path) -> dict[str, str]:
    """Leave test samples out whose masks are not trusted, if some are."""
    if not trusted:
        return dict(split)
    if not any(part == "test" and sample_id in trusted for sample_id, part in split.items()):
        raise InputError(
            f"{table} puts none of the {len(trusted)} trusted masks into the test, which is to be "
            "on them; put some of them there."
        )
    return {i: part for i, part in split.items() if part != "test" or i in trusted}


def _draw_split(
    ids: Iterable[str], val_share: float, test_share: float, seed: int
) -> dict[str, str]:
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise InputError(
            f"data.val_share={val_share} and data.test_share={test_share} must be at least 0 and "
            "leave something for training."
        )
    ranked = sorted(ids)
    order = [ranked[i] for i in derive_rng(seed, "split").permutation(len(ranked))]
    test_count = round(test_share * len(order))
    val_count = round(val_share * len(order))
    train_count = len(order) - test_count - val_count
    parts = ["test"] * test_count + ["val"] * val_count + ["train"] * train_count
    return dict(zip(order, parts, strict=True))


def _usable_parts(split: Mapping[str, str], unusable: Collection[str]) -> dict[str, list[str]]:
    return {part: [i for i in split if split[i] == part and i not in unusable] for part in SPLITS}


def _digest(ids: Sequence[str], images: Mapping[str, FileInfo], masks: MaskFolder) -> str:
    """A digest of the images and masks of one part."""
    content = [(images[i]["digest"], images[i]["size"], masks.file_info[i]["digest"]) for i in ids]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
