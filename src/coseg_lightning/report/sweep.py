"""Tables of a sweep: methods by noise types and levels."""

import csv
import io
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text

METRICS = ("dice", "accuracy")


# What a row or a column of the table says by itself.
TOLD = ("seed", "noise", "nol", "method")


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Args:
        folder: Its folder.
        overrides: What was set for it.
        summary: What it wrote at its end; None if it has not ended.
    """

    folder: Path
    overrides: dict[str, str]
    summary: dict[str, Any] | None


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column.

    Args:
        values: A figure in percent a seed.
        gap: How far their mean is from that of plain networks of the same kind into whose labels no
            noise was put; None if there are none.
    """

    values: tuple[float, ...]
    gap: float | None = None

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their standard deviation; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class SweepTable:
    """Methods by noise types and levels.

    Args:
        metric: Of `METRICS`.
        cells: By row, then by noise and level.
        clean: The figures of plain networks without noise put in, if they are of one kind.
        missing: What the sweep still lacks, in sentences.
    """

    metric: str
    cells: Mapping[str, Mapping[tuple[str, float], Cell]]
    clean: Cell | None
    missing: Sequence[str]

    @property
    def columns(self) -> list[tuple[str, float]]:
        """Noise and level, in their order."""
        return sorted({column for row in self.cells.values() for column in row})

    def written_as(self, format: str) -> str:
        """The table as `text`, `csv`, `markdown` or `latex`."""
        if format == "csv":
            return self._as_csv()
        counts = {len(cell.values) for row in self.cells.values() for cell in row.values()}
        seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        title = f"Test {self.metric} in percent, mean ± standard deviation over seeds ({seeds})"
        if self.clean is not None:
            told = _figure(self.clean, gap=False)
            title += f"; in brackets the gap to plain networks without noise put in, {told}"
        elif any(cell.gap is not None for row in self.cells.values() for cell in row.values()):
            title += "; in brackets the gap to plain networks of the same kind without noise put in"
        head = ["", *(_column(noise, level) for noise, level in self.columns)]
        rows = [
            [name, *(_figure(row[column]) if column in row else "-" for column in self.columns)]
            for name, row in self.cells.items()
        ]
        return {"text": _text, "markdown": _markdown, "latex": _latex}[format](title, head, rows)

    def _as_csv(self) -> str:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["row", "noise", "level", "runs", "mean", "deviation", "gap"])
        for name, row in self.cells.items():
            for (noise, level), cell in sorted(row.items()):
                figures = (cell.mean, cell.deviation, cell.gap)
                told = ["" if value is None else f"{value:.3f}" for value in figures]
                table.writerow([name, noise, f"{level:g}", len(cell.values), *told])
        return text.getvalue()

    def drawn(self) -> "Figure":
        """The metric against the noise level, a panel for each type of noise."""
        from matplotlib.figure import Figure

        noises = list(dict.fromkeys(noise for noise, _ in self.columns)) or ["none"]
        figure = Figure(figsize=(1.2 + 3.6 * len(noises), 3.4), layout="constrained")
        panels = figure.subplots(1, len(noises), squeeze=False, sharey=True)[0]
        for axes, noise in zip(panels, noises, strict=True):
            for n, (name, row) in enumerate(self.cells.items()):
                points = sorted((level, cell) for (of, level), cell in row.items() if of == noise)
                if points:
                    axes.errorbar(
                        [level for level, _ in points],
                        [cell.mean for _, cell in points],
                        [cell.deviation or 0 for _, cell in points],
                        label=name,
                        capsize=3,
                        color=COLOURS[n % len(COLOURS)],
                        marker=MARKERS[n % len(MARKERS)],
                    )
            if self.clean is not None:
                axes.axhline(self.clean.mean, color="#333333", linestyle="--", label="no noise")
            axes.set(xlabel="Noise level", title=noise)
            axes.title.set_parse_math(False)
            axes.grid(alpha=0.3)
        panels[0].set(ylabel=f"Test {self.metric} in percent")
        handles, names = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)))
        return figure

    def write(self, place: Path) -> Path:
        """Write the table in every form, and its picture, into a folder of its own."""
        for name, format in (("csv", "csv"), ("md", "markdown"), ("tex", "latex")):
            write_text(place / f"table.{name}", self.written_as(format))
        figure = self.drawn()
        for suffix in ("png", "svg"):
            with replacing(place / f"{self.metric}.{suffix}") as temporary:
                figure.savefig(temporary, dpi=150)
        return place


# Okabe and Ito's, which people of any colour vision can tell apart; and shapes, for grey prints.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


MARKERS = "os^Dv<>"


def sweep_table(folder: str | Path, *, metric: str = "dice") -> SweepTable:
    """Collect the runs of a sweep.

    A row is a method, with whatever else the sweep varied; a column is a type of noise and its
    level. Runs of `method=supervised noise=none`, on clean labels if the
    dataset's are, are what the gap is measured to.

    Args:
        folder: A multirun's folder, or any folder with runs below it.
        metric: `dice` or `accuracy`, of the test images.

    Raises:
        InputError: If there is no run below the folder, or none that has ended.
    """
    folder = Path(folder)
    if metric not in METRICS:
        raise InputError(f"metric={metric} must be {' or '.join(METRICS)}.")
    jobs = _jobs(folder)
    missing = _missing(folder, jobs)
    ended = [job for job in jobs if job.summary is not None]
    if not ended:
        raise InputError(
            f"No run below {folder} has ended ({len(jobs)} begun); give the folder of a sweep, or "
            "wait for its first run."
        )
    varied = _varied(jobs)
    # A run that was repeated, such as a plain one for each level that it is told, counts once.
    values: defaultdict[tuple[str, tuple[str, float]], dict[Any, float]] = defaultdict(dict)
    plain: defaultdict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    settings: dict[str, tuple[Any, ...]] = {}
    for job in ended:
        assert job.summary is not None
        figure = job.summary["test"][metric]
        if figure is None:  # without a test set
            continue
        row, noise, level = _place(job, varied)
        settings[row] = tuple(job.overrides.get(key) for key in varied)
        seed = job.summary["config"].get("seed")
        values[row, (noise, level)][seed] = 100 * figure
        if noise == "none" and job.summary["config"]["method"]["name"] == "supervised":
            plain[settings[row]][seed] = 100 * figure
    if not values:
        raise InputError(
            f"None of the {len(ended)} runs below {folder} has a test {metric}; run them with a "
            "test set."
        )

    def gap(row: str, of_cell: Mapping[Any, float]) -> float | None:
        # What was run for one setting alone is what the others are told by.
        known = plain.get(settings[row], next(iter(plain.values())) if len(plain) == 1 else {})
        if not known:
            return None
        return statistics.fmean(of_cell.values()) - statistics.fmean(known.values())

    cells: dict[str, dict[tuple[str, float], Cell]] = {}
    for (row, column), of_cell in sorted(values.items()):
        cells.setdefault(row, {})[column] = Cell(tuple(of_cell.values()), gap(row, of_cell))
    clean = next(iter(plain.values())) if len(plain) == 1 else None
    return SweepTable(metric, cells, Cell(tuple(clean.values())) if clean else None, missing)


def _jobs(folder: Path) -> list[Job]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; give the folder of a sweep.")
    jobs = []
    for path in sorted(folder.rglob(".hydra/overrides.yaml")):
        place = path.parent.parent
        above = [parent for parent in place.parents if parent.is_relative_to(folder)]
        if any((parent / ".hydra").is_dir() for parent in above):
            continue  # a part of a run, such as its review
        try:
            overrides = yaml.safe_load(path.read_text(encoding="utf-8")) or []
            summary = place / "summary.json"
            ended = json.loads(summary.read_text("utf-8")) if summary.is_file() else None
            jobs.append(Job(place, _by_key(overrides), ended))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{place} cannot be read as a run; move it elsewhere.") from error
    if not jobs:
        raise InputError(f"There is no run below {folder}; give the folder of a sweep.")
    return jobs


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: _plain(value) for key, _, value in pairs if not key.startswith("hydra.")}


def _plain(value: str) -> str:
    """One way to write a value of which Hydra has several, such as False and false."""
    try:
        return str(yaml.safe_load(value))
    except yaml.YAMLError:
        return value


def _varied(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between jobs, but for those that have their place."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [
        key
        for key in keys
        if key not in (*TOLD, "resume")
        and not key.startswith("noise.")
        and len({job.overrides.get(key) for job in jobs}) > 1
    ]


def _place(job: Job, varied: Sequence[str]) -> tuple[str, str, float]:
    """A job's row, noise and level."""
    assert job.summary is not None
    config = job.summary["config"]
    noise = config.get("noise") or {}
    names = [name for name, node in noise.items() if isinstance(node, dict) and "_target_" in node]
    told = "+".join(names) or "none"
    if noise.get("label_dice") is not None:
        told += f"@{noise['label_dice']:g}"
    if "masks" in noise:
        told = str(noise["masks"])
    level = float(noise.get("level") or 0) if names else 0.0
    row = [config["method"]["name"]]
    row += [f"{key}={job.overrides[key]}" for key in varied if key in job.overrides]
    nol = config.get("nol")
    if nol not in (level, None) and config["method"]["name"] != "supervised":
        row.append(f"nol={nol}")
    return " ".join(row), told, level


def _missing(folder: Path, jobs: Sequence[Job]) -> list[str]:
    """What the sweep was to run and has not, in sentences."""
    expected = _expected(folder / "multirun.yaml")
    told = []
    for job in jobs:
        if job.summary is None:
            told.append(
                f"Begun, but not ended: {_swept(job.overrides, expected)}; it runs, or failed: see "
                f"{job.folder / 'run.log'}."
            )
    there = {frozenset(job.overrides.items()) for job in jobs}
    lacking = [one for one in expected if frozenset(one.items()) not in there]
    if lacking:
        told.append(f"Not begun: {len(lacking)} of {len(expected)}.")
        told += [f"  {_swept(one, expected)}" for one in lacking]
    return told


def _swept(overrides: Mapping[str, str], expected: Sequence[Mapping[str, str]]) -> str:
    """The settings in which a job differs from others of its sweep."""
    return " ".join(
        f"{key}={value}"
        for key, value in overrides.items()
        if len({one.get(key) for one in expected}) != 1
    )


def _expected(path: Path) -> list[dict[str, str]]:
    """The settings of every job of a sweep, from what Hydra keeps of its command line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not path.is_file():
        return []
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no sweep of Hydra's; give the folder of one.") from error
    choices = []
    for override in OverridesParser.create().parse_overrides(given):
        key = override.get_key_element().lstrip("+~")
        if override.is_sweep_override():
            choices.append([(key, _plain(v)) for v in override.sweep_string_iterator()])
        else:
            choices.append([(key, _plain(override.get_value_string()))])
    return [dict(chosen) for chosen in itertools.product(*choices)]


def _column(noise: str, level: float) -> str:
    return noise if noise == "none" else f"{noise} {level:g}"


def _figure(cell: Cell, gap: bool = True) -> str:
    told = f"{cell.mean:.1f}"
    if cell.deviation is not None and not math.isnan(cell.deviation):
        told += f" ± {cell.deviation:.1f}"
    return told + (f" ({cell.gap:+.1f})" if gap and cell.gap is not None else "")


def _text(title: str, head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([title, "", *lines, ""])


def _markdown(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _latex(title: str, head: list[str], rows: list[list[str]]) -> str:
    special = {sign: f"\\{sign}" for sign in "&%$#_{}"}
    special |= {"±": "$\\pm$", "\\": "\\textbackslash{}", "^": "\\^{}", "~": "\\~{}"}

    def escaped(text: str) -> str:
        return "".join(special.get(sign, sign) for sign in text)

    lines = [" & ".join(map(escaped, row)) + " \\\\" for row in (head, *rows)]
    return "\n".join(
        [
            f"% {title}",
            f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
            "\\hline",
            lines[0],
            "\\hline",
            *lines[1:],
            "\\hline",
            "\\end{tabular}",
            "",
        ]
    )
