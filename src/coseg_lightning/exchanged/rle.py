"""Run lengths of masks, as COCO, CVAT and Label Studio write them.

They are decoded here instead of by pycocotools. That package is compiled, and only knows one of the
three formats. Its decoder trusts the counts in a file, and wrong counts make it write beyond its
memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.exchanged.tasks import Region, Shape

WORD = 8  # bits of a value in Label Studio's runs
LENGTHS = (3, 4, 8, 16)  # bits of a length, by the size of the run
OPAQUE = 255


def run_lengths(flat: Region) -> list[int]:
    """Return the lengths of alternating runs; the first is of outside pixels, and may be 0."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def from_run_lengths(lengths: Sequence[int], size: int) -> Region:
    """Return the pixels of alternating runs.

    Args:
        lengths: The lengths; the first run is outside.
        size: The sum of the lengths.

    Raises:
        ValueError: If they are not valid lengths, or have another sum.
    """
    if any(type(length) is not int or not 0 <= length <= size for length in lengths):
        raise ValueError("a run has no length")
    if sum(lengths) != size:
        raise ValueError(f"the runs have {sum(lengths)} pixels instead of {size}")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths)


def coco_rle(region: Region) -> list[int]:
    """Return the run lengths of a region by columns."""
    return run_lengths(region.ravel(order="F"))


def from_coco_rle(counts: Sequence[int] | str | bytes, shape: Shape) -> Region:
    """Decode run lengths by columns, given as numbers or packed into a text.

    Raises:
        ValueError: If they do not fit an image of this height and width.
    """
    if isinstance(counts, str | bytes):
        text = counts.encode("latin-1") if isinstance(counts, str) else counts
        counts = list(_unpacked(text))
    return from_run_lengths(counts, shape[0] * shape[1]).reshape(shape, order="F")


def _unpacked(text: bytes) -> Iterator[int]:
    """Unpack COCO's counts: digits of five bits; from the fourth count on, differences."""
    before: list[int] = []
    value = shift = 0
    for code in text:
        digit = code - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("a count is not a packed number")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more digits follow
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        if len(before) > 2:
            value += before[-2]
        before.append(value)
        yield value
        value = shift = 0
    if shift:
        raise ValueError("the last count is cut off")


def brush_rle(region: Region) -> list[int]:
    """Encode a region in Label Studio's brush format: runs of equal bytes of an RGBA image."""
    size = 4 * region.size
    parts = [f"{size:032b}{WORD - 1:05b}", *(f"{bits - 1:04b}" for bits in LENGTHS)]
    value = 0
    for length in run_lengths(region.ravel()):
        rest = 4 * length
        while rest:
            run = min(rest, 1 << LENGTHS[-1])
            kind = next(k for k, bits in enumerate(LENGTHS) if run <= 1 << bits)
            parts.append(f"1{kind:02b}{run - 1:0{LENGTHS[kind]}b}{value:08b}")
            rest -= run
        value = OPAQUE - value
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def from_brush_rle(rle: Sequence[int], shape: Shape) -> Region:
    """Decode Label Studio's brush format.

    A pixel belongs to the brush if it is more than half as opaque as the most opaque pixel. The
    rim of a stroke is smooth, and files use 0 and 1 as well as 0 and 255.

    Raises:
        ValueError: If it is not a brush on an image of this height and width.
    """
    data = bytes(rle)
    bits = _Bits(f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else "")
    size, word = bits.read(32), bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    if size != 4 * shape[0] * shape[1]:
        raise ValueError(f"the brush has {size // 4} pixels instead of {shape[0] * shape[1]}")
    if word > 16:
        raise ValueError(f"the brush has values of {word} bits")
    values: NDArray[Any] = np.zeros(size, np.uint8 if word <= 8 else np.uint16)
    place = 0
    while place < size:
        is_run = bits.read(1)
        end = place + 1 + bits.read(lengths[bits.read(2)])
        if end > size:
            raise ValueError("the brush has more pixels than the image")
        if is_run:
            values[place:end] = bits.read(word)
        else:
            values[place:end] = [bits.read(word) for _ in range(end - place)]
        place = end
    alpha = values.reshape(*shape, 4)[..., 3]
    return np.asarray(alpha > alpha.max() // 2)


class _Bits:
    """Reads numbers from a text of bits."""

    def __init__(self, text: str) -> None:
        self._text, self._place = text, 0

    def read(self, count: int) -> int:
        """Read a number with the given number of bits."""
        end = self._place + count
        if end > len(self._text):
            raise ValueError("the brush is cut off")
        value = int(self._text[self._place : end], 2)
        self._place = end
        return value
