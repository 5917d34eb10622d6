"""A folder of masks, one file a sample."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import files_by_stem, read_indices, smallest_type
from coseg_lightning.files.inspection import FileInfo, Inspection, outside, pixel_digest, scan_files
from coseg_lightning.functional.equations import IGNORE_INDEX


class MaskFolder:
    """A folder of masks, one file a sample, `<id>.<suffix>`.

    Masks hold class ids `0 .. classes-1` and 255 where unlabelled. If no file holds any value but
    0 and 255 (or 0 and 65535) and there are two classes, that value means class 1. Two-class
    JPEG masks are cut at half of their range, because JPEG blurs values.

    Args:
        folder: The folder.
        classes: Number of classes, background included.
        ids: The samples that will be read, and that decide what 255 means; default all.
        inspection: Where bad masks are noted; default they raise, all together.
        skip: Whether they are left out instead, with a warning.

    Raises:
        InputError: If there is no such folder, files are missing or unreadable, or hold a class
            id out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        classes: int,
        ids: Iterable[str] | None = None,
        inspection: Inspection | None = None,
        skip: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.classes = max(2, classes)  # a binary network's single output knows two classes
        by_stem = files_by_stem(self.folder)
        self._paths = {id: paths[0] for id, paths in by_stem.items()}
        self._foreground: int | None = None
        found = Inspection(self.folder) if inspection is None else inspection
        self.facts = self._look(by_stem, list(by_stem) if ids is None else list(ids), found)
        if inspection is None:
            found.settle(skip=skip or None)
            self._paths = {id: path for id, path in self._paths.items() if id not in found.bad}

    @property
    def ids(self) -> list[str]:
        """The samples that have a mask here."""
        return list(self._paths)

    def path(self, id: str) -> Path:
        """The file of one sample."""
        if id not in self._paths:
            raise InputError(self._no_mask(id))
        return self._paths[id]

    def _no_mask(self, id: str) -> str:
        return f"{self.folder} holds no mask of {id}; every sample needs one."

    def _look(
        self, by_stem: dict[str, list[Path]], ids: list[str], found: Inspection
    ) -> dict[str, FileInfo]:
        """Read every mask once, before anything is trained on it; what there is of good ones."""
        there = []
        for id in ids:
            paths = by_stem.get(id, [])
            if not paths:
                found.add("no mask", [id], self._no_mask(id))
            elif len(paths) > 1:
                found.add("same stem", [id], same_stem(paths))
            elif outside(
                paths[0],
                [self.folder, self.folder.parent, Path(os.path.realpath(self.folder)).parent],
            ):
                found.add("link", [id], leads_outside(paths[0]))
            else:
                there.append(id)
        looks = scan_files(
            [self._paths[id] for id in there],
            self._look_at,
            kind=f"masks of {'two' if self.classes == 2 else 'several'} classes",
            title=f"Looking at {self.folder.name}",
            names=("size", "digest", "values", "two_valued"),
        )
        facts: dict[str, FileInfo] = {}
        for id in there:
            of_file = looks[self._paths[id]]
            if isinstance(of_file, InputError):
                found.add("unreadable mask", [id], str(of_file))
            else:
                facts[id] = of_file
        self._understand(facts, found)
        return facts

    def _look_at(self, path: Path) -> FileInfo:
        values = self._read(path)
        return {
            "size": list(values.shape),
            "values": np.unique(values).tolist(),
            "two_valued": self._is_two_valued(path),
            "digest": pixel_digest(values),
        }

    def _understand(self, facts: dict[str, FileInfo], found: Inspection) -> None:
        """Find out what 255 means, and which masks hold something else."""
        special = {255, 65535} if self.classes == 2 else {IGNORE_INDEX}
        known = set(range(self.classes)) | special
        told = {id: set(of["values"]) for id, of in facts.items() if not of["two_valued"]}
        union = set[int]().union(*(values for values in told.values() if values <= known))
        for highest in (255, 65535):
            if self.classes == 2 and highest in union and union <= {0, highest}:
                self._foreground = highest
        if self._foreground is None:
            unlabelled = [id for id, values in told.items() if 255 in values and values <= {0, 255}]
            if unlabelled and union <= {0, 255}:
                found.add(
                    "class id",
                    unlabelled,
                    f"{self.folder} holds no class id but 0 and 255, which is unlabelled where "
                    f"there are {self.classes} classes; set data.classes=2, or save class ids.",
                )
            elif self.classes == 2 and 2 * len(unlabelled) > len(told):
                other = next(id for id, values in told.items() if 1 in values)
                found.add(
                    "class id",
                    unlabelled,
                    f"{len(unlabelled)} masks in {self.folder} hold 0 and 255 alone, but "
                    f"{self.path(other).name} holds 1, so that 255 would mean unlabelled in all of "
                    "them; save them all as 0 and 1, or all as 0 and 255.",
                )
            elif unlabelled:
                found.warn(
                    "unlabelled",
                    unlabelled,
                    f"{len(unlabelled)} masks in {self.folder}, such as "
                    f"{self.path(unlabelled[0]).name}, hold nothing but 0 and 255, others hold 1: "
                    "there 255 counts as unlabelled. If it means class 1, save them as 0 and 1.",
                )
        allowed = set(range(self.classes)) | {IGNORE_INDEX}
        rule = (
            f"data.classes={self.classes} allows 0 to {self.classes - 1} (and 255 for unlabelled "
            "pixels); set data.classes or mend the mask."
        )
        if self._foreground is not None:
            allowed = {0, self._foreground}
            rule = f"all other masks hold 0 and {self._foreground} alone; mend the mask."
        for id in list(facts):
            wrong = sorted(told.get(id, set()) - allowed)
            if wrong:
                found.add(
                    "class id",
                    [id],
                    f"{self.path(id)} holds the class id {wrong[0]}, but {rule}",
                )
                del facts[id]
        for value, what in ((0, "background"), (IGNORE_INDEX, "unlabelled pixels")):
            of_one = [id for id, of in facts.items() if of["values"] == [value]]
            if of_one and not (value and self._foreground):
                found.warn(
                    f"all {what}",
                    of_one,
                    f"{len(of_one)} of {len(facts)} masks in {self.folder}, such as "
                    f"{self.path(of_one[0]).name}, hold nothing but {what}.",
                )

    def _read(self, path: Path) -> NDArray[Any]:
        values = read_indices(path)
        if _is_jpeg(path) and self.classes == 2 and values.max() > 1:
            values = (values >= 128).astype(np.uint8)
        return values

    def _is_two_valued(self, path: Path) -> bool:
        """Whether a file tells by its kind that it holds two classes, read as 0 and 1."""
        if self.classes != 2:
            return False
        if _is_jpeg(path):
            return True
        with Image.open(path) as file:
            return file.mode == "1"

    def read(self, id: str) -> NDArray[Any]:
        """One mask, `(H, W)` uint8 or uint16 class ids, 255 where unlabelled."""
        return self._class_ids(self.path(id))

    def _class_ids(self, path: Path) -> NDArray[Any]:
        values = self._read(path)
        if self._foreground is not None and not self._is_two_valued(path):
            values = values == self._foreground
        return smallest_type(values)

    def write_like(self, id: str, path: Path, mask: NDArray[Any]) -> None:
        """Write class ids as a file like a sample's: the same format, mode, palette and values.

        Raises:
            InputError: If such a file does not hold them, such as a JPEG of several classes.
        """
        foreground = self._foreground
        if self._is_two_valued(self.path(id)):
            foreground = 255 if _is_jpeg(self.path(id)) else None
        _save_like(self.path(id), path, mask if foreground is None else (mask > 0) * foreground)
        if (self._class_ids(path) != mask).any():
            raise InputError(
                f"A noisy mask cannot be written like {self.path(id)} without losing class ids; "
                "save your masks as PNG."
            )


def same_stem(paths: list[Path]) -> str:
    """That two files claim one sample."""
    return (
        f"{paths[0]} and {paths[1].name} have the same stem, and only one can be the sample "
        f"{paths[0].stem}; remove one."
    )


def leads_outside(path: Path) -> str:
    """That a file is a link out of the dataset's folder."""
    return (
        f"{path} is a link to {os.path.realpath(path)}, outside of the dataset's folder; put the "
        "file itself there."
    )


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _save_like(original: Path, path: Path, values: NDArray[Any]) -> None:
    with Image.open(original) as file:
        kind, mode, palette = file.format, file.mode, file.getpalette()
        options = {k: v for k, v in file.info.items() if k == "transparency"}
    sixteen_bits = mode.startswith("I;16")
    image = Image.fromarray(values.astype(np.uint16) if sixteen_bits else smallest_type(values))
    if mode == "P" and palette is not None:
        image.putpalette(palette)
    elif mode == "1":
        image = image.point(lambda value: 255 if value else 0).convert("1")
    elif mode in ("RGB", "RGBA", "LA", "I"):
        image = image.convert(mode)
    # What has no quality or palette takes no notice of these.
    image.save(path, format=kind, quality=95, optimize=False, **options)
