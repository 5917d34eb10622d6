"""Names, folders, groups and bands of datasets as people have them: read right, or refused."""

import logging
import shutil
import unicodedata

import numpy as np
import pytest
import tifffile
from PIL import Image

from coseg_lightning.corrupt import corrupt_folder
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.folder import folder_splits, judged_masks
from coseg_lightning.data.predictions import PredictionFolder
from coseg_lightning.data.preparation import preprocess, without_gaps
from coseg_lightning.data.samples import SampleDataset, default_augmentation
from coseg_lightning.errors import InputError
from coseg_lightning.files.mask_rules import MaskRules
from coseg_lightning.noise import BoundaryNoise
from coseg_lightning.noise.models import Annotator
from coseg_lightning.predict import image_files
from coseg_lightning.report.pictures import outlined


def rename(root, folder, new_name):
    for path in sorted((root / folder).iterdir()):
        new = root / folder / new_name(path)
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)


def ids_of(splits):
    return sorted(sample_id for part in splits if part is not None for sample_id in part.ids)


NAMES = {
    "a suffix of masks": (str, lambda p: f"{p.stem}_mask{p.suffix}"),
    "one of segmentations": (str, lambda p: f"{p.stem}_segmentation.png"),
    "nnU-Net's channel": (lambda p: f"{p.stem}_0000.png", str),
    "both": (lambda p: f"{p.stem}_image.png", lambda p: f"{p.stem}_label.png"),
    "DRIVE": (lambda p: f"{p.stem}_training.png", lambda p: f"{p.stem}_manual1.png"),
    "Cellpose": (str, lambda p: f"{p.stem}_cp_masks.png"),
    "a word of its own": (lambda p: f"{p.stem}-t2w.png", lambda p: f"{p.stem}-prostate.png"),
    "Cityscapes": (
        lambda p: f"train/aachen/{p.stem}_leftImg8bit.png",
        lambda p: f"train/aachen/{p.stem}_gtFine_labelIds.png",
    ),
}


@pytest.mark.parametrize("kind", list(NAMES))
def test_usual_endings_are_found(make_folder, kind):
    root = make_folder()
    for folder, name in zip(("images", "masks"), NAMES[kind], strict=True):
        if name is not str:
            rename(root, folder, name)
    splits = folder_splits(root)
    assert len(ids_of(splits)) == 8
    for part in splits:
        for index in range(0 if part is None else len(part)):
            bright = part.image(index) > 128
            assert (bright == part.mask(index)).mean() > 0.9


def test_folders_named_by_the_image_are_no_part_of_an_ending(make_folder):
    root = make_folder()
    rename(root, "images", lambda p: f"../{p.stem}/ct.png")
    rename(root, "masks", lambda p: f"../{p.stem}/segmentations/liver.png")
    for folder in ("images", "masks", "masks_rough"):
        shutil.rmtree(root / folder)
    with pytest.raises(InputError, match=r"give patterns, such as data.image_glob='\{id\}/ct.\*'"):
        folder_splits(root, images=".", masks=".")
    patterns = {"image_glob": "{id}/ct.*", "mask_glob": "{id}/segmentations/liver.*"}
    assert len(ids_of(folder_splits(root, images=".", masks=".", **patterns))) == 8


def test_cellposes_masks_are_read_beside_its_files_of_objects(make_folder):
    root = make_folder()
    rename(root, "masks", lambda p: f"{p.stem}_cp_masks.png")
    for path in (root / "images").iterdir():
        (root / "masks" / f"{path.stem}_seg.npy").write_bytes(b"not read")
    assert len(ids_of(folder_splits(root))) == 8


def test_a_second_mask_of_an_image_is_told_as_one(make_folder):
    root = make_folder()
    rename(root, "masks", lambda p: f"../images/{p.stem}_mask.png")
    shutil.copy(root / "images" / "s03_mask.png", root / "images" / "s03_mask_1.png")
    with pytest.raises(InputError, match=r"s03_mask_1 is probably one more mask of s03, beside s0"):
        folder_splits(root, images="images", masks="images")


def test_another_folder_that_may_hold_the_masks_is_named(make_folder, caplog):
    root = make_folder()
    (root / "masks").rename(root / "1st_manual")
    (root / "masks_rough").rename(root / "mask")  # DRIVE has its fields of view there
    rename(root, "images", lambda p: f"{p.stem}_training.png")
    rename(root, "mask", lambda p: f"{p.stem}_training_mask.png")
    rename(root, "1st_manual", lambda p: f"{p.stem}_manual1.png")
    folder_splits(root)
    assert "Masks are read from mask, but 1st_manual holds a file for each image too; if" in (
        caplog.text
    )
    caplog.clear()
    folder_splits(root, masks="1st_manual")
    assert "holds a file" not in caplog.text
    (root / "mask" / "s00_training_mask.png").unlink()  # not one for each image
    (root / "1st_manual").rename(root / "labels")
    (root / "mask").rename(root / "views")
    folder_splits(root)
    assert "holds a file" not in caplog.text


def test_a_folder_without_pictures_is_not_that_of_the_masks(make_folder):
    root = make_folder()
    (root / "masks").rename(root / "SegmentationClass")
    (root / "Annotations").mkdir()
    (root / "Annotations/s00.xml").write_text("<annotation/>")
    assert len(ids_of(folder_splits(root))) == 8
    shutil.copy(root / "SegmentationClass/s00.png", root / "Annotations/s00.png")
    with pytest.raises(InputError, match="Annotations and SegmentationClass, and each may be"):
        folder_splits(root)


def test_cityscapes_folders_are_its_split(make_folder):
    root = make_folder()
    for folder, end in (("images", "leftImg8bit"), ("masks", "gtFine_labelIds")):
        rename(
            root,
            folder,
            lambda p, e=end: f"{'val' if p.stem[-1] == '7' else 'train'}/a/{p.stem}_{e}.png",
        )
    (root / "images").rename(root / "leftImg8bit")
    (root / "masks").rename(root / "gtFine")
    splits = folder_splits(root)
    assert len(splits.train) == 7
    assert list(splits.val.ids) == ["s07"]


def test_patterns_are_obeyed_and_folders_make_groups(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        rename(root, folder, lambda p: f"P{int(p.stem[-1]) // 2}/{p.name}")
    splits = folder_splits(root, test_share=0.5)
    assert ids_of(splits)[0].startswith("P0_")
    groups = [{part.groups[i] for i in part.ids} for part in splits if part is not None]
    assert not groups[0] & groups[1]
    assert [len(group) for group in groups] == [2, 2]
    with pytest.raises(InputError, match="must hold {id} exactly once"):
        folder_splits(root, image_glob="*.png")


def test_where_no_name_fits_the_pattern_is_asked_for(make_folder):
    root = make_folder()
    rename(root, "masks", lambda p: f"drawn-of-{p.name}")
    with pytest.raises(InputError, match=r"as in \"data.mask_glob=.drawn-of-\{id\}\.\*"):
        folder_splits(root)
    assert len(ids_of(folder_splits(root, mask_glob="drawn-of-{id}.*"))) == 8


@pytest.mark.parametrize(
    ("image", "mask", "near"),
    [("IMG_{}", "img_{}", "IMG_3"), ("{}", "00{}", "3"), ("x0{}", "x{}", "x03")],
)
def test_names_that_differ_in_case_or_zeros_are_told(make_folder, image, mask, near):
    root = make_folder()
    rename(root, "images", lambda p: f"{image.format(int(p.stem[1:]))}.png")
    rename(root, "masks", lambda p: f"{mask.format(int(p.stem[1:]))}.png")
    with pytest.raises(InputError) as error:
        folder_splits(root)
    assert f"; {near} differs in letter case or leading zeros alone; rename" in str(error.value)


def test_a_mask_that_no_image_fits_is_named_beside_a_table(make_folder, caplog):
    root = make_folder()
    ids = sorted(path.stem for path in (root / "images").iterdir())
    rows = [f"{sample_id},{'test' if n < 2 else 'train'}" for n, sample_id in enumerate(ids)]
    (root / "split.csv").write_text("\n".join(["id,split", *rows]) + "\n")
    shutil.copy(root / "masks" / f"{ids[0]}.png", root / "masks" / "s_1.png")
    folder_splits(root)
    assert "Masks without an image are not used: 1, such as s_1;" in caplog.text


def test_a_mask_beside_its_image_is_no_image(make_folder):
    root = make_folder()
    rename(root, "masks", lambda p: f"../images/{p.stem}_mask.png")
    splits = folder_splits(root, masks="images")
    assert len(ids_of(splits)) == 8


@pytest.mark.parametrize(
    ("ends", "advice"),
    [
        ([".png"], "data.image_glob='{id}.jpg' data.mask_glob='{id}.png'"),
        (
            ["_1stHO.png", "_2ndHO.png"],
            "data.image_glob='{id}.jpg' data.mask_glob='{id}_1stHO.png'",
        ),
        ([".jpg"], "data.image_glob='{id}.jpg' data.mask_glob='{id}_mask.jpg'"),
    ],
)
def test_photos_and_masks_in_one_folder_are_told_apart_by_patterns(make_folder, ends, advice):
    root = make_folder()
    for path in sorted((root / "masks").iterdir()):
        image = root / "images" / path.name
        with Image.open(image) as photo:
            photo.convert("RGB").save(image.with_suffix(".jpg"))
        for end in ends:
            if end != ".jpg":
                shutil.copy(path, image.with_name(path.stem + end))
        if ".png" not in ends:
            image.unlink()
    with pytest.raises(InputError, match="holds images and masks, but no usual names") as error:
        folder_splits(root, masks="images")
    assert str(error.value).endswith(f"as in {advice}.")
    if ".jpg" not in ends:
        image_glob, mask_glob = (part.split("'")[1] for part in advice.split())
        splits = folder_splits(root, masks="images", image_glob=image_glob, mask_glob=mask_glob)
        assert len(ids_of(splits)) == 8
        assert splits.train.mask(0).max() == 1


def test_masks_beside_new_images_are_not_predicted(make_folder, caplog):
    root = make_folder()
    for path in sorted((root / "masks").iterdir()):
        path.rename(root / "images" / f"{path.stem}_mask.png")
    settings = {"images": "images", "masks": "images"}
    settings |= {"image_glob": "{id}.*", "mask_glob": "{id}_mask.*"}
    files = image_files(root / "images", settings)
    assert [sample_id for sample_id, _ in files] == [f"s{n:02d}" for n in range(8)]
    assert "8 files (8 of .png), such as s00_mask.png, which are not read" in caplog.text
    assert len(image_files(root / "images", settings | {"masks": "others"})) == 16


def test_folders_named_train_and_val_are_the_split(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        rename(root, folder, lambda p: f"{'train' if int(p.stem[-1]) < 6 else 'val'}/{p.name}")
    splits = folder_splits(root)
    assert len(splits.train) == 6
    assert len(splits.val) == 2
    assert splits.test is None


@pytest.mark.parametrize("images_form", ["NFC", "NFD"])
def test_names_that_differ_in_their_unicode_form_are_of_one_sample(make_folder, images_form):
    root = make_folder()
    other = {"NFC": "NFD", "NFD": "NFC"}[images_form]
    for folder, form in (("images", images_form), ("masks", other)):
        rename(root, folder, lambda p, f=form: unicodedata.normalize(f, f"Gefäß{p.name}"))
    assert len(ids_of(folder_splits(root))) == 8


def test_what_is_not_read_is_counted_and_named(make_folder, caplog):
    root = make_folder()
    (root / "images/more").mkdir()
    shutil.copy(next((root / "images").glob("*.png")), root / "images/more/x.png")
    (root / "masks/notes.docx").touch()
    with caplog.at_level(logging.WARNING):
        folder_splits(root)
    assert "the folders more with 1 files, which are not read" in caplog.text
    assert "1 files (1 of .docx), such as notes.docx" in caplog.text


def test_links_that_lead_out_are_refused_unless_they_are_allowed(make_folder, tmp_path):
    root = make_folder()
    store = tmp_path / "store"
    shutil.move(root / "masks", store)
    (root / "masks").mkdir()
    for path in store.iterdir():
        (root / "masks" / path.name).symlink_to(path)
    with pytest.raises(InputError, match="data.allow_links=true"):
        folder_splits(root)
    assert len(ids_of(folder_splits(root, allow_links=True))) == 8
    next(store.iterdir()).unlink()
    with pytest.raises(InputError, match="which does not exist"):
        folder_splits(root, allow_links=True)


def test_groups_are_never_on_both_sides_of_a_drawn_split(make_folder, caplog):
    root = make_folder(size=16)
    ids = ids_of(folder_splits(root))
    table = root / "split.csv"
    table.write_text("id,group\n" + "".join(f"{i},{int(i[-2:]) // 3}\n" for i in ids))
    for seed in range(5):
        splits = folder_splits(root, val_share=0.2, test_share=0.3, seed=seed)
        parts = [{part.groups[i] for i in part.ids} for part in splits]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert 3 <= len(splits.test) <= 6
    table.write_text("id,group\n" + "".join(f"{i},\n" for i in ids))
    assert len(set(folder_splits(root).train.groups.values())) == len(folder_splits(root).train)
    table.unlink()
    with pytest.raises(InputError, match="does not fit the id"):
        folder_splits(root, group="(P\\d)_.*")
    splits = folder_splits(root, group=r".*?(\d)\d*")
    assert splits.train.groups
    table.write_text(
        "id,split,group\n"
        + "".join(f"{i},{'test' if n % 2 else 'train'},a\n" for n, i in enumerate(ids))
    )
    with caplog.at_level(logging.WARNING):
        folder_splits(root)
    assert "1 groups, such as a, are in test and train" in caplog.text


def in_bands(root, count, dtype=np.uint16):
    for path in sorted((root / "images").iterdir()):
        with Image.open(path) as file:
            grey = np.asarray(file)
        noise = np.random.default_rng(0).integers(0, 99, (*grey.shape, count))
        noise[..., -1] = grey
        tifffile.imwrite(
            path.with_suffix(".tif"),
            noise.astype(dtype),
            photometric="minisblack",
            planarconfig="contig",
        )
        path.unlink()


@pytest.mark.parametrize("way", ["table", "pattern", "folders"])
def test_a_group_in_two_unicode_forms_is_one(make_folder, way):
    root = make_folder(12)
    forms = [unicodedata.normalize(form, "Zo\u00eb") for form in ("NFC", "NFD")]
    names = {f"s{i:02d}": f"{forms[i % 2]}{i // 4}" for i in range(12)}
    settings = {}
    if way == "table":
        rows = "\n".join(f"{i},{group}" for i, group in names.items())
        (root / "split.csv").write_text(f"id,group\n{rows}\n")
    elif way == "pattern":
        settings = {"group": "(.*)_.*"}
        for folder in ("images", "masks"):
            rename(root, folder, lambda p: f"{names[p.stem]}_{p.name}")
    else:
        settings = {"image_glob": "{group}/{id}.*", "mask_glob": "{group}/{id}.*"}
        for folder in ("images", "masks"):
            rename(root, folder, lambda p: f"{names[p.stem]}/{p.name}")
    splits = folder_splits(root, test_share=0.3, **settings)
    groups = [set(part.groups.values()) for part in (splits.train, splits.test)]
    assert sorted(groups[0] | groups[1]) == [f"{forms[0]}{n}" for n in range(3)]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize("count", [2, 4, 12])
def test_bands_reach_the_networks_or_it_is_said_that_they_do_not(make_folder, count):
    root = make_folder()
    in_bands(root, count)
    with pytest.raises(InputError, match=f"has {count} bands, but data.in_channels=3; set"):
        folder_splits(root, in_channels=3)
    splits = folder_splits(root, in_channels=count)
    sample = SampleDataset(splits.train, image_size=16, in_channels=count)[0]
    assert sample["image"].shape == (count, 16, 16)
    assert len({band.numpy().tobytes() for band in sample["image"]}) == count
    augmented = SampleDataset(
        splits.train, image_size=16, in_channels=count, augmentation=default_augmentation()
    )
    for epoch in range(6):
        assert augmented[epoch, 0]["image"].shape == (count, 16, 16)
    picture = outlined(splits.train.image(0), [(splits.train.mask(0), None)], 64)
    assert picture.shape == (64, 64, 3)
    chosen = folder_splits(root, in_channels=1, bands=[count])
    assert chosen.train.image(0).ndim == 2
    with pytest.raises(InputError, match="set data.in_channels=2"):
        folder_splits(root, in_channels=3, bands=[1, 2])


def test_grey_is_repeated_to_three_channels_at_the_most(make_folder):
    root = make_folder()
    folder_splits(root, in_channels=3)
    with pytest.raises(InputError, match="has 1 band, but data.in_channels=4"):
        folder_splits(root, in_channels=4)


def test_missing_pixels_are_unlabelled_and_out_of_the_stretching(make_folder):
    root = make_folder()
    for path in sorted((root / "images").iterdir()):
        with Image.open(path) as file:
            values = np.asarray(file).astype(np.float32)
        values[:6] = -32768
        tifffile.imwrite(
            path.with_suffix(".tif"), values, extratags=[(42113, "s", 0, "-32768", True)]
        )
        path.unlink()
    train = folder_splits(root, in_channels=1).train
    assert (train.mask(0)[:6] == 255).all()
    assert (train.mask(0)[6:] != 255).all()
    image = train.image(0)
    network = preprocess(image, 32, 1)
    assert network[6:].min() < 0.01  # as if the others were not there
    assert network[6:].max() > 0.99
    assert np.isfinite(network).all()
    assert np.isfinite(preprocess(image, 9, 1)).all()
    assert np.isfinite(without_gaps(image)).all()
    source = {"root": root, "images": "images", "masks": "masks", "classes": 2, "in_channels": 1}
    judged = judged_masks(source)
    index = judged.images.ids.index(train.ids[0])
    np.testing.assert_array_equal(judged.images.mask(index), train.mask(0))


def test_what_vanishes_at_the_networks_size_stops_the_run(make_folder, caplog):
    root = make_folder(side=64)
    paths = sorted((root / "masks").iterdir())
    for number, path in enumerate(paths):
        mask = np.zeros((64, 64), np.uint8)
        mask[33, 41] = 1
        if number >= 5:
            mask[10:30, 10:30] = 1
        Image.fromarray(mask).save(path)
    with caplog.at_level(logging.WARNING):
        folder_splits(root, image_size=16, test_share=0)
    assert "The foreground vanishes in 5 of 8 training masks (62 %)" in caplog.text
    for path in paths[5:]:
        shutil.copy(paths[0], path)
    folder_splits(root, image_size=64, test_share=0)
    with pytest.raises(InputError, match="The foreground vanishes in all 8 training"):
        folder_splits(root, image_size=16, test_share=0)


def test_turned_photos_with_unturned_masks_are_warned_of(make_folder, caplog):
    root = make_folder()
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in (root / "images").iterdir():
        with Image.open(path) as file:
            image = file.copy()
        image.save(path, exif=exif)
    with caplog.at_level(logging.WARNING):
        folder_splits(root)
    assert "8 images" in caplog.text
    assert "have an orientation tag" in caplog.text


def test_a_mask_of_an_unturned_photo_is_told_so(make_folder):
    root = make_folder()
    tag = Image.Exif()
    tag[274] = 6
    for folder in ("images", "masks"):
        for path in (root / folder).iterdir():
            with Image.open(path) as file:
                part = file.crop((0, 0, 32, 24))
            part.save(path, exif=tag if folder == "images" else Image.Exif())
    with pytest.raises(InputError, match=r"is 32x24, but its image is 24x32; the image is turned"):
        folder_splits(root)


def test_lists_of_the_split_that_are_not_read_are_told(make_folder, caplog):
    root = make_folder()
    for part in ("train", "val"):
        (root / f"{part}.txt").write_text("s00\n")
    folder_splits(root)
    assert "holds train.txt and val.txt, which are not read; name the part" in caplog.text
    caplog.clear()
    rows = "\n".join(f"s{n:02d},train" for n in range(8))
    (root / "split.csv").write_text(f"id,split\n{rows}\n")
    folder_splits(root)
    assert "train.txt" not in caplog.text


@pytest.mark.parametrize(
    ("header", "rows", "is_told"),
    [
        ("name,r,g,b", ["roof,255,0,0", "grass,0,255,0"], True),
        ("r,g,b", ["255,0,0", "0,255,0"], True),
        ("name,r,g,b", ["other,255,0,0", "Background,0,255,0"], False),
        ("class,r,g,b", ["0,255,0,0", "1,0,255,0"], False),
        ("name,r,g,b", ["unknown,0,0,0", "roof,255,0,0", "grass,0,255,0"], False),
    ],
)
def test_a_colour_that_is_class_0_by_its_place_is_told(make_folder, caplog, header, rows, is_told):
    root = make_folder()
    table = root / "colours.csv"
    table.write_text("\n".join([header, *rows]))
    colours = np.array([(255, 0, 0), (0, 255, 0)], np.uint8)
    for path in (root / "masks").iterdir():
        with Image.open(path) as file:
            painted = colours[np.asarray(file)]
        Image.fromarray(painted).save(path)
    folder_splits(root, classes=len(rows), colours=str(table))
    assert (
        "so the colour (255, 0, 0), the first that is a class, is class 0" in caplog.text
    ) == is_told


def test_ids_with_an_ending_are_told_so(make_folder):
    root = make_folder()
    (root / "split.csv").write_text(
        "id,split\n" + "".join(f"{path.name},train\n" for path in (root / "images").iterdir())
    )
    with pytest.raises(InputError, match="An id is a file name without its extension: "):
        folder_splits(root)


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("images\\7.png", "An id is a file name without its extension: 7."),
        ("masks/7.nii.gz", "An id is a file name without its extension: 7."),
        ("9/7.0", "An id is a file name without its extension: 9_7.0."),
        ("7.0", "Write 7 instead, which a program may have taken for a number."),
        ("B7", "Write b7 instead, which differs in letter case alone."),
    ],
)
def test_ids_that_are_written_in_another_way_are_told_so(make_folder, written, hint):
    root = make_folder()
    for folder in ("images", "masks"):
        (root / folder / "s01.png").rename(root / folder / "7.png")
        (root / folder / "s02.png").rename(root / folder / "b7.png")
        (root / folder / "s03.png").rename(root / folder / "9_7.0.png")
    (root / "split.csv").write_text(f"id,split\ns00,train\n{written},test\n")
    with pytest.raises(InputError, match="has no such image") as error:
        folder_splits(root)
    assert hint in str(error.value)


def test_lists_of_outlines_are_no_masks(make_folder):
    root = make_folder()
    shutil.rmtree(root / "masks")
    (root / "annotations").mkdir()
    (root / "annotations/instances_train.json").write_text("{}")
    with pytest.raises(InputError, match="but lists of outlines"):
        folder_splits(root)


@pytest.mark.parametrize(("what", "suffix"), [("images", ".mhd"), ("masks", ".npz")])
def test_files_of_a_format_that_is_not_read_are_to_be_converted(make_folder, what, suffix):
    root = make_folder()
    rename(root, what, lambda p: f"{p.stem}{suffix}")
    with pytest.raises(
        InputError, match=rf"files of \{suffix}, which are not read; save the {what}"
    ):
        folder_splits(root)


LAYOUTS = {
    "{n}/imaging.png": ("{n}/segmentation.png", "{id}/imaging.*", "{id}/segmentation.*"),
    "{n}/{n}_flair.png": ("{n}/{n}_seg.png", "**/{id}_flair.*", "**/{id}_seg.*"),
    "train/images/{n}.png": ("train/masks/{n}.png", "**/images/{id}.*", "**/masks/{id}.*"),
    "train/city/im/{n}.png": ("train/city/gt/{n}.png", "**/im/{id}.*", "**/gt/{id}.*"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_and_masks_within_folders_are_found_by_the_patterns_that_are_told(
    make_folder, layout
):
    root = make_folder()
    of_masks, image_glob, mask_glob = LAYOUTS[layout]
    for folder, name in (("images", layout), ("masks", of_masks)):
        rename(root, folder, lambda p, name=name: f"../{name.format(n=p.stem)}")
        (root / folder).rmdir()
    shutil.rmtree(root / "masks_rough")
    with pytest.raises(InputError, match="or give images=. masks=. if each of them holds"):
        folder_splits(root)
    with pytest.raises(InputError) as error:
        folder_splits(root, images=".", masks=".")
    assert f"data.image_glob='{image_glob}', and alike for masks" in str(error.value)
    splits = folder_splits(root, images=".", masks=".", image_glob=image_glob, mask_glob=mask_glob)
    assert len(ids_of(splits)) == 8


def test_of_many_folders_a_few_are_named(tmp_path):
    for number in range(30):
        (tmp_path / f"p{number:02d}").mkdir()
    with pytest.raises(InputError, match="p03, p04 and 25 more; name the right one"):
        folder_splits(tmp_path)


def test_endings_in_capitals_are_named_as_they_are(make_folder):
    root = make_folder()
    rename(root, "images", lambda p: f"{p.stem}.PNG")
    with pytest.raises(InputError, match=r"named \{id\}\.png, but files of \.PNG; set"):
        folder_splits(root, image_glob="{id}.png")


def test_masks_of_another_annotator_are_read_as_the_datasets_own(make_folder):
    root = make_folder(foreground=7)
    rename(root, "masks_rough", lambda p: f"{p.stem}_mask.png")
    rules = MaskRules(2, class_ids=(0, 7))
    splits = folder_splits(root, class_ids=[0, 7], test_share=0)
    model = Annotator("masks_rough", root, rules=rules, mask_glob="{id}_mask.*")
    assert not model.validate_masks(splits.train)
    drawn = model(splits.train.mask(0), id=splits.train.ids[0], seed=0)
    assert drawn.sum() > splits.train.mask(0).sum()
    assert set(np.unique(drawn)) == {0, 1}


def test_folders_that_are_links_are_not_entered(make_folder, tmp_path):
    root = make_folder()
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(outside / "secret.png")
    for folder in ("images", "masks"):
        (root / folder / "out").symlink_to(outside)
        (root / folder / "circle").symlink_to(root / folder)
    splits = folder_splits(root, image_glob="**/{id}.*", mask_glob="**/{id}.*")
    assert "secret" not in ids_of(splits)
    assert len(ids_of(splits)) == 8


def with_lists(root, **lists):
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, ids in lists.items():
        (folder / f"{name}.txt").write_bytes("\n".join(ids).encode("utf-8-sig"))
    return root


def test_lists_that_leave_out_or_repeat_images_are_noticed(make_folder, caplog):
    root = make_folder()
    splits = folder_splits(with_lists(root, train=["s00", "s01"], test=["s02"]))
    assert (splits.train.ids, splits.test.ids) == (["s00", "s01"], ["s02"])
    assert splits.train.split_by == "by ImageSets/Segmentation"
    assert "5 images, such as s03, are not named in" in caplog.text
    with pytest.raises(InputError, match="name s01 2 times; list it once"):
        folder_splits(with_lists(root, train=["s00", "s01"], val=["s01"]))
    with pytest.raises(InputError, match="ImageSets/Segmentation names the sample nobody, but"):
        folder_splits(with_lists(root, train=["s00", "nobody"], val=["s01"]))
    splits = folder_splits(with_lists(root, trainval=["s00", "s01", "s02", "s03"]), test_share=0.25)
    assert ids_of(splits) == ["s00", "s01", "s02", "s03"]
    assert splits.train.split_by.startswith("drawn by seed=0")
    splits = folder_splits(with_lists(root, trainval=["s00 1", "s01 1"], test=["s02 -1"]))
    assert (splits.train.ids, splits.test.ids) == (["s00", "s01"], ["s02"])


def test_names_in_lists_may_hold_spaces(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        rename(root, folder, lambda p: f"Gefäß {p.stem} links.png")
    names = [f"Gefäß s0{number} links" for number in range(8)]
    lists = {"train": [f"{name}  -1" for name in names[:5]], "test": names[5:]}
    splits = folder_splits(with_lists(root, **lists))
    assert (splits.train.ids, splits.test.ids) == (names[:5], names[5:])


def test_lists_and_tables_may_be_in_another_unicode_form(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        rename(root, folder, lambda p: unicodedata.normalize("NFD", f"Gefäß{p.stem[-1]}.png"))
    ids = [unicodedata.normalize("NFC", f"Gefäß{n}") for n in range(8)]
    files = sorted(unicodedata.normalize("NFD", i) for i in ids)
    splits = folder_splits(with_lists(root, train=ids[:6], test=ids[6:]))
    assert ids_of(splits) == files
    with pytest.raises(InputError, match="is named in 2 Unicode forms; name it once"):
        folder_splits(with_lists(root, train=ids, test=files[:1]))
    shutil.rmtree(root / "ImageSets")
    splits = folder_splits(root, trusted_ids=ids[:3])
    assert splits.test.ids == files[:3]
    assert splits.test.trusted
    rows = [f"{i},{'test' if n > 5 else 'train'},g{n % 3}" for n, i in enumerate(ids)]
    (root / "split.csv").write_text("\n".join(["ID,Split,Group", *rows]), encoding="utf-8")
    splits = folder_splits(root)
    assert ids_of(splits) == files
    assert splits.train.groups == {i: f"g{n % 3}" for n, i in enumerate(files[:6])}


def test_names_in_another_unicode_form_are_of_the_same_samples(make_folder, tmp_path):
    root = make_folder()

    def renamed(form):
        return lambda p: unicodedata.normalize(form, f"Gefäß{p.stem[-1]}.png")

    for folder in ("images", "masks"):
        rename(root, folder, renamed("NFD"))
    rename(root, "masks_rough", renamed("NFC"))
    train, _, _ = folder_splits(root, test_share=0)
    ids = [unicodedata.normalize("NFC", i) for i in train.ids]
    others = Annotator("masks_rough", root)
    assert not others.validate_masks(train)
    data = CoSegDataModule(
        train,
        image_size=32,
        clean_ids=ids[:2],
        noise=others,
        noise_level=0.5,
        noise_folder=tmp_path / "noise",
    )
    assert data.clean_ids == set(train.ids[:2])
    data.prepare_data()
    assert len(data.given_samples().replaced) == 4
    out = tmp_path / "out"
    rows = corrupt_folder(
        root / "masks", out, BoundaryNoise(), name="type1", noise_level=0.5, candidates=ids[:4]
    )
    assert sum(row["noisy"] for row in rows) == 2
    for i in ids[1:]:
        np.save(root / f"{i}.npy", np.full((4, 4), 0.5, np.float32))
    predictions = PredictionFolder(root, classes=2, ids=train.ids[1:])
    assert predictions.read(train.ids[1], (4, 4)).shape == (2, 4, 4)
    with pytest.raises(InputError, match=f"holds no prediction of {train.ids[0]}; every mask"):
        PredictionFolder(root, classes=2, ids=train.ids)


@pytest.mark.parametrize(
    ("of_group", "what"),
    [(10, "so the part test stays empty"), (14, "so a part may be of one group alone")],
)
def test_few_groups_are_told(make_folder, caplog, of_group, what):
    root = make_folder(size=20)
    for folder in ("images", "masks"):
        rename(root, folder, lambda p: f"{'ab'[int(p.stem[1:]) >= of_group]}/{p.name}")
    splits = folder_splits(root)
    assert f"there are only 2 groups: a, b; {what}" in caplog.text
    assert splits.train.split_by == "drawn by seed=0, by whole groups"


def test_trusted_masks_that_are_not_tested_on_are_told(make_folder, caplog):
    root = make_folder()
    rows = [f"s{n:02},{'test' if n > 5 else 'train'}" for n in range(8)]
    (root / "split.csv").write_text("\n".join(["id,split", *rows]))
    splits = folder_splits(root, trusted_ids=["s00", "s07"])
    assert splits.test.ids == ["s07"]
    assert "Of data.trusted_ids 1 will not be tested on, such as s00, since" in caplog.text


def test_parts_of_objects_are_not_taken_for_persons_without_a_word(make_folder, caplog):
    root = make_folder(side=48)
    for name, width in (("disc", 0), ("cup", 6)):
        (root / "masks" / name).mkdir()
        for path in (root / "masks").glob("*.png"):
            mask = np.array(Image.open(path))
            rows, columns = np.nonzero(mask)
            inner = np.zeros_like(mask)
            inner[rows.min() + width : rows.max() + 1, columns.min() : columns.max() + 1] = 1
            Image.fromarray(inner * mask).save(root / "masks" / name / path.name)
    for path in (root / "masks").glob("*.png"):
        path.unlink()
    folder_splits(root)
    assert "The masks of cup lie within those of disc in all 8 images" in caplog.text
    caplog.clear()
    folder_splits(root, hide_annotators=True)
    assert "The masks of one person lie within those of another" in caplog.text


VALUES_FAR_AWAY = {
    "float": (np.float32, -3.4028234663852886e38),
    "odd": (np.float64, -9999.9),
    "int32": (np.int32, -2147483647),
    "usual": (np.float32, -9999),
    "int16": (np.int16, -32768),
    "uint16": (np.uint16, 65535),
}


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("name", VALUES_FAR_AWAY)
def test_a_value_far_from_all_others_is_told(make_folder, caplog, name, tile):
    dtype, value = VALUES_FAR_AWAY[name]
    root = make_folder(side=64)
    for number, path in enumerate(sorted((root / "images").iterdir())):
        image = np.random.default_rng(number).integers(0, 250, (64, 64)).astype(dtype)
        if number < 3:
            image[:, :2] = value
        tifffile.imwrite(path.with_suffix(".tif"), image)
        path.unlink()
    options = {} if tile is None else {"tile": tile, "overlap": 0}
    folder_splits(root, **options)
    assert "3 images, such as s00.tif, hold a value far from all others" in caplog.text
    setting = caplog.text.partition("set data.nodata=")[2].partition(".\n")[0]
    caplog.clear()
    splits = folder_splits(root, nodata=float(setting), **options)
    assert "far from all others" not in caplog.text
    assert "3 images, such as s00.tif, have missing pixels" in caplog.text
    assert {part.split_by for part in splits if part is not None} == {"drawn by seed=0"}


@pytest.mark.parametrize("tile", [None, 32])
def test_a_value_that_networks_cannot_take_is_refused(make_folder, tile):
    root = make_folder(side=64)
    lowest = -1.7976931348623157e308
    for number, path in enumerate(sorted((root / "images").iterdir())):
        image = np.random.default_rng(number).integers(0, 250, (64, 64)).astype(np.float64)
        image[:, :2] = lowest
        tifffile.imwrite(path.with_suffix(".tif"), image)
        path.unlink()
    options = {} if tile is None else {"tile": tile, "overlap": 0}
    with pytest.raises(
        InputError, match=rf"hold, 128 in all, such as {lowest!r}".replace("+", ".")
    ):
        folder_splits(root, **options)
    train = folder_splits(root, nodata=lowest, **options).train
    assert np.isnan(train.image(0)[:, 0]).all()
    assert np.isfinite(preprocess(train.image(0), 32, 1)).all()


@pytest.mark.parametrize("levels", ["dark border", "saturated", "two levels", "byte"])
def test_usual_values_are_not_far_away(make_folder, caplog, levels):
    root = make_folder()
    for number, path in enumerate(sorted((root / "images").iterdir())):
        image = np.random.default_rng(number).integers(100, 4000, (32, 32)).astype(np.uint16)
        if levels == "dark border":
            image[:4] = 0
        elif levels == "saturated":
            image[:4] = 4095
        elif levels == "two levels":
            image = np.where(image > 2000, 65535, 0).astype(np.uint16)
        else:
            image = np.full((32, 32), 255, np.uint8)
            image[4:] = np.random.default_rng(number).integers(0, 40, (28, 32))
        tifffile.imwrite(path.with_suffix(".tif"), image)
        path.unlink()
    folder_splits(root)
    assert "far from all others" not in caplog.text


def test_a_stem_in_two_folders_is_said_with_both_paths(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        rename(root, folder, lambda p: f"P{int(p.stem[-1]) % 2}/{int(p.stem[-1]) // 2}.png")
    with pytest.raises(InputError, match=r"P0/0.png and .*P1/0.png would be the same sample; ren"):
        folder_splits(root, image_glob="**/{id}.*", mask_glob="**/{id}.*")


def test_channels_in_files_of_their_own_are_refused(make_folder):
    root = make_folder()
    for path in list((root / "images").iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}_0001"))
        path.rename(path.with_stem(f"{path.stem}_0000"))
    message = "s00_0000 and s00_0001 are two images, but there is one mask s00.* channels"
    with pytest.raises(InputError, match=message):
        folder_splits(root)
    (root / "split.csv").write_text("id,split\n" + "".join(f"s{n:02},train\n" for n in range(8)))
    for n in range(8):
        shutil.copy(root / f"images/s{n:02}_0000.png", root / f"images/s{n:02}.png")
    assert len(folder_splits(root).train) == 8  # frames that are not used lie beside


def test_numbers_at_the_end_of_names_are_no_channels(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        for name, number in (("scan", 0), ("scan_2020", 1), ("scan_2021", 2)):
            (root / folder / f"s{number:02}.png").rename(root / folder / f"{name}.png")
    assert {"scan", "scan_2020", "scan_2021"} <= {*ids_of(folder_splits(root))}
