"""Old names of attributes still work, and say what they are called now."""

import pytest

from coseg_lightning import LabelCorrection, noise
from support import data_of, module_of


@pytest.mark.parametrize(
    ("name", "now"),
    [("noise_estimate", None), ("noise_known", True)],
)
def test_attributes_of_peers(name, now):
    with pytest.warns(FutureWarning, match=f"CoSegModule.{name} is noise"):
        assert getattr(module_of(), name) == now


def test_doubting_is_excluding():
    module = module_of()
    with pytest.warns(FutureWarning, match=r"CoSegModule.doubt is selection.exclude now"):
        module.doubt(["a"], ["b"], among="ab")
    assert module.selection.excluded_ids == (frozenset("a"), frozenset("b"))


@pytest.mark.parametrize(
    ("name", "now"), [("contradiction", None), ("left_alone", False), ("kept_vary_more", False)]
)
def test_attributes_of_the_correction(tmp_path, name, now):
    with pytest.warns(FutureWarning, match=f"LabelCorrection.{name} is .* now"):
        assert getattr(LabelCorrection(tmp_path), name) == now


def test_attributes_of_the_datamodule(tmp_path):
    data = data_of(tmp_path)
    with pytest.warns(FutureWarning, match="CoSegDataModule.lay is add_label_layer now"):
        data.lay(tmp_path / "labels")
    assert data.label_layers == [tmp_path / "labels"]
    with pytest.warns(FutureWarning, match="left_out is excluded now"):
        assert data.left_out == frozenset()


def test_names_of_the_noise_room():
    assert callable(noise.choose_noisy)
    assert callable(noise.mask_dice)
    assert callable(noise.write_noisy_layer)
