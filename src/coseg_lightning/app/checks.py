"""Checks a composed configuration before any work starts."""

import logging
import math
import os
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.command import check_nothing_missing
from coseg_lightning.app.settings import SETTINGS, unknown_setting
from coseg_lightning.app.settled import begun_config
from coseg_lightning.errors import InputError
from coseg_lightning.modules.recipe import Recipe, is_count, is_number

if TYPE_CHECKING:
    from coseg_lightning.methods.method import Method

COUNTS = {  # whole numbers with their smallest values
    "seed": 0,
    "data.in_channels": 1,
    "data.classes": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
}


NAMED = {"optimizer": "optimizer.name", "loss": "loss.lambda_1"}  # examples for messages


def check_known(cfg: DictConfig, also: Sequence[str] = ()) -> None:
    """Raise an `InputError` for an unknown setting, with the most similar known one.

    Args:
        cfg: The composed configuration.
        also: Further settings that the command has.
    """
    text = str(OmegaConf.to_container(cfg, resolve=False))
    for group in ("data", "noise", "method", "trainer", "optimizer", "loss", "logger"):
        if not OmegaConf.is_dict(cfg.get(group, OmegaConf.create())):
            files = "" if group in NAMED else f"one of the files in conf/{group}, or "
            raise InputError(
                f"{group}={cfg[group]} does not name a setting; give {files}one of its settings, "
                f"as in {NAMED.get(group, group + '.NAME')}=..."
            )
    for name, node in cfg.get("noise", {}).items():
        if name not in ("level", "label_dice", "masks") and not OmegaConf.is_dict(node):
            raise unknown_setting(f"noise.{name}")
    if cfg.get("logger") and "_target_" not in cfg.logger:
        raise unknown_setting(f"logger.{next(iter(cfg.logger))}")
    for group, known in SETTINGS.items():
        node = OmegaConf.select(cfg, group) if group else cfg
        if group == "data" and "_target_" in node:
            continue  # the keys are the arguments of a user's datamodule
        for name in map(str, node if known is not None and OmegaConf.is_dict(node) else ()):
            # Other settings may refer to it as ${name}.
            is_used = not group and re.search(rf"\$\{{{re.escape(name)}[}}.\[]", text)
            if name not in known and not is_used and (group or name not in also):
                raise unknown_setting(f"{group}.{name}".lstrip("."))


def quiet() -> None:
    """Silence messages of libraries that would hide a command's own output."""
    # Lightning logs the hardware and tips for each trainer.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # Matplotlib logs its search for fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # By default data is loaded in the training process, which suits small images and few cores.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # There may be no validation set.
    warnings.filterwarnings("ignore", "Total length of .* across ranks is zero.*")
    # The count need not be reduced, since all processes skip the same steps.
    warnings.filterwarnings("ignore", ".*train/skipped.*")
    # The previous stage used the same wandb run.
    warnings.filterwarnings("ignore", ".*There is a wandb run already.*")
    # Lightning and torch make these deprecated calls themselves.
    warnings.filterwarnings("ignore", ".*treespec.*is deprecated.*")
    warnings.filterwarnings("ignore", ".*torch.jit.script.*is deprecated.*")


def check(cfg: DictConfig, also: Sequence[str] = ()) -> None:
    """Raise an `InputError` for wrong values that later code would report less clearly.

    Args:
        cfg: The composed configuration.
        also: Settings of the command beyond those of `coseg_lightning.run`.
    """
    check_nothing_missing(cfg)
    check_known(cfg, also)
    has_own_data = "_target_" in cfg.data
    is_new = not has_own_data and not begun_config(cfg)  # an earlier version refused less
    source = str(OmegaConf.select(cfg, "data.source._target_"))
    if source.endswith(".phantom_splits") and cfg.data.get("root") is not None:
        raise InputError(
            f"data.root={cfg.data.root} would not be read, since data=phantom draws its pictures; "
            "give data=folder."
        )
    for key in (
        "baselines",
        "rehearse",
        "trust",
        "keep_checkpoints",
        *(() if has_own_data else ("data.augment",)),
        *(k for k in ("data.keep_shape", "data.allow_links") if is_new and cfg.data.get(k[5:])),
    ):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, bool):
            raise InputError(f"{key}={value} must be true or false.")
    cache = cfg.data.get("cache") if is_new else None
    if str(cache).lower() in ("yes", "no", "on", "off"):
        raise InputError(f"data.cache={cache} must be true, false, or a folder.")
    if cfg.nol != "auto":
        check_share(cfg, "nol")
    elif cfg.noise.level == "auto" and not has_own_data:
        raise InputError(
            "An experiment with noise needs the share of masks to make noisy: give nol=0.3, or "
            "noise.level=0.3 together with nol=auto."
        )
    if not has_own_data:  # noise is refused for a user's own data
        check_share(cfg, "noise.level")
    if is_new:
        _check_noise_is_added(cfg)
        _check_clean_ids_are_used(cfg)
    if not OmegaConf.is_dict(cfg.method.get("options", OmegaConf.create())):
        raise InputError(
            f"method.options={cfg.method.options} must hold arguments, as in "
            "+method.options.agreement_weight=0.5."
        )
    if cfg.on_bad_sample not in ("error", "skip"):
        raise InputError(f"on_bad_sample={cfg.on_bad_sample} must be error or skip.")
    if not has_own_data:
        _check_image_size(cfg)
    for key, least in COUNTS.items():
        if not has_own_data or key in ("data.in_channels", "data.classes", "seed"):
            check_count(cfg, key, least)
    names = None if has_own_data else cfg.data.get("class_names")
    wanted = max(2, cfg.data.classes) - 1
    if names is not None and not (OmegaConf.is_list(names) and len(names) == wanted):
        raise InputError(
            f"data.class_names={names} must be a list of one name for each class after the "
            f"background, {wanted} in all."
        )
    size = None if has_own_data else cfg.data.get("pixel_size")
    if size is not None and not (is_number(size) and 0 < size < float("inf")):
        raise InputError(f"data.pixel_size={size} must be a number above 0, or null for pixels.")
    nodata = None if has_own_data else cfg.data.get("nodata")
    if isinstance(nodata, float) and not math.isfinite(nodata):
        cfg.data.nodata = str(nodata)  # as JSON, which records the settings, has no such numbers
    if not has_own_data and size is None and cfg.data.get("unit") is not None:
        raise InputError(
            f"data.unit={cfg.data.unit} would have no effect without data.pixel_size, the side of "
            "a pixel in that unit."
        )
    if not has_own_data and cfg.data.get("max_epochs") is not None:
        check_count(cfg, "data.max_epochs", 1)
    epochs = OmegaConf.select(cfg, "trainer.max_epochs")
    if epochs != "auto" and not is_count(epochs, least=1):
        raise InputError(
            f"trainer.max_epochs={epochs} must be a whole number of at least 1, or auto."
        )
    if cfg.get("final", "last") not in ("last", "best"):
        raise InputError(f"final={cfg.final} must be last or best.")
    if cfg.get("early_stopping") is not None:
        check_count(cfg, "early_stopping", 1)
    check_rounds(cfg)
    if cfg.get("review_budget") is not None:
        check_count(cfg, "review_budget", 1)
    _check_callbacks(cfg.trainer.get("callbacks"))
    if str(cfg.objective).partition("/")[0] not in ("val", "test", "train"):
        raise InputError(
            f"objective={cfg.objective} must be a logged metric, such as val/dice, or a metric of "
            "the test images, such as test/dice."
        )
    _check_one_folder()
    recipe_of(cfg)


def check_rounds(cfg: DictConfig) -> None:
    """Raise an `InputError` unless `rounds` is absent, or is `review` with a review."""
    rounds = cfg.get("rounds")
    if rounds is not None and (rounds != "review" or cfg.get("review") is None):
        raise InputError(
            f"rounds={rounds} must be review, together with review=FILE; for several rounds of "
            "correction by the peers, set method.rounds."
        )


def _check_callbacks(callbacks: Any) -> None:
    nodes = callbacks if OmegaConf.is_list(callbacks) else [callbacks]
    if callbacks is not None and not all(OmegaConf.is_dict(n) and "_target_" in n for n in nodes):
        raise InputError(
            f"trainer.callbacks={callbacks} must be a list of classes and their arguments, as in "
            "'+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.LearningRateMonitor}]'."
        )


def is_optimised() -> bool:
    """Whether a Hydra sweeper optimises a number; the basic sweeper does not."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return "BasicSweeper" not in str(HydraConfig.get().sweeper.get("_target_"))


MEASURED = r"(dice|accuracy)(?P<peer>_[ab])?|dice(?P<same>_[ab])?_class_(?P<number>\d+)"


def check_objective(cfg: DictConfig, method: "Method", data: Any) -> None:
    """Raise an `InputError` before training if the metric that a sweep optimises is missing."""
    part, _, metric = cfg.objective.partition("/")
    if not is_optimised():
        return
    own = str(cfg.method.get("module", "coseg_lightning.")).startswith("coseg_lightning.")
    if own and part != "train" and not _is_measured(cfg, method, part, metric):
        raise InputError(
            f"The sweep optimises objective={cfg.objective}, but nothing logs it; choose "
            f"{part}/dice, {part}/accuracy, or {part}/dice_class_1 and so on."
        )
    if "_target_" in cfg.data:
        return
    if part in ("val", "test") and data.samples(part) is None:
        raise InputError(
            f"The sweep optimises objective={cfg.objective}, but there are no "
            f"{'validation' if part == 'val' else 'test'} images; set some apart, or name another "
            "metric."
        )


def _is_measured(cfg: DictConfig, method: "Method", part: str, metric: str) -> bool:
    """Whether the last stage of a method logs a metric, or its test has it.

    Only the validation of a pair has metrics of each peer; of a method of somebody's own it is not
    known what comes last.
    """
    found = re.fullmatch(MEASURED, metric)
    if found is None or int(found["number"] or 0) >= max(2, cfg.data.classes):
        return False
    is_open = cfg.method.get("object") is not None
    has_peers = part == "val" and (is_open or method.stage_names[-1] == "robust_training")
    return has_peers or not (found["peer"] or found["same"])


def keeps_best(cfg: DictConfig) -> bool:
    """Whether the last stage ends with the network of the best epoch."""
    return cfg.get("final", "last") == "best" or cfg.get("early_stopping") is not None


def check_validation(cfg: DictConfig, method: "Method", data: Any) -> None:
    """Raise an `InputError` before training if no validation masks can select the best epoch."""
    if not keeps_best(cfg):
        return
    given = "final=best" if cfg.early_stopping is None else f"early_stopping={cfg.early_stopping}"
    if method.trains_peers and len(method.stages) == 1:
        raise InputError(
            f"{given} would have no effect, since method={method.name} trains only peers; leave "
            "it out."
        )
    if "_target_" in cfg.data:
        return  # training reports an error if nothing is validated
    if data.samples("val") is None:
        raise InputError(
            f"{given} uses the Dice of validation images, but there are none; put some into the "
            "part val of split.csv."
        )
    if data.trusted_val is False:
        raise InputError(
            f"{given} would choose a network by validation masks that nobody checked, so the "
            "network would repeat their mistakes; check them, and name them in data.trusted_ids."
        )


def check_used(method: "Method", overrides: Sequence[str]) -> None:
    """Raise an `InputError` for settings of the recipe that a method does not use.

    Args:
        method: The method.
        overrides: The given settings. One added with `+`, since the method's own file in
            conf/method/ lacks it, has no effect and is refused. One added with `++` is allowed,
            for sweeps in which only some methods use it.
    """
    for override in overrides if not method.trains_peers and not _is_sweep() else ():
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith(("model@peer_b", "peer_b.")) and value != "null":
            raise InputError(
                f"method={method.name} trains a single network, so {override} would have no "
                "effect; leave it out."
            )
    unused = [] if method.trains_peers else [*Recipe.SETTINGS["peers"], "rounds"]
    if method.correction is None:
        unused += [name for name in Recipe.SETTINGS["correction"] if name != "rounds"]
    for override in overrides:
        if override.partition("=")[0] in {f"+method.{name}" for name in unused}:
            raise InputError(
                f"method={method.name} does not use {override.lstrip('+')}, so it would have no "
                "effect; leave it out."
            )


def check_review_is_ordered(cfg: DictConfig, method: "Method") -> None:
    """Raise an `InputError` for a review budget of a run that lists no masks for a review.

    Sweeps may also try methods that rank. Stages of somebody's own may write `scores.csv` too.
    """
    budget = cfg.get("review_budget")
    if budget in (None, begun_config(cfg).get("review_budget")) or _is_sweep():
        return  # an earlier version refused less
    reason = None
    if "_target_" in cfg.data:
        reason = "the masks of a datamodule of your own cannot be read to compare them"
    elif cfg.method.get("object") is None and "robust_training" not in method.stage_names:
        reason = f"method={method.name} ranks no masks"
    if reason is not None:
        raise InputError(
            f"review_budget={budget} would have no effect, since {reason}; leave it out."
        )


def recipe_of(cfg: DictConfig) -> Recipe:
    """Build the recipe of a composed configuration."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return Recipe.of(settings)


def _is_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _adds_noise(cfg: DictConfig) -> bool:
    return any(OmegaConf.is_dict(node) for node in cfg.noise.values())


def _check_noise_is_added(cfg: DictConfig) -> None:
    """Raise an `InputError` for settings of noise if none is added; sweeps may also try none."""
    if _is_sweep() or _adds_noise(cfg):
        return
    for key in ("level", "label_dice"):
        if cfg.noise.get(key):
            raise InputError(
                f"noise.{key}={cfg.noise[key]} would have no effect without a kind of noise; give "
                "one too, such as noise=type2, or leave it out."
            )


def _check_clean_ids_are_used(cfg: DictConfig) -> None:
    """Raise an `InputError` for clean samples that nothing learns from and no noise leaves clean.

    Sweeps may also try methods that do not use them.
    """
    module = str(cfg.method.get("module") or "coseg_lightning.")
    is_own = not module.startswith("coseg_lightning.") or cfg.method.get("object") is not None
    if not cfg.data.get("clean_ids") or is_own or _is_sweep() or _adds_noise(cfg):
        return
    if cfg.method.name != "reweight":
        raise InputError(
            f"data.clean_ids would have no effect with method={cfg.method.name}, since only "
            "method=reweight learns from masks known to be right; leave it out. Test masks that "
            "somebody checked are named in data.trusted_ids."
        )


def check_split_is_drawn(split_by: str | None, overrides: Sequence[str]) -> None:
    """Raise an `InputError` for settings of a drawn split if something else decides it.

    Args:
        split_by: What decided it, see `FolderImages`.
        overrides: The given settings. Sweeps may also try folders whose split is drawn.
    """
    if split_by is None or split_by.startswith("drawn") or _is_sweep():
        return
    decided = split_by.removeprefix("by ")
    unused = ["test_share"] if decided == split_by else ["test_share", "val_share", "seed"]
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in {f"data.source.{name}" for name in unused}:
            raise InputError(
                f"{key}={value} would have no effect, since the split is decided by {decided}; "
                "leave it out."
            )


def _check_one_folder() -> None:
    """Raise an `InputError` if separately started processes are not given a common folder.

    The default folder is named after the time, which differs between processes.
    """
    launched = any(
        rank in os.environ and int(os.environ.get(size, 1)) > 1
        for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
    )
    if launched and HydraConfig.initialized():
        overrides = HydraConfig.get().overrides
        if not any(
            override.startswith(("hydra.run.dir=", "resume="))
            for override in (*overrides.hydra, *overrides.task)
        ):
            raise InputError(
                "torchrun or srun started several processes, which need one folder to share; add "
                "hydra.run.dir=... or resume=..."
            )


def check_share(cfg: DictConfig, key: str) -> None:
    """Raise an `InputError` unless a value is a share of noisy samples."""
    value = OmegaConf.select(cfg, key)
    if not is_number(value) or not 0 <= value < 1:
        other = ", or auto" if key == "nol" else ""
        percent = is_number(value) and 2 <= value < 100
        hint = f" Did you mean {key}={value / 100:g}?" if percent else ""
        raise InputError(
            f"{key}={value} must be a number of at least 0 and less than 1{other}: the share of "
            f"training samples with noisy labels.{hint}"
        )


def _check_image_size(cfg: DictConfig) -> None:
    size = cfg.data.image_size
    sides = list(size) if OmegaConf.is_list(size) else [size]
    if len(sides) > 2 or not sides or not all(is_count(side, least=1) for side in sides):
        raise InputError(
            f"data.image_size={size} must be a whole number of at least 1, or [height,width]."
        )
    if OmegaConf.is_list(size) and len(sides) != 2:
        raise InputError(f"data.image_size={size} must be one number, or [height,width].")


def check_count(cfg: DictConfig, key: str, least: int) -> None:
    """Raise an `InputError` unless a value is a whole number of at least `least`."""
    value = OmegaConf.select(cfg, key)
    if not is_count(value, least=least):
        is_too_much = isinstance(value, int) and value >= least
        wanted = f"from {least} to {2**32 - 1}" if is_too_much else f"of at least {least}"
        raise InputError(f"{key}={value} must be a whole number {wanted}.")
