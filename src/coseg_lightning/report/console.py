"""The summary that a run prints at its end."""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.stage_progress import duration
from coseg_lightning.report.figures import read_rows

# The outputs that people look for, in the order in which they are listed.
OUTPUTS = {
    "report.html": "the report",
    "model": "the network",
    "scores.csv": "the masks, worst first",
    "labels": "the corrected masks",
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
    estimate = summary["ranking"]["estimate"]
    if estimate is not None:
        print(f"\n  Noise level: {estimate['sentence']}")
    print(f"\n  In {folder}:")
    for name, description in OUTPUTS.items():
        if (folder / name).exists():
            print(f"    {name:<12}  {description}")


def _result_rows(summary: dict[str, Any]) -> dict[str, str]:
    return {
        "Method": summary["config"]["method"]["name"],
        "Test Dice": _decimals(summary["test"]["dice"]),
        "Test accuracy": _decimals(summary["test"]["accuracy"]),
    }


def _label_rows(folder: Path, summary: dict[str, Any]) -> dict[str, str]:
    rows, correction = {}, summary["correction"]
    scores = read_rows(folder / "scores.csv")
    if scores:
        rows["Samples ranked noisy"] = str(sum(row["noisy"] == "1" for row in scores))
        if summary["ranking"]["auroc"] is not None:
            rows["AUROC of the ranking"] = _decimals(summary["ranking"]["auroc"])
    if (folder / "labels").is_dir():
        reason = ""
        if correction["left_alone"]:
            reason = " (the peers are no better than the labels: see the report)"
        rows["Labels corrected"] = f"{correction['corrected']}{reason}"
    if correction["left_out"]:
        rows["Samples left out"] = str(correction["left_out"])
    if correction["label_dice_before"] is not None:
        before = _decimals(correction["label_dice_before"])
        after = _decimals(correction["label_dice_after"])
        dice = before if before == after else f"{before} -> {after}"
        rows["Training labels' Dice to the originals"] = dice
    return rows


def _decimals(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
