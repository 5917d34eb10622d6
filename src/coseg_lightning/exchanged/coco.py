"""COCO: writes one `annotations.json` with run lengths, and reads COCO files of any program.

Format: https://cocodataset.org/#format-data
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.regions import bounds, polygon, reach
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
        names = _by_id(content.get("categories") or (), "name", place)
        images = _by_id(content["images"], "file_name", place)
        layers: dict[str, list[Layer]] = {image: [] for image in images}
        left_out: Counter[str] = Counter()
        shapes: dict[str, list[Any]] = {image: [] for image in images}
        for annotation in content["annotations"]:
            category, image = _id(annotation.get("category_id")), _id(annotation["image_id"])
            segmentation = annotation.get("segmentation")
            draw = _drawn(segmentation)
            if draw is None:
                kind = "annotation without a segmentation"
                if segmentation:
                    kind = "polygon of fewer than 3 corners"
                ignored.add(kind, images.get(image, f"image {image}"))
                left_out[image] += 1
                continue
            if category not in names or image not in layers:
                raise InputError(
                    f"{place} has an annotation of category {category} and image {image} but does "
                    "not list both; export it again."
                )
            is_outline = not isinstance(segmentation, dict)
            layers[image].append(Layer(names[category], draw, is_outline))
            shapes[image] += _flat(segmentation)
        for facts in content["images"]:
            size, image = None, _id(facts["id"])
            if facts.get("height") and facts.get("width"):
                size = int(facts["height"]), int(facts["width"])
            corners = [corner for flat in shapes[image] for corner in flat] if not size else []
            yield Answer(
                images[image],
                layers[image],
                place,
                size,
                is_sure=False,
                left_out=left_out[image],
                reach=reach(np.reshape(corners, (-1, 2))),
            )


def _id(value: Any) -> str:
    """An id as a text; pandas writes whole numbers as 1.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _by_id(listed: Iterable[Mapping[str, Any]], key: str, place: str) -> dict[str, str]:
    """The names of categories or images by their ids, which programs write as numbers or texts."""
    names: dict[str, str] = {}
    for one in listed:
        before = names.setdefault(_id(one["id"]), str(one[key]))
        if before != str(one[key]):
            raise InputError(
                f"{place} has the id {one['id']} for {before} and for {one[key]}, as if files were "
                "joined by hand; give the files themselves, in one folder."
            )
    return names


def _drawn(segmentation: Any) -> Callable[[Shape], Region] | None:
    if isinstance(segmentation, dict):
        return partial(_runs, segmentation) if segmentation else None
    flat = _flat(segmentation)
    return partial(_polygons, flat) if flat else None


def _flat(segmentation: Any) -> list[list[float]]:
    """The polygons of an object, without those of fewer than three corners."""
    if not segmentation or not isinstance(segmentation, list):  # missing, or run lengths
        return []
    flat = segmentation if isinstance(segmentation[0], list) else [segmentation]
    return [points for points in flat if len(points) not in (0, 2, 4)]


def _runs(segmentation: Mapping[str, Any], shape: Shape) -> Region:
    check_size(segmentation["size"], shape)
    return from_coco_rle(segmentation["counts"], shape)


def _polygons(polygons: list[list[float]], shape: Shape) -> Region:
    region = np.zeros(shape, np.bool_)
    for flat in polygons:  # parts of one object; one part may cover the hole of another
        region |= polygon(np.asarray(flat, dtype=np.float64).reshape(-1, 2), shape)
    return region
