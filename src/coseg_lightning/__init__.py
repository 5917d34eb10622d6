"""Co-Seg (arXiv 2102.00523): segmentation networks from noisy labels, as a Lightning plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coseg_lightning.callbacks.averaged_weights import AveragedWeights
    from coseg_lightning.callbacks.corruption_ranking import CorruptionRanking
    from coseg_lightning.callbacks.label_correction import LabelCorrection
    from coseg_lightning.callbacks.noise_level_estimation import NoiseLevelEstimation
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.labels.store import LabelStore
    from coseg_lightning.labels.updated import updated
    from coseg_lightning.methods.pipeline import run_stages
    from coseg_lightning.modules.coseg import CoSegModule
    from coseg_lightning.modules.recipe import Recipe
    from coseg_lightning.modules.segmentation import SegmentationModule
    from coseg_lightning.ranking.annotators import annotator_report
    from coseg_lightning.ranking.outline import outline_scores

__version__ = "0.2.0"

__all__ = [
    "AveragedWeights",
    "CoSegDataModule",
    "CoSegModule",
    "CorruptionRanking",
    "LabelCorrection",
    "LabelStore",
    "NoiseLevelEstimation",
    "Recipe",
    "SegmentationModule",
    "annotator_report",
    "outline_scores",
    "run_stages",
    "updated",
]

_HOMES = {
    "AveragedWeights": "callbacks.averaged_weights",
    "CoSegDataModule": "data.datamodule",
    "CoSegModule": "modules.coseg",
    "CorruptionRanking": "callbacks.corruption_ranking",
    "LabelCorrection": "callbacks.label_correction",
    "LabelStore": "labels.store",
    "NoiseLevelEstimation": "callbacks.noise_level_estimation",
    "Recipe": "modules.recipe",
    "SegmentationModule": "modules.segmentation",
    "annotator_report": "ranking.annotators",
    "outline_scores": "ranking.outline",
    "run_stages": "methods.pipeline",
    "updated": "labels.updated",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that the command line's help needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
