"""One label out of several masks: right by hand, and equal to slow references."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from coseg_lightning.errors import InputError
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.fusion import Votes, best, majority, soft_label, staple


def people(classes=3, persons=5, side=24, seed=0, unlabelled=0.1):
    """Masks of a disc and a square, with mistakes of different frequency, partly unlabelled."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    truth = (np.hypot(y - 9, x - 9) < 6).astype(np.uint8)
    if classes > 2:
        truth[-8:, -8:] = 2
    masks = []
    for person in range(persons):
        mask = truth.copy()
        wrong = rng.random(truth.shape) < 0.05 * (person + 1)
        mask[wrong] = rng.integers(0, classes, int(wrong.sum()))
        mask[rng.random(truth.shape) < unlabelled] = 255
        masks.append(mask)
    return truth, masks


def row(*masks):
    return [np.array([mask], np.uint8) for mask in masks]


# Majority


def test_most_votes_win_and_unlabelled_pixels_do_not_vote():
    masks = row([1, 1, 0, 255, 255, 2], [1, 0, 0, 1, 255, 2], [0, 0, 2, 255, 255, 1])
    assert majority(masks).tolist() == [[1, 0, 0, 1, 255, 2]]


def test_two_people_who_disagree_leave_the_smaller_class():
    assert majority(row([1, 1, 2, 0], [1, 0, 1, 0])).tolist() == [[1, 0, 1, 0]]


def test_a_tie_goes_to_whom_the_others_agree_with_best():
    # The third and fourth pixel are tied. Persons 2 and 3 agree best with the others in all.
    masks = row(
        [0, 0, 1, 1, 0, 0, 1, 1],
        [1, 1, 2, 2, 1, 1, 1, 1],
        [1, 1, 2, 2, 1, 1, 1, 1],
        [0, 1, 1, 1, 0, 1, 1, 1],
    )
    agreement = Votes.of(masks).agreement()
    assert agreement.argmax() in (1, 2)
    assert majority(masks)[0, 2:4].tolist() == [2, 2]


def slow_majority(masks):
    count = len(masks)
    agreement = [
        np.mean([mask_dice(masks[p], masks[q]) for q in range(count) if q != p] or [1])
        for p in range(count)
    ]
    result = np.full(masks[0].shape, 255, np.uint8)
    for place in np.ndindex(result.shape):
        votes = [int(mask[place]) for mask in masks]
        polls = {k: votes.count(k) for k in set(votes) - {255}}
        if not polls:
            continue
        tied = [k for k in polls if polls[k] == max(polls.values())]
        if len(tied) > 1:
            best_of = max(agreement[p] for p in range(count) if votes[p] in tied)
            tied = [votes[p] for p in range(count) if votes[p] in tied and agreement[p] == best_of]
        result[place] = min(tied)
    return result


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("persons", [1, 2, 3, 4, 7])
def test_the_majority_equals_a_slow_count(classes, persons):
    _, masks = people(classes, persons, seed=persons)
    np.testing.assert_array_equal(majority(masks), slow_majority(masks))


def test_class_ids_of_16_bits_keep_their_type():
    masks = [np.array([[0, 300, 255]], np.uint16)] * 2
    fused = majority(masks)
    assert fused.dtype == np.uint16
    assert fused.tolist() == [[0, 300, 255]]


def test_masks_of_two_sizes_and_of_nobody_are_refused():
    with pytest.raises(
        InputError, match="cannot be fused; give at least one mask, all of the same"
    ):
        majority([np.zeros((2, 3)), np.zeros((3, 2))])
    with pytest.raises(InputError, match="nobody cannot be fused"):
        majority([])


@pytest.mark.parametrize("form", [bool, np.float32, np.int8, np.int64, np.uint16])
def test_masks_of_any_type_of_number_are_fused_alike(form):
    _, masks = people(2, unlabelled=0)
    others = [mask.astype(form) for mask in masks]
    for fuse in (majority, staple, lambda some: soft_label(some, 2)):
        np.testing.assert_array_equal(fuse(others), fuse(masks))
    image = picture(masks[0])
    assert best(image, others) == best(image, masks)
    unlabelled = [np.where(mask == 1, 255.0, 0.0) for mask in masks]
    assert set(np.unique(majority(unlabelled))) <= {0, 255}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "A mask holds -1, which is no class id; give integers from 0"),
        (0.5, "A mask holds 0.5, which is no class id"),
        (np.nan, "A mask holds nan, which is no class id"),
        ("a", "A mask holds values of the type <U1, which are no class ids"),
    ],
)
@pytest.mark.parametrize(
    "fuse", [majority, staple, lambda masks: soft_label(masks, 2), lambda masks: best(0, masks)]
)
def test_values_that_are_no_class_ids_are_refused(fuse, value, message):
    with pytest.raises(InputError, match=message):
        fuse([np.zeros((2, 2)), np.full((2, 2), value)])


def test_classes_beyond_the_last_and_images_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"holds the class 3, but there are 2 classes, 0 to 1"):
        soft_label(row([3, 0], [1, 0]), 2)
    with pytest.raises(InputError, match=r"image is \(5, 4\), but its masks are \(4, 4\)"):
        best(np.zeros((5, 4)), [np.zeros((4, 4))] * 2)


def test_a_mask_of_unlabelled_pixels_alone_changes_nothing():
    _, masks = people(persons=3)
    nothing = np.full_like(masks[0], 255)
    np.testing.assert_array_equal(majority([*masks, nothing]), majority(masks))
    np.testing.assert_array_equal(staple([*masks, nothing]), staple(masks))
    assert majority([nothing, nothing]).tolist() == nothing.tolist()
    assert staple([nothing, nothing]).tolist() == nothing.tolist()


# Soft labels


def test_soft_labels_are_shares_of_votes():
    shares = soft_label(row([1, 0, 255], [1, 1, 255], [0, 255, 255]), 3)
    np.testing.assert_allclose(shares[:, 0].T, [[1 / 3, 2 / 3, 0], [0.5, 0.5, 0], [0, 0, 0]])
    _, masks = people(persons=4)
    shares = soft_label(masks, 3)
    slow = np.stack([sum(mask == k for mask in masks) for k in range(3)]).astype(float)
    slow /= slow.sum(axis=0).clip(1)
    np.testing.assert_allclose(shares, slow, atol=1e-6)


# STAPLE


def slow_staple(masks, classes, steps=200):
    """EM of Warfield et al. 2004, pixel by pixel and without any shortcut."""
    persons, pixels = len(masks), [mask.reshape(-1) for mask in masks]
    theta = np.full((persons, classes, classes), 0.00001 / (classes - 1))
    for p in range(persons):
        np.fill_diagonal(theta[p], 0.99999)
    votes = np.array([[(said == k).sum() for k in range(classes)] for said in pixels]).sum(axis=0)
    prior = votes / votes.sum()
    truth = np.zeros((pixels[0].size, classes))
    for _ in range(steps):
        for i in range(len(truth)):
            for k in range(classes):
                truth[i, k] = prior[k]
                for p in range(persons):
                    if pixels[p][i] != 255:
                        truth[i, k] *= theta[p, pixels[p][i], k]
            truth[i] /= truth[i].sum()
        before = theta.copy()
        for p in range(persons):
            labelled = pixels[p] != 255
            for j in range(classes):
                said = pixels[p] == j
                theta[p, j] = truth[said].sum(axis=0) / truth[labelled].sum(axis=0)
        if np.abs(theta - before).max() < 1e-7:
            break
    return truth.argmax(axis=1).reshape(masks[0].shape).astype(np.uint8)


@pytest.mark.parametrize(("classes", "persons"), [(2, 3), (3, 4)])
def test_staple_equals_a_slow_reference(classes, persons):
    _, masks = people(classes, persons, side=14, seed=1, unlabelled=0.05)
    nobody = np.all([mask == 255 for mask in masks], axis=0)
    slow = slow_staple(masks, classes)
    slow[nobody] = 255
    np.testing.assert_array_equal(staple(masks), slow)


def test_staple_of_two_classes_equals_that_of_itk():
    sitk = pytest.importorskip("SimpleITK")
    _, masks = people(2, 5, side=48, unlabelled=0)
    images = [sitk.GetImageFromArray(mask) for mask in masks]
    theirs = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0)) > 0.5
    np.testing.assert_array_equal(staple(masks), theirs)


def test_staple_trusts_the_reliable():
    truth, masks = people(3, 5, side=40, unlabelled=0)
    rng = np.random.default_rng(3)
    noise = [rng.integers(0, 3, truth.shape).astype(np.uint8) for _ in range(4)]
    crowd = [masks[0], masks[1], *noise]
    errors = [(label != truth).mean() for label in (staple(crowd), majority(crowd))]
    assert errors[0] < 0.5 * errors[1]


# Best


def picture(truth):
    rng = np.random.default_rng(0)
    return (80 * truth + rng.normal(60, 4, truth.shape)).astype(np.float32)


def disc(radius, side=64, at=32):
    y, x = np.mgrid[:side, :side]
    return (np.hypot(y - at, x - at) < radius).astype(np.uint8)


def test_the_best_mask_lies_on_the_edges_of_its_image():
    truth = disc(14)
    masks = [disc(20), disc(17), truth, disc(11)]
    assert best(picture(truth), masks) == 2
    assert best(picture(truth), masks[::-1]) == 1


def test_where_outlines_tell_nothing_the_best_mask_agrees_with_the_others():
    masks = [disc(20), disc(14), disc(15)]
    assert best(np.zeros((64, 64), np.float32), masks) == 2
    assert best(np.zeros((64, 64), np.float32), [masks[0]] * 3) == 0


# Agreement


def test_agreement_is_the_packages_dice():
    _, masks = people(3, 4)
    votes = Votes.of(masks)
    pairs = votes.pairwise()
    for p in range(4):
        for q in range(4):
            if p == q:
                assert np.isnan(pairs[p, q])
            else:
                assert pairs[p, q] == pytest.approx(mask_dice(masks[p], masks[q]))
    np.testing.assert_allclose(votes.agreement(), np.nanmean(pairs, axis=1))


def test_more_people_are_nearer_to_the_truth():
    truth, masks = people(2, 7, side=48, unlabelled=0)
    dice = [mask_dice(majority(masks[-count:]), truth) for count in (1, 3, 5, 7)]
    assert all(more > fewer for fewer, more in pairwise(dice))


def test_one_mask_without_a_list_is_refused():
    """Its rows would be taken for masks."""
    for fuse in (majority, staple, partial(soft_label, classes=2)):
        with pytest.raises(InputError, match=r"Masks of \(4,\) cannot be fused"):
            fuse(np.zeros((4, 4), np.uint8))


def test_volumes_are_fused_as_their_slices_side_by_side():
    masks = np.random.default_rng(0).integers(0, 3, (3, 4, 6, 5)).astype(np.uint8)
    for fuse in (majority, staple):
        flat = fuse([mask.reshape(24, 5) for mask in masks])
        np.testing.assert_array_equal(fuse(list(masks)), flat.reshape(4, 6, 5))
