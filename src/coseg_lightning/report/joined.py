"""Joins the scores of tiles to scores of their images."""

from pathlib import Path
from typing import Any

from coseg_lightning.data.tiles import Tiles
from coseg_lightning.files.csv import write_table
from coseg_lightning.report.figures import read_rows


def write_image_scores(folder: Path, tiles: Tiles) -> None:
    """Write `images.csv` beside a `scores.csv` of tiles: one row per image, worst first.

    The score of an image is the mean of its tiles' scores, weighted by their labelled area.

    Args:
        folder: The folder of `scores.csv`.
        tiles: The tiles.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in read_rows(folder / "scores.csv"):  # worst first
        tile = tiles.tiles[row["id"]]
        area = tiles.labelled_pixels(row["id"])
        of_image = rows.setdefault(
            tile.image_id,
            {"id": tile.image_id, "score": 0.0, "tiles": 0, "noisy_tiles": 0, "noisy_share": 0.0}
            | {"worst_tile": row["id"], "worst_score": float(row["score"]), "changed_pixels": 0}
            | {"labelled_pixels": 0},
        )
        is_noisy = row["noisy"] == "1"
        of_image["score"] += area * float(row["score"])
        of_image["tiles"] += 1
        of_image["noisy_tiles"] += int(is_noisy)
        of_image["noisy_share"] += area * is_noisy
        of_image["labelled_pixels"] += area
        of_image["changed_pixels"] += int(row["changed_pixels"] or 0)
    for of_image in rows.values():
        for name in ("score", "noisy_share"):
            of_image[name] /= max(1, of_image["labelled_pixels"])
    if rows:
        by_score = sorted(rows.values(), key=lambda row: (-row["score"], row["id"]))
        path = folder / "images.csv"
        path.unlink(missing_ok=True)
        write_table(path, by_score)
