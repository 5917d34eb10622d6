"""Losses that are robust to wrong labels. Each replaces the cross-entropy in Eq. (2)."""

from collections.abc import Callable

from torch import Tensor

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    check_masks,
    class_logits,
    corruption_score,
    labelled_mean,
    labelled_pixels,
)


def generalised_cross_entropy(
    logits: Tensor, masks: Tensor, *, q: float = 0.7, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Generalised cross-entropy `(1 - p_y^q) / q`, averaged over labelled pixels.

    It lies between the cross-entropy (q near 0) and the mean absolute error (q = 1).

    Args:
        logits: The network's output.
        masks: The labels.
        q: The exponent; 0.7 as published.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2; masks `(N, H, W)`
        or soft `(N, K, H, W)`. Returns `(N,)`.

    Source:
        Zhang and Sabuncu 2018, arXiv 1805.07836.

    Raises:
        InputError: If the exponent is out of range, or the masks do not fit the logits.
    """
    if not 0 < q <= 1:
        raise InputError(f"q={q} must be above 0 and at most 1.")

    def loss(p: Tensor) -> Tensor:
        return (1 - p.clamp_min(1e-7) ** q) / q

    return _mean_loss(loss, logits, masks, ignore_index)


def symmetric_cross_entropy(
    logits: Tensor,
    masks: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_of_zero: float = -4.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Cross-entropy plus reverse cross-entropy, averaged over labelled pixels.

    The reverse cross-entropy has the label in the logarithm. It equals `-A (1 - p_y)`, where A
    stands for the logarithm of zero.

    Args:
        logits: The network's output.
        masks: The labels.
        alpha: Weight of the cross-entropy, as published for CIFAR-10.
        beta: Weight of the reverse cross-entropy, as published for CIFAR-10.
        log_of_zero: A.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2; masks `(N, H, W)`
        or soft `(N, K, H, W)`. Returns `(N,)`.

    Source:
        Wang et al. 2019, arXiv 1908.06112.
    """

    def loss(p: Tensor) -> Tensor:
        return -alpha * p.clamp_min(1e-7).log() - beta * log_of_zero * (1 - p)

    return _mean_loss(loss, logits, masks, ignore_index)


def _mean_loss(
    loss: Callable[[Tensor], Tensor], logits: Tensor, masks: Tensor, ignore_index: int
) -> Tensor:
    """Average a loss of the label's probability over labelled pixels, weighted by vote shares."""
    check_masks(logits, masks)
    p, labelled = class_logits(logits).softmax(dim=1), labelled_pixels(masks, ignore_index)
    if masks.is_floating_point():
        return labelled_mean((masks * loss(p)).sum(dim=1), labelled)
    of_label = p.gather(1, masks.where(labelled, 0).unsqueeze(1))[:, 0]
    return labelled_mean(loss(of_label), labelled)


PIXEL_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": corruption_score,
    "generalised_cross_entropy": generalised_cross_entropy,
    "symmetric_cross_entropy": symmetric_cross_entropy,
}
