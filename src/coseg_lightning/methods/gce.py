"""Generalised cross-entropy in place of the cross-entropy (Zhang and Sabuncu 2018, 1805.07836)."""

from coseg_lightning.methods.method import Method
from coseg_lightning.methods.supervised import supervised_training

METHOD = Method("gce", (supervised_training,), options={"pixel_loss": "generalised_cross_entropy"})
