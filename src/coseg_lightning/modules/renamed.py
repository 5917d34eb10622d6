"""Attributes of version 0.1 under their old names, which warn, and go in version 0.3."""

import warnings
from operator import attrgetter
from typing import Any


def renamed(before: str, now: str) -> property:
    """A property that still gives what an attribute is called now.

    Args:
        before: The old name.
        now: The new one, which may be one of an attribute, `selection.exclude`.
    """

    def get(owner: Any) -> Any:
        warnings.warn(
            f"{type(owner).__name__}.{before} is {now} now; the old name goes in version 0.3.",
            FutureWarning,
            stacklevel=2,
        )
        return attrgetter(now)(owner)

    return property(get)


class RenamedOfPeers:
    """Those of `CoSegModule`."""

    noise_estimate = renamed("noise_estimate", "noise.estimate")
    noise_known = renamed("noise_known", "noise.known")
    doubt = renamed("doubt", "selection.exclude")


class RenamedOfCorrection:
    """Those of `LabelCorrection`."""

    contradiction = renamed("contradiction", "label_peer_ratio")
    left_alone = renamed("left_alone", "correction_skipped")
    kept_vary_more = renamed("kept_vary_more", "wrong_half_suspected")
