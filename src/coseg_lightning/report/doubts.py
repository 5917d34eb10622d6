"""What a careful reader should not take for granted."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def doubts(
    summary: Mapping[str, Any],
    scores: Sequence[Mapping[str, str]],
    agreement: float | None = None,
    dice_of_changes: Sequence[float] = (),
    distance: float | None = None,
) -> list[str]:
    """What a careful reader should not take for granted.

    Args:
        summary: The run's.
        scores: The rows of its scores.csv.
        agreement: The share of pixels, of samples that both learnt from in their last epoch, on
            which the peers agreed.
        dice_of_changes: The Dice of each changed label to what it was.
        distance: Ashman's D of two normal distributions that were fitted to the scores.
    """
    found = []
    auroc, correction = summary["ranking"]["auroc"], summary["correction"]
    noisy = summary.get("baselines", {}).get("noisy", {}).get("dice")
    if noisy is not None and summary["test"]["dice"] is not None:
        lost = noisy - summary["test"]["dice"]
        if lost > 0:
            found.append(
                "The method did not help: a plain network on the labels as given reached "
                f"{noisy:.4f}, {lost:.4f} more. Runs differ by chance: try other seeds."
            )
    method = summary["config"]["method"]
    if noisy is not None and method.get("warm_start"):
        found.append(
            "Part of a gain over the plain networks may be longer training: the last network "
            "has learnt for the epochs of both stages."
        )
    estimate = summary["ranking"].get("estimate")
    if estimate is not None and not estimate["separable"]:
        found.append(f"Noise level: {estimate['sentence']}")
    elif estimate is None and scores and summary["ranking"]["noise_level"]:
        found.append(
            f"The noise level of {summary['ranking']['noise_level']:g} was given, not measured: "
            "as many samples were taken for noisy as it says."
        )
    if distance is not None and distance < 2 and estimate is None and auroc is None:
        found.append(
            "The scores do not fall into two groups (Ashman's D of two fitted distributions "
            f"{distance:.1f}; two that are apart have more than 2): good and bad labels look alike "
            "to the peers, and which were taken for noisy may be chance."
        )
    if auroc is not None and auroc < 0.85:
        found.append(
            f"The ranking tells noisy labels from others poorly (AUROC {auroc:.2f}; 0.5 is "
            "chance): it may rank hard images instead of bad labels."
        )
    if agreement is not None and agreement > 0.9995:
        found.append(
            f"The peers agree on {100 * agreement:.2f} % of the pixels that both learn from: two "
            "networks that are all but one do not find each other's mistakes any more."
        )
    before, after = correction["label_dice_before"], correction["label_dice_after"]
    if before is not None and after < before:
        found.append(
            f"Correction did harm: the training labels' Dice to the originals fell from "
            f"{before:.4f} to {after:.4f}."
        )
    if dice_of_changes and (middle := statistics.median(dice_of_changes)) < 0.5:
        found.append(
            "Correction changed very much: half of the corrected labels have a Dice of "
            f"{middle:.2f} or less to what they were. Look at them, and reject what is wrong."
        )
    doubted = any(row["noisy"] == "1" for row in scores)
    if correction.get("left_alone"):
        why = (
            "know better: they contradict these labels "
            f"{correction['contradiction']:.1f} times as much as each other, or differ too much "
            "from each other to be of use."
        )
        if correction.get("kept_vary_more"):
            why = (
                "have learnt from the right ones: the labels that they kept differ from their "
                "predictions more variously than those in doubt, and mistakes are more various "
                "than the truth. It may be the end of the ranking that is bad, which happens "
                "where half of all labels err to one side: look at some of both ends."
            )
        found.append(
            f"The labels in doubt were left as they are, since the peers do not seem to {why} So "
            "the network is one trained on all your labels as given."
        )
    elif doubted and summary["config"]["method"]["name"] == "coseg" and not correction["corrected"]:
        found.append(
            "Correction changed nothing: the peers never agreed surely enough against a label."
        )
    return found
