"""Outline evidence: an outline beside the edge of its image is worse than one on it."""

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from coseg_lightning import CorruptionRanking, CoSegDataModule, outline_scores
from coseg_lightning.errors import InputError
from coseg_lightning.ranking.evidence import Evidence
from coseg_lightning.ranking.outline import outline_evidence, standardise
from coseg_lightning.ranking.scores import mask_scores
from support import Halves, Squares, module_of, rows_of, trainer_of


def test_small_kinds_are_not_blown_up():
    """Of right masks, those of a kind of three are the worst hardly more often than by chance."""
    rng, worst = np.random.default_rng(0), 0
    kinds = np.r_[[0] * 3, [1] * 57, [2] * 60]
    for _ in range(400):
        values = standardise(rng.normal(0, 1, (120, 1)), kinds=kinds)
        worst += values.argmax() < 3
    assert worst / 400 < 0.06  # 0.025 by chance
    blown = np.r_[[4.0, 4.0, 0.0], rng.normal(0, 1, 117)][:, None]
    assert np.abs(standardise(blown, kinds=kinds, squashed=False)[:3]).max() < 6


def test_kinds_that_differ_much_are_told_apart():
    rng, kinds = np.random.default_rng(0), np.arange(60) % 2
    values = (10.0 * kinds + rng.normal(0, 1, 60))[:, None]
    found = standardise(values, kinds=kinds)[:, 0]
    gap = abs(found[kinds == 0].mean() - found[kinds == 1].mean())
    assert gap < found.std()  # of values as they are: twice the deviation


def disc(side: int, radius: float, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A filled circle; radius and centre are shares of the side."""
    rows, columns = np.indices((side, side)) / side
    return (np.hypot(rows - centre[0], columns - centre[1]) < radius).astype(np.uint8)


def picture(mask: np.ndarray, seed: int = 0, noise: float = 10) -> np.ndarray:
    """Bright objects on a dark ground, with noise and a slope of light."""
    rng = np.random.default_rng(seed)
    light = np.linspace(0, 40, mask.shape[1])
    image = 80 + 60 * (mask > 0) + light + rng.normal(0, noise, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def good_and_bad(count: int = 12, side: int = 128) -> tuple[list, list]:
    """Images, and masks of which the first four are drawn too large."""
    right = [disc(side, 0.2 + 0.01 * n) for n in range(count)]
    images = [picture(mask, seed) for seed, mask in enumerate(right)]
    wide = np.ones((9, 9), np.uint8)
    masks = [cv2.dilate(mask, wide) if n < 4 else mask for n, mask in enumerate(right)]
    return images, masks


@pytest.mark.parametrize("kind", ["grey", "colour", "seven bands", "float", "jpeg", "texture"])
def test_outlines_beside_the_edge_rank_worst(kind):
    images, masks = good_and_bad()
    rng = np.random.default_rng(1)
    if kind == "colour":
        images = [np.dstack([image, 255 - image, image]) for image in images]
    elif kind == "seven bands":
        empty = np.zeros_like(images[0])
        images = [np.dstack([empty, image, *[empty + 9] * 5]) for image in images]
    elif kind == "float":
        images = [image.astype(np.float32) / 1000 - 3 for image in images]
    elif kind == "jpeg":
        images = [cv2.imdecode(cv2.imencode(".jpg", i, [1, 30])[1], 0) for i in images]
    elif kind == "texture":
        stripes = 30 * (np.arange(128) // 3 % 2)
        images = [np.clip(i + stripes, 0, 255) + rng.normal(0, 5, i.shape) for i in images]
    scores = outline_scores(iter(images), iter(masks))
    assert sorted(np.argsort(-scores)[:4]) == [0, 1, 2, 3]


@pytest.mark.parametrize("side", [64, 256, 700, 1500])
def test_the_scale_follows_the_size_of_the_image(side):
    mask = disc(side, 0.25)
    image = picture(mask)
    shifted = disc(side, 0.25, (0.5, 0.55))
    right, wrong = outline_evidence(image, mask)[0], outline_evidence(image, shifted)[0]
    assert (right > wrong + 0.1).all()
    assert right[1] > 0.75


def test_small_objects_in_a_large_image_have_a_scale_of_their_own():
    mask, beside = np.zeros((1024, 1024), np.uint8), np.zeros((1024, 1024), np.uint8)
    for n in range(6):
        mask[100 + 150 * n : 116 + 150 * n, 300:316] = 1
        beside[103 + 150 * n : 119 + 150 * n, 303:319] = 1
    image = picture(mask, noise=3)
    assert (outline_evidence(image, mask) > outline_evidence(image, beside)).all()


def test_what_cannot_be_judged_is_unknown_and_adds_nothing():
    images, masks = good_and_bad()
    images[4], masks[5], masks[6] = np.full_like(images[4], 7), 0 * masks[5], 0 * masks[6] + 1
    scores = outline_scores(images, masks)
    assert np.isnan(scores[[4, 5, 6]]).all()
    assert np.isfinite(np.delete(scores, [4, 5, 6])).all()
    assert len(outline_scores([], [])) == 0


def test_every_class_is_judged_by_itself_and_unlabelled_pixels_are_no_outline():
    first, second = disc(128, 0.12, (0.3, 0.3)), disc(128, 0.12, (0.7, 0.7))
    image = picture(first + second)
    right = outline_evidence(image, first + 2 * second, classes=4)
    moved = outline_evidence(image, first + 2 * disc(128, 0.12, (0.7, 0.78)), classes=4)
    assert right.shape == (3, 2)
    assert np.isnan(right[2]).all()
    assert (right[0] == moved[0]).all()
    assert (right[1] > moved[1]).all()
    unlabelled = first + 2 * second
    unlabelled[:, 20:] = np.where(unlabelled[:, 20:] == 2, 255, unlabelled[:, 20:])
    assert np.isnan(outline_evidence(image, unlabelled, classes=3)[1]).all()


def test_sizes_and_numbers_that_differ_are_refused():
    with pytest.raises(InputError, match="that have the size of their images"):
        outline_evidence(np.zeros((8, 8)), np.zeros((8, 9), int))
    with pytest.raises(InputError, match="not as many images as masks"):
        outline_scores([np.zeros((8, 8))], [])


def test_masks_of_0_and_255_are_refused():
    images, masks = good_and_bad()
    with pytest.raises(
        InputError, match="hold 255, which means unlabelled, but no foreground class"
    ):
        outline_scores(images, [255 * mask for mask in masks])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (7, 7)])
def test_images_that_are_too_narrow_are_unknown(shape):
    mask = np.zeros(shape, np.uint8)
    mask[:, shape[1] // 2 :] = 1
    assert np.isnan(outline_evidence(picture(mask), mask)).all()


def test_an_image_with_gaps_is_unknown():
    mask = disc(64, 0.3)
    image = picture(mask).astype(np.float32)
    image[32, 32] = np.nan
    assert np.isnan(outline_evidence(image, mask)).all()


def test_outlines_of_any_length_are_judged():
    mask = np.random.default_rng(0).integers(0, 2, (512, 512))  # more than 100,000 points
    assert np.isfinite(outline_evidence(picture(mask), mask)).all()


def test_joint_needs_outlines():
    with pytest.raises(InputError, match="score=joint uses the outlines too"):
        mask_scores(Evidence.from_table(np.ones((4, 12))), "joint")


class LargeSquares(Squares):
    """The first three masks are moved by less than a pixel of the networks."""

    def mask(self, index: int) -> np.ndarray:
        mask = super().mask(index)
        return np.roll(mask, 3, axis=1) if index < 3 else mask

    def image(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(100 + index).normal(60, 5, (self.side, self.side))
        return np.clip(noise + 110 * super().mask(index), 0, 255).astype(np.uint8)


def large_squares() -> CoSegDataModule:
    return CoSegDataModule(
        LargeSquares(12, side=128), image_size=16, in_channels=1, batch_size=4, augmentation=None
    )


def worst_of(folder, data) -> list[str]:
    """The ids that rank worst by `joint`; the peers see 16 x 16 pixels."""
    ranking = CorruptionRanking(folder / "scores.csv", score="joint")
    trainer_of(folder, max_epochs=3, callbacks=[ranking]).fit(module_of(0.25), data)
    return sorted(row["id"] for row in rows_of(folder / "scores.csv")[:3])


def test_masks_are_judged_at_their_own_size(tmp_path):
    assert worst_of(tmp_path, large_squares()) == ["s00", "s01", "s02"]


def test_parts_of_our_datasets_are_judged_at_their_own_size(tmp_path):
    samples = large_squares().samples("train")
    parts = ConcatDataset([Subset(samples, range(5, 12)), Subset(samples, range(5))])
    assert worst_of(tmp_path, DataLoader(parts, batch_size=4)) == ["s00", "s01", "s02"]


@pytest.mark.parametrize("ids", [True, False])
def test_a_foreign_dataset_is_ranked_by_its_outlines_too(tmp_path, ids):
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="joint", epochs=2)
    loader = DataLoader(Halves(ids=ids), batch_size=4)
    trainer_of(tmp_path, max_epochs=4, callbacks=[ranking]).fit(module_of(0.25), loader)
    assert ranking.ranking is not None
    assert np.isfinite(ranking.ranking.score).all()


class Looking(CorruptionRanking):
    """Keeps the kinds that the scores are computed with, by id."""

    def scores(self, evidence, ids, dataset):
        self.seen = dict(zip(ids, () if evidence.kinds is None else evidence.kinds, strict=False))
        return super().scores(evidence, ids, dataset)


PARTS = ("data", "callback")


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_unit_of_an_image_does_not_matter(scale, offset):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 16:40] = 1
    image = np.random.default_rng(0).normal(0, 0.1, mask.shape) + mask
    found = outline_evidence(scale * (image + offset), mask)
    np.testing.assert_allclose(found, outline_evidence(image, mask), rtol=0.02)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ([np.ones((8, 8))], [np.full((8, 8), 0.5)], "Mask 0 holds other values than whole numbers"),
        ([np.ones((8, 8))], [np.full((8, 8), -1)], "Mask 0 holds other values"),
        ([np.ones((8, 8))], [np.full((8, 8), np.nan)], "Mask 0 holds other values"),
        ([np.ones((8, 8))], [np.ones((8, 9), int)], r"Mask 0 is \(8, 9\), but its image is"),
        (np.ones((8, 8)), np.ones((8, 8), int), r"Image 0 is float64 of shape \(8,\); give lists"),
        (["a.png"], ["b.png"], "Image 0 is <U5"),
        ([np.ones((8, 8), complex)], [np.ones((8, 8), int)], "Image 0 is complex128"),
    ],
)
def test_what_is_no_image_or_mask_is_refused(images, masks, message):
    with pytest.raises(InputError, match=message):
        outline_scores(images, masks)


def test_tensors_and_truth_values_are_masks_too():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 64), bool)
    mask[20:44, 16:40] = True
    image = rng.normal(0, 0.1, mask.shape) + mask
    expected = outline_scores([image, -image], [mask.astype(int)] * 2)
    assert (
        outline_scores([torch.tensor(image), -image], [torch.tensor(mask), mask]) == expected
    ).all()


@pytest.mark.parametrize("given", ["to the data", "to the callback", "not at all"])
def test_kinds_of_images_reach_the_scores(tmp_path, given):
    kinds = {f"s{n:02}": "new scanner" if n < 4 else "old scanner" for n in range(12)}
    of_data, of_callback = (kinds if given == f"to the {part}" else None for part in PARTS)
    data = CoSegDataModule(
        LargeSquares(12), image_size=16, in_channels=1, batch_size=4, kinds=of_data
    )
    ranking = Looking(tmp_path / "scores.csv", kinds=of_callback)
    trainer_of(tmp_path, max_epochs=1, callbacks=[ranking]).fit(module_of(0.25), data)
    expected = {i: 1 if kind == "new scanner" else 2 for i, kind in kinds.items()}
    assert ranking.seen == ({} if given == "not at all" else expected)


def test_every_training_sample_needs_a_kind():
    with pytest.raises(InputError, match="kinds has no kind for 's01'"):
        CoSegDataModule(Squares(12), kinds={"s00": "a"})
