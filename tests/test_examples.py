"""The examples run as they stand, for fewer epochs."""

import importlib.util

import pytest
from conftest import ROOT


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_lightning_project(capsys):
    example("lightning_project").main(max_epochs=1)
    assert "careless masks are among the 12 worst" in capsys.readouterr().out


def test_folder_of_masks(capsys):
    run = example("folder_of_masks").main(max_epochs=1)
    assert (run / "report.html").is_file()
    assert "Test Dice" in capsys.readouterr().out


def test_noise_models(tmp_path):
    assert example("noise_models").main(tmp_path / "noise.png").is_file()


def test_every_example_is_tested():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == {"lightning_project", "folder_of_masks", "noise_models"}
