"""The table of a sweep: methods by noise types and levels."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.csv import write_table
from coseg_lightning.report.jobs import Job, missing_jobs, read_jobs, varied_keys
from coseg_lightning.report.pairs import Figures, Pair, compare, read_figures
from coseg_lightning.report.table_formats import as_csv, as_latex, as_markdown, as_text

METRICS = ("dice", "accuracy")
# Colours of Okabe and Ito, distinguishable with any colour vision, and markers for grey prints.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
MARKERS = "os^Dv<>"
NAMED_FORMATS = {"text": as_text, "markdown": as_markdown, "latex": as_latex}

SPLITS_DIFFER = (
    "The seeds were tested on different images, since each seed drew its own split. Their spread "
    "therefore includes differences between images, and only few images can be compared. Use a "
    "split.csv to test all seeds on the same images."
)
Column = tuple[str, float]  # noise and noise level


@dataclass(frozen=True)
class Cell:
    """The results of the runs of one row and column.

    Args:
        values: The metric in percent, one value per seed.
        gap: The difference of their mean to that of plain networks with the same settings and no
            added noise; None if there are none.
    """

    values: tuple[float, ...]
    gap: float | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def formatted(self, *, gap: bool = True) -> str:
        """The mean with one decimal, and the deviation and gap if known."""
        text = f"{self.mean:.1f}"
        if self.deviation is not None and not math.isnan(self.deviation):
            text += f" ± {self.deviation:.1f}"
        if gap and self.gap is not None:
            text += f" ({self.gap:+.1f})"
        return text


@dataclass(frozen=True)
class SweepTable:
    """Methods by noise types and levels.

    Args:
        metric: One of `METRICS`.
        cells: The cells by row, then by noise and level.
        clean: The results of plain networks without added noise, if all have the same settings.
        missing: Sentences about the runs that the sweep still lacks.
        pairs: All pairs of rows in each column, compared over the test images.
    """

    metric: str
    cells: Mapping[str, Mapping[Column, Cell]]
    clean: Cell | None
    missing: Sequence[str]
    pairs: Sequence[Pair] = ()

    @property
    def columns(self) -> list[Column]:
        """The pairs of noise and level, in order."""
        return sorted({column for row in self.cells.values() for column in row})

    def written_as(self, file_format: str) -> str:
        """Return the table as `text`, `csv`, `markdown` or `latex`."""
        if file_format == "csv":
            return self._as_csv()
        head = ["", *(noise if noise == "none" else f"{noise} {n:g}" for noise, n in self.columns)]
        rows = [
            [name, *(row[c].formatted() if c in row else "-" for c in self.columns)]
            for name, row in self.cells.items()
        ]
        return NAMED_FORMATS[file_format](self._title(), head, rows)

    def _title(self) -> str:
        cells = [cell for row in self.cells.values() for cell in row.values()]
        counts = {len(cell.values) for cell in cells}
        seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        title = f"Test {self.metric} in percent, mean ± standard deviation over seeds ({seeds})"
        if self.clean is not None:
            clean = self.clean.formatted(gap=False)
            return f"{title}; in brackets the gap to plain networks without added noise, {clean}"
        if any(cell.gap is not None for cell in cells):
            title += "; in brackets the gap to plain networks of the same kind without added noise"
        return title

    def _as_csv(self) -> str:
        rows: list[list[object]] = []
        for name, row in self.cells.items():
            for (noise, level), cell in sorted(row.items()):
                numbers = (cell.mean, cell.deviation, cell.gap)
                decimals = ["" if number is None else f"{number:.3f}" for number in numbers]
                rows.append([name, noise, f"{level:g}", len(cell.values), *decimals])
        return as_csv(["row", "noise", "level", "runs", "mean", "deviation", "gap"], rows)

    def drawn(self) -> Figure:
        """Draw the metric against the noise level, with one panel per type of noise."""
        noises = list(dict.fromkeys(noise for noise, _ in self.columns)) or ["none"]
        figure = Figure(figsize=(1.2 + 3.6 * len(noises), 3.4), layout="constrained")
        panels = figure.subplots(1, len(noises), squeeze=False, sharey=True)[0]
        for axes, noise in zip(panels, noises, strict=True):
            self._draw_panel(axes, noise)
        panels[0].set(ylabel=f"Test {self.metric} in percent")
        handles, names = panels[0].get_legend_handles_labels()
        if handles:
            ncols = min(4, len(names))
            legend = figure.legend(handles, names, loc="outside lower center", ncols=ncols)
            for text in legend.get_texts():  # an interpolation, ${...}, is no formula
                text.set_parse_math(False)
        return figure

    def _draw_panel(self, axes: Axes, noise: str) -> None:
        levels = {level for other, level in self.columns if other == noise}
        for n, (name, row) in enumerate(self.cells.items()):
            points = sorted((level, cell) for (other, level), cell in row.items() if other == noise)
            if points:
                axes.errorbar(
                    [level for level, _ in points] if len(levels) > 1 else [n],
                    [cell.mean for _, cell in points],
                    [cell.deviation or 0 for _, cell in points],
                    label=name,
                    capsize=3,
                    linestyle="-" if len(levels) > 1 else "none",
                    color=COLOURS[n % len(COLOURS)],
                    marker=MARKERS[n % len(MARKERS)],
                )
        if self.clean is not None:
            axes.axhline(self.clean.mean, color="#333333", linestyle="--", label="no noise")
        if len(levels) > 1:
            axes.set(xlabel="Noise level", title=noise)
        else:  # one point per method, side by side
            at = "" if noise == "none" else f" {next(iter(levels)):g}"
            axes.set(xticks=[], xlim=(-0.5, len(self.cells) - 0.5), title=f"{noise}{at}")
        axes.title.set_parse_math(False)
        axes.grid(alpha=0.3)

    def write(self, folder: Path) -> Path:
        """Write the table in every format, and its figure, into a folder."""
        for suffix, file_format in (("csv", "csv"), ("md", "markdown"), ("tex", "latex")):
            write_text(folder / f"table.{suffix}", self.written_as(file_format))
        if self.pairs:
            write_table(folder / "pairs.csv", [pair.as_row() for pair in self.pairs])
        figure = self.drawn()
        for suffix in ("png", "svg"):
            with replacing(folder / f"{self.metric}.{suffix}") as temporary:
                figure.savefig(temporary, dpi=150)
        return folder


def sweep_table(folder: str | Path, *, metric: str = "dice") -> SweepTable:
    """Collect the results of a sweep.

    A row is a method with all other settings that the sweep varied. A column is a type of noise
    and its level. The gap is measured to the runs of `method=supervised noise=none`. Their labels
    are clean if the dataset's are.

    Args:
        folder: A multirun's folder, or any folder with runs below it.
        metric: `dice` or `accuracy`, of the test images.

    Raises:
        InputError: If no run below the folder has finished, or none has a test set.
    """
    folder = Path(folder)
    if metric not in METRICS:
        raise InputError(f"metric={metric} must be {' or '.join(METRICS)}.")
    jobs = read_jobs(folder)
    missing = missing_jobs(folder, jobs)
    ended = [job for job in jobs if job.summary is not None]
    if not ended:
        raise InputError(
            f"No run below {folder} has ended ({len(jobs)} begun); give the folder of a sweep, or "
            "wait for its first run."
        )
    results = _Results(varied_keys(jobs))
    for job in ended:
        results.add(job, metric)
    if not results.values:
        raise InputError(
            f"None of the {len(ended)} runs below {folder} has a test {metric}; run them with a "
            "test set."
        )
    pairs = compare(results.images)
    if results.tests_differ:
        missing = [*missing, SPLITS_DIFFER]
    return SweepTable(metric, results.cells(), results.clean(), missing, pairs)


class _Results:
    """Results in percent by row, column and seed.

    A repeated run counts once, such as a plain network that is run for every given noise level.

    Args:
        varied: The settings that vary over the sweep.
    """

    def __init__(self, varied: Sequence[str]) -> None:
        self.varied = varied
        self.values: defaultdict[tuple[str, Column], dict[Any, float]] = defaultdict(dict)
        self.settings: dict[str, tuple[str | None, ...]] = {}  # by row
        # The metrics of each test image, by column, row and seed.
        self.images: defaultdict[str, dict[str, dict[Any, Figures]]] = defaultdict(dict)
        self.plain: defaultdict[tuple[str | None, ...], dict[Any, float]] = defaultdict(dict)

    def add(self, job: Job, metric: str) -> None:
        assert job.summary is not None
        value = job.summary["test"][metric]
        if value is None:  # without a test set
            return
        row, column, seed = job.row(self.varied), job.noise, job.config.get("seed")
        settings = tuple(job.overrides.get(key) for key in self.varied)
        self.settings[row] = settings
        self.values[row, column][seed] = 100 * value
        figures = read_figures(job.folder, metric)
        if figures:
            name = "none" if column[0] == "none" else f"{column[0]} {column[1]:g}"
            self.images[name].setdefault(row, {})[seed] = figures
        if column[0] == "none" and job.method == "supervised":
            self.plain[settings][seed] = 100 * value

    @property
    def tests_differ(self) -> bool:
        """Whether the seeds of any row were tested on different images."""
        seeds = (by_seed for rows in self.images.values() for by_seed in rows.values())
        return any(len({frozenset(figures) for figures in s.values()}) > 1 for s in seeds)

    def cells(self) -> dict[str, dict[Column, Cell]]:
        cells: dict[str, dict[Column, Cell]] = {}
        for (row, column), by_seed in sorted(self.values.items()):
            values = tuple(by_seed.values())
            cells.setdefault(row, {})[column] = Cell(values, self._gap(row, values))
        return cells

    def clean(self) -> Cell | None:
        """The results of the plain networks, if all have the same settings."""
        if len(self.plain) != 1:
            return None
        (by_seed,) = self.plain.values()
        return Cell(tuple(by_seed.values()))

    def _gap(self, row: str, values: Sequence[float]) -> float | None:
        """The gap to the plain networks with the row's settings, or to all if they are alike."""
        plain = self.plain.get(self.settings[row])
        if plain is None and len(self.plain) == 1:
            (plain,) = self.plain.values()
        if plain is None:
            return None
        return statistics.fmean(values) - statistics.fmean(plain.values())
