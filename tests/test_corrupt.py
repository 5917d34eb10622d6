"""The corrupted copy of a folder of masks."""

import csv

import numpy as np
import pytest
import tifffile
from PIL import Image

from coseg_lightning.corrupt import corrupt_folder
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.functional.dice import mask_dice
from coseg_lightning.noise import BoundaryNoise, Crowd
from coseg_lightning.noise.noisy_layer import write_noisy_layer
from support import Squares, command


def manifest(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_the_command_makes_the_masks_of_a_run(make_folder, tmp_path):
    root = make_folder(size=10, foreground=255)
    (root / "split.csv").write_text(
        "id,split\n" + "".join(f"s{i:02d},{'train' if i < 6 else 'test'}\n" for i in range(10))
    )
    out = tmp_path / "noisy"
    before = {path.name: path.read_bytes() for path in (root / "masks").iterdir()}
    options = [f"masks={root}/masks", f"out={out}", f"split={root}/split.csv"]
    result = command("corrupt", *options, "noise=type1", "nol=0.5", "seed=3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "3 of 10 masks" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "noisy"]
    assert {path.name: path.read_bytes() for path in (root / "masks").iterdir()} == before

    squares = Squares(6)
    layer = write_noisy_layer(squares, BoundaryNoise(), 0.5, 3, tmp_path / "layer")
    noisy, rows = MaskFolder(out, classes=2), manifest(out)
    for sample_id, row in rows.items():
        assert row["noisy"] == str(int(sample_id in layer))
        if sample_id in layer:
            np.testing.assert_array_equal(noisy.read(sample_id), layer.read(sample_id))
            assert float(row["dice"]) == layer.facts(sample_id)["dice"] < 1
            assert row["noise"] == "type1"
        else:
            assert (out / f"{sample_id}.png").read_bytes() == before[f"{sample_id}.png"]
            assert float(row["dice"]) == 1


def test_nothing_is_overwritten_and_nothing_half_made_is_left(make_folder, tmp_path):
    root = make_folder()
    with pytest.raises(InputError, match="exists and is never overwritten"):
        corrupt_folder(
            root / "masks", root / "masks_rough", BoundaryNoise(), name="x", noise_level=0.5
        )

    def crash(*_, **__):
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        corrupt_folder(root / "masks", tmp_path / "out", crash, name="x", noise_level=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


@pytest.mark.parametrize("mode", ["P", "1", "L", "I;16", "RGB"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_keeps_its_format_palette_and_values(tmp_path, mode, suffix):
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(2):
        mask = Squares(2).mask(i)
        image = Image.fromarray(mask)
        if mode == "P":
            image.putpalette([0, 0, 0, 200, 10, 10])
        elif mode == "1":
            image = Image.fromarray(mask > 0)
        elif mode == "I;16":
            image = Image.fromarray(mask.astype(np.uint16) * 65535)
        elif mode == "RGB":
            image = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))
        image.save(masks / f"s{i}.{suffix}")
    noise = BoundaryNoise(sign="dilate")
    rows = corrupt_folder(masks, tmp_path / "out", noise, name="type1", noise_level=0.9)
    assert [row["noisy"] for row in rows] == [1, 1]
    for i in range(2):
        name = f"s{i}.{suffix}"
        with Image.open(masks / name) as old, Image.open(tmp_path / "out" / name) as new:
            assert (old.format, old.mode) == (new.format, new.mode)
            assert old.getpalette() == new.getpalette()
            assert set(np.unique(np.asarray(new))) == set(np.unique(np.asarray(old)))
        drawn = MaskFolder(tmp_path / "out", classes=2).read(f"s{i}")
        assert mask_dice(drawn, Squares(2).mask(i)) == rows[i]["dice"] < 1


def test_files_that_hold_a_masks_position_are_copied(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    beside = ["a.pgw", "a.png.aux.xml", "b.TFW", "b.prj", "b.tif.aux.xml", "c.wld"]
    for name in ("a.png", "b.tif", "c.jpg"):
        Image.fromarray(255 * Squares(1).mask(0)).save(masks / name)
    for name in (*beside, "b.tif.ovr", "d.pgw", "notes.txt"):
        (masks / name).write_text(name)
    noise = BoundaryNoise(sign="dilate")
    rows = corrupt_folder(masks, tmp_path / "out", noise, name="type1", noise_level=0.5)
    assert 0 < sum(row["noisy"] for row in rows) < 3
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a.png", "b.tif", "c.jpg", "manifest.csv", *beside}
    assert all((tmp_path / "out" / name).read_text() == name for name in beside)


def test_metadata_beside_a_changed_mask_hold_no_statistics_of_the_old_one(tmp_path):
    masks, keeps = tmp_path / "masks", b'<SRS>EPSG:32633</SRS>\n  <PAMRasterBand band="1">'
    masks.mkdir()
    figures = (
        b"\n<Histograms>\n<HistItem><HistCounts>9|1</HistCounts></HistItem>\n</Histograms>"
        b'\n<Metadata><MDI key="STATISTICS_MEAN">0.1</MDI></Metadata></PAMRasterBand>'
    )
    for name in ("a.png", "b.png"):
        Image.fromarray(255 * Squares(1).mask(0)).save(masks / name)
        (masks / f"{name}.aux.xml").write_bytes(keeps + figures)
    noise = BoundaryNoise(sign="dilate")
    rows = corrupt_folder(masks, tmp_path / "out", noise, name="type1", noise_level=0.5)
    assert {row["noisy"] for row in rows} == {0, 1}
    for name, row in zip(("a.png", "b.png"), rows, strict=True):
        left = b"\n<Metadata></Metadata></PAMRasterBand>" if row["noisy"] else figures
        assert (tmp_path / "out" / f"{name}.aux.xml").read_bytes() == keeps + left


def test_a_changed_tiff_holds_no_statistics_of_the_old_one(tmp_path):
    masks, figure = tmp_path / "masks", '<Item name="STATISTICS_MEAN" sample="0">0.1</Item>'
    masks.mkdir()
    keeps = '<GDALMetadata>\n  <Item name="AREA">Graz</Item>{}\n</GDALMetadata>'
    for name in ("a.tif", "b.tif"):
        tag = (42112, "s", 0, keeps.format(figure), True)
        tifffile.imwrite(masks / name, 255 * Squares(1).mask(0), extratags=[tag])
    noise = BoundaryNoise(sign="dilate")
    rows = corrupt_folder(masks, tmp_path / "out", noise, name="type1", noise_level=0.5)
    assert {row["noisy"] for row in rows} == {0, 1}
    for name, row in zip(("a.tif", "b.tif"), rows, strict=True):
        with tifffile.TiffFile(tmp_path / "out" / name) as file:
            kept = file.pages.first.tags[42112].value
        assert kept == keeps.format("" if row["noisy"] else figure)


@pytest.mark.parametrize("suffix", ["jpg", "gif"])
def test_lossy_files_keep_two_classes(tmp_path, suffix):
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(255 * Squares(1).mask(0)).save(masks / f"a.{suffix}")
    noise = BoundaryNoise(sign="dilate")
    (row,) = corrupt_folder(masks, tmp_path / "out", noise, name="type1", noise_level=0.9)
    drawn = MaskFolder(tmp_path / "out", classes=2).read("a")
    assert mask_dice(drawn, Squares(1).mask(0)) == row["dice"]
    assert 0.3 < row["dice"] < 1


def test_a_file_that_cannot_hold_the_classes_is_refused(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = Squares(1).mask(0)
    mask[:, 16:] *= 2
    Image.fromarray(mask).save(masks / "a.jpg", quality=100)
    with pytest.raises(InputError, match="save your masks as PNG|class id"):
        corrupt_folder(
            masks, tmp_path / "out", BoundaryNoise(), name="x", noise_level=0.9, classes=3
        )
    assert not (tmp_path / "out").exists()


def test_what_did_not_change_is_not_noisy(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name, mask in (("empty", np.zeros((32, 32), np.uint8)), ("full", Squares(1).mask(0))):
        Image.fromarray(mask).save(masks / f"{name}.png")
    rows = corrupt_folder(masks, tmp_path / "o", BoundaryNoise(), name="x", noise_level=0.99)
    assert {row["id"]: row["noisy"] for row in rows} == {"empty": 0, "full": 1}
    with pytest.raises(InputError, match="which is only read"):
        corrupt_folder(masks, masks / "o", BoundaryNoise(), name="x", noise_level=0.5)


def test_a_crowd_draws_all_masks_and_the_manifest_says_who(make_folder, tmp_path):
    root = make_folder(size=12)
    crowd = Crowd(count=3)
    rows = corrupt_folder(
        root / "masks", tmp_path / "out", crowd, name="crowd", noise_level=0.25, seed=1
    )
    draws = crowd.draws([row["id"] for row in rows], 0.25, 1)
    assert [row["annotator"] for row in rows] == [draws[row["id"]].person.name for row in rows]
    assert [bool(row["noisy"]) for row in rows] == [draws[row["id"]].is_bad for row in rows]
    assert sum(row["dice"] < 1 for row in rows) > 3


def test_a_split_without_training_samples_is_refused(make_folder, tmp_path):
    root = make_folder()
    (root / "split.csv").write_text("id,group\ns00,a\ns01,b\n")
    options = [f"masks={root}/masks", f"out={tmp_path}/out", f"split={root}/split.csv"]
    result = command("corrupt", *options)
    assert result.returncode == 1
    assert "puts no sample into the part train, so no mask would become noisy" in result.stderr
    assert not (tmp_path / "out").exists()
