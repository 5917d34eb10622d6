"""CoSegModule under LightningCLI: a YAML file or flags set everything, without Hydra.

    python examples/lightning_cli.py fit --trainer.max_epochs=8
    python examples/lightning_cli.py fit --model.net_a=fpn --model.noise_level=0.2 --print_config

It needs jsonargparse: `pip install "pytorch-lightning[extra]"`. Every argument of `CoSegModule` and
of the datamodule can be set. `--print_config > peers.yaml` saves them for `--config peers.yaml`.
"""

import sys
import tempfile
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch.utils.data import DataLoader

from coseg_lightning import AveragedWeights, CorruptionRanking, CoSegModule, LabelCorrection
from coseg_lightning.data.phantom import phantom_splits
from coseg_lightning.data.samples import SampleDataset, default_augmentation


class Phantoms(pl.LightningDataModule):
    """Your datamodule; here, chest phantoms.

    Args:
        size: The number of training images.
        batch_size: The batch size of all loaders.
    """

    def __init__(self, size: int = 32, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size
        train, val, _ = phantom_splits(size, 8, 0, side=64)
        options = {"image_size": 64, "in_channels": 1}
        self.train = SampleDataset(train, augmentation=default_augmentation(), **options)
        self.val = SampleDataset(val, **options)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)


class CLI(LightningCLI):
    """Defaults for these images."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model.in_channels": 1})


def main(args: list[str], folder: Path) -> LightningCLI:
    callbacks = [
        AveragedWeights(),
        CorruptionRanking(folder / "scores.csv"),
        LabelCorrection(folder / "labels"),
    ]
    defaults = {"default_root_dir": folder, "max_epochs": 4, "callbacks": callbacks}
    return CLI(CoSegModule, Phantoms, trainer_defaults=defaults, args=args)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="coseg_"))
    main(sys.argv[1:] or ["fit"], folder)
    print(f"The ranking and the corrected masks are in {folder}")
