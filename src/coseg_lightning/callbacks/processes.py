"""What several processes have, on all of them."""

from typing import Any

import torch
import torch.distributed


def gather_rows(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows of all processes, on all processes, however many each has; sorted."""
    return sorted(row for part in gather_objects(rows) for row in part)


def gather_objects(part: Any) -> list[Any]:
    """What each process has, on all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [part]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, part)
    return gathered
