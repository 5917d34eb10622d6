"""Fixtures of all tests: seeds, caches, datasets on disk, and where the real masks lie."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: two processes of two threads are ten times slower on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import pytest
import torch
from PIL import Image

from support import ROOT, Squares


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of file inspections among the tests' files, for started processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _collected_garbage() -> Iterator[None]:
    """Free the trainers and networks that refer to each other, so that forks do not copy them."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every epoch, however short, so that a resumed test starts from the same one."""
    monkeypatch.setattr("coseg_lightning.callbacks.stage_checkpoint.MAX_SAVE_SHARE", 1e12)


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
        for i, sample_id in enumerate(squares.ids):
            mask = squares.mask(i)
            rough = np.zeros_like(mask)
            rows, columns = np.nonzero(mask)
            rough[
                max(0, rows.min() - 3) : rows.max() + 4,
                max(0, columns.min() - 3) : columns.max() + 4,
            ] = 1
            Image.fromarray(squares.image(i)).save(root / "images" / f"{sample_id}.png")
            Image.fromarray(mask * foreground).save(root / "masks" / f"{sample_id}.png")
            Image.fromarray(rough * foreground).save(root / "masks_rough" / f"{sample_id}.png")
        return root

    return make
