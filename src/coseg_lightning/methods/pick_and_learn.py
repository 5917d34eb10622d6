"""Pick-and-Learn: a second network judges the labels of a batch (Zhu et al. 2019) [9]."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.methods.method import Method
from coseg_lightning.methods.supervised import supervised_training
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.networks.encoders import make_encoder


class PickAndLearn(SegmentationModule):
    """Weights each sample's loss by its label's quality, which is learnt with the network.

    Source: *Pick-and-Learn: Automatic Quality Evaluation for Noisy-Labeled Image Segmentation*
    (arXiv 1907.11835). A quality awareness module receives images and labels, and scores each
    sample. The overfitting control module bounds the scores, and a softmax over the batch turns
    them into weights. Both networks learn from the weighted loss. Under DDP each process weights
    its own batch.

    Args:
        net: The network, see `SegmentationModule`.
        limit: lambda of the overfitting control `lambda tanh(score)`. The weights of a batch
            differ by at most a factor of `exp(2 lambda)`.
        quality_encoder: One of smp's encoders, with random initial weights. The paper uses a VGG
            (`vgg16`), which costs several times as much as a ResNet-18.
        options: Further arguments of `SegmentationModule`. Give `in_channels` even if the network
            is already built.
    """

    takes_soft_masks = False

    def __init__(
        self,
        *net: Any,
        limit: float = 2.0,
        quality_encoder: str = "resnet18",
        **options: Any,
    ) -> None:
        if not isinstance(limit, int | float) or limit <= 0:
            raise InputError(f"limit={limit} must be a number above 0.")
        super().__init__(*net, **options)
        self.limit = limit
        channels = options.get("in_channels", 3) + self.classes
        self.quality = QualityAwareness(channels, quality_encoder)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        return [
            *groups,
            {**groups[0], "params": list(self.quality.parameters()), "name": "quality"},
        ]

    @override
    def losses(self, images: Tensor, masks: Tensor) -> Tensor:
        return len(masks) * self.weights(images, masks) * super().losses(images, masks)

    def weights(self, images: Tensor, masks: Tensor) -> Tensor:
        """Compute the weights of a batch's samples, `(N,)`; their sum is 1."""
        channels = images.shape[1] + self.classes
        if channels != self.quality.channels:
            raise InputError(
                f"The images have {images.shape[1]} channels, but the quality module was made for "
                f"{self.quality.channels - self.classes}; give "
                f"PickAndLearn(..., in_channels={images.shape[1]})."
            )
        if len(images) == 1:  # a single sample has weight 1, and BatchNorm needs at least two
            zero = sum(weight.sum() * 0 for weight in self.quality.parameters())
            return bounded_weights(torch.zeros(1, device=images.device) + zero, self.limit)
        labelled = masks != self.ignore_index
        labels = F.one_hot(masks.where(labelled, 0), self.classes).movedim(-1, 1)
        scores = self.quality(torch.cat([images, labels * labelled.unsqueeze(1)], dim=1))
        return bounded_weights(scores, self.limit)


class QualityAwareness(nn.Module):
    """An image classifier with one output, averaged over positions, for an image and its label.

    Shape:
        `(N, C + K, H, W)` to `(N,)`.
    """

    def __init__(self, channels: int, encoder_name: str) -> None:
        super().__init__()
        self.channels = channels
        self.encoder = make_encoder(encoder_name, in_channels=channels, depth=5)
        self.score = nn.Conv2d(self.encoder.out_channels[-1], 1, kernel_size=1)

    def forward(self, images_and_labels: Tensor) -> Tensor:
        """Score labels; higher is better."""
        score: Tensor = self.score(self.encoder(images_and_labels)[-1])
        return score.mean(dim=(1, 2, 3))


def bounded_weights(scores: Tensor, limit: float) -> Tensor:
    """Turn the scores of a batch's samples, `(N,)`, into weights whose sum is 1."""
    return (limit * scores.tanh()).softmax(dim=0)


METHOD = Method("pick_and_learn", (supervised_training,), module=PickAndLearn)
