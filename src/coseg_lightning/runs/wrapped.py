"""A user's own datamodule, with label layers over its training masks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import IterableDataset
from typing_extensions import override

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.labels.updated import updated
from coseg_lightning.modules.loaders import found_loader, over, shortened


class WrappedDataModule(pl.LightningDataModule):
    """The base class that `wrap_datamodule` adds to a datamodule's own class.

    Attributes:
        wrapped_class: The datamodule's own class.
        label_layers: The label layers over the training masks. The last one is on top.
        own_train_dataloader: The function that loads the datamodule's training samples, if it is
            an attribute of the datamodule and not a method of its class.
        most_batches: The largest number of training batches, for a rehearsal; None for all.
        sizes: The number of training samples after the first setup, of all copies.
        is_set_up_anew: Whether the number has not been compared since the last setup.
        has_own_masks: Whether the training loader is read for validation or test, without layers.
    """

    wrapped_class: type
    label_layers: list[Path]
    own_train_dataloader: Callable[[], Any] | None
    most_batches: int | None
    sizes: list[int]
    is_set_up_anew: bool
    has_own_masks: bool

    def __init_subclass__(cls, **options: Any) -> None:
        """Do not call the hook of the user's class, which may want arguments or register it."""

    @override
    def __reduce__(self) -> Any:
        return _unpickle, (self.wrapped_class, self.__dict__)

    def add_label_layer(self, layer: str | Path) -> None:
        """Add a label layer over the training masks, from the next fit on."""
        self.label_layers.append(Path(layer))

    def shortened(self, batches: int, folder: Path) -> "WrappedDataModule":
        """Return the same data with few training batches and no label layers.

        Args:
            batches: The number of batches.
            folder: Not used; see `CoSegDataModule.shortened`.
        """
        other = copy.copy(self)
        other.label_layers, other.most_batches = [], batches
        return other

    @property
    def has_test(self) -> bool:
        """Whether there are test samples."""
        return is_overridden("test_dataloader", self, pl.LightningDataModule)

    @override
    def setup(self, *args: Any, **options: Any) -> None:
        """Set the datamodule up, as each stage does."""
        super().setup(*args, **options)
        self.is_set_up_anew = True

    @override
    def train_dataloader(self, *args: Any, **options: Any) -> Any:
        """Return the datamodule's own training loader, with the label layers' masks.

        Raises:
            InputError: If the datamodule's loader contains no torch `DataLoader`, or has another
                number of samples than after an earlier setup.
        """
        own = self.own_train_dataloader
        load = super().train_dataloader if own is None else own
        loader = load(*args, **options)
        self._check_size(found_loader(loader).dataset)
        if self.most_batches is not None:
            loader = shortened(loader, self.most_batches)
        dataset = found_loader(loader).dataset
        if not self.label_layers or self.has_own_masks:
            return loader
        for layer in self.label_layers:
            dataset = updated(dataset, layer)
        return over(loader, dataset)

    def _check_size(self, dataset: Any) -> None:
        """Raise an `InputError` if a further setup gave another number of samples."""
        if not self.is_set_up_anew or isinstance(dataset, IterableDataset):
            return
        self.is_set_up_anew = False
        self.sizes += [] if self.sizes else [len(dataset)]
        if self.sizes != [len(dataset)]:
            raise InputError(
                f"{type(self).__name__}.setup is called in each stage, and there are "
                f"{len(dataset)} training samples now, but there were {self.sizes[0]} before; "
                "build the datasets anew in setup, and do not add to them."
            )


Data = CoSegDataModule | WrappedDataModule


def wrap_datamodule(data: pl.LightningDataModule) -> WrappedDataModule:
    """Copy a datamodule so that label layers can be added over its training masks.

    The copy is shallow. Everything else works as before, such as its other loaders, its transfer
    to devices and its own attributes.

    Args:
        data: The datamodule, which is not changed.

    Returns:
        The copy.

    Raises:
        InputError: If the data is not a datamodule.
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
    copied.label_layers, copied.most_batches = [], None
    copied.sizes, copied.is_set_up_anew, copied.has_own_masks = [], False, False
    # LightningDataModule.from_datasets sets this function on the datamodule, where it would hide
    # the method of WrappedDataModule.
    copied.own_train_dataloader = vars(copied).pop("train_dataloader", None)
    return copied


def _wrapped_class(own_class: type) -> Any:
    """Create a subclass of `WrappedDataModule` and a datamodule's class, with the same name."""
    bases = (WrappedDataModule, own_class)
    methods = {
        name: _of_other_images(name)
        for name in ("val_dataloader", "test_dataloader", "predict_dataloader")
        if getattr(own_class, name) is not getattr(pl.LightningDataModule, name)
    }
    return type(own_class.__name__, bases, {"wrapped_class": own_class, **methods})


def _of_other_images(name: str) -> Callable[..., Any]:
    """Leave label layers out of a training loader that a datamodule uses for other images too."""

    def loader(self: WrappedDataModule, *args: Any, **options: Any) -> Any:
        before, self.has_own_masks = self.has_own_masks, True  # one may call another
        try:
            return getattr(super(WrappedDataModule, self), name)(*args, **options)
        finally:
            self.has_own_masks = before

    return loader


def _unpickle(own_class: type, state: dict[str, Any]) -> WrappedDataModule:
    """Create the class again, because pickle cannot import it by name."""
    wrapped_class = _wrapped_class(own_class)
    data: WrappedDataModule = wrapped_class.__new__(wrapped_class)
    data.__dict__.update({"sizes": [], "is_set_up_anew": False, "has_own_masks": False, **state})
    return data
