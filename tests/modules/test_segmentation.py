"""The module for plain supervised training."""

import pytorch_lightning as pl
import torch

from coseg_lightning import CoSegDataModule, SegmentationModule
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
