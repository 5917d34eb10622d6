"""MaskRules: the meaning of the values in mask files, as the user sets it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.numbers import number_of, whole_numbers_of

IGNORE_INDEX = 255  # for unlabelled pixels; not imported from functional.equations to avoid torch
HIGHEST_VALUES = (255, 65535)  # the largest values of 8 and of 16 bits
NO_CLASS = -1  # in tables of colours, as of Cityscapes and labelme
BACKGROUND = ("background", "_background_", "bg")
# Names of no class, without what stands between or around letters, as in __ignore__ or don't care.
VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored", "border", "boundary", "dontcare")

COLOUR_COLUMNS = {"name", "r", "g", "b", "class"}

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskRules:
    """The meaning of the values in a folder's mask files.

    Args:
        classes: Number of classes, background included.
        class_ids: The value of each class in the files, if these are not 0, 1, 2 and so on.
        colours: The class of each colour, for masks that are painted in colours; 255 stands for
            unlabelled pixels.
        threshold: For soft masks: values from the threshold up mean class 1, all others class 0.
        instances: Whether every value but 0 is an object of class 1.

    Raises:
        InputError: If the arguments contradict each other.
    """

    classes: int = 2
    class_ids: tuple[int, ...] | None = None
    colours: Mapping[Colour, int] | None = None
    threshold: float | None = None
    instances: bool = False

    def __post_init__(self) -> None:
        given = [
            f"data.{name}"
            for name, value in (
                ("class_ids", self.class_ids),
                ("colours", self.colours),
                ("mask_threshold", self.threshold),
                ("instances", self.instances or None),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} contradict each other; give only one of them.")
        if self.classes != 2 and (self.threshold is not None or self.instances):
            raise InputError(
                f"{given[0]} gives two classes, but data.classes={self.classes}; set "
                "data.classes=2."
            )
        if self.class_ids is not None:
            self._check_class_ids(self.class_ids)
        if self.colours is not None:
            self._check_colours(self.colours)

    def _check_class_ids(self, class_ids: tuple[int, ...]) -> None:
        if len(class_ids) != self.classes or len(set(class_ids)) != self.classes:
            raise InputError(
                f"data.class_ids={list(class_ids)} must hold one value for each of the "
                f"data.classes={self.classes} classes, the background first, and no value twice."
            )
        if self.classes > IGNORE_INDEX:
            raise InputError(
                f"data.class_ids names {self.classes} classes, but at most {IGNORE_INDEX} can be "
                f"numbered, since {IGNORE_INDEX} marks unlabelled pixels; join some of them."
            )

    def _check_colours(self, colours: Mapping[Colour, int]) -> None:
        wrong = [value for value in colours.values() if not 0 <= value <= IGNORE_INDEX]
        if wrong:
            raise InputError(
                f"data.colours names the class {wrong[0]}; give 0 to {IGNORE_INDEX - 1}, or "
                f"{IGNORE_INDEX} for unlabelled pixels."
            )
        found = {value for value in colours.values() if value != IGNORE_INDEX}
        if found and max(found) >= self.classes:
            raise InputError(
                f"data.colours names {max(found) + 1} classes, but data.classes={self.classes}; "
                f"set data.classes={max(found) + 1}."
            )

    @classmethod
    def from_settings(cls, source: Mapping[str, Any]) -> "MaskRules":
        """Build the rules from the settings of a dataset, named as in `folder_splits`."""
        classes = max(2, int(source.get("classes", 2)))  # a single output has two classes
        colours, instances = source.get("colours"), source.get("instances")
        class_ids = source.get("class_ids")
        if instances not in (None, "foreground"):
            raise InputError(f"data.instances={instances} must be foreground, or null.")
        threshold = source.get("mask_threshold")
        return cls(
            classes,
            None if class_ids is None else whole_numbers_of("data.class_ids", class_ids),
            None if colours is None else _colours_of(colours),
            None if threshold is None else _threshold_of(threshold),
            instances is not None,
        )

    @property
    def key(self) -> str:
        """A text for caches that identifies how masks are read."""
        ids = self.class_ids
        return repr((self.classes, self.colours, self.threshold, self.instances, ids))

    @property
    def is_inverted(self) -> bool:
        """Whether the larger of the values of two classes means the background."""
        return (
            self.class_ids is not None
            and self.classes == 2
            and self.class_ids[0] > self.class_ids[1]
        )


def _threshold_of(value: Any) -> float:
    threshold = number_of("data.mask_threshold", value)
    if not math.isfinite(threshold):
        raise InputError(f"data.mask_threshold={value} must be a number.")
    return threshold


def _colours_of(given: Any) -> dict[Colour, int]:
    """Read colours from a name or file, or from rows `(r, g, b, class)` as a run saves them."""
    if isinstance(given, str):
        return read_colours(given)
    return {(int(r), int(g), int(b)): int(k) for r, g, b, k in given}


def read_colours(source: str) -> dict[Colour, int]:
    """Read the class of each colour.

    Args:
        source: `voc`, `cityscapes` or a file. The file is a table with the columns `r`, `g` and
            `b`, and optionally `name` and `class`, or a `labelmap.txt` of CVAT. Without a column
            `class`, classes are numbered in the order of the rows. Rows named void, unlabelled,
            ignore, boundary or don't care then have no class. In that column, 255 and -1
            stand for none.

    Raises:
        InputError: If there is no such file, or it is not such a table.
    """
    known = {"voc": _voc, "cityscapes": _cityscapes}.get(source.lower())
    if known is not None:
        return known()
    path = Path(source).expanduser()
    rows = _colour_rows(path)
    if not any(class_id.strip() for _, _, class_id in rows):  # they are numbered in their order
        rows.sort(key=lambda row: row[0].strip().lower() not in BACKGROUND)
    colours: dict[Colour, int] = {}
    count = 0
    for name, channels, class_id in rows:
        try:
            r, g, b = (int(value) for value in channels)
            if not all(0 <= value <= 255 for value in (r, g, b)):
                raise ValueError
            number = int(class_id) if class_id.strip() else None
        except ValueError:
            raise InputError(
                f"{path} names the colour {channels} of {name or 'a class'}; give three numbers "
                "from 0 to 255."
            ) from None
        if (r, g, b) in colours:
            raise InputError(f"{path} names the colour {(r, g, b)} twice; name each colour once.")
        is_void = re.sub(r"[\W_]", "", name.lower()) in VOID
        if number == NO_CLASS or (number is None and is_void):
            number = IGNORE_INDEX
        colours[r, g, b] = count if number is None else number
        count += number is None
    if not colours:
        raise InputError(
            f"{path} names no colour; give one row with name, r, g and b for each class."
        )
    return colours


def unnamed_background(source: str) -> str | None:
    """Tell that a colour is class 0 only since its row is the first; None if this is no doubt.

    Args:
        source: See `read_colours`.
    """
    if source.lower() in ("voc", "cityscapes"):
        return None
    rows = _colour_rows(Path(source).expanduser())
    if any(class_id.strip() or name.strip().lower() in BACKGROUND for name, _, class_id in rows):
        return None
    first = next((colour for colour, k in read_colours(source).items() if k == 0), (0, 0, 0))
    if first == (0, 0, 0):
        return None
    return (
        f"{source} names no background, so the colour {first}, the first that is a class, is class "
        "0; call the right row background, or add a column class."
    )


def _colour_rows(path: Path) -> list[tuple[str, list[str], str]]:
    """Read name, channels and class of each row of a table of colours."""
    if not path.is_file():
        raise InputError(
            f"data.colours={path}: there is no such file; give voc, cityscapes, or a table with "
            "the columns name, r, g and b."
        )
    if path.suffix.lower() == ".txt":
        return _labelmap(path)
    table = read_table(path, ["r", "g", "b"], guarded=False)
    header = set(table[0]) if table else set[str]()
    others = set[str]() if "class" in header else header - COLOUR_COLUMNS - {""}
    if others:
        raise InputError(
            f"{path} has a column {min(others)}, which is not read; call it class if it holds "
            "class ids, or name if it holds names, or remove it."
        )
    return [
        (row.get("name", ""), [row[key] for key in "rgb"], row.get("class", "")) for row in table
    ]


def _labelmap(path: Path) -> list[tuple[str, list[str], str]]:
    """Read the lines `name:r,g,b:parts:actions` that CVAT writes."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(":")
            rows.append((name, re.split(r"[,\s]+", rest.partition(":")[0].strip()), ""))
    return rows


def _voc() -> dict[Colour, int]:
    """Return the colours of PASCAL VOC's 21 classes. The outlines of objects have no class."""
    return {_voc_colour(k): k for k in range(21)} | {_voc_colour(255): IGNORE_INDEX}


def _voc_colour(k: int) -> Colour:
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= ((k >> (3 * bit + channel)) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def _cityscapes() -> dict[Colour, int]:
    """Return the colours of the 19 evaluated classes of Cityscapes. Its others have no class."""
    colours = (
        *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
        *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
        *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
        *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
    )
    others = (
        *((0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140)),
        *((180, 165, 180), (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110)),
    )
    classes = {colour: k for k, colour in enumerate(colours)}
    return classes | dict.fromkeys(others, IGNORE_INDEX)


def classes_of_colours(
    values: NDArray[Any], colours: Mapping[Colour, int], path: Path
) -> NDArray[np.uint8]:
    """Read the class of each pixel from its colour.

    Args:
        values: `(H, W, 3)` uint8.
        colours: The class of each colour.
        path: The file, for messages.

    Raises:
        InputError: If the file holds colours that `colours` does not name.
    """
    codes = (values.astype(np.uint32) * np.array([1 << 16, 1 << 8, 1], np.uint32)).sum(axis=2)
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    named = {(r << 16) + (g << 8) + b: k for (r, g, b), k in colours.items()}
    unknown = [(int(count), int(code)) for code, count in zip(found, counts, strict=True)]
    unknown = sorted((one for one in unknown if one[1] not in named), reverse=True)
    if unknown:
        listed = [f"({c >> 16}, {c >> 8 & 255}, {c & 255}) in {n} pixels" for n, c in unknown[:5]]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"{path} holds colours that data.colours does not name: {', '.join(listed)}{more}; add "
            "them, or save the mask without smoothed edges and not as JPEG."
        )
    table = np.array([named[int(code)] for code in found], np.uint8)
    return table[inverse.reshape(codes.shape)]


def nearest_values(values: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
    """Give each pixel the value of the nearest pixel in `where`; 1 if there is none."""
    from scipy import ndimage

    if not where.any():
        return np.ones_like(values)
    indices: Any = ndimage.distance_transform_edt(
        ~where, return_distances=False, return_indices=True
    )
    return np.asarray(values[tuple(indices)])


def listed(values: Sequence[int], limit: int = 12) -> str:
    """List values for a sentence, or only the first ones if there are many."""
    shown = ", ".join(map(str, values[:limit]))
    return f"{shown} and {len(values) - limit} more" if len(values) > limit else shown
