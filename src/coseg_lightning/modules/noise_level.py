"""The noise level that the peers use, either given or estimated during training."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.evidence import Evidence
from coseg_lightning.ranking.noise_level import FALLBACK, NoiseLevelEstimate, estimate_noise_level


class NoiseLevelEstimator(Callback):
    """A callback that estimates the noise level, for `CoSegModule(noise_level="auto")`."""


class NoiseLevel:
    """NoL, the share of training samples with noisy labels.

    Args:
        noise_level: The level, `0 <= NoL < 1`, or `auto` to estimate it.

    Attributes:
        is_estimated: Whether the level is `auto`.
        estimate: The last estimate, if there is one.

    Raises:
        InputError: If the level is neither.
    """

    def __init__(self, noise_level: float | Literal["auto"]) -> None:
        is_level = isinstance(noise_level, int | float) and 0 <= noise_level < 1
        if noise_level != "auto" and not is_level:
            raise InputError(
                f"noise_level={noise_level} must be auto, or at least 0 and less than 1."
            )
        self.is_estimated = noise_level == "auto"
        self._given = FALLBACK if noise_level == "auto" else noise_level
        self.estimate: NoiseLevelEstimate | None = None

    @property
    def level(self) -> float:
        """The level to use; for `auto`, a cautious guess until there is an estimate."""
        return self._given if self.estimate is None else self.estimate.noise_level

    @property
    def known(self) -> bool:
        """Whether the level was given, or could be estimated."""
        return self.estimate.separable if self.estimate is not None else not self.is_estimated

    def begin_fit(self, callbacks: Sequence[Callback], *, goes_on: bool) -> None:
        """Forget the estimate of an earlier training, whose samples may have been others.

        Also check that a level to be estimated has its estimator. The estimate in a checkpoint is
        loaded later.

        Args:
            callbacks: The trainer's callbacks.
            goes_on: Whether the same trainer goes on where its earlier fit ended.

        Raises:
            InputError: If it has none.
        """
        estimators = [c for c in callbacks if isinstance(c, NoiseLevelEstimator)]
        if self.is_estimated and not estimators:
            raise InputError(
                'noise_level="auto" needs the callback NoiseLevelEstimation; add it to the '
                "trainer's callbacks, or give the level."
            )
        if not goes_on:
            self.estimate = None

    def set_noise_level_from(self, peer_a: Evidence, peer_b: Evidence) -> None:
        """Estimate the level from both peers' evidence on the labels."""
        self.estimate = estimate_noise_level(peer_a, peer_b)
        rank_zero_info(f"Noise level: {self.estimate}")

    def state_dict(self) -> dict[str, Any] | None:
        """Return the estimate as plain values for a checkpoint."""
        return None if self.estimate is None else asdict(self.estimate)

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore the estimate from a checkpoint; a given level is not changed."""
        if state is not None and self.is_estimated:
            self.estimate = NoiseLevelEstimate(**state)
