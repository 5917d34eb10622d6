"""Ten judged masks tell the noise level, with an interval that holds it."""

from itertools import product

import numpy as np
import pytest
from scipy.special import expit, ndtri
from scipy.stats import beta

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.judged import (
    COUNT,
    judged_noise_level,
    masks_to_judge,
    noise_level_of_review,
)

OUTCOMES = np.array(list(product((0, 1), repeat=COUNT)))
MANY = 10**9


def width(is_bad, size=MANY):
    low, high = judged_noise_level(is_bad, size).interval
    return high - low


@pytest.fixture(scope="module")
def intervals():
    return np.array([judged_noise_level(outcome, MANY).interval for outcome in OUTCOMES]).T


@pytest.mark.parametrize("slope", [-1, 0, 0.5, 1, 2, 4, 16])
def test_the_interval_holds_the_level_however_good_the_ranking_is(intervals, slope):
    """Exactly, over all outcomes: the log odds that a mask is bad rise along the ranking."""
    low, high = intervals
    z = -ndtri((np.arange(COUNT) + 0.5) / COUNT)
    for intercept in np.arange(-8 - 1.5 * abs(slope), 8 + 1.5 * abs(slope), 0.1):
        shares = expit(intercept + slope * z)
        level = shares.mean()
        probability = np.where(OUTCOMES, shares, 1 - shares).prod(axis=1)
        if 0.05 <= level <= 0.95:
            assert probability @ ((low <= level) & (level <= high)) > 0.88


def test_a_ranking_that_separates_narrows_the_interval():
    good, mixed, against = [1] * 4 + [0] * 6, [1, 0, 1, 0, 1, 0, 1, 0, 0, 0], [0] * 6 + [1] * 4
    assert width(good) < 0.7 * width(against)
    assert width(good) < width(mixed) < width(against)
    exact = beta.ppf([0.05, 0.95], [4, 5], [7, 6])
    assert judged_noise_level(against, MANY).interval == pytest.approx(tuple(exact))


def test_masks_that_are_all_alike_leave_as_much_open_as_a_count_does():
    assert judged_noise_level([0] * 10, MANY).interval == pytest.approx((0, 1 - 0.05**0.1))
    assert judged_noise_level([1] * 10, MANY).interval == pytest.approx((0.05**0.1, 1))


def test_what_was_judged_is_known():
    assert judged_noise_level([1, 0, 0, 0], 4).interval == (0.25, 0.25)
    low, high = judged_noise_level([1, 0, 0, 0], 5).interval
    assert 0.2 <= low < high <= 0.4


@pytest.mark.parametrize("size", [1, 7, 10, 11, 25, 1000])
def test_masks_to_judge_are_one_of_each_part_of_the_ranking(size):
    worst_first = np.random.default_rng(0).permutation(size).tolist()
    chosen = masks_to_judge(worst_first)
    assert chosen == sorted(set(chosen)) == masks_to_judge(worst_first)
    places = sorted(worst_first.index(index) for index in chosen)
    parts = np.array_split(np.arange(size), min(10, size))
    assert len(places) == len(parts)
    if size % 10 == 0:
        assert all(place in part for place, part in zip(places, parts, strict=True))


@pytest.fixture
def review(tmp_path):
    """Write the review of an audit of 40 masks, of which every fourth in the ranking is judged."""
    rows = [f"{rank},m{rank:02d}" for rank in range(1, 41)]
    (tmp_path / "scores.csv").write_text("rank,id\n" + "\n".join(reversed(rows)))
    path = tmp_path / "review.csv"

    def write(decisions):
        lines = [f"{name},{word}" for name, word in decisions]
        path.write_text("\n".join(["id,decision", *lines]), encoding="utf-8")
        return path

    return write


SPREAD = [(f"m{rank:02d}", "good") for rank in range(2, 42, 4)]


def test_a_filled_review_is_read(review):
    words = [("m02", " Bad "), ("m06", "BAD"), *SPREAD[2:]]
    estimate = noise_level_of_review(review(words[::-1]))
    assert estimate == judged_noise_level([1, 1] + [0] * 8, 40)
    assert str(estimate) == (
        "estimated 0.20 (90 % interval 0.08 to 0.37), since 2 of 10 judged masks are bad."
    )


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (
            [("m02", ""), *SPREAD[1:]],
            "lacks the decision for 1 mask, such as m02; look at review.png",
        ),
        ([], "lacks the decision for all masks; look at review.png, and write good or bad"),
        ([("m02", "keep"), *SPREAD[1:]], "has the decision 'keep' for m02; it must be good or bad"),
        ([*SPREAD, SPREAD[0]], "names m02 twice; give one decision for it"),
        ([("x", "bad"), *SPREAD[1:]], "names x, which is not in the scores.csv beside it"),
        (
            [(f"m{rank:02d}", "bad") for rank in range(1, 11)],
            "the 10 judged masks are not spread evenly .*10 of them lie in its worse half",
        ),
        (SPREAD[:5], "judges 5 masks, but the audit chose 10; judge exactly the chosen masks"),
        (SPREAD[:1], "judges 1 mask, but the audit chose 10"),
    ],
)
def test_a_wrong_review_is_refused(review, decisions, message):
    with pytest.raises(InputError, match=message):
        noise_level_of_review(review(decisions))


def test_scores_without_ranks_are_refused(review, tmp_path):
    path = review(SPREAD)
    (tmp_path / "scores.csv").write_text("rank,id\n1,m02\n3,m06\n")
    with pytest.raises(InputError, match="has no mask of rank 2; restore the file that"):
        noise_level_of_review(path)
