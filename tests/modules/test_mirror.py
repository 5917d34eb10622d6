"""A network that is its own peer: it learns alone, and judges by its view of mirrored images."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from coseg_lightning import AveragedWeights, CorruptionRanking, CoSegModule
from coseg_lightning.app.build import make_peers
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import corruption_score, segmentation_loss
from coseg_lightning.methods.jocor import JoCoR
from coseg_lightning.networks.build import build_network
from coseg_lightning.networks.mirror import Mirror
from coseg_lightning.predict import predict
from coseg_lightning.run import run
from support import (
    PHANTOM,
    SMALL,
    TinyNetwork,
    command,
    composed,
    data_of,
    loader,
    one_batch,
    run_of,
    trainer_of,
)


def alone(**options):
    torch.manual_seed(1)
    return CoSegModule(TinyNetwork(), "mirror", **{"noise_level": 0.5, **options})


class OwnExchange(CoSegModule):
    @staticmethod
    def exchange(picks_a, picks_b):
        return picks_a, picks_b


def test_a_mirror_sees_mirrored_images_and_has_no_weights():
    module = alone().eval()
    images, _ = one_batch()
    a, b = module(images)
    assert torch.equal(b, module.net_a(images.flip(-1)).flip(-1))
    assert not torch.equal(a, b)
    assert not list(module.net_b.parameters())
    assert not [name for name in module.state_dict() if name.startswith("net_b.")]
    copied = copy.deepcopy(module)
    for weight in copied.net_a.parameters():
        weight.data.zero_()
    assert not copied(images)[1].any()  # the mirror of the copy, not of the original


def test_a_mirror_by_itself_moves_with_its_network():
    network = TinyNetwork()
    mirror = Mirror(network).eval().to(torch.float64)
    assert not network.training
    images = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(mirror(images), network(images.flip(-1)).flip(-1))


def test_it_learns_as_a_plain_network_from_its_own_picks(tmp_path):
    module = alone(selection="eq1", ramp_epochs=0)
    net, (images, masks) = copy.deepcopy(module.net_a), one_batch()
    picks = corruption_score(net.eval()(images), masks).argsort()[:3]
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, loader((images, masks)))
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-3, weight_decay=2e-5)
    segmentation_loss(net(images[picks]), masks[picks]).mean().backward()
    optimizer.step()
    torch.testing.assert_close(module.net_a.state_dict(), net.state_dict())
    (group,) = trainer.optimizers[0].param_groups
    assert group["name"] == "net_a"
    logged = set(trainer.logged_metrics)
    assert "train/loss_a" in logged
    assert not logged & {"train/loss_b", "train/agreement"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    ],
)
def test_both_views_are_ranked(tmp_path, options):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    callbacks = [ranking, AveragedWeights()]
    trainer_of(tmp_path, max_epochs=4, callbacks=callbacks, **options).fit(
        alone(), data_of(tmp_path)
    )
    scores = [ranking.ranking.score_a, ranking.ranking.score_b]
    assert [len(part) for part in scores] == [11, 11]
    assert (scores[0] != scores[1]).any()


def test_a_resumed_fit_ends_with_the_same_weights(tmp_path):
    data, options = data_of(tmp_path), {"selection": "eq1", "ramp_epochs": 1}
    whole, half = alone(**options), alone(**options)
    trainer_of(tmp_path, max_epochs=4).fit(whole, data)
    first = trainer_of(tmp_path, max_epochs=2)
    first.fit(half, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = CoSegModule.load_from_checkpoint(tmp_path / "half.ckpt", net_a=TinyNetwork())
    assert isinstance(resumed.net_b, Mirror)  # its name is a hyperparameter
    trainer_of(tmp_path, max_epochs=4).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_network_that_is_replaced_has_another_mirror(tmp_path):
    module = alone()
    module.net_a = torch.compile(module.net_a, backend="eager")  # it has the same weights
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))
    module.net_a = TinyNetwork()
    with pytest.raises(InputError, match="net_a was replaced, but net_b mirrors the network befo"):
        trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoSegModule(TinyNetwork(), "mirror", step="joint"), "trains two networks"),
        (lambda: JoCoR(TinyNetwork(), "mirror"), "JoCoR trains two networks together"),
        (lambda: CoSegModule(TinyNetwork(), "mirror", lr=(1e-3, 1e-2)), "has two rates"),
        (lambda: CoSegModule(Mirror(), "mirror"), "A mirror is no network, but a peer"),
        (lambda: CoSegModule(TinyNetwork(), Mirror()), "A mirror is no network, but a peer"),
        (lambda: CoSegModule(TinyNetwork(), Mirror(TinyNetwork())), "A mirror is no network"),
        (lambda: OwnExchange(TinyNetwork(), "mirror"), "OwnExchange trains two networks together"),
        (lambda: CoSegModule("mirror"), "network 'mirror'"),
        (lambda: Mirror()(one_batch()[0]), "A mirror is no network, but a peer of one"),
        (lambda: CoSegModule(TinyNetwork(), "mirror", encoder_name="resnet18"), "encoder_name"),
    ],
)
def test_what_a_mirror_cannot_do_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_first_peer_has_the_same_weights_alone_as_with_another():
    given = ["model=unet_classic", "model.base_channels=2"]
    states = []
    for more in ([], ["model@peer_b=mirror"]):
        torch.manual_seed(3)
        states.append(make_peers(composed(*given, *more)).net_a.state_dict())
    torch.manual_seed(3)
    network = build_network("unet_classic", in_channels=1, base_channels=2)
    for state in states:
        torch.testing.assert_close(state, network.state_dict(), rtol=0, atol=0)


def test_the_report_of_a_project_says_that_one_network_learnt_alone(tmp_path):
    def peers():
        return CoSegModule(TinyNetwork(width=8), "mirror", noise_level=0.25, lr=0.03)

    run_of(tmp_path, data_of(tmp_path), peers=peers)
    page = (tmp_path / "run/report.html").read_text()
    assert "peer 2 is the same network on mirrored images" in page
    assert "nearly identical" not in page  # the warning of two networks that became one


@pytest.mark.slow
def test_a_run_of_one_network_and_all_that_follows(tmp_path):
    settings = [*SMALL, *PHANTOM, "model@peer_b=mirror", "method.confidence=0"]
    summary = run(composed(*settings, "+trainer.gradient_clip_val=1"), tmp_path / "run")
    assert summary["correction"]["corrected"] > 0
    peers = torch.load(tmp_path / "run/robust_training/last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in peers} == {"net_a"}
    page = (tmp_path / "run/report.html").read_text()
    assert "peer 2 is the same network on mirrored images" in page
    assert "nearly identical" not in page
    finished = AppRun(tmp_path / "run", trust=True)
    image = torch.rand(1, 1, 32, 32)
    mirrored = finished.peer("net_a")(image.flip(-1)).flip(-1)
    assert torch.equal(finished.peer("net_b")(image), mirrored)
    (tmp_path / "images").mkdir()
    Image.fromarray((255 * image[0, 0]).byte().numpy()).save(tmp_path / "images/a.png")
    out = tmp_path / "out"
    assert predict(tmp_path / "run", tmp_path / "images", out, trust=True, uncertainty=True) == 1
    assert np.asarray(Image.open(out / "uncertainty/a.png")).any()
    (tmp_path / "review.csv").write_text("id,decision\ntrain_000,take\ntrain_001,ok\n")
    again = ["review=" + str(tmp_path / "review.csv"), f"resume={tmp_path}/run", "rounds=review"]
    result = command("run", *again, "trust=true", "+trainer.enable_progress_bar=false")
    assert result.returncode == 0, result.stderr
