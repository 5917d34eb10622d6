"""What are several masks of one image worth, and what is to be made of them?

    COSEG_DATA=/path/to/data python benchmarks/fusion.py --jobs 2      # about three minutes

Each of the 270 images of `bubil` has a mask by the experts and one by each of seven slots of a
crowd. One label is made of the masks of `persons` slots, and compared with the experts' mask: the
mean Dice over all images, and over seven choices of slots (each slot and the next ones, in a
circle), so that every slot counts alike. Nothing is trained. Writes `results/fusion.csv`.
`agreeing` is the mask that agrees best with the others, which `best` falls back to.

How well single masks are ranked, as in `masks.csv`, goes to `results/agreement.csv`: the AUROC of
the worst fifth of the masks by Dice to the experts', and the rank correlation with that Dice, of
the training images and of the test images. `nearest` is one minus the mean Dice to the nearest half
of the other persons' masks, `agreement` to all of them, `majority` one minus the Dice to the
majority of the others, `outline` the outline's misfit to the image.
"""

import argparse
import csv
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "fusion.csv"
AGREEMENT = RESULTS.with_name("agreement.csv")
SCORES = ("nearest", "agreement", "majority", "outline")
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


def judge(sample_id: str) -> list[tuple[float, ...]]:
    """The number of persons, the Dice to the experts and the scores of each single mask."""
    from coseg_lightning.files.images import ImageRules
    from coseg_lightning.functional.dice import mask_dice
    from coseg_lightning.labels.fusion import Votes, majority, nearest_half
    from coseg_lightning.ranking.outline import mean_of_known, outline_evidence, outline_misfit

    image = ImageRules().read(next((DATA / "images").glob(f"{sample_id}.*")))
    rows = []
    for persons in (3, 7):
        drawn = [folder(name).read(sample_id) for name in SLOTS[:persons]]
        votes = Votes.of(drawn)
        evidence = np.stack([outline_evidence(image, mask, classes=2) for mask in drawn])
        scores = (
            1 - nearest_half(votes.pairwise()),
            1 - votes.agreement(),
            1 - votes.agreement_with_label(majority(drawn)),
            mean_of_known(outline_misfit(evidence), axis=1),
        )
        experts = [mask_dice(mask, folder("masks").read(sample_id)) for mask in drawn]
        rows += [(persons, *row) for row in zip(experts, *scores, strict=True)]
    return rows


def write_agreement(pool: ProcessPoolExecutor) -> None:
    """Write and print how well single masks are ranked."""
    from scipy.stats import mannwhitneyu, spearmanr

    with (DATA / "split.csv").open(newline="") as file:
        ids: dict[str, list[str]] = {"train": [], "test": []}
        for row in csv.DictReader(file):
            ids[row["split"]].append(row["id"])
    with AGREEMENT.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["images", "persons", "score", "masks", "auroc", "rank_correlation"])
        for images, persons in product(ids, (3, 7)):
            judged = pool.map(judge, ids[images], chunksize=8)
            table = np.array([row for rows in judged for row in rows])
            _, dice, *scores = table[table[:, 0] == persons].T
            bad = dice < np.quantile(dice, 0.2)
            for name, score in zip(SCORES, scores, strict=True):
                known = ~np.isnan(score)
                parts = score[bad & known], score[~bad & known]
                auroc = mannwhitneyu(*parts).statistic / (len(parts[0]) * len(parts[1]))
                correlation = spearmanr(score[known], -dice[known]).statistic
                figures = [f"{auroc:.3f}", f"{correlation:.3f}"]
                writer.writerow([images, persons, name, known.sum(), *figures])
                print(images, persons, name, *figures)


def main() -> None:
    """Measure all images, write the tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    ids = folder("masks").ids
    with ProcessPoolExecutor(parser.parse_args().jobs) as pool:
        table = np.array(list(pool.map(measure, ids, chunksize=8)))
        write_agreement(pool)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "persons", "images", "dice_to_experts"])
        for (how, persons), dice in zip(CELLS, table.mean(axis=0), strict=True):
            writer.writerow([how, persons, len(ids), f"{dice:.4f}"])
            print(f"{how:<10}{persons}  {dice:.3f}")


if __name__ == "__main__":
    main()
