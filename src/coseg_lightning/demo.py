"""A demonstration in about a minute, on images that it draws: python -m coseg_lightning.demo."""

import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
import webbrowser
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean

from coseg_lightning.app.command import arguments, cli_errors
from coseg_lightning.errors import InputError
from coseg_lightning.files.settings import as_value

TRAIN, TEST, SIDE, LEVEL = 60, 20, 96, 0.3
# A small U-Net without pretrained weights, which two cores train in seconds.
NETWORK: tuple[str, ...] = ("model=unet_classic", "model.base_channels=8", "data.image_size=48")
NETWORK += ("data.in_channels=1",)
TRAINING = ("optimizer.lr=0.003", "data.batch_size=4", "trainer.max_epochs=12", "rehearse=false")


def main() -> None:
    """Read the command line, and go through the demonstration."""
    options = arguments("demo")
    page = demonstrate(Path(options["folder"]), seed=options["seed"])
    if options["open"] and _has_display():
        webbrowser.open(page.resolve().as_uri())


def demonstrate(
    folder: Path,
    *,
    seed: int = 0,
    train: int = TRAIN,
    test: int = TEST,
    training: Sequence[str] = TRAINING,
) -> Path:
    """Draw a folder of images and masks, audit it, run all stages, and show what they found.

    Args:
        folder: A new folder for all of it.
        seed: Seed of the images, of the errors in the masks, and of the networks.
        train: Number of images whose masks are not trusted.
        test: Number of images whose masks are known to be right.
        training: Settings of the run, beside those of its network.

    Returns:
        The page of the report.

    Raises:
        InputError: If the folder exists.
    """
    begin = time.perf_counter()
    if folder.exists():
        raise InputError(
            f"{folder} exists and is never overwritten; give another folder, as in folder=demo2."
        )
    bad = draw_folder(folder, train, test, seed)
    _say(
        f"{folder} now holds {train + test} images and masks of chest phantoms. A careless "
        f"annotator drew {len(bad)} of the {train} training masks. The {test} test masks are "
        "right, and split.csv marks them as trusted. No command knows which masks are bad. All "
        "commands use one thread, unless OMP_NUM_THREADS is set."
    )
    audit, run, corrected = folder / "audit", folder / "run", folder / "corrected"
    _say("1. Rank the masks by their outlines, without a network:")
    _coseg("audit", f"{folder}", "training=none", _into(audit))
    _say("2. Train two networks that teach each other, correct masks, and retrain one network:")
    _coseg("run", f"{folder}", *NETWORK, *training, f"seed={seed}", _into(run))
    _say("3. Write all masks in their own format, with the run's corrections:")
    _coseg("apply", f"{run}", f"{corrected}")
    _show(folder, bad, train, seed, time.perf_counter() - begin)
    return run / "report.html"


def draw_folder(folder: Path, train: int, test: int, seed: int) -> list[str]:
    """Write `images/`, `masks/` and `split.csv`, as a user might have them.

    Args:
        folder: The folder.
        train: Number of training images.
        test: Number of test images, whose masks are right.
        seed: Seed of the images and of the errors.

    Returns:
        The ids of the bad masks.
    """
    from PIL import Image

    from coseg_lightning.data.phantom import phantom_splits
    from coseg_lightning.files.csv import write_table
    from coseg_lightning.noise import BiasedAnnotator
    from coseg_lightning.noise.noisy_layer import choose_noisy

    splits, annotator = phantom_splits(train, 0, test, side=SIDE, seed=seed), BiasedAnnotator()
    bad = sorted(choose_noisy(splits.train.ids, LEVEL, seed))
    parts = {"train": splits.train, "test": splits.test}
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for part, phantoms in parts.items():
        if phantoms is None:
            continue
        for index, sample_id in enumerate(phantoms.ids):
            image, mask = phantoms.image(index), phantoms.mask(index)
            if sample_id in bad:
                mask = annotator(mask, id=sample_id, seed=seed)
            Image.fromarray(image).save(folder / "images" / f"{sample_id}.png")
            Image.fromarray(255 * mask).save(folder / "masks" / f"{sample_id}.png")
            rows.append({"id": sample_id, "split": part, "trusted": int(part == "test")})
    write_table(folder / "split.csv", rows)
    return bad


NEXT = """
These images are drawn, and easier than most: on masks that people drew, fewer bad masks are
found, and their number often cannot be estimated (docs/limitations.md).

The same with your own folder DIR, which holds images/ and masks/:

  coseg audit DIR training=none
  coseg run DIR
  coseg apply RUN OUT    # RUN is the folder that coseg run names at its end

Open the report in a browser: {report}"""


def _show(folder: Path, bad: Collection[str], train: int, seed: int, seconds: float) -> None:
    """Compare the masks with the originals, which no command saw, and print the figures."""
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    rows = {
        f"Bad masks among the {len(bad)} worst by {name}": f"{_found(folder / name, bad)}"
        for name in ("audit", "run")
    }
    for name, masks in (("as given", "masks"), ("corrected", "corrected")):
        dice = _dice(folder / masks, train, seed)
        rows[f"Mean Dice of the bad masks, {name}"] = f"{fmean(dice[i] for i in bad):.3f}"
        rows[f"Mean Dice of all training masks, {name}"] = f"{fmean(dice.values()):.3f}"
    rows["Dice of the network on the test images"] = f"{summary['test']['dice']:.3f}"
    rows["Time"] = f"{seconds:.0f} s"
    _say("Results, compared with the masks before the annotator's errors:")
    width = max(map(len, rows))
    print("\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))
    print(NEXT.format(report=folder / "run" / "report.html"))


def _dice(masks: Path, train: int, seed: int) -> dict[str, float]:
    """Return the Dice of each training mask of a folder to what was drawn at first."""
    from coseg_lightning.data.phantom import phantom_splits
    from coseg_lightning.files.mask_folder import MaskFolder
    from coseg_lightning.functional.dice import mask_dice

    folder = MaskFolder(masks, classes=2)
    phantoms = phantom_splits(train, 0, 0, side=SIDE, seed=seed).train
    return {
        sample_id: mask_dice(folder.read(sample_id), phantoms.mask(index))
        for index, sample_id in enumerate(phantoms.ids)
    }


def _found(folder: Path, bad: Collection[str]) -> int:
    """Count the bad masks among as many that are ranked worst."""
    from coseg_lightning.files.csv import read_table

    ids = [row["id"] for row in read_table(folder / "scores.csv", ["id"])]
    return len(set(ids[: len(bad)]) & set(bad))


def _coseg(*words: str) -> None:
    """Show a command, and run it as a user would."""
    print(f"\n$ coseg {shlex.join(words)}", flush=True)
    # For networks this small, more threads are many times slower where other programs run.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, "-m", "coseg_lightning", *words]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _into(folder: Path) -> str:
    """Return the setting of a command's output folder, whatever signs are in its name."""
    return f"hydra.run.dir={as_value(str(folder))}"


def _say(text: str) -> None:
    print("\n" + textwrap.fill(text, 96), flush=True)


def _has_display() -> bool:
    """Whether a browser has a screen to open a page on."""
    if os.name == "nt" or sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    cli_errors(main)
