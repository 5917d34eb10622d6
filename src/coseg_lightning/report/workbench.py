"""The workbench: shows each mask with its proposal, to be judged and edited in the browser."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from coseg_lightning.files.atomic import write_text
from coseg_lightning.report.figures import BY_CLASS, Pictured
from coseg_lightning.report.payload import (
    FOLDER,
    Payload,
    Proposals,
    part_name,
    safe_json,
    write_payload,
)

HERE = Path(__file__).parent
MOST_CLASSES = 64  # largest number of numbered classes; more are objects rather than classes
# The parts of one script; each uses names of earlier parts.
SCRIPTS = (
    *("bytes", "png", "zip", "csv", "memory", "parts", "raster", "view", "mend", "pointer"),
    *("review", "merge", "save", "bench", "keys"),
)


def add_workbench(
    folder: str | Path,
    samples: Pictured | None,
    rows: Sequence[Mapping[str, Any]],
    proposals: Proposals,
    classes: Sequence[str] = (),
    *,
    key: str = "",
    processes: int = 1,
) -> dict[str, Any]:
    """Write the files of a page's workbench, and return the variables for its template.

    Args:
        folder: The page's folder. Parts that do not fit into the page are written to `review/`.
        samples: The samples with the given masks; None if there are no pictures.
        rows: One row per sample that can be reviewed, with `id` and `rank`. Optional keys:
            `order` (of the review; by default the rank), `noisy`, `suspicious_class`,
            `annotator`, `changed` pixels, and the `decision` of an earlier review. `suggested`
            is the decision on a similar sample, and `like` is that sample.
        proposals: The proposed masks, or the layers that hold them, by id.
        classes: The names of the classes after the background; classes without a name are
            numbered.
        key: The key under which the browser stores decisions, such as the run's id. The default
            is a digest of ids and pictures, so that changed masks are reviewed again.
        processes: Number of processes that read and encode the samples.

    Returns:
        The variable `bench` of `workbench.html.jinja`.
    """
    ordered = sorted(rows, key=_order)
    ids = [row["id"] for row in ordered]
    named = len(classes)
    payload = Payload()
    if samples is not None:
        payload = write_payload(Path(folder), samples, ids, proposals, processes)
    classes = [*classes, *(f"class {k}" for k in range(len(classes) + 1, payload.highest + 1))]
    classes = classes[: max(named, MOST_CLASSES)]
    index = _index(ordered, proposals, payload, classes)
    content = "\n".join([*ids, *payload.digests]).encode(errors="backslashreplace")
    index["named"] = named
    index["key"] = key or hashlib.blake2b(content, digest_size=8).hexdigest()
    return {
        "index": safe_json(index),
        "inside": payload.inside,
        "files": len(index["files"]),
        "ordered": any(row.get("order") is not None for row in rows),
        "without": sum(number < 0 for number in index["parts"]),
        "limit": payload.limit and payload.limit // 1_000_000,
        "annotators": sorted({name for name in index.get("annotators", ()) if name}),
        "classes": list(enumerate(classes, start=1)) if len(classes) > 1 else [],
        "colours": BY_CLASS,
        "only": classes[0] if classes else "class 1",
        "proposed": any(index["proposed"]),
        "suggests": "suggested" in index,
        "style": (HERE / "browser" / "bench.css").read_text(encoding="utf-8"),
        "script": script(),
    }


def write_review_page(
    folder: str | Path,
    samples: Pictured,
    rows: Sequence[Mapping[str, Any]],
    proposals: Proposals,
    classes: Sequence[str] = (),
    *,
    key: str = "",
    title: str = "Review of masks",
    processes: int = 1,
) -> Path:
    """Write `review.html`: the workbench alone, for masks that no run has corrected.

    Args:
        folder: The folder for the page.
        samples: The samples with the given masks.
        rows: See `add_workbench`.
        proposals: See `add_workbench`; empty if there are none.
        classes: The names of the classes after the background.
        key: See `add_workbench`.
        title: The page's heading.
        processes: See `add_workbench`.

    Returns:
        The page's path.
    """
    path = Path(folder) / "review.html"
    bench = add_workbench(folder, samples, rows, proposals, classes, key=key, processes=processes)
    template = environment().get_template("review.html.jinja")
    style = (HERE / "report.css").read_text(encoding="utf-8")
    write_text(path, template.render(bench=bench, title=title, style=style, dialog=False))
    return path


def environment() -> jinja2.Environment:
    """Return the environment that renders the pages' templates and escapes all text in them."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("coseg_lightning.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def script() -> str:
    """Return the script of the workbench, which only exposes the name `coseg`."""
    texts = [(HERE / "browser" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "(() => {\n" + "\n".join(['"use strict";', *texts]) + "})();"


def _index(
    rows: Sequence[Mapping[str, Any]],
    proposals: Proposals,
    payload: Payload,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return the page's facts about all samples, as columns; pictures are loaded later."""
    ids = [row["id"] for row in rows]
    index = {
        "classes": list(classes),
        "colours": list(BY_CLASS),
        "inside": len(payload.inside),
        "digests": payload.digests,
        "files": [
            f"{FOLDER}/{part_name(number)}"
            for number in range(len(payload.digests) - len(payload.inside))
        ],
        "ids": ids,
        "ranks": [row["rank"] for row in rows],
        "parts": [payload.part_of.get(sample_id, -1) for sample_id in ids],
        # The digest of each proposal, which tells it from another run's; 1 without pictures.
        "proposed": [payload.proposed.get(i, int(i in proposals)) for i in ids],
        "noisy": [int(bool(row.get("noisy"))) for row in rows],
        "change": [round(payload.change.get(sample_id, -1), 4) for sample_id in ids],
        "present": [_classes(row, payload) for row in rows],
    }
    if any(row.get("suggested") for row in rows):
        index["suggested"] = [str(row.get("suggested") or "") for row in rows]
        index["like"] = [str(row.get("like") or "") for row in rows]
    if any(row.get("decision") for row in rows):
        index["before"] = [str(row.get("decision") or "") for row in rows]
    if any(row.get("annotator") for row in rows):
        index["annotators"] = [str(row.get("annotator") or "") for row in rows]
    return index


def _order(row: Mapping[str, Any]) -> tuple[float, float]:
    order = row.get("order")
    return (math.inf if order in (None, "") else float(order)), float(row["rank"])


def _classes(row: Mapping[str, Any], payload: Payload) -> list[int]:
    """The classes by which a sample is found: the suspicious class, or all that differ."""
    suspicious = str(row.get("suspicious_class") or "")
    if suspicious.isdigit():
        return [int(suspicious)]
    return payload.classes.get(row["id"], [])
