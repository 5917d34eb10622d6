"""What are several masks of one image worth, and what is to be made of them?

    COSEG_DATA=/path/to/data python benchmarks/fusion.py --jobs 2      # about two minutes

Each of the 270 images of `bubil` has a mask by the experts and one by each of seven slots of a
crowd. One label is made of the masks of `persons` slots, and compared with the experts' mask: the
mean Dice over all images, and over seven choices of slots (each slot and the next ones, in a
circle), so that every slot counts alike. Nothing is trained. Writes `results/fusion.csv`.
`agreeing` is the mask that agrees best with the others, which `best` falls back to.
"""

import argparse
import csv
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "fusion.csv"
DATA = Path(os.environ.get("COSEG_DATA", "data")) / "bubil"
SLOTS = [f"masks_crowd{number}" for number in range(1, 8)]
CELLS = (
    *(("one", 1), ("majority", 3), ("majority", 5), ("majority", 7), ("staple", 3), ("staple", 7)),
    *(("best", 3), ("best", 7), ("agreeing", 3), ("agreeing", 7)),
)


@cache
def folder(name):
    """The masks of one slot, or of the experts."""
    from coseg_lightning.files.mask_folder import MaskFolder

    return MaskFolder(DATA / name, classes=2)


def measure(sample_id: str) -> list[float]:
    """The mean Dice of each cell of the table, of one image."""
    from coseg_lightning.files.images import ImageRules
    from coseg_lightning.functional.dice import mask_dice
    from coseg_lightning.labels.fusion import Votes, best, majority, staple

    experts = folder("masks").read(sample_id)
    masks = [folder(name).read(sample_id) for name in SLOTS]
    image = ImageRules().read(next((DATA / "images").glob(f"{sample_id}.*")))

    def label(how, chosen):
        if how == "majority":
            return majority(chosen)
        if how == "staple":
            return staple(chosen)
        if how == "best":
            return chosen[best(image, chosen)]
        return chosen[0 if how == "one" else int(Votes.of(chosen).agreement().argmax())]

    figures = []
    for how, persons in CELLS:
        first = range(1 if persons == len(masks) else len(masks))
        choices = [[masks[(n + k) % len(masks)] for k in range(persons)] for n in first]
        figures.append(np.mean([mask_dice(label(how, chosen), experts) for chosen in choices]))
    return figures


def main() -> None:
    """Measure all images, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    ids = folder("masks").ids
    with ProcessPoolExecutor(parser.parse_args().jobs) as pool:
        table = np.array(list(pool.map(measure, ids, chunksize=8)))
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "persons", "images", "dice_to_experts"])
        for (how, persons), dice in zip(CELLS, table.mean(axis=0), strict=True):
            writer.writerow([how, persons, len(ids), f"{dice:.4f}"])
            print(f"{how:<10}{persons}  {dice:.3f}")


if __name__ == "__main__":
    main()
