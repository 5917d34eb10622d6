"""Reweighting by the gradient on a small clean set (Mirikharaji et al. 2019) [10]."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate
from typing_extensions import override

from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.labels.updated import mask_and_id
from coseg_lightning.methods.method import Method
from coseg_lightning.methods.supervised import supervised_training
from coseg_lightning.modules.batch import Batch, read_batch
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.networks.forward import auxiliary_weight


class Reweighted(SegmentationModule):
    """Weights pixels by how much learning from them would lower the loss on clean samples.

    Source: *Learning to Segment Skin Lesions from Noisy Annotations* (arXiv 1906.03815). It gives
    a weight to each pixel, where *Learning to Reweight Examples* (Ren et al. 2018, arXiv
    1803.09050) gives one to each sample.

    Their Algorithm 1 weights each part of the batch by epsilon = 0 and takes a step of gradient
    descent. It then differentiates the loss of a clean batch by epsilon. The derivative is the
    inner product of the part's gradient with the clean batch's, times the learning rate. One
    forward-mode pass along the clean gradient gives all derivatives, without second derivatives.
    Negative weights become 0, and the weights are normalised to a sum of 1 over the batch. Under
    DDP each process weights its own batch.

    Args:
        net: The network, see `SegmentationModule`.
        clean_ids: The ids of training samples with correct masks. The default is the datamodule's
            `clean_ids`, to which it adds no noise.
        per: `pixel` uses the weighted cross-entropy alone, as published. `sample` uses weighted
            losses of Eq. (2).
        options: Further arguments of `SegmentationModule`.
    """

    takes_soft_masks = False

    def __init__(
        self,
        *net: Any,
        clean_ids: Sequence[str | int] | None = None,
        per: Literal["pixel", "sample"] = "pixel",
        **options: Any,
    ) -> None:
        if per not in ("pixel", "sample"):
            raise InputError(f"per={per!r} must be pixel or sample.")
        super().__init__(*net, **options)
        self.clean_ids = clean_ids
        self.per = per
        self._clean_places: list[int] = []

    @override
    def check_data(self, data: Any) -> None:
        if not (self.clean_ids or getattr(data, "clean_ids", None)):
            raise InputError(
                "Reweighting needs a few training samples whose masks are right; name them in "
                "data.clean_ids (in Python, the argument clean_ids)."
            )

    @override
    def on_train_start(self) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        self.check_data(datamodule)
        ids: Any = self.clean_ids or getattr(datamodule, "clean_ids", None)
        if any(isinstance(part, nn.SyncBatchNorm) for part in self.modules()):
            raise InputError(
                "Reweighting needs forward-mode derivatives, which torch's synchronised BatchNorm "
                "does not support; leave out sync_batchnorm."
            )
        dataset: Any = getattr(self._loader, "dataset", None)
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InputError(
                "Reweighting looks up its clean samples in the training dataset; give one training "
                "loader with a map-style dataset."
            )
        names, clean_names = _names_of(dataset), set(map(sample_name, ids))
        self._clean_places = [index for index, name in enumerate(names) if name in clean_names]
        unknown = sorted(clean_names - set(names))
        if unknown:
            raise InputError(
                f"clean_ids names {unknown[0]!r}, which is not a training sample; give ids such as "
                f"{names[0]!r}."
            )

    @property
    def _loader(self) -> Any:
        return self.trainer.train_dataloader

    def clean_batch(self, size: int) -> Batch:
        """Draw at most `size` clean samples, augmented like all others."""
        chosen = torch.randperm(len(self._clean_places))[:size]
        indices = [self._clean_places[int(n)] for n in chosen]
        if len(indices) == 1:  # BatchNorm may be unable to normalise a single sample
            indices *= 2
        dataset = self._loader.dataset
        if isinstance(dataset, SampleDataset):
            samples = [dataset[self.current_epoch, index] for index in indices]
        else:
            samples = [dataset[index] for index in indices]
        collate = getattr(self._loader, "collate_fn", None) or default_collate
        batch = self.trainer.strategy.batch_to_device(collate(samples))
        return read_batch(self.trainer.strategy.precision_plugin.convert_input(batch))

    @override
    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        weights = self.weights(images, masks, self.clean_batch(len(masks)))
        logits, auxiliary = self.all_logits(images)
        losses = self._weighted(logits, masks, weights)
        for part in auxiliary:
            losses = losses + auxiliary_weight(self.net) * self._weighted(part, masks, weights)
        return len(masks) * losses

    def _weighted(self, logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
        return (weights * self.parts(logits, masks)).reshape(len(masks), -1).sum(dim=1)

    def parts(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Compute the losses to be weighted: `(N, H, W)` per pixel, or `(N,)` per sample."""
        if self.per == "sample":
            return self.supervised_losses(logits, masks)
        return F.cross_entropy(
            class_logits(logits), masks, ignore_index=self.ignore_index, reduction="none"
        )

    def weights(self, images: Tensor, masks: Tensor, clean: Batch) -> Tensor:
        """Compute the weights of a batch's `parts`; their sum is 1, or 0 if no part helps."""
        # Use full precision: float16 cannot hold such small gradients or BatchNorm's tangents.
        with torch.autocast(images.device.type, enabled=False):
            return self._weights(images.to(self._type), masks, clean)

    @property
    def _type(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def _weights(self, images: Tensor, masks: Tensor, clean: Batch) -> Tensor:
        gradient = self._clean_gradient(clean)
        # Attention is computed in its plain form, since the faster forms have no forward mode.
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            weights = {
                name: forward_ad.make_dual(self.get_parameter(name).detach(), along)  # type: ignore[no-untyped-call]
                for name, along in gradient.items()
            }
            logits = functional_call(self, {**self._copied_buffers(), **weights}, (images,))
            parts = forward_ad.unpack_dual(self.parts(logits, masks))  # type: ignore[no-untyped-call]
        if parts.tangent is None:  # the clean batch has no gradient
            return torch.zeros_like(parts.primal)
        benefits: Tensor = parts.tangent.clamp_min(0)
        return benefits / benefits.sum().clamp_min(torch.finfo(benefits.dtype).tiny)

    def _clean_gradient(self, clean: Batch) -> dict[str, Tensor]:
        """Compute the gradient of the clean samples' loss, by the names of the parameters."""
        names, parameters = zip(
            *(pair for pair in self.named_parameters() if pair[1].requires_grad), strict=True
        )
        images = clean.images.to(self._type)
        logits = functional_call(self, self._copied_buffers(), (images,))
        loss = self.parts(logits, clean.masks).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        named = zip(names, gradients, strict=True)
        return {name: gradient for name, gradient in named if gradient is not None}

    def _copied_buffers(self) -> dict[str, Tensor]:
        """Copy BatchNorm's statistics, which these passes must not change."""
        return {name: buffer.clone() for name, buffer in self.named_buffers()}


def _names_of(dataset: Any) -> Sequence[str]:
    """Return the names of a training set's samples; samples without ids are numbered."""
    if isinstance(dataset, SampleDataset):
        return dataset.ids
    ids = [mask_and_id(dataset[index])[1] for index in range(len(dataset))]
    return [
        sample_name(index if sample_id is None else sample_id)
        for index, sample_id in enumerate(ids)
    ]


METHOD = Method("reweight", (supervised_training,), module=Reweighted)
