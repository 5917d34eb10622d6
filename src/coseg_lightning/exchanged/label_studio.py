"""Label Studio: writes tasks with brushes as predictions, and reads `JSON` and `JSON-MIN`.

Format: https://labelstud.io/guide/task_format and https://labelstud.io/guide/export
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.regions import box, ellipse, polygon, turned
from coseg_lightning.exchanged.rle import brush_rle, from_brush_rle
from coseg_lightning.exchanged.source import Source
from coseg_lightning.exchanged.tasks import (
    BACKGROUND,
    UNLABELLED,
    Answer,
    Answers,
    Classes,
    Ignored,
    Layer,
    Region,
    Shape,
    Task,
    listed,
    reading,
)
from coseg_lightning.files.atomic import write_text

WANTED = "Label Studio's JSON"
LABELS = (
    "brushlabels",
    "bitmasklabels",
    "polygonlabels",
    "rectanglelabels",
    "ellipselabels",
    "labels",
)
BRUSHES = ("rle", "imageDataURL")
# What is said of an image as a whole, and not drawn.
SAID = ("choices", "rating", "textarea", "taxonomy", "number", "datetime", "pairwise", "ranker")
UNREAD = {"vector", "vectorlabels"}  # areas of a kind that is not read
_Task = tuple[str, Mapping[str, Any]]  # the place where it was read, and its content
CONFIG = """<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true" rotateControl="false"/>
  <BrushLabels name="tag" toName="image">
{labels}
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image">
{labels}
  </PolygonLabels>
</View>
"""


def write(folder: Path, tasks: Iterable[Task], classes: Classes) -> None:
    """Write `tasks.json`, whose images are local files, and the labelling's `config.xml`."""
    content = []
    for task in tasks:
        height, width = task.mask.shape
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        result = [
            {
                "id": f"{task.name[:8]}-{number}",
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                **size,
                "value": {"format": "rle", "rle": brush_rle(region), "brushlabels": [label]},
            }
            for number, (label, region) in enumerate(classes.regions(task.mask))
        ]
        content.append(
            {
                "data": {
                    "image": f"/data/local-files/?d=images/{task.name}.png",
                    "sample": task.sample_id,
                },
                "predictions": [{"model_version": "coseg-lightning", "result": result}],
            }
        )
    write_text(folder / "tasks.json", json.dumps(content))
    names = (*classes.names, BACKGROUND, UNLABELLED)
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in names)
    write_text(folder / "config.xml", CONFIG.format(labels=labels))


def read(source: Source, classes: Classes) -> Answers:
    """Read the newest annotation of each task, or the newest of those marked as ground truth.

    Raises:
        InputError: If there are no tasks, or they cannot be read.
    """
    answers, ignored = Answers(), Ignored()
    tasks = [task for name in source.of_type(".json") for task in _tasks(source, name)]
    tasks = _joined(tasks)
    if not tasks:
        pictures = source.of_type(".png", ".npy")
        aside = " (PNG files alone do not name their images)" if pictures else ""
        raise InputError(
            f"{source.path} holds no tasks{aside}; export the project from Label Studio as JSON."
        )
    several, rejected, drafts = [], [], []
    for place, task in tasks:
        with reading(place, WANTED):
            done = [one for one in task["annotations"] if not one.get("was_cancelled")]
            given = [one for one in done if not _is_rejected(one)]
            if given:
                newest = max(given, key=lambda one: (bool(one.get("ground_truth")), *_age(one)))
                answers.found.append(_answer(task, newest, place, ignored))
            if len(given) > 1:
                people = sorted({_reviewer(one.get("completed_by")) or "?" for one in given})
                used = _reviewer(newest.get("completed_by")) or "?"
                of = f" by {used} of {', '.join(people)}" if len(people) > 1 else ""
                is_truth = ", the ground truth" if newest.get("ground_truth") else ""
                is_empty = not newest.get("result") and any(one.get("result") for one in given)
                several.append(
                    f"{_image(task)}{of}{', which is empty' if is_empty else ''}{is_truth}"
                )
            elif done and not given:
                rejected.append(_image(task))
            elif not done and task.get("drafts"):
                drafts.append(_image(task))
    for images, what in (
        (several, "Tasks with several annotations, of which the newest was used"),
        (rejected, "Tasks that a reviewer rejected, which count as not answered"),
        (drafts, "Tasks with drafts alone, which were not submitted and count as not answered"),
    ):
        if images:
            answers.remarks.append(f"{what}: {listed(images)}.")
    answers.remarks.extend(ignored.remarks())
    return answers


def _is_rejected(annotation: Mapping[str, Any]) -> bool:
    """Whether the last reviewer rejected an annotation."""
    reviews = [one for one in annotation.get("reviews") or () if isinstance(one, dict)]
    return bool(reviews) and max(reviews, key=_age).get("accepted") is False


def _tasks(source: Source, name: str) -> Iterator[_Task]:
    content = source.read_json(name)
    for task in content if isinstance(content, list) else [content]:
        if isinstance(task, dict) and {"data", "image", "annotation_id"} & task.keys():
            yield source.place(name), task


def _joined(tasks: list[_Task]) -> list[_Task]:
    """Join tasks that JSON-MIN splits, with one entry per annotation."""
    joined: dict[Any, _Task] = {}
    for number, (place, task) in enumerate(tasks):
        is_flat = "data" not in task and task.get("id") is not None
        key = (place, str(task["id"])) if is_flat else number
        before = joined.get(key)
        with reading(place, WANTED):
            given = [*(before[1]["annotations"] if before else ()), *_annotations(task)]
        joined[key] = place, {"data": task.get("data", task), **task, "annotations": given}
    return list(joined.values())


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a task; an entry of JSON-MIN is itself one annotation."""
    if "data" in task:
        return list(task.get("annotations") or task.get("completions") or ())
    results = [
        (tag, item)
        for tag, value in task.items()
        if isinstance(value, list)
        for item in value
        if isinstance(item, dict)
    ]
    if not results and "annotation_id" not in task:
        return []
    if len({tag for tag, item in results if _drawn(item) is not None}) > 1:
        raise InputError(
            f"{_image(task)} was drawn with several tags, and JSON-MIN does not say which area was "
            "drawn later and lies on top; export as JSON."
        )
    flat = [{"value": item, **{key: item.get(key) for key in _SIZE}} for _, item in results]
    return [{**task, "result": flat, "completed_by": task.get("annotator")}]


_SIZE = ("original_width", "original_height", "image_rotation")


def _age(annotation: Mapping[str, Any]) -> tuple[str, int]:
    """Return a key that sorts annotations by time: ISO dates, then the annotation's number."""
    time = annotation.get("updated_at") or annotation.get("created_at") or ""
    number = annotation.get("id") or 0
    return str(time), number if isinstance(number, int) else 0


def _answer(
    task: Mapping[str, Any], annotation: Mapping[str, Any], place: str, ignored: Ignored
) -> Answer:
    data, image = task.get("data", task), _image(task)
    results = [item for item in annotation.get("result") or () if isinstance(item, dict)]
    label_of_region = {item.get("id", ""): _label(item) for item in results if _label(item)}
    layers, sizes, notes, left_out, is_said, drawn_on = [], set(), [], 0, False, set()
    is_unread = False
    for item in results:
        value = item.get("value") or {}
        notes += [str(text) for text in _texts(value)]
        if item.get("type") in UNREAD or "vertices" in value:
            ignored.add(str(item.get("type") or "vector"), image)
            left_out, is_unread = left_out + 1, True
            continue
        draw = _drawn(value)
        label = _label(item) or (item.get("id") and label_of_region.get(item["id"]))
        if draw is None:
            if label is None and not _texts(value):
                kind = str(item.get("type") or "part of another kind")
                is_few = kind.startswith("polygon")
                ignored.add("polygon of fewer than 3 corners" if is_few else kind, image)
                is_said |= kind in SAID
                left_out += kind not in SAID and kind != "relation"
            elif value.keys() & {"points", "radiusX"}:
                ignored.add("area without a size", image)
                left_out += 1
            continue
        drawn_on.add(item.get("to_name"))
        if item.get("image_rotation"):
            raise InputError(
                f"{place}: {image} is rotated by {item['image_rotation']} degrees in Label Studio; "
                "rotate it back and submit it again."
            )
        if item.get("original_height") and item.get("original_width"):
            sizes.add((int(item["original_height"]), int(item["original_width"])))
        if label is None:
            ignored.add("area without a label", image)
            left_out += 1
            continue
        layers.append(Layer(label, draw, is_outline=not value.keys() & set(BRUSHES)))
    if is_unread:
        layers = []  # the rest alone would be another mask
    if len(drawn_on) > 1:
        raise InputError(
            f"{place}: {image} has regions on several images ({', '.join(map(str, drawn_on))}); "
            "give each image a task of its own."
        )
    if len(sizes) > 1:
        raise InputError(
            f"{place}: {image} has regions made for several image sizes; export it again."
        )
    return Answer(
        image,
        layers,
        place,
        sizes.pop() if sizes else None,
        _reviewer(annotation.get("completed_by")),
        " ".join(notes),
        str(data["sample"]) if data.get("sample") is not None else None,
        is_sure=not is_said,  # a word on the image, such as "bad image", may stand for a drawing
        left_out=left_out,
    )


def _image(task: Mapping[str, Any]) -> str:
    data = task.get("data", task)
    return str(data.get("image") or task.get("file_upload") or _first_path(data))


def _first_path(data: Mapping[str, Any]) -> str:
    """The first text of a task that may be an image's address, under any key."""
    texts = [value for value in data.values() if isinstance(value, str) and "." in value]
    return texts[0] if texts else ""


def _label(item: Mapping[str, Any]) -> str | None:
    value = item.get("value") or {}
    for key in LABELS:
        if value.get(key):
            if len(value[key]) > 1:
                raise InputError(
                    f"The region {item.get('id', '')} has the labels "
                    f"{' and '.join(map(str, value[key]))}, but a pixel has one class; leave one "
                    "label in Label Studio, and export again."
                )
            return str(value[key][0])
    return None


def _texts(value: Mapping[str, Any]) -> Sequence[Any]:
    text = value.get("text") or ()
    return [text] if isinstance(text, str) else list(text)


def _drawn(value: Mapping[str, Any]) -> Callable[[Shape], Region] | None:
    """Return a function that draws a part; None if it has no area. Lengths are in percent."""
    if "rle" in value:
        return partial(from_brush_rle, value["rle"])
    if value.get("imageDataURL"):
        return partial(_bitmask, value["imageDataURL"])
    if "points" in value:
        return partial(_polygon, value["points"]) if len(value["points"]) >= 3 else None
    if "radiusX" in value:
        return partial(_ellipse, value) if value["radiusX"] and value["radiusY"] else None
    if "width" in value and "height" in value and "x" in value:
        return partial(_rectangle, value)
    return None


def _bitmask(url: str, shape: Shape) -> Region:
    """Decode a transparent PNG; its rim is smooth, as a brush's is."""
    kind, _, data = url.partition(";base64,")
    if kind != "data:image/png":
        raise ValueError("the bitmask is no PNG in base64")
    with Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]) as picture:
        if (picture.height, picture.width) != shape:
            size = f"{picture.height} x {picture.width}"
            raise ValueError(f"the bitmask has {size} pixels instead of {shape[0]} x {shape[1]}")
        if not picture.has_transparency_data:
            raise ValueError("the bitmask has no transparent pixels outside of what was drawn")
        return np.asarray(picture.convert("RGBA"))[..., 3] > 127


def _polygon(points: Sequence[Sequence[float]], shape: Shape) -> Region:
    height, width = shape
    return polygon([(x * width / 100, y * height / 100) for x, y in points], shape)


def _rectangle(value: Mapping[str, Any], shape: Shape) -> Region:
    height, width = (side / 100 for side in shape)
    left, top = value["x"] * width, value["y"] * height
    corners = box(left, top, left + value["width"] * width, top + value["height"] * height)
    # The rectangle is turned about its upper left corner.
    return polygon(turned(corners, (left, top), float(value.get("rotation") or 0)), shape)


def _ellipse(value: Mapping[str, Any], shape: Shape) -> Region:
    height, width = (side / 100 for side in shape)
    centre = value["x"] * width, value["y"] * height
    radii = value["radiusX"] * width, value["radiusY"] * height
    return ellipse(centre, radii, float(value.get("rotation") or 0), shape)


def _reviewer(person: Any) -> str:
    """The name of an annotation's author, given as a text, number or record."""
    if isinstance(person, dict):
        names = [person.get(key) for key in ("email", "username", "first_name", "id")]
        return str(next((name for name in names if name), ""))
    return "" if person is None else str(person)
