"""The number of epochs follows from the data, and the progress bar tells how long is left."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from coseg_lightning import SegmentationModule
from coseg_lightning.app.build import make_network
from coseg_lightning.app.checks import check
from coseg_lightning.callbacks.enough_epochs import EnoughEpochs, enough_epochs
from coseg_lightning.callbacks.stage_progress import StageProgress, duration
from coseg_lightning.errors import InputError
from coseg_lightning.ranking.guard import CorrectionGuard
from coseg_lightning.run import run
from support import (
    PHANTOM,
    SMALL,
    Halves,
    OwnData,
    TinyNetwork,
    composed,
    data_of,
    module_of,
    trainer_of,
)


@pytest.mark.parametrize(
    ("samples", "epochs"), [(8, 200), (20, 200), (80, 68), (137, 40), (2000, 10), (20_000, 10)]
)
def test_few_samples_are_seen_more_often(samples, epochs):
    assert enough_epochs(samples // 8) == epochs


class Stream(IterableDataset):
    def __iter__(self):
        return map(Halves().__getitem__, range(8))


class Streamed(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=4)


def epochs_of(tmp_path, data, monkeypatch, **options):
    monkeypatch.setattr("coseg_lightning.callbacks.enough_epochs.STEPS", 9)
    monkeypatch.setattr("coseg_lightning.callbacks.enough_epochs.MIN_EPOCHS", 2)
    monkeypatch.setattr("coseg_lightning.callbacks.enough_epochs.UNKNOWN", 5)
    options = {"max_epochs": -1, "callbacks": [EnoughEpochs()], **options}
    trainer = trainer_of(tmp_path, **options)
    trainer.fit(SegmentationModule(TinyNetwork()), datamodule=data)
    return trainer.current_epoch


def test_the_trainer_trains_for_them(tmp_path, monkeypatch):
    # 12 samples in batches of 4 are 3 batches, of which 3 epochs make 9.
    assert epochs_of(tmp_path, OwnData(), monkeypatch) == 3


def test_a_limit_that_is_given_stays(tmp_path, monkeypatch):
    assert epochs_of(tmp_path, OwnData(), monkeypatch, max_epochs=1) == 1


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"limit_train_batches": 1}, 9),
        ({"limit_train_batches": 0.67}, 5),  # 2 of 3 batches
        ({"overfit_batches": 1}, 9),
        ({"max_steps": 20}, 7),
        ({"max_steps": 20, "accumulate_grad_batches": 3}, 20),
        ({"max_steps": -1}, 3),
        ({"max_time": {"minutes": 5}}, 3),
    ],
)
def test_other_limits_of_the_trainer_count_too(tmp_path, monkeypatch, options, epochs):
    assert epochs_of(tmp_path, OwnData(), monkeypatch, **options) == epochs


def test_peers_that_accumulate_gradients_take_all_steps(tmp_path, monkeypatch):
    options = {"max_epochs": -1, "max_steps": 8, "accumulate_grad_batches": 3}
    trainer = trainer_of(tmp_path, callbacks=[EnoughEpochs()], **options)
    trainer.fit(module_of(), datamodule=OwnData())
    assert trainer.global_step == 8


def test_of_a_stream_the_number_of_batches_is_unknown(tmp_path, monkeypatch):
    assert epochs_of(tmp_path, Streamed(), monkeypatch) == 5


class Combined(OwnData):
    def train_dataloader(self):
        return CombinedLoader(super().train_dataloader())


def test_lightnings_own_wrapper_of_a_loader(tmp_path, monkeypatch):
    assert epochs_of(tmp_path, Combined(), monkeypatch) == 3


@pytest.mark.parametrize("own", [True, False])
def test_it_is_the_same_on_several_processes(tmp_path, monkeypatch, own):
    class Epochs(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(torch.tensor(trainer.max_epochs), tmp_path / f"{trainer.global_rank}")

    # 13 samples in batches of 4 are 3 batches for one process, and 1 for each of two.
    data = OwnData() if own else data_of(tmp_path, size=13)
    options = {"strategy": "ddp_fork", "devices": 2, "callbacks": [EnoughEpochs(), Epochs()]}
    epochs_of(tmp_path, data, monkeypatch, **options)
    epochs = [int(torch.load(tmp_path / f"{rank}", weights_only=True)) for rank in range(2)]
    assert epochs == [3, 3]


@pytest.mark.slow
def test_all_stages_of_a_run_have_as_many(tmp_path, monkeypatch):
    monkeypatch.setattr("coseg_lightning.callbacks.enough_epochs.MAX_EPOCHS", 3)
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "~data.max_epochs"]
    summary = run(composed(*settings, "trainer.max_epochs=auto"), tmp_path / "run")
    epochs = {stage: facts["epochs"] for stage, facts in summary["stages"].items()}
    assert epochs["robust_training"] == 3
    assert epochs["retraining"] in (3, 6)  # 6 from new weights, where the labels were left alone


@pytest.mark.parametrize("limit", ["max_steps=20", "max_steps=-1", "max_time=00:00:10:00"])
def test_it_is_a_number_for_all_who_read_it(tmp_path, monkeypatch, limit):
    """The estimate of the noise level needs the first half of the epochs."""
    monkeypatch.setattr("coseg_lightning.callbacks.enough_epochs.STEPS", 8)
    monkeypatch.setattr("coseg_lightning.callbacks.enough_epochs.MIN_EPOCHS", 4)
    settings = [*SMALL, *PHANTOM, "noise=type2", "noise.level=0.3", "nol=auto", "~data.max_epochs"]
    settings += ["trainer.max_epochs=auto", f"+trainer.{limit}", "method=coteaching"]
    summary = run(composed(*settings), tmp_path / "run")
    epochs = summary["stages"]["robust_training"]["epochs"]
    assert epochs == (20 if "=20" in limit else 8)  # one batch of 11 samples an epoch


def test_phantoms_have_a_number_of_their_own(tmp_path):
    assert composed().trainer.max_epochs == "auto"
    settings = [*SMALL, *PHANTOM, "trainer.max_epochs=auto", "data.max_epochs=1"]
    summary = run(composed(*settings, "method=supervised"), tmp_path / "run")
    assert summary["stages"]["supervised_training"]["epochs"] == 1


def test_a_schedule_that_must_know_it_is_refused():
    schedule = "{_target_: torch.optim.lr_scheduler.CosineAnnealingLR, T_max: auto}"
    cfg = composed(*SMALL, *PHANTOM, f"+optimizer.scheduler={schedule}")
    with pytest.raises(
        InputError, match=r"T_max=auto must be .*; give trainer\.max_epochs a number\.$"
    ):
        make_network(cfg)


@pytest.mark.parametrize("epochs", ["0", "-1", "often", "2.5", "null"])
def test_other_numbers_are_refused(epochs):
    with pytest.raises(InputError, match=r"trainer.max_epochs=.* must be a whole number of at"):
        check(composed(f"trainer.max_epochs={epochs}"))


class Losses(SegmentationModule):
    """Has the losses 1, 2, 3 and so on."""

    def log_progress(self, loss):
        super().log_progress(torch.tensor(float(self.global_step + 1)))


def test_a_line_of_an_epoch_has_the_mean_of_its_losses(tmp_path, capsys):
    trainer = trainer_of(
        tmp_path, max_epochs=2, enable_progress_bar=True, callbacks=[StageProgress("Training")]
    )
    trainer.fit(Losses(TinyNetwork()), datamodule=OwnData())  # three batches an epoch
    lines = capsys.readouterr().out.splitlines()
    assert "loss 2.000" in lines[0]
    assert "loss 5.000" in lines[1]


class Shown(pl.Callback):
    """Keeps what the progress bar would show after each batch."""

    def __init__(self):
        self.minutes = []

    def on_train_batch_end(self, trainer, *_):
        left = trainer.progress_bar_callback.seconds_left
        self.minutes.append(None if left is None else left / 60)


@pytest.mark.parametrize("later", [0, 2])
def test_the_progress_bar_tells_how_long_is_left(tmp_path, monkeypatch, capsys, later):
    seconds = iter(range(0, 10_000, 60))  # every batch takes a minute
    clock = "coseg_lightning.callbacks.stage_progress.time.perf_counter"
    monkeypatch.setattr(clock, seconds.__next__)
    shown, bar = Shown(), StageProgress("Retraining", later)
    options = {"max_epochs": 2, "enable_progress_bar": True}
    trainer = trainer_of(tmp_path, **options, callbacks=[bar, shown])
    trainer.fit(SegmentationModule(TinyNetwork()), datamodule=OwnData())
    of_later_stages = later * 2 * 3  # epochs and batches
    assert shown.minutes == [None, *(left + of_later_stages for left in (4, 3, 2, 1, 0))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Retraining: epoch 1 of 2; loss ")
    assert lines[0].endswith(f"about {3 + of_later_stages} min left")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (119, "119 s"), (150, "2 min"), (5000, "83 min"), (9000, "2.5 h")],
)
def test_durations_are_told_as_people_tell_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("limit", "left"), [({"max_time": "00:00:10:00"}, 10), ({"max_steps": 4}, 2)]
)
def test_the_time_left_goes_by_all_limits_of_the_trainer(tmp_path, monkeypatch, limit, left):
    """Of three stages, each of which the limit ends; after the second batch of a minute each."""
    seconds = iter(range(0, 10_000, 60))
    clock = "coseg_lightning.callbacks.stage_progress.time.perf_counter"
    monkeypatch.setattr(clock, seconds.__next__)
    shown, bar = Shown(), StageProgress("Retraining", later_stages=2)
    options = {"max_epochs": 20, "enable_progress_bar": True}
    trainer = trainer_of(tmp_path, **options, **limit, callbacks=[bar, shown])
    trainer.fit(SegmentationModule(TinyNetwork()), datamodule=OwnData())
    whole = 10 if "max_time" in limit else 4
    assert shown.minutes[1] == pytest.approx(left + 2 * whole, abs=0.2)


def test_retraining_from_new_weights_takes_the_steps_of_both_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(CorrectionGuard, "peers_know_better", False)
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "trainer.max_epochs=6"]
    summary = run(composed(*settings, "+trainer.max_steps=4"), tmp_path / "run")
    assert summary["correction"]["left_alone"]
    epochs = [summary["stages"][stage]["epochs"] for stage in ("robust_training", "retraining")]
    assert epochs == [4, 8]  # of one batch each
