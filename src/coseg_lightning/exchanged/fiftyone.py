"""FiftyOne: folders of images and masks, and `samples.json`, without the package FiftyOne.

Formats: reads and writes `ImageSegmentationDirectory`, and reads `FiftyOneDataset`, see
https://docs.voxel51.com/user_guide/export_datasets.html
"""

import base64
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.regions import of_size, pasted
from coseg_lightning.exchanged.source import Source
from coseg_lightning.exchanged.tasks import (
    UNLABELLED,
    Answer,
    Answers,
    Classes,
    Ignored,
    Layer,
    Region,
    Shape,
    Task,
    check_size,
    reading,
)
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.images import smallest_type
from coseg_lightning.files.mask_rules import IGNORE_INDEX

MOST_PIXELS = 2**27  # of an embedded mask, whose size comes from the file
AREAS = ("Segmentation", "Detections", "Detection")


def write(folder: Path, tasks: Iterable[Task], classes: Classes) -> None:
    """Write class ids to `labels/NAME.png` beside `data/NAME.png`, and `mask_targets.json`."""
    for task in tasks:
        with replacing(folder / "labels" / f"{task.name}.png") as temporary:
            Image.fromarray(smallest_type(task.mask)).save(temporary, format="PNG")
    targets = dict(enumerate(classes.names, start=1))
    targets[IGNORE_INDEX] = UNLABELLED
    write_text(folder / "mask_targets.json", json.dumps(targets, indent=1, ensure_ascii=False))


def read(source: Source, classes: Classes) -> Answers:
    """Read `samples.json`, or otherwise masks in folders named `labels`, or else all masks.

    Raises:
        InputError: If there are no masks, or they cannot be read.
    """
    answers, ignored = Answers(), Ignored()
    tables = [name for name in source.names if name.rpartition("/")[2] == "samples.json"]
    pictures = [name for name in source.of_type(".png") if "data" not in name.split("/")[:-1]]
    inner = [name for name in pictures if "labels" in name.split("/")[:-1]]
    for name in tables:
        answers.found.extend(_samples(source, name, classes, ignored))
    if not tables:
        answers.found.extend([_of_picture(source, name, classes) for name in inner or pictures])
    if not answers.found:
        raise InputError(
            f"{source.path} holds no samples.json and no masks as PNG; export the dataset from "
            "FiftyOne as ImageSegmentationDirectory or FiftyOneDataset."
        )
    answers.remarks.extend(ignored.remarks())
    return answers


def _of_picture(source: Source, name: str, classes: Classes) -> Answer:
    place = source.place(name)
    with reading(place, "a mask of class ids"):
        values = _picture(source.read(name), place)
    draw = partial(_equal_in_picture, source, name)
    return _of_values(values, draw, name, place, classes, {})


def _picture(data: bytes, place: str) -> NDArray[Any]:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        values = np.asarray(picture)
    if values.ndim != 2:
        raise InputError(
            f"{place} holds colours instead of class ids; export it without RGB mask targets."
        )
    return values


def _equal_in_picture(source: Source, name: str, value: int, shape: Shape) -> Region:
    values = _picture(source.read(name), name)
    check_size(values.shape, shape)
    return np.asarray(values == value)


def _of_values(
    values: NDArray[Any],
    draw: Callable[[int, Shape], Region],
    image: str,
    place: str,
    classes: Classes,
    targets: Mapping[str, str],
) -> Answer:
    """Return an answer whose pixels hold class ids, or numbers with their own names."""
    layers = []
    for value in np.unique(values).tolist():
        label: str | int = targets.get(str(value), int(value))
        is_known = 0 <= value <= len(classes.names) or value == IGNORE_INDEX
        if isinstance(label, int) and not is_known:
            raise InputError(
                f"{place} holds the value {value}, which is not a class of the run; use 1 to "
                f"{len(classes.names)}, 0 for the background and 255 for unlabelled pixels."
            )
        if value:
            layers.append(Layer(label, partial(draw, value)))
    return Answer(image, layers, place, (values.shape[0], values.shape[1]))


def _samples(source: Source, name: str, classes: Classes, ignored: Ignored) -> Iterator[Answer]:
    place = source.place(name)
    content = source.read_json(name)
    folder = name.removesuffix("samples.json")
    with reading(place, "FiftyOne's samples.json"):
        samples = content["samples"]
        fields = sorted(
            {
                key
                for sample in samples
                for key, value in sample.items()
                if isinstance(value, dict) and value.get("_cls") in AREAS
            }
        )
    if len(fields) != 1:
        found = f"the fields {', '.join(fields)}" if fields else "no field"
        raise InputError(
            f"{place} has {found} with masks; export only one field, for example "
            "dataset.select_fields('ground_truth').export(...)."
        )
    targets = _targets(source, folder, fields[0])
    for sample in samples:
        with reading(place, "FiftyOne's samples.json"):
            label = sample.get(fields[0])
            if label is None:  # not annotated
                continue
            image = str(sample["filepath"])
            reviewer = str(sample.get("annotator") or "")
            if label["_cls"] == "Segmentation":
                yield _segmentation(source, folder, label, image, place, classes, targets)
                continue
            objects = label.get("detections", [label])
            layers = []
            for one in objects:
                if one.get("mask") is None:
                    ignored.add("box without a mask", image)
                else:
                    layers.append(Layer(str(one["label"]), partial(_detection, one)))
            left_out = len(objects) - len(layers)
            yield Answer(image, layers, place, _size_of(sample), reviewer, left_out=left_out)


def _size_of(sample: Mapping[str, Any]) -> Shape | None:
    facts = sample.get("metadata") or {}
    known = facts.get("height") and facts.get("width")
    return (int(facts["height"]), int(facts["width"])) if known else None


def _targets(source: Source, folder: str, field: str) -> dict[str, str]:
    """The names of a mask's values, if the dataset defines them."""
    name = f"{folder}metadata.json"
    if name not in source.names:
        return {}
    with reading(source.place(name), "FiftyOne's metadata.json"):
        content = source.read_json(name)
        by_field = content.get("mask_targets") or {}
        targets = by_field.get(field) or content.get("default_mask_targets") or {}
        return {str(value): str(label) for value, label in targets.items()}


def _segmentation(
    source: Source,
    folder: str,
    label: Mapping[str, Any],
    image: str,
    place: str,
    classes: Classes,
    targets: Mapping[str, str],
) -> Answer:
    if label.get("mask") is not None:
        values = _embedded(label["mask"])
        draw = partial(_equal_embedded, label["mask"])
    else:
        path = str(label["mask_path"]).replace("\\", "/")
        ends = [name for name in source.names if f"/{folder}{path}".endswith(f"/{name}")]
        if not ends:
            raise InputError(
                f"{place} names the mask {path}, which is not in {source.path}; export it again."
            )
        values = _picture(source.read(ends[0]), source.place(ends[0]))
        draw = partial(_equal_in_picture, source, ends[0])
    return _of_values(values, draw, image, place, classes, targets)


def _embedded(value: Any) -> NDArray[Any]:
    """Decode an array that FiftyOne embedded: a compressed NumPy file in base64."""
    text = value["$binary"] if isinstance(value, dict) else value
    text = text["base64"] if isinstance(text, dict) else text
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text), 2 * MOST_PIXELS)
    if unpacker.unconsumed_tail:
        raise ValueError("a mask is too large")
    array = np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise ValueError(f"a mask is an array {array.shape} of {array.dtype}")
    return array


def _equal_embedded(mask: Any, value: int, shape: Shape) -> Region:
    values = _embedded(mask)
    check_size(values.shape, shape)
    return np.asarray(values == value)


def _detection(one: Mapping[str, Any], shape: Shape) -> Region:
    """Draw an object: a mask in a box whose numbers are shares of the image's sides."""
    height, width = shape
    left, top, columns, rows = (
        round(float(share) * side)
        for share, side in zip(one["bounding_box"], (width, height, width, height), strict=True)
    )
    part = _embedded(one["mask"]) > 0
    if abs(part.shape[0] - rows) > 1 or abs(part.shape[1] - columns) > 1:
        if not 0 < columns <= width or not 0 < rows <= height:
            raise ValueError(f"a box has {columns} x {rows} pixels")
        part = of_size(part, columns, rows)
    return pasted(part, left, top, shape)
