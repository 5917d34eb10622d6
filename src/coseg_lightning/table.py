"""The table of a sweep, like Table 1 of the paper: python -m coseg_lightning.table FOLDER."""

import sys
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
    print(table.written_as(file_format).rstrip("\n"))
    if file_format == "text" and table.pairs:
        print(
            "\nDifferences per image (95 % interval; Wilcoxon's test, Holm's method for all pairs):"
        )
        print("\n".join(f"  {pair}" for pair in table.pairs))
    # Printed to stderr, so that `coseg table ... > file` does not include it.
    for sentence in table.missing:
        print(sentence, file=sys.stderr)
    names = ["table.csv", "table.md", "table.tex", *(["pairs.csv"] if table.pairs else [])]
    names += [f"{table.metric}.png and .svg"]
    print(f"In {folder}: {', '.join(names)}", file=sys.stderr)


if __name__ == "__main__":
    cli_errors(main)
