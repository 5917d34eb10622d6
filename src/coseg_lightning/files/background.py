"""Work in a thread beside what goes on."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

MOST_WAITING = 8  # masks to be written, which may be large


@contextmanager
def background_writer() -> Iterator[Callable[..., None]]:
    """Gives `do(function, *arguments)`, which is done in a thread, beside what goes on.

    If too much is waiting, `do` waits too. What was raised there is raised here.
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=2) as threads:

        def do(function: Callable[..., Any], *arguments: Any) -> None:
            waiting.append(threads.submit(function, *arguments))
            if len(waiting) > MOST_WAITING:
                waiting.popleft().result()

        yield do
        for future in waiting:
            future.result()
