"""Soft masks: the losses of shares of votes."""

import pytest
import torch
import torch.nn.functional as F

from coseg_lightning.functional.equations import corruption_score, dice_loss, segmentation_loss
from coseg_lightning.functional.losses import PIXEL_LOSSES

LOSSES = [*PIXEL_LOSSES.values(), dice_loss, segmentation_loss]


def example(people, outputs=3):
    generator = torch.Generator().manual_seed(people)
    logits = torch.randn(4, outputs, 5, 6, generator=generator)
    votes = torch.randint(0, max(2, outputs), (people, 4, 5, 6), generator=generator)
    return logits, votes


def shares(votes, classes=3):
    """Each class's share of the votes, `(N, K, H, W)`; 255 does not vote."""
    hot = F.one_hot(votes.where(votes < 255, classes), classes + 1)[..., :classes].float()
    return (hot.sum(dim=0) / hot.sum(dim=(0, -1)).clamp_min(1)[..., None]).movedim(-1, 1)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_single_vote_is_a_mask(loss, outputs):
    logits, (mask,) = example(1, outputs)
    mask[torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = 255
    mask[3] = 255  # a sample without any label
    soft = shares(mask[None], max(2, outputs))
    torch.testing.assert_close(loss(logits, soft), loss(logits, mask))


@pytest.mark.parametrize("loss", PIXEL_LOSSES.values(), ids=lambda loss: loss.__name__)
def test_the_loss_of_shares_is_the_mean_over_the_votes(loss):
    logits, votes = example(5)
    expected = torch.stack([loss(logits, vote) for vote in votes]).mean(dim=0)
    torch.testing.assert_close(loss(logits, shares(votes)), expected)


def test_cross_entropy_is_least_at_the_shares():
    _, votes = example(5)
    soft = shares(votes)
    at_shares = corruption_score(soft.clamp_min(1e-9).log(), soft)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = soft.clamp_min(1e-3).log() + torch.randn(soft.shape, generator=generator)
        assert (corruption_score(other, soft) > at_shares).all()
