"""The rows of the page's table of samples."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError


def sample_rows(
    scores: Sequence[Mapping[str, str]], corrected: Collection[str], path: Path
) -> list[dict[str, Any]]:
    """Convert the rows of scores.csv into the rows that the page shows.

    Args:
        scores: The rows of scores.csv.
        corrected: The ids of the samples whose label was changed.
        path: The file of the rows, for the error message.

    Raises:
        InputError: If a column is missing or a cell is not a number.
    """
    try:
        rows = [_row(row) for row in scores]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} was changed and cannot be read; restore the file that the run wrote."
        ) from error
    for row in rows:
        row["proposed"] = row["id"] in corrected
    return rows


def _row(row: Mapping[str, str]) -> dict[str, Any]:
    def number(name: str) -> float | None:
        return float(row[name]) if row.get(name) else None

    return {
        "id": row["id"],
        "rank": int(row["rank"]),
        "score": float(row["score"]),
        "noisy": row["noisy"] == "1",
        "changed": int(row["changed_pixels"] or 0),
        "replaced": {"1": "yes", "0": "no"}.get(row.get("replaced", ""), ""),
        "prediction_dice": number("prediction_dice"),
        "label_dice": number("label_dice"),
        "corrected_dice": number("corrected_dice"),
        "suspicious_class": row.get("suspicious_class", ""),
        "annotator": row.get("annotator", ""),
        "order": number("order"),
    }
