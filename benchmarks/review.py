"""What a review finds: masks put right, and test Dice, against masks looked at, by order.

    python benchmarks/review.py run bubil-large bubil-worst --seeds 0 1 2   # the runs, then orders
    python benchmarks/review.py retrain bubil-large bubil-worst --seeds 0 --looked 20
    python benchmarks/review.py table      # and docs/images/review_found.svg

Each run is that of `grid.py`'s grid `real` (pretrained, 128 x 128; phantoms at 64 x 64 as in its
other grids, but for ten epochs), half of the masks replaced. Those of `real` are written into that
grid's table too. The replaced masks' originals answer for the person: a mask that is looked at is
put right. Orders: `gain` is that of the page, `score` that of scores.csv, `softmin` cleanlab's
score from the peers' mean probabilities, `random` any, `truth` the best there is.
Runs are kept in `benchmarks/evidence/review/`, and are not repeated.
"""

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import grid

FOLDER = grid.HERE / "evidence" / "review"
FOUND = grid.RESULTS / "review_found.csv"  # wrong pixels found
DICE = grid.RESULTS / "review_dice.csv"  # test Dice after retraining
ORDERS = ("gain", "score", "softmin", "random", "truth")
LEVEL = 0.5


def base_run(name: str, seed: int, level: float) -> Path:
    """Run all stages once."""
    from coseg_lightning.run import run

    folder = FOLDER / f"{name}-{level:g}-{seed}"
    if not (folder / "summary.json").is_file():
        real = not name.startswith("phantom")
        cell = (name, level, "coseg", seed)
        cfg, digest = grid.composed(cell, False, real=real)
        if not real:
            cfg.trainer.max_epochs = 10  # enough for phantoms
        shutil.rmtree(folder, ignore_errors=True)
        version = grid.code()
        summary = run(cfg, folder)
        if real and cell in grid.left_of("real", False, [seed], [name]):
            grid.append(grid.RESULTS / "real.csv", grid.row_of(cell, summary, digest, version))
    return folder


class Masks:
    """The training masks of a run: as given, the originals, and what the peers say."""

    def __init__(self, folder: Path) -> None:
        from coseg_lightning.app.rebuild import AppRun
        from coseg_lightning.labels.store import LabelStore
        from coseg_lightning.labels.updated import changed_labels
        from coseg_lightning.report.review_order import write_review_order

        self.run = AppRun(folder, trust=True)
        self.data = self.run.data()
        self.data.prepare_data()
        self.samples = self.data.given_samples()
        assert self.samples.truth is not None
        self.ids = list(self.samples.ids)
        count = range(len(self.ids))
        self.given = [self.samples.mask(i) for i in count]
        self.truth = [self.samples.truth.mask(i) for i in count]
        layer = self.run.proposals
        assert layer is not None
        proposed = dict.fromkeys(layer.ids, layer)
        proposed |= changed_labels(self.samples, [LabelStore(one) for one in self.run.layers])
        level = self.run.summary["ranking"]["noise_level"]
        write_review_order(folder, self.samples, proposed, level)  # by the code as it is now
        self.wrong = np.array(
            [(g != t).sum() for g, t in zip(self.given, self.truth, strict=True)], float
        )

    def order(self, name: str, seed: int) -> list[int]:
        """The indices of all masks in the order in which they are looked at."""
        index = {sample_id: i for i, sample_id in enumerate(self.ids)}
        if name == "random":
            return np.random.default_rng(seed).permutation(len(self.ids)).tolist()
        if name == "truth":
            return np.argsort(-self.wrong, kind="stable").tolist()
        if name == "softmin":
            return np.argsort(self._softmin(), kind="stable").tolist()
        table = "review_order.csv" if name == "gain" else "scores.csv"
        with (self.run.folder / table).open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [index[row["id"]] for row in rows]

    def _softmin(self) -> np.ndarray:
        """The score of cleanlab for each mask, low for bad ones."""
        import torch
        from torch.utils.data import DataLoader

        from coseg_lightning.functional.equations import class_logits
        from coseg_lightning.ranking.evidence import MASK_COLUMNS, compute_evidence

        peers = [self.run.peer(name) for name in ("net_a", "net_b")]
        found = []
        with torch.no_grad():
            for batch in DataLoader(self.samples, 8):
                both = [class_logits(peer(batch["image"])).softmax(dim=1) for peer in peers]
                mean = (both[0] + both[1]) / 2
                table = compute_evidence(mean.log(), batch["mask"])
                found.append(table[:, MASK_COLUMNS.index("softmin")].numpy())
        return -np.concatenate(found)  # the evidence is high for bad masks


def before(base: Path, cell: tuple[str, float, str, int]) -> float:
    """The test Dice without a review: the grid's, whose final network may be a later one's."""
    with (grid.RESULTS / "real.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["set"], float(row["noise_level"]), row["method"], int(row["seed"])) == cell:
                return float(row["dice"])
    return round(json.loads((base / "summary.json").read_text())["test"]["dice"], 5)


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a table."""
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        if is_new:
            table.writeheader()
        table.writerows(rows)


def find(name: str, seed: int, level: float) -> None:
    """Write how many of the wrong pixels are found, against the masks looked at."""
    masks = Masks(base_run(name, seed, level))
    rows = []
    for order in ORDERS:
        found = np.cumsum(masks.wrong[masks.order(order, seed)]) / masks.wrong.sum()
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7):
            looked = round(share * len(found))
            rows.append(
                {"set": name, "noise_level": level, "seed": seed, "order": order,
                 "looked": looked, "masks": len(found), "found": round(found[looked - 1], 4)}
            )  # fmt: skip
    append(FOUND, rows)
    print({row["order"]: row["found"] for row in rows if row["looked"] == round(0.3 * len(found))})


def retrain(name: str, seed: int, level: float, looked: int, order: str) -> None:
    """Put the first masks of an order right, retrain as a review does, and write the test Dice.

    A cell that is in the table is not repeated.
    """
    cell = {"set": name, "noise_level": str(level), "seed": str(seed), "order": order}
    cell["looked"] = str(looked)
    if DICE.is_file():
        with DICE.open(newline="") as file:
            if any(cell.items() <= row.items() for row in csv.DictReader(file)):
                return

    from PIL import Image

    from coseg_lightning.files.csv import write_table
    from coseg_lightning.run import run

    base = base_run(name, seed, level)
    masks = Masks(base)
    review = FOLDER / "answers" / f"{base.name}-{order}-{looked}"
    shutil.rmtree(review, ignore_errors=True)
    (review / "masks").mkdir(parents=True)
    rows = [{"id": "", "decision": ""}]
    for index in masks.order(order, seed)[:looked]:
        sample_id = masks.ids[index]
        is_right = masks.wrong[index] == 0
        rows.append({"id": sample_id, "decision": "ok" if is_right else "redraw"})
        if not is_right:
            mask = masks.truth[index].astype(np.uint8)
            Image.fromarray(mask).save(review / "masks" / f"{sample_id}.png")
    write_table(review / "review.csv", rows[1:] or rows)
    out = review / "retrained"
    settings = ["stages=[retraining]", f"resume={base}", f"review={review}", "trust=true"]
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        summary = run(compose("config", settings), out)
    row = {"set": name, "noise_level": level, "seed": seed, "order": order, "looked": looked,
           "masks": len(masks.ids), "dice": round(summary["test"]["dice"], 5),
           "before": before(base, (name, level, "coseg", seed)),
           "label_dice": round(summary["correction"]["label_dice_after"], 5)}  # fmt: skip
    append(DICE, [row])
    print(row, flush=True)


def table() -> None:
    """Print the tables, and draw the curves into `docs/images/review_found.svg`."""
    from matplotlib.figure import Figure

    with FOUND.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    figure = Figure(figsize=(3.2 * len(sets), 3), layout="constrained")
    axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    print("| set | order | " + " | ".join(f"{10 * k} %" for k in (1, 2, 3, 5)) + " | seeds |")
    print("|---" * 7 + "|")
    for name, axis in zip(sets, axes, strict=True):
        for order in ORDERS:
            found: dict[float, list[float]] = {}
            for row in rows:
                if (row["set"], row["order"]) == (name, order):
                    share = round(int(row["looked"]) / int(row["masks"]), 1)
                    found.setdefault(share, []).append(100 * float(row["found"]))
            shares = sorted(found)
            means = [sum(found[share]) / len(found[share]) for share in shares]
            axis.plot([0, *(100 * s for s in shares)], [0, *means], label=order, marker=".")
            cells = [f"{sum(found[s]) / len(found[s]):.0f}" for s in (0.1, 0.2, 0.3, 0.5)]
            print(f"| {name} | {order} | {' | '.join(cells)} | {len(found[0.3])} |")
        axis.set(title=name, xlabel="% of the masks looked at")
    axes[0].set_ylabel("% of the wrong pixels found")
    axes[0].legend(frameon=False)
    figure.savefig(
        grid.HERE.parent / "docs" / "images" / "review_found.svg", metadata={"Date": None}
    )
    if not DICE.is_file():
        return
    with DICE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    print("\n| set | order | looked at | test Dice before | after | seeds |\n" + "|---" * 6 + "|")
    for key in dict.fromkeys((row["set"], row["order"], row["looked"]) for row in rows):
        of = [row for row in rows if (row["set"], row["order"], row["looked"]) == key]
        means = [sum(float(row[c]) for row in of) / len(of) for c in ("before", "dice")]
        cells = [f"{100 * mean:.1f}" for mean in means]
        print(f"| {key[0]} | {key[1]} | {key[2]} | {' | '.join(cells)} | {len(of)} |")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("run", "retrain", "table"))
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--level", type=float, default=LEVEL)
    parser.add_argument("--looked", type=int, nargs="+", default=[20])
    parser.add_argument("--orders", nargs="+", default=["gain", "score", "random"])
    options = parser.parse_args()
    if options.what == "table":
        table()
    for seed in options.seeds:
        for name in options.sets:
            if options.what == "run":
                find(name, seed, options.level)
                continue
            for looked in options.looked:
                for order in options.orders:
                    retrain(name, seed, options.level, looked, order)


if __name__ == "__main__":
    main()
