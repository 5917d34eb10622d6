"""The report of a run."""

import json
from html.parser import HTMLParser

import pytest
from test_run import PHANTOM, SMALL, composed

from coseg_lightning.report import doubts, result_in_a_sentence
from coseg_lightning.run import run


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    run(composed(*SMALL, *PHANTOM, "noise=type2", "nol=0.5", "trainer.max_epochs=12"), folder)
    return folder


def test_the_page_stands_alone(folder):
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert "script" not in page.tags
    assert page.sources
    assert all(s.startswith("data:image/png;base64,") or s == "scores.csv" for s in page.sources)


def test_the_page_shows_the_runs_own_figures(folder):
    text = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"test Dice of {summary['test']['dice']:.4f}" in text
    assert f"<td>{summary['ranking']['auroc']:.4f}</td>" in text
    worst = (folder / "scores.csv").read_text().splitlines()[1].split(",")[0]
    assert f"<td>{worst}</td>" in text
    assert {p.name for p in (folder / "figures").iterdir()} >= {"training.png", "scores.png"}


def summary_of(auroc=None, before=None, after=None, corrected=1, dice=0.9):
    return {
        "config": {"method": {"name": "coseg"}},
        "test": {"dice": dice, "accuracy": dice},
        "ranking": {"noise_level": 0.3, "auroc": auroc},
        "correction": {
            "corrected": corrected, "label_dice_before": before, "label_dice_after": after,
        },
    }  # fmt: skip


def test_doubts_are_told():
    rows = [{"noisy": "1"}]
    assert not any("poorly" in d for d in doubts(summary_of(auroc=0.99), rows))
    assert any("poorly" in d for d in doubts(summary_of(auroc=0.6), rows))
    assert any("did harm" in d for d in doubts(summary_of(before=0.9, after=0.8), rows))
    assert not any("did harm" in d for d in doubts(summary_of(before=0.8, after=0.9), rows))
    assert any("changed nothing" in d for d in doubts(summary_of(corrected=0), rows))


def test_a_run_without_a_test_set_says_so():
    assert "was not tested" in result_in_a_sentence(summary_of(dice=None))


def test_the_suspicious_class_is_shown_where_there_are_several(tmp_path, folder):
    overrides = ["noise=type1", "data.classes=3", "method.by_class=true"]
    run(composed(*SMALL, *PHANTOM, *overrides), tmp_path / "run")
    assert "<th>Suspicious class</th>" in (tmp_path / "run" / "report.html").read_text()
    assert "<th>Suspicious class</th>" not in (folder / "report.html").read_text()
