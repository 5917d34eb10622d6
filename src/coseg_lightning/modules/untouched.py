"""Undoes what a trial of somebody's step changes in a module."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from coseg_lightning.modules import compat


@contextmanager
def untouched(module: nn.Module, besides: Iterable[nn.Module]) -> Iterator[None]:
    """Restore a module after a `with` block, and what it holds directly.

    These are its attributes and those of its parts, such as counts and the states of metrics, the
    items of its lists and dicts, and its buffers; not what lies deeper, as in a list of lists.

    Args:
        module: The module.
        besides: Parts that the block does not change, such as networks that it does not call.
    """
    left_out = {id(part) for one in besides for part in one.modules()}
    parts = [part for part in module.modules() if id(part) not in left_out]
    before = [(part, dict(vars(part))) for part in parts]
    values = [value for _, attributes in before for value in attributes.values()]
    values += [buffer for part in parts for buffer in part.buffers(recurse=False)]
    tensors = [_Kept.of(v) for v in values if isinstance(v, Tensor) and not is_lazy(v)]
    lists = [(v, list(v)) for v in values if isinstance(v, list | deque)]
    others = [(v, dict(v) if isinstance(v, dict) else set(v)) for v in values if _has_items(v)]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)
        for tensor in tensors:
            tensor.restore()
        for value, items in lists:
            if not _are_the_same(value, items):
                value.clear()
                value.extend(items)
        for value, content in others:
            if not _hold_the_same(value, content):
                value.clear()
                value.update(content)


class _Kept(NamedTuple):
    """A tensor and what it held.

    Attributes:
        tensor: The tensor.
        content: A copy of its values.
        version: Its number of changes, None if it has no count.
        place: Where its values lie.
    """

    tensor: Tensor
    content: Tensor
    version: int | None
    place: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Kept":
        content = tensor.detach().clone()
        return cls(tensor, content, compat.version_of(tensor), _place_of(tensor))

    def restore(self) -> None:
        tensor, content = self.tensor, self.content
        # The states of a metric that was reset in a validation belong to its mode.
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.shape != content.shape or _place_of(tensor) != self.place:
                tensor.set_(content)  # type: ignore[call-overload]
            elif self.version is None or compat.version_of(tensor) != self.version:
                tensor.copy_(content)


def _place_of(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def _has_items(value: Any) -> bool:
    return isinstance(value, dict | set)


def _are_the_same(value: Iterable[Any], items: list[Any]) -> bool:
    found = list(value)
    return len(found) == len(items) and all(a is b for a, b in zip(found, items, strict=True))


def _hold_the_same(value: Any, content: Any) -> bool:
    if isinstance(value, set):
        return bool(value == content)
    return _are_the_same(value, list(content)) and _are_the_same(
        value.values(), list(content.values())
    )
