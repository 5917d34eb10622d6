"""Warnings for the reader: findings of a run that should not be taken for granted."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coseg_lightning.report.results import MASKS, method_settings, never_right, not_looked_at

FEWEST = 80  # training masks of the smallest set that was measured


def doubts(
    summary: Mapping[str, Any],
    scores: Sequence[Mapping[str, str]],
    agreement: float | None = None,
    dice_of_changes: Sequence[float] = (),
    distance: float | None = None,
) -> list[str]:
    """List the reasons to doubt a run's result, one sentence each.

    Args:
        summary: The run's summary.
        scores: The rows of its scores.csv.
        agreement: The share of pixels on which the peers agreed in their last epoch, over samples
            that both learnt from.
        dice_of_changes: The Dice of each changed label to the label before correction.
        distance: Ashman's D of two normal distributions fitted to the scores.
    """
    run = _Run(summary, scores, agreement, dice_of_changes, distance)
    sentences = (check(run) for check in CHECKS)
    return [sentence for sentence in sentences if sentence is not None]


@dataclass(frozen=True)
class _Run:
    summary: Mapping[str, Any]
    scores: Sequence[Mapping[str, str]]
    agreement: float | None
    dice_of_changes: Sequence[float]
    distance: float | None

    @property
    def method(self) -> Mapping[str, Any]:
        return method_settings(self.summary["config"])

    @property
    def noisy_baseline_dice(self) -> float | None:
        dice: float | None = self.summary.get("baselines", {}).get("noisy", {}).get("dice")
        return dice

    @property
    def ranking(self) -> Mapping[str, Any]:
        ranking: Mapping[str, Any] = self.summary["ranking"]
        return ranking

    @property
    def correction(self) -> Mapping[str, Any]:
        correction: Mapping[str, Any] = self.summary["correction"]
        return correction


def _method_did_not_help(run: _Run) -> str | None:
    noisy, own = run.noisy_baseline_dice, run.summary["test"]["dice"]
    if noisy is None or own is None or noisy - own <= 0:
        return None
    return (
        "The method did not help: a plain network trained on the labels as given reached a Dice of "
        f"{noisy:.4f}, {noisy - own:.4f} more. Runs differ by chance: try other seeds."
    )


def _trained_longer(run: _Run) -> str | None:
    if run.noisy_baseline_dice is None or not run.method.get("warm_start"):
        return None
    return (
        "Part of a gain over the plain networks may be due to longer training: the last network "
        "was trained for the epochs of both stages."
    )


def _noise_level_not_measured(run: _Run) -> str | None:
    estimate, noise_level = run.ranking.get("estimate"), run.ranking["noise_level"]
    if estimate is not None:
        return None if estimate["separable"] else f"Noise level: {estimate['sentence']}"
    if not run.scores or not noise_level:
        return None
    return (
        f"The noise level of {noise_level:g} was given, not measured: it determined how many "
        "samples were ranked noisy."
    )


def _few_masks(run: _Run) -> str | None:
    count = (run.summary.get("samples") or {}).get("train")
    if not run.scores or count is None or count >= FEWEST:
        return None
    return (
        f"Only {count} masks were trained on. The method was measured with {FEWEST} and more; with "
        "fewer, rankings and corrections are less reliable."
    )


def _test_masks_unchecked(run: _Run) -> str | None:
    if run.summary["test"].get("masks") != MASKS[False]:
        return None
    return (
        "The test figures say how well the network agrees with your own test masks, which nobody "
        "checked: where it is right and they are wrong, it scores low. Name masks that somebody "
        "checked in data.trusted_ids; the test then uses only those."
    )


def _predicts_too_little(run: _Run) -> str | None:
    missing = never_right(run.summary)
    return missing and f"{missing} Train longer, or check whether images and masks fit together."


def _masks_not_looked_at(run: _Run) -> str | None:
    is_experiment = run.summary["test"].get("masks") == MASKS[True]
    return None if is_experiment else not_looked_at(run.summary)


def _scores_not_separable(run: _Run) -> str | None:
    known_otherwise = run.ranking.get("estimate") is not None or run.ranking["auroc"] is not None
    if run.distance is None or run.distance >= 2 or known_otherwise:
        return None
    return (
        "The scores do not form two groups (Ashman's D of two fitted distributions is "
        f"{run.distance:.1f}; it is above 2 if they are separated). Good and bad labels look alike "
        "to the peers, and which samples were ranked noisy may be chance."
    )


def _ranking_is_poor(run: _Run) -> str | None:
    auroc = run.ranking["auroc"]
    if auroc is None or auroc >= 0.85:
        return None
    return (
        f"The ranking separates noisy labels from others poorly (AUROC {auroc:.2f}; 0.5 is "
        "chance): it may rank hard images instead of bad labels."
    )


def _peers_are_alike(run: _Run) -> str | None:
    if run.agreement is None or run.agreement <= 0.9995:
        return None
    return (
        f"The peers agree on {100 * run.agreement:.2f} % of the pixels that both learn from. Two "
        "networks that are nearly identical no longer find each other's mistakes."
    )


def _correction_did_harm(run: _Run) -> str | None:
    before, after = run.correction["label_dice_before"], run.correction["label_dice_after"]
    if before is None or after >= before:
        return None
    did = "The review" if run.correction.get("decided") else "Correction"
    return (
        f"{did} did harm: the Dice of the training labels to the originals fell from "
        f"{before:.4f} to {after:.4f}."
    )


def _correction_changed_much(run: _Run) -> str | None:
    if not run.dice_of_changes:
        return None
    median = statistics.median(run.dice_of_changes)
    if median >= 0.5:
        return None
    return (
        "Correction changed labels very much: half of the corrected labels have a Dice of "
        f"{median:.2f} or less to the label before correction. Look at them, and reject those that "
        "are wrong."
    )


def _correction_was_skipped(run: _Run) -> str | None:
    if not run.correction.get("left_alone"):
        return None
    reason = (
        "be better than the labels: their predictions differ from these labels "
        f"{run.correction['contradiction']:.1f} times as much as from each other, or differ too "
        "much from each other to be useful."
    )
    if run.correction.get("kept_vary_more"):
        reason = (
            "have learnt from the right ones: the kept labels deviate from the predictions more "
            "variably than the labels ranked noisy, and mistakes vary more than the truth. The bad "
            "labels may be at the other end of the ranking, which happens if half of all labels "
            "are wrong in the same direction: look at some labels at both ends."
        )
    return (
        "The labels ranked noisy were left as they are, since the peers do not seem to "
        f"{reason} The network was therefore trained on all your labels as given."
        + (" This is so in all folds." if "folds" in run.summary else "")
    )


def _correction_changed_nothing(run: _Run) -> str | None:
    if "folds" in run.summary or run.correction.get("decided"):  # a person decided
        return None
    any_noisy = any(row["noisy"] == "1" for row in run.scores)
    if run.correction.get("left_alone") or run.correction["corrected"]:
        return None
    if not any_noisy or run.method["name"] != "coseg":
        return None
    return "Correction changed nothing: the peers never agreed confidently enough against a label."


CHECKS: tuple[Callable[[_Run], str | None], ...] = (
    _predicts_too_little,
    _few_masks,
    _test_masks_unchecked,
    _masks_not_looked_at,
    _method_did_not_help,
    _trained_longer,
    _noise_level_not_measured,
    _scores_not_separable,
    _ranking_is_poor,
    _peers_are_alike,
    _correction_did_harm,
    _correction_changed_much,
    _correction_was_skipped,
    _correction_changed_nothing,
)
