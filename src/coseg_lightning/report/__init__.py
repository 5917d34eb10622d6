"""report.html: one page that tells whether a run worked, and what it changed."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.atomic import replacing, write_text
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.labels import LabelStore
from coseg_lightning.report.figures import (
    corrected_examples,
    read_rows,
    score_histogram,
    training_curves,
)

WORST = 50  # rows of the table; all are in scores.csv


@rank_zero_only
def write_report(folder: str | Path, data: CoSegDataModule) -> None:
    """Draw the figures of a finished run into `figures/`, and write `report.html` beside them.

    Args:
        folder: The run's folder, with its `summary.json`.
        data: The run's data, for the pictures of corrected samples.
    """
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = read_rows(folder / "scores.csv")
    figures = {"Training": training_curves(read_rows(folder / "metrics.csv"))}
    if scores:
        figures["Corruption scores of the training set"] = score_histogram(
            scores, summary["config"]["method"].get("score", "directed")
        )
    changed = sorted(scores, key=lambda row: -int(row["changed_pixels"] or 0))[:8]
    changed = [row for row in changed if row["changed_pixels"] not in ("", "0")]
    if changed:
        before = data.given_samples()
        layer = LabelStore(folder / "labels")
        ids = [row["id"] for row in changed]
        figures["The labels that were changed most"] = corrected_examples(before, layer, ids)
    names = ("training", "scores", "corrections")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("coseg_lightning.report", "."), autoescape=True
    )
    page = environment.get_template("report.html.jinja").render(
        summary=summary,
        config=summary["config"],
        sentence=result_in_a_sentence(summary),
        figures=[
            (title, _save(figure, folder / "figures" / f"{name}.png"))
            for (title, figure), name in zip(figures.items(), names, strict=False)
        ],
        worst=scores[:WORST],
        samples=len(scores),
        doubts=doubts(summary, scores),
    )
    write_text(folder / "report.html", page)


def _save(figure: Figure, path: Path) -> str:
    """Write a figure, and return it as the text of a data URL."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    with replacing(path) as temporary:
        temporary.write_bytes(png.getvalue())
    return base64.b64encode(png.getvalue()).decode()


def result_in_a_sentence(summary: dict[str, Any]) -> str:
    """What came out, for somebody who reads one line."""
    methods = {
        "coseg": "The network retrained on corrected labels",
        "coteaching": "The first of two peers, trained by co-teaching,",
        "supervised": "The network trained on the labels as they are",
    }
    name = summary["config"]["method"]["name"]
    if summary["correction"].get("left_alone"):
        name = "supervised"
    subject = methods.get(name, f"The network trained by the method {name}")
    if summary["test"]["dice"] is None:
        return f"{subject} was not tested: there is no test set."
    dice, accuracy = summary["test"]["dice"], summary["test"]["accuracy"]
    return f"{subject} reached a test Dice of {dice:.4f} and a pixel accuracy of {accuracy:.4f}."


def doubts(summary: dict[str, Any], scores: list[dict[str, str]]) -> list[str]:
    """What a careful reader should not take for granted."""
    found = []
    auroc, correction = summary["ranking"]["auroc"], summary["correction"]
    estimate = summary["ranking"].get("estimate")
    if estimate is not None and not estimate["separable"]:
        found.append(f"Noise level: {estimate['sentence']}")
    elif estimate is None and scores:
        found.append(
            f"The noise level of {summary['ranking']['noise_level']:g} was given, not measured: "
            "as many samples were taken for noisy as it says."
        )
    if auroc is not None and auroc < 0.85:
        found.append(
            f"The ranking tells noisy labels from others poorly (AUROC {auroc:.2f}; 0.5 is "
            "chance): it may rank hard images instead of bad labels."
        )
    before, after = correction["label_dice_before"], correction["label_dice_after"]
    if before is not None and after < before:
        found.append(
            f"Correction did harm: the training labels' Dice to the originals fell from "
            f"{before:.4f} to {after:.4f}."
        )
    doubted = any(row["noisy"] == "1" for row in scores)
    if correction.get("left_alone"):
        found.append(
            "The labels in doubt were left as they are, since the peers do not seem to know "
            f"better: they contradict these labels {correction['contradiction']:.1f} times as "
            "much as each other, or differ too much from each other to be of use. So the network "
            "is one trained on your labels as given."
        )
    elif doubted and summary["config"]["method"]["name"] == "coseg" and not correction["corrected"]:
        found.append(
            "Correction changed nothing: the peers never agreed surely enough against a label."
        )
    return found
