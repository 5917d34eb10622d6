"""Samples as networks see them: tensors, resized, augmented, standardised."""

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from coseg_lightning.data.image_cache import ImageCache
from coseg_lightning.data.preparation import preprocess
from coseg_lightning.data.subsets import SomeImages
from coseg_lightning.files.images import smallest_type
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import UpdatedImages
from coseg_lightning.seeding import derive_seed

Augmentation = Callable[..., Mapping[str, Any]]


def default_augmentation() -> Augmentation:
    """Mild pose and exposure changes that suit most images."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of arguments it ignores
        augmentation: Augmentation = A.Compose(
            [
                A.HorizontalFlip(p=0.5),
                A.Affine(
                    scale=(0.9, 1.1),
                    translate_percent=(-0.05, 0.05),
                    rotate=(-10, 10),
                    interpolation=cv2.INTER_LINEAR,
                    mask_interpolation=cv2.INTER_NEAREST,
                    border_mode=cv2.BORDER_REFLECT_101,
                    p=0.7,
                ),
                A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.5),
            ]
        )
    return augmentation


class SampleDataset(Dataset[dict[str, Any]]):
    """Samples for training or evaluation, each a dict with `image`, `mask`, `id`.

    Images become `(C, S, S)` float32 tensors of mean 0 and standard deviation 1 each, masks
    `(S, S)` int64. Index it with a number, or with the pair (epoch, number) of `EpochSampler`:
    augmentation depends on nothing but (seed, epoch, id), whatever the workers and ranks.

    Args:
        dataset: Images and masks at their own resolution.
        image_size: The side S that the networks see.
        in_channels: C: 1 makes colour images grey, 3 repeats grey ones.
        augmentation: `callable(image=, mask=) -> dict` on `(S, S, C)` float32 in [0, 1] and
            `(S, S)` uint8 or uint16; reseeded through its `set_random_seed` if it has one.
        seed: Of the augmentation.
        replaced: Ids whose masks are known to be replaced by noisy ones, if it is known. The
            samples then carry `replaced`, and the purity of picks can be logged.
        truth: The dataset with the original masks, if they are known.
        cache: Its images at the networks' size, if they are cached.
    """

    def __init__(
        self,
        dataset: MaskedImages,
        *,
        image_size: int = 256,
        in_channels: int = 3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        replaced: Collection[str] | None = None,
        truth: MaskedImages | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.dataset = dataset
        self.cache = cache
        self.image_size = image_size
        self.in_channels = in_channels
        self.augmentation = augmentation
        self.seed = seed
        self.replaced = None if replaced is None else frozenset(replaced)
        self.truth = truth

    def __len__(self) -> int:
        return len(self.dataset.ids)

    @property
    def ids(self) -> Sequence[str]:
        """The samples' names."""
        return self.dataset.ids

    def plain(self) -> "SampleDataset":
        """The same samples without augmentation, for ranking and correction."""
        return self._with(self.dataset, None)

    def updated(self, layer: LabelStore) -> "SampleDataset":
        """The same samples over a label layer's masks."""
        return self._with(UpdatedImages(self.dataset, layer), self.augmentation)

    def without(self, ids: Collection[str]) -> "SampleDataset":
        """The other samples."""
        rest = self._with(SomeImages(self.dataset, ids), self.augmentation)
        rest.truth = None if self.truth is None else SomeImages(self.truth, ids)
        return rest

    def _with(self, dataset: MaskedImages, augmentation: Augmentation | None) -> "SampleDataset":
        return SampleDataset(
            dataset,
            image_size=self.image_size,
            in_channels=self.in_channels,
            augmentation=augmentation,
            seed=self.seed,
            replaced=self.replaced,
            truth=self.truth,
            cache=self.cache,
        )

    def mask(self, index: int) -> NDArray[Any]:
        """One sample's mask at its own resolution."""
        return self.dataset.mask(index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        id = self.dataset.ids[index]
        if self.cache is None:
            image = preprocess(self.dataset.image(index), self.image_size, self.in_channels)
        else:
            image = self.cache.image(id)
        side = (self.image_size, self.image_size)
        mask = smallest_type(self.dataset.mask(index))
        mask = cv2.resize(mask, side, interpolation=cv2.INTER_NEAREST_EXACT)
        if self.augmentation is not None:
            if hasattr(self.augmentation, "set_random_seed"):
                # Its own stream is the same in every worker and starts again in every epoch.
                self.augmentation.set_random_seed(derive_seed(self.seed, epoch, id) % 2**32)
            augmented = self.augmentation(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        sample: dict[str, Any] = {
            "image": standardised(image),
            "mask": torch.from_numpy(np.ascontiguousarray(mask, np.int64)),
            "id": id,
        }
        if self.replaced is not None:
            sample["replaced"] = id in self.replaced
        return sample


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by (seed, epoch) and gives the dataset both the epoch and the index.

    A `DistributedSampler`, so that Lightning neither replaces it nor forgets to tell it the epoch,
    and so that one process draws the same order on every machine and after every resume.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, index) for index in super().__iter__()])


def standardised(image: NDArray[Any]) -> Tensor:
    """`(H, W, C)` to the `(C, H, W)` that the networks see, of mean 0 and deviation 1."""
    image = (image - image.mean()) / max(float(image.std()), 1e-6)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32))


def label_dice(dataset: Any) -> Any:
    """`(N,)` Dice of a dataset's masks to the original ones, or None if those are not known."""
    truth = dataset.truth if isinstance(dataset, SampleDataset) else None
    if truth is None:
        return None
    return np.array([mask_dice(dataset.mask(i), truth.mask(i)) for i in range(len(dataset))])
