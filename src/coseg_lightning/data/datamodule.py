"""CoSegDataModule: the datasets of a run, with noise for experiments and corrected labels."""

import copy
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader
from typing_extensions import override

from coseg_lightning.data.annotators import ANNOTATORS, SeveralMasks, annotators_of, several_of
from coseg_lightning.data.image_cache import ImageCache
from coseg_lightning.data.preparation import Statistics
from coseg_lightning.data.samples import (
    Augmentation,
    EpochSampler,
    SampleDataset,
    default_augmentation,
)
from coseg_lightning.data.subsets import SomeImages, identity_of, kinds_of_samples
from coseg_lightning.data.tiles import Tiles, is_content
from coseg_lightning.errors import InputError, renamed
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.naming import ids_of
from coseg_lightning.labels.ids import check_ids
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise.models import NoiseModel, annotators
from coseg_lightning.noise.noisy_layer import (
    choose_clean,
    choose_noisy,
    drawn_ids,
    made_by,
    write_noisy_layer,
)


class CoSegDataModule(pl.LightningDataModule):
    """Training, validation and test samples for every stage of Co-Seg.

    Only training masks are ever noisy or corrected. Validation and test masks are used unchanged.

    Args:
        train: Images and masks to train on.
        val: Images and masks for monitoring only.
        test: Images and masks for the final results.
        image_size: Side of the square network input, or its height and width.
        keep_shape: Whether images keep their aspect ratio. If so, the rest of the input is filled
            with their reflection and is unlabelled. Otherwise they are stretched. For square images
            and a square input, both are the same.
        in_channels: Channels of the network input.
        batch_size: Batch size of every loader, per process.
        num_workers: Number of workers of every loader, per process.
        augmentation: `default`, None, or any `callable(image=, mask=) -> dict`.
        seed: Seed of noise, sample order and augmentation.
        noise: A noise model that replaces masks of training samples, for experiments.
        noise_level: Share of the training samples whose masks it replaces.
        noise_folder: A new folder. The noisy masks are stored there as a label layer.
        cache: A folder for the preprocessed images, so that they are decoded only once.
        clean_ids: Training samples whose masks are known to be right. Some methods learn from them,
            and noise does not change them. In experiments it may be a number of samples, which the
            seed draws.
        kinds: The kind of each image by its id, such as its scanner or site. Masks are compared
            within their kind, see `CorruptionRanking`.
        annotators: The known annotators of the training masks, by id. By default they are those
            that `train` knows.
        normalization: Mean and standard deviation of each channel, for normalising images in
            [0, 1]. For pretrained encoders, give those of the pretraining, such as
            `networks.pretraining_statistics("tu-resnet18", 3)`. By default each image is normalised
            by its own mean and standard deviation.
        pixel_size: The side of a pixel of the stored masks, for distances in `unit`. By default
            distances are in pixels.
        unit: The unit of `pixel_size`.

    Attributes:
        clean_ids: The ids of the clean samples, also if the argument was a number.
        label_layers: The label layers over the training masks. The last one is on top.
        excluded: The training samples that are not trained on.
        tiles: The tiles, if the samples are tiles of large images, else None.

    Raises:
        InputError: If an argument is out of range, or does not fit the training samples.
    """

    def __init__(
        self,
        train: MaskedImages,
        val: MaskedImages | None = None,
        test: MaskedImages | None = None,
        *,
        image_size: int | Sequence[int] = 256,
        keep_shape: bool = True,
        in_channels: int = 3,
        batch_size: int = 8,
        num_workers: int = 0,
        augmentation: Augmentation | Literal["default"] | None = "default",
        seed: int = 0,
        noise: NoiseModel | None = None,
        noise_level: float = 0.0,
        noise_folder: str | Path | None = None,
        cache: str | Path | None = None,
        clean_ids: Collection[str] | int = (),
        kinds: Mapping[str, str] | None = None,
        annotators: Mapping[str, str] | None = None,
        normalization: Statistics | None = None,
        pixel_size: float | None = None,
        unit: str = "mm",
    ) -> None:
        super().__init__()
        _check_noise_has_a_folder(noise, noise_folder)
        canvas = Canvas.of(image_size, keeps_shape=keep_shape)
        counts = {"in_channels": in_channels, "batch_size": batch_size, "num_workers": num_workers}
        _check_whole_numbers({**counts, "seed": seed})
        _check_sizes(canvas, batch_size)
        _check_kinds_of_values(keep_shape, augmentation, pixel_size)
        kinds, annotators = _by_id("kinds", kinds), _by_id("annotators", annotators)
        if in_channels < 1 or num_workers < 0:
            raise InputError(
                f"in_channels={in_channels} must be at least 1, and num_workers={num_workers} "
                "must be at least 0."
            )
        _check_are_datasets(train, *(part for part in (val, test) if part is not None))
        _check_training_ids(train.ids)
        self.tiles: Tiles | None = getattr(train, "tiles", None)
        if self.tiles is not None:
            _check_tiles(self.tiles, canvas, noise, cache)
            if not isinstance(clean_ids, int | Integral):
                clean_ids = self.tiles.expanded(clean_ids)
        kinds = kinds_of_samples(train, kinds)
        self.image_size = image_size
        self.keep_shape = keep_shape
        self.in_channels = in_channels
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augmentation = default_augmentation() if augmentation == "default" else augmentation
        self.seed = seed
        self.noise = noise
        self.noise_level = noise_level
        self.noise_folder = None if noise_folder is None else Path(noise_folder)
        if isinstance(clean_ids, int | Integral):
            clean_ids = _draw_clean_ids(train.ids, int(clean_ids), noise, seed)
        self.clean_ids = frozenset(ids_of(clean_ids, train.ids).values())
        _check_are_training_ids(self.clean_ids, train.ids)
        self._drawn_by = annotators
        self.kinds = kinds
        _check_normalization(normalization, in_channels)
        self.normalization = normalization
        self.pixel_size = pixel_size
        self.unit = "pixels" if pixel_size is None else unit
        if noise is not None:  # raises an error if too few samples are left for the noise
            choose_noisy(train.ids, noise_level, seed, self.clean_ids)
        self.label_layers: list[Path] = []
        self.excluded: frozenset[str] = frozenset()
        self._first_epoch = 0
        self._datasets = {"train": train, "val": val, "test": test}
        self._caches: dict[str, ImageCache] = {}
        for part, dataset in self._datasets.items():
            if cache is not None and dataset is not None:
                self._caches[part] = ImageCache(cache, dataset, canvas, in_channels)

    lay = renamed("lay", "add_label_layer")
    leave_out = renamed("leave_out", "exclude")
    left_out = renamed("left_out", "excluded")

    def add_label_layer(self, layer: str | Path) -> None:
        """Add a label layer on top of the training masks, from the next fit on."""
        self.label_layers.append(Path(layer))

    def exclude(self, ids: Collection[str]) -> None:
        """Exclude samples from training, from the next fit on. Earlier exclusions are replaced.

        Args:
            ids: The samples.

        Raises:
            InputError: If no sample would be left.
        """
        self.excluded = frozenset(ids)
        if self.excluded.issuperset(self._train.ids):
            raise InputError(
                "All training samples would be left out; give a lower noise level or, in a review, "
                "draw some of the masks, or decide ok or take for them."
            )

    def batches_left(self, processes: int = 1) -> float:
        """Return the share of the training batches that is left without the excluded samples."""
        every = len(self._train.ids)
        left = every - len(self.excluded.intersection(self._train.ids))
        size = self.batch_size * processes
        return max(1, left // size) / max(1, every // size)

    def identity(self) -> dict[str, str]:
        """Identify the data, so that changes are noticed.

        Returns:
            The number of samples and a digest, by part; see `identity_of`.
        """
        parts = self._datasets.items()
        return {part: identity_of(dataset) for part, dataset in parts if dataset is not None}

    def annotators_identity(self) -> dict[str, str]:
        """Identify who drew the single training masks, as in `identity`; empty if unknown."""
        if not self.annotators:
            return {}
        content = json.dumps(sorted(self.annotators.items())).encode(errors="surrogatepass")
        digest = hashlib.blake2b(content, digest_size=6).hexdigest()
        return {ANNOTATORS: f"{len(self.annotators)} masks {digest}"}

    @property
    def file_digests(self) -> dict[str, tuple[str, str]]:
        """Digests of each training image and of its mask file, by id, if the files are known."""
        return dict(getattr(self._datasets["train"], "file_digests", {}))

    @property
    def annotators(self) -> dict[str, str]:
        """The annotators of training samples with one mask, by id, where they are known."""
        return annotators_of(self._train) if self._drawn_by is None else dict(self._drawn_by)

    @property
    def several(self) -> SeveralMasks | None:
        """The training samples with masks by several annotators, or None if there are none."""
        return several_of(self._train)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of samples in each part: train, and val and test if they exist."""
        parts = self._datasets.items()
        return {part: len(dataset.ids) for part, dataset in parts if dataset is not None}

    @property
    def drawn_in_epoch(self) -> int:
        """The number of training samples that an epoch draws."""
        ids = [i for i in self._train.ids if i not in self.excluded]
        return len(EpochSampler(ids, self._has_content(ids), num_replicas=1, rank=0))

    def _has_content(self, ids: Sequence[str]) -> NDArray[np.bool_] | None:
        """Whether each tile has more than background in its current label."""
        if self.tiles is None:
            return None
        layers = list(self.label_layers)
        if self.noise_folder is not None and LabelStore.is_finished(self.noise_folder):
            layers.insert(0, self.noise_folder)
        found = self.tiles.has_content(ids)
        for layer in map(LabelStore, layers):  # the last one is on top
            for index, tile_id in enumerate(ids):
                if tile_id in layer:
                    found[index] = is_content(layer.read(tile_id))
        return found

    def shortened(self, batches: int, folder: Path) -> "CoSegDataModule":
        """Return the same data with few training samples, without label layers and cache.

        Args:
            batches: The number of training batches.
            folder: The folder for the noisy masks, if there are any.
        """
        count = batches * self.batch_size
        clean = [sample_id for sample_id in self._train.ids if sample_id in self.clean_ids]
        clean = clean[: -(-count // 4)]
        noisy = [sample_id for sample_id in self._train.ids if sample_id not in self.clean_ids]
        excluded = {*self._train.ids} - {*clean, *noisy[: count - len(clean)]}
        other = copy.copy(self)
        other._datasets = {**self._datasets, "train": SomeImages(self._train, excluded)}
        other._caches, other.label_layers, other.excluded = {}, [], frozenset()
        other.clean_ids = frozenset(clean)
        if self.noise_folder is not None:
            other.noise_folder = folder / "noise"
        return other

    def with_original_masks(self) -> "CoSegDataModule":
        """Return the same data without noise and label layers."""
        other = copy.copy(self)
        other.noise, other.noise_folder, other.label_layers = None, None, []
        return other

    @override
    def prepare_data(self) -> None:
        """Write the noisy masks and the cached images, in one process only."""
        if self.tiles is not None:
            self.tiles.build()
        for cache in self._caches.values():
            cache.build()
        if self.noise is None or self.noise_folder is None:
            return
        if LabelStore.is_finished(self.noise_folder):
            self._check_noisy_ids(self.noise_folder)
            return
        write_noisy_layer(
            self._train,
            self.noise,
            self.noise_level,
            self.seed,
            self.noise_folder,
            self.clean_ids,
        )

    def _check_noisy_ids(self, folder: Path) -> None:
        assert self.noise is not None
        chosen = drawn_ids(self.noise, self._train.ids, self.noise_level, self.seed, self.clean_ids)
        layer, digest = LabelStore(folder), made_by(self.noise, self.noise_level, self.seed)
        # Layers of earlier versions do not say how they were made.
        others = {layer.facts(i).get("made_by", digest) for i in layer.ids} - {digest}
        if others or set(layer.ids) != set(chosen):
            raise InputError(
                f"{folder} holds the noisy masks of other settings; give a new noise_folder."
            )

    def given_samples(self) -> SampleDataset:
        """Return the training samples with the run's input labels: noisy, but not corrected."""
        if self.noise_folder is None:
            return self._sample_dataset("train", self.augmentation)
        noisy = LabelStore(self.noise_folder)
        # Some noise models leave a mask unchanged, for example an empty one.
        replaced = frozenset(
            i for i in noisy.ids if noisy.facts(i)["dice"] < 1 and noisy.facts(i).get("bad", True)
        )
        drawn_by = {i: noisy.facts(i).get("annotator") for i in noisy.ids}
        samples = self._sample_dataset(
            "train",
            self.augmentation,
            replaced=replaced,
            truth=self._train,
            annotators={i: str(name) for i, name in drawn_by.items() if name} or None,
        )
        return samples.updated(noisy)

    def relabelled_samples(self) -> SampleDataset:
        """Return the training samples with corrected labels, including excluded samples."""
        samples = self.given_samples()
        for layer in self.label_layers:
            samples = samples.updated(LabelStore(layer))
        return samples

    def samples(self, part: Literal["train", "val", "test"]) -> SampleDataset | None:
        """Return the samples of one part, or None if there are none."""
        if self._datasets[part] is None:
            return None
        if part != "train":
            return self._sample_dataset(part, None)
        samples = self.relabelled_samples()
        return samples.without(self.excluded) if self.excluded else samples

    def count_epochs_from(self, first_epoch: int) -> None:
        """Set the number of the next fit's first epoch.

        Order and augmentation depend on the number of an epoch. A network that goes on from the
        weights of another one thus sees other images than that one.
        """
        self._first_epoch = first_epoch

    @property
    def has_test(self) -> bool:
        """Whether there are test samples."""
        return self._datasets["test"] is not None

    @property
    def trusted_test(self) -> bool | None:
        """Whether the test masks can be trusted; None if this is unknown.

        They can in experiments with noise. Otherwise the dataset's attribute `trusted` decides.
        """
        return self._is_trusted("test")

    @property
    def trusted_val(self) -> bool | None:
        """Whether the validation masks can be trusted; None if this is unknown."""
        return self._is_trusted("val")

    def _is_trusted(self, part: str) -> bool | None:
        return True if self.noise is not None else getattr(self._datasets[part], "trusted", None)

    @property
    def _train(self) -> MaskedImages:
        train = self._datasets["train"]
        assert train is not None
        return train

    def _sample_dataset(
        self,
        part: str,
        augmentation: Augmentation | None,
        *,
        replaced: Collection[str] | None = None,
        truth: MaskedImages | None = None,
        annotators: Mapping[str, str] | None = None,
    ) -> SampleDataset:
        dataset = self._datasets[part]
        assert dataset is not None
        return SampleDataset(
            dataset,
            image_size=self.image_size,
            keep_shape=self.keep_shape,
            in_channels=self.in_channels,
            augmentation=augmentation,
            seed=self.seed,
            replaced=replaced,
            truth=truth,
            cache=self._caches.get(part),
            kinds=self.kinds,
            normalization=self.normalization,
            annotators=self._drawn_by if annotators is None and part == "train" else annotators,
            tiles=self.tiles,
        )

    @override
    def train_dataloader(self) -> Any:
        """Load shuffled and augmented samples. An incomplete last of several batches is dropped."""
        dataset = self.samples("train")
        assert dataset is not None
        if self.several is not None:
            self.several.fuse()  # once, and not in each worker of each epoch
        sampler = EpochSampler(
            dataset,
            self._has_content(dataset.ids),
            num_replicas=self._world_size,
            rank=self._rank,
            seed=self.seed,
            first_epoch=self._first_epoch,
        )
        if self.trainer is not None:
            # In a resumed fit, workers start to load before Lightning sets the sampler's epoch.
            sampler.set_epoch(self.trainer.current_epoch)
        # A last batch of one sample would break BatchNorm where the features are 1 x 1.
        return self._loader(dataset, sampler, drop_last=len(sampler) > self.batch_size)

    @override
    def val_dataloader(self) -> Any:
        """Load validation samples. DDP repeats some, so that all ranks have the same number."""
        dataset = self.samples("val")
        return [] if dataset is None else self._loader(dataset, None)

    @override
    def test_dataloader(self) -> Any:
        """Load test samples, each exactly once unless there are fewer samples than processes."""
        dataset = self.samples("test")
        if dataset is None:
            return []
        if self._world_size == 1 or len(dataset) < self._world_size:
            return self._loader(dataset, None)
        sampler = UnrepeatedDistributedSampler(
            dataset, num_replicas=self._world_size, rank=self._rank, shuffle=False
        )
        return self._loader(dataset, sampler)

    def _loader(self, dataset: SampleDataset, sampler: Any, drop_last: bool = False) -> Any:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        )

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank


def _check_noise_has_a_folder(noise: NoiseModel | None, noise_folder: str | Path | None) -> None:
    if noise is not None and noise_folder is None:
        raise InputError("noise needs a noise_folder, where the noisy masks are kept.")


def _check_whole_numbers(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(f"{name}={value!r} must be a whole number.")


def _check_kinds_of_values(keep_shape: Any, augmentation: Any, pixel_size: Any) -> None:
    """Report what would be found at the first sample, or after training, or never."""
    if isinstance(keep_shape, str):
        raise InputError(f"keep_shape={keep_shape!r} must be true or false.")
    if not (augmentation in ("default", None) or callable(augmentation)):
        raise InputError(
            f"augmentation={augmentation!r} must be 'default', None or callable(image=, mask=)."
        )
    is_size = isinstance(pixel_size, Real) and 0 < float(pixel_size) < math.inf
    if pixel_size is not None and not is_size:
        raise InputError(f"pixel_size={pixel_size!r} must be a number above 0.")


def _by_id(name: str, given: Any) -> dict[str, str] | None:
    """Return what is given for each id, such as in a dict or a pandas Series."""
    try:
        return None if given is None else dict(given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} is a {type(given).__name__}; give a dict with one of each image's id."
        ) from error


def _check_are_datasets(*parts: Any) -> None:
    for part in parts:
        if not all(hasattr(part, name) for name in ("ids", "image", "mask")):
            raise InputError(
                f"A {type(part).__name__} has no ids, image(index) and mask(index), as "
                "MaskedImages do; of folder_splits and phantom_splits give the parts: "
                "splits.train, splits.val, splits.test."
            )


def _check_sizes(canvas: Canvas, batch_size: int) -> None:
    if min(canvas[:2]) < 1 or batch_size < 1:
        size = canvas.height if canvas.height == canvas.width else list(canvas[:2])
        raise InputError(f"image_size={size} and batch_size={batch_size} must be at least 1.")


def _check_tiles(
    tiles: Tiles, canvas: Canvas, noise: NoiseModel | None, cache: str | Path | None
) -> None:
    if canvas[:2] != (tiles.tile, tiles.tile):
        raise InputError(
            f"data.image_size={canvas.height} must equal data.tile={tiles.tile}, since tiles are "
            "not resized; leave data.image_size out."
        )
    if noise is not None and annotators(noise):
        raise InputError(
            "noise=annotator replaces masks of whole images, but data.tile cuts images into tiles; "
            "put the other masks into the folder of masks."
        )
    if cache is not None:
        raise InputError(
            "data.cache keeps whole images at the networks' size, but data.tile reads tiles of "
            "them; leave data.cache out."
        )


def _check_normalization(normalization: Statistics | None, in_channels: int) -> None:
    if normalization is None:
        return
    try:
        mean, std = (np.array(values, np.float32) for values in normalization)
        fits = mean.shape == std.shape == (in_channels,) and bool((std > 0).all())
    except (TypeError, ValueError):  # no pair of numbers
        fits = False
    if not fits:
        raise InputError(
            f"normalization={normalization} must be a mean and a positive standard deviation for "
            f"each of in_channels={in_channels}: ((0.5,), (0.25,)) for grey images."
        )


def _check_training_ids(ids: Sequence[str]) -> None:
    """Report unusable ids at the start, not when the first mask is written."""
    if not len(ids):
        raise InputError("The training set is empty; give at least one image with a mask.")
    check_ids(ids)


def _draw_clean_ids(
    ids: Sequence[str], count: int, noise: NoiseModel | None, seed: int
) -> list[str]:
    if noise is None or not 0 < count <= len(ids):
        raise InputError(
            f"clean_ids={count} works only with noise, and for 1 to {len(ids)} training samples; "
            "give the ids of masks that you know to be right."
        )
    return choose_clean(ids, count, seed)


def _check_are_training_ids(clean_ids: Collection[str], ids: Sequence[str]) -> None:
    unknown = sorted(set(clean_ids) - set(ids))
    if unknown:
        raise InputError(
            f"clean_ids names {unknown[0]!r}, which is no training sample; give ids such as "
            f"{ids[0]!r}."
        )
