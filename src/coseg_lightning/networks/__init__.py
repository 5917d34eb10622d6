"""Networks: those of segmentation-models-pytorch (smp), and three that it does not have."""

from coseg_lightning.networks.build import build_network

__all__ = ["build_network"]
