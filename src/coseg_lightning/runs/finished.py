"""FinishedRun: the results of a finished run, read from its folder without Hydra."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.labels.store import LabelStore

INPUTS = "inputs.csv"


def write_inputs(folder: Path, digests: Mapping[str, tuple[str, str]]) -> None:
    """Write digests of the images and masks, by which `apply` finds those that changed later.

    Args:
        folder: The run's folder.
        digests: Those of each image and of its mask file, by id; of no files, none is written.
    """
    if digests:
        rows = ({"id": i, "image": image, "mask": mask} for i, (image, mask) in digests.items())
        write_table(folder / INPUTS, rows)


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
                f"{self.folder} holds no finished run (no summary.json); give the folder of a "
                "finished run, or finish this run with resume=..."
            )
        try:
            self.summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            is_run = "correction" in self.summary or (self.folder / "run.json").is_file()
            if not is_run and "ranking" in self.summary:
                raise InputError(
                    f"{self.folder} is an audit by an earlier version, which did not store what "
                    "this command needs; audit again."
                )
            self.config: dict[str, Any] = self.summary["config"]
            self.layers = [self.folder / name for name in self.summary["correction"]["layers"]]
            if not isinstance(self.config, dict):
                raise TypeError(self.config)
            outside = any(layer.parent != self.folder for layer in self.layers)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
        if outside:
            raise InputError(
                f"{path} names a layer outside of the run's folder; restore that file."
            )

    @property
    def is_reviewed(self) -> bool:
        """Whether this is the retraining of another run after a review."""
        return "reviewed_run" in self.config

    @property
    def is_audit(self) -> bool:
        """Whether this is an audit, which ranked all masks and kept no network."""
        return "begun" in self.summary

    @property
    def is_of_the_app(self) -> bool:
        """Whether the run was started by the app, so that its data and network can be rebuilt."""
        return "source" in (self.config.get("data") or {}) and "model" in self.config

    def epochs(self, stage: str) -> int | None:
        """Return the number of epochs of a stage, or None if there was no such stage."""
        fit = self.summary["stages"].get(stage)
        return None if fit is None else int(fit["epochs"])

    @property
    def origin(self) -> "FinishedRun":
        """The run that trained the peers: this one, or the one that was reviewed first.

        Raises:
            InputError: If its folder is gone.
        """
        *_, last = self.with_reviewed()
        if last.is_reviewed:
            raise InputError(
                f"{last.folder} is a review of {last.config['reviewed_run']}, which does not "
                "exist; restore that run."
            )
        return last

    def with_reviewed(self) -> Iterator["FinishedRun"]:
        """This run, the run that it reviews, and so on, as long as their folders exist."""
        yield self
        if self.is_reviewed:
            for place in (Path(self.config["reviewed_run"]), self.folder.parent):
                if (place / "summary.json").is_file():
                    yield from FinishedRun(place).with_reviewed()
                    return

    @property
    def noise(self) -> Path | None:
        """The layer of noisy masks that replaced the data's own masks, if there is one."""
        layers = [run.folder / "noise" for run in self.with_reviewed()]
        return next((layer for layer in layers if layer.is_dir()), None)

    @property
    def proposals(self) -> LabelStore | None:
        """The networks' own masks of the training samples, if a run wrote them."""
        for run in self.with_reviewed():
            if LabelStore.is_finished(run.folder / "proposals"):
                return LabelStore(run.folder / "proposals")
        return None

    @property
    def file_digests(self) -> dict[str, tuple[str, str]]:
        """Digests of the training images and masks by id, if known."""
        path = self.folder / INPUTS
        rows = read_table(path, ["id", "image", "mask"]) if path.is_file() else []
        return {row["id"]: (row["image"], row["mask"]) for row in rows}

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
        """The settings with which the run started."""
        if self.is_audit:
            return dict(self.summary["begun"])
        path = self.folder / "run.json"
        try:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["config"]
            dict(config["samples"]), config["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
        return config
