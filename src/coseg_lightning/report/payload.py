"""Encodes samples for the workbench, in parts: some in the page, the others in files."""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.preparation import rescale_intensity, without_gaps
from coseg_lightning.files.atomic import write_text
from coseg_lightning.files.workers import workers
from coseg_lightning.labels.masks import Mask, with_unlabelled
from coseg_lightning.labels.review import proposal_digest
from coseg_lightning.labels.store import LabelStore

if TYPE_CHECKING:
    from coseg_lightning.report.figures import Pictured

FOLDER = "review"  # beside the page, for the parts that do not fit into it
MAX_SIDE = 2048  # pixels of an image's longer side; masks keep their size
MAX_CHARACTERS = 4_800_000  # of all parts in the page
MAX_BYTES = 300_000_000  # of all parts together
PART_CHARACTERS = 1_000_000  # length above which a part is closed
JPEG_QUALITY = 88

Proposals = Mapping[str, LabelStore | Mask]


@dataclass
class Payload:
    """The parts of a page, and facts about the samples whose masks were read.

    Attributes:
        inside: The parts within the page, as JSON that is safe in a script element.
        digests: One digest per part, so that a file of another page is not mistaken for it.
        part_of: The number of the part with a sample's pictures, by id.
        proposed: The digest of the proposal, by id; see `proposal_digest`.
        change: The share of the marked area in which proposal and given mask differ, by id.
        classes: The classes that differ, or all classes if there is no proposal, by id.
        limit: The limit in bytes if it was too small for all samples, else None.
        highest: The highest class id.
    """

    inside: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    part_of: dict[str, int] = field(default_factory=dict)
    proposed: dict[str, str] = field(default_factory=dict)
    change: dict[str, float] = field(default_factory=dict)
    classes: dict[str, list[int]] = field(default_factory=dict)
    limit: int | None = None
    highest: int = 0

    def add(self, ids: Iterable[str], text: str) -> int:
        """Add a part, and return its number."""
        self.digests.append(hashlib.blake2b(text.encode(), digest_size=8).hexdigest())
        number = len(self.digests) - 1
        self.part_of |= dict.fromkeys(ids, number)
        return number

    def record(self, sample_id: str, found: "Encoded") -> None:
        """Record how much a proposal differs, and the classes by which a sample is found."""
        self.change[sample_id], self.classes[sample_id] = found.change, found.classes
        self.proposed[sample_id] = found.proposed
        self.highest = max(self.highest, found.highest, *found.classes)

    def end(self, limit: int) -> None:
        """Leave out all further samples."""
        self.limit = limit


def write_payload(
    folder: Path,
    samples: "Pictured",
    order: Sequence[str],
    proposals: Proposals,
    processes: int = 1,
) -> Payload:
    """Encode samples in review order, and write the parts that do not fit into the page.

    Args:
        folder: The page's folder.
        samples: The samples with the given masks.
        order: The ids of the samples that can be reviewed, in review order.
        proposals: The proposed masks or their layers, by id.
        processes: Number of processes that read and encode.
    """
    payload = Payload()
    used = 0
    files = 0
    for part in _parts(samples, order, proposals, payload, processes):
        text = safe_json(part)
        if used + len(text) > MAX_BYTES:
            payload.end(MAX_BYTES)
            break
        used += len(text)
        number = payload.add(part, text)
        if not files and used <= MAX_CHARACTERS:
            payload.inside.append(text)
            continue
        files += 1
        call = f'cosegPart({number}, "{payload.digests[-1]}", {text});\n'
        write_text(folder / FOLDER / part_name(number - len(payload.inside)), call)
    _remove_parts(folder / FOLDER, files)
    return payload


def part_name(number: int) -> str:
    """Return the file name of a part outside the page, counted from 0."""
    return f"part-{number + 1:04d}.js"


def _remove_parts(folder: Path, first: int) -> None:
    """Remove leftover parts of an earlier, larger page."""
    for path in folder.glob("part-*.js"):
        number = path.stem.removeprefix("part-")
        if number.isdigit() and int(number) > first:
            path.unlink()


def _parts(
    samples: "Pictured",
    order: Sequence[str],
    proposals: Proposals,
    payload: Payload,
    processes: int,
) -> Iterator[dict[str, Any]]:
    index_of = {sample_id: index for index, sample_id in enumerate(samples.ids)}
    indices = [index_of[sample_id] for sample_id in order if sample_id in index_of]
    encoder = _Encoder(samples.dataset, samples.ids, proposals)
    part: dict[str, Any] = {}
    length = 0
    with workers(encoder, processes) as work:
        for index, found in zip(indices, work("encode", indices, "Writing pictures"), strict=True):
            payload.record(samples.ids[index], found)
            part[samples.ids[index]] = found.content
            length += sum(len(value) for value in found.content.values() if isinstance(value, str))
            if length > PART_CHARACTERS:
                yield part
                part, length = {}, 0
    if part:
        yield part


class Encoded(NamedTuple):
    """The pictures of a sample, and facts about its masks.

    Attributes:
        content: What the page reads.
        proposed: The digest of the proposal; an empty text if there is none.
        change: The share of the marked area in which proposal and given mask differ.
        classes: The classes that differ, or all classes if there is no proposal.
        highest: The highest class id of the given mask.
    """

    content: dict[str, Any]
    proposed: str
    change: float
    classes: list[int]
    highest: int


@dataclass(frozen=True)
class _Encoder:
    """Reads and encodes one sample; any process can do that."""

    dataset: Any
    ids: Sequence[str]
    proposals: Proposals

    def encode(self, index: int) -> Encoded:
        given = self.dataset.mask(index)
        proposal = read_proposal(self.proposals, self.ids[index])
        if proposal is not None:
            proposal = with_unlabelled(proposal, given)
        return _encode(self.dataset.image(index), given, proposal)


def _encode(image: NDArray[Any], given: Mask, proposal: Mask | None) -> Encoded:
    content = {
        "image": image_url(image),
        "width": given.shape[1],
        "height": given.shape[0],
        "given": mask_text(given),
    }
    if proposal is not None:
        content["proposal"] = mask_text(proposal)
    change, classes = compared(given, proposal)
    digest = "" if proposal is None else proposal_digest(proposal)
    return Encoded(content, digest, change, classes, int(given.max(where=given != 255, initial=0)))


def read_proposal(proposals: Proposals, sample_id: str) -> Mask | None:
    """Return the proposed mask of a sample; None if there is none."""
    proposal = proposals.get(sample_id)
    return proposal.read(sample_id) if isinstance(proposal, LabelStore) else proposal


def compared(given: Mask, proposal: Mask | None) -> tuple[float, list[int]]:
    """Return the share of the marked area that differs, and the classes that differ.

    Unlabelled pixels of the given mask do not count.
    """
    if proposal is None or proposal.shape != given.shape:
        return 0.0, _classes(given)
    labelled = given != 255
    different = labelled & (given != proposal)
    marked = int((labelled & ((given > 0) | (proposal > 0))).sum())
    classes = sorted({*_classes(given[different]), *_classes(proposal[different])})
    return int(different.sum()) / max(marked, 1), classes


def _classes(mask: Mask) -> list[int]:
    """The classes of a mask without background and unlabelled pixels."""
    small = mask.dtype in (np.uint8, np.uint16)  # these need no sorting
    found = np.flatnonzero(np.bincount(mask.ravel())) if small else np.unique(mask)
    return sorted(set(found.tolist()) - {0, 255})


def image_url(image: NDArray[Any]) -> str:
    """Encode an image of any range and number of bands as the `src` of an image element.

    Of two bands the first is shown, of more than three the first three, each with its own range.
    """
    bands = image[..., None] if image.ndim == 2 else image
    by_band = bands.shape[2] > 3
    bands = without_gaps(bands[..., : 3 if bands.shape[2] >= 3 else 1])
    scale = MAX_SIDE / max(bands.shape[:2])
    if scale < 1 or bands.dtype != np.uint8:
        bands = bands.astype(np.float32)
    if scale < 1:
        size = [max(1, round(side * scale)) for side in bands.shape[1::-1]]
        bands = cv2.resize(bands, size, interpolation=cv2.INTER_AREA)
        bands = bands[..., None] if bands.ndim == 2 else bands
    colours = (255 * rescale_intensity(bands, by_band=by_band)).astype(np.uint8)
    return jpeg_url(colours, JPEG_QUALITY)


def jpeg_url(picture: NDArray[Any], quality: int) -> str:
    """Encode a picture, RGB or with one band, as the `src` of an image element."""
    blue_first = np.ascontiguousarray(picture[..., ::-1])
    encoded, jpeg = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def mask_text(mask: Mask) -> str:
    """Encode class ids as a grey PNG of 8 or 16 bits, in base64."""
    narrow = np.uint8 if mask.max(initial=0) < 256 else np.uint16
    encoded, png = cv2.imencode(".png", np.ascontiguousarray(mask, narrow))
    assert encoded
    return base64.b64encode(png.tobytes()).decode()


def safe_json(value: Any) -> str:
    """Write JSON whose text cannot end the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so no U+2028
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
