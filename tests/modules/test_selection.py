"""Policies that choose samples, and one of somebody's own."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from coseg_lightning import CorruptionRanking, CoSegModule
from coseg_lightning.errors import InputError
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.selection import PerBatch, Selection, WholeSet, make_selection
from support import Halves, TinyNetwork, loader, one_batch, trainer_of


def batch_of(size=4, ids=True):
    masks = torch.zeros(size, 2, 2, dtype=torch.long)
    names = [str(n) for n in range(size)] if ids else None
    return Batch(torch.zeros(size, 1, 2, 2), masks, names)


def logits_by(*wrong):
    """Logits of a peer that contradicts the labels, all background, the more the higher."""
    values = torch.tensor(wrong).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return torch.cat([torch.zeros_like(values), values], dim=1)


def never():
    raise AssertionError("nothing needs to be predicted")


def test_per_batch_picks_what_each_peer_finds_least_corrupted():
    policy = PerBatch("eq1", ramp_epochs=0)
    a, b = logits_by(3.0, 1.0, 2.0, 0.0), logits_by(0.0, 1.0, 2.0, 3.0)
    picks_a, picks_b = policy(batch_of(), lambda: (a, b), 0.5)
    assert picks_a.tolist() == [3, 1]
    assert picks_b.tolist() == [0, 1]


def test_where_everything_is_kept_nothing_is_predicted():
    picks_a, picks_b = PerBatch("relative", ramp_epochs=0)(batch_of(), never, 1.0)
    assert picks_a.tolist() == picks_b.tolist() == [0, 1, 2, 3]


def test_the_rounding_error_is_carried_and_survives_a_checkpoint():
    policy = PerBatch("eq1", ramp_epochs=0)
    sizes = [policy.size(4, 0.7) for _ in range(10)]
    assert sum(sizes) == 28
    other = PerBatch("eq1", ramp_epochs=0)
    other.load_state_dict(policy.state_dict())
    assert other.carry == policy.carry


@pytest.mark.parametrize(
    ("ramp", "max_epochs", "rates"),
    [
        (0, 10, [0.6, 0.6]),
        (4, 10, [1.0, 0.9]),
        (None, 10, [1.0, 1 - 0.4 / 3]),
        (None, -1, [1.0, 0.96]),
    ],
)
def test_the_keep_rate_of_batches(ramp, max_epochs, rates):
    policy = PerBatch("eq1", ramp_epochs=ramp)
    assert [policy.keep_rate(0.4, epoch, max_epochs) for epoch in (0, 1)] == pytest.approx(rates)


def test_the_whole_set_keeps_what_a_ranking_does_not_exclude():
    policy = make_selection("whole_set", 0, 255)
    policy.begin_fit(ranked=True)
    assert policy.waits_for_ranking
    assert policy.keep_rate(0.5, 9, 10) == 1
    assert policy(batch_of(), never, 1.0)[0].tolist() == [0, 1, 2, 3]
    policy.exclude("01", "3", among="0123")
    assert not policy.waits_for_ranking
    assert policy.keep_rate(0.5, 9, 10) == 0.5
    picks_a, picks_b = policy(batch_of(), never, 0.5)
    assert picks_a.tolist() == [2, 3]
    assert picks_b.tolist() == [0, 1, 2]
    strangers = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), ["stranger"])
    with pytest.raises(InputError, match="must have the ids of the training dataset"):
        policy(strangers, never, 0.5)
    policy.begin_fit(ranked=False)
    assert policy.excluded_ids is None


def test_without_rankings_or_ids_it_goes_by_batch():
    policy = WholeSet(PerBatch("eq1", ramp_epochs=0))
    policy.begin_fit(ranked=False)
    predict = lambda: (logits_by(0.0, 1.0, 2.0, 3.0), logits_by(3.0, 2.0, 1.0, 0.0))  # noqa: E731
    assert policy(batch_of(), predict, 0.5)[0].tolist() == [0, 1]
    policy.begin_fit(ranked=True)
    with pytest.warns(UserWarning, match="no ids"):
        assert policy(batch_of(ids=False), predict, 0.5)[1].tolist() == [3, 2]
    policy.exclude("0123", "0123")  # the ranking comes all the same
    assert policy(batch_of(ids=False), predict, 0.5)[1].tolist() == [3, 2]
    assert policy.keep_rate(0.5, 9, 10) == 0.5


class Even(Selection):
    """Picks samples at even places, and looks at the rankings that it is given."""

    uses_rankings = True

    def __init__(self):
        self.rankings, self.rates = [], []

    def __call__(self, batch, predict, alpha):
        self.rates.append(alpha)
        places = torch.arange(0, len(batch.masks), 2)
        return places, places

    def keep_rate(self, noise_level, epoch, max_epochs):
        return 0.5

    def update(self, ranking):
        self.rankings.append(ranking)

    def state_dict(self):
        return {"rankings": len(self.rankings)}


def test_a_policy_of_ones_own(tmp_path):
    policy = Even()
    module = CoSegModule(TinyNetwork(), TinyNetwork(), noise_level=0.25, selection=policy)
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking])
    trainer.fit(module, DataLoader(Halves(), batch_size=4))
    assert len(policy.rankings) == 4  # after the 4th, 5th, 6th and 7th epoch
    assert all(len(found.ids) == 12 for found in policy.rankings)
    assert set(policy.rates) == {0.5}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["selection"] == {"policy": "Even", "state": {"rankings": 4}}
    assert "selection" not in checkpoint["hyper_parameters"]


def test_what_each_peer_learns_from_may_be_exchanged_in_another_way(tmp_path):
    class Kept(CoSegModule):
        @staticmethod
        def exchange(picks_a, picks_b):
            return picks_a, picks_b

    module = Kept(TinyNetwork(), TinyNetwork(), noise_level=0.5)
    lengths = {}

    def note(network, images):
        lengths["a" if network is module.net_a else "b"] = len(images[0])

    module.net_a.register_forward_pre_hook(note)
    module.net_b.register_forward_pre_hook(note)

    class Exclude(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.selection.exclude("2345", "012")

    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[Exclude()])
    trainer.fit(module, loader((*one_batch(), list("012345"))))
    assert lengths == {"a": 2, "b": 3}  # what each keeps itself


def test_settings_of_a_policy_of_ones_own_are_not_ignored():
    nets = TinyNetwork(), TinyNetwork()
    policy = PerBatch("eq1", 0)
    with pytest.raises(InputError, match="ignore_index=7 must be set in the PerBatch itself"):
        CoSegModule(*nets, selection=policy, ignore_index=7)
    with pytest.raises(InputError, match="ramp_epochs=5"):
        CoSegModule(*nets, selection=WholeSet(policy), ramp_epochs=5)
    own = WholeSet(PerBatch("eq1", 0, ignore_index=7))
    assert CoSegModule(*nets, selection=own, ignore_index=7).selection is own
