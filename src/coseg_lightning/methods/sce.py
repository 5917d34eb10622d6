"""Symmetric cross-entropy in place of the cross-entropy (Wang et al. 2019, arXiv 1908.06112)."""

from coseg_lightning.methods.method import Method
from coseg_lightning.methods.supervised import supervised_training

METHOD = Method("sce", (supervised_training,), options={"pixel_loss": "symmetric_cross_entropy"})
