"""The posterior of each person's share of bad masks.

Legend of shapes: N masks, P persons, G points of a grid.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from coseg_lightning.ranking.people import People

Floats = NDArray[np.float64]

INTERVAL = 0.9  # probability that an interval contains the share
STEP = 0.1  # of the grid of log odds
GRID = STEP * np.arange(-70, 51)  # log odds of a bad mask, 0.1 % to 99.3 %
MOST = 30  # largest number of grid steps by which a kind of image shifts log odds
DEVIATIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5)  # of persons' log odds
ALIKE = 0.5  # prior probability of the deviation 0
KIND_DEVIATION = 1.0  # prior deviation of the kinds' terms; shrinks kinds with few masks


class Shares:
    """The posterior of every person's share of bad masks.

    Args:
        probability: `(N,)` the probability that each mask is bad, from its own evidence.
        people: Who drew each mask.

    Attributes:
        posterior: `(P, G)` the posterior of each person's log odds.
        differ: The probability that persons differ at all.
        mean: `(P,)` estimated shares, on the mix of kinds of all images.
    """

    def __init__(self, probability: Floats, people: People) -> None:
        self.people = people
        self._known = np.flatnonzero(people.numbers >= 0)
        p = np.clip(probability[self._known], 1e-4, 1 - 1e-4)
        level = float(np.clip(p.mean(), 1e-3, 1 - 1e-3)) if len(p) else 0.5
        self._ratio = np.exp(logit(p) - logit(level))  # likelihood of bad to good
        self._person, self._kind = people.numbers[self._known], people.kinds[self._known]
        # Log likelihood of each person's masks of each kind, on a wider grid.
        wide = np.concatenate([GRID[0] - STEP * np.arange(MOST, 0, -1), GRID])
        wide = np.concatenate([wide, GRID[-1] + STEP * np.arange(1, MOST + 1)])
        kinds = int(people.kinds.max(initial=0)) + 1
        table = np.zeros((len(people.names) * kinds, len(wide)))
        for start in range(0, len(p), 4096):
            part = slice(start, start + 4096)
            rows = self._person[part] * kinds + self._kind[part]
            np.add.at(table, rows, _log_likelihood(wide, self._ratio[part, None]))
        self._table = table.reshape(len(people.names), kinds, len(wide))
        self._kind_sizes = np.bincount(self._kind, minlength=kinds)
        self._steps = np.zeros(kinds, np.int64)  # of each kind's log odds
        self._fit()

    def _fit(self) -> None:
        """Fit persons and kinds of images in turn."""
        for _ in range(1 if len(self._steps) == 1 else 12):
            by_kind = [self._of_kind(k, steps) for k, steps in enumerate(self._steps)]
            likelihood = np.sum(by_kind, axis=0)
            self.posterior, self.differ = _posterior(likelihood)
            if len(self._steps) == 1:
                break
            before = self._steps.copy()
            tried = np.arange(-MOST, MOST + 1)
            prior = np.square(STEP * tried / KIND_DEVIATION) / 2
            for k in range(len(before)):
                values = [np.sum(self.posterior * self._of_kind(k, step)) for step in tried]
                self._steps[k] = tried[int(np.argmax(np.array(values) - prior))]
            mean = np.average(self._steps, weights=np.maximum(self._kind_sizes, 1e-9))
            self._steps = np.clip(self._steps - round(float(mean)), -MOST, MOST)
            if (self._steps == before).all():
                break

    def _of_kind(self, kind: int, steps: Any) -> Floats:
        """`(P, G)` log likelihood of the masks of one kind, with log odds shifted by `steps`."""
        start = MOST + int(steps)
        part: Floats = self._table[:, kind, start : start + len(GRID)]
        return part

    @cached_property
    def share(self) -> Floats:
        """`(G,)` the share of bad masks on the mix of kinds of all images."""
        weights = self._kind_sizes / max(1, self._kind_sizes.sum())
        share: Floats = expit(GRID[:, None] + STEP * self._steps) @ weights
        return share

    @property
    def mean(self) -> Floats:
        """See the class."""
        return self.posterior @ self.share

    def shift(self) -> Floats:
        """`(N,)` the shift of each mask's log odds by its annotator's record on other masks."""
        result = np.zeros(len(self.people.numbers))
        reference = logit(float(np.average(self.mean, weights=np.bincount(self._person))))
        for person in range(len(self.people.names)):
            own = np.flatnonzero(self._person == person)
            x = GRID + STEP * self._steps[self._kind[own], None]
            others = np.log(self.posterior[person] + 1e-300) - _log_likelihood(
                x, self._ratio[own, None]
            )
            weights = np.exp(others - others.max(axis=1, keepdims=True))
            share = weights @ self.share / weights.sum(axis=1)
            result[self._known[own]] = logit(share) - reference
        return result


class SharesAtLevels:
    """The posterior of every person's share of bad masks, where several levels are plausible.

    Args:
        parts: The posterior at each level; all levels count alike.

    Attributes:
        mean: `(P,)` estimated shares.
    """

    def __init__(self, parts: Sequence[Shares]) -> None:
        self.mean = np.mean([part.mean for part in parts], axis=0)
        shares = np.concatenate([part.share for part in parts])
        self._order = np.argsort(shares, kind="stable")
        self.shares = shares[self._order]
        self._posterior = np.concatenate([part.posterior for part in parts], axis=1) / len(parts)

    def interval(self, person: int) -> tuple[float, float]:
        """Return the credible interval of one person's share."""
        posterior = self._posterior[person][self._order]
        below = np.cumsum(posterior) - posterior / 2
        tail = (1 - INTERVAL) / 2
        low, high = np.interp([tail, 1 - tail], below, self.shares)
        return float(low), float(high)


def _log_likelihood(log_odds: Floats, ratio: Floats) -> Floats:
    """Log likelihood of the evidence at given log odds of a bad mask, up to a constant."""
    share = expit(log_odds)
    result: Floats = np.log1p(share * (ratio - 1))
    return result


def _posterior(likelihood: Floats) -> tuple[Floats, float]:
    """Average over a grid of normal distributions of persons' log odds.

    Args:
        likelihood: `(P, G)` log likelihood.

    Returns:
        `(P, G)` each person's posterior, and the probability that persons differ.
    """
    peak = likelihood.max(axis=1, keepdims=True)
    relative = np.exp(likelihood - peak)
    priors, evidence = [], []
    for deviation in DEVIATIONS:
        z = (GRID - GRID[:, None]) / (deviation or 1e-6)
        prior = np.exp(-np.square(z) / 2)
        prior /= prior.sum(axis=1, keepdims=True)  # (mean, G)
        share = ALIKE if deviation == 0 else (1 - ALIKE) / (len(DEVIATIONS) - 1)
        priors.append(prior)
        evidence.append(np.log(relative @ prior.T + 1e-300).sum(axis=0) + np.log(share))
    log_weights = np.stack(evidence)  # (deviations, means)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    posterior = np.zeros_like(relative)
    for prior, of_means in zip(priors, weights, strict=True):
        marginal = relative @ prior.T + 1e-300  # (P, means)
        posterior += relative * ((of_means / marginal) @ prior)
    return posterior / posterior.sum(axis=1, keepdims=True), float(1 - weights[0].sum())
