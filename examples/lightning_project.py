"""A Lightning project of your own, made robust against bad masks. The comments mark what changes.

Run it with `python examples/lightning_project.py`; it takes about a minute on two cores.
"""

import sys
import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    CoSegModule,
    LabelCorrection,
    Recipe,
    SegmentationModule,
    updated,
)


class Discs(Dataset):
    """Your dataset: bright discs. The first third of them were outlined far too large."""

    def __init__(self, size: int, careless: int = 0) -> None:
        self.size, self.careless = size, careless

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        random = torch.Generator().manual_seed(index)
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        row, column, radius = 20 + 24 * torch.rand(3, generator=random)
        radius = 6 + radius / 5
        distance = torch.hypot(y - row, x - column)
        image = (distance < radius).float() + 0.4 * torch.randn(64, 64, generator=random)
        mask = distance < (radius + 5 if index < self.careless else radius)
        return image[None], mask.long(), f"disc_{index:02d}"


def main(max_epochs: int = 12) -> None:
    pl.seed_everything(0)
    folder = Path(tempfile.mkdtemp(prefix="coseg_"))
    train, test = Discs(36, careless=12), Discs(64)
    options = {"max_epochs": max_epochs, "logger": False, "enable_checkpointing": False}

    # 1. Your module becomes a pair of peers. Callbacks average the weights, rank and correct.
    peers = CoSegModule("unet", encoder_name="resnet18", in_channels=1, noise_level=1 / 3)
    ranking = CorruptionRanking(folder / "scores.csv")
    correction = LabelCorrection(folder / "labels")
    trainer = pl.Trainer(**options, callbacks=[AveragedWeights(), ranking, correction])
    trainer.fit(peers, DataLoader(train, batch_size=6, shuffle=True))

    # 2. A network starts from the first peer, and learns from the corrected masks by a robust loss.
    network = SegmentationModule(
        "unet", encoder_name="resnet18", in_channels=1, pixel_loss=Recipe.retraining_loss
    )
    network.net.load_state_dict(peers.net_a.state_dict())
    trainer = pl.Trainer(**options, callbacks=[AveragedWeights()])
    trainer.fit(network, DataLoader(updated(train, folder / "labels"), batch_size=6, shuffle=True))
    trainer.test(network, DataLoader(test, batch_size=8))

    # 3. The masks, worst first: the careless ones should come first.
    worst = [ranking.ranking.ids[i] for i in ranking.ranking.worst_first[:12]]
    hits = sum(int(sample_id[-2:]) < 12 for sample_id in worst)
    print(f"{hits} of the 12 careless masks are among the 12 worst; see {folder / 'scores.csv'}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
