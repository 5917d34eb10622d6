"""Passes the figures of a run to loggers that can show them."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger


def log_figures(logger: Logger, figures: Mapping[str, Figure]) -> None:
    """Pass the figures of a finished run to TensorBoard or W&B; other loggers ignore them.

    Args:
        logger: The run's logger.
        figures: The figures by name.
    """
    for name, figure in figures.items():
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(f"report/{name}", figure)
        elif isinstance(logger, WandbLogger):
            import wandb

            logger.log_image(f"report/{name}", [wandb.Image(figure)])
    logger.finalize("success")
