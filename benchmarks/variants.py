"""The default with one thing changed, where that is not an option of the app."""

from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coseg_lightning.callbacks import corruption_ranking, label_correction
from coseg_lightning.callbacks.evaluation_pass import plain_training_set
from coseg_lightning.functional.equations import vote
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.ranking import ranking
from coseg_lightning.ranking.evidence import Evidence


class WithoutExchange(CoSegModule):
    """Each peer learns from what it keeps itself."""

    def doubt(self, by_a: Any, by_b: Any, among: Any = None) -> None:
        """Let each peer leave out what it doubts itself."""
        super().doubt(by_b, by_a, among)


class OneNetwork(WithoutExchange):
    """A single network: wherever a peer would speak, the first one does."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The first network twice; in evaluation the second time through a mirror."""
        logits, _ = super().forward(images)
        if self.training:
            return logits, logits
        # Its image in a mirror takes the peer's place, to tell how sure it is.
        return logits, super().forward(images.flip(-1))[0].flip(-1)

    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """The first network's loss alone."""
        loss, _, picks = super().peer_losses(logits_a, logits_b, sample)
        # The other network's parameters get no gradient, but need one to exist.
        idle = sum(torch.sum(weight) * 0 for weight in self.net_b.parameters())
        return loss, idle, picks


def vote_by_the_mean(a: Tensor, b: Tensor, masks: Tensor, **limits: Any) -> Tensor:
    """The class of the peers' mean probability, whether or not both have it."""
    mean = (a + b) / 2
    return vote(mean, mean, masks, **limits)


class Patched(CoSegModule):
    """Puts something in the place of what the package has, for its own run."""

    def replacements(self) -> list[tuple[ModuleType, str, Any]]:
        """A module, a name in it, and what the name is to mean."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """From here on, since by now the training set is known."""
        super().on_train_start()
        self.patches = [mock.patch.object(*patch) for patch in self.replacements()]
        for patch in self.patches:
            patch.start()

    def teardown(self, stage: str) -> None:
        """The next cell of this process has the package's again."""
        if stage == "fit":
            for patch in self.__dict__.pop("patches", []):
                patch.stop()


class VoteByTheMean(Patched):
    """Labels are corrected by the mean of the peers, as sure as the default's vote must be."""

    def replacements(self) -> list[tuple[ModuleType, str, Any]]:
        """The other vote."""
        return [(label_correction, "vote", vote_by_the_mean)]


class RankedByTheTruth(Patched):
    """Selects and corrects as if the ranking made no mistake: what a better score would be worth.

    Of an experiment, whose noisy masks are known.
    """

    def replacements(self) -> list[tuple[ModuleType, str, Any]]:
        """A score that knows them."""
        dataset = plain_training_set(self.trainer)
        truth = np.array([float(id in dataset.replaced) for id in dataset.ids])

        def score(evidence: Evidence, name: str = "directed") -> NDArray[np.float64]:
            return truth

        return [(module, "mask_scores", score) for module in (corruption_ranking, ranking)]
