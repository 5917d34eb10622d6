"""Co-Seg (Huang et al. 2021, arXiv 2102.00523): train robustly, correct labels, retrain."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.label_correction import LabelCorrection
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT
from coseg_lightning.data.wrapped import Data
from coseg_lightning.files.checkpoints import check_fits
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method, Outcome, Run
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.runner import StageRunner

log = logging.getLogger(__name__)


def retraining(run: Run, outcome: Outcome) -> Outcome:
    """Section 2.3: "Based on the updated dataset, we retrain a final segmentation network"."""
    peers, recipe, runner = outcome.peers, run.recipe, run.runner
    assert peers is not None

    def train() -> None:
        module, weights = run.network(), None
        in_vain = peers.excluded and not outcome.corrected
        if recipe.warm_start and in_vain:  # the peer has learnt from fewer samples, to no avail
            rank_zero_only(log.info)(
                "The peers left samples out in vain: retraining starts from new weights."
            )
        elif recipe.warm_start:
            weights = runner.weights("robust_training", of="net_a.")
            check_fits(weights, module.net, runner.folder.path / "robust_training" / CHECKPOINT)
        retrain(runner, run.data, module, recipe, weights, peers.epochs)

    runner.stage("retraining", train)
    return replace(outcome, last_stage="retraining")


def retrain(
    runner: StageRunner,
    data: Data,
    module: SegmentationModule,
    recipe: Recipe,
    weights: Mapping[str, Any] | None,
    epochs: int,
) -> None:
    """Train the final network on the updated dataset.

    Args:
        runner: The run's.
        data: The updated dataset: the peers' corrections, or a person's, lie over its masks.
        module: Holds the network.
        recipe: Says by which loss, and for how long.
        weights: Those of a peer, to start from; None for new weights.
        epochs: Those of the peers.
    """
    module.use_pixel_loss(recipe.retraining_loss)
    max_epochs = None
    if weights is not None:
        module.net.load_state_dict(weights)
    if recipe.warm_start:
        max_epochs = retraining_epochs(recipe, epochs, from_new_weights=weights is None)
    runner.fit("retraining", module, data, max_epochs=max_epochs)


def retraining_epochs(recipe: Recipe, epochs: int, *, from_new_weights: bool) -> int | None:
    """How many epochs retraining takes, where that is not the trainer's own number.

    Args:
        recipe: The recipe.
        epochs: Those of the peers.
        from_new_weights: Whether it is to learn for as long as that peer and it would have done
            together.
    """
    if recipe.retraining_share == 1 and not from_new_weights:
        return None
    warm = max(1, round(recipe.retraining_share * epochs))
    return warm + epochs if from_new_weights else warm


METHOD = Method("coseg", (robust_training, retraining), correction=LabelCorrection)
