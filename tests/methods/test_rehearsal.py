"""A rehearsal walks the whole way with two batches, and leaves nothing behind."""

import logging
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from safetensors.torch import load_file
from torch.utils.data import DataLoader, WeightedRandomSampler

from coseg_lightning import CoSegModule, SegmentationModule
from coseg_lightning.app.build import rehearsal_settings
from coseg_lightning.errors import InputError
from coseg_lightning.methods import rehearsal
from coseg_lightning.methods.registry import METHODS
from coseg_lightning.modules.loaders import shortened
from coseg_lightning.run import run
from support import (
    PHANTOM,
    SMALL,
    Halves,
    OwnTested,
    TinyNetwork,
    composed,
    run_of,
)

pytestmark = pytest.mark.rehearsed


class Counting(pl.Callback):
    batches = 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        Counting.batches += isinstance(pl_module, CoSegModule)


class Unusable(OwnTested):
    """Its test loader gives no batches that anybody understands."""

    def test_dataloader(self):
        return DataLoader(Halves(4, wrong=0), 4, collate_fn=str)


def test_what_would_stop_a_run_at_its_end_stops_it_at_once(tmp_path):
    Counting.batches = 0
    trainer = partial(pl.Trainer, max_epochs=8, enable_progress_bar=False, callbacks=[Counting()])
    with pytest.raises(InputError, match="The batch is str; it must be") as caught:
        run_of(tmp_path, Unusable(), trainer=trainer)
    assert caught.value.__notes__ == ["This error came up in the rehearsal before training."]
    assert Counting.batches == 0
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="The batch is str"):
        run_of(tmp_path, Unusable(), trainer=trainer, rehearse=False)
    assert Counting.batches == 8 * 3


def test_networks_that_cannot_be_saved_are_found_at_once(tmp_path):
    class Stateful(TinyNetwork):
        def get_extra_state(self):
            return {"seen": 3}  # safetensors takes tensors alone

        def set_extra_state(self, state):
            pass

    def peers():
        return CoSegModule(Stateful(), Stateful(), noise_level=0.25)

    with pytest.raises(AttributeError, match="'dict' object has no attribute"):
        run_of(tmp_path, OwnTested(), peers=peers, method="coteaching")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ids", [True, False])
def test_a_run_is_the_same_after_a_rehearsal(tmp_path, caplog, ids):
    weights, summaries = [], []
    for rehearse in (True, False):
        folder = tmp_path / str(rehearse)
        with caplog.at_level(logging.INFO):
            summaries.append(run_of(folder, OwnTested(ids), rehearse=rehearse))
        weights.append(load_file(folder / "run" / "model" / "model.safetensors"))
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert summaries[0]["test"] == summaries[1]["test"]
    assert sum("all stages were rehearsed" in message for message in caplog.messages) == 1


@pytest.mark.slow
def test_callbacks_do_not_see_it_and_a_resumed_run_has_none(tmp_path, caplog):
    class Stop(Counting):
        def on_fit_end(self, trainer, pl_module):
            if isinstance(pl_module, SegmentationModule) and not resumed:
                raise RuntimeError("stopped")

    resumed, Counting.batches = False, 0
    trainer = partial(pl.Trainer, max_epochs=2, enable_progress_bar=False, callbacks=[Stop()])
    with pytest.raises(RuntimeError, match="stopped"):
        run_of(tmp_path, OwnTested(), trainer=trainer, resume=True)
    assert Counting.batches == 2 * 3
    resumed = True
    with caplog.at_level(logging.INFO):
        run_of(tmp_path, OwnTested(), trainer=trainer, resume=True)
    assert not [message for message in caplog.messages if "rehearsal" in message]


class Rehearsed(Exception):  # noqa: N818 - it is no error
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_rehearsed(tmp_path, monkeypatch, method):
    """Without a false alarm, and without a trace."""

    def stop(*arguments):
        rehearse(*arguments)
        raise Rehearsed

    rehearse = rehearsal.rehearse
    monkeypatch.setattr(rehearsal, "rehearse", stop)
    more = ["data.clean_ids=3"] if method == "reweight" else []
    settings = [*SMALL, *PHANTOM, "noise=type2", "rehearse=true", f"method={method}", *more]
    with pytest.raises(Rehearsed):
        run(composed(*settings), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*")] == []


def test_a_function_that_makes_trainers_of_several_processes_is_not_rehearsed(tmp_path):
    made = []

    def trainer(**options):
        made.append(options)
        if len(made) == 3:
            raise RuntimeError("the run itself")
        return pl.Trainer(strategy="ddp", devices=2, accelerator="cpu", **options)

    with pytest.raises(RuntimeError, match="the run itself"):
        run_of(tmp_path, Unusable(), trainer=trainer)


@pytest.mark.slow
def test_networks_that_a_function_gives_again_are_not_trained_by_it(tmp_path):
    tested = []
    for rehearse in (True, False):
        torch.manual_seed(3)
        network = SegmentationModule(TinyNetwork(width=8), lr=0.03)
        nets = [TinyNetwork(width=8), TinyNetwork(width=8)]
        summary = run_of(
            tmp_path / str(rehearse),
            OwnTested(),
            peers=partial(CoSegModule, *nets, lr=0.03, noise_level=0.25),
            network=lambda network=network: network,
            rehearse=rehearse,
        )
        tested.append(summary["test"])
    assert tested[0] == tested[1]


@pytest.mark.slow
def test_callbacks_of_a_function_that_makes_trainers_do_not_see_it(tmp_path):
    def trainer(*, callbacks, **options):
        return pl.Trainer(
            max_epochs=2, accelerator="cpu", callbacks=[*callbacks, Counting()], **options
        )

    Counting.batches = 0
    run_of(tmp_path, OwnTested(), trainer=trainer)
    assert Counting.batches == 2 * 3


def test_a_callback_that_goes_by_what_one_stage_logs_is_found_at_once(tmp_path):
    stop = EarlyStopping("val/dice_a")
    trainer = partial(pl.Trainer, max_epochs=2, enable_progress_bar=False, callbacks=[stop])

    class Data(OwnTested):
        def val_dataloader(self):
            return DataLoader(Halves(4, wrong=0), 4)

    with pytest.raises(InputError, match=r"EarlyStopping monitors 'val/dice_a', but .*Segmenta"):
        run_of(tmp_path, Data(), trainer=trainer)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_projects_call_on_datasets_and_samplers_works(tmp_path):
    class Own(Halves):
        def set_epoch(self, epoch):
            self.epoch = epoch

    class Data(OwnTested):
        def train_dataloader(self):
            return DataLoader(Own(), batch_size=4, shuffle=True)

    class Network(SegmentationModule):
        def on_train_epoch_start(self):
            self.trainer.train_dataloader.dataset.set_epoch(self.current_epoch)

    network = partial(Network, TinyNetwork(width=8))
    assert run_of(tmp_path, Data(), network=network)["test"]["dice"] is not None


def test_a_run_without_test_batches_has_no_figures(tmp_path):
    trainer = partial(pl.Trainer, max_epochs=1, enable_progress_bar=False, limit_test_batches=0)
    with pytest.warns(UserWarning, match="no test figures, since no test batch was read; leave"):
        assert run_of(tmp_path, OwnTested(), trainer=trainer)["test"]["dice"] is None


def test_odd_hyperparameters_are_no_obstacle(tmp_path):
    class Data(OwnTested):
        def __init__(self, limit=float("inf"), key=lambda name: name):
            super().__init__()
            self.save_hyperparameters()

    trainer = partial(pl.Trainer, max_epochs=1, enable_progress_bar=False)
    summary = run_of(tmp_path, Data(), trainer=trainer)
    assert summary["config"]["data"]["limit"] == "inf"
    assert "0x" not in summary["config"]["data"]["key"]


# What is rehearsed


def few(loader):
    return [sorted(batch[2]) for batch in shortened(loader, 2)]


def test_its_batches_are_of_the_real_size_and_in_the_order_of_their_numbers():
    assert few(DataLoader(Halves(), 3, shuffle=True)) == [["h0", "h1", "h2"], ["h3", "h4", "h5"]]
    assert few(DataLoader(Halves(5), 3)) == [["h0", "h1", "h2"], ["h3", "h4"]]
    assert few(DataLoader(Halves(5), 3, shuffle=True, drop_last=True)) == [["h0", "h1", "h2"]]
    assert few(DataLoader(Halves(2), 3)) == [["h0", "h1"]]


def test_its_samples_are_those_that_can_be_drawn():
    sampler = WeightedRandomSampler([float(n > 8) for n in range(12)], 12)
    drawn = {name for batch in few(DataLoader(Halves(), 4, sampler=sampler)) for name in batch}
    assert drawn <= {"h9", "h10", "h11"}
    batches = [[7, 5], [1, 11], [2, 3]]
    assert few(DataLoader(Halves(), batch_sampler=batches)) == [["h5", "h7"], ["h1", "h11"]]


def test_a_sampler_of_somebodys_own_goes_on_as_if_nothing_was_drawn():
    generator = torch.Generator().manual_seed(3)
    sampler = WeightedRandomSampler(torch.ones(12), 12, generator=generator)
    loader = DataLoader(Halves(), 4, sampler=sampler)
    before = generator.get_state()
    few(loader)
    assert torch.equal(generator.get_state(), before)


# The app


def test_the_app_rehearses_with_one_process_and_what_writes_nowhere_else():
    settings = ["trainer.devices=2", "+trainer.callbacks=[{_target_: support.CountedFits}]"]
    cfg = rehearsal_settings(composed(*SMALL, *settings, "logger=wandb", "trainer.strategy=ddp"))
    assert (cfg.trainer.devices, cfg.trainer.strategy, cfg.trainer.callbacks) == (1, "auto", None)
    assert cfg.logger == {}
    kept = rehearsal_settings(composed(*SMALL, "+trainer.devices=[3,4]", "logger=tensorboard"))
    assert kept.trainer.devices == [3]
    assert kept.logger["_target_"].endswith("TensorBoardLogger")


@pytest.mark.slow
def test_a_run_of_the_app_is_rehearsed_unless_it_is_told_not_to(tmp_path, caplog):
    for rehearse, times in (("true", 1), ("false", 0)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            settings = [*SMALL, *PHANTOM, "noise=type2", f"rehearse={rehearse}"]
            run(composed(*settings), tmp_path / rehearse)
        messages = [
            message for message in caplog.messages if "all stages were rehearsed" in message
        ]
        assert len(messages) == times
    with pytest.raises(InputError, match="rehearse=maybe must be true or false"):
        run(composed(*SMALL, *PHANTOM, "rehearse=maybe"), tmp_path / "none")
