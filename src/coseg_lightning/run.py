"""The app: python -m coseg_lightning.run model=unet noise=type2 nol=0.3."""

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from coseg_lightning.coseg_module import CoSegModule
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.noise import NoiseModel
    from coseg_lightning.segmentation_module import SegmentationModule

FULL_ERROR = "HYDRA_FULL_ERROR"
SHOW_TRACEBACK = os.environ.get(FULL_ERROR) == "1"
COUNTS = {  # and the least that each may be
    "seed": 0,
    "data.image_size": 1,
    "data.in_channels": 1,
    "data.classes": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "trainer.max_epochs": 1,
}
HERE = Path(__file__).resolve().parent
# An installed wheel carries conf/ beside this module; in a checkout it lies at the top.
CONF = next(p for p in (HERE / "conf", HERE.parents[1] / "conf") if p.is_dir())


def main() -> None:
    """Run the app; a user's mistake ends in one sentence and exit status 1.

    `HYDRA_FULL_ERROR=1` in the environment shows the whole traceback instead.
    """
    if SHOW_TRACEBACK:
        app()
        return
    os.environ[FULL_ERROR] = "1"  # let Hydra's own errors through to here; `app` takes it back
    try:
        app()
    except MissingConfigException as error:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        options = list(error.options or [])
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(options)}."
        sys.exit(f"There is no {group} {name!r}; {hint}")
    except OverrideParseException as error:
        sys.exit(
            f"{error.override} cannot be understood; quote a value that has spaces or special "
            "signs twice, as in 'data.root=\"my folder\"'."
        )
    except HydraException as error:
        sys.exit(_one_line(error))


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def app(cfg: DictConfig) -> None:
    """Compose, check, run the stages, and show what came out."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    mistakes = (
        InputError,
        MisconfigurationException,
        OmegaConfBaseException,
        InstantiationException,
    )
    if not SHOW_TRACEBACK:
        os.environ.pop(FULL_ERROR, None)
    try:
        run(cfg, Path(HydraConfig.get().runtime.output_dir))
    except Exception as error:
        told = next(filter(None, (_first_cause(error, kind) for kind in mistakes)), None)
        if told is None or SHOW_TRACEBACK:
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # its other jobs go on
            raise CompactHydraException(_one_line(told)) from error
        sys.exit(_one_line(told))


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Run the stages that a composed configuration asks for, into a folder."""
    from coseg_lightning.console import show_summary
    from coseg_lightning.report import write_report
    from coseg_lightning.stages import run_stages

    check(cfg)
    # Lightning's notes on hardware and tips, once a trainer, would bury the run's own lines.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # The default is to load in the training process, which is right for small images on few cores.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Total length of .* across ranks is zero.*")  # no val set
    warnings.filterwarnings("ignore", ".*treespec.*is deprecated.*")  # Lightning's, not the user's
    data = make_data(cfg, folder)
    summary = run_stages(
        data,
        folder,
        method=cfg.method.name,
        peers=partial(make_peers, cfg),
        network=partial(make_network, cfg),
        trainer=partial(make_trainer, cfg),
        seed=cfg.seed,
        score=cfg.method.get("score", "mean"),
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
    )
    write_report(folder, data)
    show_summary(folder, summary)
    return summary


def check(cfg: DictConfig) -> None:
    """Raise an `InputError` for values that no later place would name as clearly."""
    missing = sorted(_missing(OmegaConf.to_container(cfg, resolve=False)))
    if missing:
        raise InputError(
            f"No value was given for {missing[0]}; add {missing[0]}=... to the command."
        )
    for key in ("nol", "noise.level"):
        value = OmegaConf.select(cfg, key)
        if not _is_number(value) or not 0 <= value < 1:
            raise InputError(
                f"{key}={value} must be a number of at least 0 and less than 1: the share of "
                "training samples with noisy labels."
            )
    for key, least in COUNTS.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:
            raise InputError(f"{key}={value} must be a whole number of at least {least}.")
    _check_one_folder()
    for key in ("optimizer.lr", "loss.lambda_1", "loss.lambda_2"):
        value = OmegaConf.select(cfg, key)
        if not _is_number(value) or value < 0:
            raise InputError(f"{key}={value} must be a number of at least 0.")


def _check_one_folder() -> None:
    """The default folder is named by the time, which processes started apart do not share."""
    launched = any(
        rank in os.environ and int(os.environ.get(size, 1)) > 1
        for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
    )
    if launched and HydraConfig.initialized():
        given = HydraConfig.get().overrides.hydra
        if not any(override.startswith("hydra.run.dir=") for override in given):
            raise InputError(
                "Several processes were started by torchrun or srun, and must be told one folder "
                "to share: add hydra.run.dir=..."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _missing(node: Any, prefix: str = "") -> Iterator[str]:
    """The keys without a value, `???`."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == "???":
        yield prefix


def make_data(cfg: DictConfig, folder: Path) -> "CoSegDataModule":
    """The datasets, with the noise that the configuration asks for."""
    from coseg_lightning.data.datamodule import CoSegDataModule

    splits = instantiate(cfg.data.source)
    noise = make_noise(cfg)
    return CoSegDataModule(
        splits.train,
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
    )


def make_noise(cfg: DictConfig) -> "NoiseModel | None":
    """The noise model that the configuration asks for: all that are named, one after the other."""
    from coseg_lightning.noise import AtLabelDice, Combined

    models = [
        instantiate(model)
        for model in cfg.noise.values()
        if isinstance(model, DictConfig) and "_target_" in model
    ]
    if not models:
        return None
    noise = models[0] if len(models) == 1 else Combined(models)
    return noise if cfg.noise.label_dice is None else AtLabelDice(noise, cfg.noise.label_dice)


def make_peers(cfg: DictConfig) -> "CoSegModule":
    """Two networks, alike or different, with initial weights of their own."""
    from coseg_lightning.coseg_module import CoSegModule

    return CoSegModule(
        instantiate(cfg.model),
        instantiate(cfg.get("peer_b") or cfg.model),
        noise_level=cfg.nol,
        ramp_epochs=cfg.method.ramp_epochs,
        **_training(cfg),
    )


def make_network(cfg: DictConfig) -> "SegmentationModule":
    """One network of the first peer's kind (section 2.3)."""
    from coseg_lightning.segmentation_module import SegmentationModule

    return SegmentationModule(instantiate(cfg.model), **_training(cfg))


def _training(cfg: DictConfig) -> dict[str, Any]:
    return {
        "classes": cfg.data.classes,
        "lambda_1": cfg.loss.lambda_1,
        "lambda_2": cfg.loss.lambda_2,
        "include_background": cfg.loss.include_background,
        "lr": cfg.optimizer.lr,
        "optimizer": _optimizer_class(cfg.optimizer.name),
    }


def _optimizer_class(name: str) -> type:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
        if isinstance(found, type):
            return found
    except (ImportError, AttributeError, ValueError):
        pass
    raise InputError(
        f"optimizer.name={name}: there is no such class; give one such as torch.optim.SGD."
    )


def make_trainer(
    cfg: DictConfig, *, logger: Any, default_root_dir: Path, **rest: Any
) -> "pl.Trainer":
    """A trainer of one stage.

    Raises:
        InputError: If it would start processes that cannot join this run.
    """
    loggers = [logger]
    if "_target_" in cfg.logger:
        loggers.append(instantiate(cfg.logger, save_dir=str(default_root_dir)))
    trainer: pl.Trainer = instantiate(
        cfg.trainer, logger=loggers, default_root_dir=str(default_root_dir), **rest
    )
    launcher = trainer.strategy.launcher
    if launcher is not None and launcher.is_interactive_compatible:
        raise InputError(
            f"trainer.strategy={cfg.trainer.strategy} keeps the results in its child processes; "
            "use trainer=ddp."
        )
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if launcher is not None and sweeping and trainer.world_size > 1:
        raise InputError(
            "A multirun cannot start several processes a job, since each of them would run the "
            "whole sweep again; sweep with trainer.devices=1, or start one run for each setting "
            "(for nol in 0.1 0.3; do python -m coseg_lightning.run trainer=ddp nol=$nol; done)."
        )
    return trainer


def _first_cause(error: BaseException | None, kind: type[Exception]) -> BaseException | None:
    """The first of an exception and its causes that is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _one_line(error: BaseException) -> str:
    """A message without Hydra's trailing lines on where in the configuration it stood."""
    # A DataLoader's worker hands over its whole traceback as the message.
    lines = str(error).rpartition(f"{InputError.__module__}.InputError: ")[2].split("\n")
    kept = [line.strip() for line in lines if line.strip()]
    return " ".join(line for line in kept if not line.startswith(("full_key:", "object_type=")))


if __name__ == "__main__":
    main()
