"""Loaders and batches as other people have them."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from coseg_lightning import (
    SegmentationModule,
)
from coseg_lightning.errors import InputError
from coseg_lightning.modules.loaders import over
from support import (
    Halves,
    TinyNetwork,
    loader,
    module_of,
    one_batch,
    trained,
    trainer_of,
)


class Lazy(Halves):
    """Opens a file at its first sample, as datasets on archives do."""

    def __init__(self, path):
        super().__init__()
        self.path, self.file = path, None

    def __getitem__(self, index):
        if self.file is None:
            assert torch.utils.data.get_worker_info() is not None, "opened in the main process"
            self.file = self.path.open("rb")
        return super().__getitem__(index)


def test_files_are_opened_by_workers_alone(tmp_path):
    (tmp_path / "archive").write_text("x")
    train = DataLoader(Lazy(tmp_path / "archive"), batch_size=4, num_workers=1)
    trained(tmp_path, train, epochs=1)


def test_a_sampler_that_draws_with_replacement_is_kept():
    data = Halves()
    original = DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=64))
    assert len(over(original, Halves(wrong=0))) == 16


@pytest.mark.parametrize("form", ["tensor", "list", "named", "dict"])
def test_predicting_needs_images_alone(tmp_path, form):
    images, _ = one_batch()
    batch = {
        "tensor": images,
        "list": [images],
        "named": (images, list("abcdef")),
        "dict": {"image": images, "id": list("abcdef")},
    }[form]
    for module in (module_of(), SegmentationModule(TinyNetwork())):
        (predictions,) = trainer_of(tmp_path).predict(module, loader(batch))
        assert predictions.shape == (6, 2, 16, 16)
    with pytest.raises(InputError, match=r"no \(N, C, H, W\) tensor"):
        trainer_of(tmp_path).predict(module, loader({"picture": images}))
