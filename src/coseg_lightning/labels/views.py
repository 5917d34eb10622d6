"""Views of other people's datasets: without augmentation, and of what lies within them."""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset


def over_dataset(subset: "Subset[Any]", dataset: Any) -> "Subset[Any]":
    """Copy a subset of any class, but over another dataset with the same number of samples."""
    copied = copy.copy(subset)
    vars(copied)["dataset"] = dataset
    return copied


def over_parts(joined: "ConcatDataset[Any]", parts: Sequence[Any]) -> "ConcatDataset[Any]":
    """Copy a concatenation of any class, but of other datasets with the same numbers of samples."""
    copied = copy.copy(joined)
    vars(copied)["datasets"] = list(parts)
    return copied


def plain(dataset: Any) -> Any:
    """Return a dataset, subset or concatenation without augmentation, via its method `plain`."""
    if isinstance(dataset, Subset):
        return over_dataset(dataset, plain(dataset.dataset))
    if isinstance(dataset, ConcatDataset):
        return over_parts(dataset, list(map(plain, dataset.datasets)))
    return dataset.plain() if has_method(dataset, "plain") else dataset


def has_method(dataset: Any, name: str) -> bool:
    """Whether a dataset has a method itself; a wrapper may pass on those of what it wraps."""
    is_own = hasattr(type(dataset), name) or name in getattr(dataset, "__dict__", {})
    return is_own and callable(getattr(dataset, name))


def makes_samples(dataset: Any) -> bool:
    """Whether a user's subclass may change the samples of the class that it is derived from.

    That class is `Subset`, `ConcatDataset`, or a dataset of this package.
    """
    own = type(dataset)
    if isinstance(dataset, Subset):  # loaders read it by __getitems__
        return any(
            getattr(own, name) is not getattr(Subset, name)
            for name in ("__getitem__", "__getitems__")
        )
    if isinstance(dataset, ConcatDataset):
        return own.__getitem__ is not ConcatDataset.__getitem__ or hasattr(own, "__getitems__")
    reads = [getattr(own, name, None) for name in ("__getitem__", "__getitems__")]
    return _is_ours(getattr(own, "updated", None)) and not all(
        read is None or _is_ours(read) for read in reads
    )


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith(f"{__name__.partition('.')[0]}.")


class _Stored:
    """The ids and masks that a dataset of this package stores."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"mask": self.dataset.mask(index), "id": self.dataset.ids[index]}


def within(dataset: Any) -> Any:
    """Return the samples within a dataset that makes others of them."""
    if isinstance(dataset, Subset):
        return Subset(plain(dataset.dataset), dataset.indices)
    if isinstance(dataset, ConcatDataset):
        return ConcatDataset(list(map(plain, dataset.datasets)))
    return _Stored(dataset)


def has_views(dataset: Any) -> bool:
    """Whether a dataset, or each part of it, has a method `updated` of its own."""
    if isinstance(dataset, Subset):
        return has_views(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return all(map(has_views, dataset.datasets))
    return has_method(dataset, "updated")


def known_ids(dataset: Any) -> list[Any] | None:
    """Return the ids of a dataset, or of those within it; None if it does not list them."""
    if makes_samples(dataset):
        return None
    if isinstance(dataset, Subset):
        ids = known_ids(dataset.dataset)
        return None if ids is None else [ids[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = list(map(known_ids, dataset.datasets))
        return None if None in parts else [one for part in parts for one in part or ()]
    ids = getattr(dataset, "ids", None)
    return list(ids) if isinstance(ids, Sequence | np.ndarray) else None


def spread(count: int, places: int = 8) -> list[int]:
    """Return a few places, spread evenly over a number of samples."""
    return sorted({round(n * (count - 1) / (places - 1)) for n in range(places if count else 0)})


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the global random numbers afterwards, like Lightning's, which this room lacks."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
