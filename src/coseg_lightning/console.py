"""What a run shows in the terminal at its end."""

from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table


@rank_zero_only
def show_summary(folder: Path, summary: dict[str, Any], console: Console | None = None) -> None:
    """Print test metrics, what was ranked noisy and corrected, and where things lie."""
    console = console or Console()
    table = Table(title=f"Co-Seg, method {summary['config']['method']['name']}", show_header=False)
    table.add_row("Test Dice", _figure(summary["test"]["dice"]))
    table.add_row("Test accuracy", _figure(summary["test"]["accuracy"]))
    scores = folder / "scores.csv"
    if scores.is_file():
        ranked = sum(line.split(",")[5] == "1" for line in scores.read_text().splitlines()[1:])
        table.add_row("Samples ranked noisy", str(ranked))
    correction, auroc = summary["correction"], summary["ranking"]["auroc"]
    if auroc is not None:
        table.add_row("AUROC of the ranking", _figure(auroc))
    if (folder / "labels").is_dir():
        table.add_row("Labels corrected", str(correction["corrected"]))
    if correction["label_dice_before"] is not None:
        before, after = (_figure(correction[f"label_dice_{when}"]) for when in ("before", "after"))
        table.add_row("Training labels' Dice to the originals", f"{before} -> {after}")
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    table.add_row("Time", f"{seconds:.0f} s")
    console.print(table)
    names = {
        "report.html": "the report",
        "model": "the network",
        "scores.csv": "the masks, worst first",
        "labels": "the corrected masks",
        "summary.json": "these figures",
    }
    console.print(f"In {folder}:", soft_wrap=True)
    for name, what in names.items():
        if (folder / name).exists():
            console.print(f"  {name:<13} {what}")


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
