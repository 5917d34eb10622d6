"""The workbench, in a real browser."""

import base64
import io
import json
import re
import subprocess
import sys
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.labels.review import opened_review, proposal_digest
from coseg_lightning.report import payload
from coseg_lightning.report.payload import compared, mask_text, safe_json
from coseg_lightning.report.workbench import add_workbench, write_review_page

HOSTILE = [
    "=1+1",
    "</script><b>&amp;",
    'a "quoted", one',
    "it's",
    "Übung\u2028 日本",
    "-2",
    "folder/one",
    "__proto__",
]
SIZE = (60, 80)  # of the masks


class Pairs:
    """Samples with a proposal each, whose images are twice as large as their masks."""

    def __init__(self, ids, *, side=1):
        self.ids, self.truth = list(ids), None
        self.dataset, self.side = self, side

    def image(self, index):
        height, width = (2 * self.side * length for length in SIZE)
        rows = np.linspace(0, 4000, height)[:, None] + np.linspace(0, 50 * index, width)
        return rows.astype(np.uint16)  # 12 bits

    def mask(self, index):
        mask = np.zeros(SIZE, np.uint8)
        mask[10 + index % 3 : 40, 10:50] = 1
        mask[20:30, 30:60] = 2
        mask[:4] = 255
        return mask

    def proposals(self, without=()):
        wanted = {n: sample_id for n, sample_id in enumerate(self.ids) if sample_id not in without}
        return {sample_id: np.roll(self.mask(n), 3, axis=1) for n, sample_id in wanted.items()}


def rows_of(ids, **more):
    columns = {name: dict(zip(ids, values, strict=True)) for name, values in more.items()}
    return [
        {"id": sample_id, "rank": n + 1, **{k: values[sample_id] for k, values in columns.items()}}
        for n, sample_id in enumerate(ids)
    ]


def write(folder, ids, without=(), **more):
    samples = Pairs(ids)
    return write_review_page(
        folder, samples, rows_of(ids, **more), samples.proposals(without), ["lung", "heart"]
    )


IDS = [f"s{n}" for n in range(6)]


@pytest.fixture
def opened(browser):
    """Open pages from disk in one browser profile; any complaint of it fails the test."""
    complaints, context = [], browser.new_context(viewport={"width": 1200, "height": 800})

    def open_page(path, *, script=None, size=None):
        page = context.new_page()
        if size:
            page.set_viewport_size({"width": size[0], "height": size[1]})
        if script:
            page.add_init_script(script)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url) if request.url.startswith("http") else None
            ),
        )
        page.goto(path.as_uri())
        wait(page)
        return page

    open_page.complaints, open_page.expected = complaints, None
    yield open_page
    context.close()
    expected = open_page.expected
    assert [text for text in complaints if expected is None or expected not in text] == []


def wait(page):
    """Wait until nothing is loading."""
    page.locator("#bench-stage[aria-busy=false]").wait_for()
    page.locator("#bench-message").wait_for(state="hidden")


def name(page):
    return page.locator("#bench-name").text_content()


def state(page):
    return page.locator("#bench-state").text_content()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        wait(page)


def saved(page, tmp_path, button="Save review.zip"):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def contents(path, folder):
    """The table's rows and the masks of a review.zip."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
        names = archive.namelist()
    masks = {}
    for member in names:
        if member.startswith("masks/"):
            image = Image.open(folder / member)
            assert image.mode == "L"
            masks[member[6:-4]] = np.array(image)
    return read_table(folder / "review.csv", ["id", "decision"]), masks


class Place:
    """Where pixels of the mask lie on the screen, while the sample fits into the view."""

    def __init__(self, page, zoom=1.0):
        self.box = page.locator("#bench-stage").bounding_box()
        self.scale = zoom * 0.98 * min(self.box["width"] / SIZE[1], self.box["height"] / SIZE[0])

    def screen(self, x, y):
        left, top = (self.box[k] + self.box[n] / 2 for k, n in (("x", "width"), ("y", "height")))
        return (
            round(left + (x - SIZE[1] / 2) * self.scale),
            round(top + (y - SIZE[0] / 2) * self.scale),
        )

    def mask(self, x, y):
        """Return the place in the mask that a place on the screen is."""
        return (
            (x - self.box["x"] - self.box["width"] / 2) / self.scale + SIZE[1] / 2,
            (y - self.box["y"] - self.box["height"] / 2) / self.scale + SIZE[0] / 2,
        )


def stroke(page, place, start, end):
    """Draw a line with the mouse, and return its ends in the mask."""
    ends = [place.screen(*point) for point in (start, end)]
    page.mouse.move(*ends[0])
    page.mouse.down()
    page.mouse.move(*ends[1])
    page.mouse.up()
    return [place.mask(*point) for point in ends]


def with_line(mask, start, end, size, value):
    """Set what lies within half a size of a line."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    (x0, y0), (x1, y1) = start, end
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = (((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length).clip(0, 1)
    distance = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    return np.where(distance <= size / 2, value, mask).astype(np.uint8)


# What the page gets


def test_the_workbench_needs_no_torch():
    code = "import coseg_lightning.report.workbench, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_json_ends_no_script_element():
    text = safe_json(HOSTILE)
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == HOSTILE


def test_the_share_of_the_marked_area_that_differs():
    given, proposal = np.zeros((2, 10, 10), np.uint8)
    given[:4, :5] = 1
    proposal[:4, :5] = 1
    proposal[0, :5] = 2
    given[9] = 255  # says nothing
    assert compared(given, proposal) == (5 / 20, [1, 2])
    assert compared(given, None) == (0.0, [1])


def test_parts_that_do_not_fit_into_the_page_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(payload, "PART_CHARACTERS", 1)  # a part for each sample
    monkeypatch.setattr(payload, "MAX_CHARACTERS", 1)
    samples = Pairs(IDS)
    bench = add_workbench(tmp_path, samples, rows_of(IDS), samples.proposals())
    assert bench["inside"] == []
    assert bench["limit"] is None
    files = sorted(path.name for path in (tmp_path / "review").iterdir())
    assert files == [f"part-{n:04d}.js" for n in range(1, 7)]
    size = (tmp_path / "review" / files[0]).stat().st_size
    monkeypatch.setattr(payload, "MAX_BYTES", 3 * size)
    bench = add_workbench(tmp_path, samples, rows_of(IDS), samples.proposals())
    assert 2 <= bench["files"] < 6
    assert bench["without"] == 6 - bench["files"]
    assert len(list((tmp_path / "review").iterdir())) == bench["files"]  # no old ones are left


def test_the_order_is_that_of_the_expected_gain_if_it_is_known(tmp_path):
    rows = rows_of(IDS, order=[3, 1, "", 2, 5, 4])
    index = json.loads(add_workbench(tmp_path, None, rows, {})["index"])
    assert index["ids"] == ["s1", "s3", "s0", "s5", "s4", "s2"]


def test_wide_masks_are_16_bits():
    mask = np.array([[0, 300], [255, 65535]], np.uint16)
    png = base64.b64decode(mask_text(mask))
    read = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (read == mask).all()
    assert Image.open(io.BytesIO(base64.b64decode(mask_text(mask % 256)))).mode == "L"


# In a browser


@pytest.mark.slow
def test_a_sample_opens_large_and_is_looked_at_by_keys(opened, tmp_path):
    page = opened(write(tmp_path, IDS, without=["s1"]))
    assert name(page) == "s0"
    box = page.locator("#bench-stage").bounding_box()
    assert box["width"] > 800
    assert box["height"] > 400
    pictures = {}
    for key, view in enumerate(["Given", "Proposal", "Difference", "Side by side", "Image"], 1):
        press(page, str(key + (key > 2)))
        button = page.get_by_role("button", name=view, exact=True)
        assert button.get_attribute("aria-pressed") == "true"
        page.wait_for_timeout(50)
        pictures[view] = page.locator("#bench-stage").screenshot()
    assert len(set(pictures.values())) == 5
    press(page, "n")
    assert name(page) == "s1"
    for view in ("Proposal", "Difference"):  # there is none
        assert page.get_by_role("button", name=view, exact=True).is_disabled()
    assert page.locator("[data-decision=take]").is_disabled()
    press(page, "t")
    assert name(page) == "s1"
    assert "no proposal" in page.locator("#bench-status").text_content()
    press(page, "n")
    assert page.locator("#bench-status").text_content() == ""  # it was said of another sample


@pytest.mark.slow
def test_the_image_is_shown_in_its_own_resolution(opened, tmp_path):
    page = opened(write(tmp_path, IDS[:1]))
    sizes = page.evaluate(
        """async () => {
          const image = new Image();
          image.src = JSON.parse(document.getElementById("bench-part-0").textContent).s0.image;
          await image.decode();
          return [image.naturalHeight, image.naturalWidth];
        }"""
    )
    assert sizes == [2 * length for length in SIZE]


@pytest.mark.slow
def test_a_painted_mask_is_saved_to_the_pixel(opened, tmp_path):
    page = opened(write(tmp_path, IDS))
    press(page, "m")
    place = Place(page)
    given = Pairs(IDS).mask(0)
    assert state(page) == "undecided"  # until something is drawn
    ends = stroke(page, place, (15.2, 45.3), (65.7, 52.1))
    expected = with_line(given, *ends, 9, 1)
    assert state(page) == "decided: redraw, with a drawn mask"
    page.locator("#bench-class").select_option("heart")
    page.locator("#bench-size").fill("3")
    ends = stroke(page, place, (70.1, 10.2), (70.3, 50.9))
    expected = with_line(expected, *ends, 3, 2)
    press(page, "e")
    ends = stroke(page, place, (5.3, 1.4), (40.2, 2.9))  # over what is unlabelled
    expected = with_line(expected, *ends, 3, 0)
    press(page, "Enter", "n", "o")
    rows, masks = contents(saved(page, tmp_path), tmp_path / "out")
    decisions = {row["id"]: row["decision"] for row in rows}
    assert decisions == {"s0": "redraw", "s1": "ok"}
    assert list(masks) == ["s0"]
    np.testing.assert_array_equal(masks["s0"], expected)
    assert (masks["s0"] == 255).sum() > 200


@pytest.mark.slow
@pytest.mark.parametrize("compresses", [True, False])
def test_polygon_fill_and_undo(opened, tmp_path, compresses):
    without = "delete window.CompressionStream; delete window.DecompressionStream"
    page = opened(write(tmp_path, IDS[:2]), script=None if compresses else without)
    press(page, "2", "m", "l")  # from the proposal
    place = Place(page)
    given = Pairs(IDS).proposals()["s0"]
    for corner in ((20, 44), (40, 44), (40, 56), (20, 56)):
        page.mouse.click(*place.screen(*corner))
    press(page, "Enter")
    box = np.s_[44:56, 20:40]
    expected = given.copy()
    expected[box] = 1
    press(page, "k")
    page.locator("#bench-class").select_option("unlabelled")
    page.mouse.click(*place.screen(30.5, 50.5))
    expected[box] = 255
    page.mouse.click(*place.screen(75.5, 58.5))  # the background, to be undone
    rows, masks = contents(saved(page, tmp_path), tmp_path / "before")
    assert (masks["s0"] == 0).sum() < (expected == 0).sum() / 2
    press(page, "z")
    rows, masks = contents(saved(page, tmp_path), tmp_path / "out")
    assert [row["decision"] for row in rows] == ["redraw"]
    np.testing.assert_array_equal(masks["s0"], expected)
    press(page, "z", "z")
    assert state(page) == "undecided"
    rows, masks = contents(saved(page, tmp_path), tmp_path / "undone")
    assert (rows, masks) == ([], {})
    press(page, "y", "Control+Shift+Z")
    rows, masks = contents(saved(page, tmp_path), tmp_path / "redone")
    np.testing.assert_array_equal(masks["s0"], expected)


@pytest.mark.slow
def test_zoom_and_pan(opened, tmp_path):
    page = opened(write(tmp_path, IDS[:1]))
    press(page, "m", "[", "[", "[", "[")
    press(page, "+")
    place = Place(page, zoom=1.4)
    page.mouse.click(*place.screen(50.5, 20.5))
    expected = Pairs(IDS).mask(0)
    expected[20, 50] = 1
    _, masks = contents(saved(page, tmp_path), tmp_path / "a")
    np.testing.assert_array_equal(masks["s0"], expected)
    # The wheel keeps what is under the mouse.
    x, y = place.screen(50.5, 35.5)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.mouse.click(x, y)
    expected[35, 50] = 1
    _, masks = contents(saved(page, tmp_path), tmp_path / "b")
    np.testing.assert_array_equal(masks["s0"], expected)
    page.keyboard.down("Shift")  # move the picture by ten pixels of the mask
    page.mouse.down()
    scale = place.scale * np.exp(300 / 400)
    page.mouse.move(x + round(10 * scale), y)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.mouse.click(x, y)
    expected[35, 40] = 1
    _, masks = contents(saved(page, tmp_path), tmp_path / "c")
    np.testing.assert_array_equal(masks["s0"], expected)


@pytest.mark.slow
def test_two_fingers_zoom_and_draw_nothing(browser, tmp_path):
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True)
    page = context.new_page()
    page.goto(write(tmp_path, IDS[:1]).as_uri())
    wait(page)
    press(page, "m")
    box = page.locator("#bench-stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = context.new_cdp_session(page)

    def fingers(kind, *places):
        points = [{"x": at, "y": y, "id": n} for n, at in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = page.locator("#bench-stage").screenshot()
    fingers("touchStart", x - 20)
    fingers("touchMove", x - 22)
    fingers("touchStart", x - 22, x + 20)
    fingers("touchMove", x - 80, x + 80)
    fingers("touchEnd")
    page.wait_for_timeout(100)
    assert state(page) == "undecided"
    assert page.locator("#bench-stage").screenshot() != before
    for tool in ("k", "l"):  # fill, and the corners of a polygon
        press(page, tool)
        for place in (x - 60, x - 20, x + 20):
            fingers("touchStart", place)
            fingers("touchStart", place, place + 40)
            fingers("touchEnd")
            fingers("touchStart", place)
            fingers("touchMove", place + 60)  # moves the view
            fingers("touchEnd")
        page.wait_for_timeout(100)
        assert state(page) == "undecided"
    press(page, "Enter")  # would close a polygon, and ends mending
    assert state(page) == "undecided"
    press(page, "0", "m", "k", "c")
    fingers("touchStart", x)
    fingers("touchEnd")
    page.wait_for_timeout(100)
    assert state(page) == "decided: redraw, with a drawn mask"
    context.close()


@pytest.mark.slow
def test_the_view_follows_a_tool_that_is_moved_by_keys(opened, tmp_path):
    page = opened(write(tmp_path, IDS))
    press(page, "m", *8 * "+", *30 * ["ArrowRight"], *12 * ["ArrowUp"])
    before = page.locator("#bench-stage").screenshot()
    press(page, "Space")
    assert page.locator("#bench-stage").screenshot() != before  # what it paints is seen


@pytest.mark.slow
def test_closing_loses_nothing_and_the_review_goes_on_at_the_first_undecided(opened, tmp_path):
    path = write(tmp_path, IDS)
    page = opened(path)
    press(page, "o", "t")
    press(page, "m")
    ends = stroke(page, Place(page), (15.2, 45.3), (65.7, 52.1))
    press(page, "Enter", "i")
    page.keyboard.type("=cmd, a 'note'\nof \"two\" lines")
    press(page, "Escape")
    page.wait_for_timeout(300)
    page.close()
    page = opened(path)
    assert name(page) == "s3"
    assert page.locator("#bench-progress").text_content().startswith("3 of 6")
    press(page, "p", "p", "p", "n", "n", "n", "n")  # steps decide nothing
    rows, masks = contents(saved(page, tmp_path), tmp_path / "out")
    assert [(row["id"], row["decision"]) for row in rows] == [
        ("s0", "ok"),
        ("s1", "take"),
        ("s2", "redraw"),
    ]
    assert rows[2]["note"] == "=cmd, a 'note'\nof \"two\" lines"
    expected = with_line(Pairs(IDS).mask(2), *ends, 9, 1)
    np.testing.assert_array_equal(masks["s2"], expected)
    press(page, "o", "z")
    assert name(page) == "s4"
    assert state(page) == "undecided"


@pytest.mark.slow
def test_two_tabs_have_the_same_drawings(opened, tmp_path):
    path = write(tmp_path, IDS)
    one, other = opened(path), opened(path)
    one.bring_to_front()
    press(one, "m")
    expected = with_line(
        Pairs(IDS).mask(0), *stroke(one, Place(one), (15.2, 45.3), (65.7, 52.1)), 9, 1
    )
    other.bring_to_front()
    other.locator("#bench-state", has_text="redraw, with a drawn mask").wait_for()
    _, masks = contents(saved(other, tmp_path), tmp_path / "other")
    np.testing.assert_array_equal(masks["s0"], expected)
    press(other, "m")  # goes on from that drawing
    ends = stroke(other, Place(other), (15.2, 15.3), (65.7, 12.1))
    both = with_line(expected, *ends, 9, 1)
    press(other, "Enter")
    _, masks = contents(saved(other, tmp_path), tmp_path / "both")
    np.testing.assert_array_equal(masks["s0"], both)
    one.bring_to_front()
    one.get_by_text("s0 was drawn in another tab too").wait_for()
    _, masks = contents(saved(one, tmp_path), tmp_path / "one")
    np.testing.assert_array_equal(masks["s0"], both)
    press(one, "z")
    _, masks = contents(saved(one, tmp_path), tmp_path / "undone")
    np.testing.assert_array_equal(masks["s0"], expected)
    one.get_by_role("button", name="Discard drawing").click()
    other.bring_to_front()
    other.locator("#bench-state", has_text="undecided").wait_for()
    other.locator("[data-view=drawn]:disabled").wait_for()


@pytest.mark.slow
def test_a_saved_review_has_what_no_tab_was_told_of(opened, tmp_path):
    path = write(tmp_path, IDS)
    deaf = """
        addEventListener("storage", (event) => event.stopImmediatePropagation(), true);
    """
    one, other = opened(path), opened(path, script=deaf)
    one.bring_to_front()
    press(one, "m", "Space", "Enter")
    saved(one, tmp_path)  # the drawing is kept
    other.bring_to_front()
    assert state(other) == "undecided"
    rows, masks = contents(saved(other, tmp_path), tmp_path / "out")
    assert [(row["id"], row["decision"]) for row in rows] == [("s0", "redraw")]
    assert list(masks) == ["s0"]


@pytest.mark.slow
def test_a_browser_that_keeps_nothing_is_told_of(opened, tmp_path):
    refuse = """
        for (const name of ["localStorage", "indexedDB"])
            Object.defineProperty(window, name, { get() { throw new Error("refused"); } });
    """
    page = opened(write(tmp_path, IDS), script=refuse)
    assert "does not keep the review" in page.locator("#bench-status").text_content()
    press(page, "o", "m")
    stroke(page, Place(page), (15.2, 45.3), (65.7, 52.1))
    rows, masks = contents(saved(page, tmp_path), tmp_path / "out")
    assert [row["decision"] for row in rows] == ["ok", "redraw"]
    assert list(masks) == ["s1"]


@pytest.mark.slow
def test_decisions_of_the_first_version_go_on_being_read(opened, tmp_path):
    path = write_review_page(tmp_path, Pairs(IDS), rows_of(IDS), Pairs(IDS).proposals(), key="abc")
    stored = json.dumps({"s0": "keep", "s1": "reject", "s2": "redraw", "gone": "keep"})
    page = opened(path, script=f"localStorage.setItem('coseg review abc', {json.dumps(stored)})")
    rows = read_table(saved(page, tmp_path, "Save review.csv"))
    assert [row["decision"] for row in rows] == ["take", "ok", "redraw"]


@pytest.mark.slow
def test_what_others_took_is_not_said_to_be_of_this_page(opened, tmp_path):
    own = proposal_digest(Pairs(IDS).proposals()["s1"])
    (tmp_path / "ann.csv").write_text(f"id,decision,proposal\ns0,take,\ns1,take,{own}\n")
    page = opened(write(tmp_path, IDS))
    page.locator("#bench-files").set_input_files([tmp_path / "ann.csv"])
    page.get_by_text("ann.csv: 2 added").wait_for()
    rows = read_table(saved(page, tmp_path, "Save review.csv"))
    assert [row["proposal"] for row in rows] == ["", own]  # it is not known what s0 was


@pytest.mark.slow
def test_reviews_of_others_are_merged_and_conflicts_settled(opened, tmp_path):
    path = write(tmp_path, IDS)
    anna = tmp_path / "anna.csv"
    anna.write_text(
        "id,decision,note,reviewer\ns0,ok,,Anna\ns1,take,clear,Anna\ns2,reject,,Anna\n"
        "s4,redraw,,Anna\nother,ok,,Anna\n's5,ok,,\n"
    )
    drawn = np.full(SIZE, 2, np.uint8)
    Image.fromarray(drawn).save(tmp_path / "m.png")
    with zipfile.ZipFile(tmp_path / "ben.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("review.csv", "id,decision\ns0,ok\ns1,redraw\ns2,keep\n")
        archive.write(tmp_path / "m.png", "masks/s1.png")
        archive.write(tmp_path / "m.png", "masks/s3.png")  # without a line
        archive.writestr("masks/s5.png", "damaged")
    page = opened(path)
    page.locator("#bench-files").set_input_files([anna, tmp_path / "ben.zip"])
    page.get_by_text(
        "ben.zip: 1 added, 1 the same, 2 in conflict, 1 left out: s5 (the mask is not a PNG file)."
    ).wait_for()
    told = page.locator("#bench-status").text_content()
    assert "anna.csv: 4 added, 0 the same, 0 in conflict, 2 left out: other, 's5 (not on" in told
    conflicts = page.locator("#bench-conflict-list li")
    assert conflicts.all_text_contents() == [
        "s1 Anna: take (clear) · ben: redraw",
        "s2 Anna: ok · ben: take",
    ]
    page.locator("[data-filter=decision]").select_option("conflicts")
    wait(page)
    assert name(page) == "s1"
    rows, masks = contents(saved(page, tmp_path), tmp_path / "open")
    assert {row["id"]: row["decision"] for row in rows if row["decision"]} == {
        "s0": "ok", "s3": "redraw", "s4": "redraw",
    }  # fmt: skip
    assert "2 conflicts are not settled" in page.locator("#bench-status").text_content()
    page.get_by_role("button", name="ben: redraw").click()
    page.locator("#bench-name", has_text="s2").wait_for()
    wait(page)
    press(page, "o")  # a decision of one's own settles it too
    rows, masks = contents(saved(page, tmp_path), tmp_path / "settled")
    settled = {row["id"]: (row["decision"], row["note"], row["reviewer"]) for row in rows}
    assert settled["s1"] == ("redraw", "clear", "ben")
    assert settled["s2"] == ("ok", "", "")
    assert settled["s0"] == ("ok", "", "Anna")
    assert sorted(masks) == ["s1", "s3"]
    np.testing.assert_array_equal(masks["s1"], drawn)


@pytest.mark.slow
def test_a_file_that_is_no_review_is_told_of(opened, tmp_path):
    (tmp_path / "bad.csv").write_text("name,value\na,b\n")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    page = opened(write(tmp_path, IDS))
    page.locator("#bench-files").set_input_files([tmp_path / "bad.csv", tmp_path / "bad.zip"])
    page.get_by_text("bad.zip cannot be read").wait_for()
    assert "bad.csv cannot be read: it has no column id" in page.content()


def png(mask):
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


# What `coseg apply` says of each review, and what the page does.
MASK = np.where(np.arange(SIZE[0])[:, None] < 20, np.full(SIZE, 2, np.uint8), 0).astype(np.uint8)
ADDED = "1 added, 0 the same, 0 in conflict"
NONE = "0 added, 0 the same, 0 in conflict, 1 left out: s0"
WHITE = MASK // 2 * 255
PROPOSED = Pairs(["s0"]).proposals()["s0"]
BY_A_PAGE = f"id,decision,drawn\ns0,redraw,{zlib.crc32(png(WHITE)):08x}\n"
SMALL, COLOURED = MASK[:, :40], np.stack([MASK, MASK, 0 * MASK], -1)
TABLES = {
    "semicolons": (b"\xef\xbb\xbfid;decision;note\r\ns0;Redraw ;too large\r\n;;\r\n", ADDED),
    "tabs": (b"decision\tid\r\nok\ts0\r\n", ADDED),
    "quoted": (b'id,decision,note\r\ns0,ok,"a ""b"",\r\nc"', ADDED),
    "returns": (b"id,decision\rs0,ok\r", ADDED),
    "empty": (b"", "it has no column id"),
    "capitals": (b"ID,decision\ns0,ok\n", "it has no column id"),
    "Excel's line": (b"sep=;\r\nid;decision\r\ns0;ok\r\n", ADDED),
    "a comma in a name": (b"id;decision;note, if any\ns0;ok;\n", ADDED),
    "twice": (b"id,decision\ns0,ok\ns0,ok\n", "it names s0 twice"),
    "short": (b"id,decision,note\n\ns0,ok\n", "it has 2 cells in line 3, but 3 columns"),
    "open": (b'id,decision\ns0,"ok\n', "it is not a table"),
    "unquoted": (b'id,decision\ns0,"o"k\n', "it is not a table"),
    "this page's": (f"id,decision,proposal\ns0,take,{proposal_digest(PROPOSED)}\n".encode(), ADDED),
    "another's": (
        f"id,decision,proposal\ns0,take,{proposal_digest(PROPOSED.T)}\n".encode(),
        f"{NONE} (it takes a proposal that is not this page's)",
    ),
    "undrawn": (
        b"id,decision,drawn\ns0,redraw,0a0b0c0d\n",
        f"{NONE} (the mask that was drawn is not in the file",
    ),
    "latin": (b"id,decision,note\ns0,ok,\xfc\n", "it is not a table"),
    "unknown": (b"id,decision\ns0,good\n", f"{NONE} (the decision must be ok, take or redraw)"),
}
ARCHIVES = {
    "plain": ({"masks/s0.png": MASK}, ADDED),
    "folder": (
        {"my/review.csv": "s0,redraw", "my/masks/s0.png": MASK, "__MACOSX/my/._x": ""},
        ADDED,
    ),
    "undecided": ({"review.csv": "s0,", "masks/s0.png": MASK}, ADDED),
    "grey": ({"masks/s0.png": np.stack([MASK] * 3, -1)}, ADDED),
    "windows": ({"my\\review.csv": "s0,redraw", "my\\masks\\s0.png": MASK}, ADDED),
    "opaque": ({"masks/s0.png": np.stack([MASK] * 3 + [255 + 0 * MASK], -1)}, ADDED),
    "size": ({"masks/s0.png": SMALL}, f"{NONE} (the mask is 40 x 60 pixels, but must be 80 x 60)"),
    "colours": ({"masks/s0.png": COLOURED}, f"{NONE} (the mask is a colour picture"),
    "values": ({"masks/s0.png": MASK + 1}, f"{NONE} (the mask has the value 3"),
    "unlabelled": ({"review.csv": BY_A_PAGE, "masks/s0.png": WHITE}, ADDED),
    "white": ({"masks/s0.png": WHITE}, f"{NONE} (the mask holds only 0 and 255"),
    "ok": ({"review.csv": "s0,ok", "masks/s0.png": MASK}, f"{NONE} (the decision is ok, but a"),
    "outside": ({"review.csv": "s0,redraw", "../masks/s0.png": MASK}, "it holds ../masks/s0.png"),
    "deeper": ({"review.csv": "s0,redraw", "masks/a/s0.png": MASK}, "it holds masks/a/s0.png"),
    "PNG": ({"review.csv": "s0,redraw", "masks/s0.PNG": MASK}, "it holds masks/s0.PNG"),
    "nothing": ({".DS_Store": ""}, "it holds neither review.csv nor masks/ID.png"),
}


def write_reviews(folder):
    """Write the reviews above, and return what the page must say of each."""
    folder.mkdir()
    told = {}
    for stem, (content, text) in TABLES.items():
        (folder / f"{stem}.csv").write_bytes(content)
        told[folder / f"{stem}.csv"] = text
    for stem, (files, text) in ARCHIVES.items():
        with zipfile.ZipFile(folder / f"{stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in files.items():
                if isinstance(content, np.ndarray):
                    content = png(content)
                elif not content.startswith("id,"):
                    content = f"id,decision\n{content}\n"
                archive.writestr(member, content)
        told[folder / f"{stem}.zip"] = text
    return told


def read_by_the_package(path):
    """Open and read a review as `coseg apply` does; whether it is accepted."""
    try:
        with opened_review(path) as review:
            for sample_id in review.files:
                review.read(sample_id, Pairs(IDS).mask(0), 3)
            for sample_id in review.taken:
                review.check_taken(sample_id, PROPOSED)
    except InputError:
        return False
    return True


@pytest.mark.slow
def test_each_drawing_of_one_name_is_a_side_of_the_conflict(opened, tmp_path):
    reviews = []
    for number in range(3):
        mask = np.zeros(SIZE, np.uint8)
        mask[number * 4 : number * 4 + 8] = 1
        Image.fromarray(mask).save(tmp_path / "m.png")
        reviews.append(tmp_path / str(number) / "review.zip")
        reviews[-1].parent.mkdir()
        with zipfile.ZipFile(reviews[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("review.csv", "id,decision\ns1,redraw\n")
            archive.write(tmp_path / "m.png", "masks/s1.png")
    page = opened(write(tmp_path, IDS))
    page.locator("#bench-files").set_input_files([*reviews, reviews[1]])
    page.locator("#bench-conflict-list li").wait_for()
    wait(page)
    page.locator("[data-filter=decision]").select_option("conflicts")
    wait(page)
    sides = page.get_by_role("button", name="review: redraw")
    assert sides.count() == 3  # and the second one is no fourth
    sides.nth(2).click()
    wait(page)
    _, masks = contents(saved(page, tmp_path), tmp_path / "settled")
    np.testing.assert_array_equal(masks["s1"], mask)


@pytest.mark.slow
def test_a_drawing_of_a_settled_conflict_is_not_that_of_a_later_one(opened, tmp_path):
    with zipfile.ZipFile(tmp_path / "ben.zip", "w") as archive:
        archive.writestr("masks/s0.png", png(MASK))
    (tmp_path / "carl.csv").write_text("id,decision\ns0,redraw\n")
    page = opened(write(tmp_path, IDS))
    press(page, "o", "p")
    page.locator("#bench-files").set_input_files(tmp_path / "ben.zip")
    page.get_by_role("button", name="ben: redraw, drawn").wait_for()
    page.locator("#bench-stage").focus()
    press(page, "o", "p")  # it is right as it is
    page.locator("#bench-files").set_input_files(tmp_path / "carl.csv")
    page.get_by_role("button", name="carl: redraw").click()
    wait(page)
    rows = read_table(saved(page, tmp_path, "Save review.csv"))
    drawn = [(row["decision"], row["drawn"]) for row in rows]
    assert drawn == [("redraw", "")]


@pytest.mark.slow
def test_reviews_of_others_are_checked_as_by_apply(opened, tmp_path):
    told = write_reviews(tmp_path / "reviews")
    page = opened(write(tmp_path, IDS))
    for path, text in told.items():
        page.evaluate("localStorage.clear()")
        page.reload()
        wait(page)
        page.locator("#bench-files").set_input_files(path)
        page.locator("#bench-status", has_text=path.name).wait_for()
        wait(page)
        said = page.locator("#bench-status").text_content()
        expected = text if text.endswith("conflict") or text.startswith(NONE) else ""
        start = f"{path.name}: {expected}" if expected else f"{path.name} cannot be read: {text}"
        assert said.startswith(start), said
        assert said.endswith(".")
        assert read_by_the_package(path) == (text == ADDED), path
        if text == ADDED and path.suffix == ".zip":
            _, masks = contents(saved(page, tmp_path), tmp_path / "saved" / path.stem)
            expected = WHITE if path.stem == "unlabelled" else MASK
            np.testing.assert_array_equal(masks["s0"], expected)


class Binary(Pairs):
    """Samples of two classes."""

    def mask(self, index):
        return np.where(super().mask(index) == 1, 1, 0).astype(np.uint8)


def in_palette(values, colours, alphas=None, bits=8):
    """A PNG of a palette, as Pillow or a paint program writes it."""
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette(colours)
    stream = io.BytesIO()
    more = {} if alphas is None else {"transparency": bytes(alphas)}
    image.save(stream, "PNG", bits=bits, **more)
    return stream.getvalue()


WHITE_FIRST, BLACK_FIRST = [255] * 3 + [0] * 3, [0] * 3 + [255] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("colours", "alphas", "bits", "drawn"),
    [
        (WHITE_FIRST, None, 8, 0),
        (WHITE_FIRST, None, 1, 0),
        (BLACK_FIRST, None, 8, 1),
        (WHITE_FIRST, [0], 8, 1),  # white is transparent
        ([0] * 6, [255, 0], 8, 0),  # black on nothing
        ([9, 9, 9, 200, 0, 0], None, 8, 1),  # class ids
        ([255] * 3, None, 8, None),
    ],
)
def test_palettes_are_read_as_by_apply(opened, tmp_path, colours, alphas, bits, drawn):
    values = np.zeros(SIZE, np.uint8)
    if drawn is not None:
        values[:20] = 1
    samples = Binary(["s0"])
    path = write_review_page(tmp_path, samples, rows_of(["s0"]), {}, ["lung"])
    with zipfile.ZipFile(tmp_path / "ben.zip", "w") as archive:
        archive.writestr("masks/s0.png", in_palette(values, colours, alphas, bits))
    page = opened(path)
    page.locator("#bench-files").set_input_files(tmp_path / "ben.zip")
    page.locator("#bench-status", has_text="ben.zip").wait_for()
    wait(page)
    with opened_review(tmp_path / "ben.zip") as review:
        if drawn is None:
            assert "palette of white alone" in page.locator("#bench-status").text_content()
            with pytest.raises(InputError, match="palette of white alone"):
                review.read("s0", samples.mask(0), 2)
            return
        np.testing.assert_array_equal(review.read("s0", samples.mask(0), 2), values == drawn)
    _, masks = contents(saved(page, tmp_path), tmp_path / "saved")
    np.testing.assert_array_equal(masks["s0"], values == drawn)


@pytest.mark.slow
def test_the_keyboard_alone(opened, tmp_path):
    page = opened(write(tmp_path, IDS))
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="All keys").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog", name="All keys").is_hidden()
    press(page, "o", "m", "[", "[", "[", "[", "Space")  # one pixel, in the middle
    expected = Pairs(IDS).mask(1)
    expected[SIZE[0] // 2, SIZE[1] // 2] = 1
    for _ in range(5):
        press(page, "Shift+ArrowDown")
    expected[SIZE[0] // 2 : SIZE[0] // 2 + 6, SIZE[1] // 2] = 1
    press(page, "Enter", "n")
    assert name(page) == "s2"
    press(page, "t")
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == "review.zip"
    download.value.save_as(tmp_path / "review.zip")
    rows, masks = contents(tmp_path / "review.zip", tmp_path / "out")
    assert [row["decision"] for row in rows] == ["ok", "redraw", "take"]
    proposed = proposal_digest(Pairs(IDS).proposals()["s2"])
    assert [row["proposal"] for row in rows] == ["", "", proposed]
    np.testing.assert_array_equal(masks["s1"], expected)
    page.keyboard.press("Tab")  # focus is seen
    width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert width == "3px"


@pytest.mark.slow
def test_filters_by_class_annotator_change_and_decision(opened, tmp_path):
    path = write(
        tmp_path,
        IDS,
        without=["s5"],
        annotator=["A", "B", "A", "B", "A", "B"],
        suspicious_class=["1", "2", "", "2", "1", "1"],
        noisy=[True, True, False, False, False, False],
    )
    page = opened(path)

    def choose(field, value):
        page.locator(f"[data-filter={field}]").select_option(value)
        wait(page)
        return page.locator("#bench-listed").text_content().split()[0], name(page)

    assert choose("annotator", "B") == ("3", "s1")
    assert choose("class", "lung") == ("1", "s5")
    assert page.locator("#bench-progress").text_content() == "0 of 1"
    assert choose("annotator", "") == ("4", "s5")  # s2 has both where it changes
    assert choose("class", "heart") == ("3", "s1")
    choose("class", "")
    assert choose("kind", "noisy")[0] == "2"
    choose("kind", "")
    assert choose("change", "none") == ("1", "s5")
    choose("change", "")
    press(page, "o")
    assert choose("decision", "ok") == ("1", "s5")
    assert choose("decision", "undecided") == ("5", "s0")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_choices_are_in_reach_on_every_screen(opened, tmp_path, width, scheme):
    path = write(tmp_path, [f"a-long-name-of-a-sample-{n}" * 4 for n in range(3)])
    page = opened(path, size=(width, 640))
    page.emulate_media(color_scheme=scheme)
    press(page, "i")
    press(page, "Escape", "m")
    for mending in (True, False):
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert page.evaluate("document.documentElement.scrollHeight - window.innerHeight") <= 0
        for decision in ("ok", "take", "redraw"):
            box = page.locator(f"[data-decision={decision}]").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= 640
        assert page.locator("#bench-stage").bounding_box()["height"] > 140
        if mending:
            press(page, "Enter")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barriers(opened, barriers, tmp_path, width, scheme):
    page = opened(write(tmp_path, IDS), size=(width, 800))
    page.emulate_media(color_scheme=scheme)
    assert barriers(page) == []
    press(page, "m")
    assert barriers(page) == []
    press(page, "?")
    assert barriers(page) == []


@pytest.fixture
def in_files(monkeypatch):
    monkeypatch.setattr(payload, "PART_CHARACTERS", 1)
    monkeypatch.setattr(payload, "MAX_CHARACTERS", 1)


@pytest.mark.slow
def test_parts_are_loaded_from_files(opened, tmp_path, in_files):
    page = opened(write(tmp_path, HOSTILE))
    for sample_id in HOSTILE:
        assert name(page) == sample_id
        assert page.locator("#bench-message").is_hidden()
        press(page, "o")
    press(page, "m")
    stroke(page, Place(page), (15.2, 45.3), (65.7, 52.1))
    rows, masks = contents(saved(page, tmp_path), tmp_path / "out")
    assert [row["id"] for row in rows] == HOSTILE
    assert list(masks) == [HOSTILE[-1]]
    page.close()
    # Slashes become folders; other names stay as they are.
    page = opened(write(tmp_path / "again", ["folder/one", "x"]))
    press(page, "m")
    stroke(page, Place(page), (15.2, 45.3), (65.7, 52.1))
    path = saved(page, tmp_path)
    assert zipfile.ZipFile(path).namelist() == ["review.csv", "masks/folder/one.png"]


@pytest.mark.slow
def test_a_missing_or_foreign_part_is_told_of(opened, tmp_path, in_files):
    path = write(tmp_path, IDS)
    (tmp_path / "review" / "part-0003.js").unlink()
    foreign = tmp_path / "review" / "part-0005.js"
    foreign.write_text(re.sub('"[0-9a-f]{16}"', '"0000000000000000"', foreign.read_text(), count=1))
    page = opened(path)
    press(page, "o")
    page.keyboard.press("o")
    message = page.get_by_text("The file review/part-0003.js is missing")
    message.wait_for()
    page.keyboard.press("n")
    message.wait_for(state="hidden")
    wait(page)
    assert name(page) == "s3"
    page.keyboard.press("n")
    page.get_by_text("The file review/part-0005.js belongs to another page").wait_for()
    page.keyboard.press("n")
    wait(page)
    assert name(page) == "s5"
    opened.expected = "ERR_FILE_NOT_FOUND"  # it may come late


@pytest.mark.slow
def test_ten_thousand_samples_are_listed_at_once(opened, tmp_path):
    ids = [f"sample-{n}" for n in range(10_000)]
    samples = Pairs(ids[:3])
    page = opened(write_review_page(tmp_path, samples, rows_of(ids), samples.proposals()))
    page.locator("[data-decision=ok]").click()
    page.locator("#bench-progress", has_text="1 of 10000").wait_for()
    assert page.locator("#bench-listed").text_content() == "10000 of 10000 samples listed"
    page.get_by_label("Name").first.fill("sample-9999")
    page.get_by_text("This page has no pictures of this sample.").wait_for()
    assert name(page) == "sample-9999"


FAKE_FOLDER = """
    const missing = () => { throw new DOMException("none", "NotFoundError"); };
    const folder = (name, entries) => ({
      name,
      entries,
      async *keys() { yield* Object.keys(entries); },
      getDirectoryHandle: async (n, o) => folder(n, (entries[n] ??= o?.create ? {} : missing())),
      getFileHandle: async (n, o) => {
        if (!(n in entries) && !o?.create) missing();
        return {
          getFile: async () => ({ text: async () => entries[n] }),
          createWritable: async () => ({
            write: async (content) => {
              entries[n] = typeof content === "string" ? content : `${content.length} bytes`;
            },
            close: async () => {},
          }),
        };
      },
      removeEntry: async (n) => { delete entries[n]; },
    });
    window.entries = ENTRIES;
    window.showDirectoryPicker = async () => folder("chosen", window.entries);
"""


@pytest.mark.slow
def test_a_folder_is_written_where_the_browser_may(opened, tmp_path):
    entries = {
        "review.csv": "id,decision,note,reviewer\nb,redraw,,\n",
        "masks": {"b.png": "", "other.png": ""},
    }
    script = FAKE_FOLDER.replace("ENTRIES", json.dumps(entries))
    page = opened(write(tmp_path, ["folder/one", "b"]), script=script)
    press(page, "m")
    stroke(page, Place(page), (15.2, 45.3), (65.7, 52.1))
    page.get_by_role("button", name="Save into a folder").click()
    page.get_by_text("Saved review.csv and 1 drawn mask in the folder chosen.").wait_for()
    entries = page.evaluate("window.entries")
    table = r"id,decision,note,reviewer,drawn,proposal\nfolder/one,redraw,,,[0-9a-f]{8},\n"
    assert re.fullmatch(table, entries["review.csv"])
    assert list(entries["masks"]["folder"]) == ["one.png"]
    assert "b.png" not in entries["masks"]  # an earlier drawing that was undone
    assert "other.png" in entries["masks"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "entries", [{"masks": {"s0.png": "precious"}}, {"review.csv": "id,decision\ns0,good\n"}]
)
def test_a_folder_of_something_else_is_never_written(opened, tmp_path, entries):
    script = FAKE_FOLDER.replace("ENTRIES", json.dumps(entries))
    page = opened(write(tmp_path, IDS), script=script)
    press(page, "m")
    stroke(page, Place(page), (15.2, 45.3), (65.7, 52.1))
    page.get_by_role("button", name="Save into a folder").click()
    page.get_by_text("choose an empty folder").wait_for()
    assert page.evaluate("window.entries") == entries


@pytest.mark.slow
def test_undo_leaves_notes_alone_and_a_double_click_decides_once(opened, tmp_path):
    page = opened(write(tmp_path, IDS))
    page.locator("[data-decision=ok]").dblclick()
    wait(page)
    assert name(page) == "s1"
    press(page, "p", "i")
    page.keyboard.type("too large")
    press(page, "Escape", "z")
    assert state(page) == "undecided"
    rows = read_table(saved(page, tmp_path, "Save review.csv"))
    row = {"id": "s0", "decision": "", "note": "too large", "reviewer": "", "drawn": ""}
    assert rows == [row | {"proposal": ""}]


@pytest.mark.slow
def test_undo_after_mending_takes_back_the_drawing(opened, tmp_path):
    page = opened(write(tmp_path, IDS))
    press(page, "o", "m", "[", "[", "[", "[", "Space", "Enter")
    assert state(page) == "decided: redraw, with a drawn mask"
    _, first = contents(saved(page, tmp_path), tmp_path / "first")
    page.locator("#bench-stage").focus()  # from the button that saves
    press(page, "m", "ArrowUp", "Space", "ArrowUp", "Space", "Enter")
    _, second = contents(saved(page, tmp_path), tmp_path / "second")
    assert (first["s1"] != second["s1"]).sum() == 2
    press(page, "t", "z")
    assert (name(page), state(page)) == ("s1", "decided: redraw, with a drawn mask")
    press(page, "z")  # all strokes since mending began again
    assert (name(page), state(page)) == ("s1", "decided: redraw, with a drawn mask")
    _, masks = contents(saved(page, tmp_path), tmp_path / "once")
    np.testing.assert_array_equal(masks["s1"], first["s1"])
    press(page, "z")
    assert (name(page), state(page)) == ("s1", "undecided")
    assert page.get_by_role("button", name="Drawn", exact=True).is_disabled()
    rows = read_table(saved(page, tmp_path, "Save review.csv"))
    assert [(row["id"], row["decision"]) for row in rows] == [("s0", "ok")]
    press(page, "z")
    assert (name(page), state(page)) == ("s0", "undecided")


@pytest.mark.slow
def test_strokes_that_were_undone_while_mending_are_not_undone_again(opened, tmp_path):
    page = opened(write(tmp_path, IDS))
    press(page, "o", "m", "Space", "z", "y", "z", "Enter", "y")
    assert (name(page), state(page)) == ("s1", "undecided")
    press(page, "z")
    assert (name(page), state(page)) == ("s0", "undecided")


@pytest.mark.slow
def test_classes_without_a_name_are_numbered(opened, tmp_path):
    samples = Pairs(IDS)
    page = opened(write_review_page(tmp_path, samples, rows_of(IDS), {}))
    options = page.locator("#bench-class option").all_text_contents()
    assert options == ["class 1", "class 2", "background", "unlabelled"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1200, 800), (360, 640)])
def test_the_legend_of_many_classes_covers_little(opened, tmp_path, width, height):
    from playwright.sync_api import expect

    samples = Pairs(IDS[:2])
    masks = [samples.mask(0), np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE) % 81]
    samples.mask = masks.__getitem__
    names = [f"a class of number {k}" for k in range(1, 81)]
    path = write_review_page(tmp_path, samples, rows_of(IDS[:2]), {}, names)
    page = opened(path, size=(width, height))
    shown = page.locator("#bench-colours [data-class]:visible")
    assert shown.all_text_contents() == names[:2]
    assert page.locator("#bench-colours").get_attribute("tabindex") is None
    press(page, "n")
    assert shown.count() == 80
    stage, legend = (page.locator(f"#bench-{part}").bounding_box() for part in ("stage", "colours"))
    assert legend["height"] <= stage["height"] / 4
    expect(shown.last).not_to_be_in_viewport()
    page.locator("#bench-colours").focus()
    page.keyboard.press("End")
    expect(shown.last).to_be_in_viewport()
    press(page, "6")  # no masks
    assert page.locator("#bench-colours").is_hidden()
