"""Runs a method: python -m coseg_lightning.run model=unet noise=type2 nol=0.3."""

import logging
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.build import (
    make_data,
    make_logger,
    make_method,
    make_network,
    make_own_data,
    make_trainer,
    normalization_of,
    precision_of,
    rehearsal_settings,
    run_arguments,
)
from coseg_lightning.app.checks import (
    check,
    check_objective,
    check_review_is_ordered,
    check_rounds,
    check_used,
    check_validation,
    is_optimised,
    keeps_best,
    quiet,
    recipe_of,
)
from coseg_lightning.app.command import (
    command,
    output_is_closed,
    review_paths,
    task_overrides,
)
from coseg_lightning.app.commands import COMMANDS
from coseg_lightning.app.given import read_augmentation, read_clean_ids, read_ids, read_kinds
from coseg_lightning.app.settled import begun_config, begun_data, settle_folders
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_rules import read_colours, unnamed_background
from coseg_lightning.files.progress import is_first_process
from coseg_lightning.files.settings import setting

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule

    from coseg_lightning.app.rebuild import AppRun

log = logging.getLogger(__name__)
START = time.perf_counter()


@command("run")
def main(cfg: DictConfig) -> float | None:
    """Compose, check, run the stages, and show the results.

    Returns:
        The metric that `objective` names, for sweepers such as Optuna's. It is None if the metric
        is missing and no sweeper needs it.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    is_job = HydraConfig.get().mode == RunMode.MULTIRUN
    if is_job:  # whose settings are all given
        go_on_in_sweep(cfg, folder)
    else:
        check_one_place(cfg, folder)
        cfg = as_it_began(cfg, task_overrides())
    summary = run(cfg, folder, start=time.perf_counter() if is_job else START)
    from coseg_lightning.runs.summary import objective

    return objective(folder, summary, cfg.objective, required=is_optimised())


def run(cfg: DictConfig, folder: Path, *, start: float | None = None) -> dict[str, Any]:
    """Run the stages of a composed configuration in a folder, or resume them.

    Args:
        cfg: The configuration.
        folder: The run's folder.
        start: Start time of the command by `time.perf_counter`; now by default.

    Returns:
        The content of `summary.json`.
    """
    start = time.perf_counter() if start is None else start
    if cfg.review is not None or cfg.stages is not None:
        return retrain_by_review(cfg, folder, start)
    check(cfg)  # before torch is imported, which takes seconds

    from coseg_lightning.report.console import show_summary
    from coseg_lightning.report.review_order import show_review_order
    from coseg_lightning.runs.folder import RunFolder

    quiet()
    depend_on_data_alone(cfg)
    check_level_can_be_estimated(cfg)
    weights = _weights_files(cfg)
    config: Any = {**_plain(cfg), **weights}
    check_used(make_method(cfg), task_overrides())
    check_review_is_ordered(cfg, make_method(cfg))
    # Compare with an earlier run before writing anything; the data is compared after it is read.
    resume = cfg.resume is not None
    earlier = RunFolder(folder, config, resume=resume, not_compared=("recipe", "samples"))
    if earlier.summary is not None and (folder / "report.html").is_file():
        show_summary(folder, earlier.summary)  # works even if its data is gone
        show_review_order(folder, cfg.get("review_budget"))
        _warn_if_it_is_tried_alone(cfg)
        return earlier.summary
    is_own = "_target_" in cfg.data
    _say_if_phantoms_are_drawn(cfg)
    _warn_if_it_is_tried_alone(cfg)
    if not is_own and cfg.data.get("folds") is not None:
        return _run_folds(cfg, folder, config, start)
    data = make_own_data(cfg) if is_own else make_data(cfg, folder)
    _say_if_level_is_estimated(cfg)
    config = {**_plain(cfg), **weights}  # with statistics of the data
    check_objective(cfg, make_method(cfg), data)
    check_validation(cfg, make_method(cfg), data)
    summary = _run_stages(cfg, folder, data, config)
    return _show(cfg, folder, summary, data, start)


def go_on_in_sweep(cfg: DictConfig, folder: Path) -> None:
    """Go on with a job of a sweep that is given again, with the same `hydra.sweep.dir`.

    Raises:
        InputError: If `resume` is given, since each job has a folder of its own.
    """
    if cfg.review is not None or cfg.stages is not None:
        return
    if cfg.resume is not None:
        raise InputError(
            f"resume={cfg.resume} cannot be obeyed in a sweep, whose jobs have folders of their "
            "own; to go on with a sweep, give its command again with hydra.sweep.dir=FOLDER."
        )
    from coseg_lightning.runs.folder import RunFolder

    if RunFolder.holds_run(folder):
        cfg.resume = str(folder)


def check_one_place(cfg: DictConfig, folder: Path) -> None:
    """Raise an `InputError` if a run would go on in another folder; a review may lie elsewhere."""
    if cfg.resume is None or cfg.review is not None or cfg.stages is not None:
        return
    if Path(HydraConfig.get().runtime.cwd, cfg.resume).resolve() != folder.resolve():
        raise InputError(
            f"resume={cfg.resume} goes on in that folder, not in hydra.run.dir={folder}; leave one "
            "of the two out."
        )


def as_it_began(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the settings of the run to resume, with overrides from the command.

    An override that changes the results is refused later, when both are compared.

    Args:
        cfg: The configuration of the current command.
        overrides: The settings as given to the command.
    """
    if cfg.resume is None or cfg.review is not None or cfg.stages is not None:
        return cfg
    from coseg_lightning.app.rebuild import moved, settings_begun_with
    from coseg_lightning.runs.folder import is_free

    begun = settings_begun_with(cfg.resume, cfg, trust=cfg.trust is True)
    given = [one.lstrip("+~").partition("=") for one in overrides]
    values = {name.rpartition("@")[2]: value for name, _, value in given}
    if begun is None:
        if begun_config(cfg):
            raise InputError(
                f"resume={cfg.resume}: that is a review, or a run from Python, which goes on where "
                "it was begun; give review=FILE to review it again."
            )
        if all(map(is_free, values)):
            raise InputError(
                f"resume={cfg.resume}: no run has begun there, so its settings are unknown; give "
                "the folder of a run, or all settings of this one."
            )
        return cfg
    files = _own_files(cfg)
    values = {**_set_by_files(files, cfg), **values}
    if "data.root" in values and begun.data.get("root") is not None:
        place = str(Path(cfg.data.root).expanduser().absolute())
        begun = OmegaConf.create(moved(OmegaConf.to_container(begun), begun.data.root, place))
    for key, text in values.items():
        if key in files:
            continue
        value = OmegaConf.select(cfg, key)
        is_choice = key in ("data", "model", "peer_b", "method") and text.isidentifier()
        if not (is_choice and _is_same_choice(value, OmegaConf.select(begun, key))):
            OmegaConf.update(begun, key, value, force_add=True)
    return begun


def _own_files(cfg: DictConfig) -> list[str]:
    """Return the groups of files that set others' settings, such as `experiment`."""
    choices = {"experiment": None, **HydraConfig.get().runtime.choices}
    return [key for key in choices if key not in cfg and not re.search("@|/", key)]


def _set_by_files(files: Sequence[str], cfg: DictConfig) -> dict[str, str]:
    """Return what an experiment, or a configuration of another name, sets, as if it were given."""
    config, choices = HydraConfig.get().job.config_name, HydraConfig.get().runtime.choices
    if config == COMMANDS["run"].config and not any(choices.get(key) for key in files):
        return {}
    groups = [one for one in task_overrides() if one.lstrip("+~").partition("=")[0] in choices]
    others = [one for one in groups if one.lstrip("+~").partition("=")[0] not in files]
    plain = compose(COMMANDS["run"].config, overrides=others, return_hydra_config=True)
    usual = plain.hydra.runtime.choices
    chosen = {
        key: str(choice)
        for key, choice in choices.items()
        if choice and choice != usual.get(key) and "/" not in key and key not in files
    }
    others += [f"{'' if key in usual else '+'}{key}={choice}" for key, choice in chosen.items()]
    plain = compose(COMMANDS["run"].config, overrides=others)
    found = {key.rpartition("@")[2]: choice for key, choice in chosen.items()}
    return found | dict(_changed(OmegaConf.to_container(plain), OmegaConf.to_container(cfg)))


def _changed(before: Any, now: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            yield from _changed(before[name], value, f"{prefix}{name}.")
        elif name not in before or before[name] != value:
            yield f"{prefix}{name}", str(value)


def _is_same_choice(now: Any, begun: Any) -> bool:
    """Whether two groups of settings are the same choice, whatever their settings."""
    if not (OmegaConf.is_dict(now) and OmegaConf.is_dict(begun)):
        return False
    chosen = [
        (OmegaConf.select(now, key), OmegaConf.select(begun, key))
        for key in ("_target_", "name", "source._target_")
    ]
    return all(one == other for one, other in chosen) and any(one is not None for one, _ in chosen)


def _estimates_level(cfg: DictConfig) -> bool:
    return bool(cfg.nol == "auto") and make_method(cfg).trains_peers


def check_level_can_be_estimated(cfg: DictConfig) -> None:
    """Raise an `InputError` if training is too short to estimate the noise level."""
    if _estimates_level(cfg) and cfg.trainer.get("max_epochs") == 1:
        raise InputError(
            "trainer.max_epochs=1 is too few to estimate the noise level, which needs the first "
            "half of training; set 2 or more, or give nol."
        )


def _say_if_level_is_estimated(cfg: DictConfig) -> None:
    """Log that the noise level is estimated because it was not given, if it is used."""
    keys = {override.partition("=")[0] for override in task_overrides()}
    is_new = not begun_config(cfg)
    if is_new and _estimates_level(cfg) and "nol" not in keys and is_first_process():
        log.info(
            "nol is not given, so the share of bad masks is estimated (nol=auto); if you know it, "
            "give it, as in nol=0.2."
        )


def _say_if_phantoms_are_drawn(cfg: DictConfig) -> None:
    """Log that the images are not the user's."""
    is_drawn = "phantom_splits" in str(cfg.data.get("source"))
    if is_drawn and not begun_config(cfg) and is_first_process():
        log.info("No folder is given, so the run draws its own images and masks (phantoms).")


def _warn_if_it_is_tried_alone(cfg: DictConfig) -> None:
    """Warn of Lightning's switch for trying code, whose figures look like those of a run."""
    batches = int(cfg.trainer.get("fast_dev_run") or 0)
    if batches and is_first_process():
        log.warning(
            "trainer.fast_dev_run=%s: each stage trains and tests on %s, so no figure of this run "
            "means anything. Leave it out to train; all stages are tried before each run anyway.",
            cfg.trainer.fast_dev_run,
            "1 batch" if batches == 1 else f"{batches} batches",
        )


def depend_on_data_alone(cfg: DictConfig) -> None:
    """Make paths absolute and read lists, so that a run only depends on the data's files.

    The precision is fixed too, so that a run resumed elsewhere either continues as it began or
    fails.
    """
    if cfg.data.get("root") is not None:
        cfg.data.root = str(Path(cfg.data.root).expanduser().absolute())
    settle_folders(cfg)
    if isinstance(cfg.data.get("clean_ids"), str):
        cfg.data.clean_ids = read_clean_ids(cfg)
    if isinstance(cfg.data.get("trusted_ids"), str):
        cfg.data.trusted_ids = read_ids("data.trusted_ids", cfg.data.trusted_ids)
    if isinstance(cfg.data.get("augmentation"), str):
        cfg.data.augmentation = read_augmentation(cfg)
    if isinstance(cfg.data.get("kinds"), str):
        cfg.data.kinds = read_kinds(cfg)
    if isinstance(cfg.data.get("colours"), str):
        if (sentence := unnamed_background(cfg.data.colours)) is not None:
            log.warning("%s", sentence)
        cfg.data.colours = [[*rgb, k] for rgb, k in read_colours(cfg.data.colours).items()]
    begun = begun_data(cfg).get("normalization")
    if cfg.data.get("normalization") == "training" and isinstance(begun, list):
        cfg.data.normalization = begun
    if cfg.data.get("normalization") == "auto" and begun != "auto" and "_target_" not in cfg.data:
        statistics = normalization_of(cfg)
        if statistics is not None:
            cfg.data.normalization = [list(values) for values in statistics]
    for group, file in _weights_of(cfg).items():
        OmegaConf.update(cfg, f"{group}.encoder_weights", str(file.absolute()))
    recorded = (begun_config(cfg).get("trainer") or {}).get("precision")
    if "precision" in cfg.trainer and cfg.trainer.precision != recorded:
        OmegaConf.update(cfg, "trainer.precision", precision_of(cfg.trainer))


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(plain)


def _weights_of(cfg: DictConfig) -> dict[str, Path]:
    """Return the files of pretrained weights, by the network that they are for.

    Raises:
        InputError: If a network would take the file's name for that of weights to download.
    """
    from coseg_lightning.networks.weights import weights_file

    files = {}
    for group in ("model", "peer_b"):
        weights = OmegaConf.select(cfg, f"{group}.encoder_weights")
        if weights is None:
            continue
        target = str(cfg[group]["_target_"])
        if target.startswith(("coseg_lightning.", "segmentation_models_pytorch.")):
            file = weights_file(weights)
        else:  # somebody's own argument
            file = Path(str(weights)).expanduser()
            file = file if file.is_file() else None
        if file is not None and target.startswith("segmentation_models_pytorch."):
            raise InputError(
                f"{group}.encoder_weights={file}: {target} reads no file, and would download "
                "weights; give model=NAME, such as model=unet, whose networks are smp's too."
            )
        if file is not None:
            files[group] = file
    return files


def _weights_files(cfg: DictConfig) -> dict[str, Any]:
    """Return the digests of files of pretrained weights, as a part of the run's identity.

    Raises:
        InputError: If a file is missing.
    """
    from coseg_lightning.networks.weights import weights_digest
    from coseg_lightning.runs.folder import WEIGHTS_FILES

    begun = begun_config(cfg)
    if begun and WEIGHTS_FILES not in begun:
        return {}  # there are none, or it began before they were recorded
    digests = {group: weights_digest(file) for group, file in _weights_of(cfg).items()}
    return {WEIGHTS_FILES: digests} if digests else {}


def _run_stages(
    cfg: DictConfig, folder: Path, data: "LightningDataModule", config: dict[str, Any]
) -> dict[str, Any]:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from coseg_lightning.callbacks.processes import first_process_ends_first
    from coseg_lightning.methods.pipeline import run_stages
    from coseg_lightning.runs.folder import RunFolder

    fail = first_process_ends_first()
    try:
        return run_stages(
            data,
            folder,
            **run_arguments(cfg),
            baselines=cfg.baselines,
            config=config,
            resume=cfg.resume is not None,
            keep_checkpoints=bool(cfg.get("keep_checkpoints", True)),
            keep_best=keeps_best(cfg),
            patience=cfg.get("early_stopping"),
            rehearse=cfg.rehearse and partial(make_trainer, rehearsal_settings(cfg)),
        )
    except BaseException as error:
        fail()
        is_refused = cfg.resume is not None and isinstance(error, InputError)
        if RunFolder.holds_run(folder) and not is_refused:
            cause = "Stopped by SIGTERM" if isinstance(error, SIGTERMException) else "Stopped"
            say = log.info
            if isinstance(error, BrokenPipeError) and output_is_closed():
                cause = "Stopped, since nothing reads the output"
                say = partial(print, file=sys.stderr)  # nothing can be logged any more
            say(f"{cause}. The finished part is kept; go on with {setting('resume', folder)}")
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(128 + signal.SIGINT) from error
        raise


def _run_folds(
    cfg: DictConfig, folder: Path, config: dict[str, Any], start: float
) -> dict[str, Any]:
    """Run all folds, and show the combined results."""
    from coseg_lightning.app.folds import check_folds, run_folds

    check_folds(cfg)
    _say_if_level_is_estimated(cfg)
    summary = run_folds(cfg, folder, config)
    return _show(cfg, folder, summary, make_data(cfg, folder, everything=True), start)


def _show(
    cfg: DictConfig,
    folder: Path,
    summary: dict[str, Any],
    data: "LightningDataModule",
    start: float,
) -> dict[str, Any]:
    """Write the report, log its figures, and print the summary."""
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.report.console import show_summary
    from coseg_lightning.report.joined import write_image_scores
    from coseg_lightning.report.loggers import log_figures
    from coseg_lightning.report.page import write_report
    from coseg_lightning.report.review_order import show_review_order

    tiles = data.tiles if isinstance(data, CoSegDataModule) else None
    if tiles is not None and (folder / "scores.csv").is_file():
        write_image_scores(folder, tiles)
    figures = write_report(folder, data if isinstance(data, CoSegDataModule) else None)
    if figures and "_target_" in cfg.logger:
        log_figures(make_logger(cfg, folder / "figures"), figures)
    show_summary(folder, summary, time.perf_counter() - start)
    _warn_if_it_is_tried_alone(cfg)
    show_review_order(folder, cfg.get("review_budget"))
    return summary


def retrain_by_review(cfg: DictConfig, folder: Path, start: float) -> dict[str, Any]:
    """Retrain on a run's masks after a person's review."""
    if not isinstance(cfg.trust, bool):
        raise InputError(f"trust={cfg.trust} must be true or false.")
    check_rounds(cfg)
    if cfg.review is None or cfg.resume is None or cfg.stages not in (None, ["retraining"]):
        raise InputError(
            f"stages={cfg.stages} review={cfg.review} resume={cfg.resume}: to retrain a reviewed "
            "run, give stages=[retraining] resume=RUN review=FILE."
        )
    from coseg_lightning.app.rebuild import AppRun, without_pretraining
    from coseg_lightning.labels.review import opened_review
    from coseg_lightning.methods.review import check_review, left_out, retrain_reviewed

    keys = {override: override.lstrip("+~").partition("=")[0] for override in task_overrides()}
    root = cfg.data.get("root") if "data.root" in keys.values() else None
    reviewed = AppRun(cfg.resume, root=root, trust=bool(cfg.trust))
    settings = settings_of(reviewed, cfg, keys)
    recipe, fresh = recipe_of(settings), without_pretraining(settings)
    quiet()
    check_review(reviewed)
    with opened_review(review_paths(cfg.review)) as review:  # raises before the data is read
        data = reviewed.data(review.to_redraw | left_out(reviewed))
        summary = retrain_reviewed(
            reviewed,
            data,
            folder,
            review,
            recipe=recipe,
            network=partial(make_network, fresh if recipe.warm_start else settings),
            trainer=partial(make_trainer, settings),
            classes=max(2, settings.data.classes),
            drawn_anew=reviewed.drawn_anew(data),
            peer=partial(reviewed.peer, "net_b") if cfg.rounds == "review" else None,
        )
    data = AppRun(folder, root=root, trust=bool(cfg.trust)).data()
    return _show(settings, folder, summary, data, start)


def settings_of(run: "AppRun", cfg: DictConfig, keys: dict[str, str]) -> DictConfig:
    """Return the settings of a finished run, with overrides of where and how it computes.

    Args:
        run: The finished run.
        cfg: The configuration of the current command.
        keys: Maps each override to the key that it sets.

    Raises:
        InputError: If an override would change the results.
    """
    from coseg_lightning.runs.folder import MAY_CHANGE

    settings = run.cfg
    for override, key in keys.items():
        if key in ("stages", "review", "rounds", "resume", "data.root", "trust"):
            continue
        if key not in MAY_CHANGE:
            raise InputError(
                f"{override} cannot be changed, since the settings are those of {cfg.resume}; "
                "leave it out."
            )
        OmegaConf.update(settings, key, OmegaConf.select(cfg, key))
    return settings


if __name__ == "__main__":
    main()
