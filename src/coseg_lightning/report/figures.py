"""The paper's figures, drawn from what a run wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from coseg_lightning.data.preparation import rescale_intensity
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.files.csv import read_table
from coseg_lightning.labels.masks import Mask
from coseg_lightning.ranking.noise_level import MIN_SAMPLES, fit_mixture
from coseg_lightning.ranking.ranking import Ranking

# Okabe and Ito's colours, which people of any colour vision can tell apart.
BLUE, ORANGE, GREEN, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#333333"


# The baselines, whose networks learn from the labels as given, or from clean ones.
PLAIN = {
    "noisy_baseline": (BLACK, "plain, labels as given"),
    "clean_baseline": ("#CC79A7", "plain, clean labels"),
}


def training_curves(metrics: Sequence[dict[str, str]]) -> Figure:
    """Loss and validation Dice over the epochs of each stage (Fig. 2a)."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    loss_axes, dice_axes = figure.subplots(1, 2)
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        rows = [row for row in metrics if row["stage"] == stage]
        peers = {"_a": (BLUE, "peer 1"), "_b": (ORANGE, "peer 2")}
        peers[""] = PLAIN.get(stage, (GREEN, "final network"))
        round_ = stage.rpartition("_")[2]
        told = f", round {round_}" if round_.isdigit() else ""
        for suffix, (colour, name) in peers.items():
            for axes, column in (
                (loss_axes, f"train/loss{suffix}"),
                (dice_axes, f"val/dice{suffix}"),
            ):
                points = [
                    (int(row["epoch"]), float(row[column])) for row in rows if row.get(column)
                ]
                if points:
                    style = ":" if stage in PLAIN or told else "-"
                    line = zip(*points, strict=True)
                    axes.plot(*line, style, color=colour, label=f"{name}{told}")
    for axes, title in ((loss_axes, "Training loss, Eq. (2)"), (dice_axes, "Validation Dice")):
        axes.set(xlabel="Epoch", title=title)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend()
        else:
            axes.set(xticks=[], yticks=[])
            _say(axes, "no validation set")
    return figure


def score_histogram(rows: Sequence[dict[str, str]], score: str) -> Figure:
    """Corruption scores with the cut and two fitted normal distributions (Fig. 2b).

    Clean and replaced labels are told apart if they are known.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    scores = np.array([float(row["score"]) for row in rows])
    bins = np.histogram_bin_edges(scores[np.isfinite(scores)], bins=40)
    if any(row["replaced"] for row in rows):
        replaced = np.array([row["replaced"] == "1" for row in rows])
        axes.hist(
            [scores[~replaced], scores[replaced]],
            bins=bins.tolist(),
            stacked=True,
            color=[BLUE, ORANGE],
            label=["original label", "replaced by a noisy one"],
        )
    else:
        axes.hist(scores, bins=bins.tolist(), color=BLUE, label="samples")
    finite = scores[np.isfinite(scores)]
    if len(finite) >= MIN_SAMPLES and finite.std() > 0:
        mixture, x = fit_mixture(finite), np.linspace(bins[0], bins[-1], 400)
        densities = np.exp(-(((x[:, None] - mixture.means) / mixture.deviations) ** 2) / 2)
        densities *= mixture.weights / (mixture.deviations * np.sqrt(2 * np.pi))
        counts = densities * len(finite) * (bins[1] - bins[0])
        for n, (style, name) in enumerate((("-", "lower"), (":", "upper"))):
            label = f"fitted, {name} ({100 * mixture.weights[n]:.0f} %)"
            axes.plot(x, counts[:, n], style, color=GREEN, label=label)
    noisy = [float(row["score"]) for row in rows if row["noisy"] == "1"]
    if noisy:
        axes.axvline(min(noisy), color=BLACK, linestyle="--", label="ranked noisy from here on")
    axes.set(xlabel=f"Corruption score ({score}), mean of both peers", ylabel="Samples")
    axes.legend()
    return figure


def corrected_examples(samples: SampleDataset, corrected: Mapping[str, Mask]) -> Figure:
    """Images with their label before and after correction, and the original if known (Fig. 3)."""
    columns = min(4, max(1, len(corrected)))
    lines = max(1, -(-len(corrected) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.75 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    index_of = {id: index for index, id in enumerate(samples.ids)}
    for axes, (id, mask) in zip(grid, corrected.items(), strict=False):
        index = index_of[id]
        image = rescale_intensity(samples.dataset.image(index).astype(np.float32))
        axes.imshow(image, cmap="gray" if image.ndim == 2 else None)
        if samples.truth is not None:
            _outline(axes, samples.truth.mask(index), "white", 2.6)
        _outline(axes, samples.dataset.mask(index), ORANGE, 1.2)
        _outline(axes, mask, SKY, 1.2)
        axes.set_title(id, fontsize=8, parse_math=False)
    for axes in grid:
        axes.set_axis_off()
    names = [("label as given", ORANGE), ("corrected label", SKY)]
    if samples.truth is not None:
        names.insert(0, ("original label", "white"))
    for name, colour in names:
        grid[0].plot([], [], color=colour, linewidth=2, label=name)
    figure.legend(loc="outside lower center", ncols=3, facecolor="#888888", fontsize=9)
    return figure


def contact_sheet(
    samples: SampleDataset,
    ranking: Ranking,
    worst: Sequence[int],
    proposals: Mapping[int, NDArray[Any]],
) -> Figure:
    """The worst masks in their order, each with what the network would have drawn over it."""
    columns = min(6, max(1, len(worst)))
    lines = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(2.3 * columns, 2.5 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for rank, (axes, index) in enumerate(zip(grid, worst, strict=False), start=1):
        image = rescale_intensity(samples.dataset.image(index).astype(np.float32))
        axes.imshow(image, cmap="gray" if image.ndim == 2 else None)
        _outline(axes, samples.mask(index), ORANGE, 1.4)
        _outline(axes, proposals[index], SKY, 1.4)
        title = f"{rank}: {ranking.ids[index]}"
        by_class = ranking.class_scores
        if by_class is not None and by_class.shape[1] > 1 and not np.isnan(by_class[index]).all():
            title += f" (class {int(np.nanargmax(by_class[index])) + 1})"
        axes.set_title(title, fontsize=8, parse_math=False)
    for axes in grid:
        axes.set_axis_off()
    for name, colour in (("mask as given", ORANGE), ("the network's proposal", SKY)):
        grid[0].plot([], [], color=colour, linewidth=2, label=name)
    figure.legend(loc="outside lower center", ncols=2, facecolor="#888888", fontsize=9)
    return figure


def _outline(axes: Axes, mask: NDArray[Any], colour: str, width: float) -> None:
    for class_id in np.unique(mask):
        region = (mask == class_id).astype(float)
        if class_id not in (0, 255) and 0 < region.mean() < 1:
            axes.contour(region, levels=[0.5], colors=colour, linewidths=width)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=BLACK)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a run wrote; none if it does not exist."""
    return read_table(path) if path.is_file() else []
