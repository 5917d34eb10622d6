"""CSV files that a spreadsheet cannot take for formulas."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coseg_lightning.atomic import write_text
from coseg_lightning.errors import InputError

# What a spreadsheet takes for the start of a formula, and the sign that keeps it from doing so.
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA, TEXT = "=+-@\t\r", "'"


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same columns atomically.

    Text such as a sample's id that a spreadsheet would take for a formula is preceded by `'`;
    `read_table` takes that off.
    """
    lines = [_line(rows[0]), *(_line(map(_guarded, row.values())) for row in rows)]
    write_text(path, "".join(lines))


def read_table(
    path: Path, columns: Sequence[str] = (), *, guarded: bool = True
) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Args:
        path: The file.
        columns: What it must have.
        guarded: Whether `write_table` wrote it, not somebody.

    Raises:
        InputError: If it is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            names = reader.fieldnames or []
    except OSError as error:
        raise InputError(f"There is no file {path}; give its path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table; save it as CSV in UTF-8.") from error
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise InputError(f"{path} has no column {lacking[0]}; it must have {', '.join(columns)}.")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():  # more cells than columns, or fewer
            raise InputError(f"{path} has a row of another length in line {number}; restore it.")
    if not guarded:
        return rows
    return [{name: _unguarded(value) for name, value in row.items()} for row in rows]


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # so it quotes both signs in a cell
    return text.getvalue().removesuffix("\r\n") + "\n"


def _guarded(value: Any) -> Any:
    guards = isinstance(value, str) and value[:1] and value[0] in FORMULA + TEXT
    return TEXT + value if guards else value


def _unguarded(text: str) -> str:
    return text[1:] if text[:1] == TEXT and text[1:2] and text[1] in FORMULA + TEXT else text
