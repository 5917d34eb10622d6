"""Reads the jobs of a sweep: their settings, their summaries, and the missing jobs."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coseg_lightning.errors import InputError

# Settings that the table's rows and columns show already, or that do not change a result.
SHOWN_OTHERWISE = (
    *("seed", "noise", "nol", "method", "resume"),
    *("noise.level", "noise.label_dice", "noise.masks"),
)


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Args:
        folder: The run's folder.
        overrides: The settings given on its command line.
        summary: The run's summary; None if it has not ended.
    """

    folder: Path
    overrides: dict[str, str]
    summary: dict[str, Any] | None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of a job that has ended."""
        assert self.summary is not None
        config: dict[str, Any] = self.summary["config"]
        return config

    @property
    def method(self) -> str:
        """The name of the job's method."""
        name: str = self.config["method"]["name"]
        return name

    @property
    def noise(self) -> tuple[str, float]:
        """The name of the noise added to the job's labels, and the noise level."""
        noise = self.config.get("noise") or {}
        models = [
            name for name, node in noise.items() if isinstance(node, dict) and "_target_" in node
        ]
        name = "+".join(models) or "none"
        if noise.get("label_dice") is not None:
            name += f"@{noise['label_dice']:g}"
        if "masks" in noise:
            name = str(noise["masks"])
        return name, float(noise.get("level") or 0) if models else 0.0

    def row(self, varied: Sequence[str]) -> str:
        """The name of the job's row: the method and the settings that vary over the sweep.

        A noise level given to the method is shown if it differs from that of the added noise.
        """
        parts = [self.method]
        parts += [f"{key}={self.overrides[key]}" for key in varied if key in self.overrides]
        noise_level, (_, true_level) = self.config.get("nol"), self.noise
        if noise_level not in (true_level, None) and self.method != "supervised":
            parts.append(f"nol={noise_level}")
        return " ".join(parts)


def read_jobs(folder: Path) -> list[Job]:
    """Read all runs below a folder.

    Args:
        folder: A multirun's folder, or any folder with runs below it.

    Raises:
        InputError: If there is no run below the folder, or one cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder of a sweep.")
    run_folders = [path.parent.parent for path in sorted(folder.rglob(".hydra/overrides.yaml"))]
    begun = [_read_job(path) for path in run_folders if not _is_part_of_run(path, folder)]
    jobs = [job for job in begun if job.summary is None or "test" in job.summary]  # no audits
    if not jobs:
        raise InputError(f"There is no run below {folder}; give the folder of a sweep.")
    return jobs


def _is_part_of_run(path: Path, sweep: Path) -> bool:
    """Whether a folder is inside a run, such as the run's review, or holds the sweep itself.

    A command that was stopped at once leaves Hydra's files in a folder without making it a run.
    """
    above = [parent for parent in path.parents if parent.is_relative_to(sweep)]
    return (path == sweep and not _is_run(path)) or any(map(_is_run, above))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("run.json", "summary.json"))


def _read_job(folder: Path) -> Job:
    overrides_file = folder / ".hydra" / "overrides.yaml"
    summary_file = folder / "summary.json"
    try:
        overrides = yaml.safe_load(overrides_file.read_text(encoding="utf-8")) or []
        ended = summary_file.is_file()
        summary = json.loads(summary_file.read_text("utf-8")) if ended else None
        return Job(folder, _by_key(overrides), summary)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} cannot be read as a run; move it elsewhere.") from error


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    values = {key: _normalised(value) for key, _, value in pairs if not key.startswith("hydra.")}
    if values.get("data.root"):
        values["data.root"] = os.path.normpath(values["data.root"])  # d and d/ are one folder
    return values


def _normalised(value: str) -> str:
    """Normalise the spelling of a value, such as False and false, or 1e-3 and 0.001."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return str(OverridesParser.create().parse_override(f"key={value}").value())
    except HydraException:
        return value


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the settings that differ between jobs and are not shown in rows and columns.

    Args:
        jobs: The jobs of a sweep.
    """
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        key
        for key in keys
        if (key not in SHOWN_OTHERWISE or _has_namesakes(key, jobs))
        and len({job.overrides.get(key) for job in jobs}) > 1
    ]


def _has_namesakes(key: str, jobs: Sequence[Job]) -> bool:
    """Whether different files of methods or noise, such as a copy, have the same name inside."""
    if key not in ("method", "noise"):
        return False
    files: dict[Any, set[str]] = {}
    for job in jobs:
        if job.summary is not None and key in job.overrides:
            name = job.method if key == "method" else job.noise[0]
            files.setdefault(name, set()).add(job.overrides[key])
    return any(len(names) > 1 for names in files.values())


def _log_of(job: Job) -> str:
    log = job.folder / "run.log"
    return f"; see {log}" if log.is_file() else " at once, as the output of the sweep tells"


def missing_jobs(folder: Path, jobs: Sequence[Job]) -> list[str]:
    """List the jobs of a sweep that have not finished or not started, in sentences.

    Args:
        folder: The sweep's folder.
        jobs: The jobs found there.
    """
    expected = _expected_settings(folder / "multirun.yaml")
    sentences = [
        f"This run has begun but not ended: {_differences(job.overrides, expected)}. It is still "
        f"running, or it failed{_log_of(job)}."
        for job in jobs
        if job.summary is None
    ]
    begun = {frozenset(job.overrides.items()) for job in jobs}
    not_begun = [settings for settings in expected if frozenset(settings.items()) not in begun]
    if not_begun:
        sentences.append(f"{len(not_begun)} of {len(expected)} runs have not begun:")
        sentences += [f"  {_differences(settings, expected)}" for settings in not_begun]
    return sentences


def _differences(overrides: Mapping[str, str], expected: Sequence[Mapping[str, str]]) -> str:
    """The settings in which a job differs from other jobs of its sweep."""
    return " ".join(
        f"{key}={value}"
        for key, value in overrides.items()
        if len({settings.get(key) for settings in expected}) != 1
    )


def _expected_settings(path: Path) -> list[dict[str, str]]:
    """The settings of every job of a sweep, from the command line that Hydra saved.

    They are unknown of a sweeper that chooses settings itself, and of patterns such as `glob(*)`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not path.is_file():
        return []
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]
        sweeper = saved.get("sweeper") or {}
        given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        task = [*given, *saved["overrides"]["task"]]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} was not written by a sweep of Hydra; give the folder of a sweep."
        ) from error
    if "BasicSweeper" not in str(sweeper.get("_target_", "BasicSweeper")):
        return []
    choices: dict[str, list[str]] = {}  # of a setting that is given twice, the later ones hold
    try:
        for override in OverridesParser.create().parse_overrides(task):
            key = override.get_key_element().lstrip("+~")
            values = (
                override.sweep_string_iterator()
                if override.is_sweep_override()
                else [override.get_value_string()]
            )
            choices[key] = [f"{key}={value}" for value in values]
    except HydraException:
        return []
    return [_by_key(combination) for combination in itertools.product(*choices.values())]
