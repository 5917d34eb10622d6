"""Tasks for annotation tools of the worst masks, and a review of what was drawn there."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.app.reviewable import Reviewable
from coseg_lightning.data.preparation import rescale_intensity, resized
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.names import ImageNames
from coseg_lightning.exchanged.source import Source
from coseg_lightning.exchanged.tasks import Answer, Classes, Task, painted
from coseg_lightning.exchanged.tools import tool_named
from coseg_lightning.files.atomic import replacing
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.files.images import smallest_type
from coseg_lightning.files.progress import progress
from coseg_lightning.labels.ids import check_id
from coseg_lightning.labels.masks import Mask

CHOICES = {
    "masks": ("proposal", "given"),
    "unchanged": ("count", "skip"),
    "empty": ("skip", "background"),
}
DEFAULTS = {key: choices[0] for key, choices in CHOICES.items()}
MANIFEST = "ids.csv"  # of the written tasks: the file of each id


def write_tasks(
    run: str | Path,
    out: str | Path,
    tool: str,
    *,
    worst: int = 50,
    masks: str = "proposal",
    root: str | Path | None = None,
    trust: bool = False,
) -> tuple[int, dict[str, int]]:
    """Write the worst masks of a run or an audit as tasks of an annotation tool.

    Args:
        run: The folder of the run or the audit.
        out: A new folder. It appears only when it is complete.
        tool: `cvat`, `label_studio`, `coco`, `labelme` or `fiftyone`.
        worst: How many tasks; all masks if there are fewer.
        masks: What a person begins with: `proposal`, where there is one, or `given`.
        root: Where the run's data is now, if it was moved.
        trust: See `AppRun`.

    Returns:
        The number of tasks, and how many begin with which masks.

    Raises:
        InputError: If `out` exists, or the masks cannot be read.
    """
    kind = tool_named(tool)
    _check_choice("masks", masks, ("proposal", "given"))
    _check_worst(worst)
    _check_free(out)
    reviewable = Reviewable(run, root, trust=trust)
    names, classes = ImageNames(reviewable.worst_first), classes_of(reviewable)
    beginnings: Counter[str] = Counter()

    def tasks(folder: Path) -> Iterator[Task]:
        for sample_id in progress(reviewable.worst_first[:worst], "Tasks"):
            given = reviewable.mask(sample_id)
            proposal = reviewable.proposal(sample_id) if masks == "proposal" else None
            beginnings["given masks" if proposal is None else "proposals"] += 1
            name = names.name(sample_id)
            with replacing(folder / kind.images / f"{name}.png") as temporary:
                picture = as_people_see_it(reviewable.image(sample_id), given.shape)
                Image.fromarray(picture).save(temporary, format="PNG")
            mask = given if proposal is None else proposal
            rows.append({"file": f"{name}.png", "id": sample_id})
            yield Task(sample_id, name, mask)

    rows: list[dict[str, str]] = []
    with _new_folder(out, reviewable) as folder:
        kind.write(folder, tasks(folder), classes)
        write_table(folder / MANIFEST, rows)
    return len(rows), dict(beginnings)


@dataclass
class Read:
    """What was read back.

    Args:
        decisions: The decision on each answered sample, worst first.
        asked: How many tasks there were, or None if nobody knows.
        answered: How many of these were answered.
        remarks: What a person should know, in sentences.
        out: The folder.
    """

    decisions: dict[str, str]
    asked: int
    answered: int
    out: Path
    remarks: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Say what was read."""
        counts = Counter(self.decisions.values())
        kinds = ", ".join(f"{counts[name]} {name}" for name in ("ok", "take", "redraw"))
        more = len(self.decisions) - self.answered
        others = f", and {more} more" if more else ""
        return [
            f"{self.answered} of {self.asked} were answered{others}: {kinds}.",
            *self.remarks,
            f"The decisions are in {self.out / 'review.csv'}; review={self.out} uses them.",
        ]


def read_answers(
    run: str | Path,
    out: str | Path,
    tool: str,
    source: str | Path,
    *,
    worst: int = 50,
    masks: str = "proposal",
    unchanged: str = "count",
    empty: str = "skip",
    root: str | Path | None = None,
    trust: bool = False,
) -> Read:
    """Read the answers of an annotation tool as a review: `review.csv` and `masks/ID.png`.

    An answer that equals the given mask is `ok`, one that equals the proposal is `take`, and any
    other is `redraw`, with its mask.

    Args:
        run: The folder of the run or the audit.
        out: A new folder. It appears only when it is complete.
        tool: See `write_tasks`.
        source: What the tool exported: a file, a zip archive, or a folder.
        worst: How many tasks were written, if no `ids.csv` beside the source tells it.
        masks: What they began with.
        unchanged: Whether answers that equal what they began with `count`; with `skip` they are
            taken for tasks that nobody did.
        empty: What an image without any area means where a tool does not say whether somebody
            did it: `skip` for a task that nobody did, or `background`.
        root: Where the run's data is now, if it was moved.
        trust: See `AppRun`.

    Raises:
        InputError: If `out` exists, or an answer cannot be read or does not belong to the run.
    """
    kind = tool_named(tool)
    for key, value in (("masks", masks), ("unchanged", unchanged), ("empty", empty)):
        _check_choice(key, value, CHOICES[key])
    _check_worst(worst)
    _check_free(out)
    files = Source(source)
    reviewable = Reviewable(run, root, trust=trust)
    answers = kind.read(files, classes := classes_of(reviewable))
    labels = {layer.label for answer in answers.found for layer in answer.layers}
    named = [label for label in labels if isinstance(label, str)]
    ids, remarks = classes.ids(named, files.path)
    by_sample = _by_sample(answers.found, reviewable)
    skipped: Counter[str] = Counter()
    decisions: dict[str, str] = {}
    rows = []
    with _new_folder(out, reviewable) as folder:
        for sample_id in progress(list(by_sample), "Answers"):
            given, proposal = reviewable.mask(sample_id), reviewable.proposal(sample_id)
            answer, mask = _one_mask(by_sample[sample_id], given.shape, ids)
            start = given if proposal is None or masks == "given" else proposal
            is_same = np.array_equal(mask, start)
            if is_same and unchanged == "skip":
                skipped["unchanged"] += 1
                continue
            if not answer.layers and not answer.is_sure and empty == "skip" and not is_same:
                skipped["empty"] += 1
                continue
            skipped["same"] += is_same
            decision = _decision(mask, given, proposal)
            if decision == "redraw":
                write_mask(folder / "masks", sample_id, mask)
            decisions[sample_id] = decision
            row = {"id": sample_id, "decision": decision}
            rows.append({**row, "note": answer.note, "reviewer": answer.reviewer})
        if not rows:
            raise InputError(
                f"{files.path} answers none of the tasks of {run}; do some in {kind.title}, and "
                "export again."
            )
        write_table(folder / "review.csv", rows)
    asked = _asked(files.path) or reviewable.worst_first[:worst]
    remarks += answers.remarks + _doubts(skipped, kind.title, knows=kind.knows_answered)
    answered = sum(sample_id in decisions for sample_id in asked)
    return Read(decisions, len(asked), answered, Path(out), remarks)


def classes_of(reviewable: Reviewable) -> Classes:
    """The names of a run's classes."""
    data = reviewable.config.data
    count = max(2, int(data.get("classes", 2)))  # a single output has two classes
    return Classes.of(data.get("class_names"), count)


def _by_sample(answers: Sequence[Answer], reviewable: Reviewable) -> dict[str, list[Answer]]:
    """The answers on each sample, the worst samples first."""
    names = ImageNames(reviewable.worst_first)
    ranks = {sample_id: rank for rank, sample_id in enumerate(reviewable.worst_first)}
    by_sample: dict[str, list[Answer]] = {}
    for answer in answers:
        sample_id = answer.sample_id
        if sample_id is None or sample_id not in ranks:
            sample_id = names.find(answer.image)
        if sample_id is None:
            raise InputError(
                f"{answer.place} answers on the image {answer.image!r}, which is none of "
                f"{reviewable.folder}; give the run that the tasks were written of, or delete it."
            )
        by_sample.setdefault(sample_id, []).append(answer)
    return dict(sorted(by_sample.items(), key=lambda item: ranks[item[0]]))


def _one_mask(
    answers: Sequence[Answer], shape: tuple[int, ...], ids: dict[str, int]
) -> tuple[Answer, Mask]:
    """The mask of a sample; of several answers on it, those that are empty do not count."""
    height, width = shape
    drawn = [answer for answer in answers if answer.layers] or answers[:1]
    masks = [painted(answer, (height, width), ids) for answer in drawn]
    if any(not np.array_equal(mask, masks[0]) for mask in masks):
        places = " and ".join(dict.fromkeys(answer.place for answer in drawn))
        raise InputError(
            f"{places} holds {len(drawn)} different answers on {drawn[0].image}; keep one of them."
        )
    return drawn[0], masks[0]


def _decision(mask: Mask, given: Mask, proposal: Mask | None) -> str:
    if np.array_equal(mask, given):
        return "ok"
    return "take" if proposal is not None and np.array_equal(mask, proposal) else "redraw"


def _doubts(skipped: Counter[str], tool: str, *, knows: bool) -> list[str]:
    """Say what was not counted, or counted though nobody may have looked at it."""
    sentences = []
    if skipped["unchanged"]:
        sentences.append(f"{skipped['unchanged']} are as they were written, and were left out.")
    if skipped["empty"]:
        sentences.append(
            f"{skipped['empty']} have no area and count as not answered; empty=background takes "
            "them for images without any object."
        )
    if skipped["same"] and not knows:
        sentences.append(
            f"{skipped['same']} are as they were written, and {tool} does not say whether somebody "
            "looked at them; unchanged=skip leaves them out."
        )
    return sentences


def _asked(source: Path) -> list[str]:
    """The ids of the written tasks, if their manifest lies beside the export or in it."""
    for folder in (source, source.parent, source.parent.parent):
        if (folder / MANIFEST).is_file():
            return [row["id"] for row in read_table(folder / MANIFEST, ["file", "id"])]
    return []


def write_mask(folder: Path, sample_id: str, mask: Mask) -> None:
    """Write a mask; an id with slashes lies in folders, and never leads out of the given one."""
    parts = sample_id.split("/")
    for part in parts:
        check_id(part)
    with replacing(folder.joinpath(*parts[:-1], f"{parts[-1]}.png")) as temporary:
        Image.fromarray(smallest_type(mask)).save(temporary, format="PNG")


def as_people_see_it(image: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An image of any bands and range as 8 bits, grey or in colours, in the size of its mask."""
    values = image.astype(np.float32)
    if values.ndim == 3 and values.shape[2] != 3:  # three of many bands, or one of two
        values = values[..., :3] if values.shape[2] > 3 else values[..., 0]
    values = rescale_intensity(values)
    if values.shape[:2] != shape:
        channels = values.reshape(*values.shape[:2], -1)
        values = resized(channels, (shape[0], shape[1])).reshape(*shape, *values.shape[2:])
    return (255 * values).round().astype(np.uint8)


@contextmanager
def _new_folder(out: str | Path, reviewable: Reviewable) -> Iterator[Path]:
    """Yield a folder that gets its name only when it is complete.

    Args:
        out: Its name.
        reviewable: Whose data it must not lie in.
    """
    out = Path(out).expanduser()
    data = reviewable.config.data
    for key in ("images", "masks"):
        if data.get("root") and data.get(key):
            folder = Path(str(data.root), str(data[key])).expanduser()
            if folder.resolve() in out.resolve().parents:
                raise InputError(
                    f"{out} lies in {folder}, which is only read; give a folder elsewhere."
                )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        unfinished = Path(temporary) / "new"
        unfinished.mkdir()
        yield unfinished
        unfinished.replace(out)


def _check_free(out: str | Path) -> None:
    if Path(out).expanduser().exists():
        raise InputError(f"{out} exists and is never overwritten; give a new folder.")


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{key}={value} must be {' or '.join(choices)}.")


def _check_worst(worst: int) -> None:
    if worst < 1:
        raise InputError(f"worst={worst} must be at least 1.")
