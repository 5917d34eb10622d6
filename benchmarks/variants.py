"""The default with one thing changed, where that is not an option of the app."""

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from coseg_lightning.callbacks import label_correction
from coseg_lightning.coseg_module import CoSegModule
from coseg_lightning.data.samples import Batch
from coseg_lightning.equations import vote


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


class VoteByTheMean(CoSegModule):
    """Labels are corrected by the mean of the peers, as sure as the default's vote must be."""

    def on_fit_start(self) -> None:
        """Put the other vote in the place of the package's, for this run."""
        super().on_fit_start()
        self.vote = mock.patch.object(label_correction, "vote", vote_by_the_mean)
        self.vote.start()

    def teardown(self, stage: str) -> None:
        """The next cell of this process has the package's again."""
        if stage == "fit" and hasattr(self, "vote"):
            self.vote.stop()
            del self.vote
