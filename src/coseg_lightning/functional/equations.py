"""The paper's mathematics in plain torch: Eq. (1) to (3), selection and vote.

Legend of shapes: N samples, K classes, H x W pixels. Logits are `(N, K, H, W)` floats of any
precision, or `(N, 1, H, W)` for a binary network with one sigmoid output; masks are `(N, H, W)`
int64 with class ids `0 .. K-1` and `ignore_index` where nobody labelled.

Section and equation numbers are those of arXiv 2102.00523.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255


def class_logits(logits: Tensor) -> Tensor:
    """Logits of all classes, in float32 or better.

    A binary network's single output z becomes the pair (0, z), whose softmax is the sigmoid of z,
    so that everything else is written once, for K classes. Half precision is left here, because
    a sum over 256 x 256 pixels overflows float16.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2. Returns `(N, K, H, W)`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits


def predicted_classes(scores: Tensor) -> Tensor:
    """The class with the highest logit or probability of every pixel, the first of equal ones.

    Shape:
        scores `(N, K, H, W)`; returns `(N, H, W)` int64.
    """
    if scores.shape[1] == 2:
        return (scores[:, 1] > scores[:, 0]).long()  # many times faster yet
    return scores.max(dim=1).indices  # twenty times faster than argmax on a CPU


def corruption_score(
    logits: Tensor,
    masks: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Corruption score of each sample, Eq. (1): cross-entropy between label and prediction.

    Args:
        logits: The network's output.
        masks: The labels to judge.
        reduction: `mean` over the sample's labelled pixels, or `sum` as printed; the order of
            samples with equally many labelled pixels is the same.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Returns:
        `(N,)` scores in nats, small for reliable labels. A sample without any labelled pixel
        scores 0: nothing in it contradicts the network.
    """
    per_pixel = F.cross_entropy(
        class_logits(logits), masks, ignore_index=ignore_index, reduction="none"
    )
    total = per_pixel.flatten(1).sum(dim=1)
    if reduction == "sum":
        return total
    labelled = (masks != ignore_index).flatten(1).sum(dim=1)
    return total / labelled.clamp_min(1)


def dice_loss(
    logits: Tensor,
    masks: Tensor,
    *,
    include_background: bool = True,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Dice loss of each sample, Eq. (3), with squared denominators over k classes.

    Args:
        logits: The network's output.
        masks: The labels.
        include_background: Whether class 0 is one of the k classes.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Returns:
        `(N,)` losses in [0, 1]. A class absent from the label adds the constant 1/k, with zero
        gradient, as the equation has it.
    """
    probabilities = class_logits(logits).softmax(dim=1)
    labelled = masks != ignore_index
    labels = F.one_hot(masks.where(labelled, 0), probabilities.shape[1]).movedim(-1, 1)
    p = probabilities * labelled.unsqueeze(1)
    g = (labels * labelled.unsqueeze(1)).to(p.dtype)
    if not include_background:
        p, g = p[:, 1:], g[:, 1:]
    overlap = 2 * (p * g).sum(dim=(2, 3))
    size = p.square().sum(dim=(2, 3)) + g.square().sum(dim=(2, 3))
    # The smallest normal number only guards 0/0 where a class is neither labelled nor predicted.
    return 1 - (overlap / size.clamp_min(torch.finfo(p.dtype).tiny)).mean(dim=1)


def segmentation_loss(
    logits: Tensor,
    masks: Tensor,
    *,
    lambda_1: float = 1.0,
    include_background: bool = True,
    ignore_index: int = IGNORE_INDEX,
    pixel_loss: Callable[..., Tensor] = corruption_score,
) -> Tensor:
    """The first two terms of Eq. (2) for each sample: `L_CE + lambda_1 L_Dice`.

    The third, `lambda_2 ||W||^2`, does not depend on the sample and is left to the optimizer:
    see `l2_weight_decay`. A `pixel_loss` of the same signature as `corruption_score` takes the
    place of the cross-entropy.

    Returns:
        `(N,)` losses.
    """
    cross_entropy = pixel_loss(logits, masks, ignore_index=ignore_index)
    dice = dice_loss(
        logits, masks, include_background=include_background, ignore_index=ignore_index
    )
    return cross_entropy + lambda_1 * dice


def l2_weight_decay(lambda_2: float) -> float:
    """The `weight_decay` that makes an optimizer add the L2 term of Eq. (2).

    The gradient of `lambda_2 ||W||^2` is `2 lambda_2 W`; torch's SGD and Adam add
    `weight_decay * W`. AdamW's decoupled decay is another method and not this term.
    """
    return 2 * lambda_2


def keep_rate(epoch: int, noise_level: float, ramp_epochs: int) -> float:
    """Share alpha of each batch that is trusted in an epoch (counted from 0).

    Falls linearly from 1 to `1 - noise_level` over the first `ramp_epochs`, since the scores of
    an untrained network say nothing (Han et al. 2018, arXiv 1804.06872, Algorithm 1).
    `ramp_epochs=0` is the constant `alpha = 1 - NoL` of section 3.
    """
    if ramp_epochs <= 0:
        return 1 - noise_level
    return 1 - noise_level * min(1.0, epoch / ramp_epochs)


def selection_size(batch_size: int, alpha: float, carry: float) -> tuple[int, float]:
    """How many samples of this batch to keep, and what to carry over to the next.

    `alpha * batch_size` is rarely whole. The rounding error is carried from batch to batch, so
    that the share kept is alpha on average; at least one sample is kept in every batch.

    Returns:
        The number k, `1 <= k <= batch_size`, and the carry for the next call (start with 0).
    """
    exact = alpha * batch_size + carry
    k = min(batch_size, max(1, math.floor(exact + 1e-9)))
    # Where alpha * batch_size < 1, "at least one" overdraws for ever; one sample is owed at most.
    return k, max(-1.0, exact - k)


def small_score_selection(scores: Tensor, k: int) -> Tensor:
    """Indices of the k samples with the smallest corruption scores (section 2.1).

    Shape:
        scores `(N,)`; returns `(k,)` int64. NaN scores come last.
    """
    return scores.topk(k, largest=False).indices


def vote(
    probabilities_a: Tensor,
    probabilities_b: Tensor,
    masks: Tensor,
    *,
    confidence: float | Tensor = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Corrected labels (section 2.2): the peers' class where both agree against the label.

    Unlabelled pixels stay unlabelled.

    Args:
        probabilities_a: Class probabilities of the first peer.
        probabilities_b: Class probabilities of the second peer.
        masks: The labels.
        confidence: The mean probability of the peers' class must be above this, one number or one
            a sample; 0 as printed.
        ignore_index: Class id of unlabelled pixels.

    Shape:
        probabilities `(N, K, H, W)`, masks and result `(N, H, W)`, confidence `(N,)`.
    """
    class_a, class_b = predicted_classes(probabilities_a), predicted_classes(probabilities_b)
    overruled = (class_a == class_b) & (masks != ignore_index)
    sure = ((probabilities_a + probabilities_b) / 2).amax(dim=1)
    least = torch.as_tensor(confidence, dtype=sure.dtype, device=sure.device)
    return class_a.where(overruled & (sure > least.view(-1, 1, 1)), masks)


def agreement(
    logits_a: Tensor, logits_b: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Share of labelled pixels for which both peers predict the same class, a scalar in [0, 1]."""
    same = predicted_classes(class_logits(logits_a)) == predicted_classes(class_logits(logits_b))
    labelled = masks != ignore_index
    return (same & labelled).sum() / labelled.sum().clamp_min(1)
