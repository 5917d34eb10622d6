"""RunFolder: what a run is and what it has finished, so that it can go on where it was killed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT, UNFINISHED
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import is_temporary, temporary_name, write_text
from coseg_lightning.files.checkpoints import check_fits, load_checkpoint
from coseg_lightning.labels.store import LabelStore

RUN = "run.json"
DONE = "done.json"
IN_DONE = {"stages": dict, "epochs": int, "made": dict}
# Every name that a run gives to what it makes in its folder.
OUTPUT_NAMES = re.compile(
    r"run\.json|summary\.json|metrics\.csv|report\.html|figures|model|noise|reviewed|export|table"
    r"|(scores(_\d+)?\.csv)|((labels|robust_training|early_learning)(_\d+)?)"
    r"|((re|supervised_)training)|estimation|((noisy|clean)_baseline)|redraw\.csv"
)
# What may change between a run and its resumption: where and how it computes, not what.
MAY_CHANGE = (
    *("resume", "reviewed_run", "logger", "data.num_workers", "data.cache"),
    *("trainer.accelerator", "trainer.devices"),
    *("trainer.num_nodes", "trainer.strategy", "trainer.enable_progress_bar"),
    *("trainer.enable_model_summary", "trainer.log_every_n_steps"),
)


def version() -> str:
    """Of this package: another one may go on in another way."""
    from coseg_lightning import __version__

    return __version__


class RunFolder:
    """A run's own folder.

    Args:
        path: The folder, which may not exist yet.
        config: Plain values that say what the run is.
        resume: Whether a run that is there already goes on; if none is, it begins.
        beside: Parts of what the run is that are not in `config`, and not compared.

    Raises:
        InputError: If the folder holds a run that is not to go on, or another one than `config`.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        beside: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        self._begun = False
        self.config = json.loads(json.dumps({**config, "version": version()}, default=str))
        identity = self._identity(self.config)
        self.id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        found = self._read(self.path / RUN, {"id": str, "config": dict})
        self.resumed = resume and found is not None
        if found is not None and resume:
            before = self._identity(found["config"])
            told = [
                f"{key}={identity.get(key)} (it was {before.get(key)})"
                for key in sorted({*before, *identity})
                if before.get(key) != identity.get(key) and key.partition(".")[0] not in beside
            ]
            if told:
                raise InputError(
                    f"{self.path} holds another run, which differs in {', '.join(told)}; resume it "
                    "with the settings that it was started with, or start this one in a new folder."
                )
            self._tidy()
            for path in sorted(self.path.glob(f"*/{DONE}")):
                self._check_made(path)
        else:
            self._check_new()

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Whether a run was begun in a folder."""
        return (path / RUN).is_file()

    @staticmethod
    def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in _flat(config) if not _is_free(key)}

    @rank_zero_only  # the processes that the first one starts find its run
    def _check_new(self) -> None:
        self.check_free(self.path)

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raise an `InputError` if a run would write over something."""
        found = [RUN] if (path / RUN).exists() else []
        if path.is_dir():
            found += sorted(
                file.name for file in path.iterdir() if OUTPUT_NAMES.fullmatch(file.name)
            )
        if found:
            way = f", or go on with that one: resume={path}" if found[0] == RUN else ""
            raise InputError(
                f"{path} holds another run ({found[0]}), and nothing is ever overwritten; "
                f"choose another folder (hydra.run.dir=...){way}."
            )

    @rank_zero_only
    def begin(self) -> None:
        """Write what the run is, which takes possession of the folder."""
        if self.resumed or self._begun:
            return
        text = json.dumps({"id": self.id, "config": self.config}, indent=1)
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / temporary_name(RUN, os.getpid())
        try:
            temporary.write_text(text, encoding="utf-8")
            os.link(temporary, self.path / RUN)  # unlike a move, it fails where there is one
        except FileExistsError as error:
            raise InputError(
                f"{self.path} was taken by a run that began at the same time; choose another "
                "folder (hydra.run.dir=...)."
            ) from error
        except OSError:  # a disk without links, which says so in many ways; or a full one, again
            write_text(self.path / RUN, text)
        finally:
            temporary.unlink(missing_ok=True)
        self._begun = True

    @rank_zero_only
    def _tidy(self) -> None:
        """Remove temporary files of what was being written when the run was interrupted."""
        for path in self.path.rglob(".*"):
            if is_temporary(path):
                path.unlink()

    def _read(self, path: Path, wanted: Mapping[str, type]) -> dict[str, Any] | None:
        """A file of plain values by name, of which some must be there."""
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if all(isinstance(content[name], kind) for name, kind in wanted.items()):
                return dict(content)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise InputError(f"{path} was changed and cannot be read; start the run in a new folder.")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that is finished."""
        if not self.resumed:
            return None
        wanted = ("config", "test", "ranking", "correction", "stages")
        return self._read(self.path / "summary.json", dict.fromkeys(wanted, dict))

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage recorded; None if it is still to be done."""
        return self._read(self.path / stage / DONE, IN_DONE) if self.resumed else None

    @rank_zero_only
    def finish(self, stage: str, facts: Mapping[str, Any], makes: Sequence[str] = ()) -> None:
        """Record that a stage is finished, with plain values for those that follow.

        Args:
            stage: The stage.
            facts: The values.
            makes: Names of tables and label layers that it may have made in the run's folder.
        """
        made = {name: digest for name in makes if (digest := self._digest(name)) is not None}
        write_text(self.path / stage / DONE, json.dumps({**facts, "made": made}, allow_nan=False))
        for path in self.path.glob(f"{stage}*/{UNFINISHED}"):
            path.unlink()

    def _digest(self, name: str) -> str | None:
        """Of a table, or of a label layer's manifest; None if there is no such thing."""
        path = self.path / name
        path = path / LabelStore.MANIFEST if path.is_dir() else path
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def _check_made(self, path: Path) -> None:
        """Raise an `InputError` if what a finished stage made is not what it was."""
        facts = self._read(path, IN_DONE)
        assert facts is not None
        made, layers = facts["made"], facts.get("layers", [])
        if not isinstance(layers, list) or any(
            Path(str(name)).name != name for name in (*made, *layers)
        ):
            raise InputError(f"{path} was changed and cannot be read; start in a new folder.")
        for name, digest in made.items():
            if self._digest(name) != digest:
                raise InputError(
                    f"{self.path / name} was changed or removed after the run wrote it; restore "
                    "it, or start the run in a new folder."
                )

    @rank_zero_only
    def clear(self, *names: str) -> None:
        """Remove what an unfinished stage left of its results, to make them again.

        Only where this run was interrupted: a new one has found none of these names in its folder.
        """
        if not self.resumed:
            return
        for path in (self.path / name for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def checkpoint(self, stage: str, module: nn.Module) -> Path | None:
        """The last full epoch of an unfinished stage, which this module can go on with."""
        path = self.path / stage / UNFINISHED
        if not self.resumed or not path.is_file():
            return None
        loaded = load_checkpoint(path)
        if not {"epoch", "global_step", "loops", "optimizer_states"} <= loaded.keys():
            raise InputError(f"{path} is no checkpoint of a fit; start the run in a new folder.")
        check_fits(loaded["state_dict"], module, path)
        return path

    def log_folder(self, stage: str) -> str:
        """Where in a stage's folder this attempt logs: its own, or `resumed_1` and so on."""
        if not self.resumed or not (self.path / stage).exists():
            return ""
        return f"resumed_{1 + len(list((self.path / stage).glob('resumed_*')))}"


def stage_weights(folder: Path, of: str = "") -> dict[str, Any]:
    """What a finished stage ended with, as a state dict: all of it, or one network's."""
    state = load_checkpoint(folder / CHECKPOINT)["state_dict"]
    return {name.removeprefix(of): value for name, value in state.items() if name.startswith(of)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
