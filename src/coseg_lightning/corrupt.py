"""Write a corrupted copy of a folder of masks: python -m coseg_lightning.corrupt."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from coseg_lightning.app.checks import check_count, check_share
from coseg_lightning.app.command import command
from coseg_lightning.errors import InputError

if TYPE_CHECKING:
    from coseg_lightning.noise.models import NoiseModel


@command("corrupt")
def main(cfg: DictConfig) -> None:
    """Compose, check, write the folder, and say what came out."""
    from coseg_lightning.app.build import make_noise, noise_name
    from coseg_lightning.data.folder import read_split

    check_share(cfg, "nol")
    check_share(cfg, "noise.level")
    check_count(cfg, "seed", 0)
    check_count(cfg, "data.classes", 1)
    noise = make_noise(cfg)
    if noise is None:
        raise InputError("noise=none would change nothing; name a noise, such as noise=type2.")
    candidates = None
    if cfg.split is not None:
        split = read_split(Path(cfg.split))
        candidates = [id for id, part in split.items() if part == "train"]
    rows = corrupt_folder(
        cfg.masks,
        cfg.out,
        noise,
        name=noise_name(cfg),
        noise_level=cfg.noise.level,
        seed=cfg.seed,
        classes=cfg.data.classes,
        candidates=candidates,
    )
    dice = [row["dice"] for row in rows if row["noisy"]]
    print(
        f"{len(dice)} of {len(rows)} masks in {cfg.out} are noisy ({noise_name(cfg)})"
        + (
            f"; their Dice to the originals is {sum(dice) / len(dice):.3f} ({min(dice):.3f} to "
            f"{max(dice):.3f})."
            if dice
            else "."
        )
        + " Which: manifest.csv there."
    )


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
) -> list[dict[str, Any]]:
    """Copy a folder of masks, a share of them made noisy, with a `manifest.csv`.

    Untouched masks are copied byte by byte; noisy ones keep their file's format, palette and
    values (0/255 stays 0/255). With a run's candidates, seed and noise level, the same masks
    become noisy in the same way as in that run.

    Args:
        masks: A folder of masks, which is only read.
        out: A new folder. It appears when it is complete.
        noise: The noise model.
        name: What the manifest calls it.
        noise_level: Share of the candidates that become noisy.
        seed: Chooses them, and what happens to them.
        classes: Number of classes, background included.
        candidates: Ids that may become noisy; default all.

    Returns:
        The manifest's rows: `id`, `file`, `noisy`, `noise`, `seed` and `dice` to the original. A
        mask that the noise does not change, such as an empty one, is not noisy.

    Raises:
        InputError: If `out` exists or lies in `masks`, or a mask is missing or cannot be written.
    """
    from tqdm import tqdm

    from coseg_lightning.files.csv import write_table
    from coseg_lightning.files.mask_folder import MaskFolder
    from coseg_lightning.functional.dice import mask_dice
    from coseg_lightning.noise.noisy_layer import choose_noisy

    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists and is never overwritten; give a new folder.")
    if Path(masks).resolve() in out.resolve().parents:
        raise InputError(f"{out} lies in {masks}, which is only read; give a folder elsewhere.")
    source = MaskFolder(masks, classes=classes)
    candidates = source.ids if candidates is None else list(candidates)
    chosen = set(choose_noisy(candidates, noise_level, seed))
    for id in chosen:
        source.path(id)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        place = Path(temporary) / "masks"
        place.mkdir()
        for id in tqdm(source.ids, desc="Masks", leave=False):
            path, dice, changed = source.path(id), 1.0, False
            if id in chosen:
                original = source.read(id)
                noisy = noise(original, id=id, seed=seed)
                dice, changed = mask_dice(noisy, original), bool((noisy != original).any())
                source.write_like(id, place / path.name, noisy)
            else:
                shutil.copyfile(path, place / path.name)
            row = {"id": id, "file": path.name, "noisy": int(changed)}
            rows.append(row | {"noise": name if changed else "", "seed": seed, "dice": dice})
        write_table(place / "manifest.csv", rows)
        place.replace(out)
    return rows


if __name__ == "__main__":
    main()
