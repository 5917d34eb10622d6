"""CE-Net, the context encoder network (Gu et al. 2019, arXiv 1903.02740) [3]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coseg_lightning.networks.encoders import make_encoder

POOLS = (2, 3, 5, 6)  # window sizes of residual pooling


class CENet(nn.Module):
    """A ResNet encoder, two context blocks, and a decoder that adds the encoder's features.

    It is as published. Features of images below 192 x 192 may be smaller than a pooling window. The
    window is then reduced to the features' size.

    Args:
        in_channels: Channels of the images.
        classes: Channels of the logits.
        encoder_name: One of smp's encoders with five levels. The published one is `resnet34`.
        encoder_weights: Pretrained weights, see `build_network`. The published network uses
            `imagenet`; the default is none.

    Shape:
        `(N, in_channels, H, W)` to `(N, classes, H, W)`, with H and W multiples of 32.
    """

    output_stride = 32

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        *,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = make_encoder(
            encoder_name, in_channels=in_channels, depth=5, weights=encoder_weights
        )
        widths = self.encoder.out_channels[2:]
        deepest = widths[-1]
        self.context = nn.Sequential(DenseAtrousConvolution(deepest), ResidualPooling(deepest))
        self.decoder = nn.ModuleList(
            decoder_block(before, after)
            for before, after in zip(
                [deepest + len(POOLS), *widths[-2::-1]], [*widths[-2::-1], widths[0]], strict=True
            )
        )
        self.head = nn.Sequential(
            nn.ConvTranspose2d(widths[0], 32, kernel_size=4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, classes, kernel_size=3, padding=1),
        )
        self.to(memory_format=torch.channels_last)  # faster, also on CPUs

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images."""
        _, _, *skips, deepest = self.encoder(images)
        x = self.context(deepest)
        *upper, last = self.decoder
        for level, skip in zip(upper, reversed(skips), strict=True):
            x = level(x) + skip
        logits: Tensor = self.head(last(x))
        return logits


class DenseAtrousConvolution(nn.Module):
    """Four cascades of dilated convolutions with shared weights. They are added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rate_1, self.rate_3, self.rate_5 = (
            nn.Conv2d(channels, channels, kernel_size=3, padding=rate, dilation=rate)
            for rate in (1, 3, 5)
        )
        self.point = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of the same shape, with receptive fields of 3, 7, 9 and 19."""
        one = self.rate_1(x)
        two = self.rate_3(one)
        cascades = (one, self.point(self.rate_3(x)), self.point(two), self.point(self.rate_5(two)))
        return x + sum(F.relu(part) for part in cascades)


class ResidualPooling(nn.Module):
    """Max pooling with windows of four sizes. Each size adds one channel to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate four new channels and the input's channels."""
        size = x.shape[-2:]
        parts = []
        for pool in POOLS:
            pooled = F.max_pool2d(x, [min(pool, side) for side in size])
            parts.append(
                F.interpolate(self.point(pooled), size=size, mode="bilinear", align_corners=False)
            )
        return torch.cat([*parts, x], dim=1)


def decoder_block(before: int, after: int) -> nn.Sequential:
    """Build a decoder level, which doubles height and width.

    It has a 1 x 1 convolution to a quarter of the channels, a transposed 3 x 3 convolution, and
    another 1 x 1 convolution.
    """
    inner = before // 4
    layers: list[nn.Module] = []
    for convolution, channels in (
        (nn.Conv2d(before, inner, kernel_size=1), inner),
        (nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1), inner),
        (nn.Conv2d(inner, after, kernel_size=1), after),
    ):
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
