"""The tables of the grid `real`, in which all networks learn for as many steps."""

import statistics
from collections.abc import Sequence

from tables import Row, dice_of, differences, grouped, mean_of, values, won_back

SEEDS = ("0", "1", "2")
LEVELS = (0.5, 0.3)
ROWS = {
    "clean": "clean masks",
    "supervised x2": "noisy masks",
    "gce x2": "noisy masks, generalised cross-entropy",
    "forward_correction x2": "noisy masks, forward correction",
    "coseg": "**Co-Seg, our default**",
    "mirror": "Co-Seg with one network (`model@peer_b=mirror`)",
}
CORRECTING = ("coseg", "mirror")
PAIRS = (("coseg", "supervised x2"), ("coseg", "gce x2"), ("mirror", "coseg"))
SETS = ("bubil-worst", "bubil-large", "bubil-type2", "bubil-crowd1", "usgra-type2", "usgra-type1")


def tables(rows: Sequence[Row]) -> str:
    """All tables of the grid, in Markdown."""
    pairs = list(zip(SETS[::2], SETS[1::2], strict=True))
    parts = [side_by_side(rows, level, pair) for level in LEVELS for pair in pairs]
    return "\n\n".join([*parts, gains(rows), ranking(rows)])


def found_of(rows: Sequence[Row], name: str, level: float, method: str) -> list[Row]:
    """A cell's rows, by seed; those on clean masks are the same for all sets of the images."""
    found = grouped(rows)
    if method == "clean":
        here = found.get((f"{name.split('-')[0]}-none", 0.0, "supervised x2"), [])
    else:
        here = found.get((name, level, method), [])
    return sorted(here, key=lambda row: row["seed"])


def side_by_side(
    rows: Sequence[Row],
    level: float,
    names: Sequence[str],
    methods: Sequence[str] = tuple(ROWS),
    *,
    each_seed: bool = True,
) -> str:
    """Test Dice and labels of some sets at one noise level, a method a row."""
    heads = []
    for name in names:
        heads.append(f"`{name}`: test Dice")
        heads += ["seeds 0, 1, 2"] * each_seed
        heads.append("label Dice before → after")
    lines = [f"| learnt from | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for method in methods:
        found, cells = [found_of(rows, name, level, method) for name in names], []
        if not any(found):
            continue  # is not measured yet
        for here in found:
            cells.append(dice_of(here))
            cells += [seed_by_seed(here)] * each_seed
            cells.append("" if method == "clean" else labels_of(here, method in CORRECTING))
        lines.append(f"| {ROWS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seed_by_seed(rows: Sequence[Row]) -> str:
    dice = {row["seed"]: f"{100 * float(row['dice']):.1f}" for row in rows}
    return ", ".join(dice.get(seed, "-") for seed in SEEDS)


def labels_of(rows: Sequence[Row], corrected: bool) -> str:
    before, after = (values(rows, f"label_dice_{when}") for when in ("before", "after"))
    if not before:
        return "-"
    text = f"{statistics.mean(before):.1f}"
    return f"{text} → {statistics.mean(after):.1f}" if corrected else text


def gains(rows: Sequence[Row]) -> str:
    """What the noise costs and what is won back, and the differences, seed by seed."""
    heads = ["noisy", "set", "noise costs", "ours wins back", "robust loss", "one network"]
    heads += ["ours - noisy masks", "ours - robust loss", "one network - ours"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for level in LEVELS:
        for name in SETS:
            clean = found_of(rows, name, level, "clean")
            noisy = found_of(rows, name, level, "supervised x2")
            cells = [f"{100 * level:.0f} %", name, cost_of(noisy, clean)]
            for method in ("coseg", "gce x2", "mirror"):
                cells.append(won_back(found_of(rows, name, level, method), noisy, clean))
            cells += [spread(gaps(rows, name, level, *pair), len(SEEDS)) for pair in PAIRS]
            lines.append(f"| {' | '.join(cells)} |")
        cells = [f"{100 * level:.0f} %", "all of bubil", "", "", "", ""]
        for pair in PAIRS:
            of_all = [gap for name in SETS[:4] for gap in gaps(rows, name, level, *pair)]
            cells.append(spread(of_all, 4 * len(SEEDS)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_of(noisy: Sequence[Row], clean: Sequence[Row]) -> str:
    seeds = {row["seed"] for row in noisy} & {row["seed"] for row in clean}
    low, high = (
        values([row for row in here if row["seed"] in seeds], "dice") for here in (noisy, clean)
    )
    return f"{statistics.mean(high) - statistics.mean(low):.1f}" if seeds else "-"


def gaps(rows: Sequence[Row], name: str, level: float, method: str, minus: str) -> list[float]:
    """The differences of two methods, seed by seed."""
    found = differences(grouped(rows), "dice", minus)
    return values(found.get((name, level, method), []), "dice")


def spread(found: Sequence[float], expected: int) -> str:
    """Mean, lowest and highest of some differences."""
    if not found:
        return "-"
    text = f"{signed(statistics.mean(found))} ({signed(min(found))} to {signed(max(found))}"
    return text + (")" if len(found) == expected else f"; {len(found)} of {expected} runs)")


def signed(points: float) -> str:
    return f"{round(points, 1) + 0.0:+.1f}"


def ranking(rows: Sequence[Row]) -> str:
    """How well bad masks were found, and what the guard said of the labels."""
    heads = ["noisy", "set", "AUROC", "one network", "contradiction, each seed", "corrected masks"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for level in LEVELS:
        for name in SETS:
            ours, alone = (found_of(rows, name, level, method) for method in CORRECTING)
            cells = [f"{100 * level:.0f} %", name, mean_of(ours, "auroc"), mean_of(alone, "auroc")]
            cells.append(", ".join(f"{float(row['contradiction']):.1f}" for row in ours) or "-")
            cells.append(", ".join(row["corrected"] for row in ours) or "-")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short(rows: Sequence[Row]) -> str:
    """What docs/results/index.md begins with."""
    names = ("bubil-worst", "bubil-large", "bubil-type2")
    methods = ("clean", "supervised x2", "gce x2", "coseg")
    return side_by_side(rows, 0.5, names, methods, each_seed=False)


def of_readme(core: Sequence[Row], real: Sequence[Row]) -> str:
    """Small networks on phantoms beside pretrained ones on cells, half of the masks noisy."""
    shown = {
        "phantoms, sloppy outlines": (core, "phantom-type1"),
        "phantoms, one biased annotator": (core, "phantom-type2"),
        "cells, one biased annotator": (real, "bubil-type2"),
        "cells, worst masks": (real, "bubil-worst"),
        "cells, largest masks": (real, "bubil-large"),
    }
    told = {
        "supervised x2": "the noisy masks",
        "gce x2": "the noisy masks, robust loss (GCE)",
        "coseg": "**Co-Seg**",
        "clean": "clean masks",
    }
    lines = [f"| trained on | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for method, label in told.items():
        cells = [dice_of(found_of(rows, name, 0.5, method)) for rows, name in shown.values()]
        if method == "coseg":
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(rows: Sequence[Row], cells: Sequence[tuple[str, float, str, int]]) -> int:
    """How many cells of the grid have a row."""
    done = {(row["set"], row["noise_level"], row["method"], row["seed"]) for row in rows}
    return sum(tuple(map(str, cell)) in done for cell in cells)
