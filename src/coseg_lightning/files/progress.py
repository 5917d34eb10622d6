"""Progress bars, which are shown only in a terminal."""

from collections.abc import Iterable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm import tqdm


def is_first_process() -> bool:
    """Whether this is a run's first process. All processes would show the same messages."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def progress(
    items: Iterable[Any] | None = None,
    title: str = "",
    *,
    total: int | None = None,
    shown: bool | None = None,
) -> Any:
    """Return a tqdm bar. It appears after a second, and vanishes at its end.

    It is not shown if the output is not a terminal.

    Args:
        items: The items to iterate over. Without them, call `update`.
        title: The text before the bar.
        total: The number of items, if `items` has no length.
        shown: Whether this process shows the bar; by default only the first one does.
    """
    shown = is_first_process() if shown is None else shown
    disable = None if shown else True  # with None, tqdm checks for a terminal
    return tqdm(items, desc=title, total=total, delay=1, leave=False, disable=disable)
