"""What all noise models are, and those made of others."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from coseg_lightning.errors import InputError
from coseg_lightning.files.inspection import Inspection
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.masks import Mask, MaskedImages
from coseg_lightning.noise.geometry import size_of


class NoiseModel(Protocol):
    """Makes a noisy mask of a clean one."""

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Return the noisy mask; shape `(H, W)`, unlabelled pixels (255) stay so.

        Strength 1 is the noise as configured, 0 none; a model that has `adjustable = False`
        takes no notice of it.
        """


class Annotator:
    """Noisy masks that somebody drew: taken from another folder of masks with the same stems.

    Args:
        masks: Folder of the masks, absolute or relative to `root`.
        root: The dataset's folder.
        classes: Number of classes, as for the dataset's own masks.
    """

    adjustable = False

    def __init__(self, masks: str | Path, root: str | Path | None = None, classes: int = 2) -> None:
        folder = Path(masks).expanduser()
        if not folder.is_absolute():
            if root is None:
                raise InputError(
                    "noise=annotator takes masks from a folder beside the dataset's own; "
                    "use it with data=folder data.root=DIR noise.masks=FOLDER."
                )
            folder = Path(root).expanduser() / folder
        self.folder = folder
        self.classes = classes

    @cached_property
    def masks(self) -> MaskFolder:
        """The masks; all of them, unless `validate_masks` named those that are needed."""
        return MaskFolder(self.folder, classes=self.classes)

    def validate_masks(self, dataset: MaskedImages, *, skip: bool = False) -> frozenset[str]:
        """Look at the masks of these samples before they are needed.

        Args:
            dataset: The samples whose masks may be replaced.
            skip: Whether bad masks are left out, with a warning.

        Returns:
            The samples whose masks cannot be used, if that is no error.

        Raises:
            BadSamplesError: If masks are missing, cannot be read, or have another size.
        """
        found = Inspection(self.folder)
        self.masks = MaskFolder(
            self.folder, classes=self.classes, ids=dataset.ids, inspection=found
        )
        sizes: dict[str, list[int]] = getattr(dataset, "sizes", {})
        for id, facts in self.masks.facts.items():
            (height, width), size = facts["size"], sizes.get(id) or facts["size"]
            if [height, width] != size:
                found.add(
                    "size",
                    [id],
                    f"{self.masks.path(id)} is {width}x{height}, but the dataset's own mask of "
                    f"{id} is {size[1]}x{size[0]}; both must have the image's size.",
                )
        found.settle(skip=skip)
        return found.bad

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """See `NoiseModel`; strength has no meaning here."""
        drawn = self.masks.read(id)
        if drawn.shape != mask.shape:
            raise InputError(
                f"{self.masks.path(id)} is {size_of(drawn)}, but the dataset's own mask of {id} is "
                f"{size_of(mask)}; both must have the image's size."
            )
        return drawn


class Combined:
    """Several noise models, one after the other, on every noisy mask.

    Args:
        models: In their order.
    """

    def __init__(self, models: Sequence[NoiseModel]) -> None:
        if not models:
            raise InputError("Combined needs at least one noise model.")
        if any(isinstance(model, Annotator) for model in models[1:]):
            raise InputError(
                "noise=annotator takes whole masks, so that what came before it would be lost; "
                "name it first, as in noise=[annotator,missing]."
            )
        self.models = list(models)

    @property
    def adjustable(self) -> bool:
        """Whether any of them knows a strength."""
        return any(is_adjustable(model) for model in self.models)

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """See `NoiseModel`; the models share one strength."""
        for model in self.models:
            mask = model(mask, id=id, seed=seed, strength=strength)
        return mask


class AtLabelDice:
    """A noise model as strong as it takes for a wanted Dice of each noisy mask to the original.

    What is drawn at random for a sample stays as it was; its strength is found by bisection. Where
    the wanted Dice cannot be reached, such as by whole objects missing, the nearest noisy mask of
    those tried is taken; the manifest tells its Dice.

    Args:
        model: A noise model that knows a strength.
        dice: Wanted Dice, `0 < dice < 1`.
        steps: Of the bisection.
    """

    def __init__(self, model: NoiseModel, dice: float, steps: int = 12) -> None:
        if not 0 < dice < 1:
            raise InputError(f"noise.label_dice={dice} must be between 0 and 1, both excluded.")
        if not is_adjustable(model):
            raise InputError(
                f"noise.label_dice={dice} needs a noise whose strength can be set, and "
                f"{type(model).__name__} has none; leave it out."
            )
        self.model = model
        self.dice = dice
        self.steps = steps

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """See `NoiseModel`; `strength` multiplies what the wanted Dice takes."""
        tried: list[tuple[float, float, Mask]] = []

        def dice_at(tried_strength: float) -> float:
            noisy = self.model(mask, id=id, seed=seed, strength=tried_strength)
            dice = mask_dice(noisy, mask)
            tried.append((abs(dice - self.dice), tried_strength, noisy))
            return dice

        low, high = 0.0, 1.0
        while dice_at(high) > self.dice and high < 32:
            low, high = high, 2 * high
        for _ in range(self.steps):
            middle = (low + high) / 2
            low, high = (middle, high) if dice_at(middle) > self.dice else (low, middle)
        _, found, noisy = min(tried, key=lambda trial: trial[:2])
        if strength == 1:
            return noisy
        return self.model(mask, id=id, seed=seed, strength=strength * found)


def annotators(model: Any) -> list[Annotator]:
    """The annotators among a noise model and those that it is made of."""
    if isinstance(model, Annotator):
        return [model]
    parts = [*getattr(model, "models", []), getattr(model, "model", None)]
    return [found for part in parts if part is not None for found in annotators(part)]


def is_adjustable(model: Any) -> bool:
    """Whether a noise model takes notice of the strength."""
    return bool(getattr(model, "adjustable", True))
