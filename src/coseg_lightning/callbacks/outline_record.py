"""OutlineRecord: outline evidence on labels and predictions, collected in the evidence passes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.evidence_sum import PredictionObserver
from coseg_lightning.callbacks.processes import gather_objects
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.functional.equations import IGNORE_INDEX, class_logits
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.modules.batch import Batch
from coseg_lightning.ranking.evidence import Floats
from coseg_lightning.ranking.outline import COLUMNS, mean_of_passes, outline_evidence


class OutlineRecord(PredictionObserver):
    """Judges the outlines of every label, and of the prediction for the same image.

    Samples of this package are judged at their own size, and all others as the networks get them.

    Args:
        dataset: The dataset of the passes.
        ignore_index: Class id of unlabelled pixels.
    """

    def __init__(self, dataset: Any, ignore_index: int = IGNORE_INDEX) -> None:
        self.dataset = dataset
        self.ignore_index = ignore_index
        self._labels: dict[str, Floats] = {}  # labels do not change within a fit
        self._rows: dict[str, list[Floats]] = {}

    @override
    def observe(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        mean = torch.stack([class_logits(part).softmax(dim=1) for part in logits]).mean(dim=0)
        is_patched = len(sample.masks) > len(indices)
        ids = [*indices] if sample.ids is None else [*sample.ids]
        for n, name in enumerate(map(sample_name, ids)):
            if isinstance(self.dataset, SampleDataset):
                image = self.dataset.dataset.image(indices[n])
                mask = self.dataset.mask(indices[n])
            else:
                image = sample.images[n].float().movedim(0, -1).cpu().numpy()
                mask = sample.masks[n].cpu().numpy()
            classes = mean.shape[1]
            label = None if is_patched else self._labels.get(name)
            if label is None:
                label = outline_evidence(
                    image, mask, classes=classes, ignore_index=self.ignore_index
                )
                self._labels[name] = label
            predicted = predicted_mask(mean[n], mask.shape)
            prediction = outline_evidence(image, predicted, classes=classes, ignore_index=-1)
            row = np.concatenate([label, prediction], axis=1)
            self._rows.setdefault(name, []).append(row)

    def gathered(self, ids: Sequence[str], classes: int) -> Floats:
        """Gather the evidence of all processes and of the passes since it was last gathered.

        Args:
            ids: The samples' ids.
            classes: K.

        Returns:
            `(N, K - 1, 4)`: `outline_evidence` of the labels, then of the predictions.
        """
        rows: dict[str, list[Floats]] = {}
        for part in gather_objects(self._rows):
            for name, of_name in part.items():
                rows.setdefault(name, []).extend(of_name)
        self._rows = {}
        unknown = [np.full((classes - 1, 2 * len(COLUMNS)), np.nan)]
        return np.stack([mean_of_passes(rows.get(name, unknown)) for name in ids])


def predicted_mask(probabilities: Tensor, size: tuple[int, ...]) -> Any:
    """Return the most probable class at a mask's own size.

    Shape:
        probabilities `(K, h, w)`; returns `(H, W)`.
    """
    if probabilities.shape[1:] != size:
        probabilities = F.interpolate(
            probabilities[None].float(), size=size, mode="bilinear", align_corners=False
        )[0]
    return probabilities.argmax(dim=0).byte().cpu().numpy()
