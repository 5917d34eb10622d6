"""The noise level from the masks that a person judged: python -m coseg_lightning.level AUDIT."""

from pathlib import Path

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.files.csv import read_table
from coseg_lightning.ranking.judged import JudgedNoiseLevel, noise_level_from_judged, read_judged

MOST = 0.95  # told to a method, which needs some good masks


def main() -> None:
    """Read the command line, and print the noise level and what to do with it."""
    options = arguments(
        "Estimate how many masks are bad, from the few that you have judged in review.csv.",
        {"audit": "the folder of an audit, whose review.csv says good or bad of each mask"},
        {},
    )
    found = level(**options)
    print(f"Noise level: {found}")
    print(f"Give it to a run: nol={min(found.noise_level, MOST):.2f}")


def level(audit: str | Path) -> JudgedNoiseLevel:
    """Estimate the noise level from an audit's `scores.csv` and its filled `review.csv`.

    Args:
        audit: The folder of the audit.

    Raises:
        InputError: If a file is missing or does not fit the other, or not every mask of
            `review.csv` is judged.
    """
    judged = read_judged(Path(audit) / "review.csv")
    rows = read_table(Path(audit) / "scores.csv", ["id", "rank"])
    return noise_level_from_judged([row["id"] for row in rows], judged)


if __name__ == "__main__":
    cli_errors(main)
