"""Choosing the samples that get noisy masks, and writing these masks as a label layer."""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.files.progress import progress
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise.crowd import Crowd
from coseg_lightning.noise.models import NoiseModel, check_level, settings_of
from coseg_lightning.seeding import derive_rng


def choose_noisy(
    ids: Sequence[str], noise_level: float, seed: int, clean: Collection[str] = ()
) -> list[str]:
    """Choose exactly `round(noise_level * N)` samples by the seed.

    The choice does not depend on the order of the ids. All samples that a lower level chooses are
    also chosen by a higher level.

    Args:
        ids: The ids of all N samples.
        noise_level: Share of the samples to choose.
        seed: Seed of the choice.
        clean: The samples that are never chosen.

    Returns:
        The ids of the chosen samples.

    Raises:
        InputError: If the noise level is no share, or `clean` leaves too few samples.
    """
    check_level(noise_level)
    allowed = [sample_id for sample_id in _shuffled(ids, seed) if sample_id not in clean]
    count = round(noise_level * len(ids))
    if count > len(allowed):
        raise InputError(
            f"{count} of {len(ids)} masks shall be noisy, but {len(ids) - len(allowed)} shall stay "
            "clean; give a lower noise level, or fewer clean_ids."
        )
    return allowed[:count]


def choose_clean(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """Choose the `count` samples that `choose_noisy` would choose last with the same seed."""
    return _shuffled(ids, seed)[len(ids) - count :]


def _shuffled(ids: Sequence[str], seed: int) -> list[str]:
    ranked = sorted(ids)
    return [ranked[i] for i in derive_rng(seed, "noisy samples").permutation(len(ids))]


def drawn_ids(
    noise: NoiseModel,
    ids: Sequence[str],
    noise_level: float,
    seed: int,
    clean: Collection[str] = (),
) -> list[str]:
    """List the samples whose masks are replaced: all for a `Crowd`, else the noisy ones.

    Args:
        noise: The noise model.
        ids: The ids of all N samples.
        noise_level: Share of the samples with noisy masks.
        seed: Seed of the choice.
        clean: The samples that are never changed.

    Raises:
        InputError: If `clean` leaves too few samples.
    """
    if isinstance(noise, Crowd):
        return list(noise.draws(ids, noise_level, seed, clean))
    return choose_noisy(ids, noise_level, seed, clean)


def made_by(noise: NoiseModel, noise_level: float, seed: int) -> str:
    """Return a digest of a noise model, its level and its seed, as a layer's manifest has it."""
    content = json.dumps([settings_of(noise), float(noise_level), int(seed)], sort_keys=True)
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=6).hexdigest()


def write_noisy_layer(
    dataset: MaskedImages,
    noise: NoiseModel,
    noise_level: float,
    seed: int,
    folder: str | Path,
    clean: Collection[str] = (),
) -> LabelStore:
    """Write noisy masks for a share of the samples into a new label layer.

    The layer's manifest records each noisy mask's Dice to the original, and `made_by`, a digest of
    the noise. A `Crowd` draws all masks, and the given share is bad. The manifest then also records
    each mask's `annotator`, and whether it is `bad`.

    Args:
        dataset: Images and masks.
        noise: The noise model.
        noise_level: Share of the samples that get noisy masks.
        seed: Seed of the choice and of the noise.
        folder: A new folder for the layer.
        clean: The samples whose masks are never replaced.

    Returns:
        The finished layer.

    Raises:
        InputError: If `clean` leaves too few samples, or the folder is not free.
    """
    draws = noise.draws(dataset.ids, noise_level, seed, clean) if isinstance(noise, Crowd) else {}
    chosen = set(drawn_ids(noise, dataset.ids, noise_level, seed, clean))
    writer, digest = LabelStore.create(folder), made_by(noise, noise_level, seed)
    facts: dict[str, dict[str, Any]] = {}
    for index, sample_id in enumerate(progress(dataset.ids, "Noisy masks")):
        if sample_id in chosen:
            original = dataset.mask(index)
            drawn = draws.get(sample_id)
            if isinstance(noise, Crowd) and drawn is not None:
                noisy = noise.draw(original, drawn, id=sample_id, seed=seed)
                facts[sample_id] = {"annotator": drawn.person.name, "bad": drawn.is_bad}
            else:
                noisy = noise(original, id=sample_id, seed=seed)
                facts[sample_id] = {}
            writer.write(sample_id, noisy)
            facts[sample_id] |= {"dice": mask_dice(noisy, original), "made_by": digest}
    return writer.finish(facts)
