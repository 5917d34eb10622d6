"""Reading what people say of masks: one or several review.csv, folders and zip files."""

import json
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from coseg_lightning.app.judging import judge
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.labels.review import file_crc, opened_review, unknown_id
from coseg_lightning.methods.review import decided_views
from coseg_lightning.report.review_order import write_review_order
from coseg_lightning.runs.finished import FinishedRun


def written(folder, text="id,decision\n", **masks):
    folder.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (folder / "review.csv").write_text(text, encoding="utf-8")
    for sample_id, mask in masks.items():
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / f"{sample_id}.png")
    return folder


MASK = np.array([[0, 1, 2], [255, 0, 1]], np.uint8)


def test_words_notes_and_reviewers(tmp_path):
    text = 'id,decision,note,reviewer\na,keep,,\nb,Reject,"two, discs",ann\nc,,look again,\n'
    written(tmp_path, text, d=MASK)
    with opened_review(tmp_path) as review:
        assert review.decisions == {"a": "take", "b": "ok", "d": "redraw"}
        assert review.notes == {"b": "two, discs", "c": "look again"}
        assert review.reviewers == {"b": "ann"}
        np.testing.assert_array_equal(review.read("d", np.zeros((2, 3), np.uint8), 3), MASK)
        assert review.to_redraw == set()
        with pytest.raises(InputError, match=r"d.png is 3 x 2 pixels, but the mask of d has 3 x 3"):
            review.read("d", np.zeros((3, 3), np.uint8), 3)
        with pytest.raises(InputError, match=r"d.png has the value 2, but .* 0 to 1, and 255"):
            review.read("d", MASK, 2)


def test_a_mask_of_0_and_255_is_no_mask_of_unlabelled_pixels(tmp_path):
    """As most tools save the foreground; but nothing else is left where it was unlabelled."""
    drawn = np.array([[0, 255, 0]], np.uint8)
    written(tmp_path, d=drawn)
    with opened_review(tmp_path) as review:
        with pytest.raises(InputError, match="holds only 0 and 255, .* save the foreground as 1"):
            review.read("d", np.array([[0, 1, 0]], np.uint8), 2)
        np.testing.assert_array_equal(review.read("d", np.array([[1, 255, 0]]), 2), drawn)


def test_a_mask_of_unlabelled_pixels_alone_is_known_by_who_wrote_it(tmp_path):
    drawn = np.array([[0, 255, 0]], np.uint8)
    written(tmp_path, d=drawn)
    crc = file_crc(tmp_path / "masks" / "d.png")
    (tmp_path / "review.csv").write_text(f"id,decision,drawn\nd,redraw,{crc}\n")
    given = np.array([[0, 1, 0]], np.uint8)
    with opened_review(tmp_path) as review:
        np.testing.assert_array_equal(review.read("d", given, 2), drawn)
    Image.fromarray(np.array([[255, 0, 0]], np.uint8)).save(tmp_path / "masks" / "d.png")
    with (
        opened_review(tmp_path) as review,
        pytest.raises(InputError, match="save the foreground as 1"),
    ):
        review.read("d", given, 2)


@pytest.mark.parametrize("inside", ["", "my review"])
def test_a_zip_file_as_people_make_it(tmp_path, inside):
    written(tmp_path / "all" / inside, "id,decision\na,redraw\nb,redraw\n", a=MASK)
    mac = tmp_path / "all" / "__MACOSX"
    mac.mkdir()
    (mac / "._review.csv").write_text("x")
    archive = shutil.make_archive(str(tmp_path / "review"), "zip", tmp_path / "all")
    with opened_review(archive) as review:
        assert review.to_redraw == {"b"}
        np.testing.assert_array_equal(review.read("a", MASK, 3), MASK)


def test_reviews_of_several_people_are_merged_and_conflicts_are_listed(tmp_path):
    one = written(tmp_path / "1", "id,decision\na,ok\nb,take\nc,redraw\n", c=MASK)
    other = written(tmp_path / "2", "id,decision\na,ok\nd,redraw\n", c=MASK)
    with opened_review([one, other / "review.csv"]) as review:
        assert review.decisions == {"a": "ok", "b": "take", "c": "redraw", "d": "redraw"}
    with opened_review([one, other]):
        pass  # the same mask twice is no conflict
    taken = "id,decision,proposal\nb,take,p12\n"
    fourth = written(tmp_path / "4", taken)
    with opened_review([one, fourth]) as review:
        assert review.taken == {"b": "p12"}  # the first one does not know which it took
    fifth = written(tmp_path / "5", taken.replace("12", "34"))
    with pytest.raises(InputError, match="disagree on 1 mask"), opened_review([fourth, fifth]):
        pass
    third = written(tmp_path / "3", "id,decision\na,redraw\nb,ok\n", c=MASK[::-1])
    message = r"disagree on 3 masks: a \(ok in .*1, redraw in .*3\); b"
    with pytest.raises(InputError, match=message), opened_review([one, other, third]):
        pass


@pytest.mark.parametrize(
    ("text", "masks", "message"),
    [
        (
            "id,decision\na,maybe\n",
            {},
            "has the decision 'maybe' for a; it must be ok, take or redraw",
        ),
        ("id,decision\na,ok\na,ok\n", {}, "names a twice; give one decision for it"),
        (
            "id,decision\na,ok\n",
            {"a": MASK},
            "has the decision ok for a, but also holds a mask drawn",
        ),
        ("id,what\na,ok\n", {}, "has no column decision"),
        (None, {}, "holds neither review.csv nor masks/ID.png"),
    ],
)
def test_what_is_no_review_is_refused(tmp_path, text, masks, message):
    written(tmp_path / "x", text, **masks)
    with pytest.raises(InputError, match=message), opened_review(tmp_path / "x"):
        pass


def test_a_drawn_mask_of_another_format_is_not_passed_over(tmp_path):
    written(tmp_path, "id,decision\na,redraw\n", b=MASK)
    (tmp_path / "masks" / ".DS_Store").write_text("x")
    with opened_review(tmp_path) as review:
        assert review.to_redraw == {"a"}
    Image.fromarray(MASK).save(tmp_path / "masks" / "a.tif")
    message = "holds masks/a.tif, but .* save it as PNG"
    with pytest.raises(InputError, match=message), opened_review(tmp_path):
        pass


@pytest.mark.parametrize(
    "name", ["../review.csv", "masks/../../a.png", "/etc/a", "masks/a/b.png", "run.sh"]
)
def test_a_zip_file_leads_nowhere(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "review.zip", "w") as archive:
        archive.writestr("review.csv", "id,decision\n")
        archive.writestr(name, "x")
    message = "a review.zip may hold only|cannot be a file name"
    with pytest.raises(InputError, match=message), opened_review(tmp_path / "review.zip"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["review.zip"]


def test_a_broken_or_missing_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "review.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("review.csv", "id,decision\n" + "a" * 1000)
    content = bytearray((tmp_path / "review.zip").read_bytes())
    content[45:50] = b"\0\0\0\0\0"
    (tmp_path / "review.zip").write_bytes(content)
    with (
        pytest.raises(InputError, match="cannot be unpacked"),
        opened_review(tmp_path / "review.zip"),
    ):
        pass
    with (
        pytest.raises(InputError, match="no such file or folder"),
        opened_review(tmp_path / "none"),
    ):
        pass


def test_unlabelled_pixels_do_not_go_into_a_mask_of_0_and_255(tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "masks" / "a.png")
    masks = MaskFolder(tmp_path / "masks", classes=2)
    drawn = np.eye(8, dtype=np.uint8)
    drawn[0, 5] = 255
    message = "new mask of a has unlabelled pixels, which a file like .*a.png cannot hold; label"
    with pytest.raises(InputError, match=message):
        masks.write_like("a", tmp_path / "b.png", drawn)


def test_what_is_wrong_in_an_archive_is_named_as_it_is_there(tmp_path):
    archive = tmp_path / "mine.zip"
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0, 0] = 9, 0, 0
    written(tmp_path / "all", "id,decision\na,redraw\n", a=colours)
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path / "all")
    with (
        pytest.raises(InputError, match=r"mine.zip: masks/a.png is a colour picture, .* grey PNG"),
        opened_review(archive) as review,
    ):
        review.read("a", np.zeros((4, 4), np.uint8), 2)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(InputError, match="mine.zip cannot be unpacked"), opened_review(archive):
        pass
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("review.csv", "id,decision\na,ok\n")
        with pytest.warns(UserWarning, match="Duplicate"):
            content.writestr("review.csv", "id,decision\na,take\n")
    with pytest.raises(InputError, match="holds review.csv twice"), opened_review(archive):
        pass


def test_a_review_without_a_decision_is_told(tmp_path, caplog):
    written(tmp_path, "id,decision,note\na,,look\n")
    with opened_review(tmp_path) as review:
        assert review.decisions == {}
    assert "holds no decision, so nothing changes" in caplog.text


def test_a_folder_that_holds_the_saved_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "review.zip", "w") as content:
        content.writestr("review.csv", "id,decision\na,ok\n")
    with opened_review(tmp_path) as review:
        assert review.decisions == {"a": "ok"}


def test_zeros_that_a_spreadsheet_drops():
    assert "write 007 instead, whose zeros" in str(unknown_id("7", ["007", "8"], of="there"))
    assert "give the review of this run" in str(unknown_id("9", ["007", "8"], of="there"))


def test_a_table_does_not_hide_what_lies_beside_it(tmp_path):
    folder = written(tmp_path / "a", "id,decision\na,\n")
    with zipfile.ZipFile(folder / "review.zip", "w") as archive:
        archive.writestr("review.csv", "id,decision\na,ok\n")
    with opened_review(folder) as review:  # the table is blank, as an audit writes it
        assert review.decisions == {"a": "ok"}
    (folder / "review.csv").write_text("id,decision\na,take\n")
    with pytest.raises(InputError, match=r"a review.csv with decisions and a review.zip; keep one"):
        opened_review(folder).__enter__()
    written(folder, "id,decision\n", b=np.eye(4, dtype=np.uint8))
    with pytest.raises(InputError, match=r"holds masks/ID.png and a review.zip; keep one of them"):
        opened_review(folder).__enter__()


def test_a_table_without_the_masks_that_it_names_is_refused(tmp_path):
    table = tmp_path / "review.csv"
    table.write_text("id,decision,drawn\na,redraw,0a0b0c0d\nb,redraw,\n")
    with pytest.raises(InputError, match="masks were drawn for a, which are not in this file"):
        opened_review(table).__enter__()
    with pytest.raises(InputError, match=r"says that masks were drawn for a, which are not in it"):
        opened_review(tmp_path).__enter__()
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(table, "review.csv")
    with pytest.raises(InputError, match=r"b.zip says that masks were drawn for a, which are not"):
        opened_review(tmp_path / "b.zip").__enter__()
    written(tmp_path, None, a=MASK)
    with opened_review(tmp_path) as review:
        assert review.to_redraw == {"b"}
    table.write_text("id,decision,drawn\nb,redraw,\n")
    with opened_review(table) as review:
        assert review.to_redraw == {"b"}


def test_paths_of_windows_in_an_archive(tmp_path):
    mask = written(tmp_path / "a", a=np.eye(4, dtype=np.uint8)) / "masks" / "a.png"
    with zipfile.ZipFile(tmp_path / "review.zip", "w") as archive:
        archive.write(mask, "masks\\a.png")
    with opened_review(tmp_path / "review.zip") as review:
        assert list(review.files) == ["a"]


def test_a_mac_writes_names_in_utf_8_without_saying_so(tmp_path):
    mask = written(tmp_path / "a", s=np.eye(4, dtype=np.uint8)) / "masks" / "s.png"
    with zipfile.ZipFile(tmp_path / "review.zip", "w") as archive:
        archive.writestr("review.csv", "id,decision\n\u00e4,redraw\n")
        archive.write(mask, "masks/aXY.png")
    data = (tmp_path / "review.zip").read_bytes().replace(b"aXY", "a\u0308".encode())
    (tmp_path / "review.zip").write_bytes(data)
    with opened_review(tmp_path / "review.zip") as review:
        assert list(review.files) == ["\u00e4"]


def test_blanks_around_a_name_are_seen():
    message = str(unknown_id(" a", ["a"], of="a mask of the run"))
    assert message.startswith("The review names ' a', which is not")


def finished_run(folder, scores, **config):
    folder.mkdir()
    summary = {"config": config, "correction": {"layers": []}}
    (folder / "summary.json").write_text(json.dumps(summary))
    rows = [f"{sample_id},{score},0.9,0.0" for sample_id, score in scores.items()]
    text = "\n".join(["id,score,prediction_dice,excess", *rows, ""])
    (folder / "scores.csv").write_text(text)
    return folder


def test_each_decision_is_on_the_mask_that_was_seen(tmp_path):
    first = finished_run(tmp_path / "run", dict.fromkeys("abcd", 3.0))
    decided = {"a": "take", "b": "ok"}
    second = finished_run(
        tmp_path / "again",
        dict.fromkeys("abcd", 0.5),
        reviewed_run=str(first),
        review=decided,
    )
    # The second review keeps the first decision on a, changes that on b, and decides on c.
    views = decided_views(FinishedRun(second), {"a": "take", "b": "redraw", "c": "redraw"})
    scores = {sample_id: score for sample_id, (score, _, _) in views.items()}
    assert scores == {"a": 3.0, "b": 0.5, "c": 0.5}


def test_mended_masks_that_were_ranked_again_do_not_look_like_bad_ones(tmp_path):
    rng = np.random.default_rng(0)
    before = {f"s{n:02}": rng.normal(4 * (n < 24)) for n in range(80)}  # 30 % are bad
    decided = {f"s{n:02}": "redraw" if n < 24 else "ok" for n in (*range(12), *range(24, 32))}
    after = {i: rng.normal() if decided.get(i) == "redraw" else s for i, s in before.items()}
    run = finished_run(tmp_path / "run", before)
    again = finished_run(tmp_path / "again", after)
    masks = SimpleNamespace(mask=lambda index: np.eye(4, dtype=np.uint8))
    samples = SimpleNamespace(ids=list(before), dataset=masks)
    views = decided_views(FinishedRun(run), decided)
    found = write_review_order(again, samples, {}, 0.3, decided, decided_on=views)
    assert found.interval[0] <= 0.3 <= found.interval[1] < 0.6
    (again / "review_order.csv").unlink()
    assert write_review_order(again, samples, {}, 0.3, decided).noise_level > 0.6
    path = again / "summary.json"  # a second review may repeat the decisions of the first
    summary = json.loads(path.read_text()) | {"ranking": {"noise_level": 0.3}}
    summary["config"] = {"reviewed_run": str(run), "review": decided}
    path.write_text(json.dumps(summary))
    rows = [f"{sample_id},{decision}" for sample_id, decision in decided.items()]
    (again / "mine.csv").write_text("\n".join(["id,decision", *rows, ""]))
    judge(again / "mine.csv")
    told = json.loads((again / "noise_level.json").read_text())
    assert told["interval"] == list(found.interval)
