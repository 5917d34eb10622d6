"""A run's network for use elsewhere: python -m coseg_lightning.export RUN format=onnx."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.networks.forward import any_size

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
TOLERANCE = 1e-3  # of probabilities, between one engine's arithmetic and another's


def main() -> None:
    """Read the command line, write the file, and say where it is."""
    given = arguments(
        "The network of a finished run, checked against torch's own output.",
        {"run": "the folder of a finished run"},
        {
            "format": ("onnx", "or torchscript, safetensors (the weights alone)"),
            "out": ("", "the file; default RUN/export/model.SUFFIX"),
        },
    )
    path, difference = export(given["run"], given["format"], given["out"] or None)
    checked = "" if difference is None else f", at most {difference:.1e} off torch's probabilities"
    print(f"{path}{checked}; what goes in and comes out: {_described(path)}")


class Probabilities(nn.Module):
    """What is exported: standardised images in, class probabilities out.

    Args:
        network: Gives logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, K, H, W)`."""
        return class_logits(any_size(self.network, images)).softmax(dim=1)


def export(
    run: str | Path, format: str = "onnx", out: str | Path | None = None
) -> tuple[Path, float | None]:
    """Write a run's network as ONNX, TorchScript or safetensors, with a `.json` that describes it.

    ONNX and TorchScript take `(N, C, S, S)` images for any N, as the description tells to prepare
    them, and give `(N, K, S, S)` class probabilities.

    Args:
        run: The folder of a finished run.
        format: `onnx`, `torchscript` or `safetensors`.
        out: A new file; default in the run's folder.

    Returns:
        The file, and how far its probabilities are off torch's at most (None for safetensors).

    Raises:
        InputError: If there is no such format, the file exists, a package is missing, or the
            written network gives anything else than torch's.
    """
    if format not in SUFFIXES:
        raise InputError(f"format={format} must be {', '.join(SUFFIXES)}.")
    finished = AppRun(run)
    path = finished.folder / "export" / f"model{SUFFIXES[format]}" if out is None else Path(out)
    for file in (path, _described(path)):
        if file.exists():
            raise InputError(f"{file} exists and is never overwritten; give another out=FILE.")
    data = finished.cfg.data
    side, channels = int(data.image_size), int(data.in_channels)
    module = Probabilities(finished.network()).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, channels, side, side, generator=generator)
    with torch.no_grad():
        expected = module(images).numpy()
    with replacing(path) as temporary:
        if format == "safetensors":
            from safetensors.torch import save_file

            save_file(
                {k: v.contiguous() for k, v in module.network.state_dict().items()}, temporary
            )
            difference = None
        else:
            write, read = FORMATS[format]
            write(module, images[:2], temporary)
            difference = float(np.abs(read(temporary, images) - expected).max())
            if not difference <= TOLERANCE:
                raise InputError(
                    f"The {format} network's probabilities are up to {difference:.2g} off torch's; "
                    "export it in another format."
                )
    description = {
        "input": {"name": "images", "shape": ["N", channels, side, side], "type": "float32"},
        "preparation": "resize to the side (area average where it gets smaller, else linear), "
        "map the image's 0.5 and 99.5 percent quantiles to 0 and 1 and clip, subtract its mean, "
        "divide by its standard deviation",
        "output": {
            "name": "probabilities",
            "shape": ["N", int(expected.shape[1]), side, side],
            "of": "classes, background first",
        },
    }
    write_text(_described(path), json.dumps(description, indent=1))
    return path, difference


def _described(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_onnx(module: nn.Module, images: Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"format=onnx needs {error.name}: pip install 'coseg-lightning[onnx]'."
        ) from error
    program = torch.onnx.export(
        module,
        (images,),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("N")}},
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def _read_onnx(path: Path, images: Tensor) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


def _write_torchscript(module: nn.Module, images: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # That it is for these sizes alone is what is wanted; and that torch prefers its own export.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, images)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))


def _read_torchscript(path: Path, images: Tensor) -> Any:
    with torch.no_grad():
        return torch.jit.load(str(path))(images).numpy()  # type: ignore[no-untyped-call]


FORMATS = {
    "onnx": (_write_onnx, _read_onnx),
    "torchscript": (_write_torchscript, _read_torchscript),
}


if __name__ == "__main__":
    cli_errors(main)
