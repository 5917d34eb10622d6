"""Reads the answers of an annotation tool as a review."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from coseg_lightning.app.exchange_tasks import check_options
from coseg_lightning.app.reviewable import Reviewable
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.names import MANIFEST, ImageNames
from coseg_lightning.exchanged.source import Source
from coseg_lightning.exchanged.tasks import Answer, NothingDrawnError, listed, painted
from coseg_lightning.exchanged.tools import tool_named
from coseg_lightning.files.atomic import check_free, new_folder, replacing
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.files.images import smallest_type
from coseg_lightning.files.mask_rules import IGNORE_INDEX
from coseg_lightning.files.progress import progress
from coseg_lightning.files.settings import setting
from coseg_lightning.labels.ids import check_id
from coseg_lightning.labels.masks import Mask
from coseg_lightning.labels.review import file_crc, proposal_digest


@dataclass
class Read:
    """The result of reading answers.

    Args:
        decisions: The decision on each answered sample, worst first.
        asked: Number of tasks.
        answered: Number of tasks that were answered.
        remarks: Sentences for the user.
        out: The folder of the review.
    """

    decisions: dict[str, str]
    asked: int
    answered: int
    out: Path
    remarks: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Summarise what was read."""
        counts = Counter(self.decisions.values())
        kinds = ", ".join(f"{counts[name]} {name}" for name in ("ok", "take", "redraw"))
        more = len(self.decisions) - self.answered
        others = f", and {more} more" if more else ""
        return [
            f"{self.answered} of {self.asked} tasks were answered{others}: {kinds}.",
            *self.remarks,
            f"The decisions are in {self.out / 'review.csv'}; use them with "
            f"{setting('review', self.out)}.",
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
        source: The tool's export: a file, a zip archive, or a folder.
        worst: Number of written tasks, used if there is no `ids.csv` beside the source.
        masks: The masks that the tasks began with, used if there is no `ids.csv`.
        unchanged: Whether unchanged answers `count`. With `skip` they are treated as tasks that
            nobody did.
        empty: The meaning of an image without any area, if the tool does not report finished
            tasks: `skip` for a task that nobody did, or `background`.
        root: The current place of the run's data, if it was moved.
        trust: See `AppRun`.

    Raises:
        InputError: If `out` exists, or an answer cannot be read or does not belong to the run.
    """
    kind = tool_named(tool)
    check_options(worst, masks=masks, unchanged=unchanged, empty=empty)
    check_free(out)
    files = Source(source)
    reviewable = Reviewable(run, root, trust=trust)
    answers = kind.read(files, reviewable.classes)
    labels = {layer.label for answer in answers.found for layer in answer.layers}
    named = [label for label in labels if isinstance(label, str)]
    ids, remarks = reviewable.classes.ids(named, files.path)
    written = _manifest(files.path)
    begins = {row["id"]: row["begins"] for row in written if row.get("begins")}
    by_sample, elsewhere = _by_sample(answers.found, reviewable, written)
    remarks += elsewhere
    skipped: Counter[str] = Counter()
    without_area: list[str] = []
    outside: NothingDrawnError | None = None
    decisions: dict[str, str] = {}
    rows = []
    with new_folder(out, apart_from=reviewable.data_folders) as folder:
        for sample_id in progress(list(by_sample), "Answers"):
            given, proposal = reviewable.mask(sample_id), reviewable.proposal(sample_id)
            try:
                answer, mask = _one_mask(by_sample[sample_id], given.shape, ids)
            except NothingDrawnError as error:
                outside = outside or error
                without_area.append(by_sample[sample_id][0].image)
                continue
            if not answer.layers and answer.left_out:
                without_area.append(answer.image)
                continue
            _check_unlabelled(answer, given)
            begun_with = begins.get(sample_id, masks)
            start = given if proposal is None or begun_with == "given" else proposal
            is_same = np.array_equal(mask, start)
            if is_same and unchanged == "skip":
                skipped["unchanged"] += 1
                continue
            if not answer.layers and not answer.is_sure and empty == "skip" and not is_same:
                skipped["empty"] += 1
                continue
            skipped["same"] += is_same
            decision = _decision(mask, given, proposal)
            drawn = ""
            if decision == "redraw":
                drawn = file_crc(write_mask(folder / "masks", sample_id, mask))
            decisions[sample_id] = decision
            row = {"id": sample_id, "decision": decision, "note": answer.note}
            taken = proposal_digest(mask) if decision == "take" else ""
            rows.append({**row, "reviewer": answer.reviewer, "drawn": drawn, "proposal": taken})
        if not rows and outside is not None:
            raise outside
        if not rows:
            raise InputError(
                f"{files.path} answers none of the tasks of {run}; complete some in {kind.title}, "
                "and export again."
            )
        write_table(folder / "review.csv", rows)
    asked = [row["id"] for row in written] or reviewable.worst_first[:worst]
    remarks += answers.remarks + _doubts(skipped, kind.title, knows=kind.knows_answered)
    if without_area:
        remarks.append(
            "Images that count as not answered, since nothing that was drawn on them covers a "
            f"pixel: {listed(without_area)}."
        )
    answered = sum(sample_id in decisions for sample_id in asked)
    return Read(decisions, len(asked), answered, Path(out), remarks)


def _by_sample(
    answers: Sequence[Answer], reviewable: Reviewable, written: Sequence[Mapping[str, str]]
) -> tuple[dict[str, list[Answer]], list[str]]:
    """Group the answers by sample, the worst samples first; and sentences for the user."""
    files = {row["file"]: row["id"] for row in written}
    names = ImageNames(reviewable.worst_first, files)
    others = ImageNames(reviewable.not_ranked)  # the validation and test images of the data
    ranks = {sample_id: rank for rank, sample_id in enumerate(reviewable.worst_first)}
    by_sample: dict[str, list[Answer]] = {}
    not_ranked = []
    for answer in answers:
        sample_id = answer.sample_id
        if sample_id is None or sample_id not in ranks:
            sample_id = names.find(answer.image)
        if sample_id is None and others.find_own(answer.image) is not None:
            not_ranked.append(answer.image)
            continue
        if sample_id is None or sample_id not in ranks:
            raise InputError(
                f"{answer.place} holds an answer for the image {answer.image!r}, which is not in "
                f"{reviewable.folder}; give the run that the tasks are from, or delete the answer."
            )
        of_file = None if answer.file is None else names.find(answer.file)
        if of_file not in (None, sample_id):
            raise InputError(
                f"{answer.place} is named after {of_file}, but says that its image is "
                f"{answer.image}; correct one of them."
            )
        by_sample.setdefault(sample_id, []).append(answer)
    remarks = []
    if not_ranked:
        remarks.append(f"Images that the run did not rank were left out: {listed(not_ranked)}.")
    return dict(sorted(by_sample.items(), key=lambda item: ranks[item[0]])), remarks


def _check_unlabelled(answer: Answer, given: Mask) -> None:
    """Raise an `InputError` for a mask of numbers whose 255 is probably the foreground."""
    is_255 = answer.layers and all(layer.label == IGNORE_INDEX for layer in answer.layers)
    if is_255 and given.any() and not (given == IGNORE_INDEX).any():
        raise InputError(
            f"{answer.place}: the mask of {answer.image} holds only 0 and 255, but 255 means "
            "unlabelled; save the foreground as 1."
        )


def _one_mask(
    answers: Sequence[Answer], shape: tuple[int, ...], ids: dict[str, int]
) -> tuple[Answer, Mask]:
    """Return the mask of a sample; of several answers, empty ones are ignored."""
    height, width = shape
    drawn = [answer for answer in answers if answer.layers] or answers[:1]
    masks = [painted(answer, (height, width), ids) for answer in drawn]
    if any(not np.array_equal(mask, masks[0]) for mask in masks):
        places = " and ".join(dict.fromkeys(answer.place for answer in drawn))
        raise InputError(
            f"{places} holds {len(drawn)} different answers for {drawn[0].image}; keep one of them."
        )
    return drawn[0], masks[0]


def _decision(mask: Mask, given: Mask, proposal: Mask | None) -> str:
    if np.array_equal(mask, given):
        return "ok"
    return "take" if proposal is not None and np.array_equal(mask, proposal) else "redraw"


def _doubts(skipped: Counter[str], tool: str, *, knows: bool) -> list[str]:
    """Describe answers that were skipped, or counted although nobody may have checked them."""
    sentences = []
    if skipped["unchanged"]:
        sentences.append(f"{skipped['unchanged']} of the masks are unchanged and were left out.")
    if skipped["empty"]:
        sentences.append(
            f"{skipped['empty']} of the masks are empty and count as not answered; with "
            "empty=background they mean images without any object."
        )
    if skipped["same"] and not knows:
        sentences.append(
            f"{skipped['same']} of the masks are unchanged, and {tool} does not record whether "
            "somebody looked at them; unchanged=skip leaves them out."
        )
    return sentences


def _manifest(source: Path) -> list[dict[str, str]]:
    """Read the table of the written tasks, if it is beside the export or in it."""
    for folder in (source, source.parent, source.parent.parent):
        with contextlib.suppress(InputError):  # there is no manifest, or it is another table
            return read_table(folder / MANIFEST, ["file", "id"])
    return []


def write_mask(folder: Path, sample_id: str, mask: Mask) -> Path:
    """Write a mask, and return its file.

    Slashes in an id make subfolders, which never lead out of the folder.
    """
    parts = sample_id.split("/")
    for part in parts:
        check_id(part)
    path = folder.joinpath(*parts[:-1], f"{parts[-1]}.png")
    with replacing(path) as temporary:
        Image.fromarray(smallest_type(mask)).save(temporary, format="PNG")
    return path
