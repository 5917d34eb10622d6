"""The running average of the weights."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging

from coseg_lightning import CorruptionRanking
from coseg_lightning.callbacks.averaged_weights import AveragedWeights, averaged
from coseg_lightning.errors import InputError
from support import data_of, module_of, trainer_of


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
