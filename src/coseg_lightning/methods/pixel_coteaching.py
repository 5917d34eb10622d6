"""Co-teaching that selects pixels instead of samples, as in PyMIC (arXiv 2208.09350)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.epochs import epochs_of_schedule
from coseg_lightning.modules.selection import ramped_keep_rate


class PixelCoTeaching(CoSegModule):
    """Co-teaching (Han et al. 2018, arXiv 1804.06872) that selects pixels instead of samples.

    This follows PyMIC (Wang et al. 2023, arXiv 2208.09350). Each peer keeps the labelled pixels of
    the batch with the smallest cross-entropy, and the other learns from their cross-entropy alone.
    The noise level is not used, since it is a share of samples, not of pixels.

    Args:
        nets: The networks, see `CoSegModule`.
        select_ratio: The share of pixels that is kept after the ramp; PyMIC's example uses 0.8.
        options: Further arguments of `CoSegModule`; `selection` has no effect.
    """

    takes_soft_masks = False

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
        epochs = epochs_of_schedule(self.trainer)
        keep = ramped_keep_rate(1 - self.select_ratio, self.current_epoch, epochs, self.ramp_epochs)
        k = max(1, int(keep * len(losses_a))) if len(losses_a) else 0
        picks_a, picks_b = (
            losses.detach().topk(k, largest=False).indices for losses in (losses_a, losses_b)
        )
        return losses_a[picks_b].sum() / max(1, k), losses_b[picks_a].sum() / max(1, k), None

    def _pixel_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(
            class_logits(logits), masks, ignore_index=self.ignore_index, reduction="none"
        )


METHOD = Method("pixel_coteaching", (robust_training,), module=PixelCoTeaching)
