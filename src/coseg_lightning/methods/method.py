"""Method: a name, and the stages of a run.

Your own method is a `Method` with stages of this package or your own functions. Pass it to
`run_stages(..., method=Method("mine", (robust_training, my_stage)))`, or name it in the app,
`+method.object=my_package.MINE`. A stage trains with `run.train_network`, or with `run.runner` if
it saves results for later stages. It returns an `Outcome` that includes its own results.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
from coseg_lightning.callbacks.label_correction import LabelCorrection
from coseg_lightning.errors import InputError
from coseg_lightning.modules import compat
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.wrapped import Data


@dataclass(frozen=True)
class TrainedPeers:
    """The results of robust training for later stages, in plain values.

    Args:
        samples: The number of training samples.
        noisy: The ids of the samples that were ranked noisy.
        changed: The indices of the samples whose masks were changed.
        noise_level: The share of samples that count as noisy.
        bias: See `Ranking.bias`.
        auroc: See `Ranking.auroc`.
        excluded: Whether the peers excluded samples when training ended.
        estimate: The estimate of the noise level, if it was `auto`.
        layers: The names of the label layers that were written.
        label_peer_ratio: See `LabelCorrection`.
        correction_skipped: See `LabelCorrection`.
        wrong_half_suspected: See `LabelCorrection`.
        epochs: The number of epochs for which the peers were trained.
    """

    samples: int
    noisy: list[str]
    changed: list[int]
    noise_level: float
    bias: str | None
    auroc: float | None
    excluded: bool
    estimate: dict[str, Any] | None
    layers: list[str]
    label_peer_ratio: float | None
    correction_skipped: bool
    wrong_half_suspected: bool
    epochs: int = 0


@dataclass(frozen=True)
class Outcome:
    """The results of all stages so far.

    Args:
        last_stage: The stage whose module is tested, by the name of its folder.
        is_pair: Whether that module is a pair of peers, of which the first is tested.
        peers: The results of the last robust training.
        changed: The indices of all samples whose masks were changed.
        corrected: Whether any correction was made and not skipped.
        facts: Results of other stages, by name, for those that follow.
        summary: Parts that stages add to `summary.json`, by name.
    """

    last_stage: str = ""
    is_pair: bool = False
    peers: TrainedPeers | None = None
    changed: frozenset[int] = frozenset()
    corrected: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The objects that all stages of one run share.

    Args:
        method: The method of the run.
        recipe: The recipe of its stages.
        data: The datasets.
        runner: Trains the stages and saves their results in the run's folder.
        make_peers: Makes the module of robust training.
        make_network: Makes the module of a single network.
    """

    method: "Method"
    recipe: Recipe
    data: Data
    runner: StageRunner
    make_peers: Callable[[], CoSegModule]
    make_network: Callable[[], SegmentationModule]

    def peers(self) -> CoSegModule:
        """Make new peers with the run's initial weights."""
        module = self.runner.built(self.make_peers)
        self.recipe.check_module(module.hparams)
        if self.method.trains_peers:
            self.method.check_module("peers", module)
        return module

    def network(self) -> SegmentationModule:
        """Make a new network with the run's initial weights."""
        module = self.runner.built(self.make_network)
        self.recipe.check_module(module.hparams)
        if not self.method.trains_peers:
            self.method.check_module("network", module)
        return module

    def train_network(
        self,
        stage: str,
        prepare: Callable[[SegmentationModule], None] | None = None,
        *,
        max_epochs: int | None = None,
    ) -> None:
        """Train a new network, unless the stage is already finished.

        Args:
            stage: The name of the stage and of its folder.
            prepare: Called with the module before training, for example to set its weights.
            max_epochs: The number of epochs; default the trainer's own number.
        """

        def train() -> None:
            module = self.network()
            if prepare is not None:
                prepare(module)
            self.runner.fit(stage, module, self.data, max_epochs=max_epochs)

        self.runner.stage(stage, train)


Stage = Callable[[Run, Outcome], Outcome]


@dataclass(frozen=True)
class Method:
    """A method: its name and its stages.

    Args:
        name: The name of the method.
        stages: Functions of the run and of the previous stages' outcome.
        ranking: The callback class that ranks the training set in robust training.
        correction: The callback class that corrects labels at the end of robust training, if any.
        has_peers: Whether `method.module` is a pair of peers. With `robust_training` it always
            is.
        excludes_samples: Whether a stage excludes training samples, which needs a
            `CoSegDataModule`.
        module: The class of its module, the peers or the network; None if any will do.
        options: Arguments that its module must have been given, such as `pixel_loss`.

    Raises:
        InputError: If it corrects labels without robust training.
    """

    name: str
    stages: tuple[Stage, ...]
    ranking: type[CorruptionRanking] = CorruptionRanking
    correction: type[LabelCorrection] | None = None
    has_peers: bool = False
    excludes_samples: bool = False
    module: type[CoSegModule] | type[SegmentationModule] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.correction is not None and "robust_training" not in self._names:
            raise InputError(
                f"The method {self.name} corrects labels, but has no stage robust_training, which "
                "trains the peers that vote; add that stage, or leave correction out."
            )

    @property
    def _names(self) -> list[str]:
        return [_name_of(stage) for stage in self.stages]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages, with the correction after the training that includes it."""
        names = self._names
        if self.correction is not None:
            names.insert(names.index("robust_training") + 1, "correction")
        return tuple(names)

    @property
    def trains_peers(self) -> bool:
        """Whether the method's module is a pair of peers."""
        return self.has_peers or "robust_training" in self._names

    def check_module(self, argument: str, module: Any) -> None:
        """Raise an `InputError` if a module would train in another way than the method says.

        Args:
            argument: The argument of `run_stages` that made the module.
            module: The module.
        """
        if self.module is not None:
            check_kind(self.name, argument, module, self.module)
        kind = type(compat.compiled_module(module)).__name__
        for name, value in self.options.items():
            given = getattr(module, name, None)
            if given != value:
                raise InputError(
                    f"method={self.name} trains with {name}={value!r}, but {argument}= made a "
                    f"{kind} with {name}={given!r}; give {argument}=partial({kind}, ..., "
                    f"{name}={value!r})."
                )


def check_kind(method: str, argument: str, module: Any, kind: type) -> None:
    """Raise an `InputError` if a method's module is not of its class, nor of one derived from it.

    Args:
        method: The name of the method.
        argument: The argument of `run_stages` that made the module.
        module: The module.
        kind: The class.
    """
    module = compat.compiled_module(module)
    if not isinstance(module, kind):
        raise InputError(
            f"method={method} trains a {kind.__name__}, but {argument}= made a "
            f"{type(module).__name__}; give {argument}=partial({kind.__name__}, ...) with "
            f"{kind.__module__}.{kind.__name__}, or a class derived from it."
        )


def _name_of(stage: Stage) -> str:
    function: Any = stage
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def refused(what: str, method: str) -> Callable[[], Any]:
    """Return a function that raises an `InputError`, in place of a missing maker of modules.

    Args:
        what: The missing modules.
        method: The name of the method.
    """

    def make() -> Any:
        raise InputError(
            f"method={method} needs the {what}; give run_stages a function that builds the {what}."
        )

    return make
