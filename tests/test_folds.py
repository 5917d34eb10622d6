"""data.folds: every mask is judged by peers that did not learn from it."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from coseg_lightning.app.folds import draw_folds
from coseg_lightning.errors import InputError
from coseg_lightning.labels.store import LabelStore
from support import CLASSIC, SHORT, Squares, command, rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """Three folds of squares, a quarter of whose masks is off by six pixels."""
    folder = tmp_path_factory.mktemp("folds")
    squares = Squares(24, 40)
    for name in ("imgs", "gt"):
        (folder / "data" / name).mkdir(parents=True)
    for i, sample_id in enumerate(squares.ids):
        mask = squares.mask(i)
        mask = np.roll(mask, 6, axis=1) if i % 4 == 0 else mask
        Image.fromarray(255 * mask).save(folder / "data" / "gt" / f"{sample_id}.png")
        Image.fromarray(squares.image(i)).save(folder / "data" / "imgs" / f"{sample_id}.png")
    settings = [*CLASSIC, *SHORT, "data.in_channels=1", "nol=0.25", "trainer.max_epochs=12"]
    settings += ["optimizer.lr=0.01", "data.folds=3", "hydra.run.dir=run"]
    result = command("__main__", "run", folder / "data", *settings, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout, settings


def test_every_mask_is_ranked_and_proposed_for(folded):
    folder, output, _ = folded
    run, ids = folder / "run", set(Squares(24, 40).ids)
    rows = rows_of(run / "scores.csv")
    assert {row["id"] for row in rows} == ids
    assert sum(row["noisy"] == "1" for row in rows) == 6
    bad = np.array([int(row["id"][1:]) % 4 == 0 for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    above = mannwhitneyu(scores[bad], scores[~bad]).statistic
    assert above / (6 * 18) > 0.8  # the AUROC
    for name in ("proposals", "uncertainty"):
        layer = LabelStore(run / name)
        assert set(layer.ids) == ids
        assert layer.read(layer.ids[0]).shape == (40, 40)
    assert "were not judged" not in output
    assert "Drew 3 folds from 24 images" in output


def test_the_test_is_over_all_images(folded):
    folder, output, _ = folded
    summary = json.loads((folder / "run" / "summary.json").read_text())
    rows = rows_of(folder / "run" / "test.csv")
    assert len(rows) == summary["test"]["images"] == 24
    mean = np.mean([float(row["dice"]) for row in rows])
    assert summary["test"]["dice"] == pytest.approx(mean)
    assert f"Test Dice              {mean:.4f} (95 % interval" in output
    for number in (1, 2, 3):
        fold = json.loads((folder / "run" / f"fold_{number}" / "summary.json").read_text())
        held_out = {row["id"] for row in rows if row["fold"] == f"fold_{number}"}
        learnt = {row["id"] for row in rows_of(folder / "run" / f"fold_{number}" / "scores.csv")}
        assert len(held_out) == 8
        assert not held_out & learnt
        assert summary["folds"][f"fold_{number}"] == fold["test"]["dice"]
    assert "<img" in (folder / "run" / "report.html").read_text()


def test_the_test_of_folds_is_on_checked_masks_alone(folded):
    folder, _, settings = folded
    (folder / "split.csv").unlink(missing_ok=True)
    (folder / "trusted.txt").write_text("s01\ns02\ns03\ns05\ns06\ns07\n")
    given = [*settings, "data.trusted_ids=trusted.txt", "trainer.max_epochs=2", "data.folds=2"]
    given.append("hydra.run.dir=checked")
    result = command("__main__", "run", folder / "data", *given, cwd=folder)
    assert result.returncode == 0, result.stderr
    summary = json.loads((folder / "checked" / "summary.json").read_text())
    rows = [row for row in rows_of(folder / "checked" / "test.csv") if row["trusted"] == "1"]
    assert len(rows) == summary["test"]["images"] == 6
    for name in ("dice", "accuracy"):
        mean = np.mean([float(row[name]) for row in rows])
        assert summary["test"][name] == pytest.approx(mean)
    assert summary["test"]["per_class_dice"][1] == pytest.approx(summary["test"]["dice"])
    output = " ".join(result.stdout.split())
    assert "Tested on trusted test masks" in output
    assert "Masks corrected none" in output
    paths = [folder / "checked" / f"fold_{n}" / "summary.json" for n in (1, 2)]
    skipped = all(json.loads(path.read_text())["correction"]["left_alone"] for path in paths)
    assert summary["correction"]["left_alone"] == skipped


def test_folds_go_on_where_they_were_interrupted(folded):
    folder, _, _ = folded
    before = (folder / "run" / "scores.csv").read_bytes()
    for path in ("summary.json", "report.html", "fold_3/summary.json"):
        (folder / "run" / path).unlink()
    result = command("__main__", "run", "resume=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "run" / "scores.csv").read_bytes() == before
    assert (folder / "run" / "report.html").is_file()


def test_the_report_of_folds_is_written_again_with_its_pictures(folded):
    folder, _, _ = folded
    (folder / "run" / "report.html").unlink()
    result = command("__main__", "report", "run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "no pictures" not in result.stdout
    assert "data:image/jpeg" in (folder / "run" / "report.html").read_text()


def test_a_fold_predicts_with_the_statistics_of_the_training_images(folded):
    folder, _, settings = folded
    more = ["data.normalization=training", "data.folds=2", "method=coteaching"]
    given = [*settings, *more, "trainer.max_epochs=1", "hydra.run.dir=standardised"]
    result = command("__main__", "run", folder / "data", *given, cwd=folder)
    assert result.returncode == 0, result.stderr
    fold = "standardised/fold_1"
    result = command("__main__", "predict", fold, folder / "data" / "imgs", "predicted", cwd=folder)
    assert result.returncode == 0, result.stderr
    for path in ("summary.json", "fold_2/summary.json"):
        (folder / "standardised" / path).unlink()
    result = command("__main__", "run", "resume=standardised", cwd=folder)
    assert result.returncode == 0, result.stderr


def test_the_data_of_one_fold_is_not_said_to_have_changed(folded):
    result = command("__main__", "report", "run/fold_1", cwd=folded[0])
    assert "is one fold of a run" in result.stdout
    assert "has changed" not in result.stdout


def test_what_folds_cannot_do_is_said(folded):
    folder, _, settings = folded
    for more, sentence in (
        (["data.folds=1"], "data.folds=1 must be a whole number of at least 2"),
        (["data.folds=20"], "data.folds=20 needs two images per fold, but there are only 24"),
        (["method=supervised"], "judges each mask by two peers, which method=supervised does not"),
        (["noise=type1"], "judges masks as they are, so it cannot be combined with noise"),
        (["final=best"], "leaves no validation masks, which final=best and early_stopping need"),
        (["trainer=ddp", "trainer.devices=2"], "judges masks in one process; leave trainer=ddp"),
        (["baselines=true"], "excludes baselines=true"),
        (["data.source.test_share=0.4"], "no effect, since the split is decided by data.folds=3"),
    ):
        given = [*settings, *more, "hydra.run.dir=other"]
        result = command("__main__", "run", folder / "data", *given, cwd=folder)
        assert result.returncode == 1
        assert sentence in result.stderr
    images = folder / "data" / "imgs"
    result = command("__main__", "predict", "run", images, "out", cwd=folder)
    assert (
        "has one network per fold, but none for all of them; give the folder of one fold"
        in result.stderr
    )


def test_no_group_is_in_two_folds():
    ids = [f"s{n:02d}" for n in range(23)]
    groups = {sample_id: str(n // 3) for n, sample_id in enumerate(ids)}
    folds = draw_folds(ids, 4, 0, groups)
    assert sorted(i for fold in folds for i in fold) == ids
    assert max(map(len, folds)) - min(map(len, folds)) <= 3
    seen = [{groups[i] for i in fold} for fold in folds]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert draw_folds(ids, 4, 1, groups) != folds
    with pytest.raises(InputError, match="there are 8 groups; give fewer folds"):
        draw_folds(ids, 9, 0, groups)
