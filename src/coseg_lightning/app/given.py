"""Reads what a user gives in files or lists: ids, kinds, annotators, augmentations."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.command import one_line
from coseg_lightning.errors import InputError
from coseg_lightning.modules.recipe import SCORES_WITH_KINDS


def read_clean_ids(cfg: DictConfig) -> list[str] | int:
    """Read the ids of training samples with correct masks: a list, a file's lines, or a number.

    Raises:
        InputError: If the setting has another form.
    """
    clean_ids = cfg.data.get("clean_ids")
    if isinstance(clean_ids, int) and not isinstance(clean_ids, bool):
        return clean_ids
    return read_ids("data.clean_ids", clean_ids, ", or the number of masks that noise leaves clean")


def read_ids(key: str, given: Any, otherwise: str = "") -> list[str]:
    """Read sample ids from a list or from the lines of a file; empty if nothing is given.

    Args:
        key: The setting.
        given: Its value.
        otherwise: Further allowed values, for the message.

    Raises:
        InputError: If the value is neither.
    """
    if given is None:
        return []
    if OmegaConf.is_list(given):
        for sample_id in given:
            if isinstance(sample_id, bool) or not isinstance(sample_id, str | int):
                raise InputError(
                    f"{key} holds {sample_id}, which is no text; write such an id in quotes: "
                    f"\"{key}=['{sample_id}']\"."
                )
        return [str(sample_id) for sample_id in given]
    path = Path(str(given)).expanduser()
    if not path.is_file():
        raise InputError(
            f"{key}={given}: there is no such file; give a list of ids, or a file with one id per "
            f"line{otherwise}."
        )
    from coseg_lightning.files.csv import text_encoding

    try:
        text = path.read_text(encoding=text_encoding(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as text with one id per line; save it in UTF-8."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_augmentation(cfg: DictConfig) -> Any:
    """Read the file that `data.augmentation` names; other values are returned unchanged.

    Raises:
        InputError: If the file cannot be read.
    """
    given = cfg.data.get("augmentation")
    if not isinstance(given, str):
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(f"data.augmentation={given}: there is no such file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"data.augmentation={given} cannot be read; give a YAML or JSON file written by "
            "albumentations.save."
        ) from error
    return content


def make_augmentation(cfg: DictConfig) -> Any:
    """Build the default augmentation, a given one, or none.

    Raises:
        InputError: If the setting is invalid, or contradicts `data.augment=false`.
    """
    given = read_augmentation(cfg)
    if given is None:
        return "default" if cfg.data.augment else None
    if not cfg.data.augment:
        raise InputError("data.augmentation would have no effect with data.augment=false.")
    content = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    if isinstance(content, dict) and "_target_" in content:
        try:
            return instantiate(content)
        except InstantiationException as error:
            raise InputError(f"data.augmentation={content}: {one_line(error)}") from error
    import albumentations

    try:
        return albumentations.from_dict(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "data.augmentation must be a YAML file written by albumentations.save, or name a "
            "function that takes image= and mask=, as in '{_target_: my.augmentation}' "
            f"({one_line(error)})."
        ) from error


def read_kinds(cfg: DictConfig) -> dict[str, str] | None:
    """Read the kind of each image from a CSV file with columns id and kind, or from a mapping.

    Raises:
        InputError: If the setting is neither, if no ranking uses kinds, or if the table repeats a
            sample or has an invalid kind.
    """
    from coseg_lightning.files.csv import read_table

    kinds = cfg.data.get("kinds")
    if kinds is None:
        return None
    score = cfg.method.get("score")
    if score not in SCORES_WITH_KINDS:
        ranks = "ranks no masks" if score is None else f"ranks by score={score}"
        raise InputError(
            f"data.kinds would have no effect, since method={cfg.method.name} {ranks}; leave it "
            f"out, or rank by {' or '.join(SCORES_WITH_KINDS)}."
        )
    if OmegaConf.is_dict(kinds):
        return {str(sample_id): str(kind) for sample_id, kind in kinds.items()}
    if not isinstance(kinds, str):
        raise InputError(f"data.kinds={kinds} must be a CSV file with the columns id and kind.")
    rows = read_table(Path(kinds).expanduser(), ["id", "kind"], guarded=False)
    result = {row["id"]: row["kind"].strip() for row in rows}
    for sample_id, kind in result.items():
        if not kind or kind == "???" or "${" in kind:
            raise InputError(f"In {kinds}, the kind of {sample_id} is {kind!r}; give it a name.")
    if len(result) < len(rows):
        twice = next(i for i, n in Counter(row["id"] for row in rows).items() if n > 1)
        raise InputError(f"{kinds} names {twice} twice; give each image one kind.")
    return result


def shown_annotators(cfg: DictConfig, dataset: Any, *others: Any) -> dict[str, str]:
    """Return who drew each mask of a dataset, by id: the names, or numbers in place of names.

    If names are hidden, they are also replaced in the dataset for images with several masks.

    Raises:
        InputError: If the setting `hide_annotators` is neither true nor false.
    """
    from coseg_lightning.ranking.people import numbered_names

    hide = cfg.get("hide_annotators", False)
    if not isinstance(hide, bool):
        raise InputError(f"hide_annotators={hide} must be true or false.")
    drawn_by: dict[str, str] = dict(getattr(dataset, "annotators", {}))
    if not hide:
        return drawn_by
    parts = (dataset, *others)
    names = {name for part in parts for name in getattr(part, "annotators", {}).values()}
    of_parts = [several for part in parts if (several := getattr(part, "several", None))]
    names |= {name for several in of_parts for i in several.ids for name in several.names(i)}
    numbers = numbered_names(names)
    for several in of_parts:
        several.rename(numbers)
    return {sample_id: numbers.get(name, name) for sample_id, name in drawn_by.items()}
