"""Writes a corrupted copy of a folder of masks: python -m coseg_lightning.corrupt."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from coseg_lightning.app.checks import check_count, check_share
from coseg_lightning.app.command import command
from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    from coseg_lightning.files.mask_folder import MaskFolder, MaskWriter
    from coseg_lightning.files.mask_rules import MaskRules
    from coseg_lightning.noise.models import NoiseModel


@command("corrupt")
def main(cfg: DictConfig) -> None:
    """Compose and check the configuration, write the folder, and print how many masks are noisy."""
    from coseg_lightning.app.build import make_noise, noise_name
    from coseg_lightning.files.mask_rules import MaskRules

    check_share(cfg, "nol")
    check_share(cfg, "noise.level")
    check_count(cfg, "seed", 0)
    check_count(cfg, "data.classes", 1)
    noise = make_noise(cfg)
    if noise is None:
        raise InputError("noise=none would change nothing; name a noise, such as noise=type2.")
    rows = corrupt_folder(
        cfg.masks,
        cfg.out,
        noise,
        name=noise_name(cfg),
        noise_level=cfg.noise.level,
        seed=cfg.seed,
        classes=cfg.data.classes,
        candidates=None if cfg.split is None else _training_ids(Path(cfg.split)),
        rules=MaskRules.from_settings(cfg.data),
        mask_glob=cfg.data.mask_glob,
    )
    dice = [row["dice"] for row in rows if row["noisy"]]
    sentences = [f"{len(dice)} of {len(rows)} masks in {cfg.out} are noisy ({noise_name(cfg)})."]
    if dice:
        mean, worst, best = sum(dice) / len(dice), min(dice), max(dice)
        sentences.append(f"Their Dice to the originals is {mean:.3f} ({worst:.3f} to {best:.3f}).")
    sentences.append("They are listed in its manifest.csv.")
    print(" ".join(sentences))


def _training_ids(split: Path) -> list[str]:
    from coseg_lightning.data.split import read_split

    ids = [sample_id for sample_id, part in read_split(split).items() if part == "train"]
    if not ids:
        raise InputError(
            f"split={split} puts no sample into the part train, so no mask would become noisy; "
            "name the parts in its column split, or leave it out."
        )
    return ids


def corrupt_folder(
    masks: str | Path,
    out: str | Path,
    noise: "NoiseModel",
    *,
    name: str,
    noise_level: float,
    seed: int = 0,
    classes: int = 2,
    candidates: Iterable[str] | None = None,
    rules: "MaskRules | None" = None,
    mask_glob: str = "{id}.*",
) -> list[dict[str, Any]]:
    """Copy a folder of masks, corrupt a share of them, and add a `manifest.csv`.

    Unchanged masks are copied byte by byte. Noisy masks keep their file's format, palette and
    values (0/255 stays 0/255). With a run's candidates, seed and noise level, the same masks
    become noisy in the same way as in that run.

    Args:
        masks: A folder of masks, which is only read.
        out: A new folder. It appears only when it is complete.
        noise: The noise model.
        name: The noise's name in the manifest.
        noise_level: Share of the candidates that become noisy.
        seed: Seed of the choice of masks and of the noise.
        classes: Number of classes, background included.
        candidates: Ids of the masks that may become noisy; by default all.
        rules: The meaning of the masks' values; by default class ids.
        mask_glob: The pattern of the masks' names, see `Names`.

    Returns:
        The manifest's rows: `id`, `file`, `noisy`, `noise`, `seed` and `dice` to the original. A
        mask that the noise does not change, such as an empty one, is not noisy. A crowd redraws
        all candidates, of which only the bad ones count as noisy; `annotator` names the person.

    Raises:
        InputError: If `out` exists or lies in `masks`, or a mask is missing or cannot be written.
    """
    from coseg_lightning.files.csv import write_table
    from coseg_lightning.files.mask_folder import MaskFolder, MaskWriter
    from coseg_lightning.files.naming import Names, ids_of
    from coseg_lightning.files.progress import progress
    from coseg_lightning.noise.crowd import Crowd
    from coseg_lightning.noise.noisy_layer import drawn_ids

    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists and is never overwritten; give a new folder.")
    if Path(masks).resolve() in out.resolve().parents:
        raise InputError(f"{out} lies in {masks}, which is only read; give a folder elsewhere.")
    files = Names(Path(masks), mask_glob).files if Path(masks).is_dir() else None
    source = MaskFolder(masks, classes=classes, rules=rules, files=files or None)
    known_as = ids_of(source.ids if candidates is None else candidates, source.ids)
    candidates = list(known_as.values())
    chosen = set(drawn_ids(noise, candidates, noise_level, seed))
    draws = noise.draws(candidates, noise_level, seed) if isinstance(noise, Crowd) else {}
    for sample_id in chosen:
        source.path(sample_id)  # raises if the mask is missing
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        unfinished = Path(temporary) / "masks"
        unfinished.mkdir()
        writer = MaskWriter(source, unfinished)
        for sample_id in progress(source.ids, "Masks"):
            path, changed, dice = source.path(sample_id), False, 1.0
            if sample_id in chosen:
                drawn = draws.get(sample_id)
                draw = noise
                if isinstance(noise, Crowd) and drawn is not None:
                    draw = partial(noise.draw, drawn=drawn)
                changed, dice = _write_noisy(source, sample_id, writer, draw, seed)
                changed = changed and (drawn is None or drawn.is_bad)
            else:
                writer.copy(path)
            name_of_file = path.relative_to(source.folder).as_posix()
            row = {"id": sample_id, "file": name_of_file, "noisy": int(changed)}
            row |= {"noise": name if changed else "", "seed": seed, "dice": dice}
            if isinstance(noise, Crowd):
                row["annotator"] = draws[sample_id].person.name if sample_id in draws else ""
            rows.append(row)
        writer.finish()
        write_table(unfinished / "manifest.csv", rows)
        unfinished.replace(out)
    return rows


def _write_noisy(
    source: "MaskFolder", sample_id: str, writer: "MaskWriter", noise: "NoiseModel", seed: int
) -> tuple[bool, float]:
    """Write a noisy mask; return whether it differs from the original, and their Dice."""
    from coseg_lightning.functional.dice import mask_dice

    original = source.read(sample_id)
    noisy = noise(original, id=sample_id, seed=seed)
    writer.write(sample_id, noisy)
    return bool((noisy != original).any()), mask_dice(noisy, original)


if __name__ == "__main__":
    main()
