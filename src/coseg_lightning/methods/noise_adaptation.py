"""A label transition matrix learnt with the network (Goldberger and Ben-Reuven 2017, ICLR)."""

from coseg_lightning.methods.method import Method
from coseg_lightning.methods.transition import LabelTransition, estimation, supervised_training

METHOD = Method(
    "noise_adaptation",
    (estimation, supervised_training),
    module=LabelTransition,
    options={"learnt": True},
)
