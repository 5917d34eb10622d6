"""The interface of noise models, models made of other models, and masks drawn by a person."""

from collections.abc import Sequence
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from coseg_lightning.errors import InputError
from coseg_lightning.files.inspection import Inspection
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.files.mask_rules import MaskRules
from coseg_lightning.files.naming import PLAIN, Names, match_ids
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.functional.equations import IGNORE_INDEX
from coseg_lightning.labels.masks import Mask, MaskedImages
from coseg_lightning.noise.geometry import size_of


class NoiseModel(Protocol):
    """A callable that turns a clean mask into a noisy one."""

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Return the noisy mask. Unlabelled pixels (255) stay unlabelled.

        Args:
            mask: `(H, W)` class ids.
            id: The sample.
            seed: The seed. All random numbers depend only on the seed and the id.
            strength: 1 for the noise as configured, 0 for no noise. A model with
                `adjustable = False` ignores it.

        Shape:
            `(H, W)`.
        """


class Annotator:
    """Noisy masks that a person drew, from another folder of masks with the same stems.

    Args:
        masks: Folder of the masks, absolute or relative to `root`.
        root: The dataset's folder.
        classes: Number of classes, as for the dataset's own masks.
        rules: The meaning of the masks' values; by default they are class ids.
        mask_glob: The pattern of the masks' names, see `Names`. If none match, `{id}.*` is used.

    Raises:
        InputError: If `masks` is relative, and there is no `root`.
    """

    adjustable = False

    def __init__(
        self,
        masks: str | Path,
        root: str | Path | None = None,
        classes: int = 2,
        rules: MaskRules | None = None,
        mask_glob: str = PLAIN,
    ) -> None:
        folder = Path(masks).expanduser()
        if not folder.is_absolute():
            if root is None:
                raise InputError(
                    "noise=annotator takes masks from another folder of the dataset; use it with "
                    "data=folder data.root=DIR noise.masks=FOLDER."
                )
            folder = Path(root).expanduser() / folder
        self.folder = folder
        self.classes = classes
        self.read_as(rules, mask_glob)

    def read_as(self, rules: MaskRules | None, mask_glob: str) -> None:
        """Set how the masks are read, before any is read. The arguments are those of the class."""
        self.rules = rules
        self.mask_glob = mask_glob

    @cached_property
    def masks(self) -> MaskFolder:
        """The folder of masks. All masks are inspected, unless `validate_masks` was called."""
        return MaskFolder(self.folder, classes=self.classes, rules=self.rules, files=self._files())

    def _files(self) -> dict[str, list[Path]] | None:
        if not self.folder.is_dir():
            return None
        return Names(self.folder, self.mask_glob).files or None

    def validate_masks(self, dataset: MaskedImages, *, skip: bool = False) -> frozenset[str]:
        """Inspect the masks of some samples before they are needed.

        Args:
            dataset: The samples whose masks may be replaced.
            skip: Whether unusable masks are skipped with a warning.

        Returns:
            The skipped samples, whose masks cannot be used.

        Raises:
            BadSamplesError: If masks are missing, unreadable, or of another size, and are not
                skipped.
        """
        inspection, files = Inspection(self.folder), self._files()
        self.masks = MaskFolder(
            self.folder,
            classes=self.classes,
            ids=dataset.ids,
            inspection=inspection,
            rules=self.rules,
            files=files if files is None else match_ids(dataset.ids, files),
        )
        sizes: dict[str, list[int]] = getattr(dataset, "sizes", {})
        for sample_id, info in self.masks.file_info.items():
            size = info["size"]
            wanted = sizes.get(sample_id) or size
            if size != wanted:
                inspection.add(
                    "size",
                    [sample_id],
                    f"{self.masks.path(sample_id)} is {size[1]}x{size[0]}, but the dataset's own "
                    f"mask of {sample_id} is {wanted[1]}x{wanted[0]}; both must have the image's "
                    "size.",
                )
        inspection.report(skip=skip)
        return inspection.unusable_ids

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Return the drawn mask; see `NoiseModel`. Strength is ignored."""
        drawn = self.masks.read(id)
        if drawn.shape != mask.shape:
            raise InputError(
                f"{self.masks.path(id)} is {size_of(drawn)}, but the dataset's own mask of {id} is "
                f"{size_of(mask)}; both must have the image's size."
            )
        drawn[mask == IGNORE_INDEX] = IGNORE_INDEX  # such as pixels that the image lacks
        return drawn


class Combined:
    """Several noise models that are applied one after the other to every noisy mask.

    Args:
        models: The models, in order. Only the first may be an `Annotator`.

    Raises:
        InputError: If there is no model, or an `Annotator` after the first.
    """

    def __init__(self, models: Sequence[NoiseModel]) -> None:
        if not models:
            raise InputError("Combined needs at least one noise model.")
        if any(isinstance(model, Annotator) for model in models[1:]):
            raise InputError(
                "noise=annotator replaces whole masks, so noise before it would be lost; name it "
                "first, as in noise=[annotator,missing]."
            )
        self.models = list(models)

    @property
    def adjustable(self) -> bool:
        """Whether the strength of any of the models can be set."""
        return any(is_adjustable(model) for model in self.models)

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the models; see `NoiseModel`. They share one strength."""
        for model in self.models:
            mask = model(mask, id=id, seed=seed, strength=strength)
        return mask


class AtLabelDice:
    """A noise model whose strength is set to reach a wanted Dice to the original mask.

    Each sample's strength is found by bisection, with the same random numbers at all strengths. If
    the wanted Dice cannot be reached, for example because whole objects go missing, the closest of
    the tried masks is used. The layer's manifest records its Dice.

    Args:
        model: A noise model whose strength can be set.
        dice: Wanted Dice, `0 < dice < 1`.
        steps: Number of bisection steps.

    Raises:
        InputError: If the Dice is out of range, or the strength cannot be set.
    """

    MAX_STRENGTH = 32

    def __init__(self, model: NoiseModel, dice: float, steps: int = 12) -> None:
        if not 0 < dice < 1:
            raise InputError(f"noise.label_dice={dice} must be above 0 and below 1.")
        if not is_adjustable(model):
            raise InputError(
                f"noise.label_dice={dice} needs noise of adjustable strength, but the strength of "
                f"{type(model).__name__} cannot be set; leave it out."
            )
        self.model = model
        self.dice = dice
        self.steps = steps

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Apply the noise; see `NoiseModel`. Strength multiplies the strength that was found."""
        trials: list[tuple[float, float, Mask]] = []  # error of the Dice, strength, noisy mask

        def dice_at(trial_strength: float) -> float:
            noisy = self.model(mask, id=id, seed=seed, strength=trial_strength)
            dice = mask_dice(noisy, mask)
            trials.append((abs(dice - self.dice), trial_strength, noisy))
            return dice

        low, high = 0.0, 1.0
        while dice_at(high) > self.dice and high < self.MAX_STRENGTH:
            low, high = high, 2 * high
        for _ in range(self.steps):
            middle = (low + high) / 2
            low, high = (middle, high) if dice_at(middle) > self.dice else (low, middle)
        _, best_strength, noisy = min(trials, key=lambda trial: trial[:2])
        if strength == 1:
            return noisy
        return self.model(mask, id=id, seed=seed, strength=strength * best_strength)


def check_level(noise_level: Any) -> None:
    """Raise an `InputError` unless a share of noisy masks is a number from 0 to 1."""
    if not isinstance(noise_level, Real) or not 0 <= float(noise_level) <= 1:
        raise InputError(f"noise_level={noise_level} must be a number from 0 to 1.")


def annotators(model: Any) -> list[Annotator]:
    """List the `Annotator` models in a noise model and in the models that it contains."""
    if isinstance(model, Annotator):
        return [model]
    parts = [*getattr(model, "models", []), getattr(model, "model", None)]
    return [annotator for part in parts if part is not None for annotator in annotators(part)]


def settings_of(model: Any) -> Any:
    """Describe a noise model in plain values; of a project's own model, by its class alone."""
    if isinstance(model, bool | str | None):
        return model
    if isinstance(model, int | float):
        return float(model)
    if isinstance(model, Path):
        return model.name  # the data may be moved
    if isinstance(model, Sequence):
        return [settings_of(part) for part in model]
    kind = type(model)
    if not kind.__module__.startswith("coseg_lightning.noise."):
        return getattr(model, "__qualname__", kind.__qualname__)
    files = ("masks", "rules")  # of an Annotator, whose values may have been read or not
    values = {name: settings_of(value) for name, value in vars(model).items() if name not in files}
    return {"class": kind.__qualname__, **values}


def is_adjustable(model: Any) -> bool:
    """Whether the strength of a noise model can be set."""
    return bool(getattr(model, "adjustable", True))
