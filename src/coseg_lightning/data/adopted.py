"""Somebody's own datamodule, with label layers over its training masks."""

import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.labels import updated


def adopted(data: pl.LightningDataModule) -> "AdoptedDataModule":
    """A copy of a datamodule over whose training masks label layers can be laid.

    Everything else, such as its other loaders, its transfer to devices and its own attributes,
    stays as it is. The one given is not changed.
    """
    copied = copy.copy(data)
    kind = type(data)
    copied.__class__ = type(kind.__name__, (AdoptedDataModule, kind), {})
    assert isinstance(copied, AdoptedDataModule)
    copied.layers = []
    return copied


class AdoptedDataModule(pl.LightningDataModule):
    """What `adopted` puts before a datamodule's own class."""

    layers: list[Path]

    def lay(self, layer: str | Path) -> None:
        """Put one more label layer over the training masks, from the next fit on."""
        self.layers.append(Path(layer))

    @property
    def has_test(self) -> bool:
        """Whether there are test samples."""
        return is_overridden("test_dataloader", self, pl.LightningDataModule)

    @override
    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        if not isinstance(loader, DataLoader):
            raise InputError(
                f"train_dataloader of {type(self).__name__} gave a {type(loader).__name__}; to "
                "rank and correct its masks it must give one torch DataLoader."
            )
        if not self.layers:
            return loader
        dataset = loader.dataset
        for layer in self.layers:
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
        options |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        if isinstance(loader.sampler, RandomSampler | SequentialSampler):
            options["shuffle"] = isinstance(loader.sampler, RandomSampler)
        else:
            options["sampler"] = loader.sampler
    elif loader.batch_sampler is not None:
        options["batch_sampler"] = loader.batch_sampler
    else:  # the dataset gives whole batches
        options |= {"batch_size": None, "sampler": loader.sampler}
    return DataLoader(dataset, **options)
