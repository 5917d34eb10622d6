"""A run that is killed at any moment and resumed ends as one that never was."""

import json
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from test_callbacks import hashes
from test_run import PHANTOM, SMALL, composed

from coseg_lightning.run import run

SETTINGS = [
    *SMALL,
    *PHANTOM,
    "noise=type2",
    "nol=0.3",
    "trainer.max_epochs=4",
    "method.confidence=0",  # or else two epochs teach too little to correct anything
    "optimizer.lr=0.01",
    "data.batch_size=4",
]


def results(folder):
    """What must be the same: metrics, ranking and masks, to the bit."""
    summary = json.loads((folder / "summary.json").read_text())
    kept = {name: summary[name] for name in ("test", "ranking", "correction")}
    wanted = ("scores.csv", "labels", "noise", "model")
    files = {
        path.relative_to(folder): digest
        for path, digest in hashes(folder).items()
        if path.relative_to(folder).parts[0] in wanted
    }
    return kept, files


def forked(body):
    """Run in a forked process, which spares the imports; its process id."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            body()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def in_a_process(body):
    """A forked process's exit status, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(body), 0)[1])


def counting(at=None, log=None):
    """Kill this process at an event: before or after a file is moved into place, or a step."""
    count = 0

    def event(name):
        nonlocal count
        count += 1
        if log is not None:
            with log.open("a") as file:
                file.write(f"{name}\n")
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, step = Path.replace, torch.optim.Adam.step

    def replacing(self, target):
        event(f"before {Path(target).name} is in place")
        moved = replace(self, target)
        event(f"after {Path(target).name} is in place")
        return moved

    def stepping(self, *args, **options):
        event("before a step")
        return step(self, *args, **options)

    Path.replace, torch.optim.Adam.step = replacing, stepping


def one_run(folder, *more, at=None, log=None):
    def body():
        counting(at, log)
        run(composed(*SETTINGS, *more, f"resume={folder}"), folder)

    return in_a_process(body)


@pytest.mark.parametrize(("workers", "points"), [(0, 24), (2, 4)])
def test_killed_anywhere_and_resumed_it_ends_the_same(tmp_path, workers, points):
    whole, log, options = tmp_path / "whole", tmp_path / "events", f"data.num_workers={workers}"
    assert one_run(whole, options, log=log) == 0
    expected = results(whole)
    events = log.read_text().splitlines()
    for at in spread(events, points):
        folder = tmp_path / f"{at}"
        assert one_run(folder, options, at=at) == -signal.SIGKILL, events[at - 1]
        assert one_run(folder, options) == 0, events[at - 1]
        assert results(folder) == expected, events[at - 1]
        print(f"{at:4} of {len(events)}: killed {events[at - 1]}: the same")


def spread(events, points):
    """Numbers of events, from the first to the last."""
    return [1 + round(n * (len(events) - 1) / (points - 1)) for n in range(points)]


def two_processes(folder, at=None, log=None):
    """The same with DDP; what starts the processes stops the others when one is killed."""

    def body(rank):
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_PORT=port)
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        rank_zero_only.rank = rank  # which Lightning reads when it is imported
        if rank == 0:
            counting(at, log)
        options = ["trainer=ddp", "trainer.devices=2", "data.batch_size=2"]
        options += ["++trainer.enable_progress_bar=true"]  # it reduces metrics, on process 0 first
        run(composed(*SETTINGS, *options, f"resume={folder}"), folder)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = [forked(partial(body, rank)) for rank in (0, 1)]
    status = os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])
    if status:
        os.kill(pids[1], signal.SIGKILL)
    other = os.waitstatus_to_exitcode(os.waitpid(pids[1], 0)[1])
    return status or other


def test_two_processes_killed_anywhere_and_resumed_end_the_same(tmp_path):
    whole, log = tmp_path / "whole", tmp_path / "events"
    assert two_processes(whole, log=log) == 0
    expected = results(whole)
    events = log.read_text().splitlines()
    for at in spread(events, 7)[1:-1]:
        folder = tmp_path / f"{at}"
        assert two_processes(folder, at=at) == -signal.SIGKILL, events[at - 1]
        assert two_processes(folder) == 0, events[at - 1]
        assert results(folder) == expected, events[at - 1]
        print(f"{at:4} of {len(events)}: killed {events[at - 1]}: the same")
