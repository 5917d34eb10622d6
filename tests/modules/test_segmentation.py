"""The module for plain supervised training."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from coseg_lightning import CoSegDataModule, CoSegModule, SegmentationModule
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import segmentation_loss
from support import Squares, TinyNetwork, data_of, loader, one_batch, trainer_of


def test_it_trains_as_a_plain_loop_would(tmp_path):
    batches = [one_batch() for _ in range(4)]
    torch.manual_seed(1)
    module = SegmentationModule(TinyNetwork(), lambda_1=0.5, lambda_2=0.01)
    torch.manual_seed(1)
    net = TinyNetwork()
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(*batches))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=0.02)
    for images, masks in batches:
        optimizer.zero_grad()
        segmentation_loss(net(images), masks, lambda_1=0.5).mean().backward()
        optimizer.step()
    torch.testing.assert_close(module.net.state_dict(), net.state_dict())


def test_it_learns_squares(tmp_path):
    data = CoSegDataModule(
        Squares(16), None, Squares(8, name="t"), image_size=32, in_channels=1, batch_size=4
    )
    pl.seed_everything(0, verbose=False)
    module = SegmentationModule(TinyNetwork(width=8), lr=0.02)
    trainer = trainer_of(tmp_path, max_epochs=15)
    trainer.fit(module, data)
    assert trainer.test(module, data, verbose=False)[0]["test/dice"] > 0.9


def test_the_same_seed_gives_the_same_weights_for_any_number_of_workers(tmp_path):
    states = []
    for workers in (0, 2):
        torch.manual_seed(0)
        module = SegmentationModule(TinyNetwork())
        torch.manual_seed(workers)  # nothing may draw from the global generator
        trainer_of(tmp_path).fit(module, data_of(tmp_path, num_workers=workers))
        states.append(module.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.parametrize("module", [SegmentationModule, CoSegModule])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("classes", value) for value in (0, -1, "2", 2.5, True)),
        *(("ignore_index", value) for value in (None, "255", float("nan"), 2.5)),
        *(("lr", value) for value in (-1, float("nan"), float("inf"), "ab", None)),
    ],
)
def test_values_of_the_wrong_kind_are_refused(module, setting, value):
    with pytest.raises(InputError, match=f"{setting}=.* must be a"):
        module("unet_classic", base_channels=2, **{setting: value})


def test_numbers_of_numpy_are_taken():
    module = SegmentationModule("unet_classic", base_channels=2, classes=np.int64(3))
    assert module.classes == 3
    assert type(module.classes) is int


@pytest.mark.parametrize("net", [None, TinyNetwork, ["unet"]])
def test_what_is_no_network_is_refused(net):
    with pytest.raises(InputError, match="give the name of one, or a ready network"):
        SegmentationModule(net)
