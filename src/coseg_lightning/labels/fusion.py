"""Fusion of several annotators' masks of one image into one label, without torch.

Pixels with the same combination of votes are treated alike, and there are few combinations.
Everything is computed once per combination, so that large masks cost little.

Legend of shapes: P annotators, K classes that any of them used, U combinations, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import smallest_type
from coseg_lightning.labels.masks import Mask
from coseg_lightning.ranking.outline import (
    IGNORE_INDEX,
    mean_of_known,
    outline_evidence,
    outline_misfit,
)

LABELS = ("majority", "staple", "random", "best", "soft")  # how a run fuses several masks
SURE = 0.99999  # the reliability that STAPLE begins with, as published
MOST_STEPS = 200  # most steps of STAPLE, which needs a few dozen

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Votes:
    """The votes of several annotators for each pixel of one image.

    Args:
        table: The combinations of votes: 0 for unlabelled, and 1 + k for class `ids[k]`.
        counts: The number of pixels of each combination.
        places: The index of the combination at each pixel.
        ids: The class ids, in order.

    Shape:
        table `(U, P)`, counts `(U,)`, places `(H, W)`, ids `(K,)`.
    """

    table: Ints
    counts: Ints
    places: Ints
    ids: Ints

    @classmethod
    def of(cls, masks: Sequence[Any]) -> "Votes":
        """Count the votes of masks.

        Args:
            masks: `(H, W)` class ids each, 255 for unlabelled pixels; integers, whole floats, or
                bool for two classes.

        Raises:
            InputError: If there is no mask, if their sizes differ, or if values are no class ids.
        """
        arrays = [_class_ids(mask) for mask in masks]
        shapes = {array.shape for array in arrays}
        if len(shapes) != 1 or arrays[0].ndim < 2:
            raise InputError(
                f"Masks of {' and '.join(map(str, sorted(shapes))) or 'nobody'} cannot be fused; "
                "give at least one mask, all of the same size, (H, W) each."
            )
        highest = max(int(array.max(initial=0)) for array in arrays)
        is_there = np.zeros(max(highest, IGNORE_INDEX) + 1, bool)
        for array in arrays:
            is_there[array] = True
        is_there[IGNORE_INDEX] = False
        ids = np.flatnonzero(is_there)
        number = np.zeros(len(is_there), np.int64)
        number[ids] = 1 + np.arange(len(ids))
        table, places = np.zeros((1, 0), np.int64), np.zeros(arrays[0].shape, np.int64)
        base, counts = len(ids) + 1, np.array([arrays[0].size])
        for array in arrays:
            codes = places * base + number[array]
            found = np.bincount(codes.reshape(-1), minlength=len(table) * base)
            there = np.flatnonzero(found)
            row = np.zeros(len(found), np.int64)
            row[there] = np.arange(len(there))
            table = np.column_stack([table[there // base], there % base])
            places, counts = row[codes], found[there]
        return cls(table, counts, places, ids)

    def mask(self, winners: Ints) -> Mask:
        """Return the mask `(H, W)` for the winner of each combination, `(U,)` as in the table."""
        values = np.array([IGNORE_INDEX, *self.ids])
        mask: Mask = smallest_type(values)[winners][self.places]
        return mask

    def dice(self, one: Ints, other: Ints) -> float:
        """Compute the foreground Dice of two labels `(U,)`: the mean over the classes in either.

        It is 1 if both have only background, and NaN if no pixel is labelled in both.
        """
        both = (one > 0) & (other > 0)
        if not both.any():
            return float("nan")
        one, other, counts = one[both], other[both], self.counts[both]
        size = len(self.ids) + 1
        sizes = (np.bincount(one, counts, size) + np.bincount(other, counts, size))[1:]
        shared = np.bincount(one[one == other], counts[one == other], size)[1:]
        classes = (sizes > 0) & (self.ids > 0)
        return float((2 * shared[classes] / sizes[classes]).mean()) if classes.any() else 1.0

    def pairwise(self) -> Floats:
        """Return the Dice of each pair of annotators, `(P, P)`, NaN where it is unknown."""
        people = self.table.shape[1]
        result = np.full((people, people), np.nan)
        for p in range(people):
            for q in range(p):
                result[p, q] = result[q, p] = self.dice(self.table[:, p], self.table[:, q])
        return result

    def agreement(self) -> Floats:
        """Return each annotator's mean Dice with the others, `(P,)`, NaN where it is unknown."""
        return mean_of_known(self.pairwise(), axis=1)


def nearest_half(pairs: Floats) -> Floats:
    """Average each mask's agreement with the half of the others with which it agrees best.

    So one bad mask does not count against those that lie beside it.

    Args:
        pairs: `(P, P)` the agreement of pairs, NaN where it is unknown and on the diagonal.

    Returns:
        `(P,)`, NaN where nothing is known. Half of an odd number is rounded up.
    """
    best_first = -np.sort(-pairs, axis=1)  # NaN last
    known = (~np.isnan(pairs)).sum(axis=1, keepdims=True)
    is_near = np.arange(pairs.shape[1]) < (known + 1) // 2
    return mean_of_known(np.where(is_near, best_first, np.nan), axis=1)


def _class_ids(mask: Any) -> NDArray[Any]:
    """Return a mask as integers.

    Raises:
        InputError: If a value is negative, or no whole number.
    """
    array = np.asarray(mask)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise InputError(
            f"A mask holds values of the type {array.dtype}, which are no class ids; give "
            "integers from 0, and 255 for unlabelled pixels."
        )
    wrong = array < 0
    if array.dtype.kind == "f":
        wrong = wrong | (array != np.floor(array)) | ~np.isfinite(array)
    if wrong.any():
        raise InputError(
            f"A mask holds {array[wrong][0]}, which is no class id; give integers from 0, and 255 "
            "for unlabelled pixels."
        )
    return array.astype(np.int64) if array.dtype.kind == "f" else array


def majority(masks: Sequence[Any]) -> Mask:
    """Label each pixel with the class that most annotators chose.

    Unlabelled pixels do not vote, and a pixel that nobody labelled stays unlabelled. A tie is
    decided by the voter for a tied class whose mask agrees best with the others (mean Dice). If
    several agree equally well, as two annotators always do, the smallest of their class ids wins.

    Args:
        masks: P masks `(H, W)` of class ids, 255 for unlabelled pixels.

    Returns:
        `(H, W)`.
    """
    votes = Votes.of(masks)
    return votes.mask(_most(votes.table, votes))


def _most(table: Ints, votes: Votes | None = None) -> Ints:
    """Return each combination's winner. `votes` decides ties by agreement, else the smaller id."""
    count = int(table.max(initial=0)) + 1
    polls = np.stack([(table == k).sum(axis=1) for k in range(1, count)] or [table[:, 0] * 0], 1)
    winners = np.where(polls.any(axis=1), 1 + polls.argmax(axis=1), 0)
    if votes is None:
        return winners
    tied = np.flatnonzero((polls == polls.max(axis=1, keepdims=True)).sum(axis=1) > 1)
    tied = tied[winners[tied] > 0]
    if len(tied):
        agreement = np.nan_to_num(votes.agreement(), nan=-1.0)
        for u in tied:
            best = [k for k in range(1, count) if polls[u, k - 1] == polls[u].max()]
            among = np.isin(table[u], best)
            winners[u] = table[u][among & (agreement == agreement[among].max())].min()
    return winners


def soft_label(masks: Sequence[Any], classes: int) -> NDArray[np.float32]:
    """Compute each class's share of the votes of the annotators who labelled the pixel.

    Args:
        masks: P masks `(H, W)` of class ids, 255 for unlabelled pixels.
        classes: The number of classes.

    Returns:
        `(classes, H, W)`. It is zero where nobody labelled the pixel.

    Raises:
        InputError: If a mask holds a class that is not among the classes.
    """
    votes = Votes.of(masks)
    highest = int(votes.ids.max(initial=0))
    if highest >= classes:
        raise InputError(
            f"A mask holds the class {highest}, but there are {classes} classes, 0 to "
            f"{classes - 1}; give classes={highest + 1} or other masks."
        )
    polls = np.zeros((len(votes.table), classes), np.float32)
    for k, class_id in enumerate(votes.ids, start=1):
        polls[:, class_id] = (votes.table == k).sum(axis=1)
    polls /= polls.sum(axis=1, keepdims=True).clip(1)
    shares: NDArray[np.float32] = np.moveaxis(polls[votes.places], -1, 0)
    return np.ascontiguousarray(shares)


def staple(masks: Sequence[Any]) -> Mask:
    """Label each pixel by STAPLE, which estimates label and annotators' reliability together.

    `theta[p, j, k]` is the probability that annotator p says j where k is true. `truth[u, k]` is
    the probability that k is true. Both are estimated in turn (EM) until `theta` converges. The
    prior of a class is its share of all votes. Unlabelled pixels do not count, and a pixel that
    nobody labelled stays unlabelled. Ties go to the smaller class id.

    Args:
        masks: P masks `(H, W)` of class ids, 255 for unlabelled pixels.

    Returns:
        `(H, W)`.

    Source:
        Warfield, Zou and Wells 2004, doi 10.1109/TMI.2004.828354, with several classes.
    """
    votes = Votes.of(masks)
    labelled = votes.table > 0
    count = len(votes.ids)
    if count < 2:
        return votes.mask(_most(votes.table))
    said = (votes.table[..., None] == 1 + np.arange(count)).astype(np.float64)  # (U, P, K)
    votes_of_class = (said * votes.counts[:, None, None]).sum(axis=(0, 1))
    prior = np.log(votes_of_class / votes_of_class.sum())
    people = said.shape[1]
    theta = np.full((people, count, count), (1 - SURE) / (count - 1))
    theta[:, np.arange(count), np.arange(count)] = SURE
    truth = np.zeros((len(said), count))
    for _ in range(MOST_STEPS):
        likely = prior + np.einsum("upj,pjk->uk", said, np.log(theta.clip(1e-300)))
        likely = np.exp(likely - likely.max(axis=1, keepdims=True))
        truth = likely / likely.sum(axis=1, keepdims=True)
        weight = truth * votes.counts[:, None]
        total = np.einsum("up,uk->pk", labelled, weight)[:, None, :]
        new = np.einsum("upj,uk->pjk", said, weight) / total.clip(1e-300)
        new = np.where(total > 0, new, theta)
        change, theta = np.abs(new - theta).max(), new
        if change < 1e-7:
            break
    return votes.mask(np.where(labelled.any(axis=1), 1 + truth.argmax(axis=1), 0))


def best(image: Any, masks: Sequence[Any]) -> int:
    """Choose the mask whose outline fits the edges in the image best, without any network.

    If the outlines make no difference, choose the mask that agrees best with the others. If several
    do, choose the first.

    Args:
        image: `(H, W)` or `(H, W, C)`.
        masks: P masks `(H, W)` of class ids, 255 for unlabelled pixels.

    Returns:
        The index of the mask.
    """
    masks = [_class_ids(mask) for mask in masks]
    votes = Votes.of(masks)
    if np.shape(image)[:2] != masks[0].shape:
        raise InputError(
            f"The image is {np.shape(image)}, but its masks are {masks[0].shape}; give an image of "
            "the same height and width."
        )
    classes = max(2, int(votes.ids.max(initial=0)) + 1)
    evidence = np.stack([outline_evidence(image, mask, classes=classes) for mask in masks])
    misfit = mean_of_known(outline_misfit(evidence), axis=1)
    known = misfit[~np.isnan(misfit)]
    if len(known) and np.ptp(known) > 1e-6:
        return int(np.nanargmin(misfit))
    return int(np.nan_to_num(votes.agreement(), nan=-1.0).argmax())
