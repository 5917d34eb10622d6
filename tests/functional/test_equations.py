"""The equations, compared with slow loops written from the paper."""

import math

import numpy as np
import pytest
import torch

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    agreement,
    class_logits,
    corruption_score,
    dice_loss,
    keep_rate,
    l2_weight_decay,
    predicted_classes,
    segmentation_loss,
    selection_size,
    small_score_selection,
    vote,
)
from coseg_lightning.functional.losses import PIXEL_LOSSES


def slow_probabilities(logits):
    """Softmax over classes, or the sigmoid of a single output, pixel by pixel in float64."""
    logits = logits.double().numpy()
    if logits.shape[1] == 1:
        p = 1 / (1 + np.exp(-logits[:, 0]))
        return np.stack([1 - p, p], axis=1)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def slow_score(logits, masks, reduction):
    p, masks = slow_probabilities(logits), masks.numpy()
    scores = []
    for n in range(len(masks)):
        terms = [
            -math.log(p[n, masks[n, y, x], y, x])
            for y in range(masks.shape[1])
            for x in range(masks.shape[2])
            if masks[n, y, x] != 255
        ]
        scores.append(sum(terms) / (max(1, len(terms)) if reduction == "mean" else 1))
    return np.array(scores)


def slow_dice_loss(logits, masks, first_class):
    p, masks = slow_probabilities(logits), masks.numpy()
    losses = []
    for n in range(len(masks)):
        terms = []
        for c in range(first_class, p.shape[1]):
            overlap = squares = 0.0
            for y in range(masks.shape[1]):
                for x in range(masks.shape[2]):
                    if masks[n, y, x] != 255:
                        g = float(masks[n, y, x] == c)
                        overlap += 2 * p[n, c, y, x] * g
                        squares += p[n, c, y, x] ** 2 + g**2
            terms.append(overlap / squares if squares else 0.0)
        losses.append(1 - sum(terms) / len(terms))
    return np.array(losses)


def example(outputs, ignored):
    generator = torch.Generator().manual_seed(outputs)
    logits = 3 * torch.randn(4, outputs, 5, 6, generator=generator)
    masks = torch.randint(0, max(2, outputs), (4, 5, 6), generator=generator)
    if ignored:
        masks[torch.rand(4, 5, 6, generator=generator) < 0.3] = 255
        masks[3] = 255  # a sample without any label
    return logits, masks


CASES = [(outputs, ignored) for outputs in (1, 2, 4) for ignored in (False, True)]


@pytest.mark.parametrize(("outputs", "ignored"), CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_corruption_score_is_equation_1(outputs, ignored, reduction):
    logits, masks = example(outputs, ignored)
    score = corruption_score(logits, masks, reduction=reduction)
    np.testing.assert_allclose(score, slow_score(logits, masks, reduction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("outputs", "ignored"), CASES)
@pytest.mark.parametrize("include_background", [True, False])
def test_dice_loss_is_equation_3(outputs, ignored, include_background):
    logits, masks = example(outputs, ignored)
    loss = dice_loss(logits, masks, include_background=include_background)
    expected = slow_dice_loss(logits, masks, first_class=0 if include_background else 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_loss_is_equation_2():
    logits, masks = example(3, True)
    loss = segmentation_loss(logits, masks, lambda_1=0.7)
    expected = slow_score(logits, masks, "mean") + 0.7 * slow_dice_loss(logits, masks, 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_weight_decay_is_the_gradient_of_the_l2_term():
    lambda_2 = 0.03
    explicit, decayed = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    (lambda_2 * explicit.square().sum()).backward()
    torch.optim.SGD([explicit], lr=0.5).step()
    decayed.grad = torch.zeros(2)
    torch.optim.SGD([decayed], lr=0.5, weight_decay=l2_weight_decay(lambda_2)).step()
    torch.testing.assert_close(explicit.data, decayed.data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    # 256 x 256 pixels at 8 nats sum to 524288, and float16 ends at 65504.
    logits = torch.zeros(1, 2, 256, 256, dtype=dtype)
    logits[:, 0] = 8
    masks = torch.ones(1, 256, 256, dtype=torch.long)
    score = corruption_score(logits, masks, reduction="sum")
    assert score.dtype == torch.float32
    assert score.item() == pytest.approx(256 * 256 * math.log1p(math.exp(8)), rel=1e-3)
    assert torch.isfinite(dice_loss(logits, masks)).all()


def test_gradients_are_finite_for_extreme_logits_and_unlabelled_samples():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).repeat(2, 1, 4, 4).requires_grad_()
    masks = torch.ones(2, 4, 4, dtype=torch.long)
    masks[1] = 255
    segmentation_loss(logits, masks).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all()


def test_one_output_is_the_sigmoid():
    logits = torch.randn(2, 1, 3, 3)
    probabilities = class_logits(logits).softmax(dim=1)
    torch.testing.assert_close(probabilities[:, 1:], logits.sigmoid())


def test_keep_rate_ramps_to_one_minus_the_noise_level():
    rates = [keep_rate(epoch, 0.4, ramp_epochs=4) for epoch in range(6)]
    assert rates == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.6])
    assert keep_rate(0, 0.4, ramp_epochs=0) == pytest.approx(0.6)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 10])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.5, 0.75, 0.9, 1.0])
def test_selection_keeps_alpha_on_average_and_never_nothing(batch_size, alpha):
    carry, sizes = 0.0, []
    for _ in range(1000):
        k, carry = selection_size(batch_size, alpha, carry)
        sizes.append(k)
    assert min(sizes) >= 1
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert np.mean(sizes) == pytest.approx(max(1, alpha * batch_size), abs=2e-3)


def test_selection_recovers_at_once_when_alpha_rises_again():
    carry = 0.0
    for _ in range(100):  # at least one sample is kept, although 0.2 samples are due
        _, carry = selection_size(2, 0.1, carry)
    assert selection_size(8, 1.0, carry)[0] >= 7


def test_selection_takes_the_smallest_scores_and_can_take_any_sample():
    scores = torch.tensor([0.5, 0.1, float("nan"), 0.3])
    assert small_score_selection(scores, 2).tolist() == [1, 3]
    assert small_score_selection(scores, 3).tolist() == [1, 3, 0]
    for best in range(4):
        scores = torch.ones(4)
        scores[best] = 0
        assert small_score_selection(scores, 1).tolist() == [best]


def test_vote_overrules_the_label_only_where_both_peers_agree():
    #                     agree=label  agree!=label  disagree  unlabelled
    class_a = torch.tensor([[[0, 2, 1, 2]]])
    class_b = torch.tensor([[[0, 2, 2, 2]]])
    label = torch.tensor([[[0, 1, 0, 255]]])
    probabilities = (
        torch.nn.functional.one_hot(c, 3).movedim(-1, 1).float() for c in (class_a, class_b)
    )
    assert vote(*probabilities, label).tolist() == [[[0, 2, 0, 255]]]


def test_agreement_counts_labelled_pixels_alone():
    a = torch.tensor([2.0, -2.0, 2.0, 2.0]).view(1, 1, 1, 4)
    b = torch.tensor([1.0, -1.0, -1.0, -1.0]).view(1, 1, 1, 4)
    masks = torch.tensor([[[1, 0, 1, 255]]])
    assert agreement(a, b, masks).item() == pytest.approx(2 / 3)


def test_vote_overrules_the_label_only_where_the_peers_are_sure():
    a = torch.tensor([[[[0.1, 0.4, 0.9]], [[0.9, 0.6, 0.1]]]] * 2)
    b = torch.tensor([[[[0.3, 0.4, 0.9]], [[0.7, 0.6, 0.1]]]] * 2)
    label = torch.tensor([[[0, 0, 1]]] * 2)
    assert vote(a, b, label, confidence=0.7).tolist() == [[[1, 0, 0]]] * 2
    each = vote(a, b, label, confidence=torch.tensor([0.5, 0.85]))
    assert each.tolist() == [[[1, 1, 0]], [[0, 0, 0]]]


@pytest.mark.parametrize(
    "loss", [*PIXEL_LOSSES.values(), dice_loss, segmentation_loss], ids=lambda loss: loss.__name__
)
@pytest.mark.parametrize("samples", [1, 2])
def test_masks_that_would_be_broadcast_are_refused(loss, samples):
    logits = torch.randn(samples, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(samples, 6, 6, dtype=torch.long)
    for wrong in (
        masks.float(),
        masks[:, None],
        masks[:, None].float(),
        masks[:, :1, :1],
        masks[:, :3],
        torch.zeros(samples + 1, 6, 6, dtype=torch.long),
        torch.zeros(1 if samples == 2 else 2, 2, 6, 6),
    ):
        with pytest.raises(InputError, match="The masks are .* but the logits are"):
            loss(logits, wrong)


def test_a_dice_loss_of_volumes_is_refused():
    with pytest.raises(InputError, match="the Dice loss is of images"):
        dice_loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.long))


@pytest.mark.parametrize("q", [0, -1, 2, math.nan])
def test_an_exponent_out_of_range_is_refused(q):
    logits, masks = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(InputError, match="must be above 0 and at most 1"):
        PIXEL_LOSSES["generalised_cross_entropy"](logits, masks, q=q)


def test_an_unknown_reduction_is_refused():
    logits, masks = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(InputError, match="reduction='average' must be mean or sum"):
        corruption_score(logits, masks, reduction="average")


def test_the_vote_of_one_output_is_refused():
    """The only class would win everywhere, and every label become background."""
    p, masks = torch.full((2, 1, 4, 4), 0.9), torch.ones(2, 4, 4, dtype=torch.long)
    with pytest.raises(InputError, match="of one class"):
        vote(p, p, masks)
    with pytest.raises(InputError, match="of one class"):
        predicted_classes(p)


def test_votes_of_other_shapes_are_refused():
    p, masks = torch.full((2, 2, 4, 4), 0.5), torch.ones(2, 4, 4, dtype=torch.long)
    for others in ((p, p, masks[:, None]), (p, p[:1], masks), (p, p, masks[:1])):
        with pytest.raises(InputError, match="The peers' outputs are"):
            vote(*others)
        with pytest.raises(InputError, match="The peers' outputs are"):
            agreement(*others)


def test_a_confidence_above_1_keeps_the_labels():
    """The correction asks for it where peers know little more than a label."""
    p, masks = torch.full((2, 2, 4, 4), 0.5), torch.ones(2, 4, 4, dtype=torch.long)
    for confidence in (1.2, math.inf, [1.2, math.inf]):
        assert vote(p, p, masks, confidence=confidence).equal(masks)


def test_a_noise_level_in_percent_is_refused():
    with pytest.raises(InputError, match="noise_level=30 must be"):
        keep_rate(3, 30, 2)
