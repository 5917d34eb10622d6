"""The agreement of pairs of masks of one image whose outlines are shifted back.

Distances are fractions of pixels, so masks are compared by how far each class covers each pixel.

Legend of shapes: P masks, K classes, C classes that are present, M pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from coseg_lightning.ranking.displacement import outside_distance, with_nearest_labels
from coseg_lightning.ranking.outline import IGNORE_INDEX

Floats = NDArray[np.float64]
Cover = NDArray[np.float32]

LEAST_SHIFT = 0.25  # pixels; outlines are not shifted by less


def shifted(
    mask: NDArray[Any], inwards: Floats, *, ignore_index: int = IGNORE_INDEX
) -> tuple[NDArray[np.int64], Cover]:
    """Shift the outlines of a mask inwards, each class by its own distance.

    Where classes would overlap, the one whose outline a pixel lies farther inside of covers it
    first. Unlabelled pixels count as the nearest labelled one, so that a border between them and a
    class is no outline. A distance below `LEAST_SHIFT` is none.

    Args:
        mask: `(H, W)` class ids, 0 for background.
        inwards: `(K - 1,)` distances in pixels, negative for outwards.
        ignore_index: Marks unlabelled pixels.

    Returns:
        The foreground classes in the mask, `(C,)`, and how far each of them covers each pixel
        after the shift, `(C, H, W)` from 0 to 1. It is 0 at unlabelled pixels.
    """
    moves = np.where(np.abs(inwards) < LEAST_SHIFT, 0.0, inwards)
    unlabelled = mask == ignore_index
    filled = with_nearest_labels(mask, ignore_index)
    ids = np.array([k for k in range(1, len(moves) + 1) if (mask == k).any()], dtype=np.int64)
    depth = np.full((len(ids), *mask.shape), np.inf)  # of a class without an outline
    for n, k in enumerate(ids.tolist()):
        if not (filled == k).all():
            depth[n] = -outside_distance(filled == k) - moves[k - 1]
    cover = np.clip(depth + 0.5, 0, 1)
    if len(ids) > 1:
        order = np.argsort(-depth, axis=0, kind="stable")
        ordered = np.take_along_axis(cover, order, axis=0)
        room = 1 - (np.cumsum(ordered, axis=0) - ordered)
        np.put_along_axis(cover, order, np.minimum(ordered, room.clip(0)), axis=0)
    cover[:, unlabelled] = 0
    return ids, cover.astype(np.float32)


def shifted_pairs(
    masks: Sequence[NDArray[Any]], inwards: Floats, *, ignore_index: int = IGNORE_INDEX
) -> Floats:
    """Compute the Dice of each pair of masks after all outlines are shifted.

    Without any shift it is that of `labels.fusion.Votes.pairwise`.

    Args:
        masks: P masks `(H, W)` of class ids.
        inwards: `(P, K - 1)` distances in pixels, see `shifted`.
        ignore_index: Marks unlabelled pixels. A pair is compared where both are labelled.

    Returns:
        `(P, P)`, NaN where it is unknown, and on the diagonal.
    """
    labelled = np.stack([mask != ignore_index for mask in masks])
    drawn: NDArray[np.bool_] = np.logical_or.reduce(labelled & np.stack(masks).astype(bool))
    reach = int(np.ceil(np.abs(inwards).max(initial=0))) + 2
    box = tuple(_around(np.logical_or.reduce(drawn, axis=axis), reach) for axis in (1, 0))
    # Where nobody drew anything in reach, all masks are background.
    near = distance_transform_edt(~drawn[box]) <= reach if drawn.any() else drawn[box]
    present = np.unique(np.concatenate([np.unique(mask[box]) for mask in masks]))
    present = present[(present > 0) & (present != ignore_index)]
    covers = np.zeros((len(masks), len(present), int(near.sum())), np.float32)
    for of_mask, mask, distance in zip(covers, masks, inwards, strict=True):
        ids, cover = shifted(mask[box], distance, ignore_index=ignore_index)
        of_mask[np.searchsorted(present, ids)] = cover[:, near]
    known = labelled[(slice(None), *box)][:, near]
    pairs = np.full((len(masks), len(masks)), np.nan)
    for p in range(len(masks)):
        for q in range(p):
            if (labelled[p] & labelled[q]).any():
                both = known[p] & known[q]
                pairs[p, q] = pairs[q, p] = _dice(covers[p][:, both], covers[q][:, both])
    return pairs


def _around(drawn: NDArray[np.bool_], reach: int) -> slice:
    """The part of an axis on which something is drawn, with a margin."""
    places = np.flatnonzero(drawn)
    if not len(places):
        return slice(0, 0)
    return slice(max(0, int(places[0]) - reach), int(places[-1]) + reach + 1)


def _dice(one: Cover, other: Cover) -> float:
    """Compute the mean Dice `(C, M)` over the classes in either; 1 if there is none."""
    sizes = one.sum(axis=1, dtype=np.float64) + other.sum(axis=1, dtype=np.float64)
    shared = np.minimum(one, other).sum(axis=1, dtype=np.float64)
    classes = sizes > 0
    return float((2 * shared[classes] / sizes[classes]).mean()) if classes.any() else 1.0
