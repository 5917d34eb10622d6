"""The summary that a run prints at its end."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.stage_progress import duration
from coseg_lightning.files.settings import setting
from coseg_lightning.report.annotators import in_words
from coseg_lightning.report.figures import read_rows
from coseg_lightning.report.results import (
    MASKS,
    class_names,
    decisions,
    never_right,
    next_steps,
    not_looked_at,
)

NOT_RELIABLE = (
    "No mask was corrected: the networks were not reliable enough to overrule your masks, and the "
    "last network learnt from your masks as they are."
)
LOOK = " The networks' own masks are in proposals/."
NOT_SURE = "No mask was corrected: the peers never agreed confidently enough that a mask is wrong."
FOLDS = (
    "Each fold has its own network, in fold_1 and so on. For one network that learns from all "
    "masks, run again with data.source.test_share=0 instead of data.folds."
)
# The metrics of test images beside Dice and accuracy, with their titles.
MEASURES = {
    "iou": "Test IoU",
    "hd95": "HD95",
    "surface_distance": "Mean surface distance",
}
# Outputs that users look for, in the order of the list.
OUTPUTS = {
    "report.html": "the report",
    "review": "more pictures for the review in the report",
    "model": "the network",
    "test.csv": "the figures of each test image",
    "scores.csv": "the masks, worst first",
    "annotators.csv": "the annotators: shares of bad masks, and displacements",
    "masks.csv": "each annotator's mask of the images with several, worst first",
    "disputed.csv": "the images on which annotators agree least",
    "images.csv": "the images that were cut into tiles, worst first",
    "labels": "the corrected masks",
    "review_order.csv": "all masks, in the best order for a review",
    "proposals": "the networks' own masks of the same images",
    "uncertainty": "where the peers disagree (white: most)",
    "summary.json": "these figures",
}


@rank_zero_only
def show_summary(folder: Path, summary: dict[str, Any], wall: float | None = None) -> None:
    """Print test metrics, the numbers of noisy and corrected labels, and the run's outputs.

    Args:
        folder: The run's folder.
        summary: The run's summary.
        wall: Seconds that the command took, if it ran the stages.
    """
    rows = _result_rows(summary) | _label_rows(folder, summary)
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    rows["Time"] = f"{duration(seconds)} of training and testing"
    if wall is not None:
        rows["Time"] = f"{duration(wall)}, {duration(seconds)} of them training and testing"
    width = max(map(len, rows))
    print()
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    for sentence in _cautions(folder, summary):
        print(textwrap.fill(sentence, 96, initial_indent="\n  ", subsequent_indent="  "))
    estimate = summary["ranking"]["estimate"]
    if estimate is not None:
        which = "all" if "folds" in summary else "the training"
        print(f"\n  Noise level of {which} masks: {estimate['sentence']}")
    if "review" in summary["ranking"]:
        print(f"\n  Noise level after the review: {summary['ranking']['review']['sentence']}")
    for number, line in enumerate(in_words(folder)):
        print(f"  {line}" if number else f"\n  {line}")
    print(f"\n  In {folder}:")
    for name, description in OUTPUTS.items():
        if name == "labels" and not summary["correction"]["corrected"]:
            continue
        if (folder / name).exists():
            print(f"    {name:<16} {description}")
    _show_next(folder, summary)


def _show_next(folder: Path, summary: dict[str, Any]) -> None:
    """Print the commands that use the run."""
    steps = next_steps(folder, summary, (folder / "scores.csv").is_file())
    if not steps:
        return
    reviewed = any("REVIEW" in command for _, command in steps)
    print("\n  Next:")
    run, resumed = shlex.quote(str(folder)), setting("resume", folder)
    for aim, command in steps:
        shown = re.sub(r"(resume=)?\bRUN\b", lambda found: resumed if found[1] else run, command)
        print(f"    {shown}\n        to {aim}")
    if reviewed:
        print("  REVIEW is the file that you save in report.html.")


def _result_rows(summary: dict[str, Any]) -> dict[str, str]:
    test = summary["test"]
    rows = {
        "Method": summary["config"]["method"]["name"],
        "Test Dice": _decimals(test["dice"]) + _interval(test),
        "Test accuracy": _decimals(test["accuracy"]),
    }
    if "masks" in test:
        rows["Tested on"] = test["masks"]
    for key, title in MEASURES.items():
        if test.get(key) is not None:
            is_length = key != "iou"
            unit = f" {test.get('unit', 'pixels')}" if is_length else ""
            rows[title] = f"{test[key]:.{2 if is_length else 4}f}{unit}"
            without = test.get("without_distance")
            if is_length and without:
                rows[title] += f" ({without} of {test['images']} images have none)"
    dice = test.get("per_class_dice") or []
    if len(dice) > 2:
        for name, value in zip(class_names(summary), dice[1:], strict=True):
            rows[f"Test Dice of {name}"] = _decimals(value)
    return rows


def _interval(test: dict[str, Any]) -> str:
    ends = test.get("interval", {}).get("dice")
    if ends is None:
        return ""
    return f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f}, of {test['images']} images)"


def _label_rows(folder: Path, summary: dict[str, Any]) -> dict[str, str]:
    rows, correction = {}, summary["correction"]
    scores = read_rows(folder / "scores.csv")
    if scores:
        rows["Masks ranked noisy"] = str(sum(row["noisy"] == "1" for row in scores))
        if summary["ranking"]["auroc"] is not None:
            rows["AUROC of the ranking"] = _decimals(summary["ranking"]["auroc"])
    if (folder / "labels").is_dir():
        rows["Masks corrected"] = str(correction["corrected"] or "none")
    if "decided" in correction:  # in a review
        rows["Masks decided on"] = decisions(correction)
    elif "folds" in summary:
        rows["Masks corrected"] = "none"
    if correction["left_out"]:
        rows["Samples left out"] = str(correction["left_out"])
    if correction["label_dice_before"] is not None:
        before = _decimals(correction["label_dice_before"])
        after = _decimals(correction["label_dice_after"])
        dice = before if before == after else f"{before} -> {after}"
        rows["Training labels' Dice to the originals"] = dice
    return rows


def _cautions(folder: Path, summary: dict[str, Any]) -> list[str]:
    """Return sentences that warn of wrong conclusions."""
    sentences = []
    missing = never_right(summary)
    if missing is not None:
        sentences.append(missing)
    if summary["test"].get("masks") == MASKS[False]:
        sentences.append(
            "The test figures measure the agreement with your own, unchecked test masks, not with "
            "the truth. Name masks that somebody checked in data.trusted_ids=FILE."
        )
    if "folds" in summary:
        sentences.append(FOLDS)
    not_seen = not_looked_at(summary)
    if not_seen is not None and _are_own(summary):
        sentences.append(not_seen)
    if "decided" in summary["correction"]:  # a review; automatic correction does not matter
        return sentences
    if "folds" in summary:  # which correct nothing
        return sentences
    if (folder / "labels").is_dir() and not summary["correction"]["corrected"]:
        sentence = NOT_RELIABLE if summary["correction"]["left_alone"] else NOT_SURE
        # Runs before 0.2 have no proposals.
        sentences.append(sentence + (LOOK if (folder / "proposals").is_dir() else ""))
    return sentences


def _are_own(summary: dict[str, Any]) -> bool:
    """Whether the masks are the user's own, not from an experiment with added noise."""
    return summary["test"].get("masks") in (MASKS[False], MASKS[None]) or bool(
        (summary["config"].get("data") or {}).get("trusted_ids")
    )


def _decimals(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
