"""What reading and augmenting a sample costs, with and without the cache of images.

    python benchmarks/loading.py           # bubil, from the folder named by COSEG_DATA

Milliseconds a sample in one process, the best of three passes over the training set, at two sizes;
beside it a training step's, of the default network on this machine. Writes
`benchmarks/results/loading.csv`.
"""

import csv
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.functional.equations import segmentation_loss
from coseg_lightning.networks.build import build_network

RESULTS = Path(__file__).parent / "results" / "loading.csv"
DATA = Path(os.environ.get("COSEG_DATA", Path(__file__).parents[2] / "shared" / "data"))


def best(action: Callable[[], Any], samples: int, times: int = 3) -> float:
    """Milliseconds a sample."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        found.append(1000 * (time.perf_counter() - start) / samples)
    return min(found)


def main() -> None:
    splits = folder_splits(DATA / "bubil")
    rows = []
    for side in (64, 256):
        with tempfile.TemporaryDirectory() as cache:
            took = {}
            for name, folder in (("files", None), ("cache", cache)):
                data = CoSegDataModule(*splits, image_size=side, in_channels=1, cache=folder)
                data.prepare_data()
                samples = data.samples("train")
                assert samples is not None
                count = len(samples)
                took[name] = best(lambda s=samples: [s[(1, i)] for i in range(len(s))], count)
        net = build_network("unet", in_channels=1)
        optimizer = torch.optim.Adam(net.parameters())
        images = torch.randn(8, 1, side, side)
        masks = torch.zeros((8, side, side), dtype=torch.long)

        def step(net: Any = net, optimizer: Any = optimizer, batch: Any = (images, masks)) -> None:
            optimizer.zero_grad()
            segmentation_loss(net(batch[0]), batch[1]).mean().backward()
            optimizer.step()

        step()
        took["training step"] = best(step, 8)
        rows.append({"size": side, **{name: f"{value:.2f}" for name, value in took.items()}})
        print(rows[-1])
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
