"""Co-Seg (Huang et al. 2021, arXiv 2102.00523): robust training, label correction, retraining."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.label_correction import LabelCorrection
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT
from coseg_lightning.files.checkpoints import check_fits, load_plain
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method, Outcome, Run
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.wrapped import Data

log = logging.getLogger(__name__)


def retraining(run: Run, outcome: Outcome) -> Outcome:
    """Retrain the final network.

    Section 2.3: "Based on the updated dataset, we retrain a final segmentation network".
    """
    peers, recipe, runner = outcome.peers, run.recipe, run.runner
    assert peers is not None

    def train() -> None:
        module, weights = run.network(), None
        in_vain = peers.excluded and not outcome.corrected
        if recipe.warm_start and in_vain:  # the peers learnt from fewer samples without benefit
            rank_zero_only(log.info)(
                "No label was corrected, so the final network starts from new weights and learns "
                "from all labels as given, for the epochs of both stages."
            )
        elif recipe.warm_start:
            weights = runner.weights("robust_training", of="net_a.")
            check_fits(weights, module.net, runner.folder.path / "robust_training" / CHECKPOINT)
        if outcome.corrected:  # on labels that networks fit badly, a robust loss costs accuracy
            module.use_pixel_loss(recipe.retraining_loss)
        retrain(runner, run.data, module, recipe, weights, peers.epochs)

    runner.stage("retraining", train)
    return replace(outcome, last_stage="retraining", is_pair=False)


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
        runner: The run's stage runner.
        data: The updated dataset, with the corrections of the peers or of a person.
        module: The module with the final network and its loss.
        recipe: Its retraining share, warm start and averaging are used.
        weights: A peer's weights to start from; None for new weights.
        epochs: The number of epochs for which the peers were trained.
    """
    max_epochs, share = None, 1.0
    if weights is not None:
        load_plain(module.net, weights)
    if recipe.warm_start:
        max_epochs = retraining_epochs(recipe, epochs, from_new_weights=weights is None)
        share = recipe.retraining_share + (weights is None)
    first_epoch, averaging = 0, recipe.averaging
    if weights is not None:  # it goes on where the peer ended: other images, one training in all
        first_epoch = epochs
        averaging = min(1.0, averaging * (1 + 1 / recipe.retraining_share))
    runner.fit(
        "retraining",
        module,
        data,
        max_epochs=max_epochs,
        share=share,
        first_epoch=first_epoch,
        averaging=averaging,
    )


def retraining_epochs(recipe: Recipe, epochs: int, *, from_new_weights: bool) -> int | None:
    """Return the number of epochs of retraining, or None for the trainer's own number.

    Args:
        recipe: The recipe.
        epochs: The number of epochs for which the peers were trained.
        from_new_weights: Whether retraining starts from new weights. It then takes as many epochs
            as robust training and a warm-started retraining together.
    """
    if recipe.retraining_share == 1 and not from_new_weights:
        return None
    warm = max(1, round(recipe.retraining_share * epochs))
    return warm + epochs if from_new_weights else warm


METHOD = Method("coseg", (robust_training, retraining), correction=LabelCorrection)
