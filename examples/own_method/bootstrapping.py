"""A method of your own: this file, and `method/bootstrapping.yaml` beside it.

In this folder

    python -m coseg_lightning.run --config-dir . method=bootstrapping noise=type2 nol=0.3

trains by it, tests, reports and resumes as by every other method.
"""

from typing import Any

from torch import Tensor

from coseg_lightning import SegmentationModule
from coseg_lightning.functional.equations import class_logits, predicted_classes


class Bootstrapping(SegmentationModule):
    """Hard bootstrapping (Reed et al. 2015, arXiv 1412.6596): labels and one's own predictions.

    Args:
        beta: The share of the labels; 0.8 as published.
        options: Those of `SegmentationModule`.
    """

    def __init__(self, *net: Any, beta: float = 0.8, **options: Any) -> None:
        super().__init__(*net, **options)
        self.beta = beta

    def supervised_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Each sample's loss, `(N,)`: that of Eq. (2) on labels and on predictions."""
        predicted = predicted_classes(class_logits(logits.detach()))
        predicted = predicted.where(masks != self.ignore_index, masks)
        of_labels = super().supervised_losses(logits, masks)
        of_predictions = super().supervised_losses(logits, predicted)
        return self.beta * of_labels + (1 - self.beta) * of_predictions
