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
        root: Where its data lies now, if it was moved.

    Raises:
        InputError: If it holds no finished run.
    """

    def __init__(self, folder: str | Path, root: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._root = root
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
        config = self.config
        if self._root:
            new = str(Path(self._root).expanduser().absolute())
            config = _moved(config, config["data"]["root"], new)
        cfg: DictConfig = OmegaConf.create(config)
        return cfg

    @property
    def is_reviewed(self) -> bool:
        """Whether it is a run's retraining by a review."""
        return "reviewed_run" in self.config

    @property
    def noise(self) -> Path | None:
        """The layer of noisy masks that was put over the data's own, if there is one."""
        places = [self.folder]
        if self.is_reviewed:  # they lie in the run that was reviewed
            places += [Path(self.config["reviewed_run"]), self.folder.parent]
        found = [place / "noise" for place in places if (place / "noise").is_dir()]
        return found[0] if found else None

    def data(self) -> "CoSegDataModule":
        """The run's data, under the masks that it was given: without its corrections.

        Raises:
            InputError: If it is not there, or not what it was.
        """
        from coseg_lightning.app.build import make_data

        # What was looked at before is known to be as it was, or else told by its identity.
        place = self.folder if self.noise is None else self.noise.parent
        data = make_data(self.cfg, place, tells_problems=False)
        path = self.folder / "run.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["config"]["samples"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
        changed = [
            f"{part}: {now} (it was {before.get(part)})"
            for part, now in data.identity().items()
            if now != before.get(part)
        ]
        if changed:
            raise InputError(
                f"The data of {self.folder} is not what it was: {'; '.join(changed)}. Restore it, "
                "or run anew on the data as it is."
            )
        return data

    def network(self) -> "nn.Module":
        """The run's network, in evaluation mode.

        Raises:
            InputError: If it cannot be made again, or its weights do not fit it.
        """
        import segmentation_models_pytorch as smp
        from hydra.utils import instantiate
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from coseg_lightning.files.images import decoding

        place = self.folder / "model"
        network: nn.Module
        try:
            if (place / "config.json").is_file():
                network = smp.from_pretrained(str(place))
            else:
                # Its weights are here: making it must not download others first.
                given = {"encoder_weights": None} if "encoder_weights" in self.cfg.model else {}
                network = instantiate(self.cfg.model, **given)
                with decoding(place / "model.safetensors", "weights"):
                    network.load_state_dict(load_file(place / "model.safetensors"))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"{place} cannot be loaded; restore the run's folder.") from error
        return network.eval()


def _moved(value: Any, old: Any, new: str) -> Any:
    """A configuration whose data lies elsewhere; several of its values name the place."""
    if isinstance(value, dict):
        return {key: _moved(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, old, new) for part in value]
    return new if value == old else value
