"""What tests share: small networks and datasets, and where the real data lies."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of two threads are ten times slower
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]


class TinyNetwork(nn.Module):
    """Two small convolutions: fast, and able to learn a bright square."""

    def __init__(self, in_channels: int = 1, classes: int = 2, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Squares:
    """`MaskedImages`: a bright square on a dark, noisy ground; the square is class 1."""

    def __init__(self, size: int = 11, side: int = 32, name: str = "s") -> None:
        self.ids = [f"{name}{i:02d}" for i in range(size)]
        self.side = side

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        mask = np.zeros((self.side, self.side), np.uint8)
        top, left = rng.integers(2, self.side // 2, 2)
        mask[top : top + self.side // 3, left : left + self.side // 3] = 1
        return mask

    def image(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(100 + index).normal(60, 15, (self.side, self.side))
        return np.clip(noise + 110 * self.mask(index), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of files is kept where tests are, also by the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _no_rubbish() -> Iterator[None]:
    """Trainers and networks refer to each other in circles, and forked tests copy what is left."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = Path(os.environ.get("COSEG_DATA", ROOT.parent / "shared" / "data"))
    if not (root / "bubil" / "images").is_dir():
        pytest.skip("the real masks are not here: set COSEG_DATA to their folder")
    return root


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder dataset of squares: images/, masks/, and masks_rough/ grown by three."""

    def make(size: int = 8, side: int = 32, foreground: int = 1) -> Path:
        root = tmp_path / "dataset"
        squares = Squares(size, side)
        for name in ("images", "masks", "masks_rough"):
            (root / name).mkdir(parents=True)
        for i, id in enumerate(squares.ids):
            mask = squares.mask(i)
            rough = np.zeros_like(mask)
            rows, columns = np.nonzero(mask)
            rough[
                max(0, rows.min() - 3) : rows.max() + 4,
                max(0, columns.min() - 3) : columns.max() + 4,
            ] = 1
            Image.fromarray(squares.image(i)).save(root / "images" / f"{id}.png")
            Image.fromarray(mask * foreground).save(root / "masks" / f"{id}.png")
            Image.fromarray(rough * foreground).save(root / "masks_rough" / f"{id}.png")
        return root

    return make


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch):
    """However short: what is killed then goes on from the same place in every run of a test."""
    monkeypatch.setattr("coseg_lightning.callbacks.stage_checkpoint.MAX_SAVE_SHARE", 1e12)
