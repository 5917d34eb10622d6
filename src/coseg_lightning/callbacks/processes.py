"""Gathers values from all processes."""

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
