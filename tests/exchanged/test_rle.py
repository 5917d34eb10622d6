"""Run lengths against pycocotools, and against slow readers written by their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from coseg_lightning.exchanged.regions import bounds, box, ellipse, of_size, pasted, polygon
from coseg_lightning.exchanged.rle import (
    brush_rle,
    coco_rle,
    from_brush_rle,
    from_coco_rle,
    from_run_lengths,
    run_lengths,
)

REGIONS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))
PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


@PROPERTY
@given(REGIONS)
def test_every_region_survives_every_code(region):
    lengths = run_lengths(region.ravel())
    np.testing.assert_array_equal(from_run_lengths(lengths, region.size), region.ravel())
    np.testing.assert_array_equal(from_coco_rle(coco_rle(region), region.shape), region)
    np.testing.assert_array_equal(from_brush_rle(brush_rle(region), region.shape), region)


@PROPERTY
@given(REGIONS)
def test_coco_is_as_pycocotools_has_it(region):
    mask = pytest.importorskip("pycocotools.mask")
    packed = mask.encode(np.asfortranarray(region.astype(np.uint8)))
    np.testing.assert_array_equal(from_coco_rle(packed["counts"], region.shape), region)
    text = packed["counts"].decode()
    np.testing.assert_array_equal(from_coco_rle(text, region.shape), region)
    plain = mask.frPyObjects(
        {"size": list(region.shape), "counts": coco_rle(region)}, *region.shape
    )
    np.testing.assert_array_equal(mask.decode(plain), region)


def rle_pack(values, word, lengths, literal):
    """Encode bytes as thi.ng's rle-pack does, with literals, by its definition, slowly."""
    bits = f"{len(values):032b}{word - 1:05b}" + "".join(f"{n - 1:04b}" for n in lengths)
    place = 0
    while place < len(values):
        end = place
        while end < len(values) and values[end] == values[place] and end - place < 8:
            end += 1
        if literal or end - place == 1:
            end = min(place + 3, len(values))
            bits += f"000{end - place - 1:0{lengths[0]}b}"
            bits += "".join(f"{value:0{word}b}" for value in values[place:end])
        else:
            bits += f"100{end - place - 1:0{lengths[0]}b}{values[place]:0{word}b}"
        place = end
    bits += "0" * (8 - len(bits) % 8)  # a whole byte more than is needed, as converters write
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def rle_unpack(rle):
    """Decode bytes as thi.ng's rle-pack does, by its definition, slowly."""
    bits = "".join(f"{byte:08b}" for byte in rle)

    def read(count):
        nonlocal bits
        value, bits = int(bits[:count], 2), bits[count:]
        return value

    size, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < size:
        is_run = read(1)
        count = read(lengths[read(2)]) + 1
        values += [read(word)] * count if is_run else [read(word) for _ in range(count)]
    return values


@PROPERTY
@given(REGIONS)
def test_brushes_are_what_other_programs_read(region):
    values = np.reshape(rle_unpack(brush_rle(region)), (*region.shape, 4))
    assert (values == 255 * region[..., None]).all()


@PROPERTY
@given(REGIONS, st.booleans(), st.sampled_from([1, 255]), st.sampled_from([8, 9]))
def test_brushes_of_other_programs(region, literal, opaque, word):
    values = np.repeat(opaque * region.ravel().astype(int), 4).tolist()
    rle = rle_pack(values, word, (3, 4, 8, 16), literal)
    np.testing.assert_array_equal(from_brush_rle(rle, region.shape), region)


def test_the_smooth_rim_of_a_brush_counts_from_its_half():
    alpha = [0, 60, 120, 130, 200, 255]
    colours = [value for a in alpha for value in (9, 9, 9, a)]
    region = from_brush_rle(rle_pack(colours, 8, (3, 4, 8, 16), True), (2, 3))
    assert region.ravel().tolist() == [False, False, False, True, True, True]


def test_a_large_region_needs_several_runs():
    region = np.ones((300, 400), np.bool_)
    region[150, 200] = False
    np.testing.assert_array_equal(from_brush_rle(brush_rle(region), (300, 400)), region)


@PROPERTY
@given(st.binary(max_size=60))
def test_damaged_codes_raise_a_value_error_or_give_a_region(data):
    for decode in (from_coco_rle, from_brush_rle):
        for code in (data, brush_rle(np.ones((4, 4), np.bool_))[:-3] + list(data)):
            try:
                region = decode(bytes(code), (4, 4))
            except ValueError:
                continue
            assert region.shape == (4, 4)


@pytest.mark.parametrize(
    "lengths", [[3, 2], [3, -1, 4], [10**30], [True, 3], [1.0, 3], [], ["4"], [5]]
)
def test_lengths_that_are_none(lengths):
    with pytest.raises(ValueError, match=r"a run has no length|the runs have"):
        from_run_lengths(lengths, 4)


def inside(points, x, y):
    """Whether a point lies in a polygon, by the crossings of a ray."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > y) != (y1 > y):
            crossings += x > x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    return crossings % 2 == 1


@PROPERTY
@given(
    st.lists(
        st.tuples(st.floats(-5, 25, width=32), st.floats(-5, 25, width=32)),
        min_size=3,
        max_size=8,
    )
)
def test_a_polygon_holds_the_pixels_whose_centres_lie_within(points):
    region = polygon(points, (17, 19))
    expected = [[inside(points, x + 0.5, y + 0.5) for x in range(19)] for y in range(17)]
    assert (region != np.array(expected)).sum() <= 1  # a centre may lie on a side, but for rounding


def test_shapes_are_where_they_are_said_to_be():
    region = polygon(box(2, 3, 7, 5), (10, 12))
    assert bounds(region) == (2, 3, 5, 2)
    assert region.sum() == 10
    upright = polygon(box(2, 2, 8, 6, angle=90), (10, 12))
    assert bounds(upright) == (3, 1, 4, 6)
    disc = ellipse((6, 5), (4, 4), 0.0, (10, 12))
    assert bounds(disc) == (2, 1, 8, 8)
    turned = ellipse((6, 5), (4, 2), 90.0, (10, 12))
    assert bounds(turned) == (4, 1, 4, 8)
    tilted = ellipse((6, 6), (5, 1.5), 45.0, (12, 12))
    assert tilted[8, 8]  # clockwise, as seen with y downwards
    assert not tilted[3, 8]


def test_parts_are_cut_at_the_images_rim():
    part = np.ones((4, 5), np.bool_)
    assert pasted(part, -2, -1, (10, 10)).sum() == 3 * 3
    assert pasted(part, 8, 9, (10, 10)).sum() == 2
    assert pasted(part, 20, 0, (10, 10)).sum() == 0
    assert of_size(part, 3, 2).shape == (2, 3)


@pytest.mark.parametrize(
    "points", [[(0, 0), (1, 1)], [(0, 0), (1, 1), (float("nan"), 3)], [[1, 2]]]
)
def test_polygons_that_are_none(points):
    with pytest.raises(ValueError, match="corner"):
        polygon(points, (4, 4))
    with pytest.raises(ValueError, match="no size"):
        ellipse((0, 0), (0, 1), 0.0, (4, 4))
