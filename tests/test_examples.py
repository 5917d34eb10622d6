"""The examples run as they stand, but for fewer epochs."""

import importlib.util
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coseg_lightning import CoSegModule, LabelStore
from coseg_lightning.functional.equations import segmentation_loss
from support import PHANTOM, ROOT, SMALL, Squares, TinyNetwork, command, in_a_process

pytestmark = [pytest.mark.slow, pytest.mark.drawn]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_lightning_project(tmp_path):
    output = tmp_path / "output"

    def body():
        with output.open("w") as file, redirect_stdout(file):
            example("lightning_project").main(max_epochs=1)

    assert in_a_process(body) == 0  # it takes a gigabyte
    assert "careless masks are among the 12 worst" in output.read_text()


def test_folder_of_masks(tmp_path):
    module, output = example("folder_of_masks"), tmp_path / "output"
    module.draw_folder(tmp_path / "mine", size=10)

    def body():
        with output.open("w") as file, redirect_stdout(file):
            run = module.main(tmp_path / "mine", max_epochs=1)
        assert (run / "report.html").is_file()

    assert in_a_process(body) == 0  # it takes more than a gigabyte
    assert "Test Dice" in output.read_text()


def test_noise_models(tmp_path):
    assert example("noise_models").main(tmp_path / "noise.png").is_file()


def test_lightning_cli(tmp_path):
    args = ["fit", "--trainer.max_epochs=1", "--data.size=8", "--model.net_a=unet_classic"]
    args += ["--model.base_channels=2", "--model.optimizer=torch.optim.SGD", "--model.lr=0.01"]
    args += ["--model.scheduler=torch.optim.lr_scheduler.StepLR", "--model.scheduler.step_size=1"]
    cli = example("lightning_cli").main(args, tmp_path)
    groups = cli.trainer.optimizers[0].param_groups
    assert isinstance(cli.trainer.optimizers[0], torch.optim.SGD)
    assert [group["name"] for group in groups] == ["net_a", "net_b"]
    assert groups[0]["lr"] == pytest.approx(0.001)
    assert LabelStore.is_finished(tmp_path / "labels")
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = CoSegModule.load_from_checkpoint(path)
    torch.testing.assert_close(loaded.net_a.state_dict(), cli.model.net_a.state_dict())


def fake_pets(root, size=10):
    """Write the layout of torchvision's `OxfordIIITPet`."""
    base = root / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps"):
        (base / name).mkdir(parents=True)
    squares = Squares(2 * size, name="cat_")
    for index, sample_id in enumerate(squares.ids):
        mask = squares.mask(index)
        trimap = np.where(mask == 1, 1, 2).astype(np.uint8)
        trimap[:2] = 3
        image = Image.fromarray(squares.image(index)).convert("RGB")
        image.save(base / "images" / f"{sample_id}.jpg")
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{sample_id}.png")
    for split, ids in (("trainval", squares.ids[:size]), ("test", squares.ids[size:])):
        (base / "annotations" / f"{split}.txt").write_text(
            "".join(f"{sample_id} 1 1 1\n" for sample_id in ids)
        )


def test_oxford_pets(tmp_path):
    fake_pets(tmp_path)
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    main, run = example("oxford_pets").main, tmp_path / "run"
    # In a process of its own, since it takes more than a gigabyte.
    assert in_a_process(lambda: main(tmp_path, run, side=32, **options)) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert 0 <= summary["test"]["dice"] <= 1
    # One sample is for validation.
    assert (tmp_path / "run" / "scores.csv").read_text().count("pet_") == 9
    assert (tmp_path / "run" / "labels").is_dir()


def test_three_days(tmp_path, monkeypatch):
    """The second day; the first and the third are those of other tests."""
    module, shown = example("three_days"), []

    def coseg(*arguments):
        short = ["rehearse=false"] if arguments[0] == "run" else []
        result = command("__main__", *arguments, *short)
        assert result.returncode == 0, result.stderr
        shown.append(result.stdout)

    monkeypatch.setattr(module, "coseg", coseg)
    module.crowd(tmp_path, ["trainer.max_epochs=2"], masks=40)
    assert any("trusted test masks" in text for text in shown)
    assert "4 masks are not for training, so the run did not look at them" in shown[-1]


def test_every_example_is_tested():
    here = Path(__file__).read_text()
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert len(names) == 6
    assert all(f'example("{name}")' in here for name in names)


def test_a_method_of_ones_own(tmp_path):
    """One file and one yaml outside the package are enough."""
    folder = ROOT / "examples" / "own_method"
    settings = [*SMALL, *PHANTOM, f"hydra.run.dir={tmp_path}", "+method.options.gamma=1"]
    options = ["--config-dir", ".", "method=bootstrapping", "noise=type2", *settings]
    wrong = command("run", *options, cwd=folder)
    assert wrong.returncode == 1
    assert "gamma: Bootstrapping has no such argument" in wrong.stderr
    done = command("run", *options[:-1], cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["method"]["options"] == {"beta": 0.8}
    assert set(summary["stages"]) == {"supervised_training", "test"}
    assert "the method bootstrapping" in (tmp_path / "report.html").read_text()
    other = f"hydra.run.dir={tmp_path / 'other'}"
    wrong = command("run", *options[:-2], other, "method.stages=[training]", cwd=folder)
    assert "stages=['training'] of method=bootstrapping must be" in wrong.stderr


def test_the_loss_of_a_method_of_ones_own():
    module = example("own_method/bootstrapping").Bootstrapping(TinyNetwork(), beta=0.75)
    logits, masks = torch.randn(2, 2, 5, 6), torch.randint(0, 2, (2, 5, 6))
    masks[0, 0] = 255
    predicted = logits.argmax(dim=1)
    predicted[0, 0] = 255
    expected = 0.75 * segmentation_loss(logits, masks)
    expected += 0.25 * segmentation_loss(logits, predicted)
    torch.testing.assert_close(module.supervised_losses(logits, masks), expected)
