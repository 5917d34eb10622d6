"""The audit finds bad masks by peers that it trains on them, or by given predictions."""

import csv
import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from coseg_lightning.app.command import CONF
from coseg_lightning.app.judging import judge
from coseg_lightning.audit import audit
from coseg_lightning.data.predictions import PredictionFolder
from coseg_lightning.errors import InputError
from support import Squares, start

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
    assert "Noise level: " in result.stdout
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


@pytest.mark.parametrize("score", ["directed", "joint"])
def test_given_predictions_need_no_training(with_predictions, tmp_path, score):
    given = [f"data.root={with_predictions}", f"predictions={with_predictions}/predictions"]
    cfg = composed(*given, f"method.score={score}")
    summary = audit(cfg, tmp_path / "audit")
    rows = rows_of(tmp_path / "audit" / "scores.csv")
    assert {row["id"] for row in rows[:2]} == {"s03", "s07"}
    assert float(rows[0]["score"]) > 3 * abs(float(rows[2]["score"]))
    assert summary["ranking"]["auroc"] is None
    assert (tmp_path / "audit" / "worst.png").is_file()
    assert not (tmp_path / "audit" / "training").exists()
    with pytest.raises(InputError, match=r"holds another audit \(summary.json\)"):
        audit(cfg, tmp_path / "audit")


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
    with pytest.raises(InputError, match="does not say of 10 masks"):
        judge(folder)
    words = [f"{row['id']},{'bad' if row['id'] in ('s03', 's07') else 'good'}" for row in asked]
    (folder / "review.csv").write_text("\n".join(["id,decision", *words]))
    result = start("audit", f"review={folder}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "estimated 0.20 (90 % interval 0.20 to 0.20), since 2 of 10" in result.stdout
    assert "nol=0.20" in result.stdout
    assert json.loads((folder / "noise_level.json").read_text())["noise_level"] == 0.2
    assert {path.name for path in tmp_path.iterdir()} == {with_predictions.name, "audit"}
    with pytest.raises(InputError, match=r"noise_level.json exists, and nothing is ever overwr"):
        judge(folder / "review.csv")
    with pytest.raises(InputError, match="nol=0.3 would have no effect, since review="):
        judge(folder, ["review=x", "nol=0.3"])


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


def test_masks_are_no_predictions(make_folder, tmp_path):
    root = make_folder()
    with pytest.raises(InputError, match="nothing but 0 and 1, which are class ids"):
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
    with pytest.raises(InputError, match="an audit trains two peers"):
        audit(composed(f"data.root={make_folder()}", "method=supervised"), tmp_path / "audit")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 8, 8), 1 / 3), r"is \(3, 8, 8\); \(K, H, W\) with K = 2"),
        (np.stack([np.full((8, 8), -2.0), np.full((8, 8), 3.0)]), "give the softmax"),
        (np.full((8, 8), np.nan), "holds no probabilities"),
        (np.array([{}], dtype=object), "cannot be read as an array"),
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
