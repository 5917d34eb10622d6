"""The order of a review, and what decisions say of masks that nobody looked at."""

import numpy as np
import pytest

from coseg_lightning.errors import InputError
from coseg_lightning.ranking import priority
from coseg_lightning.ranking.priority import (
    Views,
    expected_gain,
    prior_probability,
    recalibrate,
    review_order,
)


def drawn(seed, n=137, level=0.3, separation=2.0):
    """Masks of which some are bad: they score higher, and differ from the proposal in more."""
    rng = np.random.default_rng(seed)
    bad = rng.random(n) < level
    score = rng.normal(0, 1, n) + separation * bad
    disagreement = np.clip(0.1 + 0.05 * rng.normal(size=n) + 0.1 * bad, 0, 1)
    wrong = np.round(np.exp(rng.normal(5, 1, n)) * (1 + 2 * bad))
    return bad, Views(score, disagreement, rng.normal(0, 0.05, n), wrong)


def test_the_prior_has_the_noise_level_and_follows_the_score():
    _, views = drawn(0)
    for level in (0.05, 0.3, 0.7):
        probability = prior_probability(views, level)
        assert probability.mean() == pytest.approx(level, abs=1e-6)
        assert (np.argsort(probability) == np.argsort(views.score)).all()


def test_more_wrong_pixels_are_found_than_by_the_score_alone():
    found = np.zeros(3)
    for seed in range(20):
        bad, views = drawn(seed)
        pixels = views.wrong * bad
        order = review_order(views, prior_probability(views, 0.3))
        assert sorted(order) == list(range(137))
        first = 41  # 30 %
        ours, by_score = order[:first], np.argsort(-views.score)[:first]
        found += [pixels[ours].sum(), pixels[by_score].sum(), 0.3 * pixels.sum()]
    assert found[0] > found[1] > 2 * found[2]


def test_a_batch_is_diverse_and_its_last_mask_is_drawn(monkeypatch):
    """Of fifteen equal masks and three of another kind, both kinds are looked at soon."""
    score = np.array([3.0] * 15 + [2.9, 2.8, 2.7] + [0.0] * 80)
    wrong = np.array([100.0] * 15 + [95.0, 94.0, 93.0] + [10.0] * 80)
    size = np.array([0.1] * 15 + [-0.1] * 3 + [0.0] * 80)
    views = Views(score, np.full(98, 0.2), size, wrong)
    order = review_order(views, np.full(98, 0.5))
    assert order[1] == 15  # the first of the other kind
    assert set(order[:18]) == set(range(18))  # alike masks are put off, but not forgotten
    monkeypatch.setattr(priority, "BATCH", 99)
    undrawn = review_order(views, np.full(98, 0.5))
    differs = [place for place in range(98) if order[place] != undrawn[place]]
    assert differs[0] == 19


def test_decided_masks_come_last_and_unknown_scores_count_as_bad():
    _, views = drawn(1)
    score = views.score.copy()
    score[[3, 4]] = np.inf, np.nan
    views = Views(score, np.full(137, np.nan), np.full(137, np.nan), views.wrong)
    probability = prior_probability(views, 0.2)
    assert probability[[3, 4]].min() >= probability.max() - 1e-9
    order = review_order(views, probability, decided=[3, 7])
    assert set(order[-2:]) == {3, 7}
    assert np.isfinite(expected_gain(views, probability)).all()


@pytest.mark.parametrize(
    ("level", "told", "separation"),
    [(0.3, 0.3, 2.0), (0.1, 0.1, 2.0), (0.5, 0.5, 2.0), (0.3, 0.3, 0.5), (0.5, 0.1, 2.0)],
)
def test_the_interval_holds_the_share_of_bad_masks(level, told, separation):
    """Of 40 reviews of the first 20 masks, at least 80 % (90 % are meant, and chance decides)."""
    held, losses = 0, []
    for seed in range(40):
        bad, views = drawn(seed, level=level, separation=separation)
        prior = prior_probability(views, told)
        looked = review_order(views, prior)[:20]
        found = recalibrate(views, {i: bool(bad[i]) for i in looked}, told)
        held += found.interval[0] <= bad.mean() <= found.interval[1]
        others = np.setdiff1d(np.arange(137), looked)
        losses.append([surprise(p[others], bad[others]) for p in (found.probability, prior)])
        assert found.bad == bad[looked].sum()
        assert all(bad[i] == found.probability[i] for i in looked)
    assert held >= 32
    after, before = np.mean(losses, axis=0)
    if level == told:  # which the prior then knows to the point, and decisions only tell about
        assert after < before + 0.1
    else:
        assert after < before / 2


def surprise(probability, bad):
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return -np.mean(np.where(bad, np.log(p), np.log(1 - p)))


def test_masks_like_a_decided_one_are_suggested():
    """Half of the masks are too large and bad in one way."""
    rng = np.random.default_rng(0)
    bad = np.arange(80) < 40
    score = np.where(bad, 4, 0) + 0.05 * rng.normal(size=80)
    wrong = np.where(bad, 400, 20) + rng.integers(0, 5, 80)
    views = Views(score, np.where(bad, 0.4, 0.1), np.where(bad, 0.1, 0.0), wrong.astype(float))
    looked = [*range(8), *range(40, 48)]
    found = recalibrate(views, {i: bool(bad[i]) for i in looked}, 0.5)
    assert len(found.suggested) > 40
    assert all(bad[i] == bad[like] for i, like in found.suggested.items())
    assert not set(found.suggested) & set(looked)


def test_too_few_decisions_say_nothing():
    _, views = drawn(0)
    with pytest.raises(
        InputError,
        match="Only 9 of .* masks have a decision, but an estimate .* needs at least 10",
    ):
        recalibrate(views, dict.fromkeys(range(9), True), 0.3)
