"""Estimating the noise level NoL when nobody knows it.

The corruption scores of a dataset with noisy labels are a mixture: those of good labels, and those
of bad ones. A mixture of two normal distributions is fitted to them (as Arazo et al. 2019,
arXiv 1904.11238, fit a mixture to losses); the upper one's share is the noise level, if the two can
be told apart at all. On images that differ a lot they often cannot, and each score then tells
another share: so several are asked, and only what they agree on is believed. How far that holds
was measured: `benchmarks/ranking.py levels`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.ranking.evidence import Evidence
from coseg_lightning.ranking.scores import mask_scores
from coseg_lightning.seeding import derive_rng

Floats = NDArray[np.float64]

FALLBACK = 0.2
RESAMPLES = 60
SAMPLES = 30  # fewer tell nothing of a share
ENOUGH = 20_000  # of more, so many are drawn: they tell a share to half a percent
AGREED = 0.25  # how far the scores' shares, and the interval's ends, may lie apart
LEARNED = 0.65  # median soft Dice of labels to predictions, from which peers know their task


@dataclass(frozen=True)
class NoiseLevelEstimate:
    """An estimated noise level.

    Args:
        noise_level: What to use.
        interval: 90 % of the estimates on resampled scores lie in it; None if not separable.
        separable: Whether good and bad labels can be told apart by their scores; if not,
            `noise_level` is a cautious guess.
        shares: What each score says: the share of the upper of two normal distributions.
        distance: Median Ashman's D of the two: the distance of their means in pooled deviations.
        prediction_dice: Median soft Dice of the labels to the predictions.
    """

    noise_level: float
    interval: tuple[float, float] | None
    separable: bool
    shares: dict[str, float]
    distance: float
    prediction_dice: float

    def __str__(self) -> str:
        if self.interval is not None:
            low, high = self.interval
            return f"estimated {self.noise_level:.2f} (90 % interval {low:.2f} to {high:.2f})."
        if not self.shares:
            return (
                f"cannot tell, since there are too few masks (less than {SAMPLES} with anything in "
                f"them); using {self.noise_level:.2f}; give the level if you know it."
            )
        if self.prediction_dice < LEARNED:
            return (
                "cannot tell, since most labels are far from the predictions (median soft Dice "
                f"{self.prediction_dice:.2f}); using {self.noise_level:.2f}; train for more "
                "epochs, or give the level."
            )
        told = ", ".join(f"{share:.2f}" for share in sorted(self.shares.values()))
        return (
            f"cannot tell, since good and bad labels score too much alike (different scores say "
            f"{told}); using {self.noise_level:.2f}; give the level if you know it."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a file, and the sentence."""
        interval = None if self.interval is None else list(self.interval)
        return {**asdict(self), "interval": interval, "sentence": str(self)}


def estimate_noise_level(peer_a: Evidence, peer_b: Evidence) -> NoiseLevelEstimate:
    """Estimate the noise level from what two peers say of the labels.

    The peers must have learned from all samples alike: once they select, their scores tell what
    was selected.
    """
    judged = (peer_a.concerns | peer_b.concerns).any(axis=1)
    if judged.sum() < SAMPLES:
        return NoiseLevelEstimate(FALLBACK, None, False, {}, 0.0, 0.0)
    # Where there is nothing in label and prediction, there is nothing wrong either.
    scores = {name: values[judged] for name, values in judgements(peer_a, peer_b).items()}
    rng, resampled = derive_rng(0, "noise level"), []
    if judged.sum() > ENOUGH:
        drawn = rng.choice(int(judged.sum()), ENOUGH, replace=False)
        scores = {name: values[drawn] for name, values in scores.items()}
    fits = {name: fit_mixture(values) for name, values in scores.items()}
    shares = {name: float(fit.weights[1] * judged.mean()) for name, fit in fits.items()}
    share = float(np.median(list(shares.values())))
    distance = float(np.median([fit.distance for fit in fits.values()]))
    dice = float(np.median((peer_a.dice + peer_b.dice)[peer_a.concerns | peer_b.concerns]) / 2)

    size = min(int(judged.sum()), ENOUGH)
    for _ in range(RESAMPLES):
        chosen = rng.integers(size, size=size)
        again = [fit_mixture(scores[name][chosen], start=fits[name]) for name in scores]
        resampled.append(np.median([fit.weights[1] for fit in again]) * judged.mean())
    low, high = map(float, np.quantile(resampled, (0.05, 0.95)))

    agreed = max(max(shares.values()) - min(shares.values()), high - low) <= AGREED
    separable = bool(agreed and distance > 2 and dice >= LEARNED)
    return NoiseLevelEstimate(
        noise_level=min(share, 0.95) if separable else FALLBACK,
        interval=(low, high) if separable else None,
        separable=separable,
        shares=shares,
        distance=distance,
        prediction_dice=dice,
    )


def judgements(peer_a: Evidence, peer_b: Evidence) -> dict[str, Floats]:
    """Scores of different kinds, `(N,)` each, the mean of both peers."""
    names = ("relative", "excess", "per_boundary", "directed")
    scores = {n: (mask_scores(peer_a, n) + mask_scores(peer_b, n)) / 2 for n in names}
    scores["per_boundary"] = np.log(scores["per_boundary"].clip(1e-6))
    return scores


@dataclass(frozen=True)
class Mixture:
    """Two normal distributions, the lower first.

    Shape:
        weights, means and deviations `(2,)`.
    """

    weights: Floats
    means: Floats
    deviations: Floats
    log_likelihood: float

    @property
    def distance(self) -> float:
        """Ashman's D: above 2, the two are clearly apart (Ashman, Bird and Zepf 1994)."""
        pooled = np.sqrt(np.square(self.deviations).mean())
        return float((self.means[1] - self.means[0]) / max(pooled, 1e-12))


def fit_mixture(values: Floats, start: Mixture | None = None) -> Mixture:
    """Fit two normal distributions by expectation maximisation, from one start or the best of many.

    Args:
        values: `(N,)` numbers.
        start: A fit to begin with; default several cuts of the values into two parts.
    """
    if start is not None:
        return _maximise(values, _upper(values, start), steps=30)
    cuts = np.quantile(values, (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9))
    fits = [_maximise(values, 0.05 + 0.9 * (values > cut)) for cut in cuts]
    return max(fits, key=lambda fit: fit.log_likelihood)


def _log_densities(values: Floats, fit: Mixture) -> Floats:
    """`(N, 2)` log of weight times density."""
    z = (values[:, None] - fit.means) / fit.deviations
    log_p: Floats = np.log(fit.weights / fit.deviations) - z**2 / 2 - np.log(2 * np.pi) / 2
    return log_p


def _upper(values: Floats, fit: Mixture) -> Floats:
    """The probability of each value to come from the upper distribution."""
    log_p = _log_densities(values, fit)
    upper: Floats = np.exp(log_p[:, 1] - np.logaddexp(log_p[:, 0], log_p[:, 1]))
    return upper


def _maximise(values: Floats, upper: Floats, steps: int = 300) -> Mixture:
    floor = 0.05 * max(float(values.std()), 1e-9)  # no distribution of a single value
    likelihood = -np.inf
    for _ in range(steps):
        shares = np.stack([1 - upper, upper], axis=1).clip(1e-9)
        total = shares.sum(axis=0)
        means = (shares * values[:, None]).sum(axis=0) / total
        spread = (shares * np.square(values[:, None] - means)).sum(axis=0) / total
        fit = Mixture(total / total.sum(), means, np.sqrt(spread + floor**2), 0.0)
        log_p = _log_densities(values, fit)
        either = np.logaddexp(log_p[:, 0], log_p[:, 1])
        upper = np.exp(log_p[:, 1] - either)
        new = float(either.sum())
        if new - likelihood < 1e-7 * len(values):
            break
        likelihood = new
    order = np.argsort(means)
    return Mixture(fit.weights[order], means[order], fit.deviations[order], new)
