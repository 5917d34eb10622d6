"""Selection policies: which samples the peers pick for each other (section 2.1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import (
    IGNORE_INDEX,
    corruption_score,
    keep_rate,
    selection_size,
    small_score_selection,
)
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.recipe import SELECTIONS, Recipe, plain_number
from coseg_lightning.ranking.evidence import relative_score
from coseg_lightning.ranking.ranking import Ranking

Logits = tuple[Tensor, Tensor]  # logits of the first and the second peer, (N, K, H, W)
Picks = tuple[Tensor, Tensor]  # indices in a batch that each peer picks for the other, (n,)


class TrainingSetRanker(Callback):
    """A callback that ranks the whole training set during training, for `Selection.update`."""


class Selection(ABC):
    """A policy that decides which samples of a batch each peer picks.

    Each `CoSegModule` owns one policy. Derive a class from this one to select in another way:
    `CoSegModule(a, b, selection=YourSelection())`.
    """

    uses_rankings = False  # whether `update` should be called during training

    @abstractmethod
    def __call__(self, batch: Batch, predict: Callable[[], Logits], alpha: float) -> Picks:
        """Pick samples.

        Args:
            batch: The batch.
            predict: Returns both peers' logits of the batch, without gradients. It may cost a
                forward pass.
            alpha: The keep rate.

        Returns:
            The indices in the batch that each peer picks.
        """

    @abstractmethod
    def keep_rate(self, noise_level: float, epoch: int, max_epochs: int | None) -> float:
        """Return alpha, the share of samples that is kept in an epoch.

        Args:
            noise_level: NoL.
            epoch: The epoch, counted from 0.
            max_epochs: The number of epochs, by the trainer's limit of epochs or of steps; None or
                -1 if it is unknown.
        """

    def begin_fit(self, *, ranked: bool) -> None:  # noqa: B027
        """Reset the policy; `ranked` says whether a callback will rank the training set."""

    def update(self, ranking: Ranking) -> None:  # noqa: B027
        """Use a new ranking of the whole training set from now on."""

    @property
    def waits_for_ranking(self) -> bool:
        """Whether all samples are kept so far because there is no ranking yet."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the policy's state as plain values for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the policy's state from a checkpoint."""


class PerBatch(Selection):
    """Picks the least corrupted samples of every batch, as printed in the paper.

    Args:
        score: `eq1` is the cross-entropy of Eq. (1), which picks the easy images of a varied set.
            `relative` is the cross-entropy divided by the entropy that the peer expects.
        ramp_epochs: Number of epochs over which the keep rate falls from 1 to 1 - NoL. None means
            30 % of the epochs, and 0 means a constant keep rate.
        ignore_index: Class id of unlabelled pixels.
    """

    SCORES: ClassVar = {"eq1": corruption_score, "relative": relative_score}

    def __init__(
        self, score: str, ramp_epochs: int | None, *, ignore_index: int = IGNORE_INDEX
    ) -> None:
        self.score = self.SCORES[score]
        self.ramp_epochs = ramp_epochs
        self.ignore_index = ignore_index
        self.carry = 0.0

    @override
    def __call__(self, batch: Batch, predict: Callable[[], Logits], alpha: float) -> Picks:
        k = self.size(len(batch.masks), alpha)
        if k == len(batch.masks):
            return everything(batch)
        logits_a, logits_b = predict()
        return self.least_corrupted(logits_a, batch, k), self.least_corrupted(logits_b, batch, k)

    @torch.no_grad()
    def least_corrupted(self, logits: Tensor, batch: Batch, k: int) -> Tensor:
        """Return the indices of the k samples with the smallest scores, `(k,)`."""
        scores = self.score(logits, batch.masks, ignore_index=self.ignore_index)
        return small_score_selection(scores, k)

    def size(self, batch_size: int, alpha: float) -> int:
        """Return how many samples of a batch to keep; call it once per batch."""
        k, self.carry = selection_size(batch_size, alpha, self.carry)
        return k

    @override
    def keep_rate(self, noise_level: float, epoch: int, max_epochs: int | None) -> float:
        return ramped_keep_rate(noise_level, epoch, max_epochs, self.ramp_epochs)

    @override
    def begin_fit(self, *, ranked: bool) -> None:
        self.carry = 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"carry": self.carry}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.carry = state["carry"]


class WholeSet(Selection):
    """Picks the samples that a peer's ranking of the whole training set keeps (the default).

    The peers learn from all samples until the first ranking. Samples are picked batch by batch if
    there is no `CorruptionRanking` among the callbacks, or if the batches have no ids.

    Args:
        per_batch: The policy without rankings or ids.

    Attributes:
        excluded_ids: The ids that each peer's last ranking excludes as noisy, or None before the
            first ranking.
    """

    uses_rankings = True

    def __init__(self, per_batch: Selection) -> None:
        self.per_batch = per_batch
        self.excluded_ids: tuple[frozenset[str], frozenset[str]] | None = None
        self._ranked_ids: frozenset[str] = frozenset()
        self._rankings_come = False
        self._batches_have_ids = True

    @property
    def ignore_index(self) -> int:
        """Class id of unlabelled pixels."""
        index: int = getattr(self.per_batch, "ignore_index", IGNORE_INDEX)
        return index

    @property
    def _is_per_batch(self) -> bool:
        ranked = self._rankings_come or self.excluded_ids is not None
        return not (ranked and self._batches_have_ids)

    @override
    def __call__(self, batch: Batch, predict: Callable[[], Logits], alpha: float) -> Picks:
        if batch.ids is None and not self._is_per_batch:
            self._go_without_ids()
        if self._is_per_batch:
            return self.per_batch(batch, predict, alpha)
        if self.excluded_ids is None:
            return everything(batch)
        assert batch.ids is not None
        names = [sample_name(sample_id) for sample_id in batch.ids]
        self._check_ranked(names)
        excluded_by_a, excluded_by_b = self.excluded_ids
        return kept(names, excluded_by_a, batch), kept(names, excluded_by_b, batch)

    def _go_without_ids(self) -> None:
        rank_zero_warn(
            "The batches have no ids, so their samples cannot be found in a ranking of the whole "
            "training set. They are selected within each batch instead. Let the dataset return "
            "(image, mask, id)."
        )
        self._batches_have_ids = False

    def _check_ranked(self, names: list[str]) -> None:
        if self._ranked_ids and self._ranked_ids.isdisjoint(names):
            raise InputError(
                f"The batch holds {names[0]!r}, but the ranking holds other ids, such as "
                f"{min(self._ranked_ids)!r}; the dataset of CorruptionRanking must have the ids of "
                "the training dataset."
            )

    @override
    def keep_rate(self, noise_level: float, epoch: int, max_epochs: int | None) -> float:
        if self._is_per_batch:
            return self.per_batch.keep_rate(noise_level, epoch, max_epochs)
        return 1.0 if self.excluded_ids is None else 1 - noise_level

    @override
    def begin_fit(self, *, ranked: bool) -> None:
        self.per_batch.begin_fit(ranked=ranked)
        self.excluded_ids, self._ranked_ids = None, frozenset()
        self._rankings_come, self._batches_have_ids = ranked, True

    @override
    def update(self, ranking: Ranking) -> None:
        self.exclude(*ranking.excluded_by_peers, among=ranking.ids)

    def exclude(
        self, by_a: Collection[str], by_b: Collection[str], among: Collection[str] = ()
    ) -> None:
        """Exclude samples from now on, by their names.

        Args:
            by_a: The samples that the first peer's ranking of the training set counts as noisy.
            by_b: The same of the second peer.
            among: All ranked samples. If given, a batch that holds none of them is refused.
        """
        self.excluded_ids = frozenset(by_a), frozenset(by_b)
        self._ranked_ids = frozenset(among)

    @property
    @override
    def waits_for_ranking(self) -> bool:
        return not self._is_per_batch and self.excluded_ids is None

    @override
    def state_dict(self) -> dict[str, Any]:
        excluded = self.excluded_ids
        ids = None if excluded is None else [sorted(peer_ids) for peer_ids in excluded]
        return {"excluded_ids": ids, "per_batch": self.per_batch.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["excluded_ids"] is not None:
            by_a, by_b = state["excluded_ids"]
            self.excluded_ids = frozenset(by_a), frozenset(by_b)
        self.per_batch.load_state_dict(state["per_batch"])


def everything(batch: Batch) -> Picks:
    """Pick all samples of a batch for both peers."""
    indices = torch.arange(len(batch.masks), device=batch.masks.device)
    return indices, indices


def kept(names: list[str], excluded: frozenset[str], batch: Batch) -> Tensor:
    """Return the indices of the samples that are not excluded."""
    indices = [index for index, name in enumerate(names) if name not in excluded]
    return torch.tensor(indices, dtype=torch.long, device=batch.masks.device)


def ramped_keep_rate(
    noise_level: float, epoch: int, max_epochs: int | None, ramp_epochs: int | None
) -> float:
    """Apply `keep_rate` with a default ramp: 30 % of the epochs, or 10 if they are unlimited."""
    if ramp_epochs is None:
        ramp_epochs = 10 if max_epochs is None or max_epochs < 0 else round(0.3 * max_epochs)
    return keep_rate(epoch, noise_level, ramp_epochs)


def make_selection(
    selection: str | Selection, ramp_epochs: int | None, ignore_index: int
) -> Selection:
    """Make a policy by its name in the settings: whole_set, relative or eq1.

    Args:
        selection: The name; or a policy, which is returned as it is.
        ramp_epochs: See `PerBatch`.
        ignore_index: Class id of unlabelled pixels.

    Raises:
        InputError: If there is no policy of this name, the policy has settings of its own, or
            `ramp_epochs` is no whole number.
    """
    if isinstance(selection, Selection):
        own_index = getattr(selection, "ignore_index", ignore_index)
        if ramp_epochs or own_index != ignore_index:
            raise InputError(
                f"ramp_epochs={ramp_epochs} and ignore_index={ignore_index} must be set in the "
                f"{type(selection).__name__} itself; leave ramp_epochs out here, and give it the "
                "same ignore_index."
            )
        return selection
    epochs = plain_number(ramp_epochs)
    is_whole = isinstance(epochs, float) and epochs.is_integer()
    Recipe(ramp_epochs=int(epochs) if is_whole else epochs)  # the recipe checks it
    if selection not in SELECTIONS:
        raise InputError(f"selection={selection!r} must be whole_set, relative or eq1.")
    if selection == "whole_set":
        return WholeSet(PerBatch("relative", ramp_epochs, ignore_index=ignore_index))
    return PerBatch(selection, ramp_epochs, ignore_index=ignore_index)


def saved_state(selection: Selection) -> dict[str, Any]:
    """Return a policy's state for a checkpoint, with the policy's name."""
    return {"policy": type(selection).__name__, "state": selection.state_dict()}


def restore_selection(selection: Selection, checkpoint: dict[str, Any]) -> None:
    """Restore a policy's state from a checkpoint, also from one of version 0.1.

    The state of another kind of policy is not used, with a warning.
    """
    if "selection" not in checkpoint:
        carry = {"carry": checkpoint.get("selection_carry", 0.0)}
        whole_set = {"excluded_ids": checkpoint.get("doubted"), "per_batch": carry}
        selection.load_state_dict(whole_set if isinstance(selection, WholeSet) else carry)
        return
    saved, policy = checkpoint["selection"], type(selection).__name__
    if saved["policy"] == policy:
        selection.load_state_dict(saved["state"])
    else:
        rank_zero_warn(
            f"The checkpoint holds the state of the selection policy {saved['policy']}, but this "
            f"module has {policy}, which starts without a state; this matters only if training "
            "continues."
        )


def save_state(module: Any, checkpoint: dict[str, Any]) -> None:
    """Save the state of a pair's selection and noise level into a checkpoint."""
    checkpoint["selection"] = saved_state(module.selection)
    checkpoint["noise_estimate"] = module.noise.state_dict()


def load_state(module: Any, checkpoint: dict[str, Any]) -> None:
    """Restore the state of a pair's selection and noise level from a checkpoint."""
    restore_selection(module.selection, checkpoint)
    module.noise.load_state_dict(checkpoint.get("noise_estimate"))
