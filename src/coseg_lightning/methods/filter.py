"""Exclude the worst labels and train again (Lad and Mueller 2023, arXiv 2307.05080)."""

from dataclasses import replace

from torch import Tensor
from typing_extensions import override

from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.method import Method, Outcome, Run
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.coseg import CoSegModule


class PlainPeers(CoSegModule):
    """Trains two networks independently on all samples, as a ranking ensemble."""

    @override
    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, None]:
        targets = sample.targets
        return self.losses(logits_a, targets).mean(), self.losses(logits_b, targets).mean(), None


def filtering(run: Run, outcome: Outcome) -> Outcome:
    """Exclude the samples that the peers rank noisy."""
    assert isinstance(run.data, CoSegDataModule)
    assert outcome.peers is not None
    run.data.exclude(outcome.peers.noisy)
    return outcome


def retraining(run: Run, outcome: Outcome) -> Outcome:
    """Train a network on the remaining samples, for as many steps as with all samples."""
    peers = outcome.peers
    assert peers is not None
    share = 1 - len(peers.noisy) / peers.samples
    run.train_network("retraining", max_epochs=round(peers.epochs / share))
    return replace(outcome, last_stage="retraining", is_pair=False)


METHOD = Method(
    "filter",
    (robust_training, filtering, retraining),
    excludes_samples=True,
    module=PlainPeers,
)
