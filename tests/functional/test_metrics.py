"""Dice and accuracy, compared with loops."""

import numpy as np
import pytest
import torch

from coseg_lightning.errors import InputError
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.functional.metrics import SegmentationScores


def slow_scores(predictions, masks, classes):
    dices, per_class, right, labelled = [], [[] for _ in range(classes)], 0, 0
    for prediction, mask in zip(predictions, masks, strict=True):
        is_labelled = mask != 255
        if not is_labelled.any():
            continue
        right += ((prediction == mask) & is_labelled).sum()
        labelled += is_labelled.sum()
        of_image = []
        for c in range(classes):
            p, g = (prediction == c) & is_labelled, mask == c
            if p.sum() + g.sum():
                dice = 2 * (p & g).sum() / (p.sum() + g.sum())
                per_class[c].append(dice)
                if c:
                    of_image.append(dice)
        dices.append(np.mean(of_image) if of_image else 1.0)
    return np.mean(dices), right / labelled, [np.mean(v) if v else np.nan for v in per_class]


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_against_a_loop_over_several_batches(classes):
    rng = np.random.default_rng(classes)
    masks = rng.integers(0, classes, (7, 6, 5))
    masks[rng.random(masks.shape) < 0.2] = 255
    masks[2] = 0  # no foreground in the mask, but some in the prediction
    predictions = rng.integers(0, classes, (7, 6, 5))
    masks[3] = predictions[3] = 0  # no foreground in either: the Dice is 1
    masks[4] = 255  # nothing to compare with: the image does not count
    scores = SegmentationScores(classes)
    for part in (slice(0, 3), slice(3, 7)):
        scores.update(torch.from_numpy(predictions[part]), torch.from_numpy(masks[part]))
    result = scores.compute()
    dice, accuracy, per_class = slow_scores(predictions, masks, classes)
    assert result["dice"].item() == pytest.approx(dice)
    assert result["accuracy"].item() == pytest.approx(accuracy)
    np.testing.assert_allclose(result["per_class_dice"], per_class)


def test_nothing_is_scored_where_nothing_is_labelled():
    scores = SegmentationScores(2)
    scores.update(torch.zeros(2, 3, 3, dtype=torch.long), torch.full((2, 3, 3), 255))
    assert all(torch.isnan(value).all() for value in scores.compute().values())


def test_a_class_that_never_occurs_has_no_dice():
    scores = SegmentationScores(3)
    scores.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long))
    named = scores.named("test", "_a")
    assert named["test/dice_a"] == 1
    assert named["test/dice_a_class_0"] == 1
    assert torch.isnan(named["test/dice_a_class_2"])


@pytest.mark.parametrize("classes", [1, 0, -2])
def test_one_class_is_refused(classes):
    """Without a foreground class the Dice would be 1, whatever was predicted."""
    with pytest.raises(InputError, match="must be at least 2, background included"):
        SegmentationScores(classes)


def test_what_are_no_class_ids_of_masks_is_refused():
    scores, masks = SegmentationScores(2), torch.ones(2, 4, 4, dtype=torch.long)
    for predictions in (masks[:, None], masks[:1], torch.rand(2, 2, 4, 4)):
        with pytest.raises(InputError, match="give class ids"):
            scores.update(predictions, masks)
    with pytest.raises(InputError, match=r"A prediction holds 0\.4, which is none of 2 classes"):
        scores.update(0.4 * masks, masks)
    with pytest.raises(InputError, match="A mask holds 2, which is none of 2 classes"):
        scores.update(masks, 2 * masks)
    with pytest.raises(InputError, match="A prediction holds 255"):
        scores.update(255 * masks, masks)
    scores.update(masks.float(), masks)
    assert scores.compute()["dice"] == 1


def test_what_is_predicted_where_nothing_is_labelled_may_be_unlabelled_too():
    """Such as a corrected mask, which keeps unlabelled pixels."""
    masks = torch.tensor([[[0, 1, 255]]])
    metric = SegmentationScores(2)
    metric.update(masks, masks)
    assert metric.compute()["dice"] == metric.compute()["accuracy"] == 1


def test_the_dice_of_lists_is_that_of_arrays():
    first, second = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    first[1:3], second[2:] = 1, 1
    assert mask_dice(first.tolist(), second.tolist()) == mask_dice(first, second) == 0.5
    with pytest.raises(InputError, match="give two of one size"):
        mask_dice(first, second[:2])
