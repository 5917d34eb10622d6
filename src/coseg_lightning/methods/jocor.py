"""Joint training with co-regularisation (Wei et al. 2020, arXiv 2003.02752)."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits, labelled_mean
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.selection import PerBatch


class JoCoR(CoSegModule):
    """Joint training with co-regularisation (Wei et al. 2020, arXiv 2003.02752).

    Both peers learn from the same samples, those with the smallest joint loss. The joint loss is
    `(1 - weight)` times the sum of the peers' losses, plus `weight` times the symmetric
    Kullback-Leibler divergence of their predictions, averaged over labelled pixels.

    Args:
        nets: The networks, see `CoSegModule`.
        agreement_weight: lambda of the paper; the default is its value for symmetric noise.
        options: Further arguments of `CoSegModule`. Samples are kept within each batch by their
            joint loss, so `selection` has no effect.
    """

    takes_soft_masks = False

    def __init__(self, *nets: Any, agreement_weight: float = 0.9, **options: Any) -> None:
        if not 0 <= agreement_weight < 1:
            raise InputError(
                f"agreement_weight={agreement_weight} must be at least 0 and less than 1."
            )
        super().__init__(*nets, **options)
        if not isinstance(self.selection, PerBatch):  # samples are kept by their joint loss
            self.selection = PerBatch("eq1", self.ramp_epochs, ignore_index=self.ignore_index)
        self.agreement_weight = agreement_weight

    @override
    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        masks = sample.masks
        divergence = symmetric_divergence(logits_a, logits_b, masks != self.ignore_index)
        weight = self.agreement_weight
        joint_a = (1 - weight) * self.losses(logits_a, masks) + weight * divergence / 2
        joint_b = (1 - weight) * self.losses(logits_b, masks) + weight * divergence / 2
        assert isinstance(self.selection, PerBatch)
        k = self.selection.size(len(masks), self.alpha)
        picks = (joint_a + joint_b).detach().topk(k, largest=False).indices
        return joint_a[picks].mean(), joint_b[picks].mean(), (picks, picks)


def symmetric_divergence(logits_a: Tensor, logits_b: Tensor, labelled: Tensor) -> Tensor:
    """Compute `KL(a || b) + KL(b || a)` of two predictions, averaged over labelled pixels.

    Shape:
        logits `(N, K, H, W)`, labelled `(N, H, W)` bool; returns `(N,)`.
    """
    log_a, log_b = (class_logits(logits).log_softmax(dim=1) for logits in (logits_a, logits_b))
    # Both divergences together equal the sum over classes of (p_a - p_b) (log p_a - log p_b).
    per_pixel = ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(dim=1)
    return labelled_mean(per_pixel, labelled)


METHOD = Method("jocor", (robust_training,), module=JoCoR)
