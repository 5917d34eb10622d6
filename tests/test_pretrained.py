"""Pretrained encoders, and the precision, in the app."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from coseg_lightning.app.build import (
    make_data,
    make_peers,
    make_trainer,
    normalization_of,
    precision_of,
)
from coseg_lightning.app.rebuild import normalization_before
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.networks import build_network
from coseg_lightning.networks.build import save_network
from coseg_lightning.predict import predict
from coseg_lightning.run import depend_on_data_alone, run
from support import PHANTOM, SHORT, composed, rows_of

ENCODER = "tu-mobilenetv3_small_050"  # a small one: a run with a ResNet-18 takes a gigabyte
UNET = ["model=unet", f"model.encoder_name={ENCODER}"]
COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a network whose encoder could be pretrained."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    network = build_network("unet", encoder_name=ENCODER, in_channels=3)
    save_network(network, folder)
    return folder / "model.safetensors"


def test_peers_start_from_one_encoder_and_differ(weights):
    peers = make_peers(composed(*UNET, f"model.encoder_weights={weights}"))
    encoders = [net.encoder.state_dict() for net in (peers.net_a, peers.net_b)]
    assert all(torch.equal(*pair) for pair in zip(*(e.values() for e in encoders), strict=True))
    decoders = [next(iter(net.decoder.parameters())) for net in (peers.net_a, peers.net_b)]
    assert not torch.equal(*decoders)


def test_images_are_normalised_as_the_encoder_knows_them(weights):
    def of(*settings):
        return normalization_of(composed(*settings, "data.in_channels=3"))

    assert of(*UNET) is None
    assert of(*UNET, f"model.encoder_weights={weights}") == COLOUR
    assert of("model=dpt", "model.encoder_weights=imagenet") == ((0.5,) * 3, (0.5,) * 3)
    assert of("model=ce_net", "model.encoder_weights=imagenet") == COLOUR
    pretrained = [*UNET, f"model.encoder_weights={weights}"]
    assert of(*pretrained, "data.normalization=image") is None
    other = ["model@peer_b=fpn", "peer_b.encoder_weights=null"]
    assert of(*pretrained, *other) == COLOUR  # both peers get the same images
    assert of(*UNET, "model@peer_b=dpt", "peer_b.encoder_weights=imagenet") == ((0.5,) * 3,) * 2
    lite = ["model=unet", "model.encoder_name=timm-tf_efficientnet_lite0"]
    assert of(*lite, "model.encoder_weights=imagenet") == ((0.5,) * 3, (0.5,) * 3)
    advprop = ["model=unet", "model.encoder_name=efficientnet-b0", "model.encoder_weights=advprop"]
    assert of(*advprop) == ((0.5,) * 3, (0.5,) * 3)
    assert of(*UNET, "data.normalization=[[0.1,0.2,0.3],[1,2,3]]") == ((0.1, 0.2, 0.3), (1, 2, 3))
    before = composed(*pretrained)
    del before.data.normalization  # of a run of an earlier version
    assert normalization_of(before) is None


@pytest.mark.parametrize("given", ["encoder", "[0.5,0.5]", "[[0.5],[a]]", "null", "2"])
def test_a_normalisation_that_is_none_is_refused(given):
    with pytest.raises(InputError, match="must be auto, image, training, or the mean"):
        normalization_of(composed(f"data.normalization={given}"))


def test_a_normalisation_of_other_channels_is_refused(tmp_path):
    with pytest.raises(InputError, match="for each of in_channels=1"):
        make_data(composed(*PHANTOM, "data.normalization=[[0.5,0.5],[1,1]]"), tmp_path)


@pytest.mark.slow
def test_a_run_from_pretrained_weights(tmp_path, weights, monkeypatch):
    """It predicts and exports with the same normalisation, without the file of the weights."""
    monkeypatch.chdir(weights.parent)
    settings = [*UNET, *SHORT, *PHANTOM, "noise=type1", "data.in_channels=3"]
    settings += ["model.encoder_weights=model.safetensors", "trainer.max_epochs=1"]
    run(composed(*settings), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["model"]["encoder_weights"] == str(weights)
    assert config["data"]["normalization"] == list(map(list, COLOUR))
    monkeypatch.chdir(tmp_path)
    weights.rename(weights.with_suffix(".gone"))
    try:
        path, _ = export(tmp_path / "run", format="torchscript")
        data = make_data(composed(*settings), tmp_path)
        sample = data.samples("test")[0]
        images = tmp_path / "images"
        images.mkdir()
        Image.fromarray(data.samples("test").dataset.image(0)).save(images / "a.png")
        predict(tmp_path / "run", images, tmp_path / "out", probabilities=True)
    finally:
        weights.with_suffix(".gone").rename(weights)
    told = json.loads((path.parent / f"{path.name}.json").read_text())["preparation"]
    assert "subtract [0.485, 0.456, 0.406] from the channels" in told
    found = np.load(tmp_path / "out" / "probabilities" / "a.npy")
    expected = torch.jit.load(str(path))(sample["image"][None])
    side = data.samples("test").dataset.image(0).shape[0]
    expected = torch.nn.functional.interpolate(
        expected, (side, side), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(found, expected[0].detach().numpy(), atol=2e-3)


def test_the_precision_is_bfloat16_where_it_is_native(monkeypatch, tmp_path):
    cfg = composed("trainer.accelerator=cpu")
    assert cfg.trainer.precision == "auto"
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert precision_of(cfg.trainer) == expected
        trainer = make_trainer(cfg, logger=False, default_root_dir=tmp_path)
        assert trainer.precision == expected
    depend_on_data_alone(cfg)
    assert cfg.trainer.precision == "32-true"  # settled, for a run that is resumed elsewhere
    for given, used in (("16-mixed", "bf16-mixed"), (16, "bf16-mixed"), (None, "32-true")):
        cfg.trainer.precision = given
        assert precision_of(cfg.trainer) == used
        trainer = pl.Trainer(accelerator="cpu", precision=given, logger=False)
        assert trainer.precision == used  # Lightning does the same
    assert precision_of(composed("trainer.precision=bf16-true").trainer) == "bf16-true"


@pytest.mark.slow
def test_a_file_of_weights_may_move_but_not_change(tmp_path, weights):
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    here.write_bytes(weights.read_bytes())
    settings = [*UNET, *SHORT, *PHANTOM, "noise=type1", "nol=0.3", "data.in_channels=3"]
    settings += ["trainer.max_epochs=1", "method.confidence=0", "rehearse=false"]
    folder = tmp_path / "run"

    def go_on(path):
        given = [*settings, f"model.encoder_weights={path}", f"resume={folder}"]
        return run(composed(*given), folder)

    first = run(composed(*settings, f"model.encoder_weights={here}", f"resume={folder}"), folder)
    here.rename(there)
    (folder / "report.html").unlink()
    with pytest.raises(InputError, match="there is no such file; give the file where it lies now"):
        go_on(here)
    assert go_on(there) == first
    there.write_bytes(there.read_bytes() + b" ")
    (folder / "report.html").unlink()
    with pytest.raises(InputError, match=r"another run, which differs in weights_files.model="):
        go_on(there)
    there.unlink()
    review = tmp_path / "review.csv"
    (sample_id,) = [row["id"] for row in rows_of(folder / "scores.csv")][:1]
    review.write_text(f"id,decision\n{sample_id},ok\n")
    reviewed = composed(f"resume={folder}", f"review={review}", "stages=[retraining]")
    assert run(reviewed, tmp_path / "reviewed")["correction"]["decided"] == 1


def test_a_file_is_not_given_to_networks_that_would_download(weights):
    given = ["model=custom", "model._target_=segmentation_models_pytorch.Unet"]
    cfg = composed(*given, f"+model.encoder_weights={weights}")
    with pytest.raises(InputError, match="reads no file, and would download weights; give model="):
        depend_on_data_alone(cfg)


def test_an_argument_of_somebody_elses_network_is_left_alone(tmp_path):
    for given in ("false", "random", str(tmp_path)):
        cfg = composed("model=custom", "model._target_=my.Net", f"+model.encoder_weights={given}")
        before = cfg.model.encoder_weights
        depend_on_data_alone(cfg)
        assert cfg.model.encoder_weights == before


def test_a_recorded_auto_means_what_it_meant(tmp_path, weights):
    recorded = composed(*UNET, f"model.encoder_weights={weights}", "data.in_channels=3")
    assert normalization_before(recorded) == list(map(list, COLOUR))
    two = ["model@peer_b=dpt", "peer_b.encoder_weights=imagenet"]
    recorded = composed(*UNET, f"model.encoder_weights={weights}", *two, "data.in_channels=3")
    assert normalization_before(recorded) == "image"
