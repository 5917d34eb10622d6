"""Dice and pixel accuracy (ACC) as this package reports them (section 3)."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from coseg_lightning.errors import InputError
from coseg_lightning.functional.dice import dice_by_class, foreground_dice


class SegmentationScores(Metric):
    """Mean foreground Dice per image and pixel accuracy over a whole dataset.

    * `dice`: the mean Dice of the foreground classes present in an image's mask or prediction,
      averaged over images. An image without any foreground class in either scores 1; one
      without a labelled pixel is not counted.
    * `accuracy`: the share of labelled pixels whose class is correct.
    * `per_class_dice`: `(K,)`, background included. For each class, the mean over the images in
      which it is present in mask or prediction; NaN if there is no such image.

    Args:
        classes: K.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Raises:
        InputError: If there are fewer than two classes.
    """

    full_state_update = False
    dice_sum: Tensor
    images: Tensor
    correct: Tensor
    labelled: Tensor
    class_dice_sum: Tensor
    class_images: Tensor

    def __init__(self, classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if classes < 2:
            raise InputError(
                f"classes={classes} must be at least 2, background included; a network of one "
                "output has two classes."
            )
        self.classes = classes
        self.ignore_index = ignore_index
        # A float32 count would stop growing at 2^24 pixels.
        scalar = torch.zeros((), dtype=torch.float64)
        vector = torch.zeros(classes, dtype=torch.float64)
        for name in ("dice_sum", "images", "correct", "labelled"):
            self.add_state(name, scalar.clone(), dist_reduce_fx="sum")
        for name in ("class_dice_sum", "class_images"):
            self.add_state(name, vector.clone(), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Add a batch.

        Shape:
            predictions and masks `(N, H, W)` integer class ids.

        Raises:
            InputError: If shapes differ, or values are no ids of these classes.
        """
        if predictions.shape != masks.shape or masks.ndim != 3:
            raise InputError(
                f"Predictions are {tuple(predictions.shape)} and masks {tuple(masks.shape)}; give "
                "class ids (N, H, W) of both, such as predicted_classes(class_logits(logits))."
            )
        labelled = masks != self.ignore_index
        self._check_ids(predictions, masks, labelled)
        correct = (predictions == masks) & labelled
        dice, present = dice_by_class(predictions, masks, self.classes, labelled)
        counted = labelled.flatten(1).any(dim=1)
        # Not in place: a state that was reset in inference mode cannot be changed outside it.
        self.dice_sum = self.dice_sum + foreground_dice(dice, present)[counted].sum()
        self.images = self.images + counted.sum()
        self.correct = self.correct + correct.sum()
        self.labelled = self.labelled + labelled.sum()
        self.class_dice_sum = self.class_dice_sum + dice.sum(dim=0)
        self.class_images = self.class_images + present.sum(dim=0)

    def _check_ids(self, predictions: Tensor, masks: Tensor, labelled: Tensor) -> None:
        """Raise an `InputError` for a value that would count as no class."""
        given = {"prediction": predictions, "mask": masks}
        wrong = {kind: self._is_no_class(values) & labelled for kind, values in given.items()}
        if not bool((wrong["prediction"] | wrong["mask"]).any()):  # a GPU is waited for once
            return
        kind = next(kind for kind in given if bool(wrong[kind].any()))
        raise InputError(
            f"A {kind} holds {given[kind][wrong[kind]][0].item():.4g}, which is none of "
            f"{self.classes} classes, 0 to {self.classes - 1}."
        )

    def _is_no_class(self, values: Tensor) -> Tensor:
        is_outside = (values < 0) | (values >= self.classes)
        return is_outside | (values != values.round()) if values.is_floating_point() else is_outside

    def compute(self) -> dict[str, Tensor]:
        """Return the three metrics; NaN where no image or pixel was counted."""
        return {
            "dice": self.dice_sum / self.images,
            "accuracy": self.correct / self.labelled,
            "per_class_dice": self.class_dice_sum / self.class_images,
        }

    def named(self, prefix: str, suffix: str = "") -> dict[str, Tensor]:
        """Return the metrics by their names in the logs, such as `val/dice_a`."""
        scores = self.compute()
        per_class = scores.pop("per_class_dice")
        named = {f"{prefix}/{name}{suffix}": value.float() for name, value in scores.items()}
        for class_id, value in enumerate(per_class):
            named[f"{prefix}/dice{suffix}_class_{class_id}"] = value.float()
        return named
