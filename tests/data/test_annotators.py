"""Who drew which mask, and several masks of one image: read right, or refused."""

import csv
import json
import logging
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from coseg_lightning import CoSegDataModule
from coseg_lightning.app.settled import settle_folders
from coseg_lightning.apply import apply, main
from coseg_lightning.audit import audit
from coseg_lightning.check import describe
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.subsets import JoinedImages, SomeImages, identity_of
from coseg_lightning.errors import BadSamplesError, InputError
from coseg_lightning.files.naming import likely_patterns
from coseg_lightning.labels.fusion import best, majority, soft_label, staple
from coseg_lightning.run import run
from coseg_lightning.runs.folder import RunFolder
from support import CLASSIC, SHORT, Squares, composed, layer_of

PEOPLE = ("anna", "ben", "cem")


def drawn(index, person, squares):
    """A mask as one of three people draws it: right, moved, or too large."""
    mask = squares.mask(index)
    if person == "ben":
        return np.roll(mask, 2, axis=1)
    if person == "cem":
        return np.maximum.reduce([np.roll(mask, (r, c), (0, 1)) for r in (-1, 1) for c in (-1, 1)])
    return mask


PLACES = {
    "beside": "masks/{id}__{name}.png",
    "folders": "masks/{name}/{id}.png",
    "list": "masks_{name}/{id}.png",
}


@pytest.fixture
def make_several(tmp_path):
    """Write images of which three people drew a mask each, but the last, which only anna drew."""

    def make(layout="beside", size=8, people=PEOPLE):
        root, squares = tmp_path / "several", Squares(size)
        (root / "images").mkdir(parents=True)
        for i, sample_id in enumerate(squares.ids):
            Image.fromarray(squares.image(i)).save(root / "images" / f"{sample_id}.png")
            for name in people if i < size - 1 else people[:1]:
                path = root / PLACES[layout].format(id=sample_id, name=name)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(255 * drawn(i, name, squares)).save(path)
        return root

    return make


LIST = [f"masks_{name}" for name in PEOPLE]


def opened(root, layout="beside", **options):
    masks = {"masks": LIST} if layout == "list" else {}
    return folder_splits(root, **{"test_share": 0, **masks, **options}).train


def place(root, sample_id, name, layout="beside"):
    return root / PLACES[layout].format(id=sample_id, name=name)


@pytest.mark.parametrize("layout", ["folders", "list"])
def test_one_persons_255_beside_the_others_1_is_refused(make_several, layout, caplog):
    root = make_several(layout)
    for i in range(8):
        for name in PEOPLE[1:]:
            path = place(root, f"s{i:02d}", name, layout)
            if path.exists():
                Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    with pytest.raises(BadSamplesError, match=r"anna hold only 0 and 255, but .* other folders"):
        opened(root, layout)
    other = place(root, "s00", PEOPLE[1], layout)
    mask = np.array(Image.open(other))
    mask[0, 0] = 255  # nobody labelled it, so that may be so in anna's masks too
    Image.fromarray(mask).save(other)
    opened(root, layout)
    assert "hold only 0 and 255, but other masks hold 1, so 255 counts" in caplog.text


def annotators(root, text):
    (root / "annotators.csv").write_text(text, encoding="utf-8")
    return root


# Names of people, of images of one mask


def test_a_table_says_who_drew_which_mask(make_folder):
    root = annotators(
        make_folder(), "\ufeffid, annotator,years\r\ns00,Änne,3\r\n,,\r\ns03, =2+3 ,1\r\n"
    )
    splits = folder_splits(root)
    names = {i: n for part in splits if part is not None for i, n in part.annotators.items()}
    assert names == {"s00": "Änne", "s03": "=2+3"}
    assert all(part.several is None for part in splits if part is not None)
    assert folder_splits(root, annotators=None).train.annotators == {}
    assert folder_splits(root, annotators={"s01": "b"}, test_share=0).train.annotators == {
        "s01": "b"
    }
    other = root.parent / "who.csv"
    other.write_text("id,annotator\ns02,c\n")
    named = folder_splits(root, annotators=str(other), test_share=0).train
    assert named.annotators == {"s02": "c"}
    assert identity_of(named) == identity_of(folder_splits(root, test_share=0).train)


def test_names_reach_every_dataset_and_every_batch(make_folder):
    root = annotators(make_folder(), "id,annotator\ns00,a\ns01,b\ns02,a\n")
    train = folder_splits(root, test_share=0).train
    assert SomeImages(train, ["s00"]).annotators == {"s01": "b", "s02": "a"}
    assert JoinedImages([train]).annotators == train.annotators
    data = CoSegDataModule(train, image_size=32, in_channels=1, batch_size=4)
    assert data.annotators == {"s00": "a", "s01": "b", "s02": "a"}
    samples = data.samples("train")
    assert [samples[i]["annotator"] for i in range(4)] == ["a", "b", "a", ""]
    assert samples.plain().without(["s00"])[0]["annotator"] == "b"
    batch = next(iter(DataLoader(samples.plain(), batch_size=4)))
    assert batch["annotator"] == ["a", "b", "a", ""]
    unknown = CoSegDataModule(folder_splits(root, annotators=None).train, in_channels=1)
    assert "annotator" not in unknown.samples("train")[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("s00,a\ns00,b", "lists s00 2 times; list it once"),
        ("s00,", "gives s00 the annotator ''; give a name, or remove the row"),
        ("s00,#REF!", "'#REF!', an error of a spreadsheet"),
        ("s00,nan", "'nan', which stands for a missing name; give a name, or remove the row"),
        ("s00__anna,anna", "A row names an image, as s00, not the mask of one person"),
        ('s00,"a\nb"', "give a name on one line"),
        ("zz,a", "names zz, but there is no such image; remove the row"),
        ("s00.png,a", "An id is a file name without its extension: s00"),
        ("S00,a", "Letter case matters: s00"),
    ],
)
def test_rows_that_cannot_be_meant_are_told(make_folder, tmp_path, rows, message):
    root = annotators(make_folder(), f"id,annotator\n{rows}\ns01,b\n")
    with pytest.raises(BadSamplesError, match=message):
        folder_splits(root, problems=tmp_path / "problems.csv")
    train = folder_splits(root, on_bad_sample="skip", test_share=0).train
    assert len(train) == 8  # a doubtful name costs no sample
    assert train.annotators["s01"] == "b"
    assert train.annotators.get("s00") != "a"  # nor the first of two that contradict each other


def test_names_from_python_are_read_as_those_of_batches(make_folder):
    given = {"s00": " Anna ", "s01": None, "s02": float("nan"), "s03": 1, "s04": 1.0}
    root = make_folder()
    train = folder_splits(root, annotators=given, test_share=0).train
    assert train.annotators == {"s00": "Anna", "s03": "1", "s04": "1"}
    annotators(root, "id,annotator,annotator\ns00,a,b\n")
    with pytest.raises(InputError, match="has several columns annotator; keep one of them"):
        folder_splits(root)


def test_spaces_around_a_name_make_no_other_person(make_several):
    root = make_several(people=("anna", "ben"))
    mask = place(root, "s00", "ben")
    mask.rename(mask.with_name("s00__ben .png"))
    assert opened(root).several.names("s00") == ["anna", "ben"]
    shutil.copy(place(root, "s00", "ben "), mask)
    with pytest.raises(InputError, match="s00 has two masks by 'ben', whose files differ in spac"):
        opened(root)


def test_what_spreadsheets_make_of_a_table_is_told(make_folder):
    root = make_folder()
    annotators(root, "id annotator\ns00 a\n")
    with pytest.raises(InputError, match="its first line is 'id annotator'; it must name the col"):
        folder_splits(root)
    for folder in ("images", "masks"):
        for number, path in enumerate(sorted((root / folder).iterdir())):
            path.rename(path.with_name(f"{number:03}.png"))
    annotators(root, "id,annotator\n7,a\n")
    with pytest.raises(BadSamplesError, match="drops leading zeros, so perhaps 007 is meant"):
        folder_splits(root)
    with pytest.raises(InputError, match="must be auto, null, or a CSV file"):
        folder_splits(root, annotators=3)


@pytest.mark.parametrize("names", [("Anna", "anna"), ("1", "01")])
def test_names_that_differ_little_are_warned_of(make_folder, caplog, names):
    root = annotators(make_folder(), "id,annotator\ns00,{}\ns01,{}\n".format(*names))
    with caplog.at_level(logging.WARNING):
        folder_splits(root)
    first, second = sorted(names)
    assert f"The annotators {first!r} and {second!r} count as different people" in caplog.text
    caplog.clear()
    folder_splits(root, hide_annotators=True)
    assert "The annotators of a similar name count as different people" in caplog.text
    assert first not in caplog.text.replace(str(root), "").replace("test_annotators", "")


# Several masks of one image


@pytest.mark.parametrize("layout", list(PLACES))
def test_several_masks_are_read_in_three_layouts(make_several, layout):
    train = opened(make_several(layout), layout)
    squares = Squares(8)
    assert train.several.ids == squares.ids[:7]
    assert train.several.names("s00") == list(PEOPLE)
    for i, sample_id in enumerate(squares.ids[:7]):
        masks = [drawn(i, name, squares) for name in PEOPLE]
        for name, mask in zip(PEOPLE, masks, strict=True):
            np.testing.assert_array_equal(train.several.mask(sample_id, name), mask)
        np.testing.assert_array_equal(train.mask(i), majority(masks))
        np.testing.assert_array_equal(train.several.fused(sample_id), train.mask(i))
    np.testing.assert_array_equal(train.mask(7), squares.mask(7))
    assert train.annotators == {"s07": "anna"}
    if layout != "list":
        assert [*train.annotators] == ["s07"]


def test_what_is_guessed_is_said_in_one_sentence(make_several, caplog):
    cfg = composed("data=folder", f"data.root={make_several('folders')}")
    with caplog.at_level(logging.INFO):
        settle_folders(cfg)
    assert cfg.data.mask_glob == "{annotator}/{id}.*"
    (line,) = [r.getMessage() for r in caplog.records if "Assuming that" in r.getMessage()]
    assert "3 people (anna, ben, cem) drew them, and 7 images have several masks" in line
    assert "Confirm it by data.mask_glob='{annotator}/{id}.*', or" in line


def test_a_mask_without_a_name_may_lie_beside_others(make_several):
    root = make_several()
    shutil.copy(place(root, "s00", "ben"), root / "masks" / "s00.png")
    place(root, "s07", "anna").rename(root / "masks" / "s07.png")
    train = opened(root)
    assert train.several.names("s00") == ["unnamed", *PEOPLE]
    assert train.annotators == {}


def test_ids_and_names_with_two_underscores_are_split_by_the_images(make_several):
    root = make_several()
    for folder in ("images", "masks"):
        for path in sorted((root / folder).glob("s0[01]*")):
            new = path.name.replace("s00", "a__s00").replace("ben", "ben__lee")
            path.rename(path.with_name(new))
    train = opened(root)
    assert train.several.names("a__s00") == ["anna", "ben__lee", "cem"]
    assert train.several.names("s01") == ["anna", "ben__lee", "cem"]


def test_slices_of_volumes_may_have_several_masks(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    masks = {name: np.zeros((16, 12, 3), np.uint8) for name in PEOPLE}
    for number, name in enumerate(PEOPLE):
        masks[name][2 + number : 9, 3:8] = 1
    files = {"images/ct.nii.gz": rng.integers(0, 99, (16, 12, 3)).astype(np.int16)}
    files |= {f"masks/{name}/ct.nii.gz": masks[name] for name in PEOPLE}
    for place_of, values in files.items():
        (tmp_path / place_of).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / place_of)
    train = folder_splits(tmp_path, test_share=0).train
    assert len(train) == 3
    for index, sample_id in enumerate(train.ids):
        assert train.several.names(sample_id) == list(PEOPLE)
        each = [train.several.mask(sample_id, name) for name in PEOPLE]
        np.testing.assert_array_equal(train.mask(index), majority(each))
        np.testing.assert_array_equal(train.mask(index), each[1])


def test_a_dataset_can_be_sent_to_other_processes(make_several):
    root = make_several()
    for label in ("majority", "best", "random"):
        train = opened(root, label=label)
        again = pickle.loads(pickle.dumps(train))
        for index in range(8):
            np.testing.assert_array_equal(again.mask(index), train.mask(index))


def test_endings_of_all_masks_are_no_people(make_folder):
    root = make_folder()
    for path in (root / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    train = folder_splits(root).train
    assert train.several is None
    assert train.annotators == {}


def test_one_mask_an_image_by_different_people_is_read_too(make_folder):
    root = make_folder()
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        path.rename(path.with_name(f"{path.stem}__{PEOPLE[number % 3]}.png"))
    train = folder_splits(root, test_share=0).train
    assert train.several is None
    assert train.annotators["s04"] == "ben"
    annotators(root, "id,annotator\ns04,ben\ns05,ben\n")
    with pytest.raises(BadSamplesError, match="says that ben drew the mask of s05, but its file"):
        folder_splits(root)


def test_folders_that_may_be_groups_are_refused(make_folder, make_several):
    root = make_folder()
    for path in sorted((root / "masks").iterdir()):
        new = root / "masks" / f"P{int(path.stem[-1]) // 2}" / path.name
        new.parent.mkdir(exist_ok=True)
        path.rename(new)
    with pytest.raises(
        InputError, match=r"such as P0/s00.png; give data.mask_glob=.* if each is a person's, or "
    ):
        folder_splits(root)
    train = folder_splits(root, mask_glob="**/{id}.*", test_share=0).train
    assert train.several is None
    named = folder_splits(root, mask_glob="{annotator}/{id}.*", test_share=0).train
    assert named.annotators["s00"] == "P0"
    several = make_several("folders")
    shutil.copy(several / "masks/anna/s00.png", several / "masks/s00.png")
    with pytest.raises(InputError, match="which may be by other annotators, or old; set data.mask"):
        folder_splits(several)
    assert len(opened(several, mask_glob="{annotator}/{id}.*").several.names("s00")) == 4


def test_folders_of_one_name_are_told_apart_by_those_above(make_several):
    root = make_several("list")
    for name in PEOPLE:
        (root / name).mkdir()
        (root / f"masks_{name}").rename(root / name / "masks")
    train = opened(root, masks=[f"{name}/masks" for name in PEOPLE])
    assert train.several.names("s00") == [f"{name}/masks" for name in PEOPLE]


def test_bad_files_are_told_as_those_of_single_masks(make_several, tmp_path, caplog):
    root = make_several()
    place(root, "s00", "ben").write_bytes(b"nothing")
    Image.new("L", (8, 8)).save(place(root, "s01", "cem"))
    place(root, "s02", "anna").with_suffix(".tif").write_bytes(
        place(root, "s02", "ben").read_bytes()
    )
    shutil.copy(place(root, "s03", "ben"), place(root, "zz", "ben"))
    place(root, "s07", "anna").write_bytes(b"")
    with pytest.raises(BadSamplesError, match="5 problems") as error:
        opened(root, problems=tmp_path / "problems.csv")
    for sentence in (
        "s00__ben.png",
        "s01__cem.png is 8x8, but its image is 32x32",
        "would be the same sample",
        "zz__ben.png has no image",
        "s07__anna.png",
    ):
        assert sentence in str(error.value)
    with (tmp_path / "problems.csv").open() as file:
        assert {row["ids"] for row in csv.DictReader(file) if row["usable"] == "0"} >= {
            "s00/ben",
            "s01/cem",
            "s02/anna",
        }
    train = opened(root, on_bad_sample="skip")
    assert "0 samples and 5 masks of images with several masks" in caplog.text
    assert list(train.ids) == [f"s{i:02}" for i in range(7)]
    assert train.several.names("s00") == ["anna", "cem"]
    assert train.several.names("s02") == ["ben", "cem"]


def test_a_missing_image_of_all_people_is_told(make_several):
    root = make_several()
    place(root, "s07", "anna").unlink()
    with pytest.raises(BadSamplesError, match="holds no mask of s07; every sample needs one"):
        opened(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "mean"}, "data.label=mean must be majority, staple, random, best or soft"),
        ({"tile": 32, "overlap": 4}, "data.tile=32 does not work with several masks"),
        ({"masks": ["masks", "masks"]}, "must name each person's folder once"),
        ({"masks": ["masks", "none"]}, "data.masks=none: there is no such folder"),
        ({"masks": ["masks"], "mask_glob": "{annotator}/{id}.*"}, "both name the annotators"),
        ({"image_glob": "{annotator}/{id}.*"}, "put images and masks into two folders"),
        ({"annotators": {"s00": "x"}}, "names an annotator of s00, but it has several masks"),
    ],
)
def test_what_cannot_work_is_refused(make_several, options, message):
    with pytest.raises(InputError, match=message):
        opened(make_several(), **options)


def test_a_label_that_nothing_needs_is_refused(make_folder):
    with pytest.raises(InputError, match="data.label=staple would have no effect"):
        folder_splits(make_folder(), label="staple")


@pytest.mark.parametrize(
    ("names", "keeps_plain", "pattern", "plain"),
    [
        (["__anna"], True, "{id}__{annotator}.*", None),
        (["__anna"], False, "{id}__{annotator}.*", "{id}__anna.*"),
        (["_anna", "_ben"], False, "{id}_{annotator}.*", None),
        (["-seg_anna", "-seg_ben"], False, "{id}-seg_{annotator}.*", None),
        (["_anna_a", "_ben"], False, "{id}_{annotator}.*", None),
        (["_anna_seg", "_ben_seg"], False, "{id}_{annotator}_seg.*", None),
    ],
)
def test_the_pattern_of_people_is_named_where_it_is_not_guessed(
    make_folder, names, keeps_plain, pattern, plain
):
    root = make_folder()
    for path in sorted((root / "masks").iterdir()):
        for name in names:
            shutil.copy(path, path.with_name(f"{path.stem}{name}.png"))
        if not keeps_plain:
            path.unlink()
    with pytest.raises(BadSamplesError) as error:
        folder_splits(root)
    assert f"if they name persons, {'set ' if keeps_plain else ''}" in str(error.value)
    assert f"data.mask_glob='{pattern}'" in str(error.value)
    assert plain is None or f"data.mask_glob='{plain}'" in str(error.value)
    train = folder_splits(root, mask_glob=pattern, test_share=0).train
    several = keeps_plain or len(names) > 1
    assert len(train.several.ids if several else train.annotators) == 8


@pytest.mark.parametrize(
    ("place", "pattern"),
    [
        ("{name}-final/{id}_seg.png", "{annotator}-final/{id}_seg.*"),
        ("{name}/{id}_{name}.png", "{annotator}/{id}_*.*"),
        ("{name}/set1/{id}.png", "{annotator}/set1/{id}.*"),
        ("{id}/{name}.png", "{id}/{annotator}.*"),
        ("{id}/{id}_{name}.png", "*/{id}_{annotator}.*"),
        ("{name}_{id}.png", "{annotator}_{id}.*"),
        ("{name} (final)__{id}.png", "{annotator} (final)__{id}.*"),
    ],
)
def test_the_pattern_that_an_error_names_reads_all_masks(make_folder, place, pattern):
    root = make_folder()
    for path in sorted((root / "masks").iterdir()):
        for name in PEOPLE:
            copy = root / "masks" / place.format(id=path.stem, name=name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        path.unlink()
    with pytest.raises(InputError) as error:
        folder_splits(root)
    assert f"data.mask_glob='{pattern}'" in str(error.value)
    train = folder_splits(root, mask_glob=pattern, test_share=0).train
    assert [train.several.names(i) for i in train.several.ids] == 8 * [sorted(PEOPLE)]


@pytest.mark.parametrize(
    ("names", "likely"),
    [
        (["P0/s0.png", "P0/s1.png", "P1/s2.png", "P1/s3.png"], ("{annotator}/{id}.*", None, False)),
        (["s0/m.png", "s1/m.png"], (None, "{id}/m.*", False)),
        (["mask_s0.png", "mask_s1.png"], (None, "mask_{id}.*", False)),
        (["s0mask.nii.gz", "s1mask.nii.gz"], (None, "{id}mask.*", False)),
        (["s0/ab.png", "s0/cd.png", "s1/ef.png", "s1/gh.png"], (None, None, True)),  # of objects
        (
            ["s0_an.png", "s0_ann.png", "s1_an.png", "s1_ann.png"],
            ("{id}_{annotator}.*", None, True),
        ),
        (["x/s0.png", "s1.png"], (None, None, False)),
        (["s01.png", "s02.png", "s11.png", "s12.png"], (None, None, True)),  # of other images
        (["a_s0.png", "a_s1.png", "b-s0.png", "b-s1.png"], (None, None, True)),
        (["s0_s1.png", "s1_s0.png"], (None, None, False)),  # which one is it of?
        (["one.png", "two.png"], (None, None, False)),
        ([], (None, None, False)),
    ],
)
def test_patterns_are_found_in_names(names, likely):
    assert likely_patterns(names, {"s0", "s1", "s2", "s3"}) == likely


def test_masks_that_follow_no_image_name_no_people(make_folder):
    root = make_folder()
    for path in sorted((root / "masks").iterdir()):
        path.rename(path.with_name(f"m_{path.name}"))
    with pytest.raises(BadSamplesError, match=r"as in \"data.mask_glob='m_{id}.\*'\"\.") as error:
        folder_splits(root)
    assert "name persons" not in str(error.value)
    folder_splits(root, mask_glob="m_{id}.*")


def test_a_run_is_not_resumed_with_other_annotators(make_folder, tmp_path):
    root, found = make_folder(), []
    for table in (None, "s00,anna\ns01,ben\n", "s00,ben\ns01,anna\n", "s00,ben\n"):
        if table is not None:
            annotators(root, f"id,annotator\n{table}")
        data = CoSegDataModule(folder_splits(root, test_share=0).train, in_channels=1)
        found.append(data.annotators_identity())
    assert found[0] == {}
    assert len({str(identity) for identity in found}) == 4
    before, now = ({"samples": {"train": "8", **one}} for one in found[1:3])
    RunFolder(tmp_path / "run", before).begin()
    with pytest.raises(InputError, match=r"samples.annotators=.* or who drew them, were changed"):
        RunFolder(tmp_path / "run", now, resume=True)
    RunFolder(tmp_path / "old", {"samples": {"train": "8"}}).begin()  # before they were recorded
    assert RunFolder(tmp_path / "old", now, resume=True).resumed


def test_ids_of_several_words_are_found_after_a_name(make_folder):
    root = make_folder()
    for path in sorted((root / "images").iterdir()):
        path.rename(path.with_name(path.name.replace("s0", "img_")))
    for path in sorted((root / "masks").iterdir()):
        for name in PEOPLE:
            shutil.copy(path, path.with_name(f"{name}_{path.name.replace('s0', 'img_')}"))
        path.unlink()
    advice = r"if they name persons, .*mask_glob=.\{annotator\}_\{id\}"
    with pytest.raises(InputError, match=advice):
        folder_splits(root)
    train = folder_splits(root, mask_glob="{annotator}_{id}.*", test_share=0).train
    assert train.several.names("img_3") == sorted(PEOPLE)


def test_a_mask_without_image_in_a_folder_elsewhere_is_a_problem(make_folder, tmp_path):
    root = make_folder()
    for name in ("masks_a", "masks_b"):
        shutil.copytree(root / "masks", tmp_path / "other" / name)
    shutil.copy(root / "masks" / "s00.png", tmp_path / "other" / "masks_b" / "zz.png")
    with pytest.raises(BadSamplesError, match=r"zz.png has no image in .*; add the image, or rem"):
        folder_splits(root, masks=[str(tmp_path / "other" / f"masks_{name}") for name in "ab"])


def masks_of(root, **rows):
    """Replace all masks by squares at the given rows, in folders of the given names."""
    shutil.rmtree(root / "masks")
    for name, place in rows.items():
        (root / "masks" / name).mkdir(parents=True)
        mask = np.zeros((32, 32), np.uint8)
        mask[place, 5:20] = 255
        for path in (root / "images").iterdir():
            Image.fromarray(mask).save(root / "masks" / name / path.name)


def test_classes_and_objects_are_no_persons(make_folder, caplog):
    root = make_folder()
    masks_of(root, liver=slice(2, 10), spleen=slice(20, 30))
    with pytest.raises(InputError, match="s00, so that they are probably of different classes or"):
        folder_splits(root)
    masks_of(root, liver=slice(2, 30), tumour=slice(4, 7))
    folder_splits(root)
    assert "agree little: the mean Dice of two is 0.19 in 8 images, such as s00." in caplog.text
    caplog.clear()
    masks_of(root, anna=slice(2, 30), ben=slice(4, 32))
    folder_splits(root)
    masks_of(root, anna=slice(2, 16), ben=slice(16, 30))
    for name, part in (("anna", slice(16, 32)), ("ben", slice(0, 16))):
        for path in (root / "masks" / name).iterdir():  # who labelled different parts
            mask = np.asarray(Image.open(path)) // 255
            mask[part] = 255
            Image.fromarray(mask).save(path)
    folder_splits(root)
    assert "agree little" not in caplog.text


# What is made of them


def test_every_label_is_what_it_says(make_several):
    root, squares = make_several(), Squares(8)
    for i in range(7):
        masks = [drawn(i, name, squares) for name in PEOPLE]
        made = {label: opened(root, label=label).mask(i) for label in ("staple", "best")}
        np.testing.assert_array_equal(made["staple"], staple(masks))
        np.testing.assert_array_equal(made["best"], masks[best(squares.image(i), masks)])
    picks = []
    for seed in range(4):
        train, again = (opened(root, label="random", seed=seed) for _ in range(2))
        for i in range(7):
            np.testing.assert_array_equal(train.mask(i), again.mask(i))
            masks = [drawn(i, name, squares) for name in PEOPLE]
            picks.append([np.array_equal(train.mask(i), mask) for mask in masks].index(True))
    assert set(picks) == {0, 1, 2}


def soft_samples(root, **options):
    data = CoSegDataModule(opened(root, label="soft"), image_size=32, in_channels=1, **options)
    return data.samples("train")


def test_soft_samples_hold_the_shares_of_the_votes(make_several):
    samples, squares = soft_samples(make_several()).plain(), Squares(8)
    for i in range(8):
        masks = [drawn(i, name, squares) for name in (PEOPLE if i < 7 else PEOPLE[:1])]
        np.testing.assert_allclose(samples[i]["soft_mask"], soft_label(masks, 2), atol=1e-6)
        np.testing.assert_array_equal(samples[i]["mask"], majority(masks))


def test_soft_masks_follow_the_augmentation(make_several):
    samples = soft_samples(make_several())
    moved = [samples[(epoch, 0)] for epoch in range(8)]
    assert any(not torch.equal(m["soft_mask"], moved[0]["soft_mask"]) for m in moved)
    for sample in moved:
        # Of three votes the majority has at least two, wherever it was moved to.
        of_label = sample["soft_mask"].gather(0, sample["mask"][None])
        assert (of_label > 0.6).all()


def test_all_persons_say_what_was_corrected(make_several, tmp_path):
    samples = soft_samples(make_several()).plain()
    label = samples.mask(0).copy()
    label[:4] = 1 - label[:4]
    layer = layer_of(tmp_path / "layer", {"s00": label})
    before, after = samples[0]["soft_mask"], samples.updated(layer)[0]["soft_mask"]
    np.testing.assert_array_equal(after[1, :4], label[:4])
    np.testing.assert_array_equal(after[:, 4:], before[:, 4:])


def test_any_change_of_a_mask_or_of_the_label_is_another_dataset(make_several):
    root = make_several()
    seen = {identity_of(opened(root, label=label)) for label in (None, "staple", "best")}
    seen |= {identity_of(opened(root, label="random", seed=seed)) for seed in (0, 1)}
    assert len(seen) == 5
    assert identity_of(opened(root, label="majority")) in seen
    Image.fromarray(255 * Squares(8).mask(3)).save(place(root, "s00", "cem"))
    assert identity_of(opened(root)) not in seen


def test_gaps_of_the_image_are_unlabelled_in_fused_masks_too(make_several):
    root = make_several()
    with Image.open(root / "images/s00.png") as file:
        pixels = np.asarray(file).copy()
    pixels[:4] = 0
    Image.fromarray(pixels).save(root / "images/s00.png")
    train = opened(root, nodata=0)
    assert (train.mask(0)[:4] == 255).all()
    assert (train.several.fused("s00")[:4] != 255).all()
    assert (opened(root, nodata=0, label="best").mask(0)[:4] == 255).all()


def test_agreement_is_measured(make_several):
    facts = opened(make_several()).several.facts()
    assert facts["fusion"] == "majority"
    assert facts["images_with_several"] == 7
    assert 0.5 < facts["agreement"] < 1
    people = facts["annotators"]
    assert [people[name]["masks"] for name in PEOPLE] == [7, 7, 7]
    assert people["anna"]["agreement"] > people["ben"]["agreement"]
    assert sum(each["agreement"] for each in people.values()) / 3 == pytest.approx(
        facts["agreement"]
    )


# From the command line


def settings(root, layout="beside"):
    masks = [f"data.masks=[{','.join(LIST)}]"] if layout == "list" else []
    return ["data=folder", f"data.root={root}", "data.in_channels=1", "nol=0.3", *masks]


def read(path):
    with Image.open(path) as file:
        return (np.asarray(file) > 0).astype(np.uint8)


@pytest.mark.drawn
def test_apply_says_that_labels_are_fused_where_none_was_corrected(
    make_several, tmp_path, capsys, monkeypatch
):
    audit(composed_audit(*settings(make_several()), "training=none", "nol=0.2"), tmp_path / "a")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["apply", str(tmp_path / "a"), str(tmp_path / "out")])
    main()
    said = capsys.readouterr().out
    assert f"None of the 8 masks in {tmp_path / 'out'} was corrected, but 7 are fused from" in said
    assert "as you gave them" not in said


def copy_of(root, masks):
    """The same images with other masks, which must be a dataset again."""
    new = root.parent / "new"
    shutil.copytree(root / "images", new / "images")
    shutil.copytree(masks, new / "masks")
    return new


@pytest.mark.parametrize("layout", ["beside", "list"])
def test_a_run_of_several_masks_from_training_to_one_mask_an_image(make_several, tmp_path, layout):
    root = make_several(layout, size=12)
    given = [*settings(root, layout), "data.source.test_share=0.25", "data.label=staple"]
    folder = tmp_path / "run"
    summary = run(
        composed(*CLASSIC, *SHORT, *given, "++method.confidence=0", "data.num_workers=1"), folder
    )
    assert summary["labels"]["fusion"] == "staple"
    assert summary["labels"]["annotators"]["ben"]["masks"] >= 8
    assert json.loads((folder / "summary.json").read_text())["labels"] == summary["labels"]
    _, newer, count = apply(folder, tmp_path / "out")
    assert newer == []
    assert count == 12
    squares = Squares(12)
    written = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert written == [f"{sample_id}.png" for sample_id in squares.ids]
    assert folder_splits(copy_of(root, tmp_path / "out")).train.several is None
    corrected = {path.stem for path in (folder / "labels").glob("*.png")}
    for i, sample_id in enumerate(squares.ids[:11]):
        if sample_id not in corrected:
            fused = staple([drawn(i, name, squares) for name in PEOPLE])
            np.testing.assert_array_equal(read(tmp_path / "out" / f"{sample_id}.png"), fused)
    with pytest.raises(InputError, match="which is only read"):
        apply(folder, root / ("masks" if layout == "beside" else "masks_ben") / "out")


def test_networks_learn_from_soft_masks(make_several, tmp_path):
    given = [*settings(make_several(size=12)), "data.source.test_share=0.25", "data.label=soft"]
    summary = run(composed(*CLASSIC, *SHORT, *given), tmp_path / "run")
    assert summary["labels"]["fusion"] == "soft"
    assert len(read_rows(tmp_path / "run/scores.csv")) == 9
    cfg = composed(*CLASSIC, *SHORT, *given, "method=jocor")
    with pytest.raises(InputError, match="JoCoR learns from one label per pixel"):
        run(cfg, tmp_path / "jocor")


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.drawn
def test_hidden_names_are_in_no_file_of_an_audit(make_several, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = make_several(people=("adalbert", "benedict", "cem"))
    given = [*settings(root), "training=none", "nol=0.2", "hide_annotators=true"]
    audit(composed_audit(*given), tmp_path / "audit")
    assert "3 people drew them, and 7 images have several masks" in caplog.text
    assert "benedict" not in caplog.text
    rows = read_rows(tmp_path / "audit/masks.csv")
    assert {row["annotator"] for row in rows} == {f"person {n}" for n in (1, 2, 3)}
    assert (tmp_path / "audit/masks.png").is_file()
    for file in (tmp_path / "audit").rglob("*"):
        if file.is_file() and file.suffix in (".csv", ".json", ".html"):
            text = file.read_text(encoding="utf-8").replace(str(root), "")
            assert not any(name in text for name in ("adalbert", "benedict")), file


@pytest.mark.drawn
def test_hidden_names_of_a_table_are_in_no_file_either(make_folder, tmp_path):
    table = tmp_path / "who.csv"
    table.write_text("id,annotator\n" + "".join(f"s0{n},Xaver\n" for n in range(4)))
    table.write_text(table.read_text() + "s05,xaver\ns06,Yolanda\n")
    root = make_folder()
    given = ["data=folder", f"data.root={root}", f"data.annotators={table}", "training=none"]
    audit(composed_audit(*given, "nol=0.2", "hide_annotators=true"), tmp_path / "audit")
    for file in (tmp_path / "audit").rglob("*"):
        if file.is_file() and file.suffix in (".csv", ".json", ".html", ".log"):
            text = file.read_text(encoding="utf-8").casefold()
            assert not any(name in text for name in ("xaver", "yolanda")), file
    assert "person 1" in (tmp_path / "audit/scores.csv").read_text()
    given[2] = "data.annotators={s00: Xaver}"
    with pytest.raises(InputError, match="cannot hide names that are settings"):
        audit(composed_audit(*given, "hide_annotators=true"), tmp_path / "own")


@pytest.mark.drawn
def test_an_audit_without_training_takes_the_fused_masks(make_several, tmp_path):
    cfg = composed_audit(*settings(make_several("folders")), "training=none", "nol=0.2")
    summary = audit(cfg, tmp_path / "audit")
    masks = read_rows(tmp_path / "audit/masks.csv")
    assert len(masks) == 7 * 3
    moved = [(row["annotator"], float(row["displacement_pixels"])) for row in masks]
    mean = {name: np.mean([pixels for who, pixels in moved if who == name]) for name in PEOPLE}
    assert mean["cem"] > 0.5 > abs(mean["anna"])
    records = read_rows(tmp_path / "audit/annotators.csv")
    assert {row["annotator"]: int(row["masks"]) for row in records} == {
        "anna": 8,
        "ben": 7,
        "cem": 7,
    }
    assert summary["labels"]["images_with_several"] == 7
    assert summary["config"]["data"]["mask_glob"] == "{annotator}/{id}.*"
    assert len((tmp_path / "audit/scores.csv").read_text().splitlines()) == 9


def composed_audit(*overrides):
    from hydra import compose, initialize_config_dir

    from coseg_lightning.app.command import CONF

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("audit", overrides=list(overrides))


def test_the_check_says_who_drew_what(make_several):
    cfg = composed(*settings(make_several("folders")), "rehearse=false")
    lines = "\n".join(describe(cfg))
    assert "7 images have several masks, by 3 people; the mean Dice of two of them is 0." in lines
    assert "1 masks are by 1 named people, most by anna (1)" in lines
    split = ["data.source.test_share=0.4", "hide_annotators=true"]
    hidden = composed(*settings(cfg.data.root), *split, "rehearse=false")
    lines = "\n".join(describe(hidden))
    assert "7 images have several masks, by 3 people" in lines
    assert "most by one of them (1)" in lines


def test_a_file_of_names_is_kept_by_the_run(make_folder, tmp_path):
    table = tmp_path / "who.csv"
    table.write_text("id,annotator\ns00,a\ns01,b\n")
    cfg = composed("data=folder", f"data.root={make_folder()}", f"data.annotators={table}")
    settle_folders(cfg)
    assert cfg.data.annotators == [["s00", "a"], ["s01", "b"]]
    table.unlink()
    settle_folders(cfg)


def test_augmented_samples_of_fused_masks_do_not_change_them(make_several):
    data = CoSegDataModule(opened(make_several()), image_size=32, in_channels=1)
    samples = data.samples("train")
    before = samples.plain()[0]["mask"]
    samples[(3, 0)]
    assert torch.equal(samples.plain()[0]["mask"], before)
