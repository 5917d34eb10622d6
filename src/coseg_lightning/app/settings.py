"""Registers the recipe's fields as groups of settings, for conf/ to compose.

Their default values are defined only in `Recipe`. `conf/config.yaml` includes `recipe/training`,
and the files in `conf/method` include `recipe/peers` and `recipe/correction`.
"""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore

from coseg_lightning.errors import InputError
from coseg_lightning.modules.recipe import Recipe


def _defaults(group: str) -> dict[str, Any]:
    return {name: getattr(Recipe, name) for name in Recipe.SETTINGS[group]}


def register() -> None:
    """Register the groups with Hydra."""
    store = ConfigStore.instance()
    training = {
        **_defaults("training"),
        "loss": _defaults("loss"),
        "optimizer": _defaults("optimizer"),
    }
    store.store(group="recipe", name="training", node=training)
    store.store(group="recipe", name="peers", node=_defaults("peers"))
    store.store(group="recipe", name="correction", node=_defaults("correction"))


# All settings, by group. Other groups hold the arguments of their `_target_` or `name`, and are
# checked where these are called.
SETTINGS: dict[str, tuple[str, ...]] = {
    "": (
        *("model", "peer_b", "data", "noise", "method", "trainer", "logger", "experiment", "nol"),
        *("seed", "baselines", "rehearse", "resume", "stages", "review", "trust", "objective"),
        *("review_budget", "rounds"),
        *("hide_annotators", "on_bad_sample", "keep_checkpoints", "final", "early_stopping"),
        *("optimizer", "loss", "averaging"),
    ),
    "data": (
        *("root", "images", "masks", "nol", "classes", "class_names", "pixel_size", "unit"),
        *(
            "in_channels",
            "image_size",
            "keep_shape",
            "batch_size",
            "num_workers",
            "augment",
            "augmentation",
        ),
        *("trusted_ids", "cache", "clean_ids", "kinds", "normalization", "source", "max_epochs"),
        *("folds", "image_glob", "mask_glob", "allow_links", "group", "bands", "nodata"),
        *("class_ids", "colours", "mask_threshold", "instances", "tile", "overlap"),
        *("annotators", "label"),
    ),
    "loss": Recipe.SETTINGS["loss"],
    "method": (
        *Recipe.SETTINGS["peers"],
        *Recipe.SETTINGS["correction"],
        *("name", "module", "object", "stages", "options", "pixel_loss"),
    ),
}
# Common arguments in groups that take others too.
ARGUMENTS = (
    *("trainer.max_epochs", "trainer.accelerator", "trainer.devices", "trainer.precision"),
    *("optimizer.name", "optimizer.lr", "optimizer.scheduler", "noise.level", "noise.masks"),
    *("model.encoder_name", "model.encoder_weights", "noise.label_dice"),
)


def _is_of_lightning(argument: str) -> bool:
    from pytorch_lightning import Trainer

    return argument in inspect.signature(Trainer).parameters


def unknown_setting(name: str, arguments: Sequence[str] = ()) -> InputError:
    """Return the error for an unknown setting, with the most similar known one.

    Args:
        name: The setting.
        arguments: Further known settings.
    """
    known = [f"{group}.{key}".lstrip(".") for group, keys in SETTINGS.items() for key in keys]
    known += [*ARGUMENTS, *arguments]
    group, _, last = name.rpartition(".")
    known = [key for key in known if key != name]  # it may exist, but not for this choice
    near: list[str] = []
    for keys in ([key for key in known if key.rpartition(".")[0] == group], known):
        by_last = {key.rpartition(".")[2]: key for key in keys}
        near += [by_last[key] for key in difflib.get_close_matches(last, by_last, n=1)]
    hint = f"did you mean {near[0]}?" if near else "--help lists all settings."
    if group == "trainer" and (not near or _is_of_lightning(last)):
        hint = f"other arguments of Lightning's Trainer need a plus, as in +{name}=..."
    return InputError(f"There is no setting {name}, so it would have no effect; {hint}")
