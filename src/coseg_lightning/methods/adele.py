"""Early-learning correction, ADELE (Liu et al. 2022, arXiv 2110.03740).

Networks learn from clean labels first and memorise noisy ones later. Each class's labels are
corrected once, when the overlap of prediction and label stops growing fast. The correction uses
confident predictions, averaged over several scales. Then training continues.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import curve_fit
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.epoch_end import EpochEndCallback
from coseg_lightning.callbacks.evaluation_pass import (
    evaluation_pass,
    of_content,
    plain_training_set,
)
from coseg_lightning.callbacks.label_correction import label_at_own_size, resize_probabilities
from coseg_lightning.callbacks.processes import gather_rows
from coseg_lightning.functional.equations import class_logits, labelled_mean, predicted_classes
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.labels.store import LabelStore, LabelStoreWriter
from coseg_lightning.methods.method import Method, Outcome, Run, check_kind
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.networks.forward import auxiliary_weight

SCALES = (0.7, 1.0, 1.5)
SLOWED = 0.9  # relative fall of the curve's slope at which memorisation is assumed to begin
CONFIDENCE = 0.8  # smallest mean probability over scales that corrects a label

Floats = NDArray[np.float64]


class MultiScaleModule(SegmentationModule):
    """Trains a network on labels, and to predict the same for an image at every scale.

    The loss is the mean supervised loss over scales, plus the divergence of each scale's prediction
    from their mean (Eq. (4) and (5) of the source, weight 1).
    """

    takes_soft_masks = False

    @override
    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        outputs = [self._outputs_at(images, scale) for scale in SCALES]
        predictions = [logits for logits, _ in outputs]
        log_p = [class_logits(logits).log_softmax(dim=1) for logits in predictions]
        mean = torch.stack([part.exp() for part in log_p]).mean(dim=0).clamp_min(1e-8)
        divergences = [(part.exp() * (part - mean.log())).sum(dim=1) for part in log_p]
        divergence = reduce(torch.add, divergences) / len(SCALES)
        labelled = masks != self.ignore_index
        consistency = labelled_mean(divergence, labelled)
        supervised = [self.supervised_losses(logits, masks) for logits in predictions]
        for part in (part for _, auxiliary in outputs for part in auxiliary):
            supervised.append(auxiliary_weight(self.net) * self.supervised_losses(part, masks))
        return torch.stack(supervised).sum(dim=0) / len(SCALES) + consistency

    def _outputs_at(self, images: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
        if scale == 1:
            return self.all_logits(images)
        logits, auxiliary = self.all_logits(_resized(images, scale))
        size = images.shape[-2:]
        return _at(logits, size), [_at(part, size) for part in auxiliary]

    def mean_probabilities(self, images: Tensor) -> Tensor:
        """Predict class probabilities, averaged over scales, `(N, K, H, W)`."""
        size = images.shape[-2:]
        scales = [_at(self(_resized(images, scale)), size) for scale in SCALES]
        return torch.stack([class_logits(logits).softmax(dim=1) for logits in scales]).mean(dim=0)


def _resized(images: Tensor, scale: float) -> Tensor:
    return _at(images, [max(1, round(scale * side)) for side in images.shape[-2:]])


def _at(values: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(values, size=list(size), mode="bilinear", align_corners=False)


class EarlyLearningCorrection(EpochEndCallback):
    """Ends a fit when early learning is over for a class, and writes its corrected labels.

    Args:
        folder: A new folder for the label layer.
        classes: The classes that have not been corrected yet.
        history: Each class's overlap of prediction and label in earlier fits, one row per epoch.

    Attributes:
        corrected: The classes whose labels were corrected; none if training reached its end.
        history: The overlaps of earlier fits and of this one.
        changed_pixels: The number of changed pixels, by sample index.
    """

    def __init__(
        self, folder: Any, classes: Collection[int], history: Sequence[Sequence[float]] = ()
    ) -> None:
        self.folder = folder
        self.classes = sorted(classes)
        self.history = [list(row) for row in history]
        self.corrected: list[int] = []
        self.changed_pixels: dict[int, int] = {}

    @override
    def on_last_batch(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self.classes:
            return
        assert isinstance(module, SegmentationModule)
        rows: list[tuple[Any, ...]] = []

        def count(indices: list[int], sample: Batch) -> None:
            predicted = predicted_classes(class_logits(module(sample.images)))
            labelled = sample.masks != module.ignore_index
            for n, index in enumerate(indices):
                row = overlap_counts(predicted[n], sample.masks[n], labelled[n], module.classes)
                rows.append((index, *row))

        dataset = plain_training_set(trainer)
        evaluation_pass(trainer, module, dataset, range(len(dataset)), count)
        totals = np.sum([row[1:] for row in gather_rows(rows)], axis=0, dtype=float)
        self.history.append((totals[::2] / np.maximum(totals[1::2], 1)).tolist())
        curves = np.array(self.history)
        self.corrected = [k for k in self.classes if early_learning_is_over(curves[:, k - 1])]
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if last:
            self.corrected = []  # no epoch is left to learn from corrected labels
        elif self.corrected:
            trainer.should_stop = True

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.corrected or trainer.interrupted:
            return
        assert isinstance(pl_module, MultiScaleModule)
        dataset = plain_training_set(trainer)
        if trainer.is_global_zero:
            LabelStore.create(self.folder)
        trainer.strategy.barrier("label layer begun")
        writer = LabelStoreWriter(self.folder)
        rows: list[tuple[int, str, int]] = []

        def correct(indices: list[int], sample: Batch) -> None:
            probabilities = pl_module.mean_probabilities(sample.images)
            ids = indices if sample.ids is None else list(sample.ids)
            names = map(sample_name, ids)
            for n, (index, name) in enumerate(zip(indices, names, strict=True)):
                label = label_at_own_size(dataset, index, sample.masks[n])
                shown = of_content(dataset, index, probabilities[n : n + 1], label.shape)
                resized = resize_probabilities(shown, label)[0]
                corrected = confident_correction(resized, label, self.corrected)
                writer.write(name, corrected.cpu().numpy())
                rows.append((index, name, int((corrected != label).sum())))

        evaluation_pass(trainer, pl_module, dataset, range(len(dataset)), correct, "Correction")
        gathered = gather_rows(rows)
        self.changed_pixels = {index: pixels for index, _, pixels in gathered}
        if trainer.is_global_zero:
            writer.finish({name: {"changed_pixels": pixels} for _, name, pixels in gathered})
        trainer.strategy.barrier("label layer written")


def overlap_counts(predicted: Tensor, mask: Tensor, labelled: Tensor, classes: int) -> list[int]:
    """Count the pixels in intersection and union of prediction and label, for each class but 0.

    Shape:
        predicted, mask and labelled `(H, W)`; returns `2 (K - 1)` numbers, two for each class.
    """
    counts: list[int] = []
    for k in range(1, classes):
        predicted_k, label_k = (predicted == k) & labelled, mask == k
        counts += [int((predicted_k & label_k).sum()), int((predicted_k | label_k).sum())]
    return counts


def confident_correction(probabilities: Tensor, label: Tensor, classes: Sequence[int]) -> Tensor:
    """Correct a label where the prediction is confident.

    Labels change only between background and the given classes. No class is introduced that the
    label does not have.

    Args:
        probabilities: Class probabilities, `(K, H, W)`.
        label: The label, `(H, W)`.
        classes: The classes to correct.
    """
    confidence, predicted = probabilities.max(dim=0)
    correctable = torch.tensor([0, *classes], device=label.device)
    concerned = torch.isin(label, correctable) & torch.isin(predicted, correctable)
    concerned &= torch.isin(predicted, torch.cat([label.flatten(), correctable[:1]]))
    concerned &= confidence > CONFIDENCE
    return predicted.where(concerned, label)


def early_learning_is_over(overlaps: Floats) -> bool:
    """Whether an overlap's growth has slowed down to a tenth of its initial rate (Eq. (3)).

    A curve `a (1 - exp(-b t^c))`, c at most 1, is fitted to the overlaps. Its slope at the last
    epoch is compared with the slope at the first one. Since such a curve has no flat beginning,
    early epochs with less than a tenth of the largest overlap are cut off.

    Args:
        overlaps: `(T,)` intersection over union of prediction and label after each epoch.
    """
    overlaps = overlaps[np.argmax(overlaps >= 0.1 * overlaps.max()) :]
    if len(overlaps) < 4:  # too few for three parameters
        return False
    epochs = np.arange(1, len(overlaps) + 1, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (a, b, c), _ = curve_fit(
                _growth, epochs, overlaps, p0=(0.5, 0.5, 0.5), bounds=([0, 0, 0], [1, np.inf, 1])
            )
        except RuntimeError:  # the fit did not converge
            return False
    first, last = (_slope(t, a, b, c) for t in (1.0, epochs[-1]))
    return bool(first - last > SLOWED * first)


def _growth(t: Floats, a: float, b: float, c: float) -> Floats:
    result: Floats = a * (1 - np.exp(-b * t**c))
    return result


def _slope(t: float, a: float, b: float, c: float) -> float:
    return float(a * b * c * np.exp(-b * t**c) * t ** (c - 1))


def early_learning(run: Run, outcome: Outcome) -> Outcome:
    """Train until early learning is over for a class, correct its labels, and go on."""

    def train() -> dict[str, Any]:
        module, runner, data = run.network(), run.runner, run.data
        check_kind(run.method.name, "network", module, MultiScaleModule)
        changed: set[int] = set()
        layers: list[str] = []
        classes: set[int] = set(range(1, module.classes))
        history: list[list[float]] = []
        epochs_left: int | None = None
        for number in range(1, module.classes + 1):
            suffix = "" if number == 1 else f"_{number}"
            labels = runner.folder.path / f"labels{suffix}"
            callback = EarlyLearningCorrection(labels, classes, history)
            stage = f"early_learning{suffix}"
            trainer = runner.fit(stage, module, data, [callback], max_epochs=epochs_left)
            if not callback.corrected:
                break
            data.add_label_layer(callback.folder)
            layers.append(callback.folder.name)
            changed |= {index for index, pixels in callback.changed_pixels.items() if pixels}
            classes, history = classes - set(callback.corrected), callback.history
            epochs_left = (trainer.max_epochs or 0) - trainer.current_epoch
        return {"changed": sorted(changed), "layers": layers, "last": stage}

    suffixes = ("", *(f"_{number}" for number in range(2, 256)))
    makes = [f"{name}{suffix}" for name in ("labels", "early_learning") for suffix in suffixes]
    facts = run.runner.stage("early_learning", train, makes=makes)
    run.runner.add_label_layers(run.data, facts["layers"])
    changed = outcome.changed | set(facts["changed"])
    return replace(outcome, last_stage=facts["last"], is_pair=False, changed=changed)


METHOD = Method("adele", (early_learning,), module=MultiScaleModule)
