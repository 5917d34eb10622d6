"""Fixtures of all tests: seeds, caches, datasets on disk, and where the real masks lie."""

import ctypes
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

# Before torch is imported: two processes of two threads are ten times slower on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Before OpenCV is imported: its threads do not survive a fork, which would wait for them.
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

import numpy as np
import pytest
from PIL import Image

# Fixtures import torch and the package, since the process that only hands out tests needs neither.
if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

# A continuous-integration machine of 16 GB runs two of these, and the processes that they start.
MAX_MEMORY = 3 * 1024**3
MUCH_MEMORY = 30 * 1024**2  # added by one test; collecting after every test would take minutes
BEFORE = pytest.StashKey[int]()  # the memory of the process before a test
PEAKS: list[int] = []  # the most that each test of this process took


def memory(entry: str) -> int | None:
    """Read this process's `VmRSS`, or its peak `VmHWM`, in bytes; None where it is unknown."""
    status = Path("/proc/self/status")  # not getrusage, whose peak may be the parent process's
    if not status.is_file():
        return None
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(values[entry].split()[0]) if entry in values else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--memory", type=int, default=0, metavar="N", help="show the N tests that add most memory"
    )


def release_memory() -> None:
    """Free trainers and networks, which refer to each other, and return their memory.

    Without the second step glibc keeps what was freed: the networks of some hundred tests add up
    to gigabytes.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have most slow tests, so that no process waits at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections, and unwritten in the forks of tests."""
    gc.collect()
    gc.freeze()


def forget_peak() -> None:
    """Start `VmHWM` anew, so that it is the peak of one test."""
    with suppress(OSError):  # another system has no such file
        Path("/proc/self/clear_refs").write_text("5")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    forget_peak()
    item.stash[BEFORE] = memory("VmRSS") or 0
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the teardown of all fixtures
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    result = yield
    if (memory("VmRSS") or 0) - item.stash[BEFORE] > MUCH_MEMORY:
        release_memory()
    after = memory("VmRSS") or 0
    PEAKS.append(memory("VmHWM") or 0)
    item.user_properties.append(("memory", (PEAKS[-1], item.stash[BEFORE], after)))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    wanted = terminalreporter.config.getoption("--memory")
    if not wanted:
        return
    used = [
        (dict(report.user_properties)["memory"], report.nodeid)
        for report in terminalreporter.getreports("")
        if report.when == "teardown"
    ]
    for title, size in (
        ("most memory while a test ran", lambda peak, before, after: peak),
        ("most memory left by a test", lambda peak, before, after: after - before),
    ):
        terminalreporter.section(f"{title}: peak, before, after")
        for sizes, test in sorted(used, key=lambda one: size(*one[0]), reverse=True)[:wanted]:
            terminalreporter.write_line(
                " ".join(f"{value / 1e6:6.0f} MB" for value in sizes) + f"  {test}"
            )


@pytest.fixture(autouse=True, scope="session")
def _limited_memory() -> Iterator[None]:
    """Fail if this process took more than `MAX_MEMORY`; forked children are not counted."""
    yield
    last = memory("VmHWM")  # of the test that ends with this
    if last is not None:
        peak = max([*PEAKS, last])
        assert peak < MAX_MEMORY, (
            f"this test process took {peak / 1e9:.1f} GB, and may take {MAX_MEMORY / 1e9:.1f} GB: "
            "see which test it was with --memory=20"
        )


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of file inspections among the tests' files, for started processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _collected_garbage() -> Iterator[None]:
    """Free what a file's tests leave, so that forks of the next file's tests do not copy it."""
    yield
    release_memory()


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every epoch, however short, so that a resumed test starts from the same one."""
    monkeypatch.setattr("coseg_lightning.callbacks.stage_checkpoint.MAX_SAVE_SHARE", 1e12)


@pytest.fixture(autouse=True)
def _not_rehearsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out rehearsals, which take as long as the short runs of most tests.

    Tests of rehearsals are marked as `rehearsed`.
    """
    if request.node.get_closest_marker("rehearsed") is None:
        monkeypatch.setattr("coseg_lightning.methods.rehearsal.rehearse", lambda *_: None)


@pytest.fixture(autouse=True)
def _not_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of runs empty, which saves a third of a short run's time.

    The figures are made all the same, and written to the same files. Tests that look at them, or
    that may make a figure that cannot be drawn, are marked as `drawn`.
    """

    from matplotlib.figure import Figure

    def savefig(self: "Figure", file: BinaryIO | Path, **options: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"not drawn")
        else:
            file.write(b"not drawn")

    if request.node.get_closest_marker("drawn") is None:
        monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def quick_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the random weights of VGG's classifier, which smp drops: seconds for nothing."""
    import torch

    reset, normal = torch.nn.Linear.reset_parameters, torch.nn.init.normal_

    def is_large(weight: "torch.Tensor") -> bool:
        return weight.numel() > 10**6

    monkeypatch.setattr(
        torch.nn.Linear,
        "reset_parameters",
        lambda self: None if is_large(self.weight) else reset(self),
    )
    monkeypatch.setattr(
        torch.nn.init,
        "normal_",
        lambda tensor, *args, **options: (
            tensor if is_large(tensor) else normal(tensor, *args, **options)
        ),
    )


@pytest.fixture(scope="session")
def real_data() -> Path:
    from support import ROOT

    root = Path(os.environ.get("COSEG_DATA", ROOT.parent / "shared" / "data"))
    if not (root / "bubil" / "images").is_dir():
        pytest.skip("the real masks are not here: set COSEG_DATA to their folder")
    return root


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder dataset of squares: images/, masks/, and masks_rough/ grown by three."""

    from support import Squares

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
