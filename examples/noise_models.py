"""Every noise model at its default strength on one phantom, as a picture.

Run it with `python examples/noise_models.py [noise.png]`.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from coseg_lightning.data.phantom import PhantomImages
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.noise import (
    AffineNoise,
    BiasedAnnotator,
    BoundaryNoise,
    BoundaryWalk,
    ClassMerge,
    ClassSwap,
    Crowd,
    EdgeCircles,
    MissingComponent,
    MissingRegion,
    PolygonOutline,
    SpuriousBlob,
)
from coseg_lightning.noise.geometry import parts_of

MODELS = {
    "type1": BoundaryNoise(),
    "type2": BiasedAnnotator(),
    "crowd": Crowd(classes=3),
    "affine": AffineNoise(),
    "walk": BoundaryWalk(),
    "circles": EdgeCircles(),
    "polygon": PolygonOutline(),
    "missing": MissingRegion(),
    "missing_component": MissingComponent(),
    "blob": SpuriousBlob(classes=3),
    "swap": ClassSwap(classes=3),
    "merge": ClassMerge(classes=3),
}
COLOURS = {1: "#E69F00", 2: "#56B4E9"}


def main(path: Path = Path("noise.png")) -> Path:
    phantoms = PhantomImages("train", 4, 256, seed=0)
    image, lungs = phantoms.image(2), phantoms.mask(2)
    mask = np.zeros_like(lungs)
    for class_id, lung in enumerate(parts_of(lungs > 0), start=1):  # each lung a class of its own
        mask[lung] = class_id
    figure = Figure(figsize=(10.4, 8.2), layout="constrained")
    for axes, (name, noise) in zip(figure.subplots(3, 4).ravel(), MODELS.items(), strict=True):
        noisy = noise(mask, id=phantoms.ids[2], seed=5)
        axes.imshow(image, cmap="gray")
        axes.contour(mask > 0, levels=[0.5], colors="white", linewidths=2.4)
        for class_id, colour in COLOURS.items():
            if (noisy == class_id).any():
                axes.contour(noisy == class_id, levels=[0.5], colors=colour, linewidths=1.4)
        axes.set_title(f"noise={name}   Dice {mask_dice(noisy, mask):.2f}", fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, dpi=80)
    return path


if __name__ == "__main__":
    print(main(*map(Path, sys.argv[1:])))
