"""Masks whose outlines are shifted back are compared as they would be without habits."""

import numpy as np
import pytest

from coseg_lightning.labels.fusion import Votes
from coseg_lightning.ranking.displacement import beside_others
from coseg_lightning.ranking.people import People
from coseg_lightning.ranking.shifted import shifted, shifted_pairs


def square(reach, side=40, value=1, at=20):
    y, x = np.mgrid[:side, :side]
    return (np.maximum(abs(y - at), abs(x - at)) < reach).astype(np.uint8) * np.uint8(value)


def disc(radius, side=64):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return (np.hypot(x, y) < radius).astype(np.uint8)


def random_masks(classes, persons=4, side=24):
    rng = np.random.default_rng(classes)
    masks = [rng.integers(0, classes, (side, side)).astype(np.uint8) for _ in range(persons)]
    for mask in masks:
        mask[rng.random(mask.shape) < 0.1] = 255
        mask[:5] = 0
    return masks


@pytest.mark.parametrize("classes", [2, 4])
def test_without_a_shift_the_agreement_is_that_of_votes(classes):
    masks = random_masks(classes)
    still = np.full((4, classes - 1), 0.2)  # less than a quarter of a pixel
    expected = Votes.of(masks).pairwise()
    np.testing.assert_allclose(shifted_pairs(masks, still), expected, atol=1e-6)
    nothing = [np.zeros((9, 9), np.uint8), np.full((9, 9), 255, np.uint8)]
    assert np.isnan(shifted_pairs(nothing, np.ones((2, 1)))).all()
    assert shifted_pairs([nothing[0]] * 2, np.ones((2, 1)))[0, 1] == 1


@pytest.mark.parametrize("pixels", [-3.0, 1.0, 2.0])
def test_an_outline_is_shifted_by_whole_pixels(pixels):
    ids, cover = shifted(square(10), np.array([pixels]))
    assert ids.tolist() == [1]
    expected = disc_corner_free(square(10 - int(pixels)), cover[0])
    np.testing.assert_array_equal(cover[0] > 0.5, expected)


def disc_corner_free(expected, cover):
    """Corners grow round, so that they are left out of the comparison."""
    result = expected > 0
    corners = (np.abs(np.indices(result.shape) - 20) > 9).all(axis=0)
    result[corners] = cover[corners] > 0.5
    return result


def test_an_outline_is_shifted_by_parts_of_a_pixel():
    for pixels in (0.25, 0.4, 0.5, 1.5, -0.5, -1.3):
        _, cover = shifted(disc(20), np.array([pixels]))
        assert cover.sum() == pytest.approx(np.pi * (20 - pixels) ** 2, rel=0.02)
        after = shifted_pairs([disc(20), disc(20 - pixels)], np.array([[pixels], [0.0]]))[0, 1]
        before = Votes.of([disc(20), disc(20 - pixels)]).pairwise()[0, 1]
        if abs(pixels) > 0.5:
            assert after > before + 0.3 * (1 - before)


def test_the_class_whose_outline_is_farther_inside_wins():
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 3:10] = 1
    mask[5:15, 10:17] = 2
    ids, cover = shifted(mask, np.array([-2.0, 1.0]))
    assert ids.tolist() == [1, 2]
    np.testing.assert_array_equal(cover[:, 10, 9:14], [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    ids, cover = shifted(mask, np.array([-2.0, -2.0]))
    np.testing.assert_array_equal(cover[:, 10, 9:11], [[1, 0], [0, 1]])  # where they meet
    assert (cover.sum(axis=0) <= 1).all()


def test_unlabelled_pixels_stay_and_make_no_outline():
    mask = np.ones((20, 20), np.uint8)
    mask[:, :4] = 0
    mask[:, 12:] = 255
    _, cover = shifted(mask, np.array([2.0]))
    np.testing.assert_array_equal(cover[0, 10], [0] * 6 + [1] * 6 + [0] * 8)
    full = np.ones((20, 20), np.uint8)  # ends at the border of the image alone
    _, cover = shifted(full, np.array([2.0]))
    assert (cover == 1).all()


def test_two_persons_get_plus_and_minus_half_of_their_difference():
    people, images = People.of(["a", "b"] * 9), np.repeat(np.arange(9), 2)
    moved = np.tile([0.0, 3.0], 9)[:, None] + 7 * images[:, None]
    np.testing.assert_allclose(beside_others(moved, people, images)[:, 0], [-1.5, 1.5] * 9)
    three = People.of(["a", "b", "c"] * 6)
    moved = np.tile([0.0, 0.0, 3.0], 6)[:, None]
    found = beside_others(moved, three, np.repeat(np.arange(6), 3))
    np.testing.assert_allclose(found[:3, 0], [-1, -1, 2], atol=1e-6)


def test_the_habit_of_a_colleague_is_nobody_elses():
    pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")] * 12
    names = [name for pair in pairs for name in pair]
    habit = {"a": 0.0, "b": 2.0, "c": 0.0, "d": 0.0}
    rng = np.random.default_rng(0)
    moved = np.array([habit[name] for name in names]) + 0.1 * rng.standard_normal(len(names))
    found = beside_others(moved[:, None], People.of(names), np.repeat(np.arange(72), 2))[:, 0]
    for name, value in habit.items():
        own = [pixels for pixels, other in zip(found, names, strict=True) if other == name]
        assert np.median(own) == pytest.approx(value - 0.5, abs=0.1)


def test_displacements_with_nothing_beside_them_are_unknown():
    moved = np.array([[1.0], [np.nan], [2.0], [4.0]])
    found = beside_others(moved, People.of(["a", "b", "a", "b"]), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found[:, 0], [np.nan, np.nan, -1, 1])
    empty = beside_others(np.zeros((0, 1)), People.of([]), np.zeros(0, np.int64))
    assert empty.shape == (0, 1)
