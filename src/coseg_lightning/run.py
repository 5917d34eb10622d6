"""The app: python -m coseg_lightning.run model=unet noise=type2 nol=0.3."""

import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.build import (
    make_data,
    make_network,
    make_peers,
    make_trainer,
    read_clean_ids,
)
from coseg_lightning.command import (
    check_count,
    check_nothing_missing,
    check_share,
    command,
    is_number,
)
from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

COUNTS = {  # and the least that each may be
    "seed": 0,
    "data.image_size": 1,
    "data.in_channels": 1,
    "data.classes": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "trainer.max_epochs": 1,
}


@command("config")
def main(cfg: DictConfig) -> None:
    """Compose, check, run the stages, and show what came out."""
    run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Run the stages that a composed configuration asks for, into a folder, or go on with them."""
    if cfg.review is not None or cfg.stages is not None:
        return _reviewed(cfg, folder)
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from coseg_lightning.console import show_summary
    from coseg_lightning.report import write_report
    from coseg_lightning.report.loggers import log_figures
    from coseg_lightning.run_folder import RunFolder

    check(cfg)
    quiet()
    if cfg.data.get("root") is not None:  # to be found again from another folder
        cfg.data.root = str(Path(cfg.data.root).expanduser().absolute())
    if isinstance(cfg.data.get("clean_ids"), str):  # a run depends on no file outside of its data
        cfg.data.clean_ids = read_clean_ids(cfg)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    # Before anything is written; what the data holds is compared when it is known.
    resume = cfg.resume is not None
    kept = RunFolder(folder, config, resume=resume, beside=("recipe", "samples"))
    if kept.summary is not None and (folder / "report.html").is_file():
        show_summary(folder, kept.summary)  # its data may be gone
        return kept.summary
    data = make_data(cfg, folder)
    try:
        summary = _stages(cfg, folder, data)
    except BaseException as error:
        if RunFolder.holds_run(folder):
            how = "Stopped by SIGTERM" if isinstance(error, SIGTERMException) else "Stopped"
            log.info("%s; what was finished is kept: go on with resume=%s", how, folder)
        raise
    figures = write_report(folder, data)
    if figures and "_target_" in cfg.logger:
        log_figures(instantiate(cfg.logger, save_dir=str(folder / "figures")), figures)
    show_summary(folder, summary)
    return summary


def _reviewed(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Retrain on the masks of a run that somebody reviewed."""
    from coseg_lightning.console import show_summary
    from coseg_lightning.finished import FinishedRun
    from coseg_lightning.report import write_report
    from coseg_lightning.report.loggers import log_figures
    from coseg_lightning.review import retrain_reviewed
    from coseg_lightning.run_folder import FREE

    if cfg.review is None or cfg.resume is None or cfg.stages not in (None, ["retraining"]):
        raise InputError(
            f"stages={cfg.stages} review={cfg.review} resume={cfg.resume}: a reviewed run is "
            "retrained by stages=[retraining] resume=RUN review=FILE."
        )
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = {override: override.lstrip("+~").partition("=")[0] for override in given}
    moved = cfg.data.get("root") if "data.root" in keys.values() else None
    run = FinishedRun(cfg.resume, root=moved)
    settings = run.cfg
    for override, key in keys.items():
        if key in ("stages", "review", "resume", "data.root"):
            continue
        if key not in FREE:
            raise InputError(f"{override}: the settings are those of {cfg.resume}; leave it out.")
        OmegaConf.update(settings, key, OmegaConf.select(cfg, key))
    quiet()
    summary = retrain_reviewed(
        run,
        folder,
        cfg.review,
        network=partial(make_network, settings),
        trainer=partial(make_trainer, settings),
    )
    figures = write_report(folder, FinishedRun(folder, root=moved).data())
    if figures and "_target_" in settings.logger:
        log_figures(instantiate(settings.logger, save_dir=str(folder / "figures")), figures)
    show_summary(folder, summary)
    return summary


def _stages(cfg: DictConfig, folder: Path, data: "pl.LightningDataModule") -> dict[str, Any]:
    from coseg_lightning.stages import run_stages

    return run_stages(
        data,
        folder,
        method=cfg.method.name,
        stages=cfg.method.get("stages"),
        peers=partial(make_peers, cfg),
        network=partial(make_network, cfg),
        trainer=partial(make_trainer, cfg),
        seed=cfg.seed,
        averaging=cfg.averaging,
        score=cfg.method.get("score", "directed"),
        score_epochs=cfg.method.get("score_epochs", 1),
        confidence=cfg.method.get("confidence", "auto"),
        warm_start=cfg.method.get("warm_start", True),
        retraining_loss=cfg.method.get("retraining_loss", "cross_entropy"),
        retraining_share=cfg.method.get("retraining_share", 1.0),
        rounds=cfg.method.get("rounds", 1),
        by_class=cfg.method.get("by_class", False),
        baselines=cfg.baselines,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        resume=cfg.resume is not None,
    )


def quiet() -> None:
    """Silence what would bury a command's own lines."""
    # Lightning's notes on hardware and tips, once a trainer.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # The default is to load in the training process, which is right for small images on few cores.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Total length of .* across ranks is zero.*")  # no val set
    warnings.filterwarnings("ignore", ".*train/skipped.*")  # all processes skip the same steps
    warnings.filterwarnings("ignore", ".*There is a wandb run already.*")  # of the stage before
    warnings.filterwarnings("ignore", ".*treespec.*is deprecated.*")  # Lightning's, not the user's
    warnings.filterwarnings("ignore", ".*torch.jit.script.*is deprecated.*")  # of forward mode


def check(cfg: DictConfig) -> None:
    """Raise an `InputError` for values that no later place would name as clearly."""
    check_nothing_missing(cfg)
    if cfg.nol != "auto":
        check_share(cfg, "nol")
    elif cfg.noise.level == "auto":
        raise InputError(
            "nol=auto estimates the noise level; say with noise.level=0.3 how many masks this "
            "experiment is to make noisy."
        )
    check_share(cfg, "noise.level")
    for key in ("rounds", "score_epochs"):
        if key in cfg.method:
            check_count(cfg, f"method.{key}", 1)
    if not isinstance(cfg.baselines, bool):
        raise InputError(f"baselines={cfg.baselines} must be true or false.")
    for key in ("warm_start", "by_class"):
        if not isinstance(cfg.method.get(key, False), bool):
            raise InputError(f"method.{key}={cfg.method[key]} must be true or false.")
    share = cfg.method.get("retraining_share", 1)
    if not is_number(share) or share <= 0:
        raise InputError(f"method.retraining_share={share} must be a number above 0.")
    if not OmegaConf.is_dict(cfg.method.get("options", OmegaConf.create())):
        raise InputError(
            f"method.options={cfg.method.options} must hold arguments, as in "
            "+method.options.agreement_weight=0.5."
        )
    for key, least in COUNTS.items():
        check_count(cfg, key, least)
    _check_one_folder()
    if not is_number(cfg.averaging) or not 0 <= cfg.averaging <= 1:
        raise InputError(f"averaging={cfg.averaging} must be a number from 0 to 1.")
    for key in ("optimizer.lr", "loss.lambda_1", "loss.lambda_2"):
        value = OmegaConf.select(cfg, key)
        if not is_number(value) or value < 0:
            raise InputError(f"{key}={value} must be a number of at least 0.")


def _check_one_folder() -> None:
    """The default folder is named by the time, which processes started apart do not share."""
    launched = any(
        rank in os.environ and int(os.environ.get(size, 1)) > 1
        for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
    )
    if launched and HydraConfig.initialized():
        given = HydraConfig.get().overrides.hydra
        task = HydraConfig.get().overrides.task
        if not any(
            override.startswith(("hydra.run.dir=", "resume=")) for override in (*given, *task)
        ):
            raise InputError(
                "Several processes were started by torchrun or srun, and must be told one folder "
                "to share: add hydra.run.dir=... or resume=..."
            )


if __name__ == "__main__":
    main()
