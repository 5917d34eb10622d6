"""A fault in a long run ends it with the reason, and the run can be resumed."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning_fabric.strategies.launchers import subprocess_script
from PIL import Image

from coseg_lightning.app.command import _trouble
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.report.figures import read_rows
from coseg_lightning.run import run
from coseg_lightning.runs.folder import RunFolder
from support import (
    SETTINGS,
    SMALL,
    Squares,
    command,
    composed,
    counting,
    hashes,
    in_a_process,
    one_run,
    results,
    rows_of,
)

FOLDER = [*SMALL, "data=folder", "data.in_channels=1"]


# Faults of the machine


def failing(folder, source, *more):
    """Start the app with a data source that fails on purpose."""
    source = ", ".join(f"{name}: {value}" for name, value in source.items())
    return command(
        "run",
        *SMALL,
        "trainer.max_epochs=3",
        "~data.source",
        f"+data.source={{_target_: faults.splits, {source}}}",
        f"hydra.run.dir={folder}",
        *more,
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_that_raises_ends_all_and_says_why(tmp_path, monkeypatch, rank):
    # Lightning looks every five seconds for a process that has ended, and kills all others then.
    observer = subprocess_script._ChildProcessObserver
    monkeypatch.setattr(observer.__init__, "__defaults__", (0.01,))
    two = ["trainer=ddp", "trainer.devices=2"]
    result = failing(tmp_path / "run", {"fault": "raised", "after": 20, "rank": rank}, *two)
    assert result.returncode == 1
    assert "RuntimeError: the scanner is on fire" in result.stderr
    assert f"go on with resume={tmp_path / 'run'}" in result.stdout
    # The other processes' error, which would bury the reason.
    assert "Connection closed by peer" not in result.stderr


@pytest.mark.slow
def test_a_worker_that_dies_is_told_in_a_sentence(tmp_path):
    result = failing(tmp_path / "run", {"fault": "killed", "after": 20}, "data.num_workers=1")
    assert result.returncode == 1
    assert "A data loading worker died" in result.stderr
    assert "Traceback" not in result.stderr


def limited(folder, limit):
    """Run with a limit on the size of files, as on a disk that is full by then."""

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        run(composed(*SETTINGS, f"resume={folder}"), folder)

    return in_a_process(body)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000, 20_000])  # before a checkpoint, and within one or later
def test_a_full_disk_costs_nothing_that_was_written(tmp_path, limit):
    folder = tmp_path / "run"
    assert limited(folder, limit) == 1
    assert not (folder / "summary.json").exists()
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())  # complete, or not there
    assert one_run(folder) == 0
    assert one_run(tmp_path / "whole") == 0
    assert results(folder) == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), "/runs/a: the disk is full"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/runs"),
            "/runs: you have no permission to read or write",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/runs"), "/runs: the disk is read-only"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    ],
)
def test_trouble_with_the_machine_is_told_in_a_sentence(error, message):
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    if isinstance(error, OSError):
        assert message in _trouble(wrapped)
    assert message in _trouble(error)
    assert _trouble(ValueError("a mistake in the program")) is None


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    result = subprocess.run(
        [sys.executable, "-m", "coseg_lightning.run", f"hydra.run.dir={tmp_path / 'file' / 'run'}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "part of this path is a file, not a folder" in result.stderr


@pytest.mark.slow
def test_an_image_that_becomes_unreadable_in_the_second_epoch(make_folder, tmp_path, monkeypatch):
    root, folder = make_folder(), tmp_path / "run"
    options = [*FOLDER, f"data.root={root}", "trainer.max_epochs=3", "data.batch_size=3"]
    run(composed(*options), tmp_path / "whole")
    gone, step, steps = root / "images" / "s03.png", torch.optim.Adam.step, []
    content = gone.read_bytes()

    def stepping(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 3:  # the first step of the second epoch
            gone.write_bytes(content[:20])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", stepping)
    with pytest.raises(InputError, match="s03.png cannot be read as an image; restore"):
        run(composed(*options, f"resume={folder}"), folder)
    monkeypatch.undo()
    gone.write_bytes(content)
    run(composed(*options, f"resume={folder}"), folder)
    assert results(folder) == results(tmp_path / "whole")


# Odd datasets


class Odd(Squares):
    """Squares, some masks of which are empty, and one of which is all unlabelled."""

    def mask(self, index):
        return super().mask(index) * (index > 1) + np.uint8(255 * (index == 1))


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize(
    "settings",
    [
        ["nol=0"],
        ["nol=0.95"],
        ["data.source.train=1", "data.batch_size=1"],  # one sample, and BatchNorm
        ["data.source.train=1", "nol=0.95"],
        ["data.source.train=3", "data.batch_size=8"],  # a dataset smaller than a batch
        ["data.source.train=5", "data.batch_size=4"],  # a last batch of one sample
        ["data.batch_size=1", "method.selection=eq1"],
        ["nol=auto", "noise.level=0", "data.source.train=2"],
    ],
)
def test_a_run_at_the_edges_ends_with_figures(tmp_path, settings):
    rest = [setting for setting in SETTINGS if setting.partition("=")[0] not in _keys(settings)]
    summary = run(composed(*rest, "data.source.val=0", *settings), tmp_path / "run")
    assert 0 <= summary["test"]["dice"] <= 1
    assert summary["test"]["accuracy"] is not None


def _keys(settings):
    return {setting.partition("=")[0] for setting in settings}


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("classes", [2, 4])  # with 4, two classes are absent from every batch
def test_empty_and_unlabelled_masks_are_trained_on(tmp_path, classes):
    root = tmp_path / "dataset"
    squares = Odd(8)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, sample_id in enumerate(squares.ids):
        Image.fromarray(squares.image(i)).save(root / "images" / f"{sample_id}.png")
        Image.fromarray(squares.mask(i)).save(root / "masks" / f"{sample_id}.png")
    (root / "split.csv").write_text(
        "id,split\n"
        + "".join(
            f"{sample_id},{'test' if sample_id > 's05' else 'train'}\n" for sample_id in squares.ids
        )
    )
    options = [f"data.root={root}", f"data.classes={classes}", "data.batch_size=2"]
    summary = run(composed(*FOLDER, *options), tmp_path / "run")
    assert 0 <= summary["test"]["dice"] <= 1
    rows = rows_of(tmp_path / "run" / "scores.csv")
    assert {row["id"] for row in rows} == {f"s{i:02d}" for i in range(6)}
    assert all(np.isfinite(float(row["score"])) for row in rows)


# What somebody changed, or sent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert one_run(folder) == 0
    return folder


@pytest.mark.slow
def test_an_edited_ranking_or_layer_is_not_gone_on_with(finished, tmp_path):
    for name, edit in {
        "scores.csv": lambda text: text.replace(",0,", ",1,", 1),
        "labels/manifest.json": lambda text: text.replace('"changed_pixels": ', '"pixels": ', 1),
        "robust_training/done.json": lambda text: text.replace('["labels"]', '["../labels"]'),
        "run.json": lambda text: text[:-5],
    }.items():
        folder = tmp_path / name.replace("/", "_")
        shutil.copytree(finished, folder)
        before = (folder / name).read_text()
        assert edit(before) != before
        (folder / name).write_text(edit(before))
        with pytest.raises(InputError, match="changed") as error:
            run(composed(*SETTINGS, f"resume={folder}"), folder)
        assert name in str(error.value) or "labels" in str(error.value)
        (folder / name).write_text(before)
        run(composed(*SETTINGS, f"resume={folder}"), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["labels"].update({"../../x": {}}),
        lambda manifest: manifest["labels"].popitem(),
        lambda manifest: manifest.update(digest="0"),
        lambda manifest: manifest.pop("digest"),
        lambda manifest: manifest.update(run="another"),
    ],
)
def test_an_edited_manifest_is_refused(finished, tmp_path, edit):
    shutil.copytree(finished / "labels", tmp_path / "labels")
    LabelStore(tmp_path / "labels")
    path = tmp_path / "labels" / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="manifest.json was changed after it was written"):
        LabelStore(tmp_path / "labels")


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["code", "cut off", "text", "something else"])
def test_a_checkpoint_of_code_or_rubbish_is_refused_and_not_run(tmp_path, content):
    folder = tmp_path / "run"
    assert one_run(folder, at=34) == -signal.SIGKILL
    (path,) = folder.rglob("unfinished.ckpt")
    if content == "code":
        torch.save({"state_dict": Exploit(tmp_path / "owned")}, path)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    elif content == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "text":
        path.write_text("no checkpoint")
    else:
        torch.save([1, 2], path)
    with pytest.raises(InputError, match="unfinished.ckpt") as error:
        run(composed(*SETTINGS, f"resume={folder}"), folder)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_a_link_in_the_runs_folder_does_not_lead_to_your_files(tmp_path):
    folder, mine = tmp_path / "run", tmp_path / "mine"
    mine.mkdir()
    (mine / "a.png").write_text("mine")
    assert one_run(folder, at=20) == -signal.SIGKILL
    (folder / "labels").symlink_to(mine)
    (folder / "scores.csv").symlink_to(mine / "a.png")
    before = hashes(mine)
    assert one_run(folder) == 0
    assert hashes(mine) == before
    assert not (folder / "labels").is_symlink()


@pytest.mark.slow
@pytest.mark.drawn
def test_names_are_escaped_in_tables_and_pages(make_folder, tmp_path):
    root = make_folder()
    names = ["<img src=x onerror=alert(1)>", "=1+1", "@SUM(A1)", "$a^{b$", "'-1", "&amp;"]
    for i, name in enumerate(names):
        for part in ("images", "masks"):
            (root / part / f"s{i:02d}.png").rename(root / part / f"{name}.png")
    rough = [f"{sample_id},train\n" for sample_id in [f'"{name}"' for name in names]]
    (root / "split.csv").write_text("id,split\n" + "".join(rough) + "s06,test\n")
    options = [f"data.root={root}", "++method.confidence=0", "nol=0.5", "optimizer.lr=0.01"]
    run(composed(*FOLDER, *options), tmp_path / "run")
    with (tmp_path / "run" / "scores.csv").open() as file:
        cells = [line.split(",")[0] for line in file][1:]
    assert not any(cell.strip('"')[0] in "=+-@" for cell in cells)
    assert {row["id"] for row in read_rows(tmp_path / "run" / "scores.csv")} == set(names)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_ids_that_would_be_one_file_are_refused_before_training():
    for ids, message in (
        (["a", "A"], "the same file on disks that ignore letter case"),
        (["\u00e9", "e\u0301"], "the same file on disks"),
        (["x" * 300], "too long for a file name"),
        (["a/b"], "cannot be a file name"),
    ):
        squares = Squares(len(ids))
        squares.ids = ids
        with pytest.raises(InputError, match=message):
            CoSegDataModule(squares, image_size=32, in_channels=1)


# A run's folder


@pytest.mark.parametrize("name", ["metrics.csv", "report.html", "labels_7", "early_learning_9"])
def test_nothing_of_yours_in_the_folder_is_written_over(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    for more in ([], [f"resume={tmp_path / 'run'}"]):
        with pytest.raises(InputError, match=f"holds another run \\({name}\\)"):
            run(composed(*SETTINGS, *more), tmp_path / "run")
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_of_two_runs_that_begin_together_one_is_refused(tmp_path):
    first = RunFolder(tmp_path / "run", {"seed": 1})
    second = RunFolder(tmp_path / "run", {"seed": 2})
    first.begin()
    with pytest.raises(InputError, match="is already used by a run that started at the same time"):
        second.begin()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["id"] == first.id
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.slow
def test_a_disk_without_links_holds_a_run_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    RunFolder(tmp_path / "run", {"seed": 1}).begin()
    assert RunFolder(tmp_path / "run", {"seed": 1}, resume=True).resumed
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.slow
def test_changed_data_is_another_run(make_folder, tmp_path):
    root, folder = make_folder(size=10), tmp_path / "run"
    options = [*FOLDER, f"data.root={root}", f"resume={folder}", "data.batch_size=4"]
    options += ["trainer.max_epochs=3"]

    def interrupted():
        counting(at=15)
        run(composed(*options), folder)

    assert in_a_process(interrupted) == -signal.SIGKILL
    mask = next((root / "masks").iterdir())
    content = mask.read_bytes()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"samples\.(train|test)=\d+ samples .* \(it was"):
        run(composed(*options), folder)
    mask.write_bytes(content)
    run(composed(*options), folder)
    shutil.rmtree(root)
    summary = run(composed(*options), folder)  # a finished run needs its data no more
    assert summary["test"]["dice"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{}"),
        ("run.json", '{"id": "a", "config": [1]}'),
        ("summary.json", "{}"),
        ("robust_training/done.json", '{"made": {}}'),
        ("robust_training/done.json", "[" * 100_000),
    ],
)
def test_files_of_a_run_that_are_not_what_they_were(finished, tmp_path, name, content):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(InputError, match=f"{name} was changed and cannot be read"):
        run(composed(*SETTINGS, f"resume={tmp_path / 'run'}"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("other", ["model.width=8", None])
def test_a_checkpoint_of_another_network_is_refused(finished, tmp_path, other):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    path = folder / "retraining" / "last.ckpt"
    if other is None:
        torch.save({"state_dict": {}}, path)
    else:
        shutil.copy(folder / "robust_training" / "last.ckpt", path)
    with pytest.raises(InputError, match=r"last.ckpt belongs to another network"):
        run(composed(*SETTINGS, f"resume={folder}"), folder)


@pytest.mark.slow
def test_files_that_look_like_temporary_ones_stay(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / ".2024.results.csv").write_text("mine")
    (folder / ".12.coseg-new.a.png").write_text("half")
    run(composed(*SETTINGS, f"resume={folder}"), folder)
    assert (folder / ".2024.results.csv").read_text() == "mine"
    assert not (folder / ".12.coseg-new.a.png").exists()


@pytest.mark.slow
def test_a_run_of_another_version_is_named_so(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr("coseg_lightning.__version__", "99")
    summary = run(composed(*SETTINGS, f"resume={folder}"), folder)  # finished, and only shown
    assert summary["test"]["dice"] is not None
    with pytest.raises(InputError, match=r"differs in seed=5 \(it was 0\)"):
        run(composed(*SETTINGS, "seed=5", f"resume={folder}"), folder)
    (folder / "summary.json").unlink()
    with pytest.raises(
        InputError, match=r"was started by version .* but version 99 may continue it"
    ):
        run(composed(*SETTINGS, f"resume={folder}"), folder)
