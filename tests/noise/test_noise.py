"""Noise models: how much, where, and reproducible in any order and on any machine."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.errors import InputError
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise import (
    AffineNoise,
    BiasedAnnotator,
    BoundaryNoise,
    BoundaryWalk,
    ClassMerge,
    ClassSwap,
    Crowd,
    EdgeCircles,
    MissingComponent,
    MissingRegion,
    PolygonOutline,
    RandomAnnotators,
    SpuriousBlob,
)
from coseg_lightning.noise.geometry import smooth_field
from coseg_lightning.noise.models import Annotator, AtLabelDice, Combined
from coseg_lightning.noise.noisy_layer import choose_noisy, write_noisy_layer
from support import CLASSES, OBJECTS, OUTLINES, Squares, name_of


def disc(side=256, radius=60):
    y, x = np.indices((side, side))
    return ((x - side / 2) ** 2 + (y - side / 2) ** 2 < radius**2).astype(np.uint8)


def grains(side=256):
    """Draw nine discs of different sizes in rows."""
    y, x = np.indices((side, side)) * 256 / side
    mask = np.zeros((side, side), np.uint8)
    for i in range(9):
        row, column = 45 + 80 * (i // 3), 45 + 80 * (i % 3)
        mask[(y - row) ** 2 + (x - column) ** 2 < (18 + i) ** 2] = 1
    return mask


@pytest.mark.parametrize("pixels", [1, 3, 8])
@pytest.mark.parametrize("element", ["disk", "square"])
@pytest.mark.parametrize("sign", ["dilate", "erode"])
def test_type1_is_morphology_with_the_named_element(pixels, element, sign, monkeypatch):
    monkeypatch.setattr(
        "coseg_lightning.noise.boundaries.derive_rng", lambda *_: FixedRng(pixels), raising=True
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


@pytest.mark.parametrize("noise", [*OUTLINES, *OBJECTS, *CLASSES], ids=name_of)
def test_noise_keeps_classes_unlabelled_pixels_and_its_input(noise):
    mask = disc()
    mask[:, 128:] *= 2
    mask[:20] = 255
    before = mask.copy()
    noisy = noise(mask, id="a", seed=0)
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(noisy == 255, mask == 255)
    assert set(np.unique(noisy)) <= {0, 1, 2, 255}
    if noise in OUTLINES:
        assert set(np.unique(noisy)) == {0, 1, 2, 255}
    assert (noisy != mask).any()


@pytest.mark.parametrize("noise", [*OUTLINES, *OBJECTS[:2], *CLASSES], ids=name_of)
def test_noise_leaves_an_empty_mask_empty(noise):
    assert not noise(np.zeros((64, 64), np.uint8), id="a", seed=0).any()


RANDOM = [noise for noise in [*OUTLINES, *OBJECTS] if not isinstance(noise, PolygonOutline)]


@pytest.mark.parametrize("noise", RANDOM, ids=name_of)
def test_noise_depends_on_seed_and_id_alone(noise):
    mask = grains()
    first = noise(mask, id="a", seed=3)
    noise(mask, id="b", seed=3)
    np.random.seed(1)
    np.testing.assert_array_equal(noise(mask, id="a", seed=3), first)
    assert (noise(mask, id="b", seed=3) != first).any()
    assert any((noise(mask, id="a", seed=seed) != first).any() for seed in (4, 5))
    np.testing.assert_array_equal(noise(mask, id="a", seed=3, strength=0), mask)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [*OUTLINES, *OBJECTS], ids=name_of)
def test_noise_scales_with_the_mask(noise):
    small, large = (
        [mask_dice(noise(grains(side), id=str(i), seed=0), grains(side)) for i in range(12)]
        for side in (128, 512)
    )
    assert np.mean(small) == pytest.approx(np.mean(large), abs=0.07)


def test_type2_is_one_annotator_with_one_direction():
    images = PhantomImages("train", 12, 128, 0)
    signs = set()
    for seed in range(8):
        noise = BiasedAnnotator(missing=0.0)
        changes = [
            int(noise(images.mask(i), id=sample_id, seed=seed).sum()) - int(images.mask(i).sum())
            for i, sample_id in enumerate(images.ids)
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


def area(mask):
    return int((mask > 0).sum())


@pytest.mark.parametrize(("grow", "pixels"), [(0.8, 11), (0.2, -11)])
def test_the_walk_drifts_as_far_as_it_says(grow, pixels):
    noisy = BoundaryWalk(grow=grow)(disc(), id="a", seed=0)
    assert np.sqrt(area(noisy) / np.pi) - 60 == pytest.approx(pixels, abs=1.5)


def test_circles_add_and_cut():
    noisy = EdgeCircles()(disc(), id="a", seed=0)
    assert ((noisy == 1) & (disc() == 0)).sum() > 100
    assert ((noisy == 0) & (disc() == 1)).sum() > 100


def test_a_polygon_has_few_corners_and_keeps_holes_and_specks():
    mask = disc()
    mask[110:146, 110:146] = 0
    mask[3, 3] = 1
    noisy = PolygonOutline(tolerance=8)(mask, id="a", seed=0)
    assert noisy[128, 128] == 0
    assert noisy[3, 3] == 1
    assert 0.85 < mask_dice(noisy, mask) < 0.98


def test_affine_noise_moves_but_does_not_deform():
    mask = disc(radius=40)
    noisy = AffineNoise(rotate=0, shift=10)(mask, id="a", seed=0)
    assert area(noisy) == pytest.approx(area(mask), rel=0.02)
    moved = np.hypot(*(np.argwhere(noisy).mean(axis=0) - np.argwhere(mask).mean(axis=0)))
    assert 5 <= moved <= 10
    turned = np.zeros((256, 256), np.uint8)
    turned[120:136, 60:196] = 1
    noisy = AffineNoise(rotate=90, shift=0)(turned, id="a", seed=0)
    np.testing.assert_allclose(np.argwhere(noisy).mean(axis=0), (127.5, 127.5), atol=0.6)
    assert mask_dice(noisy, turned) < 0.4


def test_a_missing_component_is_missing_whole():
    mask = grains()
    noisy = MissingComponent(share=0.3)(mask, id="a", seed=0)
    assert ndimage.label(noisy)[1] == 6
    np.testing.assert_array_equal(noisy[noisy > 0], mask[noisy > 0])
    assert not MissingComponent(share=0.01)(disc(), id="a", seed=0).any()


def test_a_missing_region_is_of_the_size_asked_for():
    lost = [1 - area(MissingRegion()(disc(), id=str(i), seed=0)) / area(disc()) for i in range(30)]
    assert min(lost) > 0.13
    assert max(lost) < 0.43


def test_a_blob_is_new_and_of_any_class():
    mask, drawn_classes = grains(), set()
    for i in range(12):
        noisy = SpuriousBlob(classes=4)(mask, id=str(i), seed=0)
        np.testing.assert_array_equal(noisy[mask > 0], mask[mask > 0])
        new = set(np.unique(noisy[mask == 0])) - {0}
        assert len(new) == 1
        drawn_classes |= new
    assert drawn_classes == {1, 2, 3}


def test_swap_exchanges_two_classes_and_merge_loses_one():
    mask = np.repeat(np.arange(4, dtype=np.uint8), 4)[None].repeat(4, axis=0)
    for i in range(8):
        swapped = ClassSwap(classes=4)(mask, id=str(i), seed=0)
        assert sorted(swapped.ravel()) == sorted(mask.ravel())
        assert (swapped != mask).sum() == 32
        np.testing.assert_array_equal(swapped == 0, mask == 0)
    merged = [ClassMerge(classes=4)(mask, id=str(i), seed=0) for i in range(8)]
    assert all((m == merged[0]).all() for m in merged)
    assert len(np.unique(merged[0])) == 3
    assert not (merged[0][mask > 0] == 0).any()
    for model in (ClassSwap, ClassMerge):
        with pytest.raises(InputError, match="at least three classes"):
            model(classes=2)


def test_each_of_the_annotators_has_a_bias_of_his_own():
    noise, mask = RandomAnnotators(count=4, wobble=0), disc()
    areas: dict[int, set[int]] = {}
    for i in range(40):
        noisy = noise(mask, id=str(i), seed=1)
        areas.setdefault(noise.annotator_of(str(i), 1), set()).add(area(noisy))
    assert len(areas) == 4
    assert all(len(own_areas) == 1 for own_areas in areas.values())
    assert len(set.union(*areas.values())) == 4


def test_models_are_combined_in_their_order():
    first, second = BoundaryNoise(sign="dilate"), MissingRegion()
    noisy = Combined([first, second])(disc(), id="a", seed=0)
    expected = second(first(disc(), id="a", seed=0), id="a", seed=0)
    np.testing.assert_array_equal(noisy, expected)
    assert not Combined([ClassSwap(3), ClassMerge(3)]).adjustable


@pytest.mark.parametrize(
    "noise",
    [*OUTLINES, MissingRegion(), Combined([BoundaryNoise(), MissingRegion()])],
    ids=name_of,
)
@pytest.mark.parametrize("dice", [0.9, 0.8])
def test_a_label_dice_can_be_asked_for(noise, dice):
    images = PhantomImages("train", 4, 128, 0)
    for i, sample_id in enumerate(images.ids):
        noisy = AtLabelDice(noise, dice)(images.mask(i), id=sample_id, seed=0)
        assert mask_dice(noisy, images.mask(i)) == pytest.approx(dice, abs=0.03)


def test_a_label_dice_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="above 0 and below 1"):
        AtLabelDice(BoundaryNoise(), 1.5)
    with pytest.raises(InputError, match="strength of ClassSwap cannot be set"):
        AtLabelDice(ClassSwap(3), 0.8)


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
        counts[[ids.index(sample_id) for sample_id in choose_noisy(ids, 0.3, seed)]] += 1
    assert counts.min() > 30  # 60 are expected, with a standard deviation of 6.5
    assert counts.max() < 90


def test_the_noisy_layer_records_each_dice(tmp_path):
    squares = Squares(10)
    layer = write_noisy_layer(squares, BoundaryNoise(), 0.3, 0, tmp_path / "noise")
    assert len(layer) == 3
    for sample_id in layer.ids:
        dice = mask_dice(layer.read(sample_id), squares.mask(squares.ids.index(sample_id)))
        assert layer.facts(sample_id)["dice"] == dice
        assert dice < 1
    assert LabelStore.is_finished(tmp_path / "noise")


def test_annotator_takes_masks_from_another_folder(make_folder):
    root = make_folder(foreground=255)
    noise = Annotator("masks_rough", root)
    expected = np.asarray(Image.open(root / "masks_rough" / "s00.png")) // 255
    np.testing.assert_array_equal(noise(Squares().mask(0), id="s00", seed=0), expected)
    own = np.where(np.arange(32) < 16, 255, Squares().mask(0)).astype(np.uint8)
    unlabelled = np.where(own == 255, 255, expected)  # stays so, as with every noise
    np.testing.assert_array_equal(noise(own, id="s00", seed=0), unlabelled)
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


def test_a_polygon_of_something_thin_stays_thin():
    mask = np.zeros((128, 128), np.uint8)
    y, x = np.indices(mask.shape)
    for offset in (0, 12):
        mask[(abs(y - x - offset) < 2) & (x > 10) & (x < 100) & (y < 120)] = 1
    noisy = PolygonOutline(tolerance=8)(mask, id="a", seed=0)
    assert mask_dice(noisy, mask) > 0.6
    np.testing.assert_array_equal(PolygonOutline()(mask, id="a", seed=0, strength=0), mask)


def test_an_annotator_must_come_first(make_folder):
    annotator = Annotator("masks_rough", make_folder())
    assert Combined([annotator, MissingRegion()]).adjustable
    with pytest.raises(InputError, match="name it first"):
        Combined([MissingRegion(), annotator])


@pytest.mark.parametrize("level", [-0.3, 30, float("nan"), "0.3", None])
def test_a_level_that_is_no_share_is_refused(level, tmp_path):
    """A negative one chose all but so many samples."""
    squares = Squares(6)
    with pytest.raises(InputError, match="noise_level=.* must be a number from 0 to 1"):
        choose_noisy(squares.ids, level, seed=0)
    with pytest.raises(InputError, match="noise_level=.* must be a number from 0 to 1"):
        write_noisy_layer(squares, Crowd(), level, 0, tmp_path / "layer")
    assert not (tmp_path / "layer").exists()
