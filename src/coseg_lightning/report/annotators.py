"""annotators.csv, and the part of the page on who drew the masks."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.ranking.annotators import (
    FEWEST,
    AnnotatorRecord,
    annotator_report,
)
from coseg_lightning.ranking.people import numbered_names
from coseg_lightning.report.figures import BLACK, BLUE, ORANGE

ANNOTATORS = "annotators.csv"
DISPUTED = "disputed.csv"
WORST = 5  # masks of a person that the page names
DRAWN = 40  # persons in the figure, at most
SHOWN = 20  # disputed images on the page


def write_annotators(
    folder: Path, noise_level: float | None, kinds: Mapping[str, str] | None = None
) -> list[AnnotatorRecord]:
    """Write `annotators.csv` beside the `scores.csv` of a run or an audit, if persons are known.

    Args:
        folder: The folder.
        noise_level: The share of bad masks as estimated or given; a tenth if nobody knows.
        kinds: The kind of each image, by id.

    Returns:
        What the masks of each person say, the largest share of bad masks first.
    """
    rows = read_table(folder / "scores.csv", ["id", "score"])
    if not rows or not any(row.get("annotator") for row in rows):
        return []
    classes = [name for name in rows[0] if name.startswith("displacement_class_")]
    columns = classes or ["displacement_pixels"]
    displacement = np.array([[_number(row.get(name)) for name in columns] for row in rows])
    records = annotator_report(
        [row["annotator"] for row in rows],
        [_number(row.get("own_score") or row["score"]) for row in rows],
        noise_level=0.1 if noise_level is None else noise_level,
        displacement=displacement,
        kinds=[kinds.get(row["id"], "") for row in rows] if kinds else None,
        blunders=[[word for word in row.get("blunders", "").split("; ") if word] for row in rows],
    )
    path = folder / ANNOTATORS
    path.unlink(missing_ok=True)  # that of the run before it was resumed
    write_table(path, [record.as_row() for record in records])
    return records


def _number(text: str | None) -> float:
    return float(text) if text else float("nan")


def write_disputed(folder: Path, samples: Any, *, hidden: bool = False) -> list[dict[str, Any]]:
    """Write `disputed.csv`: the images of which there are several masks, most disputed first.

    Args:
        folder: The folder.
        samples: The samples, whose dataset may have masks by several persons.
        hidden: Whether names are replaced by numbers.

    Returns:
        The rows: `id`, `masks`, the mean Dice of all pairs, and who agrees least with the others.
    """
    several = getattr(samples, "several", None)
    if several is None:
        several = getattr(getattr(samples, "dataset", None), "several", None)
    if several is None:
        return []
    rows = []
    numbers = numbered_names({name for i in several.ids for name in several.names(i)})
    for sample_id in several.ids:
        names = list(several.names(sample_id))
        if len(names) < 2:
            continue
        agreement = pairwise_dice([several.mask(sample_id, name) for name in names])
        least = names[int(np.nanmean(agreement, axis=1).argmin())]
        rows.append(
            {
                "id": sample_id,
                "masks": len(names),
                "agreement": round(float(np.nanmean(agreement)), 4),
                "least_like_others": _least(names, least, numbers if hidden else {}),
            }
        )
    rows.sort(key=lambda row: (row["agreement"], row["id"]))
    if rows:
        path = folder / DISPUTED
        path.unlink(missing_ok=True)
        write_table(path, rows)
    return rows


def _least(names: Sequence[str], least: str, numbers: Mapping[str, str]) -> str:
    """Who agrees least; of two persons neither does."""
    return numbers.get(least, least) if len(names) > 2 else ""


def pairwise_dice(masks: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """`(M, M)` Dice of each pair of masks of one image; NaN on the diagonal."""
    from coseg_lightning.functional.dice import mask_dice  # imports torch

    result = np.full((len(masks), len(masks)), np.nan)
    for i, j in combinations(range(len(masks)), 2):
        result[i, j] = result[j, i] = mask_dice(masks[i], masks[j])
    return result


def page_part(
    folder: Path, records: Sequence[AnnotatorRecord], disputed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the page shows of persons: their records, and their worst masks."""
    worst: dict[str, list[str]] = {}
    for row in read_table(folder / "scores.csv", ["id", "score"]) if records else []:
        of_person = worst.setdefault(row.get("annotator", ""), [])
        if row.get("noisy") == "1" and len(of_person) < WORST:
            of_person.append(row["id"])
    return {
        "persons": [(record, worst.get(record.annotator, [])) for record in records],
        "classes": max((len(r.displacement_by_class) for r in records), default=0),
        "few": FEWEST,
        "disputed": list(disputed[:SHOWN]),
        "disputes": len(disputed),
    }


def annotators_figure(records: Sequence[AnnotatorRecord]) -> Figure:
    """Draw persons side by side: the share of bad masks, and the displacement, with intervals."""
    shown = list(records[:DRAWN])
    figure = Figure(figsize=(9, 1.3 + 0.28 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, record in enumerate(shown):
        _draw(left, place, 100 * record.bad_share, record.bad_share_interval, ORANGE, 100)
        if record.displacement is not None and record.displacement_interval is not None:
            _draw(right, place, record.displacement, record.displacement_interval, BLUE, 1)
    left.set_yticks(range(len(shown)), [f"{record.annotator} ({record.masks})" for record in shown])
    for label in left.get_yticklabels():
        label.set_parse_math(False)
    left.invert_yaxis()
    left.set(xlabel="Bad masks, %, with 90 % interval", xlim=(0, 100))
    right.axvline(0, color=BLACK, linewidth=1)
    right.set(xlabel="Outlines too small < pixels > too large, with 90 % interval")
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    return figure


def _draw(
    axes: Axes, place: int, value: float, ends: tuple[float, float], colour: str, scale: float
) -> None:
    axes.plot([scale * ends[0], scale * ends[1]], [place, place], color=colour, linewidth=2)
    axes.plot([value], [place], "o", color=colour)
