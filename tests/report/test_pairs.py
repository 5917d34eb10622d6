"""Methods compared image by image: the sweep's pairs, and a run's gain on its baselines."""

import csv

import numpy as np
import pytest

from coseg_lightning.files.csv import write_table
from coseg_lightning.report.pairs import compare, gain, interval, read_figures


def figures(values):
    return {f"i{n:02}": float(value) for n, value in enumerate(values)}


def test_pairs_over_seeds_and_images():
    images = np.linspace(0.6, 0.9, 20)
    ripple = np.resize([0.01, -0.01], 20)
    rows = {
        "supervised": {0: figures(images), 1: figures(images + 0.01)},
        "coseg": {0: figures(images + 0.05 + ripple), 1: figures(images + 0.05 - ripple)},
        "gce": {0: figures(images + ripple), 2: figures(images)},
    }
    pairs = compare({"type2 0.3": rows})
    found = {(pair.first, pair.second): pair for pair in pairs}
    pair = found["coseg", "supervised"]
    assert pair.difference == pytest.approx(0.045)
    assert (pair.images, pair.seeds, pair.ahead) == (20, 2, 2)
    assert pair.p < 0.001
    low, high = pair.interval
    assert (low, high) == pytest.approx((0.045, 0.045))
    told = "type2 0.3: coseg is 4.5 ahead of supervised (4.5 to 4.5), p < 0.001"
    assert str(pair).startswith(told)
    assert found["coseg", "gce"].seeds == 1
    # Equal in the mean: ahead by nothing, and by chance.
    other = next(pair for names, pair in found.items() if set(names) == {"gce", "supervised"})
    assert abs(other.difference) < 1e-9
    assert other.p > 0.5
    row = pair.as_row()
    assert row["seeds_ahead"] == 2
    assert row["column"] == "type2 0.3"


def test_holms_method_is_that_of_the_book():
    generator = np.random.default_rng(0)
    base = generator.normal(0.8, 0.05, 30)
    rows = {
        name: {0: figures(base + shift + generator.normal(0, 0.02, 30))}
        for name, shift in (("a", 0.0), ("b", 0.005), ("c", 0.012))
    }
    single = {
        frozenset(pair): compare({"": {name: rows[name] for name in pair}})[0].p
        for pair in (("a", "b"), ("a", "c"), ("b", "c"))
    }
    smallest, middle, largest = sorted(single.values())
    wanted = [3 * smallest, max(3 * smallest, 2 * middle)]
    wanted.append(max(wanted[1], largest))
    found = sorted(pair.p for pair in compare({"": rows}))
    assert found == pytest.approx([min(1, p) for p in wanted])


def test_what_shares_no_image_or_seed_is_not_compared():
    one, other = figures([0.5] * 6), {"x": 0.4}
    assert compare({"none": {"a": {0: one}, "b": {1: one}}}) == []
    assert compare({"none": {"a": {0: one}, "b": {0: other}}}) == []
    equal = compare({"none": {"a": {0: one}, "b": {0: one}}})
    assert equal[0].p == 1
    assert equal[0].difference == 0
    assert "none: a and b are level" in str(equal[0])


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    holds = 0
    for _ in range(100):
        low, high = interval(generator.normal(0.8, 0.1, 40))
        holds += low <= 0.8 <= high
    assert 88 <= holds <= 99
    assert interval(np.array([0.5] * 4)) is None
    assert interval(np.array([0.5] * 5)) == (0.5, 0.5)


def test_a_gain_is_over_the_images_that_both_have(tmp_path):
    for name, shift in (("run", 0.1), ("run/noisy_baseline", 0.0)):
        rows = [{"id": f"=i{n}", "dice": 0.5 + 0.01 * n + shift, "hd95": None} for n in range(8)]
        write_table(tmp_path / name / "test.csv", rows)
    low, high = gain(tmp_path / "run", tmp_path / "run" / "noisy_baseline")
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert read_figures(tmp_path / "run", "hd95") == {}
    assert gain(tmp_path / "run", tmp_path / "nowhere") is None
    with (tmp_path / "run" / "test.csv").open() as file:
        assert next(iter(csv.DictReader(file)))["id"] == "'=i0"
