"""Label transition matrices: forward correction [7] and noise adaptation [6]."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from typing_extensions import override

from coseg_lightning.callbacks.evaluation_pass import evaluation_pass, plain_training_set
from coseg_lightning.errors import InputError
from coseg_lightning.files.checkpoints import load_plain
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.methods.method import Outcome, Run, check_kind
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.segmentation import SegmentationModule

log = logging.getLogger(__name__)

PERCENTILE = 0.97  # percentile of a class's pixels that serves as its anchor, as published
BINS = 200  # bins of the predicted probability


class LabelTransition(SegmentationModule):
    """Models label noise by a transition matrix T between the true classes and the labels.

    `T[i, j]` is the probability that a pixel of class i is labelled j. The loss of Eq. (2) is
    computed from the probabilities of the labels, `T^t p`. Two papers on classification propose
    this; here pixels take the place of their examples.

    *Making Deep Neural Networks Robust to Label Noise* (Patrini et al. 2017, arXiv 1609.03683),
    forward correction: T is given, or estimated from the most confident pixels of a plain network
    that was trained before.

    *Training deep neural-networks using a noise adaptation layer* (Goldberger and Ben-Reuven 2017,
    ICLR), the simple model: T is learnt together with the network. The network starts from a
    plain network, and T from its confusion with the labels. The complex model, in which T depends
    on features of the image, is not implemented.

    Without a T, the module trains a plain network.

    Args:
        net: The network, see `SegmentationModule`.
        transition: T, `(K, K)`; each row sums to 1.
        learnt: Whether T is learnt further in training.
        estimate: How a `TransitionEstimation` estimates T: `anchors` or `confusion`.
        options: Further arguments of `SegmentationModule`.
    """

    takes_soft_masks = False

    def __init__(
        self,
        *net: Any,
        transition: Sequence[Sequence[float]] | Tensor | None = None,
        learnt: bool = False,
        estimate: Literal["anchors", "confusion"] = "anchors",
        **options: Any,
    ) -> None:
        if not isinstance(learnt, bool):
            raise InputError(f"learnt={learnt} must be true or false.")
        if estimate not in ("anchors", "confusion"):
            raise InputError(f"estimate={estimate!r} must be anchors or confusion.")
        super().__init__(*net, **options)
        self.learnt = learnt
        self.estimate = estimate
        self.known = False
        self.log_transition = nn.Parameter(torch.zeros(self.classes, self.classes))
        self.log_transition.requires_grad_(False)
        if transition is not None:
            self.set_transition(transition)

    def set_transition(self, transition: Sequence[Sequence[float]] | Tensor) -> None:
        """Use this matrix from now on, or as the initial value if T is learnt.

        Raises:
            InputError: If it is not a matrix of probabilities of the right size.
        """
        try:
            matrix = torch.as_tensor(transition, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            matrix = torch.empty(0)
        size = (self.classes, self.classes)
        is_wrong = matrix.shape != size or not torch.allclose(
            matrix.sum(dim=1), torch.ones(size[0])
        )
        if is_wrong or bool((matrix < 0).any()):
            raise InputError(
                f"transition={transition} must be {size[0]} rows of {size[1]} probabilities, and "
                "each row must sum to 1. A row says how often a pixel of its class is labelled as "
                "each class."
            )
        self.known = True
        with torch.no_grad():
            self.log_transition.copy_(matrix.clamp_min(1e-6).log())
        self.log_transition.requires_grad_(self.learnt)

    @property
    def transition(self) -> Tensor:
        """T, `(K, K)`."""
        return self.log_transition.softmax(dim=1)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.learnt:
            layer = {"params": [self.log_transition], "name": "transition", "weight_decay": 0.0}
            groups.append(layer)
        return groups

    @override
    def supervised_losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        if self.known:
            logits = label_logits(logits, self.transition)
        return super().supervised_losses(logits, masks)

    @override
    def summary_parts(self) -> dict[str, dict[str, Any]]:
        return {"transition": {"estimated": None, "final": self.transition.tolist()}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["transition_known"] = self.known

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.known = checkpoint.get("transition_known", self.known)
        self.log_transition.requires_grad_(self.known and self.learnt)


def label_logits(logits: Tensor, transition: Tensor) -> Tensor:
    """Compute the log-probabilities of the labels, `T^t p`, `(N, K, H, W)`."""
    p = class_logits(logits).softmax(dim=1)
    # A matrix product is avoided, since autocast would compute it in half precision.
    label_p = (p.unsqueeze(2) * transition.to(p.dtype)[:, :, None, None]).sum(dim=1)
    return label_p.clamp_min(1e-7).log()


class TransitionEstimation(Callback):
    """Estimates T after training a plain network on the noisy labels.

    Attributes:
        transition: T, rows of K probabilities; None before the end of the fit.
    """

    transition: list[list[float]] | None = None

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.interrupted:
            return
        assert isinstance(pl_module, LabelTransition)
        classes = pl_module.classes
        # For each predicted class and bin of its probability, as in `by_certainty`.
        anchors = torch.zeros(classes * BINS, classes + 1, dtype=torch.float64)
        confusion = torch.zeros(classes, classes, dtype=torch.float64)

        def count(indices: list[int], sample: Batch) -> None:
            logits = class_logits(pl_module(sample.images)[: len(indices)])
            masks = sample.masks[: len(indices)]
            labelled = masks != pl_module.ignore_index
            p = logits.softmax(dim=1).movedim(1, -1)[labelled].cpu().double()
            labels = masks[labelled].cpu()
            anchors.add_(by_certainty(p))
            confusion.index_add_(1, labels, p.T)

        dataset = plain_training_set(trainer)
        evaluation_pass(trainer, pl_module, dataset, range(len(dataset)), count)
        counts = anchors if pl_module.estimate == "anchors" else confusion
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts.to(pl_module.device), reduce_op="sum").cpu()
        transition = anchored(counts) if pl_module.estimate == "anchors" else rows_of(counts)
        self.transition = transition.tolist()


def by_certainty(p: Tensor) -> Tensor:
    """Count pixels by their predicted class and its probability.

    Args:
        p: Class probabilities, `(pixels, K)`.

    Returns:
        `(K * BINS, K + 1)`: for each bin, the sum of the pixels' probabilities, and their number.
    """
    classes = p.shape[1]
    certainty, predicted = p.max(dim=1)
    bins = predicted * BINS + (certainty * BINS).long().clamp_max(BINS - 1)
    rows = torch.cat([p, torch.ones(len(p), 1, dtype=p.dtype)], dim=1)
    return torch.zeros(classes * BINS, classes + 1, dtype=p.dtype).index_add_(0, bins, rows)


def anchored(counts: Tensor) -> Tensor:
    """Estimate T from anchors (Patrini et al., Eq. 12 and 13).

    The row of a class is the prediction at its anchor, a pixel of high confidence. As in the
    paper, the 97th percentile of the probability takes the place of its maximum. Here it is the
    percentile over the pixels predicted as the class, since fewer than 3 % of all pixels may be.
    A class that is never predicted is assumed never to be mislabelled.

    Args:
        counts: The result of `by_certainty`, summed over all batches.
    """
    classes = counts.shape[1] - 1
    rows = torch.eye(classes, dtype=counts.dtype)
    for k, bins in enumerate(counts.reshape(classes, BINS, classes + 1)):
        pixels = bins[:, -1]
        if pixels.sum() > 0:
            share_below = pixels.cumsum(dim=0) / pixels.sum()
            anchor = int((share_below >= PERCENTILE).nonzero()[0])
            rows[k] = bins[anchor, :-1] / pixels[anchor]
    return rows_of(rows)


def rows_of(counts: Tensor) -> Tensor:
    """Normalise the rows of a matrix to a sum of 1; empty rows become those of the identity."""
    mass = counts.sum(dim=1, keepdim=True)
    return torch.where(mass > 0, counts / mass.clamp_min(1e-12), torch.eye(len(counts)).to(counts))


def estimation(run: Run, outcome: Outcome) -> Outcome:
    """Train a plain network, and estimate T from its predictions."""

    def train() -> dict[str, Any]:
        module, callback = run.network(), TransitionEstimation()
        check_kind(run.method.name, "network", module, LabelTransition)
        if cast(LabelTransition, module).known:
            return {"transition": None}
        trainer = run.runner.fit("estimation", module, run.data, [callback])
        if trainer.is_global_zero:
            assert callback.transition is not None
            rows = ["  ".join(f"{p:.3f}" for p in row) for row in callback.transition]
            log.info("How pixels of each class are labelled: %s", " | ".join(rows))
        return {"transition": callback.transition}

    facts = run.runner.stage("estimation", train)
    transition = facts["transition"]
    return replace(
        outcome,
        facts={**outcome.facts, "transition": transition},
        summary={**outcome.summary, "transition": {"estimated": transition}},
    )


def supervised_training(run: Run, outcome: Outcome) -> Outcome:
    """Train a network with the estimated or given T between its classes and the labels."""
    transition = outcome.facts.get("transition")

    def prepare(module: SegmentationModule) -> None:
        if transition is None:  # T was given
            return
        of_run = cast(LabelTransition, module)
        of_run.set_transition(transition)
        if of_run.learnt:  # network and T start from the plain network
            load_plain(of_run.net, run.runner.weights("estimation", of="net."))

    run.train_network("supervised_training", prepare)
    return replace(outcome, last_stage="supervised_training", is_pair=False)
