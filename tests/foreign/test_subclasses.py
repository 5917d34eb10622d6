"""Other people's subclasses and wrappers keep what they do to samples."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from coseg_lightning import CoSegModule, Recipe, updated
from coseg_lightning.callbacks.evaluation_pass import Drawable, stored_sample
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.labels.views import plain
from coseg_lightning.modules.loaders import FewSamples, drawable_indices
from coseg_lightning.runs.wrapped import wrap_datamodule
from support import (
    RIGHT,
    Halves,
    OwnTested,
    Squares,
    TinyNetwork,
    accuracies,
    layer_of,
    run_of,
    trained,
)

WRONG = 1 - RIGHT


class Named(Subset):
    """Names the samples of a dataset without ids."""

    def __getitem__(self, index):
        return (*self.dataset[self.indices[index]], f"n{self.indices[index]}")

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Inverted(ConcatDataset):
    """Masks of datasets whose files show the background."""

    def __getitem__(self, index):
        image, mask, *rest = super().__getitem__(index)
        return (image, 1 - mask, *rest)


class Augmenting(Halves):
    """Inverts image and mask at random, but for its views."""

    augments, layer = True, None

    def __getitem__(self, index):
        image, mask, *rest = super().__getitem__(index)
        if self.layer is not None and rest[0] in self.layer:
            mask = torch.from_numpy(self.layer.read(rest[0]).astype(np.int64))
        if self.augments and torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return (image, mask, *rest)

    def _with(self, **changes):
        other = type(self)(self.size, self.wrong, self.ids)
        vars(other).update(vars(self), **changes)
        return other

    def plain(self):
        return self._with(augments=False)

    def updated(self, layer):
        return self._with(layer=layer)


def test_a_subset_that_names_its_samples_gets_their_masks(tmp_path):
    part = Named(Halves(16, ids=False), [15, 0, 7, 2, 9, 4, 11, 6, 1, 13, 8, 10])
    trained(tmp_path, DataLoader(part, batch_size=4, shuffle=True))
    assert accuracies(part).count(0.0) == 3
    assert min(accuracies(updated(part, tmp_path / "labels"))) > 0.9


def test_a_subset_that_names_augmented_samples_is_refused(tmp_path):
    class Other(Named):
        def __getitem__(self, index):
            image, mask, _ = self.dataset[self.indices[index]]
            return image, 2 * mask, f"n{self.indices[index]}"

    torch.manual_seed(0)  # the first sample is augmented
    part = Other(Augmenting(), range(12))
    layer = layer_of(tmp_path / "labels", {"n0": 2 * RIGHT}, {"n0": 2 * WRONG})
    with pytest.raises(InputError, match="Other changes the masks of a dataset that augments them"):
        updated(part, layer)


@pytest.mark.parametrize("ids", [True, False])
def test_a_concatenation_that_changes_masks_is_ranked_and_corrected_so(tmp_path, ids):
    joined = Inverted([Halves(8, 2, ids=ids), Augmenting(4, 0, ids=ids)])
    assert type(plain(joined)) is Inverted
    assert torch.equal(plain(joined)[0][1], RIGHT)  # inverted, it is right
    name = {True: "h0", False: "0"}[ids]
    layer = layer_of(tmp_path / "labels", {name: WRONG}, {name: RIGHT}, numbered=not ids)
    corrected = updated(Inverted([Halves(8, 2, ids=ids), Halves(4, 0, ids=ids)]), layer)
    assert torch.equal(corrected[0][1], WRONG)
    assert torch.equal(corrected[2][1], WRONG)


def test_parts_with_and_without_views_get_their_own_masks(tmp_path):
    class Others(Halves):
        def __getitem__(self, index):
            image, mask, name = super().__getitem__(index)
            return image, mask, f"o{name}"

    joined = ConcatDataset([Augmenting(4, 2), Others(4, 2)])
    masks = {"h0": RIGHT, "oh1": RIGHT}
    layer = layer_of(tmp_path / "labels", masks, dict.fromkeys(masks, WRONG))
    assert accuracies(plain(updated(joined, layer).datasets[0])) == [1, 0, 1, 1]
    assert accuracies(updated(joined, layer).datasets[1]) == [0, 1, 1, 1]


def test_datasets_of_this_package_get_their_own_masks_in_a_concatenation(tmp_path):
    parts = [Squares(3, name="a"), Squares(3, name="b")]
    joined = ConcatDataset([SampleDataset(part, image_size=32) for part in parts])
    empty = np.zeros((32, 32), np.uint8)
    corrected = updated(joined, layer_of(tmp_path / "labels", {"a00": empty, "b01": empty}))
    assert [not sample["mask"].any() for sample in corrected] == [True, *[False] * 3, True, False]
    with pytest.raises(InputError, match="holds a mask of c00, which is not in the dataset"):
        updated(joined, layer_of(tmp_path / "other", {"a00": empty, "c00": empty}))


class Swapped(SampleDataset):
    def __getitem__(self, key):
        sample = super().__getitem__(key)
        return sample | {"mask": 1 - sample["mask"]}


def test_a_subclass_of_the_packages_own_dataset_stays_what_it_is(tmp_path):
    data = Swapped(Squares(4), image_size=32)
    stored, mask = Squares(4).mask(1), data[1]["mask"]
    assert torch.equal(plain(data)[1]["mask"], mask)
    assert stored_sample(data, 1) is None
    corrected = updated(data, layer_of(tmp_path / "labels", {"s01": stored}, {"s01": mask}))
    np.testing.assert_array_equal(corrected[1]["mask"], stored)
    of_stored = layer_of(tmp_path / "stored", {"s01": 1 - stored}, {"s01": stored})
    np.testing.assert_array_equal(updated(data, of_stored)[1]["mask"], stored)


class SwappedTogether(SampleDataset):
    def __getitems__(self, keys):  # which loaders prefer
        return [{**one, "mask": 1 - one["mask"]} for one in map(super().__getitem__, keys)]


def test_a_subclass_may_read_several_samples_at_once(tmp_path):
    data = SwappedTogether(Squares(4), image_size=32)
    assert stored_sample(data, 1) is None
    stored = Squares(4).mask(1)
    layer = layer_of(tmp_path / "labels", {"s01": stored}, {"s01": 1 - stored})
    batch = next(iter(DataLoader(updated(data, layer), batch_size=4)))
    np.testing.assert_array_equal(batch["mask"][1], stored)


def test_parts_of_parts_get_their_own_masks(tmp_path):
    first, second = (SampleDataset(Squares(4, name=name), image_size=32) for name in ("a", "b"))
    joined = ConcatDataset([Subset(first, [3, 1]), ConcatDataset([Subset(second, [2, 0])])])
    empty = np.zeros((32, 32), np.uint8)
    corrected = updated(joined, layer_of(tmp_path / "labels", {"a01": empty, "b02": empty}))
    assert [not sample["mask"].any() for sample in corrected] == [False, True, True, False]
    assert len(updated(Named(Halves(ids=False), []), tmp_path / "labels")) == 0


class Flipping(Subset):
    """Flips images and masks at random."""

    def __getitem__(self, index):
        image, mask, name = self.dataset[self.indices[index]]
        return (
            (image.flip(-1), mask.flip(-1), name) if torch.rand(()) < 0.5 else (image, mask, name)
        )

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Marked(SampleDataset):
    def __getitem__(self, key):
        return super().__getitem__(key) | {"mark": 1}


def flip(image, mask):
    if torch.rand(()) < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return {"image": image, "mask": mask}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_subclass_that_augments_has_masks_augmented_with_its_images(tmp_path, known, seed):
    """Whatever its first reading is, and whether the layer knows the mask before."""
    torch.manual_seed(seed)
    originals = {"h0": WRONG} if known else {}
    layer = layer_of(tmp_path / "flips", {"h0": RIGHT}, originals)
    for _ in range(8):
        image, mask, _ = updated(Flipping(Halves(), range(12)), layer)[0]
        assert ((image[0] > 1).long() == mask).float().mean() > 0.9
    squares = Squares(4)
    originals = {"s01": squares.mask(1)} if known else {}
    empty = np.zeros((32, 32), np.uint8)
    empty[:, :16] = squares.mask(1)[:, :16]
    layer = layer_of(tmp_path / "marked", {"s01": empty}, originals)
    data = updated(Marked(squares, image_size=32, in_channels=1, augmentation=flip), layer)
    assert isinstance(data, Marked)
    halves = [data[1]["mask"][:, 16:].any().item() for _ in range(16)]
    assert set(halves) == {True, False}  # it is flipped with the image


def test_asking_what_a_subclass_does_draws_no_random_numbers(tmp_path):
    class Noisy(Named):
        def __getitem__(self, index):
            image, *rest = super().__getitem__(index)
            return (image + torch.randn(()), *rest)

    layer = layer_of(tmp_path / "labels", {"n0": RIGHT}, {"n0": WRONG})
    before = torch.get_rng_state()
    updated(Noisy(Halves(ids=False), range(12)), layer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [None, 5, property(lambda self: 3)])
def test_an_attribute_called_updated_that_is_no_method_is_left_alone(tmp_path, other):
    kind = type("Dated", (Halves,), {"updated": other})
    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    assert torch.equal(updated(kind(), layer)[0][1], RIGHT)
    assert stored_sample(kind(), 0) is None


class Wrapper(Dataset):
    """Passes on all attributes of another dataset, whose masks it inverts."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getattr__(self, name):
        if name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, mask, name = self.dataset[index]
        return image, 1 - mask, name


def test_the_views_of_a_wrapped_dataset_are_not_the_wrappers(tmp_path):
    data = Wrapper(Augmenting().plain())
    assert plain(data) is data
    layer = layer_of(tmp_path / "labels", {"h0": WRONG}, {"h0": RIGHT})
    assert torch.equal(updated(data, layer)[0][1], WRONG)


def test_workers_reach_private_attributes_of_the_dataset():
    data = Halves()
    data._file = None
    for over in (Drawable(data, [0, 1]), FewSamples(data, [0, 1])):
        over._file = "open"
        assert (data._file, over._file) == ("open", "open")
        data._file = None
        assert not hasattr(over, "ids")


@pytest.mark.parametrize("sampler", [RandomSampler, SequentialSampler])
def test_a_sampler_of_fewer_samples_draws_only_those(sampler):
    loader = DataLoader(Halves(ids=False), sampler=sampler(range(8)))
    assert drawable_indices(loader) == list(range(8))
    assert drawable_indices(DataLoader(Halves(), sampler=sampler(Halves()))) is None
    some = DataLoader(Halves(), sampler=SubsetRandomSampler([3, 5]))
    assert drawable_indices(some) == [3, 5]


def turned(samples):
    batch = default_collate(samples)
    return batch | {key: batch[key].flip(-1) for key in ("image", "mask")}


def test_the_path_is_watched_over_datasets_of_this_package_too(tmp_path):
    data = SampleDataset(Squares(8), image_size=32, in_channels=1)
    module = CoSegModule(TinyNetwork(), TinyNetwork(), in_channels=1, noise_level=0.25)
    loader = partial(DataLoader, data, batch_size=4)
    with pytest.raises(InputError, match="corrected masks replace the dataset's own"):
        trained(tmp_path, loader(collate_fn=turned), module, epochs=1)
    trained(tmp_path / "as it is", loader(), module, epochs=1)


def test_the_test_sees_its_own_masks_where_loaders_share_one(tmp_path):
    class Shared(OwnTested):
        def val_dataloader(self, size=4):
            return self._loader(Halves(size, wrong=0), False)

        @staticmethod
        def predict_dataloader():
            return DataLoader(Halves(4))

        def test_dataloader(self):
            assert len(self.predict_dataloader()) == 4
            self.val_dataloader(size=2)
            return self.train_dataloader()

    summary = run_of(tmp_path, Shared(), recipe=Recipe(confidence=0.0))
    assert summary["correction"]["corrected"] == 3
    assert summary["test"]["dice"] < 0.9  # three of twelve masks are wrong


def test_a_datamodule_whose_base_wants_arguments_of_its_subclasses(tmp_path):
    known = []

    class Base(OwnTested):
        def __init_subclass__(cls, *, name, **options):
            super().__init_subclass__(**options)
            known.append(name)

    class Mine(Base, name="mine"):
        pass

    assert wrap_datamodule(Mine()).has_test
    assert known == ["mine"]
