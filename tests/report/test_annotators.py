"""The page's part on persons: who agrees with whom, most disputed first."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from coseg_lightning.data.tiles import Tile
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.ranking.annotators import annotator_report
from coseg_lightning.report.annotators import (
    annotators_figure,
    in_words,
    page_part,
    write_annotators,
    write_masks,
)


class Several:
    """Masks of three images by up to three persons."""

    ids = ("a", "b", "c")
    classes = 2

    def names(self, sample_id):
        return {"a": ["anna", "ben", "carl"], "b": ["anna", "ben"], "c": ["ben"]}[sample_id]

    def mask(self, sample_id, name):
        mask = np.zeros((16, 16), np.uint8)
        shift = {"anna": 0, "ben": 1, "carl": 8}[name] if sample_id == "a" else 0
        mask[2:8, 2 + shift // 2 : 8 + shift // 2] = 1
        return mask

    def fused(self, sample_id):
        raise AssertionError("persons are judged by their masks, whatever data.label makes of them")


class Samples:
    several = Several()


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_disputed_images_and_masks_come_first(tmp_path):
    masks, rows = write_masks(tmp_path, Samples())
    assert [row["id"] for row in rows] == ["a", "b"]
    drawn = [Several().mask("a", name) for name in ("anna", "ben", "carl")]
    pairs = [mask_dice(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert rows[0]["agreement"] == round(float(np.mean(pairs)), 4)
    assert rows[0]["least_like_others"] == "carl"
    assert rows[1] == {"id": "b", "masks": 2, "agreement": 1.0, "least_like_others": ""}
    assert [row["id"] for row in read(tmp_path / "disputed.csv")] == ["a", "b"]
    assert (masks[0]["id"], masks[0]["annotator"]) == ("a", "carl")
    assert masks[0]["agreement"] == round((pairs[1] + pairs[2]) / 2, 4)
    assert masks[0]["score"] == round(1 - max(pairs[1:]), 4)  # of the nearer one
    assert [row["rank"] for row in read(tmp_path / "masks.csv")] == ["1", "2", "2", "2", "2"]
    assert write_masks(tmp_path, object()) == ([], [])


def test_persons_of_images_with_several_masks_have_records(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score,annotator\na,0.5,\nc,0.1,ben\n")
    masks, _ = write_masks(tmp_path, Samples())
    records = {r.annotator: r for r in write_annotators(tmp_path, (0.3,), masks=masks)}
    assert {name: record.masks for name, record in records.items()} == {
        "anna": 2,
        "ben": 3,
        "carl": 1,
    }
    assert records["carl"].bad_share > records["anna"].bad_share
    assert len(read(tmp_path / "annotators.csv")) == 3
    shown = page_part(tmp_path, list(records.values()), masks, [])
    assert {r.annotator: ids for r, ids in shown["persons"]}["carl"] == ["a"]


def test_tiles_of_an_image_are_one_mask_of_their_annotator(tmp_path):
    header = "id,score,annotator,displacement_pixels,blunders\n"
    rows = [
        f"i{n}_{k},{0.9 if n == 0 else 0.1},{'anna' if n % 2 else 'ben'},{n + k},copy\n"
        for n in range(6)
        for k in range(3)
    ]
    (tmp_path / "scores.csv").write_text(header + "".join(rows))
    tiles = {f"i{n}_{k}": Tile(f"i{n}", (0, 8), (0, 8)) for n in range(6) for k in range(3)}
    records = {
        r.annotator: r
        for r in write_annotators(tmp_path, (0.2,), tiles=SimpleNamespace(tiles=tiles))
    }
    assert {name: record.masks for name, record in records.items()} == {"anna": 3, "ben": 3}
    whole = "".join(row.replace("_1,", ",") for row in rows if "_1," in row)
    (tmp_path / "scores.csv").write_text(header + whole)
    for record in write_annotators(tmp_path, (0.2,)):  # the mean and the middle are the tile 1
        of_tiles = records[record.annotator]
        assert record.bad_share == pytest.approx(of_tiles.bad_share)
        assert record.displacement == pytest.approx(of_tiles.displacement)


def test_masks_of_which_nothing_is_labelled_have_no_rank(tmp_path):
    class Unlabelled(Several):
        def mask(self, sample_id, name):
            mask = super().mask(sample_id, name)
            return np.full_like(mask, 255) if (sample_id, name) == ("b", "ben") else mask

    class Own:
        several = Unlabelled()

    masks, _ = write_masks(tmp_path, Own())
    assert [row["score"] == "" for row in masks] == [False] * 3 + [True] * 2
    assert [row["rank"] for row in masks[3:]] == ["", ""]


def test_the_terminal_names_persons_and_their_worst_masks(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score,annotator\na,0.5,\nc,0.1,ben\n")
    masks, _ = write_masks(tmp_path, Samples())
    write_annotators(tmp_path, (0.3,), masks=masks)
    head, *persons, alike, worst = in_words(tmp_path)
    assert head == "3 annotators, and their shares of bad masks (90 % intervals):"
    assert [line.split()[0] for line in persons] == [
        row["annotator"] for row in read(tmp_path / "annotators.csv")
    ]
    assert any(line.endswith("% of 3 masks") for line in persons)  # ben's
    assert alike.startswith("All intervals overlap")
    listed = "a by carl, a by anna and ben, b by anna and ben"
    assert worst == f"The worst of their single masks: {listed}"
    several = Samples()
    several.several = Several()
    several.several.ids = ("b", "c")
    write_masks(tmp_path, several)
    assert in_words(tmp_path)[-1] == "The worst of their single masks: b by anna and ben"


def test_nobody_is_named_where_all_agree_equally(tmp_path):
    x = np.mgrid[:32, :32][1]
    several = Panels([("a", "b", "c")], {})
    for n, name in enumerate("abc"):  # three masks, each two thirds of which another has too
        several.drawn["i00"][name] = ((x // 8 == n) | (x // 8 == (n + 1) % 3)).astype(np.uint8)
    samples = Samples()
    samples.several = several
    masks, disputed = write_masks(tmp_path, samples)
    assert [row["least_like_others"] for row in disputed] == [""]
    assert [row["rank"] for row in masks] == [1, 1, 1]


def test_the_terminal_does_not_call_persons_alike_who_differ(tmp_path):
    rows = ["annotator,masks,bad_share_low,bad_share_high", "a,30,0.5,0.7", "b,30,0.01,0.1"]
    (tmp_path / "annotators.csv").write_text("\n".join(rows) + "\n")
    assert in_words(tmp_path)[1:] == ["  a  50 to 70 % of 30 masks", "  b  1 to 10 % of 30 masks"]
    assert in_words(tmp_path / "other") == []


class Habits(Several):
    """Ten images by three persons; ben outlines 2 pixels too far, and carl misses three images."""

    ids = tuple(f"i{n}" for n in range(10))

    def names(self, sample_id):
        return ["anna", "ben", "carl"]

    def mask(self, sample_id, name):
        far = 2 if name == "ben" else 0
        down = 5 if name == "carl" and sample_id in self.ids[:3] else 0
        mask = np.zeros((48, 48), np.uint8)
        mask[12 + down - far : 32 + down + far, 12 - far : 32 + far] = 1
        return mask


def test_a_habit_does_not_count_as_a_mistake(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score,annotator\ni0,0.5,\n")
    samples = Samples()
    samples.several = Habits()
    masks, _ = write_masks(tmp_path, samples)
    of = {name: [row for row in masks if row["annotator"] == name] for name in ("anna", "ben")}
    right = {row["id"]: row for row in of["anna"] if row["id"] not in Habits.ids[:3]}
    assert {row["displacement_pixels"] for row in right.values()} == {-0.6667}
    assert all(row["displacement_pixels"] == 1.3333 for row in of["ben"] if row["id"] in right)
    assert all(row["own_score"] < 0.5 * row["score"] for row in of["ben"] if row["id"] in right)
    records = {r.annotator: r for r in write_annotators(tmp_path, (0.2,), masks=masks)}
    assert records["carl"].bad_share > records["ben"].bad_share
    assert records["ben"].bad_share == pytest.approx(records["anna"].bad_share, abs=0.03)


class Panels:
    """Discs that panels of persons draw, each larger or smaller by a habit, some moved aside."""

    classes = 2

    def __init__(self, panels, habits, moved=(), seed=0):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:64, :64]
        self.drawn = {}
        for n, panel in enumerate(panels):
            radius, down, right = rng.uniform(12, 18), *rng.uniform(26, 38, 2)
            own = {name: radius + habits.get(name, 0) + rng.normal(0, 0.3) for name in panel}
            self.drawn[f"i{n:02}"] = {
                name: (np.hypot(y - down, x - right - 9 * ((name, n) in moved)) <= r).astype("u1")
                for name, r in own.items()
            }
        self.ids = list(self.drawn)

    def names(self, sample_id):
        return list(self.drawn[sample_id])

    def mask(self, sample_id, name):
        return self.drawn[sample_id][name]


def records_of(folder, several):
    folder.mkdir(exist_ok=True)
    (folder / "scores.csv").write_text("id,score\ni00,0.5\n")
    samples = Samples()
    samples.several = several
    masks, _ = write_masks(folder, samples)
    return {r.annotator: r for r in write_annotators(folder, (0.1,), masks=masks)}


EVERY_PAIR = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")] * 8


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("panels", "habits", "displacements"),
    [
        ([("a", "b")] * 30, {"a": -1.5, "b": 1.5}, {"a": -1.5, "b": 1.5}),
        ([("a", "b", "c")] * 30, {"c": 3}, {"a": -1, "b": -1, "c": 2}),
        ([("b", "c"), ("a", "d")] * 20, {"b": 2}, {"a": 0, "b": 1, "c": -1, "d": 0}),
        (EVERY_PAIR, {"b": 2}, {"a": -0.5, "b": 1.5, "c": -0.5, "d": -0.5}),
    ],
)
def test_nobody_is_blamed_for_a_habit_of_anybody(tmp_path, panels, habits, displacements, seed):
    records = records_of(tmp_path / "r", Panels(panels, habits, seed=seed))
    shares = [record.bad_share for record in records.values()]
    assert max(shares) - min(shares) < 0.05
    assert max(shares) < 0.12
    found = {name: record.displacement for name, record in records.items()}
    assert found == pytest.approx(displacements, abs=0.25)


@pytest.mark.parametrize("habits", [{}, {"c": 3}, {"b": 2}])
def test_real_blunders_are_found_beside_habits(tmp_path, habits):
    panels = [("a", "b", "c")] * 40
    moved = {("b", n) for n in range(0, 40, 4)}
    records = records_of(tmp_path / "r", Panels(panels, habits, moved))
    assert records["b"].bad_share > 0.12
    assert all(record.bad_share < 0.07 for name, record in records.items() if name != "b")
    moved = {("d", n) for n in range(2, 48, 9)}  # of pairs with a or c
    records = records_of(tmp_path / "r", Panels(EVERY_PAIR, {"b": 2}, moved))
    assert records["d"].bad_share > 1.4 * max(r.bad_share for n, r in records.items() if n != "d")


def test_bad_masks_do_not_count_against_those_beside_them(tmp_path):
    moved = {("d", n) for n in range(0, 40, 4)}
    records = records_of(tmp_path / "r", Panels([("a", "b", "c", "d")] * 40, {}, moved))
    assert records["d"].bad_share_interval[0] > 0.08
    assert all(r.bad_share_interval[1] < 0.08 for name, r in records.items() if name != "d")
    rows = read(tmp_path / "r" / "masks.csv")
    assert {row["id"] for row in rows[:10]} == {f"i{n:02}" for _, n in moved}
    assert {row["annotator"] for row in rows[:10]} == {"d"}
    beside = [float(r["displacement_pixels"]) for r in rows if r["annotator"] != "d"]
    assert max(map(abs, beside)) < 1.5


def test_which_of_two_masks_is_bad_stays_open(tmp_path):
    moved = {("ben", n) for n in range(0, 80, 5)}
    records = records_of(tmp_path / "r", Panels([("anna", "ben")] * 80, {}, moved))
    few = [("anna", "ben", "carl")] * 2  # too few to tell the share of the others
    mixed = records_of(tmp_path / "m", Panels([("anna", "ben")] * 80 + few, {}, moved))
    for record in (*records.values(), mixed["anna"], mixed["ben"]):
        low, high = record.bad_share_interval
        assert low < 0.02
        assert high > 0.2


def test_the_habits_of_several_classes_are_taken_off(tmp_path):
    several = Panels([("a", "b", "c")] * 12, {"c": 3})
    several.classes = 3
    for masks in several.drawn.values():
        for name, mask in masks.items():
            far = 2 if name == "a" else 0
            mask[: 6 + far, : 12 + far] = 2
            mask[:, -2:] = 255
    records = records_of(tmp_path / "r", several)
    shares = [record.bad_share for record in records.values()]
    assert max(shares) - min(shares) < 0.1
    assert records["c"].displacement_by_class[0] == pytest.approx(2, abs=0.3)
    # The same beside masks whose outlines tell nothing, so that the ranking has no displacements.
    (tmp_path / "r" / "scores.csv").write_text("id,score,annotator\nx,0.5,a\n")
    beside = write_annotators(tmp_path / "r", (0.2,), masks=read(tmp_path / "r" / "masks.csv"))
    for record in beside:
        assert record.displacement_by_class == pytest.approx(
            records[record.annotator].displacement_by_class, abs=1e-3
        )
    (row,) = [
        r for r in read(tmp_path / "r" / "masks.csv") if (r["id"], r["annotator"]) == ("i00", "c")
    ]
    assert float(row["displacement_class_1"]) > 1
    assert float(row["displacement_class_2"]) == pytest.approx(-2 / 3, abs=0.2)


def test_persons_are_compared_with_each_other_and_not_with_edges(tmp_path):
    def row(n, name, moved):
        return f"i{n},0.5,{name},{moved}"

    rows = [row(n, "anna", 4.0) for n in range(10)] + [row(n, "ben", 3.0) for n in range(10, 20)]
    table = tmp_path / "scores.csv"
    table.write_text("\n".join(["id,score,annotator,displacement_pixels", *rows, ""]))
    found = {r.annotator: r.displacement for r in write_annotators(tmp_path, (0.2,))}
    assert found == pytest.approx({"anna": 0.5, "ben": -0.5}, abs=0.05)
    table.write_text("\n".join(["id,score,annotator,displacement_pixels", *rows[:10], ""]))
    (anna,) = write_annotators(tmp_path, (0.2,))
    assert anna.displacement is None


def test_persons_are_drawn_with_and_without_displacements():
    records = annotator_report(["$a_b$", "b"] * 5, [0.2] * 10)
    figure = annotators_figure(records)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        f"{record.annotator} (5)" for record in records
    ]
