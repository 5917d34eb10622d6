"""The report of a run."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.report import payload
from coseg_lightning.report.console import show_summary
from coseg_lightning.report.doubts import doubts
from coseg_lightning.report.figures import training_curves
from coseg_lightning.report.page import peers_in_words, write_report
from coseg_lightning.report.results import result_in_a_sentence
from coseg_lightning.run import run
from support import PHANTOM, SMALL, command, composed

pytestmark = pytest.mark.drawn

SETTINGS = [
    *SMALL,
    *PHANTOM,
    "noise=type2",
    "nol=0.5",
    "trainer.max_epochs=12",
    "++method.confidence=0",
    "optimizer.lr=0.01",
]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    run(composed(*SETTINGS, "baselines=true"), folder)
    return folder


@pytest.mark.slow
def test_the_page_stands_alone(folder):
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert page.sources
    local = ("scores.csv", "test.csv", "data:,", "#labels")
    assert all(s.startswith("data:image/") or s in local for s in page.sources)


@pytest.mark.slow
def test_the_page_shows_the_runs_own_figures(folder):
    text = (folder / "report.html").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"test Dice of {summary['test']['dice']:.4f}" in text
    for name in ("noisy", "clean"):
        dice = summary["baselines"][name]["dice"]
        assert f'<td class="number">{dice:.4f}</td>' in text
        low, high = summary["gain_intervals"][name]
        gain = f"{summary['test']['dice'] - dice:+.4f} ({low:+.3f} to {high:+.3f})"
        assert f'<td class="number">{gain}</td>' in text
    assert f"<td>{summary['ranking']['auroc']:.4f}</td>" in text
    worst = (folder / "scores.csv").read_text().splitlines()[1].split(",")[0]
    assert f"<td>{worst}</td>" in text
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {
        f"{name}.{suffix}"
        for name in ("training", "scores", "corrections")
        for suffix in ("png", "svg")
    }


@pytest.mark.slow
def test_baselines_are_as_if_they_were_run_alone(folder, tmp_path):
    summary = json.loads((folder / "summary.json").read_text())
    noisy = run(composed(*SETTINGS, "method=supervised"), tmp_path / "noisy")
    assert summary["baselines"]["noisy"] == noisy["test"]
    clean = run(
        composed(*SETTINGS, "method=supervised", "noise=none", "noise.level=0"), tmp_path / "clean"
    )
    assert summary["baselines"]["clean"] == clean["test"]
    alone = run(composed(*SETTINGS), tmp_path / "alone")
    assert summary["test"] == alone["test"]


@pytest.mark.slow
def test_the_report_of_an_old_run_is_written_anew(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "figures")
    (tmp_path / "run" / "report.html").unlink()
    result = command("report", tmp_path / "run", "trust=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    new = (tmp_path / "run" / "report.html").read_text()
    assert new == (folder / "report.html").read_text()
    result = command("report", tmp_path, cwd=tmp_path)
    assert result.returncode == 1
    assert "holds no finished run" in result.stderr


@pytest.mark.slow
def test_a_run_of_ten_thousand_samples_has_a_page_of_less_than_15_mb(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(payload, "MAX_BYTES", 12_000_000)
    shutil.copytree(folder, tmp_path / "run")
    table = read_table(folder / "scores.csv")
    rows = [
        {**table[n % len(table)], "id": f"sample-of-a-large-set-{n:05d}", "rank": n + 1}
        for n in range(10_500)
    ]
    write_table(tmp_path / "run" / "scores.csv", rows)
    noise = np.random.default_rng(0)

    class Many:
        def __init__(self):
            self.ids = [row["id"] for row in rows]

        def image(self, index):  # noise, which JPEG cannot compress
            return noise.integers(0, 255, (300, 300, 3), np.uint8)

        def mask(self, index):
            mask = np.zeros((300, 300), np.uint8)
            mask[20:200, 30:150] = index % 3
            return mask

    for path in (tmp_path / "run" / "labels").iterdir():
        path.unlink()
    writer = LabelStore.create(tmp_path / "run" / "labels")
    changed = [row["id"] for row in rows[:400]]
    for sample_id in changed:
        writer.write(sample_id, np.ones((300, 300), np.uint8))
    writer.finish({sample_id: {} for sample_id in changed})
    write_report(tmp_path / "run", CoSegDataModule(Many(), image_size=64))
    text = (tmp_path / "run" / "report.html").read_text()
    assert len(text) < 15e6
    assert text.count("<tr data-id=") == 10_000
    assert "The worst 10000 of 10500 samples" in text
    assert text.count('src="data:image/jpeg') > 100
    assert text.count('id="bench-part-') > 3
    assert list((tmp_path / "run" / "review").glob("part-*.js"))
    assert "limited to 12 MB" in text


# In a real browser


@pytest.fixture
def page(browser, folder):
    """Open the report from disk; any complaint of the browser fails the test."""
    complaints = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if request.url.startswith("http") else None,
    )
    page.goto((folder / "report.html").as_uri())
    yield page
    page.close()
    assert complaints == []


def shown(page, column):
    """Return a column of the visible rows."""
    rows = page.locator("#samples tbody tr:visible")
    return [row.locator("td").nth(column).inner_text() for row in rows.all()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barriers(page, barriers, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert barriers(page) == []


@pytest.mark.slow
def test_sorting_and_filtering(page, folder):
    rows = read_table(folder / "scores.csv")
    assert shown(page, 2) == [row["id"] for row in rows]
    page.get_by_role("button", name="Score").click()
    scores = list(map(float, shown(page, 4)))
    assert scores == sorted(scores)
    page.get_by_role("button", name="Score").click()
    assert list(map(float, shown(page, 4))) == sorted(scores, reverse=True)
    page.get_by_role("button", name="Sample").click()
    assert shown(page, 2) == sorted(row["id"] for row in rows)
    page.get_by_role("button", name="Pixels changed").click()
    changed = shown(page, 6)
    assert "\u2013" in changed  # unknown values come last in both directions
    assert changed[-1] == "\u2013"
    page.get_by_label("Show which samples").select_option("noisy")
    assert set(shown(page, 2)) == {row["id"] for row in rows if row["noisy"] == "1"}
    wanted = rows[0]["id"]
    page.get_by_label("Show samples with this in their name").fill(wanted.upper())
    assert shown(page, 2) == [wanted]
    assert page.locator("#shown").inner_text() == f"1 of {len(rows)} samples"


@pytest.mark.slow
def test_reviewing_from_the_table(page, folder, tmp_path):
    ids = shown(page, 2)
    proposed = {row["id"] for row in read_table(folder / "scores.csv") if row["changed_pixels"]}
    page.get_by_label("Show which samples").select_option("corrected")
    corrected = shown(page, 2)
    assert len(corrected) >= 4
    assert set(corrected) <= proposed
    page.get_by_role("button", name=f"Review {corrected[1]}").click()
    page.locator("#bench-stage[aria-busy=false]").wait_for()  # open, and nothing is loading
    assert page.locator("#bench-name").inner_text() == corrected[1]
    page.keyboard.press("t")
    page.keyboard.press("Escape")
    assert page.locator("#bench").is_hidden()
    assert page.get_by_role("button", name=f"take: review {corrected[1]}").inner_text() == "take"
    page.get_by_role("button", name="Review", exact=True).click()  # the first undecided one
    page.locator("#bench-stage[aria-busy=false]").wait_for()  # open, and nothing is loading
    first = next(sample_id for sample_id in ids if sample_id != corrected[1])
    assert page.locator("#bench-name").inner_text() == first
    page.keyboard.press("o")
    page.keyboard.press("Escape")
    page.locator("#progress", has_text=f"2 of {len(ids)}").wait_for()  # once it is closed
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the review").click()
    download.value.save_as(tmp_path / "review.csv")
    assert download.value.suggested_filename == "review.csv"
    decisions = {row["id"]: row["decision"] for row in read_table(tmp_path / "review.csv")}
    assert decisions == {corrected[1]: "take", first: "ok"}
    page.reload()  # no decision is lost
    assert page.locator("#progress").inner_text() == f"2 of {len(ids)}"
    page.get_by_label("Show which samples").select_option("undecided")
    assert sorted(shown(page, 2)) == sorted(set(ids) - {corrected[1], first})


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 700, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_wide_screens_in_light_and_dark(page, width, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wider <= 0  # only tables scroll sideways
    colours = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    )
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink > paper) == (scheme == "dark")
    assert abs(ink - paper) > 450
    button = page.locator("td.decide button").first.bounding_box()
    assert button["x"] + button["width"] <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)


@pytest.mark.slow
def test_it_is_read_without_javascript(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "report.html").as_uri())
    assert len(shown(page, 2)) == len(read_table(folder / "scores.csv"))
    assert page.locator(".tools").is_hidden()
    assert page.locator(".without").is_visible()
    assert page.locator("td.decide").first.is_hidden()
    assert page.locator("#bench").is_hidden()
    context.close()


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
    assert any("nearly identical" in d for d in doubts(summary_of(), rows, 0.9999))
    left = summary_of(corrected=0)
    left["correction"] |= {"left_alone": True, "contradiction": 11.3, "kept_vary_more": True}
    assert any("end of the ranking" in d for d in doubts(left, rows))
    assert not any("11.3" in d for d in doubts(left, rows))
    del left["correction"]["kept_vary_more"]  # written by an earlier version
    assert any("11.3 times" in d for d in doubts(left, rows))
    assert any(
        "changed labels very much" in d for d in doubts(summary_of(), rows, 0.9, [0.2, 0.3, 0.9])
    )
    assert not any("changed labels very much" in d for d in doubts(summary_of(), rows, 0.9, [0.8]))
    worse = {**summary_of(dice=0.8), "baselines": {"noisy": {"dice": 0.85}}}
    assert any("did not help" in d for d in doubts(worse, rows))
    assert "0.0500 less than one trained on the labels as given" in result_in_a_sentence(worse)


def test_the_curves_are_named_and_seen_in_one_epoch():
    stages = ("estimation", "supervised_training")
    rows = [{"stage": stage, "epoch": "0", "train/loss": "0.5"} for stage in stages]
    (axes,) = training_curves(rows).axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["plain, to estimate how labels err", "final network"]
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]
    rows += [{**row, "epoch": "1"} for row in rows]
    (axes,) = training_curves(rows).axes
    assert [line.get_marker() for line in axes.lines] == ["None", "None"]


@pytest.mark.parametrize(
    ("method", "stages", "corrected", "left_out", "told"),
    [
        ("coseg", ["retraining"], 3, 0, "teach each other. The final network is trained after"),
        ("coseg", ["retraining"], 3, 0, "after them, on the corrected masks."),
        ("coseg", ["retraining"], 0, 0, "after them, on the masks as given."),
        (
            "filter",
            ["retraining"],
            0,
            9,
            "learn apart. The final network is trained after",
        ),
        ("filter", ["retraining"], 0, 9, "on the masks that were kept."),
        ("jocor", [], 0, 0, "teach each other. Peer 1 is the network of this run."),
    ],
)
def test_what_the_final_network_learnt_from(method, stages, corrected, left_out, told):
    summary = summary_of(corrected=corrected)
    summary["config"] = {"method": {"name": method}}
    summary["stages"] = dict.fromkeys(["robust_training", *stages])
    summary["correction"]["left_out"] = left_out
    assert told in peers_in_words(summary)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("RUNS/a", ["run resume=RUNS/a review=REVIEW\n", "predict RUNS/a IMAGES OUT\n"]),
        ("a,b", ["run 'resume=\"a,b\"' review=REVIEW\n", "predict a,b IMAGES OUT\n"]),
    ],
)
def test_the_next_commands_name_the_folder(folder, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = Path(folder)
    (path / "model").mkdir(parents=True)
    (path / "scores.csv").write_text("id,rank,noisy\na,1,0\n")
    summary = summary_of()
    summary["config"] |= {"model": {"name": "unet"}}
    summary["test"]["accuracy"] = 0.5
    summary["stages"] = {}
    summary["ranking"]["estimate"] = None
    summary["correction"] |= {"left_out": 0}
    show_summary(path, summary)
    said = capsys.readouterr().out
    assert [text for text in told if f"coseg {text}" not in said] == []


def test_a_run_without_a_test_set_says_so():
    assert "was not tested" in result_in_a_sentence(summary_of(dice=None))
    unlabelled = summary_of(dice=None)
    unlabelled["test"] |= {"accuracy": None, "masks": "the test masks"}
    assert "test masks are unlabelled" in result_in_a_sentence(unlabelled)
    earlier = summary_of(dice=1.0)  # as versions before wrote it
    earlier["test"]["accuracy"] = None
    assert "test masks are unlabelled" in result_in_a_sentence(earlier)


@pytest.mark.slow
def test_the_suspicious_class_is_shown_where_there_are_several(tmp_path, folder):
    overrides = ["noise=type1", "data.classes=3", "method.by_class=true"]
    run(composed(*SMALL, *PHANTOM, *overrides), tmp_path / "run")
    assert ">Suspicious class<" in (tmp_path / "run" / "report.html").read_text()
    assert ">Suspicious class<" not in (folder / "report.html").read_text()
