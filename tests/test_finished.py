"""The products of a finished run: masks of new images, networks, clean masks, reviewed labels."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from coseg_lightning.app.exchange_tasks import write_tasks
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.apply import apply
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.predictions import PredictionFolder
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.export import Probabilities, export
from coseg_lightning.files.images import read_indices
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.labels.review import proposal_digest
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.predict import predict
from coseg_lightning.run import run
from coseg_lightning.runs.finished import FinishedRun
from support import CLASSIC, SHORT, SMALL, Squares, command, composed, rows_of

pytestmark = pytest.mark.slow

LEARNING = ["trainer.max_epochs=12", "optimizer.lr=0.01", "nol=0.3", "++method.confidence=0"]


def digests(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Train on a folder of palette masks, some of which are bad."""
    finished = tmp_path_factory.mktemp("finished")
    squares = Squares(24, 40)
    for name in ("images", "masks"):
        (finished / "data" / name).mkdir(parents=True)
    for i, sample_id in enumerate(squares.ids):
        mask = squares.mask(i)
        mask = np.roll(mask, 6, axis=1) if i % 4 == 0 else mask
        picture = Image.fromarray(255 * mask).convert("P")
        picture.putpalette([0, 0, 0] + 254 * [9, 9, 9] + [255, 0, 0])
        picture.putdata((255 * mask).ravel().tolist())
        picture.save(finished / "data" / "masks" / f"{sample_id}.png", transparency=0)
        Image.fromarray(squares.image(i)).save(finished / "data" / "images" / f"{sample_id}.png")
    options = ["data=folder", f"data.root={finished / 'data'}", "data.in_channels=1"]
    options.append("keep_checkpoints=false")  # what finished runs are used for needs no more
    run(composed(*CLASSIC, *SHORT, *options, *LEARNING), finished / "run")
    return finished


@pytest.mark.slow
def test_where_the_peers_disagree_is_predicted_too(finished, tmp_path):
    options = ["overlays=true", "uncertainty=true"]
    result = command(
        "predict", finished / "run", finished / "data" / "images", "out", *options, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert len(names) == 24
    unsure = 0
    for name in names:
        picture = np.asarray(Image.open(tmp_path / "out" / "uncertainty" / f"{name}.png"))
        assert picture.shape == (40, 40)
        unsure += int(picture.sum())
        overlay = np.asarray(Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg"))
        assert overlay.shape == (512, 512, 3)
        assert (np.ptp(overlay.astype(int), axis=2) > 60).any()  # an outline has a colour
    assert unsure > 0
    (folder,) = (finished / "run").glob("uncertainty")
    noisy = [row["id"] for row in rows_of(finished / "run" / "scores.csv") if row["noisy"] == "1"]
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(noisy)


@pytest.mark.slow
def test_there_is_no_disagreement_without_peers(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "robust_training" / "last.ckpt").unlink()
    options = ["predict", "run", finished / "data" / "images", "out", "uncertainty=true"]
    result = command(*options, cwd=tmp_path)
    assert result.returncode == 1
    assert "needs the run's two peers, but " in result.stderr
    assert "last.ckpt is missing; give a run of method=coseg" in result.stderr


@pytest.mark.slow
def test_no_checkpoint_is_left_but_the_peers_weights(finished):
    (path,) = (finished / "run").rglob("*.ckpt")
    assert path.parent.name == "robust_training"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.keys() == {"state_dict"}
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {"net_a", "net_b"}


@pytest.fixture(scope="module")
def smp_run(tmp_path_factory):
    """Train one of smp's networks."""
    folder = tmp_path_factory.mktemp("smp")
    options = ["data.source.train=4", "data.source.val=0", "data.source.test=2"]
    options += ["data.source.side=64", "data.image_size=64", "trainer.max_epochs=1"]
    options += ["trainer.accelerator=cpu", "+trainer.enable_progress_bar=false"]
    run(composed("model=unet", "method=supervised", *options), folder / "run")
    return folder / "run"


def test_masks_of_new_images_have_their_own_size(finished, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    squares = Squares(5, 40)
    for i, sample_id in enumerate(squares.ids):
        Image.fromarray(squares.image(i)).resize((80, 60)).save(images / f"{sample_id}.jpg")
    before = digests(tmp_path)
    options = ["probabilities=true", "flips=true", "batch_size=2", "device=cpu"]
    result = command("predict", finished / "run", images, tmp_path / "out", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"5 masks are in {tmp_path / 'out'}." in result.stdout
    masks = MaskFolder(tmp_path / "out", classes=2)
    probabilities = PredictionFolder(tmp_path / "out" / "probabilities", classes=2)
    for sample_id in squares.ids:
        mask, p = masks.read(sample_id), probabilities.read(sample_id, (60, 80))
        assert mask.shape == (60, 80)
        # Probabilities are stored in float16.
        disagreeing = (p.argmax(axis=0) != mask) & (abs(p[0] - p[1]) > 0.01)
        assert not disagreeing.any()
    assert {path: digests(tmp_path)[path] for path in before} == before
    # The result does not depend on the batches.
    predict(finished / "run", images, tmp_path / "again", batch_size=5, flips=True, num_workers=1)
    for sample_id in squares.ids:
        np.testing.assert_array_equal(
            MaskFolder(tmp_path / "again", classes=2).read(sample_id), masks.read(sample_id)
        )


def test_images_in_folders_of_patients_are_predicted_as_they_were_learnt_from(tmp_path):
    squares = Squares(8, 40)
    for i in range(8):
        for name, picture in (("images", squares.image(i)), ("masks", squares.mask(i))):
            folder = tmp_path / "data" / name / f"patient{i % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"scan{i // 4}.png")
    options = [*CLASSIC, *SHORT, "method=supervised", "data=folder", "data.in_channels=1"]
    options += [f"data.root={tmp_path / 'data'}", "trainer.max_epochs=1"]
    options += [f"data.{kind}_glob='{{group}}/{{id}}.*'" for kind in ("image", "mask")]
    run(composed(*options), tmp_path / "run")
    predict(tmp_path / "run", tmp_path / "data" / "images", tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 8


def test_a_folder_of_folders_of_images_is_no_folder_of_images(finished, tmp_path):
    with pytest.raises(InputError, match=r"; did you mean .*data/images or .*data/masks\?"):
        predict(finished / "run", finished / "data", tmp_path / "out")
    with pytest.raises(InputError, match="There is no folder .*nowhere"):
        predict(finished / "run", tmp_path / "nowhere", tmp_path / "out")


def test_predictions_are_those_that_the_test_measured(finished, tmp_path):
    splits = folder_splits(finished / "data")
    predict(finished / "run", finished / "data" / "images", tmp_path / "out")
    masks = MaskFolder(tmp_path / "out", classes=2)
    samples = SampleDataset(splits.test, image_size=32, in_channels=1)
    network = AppRun(finished / "run").network()
    for i, sample_id in enumerate(splits.test.ids):
        with torch.no_grad():
            p = network(samples[i]["image"][None]).softmax(dim=1)
        p = torch.nn.functional.interpolate(p, (40, 40), mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(masks.read(sample_id), p[0].argmax(dim=0))


def test_bad_images_do_not_keep_the_others_from_their_masks(finished, tmp_path):
    shutil.copytree(finished / "data" / "images", tmp_path / "images")
    (tmp_path / "images" / "s03.png").write_text("no image")
    with pytest.raises(InputError, match=r"1 of 24 images have no mask: .*s03.png cannot be read"):
        predict(finished / "run", tmp_path / "images", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 23
    with pytest.raises(InputError, match="out is not empty, and nothing is ever overwritten"):
        predict(finished / "run", tmp_path / "images", tmp_path / "out")
    with pytest.raises(InputError, match="device=cuda:99 is not available"):
        predict(finished / "run", tmp_path / "images", tmp_path / "other", device="cuda:99")
    result = command("predict", finished / "run", "images", "new", "flip=true", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("flip=true: there is no such setting; did you mean flips?")
    for value in ("often", "["):
        result = command(
            "predict", finished / "run", "images", "new", f"flips={value}", cwd=tmp_path
        )
        assert result.stderr.startswith(f"flips={value} must be a bool")


def test_all_masks_in_the_users_own_format(finished, tmp_path):
    before = digests(finished / "data")
    result = command("apply", finished / "run", tmp_path / "clean", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    layer = LabelStore(finished / "run" / "labels")
    changed = [sample_id for sample_id in layer.ids if layer.facts(sample_id)["changed_pixels"]]
    assert 2 < len(changed) < 10
    assert f"{len(changed)} of 24 masks in {tmp_path / 'clean'} were corrected." in result.stdout
    clean = MaskFolder(tmp_path / "clean", classes=2)
    for path in (finished / "data" / "masks").iterdir():
        new = tmp_path / "clean" / path.name
        if path.stem not in changed:
            assert new.read_bytes() == path.read_bytes()
            continue
        with Image.open(path) as original, Image.open(new) as written:
            assert (written.mode, written.getpalette()) == (original.mode, original.getpalette())
            assert written.info["transparency"] == original.info["transparency"]
            assert set(np.unique(written)) <= {0, 255}
        np.testing.assert_array_equal(clean.read(path.stem), layer.read(path.stem))
    assert digests(finished / "data") == before
    with pytest.raises(InputError, match="exists and is never overwritten"):
        apply(finished / "run", tmp_path / "clean")
    with pytest.raises(InputError, match="which is only read"):
        apply(finished / "run", finished / "data" / "masks" / "clean")


def test_apply_says_where_masks_are_missing(finished, tmp_path):
    moved = finished / "moved"
    (finished / "data").rename(moved)
    try:
        with pytest.raises(InputError, match="does not exist; if the data was moved, give root=DI"):
            apply(finished / "run", tmp_path / "out")
    finally:
        moved.rename(finished / "data")


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
def test_an_onnx_model_runs_outside_torch(which, finished, smp_run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = smp_run if which == "smp's" else finished / "run"
    path, difference = export(folder, "onnx", tmp_path / "model.onnx")
    assert difference < 1e-4
    script = [sys.executable, "-c", OUTSIDE_TORCH, str(path), str(tmp_path / "found.npy")]
    subprocess.run(script, check=True)
    probabilities = np.load(tmp_path / "found.npy")
    side = probabilities.shape[-1]
    images = np.random.default_rng(0).normal(size=(5, 1, side, side)).astype(np.float32)
    with torch.no_grad():
        expected = Probabilities(AppRun(folder).network())(torch.from_numpy(images))
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


@pytest.mark.parametrize("file_format", ["torchscript", "safetensors"])
def test_other_formats(file_format, finished, tmp_path):
    from safetensors.torch import load_file

    path, difference = export(finished / "run", file_format, tmp_path / "model")
    network = AppRun(finished / "run").network()
    if file_format == "safetensors":
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
        export(finished / "run", file_format, tmp_path / "model")
    with pytest.raises(InputError, match="format=tflite must be onnx, torchscript, safetensors"):
        export(finished / "run", "tflite")


def test_the_export_command_names_what_it_wrote(finished, tmp_path):
    result = command("export", finished / "run", "format=safetensors", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    description = finished / "run" / "export" / "model.safetensors.json"
    assert f"inputs and outputs are described in {description}" in result.stdout
    assert description.is_file()


def test_smps_own_loader_reads_the_network(smp_run):
    network = smp.from_pretrained(str(smp_run / "model"))
    own = AppRun(smp_run).network()
    assert type(own) is type(network)
    assert all(torch.equal(own.state_dict()[k], v) for k, v in network.state_dict().items())


def test_a_run_that_is_not_finished_or_was_edited(finished, tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        AppRun(tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    for edit in ({"config": None}, {"correction": {"layers": ["../elsewhere"]}}):
        path.write_text(json.dumps({**summary, **edit}))
        with pytest.raises(InputError, match=r"summary.json (was changed|names a layer outside)"):
            AppRun(tmp_path / "run").cfg  # noqa: B018
    path.write_text(json.dumps(summary))
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InputError, match="model.safetensors cannot be read as weights"):
        AppRun(tmp_path / "run").network()


# Review


def review_of(path, **decisions):
    lines = [f"{sample_id},{decision}\n" for sample_id, decision in decisions.items()]
    path.write_text("id,decision\n" + "".join(lines))
    return path


def test_retraining_by_a_review(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    layer = LabelStore(finished / "run" / "labels")
    first, second, third, *rest = [
        sample_id for sample_id in layer.ids if layer.facts(sample_id)["changed_pixels"]
    ]
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
    again = command("run", *arguments, cwd=tmp_path)  # the run is finished already
    assert again.returncode == 0
    assert "Retraining ..." not in again.stdout
    refused = command("run", *arguments, "nol=0.4", cwd=tmp_path)
    assert refused.stderr.startswith("nol=0.4 cannot be changed, since the settings are those of")


def drawn_masks(folder, masks):
    (folder / "masks").mkdir(parents=True)
    for sample_id, mask in masks.items():
        Image.fromarray(mask).save(folder / "masks" / f"{sample_id}.png")
    return folder


def test_every_mask_can_be_reviewed_and_drawn_masks_are_learnt_from(finished, tmp_path, caplog):
    """Also masks that were not corrected: ok, the proposal, or a mask that was drawn anew."""
    shutil.copytree(finished / "run", tmp_path / "run")
    proposals = LabelStore(tmp_path / "run" / "proposals")
    corrected = LabelStore(tmp_path / "run" / "labels")
    ranked = [row["id"] for row in rows_of(tmp_path / "run" / "scores.csv")]
    assert sorted(proposals.ids) == sorted(ranked)
    ok, take, redraw, later = [i for i in ranked if i not in corrected][:4]
    drawn = np.eye(40, dtype=np.uint8)
    drawn[0, 1] = 255
    folder = drawn_masks(tmp_path / "answer", {redraw: drawn})
    review_of(folder / "review.csv", **{ok: "ok", take: "take", redraw: "redraw", later: "redraw"})
    archive = shutil.make_archive(str(tmp_path / "review"), "zip", folder)
    options = ["stages=[retraining]", f"resume={tmp_path / 'run'}"]
    tests = []
    for review in (folder, archive):
        out = tmp_path / f"reviewed-{len(tests)}"
        summary = run(composed(*options, f"review={review}"), out)
        layer = LabelStore(out / "labels")
        np.testing.assert_array_equal(layer.read(take), proposals.read(take))
        np.testing.assert_array_equal(layer.read(redraw), drawn)
        assert not {ok, later} & set(layer.ids)
        assert (out / "redraw.csv").read_text() == f"id\n{later}\n"
        counts = {"taken": 1, "confirmed": 0, "redrawn": 1, "redraw": 1, "decided": 4}
        assert {name: summary["correction"][name] for name in counts} == counts
        tests.append(summary["test"])
    assert tests[0] == tests[1]
    with pytest.raises(InputError, match="has unlabelled pixels"):  # masks of 0 and 255 hold none
        apply(out, tmp_path / "written")  # without the review, which the run has used
    assert (
        f"must still be redrawn are copied as they are: 1, such as that of {later}" in caplog.text
    )
    # Few decisions say nothing of others, but decided masks are not to be looked at again.
    order = rows_of(out / "review_order.csv")
    assert {row["id"] for row in order[-4:]} == {ok, take, redraw, later}
    other = review_of(tmp_path / "other.csv", **{ok: "redraw"})
    with pytest.raises(
        InputError, match="holds an earlier review with other decisions; continue from"
    ):
        run(composed(*options, f"review={other}"), out)


def test_a_proposal_is_taken_also_where_the_correction_changed_nothing(finished, tmp_path):
    """Of a mask that was ranked noisy, and that the vote left as it was."""
    shutil.copytree(finished / "run", tmp_path / "run")
    labels = tmp_path / "run" / "labels"
    facts = LabelStore(labels)
    noisy = facts.ids[0]
    own = MaskFolder(finished / "data" / "masks", classes=2).read(noisy)
    Image.fromarray(own).save(labels / f"{noisy}.png")
    proposal = LabelStore(tmp_path / "run" / "proposals").read(noisy)
    assert (proposal != own).any()
    review = review_of(tmp_path / "review.csv", **{noisy: "take"})
    apply(tmp_path / "run", tmp_path / "out", review=review)
    written = MaskFolder(tmp_path / "out", classes=2).read(noisy)
    np.testing.assert_array_equal(written, proposal)


def test_a_proposal_of_another_run_is_not_taken(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    proposals, labels = (LabelStore(tmp_path / "run" / name) for name in ("proposals", "labels"))
    changed = [i for i in labels.ids if labels.facts(i)["changed_pixels"]]
    noisy, other = changed[0], next(i for i in proposals.ids if i not in labels)
    seen = {noisy: labels.read(noisy), other: proposals.read(other)}
    options = ["stages=[retraining]", f"resume={tmp_path / 'run'}", f"review={tmp_path}/review.csv"]
    for wrong in (None, noisy, other):
        masks = {i: mask[::-1] if i == wrong else mask for i, mask in seen.items()}
        rows = [f"{i},take,{proposal_digest(mask)}\n" for i, mask in masks.items()]
        (tmp_path / "review.csv").write_text("id,decision,proposal\n" + "".join(rows))
        out = tmp_path / str(wrong)
        if wrong is None:
            apply(tmp_path / "run", out, review=tmp_path / "review.csv")
            run(composed(*options), tmp_path / "reviewed")
            continue
        with pytest.raises(InputError, match=f"takes a proposal for {wrong} that is not this run"):
            apply(tmp_path / "run", out, review=tmp_path / "review.csv")
        with pytest.raises(InputError, match=f"takes a proposal for {wrong} that is not this run"):
            run(composed(*options), tmp_path / "refused")
        assert not out.exists()
        assert not (tmp_path / "refused" / "labels").exists()


def test_a_mask_drawn_anew_in_its_place_is_taken_and_all_other_decisions_are_kept(
    finished, tmp_path
):
    shutil.copytree(finished, tmp_path / "all")
    folder, data = tmp_path / "all" / "run", tmp_path / "all" / "data"
    layer = LabelStore(folder / "labels")
    first, second, *_ = [i for i in layer.ids if layer.facts(i)["changed_pixels"]]
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(data / "masks" / f"{first}.png")
    options = ["stages=[retraining]", f"resume={folder}", f"data.root={data}"]

    def reviewed(out, name, **decisions):
        review = review_of(tmp_path / f"{name}.csv", **decisions)
        where = [f"review={review}", f"hydra.run.dir={tmp_path / out}"]
        return command("run", *options, *where, cwd=tmp_path)

    refused = reviewed("no", "others", **{second: "redraw"})
    assert (
        f"has changed, in the masks of {first}; restore them, or retrain with a review that"
        in refused.stderr
    )
    result = reviewed("yes", "review", **{first: "redraw", second: "reject"})
    assert result.returncode == 0, result.stderr
    assert not {first, second} & set(LabelStore(tmp_path / "yes" / "labels").ids)
    assert not (tmp_path / "yes" / "redraw.csv").exists()
    correction = json.loads((tmp_path / "yes" / "summary.json").read_text())["correction"]
    wanted = {"redrawn": 1, "rejected": 1, "redraw": 0}
    assert {name: correction[name] for name in wanted} == wanted
    Image.fromarray(np.eye(40, k=3, dtype=np.uint8) * 255).save(data / "masks" / f"{first}.png")
    refused = reviewed("yes", "review", **{first: "redraw", second: "reject"})
    assert "retrained before masks were drawn anew; continue from it with resume=" in refused.stderr
    image = next((data / "images").glob(f"{first}.*"))
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(image)
    refused = reviewed("no", "review", **{first: "redraw", second: "reject"})
    assert "has changed: " in refused.stderr
    assert not (tmp_path / "no").exists()


def test_a_mask_of_255_drawn_anew_among_masks_of_class_ids_is_refused(tmp_path):
    """255 is unlabelled there, so that nothing of it would be learnt."""
    squares, data = Squares(8, 32), tmp_path / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for i, sample_id in enumerate(squares.ids):
        Image.fromarray(squares.image(i)).save(data / "images" / f"{sample_id}.png")
        Image.fromarray(squares.mask(i)).save(data / "masks" / f"{sample_id}.png")
    given = ["data=folder", f"data.root={data}", "data.in_channels=1", "nol=0.3"]
    given += ["data.source.test_share=0"]
    run(composed(*CLASSIC, *SHORT, *given), tmp_path / "run")
    drawn = 255 * np.eye(32, dtype=np.uint8)
    Image.fromarray(drawn).save(data / "masks" / f"{squares.ids[2]}.png")
    review = review_of(tmp_path / "review.csv", **{squares.ids[2]: "redraw"})
    again = ["stages=[retraining]", f"resume={tmp_path / 'run'}", f"review={review}"]
    with pytest.raises(
        InputError, match=f"The redrawn mask of {squares.ids[2]} holds only 0 and 255"
    ):
        run(composed(*again), tmp_path / "reviewed")


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A run on masks whose last rows are unlabelled."""
    folder, squares = tmp_path_factory.mktemp("partly"), Squares(12, 32)
    for name in ("images", "masks"):
        (folder / "data" / name).mkdir(parents=True)
    for i, sample_id in enumerate(squares.ids):
        mask = squares.mask(i).copy()
        mask[-6:] = 255
        Image.fromarray(mask).save(folder / "data" / "masks" / f"{sample_id}.png")
        Image.fromarray(squares.image(i)).save(folder / "data" / "images" / f"{sample_id}.png")
    given = ["data=folder", f"data.root={folder / 'data'}", "data.in_channels=1", "nol=0.3"]
    run(composed(*CLASSIC, *SHORT, *given, "data.source.test_share=0"), folder / "run")
    return folder


@pytest.mark.slow
def test_a_proposal_that_is_taken_leaves_unlabelled_pixels_so(partly, tmp_path):
    folder, data = partly / "run", partly / "data"
    corrected = set(LabelStore(folder / "labels").ids)
    taken = next(i for i in LabelStore(folder / "proposals").ids if i not in corrected)
    raw = LabelStore(folder / "proposals").read(taken)
    given = read_indices(data / "masks" / f"{taken}.png")
    wanted = np.where(given == 255, 255, raw)
    assert (raw[-6:] != 255).all()
    for name, digest in (("new", proposal_digest(wanted)), ("old", proposal_digest(raw))):
        review = tmp_path / f"{name}.csv"
        review.write_text(f"id,decision,proposal\n{taken},take,{digest}\n")
        apply(folder, tmp_path / name, review=review)
        written = read_indices(tmp_path / name / f"{taken}.png")
        np.testing.assert_array_equal(written, wanted)
    run(composed(f"resume={folder}", f"review={review}"), tmp_path / "reviewed")
    layer = LabelStore(tmp_path / "reviewed" / "labels")
    np.testing.assert_array_equal(layer.read(taken), wanted)
    write_tasks(folder, tmp_path / "tasks", "labelme", worst=50)
    for path in (tmp_path / "tasks" / "images").glob("*.json"):
        shapes = json.loads(path.read_text())["shapes"]
        assert "unlabelled" in {shape["label"] for shape in shapes}


@pytest.mark.slow
def test_a_mask_that_changed_after_the_run_is_not_replaced_by_a_proposal(partly, tmp_path):
    data = shutil.copytree(partly / "data", tmp_path / "data")
    corrected = set(LabelStore(partly / "run" / "labels").ids)
    taken = next(i for i in LabelStore(partly / "run" / "proposals").ids if i not in corrected)
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(data / "masks" / f"{taken}.png")
    review = review_of(tmp_path / "review.csv", **{taken: "take"})
    _, newer, _ = apply(partly / "run", tmp_path / "out", root=data, review=review)
    assert newer == [taken]
    np.testing.assert_array_equal(read_indices(tmp_path / "out" / f"{taken}.png"), np.eye(32))


@pytest.mark.slow
def test_a_second_look_may_follow_a_review_that_was_retrained_already(partly, tmp_path):
    folder = shutil.copytree(partly / "run", tmp_path / "run")
    taken = LabelStore(folder / "proposals").ids[0]
    again = [f"resume={folder}", f"review={review_of(tmp_path / 'r.csv', **{taken: 'ok'})}"]
    again += [f"data.root={partly / 'data'}"]
    first = run(composed(*again), folder / "reviewed")
    weights = next((folder / "reviewed" / "retraining").glob("*.ckpt"))
    before = weights.read_bytes()
    second = run(composed(*again, "rounds=review"), folder / "reviewed")
    assert (folder / "reviewed" / "proposals" / "manifest.json").is_file()
    scores = [(path / "scores.csv").read_text() for path in (folder, folder / "reviewed")]
    assert scores[0] != scores[1]
    assert first["correction"] == second["correction"]
    assert weights.read_bytes() == before


def test_a_second_look_finds_what_the_first_left(finished, tmp_path):
    """The masks are ranked again, by the retrained network and a peer, and a review goes on."""
    shutil.copytree(finished / "run", tmp_path / "run")
    squares, first_order = Squares(24, 40), rows_of(tmp_path / "run" / "review_order.csv")
    looked = [row["id"] for row in first_order[:10]]
    right = {i: squares.mask(squares.ids.index(i)) for i in looked if squares.ids.index(i) % 4 == 0}
    folder = drawn_masks(tmp_path / "answer", right)
    proposals, labels = (LabelStore(tmp_path / "run" / name) for name in ("proposals", "labels"))
    taken = next(i for i in looked if i not in right and i not in labels)
    decisions = {i: "redraw" if i in right else "ok" for i in looked} | {taken: "take"}
    digest = proposal_digest(proposals.read(taken))
    rows = [f"{i},{what},{digest if i == taken else ''}\n" for i, what in decisions.items()]
    (folder / "review.csv").write_text("id,decision,proposal\n" + "".join(rows))
    result = command(
        "run", f"resume={tmp_path / 'run'}", f"review={folder}", "rounds=review",
        "review_budget=3", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Noise level after the review: estimated" in result.stdout
    assert "Look at these 3 masks first" in result.stdout
    reviewed = tmp_path / "run" / "reviewed"
    before, after = (rows_of(path / "scores.csv") for path in (tmp_path / "run", reviewed))
    assert {row["id"] for row in before} == {row["id"] for row in after}
    assert [row["score"] for row in before] != [row["score"] for row in after]
    order = rows_of(reviewed / "review_order.csv")
    assert {row["id"] for row in order[-10:]} == set(looked)
    assert all(not row["decision"] for row in order[:-10])
    page = (reviewed / "report.html").read_text(encoding="utf-8")
    assert '"before":[' in page.replace(": ", ":")
    proposals = LabelStore(reviewed / "proposals")
    take = next(row["id"] for row in order if row["id"] not in LabelStore(reviewed / "labels"))
    second = review_of(tmp_path / "second.csv", **{take: "take"})
    summary = run(composed(f"resume={reviewed}", f"review={second}"), tmp_path / "again")
    layer = LabelStore(tmp_path / "again" / "labels")
    np.testing.assert_array_equal(layer.read(take), proposals.read(take))
    assert {*right, taken} <= set(layer.ids)
    assert summary["ranking"]["review"]["decided"] == 11


def test_a_reviewed_run_opens_where_the_run_itself_is_gone(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary["config"] |= {"review": {}, "reviewed_run": str(tmp_path / "gone")}
    path.write_text(json.dumps(summary))
    run = AppRun(tmp_path / "run")
    assert run.noise is None
    assert run.proposals is not None
    apply(tmp_path / "run", tmp_path / "out")
    with pytest.raises(InputError, match="is a review of .*gone, which does not exist; restore"):
        run.origin  # noqa: B018


def test_rounds_of_a_review_need_one(tmp_path):
    for settings in (["rounds=review"], ["rounds=2"]):
        with pytest.raises(
            InputError, match="must be review, together with review=FILE; for several"
        ):
            run(composed(*SMALL, *settings), tmp_path)


def test_keeping_everything_is_the_run_itself(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    review = review_of(tmp_path / "review.csv")
    summary = run(
        composed("stages=[retraining]", f"resume={tmp_path / 'run'}", f"review={review}"),
        tmp_path / "reviewed",
    )
    assert summary["test"] == json.loads((finished / "run" / "summary.json").read_text())["test"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"s00": "maybe"}, "has the decision 'maybe' for s00; it must be ok, take or redraw"),
        ({"nobody": "redraw"}, "names nobody, which is not a training mask of the run"),
        ({"nobody": "keep"}, "names nobody, which is not a training mask of the run"),
    ],
)
def test_a_review_of_something_else_is_refused(finished, tmp_path, rows, message):
    review = review_of(tmp_path / "review.csv", **rows)
    options = ["stages=[retraining]", f"resume={finished / 'run'}", f"review={review}"]
    with pytest.raises(InputError, match=message):
        run(composed(*options), tmp_path / "reviewed")


@pytest.mark.parametrize("options", [["stages=[retraining]"], ["review=a.csv"], ["stages=[x]"]])
def test_half_of_a_review_is_refused(options, tmp_path):
    with pytest.raises(
        InputError,
        match=r"to retrain a reviewed run, give stages=\[retraining\] resume=RUN review=",
    ):
        run(composed(*options), tmp_path)


@pytest.mark.drawn
def test_a_reviewed_run_has_a_report_that_tells_of_the_review(tmp_path):
    options = ["data.source.train=16", "data.source.val=0", "data.source.test=3"]
    options += ["data.source.side=48", "noise=type2", *LEARNING]
    run(composed(*SMALL, *options), tmp_path / "run")
    layer = LabelStore(tmp_path / "run" / "labels")
    first, second = [
        sample_id for sample_id in layer.ids if layer.facts(sample_id)["changed_pixels"]
    ][:2]
    review = review_of(tmp_path / "review.csv", **{first: "reject", second: "redraw"})
    options = [
        "stages=[retraining]",
        f"resume={tmp_path / 'run'}",
        f"review={review}",
        "trust=true",
    ]
    run(composed(*options), tmp_path / "elsewhere")
    page = (tmp_path / "elsewhere" / "report.html").read_text()
    assert "The network retrained on reviewed labels reached" in page
    assert "1 corrections undone, 1 to be redrawn" in page
    assert "The run before its review" in page
    assert "Correction changed nothing" not in page
    rows = {row["id"]: row for row in rows_of(tmp_path / "elsewhere" / "scores.csv")}
    assert rows[first]["changed_pixels"] == "0"
    assert rows[first]["corrected_dice"] == rows[first]["label_dice"]
    summary = json.loads((tmp_path / "elsewhere" / "summary.json").read_text())
    assert np.mean([float(row["corrected_dice"]) for row in rows.values()]) == pytest.approx(
        summary["correction"]["label_dice_after"]
    )
    # It finds the noise of the run before.
    result = command("report", tmp_path / "elsewhere", "trust=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "elsewhere" / "report.html").read_text() == page
    # A second look goes on from the first, with the peers of the run.
    options[1] = f"resume={tmp_path / 'elsewhere'}"
    options[2] = f"review={review_of(tmp_path / 'second.csv', **{first: 'take'})}"
    summary = run(composed(*options), tmp_path / "again")
    assert first in LabelStore(tmp_path / "again" / "labels")
    assert (tmp_path / "again" / "redraw.csv").read_text() == f"id\n{second}\n"
    assert summary["correction"]["rejected"] == 0


def test_leaving_samples_out_does_not_improve_the_labels(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    summary = run(
        composed(*SMALL, "data.source.side=48", "data.source.train=12", "noise=type2",
                 "method=filter", "nol=0.3"),
        tmp_path / "filter",
    )  # fmt: skip
    before, after = (summary["correction"][f"label_dice_{when}"] for when in ("before", "after"))
    assert before == after


@pytest.mark.slow
def test_what_a_method_left_out_stays_out_until_somebody_decides(tmp_path):
    options = [*SMALL, "data.source.side=48", "data.source.train=12", "method=filter", "nol=0.3"]
    run(composed(*options), tmp_path / "run")
    rows = rows_of(tmp_path / "run" / "scores.csv")
    right, waiting, *others = (row["id"] for row in rows if row["noisy"] == "1")
    answers = {right: "ok", waiting: "redraw", rows[-1]["id"]: "ok"}
    review = review_of(tmp_path / "first.csv", **answers)
    options = ["trust=true", f"resume={tmp_path / 'run'}", f"review={review}"]
    correction = run(composed(*options), tmp_path / "first")["correction"]
    assert (correction["left_out"], correction["redraw"]) == (1 + len(others), 1)
    assert (tmp_path / "first" / "redraw.csv").read_text() == f"id\n{waiting}\n"
    review = review_of(tmp_path / "second.csv", **{others[0]: "ok"})
    options[1:] = [f"resume={tmp_path / 'first'}", f"review={review}"]
    correction = run(composed(*options), tmp_path / "second")["correction"]
    assert (correction["left_out"], correction["redraw"]) == (len(others), 1)


# Data that was changed or moved


def test_noise_of_an_experiment_is_no_correction(make_folder, tmp_path):
    options = ["data=folder", f"data.root={make_folder(size=10)}", "noise=type1", "nol=0.4"]
    options += ["method=supervised", "trainer.max_epochs=1"]
    run(composed(*SMALL, *options), tmp_path / "run")
    result = command("apply", tmp_path / "run", tmp_path / "out", "trust=true", cwd=tmp_path)
    assert "None of the 10 masks in" in result.stdout
    assert "3 masks hold the noise that the experiment added." in result.stdout
    assert "were corrected" not in result.stdout


def test_a_correction_of_another_image_is_not_written(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "all")
    folder, data = tmp_path / "all" / "run", tmp_path / "all" / "data"
    layer = LabelStore(folder / "labels")
    changed = next(sample_id for sample_id in layer.ids if layer.facts(sample_id)["changed_pixels"])
    (picture,) = (data / "images").glob(f"{changed}.*")
    values = np.array(Image.open(picture))
    Image.fromarray(255 - values).save(picture)
    run = FinishedRun(folder)
    removed = next(i for i in run.file_digests if i != changed)
    for path in data.glob(f"*/{removed}.*"):
        path.unlink()
    not_for_training = 24 - run.summary["samples"]["train"]
    result = command("apply", folder, tmp_path / "clean", f"root={data}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"1 image is not what the run looked at; the masks stay as they are: {changed}" in (
        result.stdout
    )
    assert f"{not_for_training} masks are not for training" in result.stdout
    for path in (tmp_path / "clean").glob(f"{changed}.*"):
        assert path.read_bytes() == (data / "masks" / path.name).read_bytes()


def test_changed_data_is_not_retrained_on_and_newer_masks_stay(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "all")
    folder, data = tmp_path / "all" / "run", tmp_path / "all" / "data"
    layer = LabelStore(folder / "labels")
    changed = next(sample_id for sample_id in layer.ids if layer.facts(sample_id)["changed_pixels"])
    mine = data / "masks" / f"{changed}.png"
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(mine)
    review = review_of(tmp_path / "review.csv")
    options = ["stages=[retraining]", f"resume={folder}", f"review={review}", f"data.root={data}"]
    result = command("run", *options, cwd=tmp_path)
    assert result.returncode == 1
    assert f"The data of {folder} has changed, in the masks of {changed}; " in result.stderr
    assert "Traceback" not in result.stderr
    result = command("apply", folder, tmp_path / "clean", f"root={data}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"1 mask changed after the run and is kept as it is now: {changed}" in result.stdout
    assert (tmp_path / "clean" / mine.name).read_bytes() == mine.read_bytes()
    result = command("report", folder, f"root={data}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "The report has no pictures of samples: The data of" in result.stdout


def test_a_run_is_of_use_from_another_folder_and_when_its_data_has_moved(finished, tmp_path):
    arguments = [*CLASSIC, *SHORT, "data=folder", "data.root=data", "data.in_channels=1"]
    arguments += [f"hydra.run.dir={tmp_path / 'run'}", *LEARNING]
    # Relative to another folder than the next command's.
    result = command("run", *arguments, cwd=finished)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert command("report", tmp_path / "run", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run" / "report.html").read_text() == page
    shutil.copytree(finished / "data", tmp_path / "moved")
    path = tmp_path / "run" / "summary.json"
    path.write_text(path.read_text().replace(str(finished / "data"), str(tmp_path / "gone")))
    for options, message in (
        ([], "The report has no pictures of samples: data.root="),
        (["root=moved"], ""),
    ):
        result = command("report", "run", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert message in result.stdout
    pictures = (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg")
    assert pictures == page.count("data:image/jpeg") > 0


def test_a_refused_command_leaves_the_runs_own_settings(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
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


@pytest.mark.drawn
def test_figures_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["data.source.train=8", "data.source.val=0", "data.source.test=2"]
    run(composed(*SMALL, *options, "data.source.side=48", "logger=tensorboard"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "figures"))
    events.Reload()
    assert set(events.Tags()["images"]) >= {"report/training", "report/scores"}


@pytest.mark.drawn
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
