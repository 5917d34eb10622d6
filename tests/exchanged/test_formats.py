"""Tasks survive every format to the pixel, and real exports are read with their oddities."""

import base64
import io
import json
import shutil
import zipfile
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.exchanged import source as source_file
from coseg_lightning.exchanged.names import ImageNames
from coseg_lightning.exchanged.rle import brush_rle, coco_rle, run_lengths
from coseg_lightning.exchanged.source import Source
from coseg_lightning.exchanged.tasks import Classes, NothingDrawnError, Task, painted
from coseg_lightning.exchanged.tools import TOOLS, tool_named

IDS = [
    "plain",
    "a/b/c",
    "mit Umlaut ä",
    "scan.01.png",
    "日本",
    "x y",
    "UPPER",
    "CON",
    "1",
    "a'b\"<&>",
]
CLASSES = Classes(("lesion", 'odd "name" <&> ü', "class 3"))


def drawn(seed, shape):
    """A mask with holes, several components, several classes, and unlabelled pixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for k in (1, 2, 3, 1, 2):
        top, left = (int(rng.integers(0, max(1, side - 4))) for side in shape)
        height, width = (int(rng.integers(1, max(2, side // 2))) for side in shape)
        mask[top : top + height, left : left + width] = k
    mask[shape[0] // 3 : shape[0] // 3 + 2, shape[1] // 3] = 0  # a hole
    mask[rng.random(shape) < 0.02] = rng.integers(0, 4)
    mask[:1, :2] = 255
    return mask


SIZES = [(24, 31), (1, 1), (1, 40), (37, 2), (64, 48), (9, 9), (33, 33), (5, 7), (20, 20), (8, 300)]


def answers_of(tool, path, classes=CLASSES):
    return TOOLS[tool].read(Source(path), classes)


def masks_of(answers, shapes, classes=CLASSES):
    """The mask of each answer, by the image."""
    labels = {layer.label for answer in answers.found for layer in answer.layers}
    ids, _ = classes.ids([label for label in labels if isinstance(label, str)], "the export")
    names = {}
    for answer in answers.found:
        names[answer.image] = painted(answer, shapes(answer), ids)
    return names


@pytest.fixture(params=TOOLS)
def tool(request):
    return request.param


def written(tool, folder, masks):
    names = ImageNames(list(masks))
    tasks = [Task(i, names.name(i), mask) for i, mask in masks.items()]
    for task in tasks:  # as the command does
        path = folder / TOOLS[tool].images / f"{task.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.mask % 7).save(path)
    TOOLS[tool].write(folder, iter(tasks), CLASSES)
    return names


def as_annotated(tool, folder):
    """What Label Studio exports of tasks whose predictions were submitted as they are."""
    if tool != "label_studio":
        return folder
    tasks = json.loads((folder / "tasks.json").read_text())
    for task in tasks:
        (prediction,) = task.pop("predictions")
        task["annotations"] = [{"result": prediction["result"], "completed_by": 1, "id": 3}]
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def test_every_pixel_of_every_mask_survives(tool, tmp_path):
    masks = {i: drawn(n, shape) for n, (i, shape) in enumerate(zip(IDS, SIZES, strict=True))}
    masks["empty"] = np.zeros((6, 5), np.uint8)
    masks["full"] = np.full((5, 6), 3, np.uint8)
    names = written(tool, tmp_path, masks)
    answers = answers_of(tool, as_annotated(tool, tmp_path))
    read = masks_of(answers, lambda answer: masks[names.find(answer.image)].shape)
    assert {names.find(image) for image in read} == set(masks)
    for image, mask in read.items():
        np.testing.assert_array_equal(mask, masks[names.find(image)], err_msg=image)
    if tool == "label_studio":
        assert {answer.sample_id for answer in answers.found} == set(masks)


def test_what_readers_of_cvats_format_want_besides(tmp_path):
    written("cvat", tmp_path, {"one": np.ones((4, 5), np.uint8)})
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    names = [label.findtext("name") for label in root.iterfind("meta/task/labels/label")]
    assert names == [*CLASSES.names, "background", "unlabelled"]
    labels = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert [label["name"] for label in labels] == names
    (mask,) = root.iter("mask")
    assert dict(mask.attrib, label="") == {
        **{"label": "", "source": "auto", "occluded": "0", "z_order": "0"},
        **{"rle": "0, 20", "left": "0", "top": "0", "width": "5", "height": "4"},
    }


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30))
def test_any_mask_survives_any_format(tmp_path_factory, seed, height, width):
    mask = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], size=(height, width))
    for tool in TOOLS:
        folder = tmp_path_factory.mktemp(tool)
        written(tool, folder, {"one": mask.astype(np.uint8)})
        answers = answers_of(tool, as_annotated(tool, folder))
        (read,) = masks_of(answers, lambda _: (height, width)).values()
        np.testing.assert_array_equal(read, mask)


JUNK = [None, "x", "", -1, 0, 10**30, 1e300, True, [], {}, [[1, 2], 3], {"id": 1}]


def places_of(value, path=()):
    """The paths of the parts of a JSON value; of a list those of its first parts."""
    parts = value.items() if isinstance(value, dict) else list(enumerate(value))[:3]
    for key, part in parts:
        yield (*path, key)
        if isinstance(part, dict | list):
            yield from places_of(part, (*path, key))


def damage(file, rng, *, as_json):
    """Put something else in the place of a value, or of some bytes."""
    if as_json:
        content = json.loads(file.read_text())
        places = list(places_of(content))
        *way, last = places[int(rng.integers(len(places)))]
        part = content
        for key in way:
            part = part[key]
        part[last] = JUNK[int(rng.integers(len(JUNK)))]
        file.write_text(json.dumps(content))
        return
    data = bytearray(file.read_bytes())
    place, length = (int(rng.integers(n)) for n in (len(data), 20))
    data[place : place + length] = rng.bytes(int(rng.integers(4)))
    file.write_bytes(bytes(data))


def test_whatever_is_wrong_in_an_export_is_told_in_a_sentence(tool, tmp_path):
    masks = {"one": drawn(0, (12, 9)), "two": drawn(1, (7, 8))}
    names = written(tool, tmp_path / "whole", masks)
    shapes = {"one": (12, 9), "two": (7, 8), None: (7, 8)}
    export = as_annotated(tool, tmp_path / "whole")
    folder = export if export.is_dir() else export.parent
    for name in ("tasks.json", "labels.json", "config.xml", "mask_targets.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "data", ignore_errors=True)
    for path in (folder / "images").glob("*.png"):
        path.unlink()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(80):
        shutil.copytree(folder, tmp_path / "damaged")
        files = sorted(path for path in (tmp_path / "damaged").rglob("*") if path.is_file())
        file = files[int(rng.integers(len(files)))]
        damage(file, rng, as_json=file.suffix == ".json" and number % 5 > 0)
        try:
            answers = answers_of(tool, tmp_path / "damaged")
            masks_of(answers, lambda answer: shapes[names.find(answer.image)])
        except InputError:
            refused += 1
        shutil.rmtree(tmp_path / "damaged")
    assert refused > 15


def test_an_export_is_read_from_a_zip_as_from_a_folder(tool, tmp_path):
    masks = {"one": drawn(0, (20, 30)), "two": drawn(1, (9, 12))}
    names = written(tool, tmp_path / "out", masks)
    path = as_annotated(tool, tmp_path / "out")
    folder = path if path.is_dir() else path.parent
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file() and file.name != "tasks.json":
                archive.write(file, f"../../{file.relative_to(folder)}")
        archive.writestr("__MACOSX/._x.json", "{")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "export.zip").rename(tmp_path / "jobs" / "export.zip")
    before = set(tmp_path.rglob("*"))
    for place in ("jobs", "jobs/export.zip"):
        answers = answers_of(tool, tmp_path / place)
        read = masks_of(answers, lambda answer: masks[names.find(answer.image)].shape)
        assert sorted(names.find(image) for image in read) == ["one", "two"]
    assert set(tmp_path.rglob("*")) == before  # nothing was unpacked


# Names


def test_names_say_the_rank_and_are_plain():
    names = ImageNames([*IDS, "a.b", "a_b", "x" * 200])
    for sample_id in IDS:
        assert names.name(sample_id).isascii()
        assert set(names.name(sample_id)) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
        )
        assert names.find(names.name(sample_id) + ".png") == sample_id
    assert names.name("a/b/c") == "0002_a_b_c"
    assert names.name("日本") == "0005_image"
    assert len(names.name("x" * 200)) < 70


@pytest.mark.parametrize(
    ("image", "sample_id"),
    [
        ("0001_s_01.png", "s.01"),
        ("0001_S_01.PNG", "s.01"),
        ("images/0001_s_01.png", "s.01"),
        ("..\\images\\0001_s_01.png", "s.01"),
        ("3f2a9c1b-0001_s_01.png", "s.01"),
        ("/data/upload/4/3f2a9c1b-0001_s_01.png", "s.01"),
        ("/data/local-files/?d=out%2Fimages%2F0001_s_01.png", "s.01"),
        ("https://host:8080/a/0001_s_01.png?token=1", "s.01"),
        ("s3://bucket/a/0001_s_01.jpg", "s.01"),
        ("s.01.tif", "s.01"),  # a person gave the tool the files of the dataset
        ("s.01", "s.01"),
        ("train/p/7.png", "p/7"),
        ("two%20words.png", "two words"),
        ("0003_s_01.png", None),
        ("s.02.png", None),
        ("", None),
        ("https://[", None),
    ],
)
def test_names_as_tools_change_them(image, sample_id):
    assert ImageNames(["s.01", "p/7", "two words"]).find(image) == sample_id


# Classes


def test_labels_are_found_as_tools_write_them():
    classes = Classes.of(["Lung field", "heart"], 3)
    labels = ["lung_field", "HEART ", "background", "void"]
    ids, remarks = classes.ids(labels, "x")
    assert list(ids.values()) == [1, 2, 0, 255]
    assert not remarks
    with pytest.raises(
        InputError, match="x has the label 'liver', which is not a class of the run; .*Lung"
    ):
        classes.ids(["heart", "liver"], "x")
    assert Classes.of(None, 3).names == ("class 1", "class 2")
    assert Classes.of(["a", "A"], 3).names == ("class 1", "class 2")
    assert Classes.of(["background"], 2).names == ("class 1",)


def test_the_only_label_of_two_classes_is_the_foreground():
    classes = Classes.of(None, 2)
    ids, remarks = classes.ids(["tumour", "background"], "x")
    assert ids == {"tumour": 1, "background": 0}
    assert remarks == ["The label 'tumour' was read as 'class 1'."]
    with pytest.raises(InputError, match="'tumour'"):
        classes.ids(["tumour", "class 1"], "x")
    with pytest.raises(InputError, match="'node'"):
        classes.ids(["tumour", "node"], "x")


# CVAT

TWO = Classes(("cat", "dog"))
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job>
      <id>17</id><size>3</size><mode>annotation</mode><subset>Train</subset>
      <labels>
        <label><name>cat</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
      </labels>
      <owner><username>boss</username><email></email></owner>
      <assignee><username>ann</username><email>ann@x</email></assignee>
    </job>
    <dumped>2024-05-01 10:00:00+00:00</dumped>
  </meta>
  <image id="0" name="Train/p1.png" subset="Train" task_id="9" width="12" height="10">
    <polygon label="dog" source="manual" occluded="0" z_order="2"
      points="1.00,1.00;5.00,1.00;5.00,4.00;1.00,4.00">
      <attribute name="sure">yes</attribute>
    </polygon>
    <box label="cat" source="semi-auto" occluded="1" z_order="0"
      xtl="0.00" ytl="0.00" xbr="4.00" ybr="3.00">
    </box>
    <box label="cat" source="manual" occluded="0"
      xtl="9.00" ytl="0.00" xbr="12.00" ybr="1.00" outside="1">
    </box>
    <polyline label="cat" source="manual" points="1.00,1.00;2.00,2.00"></polyline>
    <points label="cat" source="manual" points="1.00,1.00"></points>
    <tag label="cat" source="manual"></tag>
    <mask label="cat" source="manual" occluded="0" z_order="0"
      rle="1, 2, 2, 1" left="10" top="8" width="3" height="2">
    </mask>
    <ellipse label="dog" source="manual" occluded="0" z_order="0"
      cx="6.00" cy="8.00" rx="1.00" ry="2.00">
    </ellipse>
  </image>
  <image id="1" name="p2.png" width="4" height="3">
  </image>
</annotations>
"""


def test_cvat_with_shapes_of_all_kinds(tmp_path):
    (tmp_path / "annotations.xml").write_text(CVAT)
    answers = answers_of("cvat", tmp_path / "annotations.xml", TWO)
    first, second = answers.found
    assert (first.image, first.size, first.reviewer) == ("Train/p1.png", (10, 12), "ann")
    assert second.image == "p2.png"
    assert not second.layers
    assert not second.is_sure
    mask = painted(first, (10, 12), {"cat": 1, "dog": 2})
    expected = np.zeros((10, 12), np.uint8)
    expected[0:3, 0:4] = 1
    expected[8, 11] = 1  # the last pixel of each of the mask's rows lies outside of the image
    expected[6:10, 5:7] = 2
    expected[1:4, 1:5] = 2  # on top, by its z_order
    np.testing.assert_array_equal(mask, expected)
    (remark,) = answers.remarks
    counts = [f"1 {kind} (as in Train/p1.png)" for kind in ("box", "points", "polyline", "tag")]
    assert remark.endswith(f": {', '.join(counts)}.")
    assert answers.found[0].left_out == 3  # a tag is not drawn


def test_cvat_of_a_project_names_each_tasks_assignee(tmp_path):
    tasks = "".join(
        f"<task><id>{n}</id><assignee><username>{who}</username></assignee></task>"
        for n, who in ((4, "ann"), (5, "ben"))
    )
    images = "".join(
        f'<image id="0" name="{n}.png" task_id="{n}" width="1" height="1"></image>'
        for n in (4, 5, 6)
    )
    text = (
        f"<annotations><meta><project><tasks>{tasks}</tasks></project></meta>{images}</annotations>"
    )
    (tmp_path / "a.xml").write_text(text)
    found = answers_of("cvat", tmp_path).found
    assert [answer.reviewer for answer in found] == ["ann", "ben", ""]


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>
<annotations><image id="0" name="&y;" width="1" height="1"/></annotations>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB.encode(), "declares a document type"),
        (BOMB.replace("1.0", '1.0" encoding="utf-16').encode("utf-16"), "declares a document type"),
        (b"<annotations>", "is not valid XML"),
        (b"<annotations><track/></annotations>", "is not in the format CVAT for images 1.1"),
        (b"<html/>", "is not in the format CVAT for images 1.1"),
        (b'<annotations><image name="a" width="x" height="1"/></annotations>', "cannot be read as"),
        (b'<annotations><image name="a"/></annotations>', r"cannot be read as.*KeyError"),
    ],
)
def test_cvat_that_is_none(tmp_path, text, message):
    (tmp_path / "annotations.xml").write_bytes(text)
    with pytest.raises(InputError, match=message):
        answers_of("cvat", tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        '<mask label="cat" rle="1, 2" left="0" top="0" width="2" height="2"/>',
        '<mask label="cat" rle="0, 9999999999" left="0" top="0" width="99999" height="99999"/>',
        '<polygon label="cat" points="1,1;2,2;nan,3"/>',
        '<ellipse label="cat" cx="1" cy="1" rx="-1" ry="2"/>',
    ],
)
def test_a_damaged_shape_is_named_with_its_image(tmp_path, shape):
    text = f'<annotations><image name="a.png" width="4" height="4">{shape}</image></annotations>'
    (tmp_path / "annotations.xml").write_text(text)
    (answer,) = answers_of("cvat", tmp_path).found
    with pytest.raises(InputError, match=r"annotations.xml, a.png, cannot be read as an export"):
        painted(answer, (4, 4), {"cat": 1})


def test_cvat_with_painted_masks(tmp_path):
    rgb = np.zeros((5, 6, 3), np.uint8)
    rgb[1:3, 2:4] = (250, 50, 83)
    rgb[4, 4] = (1, 2, 3)
    folder = tmp_path / "SegmentationClass" / "Train"
    folder.mkdir(parents=True)
    Image.fromarray(rgb).save(folder / "p.1.png")
    labels = (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\na: dog:1,2,3::\ncat:250,50,83::\n"
    )
    (tmp_path / "labelmap.txt").write_text(labels)
    (tmp_path / "ImageSets").mkdir()
    (answer,) = answers_of("cvat", tmp_path).found
    assert answer.image == "Train/p.1.png"
    mask = painted(answer, (5, 6), {"cat": 1, "a: dog": 2})
    assert mask[1:3, 2:4].all()
    assert mask[4, 4] == 2
    assert (mask > 0).sum() == 5
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\n")
    with pytest.raises(
        InputError, match=r"holds the colour \(1, 2, 3\), but labelmap.txt does not name it"
    ):
        answers_of("cvat", tmp_path)
    (tmp_path / "labelmap.txt").write_text("background:::\n")
    with pytest.raises(InputError, match="labelmap.txt names no colour of background"):
        answers_of("cvat", tmp_path)


# Label Studio


def brush(region, label="cat", **more):
    height, width = region.shape
    value = {"format": "rle", "rle": brush_rle(region), "brushlabels": [label]}
    return {
        "id": "r1",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
        **more,
    }


def shape_of(kind, size=(10, 20), **value):
    return {
        "type": kind,
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": value,
    }


def in_label_studio(tmp_path, *tasks, classes=TWO):
    (tmp_path / "project-1-at-2024-05-01.json").write_text(json.dumps(tasks))
    return answers_of("label_studio", tmp_path, classes)


REGION = np.eye(6, 8, dtype=bool)


def task_of(*annotations, image="/data/upload/1/0a1b2c3d-one.png", **more):
    return {"id": 12, "data": {"image": image}, "annotations": list(annotations), **more}


def test_label_studio_takes_the_newest_annotation_that_was_not_cancelled(tmp_path):
    old = {"id": 9, "result": [brush(~REGION)], "updated_at": "2024-01-01T00:00:00Z"}
    new = {"id": 3, "result": [brush(REGION)], "updated_at": "2024-03-01T00:00:00Z"}
    new["completed_by"] = {"id": 7, "email": "ann@x.org", "first_name": "Ann"}
    newer = {**old, "updated_at": "2024-09-01T00:00:00Z", "was_cancelled": True}
    cancelled = task_of(newer, image="two.png")
    predicted = {**task_of(image="three.png"), "predictions": [{"result": [brush(REGION)]}]}
    answers = in_label_studio(tmp_path, task_of(old, new, newer), cancelled, predicted)
    (answer,) = answers.found
    assert (answer.reviewer, answer.size) == ("ann@x.org", (6, 8))
    np.testing.assert_array_equal(painted(answer, (6, 8), {"cat": 1}), REGION)
    assert answers.remarks[0].endswith("one.png by ann@x.org of ?, ann@x.org).")


def test_label_studio_with_shapes_in_percent(tmp_path):
    result = [
        shape_of(
            "polygonlabels", points=[[5, 10], [25, 10], [25, 40], [5, 40]], polygonlabels=["cat"]
        ),
        shape_of(
            "rectanglelabels", x=50, y=50, width=20, height=20, rotation=0, rectanglelabels=["dog"]
        ),
        shape_of(
            "rectanglelabels", x=100, y=0, width=20, height=10, rotation=90, rectanglelabels=["dog"]
        ),
        shape_of(
            "ellipselabels", x=10, y=80, radiusX=5, radiusY=10, rotation=0, ellipselabels=["cat"]
        ),
        shape_of("keypointlabels", x=10, y=80, keypointlabels=["cat"]),
        {"type": "choices", "value": {"choices": ["bad"]}},
        {"type": "textarea", "value": {"text": ["the rim is", "unclear"]}},
    ]
    (answer,) = in_label_studio(tmp_path, task_of({"result": result, "completed_by": 4})).found
    mask = painted(answer, (10, 20), {"cat": 1, "dog": 2})
    expected = np.zeros((10, 20), np.uint8)
    expected[1:4, 1:5] = 1
    expected[5:7, 10:14] = 2
    expected[0:4, 19:20] = 2
    expected[7:9, 1:3] = 1
    np.testing.assert_array_equal(mask, expected)
    assert (answer.note, answer.reviewer) == ("the rim is unclear", "4")


def test_label_studio_with_areas_of_which_nobody_knows_the_topmost_is_refused(tmp_path):
    stroke = brush(REGION)["value"]
    box = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}
    size = {"original_width": 8, "original_height": 6}
    flat = {"id": 7, "image": "/data/upload/1/0a1b2c3d-one.png", "annotation_id": 70}
    one = flat | {"tag": [stroke | size]}
    (answer,) = in_label_studio(tmp_path, one).found
    np.testing.assert_array_equal(painted(answer, (6, 8), {"cat": 1}), REGION)
    with pytest.raises(
        InputError, match=r"one\.png was drawn with several tags, and JSON-MIN does"
    ):
        in_label_studio(tmp_path, one | {"polygon": [box | size]})


def test_label_studio_with_labels_apart_from_areas(tmp_path):
    area = brush(REGION, id="x", type="brush")
    area["value"].pop("brushlabels")
    label = {"id": "x", "type": "labels", "value": {"labels": ["dog"]}}
    alone = {**area, "id": "y"}
    answers = in_label_studio(tmp_path, task_of({"result": [area, label, alone]}))
    assert [layer.label for layer in answers.found[0].layers] == ["dog"]
    assert answers.remarks[0].endswith(
        "1 area without a label (as in /data/upload/1/0a1b2c3d-one.png)."
    )


def bitmask(region, mode="RGBA", **more):
    """As Label Studio writes it: black on transparent pixels, with a smooth rim."""
    alpha = Image.fromarray(np.where(region, 255, 60).astype(np.uint8))
    picture = Image.new("RGB", alpha.size)
    picture.putalpha(alpha)
    file = io.BytesIO()
    picture.convert(mode).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    value = {"imageDataURL": url, "bitmasklabels": ["cat"]}
    return brush(region, **{"type": "bitmasklabels", "value": value, **more})


def test_label_studios_bitmasks(tmp_path):
    (answer,) = in_label_studio(tmp_path, task_of({"result": [bitmask(REGION)]})).found
    np.testing.assert_array_equal(painted(answer, (6, 8), {"cat": 1}), REGION)
    assert [layer.is_outline for layer in answer.layers] == [False]
    apart = bitmask(REGION, id="x", type="bitmask")
    apart["value"].pop("bitmasklabels")
    label = {"id": "x", "type": "labels", "value": {"labels": ["dog"]}}
    (answer,) = in_label_studio(tmp_path, task_of({"result": [apart, label]})).found
    np.testing.assert_array_equal(painted(answer, (6, 8), {"dog": 2}), 2 * REGION)


@pytest.mark.parametrize(
    ("area", "said"),
    [
        (bitmask(REGION, mode="RGB"), "the bitmask has no transparent pixels outside"),
        ({**bitmask(REGION.T), "original_width": 8, "original_height": 6}, "8 x 6 pixels instead"),
        (bitmask(REGION, value={"imageDataURL": "http://x/a.png", "labels": ["cat"]}), "no PNG"),
    ],
)
def test_bitmasks_that_cannot_be_read(tmp_path, area, said):
    (answer,) = in_label_studio(tmp_path, task_of({"result": [area]})).found
    with pytest.raises(InputError, match=said):
        painted(answer, (6, 8), {"cat": 1})


def test_label_studios_short_json_and_an_older_one(tmp_path):
    short = brush(REGION)
    item = {**short.pop("value"), **short}
    minimal = {
        "image": "/data/upload/1/0a1b2c3d-one.png",
        "id": 5,
        "tag": [item],
        "annotator": 2,
        "annotation_id": 9,
        "updated_at": "2024-01-01",
    }
    untouched = {"image": "/data/upload/1/0a1b2c3d-two.png", "id": 6}
    older = {**minimal, "tag": [], "annotation_id": 3, "updated_at": "2023-01-01"}
    old = {"id": 7, "data": {"img": "/x/three.png"}, "completions": [{"result": [brush(REGION)]}]}
    answers = in_label_studio(tmp_path, minimal, older, untouched, old)
    one, three = answers.found
    assert (one.reviewer, three.image) == ("2", "/x/three.png")
    assert answers.remarks == [
        "Tasks with several annotations, of which the newest was used: 1 "
        "(/data/upload/1/0a1b2c3d-one.png)."
    ]
    for answer in (one, three):
        np.testing.assert_array_equal(painted(answer, (6, 8), {"cat": 1}), REGION)


def test_an_empty_annotation_is_an_answer(tmp_path):
    (answer,) = in_label_studio(tmp_path, task_of({"result": []})).found
    assert not painted(answer, (6, 8), {}).any()
    assert answer.is_sure


def test_label_studio_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="rotated by 90 degrees"):
        in_label_studio(tmp_path, task_of({"result": [brush(REGION, image_rotation=90)]}))
    (answer,) = in_label_studio(tmp_path, task_of({"result": [brush(REGION)]})).found
    with pytest.raises(InputError, match=r"has 8 x 6 pixels, but the run's mask has 6 x 8"):
        painted(answer, (8, 6), {"cat": 1})
    cut = brush(REGION)
    cut["value"]["rle"] = cut["value"]["rle"][:-2]
    (answer,) = in_label_studio(tmp_path, task_of({"result": [cut]})).found
    with pytest.raises(InputError, match="the brush is cut off"):
        painted(answer, (6, 8), {"cat": 1})
    (tmp_path / "project-1-at-2024-05-01.json").unlink()
    Image.new("L", (3, 3)).save(tmp_path / "task-12-annotation-3-by-1-tag-cat-0.png")
    with pytest.raises(
        InputError, match=r"PNG files alone do not name their images.* export .* as JSON"
    ):
        answers_of("label_studio", tmp_path)


# COCO


def in_coco(tmp_path, annotations, images=None, categories=None):
    content = {
        "info": {},
        "licenses": [],
        "images": images or [{"id": 70, "file_name": "a b/one%20.png", "width": 8, "height": 6}],
        "categories": categories or [{"id": 0, "name": "dog"}, {"id": 90, "name": "Cat"}],
        "annotations": annotations,
    }
    (tmp_path / "instances_default.json").write_text(json.dumps(content))
    return answers_of("coco", tmp_path, TWO)


def test_coco_with_all_kinds_of_segmentations(tmp_path):
    mask = pytest.importorskip("pycocotools.mask")
    packed = mask.encode(np.asfortranarray(REGION.astype(np.uint8)))
    square = [5.0, 0.0, 8.0, 0.0, 8.0, 2.0, 5.0, 2.0]
    annotations = [
        {"image_id": 70, "category_id": 90, "segmentation": [square, [0, 4, 1, 4, 1, 6, 0, 6]]},
        {
            "image_id": 70,
            "category_id": 0,
            "iscrowd": 1,
            "segmentation": {"size": [6, 8], "counts": packed["counts"].decode()},
        },
        {"image_id": 70, "category_id": 0, "segmentation": [], "bbox": [0, 0, 3, 3]},
        {"image_id": 70, "category_id": 0, "bbox": [0, 0, 3, 3]},
    ]
    answers = in_coco(tmp_path, annotations)
    (answer,) = answers.found
    expected = np.zeros((6, 8), np.uint8)
    expected[0:2, 5:8] = 1
    expected[4:6, 0] = 1
    expected[REGION] = 2
    np.testing.assert_array_equal(painted(answer, (6, 8), {"Cat": 1, "dog": 2}), expected)
    assert answers.remarks[0].endswith(
        "2 annotation without a segmentation (as in a b/one%20.png)."
    )
    assert ImageNames(["one ", "x"]).find(answer.image) == "one "


def test_coco_is_what_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    masks = {"one": drawn(0, (20, 30)), "two": drawn(1, (9, 12))}
    written("coco", tmp_path, masks)
    index = coco.COCO(str(tmp_path / "annotations.json"))
    for number, mask in enumerate(masks.values(), start=1):
        read = np.zeros_like(mask)
        for annotation in index.loadAnns(index.getAnnIds(imgIds=[number])):
            name = index.cats[annotation["category_id"]]["name"]
            class_id = 255 if name == "unlabelled" else CLASSES.names.index(name) + 1
            read[index.annToMask(annotation) > 0] = class_id
        np.testing.assert_array_equal(read, mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (
            {"size": [8, 6], "counts": [48]},
            r"one%20.png has 6 x 8 pixels, but .* has 8 x 6",
        ),
        ({"size": [6, 8], "counts": [40, 9]}, "the runs have 49 pixels instead of 48"),
        ({"size": [6, 8], "counts": "not packed"}, "cannot be read"),
        ({"size": [6, 8]}, "KeyError"),
        ([[1, 2, 3]], "cannot be read"),
        (["x"], "cannot be read"),
        ([[20, 20, 30, 20, 30, 30]], "nothing that is drawn on .* covers a pixel of it"),
    ],
)
def test_coco_that_is_damaged(tmp_path, segmentation, message):
    annotation = {"image_id": 70, "category_id": 0, "segmentation": segmentation}
    (answer,) = in_coco(tmp_path, [annotation]).found
    with pytest.raises(InputError, match=message):
        painted(answer, (6, 8), {"dog": 1})


def test_coco_whose_numbers_lead_nowhere(tmp_path):
    annotation = {"image_id": 71, "category_id": 0, "segmentation": [[0, 0, 1, 0, 1, 1]]}
    with pytest.raises(InputError, match="category 0 and image 71 but does not list both"):
        in_coco(tmp_path, [annotation])
    with pytest.raises(InputError, match="cannot be read as COCO's JSON"):
        in_coco(tmp_path, [{"image_id": 70, "category_id": 0, "segmentation": {"a": 1}}], [{}])


def test_label_studios_truth_comes_before_a_newer_annotation(tmp_path):
    truth = {"id": 1, "result": [brush(REGION)], "updated_at": "2024-01-01", "ground_truth": True}
    empty = {"id": 2, "result": [], "updated_at": "2024-02-01", "completed_by": 2}
    answers = in_label_studio(tmp_path, task_of(truth, empty))
    np.testing.assert_array_equal(painted(answers.found[0], (6, 8), {"cat": 1}), REGION)
    answers = in_label_studio(tmp_path, task_of({**truth, "ground_truth": False}, empty))
    assert not answers.found[0].layers
    assert answers.remarks[0].endswith("by 2 of 2, ?, which is empty).")


def test_an_area_that_is_not_read_leaves_the_whole_image_unanswered(tmp_path):
    value = {"vertices": [{"x": 1, "y": 2}], "closed": True, "vectorlabels": ["cat"]}
    areas = [brush(REGION), brush(REGION, type="vectorlabels", value=value)]
    (answer,) = in_label_studio(tmp_path, task_of({"result": areas})).found
    assert (answer.layers, answer.left_out) == ([], 1)


# labelme


def in_labelme(tmp_path, shapes, **more):
    content = {
        "version": "4.5.6",
        "flags": {},
        "shapes": shapes,
        "imagePath": "..\\images\\one.png",
        "imageData": None,
        "imageHeight": 10,
        "imageWidth": 12,
        **more,
    }
    (tmp_path / "one.json").write_text(json.dumps(content))
    return answers_of("labelme", tmp_path, TWO)


def png(values):
    data = io.BytesIO()
    Image.fromarray(values).save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()


def test_labelmes_flags_are_words_on_the_image(tmp_path):
    flags = {"bad image": True, "done": False}
    (answer,) = in_labelme(tmp_path, [], flags=flags, description="blurred").found
    assert (answer.note, answer.is_sure) == ("blurred; bad image", False)
    (answer,) = in_labelme(tmp_path, [], flags={"done": False}).found
    assert (answer.note, answer.is_sure) == ("", True)


def test_labelme_with_shapes_of_all_kinds(tmp_path):
    part = np.array([[0, 255, 255], [255, 0, 255]], np.uint8)
    shapes = [
        {
            "label": "cat",
            "points": [[1, 1], [5, 1], [5, 4], [1, 4]],
            "shape_type": "polygon",
            "group_id": 1,
        },
        {"label": "dog", "points": [[9.0, 3.0], [7.0, 1.0]], "shape_type": "rectangle"},
        {"label": "cat", "points": [[3, 8], [4.9, 8]], "shape_type": "circle", "flags": {}},
        {"label": "dog", "points": [[10, 8], [12, 9]], "shape_type": "mask", "mask": png(part)},
        {
            "label": "dog",
            "points": [[6, 5], [8, 5], [8, 7], [6, 7]],
            "shape_type": "oriented_rectangle",
        },
        {"label": "cat", "points": [[0, 0], [3, 3]], "shape_type": "linestrip"},
        {"label": "cat", "points": [[0, 0]], "shape_type": "point"},
        {"label": "cat", "points": [[0, 9], [1, 9], [1, 10], [0, 10]]},  # of an early version
    ]
    answers = in_labelme(tmp_path, shapes)
    (answer,) = answers.found
    expected = np.zeros((10, 12), np.uint8)
    expected[1:4, 1:5] = 1
    expected[1:3, 7:9] = 2
    expected[6:10, 1:5] = 1
    expected[[6, 6, 9, 9], [1, 4, 1, 4]] = 0
    expected[8, 11] = expected[9, 10] = 2
    expected[5:7, 6:8] = 2
    expected[9, 0] = 1
    np.testing.assert_array_equal(painted(answer, (10, 12), {"cat": 1, "dog": 2}), expected)
    assert answers.remarks[0].endswith(
        r"1 linestrip (as in ..\images\one.png), 1 point (as in ..\images\one.png)."
    )
    assert answer.left_out == 2
    assert ImageNames(["one"]).find(answer.image) == "one"
    assert answer.is_sure


def test_labelme_that_is_damaged(tmp_path):
    shape = {"label": "cat", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "AAAA"}
    (answer,) = in_labelme(tmp_path, [shape]).found
    with pytest.raises(InputError, match=r"one.json, .*one.png, cannot be read"):
        painted(answer, (10, 12), {"cat": 1})
    with pytest.raises(InputError, match=r"one.png has 12 x 10 pixels, but .* has 9 x 9"):
        painted(answer, (9, 9), {"cat": 1})
    with pytest.raises(InputError, match="cannot be read as labelme's JSON"):
        in_labelme(tmp_path, [{"points": []}])
    (tmp_path / "one.json").write_text("{")
    with pytest.raises(InputError, match="one.json cannot be read as JSON"):
        answers_of("labelme", tmp_path)
    (tmp_path / "one.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="one.json cannot be read as JSON"):
        answers_of("labelme", tmp_path)
    (tmp_path / "one.json").write_text("[]")
    with pytest.raises(InputError, match="holds no JSON with shapes"):
        answers_of("labelme", tmp_path)


# FiftyOne


def embedded(array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    text = base64.b64encode(zlib.compress(data.getvalue())).decode()
    return {"$binary": {"base64": text, "subType": "00"}}


def in_fiftyone(tmp_path, *samples, **metadata):
    (tmp_path / "samples.json").write_text(json.dumps({"samples": list(samples)}))
    if metadata:
        (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    return answers_of("fiftyone", tmp_path, TWO)


def test_fiftyone_with_embedded_masks(tmp_path):
    values = np.array([[0, 1, 1], [7, 0, 255]], np.uint8)
    label = {"_cls": "Segmentation", "mask": embedded(values)}
    sample = {"filepath": "data/one.png", "ground_truth": label, "tags": []}
    untouched = {"filepath": "data/two.png", "ground_truth": None}
    answers = in_fiftyone(tmp_path, sample, untouched, default_mask_targets={"7": "dog"})
    (answer,) = answers.found
    mask = painted(answer, (2, 3), {"dog": 2})
    np.testing.assert_array_equal(mask, [[0, 1, 1], [2, 0, 255]])
    (tmp_path / "metadata.json").unlink()
    with pytest.raises(InputError, match="holds the value 7, which is not a class of the run"):
        in_fiftyone(tmp_path, sample)


def test_fiftyone_with_masks_in_files(tmp_path):
    (tmp_path / "fields" / "ground_truth").mkdir(parents=True)
    Image.fromarray(np.array([[0, 2]], np.uint8)).save(tmp_path / "fields/ground_truth/one.png")
    label = {"_cls": "Segmentation", "mask_path": "fields/ground_truth/one.png"}
    (answer,) = in_fiftyone(tmp_path, {"filepath": "data/one.png", "ground_truth": label}).found
    np.testing.assert_array_equal(painted(answer, (1, 2), {}), [[0, 2]])
    label["mask_path"] = "/etc/hostname"
    with pytest.raises(InputError, match="names the mask /etc/hostname, which is not in"):
        in_fiftyone(tmp_path, {"filepath": "data/one.png", "ground_truth": label})


def test_fiftyone_with_objects(tmp_path):
    part = np.ones((2, 3), np.bool_)
    one = {"label": "cat", "bounding_box": [0.25, 0.5, 0.375, 1 / 3], "mask": embedded(part)}
    large = {
        "label": "dog",
        "bounding_box": [0, 0, 0.25, 1 / 3],
        "mask": embedded(np.ones((8, 8)) > 0),
    }
    box = {"label": "cat", "bounding_box": [0, 0, 1, 1], "mask": None}
    label = {"_cls": "Detections", "detections": [one, large, box]}
    sample = {
        "filepath": "data/one.png",
        "ground_truth": label,
        "metadata": {"width": 8, "height": 6},
    }
    answers = in_fiftyone(tmp_path, sample)
    expected = np.zeros((6, 8), np.uint8)
    expected[3:5, 2:5] = 1
    expected[0:2, 0:2] = 2
    mask = painted(answers.found[0], (6, 8), {"cat": 1, "dog": 2})
    np.testing.assert_array_equal(mask, expected)
    assert answers.remarks[0].endswith("1 box without a mask (as in data/one.png).")


def test_fiftyone_that_cannot_be_read(tmp_path):
    label = {"_cls": "Segmentation", "mask": embedded(np.zeros((2, 2), np.uint8))}
    sample = {"filepath": "data/one.png", "a": label, "b": label}
    with pytest.raises(InputError, match=r"has the fields a, b with masks; export only one field"):
        in_fiftyone(tmp_path, sample)
    for mask in (
        "AAAA",
        {"$binary": 3},
        embedded(np.zeros((2, 2, 3), np.uint8)),
        embedded(np.zeros(4)),
    ):
        sample = {"filepath": "data/one.png", "a": {"_cls": "Segmentation", "mask": mask}}
        with pytest.raises(InputError, match=r"cannot be read as FiftyOne's samples.json"):
            in_fiftyone(tmp_path, sample)
    (tmp_path / "samples.json").unlink()
    with pytest.raises(InputError, match=r"holds no samples.json and no masks as PNG"):
        answers_of("fiftyone", tmp_path)
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "labels" / "one.png")
    with pytest.raises(InputError, match="holds colours instead of class ids"):
        answers_of("fiftyone", tmp_path)
    Image.new("L", (2, 2), 9).save(tmp_path / "labels" / "one.png")
    with pytest.raises(InputError, match="holds the value 9, which is not a class of the run"):
        answers_of("fiftyone", tmp_path)


# Sources


def test_sources_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there is no such file or folder"):
        Source(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"a.zip is not a zip archive"):
        Source(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", "[" + " " * 100_000 + "]")
    monkeypatch.setattr(source_file, "MOST_BYTES", 50_000)
    with pytest.raises(InputError, match="has more than 0 MiB, which is the limit"):
        Source(tmp_path / "a.zip").read_json("a.json")
    (tmp_path / "b.json").write_text("[" + " " * 100_000 + "]")
    with pytest.raises(InputError, match="has more than 0 MiB, which is the limit"):
        Source(tmp_path / "b.json").read("b.json")
    monkeypatch.setattr(source_file, "MOST_FILES", 1)
    with pytest.raises(InputError, match="holds more than 1 files"):
        Source(tmp_path)
    with pytest.raises(InputError, match="There is no annotation tool 'napari'; take one of cvat"):
        tool_named("napari")


def test_a_damaged_member_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations.json", json.dumps({"images": [], "annotations": []}))
    data = (tmp_path / "a.zip").read_bytes().replace(b'"images"', b'"imagee"')
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match="a.zip cannot be unpacked"):
        answers_of("coco", tmp_path / "a.zip")


def test_everything_of_nothing_is_refused(tool, tmp_path):
    with pytest.raises(InputError, match=r"holds no .*export|holds no JSON"):
        answers_of(tool, tmp_path)


def test_run_lengths_of_other_tools_are_told_apart():
    assert run_lengths(REGION[:2].ravel()) == [0, 1, 8, 1, 6]
    assert coco_rle(REGION[:, :2]) == [0, 1, 6, 1, 4]


def test_what_hands_joined_wrongly_is_refused(tmp_path):
    polygon = {"image_id": 1, "category_id": 0, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    images = [{"id": 1, "file_name": name, "width": 8, "height": 6} for name in ("a.png", "b.png")]
    with pytest.raises(InputError, match=r"the id 1 for a.png and for b.png, as if files were j"):
        in_coco(tmp_path, [polygon], images)
    categories = [{"id": 0, "name": name} for name in ("dog", "cat")]
    with pytest.raises(InputError, match="the id 0 for dog and for cat"):
        in_coco(tmp_path, [polygon], images[:1], categories)
    texts = [{**images[0], "id": "1"}]  # a number here, a text there
    (answer,) = in_coco(tmp_path, [{**polygon, "area": float("nan")}], texts).found
    assert len(answer.layers) == 1
    (tmp_path / "cvat").mkdir()
    (tmp_path / "cvat" / "labelmap.txt").write_text("cat:1,2,3::\ndog:1,2,3::\n")
    with pytest.raises(InputError, match="gives cat and dog the same colour"):
        answers_of("cvat", tmp_path / "cvat", TWO)


def test_a_brush_that_was_erased_is_an_empty_mask(tmp_path):
    answers = in_label_studio(tmp_path, task_of({"result": [brush(np.zeros((6, 8), bool))]}))
    assert not painted(answers.found[0], (6, 8), {"cat": 1}).any()
    outside = shape_of("polygonlabels", (6, 8), points=[[101, 9], [102, 9], [102, 10]])
    outside["value"]["polygonlabels"] = ["cat"]
    answers = in_label_studio(tmp_path, task_of({"result": [outside]}))
    with pytest.raises(NothingDrawnError, match="covers a pixel of it"):
        painted(answers.found[0], (6, 8), {"cat": 1})


def test_what_pandas_makes_of_coco(tmp_path):
    polygon = {"image_id": 70.0, "category_id": 0.0, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    missing = {**polygon, "segmentation": float("nan")}
    (answer,) = in_coco(tmp_path, [polygon, missing]).found
    assert (len(answer.layers), answer.left_out) == (1, 1)
    images = [{"id": 70, "file_name": "a.png"}]
    infinite = {**polygon, "segmentation": [[0, 0, 4, 0, 4, float("inf")]]}
    with pytest.raises(
        InputError, match="cannot be read as COCO's JSON .*a corner is not a number"
    ):
        in_coco(tmp_path, [infinite], images)


def test_corners_beyond_an_image_of_unknown_size_are_of_another_one(tmp_path):
    shape = {"label": "cat", "points": [[2, 2], [20, 2], [20, 30]], "shape_type": "polygon"}
    (answer,) = in_labelme(tmp_path, [shape], imageHeight=None, imageWidth=None).found
    with pytest.raises(InputError, match=r"has corners at \(20, 30\), but .* has 12 x 10 pixels"):
        painted(answer, (10, 12), {"cat": 1})
    assert painted(answer, (28, 18), {"cat": 1}).any()  # a little beyond is common
    (answer,) = in_coco(
        tmp_path,
        [{"image_id": 7, "category_id": 0, "segmentation": [[0, 0, 40, 0, 40, 40]]}],
        [{"id": 7, "file_name": "a.png"}],
    ).found
    with pytest.raises(InputError, match=r"has corners at \(40, 40\)"):
        painted(answer, (10, 12), {"dog": 1})
    data = io.BytesIO()
    Image.new("L", (24, 20)).save(data, format="PNG")
    picture = base64.b64encode(data.getvalue()).decode()
    answers = in_labelme(tmp_path, [shape], imageHeight=None, imageWidth=None, imageData=picture)
    assert answers.found[0].size == (20, 24)


def test_label_studio_says_which_annotations_do_not_count(tmp_path):
    area = {"result": [brush(REGION)]}
    rejected = {**area, "reviews": [{"accepted": True, "id": 1}, {"accepted": False, "id": 2}]}
    answers = in_label_studio(
        tmp_path,
        task_of(rejected, image="one.png"),
        task_of(image="two.png", drafts=[area]),
        task_of({"result": [shape_of("choices", choices=["bad image"])]}, image="three.png"),
        task_of({"result": [shape_of("keypointlabels", x=1, y=1)]}, image="four.png"),
    )
    three, four = answers.found
    assert (three.is_sure, three.left_out, four.left_out) == (False, 0, 1)
    assert answers.remarks[:2] == [
        "Tasks that a reviewer rejected, which count as not answered: 1 (one.png).",
        "Tasks with drafts alone, which were not submitted and count as not answered: 1 (two.png).",
    ]
    two = [brush(REGION), brush(REGION, to_name="other")]
    with pytest.raises(InputError, match=r"regions on several images \(.*other.*\)"):
        in_label_studio(tmp_path, task_of({"result": two}))
    both = brush(REGION)
    both["value"]["brushlabels"] = ["cat", "dog"]
    with pytest.raises(InputError, match="has the labels cat and dog, but a pixel has one class"):
        in_label_studio(tmp_path, task_of({"result": [both]}))


def test_ids_that_look_alike_in_plain_letters_have_checksums():
    names = ImageNames(["月", "山", "a b", "tumor", "0005_tumor", "0004_tumor"])
    assert names.name("a b") == "0003_a_b"
    assert names.name("月").startswith("0001_image-")
    other = ImageNames(["山", "月"])
    assert other.find(names.name("月")) is None  # not the sample of that rank
    written = {f"{names.name('月')}.png": "月"}
    assert ImageNames(["山", "月"], written).find(f"images/{names.name('月')}.png") == "月"
    with pytest.raises(InputError, match="may be 0004_tumor or the task of tumor; put the ids.csv"):
        names.find("0004_tumor.png")
    assert ImageNames(["p1_img1"]).find("data/p1/img1.png") == "p1_img1"
    decomposed, composed = "Gefa\u0308ss", "Gef\u00e4ss"
    assert ImageNames([composed]).find(f"{decomposed}.png") == composed
    assert ImageNames([decomposed]).find(f"{composed}.png") == decomposed
