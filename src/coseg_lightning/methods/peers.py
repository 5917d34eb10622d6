"""Other ways for two peers to learn from noisy labels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule


class PlainPeers(CoSegModule):
    """Two networks that learn from all samples, each for itself: an ensemble to rank by."""

    @override
    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, None]:
        masks = sample.masks
        return self.losses(logits_a, masks).mean(), self.losses(logits_b, masks).mean(), None


class PixelCoTeaching(CoSegModule):
    """Co-teaching (Han et al. 2018, arXiv 1804.06872) that selects pixels instead of samples.

    As in PyMIC (Wang et al. 2023, arXiv 2208.09350): each peer keeps the labelled pixels of the
    batch with the smallest cross-entropy, and the other learns from their cross-entropy alone. The
    noise level is a share of samples, not of pixels, and is not used.

    Args:
        select_ratio: Share of the pixels that is kept after the ramp; PyMIC's example has 0.8.
        options: Those of `CoSegModule`; `selection` has no effect.
    """

    def __init__(self, *nets: Any, select_ratio: float = 0.8, **options: Any) -> None:
        if not 0 < select_ratio <= 1:
            raise InputError(f"select_ratio={select_ratio} must be above 0 and at most 1.")
        super().__init__(*nets, **options)
        self.select_ratio = select_ratio

    @override
    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, None]:
        masks = sample.masks
        labelled = masks != self.ignore_index
        losses_a, losses_b = (self._pixel_losses(logits, masks) for logits in (logits_a, logits_b))
        losses_a, losses_b = losses_a[labelled], losses_b[labelled]
        keep = self.ramp(1 - self.select_ratio)
        k = max(1, int(keep * len(losses_a))) if len(losses_a) else 0
        picks_a, picks_b = (
            losses.detach().topk(k, largest=False).indices for losses in (losses_a, losses_b)
        )
        return losses_a[picks_b].sum() / max(1, k), losses_b[picks_a].sum() / max(1, k), None

    def _pixel_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(
            class_logits(logits), masks, ignore_index=self.ignore_index, reduction="none"
        )


class JoCoR(CoSegModule):
    """Joint training with co-regularisation (Wei et al. 2020, arXiv 2003.02752).

    Both peers learn from the same samples, those with the smallest joint loss: `(1 - weight)` times
    the sum of their losses plus `weight` times the symmetric Kullback-Leibler divergence of their
    predictions, the mean over labelled pixels.

    Args:
        agreement_weight: lambda of the paper, whose value for symmetric noise is the default.
        options: Those of `CoSegModule`; `selection` must be one by batch.
    """

    def __init__(self, *nets: Any, agreement_weight: float = 0.9, **options: Any) -> None:
        if not 0 <= agreement_weight < 1:
            raise InputError(
                f"agreement_weight={agreement_weight} must be at least 0 and less than 1."
            )
        super().__init__(*nets, **options)
        self.agreement_weight = agreement_weight

    @override
    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        masks = sample.masks
        apart = symmetric_divergence(logits_a, logits_b, masks != self.ignore_index)
        weight = self.agreement_weight
        joint_a = (1 - weight) * self.losses(logits_a, masks) + weight * apart / 2
        joint_b = (1 - weight) * self.losses(logits_b, masks) + weight * apart / 2
        k = self.selection_size(len(masks))
        picks = (joint_a + joint_b).detach().topk(k, largest=False).indices
        return joint_a[picks].mean(), joint_b[picks].mean(), (picks, picks)


def symmetric_divergence(logits_a: Tensor, logits_b: Tensor, labelled: Tensor) -> Tensor:
    """`KL(a || b) + KL(b || a)` of two predictions, the mean over each sample's labelled pixels.

    Shape:
        logits `(N, K, H, W)`, labelled `(N, H, W)` bool; returns `(N,)`.
    """
    log_a, log_b = (class_logits(logits).log_softmax(dim=1) for logits in (logits_a, logits_b))
    # The sum of both is that of the product of differences.
    per_pixel = ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(dim=1)
    pixels = labelled.flatten(1).sum(dim=1).clamp_min(1)
    result: Tensor = torch.where(labelled, per_pixel, 0).flatten(1).sum(dim=1) / pixels
    return result
