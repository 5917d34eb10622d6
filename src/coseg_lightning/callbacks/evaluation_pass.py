"""A pass over chosen samples in evaluation mode, distributed over the processes."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler, ConcatDataset, IterableDataset, Subset

from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.files.progress import progress
from coseg_lightning.labels.updated import PassesOn
from coseg_lightning.labels.views import has_method, makes_samples, plain, spread
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.buffers import average_buffers, evaluating
from coseg_lightning.modules.loaders import (
    drawable_indices,
    found_loader,
    reading,
    taken,
)
from coseg_lightning.modules.steps import SegmentationSteps


def plain_training_set(trainer: pl.Trainer) -> Any:
    """Return the training dataset, as its view without augmentation if it has one.

    Samples that the sampler never draws are left out.

    Raises:
        InputError: If the trainer has no map-style training dataset.
    """
    loader = found_loader(trainer.train_dataloader)
    dataset: Any = loader.dataset
    if not is_map_style(dataset):
        raise InputError(
            "The training dataloader has no map-style dataset to rank; give one: "
            "CorruptionRanking(path, dataset=...)."
        )
    if loader.batch_sampler is None:
        raise InputError(
            "The training DataLoader has batch_size=None, so its dataset returns whole batches, "
            "whose samples cannot be told apart; let the dataset return single samples, and let "
            "the loader form the batches."
        )
    indices = drawable_indices(loader)
    return plain(dataset) if indices is None else Drawable(plain(dataset), indices)


def has_plain_view(dataset: Any) -> bool:
    """Whether a dataset or subset has a view without augmentation."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        return any(map(has_plain_view, dataset.datasets))
    return has_method(dataset, "plain")


def is_map_style(dataset: Any) -> bool:
    """Whether samples can be read by index; a length alone does not show this."""
    has_both = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return has_both and not isinstance(dataset, IterableDataset)


class Drawable(PassesOn, Subset[Any]):
    """The samples of a dataset that its sampler can draw."""

    own = ("dataset", "indices")


def stored_sample(dataset: Any, index: int) -> tuple[SampleDataset, int] | None:
    """Return the dataset that stores a sample and its index there; None for foreign datasets."""
    if makes_samples(dataset):
        return None
    if isinstance(dataset, Subset):
        return stored_sample(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        first = dataset.cumulative_sizes[part - 1] if part else 0
        return stored_sample(dataset.datasets[part], index - first)
    return (dataset, index) if is_own_dataset(dataset) else None


def is_own_dataset(dataset: Any) -> bool:
    """Whether samples are those of `SampleDataset`, and of no subclass that makes others."""
    return isinstance(dataset, SampleDataset) and not makes_samples(dataset)


def stored_mask(dataset: Any, index: int) -> Any:
    """Return a sample's mask at its own resolution, or None if the dataset does not know it."""
    stored = stored_sample(dataset, index)
    return None if stored is None else stored[0].mask(stored[1])


def of_content(dataset: Any, index: int, probabilities: Tensor, shape: Sequence[int]) -> Tensor:
    """Crop predictions to the image, which may not fill the networks' input.

    Args:
        dataset: A dataset; predictions for foreign datasets are not cropped.
        index: The sample.
        probabilities: `(..., h, w)` of the whole input.
        shape: Height and width of the image.
    """
    stored = stored_sample(dataset, index)
    if stored is None:
        return probabilities
    height, width = stored[0].canvas.content(shape)
    return probabilities[..., :height, :width]


def evaluation_pass(
    trainer: pl.Trainer,
    module: SegmentationSteps,
    dataset: Any,
    indices: Sequence[int],
    step: Callable[[list[int], Batch], None],
    description: str | None = None,
    *,
    patches: bool = False,
    shared: bool = True,
) -> None:
    """Call `step(indices, batch)` for this process's share of the samples, without gradients.

    Batches are formed before they are distributed. Each sample is thus always batched with the
    same others. Its logits are bitwise equal for any number of processes and workers.

    Args:
        trainer: The trainer, whose training dataloader sets batch size and collate function.
        module: The module that is evaluated.
        dataset: The dataset.
        indices: The samples, by their indices in the dataset.
        step: Called with the indices of the samples in each batch, and the batch.
        description: Text of a progress bar that process 0 shows; without it there is no bar.
        patches: Whether several samples may be made of one, such as patches of an image. Then
            `step` gets the index of one sample, and the batch that was made of it.
        shared: Whether the processes share the samples; else each process takes all `indices`.
    """
    average_buffers(module)  # training may have been stopped within an epoch
    loader = trainer.train_dataloader
    # A user's batch sampler may group samples of one size, so its samples are read one by one.
    size = found_loader(loader).batch_size or 1
    is_ours = isinstance(dataset, SampleDataset)
    if patches and size > 1 and not is_ours and makes_patches(trainer, module, dataset, indices):
        size = 1
    batches = [list(indices[i : i + size]) for i in range(0, len(indices), size)]
    share = batches[trainer.global_rank :: trainer.world_size] if shared else batches
    shown = trainer.global_rank == 0 and trainer.progress_bar_callback is not None and description
    forward_context = trainer.precision_plugin.forward_context
    # A module's batch hooks may augment during training, so they see a validation stage.
    with compat.validating(trainer), evaluating(module), torch.no_grad(), forward_context():
        batches_of_share = taken(reading(loader, dataset, share), share)
        bar = progress(batches_of_share, description or "", total=len(share), shown=bool(shown))
        for batch_indices, batch in zip(share, bar, strict=True):
            sample = module.as_trained(compat.prepare_batch(trainer, batch))
            check_count(sample, len(batch_indices), patches=patches)
            step(batch_indices, sample)


# Whether the collate function or a hook makes several samples of one, by loader.
_PATCHES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def makes_patches(
    trainer: pl.Trainer, module: SegmentationSteps, dataset: Any, indices: Sequence[int]
) -> bool:
    """Whether several samples are made of one, such as patches; decided from a few samples."""
    loader = found_loader(trainer.train_dataloader)
    if loader not in _PATCHES:
        some = [[indices[place]] for place in spread(len(indices))]
        with compat.validating(trainer), evaluating(module), isolate_rng():
            batches = list(taken(reading(trainer.train_dataloader, dataset, some, workers=1), some))
            samples = [module.as_trained(compat.prepare_batch(trainer, b)) for b in batches]
        _PATCHES[loader] = any(len(sample.masks) > 1 for sample in samples)
    return _PATCHES[loader]


def check_none_dropped(trainer: pl.Trainer, sample: Batch) -> None:
    """Raise an `InputError` if samples of a training batch were dropped on the way."""
    loader = found_loader(trainer.train_dataloader)
    expected = loader.batch_size
    if expected is None or isinstance(loader.dataset, IterableDataset):
        return
    # Workers may give the last batch before others.
    comes_last = getattr(loader, "in_order", True)
    if not loader.drop_last and (trainer.is_last_batch or not comes_last):
        sampler: Any = getattr(loader.batch_sampler, "sampler", loader.sampler)
        if type(loader.batch_sampler) is not BatchSampler or not hasattr(sampler, "__len__"):
            return
        rest = (len(sampler) - 1) % expected + 1  # of this process's share
        if comes_last or len(sample.masks) == rest:
            expected = rest
    if len(sample.masks) < expected:
        check_count(sample, expected)


def check_count(sample: Batch, expected: int, *, patches: bool = False) -> None:
    """Raise an `InputError` unless a batch holds as many samples as were read for it.

    Args:
        sample: The batch.
        expected: The number of samples that were read.
        patches: Whether several may be made of one, or some dropped, if they have ids.
    """
    count = len(sample.masks)
    known = patches and sample.ids is not None
    if count == expected or (known and (count < expected or expected == 1)):
        return
    if known:
        advice = "use batches of one sample, since only some samples become patches"
    elif sample.ids is None and count > expected:
        advice = "give the patches ids, either their own or those of their images"
    elif sample.ids is None:
        advice = "give the samples ids"
    elif count > expected:
        advice = "leave out LabelCorrection, since it cannot match masks and patches"
    else:
        advice = "let the dataset leave out unusable samples"
    raise InputError(
        f"{expected} samples were read, but the batch holds {count}, so they cannot be told apart; "
        f"let the collate function make one sample from each, or {advice}."
    )
