"""PathGuard: checks that samples are ranked as the networks see them in training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from coseg_lightning.callbacks.evaluation_pass import (
    Drawable,
    check_count,
    check_none_dropped,
    has_plain_view,
    is_map_style,
)
from coseg_lightning.callbacks.evidence_sum import check_ids
from coseg_lightning.callbacks.watched import WatchedSamples, is_reordered
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import check_unique, sample_name
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch, one_of
from coseg_lightning.modules.loaders import draws_as, found_loader
from coseg_lightning.modules.steps import PACKAGE

# Augmentation may change an image's spread by this factor, and its mean by this many spreads.
MOST_SPREAD, MOST_SHIFT = 4.0, 3.0
SAME_SCALE, SAME_SHIFT = 1.5, 1.0  # stricter limits for changes that all samples share
ENOUGH = 3  # samples that are compared in the first epoch
ADVICE = (
    "prepare samples in the same way for training and evaluation, in the dataset, the loader, the "
    "hooks for batches and the step; only augmentation may be limited to training, in "
    "on_after_batch_transfer after `if self.trainer.training`, not in a callback"
)


class PathGuard:
    """Compares a few samples as they are ranked with the same samples as they are trained on.

    Before training, copies of the training loader read them along both paths. In the first epoch
    they are also looked up in the real batches by their ids, since a copy may differ. Without ids
    the first images of the epoch are compared with them as a whole.

    Args:
        trainer: The trainer.
        dataset: The dataset that is ranked.
        watched: Samples of the dataset.
        has_view: Whether the ranked dataset was given separately from the training dataset.

    Raises:
        InputError: If they differ by more than augmentation.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        dataset: Any,
        watched: WatchedSamples,
        ignore_index: int,
        *,
        has_view: bool = False,
    ) -> None:
        self.ignore_index = ignore_index
        loader = found_loader(trainer.train_dataloader)
        trained_on: Any = loader.dataset
        if isinstance(dataset, Drawable):
            trained_on = Subset(trained_on, dataset.indices)
        ranked, *others = watched.alone(trainer)
        check_ids(trainer, ranked[0], dataset)
        _check_known(ranked)
        self.is_augmented = vary([ranked, *others])
        if all(len(sample.masks) == 1 for sample in ranked):
            together = watched.together(trainer)[0]
            if not _masks_vary([ranked, *others]):
                _check_order(ranked, together, by_masks=self.is_augmented)
            if not self.is_augmented:
                _check_not_mixed(watched, ranked, together)
        # A view without augmentation may differ by augmentation from the training dataset.
        has_view = has_view or has_plain_view(trained_on)
        self.is_augmented |= has_view
        if is_map_style(trained_on) and len(trained_on) == len(dataset):
            seen = WatchedSamples(trainer, trained_on) if has_view else watched
            learnt, *others = seen.alone(trainer, training=True)
            self.is_augmented |= vary([learnt, *others])
            # Mixing of samples within a batch has no effect on a single sample.
            self.is_augmented |= vary([learnt, *seen.together(trainer, training=True)])
            pairs = list(zip(ranked, learnt, strict=True))
            for pair in pairs:
                self._compare(*pair)
            if self.is_augmented:
                check_alike(pairs, self.ignore_index)
        else:  # a stream, for which a separate view is ranked
            self.is_augmented = True
        # Patches of an image may all have its id.
        self.ranked = {_name(sample): sample for sample in ranked if len(names_of(sample)) == 1}
        self._watched = ranked
        self._first: list[Batch] = []  # of an epoch without ids
        self._enough_first = min(2 * len(ranked), len(dataset))
        self._found: list[tuple[Batch, Batch]] = []
        self._different = 0
        is_own = loader is not trainer.train_dataloader or (
            type(loader).__iter__ is not DataLoader.__iter__
        )
        self._draws_each_once = 0 if is_own else draws_each_once(loader)
        self._drawn: set[str] = set()

    def check(self, trainer: pl.Trainer, sample: Batch) -> None:
        """Check a batch of the first epoch: its ids, and those of its samples that are watched.

        Several samples decide, since rare augmentation may not have been noticed before.
        """
        if sample.ids is not None and self._watched[0].ids is None:
            raise InputError(
                f"The batches have ids, such as {_name(sample)!r}, but the samples of the ranked "
                "dataset have none, so it is not known which is which; let it return "
                "(image, mask, id) too."
            )
        if sample.ids is None:
            check_none_dropped(trainer, sample)
            self._check_first(sample)
        names = names_of(sample)
        self._check_ids(names)
        for n, name in enumerate(names):
            judged = self.ranked.pop(name, None)
            if judged is not None:
                self._decide(judged, one_of(sample, n))

    def _decide(self, judged: Batch, learnt: Batch) -> None:
        """Compare one more sample, and raise an `InputError` if all so far differ alike."""
        self._found.append((judged, learnt))
        self._different += self.differ(judged, _without_padding(learnt, judged))
        if len(self._found) == ENOUGH and self._different == ENOUGH:
            self._compare(judged, learnt)
        if len(self._found) == 2 * ENOUGH and self.is_augmented:
            check_alike(self._found, self.ignore_index)

    def _check_first(self, sample: Batch) -> None:
        """Compare the first images of an epoch without ids with those that are watched."""
        if len(self._first) < self._enough_first:
            self._first += [one_of(sample, n) for n in range(len(sample.masks))]
            if len(self._first) >= self._enough_first:
                check_same_range(self._watched, self._first)

    def _check_ids(self, names: Sequence[str]) -> None:
        """Raise an `InputError` if an id is repeated in an epoch that draws each sample once."""
        if not self._draws_each_once:
            return
        if len(names) <= self._draws_each_once:
            check_unique(names)
        again = self._drawn.intersection(names)
        check_unique([name for name in sorted(again) for _ in range(2)])
        self._drawn.update(names)

    def _compare(self, judged: Batch, learnt: Batch) -> None:
        """Raise an `InputError` if one sample differs by more than augmentation."""
        learnt = _without_padding(learnt, judged)
        if self.differ(judged, learnt):
            which = "A sample" if judged.ids is None else f"Sample {_name(judged)!r}"
            raise InputError(
                f"{which} is not the same in training and in the ranking: in training it has "
                f"{_values(learnt)}, but in the ranking {_values(judged)}; {ADVICE}."
            )

    def differ(self, judged: Batch, learnt: Batch) -> bool:
        """Whether one sample differs by more than rounding, or by more than augmentation."""
        if judged.images.shape[1] != learnt.images.shape[1]:
            return True
        if not self.is_augmented:
            return _differ(judged, learnt)
        images = judged.images.float(), learnt.images.float()
        low, high = sorted(float(values.std()) + 1e-6 for values in images)
        shift = abs(float(images[0].mean() - images[1].mean()))
        return high / low > MOST_SPREAD or shift > MOST_SHIFT * high


def _check_known(samples: Sequence[Batch]) -> None:
    """Raise an `InputError` for shared ids, or if samples were split without ids."""
    names: list[str] = []
    for sample in samples:
        check_count(sample, 1, patches=True)
        names += set(names_of(sample))
    check_unique(names)


def _masks_vary(readings: Sequence[Sequence[Batch]]) -> bool:
    first, *others = readings
    pairs = (pair for other in others for pair in zip(first, other, strict=True))
    return any(not torch.equal(one.masks, other.masks) for one, other in pairs)


def _check_order(alone: Sequence[Batch], together: Sequence[Batch], *, by_masks: bool) -> None:
    """Raise an `InputError` if samples without ids change their places in a common batch.

    Args:
        alone: The samples, each from a batch of its own.
        together: The samples of the batch.
        by_masks: Whether they are known by their masks alone, since their images vary.
    """

    def same(one: Batch, other: Batch) -> bool:
        other = _without_padding(other, one)
        return torch.equal(one.masks, other.masks) if by_masks else not _differ(one, other)

    has_ids = any(sample.ids is not None for sample in alone)
    if not has_ids and is_reordered(alone, together, same):
        raise InputError(
            "Samples have another order in the batch than in the loader, so a collate function or "
            "a hook sorts or shuffles them; without ids they are known by their places, so keep "
            "the order, or let the dataset return (image, mask, id)."
        )


def _check_not_mixed(
    watched: WatchedSamples, alone: Sequence[Batch], together: Sequence[Batch]
) -> None:
    """Raise an `InputError` if samples look different alone and in a common batch."""
    if all(sample.ids is not None for sample in [*alone, *together]):  # in any order
        by_name = {_name(sample): sample for sample in together}
        together = [by_name.get(_name(sample), sample) for sample in alone]
    for index, sample, among_others in zip(watched.indices, alone, together, strict=False):
        if _differ(sample, _without_padding(among_others, sample)):
            raise InputError(
                f"The sample at {index} depends on the other samples in its batch, so a collate "
                "function or a hook probably mixes samples; mix them only in training: in "
                "on_after_batch_transfer, after `if self.trainer.training`."
            )


def vary(readings: Sequence[Sequence[Batch]]) -> bool:
    """Whether samples differ between readings; some readings may hold only the first samples."""
    first, *others = readings
    return any(
        _differ(one, _without_padding(another, one))
        for other in others
        for one, another in zip(first, other, strict=False)
    )


def check_alike(pairs: Sequence[tuple[Batch, Batch]], ignore_index: int) -> None:
    """Raise an `InputError` if all samples change in the same way, as by normalisation.

    A random change of brightness or contrast goes in both directions. A change in the same
    direction, by about the same amount, belongs to the training path and is missing in ranking.

    Args:
        pairs: Samples as they are ranked and as they are trained on.
        ignore_index: Class id of unlabelled pixels, with which augmentation may fill.
    """
    judged, learnt = zip(*pairs, strict=True)
    spreads = [[float(s.images.float().std()) + 1e-6 for s in part] for part in (judged, learnt)]
    means = [[float(s.images.float().mean()) for s in part] for part in (judged, learnt)]
    ratios = np.log(spreads[1]) - np.log(spreads[0])
    shifts = np.subtract(means[1], means[0]) / spreads[0]
    is_scaled = np.abs(ratios).min() > np.log(SAME_SCALE) and ratios.std() < np.log(SAME_SCALE) / 2
    is_shifted = np.abs(shifts).min() > SAME_SHIFT and len(set(np.sign(shifts))) == 1
    classes = [[set(torch.unique(s.masks).tolist()) for s in part] for part in (judged, learnt)]
    before, after = (set[int]().union(*of_part) for of_part in classes)
    new, gone = after - before - {0, ignore_index}, before - after - {ignore_index}
    # A crop may show a class that the ranked part of the image lacks, but not each crop does, and a
    # class that was renamed is gone.
    is_everywhere = all(other & new for other in classes[1])
    is_renamed = bool(new and gone) and all(
        one & gone for one, other in zip(*classes, strict=True) if other & new
    )
    if len(pairs) > 2 and (is_scaled or is_shifted or is_everywhere or is_renamed):
        raise InputError(
            "All samples differ in the same way between the ranking and training, which "
            f"augmentation would not do; one has {_values(judged[0])} in the ranking, but "
            f"{_values(learnt[0])} in training; {ADVICE}."
        )


def check_same_range(judged: Sequence[Batch], learnt: Sequence[Batch]) -> None:
    """Raise an `InputError` if images that may be others cannot have been prepared alike.

    That is so if none of them is near the others in mean, or in spread.

    Args:
        judged: Samples as they are ranked.
        learnt: Samples as they are trained on.
    """
    means, spreads = (
        [sorted(float(measure(s.images.float())) for s in part) for part in (judged, learnt)]
        for measure in (torch.mean, torch.std)
    )
    (low, high), (least, most) = ((part[0], part[-1]) for part in spreads)
    is_scaled = most > 0 and (least > SAME_SCALE * high or low > SAME_SCALE * most)
    gap = max(means[1][0] - means[0][-1], means[0][0] - means[1][-1])
    if is_scaled or gap > SAME_SHIFT * max(high, most) > 0:
        raise InputError(
            "Images are not the same in training and in the ranking: one has "
            f"{_values(judged[0])} in the ranking, but {_values(learnt[0])} in training; {ADVICE}."
        )


def draws_each_once(loader: DataLoader[Any]) -> int:
    """Return a loader's batch size if it draws each sample once per epoch, else 0."""
    sampler = compat.inner_sampler(loader)
    once = (SequentialSampler, SubsetRandomSampler, DistributedSampler)
    is_random = draws_as(sampler, RandomSampler) and not sampler.replacement
    has_own_batches = type(loader.batch_sampler) is not BatchSampler
    if has_own_batches or not (is_random or draws_as(sampler, *once)):
        return 0
    dataset: Any = loader.dataset
    if isinstance(sampler, RandomSampler) and sampler.num_samples > len(dataset):
        return 0
    if isinstance(sampler, SubsetRandomSampler) and len(set(sampler.indices)) < len(sampler):
        return 0
    return loader.batch_size or 0


def names_of(sample: Batch) -> list[str]:
    """Return the names of a batch's samples; none without ids."""
    return [] if sample.ids is None else [sample_name(sample_id) for sample_id in sample.ids]


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
    """Crop the padding at the right and bottom that a batch of several image sizes needs."""
    height, width = judged.masks.shape[-2:]
    images, masks = learnt.images[..., :height, :width], learnt.masks[..., :height, :width]
    return Batch(images, masks, learnt.ids)


def _values(sample: Batch) -> str:
    channels, images = sample.images.shape[1], sample.images.float()
    return (
        f"{channels} channels with values from {float(images.min()):.3g} to "
        f"{float(images.max()):.3g} and the classes {torch.unique(sample.masks).tolist()}"
    )


def is_of_this_package(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether data and steps are this package's own, so that there is nothing to compare."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    parts = getattr(data, "wrapped_class", type(data)), type(module)
    return all(part.__module__.startswith(f"{PACKAGE}.") for part in parts)
