"""Selects masks of an audit for a person to judge, and estimates the noise level from them."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coseg_lightning.errors import InputError
from coseg_lightning.files.settings import setting

if TYPE_CHECKING:
    from coseg_lightning.ranking.priority import Recalibration
    from coseg_lightning.ranking.ranking import Ranking
    from coseg_lightning.report.figures import Pictured

FILES = {
    "review.csv": "some masks from the whole ranking, for you to judge",
    "review.png": "pictures of these masks",
}
RESULT, REORDERED = "noise_level.json", "reordered.csv"
ASKED = """
  How many are bad? Look at review.png, write good or bad for each mask into review.csv, and run
    coseg audit {setting}"""


def write_review(folder: Path, samples: "Pictured", ranking: "Ranking") -> None:
    """Write `review.csv` for a person to fill in, and `review.png` with the masks' pictures.

    Args:
        folder: The audit's folder.
        samples: The samples with their masks.
        ranking: Their ranking.
    """
    from coseg_lightning.files.csv import write_table
    from coseg_lightning.ranking.judged import masks_to_judge
    from coseg_lightning.report.figures import judging_sheet, save_sheet

    chosen = masks_to_judge(ranking.worst_first)
    save_sheet(judging_sheet(samples, chosen), folder / "review.png")
    write_table(folder / "review.csv", ({"id": samples.ids[i], "decision": None} for i in chosen))


def question(folder: Path) -> str:
    """Return instructions for the user, with a command that the shell and Hydra accept."""
    return ASKED.format(setting=setting("review", folder))


def judge(review: str | Path, settings: Sequence[str] = ()) -> None:
    """Estimate the noise level of an audit from its completed review, save it, and print it.

    Args:
        review: The audit's folder, or its `review.csv`. A review that was saved from the page
            also works if it is in the folder of the audit or run.
        settings: All settings that the user gave; others than `review` are refused.
    """
    from coseg_lightning.files.atomic import write_text
    from coseg_lightning.ranking.judged import noise_level_of_review

    others = [setting for setting in settings if not setting.startswith("review=")]
    if others:
        raise InputError(
            f"{others[0]} would have no effect, since review={review} only reads what is in that "
            "folder; leave it out."
        )
    if isinstance(review, Sequence) and not isinstance(review, str):
        raise InputError(
            f"review=[{','.join(map(str, review))}] names several reviews, but an audit reads one; "
            "merge them on the review page, and save one."
        )
    path = Path(str(review)).expanduser()
    if path.is_dir():
        found = [path / name for name in ("review.zip", "review.csv") if (path / name).is_file()]
        path = found[0] if found else path / "review.csv"
    result = path.with_name(RESULT)
    is_of_page = _is_of_the_page(path)
    if result.exists() and not is_of_page:
        raise InputError(f"{result} exists and is never overwritten; move it away to judge again.")
    estimate = _of_decisions(path) if is_of_page else noise_level_of_review(path)
    write_text(result, json.dumps(estimate.as_dict(), indent=2, allow_nan=False))
    level = f"nol={min(estimate.noise_level, 0.95):.2f}"
    print(f"\n  Noise level: {estimate}\n  It is saved in {result}.")
    if is_of_page and path.with_name(REORDERED).is_file():
        print(f"  Which masks to look at next: {path.with_name(REORDERED)}")
    print(
        f"\n  Next, with your other settings:\n    coseg run {_folder_of_data(path.parent)} {level}"
    )
    if advice := _of_training_alone(path.parent, estimate.noise_level):
        print(f"  {advice}")


def _folder_of_data(folder: Path) -> str:
    """Return the audited folder for a shell's command, or DIR if the audit's summary is gone."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return shlex.quote(summary["config"]["data"]["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return "DIR"


def _of_training_alone(folder: Path, noise_level: float) -> str | None:
    """Say what the level of the training masks is if a `split.csv` sets right masks apart."""
    from coseg_lightning.data.split import read_split
    from coseg_lightning.files.csv import read_table

    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        parts = read_split(Path(summary["config"]["data"]["root"]).expanduser() / "split.csv")
        ids = [row["id"] for row in read_table(folder / "scores.csv", ["id"])]
    except (OSError, ValueError, KeyError, TypeError):  # an InputError too: there is no such table
        return None
    training = sum(parts.get(sample_id) == "train" for sample_id in ids)
    if not training or training == len(ids) or not parts.keys() >= set(ids):
        return None
    level = min(noise_level * len(ids) / training, 0.95)
    return (
        f"That is the share of all {len(ids)} masks. If those that split.csv keeps from training "
        f"are right, give nol={level:.2f}."
    )


def _is_of_the_page(path: Path) -> bool:
    """Whether a review holds the page's decisions ok, take and redraw, not good and bad."""
    from coseg_lightning.files.csv import read_table
    from coseg_lightning.labels.review import DECISIONS, EARLIER

    if path.suffix == ".zip":
        return True
    words = {row["decision"].strip().lower() for row in read_table(path, ["id", "decision"])}
    return bool(words & {*DECISIONS, *EARLIER})


def _of_decisions(path: Path) -> "Recalibration":
    """Recalibrate from the page's decisions, and write `reordered.csv`.

    Raises:
        InputError: If the review is not in the folder of a run or an audit, belongs to another
            one, or has too few decisions.
    """
    from coseg_lightning.labels.review import opened_review
    from coseg_lightning.report.review_order import (
        ORDER,
        read_order,
        read_views,
        set_views,
        write_order,
    )

    folder = path.parent
    if not (folder / ORDER).is_file() or not (folder / "summary.json").is_file():
        raise InputError(
            f"{path} is not in the folder of an audit or a run, with {ORDER}; move it into the "
            "folder whose masks it reviews."
        )
    with opened_review(path) as review:
        decisions = review.decisions
    wrong = {i: int(row["wrong_pixels"]) for i, row in read_order(folder).items()}
    unknown = sorted(decisions.keys() - wrong.keys())
    if unknown:
        raise InputError(f"{path} names {unknown[0]}, which is no mask of {folder}.")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    ids, views = read_views(folder / "scores.csv", wrong)
    if "reviewed_run" in (summary.get("config") or {}):  # it may repeat earlier decisions
        from coseg_lightning.methods.review import decided_views
        from coseg_lightning.runs.finished import FinishedRun

        set_views(views, ids, decided_views(FinishedRun(folder), decisions))
    level = summary["ranking"]["noise_level"]
    found = write_order(folder / REORDERED, ids, views, level, decisions, needs_enough=True)
    if found is None:
        raise InputError(f"{path} holds no decision; make some in {folder / 'review.html'}.")
    return found
