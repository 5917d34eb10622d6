"""Forward correction by a label transition matrix (Patrini et al. 2017, arXiv 1609.03683)."""

from coseg_lightning.methods.method import Method
from coseg_lightning.methods.transition import LabelTransition, estimation, supervised_training

METHOD = Method("forward_correction", (estimation, supervised_training), module=LabelTransition)
