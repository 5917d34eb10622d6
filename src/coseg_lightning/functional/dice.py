"""The Dice of this package: 2 |A and B| / (|A| + |B|) for each class, over labelled pixels."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import IGNORE_INDEX


def dice_by_class(
    first: Tensor,
    second: Tensor,
    classes: int,
    labelled: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Compute the Dice of each class for each pair of masks.

    Args:
        first: Class ids.
        second: Class ids to compare with.
        classes: K.
        labelled: The pixels that count.
        dtype: Type of the result; float32 is exact up to 2^24 pixels per class.

    Shape:
        masks and labelled `(N, H, W)`; returns `(N, K)` Dice, 0 where a class is in neither mask,
        and `(N, K)` bool, whether the class is in either.
    """
    ids = torch.arange(classes, device=first.device).view(-1, 1, 1)
    one, other = ((mask.unsqueeze(1) == ids) & labelled.unsqueeze(1) for mask in (first, second))
    size = (one.sum(dim=(2, 3)) + other.sum(dim=(2, 3))).to(dtype)
    overlap = (one & other).sum(dim=(2, 3)).to(dtype)
    present = size > 0
    return torch.where(present, 2 * overlap / size.clamp_min(1), 0), present


def foreground_dice(dice: Tensor, present: Tensor) -> Tensor:
    """Compute each pair's foreground Dice: the mean over the classes in either mask, 1 if none.

    Shape:
        dice and present `(N, K)` of `dice_by_class`; returns `(N,)`.
    """
    count = present[:, 1:].sum(dim=1)
    return (dice[:, 1:].sum(dim=1) / count.clamp_min(1)).where(count > 0, 1)


def mask_dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Compute the foreground Dice of two masks `(H, W)`, without unlabelled pixels (255).

    Raises:
        InputError: If the masks differ in size.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise InputError(
            f"Masks of {first.shape} and {second.shape} have no Dice; give two of one size."
        )
    labelled = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    first, second = first[labelled], second[labelled]
    ids = np.unique(np.concatenate([[0], np.unique(first), np.unique(second)]))
    one, other = (
        torch.from_numpy(np.searchsorted(ids, mask)).view(1, 1, -1) for mask in (first, second)
    )
    everything = torch.ones_like(one, dtype=torch.bool)
    return float(foreground_dice(*dice_by_class(one, other, len(ids), everything)))
