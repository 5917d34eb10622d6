"""Every network that a run or an export writes has a model card, whose code loads it."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.export import Probabilities, export
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.run import run
from support import CLASSIC, PHANTOM, SHORT, composed

pytestmark = pytest.mark.slow

SMP = ["model=unet", "model.encoder_name=tu-mobilenetv3_small_050"]


@pytest.fixture(scope="module", params=[CLASSIC, SMP, [*CLASSIC, "data.classes=1"]])
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("carded") / "run"
    run(composed(*request.param, *SHORT, *PHANTOM, "trainer.max_epochs=1"), folder)
    return folder


def loaded(card, images):
    """Run the code of a card, in the current folder."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {"images": images}
    exec(code, names)
    return names


def test_the_card_of_a_run_loads_its_network(finished, monkeypatch):
    card = (finished / "model" / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(finished)
    images = torch.randn(2, 1, 32, 32)
    names = loaded(card, images)
    network = AppRun(finished).network()
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], network(images))
    assert f"Output: {'one logit' if names['logits'].shape[1] == 1 else 'logits of 2'}" in card
    assert "(N, 1, 32, 32)" in card
    assert ModelCard(card).data.pipeline_tag == "image-segmentation"
    assert str(finished.parent) not in card


@pytest.mark.parametrize("file_format", ["onnx", "torchscript", "safetensors"])
def test_every_format_has_a_card_that_loads_it(finished, file_format, tmp_path, monkeypatch):
    if file_format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path, _ = export(finished, file_format, tmp_path / "the network")
    card = (tmp_path / "the network.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    images = torch.randn(2, 1, 32, 32)
    network = AppRun(finished).network()
    with torch.no_grad():
        expected = Probabilities(network)(images)
    if file_format == "safetensors" and "from coseg_lightning" in card:
        with torch.no_grad():
            found = class_logits(loaded(card, images)["logits"]).softmax(dim=1)
    else:
        found = loaded(card, images.numpy() if file_format == "onnx" else images)["probabilities"]
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-4)
    assert str(finished.parent) not in card
    assert path.is_file()
