"""What is said of annotators, against slow references; names that say nothing change nothing."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import mannwhitneyu, norm

import coseg_lightning
from coseg_lightning.errors import InputError
from coseg_lightning.ranking.annotators import (
    annotator_report,
    bad_probability,
    moved_scores,
    with_record,
)
from coseg_lightning.ranking.bad_shares import ALIKE, DEVIATIONS, GRID, Shares
from coseg_lightning.ranking.displacement import (
    Ladder,
    beside_all,
    displacement,
    habits,
    outline_ladder,
    without_habit,
)
from coseg_lightning.ranking.outline import outline_evidence
from coseg_lightning.ranking.people import People, numbered_names, steady_displacement


def auroc_of(scores, bad):
    u = mannwhitneyu(scores[bad], scores[~bad]).statistic
    return u / (bad.sum() * (~bad).sum())


def crowd(seed, persons=10, masks=200, level=0.2, careless=1.5, distance=3.0):
    """Masks of a simulated crowd: who drew each, which are bad, and how probably each is."""
    rng = np.random.default_rng(seed)
    share = expit(logit(level) + careless * rng.standard_normal(persons))
    person = rng.integers(persons, size=masks)
    bad = rng.random(masks) < share[person]
    score = rng.standard_normal(masks) + distance * bad
    ratio = np.exp(distance * score - distance**2 / 2)
    odds = ratio * share.mean() / (1 - share.mean())
    return [f"p{n}" for n in person], bad, score, odds / (1 + odds), share


def test_the_posterior_is_that_of_a_sum_over_all_distributions():
    names, _, _, probability, _ = crowd(0, persons=3, masks=9)
    people = People.of(names)
    shares = Shares(probability, people)
    p = np.clip(probability, 1e-4, 1 - 1e-4)
    ratio = p / (1 - p) / (p.mean() / (1 - p.mean()))
    total, weight, alike = np.zeros(len(people.names)), 0.0, 0.0
    coarse = GRID
    for deviation in DEVIATIONS:
        for mean in coarse:
            if deviation:
                prior = norm.pdf(GRID, mean, deviation)
                prior = prior / prior.sum()
            else:
                prior = np.isclose(mean, GRID).astype(float)
            evidence, shares_here = ALIKE if deviation == 0 else (1 - ALIKE) / 9, []
            for n in range(len(people.names)):
                likelihood = np.ones(len(GRID))
                for r in ratio[people.numbers == n]:
                    likelihood *= expit(GRID) * r + 1 - expit(GRID)
                evidence *= prior @ likelihood
                shares_here.append((prior * likelihood) @ expit(GRID) / (prior @ likelihood))
            total += evidence * np.array(shares_here)
            weight += evidence
            alike += evidence * (deviation == 0)
    np.testing.assert_allclose(shares.mean, total / weight, rtol=1e-6)
    assert shares.differ == pytest.approx(1 - alike / weight, abs=1e-6)


def test_the_record_of_a_mask_leaves_out_the_mask():
    names, _, _, probability, _ = crowd(1, persons=4, masks=60)
    people = People.of(names)
    shares = Shares(probability, people)
    shift = shares.shift()
    p = np.clip(probability, 1e-4, 1 - 1e-4)
    ratio = p / (1 - p) / (p.mean() / (1 - p.mean()))
    mean = np.average(shares.mean, weights=np.bincount(people.numbers))
    for i in (0, 7, 30):
        posterior = np.array([shares.posterior[people.numbers[i], g] for g in range(len(GRID))])
        without = posterior / (expit(GRID) * ratio[i] + 1 - expit(GRID))
        share = without @ expit(GRID) / without.sum()
        assert shift[i] == pytest.approx(logit(share) - logit(mean), abs=1e-9)


def test_intervals_hold_in_nine_of_ten_cases():
    held = []
    for seed in range(25):
        names, _, _, probability, share = crowd(seed)
        for record in annotator_report(names, probability):
            low, high = record.bad_share_interval
            assert low <= record.bad_share <= high
            held.append(low <= share[int(record.annotator[1:])] <= high)
    assert 0.85 <= np.mean(held) <= 0.97


def test_intervals_of_displacements_hold_too():
    held = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        person = rng.integers(8, size=120)
        true = 2 * rng.standard_normal(8)
        moved = true[person] + rng.standard_normal(120)
        moved[rng.random(120) < 0.1] += rng.choice([-30, 30])  # blunders
        names = [f"p{n}" for n in person]
        for record in annotator_report(names, np.full(120, 0.2), displacement=moved):
            low, high = record.displacement_interval
            held.append(low <= true[int(record.annotator[1:])] <= high)
    assert 0.82 <= np.mean(held) <= 0.98


def test_the_careless_are_found_and_their_masks_rank_higher():
    gains, orders = [], []
    for seed in range(8):
        names, bad, score, probability, _ = crowd(seed, distance=2.0)
        records = annotator_report(names, probability)
        assert [r.bad_share for r in records] == sorted(r.bad_share for r in records)[::-1]
        real = [
            np.mean([b for b, n in zip(bad, names, strict=True) if n == r.annotator])
            for r in records
        ]
        orders.append(np.corrcoef([r.bad_share for r in records], real)[0, 1])
        level = bad.mean()
        gains.append(
            auroc_of(with_record(score, names, noise_level=level), bad) - auroc_of(score, bad)
        )
    assert np.mean(orders) > 0.9
    assert np.mean(gains) > 0.005
    assert min(gains) > -0.02


def test_names_that_say_nothing_change_nothing():
    changed = []
    for seed in range(20):
        names, bad, score, _, _ = crowd(seed)
        shuffled = np.random.default_rng(seed).permutation(names).tolist()
        after = with_record(score, shuffled, noise_level=0.2)
        changed.append(after is not score)
        assert auroc_of(after, bad) > auroc_of(score, bad) - 0.02
    assert sum(changed) <= 3
    same = with_record(score, ["one"] * len(score), noise_level=0.2)
    np.testing.assert_array_equal(same, score)
    np.testing.assert_array_equal(with_record(score, [""] * len(score), noise_level=0.2), score)
    each = [f"p{n}" for n in range(len(score))]  # persons of one mask each
    np.testing.assert_array_equal(with_record(score, each, noise_level=0.2), score)


def test_few_masks_are_drawn_towards_all_and_say_so():
    names = ["a"] * 60 + ["b"] * 60 + ["c"]
    probability = np.array([0.02] * 60 + [0.98] * 20 + [0.02] * 40 + [0.98])
    worst, *_, best = annotator_report(names, probability)
    one = next(r for r in (worst, *annotator_report(names, probability)) if r.annotator == "c")
    assert best.annotator == "a"
    low, high = one.bad_share_interval
    assert high - low > 0.5
    assert 0.1 < one.bad_share < 0.9
    assert "fewer than 5 masks" in str(one)
    assert one.as_row()["note"] == "fewer than 5 masks are too few for a verdict"
    assert best.as_row()["note"] == ""


def test_nobody_is_blamed_for_the_kind_of_images():
    rng = np.random.default_rng(0)
    hard = np.repeat([True, False], 200)
    easy_share, hard_share = 0.05, 0.5
    names = np.where(rng.random(400) < np.where(hard, 0.9, 0.1), "a", "b").tolist()
    bad = rng.random(400) < np.where(hard, hard_share, easy_share)
    probability = np.where(bad, 0.97, 0.03)
    blamed = {r.annotator: r.bad_share for r in annotator_report(names, probability)}
    fair = {
        r.annotator: r.bad_share
        for r in annotator_report(names, probability, kinds=hard.astype(str).tolist())
    }
    assert blamed["a"] - blamed["b"] > 0.25
    assert abs(fair["a"] - fair["b"]) < 0.1
    moved = np.where(hard, 4.0, 0.0) + rng.standard_normal(400)
    with_kinds = annotator_report(
        names, probability, displacement=moved, kinds=hard.astype(str).tolist()
    )
    ends = [record.displacement for record in with_kinds]
    assert abs(ends[0] - ends[1]) < 1


def test_a_displacement_that_all_share_is_not_seen():
    names = ["a"] * 60 + ["b"] * 20 + [""] * 5
    people = People.of(names)
    rng = np.random.default_rng(0)
    own = np.array([1.0] * 60 + [-3.0] * 20 + [7.0] * 5) + 0.3 * rng.standard_normal(85)
    values = np.stack([own + 5, np.full(85, np.nan)], axis=1)
    found = steady_displacement(beside_all(values, people)[:, 0], people).mean
    assert found == pytest.approx([1.0, -3.0], abs=0.2)
    assert np.isnan(beside_all(values, people)[:, 1]).all()
    alone = beside_all(values, People.of(["a"] * 60 + [""] * 25))
    assert np.isnan(alone).all()  # nobody to compare with


def test_displacements_are_medians_drawn_towards_all():
    people = People.of(["a"] * 50 + ["b"] * 50 + ["c"] * 2)
    rng = np.random.default_rng(0)
    values = np.concatenate([np.full(50, 2.0), np.full(50, -2.0), [9.0, 9.0]])
    values += 0.5 * rng.standard_normal(102)
    values[:10] = 40.0  # blunders
    found = steady_displacement(values, people)
    assert found.mean[0] == pytest.approx(2, abs=0.4)
    assert found.mean[1] == pytest.approx(-2, abs=0.4)
    assert found.error[2] > found.error[1]
    alike = steady_displacement(rng.standard_normal(102), people)
    assert np.ptp(alike.mean) < 0.4
    assert steady_displacement(np.full(102, np.nan), people).mean == [None] * 3


def test_classes_and_blunders_are_told_of_each_person():
    moved = np.array([[1.0, np.nan], [1.0, -3.0], [1.0, -3.0], [0.0, 0.0]] * 3)
    names = ["a", "a", "a", "b"] * 3
    blunders = [["empty"], ["empty", "box"], [], []] * 3
    first, second = sorted(
        annotator_report(names, [0.5] * 12, displacement=moved, blunders=blunders),
        key=lambda record: record.annotator,
    )
    assert first.blunders == {"empty": 6, "box": 3}
    assert second.blunders == {}
    assert first.as_row()["blunders"] == "empty: 6; box: 3"
    assert first.as_row()["displacement_class_2"] == pytest.approx(-3, abs=0.5)
    assert first.displacement < 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="bad must be probabilities between 0 and 1"):
        annotator_report(["a"], [3.0])
    with pytest.raises(InputError, match="There are 2 annotators, but not as many masks"):
        annotator_report(["a", "b"], [0.5])
    with pytest.raises(InputError, match="not as many displacement"):
        annotator_report(["a", "b"], [0.5, 0.5], displacement=[1.0])
    with pytest.raises(InputError, match="2 annotators, but 1 kinds"):
        annotator_report(["a", "b"], [0.5, 0.5], kinds=["x"])
    assert annotator_report([None, ""], [0.5, 0.5]) == []
    assert coseg_lightning.annotator_report is annotator_report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 0}, "noise_level=0 must be above 0 and below 1"),
        ({"noise_level": 20}, "noise_level=20 must be above 0 and below 1"),
        ({"noise_level": np.nan}, "noise_level=nan must be above 0"),
        ({"noise_level": "0.2"}, "noise_level=0.2 must be above 0"),
        ({"displacement": [np.inf, 0.0]}, "displacement holds inf, but displacements are finite"),
        ({"displacement": np.zeros((2, 0))}, r"displacement has the shape \(2, 0\)"),
        ({"displacement": np.zeros((2, 2, 2))}, r"displacement has the shape \(2, 2, 2\)"),
        ({"displacement": ["far", 0.0]}, "displacement is not an array of numbers"),
        ({"blunders": ["empty", "box"]}, r"blunders holds the text 'empty'.* give \['empty'\]"),
        ({"blunders": "empty"}, "blunders holds the text 'empty'"),
        ({"bad": [[0.1], [0.2]]}, r"bad has the shape \(2, 1\), but it must hold one number per"),
        ({"bad": 0.1}, r"bad has the shape \(\)"),
        ({"bad": ["x", "y"]}, "bad is not an array of numbers"),
        ({"annotators": "ab"}, "annotators is a str, but it must be a list of names"),
        ({"annotators": {"a": 1, "b": 2}}, "annotators is a dict, but it must be a list"),
    ],
)
def test_arguments_of_another_form_are_refused_in_a_sentence(options, message):
    with pytest.raises(InputError, match=message):
        annotator_report(**{"annotators": ["a", "b"], "bad": [0.1, 0.2], **options})


def test_numbers_are_names_and_nan_is_nobody():
    names = [0, 1, float("nan"), np.float32("nan"), None, "", np.int64(0)]
    records = annotator_report(names, [0.1] * 7, blunders=[["box"], [], None, [], [], [], []])
    assert {record.annotator: record.masks for record in records} == {"0": 2, "1": 1}
    assert People.of(names).of_masks() == ["0", "1", "", "", "", "", "0"]


def test_spaces_around_a_name_make_no_other_person():
    assert People.of(["Anna", " Anna", "Anna\n", " "]).of_masks() == ["Anna", "Anna", "Anna", ""]


def test_one_mask_a_person_tells_no_spread():
    first, second = annotator_report(["a", "b"], [0.1, 0.1], displacement=[5, 7])
    for record in (first, second):
        low, high = record.displacement_interval
        assert low < 5 < 7 < high
    (alone,) = annotator_report(["a"], [0.1], displacement=[5])
    assert (alone.displacement, alone.displacement_interval, alone.spread) == (5, None, None)
    assert "displaced" not in str(alone)
    assert alone.as_row()["displacement_low"] is None
    rng = np.random.default_rng(0)
    each = annotator_report([*range(35)], [0.1] * 35, displacement=2 * rng.standard_normal(35))
    widths = [np.ptp(record.displacement_interval) for record in each]
    assert min(widths) > 4  # of 90 % of a normal distribution of deviation 2: 6.6
    assert max(abs(record.displacement) for record in each) < 1


def test_the_spread_is_that_of_masks_and_not_of_what_is_left_beside_medians():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(300), 2)
    moved = 5 * rng.standard_normal(300)[person] + 2 * rng.standard_normal(600)
    found = steady_displacement(moved, People.of([f"p{n}" for n in person]))
    assert np.mean(found.spread) == pytest.approx(2, rel=0.15)


def test_scores_keep_their_order_within_a_person():
    score = np.array([1.0, 5.0, np.inf, np.nan, 2.0])
    moved = moved_scores(score, np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert moved[0] > 1
    assert moved[1] > 5
    assert np.isinf(moved[2])
    assert np.isnan(moved[3])
    assert moved[4] == 2
    assert bad_probability(score[[0, 1, 4]], 0.3).mean() == pytest.approx(0.3, abs=1e-6)


def test_masks_that_cannot_be_judged_count_neither_for_nor_against_a_person():
    names, scores = ["anna", "ben", "carl"] * 20, np.random.default_rng(0).normal(size=60)
    scores[:45:3] = np.nan  # of anna's masks, such as empty ones by their outlines
    found = {p.annotator: p for p in annotator_report(names, scores, noise_level=0.2)}
    assert found["anna"].bad_share < 0.3
    assert found["anna"].bad_share_interval[0] < found["ben"].bad_share_interval[1]
    np.testing.assert_array_equal(bad_probability([np.nan, np.nan], 0.2), [0.2, 0.2])
    assert bad_probability([0.0, 1.0, 2.0, np.inf], 0.2)[3] > 0.3  # infinite ones are the worst


def test_numbers_stand_for_names_in_an_order_that_does_not_tell_them():
    names = [f"name {n}" for n in range(12)]
    numbers = numbered_names(names + names)
    assert sorted(numbers.values()) == [f"person {n:02}" for n in range(1, 13)]
    assert numbers == numbered_names(reversed(names))
    in_order = [numbers[name] for name in sorted(names)]
    assert in_order != sorted(in_order)


# Steady displacements are taken off


def disc(radius, side=128):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.hypot(x, y) < radius


@pytest.mark.parametrize("side", [128, 512])
@pytest.mark.parametrize("moved", [-0.03, 0.0, 0.02])
def test_the_displacement_of_an_outline_is_found_in_its_own_pixels(side, moved):
    image = 100.0 * disc(0.25 * side, side) + np.random.default_rng(0).normal(0, 5, (side, side))
    ladder = outline_ladder(image, disc((0.25 + moved) * side, side).astype(np.uint8))
    assert ladder.displacement[0] == pytest.approx(moved * side, abs=0.004 * side)
    right = outline_evidence(image, disc(0.25 * side, side).astype(np.uint8))
    given = outline_evidence(image, disc((0.25 + moved) * side, side).astype(np.uint8))
    back = ladder.moved(ladder.displacement)
    np.testing.assert_allclose(ladder.moved(np.zeros(1)), given, atol=0.02)
    np.testing.assert_allclose(back[0, 0], right[0, 0], atol=0.5)
    assert moved == 0 or back[0, 0] > given[0, 0] + 1


def test_an_outline_that_cannot_be_judged_has_no_displacement():
    ladder = outline_ladder(np.zeros((64, 64)), np.zeros((64, 64), np.uint8), classes=3)
    assert isinstance(ladder, Ladder)
    assert np.isnan(ladder.displacement).all()
    assert np.isnan(ladder.moved(np.array([1.0, np.nan]))).all()


def test_habits_are_those_of_who_drew_a_mask():
    people = People.of(["a", "b"] * 20 + [""])
    moved = np.array([[3.0], [-3.0]] * 20 + [[8.0]])
    np.testing.assert_allclose(habits(moved, people)[:2], [[3], [-3]], atol=0.1)
    assert habits(moved, people)[-1] == 0


def test_what_a_habit_adds_to_scores_is_taken_off():
    rng = np.random.default_rng(0)
    people = People.of(["a", "b", "c"] * 60)
    moved = np.tile([4.0, 0.0, -4.0], 60)[:, None] + rng.normal(0, 0.5, (180, 1))
    bad = rng.random((180, 1)) < 0.2
    score = np.abs(moved) + 2 * bad + rng.normal(0, 0.3, (180, 1))
    after = without_habit(score, moved, habits(moved, people))
    assert auroc_of(after[:, 0], bad[:, 0]) > auroc_of(score[:, 0], bad[:, 0]) + 0.1
    np.testing.assert_array_equal(without_habit(score, moved, np.zeros_like(moved)), score)


@pytest.mark.parametrize("pixels", [-3, -1, 0, 1, 4])
def test_the_displacement_of_two_masks_is_in_pixels(pixels):
    y, x = np.mgrid[:80, :80]
    reference = (np.maximum(abs(y - 40), abs(x - 40)) < 20).astype(np.uint8)
    mask = (np.maximum(abs(y - 40), abs(x - 40)) < 20 + pixels).astype(np.uint8)
    assert displacement(mask, reference) == pytest.approx([pixels], abs=1e-6)


@pytest.mark.parametrize("rows", [4, 12, 24])
def test_a_border_to_unlabelled_pixels_is_no_displaced_outline(rows):
    reference, mask = disc(30).astype(np.uint8), disc(33).astype(np.uint8)
    cut = np.abs(np.arange(128) - 63.5) > rows  # a person labelled only some rows
    some, others = mask.copy(), reference.copy()
    some[cut], others[cut] = 255, 255
    for one, other in ((some, reference), (mask, others), (some, others)):
        assert displacement(one, other) == pytest.approx(displacement(mask, reference), abs=0.3)


def test_the_displacement_of_classes_that_are_not_there_is_unknown():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = 1
    other = mask.copy()
    other[12:16, 12:16] = 2
    np.testing.assert_array_equal(displacement(mask, other, classes=3), [0, np.nan])
    mask[5:10, 5:10] = 255  # an outline that is unlabelled
    assert np.isnan(displacement(mask, other)).all()
