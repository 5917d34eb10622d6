"""The Dice of this package."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.functional.equations import IGNORE_INDEX


def mask_dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Foreground Dice of two masks: the mean over the classes present in either, 1 if none is.

    Pixels unlabelled (255) in either do not count.
    """
    labelled = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    first, second = first[labelled], second[labelled]
    classes = sorted((set(np.unique(first)) | set(np.unique(second))) - {0})
    if not classes:
        return 1.0
    overlaps = [
        2 * np.sum((first == c) & (second == c)) / (np.sum(first == c) + np.sum(second == c))
        for c in classes
    ]
    return float(np.mean(overlaps))
