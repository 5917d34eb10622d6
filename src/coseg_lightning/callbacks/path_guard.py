"""PathGuard: whether samples are ranked as the networks see them in training."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import Subset

from coseg_lightning.callbacks.evaluation_pass import (
    Drawable,
    check_count,
    has_plain_view,
    is_map_style,
)
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import check_unique, sample_name
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch, one_of
from coseg_lightning.modules.buffers import evaluating
from coseg_lightning.modules.loaders import found_loader, reading
from coseg_lightning.modules.steps import PACKAGE, SegmentationSteps

WATCHED = 8  # samples
# Augmented images may differ this many times in spread, and this many spreads in their mean.
MOST_SPREAD, MOST_SHIFT = 4.0, 3.0
ADVICE = (
    "do the same in training and evaluation, in the dataset, the loader, a hook for batches or the "
    "step, and leave nothing but augmentation to training alone"
)


class PathGuard:
    """Compares a few samples as they are ranked with the same samples as they are trained on.

    Before training they are read along both paths, by copies of the training loader. In the first
    epoch they are looked for in the real batches, too, by their ids, since a copy may differ.

    Args:
        trainer: The trainer.
        module: The module that is trained.
        dataset: The dataset that is ranked.
        has_view: Whether it was given apart from what is trained on.

    Raises:
        InputError: If they differ by more than augmentation.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: SegmentationSteps,
        dataset: Any,
        *,
        has_view: bool = False,
    ) -> None:
        count = len(dataset)
        indices = sorted({round(n * (count - 1) / (WATCHED - 1)) for n in range(WATCHED)})
        trained_on: Any = found_loader(trainer.train_dataloader).dataset
        if isinstance(dataset, Drawable):
            trained_on = Subset(trained_on, dataset.indices)
        with isolate_rng():  # these readings must not change training
            with compat.validating(trainer), evaluating(module):
                ranked, again = (_read(trainer, module, dataset, indices) for _ in range(2))
                self.is_augmented = any(map(_differ, ranked, again))
                _check_unique(ranked)
                if not self.is_augmented:
                    _check_not_mixed(trainer, module, dataset, indices, ranked)
            # A view without augmentation may differ in that from what is trained on.
            self.is_augmented |= has_view or has_plain_view(trained_on)
            if is_map_style(trained_on) and len(trained_on) == count:
                learnt, again = (_read(trainer, module, trained_on, indices) for _ in range(2))
                self.is_augmented |= any(map(_differ, learnt, again))
                for pair in zip(ranked, learnt, strict=True):
                    self._compare(*pair)
            else:  # a stream, of which a view is ranked
                self.is_augmented = True
        self.ranked = {_name(sample): sample for sample in ranked if sample.ids is not None}

    def check(self, module: SegmentationSteps, batch: Any) -> None:
        """Compare those samples of a training batch that are watched and were not yet seen."""
        if not self.ranked:
            return
        sample = module.as_trained(batch)
        for n, sample_id in enumerate(() if sample.ids is None else sample.ids):
            judged = self.ranked.pop(sample_name(sample_id), None)
            if judged is not None:
                self._compare(judged, one_of(sample, n))

    def _compare(self, judged: Batch, learnt: Batch) -> None:
        """Raise an `InputError` if one sample differs by more than augmentation."""
        learnt = _without_padding(learnt, judged)
        channels = judged.images.shape[1], learnt.images.shape[1]
        if channels[0] != channels[1] or self._values_differ(judged, learnt):
            which = "A sample" if judged.ids is None else f"Sample {_name(judged)!r}"
            raise InputError(
                f"{which} is not ranked as the networks are trained on it: in training it has "
                f"{_values(learnt)}, and in the ranking {_values(judged)}; {ADVICE}."
            )

    def _values_differ(self, judged: Batch, learnt: Batch) -> bool:
        if not self.is_augmented:
            return _differ(judged, learnt)
        images = judged.images.float(), learnt.images.float()
        low, high = sorted(float(values.std()) + 1e-6 for values in images)
        shift = abs(float(images[0].mean() - images[1].mean()))
        return high / low > MOST_SPREAD or shift > MOST_SHIFT * high


def _check_not_mixed(
    trainer: pl.Trainer,
    module: SegmentationSteps,
    dataset: Any,
    indices: Sequence[int],
    alone: Sequence[Batch],
) -> None:
    """Raise an `InputError` if samples differ between batches of their own and common ones."""
    shapes = [sample.images.shape for sample in alone]
    for shape in dict.fromkeys(shapes):
        same = [n for n, other in enumerate(shapes) if other == shape]
        together = _read(trainer, module, dataset, [indices[n] for n in same], together=True)
        for n, sample in zip(same, together, strict=True):
            if _differ(alone[n], sample):
                raise InputError(
                    f"The sample at {indices[n]} differs between a batch of its own and one with "
                    "others, as when a collate function mixes samples; mix them in training alone: "
                    "in on_after_batch_transfer, behind `if self.trainer.training`."
                )


def _read(
    trainer: pl.Trainer,
    module: SegmentationSteps,
    dataset: Any,
    indices: Sequence[int],
    *,
    together: bool = False,
) -> list[Batch]:
    """Read samples as the networks get them, each in a batch of its own, or in a common one."""
    batches = [list(indices)] if together else [[index] for index in indices]
    samples = []
    for batch in reading(trainer.train_dataloader, dataset, batches, workers=1):
        sample = module.as_trained(compat.prepare_batch(trainer, batch))
        check_count(sample, len(batches[0]))
        samples += [one_of(sample, n) for n in range(len(sample.masks))]
    return samples


def _check_unique(samples: Sequence[Batch]) -> None:
    """Raise an `InputError` if two of the samples have one id, which is then none of a sample."""
    names = [_name(sample) for sample in samples if sample.ids is not None]
    check_unique(names)


def _name(sample: Batch) -> str:
    assert sample.ids is not None
    return sample_name(sample.ids[0])


def _differ(first: Batch, second: Batch) -> bool:
    """Whether two samples differ by more than rounding."""
    images = first.images.float().nan_to_num(), second.images.float().nan_to_num()
    return (
        images[0].shape != images[1].shape
        or not torch.equal(first.masks, second.masks)
        or not torch.allclose(*images, rtol=1e-3, atol=1e-3 * float(images[0].abs().max()))
    )


def _without_padding(learnt: Batch, judged: Batch) -> Batch:
    """Crop what was added at the right and below, to make a batch of images of several sizes."""
    height, width = judged.masks.shape[-2:]
    images, masks = learnt.images[..., :height, :width], learnt.masks[..., :height, :width]
    return Batch(images, masks, learnt.ids)


def _values(sample: Batch) -> str:
    channels, images = sample.images.shape[1], sample.images.float()
    return (
        f"{channels} channels of values from {float(images.min()):.3g} to "
        f"{float(images.max()):.3g} and the classes {torch.unique(sample.masks).tolist()}"
    )


def is_of_this_package(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether data and steps are this package's own, so that there is nothing to compare."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    parts = getattr(data, "wrapped_class", type(data)), type(module)
    return all(part.__module__.startswith(f"{PACKAGE}.") for part in parts)
