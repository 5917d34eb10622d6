"""run_stages: all stages of a method in one call, in one folder."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from coseg_lightning.callbacks.stage_progress import duration
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.errors import InputError
from coseg_lightning.files.atomic import check_place
from coseg_lightning.files.checkpoints import plain_values
from coseg_lightning.methods import rehearsal
from coseg_lightning.methods.baselines import train_baselines
from coseg_lightning.methods.method import Method, Outcome, Run, refused
from coseg_lightning.methods.registry import find_method
from coseg_lightning.modules import compat
from coseg_lightning.modules.coseg import CoSegModule
from coseg_lightning.modules.recipe import Recipe, is_count, plain_number
from coseg_lightning.modules.segmentation import SegmentationModule
from coseg_lightning.report.page import write_report
from coseg_lightning.runs.folder import RunFolder
from coseg_lightning.runs.runner import StageRunner
from coseg_lightning.runs.summary import training_label_dice, write_summary
from coseg_lightning.runs.wrapped import Data, wrap_datamodule

log = logging.getLogger(__name__)

LONG = 20 * 60  # seconds of a run on a CPU after which a user is told of faster settings
FASTER = (
    "half of data.image_size takes about a quarter of that; a small network, such as "
    "model=unet_classic model.base_channels=16, takes less, too"
)


def run_stages(
    data: pl.LightningDataModule,
    folder: str | Path,
    *,
    method: str | Method = "coseg",
    stages: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    peers: Callable[[], CoSegModule] | None = None,
    network: Callable[[], SegmentationModule] | None = None,
    trainer: Callable[..., pl.Trainer],
    seed: int = 0,
    baselines: bool = False,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    rehearse: bool | Callable[..., pl.Trainer] = True,
    keep_checkpoints: bool = True,
    keep_best: bool = False,
    patience: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Run the stages of a method, test its network, and write everything into one folder.

    Args:
        data: The datasets, and the noise to add, if any: a `CoSegDataModule` or your own
            datamodule, which is not changed. Corrections apply to the training masks as the
            dataset returns them, see `coseg_lightning.updated`.
        folder: The run's own folder, without an earlier run in it.
        method: A name in `coseg_lightning.methods.registry`, or your own `Method`. Examples are
            `coseg` (robust training, correction, retraining), `coteaching` (robust training
            alone, tested with its first peer) and `supervised` (one network on the given labels).
        stages: The stages of an existing method, for a `method` with a new name, such as
            `["robust_training"]` or `["supervised_training"]`.
        recipe: The settings of training, ranking, correction and retraining; default the measured
            recipe.
        peers: Makes the module of stage 1. Methods with a single network do not need it.
        network: Makes the module of stage 3 and of the baselines, or of a method with a single
            network. Methods such as `coteaching` only need it for baselines.
        trainer: Makes a new trainer from `callbacks`, `logger` and `default_root_dir`, such as
            `partial(pl.Trainer, max_epochs=40)`. Callbacks and loggers of such a partial are used
            too. Each stage gets copies of the callbacks.
        seed: Seed of the networks' initial weights, and of everything random in a stage.
        baselines: Whether to first train plain networks for comparison: one on the given labels
            and, if the original labels are known, one on those.
        config: Plain values that identify the run; they are saved in `summary.json`.
        resume: Whether to continue an interrupted run of the same `config` in the folder. Without
            such a run, a new one begins. A resumed run gives the same results as an uninterrupted
            one, on a CPU to the bit.
        rehearse: Whether to first run all stages with two batches, which takes seconds. Errors
            that would stop the run late then stop it at once. By default this uses the same
            trainer in one process, without callbacks and loggers; or give a function that makes
            another. A resumed run is not rehearsed.
        keep_checkpoints: Whether to keep Lightning's checkpoint of each stage after success, with
            the optimizers' state. Otherwise only the peers' weights are kept, for a review.
        keep_best: Whether stages that train one network end with the weights of the epoch with
            the best `val/dice`, not the last. Wrong validation masks choose a wrong epoch.
        patience: The number of epochs without improvement that end a stage; implies `keep_best`.
        settings: Single fields of the recipe; deprecated, give a `recipe`.

    Returns:
        The content of `summary.json`.

    Raises:
        InputError: If the folder holds another run, there is no such method, or an argument is of
            another kind.
    """
    _check_arguments(folder, peers, network, trainer, recipe, seed)
    seed = plain_number(seed)
    peers = peers and partial(_made, "peers", peers, CoSegModule)
    network = network and partial(_made, "network", network, SegmentationModule)
    method = method if isinstance(method, Method) else find_method(method, stages)
    recipe = with_settings(recipe or Recipe(), settings)
    data = prepare_data(data, method)
    is_app = config is not None and "data" in config
    config = {"method": {"name": method.name}, "seed": seed, **(config or {})}
    if not is_app:
        config |= {
            **describe(data, {"peers": peers, "network": network}, trainer),
            "recipe": recipe.of_stages,
        }
    identity = {}
    if isinstance(data, CoSegDataModule):
        identity = data.identity() | data.annotators_identity()
    parts = {"recipe": {**recipe.of_stages, "baselines": baselines}, "samples": identity}
    run_folder = RunFolder(folder, {**config, **parts}, resume=resume)
    if run_folder.summary is not None:
        return run_folder.summary
    runner = StageRunner(run_folder, trainer, recipe.averaging, seed)
    if keep_best or patience is not None:
        runner.keep_best(patience)
    make_peers = peers or refused("peers", method.name)
    make_network = network or refused("network", method.name)
    run = Run(method, recipe, data, runner, make_peers, make_network)
    check_modules(run)

    expected = None
    if rehearse and not run_folder.resumed:
        quick_trainer = rehearsal.alone(trainer) if rehearse is True else rehearse
        expected = rehearsal.rehearse(run, partial(walk, config={**config, **parts}), quick_trainer)
    rank_zero_only(log.info)("%s.", what_will_happen(run, expected))
    tested = train_baselines(run) if baselines else {}
    summary = walk(run, config=config, tested=tested, reports=not is_app)
    if not keep_checkpoints:
        run_folder.remove_checkpoints()
    return summary


def _check_arguments(
    folder: Any, peers: Any, network: Any, trainer: Any, recipe: Any, seed: Any
) -> None:
    """Raise an `InputError` for arguments of the wrong kind, before anything is built."""
    for name, maker, example in (
        ("peers", peers, "partial(CoSegModule, ...)"),
        ("network", network, "partial(SegmentationModule, ...)"),
        ("trainer", trainer, "partial(pl.Trainer, max_epochs=40)"),
    ):
        is_missing = maker is None and name != "trainer"
        if is_missing or (callable(maker) and not isinstance(maker, torch.nn.Module)):
            continue
        raise InputError(
            f"{name}= is a {type(maker).__name__}; give what makes one, such as {example}, since "
            "each stage needs a new one."
        )
    if getattr(trainer, "keywords", {}).get("barebones"):
        raise InputError(
            "trainer= has barebones=True, with which Lightning saves and logs nothing, but a run "
            "is made of what its stages save; leave it out."
        )
    if recipe is not None and not isinstance(recipe, Recipe):
        raise InputError(f"recipe= is a {type(recipe).__name__}; give a Recipe(...).")
    if not is_count(plain_number(seed), least=0):
        raise InputError(f"seed={seed!r} must be a whole number from 0 to {2**32 - 1}.")
    if not isinstance(folder, str | PathLike):
        raise InputError(f"The run's folder is {folder!r}; give a path.")
    if not Path(folder).is_dir():  # a finished run may lie where nothing can be written
        check_place(Path(folder))


def _made(name: str, make: Callable[[], Any], kind: type) -> Any:
    """Make a module, and raise an `InputError` if it is of another kind."""
    module = make()
    is_compiled = isinstance(module, torch.nn.Module) and not isinstance(module, pl.LightningModule)
    if not isinstance(module, kind) and not is_compiled:
        raise InputError(
            f"{name}= made a {type(module).__name__}; it must make a {kind.__name__}, or one of a "
            "class derived from it."
        )
    return module


def check_modules(run: Run) -> None:
    """Raise an `InputError` before training if a method's module or its data is not as it needs."""
    if not run.method.trains_peers:
        run.network().check_data(run.data)
    elif run.method.module is not None or run.method.options:
        run.peers()


def foresee(
    data: pl.LightningDataModule,
    folder: Path,
    *,
    method: Method,
    recipe: Recipe,
    peers: Callable[[], CoSegModule],
    network: Callable[[], SegmentationModule],
    trainer: Callable[..., pl.Trainer],
    rehearsal_trainer: Callable[..., pl.Trainer],
    config: Mapping[str, Any],
    seed: int = 0,
) -> str:
    """Rehearse a run and describe it; the arguments are those of `run_stages`.

    Args:
        data: The datasets.
        folder: A folder that need not exist; the rehearsal uses its own folder beside it.
        method: The method.
        recipe: The recipe.
        peers: Makes the module of stage 1.
        network: Makes the module of a single network.
        trainer: Makes the run's trainers.
        rehearsal_trainer: Makes the rehearsal's trainers.
        config: Plain values that identify the run.
        seed: The run's seed.

    Returns:
        The text of `what_will_happen`.

    Raises:
        Exception: Any error that would stop the run.
    """
    wrapped = prepare_data(data, method)
    runner = StageRunner(RunFolder(folder, {}), trainer, recipe.averaging, seed)
    run = Run(method, recipe, wrapped, runner, peers, network)
    check_modules(run)
    parts = {"recipe": {**recipe.of_stages, "baselines": False}, "samples": {}}
    walked = partial(walk, config={**config, **parts})
    return what_will_happen(run, rehearsal.rehearse(run, walked, rehearsal_trainer))


def what_will_happen(run: Run, expected: "rehearsal.Forecast | None") -> str:
    """Describe a run before it starts: `60 images: 48 train, 12 test; CPU; about 6 min`.

    Args:
        run: The run.
        expected: The forecast of the rehearsal, if there was one.
    """
    parts = []
    if isinstance(run.data, CoSegDataModule):
        sizes = run.data.sizes
        each = ", ".join(f"{size} {part}" for part, size in sizes.items())
        what = "images" if run.data.tiles is None else "tiles"
        parts.append(f"{sum(sizes.values())} {what}: {each}")
    parts.append(device_name(run.runner.tester()))
    if expected is not None:
        if expected.seconds is not None:
            parts.append(f"about {duration(expected.seconds)}")
            is_resized = isinstance(run.data, CoSegDataModule) and run.data.tiles is None
            device = run.runner.tester().strategy.root_device
            if expected.seconds > LONG and is_resized and device.type == "cpu":
                parts[-1] += f" ({FASTER})"
        parts.append(f"all stages were rehearsed in {duration(expected.rehearsal)}")
    return "; ".join(parts)


def device_name(trainer: pl.Trainer) -> str:
    """Name the device that a trainer uses, such as `CPU` or `2 x NVIDIA A100`."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def walk(
    run: Run,
    after_stage: Callable[[], Any] = lambda: None,
    *,
    config: Mapping[str, Any],
    tested: Mapping[str, Any] | None = None,
    reports: bool = True,
) -> dict[str, Any]:
    """Run all stages, and write the results.

    Args:
        run: The run.
        after_stage: Called after each stage.
        config: The values that identify the run.
        tested: Test metrics of the baselines.
        reports: Whether to write the report too.

    Returns:
        The content of `summary.json`.
    """
    outcome = Outcome()
    for number, stage in enumerate(run.method.stages, start=1):
        run.runner.expect(len(run.method.stages) - number)
        outcome = stage(run, outcome)
        after_stage()
    summary = finish(run, outcome, config, tested or {})
    if reports:
        data = run.data if isinstance(run.data, CoSegDataModule) else None
        write_report(run.runner.folder.path, data)
    return summary


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Replace fields of a recipe that were given as single arguments, as in version 0.1."""
    if not settings:
        return recipe
    unknown = sorted(set(settings) - {field.name for field in fields(Recipe)})
    if unknown:
        raise TypeError(f"run_stages() got an unexpected keyword argument {unknown[0]!r}")
    warnings.warn(
        f"Pass the recipe to run_stages as recipe=Recipe({', '.join(settings)}=...); its fields as "
        "single arguments will not be accepted from version 0.3 on.",
        FutureWarning,
        stacklevel=3,
    )
    return replace(recipe, **settings)


def prepare_data(data: pl.LightningDataModule, method: Method) -> Data:
    """Wrap a user's datamodule so that label layers can be added to it.

    Raises:
        InputError: If the method excludes samples, which a wrapped datamodule cannot do.
    """
    if isinstance(data, CoSegDataModule):
        return data
    if method.excludes_samples:
        raise InputError(
            f"method={method.name} leaves samples out, which needs a CoSegDataModule; the data is "
            f"a {type(data).__name__}."
        )
    return wrap_datamodule(data)


def describe(
    data: Data,
    makers: Mapping[str, Callable[[], pl.LightningModule] | None],
    trainer: Callable[..., pl.Trainer],
) -> dict[str, Any]:
    """Describe a run that was started from Python, as far as possible, as plain values."""
    config: dict[str, Any] = {
        "data": {"class": type(data).__name__, **plain_values(dict(data.hparams))}
    }
    for name, make in makers.items():
        if make is not None:
            module = compat.uncompiled(make())
            config[name] = {"class": type(module).__name__, **plain_values(dict(module.hparams))}
    keywords = getattr(trainer, "keywords", {})
    options = {key: keywords[key] for key in keywords if key not in ("callbacks", "logger")}
    return {**config, "trainer": plain_values(options)}


def finish(
    run: Run, outcome: Outcome, config: Mapping[str, Any], tested: Mapping[str, Any]
) -> dict[str, Any]:
    """Test the module of the last stage, and write the summary.

    The module is always loaded from disk, so that a resumed run gives the same results.
    """
    module: CoSegModule | SegmentationModule
    module = run.peers() if outcome.is_pair else run.network()
    module = run.runner.restored(module, outcome.last_stage)
    peers, data = outcome.peers, run.data
    parts: dict[str, Any] = {"baselines": dict(tested)} if tested else {}
    if isinstance(module, SegmentationModule):
        parts |= module.summary_parts()
    for name, part in outcome.summary.items():
        parts[name] = {**parts.get(name, {}), **part}
    return write_summary(
        run.runner,
        module,
        data,
        config,
        **parts,
        ranking={
            "noise_level": peers and peers.noise_level,
            "estimate": peers and peers.estimate,
            "bias": peers and peers.bias,
            "auroc": peers and peers.auroc,
        },
        correction={
            "corrected": len(outcome.changed),
            "contradiction": peers and peers.label_peer_ratio,
            "left_alone": run.method.correction is not None and not outcome.corrected,
            "kept_vary_more": peers is not None and peers.wrong_half_suspected,
            "layers": [layer.name for layer in data.label_layers],
            "left_out": len(data.excluded) if isinstance(data, CoSegDataModule) else 0,
            **training_label_dice(data),
        },
    )
