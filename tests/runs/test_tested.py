"""What a run says of its test: of whose masks, of each image, and how sure it is."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from coseg_lightning import CoSegDataModule, LabelStore, SegmentationModule
from coseg_lightning.app.checks import check
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.errors import InputError
from coseg_lightning.functional.dice import dice_by_class
from coseg_lightning.functional.surface import surface_distances
from coseg_lightning.report.pictures import CLASS_COLOURS, outlined
from coseg_lightning.report.results import (
    certainty,
    class_names,
    never_right,
    result_in_a_sentence,
)
from coseg_lightning.run import run
from coseg_lightning.runs.tested import (
    DISTANCES,
    figures_of_images,
    figures_of_joined,
    image_rows,
    joined_row,
    per_class_dice,
    row_of,
)
from support import CLASSIC, PHANTOM, SHORT, Squares, command, composed, rows_of, trainer_of


class Constant(nn.Module):
    """Predicts the same square for every image."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        logits = torch.zeros(len(images), 2, *images.shape[-2:])
        logits[:, 1, 4:12, 4:12] = 9.0
        logits[:, 0] = 1.0 + self.bias
        return logits


def test_each_image_has_its_figures_at_its_own_size(tmp_path):
    data = CoSegDataModule(Squares(6), None, Squares(7, 64), image_size=16, in_channels=1)
    module = SegmentationModule(Constant(), in_channels=1)
    trainer = trainer_of(tmp_path)
    rows = image_rows(trainer, module, data.samples("test"), 4)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert [row["id"] for row in rows] == list(data.samples("test").ids)
    assert np.mean([row["dice"] for row in rows]) == pytest.approx(tested["test/dice"], abs=1e-6)
    predicted = np.zeros((64, 64), bool)
    predicted[16:48, 16:48] = True  # four times as large as what the network gets
    for row, mask in zip(rows, (data.samples("test").mask(i) for i in range(7)), strict=True):
        expected = surface_distances(predicted, mask == 1)
        assert row["hd95"] == pytest.approx(expected.hd95, abs=2)
        assert row["iou"] == pytest.approx(row["dice"] / (2 - row["dice"]))
    in_mm = image_rows(trainer, module, data.samples("test"), 4, pixel_size=0.25)
    assert in_mm[0]["hd95"] == rows[0]["hd95"] / 4
    assert in_mm[0]["dice"] == rows[0]["dice"]


class Unlabelled(Squares):
    """Squares, the mask of one of which says nothing."""

    def mask(self, index):
        return np.full_like(super().mask(index), 255) if index == 2 else super().mask(index)


def test_an_image_without_a_labelled_pixel_does_not_count(tmp_path):
    data = CoSegDataModule(Squares(6), None, Unlabelled(5), image_size=16, in_channels=1)
    module, trainer = SegmentationModule(Constant(), in_channels=1), trainer_of(tmp_path)
    rows = image_rows(trainer, module, data.samples("test"), 2)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert {value for name, value in rows.pop(2).items() if name != "id"} == {None}
    mean = np.mean([row["dice"] for row in rows])
    assert mean == pytest.approx(tested["test/dice"], abs=1e-6)
    assert mean < 0.9  # and would not be nearer to 1 for what nobody drew
    assert figures_of_images(rows)["images"] == 4
    nothing = joined_row("a", np.zeros((2, 3), np.int64))
    assert {value for name, value in nothing.items() if name != "id"} == {None}
    assert figures_of_images([nothing]) == {
        **dict.fromkeys(("iou", *DISTANCES)), "images": 0, "without_distance": 0, "interval": {},
    }  # fmt: skip


class Empty(Squares):
    """Squares, half of which were not drawn, where the network finds nothing either."""

    def mask(self, index):
        return super().mask(index) * (index % 2 == 0)


class Blind(Constant):
    """Finds nothing anywhere."""

    def forward(self, images):
        return super().forward(images)[:, [0, 0]] + torch.tensor([1.0, 0.0]).view(-1, 1, 1)


def test_the_dice_of_a_class_is_that_of_the_images_that_have_it(tmp_path):
    data = CoSegDataModule(Squares(6), None, Empty(6), image_size=16, in_channels=1)
    module, trainer = SegmentationModule(Blind(), in_channels=1), trainer_of(tmp_path)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    rows = image_rows(trainer, module, data.samples("test"), 2)
    assert [row["dice"] for row in rows] == [0, 1] * 3
    of_images = per_class_dice(rows, 2)
    assert of_images[1] == tested["test/dice_class_1"] == 0
    assert of_images[0] == pytest.approx(tested["test/dice_class_0"], abs=1e-6)
    counts = [[[60, 64, 60], [0, 0, 4]], [[64, 64, 64], [0, 0, 0]]]  # by tiles
    joined = [joined_row(name, np.array(c)) for name, c in zip("ab", counts, strict=True)]
    found = figures_of_joined(joined, 1)
    assert found["dice"] == 0.5
    assert found["per_class_dice"][1] == 0


def test_means_are_over_what_can_be_measured():
    rows = [{"dice": n / 10, "iou": n / 20, "hd95": 3.0, "surface_distance": 1.0} for n in range(8)]
    rows.append({"dice": 0.0, "iou": 0.0, "hd95": None, "surface_distance": None})
    found = figures_of_images(rows)
    assert found["images"] == 9
    assert found["without_distance"] == 1
    assert found["hd95"] == 3
    low, high = found["interval"]["dice"]
    assert 0 < low < 2.8 / 9 < high < 0.6


@pytest.mark.parametrize(
    ("split", "ids", "test", "trusted"),
    [
        (None, None, 2, False),
        (None, ["s01", "s05", "s06"], 3, True),
        ("id,split\n" + "\n".join(f"s{n:02},{'test' if n < 4 else 'train'}" for n in range(8)),
         ["s01", "s07"], 1, True),
        ("id,split,trusted\ns00,test,1\ns01,test,0\ns02,train,\ns03,train,1\n", None, 1, True),
    ],
)  # fmt: skip
def test_the_test_is_on_masks_that_somebody_checked(make_folder, split, ids, test, trusted):
    root = make_folder()
    if split is not None:
        (root / "split.csv").write_text(split)
    splits = folder_splits(root, trusted_ids=ids)
    assert len(splits.test) == test
    assert splits.test.trusted == trusted
    assert not splits.train.trusted
    data = CoSegDataModule(splits.train, splits.val, splits.test)
    assert data.trusted_test is trusted
    if ids is not None and split is None:
        assert set(splits.test.ids) == set(ids)
        assert len(splits.train) == 5


def test_it_is_said_which_test_masks_are_not_used(make_folder, caplog):
    root = make_folder()
    (root / "split.csv").write_text("id,split,trusted\ns00,test,1\ns01,test,0\ns02,train,\n")
    assert len(folder_splits(root).test) == 1
    assert "1 test masks of " in caplog.text
    assert (
        "such as s01, are not used, since only trusted masks are used for the test" in caplog.text
    )


@pytest.mark.parametrize(
    ("split", "ids", "sentence"),
    [
        (None, ["s99"], "data.trusted_ids names s99, but .* has no such sample"),
        ("id,split\ns00,test\ns01,train\n", ["s01"], "puts none of the 1 trusted masks into the"),
        (
            "id,split,trusted\ns00,test,maybe\ns01,train,\n",
            None,
            "has trusted=maybe for s00",
        ),
    ],
)
def test_trusted_masks_that_cannot_be_tested_on_are_refused(make_folder, split, ids, sentence):
    root = make_folder()
    if split is not None:
        (root / "split.csv").write_text(split)
    with pytest.raises(InputError, match=sentence):
        folder_splits(root, trusted_ids=ids)


def test_what_is_said_of_figures():
    test = {"dice": 0.6878, "accuracy": 0.9, "per_class_dice": [0.9, 0.7, 0.6], "images": 12}
    test |= {"interval": {"dice": (0.6, 0.75)}, "masks": "your own, unchecked test masks"}
    config = {"method": {"name": "supervised"}, "data": {"class_names": ["lung", "heart"]}}
    summary = {"test": test, "config": config, "correction": {"corrected": 0}}
    assert "agrees with your own, unchecked test masks to a test Dice" in (
        result_in_a_sentence(summary)
    )
    assert class_names(summary) == ["lung", "heart"]
    assert certainty(summary).startswith("There are 12 test images: if they were drawn at random")
    test["masks"] = "trusted test masks"
    assert "reached a test Dice of 0.6878" in result_in_a_sentence(summary)
    assert "on trusted test masks" in result_in_a_sentence(summary)
    del test["interval"], config["data"]
    assert "too few to estimate" in certainty(summary)
    assert class_names(summary) == ["class 1", "class 2"]


@pytest.mark.slow
def test_a_folder_of_unchecked_masks_is_not_called_the_truth(tmp_path, make_folder):
    root = make_folder(size=16)
    settings = [*SHORT, *CLASSIC, "data.image_size=32", "data.in_channels=1", "nol=0.3"]
    settings.append("data.class_names=[square]")
    result = command("run", f"data.root={root}", *settings, "hydra.run.dir=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "agreement with your own, unchecked test masks, not with the truth" in text
    assert "No mask was corrected" in text
    assert "the corrected masks" not in text
    report = (tmp_path / "run" / "report.html").read_text()
    assert "agrees with your own, unchecked test masks" in report
    assert "which nobody checked" in report
    assert "square" in report
    (tmp_path / "trusted.txt").write_text("s01\ns02\ns03\ns04\ns05\ns06\n")
    settings += [
        "data.trusted_ids=trusted.txt",
        "hydra.run.dir=again",
        "data.pixel_size=0.1",
        "data.unit=cm",
    ]
    result = command("run", f"data.root={root}", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "your own, unchecked" not in " ".join(result.stdout.split())
    summary = json.loads((tmp_path / "again" / "summary.json").read_text())
    assert summary["test"]["masks"] == "trusted test masks"
    assert summary["test"]["images"] == 6
    assert summary["test"]["unit"] == "cm"
    assert "HD95, cm" in (tmp_path / "again" / "report.html").read_text()
    assert len(rows_of(tmp_path / "again" / "test.csv")) == 6


@pytest.mark.slow
def test_a_gain_on_a_baseline_has_its_interval(tmp_path):
    settings = [*SHORT, *CLASSIC, *PHANTOM, "noise=type2", "nol=0.3", "baselines=true"]
    summary = run(composed(*settings, "data.source.test=6"), tmp_path / "run")
    for name in ("noisy", "clean"):
        low, high = summary["gain_intervals"][name]
        gap = summary["test"]["dice"] - summary["baselines"][name]["dice"]
        assert low - 1e-6 <= gap <= high + 1e-6
        assert summary["baselines"][name]["images"] == 6
    assert " to +" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_swapped_classes_can_be_seen(tmp_path):
    """Classes have their own colours, and what was given lies beside what the networks draw."""
    folder = tmp_path / "run"
    squares = Squares(12, 48)
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, sample_id in enumerate(squares.ids):
        mask = squares.mask(i) * np.uint8(1 + i % 2)
        Image.fromarray(squares.image(i)).save(root / "images" / f"{sample_id}.png")
        Image.fromarray(mask).save(root / "masks" / f"{sample_id}.png")
    settings = [*SHORT, *CLASSIC, "data=folder", f"data.root={root}", "data.classes=3", "nol=0.4"]
    settings += ["data.in_channels=1", "data.class_names=[lung,heart]"]
    run(composed(*settings), folder)
    page = (folder / "report.html").read_text()
    for text in ("></span>lung", "></span>heart", "side by side", "--panels: 2"):
        assert text in page
    picture = re.search(r"--panels: 2\" src=\"data:image/jpeg;base64,([^\"]+)", page)[1]
    width, height = Image.open(io.BytesIO(base64.b64decode(picture))).size
    assert width == 2 * height + 3
    proposals, noisy = LabelStore(folder / "proposals"), rows_of(folder / "scores.csv")
    assert set(proposals.ids) == {row["id"] for row in noisy}
    assert proposals.read(proposals.ids[0]).shape == (48, 48)
    ranked_noisy = {row["id"] for row in noisy if row["noisy"] == "1"}
    assert set(LabelStore(folder / "uncertainty").ids) == ranked_noisy
    one = outlined(np.zeros((20, 20)), [(np.full((20, 20), 2) * np.eye(20, dtype=int), None)], 20)
    assert tuple(one[0, 0]) == CLASS_COLOURS[1]


@pytest.mark.slow
@pytest.mark.drawn
def test_the_table_of_a_sweep_compares_its_methods(tmp_path):
    """What is printed can be written to a file; the comparison is image by image."""
    settings = [*SHORT, *CLASSIC, *PHANTOM, "data.source.test=6", "noise=type2", "nol=0.3"]
    sweep = ["method=supervised,coteaching", "seed=0,1", "hydra.sweep.dir=sweep"]
    result = command("run", "-m", *settings, *sweep, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = command("table", "sweep", cwd=tmp_path)
    assert "Differences per image (95 % interval; Wilcoxon's test" in text.stdout
    told = r"(is [0-9.]+ ahead of|are level).*p [=<] .*; 6 images, with [012] of 2 seeds"
    assert re.search(told, text.stdout)
    assert "In " not in text.stdout
    assert "pairs.csv" in text.stderr
    markdown = command("table", "sweep", "format=markdown", cwd=tmp_path)
    assert all(line.startswith("|") for line in markdown.stdout.splitlines()[2:] if line)
    (row,) = rows_of(tmp_path / "sweep" / "table" / "pairs.csv")
    assert row["images"] == "6"
    assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("data.pixel_size=0", "data.pixel_size=0 must be a number above 0, or null for pixels"),
        ("data.unit=cm", "data.unit=cm would have no effect without data.pixel_size"),
        (
            "data.class_names=[a,b]",
            "must be a list of one name for each class after the background, 1 in",
        ),
    ],
)
def test_units_and_names_that_fit_nothing_are_refused(setting, sentence):
    with pytest.raises(InputError, match=sentence):
        check(composed(*SHORT, setting))


def test_a_class_that_is_never_found_is_said():
    test = {"per_class_dice": [0.9, 0.0, 0.8], "masks": "trusted test masks"}
    summary = {"test": test, "config": {"data": {"class_names": ["lung", "heart"]}}}
    assert never_right(summary).endswith("it never finds lung.")
    test["per_class_dice"] = [0.0, 0.2, 0.3]
    assert "never finds the background" in never_right(summary)
    test["per_class_dice"] = [0.9, None, 0.3]
    assert never_right(summary) is None


def test_labels_that_are_lost_at_the_networks_size_measure_nothing():
    label = torch.full((16, 16), 255)
    label[3, 3] = 1
    nothing = torch.zeros(2, dtype=torch.bool)
    row = row_of("a", torch.zeros(2), nothing, torch.ones(16, 16), label, 1.0)
    assert {value for name, value in row.items() if name != "id"} == {None}
    assert figures_of_images([row])["without_distance"] == 0


def test_an_image_with_a_class_in_one_of_both_alone_has_no_distance(tmp_path):
    """The distance of its other class would be no distance of the image."""
    masks = np.zeros((2, 16, 16), np.int64)
    masks[:, 2:6, 2:6] = 1
    masks[1, 9:13, 9:13] = 2
    prediction = torch.from_numpy(masks[0])
    for label, known in ((masks[0], True), (masks[1], False)):
        label = torch.from_numpy(label)
        dice, present = dice_by_class(
            prediction[None], label[None], 3, torch.ones(1, 16, 16, dtype=torch.bool)
        )
        row = row_of("a", dice[0], present[0], prediction, label, 1.0)
        assert (row["hd95"] is not None) == known
        assert row["hd95_class_1"] == 0
        found = figures_of_images([row])
        assert found["without_distance"] == int(not known)
