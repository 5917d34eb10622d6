"""The code of the benchmarks; the figures that they measure do not pass or fail."""

import re
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from support import ROOT, loader, trainer_of

sys.path.insert(0, str(ROOT / "benchmarks"))

import fill
import grid
import real_tables
import scale
import step
import tables
from variants import OneNetwork, VoteByTheMean, WithoutExchange

from coseg_lightning import CoSegModule, LabelCorrection
from coseg_lightning.app.build import make_method, make_peers
from coseg_lightning.app.checks import check
from coseg_lightning.methods.registry import METHODS
from coseg_lightning.ranking.evidence import Evidence
from coseg_lightning.ranking.noise_level import estimate_noise_level
from coseg_lightning.run import run


@pytest.mark.slow
def test_every_cell_is_a_run_of_the_app():
    checked = set()  # cells of several grids
    for name in grid.GRIDS:
        cells = list(dict.fromkeys(grid.cells(name)))
        assert {seed for *_, seed in cells} == {0, 1, 2}
        each = {cell[2]: cell for cell in cells} | {cell[0].split("-")[0]: cell for cell in cells}
        for cell in each.values():
            if (key := (cell, name == "real")) in checked:
                continue
            checked.add(key)
            cfg, digest = grid.composed(cell, large=False, real=name == "real")
            if "root" in cfg.data.source:
                cfg.data.root = "."
            check(cfg)
            assert len(digest) == 10
            assert cfg.data.image_size == (128 if name == "real" else 64)
            if name != "real":  # whose weights are a file
                assert instantiate(cfg.model) is not None
            assert cfg.averaging == (0 if cell[2] == "weights not averaged" else 0.1)


def test_the_levels_that_cells_are_told():
    def levels(method):
        cfg, _ = grid.composed(("bubil-worst", 0.3, method, 1), large=False)
        return cfg.nol, cfg.noise.level, cfg.seed

    assert levels("coseg") == (0.3, 0.3, 1)
    assert levels("told 0.2 less") == (0.1, 0.3, 1)
    assert levels("told 0.2 more") == (0.5, 0.3, 1)
    assert levels("nol=auto") == ("auto", 0.3, 1)


def test_a_cell_is_known_by_its_configuration_and_not_by_where_the_data_lies(monkeypatch):
    cell = ("bubil-worst", 0.5, "coseg", 0)
    _, here = grid.composed(cell, large=False)
    monkeypatch.setattr(grid, "DATA", ROOT)
    assert grid.composed(cell, large=False)[1] == here
    assert grid.composed(cell, large=True)[1] != here


def test_the_pages_hold_the_tables_of_the_committed_results():
    results = {name: grid.rows_of(name) for name in grid.GRIDS}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    assert sum("<!-- end -->" in text for text in texts.values()) > 10
    for page, text in texts.items():
        message = f"{page} is older than the results: python benchmarks/grid.py docs"
        assert fill.filled(text, results) == text, message


def test_the_pages_count_the_measured_cells_of_the_real_grid():
    cells = list(dict.fromkeys(grid.cells("real")))
    measured = f"{real_tables.measured(grid.rows_of('real'), cells)} of {len(cells)}"
    told = {
        page.name: re.findall(
            r"(\d+)\s+of\s+(?:the\s+|its\s+)?(\d+)\s+cells", page.read_text("utf-8")
        )
        for page in (ROOT / "docs").rglob("*.md")
    }
    told = {name: found for name, found in told.items() if found}
    assert {"benchmarks.md", "index.md", "limitations.md"} <= set(told)
    for name, found in told.items():
        assert {" of ".join(one) for one in found} == {measured}, name


def test_every_method_has_its_page():
    pages = {page.stem for page in (ROOT / "docs" / "methods").glob("*.md")} - {"index"}
    assert pages == set(METHODS) == {path.stem for path in (ROOT / "conf" / "method").glob("*")}
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    for name in pages:
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert f"({name}.md)" in index
        for part in (f"`method={name}`", "**When to use it.**", f"<!-- row {name} -->"):
            assert part in page
        assert "**Source.**" in page


@pytest.mark.parametrize("kind", [WithoutExchange, OneNetwork])
def test_variants_are_modules_of_the_app(kind):
    cfg, _ = grid.composed(("phantom-type2", 0.5, "coseg", 0), large=False)
    cfg.method.module = f"variants.{kind.__name__}"
    module = make_peers(cfg)
    assert isinstance(module, CoSegModule)
    picks = torch.tensor([0]), torch.tensor([1])
    assert module.exchange(*picks) == picks


def test_the_vote_by_the_mean(tmp_path):
    masks = torch.tensor([[[0, 0, 255, 1]]])
    a = torch.tensor([0.9, 0.9, 0.9, 0.4]).view(1, 1, 1, 4)
    b = torch.tensor([0.9, 0.3, 0.9, 0.45]).view(1, 1, 1, 4)
    a, b = (torch.cat([1 - p, p], dim=1) for p in (a, b))
    # The peers disagree at the second pixel.
    assert LabelCorrection(tmp_path).vote(a, b, masks, 0.0, 255).tolist() == [[[1, 0, 255, 0]]]
    by_the_mean = VoteByTheMean(tmp_path)
    assert by_the_mean.vote(a, b, masks, 0.0, 255).tolist() == [[[1, 1, 255, 0]]]
    assert by_the_mean.vote(a, b, masks, 0.7, 255).tolist() == [[[1, 0, 255, 1]]]
    cfg, _ = grid.composed(("phantom-type2", 0.5, "vote by the mean", 0), large=False)
    assert make_method(cfg).correction is VoteByTheMean


@pytest.mark.slow
def test_the_ranking_by_the_truth_makes_no_mistake(tmp_path):
    cell = ("phantom-type2", 0.5, "ranked by the truth", 0)
    cfg, _ = grid.composed(cell, large=False)
    cfg.model.base_channels, cfg.data.image_size, cfg.trainer.max_epochs = 2, 32, 2
    cfg.data.source.update({"train": 8, "val": 0, "test": 2, "side": 64})
    summary = run(cfg, tmp_path / "run")
    assert summary["ranking"]["auroc"] == 1


def row(name, level, method, seed, dice, **more):
    filled = dict.fromkeys(grid.COLUMNS, "")
    filled |= {"set": name, "noise_level": str(level), "method": method, "seed": str(seed)}
    return filled | {"dice": str(dice), "seconds": "10", "corrected": "0", **more}


def test_the_tables_of_what_there_is():
    assert "no results" in tables.tables("core", [])
    rows = [
        row("bubil-none", 0.0, "supervised", 0, 0.87),
        row("bubil-none", 0.0, "supervised", 1, 0.89),
        row("bubil-worst", 0.5, "supervised", 0, 0.83),
        row("bubil-worst", 0.5, "supervised", 1, 0.85),
        row("bubil-worst", 0.5, "coseg", 0, 0.86, seconds="30", auroc="0.8"),
        row("bubil-worst", 0.5, "gce", 1, 0.84),
        row("bubil-crowd1", 0.1, "coseg", 0, 0.86),
    ]
    text = tables.tables("core", rows)
    # 0.86 is three points above the same seed's 0.83; noise costs four points there.
    assert "| **Co-Seg, our default** | +3.0 (1) | - |" in text
    assert "| generalised cross-entropy | -1.0 (1) | - |" in text
    assert "| 0.5 | **Co-Seg, our default** | 86.0 | 75 % | 80.0 | - | - | 1 |" in text
    assert "| trained by | bubil-worst |" in text
    assert "| supervised, clean labels | 88.0 ± 1.4 |" in text
    assert "| 0.5 | supervised, noisy labels | 84.0 ± 1.4 | - |" in text


def test_differences_of_the_real_grid_are_seed_by_seed():
    rows = [row("bubil-none", 0.0, "supervised x2", seed, 0.9) for seed in (0, 1)]
    rows += [row("bubil-worst", 0.5, "supervised x2", seed, 0.8) for seed in (0, 1)]
    rows += [row("bubil-worst", 0.5, "coseg", seed, dice) for seed, dice in ((1, 0.85), (0, 0.83))]
    rows += [row("bubil-worst", 0.5, "gce x2", 1, 0.79)]
    worst = next(line for line in real_tables.gains(rows).splitlines() if "bubil-worst" in line)
    assert [cell.strip() for cell in worst.split("|")[1:-1]] == [
        *("50 %", "bubil-worst", "10.0", "40 %", "loses 1.0", "-"),
        "+4.0 (+3.0 to +5.0; 2 of 3 runs)",
        "+6.0 (+6.0 to +6.0; 1 of 3 runs)",
        "-",
    ]
    assert "| 84.0 ± 1.4 | 83.0, 85.0, - |" in real_tables.side_by_side(rows, 0.5, ["bubil-worst"])


def test_the_ablation_is_told_as_differences_of_the_same_seeds():
    rows = [
        row("bubil-worst", 0.5, "default", 0, 0.80, label_dice_after="0.9"),
        row("bubil-worst", 0.5, "default", 1, 0.90, label_dice_after="0.9"),
        row("bubil-worst", 0.5, "bare vote", 1, 0.91, label_dice_after="0.8"),
        row("bubil-worst", 0.5, "bare vote", 2, 0.50, label_dice_after="0.8"),
        row("bubil-worst", 0.5, "two rounds", 0, 0.79, label_dice_after="0.9"),
        row("bubil-worst", 0.5, "two rounds", 1, 0.91, label_dice_after="0.9"),
        row("usgra-type2", 0.5, "bare vote", 0, 0.79),
    ]
    text = tables.tables("ablation", rows)
    assert (
        "| bare vote (seed 1) | +1.0 |\n| two rounds | +0.0 ± 1.4 |" in text
    )  # the other rows have no partner
    assert "| the default in this version | 90.0 ± 0.0 | - |" in text
    assert "| bare vote | 80.0 ± 0.0 | - |" in text


def test_a_cell_with_fewer_seeds_than_others_names_them():
    rows = [row(f"bubil-{name}", 0.5, "supervised", 0, 0.8) for name in ("worst", "large")]
    rows += [row("bubil-worst", 0.5, "coseg", seed, 0.8) for seed in (0, 1)]
    rows += [row("bubil-large", 0.5, "coseg", 0, 0.9)]
    text = tables.overview(rows, 0.5)
    assert "| supervised, noisy labels (seed 0) | 80.0 | 80.0 |" in text
    assert "| **Co-Seg, our default** | 90.0 (seed 0) | 80.0 ± 0.0 |" in text


def test_what_was_held_out_is_no_set_that_anything_was_chosen_on():
    assert not set(grid.HELD_OUT) & set(grid.SETS)
    assert {name for name, *_ in grid.cells("heldout")} == set(grid.HELD_OUT)
    rows = [
        row("bubil-small", 0.5, "supervised", 0, 0.80),
        row("bubil-small", 0.5, "coseg", 0, 0.86, label_dice_before="0.9", label_dice_after="0.92"),
        row("bubil-none", 0.0, "supervised", 0, 0.87),
    ]
    text = tables.tables("heldout", rows)
    assert "| supervised, clean labels | 87.0 |" in text
    assert "| **Co-Seg, our default** | +6.0 (1) |" in text
    assert "| 0.5 | **Co-Seg, our default** | 86.0 | 86 % | - | 90.0 | 92.0 | 1 |" in text


def test_of_a_cell_that_was_run_again_the_last_row_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "RESULTS", tmp_path)
    assert grid.read("core") == []
    lines = [",".join(grid.COLUMNS)]
    for dice in ("0.1", "0.2"):
        cell = row("bubil-worst", 0.5, "coseg", 0, dice)
        lines.append(",".join(cell[name] for name in grid.COLUMNS))
    (tmp_path / "core.csv").write_text("\n".join(lines))
    assert [result["dice"] for result in grid.read("core")] == ["0.2"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in step.KINDS if not kind.endswith("bare loop")])
def test_every_kind_of_step_trains(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(step, "BATCHES", 1)
    options = Namespace(
        size=32,
        batch=4,
        alpha=0.5,
        encoder="resnet18",
        channels_last=False,
        compile=False,
        accelerator="cpu",
    )
    module = step.modules(kind, options)
    before = [weight.clone() for weight in module.parameters()]
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(*step.batches_of(options)))
    changed = [(a != b).any() for a, b in zip(before, module.parameters(), strict=True)]
    assert sum(changed) > len(changed) * 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "joint", "score, then train", "score bank"])
def test_the_bare_loops_train_too(kind, monkeypatch):
    options = Namespace(
        size=64,
        batch=4,
        alpha=0.5,
        encoder="resnet18",
        precision="32-true",
        channels_last=False,
        compile=False,
        accelerator="cpu",
    )
    made = []
    adam = torch.optim.Adam

    class Watched(adam):
        def __init__(self, params, *given, **more):
            super().__init__(params, *given, **more)
            weights = [weight for group in self.param_groups for weight in group["params"]]
            made.append((weights, [weight.detach().clone() for weight in weights]))

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    epochs = step.bare(kind, options, step.batches_of(options))
    next(epochs)
    next(epochs)
    assert made
    for weights, before in made:
        changed = [bool((a != b).any()) for a, b in zip(before, weights, strict=True)]
        assert sum(changed) > len(changed) * 0.9


@pytest.mark.slow
def test_the_mocked_evidence_is_like_real_one():
    """Otherwise the estimation would be timed on something that it never meets."""
    rng = np.random.default_rng(0)
    noisy = rng.random(2000) < 0.3
    peers = np.moveaxis(scale.evidence_of(noisy, rng), 1, 0)
    estimate = estimate_noise_level(*map(Evidence.from_table, peers))
    assert estimate.noise_level == pytest.approx(0.3, abs=0.05)
