"""The paper's mathematics in plain torch: Eq. (1) to (3), selection and vote.

Legend of shapes: N samples, K classes, H x W pixels. Logits are `(N, K, H, W)` floats of any
precision, or `(N, 1, H, W)` for a binary network with one sigmoid output. Masks are `(N, H, W)`
int64 with class ids `0 .. K-1`, and `ignore_index` marks unlabelled pixels. The losses also take
soft masks `(N, K, H, W)`: each class's share of the votes, as torch's cross-entropy does. Their
unlabelled pixels are zero in all classes.

Section and equation numbers are those of arXiv 2102.00523.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from coseg_lightning.errors import InputError

IGNORE_INDEX = 255


def class_logits(logits: Tensor) -> Tensor:
    """Return the logits of all classes, in float32 or better.

    The single output z of a binary network becomes the pair (0, z), whose softmax is the sigmoid
    of z. Everything else can therefore be written once, for K classes. Half precision is converted
    here, because a sum over 256 x 256 pixels overflows float16.

    Shape:
        logits `(N, K, H, W)`, or `(N, 1, H, W)` for K = 2. Returns `(N, K, H, W)`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits


def predicted_classes(scores: Tensor) -> Tensor:
    """Return the class with the highest logit or probability at each pixel, the first if tied.

    Shape:
        scores `(N, K, H, W)`; returns `(N, H, W)` int64.

    Raises:
        InputError: If there is one class only.
    """
    if scores.shape[1] == 1:
        raise InputError(
            f"Scores {tuple(scores.shape)} are of one class, which would win everywhere; of a "
            "single sigmoid output give class_logits(logits), or torch.cat([1 - p, p], dim=1)."
        )
    if scores.shape[1] == 2:
        return (scores[:, 1] > scores[:, 0]).long()  # much faster still for two classes
    return scores.max(dim=1).indices  # twenty times faster than argmax on a CPU


def labelled_mean(values: Tensor, labelled: Tensor) -> Tensor:
    """Return the mean of each sample's values over its labelled pixels, 0 if it has none.

    Shape:
        values and labelled `(N, H, W)`; returns `(N,)`.
    """
    pixels = labelled.flatten(1).sum(dim=1).clamp_min(1)
    return values.where(labelled, 0).flatten(1).sum(dim=1) / pixels


def labelled_pixels(masks: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return which pixels have a label.

    Shape:
        masks `(N, H, W)`, or soft masks `(N, K, H, W)`; returns `(N, H, W)`.
    """
    return masks.any(dim=1) if masks.is_floating_point() else masks != ignore_index


def check_masks(logits: Tensor, masks: Tensor) -> None:
    """Raise an `InputError` if masks are not of the samples and pixels of the logits.

    Most of these would be broadcast, and give a loss of something else.
    """
    (count, classes), size = logits.shape[:2], logits.shape[2:]
    ids, shares = (count, *size), (count, max(2, classes), *size)
    if tuple(masks.shape) != (shares if masks.is_floating_point() else ids):
        raise InputError(
            f"The masks are {tuple(masks.shape)}, {masks.dtype}, but the logits are "
            f"{tuple(logits.shape)}; give class ids {ids} as int64, or soft masks {shares} as "
            "floats."
        )


def _check_ids(of_a: Tensor, of_b: Tensor, masks: Tensor) -> None:
    """Raise an `InputError` if class ids are not of the pixels of both peers' outputs."""
    pixels = {(part.shape[0], *part.shape[2:]) for part in (of_a, of_b)}
    if pixels != {tuple(masks.shape)}:
        raise InputError(
            f"The peers' outputs are {tuple(of_a.shape)} and {tuple(of_b.shape)}, and the masks "
            f"{tuple(masks.shape)}; give (N, K, H, W) of both peers, and masks (N, H, W)."
        )


def corruption_score(
    logits: Tensor,
    masks: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute each sample's corruption score, Eq. (1): cross-entropy of label and prediction.

    Args:
        logits: The network's output.
        masks: The labels to score.
        reduction: `mean` over the sample's labelled pixels, or `sum` as printed in the paper. Both
            rank samples with the same number of labelled pixels in the same order.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Shape:
        logits `(N, K, H, W)` or `(N, 1, H, W)`; masks `(N, H, W)` or soft `(N, K, H, W)`. Returns
        `(N,)`.

    Returns:
        Scores in nats, small for reliable labels. A sample without any labelled pixel scores 0,
        because none of its labels contradicts the network.

    Raises:
        InputError: If the masks do not fit the logits, or there is no such reduction.
    """
    check_masks(logits, masks)
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction={reduction!r} must be mean or sum.")
    # torch accepts no `ignore_index` with soft masks, but their unlabelled pixels add nothing.
    ignored = -100 if masks.is_floating_point() else ignore_index
    per_pixel = F.cross_entropy(class_logits(logits), masks, ignore_index=ignored, reduction="none")
    if reduction == "sum":
        return per_pixel.flatten(1).sum(dim=1)
    return labelled_mean(per_pixel, labelled_pixels(masks, ignore_index))


def dice_loss(
    logits: Tensor,
    masks: Tensor,
    *,
    include_background: bool = True,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute each sample's Dice loss, Eq. (3): squared denominators, averaged over k classes.

    Args:
        logits: The network's output.
        masks: The labels.
        include_background: Whether class 0 is one of the k classes.
        ignore_index: Class id of unlabelled pixels, which do not count.

    Shape:
        logits `(N, K, H, W)` or `(N, 1, H, W)`; masks `(N, H, W)` or soft `(N, K, H, W)`. Returns
        `(N,)`.

    Returns:
        Losses in [0, 1]. A class that is absent from the label adds the constant 1/k with zero
        gradient, as in the equation.

    Raises:
        InputError: If the masks do not fit the logits, or are of volumes.
    """
    check_masks(logits, masks)
    if logits.ndim != 4:
        raise InputError(
            f"The logits are {tuple(logits.shape)}; the Dice loss is of images, (N, K, H, W)."
        )
    probabilities = class_logits(logits).softmax(dim=1)
    labelled = labelled_pixels(masks, ignore_index)
    labels = masks
    if not masks.is_floating_point():
        labels = F.one_hot(masks.where(labelled, 0), probabilities.shape[1]).movedim(-1, 1)
    p = probabilities * labelled.unsqueeze(1)
    g = (labels * labelled.unsqueeze(1)).to(p.dtype)
    if not include_background:
        p, g = p[:, 1:], g[:, 1:]
    overlap = 2 * (p * g).sum(dim=(2, 3))
    size = p.square().sum(dim=(2, 3)) + g.square().sum(dim=(2, 3))
    # The clamp only avoids 0/0 where a class is neither labelled nor predicted.
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
    """Compute the first two terms of Eq. (2) for each sample: `L_CE + lambda_1 L_Dice`.

    The third term, `lambda_2 ||W||^2`, does not depend on the sample and is left to the
    optimizer: see `l2_weight_decay`.

    Args:
        logits: The network's output.
        masks: The labels.
        lambda_1: Weight of the Dice loss.
        include_background: Whether class 0 is one of the classes of the Dice loss.
        ignore_index: Class id of unlabelled pixels, which do not count.
        pixel_loss: Replaces the cross-entropy. It has the same signature as `corruption_score`.

    Shape:
        logits `(N, K, H, W)` or `(N, 1, H, W)`; masks `(N, H, W)` or soft `(N, K, H, W)`. Returns
        `(N,)`.
    """
    cross_entropy = pixel_loss(logits, masks, ignore_index=ignore_index)
    dice = dice_loss(
        logits, masks, include_background=include_background, ignore_index=ignore_index
    )
    return cross_entropy + lambda_1 * dice


def l2_weight_decay(lambda_2: float) -> float:
    """Return the `weight_decay` with which an optimizer adds the L2 term of Eq. (2).

    The gradient of `lambda_2 ||W||^2` is `2 lambda_2 W`, and torch's SGD and Adam add
    `weight_decay * W`. AdamW's decoupled decay is a different method and not this term.
    """
    return 2 * lambda_2


def keep_rate(epoch: int, noise_level: float, ramp_epochs: int) -> float:
    """Return alpha, the share of each batch that is kept in an epoch (counted from 0).

    The share falls linearly from 1 to `1 - noise_level` over the first `ramp_epochs`, because the
    scores of an untrained network carry no information (Han et al. 2018, arXiv 1804.06872,
    Algorithm 1). `ramp_epochs=0` gives the constant `alpha = 1 - NoL` of section 3.

    Raises:
        InputError: If the noise level is no share.
    """
    if not 0 <= noise_level <= 1:
        raise InputError(f"noise_level={noise_level} must be a number from 0 to 1.")
    if ramp_epochs <= 0:
        return 1 - noise_level
    return 1 - noise_level * min(1.0, epoch / ramp_epochs)


def selection_size(batch_size: int, alpha: float, carry: float) -> tuple[int, float]:
    """Return how many samples of this batch to keep, and the rounding error to carry over.

    `alpha * batch_size` is rarely an integer. The rounding error is carried from batch to batch,
    so that the kept share is alpha on average. At least one sample is kept in every batch.

    Args:
        batch_size: Number of samples in the batch.
        alpha: Share of samples to keep.
        carry: The rounding error of the previous call; 0 for the first.

    Returns:
        The number k, `1 <= k <= batch_size`, and the carry for the next call.
    """
    exact = alpha * batch_size + carry
    k = min(batch_size, max(1, math.floor(exact + 1e-9)))
    # Where alpha * batch_size < 1, keeping at least one sample overdraws in every batch. The debt
    # is therefore limited to one sample.
    return k, max(-1.0, exact - k)


def small_score_selection(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the k samples with the smallest corruption scores (section 2.1).

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
    """Correct labels (section 2.2): take the peers' class where both agree on it.

    Unlabelled pixels stay unlabelled.

    Args:
        probabilities_a: Class probabilities of the first peer.
        probabilities_b: Class probabilities of the second peer.
        masks: The labels.
        confidence: Threshold that the mean probability of the peers' class must exceed. One number,
            or one per sample; 0 as printed in the paper. Above 1 no label is overruled.
        ignore_index: Class id of unlabelled pixels.

    Shape:
        probabilities `(N, K, H, W)`, masks and result `(N, H, W)`, confidence `(N,)`.

    Raises:
        InputError: If shapes do not fit, or there is one class only.
    """
    _check_ids(probabilities_a, probabilities_b, masks)
    class_a, class_b = predicted_classes(probabilities_a), predicted_classes(probabilities_b)
    overruled = (class_a == class_b) & (masks != ignore_index)
    sure = ((probabilities_a + probabilities_b) / 2).amax(dim=1)
    least = torch.as_tensor(confidence, dtype=sure.dtype, device=sure.device)
    return class_a.where(overruled & (sure > least.view(-1, 1, 1)), masks)


def agreement(
    logits_a: Tensor, logits_b: Tensor, masks: Tensor, *, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Return the share of labelled pixels at which both peers predict the same class, in [0, 1].

    Shape:
        logits `(N, K, H, W)` or `(N, 1, H, W)`; masks `(N, H, W)`.

    Raises:
        InputError: If the masks do not fit the logits.
    """
    _check_ids(logits_a, logits_b, masks)
    same = predicted_classes(class_logits(logits_a)) == predicted_classes(class_logits(logits_b))
    labelled = masks != ignore_index
    return (same & labelled).sum() / labelled.sum().clamp_min(1)
