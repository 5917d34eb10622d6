"""A run's folder is data: what it names is not imported or called unless it is well known."""

import json
import shutil

import pytest
import torch

from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.apply import apply
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.predict import predict
from coseg_lightning.run import run
from support import CLASSIC, PHANTOM, SHORT, command, composed

HUB = """
from pathlib import Path
def net(**options):
    Path("owned").touch()
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    settings = [*CLASSIC, *SHORT, *PHANTOM, "noise=type2", "nol=0.3", "trainer.max_epochs=1"]
    run(composed(*settings), folder)
    return folder


def changed(finished, tmp_path, keys, value):
    """Copy the run, and change one of its settings as somebody else might."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    node = summary["config"]
    *parents, last = keys
    for key in parents:
        node = node[key]
    node[last] = value
    path.write_text(json.dumps(summary))
    return folder


TARGETS = [
    "torch.hub.load",
    "torch.load",
    "numpy.load",
    "pickle.load",
    "os.system",
    "os.mkdir",
    "pathlib.Path.touch",
    "builtins.eval",
    "builtins.exec",
    "subprocess.run",
    "runpy.run_path",
    "importlib.import_module",
    "hydra.utils.get_method",
    "shutil.rmtree",
    "segmentation_models_pytorch.from_pretrained",
    "torchvision.models.get_model",
    "coseg_lightning.run.run",
    "coseg_lightning.noise.write_noisy_layer",
    "coseg_lightning.runs.folder.RunFolder",
    "my_network.Net",
]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_not_well_known_is_not_made(finished, tmp_path, target):
    folder = changed(finished, tmp_path, ["model"], {"_target_": target, "path": "x"})
    with pytest.raises(InputError, match=f"names {target} as its model._target_, which would be"):
        AppRun(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["data", "source"], {"_target_": "os.mkdir", "path": "owned"}),
        (["data", "source", "size"], {"_target_": "os.mkdir", "path": "owned"}),
        (["noise", "mine"], {"_target_": "os.mkdir", "path": "owned"}),
        (["logger"], {"_target_": "os.mkdir", "path": "owned"}),
        (["trainer", "callbacks"], [{"_target_": "os.mkdir", "path": "owned"}]),
        (["optimizer", "scheduler"], {"_target_": "os.mkdir", "path": "owned"}),
        (["optimizer", "name"], "mine.Optimizer"),
        (["method", "module"], "mine.Module"),
        (["method", "object"], "mine.METHOD"),
        (["peer_b"], {"_target_": "os.mkdir", "path": "owned"}),
        (["model"], {"_target_": "timm.create_model", "checkpoint_path": "weights.pth"}),
    ],
)
def test_wherever_it_is_named(finished, tmp_path, keys, value):
    folder = changed(finished, tmp_path, keys, value)
    with pytest.raises(InputError, match="add trust=true"):
        AppRun(folder)


@pytest.mark.slow
def test_no_command_runs_what_a_folder_names(finished, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hubconf.py").write_text(HUB)
    (tmp_path / "images").mkdir()
    hub = {"repo_or_dir": str(tmp_path / "hub"), "model": "net", "source": "local"}
    folder = changed(finished, tmp_path, ["model"], {"_target_": "torch.hub.load", **hub})
    for call in (
        lambda: predict(folder, tmp_path / "images", tmp_path / "out"),
        lambda: apply(folder, tmp_path / "masks"),
        lambda: export(folder, "safetensors"),
    ):
        with pytest.raises(InputError, match="torch.hub.load"):
            call()
    (tmp_path / "review.csv").write_text("id,decision\n")
    review = ["stages=[retraining]", f"resume={folder}", f"review={tmp_path / 'review.csv'}"]
    for name, arguments in (("report", [folder]), ("run", review)):
        result = command(name, *arguments, cwd=tmp_path)
        assert result.returncode == 1
        assert "names torch.hub.load as its model._target_" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_what_is_trusted_is_made(finished, tmp_path):
    own = {"_target_": "support.TinyNetwork", "in_channels": 1, "classes": 2}
    folder = changed(finished, tmp_path, ["model"], own)
    with pytest.raises(InputError, match="model.safetensors cannot be read as weights"):
        AppRun(folder, trust=True).network()  # its weights are those of another network
    network = AppRun(finished).network()
    assert network(torch.randn(1, 1, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (
            ["model"],
            "${oc.create:{_target_:torch.hub.load,repo_or_dir:hub,model:net,source:local}}",
        ),
        (["model", "name"], "${oc.create:{_target_:os.system,command:ls}}"),
        (["data", "source"], {"${oc.env:HOME}": 1}),
    ],
)
def test_what_would_be_computed_is_refused(finished, tmp_path, keys, value):
    folder = changed(finished, tmp_path, keys, value)
    with pytest.raises(
        InputError, match="an expression that would be evaluated here; restore its summary.json"
    ):
        AppRun(folder)


@pytest.mark.parametrize("value", ["no", "off", "maybe", "1"])
def test_trust_is_true_or_false(finished, value):
    settings = ["stages=[retraining]", f"resume={finished}", "review=none.csv", f"trust={value}"]
    with pytest.raises(InputError, match=f"trust={value}".replace("no", "(no|False)")):
        run(composed(*settings), finished.parent / "reviewed")
