"""DoubleU-Net (Jha et al. 2020, arXiv 2006.04558) [2]."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.networks.classic_unet import double_convolution
from coseg_lightning.networks.encoders import make_encoder


class DoubleUNet(nn.Module):
    """Two U-Nets. The input of the second is the image times the first one's mask.

    The first U-Net has a VGG-19 encoder. The second is trained from scratch, and also gets the
    first one's skip connections. Both have squeeze and excitation, and atrous spatial pyramid
    pooling between encoder and decoder.

    It is as published, with two changes. BatchNorm replaces the biases of the convolutions. The
    published mask is a single probability. For more than two classes, the image is instead
    multiplied by the probability of all foreground classes together.

    Args:
        in_channels: Channels of the images.
        classes: Channels of the logits.
        encoder_name: One of smp's VGG encoders. The published one is `vgg19`.
        encoder_weights: Pretrained weights, see `build_network`. The published network uses
            `imagenet`; the default is none.
        base_channels: Channels of the last level of both decoders. They are doubled at each deeper
            level. The published value is 32.

    Attributes:
        auxiliary_weight: Weight of the first mask's loss. The second mask's loss has weight 1.

    Shape:
        `(N, in_channels, H, W)` to `(N, classes, H, W)`, with H and W multiples of 16. In training
        the output is a dict: `out` holds the second U-Net's logits, which are the prediction, and
        `aux` the first one's.

    Raises:
        InputError: If the encoder is not a VGG.
    """

    output_stride = 16
    auxiliary_weight = 1.0

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        *,
        encoder_name: str = "vgg19",
        encoder_weights: str | None = None,
        base_channels: int = 32,
    ) -> None:
        super().__init__()
        if not encoder_name.startswith("vgg"):
            raise InputError(
                f"encoder_name={encoder_name}: DoubleU-Net needs features at full size; use vgg11, "
                "vgg13, vgg16 or vgg19, or one of them with _bn."
            )
        self.encoder_1 = make_encoder(
            encoder_name, in_channels=in_channels, depth=4, weights=encoder_weights
        )
        *skips, deepest = self.encoder_1.out_channels
        widths = [base_channels * 2**level for level in range(4)]
        self.pyramid_1 = AtrousPyramid(deepest, 2 * base_channels)
        self.decoder_1 = Decoder(2 * base_channels, widths, skips)
        self.head_1 = nn.Conv2d(base_channels, classes, kernel_size=1)
        self.encoder_2 = nn.ModuleList(
            excited_convolution(before, after)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pyramid_2 = AtrousPyramid(widths[-1], 2 * base_channels)
        both = [first + second for first, second in zip(skips, widths, strict=True)]
        self.decoder_2 = Decoder(2 * base_channels, widths, both)
        self.head_2 = nn.Conv2d(base_channels, classes, kernel_size=1)
        self.to(memory_format=torch.channels_last)  # faster, also on CPUs

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Compute the logits of images. In training, return those of both U-Nets."""
        *skips, x = self.encoder_1(images)
        first = self.head_1(self.decoder_1(self.pyramid_1(x), skips))
        foreground = 1 - class_logits(first).softmax(dim=1)[:, :1]
        x = images * foreground.to(images.dtype)
        both = []
        for level, skip in zip(self.encoder_2, skips, strict=True):
            x = level(x)
            both.append(torch.cat([skip, x], dim=1))
            x = F.max_pool2d(x, 2)
        second: Tensor = self.head_2(self.decoder_2(self.pyramid_2(x), both))
        return {"out": second, "aux": first} if self.training else second


class Decoder(nn.Module):
    """Decoder of four levels.

    Each level enlarges the features bilinearly and concatenates the skip connection. Two
    convolutions and squeeze and excitation follow.
    """

    def __init__(self, deepest: int, widths: list[int], skips: list[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            excited_convolution(before + skip, width)
            for before, skip, width in zip(
                [deepest, *widths[:0:-1]], skips[::-1], widths[::-1], strict=True
            )
        )

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Compute features with the size of the first skip connection."""
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = level(torch.cat([larger, skip], dim=1))
        return x


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling with the image's mean and the rates 1, 6, 12 and 18."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), _normed(before, after, 1))
        self.near = _normed(before, after, 1)
        self.far = nn.ModuleList(_normed(before, after, 3, rate) for rate in (6, 12, 18))
        self.merge = _normed(5 * after, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of the same size."""
        mean = self.mean(x).expand(-1, -1, *x.shape[-2:])
        merged: Tensor = self.merge(
            torch.cat([mean, self.near(x), *(part(x) for part in self.far)], dim=1)
        )
        return merged


class Excitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): channel weights depend on the whole image."""

    def __init__(self, channels: int, ratio: int = 8) -> None:
        super().__init__()
        squeezed = max(1, channels // ratio)
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, kernel_size=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, kernel_size=1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weight the channels."""
        weighted: Tensor = x * self.weights(x)
        return weighted


def excited_convolution(before: int, after: int) -> nn.Sequential:
    """Build two 3 x 3 convolutions, followed by squeeze and excitation."""
    return nn.Sequential(*double_convolution(before, after), Excitation(after))


def _normed(before: int, after: int, kernel_size: int, rate: int = 1) -> nn.Sequential:
    """Build a convolution that keeps the size, with BatchNorm and ReLU."""
    padding = rate * (kernel_size // 2)
    convolution = nn.Conv2d(before, after, kernel_size, padding=padding, dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
