"""Processes that work on the samples of a dataset, with results in order."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import cv2

from coseg_lightning.errors import InputError
from coseg_lightning.files.progress import progress

LEAST_PER_PROCESS = 50  # samples; fewer are not worth the start of a process


def process_count(samples: int) -> int:
    """Return how many processes are worth their start: at most one per core."""
    return min(_cores(), -(-samples // LEAST_PER_PROCESS))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # on Linux; it respects a container's limits
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def workers(worker: Any, processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a function `work(method, indices, title)`, which calls a method for each index.

    Its results come in order, whatever the number of processes. Each process has its own copy of
    the worker.

    Args:
        worker: An object that can be pickled.
        processes: Number of processes; with 1 this process does the work.

    Raises:
        InputError: If a process dies.
    """
    if processes <= 1:
        yield lambda method, indices, title: iter(
            progress(map(getattr(worker, method), indices), title, total=len(indices))
        )
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes share the cores, and threads do not survive a fork
    try:
        with ProcessPoolExecutor(
            processes, multiprocessing.get_context(), initializer=_start, initargs=(worker,)
        ) as pool:

            def work(method: str, indices: Sequence[int], title: str) -> Iterator[Any]:
                chunk = max(1, min(16, len(indices) // (4 * processes)))
                tasks = [(method, index) for index in indices]
                return iter(
                    progress(pool.map(_do, tasks, chunksize=chunk), title, total=len(tasks))
                )

            try:
                yield work
            finally:
                pool.shutdown(cancel_futures=True)  # an error would wait for all other samples
    except BrokenProcessPool as error:
        raise InputError(
            "A process that looked at masks died, probably because the memory was full; lower "
            "data.num_workers, to 1 if necessary."
        ) from error
    finally:
        cv2.setNumThreads(threads)


_worker_of_process: list[Any] = []


def _start(worker: Any) -> None:
    """Prepare a new process."""
    cv2.setNumThreads(1)
    _worker_of_process[:] = [worker]


def _do(task: tuple[str, int]) -> Any:
    method, index = task
    return getattr(_worker_of_process[0], method)(index)
