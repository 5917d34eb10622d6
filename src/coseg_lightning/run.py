"""The app: python -m coseg_lightning.run model=unet noise=type2 nol=0.3."""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.build import (
    make_data,
    make_network,
    make_peers,
    make_trainer,
    read_clean_ids,
)
from coseg_lightning.app.checks import check, quiet
from coseg_lightning.app.command import command
from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)


@command("config")
def main(cfg: DictConfig) -> None:
    """Compose, check, run the stages, and show what came out."""
    run(cfg, Path(HydraConfig.get().runtime.output_dir))


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Run the stages that a composed configuration asks for, into a folder, or go on with them."""
    if cfg.review is not None or cfg.stages is not None:
        return _reviewed(cfg, folder)
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from coseg_lightning.report.console import show_summary
    from coseg_lightning.report.loggers import log_figures
    from coseg_lightning.report.page import write_report
    from coseg_lightning.runs.folder import RunFolder

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
    from coseg_lightning.methods.review import retrain_reviewed
    from coseg_lightning.report.console import show_summary
    from coseg_lightning.report.loggers import log_figures
    from coseg_lightning.report.page import write_report
    from coseg_lightning.runs.finished import FinishedRun
    from coseg_lightning.runs.folder import MAY_CHANGE

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
        if key not in MAY_CHANGE:
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
    from coseg_lightning.methods.pipeline import run_stages

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


if __name__ == "__main__":
    main()
