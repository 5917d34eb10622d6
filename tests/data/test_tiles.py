"""Large images are read, judged, corrected, learnt from and predicted by tiles."""

import csv
import itertools
import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from coseg_lightning.app.reviewable import Reviewable
from coseg_lightning.apply import apply
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.preparation import training_statistics
from coseg_lightning.data.samples import EpochSampler, SampleDataset, default_augmentation
from coseg_lightning.data.tiles import Grid, Tile, blended_rows, spans, weights
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import ImageRules
from coseg_lightning.files.inspection import image_info, scale_of, tiled_image_info
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.files.windows import ImageWindows, PieceCache, TiffWindows, has_tiff_windows
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.noise.models import Annotator
from coseg_lightning.predict import predict
from coseg_lightning.runs.tested import class_counts, joined_row, row_of
from support import SMALL, command

PLACE = [
    (33550, 12, 3, (2.0, 2.0, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4000000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
]


def drawn(number, height=150, width=210, bands=3):
    """A mask of a few discs in the left half, and an image that shows them."""
    rng = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(6):
        centre = int(rng.integers(10, width // 2)), int(rng.integers(10, height - 10))
        cv2.circle(mask, centre, int(rng.integers(6, 14)), 1, -1)
    image = rng.normal(90, 8, (height, width, bands)) + 80 * mask[..., None]
    return mask, image.clip(1, 255).astype(np.uint8)


def write_large(root, count=5, **size):
    """Four-band GeoTIFFs with a corner that is missing, and 0/255 masks; every third is bad."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        mask, image = drawn(number, bands=4, **size)
        image[:20, :30] = 0
        given = mask.copy()
        if number % 3 == 0:
            given[:, 30:70] = 0
        tifffile.imwrite(
            root / f"images/f{number}.tif",
            image,
            photometric="rgb",
            extrasamples=["unspecified"],
            tile=(64, 64),
            compression="zlib",
            extratags=[*PLACE, (42113, 2, 2, "0", True)],
            metadata=None,
        )
        tifffile.imwrite(
            root / f"masks/f{number}.tif",
            given * np.uint8(255),
            photometric="minisblack",
            tile=(64, 64),
            compression="deflate",
            extratags=PLACE,
            metadata=None,
        )
    return root


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Windows of files


@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", ">u2"])
@pytest.mark.parametrize("compression", [None, "zlib", "zstd"])
def test_windows_of_tiff_files(tmp_path, bands, kind, compression):
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 250, (101, 87, bands)).astype(kind)
    for planes, tile, predictor in itertools.product(
        ("contig", "separate")[: 1 + (bands > 1)],
        (None, (32, 48)),
        (False, True)[: 1 + (compression is not None)],
    ):
        stored = np.moveaxis(values, 2, 0) if planes == "separate" else values
        tifffile.imwrite(
            path,
            stored[..., 0] if bands == 1 else stored,
            photometric="rgb" if bands > 1 else "minisblack",
            planarconfig=planes if bands > 1 else None,
            compression=compression,
            predictor=predictor or None,
            tile=tile,
            rowsperstrip=13 if compression and not tile else None,
            extrasamples=["unspecified"] if bands == 4 else None,
            byteorder=">" if kind[0] == ">" else "<",
        )
        whole = ImageRules().read(path)
        assert has_tiff_windows(path)
        windows = pickle.loads(pickle.dumps(ImageWindows(path, ImageRules(), tmp_path)))
        assert windows.size == (101, 87)
        for top, left, height, width in ((0, 0, 101, 87), (31, 40, 40, 30), (100, 86, 1, 1)):
            part = windows.read(top, left, height, width)
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def other_files(folder):
    _, image = drawn(0)
    image = cv2.GaussianBlur(image, (9, 9), 3)
    yield folder / "j.tif", {"photometric": "ycbcr", "compression": "jpeg", "tile": (64, 64)}
    yield folder / "w.tif", {"photometric": "miniswhite", "compression": "zlib"}
    yield folder / "p.tif", {"photometric": "minisblack", "metadata": None}
    for name in ("n.npy", "c.npy", "a.png", "a.jpg"):
        yield folder / name, {}


@pytest.mark.parametrize("rules", [ImageRules(), ImageRules(bands=(1,)), ImageRules(nodata=90)])
def test_windows_of_other_files(tmp_path, rules):
    _, image = drawn(0)
    image = cv2.GaussianBlur(image, (9, 9), 3)
    for path, options in other_files(tmp_path):
        if path.suffix == ".tif":
            values = {"w": image[..., 0], "p": np.moveaxis(image, 2, 0)}.get(path.stem, image)
            tifffile.imwrite(path, values, **options)
        elif path.suffix == ".npy":
            np.save(path, image if path.stem == "n" else np.moveaxis(image, 2, 0))
        else:
            cv2.imwrite(str(path), image)
        whole = rules.read(path)
        windows = ImageWindows(path, rules, tmp_path / "copies")
        for top, left, height, width in ((0, 0, 150, 210), (50, 60, 40, 30)):
            part = windows.read(top, left, height, width)
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_only_the_pieces_of_a_window_are_read(tmp_path):
    path = tmp_path / "a.tif"
    _, image = drawn(1, 256, 256)
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offsets, counts = page.dataoffsets, page.databytecounts
    content = bytearray(path.read_bytes())
    for number in range(1, 16):  # all pieces but the first are damaged
        content[offsets[number] : offsets[number] + counts[number]] = b"\0" * counts[number]
    path.write_bytes(content)
    windows = TiffWindows(path)
    np.testing.assert_array_equal(windows.read(3, 5, 60, 50), image[3:63, 5:55])
    with pytest.raises(InputError, match=r"a\.tif cannot be read as an image"):
        windows.read(60, 60, 10, 10)


def test_a_process_keeps_few_pieces_however_many_files_it_reads(tmp_path):
    cache = PieceCache(3 * 64 * 64)
    for number in range(10):
        cache.add((number,), np.full((64, 64), number, np.uint8))
        assert cache.get((number,))[0, 0] == number
    assert [number for number in range(10) if cache.get((number,)) is not None] == [7, 8, 9]
    cache.get((7,))
    cache.add((10,), np.zeros((64, 64), np.uint8))
    assert cache.get((8,)) is None
    cache.add((11,), np.zeros((640, 640), np.uint8))  # larger than all that is kept
    assert cache.get((11,)) is None


def test_what_is_found_of_a_large_image_is_what_is_found_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("coseg_lightning.files.windows.ROWS", 210 * 7)
    root = write_large(tmp_path)
    rules, path = ImageRules(channels=4), root / "images/f1.tif"
    found, wanted = tiled_image_info(path, rules), image_info(path, rules)
    assert found["missing"] == wanted["missing"] == pytest.approx(600 / 150 / 210)
    for name in ("size", "channels", "turned", "transparent", "place"):
        assert found[name] == wanted[name]
    assert found["spread"] == pytest.approx(wanted["spread"], abs=1e-3)
    image = rules.read(path).reshape(-1, 4)
    known = image[~np.isnan(image).any(axis=1)]
    assert found["scale"]["bands"]["low"] == pytest.approx(np.percentile(known, 0.5, axis=0))
    assert found["scale"]["all"]["high"] == pytest.approx([np.percentile(known, 99.5)] * 4)


def test_a_large_mask_is_read_in_parts_as_it_is_as_a_whole(tmp_path, monkeypatch):
    root = write_large(tmp_path)
    whole = MaskFolder(root / "masks", classes=2)
    monkeypatch.setattr("coseg_lightning.files.windows.ROWS", 210 * 7)
    monkeypatch.setattr(
        "coseg_lightning.files.mask_folder.windows_of_mask",
        lambda path, least=0: TiffWindows(path),
    )
    monkeypatch.setattr("coseg_lightning.files.mask_folder.ROWS", 1)
    monkeypatch.setattr("coseg_lightning.files.inspection.user_cache_path", lambda _: tmp_path)
    parts = MaskFolder(root / "masks", classes=2)
    assert parts.file_info == whole.file_info
    np.testing.assert_array_equal(parts.read("f1"), whole.read("f1"))
    parts.write_like("f1", tmp_path / "new.tif", 1 - whole.read("f1"))
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "new.tif"), 255 - 255 * whole.read("f1")
    )


# Tiles of images


@given(st.integers(1, 3000), st.integers(32, 512), st.floats(0, 0.5))
@settings(derandomize=True, max_examples=200)
def test_windows_cover_an_axis_and_cores_do_so_once(length, tile, share):
    overlap = int(share * tile)
    found = spans(length, tile, overlap)
    assert found[0].start == found[0].core_start == 0
    assert found[-1].stop == found[-1].core_stop == length
    total = np.zeros(length)
    for span in found:
        assert span.size == min(tile, length)
        assert span.start <= span.core_start < span.core_stop <= span.stop
        total[span.start : span.stop] += weights(span, overlap)
        first, last = span.shifts()
        assert first <= 0 <= last
        for shift in (first, last):
            assert 0 <= span.start + shift <= span.core_start
            assert span.core_stop <= span.stop + shift <= length
    for one, other in itertools.pairwise(found):
        assert one.core_stop == other.core_start
        assert one.stop - other.start >= overlap
    assert total.min() > 0.99


class Sees(nn.Module):
    """A network that sees six pixels in each direction."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 5, padding=2) for _ in range(3)))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 5

    def forward(self, images):
        return self.layers(images)


@torch.no_grad()
def test_two_tiles_agree_where_they_meet_as_in_one_pass_over_both(tmp_path):
    write_large(tmp_path, count=2)
    data = folder_splits(tmp_path, in_channels=4, tile=64, overlap=24, test_share=0)
    tiles, network = data.train.tiles, Sees()
    image = torch.rand(3, 150, 210, generator=torch.Generator().manual_seed(1))
    whole = network(image[None])[0].numpy()

    def window(tile):
        top, left, height, width = tile.window
        return network(image[None, :, top : top + height, left : left + width])[0].numpy()

    joined = np.zeros_like(whole)
    for tile_id in tiles.ids_of("f0"):
        tile = tiles.tiles[tile_id]
        blended = tiles.blend(tile_id, lambda other: window(tiles.tiles[other]))
        joined[(slice(None), *tile.core_in_image)] = blended[(slice(None), *tile.core)]
    np.testing.assert_allclose(joined, whole, atol=1e-5)
    cut = np.zeros_like(whole)  # without blending they do not
    for tile in Grid.of((150, 210), 75, 0).tiles("f0").values():
        cut[(slice(None), *tile.core_in_image)] = window(tile)[(slice(None), *tile.core)]
    assert abs(cut - whole).max() > 1e-2
    rows = np.zeros_like(whole)
    grid = Grid.of((150, 210), 64, 24)
    for top, part in blended_rows(grid, 24, lambda batch: [window(tile) for tile in batch], 3):
        rows[:, top : top + part.shape[1]] = part
    np.testing.assert_allclose(rows, whole, atol=1e-5)


def test_tiles_are_samples_whose_cores_make_up_the_image(tmp_path):
    root = write_large(tmp_path)
    data = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0.2)
    train, tiles = data.train, data.train.tiles
    assert len(train) == 4 * 15
    assert len(data.test) == 15
    assert not {tiles.tiles[i].image_id for i in train.ids} & {
        tiles.tiles[i].image_id for i in data.test.ids
    }
    image_id = tiles.tiles[train.ids[0]].image_id
    joined = np.full((150, 210), 99, np.uint8)
    for index, tile_id in enumerate(train.ids[:15]):
        tile = tiles.tiles[tile_id]
        mask = train.mask(index)
        assert train.image(index).shape == (64, 64, 4)
        around = np.ones((64, 64), bool)
        around[tile.core] = False
        assert (mask[around] == 255).all()
        joined[tile.core_in_image] = mask[tile.core]
    wanted = tifffile.imread(root / f"masks/{image_id}.tif") // 255
    wanted[:20, :30] = 255  # where the image is missing
    np.testing.assert_array_equal(joined, wanted)
    assert train.groups[train.ids[0]] == image_id
    other = folder_splits(root, in_channels=4, tile=64, overlap=24, test_share=0.2)
    assert other.train.digest != train.digest


def test_tiles_of_one_image_are_rescaled_alike(tmp_path):
    root = write_large(tmp_path)
    data = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0)
    samples = SampleDataset(data.train, image_size=64, in_channels=4, tiles=data.train.tiles)
    content = data.train.tiles.has_content(data.train.ids)
    empty, full = int(np.flatnonzero(~content)[-1]), int(np.flatnonzero(content)[0])
    noise = samples[empty]["image"].std()
    assert noise < 0.5 * samples[full]["image"].std()  # its noise is not stretched to the range
    one, other = 0, 1  # neighbours show what they share alike
    first, second = (data.train.tiles.tiles[data.train.ids[n]] for n in (one, other))
    width = first.columns.stop - second.columns.start
    torch.testing.assert_close(
        samples[one]["image"][..., -width:], samples[other]["image"][..., :width]
    )


def test_windows_are_moved_while_training_and_keep_their_core(tmp_path):
    root = write_large(tmp_path)
    data = folder_splits(root, in_channels=4, tile=64, overlap=32, test_share=0)
    plain = SampleDataset(data.train, image_size=64, in_channels=4, tiles=data.train.tiles)
    same = SampleDataset(
        data.train,
        image_size=64,
        in_channels=4,
        tiles=data.train.tiles,
        augmentation=lambda image, mask: {"image": image, "mask": mask},
    )
    moved = 0
    for epoch, index in itertools.product(range(3), range(0, 20, 3)):
        fixed, shifted = plain[index], same[epoch, index]
        assert torch.equal(shifted["image"], same[epoch, index]["image"])
        for k in (0, 1):
            assert (fixed["mask"] == k).sum() == (shifted["mask"] == k).sum()
        values, counts = (
            sample["image"][:, sample["mask"] == 1].flatten().sort() for sample in (fixed, shifted)
        )
        torch.testing.assert_close(values.values, counts.values)  # it moves with its image
        moved += not torch.equal(fixed["mask"], shifted["mask"])
    assert moved > 10


def test_an_epoch_holds_as_many_empty_tiles_as_others():
    content = np.zeros(40, bool)
    content[[3, 17, 30]] = True
    drawn_by_epoch = []
    for epoch in range(3):
        ranks = []
        for rank in range(2):
            sampler = EpochSampler(range(40), content, num_replicas=2, rank=rank, seed=1)
            sampler.set_epoch(epoch)
            assert len(sampler) == 3
            ranks += [index for _, index in sampler]
        assert sum(content[ranks]) == 3
        assert len(set(ranks)) == 6
        drawn_by_epoch.append(tuple(sorted(ranks)))
    assert len(set(drawn_by_epoch)) == 3
    content[:] = True
    assert len(EpochSampler(range(40), content, num_replicas=1, rank=0)) == 40
    assert len(EpochSampler(range(40), ~content, num_replicas=1, rank=0)) == 40


def test_images_of_other_formats_are_decoded_once(tmp_path):
    root = write_large(tmp_path / "a")
    pictures = tmp_path / "b"
    for folder in ("images", "masks"):
        (pictures / folder).mkdir(parents=True)
        for path in (root / folder).iterdir():
            values = tifffile.imread(path)
            Image.fromarray(values[..., :3] if values.ndim == 3 else values).save(
                pictures / folder / f"{path.stem}.png"
            )
    settings = {"in_channels": 3, "tile": 64, "overlap": 16, "test_share": 0}
    ours = folder_splits(pictures, copies=tmp_path / "copies", **settings).train
    theirs = folder_splits(root, bands=[1, 2, 3], nodata=300, **settings).train
    for index in (0, 7, 30):
        np.testing.assert_array_equal(ours.image(index), theirs.image(index))
        np.testing.assert_array_equal(ours.mask(index), theirs.mask(index))
    ours.tiles.build()
    copies = sorted((tmp_path / "copies").iterdir())
    assert len(copies) == 10
    times = [path.stat().st_mtime_ns for path in copies]
    folder_splits(pictures, copies=tmp_path / "copies", **settings).train.tiles.build()
    assert [path.stat().st_mtime_ns for path in copies] == times


def test_an_image_smaller_than_a_tile_is_one(tmp_path):
    root = write_large(tmp_path, height=50, width=120)
    train = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0).train
    assert len(train) == 5 * 3
    sample = SampleDataset(train, image_size=64, in_channels=4, tiles=train.tiles)[0]
    assert sample["image"].shape == (4, 64, 64)
    assert (sample["mask"][50:] == 255).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tile": 16}, "data.tile=16 must be at least 32 pixels"),
        ({"tile": 64, "overlap": 40}, "data.overlap=40 must be from 0 to half of data.tile=64"),
    ],
)
def test_tiles_that_cannot_be(tmp_path, options, sentence):
    root = write_large(tmp_path, count=1)
    with pytest.raises(InputError, match=sentence):
        folder_splits(root, in_channels=4, test_share=0, **options)


def test_a_datamodule_refuses_what_tiles_cannot_do(tmp_path):
    root = write_large(tmp_path)
    train = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0).train
    with pytest.raises(InputError, match=r"data\.image_size=32 must equal data\.tile=64"):
        CoSegDataModule(train, image_size=32, in_channels=4)
    with pytest.raises(InputError, match="leave data.cache out"):
        CoSegDataModule(train, image_size=64, in_channels=4, cache=tmp_path / "cache")
    others = Annotator(root / "masks")
    with pytest.raises(InputError, match="noise=annotator replaces masks of whole images"):
        CoSegDataModule(
            train, image_size=64, in_channels=4, noise=others, noise_folder=tmp_path / "noise"
        )


def test_what_is_said_of_an_image_is_said_of_its_tiles(tmp_path):
    root = write_large(tmp_path)
    train = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0).train
    kinds = {f"f{n}": "ab"[n % 2] for n in range(5)}
    data = CoSegDataModule(train, image_size=64, in_channels=4, clean_ids=["f1"], kinds=kinds)
    assert data.clean_ids == set(train.tiles.ids_of("f1"))
    assert data.kinds["f3_r02_c01"] == "b"
    data = CoSegDataModule(train, image_size=64, in_channels=4, clean_ids=["f1_r01_c01"])
    assert data.clean_ids == {"f1_r01_c01"}
    with pytest.raises(InputError, match="clean_ids names 'f9'"):
        CoSegDataModule(train, image_size=64, in_channels=4, clean_ids=["f9"])


def test_statistics_of_tiles_are_of_what_the_networks_get(tmp_path):
    root = write_large(tmp_path)
    train = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0).train
    mean, std = training_statistics(train, Canvas.of(64), 4)
    plain = SampleDataset(
        train,
        image_size=64,
        in_channels=4,
        tiles=train.tiles,
        normalization=((0.0,) * 4, (1.0,) * 4),
    )
    inputs = torch.stack([plain[n]["image"] for n in range(len(plain))])
    np.testing.assert_allclose(mean, inputs.mean(dim=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(std, inputs.std(dim=(0, 2, 3)), atol=1e-4)


def test_an_epoch_is_drawn_by_the_labels_that_are_learnt_from(tmp_path):
    root = write_large(tmp_path)
    train = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0).train
    data = CoSegDataModule(train, image_size=64, in_channels=4)
    content = train.tiles.has_content(train.ids)
    before = data.drawn_in_epoch
    assert before == 2 * content.sum() < len(train)
    emptied = [i for i, full in zip(train.ids, content, strict=True) if full][:3]
    layer = LabelStore.create(tmp_path / "layer")
    for tile_id in emptied:
        layer.write(tile_id, np.zeros((64, 64), np.uint8))
    layer.finish({tile_id: {} for tile_id in emptied})
    data.add_label_layer(tmp_path / "layer")
    assert data.drawn_in_epoch == before - 6


def test_figures_of_tiles_are_joined_to_those_of_the_image():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 3, (2, 60, 80))
    label[:5] = 255
    parts = [
        (slice(0, 40), slice(0, 80)),
        (slice(40, 60), slice(0, 30)),
        (slice(40, 60), slice(30, 80)),
    ]
    counts = sum(class_counts(predicted[p], label[p], 3) for p in parts)
    row = joined_row("a", counts)
    known = label != 255
    for k in (1, 2):
        a, b = (predicted == k) & known, (label == k) & known
        assert row[f"dice_class_{k}"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert row["dice"] == pytest.approx((row["dice_class_1"] + row["dice_class_2"]) / 2)
    assert row["accuracy"] == pytest.approx((predicted == label)[known].mean())
    dice = torch.tensor([row["dice_background"], row["dice_class_1"], row["dice_class_2"]])
    whole = row_of(
        "a",
        dice,
        torch.ones(3, dtype=torch.bool),
        torch.tensor(predicted),
        torch.tensor(label),
        1.0,
    )
    assert row["iou"] == pytest.approx(whole["iou"])
    empty = joined_row("b", np.array([[10, 10, 10], [0, 0, 0]]))
    assert (empty["dice"], empty["accuracy"], empty["dice_background"]) == (1.0, 1.0, 1.0)


# Commands

TILED = ["data=folder", "data.tile=64", "data.overlap=16", "data.in_channels=4", "nol=0.3"]
TILED += [setting for setting in SMALL if not setting.startswith("data.image_size")]
TILED += ["trainer.max_epochs=8", "optimizer.lr=0.01", "method.confidence=0"]


@pytest.fixture(scope="module")
def tiled_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiled")
    root = write_large(folder / "data")
    with pytest.MonkeyPatch.context() as patch:  # as if the images were too large to be read
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
        result = command("run", *TILED, f"data.root={root}", f"hydra.run.dir={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout + result.stderr


@pytest.mark.slow
def test_a_run_by_tiles(tiled_run):
    folder, told = tiled_run
    run = folder / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["samples"] == {"train": 60, "test": 15}
    assert summary["config"]["data"]["image_size"] == 64
    assert summary["test"]["images"] == 1
    assert summary["test"]["dice"] > 0.5  # of a mask that may be bad
    (row,) = rows_of(run / "test.csv")
    assert float(row["dice"]) == pytest.approx(summary["test"]["dice"])
    assert row["hd95"] == ""
    assert "were cut into tiles, worst first" in told
    scores = rows_of(run / "scores.csv")
    images = rows_of(run / "images.csv")
    assert len(scores) == 60
    assert sum(int(row["labelled_pixels"]) for row in images) == 4 * (150 * 210 - 600)
    assert sum(int(row["tiles"]) for row in images) == 60
    assert sum(int(row["noisy_tiles"]) for row in images) == sum(r["noisy"] == "1" for r in scores)
    assert images == sorted(images, key=lambda row: -float(row["score"]))
    assert "in tiles of 64 x 64" in (run / "report.html").read_text()


@pytest.mark.slow
def test_corrected_masks_are_whole_images(tiled_run, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    folder, _ = tiled_run
    root = folder / "data"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    changed, newer, count = apply(folder / "run", folder / "applied", trust=True)
    assert newer == []
    assert count == 5
    layer = {
        row["id"]: int(row["changed_pixels"] or 0) for row in rows_of(folder / "run/scores.csv")
    }
    differing = 0
    for path in sorted((root / "masks").iterdir()):
        with rasterio.open(path) as before, rasterio.open(folder / "applied" / path.name) as after:
            assert (after.transform, after.crs) == (before.transform, before.crs)
            one, other = before.read(1), after.read(1)
        assert other.shape == (150, 210)
        assert set(np.unique(other)) <= {0, 255}
        assert (one != other).sum() == sum(n for i, n in layer.items() if i.startswith(path.stem))
        np.testing.assert_array_equal(one[:20, :30], other[:20, :30])
        differing += (one != other).any()
    assert changed == differing > 0


@pytest.mark.slow
def test_what_changed_after_a_run_by_tiles_stays_and_is_said(tiled_run):
    folder, _ = tiled_run
    shutil.copytree(folder / "data", folder / "moved")
    (first, *_) = (
        r["id"] for r in rows_of(folder / "run/scores.csv") if int(r["changed_pixels"] or 0)
    )
    path = folder / "moved/masks" / f"{first.partition('_')[0]}.tif"
    tifffile.imwrite(path, 255 - tifffile.imread(path))
    arguments = [folder / "run", folder / "again", f"root={folder / 'moved'}", "trust=true"]
    result = command("apply", *arguments)
    assert result.returncode == 0, result.stderr
    assert "tiles changed after the run and are kept as they are now: " in result.stdout
    np.testing.assert_array_equal(
        tifffile.imread(folder / "again" / path.name), tifffile.imread(path)
    )
    next((folder / "moved/images").iterdir()).unlink()
    gone = command("apply", folder / "run", folder / "third", *arguments[2:])
    assert gone.returncode == 0, gone.stderr
    shutil.rmtree(folder / "moved/images")
    (folder / "moved/images").mkdir()
    none = command("apply", folder / "run", folder / "fourth", *arguments[2:])
    assert none.returncode == 1
    assert "is missing or cannot be read, but a run by tiles needs it" in none.stderr


@pytest.mark.slow
def test_masks_of_new_large_images(tiled_run, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    folder, _ = tiled_run
    options = {"uncertainty": True, "overlays": True, "probabilities": True, "batch_size": 3}
    out = folder / "out"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    assert predict(folder / "run", folder / "data/images", out, trust=True, **options) == 5
    monkeypatch.undo()
    with (
        rasterio.open(folder / "data/images/f1.tif") as image,
        rasterio.open(out / "f1.tif") as new,
    ):
        assert (new.transform, new.crs) == (image.transform, image.crs)
        predicted = new.read(1)
    assert not predicted[:20, :30].any()
    wanted, _ = drawn(1, bands=4)
    wanted[:20, :30] = 0
    overlap = 2 * ((predicted > 0) & (wanted > 0)).sum()
    assert overlap / ((predicted > 0).sum() + wanted.sum()) > 0.8
    p = np.load(out / "probabilities/f1.npy")
    assert p.shape == (2, 150, 210)
    np.testing.assert_allclose(p.sum(axis=0, dtype=np.float32), 1, atol=2e-3)
    assert np.array(Image.open(out / "uncertainty/f1.png")).shape == (150, 210)
    assert np.array(Image.open(out / "overlays/f1.jpg")).ndim == 3


@pytest.mark.slow
def test_an_exported_network_says_how_tiles_are_made(tiled_run):
    folder, _ = tiled_run
    path, _ = export(folder / "run", "torchscript", folder / "network.pt", trust=True)
    text = json.loads(path.with_name(f"{path.name}.json").read_text())["preparation"]
    assert "cut the image into tiles of 64 pixels that overlap by at least 16" in text
    assert "with the values of the whole image" in text
    assert "resize to fit" not in text
    assert "blend the probabilities where tiles overlap" in text


@pytest.mark.slow
def test_an_audit_by_tiles_needs_no_network(tmp_path):
    root = write_large(tmp_path / "data")
    more = ["training=none", "data.tile=64", "data.overlap=16", "data.in_channels=4"]
    more += [f"data.root={root}", f"hydra.run.dir={tmp_path / 'out'}"]
    result = command("audit", "data=folder", *more)
    assert result.returncode == 0, result.stderr
    assert len(rows_of(tmp_path / "out/scores.csv")) == 75
    assert len(rows_of(tmp_path / "out/images.csv")) == 5


@pytest.mark.slow
def test_labels_that_a_person_draws_over_unlabelled_pixels_of_a_tile_are_written(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for n in range(4):
        mask = np.zeros((96, 96), np.uint8)
        mask[30:70, 20:60] = 1
        mask[:10, :10] = 255
        image = (90 * (mask == 1) + rng.integers(50, 90, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "data/images" / f"s{n}.png")
        Image.fromarray(mask).save(tmp_path / "data/masks" / f"s{n}.png")
    settings = ["data=folder", f"data.root={tmp_path / 'data'}", "training=none", "data.tile=64"]
    settings += ["data.overlap=16", "data.in_channels=1", f"hydra.run.dir={tmp_path / 'audit'}"]
    result = command("audit", *settings)
    assert result.returncode == 0, result.stderr
    reviewable = Reviewable(tmp_path / "audit")
    tile = "s0_r01_c01"
    drawn = np.where(reviewable.mask(tile) == 255, 1, reviewable.mask(tile)).astype(np.uint8)
    (tmp_path / "review/masks").mkdir(parents=True)
    Image.fromarray(drawn).save(tmp_path / "review/masks" / f"{tile}.png")
    changed, *_ = apply(tmp_path / "audit", tmp_path / "out", review=tmp_path / "review")
    assert changed == 1
    given, written = (
        np.asarray(Image.open(tmp_path / d / "s0.png")) for d in ("data/masks", "out")
    )
    np.testing.assert_array_equal(written, np.where(given == 255, 1, given))
    drawn = reviewable.mask(tile).astype(np.uint8)  # nothing changes
    Image.fromarray(drawn).save(tmp_path / "review/masks" / f"{tile}.png")
    changed, *_ = apply(tmp_path / "audit", tmp_path / "again", review=tmp_path / "review")
    assert changed == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ["data.image_size=32"],
            "data.image_size=32 contradicts data.tile=64, since tiles are not",
        ),
        (["data.tile=64.5"], "data.tile=64.5 must be a whole number of pixels"),
        (["data.overlap=60"], "data.overlap=60 must be from 0 to half of data.tile=64"),
        (["data.overlap=null"], "data.overlap=None must be a whole number of pixels"),
    ],
)
def test_settings_of_tiles_are_refused_in_a_sentence(tmp_path, settings, sentence):
    root = write_large(tmp_path / "data", count=2)
    result = command("run", *TILED, f"data.root={root}", f"hydra.run.dir={tmp_path}/run", *settings)
    assert result.returncode == 1
    assert sentence in result.stderr


def test_scale_of_an_image_without_any_pixel():
    scale = scale_of(np.full((5, 2), np.nan, np.float32))
    assert scale["all"]["low"] == [0.0, 0.0]


def test_the_default_augmentation_takes_tiles(tmp_path):
    root = write_large(tmp_path, count=2)
    train = folder_splits(root, in_channels=4, tile=64, overlap=16, test_share=0).train
    samples = SampleDataset(
        train,
        image_size=64,
        in_channels=4,
        tiles=train.tiles,
        augmentation=default_augmentation(),
    )
    assert samples[2, 5]["image"].shape == (4, 64, 64)
    assert isinstance(train.tiles.tiles[train.ids[0]], Tile)


def test_decoded_copies_of_masks_are_of_their_class_ids(tmp_path):
    """A run of other class ids does not take the copies of the run before."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    values = np.zeros((128, 128), np.uint8)
    values[20:60, 20:60], values[70:90, 70:90] = 1, 2
    for n in range(2):
        Image.fromarray(60 * values + n).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(values).save(tmp_path / "masks" / f"{n}.png")
    shared = {"classes": 3, "tile": 64, "overlap": 16, "test_share": 0, "in_channels": 1}
    shared["copies"] = tmp_path / "copies"
    for class_ids in ([0, 1, 2], [0, 2, 1]):
        train = folder_splits(tmp_path, class_ids=class_ids, **shared).train
        train.tiles.build()
        index = list(train.ids).index(next(i for i in train.ids if "0" in i))
        mask = train.mask(index)
        assert set(np.unique(mask[:40, :40]).tolist()) == {0, class_ids.index(1)}


@pytest.mark.parametrize("height", [5, 16])
def test_tiles_of_low_colour_images_are_read(tmp_path, height):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    values = np.random.default_rng(0).integers(0, 255, (2, height, 120, 3), np.uint8)
    for n, value in enumerate(values):
        Image.fromarray(value).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray((value[..., 0] > 128).astype(np.uint8)).save(
            tmp_path / "masks" / f"{n}.png"
        )
    settings = {"in_channels": 3, "tile": 32, "overlap": 8, "test_share": 0}
    train = folder_splits(tmp_path, **settings).train
    np.testing.assert_array_equal(train.image(0)[:height], values[0][:, :32])
