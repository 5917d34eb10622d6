"""Images and masks are read as their files' headers say, or refused; and written as they were."""

import io
import struct
import zlib
from functools import partial
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from coseg_lightning.errors import InputError
from coseg_lightning.files.images import (
    ImageRules,
    check_image,
    read_image,
    read_picture,
    read_stored,
)
from coseg_lightning.files.mask_file import save_like
from coseg_lightning.files.mask_folder import MaskFolder, MaskWriter, windows_of_mask
from coseg_lightning.files.mask_rules import MaskRules
from coseg_lightning.files.windows import ImageWindows, TiffWindows, has_tiff_windows


def bands(count, dtype=np.uint16, height=24, width=36):
    values = np.random.default_rng(0).integers(0, 250, (height, width, count))
    return values.astype(dtype)


LAYOUTS = {
    "interleaved": lambda path, a: tifffile.imwrite(
        path, a, photometric="minisblack", planarconfig="contig"
    ),
    "planes": lambda path, a: tifffile.imwrite(
        path, np.moveaxis(a, 2, 0).copy(), photometric="minisblack", planarconfig="separate"
    ),
    "pages": lambda path, a: tifffile.imwrite(
        path, np.moveaxis(a, 2, 0).copy(), photometric="minisblack"
    ),
    "bigtiff, tiles": lambda path, a: tifffile.imwrite(
        path, a, photometric="minisblack", planarconfig="contig", bigtiff=True, tile=(16, 16)
    ),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("count", [2, 3, 4, 12])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_band_of_a_tiff_is_read(tmp_path, layout, count, dtype):
    path, values = tmp_path / "a.tif", bands(count, dtype)
    LAYOUTS[layout](path, values)
    np.testing.assert_array_equal(read_image(path), values)


@pytest.mark.parametrize(
    "compression", ["zstd", "lzma", "lerc", "webp", "deflate", "lzw", "jpeg2000"]
)
def test_compressions_of_tiff_are_read(tmp_path, compression):
    path, values = tmp_path / "a.tif", bands(3, np.uint8)
    options = {"level": 100} if compression in ("webp",) else None
    tifffile.imwrite(
        path, values, photometric="rgb", compression=compression, compressionargs=options
    )
    np.testing.assert_allclose(
        read_image(path).astype(int), values, atol=255 * (compression == "webp")
    )


def test_near_infrared_is_a_band_and_transparency_is_none_unless_it_is_asked_for(tmp_path):
    values = bands(4, np.uint8)
    nir, alpha, png = tmp_path / "nir.tif", tmp_path / "alpha.tif", tmp_path / "a.png"
    tifffile.imwrite(nir, values, photometric="rgb", extrasamples=["unspecified"])
    tifffile.imwrite(alpha, values, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(values).save(png)
    np.testing.assert_array_equal(read_image(nir), values)
    for path in (alpha, png):
        picture = read_picture(path, channels=3)
        np.testing.assert_array_equal(picture.values, values[..., :3])
        assert picture.transparent
        np.testing.assert_array_equal(read_image(path, channels=4), values)
        np.testing.assert_array_equal(read_image(path, bands=[4, 1]), values[..., [3, 0]])


def test_bands_that_are_not_there_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", bands(3, np.uint8), photometric="rgb")
    with pytest.raises(InputError, match=r"has 3 bands, but data.bands=\[1, 5\] asks for band 5"):
        read_image(tmp_path / "a.tif", bands=[1, 5])


def test_the_largest_level_of_a_pyramid_is_read(tmp_path):
    for subifds in (True, False):
        path = tmp_path / f"{subifds}.tif"
        with tifffile.TiffWriter(path) as file:
            file.write(bands(1)[..., 0], subifds=int(subifds), metadata=None)
            file.write(bands(1)[::2, ::2, 0], subfiletype=1, metadata=None)
        np.testing.assert_array_equal(read_image(path), bands(1)[..., 0])


def write_slide(path, values):
    """A file as scanners of slides write it: thumbnail, pyramid, and photos of label and slide."""
    aperio = "Aperio Image Library v11\n"
    with tifffile.TiffWriter(path) as file:
        write = partial(file.write, metadata=None, compression="zlib", description=aperio)
        write(values, tile=(16, 16))
        write(values[::3, ::3])
        write(values[::2, ::2], tile=(16, 16))
        write(values[:9, :9], subfiletype=1)
        write(values[:9, :20], subfiletype=9)


def test_a_slide_is_read_without_its_thumbnail_and_label(tmp_path):
    values = bands(3, np.uint8)
    write_slide(tmp_path / "a.svs", values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.svs"), values)
    assert has_tiff_windows(tmp_path / "a.svs")
    (tmp_path / "masks").mkdir()
    write_slide(tmp_path / "masks/a.tif", disc() * 255)
    _, new = corrected(tmp_path / "masks")
    with tifffile.TiffFile(new) as file:
        assert [page.shape for page in file.pages] == [(24, 36), (12, 18)]


def test_several_pictures_in_a_file_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        file.write(bands(1)[..., 0], metadata=None)
        file.write(bands(1)[:8, :8, 0], metadata=None)
    tifffile.imwrite(
        tmp_path / "slices.tif", np.zeros((40, 8, 9), np.uint8), photometric="minisblack"
    )
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((3, 8, 9, 3), np.uint8), photometric="rgb")
    frames = [Image.new("L", (8, 8), value) for value in (0, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for name, sentence in (
        ("sizes.tif", "holds 2 pictures .36x24, 8x8."),
        ("slices.tif", "holds 40 pages, probably slices"),
        ("pages.tif", "but it may hold only one picture"),
        ("a.gif", "holds 2 pictures, like an animation"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_image(tmp_path / name)


def ome(sizes, planes, own):
    """The description of an OME-TIFF; each plane has a file, if any, and where it begins."""
    text = ""
    for file, first in planes:
        place = "".join(f' First{axis}="{first.get(axis, 0)}"' for axis in "CZT")
        uuid = "" if file is None else f'<UUID FileName="{file}">urn:uuid:{file}</UUID>'
        text += f'<TiffData IFD="0" PlaneCount="1"{place}>{uuid}</TiffData>'
    size = "".join(f' Size{axis}="{sizes.get(axis, 1)}"' for axis in "CZT")
    pixels = f'<Pixels DimensionOrder="XYCZT" Type="uint8" SizeX="36" SizeY="24"{size}>'
    uuid = f' UUID="urn:uuid:{own}"' if own else ""
    return f"<OME{uuid}><Image>{pixels}{text}</Pixels></Image></OME>"


def write_ome(path, values, *description):
    tifffile.imwrite(path, values, description=ome(*description), metadata=None)


@pytest.mark.parametrize("axis", "CZT")
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_one_of_several_ome_files_is_read_without_the_others(tmp_path, caplog, axis, alone, named):
    files = [f"{number}.ome.tif" for number in range(3)]
    planes = [(file, {axis: number}) for number, file in enumerate(files)]
    values = [bands(3, np.uint8)[..., number].copy() for number in range(3)]
    for file, value in zip(files, values, strict=True):
        write_ome(tmp_path / file, value, {axis: 3}, planes, file if named else None)
    path = tmp_path / files[1]
    if alone:
        path = path.rename(tmp_path / "renamed.tif")
        for file in (files[0], files[2]):
            (tmp_path / file).unlink()
    np.testing.assert_array_equal(read_image(path), values[1])
    np.testing.assert_array_equal(read_stored(path).values, values[1])
    assert has_tiff_windows(path)
    np.testing.assert_array_equal(
        TiffWindows(path).read(2, 3, 9, 20)[..., 0], values[1][2:11, 3:23]
    )
    assert not caplog.text


def test_pages_of_one_of_several_ome_files_are_bands_if_they_are_channels(tmp_path):
    values, stack = bands(3, np.uint8), {"photometric": "minisblack", "metadata": None}
    path = tmp_path / "a.tif"

    def write(sizes, places, *, others=()):
        planes = [("a.tif", place) for place in places] + [("b.tif", place) for place in others]
        text = ome(sizes, planes, "a.tif")
        tifffile.imwrite(path, np.moveaxis(values, 2, 0).copy(), description=text, **stack)

    channels = [{"C": 0}, {"C": 1}, {"C": 2}]
    write({"C": 6}, channels, others=[{"C": 3}, {"C": 4}, {"C": 5}])
    np.testing.assert_array_equal(read_image(path), values)
    write({"C": 3, "T": 2}, channels, others=[place | {"T": 1} for place in channels])
    np.testing.assert_array_equal(read_image(path), values)
    for axis in "ZT":
        places = [{axis: number} for number in range(3)]
        write({"C": 2, axis: 3}, places, others=[place | {"C": 1} for place in places])
        for read in (read_image, has_tiff_windows):
            with pytest.raises(InputError, match="holds 3 pages, probably slices"):
                read(path)


def test_an_ome_description_of_more_pages_than_there_are_is_not_believed(tmp_path, caplog):
    value = bands(1, np.uint8)[..., 0]
    planes = [(None, {"C": number}) for number in range(3)]
    write_ome(tmp_path / "a.tif", value, {"C": 3}, planes[:1], None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), value)
    assert not caplog.text


def test_values_where_the_smallest_is_white_are_inverted_and_palettes_are_painted(tmp_path):
    values = bands(1, np.uint8)[..., 0]
    tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "white.tif"), 255 - values)
    table = np.random.default_rng(1).integers(0, 256, (3, 256))
    tifffile.imwrite(
        tmp_path / "palette.tif", values, photometric="palette", colormap=(table * 257).astype("u2")
    )
    np.testing.assert_array_equal(read_image(tmp_path / "palette.tif"), table.T[values])


def test_masks_whose_smallest_value_is_white_are_read_as_imagej_means_them(tmp_path):
    options = {"photometric": "miniswhite", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", disc() * 255, **options)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.tif").values, disc() * 255)
    windows = windows_of_mask(tmp_path / "a.tif", least=0)
    np.testing.assert_array_equal(windows.read(3, 5, 9, 20)[..., 0], 255 * disc()[3:12, 5:25])


@pytest.mark.parametrize("suffix", ["webp", "jp2", "ppm", "tga", "bmp", "png", "gif", "jfif"])
def test_a_format_is_known_by_its_content(tmp_path, suffix):
    values = np.full((20, 30, 3), 40, np.uint8)
    values[5:12, 8:20] = (200, 100, 50)
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(values).save(path, **options)
    lying = tmp_path / "b.jpg"
    lying.write_bytes(path.read_bytes())
    for one in (path, lying):
        read = read_image(one)
        assert read.shape == values.shape
        assert abs(read.astype(int) - values).mean() < 8
    assert {p.suffix for p in tmp_path.iterdir()} == {f".{suffix}", ".jpg"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_images_and_masks_alike(tmp_path, orientation):
    values = np.zeros((20, 30), np.uint8)
    values[2:9, 3:20] = 255
    values[2:5, 3:8] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png", exif=exif)
    masks = MaskFolder(tmp_path / "masks", classes=2)
    read = masks.read("a")
    np.testing.assert_array_equal(read_image(tmp_path / "images/a.png") > 0, read > 0)
    if orientation != 1:
        assert read.shape != values.shape or (read != (values > 0)).any()
    changed = read.copy()
    changed[0, 0] = 1
    masks.write_like("a", tmp_path / "a.png", changed)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png") > 0, changed > 0)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
RAW = b"\nexif\n      26\n" + b"45786966000049492a00080000000100120103000100000006000000"
TURNING = {
    "eXIf": b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00",
    "iTXt": b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + XMP,
    "zTXt": b"Raw profile type exif\x00\x00" + zlib.compress(RAW),
}


@pytest.mark.parametrize("kind", TURNING)
@pytest.mark.parametrize("at_end", [False, True])
def test_an_orientation_is_found_wherever_a_png_keeps_it(tmp_path, kind, at_end):
    """Before the pixels and after them, among other texts."""
    path, values = tmp_path / "a.png", np.arange(600, dtype=np.uint8).reshape(20, 30)
    Image.fromarray(values).save(path)
    plain = path.read_bytes()
    place = plain.index(b"IEND" if at_end else b"IDAT") - 4
    chunks = [(b"tEXt", b"Software\x00anything"), (kind.encode(), TURNING[kind])]
    more = b"".join(
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4)
        for name, content in chunks
    )
    path.write_bytes(plain[:place] + more + plain[place:])
    assert read_image(path).shape == (30, 20)
    with Image.open(path) as file:
        np.testing.assert_array_equal(read_image(path), np.asarray(ImageOps.exif_transpose(file)))
    path.write_bytes(plain)
    np.testing.assert_array_equal(read_image(path), values)


def test_arrays_are_read_with_their_few_bands_last(tmp_path):
    np.save(tmp_path / "a.npy", bands(5))
    np.save(tmp_path / "b.npy", np.moveaxis(bands(5), 2, 0))
    np.save(tmp_path / "c.npy", np.zeros((9, 10, 11)))
    for name in "ab":
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.npy"), bands(5))
    with pytest.raises(InputError, match="holds an array of"):
        read_image(tmp_path / "c.npy", channels=9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3.40282e+38", np.finfo(np.float32).min),
        ("3.4028235e+38", np.finfo(np.float32).max),
        ("-9999,0", -9999),
        ("-9999.9", -9999.9),
        ("nan", np.nan),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_missing_values_of_headers_may_be_rounded_or_have_a_comma(tmp_path, text, value, kind):
    values = np.arange(400, dtype=kind).reshape(20, 20)
    values[:5] = value
    tags = [(42113, "s", 0, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags, metadata=None)
    image = ImageRules().read(tmp_path / "a.tif")
    assert np.isnan(image[:5]).all()
    np.testing.assert_array_equal(image[5:], values[5:])


def test_missing_values_are_nan_and_others_that_are_no_numbers_are_refused(tmp_path):
    values = bands(1, np.float32)[..., 0]
    values[0, :3] = -9999
    tag = (42113, "s", 0, "-9999", True)
    tifffile.imwrite(tmp_path / "tag.tif", values, extratags=[tag])
    tifffile.imwrite(tmp_path / "plain.tif", values)
    values[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    assert np.isnan(ImageRules().read(tmp_path / "tag.tif")).sum() == 3
    assert np.isnan(ImageRules(nodata=-9999).read(tmp_path / "plain.tif")).sum() == 3
    assert np.isnan(ImageRules(nodata=np.nan).read(tmp_path / "nan.tif")).sum() == 1
    remedy = r"not finite numbers, 1 in all \(nan\); .* set data.nodata=nan if they are missing"
    with pytest.raises(InputError, match=remedy):
        ImageRules().read(tmp_path / "nan.tif")


def test_the_value_that_is_not_finite_is_named(tmp_path):
    values = bands(1, np.float32)
    values[0, :3] = -np.inf  # the logarithm of 0
    tifffile.imwrite(tmp_path / "a.tif", values)
    for rules in (ImageRules(), ImageRules(nodata=np.nan)):
        with pytest.raises(InputError, match=r"3 in all \(-inf\); .* or set data.nodata=-inf if"):
            rules.read(tmp_path / "a.tif")
    assert np.isnan(ImageRules(nodata=-np.inf).read(tmp_path / "a.tif")).sum() == 3
    values[0, 3] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    for rules in (ImageRules(), ImageRules(nodata=np.nan)):
        with pytest.raises(InputError, match="inf.*; correct the file, and save one value for all"):
            rules.read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("nodata", "dtype", "count"),
    [("0", np.uint8, 15), ("255", np.uint8, 15), ("0", np.uint16, 15), ("-9999", np.int16, 16)],
)
def test_a_band_may_reach_the_end_of_the_range_that_means_missing(tmp_path, nodata, dtype, count):
    values = bands(3, dtype).clip(1, 200)
    values[0, :5] = values[2, 2, 0] = int(nodata)
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="rgb", extratags=[(42113, "s", 0, nodata, True)]
    )
    assert np.isnan(ImageRules().read(tmp_path / "a.tif")).sum() == count
    windows = ImageWindows(tmp_path / "a.tif", ImageRules(), tmp_path)
    assert np.isnan(windows.read(0, 0, *windows.size)).sum() == count


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"/annex/objects/SHA256E-s1--0.png", "pointer of git-annex"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"II*\0\x08\0\0\0", "cannot be read as an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC picture.*convert it to PNG"),
    ],
)
def test_what_is_no_image_is_said_with_its_cause(tmp_path, content, sentence):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_image(tmp_path / "a.png")


def test_arrays_of_python_objects_are_told(tmp_path):
    ids = np.zeros((4, 5), np.uint8)
    np.save(tmp_path / "a_seg.npy", np.array({"masks": ids}, dtype=object), allow_pickle=True)
    for read in (read_image, read_stored):
        with pytest.raises(InputError, match="holds Python objects.*save the array alone"):
            read(tmp_path / "a_seg.npy")


def disc(height=24, width=36, value=1):
    rows, columns = np.mgrid[:height, :width]
    return (((rows - 11) ** 2 + (columns - 15) ** 2 < 40) * value).astype(np.uint8)


def grey_png(values, bits):
    """A grey PNG of few bits, by libpng."""
    import struct
    import zlib

    rows = b""
    for row in values:
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write_alpha(path, colour):
    ids = disc()
    Image.fromarray(np.dstack([np.full_like(ids, colour)] * 3 + [ids * 255])).save(path)


def write_palette(path, order):
    image = Image.fromarray(disc() if order == "black first" else 1 - disc(), "L")
    image.putpalette(
        [0, 0, 0, 255, 255, 255] if order == "black first" else [255, 255, 255, 0, 0, 0]
    )
    image.save(path)


def write_transparent(path, background, order=(0, 1), colour=0):
    """A palette image of a disc in one colour, on a background that is transparent."""
    image = Image.fromarray(np.array(order, np.uint8)[disc()], "P")
    palette = np.zeros((2, 3), np.uint8)
    palette[order[0]], palette[order[1]] = background, colour
    image.putpalette(palette.ravel().tolist())
    image.save(path, transparency=order[0])


MASKS = {
    "black on transparent white.png": lambda p: write_transparent(p, 255),
    "black on transparent white.gif": lambda p: write_transparent(p, 255),
    "black on transparent white, last.gif": lambda p: write_transparent(p, 255, (1, 0)),
    "black on transparent black, last.png": lambda p: write_transparent(p, 0, (1, 0)),
    "palette, white on transparent.png": lambda p: write_transparent(p, 0, colour=255),
    "white on transparent.png": lambda p: write_alpha(p, 255),
    "black on transparent.png": lambda p: write_alpha(p, 0),
    "palette.png": lambda p: write_palette(p, "black first"),
    "palette, white first.png": lambda p: write_palette(p, "white first"),
    "two bits.png": lambda p: p.write_bytes(grey_png(disc(), 2)),
    "four bits.png": lambda p: p.write_bytes(grey_png(disc(value=1), 4)),
    "one bit.png": lambda p: Image.fromarray(disc() * 255).convert("1").save(p),
    "int64.tif": lambda p: tifffile.imwrite(p, disc().astype(np.int64)),
    "uint32.tif": lambda p: tifffile.imwrite(p, disc().astype(np.uint32)),
    "float32.tif": lambda p: tifffile.imwrite(p, disc().astype(np.float32)),
    "big endian.tif": lambda p: tifffile.imwrite(p, disc().astype(">u2"), byteorder=">"),
    "zstd.tif": lambda p: tifffile.imwrite(p, disc(), compression="zstd", tile=(16, 16)),
    "int64.npy": lambda p: np.save(p, disc().astype(np.int64)),
    "bool.npy": lambda p: np.save(p, disc().astype(bool)),
    "black and white.jpg": lambda p: Image.fromarray(disc() * 255).save(p),
    "lossless.webp": lambda p: Image.fromarray(np.dstack([disc() * 255] * 3)).save(
        p, lossless=True
    ),
    "two.pgm": lambda p: p.write_bytes(b"P5\n36 24\n2\n" + disc().tobytes()),
    "grey in colour.png": lambda p: Image.fromarray(np.dstack([disc() * 255] * 3)).save(p),
    "16 bits.png": lambda p: Image.fromarray(disc().astype(np.uint16) * 65535).save(p),
    "a.gif": lambda p: Image.fromarray(disc() * 255).save(p),
    "a.bmp": lambda p: Image.fromarray(disc() * 255).convert("1").save(p),
    "fax.tif": lambda p: Image.fromarray(disc() * 255).convert("1").save(p, compression="group4"),
    "white is zero.tif": lambda p: tifffile.imwrite(p, disc() * 255, photometric="miniswhite"),
    "white is zero, 16 bits.tif": lambda p: tifffile.imwrite(
        p, disc().astype(np.uint16), photometric="miniswhite"
    ),
    "jpeg inside.tif": lambda p: tifffile.imwrite(p, disc() * 255, compression="jpeg"),
    "jpeg named.png": lambda p: Image.fromarray(disc() * 255).save(p, format="JPEG"),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_means_what_its_pixels_mean_and_is_written_as_it_was(tmp_path, name):
    folder = tmp_path / "masks"
    folder.mkdir()
    path = folder / name
    MASKS[name](path)
    masks = MaskFolder(folder, classes=2)
    (sample_id,) = masks.ids
    np.testing.assert_array_equal(masks.read(sample_id), disc())
    changed = disc()
    changed[3:6, 20:30] = 1
    changed[10:12] = 0
    new = tmp_path / name
    masks.write_like(sample_id, new, changed)
    np.testing.assert_array_equal(masks.read(sample_id), disc())
    if path.suffix not in (".npy", ".tif"):  # of which Pillow cannot open all
        with Image.open(path) as before, Image.open(new) as after:
            assert (after.mode, after.format, after.getpalette()) == (
                before.mode,
                before.format,
                before.getpalette(),
            )
        if path.suffix == ".png" and before.format == "PNG":
            assert new.read_bytes()[24:26] == path.read_bytes()[24:26]  # bits and colour type
    elif path.suffix == ".npy":
        assert np.load(new).dtype == np.load(path).dtype
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as before, tifffile.TiffFile(new) as after:
            for key in ("dtype", "compression", "is_tiled", "photometric"):
                assert getattr(after.pages[0], key) == getattr(before.pages[0], key), key
            assert after.byteorder == before.byteorder
    again = tmp_path / "again"
    again.mkdir()
    new.rename(again / name)
    np.testing.assert_array_equal(MaskFolder(again, classes=2).read(sample_id), changed)


GEO = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
    (42113, "s", 0, "9", True),
]


def test_a_georeferenced_mask_keeps_its_tags_tiles_compression_and_pyramid(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks/a.tif"
    big = np.kron(disc(), np.ones((4, 4), np.uint8))
    with tifffile.TiffWriter(path) as file:
        options = {"compression": "lzw", "tile": (16, 16), "photometric": "minisblack"}
        file.write(big, extratags=GEO, metadata=None, **options)
        file.write(big[::2, ::2], subfiletype=1, metadata=None, **options)
    masks = MaskFolder(tmp_path / "masks", classes=2)
    changed = masks.read("a")
    changed[:40, :40] = 1
    masks.write_like("a", tmp_path / "a.tif", changed)
    with rasterio.open(path) as before, rasterio.open(tmp_path / "a.tif") as after:
        assert after.transform == before.transform
        assert after.crs == before.crs
        assert after.nodata == before.nodata
        assert after.profile["tiled"]
        assert after.compression == before.compression
        assert after.overviews(1) == before.overviews(1) == [2]
        np.testing.assert_array_equal(after.read(1), changed)
        np.testing.assert_array_equal(after.read(1, out_shape=(48, 72)), changed[1::2, 1::2])


def corrected(folder, classes=2):
    """Write the only mask of a folder with another corner, beside the folder."""
    masks = MaskFolder(folder, classes=classes)
    (sample_id,) = masks.ids
    changed = masks.read(sample_id)
    changed[:6, :9] = 1
    new = folder.parent / masks.path(sample_id).name
    masks.write_like(sample_id, new, changed)
    np.testing.assert_array_equal(read_stored(new).values > 0, changed)
    return masks.path(sample_id), new


def tags_of(path):
    """The tags of a TIFF, with the bytes that the file holds."""
    found = {}
    with tifffile.TiffFile(path) as file:
        for tag in file.pages.first.tags:
            file.filehandle.seek(tag.valueoffset)
            value = file.filehandle.read(tag.valuebytecount)
            found[tag.code] = (tag.dtype, tag.count, value)
    return found


@pytest.mark.parametrize(
    "options",
    {
        "OME": {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeXUnit": "µm"}},
        "UTF-8": {"description": "Gebäude".encode(), "software": "Gerät".encode()},
        "Latin-1": {"description": "Gebäude".encode("latin1")},
        "artist": {"extratags": [(315, "s", 0, "Jörg".encode(), True)]},
        "GDAL": {"extratags": [(42112, "s", 0, "<Item>Gebäude</Item>".encode(), True)]},
        "date": {"extratags": [(306, "s", 0, b"2020-01-01T00:00:00Z", True)]},
        "overlay": {"imagej": True, "metadata": {"Overlays": [bytes(64)], "ROI": bytes(64)}},
        "rational": {"extratags": [(286, 5, 1, (7, 2), True)]},
        "look-up table": {"imagej": True, "metadata": {"LUTs": [np.zeros((3, 256), np.uint8)]}},
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tags_are_kept_as_the_bytes_that_they_are(tmp_path, options, byteorder):
    (tmp_path / "masks").mkdir()
    options = {"metadata": None} | options[1]
    if not options.get("imagej"):
        options["byteorder"] = byteorder
    tifffile.imwrite(tmp_path / "masks/a.tif", disc() * 255, **options)
    before, after = map(tags_of, corrected(tmp_path / "masks"))
    for code in before.keys() - {273, 279}:  # where the pixels lie
        assert after[code] == before[code]
    assert after.keys() - before.keys() <= {254}


def test_a_preview_in_colours_is_not_written_as_a_mask(tmp_path):
    (tmp_path / "masks").mkdir()
    with tifffile.TiffWriter(tmp_path / "masks/a.tif") as file:
        file.write(disc() * 255, metadata=None)
        preview = np.dstack([disc()[::4, ::4]] * 3)
        file.write(preview, subfiletype=1, photometric="rgb", metadata=None)
        file.write(disc()[::2, ::2] * 255, subfiletype=1, metadata=None)
    _, new = corrected(tmp_path / "masks")
    with tifffile.TiffFile(new) as file:
        assert [page.shape for page in file.pages] == [(24, 36), (12, 18)]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no such compression"), InputError, "a.tif can be read, but a file like it"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
    ],
)
def test_a_mask_that_cannot_be_written_is_named(tmp_path, monkeypatch, error, kind, message):
    def fails(*_, **__):
        raise error

    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks/a.tif", disc())
    monkeypatch.setattr(tifffile.TiffWriter, "write", fails)
    with pytest.raises(kind, match=message):
        corrected(tmp_path / "masks")


@pytest.mark.parametrize("compress", [None, "lzw"])
@pytest.mark.parametrize(
    ("bits", "palette"), [(1, False), (1, True), (2, False), (4, True), (12, 0)]
)
def test_a_mask_of_few_bits_keeps_its_tiles_and_tags(tmp_path, caplog, bits, palette, compress):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "masks/a.tif"
    path.parent.mkdir()
    options = {"driver": "GTiff", "height": 24, "width": 36, "count": 1, "nbits": bits}
    options |= {"tiled": True, "blockxsize": 16, "blockysize": 16, "crs": "EPSG:32633"}
    options |= {"dtype": "uint16" if bits > 8 else "uint8", "compress": compress}
    options |= {"photometric": "palette"} if palette else {}
    options["transform"] = rasterio.transform.from_origin(5e5, 4e6, 10, 10)
    with rasterio.open(path, "w", **options) as file:
        file.write(disc().astype(options["dtype"]), 1)
        if palette:
            file.write_colormap(1, {0: (0, 0, 0), 1: (200, 0, 0)})
    masks = MaskFolder(path.parent, classes=2)
    changed = masks.read("a")
    changed[:6, :9] = 1
    (tmp_path / "new").mkdir()
    writer = MaskWriter(masks, tmp_path / "new")
    writer.write("a", changed)
    writer.finish()
    assert ("few bits were written with 8 or 16" in caplog.text) == (bits > 1 or palette)
    with rasterio.open(path) as before, rasterio.open(tmp_path / "new/a.tif") as after:
        np.testing.assert_array_equal(after.read(1), changed)
        assert (after.crs, after.transform) == (before.crs, before.transform)
        assert after.block_shapes == before.block_shapes
        assert after.compression == before.compression
        if palette:
            assert after.colormap(1)[1] == before.colormap(1)[1] == (200, 0, 0, 255)
        else:
            assert (after.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1") == (bits == 1)


@pytest.mark.parametrize("hidden", [0, 255])
def test_a_mask_in_transparency_may_be_empty(tmp_path, hidden):
    (tmp_path / "masks").mkdir()
    write_alpha(tmp_path / "masks/a.png", 255)
    empty = np.full((24, 36, 4), hidden, np.uint8)
    empty[..., 3] = 0
    Image.fromarray(empty).save(tmp_path / "masks/b.png")
    masks = MaskFolder(tmp_path / "masks", classes=2)
    assert not masks.read("b").any()
    masks.write_like("b", tmp_path / "b.png", disc())
    with Image.open(tmp_path / "b.png") as file:  # what is drawn is opaque
        np.testing.assert_array_equal(np.asarray(file)[..., 3], disc() * 255)


@pytest.mark.parametrize("value", [1, 255])
def test_an_empty_mask_with_a_band_of_valid_pixels_is_not_full(tmp_path, value):
    (tmp_path / "masks").mkdir()
    valid = np.full((24, 36), 255, np.uint8)
    valid[:, :8] = 0
    for name, mask in {"a": disc() * (valid > 0), "b": np.zeros_like(valid)}.items():
        values = np.stack([mask * np.uint8(value), valid], 2)
        tifffile.imwrite(
            tmp_path / f"masks/{name}.tif", values, photometric="minisblack", extrasamples=[2]
        )
    with pytest.raises(InputError, match=r"1 of 2 masks in .*, such as b\.tif, are black where"):
        MaskFolder(tmp_path / "masks", classes=2)
    (tmp_path / "masks/b.tif").unlink()
    np.testing.assert_array_equal(
        MaskFolder(tmp_path / "masks", classes=2).read("a"), disc() * (valid > 0)
    )


def test_alpha_beside_class_ids_is_kept(tmp_path):
    (tmp_path / "masks").mkdir()
    alpha = np.full((24, 36), 77, np.uint8)
    Image.fromarray(np.dstack([disc() * 255, alpha]), "LA").save(tmp_path / "masks/a.png")
    masks = MaskFolder(tmp_path / "masks", classes=2)
    changed = disc()
    changed[:3] = 1
    masks.write_like("a", tmp_path / "a.png", changed)
    with Image.open(tmp_path / "a.png") as file:
        values = np.asarray(file)
    np.testing.assert_array_equal(values[..., 0], changed * 255)
    np.testing.assert_array_equal(values[..., 1], alpha)


def test_colours_name_classes(tmp_path):
    (tmp_path / "masks").mkdir()
    table = tmp_path / "colours.csv"
    table.write_text(
        "name,r,g,b\nbackground,0,0,0\nroad,128,64,128\nvoid,255,255,255\ntree,0,90,0\n"
    )
    ids = disc() + 2 * np.roll(disc(), 16, axis=1)
    painted = np.array([(0, 0, 0), (128, 64, 128), (0, 90, 0)], np.uint8)[ids.clip(0, 2)]
    painted[0] = 255
    Image.fromarray(painted).save(tmp_path / "masks/a.png")
    wanted = ids.clip(0, 2)
    wanted[0] = 255
    rules = MaskRules.from_settings({"classes": 3, "colours": str(table)})
    masks = MaskFolder(tmp_path / "masks", classes=3, rules=rules)
    np.testing.assert_array_equal(masks.read("a"), wanted)
    wanted[5:9, 2:9] = 2
    masks.write_like("a", tmp_path / "a.png", wanted)
    with Image.open(tmp_path / "a.png") as file:
        assert tuple(np.asarray(file)[6, 4]) == (0, 90, 0)
    painted[3, 3] = (1, 2, 3)
    Image.fromarray(painted).save(tmp_path / "masks/b.png")
    with pytest.raises(InputError, match=r"does not name: \(1, 2, 3\) in 1 pixels"):
        MaskFolder(tmp_path / "masks", classes=3, rules=rules)


@pytest.mark.parametrize("name", ["__ignore__", "don't care", "Dont_Care", "VOID "])
def test_names_of_no_class(tmp_path, name):
    table = tmp_path / "colours.csv"
    table.write_text(f"name,r,g,b\n{name},0,0,0\n_background_,0,0,9\nlesion,9,0,0\n")
    colours = MaskRules.from_settings({"classes": 2, "colours": str(table)}).colours
    assert colours == {(0, 0, 9): 0, (0, 0, 0): 255, (9, 0, 0): 1}


def test_numbers_of_no_class(tmp_path):
    table = tmp_path / "colours.csv"
    rows = "name,class,r,g,b\nother,{},0,0,0\nsky,0,0,0,9\nlesion,1,{},0,0\n"
    table.write_text(rows.format(-1, 9))
    colours = MaskRules.from_settings({"classes": 2, "colours": str(table)}).colours
    assert colours == {(0, 0, 0): 255, (0, 0, 9): 0, (9, 0, 0): 1}
    for number, red, sentence in (
        (300, 9, "names the class 300; give 0 to 254, or 255 for unlabelled"),
        (-2, 9, "names the class -2; give 0 to 254"),
        (-1, 300, "names the colour .* of lesion; give three numbers from 0 to 255"),
    ):
        table.write_text(rows.format(number, red))
        with pytest.raises(InputError, match=sentence):
            MaskRules.from_settings({"classes": 2, "colours": str(table)})


def test_the_background_is_class_0_wherever_it_stands(tmp_path):
    label_map, table = tmp_path / "labelmap.txt", tmp_path / "colours.csv"
    label_map.write_text("# label:color_rgb:parts:actions\naorta:255,0,0::\nbackground:0,0,0::\n")
    table.write_text("name,r,g,b\naorta,255,0,0\nBackground,0,0,0\n")
    for path in (label_map, table):
        colours = MaskRules.from_settings({"classes": 2, "colours": str(path)}).colours
        assert colours == {(0, 0, 0): 0, (255, 0, 0): 1}
    table.write_text("name,class,r,g,b\naorta,0,255,0,0\nbackground,1,0,0,0\n")
    colours = MaskRules.from_settings({"classes": 2, "colours": str(table)}).colours
    assert colours == {(0, 0, 0): 1, (255, 0, 0): 0}  # as it says
    table.write_text("id,name,r,g,b\n2,red,255,0,0\n1,green,0,255,0\n")
    with pytest.raises(InputError, match="has a column id, which is not read; call it class if"):
        MaskRules.from_settings({"classes": 2, "colours": str(table)})


def test_what_is_drawn_on_a_transparent_colour_mask_is_seen(tmp_path):
    (tmp_path / "masks").mkdir()
    table, ids = tmp_path / "colours.csv", disc()
    table.write_text("name,r,g,b\nbackground,0,0,0\nred,200,0,0\ngreen,0,200,0\n")
    painted = np.array([(0, 0, 0, 0), (200, 0, 0, 180)], np.uint8)[ids]
    Image.fromarray(painted, "RGBA").save(tmp_path / "masks/a.png")
    rules = MaskRules.from_settings({"classes": 3, "colours": str(table)})
    masks = MaskFolder(tmp_path / "masks", classes=3, rules=rules)
    drawn = ids.copy()
    drawn[:4], drawn[4:6], drawn[-12:] = 1, 2, 0
    masks.write_like("a", tmp_path / "a.png", drawn)
    with Image.open(tmp_path / "a.png") as file:
        alpha = np.asarray(file)[..., 3]
    np.testing.assert_array_equal(alpha, np.array([0, 180, 255])[drawn])
    moved = np.roll(ids, 40, axis=1)  # nothing of it stays where it was
    masks.write_like("a", tmp_path / "b.png", moved)
    with Image.open(tmp_path / "b.png") as file:
        np.testing.assert_array_equal(np.asarray(file)[..., 3], np.array([0, 180])[moved])
    Image.fromarray(np.zeros_like(painted), "RGBA").save(tmp_path / "masks/a.png")
    masks = MaskFolder(tmp_path / "masks", classes=3, rules=rules)
    masks.write_like("a", tmp_path / "c.png", ids)  # where there was no object
    with Image.open(tmp_path / "c.png") as file:
        np.testing.assert_array_equal(np.asarray(file)[..., 3], np.array([0, 255])[ids])


RED_AND_GREEN = "name,r,g,b\nbackground,0,0,0\nred,255,0,0\ngreen,0,255,0\n"


def painted_masks(tmp_path, table, classes, **files):
    """Save masks, and open their folder with a table of colours."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "colours.csv").write_text(table)
    for name, image in files.items():
        image.save(tmp_path / f"masks/{name}.png", **image.info)
    settings = {"classes": classes, "colours": str(tmp_path / "colours.csv")}
    rules = MaskRules.from_settings(settings)
    return MaskFolder(tmp_path / "masks", classes=classes, rules=rules)


def written_again(tmp_path, masks, sample_id, mask):
    """Write a mask like another one, and read it by the same rules."""
    suffix = masks.path(sample_id).suffix
    (tmp_path / "again").mkdir(exist_ok=True)
    path = tmp_path / f"again/{sample_id}{suffix}"
    masks.write_like(sample_id, path, mask)
    return MaskFolder(tmp_path / "again", classes=masks.classes, rules=masks.rules).read(sample_id)


def test_colours_that_transparency_hides_are_the_background(tmp_path):
    ids = disc()
    ids[-4:] = 2
    colours = np.array([(255, 0, 0, 0), (255, 0, 0, 255), (0, 255, 0, 255)], np.uint8)
    palette = Image.fromarray(ids, "P")
    palette.putpalette(colours[:, :3].ravel().tolist())
    palette.info["transparency"] = bytes([0, 255, 255])
    hidden = np.where(ids[..., None] > 0, colours[ids], [9, 9, 9, 0]).astype(np.uint8)
    masks = painted_masks(
        tmp_path,
        RED_AND_GREEN,
        3,
        a=Image.fromarray(colours[ids]),
        b=palette,
        c=Image.fromarray(hidden),
    )
    for sample_id in masks.ids:
        np.testing.assert_array_equal(masks.read(sample_id), ids)
        changed = ids.copy()
        changed[:3], changed[10:12] = 2, 0
        np.testing.assert_array_equal(written_again(tmp_path, masks, sample_id, changed), changed)
    assert not written_again(tmp_path, masks, "a", np.zeros_like(ids)).any()
    for colour in colours[1:, :3]:
        Image.fromarray(np.full((24, 36, 4), [*colour, 0], np.uint8)).save(tmp_path / "masks/a.png")
        masks = MaskFolder(tmp_path / "masks", classes=3, rules=masks.rules)
        assert masks.read("a").all()  # where all is transparent, the colours count


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_has_the_colours_that_it_shows(tmp_path, bits):
    table = "name,r,g,b\nbackground,0,0,0\nhouse,255,255,255\n"
    masks = painted_masks(tmp_path, table, 2, a=Image.fromarray(np.dstack([disc() * 255] * 3)))
    (tmp_path / "masks/b.png").write_bytes(grey_png(disc() * (2**bits - 1), bits))
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=masks.rules)
    np.testing.assert_array_equal(masks.read("b"), disc())
    moved = np.roll(disc(), 5, axis=1)
    np.testing.assert_array_equal(written_again(tmp_path, masks, "b", moved), moved)


def test_known_palettes_are_those_of_their_datasets():
    voc = MaskRules.from_settings({"classes": 21, "colours": "voc"}).colours
    assert voc[(128, 0, 0)] == 1
    assert voc[(0, 64, 128)] == 20
    assert voc[(224, 224, 192)] == 255
    cityscapes = MaskRules.from_settings({"classes": 19, "colours": "cityscapes"}).colours
    assert cityscapes[(128, 64, 128)] == 0
    assert cityscapes[(119, 11, 32)] == 18


def test_gaps_thresholds_and_instances(tmp_path):
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks/a.png"
    gaps = np.array([0, 4, 9], np.uint8)[disc() + (np.arange(36) > 30)]
    Image.fromarray(gaps).save(path)
    rules = MaskRules.from_settings({"classes": 3, "class_ids": [0, 4, 9]})
    masks = MaskFolder(tmp_path / "masks", classes=3, rules=rules)
    np.testing.assert_array_equal(masks.read("a"), np.searchsorted([0, 4, 9], gaps))
    changed = masks.read("a")
    changed[:4] = 2
    masks.write_like("a", tmp_path / "a.png", changed)
    with Image.open(tmp_path / "a.png") as file:
        assert set(np.unique(np.asarray(file)[:4])) == {9}
    soft = (np.linspace(0, 255, 24 * 36).reshape(24, 36)).astype(np.uint8)
    Image.fromarray(soft).save(path)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=128))
    np.testing.assert_array_equal(masks.read("a"), soft >= 128)
    changed = masks.read("a")
    changed[0, 0] = 1
    masks.write_like("a", tmp_path / "a.png", changed)
    with Image.open(tmp_path / "a.png") as file:
        same = np.asarray(file) == soft
    assert same.sum() == soft.size - 1  # what stays as it is keeps its value
    objects = disc(value=7) + np.roll(disc(value=3), 18, axis=1)
    Image.fromarray(objects).save(path)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    np.testing.assert_array_equal(masks.read("a"), objects > 0)
    objects[:2] = 255
    Image.fromarray(objects).save(path)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    wanted = np.where(objects == 255, 255, objects > 0)
    np.testing.assert_array_equal(masks.read("a"), wanted)  # unlabelled, and no 255th object
    changed = wanted.copy()
    changed[12] = 1
    masks.write_like("a", tmp_path / "a.png", changed)
    with Image.open(tmp_path / "a.png") as file:
        assert set(np.unique(np.asarray(file)[12])) == {3, 7}
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    assert masks.read("a").sum() == 255


def soft_mask(kind=np.uint8, top=255):
    """A disc whose levels fall towards its outline, and the disc above half of them."""
    rows, columns = np.mgrid[:24, :36]
    share = np.clip(1.5 - np.hypot(rows - 11, columns - 15) / 9, 0, 1)
    levels = (share * top).astype(kind)
    return levels, (levels >= top / 2).astype(np.uint8)


def grey_palette(levels):
    """An image whose palette counts down from white to black."""
    image = Image.fromarray(255 - levels, "P")
    image.putpalette(np.repeat(np.arange(256)[::-1], 3).tolist())
    return image


SOFT = {
    "palette.png": lambda p: grey_palette(soft_mask()[0]).save(p),
    "one bit.png": lambda p: Image.fromarray(soft_mask()[1] * 255).convert("1").save(p),
    "two bits.png": lambda p: p.write_bytes(grey_png(soft_mask()[1] * 3, 2)),
    "four bits.png": lambda p: p.write_bytes(grey_png(soft_mask()[1] * 15, 4)),
    "bool.npy": lambda p: np.save(p, soft_mask()[1].astype(bool)),
    "grey.png": lambda p: Image.fromarray(soft_mask()[0]).save(p),
}


@pytest.mark.parametrize("name", SOFT)
def test_soft_masks_are_compared_by_the_grey_that_they_show(tmp_path, name):
    (tmp_path / "masks").mkdir()
    SOFT[name](tmp_path / "masks" / name)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=128))
    (sample_id,) = masks.ids
    truth = soft_mask()[1]
    np.testing.assert_array_equal(masks.read(sample_id), truth)
    changed = truth.copy()
    changed[:3], changed[10:12] = 1, 0
    np.testing.assert_array_equal(written_again(tmp_path, masks, sample_id, changed), changed)


@pytest.mark.parametrize("nodata", ["-9999", "nan", "-3.4028234663852886e+38"])
def test_what_a_soft_mask_lacks_is_unlabelled(tmp_path, nodata):
    (tmp_path / "masks").mkdir()
    levels, truth = soft_mask(np.float32, 1)
    levels[:, :5], truth[:, :5] = float(nodata), 255
    tag = (42113, "s", 0, nodata, True)
    tifffile.imwrite(tmp_path / "masks/a.tif", levels, extratags=[tag])
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=0.5))
    np.testing.assert_array_equal(masks.read("a"), truth)
    changed = truth.copy()
    changed[:3], changed[10:12], changed[-1] = 1, 0, 255
    np.testing.assert_array_equal(written_again(tmp_path, masks, "a", changed), changed)


def test_logits_are_written_as_logits(tmp_path):
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/a.npy", 8 * disc().astype(np.float32) - 4)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=0))
    changed = np.roll(disc(), 5, axis=1)
    np.testing.assert_array_equal(written_again(tmp_path, masks, "a", changed), changed)
    assert set(np.load(tmp_path / "again/a.npy").flat) == {-4, 4}


def test_thresholds_that_do_not_fit_the_files_are_refused(tmp_path):
    (tmp_path / "masks").mkdir()
    rules = MaskRules(2, threshold=128)
    deep = soft_mask(np.uint16, 65535)[0]
    Image.fromarray(deep).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match=r"up to 65535, but data.mask_threshold=128 is for"):
        MaskFolder(tmp_path / "masks", classes=2, rules=rules)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=32768))
    np.testing.assert_array_equal(masks.read("a"), deep >= 32768)
    coloured = Image.fromarray(disc(), "P")
    coloured.putpalette([0, 0, 0, 255, 0, 0])
    coloured.save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match="has a palette of colours, but data.mask_threshold"):
        MaskFolder(tmp_path / "masks", classes=2, rules=rules)


@pytest.mark.parametrize(
    ("levels", "is_told"),
    [
        (soft_mask()[0], True),
        (soft_mask(np.float32, 255)[0], True),
        (soft_mask(np.float32, 1)[0], False),
        (soft_mask()[1] * np.uint8(255), False),
        (soft_mask()[0] // 32, False),  # few class ids, of which all are to be one class
    ],
)
def test_a_share_for_levels_up_to_255_is_told(tmp_path, caplog, levels, is_told):
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/a.npy", levels)
    MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=0.5))
    sentence = "hold levels up to 255, of which data.mask_threshold=0.5 makes the faintest class 1"
    assert (sentence in caplog.text) == is_told
    assert ("if half is meant, set data.mask_threshold=128" in caplog.text) == is_told


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_objects_that_are_drawn_apart_get_numbers_of_their_own(tmp_path, kind):
    (tmp_path / "masks").mkdir()
    objects = np.zeros((20, 30), kind)
    objects[2:6, 2:6], objects[2:6, 10:14], objects[:, 29] = 7, 3, 255
    Image.fromarray(objects).save(tmp_path / "masks/a.png")
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    drawn = masks.read("a")
    drawn[6:8, 2:6] = 1  # object 7 grows
    drawn[12:15, 2:5] = drawn[15, 5] = 1  # a new one; corners touch
    drawn[12:15, 12:15] = 1  # and another one
    masks.write_like("a", tmp_path / "a.png", drawn)
    with Image.open(tmp_path / "a.png") as file:
        written = np.asarray(file)
    expected = objects.copy()
    expected[6:8, 2:6], expected[12:15, 2:5], expected[15, 5], expected[12:15, 12:15] = 7, 8, 8, 9
    np.testing.assert_array_equal(written, expected)


def test_new_objects_have_numbers_that_the_file_can_hold(tmp_path):
    (tmp_path / "masks").mkdir()
    objects = np.zeros((20, 30), np.uint8)
    objects[2:6, 2:6], objects[2:6, 10:14] = 1, 3
    palette = Image.fromarray(objects).convert("P")
    palette.putdata(objects.ravel().tolist())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "masks/a.png", bits=2)
    Image.fromarray(51 * objects).save(tmp_path / "masks/b.png")
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    for name, expected in (("a", 2), ("b", 154)):
        drawn = masks.read(name)
        drawn[12:15, 12:15] = 1
        masks.write_like(name, tmp_path / f"{name}.png", drawn)
        with Image.open(tmp_path / f"{name}.png") as file:
            assert np.unique(np.asarray(file)[12:15, 12:15]).tolist() == [expected]
        drawn[17:19, 2:4] = 1
        if name == "a":
            with pytest.raises(InputError, match="would hold 2 more objects, but .* up to 3 only"):
                masks.write_like(name, tmp_path / "c.png", drawn)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_a_channel_for_each_class_is_no_colour(tmp_path, classes, suffix):
    (tmp_path / "masks").mkdir()
    ids = disc() + (np.roll(disc(), 9, axis=1) if classes == 3 else 0)
    channels = np.stack([ids == k for k in range(classes)]).astype(np.uint8)
    if suffix == ".npy":
        np.save(tmp_path / "masks/a.npy", channels)
    else:
        channels = np.concatenate([channels, channels[:1]]) if classes == 3 else channels
        tifffile.imwrite(tmp_path / "masks/a.tif", channels, photometric="minisblack")
    with pytest.raises(InputError, match=r"a\.\w+ holds \d channels, but a mask holds one class"):
        MaskFolder(tmp_path / "masks", classes=classes)


def test_objects_in_colours_are_to_be_saved_in_grey(tmp_path):
    (tmp_path / "masks").mkdir()
    panoptic = disc()[..., None] * np.array([7, 200, 1], np.uint8)
    Image.fromarray(panoptic).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match="instances=foreground reads the number of") as error:
        MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    assert "data.colours" not in str(error.value)


def test_an_object_without_a_number_is_refused(tmp_path):
    (tmp_path / "masks").mkdir()
    objects = np.zeros((20, 30), np.uint8)
    objects[:9] = np.minimum(np.arange(270) + 1, 253).reshape(9, 30)
    objects[19] = 255
    Image.fromarray(objects).save(tmp_path / "masks/a.png")
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))
    drawn = masks.read("a")
    drawn[10:12, 3:5] = 1
    with pytest.raises(InputError, match="would hold 1 more objects, but .* up to 255 only"):
        masks.write_like("a", tmp_path / "a.png", drawn)


@pytest.mark.parametrize(
    ("missing", "kind"), [("2", "u1"), ("-9999", "i2"), ("nan", "f4"), ("-7", "i1")]
)
def test_what_a_masks_own_header_calls_missing_is_unlabelled(tmp_path, missing, kind):
    (tmp_path / "masks").mkdir()
    values = disc().astype(kind)
    values[:3] = float(missing)
    tags = [(42113, 2, len(missing) + 1, missing, True)]
    tifffile.imwrite(tmp_path / "masks/a.tif", values, extratags=tags, metadata=None)
    masks = MaskFolder(tmp_path / "masks", classes=3)
    wanted = disc().copy()
    wanted[:3] = 255
    np.testing.assert_array_equal(masks.read("a"), wanted)
    np.testing.assert_array_equal(
        masks.windows("a", tmp_path).read(1, 2, 10, 20), wanted[1:11, 2:22]
    )
    changed = wanted.copy()
    changed[5] = 1
    masks.write_like("a", tmp_path / "a.tif", changed)
    stored = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(stored[:3], values[:3])


@pytest.mark.parametrize(("missing", "kind"), [("-9999", np.int16), ("nan", np.float32)])
def test_missing_pixels_beside_255_for_class_1_are_told_apart(tmp_path, missing, kind):
    (tmp_path / "masks").mkdir()
    values = disc().astype(kind) * kind(255)
    values[:3] = float(missing)
    tags = [(42113, "s", 0, missing, True)]
    tifffile.imwrite(tmp_path / "masks/a.tif", values, extratags=tags, metadata=None)
    Image.fromarray(disc() * np.uint8(255)).save(tmp_path / "masks/b.png")
    with pytest.raises(InputError, match=r"which their headers call missing, beside 255 for cl"):
        MaskFolder(tmp_path / "masks", classes=2)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, class_ids=(0, 255)))
    wanted = disc().copy()
    wanted[:3] = 255
    np.testing.assert_array_equal(masks.read("a"), wanted)
    np.testing.assert_array_equal(masks.windows("a", tmp_path).read(1, 2, 9, 9), wanted[1:10, 2:11])
    changed = wanted.copy()
    changed[5], changed[6] = 1, 255 if kind == np.int16 else 0
    np.testing.assert_array_equal(written_again(tmp_path, masks, "a", changed), changed)


@pytest.mark.parametrize("empty", [1, 3])
def test_missing_pixels_of_empty_masks_are_no_class_1(tmp_path, empty, caplog):
    """Most tiles of a map may be empty."""
    (tmp_path / "masks").mkdir()
    for number in range(empty + 1):
        values = disc().astype(np.int16) * int(number == 1 < empty)
        values[:3] = -9999
        tags = [(42113, "s", 0, "-9999", True)]
        path = tmp_path / f"masks/{number}.tif"
        tifffile.imwrite(path, values, extratags=tags, metadata=None)
    masks = MaskFolder(tmp_path / "masks", classes=2)
    np.testing.assert_array_equal(masks.read("0"), np.where(values < 0, 255, 0))
    assert "255" not in caplog.text


@pytest.mark.parametrize("padding", [("SS", -2000), ("US", 65536 - 2000)])
def test_what_a_dicom_header_calls_padding_is_missing(tmp_path, padding):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = FileDataset(str(tmp_path / "a.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
    values = np.full((12, 10), 30, np.int16)
    values[:, 4:] = 90
    values[:2] = -2000
    data.Rows, data.Columns = values.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 1, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.RescaleSlope, data.RescaleIntercept = 2, -100
    data.add_new("PixelPaddingValue", *padding)
    data.PixelData = values.tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = ImageRules().read(tmp_path / "a.dcm")
    assert np.isnan(image[:2]).all()
    np.testing.assert_array_equal(image[2:], 2 * values[2:] - 100)


@pytest.mark.parametrize(
    ("values", "classes", "sentence"),
    [
        (np.array([0, 1, 4, 9]), 3, r"holds the class ids 4, 9, .*data.class_ids=\[0,1,4,9\]"),
        (np.r_[np.arange(200), [0] * 300, [199] * 300], 2, "data.mask_threshold=128"),
        (np.arange(8), 2, "data.instances=foreground"),
    ],
)
def test_all_ids_are_named_and_so_is_the_remedy(tmp_path, values, classes, sentence):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.resize(values, (24, 36)).astype(np.uint8)).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match=sentence):
        MaskFolder(tmp_path / "masks", classes=classes)


def test_a_value_that_is_no_class_is_named_by_its_grey(tmp_path):
    trimap = 2 - disc() + np.roll(disc(), 18, axis=1)  # 1 the object, 2 around it, 3 no class
    (tmp_path / "masks").mkdir()
    Image.fromarray(trimap.astype(np.uint8)).save(tmp_path / "masks/a.png")
    Image.fromarray(trimap.astype(np.uint16)).save(tmp_path / "masks/b.png")
    np.save(tmp_path / "masks/c.npy", trimap.astype(np.int64))
    message = r"no class may have class 255 in a table data.colours=FILE\."
    with pytest.raises(InputError, match=message):
        MaskFolder(tmp_path / "masks", classes=2)
    (tmp_path / "colours.csv").write_text("r,g,b,class\n1,1,1,1\n2,2,2,0\n3,3,3,255\n")
    rules = MaskRules.from_settings({"classes": 2, "colours": str(tmp_path / "colours.csv")})
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=rules)
    wanted = np.array([9, 1, 0, 255])[trimap]
    changed = wanted.copy()
    changed[:3], changed[10:12] = 255, 1
    for sample_id in masks.ids:
        np.testing.assert_array_equal(masks.read(sample_id), wanted)
        np.testing.assert_array_equal(written_again(tmp_path, masks, sample_id, changed), changed)
    np.save(tmp_path / "masks/d.npy", trimap.astype(np.int64) + 300)
    with pytest.raises(InputError, match="d.npy holds 1 channel of int64; data.colours needs RGB"):
        MaskFolder(tmp_path / "masks", classes=2, rules=rules)


def with_key(png, *key):
    """A PNG that calls a grey or colour transparent (tRNS)."""
    chunk = b"tRNS" + struct.pack(f">{len(key)}H", *key)
    return (
        png[:33]
        + struct.pack(">I", 2 * len(key))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + png[33:]
    )


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (disc() * 255, (255,)),
        (disc(), (1,)),
        (disc() > 0, (1,)),
        (np.dstack([disc() * 255] * 3), (255, 255, 255)),
        (disc() * np.uint16(65535), (65535,)),
    ],
    ids=["grey", "ids", "1 bit", "colours", "16 bits"],
)
def test_masks_that_call_class_1_transparent_are_refused(tmp_path, values, key):
    (tmp_path / "masks").mkdir()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    path = tmp_path / "masks/a.png"
    path.write_bytes(with_key(file.getvalue(), *key))
    advice = (
        rf"such as a.png, call the value {key[0]} transparent, .* data.class_ids=\[{key[0]},0\]"
    )
    with pytest.raises(InputError, match=advice):
        MaskFolder(path.parent, classes=2)
    for ids, wanted in (([key[0], 0], 1 - disc()), ([0, key[0]], disc())):
        rules = MaskRules.from_settings({"class_ids": ids})
        masks = MaskFolder(path.parent, classes=2, rules=rules)
        np.testing.assert_array_equal(masks.read("a"), wanted)
    path.write_bytes(with_key(file.getvalue(), *(0 for _ in key)))
    np.testing.assert_array_equal(MaskFolder(path.parent, classes=2).read("a"), disc())


@pytest.mark.parametrize("classes", [3, 21])
def test_jpeg_holds_no_class_ids(tmp_path, classes):
    (tmp_path / "masks").mkdir()
    Image.fromarray(disc(value=2)).save(tmp_path / "masks/a.jpg")
    with pytest.raises(InputError, match="is a JPEG, and JPEG compression changes class ids"):
        MaskFolder(tmp_path / "masks", classes=classes)
    for rules in (None, MaskRules(2, instances=True)):
        with pytest.raises(InputError, match="is a JPEG, and JPEG compression changes class ids"):
            MaskFolder(tmp_path / "masks", classes=2, rules=rules)


def test_an_empty_jpeg_may_hold_noise_if_others_hold_objects(tmp_path):
    (tmp_path / "masks").mkdir()
    noise = np.random.default_rng(1).integers(0, 4, (24, 36)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "masks/a.jpg", quality=70)
    with pytest.raises(InputError, match="is a JPEG, and JPEG compression changes class ids"):
        MaskFolder(tmp_path / "masks", classes=2)  # they may be class ids
    Image.fromarray(disc() * 255).save(tmp_path / "masks/b.jpg")
    masks = MaskFolder(tmp_path / "masks", classes=2)
    assert not masks.read("a").any()
    np.testing.assert_array_equal(masks.read("b"), disc())


def test_boolean_arrays_may_lie_among_masks_of_0_and_255(tmp_path):
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/a.npy", disc().astype(bool))
    tifffile.imwrite(tmp_path / "masks/b.tif", disc().astype(bool))
    Image.fromarray(disc() * 255).save(tmp_path / "masks/c.png")
    masks = MaskFolder(tmp_path / "masks", classes=2)
    for sample_id in "abc":
        np.testing.assert_array_equal(masks.read(sample_id), disc())
        moved = np.roll(disc(), 5, axis=1)
        masks.write_like(sample_id, tmp_path / masks.path(sample_id).name, moved)
    assert np.load(tmp_path / "a.npy").dtype == bool
    assert tifffile.imread(tmp_path / "b.tif").dtype == bool


@pytest.mark.parametrize("levels", [(0, 127), (0, 128), (0, 127, 255), (0, 60, 90, 130, 160, 200)])
def test_a_grey_jpeg_is_no_mask_of_black_and_white(tmp_path, levels):
    (tmp_path / "masks").mkdir()
    stripes = np.resize(np.repeat(levels, 9), (64, 54)).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "masks/a.jpg", quality=90)
    with pytest.raises(InputError, match="Only black and white masks of two classes"):
        MaskFolder(tmp_path / "masks", classes=2)


@pytest.mark.parametrize("windows", [False, True])
def test_a_boolean_array_that_tifffile_wrote_is_read_and_written_as_it_is(tmp_path, windows):
    (tmp_path / "masks").mkdir()
    mask = disc().astype(bool)
    path, options = tmp_path / "masks/a.tif", {"photometric": "miniswhite"}
    tifffile.imwrite(path, mask, **options, **({"tile": (16, 16)} if windows else {}))
    masks = MaskFolder(tmp_path / "masks", classes=2)
    np.testing.assert_array_equal(masks.read("a"), mask)
    found = masks.windows("a", tmp_path).read(0, 0, *mask.shape)
    np.testing.assert_array_equal(found, mask)
    masks.write_like("a", tmp_path / "a.tif", ~mask)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), ~mask)
    # By others, the file means what TIFF says.
    tifffile.imwrite(path, mask, **options, software="scanner")
    masks = MaskFolder(tmp_path / "masks", classes=2)
    np.testing.assert_array_equal(masks.read("a"), ~mask)


@pytest.mark.parametrize("name", ["a.webp", "a.jp2", "a.tif"])
def test_lossy_files_hold_no_class_ids(tmp_path, name):
    (tmp_path / "masks").mkdir()
    options = {"a.webp": {"quality": 80}, "a.jp2": {"irreversible": True}, "a.tif": {}}[name]
    values = disc(value=7)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / "masks" / name, values, compression="jpeg")
    else:
        Image.fromarray(values).save(tmp_path / "masks" / name, **options)
    with pytest.raises(InputError, match="changes class ids"):
        MaskFolder(tmp_path / "masks", classes=40)


def test_soft_masks_of_floats_and_scaled_ids(tmp_path):
    (tmp_path / "masks").mkdir()
    soft = np.linspace(0, 1, 24 * 36, dtype=np.float32).reshape(24, 36)
    tifffile.imwrite(tmp_path / "masks/a.tif", soft)
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, threshold=0.5))
    np.testing.assert_array_equal(masks.read("a"), soft >= 0.5)
    with pytest.raises(InputError, match="or set data.mask_threshold if it is a soft mask"):
        MaskFolder(tmp_path / "masks", classes=2)
    tifffile.imwrite(tmp_path / "masks/a.tif", disc() + np.float32(1e-5))
    np.testing.assert_array_equal(MaskFolder(tmp_path / "masks", classes=2).read("a"), disc())
    tifffile.imwrite(tmp_path / "masks/a.tif", disc().astype(np.int32) - 1)
    with pytest.raises(InputError, match="holds -1, but data.instances=foreground"):
        MaskFolder(tmp_path / "masks", classes=2, rules=MaskRules(2, instances=True))


@pytest.mark.parametrize(("sigma", "advice"), [(2, "a soft or smoothed mask"), (None, "a picture")])
def test_grey_levels_are_a_soft_mask_or_a_picture(tmp_path, sigma, advice):
    (tmp_path / "masks").mkdir()
    grey = np.random.default_rng(0).normal(120, 30, (96, 96)).clip(0, 255)
    if sigma is not None:
        grey = cv2.GaussianBlur(255.0 * np.kron(np.eye(2), np.ones((48, 48))), (0, 0), sigma)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match=advice):
        MaskFolder(tmp_path / "masks", classes=2)


def test_255_is_among_the_ids_that_are_named(tmp_path):
    (tmp_path / "masks").mkdir()
    trimap = np.array([0, 127, 255], np.uint8)[disc() + 2 * (np.arange(36) > 30)]
    Image.fromarray(trimap).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match=r"data.classes=3 data.class_ids=\[0,127,255\] if"):
        MaskFolder(tmp_path / "masks", classes=2)


def test_contradicting_rules_are_refused(tmp_path):
    with pytest.raises(InputError, match="contradict each other"):
        MaskRules.from_settings({"classes": 2, "class_ids": [0, 1], "mask_threshold": 5})
    with pytest.raises(InputError, match="must hold one value for each"):
        MaskRules.from_settings({"classes": 3, "class_ids": [0, 1]})
    with pytest.raises(InputError, match="names 256 classes, but at most 255 can be numbered"):
        MaskRules.from_settings({"classes": 256, "class_ids": range(1, 257)})
    with pytest.raises(InputError, match="set data.classes=21"):
        MaskRules.from_settings({"classes": 2, "colours": "voc"})


def test_damage_is_found_in_tiff_too(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, bands(3, np.uint8, 200, 300), photometric="rgb")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        read_image(path)
    assert imagecodecs.__version__
    assert io.BytesIO(whole).getbuffer().nbytes > path.stat().st_size


def test_files_that_claim_too_many_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), np.uint8))
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        with pytest.raises(
            InputError, match="claims more than .* million pixels, which is the limit"
        ):
            read_image(tmp_path / name)


def test_polarity_is_checked_and_can_be_confirmed(tmp_path):
    from coseg_lightning.files.inspection import Inspection

    (tmp_path / "masks").mkdir()
    for number in range(10):
        values = np.roll(disc(), number, axis=1) * 255
        Image.fromarray(255 - values if number < 4 else values).save(
            tmp_path / f"masks/{number}.png"
        )
    inspection = Inspection(tmp_path)
    MaskFolder(tmp_path / "masks", classes=2, inspection=inspection)
    table = tmp_path / "problems.csv"
    with pytest.raises(
        InputError, match="4 masks in .* are foreground along almost the whole border"
    ):
        inspection.report(table=table)
    with Image.open(tmp_path / "doubtful_masks.png") as picture:
        assert picture.size == (516, 256)
    rules = MaskRules.from_settings({"classes": 2, "class_ids": [0, 255]})
    MaskFolder(tmp_path / "masks", classes=2, rules=rules)
    inverted = MaskRules.from_settings({"classes": 2, "class_ids": [255, 0]})
    masks = MaskFolder(tmp_path / "masks", classes=2, rules=inverted)
    np.testing.assert_array_equal(masks.read("5"), np.roll(1 - disc(), 5, axis=1))


def test_a_folder_of_full_masks_is_refused(tmp_path):
    (tmp_path / "masks").mkdir()
    for number in range(4):
        Image.fromarray(np.full((24, 36), 255, np.uint8)).save(
            Path(tmp_path, f"masks/{number}.png")
        )
    with pytest.raises(InputError, match="4 of 4 masks .* are foreground almost everywhere"):
        MaskFolder(tmp_path / "masks", classes=2)


def test_a_png_that_opencv_alone_opens_is_read(tmp_path):
    path, values = tmp_path / "a.png", np.arange(600, dtype=np.uint8).reshape(20, 30)
    Image.fromarray(values).save(path)
    plain = path.read_bytes()
    place = plain.index(b"IDAT") - 4
    text = b"tEXtTitle\x00a" + b"\0\0\0\0"  # whose checksum is wrong
    path.write_bytes(plain[:place] + (7).to_bytes(4, "big") + text + plain[place:])
    for read in (read_image, check_image):
        np.testing.assert_array_equal(read(path), values)
    path.write_bytes(plain)
    assert read_image(path).flags.writeable


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_cut_png_is_refused_whenever_it_is_read(tmp_path, mode):
    """OpenCV would fill what is missing with black."""
    path, noise = tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(path)
    path.write_bytes(path.read_bytes()[:-600])
    for read in (read_image, check_image):
        with pytest.raises(InputError, match=r"a\.png"):
            read(path)


WRONG_NUMBERS = [
    (ImageRules, {"bands": [1.7, 2]}, r"data.bands=\[1.7, 2\] must be a list of whole numbers"),
    (ImageRules, {"bands": 3}, "data.bands=3 must be a list of whole numbers"),
    (ImageRules, {"bands": ["a"]}, "data.bands=.* must be a list of whole numbers"),
    (ImageRules, {"bands": [0]}, r"data.bands=\[0\] must name at least one band; the first one is"),
    (ImageRules, {"bands": []}, r"data.bands=\[\] must name at least one band"),
    (ImageRules, {"nodata": True}, "data.nodata=True must be a number"),
    (ImageRules, {"nodata": "abc"}, "data.nodata=abc must be a number"),
    (MaskRules, {"class_ids": [0, 1.5]}, r"data.class_ids=\[0, 1.5\] must be a list of whole"),
    (MaskRules, {"class_ids": [True, False]}, "data.class_ids=.* must be a list of whole numbers"),
    (MaskRules, {"class_ids": [0, None]}, "data.class_ids=.* must be a list of whole numbers"),
    (MaskRules, {"class_ids": 1}, "data.class_ids=1 must be a list of whole numbers"),
    (MaskRules, {"mask_threshold": True}, "data.mask_threshold=True must be a number"),
    (MaskRules, {"mask_threshold": float("nan")}, "data.mask_threshold=nan must be a number"),
]


@pytest.mark.parametrize(("rules", "settings", "message"), WRONG_NUMBERS)
def test_a_setting_of_files_that_is_no_number_is_refused(rules, settings, message):
    with pytest.raises(InputError, match=message):
        rules.from_settings(settings)


def test_numbers_of_settings_are_read():
    assert ImageRules.from_settings({"bands": [3, 1.0], "nodata": -1}).bands == (3, 1)
    assert ImageRules.from_settings({"bands": np.array([3, 1]), "nodata": "0"}).nodata == 0
    assert MaskRules.from_settings({"class_ids": np.array([0, 255])}).class_ids == (0, 255)
    for nan in (float("nan"), "nan"):  # the latter as a run's JSON has it
        assert np.isnan(ImageRules.from_settings({"nodata": nan}).nodata)
    assert MaskRules.from_settings({"class_ids": [-1, 2]}).class_ids == (-1, 2)


@pytest.mark.parametrize("shape", [(3, 24, 30), (24, 30, 3), (24, 30), (1, 24, 30)])
def test_a_mask_of_equal_planes_is_written_as_it_was(tmp_path, shape):
    values = np.arange(720).reshape(24, 30) % 7 % 2
    places = {(3, 24, 30): values[None], (1, 24, 30): values[None], (24, 30): values}
    array = np.broadcast_to(places.get(shape, values[..., None]), shape).astype(np.uint8)
    np.save(tmp_path / "a.npy", array)
    stored = read_stored(tmp_path / "a.npy")
    save_like(tmp_path / "a.npy", tmp_path / "b.npy", stored.values, stored)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (9, 0, 0)])
def test_a_palette_may_hold_one_colour(tmp_path, colour):
    (tmp_path / "masks").mkdir()
    file = Image.new("P", (12, 10))
    file.putpalette(colour)
    file.save(tmp_path / "masks/a.png", optimize=True)
    with Image.open(tmp_path / "masks/a.png") as stored:
        assert len(stored.getpalette()) == 3
    if colour == (255, 255, 255):  # an object, or the paper
        with pytest.raises(InputError, match="has a palette of white alone, which may mean"):
            MaskFolder(tmp_path / "masks", classes=2)
        return
    assert not MaskFolder(tmp_path / "masks", classes=2).read("a").any()


def test_among_objects_of_16_bits_255_is_one_of_them(tmp_path):
    (tmp_path / "masks").mkdir()
    objects = np.zeros((20, 20), np.uint16)
    objects[2:6], objects[9:12], objects[15:] = 3, 255, 301
    Image.fromarray(objects).save(tmp_path / "masks/a.png")
    rules = MaskRules(classes=2, instances=True)
    mask = MaskFolder(tmp_path / "masks", classes=2, rules=rules).read("a")
    np.testing.assert_array_equal(mask, objects > 0)


@pytest.mark.parametrize("header", ["name,r,g,b,index", "label,r,g,b", "name,r,g,b,class_id"])
def test_columns_of_colours_that_are_not_read_are_refused(tmp_path, header):
    table = tmp_path / "colours.csv"
    cells = ["a", "1", "2", "3", "0"][: header.count(",") + 1]
    table.write_text(f"{header}\n{','.join(cells)}\n")
    with pytest.raises(InputError, match=r"has a column \w+, which is not read; call it class"):
        MaskRules.from_settings({"classes": 2, "colours": str(table)})


def test_the_columns_of_a_users_table_may_be_capitals(tmp_path):
    table = tmp_path / "colours.csv"
    table.write_text("Name,R,G,B\nvoid,9,9,9\nroad,1,2,3\nBackground,0,0,0\n")
    rules = MaskRules.from_settings({"classes": 2, "colours": str(table)})
    assert rules.colours == {(0, 0, 0): 0, (9, 9, 9): 255, (1, 2, 3): 1}
    table.write_text("name,r,g,b,\nroad,1,2,3,\n")  # as Excel ends lines
    assert MaskRules.from_settings({"classes": 2, "colours": str(table)}).colours == {(1, 2, 3): 0}
