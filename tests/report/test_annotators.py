"""The page's part on persons: who agrees with whom, most disputed first."""

import csv

import numpy as np

from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.ranking.annotators import annotator_report
from coseg_lightning.report.annotators import annotators_figure, pairwise_dice, write_disputed


class Several:
    """Masks of three images by up to three persons."""

    ids = ("a", "b", "c")

    def names(self, sample_id):
        return {"a": ["anna", "ben", "carl"], "b": ["anna", "ben"], "c": ["ben"]}[sample_id]

    def mask(self, sample_id, name):
        mask = np.zeros((16, 16), np.uint8)
        shift = {"anna": 0, "ben": 1, "carl": 8}[name] if sample_id == "a" else 0
        mask[2:8, 2 + shift // 2 : 8 + shift // 2] = 1
        return mask


class Samples:
    several = Several()


def test_disputed_images_come_first(tmp_path):
    rows = write_disputed(tmp_path, Samples())
    assert [row["id"] for row in rows] == ["a", "b"]
    masks = [Several().mask("a", name) for name in ("anna", "ben", "carl")]
    pairs = [mask_dice(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert rows[0]["agreement"] == round(float(np.mean(pairs)), 4)
    assert rows[0]["least_like_others"] == "carl"
    assert rows[1] == {"id": "b", "masks": 2, "agreement": 1.0, "least_like_others": ""}
    with (tmp_path / "disputed.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["a", "b"]
    hidden = write_disputed(tmp_path, Samples(), hidden=True)
    assert hidden[0]["least_like_others"].startswith("person ")
    assert write_disputed(tmp_path, object()) == []
    assert np.isnan(pairwise_dice(masks).diagonal()).all()


def test_persons_are_drawn_with_and_without_displacements():
    records = annotator_report(["$a_b$", "b"] * 5, [0.2] * 10)
    figure = annotators_figure(records)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        f"{record.annotator} (5)" for record in records
    ]
