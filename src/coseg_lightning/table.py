"""The table of a sweep, like Table 1 of the paper: python -m coseg_lightning.table FOLDER."""

from pathlib import Path

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.errors import InputError
from coseg_lightning.report.sweep import sweep_table

FORMATS = ("text", "csv", "markdown", "latex")


def main() -> None:
    """Read the command line, write and print the table, and list the missing runs."""
    options = arguments("table")
    file_format = options["format"]
    if file_format not in FORMATS:
        raise InputError(f"format={file_format} must be {', '.join(FORMATS)}.")
    table = sweep_table(options["folder"], metric=options["metric"])
    folder = table.write(Path(options["folder"]) / "table")
    print(table.written_as(file_format))
    for sentence in table.missing:
        print(sentence)
    print(f"In {folder}: table.csv, table.md, table.tex, {table.metric}.png and .svg")


if __name__ == "__main__":
    cli_errors(main)
