"""Networks by name, for any input size, and on disk."""

import json

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file
from torch import nn

from coseg_lightning import CoSegModule
from coseg_lightning.app.build import make_network
from coseg_lightning.errors import InputError
from coseg_lightning.networks.build import OWN, build_network, save_network
from coseg_lightning.networks.ce_net import CENet, DenseAtrousConvolution, ResidualPooling
from coseg_lightning.networks.classic_unet import ClassicUNet
from coseg_lightning.networks.double_unet import DoubleUNet
from coseg_lightning.networks.forward import any_size, auxiliary_weight, with_auxiliary
from support import ROOT, TinyNetwork, composed, loader, trainer_of

pytestmark = pytest.mark.usefixtures("quick_vgg")

NAMES = [
    path.stem
    for path in (ROOT / "conf" / "model").glob("*.yaml")
    if path.stem not in ("custom", "mirror")
]
SMALL = {
    "unet_classic": {"base_channels": 4},
    "double_unet": {"encoder_name": "vgg11", "base_channels": 4},
    "ce_net": {"encoder_name": "resnet18"},
}


def test_every_architecture_of_smp_has_its_file():
    assert set(NAMES) == {*smp.MODEL_ARCHITECTURES_MAPPING, *OWN}


@pytest.mark.parametrize("given", [{"encoder_name": "resnet18"}, {"encoder_weights": "imagenet"}])
def test_the_classic_unet_refuses_an_encoder(given):
    with pytest.raises(InputError, match="unet_classic has no encoder"):
        build_network("unet_classic", **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_takes_sides_that_nothing_divides(name):
    options = SMALL.get(name, {})
    network = build_network(name, in_channels=1, classes=3, **options).eval()
    with torch.no_grad():
        assert any_size(network, torch.randn(1, 1, 150, 133)).shape == (1, 3, 150, 133)


def test_padding_leaves_sides_alone_that_divide():
    network = ClassicUNet(1, 2, base_channels=4).eval()
    images = torch.randn(1, 1, 32, 48)
    torch.testing.assert_close(any_size(network, images), network(images))


def test_a_network_that_changes_the_size_is_named():
    with pytest.raises(
        InputError, match=r"Conv2d returned logits of 30 x 30 for images of 32 x 32"
    ):
        any_size(nn.Conv2d(1, 2, 3), torch.randn(1, 1, 32, 32))


def test_logits_of_a_quarter_of_the_size_are_enlarged():
    """As those of `SegformerForSemanticSegmentation` of transformers."""

    class Quarter(nn.Conv2d):
        def forward(self, images):
            return {"logits": nn.functional.avg_pool2d(super().forward(images), 4)}

    network = Quarter(1, 2, 1)
    images = torch.randn(2, 1, 32, 48)
    small = network(images)["logits"]
    expected = nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(any_size(network, images), expected)


def test_several_outputs_in_one_tensor_are_named():
    class Stacked(nn.Conv2d):
        def forward(self, images):
            return torch.stack([super().forward(images)] * 2, dim=1)

    with pytest.raises(InputError, match=r"\(1, 2, 2, 8, 8\), but they must be .* a dict with out"):
        any_size(Stacked(1, 2, 1), torch.randn(1, 1, 8, 8))


def test_a_transformer_without_a_size_of_its_own_choice_is_built():
    with pytest.warns(UserWarning, match="prefix tokens"):
        network = build_network("dpt", encoder_name="tu-samvit_base_patch16", encoder_depth=4)
    assert type(network).__name__ == "DPT"


def test_a_batch_that_batchnorm_cannot_learn_from_is_named():
    network = build_network("unet", in_channels=1)
    with pytest.raises(InputError, match="a batch of 1 image of 32 x 32"):
        any_size(network, torch.randn(1, 1, 32, 32))


def test_images_that_are_too_small_for_a_network_are_named():
    network = build_network("pan", in_channels=1)
    with pytest.raises(InputError, match="Images of 64 x 96 pixels are too small for this PAN"):
        any_size(network, torch.randn(2, 1, 64, 96))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv3", {"encoder_name": "densenet121"}, "cannot be built .DenseNet encoders do not"),
        ("pan", {"encoder_name": "tu-vgg11"}, "cannot be built .they do not fit together.; change"),
        ("dpt", {"encoder_name": "resnet18"}, "cannot be built .Only Timm encoders are supported"),
        ("unet", {"encoder_depth": 3}, "cannot be built .Model depth is 3, but"),
    ],
)
def test_what_does_not_fit_together_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        build_network(name, **options)


@pytest.mark.parametrize("encoder", ["tu-hrnet_w18_small", "tu-coat_lite_tiny"])
def test_images_of_a_size_that_an_encoder_does_not_take_are_named(encoder):
    network = build_network("unet", in_channels=1, encoder_name=encoder).eval()
    with pytest.raises(InputError, match="Unet with this encoder cannot take images of 75 x 75"):
        any_size(network, torch.randn(1, 1, 75, 75))


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="no network 'unett'; did you mean unet"):
        build_network("unett")
    with pytest.raises(InputError, match="no encoder 'resnet81'; did you mean resnet18"):
        build_network("unet", encoder_name="resnet81")


def test_classic_unet_has_the_published_size():
    # Ronneberger et al. have 31.03 million parameters; BatchNorm instead of biases adds 5888.
    parameters = sum(p.numel() for p in ClassicUNet(1, 2).parameters())
    assert parameters == pytest.approx(31.03e6, rel=1e-3)


@pytest.mark.slow
def test_double_unet_has_the_published_size():
    # The layers of the authors' code hold 29.29 million with one output and three channels.
    parameters = sum(p.numel() for p in DoubleUNet(3, 1).parameters())
    assert parameters == pytest.approx(29.29e6, rel=1e-3)


def test_ce_net_has_the_published_size():
    # The layers of the authors' code hold 29.00 million with one output and three channels.
    parameters = sum(p.numel() for p in CENet(3, 1).parameters())
    assert parameters == pytest.approx(29.00e6, rel=1e-3)


@pytest.mark.slow
def test_double_unet_trains_two_masks_and_uses_the_second():
    torch.manual_seed(0)
    network = DoubleUNet(1, 3, **SMALL["double_unet"])
    images = torch.randn(2, 1, 40, 50)
    logits, (first,) = with_auxiliary(network, images)
    assert logits.shape == first.shape == (2, 3, 40, 50)
    assert auxiliary_weight(network) == 1
    network.eval()
    used, none = with_auxiliary(network, images)
    assert none == []
    with torch.no_grad():
        # If the first mask is all background, the second U-Net sees nothing of the image ...
        network.head_1.weight.zero_()
        network.head_1.bias.copy_(torch.tensor([100.0, 0, 0]))
        inputs = []
        network.encoder_2[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        network(images := torch.randn(1, 1, 32, 32))
        assert not inputs[0].any()
        # ... and if none of it is background, the second U-Net sees the whole image.
        network.head_1.bias.copy_(torch.tensor([-100.0, 0, 0]))
        network(images)
        torch.testing.assert_close(inputs[1], images)
    assert used.shape == (2, 3, 40, 50)


def test_double_unet_needs_a_vgg():
    with pytest.raises(InputError, match="encoder_name=resnet18: DoubleU-Net needs"):
        build_network("double_unet", encoder_name="resnet18")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["double_unet", "ce_net"])
def test_the_papers_networks_in_half_precision(name):
    network = build_network(name, in_channels=1, **SMALL[name]).bfloat16()
    images = torch.randn(2, 1, 32, 32, dtype=torch.bfloat16)
    assert any_size(network, images).dtype == torch.bfloat16


def test_dense_atrous_convolution_sees_what_the_paper_says():
    block = DenseAtrousConvolution(1)
    for convolution in (block.rate_1, block.rate_3, block.rate_5, block.point):
        nn.init.ones_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    reach = block(point)[0, 0, 20].nonzero().flatten()
    assert int(reach.max() - reach.min()) + 1 == 19  # the widest of 3, 7, 9 and 19 pixels


def test_residual_pooling_keeps_what_came_in_and_adds_four_maps():
    pooling = ResidualPooling(3)
    x = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        out = pooling(x)
    assert out.shape == (2, 7, 14, 14)
    torch.testing.assert_close(out[:, 4:], x)
    # Smaller than the pooling windows.
    assert pooling(torch.randn(1, 3, 2, 5)).shape == (1, 7, 2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["double_unet", "ce_net"])
def test_pairs_of_the_papers_networks_learn(tmp_path, name):
    torch.manual_seed(0)
    nets = [build_network(name, in_channels=1, classes=2, **SMALL[name]) for _ in range(2)]
    module = CoSegModule(*nets, noise_level=0.5, selection="relative", ramp_epochs=0)
    states = [{key: value.clone() for key, value in net.state_dict().items()} for net in nets]
    images, masks = torch.randn(4, 1, 40, 50), torch.randint(0, 2, (4, 40, 50))
    trainer_of(tmp_path).fit(module, loader((images, masks)))
    for net, state in zip(nets, states, strict=True):
        still = [key for key, value in net.named_parameters() if torch.equal(value, state[key])]
        assert not still


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


def test_networks_on_several_devices_are_saved_as_what_they_hold(tmp_path):
    network = nn.DataParallel(build_network("unet", encoder_name="resnet18", in_channels=1)).eval()
    save_network(network, tmp_path / "model")
    loaded = smp.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.state_dict(), network.module.state_dict())


def test_weights_that_two_layers_share_are_saved(tmp_path):
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    network[1].weight = network[0].weight
    save_network(network, tmp_path / "model")
    network.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    assert network[1].weight is network[0].weight


def test_a_network_of_listed_channels_is_saved_as_it_is(tmp_path):
    """smp leaves an argument out that is no plain list, and loads another network then."""
    settings = ["data=phantom", "+model.decoder_channels=[32,16,8]", "+model.encoder_depth=3"]
    module = make_network(composed(*settings, "model.encoder_weights=null"))
    save_network(module.net, tmp_path)
    again = smp.from_pretrained(tmp_path)
    assert again.state_dict().keys() == module.net.state_dict().keys()


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.uint8, "image.to(torch.float32) / 255."),
        (torch.float64, "such as image.to(torch.float32)."),
    ],
)
def test_images_of_another_type_are_named(dtype, advice):
    with pytest.raises(InputError, match=f"images are {dtype}, but Conv2d computes with") as found:
        any_size(torch.nn.Conv2d(1, 2, 1), torch.ones(2, 1, 8, 8, dtype=dtype))
    assert str(found.value).endswith(advice)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"noiselevel": 0.3}, "no argument 'noiselevel' of unet or of the module; the arg"),
        ("unet", {"base_channels": 4}, "no argument 'base_channels' of unet"),
        ("fpn", {"decoder_channels": [8]}, "no argument 'decoder_channels' of fpn"),
        ("unet_classic", {"depth": 3}, "no argument 'depth' of unet_classic"),
        ("unet", {"encoder_name": "timm-efficientnet-b0", "foo": 3}, "no argument 'foo' of unet"),
        (
            "unet",
            {"encoder_name": "tu-resnet18", "foo": 1},
            "unet with tu-resnet18: .*argument 'foo'",
        ),
    ],
)
def test_an_argument_that_a_network_does_not_have_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build_network(name, **options)


def test_arguments_that_smp_reads_by_their_old_names_are_taken():
    unet = build_network("unet", decoder_use_batchnorm=False)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in unet.decoder.modules())


def test_a_class_in_the_place_of_a_network_is_refused():
    with pytest.raises(InputError, match="A network is Linear; give the name of one, or a ready"):
        CoSegModule(torch.nn.Linear, torch.nn.Linear)


class InPlace(TinyNetwork):
    """Prepares its input in place, as `Normalize(inplace=True)` does."""

    def forward(self, images):
        return super().forward(images.sub_(0.5).div_(0.1))


@pytest.mark.parametrize("options", [{"step": "joint"}, {"selection": "eq1", "ramp_epochs": 0}])
def test_a_network_that_prepares_its_input_in_place_leaves_its_peers_alone(tmp_path, options):
    torch.manual_seed(0)
    module = CoSegModule(InPlace(), InPlace(), noise_level=0.5, **options)
    batch = torch.rand(6, 1, 16, 16), torch.randint(2, (6, 16, 16))
    given = batch[0].clone()
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(batch))
    a, b = module.eval()(batch[0])
    assert torch.equal(batch[0], given)
    assert torch.equal(b, module.net_b(given.clone()))
    assert torch.equal(a, module.net_a(given.clone()))


@pytest.mark.parametrize("name", ["unet", "unet_classic"])
@pytest.mark.parametrize("setting", ["classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1, "2", None, True, 2.5, float("inf")])
def test_a_number_of_channels_is_checked(name, setting, value):
    with pytest.raises(InputError, match=f"{setting}=.* must be a whole number of at least 1"):
        build_network(name, **{setting: value})


def test_unknown_encoders_of_timm_are_refused():
    for name in ("unet", "dpt"):
        with pytest.raises(InputError, match="There is no encoder 'tu-nosuch'; behind tu-"):
            build_network(name, encoder_name="tu-nosuch")
    with pytest.raises(InputError, match="encoder_name=18 must be the name of an encoder"):
        build_network("unet", encoder_name=18)


def test_what_an_architecture_refuses_is_told():
    with pytest.raises(InputError, match="unet with resnet18 cannot be built .*depth"):
        build_network("unet", encoder_depth=9)
    with pytest.raises(InputError, match="^encoder_weights=imagnet: there are no such weights"):
        build_network("unet", encoder_weights="imagnet")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.float16])
def test_images_of_another_type_are_told(bias, dtype):
    """torch says it in other words of a first convolution without a bias."""
    network = nn.Conv2d(1, 2, 3, padding=1, bias=bias)
    with pytest.raises(InputError, match=f"images are {dtype}, but Conv2d computes with"):
        any_size(network, torch.zeros(2, 1, 8, 8).to(dtype))


def test_a_last_batch_of_one_image_is_told_with_its_remedy():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Upsample((8, 8)))
    with pytest.raises(InputError, match="drop_last=True if it is the last batch"):
        any_size(network, torch.zeros(1, 1, 8, 8))
