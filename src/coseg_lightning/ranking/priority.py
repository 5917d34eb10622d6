"""Which masks a person should look at first, and what decisions tell about all other masks.

A mask is worth a look if it is probably bad, if much of it would change, and if no similar mask was
shown just before. The score already corrects for the difficulty of the image (`scores.joint`).

Decisions recalibrate the scores: a logistic model predicts from a mask's features, its views, how
probably it is bad. A few decisions cannot determine the model. Its weights are therefore shrunk
towards a prior from the ranking and the estimated noise level. Their posterior (Laplace's
approximation; MacKay 1992) gives the interval of the noise level. Masks that were chosen for
looking bad tell little about the others. The last mask of each batch is therefore drawn at random.
`tests/ranking/test_priority.py` measures how often the interval contains the true level.

Legend of shapes: N masks, V views.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.outline import standardise
from coseg_lightning.seeding import derive_rng

Floats = NDArray[np.float64]

LEAST_DECIDED = 10  # masks; fewer tell nothing about the others
BATCH = 20  # masks that a person looks at in one go, and that should not be alike
DIVERSITY = 0.25  # largest share of its gain that a mask loses in the batch of a similar one
MOST_ORDERED = 2000  # masks ordered in batches; all others are ordered by gain alone
ALIKE = 0.5  # distance of standardised views below which masks are alike
SURE = 0.85  # probability above which an undecided mask gets the decision of a similar one
DRAWS = 2000  # of the model's weights, for the interval
TAIL = 0.05  # the probability of a miss on either side of the interval
# The model's prior: mean and deviation of the weight of the score, those of the other views, and
# the deviation of the intercept. The intercept's mean is the log odds of the noise level.
SCORE_PRIOR, OTHER_PRIOR, INTERCEPT_DEVIATION = (2.5, 1.0), (0.0, 0.8), 2.0


@dataclass(frozen=True)
class Views:
    """Features of each mask that are known without a person.

    Args:
        score: `(N,)` corruption scores, infinite or NaN for masks that cannot be judged.
        disagreement: `(N,)` one minus the Dice of mask and prediction, NaN if unknown.
        size_bias: `(N,)` how much larger the mask is than predicted, NaN if unknown.
        wrong: `(N,)` number of pixels in which mask and proposal differ, or of all pixels of the
            mask if there is no proposal.
    """

    score: Floats
    disagreement: Floats
    size_bias: Floats
    wrong: Floats

    def __len__(self) -> int:
        return len(self.score)

    def columns(self) -> Floats:
        """Return the standardised views, `(N, 4)`, the score first; unknown values are 0."""
        score = self.score
        known = score[np.isfinite(score)]
        worst = known.max() if len(known) else 0.0
        score = np.where(np.isfinite(score), score, worst)
        table = np.stack(
            [score, self.disagreement, np.abs(self.size_bias), np.log1p(self.wrong)], axis=1
        )
        return np.nan_to_num(standardise(table))


def prior_probability(views: Views, noise_level: float) -> Floats:
    """Return the probability that each mask is bad, `(N,)`, from score and noise level alone."""
    score = views.columns()[:, 0]
    if not len(score):
        return score
    level = np.clip(noise_level, 0.5 / len(score), 0.95)
    slope = SCORE_PRIOR[0]
    low, high = -50.0, 50.0
    for _ in range(60):  # bisection: the intercept for which the mean is the noise level
        middle = (low + high) / 2
        if expit(slope * score + middle).mean() < level:
            low = middle
        else:
            high = middle
    probability: Floats = expit(slope * score + (low + high) / 2)
    return probability


def review_order(views: Views, probability: Floats, decided: Sequence[int] = ()) -> list[int]:
    """Order masks by the expected gain of looking at them.

    Within each batch, the gain of masks similar to a chosen one is reduced, by up to a quarter. The
    last mask of a batch is drawn at random from all that are left, as `recalibrate` needs.
    `benchmarks/review.py` measures what the order finds.

    Args:
        views: The views.
        probability: `(N,)` the probability that each mask is bad.
        decided: Indices of the decided masks, which come last.

    Returns:
        The indices of all masks.
    """
    gain = expected_gain(views, probability)
    places = signed(views)
    left = np.ones(len(gain), bool)
    left[list(decided)] = False
    rng = derive_rng(0, "review order", len(gain))
    order: list[int] = []
    while left.any() and len(order) < MOST_ORDERED:
        likeness = np.zeros(len(gain))  # to the most similar mask of the batch
        for number in range(1, BATCH + 1):
            if not left.any():
                break
            worth = np.where(left, gain * (1 - DIVERSITY * likeness), -1.0)
            is_drawn = number == BATCH
            chosen = int(rng.choice(np.flatnonzero(left)) if is_drawn else worth.argmax())
            order.append(chosen)
            left[chosen] = False
            distance = np.square(places - places[chosen]).sum(axis=1) / ALIKE**2
            likeness = np.maximum(likeness, np.exp(-distance))
    rest = np.setdiff1d(np.arange(len(gain)), order)
    is_decided = np.isin(rest, list(decided))
    by_gain = rest[np.lexsort((rest, -gain[rest], is_decided))]
    return order + [int(index) for index in by_gain]


def expected_gain(views: Views, probability: Floats) -> Floats:
    """Return the expected gain of a look at each mask, `(N,)`, in square roots of pixels.

    It uses the square root of the number of differing pixels. A proposal that differs much from
    its mask is often wrong itself: see `benchmarks/review.py`.
    """
    gain: Floats = probability * np.sqrt(views.wrong)
    return gain


def signed(views: Views) -> Floats:
    """Return the views that define similarity, `(N, 4)`: as `columns`, with signed size bias."""
    columns = views.columns()
    columns[:, 2] *= np.sign(np.nan_to_num(views.size_bias))
    return columns


@dataclass(frozen=True)
class Recalibration:
    """The noise level and the probability of each mask being bad, given decisions.

    Args:
        noise_level: The expected share of bad masks among all.
        interval: Contains the noise level with a probability of about 90 %.
        decided: Number of decided masks.
        bad: Number of bad ones among them.
        probability: `(N,)` the probability that each mask is bad; 0 or 1 for decided masks.
        suggested: Maps an undecided mask's index to that of a similar decided mask, whose
            decision it probably deserves.
    """

    noise_level: float
    interval: tuple[float, float]
    decided: int
    bad: int
    probability: Floats
    suggested: dict[int, int]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"estimated {self.noise_level:.2f} (90 % interval {low:.2f} to {high:.2f}), since "
            f"{self.bad} of {self.decided} reviewed masks are bad."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file, and the estimate as a sentence."""
        values = asdict(self)
        del values["probability"], values["suggested"]
        return {**values, "interval": list(self.interval), "sentence": str(self)}


def recalibrate(views: Views, is_bad: Mapping[int, bool], noise_level: float) -> Recalibration:
    """Learn from decisions the probability that each mask is bad.

    Args:
        views: The views.
        is_bad: Whether each decided mask is bad, by its index.
        noise_level: The share of bad masks as estimated or given before.

    Raises:
        InputError: If fewer than `LEAST_DECIDED` masks were decided.
    """
    if len(is_bad) < min(LEAST_DECIDED, len(views)):
        raise InputError(
            f"Only {len(is_bad)} of {len(views)} masks have a decision, but an estimate for the "
            f"others needs at least {min(LEAST_DECIDED, len(views))}; review more masks."
        )
    table = np.column_stack([views.columns(), np.ones(len(views))])
    others = table.shape[1] - 2
    mean = np.array([SCORE_PRIOR[0], *[OTHER_PRIOR[0]] * others, _intercept(views, noise_level)])
    deviation = np.array([SCORE_PRIOR[1], *[OTHER_PRIOR[1]] * others, INTERCEPT_DEVIATION])
    known = sorted(is_bad)
    bad = np.array([is_bad[i] for i in known], dtype=np.float64)
    weights, covariance = _fit(table[known], bad, mean, deviation)
    rng = derive_rng(0, "recalibration", len(views), len(known))
    drawn = rng.multivariate_normal(weights, covariance, size=DRAWS, method="cholesky")
    undecided = np.setdiff1d(np.arange(len(views)), known)
    of_draws = expit(drawn @ table[undecided].T)
    counts = bad.sum() + rng.binomial(1, of_draws).sum(axis=1)
    low, high = np.quantile(counts / len(views), [TAIL, 1 - TAIL])
    probability = np.zeros(len(views))
    probability[known] = bad
    probability[undecided] = of_draws.mean(axis=0)
    return Recalibration(
        noise_level=float(probability.mean()),
        interval=(float(low), float(high)),
        decided=len(known),
        bad=int(bad.sum()),
        probability=probability,
        suggested=_suggested(signed(views), probability, known, undecided),
    )


def _intercept(views: Views, noise_level: float) -> float:
    """The intercept for which the prior's mean probability is about the noise level."""
    probability = prior_probability(views, noise_level)
    middle = float(np.clip(np.median(probability), 1e-4, 1 - 1e-4))
    return float(logit(middle))  # the median mask has a score of 0


def _fit(table: Floats, bad: Floats, mean: Floats, deviation: Floats) -> tuple[Floats, Floats]:
    """Fit a logistic model with a normal prior on its weights by Newton's method.

    Returns:
        The weights `(V + 1,)` and their covariance.
    """
    weights = mean.copy()
    precision = np.diag(deviation**-2)
    for _ in range(100):
        p = expit(table @ weights)
        gradient = table.T @ (bad - p) - precision @ (weights - mean)
        hessian = (table.T * (p * (1 - p))) @ table + precision
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 2.0 / np.abs(step).max()) if step.any() else 1.0
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    covariance: Floats = np.asarray(np.linalg.inv(hessian), dtype=np.float64)
    return weights, covariance


def _suggested(
    places: Floats, probability: Floats, known: Sequence[int], undecided: NDArray[np.int64]
) -> dict[int, int]:
    """Find the undecided masks that probably deserve the decision of a similar one."""
    suggested = {}
    decided = np.array(known)
    for index in undecided:
        distance = np.square(places[decided] - places[index]).sum(axis=1)
        nearest = int(decided[distance.argmin()])
        sure = probability[index] if probability[nearest] else 1 - probability[index]
        if distance.min() < ALIKE**2 and sure > SURE:
            suggested[int(index)] = nearest
    return suggested
