"""CoSegModule: robust training of two peers on noisy labels (section 2.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    agreement,
    class_logits,
    l2_weight_decay,
    predicted_classes,
)
from coseg_lightning.modules import compat
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.epochs import epochs_of_schedule, goes_on
from coseg_lightning.modules.measurement import measurement_of
from coseg_lightning.modules.noise_level import NoiseLevel
from coseg_lightning.modules.optimizers import (
    PeerOptimization,
    Schedule,
    build_optimizer,
    check_nothing_left,
    log_skipped,
    parameter_group,
)
from coseg_lightning.modules.passes import (
    agreement_of_picks,
    check_first_logits,
    judged_logits,
    logits_of_picks,
    no_gradient_loss,
)
from coseg_lightning.modules.recipe import STEPS, Recipe, plain_number
from coseg_lightning.modules.renamed import RenamedOfPeers
from coseg_lightning.modules.selection import (
    Logits,
    Picks,
    Selection,
    TrainingSetRanker,
    load_state,
    make_selection,
    save_state,
)
from coseg_lightning.modules.steps import SegmentationSteps, of_named_networks
from coseg_lightning.networks.build import build_network
from coseg_lightning.networks.forward import any_size, auxiliary_weight, with_auxiliary
from coseg_lightning.networks.mirror import MIRROR, NO_NETWORK, Mirror


@dataclass(frozen=True)
class Learnt:
    """The results of a training step, for logging.

    Args:
        loss_a: The first peer's loss, detached from its graph.
        loss_b: The second peer's loss, detached.
        picks: The samples that each peer picked, or None if the method does not pick samples.
        agreement: The share of pixels for which both peers predict the same class.
        compared: The number of samples over which the agreement was computed.
        learnt_from: The samples that each peer learnt from, or None if it is not known.
    """

    loss_a: Tensor
    loss_b: Tensor
    picks: Picks | None
    agreement: Tensor
    compared: int
    learnt_from: Picks | None = None


class CoSegModule(RenamedOfPeers, SegmentationSteps):
    """Two networks, each learning only from the samples that its peer finds least corrupted.

    Batches are `(image, mask)`, `(image, mask, id)`, or dicts with `image` and `mask` or `label`.
    Under DDP each process selects within its own batch. The trainer's `gradient_clip_val` clips
    each peer separately. With `accumulate_grad_batches`, selection stays within each batch.

    Args:
        net_a: A network, or its name; see `coseg_lightning.networks.build_network`.
        net_b: Its peer; by default a second network of the same name. Their weights must differ.
            `mirror` trains the first network alone, see `Mirror`.
        encoder_name: The encoder, for networks given by name.
        encoder_weights: Its pretrained weights; by default none, and nothing is downloaded.
        in_channels: Number of image channels, for networks given by name.
        classes: Number of classes K, including background. Give 1 for a binary network with a
            single output, the foreground's logit; its masks hold 0 and 1.
        noise_level: NoL, the share of training samples with noisy labels, `0 <= NoL < 1`. With
            `auto` the peers learn from all samples for half of the epochs. Then a
            `NoiseLevelEstimation` among the callbacks estimates the level. If it cannot, the
            peers learn from all samples to the end, and a `CorruptionRanking` tries again.
        ramp_epochs: See `Recipe`; an estimated level has no ramp.
        selection: See `Recipe`; or a `Selection` of your own.
        step: Which samples pass through the peers. `picks`: only those that a peer learns from,
            so that a single device holds one peer's graph at a time. To select by batch, both
            peers first judge the whole batch, in evaluation mode and without gradients. `joint`:
            the whole batch, as printed. Samples that are not picked then still enter BatchNorm's
            statistics. A subclass with its own `forward` or `peer_losses` has a joint step.
        lambda_1: See `Recipe`.
        lambda_2: See `Recipe`.
        include_background: See `Recipe`.
        lr: Learning rate, or one for each peer.
        optimizer: Called with the parameter groups, which are named net_a and net_b, and `lr=`.
        scheduler: Called with the optimizer. It returns a torch scheduler, which is stepped each
            epoch, or Lightning's dict with `scheduler`, `interval`, `frequency`, `monitor`. A
            `ReduceLROnPlateau` monitors `val/dice_a` unless it names another metric.
        ignore_index: Class id of unlabelled pixels.
        options: Further arguments of networks given by name.

    Shape:
        `forward(images)`: images `(N, C, H, W)`; returns the logits of both peers, `(N, K, H, W)`.
    """

    suffixes = ("_a", "_b")
    network_names = ("net_a", "net_b")

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
        ramp_epochs: int | None = Recipe.ramp_epochs,
        selection: str | Selection = Recipe.selection,
        step: str = Recipe.step,
        lambda_1: float = Recipe.lambda_1,
        lambda_2: float = Recipe.lambda_2,
        include_background: bool = Recipe.include_background,
        lr: float | tuple[float, float] = Recipe.lr,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        scheduler: Schedule | None = None,
        ignore_index: int = IGNORE_INDEX,
        **options: Any,
    ) -> None:
        noise_level, lr, lambda_1, lambda_2 = plain_number((noise_level, lr, lambda_1, lambda_2))
        super().__init__(
            classes,
            ignore_index,
            lambda_1=lambda_1,
            lambda_2=lambda_2,
            include_background=include_background,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        if step not in STEPS:
            raise InputError(f"step={step!r} must be picks or joint.")
        if net_b is None and isinstance(net_a, nn.Module):
            raise InputError("net_a is a network, so net_b must be one too: CoSegModule(a, b).")
        ready = [n for n, net in (("net_a", net_a), ("net_b", net_b)) if isinstance(net, nn.Module)]
        are_ready = len(ready) + (net_b == MIRROR) == 2
        spare = of_named_networks(self, are_ready, encoder_name, encoder_weights, options)
        own = ["selection"] if isinstance(selection, Selection) else []
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *ready, *spare, *own])
        self.automatic_optimization = False  # each step trains two networks
        self.noise = NoiseLevel(noise_level)
        self.ramp_epochs = 0 if self.noise.is_estimated else ramp_epochs
        self.selection = make_selection(selection, self.ramp_epochs, ignore_index)
        self.step_kind = step
        self.lr = lr
        self.optimization = PeerOptimization(monitor="val/dice_a")

        def network(net: str | nn.Module) -> nn.Module:
            if isinstance(net, nn.Module):
                return net
            return build_network(
                net,
                encoder_name=encoder_name,
                encoder_weights=encoder_weights,
                in_channels=in_channels,
                classes=classes,
                **options,  # passed here so that LightningCLI finds the possible options
            )

        self.net_a = network(net_a)
        other = net_a if net_b is None else net_b
        self.net_b = Mirror(self.net_a) if other == MIRROR else network(other)
        check_pair(self)
        self.checked_networks: dict[str, int] = {}

    @override
    def forward(self, images: Tensor) -> Logits:
        return any_size(self.net_a, images), any_size(self.net_b, images)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Pick samples, exchange and learn from them (section 2.1); return the mean loss."""
        sample = self.read(batch)
        self.optimization.zero_grad(self, batch_idx)
        learnt = self.learn_jointly(sample) if self.is_joint else self.learn_from_picks(sample)
        self.optimization.step(self, batch_idx)
        self.log_step(learnt, sample)
        return (learnt.loss_a + learnt.loss_b) / 2

    def learn_from_picks(self, sample: Batch) -> Learnt:
        """Train each peer only on the samples that the other one picked, one peer at a time."""
        # "Each network picks up a small proportion of high-quality samples in every mini-batch",
        picks = self.selection(sample, partial(judged_logits, self, sample.images), self.alpha)
        # and "such high-quality samples will be fed to its peer network for back propagation".
        is_alone = isinstance(self.net_b, Mirror)  # then it learns from its own picks
        for_a, for_b = picks if is_alone else self.exchange(*picks)
        loss_a, classes_a = self.peer_loss("net_a", sample, for_a)
        loss_a = self.backward_alone(loss_a)  # frees the graph before the other peer's is built
        loss_b, classes_b = loss_a.detach(), classes_a
        if not is_alone:
            loss_b, classes_b = self.peer_loss("net_b", sample, for_b)
            loss_b = self.backward_alone(loss_b)
        if self.is_distributed:  # DDP expects the gradients of both peers in one backward pass
            self.manual_backward((loss_a + loss_b) / self.optimization.batches)
        same, compared = agreement_of_picks(
            classes_a, classes_b, picks, sample.masks, self.ignore_index
        )
        return Learnt(loss_a.detach(), loss_b.detach(), picks, same, compared, (for_a, for_b))

    @staticmethod
    def exchange(picks_a: Tensor, picks_b: Tensor) -> Picks:
        """Return the samples that each peer learns from: those that the other one picked."""
        return picks_b, picks_a

    def peer_loss(self, name: str, sample: Batch, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a peer's loss on picked samples, Eq. (2), and its classes; -1 for the others."""
        net, classes = getattr(self, name), torch.full_like(sample.masks, -1)
        if not len(picks) and not self.is_distributed:
            return no_gradient_loss(net), classes
        logits, auxiliary = logits_of_picks(net, sample.images, picks)
        check_first_logits(self.checked_networks, self.classes, **{name: logits})
        classes[picks] = predicted_classes(class_logits(logits.detach()))
        masks = sample.targets[picks]
        return self.mean_loss(logits, masks) + self.auxiliary_loss(net, auxiliary, masks), classes

    def backward_alone(self, loss: Tensor) -> Tensor:
        """Backpropagate one peer's loss and free its graph, unless DDP must wait for the other."""
        if self.is_distributed:
            return loss
        if loss.requires_grad:  # false for a frozen peer
            self.manual_backward(loss / self.optimization.batches)
        return loss.detach()

    def learn_jointly(self, sample: Batch) -> Learnt:
        """Pass the whole batch through both peers; one backward pass on the sum of their losses."""
        (logits_a, auxiliary_a), (logits_b, auxiliary_b) = self.all_logits(sample.images)
        check_first_logits(self.checked_networks, self.classes, net_a=logits_a, net_b=logits_b)
        loss_a, loss_b, picks = self.peer_losses(logits_a, logits_b, sample)
        learnt_from = None
        if picks is not None:  # auxiliary outputs learn from the same samples as their network
            for_a, for_b = learnt_from = self.exchange(*picks)
            aux_a, aux_b = ([part[for_a] for part in auxiliary_a], [p[for_b] for p in auxiliary_b])
            loss_a = loss_a + self.auxiliary_loss(self.net_a, aux_a, sample.targets[for_a])
            loss_b = loss_b + self.auxiliary_loss(self.net_b, aux_b, sample.targets[for_b])
        else:
            weight_a, weight_b = auxiliary_weight(self.net_a), auxiliary_weight(self.net_b)
            for part in auxiliary_a:
                loss_a = loss_a + weight_a * self.peer_losses(part, logits_b.detach(), sample)[0]
            for part in auxiliary_b:
                loss_b = loss_b + weight_b * self.peer_losses(logits_a.detach(), part, sample)[1]
        # The peers share no parameter, so the sum gives each peer the gradient of its own loss.
        self.manual_backward((loss_a + loss_b) / self.optimization.batches)
        same = agreement(
            logits_a.detach(), logits_b.detach(), sample.masks, ignore_index=self.ignore_index
        )
        return Learnt(loss_a.detach(), loss_b.detach(), picks, same, len(sample.masks), learnt_from)

    def all_logits(self, images: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """Compute both peers' logits, and the auxiliary logits of networks that have them."""
        if is_overridden("forward", self, CoSegModule):
            return [(logits, []) for logits in _both(self(images), of=type(self).__name__)]
        return [with_auxiliary(net, images) for net in (self.net_a, self.net_b)]

    def peer_losses(
        self, logits_a: Tensor, logits_b: Tensor, sample: Batch
    ) -> tuple[Tensor, Tensor, Picks | None]:
        """Compute both peers' losses, and the samples of the batch that each picked.

        Override this in a subclass to train the peers in another way.

        Shape:
            logits of the whole batch, `(N, K, H, W)`; returns two scalars, and two index tensors,
            or None if the method does not pick samples.
        """
        picks = self.selection(sample, lambda: (logits_a, logits_b), self.alpha)
        for_a, for_b = self.exchange(*picks)
        loss_a = self.mean_loss(logits_a[for_a], sample.targets[for_a])
        loss_b = self.mean_loss(logits_b[for_b], sample.targets[for_b])
        return loss_a, loss_b, picks

    def auxiliary_loss(
        self, net: nn.Module, auxiliary: list[Tensor], masks: Tensor
    ) -> Tensor | float:
        """Compute the weighted loss of a network's auxiliary logits."""
        return auxiliary_weight(net) * sum(self.mean_loss(part, masks) for part in auxiliary)

    def mean_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Compute the mean loss; without samples it is 0, with the gradient that DDP expects."""
        return self.losses(logits, masks).mean() if len(masks) else logits.sum()

    def losses(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Compute each sample's loss, Eq. (2), `(N,)`."""
        return self.supervised_losses(logits, masks)

    def log_step(self, learnt: Learnt, sample: Batch) -> None:
        """Log losses, keep rate and agreement, and the share of clean picks if it is known."""
        self.log_epoch({"train/keep_rate": self.alpha}, batch_size=len(sample.images))
        log_losses(self, learnt, len(sample.images))
        if not isinstance(self.net_b, Mirror):  # what learns alone agrees with itself
            self.log_epoch({"train/agreement": learnt.agreement}, batch_size=learnt.compared)
        self.log_progress((learnt.loss_a + learnt.loss_b) / 2)
        log_skipped(self, self.optimization.skipped_now)
        if sample.replaced is not None and learnt.picks is not None:
            log_purity(self, ~sample.replaced, learnt.picks)

    @property
    def alpha(self) -> float:
        """The keep rate of the current epoch."""
        if not self.noise.known:
            return 1.0
        trainer = compat.trainer_of(self)
        epochs = None if trainer is None else epochs_of_schedule(trainer)
        return self.selection.keep_rate(self.noise_level, self.current_epoch, epochs)

    @property
    def noise_level(self) -> float:
        """NoL: the given or estimated level, or a cautious guess before the estimate."""
        return self.noise.level

    @property
    def is_joint(self) -> bool:
        """Whether the whole batch passes through both peers."""
        own = any(is_overridden(name, self, CoSegModule) for name in ("forward", "peer_losses"))
        return self.step_kind == "joint" or own

    @property
    def is_distributed(self) -> bool:
        """Whether other processes wait for this one's gradients."""
        return isinstance(self.trainer.strategy, ParallelStrategy)

    @override
    def configure_callbacks(self) -> list[Callback]:
        if self.trainer.state.fn != TrainerFn.FITTING:
            return measurement_of(self.trainer)
        # This is the last hook before Lightning refuses some of the trainer's settings.
        self.optimization.take_over(self, (self.net_a, self.net_b))
        return [*measurement_of(self.trainer), self.optimization]

    def begin_fit(self, callbacks: Sequence[Callback]) -> None:
        """Inspect the callbacks of a new fit; `PeerOptimization` calls this."""
        self.noise.begin_fit(callbacks, goes_on=goes_on(self.trainer))
        self.selection.begin_fit(ranked=any(isinstance(c, TrainingSetRanker) for c in callbacks))

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = groups_of_peers(self)
        check_nothing_left(self, groups)
        optimizer = build_optimizer(self, self.optimizer_factory, groups, groups[0]["lr"])
        return self.optimization.with_schedule(self, optimizer, self.scheduler_factory)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        save_state(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        load_state(self, checkpoint)


def _both(logits: Any, of: str) -> Logits:
    """Raise an `InputError` unless a subclass's `forward` gave both peers' logits."""
    if not isinstance(logits, tuple | list) or len(logits) != 2:
        raise InputError(
            f"{of}.forward returned a {type(logits).__name__}; it must return the logits of both "
            "peers, as super().forward(images) does."
        )
    return logits[0], logits[1]


def pair_of_rates(lr: float | Sequence[float]) -> tuple[float, float]:
    """Return one learning rate for each peer.

    Raises:
        InputError: If there are not one or two rates, or one is no number of at least 0.
    """
    rates = tuple(lr) if isinstance(lr, Sequence) and not isinstance(lr, str) else (lr, lr)
    if len(rates) != 2:
        raise InputError(f"lr={lr} must be one learning rate, or one for each of the two peers.")
    for rate in rates:
        Recipe(lr=rate)  # which checks it
    return rates[0], rates[1]


def groups_of_peers(module: CoSegModule) -> list[dict[str, Any]]:
    """Return each peer's parameter group; a mirror has none."""
    decay = l2_weight_decay(module.lambda_2)  # lambda_2 ||W||^2 of Eq. (2)
    names = module.network_names[: 1 if isinstance(module.net_b, Mirror) else 2]
    rates = pair_of_rates(module.lr)
    return [
        parameter_group(module, name, lr, decay) for name, lr in zip(names, rates, strict=False)
    ]


def log_losses(module: CoSegModule, learnt: Learnt, batch_size: int) -> None:
    """Log both peers' losses; the loss of no sample is 0, which is not to lower the mean."""
    losses = {"train/loss_a": learnt.loss_a, "train/loss_b": learnt.loss_b}
    if isinstance(module.net_b, Mirror):
        del losses["train/loss_b"]  # it is the first peer's
    for number, (name, loss) in enumerate(losses.items()):
        has_learnt = learnt.learnt_from is None or len(learnt.learnt_from[number]) > 0
        module.log_epoch({name: loss}, batch_size=batch_size if has_learnt else 0)


def log_purity(module: CoSegModule, clean: Tensor, picks: Picks) -> None:
    """Log the share of clean samples, `(N,)` booleans, among those that each peer picked."""
    for peer, picked in zip("ab", picks, strict=True):
        # Log even if nothing was picked, with weight 0, since other processes wait for it.
        purity = clean.float()[picked].sum() / max(1, len(picked))
        module.log_epoch({f"train/purity_{peer}": purity}, batch_size=len(picked))


def check_pair(module: CoSegModule) -> None:
    """Raise an `InputError` if a module's two networks cannot be peers.

    Two networks must not share a parameter, or have equal parameters. Of a network and its mirror
    only the first one learns, by itself and at one rate.
    """
    net_a, net_b = module.net_a, module.net_b
    pair_of_rates(module.lr)
    is_alone = isinstance(net_b, Mirror)
    if isinstance(net_a, Mirror) or (isinstance(net_b, Mirror) and not net_b.is_of(net_a)):
        raise InputError(NO_NETWORK)
    if is_alone and (module.is_joint or is_overridden("exchange", module, CoSegModule)):
        raise InputError(
            f"{type(module).__name__} trains two networks together, which a network and its mirror "
            "are not; give a second network, or step='picks' with CoSegModule itself."
        )
    if is_alone and isinstance(module.lr, Sequence):
        raise InputError(f"lr={module.lr} has two rates, but only one network learns; give one.")
    a, b = list(net_a.parameters()), list(net_b.parameters())
    if {id(weight) for weight in a} & {id(weight) for weight in b}:
        raise InputError(
            "The peers share parameters, so they cannot judge each other; give two separate "
            "networks, for example by copy.deepcopy, or CoSegModule(network, 'mirror')."
        )
    are_drawn = not any(map(is_lazy, [*a, *b]))  # otherwise the first batch draws them
    if are_drawn and len(a) == len(b) and all(map(torch.equal, a, b)):
        raise InputError(
            "Both peers have equal weights, so they could not learn from each other; initialise "
            "them differently."
        )
