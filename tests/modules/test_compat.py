"""Each private name of Lightning and torch that the package needs, by itself.

A failure here names what a new version of Lightning or torch has changed.
"""

import copy

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import _replace_dunder_methods
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.trainer.states import RunningStage
from pytorch_lightning.utilities.data import _update_dataloader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, SubsetRandomSampler

from coseg_lightning import SegmentationModule
from coseg_lightning.modules import compat
from support import TinyNetwork, loader, module_of, one_batch, trainer_of


@pytest.mark.parametrize("accelerator", ["auto", "cpu", "gpu", "mps", "tpu"])
def test_whether_a_device_computes_with_bfloat16_is_known(accelerator):
    native = compat.computes_bfloat16(accelerator)
    assert isinstance(native, bool)
    assert not (native and accelerator in ("mps", "tpu"))


@pytest.fixture
def module():
    return SegmentationModule(TinyNetwork())


def test_changes_of_a_tensor_are_counted():
    tensor = torch.zeros(2)
    before = compat.version_of(tensor)
    tensor += 1
    assert compat.version_of(tensor) == before + 1
    with torch.inference_mode():
        assert compat.version_of(torch.zeros(2)) is None


class Within(pl.Callback):
    """Calls a function when training starts, and at the end of each batch."""

    def __init__(self, start=None, batch_end=None):
        self.start, self.batch_end = start, batch_end

    def on_train_start(self, trainer, pl_module):
        if self.start:
            self.start(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.batch_end:
            self.batch_end(trainer, pl_module)


def test_trainer_of_a_module(tmp_path, module):
    """`LightningModule._trainer`."""
    assert compat.trainer_of(module) is None
    trainer = trainer_of(tmp_path)
    module.trainer = trainer
    assert compat.trainer_of(module) is trainer


@pytest.mark.parametrize(
    ("strategy", "lost"), [("ddp_fork", True), ("ddp_spawn", True), ("ddp", False), ("auto", False)]
)
def test_strategies_that_lose_results(strategy, lost):
    """`_MultiProcessingLauncher`."""
    devices = 1 if strategy == "auto" else 2
    trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False)
    assert compat.loses_results(trainer.strategy) is lost


class Saving(pl.Callback):
    """Saves a checkpoint at the end of the first epoch, as `StageCheckpoint` does."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        compat.end_saved_epoch(checkpoint)


@pytest.mark.parametrize("max_steps", [-1, 100])
def test_a_fit_goes_on_from_a_completed_epoch(tmp_path, module, max_steps):
    """`epoch_progress` in a saved `_FitLoop`, and `_Loop.restarting`."""
    path = tmp_path / "epoch.ckpt"
    batches = loader(*[one_batch()] * 3)
    trainer_of(tmp_path, max_epochs=1, callbacks=[Saving(path)]).fit(module, batches)
    begun = []

    class Begin(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            compat.begin_next_epoch(trainer)

        def on_train_epoch_start(self, trainer, pl_module):
            begun.append((trainer.current_epoch, trainer.global_step))

    trainer = trainer_of(tmp_path, max_epochs=4, max_steps=max_steps, callbacks=[Begin()])
    trainer.fit(module, batches, ckpt_path=path, weights_only=True)
    assert begun == [(1, 3), (2, 6), (3, 9)]
    assert trainer.global_step == 12


@pytest.mark.parametrize("returned", [-1, None])
def test_an_epoch_that_a_hook_ends_is_noticed(tmp_path, module, returned, monkeypatch):
    """`batch_progress` of the `_TrainingEpochLoop`."""
    skipped = []

    class Ends(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            skipped.append(compat.skipped_rest_of_epoch(trainer))

    def start(batch, batch_idx):
        return returned if batch_idx == trainer.current_epoch else None

    monkeypatch.setattr(module, "on_train_batch_start", start)
    trainer = trainer_of(tmp_path, max_epochs=4, max_steps=3 * 4, callbacks=[Ends()])
    trainer.fit(module, loader(*[one_batch()] * 3))
    assert skipped == [returned == -1] * 3 + [False]


def test_a_layer_stops_to_track_statistics():
    """`track_running_stats` of torch's layers, which is read in every step."""
    layer = nn.BatchNorm2d(1)
    compat.track_statistics(layer, False)
    layer(torch.ones(2, 1, 3, 3))
    assert float(layer.running_mean) == 0
    compat.track_statistics(layer, True)
    layer(torch.ones(2, 1, 3, 3))
    assert float(layer.running_mean) > 0


def test_a_trainer_gets_another_number_of_steps():
    """`trainer.fit_loop.epoch_loop.max_steps`."""
    trainer = pl.Trainer(max_steps=4, logger=False)
    compat.set_max_steps(trainer, 7)
    assert trainer.max_steps == 7


def test_settings_are_hidden_and_come_back():
    """`trainer.gradient_clip_val` and `trainer.accumulate_grad_batches`."""
    trainer = pl.Trainer(gradient_clip_val=0.5, accumulate_grad_batches=3, logger=False)
    for _ in range(2):  # also where a fit failed in between
        assert compat.hide_settings(trainer) == (0.5, 3)
        assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (None, 1)
        assert compat.accumulation(trainer) == 3
    for _ in range(2):
        compat.restore_settings(trainer)
        assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches) == (0.5, 3)
        assert compat.accumulation(trainer) == 3


def test_a_number_of_epochs_is_followed(tmp_path, module):
    """`trainer.fit_loop.max_epochs`."""
    trainer = trainer_of(tmp_path, max_epochs=5)
    compat.set_max_epochs(trainer, 2)
    trainer.fit(module, loader(one_batch()))
    assert trainer.max_epochs == trainer.current_epoch == 2


def test_hooks_see_a_validation_stage(tmp_path, module):
    """`trainer.state.stage`, which `trainer.training` and `trainer.validating` read."""
    stages = []

    def look(trainer, _):
        with compat.validating(trainer):
            stages.append((trainer.training, trainer.validating, trainer.state.stage))
        stages.append((trainer.training, trainer.validating, trainer.state.stage))

    callback = Within(start=look)
    trainer_of(tmp_path, max_epochs=1, callbacks=[callback]).fit(module, loader(one_batch()))
    assert stages == [
        (False, True, RunningStage.VALIDATING),
        (True, False, RunningStage.TRAINING),
    ]


def test_the_order_of_an_epoch_is_drawn_again(tmp_path, module):
    """`fit_loop._data_fetcher`: its iterator draws a new order from the current random state."""
    orders = []

    class Recording(SegmentationModule):
        def training_step(self, batch, batch_idx):
            orders.append(batch[2].tolist())
            return super().training_step(batch, batch_idx)

    class Again(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            torch.manual_seed(7)
            compat.shuffle_again(trainer)

    images, masks = one_batch()
    data = torch.utils.data.TensorDataset(images, masks, torch.arange(len(images)))
    for seed in (0, 1):
        torch.manual_seed(seed)
        batches = torch.utils.data.DataLoader(data, batch_size=len(images), shuffle=True)
        trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[Again()])
        trainer.fit(Recording(TinyNetwork()), batches)
    assert orders[0] == orders[1] != sorted(orders[0])


def test_an_average_is_made_tensor_by_tensor(tmp_path, module):
    """`WeightAveraging._kwargs`."""
    seen = []

    def average(old, new, steps):
        seen.append(type(old))
        return new

    averaging = WeightAveraging(multi_avg_fn=lambda *_: seen.append("a list"))
    compat.average_tensor_by_tensor(averaging, average)
    trainer_of(tmp_path, max_epochs=1, callbacks=[averaging]).fit(
        module, loader(one_batch(), one_batch())
    )
    assert set(seen) == {torch.Tensor}


def test_an_average_begins_anew(tmp_path, module):
    """`WeightAveraging._latest_update_step` and `._latest_update_epoch`."""
    averaging = WeightAveraging(avg_fn=lambda average, current, _: current)
    steps = []
    for begins in (False, False, True):
        if begins:
            compat.begin_average(averaging)
        trainer_of(tmp_path, max_epochs=1, callbacks=[averaging]).fit(module, loader(one_batch()))
        steps.append(compat.averaged_steps(averaging))
    assert steps == [1, 0, 1]  # without it, a second fit of as many steps is not averaged


def test_an_average_is_kept_seen_and_swapped(tmp_path, module):
    """`WeightAveraging._device`, `._average_model` and `._swap_models`."""
    averaging = WeightAveraging(avg_fn=lambda average, current, _: average / 2 + current / 2)
    compat.keep_average_on(averaging, torch.device("cpu"))
    assert not compat.is_averaging(averaging)
    assert not compat.has_average(averaging)
    checks = []

    def start(trainer, pl_module):
        checks.append((compat.is_averaging(averaging), compat.has_average(averaging)))

    def batch_end(trainer, pl_module):
        current = [weight.clone() for weight in pl_module.parameters()]
        compat.swap_average(averaging, pl_module)
        average = [weight.clone() for weight in pl_module.parameters()]
        compat.swap_average(averaging, pl_module)
        again = list(pl_module.parameters())
        checks.append(compat.has_average(averaging))
        checks.append(all(map(torch.equal, current, again)))
        checks.append(all(map(torch.equal, current, average)))

    callbacks = [averaging, Within(start, batch_end)]
    trainer_of(tmp_path, max_epochs=1, callbacks=callbacks).fit(
        module, loader(one_batch(), one_batch())
    )
    # The first step is copied, the second one is averaged.
    assert checks == [(True, False), True, True, True, True, True, False]


def test_buffers_are_copied_into_an_average(tmp_path, module):
    averaging, name = WeightAveraging(), "net.layers.1.running_mean"
    compat.copy_into_average(averaging, module, [name])  # before there is one
    copied = []

    def batch_end(trainer, module):
        copies = (compat.average_of(averaging)[name], module.get_buffer(name))
        copied.append(torch.equal(*copies))
        compat.copy_into_average(averaging, module, [name])
        copied.append(torch.equal(*copies))

    callbacks = [averaging, Within(batch_end=batch_end)]
    trainer_of(tmp_path, max_epochs=1, callbacks=callbacks).fit(
        module, loader(one_batch(), one_batch())
    )
    assert copied == [True, True, False, True]  # the first step is copied by itself


def test_a_fused_optimizer_is_clipped_in_mixed_precision():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 5.0)
    adam = torch.optim.Adam([weight], fused=True)
    clip = MixedPrecision("bf16-mixed", "cpu").clip_gradients
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        clip(adam, 1.0)
    compat.let_clip(adam)
    clip(adam, 1.0)
    torch.testing.assert_close(weight.grad.norm(), torch.tensor(1.0))


def test_a_function_is_called_after_all_hooks_of_a_step(tmp_path, module):
    calls = []
    # The module's own callback is the one that calls `before_clipping`.
    module.optimization.guard = lambda trainer: calls.append("before") is None
    module.on_before_optimizer_step = lambda optimizer: calls.append("hook")
    module.configure_gradient_clipping = lambda *_, **__: calls.append("clipping")
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, loader(one_batch(), one_batch()))
    assert calls == 2 * ["hook", "before", "clipping"]
    assert "_clip_gradients" not in vars(trainer.precision_plugin)


def test_kernels_over_several_tensors():
    """`torch._foreach_lerp_` and `torch._foreach_copy_`."""
    averages = [torch.zeros(3), torch.ones(2)]
    compat.lerp_(averages, [torch.ones(3), torch.zeros(2)], 0.25)
    assert averages[0].tolist() == [0.25] * 3
    assert averages[1].tolist() == [0.75] * 2
    compat.copy_(averages, [torch.ones(3), torch.zeros(2)])
    assert [tensor.tolist() for tensor in averages] == [[1.0] * 3, [0.0] * 2]


def test_layers_with_running_statistics():
    """`torch.nn.modules.batchnorm._NormBase`."""
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1),
        torch.nn.BatchNorm2d(2),
        torch.nn.BatchNorm2d(2, track_running_stats=False),
        torch.nn.InstanceNorm2d(2, track_running_stats=True),
        torch.nn.SyncBatchNorm(2),
        torch.nn.GroupNorm(1, 2),
    )
    assert compat.norm_layers(layers) == [layers[1], layers[3], layers[4]]


class Hooked(SegmentationModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, *batch[1:]]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] * 2, *batch[1:]]


def test_a_batch_goes_through_all_hooks(tmp_path):
    """`LightningModule._on_before_batch_transfer`."""
    batch, prepared = one_batch(), []
    callback = Within(lambda trainer, _: prepared.append(compat.prepare_batch(trainer, batch)))
    trainer_of(tmp_path, callbacks=[callback]).fit(Hooked(TinyNetwork()), loader(one_batch()))
    torch.testing.assert_close(prepared[0][0], 2 * (batch[0] + 1))


@pytest.mark.parametrize("every", [0, 2])
def test_the_interval_of_new_loaders(tmp_path, every):
    """`trainer.reload_dataloaders_every_n_epochs`."""
    trainer = trainer_of(tmp_path, reload_dataloaders_every_n_epochs=every)
    assert compat.reload_interval(trainer) == every


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, 8),
        ({"limit_train_batches": 3}, 3),
        ({"limit_train_batches": 20}, 8),
        ({"limit_train_batches": 0.5}, 4),
        ({"overfit_batches": 2}, 2),
        ({"overfit_batches": 0.5}, 4),
    ],
)
def test_the_most_batches(options, batches):
    """`trainer.limit_train_batches`."""
    assert compat.most_batches(pl.Trainer(logger=False, **options), 8) == batches


def test_a_loader_reads_other_batches():
    """`DataLoader.__dict__`, `_dataset_kind`, `_iterator`."""
    original = DataLoader(list(range(10)), 4, shuffle=True)
    for copied in (copy.copy(original), copy.copy(DataLoader(Numbers(), 4))):
        compat.set_batches(copied, [5, 6, 7], [[2, 0], [1]])
        compat.forget_workers(copied)
        assert [batch.tolist() for batch in copied] == [[7, 5], [6]]
    assert sorted(torch.cat(list(original)).tolist()) == list(range(10))


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def test_lightning_makes_a_loader_again_of_the_dataset_that_was_put_in():
    """`__pl_saved_args`, `__pl_saved_kwargs` and `__dataset`."""
    for options in ({}, {"dataset": list("abc")}):
        with _replace_dunder_methods(DataLoader, "dataset"):
            made = DataLoader(**options) if options else DataLoader(list("abc"), 2)
        before = made.dataset
        compat.replace_saved_argument(made, before, list("xyz"))
        vars(made)["dataset"] = list("xyz")
        again = _update_dataloader(made, SequentialSampler(list("xyz")))
        assert again.dataset == list("xyz")


def test_the_sampler_within_lightnings_own():
    """`_DatasetSamplerWrapper._sampler`."""
    sampler = SubsetRandomSampler([1, 2])
    assert compat.inner_sampler(DataLoader(range(4), sampler=sampler)) is sampler
    wrapped = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    assert compat.inner_sampler(DataLoader(range(4), sampler=wrapped)) is sampler


def test_shorten(tmp_path):
    trainer = trainer_of(
        tmp_path, max_epochs=50, val_check_interval=100, limit_val_batches=0, limit_test_batches=1.0
    )
    trainer.callbacks.append(pl.Callback())
    compat.shorten(trainer, batches=2, epochs=3, callbacks=[], logger=False)
    assert trainer.callbacks == []
    batches = loader(*[one_batch() for _ in range(5)])
    trainer.fit(module_of(), batches, batches)
    assert (trainer.global_step, trainer.current_epoch) == (6, 3)
    assert "val/dice_a" not in trainer.callback_metrics
    trainer.test(module_of(), batches, verbose=False)
    assert trainer.num_test_batches == [2]


def test_the_module_within_a_compiled_one(module):
    assert compat.compiled_module(torch.compile(module)) is module
    assert compat.compiled_module(module) is module


def test_uncompiled():
    module = nn.Sequential(nn.Linear(1, 1), torch.compile(nn.Linear(1, 1), backend="eager"))
    inner = module[0], module[1].weight
    plain = compat.uncompiled(torch.compile(module, backend="eager"))
    assert plain is module
    assert set(plain.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert (plain[0], plain[1].weight) == inner
