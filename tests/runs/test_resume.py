"""A run that is killed at any moment and resumed ends like one that was never killed."""

import json
import os
import signal
import socket
import time
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning import __version__
from coseg_lightning.callbacks.stage_checkpoint import StageCheckpoint
from coseg_lightning.errors import InputError
from coseg_lightning.report.figures import read_rows
from coseg_lightning.run import run
from support import (
    PHANTOM,
    SETTINGS,
    SHORT,
    SMALL,
    command,
    composed,
    counting,
    ended,
    forked,
    forked_command,
    hashes,
    one_run,
    results,
)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "points"), [(0, 8), (2, 3)])
def test_killed_anywhere_and_resumed_it_ends_the_same(tmp_path, workers, points):
    whole, log = tmp_path / "whole", tmp_path / "events"
    options = [f"data.num_workers={workers}", f"trainer.max_epochs={2 if workers else 4}"]
    assert one_run(whole, *options, log=log) == 0
    expected = results(whole)
    events = log.read_text().splitlines()
    for at in spread(events, points):
        folder = tmp_path / f"{at}"
        assert one_run(folder, *options, at=at) == -signal.SIGKILL, events[at - 1]
        assert one_run(folder, *options) == 0, events[at - 1]
        assert results(folder) == expected, events[at - 1]
        print(f"{at:4} of {len(events)}: killed {events[at - 1]}: the same")


def spread(events, points):
    """Return evenly spaced numbers of events, from the first to the last."""
    return [1 + round(n * (len(events) - 1) / (points - 1)) for n in range(points)]


def two_processes(folder, at=None, log=None):
    """Run with DDP; like Lightning's launcher, stop the other process when one is killed."""

    def body(rank):
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_PORT=port)
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        rank_zero_only.rank = rank  # Lightning reads it at import
        if rank == 0:
            counting(at, log)
        run(cfg, folder)

    options = ["trainer=ddp", "trainer.devices=2", "data.batch_size=2", "trainer.max_epochs=2"]
    options += ["++trainer.enable_progress_bar=true"]  # it reduces metrics, on process 0 first
    cfg = composed(*SETTINGS, *options)
    cfg.resume = str(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = [forked(partial(body, rank)) for rank in (0, 1)]
    status = ended(pids[0])
    if status:
        os.kill(pids[1], signal.SIGKILL)
    return status or ended(pids[1])


@pytest.mark.slow
def test_two_processes_killed_anywhere_and_resumed_end_the_same(tmp_path):
    whole, log = tmp_path / "whole", tmp_path / "events"
    assert two_processes(whole, log=log) == 0
    expected = results(whole)
    events = log.read_text().splitlines()
    for at in spread(events, 6)[1:-1]:
        folder = tmp_path / f"{at}"
        assert two_processes(folder, at=at) == -signal.SIGKILL, events[at - 1]
        assert two_processes(folder) == 0, events[at - 1]
        assert results(folder) == expected, events[at - 1]
        print(f"{at:4} of {len(events)}: killed {events[at - 1]}: the same")


@pytest.mark.slow
def test_what_changes_the_run_is_refused_with_the_differences(tmp_path):
    folder = tmp_path / "run"
    assert one_run(folder, at=30) == -signal.SIGKILL
    before = hashes(folder)
    other = ["nol=0.5", "optimizer.lr=0.02"]
    with pytest.raises(InputError, match=r"nol=0.5 \(it was 0.3\), optimizer.lr=0.02"):
        run(composed(*SETTINGS, *other, f"resume={folder}"), folder)
    with pytest.raises(InputError, match=f"or continue that run with resume={folder}"):
        run(composed(*SETTINGS), folder)
    assert hashes(folder) == before


@pytest.mark.slow
def test_a_run_goes_on_where_its_data_lies_now(tmp_path, make_folder):
    root, folder = make_folder(size=12), tmp_path / "run"
    settings = [*SMALL, "data=folder", "data.in_channels=1", "nol=0.3", "rehearse=false"]
    settings += ["trainer.max_epochs=2", "stages=null"]
    first = run(composed(*settings, f"data.root={root}"), folder)
    (folder / "summary.json").unlink()
    (folder / "retraining" / "done.json").unlink()
    root = root.rename(tmp_path / "moved")
    result = command("run", f"resume={folder}", f"data.root={root}", "trust=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"] == first["test"]
    assert summary["config"]["data"]["root"] == str(root)
    save = root / "masks" / "s03.png"
    Image.fromarray(1 - np.asarray(Image.open(save))).save(save)
    (folder / "summary.json").unlink()
    result = command("run", f"resume={folder}", f"data.root={root}", "trust=true", cwd=tmp_path)
    assert result.returncode == 1
    assert "another run, which differs in samples.train=" in result.stderr


@pytest.mark.slow
def test_another_choice_is_refused_and_the_same_one_keeps_its_settings(tmp_path):
    folder = tmp_path / "run"
    begun = ["noise=type1", "model=unet_classic", "model.base_channels=3", *PHANTOM, *SHORT]
    settings = [*begun, "nol=0.3", "rehearse=false", "trainer.max_epochs=1", "data.in_channels=1"]
    result = command("run", *settings, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for other in ("noise=type2", "trainer=ddp +trainer.max_steps=3", "model=unet", "method=gce"):
        result = command("run", f"resume={folder}", *other.split(), cwd=tmp_path)
        assert result.returncode == 1, other
        assert "another run, which differs in" in result.stderr
    result = command("run", f"resume={folder}", "model=unet_classic", "method=coseg", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    result = command("run", f"resume={folder}", "data.root=/elsewhere", cwd=tmp_path)
    assert result.returncode == 1  # a finished run is not shown for other data


def test_a_folder_without_a_run_cannot_be_resumed_by_itself(tmp_path):
    (tmp_path / "job" / ".hydra").mkdir(parents=True)
    (tmp_path / "job" / ".hydra" / "overrides.yaml").write_text("- mine=1")
    for place in ("nowhere", "job"):
        result = command("run", f"resume={place}", "trainer.devices=1", cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr.startswith(f"resume={place}: no run has begun there, so its settings")
    assert (tmp_path / "job" / ".hydra" / "overrides.yaml").read_text() == "- mine=1"
    assert not (tmp_path / "nowhere").exists()


def test_an_experiment_counts_when_a_run_goes_on(tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    given = ("nol=0.2", "seed=3", "data=folder", f"data.root={tmp_path / 'data'}")
    begun = OmegaConf.to_container(composed(*given, "data.images=images"), resolve=True)
    begun["version"] = __version__  # the folder of the images was found, and is recorded
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"id": "x", "config": begun}))
    for seed, differences in ((3, "in optimizer.lr=7 (it "), (4, "(it was 0.001), seed=4 (it")):
        folder = "defaults:\n  - override /data: folder\ndata:\n  root: data\n"
        experiment = f"# @package _global_\n{folder}nol: 0.2\nseed: {seed}\n"
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(experiment)
        given = ["experiment=mine", "optimizer.lr=7", "--config-dir", tmp_path / "conf"]
        result = command("run", "resume=run", *given, cwd=tmp_path)
        assert differences in result.stderr
        assert (seed == 3) == ("seed" not in result.stderr)


def test_a_run_goes_on_in_its_own_folder_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    result = command("run", "resume=mine", "hydra.run.dir=other", "nol=0.3", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("resume=mine goes on in that folder, not in hydra.run.dir=")
    assert not (tmp_path / "other").exists()
    given = ["resume=./mine", "hydra.run.dir=mine", "nol=7"]
    assert "nol=7 must be" in command("run", *given, cwd=tmp_path).stderr


@pytest.mark.slow
def test_where_it_computes_may_change(tmp_path):
    folder = tmp_path / "run"
    assert one_run(folder, at=30) == -signal.SIGKILL
    assert one_run(folder, "data.num_workers=1", "trainer.strategy=auto") == 0
    assert one_run(tmp_path / "whole") == 0
    assert results(folder) == results(tmp_path / "whole")


@pytest.mark.slow
def test_a_finished_run_is_not_done_again(tmp_path, capsys):
    folder, log = tmp_path / "run", tmp_path / "events"
    assert one_run(folder) == 0
    before = results(folder)
    assert one_run(folder, log=log) == 0
    assert results(folder) == before
    assert not log.exists()  # nothing was trained or written
    cfg = composed(*SETTINGS, "review_budget=2")
    cfg.resume = str(folder)
    run(cfg, folder)
    assert "Look at these 2 masks first" in capsys.readouterr().out


@pytest.mark.slow
def test_scores_and_layer_name_their_run_and_each_epoch_is_logged_once(tmp_path):
    folder = tmp_path / "run"
    assert one_run(folder, at=30) == -signal.SIGKILL
    assert one_run(folder) == 0
    run_id = json.loads((folder / "run.json").read_text())["id"]
    assert {row["run"] for row in read_rows(folder / "scores.csv")} == {run_id}
    assert json.loads((folder / "labels" / "manifest.json").read_text())["run"] == run_id
    rows = [row for row in read_rows(folder / "metrics.csv") if row.get("train/loss_a")]
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert not list(folder.rglob("unfinished.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["method=adele"],
        ["method=filter"],
        ["method.rounds=2"],
        ["method=noise_adaptation"],
        ["method=reweight", "data.clean_ids=2"],
        ["method=dimensionality", "method.options.neighbours=3"],
    ],
)
def test_other_methods_are_resumed_too(tmp_path, settings):
    whole, log = tmp_path / "whole", tmp_path / "events"
    settings = [*settings, "trainer.max_epochs=2"]
    assert one_run(whole, *settings, log=log) == 0
    events = log.read_text().splitlines()
    for at in spread(events, 5)[1:-1]:
        folder = tmp_path / f"{at}"
        assert one_run(folder, *settings, at=at) == -signal.SIGKILL
        assert one_run(folder, *settings) == 0
        assert results(folder) == results(whole)


@pytest.mark.slow
def test_an_estimated_noise_level_and_averaged_scores_survive(tmp_path):
    """Both rest on passes of several epochs, which a checkpoint keeps."""
    settings = ["nol=auto", "noise.level=0.3", "method.score_epochs=3", "trainer.max_epochs=8"]
    whole, log = tmp_path / "whole", tmp_path / "events"
    assert one_run(whole, *settings, log=log) == 0
    events = log.read_text().splitlines()
    steps = [n for n, event in enumerate(events, start=1) if event == "before a step"]
    for at in (steps[5], steps[13]):
        folder = tmp_path / f"{at}"
        assert one_run(folder, *settings, at=at) == -signal.SIGKILL
        assert one_run(folder, *settings) == 0
        assert results(folder) == results(whole)


@pytest.mark.slow
def test_sigterm_ends_with_its_own_status_and_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    arguments = [*SETTINGS, "trainer.max_epochs=2000", f"resume={folder}"]
    pid = forked_command(tmp_path, "run", *arguments)
    saved = folder / "robust_training" / "unfinished.ckpt"
    try:
        for _ in range(600):
            if saved.exists():
                break
            time.sleep(0.1)
        assert saved.exists(), (tmp_path / "stderr").read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
        status = ended(pid, timeout=60)
    assert status == 128 + signal.SIGTERM  # after the running step; Lightning's own status is 0
    output = (tmp_path / "stdout").read_text()
    assert f"Stopped by SIGTERM. The finished part is kept; go on with resume={folder}" in output
    assert not (folder / "summary.json").exists()
    assert torch.load(saved, weights_only=True)["global_step"] >= 2
    assert (folder / ".hydra" / "config.yaml").is_file()  # Hydra writes into the same folder


@pytest.mark.slow
def test_files_that_are_not_the_runs_own_stay(tmp_path):
    folder = tmp_path / "run"
    mine = [folder / "labels_mine" / "a.png", folder / "notes" / ".1.txt"]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    assert one_run(folder, "method=adele", at=20) == -signal.SIGKILL
    assert one_run(folder, "method=adele") == 0
    assert all(path.read_text() == "mine" for path in mine)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "saved"), [(1e12, 3), (0.0, 0), (1.0, 1)])
def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch, share, saved):
    """An epoch is saved once the time of a save, at first a second, has paid off."""
    monkeypatch.setattr("coseg_lightning.callbacks.stage_checkpoint.MAX_SAVE_SHARE", share)
    clock = iter(range(1000))
    took = {"before": 0.0}
    save = StageCheckpoint._save
    names = []

    def slow(self, trainer, name):
        names.append(name)
        took["before"] += 100.0  # seconds, on the patched clock
        save(self, trainer, name)

    monkeypatch.setattr(StageCheckpoint, "_save", slow)
    monkeypatch.setattr(
        "coseg_lightning.callbacks.stage_checkpoint.time.monotonic",
        lambda: next(clock) + took["before"],
    )
    settings = [*SETTINGS, "method=supervised"]
    run(composed(*(part for part in settings if "method." not in part)), tmp_path / "run")
    assert names.count("unfinished.ckpt") == saved
