"""Exports a run's network for use elsewhere: python -m coseg_lightning.export RUN format=onnx."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from coseg_lightning.app.build import canvas_of, normalization_of
from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.networks.forward import any_size

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
TOLERANCE = 1e-3  # difference in probability between the arithmetic of two engines
STRETCHED = "resize to the side (area average where it gets smaller, else linear), "
KEPT = (
    "resize so that it fits in, its aspect ratio kept (area average where it gets smaller, else "
    "linear), and lies in the upper left corner; after the next step fill the rest with its "
    "reflection, the last pixel included, "
)
QUANTILES = "map {} 0.5 and 99.5 percent quantiles to 0 and 1 and clip, "
BY_ITSELF = "subtract its mean, divide by its standard deviation"
TILES = (
    "cut the image into tiles of {tile} pixels that share {overlap} at least and are not resized; "
    "for all tiles of an image alike, by the values of the whole image: "
)
BLENDED = (
    "; blend the probabilities where tiles overlap: the outer quarter of the overlap does not "
    "count, and the weight rises from 0 to 1 over the next half"
)


def main() -> None:
    """Read the command line, export the network, and print the path of the file."""
    options = arguments("export")
    path, difference = export(
        options["run"], options["format"], options["out"] or None, trust=options["trust"]
    )
    check = "" if difference is None else f", at most {difference:.1e} off torch's probabilities"
    print(f"{path}{check}; inputs and outputs are described in {_description_path(path)}")


class Probabilities(nn.Module):
    """The exported module: maps standardised images to class probabilities.

    Args:
        network: Returns logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map `(N, C, H, W)` images to `(N, K, H, W)` probabilities."""
        return class_logits(any_size(self.network, images)).softmax(dim=1)


def export(
    run: str | Path,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    trust: bool = False,
) -> tuple[Path, float | None]:
    """Write a run's network as ONNX, TorchScript or safetensors, with a `.json` that describes it.

    ONNX and TorchScript networks take `(N, C, S, S)` images for any N and return `(N, K, S, S)`
    class probabilities. The description says how the images must be prepared.

    Args:
        run: The folder of a finished run.
        format: `onnx`, `torchscript` or `safetensors`.
        out: A new file; by default in the run's folder.
        trust: See `AppRun`.

    Returns:
        The file, and the largest difference of its probabilities to torch's (None for safetensors).

    Raises:
        InputError: If the format is unknown, the file exists, a package is missing, or the
            probabilities of the written network differ from torch's.
    """
    file_format = format  # the public keyword shadows a builtin
    if file_format not in SUFFIXES:
        raise InputError(f"format={file_format} must be {', '.join(SUFFIXES)}.")
    finished = AppRun(run, trust=trust)
    path = _new_path(finished, file_format, out)
    canvas = canvas_of(finished.cfg)
    images = _random_images(canvas, int(finished.cfg.data.in_channels))
    module = Probabilities(finished.network()).eval()
    with torch.no_grad():
        expected = module(images).numpy()
    with replacing(path) as temporary:
        WRITERS[file_format](module, images[:2], temporary)
        difference = _checked_difference(file_format, temporary, images, expected)
    description = _description(images, expected, finished.cfg, canvas)
    write_text(_description_path(path), json.dumps(description, indent=1))
    return path, difference


def _new_path(finished: AppRun, file_format: str, out: str | Path | None) -> Path:
    default = finished.folder / "export" / f"model{SUFFIXES[file_format]}"
    path = default if out is None else Path(out)
    for file in (path, _description_path(path)):
        if file.exists():
            raise InputError(f"{file} exists and is never overwritten; give another out=FILE.")
    return path


def _description_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _random_images(canvas: Canvas, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, channels, canvas.height, canvas.width, generator=generator)


def _checked_difference(
    file_format: str, path: Path, images: Tensor, expected: NDArray[Any]
) -> float | None:
    """Compare the written network with torch; None if the file holds weights only."""
    if file_format not in READERS:
        return None
    difference = float(np.abs(READERS[file_format](path, images) - expected).max())
    if not difference <= TOLERANCE:  # also if it is not a number
        raise InputError(
            f"The {file_format} network's probabilities are up to {difference:.2g} off torch's; "
            "export it in another format."
        )
    return difference


def _description(
    images: Tensor, probabilities: NDArray[Any], cfg: DictConfig, canvas: Canvas
) -> dict[str, Any]:
    last, normalization = BY_ITSELF, normalization_of(cfg)
    if normalization is not None:
        mean, std = (list(values) for values in normalization)
        last = f"subtract {mean} from the channels, divide them by {std}"
    _, channels, height, width = images.shape
    return {
        "input": {"name": "images", "shape": ["N", channels, height, width], "type": "float32"},
        "preparation": _preparation(cfg, canvas) + last + (BLENDED if cfg.data.get("tile") else ""),
        "output": {
            "name": "probabilities",
            "shape": ["N", int(probabilities.shape[1]), height, width],
            "of": "classes, background first",
        },
    }


def _preparation(cfg: DictConfig, canvas: Canvas) -> str:
    text = KEPT if canvas.keeps_shape else STRETCHED
    if cfg.data.get("tile") is not None:
        text = TILES.format(tile=cfg.data.tile, overlap=cfg.data.overlap)
    if cfg.data.get("bands") is not None:
        text = f"take the bands {list(cfg.data.bands)}, counted from 1, {text}"
    whose = "each band's" if cfg.data.in_channels > 3 else "the image's"
    return text + QUANTILES.format(whose)


def _write_safetensors(module: Probabilities, images: Tensor, path: Path) -> None:
    from safetensors.torch import save_file

    weights = {name: w.contiguous() for name, w in module.network.state_dict().items()}
    save_file(weights, path)


def _write_onnx(module: Probabilities, images: Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"format=onnx needs {error.name}: pip install onnx onnxruntime onnxscript."
        ) from error
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    shapes = {"images": {0: torch.export.Dim("N")}}
    try:
        program = torch.onnx.export(
            module, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names
        )
    except torch.onnx.OnnxExporterError:
        # The exporter of torch 2.6 cannot use newer releases of onnxscript.
        axes = {"images": {0: "N"}, "probabilities": {0: "N"}}
        try:
            torch.onnx.export(
                module, (images,), str(path), dynamo=False, dynamic_axes=axes, **names
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(
                f"Neither of the exporters of torch {torch.__version__} can write this network as "
                "ONNX (that of 2.6 needs an onnxscript of its time); take a newer torch, or "
                "format=torchscript."
            ) from error
        return
    assert program is not None
    program.save(str(path))


def _read_onnx(path: Path, images: Tensor) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


def _write_torchscript(module: Probabilities, images: Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        # Tracing warns that it fixes the image size, which is intended, and that it is deprecated.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, images)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))


def _read_torchscript(path: Path, images: Tensor) -> Any:
    with torch.no_grad():
        return torch.jit.load(str(path))(images).numpy()  # type: ignore[no-untyped-call]


WRITERS = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "safetensors": _write_safetensors,
}
READERS = {"onnx": _read_onnx, "torchscript": _read_torchscript}  # safetensors holds weights only


if __name__ == "__main__":
    cli_errors(main)
