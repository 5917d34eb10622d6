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
    """Pixels count by how much learning from them would lower the loss on clean samples.

    After *Learning to Segment Skin Lesions from Noisy Annotations* (arXiv 1906.03815), which gives
    a weight to each pixel where *Learning to Reweight Examples* (Ren et al. 2018, arXiv 1803.09050)
    gives one to each sample. Their Algorithm 1 takes a step of gradient descent on the batch, each
    part of which is weighted by epsilon = 0, and differentiates the loss of a clean batch after it
    by epsilon. That is the inner product of the part's gradient with the clean batch's, times the
    learning rate. All of them come at once, without second derivatives, from one pass in forward
    mode along the clean gradient. Weights below 0 become 0, and their sum over the batch 1.
    Under DDP each process weights its own batch.

    Args:
        clean_ids: The training samples whose masks are right; default the datamodule's `clean_ids`,
            which its noise leaves alone.
        per: `pixel`: the weighted cross-entropy alone, as published. `sample`: Eq. (2), weighted.
        options: Those of `SegmentationModule`.
    """

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
                "Reweighting needs a few training samples whose masks are right; name them by "
                "data.clean_ids in the app, or by clean_ids."
            )

    @override
    def on_train_start(self) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        self.check_data(datamodule)
        ids: Any = self.clean_ids or getattr(datamodule, "clean_ids", None)
        if any(isinstance(part, nn.SyncBatchNorm) for part in self.modules()):
            raise InputError(
                "Reweighting passes through the network in forward mode, which torch's "
                "synchronised BatchNorm has not; leave out sync_batchnorm."
            )
        dataset: Any = getattr(self._loader, "dataset", None)
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise InputError(
                "Reweighting looks up its clean samples in the training dataset, and needs one "
                "training loader with a map-style dataset."
            )
        names, wanted = _names_of(dataset), set(map(sample_name, ids))
        self._clean_places = [place for place, name in enumerate(names) if name in wanted]
        strangers = sorted(wanted - set(names))
        if strangers:
            raise InputError(
                f"clean_ids names {strangers[0]!r}, which is no training sample; they are called "
                f"{names[0]!r} and the like."
            )

    @property
    def _loader(self) -> Any:
        return self.trainer.train_dataloader

    def clean_batch(self, size: int) -> Batch:
        """Clean samples, augmented as others are, as many as there are in a batch at most."""
        chosen = torch.randperm(len(self._clean_places))[:size]
        places = [self._clean_places[int(n)] for n in chosen]
        if len(places) == 1:  # BatchNorm may have nothing to normalise in a single one
            places *= 2
        dataset = self._loader.dataset
        if isinstance(dataset, SampleDataset):
            samples = [dataset[self.current_epoch, place] for place in places]
        else:
            samples = [dataset[place] for place in places]
        collate = getattr(self._loader, "collate_fn", None) or default_collate
        batch = self.trainer.strategy.batch_to_device(collate(samples))
        return read_batch(self.trainer.strategy.precision_plugin.convert_input(batch))

    @override
    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        weights = self.weights(images, masks, self.clean_batch(len(masks)))
        logits, auxiliary = self.outputs(images)
        losses = self._weighted(logits, masks, weights)
        for part in auxiliary:
            losses = losses + auxiliary_weight(self.net) * self._weighted(part, masks, weights)
        return len(masks) * losses

    def _weighted(self, logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
        return (weights * self.parts(logits, masks)).reshape(len(masks), -1).sum(dim=1)

    def parts(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The losses that are weighted: `(N, H, W)` of pixels, or `(N,)` of samples."""
        if self.per == "sample":
            return self.supervised_losses(logits, masks)
        return F.cross_entropy(
            class_logits(logits), masks, ignore_index=self.ignore_index, reduction="none"
        )

    def weights(self, images: Tensor, masks: Tensor, clean: Batch) -> Tensor:
        """The weight of each of the `parts` of a batch; their sum is 1, or 0 if none helps."""
        # In full precision: float16 holds neither these small gradients nor BatchNorm's tangents.
        with torch.autocast(images.device.type, enabled=False):
            return self._weights(images.to(self._type), masks, clean)

    @property
    def _type(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def _weights(self, images: Tensor, masks: Tensor, clean: Batch) -> Tensor:
        gradient = self._clean_gradient(clean)
        # Attention in its plain form: its faster ones have no forward mode.
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            weights = {
                name: forward_ad.make_dual(self.get_parameter(name).detach(), along)  # type: ignore[no-untyped-call]
                for name, along in gradient.items()
            }
            logits = functional_call(self, {**self._copied_buffers(), **weights}, (images,))
            parts = forward_ad.unpack_dual(self.parts(logits, masks))  # type: ignore[no-untyped-call]
        if parts.tangent is None:  # the clean batch has nothing to teach
            return torch.zeros_like(parts.primal)
        helps: Tensor = parts.tangent.clamp_min(0)
        return helps / helps.sum().clamp_min(torch.finfo(helps.dtype).tiny)

    def _clean_gradient(self, clean: Batch) -> dict[str, Tensor]:
        """The gradient of the loss of clean samples, of each parameter that has one."""
        names, learnt = zip(
            *(pair for pair in self.named_parameters() if pair[1].requires_grad), strict=True
        )
        images = clean.images.to(self._type)
        logits = functional_call(self, self._copied_buffers(), (images,))
        loss = self.parts(logits, clean.masks).mean()
        gradients = torch.autograd.grad(loss, learnt, allow_unused=True)
        found = zip(names, gradients, strict=True)
        return {name: gradient for name, gradient in found if gradient is not None}

    def _copied_buffers(self) -> dict[str, Tensor]:
        """BatchNorm's statistics, which these passes are not to count in."""
        return {name: buffer.clone() for name, buffer in self.named_buffers()}


def _names_of(dataset: Any) -> Sequence[str]:
    """What a training set's samples are called; those without ids are numbered."""
    if isinstance(dataset, SampleDataset):
        return dataset.ids
    ids = [mask_and_id(dataset[place])[1] for place in range(len(dataset))]
    return [sample_name(place if id is None else id) for place, id in enumerate(ids)]


METHOD = Method("reweight", (supervised_training,))
