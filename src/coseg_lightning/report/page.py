"""report.html: one page that tells whether a run worked, and what it changed."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import changed_labels
from coseg_lightning.ranking.noise_level import MIN_SAMPLES, fit_mixture
from coseg_lightning.report.doubts import doubts
from coseg_lightning.report.figures import (
    corrected_examples,
    read_rows,
    score_histogram,
    training_curves,
)
from coseg_lightning.report.pictures import CORRECTED, GIVEN, ORIGINAL, data_url, outlined

ROWS = 10_000  # of the table; all are in scores.csv
LARGE, SMALL = (300, 240), (600, 96)  # how many pictures, and the pixels of their longer side
PICTURES = 8_000_000  # characters of them; those of images that cannot be made small are fewer
TITLES = {
    "training": "Training",
    "scores": "Corruption scores of the training set",
    "corrections": "The labels that were changed most",
}


@rank_zero_only
def write_report(folder: str | Path, data: CoSegDataModule | None) -> dict[str, Figure]:
    """Draw the figures of a finished run into `figures/`, and write `report.html` beside them.

    The page stands alone: it needs no network, and no JavaScript but to sort, filter and review.

    Args:
        folder: The run's folder, with its `summary.json`.
        data: The run's data, for the pictures of samples; without it there are none.

    Returns:
        The figures, by the names of their files.

    Raises:
        InputError: If what the run wrote was changed and cannot be read.
    """
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = read_rows(folder / "scores.csv")
    try:
        rows = [_row(row) for row in scores]
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder / 'scores.csv'} was changed and cannot be read.") from error
    corrected: dict[str, LabelStore] = {}
    if data is not None:
        layers = [LabelStore(folder / name) for name in summary["correction"].get("layers", [])]
        corrected = changed_labels(data.given_samples(), layers)
    figures = {"training": training_curves(read_rows(folder / "metrics.csv"))}
    if scores:
        score = summary["config"]["method"].get("score", "directed")
        figures["scores"] = score_histogram(scores, score)
    most = sorted((row for row in rows if row["id"] in corrected), key=lambda row: -row["changed"])
    if data is not None and most:
        shown = {row["id"]: corrected[row["id"]].read(row["id"]) for row in most[:8]}
        figures["corrections"] = corrected_examples(data.given_samples(), shown)
    for row in rows:
        row["proposed"] = row["id"] in corrected
    if data is not None:
        _picture(rows[:ROWS], data, corrected)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("coseg_lightning.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        summary=summary,
        config=summary["config"],
        run=_run_id(folder),
        sentence=result_in_a_sentence(summary),
        results=results(summary),
        figures=[
            (TITLES[name], _save(figure, folder / "figures" / name))
            for name, figure in figures.items()
        ],
        rows=rows[:ROWS],
        classes=bool(rows) and "suspicious_class" in scores[0],
        samples=len(rows),
        proposed=sum(row["proposed"] for row in rows),
        doubts=doubts(
            summary,
            scores,
            _agreement(folder),
            _dice_of_changes(data, corrected),
            _distance([row["score"] for row in rows]),
        ),
        style=_beside("report.css"),
        script=_beside("report.js"),
    )
    write_text(folder / "report.html", page)
    return figures


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _run_id(folder: Path) -> str:
    path = folder / "run.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["id"]) if path.is_file() else ""


def _row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row of scores.csv as the page shows it."""

    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    return {
        "id": row["id"],
        "rank": int(row["rank"]),
        "score": float(row["score"]),
        "noisy": row["noisy"] == "1",
        "changed": int(row["changed_pixels"] or 0),
        "replaced": {"1": "yes", "0": "no"}.get(row.get("replaced", ""), ""),
        "prediction_dice": number("prediction_dice"),
        "label_dice": number("label_dice"),
        "corrected_dice": number("corrected_dice"),
        "suspicious_class": row.get("suspicious_class", ""),
    }


def _picture(
    rows: Sequence[dict[str, Any]], data: CoSegDataModule, corrected: Mapping[str, LabelStore]
) -> None:
    """Give pictures to the samples that are looked at first: corrected ones, and the worst."""
    samples = data.given_samples()
    index_of = {id: index for index, id in enumerate(samples.ids)}
    first = sorted(rows, key=lambda row: (not row["proposed"], row["rank"]))
    (large, large_side), (small, small_side) = LARGE, SMALL
    left = PICTURES
    for n, row in enumerate(first[: large + small]):
        index = index_of.get(row["id"])
        if index is None or left < 0:
            continue
        outlines = [(samples.mask(index), GIVEN)]
        if samples.truth is not None:
            outlines.insert(0, (samples.truth.mask(index), ORIGINAL))
        if row["id"] in corrected:
            outlines.append((corrected[row["id"]].read(row["id"]), CORRECTED))
        side = large_side if n < large and row["proposed"] else small_side
        row["picture"] = data_url(outlined(samples.dataset.image(index), outlines, side))
        left -= len(row["picture"])


def _dice_of_changes(
    data: CoSegDataModule | None, corrected: Mapping[str, LabelStore]
) -> list[float]:
    """The Dice of changed labels to what they were, of some hundred of them."""
    if data is None:
        return []
    samples = data.given_samples()
    some = [index for index, id in enumerate(samples.ids) if id in corrected]
    return [
        mask_dice(corrected[samples.ids[i]].read(samples.ids[i]), samples.mask(i))
        for i in some[:: 1 + len(some) // 200]
    ]


def _agreement(folder: Path) -> float | None:
    """The share of pixels on which the peers agreed in their last epoch."""
    told = [
        row["train/agreement"]
        for row in read_rows(folder / "metrics.csv")
        if row.get("train/agreement")
    ]
    return float(told[-1]) if told else None


def _distance(scores: Sequence[float]) -> float | None:
    """How far two normal distributions that are fitted to the scores lie apart."""
    finite = np.array([score for score in scores if np.isfinite(score)])
    enough = len(finite) >= MIN_SAMPLES and finite.std() > 0
    return fit_mixture(finite).distance if enough else None


def _save(figure: Figure, path: Path) -> str:
    """Write a figure as PNG and SVG, and return it as an image's source."""
    for suffix in ("svg", "png"):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, dpi=120)
        with replacing(path.with_suffix(f".{suffix}")) as temporary:
            temporary.write_bytes(drawn.getvalue())
    return "data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode()


def results(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's network beside the plain ones that were trained with it, and how far it is off."""
    own = summary["test"]
    names = {
        "before": "The run before its review",
        "noisy": "Plain network, labels as given",
        "clean": "Plain network, clean labels",
    }
    rows = [{"name": "This run", **own, "gap": None}]
    for name, test in summary.get("baselines", {}).items():
        known = own["dice"] is not None and test["dice"] is not None
        gap = own["dice"] - test["dice"] if known else None
        rows.append({"name": names[name], **test, "gap": gap})
    return rows


def result_in_a_sentence(summary: Mapping[str, Any]) -> str:
    """What came out, for somebody who reads one line."""
    methods = {
        "coseg": "The network retrained on corrected labels",
        "coteaching": "The first of two peers, trained by co-teaching,",
        "supervised": "The network trained on the labels as they are",
    }
    name, correction = summary["config"]["method"]["name"], summary["correction"]
    subject = methods.get(name, f"The network trained by the method {name}")
    if "rejected" in correction:
        subject = "The network retrained on reviewed labels"
    elif name == "coseg" and not correction["corrected"]:
        subject = "The network retrained on the labels as given, none of which was changed,"
    if summary["test"]["dice"] is None:
        return f"{subject} was not tested: there is no test set."
    dice, accuracy = summary["test"]["dice"], summary["test"]["accuracy"]
    told = f"{subject} reached a test Dice of {dice:.4f} and a pixel accuracy of {accuracy:.4f}"
    others = {
        "before": "the run before its review",
        "noisy": "one trained on the labels as given",
        "clean": "one trained on clean labels",
    }
    gaps = [
        f"{abs(gap):.4f} {'more' if gap >= 0 else 'less'} than {others[name]}"
        for name, test in summary.get("baselines", {}).items()
        if test["dice"] is not None
        for gap in [dice - test["dice"]]
    ]
    if len(gaps) > 2:
        gaps = [", ".join(gaps[:-1]), gaps[-1]]
    return ", ".join([told, " and ".join(gaps)]) + "." if gaps else f"{told}."
