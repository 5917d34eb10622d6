"""The result of a run: one sentence, and a table that compares it with other networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The kind of test masks, by whether they are trusted; None if unknown.
MASKS = {
    True: "trusted test masks",
    False: "your own, unchecked test masks",
    None: "the test masks as given",
}
NEVER = 0.01  # test Dice below which a class counts as not learnt
METHODS = {
    "coseg": "The network retrained on corrected labels",
    "coteaching": "The first of two peers, trained by co-teaching,",
    "supervised": "The network trained on the labels as given",
}
# The baselines' names in the table and in the sentence.
BASELINES = {
    "before": ("The run before its review", "the run before its review"),
    "noisy": ("Plain network, labels as given", "one trained on the labels as given"),
    "clean": ("Plain network, clean labels", "one trained on clean labels"),
}
# What the decisions of a review did.
OF_REVIEWS = {
    "confirmed": "corrections confirmed",
    "rejected": "corrections undone",
    "taken": "other proposals taken",
    "redrawn": "drawn anew",
    "redraw": "to be redrawn",
}


def method_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run's method, including the recipe of a run from Python."""
    return {**config.get("recipe", {}), **config["method"]}


def results(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table: the run and its baselines, with the run's gap to each.

    Args:
        summary: The run's summary.
    """
    own = summary["test"]
    rows = [{"name": "This run", **own, "gap": None}]
    for name, test in summary.get("baselines", {}).items():
        known = own["dice"] is not None and test["dice"] is not None
        gap = own["dice"] - test["dice"] if known else None
        ends = summary.get("gain_intervals", {}).get(name)
        rows.append({"name": BASELINES[name][0], **test, "gap": gap, "gain_interval": ends})
    return rows


def result_in_a_sentence(summary: Mapping[str, Any]) -> str:
    """Summarise the run's result in one line.

    Args:
        summary: The run's summary.
    """
    subject = _subject(summary)
    dice, accuracy = summary["test"]["dice"], summary["test"]["accuracy"]
    if accuracy is None:
        if "masks" in summary["test"] or dice is not None:  # earlier versions had a Dice then
            return f"{subject} was not tested: all pixels of the test masks are unlabelled."
        return f"{subject} was not tested: there is no test set."
    reached = f"a test Dice of {dice:.4f} and a pixel accuracy of {accuracy:.4f}"
    masks = summary["test"].get("masks")
    sentence = f"{subject} reached {reached}"
    if masks == MASKS[False]:
        sentence = f"{subject} agrees with {masks} to {reached}"
    elif masks == MASKS[True]:
        sentence += f" on {masks}"
    gaps = [
        _gap_in_words(dice - test["dice"], BASELINES[name][1])
        for name, test in summary.get("baselines", {}).items()
        if test["dice"] is not None
    ]
    if len(gaps) > 2:
        gaps = [", ".join(gaps[:-1]), gaps[-1]]
    return f"{sentence}, {' and '.join(gaps)}." if gaps else f"{sentence}."


def certainty(summary: Mapping[str, Any]) -> str | None:
    """State how certain the test Dice is for this number of images; None if it is unknown."""
    test = summary["test"]
    count, ends = test.get("images"), test.get("interval", {}).get("dice")
    if not count:
        return None
    if ends is None:
        there = "is 1 test image" if count == 1 else f"are {count} test images"
        return f"There {there}, too few to estimate the Dice on other images."
    return (
        f"There are {count} test images: if they were drawn at random, the mean Dice over all such "
        f"images is between {ends[0]:.3f} and {ends[1]:.3f} (95 % bootstrap interval); smaller "
        "differences may be due to chance."
    )


def never_right(summary: Mapping[str, Any]) -> str | None:
    """Name the classes that the network never finds in the test images; None if there are none."""
    per_class = summary["test"].get("per_class_dice") or []
    names = ["the background", *class_names(summary)]
    missing = [
        name
        for name, dice in zip(names, per_class, strict=False)
        if dice is not None and dice < NEVER
    ]
    if not missing:
        return None
    return f"The network has learnt too little: it never finds {' and '.join(missing)}."


def not_looked_at(summary: Mapping[str, Any]) -> str | None:
    """State how many masks a run neither ranked nor corrected; None if there are none."""
    sizes = dict(summary.get("samples") or {})
    if summary["ranking"]["noise_level"] is None or not sizes:
        return None
    if summary["test"].get("masks") == MASKS[True]:
        sizes.pop("test", None)  # these were checked
    others = sum(size for part, size in sizes.items() if part != "train")
    if not others:
        return None
    what = "tiles" if (summary["config"].get("data") or {}).get("tile") else "masks"
    return (
        f"{others} of {sum(sizes.values())} {what} were not judged: those of the validation and "
        "test sets are neither ranked nor corrected. Set data.folds=5 to judge all masks."
    )


def class_names(summary: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes after the background: as given, or `class 1` and so on."""
    names = (summary["config"].get("data") or {}).get("class_names")
    count = len(summary["test"].get("per_class_dice") or ()) - 1
    if names is not None and len(names) == count:
        return [str(name) for name in names]
    return [f"class {k}" for k in range(1, count + 1)]


def _subject(summary: Mapping[str, Any]) -> str:
    method, correction = summary["config"]["method"]["name"], summary["correction"]
    if "folds" in summary:
        return f"Each of {len(summary['folds'])} networks, tested on the fold that it did not see,"
    if "rejected" in correction:
        return "The network retrained on reviewed labels"
    if method == "coseg" and not correction["corrected"]:
        return "The network retrained on the labels as given, none of which was changed,"
    return METHODS.get(method, f"The network trained by the method {method}")


def _gap_in_words(gap: float, other: str) -> str:
    return f"{abs(gap):.4f} {'more' if gap >= 0 else 'less'} than {other}"


def next_steps(folder: Path, summary: Mapping[str, Any], ranked: bool) -> list[tuple[str, str]]:
    """Return what a user may do with a run of the app: the aim and the command of each step.

    Args:
        folder: The run's folder.
        summary: The run's summary.
        ranked: Whether the run ranked masks, so that they can be reviewed.
    """
    config = summary["config"]
    source = (config.get("data") or {}).get("source") or {}
    steps = []
    if not config.get("model"):  # a project's run, which no command can open
        return []
    if ranked and "folds" not in summary:
        steps.append(("retrain with your decisions", "coseg run resume=RUN review=REVIEW"))
    if "masks" in source and "root" in source:
        correction = summary["correction"]
        if correction["corrected"] or "decided" in correction or summary.get("labels"):
            steps.append(("write all masks in their own format", "coseg apply RUN OUT"))
        if ranked:
            aim = "write all masks in their own format, with your decisions"
            steps.append((aim, "coseg apply RUN OUT review=REVIEW"))
    if (folder / "model").is_dir():
        steps.append(("predict masks of other images", "coseg predict RUN IMAGES OUT"))
    return steps


def decisions(correction: Mapping[str, Any]) -> str:
    """Return in words how many masks a review decided on, and what the decisions did."""
    counts = {name: correction.get(key) for key, name in OF_REVIEWS.items()}
    effects = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if "decided" not in correction:  # a review by version 0.1
        return effects or "none"
    return f"{correction['decided']}{f' ({effects})' if effects else ''}"
