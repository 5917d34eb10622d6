"""Images are decoded only once."""

import os
import resource
import signal

import cv2
import numpy as np
import pytest
import torch

from coseg_lightning.app.build import make_data
from coseg_lightning.data.datamodule import CoSegDataModule
from coseg_lightning.data.folder import folder_splits
from coseg_lightning.errors import InputError
from coseg_lightning.run import run
from support import SMALL, Squares, composed, in_a_process


def data_of(root, cache=None, **options):
    splits = folder_splits(root)
    return CoSegDataModule(
        *splits, image_size=32, in_channels=1, batch_size=2, cache=cache, **options
    )


def tensors_of(data):
    data.prepare_data()
    return [
        (sample["id"], sample["image"], sample["mask"])
        for part in ("train", "test")
        for sample in (data.samples(part)[0, n] for n in range(len(data.samples(part))))
    ]


def test_what_is_read_is_the_same_to_the_bit(make_folder, tmp_path):
    root = make_folder()
    plain, cached = tensors_of(data_of(root)), tensors_of(data_of(root, tmp_path / "cache"))
    assert len(plain) == 8
    for (sample_id, *tensors), (same, *others) in zip(plain, cached, strict=True):
        assert sample_id == same
        assert all(map(torch.equal, tensors, others))


def test_images_are_decoded_once(make_folder, tmp_path):
    root, cache = make_folder(), tmp_path / "cache"
    data_of(root, cache).prepare_data()
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 2  # one for training and one for the test

    data = data_of(root, cache)
    for part in ("train", "test"):
        data._datasets[part].image = None  # a call would raise
    assert len(tensors_of(data)) == 8
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files


def test_a_changed_image_is_decoded_again(make_folder, tmp_path):
    root, cache = make_folder(), tmp_path / "cache"
    before = tensors_of(data_of(root, cache))
    changed = root / "images" / "s00.png"
    stamp = changed.stat().st_mtime_ns
    picture = cv2.imread(str(changed), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(changed), picture[::-1])
    os.utime(changed, ns=(stamp + 10**9, stamp + 10**9))
    after = tensors_of(data_of(root, cache))
    differ = [a[0] for a, b in zip(before, after, strict=True) if not torch.equal(a[1], b[1])]
    assert differ == ["s00"]


def test_a_file_that_was_deleted_is_made_again(make_folder, tmp_path):
    root, cache = make_folder(), tmp_path / "cache"
    data = data_of(root, cache)
    data.prepare_data()
    for path in cache.iterdir():
        path.unlink()
    assert data.samples("train")[0]["image"].shape == (1, 32, 32)


@pytest.mark.slow
def test_workers_map_the_file_themselves(make_folder, tmp_path):
    data = data_of(make_folder(), tmp_path / "cache", num_workers=1)
    data.prepare_data()
    samples = data.samples("train").plain()
    expected = {sample["id"]: sample["image"] for sample in map(samples.__getitem__, range(6))}
    assert samples.cache.__getstate__()["_images"] is None
    loader = data._loader(samples, None)
    loader.multiprocessing_context = "spawn"
    for batch in loader:
        for sample_id, image in zip(batch["id"], batch["image"], strict=True):
            assert torch.equal(image, expected[sample_id])


def test_what_is_read_may_be_changed(make_folder, tmp_path):
    data = data_of(make_folder(), tmp_path / "cache")
    samples = data.samples("train")
    sample_id = samples.ids[0]
    samples.cache.image(sample_id)[:] = 0
    assert samples.cache.image(sample_id).max() > 0


def test_images_without_files_are_not_cached(tmp_path):
    with pytest.raises(InputError, match="The images of a Squares cannot be cached"):
        CoSegDataModule(Squares(4), cache=tmp_path)


@pytest.mark.slow
def test_a_run_with_a_cache_is_the_same_run(make_folder, tmp_path):
    root = make_folder()
    settings = [*SMALL, "data=folder", f"data.root={root}", "data.in_channels=1", "nol=0.3"]
    plain = run(composed(*settings), tmp_path / "plain")
    cached = run(composed(*settings, f"data.cache={tmp_path / 'cache'}"), tmp_path / "cached")
    assert cached["test"] == plain["test"]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    scores = [(tmp_path / name / "scores.csv").read_bytes() for name in ("plain", "cached")]
    assert np.array_equal(*[text.splitlines()[1].split(b",")[:3] for text in scores])


def test_where_the_cache_lies(make_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = make_folder()
    data = make_data(composed("data=folder", f"data.root={root}", "data.cache=true"), tmp_path)
    assert data._caches["train"].path.is_relative_to(tmp_path)
    cfg = composed("data=folder", f"data.root={root}", "data.cache=3")
    with pytest.raises(InputError, match=r"data\.cache=3 must be true, false, or a folder"):
        make_data(cfg, tmp_path)


def test_a_full_disk_is_an_error_and_leaves_nothing(make_folder, tmp_path):
    root, cache = make_folder(), tmp_path / "cache"

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(OSError, match="File too large"):
            data_of(root, cache).prepare_data()

    assert in_a_process(body) == 0
    assert list(cache.iterdir()) == []


def test_an_audit_may_use_the_cache_too(make_folder, tmp_path):
    settings = [f"data.root={make_folder()}", f"data.cache={tmp_path}", "data=folder"]
    data = make_data(composed(*settings), tmp_path, everything=True)
    data.prepare_data()
    assert len(data.samples("train")) == 8
    assert len(list(tmp_path.glob("*.npy"))) == 1
