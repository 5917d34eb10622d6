"""RunFolder: a run's identity and finished stages, so that an interrupted run can be resumed."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT, UNFINISHED
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import is_temporary, replacing, temporary_name, write_text
from coseg_lightning.files.checkpoints import check_fits, load_checkpoint, plain_names
from coseg_lightning.files.settings import setting
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.modules.renamed import home_now

log = logging.getLogger(__name__)

RUN = "run.json"
SUMMARY = "summary.json"
DONE = "done.json"
PEERS = ("net_a.", "net_b.")  # prefixes of the names of the peers' weights
ANNOTATORS = "samples.annotators"
SAMPLES_DIFFER = ". Images, masks, or who drew them, were changed since"
IN_DONE = {"stages": dict, "epochs": int, "made": dict}
# What a run writes into its folder, by which leftovers of another one are noticed. Names with a
# number are those of later rounds and of folds.
OUTPUT_FILES = [
    *("run.json", "summary.json", "metrics.csv", "report.html", "review.html", "scores.csv"),
    *("inputs.csv", "test.csv", "images.csv", "redraw.csv", "review_order.csv", "masks.csv"),
    *("reordered.csv", "noise_level.json", "annotators.csv", "disputed.csv"),
]
OUTPUT_FOLDERS = [
    *("figures", "model", "noise", "reviewed", "export", "table", "review", "estimation"),
    *("retraining", "supervised_training", "noisy_baseline", "clean_baseline"),
]
NUMBERED = r"scores_\d+\.csv|(labels|uncertainty|proposals|robust_training|early_learning)(_\d+)?"
OUTPUT_NAMES = re.compile(
    "|".join([*map(re.escape, OUTPUT_FILES + OUTPUT_FOLDERS), NUMBERED, r"fold_\d+"])
)
OF_NAMED_NETWORKS = {
    f"{part}.{name}"
    for part in ("peers", "network")
    for name in ("in_channels", "encoder_name", "encoder_weights")
}
# Where the data of a run that is not finished may lie elsewhere, as its digests are compared too.
ROOTS = ("data.root", "data.source.root", "noise.annotator.root")
WEIGHTS_FILES = "weights_files"  # the digests of files of pretrained weights, by group of settings
# Settings that may change when a run is resumed. They change where and how it computes, not what.
MAY_CHANGE = (
    "resume",
    "trust",
    "reviewed_run",
    "objective",
    "review_budget",
    "rehearse",
    "keep_checkpoints",
    "logger",
    "data.num_workers",
    "data.cache",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
)


def _with_name_of_today(value: Any) -> Any:
    return home_now(value) if isinstance(value, str) else value


def version() -> str:
    """Return this package's version, which identifies a run, as another may train differently."""
    from coseg_lightning import __version__

    return __version__


class RunFolder:
    """A run's own folder.

    Args:
        path: The folder, which need not exist yet.
        config: Plain values that identify the run.
        resume: Whether to resume a run that the folder holds; without one, a new run begins.
        not_compared: Parts of the run's identity that are missing in `config` and are not compared.

    Raises:
        InputError: If the folder holds a run and `resume` is false, or one with another
            `config`.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        not_compared: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        self._begun = False
        self.config = json.loads(json.dumps({**config, "version": version()}, default=str))
        identity = self._identity(self.config)
        self.id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
        earlier = self._read(self.path / RUN, {"id": str, "config": dict})
        self.resumed = resume and earlier is not None
        if earlier is not None and resume:
            self._check_same(self._identity(earlier["config"]), identity, not_compared)
            self.id = str(earlier["id"])
            self._tidy()
            for done_path in sorted(self.path.glob(f"*/{DONE}")):
                self._check_made(done_path)
        else:
            self._check_new()

    def _check_same(
        self, before: Mapping[str, Any], identity: Mapping[str, Any], not_compared: Sequence[str]
    ) -> None:
        """Raise an `InputError` if the folder's run has other settings than this one.

        A finished run of another version is only shown, so only settings that both versions know
        are compared. An unfinished run of another version is refused, since it might continue
        differently.
        """
        version_before, version_now = before.get("version"), identity["version"]
        if version_before != version_now:
            if not (self.path / SUMMARY).is_file():
                raise InputError(
                    f"{self.path} was started by version {version_before}, but version "
                    f"{version_now} may continue it differently; finish it with version "
                    f"{version_before}, or start again in another folder."
                )
            log.info(
                "%s was finished by version %s, and its results stay as they are; version %s "
                "compares only the settings that both versions know.",
                self.path,
                version_before,
                version_now,
            )
            # A finished run is only shown, whatever this machine computes with.
            known = before.keys() & identity.keys() - {"version", "trainer.precision"}
            before, identity = (
                {key: _with_name_of_today(settings[key]) for key in known}
                for settings in (before, identity)
            )
        keys = {*before, *identity} - {*self._may_lie_elsewhere(before, identity)}
        if ANNOTATORS not in before:  # it began before they were recorded
            keys.discard(ANNOTATORS)
        keys -= OF_NAMED_NETWORKS - identity.keys()  # once also recorded of ready networks
        differences = [
            f"{key}={identity.get(key)} (it was {before.get(key)})"
            for key in sorted(keys)
            if before.get(key) != identity.get(key) and key.partition(".")[0] not in not_compared
        ]
        if differences:
            changed = any(text.startswith("samples.") for text in differences)
            raise InputError(
                f"{self.path} holds another run, which differs in {', '.join(differences)}"
                f"{SAMPLES_DIFFER if changed else ''}; resume it with its own settings"
                f"{' and data' if changed else ''}, or start this run in a new folder."
            )

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Whether a run was begun in a folder."""
        return (path / RUN).is_file()

    @staticmethod
    def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in _flat(config) if not is_free(key)}

    def _may_lie_elsewhere(
        self, before: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> Iterator[str]:
        """Yield the paths of files whose digests are compared."""
        if not (self.path / SUMMARY).is_file() and "data._target_" not in identity:
            yield from ROOTS
        for group in ("model", "peer_b"):
            if f"{WEIGHTS_FILES}.{group}" in before.keys() & identity.keys():
                yield f"{group}.encoder_weights"

    @rank_zero_only  # other processes start after the first has created its run
    def _check_new(self) -> None:
        self.check_free(self.path)

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raise an `InputError` if a run would overwrite files in a folder."""
        outputs = [RUN] if (path / RUN).exists() else []
        if path.is_dir():
            outputs += sorted(
                file.name for file in path.iterdir() if OUTPUT_NAMES.fullmatch(file.name)
            )
        if outputs:
            again = f", or continue that run with {setting('resume', path)}"
            alternative = again if outputs[0] == RUN else ""
            raise InputError(
                f"{path} holds another run ({outputs[0]}), and nothing is ever overwritten; "
                f"choose another folder (hydra.run.dir=...){alternative}."
            )

    @rank_zero_only
    def begin(self) -> None:
        """Write the run's identity into the folder to claim it for this run."""
        if self.resumed or self._begun:
            return
        text = json.dumps({"id": self.id, "config": self.config}, indent=1)
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / temporary_name(RUN, os.getpid())
        try:
            temporary.write_text(text, encoding="utf-8")
            os.link(temporary, self.path / RUN)  # unlike a move, this fails if the file exists
        except FileExistsError as error:
            raise InputError(
                f"{self.path} is already used by a run that started at the same time; choose "
                "another folder (hydra.run.dir=...)."
            ) from error
        except OSError:  # the disk has no hard links; if it is full, the next line fails too
            write_text(self.path / RUN, text)
        finally:
            temporary.unlink(missing_ok=True)
        self._begun = True

    @rank_zero_only
    def _tidy(self) -> None:
        """Remove the temporary files of an interrupted run."""
        for path in self.path.rglob(".*"):
            if is_temporary(path):
                path.unlink()

    def _read(self, path: Path, types: Mapping[str, type]) -> dict[str, Any] | None:
        """Read a JSON file that must hold named values of the given types; None if missing."""
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if all(isinstance(content[name], kind) for name, kind in types.items()):
                return dict(content)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise InputError(f"{path} was changed and cannot be read; start the run in a new folder.")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None if the run is unfinished."""
        if not self.resumed:
            return None
        names = ("config", "test", "ranking", "correction", "stages")
        return self._read(self.path / SUMMARY, dict.fromkeys(names, dict))

    def done(self, stage: str) -> dict[str, Any] | None:
        """Return the recorded values of a finished stage, or None if the stage is unfinished."""
        return self._read(self.path / stage / DONE, IN_DONE) if self.resumed else None

    @rank_zero_only
    def finish(self, stage: str, facts: Mapping[str, Any], makes: Sequence[str] = ()) -> None:
        """Record that a stage is finished, with plain values for later stages.

        Args:
            stage: The stage.
            facts: The values.
            makes: Names of tables and label layers that the stage may have written into the run's
                folder.
        """
        digests = {name: digest for name in makes if (digest := self._digest(name)) is not None}
        text = json.dumps({**facts, "made": digests}, allow_nan=False)
        write_text(self.path / stage / DONE, text)
        for path in self.path.glob(f"{stage}*/{UNFINISHED}"):
            path.unlink()

    def _digest(self, name: str) -> str | None:
        """Return the digest of a table or of a label layer's manifest; None if there is none."""
        path = self.path / name
        path = path / LabelStore.MANIFEST if path.is_dir() else path
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def _check_made(self, path: Path) -> None:
        """Raise an `InputError` if the outputs of a finished stage were changed.

        Args:
            path: The file in which the stage is recorded as finished.
        """
        facts = self._read(path, IN_DONE)
        assert facts is not None
        digests, layers = facts["made"], facts.get("layers", [])
        if not isinstance(layers, list) or any(
            Path(str(name)).name != name for name in (*digests, *layers)
        ):
            raise InputError(
                f"{path} was changed and cannot be read; start the run in a new folder."
            )
        for name, digest in digests.items():
            if self._digest(name) != digest:
                raise InputError(
                    f"{self.path / name} was changed or removed after the run wrote it; restore "
                    "it, or start the run in a new folder."
                )

    @rank_zero_only
    def remove_checkpoints(self) -> None:
        """Remove the parts of the stages' final states that a finished run no longer needs.

        The peers' weights are kept in the same file, since a review retrains from the first peer.
        The final network is in `model/`.
        """
        for path in self.path.glob(f"*/{CHECKPOINT}"):
            state = load_checkpoint(path)["state_dict"]
            weights = {k: v for k, v in plain_names(state).items() if k.startswith(PEERS)}
            if weights:
                with replacing(path) as temporary:
                    torch.save({"state_dict": weights}, temporary)
            else:
                path.unlink()

    @rank_zero_only
    def clear(self, *names: str) -> None:
        """Remove incomplete outputs of an unfinished stage, so that it can start again.

        A new run removes nothing, since its folder held no such files when it started.
        """
        if not self.resumed:
            return
        for path in (self.path / name for name in names):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def checkpoint(self, stage: str, module: nn.Module) -> Path | None:
        """Return the checkpoint of an unfinished stage's last saved epoch, if there is one.

        Raises:
            InputError: If the checkpoint cannot be read, or does not fit the module.
        """
        path = self.path / stage / UNFINISHED
        if not self.resumed or not path.is_file():
            return None
        loaded = load_checkpoint(path)
        if not {"epoch", "global_step", "loops", "optimizer_states"} <= loaded.keys():
            raise InputError(f"{path} is not a training checkpoint; start the run in a new folder.")
        check_fits(loaded["state_dict"], module, path)
        return path

    def log_folder(self, stage: str) -> str:
        """Return this attempt's log folder in a stage's folder: `resumed_1` and so on, or `""`."""
        if not self.resumed or not (self.path / stage).exists():
            return ""
        return f"resumed_{1 + len(list((self.path / stage).glob('resumed_*')))}"


def stage_weights(folder: Path, of: str = "") -> dict[str, Any]:
    """Load the final state dict of a finished stage.

    Args:
        folder: The stage's folder.
        of: A prefix, such as `net_a.`, that selects one network's weights and is removed.
    """
    state = plain_names(load_checkpoint(folder / CHECKPOINT)["state_dict"])
    return {name.removeprefix(of): value for name, value in state.items() if name.startswith(of)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_free(key: str) -> bool:
    """Whether a setting changes where or how a run computes, not what."""
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
