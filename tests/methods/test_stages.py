"""All stages from Python, with a datamodule of another project."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from coseg_lightning import AveragedWeights, LabelStore, SegmentationModule, run_stages
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.samples import EpochSampler
from coseg_lightning.errors import InputError
from coseg_lightning.methods.filter import PlainPeers
from coseg_lightning.methods.transition import LabelTransition
from coseg_lightning.modules.loaders import over
from coseg_lightning.modules.stretched import StretchedSchedule
from coseg_lightning.ranking.guard import CorrectionGuard
from coseg_lightning.run import run
from coseg_lightning.runs.wrapped import wrap_datamodule
from support import (
    PHANTOM,
    SMALL,
    Halves,
    OwnData,
    OwnTested,
    Squares,
    TinyNetwork,
    composed,
    run_of,
)


@pytest.mark.slow
def test_a_trainer_that_brings_its_own_epochs_retrains_for_fewer(tmp_path):
    def trainer(**stage_options):
        options = {"enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(max_epochs=4, accelerator="cpu", **options, **stage_options)

    summary = run_of(tmp_path, OwnTested(), trainer=trainer, retraining_share=0.5)
    assert [summary["stages"][name]["epochs"] for name in ("robust_training", "retraining")] == [
        4,
        2,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ids", [True, False])
def test_a_datamodule_of_ones_own_goes_through_all_stages(tmp_path, ids):
    data = OwnTested(ids=ids)
    summary = run_of(tmp_path, data, confidence=0.0)
    assert set(summary["stages"]) == {"robust_training", "retraining", "test"}
    layer = LabelStore(tmp_path / "run" / "labels")
    names = {f"h{i}" if ids else str(i) for i in range(3)}
    assert set(layer.ids) == names  # the three wrong masks
    assert summary["correction"]["corrected"] == 3
    assert summary["test"]["dice"] > 0.9
    # Each stage has its own copy of what setup makes; the given datamodule is unchanged.
    assert not hasattr(data, "train")
    assert "transfer" in data.calls  # the datamodule's own hooks are called
    assert data.trainer is None


@pytest.mark.slow
def test_the_corrected_masks_are_what_retraining_sees(tmp_path):
    data = OwnTested()
    run_of(tmp_path, data, confidence=0.0)
    again = wrap_datamodule(data)
    again.setup("fit")
    again.add_label_layer(tmp_path / "run" / "labels")
    masks_by_id = {}
    for _, masks, ids in again.train_dataloader():
        masks_by_id |= dict(zip(ids, masks, strict=True))
    assert len(masks_by_id) == 12
    right = Halves(wrong=0)[0][1]
    assert all((mask == right).float().mean() > 0.95 for mask in masks_by_id.values())


@pytest.mark.slow
@pytest.mark.parametrize("corrected", [True, False])
def test_a_robust_loss_retrains_on_corrected_labels_alone(tmp_path, monkeypatch, corrected):
    monkeypatch.setattr(CorrectionGuard, "peers_know_better", corrected)
    summary = run_of(tmp_path, OwnTested(), retraining_loss="symmetric_cross_entropy")
    assert summary["correction"]["left_alone"] is not corrected
    checkpoint = torch.load(tmp_path / "run" / "retraining" / "last.ckpt", weights_only=True)
    loss = "symmetric_cross_entropy" if corrected else "cross_entropy"
    assert checkpoint["hyper_parameters"]["pixel_loss"] == loss


@pytest.mark.slow
def test_a_schedule_spans_a_training_that_is_longer_than_the_trainers_own(tmp_path, monkeypatch):
    monkeypatch.setattr(CorrectionGuard, "peers_know_better", False)

    def network():
        return SegmentationModule(TinyNetwork(width=8), lr=0.03, scheduler=one_cycle)

    def one_cycle(optimizer):  # for the 8 epochs of 3 batches that the trainer has
        return {"scheduler": OneCycleLR(optimizer, 0.1, total_steps=24), "interval": "step"}

    summary = run_of(tmp_path, OwnTested(), network=network, rehearse=False)
    assert summary["stages"]["retraining"]["epochs"] == 16
    checkpoint = torch.load(tmp_path / "run" / "retraining" / "last.ckpt", weights_only=True)
    (saved,) = checkpoint["lr_schedulers"]
    assert (saved["calls"], saved["schedule"]["last_epoch"]) == (48, 24)


@pytest.mark.slow
def test_a_schedule_by_steps_counts_the_steps_of_fewer_samples(tmp_path):
    """Retraining on three quarters of them has a third more epochs, but as many steps."""

    def network():
        return SegmentationModule(TinyNetwork(width=8), lr=0.03, scheduler=one_cycle)

    def one_cycle(optimizer):  # for the 3 epochs of 8 batches that the trainer has
        return {"scheduler": OneCycleLR(optimizer, 0.1, total_steps=24), "interval": "step"}

    form = {"image_size": 32, "in_channels": 1}
    data = CoSegDataModule(Squares(16), batch_size=2, augmentation=None, **form)
    nets = TinyNetwork(width=8), TinyNetwork(width=8)
    trainer = partial(pl.Trainer, max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    options = {"trainer": trainer, "network": network, "rehearse": False}
    options["peers"] = lambda: PlainPeers(*nets, noise_level=0.25)
    summary = run_of(tmp_path, data, method="filter", **options)
    assert summary["stages"]["retraining"]["epochs"] == 4
    checkpoint = torch.load(tmp_path / "run" / "retraining" / "last.ckpt", weights_only=True)
    (saved,) = checkpoint["lr_schedulers"]
    assert (checkpoint["global_step"], saved["last_epoch"]) == (24, 24)


def test_a_stretched_schedule_has_the_same_curve():
    def rates(ratio, calls, halfway=None):
        module = SegmentationModule(
            TinyNetwork(), scheduler=lambda o: LambdaLR(o, lambda epoch: 1 - epoch / 8)
        )
        module.stretch_schedule(ratio)
        schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
        if halfway is not None:
            schedule.load_state_dict(halfway)
        seen = []
        for _ in range(calls):
            schedule.step()
            seen += schedule.get_last_lr()
        return seen, schedule.state_dict()

    usual, _ = rates(1, 8)
    slow, _ = rates(1.5, 12)
    assert slow[-1] == usual[-1] == pytest.approx(0, abs=1e-9)
    assert [*dict.fromkeys(slow)][1:] == usual  # the first rate comes once more
    first, state = rates(1.5, 6)
    later, _ = rates(1.5, 6, state)
    assert first + later == slow
    earlier, _ = rates(1.5, 6, state["schedule"])  # as an earlier version saved it
    assert earlier == later


def test_a_schedule_that_follows_a_metric_is_not_stretched():
    for own in (partial(ReduceLROnPlateau, mode="max"), lambda o: {"scheduler": StepLR(o, 3)}):
        module = SegmentationModule(TinyNetwork(), scheduler=own)
        module.stretch_schedule(2.0)
        config = module.configure_optimizers()["lr_scheduler"]
        is_plateau = isinstance(config["scheduler"], ReduceLROnPlateau)
        assert is_plateau is not isinstance(config["scheduler"], StretchedSchedule)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "share", "epochs"), [(0.25, 1, 16), (0.25, 0.5, 12), ("auto", 1, 8)]
)
def test_a_peer_that_left_samples_out_in_vain_is_no_start(
    tmp_path, monkeypatch, level, share, epochs
):
    monkeypatch.setattr(CorrectionGuard, "peers_know_better", False)
    summary = run_of(tmp_path, OwnTested(), noise_level=level, retraining_share=share)
    assert summary["correction"]["left_alone"]
    assert summary["stages"]["retraining"]["epochs"] == epochs
    if level == "auto":  # the level could not be estimated, so that no sample was excluded
        return

    def trainer(**stage_options):
        options = {"enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(max_epochs=epochs, accelerator="cpu", **options, **stage_options)

    # It is then the plain network, trained for as many epochs.
    run_of(tmp_path / "plain", OwnTested(), method="supervised", trainer=trainer)
    ours, plain = (
        torch.load(path / "last.ckpt", weights_only=True)["state_dict"]
        for path in (
            tmp_path / "run" / "retraining",
            tmp_path / "plain" / "run" / "supervised_training",
        )
    )
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [True, False])
def test_a_network_that_goes_on_from_a_peer_sees_other_images(tmp_path, monkeypatch, warm):
    """Augmentation depends on the number of an epoch, which goes on, too."""
    drawn = []
    draw = EpochSampler.__iter__

    def remembered(self):
        epochs = list(draw(self))
        drawn.append({epoch for epoch, _ in epochs})
        return iter(epochs)

    monkeypatch.setattr(EpochSampler, "__iter__", remembered)
    shares = []

    class Remembered(AveragedWeights):
        def __init__(self, share):
            shares.append(share)
            super().__init__(share)

    monkeypatch.setattr("coseg_lightning.runs.runner.AveragedWeights", Remembered)
    settings = [*SMALL, *PHANTOM, "trainer.max_epochs=2", "rehearse=false", "method.confidence=0"]
    run(composed(*settings, f"method.warm_start={warm}".lower()), tmp_path / "run")
    assert drawn == ([{0}, {1}, {2}, {3}] if warm else [{0}, {1}, {0}, {1}])
    assert shares == ([0.1, 0.2] if warm else [0.1, 0.1])  # a tenth of both stages, or of each


@pytest.mark.slow
def test_without_a_test_set_nothing_is_tested(tmp_path):
    assert run_of(tmp_path, OwnData())["test"]["dice"] is None


def test_what_a_foreign_datamodule_cannot_do_is_said(tmp_path):
    with pytest.raises(InputError, match="leaves samples out, which needs a CoSegDataModule"):
        run_of(tmp_path, OwnTested(), method="filter")

    class Many(OwnTested):
        def train_dataloader(self):
            return [super().train_dataloader()]

    class Small(OwnTested):
        def train_dataloader(self):
            return DataLoader(self.train, batch_size=100, drop_last=True)

    with pytest.raises(InputError, match="gives no batch"):
        run_of(tmp_path / "small", Small())
    with pytest.raises(InputError, match="is a list, and it holds no torch DataLoader"):
        run_of(tmp_path, Many())


def collate(samples):
    return torch.utils.data.default_collate(samples)


@pytest.mark.parametrize("kind", ["random", "plain", "batches", "none", "own"])
def test_a_loader_over_corrected_masks_is_like_the_one_before(kind):
    dataset, other = Halves(), Halves(wrong=0)
    options = {
        "random": {"batch_size": 5, "shuffle": True, "drop_last": True},
        "plain": {"batch_size": 5},
        "batches": {"batch_sampler": BatchSampler(RandomSampler(dataset), 3, drop_last=False)},
        "none": {"batch_size": None},
        "own": {"batch_size": 5, "sampler": [3, 1, 2]},
    }[kind]
    loader = DataLoader(
        dataset, collate_fn=collate if kind != "none" else None, num_workers=1, **options
    )
    again = over(loader, other)
    assert again.dataset is other
    assert len(again) == len(loader)
    assert type(again.sampler) is type(loader.sampler)
    for name in ("batch_size", "drop_last", "collate_fn", "num_workers", "prefetch_factor"):
        assert getattr(again, name) == getattr(loader, name)
    if kind == "own":
        assert [batch[2] for batch in again] == [("h3", "h1", "h2")]


def test_a_method_of_ones_own_with_a_single_network(tmp_path):
    options = {
        "trainer": partial(pl.Trainer, max_epochs=1, accelerator="cpu", enable_progress_bar=False),
        "network": lambda: SegmentationModule(TinyNetwork()),
    }
    own = {"method": "mine", "stages": ["supervised_training"], **options}
    summary = run_stages(OwnTested(), tmp_path / "run", **own)
    assert set(summary["stages"]) == {"supervised_training", "test"}
    assert summary["config"]["method"]["name"] == "mine"
    with pytest.raises(InputError, match="method=mine: there is no such method; use coseg, "):
        run_stages(OwnTested(), tmp_path / "a", **{**own, "stages": None})
    with pytest.raises(InputError, match="stages=supervised_training of method=mine must be"):
        run_stages(OwnTested(), tmp_path / "b", **{**own, "stages": "supervised_training"})
    with pytest.raises(InputError, match="method=coteaching needs the peers"):
        run_stages(OwnTested(), tmp_path / "c", method="coteaching", **options)


def test_a_transition_that_was_never_estimated_is_told_as_it_ended(tmp_path):
    summary = run_stages(
        OwnTested(),
        tmp_path / "run",
        method="mine",
        stages=["supervised_training"],
        network=lambda: LabelTransition(TinyNetwork(), transition=[[0.9, 0.1], [0.2, 0.8]]),
        trainer=partial(pl.Trainer, max_epochs=1, accelerator="cpu", enable_progress_bar=False),
    )
    assert summary["transition"]["estimated"] is None
    torch.testing.assert_close(
        torch.tensor(summary["transition"]["final"]),
        torch.tensor([[0.9, 0.1], [0.2, 0.8]]),
        atol=1e-5,
        rtol=0,
    )
