"""Undoes what a trial of somebody's step changes in a module."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def untouched(module: nn.Module, besides: Iterable[nn.Module]) -> Iterator[None]:
    """Restore a module after a `with` block: attributes, counts, lists, buffers and metrics.

    Args:
        module: The module.
        besides: Parts that the block does not change, such as networks that it does not call.
    """
    left_out = {id(part) for one in besides for part in one.modules()}
    parts = [part for part in module.modules() if id(part) not in left_out]
    before = [(part, dict(vars(part))) for part in parts]
    kept = [value for _, attributes in before for value in attributes.values()]
    kept += [buffer for part in parts for buffer in part.buffers(recurse=False)]
    contents = [(value, _content(value)) for value in kept]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)
        for value, content in contents:
            _restore(value, content)


def _content(value: Any) -> Any:
    """Copy what a container or tensor holds; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if isinstance(value, list | dict | set | deque) else None


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        # The states of a metric that was reset in a validation belong to its mode.
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            value.copy_(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, deque):
        value.clear()
        value.extend(content)
    elif content is not None:
        value.clear()
        value.update(content)
