"""A user's own datamodule, with label layers over its training masks."""

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

# The arguments of a DataLoader that do not depend on its dataset.
LOADER_OPTIONS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "persistent_workers",
)


class WrappedDataModule(pl.LightningDataModule):
    """The base class that `wrap_datamodule` adds to a datamodule's own class.

    Attributes:
        wrapped_class: The datamodule's own class.
        label_layers: The label layers over the training masks. The last one is on top.
        own_train_dataloader: The function that loads the datamodule's training samples, if it is
            an attribute of the datamodule and not a method of its class.
    """

    wrapped_class: type
    label_layers: list[Path]
    own_train_dataloader: Callable[[], Any] | None

    @override
    def __reduce__(self) -> Any:
        return _unpickle, (self.wrapped_class, self.__dict__)

    def add_label_layer(self, layer: str | Path) -> None:
        """Add a label layer on top of the training masks, from the next fit on."""
        self.label_layers.append(Path(layer))

    @property
    def has_test(self) -> bool:
        """Whether there are test samples."""
        return is_overridden("test_dataloader", self, pl.LightningDataModule)

    @override
    def train_dataloader(self) -> Any:
        """Return the datamodule's own training loader, with the label layers' masks.

        Raises:
            InputError: If the datamodule does not return one torch `DataLoader`.
        """
        own = self.own_train_dataloader
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


Data = CoSegDataModule | WrappedDataModule


def wrap_datamodule(data: pl.LightningDataModule) -> WrappedDataModule:
    """Copy a datamodule so that label layers can be added over its training masks.

    The copy is shallow. Everything else, such as its other loaders, its transfer to devices and its
    own attributes, works as before.

    Args:
        data: The datamodule, which is not changed.

    Returns:
        The copy.

    Raises:
        InputError: If the data is no datamodule.
    """
    if not isinstance(data, pl.LightningDataModule):
        raise InputError(
            f"The data is a {type(data).__name__}; give a LightningDataModule, such as "
            "LightningDataModule.from_datasets(train, test_dataset=test)."
        )
    copied = copy.copy(data)
    # The copy stays an instance of its own class, whose methods and attributes all keep working.
    # Delegating to the original would need every hook that a datamodule may have.
    copied.__class__ = _wrapped_class(type(data))
    assert isinstance(copied, WrappedDataModule)
    copied.label_layers = []
    # LightningDataModule.from_datasets sets this function on the datamodule, where it would hide
    # the method of WrappedDataModule.
    copied.own_train_dataloader = vars(copied).pop("train_dataloader", None)
    return copied


def _wrapped_class(own_class: type) -> Any:
    """A subclass of `WrappedDataModule` and of a datamodule's own class, under the same name."""
    bases = (WrappedDataModule, own_class)
    return type(own_class.__name__, bases, {"wrapped_class": own_class})


def _unpickle(own_class: type, state: dict[str, Any]) -> WrappedDataModule:
    """Create the class again, because pickle cannot import it by name."""
    wrapped_class = _wrapped_class(own_class)
    data: WrappedDataModule = wrapped_class.__new__(wrapped_class)
    data.__dict__.update(state)
    return data


def over(loader: DataLoader[Any], dataset: Any) -> DataLoader[Any]:
    """Create a loader like another one, for a dataset of equally many samples.

    Args:
        loader: The other loader.
        dataset: The new loader's dataset.

    Returns:
        The new loader.
    """
    options: dict[str, Any] = {name: getattr(loader, name) for name in LOADER_OPTIONS}
    if loader.num_workers:
        options["prefetch_factor"] = loader.prefetch_factor
    if loader.batch_size is not None:
        options |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        if _is_full_shuffle(loader):
            options["shuffle"] = True
        elif type(loader.sampler) is not SequentialSampler:
            options["sampler"] = loader.sampler
    elif loader.batch_sampler is not None:
        options["batch_sampler"] = loader.batch_sampler
    else:  # the dataset returns whole batches
        options |= {"batch_size": None, "sampler": loader.sampler}
    return DataLoader(dataset, **options)


def _is_full_shuffle(loader: DataLoader[Any]) -> bool:
    """Whether a loader shuffles all samples, as `shuffle=True` does.

    Its sampler refers to the dataset and cannot be reused. Lightning also replaces such samplers,
    for several processes.
    """
    sampler = loader.sampler
    return (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
