"""The audit finds bad masks by peers that it trains on them, by predictions, or by outlines."""

import csv
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hydra import compose, initialize_config_dir
from PIL import Image

import support
from coseg_lightning.app.command import CONF, first_cause
from coseg_lightning.app.judging import judge, question
from coseg_lightning.app.unaided import check_training
from coseg_lightning.apply import apply
from coseg_lightning.audit import audit
from coseg_lightning.data.folder import Splits
from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.data.predictions import PredictionFolder
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_file import _small_png
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise import Crowd
from coseg_lightning.run import run
from support import Squares, command, start

pytestmark = pytest.mark.drawn

SMALL = [
    "model=unet_classic",
    "model.base_channels=4",
    "data.image_size=32",
    "data.in_channels=1",
    "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false",
    "trainer.max_epochs=4",
]


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("audit", list(overrides))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_ranks_every_mask_and_draws_the_worst(make_folder, tmp_path):
    root, folder = make_folder(size=10), tmp_path / "audit"
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    options = [f"data.root={root}", f"hydra.run.dir={folder}", "worst=5"]
    result = start("audit", *SMALL, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = rows_of(folder / "scores.csv")
    assert sorted(row["id"] for row in rows) == Squares(10).ids  # test samples are ranked too
    assert "The worst of 10 masks" in result.stdout
    assert "Noise level of all " in result.stdout
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ranking"]["noise_level"] == summary["ranking"]["estimate"]["noise_level"]
    assert not (folder / "labels").exists()
    with Image.open(folder / "worst.png") as picture:
        assert picture.width > picture.height > 100
    assert {path: path.read_bytes() for path in root.rglob("*.png")} == before


@pytest.fixture
def with_predictions(make_folder):
    """Write ten squares, two of whose masks are shifted, and a good network's predictions."""
    root = make_folder(size=10)
    (root / "predictions").mkdir()
    squares = Squares(10)
    for i, sample_id in enumerate(squares.ids):
        foreground = 0.02 + 0.96 * squares.mask(i).astype(np.float32)
        np.save(root / "predictions" / f"{sample_id}.npy", foreground)
        if i in (3, 7):
            Image.fromarray(np.roll(squares.mask(i), 4, axis=1)).save(
                root / "masks" / f"{sample_id}.png"
            )
    return root


@pytest.mark.parametrize("settings", ["score=directed", "score=joint", "data.classes=1"])
def test_given_predictions_need_no_training(with_predictions, tmp_path, settings):
    given = [f"data.root={with_predictions}", f"predictions={with_predictions}/predictions"]
    cfg = composed(*given, settings.replace("score", "method.score"))
    summary = audit(cfg, tmp_path / "audit")
    rows = rows_of(tmp_path / "audit" / "scores.csv")
    assert {row["id"] for row in rows[:2]} == {"s03", "s07"}
    assert float(rows[0]["score"]) > 3 * abs(float(rows[2]["score"]))
    assert summary["ranking"]["auroc"] is None
    assert (tmp_path / "audit" / "worst.png").is_file()
    assert not (tmp_path / "audit" / "training").exists()
    with pytest.raises(InputError, match=r"holds another audit \(summary.json\)"):
        audit(cfg, tmp_path / "audit")


def test_predictions_in_another_order_of_classes_are_told(with_predictions, tmp_path, caplog):
    given = [f"data.root={with_predictions}", f"predictions={with_predictions}/predictions"]
    audit(composed(*given), tmp_path / "right")
    assert "contradict" not in caplog.text
    for path in (with_predictions / "predictions").iterdir():
        np.save(path, 1 - np.load(path))
    audit(composed(*given), tmp_path / "wrong")
    assert "contradict most masks" in caplog.text


def test_the_masks_of_an_audit_are_reviewed_and_applied(with_predictions, tmp_path, capsys):
    folder, root = tmp_path / "audit", with_predictions
    settings = [f"data.root={root}", f"predictions={root}/predictions", "review_budget=2"]
    audit(composed(*settings), folder)
    told = capsys.readouterr().out
    assert "Look at these 2 masks first. They may hold" in told
    first = [row["id"] for row in rows_of(folder / "review_order.csv")][:2]
    assert set(first) == {"s03", "s07"}
    assert told.index(first[0]) < told.index("Look at these") < told.rindex(first[1])
    page = (folder / "review.html").read_text(encoding="utf-8")
    assert "s07" in page
    assert "://" not in page.replace("http://www.w3.org", "")
    proposals, squares = LabelStore(folder / "proposals"), Squares(10)
    assert sorted(proposals.ids) == squares.ids
    np.testing.assert_array_equal(proposals.read("s03"), squares.mask(3))
    answer = tmp_path / "answer"
    (answer / "masks").mkdir(parents=True)
    Image.fromarray(squares.mask(7)).save(answer / "masks" / "s07.png")
    (answer / "review.csv").write_text("id,decision,note\ns03,take,\ns01,ok,fine\ns02,redraw,\n")
    result = start("apply", folder, tmp_path / "out", f"review={answer}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 of 10 masks" in result.stdout
    assert (
        "Masks that must still be redrawn are copied as they are: 1, such as that of s02"
        in result.stderr
    )
    for index, sample_id in enumerate(squares.ids):
        mask = np.asarray(Image.open(tmp_path / "out" / f"{sample_id}.png"))
        np.testing.assert_array_equal(mask, squares.mask(index))
    (answer / "review.csv").write_text("id,decision\ns03,take\ns07,take\n")
    Image.fromarray(1 - squares.mask(3)).save(root / "masks" / "s03.png")  # drawn anew since
    Image.fromarray(255 - squares.image(7)).save(root / "images" / "s07.png")  # another image
    changed, newer, _ = apply(folder, tmp_path / "newer", review=answer / "review.csv")
    assert (changed, sorted(newer)) == (0, ["s03", "s07"])
    kept = np.asarray(Image.open(tmp_path / "newer" / "s03.png"))
    np.testing.assert_array_equal(kept, 1 - squares.mask(3))
    (answer / "review.csv").write_text("id,decision\nelse,ok\n")
    with pytest.raises(InputError, match="names else, which is not in the run's data"):
        apply(folder, tmp_path / "no", review=answer)
    run_again = ["stages=[retraining]", f"resume={folder}", f"review={answer}"]
    with pytest.raises(
        InputError, match=r"is an audit, so there are no two peers to retrain from; .* apply"
    ):
        run(support.composed(*run_again), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_pages_decisions_tell_of_all_other_masks(make_folder, tmp_path):
    """Twelve of forty masks are another image's; the first fourteen of the order are decided."""
    root, folder = make_folder(size=40), tmp_path / "audit"
    squares = Squares(40)
    (root / "predictions").mkdir()
    wrong = {i for i in range(40) if i % 10 in (2, 5, 7)}
    for i, sample_id in enumerate(squares.ids):
        foreground = 0.02 + 0.96 * squares.mask(i).astype(np.float32)
        np.save(root / "predictions" / f"{sample_id}.npy", foreground)
        if i in wrong:
            mask = np.roll(squares.mask(i), 5, axis=1)
            Image.fromarray(mask).save(root / "masks" / f"{sample_id}.png")
    given = [f"data.root={root}", f"predictions={root}/predictions", "review_budget=14"]
    audit(composed(*given, "nol=0.2"), folder)
    order = rows_of(folder / "review_order.csv")
    bad = {squares.ids[i] for i in wrong}
    assert len(bad & {row["id"] for row in order[:14]}) >= 10
    lines = [f"{row['id']},{'take' if row['id'] in bad else 'ok'}\n" for row in order[:14]]
    (folder / "review.csv").write_text("id,decision\n" + "".join(lines))
    result = command("audit", f"review={folder}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    estimate = json.loads((folder / "noise_level.json").read_text())
    low, high = estimate["interval"]
    assert low <= 0.3 <= high
    assert "of 14 reviewed masks are bad" in result.stdout
    again = rows_of(folder / "reordered.csv")
    assert {row["decision"] for row in again[:26]} == {""}
    assert all(
        (row["suggested"] == "take") == (row["id"] in bad) for row in again if row["suggested"]
    )
    assert any(row["suggested"] for row in again)
    judge(folder)  # more decisions may follow
    (folder / "review.csv").write_text("id,decision\n" + "".join(lines[:5]))
    with pytest.raises(
        InputError,
        match="Only 5 of 40 masks have a decision, but an estimate .* needs at least 10",
    ):
        judge(folder)
    (tmp_path / "review.csv").write_text("id,decision\ns01,ok\n")
    with pytest.raises(InputError, match="is not in the folder of an audit or a run"):
        judge(tmp_path / "review.csv")


def test_an_audit_without_training_proposes_nothing(with_predictions, tmp_path):
    folder = tmp_path / "audit"
    audit(composed(f"data.root={with_predictions}", "training=none"), folder)
    (tmp_path / "review.csv").write_text("id,decision\ns03,take\n")
    with pytest.raises(
        InputError, match=r"for s03, but the run proposes no mask for it; say ok or redraw"
    ):
        apply(folder, tmp_path / "no", review=tmp_path / "review.csv")
    (tmp_path / "review.csv").write_text("id,decision\ns03,redraw\n")
    assert apply(folder, tmp_path / "out", review=tmp_path / "review.csv") == (0, [], 10)


def test_the_masks_of_an_audit_are_found_from_everywhere(with_predictions, tmp_path, monkeypatch):
    monkeypatch.chdir(with_predictions.parent)
    audit(composed(f"data.root={with_predictions.name}", "training=none"), tmp_path / "audit")
    monkeypatch.chdir(tmp_path / "audit")
    assert apply(tmp_path / "audit", tmp_path / "out") == (0, [], 10)


def test_a_given_level_is_not_estimated(with_predictions, tmp_path):
    cfg = composed(
        f"data.root={with_predictions}", f"predictions={with_predictions}/predictions", "nol=0.2"
    )
    summary = audit(cfg, tmp_path / "audit")
    assert summary["ranking"]["noise_level"] == 0.2
    assert summary["ranking"]["estimate"] is None
    noisy = [row["id"] for row in rows_of(tmp_path / "audit" / "scores.csv") if row["noisy"] == "1"]
    assert sorted(noisy) == ["s03", "s07"]


def test_a_person_tells_how_many_masks_are_bad(with_predictions, tmp_path, capsys):
    folder = tmp_path / "audit"
    given = [f"data.root={with_predictions}", f"predictions={with_predictions}/predictions"]
    audit(composed(*given), folder)
    assert f"audit review={folder}" in capsys.readouterr().out
    asked = rows_of(folder / "review.csv")
    assert sorted(row["id"] for row in asked) == Squares(10).ids  # all, since there are but ten
    assert [row["id"] for row in asked] != [row["id"] for row in rows_of(folder / "scores.csv")]
    assert {row["decision"] for row in asked} == {""}
    with Image.open(folder / "review.png") as picture:
        assert picture.width > picture.height > 100
    with pytest.raises(InputError, match="lacks the decision for 10 masks"):
        judge(folder)
    words = [f"{row['id']},{'bad' if row['id'] in ('s03', 's07') else 'good'}" for row in asked]
    (folder / "review.csv").write_text("\n".join(["id,decision", *words]))
    result = command("audit", f"review={folder}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "estimated 0.20 (90 % interval 0.20 to 0.20), since 2 of 10" in result.stdout
    assert "nol=0.20" in result.stdout
    assert json.loads((folder / "noise_level.json").read_text())["noise_level"] == 0.2
    assert {path.name for path in tmp_path.iterdir()} == {with_predictions.name, "audit"}
    with pytest.raises(InputError, match=r"noise_level.json exists and is never overwr"):
        judge(folder / "review.csv")
    with pytest.raises(InputError, match="nol=0.3 would have no effect, since review="):
        judge(folder, ["review=x", "nol=0.3"])


def test_right_masks_that_are_kept_for_the_test_do_not_dilute_the_level(
    with_predictions, tmp_path, capsys
):
    folder = tmp_path / "audit"
    rows = [f"s{n:02},{'test' if n > 5 else 'train'}" for n in range(10)]
    (with_predictions / "split.csv").write_text("\n".join(["id,split", *rows]))
    given = [f"data.root={with_predictions}", f"predictions={with_predictions}/predictions"]
    audit(composed(*given), folder)
    words = [f"s{n:02},{'bad' if n in (3, 5) else 'good'}" for n in range(10)]
    (folder / "review.csv").write_text("\n".join(["id,decision", *words]))
    capsys.readouterr()
    judge(folder)
    told = capsys.readouterr().out
    assert "nol=0.20" in told
    assert "share of all 10 masks. If those that split.csv keeps from training are right" in told
    assert "give nol=0.33." in told


@pytest.mark.slow
def test_commands_for_runs_say_that_an_audit_is_none(with_predictions, tmp_path):
    given = [f"data.root={with_predictions}", "hydra.run.dir=a", "training=none"]
    assert command("audit", *given, cwd=tmp_path).returncode == 0
    images = with_predictions / "images"
    for name, arguments, message in (
        ("report", ["a"], "a is an audit, "),
        ("export", ["a"], "a is an audit, "),
        ("predict", ["a", images, "out"], "a is an audit, "),
        ("table", ["."], "There is no run below"),
    ):
        result = command(name, *arguments, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr.startswith(message)
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["npy", "npz", "png", "two classes", "half size"])
def test_predictions_are_read_in_every_form(tmp_path, form):
    foreground = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    if form == "npz":
        np.savez(tmp_path / "a.npz", foreground)
    elif form == "png":
        Image.fromarray((foreground * 65535).astype(np.uint16)).save(tmp_path / "a.png")
    elif form == "two classes":
        np.save(tmp_path / "a.npy", np.stack([1 - foreground, foreground]))
    elif form == "half size":
        np.save(tmp_path / "a.npy", foreground[::2, ::2])
    else:
        np.save(tmp_path / "a.npy", foreground)
    p = PredictionFolder(tmp_path, classes=2).read("a", (64, 64))
    assert p.shape == (2, 64, 64)
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(p[1], foreground, atol=0.02)
    assert p.min() > 0


HARD = np.kron([[0, 1], [1, 0]], np.ones((8, 8))).astype(np.uint8)
SOFT = np.linspace(0, 1, 256).reshape(16, 16)
GREYS = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3)


def palette_picture(indices, colours):
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return picture


def levels(top, kind=np.uint8):
    return np.rint(SOFT * top).astype(kind)


def write_twelve_bits(path, values):
    """Write a TIFF of 12 bits, which older versions of imagecodecs cannot pack."""
    rasterio = pytest.importorskip("rasterio")
    height, width = values.shape
    size = {"height": height, "width": width, "count": 1}
    with rasterio.open(path, "w", "GTiff", dtype=values.dtype, nbits=12, **size) as file:
        file.write(values, 1)


PICTURES = {
    "one bit.png": (HARD, lambda p: Image.fromarray(HARD == 1).save(p)),
    "fax.tif": (HARD, lambda p: Image.fromarray(HARD == 1).save(p, compression="group4")),
    "four bits.png": (SOFT, lambda p: p.write_bytes(_small_png(levels(15), 4))),
    "white first.png": (
        HARD,
        lambda p: palette_picture(1 - HARD, [[255] * 3, [0] * 3]).save(p),
    ),
    "greys, white first.png": (
        SOFT,
        lambda p: palette_picture(255 - levels(255), GREYS[::-1]).save(p),
    ),
    "percent.pgm": (SOFT, lambda p: p.write_bytes(b"P5\n16 16\n100\n" + levels(100).tobytes())),
    "deep.pgm": (
        SOFT,
        lambda p: p.write_bytes(b"P5\n16 16\n65535\n" + levels(65535, ">u2").tobytes()),
    ),
    "white is zero.tif": (
        SOFT,
        lambda p: tifffile.imwrite(p, 255 - levels(255), photometric="miniswhite"),
    ),
    "twelve bits.tif": (
        SOFT,
        lambda p: write_twelve_bits(p, levels(4095, np.uint16)),
    ),
    "sixteen bits.tif": (SOFT, lambda p: tifffile.imwrite(p, levels(65535, np.uint16))),
}


@pytest.mark.parametrize("name", PICTURES)
def test_white_is_a_probability_of_1_in_every_picture(tmp_path, name):
    wanted, write = PICTURES[name]
    Image.fromarray(levels(255)).save(tmp_path / "usual.png")
    write(tmp_path / name)
    p = PredictionFolder(tmp_path, classes=2).read(name.rpartition(".")[0], (16, 16))
    np.testing.assert_allclose(p[1], wanted, atol=0.04)


NO_PROBABILITIES = {
    "palette.png": (
        lambda p: palette_picture(HARD, [[0] * 3, [200, 0, 0]]).save(p),
        "has a palette of colours, but a picture of probabilities has grey levels; save it in grey",
    ),
    "colours.png": (
        lambda p: Image.fromarray(np.dstack([levels(255), HARD, HARD])).save(p),
        "is a colour picture, but a picture of probabilities has grey levels",
    ),
    "float.tif": (
        lambda p: tifffile.imwrite(p, SOFT.astype(np.float32)),
        "holds float32; save it as a picture of 8 or 16 bits, or as a .npy file",
    ),
    "ids.npy": (
        lambda p: np.save(p, HARD),
        "holds uint8 values, as of class ids; give probabilities, as real numbers",
    ),
    "bool.npy": (lambda p: np.save(p, HARD == 1), "holds bool values, as of class ids"),
    "two bits.png": (lambda p: p.write_bytes(_small_png(HARD, 2)), "only 0 and 1, which are"),
}


@pytest.mark.parametrize("name", NO_PROBABILITIES)
def test_pictures_and_arrays_that_hold_no_probabilities_are_refused(tmp_path, name):
    write, sentence = NO_PROBABILITIES[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        PredictionFolder(tmp_path, classes=2).read(name.rpartition(".")[0], (16, 16))


def test_masks_are_no_predictions(make_folder, tmp_path):
    root = make_folder()
    with pytest.raises(InputError, match="only 0 and 1, which are class ids"):
        PredictionFolder(root / "masks", classes=2)
    np.save(root / "masks" / "s00.npy", np.zeros((32, 32)))
    with pytest.raises(InputError, match="both predict s00"):
        PredictionFolder(root / "masks", classes=2)


def test_an_audit_of_empty_masks_ends_well(make_folder, tmp_path):
    root = make_folder()
    (root / "predictions").mkdir()
    for path in (root / "masks").iterdir():
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
        np.save(root / "predictions" / f"{path.stem}.npy", np.full((32, 32), 0.01))
    summary = audit(
        composed(f"data.root={root}", f"predictions={root}/predictions"), tmp_path / "audit"
    )
    assert "too few masks" in summary["ranking"]["estimate"]["sentence"]


@pytest.mark.slow
def test_an_audit_trains_two_peers(make_folder, tmp_path):
    with pytest.raises(InputError, match="an audit always trains two peers"):
        audit(composed(f"data.root={make_folder()}", "method=supervised"), tmp_path / "audit")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 8, 8), 1 / 3), r"has shape \(3, 8, 8\); give \(K, H, W\) with K = 2"),
        (np.stack([np.full((8, 8), -2.0), np.full((8, 8), 3.0)]), "give the softmax"),
        (np.full((8, 8), np.nan), "holds no probabilities"),
        (np.array([{}], dtype=object), "holds Python objects, which are not loaded"),
    ],
)
def test_wrong_predictions_are_refused_in_a_sentence(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        PredictionFolder(tmp_path, classes=2).read("a", (8, 8))
    with pytest.raises(InputError, match="no prediction of b"):
        PredictionFolder(tmp_path, classes=2).read("b", (8, 8))
    with pytest.raises(InputError, match="there is no such folder"):
        PredictionFolder(tmp_path / "none", classes=2)


def test_predictions_that_are_turned_or_several_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full((8, 6), 0.5))
    assert PredictionFolder(tmp_path, classes=2).read("a", (16, 12)).shape == (2, 16, 12)
    with pytest.raises(
        InputError, match=r"is of 8 x 6 pixels .* but the mask of 6 x 8; save the t"
    ):
        PredictionFolder(tmp_path, classes=2).read("a", (6, 8))
    np.savez(tmp_path / "b.npz", p=np.zeros((8, 8)), q=np.ones((8, 8)))
    with pytest.raises(InputError, match=r"b.npz holds 2 arrays \(p, q\); save one"):
        PredictionFolder(tmp_path, classes=2).read("b", (8, 8))


# Without training


def write_folder(root, samples):
    """Write images and masks, `{id: (image, mask)}`."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for sample_id, pictures in samples.items():
        for part, picture in zip(("images", "masks"), pictures, strict=True):
            assert cv2.imwrite(str(root / part / f"{sample_id}.png"), picture)
    return root


@cache
def phantoms(count=40, side=128):
    images = PhantomImages("p", count, side, 1)
    return {i: (images.image(n), images.mask(n)) for n, i in enumerate(images.ids)}


@pytest.fixture
def with_blunders(tmp_path):
    """Write phantoms with masks of 0 and 255, of which six are wrong."""
    samples = {i: (image, 255 * mask) for i, (image, mask) in phantoms().items()}
    masks = {i: mask for i, (_, mask) in samples.items()}
    changes = {
        "p_003": masks["p_011"],
        "p_011": masks["p_003"],
        "p_017": masks["p_018"],
        "p_022": 0 * masks["p_022"],
        "p_025": 255 - masks["p_025"],
        "p_030": np.ascontiguousarray(masks["p_030"][::-1]),
    }
    samples |= {i: (samples[i][0], mask) for i, mask in changes.items()}
    return write_folder(tmp_path / "data", samples)


BLUNDERS = {  # p_011 has a mask that suits it too well for a name
    "p_003": "another image's",
    "p_017": "copy",
    "p_022": "empty",
    "p_025": "inverted",
    "p_030": "flipped",
}


def without_training(root, folder, *settings):
    cfg = composed(f"data.root={root}", "training=none", *settings)
    folder.mkdir()
    return audit(cfg, folder)["ranking"]


def test_blunders_are_named_and_ranked_first_without_training(with_blunders, tmp_path, capsys):
    ranking = without_training(with_blunders, tmp_path / "one", "data.num_workers=1")
    rows = rows_of(tmp_path / "one" / "scores.csv")
    assert {row["id"]: row["blunders"] for row in rows if row["blunders"]} == BLUNDERS
    assert [row["id"] for row in rows[5:6]] == ["p_011"]
    assert ranking["doubt"] is None
    assert ranking["blunders"]["another image's"] == 1
    printed = capsys.readouterr().out
    assert "p_022" in printed
    assert "empty: nothing is outlined, unlike in the others" in printed
    assert "Noise level of all " in printed
    with Image.open(tmp_path / "one" / "worst.png") as picture:
        assert picture.width > picture.height > 100
    without_training(with_blunders, tmp_path / "two", "data.num_workers=2")
    for name in ("scores.csv", "review_order.csv", "review.html", "worst.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_an_audit_without_training_imports_no_torch(with_blunders, tmp_path):
    code = (
        "import sys; from coseg_lightning.audit import main; main(); "
        "assert 'torch' not in sys.modules"
    )
    settings = [f"data.root={with_blunders}", "training=none", f"hydra.run.dir={tmp_path}/audit"]
    result = subprocess.run(
        [sys.executable, "-c", code, *settings], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_it_says_when_the_outlines_cannot_tell(tmp_path, capsys):
    rng = np.random.default_rng(0)
    samples = {
        i: (rng.integers(0, 256, mask.shape, np.uint8), mask) for i, (_, mask) in phantoms().items()
    }
    ranking = without_training(write_folder(tmp_path / "noise", samples), tmp_path / "a")
    assert "the images show no edges" in ranking["doubt"]
    assert ranking["doubt"] in capsys.readouterr().out
    assert "cannot tell, since the outlines cannot" in ranking["estimate"]["sentence"]
    few = dict(list(phantoms().items())[:6])
    ranking = without_training(write_folder(tmp_path / "few", few), tmp_path / "b", "nol=0.5")
    assert "only 6 of 6 masks" in ranking["doubt"]
    assert (ranking["noise_level"], ranking["estimate"]) == (0.5, None)


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_missing_values_that_are_no_finite_numbers_are_recorded(make_folder, tmp_path, value):
    root = make_folder()
    for path in (root / "images").iterdir():
        image = np.array(Image.open(path)).astype(np.float32)
        image[:2] = float(value)
        tifffile.imwrite(path.with_suffix(".tif"), image)
        path.unlink()
    cfg = composed(f"data.root={root}", "data.in_channels=1", "training=none")
    cfg.data.nodata = float(value)  # as Hydra reads it
    audit(cfg, tmp_path / "audit")
    summary = json.loads((tmp_path / "audit/summary.json").read_text())
    assert summary["config"]["data"]["nodata"] == value


def test_masks_are_compared_within_the_kind_of_their_image(tmp_path):
    samples, rng = dict(phantoms()), np.random.default_rng(0)
    for n, (sample_id, (image, mask)) in enumerate(phantoms().items()):
        if n % 2:  # a scanner with less sharp images
            blurred = cv2.GaussianBlur(image, (0, 0), 4) + rng.normal(0, 6, image.shape)
            samples[sample_id] = blurred.clip(0, 255).astype(np.uint8), mask
    root = write_folder(tmp_path / "data", samples)
    kinds = tmp_path / "kinds.csv"
    rows = "".join(f"{sample_id},{'AB'[n % 2]}\n" for n, sample_id in enumerate(samples))
    kinds.write_text("id,kind\n" + rows)
    ranks = []
    for name, settings in (("all", []), ("kinds", [f"data.kinds={kinds}"])):
        without_training(root, tmp_path / name, "data.classes=2", *settings)
        first = [row["id"] for row in rows_of(tmp_path / name / "scores.csv")][: len(samples) // 2]
        ranks.append(np.mean([sample_id in [*samples][1::2] for sample_id in first]))
    assert ranks[0] > 0.9
    assert 0.3 < ranks[1] < 0.8
    kinds.write_text("id,kind\n" + rows.partition("\n")[0])
    with pytest.raises(InputError, match="kinds has no kind for"):
        without_training(root, tmp_path / "one", f"data.kinds={kinds}")


def test_masks_that_cannot_be_judged_are_named(tmp_path):
    """They rank in the middle, where nothing else tells them from right masks."""
    samples = dict(phantoms())
    for sample_id in ("p_004", "p_009"):
        samples[sample_id] = (np.full_like(samples[sample_id][0], 90), samples[sample_id][1])
    without_training(write_folder(tmp_path / "flat", samples), tmp_path / "a", "data.classes=2")
    names = {row["id"]: row["blunders"] for row in rows_of(tmp_path / "a" / "scores.csv")}
    assert {i: name for i, name in names.items() if name} == {
        "p_004": "not judged", "p_009": "not judged",
    }  # fmt: skip
    for n, sample_id in enumerate(samples):
        if n % 4 == 0:
            samples[sample_id] = (samples[sample_id][0], 0 * samples[sample_id][1])
    without_training(write_folder(tmp_path / "empty", samples), tmp_path / "b", "data.classes=2")
    names = {row["id"]: row["blunders"] for row in rows_of(tmp_path / "b" / "scores.csv")}
    assert {i: name for i, name in names.items() if name} == {
        "p_009": "not judged"
    }  # p_004 is empty, as many are


def test_outlines_that_lie_in_unlabelled_rings_are_told(tmp_path):
    samples = {}
    for sample_id, (image, mask) in phantoms().items():
        ring = cv2.dilate(mask, np.ones((9, 9))) != cv2.erode(mask, np.ones((9, 9)))
        samples[sample_id] = image, np.where(ring, np.uint8(255), mask)
    root = write_folder(tmp_path / "rings", samples)
    ranking = without_training(root, tmp_path / "a", "data.classes=2")
    assert f"{len(samples)} hold unlabelled pixels" in ranking["doubt"]


def test_colours_16_bits_sizes_and_classes_make_no_difference(tmp_path):
    samples = {}
    for n, (sample_id, (image, mask)) in enumerate(phantoms().items()):
        classes = mask + mask * (np.arange(128) < 64)
        classes[:4] = 255
        if n == 7:
            classes = np.roll(classes, (9, 8), (0, 1))
        pictures = np.dstack([image] * 3) if n % 3 == 0 else image.astype(np.uint16) * 200
        size = (128 + 2 * (n % 5), 128 + n % 4)
        samples[sample_id] = (
            cv2.resize(pictures, size),
            cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST),
        )
    root = write_folder(tmp_path / "data", samples)
    ranking = without_training(root, tmp_path / "a", "data.classes=3")
    rows = rows_of(tmp_path / "a" / "scores.csv")
    assert ranking["doubt"] is None
    assert (rows[0]["id"], rows[0]["blunders"]) == ("p_007", "shifted")
    assert not any(row["blunders"] for row in rows[1:])
    assert float(rows[0]["score_class_2"]) > 1


def test_the_ranking_without_training_is_compared_with_the_truth_if_it_is_known(tmp_path):
    cfg = composed(
        *("data=phantom", "training=none", "noise=type2", "noise.level=0.3", "nol=0.3"),
        *("data.source.train=40", "data.source.val=0", "data.source.test=0", "data.source.side=96"),
    )
    ranking = audit(cfg, tmp_path / "audit")["ranking"]
    assert ranking["auroc"] > 0.95
    assert rows_of(tmp_path / "audit" / "scores.csv")[0]["label_dice"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training=some"], "training=some must be peers or none"),
        (
            ["training=none", "predictions=x"],
            "training=none judges masks without predictions=x; leave out one",
        ),
    ],
)
def test_training_is_peers_or_none(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        audit(composed(f"data.root={tmp_path}", *settings), tmp_path / "audit")


@pytest.mark.parametrize(
    "setting",
    [
        *("method.score=joint", "trainer.max_epochs=3", "model=unet_classic", "+model.width=3"),
        *("data.image_size=64", "optimizer.lr=1", "++averaging=0", "logger@x=none"),
    ],
)
def test_settings_of_training_are_refused_without_training(tmp_path, setting):
    cfg = composed(f"data.root={tmp_path}", "training=none")
    with pytest.raises(InputError, match="training=none does not use .* leave it out"):
        check_training(cfg, [setting])
    used = ["data.root=x", "data.num_workers=2", "noise=type1", "nol=0.1", "worst=3", "seed=1"]
    check_training(cfg, [*used, "data=phantom", "data.source.train=3", "training=none"])
    check_training(composed(f"data.root={tmp_path}"), [setting])


@pytest.mark.parametrize("training", ["none", "peers"])
@pytest.mark.parametrize(
    "setting",
    [
        *("final=best", "early_stopping=3", "data.folds=3", "baselines=true"),
        *("resume=audits/a", "keep_checkpoints=true"),
    ],
)
def test_settings_that_no_audit_uses_are_refused(setting, training):
    with pytest.raises(InputError, match=f"An audit does not use {setting}, so it would have no"):
        check_training(composed(f"training={training}", "data.root=x"), [setting])


def test_settings_of_training_are_refused_beside_predictions():
    cfg = composed("data.root=x", "predictions=p")
    with pytest.raises(InputError, match=r"predictions=p replaces training, so optimizer.lr=1"):
        check_training(cfg, ["optimizer.lr=1"])
    check_training(cfg, ["method.score=dice", "data.image_size=64", "data.classes=3"])


@pytest.mark.parametrize("setting", ["data.cache=true", "trust=true", "experiment=paper"])
def test_more_that_only_a_training_would_read(setting):
    with pytest.raises(InputError, match=f"training=none does not use {setting}"):
        check_training(composed("training=none", "data.root=x"), [setting])


def test_causes_that_go_round_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert first_cause(first, InputError) is None


@pytest.mark.parametrize(
    ("folder", "setting"),
    [
        ("audits/2026-01-02/03-04-05", "review=audits/2026-01-02/03-04-05"),
        ("my audits, 1", "'review=\"my audits, 1\"'"),
        ("prüfung", "'review=\"prüfung\"'"),
    ],
)
def test_the_command_that_is_asked_for_can_be_pasted(folder, setting):
    assert question(Path(folder)).endswith(f"coseg audit {setting}")


# Who drew the masks


class Crowded(PhantomImages):
    """Phantoms whose masks a crowd drew, as a dataset of files tells it."""

    def __init__(self, size, title=""):
        super().__init__("train", size, 128, 0)
        self.crowd = Crowd(count=4)
        self.draws = self.crowd.draws(self.ids, 0.25, 0)
        self.annotators = {i: title + drawn.person.name for i, drawn in self.draws.items()}

    def mask(self, index):
        sample_id = self.ids[index]
        right = super().mask(index)
        return self.crowd.draw(right, self.draws[sample_id], id=sample_id, seed=0)


def crowded_splits(train, title="", **_):
    return Splits(Crowded(train, title), None, None)


CROWDED = [
    *("data=phantom", "training=none", "nol=0.25", "data.num_workers=1"),
    *("data.source._target_=test_audit.crowded_splits", "data.source.train=80"),
]


def test_an_audit_without_training_proposes_nothing_and_says_so(tmp_path, capsys):
    settings = [*CROWDED, "data.source.train=12", "review_budget=2"]
    audit(composed(*settings), tmp_path / "audit")
    told = capsys.readouterr().out
    assert "pixels marked, no proposal" in told
    assert "of the wrong pixels" not in told
    with pytest.raises(InputError, match="names several reviews, but an audit reads one"):
        judge(["a.csv", "b.csv"])


def test_an_audit_without_training_tells_of_each_person(tmp_path, capsys):
    audit(composed(*CROWDED), tmp_path / "audit")
    images = Crowded(80)
    rows = rows_of(tmp_path / "audit" / "annotators.csv")
    assert {row["annotator"] for row in rows} == set(images.annotators.values())
    assert sum(int(row["masks"]) for row in rows) == 80
    shares = [float(row["bad_share"]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    moves = [drawn.person.displacement / 2 for drawn in images.draws.values()]  # of 128 pixels
    people = {drawn.person.name: drawn.person for drawn in images.draws.values()}
    for row in rows:
        low, share, high = (float(row[f"bad_share{end}"]) for end in ("_low", "", "_high"))
        assert 0 <= low <= share <= high <= 1
        beside_all = people[row["annotator"]].displacement / 2 - np.mean(moves)
        assert float(row["displacement_pixels"]) == pytest.approx(beside_all, abs=0.5)
    scores = rows_of(tmp_path / "audit" / "scores.csv")
    assert all(row["annotator"] == images.annotators[row["id"]] for row in scores)
    assert (tmp_path / "audit" / "annotators.png").is_file()
    assert "annotators.csv" in capsys.readouterr().out
    bad = {i for i, drawn in images.draws.items() if drawn.is_bad}
    found = [row["id"] in bad for row in scores[: len(bad)]]
    assert np.mean(found) > 0.5
    page = (tmp_path / "audit" / "review.html").read_text()
    assert "person 1" in page


def test_names_are_replaced_by_numbers_everywhere(tmp_path):
    settings = [*CROWDED, "data.source.train=24", "+data.source.title='Dr. '"]
    for hide in (False, True):
        folder = tmp_path / str(hide)
        audit(composed(*settings, f"hide_annotators={hide}".lower()), folder)
        text = "".join(
            (folder / name).read_text() for name in ("annotators.csv", "scores.csv", "review.html")
        )
        assert ("Dr. " in text) is not hide
        assert ("person 4" in (folder / "annotators.csv").read_text()) or not hide
    with pytest.raises(InputError, match="hide_annotators=perhaps must be true or false"):
        audit(composed(*settings, "hide_annotators=perhaps"), tmp_path / "perhaps")


@pytest.mark.slow
def test_peers_rank_without_the_habits_of_persons(tmp_path):
    settings = [*SMALL, *CROWDED, "training=peers", "trainer.max_epochs=2", "data.source.train=24"]
    audit(composed(*settings), tmp_path / "audit")
    rows = rows_of(tmp_path / "audit" / "annotators.csv")
    persons = [drawn.person for drawn in Crowded(24).draws.values()]
    shared = np.mean([person.displacement / 2 for person in persons])  # of 128 pixels
    people = {person.name: person for person in persons}
    for row in rows:
        beside_all = people[row["annotator"]].displacement / 2 - shared
        assert float(row["displacement_pixels"]) == pytest.approx(beside_all, abs=0.8)
