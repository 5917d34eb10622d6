"""The default with one thing changed, where that is not an option of the app."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coseg_lightning import CorruptionRanking, CoSegModule, LabelCorrection
from coseg_lightning.callbacks.evidence_sum import PredictionObserver, evidence_pass
from coseg_lightning.functional.equations import vote
from coseg_lightning.methods import coseg
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method
from coseg_lightning.modules.batch import Batch
from coseg_lightning.ranking.evidence import Evidence, Floats


class WithoutExchange(CoSegModule):
    """Each peer learns from what it keeps itself."""

    @staticmethod
    def exchange(picks_a: Tensor, picks_b: Tensor) -> tuple[Tensor, Tensor]:
        """Let each peer keep its picks."""
        return picks_a, picks_b


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
        idle = sum(weight.sum() * 0 for weight in self.net_b.parameters())
        return loss, idle, picks


class VoteByTheMean(LabelCorrection):
    """Labels are corrected by the mean of the peers, as sure as the default's vote must be."""

    def vote(
        self, peer_a: Tensor, peer_b: Tensor, label: Tensor, confidence: float, ignore_index: int
    ) -> Tensor:
        """The class of the peers' mean probability, whether or not both have it."""
        mean = (peer_a + peer_b) / 2
        return vote(mean, mean, label, confidence=confidence, ignore_index=ignore_index)


class RankingByTheTruth(CorruptionRanking):
    """Selects and corrects as if the ranking made no mistake: what a better score would be worth.

    It is for experiments, whose noisy masks are known.
    """

    def scores(self, evidence: Evidence, ids: list[str], dataset: Any) -> Floats:
        """1 for a mask that was replaced by a noisy one, else 0."""
        return np.array([float(sample_id in dataset.replaced) for sample_id in ids])


VOTE_BY_THE_MEAN = replace(coseg.METHOD, correction=VoteByTheMean)
RANKED_BY_THE_TRUTH = replace(coseg.METHOD, ranking=RankingByTheTruth)


class Kept(CorruptionRanking, PredictionObserver):
    """Keeps the peers' predictions at the first ranking and at the end, as rounded log odds.

    They lie beside `scores.csv`, in `predictions_half.npz` and `predictions.npz`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.half: dict[int, Any] = {}
        self.kept: dict[int, Any] = {}

    def observe(self, indices: Any, sample: Batch, logits: Any) -> None:
        """Keep the log odds of the foreground classes in quarters, `(n, 2, K - 1, H, W)`."""
        peers = torch.stack([part.float().softmax(dim=1)[:, 1:] for part in logits], dim=1)
        quarters = (4 * peers.logit(1e-4).clamp(-8, 8)).round().to(torch.int8).cpu().numpy()
        self.kept |= dict(zip(indices, quarters, strict=True))

    def judge(self, trainer: Any, module: CoSegModule) -> Any:
        """Make the pass of a ranking in training, and keep the first one's predictions."""
        if self.half:
            return super().judge(trainer, module)
        observers = [self, *self.observers(trainer, module)]
        judged = self.judged_dataset(trainer)
        result = evidence_pass(trainer, module, judged, observers=observers)
        self.half, self.kept = self.kept, {}
        return result

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Rank, and write the predictions of both passes."""
        super().on_train_end(trainer, pl_module)
        assert self.ranking is not None
        for name, kept in (("predictions_half", self.half), ("predictions", self.kept)):
            if kept:
                np.savez_compressed(
                    self.path.with_name(f"{name}.npz"),
                    ids=np.array(self.ranking.ids),
                    foreground=np.stack([kept[index] for index in sorted(kept)]),
                )


KEPT = Method("coseg", (robust_training,), ranking=Kept)
