"""What a finished run left in its folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from coseg_lightning.data.datamodule import CoSegDataModule


class FinishedRun:
    """A finished run, read from its folder.

    Args:
        folder: The run's.

    Raises:
        InputError: If it holds no finished run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "summary.json"
        if not path.is_file():
            raise InputError(
                f"{self.folder} holds no finished run (no summary.json); give the folder of "
                "one, or let it finish: resume=..."
            )
        try:
            self.summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.config: dict[str, Any] = self.summary["config"]
            self.layers = [self.folder / name for name in self.summary["correction"]["layers"]]
            if not isinstance(self.config, dict):
                raise TypeError(self.config)
            outside = any(layer.parent != self.folder for layer in self.layers)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
        if outside:
            raise InputError(f"{path} names a layer outside of the run's folder; restore it.")

    @property
    def cfg(self) -> DictConfig:
        """The configuration of a run of the app.

        Raises:
            InputError: If it was started from Python.
        """
        if "source" not in (self.config.get("data") or {}) or "model" not in self.config:
            raise InputError(
                f"{self.folder} was run from Python, with data and networks that it cannot make "
                "again; use them there."
            )
        cfg: DictConfig = OmegaConf.create(self.config)
        return cfg

    def data(self) -> "CoSegDataModule":
        """The run's data, under the masks that it was given: without its corrections."""
        from coseg_lightning.build import make_data

        return make_data(self.cfg, self.folder)

    def network(self) -> "nn.Module":
        """The run's network, in evaluation mode.

        Raises:
            InputError: If it cannot be made again, or its weights do not fit it.
        """
        import segmentation_models_pytorch as smp
        from hydra.utils import instantiate
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from coseg_lightning.image_files import decoding

        place = self.folder / "model"
        network: nn.Module
        try:
            if (place / "config.json").is_file():
                network = smp.from_pretrained(str(place))
            else:
                network = instantiate(self.cfg.model)
                with decoding(place / "model.safetensors", "weights"):
                    network.load_state_dict(load_file(place / "model.safetensors"))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"{place} cannot be loaded; restore the run's folder.") from error
        return network.eval()
