"""Pretrained weights of encoders, from files."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save_file

from coseg_lightning.errors import InputError
from coseg_lightning.networks import build_network, pretraining_statistics

# Whose feature extractors have other names than their networks, and some more.
OF_TIMM = ("tf_efficientnet_lite0", "resnet18", "convnext_atto", "efficientvit_b0", "densenet121")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def weights_of(encoder, folder):
    path = folder / f"{encoder}.safetensors"
    if not path.exists():
        torch.manual_seed(len(encoder))
        state = timm.create_model(encoder, pretrained=False).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("encoder", OF_TIMM)
def test_a_file_of_timm_is_loaded_as_timm_loads_it(encoder, channels, folder):
    path, name = weights_of(encoder, folder), f"tu-{encoder}"
    network = build_network(
        "unet", encoder_name=name, encoder_weights=str(path), in_channels=channels
    )
    expected = smp.Unet(
        name, encoder_weights=True, in_channels=channels, pretrained_cfg_overlay={"file": str(path)}
    )
    own, wanted = network.encoder.state_dict(), expected.encoder.state_dict()
    assert own.keys() == wanted.keys()
    for key, tensor in own.items():
        torch.testing.assert_close(tensor, wanted[key])


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "mit_b0", "densenet121"])
@pytest.mark.parametrize("within", ["", "net_a.", "module.model."])
def test_the_encoder_is_found_in_a_whole_networks_state(encoder, within, folder):
    given = smp.Unet(encoder, encoder_weights=None)
    path = folder / "network.pth"
    state = {within + name: tensor for name, tensor in given.state_dict().items()}
    torch.save({"state_dict": state}, path)
    network = build_network("fpn", encoder_name=encoder, encoder_weights=str(path))
    for one, other in zip(network.encoder.parameters(), given.encoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_of_two_peers_the_first_ones_encoder_is_taken(folder):
    peers = {name: smp.Unet("resnet18", encoder_weights=None) for name in ("net_a", "net_b")}
    path = folder / "peers.ckpt"
    state = {f"{n}.{k}": v for n, net in peers.items() for k, v in net.state_dict().items()}
    torch.save({"state_dict": state}, path)
    with pytest.warns(UserWarning, match="holds several encoders, .*net.a.encoder and .*net.b"):
        network = build_network("unet", encoder_name="resnet18", encoder_weights=str(path))
    assert torch.equal(network.encoder.conv1.weight, peers["net_a"].encoder.conv1.weight)


@pytest.mark.parametrize(
    "within",
    [
        lambda state: {"model_state_dict": state, "optimizer": {"state": {0: torch.ones(1)}}},
        lambda state: {"teacher": {f"module._orig_mod.backbone.{k}": v for k, v in state.items()}},
        lambda state: {f"a.b.c.d.e.{k}": v for k, v in state.items()},
        lambda state: {k: v.half() for k, v in state.items()} | {"epoch": 3},
        lambda state: {"encoder_q": state, "encoder_k": {k: v + 1 for k, v in state.items()}},
    ],
)
@pytest.mark.filterwarnings("ignore:.*holds several encoders")
def test_the_encoder_is_found_in_checkpoints_of_other_projects(folder, within):
    given = smp.encoders.get_encoder("resnet18", weights=None)
    torch.save(within(given.state_dict()), folder / "other.ckpt")
    network = build_network("unet", encoder_weights=str(folder / "other.ckpt"))
    torch.testing.assert_close(
        network.encoder.conv1.weight, given.conv1.weight, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("encoder", "deeper"),
    [
        ("resnet18", "resnet34"),
        ("tu-resnet18", "resnet34"),
        ("tu-efficientnet_b0", "efficientnet_b1"),
        ("densenet121", "densenet169"),
    ],
)
def test_weights_of_a_deeper_network_are_refused(folder, encoder, deeper):
    """Their first blocks alone are an encoder that nobody has trained."""
    path = weights_of(deeper, folder)
    state = timm.create_model(encoder.removeprefix("tu-")).state_dict()
    wider = timm.create_model(deeper).state_dict()
    save_file({name: wider[name] for name in wider if name not in state} | state, path)
    with pytest.raises(InputError, match="so it is of a deeper network than the encoder"):
        build_network("unet", encoder_name=encoder, encoder_weights=str(path))


def test_an_encoder_may_be_shallower_than_the_network_of_the_file(folder):
    for encoder in (*OF_TIMM, "poolformer_s12"):
        name, options = f"tu-{encoder}", {"encoder_depth": 3, "decoder_channels": (8, 8, 8)}
        path = str(weights_of(encoder, folder))
        network = build_network("unet", encoder_name=name, encoder_weights=path, **options)
        saved = {tuple(value.shape): value for value in load_file(path).values()}
        first = next(iter(network.encoder.parameters())).detach()
        assert torch.equal(first, saved[tuple(first.shape)])


@pytest.mark.parametrize("given", [False, True, "None", "random", ["a.pt"], 3])
def test_values_that_are_no_weights_are_refused(given):
    with pytest.raises(InputError, match=r"must be a file, or the name .* null for random weights"):
        build_network("unet", encoder_name="tu-resnet18", encoder_weights=given)


def test_the_encoders_own_state_is_loaded_too(folder):
    given = smp.encoders.get_encoder("resnet18", weights=None)
    path = folder / "encoder.pt"
    torch.save(given.state_dict(), path)
    for name in ("unet", "ce_net"):
        network = build_network(name, encoder_name="resnet18", encoder_weights=str(path))
        assert torch.equal(network.encoder.conv1.weight, given.conv1.weight)


def test_weights_that_do_not_fit_are_refused(folder):
    def build(path, encoder="tu-resnet18"):
        build_network("unet", encoder_name=encoder, encoder_weights=str(path))

    with pytest.raises(InputError, match=r"nowhere.pth: there is no such file"):
        build("nowhere.pth")
    for path in ("lite0.safetensor", "weights/lite0"):  # or else smp would download timm's own
        with pytest.raises(InputError, match="there is no such file"):
            build(path)
    with pytest.raises(InputError, match=r"has no model.conv_stem.weight, which the encoder needs"):
        build(weights_of("resnet18", folder), "tu-tf_efficientnet_lite0")
    state = timm.create_model("resnet18").state_dict()
    state["layer4.1.conv2.weight"] = torch.zeros(512, 512, 1, 1)
    save_file(state, folder / "other.safetensors")
    with pytest.raises(InputError, match=r"of the shape \(512, 512, 1, 1\), but the encoder needs"):
        build(folder / "other.safetensors")
    del state["layer4.1.conv2.weight"]
    save_file(state, folder / "less.safetensors")
    with pytest.raises(InputError, match=r"has no model.layer4.1.conv2.weight"):
        build(folder / "less.safetensors")
    for tensor, problem in (
        (torch.ones(512, dtype=torch.int8), r"whole numbers \(torch.int8\)"),
        (torch.full((512,), float("nan")), "values that are not finite"),
    ):
        state = timm.create_model("resnet18").state_dict() | {"layer4.1.bn2.weight": tensor}
        torch.save(state, folder / "values.pt")
        with pytest.raises(InputError, match=f"has {problem} in model.layer4.1.bn2.weight"):
            build(folder / "values.pt")
    with pytest.raises(InputError, match="is a folder; give a file of weights in it"):
        build(folder / ".")
    (folder / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"cannot be read as weights \(a state dict"):
        build(folder / "broken.safetensors")


def test_no_code_in_a_file_is_run(folder):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    torch.save({"conv1.weight": Harm()}, folder / "harm.pth")
    torch.save(smp.encoders.get_encoder("resnet18", weights=None), folder / "module.pth")
    for name in ("harm.pth", "module.pth"):
        with pytest.raises(
            InputError, match="holds other objects than weights, which may run code"
        ):
            build_network("unet", encoder_weights=str(folder / name))


def test_the_format_is_that_of_the_content(folder):
    state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    save_file(state, folder / "named.pt")
    torch.save(state, folder / "named.safetensors")
    for name in ("named.pt", "named.safetensors"):
        network = build_network("unet", encoder_weights=str(folder / name))
        assert torch.equal(network.encoder.conv1.weight, state["conv1.weight"])


def test_a_file_without_a_dot_or_slash_is_not_downloaded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "mine").write_bytes(b"")
    with pytest.raises(InputError, match="for the file, write ./mine"):
        build_network("unet", encoder_name="tu-resnet18", encoder_weights="mine")


def test_weights_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"imagnet: there are no such weights of resnet18"):
        build_network("unet", encoder_weights="imagnet")

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", offline)
    for name in ("unet", "ce_net"):
        with pytest.raises(InputError, match="cannot be downloaded; give a file"):
            build_network(name, encoder_name="resnet18", encoder_weights="imagenet")


def test_images_are_normalised_as_in_pretraining():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert pretraining_statistics("tu-resnet18", 3) == (mean, std)
    assert pretraining_statistics("resnet18", 3) == (mean, std)
    assert pretraining_statistics("tu-vit_tiny_patch16_224", 3) == ((0.5,) * 3, (0.5,) * 3)
    assert pretraining_statistics("xception", 3) == ((0.5,) * 3, (0.5,) * 3)
    assert pretraining_statistics("resnet18", 4)[0] == (*mean, mean[0])
    ((grey,), _) = pretraining_statistics("resnet18", 1)
    assert grey == pytest.approx(0.449)


def test_one_channel_sees_what_three_equal_ones_would(folder):
    """The first convolution and the normalisation are adapted alike."""
    path = str(weights_of("resnet18", folder))
    grey = torch.rand(1, 1, 32, 32)
    features = []
    for channels in (1, 3):
        network = build_network(
            "unet", encoder_name="tu-resnet18", encoder_weights=path, in_channels=channels
        ).eval()
        _, std = (torch.tensor(v) for v in pretraining_statistics("tu-resnet18", channels))
        images = grey.expand(1, channels, 32, 32) / std[None, :, None, None]
        features.append(network.encoder(images)[1])
    torch.testing.assert_close(*features, rtol=0.05, atol=0.05)
