"""The page's part on persons: who agrees with whom, most disputed first."""

import csv

import numpy as np
import pytest

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
        return self.mask(sample_id, "ben")


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
    assert masks[0]["score"] == round(1 - (pairs[1] + pairs[2]) / 2, 4)
    assert [row["rank"] for row in read(tmp_path / "masks.csv")] == ["1", "2", "3", "4", "5"]
    assert write_masks(tmp_path, object()) == ([], [])


def test_persons_of_images_with_several_masks_have_records(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score,annotator\na,0.5,\nc,0.1,ben\n")
    masks, _ = write_masks(tmp_path, Samples())
    records = {r.annotator: r for r in write_annotators(tmp_path, 0.3, masks=masks)}
    assert {name: record.masks for name, record in records.items()} == {
        "anna": 2,
        "ben": 3,
        "carl": 1,
    }
    assert records["carl"].bad_share > records["anna"].bad_share
    assert len(read(tmp_path / "annotators.csv")) == 3
    shown = page_part(tmp_path, list(records.values()), masks, [])
    assert {r.annotator: ids for r, ids in shown["persons"]}["carl"] == ["a"]


def test_the_terminal_names_persons_and_their_worst_masks(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score,annotator\na,0.5,\nc,0.1,ben\n")
    masks, _ = write_masks(tmp_path, Samples())
    write_annotators(tmp_path, 0.3, masks=masks)
    head, *persons, alike, worst = in_words(tmp_path)
    assert head == "3 annotators, and their shares of bad masks (90 % intervals):"
    assert [line.split()[0] for line in persons] == [
        row["annotator"] for row in read(tmp_path / "annotators.csv")
    ]
    assert any(line.endswith("% of 3 masks") for line in persons)  # ben's
    assert alike.startswith("All intervals overlap")
    assert worst.startswith("The worst of their single masks: a by carl, ")


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

    def fused(self, sample_id):
        return self.mask(sample_id, "anna")


def test_a_habit_does_not_count_as_a_mistake(tmp_path):
    (tmp_path / "scores.csv").write_text("id,score,annotator\ni0,0.5,\n")
    samples = Samples()
    samples.several = Habits()
    masks, _ = write_masks(tmp_path, samples)
    of = {name: [row for row in masks if row["annotator"] == name] for name in ("anna", "ben")}
    assert all(row["displacement_pixels"] == 2 for row in of["ben"])
    assert all(row["own_score"] < row["score"] - 0.02 for row in of["ben"])
    assert all(row["own_score"] == row["score"] for row in of["anna"])
    records = {r.annotator: r for r in write_annotators(tmp_path, 0.2, masks=masks)}
    assert records["carl"].bad_share > records["ben"].bad_share


def test_persons_are_compared_with_each_other_and_not_with_edges(tmp_path):
    def row(n, name, moved):
        return f"i{n},0.5,{name},{moved}"

    rows = [row(n, "anna", 4.0) for n in range(10)] + [row(n, "ben", 3.0) for n in range(10, 20)]
    table = tmp_path / "scores.csv"
    table.write_text("\n".join(["id,score,annotator,displacement_pixels", *rows, ""]))
    found = {r.annotator: r.displacement for r in write_annotators(tmp_path, 0.2)}
    assert found == pytest.approx({"anna": 0.5, "ben": -0.5}, abs=0.05)
    table.write_text("\n".join(["id,score,annotator,displacement_pixels", *rows[:10], ""]))
    (anna,) = write_annotators(tmp_path, 0.2)
    assert anna.displacement is None


def test_persons_are_drawn_with_and_without_displacements():
    records = annotator_report(["$a_b$", "b"] * 5, [0.2] * 10)
    figure = annotators_figure(records)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        f"{record.annotator} (5)" for record in records
    ]
