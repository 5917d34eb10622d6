"""What only a GPU can show: its precisions, compilation, NCCL, and resuming to the bit.

    python -m pytest -m gpu                    # on a machine with a GPU
    COSEG_DRY=1 python -m pytest -m gpu        # the same code on the CPU

`benchmarks/gpu.sh` runs them, and measures.
"""

import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from coseg_lightning import CorruptionRanking, CoSegModule, SegmentationModule, updated
from coseg_lightning.networks import build_network
from coseg_lightning.report.figures import read_rows
from coseg_lightning.run import run
from support import (
    SETTINGS,
    Halves,
    TinyNetwork,
    accuracies,
    composed,
    data_of,
    module_of,
    results,
    trained,
    trainer_of,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def accelerator():
    """Where to train: on the GPU, or on the CPU where `COSEG_DRY` asks for it."""
    if torch.cuda.is_available():
        return "gpu"
    if os.environ.get("COSEG_DRY") != "1":
        pytest.skip("there is no GPU here: set COSEG_DRY=1 to run this on the CPU")
    return "cpu"


@pytest.fixture
def exactly(monkeypatch):
    """Kernels that add in the same order every time, without TensorFloat-32."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_peers_correct_the_masks_in_every_precision(tmp_path, accelerator, precision):
    if accelerator == "cpu" and precision == "16-mixed":
        pytest.skip("torch has no gradient scaling for float16 on a CPU")
    data = Halves(size=16, wrong=4)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    trained(tmp_path, loader, accelerator=accelerator, devices=1, precision=precision)
    rows = read_rows(tmp_path / "scores.csv")
    assert {row["id"] for row in rows[:4]} == {"h0", "h1", "h2", "h3"}
    assert min(accuracies(data)) == 0
    assert min(accuracies(updated(data, tmp_path / "labels"))) == 1


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_channels_last_stays_and_changes_little(tmp_path, accelerator, precision):
    """Networks of smp are kept in that order, and learn what they learn in the other one."""
    if accelerator == "cpu" and precision == "16-mixed":
        pytest.skip("torch has no gradient scaling for float16 on a CPU")
    losses = []
    for layout in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        nets = [build_network("unet", encoder_name="resnet18", in_channels=1) for _ in range(2)]
        module = CoSegModule(*(net.to(memory_format=layout) for net in nets), noise_level=0.3)
        options = {"accelerator": accelerator, "devices": 1, "precision": precision}
        trainer = trainer_of(tmp_path, max_epochs=2, **options)
        trainer.fit(module, DataLoader(Large(), batch_size=4))
        weights = [w for w in module.net_a.parameters() if w.ndim == 4 and min(w.shape[1:]) > 1]
        assert all(w.is_contiguous(memory_format=layout) for w in weights)
        losses.append(float(trainer.callback_metrics["train/loss_a"]))
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


class Large(Halves):
    """The same at 64 x 64, for networks that shrink images 32 times."""

    def __getitem__(self, index):
        image, mask, name = super().__getitem__(index)
        return image.repeat_interleave(4, 1).repeat_interleave(4, 2), self.enlarged(mask), name

    @staticmethod
    def enlarged(mask):
        return mask.repeat_interleave(4, 0).repeat_interleave(4, 1)


def test_compiled_peers_learn_the_same(tmp_path, accelerator, exactly):
    backend = "inductor" if accelerator == "gpu" else "eager"
    states = []
    for wrap in (lambda net: net, lambda net: torch.compile(net, backend=backend)):
        torch.manual_seed(1)
        nets = [wrap(TinyNetwork()) for _ in range(2)]
        module = CoSegModule(*nets, noise_level=0.3)
        trainer = trainer_of(tmp_path, max_epochs=3, accelerator=accelerator, devices=1)
        trainer.fit(module, DataLoader(Halves(), batch_size=4))
        states.append([w.detach().cpu() for w in module.parameters()])
    for plain, compiled in zip(*states, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)


def test_ddp_of_one_device_is_training_without_ddp(tmp_path, accelerator, exactly):
    """By NCCL on a GPU, by gloo on the CPU."""
    states = []
    for strategy in ("auto", "ddp"):
        module = module_of(0.1)  # so that each peer picks some of every batch
        options = {"accelerator": accelerator, "devices": 1, "strategy": strategy}
        callbacks = [CorruptionRanking(tmp_path / f"{strategy}.csv")]
        trainer = trainer_of(tmp_path, max_epochs=3, callbacks=callbacks, **options)
        trainer.fit(module, data_of(tmp_path))
        if strategy == "ddp":
            backend = torch.distributed.get_backend()
            assert backend == ("nccl" if accelerator == "gpu" else "gloo")
            torch.distributed.destroy_process_group()
        states.append([value.cpu() for value in module.state_dict().values()])
    for alone, distributed in zip(*states, strict=True):
        torch.testing.assert_close(alone, distributed, rtol=1e-5, atol=1e-6)
    alone, distributed = (
        {row["id"]: float(row["score"]) for row in read_rows(tmp_path / f"{strategy}.csv")}
        for strategy in ("auto", "ddp")
    )
    assert alone == pytest.approx(distributed, rel=1e-3, abs=1e-3)


def test_sync_batchnorm(tmp_path, accelerator):
    if accelerator == "cpu":
        pytest.skip("torch synchronises BatchNorm on GPUs alone")
    module = module_of()
    options = {"accelerator": accelerator, "devices": 1, "strategy": "ddp", "sync_batchnorm": True}
    kinds = []

    class Kept(CorruptionRanking):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            kinds.extend(type(part) for part in pl_module.modules())

    trainer = trainer_of(tmp_path, callbacks=[Kept(tmp_path / "scores.csv")], **options)
    trainer.fit(module, data_of(tmp_path))
    torch.distributed.destroy_process_group()
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    assert all(torch.isfinite(weight).all() for weight in module.parameters())


@pytest.mark.parametrize("stopped", [CoSegModule, SegmentationModule])
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    tmp_path, monkeypatch, accelerator, exactly, stopped
):
    settings = [*SETTINGS, f"trainer.accelerator={accelerator}", "+trainer.deterministic=true"]
    run(composed(*settings), tmp_path / "whole")
    begins = stopped.on_train_epoch_start

    def stop(self):
        begins(self)
        if self.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stopped, "on_train_epoch_start", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):  # Lightning may make it an exit
            run(composed(*settings), tmp_path / "stopped")
    assert list((tmp_path / "stopped").rglob("unfinished.ckpt"))
    cfg = composed(*settings)
    cfg.resume = str(tmp_path / "stopped")
    run(cfg, tmp_path / "stopped")
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
