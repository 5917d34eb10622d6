"""Which samples get noisy masks, and the label layer that holds them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from coseg_lightning.errors import InputError
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.labels.masks import MaskedImages
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise.models import NoiseModel
from coseg_lightning.seeding import derive_rng


def choose_noisy(
    ids: Sequence[str], noise_level: float, seed: int, clean: Collection[str] = ()
) -> list[str]:
    """The ids of exactly `round(noise_level * N)` samples, chosen by the seed.

    The choice does not depend on the order of the ids, and a lower level's choice is part of a
    higher level's.

    Args:
        ids: Of all N samples.
        noise_level: Their share that is to be noisy.
        seed: Of the choice.
        clean: Those that are not to be chosen.

    Raises:
        InputError: If too many are to be kept clean.
    """
    allowed = [id for id in _shuffled(ids, seed) if id not in clean]
    count = round(noise_level * len(ids))
    if count > len(allowed):
        raise InputError(
            f"{count} of {len(ids)} masks are to be noisy, but {len(ids) - len(allowed)} are to "
            "stay clean; give a lower noise level, or fewer clean_ids."
        )
    return allowed[:count]


def choose_clean(ids: Sequence[str], count: int, seed: int) -> list[str]:
    """The ids of the `count` samples that `choose_noisy` of the same seed chooses last."""
    return _shuffled(ids, seed)[len(ids) - count :]


def _shuffled(ids: Sequence[str], seed: int) -> list[str]:
    ranked = sorted(ids)
    return [ranked[i] for i in derive_rng(seed, "noisy samples").permutation(len(ids))]


def write_noisy_layer(
    dataset: MaskedImages,
    noise: NoiseModel,
    noise_level: float,
    seed: int,
    folder: str | Path,
    clean: Collection[str] = (),
) -> LabelStore:
    """Write noisy masks for a share of the samples into a new label layer.

    The layer's manifest records each noisy mask's Dice to the original.
    """
    chosen = set(choose_noisy(dataset.ids, noise_level, seed, clean))
    writer = LabelStore.create(folder)
    facts = {}
    for index, id in enumerate(tqdm(dataset.ids, desc="Noisy masks", leave=False)):
        if id in chosen:
            original = dataset.mask(index)
            noisy = noise(original, id=id, seed=seed)
            writer.write(id, noisy)
            facts[id] = {"dice": mask_dice(noisy, original)}
    return writer.finish(facts)
