"""Co-Seg on a dataset class of torchvision, cell by cell, as in a notebook.

    python examples/oxford_pets.py FOLDER

`FOLDER` holds `oxford-iiit-pet/` in torchvision's layout. `OxfordIIITPet(FOLDER, download=True)`
downloads it, about 800 MB. Pixels that its trimaps leave undecided are unlabelled here.
"""

# %% The dataset, without augmentation, which a corrected mask could not follow.
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, random_split
from torchvision.datasets import OxfordIIITPet
from torchvision.transforms import v2

from coseg_lightning import CoSegModule, LabelStore, SegmentationModule, run_stages, updated


class Pets(Dataset):
    """Samples `(image, mask, id)`, all of one size."""

    def __init__(self, root: Path, split: str, side: int) -> None:
        self.pets = OxfordIIITPet(str(root), split, target_types="segmentation")
        self.side = side

    def __len__(self) -> int:
        return len(self.pets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        image, trimap = self.pets[index]
        image = np.asarray(image.convert("RGB").resize((self.side, self.side)), np.float32) / 255
        trimap = torch.from_numpy(np.array(trimap.resize((self.side, self.side), 0)))
        mask = torch.tensor([255, 1, 0, 255])[trimap.long()]  # 1 pet, 2 background, 3 undecided
        return torch.from_numpy(image).movedim(-1, 0), mask, f"pet_{index:04d}"


# %% Augmentation wraps that dataset. `plain` and `updated` give access to it.
class Flipped(Dataset):
    """Another dataset's samples, mirrored half of the time."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        image, mask, sample_id = self.dataset[index]
        flip = v2.functional.horizontal_flip if torch.rand(()) < 0.5 else torch.clone
        return flip(image), flip(mask), sample_id

    def plain(self) -> Dataset:
        """The dataset that is ranked and corrected."""
        return self.dataset

    def updated(self, layer: LabelStore) -> "Flipped":
        """The same augmentation, over corrected masks."""
        return Flipped(updated(self.dataset, layer))


class PetData(pl.LightningDataModule):
    """The project's own datamodule."""

    def __init__(self, root: Path, side: int = 128, batch_size: int = 8) -> None:
        super().__init__()
        self.root, self.side, self.batch_size = root, side, batch_size

    def setup(self, stage: str) -> None:
        pets = Pets(self.root, "trainval", self.side)
        self.train, self.val = random_split(pets, [0.9, 0.1], torch.Generator().manual_seed(0))
        self.test = Pets(self.root, "test", self.side)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Flipped(self.train), self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.batch_size)


# %% All stages, in one call.
def main(root: Path, folder: Path = Path("pets_run"), side: int = 128, **options: object) -> dict:
    return run_stages(
        PetData(root, side),
        folder,
        peers=lambda: CoSegModule("unet", encoder_name="resnet18", noise_level=0.2),
        network=lambda: SegmentationModule("unet", encoder_name="resnet18"),
        trainer=partial(pl.Trainer, **{"max_epochs": 20, **options}),
    )


# %%
if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(
            "Give the folder that holds oxford-iiit-pet/: python examples/oxford_pets.py FOLDER"
        )
    summary = main(Path(sys.argv[1]))
    print(f"Test Dice {summary['test']['dice']:.4f}; the worst masks lead pets_run/scores.csv")
