"""Ranking and correction at the end of stage 1, against plain inference of the two peers.

    python benchmarks/passes.py        # ResNet-18 U-Net, 96 x 96, 400 phantoms, CPU

In every round: plain inference of both peers over the training set, in batches from memory; the
same from the dataset; the ranking; ranking and correction with the masks written; and those two
where predictions do not fit into memory. A figure is plain inference's time over theirs, so that 1
is its throughput. Writes `benchmarks/results/passes.csv`.
"""

import argparse
import csv
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from coseg_lightning import CorruptionRanking, CoSegDataModule, CoSegModule, LabelCorrection
from coseg_lightning.callbacks import prediction_store
from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.noise import BoundaryNoise

RESULTS = Path(__file__).parent / "results" / "passes.csv"


class Timed(pl.Callback):
    """The seconds between the end of training and that of `fit`, all callbacks included."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Start the clock after the only step."""
        self.start = time.perf_counter()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Stop it when everything is done."""
        self.seconds = time.perf_counter() - self.start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--noise-level", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    images = PhantomImages("p", options.samples, options.size, 0)  # kept once drawn

    def fitted(folder: Path, *callbacks: pl.Callback) -> tuple[float, CoSegModule, Any]:
        """Train a single step, and time what follows it."""
        data = CoSegDataModule(
            images,
            image_size=options.size,
            in_channels=1,
            noise=BoundaryNoise(8),
            noise_level=options.noise_level,
            noise_folder=folder / "noise",
        )
        timed = Timed()
        module = CoSegModule("unet", in_channels=1, noise_level=options.noise_level)
        trainer = pl.Trainer(
            max_epochs=1,
            limit_train_batches=1,
            accelerator=options.accelerator,
            logger=False,
            callbacks=[timed, *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        return timed.seconds, module, data

    times: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            nothing, module, data = fitted(folder / "nothing")
            samples = data.samples("train").plain()
            loader = DataLoader(samples, batch_size=8)
            batches = list(loader)
            device = torch.device("cuda" if options.accelerator == "gpu" else "cpu")
            module.to(device).eval()

            def infer(source: Any, module: CoSegModule = module, device: Any = device) -> float:
                start = time.perf_counter()
                with torch.no_grad():
                    for batch in source:
                        module(batch["image"].to(device))
                if device.type == "cuda":
                    torch.cuda.synchronize()
                return time.perf_counter() - start

            took = {
                "plain inference, from memory": infer(batches),
                "plain inference, from the dataset": infer(loader),
                "ranking": fitted(folder / "r", CorruptionRanking(folder / "r.csv"))[0] - nothing,
            }
            for kind, most in (("kept", prediction_store.MOST_BYTES), ("not kept", 0)):
                before, prediction_store.MOST_BYTES = prediction_store.MOST_BYTES, most
                ranking = CorruptionRanking(folder / f"{kind}.csv")
                correction = LabelCorrection(folder / f"{kind} labels")
                seconds = fitted(folder / kind, ranking, correction)[0] - nothing
                took[f"ranking and correction, predictions {kind}"] = seconds
                prediction_store.MOST_BYTES = before
        if number:  # the first round warms up
            for kind, seconds in took.items():
                times.setdefault(kind, []).append(seconds)
    with RESULTS.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        columns = ["kind", "throughput", "lowest", "highest", "milliseconds a sample"]
        table.writerow([*columns, "noise level", "samples", "size", "accelerator"])
        for kind, seconds in times.items():
            plain = times["plain inference, from the dataset"]
            ratios = [a / b for a, b in zip(plain, seconds, strict=True)]
            row = [
                *(kind, f"{statistics.median(ratios):.2f}"),
                *(f"{min(ratios):.2f}", f"{max(ratios):.2f}"),
                f"{1000 * statistics.median(seconds) / options.samples:.2f}",
            ]
            print("  ".join(row))
            table.writerow(
                [*row, options.noise_level, options.samples, options.size, options.accelerator]
            )


if __name__ == "__main__":
    main()
