"""PredictionStore: the predictions of the pass that ranks, kept for the correction."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coseg_lightning.functional.dice import dice_by_class, foreground_dice
from coseg_lightning.functional.equations import class_logits, predicted_classes
from coseg_lightning.modules.batch import Batch

MOST_BYTES = 2**30  # of predictions that are kept, of all processes together


class PredictionStore:
    """Both peers' predictions of the training set, and how far they are from the labels.

    The predictions themselves are kept, in 16 bits, if those of the whole training set fit
    into `MOST_BYTES`: then nothing needs to be predicted again when labels are corrected. Whether
    they are depends on nothing else, so that results are the same for any number of processes.

    Args:
        samples: How many there are in the training set.
        ignore_index: Class id of unlabelled pixels.
    """

    def __init__(self, samples: int, ignore_index: int) -> None:
        self.samples = samples
        self.ignore_index = ignore_index
        self._contradictions: list[NDArray[np.float64]] = []
        self._predictions: dict[int, tuple[Tensor, Tensor]] = {}
        self.keeps_predictions = True

    def add(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        """Add one batch, by the places of its samples in the dataset."""
        kept = quantize(logits)
        peers = dequantize(kept)
        labelled = sample.masks != self.ignore_index
        mean, a, b = (predicted_classes(p) for p in ((peers[0] + peers[1]) / 2, *peers))
        against_label = one_minus_dice(mean, sample.masks, labelled, peers.shape[2])
        among_peers = one_minus_dice(a, b, labelled, peers.shape[2])
        table = np.stack([indices, against_label, among_peers], axis=1)
        self._contradictions.append(table)
        bytes_each = 2 * kept[:, 0].numel() + 4 * sample.masks[0].numel()
        if not self.keeps_predictions or self.samples * bytes_each > MOST_BYTES:
            self.keeps_predictions = False
            self._predictions.clear()
            return
        kept, labels = kept.cpu(), sample.masks.int().cpu()
        for place, index in enumerate(indices):
            self._predictions[index] = (kept[:, place], labels[place])

    @property
    def contradictions(self) -> NDArray[np.float64]:
        """What the peers' predictions of this process's samples contradict, `(n, 3)`.

        Place, one minus the Dice of label and mean prediction, and of both predictions.
        """
        empty = np.empty((0, 3))
        return np.concatenate([empty, *self._contradictions])

    def prediction(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Both peers' probabilities of a sample, `(2, K, H, W)`, and its label, `(H, W)`.

        None if this process has not seen it.
        """
        if index not in self._predictions:
            return None
        peers, label = self._predictions[index]
        return dequantize(peers), label.long()


def quantize(logits: Sequence[Tensor]) -> Tensor:
    """Both peers' class probabilities, `(2, N, K, H, W)` int16, to 1.5e-5; see `dequantize`."""
    peers = torch.stack([class_logits(part).softmax(dim=1) for part in logits])
    return (peers * 65535 - 32768).round().short()


def dequantize(kept: Tensor) -> Tensor:
    """What `quantize` keeps, as float32 in [0, 1]."""
    return (kept.float() + 32768) / 65535


def one_minus_dice(
    first: Tensor, second: Tensor, labelled: Tensor, classes: int
) -> NDArray[np.float64]:
    """`(N,)` one minus the foreground Dice of masks `(N, H, W)`, in float32: mps has no other."""
    dice, present = dice_by_class(first, second, classes, labelled, dtype=torch.float32)
    distances: NDArray[np.float64] = 1 - foreground_dice(dice, present).cpu().double().numpy()
    return distances
