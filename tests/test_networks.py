"""Networks by name, of any input size, and on disk."""

import json

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import ROOT, TinyNetwork
from safetensors.torch import load_file
from torch import nn

from coseg_lightning.errors import InputError
from coseg_lightning.networks import any_size, build_network, save_network
from coseg_lightning.networks.classic_unet import ClassicUNet

NAMES = [path.stem for path in (ROOT / "conf" / "model").glob("*.yaml") if path.stem != "custom"]


def test_every_architecture_of_smp_has_its_file():
    assert set(NAMES) == {*smp.MODEL_ARCHITECTURES_MAPPING, "unet_classic"}


@pytest.mark.parametrize("name", NAMES)
def test_every_network_takes_sides_that_nothing_divides(name):
    options = {"base_channels": 4} if name == "unet_classic" else {}
    network = build_network(name, in_channels=1, classes=3, **options).eval()
    with torch.no_grad():
        assert any_size(network, torch.randn(1, 1, 150, 133)).shape == (1, 3, 150, 133)


def test_padding_leaves_sides_alone_that_divide():
    network = ClassicUNet(1, 2, base_channels=4).eval()
    images = torch.randn(1, 1, 32, 48)
    torch.testing.assert_close(any_size(network, images), network(images))


def test_a_network_that_changes_the_size_is_named():
    with pytest.raises(InputError, match=r"Conv2d gave logits of \(30, 30\)"):
        any_size(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 32, 32))


def test_a_batch_that_batchnorm_cannot_learn_from_is_named():
    network = build_network("unet", in_channels=1)
    with pytest.raises(InputError, match="a batch of 1 image of 32 x 32"):
        any_size(network, torch.randn(1, 1, 32, 32))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="no network 'unett'; did you mean unet"):
        build_network("unett")
    with pytest.raises(InputError, match="no encoder 'resnet81'; did you mean resnet18"):
        build_network("unet", encoder_name="resnet81")


def test_classic_unet_has_the_published_size():
    # Ronneberger et al. have 31.03 million parameters; BatchNorm instead of biases adds 5888.
    parameters = sum(p.numel() for p in ClassicUNet(1, 2).parameters())
    assert parameters == pytest.approx(31.03e6, rel=1e-3)


def test_smp_networks_load_without_this_package(tmp_path):
    network = build_network("unet", encoder_name="resnet18", in_channels=1).eval()
    save_network(network, tmp_path / "model")
    loaded = smp.from_pretrained(tmp_path / "model").eval()
    images = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(loaded(images), network(images))


def test_other_networks_leave_weights_and_their_class(tmp_path):
    network = TinyNetwork()
    save_network(network, tmp_path / "model")
    other = TinyNetwork()
    other.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    torch.testing.assert_close(other.state_dict(), network.state_dict())
    kind = json.loads((tmp_path / "model" / "network.json").read_text())["class"]
    assert kind.endswith("TinyNetwork")
