"""The demonstration draws a folder as a user has one, and runs the commands that it shows."""

import re
import shlex
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from coseg_lightning import demo
from coseg_lightning.data.phantom import phantom_splits
from coseg_lightning.errors import InputError
from support import command, rows_of

TINY = ["trainer.max_epochs=2", "rehearse=false"]


def test_the_folder_is_like_a_users(tmp_path):
    bad = demo.draw_folder(tmp_path / "new", train=10, test=3, seed=1)
    assert len(bad) == 3
    masks = sorted((tmp_path / "new" / "masks").iterdir())
    assert [path.name for path in masks] == [
        path.name for path in sorted((tmp_path / "new" / "images").iterdir())
    ]
    splits = phantom_splits(10, 0, 3, side=96, seed=1)
    right = {f"{i}.png": p.mask(n) for p in splits if p for n, i in enumerate(p.ids)}
    changed = [p.stem for p in masks if ((np.asarray(Image.open(p)) > 0) != right[p.name]).any()]
    assert changed == bad
    rows = rows_of(tmp_path / "new" / "split.csv")
    assert {row["id"] for row in rows if row["trusted"] == "1"} == set(splits.test.ids)
    assert all((row["split"] == "test") == (row["trusted"] == "1") for row in rows)


@pytest.mark.slow
@pytest.mark.drawn
def test_it_runs_what_it_shows_and_says_what_came_out(tmp_path, monkeypatch, capsys):
    def run(words, env, check):
        assert env["OMP_NUM_THREADS"]
        assert words[:3] == [sys.executable, "-m", "coseg_lightning"]
        done = command("__main__", *words[3:])
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        return done

    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run))
    folder = tmp_path / "a demo (1)"
    page = demo.demonstrate(folder, train=12, test=3, training=TINY)
    assert page.is_file()
    text = capsys.readouterr().out
    shown = [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("$ coseg")]
    assert [words[0] for words in shown] == ["audit", "run", "apply"]
    assert all(str(folder) in words[1] for words in shown)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["images", "masks", "split.csv", "audit", "run", "corrected"]
    )
    assert "Tested on              trusted test masks" in text
    given, corrected = (
        float(re.search(rf"Mean Dice of the bad masks, {name} +([\d.]+)", text)[1])
        for name in ("as given", "corrected")
    )
    assert given < 0.95
    if "Masks corrected        none" in text:
        assert corrected == given
    assert f"browser: {page}" in text


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "note").write_text("mine")
    done = command("demo", f"folder={tmp_path}")
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"{tmp_path} exists and is never overwritten; give another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_command_that_fails_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo, "subprocess", SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=3))
    )
    with pytest.raises(SystemExit) as error:
        demo.demonstrate(tmp_path / "new", train=4, test=1)
    assert error.value.code == 3


def test_it_takes_no_other_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", "fodler=x"])
    with pytest.raises(InputError, match="did you mean folder"):
        demo.main()


@pytest.mark.parametrize(
    ("settings", "display", "opened"),
    [([], ":0", 0), (["open=true"], "", 0), (["open=true"], ":0", 1)],
)
def test_a_browser_opens_if_wanted_and_if_there_is_a_display(
    tmp_path, monkeypatch, settings, display, opened
):
    pages = []
    monkeypatch.setattr("webbrowser.open", pages.append)
    monkeypatch.setattr(demo, "demonstrate", lambda *_, **__: tmp_path / "report.html")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "argv", ["demo", *settings])
    demo.main()
    assert pages == [(tmp_path / "report.html").as_uri()] * opened
