"""The label layer is lossless, never half written, and never overwrites a file of the user's."""

import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from coseg_lightning import LabelStore, updated
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from support import Squares


def layer_of(folder, masks):
    writer = LabelStore.create(folder)
    for sample_id, mask in masks.items():
        writer.write(sample_id, mask)
    return writer.finish({sample_id: {"changed_pixels": 1} for sample_id in masks})


def test_masks_come_back_as_they_were_written(tmp_path):
    masks = {
        "small": np.array([[0, 1], [255, 2]], np.int64),
        "large ids": np.array([[0, 300, 65535]], np.int64),
    }
    layer = layer_of(tmp_path / "labels", masks)
    for sample_id, mask in masks.items():
        assert sample_id in layer
        np.testing.assert_array_equal(layer.read(sample_id), mask)
    assert layer.facts("small") == {"changed_pixels": 1}
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [
        "large ids.png",
        "manifest.json",
        "small.png",
    ]


def test_an_unfinished_layer_is_not_opened_but_can_be_written_again(tmp_path):
    writer = LabelStore.create(tmp_path / "labels")
    writer.write("a", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="not a finished label layer"):
        LabelStore(tmp_path / "labels")
    LabelStore.create(tmp_path / "labels")


def test_nothing_that_exists_is_written_over(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="is not empty"):
        LabelStore.create(masks)
    layer_of(tmp_path / "labels", {"a": np.zeros((2, 2), np.uint8)})
    with pytest.raises(InputError, match="already holds a finished label layer"):
        LabelStore.create(tmp_path / "labels")
    assert (masks / "a.png").read_bytes() == b"mine"


@pytest.mark.parametrize("sample_id", ["", "..", "../a", "/etc/a", "a/b", "a\\b", "a\0"])
def test_an_id_cannot_lead_out_of_the_folder(tmp_path, sample_id):
    writer = LabelStore.create(tmp_path / "labels")
    with pytest.raises(InputError, match="cannot be a file name"):
        writer.write(sample_id, np.zeros((2, 2), np.uint8))


def test_a_manifest_of_something_else_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(InputError, match="not the manifest of a label layer"):
        LabelStore(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    writer = LabelStore.create(tmp_path / "labels")
    writer.write("a", np.ones((2, 2), np.uint8))

    def fail(self, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        writer.write("a", np.zeros((2, 2), np.uint8))
    monkeypatch.undo()
    layer = writer.finish({"a": {}})
    assert layer.read("a").all()
    assert sorted(path.name for path in layer.folder.iterdir()) == ["a.png", "manifest.json"]


def test_updated_puts_the_layer_below_our_augmentation(tmp_path):
    squares = Squares(3)
    flipped = np.flipud(squares.mask(1)).copy()
    layer = layer_of(tmp_path / "labels", {"s01": flipped})

    def upside_down(image, mask):
        return {"image": image[::-1], "mask": mask[::-1]}

    samples = SampleDataset(squares, image_size=32, in_channels=1, augmentation=upside_down)
    after = updated(samples, layer)
    np.testing.assert_array_equal(after[0]["mask"], samples[0]["mask"])
    np.testing.assert_array_equal(after[1]["mask"], flipped[::-1])
    np.testing.assert_array_equal(after[1]["image"], samples[1]["image"])


@pytest.mark.parametrize("form", ["pair", "triple", "dict", "float mask"])
def test_updated_works_on_somebodys_dataset(tmp_path, form):
    image, mask = torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.long)
    sample, sample_id, position = {
        "pair": ((image, mask), "1", 1),
        "triple": ((image, mask, "x"), "x", 1),
        "dict": ({"image": image, "label": mask, "id": "x"}, "x", "label"),
        "float mask": ((image, mask[None].float()), "1", 1),
    }[form]
    layer = layer_of(tmp_path / "labels", {sample_id: np.eye(4, dtype=np.uint8)})
    original = sample[position]
    result = updated([sample, sample], layer)[1]
    assert type(result) is type(sample)
    assert result[position].dtype == original.dtype
    assert result[position].shape == original.shape
    assert result[position].squeeze().tolist() == np.eye(4).tolist()
    assert original.sum() == 0


def test_updated_finds_ids_that_are_numbers_in_tensors(tmp_path):
    layer = layer_of(tmp_path / "labels", {"3": np.eye(4, dtype=np.uint8)})
    dataset = [(torch.zeros(3, 4, 4), torch.zeros(4, 4), torch.tensor(3))]
    assert updated(dataset, layer)[0][1].tolist() == np.eye(4).tolist()


@pytest.mark.parametrize("index", [torch.tensor(1), np.int64(1), -2])
def test_updated_counts_by_any_index(tmp_path, index):
    layer = layer_of(tmp_path / "labels", {"1": np.eye(4, dtype=np.uint8)})
    dataset = [(torch.zeros(3, 4, 4), torch.zeros(4, 4)) for _ in range(3)]
    assert updated(dataset, layer)[index][1].tolist() == np.eye(4).tolist()
    by_tensors = updated(Subset(dataset, torch.arange(3)), layer)
    assert [float(sample[1].sum()) for sample in by_tensors] == [0, 4, 0]


def test_updated_reads_samples_by_other_keys_too(tmp_path):
    layer = layer_of(tmp_path / "labels", {"b": np.eye(4, dtype=np.uint8)})
    samples = {key: (torch.zeros(3, 4, 4), torch.zeros(4, 4)) for key in "ab"}
    assert updated(samples, layer)["b"][1].tolist() == np.eye(4).tolist()


def test_shares_of_votes_of_another_shape_are_refused(tmp_path):
    layer = layer_of(tmp_path / "labels", {"0": np.eye(4, dtype=np.uint8)})
    sample = {"image": torch.zeros(3, 4, 4), "mask": torch.zeros(4, 4)}
    dataset = updated([sample | {"soft_mask": torch.zeros(1, 2, 4, 4)}], layer)
    assert dataset[0]["soft_mask"][0, 1].tolist() == np.eye(4).tolist()
    dataset = updated([sample | {"soft_mask": torch.zeros(4, 4, 2)}], layer)
    with pytest.raises(InputError, match=r"soft_mask is \(4, 4, 2\); it must be \(K, H, W\), of"):
        dataset[0]


class Shares(NamedTuple):
    soft_mask: object
    mask: object
    image: object


@pytest.mark.parametrize("as_named", [dict, Shares])
@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_shares_of_votes_follow_the_mask(tmp_path, kind, as_named):
    corrected = np.array([[0, 1], [255, 1]], np.uint8)
    layer = layer_of(tmp_path / "labels", {"0": corrected})
    given = {"image": torch.zeros(3, 2, 2), "mask": torch.zeros(2, 2, dtype=torch.long)}
    shares = kind(np.full((2, 2, 2), 0.5, np.float32))
    sample = updated([as_named(**given, soft_mask=shares)], layer)[0]
    read = sample if as_named is dict else sample._asdict()
    assert read["mask"].tolist() == corrected.tolist()
    # What was not corrected keeps its votes.
    assert read["soft_mask"].tolist() == [[[0.5, 0], [0, 0]], [[0.5, 1], [0, 1]]]
    assert read["soft_mask"].dtype == shares.dtype
    assert shares.min() == 0.5


def test_updated_converts_masks_in_bfloat16(tmp_path):
    layer = layer_of(tmp_path / "labels", {"0": np.eye(4, dtype=np.uint8)})
    mask = torch.zeros(4, 4, dtype=torch.bfloat16)
    result = updated([(torch.zeros(3, 4, 4), mask)], layer)[0][1]
    assert result.dtype == torch.bfloat16
    assert result.tolist() == np.eye(4).tolist()


def test_a_layer_of_other_ids_is_told(tmp_path):
    layer = layer_of(tmp_path / "labels", {"x.png": np.eye(4, dtype=np.uint8)})
    image, mask = torch.zeros(3, 4, 4), torch.zeros(4, 4)
    dataset = updated([(image, mask, "w"), (image, mask, "x")], layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset[0], dataset[0]
    with pytest.warns(UserWarning, match="No sample of the dataset is in .* holds 'x.png', and"):
        dataset[1]


class Stream(IterableDataset):
    """A stream that knows by itself how its masks are replaced."""

    def __iter__(self):
        yield from ()

    def updated(self, layer):
        return layer.ids


def test_a_stream_that_replaces_its_own_masks_does_so(tmp_path):
    layer = layer_of(tmp_path / "labels", {"x": np.eye(4, dtype=np.uint8)})
    assert updated(Stream(), layer) == ["x"]


@pytest.mark.parametrize("given", [None, DataLoader([0, 1])])
def test_updated_refuses_what_is_no_dataset(tmp_path, given):
    layer = layer_of(tmp_path / "labels", {"x": np.eye(4, dtype=np.uint8)})
    with pytest.raises(InputError, match=f"was given a {type(given).__name__}; give a dataset"):
        updated(given, layer)


def test_updated_works_on_a_part_of_a_dataset(tmp_path):
    samples = SampleDataset(Squares(4), image_size=32, in_channels=1)
    layer = layer_of(tmp_path / "labels", {"s02": np.zeros((32, 32), np.uint8)})
    part = updated(Subset(samples, [3, 2]), layer)
    assert part[0]["mask"].any()
    assert not part[1]["mask"].any()


def test_updated_refuses_the_layer_of_another_dataset(tmp_path):
    layer = layer_of(tmp_path / "labels", {"x": np.eye(4, dtype=np.uint8)})
    with pytest.raises(InputError, match="a mask of x, which is not in the dataset"):
        updated(Squares(3), layer)


def test_updated_refuses_samples_of_another_size(tmp_path):
    layer = layer_of(tmp_path / "labels", {"0": np.eye(4, dtype=np.uint8)})
    dataset = [(torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.long))]
    with pytest.raises(InputError, match=r"\(4, 4\), but the dataset gives \(8, 8\)"):
        updated(dataset, layer)[0]


def test_only_class_ids_are_written(tmp_path):
    """Probabilities were cut to 0, and so written as background."""
    writer, mask = LabelStore.create(tmp_path / "layer"), np.ones((4, 4))
    for wrong in (0.5 * mask, np.nan * mask, mask[None], mask[:0], np.array([["a"]])):
        with pytest.raises(InputError, match="give .*class ids"):
            writer.write("a", wrong)
    writer.write("a", mask)
    writer.write("b", mask.astype(int).tolist())
    layer = writer.finish({"a": {}, "b": {}})
    assert layer.read("a").tolist() == layer.read("b").tolist() == mask.tolist()
