"""CSV tables whose text spreadsheets do not run as formulas."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing

# A cell that starts with one of these signs is a formula to a spreadsheet. A quote before it
# makes the cell text. Source: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA_SIGNS = "=+-@\t\r"
TEXT_SIGN = "'"


def write_table(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file atomically.

    A spreadsheet would run some texts, such as some sample ids, as formulas. They are prefixed with
    `'`, which `read_table` removes.

    Args:
        path: The file.
        rows: At least one row. All rows have the same columns.
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
    """Read the rows of a CSV file.

    Args:
        path: The file.
        columns: The columns that the file must have.
        guarded: Whether `write_table` wrote the file. If a user wrote it, cells are read as is,
            and the columns' names in lower case.

    Returns:
        One dict for each row, with the text of each column.

    Raises:
        InputError: If the file is missing, is not a table, or lacks a column.
    """
    lines = _numbered_lines(path)
    header = lines[0][1] if lines else []
    names = [name.strip() for name in header]
    if not guarded:
        lower = [name.lower() for name in names]
        names = [n if lower.count(n.lower()) > 1 else n.lower() for n in names]
    _check_columns(path, header, names, columns)
    needed = max((names.index(column) for column in columns), default=0)
    rows = []
    for number, cells in lines[1:]:
        # Excel drops empty cells at the end of a row, and adds some. The last row may be cut off.
        if not any(cells[len(names) :]):
            cells = cells[: len(names)]
        if needed < len(cells) < len(names) and number != lines[-1][0]:
            cells = [*cells, *[""] * (len(names) - len(cells))]
        if len(cells) != len(names):
            raise InputError(
                f"{path} has {len(cells)} cells in line {number}, but {len(names)} columns; "
                "correct that line."
            )
        texts = map(_unguarded, cells) if guarded else cells
        rows.append(dict(zip(names, texts, strict=True)))
    return rows


def _numbered_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the line numbers and cells of all lines that are not empty."""
    try:
        with path.open(newline="", encoding=text_encoding(path)) as file:
            first_line = file.readline()
            skipped = int(bool(re.fullmatch(r"sep=[,;\t]\s*", first_line)))  # Excel's own line
            delimiter = first_line[4] if skipped else _delimiter(first_line)
            if not skipped:
                file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            return [
                (reader.line_num + skipped, cells) for cells in reader if any(map(str.strip, cells))
            ]
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}; give its path.") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a file that you can read."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table; save it as CSV in UTF-8.") from error


def text_encoding(path: Path) -> str:
    """Tell UTF-8 from the UTF-16 of Excel's "Unicode text" and of PowerShell's `>`.

    Args:
        path: A text file that a user may have written.

    Returns:
        The encoding, which leaves out the mark that the text may begin with.
    """
    with path.open("rb") as file:
        is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if is_wide else "utf-8-sig"


def _delimiter(first_line: str) -> str:
    """Find the delimiter. Spreadsheets write semicolons if the comma is the decimal sign."""
    return max(",;\t", key=first_line.count)


def _check_columns(
    path: Path, header: Sequence[str], names: Sequence[str], columns: Sequence[str]
) -> None:
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise InputError(f"{path} has several columns {twice[0]}; keep one of them.")
    missing = [name for name in columns if name not in names]
    if missing:
        first_line = ",".join(header)
        raise InputError(
            f"{path} has no column {missing[0]}: its first line is {first_line!r}; it must name "
            f"the columns {', '.join(columns)}, separated by commas."
        )


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    # With this terminator, csv quotes a cell that holds either of its two signs.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _guarded(value: Any) -> Any:
    if isinstance(value, str) and value[:1] and value[0] in FORMULA_SIGNS + TEXT_SIGN:
        return TEXT_SIGN + value
    return value


def _unguarded(text: str) -> str:
    if text[:1] == TEXT_SIGN and text[1:2] and text[1] in FORMULA_SIGNS + TEXT_SIGN:
        return text[1:]
    return text
