"""Are persons' displacements right on real images, and does shifting their outlines back help?

    COSEG_DATA=/path/to/data python benchmarks/displacement.py    # seven minutes on one core

Each training image of `bubil` gets the mask of one of several slots, drawn 20 times; the slots
stand for persons. `bias` is the mean error of their steady displacements by the edges of the image,
against the experts' outlines: of all persons together (`shared`), and beside all (`beside`), as in
`annotators.csv`; `nothing` is the error if nobody were displaced. Pixels are those of 256 x 256.
Then every mask is shifted back by the steady displacement of its person, by that beside all, or by
its own. `dice` is the Dice to the experts' masks. Writes `benchmarks/results/displacement.csv`.
"""

import csv
import os
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.ranking.displacement import (
    beside_all,
    displacement,
    habits,
    outline_ladder,
    outside_distance,
)
from coseg_lightning.ranking.people import People

HERE = Path(__file__).parent
DATA = Path(os.environ.get("COSEG_DATA", HERE.parents[1] / "shared" / "data")) / "bubil"
RESULTS = HERE / "results" / "displacement.csv"
CROWD = tuple(f"masks_crowd{slot}" for slot in range(1, 8))
PERSONS = {
    "crowd": CROWD,  # seven slots, which hardly differ
    "crowd, large and small": (*CROWD[:4], "masks_large", "masks_small"),
    "crowd and experts": (*CROWD[:3], "masks"),
    "experts": ("masks",),  # whose displacement should be 0
}
DRAWS = 20


@cache
def mask(slot: str, sample_id: str) -> np.ndarray:
    """The mask of a slot, foreground 1."""
    return (cv2.imread(str(DATA / slot / f"{sample_id}.png"), -1) > 0).astype(np.uint8)


@cache
def found(slot: str, sample_id: str) -> tuple[float, float]:
    """The displacement of a mask from the image's edges, and from the experts' mask."""
    image = cv2.imread(str(DATA / "images" / f"{sample_id}.png"), cv2.IMREAD_UNCHANGED)
    by_edges = outline_ladder(image, mask(slot, sample_id)).displacement[0]
    return by_edges, displacement(mask(slot, sample_id), mask("masks", sample_id))[0]


def shifted(drawn: np.ndarray, inwards: float) -> np.ndarray:
    """A mask whose outline is shifted inwards by some pixels."""
    return (outside_distance(drawn > 0) <= -inwards).astype(np.uint8)


def measure(name: str, draw: int, ids: list[str]) -> dict[str, object]:
    """The figures of one draw of persons."""
    rng = np.random.default_rng(draw)
    slots = [PERSONS[name][n] for n in rng.integers(0, len(PERSONS[name]), len(ids))]
    people = People.of(slots)
    by_edges, truth = np.array([found(*pair) for pair in zip(slots, ids, strict=True)]).T
    steady = habits(by_edges[:, None], people)[:, 0]
    of_people = np.array([np.nanmean(truth[people.numbers == n]) for n in people.numbers])
    row: dict[str, object] = {"persons": name, "draw": draw}
    row["bias_shared"] = abs(np.mean(steady - of_people))
    if len(people.names) > 1:
        beside = habits(beside_all(by_edges[:, None], people), people)[:, 0]
        row["bias_beside"] = np.mean(np.abs(beside - (of_people - of_people.mean())))
        row["bias_nothing"] = np.mean(np.abs(of_people - of_people.mean()))
    else:
        beside = np.zeros(len(ids))
    moves = {"given": np.zeros(len(ids)), "person": steady, "beside": beside}
    moves["each"] = np.nan_to_num(by_edges)
    for kind, inwards in moves.items():
        row[f"dice_{kind}"] = np.mean(
            [
                mask_dice(shifted(mask(slot, i), by), mask("masks", i))
                for slot, i, by in zip(slots, ids, inwards, strict=True)
            ]
        )
    return {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}


def main() -> None:
    with (DATA / "split.csv").open(newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file) if row["split"] == "train"]
    rows = []
    for name, slots in PERSONS.items():
        rows += [measure(name, draw, ids) for draw in range(DRAWS if len(slots) > 1 else 1)]
    columns = list(rows[0])
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| persons | " + " | ".join(columns[2:]) + " |\n" + "|---" * (len(columns) - 1) + "|")
    for name in PERSONS:
        of = [row for row in rows if row["persons"] == name]
        means = [
            f"{np.mean([float(row[c]) for row in of]):.3f}" if c in of[0] else ""
            for c in columns[2:]
        ]
        print(f"| {name} | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
