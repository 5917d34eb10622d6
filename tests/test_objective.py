"""The metric that a sweep optimises, and a datamodule of one's own in the app."""

import csv
import json
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from coseg_lightning.app.build import make_method
from coseg_lightning.app.checks import check, check_objective
from coseg_lightning.app.folds import check_folds
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.run import run
from coseg_lightning.runs.summary import objective
from support import PHANTOM, SMALL, TINY, Halves, command, composed, start

SWEEPER = """
import json
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

ConfigStore.instance().store("best", {"_target_": "hydra_plugins.best.Best"}, "hydra/sweeper")


class Best(Sweeper):
    def setup(self, **parts):
        self.launcher = Plugins.instance().instantiate_launcher(**parts)

    def sweep(self, arguments):
        jobs = [[*arguments, f"seed={seed}"] for seed in range(2)]
        values = [float(job.return_value) for job in self.launcher.launch(jobs, initial_job_idx=0)]
        Path("values.json").write_text(json.dumps(values))
"""


def last_values(folder, stage):
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == stage]
    return {name: row[name] for row in rows for name in row if "/" in name and row[name]}


@pytest.mark.slow
def test_the_objective_is_a_metric_of_the_last_stage(tmp_path):
    folder = tmp_path / "run"
    summary = run(composed(*SMALL, *PHANTOM), folder)
    logged = last_values(folder, "retraining")
    assert objective(folder, summary, "val/dice") == float(logged["val/dice"])
    assert objective(folder, summary, "train/loss") == float(logged["train/loss"])
    assert objective(folder, summary, "test/dice") == summary["test"]["dice"]
    with pytest.raises(InputError, match=r"objective=val/dise: .*retraining logged no such metri"):
        objective(folder, summary, "val/dise")
    assert objective(folder, summary, "val/dise", required=False) is None


@pytest.mark.slow
def test_the_objective_of_a_pair_is_the_first_peers(tmp_path):
    folder = tmp_path / "run"
    summary = run(composed(*SMALL, *PHANTOM, "method=coteaching"), folder)
    logged = last_values(folder, "robust_training")
    assert objective(folder, summary, "val/dice") == float(logged["val/dice_a"])


def test_the_objective_is_that_of_the_network_that_is_kept(tmp_path):
    (tmp_path / "retraining").mkdir()
    log = "epoch,val/dice,val/accuracy\n0,0.5,0.6\n1,0.9,0.8\n2,0.7,0.7\n"
    (tmp_path / "retraining" / "metrics.csv").write_text(log)
    last, best = {"epochs": 3}, {"epochs": 3, "best_epoch": 2, "best_val_dice": 0.9}
    for kept, dice, accuracy in ((last, 0.7, 0.7), (best, 0.9, 0.8)):
        summary = {"test": {}, "stages": {"retraining": kept, "test": {}}}
        assert objective(tmp_path, summary, "val/dice") == dice
        assert objective(tmp_path, summary, "val/accuracy") == accuracy


def test_an_objective_that_nothing_logs_is_refused():
    with pytest.raises(InputError, match="objective=dice must be a logged metric"):
        check(composed("objective=dice"))


@pytest.mark.slow
def test_a_sweeper_of_somebody_elses_gets_the_objective(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "best.py").write_text(SWEEPER)
    settings = [*SMALL, *PHANTOM, "trainer.max_epochs=1", "hydra/sweeper=best"]
    result = start("run", "-m", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    values = json.loads((tmp_path / "values.json").read_text())
    folders = sorted((tmp_path / "multirun").glob("*/*/[01]"))
    assert values == [float(last_values(folder, "retraining")["val/dice"]) for folder in folders]


def test_an_objective_of_images_that_are_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("coseg_lightning.app.checks.is_optimised", lambda: True)
    cfg = composed(*SMALL, *PHANTOM, "data.source.val=0")
    with pytest.raises(InputError, match="optimises objective=val/dice, but there are no val"):
        run(cfg, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "method", "known"),
    [
        ("test/dice_class_1", "coseg", True),
        ("test/dice_class_2", "coseg", False),  # there are two classes
        ("val/dice_class_2", "coseg", False),
        ("test/dice_a", "coteaching", False),  # the first peer's is test/dice
        ("val/dice_b", "coteaching", True),
        ("val/dice_b", "coseg", False),  # a single network is retrained
        ("val/dice_a_class_1", "jocor", True),
    ],
)
def test_what_no_stage_would_log_is_refused_before_training(monkeypatch, name, method, known):
    monkeypatch.setattr("coseg_lightning.app.checks.is_optimised", lambda: True)
    cfg = composed(f"objective={name}", f"method={method}")
    data = SimpleNamespace(samples=lambda part: [part])
    if known:
        check_objective(cfg, make_method(cfg), data)
        return
    with pytest.raises(InputError, match=f"objective={name}, but nothing logs it; choose"):
        check_objective(cfg, make_method(cfg), data)


def test_folds_have_no_objective_but_the_test(monkeypatch):
    cfg = composed("data.folds=2")
    check_folds(cfg)
    monkeypatch.setattr("coseg_lightning.app.folds.is_optimised", lambda: True)
    with pytest.raises(InputError, match="objective=val/dice, but data.folds=2 logs only the test"):
        check_folds(cfg)
    check_folds(composed("data.folds=2", "objective=test/dice"))


def test_the_test_dice_of_a_class_is_an_objective(tmp_path):
    summary = {"test": {"dice": 0.8, "per_class_dice": [0.9, 0.7]}, "stages": {"retraining": {}}}
    assert objective(tmp_path, summary, "test/dice_class_1") == 0.7
    with pytest.raises(InputError, match="logged no such metric"):
        objective(tmp_path, summary, "test/dice_class_2")


# A datamodule of one's own


class Mine(pl.LightningDataModule):
    def __init__(self, batch, in_channels):
        super().__init__()
        self.batch = batch
        assert in_channels == 1

    def train_dataloader(self):
        return DataLoader(Halves(), self.batch, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Halves(4, wrong=0), self.batch)

    def test_dataloader(self):
        return DataLoader(Halves(4, wrong=0), self.batch)


MINE = """
_target_: test_objective.Mine
classes: 2
in_channels: 1
batch: 4
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "test_objective", sys.modules[__name__])
    folder = tmp_path / "conf" / "data"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(MINE)
    return ["--config-dir", tmp_path / "conf", "data=mine", "+trainer.enable_progress_bar=false"]


@pytest.mark.slow
def test_the_app_takes_a_datamodule_of_ones_own(tmp_path, mine):
    settings = [*mine, *TINY, "trainer.max_epochs=8", "optimizer.lr=0.03", "nol=0.25"]
    result = command("run", *settings, "hydra.run.dir=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test"]["dice"] > 0.9
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Test Dice" in result.stdout
    again = command("run", *settings, "resume=run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    with pytest.raises(InputError, match="was trained on your own datamodule"):
        AppRun(tmp_path / "run").data()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("noise=type2", "noise=type2 needs data that this package reads, .* noise=none"),
        ("data._target_=torch.nn.ReLU", "must be a LightningDataModule"),
        ("data.classes=x", "data.classes=x must be a whole number"),
        ("data._target_=mine.None", "data._target_=mine.None: there is no such class"),
        ("method=filter", "method=filter leaves samples out"),
    ],
)
def test_what_does_not_go_with_a_datamodule_of_ones_own(tmp_path, mine, setting, message):
    import re

    result = command("run", *mine, *TINY, setting, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr
