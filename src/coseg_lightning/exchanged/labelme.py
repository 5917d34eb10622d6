"""labelme: one JSON beside each image, with shapes of the type `mask`.

Format: https://github.com/wkentaro/labelme (labelme/_label_file.py)
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.regions import bounds, box, ellipse, pasted, polygon, reach
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
    reading,
)
from coseg_lightning.files.atomic import write_text

VERSION = "5.5.0"  # release whose format is written; later ones can read it
WANTED = "labelme's JSON"
POLYGONS = ("polygon", "rectangle", "oriented_rectangle", "rotation")  # the last: X-AnyLabeling


def write(folder: Path, tasks: Iterable[Task], classes: Classes) -> None:
    """Write a JSON beside each image, and `labels.txt`."""
    for task in tasks:
        height, width = task.mask.shape
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": [_shape(label, region) for label, region in classes.regions(task.mask)],
            "imagePath": f"{task.name}.png",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path = folder / "images" / f"{task.name}.json"
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
    names = (*classes.names, BACKGROUND, UNLABELLED)
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in names))


def _shape(label: str, region: Region) -> dict[str, Any]:
    left, top, width, height = bounds(region)
    data = io.BytesIO()
    Image.fromarray(region[top : top + height, left : left + width]).save(data, format="PNG")
    return {
        "label": label,
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(data.getvalue()).decode("ascii"),
    }


def read(source: Source, classes: Classes) -> Answers:
    """Read the JSON file of each image.

    Raises:
        InputError: If there is no such file, or one cannot be read.
    """
    answers, ignored = Answers(), Ignored()
    for name in source.of_type(".json"):
        content = source.read_json(name)
        if not isinstance(content, dict) or "shapes" not in content:
            continue
        place = source.place(name)
        with reading(place, WANTED):
            answers.found.append(_answer(content, name, place, ignored))
    if not answers.found:
        raise InputError(
            f"{source.path} holds no JSON with shapes; give the folder where labelme saved its "
            "files."
        )
    answers.remarks.extend(ignored.remarks())
    return answers


def _answer(content: Mapping[str, Any], name: str, place: str, ignored: Ignored) -> Answer:
    image, layers, left_out = str(content.get("imagePath") or name), [], 0
    corners: list[list[float]] = []
    for shape in content["shapes"]:
        label, draw = str(shape["label"]), _drawn(shape)
        if draw is None:
            ignored.add(_kind_of(shape), image)
            left_out += 1
        else:
            layers.append(Layer(label, draw, is_outline=shape.get("shape_type") != "mask"))
            is_circle = shape.get("shape_type") == "circle"  # its second point is on the rim
            corners += [] if is_circle else [corner[:2] for corner in shape["points"]]
    size, flags = _size_of(content), content.get("flags")
    said = (
        [str(name) for name, is_set in flags.items() if is_set] if isinstance(flags, dict) else []
    )
    notes = [content.get("description"), *said]
    return Answer(
        image,
        layers,
        place,
        size,
        note="; ".join(note for note in notes if isinstance(note, str) and note),
        is_sure=not said,  # a word on the image, such as "bad image", may stand for a drawing
        left_out=left_out,
        file=name,
        reach=(0.0, 0.0) if size else reach(corners),
    )


def _size_of(content: Mapping[str, Any]) -> Shape | None:
    """The image's size, which old versions stored only as that of the embedded image."""
    if content.get("imageHeight") and content.get("imageWidth"):
        return int(content["imageHeight"]), int(content["imageWidth"])
    if not content.get("imageData"):
        return None
    with Image.open(io.BytesIO(base64.b64decode(content["imageData"]))) as picture:
        return picture.height, picture.width


def _kind_of(shape: Mapping[str, Any]) -> str:
    kind = str(shape.get("shape_type") or "polygon")
    few = {"circle": "circle without a radius"}.get(kind, f"{kind} of fewer than 3 corners")
    return few if kind in ("circle", *POLYGONS) else kind


def _drawn(shape: Mapping[str, Any]) -> Callable[[Shape], Region] | None:
    """Return a function that draws a shape; None if it has no area.

    Before version 3 of labelme, all shapes were polygons.
    """
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind == "mask":
        return partial(_mask, shape["mask"], points[0])
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return partial(polygon, box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
    if kind == "circle":
        (x0, y0), (x1, y1) = points
        radius = math.hypot(x1 - x0, y1 - y0)
        return partial(ellipse, (x0, y0), (radius, radius), 0.0) if radius else None
    if kind in POLYGONS and len(points) >= 3:
        return partial(polygon, points)
    return None


def _mask(data: str, corner: list[float], shape: Shape) -> Region:
    with Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"]) as picture:
        part = np.asarray(picture.convert("L")) > 0
    left, top = (round(float(value)) for value in corner)
    return pasted(part, left, top, shape)
