"""The parts that all tools share: written tasks, read answers, and the classes' names."""

import binascii
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import smallest_type
from coseg_lightning.files.mask_rules import IGNORE_INDEX, VOID
from coseg_lightning.labels.masks import Mask

Shape = tuple[int, int]  # height and width
MOST_LISTED = 5  # images that a remark names
MOST_BEYOND = 8  # pixels by which a corner may lie beyond an image of unknown size
Region = NDArray[np.bool_]
BACKGROUND, UNLABELLED = "background", "unlabelled"
# Errors that decoders raise on malformed content.
MALFORMED = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError),
    *(RecursionError, EOFError, OSError, MemoryError, zlib.error, binascii.Error, SyntaxError),
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Task:
    """An image with an initial mask.

    Args:
        sample_id: The sample's id.
        name: The name of the image file, without its suffix.
        mask: `(H, W)` class ids, 255 for unlabelled pixels.
    """

    sample_id: str
    name: str
    mask: Mask


@dataclass(frozen=True)
class Layer:
    """A part of an answer. Later layers cover earlier ones.

    Args:
        label: The name of its class, or its class id if the tool keeps ids.
        draw: Returns the part's pixels for a given height and width.
        is_outline: Whether it was drawn by its corners, and not with a brush.
    """

    label: str | int
    draw: Callable[[Shape], Region]
    is_outline: bool = False


@dataclass(frozen=True)
class Answer:
    """A person's drawing on one image.

    Args:
        image: The tool's name of the image.
        layers: The parts, the lowest first.
        place: The place where it was read, for messages.
        size: Height and width of the image, if the tool stores them.
        reviewer: The person who drew it, if the tool stores this.
        note: That person's note.
        sample_id: The sample's id, if the tool kept it.
        is_sure: Whether even an empty answer surely comes from a person.
        left_out: The number of drawn parts that are no areas, such as points.
        file: Another name of the image, which must not be that of another sample.
        reach: The largest y and x of its corners, in pixels, for images without a size.
    """

    image: str
    layers: Sequence[Layer]
    place: str
    size: Shape | None = None
    reviewer: str = ""
    note: str = ""
    sample_id: str | None = None
    is_sure: bool = True
    left_out: int = 0
    file: str | None = None
    reach: tuple[float, float] = (0.0, 0.0)


@dataclass
class Answers:
    """The answers of an export.

    Args:
        found: The answers.
        remarks: Sentences about the answers for the user.
    """

    found: list[Answer] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Ignored:
    """Counts the parts of answers that have no area and are left out."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._images: dict[str, str] = {}

    def add(self, kind: str, image: str) -> None:
        """Count a part of the given kind on an image."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._images.setdefault(kind, image)

    def remarks(self) -> list[str]:
        """Return a sentence that lists the counts by kind, if there are any."""
        if not self._counts:
            return []
        kinds = ", ".join(
            f"{count} {kind} (as in {self._images[kind]})"
            for kind, count in sorted(self._counts.items())
        )
        return [f"These parts were left out, since they are not areas of a class: {kinds}."]


@dataclass(frozen=True)
class Classes:
    """The names of a run's classes.

    Args:
        names: The names of class 1, 2 and so on.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[object] | None, count: int) -> "Classes":
        """Use the run's class names, or else `class 1` and so on.

        Args:
            names: The names given to the run, if any. They are used if there is one for each
                class and all are distinct.
            count: Number of classes, background included.
        """
        given = tuple(str(name) for name in names or ())
        reserved = {_plain(BACKGROUND), _plain(UNLABELLED), ""}
        distinct = {_plain(name) for name in given} - reserved
        if len(given) == len(distinct) == count - 1:
            return cls(given)
        return cls(tuple(f"class {k}" for k in range(1, count)))

    def name(self, class_id: int) -> str:
        """The name of a class id."""
        if class_id == IGNORE_INDEX:
            return UNLABELLED
        return [BACKGROUND, *self.names][class_id]

    def regions(self, mask: Mask) -> Iterator[tuple[str, Region]]:
        """Yield the name and the pixels of each class of a mask except background."""
        for class_id in np.unique(mask).tolist():
            if class_id:
                yield self.name(class_id), mask == class_id

    def ids(self, labels: Collection[str], source: object) -> tuple[dict[str, int], list[str]]:
        """Find the class of each label.

        Args:
            labels: All labels of an export.
            source: The export, for messages.

        Returns:
            The class ids, and sentences for the user.

        Raises:
            InputError: If a label is not one of the run's classes.
        """
        known = {_plain(name): k for k, name in enumerate([BACKGROUND, *self.names])}
        for name in VOID:
            known.setdefault(_plain(name), IGNORE_INDEX)
        ids = {label: known[_plain(label)] for label in labels if _plain(label) in known}
        unknown = sorted(set(labels) - set(ids))
        is_foreground = len(self.names) == len(unknown) == 1 and 1 not in ids.values()
        if is_foreground:  # the single foreground class, under another name
            ids[unknown[0]] = 1
            return ids, [f"The label {unknown[0]!r} was read as {self.names[0]!r}."]
        if unknown:
            raise InputError(
                f"{source} has the label {unknown[0]!r}, which is not a class of the run; the "
                f"labels are {', '.join(self.names)}, {BACKGROUND} and {UNLABELLED}: rename it in "
                "the tool, or delete the annotations that have it."
            )
        return ids, []


def _plain(name: str) -> str:
    """Normalise the changes that tools make to names, such as case and underscores."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def painted(answer: Answer, shape: Shape, ids: dict[str, int]) -> Mask:
    """Paint the mask of an answer.

    Args:
        answer: The answer.
        shape: Height and width of the sample's own mask.
        ids: The class of each label.

    Returns:
        `(H, W)` class ids.

    Raises:
        InputError: If the answer has another size or is damaged.
        NothingDrawnError: If it lies beside the image.
    """
    if answer.size is not None and answer.size != shape:
        raise _other_size(answer, answer.size, shape)
    if answer.size is None and any(
        side > MOST_BEYOND + of for side, of in zip(answer.reach, shape, strict=True)
    ):
        y, x = answer.reach
        raise InputError(
            f"{answer.place}: {answer.image} has corners at ({x:.0f}, {y:.0f}), but the run's mask "
            f"has {shape[1]} x {shape[0]} pixels; draw on the image that coseg exchange wrote."
        )
    mask, is_drawn = np.zeros(shape, np.uint16), not answer.layers
    for layer in answer.layers:
        try:
            with reading(f"{answer.place}, {answer.image},"):
                region = layer.draw(shape)
        except OtherSizeError as error:
            raise _other_size(answer, error.shape, shape) from error
        is_drawn |= not layer.is_outline or bool(region.any())  # a brush may be erased
        mask[region] = layer.label if isinstance(layer.label, int) else ids[layer.label]
    if not is_drawn:
        raise NothingDrawnError(
            f"{answer.place}: nothing that is drawn on {answer.image} covers a pixel of it; give "
            "corners in pixels of the image that coseg exchange wrote, or delete these shapes."
        )
    return smallest_type(mask)


def listed(images: Sequence[str]) -> str:
    """Return the number of some images and the first of them, for a remark."""
    more = ", ..." if len(images) > MOST_LISTED else ""
    return f"{len(images)} ({', '.join(images[:MOST_LISTED])}{more})"


@contextmanager
def reading(place: object, wanted: str = "an export") -> Iterator[None]:
    """Turn a decoder's errors on damaged content into one sentence."""
    try:
        yield
    except InputError:
        raise
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{place} cannot be read as {wanted} ({type(error).__name__}: {reason}); export it "
            "again."
        ) from error


class NothingDrawnError(InputError):
    """No shape of an answer covers a pixel of the image."""


class OtherSizeError(InputError):
    """A part of an answer has another size than the image.

    Args:
        shape: The part's height and width.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(f"a part has {shape[1]} x {shape[0]} pixels")
        self.shape = shape


def check_size(size: Sequence[int], shape: Shape) -> None:
    """Raise an `OtherSizeError` unless a part of an answer has the image's height and width."""
    height, width = (int(side) for side in size)
    if (height, width) != shape:
        raise OtherSizeError((height, width))


def _other_size(answer: Answer, size: Shape, shape: Shape) -> InputError:
    return InputError(
        f"{answer.place}: {answer.image} has {size[1]} x {size[0]} pixels, but the run's mask has "
        f"{shape[1]} x {shape[0]}; draw on the image that coseg exchange wrote."
    )
