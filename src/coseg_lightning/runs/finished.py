"""What a finished run left in its folder, read without Hydra."""

import json
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError


class FinishedRun:
    """A finished run, read from its folder; runs of earlier versions too.

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
    def is_reviewed(self) -> bool:
        """Whether it is a run's retraining by a review."""
        return "reviewed_run" in self.config

    @property
    def is_of_the_app(self) -> bool:
        """Whether the app made it, so that its data and networks can be made again."""
        return "source" in (self.config.get("data") or {}) and "model" in self.config

    def epochs(self, stage: str) -> int | None:
        """How many epochs a stage took, or None if there was no such stage."""
        fit = self.summary["stages"].get(stage)
        return None if fit is None else int(fit["epochs"])

    @property
    def noise(self) -> Path | None:
        """The layer of noisy masks that was put over the data's own, if there is one."""
        folders = [self.folder]
        if self.is_reviewed:  # they lie in the run that was reviewed
            folders += [Path(self.config["reviewed_run"]), self.folder.parent]
        layers = [folder / "noise" for folder in folders]
        return next((layer for layer in layers if layer.is_dir()), None)

    @property
    def samples(self) -> dict[str, str]:
        """What the data was, see `CoSegDataModule.identity`.

        Raises:
            InputError: If `run.json` cannot be read.
        """
        path = self.folder / "run.json"
        try:
            samples: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["config"][
                "samples"
            ]
            return dict(samples)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
