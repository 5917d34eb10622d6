"""Inspects a folder and rehearses a run on it: python -m coseg_lightning.check DIR."""

import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.checks import check, quiet
from coseg_lightning.app.command import command, task_overrides
from coseg_lightning.files.inspection import groups_of_equal
from coseg_lightning.files.mask_rules import IGNORE_INDEX

if TYPE_CHECKING:
    from coseg_lightning.data.datamodule import CoSegDataModule
    from coseg_lightning.data.subsets import JoinedImages
    from coseg_lightning.labels.masks import MaskedImages

# Settings for reading files, which every command on a folder needs.
READING = [f"data.{key}" for key in ("images", "masks", "classes", "in_channels", "group")]
READING += [f"data.{key}" for key in ("image_glob", "mask_glob", "allow_links", "bands", "nodata")]
READING += [f"data.{key}" for key in ("class_ids", "colours", "mask_threshold", "instances")]
READING += ["data.tile", "data.overlap", "data.annotators", "data.label"]
# Names that differ in their last number alone may be of one patient or place.
GROUP = r"(.*?)(?:[-_. ]?[a-zA-Z]?\d+)?"
SAMPLE = 200  # images or masks that are read to tell about all of them


@command("check")
def main(cfg: DictConfig) -> None:
    """Compose and check the configuration, inspect the data, and print what was found."""
    for line in describe(cfg):
        print(line, flush=True)


def describe(cfg: DictConfig) -> Iterator[str]:
    """Inspect a dataset and rehearse a run on it; nothing is written.

    Yields:
        The findings, line by line.

    Raises:
        InputError: If the data cannot be used, or the rehearsal finds an error.
    """
    from coseg_lightning.app.build import make_data
    from coseg_lightning.app.settled import settle_folders
    from coseg_lightning.data.subsets import JoinedImages
    from coseg_lightning.report.doubts import FEWEST
    from coseg_lightning.runs.summary import peak_memory

    check(cfg)
    quiet()
    settle_folders(cfg)
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(cfg, Path(folder) / "run", tells_problems=False)
        parts = {part: samples.dataset for part, samples in _parts(data).items()}
        everything = JoinedImages(list(parts.values()))
        hidden = bool(cfg.get("hide_annotators"))
        yield f"\n  {'Images':<10}{_images(everything, cfg.data.in_channels)}"
        yield f"  {'Masks':<10}{_masks(everything, max(2, cfg.data.classes))}"
        yield from (f"  {'People':<10}{line}" for line in _people(everything, hidden=hidden))
        yield f"  {'Split':<10}{_split(data.sizes, parts['train'])}"
        if data.sizes["train"] < FEWEST:
            yield (
                f"  {'Few':<10}coseg was measured with {FEWEST} training masks and more; with "
                "fewer, rankings and corrections are less reliable"
            )
        yield from (f"  {'Groups':<10}{line}" for line in _groups(parts))
        yield from (f"  {'Twice':<10}{line}" for line in _duplicates(parts))
        yield from (f"  {'Blunders':<10}{line}" for line in _blunders(everything, cfg, data.kinds))
        if cfg.rehearse:
            yield f"  {'Run':<10}{_rehearsed(cfg, data, Path(folder) / 'run')}"
            yield f"  {'Memory':<10}{peak_memory() / 2**30:.1f} GiB at most, in the rehearsal"
        else:
            yield f"  {'Run':<10}not rehearsed, so time and memory are unknown"
    yield f"\n  To train: {_command(cfg)}"
    yield "  To see which masks are bad: " + _command(cfg, "audit", "training=none")


def _parts(data: "CoSegDataModule") -> dict[str, Any]:
    found = {part: data.samples(part) for part in ("train", "val", "test")}
    return {part: samples for part, samples in found.items() if samples is not None}


def _spread(count: int) -> list[int]:
    """Return up to `SAMPLE` indices, evenly spread."""
    return [int(index) for index in np.linspace(0, count - 1, min(count, SAMPLE))]


def _images(dataset: "MaskedImages", in_channels: int) -> str:
    kinds = Counter[str]()
    for index in _spread(len(dataset.ids)):
        image = dataset.image(index)
        bands = 1 if image.ndim == 2 else image.shape[2]
        height, width = image.shape[:2]
        names = {1: "grey", 3: "colour"}
        kinds[f"{width} x {height}, {names.get(bands, f'{bands} bands')}, {image.dtype}"] += 1
    (first, _), *others = kinds.most_common()
    what = "" if getattr(dataset, "tiles", None) is None else " tiles"
    text = f"{len(dataset.ids)}{what}, {first}"
    if others:
        text += f" and {len(others)} other kinds" if len(others) > 1 else f" and {others[0][0]}"
    text += f"; the networks get {in_channels} channel{'s' if in_channels > 1 else ''}"
    is_grey = in_channels == 3 and all(", grey, " in kind for kind in kinds)
    return f"{text} (data.in_channels=1 is enough for grey images)" if is_grey else text


def _masks(dataset: "MaskedImages", classes: int) -> str:
    indices = _spread(len(dataset.ids))
    holds, pixels = np.zeros(classes, int), np.zeros(classes, int)
    empty, unlabelled, total = 0, 0, 0
    for index in indices:
        values = np.bincount(dataset.mask(index).ravel(), minlength=max(classes, IGNORE_INDEX + 1))
        unlabelled, total = unlabelled + values[IGNORE_INDEX], total + values.sum()
        counts = values[:classes]
        holds += counts > 0
        pixels += counts
        empty += not counts[1:].any()
    each = [
        f"class {k} in {holds[k]} of them, {100 * pixels[k] / max(1, pixels.sum()):.1f} % of the "
        "pixels"
        for k in range(1, classes)
    ]
    if unlabelled:
        each.append(f"{100 * unlabelled / total:.1f} % of all pixels are unlabelled")
    read = len(dataset.ids) if len(indices) == len(dataset.ids) else f"{len(indices)} were read"
    return "; ".join([str(read), *each, *([f"{empty} are empty"] if empty else [])])


def _split(sizes: dict[str, int], train: Any) -> str:
    text = ", ".join(f"{size} {part}" for part, size in sizes.items())
    by = getattr(train, "split_by", "")
    if not by:
        return text
    advice = " (write a split.csv to choose it)" if by.startswith("drawn") else ""
    return f"{text}, {by}{advice}"


def _groups(parts: dict[str, Any]) -> Iterator[str]:
    """Warn if names that only differ in their last number are in two parts of the split."""
    if any(
        getattr(dataset, "has_groups", getattr(dataset, "groups", {})) for dataset in parts.values()
    ):
        return  # the user has defined the groups
    images = {part: _image_ids(dataset) for part, dataset in parts.items()}
    groups = {part: {_stem(i) for i in ids} for part, ids in images.items()}
    count = len(set().union(*groups.values()))
    samples = sum(map(len, images.values()))
    if not 2 <= count <= 0.8 * samples:  # uninformative names, or one image per group
        return
    others = set().union(*(groups[part] for part in groups if part != "train"))
    shared = sorted(groups["train"] & others, key=lambda name: (not name, name))
    if shared:
        yield (
            f"by their names, the images form {count} groups, such as {shared[0]!r}, and "
            f"{len(shared)} of them are in training and in another part; if a group is one patient "
            "or place, the metrics are too good; keep each group in one part with "
            f"data.group='{GROUP}', or with split.csv"
        )


def _image_ids(dataset: Any) -> set[str]:
    tiles = getattr(dataset, "tiles", None)
    return {i if tiles is None else tiles.tiles[i].image_id for i in dataset.ids}


def _duplicates(parts: dict[str, Any]) -> Iterator[str]:
    digests: dict[str, str | None] = {}
    for dataset in parts.values():
        digests |= getattr(dataset, "digests", {})
    groups = groups_of_equal(digests)
    if groups:
        yield (
            f"{len(groups)} pictures exist more than once, such as {', '.join(groups[0][:3])}; "
            "remove the copies"
        )


def _people(dataset: "JoinedImages", *, hidden: bool) -> Iterator[str]:
    """Describe who drew the masks, if known, and how well the masks of one image agree."""
    if dataset.several is not None:
        facts = dataset.several.facts()
        people, agreement = len(facts["annotators"]), facts["agreement"]
        told = "" if agreement is None else f"; the mean Dice of two of them is {agreement:.2f}"
        yield (
            f"{facts['images_with_several']} images have several masks, by {people} people"
            f"{told}; data.label={facts['fusion']} fuses them"
        )
    if dataset.annotators:
        count = Counter(dataset.annotators.values())
        (name, most), *_ = count.most_common(1)
        by = "one of them" if hidden else name
        yield (
            f"{len(dataset.annotators)} masks are by {len(count)} named people, most by {by} "
            f"({most})"
        )


def _stem(sample_id: str) -> str:
    match = re.fullmatch(GROUP, sample_id)
    return match[1] if match else sample_id


def _blunders(
    dataset: "MaskedImages", cfg: DictConfig, kinds: Mapping[str, str] | None
) -> Iterator[str]:
    from coseg_lightning.app.unaided import judge_masks
    from coseg_lightning.ranking.blunders import MEANINGS

    if getattr(dataset, "tiles", None) is not None:
        yield "not searched, since tiles cut objects; leave data.tile out to search for them"
        return
    if kinds is not None and not all(sample_id in kinds for sample_id in dataset.ids):
        kinds = None  # only training masks need a kind
    _, blunders = judge_masks(dataset, classes=max(2, cfg.data.classes), kinds=kinds)
    found: dict[str, list[str]] = {}
    for sample_id, names in zip(dataset.ids, blunders, strict=True):
        for name in names:
            found.setdefault(name, []).append(sample_id)
    if not found:
        yield "none found without a network"
    for name, ids in found.items():
        yield f"{name}: {MEANINGS[name]} ({len(ids)}, such as {', '.join(ids[:3])})"


def _rehearsed(cfg: DictConfig, data: "CoSegDataModule", folder: Path) -> str:
    """Rehearse a run in a temporary folder, and describe what it would do."""
    from coseg_lightning.app.build import make_trainer, rehearsal_settings, run_arguments
    from coseg_lightning.methods.pipeline import foresee

    return foresee(
        data,
        folder,
        **run_arguments(cfg),
        rehearsal_trainer=partial(make_trainer, rehearsal_settings(cfg)),
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
    )


def _command(cfg: DictConfig, name: str = "run", *more: str) -> str:
    own = [o for o in task_overrides() if o != "data=folder" and not o.startswith("data.root=")]
    of_data = [o for o in own if o.partition("=")[0] in READING]
    given: Sequence[str] = own if name == "run" else of_data
    root = [str(cfg.data.root)] if cfg.data.get("root") is not None else []
    places = _own_files() if name == "run" else []
    return shlex.join(["coseg", name, *root, *places, *given, *more])


def _own_files() -> list[str]:
    """Return the arguments by which files of somebody's own are found, and the data's choice."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    folders = [one.path for one in hydra.runtime.config_sources if one.provider == "command-line"]
    places = [f"--config-dir={path}" for path in folders]
    places += [one for one in hydra.overrides.hydra if one.startswith("hydra.searchpath=")]
    choice = hydra.runtime.choices.get("data")
    is_given = any(one.startswith("data=") and one != "data=folder" for one in task_overrides())
    return places if not folders or is_given or choice is None else [*places, f"data={choice}"]


if __name__ == "__main__":
    main()
