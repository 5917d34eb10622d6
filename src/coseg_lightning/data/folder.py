"""A folder of images and masks."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.image_files import MaskFolder, files_by_stem, image_size, read_image
from coseg_lightning.labels import Mask, MaskedImages
from coseg_lightning.seeding import derive_rng

SPLITS = ("train", "val", "test")


class Splits(NamedTuple):
    """The three parts of a dataset; validation and test may be missing."""

    train: MaskedImages
    val: MaskedImages | None
    test: MaskedImages | None


class FolderImages:
    """Some samples of a folder; see `MaskedImages`."""

    def __init__(self, ids: Sequence[str], images: dict[str, Path], masks: MaskFolder) -> None:
        self.ids = list(ids)
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
) -> Splits:
    """Read `root/images` and `root/<masks>`, files of the same stem, and their split.

    Args:
        root: The folder.
        classes: Number of classes, background included.
        masks: Name of the folder of masks.
        val_share: Share of the samples for validation, where there is no `split.csv`.
        test_share: Share of the samples for the test, where there is no `split.csv`.
        seed: Chooses them.

    `root/split.csv`, with the columns `id` and `split` (train, val or test), decides where it
    exists; images that it does not name are left out.

    Raises:
        InputError: If anything is missing or does not fit together.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"data.root={root}: there is no such folder; it must hold images/ and {masks}/."
        )
    images = files_by_stem(root / "images")
    table = root / "split.csv"
    split = (
        read_split(table) if table.is_file() else _draw_split(images, val_share, test_share, seed)
    )
    for id in split:
        if id not in images:
            raise InputError(
                f"{table} names the sample {id}, but {root / 'images'} has no such image."
            )
    if "train" not in split.values():
        raise InputError(f"{root} leaves no image for training; check {table.name} and the shares.")

    mask_folder = MaskFolder(root / masks, classes=classes, ids=split)
    for id, (height, width) in mask_folder.sizes.items():
        image_height, image_width = image_size(images[id])
        if (image_height, image_width) != (height, width):
            raise InputError(
                f"{mask_folder.path(id)} is {width}x{height}, but its image is "
                f"{image_width}x{image_height}; both must have the same size."
            )

    def part(name: str) -> FolderImages | None:
        ids = sorted(id for id, part_name in split.items() if part_name == name)
        return FolderImages(ids, images, mask_folder) if ids else None

    train = part("train")
    assert train is not None
    return Splits(train, part("val"), part("test"))


def read_split(path: Path) -> dict[str, str]:
    """Read a `split.csv`: id to train, val or test."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"There is no file {path}; give the split.csv.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table; save it as CSV in UTF-8.") from error
    if not rows or not {"id", "split"} <= rows[0].keys():
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
    ids: dict[str, Path], val_share: float, test_share: float, seed: int
) -> dict[str, str]:
    if min(val_share, test_share) < 0 or val_share + test_share >= 1:
        raise InputError(
            f"data.val_share={val_share} and data.test_share={test_share} must be at least 0 and "
            "leave something for training."
        )
    order = [sorted(ids)[i] for i in derive_rng(seed, "split").permutation(len(ids))]
    tests = round(test_share * len(order))
    vals = round(val_share * len(order))
    names = ["test"] * tests + ["val"] * vals + ["train"] * (len(order) - tests - vals)
    return dict(zip(order, names, strict=True))
