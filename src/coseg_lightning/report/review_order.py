"""review_order.csv: all masks of a run or an audit, in the order in which to review them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.files.mask_rules import IGNORE_INDEX
from coseg_lightning.files.progress import is_first_process
from coseg_lightning.files.workers import workers
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.ranking.priority import (
    LEAST_DECIDED,
    Recalibration,
    Views,
    expected_gain,
    prior_probability,
    recalibrate,
    review_order,
)
from coseg_lightning.report.figures import Pictured

ORDER = "review_order.csv"


def write_review_order(
    folder: Path,
    samples: Pictured,
    proposals: Mapping[str, LabelStore],
    noise_level: float | None,
    decisions: Mapping[str, str] | None = None,
    processes: int = 1,
    decided_on: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Recalibration | None:
    """Write `review_order.csv` beside the `scores.csv` of a run or an audit.

    Args:
        folder: The folder.
        samples: The samples with the masks as given.
        proposals: The layer of each proposal, by id.
        noise_level: The share of bad masks as estimated or given.
        decisions: Decisions `ok`, `take` and `redraw` by id; see `write_order`.
        processes: Number of processes that read the masks.
        decided_on: Score, disagreement and size bias of decided masks when they were decided on,
            see `views_of`. Those that were replaced and ranked again since have others.

    Returns:
        The recalibration from the decisions; None if there are too few.
    """
    index_of = {sample_id: index for index, sample_id in enumerate(samples.ids)}
    scored = [row["id"] for row in read_table(folder / "scores.csv", ["id"])]
    ranked = [sample_id for sample_id in scored if sample_id in index_of]
    comparison = _Comparison(samples.dataset, samples.ids, proposals)
    with workers(comparison, processes) as work:
        counts = work("wrong", [index_of[i] for i in ranked], "Comparing masks")
        wrong = dict(zip(ranked, counts, strict=True))
    ids, views = read_views(folder / "scores.csv", wrong)
    set_views(views, ids, decided_on)
    return write_order(folder / ORDER, ids, views, noise_level, decisions)


def set_views(views: Views, ids: Sequence[str], decided_on: Mapping[str, Sequence[float]]) -> None:
    """Set the views of decided masks to those by which they were decided on, see `views_of`."""
    for row, sample_id in enumerate(ids):
        if sample_id in decided_on:
            views.score[row], views.disagreement[row], views.size_bias[row] = decided_on[sample_id]


def write_order(
    path: Path,
    ids: Sequence[str],
    views: Views,
    noise_level: float | None,
    decisions: Mapping[str, str] | None = None,
    *,
    needs_enough: bool = False,
) -> Recalibration | None:
    """Write the order in which masks are worth a look.

    The columns are `id`, `order` from 1, `gain` (see `expected_gain`), `probability` of being
    bad, and `wrong_pixels`, the number of pixels in which mask and proposal differ. With
    decisions there are also `decision`, `suggested` and `like`. `suggested` is the decision on a
    similar mask, and `like` is the id of that mask.

    Args:
        path: The file.
        ids: The ids of the masks.
        views: The features of the masks.
        noise_level: The share of bad masks as estimated or given; 0.1 if unknown.
        decisions: Decisions `ok`, `take` and `redraw` by id. Decided masks come last.
        needs_enough: Whether too few decisions are an error. Otherwise they recalibrate nothing.

    Returns:
        The recalibration from the decisions; None if there are too few.

    Raises:
        InputError: If `needs_enough` is set and there are too few decisions.
    """
    level = 0.1 if noise_level is None else noise_level
    found, probability = None, prior_probability(views, level)
    index_of = {sample_id: i for i, sample_id in enumerate(ids)}
    decided = {index_of[i]: word for i, word in (decisions or {}).items() if i in index_of}
    if len(decided) >= min(LEAST_DECIDED, len(ids)) or (decided and needs_enough):
        found = recalibrate(views, {i: word != "ok" for i, word in decided.items()}, level)
        probability = found.probability
    gain = expected_gain(views, probability)
    rows = []
    for place, i in enumerate(review_order(views, probability, list(decided)), start=1):
        row: dict[str, Any] = {
            "id": ids[i],
            "order": place,
            "gain": round(float(gain[i]), 2),
            "probability": round(float(probability[i]), 4),
            "wrong_pixels": int(views.wrong[i]),
        }
        if decided:
            like = None if found is None else found.suggested.get(i)
            row |= {
                "decision": decided.get(i, ""),
                "suggested": "" if like is None else decided[like],
                "like": "" if like is None else ids[like],
            }
        rows.append(row)
    write_table(path, rows)
    return found


def read_order(folder: Path) -> dict[str, dict[str, str]]:
    """Read the rows of `review_order.csv` by id, in order; empty if there is no file."""
    path = folder / ORDER
    rows = read_table(path, ["id", "order"]) if path.is_file() else []
    return {row["id"]: row for row in rows}


def show_review_order(folder: Path, budget: int | None, *, proposes: bool = True) -> None:
    """Print the masks that should be looked at first.

    Args:
        folder: The folder of a run or an audit.
        budget: The number of masks that a person would look at; None to print none.
        proposes: Whether masks were compared with proposals.
    """
    order = [] if budget is None or not is_first_process() else list(read_order(folder).values())
    if not order:
        return
    left = [row for row in order if not row.get("decision")]
    undecided = left[:budget]
    expected, of_all = map(_wrong_pixels, (undecided, left))
    may_hold = (
        f" They may hold {100 * expected / (of_all or 1):.0f} % of the wrong pixels of "
        f"{len(left)} masks:"
    )
    print(f"\n  Look at these {len(undecided)} masks first.{may_hold if proposes else ''}")
    pixels = "pixels differ from the proposal" if proposes else "pixels marked, no proposal"
    for row in undecided:
        what = f"bad with a probability of {100 * float(row['probability']):.0f} %"
        print(f"    {row['order']:>4}  {row['id']:<24}  {what}; {row['wrong_pixels']} {pixels}")


def _wrong_pixels(rows: Sequence[Mapping[str, str]]) -> float:
    """The expected number of wrong pixels in some masks."""
    return sum(float(row["probability"]) * int(row["wrong_pixels"]) for row in rows)


def read_views(path: Path, wrong: Mapping[str, int]) -> tuple[list[str], Views]:
    """Read the features of each mask.

    Args:
        path: The `scores.csv`.
        wrong: The number of pixels in which mask and proposal differ, by id; others are left out.

    Raises:
        InputError: If the table was changed and cannot be read.
    """
    rows = [row for row in read_table(path, ["id", "score"]) if row["id"] in wrong]
    try:
        score = _column(rows, "score")
        disagreement = 1 - _column(rows, "prediction_dice")
        size_bias = _column(rows, "excess")
    except ValueError as error:
        raise InputError(
            f"{path} was changed and cannot be read; restore the file that the run wrote."
        ) from error
    ids = [row["id"] for row in rows]
    return ids, Views(score, disagreement, size_bias, np.array([wrong[i] for i in ids], float))


def views_of(folder: Path, ids: Collection[str]) -> dict[str, tuple[float, float, float]]:
    """Return score, disagreement and size bias of some masks in the `scores.csv` of a folder."""
    path = folder / "scores.csv"
    if not path.is_file():
        return {}
    known, views = read_views(path, dict.fromkeys(ids, 0))
    table = zip(views.score, views.disagreement, views.size_bias, strict=True)
    return dict(zip(known, table, strict=True))


def _column(rows: Sequence[Mapping[str, str]], name: str) -> NDArray[np.float64]:
    return np.array([float(row.get(name) or "nan") for row in rows], np.float64)


@dataclass(frozen=True)
class _Comparison:
    """Compares masks with their proposals; any process can do that."""

    dataset: Any
    ids: Sequence[str]
    proposals: Mapping[str, LabelStore]

    def wrong(self, index: int) -> int:
        """Count the pixels in which mask and proposal differ, or the mask's if there is none."""
        mask, sample_id = self.dataset.mask(index), self.ids[index]
        labelled = mask != IGNORE_INDEX
        if sample_id not in self.proposals:
            return int((labelled & (mask > 0)).sum())
        return int((labelled & (mask != self.proposals[sample_id].read(sample_id))).sum())
