"""The app, as a user starts it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from coseg_lightning.app.build import make_data, make_network, make_noise, make_peers
from coseg_lightning.app.checks import check
from coseg_lightning.app.command import CONF
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.methods.transition import LabelTransition
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.run import depend_on_data_alone, run
from support import (
    CLASSIC,
    PHANTOM,
    SHORT,
    SMALL,
    command,
    composed,
    hashes,
    in_a_process,
    rows_of,
    start,
)

WITHOUT_TORCH = """
import sys
from coseg_lightning.run import main
try:
    main()
finally:
    heavy = {"torch", "pytorch_lightning", "albumentations", "matplotlib", "scipy"}
    print("heavy:", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg", "job"],
        ["nol=1.2"],
        ["stages=[x]"],
        ["model=unett"],
        ["loss.lambda_1=-1"],
        ["method.score=best"],
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.splitlines()[-1] == "heavy: []", result.stdout + result.stderr


@pytest.mark.parametrize(
    "choice",
    [
        f"{group.name}={path.stem}"
        for group in sorted(CONF.iterdir())
        if group.is_dir()
        for path in sorted(group.glob("*.yaml"))
    ],
)
def test_every_choice_composes(choice):
    needed = {
        "data=folder": "data.root=/data",
        "data=jsrt": "data.root=/data",
        "noise=annotator": "noise.masks=masks_crowd1",
        "model=custom": "model._target_=torch.nn.Identity",
    }
    group = choice.partition("=")[0]
    overrides = [choice, needed[choice]] if choice in needed else [choice]
    if choice in ("noise=swap", "noise=merge"):
        overrides.append("data.classes=3")
    cfg = composed(*overrides)
    check(cfg)
    OmegaConf.to_container(cfg, resolve=True)
    if group == "trainer":
        instantiate(cfg.trainer, accelerator="cpu", devices=1, logger=False, precision=32)
    if group == "noise" and choice != "noise=annotator":
        assert (make_noise(cfg) is None) == (choice == "noise=none")


@pytest.mark.slow
def test_the_whole_of_coseg_leaves_what_it_promises(tmp_path):
    folder = tmp_path / "run"
    result = start(
        "run", *CLASSIC, *SHORT, *PHANTOM, "noise=type2", "nol=0.3", f"hydra.run.dir={folder}"
    )
    assert result.returncode == 0, result.stderr
    for text in ("3 of 11 training masks were replaced", "Robust training", "Retraining"):
        assert text in result.stdout + result.stderr
    for text in ("Test Dice", "Test accuracy", "Masks ranked noisy", "Masks corrected"):
        assert text in result.stdout
    assert str(folder) in result.stdout

    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == [
        "config", "test", "samples", "ranking", "correction", "stages", "peak_memory_bytes",
    ]  # fmt: skip
    assert summary["samples"] == {"train": 11, "val": 2, "test": 5}
    assert summary["config"]["nol"] == 0.3
    assert set(summary["test"]) == {
        "dice", "accuracy", "per_class_dice", "masks", "images", "iou", "hd95", "surface_distance",
        "without_distance", "interval", "unit",
    }  # fmt: skip
    assert summary["test"]["masks"] == "trusted test masks"
    assert len(summary["test"]["per_class_dice"]) == 2
    assert set(summary["ranking"]) == {"noise_level", "estimate", "bias", "auroc"}
    assert set(summary["correction"]) == {
        "corrected", "contradiction", "left_alone", "kept_vary_more", "layers", "left_out",
        "label_dice_before", "label_dice_after",
    }  # fmt: skip
    assert set(summary["stages"]) == {"robust_training", "retraining", "test"}
    assert summary["stages"]["robust_training"]["epochs"] == 2
    assert summary["peak_memory_bytes"] > 2**20

    scores = rows_of(folder / "scores.csv")
    assert len(scores) == 11
    assert sum(row["noisy"] == "1" for row in scores) == 3
    layer = LabelStore(folder / "labels")
    assert sorted(layer.ids) == sorted(row["id"] for row in scores if row["noisy"] == "1")
    assert layer.read(layer.ids[0]).shape == (48, 48)
    stages = {row["stage"] for row in rows_of(folder / "metrics.csv")}
    assert stages == {"robust_training", "retraining"}
    for stage in stages:
        checkpoint = torch.load(folder / stage / "last.ckpt", weights_only=True)
        # peers of two epochs know no better: their vote and what follows from it are dropped
        assert checkpoint["epoch"] == (2 if stage == "robust_training" else 4)
        assert not (folder / stage / "unfinished.ckpt").exists()
    assert (folder / "model" / "model.safetensors").is_file()
    assert "<html" in (folder / "report.html").read_text()

    before = hashes(folder / "labels")
    again = command("run", *SMALL, *PHANTOM, f"hydra.run.dir={folder}")
    assert again.returncode == 1
    assert "holds another run" in again.stderr
    assert hashes(folder / "labels") == before


@pytest.mark.slow
def test_two_processes_share_one_folder(tmp_path):
    folder = tmp_path / "run"
    with_bars = [option for option in SMALL if "progress_bar" not in option]
    result = command(
        "run", *with_bars, *PHANTOM, "noise=type1", "trainer=ddp", "trainer.devices=2",
        "method.confidence=0", f"hydra.run.dir={folder}", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"]["dice"] is not None
    assert summary["stages"]["retraining"]["epochs"] == 2
    assert len(rows_of(folder / "scores.csv")) == 11
    assert result.stdout.count("Test Dice") == 1


@pytest.mark.slow
def test_a_multirun_gives_each_job_its_folder_and_goes_on_after_a_failure(tmp_path):
    result = command(
        "run", "-m", *SMALL, *PHANTOM, "trainer.max_epochs=1", "nol=0.1,1.5,0.5", "noise=type1",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 1
    assert "nol=1.5 must be a number of at least 0 and less than 1" in result.stderr
    assert "Traceback" not in result.stderr
    done = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")
    }
    assert {name: summary["config"]["nol"] for name, summary in done.items()} == {
        "0": 0.1,
        "2": 0.5,
    }


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(tmp_path):
    sweep = ["-m", *SMALL, *PHANTOM, "trainer.max_epochs=1", "noise=type1"]
    folder = [f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert command("run", *sweep, "nol=0.1", *folder).returncode == 0
    before = hashes(tmp_path / "sweep" / "0")
    assert command("run", *sweep, "nol=0.1,0.5", *folder).returncode == 0
    after = hashes(tmp_path / "sweep" / "0")
    assert {path for path in before if before[path] != after[path]} == set()
    assert (tmp_path / "sweep" / "1" / "summary.json").is_file()
    result = command("run", *sweep, "nol=0.2", *folder)
    assert "holds another run, which differs in" in result.stderr
    result = command("run", *sweep, "nol=0.1", "resume=elsewhere", cwd=tmp_path)
    assert "resume=elsewhere cannot be obeyed in a sweep" in result.stderr


@pytest.mark.slow
def test_a_multirun_over_several_processes_a_job_names_the_way_that_works(tmp_path):
    result = command(
        "run", "-m", *SMALL, *PHANTOM, "nol=0.1,0.2", "trainer=ddp", "trainer.devices=2",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 1
    assert "start one run for each setting" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nol=1.2"], "nol=1.2 must be a number of at least 0 and less than 1"),
        (["nol=auto", "trainer.max_epochs=1"], "trainer.max_epochs=1 is too few to estimate"),
        (["nol=30"], "labels. Did you mean nol=0.3?"),
        (["model=unett"], "There is no model 'unett'; did you mean unet?"),
        (["data=folder", "data.root=/nowhere"], "data.root=/nowhere: there is no such folder"),
        (["data=folder"], "No value was given for data.root"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc must be a whole number"),
        (["optimizer.name=torch.manual_seed"], "optimizer.name=torch.manual_seed: there is no"),
        (
            ["+optimizer.scheduler={_target_: torch.optim.lr_scheduler.StepLR}"],
            "optimizer.scheduler=torch.optim.lr_scheduler.StepLR also needs step_size; give",
        ),
        (
            ["data=folder", "data.root=.", "data.overlap=3"],
            "data.overlap=3 would have no effect without data.tile",
        ),
        (["+optimizer.scheduler=cosine"], "optimizer.scheduler=cosine must name a class and its"),
        (["seed=-1"], "seed=-1 must be a whole number of at least 0"),
        (["data.root=(a"], "data.root=(a cannot be understood; quote"),
        (["optimizer.name=torch.optim.Adamm"], "optimizer.name=torch.optim.Adamm: there is no"),
    ],
)
def test_wrong_values_end_in_one_sentence(tmp_path, arguments, sentence):
    needs_torch = any(word in str(arguments) for word in ("optimizer", "nowhere", "nol=auto"))
    app = command if needs_torch else start  # what needs no torch is refused within a second
    result = app("run", *arguments, f"hydra.run.dir={tmp_path}", cwd=tmp_path)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1, result.stderr


@pytest.mark.slow
def test_a_messy_folder_ends_in_one_sentence(make_folder, tmp_path):
    root = make_folder()
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(root / "masks" / "s01.png")
    result = command("run", "data=folder", f"data.root={root}", f"hydra.run.dir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert result.stderr.startswith(f"{root / 'masks' / 's01.png'} holds the class id 9")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["model=unett", "nol=1.2"])
def test_the_full_traceback_is_shown_when_asked_for(tmp_path, mistake):
    result = start("run", mistake, f"hydra.run.dir={tmp_path}", HYDRA_FULL_ERROR="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.slow
def test_stage_3_learns_from_the_corrected_labels(tmp_path, monkeypatch):
    masks = {}

    class Spy(SegmentationModule):
        def training_step(self, batch, batch_idx):
            if self.looks_at_batch:  # a validation batch, to see whether both steps are alike
                return super().training_step(batch, batch_idx)
            masks.update(zip(batch["id"], batch["mask"].numpy(), strict=True))
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("coseg_lightning.modules.segmentation.SegmentationModule", Spy)
    overrides = ["noise=type2", "nol=0.5", "data.augment=false", "data.batch_size=11"]
    overrides += ["method.confidence=0"]
    overrides += ["trainer.max_epochs=10", "optimizer.lr=0.01"]
    run(composed(*SMALL, *PHANTOM, *overrides, "data.source.side=32"), tmp_path / "run")
    layer, noise = LabelStore(tmp_path / "run" / "labels"), LabelStore(tmp_path / "run" / "noise")
    assert len(masks) == 11
    different = 0
    for sample_id in layer.ids:
        np.testing.assert_array_equal(masks[sample_id], layer.read(sample_id))
        different += sample_id in noise and (masks[sample_id] != noise.read(sample_id)).any()
    assert different, "the correction changed nothing, so the test shows nothing"
    for sample_id in set(noise.ids) - set(layer.ids):
        np.testing.assert_array_equal(masks[sample_id], noise.read(sample_id))


@pytest.mark.slow
def test_a_mistake_does_not_cost_the_folder(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(InstantiationException, match="resnet18"):
        run(composed("model.encoder_name=resnet81", "noise=type1"), folder)
    run(composed(*SMALL, *PHANTOM, "method=supervised", "noise=type1"), folder)


@pytest.mark.slow
def test_a_bad_image_is_named_in_one_sentence_by_workers_too(make_folder, tmp_path):
    root = make_folder()
    path = root / "images" / "s01.png"
    path.write_bytes(path.read_bytes()[:60])
    (root / "split.csv").write_text("id,split\ns01,train\ns02,train\n")
    result = command(
        "run", *SMALL, "data=folder", f"data.root={root}", "data.num_workers=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(f"{path} cannot be read as an image")


@pytest.mark.slow
def test_processes_started_apart_must_be_told_one_folder(tmp_path):
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    result = command("run", *SMALL, *PHANTOM, cwd=tmp_path, **ranks)
    assert result.returncode == 1
    assert "need one folder to share" in result.stderr


@pytest.mark.slow
def test_folder_with_an_annotators_masks(make_folder, tmp_path):
    root = make_folder(size=10)
    before = hashes(root)
    cfg = composed(
        *SMALL, "data=folder", f"data.root={root}", "noise=annotator", "noise.masks=masks_rough",
        "nol=0.5", "data.image_size=32",
    )  # fmt: skip
    summary = run(cfg, tmp_path / "run")
    noise = LabelStore(tmp_path / "run" / "noise")
    assert len(noise) == 4  # half of the 8 training masks are noisy; 2 samples are for the test
    np.testing.assert_array_equal(
        noise.read(noise.ids[0]),
        np.asarray(Image.open(root / "masks_rough" / f"{noise.ids[0]}.png")),
    )
    assert summary["ranking"]["auroc"] is not None
    assert summary["correction"]["label_dice_before"] < 1
    assert hashes(root) == before


@pytest.mark.slow
def test_real_masks_drawn_by_novices(real_data, tmp_path):
    cfg = composed(
        *SMALL, "data=folder", f"data.root={real_data / 'bubil'}", "noise=annotator",
        "noise.masks=masks_crowd1", "nol=0.5", "trainer.max_epochs=1",
    )  # fmt: skip
    summary = run(cfg, tmp_path / "run")
    assert len(LabelStore(tmp_path / "run" / "noise")) == round(0.5 * 137)
    assert len(LabelStore(tmp_path / "run" / "labels")) == round(0.5 * 137)
    # crowd slot 1 has a Dice of 0.87 to the experts, on half of the labels
    assert summary["correction"]["label_dice_before"] == pytest.approx(0.935, abs=0.01)
    assert len(rows_of(tmp_path / "run" / "scores.csv")) == 137


@pytest.mark.slow
def test_labels_that_nobody_can_check_leave_nulls(make_folder, tmp_path):
    cfg = composed(*SMALL, "data=folder", f"data.root={make_folder()}", "data.image_size=32")
    summary = run(cfg, tmp_path / "run")
    assert summary["ranking"]["auroc"] is None
    assert summary["correction"]["label_dice_before"] is None
    assert summary["correction"]["label_dice_after"] is None
    assert "NaN" not in (tmp_path / "run" / "summary.json").read_text()


@pytest.mark.slow
def test_labels_that_the_peers_know_no_better_are_left_as_they_are(tmp_path):
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3"]
    left = run(composed(*settings), tmp_path / "left")
    assert left["correction"]["left_alone"]  # after two epochs no network knows anything
    assert left["correction"]["contradiction"] < 2.2
    assert left["correction"]["corrected"] == 0
    before, after = (left["correction"][f"label_dice_{when}"] for when in ("before", "after"))
    assert before == after
    page = (tmp_path / "left" / "report.html").read_text()
    assert "were left as they are" in page
    # Without the first peer's weights, stage 3 is then the plain network.
    anew = run(composed(*settings, "method.warm_start=false"), tmp_path / "anew")
    plain = run(composed(*settings, "method=supervised"), tmp_path / "plain")
    assert anew["test"] == plain["test"]
    runs = ("left", "anew", "plain")
    models = [hashes(tmp_path / name / "model") for name in runs]
    last = [  # the model card, README.md, names the method
        [value for path, value in files.items() if path.name != "README.md"] for files in models
    ]
    assert last[0] != last[1] == last[2]


@pytest.mark.slow
def test_retraining_starts_from_the_first_peer_or_anew(tmp_path):
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "method.confidence=0"]
    settings += ["optimizer.lr=0.01", "trainer.max_epochs=5"]
    settings += ["method.retraining_loss=cross_entropy"]  # for a comparison with stage 1's weights
    losses = {}
    for warm in ("true", "false"):
        run(composed(*settings, f"method.warm_start={warm}"), tmp_path / warm)
        rows = rows_of(tmp_path / warm / "metrics.csv")
        losses[warm] = [
            [float(row[name]) for row in rows if row["stage"] == stage and row.get(name)]
            for stage, name in (("robust_training", "train/loss_a"), ("retraining", "train/loss"))
        ]
    learnt, begun = losses["true"]
    assert begun[0] < learnt[1]
    learnt, begun = losses["false"]
    assert begun[0] > learnt[1]


@pytest.mark.slow
@pytest.mark.parametrize(("share", "epochs"), [(1, 4), (0.5, 2), (0.01, 1), (1.5, 6)])
def test_retraining_from_a_peer_may_be_shorter(tmp_path, share, epochs):
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "method.confidence=0"]
    settings += ["trainer.max_epochs=4", f"method.retraining_share={share}"]
    summary = run(composed(*settings), tmp_path / "run")
    assert summary["stages"]["robust_training"]["epochs"] == 4
    assert summary["stages"]["retraining"]["epochs"] == epochs


@pytest.mark.slow
def test_a_schedule_and_clipping_hold_in_all_stages(tmp_path):
    schedule = "{_target_: torch.optim.lr_scheduler.StepLR, step_size: 1, gamma: 0.5}"
    settings = [f"+optimizer.scheduler={schedule}", "+trainer.gradient_clip_val=1e-9"]
    # Adam undoes a clipping that scales all gradients alike
    settings += ["optimizer.name=torch.optim.SGD", "optimizer.lr=0.1", "loss.lambda_2=0"]
    # The vote is accepted, so that retraining has 2 epochs as well.
    settings += ["method.confidence=0"]
    run(composed(*SMALL, *PHANTOM, "nol=0.3", *settings), tmp_path / "run")
    for stage, rates in (("robust_training", [0.025, 0.025]), ("retraining", [0.025])):
        checkpoint = torch.load(tmp_path / "run" / stage / "last.ckpt", weights_only=True)
        (optimizer,) = checkpoint["optimizer_states"]
        assert [group["lr"] for group in optimizer["param_groups"]] == pytest.approx(rates)
        rows = rows_of(tmp_path / "run" / "metrics.csv")
        name = "train/loss_a" if stage == "robust_training" else "train/loss"
        first, last = (float(row[name]) for row in rows if row["stage"] == stage and row.get(name))
        assert last == pytest.approx(first, abs=0.05)  # nothing was learnt


@pytest.mark.slow
def test_two_rounds_correct_what_the_first_left(tmp_path):
    folder = tmp_path / "run"
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "method.confidence=0"]
    run(composed(*settings, "method.rounds=2"), folder)
    assert {path.name for path in folder.glob("robust*")} == {
        "robust_training_1", "robust_training",
    }  # fmt: skip
    first, last = LabelStore(folder / "labels_1"), LabelStore(folder / "labels")
    assert len(first) == len(last) == 3
    assert (folder / "scores_1.csv").is_file()
    with pytest.raises(InputError, match="rounds"):
        check(composed(*settings, "method.rounds=0"))


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("method", ["pixel_coteaching", "jocor", "gce", "sce", "filter", "adele"])
def test_the_rivals(tmp_path, method):
    folder = tmp_path / "run"
    settings = [*SMALL, *PHANTOM, f"method={method}", "noise=type2", "nol=0.3"]
    summary = run(composed(*settings), folder)
    assert 0 <= summary["test"]["dice"] <= 1
    assert f"the method {method}" in (folder / "report.html").read_text()
    peers = method in ("pixel_coteaching", "jocor", "filter")
    assert (folder / "scores.csv").exists() == peers
    if method == "filter":
        rows = rows_of(folder / "scores.csv")
        noisy = sum(row["noisy"] == "1" for row in rows)
        assert summary["correction"]["left_out"] == noisy == 3


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize(
    "method",
    ["pick_and_learn", "reweight", "forward_correction", "noise_adaptation", "dimensionality"],
)
def test_methods_of_one_network(tmp_path, method):
    folder = tmp_path / "run"
    clean = ["data.clean_ids=3"] if method == "reweight" else []
    settings = [*SMALL, *PHANTOM, f"method={method}", *clean, "noise=type2", "nol=0.3"]
    summary = run(composed(*settings, "baselines=true"), folder)
    assert 0 <= summary["test"]["dice"] <= 1
    assert f"the method {method}" in (folder / "report.html").read_text()
    assert set(summary["baselines"]) == {"noisy", "clean"}
    estimates = method in ("forward_correction", "noise_adaptation")
    assert ("estimation" in summary["stages"]) == estimates
    if estimates:
        rows = np.array(summary["transition"]["estimated"])
        assert rows.shape == (2, 2)
        np.testing.assert_allclose(rows.sum(axis=1), 1)
        final = np.array(summary["transition"]["final"])
        assert np.allclose(rows, final, atol=1e-4) == (method == "forward_correction")
    if method == "dimensionality":
        dimensionalities = [row["train/dimensionality"] for row in rows_of(folder / "metrics.csv")]
        assert all(float(value) > 0 for value in dimensionalities if value)
    weights = torch.load(folder / "supervised_training" / "last.ckpt", weights_only=True)
    extra = {"pick_and_learn": "quality.score.weight", "noise_adaptation": "log_transition"}
    assert extra.get(method, "net.layers.3.weight") in weights["state_dict"]
    plain = torch.load(folder / "noisy_baseline" / "last.ckpt", weights_only=True)
    assert all(name.startswith("net.") for name in plain["state_dict"])  # whatever the method is


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forward_correction", "noise_adaptation"])
def test_stage_2_begins_with_what_was_estimated(tmp_path, monkeypatch, method):
    first_steps = []

    def step(module, batch, batch_idx):
        if module.known and not first_steps:
            first_steps.append(
                (module.transition.detach().clone(), module.net.layers[3].weight.clone())
            )
        return SegmentationModule.training_step(module, batch, batch_idx)

    monkeypatch.setattr(LabelTransition, "training_step", step)
    settings = [*SMALL, *PHANTOM, f"method={method}", "noise=type2", "nol=0.3"]
    summary = run(composed(*settings), tmp_path / "run")
    ((transition, head),) = first_steps
    expected = torch.tensor(summary["transition"]["estimated"])
    torch.testing.assert_close(transition, expected, atol=1e-5, rtol=0)
    path = tmp_path / "run" / "estimation" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    # The learnt transition goes on from the plain network; the other one starts anew.
    assert torch.equal(head, state["net.layers.3.weight"]) == (method == "noise_adaptation")


def test_reweighting_without_clean_samples_is_told_before_anything_is_trained(tmp_path):
    settings = [*SMALL, *PHANTOM, "method=reweight", "noise=type2", "baselines=true"]
    with pytest.raises(InputError, match="needs a few training samples whose masks are right"):
        run(composed(*settings), tmp_path / "run")
    assert not (tmp_path / "run" / "noisy_baseline").exists()


@pytest.mark.slow
def test_a_run_needs_the_file_of_clean_ids_no_more(tmp_path):
    known = sorted(make_data(composed(*PHANTOM), tmp_path).samples("train").ids)
    id_file = tmp_path / "clean.txt"
    id_file.write_text(f"{known[2]}\n{known[5]}\n")
    settings = [*SMALL, *PHANTOM, "method=reweight", f"data.clean_ids={id_file}"]
    summary = run(composed(*settings), tmp_path / "run")
    id_file.unlink()
    assert summary["config"]["data"]["clean_ids"] == [known[2], known[5]]
    assert AppRun(tmp_path / "run", trust=True).data().clean_ids == {known[2], known[5]}


def test_kinds_are_a_table_that_a_run_needs_no_more(tmp_path):
    ids = sorted(make_data(composed(*PHANTOM), tmp_path).samples("train").ids)
    table = tmp_path / "kinds.csv"
    rows = [f"{sample_id},{'a' if n % 2 else 'b'}" for n, sample_id in enumerate(ids)]

    def kinds(*lines):
        table.write_text("\n".join(lines) + "\n")
        cfg = composed(*SMALL, *PHANTOM, f"data.kinds={table}")
        depend_on_data_alone(cfg)
        table.unlink()
        return make_data(cfg, tmp_path).given_samples().kinds

    assert kinds("id,kind", *rows) == dict(row.split(",") for row in rows)
    with pytest.raises(InputError, match="has no column kind"):
        kinds("id,scanner", *rows)
    with pytest.raises(InputError, match=f"names {ids[0]} twice; give each image one kind"):
        kinds("id,kind", *rows, rows[0])
    with pytest.raises(InputError, match=f"has no kind for '{ids[-1]}'"):
        kinds("id,kind", *rows[:-1])
    with pytest.raises(InputError, match=f"the kind of {ids[-1]} is ''; give it a name"):
        kinds("id,kind", *rows[:-1], f"{ids[-1]}, ")
    for more, why in (("method=supervised", "ranks no masks"), ("method.score=mean", "score=mean")):
        with pytest.raises(InputError, match=f"data.kinds would have no effect.*{why}"):
            make_data(composed(*PHANTOM, "data.kinds=k.csv", more), tmp_path)
    with pytest.raises(InputError, match=r"data.kinds=3 must be a CSV file"):
        make_data(composed(*PHANTOM, "data.kinds=3"), tmp_path)


@pytest.mark.slow
def test_a_given_transition_is_not_estimated(tmp_path):
    settings = [*SMALL, *PHANTOM, "method=forward_correction", "noise=type2"]
    transition = "method.options.transition=[[0.9,0.1],[0.2,0.8]]"
    summary = run(composed(*settings, transition), tmp_path / "run")
    assert set(summary["stages"]) == {"supervised_training", "test"}
    with pytest.raises(InputError, match="must be 2 rows of 2 probabilities"):
        run(composed(*settings, "method.options.transition=[[1,0]]"), tmp_path / "other")


@pytest.mark.slow
def test_clean_ids_are_a_list_a_file_or_a_number(tmp_path):
    id_file = tmp_path / "clean.txt"
    id_file.write_text("phantom_001\r\n\n phantom_003 \n")
    settings = [*SMALL, *PHANTOM, "noise=type2", "noise.level=0.3"]

    def ids(value):
        return make_data(composed(*settings, f"data.clean_ids={value}"), tmp_path).clean_ids

    known = sorted(make_data(composed(*PHANTOM), tmp_path).samples("train").ids)
    id_file.write_text(f"{known[1]}\r\n\n {known[3]} \n")
    assert ids(id_file) == ids(f"[{known[1]},{known[3]}]") == {known[1], known[3]}
    assert len(ids(4)) == 4
    for wrong in (tmp_path / "none.txt", "true", "0.5"):
        with pytest.raises(InputError, match="there is no such file; give a list of ids, or a fi"):
            ids(wrong)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_vgg")
@pytest.mark.parametrize("model", ["double_unet", "ce_net"])
def test_the_papers_networks_go_all_the_way(tmp_path, model):
    smaller = {
        "double_unet": ["model.encoder_name=vgg11", "model.base_channels=4"],
        "ce_net": ["model.encoder_name=resnet18"],
    }[model]
    folder = tmp_path / "run"
    settings = [f"model={model}", *smaller, *SHORT, *PHANTOM, "noise=type2", "nol=0.3"]
    settings += ["trainer.max_epochs=1", "method=supervised"]  # pairs are trained by test_networks
    result = command("run", *settings, f"hydra.run.dir={folder}", cwd=tmp_path)  # takes a gigabyte
    assert result.returncode == 0, result.stderr

    def body():
        network = AppRun(folder).network()
        assert network(torch.randn(1, 1, 32, 32)).shape == (1, 2, 32, 32)
        for file_format in ("onnx", "torchscript", "safetensors"):
            path = tmp_path / f"model.{file_format}"
            if file_format == "onnx" and model == "ce_net" and torch.__version__.startswith("2.6."):
                with pytest.raises(InputError, match="can write this network as ONNX"):
                    export(folder, file_format, path)
                continue
            export(folder, file_format, path)
            assert path.is_file()

    assert in_a_process(body) == 0  # exports leave hundreds of megabytes behind
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    Image.fromarray(np.full((40, 56), 90, np.uint8)).save(images / "a.png")
    result = command("predict", folder, images, masks, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert np.array(Image.open(masks / "a.png")).shape == (40, 56)


@pytest.mark.slow
def test_a_module_of_ones_own(tmp_path, monkeypatch):
    module = "method.module=coseg_lightning.methods.filter.PlainPeers"
    assert type(make_peers(composed(*SMALL, module))).__name__ == "PlainPeers"
    with pytest.raises(InputError, match="derived from CoSegModule"):
        make_peers(composed(*SMALL, "method.module=torch.nn.Linear"))
    with pytest.raises(InputError, match="no such class"):
        make_peers(composed(*SMALL, "method.module=coseg_lightning.Nothing"))
    (tmp_path / "mine.py").write_text("import not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="since method=supervised trains a single network"):
        make_network(
            composed(*SMALL, "method=supervised", "+method.module=coseg_lightning.CoSegModule")
        )
    with pytest.raises(InputError, match="method=gce has no module of its own"):
        make_network(composed(*SMALL, "method=gce", "+method.options={q: 0.5}"))
    # For a pair, only the module and its options need to be named.
    cfg = composed(*SMALL)
    cfg.method = {
        "name": "mine",
        "stages": ["robust_training"],
        "module": "coseg_lightning.methods.jocor.JoCoR",
        "options": {"agreement_weight": 0.5},
    }
    check(cfg)
    assert make_peers(cfg).agreement_weight == 0.5
    with pytest.raises(InputError, match=r"mine cannot be imported \(No module named 'not_inst"):
        make_peers(composed(*SMALL, "method.module=mine.Module"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.warm_start=maybe", "must be true or false"),
        ("method.by_class=2", "must be true or false"),
        ("method.score_epochs=x", "whole number"),
        ("method.options=5", "must hold arguments"),
        ("method.options=null", "must hold arguments"),
        ("+method.options.foo=1", "no such argument"),
        ("+method.options.lr=1", "lr"),
        ("method.module=5", "no such class"),
        ("method.module=null", "no such class"),
    ],
)
def test_settings_of_a_method_that_make_no_sense(override, message):
    cfg = composed(*SMALL, override)
    with pytest.raises(InputError, match=message):
        _checked_and_made(cfg)


def _checked_and_made(cfg):
    check(cfg)
    return make_peers(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["jocor", "pixel_coteaching"])
def test_rivals_keep_their_own_schedule(tmp_path, method):
    """Their ramp starts with training, and does not wait for a ranking of the whole set."""
    settings = [*SMALL, *PHANTOM, f"method={method}", "noise=type2", "nol=0.5"]
    run(composed(*settings, "method.ramp_epochs=2", "trainer.max_epochs=4"), tmp_path / "run")
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    rates = [float(row["train/keep_rate"]) for row in rows if row.get("train/keep_rate")]
    assert rates == [1.0, 0.75, 0.5, 0.5]


@pytest.mark.parametrize("averaging", ["-0.1", "1.5", "yes"])
def test_averaging_is_a_share(averaging):
    with pytest.raises(InputError, match="averaging="):
        check(composed(f"averaging={averaging}"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "coteaching"])
def test_the_baselines(tmp_path, method):
    summary = run(composed(*SMALL, *PHANTOM, f"method={method}", "noise=type1"), tmp_path / "run")
    stage = {"supervised": "supervised_training", "coteaching": "robust_training"}[method]
    assert set(summary["stages"]) == {stage, "test"}
    assert summary["correction"]["corrected"] == 0
    assert summary["correction"]["label_dice_before"] < 1
    assert (tmp_path / "run" / "scores.csv").exists() == (method == "coteaching")
    assert not (tmp_path / "run" / "labels").exists()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(tmp_path):
    texts = []
    for name in ("first", "second"):
        run(composed(*SMALL, *PHANTOM, "noise=type2", "seed=7"), tmp_path / name)
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        texts.append((summary["test"], (tmp_path / name / "scores.csv").read_text()))
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_an_smp_network_is_left_for_others_to_load(tmp_path):
    cfg = composed(*SHORT, *PHANTOM, "model=unet", "method=supervised", "trainer.max_epochs=1")
    run(cfg, tmp_path / "run")
    loaded = smp.from_pretrained(tmp_path / "run" / "model")
    assert loaded(torch.randn(2, 1, 32, 32)).shape == (2, 2, 32, 32)


def test_the_second_peer_may_be_another_network():
    module = make_peers(composed("model=unet", "model@peer_b=fpn", "peer_b.encoder_name=resnet34"))
    assert type(module.net_a).__name__ == "Unet"
    assert type(module.net_b).__name__ == "FPN"


def test_any_module_is_a_network_by_its_target():
    cfg = composed(
        "model=custom", "model._target_=support.TinyNetwork", "+model.width=3",
        "+model.in_channels=1",
    )  # fmt: skip
    module = make_peers(cfg)
    assert module.net_b(torch.randn(1, 1, 8, 8)).shape == (1, 2, 8, 8)


def test_the_paper_preset_is_the_printed_recipe():
    cfg = composed("experiment=paper", "nol=0.4")
    module = make_peers(composed("experiment=paper", "nol=0.4", "model.base_channels=4"))
    assert cfg.model.name == "unet_classic"
    assert cfg.data.image_size == 256
    assert module.ramp_epochs == 0
    assert cfg.method.score == "sum"
    assert (cfg.method.confidence, cfg.method.warm_start, cfg.averaging) == (0, False, 0)


@pytest.mark.slow
def test_nothing_is_downloaded_by_default(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    for name in ("unet", "dpt", "segformer"):
        make_peers(composed(f"model={name}"))
    for path in (CONF / "model").glob("*.yaml"):
        if path.stem not in ("custom", "unet_classic", "mirror"):
            assert OmegaConf.load(path).encoder_weights is None


@pytest.mark.slow
def test_an_estimated_noise_level_is_used_and_told(tmp_path, capsys):
    folder = tmp_path / "run"
    overrides = ["noise=type1", "noise.level=0.4", "nol=auto", "trainer.max_epochs=2"]
    summary = run(composed(*SMALL, *PHANTOM, *overrides), folder)
    ranking = summary["ranking"]
    assert ranking["noise_level"] == ranking["estimate"]["noise_level"]
    assert (
        f"Noise level of the training masks: {ranking['estimate']['sentence']}"
        in capsys.readouterr().out
    )
    page = (folder / "report.html").read_text()
    assert ranking["estimate"]["sentence"][:40] in page
    assert len(LabelStore(folder / "labels")) == round(ranking["noise_level"] * 8)


def test_auto_does_not_say_how_much_noise_to_make():
    with pytest.raises(InputError, match="noise.level=0.3 together with nol=auto"):
        check(composed("noise=type1", "nol=auto"))
    check(composed("noise=none", "nol=auto"))


def test_noise_models_are_combined_by_name(tmp_path):
    cfg = composed("noise=[type1,missing]", "noise.type1.max_pixels=4", "noise.label_dice=0.8")
    check(cfg)
    noise = make_noise(cfg)
    assert noise.dice == 0.8
    assert [type(model).__name__ for model in noise.model.models] == [
        "BoundaryNoise",
        "MissingRegion",
    ]
    assert noise.model.models[0].max_pixels == 4


@pytest.mark.slow
def test_jobs_side_by_side_by_joblib(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    result = command(
        "run", "-m", *SMALL, *PHANTOM, "trainer.max_epochs=1", "nol=0.1,1.5", "noise=type1",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert result.returncode == 1
    assert (tmp_path / "0" / "summary.json").is_file()
    assert not (tmp_path / "1" / "summary.json").exists()
    assert "nol=1.5 must be a number of at least 0 and less than 1" in result.stderr
