"""Estimates the noise level NoL if it is unknown.

The corruption scores of a dataset with noisy labels are a mixture of the scores of good and of bad
labels. A mixture of two normal distributions is fitted to them, as Arazo et al. (2019,
arXiv 1904.11238) fit a mixture to losses. If the two are separable, the weight of the upper
distribution is the noise level. On heterogeneous images they often are not, and the weights differ
between scores. Several scores are therefore used, and an estimate is only accepted if they agree.
The accuracy is measured by `benchmarks/told.py`, and for networks alone by `ranking.py levels`.

The fit is not left to scikit-learn's `GaussianMixture`. With the same starts, that takes 2.4 times
as long (195 against 81 ms for 1000 scores) and moves the shares by up to 0.004. It also adds 10 MB
of wheels (62 MB installed; scikit-learn 1.9).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.seeding import derive_rng

if TYPE_CHECKING:
    from coseg_lightning.ranking.evidence import Evidence

Floats = NDArray[np.float64]

FALLBACK = 0.2  # noise level used if it cannot be estimated
SCORES = ("relative", "excess", "per_boundary", "directed")
RESAMPLES = 60
MIN_SAMPLES = 30  # fewer samples do not determine a share
MAX_SAMPLES = 20_000  # drawn from larger datasets; enough to determine a share to half a percent
MAX_SPREAD = 0.25  # between the shares of different scores, and between the interval's ends
MIN_DISTANCE = 2.0  # Ashman's D above which two distributions are clearly separated
CLEAR_DISTANCE = 3.3  # the same for `joint`; clean masks alone may reach 3.1
# Levels that are equally plausible where the estimate cannot tell.
PLAUSIBLE = (0.02, 0.05, 0.1, 0.2, 0.35)
MIN_PREDICTION_DICE = 0.65  # median soft Dice of labels to predictions; below, peers are untrained


@dataclass(frozen=True)
class NoiseLevelEstimate:
    """An estimated noise level.

    Args:
        noise_level: The noise level to use.
        interval: Contains 90 % of the estimates on resampled scores; None if not separable.
        separable: Whether the scores separate good from bad labels. If not, `noise_level` is a
            cautious guess.
        shares: The estimate from each score: the share of the upper normal distribution.
        distance: Median Ashman's D of the two distributions: the distance of their means in
            pooled deviations.
        prediction_dice: Median soft Dice of the labels to the predictions, if there are any.
        reason: Why there is no estimate, unless good and bad labels merely score too much alike.
    """

    noise_level: float
    interval: tuple[float, float] | None
    separable: bool
    shares: dict[str, float]
    distance: float
    prediction_dice: float | None
    reason: str | None = None

    def __str__(self) -> str:
        if self.interval is not None:
            low, high = self.interval
            return f"estimated {self.noise_level:.2f} (90 % interval {low:.2f} to {high:.2f})."
        if self.reason is not None:
            return (
                f"cannot tell, since {self.reason}; using {self.noise_level:.2f}; give the level "
                "if you know it."
            )
        if not self.shares:
            return (
                f"cannot tell, since there are too few masks (fewer than {MIN_SAMPLES} with a "
                f"foreground); using {self.noise_level:.2f}; give the level if you know it."
            )
        if self.prediction_dice is not None and self.prediction_dice < MIN_PREDICTION_DICE:
            return (
                "cannot tell, since most labels are far from the predictions (median soft Dice "
                f"{self.prediction_dice:.2f}); using {self.noise_level:.2f}; the networks "
                "have learnt too little to judge masks: train for more epochs."
            )
        shares = ", ".join(f"{share:.2f}" for share in sorted(self.shares.values()))
        return (
            "cannot tell, since good and bad labels have too similar scores (different scores "
            f"estimate {shares}); using {self.noise_level:.2f}; give the level if you know it."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file, and the estimate as a sentence."""
        interval = None if self.interval is None else list(self.interval)
        values = {name: value for name, value in asdict(self).items() if name != "reason"}
        return {**values, "interval": interval, "sentence": str(self)}


def plausible_levels(ranking: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the noise levels that are about equally plausible after a ranking.

    Args:
        ranking: The part of a `summary.json`. A level that was given is the only plausible one.
    """
    level, estimate = ranking["noise_level"], ranking.get("estimate")
    if estimate is None:
        return PLAUSIBLE if level is None else (level,)
    interval = estimate.get("interval")
    return PLAUSIBLE if interval is None else (interval[0], level, interval[1])


def estimate_noise_level(peer_a: "Evidence", peer_b: "Evidence") -> NoiseLevelEstimate:
    """Estimate the noise level from two peers' evidence on the labels.

    The peers must have been trained on all samples equally. After a selection, the scores would
    reflect the selection.

    Args:
        peer_a: The first peer's evidence on all samples.
        peer_b: The second peer's.
    """
    # A sample that is empty in label and prediction is correct.
    judged: NDArray[np.bool_] = np.asarray((peer_a.concerns | peer_b.concerns).any(axis=1))
    if judged.sum() < MIN_SAMPLES:
        return NoiseLevelEstimate(FALLBACK, None, False, {}, 0.0, 0.0)
    dice = float(np.median((peer_a.dice + peer_b.dice)[peer_a.concerns | peer_b.concerns]) / 2)
    scores = peer_scores(peer_a, peer_b)
    clear = None if peer_a.outline is None else "joint"
    return estimate_of_scores(scores, judged, prediction_dice=dice, clear=clear)


def estimate_of_scores(
    scores: dict[str, Floats],
    judged: NDArray[np.bool_],
    *,
    prediction_dice: float | None = None,
    min_distance: float = MIN_DISTANCE,
    clear: str | None = None,
) -> NoiseLevelEstimate:
    """Estimate the noise level from several scores of the same labels.

    Args:
        scores: `(N,)` each, higher for worse labels.
        judged: `(N,)` the samples that the scores judge; all others count as correct.
        prediction_dice: Median soft Dice of the labels to the predictions, if there are any.
        min_distance: Ashman's D above which good and bad labels count as separated.
        clear: A score that must separate them by `CLEAR_DISTANCE`.
    """
    if judged.sum() < MIN_SAMPLES:
        return NoiseLevelEstimate(FALLBACK, None, False, {}, 0.0, prediction_dice)
    rng = derive_rng(0, "noise level")
    scores = {name: values[judged] for name, values in scores.items()}
    if judged.sum() > MAX_SAMPLES:
        drawn = rng.choice(int(judged.sum()), MAX_SAMPLES, replace=False)
        scores = {name: values[drawn] for name, values in scores.items()}

    fits = {name: fit_mixture(values) for name, values in scores.items()}
    shares = {name: float(fit.weights[1] * judged.mean()) for name, fit in fits.items()}
    distance = float(np.median([fit.distance for fit in fits.values()]))
    low, high = _interval(scores, fits, float(judged.mean()), rng)

    spread = max(spread_of(shares), high - low)
    is_trained = prediction_dice is None or prediction_dice >= MIN_PREDICTION_DICE
    is_clear = clear is None or fits[clear].distance > CLEAR_DISTANCE
    separable = bool(spread <= MAX_SPREAD and distance > min_distance and is_trained and is_clear)
    share = float(np.median(list(shares.values())))
    reason = None
    if not separable and is_trained and distance > min_distance and spread_of(shares) <= MAX_SPREAD:
        reason = "the outlines do not separate bad labels from good ones"
        if is_clear:
            reason = f"there are so few masks that the level stays open ({low:.2f} to {high:.2f})"
    return NoiseLevelEstimate(
        noise_level=min(share, 0.95) if separable else FALLBACK,
        interval=(low, high) if separable else None,
        separable=separable,
        shares=shares,
        distance=distance,
        prediction_dice=prediction_dice,
        reason=reason,
    )


def spread_of(shares: dict[str, float]) -> float:
    """Return the largest difference between the shares of different scores."""
    return max(shares.values()) - min(shares.values())


def peer_scores(peer_a: "Evidence", peer_b: "Evidence") -> dict[str, Floats]:
    """Corruption scores of different kinds, `(N,)` each, averaged over both peers."""
    from coseg_lightning.ranking.scores import mask_scores  # imports torch

    names = SCORES if peer_a.outline is None else (*SCORES, "joint")
    scores = {name: (mask_scores(peer_a, name) + mask_scores(peer_b, name)) / 2 for name in names}
    scores["per_boundary"] = np.log(scores["per_boundary"].clip(1e-6))
    return scores


def _interval(
    scores: dict[str, Floats],
    fits: "dict[str, Mixture]",
    judged_share: float,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Bootstrap the 90 % interval of the share; each fit starts from that of all scores."""
    size = len(next(iter(scores.values())))
    resampled_shares = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(size, size=size)
        refits = [fit_mixture(scores[name][drawn], start=fits[name]) for name in scores]
        resampled_shares.append(np.median([fit.weights[1] for fit in refits]) * judged_share)
    low, high = map(float, np.quantile(resampled_shares, (0.05, 0.95)))
    return low, high


@dataclass(frozen=True)
class Mixture:
    """A mixture of two normal distributions, the one with the lower mean first.

    Shape:
        weights, means and deviations `(2,)`.
    """

    weights: Floats
    means: Floats
    deviations: Floats
    log_likelihood: float

    @property
    def distance(self) -> float:
        """Ashman's D; above 2 the two are clearly separated (Ashman, Bird and Zepf 1994)."""
        pooled = np.sqrt(np.square(self.deviations).mean())
        return float((self.means[1] - self.means[0]) / max(pooled, 1e-12))


def fit_mixture(values: Floats, start: Mixture | None = None) -> Mixture:
    """Fit two normal distributions by expectation maximisation.

    Args:
        values: `(N,)` numbers.
        start: A fit to start from. By default the values are cut into two parts in several ways,
            and the fit with the highest likelihood is returned.
    """
    if start is not None:
        return _maximise(values, _upper_probability(values, start), steps=30)
    cuts = np.quantile(values, (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9))
    fits = [_maximise(values, 0.05 + 0.9 * (values > cut)) for cut in cuts]
    return max(fits, key=lambda fit: fit.log_likelihood)


def _log_densities(values: Floats, fit: Mixture) -> Floats:
    """`(N, 2)` log of weight times density, for each distribution."""
    z = (values[:, None] - fit.means) / fit.deviations
    log_p: Floats = np.log(fit.weights / fit.deviations) - z**2 / 2 - np.log(2 * np.pi) / 2
    return log_p


def _upper_probability(values: Floats, fit: Mixture) -> Floats:
    """The probability that each value is from the upper distribution."""
    log_p = _log_densities(values, fit)
    upper: Floats = np.exp(log_p[:, 1] - np.logaddexp(log_p[:, 0], log_p[:, 1]))
    return upper


def _maximise(values: Floats, upper: Floats, steps: int = 300) -> Mixture:
    floor = 0.05 * max(float(values.std()), 1e-9)  # keeps a distribution from collapsing
    likelihood = -np.inf
    for _ in range(steps):
        shares = np.stack([1 - upper, upper], axis=1).clip(1e-9)
        total = shares.sum(axis=0)
        means = (shares * values[:, None]).sum(axis=0) / total
        spread = (shares * np.square(values[:, None] - means)).sum(axis=0) / total
        fit = Mixture(total / total.sum(), means, np.sqrt(spread + floor**2), 0.0)
        log_p = _log_densities(values, fit)
        log_mixture = np.logaddexp(log_p[:, 0], log_p[:, 1])
        upper = np.exp(log_p[:, 1] - log_mixture)
        previous, likelihood = likelihood, float(log_mixture.sum())
        if likelihood - previous < 1e-7 * len(values):
            break
    order = np.argsort(means)
    return Mixture(fit.weights[order], means[order], fit.deviations[order], likelihood)
