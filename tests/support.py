"""Networks, datasets, trainers and runs that several test files share.

The names must stay importable as `support.NAME`: runs that tests start as processes find their
networks and data sources by such names, with this folder on their path.
"""

import csv
import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from coseg_lightning import (
    CorruptionRanking,
    CoSegDataModule,
    CoSegModule,
    LabelCorrection,
    LabelStore,
    SegmentationModule,
    run_stages,
)
from coseg_lightning.app.command import CONF
from coseg_lightning.labels.masks import mask_digest
from coseg_lightning.labels.store import LabelStoreWriter
from coseg_lightning.labels.updated import as_array
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method
from coseg_lightning.noise import (
    AffineNoise,
    BiasedAnnotator,
    BoundaryNoise,
    BoundaryWalk,
    ClassMerge,
    ClassSwap,
    EdgeCircles,
    MissingComponent,
    MissingRegion,
    PolygonOutline,
    RandomAnnotators,
    SpuriousBlob,
)
from coseg_lightning.run import run

ROOT = Path(__file__).resolve().parents[1]
# Where processes that a test starts find the networks and data sources of this folder.
PYTHONPATH = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


# Networks and datasets


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


class Oracle(nn.Module):
    """Predicts class 1 where the image is bright and class 0 elsewhere; `wrong` inverts it."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-1.0 if wrong else 1.0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([-self.gain * images, self.gain * images], dim=1)


class Squares:
    """`MaskedImages`: a bright square on a dark, noisy background; the square is class 1."""

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


class Halves(Dataset):
    """Images whose right half is bright; the masks of the first `wrong` are the left half."""

    def __init__(self, size: int = 12, wrong: int = 3, ids: bool = True) -> None:
        self.size, self.wrong, self.ids = size, wrong, ids

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple:
        image = 0.2 * torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(index))
        image[..., 8:] += 2
        mask = torch.zeros(16, 16, dtype=torch.long)
        mask[:, 8:] = 1
        if index < self.wrong:
            mask = 1 - mask
        return (image, mask, f"h{index}") if self.ids else (image, mask)


RIGHT = Halves(wrong=0)[0][1]


def layer_of(
    folder: Path, masks: dict, originals: dict | None = None, **options: Any
) -> LabelStore:
    """Write a layer of the given masks, by name."""
    LabelStore.create(folder)
    writer = LabelStoreWriter(folder)
    for name, mask in masks.items():
        writer.write(name, np.asarray(mask))
    digests = {name: mask_digest(as_array(mask)) for name, mask in (originals or {}).items()}
    facts = {name: {"original": digests[name]} if name in digests else {} for name in masks}
    return writer.finish(facts, **options)


def trained(
    tmp_path: Path,
    train: DataLoader,
    module: CoSegModule | None = None,
    epochs: int = 8,
    **options: Any,
) -> list[pl.Callback]:
    """Peers that know better, and correct every mask that they exclude."""
    torch.manual_seed(0)
    if module is None:
        nets = TinyNetwork(width=8), TinyNetwork(width=8)
        module = CoSegModule(*nets, lr=0.03, noise_level=0.25)
    callbacks = [
        CorruptionRanking(tmp_path / "scores.csv"),
        LabelCorrection(tmp_path / "labels", confidence=0.0),
    ]
    trainer = trainer_of(tmp_path, max_epochs=epochs, callbacks=callbacks, **options)
    trainer.fit(module, train)
    return callbacks


def accuracies(dataset: Dataset) -> list[float]:
    """The share of right pixels of each mask of `Halves`."""
    return [
        float((as_array(sample[1]) == RIGHT.numpy()).mean())
        for sample in map(dataset.__getitem__, range(len(dataset)))
    ]


class OwnData(pl.LightningDataModule):
    """A datamodule as another project may have it, with hooks and attributes of its own."""

    def __init__(self, ids: bool = True) -> None:
        super().__init__()
        self.calls = []
        self.ids = ids

    def setup(self, stage: str) -> None:
        self.calls.append(stage)
        self.train = Halves(ids=self.ids)

    def _loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        return DataLoader(dataset, batch_size=4, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train, True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append("transfer")
        return batch


class OwnTested(OwnData):
    """The same with test images, all of whose masks are right."""

    def test_dataloader(self) -> DataLoader:
        return self._loader(Halves(4, wrong=0), False)


def one_batch(size: int = 6) -> tuple[Tensor, Tensor]:
    images = torch.randn(size, 1, 16, 16)
    return images, (images[:, 0] + 0.5 * torch.randn(size, 16, 16) > 0).long()


def loader(*batches: Any) -> DataLoader:
    """Load the batches unchanged; Lightning would take a bare list for several dataloaders."""
    return DataLoader(batches, batch_size=None)


def flipped(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Augment at random, as a dataset does that augments its own samples."""
    return (image.flip(-1), mask.flip(-1)) if torch.rand(()) < 0.5 else (image, mask)


def soft_discs(
    radii: Sequence[float], label_radii: Sequence[float], blur: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Logits of discs with blurred boundaries, and labels of discs."""
    y, x = torch.meshgrid(*[torch.arange(64.0) - 31.5] * 2, indexing="ij")
    distance = torch.hypot(x, y)
    logits = torch.stack([(r - distance) / blur for r in radii])
    masks = torch.stack([(distance < r).long() for r in label_radii])
    return logits[:, None], masks


# Noise models, by what they change

OUTLINES = [
    BoundaryNoise(),
    BiasedAnnotator(),
    BoundaryWalk(),
    EdgeCircles(),
    PolygonOutline(),
    RandomAnnotators(),
    AffineNoise(),
]
OBJECTS = [MissingComponent(), MissingRegion(), SpuriousBlob(classes=3)]
CLASSES = [ClassSwap(classes=3), ClassMerge(classes=3)]


def name_of(noise: Any) -> str:
    return type(noise).__name__


# Training from Python


def module_of(noise_level: float | str = 0.5, **options: Any) -> CoSegModule:
    torch.manual_seed(1)
    return CoSegModule(TinyNetwork(), TinyNetwork(), noise_level=noise_level, **options)


def trainer_of(tmp_path: Path | str, **options: Any) -> pl.Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "default_root_dir": tmp_path,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(**(defaults | options))


def data_of(tmp_path: Path, size: int = 11, **options: Any) -> CoSegDataModule:
    return CoSegDataModule(
        Squares(size),
        Squares(4, name="v"),
        Squares(5, name="t"),
        image_size=32,
        in_channels=1,
        batch_size=4,
        noise=BoundaryNoise(8, sign="dilate"),
        noise_level=0.3,
        noise_folder=tmp_path / "noise",
        **options,
    )


class Gradients(pl.Callback):
    """Keeps the norm of each peer's gradients after every step."""

    def __init__(self) -> None:
        self.norms = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: CoSegModule, *_: Any) -> None:
        nets = pl_module.net_a, pl_module.net_b
        self.norms.append([float(nn.utils.get_total_norm(grads(net))) for net in nets])


class CountedFits(pl.Callback):
    """Counts the fits that it was called in."""

    fits = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        CountedFits.fits += 1


def grads(net: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in net.parameters()]


def run_of(
    tmp_path: Path, data: pl.LightningDataModule, noise_level: float = 0.25, **options: Any
) -> dict:
    """All stages of Co-Seg by `run_stages`, on a datamodule of somebody's own."""

    def peers() -> CoSegModule:
        nets = TinyNetwork(width=8), TinyNetwork(width=8)
        return CoSegModule(*nets, lr=0.03, noise_level=noise_level)

    def network() -> SegmentationModule:
        return SegmentationModule(TinyNetwork(width=8), lr=0.03)

    trainer = partial(
        pl.Trainer,
        max_epochs=8,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    options = {"trainer": trainer, "peers": peers, "network": network} | options
    return run_stages(data, tmp_path / "run", **options)


# A method of somebody's own


class LastFirst(CorruptionRanking):
    """Ranks by the place in the dataset."""

    def scores(self, evidence, ids, dataset):
        return np.arange(len(ids), dtype=float)


class Everything(LabelCorrection):
    """Labels every pixel as foreground."""

    def vote(self, peer_a, peer_b, label, confidence, ignore_index):
        return label * 0 + 1


def second_look(run, outcome):
    """A stage of one's own: a network for two epochs, on the labels as they are then."""
    run.train_network("second_look", max_epochs=2)
    summary = {**outcome.summary, "second_look": {"epochs": 2}}
    return replace(outcome, last_stage="second_look", is_pair=False, summary=summary)


MINE = Method("mine", (robust_training, second_look), ranking=LastFirst, correction=Everything)


# Runs of the app

SHORT = [
    "rehearse=false",
    "keep_checkpoints=true",
    "data.image_size=32",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "+trainer.enable_progress_bar=false",
]
TINY = [
    "model=custom",
    "model._target_=support.TinyNetwork",
    "+model.in_channels=${data.in_channels}",
    "+model.classes=${data.classes}",
]
CLASSIC = ["model=unet_classic", "model.base_channels=4"]
SMALL = [*TINY, *SHORT]
PHANTOM = [
    "data.source.train=11",
    "data.source.val=2",
    "data.source.test=5",
    "data.source.side=48",
]
# A run that corrects labels, for tests that kill and resume it. Its network is the smallest.
SETTINGS = [
    *SMALL,
    "+model.width=16",
    *PHANTOM,
    "noise=type2",
    "nol=0.3",
    "trainer.max_epochs=4",
    "++method.confidence=0",  # with the default, two epochs teach too little for any correction
    "optimizer.lr=0.2",
    "data.batch_size=4",
]


def composed(*overrides: str) -> DictConfig:
    return deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def start(
    name: str, *arguments: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in an interpreter of its own, as a user does, which takes ten seconds."""
    return subprocess.run(
        [sys.executable, "-m", f"coseg_lightning.{name}", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def command(
    name: str, *arguments: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a forked process: like `start`, without the seconds of imports.

    All modules are imported already, and what a fixture patched stays so: what depends on that is
    tested by `start`.
    """
    with tempfile.TemporaryDirectory() as folder:
        status = ended(forked_command(Path(folder), name, *arguments, cwd=cwd, **environment))
        output = [(Path(folder) / stream).read_text() for stream in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, status, *output)


def forked_command(
    folder: Path, name: str, *arguments: object, cwd: Path = ROOT, **environment: str
) -> int:
    """Start a command in a forked process, which writes its output into files in a folder."""

    def body() -> None:
        for number, stream in ((1, "stdout"), (2, "stderr")):
            file = (folder / stream).open("w")
            os.dup2(file.fileno(), number)
            setattr(sys, stream, file)
        sys.argv = ["", *map(str, arguments)]
        sys.path.insert(0, str(cwd))
        os.environ.update({"PYTHONPATH": PYTHONPATH, **environment})
        os.chdir(cwd)
        status = _status_of(f"coseg_lightning.{name}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    return forked(body)


def _status_of(module: str) -> int:
    """Run a module like `python -m`, and return its exit status."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# The files of a run


def rows_of(path: Path) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def results(folder: Path) -> tuple[dict, dict[Path, str]]:
    """What a resumed run must reproduce to the bit: metrics, ranking, masks and weights."""
    summary = json.loads((folder / "summary.json").read_text())
    numbers = {name: summary[name] for name in ("test", "ranking", "correction")}
    files = {
        path.relative_to(folder): digest
        for path, digest in hashes(folder).items()
        if path.relative_to(folder).parts[0] in ("scores.csv", "labels", "noise", "model")
    }
    return numbers, files


# Runs in forked processes, which can be killed at any event


def forked(body: Callable[[], object]) -> int:
    """Run a function in a forked process, which saves its imports, and return the process id."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)  # `ended` may kill it with all that it started
        torch.set_num_threads(1)  # makes the fork's own thread pool, before threads race for it
        null, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            body()
        except BaseException:
            os.write(stderr, traceback.format_exc().encode())  # pytest shows it if the test fails
            os._exit(1)
        os._exit(0)
    return pid


def in_a_process(body: Callable[[], object]) -> int:
    """Return the exit status of a forked process, negative if it was killed."""
    return ended(forked(body))


def ended(pid: int, timeout: float = 300) -> int:
    """Wait for a forked process; kill it, and all that it started, after some seconds.

    Returns:
        The exit status, negative if the process was killed.
    """
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise TimeoutError(f"The process {pid} did not end within {timeout:g} seconds.")
    except BaseException:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def counting(at: int | None = None, log: Path | None = None) -> None:
    """Count this process's events, and kill it at one of them.

    An event is the moment before or after a file is moved into place, or before a training step.
    """
    count = 0

    def event(name: str) -> None:
        nonlocal count
        count += 1
        if log is not None:
            with log.open("a") as file:
                file.write(f"{name}\n")
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, step = Path.replace, torch.optim.Adam.step

    def replacing(self: Path, target: Path) -> Path:
        event(f"before {Path(target).name} is in place")
        moved = replace(self, target)
        event(f"after {Path(target).name} is in place")
        return moved

    def stepping(self: torch.optim.Adam, *args: Any, **options: Any) -> Any:
        event("before a step")
        return step(self, *args, **options)

    Path.replace, torch.optim.Adam.step = replacing, stepping


def one_run(folder: Path, *more: str, at: int | None = None, log: Path | None = None) -> int:
    """Run or resume `SETTINGS` in a forked process, and return its exit status."""
    cfg = composed(*SETTINGS, *more)
    cfg.resume = str(folder)

    def body() -> None:
        counting(at, log)
        run(cfg, folder)

    return in_a_process(body)
