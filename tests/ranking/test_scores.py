"""Scores beyond Eq. (1): their values, and which masks they rank first."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coseg_lightning import CorruptionRanking
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import corruption_score
from coseg_lightning.modules.recipe import SCORES_WITH_KINDS
from coseg_lightning.ranking.evidence import (
    CLASS_COLUMNS,
    MASK_COLUMNS,
    Evidence,
    compute_evidence,
    kind_numbers,
    relative_score,
)
from coseg_lightning.ranking.outline import outline_misfit
from coseg_lightning.ranking.scores import (
    SCORES,
    agreement,
    class_scores,
    direction,
    l_skewness,
    mask_scores,
    sides_by_sample,
)
from support import soft_discs

SIDE = 32


def random_batch(classes=3, size=4):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, classes, SIDE, SIDE, generator=generator)
    masks = torch.randint(0, classes, (size, SIDE, SIDE), generator=generator)
    masks[0, :7] = 255
    return logits, masks


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"joint"}))
def test_a_mask_without_any_label_is_the_least_suspicious(name):
    logits, masks = random_batch(size=30)
    masks[3] = 255
    scores = mask_scores(Evidence.from_table(compute_evidence(logits, masks).numpy()), name)
    assert scores[3] == scores.min()


def test_evidence_is_what_a_loop_over_pixels_says():
    logits, masks = random_batch()
    table = Evidence.from_table(compute_evidence(logits, masks).numpy())
    p_all = logits.softmax(dim=1).numpy().astype(float)
    for n in range(len(masks)):
        label = masks[n].numpy()
        inside = label != 255
        own = np.take_along_axis(p_all[n], np.where(inside, label, 0)[None], 0)[0][inside]
        assert table.eq1[n] == pytest.approx(-np.log(own).mean(), rel=1e-5)
        assert table.pixels[n] == inside.sum()
        weights = np.exp((1 - own) / 0.1)
        assert table.softmin[n] == pytest.approx(1 - (own * weights).sum() / weights.sum(), 1e-4)
        hard = p_all[n].argmax(axis=0)
        for k in (1, 2):
            p, y = p_all[n, k].clip(1e-6, 1 - 1e-6), label == k
            q = np.where(y, p, 1 - p)
            expected = {
                "cross_entropy": -np.log(q)[inside].mean(),
                "entropy": -(p * np.log(p) + (1 - p) * np.log(1 - p))[inside].mean(),
                "variance": (p * (1 - p) * np.log(p / (1 - p)) ** 2)[inside].mean(),
                "label_area": y[inside].mean(),
                "predicted_area": (hard == k)[inside].mean(),
                "expected_area": p[inside].mean(),
                "overlap": (p * y)[inside].mean(),
            }
            for name, value in expected.items():
                evidence = getattr(table, name)[n, k - 1]
                assert evidence == pytest.approx(value, rel=1e-3), name


def test_the_boundary_is_measured_in_pixels():
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.int64)
    masks[0, 10:20, 5:25] = 1
    table = Evidence.from_table(compute_evidence(torch.zeros(1, 2, SIDE, SIDE), masks).numpy())
    assert table.boundary[0, 0] * SIDE**2 == 2 * (10 + 20)


@pytest.mark.parametrize("dim", [-1, -2])
def test_a_border_to_unlabelled_pixels_is_no_boundary_on_either_side(dim):
    masks = torch.zeros(1, 10, 10, dtype=torch.int64)
    masks[0, 3:7, 3:7] = 1
    masks.narrow(dim, 0, 4).fill_(255)
    both = torch.cat([masks, masks.flip(dim)])
    table = Evidence.from_table(compute_evidence(torch.zeros(2, 2, 10, 10), both).numpy())
    lengths = table.boundary[:, 0] * 60  # of 4 x 3 pixels, one side open
    assert lengths.round(6).tolist() == [10, 10]


def test_a_single_sigmoid_output_and_half_precision_are_understood():
    logits, masks = random_batch(classes=2)
    single = (logits[:, 1:] - logits[:, :1]).clamp(-8, 8)
    pair = torch.cat([torch.zeros_like(single), single], dim=1)
    np.testing.assert_allclose(
        compute_evidence(single, masks), compute_evidence(pair, masks), rtol=1e-6
    )
    np.testing.assert_allclose(
        compute_evidence(single.half(), masks),
        compute_evidence(single, masks),
        rtol=0.05,
        atol=2e-3,
    )
    assert compute_evidence(pair, masks).shape == (4, len(MASK_COLUMNS) + len(CLASS_COLUMNS))


def test_the_relative_score_forgives_what_the_network_expects():
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    logits = torch.zeros(2, 2, SIDE, SIDE)  # a hard image: the network knows nothing
    logits[1, 0] = 4.0  # an easy image whose label has a wrong corner
    masks[1, :6, :6] = 1
    plain, relative = corruption_score(logits, masks), relative_score(logits, masks)
    assert plain[0] > plain[1]
    assert relative[0] < relative[1]
    assert relative[0] == pytest.approx(1, abs=0.01)


def noisy_discs(grown, size=60, bad=20):
    """Discs whose labels are a little off, and `bad` of which are off by `grown`."""
    rng = np.random.default_rng(0)
    radii = rng.uniform(10, 20, size)
    off = rng.normal(0, 0.5, size)
    off[:bad] = grown(rng, bad)
    logits, masks = soft_discs(radii, radii + off)
    return Evidence.from_table(compute_evidence(logits, masks).numpy()), np.arange(size) < bad


def auroc(scores, bad):
    return np.mean(scores[bad][:, None] > scores[~bad][None])


@pytest.mark.parametrize("sign", [1, -1])
def test_direction_finds_the_side_of_one_sided_noise(sign):
    e, bad = noisy_discs(lambda rng, n: sign * rng.uniform(1, 5, n))
    assert direction(e) == [sign]
    assert auroc(mask_scores(e, "directed"), bad) > 0.97
    known = "larger" if sign > 0 else "smaller"
    assert auroc(mask_scores(e, known), bad) > 0.97


def test_direction_is_none_for_noise_on_both_sides():
    e, bad = noisy_discs(lambda rng, n: rng.choice([-1, 1], n) * rng.uniform(2, 5, n))
    assert abs(direction(e)[0]) < 0.5
    assert auroc(mask_scores(e, "directed"), bad) > 0.95


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"joint", "smaller"}))
def test_every_score_finds_what_is_much_too_large(name):
    e, bad = noisy_discs(lambda rng, n: rng.uniform(4, 6, n))
    assert auroc(mask_scores(e, name), bad) > 0.9
    assert class_scores(e, name).shape == (60, 1)


def test_the_suspicious_class_is_named():
    logits, masks = soft_discs([12.0] * 20, [12.0] * 20)
    logits = torch.cat([torch.zeros_like(logits), logits, -torch.full_like(logits, 9)], dim=1)
    masks[3, 2:9, 2:9] = 2  # a class that no network predicts
    scores = class_scores(Evidence.from_table(compute_evidence(logits, masks).numpy()), "directed")
    assert scores.shape == (20, 2)
    assert np.isnan(scores[np.arange(20) != 3, 1]).all()
    assert (
        mask_scores(
            Evidence.from_table(compute_evidence(logits, masks).numpy()), "relative"
        ).argmax()
        == 3
    )


def test_an_empty_label_where_nothing_is_predicted_is_the_least_suspicious():
    logits, masks = soft_discs([12.0] * 9 + [-20.0], [13.0] * 9 + [0.0])
    for name in ("directed", "relative", "dice"):
        scores = mask_scores(Evidence.from_table(compute_evidence(logits, masks).numpy()), name)
        assert scores[9] == scores.min()


def test_l_skewness():
    rng = np.random.default_rng(0)
    assert l_skewness(rng.exponential(size=20000)) == pytest.approx(1 / 3, abs=0.01)
    assert l_skewness(rng.normal(size=20000)) == pytest.approx(0, abs=0.01)
    assert l_skewness(np.ones(10)) == 0
    assert l_skewness(np.arange(3.0)) == 0


def test_an_unknown_score_is_refused():
    e, _ = noisy_discs(lambda rng, n: rng.uniform(4, 6, n))
    with pytest.raises(InputError, match="no such score; use one of joint, directed"):
        mask_scores(e, "best")


def two_kinds(size=200):
    """Discs of two kinds: the bad ones of the first are too large, those of the other too small."""
    rng = np.random.default_rng(1)
    radii, off = rng.uniform(11, 19, size), rng.normal(0, 0.4, size)
    bad = np.arange(size) % 8 == 0
    kinds = np.arange(size) // (size // 2)
    off[bad] += np.where(kinds[bad] == 0, 1, -1) * rng.uniform(1, 3, bad.sum())
    logits, masks = soft_discs(radii, radii + off)
    logits[kinds == 1] /= 3  # and the networks are less sure there
    return Evidence.from_table(compute_evidence(logits, masks).numpy()), bad, kinds


def test_each_kind_of_image_has_its_own_direction():
    e, bad, kinds = two_kinds()
    by_kind = replace(e, kinds=kinds)
    np.testing.assert_array_equal(sides_by_sample(e), np.broadcast_to(direction(e), (200, 1)))
    sides = sides_by_sample(by_kind)[:, 0]
    assert min(sides[kinds == 0]) > 0.5
    assert max(sides[kinds == 1]) < -0.25
    assert auroc(mask_scores(by_kind, "directed"), bad) > auroc(mask_scores(e, "directed"), bad)
    # Of either kind about as many are found.
    worst = np.argsort(-mask_scores(by_kind, "directed"))[: bad.sum()]
    assert 8 <= kinds[worst].sum() <= 17


def test_a_single_kind_changes_nothing():
    e, _ = noisy_discs(lambda rng, n: rng.uniform(1, 5, n))
    of_one = replace(e, kinds=np.zeros(60, np.int64))
    np.testing.assert_allclose(mask_scores(of_one, "directed"), mask_scores(e, "directed"))


def test_unnamed_samples_are_of_one_further_kind():
    assert kind_numbers("abcd", {"a": "x", "c": "y", "d": "x"}).tolist() == [1, 0, 2, 1]


def test_outlines_count_as_far_as_they_agree():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(50, 3))
    second = np.stack([first[:, 0] ** 3, rng.normal(size=50), -first[:, 2]], axis=1)
    first[0, 0] = np.nan
    weights = agreement(first, second)
    assert weights[0] == pytest.approx(1)
    assert 0 <= weights[1] < 0.35
    assert weights[2] == 0
    assert agreement(np.full((9, 1), np.nan), second[:9, :1]) == [0]


def test_what_a_hard_image_explains_is_taken_off():
    e, _ = noisy_discs(lambda rng, n: rng.uniform(1, 5, n))
    outline = np.zeros((60, 1, 4))
    outline[:, 0, 2:] = -e.cross_entropy  # the worse the label, the weaker the prediction's edges
    with_outline = replace(e, outline=outline)
    before, after = class_scores(e, "directed"), class_scores(with_outline, "joint")
    difficulty = outline_misfit(outline[..., 2:])
    assert abs(np.corrcoef(after[:, 0], difficulty[:, 0])[0, 1]) < 0.6
    assert np.corrcoef(before[:, 0], difficulty[:, 0])[0, 1] > 0.8


def test_kinds_that_name_no_sample_are_refused():
    with pytest.raises(
        InputError, match=r"kinds names 'a.png' and others, but no sample has such an id"
    ):
        kind_numbers(["a", "b"], {"a.png": "x"})
    with pytest.raises(
        InputError, match="kinds has 'a': None, but each id and each kind must be a text"
    ):
        CorruptionRanking(kinds={"a": None})
    with pytest.raises(InputError, match="kinds would have no effect with score=softmin"):
        CorruptionRanking(kinds={"a": "x"}, score="softmin")


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"joint"}))
def test_only_standardised_scores_know_kinds(name):
    e, _, kinds = two_kinds()
    same = np.array_equal(mask_scores(e, name), mask_scores(replace(e, kinds=kinds), name))
    assert same == (name not in SCORES_WITH_KINDS)
