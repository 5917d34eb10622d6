"""Old names of attributes still work, and say what they are called now."""

import re
import shutil
import warnings

import pytest
import torch

from coseg_lightning import LabelCorrection, LabelStore, SegmentationModule, noise
from coseg_lightning.errors import InputError
from coseg_lightning.modules.renamed import MOVED, home_now
from coseg_lightning.runs.folder import RunFolder
from support import ROOT, TinyNetwork, data_of, module_of

RUN = ROOT / "tests" / "runs" / "run-0.1"


@pytest.mark.parametrize(
    ("name", "now"),
    [("noise_estimate", None), ("noise_known", True)],
)
def test_attributes_of_peers(name, now):
    with pytest.warns(FutureWarning, match=f"CoSegModule.{name} is now called noise"):
        assert getattr(module_of(), name) == now


def test_doubting_is_excluding():
    module = module_of()
    with pytest.warns(FutureWarning, match=r"CoSegModule.doubt is now called selection.exclude"):
        module.doubt(["a"], ["b"], among="ab")
    assert module.selection.excluded_ids == (frozenset("a"), frozenset("b"))


@pytest.mark.parametrize(
    ("name", "now"), [("contradiction", None), ("left_alone", False), ("kept_vary_more", False)]
)
def test_attributes_of_the_correction(tmp_path, name, now):
    with pytest.warns(FutureWarning, match=f"LabelCorrection.{name} is now called .*"):
        assert getattr(LabelCorrection(tmp_path), name) == now


def test_attributes_of_the_datamodule(tmp_path):
    data = data_of(tmp_path)
    with pytest.warns(FutureWarning, match="CoSegDataModule.lay is now called add_label_layer"):
        data.lay(tmp_path / "labels")
    assert data.label_layers == [tmp_path / "labels"]
    with pytest.warns(FutureWarning, match="left_out is now called excluded"):
        assert data.left_out == frozenset()


def test_metrics_were_scores():
    for module in (module_of(), SegmentationModule(TinyNetwork())):
        with pytest.warns(FutureWarning, match=r"Module.scores is now called metrics"):
            assert module.scores is module.metrics


def test_the_argument_of_a_layer():
    layer = LabelStore(RUN / "labels")
    sample_id = layer.ids[0]
    with pytest.warns(
        FutureWarning, match=r"LabelStore.facts\(id=...\) is now called sample_id=..."
    ):
        assert layer.facts(id=sample_id) == layer.facts(sample_id)
    with pytest.warns(
        FutureWarning, match=r"LabelStore.read\(id=...\) is now called sample_id=..."
    ):
        assert (layer.read(id=sample_id) == layer.read(sample_id)).all()


@pytest.mark.parametrize("old", [name for name in MOVED if ".peers." in name])
def test_a_finished_run_of_a_method_that_has_moved_is_shown(tmp_path, old):
    config = {"method": {"name": "mine", "module": home_now(old)}}
    RunFolder(tmp_path, config).begin()
    path = tmp_path / "run.json"
    text = path.read_text().replace(home_now(old), old)
    path.write_text(re.sub(r'"version": "[^"]*"', '"version": "0.1.0"', text))
    shutil.copy(RUN / "summary.json", tmp_path)
    assert RunFolder(tmp_path, config, resume=True).summary is not None
    other = {"method": {"name": "mine", "module": "coseg_lightning.CoSegModule"}}
    with pytest.raises(InputError, match=r"method.module=coseg_lightning.CoSegModule \(it was"):
        RunFolder(tmp_path, other, resume=True)


def test_names_of_the_noise_room():
    assert callable(noise.choose_noisy)
    assert callable(noise.mask_dice)
    assert callable(noise.write_noisy_layer)


def test_tracing_reads_no_old_name():
    module = module_of()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        traced = module.to_torchscript(method="trace", example_inputs=torch.rand(1, 1, 16, 16))
    assert not [warning for warning in caught if "is now called" in str(warning.message)]
    assert [logits.shape for logits in traced(torch.rand(2, 1, 16, 16))] == [(2, 2, 16, 16)] * 2
