"""The command `exchange`: the masks of a run or an audit in an annotation tool, and back."""

import json
import shutil

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from coseg_lightning.app.command import CONF
from coseg_lightning.app.exchange_answers import read_answers, write_mask
from coseg_lightning.app.exchange_tasks import as_people_see_it, write_tasks
from coseg_lightning.app.reviewable import Reviewable
from coseg_lightning.audit import audit
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.tools import TOOLS
from coseg_lightning.files.csv import read_table
from coseg_lightning.labels.masks import mask_digest
from coseg_lightning.run import run
from support import CLASSIC, SHORT, command, composed, layer_of

IDS = ["a.b", "ä ö", "λμ", "-dash", "UPPER", "s05", "s06", "s07", "s08", "s09"]
NAMES = ["left lung", "heart"]


def picture(number):
    """An image of its own size, and a mask of two classes with a hole."""
    rng = np.random.default_rng(number)
    height, width = 30 + 3 * number, 52 - 2 * number
    mask = np.zeros((height, width), np.uint8)
    mask[6:20, 5:18] = 1
    mask[9:12, 8:11] = 0
    mask[12:24, 20:30] = 2
    mask[2:4, 2:4] = 1
    image = rng.normal(60, 9, (height, width)) + 50 * mask
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("exchanged") / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number, sample_id in enumerate(IDS):
        image, mask = picture(number)
        if number == 3:
            mask[0, :5] = 255
        mask = np.roll(mask, 5, axis=1) if number % 3 == 0 else mask
        Image.fromarray(image).save(root / "images" / f"{sample_id}.png")
        Image.fromarray(mask).save(root / "masks" / f"{sample_id}.png")
    return root


OPTIONS = ["data.classes=3", "data.in_channels=1", f"data.class_names={NAMES}", "seed=1"]


@pytest.fixture(scope="module")
def finished(folder):
    """A run of some epochs, with proposals for all samples, as its peers may leave them."""
    options = ["data=folder", f"data.root={folder}", *OPTIONS, "nol=0.3", "++method.confidence=0"]
    place = folder.parent / "run"
    run(composed(*CLASSIC, *SHORT, *options), place)
    ids = ranked(place)
    for name in ("proposals", "labels"):
        shutil.rmtree(place / name, ignore_errors=True)
    layer_of(place / "proposals", {i: np.roll(mask_of(folder, i), 2, axis=0) for i in ids})
    # The first was corrected, the second one judged and left as it was.
    labels = {ids[0]: np.roll(mask_of(folder, ids[0]), 4, axis=0), ids[1]: mask_of(folder, ids[1])}
    layer_of(place / "labels", labels)
    summary = json.loads((place / "summary.json").read_text())
    summary["correction"]["layers"] = ["labels"]
    (place / "summary.json").write_text(json.dumps(summary))
    return place


@pytest.fixture(scope="module")
def audited(folder):
    place = folder.parent / "audit"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("audit", [f"data.root={folder}", "training=none", *OPTIONS])
    audit(cfg, place)
    return place


def mask_of(folder, sample_id):
    return np.asarray(Image.open(folder / "masks" / f"{sample_id}.png"))


def digests(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ranked(folder):
    return [row["id"] for row in read_table(folder / "scores.csv")]


def reviewed(out):
    return {row["id"]: row for row in read_table(out / "review.csv")}


def submitted(tasks):
    """Label Studio's export, as if every prediction was submitted as it is."""
    content = json.loads((tasks / "tasks.json").read_text())
    for task in content:
        (prediction,) = task.pop("predictions")
        task["annotations"] = [{**prediction, "completed_by": {"email": "ann@x"}, "id": 1}]
    (tasks / "export.json").write_text(json.dumps(content))
    return tasks / "export.json"


@pytest.mark.parametrize("masks", ["proposal", "given"])
@pytest.mark.parametrize("tool", TOOLS)
def test_masks_come_back_as_they_were_written(finished, tmp_path, tool, masks):
    before = digests(finished)
    count, beginnings = write_tasks(finished, tmp_path / "out", tool, masks=masks)
    ids = ranked(finished)
    assert count == len(ids) == 8
    assert beginnings == {"proposals" if masks == "proposal" else "given masks": 8}
    source = submitted(tmp_path / "out") if tool == "label_studio" else tmp_path / "out"
    result = read_answers(finished, tmp_path / "review", tool, source, masks=masks)
    assert result.answered == result.asked == 8
    expected = dict.fromkeys(ids, "take" if masks == "proposal" else "ok")
    assert result.decisions == expected
    assert list(reviewed(tmp_path / "review")) == ids
    assert not (tmp_path / "review" / "masks").exists()
    assert digests(finished) == before
    if tool != "label_studio":
        assert any("does not record whether somebody looked" in text for text in result.remarks)
        with pytest.raises(InputError, match="answers none of the tasks"):
            read_answers(finished, tmp_path / "no", tool, source, unchanged="skip")
        assert not (tmp_path / "no").exists()
    else:
        assert {row["reviewer"] for row in reviewed(tmp_path / "review").values()} == {"ann@x"}


def test_what_tasks_began_with_is_said_where_it_is_needed(finished, tmp_path):
    """Tools export into another folder, in which nothing says how the tasks began."""
    options = ["to=cvat", "masks=given"]
    result = command("exchange", finished, "tasks", *options, cwd=tmp_path)
    assert "from=cvat source=EXPORT masks=given\n" in result.stdout
    (tmp_path / "export").mkdir()
    shutil.copy(tmp_path / "tasks" / "annotations.xml", tmp_path / "export")
    source = tmp_path / "export" / "annotations.xml"
    with pytest.raises(InputError, match="answers none of the tasks"):
        read_answers(finished, tmp_path / "no", "cvat", source, masks="given", unchanged="skip")


def test_as_a_user_does_it(finished, folder, tmp_path):
    result = command("exchange", finished, "tasks", "to=labelme", "worst=3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "3 tasks for labelme are in tasks: 3 with proposals." in result.stdout
    rows = read_table(tmp_path / "tasks" / "ids.csv")
    worst = ranked(finished)[:3]
    assert [row["id"] for row in rows] == worst
    files = sorted(path.name for path in (tmp_path / "tasks" / "images").glob("*.png"))
    assert files == [row["file"] for row in rows]
    for row in rows:
        image = np.asarray(Image.open(tmp_path / "tasks" / "images" / row["file"]))
        assert image.dtype == np.uint8
        assert image.shape == mask_of(folder, row["id"]).shape
        assert image.min() == 0
        assert image.max() == 255
    labels = (tmp_path / "tasks" / "labels.txt").read_text().splitlines()
    assert labels == [*NAMES, "background", "unlabelled"]
    # One is drawn anew, one is put back as it was, and one is not done.
    drawn = tmp_path / "tasks" / "images" / rows[0]["file"].replace(".png", ".json")
    content = json.loads(drawn.read_text())
    square = [[3, 2], [9, 2], [9, 8], [3, 8]]
    content["shapes"] = [
        {"label": "heart", "points": square, "shape_type": "polygon", "flags": {}, "group_id": 4},
        {"label": "left_lung", "points": [[5, 4], [6, 6]], "shape_type": "rectangle", "flags": {}},
    ]
    content["description"] = "=the rim"
    drawn.write_text(json.dumps(content))
    drawn.with_name(rows[2]["file"].replace(".png", ".json")).unlink()
    (tmp_path / "tasks" / "images" / "ids.csv").write_text("name\nanother table\n")
    options = ["from=labelme", "source=tasks/images"]
    result = command("exchange", finished, "review", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 of 3 tasks were answered: 0 ok, 1 take, 1 redraw.")
    review = reviewed(tmp_path / "review")
    assert {i: row["decision"] for i, row in review.items()} == {
        worst[0]: "redraw",
        worst[1]: "take",
    }
    assert list(review[worst[0]]) == ["id", "decision", "note", "reviewer", "drawn", "proposal"]
    assert review[worst[0]]["note"] == "=the rim"
    (path,) = (tmp_path / "review" / "masks").iterdir()
    assert path.name == f"{worst[0]}.png"
    with Image.open(path) as file:
        assert file.mode == "L"
        mask = np.asarray(file)
    expected = np.zeros_like(mask_of(folder, worst[0]))
    expected[2:8, 3:9] = 2
    expected[4:6, 5:6] = 1
    np.testing.assert_array_equal(mask, expected)


def test_corrections_are_proposals_before_what_the_peers_would_draw(finished, folder, tmp_path):
    reviewable = Reviewable(finished)
    first, second, *_ = reviewable.worst_first
    for sample_id, shift in ((first, 4), (second, 2)):
        given = mask_of(folder, sample_id)
        expected = np.roll(given, shift, axis=0)
        if sample_id == second:  # of the peers, who know nothing of unlabelled pixels
            expected[given == 255] = 255
        np.testing.assert_array_equal(reviewable.proposal(sample_id), expected)
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "proposals")
    _, beginnings = write_tasks(tmp_path / "run", tmp_path / "out", "coco")
    assert beginnings == {"proposals": 1, "given masks": 7}


@pytest.mark.parametrize("tool", ["cvat", "fiftyone"])
def test_an_audit_has_masks_to_review_too(audited, folder, tmp_path, tool):
    count, beginnings = write_tasks(audited, tmp_path / "out", tool, worst=4)
    assert (count, beginnings) == (4, {"given masks": 4})
    result = read_answers(audited, tmp_path / "review", tool, tmp_path / "out")
    worst = ranked(audited)
    assert result.decisions == dict.fromkeys(worst[:4], "ok")
    assert (result.answered, result.asked) == (4, 4)
    # Its data may be somewhere else now.
    shutil.copytree(folder, tmp_path / "moved")
    moved = Reviewable(audited, root=tmp_path / "moved")
    assert moved.worst_first == worst
    assert moved.config.data.root == str(tmp_path / "moved")
    assert mask_digest(moved.mask(worst[0])) == mask_digest(mask_of(folder, worst[0]))
    assert moved.classes.names == ("left lung", "heart")


def in_cvat(tmp_path, *images):
    text = "".join(
        f'<image id="0" name="{name}" width="{width}" height="{height}">{shapes}</image>'
        for name, (height, width), shapes in images
    )
    (tmp_path / "annotations.xml").write_text(f"<annotations>{text}</annotations>", "utf-8")
    return tmp_path / "annotations.xml"


def test_images_without_areas_count_only_if_somebody_says_so(finished, folder, tmp_path):
    ids = ranked(finished)
    box = '<box label="heart" xtl="1" ytl="1" xbr="3" ybr="3"></box>'
    nothing = '<box label="background" xtl="1" ytl="1" xbr="3" ybr="3"></box>'
    images = [
        (f"{i}.png", mask_of(folder, i).shape, shapes)
        for i, shapes in zip(ids[:4], ["", box, "", nothing], strict=True)
    ]
    source = in_cvat(tmp_path, *images)
    result = read_answers(finished, tmp_path / "a", "cvat", source)
    assert result.decisions == {ids[1]: "redraw", ids[3]: "redraw"}
    assert result.sentences()[0] == "2 of 8 tasks were answered: 0 ok, 0 take, 2 redraw."
    assert result.sentences()[1].startswith(
        "2 of the masks are empty and count as not answered; with empty=back"
    )
    result = read_answers(finished, tmp_path / "b", "cvat", source, empty="background")
    assert result.answered == 4
    mask = np.asarray(Image.open(tmp_path / "b" / "masks" / f"{ids[0]}.png"))
    assert mask.shape == mask_of(folder, ids[0]).shape
    assert not mask.any()


def test_answers_that_do_not_belong_to_the_run(finished, folder, tmp_path):
    first = ranked(finished)[0]
    shape = mask_of(folder, first).shape
    box = '<box label="heart" xtl="1" ytl="1" xbr="3" ybr="3"></box>'
    other = box.replace("heart", "left lung")
    for images, message in (
        ([("s99.png", shape, box)], r"for the image 's99.png', which is not in .*run"),
        ([(first, (9, 9), box)], r"has 9 x 9 pixels, but the run's mask has"),
        ([(first, shape, box.replace("heart", "liver"))], r"has the label 'liver'"),
        ([(first, shape, box), (first, shape, other)], "holds 2 different answers"),
        ([(first, shape, "")], "answers none of the tasks"),
    ):
        source = in_cvat(tmp_path, *images)
        with pytest.raises(InputError, match=message):
            read_answers(finished, tmp_path / "out", "cvat", source)
        assert not (tmp_path / "out").exists()
    same = in_cvat(tmp_path, (first, shape, box), (first, shape, box), (first, shape, ""))
    assert read_answers(finished, tmp_path / "out", "cvat", same).decisions == {first: "redraw"}


def test_nothing_is_overwritten_and_nothing_half_is_left(finished, folder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists and is never overwritten"):
        write_tasks(finished, tmp_path / "out", "coco")
    with pytest.raises(InputError, match="into which nothing is written"):
        write_tasks(finished, folder / "masks" / "out", "coco")

    def fail(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr("coseg_lightning.app.exchange_tasks.write_table", fail)
    with pytest.raises(OSError, match="no space"):
        write_tasks(finished, tmp_path / "new", "coco")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give to=TOOL to write tasks, or from=TOOL to read answers"),
        (["to=cvat", "from=cvat"], "Give to=TOOL to write tasks, or from=TOOL"),
        (["to=cvatt"], "There is no annotation tool 'cvatt'; did you mean cvat?"),
        (["from=cvat"], "Give source=FILE, the file or folder that cvat exported"),
        (["from=cvat", "source=none"], "source=none: there is no such file or folder"),
        (["to=cvat", "source=x"], "source=x only works with from=TOOL; leave it out"),
        (
            ["to=cvat", "empty=background"],
            "empty=background only works with from=TOOL; leave it out",
        ),
        (["to=cvat", "masks=mine"], "masks=mine must be proposal or given"),
        (["from=cvat", "source=x", "unchanged=no"], "unchanged=no must be count or skip"),
        (["to=cvat", "worst=0"], "worst=0 must be at least 1"),
        (["to=cvat", "worst=all"], "worst=all must be a int"),
    ],
)
def test_mistakes_end_in_a_sentence(finished, tmp_path, arguments, message):
    result = command("exchange", finished, "out", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_run(finished, audited, tmp_path):
    with pytest.raises(InputError, match="holds no finished run"):
        Reviewable(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="was changed and cannot be read"):
        Reviewable(tmp_path)
    shutil.copytree(audited, tmp_path / "audit")
    scores = tmp_path / "audit" / "scores.csv"
    scores.write_text(scores.read_text().replace("s05", "s55"))
    with pytest.raises(InputError, match="names the sample s55, which is not in the data"):
        Reviewable(tmp_path / "audit")
    scores.unlink()
    with pytest.raises(InputError, match="has no scores.csv, since nothing was ranked"):
        Reviewable(tmp_path / "audit")
    summary = json.loads((audited / "summary.json").read_text())
    summary["config"]["data"]["source"]["_target_"] = "os.system"
    (tmp_path / "audit" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"os.system"):
        Reviewable(tmp_path / "audit")


def test_answers_of_ids_with_slashes_stay_in_the_folder(tmp_path):
    mask = np.array([[0, 300]], np.uint16)
    write_mask(tmp_path / "masks", "a/b.c", mask)
    with Image.open(tmp_path / "masks" / "a" / "b.c.png") as file:
        np.testing.assert_array_equal(np.asarray(file), mask)
    for sample_id in ("../x", "/x", "a//b", "a\\b", ""):
        with pytest.raises(InputError, match="cannot be a file name"):
            write_mask(tmp_path / "masks", sample_id, mask)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_images_of_any_kind_are_shown(bands):
    values = np.random.default_rng(0).normal(3000, 100, (20, 30, bands)).astype(np.float32)
    values[0, 0] = np.nan
    image = as_people_see_it(values[..., 0] if bands == 1 else values, (10, 15))
    assert image.dtype == np.uint8
    assert image.shape == ((10, 15, 3) if bands > 2 else (10, 15))
    assert np.ptp(image) > 100


def test_shapes_without_an_area_do_not_empty_a_mask(finished, folder, tmp_path):
    first, second, *_ = ranked(finished)
    shape = mask_of(folder, first).shape
    box = '<box label="heart" xtl="1" ytl="1" xbr="3" ybr="3"></box>'
    points = '<points label="heart" points="3,3;4,4"></points>'
    source = in_cvat(
        tmp_path, (first, shape, points), (second, mask_of(folder, second).shape, box + points)
    )
    result = read_answers(finished, tmp_path / "out", "cvat", source, empty="background")
    assert list(result.decisions) == [second]
    assert result.remarks == [
        "These parts were left out, since they are not areas of a class: 2 points (as in "
        f"{first}).",
        "Images that count as not answered, since nothing that was drawn on them covers a pixel: "
        f"1 ({first}).",
    ]


def test_255_of_a_tool_is_not_the_foreground_in_silence(finished, folder, tmp_path):
    sample_id = next(i for i in ranked(finished) if 255 not in mask_of(folder, i))
    (tmp_path / "labels").mkdir()
    mask = 255 * (mask_of(folder, sample_id) > 0).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "labels" / f"{sample_id}.png")
    with pytest.raises(InputError, match="holds only 0 and 255, but 255 means unlabelled; save th"):
        read_answers(finished, tmp_path / "out", "fiftyone", tmp_path)


def test_answers_for_images_that_were_not_ranked_are_left_out(finished, folder, tmp_path):
    first, other = ranked(finished)[0], Reviewable(finished).not_ranked[0]
    box = '<box label="heart" xtl="1" ytl="1" xbr="3" ybr="3"></box>'
    images = [(f"{i}.png", mask_of(folder, i).shape, box) for i in (first, other)]
    result = read_answers(finished, tmp_path / "out", "cvat", in_cvat(tmp_path, *images))
    assert list(result.decisions) == [first]
    assert result.remarks[0] == f"Images that the run did not rank were left out: 1 ({other}.png)."
