"""Writes a table as text, Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

LATEX_ESCAPES = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "±": "$\\pm$",
    "\\": "\\textbackslash{}",
    "^": "\\^{}",
    "~": "\\~{}",
}


def as_text(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align the columns for the terminal."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([title, "", *lines, ""])


def as_markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in GitHub's Markdown."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def as_latex(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a `tabular`, with the title as a comment."""
    lines = [" & ".join(map(_escaped, row)) + " \\\\" for row in (head, *rows)]
    return "\n".join(
        [
            f"% {title}",
            f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
            "\\hline",
            lines[0],
            "\\hline",
            *lines[1:],
            "\\hline",
            "\\end{tabular}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(LATEX_ESCAPES.get(sign, sign) for sign in text)


def as_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write comma-separated values."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(head)
    table.writerows(rows)
    return text.getvalue()
