"""Masks alone: what their outlines tell, and whether it can be told at all."""

import pickle
from functools import cache

import numpy as np
import pytest

from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.ranking import unaided
from coseg_lightning.ranking.unaided import judge, look_at, misplaced_first
from coseg_lightning.seeding import derive_rng

COUNT = 40


@cache
def looks(kind):
    """Look at phantoms, of which `moved` has every fifth mask moved; `noise` shows nothing."""
    images, rng = PhantomImages("p", COUNT, 128, 0), np.random.default_rng(0)
    result = []
    for i in range(COUNT):
        image, mask = images.image(i), images.mask(i)
        if kind == "noise":
            image = rng.normal(0, 1, image.shape)
        if kind == "moved" and i % 5 == 0:
            mask = np.roll(mask, 7, axis=i % 2)
        result.append(look_at(image, mask, classes=2, rng=derive_rng(0, i)))
    return result


def test_moved_masks_are_the_worst_and_are_counted():
    opinion = judge(looks("moved"))
    assert opinion.doubt is None
    assert set(np.argsort(-opinion.score)[: COUNT // 5]) == set(range(0, COUNT, 5))
    assert opinion.class_scores.shape == (COUNT, 1)


def test_no_noise_level_is_told_of_right_masks():
    """These phantoms look like two kinds of masks, 3.5 deviations apart."""
    images = PhantomImages("p", 80, 128, 8)
    masks = [
        look_at(images.image(i), images.mask(i), classes=2, rng=derive_rng(0, i)) for i in range(80)
    ]
    opinion = judge(masks)
    assert opinion.doubt is None
    assert opinion.estimate.distance > 3
    assert not opinion.estimate.separable
    assert "good and bad labels have too similar scores" in str(opinion.estimate)


def test_two_kinds_of_images_are_not_good_and_bad_masks(monkeypatch):
    rng, found = np.random.default_rng(0), []
    y, x = np.mgrid[:128, :128]
    for i in range(60):
        row, column = rng.uniform(40, 88, 2)
        mask = (np.hypot(y - row, x - column) < rng.uniform(18, 30)).astype(np.uint8)
        contrast, noise = ((80, 3), (45, 14))[i % 2]
        image = 90 + contrast * mask + rng.normal(0, noise, mask.shape)
        found.append(look_at(image, mask, classes=2, rng=derive_rng(0, i)))
    assert "only be another kind of image" in str(judge(found).estimate)
    monkeypatch.setattr(unaided, "OTHER_IMAGES", 1.0)
    assert judge(found).estimate.noise_level == pytest.approx(0.5, abs=0.1)
    assert not judge(found, kinds=np.arange(60) % 2).estimate.separable


def test_images_without_edges_tell_nothing():
    opinion = judge(looks("noise"))
    assert "show no edges" in opinion.doubt
    assert opinion.class_scores is None
    assert np.isfinite(opinion.score).all()


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_masks_tell_nothing(count):
    opinion = judge(looks("moved")[:count])
    assert f"only {count} of {count} masks" in opinion.doubt
    assert np.isfinite(opinion.score).all()


def test_named_masks_come_first_unless_they_are_only_odd():
    names = [[], ["box"], ["empty"], ["touches border", "shifted"]]
    raised = misplaced_first(np.array([3.0, 1.0, 0.0, 2.0]), names)
    assert np.argsort(-raised).tolist() == [3, 2, 0, 1]
    assert misplaced_first(np.array([]), []).shape == (0,)


def test_what_is_kept_of_a_mask_is_small():
    image, mask = np.eye(64), np.eye(64, dtype=np.uint8)
    assert len(pickle.dumps(look_at(image, mask, classes=2))) < 1500
