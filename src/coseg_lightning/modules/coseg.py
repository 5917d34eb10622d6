"""CoSegModule: robust training of two peers on noisy labels (section 2.1)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    agreement,
    class_logits,
    corruption_score,
    keep_rate,
    l2_weight_decay,
    predicted_classes,
    segmentation_loss,
    selection_size,
    small_score_selection,
)
from coseg_lightning.functional.metrics import SegmentationScores
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.modules.batch import Batch, ClassIds, images_of, read_batch
from coseg_lightning.modules.buffers import average_buffers, evaluating
from coseg_lightning.modules.optimizers import PeerOptimization, Schedule, made
from coseg_lightning.networks.build import build_network
from coseg_lightning.networks.forward import (
    any_size,
    auxiliary_weight,
    check_logits,
    with_auxiliary,
)
from coseg_lightning.ranking.evidence import Evidence, relative_score
from coseg_lightning.ranking.noise_level import FALLBACK, NoiseLevelEstimate, estimate_noise_level

# Both peers' losses, what each picked, the share of pixels of how many samples where they agree.
Learnt = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None, tuple[Tensor, int]]


class CoSegModule(pl.LightningModule):
    """Two networks, each learning only from the samples that its peer finds least corrupted.

    Under DDP each process selects within its own batch.

    Args:
        net_a: A network, or the name of one: see `coseg_lightning.networks.build.build_network`.
        net_b: Its peer; default a second one of the same name. Their weights must differ.
        encoder_name: For networks given by name.
        encoder_weights: For networks given by name; none by default, and nothing is downloaded.
        in_channels: For networks given by name.
        classes: Number of classes K, background included; 1 for a binary network with one
            output, the logit of the foreground, whose masks hold 0 and 1.
        noise_level: NoL, the share of training samples with noisy labels, `0 <= NoL < 1`; or
            `auto`: the peers learn from all samples until a `NoiseLevelEstimation` among the
            callbacks can tell the level, after half of the epochs; if it cannot, to the end, and
            a `CorruptionRanking` tries again.
        selection: How a peer finds the least corrupted samples. `whole_set`: both learn from all
            samples for half of the epochs; then a `CorruptionRanking` among the callbacks ranks
            the training set every now and then, by each peer, and a peer learns from what the
            other's ranking keeps. `relative`: in every batch those with the smallest
            cross-entropy over the entropy that it expects. `eq1`: those with the smallest
            cross-entropy, as printed, which on varied images picks the easy ones. Without such a
            callback or ids in the batches, `whole_set` becomes `relative`.
        step: What passes through the peers. `picks`: only what a peer learns from, one peer after
            the other, so that a single device holds one peer's graph at a time; where samples are
            selected by batch, both judge the whole batch first, in evaluation mode and without
            gradients. `joint`: the whole batch through both, as printed, so that samples which are
            not picked still enter BatchNorm's statistics; also where a subclass has a `forward` or
            `peer_losses` of its own.
        ramp_epochs: Epochs over which the keep rate of a batch falls from 1 to 1 - NoL; 0 keeps it
            constant, as printed; default 30 % of the trainer's `max_epochs`. An estimated level
            needs none, and `whole_set` has none.
        lambda_1: Weight of the Dice loss in Eq. (2).
        lambda_2: Weight of the L2 term in Eq. (2).
        include_background: Whether background is one of the k classes of Eq. (3).
        lr: Learning rate, or one for each peer.
        optimizer: Called with the parameter groups and `lr=`; groups are named net_a and net_b.
        scheduler: Called with the optimizer; gives a scheduler of torch, stepped each epoch, or
            Lightning's dict with `scheduler`, `interval`, `frequency`, `monitor`. A
            `ReduceLROnPlateau` goes by `val/dice_a` unless another metric is named.
        ignore_index: Class id of unlabelled pixels.
        options: Further arguments of networks given by name.

    Batches are `(image, mask)`, `(image, mask, id)`, or dicts with `image`, `mask` or `label`.

    The trainer's `gradient_clip_val` clips each peer by itself, and `accumulate_grad_batches` is
    followed; selection stays within each batch.

    Shape:
        `forward(images)`: images `(N, C, H, W)`; returns the logits of both peers, `(N, K, H, W)`.
    """

    def __init__(
        self,
        net_a: str | nn.Module = "unet",
        net_b: str | nn.Module | None = None,
        *,
        encoder_name: str | None = None,
        encoder_weights: str | None = None,
        in_channels: int = 3,
        classes: int = 2,
        noise_level: float | Literal["auto"] = 0.2,
        ramp_epochs: int | None = None,
        selection: Literal["whole_set", "relative", "eq1"] = "whole_set",
        step: Literal["picks", "joint"] = "picks",
        lambda_1: float = 1.0,
        lambda_2: float = 1e-5,
        include_background: bool = True,
        lr: float | tuple[float, float] = 1e-3,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        scheduler: Schedule | None = None,
        ignore_index: int = IGNORE_INDEX,
        **options: Any,
    ) -> None:
        super().__init__()
        known = isinstance(noise_level, int | float) and 0 <= noise_level < 1
        if noise_level != "auto" and not known:
            raise InputError(
                f"noise_level={noise_level} must be auto, or at least 0 and less than 1."
            )
        if selection not in ("whole_set", "relative", "eq1"):
            raise InputError(f"selection={selection!r} must be whole_set, relative or eq1.")
        if step not in ("picks", "joint"):
            raise InputError(f"step={step!r} must be picks or joint.")
        rates = tuple(lr) if isinstance(lr, Sequence) else (lr, lr)
        if len(rates) != 2:
            raise InputError(
                f"lr={lr} must be one learning rate, or one for each of the two peers."
            )
        if net_b is None and isinstance(net_a, nn.Module):
            raise InputError("net_a is a network, so net_b must be one too: CoSegModule(a, b).")
        given = [n for n, net in (("net_a", net_a), ("net_b", net_b)) if isinstance(net, nn.Module)]
        if options and len(given) == 2:
            raise InputError(
                f"{', '.join(sorted(options))}: there is no such argument of "
                f"{type(self).__name__}, and both networks are given ready."
            )
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *given])
        self.automatic_optimization = False  # two networks, one step
        self.estimates_noise = noise_level == "auto"
        self.noise_known = not self.estimates_noise
        self.noise_estimate: NoiseLevelEstimate | None = None
        self.noise_level = FALLBACK if noise_level == "auto" else noise_level
        self.ramp_epochs = ramp_epochs
        self.selection = selection
        self.step = step
        self.lambda_1 = lambda_1
        self.lambda_2 = lambda_2
        self.include_background = include_background
        self.lr = lr
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.optimization = PeerOptimization(monitor="val/dice_a")
        self.ignore_index = ignore_index
        self.estimator_found = False  # set by NoiseLevelEstimation
        self.ranker_found = False  # set by CorruptionRanking
        self._doubted: tuple[frozenset[str], frozenset[str]] | None = None
        self._ranked: frozenset[str] | None = None
        self._carry = 0.0

        def network(net: str | nn.Module) -> nn.Module:
            if isinstance(net, nn.Module):
                return net
            return build_network(
                net,
                encoder_name=encoder_name,
                encoder_weights=encoder_weights,
                in_channels=in_channels,
                classes=classes,
                **options,
            )

        self.net_a, self.net_b = network(net_a), network(net_b if net_b is not None else net_a)
        if same_weights(self.net_a, self.net_b):
            raise InputError(
                "Both peers have equal weights and would only teach each other what they know; "
                "initialise them differently."
            )
        self.classes = max(2, classes)
        self._unchecked = {"net_a", "net_b"}
        self.class_ids = ClassIds(self.classes, ignore_index)
        self.scores = nn.ModuleDict(
            {
                f"{stage}{peer}": SegmentationScores(self.classes, ignore_index)
                for stage in ("val", "test")
                for peer in ("_a", "_b")
            }
        )

    @override
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return any_size(self.net_a, images), any_size(self.net_b, images)

    @override
    def configure_callbacks(self) -> list[Callback]:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        self._doubted, self._carry = None, 0.0  # of an earlier fit, if it failed
        # This is the last hook before Lightning refuses some settings of the trainer.
        self.optimization.take_over(self, (self.net_a, self.net_b))
        return [self.optimization]

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        decay = l2_weight_decay(self.lambda_2)  # lambda_2 ||W||^2 of Eq. (2)
        rates = tuple(self.lr) if isinstance(self.lr, Sequence) else (self.lr, self.lr)
        groups = [
            {"params": list(net.parameters()), "name": name, "lr": rate, "weight_decay": decay}
            for name, net, rate in zip(
                ("net_a", "net_b"), (self.net_a, self.net_b), rates, strict=True
            )
        ]
        optimizer = made(self, self.optimizer_factory, groups, rates[0])
        return self.optimization.configured(optimizer, self.scheduler_factory)

    @override
    def on_fit_start(self) -> None:
        if self.estimates_noise and not self.estimator_found:
            raise InputError(
                'noise_level="auto" is set by a NoiseLevelEstimation; add one to the trainer\'s '
                "callbacks, or give the level."
            )

    @override
    def on_fit_end(self) -> None:
        self._doubted, self.ranker_found = None, False  # another fit may have no ranking

    def doubt(
        self, by_a: Collection[str], by_b: Collection[str], among: Collection[str] | None = None
    ) -> None:
        """From now on leave out samples that the other peer doubts, by their names.

        Args:
            by_a: What the first peer's ranking of the training set takes for noisy.
            by_b: What the second peer's does.
            among: All that were ranked, if a batch is to be refused that none of them is in.
        """
        self._doubted = frozenset(by_a), frozenset(by_b)
        self._ranked = None if among is None else frozenset(among)

    @property
    def never_selected(self) -> bool:
        """Whether the peers have learnt from all samples so far, though the level is known."""
        unused = self._selects_from_whole_set and self._doubted is None
        return unused and self.noise_known and self.noise_level > 0

    def set_noise_level_from(self, peer_a: Evidence, peer_b: Evidence) -> None:
        """Estimate the noise level of `auto`; it counts as known if it can be told."""
        self.noise_estimate = estimate_noise_level(peer_a, peer_b)
        self.noise_level = self.noise_estimate.noise_level
        self.noise_known = self.noise_estimate.separable
        rank_zero_info(f"Noise level: {self.noise_estimate}")

    @property
    def alpha(self) -> float:
        """The keep rate of the current epoch."""
        if not self.noise_known:
            return 1.0
        if self._selects_from_whole_set:
            return 1.0 if self._doubted is None else 1 - self.noise_level
        return self.ramp(self.noise_level)

    def ramp(self, noise_level: float) -> float:
        """The keep rate of a noise level in the current epoch, where batches are selected from."""
        ramp = 0 if self.estimates_noise else self.ramp_epochs
        if ramp is None:
            epochs = self.trainer.max_epochs
            ramp = 10 if epochs is None or epochs < 0 else round(0.3 * epochs)
        return keep_rate(self.current_epoch, noise_level, ramp)

    @property
    def _selects_from_whole_set(self) -> bool:
        return self.selection == "whole_set" and self.ranker_found

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        sample = read_batch(batch)
        if self.current_epoch == 0:
            self.class_ids.check(sample.masks)
        if self.selection == "whole_set" and sample.ids is None and self.ranker_found:
            rank_zero_warn(
                "The batches have no ids, so their samples cannot be found in a ranking of the "
                "whole training set: samples are selected batch by batch. Let the dataset give "
                "(image, mask, id)."
            )
            self.ranker_found = False
        optimizer = self.optimizers()
        if isinstance(optimizer, list):
            raise InputError(
                f"{type(self).__name__}.configure_optimizers gave {len(optimizer)} optimizers; "
                "give one with a group for each peer, so that a step of training counts once."
            )
        batches = self.optimization.batches
        skipped = sum(self.optimization.skipped)
        if batch_idx % batches == 0:
            optimizer.zero_grad()
        learn = self._learn_jointly if self._is_joint else self._learn_from_picks
        (loss_a, loss_b), picks, (same, compared) = learn(sample, batches)
        if (batch_idx + 1) % batches == 0 or self.trainer.is_last_batch:
            optimizer.step()
            self.optimization.step_schedules(self, "step", self.trainer.global_step)

        self._log_epoch(
            {
                "train/loss_a": loss_a,
                "train/loss_b": loss_b,
                "train/keep_rate": self.alpha,
            },
            batch_size=len(sample.images),
        )
        self._log_epoch({"train/agreement": same}, batch_size=compared)
        self.log("loss", (loss_a + loss_b) / 2, prog_bar=True, logger=False)
        skipped = sum(self.optimization.skipped) - skipped
        self.log("train/skipped", float(skipped), on_step=False, on_epoch=True, reduce_fx="sum")
        if sample.replaced is not None and picks is not None:
            clean = (~sample.replaced).float()
            for peer, chosen in zip("ab", picks, strict=True):
                # Also where nothing was picked, with weight 0: other processes wait for it.
                purity = clean[chosen].sum() / max(1, len(chosen))
                self._log_epoch({f"train/purity_{peer}": purity}, batch_size=len(chosen))

    def _learn_jointly(self, sample: Batch, batches: int) -> Learnt:
        """The whole batch through both peers, and one backward on the sum of their losses."""
        (logits_a, auxiliary_a), (logits_b, auxiliary_b) = self._outputs(sample.images)
        self._check(net_a=logits_a, net_b=logits_b)
        loss_a, loss_b, picks = self.peer_losses(logits_a, logits_b, sample)
        if picks is not None:
            loss_a = loss_a + self._auxiliary_loss("net_a", auxiliary_a, picks[1], sample.masks)
            loss_b = loss_b + self._auxiliary_loss("net_b", auxiliary_b, picks[0], sample.masks)
        else:  # what is chosen is no samples: auxiliary outputs learn as the others do
            for part in auxiliary_a:
                more, _, _ = self.peer_losses(part, logits_b.detach(), sample)
                loss_a = loss_a + auxiliary_weight(self.net_a) * more
            for part in auxiliary_b:
                _, more, _ = self.peer_losses(logits_a.detach(), part, sample)
                loss_b = loss_b + auxiliary_weight(self.net_b) * more
        # No parameter is shared: the gradient of the sum holds both peers' own gradients.
        self.manual_backward((loss_a + loss_b) / batches)
        same = agreement(
            logits_a.detach(), logits_b.detach(), sample.masks, ignore_index=self.ignore_index
        )
        return (loss_a.detach(), loss_b.detach()), picks, (same, len(sample.masks))

    def _outputs(self, images: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """The logits of both peers, and their networks' auxiliary ones, if they have any."""
        if is_overridden("forward", self, CoSegModule):
            return [(logits, []) for logits in self(images)]
        return [with_auxiliary(net, images) for net in (self.net_a, self.net_b)]

    def _auxiliary_loss(
        self, name: str, auxiliary: list[Tensor], picks: Tensor | None, masks: Tensor
    ) -> Tensor | float:
        """What a network's auxiliary logits learn from the samples that it learns from."""
        weight = auxiliary_weight(getattr(self, name))
        return weight * sum(self._loss_of(picks, part, masks) for part in auxiliary)

    def _learn_from_picks(self, sample: Batch, batches: int) -> Learnt:
        """Through each peer only what the other one picked, one after the other."""
        picks = self._picks_of(sample)
        losses, predicted = [], []
        for name, learnt in zip(("net_a", "net_b"), reversed(picks), strict=True):
            loss, classes = self._loss_on(name, sample, learnt)
            if not self._is_distributed:
                if loss.requires_grad:  # not of a peer that is frozen
                    self.manual_backward(loss / batches)
                loss = loss.detach()  # the graph is gone before the other peer's is built
            losses.append(loss)
            predicted.append(classes)
        if self._is_distributed:  # DDP waits for the gradients of both in one backward
            self.manual_backward((losses[0] + losses[1]) / batches)
        of_a, of_b = predicted
        both = (of_a >= 0) & (of_b >= 0) & (sample.masks != self.ignore_index)
        same = ((of_a == of_b) & both).sum() / both.sum().clamp_min(1)
        compared = len(set(picks[0].tolist()) & set(picks[1].tolist()))
        return (losses[0].detach(), losses[1].detach()), picks, (same, compared)

    def _loss_on(self, name: str, sample: Batch, picks: Tensor) -> tuple[Tensor, Tensor]:
        """A peer's loss on picked samples, Eq. (2), and the classes it predicts; -1 elsewhere."""
        classes = torch.full_like(sample.masks, -1)
        if not len(picks) and not self._is_distributed:  # zero gradients
            zero = torch.zeros((), device=sample.masks.device)
            for weight in getattr(self, name).parameters():
                zero = zero + weight.sum() * 0
            return zero, classes
        logits, auxiliary = self._logits_of(name, sample.images, picks)
        classes[picks] = predicted_classes(class_logits(logits.detach()))
        masks = sample.masks[picks]
        loss = self._loss_of(None, logits, masks)
        return loss + self._auxiliary_loss(name, auxiliary, None, masks), classes

    def _picks_of(self, sample: Batch) -> tuple[Tensor, Tensor]:
        """What each peer picks of a batch, with as little computing as that takes."""
        if self._selects_from_whole_set:
            return self._kept_of(sample)
        k = self.selection_size(len(sample.masks))
        if k == len(sample.masks):
            everything = torch.arange(k, device=sample.masks.device)
            return everything, everything
        with torch.no_grad(), evaluating(self):
            logits_a, logits_b = self(sample.images)
        # Older versions of torch keep the weights that autocast cast here, without gradients, for
        # the passes that follow (pytorch/pytorch#158232).
        torch.clear_autocast_cache()
        return self.picks(logits_a, sample.masks, k), self.picks(logits_b, sample.masks, k)

    def _logits_of(self, name: str, images: Tensor, picks: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A peer's logits of some images of a batch, and auxiliary ones if it has any.

        At least two images pass through it: BatchNorm after a global pooling has nothing to
        normalise in a single one, and where it is synchronised all processes must take part.
        """
        last = images.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        passing = images[picks]
        if len(picks) < 2:
            first = int(picks[0]) + 1 if len(picks) else 0
            others = torch.arange(first, first + 2 - len(picks)) % len(images)
            # They may be what was found bad: what is no number would spoil the gradient.
            companions = images[others.to(picks)].nan_to_num(0, 0, 0)
            passing = torch.cat([passing, companions])[: len(images)]
        logits, auxiliary = with_auxiliary(
            getattr(self, name), passing.contiguous(memory_format=order)
        )
        self._check(**{name: logits})
        return logits[: len(picks)], [part[: len(picks)] for part in auxiliary]

    @property
    def _is_joint(self) -> bool:
        own = any(is_overridden(name, self, CoSegModule) for name in ("forward", "peer_losses"))
        return self.step == "joint" or own

    @property
    def _is_distributed(self) -> bool:
        return isinstance(self.trainer.strategy, ParallelStrategy)

    def _check(self, **logits: Tensor) -> None:
        """Look at the first logits of each peer."""
        new = self._unchecked & set(logits)
        if new:
            check_logits(*(logits[name] for name in sorted(new)))
            self._unchecked -= new

    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """The losses that both peers learn from, and the samples of the batch that each picked.

        Another way to choose or to learn is a subclass with a `peer_losses` of its own, which is
        given the logits of the whole batch.

        Shape:
            logits `(N, K, H, W)`; returns two scalars and two index tensors, or None where it is
            not samples that are picked.
        """
        # Each peer picks the samples that it finds least corrupted ...
        if self._selects_from_whole_set:
            picks_a, picks_b = self._kept_of(sample)
        else:
            k = self.selection_size(len(sample.masks))
            picks_a = self.picks(logits_a, sample.masks, k)
            picks_b = self.picks(logits_b, sample.masks, k)
        # ... and learns from those that the other one picked, Eq. (2).
        loss_a = self._loss_of(picks_b, logits_a, sample.masks)
        loss_b = self._loss_of(picks_a, logits_b, sample.masks)
        return loss_a, loss_b, (picks_a, picks_b)

    def _kept_of(self, sample: Batch) -> tuple[Tensor, Tensor]:
        """Which samples of a batch each peer's ranking of the whole set keeps."""
        device = sample.masks.device
        if self._doubted is None:
            everything = torch.arange(len(sample.masks), device=device)
            return everything, everything
        assert sample.ids is not None
        names = [sample_name(id) for id in sample.ids]
        if self._ranked is not None and self._ranked.isdisjoint(names):
            raise InputError(
                f"The batch holds {names[0]!r}, but {min(self._ranked)!r} and others were ranked; "
                "the dataset of CorruptionRanking must have the ids of the training dataset."
            )

        def places(doubted: frozenset[str]) -> Tensor:
            found = [n for n, name in enumerate(names) if name not in doubted]
            return torch.tensor(found, dtype=torch.long, device=device)

        return places(self._doubted[0]), places(self._doubted[1])

    def _loss_of(self, picks: Tensor | None, logits: Tensor, masks: Tensor) -> Tensor:
        """The mean loss of what was picked, or of all."""
        if picks is not None:
            logits, masks = logits[picks], masks[picks]
        if not len(masks):
            return logits.sum()  # of nothing: a gradient, since other processes wait for one
        return self.losses(logits, masks).mean()

    def selection_size(self, batch_size: int) -> int:
        """How many samples of this batch to keep; call it once a batch."""
        k, self._carry = selection_size(batch_size, self.alpha, self._carry)
        return k

    @torch.no_grad()
    def picks(self, logits: Tensor, masks: Tensor, k: int) -> Tensor:
        """Indices of the k samples of a batch that a peer finds least corrupted, `(k,)`."""
        score = corruption_score if self.selection == "eq1" else relative_score
        return small_score_selection(score(logits, masks, ignore_index=self.ignore_index), k)

    def losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Each sample's loss, Eq. (2), `(N,)`."""
        return segmentation_loss(
            logits,
            masks,
            lambda_1=self.lambda_1,
            include_background=self.include_background,
            ignore_index=self.ignore_index,
        )

    def _log_epoch(self, values: dict[str, Any], batch_size: int) -> None:
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Not in on_train_epoch_end: there the progress bar of process 0 may already be waiting for
        # the others to reduce its metrics, and two different collectives would meet.
        if self.trainer.is_last_batch:
            average_buffers(self)
            if self.current_epoch == 0:
                self.class_ids.check_epoch(self)

    @override
    def on_validation_start(self) -> None:
        average_buffers(self)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score("val", batch)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score("test", batch)

    def _score(self, stage: str, batch: Any) -> None:
        sample = read_batch(batch)
        for peer, logits in zip(("_a", "_b"), self(sample.images), strict=True):
            scores = self.scores[stage + peer]
            assert isinstance(scores, SegmentationScores)
            scores.update(predicted_classes(class_logits(logits)), sample.masks)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for peer in ("_a", "_b"):
            scores = self.scores[stage + peer]
            assert isinstance(scores, SegmentationScores)
            self.log_dict(scores.named(stage, peer), sync_dist=True)
            scores.reset()

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean class probabilities of both peers, `(N, K, H, W)`."""
        logits_a, logits_b = self(images_of(batch))
        return (class_logits(logits_a).softmax(dim=1) + class_logits(logits_b).softmax(dim=1)) / 2

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["selection_carry"] = self._carry
        doubted = self._doubted
        checkpoint["doubted"] = None if doubted is None else [sorted(part) for part in doubted]
        estimate = self.noise_estimate
        checkpoint["noise_estimate"] = None if estimate is None else asdict(estimate)
        # The weights are in the checkpoint: loading it must not download others first.
        checkpoint.get("hyper_parameters", {})["encoder_weights"] = None

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._carry = checkpoint.get("selection_carry", 0.0)
        if checkpoint.get("doubted") is not None:
            self.doubt(*checkpoint["doubted"])
        if self.estimates_noise and checkpoint.get("noise_estimate") is not None:
            self.noise_estimate = NoiseLevelEstimate(**checkpoint["noise_estimate"])
            self.noise_level = self.noise_estimate.noise_level
            self.noise_known = self.noise_estimate.separable


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks have the same parameters, in shape and value."""
    a, b = list(first.parameters()), list(second.parameters())
    return len(a) == len(b) and all(map(torch.equal, a, b))
