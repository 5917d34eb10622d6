"""What a run shows in the terminal at its end."""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.report.figures import read_rows


@rank_zero_only
def show_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Print test metrics, what was ranked noisy and corrected, and where things lie."""
    test, correction = summary["test"], summary["correction"]
    rows = {
        "Method": summary["config"]["method"]["name"],
        "Test Dice": _figure(test["dice"]),
        "Test accuracy": _figure(test["accuracy"]),
    }
    scores = read_rows(folder / "scores.csv")
    if scores:
        rows["Samples ranked noisy"] = str(sum(row["noisy"] == "1" for row in scores))
        if summary["ranking"]["auroc"] is not None:
            rows["AUROC of the ranking"] = _figure(summary["ranking"]["auroc"])
    if (folder / "labels").is_dir():
        left = " (the peers know no better: see the report)" if correction["left_alone"] else ""
        rows["Labels corrected"] = f"{correction['corrected']}{left}"
    if correction["left_out"]:
        rows["Samples left out"] = str(correction["left_out"])
    if correction["label_dice_before"] is not None:
        before, after = (_figure(correction[f"label_dice_{when}"]) for when in ("before", "after"))
        rows["Training labels' Dice to the originals"] = (
            before if before == after else f"{before} -> {after}"
        )
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    rows["Time"] = f"{seconds:.0f} s"

    width = max(map(len, rows))
    print()
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    estimate = summary["ranking"]["estimate"]
    if estimate is not None:
        print(f"\n  Noise level: {estimate['sentence']}")
    places = {
        "report.html": "the report",
        "model": "the network",
        "scores.csv": "the masks, worst first",
        "labels": "the corrected masks",
        "summary.json": "these figures",
    }
    print(f"\n  In {folder}:")
    for name, what in places.items():
        if (folder / name).exists():
            print(f"    {name:<12}  {what}")


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
