"""Corrected masks find their samples in other people's datasets, or are refused."""

import random
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from coseg_lightning import (
    CorruptionRanking,
    CoSegModule,
    LabelCorrection,
    updated,
)
from coseg_lightning.errors import InputError
from coseg_lightning.labels.updated import as_array, like
from coseg_lightning.modules.loaders import FewSamples
from support import (
    RIGHT,
    Halves,
    OwnTested,
    TinyNetwork,
    accuracies,
    flipped,
    layer_of,
    module_of,
    run_of,
    trained,
    trainer_of,
)


@pytest.mark.parametrize("ids", [True, False])
def test_a_part_of_a_dataset_gets_its_own_masks(tmp_path, ids):
    part = Subset(Halves(16, ids=ids), [15, 0, 7, 2, 9, 4, 11, 6, 1, 13, 8, 10])
    trained(tmp_path, DataLoader(part, batch_size=4, shuffle=True))
    after = accuracies(updated(part, tmp_path / "labels"))
    assert accuracies(part).count(0.0) == 3
    assert min(after) > 0.9


def test_samples_that_a_dataset_reads_together_stay_as_it_reads_them(tmp_path):
    class Together(Halves):
        def __getitems__(self, indices):  # as loaders prefer
            return [
                (image / 2, mask, name) for image, mask, name in map(super().__getitem__, indices)
            ]

    class OnlyTogether(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitems__(self, indices):
            return Together().__getitems__(indices)

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    for data in (Together(), OnlyTogether()):
        images, masks, _ = next(iter(DataLoader(updated(data, layer), batch_size=2)))
        assert torch.equal(images[1], Halves()[1][0] / 2)
        assert torch.equal(masks, torch.stack([RIGHT, 1 - RIGHT]))
    assert torch.equal(updated(OnlyTogether(), layer)[0][1], RIGHT)
    assert not hasattr(updated(Halves(), layer), "__getitems__")


def test_what_a_callback_sets_of_a_dataset_reaches_it(tmp_path):
    data = Halves()
    corrected = updated(data, layer_of(tmp_path / "labels", {"h0": RIGHT}))
    corrected.wrong, corrected.mine = 5, 1
    assert (data.wrong, data.mine, corrected.mine) == (5, 1, 1)
    few = FewSamples(Subset(data, range(6)), [1, 2])  # which has indices too
    few.dataset.gain = 1
    few.gain = 7
    assert (few.dataset.gain, few.gain, few.indices, len(few.dataset)) == (7, 7, [1, 2], 6)
    twice = updated(corrected, layer_of(tmp_path / "again", {"h1": 1 - RIGHT}))
    assert torch.equal(twice[0][1], RIGHT)
    assert corrected.layer.ids == ["h0"]


def test_masks_that_are_not_those_corrected_are_refused(tmp_path):
    data = Halves()
    layer = layer_of(tmp_path / "labels", {"h0": RIGHT}, {"h0": data[0][1]})
    assert torch.equal(updated(data, layer)[0][1], RIGHT)
    with pytest.raises(InputError, match="sample h0 is not the mask that was corrected"):
        updated(Halves(wrong=0), layer)[0]


def test_samples_that_nobody_understands_are_refused(tmp_path):
    class Named(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return {"img": image, "seg": mask, "name": sample_id}

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    with pytest.raises(InputError, match=r"A sample of the dataset is \['img', 'name', 'seg'\]"):
        updated(Named(), layer)[0]


def test_a_corrected_mask_has_the_type_of_the_given_one(tmp_path):
    from torchvision import tv_tensors

    class As(Halves):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return image, self.kind(mask), sample_id

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    palette = [0, 0, 0, 255, 0, 0]

    def paletted(mask):
        picture = Image.fromarray(mask.numpy().astype(np.uint8))
        picture.putpalette(palette)
        return picture

    def picture(mode):
        return lambda mask: Image.fromarray(
            mask.numpy().astype(np.asarray(Image.new(mode, (1, 1))).dtype)
        )

    kinds = [
        *map(picture, ("1", "L", "I", "I;16", "F")),
        tv_tensors.Mask,
        lambda m: m.numpy().astype(np.uint8),
        paletted,
        lambda m: m[None].float(),
    ]
    for kind in kinds:
        original, corrected = As(kind)[0][1], updated(As(kind), layer)[0][1]
        assert type(corrected) is type(original)
        np.testing.assert_array_equal(as_array(corrected), RIGHT.numpy())
        if isinstance(original, Image.Image):
            assert corrected.mode == original.mode
            if original.mode == "P":
                assert corrected.getpalette()[:6] == palette
        else:
            assert corrected.dtype == original.dtype
            assert corrected.shape == original.shape


def test_a_picture_of_another_mode_is_refused():
    with pytest.raises(InputError, match="of mode I;16L, to which a corrected mask cannot be conv"):
        like(Image.new("I;16L", (16, 16)), RIGHT.numpy().astype(np.uint8))


def test_a_collate_function_that_augments_is_found(tmp_path):
    def collate(samples):
        images, masks, ids = torch.utils.data.default_collate(samples)
        return (
            (images.flip(-1), masks.flip(-1), ids)
            if random.random() < 0.3
            else (images, masks, ids)
        )

    random.seed(0)
    with pytest.raises(InputError, match="augment outside of this dataset"):
        trained(tmp_path, DataLoader(Halves(), batch_size=4, collate_fn=collate))


@pytest.mark.slow
def test_a_datamodule_that_augments_on_the_device_while_training(tmp_path):
    class Flipping(OwnTested):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training and torch.rand(()) < 0.5:
                batch = [batch[0].flip(-1), batch[1].flip(-1), *batch[2:]]
            return batch

    run_of(tmp_path, Flipping(), confidence=0.0)
    corrected = updated(Halves(), tmp_path / "run" / "labels")
    # No mask is mirrored.
    assert sum(accuracy in (0.0, 1.0) for accuracy in accuracies(corrected)) >= 9


def test_a_dataset_that_augments_behind_plain_is_not_corrected_by_mistake(tmp_path):
    class Augmenting(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return *flipped(image, mask), sample_id

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT}, {"h0": Halves()[0][1]})
    dataset = updated(Augmenting(), layer)
    with pytest.raises(InputError, match="without augmentation"):
        [dataset[0] for _ in range(20)]


def test_attributes_of_a_dataset_mean_nothing_here(tmp_path):
    class Attributes(Halves):
        truth, replaced, plain = torch.ones(3), True, False

        def mask(self, index):
            return np.full((64, 64), 255, np.uint8)

    trained(tmp_path, DataLoader(Attributes(), batch_size=4, shuffle=True))
    assert min(accuracies(updated(Attributes(), tmp_path / "labels"))) > 0.9


def test_mappings_of_a_dataset_that_mean_something_else(tmp_path):
    dataset = Halves()
    dataset.kinds = {"cat": "1", "dog": "2"}
    with pytest.warns(UserWarning, match="kinds names 'cat' and others, but no sample has such"):
        trained(tmp_path, DataLoader(dataset, batch_size=4, shuffle=True))
    assert min(accuracies(updated(dataset, tmp_path / "labels"))) > 0.9
    dataset.annotators = {"ann": ["h0", "h1"]}
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "other.csv")])
    with pytest.raises(InputError, match="'ann': .* rename the dataset's attribute annotators if"):
        trainer.fit(module_of(0.25), DataLoader(dataset, 4))
    assert trainer.global_step == 0


class Spatial(torch.Tensor):
    """A tensor that knows where it lies in space, like MONAI's `MetaTensor`."""

    affine = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(result, cls) and isinstance(args[0], cls):
            result.affine = args[0].affine
        return result


def test_a_corrected_mask_keeps_what_its_tensor_knows(tmp_path):
    class InSpace(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            mask = mask.as_subclass(Spatial)
            mask.affine = np.diag([-1.0, -1.0, 1.0])
            return image, mask, sample_id

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    data = InSpace()
    corrected = updated(data, layer)[0][1]
    assert type(corrected) is Spatial
    np.testing.assert_array_equal(corrected.affine, np.diag([-1.0, -1.0, 1.0]))
    assert torch.equal(corrected.as_subclass(torch.Tensor), RIGHT)
    assert not torch.equal(data[0][1].as_subclass(torch.Tensor), RIGHT)


def test_a_mask_of_monai_is_turned_with_its_image(tmp_path):
    monai = pytest.importorskip("monai", reason="MONAI is not installed")
    affine = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))

    class InSpace(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            tensors = {"image": image, "label": mask[None]}
            located = {k: monai.data.MetaTensor(v, affine=affine) for k, v in tensors.items()}
            return {**located, "id": sample_id}

    sample = updated(InSpace(), layer_of(tmp_path / "labels", {"h0": RIGHT}))[0]
    assert torch.equal(sample["label"].affine, sample["image"].affine)


class Augmented(torch.utils.data.Dataset):
    """Flips the samples of another dataset, and has a view without."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, mask, *sample_id = self.dataset[index]
        return *flipped(image, mask), *sample_id

    def plain(self):
        return self.dataset

    def updated(self, layer):
        return Augmented(updated(self.dataset, layer))


def test_several_datasets_with_views_are_corrected_together(tmp_path):
    whole = Halves(16, wrong=4)
    sites = [Subset(whole, range(10)), Subset(whole, range(10, 16))]
    data = torch.utils.data.ConcatDataset(list(map(Augmented, sites)))
    trained(tmp_path, DataLoader(data, batch_size=4, shuffle=True))
    corrected = updated(data, tmp_path / "labels")
    assert [type(part) for part in corrected.datasets] == [Augmented, Augmented]
    assert (
        min(accuracies(torch.utils.data.ConcatDataset([p.plain() for p in corrected.datasets])))
        > 0.9
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i, m: (i[..., 4:-4], m[..., 4:-4]),
            "16 x 16 pixels .* in the dataset, but 16 x 8 pixels",
        ),
        (
            lambda i, m: (i, m // 255),
            r"classes \[0, 255\] in the dataset, but .* classes \[0, 1\] in",
        ),
    ],
)
def test_masks_that_become_others_on_the_way_are_refused_before_training(tmp_path, change, message):
    class Bytes(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return image, 255 * mask if "255" in message else mask, sample_id

    def collate(samples):
        images, masks, ids = torch.utils.data.default_collate(samples)
        return *change(images, masks), ids

    with pytest.raises(InputError, match=message):
        trained(tmp_path, DataLoader(Bytes(), batch_size=4, collate_fn=collate))


def test_a_hook_that_augments_in_the_ranking_too_is_found_before_training(tmp_path):
    class Own(CoSegModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return *flipped(*batch[:2]), batch[2]

    module = Own(TinyNetwork(), TinyNetwork(), noise_level=0.25)
    with pytest.raises(InputError, match="returns different masks each time it is read"):
        trained(tmp_path, DataLoader(Halves(), batch_size=4), module)


class Named(NamedTuple):
    image: torch.Tensor
    mask: torch.Tensor
    id: str


class Sample(dict):
    def __getattr__(self, name):
        return self[name]


@pytest.mark.parametrize(
    "kind", [Named, lambda *parts: Sample(zip(["image", "mask", "id"], parts, strict=True))]
)
def test_samples_keep_their_class(tmp_path, kind):
    class Own(Halves):
        def __getitem__(self, index):
            return kind(*super().__getitem__(index))

        def set_epoch(self, epoch):
            self.epoch = epoch

    data = Own()
    corrected = updated(data, layer_of(tmp_path / "labels", {"h0": RIGHT}))
    assert torch.equal(corrected[0].mask, RIGHT)
    assert not torch.equal(data[0].mask, RIGHT)
    assert corrected[0].id == "h0"
    corrected.set_epoch(3)  # a project may call what its dataset has
    assert data.epoch == 3
    with pytest.raises(AttributeError, match="no attribute 'plain'"):
        corrected.plain()


def test_augmentation_that_begins_later_is_noticed_before_masks_are_corrected(tmp_path):
    class Later(Halves):
        on = False

        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return (
                (image.flip(-1), mask.flip(-1), sample_id) if self.on else (image, mask, sample_id)
            )

    class Begin(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.train_dataloader.dataset.on = trainer.current_epoch > 1

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    callbacks = [ranking, LabelCorrection(tmp_path / "labels"), Begin()]
    trainer = trainer_of(tmp_path, callbacks=callbacks, max_epochs=4)
    with (
        pytest.warns(UserWarning, match="returns other masks than before training"),
        pytest.raises(InputError, match="No masks are corrected, since the dataset returns other"),
    ):
        trainer.fit(module_of(0.25), DataLoader(Later(), batch_size=4))
    assert not (tmp_path / "labels").exists()
    assert (tmp_path / "scores.csv").is_file()


class HasParts(Halves):
    """A project's dataset, whose parts have common names."""

    annotators = ("ann", "bob")

    def __init__(self):
        super().__init__()
        self.ids = [f"h{index}" for index in range(12)]

    def image(self, index):
        return self[index][0]

    def mask(self, index):
        return self[index][1]


def test_a_dataset_whose_parts_have_common_names_is_corrected_as_it_is(tmp_path):
    trained(tmp_path, DataLoader(HasParts(), batch_size=4, shuffle=True))
    corrected = updated(HasParts(), tmp_path / "labels")
    image, mask, sample_id = corrected[0]
    assert sample_id == "h0"
    assert torch.equal(image, Halves()[0][0])
    assert (mask == RIGHT).float().mean() > 0.95


class IdFirst(NamedTuple):
    id: str
    mask: torch.Tensor
    image: torch.Tensor


class NamedFirst(Halves):
    def __getitem__(self, index):
        image, mask, sample_id = super().__getitem__(index)
        return IdFirst(sample_id, mask, image)


def test_named_tuples_are_read_by_name_everywhere(tmp_path):
    trained(tmp_path, DataLoader(NamedFirst(), batch_size=4, shuffle=True))
    sample = updated(NamedFirst(), tmp_path / "labels")[0]
    assert isinstance(sample, IdFirst)
    assert sample.id == "h0"
    assert torch.equal(sample.image, Halves()[0][0])
    assert (sample.mask == RIGHT).float().mean() > 0.95


class NoMask(Halves):
    """Its masks are called labels, and another part, `mask`, is not there."""

    def __getitem__(self, index):
        image, mask, sample_id = super().__getitem__(index)
        return {"image": image, "label": mask, "mask": None, "id": sample_id}


def without_none(samples):
    named = [{name: part for name, part in s.items() if part is not None} for s in samples]
    return {**torch.utils.data.default_collate(named), "mask": None}


def test_a_mask_that_is_none_is_no_mask(tmp_path):
    data = DataLoader(NoMask(), batch_size=4, shuffle=True, collate_fn=without_none)
    trained(tmp_path, data)
    sample = updated(NoMask(), tmp_path / "labels")[0]
    assert sample["mask"] is None
    assert (sample["label"] == RIGHT).float().mean() > 0.95
