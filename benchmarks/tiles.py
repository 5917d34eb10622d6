"""Large images by tiles: seconds per megapixel and peak memory against the side of the image.

    python benchmarks/tiles.py 2500 5000 10000 20000

For each side it makes one image of four bands and its mask, as tiled TIFFs, and runs all stages of
one epoch each on it, `apply`, and `predict` with the peers' disagreement, each as a process of its
own, in tiles of 512. Writes `benchmarks/results/tiles.csv`.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

RESULTS = Path(__file__).parent / "results" / "tiles.csv"
BANDS, PIECE = 4, 512
NETWORK = [
    *("model.encoder_name=tu-mobilenetv3_small_050", "model.encoder_weights=null"),
    "+model.decoder_channels=[64,32,16,16,8]",
]
SETTINGS = [
    *("data.tile=512", "data.overlap=64", f"data.in_channels={BANDS}", "data.batch_size=4"),
    *("data.source.test_share=0", "trainer.max_epochs=1", "rehearse=false", "nol=0.2"),
]


def pieces(side: int, *, of_mask: bool) -> Iterator[np.ndarray]:
    """Draw an image, or its mask, in pieces: discs in a tenth, not all of them in the mask."""
    y, x = np.mgrid[:PIECE, :PIECE]
    noise = np.random.default_rng(0).normal(0, 12, (PIECE, PIECE, BANDS))
    across = -(-side // PIECE)
    for number in range(across * across):
        rng = np.random.default_rng(number)
        radius = rng.integers(40, 120)
        disc = np.hypot(y - PIECE / 2, x - PIECE / 2) < radius
        has_disc = number % 10 == 3
        if of_mask:
            yield ((disc & has_disc) * (number % 40 != 33)).astype(np.uint8) * 255
        else:
            values = 110 + noise + 50 * (disc & has_disc)[..., None]
            yield (values // 8 * 8).clip(0, 255).astype(np.uint8)  # compresses as real ones do


def write(folder: Path, side: int) -> None:
    """Write the image and its mask, piece by piece."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        is_mask = name == "masks"
        tifffile.imwrite(
            folder / name / "large.tif",
            pieces(side, of_mask=is_mask),
            shape=(side, side) if is_mask else (side, side, BANDS),
            dtype=np.uint8,
            photometric="minisblack" if is_mask else "rgb",
            extrasamples=None if is_mask else ["unspecified"],
            tile=(PIECE, PIECE),
            compression="zlib",
            bigtiff=True,
        )


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its peak memory in GB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure all sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sides", type=int, nargs="+")
    parser.add_argument("--folder", help="where the images are made; by default a temporary one")
    options = parser.parse_args()
    rows = []
    for side in options.sides:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            write(folder / "data", side)
            run = folder / "run"
            images, settings = folder / "data" / "images", [*SETTINGS, *NETWORK]
            at = ["data=folder", f"data.root={folder / 'data'}", f"hydra.run.dir={run}"]
            more = ["uncertainty=true", "batch_size=4"]
            commands = {
                "run": ["coseg_lightning.run", *at, *settings],
                "apply": ["coseg_lightning.apply", str(run), str(folder / "masks")],
                "predict": [
                    *("coseg_lightning.predict", str(run), str(images)),
                    *(str(folder / "predicted"), *more),
                ],
            }
            for command, arguments in commands.items():
                seconds, memory = measure(arguments)
                row = {
                    "side": side,
                    "megapixels": side * side / 1e6,
                    "command": command,
                    "seconds": round(seconds, 1),
                    "seconds_per_megapixel": round(seconds / (side * side / 1e6), 3),
                    "peak_gb": round(memory, 2),
                }
                rows.append(row)
                print(row, flush=True)
            shutil.rmtree(run)
        with RESULTS.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
