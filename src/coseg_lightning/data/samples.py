"""Samples for the networks: resized, augmented and normalised tensors."""

import copy
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

# Without this setting, importing albumentations asks a server for updates.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler
from typing_extensions import override

from coseg_lightning.data.annotators import SeveralMasks, annotators_of, several_of
from coseg_lightning.data.image_cache import ImageCache
from coseg_lightning.data.preparation import Statistics, normalised, preprocess
from coseg_lightning.data.subsets import SomeImages
from coseg_lightning.data.tiles import Tiles
from coseg_lightning.errors import InputError
from coseg_lightning.files.canvas import Canvas, shrunk_mask
from coseg_lightning.files.images import smallest_type
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.functional.equations import IGNORE_INDEX
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import UpdatedImages
from coseg_lightning.seeding import derive_rng, derive_seed

Augmentation = Callable[..., Mapping[str, Any]]


def default_augmentation() -> Augmentation:
    """Build an augmentation with mild changes of pose and exposure, which suits most images."""
    with warnings.catch_warnings():
        # albumentations only warns about arguments that it ignores.
        warnings.simplefilter("error")
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
    """Samples for training or evaluation, each a dict with `image`, `mask` and `id`.

    The index is a number, or the pair (epoch, number) of `EpochSampler`. Augmentation depends only
    on (seed, epoch, id), not on workers and ranks. Where an ordinary sampler gives no epoch, one is
    drawn from torch's random numbers each time.

    Args:
        dataset: Images and masks at their own resolution.
        image_size: S, the side of the square network input, or its height and width.
        keep_shape: Whether images keep their aspect ratio, see `Canvas`; else they are stretched.
        in_channels: C, channels of the network input. 1 makes colour images grey, 3 repeats grey
            ones.
        augmentation: `callable(image=, mask=) -> dict` on `(S, S, C)` float32 in [0, 1] and
            `(S, S)` uint8 or uint16. It returns arrays alike, which are normalised after it. It is
            reseeded through its `set_random_seed` if it has one.
        seed: Seed of the augmentation.
        replaced: The samples whose masks were replaced by noisy ones, if known. Each sample then
            has a key `replaced`, and the purity of the selected samples can be logged.
        truth: The dataset with the original masks, if known.
        cache: The dataset's preprocessed images, if they are cached.
        kinds: The kind of each image by its id, if known; see `CorruptionRanking`.
        normalization: Mean and standard deviation of each channel; by default each image's own.
        tiles: The tiles, if the samples are tiles of large images. With an augmentation, windows
            are moved at random, but keep their core.
        annotators: Who drew the masks, by id; by default those that the dataset knows. If any is
            known, each sample has a key `annotator`, which is empty if its annotator is unknown.
        several: The samples with several masks; by default those of the dataset. If networks learn
            from vote shares (`data.label=soft`), each sample has a key `soft_mask`. The
            augmentation then gets a mask `(S, S, 1 + P)`: the label, then each annotator's mask.

    Shape:
        `image` is `(C, S, S)` float32, `mask` `(S, S)` int64, `soft_mask` `(K, S, S)` float32.
    """

    def __init__(
        self,
        dataset: MaskedImages,
        *,
        image_size: int | Sequence[int] = 256,
        keep_shape: bool = True,
        in_channels: int = 3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        replaced: Collection[str] | None = None,
        truth: MaskedImages | None = None,
        cache: ImageCache | None = None,
        kinds: Mapping[str, str] | None = None,
        normalization: Statistics | None = None,
        tiles: Tiles | None = None,
        annotators: Mapping[str, str] | None = None,
        several: SeveralMasks | None = None,
    ) -> None:
        self.dataset = dataset
        self.annotators = annotators_of(dataset) if annotators is None else dict(annotators)
        self.several = several_of(dataset) if several is None else several
        self.tiles = tiles
        self.cache = cache
        self.canvas = Canvas.of(image_size, keeps_shape=keep_shape)
        self.in_channels = in_channels
        self.augmentation = augmentation
        self.seed = seed
        self.replaced = None if replaced is None else frozenset(replaced)
        self.truth = truth
        self.kinds = kinds
        self.normalization = normalization

    def __len__(self) -> int:
        return len(self.dataset.ids)

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the samples."""
        return self.dataset.ids

    def plain(self) -> "SampleDataset":
        """Return the same samples without augmentation, for ranking and correction."""
        return self._copy(self.dataset, augmentation=None, truth=self.truth)

    def updated(self, layer: LabelStore) -> "SampleDataset":
        """Return the same samples with the masks of a label layer."""
        dataset = UpdatedImages(self.dataset, layer)
        return self._copy(dataset, augmentation=self.augmentation, truth=self.truth)

    def without(self, ids: Collection[str]) -> "SampleDataset":
        """Return the dataset without some samples."""
        dataset = SomeImages(self.dataset, ids)
        truth = None if self.truth is None else SomeImages(self.truth, ids)
        return self._copy(dataset, augmentation=self.augmentation, truth=truth)

    def _copy(
        self,
        dataset: MaskedImages,
        *,
        augmentation: Augmentation | None,
        truth: MaskedImages | None,
    ) -> "SampleDataset":
        copied = copy.copy(self)  # of a subclass too
        vars(copied).update(dataset=dataset, augmentation=augmentation, truth=truth)
        return copied

    def mask(self, index: int) -> NDArray[Any]:
        """Return one sample's mask at its own resolution."""
        return self.dataset.mask(index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (self._drawn_epoch(), key)
        sample_id = self.dataset.ids[index]
        shift = self._shift(epoch, sample_id)
        image, mask = self._resized_image(index, shift), self._resized_mask(index, shift)
        soft_classes = None if self.several is None else self.several.soft_classes
        if soft_classes is not None:
            mask = np.stack([mask, *self._resized_votes(index)], axis=-1)
        if self.augmentation is not None:
            if hasattr(self.augmentation, "set_random_seed"):
                # Otherwise all workers draw the same random numbers, and repeat them every epoch.
                self.augmentation.set_random_seed(derive_seed(self.seed, epoch, sample_id) % 2**32)
            augmented = self.augmentation(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
            self._check_augmented(sample_id, image, mask)
        votes = mask[..., 1:] if soft_classes is not None else None
        mask = mask if votes is None else mask[..., 0]
        sample: dict[str, Any] = {
            "image": network_input(image, self._statistics(sample_id)),
            "mask": torch.from_numpy(np.ascontiguousarray(mask, np.int64)),
            "id": sample_id,
        }
        if votes is not None:
            assert soft_classes is not None
            sample["soft_mask"] = shares_of_votes(votes, soft_classes)
        if self.annotators:
            sample["annotator"] = self.annotators.get(sample_id, "")
        if self.replaced is not None:
            sample["replaced"] = sample_id in self.replaced
        return sample

    def _check_augmented(self, sample_id: str, image: Any, mask: Any) -> None:
        """Raise an `InputError` for a result that normalisation would spoil, or cannot take."""
        mask = np.asarray(mask)
        if not isinstance(image, np.ndarray):
            problem = f"a {type(image).__name__}"
        elif image.shape != (*mask.shape[:2], self.in_channels):
            problem = f"an image of {image.shape} and a mask of {mask.shape}"
        elif mask.dtype.kind == "f" and not (mask == np.rint(mask)).all():
            problem = "a mask with fractions"
        elif not _is_normalisable(image, self._statistics(sample_id)):
            problem = f"values from {image.min():.3g} to {image.max():.3g}"
        else:
            return
        raise InputError(
            f"The augmentation made {problem} of {sample_id}, but it must return arrays, (H, W, "
            f"{self.in_channels}) in [0, 1] and (H, W) class ids; images are normalised after it, "
            "so leave out Normalize, ToTensorV2 and the like."
        )

    def _drawn_epoch(self) -> int:
        """Draw an epoch for augmentation, which would be the same in every epoch otherwise."""
        return 0 if self.augmentation is None else int(torch.randint(2**31, ()))

    def _shift(self, epoch: int, sample_id: str) -> tuple[int, int]:
        """Draw how far a tile's window is moved in an epoch of training."""
        if self.tiles is None or self.augmentation is None:
            return 0, 0
        rng = derive_rng(self.seed, epoch, sample_id, "shift")
        tile = self.tiles.tiles[sample_id]
        down, right = (int(rng.integers(*s.shifts(), endpoint=True)) for s in (tile[1], tile[2]))
        return down, right

    def _statistics(self, sample_id: str) -> Statistics | None:
        if self.tiles is None or self.normalization is not None:
            return self.normalization
        return self.tiles.statistics(sample_id, self.in_channels)

    def _resized_image(self, index: int, shift: tuple[int, int]) -> NDArray[Any]:
        sample_id = self.dataset.ids[index]
        if self.tiles is not None:
            image = self.tiles.image(sample_id, shift)
            scale = self.tiles.scale(sample_id, self.in_channels)
            return preprocess(image, self.canvas, self.in_channels, scale)
        if self.cache is not None:
            return self.cache.image(sample_id)
        return preprocess(self.dataset.image(index), self.canvas, self.in_channels)

    def _resized_mask(self, index: int, shift: tuple[int, int]) -> NDArray[Any]:
        mask = shifted(smallest_type(self.dataset.mask(index)), shift)
        return shrunk_mask(mask, self.canvas, IGNORE_INDEX)

    def _resized_votes(self, index: int) -> list[NDArray[Any]]:
        """Return each annotator's mask of a sample. Corrected pixels replace those of all masks."""
        sample_id, label = self.dataset.ids[index], self.dataset.mask(index)
        assert self.several is not None
        if sample_id not in self.several:
            return [shrunk_mask(smallest_type(label), self.canvas, IGNORE_INDEX)]
        is_corrected = label != self.several.fused(sample_id)
        votes = [self.several.mask(sample_id, name) for name in self.several.names(sample_id)]
        votes = [np.where(is_corrected, label, vote) for vote in votes]
        return [shrunk_mask(smallest_type(vote), self.canvas, IGNORE_INDEX) for vote in votes]


def _is_normalisable(image: NDArray[Any], statistics: Statistics | None) -> bool:
    """Whether an augmented image will look like others after it is normalised.

    An image's own mean and deviation undo any scale, but not an offset for each channel.
    """
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        return False
    if statistics is not None:
        return low >= -1 and high <= 2  # some brighten images without clipping
    channels = image.reshape(-1, image.shape[2])
    return low >= -0.5 or bool(channels.mean(axis=0).std() <= channels.std(axis=0).mean())


def shares_of_votes(votes: NDArray[Any], classes: int) -> Tensor:
    """Compute each class's share of the votes of the annotators who labelled the pixel.

    Args:
        votes: `(H, W, P)` class ids, 255 for unlabelled pixels.
        classes: K.

    Returns:
        `(K, H, W)` float32. It is zero where nobody labelled the pixel.
    """
    count = np.stack([(votes == k).sum(axis=2, dtype=np.float32) for k in range(classes)])
    return torch.from_numpy(count / count.sum(axis=0).clip(1))


def shifted(mask: NDArray[Any], shift: tuple[int, int]) -> NDArray[Any]:
    """Move a window over a mask. Pixels that enter the window are unlabelled.

    Args:
        mask: `(H, W)`.
        shift: Number of rows and columns by which the window is moved.
    """
    if shift == (0, 0):
        return mask
    moved = np.full_like(mask, IGNORE_INDEX)
    into = tuple(slice(max(0, -s), min(n, n - s)) for s, n in zip(shift, mask.shape, strict=True))
    part = tuple(slice(max(0, s), min(n, n + s)) for s, n in zip(shift, mask.shape, strict=True))
    moved[into] = mask[part]
    return moved


class EpochSampler(DistributedSampler[Any]):
    """Shuffles by (seed, epoch), and gives the dataset both the epoch and the index.

    It is a `DistributedSampler`, so Lightning does not replace it and always sets its epoch. A
    single process draws the same order on every machine and after every resume.

    Args:
        dataset: The samples.
        has_content: Whether each sample has more than background. If fewer than half do, an epoch
            contains those and the same number of others, which are drawn again for every epoch.
        first_epoch: The number of the first epoch.
        options: See `DistributedSampler`.
    """

    def __init__(
        self,
        dataset: Any,
        has_content: NDArray[np.bool_] | None = None,
        *,
        first_epoch: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(dataset, **options)
        self.epoch = self.first_epoch = first_epoch
        self._full = self._empty = torch.empty(0, dtype=torch.long)
        if has_content is not None and 0 < 2 * has_content.sum() < len(has_content):
            found = torch.from_numpy(has_content)
            self._full, self._empty = found.nonzero().flatten(), (~found).nonzero().flatten()
            self.num_samples = -(-2 * len(self._full) // self.num_replicas)
            self.total_size = self.num_samples * self.num_replicas

    @override
    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from the first one."""
        super().set_epoch(self.first_epoch + epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = self._balanced() if len(self._full) else super().__iter__()
        return iter([(self.epoch, index) for index in indices])

    def _balanced(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randperm(len(self._empty), generator=generator)[: len(self._full)]
        every = torch.cat([self._full, self._empty[drawn]])
        every = every[torch.randperm(len(every), generator=generator)]
        repeated = torch.cat([every, every[: self.total_size - len(every)]])
        own: list[int] = repeated[self.rank :: self.num_replicas].tolist()
        return own


def network_input(image: NDArray[Any], normalization: Statistics | None) -> Tensor:
    """Convert a `(H, W, C)` image in [0, 1] to a normalised `(C, H, W)` network input."""
    image = normalised(image, normalization).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(image))


def label_dice(dataset: Any) -> Any:
    """Compute the Dice between each mask and its original.

    Args:
        dataset: A dataset of samples.

    Returns:
        `(N,)` Dice, or None if the original masks are not known.
    """
    truth = dataset.truth if isinstance(dataset, SampleDataset) else None
    if truth is None:
        return None
    return np.array([mask_dice(dataset.mask(i), truth.mask(i)) for i in range(len(dataset))])
