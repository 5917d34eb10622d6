"""CoSegDataModule: the datasets of a run, with noise for experiments and with corrected labels."""

import copy
import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader
from typing_extensions import override

from coseg_lightning.data.image_cache import ImageCache
from coseg_lightning.data.samples import (
    Augmentation,
    EpochSampler,
    SampleDataset,
    default_augmentation,
)
from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import check_ids
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise.models import NoiseModel
from coseg_lightning.noise.noisy_layer import choose_clean, choose_noisy, write_noisy_layer


class CoSegDataModule(pl.LightningDataModule):
    """Training, validation and test samples for every stage of Co-Seg.

    Only training masks are ever noisy or corrected; validation and test masks are taken as given.

    Args:
        train: Images and masks to train on.
        val: For monitoring alone; nothing is selected by it.
        test: For the final figures.
        image_size: The side that the networks see.
        in_channels: Channels that the networks see.
        batch_size: Of every loader, per process.
        num_workers: Of every loader, per process.
        augmentation: `default`, none, or any `callable(image=, mask=) -> dict`.
        seed: Of noise, order and augmentation.
        noise: Replaces masks of training samples, for experiments.
        noise_level: Share of the training samples that it replaces.
        noise_folder: A new folder, where the noisy masks are kept as a label layer.
        cache: A folder to keep the images in at the networks' size, so that they are decoded once.
        clean_ids: Training samples whose masks are known to be right, for methods that learn from
            them, and which noise leaves alone; or how many of an experiment's, drawn by the seed.

    Attributes:
        clean_ids: The ids.
    """

    def __init__(
        self,
        train: MaskedImages,
        val: MaskedImages | None = None,
        test: MaskedImages | None = None,
        *,
        image_size: int = 256,
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
    ) -> None:
        super().__init__()
        if noise is not None and noise_folder is None:
            raise InputError("noise needs a noise_folder, where the noisy masks are kept.")
        if image_size < 1 or batch_size < 1:
            raise InputError(
                f"image_size={image_size} and batch_size={batch_size} must be at least 1."
            )
        if not len(train.ids):
            raise InputError("The training set is empty; give at least one image with a mask.")
        check_ids(train.ids)  # at the start, not when the first mask is written
        self.image_size = image_size
        self.in_channels = in_channels
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augmentation = default_augmentation() if augmentation == "default" else augmentation
        self.seed = seed
        self.noise = noise
        self.noise_level = noise_level
        self.noise_folder = None if noise_folder is None else Path(noise_folder)
        if isinstance(clean_ids, int):
            if noise is None or not 0 < clean_ids <= len(train.ids):
                raise InputError(
                    f"clean_ids={clean_ids} draws so many of {len(train.ids)} training samples "
                    "that noise is to leave alone; name the ids of masks that you know to be right."
                )
            clean_ids = choose_clean(train.ids, clean_ids, seed)
        unknown = sorted(set(clean_ids) - set(train.ids))
        if unknown:
            raise InputError(
                f"clean_ids names {unknown[0]!r}, which is no training sample; give ids such as "
                f"{train.ids[0]!r}."
            )
        self.clean_ids = frozenset(clean_ids)
        if noise is not None:
            choose_noisy(train.ids, noise_level, seed, self.clean_ids)  # can it be done?
        self.label_layers: list[Path] = []
        self.excluded: frozenset[str] = frozenset()
        self._datasets = {"train": train, "val": val, "test": test}
        self._caches = {
            part: None
            if cache is None or of is None
            else ImageCache(cache, of, image_size, in_channels)
            for part, of in self._datasets.items()
        }

    def add_label_layer(self, layer: str | Path) -> None:
        """Put one more label layer over the training masks, from the next fit on."""
        self.label_layers.append(Path(layer))

    def exclude(self, ids: Collection[str]) -> None:
        """Train without these samples, from the next fit on.

        Raises:
            InputError: If none would be left.
        """
        train = self._datasets["train"]
        assert train is not None
        self.excluded = frozenset(ids)
        if self.excluded.issuperset(train.ids):
            raise InputError("All training samples would be left out; give a lower noise level.")

    def identity(self) -> dict[str, str]:
        """What tells other data from this: of each part, how many samples, and a digest.

        Of the ids, and of what the files hold where the dataset knows it (`digest`).
        """
        told = {}
        for part, dataset in self._datasets.items():
            if dataset is not None:
                known = (list(dataset.ids), getattr(dataset, "digest", None))
                digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=6).hexdigest()
                told[part] = f"{len(dataset.ids)} samples {digest}"
        return told

    def with_original_masks(self) -> "CoSegDataModule":
        """The same data without noise and label layers."""
        other = copy.copy(self)
        other.noise, other.noise_folder, other.label_layers = None, None, []
        return other

    @override
    def prepare_data(self) -> None:
        """Write the noisy masks and cached images, on one process alone."""
        for cache in self._caches.values():
            if cache is not None:
                cache.build()
        if self.noise is not None and self.noise_folder is not None:
            train = self._datasets["train"]
            assert train is not None
            if LabelStore.is_finished(self.noise_folder):
                chosen = choose_noisy(train.ids, self.noise_level, self.seed, self.clean_ids)
                if set(LabelStore(self.noise_folder).ids) != set(chosen):
                    raise InputError(
                        f"{self.noise_folder} holds the noisy masks of another setting; give a new "
                        "noise_folder."
                    )
                return
            write_noisy_layer(
                train,
                self.noise,
                self.noise_level,
                self.seed,
                self.noise_folder,
                self.clean_ids,
            )

    def given_samples(self) -> SampleDataset:
        """The training samples with the labels that the run was given: noisy, not corrected."""
        train = self._datasets["train"]
        assert train is not None
        samples = self._as_samples("train", self.augmentation)
        if self.noise_folder is None:
            return samples
        noisy = LabelStore(self.noise_folder)
        # A noise may leave a mask as it was, such as an empty one.
        changed = frozenset(id for id in noisy.ids if noisy.facts(id)["dice"] < 1)
        samples.replaced, samples.truth = changed, train
        return samples.updated(noisy)

    def relabelled_samples(self) -> SampleDataset:
        """The training samples with corrected labels, also those that are left out."""
        samples = self.given_samples()
        for layer in self.label_layers:
            samples = samples.updated(LabelStore(layer))
        return samples

    def samples(self, part: Literal["train", "val", "test"]) -> SampleDataset | None:
        """The samples of one part, or None where there are none."""
        if self._datasets[part] is None:
            return None
        if part != "train":
            return self._as_samples(part, None)
        samples = self.relabelled_samples()
        return samples.without(self.excluded) if self.excluded else samples

    @property
    def has_test(self) -> bool:
        """Whether there are test samples."""
        return self._datasets["test"] is not None

    def _as_samples(self, part: str, augmentation: Augmentation | None) -> SampleDataset:
        dataset = self._datasets[part]
        assert dataset is not None
        return SampleDataset(
            dataset,
            image_size=self.image_size,
            in_channels=self.in_channels,
            augmentation=augmentation,
            seed=self.seed,
            cache=self._caches[part],
        )

    @override
    def train_dataloader(self) -> Any:
        """Shuffled and augmented samples; a last batch of fewer is left out of an epoch."""
        dataset = self.samples("train")
        assert dataset is not None
        sampler = EpochSampler(
            dataset, num_replicas=self._world_size, rank=self._rank, seed=self.seed
        )
        if self.trainer is not None:
            # Where a fit is resumed, workers begin to load before Lightning tells the epoch.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        # A rest of one sample would break BatchNorm where the features are 1 x 1.
        return self._loader(dataset, sampler, drop_last=len(sampler) > self.batch_size)

    @override
    def val_dataloader(self) -> Any:
        """Validation samples. Under DDP the last are repeated to make the ranks even."""
        dataset = self.samples("val")
        return [] if dataset is None else self._loader(dataset, None)

    @override
    def test_dataloader(self) -> Any:
        """Test samples, each exactly once, unless there are fewer of them than processes."""
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
