"""Noise models: how much, where, and the same for every order and machine."""

import numpy as np
import pytest
from conftest import Squares
from PIL import Image
from scipy import ndimage

from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.errors import InputError
from coseg_lightning.labels import LabelStore
from coseg_lightning.noise import (
    Annotator,
    BiasedAnnotator,
    BoundaryNoise,
    choose_noisy,
    mask_dice,
    smooth_field,
    write_noisy_layer,
)


def disc(side=256, radius=60):
    y, x = np.indices((side, side))
    return ((x - side / 2) ** 2 + (y - side / 2) ** 2 < radius**2).astype(np.uint8)


@pytest.mark.parametrize("pixels", [1, 3, 8])
@pytest.mark.parametrize("element", ["disk", "square"])
@pytest.mark.parametrize("sign", ["dilate", "erode"])
def test_type1_is_morphology_with_the_named_element(pixels, element, sign, monkeypatch):
    monkeypatch.setattr(
        "coseg_lightning.noise.derive_rng", lambda *_: FixedRng(pixels), raising=True
    )
    mask = disc()
    mask[100:140, 30:90] = 1
    y, x = np.indices((2 * pixels + 1, 2 * pixels + 1)) - pixels
    structure = np.ones_like(x) if element == "square" else x**2 + y**2 <= (pixels + 0.5) ** 2
    operation = ndimage.binary_dilation if sign == "dilate" else ndimage.binary_erosion
    expected = operation(mask, structure)
    noisy = BoundaryNoise(element=element, sign=sign)(mask, id="a", seed=0)
    # The disk's rim may differ by the pixels that lie on the circle itself.
    assert (noisy != expected).mean() < (0 if element == "square" else 2e-3) + 1e-9


class FixedRng:
    def __init__(self, value):
        self.value = value

    def integers(self, *_, **__):
        return self.value


def test_type1_draws_every_width_and_both_signs():
    mask, noise = disc(), BoundaryNoise()
    radii = [np.sqrt(noise(mask, id=str(i), seed=0).sum() / np.pi) - 60 for i in range(200)]
    assert {round(radius) for radius in radii} == {*range(-8, 0), *range(1, 9)}


@pytest.mark.parametrize("side", [128, 256, 512])
def test_type1_scales_with_the_mask(side):
    mask = disc(side, round(60 * side / 256))
    noisy = BoundaryNoise(sign="dilate")(mask, id="x", seed=1)
    grown = (np.sqrt(noisy.sum() / np.pi) - np.sqrt(mask.sum() / np.pi)) * 256 / side
    same = BoundaryNoise(sign="dilate")(disc(), id="x", seed=1)
    assert grown == pytest.approx(np.sqrt(same.sum() / np.pi) - 60, abs=0.6)


def test_type1_never_removes_a_class():
    mask = np.zeros((256, 256), np.uint8)
    mask[100:104, 100:104] = 3
    assert (BoundaryNoise(max_pixels=8, sign="erode")(mask, id="a", seed=0) == 3).sum() > 16


@pytest.mark.parametrize("noise", [BoundaryNoise(), BiasedAnnotator()])
def test_noise_keeps_classes_unlabelled_pixels_and_its_input(noise):
    mask = disc()
    mask[:, 128:] *= 2
    mask[:20] = 255
    before = mask.copy()
    noisy = noise(mask, id="a", seed=0)
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(noisy == 255, mask == 255)
    assert set(np.unique(noisy)) == {0, 1, 2, 255}
    assert (noisy != mask).any()


@pytest.mark.parametrize("noise", [BoundaryNoise(), BiasedAnnotator()])
def test_noise_leaves_an_empty_mask_empty(noise):
    assert not noise(np.zeros((64, 64), np.uint8), id="a", seed=0).any()


@pytest.mark.parametrize("noise", [BoundaryNoise(), BiasedAnnotator()])
def test_noise_depends_on_seed_and_id_alone(noise):
    mask = disc()
    first = noise(mask, id="a", seed=3)
    noise(mask, id="b", seed=3)
    np.random.seed(1)
    np.testing.assert_array_equal(noise(mask, id="a", seed=3), first)
    assert (noise(mask, id="b", seed=3) != first).any()
    assert (noise(mask, id="a", seed=4) != first).any()


def test_type2_is_one_annotator_with_one_direction():
    images = PhantomImages("train", 12, 128, 0)
    signs = set()
    for seed in range(8):
        noise = BiasedAnnotator(missing=0.0)
        changes = [
            int(noise(images.mask(i), id=id, seed=seed).sum()) - int(images.mask(i).sum())
            for i, id in enumerate(images.ids)
        ]
        assert len({change > 0 for change in changes}) == 1
        signs.add(changes[0] > 0)
    assert signs == {True, False}


def test_type2_misses_a_region_about_as_often_as_asked():
    mask = disc()
    shares = np.array(
        [
            1
            - BiasedAnnotator(0.0, wobble=0.0, missing=0.5)(mask, id=str(i), seed=0).sum()
            / mask.sum()
            for i in range(200)
        ]
    )
    assert 0.4 < (shares > 0.1).mean() < 0.6
    assert shares[shares > 0.1].min() > 0.12
    assert shares.max() < 0.45
    assert shares[shares <= 0.1].max() < 0.01


def test_smooth_field_has_the_stated_size_and_is_smooth():
    fields = [smooth_field((200, 300), 40, np.random.default_rng(i)) for i in range(40)]
    assert fields[0].shape == (200, 300)
    assert np.std(fields) == pytest.approx(1, abs=0.08)
    assert np.mean(fields) == pytest.approx(0, abs=0.08)
    assert max(np.abs(np.diff(field, axis=0)).max() for field in fields) < 0.25


@pytest.mark.parametrize(("level", "count"), [(0, 0), (0.1, 1), (0.25, 3), (0.5, 6), (0.95, 10)])
def test_exactly_the_asked_number_of_samples_is_noisy(level, count):
    ids = [f"s{i}" for i in range(11)]
    chosen = choose_noisy(ids, level, seed=0)
    assert len(set(chosen)) == len(chosen) == round(level * 11) == count
    assert choose_noisy(ids[::-1], level, seed=0) == chosen
    assert set(chosen) <= set(choose_noisy(ids, 0.99, seed=0))


def test_different_seeds_choose_different_samples():
    ids = [f"s{i}" for i in range(100)]
    counts = np.zeros(100)
    for seed in range(200):
        counts[[ids.index(id) for id in choose_noisy(ids, 0.3, seed)]] += 1
    assert counts.min() > 30  # 60 are expected, with a standard deviation of 6.5
    assert counts.max() < 90


def test_the_noisy_layer_records_each_dice(tmp_path):
    squares = Squares(10)
    layer = write_noisy_layer(squares, BoundaryNoise(), 0.3, 0, tmp_path / "noise")
    assert len(layer) == 3
    for id in layer.ids:
        dice = mask_dice(layer.read(id), squares.mask(squares.ids.index(id)))
        assert layer.facts(id) == {"dice": dice}
        assert dice < 1
    assert LabelStore.is_finished(tmp_path / "noise")


def test_annotator_takes_masks_from_another_folder(make_folder):
    root = make_folder(foreground=255)
    noise = Annotator("masks_rough", root)
    expected = np.asarray(Image.open(root / "masks_rough" / "s00.png")) // 255
    np.testing.assert_array_equal(noise(Squares().mask(0), id="s00", seed=0), expected)
    with pytest.raises(InputError, match="no mask of s99"):
        noise(Squares().mask(0), id="s99", seed=0)
    with pytest.raises(InputError, match=r"is 32x32, but .* is 40x40"):
        noise(np.zeros((40, 40), np.uint8), id="s00", seed=0)


def test_annotator_says_what_it_needs():
    with pytest.raises(InputError, match="data=folder"):
        Annotator("masks_crowd1")


@pytest.mark.parametrize(
    ("first", "second", "dice"),
    [
        ([[0, 0]], [[0, 0]], 1.0),
        ([[0, 1]], [[0, 0]], 0.0),
        ([[1, 1, 0]], [[1, 0, 0]], 2 / 3),
        ([[1, 2, 2]], [[1, 2, 0]], (1 + 2 / 3) / 2),
        ([[1, 255]], [[1, 0]], 1.0),
    ],
)
def test_mask_dice(first, second, dice):
    assert mask_dice(np.array(first), np.array(second)) == pytest.approx(dice)
