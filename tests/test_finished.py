"""What a finished run gives away: masks of new images, networks, clean masks, reviewed labels."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import Squares
from PIL import Image
from test_run import SMALL, composed

from coseg_lightning.apply import apply
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.predictions import PredictionFolder
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.export import Probabilities, export
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.predict import predict
from coseg_lightning.run import run
from coseg_lightning.runs.finished import FinishedRun

LEARNING = ["trainer.max_epochs=12", "optimizer.lr=0.01", "nol=0.3", "++method.confidence=0"]


def command(name, *arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", f"coseg_lightning.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )


def digests(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on a folder of palette masks, of which some are bad."""
    place = tmp_path_factory.mktemp("finished")
    squares = Squares(24, 40)
    for name in ("images", "masks"):
        (place / "data" / name).mkdir(parents=True)
    for i, id in enumerate(squares.ids):
        mask = squares.mask(i)
        mask = np.roll(mask, 6, axis=1) if i % 4 == 0 else mask
        picture = Image.fromarray(255 * mask).convert("P")
        picture.putpalette([0, 0, 0] + 254 * [9, 9, 9] + [255, 0, 0])
        picture.putdata((255 * mask).ravel().tolist())
        picture.save(place / "data" / "masks" / f"{id}.png", transparency=0)
        Image.fromarray(squares.image(i)).save(place / "data" / "images" / f"{id}.png")
    options = ["data=folder", f"data.root={place / 'data'}", "data.in_channels=1"]
    run(composed(*SMALL, *options, *LEARNING), place / "run")
    return place


@pytest.fixture(scope="module")
def smp_run(tmp_path_factory):
    """A run with one of smp's networks."""
    place = tmp_path_factory.mktemp("smp")
    options = ["data.source.train=4", "data.source.val=0", "data.source.test=2"]
    options += ["data.source.side=64", "data.image_size=64", "trainer.max_epochs=1"]
    options += ["trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]
    run(composed("model=unet", "method=supervised", *options), place / "run")
    return place / "run"


def test_masks_of_new_images_have_their_own_size(place, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    squares = Squares(5, 40)
    for i, id in enumerate(squares.ids):
        Image.fromarray(squares.image(i)).resize((80, 60)).save(images / f"{id}.jpg")
    before = digests(tmp_path)
    options = ["probabilities=true", "flips=true", "batch_size=2", "device=cpu"]
    result = command("predict", place / "run", images, tmp_path / "out", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"5 masks are in {tmp_path / 'out'}." in result.stdout
    masks = MaskFolder(tmp_path / "out", classes=2)
    probabilities = PredictionFolder(tmp_path / "out" / "probabilities", classes=2)
    for id in squares.ids:
        mask, p = masks.read(id), probabilities.read(id, (60, 80))
        assert mask.shape == (60, 80)
        disagreeing = (p.argmax(axis=0) != mask) & (abs(p[0] - p[1]) > 0.01)  # float16
        assert not disagreeing.any()
    assert {path: digests(tmp_path)[path] for path in before} == before
    # The same whatever the batches.
    predict(place / "run", images, tmp_path / "again", batch_size=5, flips=True, num_workers=1)
    for id in squares.ids:
        np.testing.assert_array_equal(
            MaskFolder(tmp_path / "again", classes=2).read(id), masks.read(id)
        )


def test_predictions_are_those_that_the_test_measured(place, tmp_path):
    splits = folder_splits(place / "data")
    predict(place / "run", place / "data" / "images", tmp_path / "out")
    masks = MaskFolder(tmp_path / "out", classes=2)
    samples = SampleDataset(splits.test, image_size=32, in_channels=1)
    network = FinishedRun(place / "run").network()
    for i, id in enumerate(splits.test.ids):
        with torch.no_grad():
            p = network(samples[i]["image"][None]).softmax(dim=1)
        p = torch.nn.functional.interpolate(p, (40, 40), mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(masks.read(id), p[0].argmax(dim=0))


def test_bad_images_do_not_keep_the_others_from_their_masks(place, tmp_path):
    shutil.copytree(place / "data" / "images", tmp_path / "images")
    (tmp_path / "images" / "s03.png").write_text("no image")
    with pytest.raises(InputError, match=r"1 of 24 images have no mask: .*s03.png cannot be read"):
        predict(place / "run", tmp_path / "images", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 23
    with pytest.raises(InputError, match="out is not empty, and nothing is ever overwritten"):
        predict(place / "run", tmp_path / "images", tmp_path / "out")
    with pytest.raises(InputError, match="device=cuda:99 is not available"):
        predict(place / "run", tmp_path / "images", tmp_path / "other", device="cuda:99")
    result = command("predict", place / "run", "images", "new", "flip=true", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("flip=true: there is no such setting; take probabilities,")
    for value in ("often", "["):
        result = command("predict", place / "run", "images", "new", f"flips={value}", cwd=tmp_path)
        assert result.stderr.startswith(f"flips={value} must be a bool")


def test_all_masks_in_the_users_own_format(place, tmp_path):
    before = digests(place / "data")
    result = command("apply", place / "run", tmp_path / "clean", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    layer = LabelStore(place / "run" / "labels")
    changed = [id for id in layer.ids if layer.facts(id)["changed_pixels"]]
    assert 2 < len(changed) < 10
    assert f"{len(changed)} of 24 masks in {tmp_path / 'clean'} were corrected." in result.stdout
    clean = MaskFolder(tmp_path / "clean", classes=2)
    for path in (place / "data" / "masks").iterdir():
        new = tmp_path / "clean" / path.name
        if path.stem not in changed:
            assert new.read_bytes() == path.read_bytes()
            continue
        with Image.open(path) as original, Image.open(new) as written:
            assert (written.mode, written.getpalette()) == (original.mode, original.getpalette())
            assert written.info["transparency"] == original.info["transparency"]
            assert set(np.unique(written)) <= {0, 255}
        np.testing.assert_array_equal(clean.read(path.stem), layer.read(path.stem))
    assert digests(place / "data") == before
    with pytest.raises(InputError, match="exists and is never overwritten"):
        apply(place / "run", tmp_path / "clean")
    with pytest.raises(InputError, match="which is only read"):
        apply(place / "run", place / "data" / "masks" / "clean")


def test_apply_needs_a_folder_of_masks(smp_run, tmp_path):
    with pytest.raises(InputError, match="is not a run of data=folder"):
        apply(smp_run, tmp_path / "clean")


OUTSIDE_TORCH = """
import json, sys
import numpy as np, onnxruntime
path = sys.argv[1]
description = json.load(open(path + ".json"))
channels, side = description["input"]["shape"][1:3]
images = np.random.default_rng(0).normal(size=(5, channels, side, side)).astype(np.float32)
found = onnxruntime.InferenceSession(path).run(None, {description["input"]["name"]: images})[0]
assert "torch" not in sys.modules
np.save(sys.argv[2], found)
"""


@pytest.mark.parametrize("which", ["smp's", "classic"])
def test_an_onnx_model_runs_outside_torch(which, place, smp_run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = smp_run if which == "smp's" else place / "run"
    path, difference = export(folder, "onnx", tmp_path / "model.onnx")
    assert difference < 1e-4
    script = [sys.executable, "-c", OUTSIDE_TORCH, str(path), str(tmp_path / "found.npy")]
    subprocess.run(script, check=True)
    found = np.load(tmp_path / "found.npy")
    side = found.shape[-1]
    images = np.random.default_rng(0).normal(size=(5, 1, side, side)).astype(np.float32)
    with torch.no_grad():
        expected = Probabilities(FinishedRun(folder).network())(torch.from_numpy(images))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("format", ["torchscript", "safetensors"])
def test_other_formats(format, place, tmp_path):
    from safetensors.torch import load_file

    path, difference = export(place / "run", format, tmp_path / "model")
    network = FinishedRun(place / "run").network()
    if format == "safetensors":
        assert difference is None
        weights = load_file(path)
        assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    else:
        assert difference < 1e-6
        images = torch.randn(2, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(path)(images), network(images).softmax(dim=1))
    assert json.loads((tmp_path / "model.json").read_text())["input"]["shape"] == ["N", 1, 32, 32]
    with pytest.raises(InputError, match="exists and is never overwritten"):
        export(place / "run", format, tmp_path / "model")
    with pytest.raises(InputError, match="format=tflite must be onnx, torchscript, safetensors"):
        export(place / "run", "tflite")


def test_the_export_command_names_what_it_wrote(place, tmp_path):
    result = command("export", place / "run", "format=safetensors", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    description = place / "run" / "export" / "model.safetensors.json"
    assert f"inputs and outputs are described in {description}" in result.stdout
    assert description.is_file()


def test_smps_own_loader_reads_the_network(smp_run):
    network = smp.from_pretrained(str(smp_run / "model"))
    own = FinishedRun(smp_run).network()
    assert type(own) is type(network)
    assert all(torch.equal(own.state_dict()[k], v) for k, v in network.state_dict().items())


def test_a_run_that_is_not_finished_or_was_edited(place, tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        FinishedRun(tmp_path)
    shutil.copytree(place / "run", tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    for edit in ({"config": None}, {"correction": {"layers": ["../elsewhere"]}}):
        path.write_text(json.dumps({**summary, **edit}))
        with pytest.raises(InputError, match=r"summary.json (was changed|names a layer outside)"):
            FinishedRun(tmp_path / "run").cfg  # noqa: B018
    path.write_text(json.dumps(summary))
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="model.safetensors cannot be read as weights"):
        FinishedRun(tmp_path / "run").network()


# Review


def review_of(path, **decisions):
    lines = [f"{id},{decision}\n" for id, decision in decisions.items()]
    path.write_text("id,decision\n" + "".join(lines))
    return path


def test_retraining_by_a_review(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    layer = LabelStore(place / "run" / "labels")
    first, second, third, *rest = [id for id in layer.ids if layer.facts(id)["changed_pixels"]]
    review = review_of(
        tmp_path / "review.csv", **{first: "keep", second: "reject", third: "redraw"}
    )
    before = digests(tmp_path / "run")
    arguments = ["stages=[retraining]", f"resume={tmp_path / 'run'}", f"review={review}"]
    result = command("run", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reviewed = tmp_path / "run" / "reviewed"
    assert {path: digests(tmp_path / "run")[path] for path in before} == before
    new = LabelStore(reviewed / "labels")
    assert set(new.ids) == {first, *rest}
    np.testing.assert_array_equal(new.read(first), layer.read(first))
    assert (reviewed / "redraw.csv").read_text() == f"id\n{third}\n"
    summary = json.loads((reviewed / "summary.json").read_text())
    counts = {"corrected": 1 + len(rest), "rejected": 1, "redraw": 1}
    assert {name: summary["correction"][name] for name in counts} == counts
    assert 0 < summary["test"]["dice"] <= 1
    assert (reviewed / "model" / "model.safetensors").is_file()
    again = command("run", *arguments, cwd=tmp_path)  # is finished
    assert again.returncode == 0
    assert "Retraining ..." not in again.stdout
    refused = command("run", *arguments, "nol=0.4", cwd=tmp_path)
    assert refused.stderr.startswith("nol=0.4: the settings are those of")


def test_keeping_everything_is_the_run_itself(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    review = review_of(tmp_path / "review.csv")
    summary = run(
        composed("stages=[retraining]", f"resume={tmp_path / 'run'}", f"review={review}"),
        tmp_path / "reviewed",
    )
    assert summary["test"] == json.loads((place / "run" / "summary.json").read_text())["test"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"s00": "maybe"}, "says 'maybe' of s00; it must be keep, reject or redraw"),
        ({"nobody": "keep"}, "names nobody, whose mask the run did not change"),
    ],
)
def test_a_review_of_something_else_is_refused(place, tmp_path, rows, told):
    review = review_of(tmp_path / "review.csv", **rows)
    options = ["stages=[retraining]", f"resume={place / 'run'}", f"review={review}"]
    with pytest.raises(InputError, match=told):
        run(composed(*options), tmp_path / "reviewed")


@pytest.mark.parametrize("options", [["stages=[retraining]"], ["review=a.csv"], ["stages=[x]"]])
def test_half_of_a_review_is_refused(options, tmp_path):
    with pytest.raises(InputError, match=r"retrained by stages=\[retraining\] resume=RUN review="):
        run(composed(*options), tmp_path)


def test_a_reviewed_run_has_a_report_that_tells_of_the_review(tmp_path):
    options = ["data.source.train=16", "data.source.val=0", "data.source.test=3"]
    options += ["data.source.side=48", "noise=type2", *LEARNING]
    run(composed(*SMALL, *options), tmp_path / "run")
    layer = LabelStore(tmp_path / "run" / "labels")
    first, second = [id for id in layer.ids if layer.facts(id)["changed_pixels"]][:2]
    review = review_of(tmp_path / "review.csv", **{first: "reject", second: "redraw"})
    options = ["stages=[retraining]", f"resume={tmp_path / 'run'}", f"review={review}"]
    run(composed(*options), tmp_path / "elsewhere")
    page = (tmp_path / "elsewhere" / "report.html").read_text()
    assert "The network retrained on reviewed labels reached" in page
    assert "1 corrections rejected, 1 masks left out until they are redrawn" in page
    assert "The run before its review" in page
    result = command("report", tmp_path / "elsewhere", cwd=tmp_path)  # the noise is the run's
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "elsewhere" / "report.html").read_text() == page
    options[1] = f"resume={tmp_path / 'elsewhere'}"
    with pytest.raises(InputError, match="is itself a reviewed run; give the run that it came"):
        run(composed(*options), tmp_path / "again")


def test_leaving_samples_out_does_not_improve_the_labels(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    summary = run(
        composed(*SMALL, "data.source.side=48", "data.source.train=12", "noise=type2",
                 "method=filter", "nol=0.3"),
        tmp_path / "filter",
    )  # fmt: skip
    before, after = (summary["correction"][f"label_dice_{when}"] for when in ("before", "after"))
    assert before == after


# Data that was changed or moved


def test_changed_data_is_not_retrained_on_and_newer_masks_stay(place, tmp_path):
    shutil.copytree(place, tmp_path / "all")
    folder, data = tmp_path / "all" / "run", tmp_path / "all" / "data"
    layer = LabelStore(folder / "labels")
    changed = next(id for id in layer.ids if layer.facts(id)["changed_pixels"])
    mine = data / "masks" / f"{changed}.png"
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(mine)
    review = review_of(tmp_path / "review.csv")
    options = ["stages=[retraining]", f"resume={folder}", f"review={review}", f"data.root={data}"]
    result = command("run", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert f"The data of {folder} is not what it was: train: " in result.stderr
    assert "Traceback" not in result.stderr
    result = command("apply", folder, tmp_path / "clean", f"root={data}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"1 changed after the run and were copied as they are now: {changed}" in result.stdout
    assert (tmp_path / "clean" / mine.name).read_bytes() == mine.read_bytes()
    result = command("report", folder, f"root={data}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "The report has no pictures of samples: The data of" in result.stdout


def test_a_run_is_of_use_from_another_folder_and_when_its_data_has_moved(place, tmp_path):
    arguments = [*SMALL, "data=folder", "data.root=data", "data.in_channels=1"]
    arguments += [f"hydra.run.dir={tmp_path / 'run'}", *LEARNING]
    result = command("run", *arguments, cwd=place)  # relative to another folder than the next
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert command("report", tmp_path / "run", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run" / "report.html").read_text() == page
    shutil.copytree(place / "data", tmp_path / "moved")
    path = tmp_path / "run" / "summary.json"
    path.write_text(path.read_text().replace(str(place / "data"), str(tmp_path / "gone")))
    for options, told in (
        ([], "The report has no pictures of samples: data.root="),
        (["root=moved"], ""),
    ):
        result = command("report", "run", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert told in result.stdout
    pictures = (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg")
    assert pictures == page.count("data:image/jpeg") > 0


def test_a_refused_command_leaves_the_runs_own_settings(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / ".hydra").mkdir()
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("- nol=0.3\n")
    for arguments in (
        [f"resume={tmp_path / 'run'}", "nol=0.7"],
        ["stages=[retraining]", f"resume={tmp_path / 'run'}", "review=none.csv"],
    ):
        before = digests(tmp_path / "run")
        result = command("run", *arguments, cwd=tmp_path)
        assert result.returncode == 1
        after = digests(tmp_path / "run")
        assert {path for path in after if after[path] != before.get(path)} <= {
            *(path for path in after if path.name == "run.log")
        }


# Loggers


def test_figures_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["data.source.train=8", "data.source.val=0", "data.source.test=2"]
    run(composed(*SMALL, *options, "data.source.side=48", "logger=tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "figures"))
    events.Reload()
    assert set(events.Tags()["images"]) >= {"report/training", "report/scores"}


def test_figures_go_to_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    options = ["data.source.train=8", "data.source.val=0", "data.source.test=2"]
    run(composed(*SMALL, *options, "data.source.side=48", "logger=wandb"), tmp_path / "run")
    import wandb

    wandb.finish()
    pictures = [path.name for path in (tmp_path / "run").rglob("*.png") if "media" in path.parts]
    assert any(name.startswith("training_") for name in pictures)
    assert any(name.startswith("scores_") for name in pictures)
