"""report.html: a page that shows whether a run worked and what it changed."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import changed_labels
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.ranking.annotators import AnnotatorRecord
from coseg_lightning.ranking.noise_level import MIN_SAMPLES, fit_mixture, plausible_levels
from coseg_lightning.report.annotators import (
    annotators_figure,
    masks_figure,
    page_part,
    write_annotators,
    write_masks,
)
from coseg_lightning.report.doubts import doubts
from coseg_lightning.report.figures import (
    BY_CLASS,
    corrected_examples,
    read_rows,
    score_histogram,
    training_curves,
)
from coseg_lightning.report.pictures import add_pictures
from coseg_lightning.report.results import (
    certainty,
    class_names,
    decisions,
    method_settings,
    next_steps,
    result_in_a_sentence,
    results,
)
from coseg_lightning.report.review_order import ORDER, read_order, write_review_order
from coseg_lightning.report.rows import sample_rows
from coseg_lightning.report.workbench import add_workbench, environment

ROWS = 10_000  # largest number of rows in the table; all are in scores.csv
EXAMPLES = 8  # labels in the figure of the largest changes
# Titles of the figures, and what a reader has to know about them.
FIGURES = {
    "training": ("Training", None),
    "scores": (
        "Corruption scores of the training set",
        "The higher the score, the more the networks and the edges of the image speak against the "
        "mask. Masks to the right of the dashed line are ranked noisy. The curves are two normal "
        "distributions that were fitted to the scores: if they lie apart, good and bad masks are "
        "well separated.",
    ),
    "corrections": ("The masks that were changed most", None),
}
PEERS = "Peer 1 and peer 2 are the two networks that teach each other."
APART = "Peer 1 and peer 2 are two networks that learn apart."  # to rank the masks alone
ALONE = (
    "Peer 1 is the network that learns alone, and peer 2 is the same network on mirrored images."
)


@rank_zero_only
def write_report(folder: str | Path, data: CoSegDataModule | None) -> dict[str, Figure]:
    """Draw the figures of a finished run into `figures/`, and write `report.html` beside them.

    The page needs no network. It needs JavaScript only to sort, filter and review. Pictures for the
    review that do not fit into it are written to `review/`.

    Args:
        folder: The run's folder, with its `summary.json`.
        data: The run's data, for pictures of samples; without data there are no pictures.

    Returns:
        The figures, by their file names.

    Raises:
        InputError: If the run's files were changed and cannot be read.
    """
    folder = Path(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = read_rows(folder / "scores.csv")
    metrics = read_rows(folder / "metrics.csv")
    samples = None if data is None else data.given_samples()
    corrected = {} if samples is None else _corrected_labels(folder, summary, samples)
    rows = sample_rows(scores, corrected, folder / "scores.csv")
    by_class = len(summary["test"]["per_class_dice"]) > 2
    proposals = _proposals(folder)
    if samples is not None and rows and not (folder / ORDER).is_file():
        level = summary["ranking"]["noise_level"]
        write_review_order(folder, samples, {**proposals, **corrected}, level)
    order = read_order(folder)
    for row in rows:
        for name in ("order", "decision", "suggested", "like"):
            row[name] = order.get(row["id"], {}).get(name)
    if samples is not None:
        add_pictures(rows[:ROWS], samples, corrected or proposals, by_class=by_class)
    names = dict(enumerate(class_names(summary), start=1))
    for row in rows:
        number = str(row["suspicious_class"])
        row["suspicious_name"] = names.get(int(number), number) if number.isdigit() else number
    figures = {"training": training_curves(metrics)}
    has_peers = any(row.get("train/loss_a") for row in metrics)
    if scores:
        settings = method_settings(summary["config"])
        figures["scores"] = score_histogram(scores, settings.get("score", Recipe.score))
    if samples is not None and any(row["proposed"] for row in rows):
        figures["corrections"] = _most_changed(rows, samples, corrected)
    records: list[AnnotatorRecord] = []
    masks: list[dict[str, Any]] = []
    disputed: list[dict[str, Any]] = []
    if samples is not None:
        masks, disputed = write_masks(folder, samples)
    if scores:
        kinds = None if data is None else data.kinds
        levels = plausible_levels(summary["ranking"])
        tiles = getattr(samples, "tiles", None)
        records = write_annotators(folder, levels, kinds, masks=masks, tiles=tiles)
    if records:
        figures["annotators"] = annotators_figure(records)
    if records and samples is not None and (figure := masks_figure(samples, records, masks)):
        figures["masks"] = figure
    saved = {name: _save(figure, folder / "figures" / name) for name, figure in figures.items()}
    correction = summary["correction"]
    steps = next_steps(folder, summary, bool(rows))
    content = {
        "summary": summary,
        "config": summary["config"],
        "bench": _workbench(folder, summary, samples, rows[:ROWS], {**proposals, **corrected}),
        "dialog": True,
        "sentence": result_in_a_sentence(summary),
        "results": results(summary),
        "certainty": certainty(summary),
        "class_names": class_names(summary),
        "next": steps,
        "decisions": decisions(correction) if "rejected" in correction else "",
        "reviewed": [command for _, command in steps if "REVIEW" in command],
        "figures": [
            (
                FIGURES[name][0],
                saved[name],
                peers_in_words(summary) if has_peers and name == "training" else FIGURES[name][1],
            )
            for name in figures
            if name in FIGURES
        ],
        "annotators": page_part(folder, records, masks, disputed),
        "annotators_figure": saved.get("annotators"),
        "masks_figure": saved.get("masks"),
        "rows": rows[:ROWS],
        "proposals": bool(proposals) and not corrected,
        "colours": _colours(class_names(summary)) if by_class else [],
        "classes": bool(rows) and "suspicious_class" in scores[0],
        "samples": len(rows),
        "proposed": sum(row["proposed"] for row in rows),
        "doubts": doubts(
            summary,
            scores,
            _last_agreement(metrics),
            [] if samples is None else _dice_of_changes(samples, corrected),
            _score_distance([row["score"] for row in rows]),
        ),
    }
    write_text(folder / "report.html", _render(content))
    return figures


def peers_in_words(summary: Mapping[str, Any]) -> str:
    """Say what peer 1 and peer 2 are, and what the final network learnt from."""
    config, correction = summary["config"], summary["correction"]
    second = config.get("peer_b") or {}  # of the app; in Python a module has arguments
    given = second.get("_target_") or (config.get("peers") or {}).get("net_b")
    peers = APART if config["method"]["name"] == "filter" else PEERS
    if str(given).rpartition(".")[2].lower() == "mirror":
        peers = ALONE
    if "retraining" not in summary["stages"]:
        return f"{peers} Peer 1 is the network of this run."
    masks = "the masks that were kept" if correction.get("left_out") else "the masks as given"
    if correction["corrected"]:
        masks = "the corrected masks"
    return f"{peers} The final network is trained after them, on {masks}."


def _corrected_labels(
    folder: Path, summary: Mapping[str, Any], samples: SampleDataset
) -> dict[str, LabelStore]:
    layers = [LabelStore(folder / name) for name in summary["correction"].get("layers", [])]
    return changed_labels(samples, layers)


def _workbench(
    folder: Path,
    summary: Mapping[str, Any],
    samples: SampleDataset | None,
    rows: Sequence[Mapping[str, Any]],
    proposals: Mapping[str, LabelStore],
) -> dict[str, Any] | None:
    """Add the workbench to the page of a run whose samples were ranked."""
    if not rows:
        return None
    if samples is None:  # even without pictures a person can decide on corrections
        layers = [LabelStore(folder / name) for name in summary["correction"].get("layers", [])]
        proposals = {**proposals, **{name: layer for layer in layers for name in layer.ids}}
    names = class_names(summary)
    return add_workbench(folder, samples, rows, proposals, names, key=_run_id(folder))


def _proposals(folder: Path) -> dict[str, LabelStore]:
    """Return the networks' masks by id, if this run or a run that it reviews wrote them."""
    for place in (folder, *_reviewed_folders(folder)):
        if LabelStore.is_finished(place / "proposals"):
            layer = LabelStore(place / "proposals")
            return dict.fromkeys(layer.ids, layer)
    return {}


def _reviewed_folders(folder: Path) -> Iterator[Path]:
    """The folders of the runs that a reviewed run derives from, nearest first."""
    while (path := folder / "summary.json").is_file():
        reviewed = json.loads(path.read_text(encoding="utf-8"))["config"].get("reviewed_run")
        if reviewed is None:
            return
        there = (Path(reviewed) / "summary.json").is_file()
        folder = Path(reviewed) if there else folder.parent  # both were moved together
        yield folder


def _colours(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return each class's colour in the pictures, with its name."""
    codes = [BY_CLASS[n % len(BY_CLASS)] for n in range(len(names))]
    return list(zip(codes, names, strict=True))


def _most_changed(
    rows: Sequence[Mapping[str, Any]], samples: SampleDataset, corrected: Mapping[str, LabelStore]
) -> Figure:
    proposed = [row for row in rows if row["proposed"]]
    most = sorted(proposed, key=lambda row: -row["changed"])[:EXAMPLES]
    return corrected_examples(
        samples, {row["id"]: corrected[row["id"]].read(row["id"]) for row in most}
    )


def _run_id(folder: Path) -> str:
    path = folder / "run.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["id"]) if path.is_file() else ""


def _last_agreement(metrics: Sequence[Mapping[str, str]]) -> float | None:
    """The share of pixels on which the peers agreed in their last epoch."""
    agreements = [row["train/agreement"] for row in metrics if row.get("train/agreement")]
    return float(agreements[-1]) if agreements else None


def _dice_of_changes(samples: SampleDataset, corrected: Mapping[str, LabelStore]) -> list[float]:
    """The Dice of changed labels to the given labels, for at most a few hundred labels."""
    changed = [index for index, sample_id in enumerate(samples.ids) if sample_id in corrected]
    return [
        mask_dice(corrected[samples.ids[i]].read(samples.ids[i]), samples.mask(i))
        for i in changed[:: 1 + len(changed) // 200]
    ]


def _score_distance(scores: Sequence[float]) -> float | None:
    """Ashman's D of two normal distributions fitted to the scores."""
    finite = np.array([score for score in scores if np.isfinite(score)])
    if len(finite) < MIN_SAMPLES or finite.std() <= 0:
        return None
    return fit_mixture(finite).distance


def _save(figure: Figure, path: Path) -> str:
    """Write a figure as PNG and SVG, and return the PNG as the `src` of an image element."""
    for suffix in ("svg", "png"):
        drawing = io.BytesIO()
        figure.savefig(drawing, format=suffix, dpi=120)
        with replacing(path.with_suffix(f".{suffix}")) as temporary:
            temporary.write_bytes(drawing.getvalue())
    return "data:image/png;base64," + base64.b64encode(drawing.getvalue()).decode()


def _render(content: Mapping[str, Any]) -> str:
    folder = Path(__file__).parent
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            **content,
            style=(folder / "report.css").read_text(encoding="utf-8"),
            script=(folder / "report.js").read_text(encoding="utf-8"),
        )
    )
