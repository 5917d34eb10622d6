"""FinishedRun: the results of a finished run, read from its folder without Hydra."""

import json
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError


class FinishedRun:
    """A finished run of this or an earlier version, read from its folder.

    Args:
        folder: The run's folder.

    Raises:
        InputError: If the folder holds no finished run.
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
    def is_reviewed(self) -> bool:
        """Whether this is the retraining of another run after a review."""
        return "reviewed_run" in self.config

    @property
    def is_of_the_app(self) -> bool:
        """Whether the run was started by the app, so that its data and network can be rebuilt."""
        return "source" in (self.config.get("data") or {}) and "model" in self.config

    def epochs(self, stage: str) -> int | None:
        """Return the number of epochs of a stage, or None if there was no such stage."""
        fit = self.summary["stages"].get(stage)
        return None if fit is None else int(fit["epochs"])

    @property
    def noise(self) -> Path | None:
        """The layer of noisy masks that replaced the data's own masks, if there is one."""
        folders = [self.folder]
        if self.is_reviewed:  # the layer lies in the reviewed run's folder
            folders += [Path(self.config["reviewed_run"]), self.folder.parent]
        layers = [folder / "noise" for folder in folders]
        return next((layer for layer in layers if layer.is_dir()), None)

    @property
    def samples(self) -> dict[str, str]:
        """The identity of the data, see `CoSegDataModule.identity`.

        Raises:
            InputError: If `run.json` cannot be read.
        """
        return dict(self._begun["samples"])

    @property
    def version(self) -> str:
        """The version of this package that made the run.

        Raises:
            InputError: If `run.json` cannot be read.
        """
        return str(self._begun["version"])

    @property
    def _begun(self) -> dict[str, Any]:
        """The settings with which the run began."""
        path = self.folder / "run.json"
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
            dict(config["samples"]), config["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
        return config
