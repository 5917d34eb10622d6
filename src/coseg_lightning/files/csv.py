"""CSV files that a spreadsheet cannot take for formulas."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing

# What a spreadsheet takes for the start of a formula, and the sign that keeps it from doing so.
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA, TEXT = "=+-@\t\r", "'"


def write_table(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of the same columns atomically, at least one.

    Text such as a sample's id that a spreadsheet would take for a formula is preceded by `'`;
    `read_table` takes that off.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        for number, row in enumerate(rows):
            if not number:
                file.write(_line(row))
            file.write(_line(map(_guarded, row.values())))


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
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, line) for line in reader if any(map(str.strip, line))]
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; give its path.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table; save it as CSV in UTF-8.") from error
    names = [name.strip() for name in lines[0][1]] if lines else []
    lacking = [name for name in columns if name not in names]
    if lacking:
        found = ",".join(lines[0][1]) if lines else "nothing"
        raise InputError(
            f"{path} has no column {lacking[0]}: it begins with {found!r}, and must have the "
            f"columns {', '.join(columns)}, with commas between them."
        )
    rows = []
    for number, line in lines[1:]:
        if len(line) != len(names):
            raise InputError(
                f"{path} has {len(line)} cells in line {number}, but {len(names)} columns; mend it."
            )
        rows.append(dict(zip(names, map(_unguarded, line) if guarded else line, strict=True)))
    return rows


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # so it quotes both signs in a cell
    return text.getvalue().removesuffix("\r\n") + "\n"


def _guarded(value: Any) -> Any:
    guards = isinstance(value, str) and value[:1] and value[0] in FORMULA + TEXT
    return TEXT + value if guards else value


def _unguarded(text: str) -> str:
    return text[1:] if text[:1] == TEXT and text[1:2] and text[1] in FORMULA + TEXT else text
