"""Somebody's own datamodule, with label layers over its training masks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from typing_extensions import override

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.labels.updated import updated


def wrap_datamodule(data: pl.LightningDataModule) -> "WrappedDataModule":
    """A shallow copy of a datamodule over whose training masks label layers can be laid.

    Everything else, such as its other loaders, its transfer to devices and its own attributes,
    stays as it is.

    Raises:
        InputError: If it is no datamodule.
    """
    if not isinstance(data, pl.LightningDataModule):
        raise InputError(
            f"The data is a {type(data).__name__}; give a LightningDataModule, such as "
            "LightningDataModule.from_datasets(train, test_dataset=test)."
        )
    copied = copy.copy(data)
    copied.__class__ = _wrapped_class(type(data))
    assert isinstance(copied, WrappedDataModule)
    copied.label_layers = []
    # from_datasets makes it an attribute of the one datamodule, not a method of its class.
    copied.train_loader_of_its_own = vars(copied).pop("train_dataloader", None)
    return copied


def _wrapped_class(kind: type) -> Any:
    return type(kind.__name__, (WrappedDataModule, kind), {"wrapped_class": kind})


def _restored(kind: type, state: dict[str, Any]) -> "WrappedDataModule":
    """Undo pickling: the class of a copy has no name that could be imported."""
    adopted_class = _wrapped_class(kind)
    data: WrappedDataModule = adopted_class.__new__(adopted_class)
    data.__dict__.update(state)
    return data


class WrappedDataModule(pl.LightningDataModule):
    """What `adopted` puts before a datamodule's own class."""

    wrapped_class: type
    label_layers: list[Path]
    train_loader_of_its_own: Callable[[], Any] | None

    @override
    def __reduce__(self) -> Any:
        return _restored, (self.wrapped_class, self.__dict__)

    def add_label_layer(self, layer: str | Path) -> None:
        """Put one more label layer over the training masks, from the next fit on."""
        self.label_layers.append(Path(layer))

    @property
    def has_test(self) -> bool:
        """Whether there are test samples."""
        return is_overridden("test_dataloader", self, pl.LightningDataModule)

    @override
    def train_dataloader(self) -> Any:
        own = self.train_loader_of_its_own
        loader = super().train_dataloader() if own is None else own()
        if not isinstance(loader, DataLoader):
            raise InputError(
                f"train_dataloader of {type(self).__name__} gave a {type(loader).__name__}; to "
                "rank and correct its masks it must give one torch DataLoader."
            )
        if not self.label_layers:
            return loader
        dataset = loader.dataset
        for layer in self.label_layers:
            dataset = updated(dataset, layer)
        return over(loader, dataset)


def over(loader: DataLoader[Any], dataset: Any) -> DataLoader[Any]:
    """A loader like another one, over a dataset of as many samples."""
    options: dict[str, Any] = {
        name: getattr(loader, name)
        for name in (
            *("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
            *("multiprocessing_context", "generator", "persistent_workers"),
        )
    }
    if loader.num_workers:
        options["prefetch_factor"] = loader.prefetch_factor
    if loader.batch_size is not None:
        sampler = loader.sampler
        options |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        # Those that shuffle or not are made anew, as they refer to the dataset; so does Lightning
        # for several processes.
        plain = type(sampler) is SequentialSampler
        shuffled = type(sampler) is RandomSampler and not sampler.replacement
        if shuffled and sampler.num_samples == len(loader.dataset):  # type: ignore[attr-defined, arg-type]
            options["shuffle"] = True
        elif not plain:
            options["sampler"] = sampler
    elif loader.batch_sampler is not None:
        options["batch_sampler"] = loader.batch_sampler
    else:  # the dataset gives whole batches
        options |= {"batch_size": None, "sampler": loader.sampler}
    return DataLoader(dataset, **options)


Data = CoSegDataModule | WrappedDataModule
