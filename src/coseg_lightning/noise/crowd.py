"""A crowd of simulated annotators who draw all masks, and whose habits are known."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri

from coseg_lightning.errors import InputError
from coseg_lightning.labels.masks import Mask
from coseg_lightning.noise.boundaries import EdgeCircles, PolygonOutline
from coseg_lightning.noise.geometry import (
    Field,
    compose,
    foreground_classes,
    scale_of,
    shifted,
    signed_distance,
    smooth_field,
)
from coseg_lightning.noise.models import NoiseModel, check_level
from coseg_lightning.noise.regions import AffineNoise, MissingRegion, SpuriousBlob
from coseg_lightning.seeding import derive_rng


@dataclass(frozen=True)
class Person:
    """One simulated annotator.

    Args:
        name: The name.
        displacement: Outward shift of all outlines in pixels at 256 x 256; negative is inward.
        bad_share: The expected share of bad masks.
        mistake: The index of the annotator's kind of mistake in `Crowd.mistakes`.
    """

    name: str
    displacement: float
    bad_share: float
    mistake: int


class Drawn(NamedTuple):
    """Who draws a mask, and whether it becomes bad."""

    person: Person
    is_bad: bool


class Crowd:
    """Several annotators who draw all masks, each with different habits.

    Each annotator shifts all outlines by the same number of pixels, outwards or inwards, and adds a
    small smooth error. Careless annotators draw many bad masks, careful ones hardly any. In total,
    `noise_level` of all masks are bad. Each annotator makes one kind of mistake: a missing region,
    a wrong position, an invented object, ragged edges, or too few corners. The seed draws the
    annotators' habits, and who draws which image.

    In a dataset, all masks are drawn in this way (`draws`). The layer's manifest records who drew
    each mask and whether it is bad. A single call draws a bad mask.

    Args:
        count: Number of annotators.
        bias: Standard deviation of the annotators' displacements, in pixels at 256 x 256.
        careless: Standard deviation of the annotators' log odds of a bad mask. With 1.5, the
            annotator explains a fifth of the variance, as in 851 masks of skin by several
            annotators (IMA++).
        wobble: Standard deviation of the smooth error along each outline, in pixels.
        wavelength: Correlation length of the smooth error in pixels.
        classes: K, background included.

    Raises:
        InputError: If an argument is out of range.
    """

    def __init__(
        self,
        count: int = 10,
        bias: float = 3.0,
        careless: float = 1.5,
        wobble: float = 1.0,
        wavelength: float = 48.0,
        classes: int = 2,
    ) -> None:
        if count < 1 or min(bias, careless, wobble) < 0 or wavelength <= 0:
            raise InputError(
                f"noise.crowd.count={count} must be at least 1, bias={bias}, careless={careless} "
                f"and wobble={wobble} at least 0, and wavelength={wavelength} above 0."
            )
        self.count = count
        self.bias = bias
        self.careless = careless
        self.wobble = wobble
        self.wavelength = wavelength
        self.mistakes: Sequence[NoiseModel] = (
            MissingRegion(),
            AffineNoise(),
            SpuriousBlob(classes=classes),
            EdgeCircles(),
            PolygonOutline(12.0),
        )

    def people(self, noise_level: float, seed: int) -> list[Person]:
        """List the annotators. Only the shares of bad masks depend on the noise level.

        Args:
            noise_level: The mean of their shares of bad masks.
            seed: The seed.
        """
        rng = derive_rng(seed, "crowd")
        spread = ndtri((np.arange(self.count) + 0.5) / self.count)
        displacements = self.bias * rng.permutation(spread)
        shares = _shares(self.careless * rng.permutation(spread), noise_level)
        mistakes = rng.permutation(self.count) % len(self.mistakes)
        width = len(str(self.count))
        return [
            Person(f"person {n + 1:0{width}}", float(displacements[n]), float(shares[n]), int(kind))
            for n, kind in enumerate(mistakes)
        ]

    def draws(
        self, ids: Sequence[str], noise_level: float, seed: int, clean: Collection[str] = ()
    ) -> dict[str, Drawn]:
        """Assign an annotator to each mask, and choose exactly `round(noise_level * N)` bad masks.

        Args:
            ids: The ids of all N samples.
            noise_level: Share of the samples with bad masks.
            seed: Seed of the choice.
            clean: The samples whose masks stay unchanged. They are not returned.

        Raises:
            InputError: If the noise level is no share, or `clean` leaves too few samples.
        """
        check_level(noise_level)
        people = self.people(noise_level, seed)
        drawn = sorted(set(ids) - set(clean))
        count = round(noise_level * len(ids))
        if count > len(drawn):
            raise InputError(
                f"{count} of {len(ids)} masks shall be bad, but {len(ids) - len(drawn)} shall stay "
                "clean; give a lower noise level, or fewer clean_ids."
            )
        person_of = {sample_id: people[self._number(sample_id, seed)] for sample_id in drawn}
        luck = {i: float(derive_rng(seed, "crowd's luck", i).random()) for i in drawn}
        by_odds = sorted(drawn, key=lambda i: (logit(luck[i]) - logit(person_of[i].bad_share), i))
        bad = set(by_odds[:count])
        return {i: Drawn(person_of[i], i in bad) for i in drawn}

    def draw(self, mask: Mask, drawn: Drawn, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Draw a mask as an annotator does; see `NoiseModel`.

        Args:
            mask: `(H, W)` class ids.
            drawn: Who draws it, and whether it becomes bad.
            id: The sample.
            seed: The seed.
            strength: Multiplies all lengths.
        """
        if drawn.is_bad:
            mistake = self.mistakes[drawn.person.mistake]
            mask = mistake(mask, id=id, seed=seed, strength=strength)
        rng = derive_rng(seed, "crowd's outlines", id)
        scale = scale_of(mask)
        moved: dict[int, Field] = {}
        for class_id in foreground_classes(mask):
            wobble = self.wobble * smooth_field(mask.shape, self.wavelength * scale, rng)
            offset = strength * scale * (drawn.person.displacement + wobble)
            moved[class_id] = shifted(signed_distance(mask == class_id), offset)
        return compose(moved, mask)

    def __call__(self, mask: Mask, *, id: str, seed: int, strength: float = 1.0) -> Mask:
        """Draw a bad mask; see `NoiseModel`. Strength multiplies all lengths."""
        person = self.people(0.5, seed)[self._number(id, seed)]
        return self.draw(mask, Drawn(person, is_bad=True), id=id, seed=seed, strength=strength)

    def _number(self, sample_id: str, seed: int) -> int:
        return int(derive_rng(seed, "annotator of", sample_id).integers(self.count))


def _shares(log_odds: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Shift log odds so that the shares have the given mean, and return the shares."""
    if not 0 < mean < 1:
        return np.full(len(log_odds), np.clip(mean, 1e-6, 1 - 1e-6))
    middle = brentq(lambda x: float(expit(log_odds + x).mean()) - mean, -60, 60)
    result: NDArray[np.float64] = np.clip(expit(log_odds + middle), 1e-6, 1 - 1e-6)
    return result
