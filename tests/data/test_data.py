"""Datasets: the files that users have, the samples that networks see, and the errors in between."""

import os
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import DataLoader

from coseg_lightning.app.build import make_data
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.instructions import preparation_in_words
from coseg_lightning.data.jsrt import jsrt_splits
from coseg_lightning.data.phantom import PhantomImages, phantom_splits
from coseg_lightning.data.preparation import (
    Scale,
    normalised,
    preprocess,
    rescale_intensity,
    resized,
)
from coseg_lightning.data.samples import EpochSampler, SampleDataset, default_augmentation
from coseg_lightning.errors import InputError
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import image_size, read_image, read_indices
from coseg_lightning.files.inspection import scale_of
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.noise import MissingRegion
from coseg_lightning.run import depend_on_data_alone
from support import SMALL, Squares, composed

GREY = (np.arange(48).reshape(6, 8) * 5).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_and_colour_images_in_8_bits(tmp_path, suffix):
    colour = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)
    for name, pixels in (("grey", GREY), ("colour", colour)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.{suffix}"), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_in_16_bits_keep_their_depth(tmp_path, suffix):
    deep = GREY.astype(np.uint16) * 257
    colour = np.stack([deep, deep // 2, 65535 - deep], axis=-1)
    for name, pixels in (("grey", deep), ("colour", colour[..., ::-1])):
        cv2.imwrite(str(tmp_path / f"{name}.{suffix}"), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / f"grey.{suffix}"), deep)
    np.testing.assert_array_equal(read_image(tmp_path / f"colour.{suffix}"), colour)


def test_jpeg_images_and_transparency(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - GREY).max() < 12
    rgba = np.stack([GREY] * 3 + [np.full_like(GREY, 7)], axis=-1)
    Image.fromarray(rgba).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), rgba[..., :3])


def test_palette_masks_keep_their_indices(tmp_path):
    indices = np.array([[0, 1], [2, 255]], np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([200, 0, 0, 0, 200, 0] + [9] * 762)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_indices(tmp_path / "a.png"), indices)


def masks_folder(tmp_path, **masks):
    for name, values in masks.items():
        Image.fromarray(np.array(values)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 255), (np.uint16, 65535), (bool, 1)])
def test_binary_masks_of_0_and_the_highest_value(tmp_path, dtype, high):
    empty = np.zeros((1, 3), dtype)
    folder = masks_folder(tmp_path, a=np.array([[0, high, 0]], dtype), b=empty)
    masks = MaskFolder(folder, classes=2)
    assert masks.read("a").tolist() == [[0, 1, 0]]
    assert masks.read("b").tolist() == [[0, 0, 0]]


def test_255_means_unlabelled_as_soon_as_one_mask_holds_a_1(tmp_path):
    folder = masks_folder(tmp_path, a=np.uint8([[0, 255, 0]]), b=np.uint8([[0, 1, 255]]))
    masks = MaskFolder(folder, classes=2)
    assert masks.read("a").tolist() == [[0, 255, 0]]
    assert masks.read("b").tolist() == [[0, 1, 255]]


def test_masks_that_mix_both_habits_are_named(tmp_path, caplog):
    MaskFolder(masks_folder(tmp_path, a=np.uint8([[0, 255]]), b=np.uint8([[0, 1]])), classes=2)
    assert "such as a.png, hold only 0 and 255" in caplog.text


def test_a_single_output_knows_two_classes(tmp_path):
    masks = MaskFolder(masks_folder(tmp_path, a=np.uint8([[0, 255]])), classes=1)
    assert masks.read("a").tolist() == [[0, 1]]


def test_binary_masks_for_three_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds only the values 0 and 255, but with 3 classes"):
        MaskFolder(masks_folder(tmp_path, a=np.uint8([[0, 255]])), classes=3)


def test_photos_are_turned_as_viewers_show_them(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=exif, quality=100)
    with Image.open(tmp_path / "a.jpg") as file:
        shown = np.asarray(ImageOps.exif_transpose(file))
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == shown.shape == image_size(tmp_path / "a.jpg") == (8, 6)
    assert np.abs(image.astype(int) - shown).max() < 8


def test_binary_jpeg_masks_are_cut_in_the_middle(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 5:25] = 255
    Image.fromarray(mask).save(tmp_path / "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "a.jpg")))) > 2
    np.testing.assert_array_equal(MaskFolder(tmp_path, classes=2).read("a"), mask // 255)


def test_grey_masks_saved_as_rgb_are_understood_and_colours_are_not(tmp_path):
    grey = np.repeat(np.uint8([[0, 1, 2]])[..., None], 3, axis=2)
    assert MaskFolder(masks_folder(tmp_path, a=grey), classes=3).read("a").tolist() == [[0, 1, 2]]
    masks_folder(tmp_path, b=np.uint8([[[255, 0, 0]]]))
    with pytest.raises(InputError, match="b.png is a colour picture"):
        MaskFolder(tmp_path, classes=3)


def test_folder_reads_what_split_csv_names(make_folder):
    root = make_folder(foreground=255)
    (root / "split.csv").write_text("id,split\ns03,train\ns00,train\ns01,val\ns02,test\n")
    splits = folder_splits(root)
    assert list(splits.train.ids) == ["s00", "s03"]
    assert list(splits.val.ids) == ["s01"]
    assert list(splits.test.ids) == ["s02"]
    np.testing.assert_array_equal(splits.train.image(1), Squares(8).image(3))
    np.testing.assert_array_equal(splits.train.mask(1), Squares(8).mask(3))


def test_split_csv_as_a_spreadsheet_writes_it(make_folder):
    root = make_folder()
    (root / "split.csv").write_text("id, split,trusted\ns00, Train,0.0\ns01,TEST,1.0\n")
    splits = folder_splits(root, in_channels=1)
    assert (splits.train.ids, splits.test.ids, splits.test.trusted) == (["s00"], ["s01"], True)


def test_ids_whose_zeros_were_dropped_are_told(make_folder):
    root = make_folder()
    for folder in ("images", "masks"):
        (root / folder / "s00.png").rename(root / folder / "007.png")
    (root / "split.csv").write_text("id,split\n7,train\ns01,test\n")
    with pytest.raises(
        InputError, match="no such image. Write 007 instead, whose zeros a spreadsh"
    ):
        folder_splits(root, in_channels=1)


def test_folder_without_split_csv_is_split_by_the_seed(make_folder):
    root = make_folder()
    first, again, other = (
        folder_splits(root, val_share=0.25, test_share=0.25, seed=s) for s in (0, 0, 1)
    )
    assert [len(part.ids) for part in first] == [4, 2, 2]
    assert len({sample_id for part in first for sample_id in part.ids}) == 8
    assert list(again.train.ids) == list(first.train.ids)
    assert list(other.test.ids) != list(first.test.ids)


def remove_mask(root):
    (root / "masks" / "s01.png").unlink()


def shrink_mask(root):
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(root / "masks" / "s01.png")


def wrong_class(root):
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(root / "masks" / "s01.png")


def truncate_mask(root):
    path = root / "masks" / "s01.png"
    path.write_bytes(path.read_bytes()[:40])


def empty_images(root):
    for path in (root / "images").iterdir():
        path.unlink()


def remove_masks(root):
    for path in (root / "masks").iterdir():
        path.unlink()
    (root / "masks").rmdir()


def unknown_split(root):
    (root / "split.csv").write_text("id,split\ns00,training\n")


def split_of_nobody(root):
    (root / "split.csv").write_text("id,split\ns77,train\n")


def twice_in_split(root):
    (root / "split.csv").write_text("id,split\ns01,train\ns01,test\n")


def split_in_latin_1(root):
    (root / "split.csv").write_bytes("id,split\nsö1,train\n".encode("latin-1"))


def image_of_text(root):
    (root / "images" / "s01.png").write_text("no image")


def same_stem(root):
    Image.fromarray(GREY).save(root / "images" / "s01.jpg")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove_mask, "masks holds no mask of s01"),
        (shrink_mask, "s01.png is 20x16, but its image is 32x32"),
        (wrong_class, "s01.png holds the class id 7, but data.classes=2 allows 0 to 1"),
        (truncate_mask, "s01.png cannot be read as a mask"),
        (empty_images, "images holds no image files"),
        (
            remove_masks,
            "holds no folder of masks .* but images, masks_rough; name the right",
        ),
        (unknown_split, "puts s00 into 'training'"),
        (split_of_nobody, "names the sample s77"),
        (twice_in_split, "lists the sample s01 2 times"),
        (split_in_latin_1, "split.csv cannot be read as a table"),
        (image_of_text, "s01.png cannot be read as an image"),
        (same_stem, "s01.jpg and s01.png would be the same sample"),
    ],
)
def test_a_messy_folder_is_answered_in_one_sentence(make_folder, damage, sentence):
    root = make_folder()
    damage(root)
    with pytest.raises(InputError, match=sentence) as error:
        folder_splits(root)
    assert "\n" not in str(error.value)


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="data.root=.*nowhere: there is no such folder"):
        folder_splits(tmp_path / "nowhere")


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="a.png cannot be read as an image"):
        read_image(tmp_path / "a.png")


def write_jsrt(root, ids, side=2048):
    """Write files in the formats of JSRT and SCR: 12-bit big-endian raws, half-size GIF masks."""
    (root / "images").mkdir(parents=True)
    for organ in ("left lung", "right lung", "heart"):
        (root / "masks" / organ).mkdir(parents=True)
    for n, sample_id in enumerate(ids):
        raw = np.full((side, side), 4095 - 1000, ">u2")
        raw[: side // 2] = 4095 - 100 * n
        raw.tofile(root / "images" / f"{sample_id}.IMG")
        for organ, columns in (("left lung", slice(600, 800)), ("right lung", slice(200, 400))):
            mask = np.zeros((1024, 1024), np.uint8)
            mask[300:700, columns] = 255
            Image.fromarray(mask).save(root / "masks" / organ / f"{sample_id}.gif")
        Image.fromarray(np.full((1024, 1024), 255, np.uint8)).save(
            root / "masks" / "heart" / f"{sample_id}.gif"
        )


def test_jsrt_is_read_in_its_own_format_and_split_by_parity(tmp_path):
    write_jsrt(tmp_path, ["JPCLN001", "JPCLN002", "JPCNN003"])
    splits = jsrt_splits(tmp_path)
    assert list(splits.train.ids) == ["JPCLN001", "JPCNN003"]
    assert splits.val is None
    assert list(splits.test.ids) == ["JPCLN002"]
    image, mask = splits.train.image(1), splits.train.mask(1)
    assert image.shape == mask.shape == (1024, 1024)
    # Big-endian, 12 bits, inverted: 4095 - 200 is dark, 4095 - 1000 is brighter.
    assert image[0, 0] == pytest.approx(200 / 4095)
    assert image[-1, 0] == pytest.approx(1000 / 4095)
    assert mask.sum() == 2 * 400 * 200
    assert mask.max() == 1


def test_jsrt_has_the_papers_split_sizes(tmp_path, monkeypatch):
    ids = [f"JPCLN{i:03d}" for i in range(1, 155)] + [f"JPCNN{i:03d}" for i in range(1, 94)]
    for folder in ("images", "heart", "left lung", "right_lung"):
        (tmp_path / folder).mkdir()
        for sample_id in ids:
            Image.fromarray(GREY).save(tmp_path / folder / f"{sample_id}.png")
    splits = jsrt_splits(tmp_path)
    assert (len(splits.train.ids), len(splits.test.ids)) == (124, 123)
    assert {path.parent.name for path in splits.train._images.values()} == {"images"}


def test_jsrt_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="holds no JSRT image"):
        jsrt_splits(tmp_path)
    write_jsrt(tmp_path, ["JPCLN001"], side=64)
    with pytest.raises(InputError, match="holds 8192 bytes, not the 8388608"):
        jsrt_splits(tmp_path).train.image(0)
    (tmp_path / "masks" / "left lung" / "JPCLN001.gif").unlink()
    with pytest.raises(InputError, match="no mask of JPCLN001 in a folder named 'left lung'"):
        jsrt_splits(tmp_path)


def test_phantoms_depend_on_seed_and_id_alone():
    few, many = PhantomImages("train", 2, 64, 0), PhantomImages("train", 5, 64, 0)
    np.testing.assert_array_equal(few.image(1), many.image(1))
    np.testing.assert_array_equal(few.mask(1), many.mask(1))
    assert (PhantomImages("train", 2, 64, 1).image(1) != few.image(1)).any()


def test_phantoms_have_two_lungs_darker_than_what_is_around_them():
    train, _, _ = phantom_splits(24, 1, 1, side=128)
    for i in range(len(train.ids)):
        image, lungs = train.image(i).astype(float), train.mask(i)
        parts, _ = cv2.connectedComponents(lungs)
        assert parts - 1 == 2
        assert 0.05 < lungs.mean() < 0.45
        ring = cv2.dilate(lungs, np.ones((15, 15))) - cv2.dilate(lungs, np.ones((5, 5)))
        assert image[lungs == 1].mean() < image[ring == 1].mean() - 5


def test_samples_are_resized_standardised_tensors():
    sample = SampleDataset(Squares(2, side=50), image_size=32, in_channels=3)[1]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["image"].mean().item() == pytest.approx(0, abs=1e-5)
    assert sample["image"].std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    assert sample["mask"].dtype == torch.int64
    assert sample["id"] == "s01"
    assert "replaced" not in sample


def test_images_are_normalised_by_given_statistics():
    def image(**options):
        samples = SampleDataset(Squares(2, side=50), image_size=32, in_channels=3, **options)
        return samples.plain()[1]["image"]

    given = ((0.5, 0.4, 0.3), (0.25, 0.5, 1.0))
    mean, std = (torch.tensor(values)[:, None, None] for values in given)
    between = image(normalization=((0.0,) * 3, (1.0,) * 3))
    assert (between.min(), between.max()) == (0, 1)
    torch.testing.assert_close(image(normalization=given), (between - mean) / std)
    assert image().mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("given", [((0.5,), (0.2,)), ((0.5,) * 3, (0.0,) * 3), (0.5, 0.25), "auto"])
def test_statistics_that_do_not_fit_are_refused(given):
    with pytest.raises(InputError, match="must be a mean and a positive standard deviation"):
        CoSegDataModule(Squares(8), in_channels=3, normalization=given)


@pytest.mark.parametrize("scale", [257, 16, 1.0, 3000.0, -1.0])
def test_the_range_of_values_means_nothing(scale):
    """Networks see the same in 8 bits, 16 bits, 12 bits in 16, and floats, augmented or not."""

    class Deep(Squares):
        def image(self, index):
            image = super().image(index)
            if isinstance(scale, int):
                return image.astype(np.uint16) * scale
            return image * np.float32(abs(scale)) - (500 if scale < 0 else 0)

    for augmentation in (None, default_augmentation()):
        shallow, deep = (
            SampleDataset(data, image_size=32, augmentation=augmentation)[0]
            for data in (Squares(1), Deep(1))
        )
        torch.testing.assert_close(shallow["image"], deep["image"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_masks_of_any_integer_type(dtype):
    class Wide(Squares):
        def mask(self, index):
            return super().mask(index).astype(dtype)

    plain, wide = (
        SampleDataset(data, image_size=24, augmentation=default_augmentation())[0]["mask"]
        for data in (Squares(1), Wide(1))
    )
    torch.testing.assert_close(plain, wide)


def augmented(workers, order, epochs=2):
    dataset = SampleDataset(
        Squares(6), image_size=32, in_channels=1, augmentation=default_augmentation(), seed=3
    )
    keys = [(epoch, index) for epoch in range(epochs) for index in order]
    samples = DataLoader(dataset, batch_size=None, sampler=keys, num_workers=workers)
    return {(n // len(order), s["id"]): s["image"] for n, s in enumerate(samples)}


def test_augmentation_depends_on_seed_epoch_and_id_alone():
    first = augmented(0, range(6))
    np.random.seed(5)
    for other in (augmented(2, range(6)), augmented(0, [5, 3, 1, 0, 2, 4])):
        for key, image in first.items():
            torch.testing.assert_close(other[key], image, rtol=0, atol=0)
    assert not torch.equal(first[0, "s00"], first[1, "s00"])
    assert not torch.equal(first[0, "s00"].flip(-1), first[1, "s00"])


def test_no_argument_of_the_augmentation_is_ignored(monkeypatch):
    # albumentations only warns of unknown arguments; building must fail instead.
    monkeypatch.setattr(A, "HorizontalFlip", lambda p: A.VerticalFlip(probability=p))
    with pytest.raises(UserWarning, match="probability"):
        default_augmentation()


def test_epoch_sampler_visits_all_and_shuffles_by_epoch():
    orders = []
    for epoch in (0, 1, 0):
        sampler = EpochSampler(range(10), num_replicas=1, rank=0, seed=2)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        orders.append([index for _, index in keys])
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.slow
def test_importing_the_data_module_asks_no_server():
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('asked the network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import coseg_lightning.data.datamodule\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.slow
def test_real_masks_are_read(real_data):
    splits = folder_splits(real_data / "bubil")
    assert (len(splits.train.ids), len(splits.test.ids)) == (137, 133)
    assert set(np.unique(splits.train.mask(0))) == {0, 1}
    assert set(np.unique(folder_splits(real_data / "usgra", classes=3).train.mask(0))) <= {0, 1, 2}


class Turned:
    """Turns every picture upside down."""

    def __call__(self, image, mask):
        return {"image": image[::-1], "mask": mask[::-1]}


def test_an_augmentation_of_ones_own(tmp_path, make_folder):
    """From albumentations' own file, or any function; a run depends on the file no more."""
    root, path = make_folder(), tmp_path / "mine.yaml"
    A.save(A.Compose([A.VerticalFlip(p=1.0)]), path, data_format="yaml")
    settings = [*SMALL, "data=folder", f"data.root={root}"]
    plain = make_data(composed(*settings, "data.augment=false"), tmp_path).samples("train")
    target = f"{{_target_: {Turned.__module__}.Turned}}"
    sys.modules.setdefault(Turned.__module__, sys.modules[__name__])
    for given, recorded in ((str(path), "VerticalFlip"), (target, "Turned")):
        cfg = composed(*settings, f"data.augmentation={given}")
        depend_on_data_alone(cfg)
        assert recorded in str(cfg.data.augmentation)
        flipped = make_data(cfg, tmp_path).samples("train")
        for key in ("image", "mask"):
            assert torch.equal(flipped[0, 0][key], plain[0, 0][key].flip(-2))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["data.augmentation=none.yaml"], "data.augmentation=none.yaml: there is no such file"),
        (
            ["data.augmentation={a: 1}"],
            "must be a YAML file written by albumentations.save, or name a",
        ),
        (["data.augmentation={_target_: no.such}"], "data.augmentation=.*no.such"),
        (["data.augment=false", "data.augmentation={a: 1}"], "would have no effect with"),
    ],
)
def test_what_is_no_augmentation_is_refused(tmp_path, make_folder, settings, sentence):
    cfg = composed(*SMALL, "data=folder", f"data.root={make_folder()}", *settings)
    with pytest.raises(InputError, match=sentence):
        make_data(cfg, tmp_path)


@pytest.mark.parametrize(
    ("change", "options", "made"),
    [
        (A.Normalize(), {}, "values from -2.* to -1.* of s00"),
        (A.Normalize(), {"normalization": ((0.5,) * 3, (0.25,) * 3)}, "values from -2.* to -1"),
        (lambda image, mask: {"image": torch.tensor(image), "mask": mask}, {}, "a Tensor of s00"),
        (lambda image, mask: {"image": image[:9], "mask": mask}, {}, r"an image of \(9, 32, 3\)"),
        (lambda image, mask: {"image": image, "mask": mask * 0.7}, {}, "a mask with fractions"),
        (lambda image, mask: {"image": image / 0, "mask": mask}, {}, "values from nan to nan"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value)")
def test_what_normalisation_would_spoil_is_refused(change, options, made):
    samples = SampleDataset(
        Squares(1), image_size=32, in_channels=3, augmentation=change, **options
    )
    with pytest.raises(InputError, match=f"The augmentation made {made}.*leave out Normalize"):
        samples[0]


@pytest.mark.parametrize("factor", [1, 1.5, 255])
def test_an_augmentation_may_scale_what_each_image_is_normalised_by(factor):
    samples = SampleDataset(Squares(1), image_size=32, in_channels=3)
    scaled = SampleDataset(
        Squares(1),
        image_size=32,
        in_channels=3,
        augmentation=lambda image, mask: {"image": factor * image, "mask": mask},
    )
    torch.testing.assert_close(scaled[0]["image"], samples[0]["image"], rtol=1e-3, atol=1e-4)


def test_bytes_are_rescaled_as_other_types_are():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = (*rng.integers(1, 30, 2), 3)
        image = rng.integers(0, rng.integers(1, 257), shape).astype(np.uint8)
        np.testing.assert_array_equal(
            rescale_intensity(image), rescale_intensity(image.astype(int))
        )


def test_images_of_small_values_are_rescaled_as_others_are():
    image = np.random.default_rng(0).random((20, 20, 2)).astype(np.float32)
    unit = np.float32(2**-30)  # 1e-9, such as diffusion in m2/s
    np.testing.assert_array_equal(rescale_intensity(unit * image), rescale_intensity(image))
    scales, scales_in_unit = (scale_of(v.reshape(-1, 2))["all"] for v in (image, unit * image))
    rescaled = Scale.of(scales_in_unit, 2).rescale(unit * image)
    np.testing.assert_allclose(rescaled, Scale.of(scales, 2).rescale(image), atol=1e-6)
    assert scales_in_unit["deviation"] == pytest.approx(scales["deviation"])
    noise = np.float32(0.1) * (1 + np.float32(1e-7) * image)  # rounding errors are no contrast
    assert rescale_intensity(noise).max() < 0.02


def test_the_preparation_in_words_is_what_is_done():
    canvas = Canvas.of((24, 32))
    text = preparation_in_words(canvas, 1, None, nodata=-1)
    steps = [
        *("take pixels of the value -1 for missing", "make colours grey (0.299 R + 0.587 G", "fit"),
        *("quantiles to 0 and 1", "give missing pixels the mean of the others", "reflection"),
    ]
    assert [step for step in steps if step not in text] == []
    colour = np.random.default_rng(0).random((24, 20, 3)).astype(np.float32)
    grey = colour @ np.float32([0.299, 0.587, 0.114])
    grey[2, 3] = colour[2, 3] = np.nan
    low, high = np.nanpercentile(grey, (0.5, 99.5))
    image = ((grey - low) / (high - low)).clip(0, 1)
    image = np.where(np.isnan(image), np.nanmean(image), image)
    image = np.pad(image, ((0, 0), (0, 12)), mode="symmetric")
    expected = (image - image.mean()) / image.std()
    prepared = normalised(preprocess(colour, canvas, 1))
    np.testing.assert_allclose(prepared[..., 0], expected, atol=1e-4)
    assert "repeat a grey image in all 3 channels" in preparation_in_words(canvas, 3, None)
    text = preparation_in_words(Canvas.of(64), 3, None, tile=64, overlap=8)
    assert "an image smaller than a tile is enlarged to fit it, and the rest filled with" in text


def test_the_side_that_gets_smaller_is_averaged_also_where_the_other_grows():
    noise = np.random.default_rng(0).standard_normal((64, 1024, 5)).astype(np.float32)
    averaged = resized(noise, (64, 128))
    assert averaged.std() < 0.4
    np.testing.assert_allclose(resized(noise, (128, 128)), resized(averaged, (128, 128)))
    sideways = resized(noise.transpose(1, 0, 2), (128, 128))
    np.testing.assert_allclose(sideways.transpose(1, 0, 2), resized(noise, (128, 128)), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("image_size", value) for value in ("48", [48], [48, 32, 1], 48.5, float("nan"), None)),
        *(("in_channels", value) for value in (0, -1, "1", 1.5, True)),
        *(("batch_size", value) for value in (0, "4", 2.5)),
        *(("num_workers", value) for value in (-1, "2", 1.5)),
        *(("seed", value) for value in ("a", 1.5, None)),
        *(("augmentation", value) for value in ("defualt", 5)),
        *(("pixel_size", value) for value in (0, -1, "0.2", float("nan"), float("inf"))),
        *(("normalization", value) for value in ("imagenet", 5, ((0.5,), (float("nan"),)))),
        ("keep_shape", "no"),
        ("kinds", "kinds.csv"),
        ("annotators", "x"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_at_once(setting, value):
    with pytest.raises(InputError, match=f"{setting}.*(must be|is a str)"):
        CoSegDataModule(Squares(4), **{"image_size": 32, "in_channels": 1, setting: value})


@pytest.mark.parametrize("size", [32, np.int64(32), [32, 32], np.array([32, 32]), (32.0, 32.0)])
def test_a_side_may_be_any_whole_number(size):
    sample = SampleDataset(Squares(4), image_size=size, in_channels=1)[0]
    assert sample["image"].shape == (1, 32, 32)


@pytest.mark.parametrize("kind", [list, np.array, lambda pair: list(map(np.array, pair))])
def test_numbers_may_be_those_of_numpy(kind, tmp_path):
    data = CoSegDataModule(
        Squares(4),
        in_channels=1,
        normalization=kind([[0.5], [0.25]]),
        clean_ids=np.int64(1),
        noise=MissingRegion(),
        noise_level=0.5,
        noise_folder=tmp_path / "noise",
    )
    assert len(data.clean_ids) == 1
    data.prepare_data()
    assert data.given_samples()[0]["image"].shape == (1, 256, 256)


def test_kinds_and_annotators_may_be_in_a_column_of_a_table():
    class Series:
        """Like that of pandas: no mapping, and iterated by its values."""

        def __iter__(self):
            return iter("aabb")

        def keys(self):
            return Squares(4).ids

        def __getitem__(self, sample_id):
            return "aabb"[Squares(4).ids.index(sample_id)]

    data = CoSegDataModule(Squares(4), kinds=Series(), annotators=Series())
    assert data.kinds == data.annotators == dict(zip(Squares(4).ids, "aabb", strict=True))


def test_what_are_no_images_and_masks_is_refused():
    for given in (phantom_splits(4, 0, 0, side=32), "folder", [1, 2], None):
        with pytest.raises(InputError, match="has no ids, image"):
            CoSegDataModule(given)
    with pytest.raises(InputError, match="A str has no ids"):
        CoSegDataModule(Squares(4), "folder")
