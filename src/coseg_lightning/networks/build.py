"""Networks by name, and on disk."""

import json
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from safetensors.torch import save_file
from torch import nn

from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import write_text
from coseg_lightning.networks.ce_net import CENet
from coseg_lightning.networks.classic_unet import ClassicUNet
from coseg_lightning.networks.double_unet import DoubleUNet
from coseg_lightning.networks.encoders import check_encoder, unknown

OWN = ("unet_classic", "double_unet", "ce_net")  # which smp does not have


def build_network(
    name: str,
    *,
    encoder_name: str | None = None,
    encoder_weights: str | None = None,
    in_channels: int = 3,
    classes: int = 2,
    **options: Any,
) -> nn.Module:
    """Build a network by its name.

    Args:
        name: An architecture of segmentation-models-pytorch (`unet`, `fpn`, `segformer`, ...), or
            one of `OWN`: `unet_classic`, `double_unet`, `ce_net`.
        encoder_name: One of smp's encoders; if none is named `resnet18`, or a small vision
            transformer for `dpt`, which works with no other kind, or the published one of `OWN`.
        encoder_weights: Pretrained weights to download, such as `imagenet`; none by default.
        in_channels: Channels of the images.
        classes: Channels of the logits: K, or 1 for a binary network with a sigmoid.
        options: Further arguments of the architecture.

    Raises:
        InputError: If there is no such architecture or encoder.
    """
    architectures = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if name not in architectures and name not in OWN:
        raise InputError(unknown("network", name, [*architectures, *OWN]))
    if encoder_name is not None:
        check_encoder(encoder_name)
    # Each by itself, so that LightningCLI finds the arguments that `options` may hold.
    if name == "unet_classic":
        return ClassicUNet(in_channels, classes, **options)
    if name == "double_unet":
        encoder = encoder_name or "vgg19"
        return DoubleUNet(
            in_channels, classes, encoder_name=encoder, encoder_weights=encoder_weights, **options
        )
    if name == "ce_net":
        encoder = encoder_name or "resnet34"
        return CENet(
            in_channels, classes, encoder_name=encoder, encoder_weights=encoder_weights, **options
        )
    if encoder_name is None:
        encoder_name = "tu-vit_tiny_patch16_224" if name == "dpt" else "resnet18"
    if name == "dpt":
        options.setdefault("dynamic_img_size", True)  # else it takes its pretraining's size alone
    network: nn.Module = smp.create_model(
        name,
        encoder_name=encoder_name,
        encoder_weights=encoder_weights,
        in_channels=in_channels,
        classes=classes,
        **options,
    )
    return network


def save_network(network: nn.Module, folder: str | Path) -> None:
    """Write a network so that others can use it without this package.

    smp's networks load with `smp.from_pretrained(folder)`. Of others, `model.safetensors` holds
    the weights and `network.json` the class that they belong to.
    """
    folder = Path(folder)
    if isinstance(network, smp.base.SegmentationModel):
        network.save_pretrained(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    kind = type(network)
    write_text(folder / "network.json", json.dumps({"class": f"{kind.__module__}.{kind.__name__}"}))
