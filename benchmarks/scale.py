"""What is kept per sample, of a million samples: time and memory of every step.

    python benchmarks/scale.py              # 1,000,000 ids, and a layer of 100,000 masks

The networks are mocked: their evidence on every sample is drawn at random, in batches of 64, as an
evaluation pass would give it. Everything else is what a run does: the sum over passes, the ranking,
the noise level, `scores.csv`, and the manifest of the label layer. Writes
`benchmarks/results/scale.csv`.
"""

import argparse
import csv
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from coseg_lightning import Recipe
from coseg_lightning.callbacks.evidence_sum import EvidencePass, EvidenceShare, EvidenceSum
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.updated import updated
from coseg_lightning.ranking.evidence import CLASS_COLUMNS, MASK_COLUMNS
from coseg_lightning.ranking.noise_level import estimate_noise_level
from coseg_lightning.ranking.ranking import Ranking
from coseg_lightning.ranking.scores import mask_scores

RESULTS = Path(__file__).parent / "results" / "scale.csv"
SCORE = Recipe.score
NOISE_LEVEL = 0.3


class Named:
    """A dataset of nothing but names."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids

    def image(self, index: int) -> np.ndarray:
        """None is ever read."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray:
        """A small one."""
        return np.zeros((8, 8), np.uint8)


def evidence_of(noisy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Both peers' evidence on some samples, `(n, 2, columns)`: noisy ones fit worse."""
    count = len(noisy)
    values = {name: np.full(count, 1.0) for name in (*MASK_COLUMNS, *CLASS_COLUMNS)}
    misfit = np.exp(rng.normal(np.where(noisy, 1.2, 0.0), 0.3))
    values["entropy"] = 0.05 * np.exp(rng.normal(0, 0.2, count))
    values["cross_entropy"] = values["entropy"] * misfit
    values["eq1"] = values["cross_entropy"]
    values["variance"] = values["entropy"]
    values["boundary"] = np.full(count, 0.05)
    values["label_area"] = np.full(count, 0.2)
    values["predicted_area"] = np.full(count, 0.2)
    values["expected_area"] = 0.2 + 0.01 * rng.normal(0, 1, count)
    values["overlap"] = np.where(noisy, 0.15, 0.19)
    values["softmin"] = values["class_softmin"] = 0.1 * misfit.clip(0.1, 5)
    one = np.stack([values[name] for name in (*MASK_COLUMNS, *CLASS_COLUMNS)], axis=1)
    return np.stack([one, one * np.exp(rng.normal(0, 0.05, one.shape))], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--masks", type=int, default=100_000)
    options = parser.parse_args()
    rows: list[dict[str, str]] = []

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        took = time.perf_counter() - start
        rows.append({"step": what, "seconds": f"{took:.2f}", "peak_gibibytes": f"{peak:.2f}"})
        print(f"{what:45} {took:7.2f} s  {peak:5.2f} GiB", flush=True)

    rng = np.random.default_rng(0)
    noisy = rng.random(options.samples) < NOISE_LEVEL
    with timed("imports, ids"):
        ids = [f"sample-{number:09d}" for number in range(options.samples)]
    seen = EvidenceSum()
    for number in (1, 2):
        with timed(f"evidence of pass {number}, mocked"):
            shares = []
            for start in range(0, options.samples, 64):
                places = np.arange(start, min(start + 64, options.samples))
                table = evidence_of(noisy[places], rng)
                shares.append(EvidenceShare(places, [ids[place] for place in places], table))
        with timed(f"sum over passes {number}"):
            seen.add(EvidencePass(EvidenceShare.joined(shares), numbered=False, step=(number, 0)))
            del shares
    with timed("checkpoint's part"):
        seen.state_dict()
    with timed("gathered"):
        names, peers = seen.gathered()
    with timed("noise level"):
        estimate = estimate_noise_level(*peers)
    print(f"Noise level of {noisy.mean():.3f}: {estimate}")
    with tempfile.TemporaryDirectory() as folder:
        with timed("ranking"):
            scores = mask_scores(peers[0], SCORE), mask_scores(peers[1], SCORE)
            ranking = Ranking.of_evidence(
                names, peers, scores, estimate.noise_level, score=SCORE, run_id="0"
            )
            chosen = ranking.noisy
        print(f"Of those taken for noisy, {noisy[chosen].mean():.3f} are.")
        with timed("scores.csv"):
            ranking = replace(ranking, changed_pixels=dict.fromkeys(chosen, 100))
            ranking.write(Path(folder) / "scores.csv")
        with timed("manifest written, and opened again"):
            writer = LabelStore.create(Path(folder) / "labels")
            facts = {"changed_pixels": 100, "original": "0123456789abcdef"}
            writer.finish({names[i]: facts for i in chosen}, run_id="0")
        with timed("layer over the dataset"):
            updated(Named(ids), Path(folder) / "labels")
    total = sum(float(row["seconds"]) for row in rows)
    print(f"{total:.1f} s in all, mocking included")

    with tempfile.TemporaryDirectory() as folder:
        mask = np.zeros((8, 8), np.uint8)
        writer = LabelStore.create(folder)
        names = ids[: options.masks]
        with timed(f"{options.masks} masks written"):
            for name in names:
                writer.write(name, mask)
            writer.finish({name: {"changed_pixels": 1} for name in names})
        with timed("opened"):
            layer = LabelStore(folder)
        with timed("1,000 of them read, at random"):
            for place in rng.integers(options.masks, size=1000):
                layer.read(names[place])
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
