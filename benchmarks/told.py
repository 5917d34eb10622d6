"""What `nol=auto` and the guard would say, from kept predictions.

    python benchmarks/kept.py --jobs 2     # the predictions, once
    python benchmarks/told.py              # ten minutes on one core
    COSEG_EVIDENCE=short python benchmarks/kept.py --jobs 2 --epochs 5
    COSEG_EVIDENCE=short python benchmarks/told.py --epochs 5    # peers that learnt too little

`estimate` is that of the noise level after half of the epochs, when both peers have learnt from
all masks, or else, where that cannot tell, at the end. `joint_distance` is by how many deviations
`joint` sets good and bad masks apart. `ratio` is how much the excluded labels contradict the peers
over how much these contradict each other, at the end; labels are corrected from 2.2 on. The noise
level told is 0.5, also with clean masks (`none`), or that of the name. Writes
`benchmarks/results/told.csv`.
"""

import argparse
import csv
import itertools
from pathlib import Path

import grid
import numpy as np
import torch
from kept import OTHER_LEVELS, SEEN, UNSEEN, judged, path_of
from votes import Corrections

from coseg_lightning.ranking.noise_level import estimate_noise_level, fit_mixture
from coseg_lightning.ranking.scores import mask_scores

RESULTS = Path(__file__).parent / "results" / "told.csv"
REGIMES = ("small", "pretrained")


def measure(cell: tuple[str, str, int], epochs: str) -> dict:
    """One row."""
    regime, name, seed = cell
    end = judged(cell)
    at_half = path_of(cell, half=True).exists()
    first = judged(cell, half=True) if at_half else end
    joint = np.mean([mask_scores(peer, "joint") for peer in first.peers], axis=0)
    estimate = estimate_noise_level(*first.peers)
    if not estimate.separable:
        estimate = estimate_noise_level(*end.peers)
    told = float(name.rpartition("-")[2]) if name[-1].isdigit() and "." in name else 0.5
    corrections = Corrections(end)
    noisy, guard = corrections.guard(told)
    masks = [corrections.corrected(n, c) for n, c in zip(noisy, guard.confidence, strict=True)]
    return {
        "epochs": epochs,
        "regime": regime,
        "set": name,
        "seed": seed,
        "nol": f"{end.replaced.mean():.3f}",
        "estimate": f"{estimate.noise_level:.3f}" if estimate.separable else "",
        "low": f"{estimate.interval[0]:.3f}" if estimate.interval else "",
        "high": f"{estimate.interval[1]:.3f}" if estimate.interval else "",
        "says": "" if estimate.separable else str(estimate),
        "joint_distance": f"{fit_mixture(joint).distance:.2f}",
        "ratio": f"{guard.label_peer_ratio:.3f}",
        "disagreement": f"{guard.disagreement:.4f}",
        "corrects": int(guard.peers_know_better),
        "gain_if_corrected": f"{corrections.gain(noisy, masks):.3f}",
    }


def read() -> list[dict]:
    """The rows that are there already; remove the file to measure them again."""
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Measure what is kept, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", default="default", help="which were kept, to tell them apart")
    epochs = parser.parse_args().epochs
    torch.set_num_threads(1)
    names = [*SEEN, *UNSEEN, *OTHER_LEVELS]
    cells = list(itertools.product(REGIMES, names, grid.SEEDS))
    before = {(r["epochs"], r["regime"], r["set"], int(r["seed"])): r for r in read()}
    rows = [
        before.pop((epochs, *cell), None) or measure(cell, epochs)
        for cell in cells
        if path_of(cell).exists()
    ]
    if not rows:
        raise SystemExit("No predictions are kept: python benchmarks/kept.py --jobs 2")
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows([*before.values(), *rows])
    print("| masks | NoL | told by `nol=auto` | ratio | corrects | points won if it did |")
    print("|---|---|---|---|---|---|")
    for regime, name in itertools.product(REGIMES, names):
        found = [row for row in rows if (row["regime"], row["set"]) == (regime, name)]
        if not found:
            continue
        columns = [", ".join(r["estimate"] or "?" for r in found)]
        columns += [", ".join(f"{float(r['ratio']):.1f}" for r in found)]
        columns += [f"{sum(r['corrects'] for r in found)} of {len(found)}"]
        columns += [", ".join(f"{float(r['gain_if_corrected']):.1f}" for r in found)]
        where = " pretrained, 128 x 128" if regime == "pretrained" else ""
        print(f"| {name}{where} | {found[0]['nol']} | {' | '.join(columns)} |")
    told = [{k: float(r[k]) for k in ("nol", "estimate", "low", "high")} for r in rows if r["low"]]
    largest = max((abs(r["estimate"] - r["nol"]) for r in told), default=0)
    held = sum(r["low"] <= r["nol"] <= r["high"] for r in told)
    print(f"\n{len(told)} of {len(rows)} runs were told a level, off by {largest:.2f} at most; the")
    print(f"90 % interval holds the true one in {held}.")


if __name__ == "__main__":
    main()
