"""How sure must the peers be, and should the vote look at the image? From kept predictions.

    python benchmarks/kept.py --jobs 2     # the predictions, once
    python benchmarks/votes.py             # half an hour on one core

The mean Dice of all labels to the original masks after correction, less that before it, in points.
"c / r" is the certainty that is wanted: 1/2, plus c over how much the label contradicts the peers;
"told" is the noise level that the method was told, where half of the masks are replaced. The other
rows change the guard's certainty where the vote lowers or raises the contrast on the outline.
Writes `benchmarks/results/votes.csv`.
"""

import argparse
import csv
import itertools
from pathlib import Path

import grid
import numpy as np
import torch
from kept import SEEN, UNSEEN, Judged, judged, path_of

from coseg_lightning.callbacks.label_correction import resize_probabilities
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.functional.equations import vote
from coseg_lightning.ranking.guard import CorrectionGuard
from coseg_lightning.ranking.outline import outline_evidence
from coseg_lightning.ranking.scores import mask_scores

RESULTS = Path(__file__).parent / "results" / "votes.csv"
MARGINS = (0.0, 0.4, 0.65, 0.8, 1.0, 1.3)
TOLD = (0.3, 0.5, 0.7)
CHANGES = {
    "as the guard says": (0.0, 0.0),
    "0.1 more if contrast falls": (0.1, 0.0),
    "never if contrast falls": (np.inf, 0.0),
    "0.1 less if contrast rises": (0.0, -0.1),
    "0.1 more or less": (0.1, -0.1),
    "0.1 less always": (-0.1, -0.1),
}


class Corrections:
    """The corrections of one training set, by the certainty that they need."""

    def __init__(self, cell: Judged) -> None:
        self.cell = cell
        self.before = cell.dice
        scores = np.mean([mask_scores(peer, "joint") for peer in cell.peers], axis=0)
        self.worst_first = np.argsort(-scores, kind="stable")
        mean = cell.probabilities.mean(dim=1).argmax(dim=1).numpy()
        first, second = cell.probabilities.argmax(dim=2).numpy().swapaxes(0, 1)
        labels = cell.labels.numpy()
        every = range(len(labels))
        self.against = np.array([1 - mask_dice(labels[n], mean[n]) for n in every])
        self.among = np.array([1 - mask_dice(first[n], second[n]) for n in every])
        self.bias = np.mean([peer.size_bias.sum(axis=1) for peer in cell.peers], axis=0)

    def guard(self, told: float) -> tuple[np.ndarray, CorrectionGuard]:
        """The masks that count as noisy, and the guard over them."""
        noisy = np.zeros(len(self.against), bool)
        noisy[self.worst_first[: round(told * len(noisy))]] = True
        return np.flatnonzero(noisy), CorrectionGuard(
            *(self.against[noisy], self.among[noisy], self.against[~noisy]),
            excluded_size_bias=self.bias[noisy],
            kept_size_bias=self.bias[~noisy],
        )

    def corrected(self, n: int, confidence: float) -> np.ndarray:
        """A mask after the vote."""
        label = torch.from_numpy(self.cell.masks[n].astype(np.int64))
        peers = [resize_probabilities(p[None], label) for p in self.cell.probabilities[n]]
        return vote(*peers, label[None], confidence=confidence)[0].numpy()

    def contrast(self, n: int, mask: np.ndarray) -> float:
        """The contrast on the outlines of a mask, in its image."""
        classes = self.cell.probabilities.shape[2]
        values = outline_evidence(self.cell.images[n], mask, classes=classes)[:, 0]
        return float(np.nanmean(values)) if not np.isnan(values).all() else np.nan

    def gain(self, noisy: np.ndarray, masks: list[np.ndarray]) -> float:
        """Points of Dice won, in the mean over all labels."""
        won = [mask_dice(m, self.cell.truth[n]) for n, m in zip(noisy, masks, strict=True)]
        return 100 * (sum(won) - self.before[noisy].sum()) / len(self.before)


def measure(name: str, seed: int) -> list[dict]:
    """One row a variant."""
    corrections = Corrections(judged(("small", name, seed)))
    rows = []

    def note(variant: str, told: float, ratio: float | None, gain: float) -> None:
        row = {"set": name, "seed": seed, "variant": variant, "told": told}
        rows.append(row | {"ratio": f"{ratio:.3f}", "gain": f"{gain:.4f}"})

    for told, margin in itertools.product(TOLD, MARGINS):
        noisy, guard = corrections.guard(told)
        certainty = 0.5 + margin * (guard.confidence - 0.5)
        masks = [corrections.corrected(n, c) for n, c in zip(noisy, certainty, strict=True)]
        gain = corrections.gain(noisy, masks) if guard.peers_know_better else 0.0
        note(f"{margin} / r", told, guard.label_peer_ratio, gain)
    noisy, guard = corrections.guard(0.5)
    moves = []
    for n, certainty in zip(noisy, guard.confidence, strict=True):
        before, after = corrections.cell.masks[n], corrections.corrected(n, certainty)
        moves.append(corrections.contrast(n, after) - corrections.contrast(n, before))
    for variant, (falls, rises) in CHANGES.items():
        change = np.where(np.array(moves) < 0, falls, rises)
        certainty = guard.confidence + np.where(np.isnan(moves), 0, change)
        masks = [corrections.corrected(n, c) for n, c in zip(noisy, certainty, strict=True)]
        gain = corrections.gain(noisy, masks) if guard.peers_know_better else 0.0
        note(variant, 0.5, guard.label_peer_ratio, gain)
    return rows


def main() -> None:
    """Measure the sets whose predictions are kept, write and print."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, seed in itertools.product([*SEEN, *UNSEEN], grid.SEEDS):
        if path_of(("small", name, seed)).exists():
            rows += measure(name, seed)
            print(name, seed, flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    sets = list(dict.fromkeys(row["set"] for row in rows))
    print(f"| certainty | told | {' | '.join(sets)} | mean |\n|---|---|{'---|' * len(sets)}---|")
    for variant, told in dict.fromkeys((row["variant"], row["told"]) for row in rows):
        means = [
            np.mean(
                [
                    float(row["gain"])
                    for row in rows
                    if (row["set"], row["variant"], row["told"]) == (name, variant, told)
                ]
            )
            for name in sets
        ]
        cells = " | ".join(f"{mean:.2f}" for mean in means)
        print(f"| {variant} | {told} | {cells} | {np.mean(means):.2f} |")


if __name__ == "__main__":
    main()
