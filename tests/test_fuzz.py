"""Random masks, damaged files, edited manifests: an answer or an `InputError`, never anything else.

Nothing is written outside of a run's folder, and no file that was given is changed.
"""

import hashlib
import json
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from coseg_lightning.data.folder import folder_splits
from coseg_lightning.data.predictions import PredictionFolder
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table, write_table
from coseg_lightning.files.images import check_image, read_image, read_indices
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.functional.equations import corruption_score, segmentation_loss, vote
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.modules.batch import read_batch
from coseg_lightning.ranking.evidence import compute_evidence
from support import CLASSES, OBJECTS, OUTLINES, Squares, name_of

pytestmark = pytest.mark.slow

# The same examples every time, and no time limit on a busy machine.
fuzz = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SIDES = st.tuples(st.integers(1, 24), st.integers(1, 24))
DTYPES = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.bool_])


def masks(values=None, dtypes=DTYPES, shapes=SIDES):
    return dtypes.flatmap(lambda dtype: arrays.arrays(dtype, shapes, elements=values, fill=values))


def class_ids(classes, shapes=SIDES):
    ids = st.sampled_from([*range(classes), 255])
    return arrays.arrays(np.int64, shapes, elements=ids, fill=st.sampled_from([0, 1, 255]))


@contextmanager
def place():
    """A folder beside which nothing may appear."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "place"
        folder.mkdir()
        yield folder
        assert [path.name for path in Path(parent).iterdir()] == ["place"]


@contextmanager
def unchanged(*files):
    """Assert that these files do not change, whatever happens in the meantime."""

    def digests():
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    yield
    assert digests() == before


# Masks


@fuzz
@given(masks())
def test_a_layer_returns_what_it_was_given_or_refuses_it(mask):
    with place() as folder:
        writer = LabelStore.create(folder / "labels")
        fits = int(mask.min()) >= 0 and int(mask.max()) <= 65535
        if not fits:
            with pytest.raises(InputError, match="class id"):
                writer.write("a", mask)
            return
        writer.write("a", mask)
        read = writer.finish({"a": {}}).read("a")
        np.testing.assert_array_equal(read, mask)


@fuzz
@given(st.lists(masks(), min_size=1, max_size=4), st.integers(1, 5), st.sampled_from("LPI1"))
def test_a_folder_of_masks_gives_class_ids_or_says_why_not(drawn, classes, mode):
    with place() as folder:
        for i, mask in enumerate(drawn):
            picture = Image.fromarray(mask.astype(np.int32)).convert(mode)
            picture.save(folder / f"{i}.{'tif' if mode == 'I' else 'png'}")
        with unchanged(*folder.iterdir()), suppress(InputError):
            read = MaskFolder(folder, classes=classes)
            for i, mask in enumerate(drawn):
                stored = read.read(str(i))
                assert stored.shape == mask.shape
                assert set(np.unique(stored)) <= {*range(max(2, classes)), 255}


@fuzz
@given(class_ids(3), st.sampled_from([*OUTLINES, *OBJECTS, *CLASSES]), st.text(max_size=5))
def test_noise_makes_masks_of_any_mask(mask, noise, sample_id):
    before = mask.copy()
    noisy = noise(mask, id=sample_id, seed=0)
    assert noisy.shape == mask.shape
    assert set(np.unique(noisy)) <= {0, 1, 2, 255}, name_of(noise)
    np.testing.assert_array_equal(noisy == 255, mask == 255)
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(noise(mask, id=sample_id, seed=0), noisy)


@fuzz
@given(
    st.integers(2, 4).flatmap(
        lambda k: st.tuples(st.just(k), class_ids(k), st.integers(0, 9), st.floats(0, 1))
    )
)
def test_scores_losses_and_votes_of_any_mask_are_numbers(drawn):
    classes, mask, seed, confidence = drawn
    random = torch.Generator().manual_seed(seed)
    label = torch.from_numpy(mask)[None]
    a, b = (20 * torch.randn(1, classes, *mask.shape, generator=random) for _ in "ab")
    a.requires_grad_()
    loss = segmentation_loss(a, label).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(corruption_score(a.detach(), label)).all()
    assert torch.isfinite(compute_evidence(a.detach(), label)).all()
    corrected = vote(a.detach().softmax(1), b.softmax(1), label, confidence=confidence)
    changed = corrected != label
    assert not changed[label == 255].any()
    assert set(corrected.unique().tolist()) <= {*range(classes), 255}
    both = (a.argmax(1) == b.argmax(1)) & (a.argmax(1) == corrected)
    assert both[changed].all()


@fuzz
@given(masks(shapes=st.just((4, 6))), st.booleans())
def test_samples_and_batches_of_any_mask(mask, as_float):
    assume(mask.min() >= 0 and mask.max() <= 65535)
    squares = Squares(1)
    squares.image = lambda index: np.zeros((4, 6), np.uint8)
    squares.mask = lambda index: mask
    sample = SampleDataset(squares, image_size=8, in_channels=1)[0]
    assert sample["mask"].shape == (8, 8)
    content = sample["mask"][:5]  # of 4 x 6 pixels on 8 x 8
    assert set(content.unique().tolist()) <= set(np.unique(mask).astype(int).tolist())
    assert (sample["mask"][5:] == 255).all()
    given = torch.from_numpy(mask.astype(np.int64))[None, None]
    batch = read_batch((torch.zeros(1, 1, 4, 6), given.float() if as_float else given))
    assert batch.masks.shape == (1, 4, 6)
    np.testing.assert_array_equal(batch.masks[0], mask.astype(np.int64))


# Files


@st.composite
def damage(draw):
    """Change some bytes: flip, cut off or insert some, or replace the whole content."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "insert", "all"]))
    if kind == "all":
        content = draw(st.binary(max_size=100))
        return lambda given: content
    at, new = draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=8))

    def change(given):
        n = int(at * len(given))
        if kind == "cut":
            return given[:n]
        return given[:n] + new + given[n + (len(new) if kind == "flip" else 0) :]

    return change


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif"])
def test_damaged_pictures(suffix, tmp_path):
    rng = np.random.default_rng(0)
    good = tmp_path / f"good.{suffix}"
    Image.fromarray(rng.integers(0, 3, (20, 24), np.uint8)).save(good)

    @fuzz
    @given(damage())
    def damaged(change):
        with place() as folder:
            bad = folder / good.name
            bad.write_bytes(change(good.read_bytes()))
            with unchanged(bad):
                for read in (read_image, check_image, read_indices):
                    with suppress(InputError):
                        assert read(bad).ndim in (2, 3)

    damaged()


@fuzz
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), damage()), min_size=1, max_size=3))
def test_damaged_datasets(damages):
    squares = Squares(6)
    with place() as folder:
        for part in ("images", "masks"):
            (folder / part).mkdir()
        for i, sample_id in enumerate(squares.ids):
            Image.fromarray(squares.image(i)).save(folder / "images" / f"{sample_id}.png")
            Image.fromarray(squares.mask(i)).save(folder / "masks" / f"{sample_id}.png")
        for i, of_image, change in damages:
            path = folder / ("images" if of_image else "masks") / f"s{i:02d}.png"
            path.write_bytes(change(path.read_bytes()))
        files = [path for path in folder.rglob("*") if path.is_file()]
        with unchanged(*files):
            with suppress(InputError):
                folder_splits(folder)
            with suppress(InputError):
                for part in filter(None, folder_splits(folder, on_bad_sample="skip")):
                    samples = SampleDataset(part, image_size=16, in_channels=1)
                    # Every sample that is not excluded can be read.
                    for index in range(len(samples)):
                        assert torch.isfinite(samples[index]["image"]).all()
        assert {path for path in folder.rglob("*") if path.is_file()} == set(files)


@fuzz
@given(damage(), st.sampled_from(["npy", "npz"]))
def test_damaged_predictions(change, suffix):
    with place() as folder:
        save = np.save if suffix == "npy" else np.savez
        save(folder / f"a.{suffix}", np.full((2, 6, 7), 0.5, np.float32))
        bad = folder / f"a.{suffix}"
        bad.write_bytes(change(bad.read_bytes()))
        with unchanged(bad), suppress(InputError):
            read = PredictionFolder(folder, classes=2).read("a", (6, 7))
            assert read.shape == (2, 6, 7)
            assert np.isfinite(read).all()


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layer") / "labels"
    writer = LabelStore.create(folder)
    for i in range(3):
        writer.write(f"s{i:02d}", Squares().mask(i))
    writer.finish({f"s{i:02d}": {"dice": 0.5 + i / 10} for i in range(3)}, run_id="a")
    return folder


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@fuzz
@given(damage() | JSON.map(lambda value: lambda content: json.dumps(value).encode()))
def test_edited_manifests(layer, change):
    with place() as folder:
        shutil.copytree(layer, folder / "labels")
        manifest = folder / "labels" / "manifest.json"
        before = manifest.read_bytes()
        manifest.write_bytes(change(before))
        with unchanged(manifest):
            try:
                opened = LabelStore(folder / "labels")
            except InputError:
                return
            # Only white space differs.
            assert json.loads(manifest.read_bytes()) == json.loads(before)
            assert all(opened.read(sample_id).any() for sample_id in opened.ids)


@fuzz
@given(damage())
def test_damaged_layers(layer, change):
    with place() as folder:
        shutil.copytree(layer, folder / "labels")
        picture = folder / "labels" / "s01.png"
        picture.write_bytes(change(picture.read_bytes()))
        with unchanged(picture), suppress(InputError):
            assert LabelStore(folder / "labels").read("s01").ndim == 2


NAMES = st.text(max_size=8) | st.sampled_from(["=1", "'", "''=", "-", "a,b", '"', "\n", "<b>"])


@fuzz
@given(st.lists(NAMES, min_size=1, max_size=5))
def test_tables_return_every_name_and_hold_no_formula(names):
    with place() as folder:
        write_table(folder / "a.csv", [{"id": name, "n": 1} for name in names])
        assert [row["id"] for row in read_table(folder / "a.csv", ["id"])] == names
        raw = read_table(folder / "a.csv", guarded=False)
        assert not any(row["id"].startswith(tuple("=+-@\t\r")) for row in raw)


@fuzz
@given(damage())
def test_edited_tables(change):
    with place() as folder:
        write_table(folder / "a.csv", [{"id": f"s{i:02d}", "split": "train"} for i in range(4)])
        path = folder / "a.csv"
        path.write_bytes(change(path.read_bytes()))
        with unchanged(path), suppress(InputError):
            assert all({"id", "split"} <= row.keys() for row in read_table(path, ["id", "split"]))


@fuzz
@given(NAMES)
def test_no_id_leads_out_of_a_layer(sample_id):
    with place() as folder, suppress(InputError):
        LabelStore.create(folder / "labels").write(sample_id, np.zeros((2, 2), np.uint8))
        assert len(list((folder / "labels").iterdir())) == 2
        assert [path.name for path in folder.iterdir()] == ["labels"]
