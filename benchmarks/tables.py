"""The tables of the grids of small networks from their rows, and those of `performance.md`."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
SETS = ["phantom-type1", "phantom-type2", "bubil-crowd1", "bubil-large", "bubil-worst"]
SETS += ["usgra-type2"]
# Of the held-out grid.
SETS += ["phantom-polygon", "phantom-walk", "bubil-crowd5", "bubil-small", "bubil-type2"]
SETS += ["usgra-type1"]
NAMES = {
    "supervised": "supervised, noisy labels",
    "supervised x2": "supervised, noisy labels, twice the epochs",
    "coseg": "**Co-Seg, our default**",
    "paper": "Co-Seg as printed, weights averaged",
    "coteaching": "co-teaching",
    "pixel_coteaching": "co-teaching of pixels",
    "jocor": "JoCoR",
    "gce": "generalised cross-entropy",
    "gce x2": "generalised cross-entropy, twice the epochs",
    "sce": "symmetric cross-entropy",
    "filter": "filter by softmin, retrain",
    "adele": "ADELE",
    "pick_and_learn": "Pick-and-Learn",
    "reweight": "reweighting, 10 clean samples known",
    "forward_correction": "forward correction",
    "noise_adaptation": "noise adaptation layer",
    "dimensionality": "dimensionality-driven learning",
    "nol=auto": "Co-Seg, our default, nol=auto",
    "told 0.2 less": "Co-Seg, our default, told 0.2 less",
    "told 0.2 more": "Co-Seg, our default, told 0.2 more",
    "default": "the default in this version",
}
ORDER = list(NAMES)


def tables(grid: str, rows: Sequence[Row]) -> str:
    """All tables of a grid, in Markdown."""
    if not rows:
        return "There are no results yet."
    if grid == "ablation":
        return ablation_tables(rows)
    if grid == "heldout":
        shown = [row for row in rows if not row["set"].endswith("-none")]
        return "\n\n".join([overview(rows, 0.5), means(shown), *by_set(rows)])
    levels = sorted({float(row["noise_level"]) for row in rows} - {0.0}, reverse=True)
    overviews = [f"**NoL {level:g}**\n\n{overview(rows, level)}" for level in levels]
    return "\n\n".join([*overviews, means(rows), nothing_to_correct(rows), *by_set(rows)])


def ablation_tables(rows: Sequence[Row]) -> str:
    """How far the default's variants are from it, and the labels that they made."""
    told_the_truth = ("coseg", "default", "ranked by the truth")
    return "\n\n".join(
        [
            "**Test Dice, minus the default's of the same seeds**",
            overview(rows, 0.5, minus="default"),
            "**Test Dice, if the ranking made no mistake**",
            overview([row for row in rows if row["method"] in told_the_truth], 0.5),
            "**Dice of all training labels to the originals, after correction**",
            overview(rows, 0.5, column="label_dice_after"),
        ]
    )


def row_of(rows: Sequence[Row], method: str) -> str:
    """A method's row beside those of plain networks, with half of the masks noisy."""
    shown = [row for row in rows if row["method"] in ("supervised", method)]
    return overview(shown, 0.5)


def nothing_to_correct(rows: Sequence[Row]) -> str:
    """What methods do to clean labels."""
    found = grouped(rows)
    sets = sorted({name for name, _, _ in found if name.endswith("-none")})
    lines = ["**Clean labels**", "", "| trained by | " + " | ".join(sets) + " |"]
    lines.append("|---|" + "---|" * len(sets))
    for method in methods_of(rows):
        here = [found.get((name, 0.0, method), []) for name in sets]
        if any(here):
            told = {"coseg": "Co-Seg, our default, nol=0", "supervised": "supervised"}
            told["supervised x2"] = "supervised, twice the epochs"
            name = told.get(method, NAMES.get(method, method))
            lines.append(f"| {name} | {' | '.join(map(dice_of, here))} |")
    return "\n".join(lines)


def overview(
    rows: Sequence[Row], level: float, column: str = "dice", minus: str | None = None
) -> str:
    """Every method's test Dice, or another column, on every set at one noise level.

    With `minus` less that method's, seed by seed.
    """
    found = grouped(rows)
    if minus is not None:
        found = differences(found, column, minus)
    sets = [name for name in SETS if any(at == level and n == name for n, at, _ in found)]
    lines = ["| trained by | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for method, told in (("supervised", ""), ("supervised x2", ", twice the epochs")):
        clean = [found.get((f"{name.split('-')[0]}-none", 0.0, method), []) for name in sets]
        if any(clean):
            lines.append(f"| supervised, clean labels{told} | {' | '.join(map(dice_of, clean))} |")
    most = max((len(seeds_of(here)) for here in found.values()), default=0)
    for method in methods_of(rows):
        here = [found.get((name, level, method), []) for name in sets]
        if any(here):
            name = NAMES.get(method, method)
            cells = [mean_of(of_set, column, sign=minus is not None) for of_set in here]
            fewer = [fewer_seeds(of_set, most) for of_set in here]
            of_cells = {seeds for cell, seeds in zip(cells, fewer, strict=True) if cell != "-"}
            if len(of_cells) == 1:  # of the whole row
                name += of_cells.pop()
            else:
                pairs = zip(cells, fewer, strict=True)
                cells = [cell if cell == "-" else cell + seeds for cell, seeds in pairs]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(
    found: dict[tuple[str, float, str], list[Row]], column: str, minus: str
) -> dict[tuple[str, float, str], list[Row]]:
    """A column's differences from those of one method on the same set, level and seed."""
    made = {}
    for (name, level, method), here in found.items():
        there = {row["seed"]: row for row in found.get((name, level, minus), [])}
        rows = [
            {**row, column: str(float(row[column]) - float(there[row["seed"]][column]))}
            for row in here
            if row["seed"] in there
        ]
        if rows and method != minus:
            made[name, level, method] = rows
    return made


def means(rows: Sequence[Row]) -> str:
    """Each method's mean gain over a plain network at each noise level.

    Paired by set, level and seed; methods with fewer cells are not to be compared with the others.
    """
    found = grouped(rows)
    gains = differences(found, "dice", "supervised")
    levels = sorted({level for _, level, _ in found} - {0.0}, reverse=True)
    lines = [
        "| minus supervised, noisy labels | "
        + " | ".join(f"NoL {level:g}" for level in levels)
        + " |",
        "|---|" + "---|" * len(levels),
    ]
    for method in methods_of(rows):
        if method == "supervised":
            continue
        texts = []
        for level in levels:
            cells = [
                row
                for (_, at, which), here in gains.items()
                if at == level and which == method
                for row in here
            ]
            text = mean_of(cells, "dice", sign=True)
            texts.append(f"{text} ({len(cells)})" if cells else text)
        lines.append(f"| {NAMES.get(method, method)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def by_set(rows: Sequence[Row]) -> list[str]:
    """One table a set: every method at every noise level."""
    found = grouped(rows)
    parts = []
    for name in sorted({name for name, _, _ in found if not name.endswith("-none")}):
        clean = found.get((f"{name.split('-')[0]}-none", 0.0, "supervised"), [])
        lines = [
            f"**{name}**, clean labels: {dice_of(clean)}",
            "",
            "| NoL | method | test Dice | won back | AUROC | labels before | after | seeds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for level in sorted({at for n, at, _ in found if n == name}):
            noisy = found.get((name, level, "supervised"), [])
            for method in methods_of(rows):
                here = found.get((name, level, method))
                if here:
                    cells = [f"{level:g}", NAMES.get(method, method), dice_of(here)]
                    cells += [won_back(here, noisy, clean), figure(here, "auroc")]
                    cells += [figure(here, "label_dice_before"), figure(here, "label_dice_after")]
                    lines.append(f"| {' | '.join(cells)} | {len(here)} |")
        parts.append("\n".join(lines))
    return parts


def won_back(here: Sequence[Row], noisy: Sequence[Row], clean: Sequence[Row]) -> str:
    """The share of what the noise costs a plain network of the same seeds, of the means."""
    seeds = {row["seed"] for row in here}
    seeds &= {row["seed"] for row in noisy} & {row["seed"] for row in clean}
    if not seeds or noisy is here:
        return "-"
    ours, low, high = (
        statistics.mean(values([row for row in rows if row["seed"] in seeds], "dice"))
        for rows in (here, noisy, clean)
    )
    if high - low < 0.3:
        return f"costs {high - low:.1f}"
    if ours < low:
        return f"loses {low - ours:.1f}"
    return f"{100 * (ours - low) / (high - low):.0f} %"


def grouped(rows: Sequence[Row]) -> dict[tuple[str, float, str], list[Row]]:
    found = defaultdict(list)
    for row in rows:
        if row["dice"]:
            found[row["set"], float(row["noise_level"]), row["method"]].append(row)
    return found


def methods_of(rows: Sequence[Row]) -> list[str]:
    methods = dict.fromkeys(row["method"] for row in rows)
    return sorted(methods, key=lambda m: ORDER.index(m) if m in ORDER else len(ORDER))


def seeds_of(rows: Sequence[Row]) -> set[str]:
    return {row["seed"] for row in rows}


def fewer_seeds(rows: Sequence[Row], most: int) -> str:
    """The seeds of a cell that has fewer than others."""
    seeds = sorted(seeds_of(rows))
    return f" (seed {', '.join(seeds)})" if 0 < len(seeds) < most else ""


def values(rows: Sequence[Row], name: str) -> list[float]:
    return [100 * float(row[name]) for row in rows if row[name]]


def figure(rows: Sequence[Row], name: str) -> str:
    found = values(rows, name)
    return f"{statistics.mean(found):.1f}" if found else "-"


def mean_of(rows: Sequence[Row], column: str, sign: bool = False) -> str:
    """Mean ± standard deviation in percent."""
    found = values(rows, column)
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):{'+' if sign else ''}.1f}{spread}"


def dice_of(rows: Sequence[Row]) -> str:
    return mean_of(rows, "dice")


def performance(results: Path = Path(__file__).parent / "results") -> str:
    """Format what the other scripts wrote as the tables of docs/results/performance.md."""
    shown = {
        "step": ["kind", "model", "ratio", "lowest", "highest", "milliseconds", "memory", "rounds"],
        "recipe": [
            *("kind", "ratio", "lowest", "highest", "to_float32", "seconds"),
            *("robust_training", "retraining", "rest"),
        ],
    }
    parts = []
    for name in ("step", "recipe", "passes", "loading", "scale", "scaling"):
        path = results / f"{name}.csv"
        if not path.is_file():
            continue
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns = shown.get(name, list(rows[0]))
        runs: dict[str, list[Row]] = defaultdict(list)
        settings = {
            "step": ("size", "batch", "alpha", "precision", "options", "machine"),
            "recipe": ("size", "batch", "epochs", "samples", "precision", "rounds"),
        }
        for row in rows:  # of some there are several
            runs[", ".join(row[key] for key in settings.get(name, ()))].append(row)
        for title, of_run in runs.items():
            lines = [f"**{name}** {title}".strip(), "", "| " + " | ".join(columns) + " |"]
            lines.append("|---" * len(columns) + "|")
            lines += ["| " + " | ".join(row[c] for c in columns) + " |" for row in of_run]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)
