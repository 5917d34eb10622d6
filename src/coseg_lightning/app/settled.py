"""Decides, before data is read, where it lies: folders, names of files, annotators, tiles."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.errors import InputError
from coseg_lightning.files.progress import is_first_process

if TYPE_CHECKING:
    from coseg_lightning.files.naming import Files


log = logging.getLogger(__name__)

NAMING = ("image_glob", "mask_glob")


def settle_folders(cfg: DictConfig) -> None:
    """Find the folders of images and masks by their usual names, and log what was found.

    Raises:
        InputError: If a folder is missing or ambiguous.
    """
    from coseg_lightning.data.finding import (
        IMAGES,
        MASKS,
        find_files,
        find_folder,
        find_mask_folders,
    )
    from coseg_lightning.data.folder_checks import other_mask_folders, others_hold_files
    from coseg_lightning.files.naming import PLAIN

    settle_tile(cfg)
    source = str(OmegaConf.select(cfg, "data.source._target_"))
    if not source.endswith(".folder_splits") or "images" not in cfg.data:
        return
    root = Path(cfg.data.root).expanduser()
    settle_annotators(cfg, root)
    if not root.is_dir():  # a finished run can still be shown; otherwise reading fails later
        before = begun_data(cfg)
        cfg.data.images = before.get("images", cfg.data.images)
        cfg.data.masks = before.get("masks", cfg.data.masks)
        for key in NAMING:
            if key in cfg.data:
                cfg.data[key] = before.get(key, PLAIN)
        return
    images, masks = cfg.data.images, cfg.data.masks
    cfg.data.images = find_folder(root, str(images), IMAGES, "images")
    of_one = not OmegaConf.is_list(masks)
    cfg.data.masks = find_mask_folders(root, str(masks) if of_one else list(masks))
    guessed = {
        what: cfg.data[what]
        for what, name, usual in (("images", images, IMAGES), ("masks", masks, MASKS))
        if name == "auto" and cfg.data[what] != usual[0]
    }
    if guessed and is_first_process():
        found = " and ".join(f"{what} from {root / name}" for what, name in guessed.items())
        others = " or ".join(f"{what}=NAME" for what in guessed)
        log.info("Reading %s. To read another folder, give %s.", found, others)
        other_folders = []
        if "masks" in guessed:
            other_folders = other_mask_folders(
                root, root / str(cfg.data.images), root / guessed["masks"]
            )
        if other_folders:
            log.warning("But %s; these may be the masks.", others_hold_files(other_folders))
    if "image_glob" not in cfg.data:  # a run of an earlier version
        return
    files = find_files(
        root, cfg.data.images, cfg.data.masks, cfg.data.image_glob, cfg.data.mask_glob
    )
    patterns = dict(zip(NAMING, (files.images.pattern, files.masks[0].pattern), strict=True))
    guessed = {
        key: pattern
        for key, pattern in patterns.items()
        if cfg.data[key] == "auto" and pattern != PLAIN
    }
    cfg.data.update(patterns)
    if guessed and is_first_process():
        found = " and ".join(
            f"{key.partition('_')[0]}s are named {pattern}" for key, pattern in guessed.items()
        )
        settings = " ".join(f"data.{key}='{pattern}'" for key, pattern in guessed.items())
        if "{annotator}" in guessed.get("mask_glob", ""):
            found += _people_found(files.mask_files, hidden=bool(cfg.get("hide_annotators")))
        log.info("Assuming that %s. Confirm it by %s, or give another pattern.", found, settings)


def _people_found(mask_files: "Files", *, hidden: bool) -> str:
    """Describe how many people drew masks, and how many images have several masks."""
    from coseg_lightning.data.annotators import keys_by_image

    by_image = keys_by_image(mask_files)
    people = sorted({name for keys in by_image.values() for name in keys if name})
    several = sum(len(keys) > 1 for keys in by_image.values())
    shown = ", ".join(people[:3]) + (", ..." if len(people) > 3 else "")
    shown = "" if hidden else f" ({shown})"
    return f"; {len(people)} people{shown} drew them, and {several} images have several masks"


def settle_annotators(cfg: DictConfig, root: Path) -> None:
    """Read the file that names the annotator of each mask, unless it is part of the data.

    Raises:
        InputError: If the file is not such a table, or names that shall be hidden are settings.
    """
    from coseg_lightning.data.annotators import annotator_rows

    given = cfg.data.get("annotators")
    if cfg.get("hide_annotators") is True and not isinstance(given, str | None):
        raise InputError(
            "hide_annotators=true cannot hide names that are settings, which are written beside "
            "the results; write them into a file, and give data.annotators=FILE."
        )
    if isinstance(given, str) and given != "auto":
        path, rows = annotator_rows(given, root)
        # The settings are a part of all results, in which nobody is named if names are hidden.
        hidden = cfg.get("hide_annotators") is True
        place, inside = Path(path).absolute(), root.absolute()
        place = place.relative_to(inside) if inside in place.parents else place
        cfg.data.annotators = str(place) if hidden else [list(row) for row in rows]


def settle_tile(cfg: DictConfig) -> None:
    """Set the networks' input size to that of the tiles, if images are cut into tiles.

    Raises:
        InputError: If another size is given, or a setting that does not work with tiles.
    """
    tile = cfg.data.get("tile")
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if tile is None:
        if "data.overlap" in given:
            raise InputError(
                f"data.overlap={cfg.data.overlap} would have no effect without data.tile, the side "
                "of the tiles; give it too, or leave the overlap out."
            )
        return
    if not isinstance(tile, int) or isinstance(tile, bool):
        raise InputError(
            f"data.tile={tile} must be a whole number of pixels, such as 512, or null."
        )
    overlap = cfg.data.get("overlap")
    if not isinstance(overlap, int) or isinstance(overlap, bool):
        raise InputError(f"data.overlap={overlap} must be a whole number of pixels, such as 64.")
    if "data.image_size" in given and cfg.data.image_size != tile:
        raise InputError(
            f"data.image_size={cfg.data.image_size} contradicts data.tile={tile}, since tiles are "
            "not resized; leave data.image_size out."
        )
    if cfg.get("predictions") is not None:
        raise InputError(
            f"predictions={cfg.predictions} must be of whole images, but data.tile={tile} cuts "
            "images into tiles; leave data.tile out."
        )
    cfg.data.image_size = tile


def begun_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the recorded settings of the run to resume; empty without one that can be read."""
    if cfg.get("resume") is None:
        return {}
    try:
        text = (Path(str(cfg.resume)) / "run.json").read_text(encoding="utf-8")
        return dict(json.loads(text)["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def begun_data(cfg: DictConfig) -> dict[str, Any]:
    """Return the data settings of the run to resume; empty without one that can be read."""
    data = begun_config(cfg).get("data")
    return dict(data) if isinstance(data, dict) else {}
