"""Gathers values from all processes, and lets the first of them end first."""

import atexit
import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed


def gather_rows(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Gather the rows of all processes on every process, sorted; counts may differ."""
    return sorted(row for part in gather_objects(rows) for row in part)


def gather_objects(part: Any) -> list[Any]:
    """Gather one object from each process on every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, part)
    return gathered


LONGEST_WAIT = 10.0  # seconds until Lightning may end a first process that hears of nothing


def first_process_ends_first() -> Callable[[], None]:
    """Return what a process that Lightning started calls when it fails.

    When a process that it started has ended, Lightning kills the first one within five seconds,
    which then may not have told yet how to go on. So the failed one, once it has told its own
    error, hangs up, which is an error of the first one too, and waits until that has ended.
    """
    first = os.getppid()
    is_started = os.environ.get("LOCAL_RANK", "0") != "0"

    def hang_up_and_wait() -> None:
        # Only gloo is sure to hang up at once.
        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
            end = time.monotonic() + LONGEST_WAIT
            while os.getppid() == first and time.monotonic() < end:
                time.sleep(0.1)

    def fail() -> None:
        # The processes that torchrun started have no first one to wait for.
        is_alone = not torch.distributed.is_available()
        if is_started and not is_alone and not torch.distributed.is_torchelastic_launched():
            atexit.register(hang_up_and_wait)

    return fail
