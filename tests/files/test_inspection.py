"""All files are inspected before training, and all problems are reported at once."""

import csv
import os
import re
import shutil
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

import coseg_lightning.data.folder_checks
import coseg_lightning.data.jsrt
import coseg_lightning.files.images
import coseg_lightning.files.mask_folder
from coseg_lightning.app.build import make_data
from coseg_lightning.check import _masks
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.jsrt import jsrt_splits
from coseg_lightning.errors import BadSamplesError, InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.images import read_image, read_indices
from coseg_lightning.files.inspection import scan_files
from coseg_lightning.files.mask_folder import MaskFolder
from support import SMALL, Squares, command, composed


def save(pixels, path):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.fixture
def messy(make_folder):
    """Write twenty squares, many of which are bad, each in its own way."""
    root = make_folder(size=20, side=48)
    images, masks = root / "images", root / "masks"
    truncate(images / "s00.png")
    (images / "s01.png").write_text("no image")
    truncate(masks / "s02.png")
    save(np.zeros((16, 20)), masks / "s03.png")
    (masks / "s04.png").unlink()
    save(np.full((48, 48), 7), masks / "s05.png")
    save(np.random.default_rng(0).integers(0, 255, (48, 48, 3)), masks / "s06.png")
    save(np.zeros((48, 48)), masks / "s07.png")  # background alone is usable
    shutil.copy(images / "s08.png", images / "s09.png")  # with another mask
    with Image.open(images / "s10.png") as file:
        file.save(images / "s11.bmp")  # the same picture in another format
    (images / "s11.png").unlink()
    shutil.copy(masks / "s10.png", masks / "s11.png")
    save(np.zeros((48, 48)), masks / "nobody.png")
    (images / "s12.png").rename(images / "S13.png")
    (masks / "s12.png").rename(masks / "S13.png")
    save(np.zeros((48, 48)), images / "s14.gif")
    elsewhere = root.parent / "elsewhere.png"
    shutil.copy(images / "s15.png", elsewhere)
    (images / "s15.png").unlink()
    (images / "s15.png").symlink_to(elsewhere)
    return root


SENTENCES = [
    "images/s00.png cannot be read as an image",
    "images/s01.png cannot be read as an image",
    "masks/s02.png cannot be read as a mask",
    "masks/s03.png is 20x16, but its image is 48x48",
    "holds no mask of s04",
    "masks/s05.png holds the class id 7",
    "masks/s06.png is a colour picture",
    "images/s08.png and s09.png are the same picture, but their masks differ",
    "masks/nobody.png has no image",
    "sample ids S13 and s13 would be the same file",
    "s14.gif and s14.png would be the same sample",
    "images/s15.png is a link to",
]
BAD = {*(f"s{i:02d}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9, 13, 14, 15)), "S13", "nobody"}


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_that_is_wrong_is_told_together(messy, tmp_path):
    before = files_of(messy)
    with pytest.raises(BadSamplesError) as error:
        folder_splits(messy, problems=tmp_path / "problems.csv")
    message = str(error.value)
    for sentence in SENTENCES:
        assert sentence in message
    assert f"{len(SENTENCES)} problems in {messy}: correct them." in message
    assert "Or set on_bad_sample=skip to leave these samples out" in message
    assert len(message.splitlines()) == 1 + len(SENTENCES)
    rows = read_table(tmp_path / "problems.csv")
    assert {
        sample_id for row in rows if row["usable"] == "0" for sample_id in row["ids"].split("; ")
    } == BAD
    assert files_of(messy) == before


def test_bad_samples_are_left_out_if_that_is_asked_for(messy, caplog):
    splits = folder_splits(messy, on_bad_sample="skip")
    parts = [part.ids for part in splits if part is not None]
    assert sorted(sample_id for ids in parts for sample_id in ids) == [
        "s07",
        "s10",
        "s11",
        "s16",
        "s17",
        "s18",
        "s19",
    ]
    assert f"{len(BAD)} samples of {messy} are left out" in caplog.text
    for sentence in SENTENCES:
        assert sentence in caplog.text
    for part in filter(None, splits):
        for index in range(len(part)):
            assert part.image(index).shape == part.mask(index).shape == (48, 48)


def test_a_bad_file_does_not_move_the_others_to_another_part(make_folder):
    root = make_folder(size=20)
    before = folder_splits(root, seed=1)
    bad = before.train.ids[3]
    truncate(root / "masks" / f"{bad}.png")
    after = folder_splits(root, seed=1, on_bad_sample="skip")
    assert list(after.test.ids) == list(before.test.ids)
    assert [*after.train.ids, bad] == sorted(
        before.train.ids, key=lambda sample_id: (sample_id == bad, sample_id)
    )


def test_what_is_odd_but_can_be_used_is_a_warning(make_folder, caplog):
    root = make_folder(size=10)
    split = "".join(f"s{i:02d},{'test' if i > 7 else 'train'}\n" for i in range(10))
    (root / "split.csv").write_text("id,split\n" + split)
    save(np.zeros((32, 32)), root / "masks" / "s01.png")
    save(np.full((32, 32), 255), root / "masks" / "s02.png")
    shutil.copy(root / "images" / "s03.png", root / "images" / "s09.png")
    shutil.copy(root / "masks" / "s03.png", root / "masks" / "s09.png")
    splits = folder_splits(root)
    assert len(splits.train.ids) + len(splits.test.ids) == 10
    assert "1 of 10 masks in" in caplog.text
    assert "s01.png, hold only background" in caplog.text
    assert "s02.png, hold only unlabelled pixels" in caplog.text
    assert "s03.png and s09.png are the same picture, in test and train" in caplog.text


def test_images_that_the_split_does_not_name_are_told(make_folder, caplog):
    root = make_folder(size=10)
    split = "".join(f"s{i:02d},{'test' if i > 7 else 'train'}\n" for i in range(10) if i != 3)
    (root / "split.csv").write_text("id,split\n" + split)
    splits = folder_splits(root)
    assert len(splits.train.ids) + len(splits.test.ids) == 9
    assert "1 images, such as s03, are not named in" in caplog.text


def test_masks_of_objects_in_which_255_means_unlabelled_are_told(make_folder, caplog):
    root = make_folder(foreground=255)
    with pytest.raises(BadSamplesError, match=r"hold only 0 and 255, and .*leave data.instances"):
        folder_splits(root, instances="foreground")
    for path in (root / "masks").iterdir():
        mask = read_indices(path) // 51
        mask[0] = 7
        mask[1] = 255 * (path.stem in ("s01", "s02"))
        save(mask, path)
    folder_splits(root, instances="foreground")
    assert "2 of 8 masks" in caplog.text
    assert "masks, such as s01.png, have pixels of 255" in caplog.text


@pytest.mark.parametrize("deep", [3, 5])
def test_masks_of_8_and_of_16_bits_are_to_be_saved_alike(make_folder, deep):
    root = make_folder(foreground=255)
    for path in sorted((root / "masks").iterdir())[:deep]:
        Image.fromarray(read_indices(path).astype(np.uint16) * 257).save(path)
    with pytest.raises(BadSamplesError, match="hold 0 and 255, but others 0 and 65535") as error:
        folder_splits(root)
    assert "other masks hold 0 and 255; save all of them alike" in str(error.value)
    assert "class_ids" not in str(error.value)


def test_masks_of_1_and_255_are_given_their_own_class_ids(make_folder):
    root = make_folder(size=6)
    for path in (root / "masks").iterdir():
        values = np.asarray(Image.open(path))
        save(np.where(values > 0, 255, 1), path)
    with pytest.raises(InputError, match=r"if 1 is the background, set data.class_ids=\[1,255\]"):
        folder_splits(root)


@pytest.mark.parametrize(
    ("classes", "kind", "missing", "advice"),
    [
        (3, np.int16, "-9999", "if -9999, which .* background, set data.class_ids=[-9999,1,2]."),
        (3, np.uint8, "15", "if 15, which .* background, set data.class_ids=[15,1,2]."),
        (3, np.float32, "nan", "if nan, which .* is the background, save it as 0."),
        (3, np.uint8, None, "if 255 is class 0, set data.class_ids=[255,1,2]."),
        (2, np.int16, "-9999", "if -9999, which .* background, set data.class_ids=[-9999,1], else"),
        (2, np.float32, "nan", "if nan, which .* background, save it as 0, else save masks of"),
    ],
)
def test_a_background_that_counts_as_unlabelled_is_told(
    make_folder, caplog, classes, kind, missing, advice
):
    root = make_folder()
    wanted = {}
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        ids = read_indices(path).astype(int)
        ids[16:] *= classes - 1
        ids[4, number] = classes - 1
        wanted[path.stem] = ids
        stored = np.where(ids > 0, ids, 255 if missing is None else float(missing)).astype(kind)
        text = "0" if missing is None else missing
        tags = [(42113, "s", 0, text, True)]
        tifffile.imwrite(path.with_suffix(".tif"), stored, extratags=tags, metadata=None)
        path.unlink()
    sentence = re.escape(advice).replace(r"\.\*", ".*").replace(r"\ ", " ")
    if classes == 2:
        with pytest.raises(BadSamplesError, match=sentence):
            folder_splits(root, classes=2)
    else:
        folder_splits(root, classes=classes)
        assert re.search(f"No mask in .* holds class 0, but 8 of 8, .*; {sentence}", caplog.text)
    if "class_ids" in advice:
        ids = [int(value) for value in re.findall(r"-?\d+", advice.partition("class_ids")[2])]
        caplog.clear()
        splits = folder_splits(root, classes=classes, class_ids=ids)
        assert "No mask" not in caplog.text
        for index, sample_id in enumerate(splits.train.ids):
            np.testing.assert_array_equal(splits.train.mask(index), wanted[sample_id])


def test_a_class_that_255_may_be_is_told(make_folder, caplog):
    root = make_folder()
    for path in (root / "masks").iterdir():
        ids = read_indices(path).copy()
        ids[:2] = 255
        save(ids, path)
    folder_splits(root, classes=3)
    assert "holds class 2, but 8 of 8, such as s00.png, have unlabelled pixels; " in caplog.text
    assert "if 255 is class 2, set data.class_ids=[0,1,255]." in caplog.text
    caplog.clear()
    folder_splits(root, classes=2)
    assert "No mask" not in caplog.text


def test_the_share_of_unlabelled_pixels_is_told(make_folder):
    root = make_folder()
    for path in (root / "masks").iterdir():
        ids = read_indices(path).copy()
        ids[:8] = 255
        save(ids, path)
    assert "; 25.0 % of all pixels are unlabelled" in _masks(folder_splits(root).train, 2)


def test_advice_on_class_ids_names_0_first(make_folder):
    root = make_folder()
    for path in (root / "masks").iterdir():
        tifffile.imwrite(path.with_suffix(".tif"), -read_indices(path).astype(np.int8))
        path.unlink()
    with pytest.raises(BadSamplesError, match=r"set data.classes=2 data.class_ids=\[0,-1\] if"):
        folder_splits(root)


def test_one_bad_mask_does_not_change_what_255_means(make_folder):
    root = make_folder(foreground=255)
    save(np.full((32, 32), 7), root / "masks" / "s00.png")
    with pytest.raises(InputError, match="s00.png holds the class id 7") as error:
        folder_splits(root)
    assert "\n" not in str(error.value)
    splits = folder_splits(root, on_bad_sample="skip")
    assert set(np.unique(splits.train.mask(0))) == {0, 1}


def test_of_many_alike_problems_only_the_first_are_told_one_by_one(make_folder, tmp_path):
    root = make_folder(size=20)
    for path in (root / "masks").iterdir():
        truncate(path)
    with pytest.raises(BadSamplesError) as error:
        folder_splits(root, problems=tmp_path / "problems.csv")
    assert len(str(error.value).splitlines()) == 1 + 5 + 1
    assert "... and 15 more of this kind (unreadable mask)." in str(error.value)
    assert len(read_table(tmp_path / "problems.csv")) == 20
    with pytest.raises(InputError, match="no usable sample for training"):
        folder_splits(root, on_bad_sample="skip")
    with pytest.raises(InputError, match="on_bad_sample=ignore must be error or skip"):
        folder_splits(root, on_bad_sample="ignore")


def test_a_file_is_read_again_only_if_its_size_or_time_has_changed(make_folder, monkeypatch):
    root, read_names = make_folder(), []

    def counting(files, look, **options):
        def look_and_count(path):
            read_names.append(f"{path.parent.name}/{path.name}")
            return look(path)

        return scan_files(files, look_and_count, **options)

    for module in (coseg_lightning.data.folder_checks, coseg_lightning.files.mask_folder):
        monkeypatch.setattr(module, "scan_files", counting)
    folder_splits(root)
    assert len(read_names) == 16
    folder_splits(root)
    assert len(read_names) == 16
    save(np.zeros((32, 32)), root / "images" / "s05.png")
    folder_splits(root)
    assert read_names[16:] == ["images/s05.png"]
    truncate(root / "images" / "s05.png")
    for _ in range(2):  # unreadable files are not cached
        with pytest.raises(InputError, match="s05.png cannot be read"):
            folder_splits(root)
    assert read_names[17:] == ["images/s05.png", "images/s05.png"]


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_mask_is_opened_once_at_each_read(make_folder, mode, monkeypatch):
    folder = make_folder(foreground=255) / "masks"
    for path in folder.iterdir():
        with Image.open(path) as file:
            mask = file.convert(mode)
        mask.save(path)
    opened, open_image = [], Image.open

    def counting(path, *arguments, **options):
        opened.append(path)
        return open_image(path, *arguments, **options)

    monkeypatch.setattr(Image, "open", counting)
    masks = MaskFolder(folder, classes=2)
    assert sorted(opened) == sorted(masks.path(name) for name in masks.ids)
    opened.clear()
    np.testing.assert_array_equal(masks.read("s01"), Squares(8).mask(1))
    assert opened == [masks.path("s01")]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"a": 1}', "\0"])
def test_a_damaged_cache_is_made_again(make_folder, content, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_folder()
    folder_splits(root)
    cache_files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(cache_files) == 2
    for path in cache_files:
        path.write_text(content)
    folder_splits(root)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()  # nothing can be stored here, as in a read-only home
    folder_splits(root)


@pytest.mark.slow
def test_the_command_tells_all_of_it(messy, tmp_path):
    arguments = [*SMALL, "data=folder", f"data.root={messy}", "data.in_channels=1"]
    result = command("run", *arguments, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert result.returncode == 1
    for sentence in SENTENCES:
        assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert f"All are in {tmp_path / 'run' / 'problems.csv'}" in result.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    result = command(
        "run", *arguments, f"hydra.run.dir={tmp_path / 'run'}", "on_bad_sample=skip", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with (tmp_path / "run" / "scores.csv").open() as file:
        assert not {row["id"] for row in csv.DictReader(file)} & BAD


def test_jsrt_is_looked_at_too(tmp_path):
    for folder in ("images", "left lung", "right lung"):
        (tmp_path / folder).mkdir()
        for i in range(1, 7):
            save(Squares(2).image(0), tmp_path / folder / f"JPCLN{i:03d}.png")
    truncate(tmp_path / "images" / "JPCLN001.png")
    truncate(tmp_path / "left lung" / "JPCLN002.png")
    (tmp_path / "images" / "JPCLN003.IMG").write_bytes(b"short")
    with pytest.raises(BadSamplesError, match="3 problems in") as error:
        jsrt_splits(tmp_path)
    assert "JPCLN003.IMG holds 4 bytes" in str(error.value)
    splits = jsrt_splits(tmp_path, on_bad_sample="skip")
    assert (splits.train.ids, splits.test.ids) == (["JPCLN005"], ["JPCLN004", "JPCLN006"])


# Hostile files


def bomb(path, side=50_000):
    """A picture that claims 2.5 billion pixels in 200 bytes."""
    save(np.zeros((8, 8)), path)
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2  # the header's, whose checksum follows
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, make_folder):
    bomb(tmp_path / "a.png")
    for read in (read_image, read_indices):
        with pytest.raises(InputError, match="a.png claims more than 178 million pixels"):
            read(tmp_path / "a.png")
    root = make_folder()
    bomb(root / "images" / "s01.png")
    bomb(root / "masks" / "s02.png")
    with pytest.raises(BadSamplesError, match="2 problems in"):
        folder_splits(root)


def test_a_pipe_is_not_waited_for(make_folder):
    root = make_folder()
    (root / "images" / "s01.png").unlink()
    os.mkfifo(root / "images" / "s01.png")
    with pytest.raises(InputError, match="s01.png cannot be read as an image"):
        folder_splits(root)


def test_links_within_the_dataset_and_to_a_whole_folder_are_followed(make_folder, tmp_path):
    root = make_folder()
    (root / "store").mkdir()
    shutil.move(root / "images" / "s01.png", root / "store" / "x.png")
    (root / "images" / "s01.png").symlink_to(root / "store" / "x.png")
    shutil.move(root / "masks", tmp_path / "elsewhere")
    (root / "masks").symlink_to(tmp_path / "elsewhere")
    assert len(folder_splits(root).train.ids) == 6
    (root / "images" / "s02.png").unlink()
    (root / "images" / "s02.png").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="s02.png is a link to /etc/hostname, outside"):
        folder_splits(root)


def test_ids_that_lead_elsewhere_are_refused(make_folder):
    root = make_folder()
    for sample_id in ("../../etc/passwd", "/etc/passwd", ".."):
        (root / "split.csv").write_text(f"id,split\ns00,train\n{sample_id},train\n")
        with pytest.raises(InputError, match="has no such image"):
            folder_splits(root)
    (root / "split.csv").unlink()
    shutil.copy(root / "images" / "s00.png", root / "images" / "x\\..\\y.png")
    shutil.copy(root / "masks" / "s00.png", root / "masks" / "x\\..\\y.png")
    with pytest.raises(InputError, match="cannot be a file name"):
        folder_splits(root)


def test_names_from_another_system_are_told_and_can_be_left_out(make_folder, tmp_path):
    root = make_folder()
    for part in (b"images", b"masks"):
        folder = os.fsencode(root) + b"/" + part
        os.rename(folder + b"/s01.png", folder + b"/M\xfcnchen.png")  # noqa: PTH104
    with pytest.raises(InputError, match="M.*nchen' is not valid UTF-8; rename it"):
        folder_splits(root, problems=tmp_path / "problems.csv")
    assert r"M\udcfcnchen" in (tmp_path / "problems.csv").read_text()
    splits = folder_splits(root, on_bad_sample="skip")
    assert sum(len(part) for part in splits if part is not None) == 7


def test_a_link_to_itself_is_one_problem_of_several(make_folder):
    root = make_folder()
    (root / "images" / "s01.png").unlink()
    (root / "images" / "s01.png").symlink_to("s01.png")
    truncate(root / "masks" / "s02.png")
    with pytest.raises(BadSamplesError, match="2 problems"):
        folder_splits(root)


def test_one_picture_in_two_formats_is_not_contradicting(make_folder, caplog):
    root = make_folder()
    with Image.open(root / "images" / "s01.png") as file:
        pixels = np.asarray(file)
    Image.fromarray(pixels.astype(np.uint16)).save(root / "images" / "s02.png")
    with Image.open(root / "masks" / "s01.png") as file:
        Image.fromarray(np.asarray(file).astype(np.uint16)).save(root / "masks" / "s02.png")
    for sample_id in ("s03", "s04"):  # slices that show nothing
        save(np.zeros((32, 32)), root / "images" / f"{sample_id}.png")
    folder_splits(root)
    assert "2 images, such as" in caplog.text
    assert "have the same value in all pixels" in caplog.text


def test_masks_of_two_habits_are_an_error_if_most_would_lose_their_foreground(make_folder):
    root = make_folder(foreground=255)
    with Image.open(root / "masks" / "s01.png") as file:
        mask = np.asarray(file) // 255
    save(mask, root / "masks" / "s01.png")
    with pytest.raises(
        InputError, match="7 of 8 masks in .* hold only 0 and 255, but s01.png holds 1"
    ):
        folder_splits(root)
    Image.fromarray(255 * mask).convert("1").save(root / "masks" / "s01.png")
    splits = folder_splits(root)  # the mode of a file of two values says so
    assert all(splits.train.mask(i).max() == 1 for i in range(len(splits.train)))
    (root / "masks" / "s02.png").unlink()
    Image.fromarray(255 * mask).save(root / "masks" / "s02.jpg")
    splits = folder_splits(root)
    assert all(splits.train.mask(i).max() == 1 for i in range(len(splits.train)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id split\ns00 train\n", "its first line is 'id split'; it must name the columns"),
        ("name,split\ns00,train\n", "its first line is 'name,split'"),
        ("id,split\n\n\ns00,train\ns01\n", "1 cells in line 5, but 2 columns"),
        ("", "its first line is ''"),
    ],
)
def test_a_split_that_is_not_understood_says_what_was_found(make_folder, text, message):
    root = make_folder()
    (root / "split.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        folder_splits(root)


def test_what_spreadsheets_leave_in_a_split_is_understood(make_folder):
    root = make_folder()
    (root / "split.csv").write_text(
        "\ufeffid, split,note\r\ns00,train,\r\n,,\r\n  \r\ns01,test,x\r\n"
    )
    assert [len(part.ids) for part in folder_splits(root) if part is not None] == [1, 1]
    (root / "split.csv").unlink()
    (root / "split.csv").symlink_to("nowhere.csv")
    with pytest.raises(InputError, match="There is no file"):
        folder_splits(root)


def test_somebodys_own_problems_csv_is_not_written_over(make_folder, tmp_path):
    root, table = make_folder(), tmp_path / "problems.csv"
    truncate(root / "masks" / "s02.png")
    table.write_text("my,own\n")
    with pytest.raises(
        InputError, match="exists, but is not a table of problems, so it is not overwritten"
    ):
        folder_splits(root, problems=table)
    assert table.read_text() == "my,own\n"
    table.unlink()
    folder_splits(root, problems=table, on_bad_sample="skip")
    (root / "images" / "s02.png").unlink()
    (root / "masks" / "s02.png").unlink()
    folder_splits(root, problems=table)  # the problem is mended
    assert not table.exists()


def test_an_annotators_masks_are_looked_at_before_training(make_folder):
    root = make_folder(size=10)
    rough = root / "masks_rough"
    (root / "split.csv").write_text(
        "id,split\n" + "".join(f"s{i:02d},{'test' if i > 7 else 'train'}\n" for i in range(10))
    )
    truncate(rough / "s09.png")  # a test sample's, which nobody needs
    options = [*SMALL, "data=folder", f"data.root={root}", "noise=annotator", "nol=0.5"]
    options += ["noise.masks=masks_rough"]
    assert len(make_data(composed(*options), root.parent / "run")._datasets["train"].ids) == 8
    truncate(rough / "s01.png")
    (rough / "s02.png").unlink()
    save(np.zeros((8, 9)), rough / "s03.png")
    with pytest.raises(BadSamplesError, match="3 problems") as error:
        make_data(composed(*options), root.parent / "run")
    for message in ("s01.png cannot be read", "no mask of s02", "s03.png is 9x8"):
        assert message in str(error.value)
    data = make_data(composed(*options, "on_bad_sample=skip"), root.parent / "run")
    assert len(data._datasets["train"].ids) == 5


def test_large_images_are_looked_at_one_by_one(make_folder, monkeypatch):
    monkeypatch.setattr(coseg_lightning.files.images, "LARGE", 1)
    assert len(folder_splits(make_folder()).train.ids) == 6


@pytest.mark.parametrize("by", ["rename", "rewrite"])
def test_a_file_that_was_replaced_is_noticed_though_size_and_time_are_the_same(make_folder, by):
    root = make_folder(size=4)
    for path in (root / "masks").iterdir():
        save(np.array(Image.open(path)), path.with_suffix(".bmp"))
        path.unlink()
    before = folder_splits(root)
    for path in list((root / "masks").iterdir()):
        times = path.stat()
        other = root / "other.bmp" if by == "rename" else path
        save(7 * np.array(Image.open(path)), other)
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        other.replace(path)
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert before.train.mask(0).max() == 7
    with pytest.raises(InputError, match="class id 7"):
        folder_splits(root)


@pytest.mark.parametrize("kind", ["npy", "tif", "colours"])
def test_doubtful_masks_are_drawn_whatever_their_format(tmp_path, make_folder, kind):
    root = make_folder(size=4)
    for path in list((root / "masks").iterdir()):
        mask = np.ones((32, 32), np.int64)
        mask[0, 0] = 0
        if kind == "npy":
            np.save(path.with_suffix(".npy"), mask)
        elif kind == "tif":
            tifffile.imwrite(path.with_suffix(".tif"), mask.astype(np.float64))
        else:
            white = np.repeat(255 * mask[..., None], 3, axis=2).astype(np.uint8)
            Image.fromarray(white).save(path)
        if kind != "colours":
            path.unlink()
    with pytest.raises(InputError, match="foreground almost everywhere"):
        folder_splits(root, problems=tmp_path / "problems.csv")
    with Image.open(tmp_path / "doubtful_masks.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (256, 516)
    assert (shown[:8, :8].max(), shown[8:, :256].min()) == (0, 255)
