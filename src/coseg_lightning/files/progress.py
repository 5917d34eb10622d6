"""Progress bars that only somebody who watches sees."""

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
    """Return tqdm's bar of what takes a second or more, which vanishes at its end.

    There is none where the output is no terminal.

    Args:
        items: What is iterated over; without it, call `update`.
        title: The text before the bar.
        total: The number of items, if they do not know it.
        shown: Whether this process shows it; by default the first one does.
    """
    shown = is_first_process() if shown is None else shown
    disable = None if shown else True  # None: as tqdm decides, by the terminal
    return tqdm(items, desc=title, total=total, delay=1, leave=False, disable=disable)
