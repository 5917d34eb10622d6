"""A run of version 0.1 still opens: its folder is in `run-0.1`, made by that version.

Its command, in a folder of twelve squares: `python -m coseg_lightning.run data=folder data.root=DIR
data.image_size=32 data.in_channels=1 data.batch_size=4 noise=type1 noise.type1.max_pixels=40
nol=0.4 model=custom model._target_=support.TinyNetwork method.confidence=0 trainer.max_epochs=12
optimizer.lr=0.03`. Its figures and its report, which take most space, were left out.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coseg_lightning import CoSegModule, LabelStore
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.apply import apply
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.predict import predict
from coseg_lightning.report.page import write_report
from coseg_lightning.run import run
from support import TinyNetwork, command, composed, data_of, trainer_of

EARLIER = Path(__file__).parent / "run-0.1"


@pytest.fixture
def earlier(tmp_path):
    return shutil.copytree(EARLIER, tmp_path / "run")


@pytest.fixture
def root(make_folder):
    return make_folder(size=12, foreground=255)


def test_its_masks_are_applied(earlier, root, tmp_path):
    corrected, newer, count = apply(earlier, tmp_path / "masks", root=root, trust=True)
    assert (newer, count) == ([], 12)
    layer = LabelStore(earlier / "labels")
    assert 0 < corrected <= len(layer) == 4
    for sample_id in layer.ids:
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{sample_id}.png"))
        np.testing.assert_array_equal(mask > 0, layer.read(sample_id))


def test_only_its_summary_and_its_network_are_needed_to_predict(earlier, root, tmp_path):
    (earlier / "run.json").unlink()
    assert predict(earlier, root / "images", tmp_path / "out", trust=True) == 12


def test_its_network_predicts_and_is_exported(earlier, root, tmp_path):
    assert predict(earlier, root / "images", tmp_path / "out", trust=True) == 12
    predicted = np.asarray(Image.open(tmp_path / "out" / "s00.png")) > 0
    truth = np.asarray(Image.open(root / "masks" / "s00.png")) > 0
    assert (predicted == truth).mean() > 0.98
    path, difference = export(earlier, "torchscript", tmp_path / "model.pt", trust=True)
    assert path.is_file()
    assert difference < 1e-3


@pytest.mark.slow
@pytest.mark.drawn
def test_its_report_is_written_anew(earlier, root):
    write_report(earlier, AppRun(earlier, root=root, trust=True).data())
    page = (earlier / "report.html").read_text(encoding="utf-8")
    assert "test Dice of 1.0000" in page
    assert page.count("data:image/jpeg") >= 4


@pytest.mark.slow
def test_a_review_of_it_retrains(earlier, root, tmp_path):
    ids = LabelStore(earlier / "labels").ids
    decisions = dict(zip(ids, ("keep", "reject", "redraw", "keep"), strict=True))
    lines = [f"{sample_id},{decision}\n" for sample_id, decision in decisions.items()]
    (tmp_path / "review.csv").write_text("id,decision\n" + "".join(lines), encoding="utf-8")
    result = command(
        "run",
        "stages=[retraining]",
        f"resume={earlier}",
        "trust=true",
        f"review={tmp_path / 'review.csv'}",
        f"data.root={root}",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((earlier / "reviewed" / "summary.json").read_text(encoding="utf-8"))
    assert [summary["correction"][name] for name in ("corrected", "rejected", "redraw")] == [
        2,
        1,
        1,
    ]
    assert summary["stages"]["retraining"]["epochs"] == 12


def test_a_review_keeps_the_loss_of_a_run_that_named_none(earlier, root):
    path = earlier / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert AppRun(earlier, trust=True).cfg.method.retraining_loss == "generalised_cross_entropy"
    del summary["config"]["method"]["retraining_loss"]
    path.write_text(json.dumps(summary), encoding="utf-8")
    assert AppRun(earlier, root=root, trust=True).cfg.method.retraining_loss == "cross_entropy"


def test_a_run_without_a_version_is_refused_in_a_sentence(earlier, root):
    (earlier / "run.json").write_text('{"id": "x", "config": {"a": 1}}', encoding="utf-8")
    (earlier / "summary.json").unlink()
    with pytest.raises(InputError, match="was started by version None"):
        run(composed_like(earlier, root), earlier)


def test_its_summary_is_shown_again(earlier, root, capsys):
    (earlier / "report.html").write_text("a report", encoding="utf-8")
    cfg = composed_like(earlier, root)
    summary = run(cfg, earlier)
    assert summary == json.loads((earlier / "summary.json").read_text(encoding="utf-8"))
    assert "Test Dice" in capsys.readouterr().out


def test_one_that_was_not_finished_is_refused_in_a_sentence(earlier, root):
    (earlier / "summary.json").unlink()
    with pytest.raises(
        InputError, match=r"was started by version 0\.1\.0.* finish it with version 0\.1\.0"
    ):
        run(composed_like(earlier, root), earlier)


def composed_like(folder, root):
    """The settings of a run, given again."""
    text = (folder / "run.json").read_text(encoding="utf-8").replace("/data/masks", str(root))
    (folder / "run.json").write_text(text, encoding="utf-8")
    return composed(
        *("data=folder", f"data.root={root}", "data.image_size=32", "data.in_channels=1"),
        *("data.batch_size=4", "noise=type1", "noise.type1.max_pixels=40", "nol=0.4"),
        *("model=custom", "model._target_=support.TinyNetwork", "method.confidence=0"),
        *("trainer.max_epochs=12", "optimizer.lr=0.03", f"resume={folder}"),
        "method.score=directed",  # the default of that version
    )


def test_its_checkpoint_loads_and_a_plain_fit_goes_on(tmp_path):
    path = EARLIER / "robust_training" / "last.ckpt"
    nets = {"net_a": TinyNetwork(), "net_b": TinyNetwork()}
    module = CoSegModule.load_from_checkpoint(path, **nets)
    checkpoint = torch.load(path, weights_only=True)
    assert module.noise_level == 0.4
    torch.testing.assert_close(module.state_dict(), checkpoint["state_dict"], rtol=0, atol=0)
    module.on_load_checkpoint(checkpoint)
    excluded = [sorted(ids) for ids in module.selection.excluded_ids]
    assert excluded == checkpoint["doubted"]
    assert all(len(ids) == 4 for ids in excluded)
    trainer = trainer_of(tmp_path, max_epochs=13)
    trainer.fit(module, data_of(tmp_path), ckpt_path=path, weights_only=True)
    assert trainer.current_epoch == 13
