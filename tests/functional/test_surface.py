"""Distances between outlines: by hand, and as MONAI computes them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coseg_lightning.errors import InputError
from coseg_lightning.functional.surface import surface_distances


def square(top, left, side, size=20):
    region = np.zeros((size, size), bool)
    region[top : top + side, left : left + side] = True
    return region


def test_distances_by_hand():
    # All points of one line are three pixels from the other.
    first, second = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    first[2, 2:7], second[5, 2:7] = True, True
    assert surface_distances(first, second) == (3, 3)
    assert surface_distances(first, second, pixel_size=0.5) == (1.5, 1.5)
    assert surface_distances(square(3, 3, 6), square(3, 3, 6)) == (0, 0)


def test_of_nothing_there_is_no_distance():
    nothing = np.zeros((9, 9), bool)
    assert surface_distances(nothing, nothing) == (0, 0)
    assert surface_distances(nothing, square(1, 1, 3, 9)) is None
    assert surface_distances(square(1, 1, 3, 9), nothing) is None


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_they_are_monais(seed):
    monai = pytest.importorskip("monai.metrics")
    generator = np.random.default_rng(seed)
    regions = [square(*generator.integers(0, 10, 2), generator.integers(1, 10)) for _ in range(4)]
    first, second = regions[0] | regions[1], regions[2] | (regions[3] & ~regions[0])
    pair = [torch.from_numpy(region)[None, None] for region in (first, second)]
    options = {"include_background": True}
    hd95 = monai.compute_hausdorff_distance(*pair, percentile=95, **options).item()
    average = monai.compute_average_surface_distance(*pair, symmetric=True, **options).item()
    assert surface_distances(first, second) == pytest.approx((hd95, average), abs=1e-4)


def test_distances_of_other_sizes_or_units_are_refused():
    region = square(4, 4, 6)
    with pytest.raises(InputError, match="have no distances"):
        surface_distances(region, region[:10])
    for size in (0, -1, float("nan")):
        with pytest.raises(InputError, match="must be a number above 0"):
            surface_distances(region, region, pixel_size=size)
