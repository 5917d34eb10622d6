"""Blunders in masks: each is found where it was planted, and none in clean masks."""

import pickle
from functools import cache

import cv2
import numpy as np
import pytest

from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.ranking import blunders
from coseg_lightning.ranking.blunders import (
    MEANINGS,
    describe,
    find_blunders,
    look_again,
    same_masks,
)

SIDE = 128
COUNT = 60
PLANTED = 7


@cache
def phantoms():
    images = PhantomImages("p", COUNT, SIDE, 0)
    return [(images.image(i), images.mask(i)) for i in range(COUNT)]


@cache
def clean_looks():
    return [(describe(image, mask), look_again(image, mask)) for image, mask in phantoms()]


def names_of(looks):
    shapes, fits = zip(*looks, strict=True)
    return find_blunders(shapes, dict(enumerate(fits)), range(len(fits)))


def names_after(changes):
    """Names of all samples after the samples `{index: (image, mask)}` are exchanged."""
    looks = list(clean_looks())
    for i, (image, mask) in changes.items():
        looks[i] = describe(image, mask), look_again(image, mask)
    return names_of(looks)


def moved(mask, down, right):
    matrix = np.float32([[1, 0, right], [0, 1, down]])
    return cv2.warpAffine(mask, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)


def redrawn(mask, draw):
    """Let `draw` draw each part anew from its contour."""
    result = np.zeros_like(mask)
    for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        draw(result, contour)
    return result


def boxed(mask):
    def draw(result, contour):
        x, y, width, height = cv2.boundingRect(contour)
        result[y : y + height, x : x + width] = 1

    return redrawn(mask, draw)


def few_edges(mask):
    def draw(result, contour):
        cv2.drawContours(result, [cv2.approxPolyDP(contour, 6, True)], -1, 1, -1)

    return redrawn(mask, draw)


def with_rectangle(mask, rows, columns):
    result = mask.copy()
    result[rows, columns] = 1
    return result


CHANGES = {
    "empty": lambda image, mask: (image, 0 * mask),
    "full": lambda image, mask: (image, np.ones_like(mask)),
    "equals image": lambda image, mask: (100 * mask + 20, mask),
    "inverted": lambda image, mask: (image, 1 - mask),
    "flipped": lambda image, mask: (image, mask[::-1]),
    "shifted": lambda image, mask: (image, moved(mask, 8, 9)),
    "box": lambda image, mask: (image, boxed(mask)),
    "polygon": lambda image, mask: (image, few_edges(mask)),
    "several parts": lambda image, mask: (
        image,
        with_rectangle(mask, slice(106, 124), slice(40, 80)),
    ),
    "touches border": lambda image, mask: (
        image,
        with_rectangle(mask, slice(0, 60), slice(38, 44)),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_planted_blunder_is_found_and_no_other_sample_named(name):
    names = names_after({PLANTED: CHANGES[name](*phantoms()[PLANTED])})
    assert name in names[PLANTED]
    assert {i for i in range(COUNT) if names[i]} == {PLANTED}


def test_most_swapped_masks_are_found():
    pairs = [(1, 12), (25, 33), (41, 58)]
    images, masks = zip(*phantoms(), strict=True)
    changes = {i: (images[i], masks[j]) for pair in pairs for i, j in (pair, pair[::-1])}
    found = {i: names for i, names in enumerate(names_after(changes)) if names}
    assert len(found) >= 4
    assert set(found) <= set(changes)
    assert all(names == ["another image's"] for names in found.values())


def test_an_image_that_was_cut_at_half_of_its_range_equals_the_image():
    image, _ = phantoms()[3]
    assert names_after({3: (image, np.uint8(image >= 128))})[3] == ["equals image"]


def test_blunders_do_not_hide_each_other():
    changes = {i: CHANGES[name](*phantoms()[i]) for i, name in enumerate(CHANGES)}
    names = names_after(changes)
    assert [name[0] for name in names[: len(CHANGES)]] == list(CHANGES)
    assert not any(names[len(CHANGES) :])


def test_clean_phantoms_have_no_blunders():
    assert names_of(clean_looks()) == [[]] * COUNT


@pytest.mark.parametrize("count", [2, 3])
def test_a_trait_of_several_masks_is_natural(count):
    for name in ("touches border", "several parts"):
        changes = {i: CHANGES[name](*phantoms()[i]) for i in range(count)}
        assert not any(name in names for names in names_after(changes))


def test_a_copied_mask_is_found_and_no_sample_named_that_does_not_have_it():
    copies = {7: 20, 45: 50}
    images, masks = zip(*phantoms(), strict=True)
    names = names_after({i: (images[i], masks[j]) for i, j in copies.items()})
    named = {i for i in range(COUNT) if names[i]}
    assert set(copies) <= named <= {*copies, *copies.values()}
    assert all(names[i] == ["copy"] for i in named)


def test_neighbouring_frames_with_the_same_mask_are_no_copies():
    image, mask = phantoms()[4]
    assert names_after({3: (image // 2 + 30, mask)})[3:5] == [[], []]


def test_an_image_twice_in_the_set_is_no_copy():
    assert names_after({3: phantoms()[4]})[3:5] == [[], []]


def test_drawings_in_two_colours_are_not_blunders():
    looks = []
    for i in range(30):
        mask = cv2.circle(np.zeros((64, 64), np.uint8), (20 + i % 20, 32), 8 + i % 5, 1, -1)
        looks.append((describe(200 * mask, mask), look_again(200 * mask, mask)))
    assert names_of(looks) == [[]] * 30


def test_a_centred_disc_is_not_flipped():
    image, _ = phantoms()[0]
    disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (64, 64), 30, 1, -1)
    fit = look_again(cv2.GaussianBlur(150 * disc, (0, 0), 2) + image // 8, disc)
    assert fit.flipped == pytest.approx(fit.own, rel=0.1)


def test_large_objects_on_the_border_are_not_inverted():
    rng, looks = np.random.default_rng(0), []
    for _ in range(40):
        mask = np.zeros((64, 64), np.uint8)
        mask[rng.integers(5, 60) :] = 1
        image = rng.integers(0, 99, (64, 64), np.uint8) + 99 * mask
        looks.append((describe(image, mask), look_again(image, mask)))
    assert not any("inverted" in names for names in names_of(looks))


def cells_anywhere(count):
    """Images of dark cells in random places on a brighter, uneven ground."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for x, y in rng.integers(12, SIDE - 12, (8, 2)):
            cv2.circle(mask, (int(x), int(y)), int(rng.integers(4, 9)), 1, -1)
        ground = 120 + rng.uniform(-20, 20) + np.linspace(0, 30, SIDE)
        yield np.uint8(ground - 40.0 * mask + rng.normal(0, 5, mask.shape)), mask


def test_an_inverted_mask_of_objects_anywhere_is_found():
    looks = []
    for i, (image, mask) in enumerate(cells_anywhere(40)):
        mask = 1 - mask if i == PLANTED else mask
        looks.append((describe(image, mask), look_again(image, mask)))
    names = names_of(looks)
    assert names[PLANTED] == ["inverted"]
    assert not any(names[:PLANTED] + names[PLANTED + 1 :])


def test_an_object_that_fills_its_image_is_neither_inverted_nor_a_box():
    looks = []
    for i, (image, mask) in enumerate(cells_anywhere(40)):
        if i == PLANTED:  # all cell but for some holes
            image, mask = 240 - image, 1 - mask
        looks.append((describe(image, mask), look_again(image, mask)))
    assert names_of(looks)[PLANTED] == ["touches border"]


def test_one_class_of_several_is_judged():
    looks = []
    for i, (image, mask) in enumerate(phantoms()):
        mask = mask + mask * (np.arange(SIDE) < SIDE // 2)
        if i == PLANTED:
            mask = np.where(boxed(np.uint8(mask == 2)), 2, mask % 2)
        looks.append((describe(image, mask), look_again(image, mask)))
    assert [i for i, names in enumerate(names_of(looks)) if "box" in names] == [PLANTED]


def test_ignored_pixels_are_not_foreground():
    image, mask = phantoms()[0]
    mask = mask.copy()
    mask[:20], mask[:, :5] = 255, 255
    shape = describe(image, mask)
    assert shape.known == pytest.approx(1 - (20 * SIDE + 5 * (SIDE - 20)) / SIDE**2)
    assert shape.share == pytest.approx((mask == 1).sum() / (mask != 255).sum())
    assert shape.on_border == 0
    assert set(shape.classes) == {1}
    ignored = np.full((SIDE, SIDE), 255, np.uint8)
    assert names_after({3: (image, ignored)})[3] == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 50), np.uint8),
        np.full((40, 50, 3), 0.5),
        np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30,
        np.random.default_rng(0).random((40, 50, 7)),
        np.full((40, 50), np.nan, np.float32),
    ],
)
def test_all_kinds_of_images_are_looked_at(image):
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 10:30] = 1
    assert names_of([(describe(image, mask), look_again(image, mask))] * 25) == [[]] * 25


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 2), (700, 31)])
def test_images_of_odd_shapes_are_looked_at(shape):
    image, mask = np.ones(shape), np.ones(shape, np.uint8)
    assert describe(image, mask).share == 1
    assert np.isfinite(look_again(image, mask)[2:]).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 30])
def test_few_masks_and_empty_ones_have_no_blunders(count):
    assert find_blunders([look[0] for look in clean_looks()[: min(count, 5)]]) == [[]] * min(
        count, 5
    )
    empty = [describe(image, 0 * mask) for image, mask in phantoms()[:count]]
    assert find_blunders(empty) == [[]] * count


def test_the_order_of_samples_does_not_matter():
    looks = list(clean_looks())
    for i, name in enumerate(("empty", "flipped", "shifted", "box")):
        image, mask = CHANGES[name](*phantoms()[i])
        looks[i] = describe(image, mask), look_again(image, mask)
    names = names_of(looks)
    assert [name[:1] for name in names[:4]] == [["empty"], ["flipped"], ["shifted"], ["box"]]
    assert names_of(looks[::-1]) == names[::-1]


def test_what_is_kept_of_a_mask_is_small():
    assert len(pickle.dumps(clean_looks()[0][0])) < 600


def test_every_blunder_has_a_meaning():
    assert set(MEANINGS) == {*CHANGES, "another image's", "copy", "not judged"}
    assert set(blunders.CONSEQUENCES) | set(blunders.MISPLACED) <= set(MEANINGS)
    assert same_masks([look[0] for look in clean_looks()]) == []
