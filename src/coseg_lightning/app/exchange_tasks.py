"""Writes the worst masks of a run or an audit as tasks for an annotation tool."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.app.reviewable import Reviewable
from coseg_lightning.data.preparation import rescale_intensity, resized
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.names import MANIFEST, ImageNames
from coseg_lightning.exchanged.tasks import Task
from coseg_lightning.exchanged.tools import tool_named
from coseg_lightning.files.atomic import check_free, new_folder, replacing
from coseg_lightning.files.csv import write_table
from coseg_lightning.files.progress import progress

CHOICES = {
    "masks": ("proposal", "given"),
    "unchanged": ("count", "skip"),
    "empty": ("skip", "background"),
}
DEFAULTS = {key: choices[0] for key, choices in CHOICES.items()}


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
    """Write the worst masks of a run or an audit as tasks for an annotation tool.

    Args:
        run: The folder of the run or the audit.
        out: A new folder. It appears only when it is complete.
        tool: `cvat`, `label_studio`, `coco`, `labelme` or `fiftyone`.
        worst: Number of tasks; all masks if there are fewer.
        masks: The masks that tasks begin with: `proposal`, if there is one, or `given`.
        root: The current place of the run's data, if it was moved.
        trust: See `AppRun`.

    Returns:
        The number of tasks, and how many begin with each kind of mask.

    Raises:
        InputError: If `out` exists, or the masks cannot be read.
    """
    kind = tool_named(tool)
    check_options(worst, masks=masks)
    check_free(out)
    reviewable = Reviewable(run, root, trust=trust)
    names = ImageNames(reviewable.worst_first)
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
            begins = "given" if proposal is None else "proposal"
            rows.append({"file": f"{name}.png", "id": sample_id, "begins": begins})
            yield Task(sample_id, name, mask)

    rows: list[dict[str, str]] = []
    with new_folder(out, apart_from=reviewable.data_folders) as folder:
        kind.write(folder, tasks(folder), reviewable.classes)
        write_table(folder / MANIFEST, rows)
    return len(rows), dict(beginnings)


def check_options(worst: int, **choices: str) -> None:
    """Raise an `InputError` if there are no tasks, or a setting is invalid."""
    for key, value in choices.items():
        if value not in CHOICES[key]:
            raise InputError(f"{key}={value} must be {' or '.join(CHOICES[key])}.")
    if worst < 1:
        raise InputError(f"worst={worst} must be at least 1.")


def as_people_see_it(image: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Convert an image of any bands and range to 8 bits, grey or colour, at its mask's size."""
    values = image.astype(np.float32)
    if values.ndim == 3 and values.shape[2] != 3:  # show three of many bands, or one of two
        values = values[..., :3] if values.shape[2] > 3 else values[..., 0]
    values = rescale_intensity(values)
    if values.shape[:2] != shape:
        channels = values.reshape(*values.shape[:2], -1)
        values = resized(channels, (shape[0], shape[1])).reshape(*shape, *values.shape[2:])
    return (255 * values).round().astype(np.uint8)
