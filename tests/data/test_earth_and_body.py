"""From files to files: GeoTIFFs of four bands, and slices of NIfTI volumes and DICOM files."""

import csv
import json
import logging
import re
import sys
from io import BytesIO

import numpy as np
import pytest
import tifffile

from coseg_lightning.app.prediction import ByTiles, Masks, predict_large
from coseg_lightning.apply import apply
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import ImageRules, read_stored
from coseg_lightning.files.naming import Names
from coseg_lightning.files.volumes import volume_place, write_mask_volume, write_slices
from coseg_lightning.predict import image_files, predict
from support import SMALL, TinyNetwork, command, composed

PLACE = [
    (33550, "d", 3, (10.0, 10.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600000.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
]


def field(number, height=30, width=40):
    """A mask of a rectangle, whose right part is missing in every third one."""
    rng = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    top, left = rng.integers(2, 12), rng.integers(2, 12)
    mask[top : top + 14, left : left + 22] = 1
    given = mask.copy()
    if number % 3 == 0:
        given[:, left + 9 :] = 0
    return mask, given


def write_earth(root, count=15):
    """Four bands of which the last alone shows the field; the upper left corner is missing."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    nodata = (42113, "s", 0, "65535", True)
    for number in range(count):
        mask, given = field(number)
        image = np.random.default_rng(number).normal(3000, 400, (*mask.shape, 4))
        image[..., 3] += 4000.0 * mask
        image[:3, :3] = 65535
        tifffile.imwrite(
            root / f"images/t{number:02d}.tif",
            image.clip(0, 65535).astype(np.uint16),
            photometric="minisblack",
            planarconfig="contig",
            compression="zstd",
            extratags=[*PLACE, nodata],
            metadata=None,
        )
        tifffile.imwrite(
            root / f"masks/t{number:02d}.tif",
            given,
            compression="lzw",
            tile=(16, 16),
            extratags=PLACE,
            metadata=None,
        )
    return root


def train(root, folder, *more):
    settings = ["data=folder", f"data.root={root}", "data.image_size=32", "trainer.max_epochs=40"]
    settings += ["optimizer.lr=0.01", "seed=0", "method.confidence=0"]
    result = command("run", *SMALL, f"hydra.run.dir={folder}", *settings, *more)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "summary.json").read_text()), result.stdout + result.stderr


@pytest.mark.slow
def test_four_bands_of_the_earth(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    root, folder = write_earth(tmp_path / "data"), tmp_path / "run"
    bands = ["data.in_channels=4", "data.normalization=training", "nol=0.4"]
    summary, told = train(root, folder, *bands)
    assert "have missing pixels (1 % on average); they count as unlabelled" in told
    assert summary["test"]["dice"] > 0.6
    mean, std = json.loads((folder / "run.json").read_text())["config"]["data"]["normalization"]
    assert len(mean) == len(std) == 4
    assert min(std) > 0
    changed, newer, count = apply(folder, tmp_path / "applied", trust=True)
    assert (newer, count) == ([], 15)
    assert changed > 0
    for path in sorted((root / "masks").iterdir()):
        with (
            rasterio.open(path) as before,
            rasterio.open(tmp_path / "applied" / path.name) as after,
        ):
            assert (after.transform, after.crs) == (before.transform, before.crs)
            assert after.profile["compress"] == before.profile["compress"]
            np.testing.assert_array_equal(after.read(1)[:3, :3], before.read(1)[:3, :3])
    assert predict(folder, root / "images", tmp_path / "out", trust=True) == 15
    with (
        rasterio.open(root / "images/t01.tif") as image,
        rasterio.open(tmp_path / "out/t01.tif") as mask,
    ):
        assert (mask.transform, mask.crs) == (image.transform, image.crs)
        predicted = mask.read(1)
    wanted = field(1)[0]
    assert not predicted[:3, :3].any()
    overlap = 2 * ((predicted > 0) & (wanted > 0)).sum() / ((predicted > 0).sum() + wanted.sum())
    assert overlap > 0.8
    path, _ = export(folder, "torchscript", trust=True)
    description = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert "each band's 0.5 and 99.5 percent" in description["preparation"]
    assert f"subtract {mean}" in description["preparation"]


def write_body(root, volumes=4, slices=5):
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for volume in range(volumes):
        pairs = [field(volume * slices + k) for k in range(slices)]
        rng = np.random.default_rng(volume)
        image = np.stack([rng.normal(40 + 200 * mask, 20) for mask, _ in pairs], axis=2)
        given = np.stack([mask for _, mask in pairs], axis=2)
        for name, values in (
            (f"imagesTr/ct{volume}_0000.nii.gz", image.astype(np.int16)),
            (f"labelsTr/ct{volume}.nii.gz", given),
        ):
            nibabel.save(nibabel.Nifti1Image(values.swapaxes(0, 1), affine), root / name)
    return root


def test_volumes_of_one_name_are_predicted_into_their_own_folders(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    paths = [tmp_path / f"images/{patient}/ct.nii.gz" for patient in ("p1", "p2")]
    slices = [path / str(number) for path in paths for number in range(2)]
    for path in paths:
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.int16), np.eye(4)), path)
    masks = Masks(tmp_path / "out", tmp_path / "images", slices)
    for value, path in ((1, slices[0]), (1, slices[1]), (2, slices[3])):
        masks.add(f"{path.parts[-3]}_00{path.name}", np.full((3, 4), value, np.uint8), path)
    first, second = (tmp_path / f"out/{patient}/ct.nii.gz" for patient in ("p1", "p2"))
    assert first.exists()  # as soon as all of its slices are there
    assert not second.exists()
    masks.finish()
    assert set(np.asarray(nibabel.load(first).dataobj).flat) == {1}
    assert np.asarray(nibabel.load(second).dataobj)[0, 0].tolist() == [0, 2]


def test_slices_that_are_predicted_by_tiles_become_a_volume_again(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    root, rules = write_body(tmp_path), ImageRules()
    data = composed("data=folder", "data.in_channels=1", "data.tile=16", "data.overlap=4").data
    by_tiles = ByTiles(
        TinyNetwork().eval(), None, Canvas.of(16, keeps_shape=True), data, None, rules, "cpu", False
    )
    files = image_files(root / "imagesTr", {})
    masks = Masks(tmp_path / "out", root / "imagesTr", (path for _, path in files))
    options = {"probabilities": False, "overlays": False}
    assert predict_large(by_tiles, files, tmp_path / "out", masks, 2, **options) == 20
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"ct{volume}_0000.nii.gz" for volume in range(4)
    ]
    volume = nibabel.load(tmp_path / "out/ct1_0000.nii.gz")
    assert volume.shape == (40, 30, 5)
    assert np.asarray(volume.dataobj)[..., 3].any()


def write_scanned(path, values, scale=None):
    """Write a volume whose two transforms and codes differ, with units."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(values, None)
    image.header.set_qform(np.diag([-0.5, 0.5, 3.0, 1.0]), 1)
    image.header.set_sform(np.diag([-0.6, 0.6, 3.0, 1.0]), 2)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 90
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nibabel.save(image, path)


def header_of(path):
    """Return what a volume's header says of its position."""
    header = pytest.importorskip("nibabel").load(path).header
    transforms = [np.round(header[name], 4).tolist() for name in ("srow_x", "srow_y", "srow_z")]
    quaternion = [float(header[f"quatern_{name}"]) for name in "bcd"]
    codes = int(header["qform_code"]), int(header["sform_code"])
    return transforms, quaternion, codes, header.get_xyzt_units(), header["pixdim"][1:4].tolist()


def test_a_predicted_volume_has_the_header_of_its_image(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    write_scanned(tmp_path / "image.nii.gz", np.ones((4, 5, 3, 2), np.int16), scale=(2, 1))
    mask = np.full((5, 4), 255, np.uint8)
    write_mask_volume(tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", {1: mask})
    assert header_of(tmp_path / "mask.nii.gz") == header_of(tmp_path / "image.nii.gz")
    written = nibabel.load(tmp_path / "mask.nii.gz")
    assert (written.shape, written.get_data_dtype(), written.header["cal_max"]) == (
        (4, 5, 3),
        np.uint8,
        0,
    )
    np.testing.assert_array_equal(np.unique(written.dataobj[..., 1]), [255])
    assert not np.asarray(written.dataobj)[..., ::2].any()


@pytest.mark.parametrize("scale", [None, (1 / 128, 0.5)])
def test_a_changed_volume_keeps_its_header_and_its_other_values(tmp_path, scale):
    nibabel = pytest.importorskip("nibabel")
    write_scanned(tmp_path / "mask.nii", np.arange(60, dtype=np.uint8).reshape(4, 5, 3), scale)
    before = np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj)
    write_slices(tmp_path / "mask.nii", tmp_path / "new.nii", {1: before[..., 2].T})
    after = np.asarray(nibabel.load(tmp_path / "new.nii").dataobj)
    np.testing.assert_array_equal(after, before[..., [0, 2, 2]])
    assert header_of(tmp_path / "new.nii") == header_of(tmp_path / "mask.nii")


def test_a_volume_whose_slices_were_lines_is_refused(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    root = write_body(tmp_path)
    path = root / "labelsTr/ct1.nii.gz"
    lying = np.asarray(nibabel.load(path).dataobj).transpose(2, 0, 1)[:1]
    nibabel.save(nibabel.Nifti1Image(lying, np.eye(4)), path)
    with pytest.raises(InputError, match=r"ct1\.nii\.gz has the shape \(1, 40, 30\), and its"):
        folder_splits(root)


def test_patterns_may_end_in_that_of_compressed_volumes(tmp_path):
    root = write_body(tmp_path)
    patterns = {"image_glob": "{id}_0000.nii.gz", "mask_glob": "{id}.nii.gz"}
    splits = folder_splits(root, **patterns)
    assert sorted(splits.train.ids + splits.test.ids)[0] == "ct0_000"


@pytest.mark.slow
def test_slices_of_volumes(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    root, folder = write_body(tmp_path / "data"), tmp_path / "run"
    summary, told = train(root, folder, "data.in_channels=1", "nol=0.4")
    assert "images are named {id}_0000.*" in told
    assert summary["samples"] == {"train": 15, "test": 5}
    with (folder / "scores.csv").open() as file:
        ids = {row["id"] for row in csv.DictReader(file)}
    volumes = {sample_id[:3] for sample_id in ids}
    assert len(volumes) == 3  # no volume is in two parts
    assert {f"{volume}_004" for volume in volumes} <= ids
    changed, newer, count = apply(folder, tmp_path / "applied", trust=True)
    assert (newer, count) == ([], 20)
    assert changed > 0
    different = 0
    for path in sorted((root / "labelsTr").iterdir()):
        before, after = nibabel.load(path), nibabel.load(tmp_path / "applied" / path.name)
        np.testing.assert_array_equal(before.affine, after.affine)
        assert before.get_data_dtype() == after.get_data_dtype()
        different += (
            (np.asarray(before.dataobj) != np.asarray(after.dataobj)).any(axis=(0, 1)).sum()
        )
    assert different == changed
    assert predict(folder, root / "imagesTr", tmp_path / "out", trust=True) == 20
    masks = nibabel.load(tmp_path / "out/ct0_0000.nii.gz")
    assert masks.shape == (40, 30, 5)
    result = command(
        "corrupt",
        f"masks={root / 'labelsTr'}",
        f"out={tmp_path / 'noisy'}",
        "noise=type1",
        "nol=0.5",
    )
    assert result.returncode == 0, result.stderr
    noisy = nibabel.load(tmp_path / "noisy/ct0.nii.gz")
    assert noisy.shape == (40, 30, 5)


def test_a_split_of_volumes_is_told_the_ids_of_slices(tmp_path):
    root = write_body(tmp_path)
    (root / "split.csv").write_text("id,split\nct0,train\nct1,test\n")
    with pytest.raises(InputError, match=r"Of a volume each slice has an id, such as ct0_000; "):
        folder_splits(root)


def test_positions_of_dicom_and_nifti_are_not_compared(tmp_path, caplog):
    nibabel = pytest.importorskip("nibabel")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        mask, _ = field(number)
        tags = {"NumberOfFrames": 2, "SeriesInstanceUID": f"1.2.{number}"}
        frames = np.stack([90 - 40 * mask + number, 80 - 40 * mask]).astype(np.uint8)
        write_dicom(tmp_path / f"images/{number}.dcm", frames, **tags)
        volume = nibabel.Nifti1Image(np.stack([mask.T] * 2, axis=2), np.eye(4))
        nibabel.save(volume, tmp_path / f"masks/{number}.nii.gz")
    folder_splits(tmp_path, test_share=0)
    assert "6 masks, such as 0.nii.gz/0, and their images are NIfTI and DICOM" in caplog.text


def test_a_mask_on_another_grid_than_its_image_is_refused(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    root = write_body(tmp_path / "data")
    path = root / "labelsTr/ct1.nii.gz"
    image = nibabel.load(path)
    moved = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([-0.7, 0.7, 3.0, 1.0]))
    nibabel.save(moved, path)
    with pytest.raises(InputError, match="has another position than its image"):
        folder_splits(root)


def write_dicom(path, values, **tags):
    """Write grey values of 8 or 16 bits as DICOM."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.SOPClassUID = pydicom.uid.CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    bits = 8 * values.dtype.itemsize
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored = 1, bits, bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    data.PhotometricInterpretation = "MONOCHROME1"
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_files_are_slices_grouped_by_series(tmp_path):
    from PIL import Image

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for series in range(3):
        for number in range(2):
            mask, _ = field(2 * series + number)
            path = tmp_path / f"images/{series}_{number}.dcm"
            values = (1000 - 400.0 * mask).astype("<u2")
            scale = {"RescaleSlope": 2, "RescaleIntercept": -1024}
            write_dicom(path, values, SeriesInstanceUID=f"1.2.{series}", **scale)
            Image.fromarray(mask * 255).save(tmp_path / f"masks/{series}_{number}.png")
    splits = folder_splits(tmp_path, test_share=0.3)
    assert len(splits.train) == 4
    assert len(set(splits.train.groups.values())) == 2
    bright = splits.train.image(0) > splits.train.image(0).mean()
    np.testing.assert_array_equal(bright, splits.train.mask(0))


@pytest.mark.parametrize("patients", [4, 1])
def test_dicom_files_are_grouped_by_patient_if_there_are_several(tmp_path, patients):
    from PIL import Image

    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(8):
        mask, _ = field(number)
        tags = {"SeriesInstanceUID": f"1.2.{number}", "PatientID": f"P{number % patients}"}
        write_dicom(tmp_path / f"images/{number}.dcm", (90 - 40 * mask).astype(np.uint8), **tags)
        Image.fromarray(mask * 255).save(tmp_path / f"masks/{number}.png")
    splits = folder_splits(tmp_path, test_share=0.25)
    train, test = (set(part.groups.values()) for part in splits[::2])
    assert len(train | test) == (4 if patients == 4 else 8)
    assert not train & test


@pytest.mark.parametrize(
    ("tags", "is_refused"),
    [
        (PLACE, False),
        ([PLACE[0], (33922, "d", 6, (0.0, 30.0, 0.0, 500000.0, 4599700.0, 0.0), True)], False),
        ([PLACE[0], (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4600020.0, 0.0), True)], True),
        ([*PLACE[:2], (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True)], True),
        ([*PLACE[:2], (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32767), True)], False),
    ],
)
def test_places_are_compared_in_pixels(tmp_path, tags, is_refused):
    root = write_earth(tmp_path / "data", count=3)
    ours = [*PLACE[:2], (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True)]
    for path in (root / "images").iterdir():
        tifffile.imwrite(path, np.arange(1200, dtype=np.uint16).reshape(30, 40), extratags=ours)
    for path in (root / "masks").iterdir():
        tifffile.imwrite(path, field(1)[0], extratags=tags)
    if is_refused:
        with pytest.raises(InputError, match="has another position than its image"):
            folder_splits(root, test_share=0)
    else:
        folder_splits(root, test_share=0)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("images", "have transparent pixels or a mask of valid pixels, which is not read"),
        ("masks", "hold a mask of valid pixels, which is not read"),
    ],
)
def test_a_mask_of_valid_pixels_is_warned_of(tmp_path, caplog, kind, sentence):
    rasterio = pytest.importorskip("rasterio")
    root = write_earth(tmp_path / "data", count=3)
    for number, path in enumerate((root / kind).iterdir()):
        values = (np.arange(1200).reshape(1, 30, 40) + 7 * number) % 256
        values = values if kind == "images" else field(number)[0][None]
        size = {"height": 30, "width": 40, "count": 1, "dtype": "uint8"}
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(path, "w", driver="GTiff", **size) as file,
        ):
            file.write(values.astype(np.uint8))
            file.write_mask(np.arange(1200).reshape(30, 40) > 99)
    with caplog.at_level(logging.WARNING):
        folder_splits(root, test_share=0)
    assert sentence in caplog.text


def test_tifffile_says_nothing_of_missing_values(tmp_path, caplog):
    root = write_earth(tmp_path / "data", count=3)
    for path in (root / "images").iterdir():
        values = np.random.default_rng(len(path.name)).normal(size=(30, 40)).astype(np.float32)
        values[:3] = np.finfo(np.float32).min
        values[4] = int(path.stem[1:])
        tag = (42113, "s", 0, "-3.40282346638528898e+38", True)
        tifffile.imwrite(path, values, extratags=[*PLACE, tag], metadata=None)
    for path in (root / "masks").iterdir():
        tag = (42113, "s", 0, "-9999", True)
        tifffile.imwrite(path, field(1)[0], extratags=[*PLACE, tag], metadata=None)
    filters = list(logging.getLogger("tifffile").filters)
    folder_splits(root, test_share=0)
    assert "GDAL_NODATA" not in caplog.text
    assert "have missing pixels" in caplog.text
    assert logging.getLogger("tifffile").filters == filters
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.nodata == 0
    assert "GDAL_NODATA" in caplog.text


@pytest.mark.parametrize(("tie", "same"), [((405.0, 995.0), True), ((400.0, 1000.0), False)])
def test_a_place_may_be_that_of_a_pixels_centre(tmp_path, tie, same):
    def tags(kind, x, y):
        keys = (1, 1, 0, 2, 1025, 0, 1, kind, 3072, 0, 1, 32633)
        return [
            (33550, "d", 3, (10.0, 10.0, 0.0), True),
            (33922, "d", 6, (0, 0, 0, x, y, 0), True),
            (34735, "H", 12, keys, True),
        ]

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(4):
        mask, _ = field(number)
        image = np.random.default_rng(number).integers(0, 99, mask.shape).astype(np.uint8)
        point, area = tags(2, *tie), tags(1, 400.0, 1000.0)
        for name, values, extra in (("images", image, point), ("masks", mask, area)):
            path = tmp_path / name / f"{number}.tif"
            tifffile.imwrite(path, values.astype(np.uint8), extratags=extra, metadata=None)
    if same:
        assert len(folder_splits(tmp_path).train) == 3
        return
    with pytest.raises(InputError, match="has another position than its image"):
        folder_splits(tmp_path)


def test_dicom_masks_are_class_ids_whatever_their_header_says(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    truth = {}
    as_anonymised = {"SeriesInstanceUID": "", "PixelPaddingValue": 0}
    for number in range(5):
        mask, _ = field(number)
        mask = mask.astype(np.uint8) * np.uint8(number != 1)
        truth[str(number)] = mask
        for name, values in (("images", 90 - 40 * mask + number), ("masks", mask)):
            path = tmp_path / name / f"{number}.dcm"
            write_dicom(path, values.astype(np.uint8), **as_anonymised)
    splits = folder_splits(tmp_path, test_share=0.4)
    assert len(splits.test) == 2  # no series, so each file is a group
    for part in (splits.train, splits.test):
        for index, sample_id in enumerate(part.ids):
            np.testing.assert_array_equal(part.mask(index), truth[sample_id])


def test_dicom_images_whose_smallest_value_is_white_are_inverted(tmp_path, recwarn):
    values = np.random.default_rng(0).integers(60, 250, (12, 10)).astype(np.uint8)
    write_dicom(tmp_path / "a.dcm", values, PhotometricInterpretation="MONOCHROME1")
    image = ImageRules().read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(image, int(values.max()) + int(values.min()) - values.astype(int))
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422", "YBR_RCT", "PALETTE COLOR"])
def test_colours_of_dicom_images_are_read(tmp_path, kind):
    from PIL import Image

    pixels = pytest.importorskip("pydicom.pixels")
    encaps, uid = pytest.importorskip("pydicom.encaps"), pytest.importorskip("pydicom.uid")
    rows, columns = np.mgrid[:16, :12]
    picture = np.stack([rows * 15, columns * 20, 255 - rows * 15], axis=2).astype(np.uint8)
    path, tags = tmp_path / "a.dcm", {"PhotometricInterpretation": kind}
    syntax, table = uid.ExplicitVRLittleEndian, "{}PaletteColorLookupTable{}"
    if kind == "PALETTE COLOR":
        values = (rows * 12 + columns).astype(np.uint8)
        for number, name in enumerate(("Red", "Green", "Blue")):
            tags[table.format(name, "Descriptor")] = [192, 0, 8]
            tags[table.format(name, "Data")] = picture[..., number].tobytes()
    else:
        values = picture.transpose(2, 0, 1)  # for the rows and columns of the header
        tags |= {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    write_dicom(path, values, **tags)
    if kind != "PALETTE COLOR":
        data = pytest.importorskip("pydicom").dcmread(path)
        encoded = BytesIO()
        if kind == "YBR_FULL_422":
            Image.fromarray(picture).save(encoded, "JPEG", quality=98)
            syntax = uid.JPEGBaseline8Bit
        elif kind == "YBR_RCT":
            Image.fromarray(picture).save(encoded, "JPEG2000", irreversible=False, no_jp2=True)
            syntax = uid.JPEG2000Lossless
        else:
            data.PixelData = pixels.convert_color_space(picture, "RGB", kind).tobytes()
        if encoded.tell():
            data.PixelData = encaps.encapsulate([encoded.getvalue()])
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(path)
    image = ImageRules().read(path)
    assert image.shape == picture.shape
    assert abs(image.astype(int) - picture).max() <= (25 if kind == "YBR_FULL_422" else 1)
    if kind == "PALETTE COLOR":  # in a mask, the indices are the class ids
        np.testing.assert_array_equal(read_stored(path).values, values)
        write_dicom(path, values, PhotometricInterpretation=kind)
        with pytest.raises(InputError, match="has a palette that cannot be read"):
            ImageRules().read(path)
    else:
        with pytest.raises(InputError, match=f"holds colours as {kind}, which cannot be read"):
            read_stored(path)


def test_dicom_files_without_their_preamble_are_read(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    mask, _ = field(0)
    mask = mask.astype(np.uint8)
    for number in range(4):
        write_dicom(tmp_path / f"images/{number}.dcm", 90 - 40 * mask + np.uint8(number))
        write_dicom(tmp_path / f"masks/{number}.dcm", mask)
    for path in tmp_path.rglob("*.dcm"):
        written = path.read_bytes()
        at = 132
        if path.stem == "1":  # nor the group that names the encoding
            at = written.index(b"\x08\0\x16\0UI")
        path.write_bytes(written[at:])
    train = folder_splits(tmp_path, test_share=0).train
    assert train.ids == ["0", "1", "2", "3"]
    for index in range(4):
        np.testing.assert_array_equal(train.mask(index), mask)
    (tmp_path / "images/3.dcm").write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(InputError, match="it does not begin as DICOM files do"):
        folder_splits(tmp_path, test_share=0)


def test_a_dicom_file_without_its_preamble_may_be_big_endian(tmp_path):
    pydicom, uid = pytest.importorskip("pydicom"), pytest.importorskip("pydicom.uid")
    values, path = np.arange(12, dtype=np.uint16).reshape(3, 4), tmp_path / "a.dcm"
    write_dicom(path, values)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    data.PixelData = values.byteswap().tobytes()
    pydicom.dcmwrite(path, data, implicit_vr=False, little_endian=False)
    written = path.read_bytes()
    path.write_bytes(written[written.index(b"\0\x08\0\x16UI") :])
    np.testing.assert_array_equal(read_stored(path).values, values)


@pytest.mark.parametrize("of_mask", [False, True])
def test_dicom_values_in_other_bits_than_the_lowest_are_refused(tmp_path, of_mask):
    values, path = np.arange(12, dtype=np.uint16).reshape(3, 4), tmp_path / "a.dcm"
    write_dicom(path, values << 4, BitsStored=12, HighBit=15)
    with pytest.raises(InputError, match="a.dcm has BitsStored=12 and HighBit=15, so its values"):
        read_stored(path, of_mask=of_mask)
    write_dicom(path, values, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME2")
    np.testing.assert_array_equal(read_stored(path, of_mask=of_mask).values, values)


def test_a_table_of_values_in_a_dicom_header_is_applied(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    values, path = np.arange(12, dtype=np.uint16).reshape(3, 4), tmp_path / "a.dcm"
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [12, 0, 16], "US"
    table.add_new("LUTData", "US", [5 * (11 - value) for value in range(12)])
    tags = {"PhotometricInterpretation": "MONOCHROME2", "ModalityLUTSequence": [table]}
    write_dicom(path, values, **tags, PixelPaddingValue=3)
    expected = 5.0 * (11 - values)
    expected[0, 3] = np.nan
    np.testing.assert_array_equal(read_stored(path, of_mask=False).values, expected)
    del table.LUTData
    write_dicom(path, values, **tags)
    with pytest.raises(InputError, match="has a ModalityLUTSequence that cannot be read"):
        read_stored(path, of_mask=False)


def test_a_missing_library_for_dicom_is_told_once(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match="^NIfTI and DICOM files need the package pydicom"):
        Names(tmp_path)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colours_of_nifti_images_are_bands(tmp_path, names):
    nibabel = pytest.importorskip("nibabel")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    colours = np.random.default_rng(0).integers(0, 255, (12, 9, 2, len(names)), np.uint8)
    values = colours.view([(name, "u1") for name in names])[..., 0]
    mask = (colours[..., 0] > 99).astype(np.uint8)
    image = nibabel.Nifti1Image(values[..., np.newaxis], np.eye(4))  # one point in time
    nibabel.save(image, tmp_path / "images/a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "masks/a.nii.gz")
    train = folder_splits(tmp_path, test_share=0).train
    np.testing.assert_array_equal(train.image(1), colours[:, :, 1, :3].swapaxes(0, 1))
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "masks/a.nii.gz")
    with pytest.raises(InputError, match="masks/a.nii.gz/0 holds"):
        folder_splits(tmp_path, test_share=0)


@pytest.mark.parametrize("part", ["images", "masks"])
def test_volumes_that_cannot_be_read_are_left_out_alone(tmp_path, part):
    nibabel = pytest.importorskip("nibabel")
    values = np.zeros((20, 20, 2), np.uint8)
    values[5:12, 4:14] = 1
    for name, factor in (("images", 90), ("masks", 1)):
        (tmp_path / name).mkdir()
        for number in range(3):
            bright = values * np.uint8(factor + (factor > 1) * number)
            path = tmp_path / name / f"v{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(bright, np.eye(4)), path)
    broken = tmp_path / part / "v1.nii.gz"
    for content, reason in ((b"/annex/objects/MD5E-s1", "pointer of git-annex"), (b"x", "NIfTI")):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=f"v1.nii.gz [^\n]*{reason}[^\n]*. Or set on_bad"):
            folder_splits(tmp_path, test_share=0)
        train = folder_splits(tmp_path, test_share=0, on_bad_sample="skip").train
        assert train.ids == ["v0_000", "v0_001", "v2_000", "v2_001"]
    rows = [f"v{number}_00{index},train" for number in (0, 1, 2) for index in (0, 1)]
    (tmp_path / "split.csv").write_text("\n".join(["id,split", *rows]))
    assert len(folder_splits(tmp_path, on_bad_sample="skip").train) == 4
    (tmp_path / "split.csv").write_text("\n".join(["id,split", *rows[:2]]))
    assert len(folder_splits(tmp_path).train) == 2  # which names it not


@pytest.mark.parametrize("part", ["images", "masks"])
def test_files_named_like_slices_of_an_unreadable_volume_stay(tmp_path, part):
    for name, factor in (("images", 90), ("masks", 1)):
        (tmp_path / name).mkdir()
        for number, stem in enumerate(("a_1", "a_2", "b")):
            values = np.zeros((20, 20), np.uint8)
            values[5:12, 4:14] = factor + (factor > 1) * number
            write_dicom(tmp_path / name / f"{stem}.dcm", values)
    (tmp_path / part / "a.dcm").write_bytes(b"x" * 200)
    if part == "images":
        write_dicom(tmp_path / "masks/a.dcm", values)
    train = folder_splits(tmp_path, test_share=0, on_bad_sample="skip").train
    assert train.ids == ["a_1", "a_2", "b"]


def write_placed(path, values, position=(0, 0, 0), rows=(1, 0, 0), columns=(0, 1, 0), spacing=0.5):
    """Write one DICOM slice with its position, orientation and spacing."""
    orientation = {"ImageOrientationPatient": [*rows, *columns], "PixelSpacing": [spacing] * 2}
    write_dicom(path, values, ImagePositionPatient=list(position), **orientation)


def write_frames(path, values, heights, segments=None):
    """Write DICOM frames at these heights, with what they share in functional groups."""
    from pydicom.dataset import Dataset

    def holding(sequence, **tags):
        item, groups = Dataset(), Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        setattr(groups, sequence, [item])
        return groups

    shared = holding("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    shared.update(holding("PixelMeasuresSequence", PixelSpacing=[0.5, 0.5]))
    frames = [holding("PlanePositionSequence", ImagePositionPatient=[0, 0, z]) for z in heights]
    for frame, segment in zip(frames, segments or (), strict=False):
        frame.update(holding("SegmentIdentificationSequence", ReferencedSegmentNumber=segment))
    write_dicom(
        path,
        values,
        NumberOfFrames=len(values),
        PhotometricInterpretation="MONOCHROME2",
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )


def write_segmentations(root, order=(0, 1, 2, 3), segments=None, odd=range(4)):
    """Write four DICOM volumes, and masks whose frames are the slices in this order."""
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for volume in range(4):
        given = np.stack([field(4 * volume + z)[0] for z in range(4)]).astype(np.uint8)
        write_frames(root / f"images/v{volume}.dcm", 90 - 40 * given, range(0, 12, 3))
        frames = list(order if volume in odd else range(4))
        heights = [3 * z for z in frames]
        numbers = segments if volume in odd else None
        write_frames(root / f"masks/v{volume}.dcm", given[frames], heights, numbers)
    return root


def test_frames_of_dicom_masks_are_those_of_their_images(tmp_path):
    splits = folder_splits(write_segmentations(tmp_path, segments=[1] * 4), test_share=0.3)
    for part in (splits.train, splits.test):
        for index, sample_id in enumerate(part.ids):
            volume, number = int(sample_id[1]), int(sample_id[-1])
            np.testing.assert_array_equal(part.mask(index), field(4 * volume + number)[0])


def test_frames_in_another_order_are_refused(tmp_path):
    write_segmentations(tmp_path, order=(3, 2, 1, 0))
    message = r"v0\.dcm/0 has another position than its image, according to ImagePositionPatient"
    with pytest.raises(InputError, match=message):
        folder_splits(tmp_path)


@pytest.mark.parametrize("slices", [2, 4])
def test_several_segments_in_one_dicom_file_are_refused(tmp_path, slices):
    order, segments = [*range(slices)] * 2, [1] * slices + [2] * slices
    write_segmentations(tmp_path, order=order, segments=segments)
    with pytest.raises(InputError, match=r"v0\.dcm holds 2 segments one after the other, but a"):
        folder_splits(tmp_path)


@pytest.mark.parametrize("order", [(1, 2, 3), (0, 1, 2), (0, 1, 2, 3, 3)])
def test_slices_are_left_out_together_where_their_number_differs(tmp_path, order, caplog):
    write_segmentations(tmp_path, order=order, odd=[2])
    images = tmp_path / "images"
    message = f"v2.dcm has {len(order)} slices, but its image {images}/v2.dcm has 4, so none can be"
    with pytest.raises(InputError, match=re.escape(message)) as error:
        folder_splits(tmp_path)
    assert "problems" not in str(error.value)  # it is told once
    splits = folder_splits(tmp_path, on_bad_sample="skip")
    ids = splits.train.ids + splits.test.ids
    assert sorted(ids) == [f"v{volume}_00{z}" for volume in (0, 1, 3) for z in range(4)]


def test_slices_of_nifti_are_left_out_together_too(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    path = write_body(tmp_path) / "labelsTr/ct1.nii.gz"
    short = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(short.dataobj)[..., 1:], short.affine), path)
    splits = folder_splits(tmp_path, on_bad_sample="skip")
    ids = splits.train.ids + splits.test.ids
    assert {sample_id[:3] for sample_id in ids} == {"ct0", "ct2", "ct3"}
    assert len(ids) == 15


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"position": (5.02, 0, 7)}, None),
        ({"position": (0, 0, 0)}, None),  # a default
        ({"position": (5.2, 0, 7)}, "ImagePositionPatient"),
        ({"position": (5, 0, 8)}, "ImagePositionPatient"),
        ({"columns": (0, -1, 0)}, "ImageOrientationPatient"),
        ({"spacing": 0.51}, "PixelSpacing"),
    ],
)
def test_places_of_dicom_slices_are_compared(tmp_path, change, reason):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        mask, _ = field(number)
        values = (90 - 40 * mask + number).astype(np.uint8)
        write_placed(tmp_path / f"images/{number}.dcm", values, position=(5, 0, 7))
        place = {"position": (5, 0, 7)} | change
        write_placed(tmp_path / f"masks/{number}.dcm", mask.astype(np.uint8), **place)
    if reason is None:
        assert len(folder_splits(tmp_path, test_share=0).train) == 3
        return
    with pytest.raises(InputError, match=f"its image, according to {reason} in both files"):
        folder_splits(tmp_path, test_share=0)


@pytest.mark.parametrize("position", [None, ["1", "2"], [1, 2, "1e999"], [0, 0, 0]])
def test_dicom_slices_without_a_position_are_not_compared(tmp_path, position):
    pytest.importorskip("pydicom")
    tags = {} if position is None else {"ImagePositionPatient": position}
    write_dicom(tmp_path / "0.dcm", np.ones((4, 5), np.uint8), PixelSpacing=[1, 1], **tags)
    assert volume_place(tmp_path / "0.dcm") is None


def write_boxes(path, affine, codes=(1, 1)):
    """Write a volume of squares whose transform is given."""
    nibabel = pytest.importorskip("nibabel")
    values = np.zeros((24, 20, 3), np.uint8)
    values[4:9, 4:9] = 1
    image = nibabel.Nifti1Image(values * (1 if path.parent.name == "masks" else 90), None)
    image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    for set_form, code in zip((image.header.set_qform, image.header.set_sform), codes, strict=True):
        set_form(affine if code else None, code)
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)


THICK = np.diag([0.3, 0.3, 10.0, 1.0])


@pytest.mark.parametrize(
    ("shift", "scale", "is_refused"),
    [
        ((0, 0, 0), (1, 1, 1), False),
        ((0.02, 0, 0.9), (1, 1, 1), False),
        ((0.3, 0, 0), (1, 1, 1), True),
        ((0, -0.6, 0), (1, 1, 1), True),
        ((0, 0, 1.1), (1, 1, 1), True),
        ((0, 0, 0), (1.03, 1, 1), True),
        ((0, 0, 0), (1, 1, 1.0005), False),
    ],
)
def test_places_of_volumes_are_compared_along_each_axis(tmp_path, shift, scale, is_refused):
    moved = THICK @ np.diag([*scale, 1])
    moved[:3, 3] = shift
    for number in range(2):
        write_boxes(tmp_path / f"images/{number}.nii", THICK)
        write_boxes(tmp_path / f"masks/{number}.nii", moved)
    if not is_refused:
        assert len(folder_splits(tmp_path, test_share=0).train) == 6
        return
    with pytest.raises(InputError, match="another position than its image, according to the tr"):
        folder_splits(tmp_path, test_share=0)


@pytest.mark.parametrize(
    ("sizes", "axis"),
    [((3, 0.8, 0.8), "first (3, not 0.8)"), ((1, 5, 1), "second (5, not 1)"), ((1, 1.1, 1), None)],
)
def test_volumes_with_their_slices_along_another_axis_are_told(tmp_path, caplog, sizes, axis):
    for number in range(2):
        for folder in ("images", "masks"):
            write_boxes(tmp_path / folder / f"{number}.nii", np.diag([*sizes, 1]))
    folder_splits(tmp_path, test_share=0)
    told = "2 volumes, such as 0.nii, are read in slices along the third axis, but their voxels are"
    assert (told in caplog.text) == (axis is not None)
    assert axis is None or f"longest along the {axis}" in caplog.text


@pytest.mark.parametrize("folder", ["images", "masks"])
@pytest.mark.parametrize("kind", ["no codes", "no numbers"])
def test_a_volume_without_a_transform_is_not_compared(tmp_path, folder, kind):
    for name in ("images", "masks"):
        affine, codes = THICK.copy(), (1, 1)
        affine[:3, 3] = 7
        if name == folder and kind == "no codes":
            codes = (0, 0)
        elif name == folder:
            affine[0, 3], codes = np.nan, (0, 1)
        write_boxes(tmp_path / name / "0.nii", affine, codes)
    assert len(folder_splits(tmp_path, test_share=0).train) == 3


@pytest.mark.parametrize(
    ("modality", "advice"),
    [("RTSTRUCT", "move it to another folder, and draw its outlines as masks"), ("SR", "move it")],
)
def test_a_dicom_file_without_a_picture_is_told(tmp_path, modality, advice):
    pydicom = pytest.importorskip("pydicom")
    write_dicom(tmp_path / "a.dcm", np.ones((4, 5), np.uint8), Modality=modality)
    data = pydicom.dcmread(tmp_path / "a.dcm")
    del data.PixelData
    data.save_as(tmp_path / "a.dcm")
    message = rf"a\.dcm is a DICOM file without a picture \({modality}\); {advice}"
    with pytest.raises(InputError, match=message):
        ImageRules().read(tmp_path / "a.dcm")


def write_named(root, names):
    """Write DICOM images of these names, with masks as PNG."""
    from PIL import Image

    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number, name in enumerate(names):
        mask, _ = field(number)
        write_dicom(root / "images" / name, (90 - 40 * mask + number).astype(np.uint8))
        Image.fromarray(mask * 255).save(root / f"masks/{name.removesuffix('.IMA')}.png")
    return root


def test_dicom_files_may_end_in_ima(tmp_path):
    splits = folder_splits(write_named(tmp_path, ["a.IMA", "b.IMA"]), test_share=0)
    assert sorted(splits.train.ids) == ["a", "b"]
    bright = splits.train.image(0) > splits.train.image(0).mean()
    np.testing.assert_array_equal(bright, splits.train.mask(0))


@pytest.mark.parametrize("names", [["IM0", "IM1"], ["1.2.840.0", "1.2.840.1"]])
def test_dicom_files_without_an_ending_are_to_be_renamed(tmp_path, names):
    root = write_named(tmp_path, names)
    (root / "images/DICOMDIR").write_bytes((root / "images" / names[0]).read_bytes())
    message = (
        f"{root / 'images'} holds no image files whose ending is known; rename the DICOM files to "
        f"end in .dcm, such as {names[0]} to {names[0]}.dcm."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        folder_splits(root)
    with pytest.raises(InputError, match=re.escape(message)):
        image_files(root / "images", {})


def test_dicom_files_without_an_ending_among_others_are_told(tmp_path, caplog):
    root = write_named(tmp_path, ["a.IMA", "b.IMA", "IM0"])
    with pytest.raises(InputError, match=r"IM0\.png has no image"):
        folder_splits(root)
    assert "which are not read; rename the DICOM files to end in .dcm, such as IM0 to" in (
        caplog.text
    )


def test_volumes_of_two_files_are_to_be_converted(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    pair = nibabel.Nifti1Pair(np.ones((4, 5, 3), np.int16), np.eye(4))
    nibabel.save(pair, tmp_path / "images/v0.img")
    message = r"nibabel\.save\(nibabel\.load\('v0\.hdr'\), 'v0\.nii\.gz'\)\.$"
    with pytest.raises(InputError, match=message):
        folder_splits(tmp_path)
    nibabel.save(nibabel.load(tmp_path / "images/v0.hdr"), tmp_path / "images/v0.nii.gz")
    assert len(Names(tmp_path / "images").files) == 3


def test_the_header_of_an_aerial_picture_is_no_volume(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/a.hdr").write_text("ENVI\nsamples = 5\n")
    (tmp_path / "images/a.img").write_bytes(b"\0" * 400)
    with pytest.raises(InputError, match=r"files of \.hdr, \.img, which are not read; save"):
        folder_splits(tmp_path)
