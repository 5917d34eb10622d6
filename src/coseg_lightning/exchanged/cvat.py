"""CVAT: reads and writes `CVAT for images 1.1`, and reads `Segmentation mask 1.1`.

Format: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.regions import bounds, box, ellipse, pasted, polygon
from coseg_lightning.exchanged.rle import from_run_lengths, run_lengths
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
    check_size,
    reading,
)
from coseg_lightning.files.atomic import write_text

WANTED = "CVAT for images 1.1"
WITH_AREA = ("mask", "polygon", "box", "ellipse")
DRAWN = (*WITH_AREA, "polyline", "points", "cuboid", "skeleton")


def write(folder: Path, tasks: Iterable[Task], classes: Classes) -> None:
    """Write `annotations.xml`, to be uploaded to a task with the images, and `labels.json`."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    names = (*classes.names, BACKGROUND, UNLABELLED)
    lines += ["  <meta>", "    <task>", "      <labels>"]
    for name in names:  # CVAT does not need them, but other readers of its format do
        lines.append(f"        <label><name>{escape(name)}</name><attributes></attributes></label>")
    lines += ["      </labels>", "    </task>", "  </meta>"]
    for number, task in enumerate(tasks):
        height, width = task.mask.shape
        file = quoteattr(f"{task.name}.png")
        lines.append(f'  <image id="{number}" name={file} width="{width}" height="{height}">')
        for label, region in classes.regions(task.mask):
            left, top, columns, rows = bounds(region)
            part = region[top : top + rows, left : left + columns]
            runs = ", ".join(map(str, run_lengths(part.ravel())))
            lines.append(
                f'    <mask label={quoteattr(label)} source="auto" occluded="0" rle="{runs}" '
                f'left="{left}" top="{top}" width="{columns}" height="{rows}" z_order="0">'
            )
            lines.append("    </mask>")
        lines.append("  </image>")
    write_text(folder / "annotations.xml", "\n".join([*lines, "</annotations>", ""]))
    labels = [{"name": name, "attributes": []} for name in names]
    write_text(folder / "labels.json", json.dumps(labels, indent=1, ensure_ascii=False))


def read(source: Source, classes: Classes) -> Answers:
    """Read image annotations of one or several jobs, or otherwise painted masks.

    Raises:
        InputError: If there are no annotations, or they cannot be read.
    """
    answers, ignored = Answers(), Ignored()
    documents = source.of_type(".xml")
    for name in documents:
        answers.found.extend(_annotations(source.read(name), source.place(name), ignored))
    maps = [name for name in source.names if name.rpartition("/")[2] == "labelmap.txt"]
    if not documents:
        for name in maps:
            answers.found.extend(_painted_masks(source, name))
    if not documents and not maps:
        raise InputError(
            f"{source.path} holds no annotations.xml and no labelmap.txt; export the task or the "
            f"job from CVAT as {WANTED}, or as Segmentation mask 1.1."
        )
    answers.remarks.extend(ignored.remarks())
    return answers


def _annotations(document: bytes, place: str, ignored: Ignored) -> Iterator[Answer]:
    with reading(place, WANTED):
        root = _parsed(document, place)
        if root.tag != "annotations" or root.find("track") is not None:
            raise InputError(f"{place} is not in the format {WANTED}; export it in that format.")
        reviewers = _reviewers(root)
        for image in root.iter("image"):
            name = image.attrib["name"]
            shapes = [shape for shape in image if _has_area(shape, name, ignored)]
            shapes.sort(key=lambda shape: float(shape.get("z_order") or 0))  # stable sorting
            others = [shape for shape in image if shape.tag in DRAWN and shape not in shapes]
            yield Answer(
                name,
                [_layer(shape) for shape in shapes],
                place,
                (int(image.attrib["height"]), int(image.attrib["width"])),
                reviewers.get(image.get("task_id"), reviewers.get(None, "")),
                is_sure=False,
                left_out=len(others),
            )


def _parsed(document: bytes, place: str) -> ElementTree.Element:
    """Parse XML, but refuse a document type, whose entities could grow or read files."""

    def refuse(*_: object) -> None:
        raise InputError(
            f"{place} declares a document type, so it is not an export of CVAT; export it again."
        )

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(document, True)
        return ElementTree.fromstring(document)
    except (expat.ExpatError, LookupError) as error:
        raise InputError(f"{place} is not valid XML ({error}); export it again.") from error


def _reviewers(root: ElementTree.Element) -> dict[str | None, str]:
    """The assignee of the job or task, by the task's number; None if there is only one task."""
    names: dict[str | None, str] = {}
    for part in root.iterfind("meta//assignee/.."):
        name = part.findtext("assignee/username") or part.findtext("assignee") or ""
        if name.strip():
            names[part.findtext("id") if part.tag == "task" else None] = name.strip()
            names.setdefault(None, name.strip())
    tasks = root.findall("meta//task")
    if len(tasks) > 1:  # an export of a project, whose tasks have their own assignees
        names.pop(None, None)
    return names


def _has_area(shape: ElementTree.Element, image: str, ignored: Ignored) -> bool:
    has_few = shape.tag == "polygon" and shape.get("points", "").count(";") < 2
    if shape.tag in WITH_AREA and shape.get("outside") != "1" and not has_few:
        return True
    if shape.tag in DRAWN or shape.tag == "tag":
        ignored.add("polygon of fewer than 3 corners" if has_few else shape.tag, image)
    return False


def _layer(shape: ElementTree.Element) -> Layer:
    return Layer(shape.attrib["label"], _drawn(shape), is_outline=shape.tag != "mask")


def _drawn(shape: ElementTree.Element) -> Callable[[Shape], Region]:
    get = {key: value for key, value in shape.attrib.items() if key != "rle"}
    angle = float(get.get("rotation") or 0)
    if shape.tag == "mask":
        runs = [int(run) for run in shape.attrib["rle"].split(",") if run.strip()]
        place = tuple(int(float(get[key])) for key in ("left", "top", "width", "height"))
        return partial(_mask, runs, place)
    if shape.tag == "box":
        left, top, right, bottom = (float(get[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return partial(polygon, box(left, top, right, bottom, angle))
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (float(get[key]) for key in ("cx", "cy", "rx", "ry"))
        return partial(ellipse, (cx, cy), (rx, ry), angle)
    points = [[float(number) for number in pair.split(",")] for pair in get["points"].split(";")]
    return partial(polygon, points)


def _mask(runs: list[int], place: tuple[int, ...], shape: Shape) -> Region:
    left, top, width, height = place
    if not 0 < width <= shape[1] or not 0 < height <= shape[0]:
        raise ValueError(f"a mask of {width} x {height} pixels is larger than its image")
    part = from_run_lengths(runs, width * height).reshape(height, width)
    return pasted(part, left, top, shape)


def _painted_masks(source: Source, labelmap: str) -> Iterator[Answer]:
    """Read masks that are painted in the colours of a `labelmap.txt`."""
    with reading(source.place(labelmap), "the label map of Segmentation mask 1.1"):
        colours: dict[int, str] = {}
        for line in source.read(labelmap).decode("utf-8-sig").splitlines():
            if line.strip() and not line.startswith("#"):
                label, rgb = line.rsplit(":", 3)[:2]  # a name may hold colons
                if not rgb.strip():
                    raise InputError(
                        f"{source.place(labelmap)} names no colour of {label}; export it again: "
                        "CVAT names all colours."
                    )
                red, green, blue = (int(value) for value in rgb.split(","))
                before = colours.setdefault((red << 16) + (green << 8) + blue, label)
                if before != label:
                    raise InputError(
                        f"{source.place(labelmap)} gives {before} and {label} the same colour; "
                        "give them two colours in CVAT, and export it again."
                    )
    folder = labelmap.removesuffix("labelmap.txt") + "SegmentationClass/"
    for name in source.of_type(".png"):
        if not name.startswith(folder):
            continue
        place = source.place(name)
        with reading(place, "a painted mask"):
            codes = _codes(source.read(name))
            found = np.unique(codes).tolist()
            unknown = [code for code in found if code not in colours]
            if unknown:
                colour = tuple(unknown[0] >> shift & 255 for shift in (16, 8, 0))
                raise InputError(
                    f"{place} holds the colour {colour}, but labelmap.txt does not name it; export "
                    "it again."
                )
            layers = [
                Layer(colours[code], partial(_of_colour, source, name, code))
                for code in found
                if colours[code] != BACKGROUND
            ]
        size = codes.shape[0], codes.shape[1]
        yield Answer(name.removeprefix(folder), layers, place, size, is_sure=False)


def _codes(data: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        rgb = np.asarray(picture.convert("RGB")).astype(np.int64)
    return np.asarray((rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2])


def _of_colour(source: Source, name: str, code: int, shape: Shape) -> Region:
    codes = _codes(source.read(name))
    check_size(codes.shape, shape)
    return np.asarray(codes == code)
