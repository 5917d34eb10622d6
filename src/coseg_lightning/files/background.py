"""A writer that saves files in background threads while the caller computes the next ones."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

MAX_PENDING = 8  # each pending job holds a mask in memory, which may be large


@contextmanager
def background_writer() -> Iterator[Callable[..., None]]:
    """Yield `submit(function, *arguments)`, which runs the function in a background thread.

    If too many jobs are pending, `submit` waits for the oldest one. An exception in a job is raised
    again in the calling thread.
    """
    # In a forked process, the first thread that uses torch rebuilds torch's thread pool. A second
    # thread finds none meanwhile and fails. So the pool is rebuilt here, before any thread starts.
    torch.set_num_threads(torch.get_num_threads())
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=2) as threads:

        def submit(function: Callable[..., Any], *arguments: Any) -> None:
            pending.append(threads.submit(function, *arguments))
            if len(pending) > MAX_PENDING:
                pending.popleft().result()

        yield submit
        for future in pending:
            future.result()
