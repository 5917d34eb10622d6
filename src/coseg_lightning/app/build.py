"""What a composed configuration asks for: data, noise, peers, networks, trainers."""

import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from platformdirs import user_cache_path

from coseg_lightning.app.checks import recipe_of
from coseg_lightning.app.command import first_cause, one_line
from coseg_lightning.errors import InputError
from coseg_lightning.modules.recipe import is_number

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.methods.method import Method
    from coseg_lightning.modules.coseg import CoSegModule
    from coseg_lightning.modules.optimizers import Schedule
    from coseg_lightning.modules.segmentation import SegmentationModule
    from coseg_lightning.noise.models import NoiseModel


log = logging.getLogger(__name__)


def make_data(
    cfg: DictConfig, folder: Path, *, everything: bool = False, tells_problems: bool = True
) -> "CoSegDataModule":
    """The datasets, with the noise that the configuration asks for.

    Args:
        cfg: The composed configuration.
        folder: Where the noisy masks are kept.
        tells_problems: Whether files that cannot be used are listed there.
        everything: Whether validation and test samples are training samples too.
    """
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.data.folder import Splits
    from coseg_lightning.data.subsets import JoinedImages, SomeImages
    from coseg_lightning.noise.models import annotators

    lists = tells_problems and "on_bad_sample" in cfg.data.source
    listed = {"problems": folder / "problems.csv"} if lists else {}
    try:
        splits = instantiate(cfg.data.source, **listed)
    except InstantiationException as error:
        mistake = first_cause(error, InputError)
        raise mistake or error from error
    if everything:
        splits = Splits(JoinedImages([part for part in splits if part is not None]), None, None)
    noise = make_noise(cfg)
    train = splits.train
    for model in annotators(noise):
        bad = model.validate_masks(train, skip=cfg.on_bad_sample == "skip")
        train = SomeImages(train, bad) if bad else train
    return CoSegDataModule(
        train,
        splits.val,
        splits.test,
        image_size=cfg.data.image_size,
        in_channels=cfg.data.in_channels,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        augmentation="default" if cfg.data.augment else None,
        seed=cfg.seed,
        noise=noise,
        noise_level=cfg.noise.level,
        noise_folder=None if noise is None else folder / "noise",
        cache=_cache(cfg),
        clean_ids=read_clean_ids(cfg),
    )


def read_clean_ids(cfg: DictConfig) -> list[str] | int:
    """The training samples whose masks are known to be right: a list, a file's lines, a number."""
    given = cfg.data.get("clean_ids")
    if given is None:
        return []
    if OmegaConf.is_list(given) or (isinstance(given, int) and not isinstance(given, bool)):
        return given if isinstance(given, int) else [str(id) for id in given]
    path = Path(str(given)).expanduser()
    if not path.is_file():
        raise InputError(
            f"data.clean_ids={given} must be a list of ids, a file with one id a line, or how many "
            "an experiment leaves clean."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text with one id a line.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _cache(cfg: DictConfig) -> Path | None:
    cache = cfg.data.get("cache")
    if not isinstance(cache, bool | str | None):
        raise InputError(f"data.cache={cache} must be true, false, or a folder.")
    if isinstance(cache, str):
        return Path(cache)
    return user_cache_path("coseg-lightning") / "images" if cache else None


def make_noise(cfg: DictConfig) -> "NoiseModel | None":
    """The noise model that the configuration asks for: all that are named, one after the other."""
    from coseg_lightning.noise.models import AtLabelDice, Combined

    models = [instantiate(cfg.noise[name]) for name in _noise_names(cfg)]
    if not models:
        return None
    noise = models[0] if len(models) == 1 else Combined(models)
    if cfg.noise.label_dice is None:
        return noise
    if not is_number(cfg.noise.label_dice):
        raise InputError(f"noise.label_dice={cfg.noise.label_dice} must be a number, or null.")
    return AtLabelDice(noise, cfg.noise.label_dice)


def noise_name(cfg: DictConfig) -> str:
    """What to call that noise, such as `type1+missing` or `affine@0.8` for a label Dice of 0.8."""
    name = "+".join(_noise_names(cfg))
    return name if cfg.noise.label_dice is None else f"{name}@{cfg.noise.label_dice:g}"


def _noise_names(cfg: DictConfig) -> list[str]:
    nodes = cfg.noise.items()
    return [str(n) for n, node in nodes if isinstance(node, DictConfig) and "_target_" in node]


def make_method(cfg: DictConfig) -> "Method":
    """The method that is asked for: by its name, its stages, or the place of a `Method`."""
    from coseg_lightning.methods.method import Method
    from coseg_lightning.methods.registry import find_method

    place = cfg.method.get("object")
    if place is None:
        return find_method(cfg.method.name, cfg.method.get("stages"))
    method = _imported("method.object", place)
    if not isinstance(method, Method):
        raise InputError(
            f"method.object={place} must be a coseg_lightning.methods.method.Method; give its full "
            "name, such as my_package.MY_METHOD."
        )
    return method


def make_peers(cfg: DictConfig) -> "CoSegModule":
    """Two networks, alike or different, with initial weights of their own."""
    from coseg_lightning.modules.coseg import CoSegModule

    kind = _class("method.module", cfg.method.module)
    if not issubclass(kind, CoSegModule):
        raise InputError(f"method.module={cfg.method.module} must be derived from CoSegModule.")
    try:
        module: CoSegModule = kind(
            instantiate(cfg.model),
            instantiate(cfg.get("peer_b") or cfg.model),
            noise_level=cfg.nol,
            **recipe_of(cfg).of_peers,
            **_training(cfg),
            **_options(cfg),
        )
    except TypeError as error:
        raise InputError(f"method.options={_options(cfg)}: {error}.") from error
    return module


def make_network(cfg: DictConfig) -> "SegmentationModule":
    """One network of the first peer's kind: that of section 2.3, or a method's own module."""
    from coseg_lightning.modules.segmentation import SegmentationModule

    kind: type[SegmentationModule] = SegmentationModule
    options: dict[str, Any] = {}
    pairs = make_method(cfg).trains_peers
    if "module" in cfg.method and not pairs:
        kind, options = _class("method.module", cfg.method.module), _options(cfg)
        if not issubclass(kind, SegmentationModule):
            raise InputError(
                f"method.module={cfg.method.module} must be derived from SegmentationModule, since "
                f"method={cfg.method.name} trains a single network."
            )
    elif not pairs and _options(cfg):
        raise InputError(
            f"method.options={_options(cfg)}: method={cfg.method.name} has no module of its own, "
            "and takes none."
        )
    if "pixel_loss" in cfg.method:
        options = {"pixel_loss": cfg.method.pixel_loss, **options}
    try:
        module: SegmentationModule = kind(
            instantiate(cfg.model), **recipe_of(cfg).of_networks, **_training(cfg), **options
        )
    except TypeError as error:
        raise InputError(f"method.options={_options(cfg)}: {error}.") from error
    return module


def _options(cfg: DictConfig) -> dict[str, Any]:
    options: Any = OmegaConf.to_container(cfg.method.get("options") or OmegaConf.create())
    return dict(options)


def _training(cfg: DictConfig) -> dict[str, Any]:
    return {
        "in_channels": cfg.data.in_channels,
        "classes": cfg.data.classes,
        "optimizer": _class("optimizer.name", cfg.optimizer.name),
        "scheduler": _schedule(cfg),
    }


def _schedule(cfg: DictConfig) -> "Schedule | None":
    node = cfg.optimizer.get("scheduler")
    if node is None:
        return None
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise InputError(
            f"optimizer.scheduler={node} must name a class and its arguments, as in "
            "'+optimizer.scheduler={_target_: torch.optim.lr_scheduler.StepLR, step_size: 10}'."
        )
    made: Schedule = instantiate(node, _partial_=True)
    return made


def _class(key: str, name: str) -> type:
    found = _imported(key, name)
    if not isinstance(found, type):
        raise InputError(f"{key}={name}: there is no such class; {FULL_NAME}")
    return found


FULL_NAME = "give its full name, such as torch.optim.SGD."
# Where methods lay up to version 0.1.
MOVED = {
    "coseg_lightning.rivals.dimensionality": "coseg_lightning.methods.dimensionality",
    "coseg_lightning.rivals.early_learning": "coseg_lightning.methods.adele",
    "coseg_lightning.rivals.quality": "coseg_lightning.methods.pick_and_learn",
    "coseg_lightning.rivals.reweighting": "coseg_lightning.methods.reweight",
    "coseg_lightning.rivals.transition": "coseg_lightning.methods.transition",
    "coseg_lightning.rivals.peers.PlainPeers": "coseg_lightning.methods.filter.PlainPeers",
    "coseg_lightning.rivals.peers.JoCoR": "coseg_lightning.methods.jocor.JoCoR",
    "coseg_lightning.rivals.peers.PixelCoTeaching": (
        "coseg_lightning.methods.pixel_coteaching.PixelCoTeaching"
    ),
}


def _imported(key: str, name: str) -> Any:
    """What a setting names, `package.module.NAME`.

    Raises:
        InputError: If there is no such thing.
    """
    name = _where_it_is_now(key, str(name))
    why = "there is no such class"
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):  # one that it imports
            why = f"{module} cannot be imported ({one_line(error)})"
    except (ImportError, AttributeError, ValueError):
        pass
    raise InputError(f"{key}={name}: {why}; {FULL_NAME}")


def _where_it_is_now(key: str, name: str) -> str:
    for before, now in MOVED.items():
        if name == before or name.startswith(f"{before}."):
            name = now + name.removeprefix(before)
            log.warning("%s: it is %s now; the old name will not be known in 0.3.", key, name)
            return name
    return name


def make_trainer(
    cfg: DictConfig, *, logger: Any, default_root_dir: Path, **rest: Any
) -> "pl.Trainer":
    """A trainer of one stage.

    Raises:
        InputError: If it would start processes that cannot join this run.
    """
    from coseg_lightning.modules.compat import loses_results

    loggers = list(logger) if isinstance(logger, list) else [logger] if logger else []
    if loggers and "_target_" in cfg.logger:
        loggers.append(instantiate(cfg.logger, save_dir=str(default_root_dir)))
    trainer: pl.Trainer = instantiate(
        cfg.trainer, logger=loggers, default_root_dir=str(default_root_dir), **rest
    )
    if loses_results(trainer.strategy):
        raise InputError(
            f"trainer.strategy={cfg.trainer.strategy} keeps the results in its child processes; "
            "use trainer=ddp."
        )
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if trainer.strategy.launcher is not None and sweeping and trainer.world_size > 1:
        raise InputError(
            "A multirun cannot start several processes a job, since each of them would run the "
            "whole sweep again; sweep with trainer.devices=1, or start one run for each setting "
            "(for nol in 0.1 0.3; do python -m coseg_lightning.run trainer=ddp nol=$nol; done)."
        )
    return trainer
