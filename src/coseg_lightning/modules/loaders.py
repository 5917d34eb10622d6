"""Copies of a dataloader that read other samples through the same pipeline.

Everything between files and networks is kept: a subclass's or wrapper's own `__iter__`, the collate
function, the workers and their settings. The copies are shallow, since the constructor arguments of
a user's class are unknown.
"""

import copy
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from coseg_lightning.errors import InputError
from coseg_lightning.labels.updated import PassesOn
from coseg_lightning.modules import compat

Loader = DataLoader[Any]


def inner_loader(loader: Any) -> Loader | None:
    """Return the torch `DataLoader` that a loader is, or that a wrapper holds; None without one."""
    if isinstance(loader, DataLoader):
        return loader
    name = _name_of_inner(loader)
    return None if name is None else inner_loader(vars(loader)[name])


def _name_of_inner(wrapper: Any) -> str | None:
    """Return the name of the attribute that holds a wrapper's loader; None unless exactly one."""
    if isinstance(wrapper, type | torch.nn.Module) or not hasattr(wrapper, "__iter__"):
        return None
    parts = getattr(wrapper, "__dict__", {})
    names = [name for name, part in parts.items() if inner_loader(part) is not None]
    return names[0] if len(names) == 1 else None


def found_loader(loader: Any) -> Loader:
    """Return the torch `DataLoader` that a loader is, or that a wrapper holds.

    Raises:
        InputError: If there is none.
    """
    inner = inner_loader(loader)
    if inner is None:
        raise InputError(
            f"The training dataloader is a {type(loader).__name__}, and it holds no torch "
            "DataLoader, so its samples cannot be read again as the networks see them; give one "
            "DataLoader, or a wrapper that holds it as an attribute."
        )
    return inner


# The indices that users' samplers can draw, by loader, since finding them is slow; None for all.
_DRAWN: WeakKeyDictionary[Loader, set[int] | None] = WeakKeyDictionary()
MOST_EPOCHS = 20  # epochs drawn to find out what a user's sampler can draw


def drawable_indices(loader: Loader) -> list[int] | None:
    """Return the indices of the samples that a loader's sampler can draw; None for all samples.

    A copy of a user's sampler draws epochs until three in a row contain nothing new.
    """
    drawable = _drawable(loader)
    dataset: Any = loader.dataset
    return None if drawable is None or len(drawable) == len(dataset) else sorted(drawable)


def _drawable(loader: Loader) -> set[int] | None:
    sampler = compat.inner_sampler(loader)
    if type(loader.batch_sampler) in (BatchSampler, type(None)):
        if draws_as(sampler, SubsetRandomSampler):
            return set(map(int, sampler.indices))
        if draws_as(sampler, WeightedRandomSampler):
            return set(sampler.weights.nonzero().flatten().tolist())
        if draws_as(sampler, RandomSampler, SequentialSampler):
            drawn_of: Any = sampler.data_source  # which may be shorter than the dataset
            few = len(drawn_of) < len(loader.dataset)  # type: ignore[arg-type]
            return set(range(len(drawn_of))) if few else None
        if isinstance(sampler, DistributedSampler):  # each process draws other samples
            return None
    if loader not in _DRAWN:
        _DRAWN[loader] = _drawn(loader)
    return _DRAWN[loader]


def draws_as(sampler: Any, *kinds: type[Sampler[Any]]) -> bool:
    """Whether a sampler draws as one of torch's; a subclass may draw in another way."""
    return any(isinstance(sampler, k) and type(sampler).__iter__ is k.__iter__ for k in kinds)


def _drawn(loader: Loader) -> set[int] | None:
    """Draw epochs from a copy of the sampler.

    Returns:
        The indices; None if it does not draw whole numbers, or still draws new ones at the end.
    """
    dataset: Any = loader.dataset
    own, drawn, nothing_new = own_batches(loader), set[int](), 0
    with isolate_rng():
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)  # all processes draw the same
        for epoch in range(MOST_EPOCHS):
            before = len(drawn)
            parts: tuple[Any, Any] = own, getattr(own, "sampler", None)
            for part in parts:
                if hasattr(part, "set_epoch"):  # as Lightning does in every epoch
                    part.set_epoch(epoch)
            try:
                indices = (operator.index(index) for batch in own for index in batch)
                drawn.update(islice(indices, 2 * len(dataset)))  # a sampler may have no end
            except TypeError:
                return None
            nothing_new = nothing_new + 1 if len(drawn) == before else 0
            if len(drawn) >= len(dataset) or nothing_new == 3:
                break
    if nothing_new < 3:  # more may come
        return None
    sampler = compat.inner_sampler(loader)
    if isinstance(sampler, WeightedRandomSampler):
        drawn |= set(sampler.weights.nonzero().flatten().tolist())
    return drawn or None


def own_batches(loader: Loader) -> Any:
    """Return a copy of a loader's batch sampler, so that draws do not advance the original.

    Samplers that cannot be copied, such as one with a lock, give an empty list.
    """
    dataset = loader.dataset
    sampler = compat.inner_sampler(loader)
    batches = loader.batch_sampler
    if type(batches) is BatchSampler:  # of one process's share, inside Lightning's wrapper
        batches = BatchSampler(sampler, batches.batch_size, drop_last=False)
    try:  # the memo keeps the dataset, which a sampler may hold, from being copied
        return copy.deepcopy(batches, {id(dataset): dataset})
    except Exception:
        return []


def over(loader: Any, dataset: Any) -> Any:
    """Copy a loader for another dataset of the same length, with the same sampler.

    Args:
        loader: A torch `DataLoader`, or a wrapper that holds one.
        dataset: The new loader's dataset.

    Raises:
        InputError: If there is no `DataLoader`.
    """
    before = found_loader(loader).dataset

    def change(copied: Loader) -> None:
        vars(copied)["dataset"] = dataset
        compat.replace_saved_argument(copied, before, dataset)

    return _copied(loader, change, before, dataset)


def reading(
    loader: Any,
    dataset: Any,
    batches: Sequence[Sequence[int]],
    *,
    workers: int | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Any:
    """Copy a loader so that it reads the given batches of a map-style dataset, in their order.

    The copy draws no number from the user's generator or from torch's global one.

    Args:
        loader: A torch `DataLoader`, or a wrapper that holds one.
        dataset: The dataset.
        batches: The indices of each batch's samples.
        workers: The largest number of workers; by default as many as the loader has.
        collate: Another collate function.

    Raises:
        InputError: If there is no `DataLoader`.
    """
    inner = found_loader(loader)

    def change(copied: Loader) -> None:
        compat.set_batches(copied, dataset, batches)
        options: dict[str, Any] = {"generator": torch.Generator()}
        if workers is not None:
            options["num_workers"] = min(workers, inner.num_workers)
        if collate is not None:
            options["collate_fn"] = collate
        vars(copied).update(options)

    return _copied(loader, change, inner.dataset, dataset)


class FewSamples(PassesOn, Subset[Any]):
    """Some samples of a dataset, with its other attributes."""

    own = ("dataset", "indices")


def shortened(loader: Any, batches: int) -> Any:
    """Copy a loader so that it has a few batches of its real size, from samples it can draw.

    Args:
        loader: A torch `DataLoader`, or a wrapper that holds one.
        batches: The number of batches.

    Returns:
        The copy, whose dataset holds no other samples. They are in dataset order if the loader
        draws from all samples. A loader of a stream is returned unchanged.

    Raises:
        InputError: If there is no `DataLoader`.
    """
    inner = found_loader(loader)
    dataset: Any = inner.dataset
    if isinstance(dataset, IterableDataset) or inner.batch_sampler is None:
        return loader
    if inner.batch_size is not None and type(inner.sampler) in (RandomSampler, SequentialSampler):
        size = inner.batch_size
        drawn = [range(first, first + size) for first in range(0, batches * size, size)]
        drawn_of = getattr(
            inner.sampler, "data_source", dataset
        )  # which may be shorter than the dataset
        count = min(len(drawn_of), len(dataset))
        places = [[place for place in batch if place < count] for batch in drawn]
        if inner.drop_last and len(places[0]) == size:
            places = [batch for batch in places if len(batch) == size]
    else:
        places = [list(batch) for batch in islice(iter(own_batches(inner)), batches)]
        if not places:
            return loader
    indices = list(dict.fromkeys(index for batch in places for index in batch))
    place_of = {index: place for place, index in enumerate(indices)}
    few = [[place_of[index] for index in batch] for batch in places if batch]
    return reading(loader, FewSamples(dataset, indices), few)


def is_running(name: str, part: Any) -> bool:
    """Whether a loader's attribute is an iteration in progress, except torch's own."""
    return isinstance(part, Iterator) and name not in ("_iterator", "dataset")


def taken(loader: Any, batches: Sequence[Any]) -> Iterator[Any]:
    """Iterate over a loader that was made to read some batches, and stop after them.

    Raises:
        InputError: If it ends earlier or keeps an iteration of its own.
    """
    given = iter(loader)
    for number in range(len(batches)):
        try:
            batch = next(given)
        except TypeError as error:
            if "NoneType" not in str(error) or "iterator" not in str(error):
                raise
            raise InputError(
                f"The {type(loader).__name__} reuses one iterator, so its samples cannot be read "
                "in another order; give a DataLoader that starts a new iteration each time. "
                "persistent_workers=True keeps its workers."
            ) from error
        except StopIteration:
            raise InputError(
                f"The training loader, a {type(loader).__name__}, was asked for {len(batches)} "
                f"batches but returned {number}, so its samples cannot be read again; make its "
                "length equal that of the DataLoader inside."
            ) from None
        yield batch


def _copied(loader: Any, change: Callable[[Loader], None], before: Any, dataset: Any) -> Any:
    """Copy a loader and its wrappers, and change the copy of the `DataLoader`."""
    copied = copy.copy(loader)
    for name, part in vars(loader).items():
        if is_running(name, part):
            vars(copied)[name] = None  # the copy starts its own, or fails with a clear error
    if isinstance(loader, DataLoader):
        compat.forget_workers(copied)
        change(copied)
        return copied
    for name, part in vars(loader).items():
        if part is before:  # the wrapper holds the dataset too
            vars(copied)[name] = dataset
        elif inner_loader(part) is not None:
            vars(copied)[name] = _copied(part, change, before, dataset)
    return copied
