"""PredictionStore: keeps the predictions of the ranking pass for the correction."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coseg_lightning.functional.dice import dice_by_class, foreground_dice
from coseg_lightning.functional.equations import class_logits, predicted_classes
from coseg_lightning.modules.batch import Batch

MOST_BYTES = 2**30  # limit for the stored predictions of all processes together


class PredictionStore:
    """Stores both peers' predictions of the training set and their distances to the labels.

    The predictions are kept, in 16 bits, if those of the whole training set fit into `MOST_BYTES`.
    The correction then needs no second pass. The decision depends on nothing else, so results are
    the same for any number of processes.

    Args:
        samples: The number of training samples.
        ignore_index: Class id of unlabelled pixels.
        keeps: Whether to keep predictions if they fit, rather than distances alone.

    Attributes:
        keeps_predictions: Whether the predictions are kept.
    """

    def __init__(self, samples: int, ignore_index: int, *, keeps: bool = True) -> None:
        self.samples = samples
        self.ignore_index = ignore_index
        self._distances: list[NDArray[np.float64]] = []
        self._predictions: dict[int, tuple[Tensor, Tensor]] = {}
        self.keeps_predictions = keeps

    def add(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        """Add one batch, given the indices of its samples in the dataset."""
        quantized = quantize(logits)
        peers = dequantize(quantized)
        labelled = sample.masks != self.ignore_index
        mean, a, b = (predicted_classes(p) for p in ((peers[0] + peers[1]) / 2, *peers))
        against_label = one_minus_dice(mean, sample.masks, labelled, peers.shape[2])
        among_peers = one_minus_dice(a, b, labelled, peers.shape[2])
        table = np.stack([indices, against_label, among_peers], axis=1)
        self._distances.append(table)
        bytes_each = 2 * quantized[:, 0].numel() + 4 * sample.masks[0].numel()
        if not self.keeps_predictions or self.samples * bytes_each > MOST_BYTES:
            self.keeps_predictions = False
            self._predictions.clear()
            return
        quantized, labels = quantized.cpu(), sample.masks.int().cpu()
        for n, index in enumerate(indices):
            self._predictions[index] = (quantized[:, n], labels[n])

    @property
    def distances(self) -> NDArray[np.float64]:
        """Distances between labels and predictions for this process's samples, `(n, 3)`.

        The columns are: index in the dataset, one minus the Dice of label and mean prediction, and
        one minus the Dice of both peers' predictions.
        """
        empty = np.empty((0, 3))
        return np.concatenate([empty, *self._distances])

    def prediction(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Return both peers' probabilities of a sample, `(2, K, H, W)`, and its label, `(H, W)`.

        Returns None if another process holds the sample.
        """
        if index not in self._predictions:
            return None
        peers, label = self._predictions[index]
        return dequantize(peers), label.long()


def quantize(logits: Sequence[Tensor]) -> Tensor:
    """Round both peers' class probabilities to multiples of 1.5e-5; see `dequantize`.

    Shape:
        logits two tensors `(N, K, H, W)`; returns int16, `(2, N, K, H, W)`.
    """
    peers = torch.stack([class_logits(part).softmax(dim=1) for part in logits])
    return (peers * 65535 - 32768).round().short()


def dequantize(quantized: Tensor) -> Tensor:
    """Return the probabilities that `quantize` stored, as float32 in [0, 1]."""
    return (quantized.float() + 32768) / 65535


def one_minus_dice(
    first: Tensor, second: Tensor, labelled: Tensor, classes: int
) -> NDArray[np.float64]:
    """Compute one minus the foreground Dice of pairs of masks, in float32: mps has no float64.

    Shape:
        first, second and labelled `(N, H, W)`; returns `(N,)`.
    """
    dice, present = dice_by_class(first, second, classes, labelled, dtype=torch.float32)
    distances: NDArray[np.float64] = 1 - foreground_dice(dice, present).cpu().double().numpy()
    return distances
