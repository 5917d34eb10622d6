"""Registers the recipe's fields as groups of settings, for conf/ to compose.

Their default values are defined only in `Recipe`. `conf/config.yaml` includes `recipe/training`,
and the files in `conf/method` include `recipe/peers` and `recipe/correction`.
"""

from typing import Any

from hydra.core.config_store import ConfigStore

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
