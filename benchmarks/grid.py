"""Runs the app over data, noise, noise levels, methods and seeds; draws the tables.

    python benchmarks/grid.py run core --jobs 2    # what has no result yet, most telling first
    python benchmarks/grid.py list core            # what that is
    python benchmarks/grid.py table core           # its tables
    python benchmarks/grid.py run heldout --jobs 2 # on noise that nothing was chosen on
    python benchmarks/grid.py docs                 # writes them into README.md and docs/
    python benchmarks/grid.py run core --large --jobs 4    # at 256 x 256 with ResNet-18, for a GPU
    python benchmarks/grid.py run real --jobs 2    # pretrained, 128 x 128; with --large 256 x 256

Every cell is one run of the app (`coseg_lightning.run.run` of a composed configuration). Results
are appended to `benchmarks/results/<grid>.csv`, one row a cell, with a hash of the configuration:
finished cells are not run again unless it has changed. Take rows out of the file to run them again
with changed code, whose hash they carry too. Real data lies in `COSEG_DATA`; it is
shrunk once, into a temporary folder, to the size that the networks see. The grid `real` sees it as
it is, and has the encoder's weights in `COSEG_WEIGHTS`, which `lite0.py` writes.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DATA = Path(os.environ.get("COSEG_DATA", HERE.parents[1] / "shared" / "data"))
SMALL = ["model=unet_classic", "model.base_channels=12", "data.image_size=64"]
SMALL += ["trainer.precision=bf16-mixed"]
LARGE = ["model=unet", "data.image_size=256"]
WEIGHTS = Path(os.environ.get("COSEG_WEIGHTS", HERE / "evidence" / "lite0.safetensors"))
REAL = ["model=unet", "model.encoder_name=tu-tf_efficientnet_lite0", "data.image_size=128"]
REAL += ["data.in_channels=3", "trainer.max_epochs=20"]
SEEDS = (0, 1, 2)
GRIDS = ("core", "ablation", "heldout", "real")

# What is trained on: the data, and the noise.
SETS = {
    "phantom-type1": ["noise=type1"],
    "phantom-type2": ["noise=type2"],
    "bubil-crowd1": ["noise=annotator", "noise.masks=masks_crowd1"],
    "bubil-large": ["noise=annotator", "noise.masks=masks_large"],
    "bubil-worst": ["noise=annotator", "noise.masks=masks_worst"],
    "usgra-type2": ["noise=type2"],
}
# Noise that no part or limit of the default was chosen on. The ranking's weights alone know three.
HELD_OUT = {
    "phantom-polygon": ["noise=polygon"],
    "phantom-walk": ["noise=walk"],
    "bubil-crowd5": ["noise=annotator", "noise.masks=masks_crowd5"],
    "bubil-small": ["noise=annotator", "noise.masks=masks_small"],
    "bubil-type2": ["noise=type2"],
    "usgra-type1": ["noise=type1"],
}
DATASETS = {  # phantoms are drawn 80, 16 and 64
    "phantom": ["trainer.max_epochs=40"],
    "bubil": ["trainer.max_epochs=40"],
    "usgra": ["data.classes=3", "trainer.max_epochs=40"],
}
METHODS = {
    "supervised": ["method=supervised"],
    "coseg": [],
    "paper": ["experiment=paper", "averaging=0.1"],  # averaged like all others
    "coteaching": ["method=coteaching", "method.selection=eq1", "method.step=joint"],
    "gce": ["method=gce"],
    "filter": ["method=filter"],
    "jocor": ["method=jocor"],
    "pixel_coteaching": ["method=pixel_coteaching"],
    "adele": ["method=adele"],
    "sce": ["method=sce"],
    "pick_and_learn": ["method=pick_and_learn"],
    "reweight": ["method=reweight", "data.clean_ids=10"],  # knows more than the others
    "forward_correction": ["method=forward_correction"],
    "noise_adaptation": ["method=noise_adaptation"],
    "dimensionality": ["method=dimensionality"],
}
NEIGHBOURS = list(METHODS)[-5:]  # what Co-Seg's paper builds on, and which came last
RIVALS = [name for name in METHODS if name not in ("supervised", "coseg", *NEIGHBOURS)]
# Our default with one thing changed.
ABLATIONS = {
    "default": [],  # in the same version as the others
    "joint step": ["method.step=joint"],
    "no exchange": ["method.module=variants.WithoutExchange"],
    "one network": ["method.module=variants.OneNetwork"],  # which passes the whole batch
    "selection by batch": ["method.selection=relative"],
    "selection by batch, constant keep rate": ["method.selection=relative", "method.ramp_epochs=0"],
    "selection by batch, Eq. (1)": ["method.selection=eq1"],
    "no selection": ["method.module=coseg_lightning.methods.filter.PlainPeers"],
    "score relative": ["method.score=relative"],
    "score softmin": ["method.score=softmin"],
    "score Eq. (1)": ["method.score=mean"],
    "bare vote": ["method.confidence=0"],
    "confidence 0.8": ["method.confidence=0.8"],
    "vote by the mean": ["+method.object=variants.VOTE_BY_THE_MEAN"],
    "retraining from new weights": ["method.warm_start=false"],
    "retraining by cross-entropy": ["method.retraining_loss=cross_entropy"],
    "retraining half as long": ["method.retraining_share=0.5"],
    "retraining twice as long": ["method.retraining_share=2"],
    "stage 1 half as long": ["trainer.max_epochs=20", "method.retraining_share=2"],
    "two rounds": ["method.rounds=2"],
    "weights not averaged": ["averaging=0", "method.score_epochs=5"],
    "ranked by the truth": ["+method.object=variants.RANKED_BY_THE_TRUTH"],
}
# What these two were when they were measured: the names are a part of the hash.
VARIANTS_BEFORE = {
    "variants.VOTE_BY_THE_MEAN": "variants.VoteByTheMean",
    "variants.RANKED_BY_THE_TRUTH": "variants.RankedByTheTruth",
}
LATER = {"annotators": "auto", "label": None, "tile": None, "overlap": 64}  # of the data
MISJUDGED = {"told 0.2 less": -0.2, "told 0.2 more": 0.2}
KEYS = ("set", "noise_level", "method", "seed")
COLUMNS = [*KEYS, "nol", "dice", "accuracy", "auroc", "label_dice_before", "label_dice_after"]
COLUMNS += ["contradiction", "corrected", "seconds", "hash", "code"]

Cell = tuple[str, float, str, int]


# What users have: pretrained encoders. All networks learn for as many steps as our final one.
REAL_SETS = ("bubil-worst", "bubil-large", "bubil-crowd1", "bubil-type2")
REAL_SETS += ("usgra-type1", "usgra-type2")
ONLY_REAL = {"mirror": ["model@peer_b=mirror"]}  # one network, which only its picks pass through
REAL_METHODS = ("supervised x2", "gce x2", "coseg", "mirror", "forward_correction x2")


def cells(grid: str) -> Iterator[Cell]:
    """Set, noise level, method and seed, the most telling first."""
    if grid == "real":
        for level in (0.5, 0.3):
            for seed in SEEDS:
                for name in ("bubil-none", "usgra-none"):
                    yield name, 0.0, "supervised x2", seed
                for name in REAL_SETS:
                    for method in REAL_METHODS:
                        yield name, level, method, seed
        return
    if grid == "ablation":
        for seed in SEEDS:
            for name in ("bubil-large", "bubil-worst", "phantom-type2", "phantom-type1"):
                for method in ABLATIONS:
                    yield name, 0.5, method, seed
            yield "bubil-crowd1", 0.5, "ranked by the truth", seed
            for name in ("bubil-crowd1", "usgra-type2"):  # where the guard leaves labels alone
                yield name, 0.5, "bare vote", seed
        return
    if grid == "heldout":  # clean labels are those of the core grid
        for seed in SEEDS:
            for name in HELD_OUT:
                for method in ("supervised", "coseg", "supervised x2"):
                    yield name, 0.5, method, seed
        return
    clean = ("phantom-none", "bubil-none", "usgra-none")
    for seed in SEEDS:
        for name in clean:
            yield name, 0.0, "supervised", seed
            yield name, 0.0, "supervised x2", seed
        for name in SETS:
            for method in ("supervised", "supervised x2", "gce x2", "coseg"):
                yield name, 0.5, method, seed
    for method in RIVALS:
        for name in SETS:
            yield name, 0.5, method, 0
    for level in (0.3, 0.1):
        for seed in SEEDS:
            for method in ("supervised", "supervised x2", "coseg"):
                for name in SETS:
                    yield name, level, method, seed
    for seed in SEEDS:
        for method in ("coseg", "nol=auto"):
            for name in clean:
                yield name, 0.0, method, seed
        for method in RIVALS:
            for name in SETS:
                yield name, 0.5, method, seed
    for seed in SEEDS:
        for method in ("nol=auto", *MISJUDGED):
            for name in SETS:
                yield name, 0.3, method, seed
    for seed in SEEDS:
        for method in NEIGHBOURS:
            for name in SETS:
                yield name, 0.5, method, seed


def overrides(cell: Cell, large: bool, *, real: bool = False) -> list[str]:
    """The app's arguments that make a cell; of the grid `real`, or of another one."""
    name, level, method, seed = cell
    dataset, noise = name.split("-")
    told = level
    if method in MISJUDGED:
        told = round(max(0.0, level + MISJUDGED[method]), 2)
    plain, _, longer = method.partition(" x")
    made = [*METHODS.get(plain, [])]
    made += LARGE if large else SMALL
    made += DATASETS[dataset]
    if longer:  # as many steps as our final network, which starts from a peer
        epochs = int(longer) * int(DATASETS[dataset][-1].partition("=")[2])
        made.append(f"trainer.max_epochs={epochs}")
    if dataset != "phantom":
        made += ["data=folder", f"data.root={DATA / dataset}", "data.in_channels=1"]
    made += ["noise=none"] if noise == "none" else (SETS | HELD_OUT)[name]
    made += [f"nol={'auto' if method == 'nol=auto' else told}", f"noise.level={level}"]
    made += ABLATIONS.get(method, [])
    if real:
        replaced = ("model", "data.image_size", "data.in_channels", "trainer.precision")
        made = [one for one in made if not one.startswith((*replaced, "trainer.max_epochs"))]
        made += [*REAL, f"model.encoder_weights={WEIGHTS}", *ONLY_REAL.get(method, [])]
        made += ["data.image_size=256"] if large else []
        made += [f"trainer.max_epochs={20 * int(longer)}"] if longer else []
    return [*made, f"seed={seed}", "+trainer.enable_progress_bar=false"]


def composed(cell: Cell, large: bool, *, real: bool = False):  # -> DictConfig
    """The app's configuration of a cell, and its hash."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from coseg_lightning.app.command import CONF
    from coseg_lightning.modules.renamed import MOVED

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides(cell, large, real=real))
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for key in (
        "resume",
        "baselines",
        "on_bad_sample",
        "stages",
        "review",
        "review_budget",
        "rounds",
        "hide_annotators",
        "trust",
    ):
        plain.pop(key, None)  # is nothing that a result depends on
    plain["data"]["source"].pop("on_bad_sample", None)
    plain["data"].pop("cache", None)
    # Options that came later: as they are here, a run is as it was before.
    for key, value in LATER.items():
        for settings in (plain["data"], plain["data"]["source"]):
            if settings.get(key) == value:
                settings.pop(key, None)
    for key, value in (("step", "joint"), ("retraining_share", 1.0)):
        if plain["method"].get(key) == value:
            del plain["method"][key]
    if plain["data"].get("clean_ids") is None:
        plain["data"].pop("clean_ids", None)
    if plain["method"]["name"] == "adele":
        plain["method"].pop("module", None)
    if "object" in plain["method"]:
        plain["method"]["module"] = VARIANTS_BEFORE[plain["method"].pop("object")]
    text = json.dumps(plain, sort_keys=True, default=str).replace(str(DATA), "DATA")
    text = text.replace(str(WEIGHTS), "WEIGHTS")
    for before, now in MOVED.items():
        text = text.replace(now, before)
    return cfg, hashlib.sha256(text.encode()).hexdigest()[:10]


def measure(cell: Cell, large: bool, images: str | None) -> dict[str, str]:
    """Run a cell; in a process of its own, which may run others after it.

    Args:
        cell: The cell.
        large: Whether at 256 x 256.
        images: The folder of the shrunk images; None for the grid `real`.
    """
    import logging

    from coseg_lightning.run import run

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    sys.path.insert(0, str(HERE))  # the ablation's variants
    version = code()  # before anything is trained, of what this process has imported
    cfg, digest = composed(cell, large, real=images is None)
    if "root" in cfg.data.source and images is not None:
        cfg.data.root = str(Path(images) / cell[0].split("-")[0])  # all others refer to it
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        sys.stdout, sys.stderr = nowhere, nowhere
        try:
            summary = run(cfg, Path(folder) / "run")
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    return row_of(cell, summary, digest, version)


def row_of(cell: Cell, summary: Mapping[str, Any], digest: str, version: str) -> dict[str, str]:
    """The row of a cell's run: its figures, the hash of its configuration, and the code's."""
    correction = summary["correction"]
    figures = {
        "nol": summary["ranking"]["noise_level"],
        "dice": summary["test"]["dice"],
        "accuracy": summary["test"]["accuracy"],
        "auroc": summary["ranking"]["auroc"],
        "label_dice_before": correction["label_dice_before"],
        "label_dice_after": correction["label_dice_after"],
        "contradiction": correction["contradiction"],
    }
    row = {name: "" if value is None else f"{value:.5f}" for name, value in figures.items()}
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    return {
        **dict(zip(KEYS, map(str, cell), strict=True)),
        **row,
        "corrected": str(correction["corrected"]),
        "seconds": f"{seconds:.0f}",
        "hash": digest,
        "code": version,
    }


@cache
def code() -> str:
    """A hash of the package's source and the variants', to see which rows another version made."""
    import coseg_lightning

    source = [*sorted(Path(coseg_lightning.__file__).parent.rglob("*.py")), HERE / "variants.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in source)).hexdigest()[:10]


def shrunk(folder: Path, side: int) -> None:
    """Small copies of the real sets: images averaged, masks by the nearest pixel."""
    import shutil

    import cv2

    for dataset in ("bubil", "usgra"):
        for path in sorted((DATA / dataset).rglob("*")):
            copy = folder / dataset / path.relative_to(DATA / dataset)
            if path.suffix == ".png":
                copy.parent.mkdir(parents=True, exist_ok=True)
                picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                mask = path.parent.name.startswith("masks")
                method = cv2.INTER_NEAREST_EXACT if mask else cv2.INTER_AREA
                cv2.imwrite(str(copy), cv2.resize(picture, (side, side), interpolation=method))
            elif path.name == "split.csv":
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)


def read(grid: str) -> list[dict[str, str]]:
    """The rows of a grid; of a cell that was run again, the last."""
    path = RESULTS / f"{grid}.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}
    return list(rows.values())


def left_of(
    grid: str,
    large: bool,
    seeds: Sequence[int] = SEEDS,
    sets: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> Iterator[Cell]:
    """The cells without a result yet, of these seeds, sets and methods (all if none is named)."""
    rows = read(f"{grid}{'_large' * large}")
    done = {(tuple(row[key] for key in KEYS), row["hash"]) for row in rows}
    for cell in dict.fromkeys(cells(grid)):
        if cell[3] not in seeds or (sets and cell[0] not in sets):
            continue
        if methods and cell[2] not in methods:
            continue
        if not cell[0].startswith("phantom") and not DATA.is_dir():
            print(f"{cell} is left out: there is no folder {DATA}.", file=sys.stderr)
            continue
        if (tuple(map(str, cell)), composed(cell, large, real=grid == "real")[1]) not in done:
            yield cell


def run(
    grid: str,
    jobs: int,
    large: bool,
    seeds: Sequence[int] = SEEDS,
    sets: Sequence[str] = (),
    methods: Sequence[str] = (),
) -> None:
    """Run what has no result yet."""
    name, real = f"{grid}{'_large' * large}", grid == "real"
    if real and not WEIGHTS.is_file():
        raise SystemExit(f"There are no weights: python benchmarks/lite0.py {WEIGHTS}")
    left = list(left_of(grid, large, seeds, sets, methods))
    with tempfile.TemporaryDirectory() as images:
        if DATA.is_dir() and not real:
            shrunk(Path(images), 256 if large else 64)
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            futures = {
                pool.submit(measure, cell, large, None if real else images): cell for cell in left
            }
            for number, future in enumerate(as_completed(futures), start=1):
                try:
                    row = future.result()
                except Exception:  # the others go on
                    print(f"{futures[future]} failed:\n{traceback.format_exc()}", flush=True)
                    continue
                append(RESULTS / f"{name}.csv", row)
                print(f"{number} of {len(left)}: {','.join(row.values())}", flush=True)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a table."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            table.writeheader()
        table.writerow(row)


def rows_of(grid: str, size: str = "") -> list[dict[str, str]]:
    """A grid's rows, and those of the core grid that its tables show beside them."""
    rows, core = read(f"{grid}{size}"), read(f"core{size}")
    if grid == "ablation":  # our default
        sets = {row["set"] for row in rows}
        of_default = [row for row in core if row["noise_level"] == "0.5" and row["set"] in sets]
        return rows + [row for row in of_default if row["method"] == "coseg"]
    if grid == "real":
        return rows
    if grid == "heldout":  # plain networks on clean labels
        clean = [row for row in core if row["set"].endswith("-none")]
        return rows + [row for row in clean if row["method"].startswith("supervised")]
    return core


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("run", "list", "table", "docs"))
    parser.add_argument("grid", choices=GRIDS, nargs="?", default="core")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="only these")
    names = sorted({cell[0] for grid in GRIDS for cell in cells(grid)})
    parser.add_argument("--sets", nargs="+", default=(), choices=names, help="only these")
    names = sorted({cell[2] for grid in GRIDS for cell in cells(grid)})
    parser.add_argument("--methods", nargs="+", default=(), choices=names, help="only these")
    parser.add_argument("--large", action="store_true", help="256 x 256, ResNet-18")
    arguments = parser.parse_args()
    of = (arguments.seeds, arguments.sets, arguments.methods)
    if arguments.what == "run":
        os.environ.setdefault("OMP_NUM_THREADS", "1" if arguments.jobs > 1 else "2")
        run(arguments.grid, arguments.jobs, arguments.large, *of)
    if arguments.what == "list":
        for cell in left_of(arguments.grid, arguments.large, *of):
            print(*cell)
        return
    if arguments.what == "docs":
        from fill import filled

        results = {name: rows_of(name) for name in GRIDS}
        for page in (HERE.parent / "README.md", *sorted((HERE.parent / "docs").rglob("*.md"))):
            text = page.read_text(encoding="utf-8")
            page.write_text(filled(text, results), encoding="utf-8")
        return
    rows = rows_of(arguments.grid, "_large" * arguments.large)
    if arguments.grid == "real":
        from real_tables import tables

        print(tables(rows))
        return
    from tables import tables

    print(tables(arguments.grid, rows))


if __name__ == "__main__":
    main()
