"""Label noise for experiments: which samples get noisy masks, and how a mask is changed.

Every noise model is a callable `noise(mask, id=..., seed=...)`. Its random numbers depend only on
the seed and the sample's id. Lengths are in pixels of a 256 x 256 image. They scale with the side
of the mask, `sqrt(H W) / 256`.
"""

from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.noise.annotators import BiasedAnnotator, RandomAnnotators
from coseg_lightning.noise.boundaries import (
    BoundaryNoise,
    BoundaryWalk,
    EdgeCircles,
    PolygonOutline,
)
from coseg_lightning.noise.crowd import Crowd
from coseg_lightning.noise.models import Annotator, AtLabelDice, Combined, NoiseModel
from coseg_lightning.noise.noisy_layer import choose_noisy, write_noisy_layer
from coseg_lightning.noise.regions import (
    AffineNoise,
    ClassMerge,
    ClassSwap,
    MissingComponent,
    MissingRegion,
    SpuriousBlob,
)

__all__ = [
    "AffineNoise",
    "Annotator",
    "AtLabelDice",
    "BiasedAnnotator",
    "BoundaryNoise",
    "BoundaryWalk",
    "ClassMerge",
    "ClassSwap",
    "Combined",
    "Crowd",
    "EdgeCircles",
    "MissingComponent",
    "MissingRegion",
    "NoiseModel",
    "PolygonOutline",
    "RandomAnnotators",
    "SpuriousBlob",
    "choose_noisy",
    "mask_dice",
    "write_noisy_layer",
]
