"""The paper's figures, drawn from the files of a run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from coseg_lightning.data.preparation import rescale_intensity
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.csv import read_table
from coseg_lightning.labels.masks import Mask, MaskedImages
from coseg_lightning.ranking.noise_level import MIN_SAMPLES, fit_mixture
from coseg_lightning.ranking.ranking import Ranking

# Colours of Okabe and Ito, distinguishable with any colour vision.
BLUE, ORANGE, GREEN, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#333333"
BY_CLASS = (ORANGE, SKY, GREEN, "#F0E442", "#CC79A7", "#D55E00", BLUE)  # of classes, in order
GIVEN_STYLE, NEW_STYLE = "solid", "dashed"  # used if colours distinguish classes
# Stages of other networks than the method's: baselines, and what a transition matrix comes from.
OTHERS = {
    "noisy_baseline": (BLACK, "plain, labels as given"),
    "clean_baseline": ("#CC79A7", "plain, clean labels"),
    "estimation": (SKY, "plain, to estimate how labels err"),
}


class Pictured(Protocol):
    """The parts of samples that the figures need, as in `SampleDataset`."""

    @property
    def dataset(self) -> MaskedImages:
        """Images and masks at their own resolution."""

    @property
    def truth(self) -> MaskedImages | None:
        """The dataset with the original masks, if they are known."""

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the samples."""


def training_curves(metrics: Sequence[dict[str, str]]) -> Figure:
    """Draw loss and validation Dice over the epochs of each stage (Fig. 2a).

    Args:
        metrics: The rows of metrics.csv.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = {"train/loss": "Training loss"}
    if any(row.get(f"val/dice{network}") for row in metrics for network in ("_a", "_b", "")):
        panels["val/dice"] = "Validation Dice"
    grid = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        rows = [row for row in metrics if row["stage"] == stage]
        networks = {"_a": (BLUE, "peer 1"), "_b": (ORANGE, "peer 2")}
        networks[""] = OTHERS.get(stage, (GREEN, "final network"))
        round_ = stage.rpartition("_")[2]
        suffix = f", round {round_}" if round_.isdigit() else ""
        style = ":" if stage in OTHERS or suffix else "-"
        for network, (colour, name) in networks.items():
            for metric, axes in grid.items():
                column = f"{metric}{network}"
                points = [
                    (int(row["epoch"]) + 1, float(row[column])) for row in rows if row.get(column)
                ]
                if points:
                    epochs, values = zip(*points, strict=True)
                    marker = "o" if len(points) == 1 else None  # a line of one point is not seen
                    label = f"{name}{suffix}"
                    axes.plot(epochs, values, style, color=colour, label=label, marker=marker)
    for metric, axes in grid.items():
        axes.set(xlabel="Epoch", title=panels[metric])
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend()
    return figure


def score_histogram(rows: Sequence[dict[str, str]], score: str) -> Figure:
    """Draw the corruption scores with the cut and two fitted normal distributions (Fig. 2b).

    Clean and replaced labels are shown separately if they are known.

    Args:
        rows: The rows of scores.csv.
        score: The name of the score.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    scores = np.array([float(row["score"]) for row in rows])
    finite = scores[np.isfinite(scores)]
    # Scores that are equal except for rounding leave no room for 40 bins.
    are_equal = not len(finite) or np.ptp(finite) <= 1e-6 * np.abs(finite).max()
    bins = np.histogram_bin_edges(finite.round(3) if are_equal else finite, bins=40)
    if any(row["replaced"] for row in rows):
        replaced = np.array([row["replaced"] == "1" for row in rows])
        axes.hist(
            [scores[~replaced], scores[replaced]],
            bins=bins.tolist(),
            stacked=True,
            color=[BLUE, ORANGE],
            label=["original mask", "replaced by a noisy one"],
        )
    else:
        axes.hist(scores, bins=bins.tolist(), color=BLUE, label="samples")
    if len(finite) >= MIN_SAMPLES and finite.std() > 0:
        _plot_mixture(axes, finite, bins)
    noisy = [float(row["score"]) for row in rows if row["noisy"] == "1"]
    if noisy:
        cut = min(noisy)
        below = [float(row["score"]) for row in rows if row["noisy"] != "1"]
        below = [value for value in below if np.isfinite(value) and value < cut]
        if below and np.isfinite(cut):
            cut = (cut + max(below)) / 2  # not within a bar
        axes.axvline(cut, color=BLACK, linestyle="--", label="ranked noisy to the right")
    axes.set(xlabel=f"Corruption score ({score}), mean of both peers", ylabel="Samples")
    axes.legend()
    return figure


def _plot_mixture(axes: Axes, scores: NDArray[Any], bins: NDArray[Any]) -> None:
    """Plot the two fitted normal distributions, scaled to counts per bin."""
    mixture, x = fit_mixture(scores), np.linspace(bins[0], bins[-1], 400)
    densities = np.exp(-(((x[:, None] - mixture.means) / mixture.deviations) ** 2) / 2)
    densities *= mixture.weights / (mixture.deviations * np.sqrt(2 * np.pi))
    counts = densities * len(scores) * (bins[1] - bins[0])
    for n, (style, name) in enumerate((("-", "lower"), (":", "upper"))):
        label = f"fitted, {name} ({100 * mixture.weights[n]:.0f} %)"
        axes.plot(x, counts[:, n], style, color=GREEN, label=label)


def corrected_examples(samples: Pictured, corrected: Mapping[str, Mask]) -> Figure:
    """Draw labels before and after correction, and the original if it is known (Fig. 3).

    Args:
        samples: The samples with the labels before correction.
        corrected: The corrected masks, by id.
    """
    figure, grid = _image_grid(len(corrected), columns=4, cell=(2.6, 2.75))
    index_of = {sample_id: index for index, sample_id in enumerate(samples.ids)}
    given, new = _colours_of(corrected.values())
    for axes, (sample_id, mask) in zip(grid, corrected.items(), strict=False):
        index = index_of[sample_id]
        _show_image(axes, samples, index)
        if samples.truth is not None:
            _outline(axes, samples.truth.mask(index), "white", 2.6)
        _outline(axes, samples.dataset.mask(index), given, 1.2)
        _outline(axes, mask, new, 1.2, "solid" if new else NEW_STYLE)
        axes.set_title(sample_id, fontsize=8, parse_math=False)
    colours = {"mask as given": given, "corrected mask": new}
    if samples.truth is not None:
        colours = {"original mask": "white", **colours}
    _outline_legend(figure, grid, colours, columns=3)
    return figure


def contact_sheet(
    samples: Pictured,
    ranking: Ranking,
    worst: Sequence[int],
    proposals: Mapping[int, NDArray[Any] | None],
) -> Figure:
    """Draw the worst masks in order, each with the network's prediction on top.

    The names of a mask's blunders, if any, are shown below its id.

    Args:
        samples: The samples with their masks.
        ranking: The ranking of the samples.
        worst: The indices of the samples to show, worst first.
        proposals: The predicted masks, by index; None if there is no network.
    """
    figure, grid = _image_grid(len(worst), columns=6, cell=(2.3, 2.5))
    given, new = _colours_of(samples.dataset.mask(index) for index in worst)
    for rank, (axes, index) in enumerate(zip(grid, worst, strict=False), start=1):
        _show_image(axes, samples, index)
        _outline(axes, samples.dataset.mask(index), given, 1.4)
        proposal = proposals[index]
        if proposal is not None:
            _outline(axes, proposal, new, 1.4, "solid" if new else NEW_STYLE)
        title = f"{rank}: {ranking.ids[index]}"
        by_class = ranking.class_scores
        if by_class is not None and by_class.shape[1] > 1 and not np.isnan(by_class[index]).all():
            title += f" (class {int(np.nanargmax(by_class[index])) + 1})"
        if ranking.blunders is not None and ranking.blunders[index]:
            title += "\n" + ", ".join(ranking.blunders[index])
        axes.set_title(title, fontsize=8, parse_math=False)
    colours = {"mask as given": given}
    if any(proposals[index] is not None for index in worst):
        colours["the network's proposal"] = new
    _outline_legend(figure, grid, colours, columns=2)
    return figure


def pairs_sheet(
    samples: Pictured,
    indices: Sequence[int],
    masks: Mapping[str, Sequence[Mask]],
    titles: Sequence[str],
) -> Figure:
    """Draw two masks over each of some images.

    Args:
        samples: The samples with the images.
        indices: The indices of the samples, in order.
        masks: Two masks of each of these samples, by what they are.
        titles: The title of each picture.
    """
    figure, grid = _image_grid(len(indices), columns=6, cell=(2.3, 2.6))
    (first, ones), (second, others) = masks.items()
    given, new = _colours_of([*ones, *others])
    for n, (axes, index) in enumerate(zip(grid, indices, strict=False)):
        _show_image(axes, samples, index)
        _outline(axes, others[n], new, 1.4, "solid" if new else NEW_STYLE)
        _outline(axes, ones[n], given, 1.4)
        axes.set_title(titles[n], fontsize=8, parse_math=False)
    _outline_legend(figure, grid, {first: given, second: new}, columns=2)
    return figure


def save_sheet(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, packed quickly rather than tightly."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, pil_kwargs={"compress_level": 1})


def judging_sheet(samples: Pictured, chosen: Sequence[int]) -> Figure:
    """Draw the masks that a person is to judge, without showing any other judgment.

    Args:
        samples: The samples with their masks.
        chosen: The indices of the samples to show, in the order of the table.
    """
    figure, grid = _image_grid(len(chosen), columns=5, cell=(3.2, 3.4))
    for axes, index in zip(grid, chosen, strict=False):
        _show_image(axes, samples, index)
        mask = samples.dataset.mask(index)
        inside = np.ma.masked_equal((mask > 0) & (mask != 255), 0)  # reveals inverted masks
        axes.imshow(inside, cmap=ListedColormap([ORANGE]), alpha=0.2)
        _outline(axes, mask, ORANGE, 1.4)
        axes.set_title(samples.ids[index], fontsize=9, parse_math=False)
    _outline_legend(figure, grid, {"mask as given": ORANGE}, columns=1)
    return figure


def _colours_of(masks: Iterable[NDArray[Any]]) -> tuple[str | None, str | None]:
    """Return the colours of given and new outlines; None if colours distinguish classes."""
    return (None, None) if _has_classes(masks) else (ORANGE, SKY)


def _image_grid(
    count: int, *, columns: int, cell: tuple[float, float]
) -> tuple[Figure, NDArray[Any]]:
    """Make a figure with axes for `count` images of `cell` inches each."""
    columns = min(columns, max(1, count))
    lines = max(1, -(-count // columns))
    width, height = cell
    figure = Figure(figsize=(width * columns, height * lines + 0.4), layout="constrained")
    grid: NDArray[Any] = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
        axes.set(xticks=[], yticks=[])  # otherwise the layout takes a second to measure them
    return figure, grid


def _show_image(axes: Axes, samples: Pictured, index: int) -> None:
    image = rescale_intensity(samples.dataset.image(index).astype(np.float32))
    if image.ndim == 3 and image.shape[2] != 3:  # show three of many bands, or one of two
        image = image[..., :3] if image.shape[2] > 3 else image[..., 0]
    axes.imshow(image, cmap="gray" if image.ndim == 2 else None)


def _outline(
    axes: Axes, mask: NDArray[Any], colour: str | None, width: float, style: str = "solid"
) -> None:
    """Draw the outlines of a mask's classes in one colour, or each class in its own colour."""
    if min(mask.shape) < 2:  # a mask one pixel wide has no outline
        return
    for class_id in np.unique(mask):
        region = (mask == class_id).astype(float)
        if class_id not in (0, 255) and 0 < region.mean() < 1:
            own = BY_CLASS[(int(class_id) - 1) % len(BY_CLASS)]
            axes.contour(
                region, levels=[0.5], colors=colour or own, linewidths=width, linestyles=style
            )


def _has_classes(masks: Iterable[NDArray[Any]]) -> bool:
    """Whether any mask has a class above 1."""
    return any(((mask > 1) & (mask != 255)).any() for mask in masks)


def _outline_legend(
    figure: Figure, grid: NDArray[Any], colours: Mapping[str, str | None], *, columns: int
) -> None:
    """Add a legend of the outlines; None means one colour per class, with a line style."""
    styles = iter((GIVEN_STYLE, NEW_STYLE))
    for name, colour in colours.items():
        style = "solid" if colour else next(styles)
        grid[0].plot([], [], color=colour or BLACK, linewidth=2, linestyle=style, label=name)
    figure.legend(loc="outside lower center", ncols=columns, facecolor="#888888", fontsize=9)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table that a run wrote; an empty list if the file does not exist."""
    return read_table(path) if path.is_file() else []
