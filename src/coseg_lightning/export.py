"""Exports a run's network for use elsewhere: python -m coseg_lightning.export RUN format=onnx."""

import json
import warnings
from dataclasses import replace
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
from coseg_lightning.data.instructions import preparation_in_words
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.networks.forward import any_size, output_stride
from coseg_lightning.report.model_card import Inputs, NetworkFile, model_card

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
TOLERANCE = 1e-3  # difference in probability between the arithmetic of two engines


def main() -> None:
    """Read the command line, export the network, and print the path of the file."""
    options = arguments("export")
    path, difference = export(
        options["run"], options["format"], options["out"] or None, trust=options["trust"]
    )
    check = "" if difference is None else f" matches torch's probabilities to {difference:.1e}"
    print(
        f"{path}{check}; inputs and outputs are described in {_description_path(path)}, and "
        f"{card_path(path)} is its model card"
    )


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

    A model card, `.md`, is written beside it.

    ONNX and TorchScript networks take `(N, C, H, W)` images for any N and return `(N, K, H, W)`
    class probabilities. The description states how images must be prepared.

    Args:
        run: The folder of a finished run.
        format: `onnx`, `torchscript` or `safetensors`.
        out: A new file; by default in the run's folder.
        trust: See `AppRun`.

    Returns:
        The file, and the largest difference of its probabilities from torch's (None for
        safetensors).

    Raises:
        InputError: If the format is unknown, the file exists, a package is missing, or the
            probabilities of the written network differ from torch's.
    """
    file_format = format  # the public argument shadows a builtin
    if file_format not in SUFFIXES:
        raise InputError(f"format={file_format} must be {', '.join(SUFFIXES)}.")
    finished = AppRun(run, trust=trust)
    path = _new_path(finished, file_format, out)
    canvas = canvas_of(finished.cfg)
    images = _random_images(canvas, int(finished.cfg.data.in_channels))
    module = Probabilities(finished.network()).eval()
    with torch.no_grad():
        expected = module(images).numpy()
    inputs, classes = _inputs(finished.cfg, canvas), int(expected.shape[1])
    file = NetworkFile(path.name, file_format, classes)
    card = _card(finished, module.network, images, file, inputs)
    with replacing(path) as temporary:
        WRITERS[file_format](module, images[:2], temporary)
        difference = _checked_difference(file_format, temporary, images, expected)
    write_text(_description_path(path), json.dumps(_description(inputs, classes), indent=1))
    write_text(card_path(path), card)
    return path, difference


def _card(
    finished: AppRun, network: nn.Module, images: Tensor, file: NetworkFile, inputs: Inputs
) -> str:
    if not file.gives_probabilities:  # the bare network, which may have a single output
        with torch.no_grad():
            outputs = int(any_size(network, images[:1]).shape[1])
        file = replace(file, outputs=outputs, multiple_of=output_stride(network))
    try:
        return model_card(finished.summary, file, inputs, trained_with=_version_of(finished))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = finished.folder / "summary.json"
        raise InputError(f"{path} was changed and cannot be read; restore it.") from error


def _version_of(finished: AppRun) -> str | None:
    try:
        return finished.version
    except InputError:  # run.json is not needed for anything else
        return None


def _new_path(finished: AppRun, file_format: str, out: str | Path | None) -> Path:
    default = finished.folder / "export" / f"model{SUFFIXES[file_format]}"
    path = default if out is None else Path(out)
    for file in (path, _description_path(path), card_path(path)):
        if file.exists():
            raise InputError(f"{file} exists and is never overwritten; give another out=FILE.")
    return path


def _description_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def card_path(path: Path) -> Path:
    """Return the path of the model card beside an exported network."""
    return path.with_name(f"{path.name}.md")


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
    if not difference <= TOLERANCE:  # also true for NaN
        raise InputError(
            f"The {file_format} network's probabilities differ from torch's by up to "
            f"{difference:.2g}; export it in another format."
        )
    return difference


def _inputs(cfg: DictConfig, canvas: Canvas) -> Inputs:
    channels, bands = int(cfg.data.in_channels), cfg.data.get("bands")
    preparation = preparation_in_words(
        canvas,
        channels,
        normalization_of(cfg),
        tile=cfg.data.get("tile"),
        overlap=cfg.data.get("overlap") or 0,
        bands=None if bands is None else list(bands),
        nodata=cfg.data.get("nodata"),
    )
    return Inputs(channels, canvas.height, canvas.width, preparation)


def _description(inputs: Inputs, classes: int) -> dict[str, Any]:
    size = [inputs.height, inputs.width]
    return {
        "input": {"name": "images", "shape": ["N", inputs.channels, *size], "type": "float32"},
        "preparation": inputs.preparation,
        "output": {
            "name": "probabilities",
            "shape": ["N", classes, *size],
            "of": "classes, background first",
        },
    }


def _write_safetensors(module: Probabilities, images: Tensor, path: Path) -> None:
    from coseg_lightning.networks.build import save_weights

    save_weights(module.network, path)


def _write_onnx(module: Probabilities, images: Tensor, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"format=onnx needs the package {error.name}; install it by pip install -e '.[onnx]' "
            "in the clone, or give format=torchscript, which needs nothing more."
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
                f"Neither of the two exporters of torch {torch.__version__} can write this network "
                "as ONNX; use a newer torch (2.6 needs an older onnxscript), or "
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
