"""The recipe: all settings of the method, with their measured default values.

This module imports neither torch nor Lightning, so that the command line's help appears at once.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from coseg_lightning.errors import InputError

SELECTIONS = ("whole_set", "relative", "eq1")
STEPS = ("picks", "joint")
# Copies of the names in `functional.losses.PIXEL_LOSSES` and `ranking.scores.SCORES`, which would
# import torch and scipy; tests/modules/test_recipe.py compares them.
PIXEL_LOSSES = ("cross_entropy", "generalised_cross_entropy", "symmetric_cross_entropy")
SCORES = (
    *("joint", "directed", "relative", "excess", "standardised", "per_boundary", "per_object"),
    *("dice", "shift", "larger", "smaller", "mean", "sum", "softmin"),
)
# Scores that are standardised, within kinds of images if these are given.
SCORES_WITH_KINDS = ("joint", "directed", "shift")


def plain_number(value: Any) -> Any:
    """Return Python's number for one of numpy or torch, also within a tuple or list.

    Only those are saved in checkpoints that load without running code.
    """
    if isinstance(value, tuple | list):
        return type(value)(map(plain_number, value))
    is_number = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_number else value


@dataclass(frozen=True)
class Recipe:
    """The settings of robust training, ranking, label correction and retraining.

    The default values were measured (docs/results/benchmarks.md). They are defined only here:
    modules, callbacks, `run_stages` and the settings of the app take them from this class.

    Args:
        lambda_1: Weight of the Dice loss in Eq. (2).
        lambda_2: Weight of the L2 term in Eq. (2). It equals a coupled weight decay of
            `2 * lambda_2`.
        include_background: Whether background is one of the k classes of Eq. (3).
        lr: Learning rate.
        averaging: The share of training over which weights are averaged, see `AveragedWeights`.
            In a warm-started retraining it is that of both stages together. With 0 there is no
            average, and networks are evaluated with their last weights.
        selection: How a peer picks samples. `whole_set` uses rankings of the whole training set,
            see `WholeSet`; `relative` and `eq1` use scores within each batch, see `PerBatch`.
        step: Which samples pass through a peer in training. `picks` passes only those that it
            learns from; `joint` passes the whole batch.
        ramp_epochs: Number of epochs over which a batch's keep rate falls from 1 to 1 - NoL. None
            means 30 % of the epochs, and 0 means a constant keep rate.
        score: The score by which training samples are ranked, see
            `coseg_lightning.ranking.scores`.
        score_epochs: Number of last epochs over which the scores are averaged. 1 suffices with
            averaged weights; without them single epochs differ a lot, and 5 rank better.
        by_class: Whether each class is ranked and corrected separately.
        confidence: The mean probability that the peers' class needs to overrule a label; 0 is the
            vote as printed. `auto` chooses it per sample from how strongly the peers disagree
            with the label, and skips correction if the peers are no better than the labels.
        warm_start: Whether retraining starts from the first peer's weights. It still starts from
            new weights, for the epochs of both stages, if the peers excluded samples and
            correction was then skipped.
        retraining_loss: The pixel loss of retraining on corrected labels, one of
            `coseg_lightning.functional.losses.PIXEL_LOSSES`. If correction was skipped, the
            network keeps its own loss, the cross-entropy unless you say otherwise.
        retraining_share: Number of epochs of a warm-started retraining, as a share of stage 1's.
        rounds: Number of rounds of robust training and correction. Each round starts from the
            labels that the round before it corrected.

    Raises:
        InputError: If a value is invalid.
    """

    lambda_1: float = 1.0
    lambda_2: float = 1e-5
    include_background: bool = True
    lr: float = 1e-3
    averaging: float = 0.1
    selection: str = "whole_set"
    step: str = "picks"
    ramp_epochs: int | None = None
    score: str = "joint"
    score_epochs: int = 1
    by_class: bool = False
    confidence: float | Literal["auto"] = "auto"
    warm_start: bool = True
    retraining_loss: str = "generalised_cross_entropy"
    retraining_share: float = 1.0
    rounds: int = 1

    # The fields in each group of settings of conf/.
    SETTINGS: ClassVar[dict[str, tuple[str, ...]]] = {
        "training": ("averaging",),
        "loss": ("lambda_1", "lambda_2", "include_background"),
        "optimizer": ("lr",),
        "peers": ("ramp_epochs", "selection", "step", "score", "score_epochs", "by_class"),
        "correction": (
            "confidence",
            "warm_start",
            "retraining_loss",
            "retraining_share",
            "rounds",
        ),
    }

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            object.__setattr__(self, name, plain_number(value))
        for name in ("lambda_1", "lambda_2", "lr"):
            self._check(name, _is_at_least_0(getattr(self, name)), "a number of at least 0")
        for name in ("include_background", "by_class", "warm_start"):
            self._check(name, isinstance(getattr(self, name), bool), "true or false")
        for name in ("score_epochs", "rounds"):
            is_right = is_count(getattr(self, name), least=1)
            self._check(name, is_right, "a whole number of at least 1")
        is_ramp = self.ramp_epochs is None or is_count(self.ramp_epochs, least=0)
        self._check("ramp_epochs", is_ramp, "a whole number of at least 0, or null")
        self._check("averaging", is_share(self.averaging), "a number from 0 to 1")
        is_positive = is_number(self.retraining_share) and self.retraining_share > 0
        self._check("retraining_share", is_positive, "a number above 0")
        self._check("confidence", is_confidence(self.confidence), "auto, or a number from 0 to 1")
        for name, options in (
            ("selection", SELECTIONS),
            ("step", STEPS),
            ("retraining_loss", PIXEL_LOSSES),
        ):
            wanted = f"{', '.join(options[:-1])} or {options[-1]}"
            self._check(name, getattr(self, name) in options, wanted)
        if self.score not in SCORES:
            known = ", ".join(SCORES)
            raise InputError(f"score={self.score}: there is no such score; use one of {known}.")

    def _check(self, name: str, is_right: bool, wanted: str) -> None:
        if not is_right:
            raise InputError(f"{name}={getattr(self, name)} must be {wanted}.")

    @property
    def of_networks(self) -> dict[str, Any]:
        """The arguments of a single network: `SegmentationModule("unet", **recipe.of_networks)`."""
        return {name: getattr(self, name) for name in _OF_NETWORKS}

    @property
    def of_peers(self) -> dict[str, Any]:
        """The arguments of a pair of peers: `CoSegModule("unet", **recipe.of_peers)`."""
        return {name: getattr(self, name) for name in (*_OF_NETWORKS, *_OF_PEERS)}

    @property
    def of_stages(self) -> dict[str, Any]:
        """The settings of the stages; the settings of modules are recorded by the modules."""
        of_modules = {*_OF_NETWORKS, *_OF_PEERS}
        return {key: value for key, value in asdict(self).items() if key not in of_modules}

    def check_module(self, hparams: Mapping[str, Any]) -> None:
        """Raise an `InputError` if a module lacks a value that was changed in this recipe.

        Args:
            hparams: The module's hyperparameters.
        """
        for name in (*_OF_NETWORKS, *_OF_PEERS):
            wanted = getattr(self, name)
            # A pair has a step. Its selection is missing in the hyperparameters if it is an object.
            is_taken = name in hparams or (name == "selection" and "step" in hparams)
            of_module = hparams.get(name, "a policy of its own")
            if is_taken and wanted not in (getattr(Recipe, name), of_module):
                raise InputError(
                    f"The recipe has {name}={wanted}, but a module was made with {of_module}; give "
                    "the module the recipe's value, as in CoSegModule(..., **recipe.of_peers) and "
                    "SegmentationModule(..., **recipe.of_networks)."
                )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Recipe":
        """Build the recipe from the app's settings.

        Args:
            settings: `{"averaging": ..., "method": {...}, "loss": {...}}`. Missing settings keep
                their defaults, and all other settings are ignored.

        Raises:
            InputError: If a value is invalid; the message names the setting.
        """
        values, keys = {}, {}
        for group, names in cls.SETTINGS.items():
            key = {"training": "", "peers": "method", "correction": "method"}.get(group, group)
            node = (settings.get(key) or {}) if key else settings
            for name in names:
                keys[name] = f"{key}.{name}" if key else name
                if name in node:
                    values[name] = node[name]
        try:
            return cls(**values)
        except InputError as error:
            name, sign, rest = str(error).partition("=")
            raise InputError(f"{keys.get(name, name)}{sign}{rest}") from error


_OF_NETWORKS = ("lambda_1", "lambda_2", "include_background", "lr")
_OF_PEERS = ("ramp_epochs", "selection", "step")


def check_by_class(by_class: Any) -> None:
    """Raise an `InputError` for a text, such as "no", which would count as true."""
    given: Any = by_class if isinstance(by_class, str) else bool(by_class)
    Recipe(by_class=given)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; booleans are not."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and float("-inf") < value < float("inf")


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def is_confidence(value: Any) -> bool:
    """Whether a value is `auto` or a share."""
    return is_share(value) or (isinstance(value, str) and value == "auto")


def is_count(value: Any, *, least: int) -> bool:
    """Whether a value is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**32


def _is_at_least_0(value: Any) -> bool:
    return is_number(value) and value >= 0
