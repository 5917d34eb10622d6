"""A method of your own: this file, and `method/bootstrapping.yaml` beside it.

Run it in this folder:

    python -m coseg_lightning.run --config-dir . method=bootstrapping noise=type2 nol=0.3

It trains, is tested, reports and resumes like every other method.
"""

from typing import Any

from torch import Tensor

from coseg_lightning import SegmentationModule
from coseg_lightning.functional.equations import class_logits, predicted_classes


class Bootstrapping(SegmentationModule):
    """Hard bootstrapping (Reed et al. 2015, arXiv 1412.6596): learns from labels and predictions.

    Args:
        beta: The weight of the labels; 0.8 as published.
        options: Arguments of `SegmentationModule`.
    """

    def __init__(self, *net: Any, beta: float = 0.8, **options: Any) -> None:
        super().__init__(*net, **options)
        self.beta = beta

    def supervised_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Each sample's loss, `(N,)`: Eq. (2) on its label and on the prediction, weighted."""
        predicted = predicted_classes(class_logits(logits.detach()))
        predicted = predicted.where(masks != self.ignore_index, masks)
        label_losses = super().supervised_losses(logits, masks)
        prediction_losses = super().supervised_losses(logits, predicted)
        return self.beta * label_losses + (1 - self.beta) * prediction_losses
