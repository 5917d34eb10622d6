"""COCO: writes one `annotations.json` with run lengths, and reads COCO files of any program.

Format: https://cocodataset.org/#format-data
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.regions import bounds, polygon
from coseg_lightning.exchanged.rle import coco_rle, from_coco_rle
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
from coseg_lightning.files.atomic import write_text

WANTED = "COCO's JSON"


def write(folder: Path, tasks: Iterable[Task], classes: Classes) -> None:
    """Write `annotations.json`: one annotation per class of an image, as run lengths."""
    names = (*classes.names, UNLABELLED)
    numbers = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for task in tasks:
        height, width = task.mask.shape
        image = {"id": len(images) + 1, "file_name": f"{task.name}.png"}
        images.append({**image, "width": width, "height": height})
        for label, region in classes.regions(task.mask):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": numbers[label],
                    "iscrowd": 1,  # means run lengths, which keep holes and single pixels
                    "area": int(region.sum()),
                    "bbox": list(bounds(region)),
                    "segmentation": {"size": [height, width], "counts": coco_rle(region)},
                }
            )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_text(folder / "annotations.json", json.dumps(content))


def read(source: Source, classes: Classes) -> Answers:
    """Read the annotations of all images from one or several files.

    Raises:
        InputError: If there are no annotations, or they cannot be read.
    """
    answers, ignored = Answers(), Ignored()
    is_found = False
    for name in source.of_type(".json"):
        content = source.read_json(name)
        if isinstance(content, dict) and "images" in content and "annotations" in content:
            is_found = True
            answers.found.extend(_answers(content, source.place(name), ignored))
    if not is_found:
        raise InputError(
            f"{source.path} holds no JSON with images and annotations in COCO's format; give such "
            "a file, or its folder."
        )
    answers.remarks.extend(ignored.remarks())
    return answers


def _answers(content: Mapping[str, Any], place: str, ignored: Ignored) -> Iterator[Answer]:
    with reading(place, WANTED):
        names = {one["id"]: str(one["name"]) for one in content.get("categories") or ()}
        layers: dict[Any, list[Layer]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            draw = _drawn(annotation.get("segmentation"))
            if draw is None:
                ignored.add("annotation without a segmentation")
                continue
            category, image = annotation["category_id"], annotation["image_id"]
            if category not in names or image not in layers:
                raise InputError(
                    f"{place} has an annotation of category {category} and image {image} but does "
                    "not list both; export it again."
                )
            layers[image].append(Layer(names[category], draw))
        for image in content["images"]:
            size = None
            if image.get("height") and image.get("width"):
                size = int(image["height"]), int(image["width"])
            parts = layers[image["id"]]
            yield Answer(str(image["file_name"]), parts, place, size, is_sure=False)


def _drawn(segmentation: Any) -> Callable[[Shape], Region] | None:
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return partial(_runs, segmentation)
    flat = segmentation if isinstance(segmentation[0], list) else [segmentation]
    return partial(_polygons, flat)


def _runs(segmentation: Mapping[str, Any], shape: Shape) -> Region:
    check_size(segmentation["size"], shape)
    return from_coco_rle(segmentation["counts"], shape)


def _polygons(polygons: list[list[float]], shape: Shape) -> Region:
    region = np.zeros(shape, np.bool_)
    for flat in polygons:  # parts of one object; one part may cover the hole of another
        region |= polygon(np.asarray(flat, dtype=np.float64).reshape(-1, 2), shape)
    return region
