"""Corrected masks find their samples in other people's datasets, or are refused."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from coseg_lightning import (
    updated,
)
from coseg_lightning.errors import InputError
from coseg_lightning.labels.updated import as_array
from support import (
    RIGHT,
    Halves,
    OwnTested,
    accuracies,
    flipped,
    layer_of,
    run_of,
    trained,
)


@pytest.mark.parametrize("ids", [True, False])
def test_a_part_of_a_dataset_gets_its_own_masks(tmp_path, ids):
    part = Subset(Halves(16, ids=ids), [15, 0, 7, 2, 9, 4, 11, 6, 1, 13, 8, 10])
    trained(tmp_path, DataLoader(part, batch_size=4, shuffle=True))
    after = accuracies(updated(part, tmp_path / "labels"))
    assert accuracies(part).count(0.0) == 3
    assert min(after) > 0.9


def test_masks_that_are_not_those_corrected_are_refused(tmp_path):
    data = Halves()
    layer = layer_of(tmp_path / "labels", {"h0": RIGHT}, {"h0": data[0][1]})
    assert torch.equal(updated(data, layer)[0][1], RIGHT)
    with pytest.raises(InputError, match="sample h0 is not the one that was corrected"):
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

    kinds = [
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
            assert corrected.mode == original.mode == "P"
            assert corrected.getpalette()[:6] == palette
        else:
            assert corrected.dtype == original.dtype
            assert corrected.shape == original.shape


def test_a_collate_function_that_augments_is_found(tmp_path):
    def collate(samples):
        images, masks, ids = torch.utils.data.default_collate(samples)
        return (
            (images.flip(-1), masks.flip(-1), ids)
            if random.random() < 0.3
            else (images, masks, ids)
        )

    random.seed(0)
    with pytest.raises(InputError, match="augment behind the dataset"):
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
