"""Networks: those of segmentation-models-pytorch (smp), and three that it does not have."""

from coseg_lightning.networks.build import build_network
from coseg_lightning.networks.encoders import pretraining_statistics

__all__ = ["build_network", "pretraining_statistics"]
