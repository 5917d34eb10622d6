"""Features that Lightning's users expect to work; docs/how-to/lightning.md names these tests."""

import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    CoSegModule,
    LabelCorrection,
    SegmentationModule,
    updated,
)
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import segmentation_loss
from coseg_lightning.methods.pixel_coteaching import PixelCoTeaching
from coseg_lightning.modules.batch import Batch
from coseg_lightning.report.figures import read_rows
from support import (
    Gradients,
    Halves,
    TinyNetwork,
    data_of,
    flipped,
    grads,
    in_a_process,
    loader,
    module_of,
    one_batch,
    trainer_of,
)


class Rates(pl.Callback):
    """Keeps both peers' learning rates at the start of every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


# Schedules -----------------------------------------------------------------------------------


SCHEDULES = {
    "epochs": lambda o: StepLR(o, 2, gamma=0.5),
    "dict": lambda o: {"scheduler": StepLR(o, 1, gamma=0.5), "interval": "epoch", "frequency": 2},
    "steps": lambda o: {"scheduler": CosineAnnealingLR(o, 16), "interval": "step"},
    "one cycle": lambda o: {"scheduler": OneCycleLR(o, 0.1, total_steps=33), "interval": "step"},
    "plateau": lambda o: ReduceLROnPlateau(o, mode="max", patience=0, threshold=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_follow_the_same_curve_as_with_automatic_optimization(tmp_path, name):
    schedule, data = SCHEDULES[name], data_of(tmp_path, size=16)
    curves = []
    for module in (
        module_of(scheduler=schedule),
        SegmentationModule(TinyNetwork(), scheduler=schedule),
    ):
        if name == "plateau":  # so that both schedules follow the same metric
            module.log_dict = lambda values, **options: None
            module.on_validation_epoch_end = log_constant(module)
        rates = Rates()
        trainer_of(tmp_path, max_epochs=8, callbacks=[rates]).fit(module, data)
        curves.append(rates.seen)
    peers, one = curves
    assert len(peers) == 32
    assert [a for a, _ in peers] == pytest.approx([b for _, b in peers])
    assert [a for a, _ in peers] == pytest.approx([rate for (rate,) in one])
    assert len({rate for rate, _ in peers}) > 2


@pytest.mark.parametrize(("batches", "frequency", "accumulated"), [(3, 2, 1), (4, 2, 2)])
def test_a_frequency_counts_batches_as_with_automatic_optimization(
    tmp_path, batches, frequency, accumulated
):
    def schedule(optimizer):
        every = {"interval": "step", "frequency": frequency}
        return {"scheduler": StepLR(optimizer, 1, gamma=0.5), **every}

    curves = []
    for module in (
        module_of(scheduler=schedule),
        SegmentationModule(TinyNetwork(), scheduler=schedule),
    ):
        rates = Rates()
        options = {"callbacks": [rates], "accumulate_grad_batches": accumulated}
        trainer_of(tmp_path, **options).fit(module, loader(*[one_batch(2)] * batches))
        curves.append([seen[0] for seen in rates.seen])
    assert curves[0] == pytest.approx(curves[1])
    assert len(set(curves[0])) == batches


def log_constant(module):
    def log():
        for name in ("val/dice", "val/dice_a"):
            module.log(name, 0.5)

    return log


def test_a_schedule_by_a_metric_that_is_not_there_is_named(tmp_path):
    module = module_of(scheduler=SCHEDULES["plateau"])
    with pytest.raises(InputError, match="monitors 'val/dice_a', which was not logged"):
        trainer_of(tmp_path).fit(module, loader(one_batch()))


def test_each_peer_may_have_its_own_rate(tmp_path):
    rates = Rates()
    module = module_of(lr=(0.1, 0.01), optimizer=torch.optim.SGD, scheduler=SCHEDULES["epochs"])
    trainer_of(tmp_path, max_epochs=3, callbacks=[rates]).fit(module, loader(one_batch()))
    assert rates.seen == [[0.1, 0.01], [0.1, 0.01], [0.05, 0.005]]
    with pytest.raises(InputError, match="one for each of the two peers"):
        module_of(lr=(0.1, 0.2, 0.3))


def test_the_learning_rate_monitor_names_the_peers(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = trainer_of(
        tmp_path, logger=logger, callbacks=[LearningRateMonitor()], log_every_n_steps=1
    )
    trainer.fit(module_of(scheduler=SCHEDULES["epochs"]), loader(one_batch()))
    row = read_rows(tmp_path / "metrics.csv")[0]
    assert {"lr-Adam/net_a", "lr-Adam/net_b"} <= set(row)


def test_a_resumed_fit_goes_on_with_its_schedule(tmp_path):
    def fit(module, epochs, **options):
        rates = Rates()
        trainer = trainer_of(tmp_path, max_epochs=epochs, callbacks=[rates])
        trainer.fit(module, data_of(tmp_path), **options)
        return trainer, rates.seen

    options = {"scheduler": SCHEDULES["epochs"], "ramp_epochs": 1}
    _, whole = fit(module_of(**options), 6)
    trainer, _ = fit(module_of(**options), 3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = fit(module_of(**options), 6, ckpt_path=tmp_path / "half.ckpt")
    assert rest == whole[len(whole) // 2 :]


# Epochs that a module's own hook ends ---------------------------------------------------------


class Short(CoSegModule):
    """Ends each epoch before its third batch, in Lightning's way."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


def short(**options):
    torch.manual_seed(1)
    return Short(TinyNetwork(), TinyNetwork(), noise_level=0.25, **options)


def test_a_short_epoch_steps_the_schedules_once(tmp_path):
    rates = Rates()
    module = short(scheduler=SCHEDULES["epochs"], lr=0.1)
    trainer_of(tmp_path, max_epochs=4, callbacks=[rates]).fit(module, loader(*[one_batch()] * 5))
    rates = [rate for rate, _ in rates.seen]
    assert rates == pytest.approx([0.1] * 6 + [0.05] * 6)  # of two batches and that of the hook


def test_a_plateau_is_stepped_once_after_a_short_epoch(tmp_path):
    rates = Rates()
    plateau = {"mode": "max", "patience": 0, "threshold": 10.0, "factor": 0.5}
    module = short(
        scheduler=lambda o: {
            "scheduler": ReduceLROnPlateau(o, **plateau),
            "monitor": "train/agreement",
        },
        lr=0.1,
    )
    trainer_of(tmp_path, max_epochs=3, callbacks=[rates]).fit(module, loader(*[one_batch()] * 5))
    assert [rate for rate, _ in rates.seen[::3]] == pytest.approx([0.1, 0.1, 0.05])


def test_the_set_is_ranked_after_short_epochs_too(tmp_path):
    rates = []

    class Kept(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(pl_module.alpha)

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking, Kept()])
    trainer.fit(short(), DataLoader(Halves(), 3))
    assert rates == [1, 1, 1, 1, 0.75, 0.75, 0.75, 0.75]
    assert ranking.selected
    assert ranking.evidence.passes == ranking.epochs


def test_a_short_epoch_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "world_size", 2)
    with pytest.raises(
        InputError, match=r"Short.on_train_batch_start returned -1, but with 2 proc"
    ):
        trainer_of(tmp_path).fit(short(), loader(*[one_batch()] * 5))


# Clipping and accumulation -------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_each_peer_is_clipped_by_its_own_norm(tmp_path, precision):
    batches = [one_batch() for _ in range(3)]
    free, clipped = Gradients(), Gradients()
    for watch, value in ((free, None), (clipped, 0.05)):
        options = {"gradient_clip_val": value, "precision": precision}
        trainer = trainer_of(tmp_path, callbacks=[watch], **options)
        trainer.fit(module_of(), loader(*batches))
        assert trainer.gradient_clip_val == value
    assert np.min(free.norms) > 0.05
    assert clipped.norms == pytest.approx(np.full((6, 2), 0.05), rel=1e-3)


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_what_a_hook_makes_of_gradients_is_clipped(tmp_path, base):
    class Larger(base):
        seen = ()

        def on_before_optimizer_step(self, optimizer):
            network = self.net_a if base is CoSegModule else self.net
            self.seen += (float(nn.utils.get_total_norm(grads(network))),)
            for weight in network.parameters():
                weight.grad.nan_to_num_(0).mul_(100)

    class Norms(pl.Callback):
        norms = ()

        def on_train_batch_end(self, trainer, pl_module, *_):
            network = pl_module.net_a if base is CoSegModule else pl_module.net
            self.norms += (float(nn.utils.get_total_norm(grads(network))),)

    torch.manual_seed(1)
    module, norms = Larger(*[TinyNetwork() for _ in Larger.network_names]), Norms()
    options = {"gradient_clip_val": 0.01, "callbacks": [norms], "max_epochs": 1}
    bad = torch.full_like(one_batch()[0], torch.nan), one_batch()[1]
    trainer_of(tmp_path, **options).fit(module, loader(one_batch(), bad))
    assert module.seen[0] > 0.05  # as Lightning shows it, before it clips
    assert np.isnan(module.seen[1])
    assert norms.norms == pytest.approx([0.01, 0], rel=1e-3)
    assert sum(module.optimization.skipped) == (base is CoSegModule)  # peer b alone


def test_clipping_by_value(tmp_path):
    module = module_of()
    options = {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value", "max_epochs": 1}
    trainer_of(tmp_path, **options).fit(module, loader(one_batch()))
    largest = [
        float(part.abs().max()) for net in (module.net_a, module.net_b) for part in grads(net)
    ]
    assert max(largest) == pytest.approx(0.001)


@pytest.mark.parametrize("batches", [4, 5])
def test_accumulated_batches_are_one_step(tmp_path, batches):
    """The last step of an epoch may have fewer batches, and is taken all the same."""
    all_batches = [one_batch() for _ in range(batches)]
    module = module_of(noise_level=0.0, optimizer=torch.optim.SGD)
    for net in (module.net_a, module.net_b):
        net.layers[1] = nn.Identity()  # BatchNorm's statistics are those of each batch
    reference = copy.deepcopy(module)
    trainer = trainer_of(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(module, loader(*all_batches))
    assert trainer.global_step == trainer.estimated_stepping_batches == (batches + 1) // 2
    for net in (reference.net_a, reference.net_b):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, weight_decay=2e-5)
        for first in range(0, batches, 2):
            optimizer.zero_grad()
            for images, masks in all_batches[first : first + 2]:
                (module.losses(net(images), masks).mean() / 2).backward()
            optimizer.step()
    torch.testing.assert_close(module.net_a.state_dict(), reference.net_a.state_dict())
    torch.testing.assert_close(module.net_b.state_dict(), reference.net_b.state_dict())


@pytest.mark.parametrize(
    ("callback", "way"),
    [
        (StochasticWeightAveraging(1e-3), r"AveragedWeights\(share=1\)"),
        (GradientAccumulationScheduler({1: 2}), r"Trainer\(accumulate_grad_batches=...\)"),
    ],
)
def test_what_lightning_cannot_do_for_two_peers_is_refused_with_our_way(tmp_path, callback, way):
    with pytest.raises(InputError, match=way):
        trainer_of(tmp_path, callbacks=[callback]).fit(module_of(), loader(one_batch()))


# Precision and compilation -------------------------------------------------------------------


class FakeScaler(torch.amp.GradScaler):
    """A scaler for a CPU that scales by 4 and finds infinities, as on a GPU."""

    def __init__(self):
        super().__init__("cpu", init_scale=4.0)


def test_16_mixed_clips_unscaled_gradients(tmp_path):
    """float16 needs a GPU; the scaler's part of the step runs here in float32."""
    plugin = MixedPrecision("16-mixed", "cpu", scaler=FakeScaler())
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    batches = [one_batch() for _ in range(3)]
    states = []
    for plugins in ([plugin], []):
        module = module_of()
        trainer_of(tmp_path, plugins=plugins, gradient_clip_val=0.05).fit(module, loader(*batches))
        states.append(module.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["module", "networks"])
def test_compiled_modules_and_networks_train(tmp_path, what):
    batch, states = one_batch(), []
    for compiled in (False, True):
        module = module_of()
        trained = module
        if compiled and what == "module":
            trained = torch.compile(module, backend="eager")
        elif compiled:
            for net in (module.net_a, module.net_b):
                net.compile(backend="eager")
        # Of a whole module, what would be compiled again for another name in a log is not.
        limit = 1 if what == "module" else torch._dynamo.config.cache_size_limit
        with torch._dynamo.config.patch(cache_size_limit=limit):
            trainer_of(tmp_path).fit(trained, loader(batch))
        states.append(module.state_dict())
    torch.testing.assert_close(states[0], states[1])


# Checkpoints, stopping, averaging ------------------------------------------------------------


def test_the_best_checkpoint_by_a_peers_metric(tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val/dice_a", mode="max", save_last=True)
    trainer = trainer_of(tmp_path, max_epochs=3, callbacks=[best], enable_checkpointing=True)
    trainer.fit(module_of(), data_of(tmp_path))
    assert float(best.best_model_score) >= float(trainer.callback_metrics["val/dice_a"]) - 1e-6
    assert (tmp_path / "best" / "last.ckpt").is_file()


def test_checkpoints_every_few_steps(tmp_path):
    saved = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=2, save_top_k=-1)
    trainer = trainer_of(tmp_path, max_epochs=3, callbacks=[saved], enable_checkpointing=True)
    trainer.fit(module_of(), data_of(tmp_path))  # two batches per epoch
    steps = [
        torch.load(p, weights_only=True)["global_step"] for p in (tmp_path / "steps").iterdir()
    ]
    assert sorted(steps) == [2, 4, 6]


def test_early_stopping_ends_with_a_ranking(tmp_path):
    stop = EarlyStopping("val/dice_a", mode="max", patience=1, min_delta=2.0)
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, max_epochs=20, callbacks=[stop, ranking])
    trainer.fit(module_of(), data_of(tmp_path))
    assert trainer.current_epoch < 5
    assert len(ranking.ranking.ids) == 11


@pytest.mark.parametrize("make", [AveragedWeights, WeightAveraging])
def test_averaged_weights_are_those_of_the_checkpoint(tmp_path, make):
    last = ModelCheckpoint(tmp_path / "last", save_on_train_epoch_end=True, filename="last")
    module = module_of()
    trainer = trainer_of(tmp_path, callbacks=[make(), last], enable_checkpointing=True)
    trainer.fit(module, data_of(tmp_path))
    saved = torch.load(tmp_path / "last" / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved, dict(module.state_dict()))


# Loggers -------------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer_of(tmp_path, logger=logger, log_every_n_steps=1).fit(module_of(), data_of(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"train/loss_a", "train/keep_rate", "val/dice_b"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("val/dice_a")] == [1, 3]  # two batches per epoch


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer_of(tmp_path, logger=logger, log_every_n_steps=1).fit(module_of(), data_of(tmp_path))
    assert logger.experiment.summary["val/dice_a"] >= 0
    assert logger.experiment.summary["trainer/global_step"] == 3
    logger.experiment.finish()


def test_sync_batchnorm_reaches_both_peers():
    """Its layers work only on GPUs, but their insertion can be tested anywhere."""
    module = TorchSyncBatchNorm().apply(module_of())
    for net in (module.net_a, module.net_b):
        assert isinstance(net.layers[1], nn.SyncBatchNorm)


# Trainer's switches --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 3, "max_epochs": -1}, 3),
        ({"limit_train_batches": 1, "max_epochs": 2}, 2),
        ({"limit_train_batches": 0.5, "max_epochs": 2}, 2),
        ({"overfit_batches": 1, "max_epochs": 2}, 2),
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 2}, 2),
        ({"check_val_every_n_epoch": 2, "max_epochs": 2}, 4),
        ({"val_check_interval": 1, "max_epochs": 2}, 4),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 4),
        ({"detect_anomaly": True, "max_epochs": 1}, 2),
        ({"use_distributed_sampler": False, "deterministic": True, "max_epochs": 1}, 2),
    ],
)
def test_the_trainers_switches(tmp_path, options, steps):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    trainer = trainer_of(tmp_path, **{"callbacks": callbacks, **options})
    trainer.fit(module_of(), data_of(tmp_path))
    assert trainer.global_step == steps
    assert len(callbacks[0].ranking.ids) == 11
    assert callbacks[1].layer is not None


def test_validate_test_and_predict(tmp_path):
    module, data = module_of(), data_of(tmp_path)
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "scores.csv")])
    assert 0 <= trainer.validate(module, data, verbose=False)[0]["val/dice_a"] <= 1
    assert 0 <= trainer.test(module, data, verbose=False)[0]["test/dice_b"] <= 1
    batches = trainer.predict(module, data.test_dataloader())
    assert torch.cat(batches).shape == (5, 2, 32, 32)
    assert not (tmp_path / "scores.csv").exists()


# Batches and augmentation --------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """Samples `(image, mask)`, with the changes that a project makes to them."""

    def __init__(self, change, size=8):
        self.change, self.size = change, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(1, 16, 16, generator=generator)
        return self.change(image, (image[0] > 0).long())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, mask: (image, 255 * mask), "divide 0/255 masks by 255"),
        (lambda image, mask: (image, 255.0 * mask), "divide 0/255 masks by 255"),
        (lambda image, mask: (image, mask / 255), "which is not a class id"),
        (lambda image, mask: (image, 0.5 * mask), "which is not a class id"),
    ],
)
def test_masks_that_are_no_class_ids_are_refused_with_the_remedy(tmp_path, change, message):
    train = DataLoader(Pairs(change), batch_size=4)
    for module in (module_of(), SegmentationModule(TinyNetwork())):
        with pytest.raises(InputError, match=message):
            trainer_of(tmp_path).fit(module, train)


def test_unlabelled_pixels_beside_foreground_are_fine(tmp_path):
    def change(image, mask):
        mask[0] = 255
        return image, mask

    trainer = trainer_of(tmp_path)
    trainer.fit(module_of(), DataLoader(Pairs(change), batch_size=4))
    assert 0 < float(trainer.callback_metrics["train/loss_a"]) < 9


def brightened(image, mask):
    return image + torch.rand(()), mask


def plain(image, mask):
    return image, mask


def test_masks_augmented_inside_the_dataset_are_not_corrected(tmp_path):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    train = DataLoader(Pairs(flipped), batch_size=4)
    with pytest.raises(InputError, match="augment outside of this dataset"):
        trainer_of(tmp_path, callbacks=callbacks).fit(module_of(), train)
    # The remedy that the message names works:
    callbacks = [
        CorruptionRanking(tmp_path / "scores.csv", dataset=Pairs(plain)),
        LabelCorrection(tmp_path / "labels"),
    ]
    trainer_of(tmp_path, callbacks=callbacks).fit(module_of(), train)
    assert len(updated(Pairs(plain), tmp_path / "labels")) == 8


def test_images_augmented_inside_the_dataset_are_ranked_with_a_warning(tmp_path):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    with pytest.warns(UserWarning, match="returns different images each time"):
        trainer_of(tmp_path, callbacks=callbacks).fit(
            module_of(), DataLoader(Pairs(brightened), batch_size=4)
        )


def test_looking_for_augmentation_changes_no_training(tmp_path):
    states = []
    for callbacks in ([], [CorruptionRanking(tmp_path / "scores.csv")]):
        module = module_of(selection="relative")
        torch.manual_seed(3)
        train = DataLoader(Pairs(brightened), batch_size=4, shuffle=True)
        trainer_of(tmp_path, max_epochs=1, callbacks=callbacks).fit(module, train)
        states.append(module.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


# Networks ------------------------------------------------------------------------------------


class Named(nn.Module):
    """A network whose logits are one of several outputs, as in torchvision."""

    def __init__(self, name):
        super().__init__()
        self.net, self.name, self.second = TinyNetwork(), name, TinyNetwork()

    def forward(self, images):
        return {self.name: self.net(images), "aux": self.second(images)}


@pytest.mark.parametrize("step", ["picks", "joint"])
@pytest.mark.parametrize("name", ["out", "logits"])
def test_networks_with_named_outputs(tmp_path, name, step):
    module = CoSegModule(Named(name), Named(name), noise_level=0.5, step=step)
    before = [next(net.second.parameters()).clone() for net in (module.net_a, module.net_b)]
    trainer_of(tmp_path).fit(module, loader(one_batch()))
    for net, weight in zip((module.net_a, module.net_b), before, strict=True):
        assert not torch.equal(next(net.second.parameters()), weight)
    with pytest.raises(InputError, match="must be named out or logits"):
        CoSegModule(Named("mask"), Named("mask"))(torch.randn(1, 1, 8, 8))


class DifferentAux(Named):
    """The auxiliary output has another shape."""

    def forward(self, images):
        outputs = super().forward(images)
        return {**outputs, "aux": outputs["aux"][:, :1]}


def test_an_auxiliary_output_that_labels_do_not_fit_is_named():
    with pytest.raises(InputError, match=r"returned \(1, 1, 8, 8\) as aux beside its logits"):
        SegmentationModule(DifferentAux("out"))(torch.randn(1, 1, 8, 8))
    # The auxiliary output is not used there.
    SegmentationModule(DifferentAux("out")).eval()(torch.randn(1, 1, 8, 8))


class DeepSupervision(Named):
    """A network with several auxiliary outputs, some of them smaller."""

    def forward(self, images):
        aux = self.second(images)
        return {"out": self.net(images), "aux": [aux, nn.functional.avg_pool2d(aux, 2)]}


def test_deep_supervision():
    images, masks = one_batch()
    module = SegmentationModule(DeepSupervision("out"))
    used, aux = module.net.net(images), module.net.second(images)
    small = nn.functional.avg_pool2d(aux, 2)
    larger = nn.functional.interpolate(small, masks.shape[-2:], mode="bilinear")
    expected = segmentation_loss(used, masks)
    expected += 0.5 * (segmentation_loss(aux, masks) + segmentation_loss(larger, masks))
    torch.testing.assert_close(module.losses(images, masks), expected)


def test_auxiliary_outputs_learn_by_the_method():
    """Where pixels are picked and not samples, auxiliary outputs learn from picked pixels too."""
    images, masks = one_batch()
    peers = PixelCoTeaching(Named("out"), Named("out"), ramp_epochs=0)
    peers.trainer = trainer_of(".")
    losses = []
    peers.manual_backward = losses.append
    peers.learn_jointly(Batch(images, masks))
    batch = Batch(images, masks)
    (a, b), (c, d) = ((net.net(images), net.second(images)) for net in (peers.net_a, peers.net_b))
    expected = sum(peers.peer_losses(a, c, batch)[:2])
    expected += 0.5 * peers.peer_losses(b, c, batch)[0]
    expected += 0.5 * peers.peer_losses(a, d, batch)[1]
    torch.testing.assert_close(losses[0], expected)


def test_an_auxiliary_output_learns_from_what_its_network_learns_from():
    torch.manual_seed(0)
    images, masks = one_batch()
    module = SegmentationModule(Named("out"))
    used, second = module.net.net(images), module.net.second(images)
    expected = segmentation_loss(used, masks) + 0.5 * segmentation_loss(second, masks)
    torch.testing.assert_close(module.losses(images, masks), expected)

    class Picky(CoSegModule):
        def peer_losses(self, logits_a, logits_b, sample):
            picks = torch.tensor([0, 2]), torch.tensor([], dtype=torch.long)
            return logits_a.sum() * 0, logits_b.sum() * 0, picks

    peers = Picky(Named("out"), Named("out"))
    peers.net_b.auxiliary_weight = 2.0
    losses = []
    peers.manual_backward = losses.append
    peers.learn_jointly(Batch(images, masks))
    of_b = segmentation_loss(peers.net_b.second(images), masks)[[0, 2]].mean()
    torch.testing.assert_close(losses[0], 2 * of_b)  # the first peer picked them for the second


ENCODERS = {
    "dpt": "tu-vit_tiny_patch16_224",
    "segformer": "mit_b0",
    "upernet": "tu-mobilenetv3_small_050",
}


QUICK = ("segformer", "unet")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    ],
)
def test_a_pair_of_every_architecture_takes_a_step(tmp_path, name):
    def body():
        encoder = ENCODERS.get(name, "resnet18")
        module = CoSegModule(name, encoder_name=encoder, in_channels=1, noise_level=0.5)
        before = [next(net.parameters()).clone() for net in (module.net_a, module.net_b)]
        images, masks = torch.randn(2, 1, 120, 133), torch.randint(0, 2, (2, 120, 133))
        trainer = trainer_of(tmp_path, max_epochs=1)
        trainer.fit(module, loader((images, masks)))
        assert trainer.global_step == 1
        for net, weight in zip((module.net_a, module.net_b), before, strict=True):
            assert not torch.equal(next(net.parameters()), weight)

    assert in_a_process(body) == 0  # some take more than a gigabyte


def test_a_network_and_a_name_are_a_pair(tmp_path):
    nets = "fpn", smp.create_model("linknet", "resnet18", None, in_channels=1, classes=2)
    module = CoSegModule(*nets, in_channels=1, noise_level=0.5)
    images, masks = torch.randn(2, 1, 64, 64), torch.randint(0, 2, (2, 64, 64))
    trainer_of(tmp_path, max_epochs=1).fit(module, loader((images, masks)))
    assert [type(net).__name__ for net in (module.net_a, module.net_b)] == ["FPN", "Linknet"]


def test_torchvision_networks(tmp_path):
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    nets = [
        lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
        for _ in range(2)
    ]
    images, masks = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    trainer_of(tmp_path, max_epochs=1).fit(CoSegModule(*nets), loader((images, masks)))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_channels_and_classes(tmp_path, channels, classes):
    module = CoSegModule(
        "unet_classic", in_channels=channels, classes=classes, base_channels=2, noise_level=0.5
    )
    images = torch.randn(4, channels, 20, 27)
    masks = torch.randint(0, max(2, classes), (4, 20, 27))
    trainer_of(tmp_path, max_epochs=1).fit(module, loader((images, masks)))
    assert module(images)[0].shape == (4, classes, 20, 27)
