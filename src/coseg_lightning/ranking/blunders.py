"""Blunders that can be recognised without a network: swapped files, flips, shifts, boxes.

A first look reduces each mask to a few hundred bytes (`Shape`). A second look at the few masks
whose outlines fit worst (`Fit`) compares them with the edges of their own and of other images. A
blunder is only reported if few masks have the property and if it explains the misfit. Names that
are often wrong help nobody.

Legend of shapes: N samples, K classes, H x W pixels, C bands, S x S pixels of a thumbnail.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[Any]
Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

EMPTY = "empty"
FULL = "full"
EQUALS_IMAGE = "equals image"
INVERTED = "inverted"
COPY = "copy"
ANOTHER = "another image's"
FLIPPED = "flipped"
SHIFTED = "shifted"
BOX = "box"
POLYGON = "polygon"
COMPONENTS = "several parts"
BORDER = "touches border"
UNJUDGED = "not judged"

MEANINGS = {
    EMPTY: "nothing is outlined, unlike in the others",
    FULL: "nearly the whole image is outlined",
    EQUALS_IMAGE: "mask and image are the same picture",
    INVERTED: "foreground and background are swapped",
    COPY: "the same mask also belongs to another image",
    ANOTHER: "fits another image, and not its own",
    FLIPPED: "fits the image only after it is mirrored or turned",
    SHIFTED: "fits the image only after it is moved",
    BOX: "an upright rectangle, unlike the others",
    POLYGON: "few straight lines, unlike the others",
    COMPONENTS: "in several parts, unlike the others",
    BORDER: "touches the image's border, unlike the others",
    UNJUDGED: "its outline lies beside unlabelled pixels, or where the image is flat",
}
# Masks whose foreground is in the wrong place. The other names are odd shapes, which may be right.
MISPLACED = (EMPTY, FULL, EQUALS_IMAGE, INVERTED, COPY, ANOTHER, FLIPPED, SHIFTED)
# Names that are dropped beside another name because they follow from it.
CONSEQUENCES = {
    EQUALS_IMAGE: {FULL, INVERTED, COPY, ANOTHER, FLIPPED, SHIFTED},
    FULL: {INVERTED, ANOTHER, FLIPPED, SHIFTED},
    INVERTED: {ANOTHER, FLIPPED, SHIFTED},
    COPY: {ANOTHER, FLIPPED, SHIFTED},
    ANOTHER: {FLIPPED, SHIFTED},
    FLIPPED: {SHIFTED},
}

SIDE = 64  # of the thumbnails of the second look
PLACE_SIDE = 32  # of the reduced foreground that is kept of each mask
SHAPE_SIDE = 256  # largest side of the mask whose shapes are described
MOST_BANDS = 16  # first bands of an image whose tones are compared
MOST_CLASSES = 8  # largest classes of a mask that are described
FEWEST_SAMPLES = 20  # needed for a comparison with the others
RARE = 0.01  # largest share of masks with an odd shape for it to be reported; one always may be
UNUSUAL = 0.05  # the same for properties that correct masks hardly ever have
FULL_SHARE = 0.98  # foreground of a full mask
BOX_SHARE = 0.975  # of its bounding box that a box fills
STRAIGHTNESS = 2.0  # smallest straightness of a polygon; a circle has about 1.1
STRAIGHTER = 1.3  # factor by which a polygon is straighter than nearly all others
PART_SHARE = 0.2  # smallest area of a part, as a share of the largest part
CONTACT = 0.01  # smallest share of the image's border that a mask touching it covers
NEAREST_SHIFT, FARTHEST_SHIFT = 2, 16  # in pixels of the thumbnail: 3 % and 25 % of the side
FIT_EVIDENCE = 4.0  # fit of a typical mask, in deviations; below this no misfit is reported
OTHERS_EVIDENCE = 3.0  # the same for fits relative to other images, which resemble each other
POOR_FIT = 0.6  # largest fit of a misplaced mask, as a share of its fit in the right place
POOR_OWN_FIT = 0.5  # the same for the mask of another image
GOOD_FIT = 0.7  # smallest fit in the right place, as a share of the usual fit
NOISE_FIT = 5.0  # in deviations: better than the best of many wrong places
NOISE_OTHERS = 4.5  # in deviations: better than the best of many wrong images


class ClassShape(NamedTuple):
    """Shape statistics of one class of a mask.

    Attributes:
        parts: Number of sizeable parts.
        boxes: Whether nearly all of the area is in upright rectangles.
        straightness: Length of the outline's straight edges, in square roots of its length.
        on_border: Share of the image's border that the class covers.
    """

    parts: int
    boxes: bool
    straightness: float
    on_border: float


class Shape(NamedTuple):
    """The statistics that are kept of each mask, in less than 500 bytes.

    Attributes:
        known: Share of the pixels that are not ignored.
        share: Share of the known pixels that are foreground.
        on_border: Share of the image's border that is foreground.
        place: `(PLACE_SIDE, PLACE_SIDE)` foreground, one bit each.
        tones: Correlation of the foreground with each band of the image, the first bands only.
        levels: Number of the mask's values if the image has the same values, else 0.
        image_digest: Identifies the image.
        mask_digest: Identifies the mask.
        classes: Shape statistics of the mask's classes.
    """

    known: float
    share: float
    on_border: float
    place: bytes
    tones: tuple[float, ...]
    levels: int
    image_digest: bytes
    mask_digest: bytes
    classes: dict[int, ClassShape]


class Fit(NamedTuple):
    """The statistics that are kept of the few masks with a second look.

    Attributes:
        edges: `(S * S,)` complex edges of the image, as vectors of twice their angle.
        outline: `(S * S,)` complex outline of the mask, likewise.
        own: Fit of the outline to the edges, in deviations of the fit at random places.
        shifted: The best fit of the moved mask.
        flipped: The best fit of the mirrored or turned mask.
    """

    edges: Array
    outline: Array
    own: float
    shifted: float
    flipped: float


# --- the first look ---


def describe(image: Array, mask: Array, ignore_index: int = 255) -> Shape:
    """Reduce a mask to a few statistics.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        mask: `(H, W)` class ids, 0 for background.
        ignore_index: Marks pixels of unknown class.
    """
    known = mask != ignore_index
    pixels = int(np.count_nonzero(known))
    classes = _classes(mask, ignore_index)
    place = _sampled(classes, PLACE_SIDE, PLACE_SIDE) > 0
    some = _sampled(image, *(min(side, SIDE) for side in mask.shape))
    return Shape(
        known=pixels / mask.size,
        share=(np.count_nonzero(mask) - (mask.size - pixels)) / max(pixels, 1),
        on_border=float(np.mean(_border(classes) > 0)),
        place=np.packbits(place).tobytes(),
        tones=_tones(some, _sampled(mask, *some.shape[:2]), ignore_index),
        levels=_common_levels(image, mask, known),
        image_digest=_digest(np.ascontiguousarray(some)),
        mask_digest=_digest(classes),
        classes=_class_shapes(classes),
    )


def places(shapes: Sequence[Shape]) -> NDArray[np.bool_]:
    """Unpack the foreground of some masks, `(N, PLACE_SIDE ** 2)`."""
    packed = np.frombuffer(b"".join(shape.place for shape in shapes), np.uint8)
    return np.unpackbits(packed.reshape(len(shapes), -1), axis=1).astype(bool)


def _classes(mask: Array, ignore_index: int) -> NDArray[np.uint16]:
    """Return at most SHAPE_SIDE pixels in each direction, with ignored pixels as background."""
    small = _sampled(mask, *(min(side, SHAPE_SIDE) for side in mask.shape))
    return np.where(small == ignore_index, 0, small).astype(np.uint16)


def _sampled(picture: Array, height: int, width: int) -> Array:
    """Pixels at the centres of a grid, `(height, width, ...)`."""
    rows = (np.arange(height) + 0.5) * picture.shape[0] / height
    columns = (np.arange(width) + 0.5) * picture.shape[1] / width
    return np.asarray(picture[rows.astype(int)[:, None], columns.astype(int)])


def _border(mask: Array) -> Array:
    """Return the outermost pixels of a mask, as a vector."""
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])


def _tones(image: Array, mask: Array, ignore_index: int) -> tuple[float, ...]:
    """Correlation of the foreground with each band; 0 where either has one value only."""
    known = mask != ignore_index
    inside = (mask[known] > 0) - np.mean(mask[known] > 0) if known.any() else np.zeros(0)
    tones = []
    for band in np.moveaxis(np.atleast_3d(image), 2, 0)[:MOST_BANDS]:
        values = np.nan_to_num(band[known].astype(np.float64), posinf=0, neginf=0)
        values -= values.mean() if len(values) else 0
        scale = np.linalg.norm(inside) * np.linalg.norm(values)
        tones.append(float(inside @ values / scale) if scale > 0 else 0.0)
    return tuple(tones)


def _digest(pixels: Array) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def _common_levels(image: Array, mask: Array, known: Flags) -> int:
    """Number of the mask's values if the image is a rising linear map of them, else 0.

    The bands are also compared after thresholding at half of their range.
    """
    step = max(1, min(mask.shape) // 64)
    few = (slice(None, None, step), slice(None, None, step))
    bands = [*np.moveaxis(np.atleast_3d(image), 2, 0)]
    if np.issubdtype(image.dtype, np.unsignedinteger):
        bands += [band > np.iinfo(image.dtype).max // 2 for band in bands]
    for band in bands:
        if _is_linear(band[few], mask[few], known[few]) and _is_linear(band, mask, known):
            return len(np.unique(mask[known]))
    return 0


def _is_linear(band: Array, mask: Array, known: Flags) -> bool:
    """Whether the band's values are a rising linear map of the mask's, up to rounding."""
    x, y = mask[known].astype(np.float64), band[known].astype(np.float64)
    if not len(x) or x.min() == x.max():
        return False
    low, high = y[x == x.min()].mean(), y[x == x.max()].mean()
    expected = low + (x - x.min()) * (high - low) / (x.max() - x.min())
    return bool(high > low and np.abs(y - expected).max() <= 0.005 * (high - low))


def _class_shapes(classes: NDArray[np.uint16]) -> dict[int, ClassShape]:
    """Shape statistics of the largest classes of a mask."""
    areas = np.bincount(classes.ravel())
    areas[0] = 0
    largest = np.argsort(-areas, kind="stable")[:MOST_CLASSES]
    return {int(k): _shape_of((classes == k).astype(np.uint8)) for k in largest if areas[k]}


def _shape_of(region: NDArray[np.uint8]) -> ClassShape:
    """Shape statistics of a non-empty region."""
    contours = _contours(region)
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    sides = np.array([cv2.boundingRect(contour)[2:] for contour in contours]) - 1
    is_box = (areas >= BOX_SHARE * sides.prod(axis=1)) & (sides.min(axis=1) >= 9)
    is_frame = (sides == np.array(region.shape[::-1]) - 1).all(axis=1)  # the image's own
    return ClassShape(
        parts=_count_parts(region),
        boxes=bool(areas[is_box & ~is_frame].sum() >= 0.95 * max(areas.sum(), 1)),
        straightness=0.0 if is_frame.any() else _straightness(max(contours, key=len)),
        on_border=float(_border(region).mean()),
    )


def _contours(region: NDArray[np.uint8]) -> Sequence[Array]:
    return cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]


def _count_parts(region: NDArray[np.uint8]) -> int:
    """Count the sizeable parts; those that nearly touch count as one."""
    wide = np.asarray(cv2.dilate(region, np.ones((3, 3), np.uint8)), np.uint8)
    areas = np.array([cv2.contourArea(contour) for contour in _contours(wide)])
    return int(np.sum(areas >= max(PART_SHARE * areas.max(), 0.001 * region.size)))


def _straightness(contour: Array) -> float:
    """Length of the outline's straight edges, in square roots of its length.

    A circle has about 1.1 at any size; a polygon of few edges has more. Short outlines have 0.
    """
    length = cv2.arcLength(contour, True)
    if length < 80:
        return 0.0
    return float(np.sqrt(length) / len(cv2.approxPolyDP(contour, 1.0, True)))


# --- the second look: outlines and edges ---


def look_again(image: Array, mask: Array, ignore_index: int = 255) -> Fit:
    """Compare a mask, in several places, with the edges of its image.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        mask: `(H, W)` class ids, 0 for background.
        ignore_index: Marks pixels of unknown class.
    """
    edges = _edge_vectors(_thumbnails(image))
    outline = _outline_vectors(_classes(mask, ignore_index))
    fits = _fits(edges, outline, square=mask.shape[0] == mask.shape[1])
    return Fit(edges.ravel(), outline.ravel(), *fits)


def _thumbnails(image: Array) -> NDArray[np.float32]:
    """Reduce each band of the image to 2S x 2S pixels, `(C, 2S, 2S)`."""
    size = (2 * SIDE, 2 * SIDE)
    small = [
        cv2.resize(band.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for band in np.moveaxis(np.atleast_3d(image), 2, 0)
    ]
    return np.asarray(np.nan_to_num(np.stack(small), posinf=0, neginf=0), np.float32)


def _doubled_angles(picture: Array) -> NDArray[np.complex64]:
    """Gradients as complex numbers of twice their angle, so that opposite gradients are equal."""
    x = cv2.Sobel(picture, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE)
    y = cv2.Sobel(picture, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE)
    gradient = x + 1j * y
    size = np.abs(gradient)
    return np.asarray(gradient**2 / np.where(size > 0, size, 1), np.complex64)


def _halved(vectors: Array) -> NDArray[np.complex64]:
    """Average complex vectors to S x S pixels."""
    return np.asarray(vectors.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3)), np.complex64)


def _edge_vectors(bands: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Edges of all bands, relative to the edge strength around them, `(S, S)`."""
    total = np.zeros((SIDE, SIDE), np.complex64)
    for band in bands:
        vectors = _doubled_angles(band - band.mean())
        size = np.abs(vectors)
        mean = float(size.mean())
        if mean > 0:
            around = cv2.GaussianBlur(size, (0, 0), SIDE / 6)
            total += _halved(vectors / (around + 0.5 * mean))
    size = np.abs(total)
    limit = 3 * size.mean() + 1e-6  # so that no edge dominates the others
    return np.asarray(total / np.maximum(1, size / limit), np.complex64)


def _outline_vectors(classes: Array) -> NDArray[np.complex64]:
    """Outlines of all classes, with equal weight, `(S, S)`."""
    picture = _sampled(classes, 2 * SIDE, 2 * SIDE).astype(np.float32)
    vectors = _doubled_angles(cv2.GaussianBlur(picture, (0, 0), 1.2))
    return _halved(vectors / (np.abs(vectors) + 0.3))


def _fits(edges: Array, outline: Array, *, square: bool) -> tuple[float, float, float]:
    """Fit of the outline to the edges: as it is, moved, and mirrored or turned.

    Each fit is standardised by the mean and deviation over all places of the mask.
    """
    product = fft.fft2(edges) * fft.fft2(outline).conj()
    fit = fft.fftshift(fft.ifft2(product).real)
    deviation = float(fit.std())
    if deviation < 1e-6:
        return 0.0, 0.0, 0.0
    middle, near, far = SIDE // 2, NEAREST_SHIFT, FARTHEST_SHIFT
    moved = fit[middle - far : middle + far + 1, middle - far : middle + far + 1].copy()
    moved[far - near + 1 : far + near, far - near + 1 : far + near] = -np.inf
    around = [np.roll(edges, (y, x), (0, 1)).ravel() for y in (-1, 0, 1) for x in (-1, 0, 1)]
    turned = np.stack([outline, *_turns(outline, square=square)]).reshape(-1, SIDE**2)
    values = (np.stack(around) @ turned.conj().T).real.max(axis=0)
    values = (values - fit.mean()) / deviation
    shifted = float(moved.max() - fit.mean()) / deviation
    return float(values[0]), shifted, float(values[1:].max())


def _turns(outline: Array, *, square: bool) -> list[Array]:
    """Return all mirrored and turned versions of the outline that fit the image's shape.

    Mirroring or turning also changes the angles of the vectors. Flips negate the doubled angle.
    A transposition negates it too, and adds half a turn.
    """
    same = [outline, outline[::-1, ::-1]]
    negated = [outline[:, ::-1].conj(), outline[::-1].conj()]
    if not square:
        return [same[1], *negated]
    transposed = [-vectors.T.conj() for vectors in same]
    quarter_turns = [-vectors.T.conj() for vectors in negated]
    return [same[1], *negated, *transposed, *quarter_turns]


# --- names ---


def find_blunders(
    shapes: Sequence[Shape],
    fits: Mapping[int, Fit] | None = None,
    reference: Sequence[int] = (),
) -> list[list[str]]:
    """Return the names of each mask's blunders, in the order of `MEANINGS`.

    Args:
        shapes: The first look at every mask.
        fits: The second look at some masks, by their index.
        reference: Indices of the fits that were drawn at random; they define what is usual.
    """
    if not shapes:
        return []
    fits = {} if fits is None else fits
    flags = {name: find(shapes) for name, find in _BY_SHAPE.items()}
    flags[COPY] = _find_copies(shapes, fits)
    misfits = _find_misfits(fits, reference) if len(reference) >= FEWEST_SAMPLES else {}
    for name in (ANOTHER, FLIPPED, SHIFTED):
        flags[name] = np.zeros(len(shapes), bool)
        flags[name][misfits.get(name, [])] = True
    others = np.flatnonzero(~np.any(list(flags.values()), axis=0))
    for name, find in _OF_CLASSES.items():  # odd shapes are judged among the remaining masks
        flags[name] = np.zeros(len(shapes), bool)
        flags[name][others] = find([shapes[int(i)] for i in others])
        others = others[~flags[name][others]] if name == BOX else others
    ordered = [name for name in MEANINGS if name in flags]
    names = [[name for name in ordered if flags[name][i]] for i in range(len(shapes))]
    return [_without_consequences(some) for some in names]


def same_masks(shapes: Sequence[Shape]) -> list[list[int]]:
    """Group the masks that also belong to a different image; no groups if there are many."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        if 0 < shape.share < FULL_SHARE:
            groups[shape.mask_digest].append(i)
    copied = [
        group for group in groups.values() if len({shapes[i].image_digest for i in group}) > 1
    ]
    too_many = sum(len(group) - 1 for group in copied) > max(1, UNUSUAL * len(shapes))
    return [] if too_many else copied


def _without_consequences(names: list[str]) -> list[str]:
    """Leave out the names that follow from others."""
    implied = set().union(*(CONSEQUENCES.get(name, set()) for name in names))
    return [name for name in names if name not in implied]


def _column(rows: Sequence[Any], name: str) -> Array:
    """Return one attribute of all rows, `(N,)`."""
    return np.array([getattr(row, name) for row in rows])


def _rare(flags: Flags, limit: float) -> Flags:
    """Return the flags if few or only one are set; otherwise none."""
    return flags if flags.sum() <= max(1, limit * len(flags)) else np.zeros_like(flags)


def _find_empty(shapes: Sequence[Shape]) -> Flags:
    """Masks without foreground."""
    empty = (_column(shapes, "share") == 0) & (_column(shapes, "known") >= 0.5)
    return _rare(empty, UNUSUAL) & (len(shapes) > 1)


def _find_full(shapes: Sequence[Shape]) -> Flags:
    """Masks with hardly any background, if few others are nearly full."""
    share, known = _column(shapes, "share"), _column(shapes, "known")
    nearly_full = _rare(share >= FULL_SHARE - 0.08, UNUSUAL) & (len(shapes) > 1)
    return nearly_full & (share >= FULL_SHARE) & (known >= 0.5)


def _find_equal(shapes: Sequence[Shape]) -> Flags:
    """Masks with the image's values: more than 16 levels, or fewer where this is rare."""
    levels = _column(shapes, "levels")
    rarely = _rare(levels > 0, UNUSUAL) & (len(shapes) >= FEWEST_SAMPLES)
    return rarely | (levels > 16)


def _find_inverted(shapes: Sequence[Shape]) -> Flags:
    """Masks whose complement resembles the others in area and at the border.

    It must also resemble them in position or, since objects may be anywhere, in tone.
    """
    if len(shapes) < FEWEST_SAMPLES:
        return np.zeros(len(shapes), bool)
    mirrored = _is_mirrored(_column(shapes, "share")) & _is_mirrored(_column(shapes, "on_border"))
    opposite = _are_elsewhere(shapes) | _have_opposite_tones(shapes)
    return mirrored & (_column(shapes, "known") >= 0.5) & opposite


def _is_mirrored(values: Floats) -> Flags:
    """Whether values between 0 and 1 are unusual while one minus the value is usual."""
    low, high = np.quantile(values, (0.1, 0.9))
    usual, spread = np.median(values), max(high - low, 0.1)
    distance, distance_mirrored = np.abs(values - usual), np.abs(1 - values - usual)
    return np.asarray((distance > 1.5 * spread) & (distance_mirrored < 0.5 * distance))


def _are_elsewhere(shapes: Sequence[Shape]) -> Flags:
    """Whether masks clearly lie where the others do not."""
    mean = mean_place(shapes)
    pattern = mean - mean.mean()
    place = np.zeros(len(shapes))
    for first in range(0, len(shapes), 1000):
        rows = places(shapes[first : first + 1000]).astype(np.float64)
        centred = rows - rows.mean(axis=1, keepdims=True)
        scale = np.linalg.norm(centred, axis=1) * np.linalg.norm(pattern)
        place[first : first + 1000] = (centred @ pattern) / np.maximum(scale, 1e-6)
    return np.asarray(place < min(0.0, -0.5 * float(np.median(place))))


def _have_opposite_tones(shapes: Sequence[Shape]) -> Flags:
    """Whether masks are clearly brighter than their background where the others are darker."""
    count = min(len(shape.tones) for shape in shapes)
    tones = np.array([shape.tones[:count] for shape in shapes])
    along = tones @ np.median(tones, axis=0)
    return np.asarray(along < min(-0.01, -0.5 * float(np.median(along))))


def mean_place(shapes: Sequence[Shape]) -> Floats:
    """Share of the masks that cover each part of the image, `(PLACE_SIDE ** 2,)`."""
    total = np.zeros(PLACE_SIDE**2)
    for first in range(0, len(shapes), 1000):
        total += places(shapes[first : first + 1000]).sum(axis=0)
    return np.asarray(total / max(len(shapes), 1))


def _find_copies(shapes: Sequence[Shape], fits: Mapping[int, Fit]) -> Flags:
    """Masks that also belong to a different image, except those that fit their own image."""
    flags = np.zeros(len(shapes), bool)
    for group in same_masks(shapes):
        own = np.array([fits[i].own if i in fits else 0.0 for i in group])
        fitting = (own >= FIT_EVIDENCE) & (own > POOR_FIT * own.max())
        flags[group] = ~fitting
    return flags


def _in_class(
    judge: Callable[[Sequence[ClassShape]], Flags], limit: float
) -> Callable[[Sequence[Shape]], Flags]:
    """Apply `judge` to each class, and flag its masks if few are found."""

    def find(shapes: Sequence[Shape]) -> Flags:
        flags = np.zeros(len(shapes), bool)
        for k in set().union(*(shape.classes for shape in shapes)):
            having = [i for i, shape in enumerate(shapes) if k in shape.classes]
            if len(having) >= FEWEST_SAMPLES:
                flags[having] |= _rare(judge([shapes[i].classes[k] for i in having]), limit)
        return flags

    return find


def _are_straight(rows: Sequence[ClassShape]) -> Flags:
    """Outlines that are clearly straighter than nearly all others."""
    values = _column(rows, "straightness")
    limit = max(STRAIGHTNESS, STRAIGHTER * float(np.quantile(values, 1 - 2 * UNUSUAL)))
    return np.asarray(values >= limit)


def _have_more_parts(rows: Sequence[ClassShape]) -> Flags:
    parts = _column(rows, "parts")
    return np.asarray(parts > np.median(parts))


_BY_SHAPE: dict[str, Callable[[Sequence[Shape]], Flags]] = {
    EMPTY: _find_empty,
    FULL: _find_full,
    EQUALS_IMAGE: _find_equal,
    INVERTED: _find_inverted,
}
_OF_CLASSES: dict[str, Callable[[Sequence[Shape]], Flags]] = {
    BOX: _in_class(lambda rows: _column(rows, "boxes"), UNUSUAL),
    POLYGON: _in_class(_are_straight, UNUSUAL),
    COMPONENTS: _in_class(_have_more_parts, RARE),
    BORDER: _in_class(lambda rows: _column(rows, "on_border") >= CONTACT, RARE),
}


def _find_misfits(fits: Mapping[int, Fit], reference: Sequence[int]) -> dict[str, Array]:
    """Return the indices of the masks that fit elsewhere, by the name of the blunder."""
    indices = np.array(list(fits))
    some = [fits[i] for i in indices]
    own, shifted, flipped = (_column(some, name) for name in ("own", "shifted", "flipped"))
    usual = float(np.median([fits[i].own for i in reference]))

    def explains(alternative: Floats) -> Flags:
        """Whether masks fit as well as usual in another place, and poorly in their own."""
        good = alternative >= max(GOOD_FIT * usual, NOISE_FIT)
        return np.asarray(good & (own <= POOR_FIT * alternative) & (usual >= FIT_EVIDENCE))

    return {
        SHIFTED: indices[explains(shifted)],
        FLIPPED: indices[explains(flipped) & (flipped >= shifted)],
        ANOTHER: indices[_fit_another(some, [list(fits).index(i) for i in reference])],
    }


def _fit_another(fits: Sequence[Fit], reference: Sequence[int]) -> Flags:
    """Masks that fit poorly, but fit another image well whose own mask fits it poorly."""
    flags = np.zeros(len(fits), bool)
    edges, outlines = (_centred(fits, name, reference) for name in ("edges", "outline"))
    fit = outlines @ edges.T
    between = fit[np.ix_(reference, reference)]
    fit /= max(float(between[~np.eye(len(reference), dtype=bool)].std()), 1e-6)
    own = fit.diagonal().copy()
    usual = float(np.median(own[list(reference)]))
    poor = np.flatnonzero(own <= POOR_OWN_FIT * usual)
    if usual < OTHERS_EVIDENCE or len(poor) < 2:
        return flags
    among = fit[np.ix_(poor, poor)]
    np.fill_diagonal(among, -np.inf)
    best, partner = among.max(axis=1), poor[among.argmax(axis=1)]
    good = best >= max(GOOD_FIT * usual, NOISE_OTHERS)
    flags[poor] = good & (np.maximum(own[poor], own[partner]) <= POOR_OWN_FIT * best)
    return flags


def _centred(fits: Sequence[Fit], name: str, reference: Sequence[int]) -> Floats:
    """Return unit vectors after subtracting the mean of the reference."""
    vectors = _unit(np.stack([getattr(fit, name) for fit in fits]).view(np.float32))
    return _unit(vectors - vectors[list(reference)].mean(axis=0))


def _unit(rows: Floats) -> Floats:
    """Scale rows to length 1; zeros remain."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-6), np.float32)
