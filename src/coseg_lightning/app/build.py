"""Builds data, noise, peers, networks and trainers from a composed configuration."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from platformdirs import user_cache_path

from coseg_lightning.app.checks import check_split_is_drawn, recipe_of
from coseg_lightning.app.command import first_cause, one_line, task_overrides
from coseg_lightning.app.given import (
    make_augmentation,
    read_clean_ids,
    read_ids,
    read_kinds,
    shown_annotators,
)
from coseg_lightning.app.settings import unknown_setting
from coseg_lightning.app.settled import begun_config
from coseg_lightning.errors import InputError
from coseg_lightning.modules.recipe import is_number
from coseg_lightning.modules.renamed import home_now

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from coseg_lightning.data.annotators import SeveralMasks
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.data.preparation import Statistics
    from coseg_lightning.data.tiles import Tiles
    from coseg_lightning.files.canvas import Canvas
    from coseg_lightning.labels.masks import MaskedImages
    from coseg_lightning.methods.method import Method
    from coseg_lightning.modules.coseg import CoSegModule
    from coseg_lightning.modules.optimizers import Schedule
    from coseg_lightning.modules.segmentation import SegmentationModule
    from coseg_lightning.noise.models import NoiseModel


log = logging.getLogger(__name__)


def make_own_data(cfg: DictConfig) -> "pl.LightningDataModule":
    """Build the user's own datamodule, which `data._target_` names.

    All keys of `data` are its arguments. It only gets `classes` and `in_channels`, which the
    networks need, if it has these arguments.

    Raises:
        InputError: If the class is not a datamodule, or noise is configured, which needs masks
            that this package reads.
    """
    import pytorch_lightning as pl

    name = cfg.data["_target_"]
    kind = _class("data._target_", name)
    if not issubclass(kind, pl.LightningDataModule):
        raise InputError(f"data._target_={name} must be a LightningDataModule.")
    if _noise_names(cfg):
        raise InputError(
            f"noise={noise_name(cfg)} needs data that this package reads, such as data=folder; a "
            f"{name} must add noise itself, so give noise=none."
        )
    parameters = inspect.signature(kind).parameters.values()
    takes_all = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    known = {parameter.name for parameter in parameters}
    unused = [key for key in ("classes", "in_channels") if key not in known and not takes_all]
    arguments = OmegaConf.masked_copy(cfg.data, [key for key in cfg.data if key not in unused])
    data: pl.LightningDataModule = instantiate(arguments)
    return data


def make_data(
    cfg: DictConfig, folder: Path, *, everything: bool = False, tells_problems: bool = True
) -> "CoSegDataModule":
    """Build the datasets, with the configured noise.

    Args:
        cfg: The composed configuration.
        folder: The folder for the noisy masks and the list of unusable files.
        everything: Whether validation and test samples become training samples too.
        tells_problems: Whether to list unusable files in `problems.csv`.

    Raises:
        InputError: If the data cannot be used.
    """
    from coseg_lightning.data.folder import Splits
    from coseg_lightning.data.subsets import JoinedImages

    splits = read_parts(cfg, folder / "problems.csv" if tells_problems else None)
    if everything:
        splits = Splits(JoinedImages([part for part in splits if part is not None]), None, None)
    return make_split(cfg, splits.train, splits.val, splits.test, folder)


def make_split(
    cfg: DictConfig,
    train: "MaskedImages",
    val: "MaskedImages | None",
    test: "MaskedImages | None",
    folder: Path,
) -> "CoSegDataModule":
    """Build the datamodule from given parts, with the configured noise.

    Args:
        cfg: The composed configuration.
        train: Images and masks for training.
        val: Images and masks for monitoring, if any.
        test: Images and masks for the results, if any.
        folder: The folder for the noisy masks.
    """
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.data.preparation import training_statistics

    noise = make_noise(cfg)
    if cfg.data.get("normalization") == "training":
        statistics = training_statistics(train, canvas_of(cfg), cfg.data.in_channels)
        cfg.data.normalization = [list(values) for values in statistics]
    drawn_by = shown_annotators(cfg, train, val, test)
    return CoSegDataModule(
        _without_bad_masks(cfg, train, noise),
        val,
        test,
        image_size=_size(cfg),
        keep_shape=canvas_of(cfg).keeps_shape,
        in_channels=cfg.data.in_channels,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        augmentation=make_augmentation(cfg),
        seed=cfg.seed,
        noise=noise,
        noise_level=cfg.noise.level,
        noise_folder=None if noise is None else folder / "noise",
        cache=_cache(cfg) if cfg.data.get("tile") is None else None,
        clean_ids=read_clean_ids(cfg),
        kinds=read_kinds(cfg),
        annotators=drawn_by,
        normalization=normalization_of(cfg),
        pixel_size=cfg.data.get("pixel_size"),
        unit=cfg.data.get("unit") or "mm",
    )


def _size(cfg: DictConfig) -> int | tuple[int, int]:
    canvas = canvas_of(cfg)
    return canvas[:2] if OmegaConf.is_list(cfg.data.image_size) else canvas.height


def canvas_of(cfg: DictConfig) -> "Canvas":
    """Return the input size of the networks, and whether images keep their aspect ratio on it.

    Runs before version 0.2 stretched images.
    """
    from coseg_lightning.files.canvas import Canvas

    size = cfg.data.image_size
    size = [int(side) for side in size] if OmegaConf.is_list(size) else int(size)
    return Canvas.of(size, keeps_shape=bool(cfg.data.get("keep_shape", False)))


def normalization_of(cfg: DictConfig) -> "Statistics | None":
    """Mean and deviation that normalise images in [0, 1]; None to use each image's own.

    With `auto` they are those of the encoder's pretraining, if its weights are pretrained. Both
    peers get the same images, so of two encoders those of the first pretrained one count, which the
    final network has too if it is pretrained. With `training`, `make_split` has already replaced
    the setting by the training images' statistics.

    Raises:
        InputError: If the setting is invalid, or does not fit the images' channels.
    """
    from coseg_lightning.networks.build import default_encoder
    from coseg_lightning.networks.encoders import pretraining_statistics

    given = cfg.data.get("normalization", "image")  # the only choice before version 0.2
    if given == "image":
        return None
    if given == "auto":
        for model in (cfg.model, cfg.get("peer_b") or cfg.model):
            weights = model.get("encoder_weights")
            if weights is not None:
                encoder = model.get("encoder_name") or default_encoder(str(model.get("name")))
                return pretraining_statistics(encoder, cfg.data.in_channels, weights)
        return None
    try:
        mean, std = (tuple(float(value) for value in values) for values in given)
    except (TypeError, ValueError):
        raise InputError(
            f"data.normalization={given} must be auto, image, training, or the mean and the "
            "standard deviation of each channel, as in '[[0.5],[0.25]]'."
        ) from None
    return mean, std


@dataclass(frozen=True)
class GivenMasks:
    """All images and masks, for an audit without networks.

    Args:
        dataset: Images and masks at their own resolution.
        replaced: The samples whose masks were replaced by noisy ones, if known.
        truth: The dataset with the original masks, if known.
        label_dice: `(N,)` Dice of each mask to the original one, if known.
        identity: Identifies the files, see `CoSegDataModule.identity`.
        drawn_by: Who drew each mask, by id; None to use the dataset's annotators.
        kinds: The kind of each image, by id, if known.
    """

    dataset: "MaskedImages"
    replaced: frozenset[str] | None = None
    truth: "MaskedImages | None" = None
    label_dice: Any = None
    identity: Mapping[str, str] = field(default_factory=dict)
    drawn_by: Mapping[str, str] | None = None
    kinds: Mapping[str, str] | None = None

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the samples."""
        return self.dataset.ids

    @property
    def annotators(self) -> Mapping[str, str]:
        """Who drew each mask, by id, if known."""
        return getattr(self.dataset, "annotators", {}) if self.drawn_by is None else self.drawn_by

    @property
    def tiles(self) -> "Tiles | None":
        """The tiles, if the samples are tiles of large images."""
        return getattr(self.dataset, "tiles", None)

    @property
    def several(self) -> "SeveralMasks | None":
        """The masks of samples that several people drew, if there are any."""
        return getattr(self.dataset, "several", None)


def make_all_masks(cfg: DictConfig, folder: Path) -> GivenMasks:
    """Build the dataset of all masks, without torch and Lightning unless noise is configured.

    Args:
        cfg: The composed configuration.
        folder: The folder for the noisy masks and the list of unusable files.

    Raises:
        InputError: If the data cannot be used.
    """
    if not _noise_names(cfg):
        from coseg_lightning.data.subsets import JoinedImages, identity_of, kinds_of_samples

        parts = read_parts(cfg, folder / "problems.csv")
        joined = JoinedImages([part for part in parts if part is not None])
        identity = {"train": identity_of(joined)}
        return GivenMasks(
            joined,
            identity=identity,
            drawn_by=shown_annotators(cfg, joined),
            kinds=kinds_of_samples(joined, read_kinds(cfg)),
        )
    from coseg_lightning.data.samples import label_dice

    data = make_data(cfg, folder, everything=True)
    data.prepare_data()
    samples = data.given_samples()
    return GivenMasks(
        samples.dataset,
        samples.replaced,
        samples.truth,
        label_dice(samples),
        identity=data.identity(),
        drawn_by=samples.annotators,
        kinds=samples.kinds,
    )


def read_parts(cfg: DictConfig, problems: Path | None) -> Any:
    """Read the training, validation and test images; list unusable files in `problems`."""
    if isinstance(cfg.data.get("trusted_ids"), str):
        cfg.data.trusted_ids = read_ids("data.trusted_ids", cfg.data.trusted_ids)
    lists_problems = problems is not None and "on_bad_sample" in cfg.data.source
    options: dict[str, Any] = {"problems": problems} if lists_problems else {}
    if cfg.data.get("tile") is not None and (cache := _cache(cfg)) is not None:
        options["copies"] = cache
    if "on_bad_sample" in cfg.data.source and cfg.get("hide_annotators"):
        options["hide_annotators"] = True
    try:
        parts = instantiate(cfg.data.source, **options)
    except InstantiationException as error:
        mistake = first_cause(error, InputError)
        raise mistake or error from error
    if not begun_config(cfg):  # an earlier version refused less
        check_split_is_drawn(getattr(parts.train, "split_by", None), task_overrides())
    return parts


def _without_bad_masks(cfg: DictConfig, train: Any, noise: "NoiseModel | None") -> Any:
    """Exclude or refuse training samples for which other annotators' masks are unusable."""
    from coseg_lightning.data.subsets import SomeImages
    from coseg_lightning.noise.models import annotators

    for model in annotators(noise):
        bad = model.validate_masks(train, skip=cfg.on_bad_sample == "skip")
        train = SomeImages(train, bad) if bad else train
    return train


def _cache(cfg: DictConfig) -> Path | None:
    cache = cfg.data.get("cache")
    if not isinstance(cache, bool | str | None):
        raise InputError(f"data.cache={cache} must be true, false, or a folder.")
    if isinstance(cache, str):
        return Path(cache)
    return user_cache_path("coseg-lightning") / "images" if cache else None


def make_noise(cfg: DictConfig) -> "NoiseModel | None":
    """Build the configured noise model; several models are applied in sequence."""
    from coseg_lightning.files.mask_rules import MaskRules
    from coseg_lightning.files.naming import PLAIN, without_annotator
    from coseg_lightning.noise.models import Annotator, AtLabelDice, Combined

    models = [instantiate(cfg.noise[name]) for name in _noise_names(cfg)]
    if (
        cfg.data.get("mask_glob", "auto") != "auto"
    ):  # other annotators' masks are read like the dataset's
        for model in models:
            if isinstance(model, Annotator):
                glob = without_annotator(cfg.data.mask_glob) or PLAIN
                model.read_as(MaskRules.from_settings(cfg.data), glob)
    if not models:
        return None
    noise = models[0] if len(models) == 1 else Combined(models)
    if cfg.noise.label_dice is None:
        return noise
    if not is_number(cfg.noise.label_dice):
        raise InputError(f"noise.label_dice={cfg.noise.label_dice} must be a number, or null.")
    return AtLabelDice(noise, cfg.noise.label_dice)


def noise_name(cfg: DictConfig) -> str:
    """Return the noise's name: `type1+missing`, or `affine@0.8` for a label Dice of 0.8."""
    name = "+".join(_noise_names(cfg))
    return name if cfg.noise.label_dice is None else f"{name}@{cfg.noise.label_dice:g}"


def _noise_names(cfg: DictConfig) -> list[str]:
    return [
        str(name)
        for name, node in cfg.noise.items()
        if isinstance(node, DictConfig) and "_target_" in node
    ]


def make_method(cfg: DictConfig) -> "Method":
    """Find the configured method, by its name, its stages, or the full name of a `Method`."""
    from coseg_lightning.methods.method import Method
    from coseg_lightning.methods.registry import find_method

    full_name = cfg.method.get("object")
    if full_name is None:
        return find_method(cfg.method.name, cfg.method.get("stages"))
    method = _imported("method.object", full_name)
    if not isinstance(method, Method):
        raise InputError(
            f"method.object={full_name} must be a coseg_lightning.methods.method.Method; give its "
            "full name, such as my_package.MY_METHOD."
        )
    return method


def run_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments of `run_stages`: method, recipe, functions that make parts, seed."""
    return {
        "method": make_method(cfg),
        "recipe": recipe_of(cfg),
        "peers": partial(make_peers, cfg),
        "network": partial(make_network, cfg),
        "trainer": partial(make_trainer, cfg),
        "seed": cfg.seed,
    }


def make_peers(cfg: DictConfig) -> "CoSegModule":
    """Build a module of two networks, of the same or different kinds, with different weights."""
    from coseg_lightning.modules.coseg import CoSegModule
    from coseg_lightning.networks.mirror import MIRROR, Mirror

    kind = _class("method.module", cfg.method.module)
    if not issubclass(kind, CoSegModule):
        raise InputError(f"method.module={cfg.method.module} must be derived from CoSegModule.")
    _check_is_method(cfg, kind, _options(cfg))
    try:
        first = instantiate(cfg.model, _convert_="all")  # its random weights are drawn first
        second = instantiate(cfg.get("peer_b") or cfg.model, _convert_="all")
        module: CoSegModule = kind(
            first,
            MIRROR if isinstance(second, Mirror) else second,
            noise_level=cfg.nol,
            **recipe_of(cfg).of_peers,
            **_training(cfg),
            **_options(cfg),
        )
    except TypeError as error:
        raise InputError(f"method.options={_options(cfg)}: {error}.") from error
    return module


def make_network(cfg: DictConfig) -> "SegmentationModule":
    """Build a module with one network of the first peer's kind, for section 2.3 or a method."""
    from coseg_lightning.modules.segmentation import SegmentationModule

    kind: type[SegmentationModule] = SegmentationModule
    options: dict[str, Any] = {}
    trains_peers = make_method(cfg).trains_peers
    if "module" in cfg.method and not trains_peers:
        kind, options = _class("method.module", cfg.method.module), _options(cfg)
        if not issubclass(kind, SegmentationModule):
            raise InputError(
                f"method.module={cfg.method.module} must be derived from SegmentationModule, since "
                f"method={cfg.method.name} trains a single network."
            )
    elif not trains_peers and _options(cfg):
        raise InputError(
            f"method.options={_options(cfg)} would have no effect, since method={cfg.method.name} "
            "has no module of its own; leave it out."
        )
    if "pixel_loss" in cfg.method:
        options = {"pixel_loss": cfg.method.pixel_loss, **options}
    if not trains_peers:
        _check_is_method(cfg, kind, options)
    try:
        module: SegmentationModule = kind(
            instantiate(cfg.model, _convert_="all"),
            **recipe_of(cfg).of_networks,
            **_training(cfg),
            **options,
        )
    except TypeError as error:
        raise InputError(f"method.options={_options(cfg)}: {error}.") from error
    return module


def _check_is_method(cfg: DictConfig, kind: type, options: Mapping[str, Any]) -> None:
    """Raise an `InputError` if a method would train another module, or with another loss.

    `Method.check_module` refuses that too, but speaks of arguments in Python.
    """
    method = make_method(cfg)
    if method.module is not None and not issubclass(kind, method.module):
        raise InputError(
            f"method={method.name} trains a {method.module.__name__}, which method.module="
            f"{cfg.method.get('module')} is not; leave it out, or give a class derived from "
            f"{method.module.__module__}.{method.module.__name__}."
        )
    for name, value in method.options.items():
        if options.get(name) == value:
            continue
        key, other = f"method.options.{name}", ""
        if name == "pixel_loss":
            key, other = f"method.{name}", ", or give method=supervised, which takes any loss"
        raise InputError(
            f"{key}={options.get(name)} would make another method of method={method.name}, which "
            f"needs {value}; leave it out{other}."
        )


def _options(cfg: DictConfig) -> dict[str, Any]:
    options: Any = OmegaConf.to_container(cfg.method.get("options") or OmegaConf.create())
    return dict(options)


def _training(cfg: DictConfig) -> dict[str, Any]:
    return {
        "in_channels": cfg.data.in_channels,
        "classes": cfg.data.classes,
        "optimizer": _optimizer(cfg),
        "scheduler": _schedule(cfg),
    }


def _optimizer(cfg: DictConfig) -> Any:
    """Return the optimizer's class, with further options such as `+optimizer.momentum=0.9`."""
    kind = _class("optimizer.name", cfg.optimizer.name)
    settings: Any = OmegaConf.to_container(cfg.optimizer)
    options = {k: v for k, v in settings.items() if k not in ("name", "lr", "scheduler")}
    known = inspect.signature(kind).parameters
    for name in options:
        if name not in known:
            raise unknown_setting(f"optimizer.{name}", [f"optimizer.{key}" for key in known])
    return partial(kind, **options) if options else kind


def _schedule(cfg: DictConfig) -> "Schedule | None":
    node = cfg.optimizer.get("scheduler")
    if node is None:
        return None
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise InputError(
            f"optimizer.scheduler={node} must name a class and its arguments, as in "
            "'+optimizer.scheduler={_target_: torch.optim.lr_scheduler.StepLR, step_size: 10}'."
        )
    kind = _class("optimizer.scheduler._target_", node["_target_"])
    known = inspect.signature(kind).parameters
    for name in node:
        if name not in known and not str(name).startswith("_"):
            arguments = [f"optimizer.scheduler.{key}" for key in known]
            raise unknown_setting(f"optimizer.scheduler.{name}", arguments)
        if node[name] == "auto":
            raise InputError(
                f"optimizer.scheduler.{name}=auto must be a number, but the number of epochs is "
                "unknown until the data is read; give trainer.max_epochs a number."
            )
    needed = [
        name
        for name, parameter in list(known.items())[1:]  # the first is the optimizer
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    for name in needed:
        if name not in node:
            raise InputError(
                f"optimizer.scheduler={node['_target_']} also needs {name}; give "
                f"+optimizer.scheduler.{name}=VALUE."
            )
    schedule: Schedule = instantiate(node, _partial_=True)
    return schedule


def _class(key: str, name: str) -> type:
    imported = _imported(key, name)
    if not isinstance(imported, type):
        raise InputError(f"{key}={name}: there is no such class; {FULL_NAME}")
    return imported


FULL_NAME = "give its full name, such as torch.optim.SGD."


def _imported(key: str, name: str) -> Any:
    """Import the object with the full name `package.module.NAME` that a setting gives.

    Raises:
        InputError: If it cannot be imported.
    """
    before, name = str(name), home_now(str(name))
    if name != before:
        log.warning("%s is now called %s; the old name goes in version 0.3.", key, name)
    reason = "there is no such class"
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):  # a module that the named one imports is missing
            reason = f"{module} cannot be imported ({one_line(error)})"
    except (ImportError, AttributeError, ValueError):
        pass
    raise InputError(f"{key}={name}: {reason}; {FULL_NAME}")


LOCAL_LOGGERS = ("CSVLogger", "TensorBoardLogger")  # they only write into a stage's folder


def rehearsal_settings(cfg: DictConfig) -> DictConfig:
    """Return the settings of a rehearsal: one quiet process without output elsewhere."""
    settings: dict[str, Any] = dict(cfg)
    devices = cfg.trainer.get("devices")
    settings["trainer"] = {
        **cfg.trainer,
        "devices": list(devices)[:1] if OmegaConf.is_list(devices) else 1,
        "num_nodes": 1,
        "strategy": "auto",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": None,
    }
    if str(cfg.logger.get("_target_")).rpartition(".")[2] not in LOCAL_LOGGERS:
        settings["logger"] = {}
    return OmegaConf.create(settings)


def precision_of(trainer: DictConfig) -> Any:
    """Return the precision that a trainer of these settings computes with.

    `auto` is bfloat16 if it is native. On a CPU, Lightning takes bfloat16 where float16 is given.
    """
    from coseg_lightning.modules.compat import computes_bfloat16, is_cpu

    precision, accelerator = trainer.get("precision"), str(trainer.get("accelerator"))
    if precision == "auto":
        return "bf16-mixed" if computes_bfloat16(accelerator) else "32-true"
    if str(precision) in ("16", "16-mixed") and is_cpu(accelerator):
        return "bf16-mixed"
    return "32-true" if precision is None and not trainer.get("plugins") else precision


def make_logger(cfg: DictConfig, folder: Path) -> Any:
    """Build the further logger that is configured.

    Args:
        cfg: The composed configuration.
        folder: The folder to write into; with a `logger.save_dir`, one of the same name there.
    """
    kind = _imported("logger._target_", cfg.logger["_target_"])
    if not _takes_folder(kind):
        return instantiate(cfg.logger)
    given = cfg.logger.get("save_dir")
    place = folder if given is None else Path(given).expanduser() / folder.name
    return instantiate(cfg.logger, save_dir=str(place))


def _takes_folder(kind: Any) -> bool:
    """Whether a logger has an argument `save_dir`, also one that it passes on by `**options`."""
    for maker in kind.__mro__ if isinstance(kind, type) else (kind,):
        parameters = inspect.signature(maker).parameters
        if "save_dir" in parameters:
            return True
        if all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
            return False
    return not isinstance(kind, type)  # where a function passes its options to is unknown


def make_trainer(
    cfg: DictConfig, *, logger: Any, default_root_dir: Path, **rest: Any
) -> "pl.Trainer":
    """Build the trainer of one stage.

    Args:
        cfg: The composed configuration.
        logger: The stage's own logger or loggers.
        default_root_dir: The stage's folder.
        rest: Further arguments of the trainer.

    Raises:
        InputError: If the trainer would start processes that cannot join this run.
    """
    from coseg_lightning.callbacks.enough_epochs import EnoughEpochs
    from coseg_lightning.modules.compat import loses_results

    for name in ("logger", "default_root_dir", "enable_checkpointing"):
        if name in cfg.trainer:
            raise InputError(
                f"trainer.{name}={cfg.trainer[name]}: each stage sets its own; leave it out"
                + (", and choose logger=tensorboard or logger=wandb." if name == "logger" else ".")
            )
    own = instantiate(cfg.trainer.get("callbacks")) or []
    rest["callbacks"] = [*rest.get("callbacks", ()), *own]
    if cfg.trainer.get("max_epochs") == "auto":
        rest["max_epochs"] = -1
        of_data = None if "_target_" in cfg.data else cfg.data.get("max_epochs")
        rest["callbacks"].insert(0, EnoughEpochs(of_data))
    loggers = list(logger) if isinstance(logger, list) else [logger] if logger else []
    if loggers and "_target_" in cfg.logger:
        loggers.append(make_logger(cfg, Path(default_root_dir)))
    rest["precision"] = precision_of(cfg.trainer)
    rest["_convert_"] = "partial"  # Lightning reads max_time as a plain dict alone
    trainer: pl.Trainer = instantiate(
        cfg.trainer, logger=loggers, default_root_dir=str(default_root_dir), **rest
    )
    if loses_results(trainer.strategy):
        raise InputError(
            f"trainer.strategy={cfg.trainer.strategy} keeps the results in its child processes; "
            "use trainer=ddp."
        )
    is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if trainer.strategy.launcher is not None and is_sweep and trainer.world_size > 1:
        raise InputError(
            "A multirun cannot start several processes per job, since each of them would run the "
            "whole sweep again; sweep with trainer.devices=1, or start one run for each setting "
            "(for nol in 0.1 0.3; do python -m coseg_lightning.run trainer=ddp nol=$nol; done)."
        )
    return trainer
