"""Images of any shape keep it: what lies around them is neither learnt from, judged nor written."""

import json
import logging

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from coseg_lightning.apply import apply
from coseg_lightning.callbacks.evaluation_pass import of_content
from coseg_lightning.callbacks.label_correction import resize_probabilities
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.export import export
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.predict import predict
from support import SMALL, command


def rectangles(root, height=24, width=96, count=16):
    """Bright rectangles on dark, long pictures."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = np.zeros((height, width), np.uint8)
        top, left = rng.integers(2, height // 2), rng.integers(2, width - 40)
        mask[top : top + 10, left : left + 30] = 1
        image = (40 + 150 * mask + rng.normal(0, 8, mask.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"images/s{number:02d}.png")
        Image.fromarray(mask).save(root / f"masks/s{number:02d}.png")
    return root


@pytest.mark.parametrize(
    ("shape", "size", "content"),
    [
        ((20, 60), 30, (10, 30)),
        ((60, 20), 30, (30, 10)),
        ((20, 60), (10, 60), (10, 30)),
        ((64, 64), 32, (32, 32)),
        ((1, 400), 32, (1, 32)),
        ((33, 32), 32, (32, 31)),
    ],
)
def test_an_image_keeps_its_aspect_ratio(shape, size, content):
    assert Canvas.of(size).content(shape) == content
    whole = (size, size) if isinstance(size, int) else size
    assert Canvas.of(size, keeps_shape=False).content(shape) == whole


class One:
    """One image whose mask is where it is bright."""

    ids = ("a",)

    def __init__(self, shape):
        self.values = np.zeros(shape, np.uint8)
        self.values[: shape[0] // 2, shape[1] // 3 :] = 200

    def image(self, index):
        return self.values

    def mask(self, index):
        return (self.values > 0).astype(np.uint8)


@pytest.mark.parametrize("shape", [(20, 60), (60, 20), (40, 40)])
@pytest.mark.parametrize("size", [40, (32, 64)])
def test_around_an_image_is_its_reflection_which_is_unlabelled(shape, size):
    samples = SampleDataset(One(shape), image_size=size, in_channels=1)
    sample = samples[0]
    height, width = samples.canvas.content(shape)
    image, mask = sample["image"][0], sample["mask"]
    assert image.shape == mask.shape == tuple(samples.canvas[:2])
    assert (mask[:height, :width] != 255).all()
    assert (mask[height:] == 255).all()
    assert (mask[:, width:] == 255).all()
    rows = min(height, image.shape[0] - height)
    torch.testing.assert_close(image[height : height + rows], image[:height].flip(0)[:rows])
    # A prediction of the whole input comes back on the image's own grid.
    bright = torch.stack([image <= 0, image > 0]).float()[None]
    own = resize_probabilities(of_content(samples, 0, bright, shape), torch.empty(shape))
    assert (own[0].argmax(dim=0).numpy() == One(shape).mask(0)).mean() > 0.95


def test_square_images_are_as_they_were():
    kept, stretched = (
        SampleDataset(One((40, 40)), image_size=32, in_channels=3, keep_shape=keep)[0]
        for keep in (True, False)
    )
    assert torch.equal(kept["image"], stretched["image"])
    assert torch.equal(kept["mask"], stretched["mask"])


def test_the_cache_knows_the_shape(tmp_path):
    splits = folder_splits(rectangles(tmp_path / "data"))
    images = []
    for keep in (True, False):
        options = {"image_size": (16, 48), "in_channels": 1, "augmentation": None}
        plain, cached = (
            CoSegDataModule(splits.train, keep_shape=keep, cache=cache, **options)
            for cache in (None, tmp_path / "cache")
        )
        cached.prepare_data()
        images.append(cached.samples("train")[0]["image"])
        assert torch.equal(images[-1], plain.samples("train")[0]["image"])
        assert images[-1].shape == (1, 16, 48)
    assert not torch.equal(*images)


@pytest.mark.slow
def test_a_run_of_long_images_from_training_to_predicted_masks(tmp_path, caplog):
    root = rectangles(tmp_path / "data")
    for number in range(0, 12, 2):  # masks that are far too small
        path = root / f"masks/s{number:02d}.png"
        with Image.open(path) as file:
            mask = np.asarray(file).copy()
        columns = np.nonzero(mask)[1]
        mask[:, columns.min() + 12 :] = 0
        Image.fromarray(mask).save(path)
    result = command(
        "run",
        *SMALL,
        f"hydra.run.dir={tmp_path / 'run'}",
        "data=folder",
        f"data.root={root}",
        "data.in_channels=1",
        "data.image_size=[16,64]",
        "trainer.max_epochs=40",
        "optimizer.lr=0.01",
        "nol=0.4",
        "seed=0",
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["test"]["dice"] > 0.8
    assert "resized to 16 x 64" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    predict(tmp_path / "run", root / "images", tmp_path / "out", overlays=True, trust=True)
    for number in range(1, 16, 2):
        with Image.open(tmp_path / f"out/s{number:02d}.png") as file:
            predicted = np.asarray(file) > 0
        with Image.open(root / f"masks/s{number:02d}.png") as file:
            mask = np.asarray(file) > 0
        assert predicted.shape == mask.shape
        assert 2 * (predicted & mask).sum() / (predicted.sum() + mask.sum()) > 0.75
    mixed = tmp_path / "mixed"
    (mixed / "more").mkdir(parents=True)
    grey = np.asarray(Image.open(root / "images/s00.png"))
    Image.fromarray(grey).save(mixed / "a.JPG")
    Image.fromarray(np.dstack([grey] * 3)).save(mixed / "b.webp", lossless=True)
    Image.fromarray(grey).save(mixed / "more/c.png")
    four = np.dstack([grey] * 4)
    tifffile.imwrite(mixed / "d.tif", four, photometric="minisblack", planarconfig="contig")
    values = grey.astype(np.float32)
    values[3, 3] = np.nan
    tifffile.imwrite(mixed / "e.tif", values)
    with caplog.at_level(logging.WARNING), pytest.raises(InputError) as error:
        predict(tmp_path / "run", mixed, tmp_path / "some", trust=True)
    assert "2 of 4 images have no mask" in str(error.value)
    assert "d.tif: The images have 4 channels" in str(error.value)
    assert "e.tif holds values that are not finite numbers, 1 in all" in str(error.value)
    assert "the folders more with 1 files, which are not read" in caplog.text
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["a.png", "b.png"]
    _, newer, count = apply(tmp_path / "run", tmp_path / "applied", trust=True)
    assert (newer, count) == ([], 16)
    path, _ = export(tmp_path / "run", "torchscript", trust=True)
    description = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert description["input"]["shape"] == ["N", 1, 16, 64]
    assert "aspect ratio kept" in description["preparation"]


@pytest.mark.slow
@pytest.mark.drawn
def test_an_audit_draws_images_of_one_pixel(tmp_path):
    root = rectangles(tmp_path / "data", count=6)
    for name, shape in (("narrow", (24, 1)), ("dot", (1, 1))):
        Image.fromarray(np.full(shape, 90, np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(np.ones(shape, np.uint8)).save(root / f"masks/{name}.png")
    arguments = ["data.in_channels=1", "nol=0.3", "seed=0"]
    folder = tmp_path / "audit"
    small = [one for one in SMALL if one != "keep_checkpoints=true"]  # an audit keeps no network
    result = command("audit", *small, f"data.root={root}", *arguments, f"hydra.run.dir={folder}")
    assert result.returncode == 0, result.stderr
    assert (folder / "worst.png").is_file()
