"""The running average of the weights."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)

from coseg_lightning import CorruptionRanking, CoSegModule, SegmentationModule
from coseg_lightning.callbacks.averaged_weights import AveragedWeights, averaged
from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat
from support import Halves, TinyNetwork, data_of, loader, module_of, one_batch, trainer_of


def peers():
    return CoSegModule(TinyNetwork(), TinyNetwork(), lr=0.03)


def network():
    return SegmentationModule(TinyNetwork(), lr=0.03)


class Steps(pl.Callback):
    """Keeps the weights after every step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({k: v.clone() for k, v in pl_module.state_dict().items()})


def expected(weights, share):
    """Average with a weight of 1 / (1 + share t) for step t."""
    mean = weights[0]
    for t, now in enumerate(weights[1:], start=1):
        mean = {name: mean[name] + (now[name] - mean[name]) / (1 + share * t) for name in mean}
    return mean


@pytest.mark.parametrize("share", [0.1, 1])
def test_training_ends_with_the_average(tmp_path, share):
    steps, module = Steps(), module_of()
    trainer = trainer_of(tmp_path, callbacks=[AveragedWeights(share), steps], max_epochs=3)
    trainer.fit(module, data_of(tmp_path))
    mean = expected(steps.weights, share)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, mean[name])
        else:
            assert value == steps.weights[-1][name]
    assert not torch.equal(
        module.net_a.layers[0].weight, steps.weights[-1]["net_a.layers.0.weight"]
    )


def test_a_share_of_one_weighs_all_steps_alike():
    weights = [{"w": torch.tensor(float(value))} for value in (1, 2, 6)]
    assert expected(weights, 1)["w"] == pytest.approx(3)


@pytest.mark.parametrize("make", [AveragedWeights, EMAWeightAveraging])
def test_within_training_the_average_is_there_for_a_while(tmp_path, make):
    unchanged = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            before = pl_module.net_a.layers[0].weight.clone()
            with averaged(trainer, pl_module):
                unchanged.append(torch.equal(before, pl_module.net_a.layers[0].weight))
            assert torch.equal(before, pl_module.net_a.layers[0].weight)

    callbacks = [make(), Look()]
    trainer_of(tmp_path, callbacks=callbacks, max_epochs=2).fit(module_of(), data_of(tmp_path))
    assert unchanged == [True, False, False, False]  # the average of a single step is that step


@pytest.mark.parametrize("first", [True, False])
def test_the_ranking_is_of_the_averaged_peers(tmp_path, first):
    module = module_of()
    ranking = CorruptionRanking(tmp_path / "scores.csv", epochs=1, score="mean")
    callbacks = [AveragedWeights(), ranking][:: 1 if first else -1]
    trainer_of(tmp_path, callbacks=callbacks).fit(module, data_of(tmp_path))
    again = CorruptionRanking(tmp_path / "again.csv", epochs=1, score="mean")
    module.lr = 0.0
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 0.0
    data = data_of(tmp_path)
    trainer_of(tmp_path, callbacks=[again], max_epochs=1).fit(module, data)
    assert ranking.ranking.score == pytest.approx(again.ranking.score, rel=1e-5)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_the_share_is_checked(share):
    with pytest.raises(InputError, match=f"share={share}"):
        AveragedWeights(share)


@pytest.mark.parametrize("make", [peers, network])
def test_a_callback_that_is_used_again_begins_a_new_average(tmp_path, make):
    """As with a list of callbacks for all folds."""
    average = AveragedWeights()
    trainer_of(tmp_path, callbacks=[average], max_epochs=3).fit(make(), loader(one_batch()))
    module = make()
    before = [weight.clone() for weight in module.parameters()]
    trainer_of(tmp_path, callbacks=[average], max_epochs=2).fit(module, loader(one_batch()))
    assert not any(map(torch.equal, before, module.parameters()))
    assert compat.averaged_steps(average) == 2


def test_anothers_average_of_no_step_is_told(tmp_path):
    average = EMAWeightAveraging(update_starting_at_step=1000)
    with pytest.warns(UserWarning, match="EMAWeightAveraging averaged no step of this fit"):
        trainer_of(tmp_path, callbacks=[average]).fit(peers(), loader(one_batch()))


@pytest.mark.parametrize("other", [EMAWeightAveraging, partial(StochasticWeightAveraging, 0.1)])
@pytest.mark.parametrize("first", [True, False])
def test_two_averages_are_refused(tmp_path, other, first):
    callbacks = [AveragedWeights(), other()][:: 1 if first else -1]
    with pytest.raises(InputError, match="would both exchange the weights for averages"):
        trainer_of(tmp_path, callbacks=callbacks).fit(network(), loader(one_batch()))


def test_an_average_of_pruned_weights_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[AveragedWeights(), ModelPruning("l1_unstructured")])
    with pytest.raises(InputError, match=r"ModelPruning .* by recipe=Recipe\(averaging=0\)"):
        trainer.fit(network(), loader(one_batch()))
    assert trainer.global_step == 0


def normed(norm):
    torch.manual_seed(1)
    net = TinyNetwork()
    net.layers[0] = norm(net.layers[0])
    return SegmentationModule(net, lr=0.1)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_network_that_has_no_copy_is_named_with_its_remedy(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[AveragedWeights()])
    with pytest.raises(
        InputError, match=r"Conv2d.weight is computed .* of torch.nn.utils.parametrizations"
    ):
        trainer.fit(normed(torch.nn.utils.weight_norm), loader(one_batch()))
    module = normed(torch.nn.utils.parametrizations.weight_norm)
    trainer_of(tmp_path, callbacks=[AveragedWeights()]).fit(module, loader(one_batch()))


@pytest.mark.parametrize(
    "norm", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm]
)
def test_vectors_of_spectral_norm_keep_their_unit_length(tmp_path, norm):
    module, steps = normed(norm), Steps()
    callbacks = [AveragedWeights(1.0), steps]
    trainer_of(tmp_path, callbacks=callbacks).fit(module, loader(*[one_batch() for _ in range(4)]))
    vectors = {n: b for n, b in module.named_buffers() if n.endswith(("_u", "_v"))}
    assert len(vectors) == 2
    for name, vector in vectors.items():
        assert vector.norm() == pytest.approx(1)
        torch.testing.assert_close(vector, steps.weights[-1][name])


class Complex(TinyNetwork):
    """Has a weight of complex numbers, as Fourier layers do."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))

    def forward(self, images):
        return super().forward(images) * (self.weight.real + self.weight.imag)


def test_complex_weights_are_averaged_too(tmp_path):
    steps, module = Steps(), SegmentationModule(Complex(), lr=0.1)
    callbacks = [AveragedWeights(1.0), steps]
    trainer_of(tmp_path, callbacks=callbacks, max_epochs=4).fit(module, loader(one_batch()))
    found = torch.stack([weights["net.weight"] for weights in steps.weights])
    torch.testing.assert_close(module.net.weight.detach(), found.mean(dim=0))


def averaging_trainer(tmp_path, **checkpoints):
    best = ModelCheckpoint(tmp_path, monitor="val/dice", mode="max", **checkpoints)
    callbacks = [AveragedWeights(), best]
    return trainer_of(tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=True), best


def halves():
    return torch.utils.data.DataLoader(Halves(), batch_size=4)


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_best_checkpoint_is_tested_as_it_was_validated(tmp_path, weights_only):
    trainer, best = averaging_trainer(tmp_path, save_weights_only=weights_only)
    torch.manual_seed(0)
    module = SegmentationModule(TinyNetwork(), lr=0.1)
    trainer.fit(module, halves(), halves())
    (tested,) = trainer.test(module, halves(), ckpt_path="best", verbose=False, weights_only=True)
    assert 0.1 < float(best.best_model_score) == pytest.approx(tested["test/dice"], abs=1e-6)
    saved = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, saved[name])


def test_another_module_is_validated_as_it_is(tmp_path):
    trainer, _ = averaging_trainer(tmp_path)
    trainer.fit(SegmentationModule(TinyNetwork(), lr=0.1), halves(), halves())
    other = SegmentationModule(TinyNetwork())
    torch.nn.init.zeros_(other.net.layers[-1].weight)
    (found,) = trainer.validate(other, halves(), verbose=False)
    (expected,) = trainer_of(tmp_path).validate(other, halves(), verbose=False)
    assert found == expected


def test_bare_checkpoints_of_other_modules_are_told(tmp_path):
    trainer, _ = averaging_trainer(tmp_path, save_weights_only=True)
    with pytest.warns(UserWarning, match="save_weights_only=True.* saves the last step's weights"):
        trainer.callbacks[0].setup(trainer, pl.LightningModule(), "fit")
