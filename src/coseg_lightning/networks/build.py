"""Building networks by name, and saving them."""

import inspect
import json
import math
from numbers import Integral
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn

from coseg_lightning.errors import InputError, unknown_name_message
from coseg_lightning.files.atomic import write_text
from coseg_lightning.networks.ce_net import CENet
from coseg_lightning.networks.classic_unet import ClassicUNet
from coseg_lightning.networks.double_unet import DoubleUNet
from coseg_lightning.networks.encoders import check_encoder, downloading
from coseg_lightning.networks.weights import load_encoder_weights, weights_file

OLD_OPTIONS = ("decoder_use_batchnorm", "psp_use_batchnorm", "upscale_mode")  # smp reads them
OWN = ("unet_classic", "double_unet", "ce_net")  # architectures that smp does not have
DEFAULT_ENCODER = "resnet18"
DEFAULT_ENCODERS = {
    "dpt": "tu-vit_tiny_patch16_224",  # works with vision transformers only
    "double_unet": "vgg19",  # as published; so is the next one
    "ce_net": "resnet34",
}


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
        encoder_name: One of smp's encoders. `unet_classic` has none. The default is the published
            one for `double_unet` and `ce_net`, and `resnet18` for most others. `dpt` works only
            with vision transformers, and has a small one by default.
        encoder_weights: Pretrained weights: a name to download them by, such as `imagenet`, or a
            file (see `load_encoder_weights`). The default is none.
        in_channels: Channels of the images.
        classes: Channels of the logits: K, or 1 for a binary network with a sigmoid.
        options: Other arguments of the architecture.

    Returns:
        The network.

    Raises:
        InputError: If there is no such architecture or encoder, if they or the arguments do not fit
            together, or if the weights do not fit the encoder.
    """
    _check_name(name)
    in_channels, classes = _count("in_channels", in_channels), _count("classes", classes)
    _check_options(name, encoder_name, options)
    channels = options.get("base_channels", 1)
    if not (isinstance(channels, int) and channels >= 1):
        raise InputError(f"base_channels={channels} must be a whole number of at least 1.")
    if encoder_name is not None:
        check_encoder(encoder_name)
    # LightningCLI parses these calls to find the arguments that `options` may hold. Each network
    # therefore needs its own call in this function.
    if name == "unet_classic":
        if encoder_name is not None or encoder_weights is not None:
            raise InputError(
                f"encoder_name={encoder_name} and encoder_weights={encoder_weights} were given, "
                "but unet_classic has no encoder of another network; leave them out, or build a "
                "unet."
            )
        return ClassicUNet(in_channels, classes, **options)
    if name == "double_unet":
        encoder = encoder_name or default_encoder(name)
        return DoubleUNet(
            in_channels, classes, encoder_name=encoder, encoder_weights=encoder_weights, **options
        )
    if name == "ce_net":
        encoder = encoder_name or default_encoder(name)
        return CENet(
            in_channels, classes, encoder_name=encoder, encoder_weights=encoder_weights, **options
        )
    encoder = encoder_name or default_encoder(name)
    file = weights_file(encoder_weights)
    try:
        if name == "dpt" and takes_any_size(encoder):
            # Otherwise the transformer only accepts images of the size used in pretraining.
            options.setdefault("dynamic_img_size", True)
        with downloading(encoder_weights, encoder):
            network: Any = smp.create_model(
                name,
                encoder_name=encoder,
                encoder_weights=None if file else encoder_weights,
                in_channels=in_channels,
                classes=classes,
                **options,
            )
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise InputError(f"{name} with {encoder}: {error}; leave that argument out.") from error
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        raise InputError(
            f"There is no encoder {encoder!r}; behind tu- give a name of timm.list_models()."
        ) from error
    except InputError:
        raise
    except (ValueError, AssertionError) as error:  # such as an encoder that cannot be dilated
        problem = " ".join(str(error).split()).rstrip(".!") or "they do not fit together"
        raise InputError(
            f"{name} with {encoder} cannot be built ({problem}); change the arguments, or take "
            "another encoder, such as resnet18."
        ) from error
    if file is not None:
        load_encoder_weights(network.encoder, file)
    faster: nn.Module = network.to(memory_format=torch.channels_last)  # also on CPUs
    return faster


def takes_any_size(encoder: str) -> bool:
    """Whether a timm transformer can be set to accept any image size. SAM's, for one, cannot."""
    with torch.device("meta"):  # no weights are allocated or drawn
        try:
            smp.DPT(encoder, encoder_weights=None, dynamic_img_size=True)
        except TypeError as error:
            if "dynamic_img_size" in str(error):
                return False
            raise
    return True


def _check_options(name: str, encoder_name: str | None, options: dict[str, Any]) -> None:
    """Raise an `InputError` for an argument that a network does not have, which smp drops."""
    own = {"unet_classic": ClassicUNet, "double_unet": DoubleUNet, "ce_net": CENet}
    kind = own.get(name) or smp.MODEL_ARCHITECTURES_MAPPING[name]
    encoder = encoder_name or default_encoder(name)
    if name not in own and encoder not in smp.encoders.encoders:
        return  # timm's encoders take further arguments, and refuse those that they do not know
    known = [key for key in inspect.signature(kind).parameters if key != "kwargs"]
    for option in options:
        if option not in known and (name in own or option not in OLD_OPTIONS):
            raise InputError(
                f"There is no argument {option!r} of {name} or of the module; the arguments of "
                f"{name} are {', '.join(known)}."
            )


def _count(name: str, value: Any) -> int:
    """Return a number of channels, which may be a whole float."""
    is_number = isinstance(value, Integral | float) and not isinstance(value, bool)
    if not is_number or value != value // 1 or not 1 <= value < math.inf:
        raise InputError(f"{name}={value} must be a whole number of at least 1.")
    return int(value)


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        kind = getattr(name, "__name__", type(name).__name__)
        raise InputError(f"A network is {kind}; give the name of one, or a ready network.")
    architectures = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if name not in architectures and name not in OWN:
        raise InputError(unknown_name_message("network", name, [*architectures, *OWN]))


def default_encoder(name: str) -> str:
    """Return the default encoder of a network."""
    return DEFAULT_ENCODERS.get(name, DEFAULT_ENCODER)


def save_network(network: nn.Module, folder: str | Path, *, card: str | None = None) -> None:
    """Write a network so that it can be used without this package.

    smp's networks load with `smp.from_pretrained(folder)`. For other networks, `model.safetensors`
    holds the weights, and `network.json` the name of the class.

    Args:
        network: The network.
        folder: The folder for its files.
        card: The model card for `README.md`. By default, smp's networks get smp's own card, which
            says nothing about the training. Others get none.
    """
    folder = Path(folder)
    if isinstance(network, nn.DataParallel):  # its weights are named as those within
        network = network.module
    if isinstance(network, smp.base.SegmentationModel):
        network.save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(network, folder / "model.safetensors")
        kind = type(network)
        class_name = json.dumps({"class": f"{kind.__module__}.{kind.__name__}"})
        write_text(folder / "network.json", class_name)
    if card is not None:
        write_text(folder / "README.md", card)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors; those that two layers share are written twice."""
    state = network.state_dict()
    save_file({name: weight.cpu().contiguous().clone() for name, weight in state.items()}, path)
