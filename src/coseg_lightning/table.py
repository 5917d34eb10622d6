"""The table of a sweep, as the paper's Table 1: python -m coseg_lightning.table FOLDER."""

from pathlib import Path

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.errors import InputError
from coseg_lightning.report.sweep import sweep_table

FORMATS = ("text", "csv", "markdown", "latex")


def main() -> None:
    """Read the command line, print the table, and say what is missing."""
    given = arguments(
        "The table of a sweep: mean and standard deviation over seeds, also while it still runs.",
        {"folder": "a multirun's folder, or any folder of runs"},
        {
            "metric": ("dice", "or accuracy"),
            "format": ("text", "or csv, markdown, latex: what is printed; all are written"),
        },
    )
    if given["format"] not in FORMATS:
        raise InputError(f"format={given['format']} must be {', '.join(FORMATS)}.")
    table = sweep_table(given["folder"], metric=given["metric"])
    place = table.write(Path(given["folder"]) / "table")
    print(table.written_as(given["format"]))
    for line in table.missing:
        print(line)
    print(f"In {place}: table.csv, table.md, table.tex, {table.metric}.png and .svg")


if __name__ == "__main__":
    cli_errors(main)
