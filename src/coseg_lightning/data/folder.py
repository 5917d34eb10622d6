"""A folder of images and masks."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.images import files_by_stem, read_image
from coseg_lightning.files.inspection import (
    FileInfo,
    Inspection,
    OnBadSample,
    alike,
    image_info,
    outside,
    scan_files,
)
from coseg_lightning.files.mask_folder import MaskFolder, leads_outside, same_stem
from coseg_lightning.labels.ids import label_path, on_any_disk, same_on_some_disks
from coseg_lightning.labels.masks import Mask, MaskedImages, mask_digest
from coseg_lightning.seeding import derive_rng

SPLITS = ("train", "val", "test")


class Splits(NamedTuple):
    """The three parts of a dataset; validation and test may be missing."""

    train: MaskedImages
    val: MaskedImages | None
    test: MaskedImages | None


class FolderImages:
    """Some samples of a folder; see `MaskedImages`."""

    def __init__(
        self, ids: Sequence[str], images: dict[str, Path], masks: MaskFolder, digest: str
    ) -> None:
        self.ids = list(ids)
        self.digest = digest  # of what the files hold
        self.sizes = {id: masks.facts[id]["size"] for id in ids}  # height and width
        self._images = images
        self._masks = masks

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """The image as stored."""
        return read_image(self._images[self.ids[index]])

    def mask(self, index: int) -> Mask:
        """The mask as stored, as class ids."""
        return self._masks.read(self.ids[index])


def folder_splits(
    root: str | Path,
    *,
    classes: int = 2,
    masks: str = "masks",
    val_share: float = 0.0,
    test_share: float = 0.2,
    seed: int = 0,
    on_bad_sample: OnBadSample = "error",
    problems: str | Path | None = None,
) -> Splits:
    """Read `root/images` and `root/<masks>`, files of the same stem, and their split.

    Every file is read once, and all that is wrong is told together.

    Args:
        root: The folder.
        classes: Number of classes, background included.
        masks: Name of the folder of masks.
        val_share: Share of the samples for validation, where there is no `split.csv`.
        test_share: Share of the samples for the test, where there is no `split.csv`.
        seed: Chooses them.
        on_bad_sample: `error`, or `skip` to leave out samples that cannot be used.
        problems: A CSV file to write what is wrong to, if anything is.

    `root/split.csv`, with the columns `id` and `split` (train, val or test), decides where it
    exists; images that it does not name are left out.

    Raises:
        InputError: If anything is missing or does not fit together.
    """
    check_on_bad_sample(on_bad_sample)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"data.root={root}: there is no such folder; it must hold images/ and {masks}/."
        )
    by_stem = files_by_stem(root / "images")
    images = {id: paths[0] for id, paths in by_stem.items()}
    table = root / "split.csv"
    drawn = not table.exists() and not table.is_symlink()
    split = _draw_split(images, val_share, test_share, seed) if drawn else read_split(table)
    split = dict(sorted(split.items()))
    if "train" not in split.values():
        raise InputError(f"{root} leaves no image for training; check {table.name} and the shares.")

    found = Inspection(root)
    _check_names(split, by_stem, root, found)
    looks = scan_files(
        [images[id] for id in split if id in images and id not in found.bad],
        image_info,
        kind="images",
        title="Looking at images",
    )
    facts: dict[str, FileInfo] = {}
    for id in split:
        of_file = looks.get(images.get(id, root))
        if isinstance(of_file, InputError):
            found.add("unreadable image", [id], str(of_file))
        elif of_file is not None:
            facts[id] = of_file
    with_image = [id for id in split if id in images]
    mask_folder = MaskFolder(root / masks, classes=classes, ids=with_image, inspection=found)
    if drawn:  # else it names what is wanted of the folder
        for id in mask_folder.ids:
            if id not in images:
                found.add(
                    "no image",
                    [id],
                    f"{mask_folder.path(id)} is the mask of no image in {root / 'images'}; add "
                    "the image, or remove the mask.",
                )
    _check_pairs(facts, mask_folder, images, split, found)
    found.settle(skip=on_bad_sample == "skip", table=problems)

    def part(name: str) -> FolderImages | None:
        ids = sorted(id for id in split if split[id] == name and id not in found.bad)
        if not ids:
            return None
        return FolderImages(ids, images, mask_folder, _digest(ids, facts, mask_folder))

    train = part("train")
    if train is None:
        raise InputError(f"{root} holds no sample for training that can be used.")
    return Splits(train, part("val"), part("test"))


def _check_names(
    split: Mapping[str, str], by_stem: Mapping[str, list[Path]], root: Path, found: Inspection
) -> None:
    """Note ids without one image file, and those that cannot name a file of their own."""
    for id in split:
        paths = by_stem.get(id, [])
        if not paths:
            told = f"{root / 'split.csv'} names the sample {id}, but {root / 'images'} has no such"
            found.add("no image", [id], f"{told} image.")
        elif len(paths) > 1:
            found.add("same stem", [id], same_stem(paths))
        elif outside(paths[0], [root, root / "images"]):
            found.add("link", [id], leads_outside(paths[0]))
        else:
            try:
                label_path(Path(), id)
            except InputError as error:
                found.add("name", [id], str(error))
    for ids in alike({id: on_any_disk(id) for id in split}):
        found.add("letter case", ids, same_on_some_disks(*ids[:2]))


def _check_pairs(
    images: Mapping[str, FileInfo],
    masks: MaskFolder,
    paths: Mapping[str, Path],
    split: Mapping[str, str],
    found: Inspection,
) -> None:
    """Note masks of another size than their image, and pictures that are there twice."""
    for id, image in images.items():
        mask = masks.facts.get(id)
        if mask is not None and mask["size"] != image["size"]:
            (height, width), (image_height, image_width) = mask["size"], image["size"]
            found.add(
                "size",
                [id],
                f"{masks.path(id)} is {width}x{height}, but its image is "
                f"{image_width}x{image_height}; both must have the same size.",
            )
    bad = found.bad
    good = {id: image["digest"] for id, image in images.items() if id not in bad}
    blank = [id for id, digest in good.items() if digest is None]
    if blank:
        told = f"{len(blank)} images, such as {paths[blank[0]]}, are of one value everywhere."
        found.warn("blank image", blank, told)
    for ids in alike(good):
        one, other = ids[:2]
        same = f"{paths[one]} and {paths[other].name}"
        if len(ids) > 2:
            same += f" (and {len(ids) - 2} more)"
        if len({mask_digest(masks.read(id)) for id in ids}) > 1:
            told = f"{same} are the same picture, but their masks differ; keep the right one."
            found.add("twice with different masks", ids, told)
        elif len({split[id] for id in ids}) > 1:
            parts = " and ".join(sorted({split[id] for id in ids}))
            told = f"{same} are the same picture, in {parts}: what is measured there is too good."
            found.warn("in two parts of the split", ids, told)


def _digest(ids: Sequence[str], images: Mapping[str, FileInfo], masks: MaskFolder) -> str:
    """Of the images and masks of a part."""
    held = [(images[id]["digest"], images[id]["size"], masks.facts[id]["digest"]) for id in ids]
    return hashlib.blake2b(json.dumps(held).encode(), digest_size=8).hexdigest()


def check_on_bad_sample(value: str) -> None:
    """Raise an `InputError` unless it is error or skip."""
    if value not in ("error", "skip"):
        raise InputError(f"on_bad_sample={value} must be error or skip.")


def read_split(path: Path) -> dict[str, str]:
    """Read a `split.csv`: id to train, val or test."""
    rows = read_table(path, ["id", "split"], guarded=False)
    if not rows:
        raise InputError(f"{path} must have the columns id and split, and a row for each sample.")
    for row in rows:
        if row["split"] not in SPLITS:
            raise InputError(
                f"{path} puts {row['id']} into {row['split']!r}; a split is train, val or test."
            )
    for id, times in Counter(row["id"] for row in rows).items():
        if times > 1:
            raise InputError(f"{path} names the sample {id} {times} times; once is wanted.")
    return {row["id"]: row["split"] for row in rows}


def _draw_split(
    ids: Iterable[str], val_share: float, test_share: float, seed: int
) -> dict[str, str]:
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise InputError(
            f"data.val_share={val_share} and data.test_share={test_share} must be at least 0 and "
            "leave something for training."
        )
    order = [sorted(ids)[i] for i in derive_rng(seed, "split").permutation(len(list(ids)))]
    tests = round(test_share * len(order))
    vals = round(val_share * len(order))
    names = ["test"] * tests + ["val"] * vals + ["train"] * (len(order) - tests - vals)
    return dict(zip(order, names, strict=True))
