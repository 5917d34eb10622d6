"""Samples as networks see them: tensors, resized, augmented, standardised."""

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network

import albumentations as A
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from coseg_lightning.data.image_cache import ImageCache
from coseg_lightning.data.preparation import prepared
from coseg_lightning.errors import InputError
from coseg_lightning.image_files import smallest_type
from coseg_lightning.labels import LabelStore, MaskedImages, SomeImages, UpdatedImages
from coseg_lightning.seeding import derive_seed

Augmentation = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Batch:
    """What the modules need of a batch, whatever form it came in.

    Shape:
        images `(N, C, H, W)` float, masks `(N, H, W)` int64, ids N strings or numbers if known,
        replaced `(N,)` bool if it is known whose masks were replaced by noisy ones.
    """

    images: Tensor
    masks: Tensor
    ids: Sequence[Any] | None = None
    replaced: Tensor | None = None


def read_batch(batch: Any) -> Batch:
    """Understand `(image, mask)`, `(image, mask, id)`, or a dict with `image`, `mask` or `label`.

    Raises:
        InputError: If the batch is none of these.
    """
    if isinstance(batch, Mapping) and "image" in batch and ("mask" in batch or "label" in batch):
        masks = batch["mask"] if "mask" in batch else batch["label"]
        fields = batch["image"], masks, batch.get("id"), batch.get("replaced")
    elif isinstance(batch, Sequence) and len(batch) in (2, 3) and isinstance(batch[1], Tensor):
        rest = batch[2] if len(batch) == 3 else None
        if isinstance(rest, Mapping):  # whatever a project knows of its samples
            rest = rest.get("id")
        fields = batch[0], batch[1], rest, None
    else:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise InputError(
            f"The batch is {found}; it must be (image, mask), (image, mask, id) or a dict with "
            "image and mask (or label)."
        )
    images, masks, ids, replaced = fields
    if ids is not None and not _are_ids(ids, len(images)):
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(
            f"The batch's ids are {shape}; they must be {len(images)} strings or whole numbers, "
            "one a sample. Leave out what else there is after the masks."
        )
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.is_floating_point() and not bool((masks == masks.round()).all()):
        raise InputError(
            f"A mask holds {float(masks[masks != masks.round()][0]):.4g}, which is no class id; "
            "give whole numbers: resize masks to the nearest pixel, and do not let ToTensor divide "
            "class ids by 255."
        )
    if masks.ndim != 3 or masks.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"The batch's masks are {tuple(masks.shape)} and its images {tuple(images.shape)}; "
            "masks must be (N, H, W) or (N, 1, H, W) with the images' height and width."
        )
    return Batch(images, masks.long(), ids, replaced)


def _are_ids(ids: Any, count: int) -> bool:
    if isinstance(ids, Tensor):
        return ids.shape == (count,) and not ids.is_floating_point()
    if isinstance(ids, str) or not isinstance(ids, Sequence) or len(ids) != count:
        return False
    return all(isinstance(id, str | int) or (isinstance(id, Tensor) and not id.ndim) for id in ids)


def images_of(batch: Any) -> Tensor:
    """The images of a batch to predict, which may hold nothing else."""
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
        images: Any = batch["image"]
    else:
        images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise InputError(
            f"The batch is a {type(batch).__name__} whose first part is no (N, C, H, W) tensor; "
            "give images, a list that begins with them, or a dict with image."
        )
    return images


class ClassIds:
    """Checks the class ids of the masks of a first epoch; later ones hold the same masks.

    Args:
        classes: K, the number of the network's classes.
        ignore_index: Class id of unlabelled pixels.
    """

    def __init__(self, classes: int, ignore_index: int) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self._found = [False, False]  # a foreground pixel, an unlabelled one

    def check(self, masks: Tensor) -> None:
        """Raise an `InputError` if a mask holds an id that the network has no output for."""
        labelled = masks != self.ignore_index
        wrong = masks[labelled & ((masks < 0) | (masks >= self.classes))]
        if len(wrong):
            raise InputError(
                f"The masks hold the class id {int(wrong[0])}, but the network has {self.classes} "
                f"classes, 0 to {self.classes - 1} (and {self.ignore_index} for unlabelled "
                f"pixels); give classes={int(wrong.max()) + 1}, or divide 0/255 masks by 255."
            )
        found = bool((labelled & (masks > 0)).any()), not bool(labelled.all())
        self._found = [a or b for a, b in zip(self._found, found, strict=True)]

    def check_epoch(self, module: pl.LightningModule) -> None:
        """Raise an `InputError` if all that was not background was unlabelled, at its end.

        Masks of 0 and 255 look so where 255 means unlabelled, and teach nothing but background.
        """
        trainer = module.trainer
        if not isinstance(trainer.limit_train_batches, float) or trainer.limit_train_batches < 1:
            return  # a few batches may lack it
        found = torch.tensor(self._found, dtype=torch.float32, device=module.device)
        foreground, unlabelled = trainer.strategy.reduce(found, reduce_op="sum").tolist()
        if unlabelled and not foreground:
            raise InputError(
                f"The masks of a whole epoch hold nothing but 0 and {self.ignore_index}, which is "
                "the class id of unlabelled pixels; divide 0/255 masks by 255, or leave out "
                "samples without any label."
            )


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
            image = prepared(self.dataset.image(index), self.image_size, self.in_channels)
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
