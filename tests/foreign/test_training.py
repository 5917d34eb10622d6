"""Training in other people's projects: subclasses, hooks, and trainers that are used again."""

import warnings
from enum import Enum
from functools import partial
from types import MethodType

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    EarlyStopping,
    ModelCheckpoint,
)
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner import Tuner
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import ConcatDataset, DataLoader, Subset, SubsetRandomSampler
from torchmetrics import SumMetric

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    CoSegModule,
    LabelCorrection,
    LabelStore,
    NoiseLevelEstimation,
    SegmentationModule,
)
from coseg_lightning.callbacks import corruption_ranking
from coseg_lightning.errors import InputError
from coseg_lightning.methods.pixel_coteaching import PixelCoTeaching
from coseg_lightning.modules.batch import Batch
from support import (
    Gradients,
    Halves,
    OwnTested,
    TinyNetwork,
    flipped,
    loader,
    module_of,
    one_batch,
    run_of,
    trainer_of,
)


class OwnHooks(CoSegModule):
    """Overrides hooks without super(), since Lightning's own are empty."""

    def setup(self, stage):
        pass

    def on_before_optimizer_step(self, optimizer):
        pass

    def on_train_epoch_end(self):
        pass


def test_a_subclass_with_hooks_of_its_own_is_clipped_and_scheduled(tmp_path):
    def scheduler(optimizer):
        steps = module.trainer.estimated_stepping_batches
        assert steps == 4
        return StepLR(optimizer, 1, gamma=0.5)

    torch.manual_seed(1)
    module = OwnHooks(TinyNetwork(), TinyNetwork(), noise_level=0.5, scheduler=scheduler)
    watch = Gradients()
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "callbacks": [watch]}
    trainer = trainer_of(tmp_path, **options)
    trainer.fit(module, loader(*[one_batch() for _ in range(4)]))
    assert trainer.global_step == 4
    assert watch.norms[1::2] == pytest.approx(np.full((4, 2), 0.05), rel=1e-3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_hooks_that_would_never_be_called_are_refused(tmp_path):
    class Own(CoSegModule):
        def configure_gradient_clipping(self, optimizer, *values):
            raise AssertionError

    module = Own(TinyNetwork(), TinyNetwork())
    with pytest.raises(InputError, match="configure_gradient_clipping would never be called"):
        trainer_of(tmp_path).fit(module, loader(one_batch()))


def with_adapter(module_class):
    class Own(module_class):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.adapter = nn.Conv2d(1, 1, 1)

        def forward(self, images):
            return super().forward(self.adapter(images))

    return Own


def test_a_part_that_a_subclass_adds_is_trained_with_the_network(tmp_path):
    module = with_adapter(SegmentationModule)(TinyNetwork())
    before = module.adapter.weight.detach().clone()
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))
    assert not torch.equal(module.adapter.weight, before)
    assert [group["name"] for group in module.optimizers().param_groups] == ["net", "others"]


def test_a_part_that_belongs_to_no_peer_is_refused(tmp_path):
    module = with_adapter(CoSegModule)(TinyNetwork(), TinyNetwork())
    trainer = trainer_of(tmp_path, max_epochs=1)
    with pytest.raises(InputError, match="Own.adapter.bias is trainable but belongs to neither"):
        trainer.fit(module, loader(one_batch()))
    module.adapter.requires_grad_(False)
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))


def test_a_network_with_another_number_of_outputs_is_refused(tmp_path):
    for outputs, classes in ((2, 3), (3, 2)):
        for module in (
            SegmentationModule(TinyNetwork(classes=outputs), classes=classes),
            CoSegModule(*(TinyNetwork(classes=outputs) for _ in "ab"), classes=classes),
        ):
            with pytest.raises(InputError, match=f"gives {outputs} outputs .* classes={outputs}"):
                trainer_of(tmp_path).fit(module, loader(one_batch()))


def test_the_class_255_needs_another_id_for_unlabelled_pixels(tmp_path):
    images, masks = one_batch()
    batches = loader((images, 255 * masks))
    module = SegmentationModule(TinyNetwork(classes=260), classes=260)
    with pytest.raises(InputError, match="hold 255, which is one of 260 classes and also means"):
        trainer_of(tmp_path).fit(module, batches)
    module = SegmentationModule(TinyNetwork(classes=260), classes=260, ignore_index=-1)
    trainer_of(tmp_path).fit(module, batches)


def test_numbers_of_numpy_and_torch_are_saved_as_plain_ones():
    module = module_of(np.float64(0.25), lr=(np.float32(0.5), torch.tensor(0.25)))
    assert type(module.noise_level) is type(module.hparams.noise_level) is float
    assert module.hparams.lr == (0.5, 0.25)
    assert type(SegmentationModule(TinyNetwork(), lr=np.float32(0.5)).hparams.lr) is float


def test_a_trainer_whose_fit_failed_still_clips_and_accumulates(tmp_path):
    (tmp_path / "scores.csv").touch()
    watch = Gradients()
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), watch]
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "max_epochs": 1}
    trainer = trainer_of(tmp_path, callbacks=callbacks, **options)
    train = DataLoader(Halves(), batch_size=3)
    with pytest.raises(InputError, match="exists"):
        trainer.fit(module_of(), train)
    (tmp_path / "scores.csv").unlink()
    trainer.fit(module_of(), train)
    assert trainer.global_step == 2
    assert watch.norms[1] == pytest.approx([0.05, 0.05], rel=1e-3)


def test_doubts_of_a_fit_that_failed_are_forgotten(tmp_path):
    class Fails(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                assert pl_module.selection.excluded_ids is not None
                raise RuntimeError("stopped")

    module, train = module_of(), DataLoader(Halves(), batch_size=4)
    ranking = partial(CorruptionRanking, tmp_path / "scores.csv")
    with pytest.raises(RuntimeError, match="stopped"):
        trainer_of(tmp_path, max_epochs=4, callbacks=[ranking(), Fails()]).fit(module, train)
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[ranking()])
    with pytest.warns(UserWarning, match="ranking after half of the epochs, but 1 epoch is trai"):
        trainer.fit(module, train)
    assert trainer.callback_metrics["train/keep_rate"] == 1


def test_two_optimizers_are_refused(tmp_path):
    class Two(CoSegModule):
        def configure_optimizers(self):
            return [torch.optim.Adam(net.parameters()) for net in (self.net_a, self.net_b)]

    with pytest.raises(InputError, match="returned 2 optimizers; return one"):
        trainer_of(tmp_path).fit(Two(TinyNetwork(), TinyNetwork()), loader(one_batch()))


@pytest.mark.parametrize(
    "options", [{"max_epochs": 1000, "max_steps": 24}, {"max_epochs": 8, "max_steps": -1}]
)
def test_the_nearer_limit_decides_when_the_set_is_ranked(tmp_path, options):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking], **options)
    trainer.fit(module_of(), DataLoader(Halves(), batch_size=4))
    assert trainer.callback_metrics["train/keep_rate"] == 0.5


STEPS_OF_8_EPOCHS = [{"max_epochs": 1000, "max_steps": 24}, {"max_epochs": -1, "max_steps": 24}]


@pytest.mark.parametrize("limits", STEPS_OF_8_EPOCHS)
@pytest.mark.parametrize("kind", [CoSegModule, PixelCoTeaching])
def test_the_keep_rate_falls_within_a_limit_of_steps(tmp_path, kind, limits):
    def rates(**options):
        torch.manual_seed(1)
        nets = TinyNetwork(), TinyNetwork()
        module = kind(*nets, noise_level=0.5, selection="relative")
        trainer = trainer_of(tmp_path, **options)
        trainer.fit(module, DataLoader(Halves(), batch_size=4))
        logged = float(trainer.callback_metrics["train/keep_rate"])
        return logged, [weight.sum().item() for weight in module.parameters()]

    assert rates(**limits) == rates(max_epochs=8)


@pytest.mark.parametrize("limits", STEPS_OF_8_EPOCHS)
def test_levels_and_scores_go_by_a_limit_of_steps(tmp_path, limits):
    known = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            known.append(pl_module.noise.estimate is not None)

    ranking = CorruptionRanking(tmp_path / "scores.csv", epochs=3)
    callbacks = [NoiseLevelEstimation(), ranking, Watch()]
    module = module_of(noise_level="auto")
    trainer = trainer_of(tmp_path, callbacks=callbacks, **limits)
    trainer.fit(module, DataLoader(Halves(), batch_size=4))
    assert known == [False] * 3 + [True] * 5
    assert ranking.evidence.passes == 3


@pytest.mark.parametrize("way", ["same trainer", "checkpoint"])
def test_peers_select_soon_where_a_training_is_prolonged(tmp_path, way):
    rates = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(pl_module.alpha)

    module, train = module_of(), DataLoader(Halves(), batch_size=4)
    ranking, longer = (CorruptionRanking(tmp_path / f"{name}.csv") for name in ("one", "two"))
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking])
    trainer.fit(module, train)
    if way == "checkpoint":
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        trainer = trainer_of(tmp_path, max_epochs=16, callbacks=[longer, Watch()])
        trainer.fit(module_of(), train, ckpt_path=tmp_path / "a.ckpt")
    else:
        trainer.callbacks[:] = [longer, Watch()]
        trainer.fit_loop.max_epochs = 16  # ranked after 8, 10, 12 and 14
        trainer.fit(module, train)
    assert rates == [0.5 if way == "checkpoint" else 1.0, *[0.5] * 7]


def test_training_that_ends_before_the_first_ranking_warns(tmp_path):
    stop = EarlyStopping("loss", patience=0, min_delta=9.0)
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), stop]
    with pytest.warns(
        UserWarning, match=r"of max_epochs=20, so the peers learnt from all samples alike"
    ):
        trainer_of(tmp_path, max_epochs=20, callbacks=callbacks).fit(
            module_of(), DataLoader(Halves(), batch_size=4)
        )


def test_a_finished_checkpoint_says_that_nothing_is_ranked(tmp_path):
    train = DataLoader(Halves(), batch_size=4)
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module_of(), train)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    callbacks = [CorruptionRanking(tmp_path / "scores.csv")]
    with pytest.warns(UserWarning, match="nothing was ranked"):
        trainer_of(tmp_path, max_epochs=1, callbacks=callbacks).fit(
            module_of(), train, ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


@pytest.mark.parametrize(("end", "batches"), [(nn.Sigmoid(), 16), (nn.Softmax(dim=1), 1)])
def test_networks_that_give_probabilities_are_noticed(tmp_path, end, batches):
    def net():
        return nn.Sequential(TinyNetwork(), end)

    train = loader(*[one_batch(2)] * batches)
    for module in (CoSegModule(net(), net()), SegmentationModule(net())):
        with pytest.warns(UserWarning, match="must return logits"):
            trainer_of(tmp_path, max_epochs=1).fit(module, train)


def test_logits_that_begin_between_0_and_1_are_no_probabilities(tmp_path, recwarn):
    torch.manual_seed(1)
    net = TinyNetwork()
    with torch.no_grad():
        net.layers[-1].weight.mul_(0.01)
        net.layers[-1].bias.copy_(torch.tensor([0.2, 0.1]))
    module, (images, masks) = SegmentationModule(net, lr=0.03), one_batch(2)
    assert 0 < float(module(images).min()) < float(module(images).max()) < 1
    trainer_of(tmp_path, max_epochs=20).fit(module, loader((images, masks)))
    assert not [w for w in recwarn if "must return logits" in str(w.message)]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_averaged_weights_in_other_precisions(tmp_path, precision):
    trainer = trainer_of(tmp_path, precision=precision, callbacks=[AveragedWeights()])
    trainer.fit(module_of(), loader(*[one_batch() for _ in range(2)]))
    assert torch.isfinite(trainer.callback_metrics["train/loss_a"])


def test_a_trainer_of_peers_may_train_another_module_afterwards(tmp_path):
    def scheduler(optimizer):
        return StepLR(optimizer, 1, gamma=0.5)

    trainer = trainer_of(tmp_path, max_epochs=2)
    train = loader(one_batch())
    trainer.fit(module_of(scheduler=scheduler), train)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(SegmentationModule(TinyNetwork(), scheduler=scheduler, lr=1.0), train)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25)


def test_one_network_is_not_spoilt_by_an_image_that_holds_nan(tmp_path):
    images, masks = one_batch()
    images[0, 0, 3, 3] = float("nan")
    module = SegmentationModule(TinyNetwork())
    trainer = trainer_of(tmp_path)
    with pytest.warns(UserWarning, match="gradient of the network is not finite"):
        trainer.fit(module, loader((images, masks), one_batch()))
    assert module.optimization.skipped == [2]
    assert trainer.callback_metrics["train/skipped"] == 1  # in the last epoch
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_callbacks_find_the_loss_of_a_step(tmp_path):
    class Losses(pl.Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]))

    losses = Losses()
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[losses])
    trainer.fit(module_of(), loader(one_batch(), one_batch()))
    metrics = trainer.callback_metrics
    mean = (metrics["train/loss_a"] + metrics["train/loss_b"]) / 2
    assert np.mean(losses.losses) == pytest.approx(float(mean), rel=1e-5)


def test_hooks_before_gradients_are_reset_are_called_once_a_step(tmp_path):
    class Averaging(pl.Callback):
        calls = 0

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            assert optimizer is trainer.optimizers[0]
            self.calls += 1

    class Own(CoSegModule):
        calls = 0

        def on_before_zero_grad(self, optimizer):
            self.calls += 1

    module, callback = Own(TinyNetwork(), TinyNetwork()), Averaging()
    trainer = trainer_of(tmp_path, callbacks=[callback], accumulate_grad_batches=2)
    trainer.fit(module, loader(*[one_batch() for _ in range(4)]))
    assert (trainer.global_step, module.calls, callback.calls) == (4, 4, 4)


def test_lightning_finds_a_learning_rate_for_both_peers(tmp_path):
    module = module_of(lr=1e-6)
    finder = Tuner(trainer_of(tmp_path, max_epochs=20)).lr_find(
        module, DataLoader(Halves(), batch_size=4), num_training=20
    )
    assert module.lr == finder.suggestion() > 1e-6
    trainer = trainer_of(tmp_path)
    trainer.fit(module, DataLoader(Halves(), batch_size=4))
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {module.lr}


@pytest.mark.parametrize("kind", ["peers", "network"])
def test_a_checkpoint_says_which_networks_it_needs(tmp_path, kind):
    def made():
        if kind == "peers":
            return module_of(optimizer=torch.optim.SGD)
        return SegmentationModule(TinyNetwork(), optimizer=torch.optim.SGD)

    given = ["net_a", "net_b"] if kind == "peers" else ["net"]
    module = made()
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, loader(one_batch()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    wanted = ", ".join(f"{name}=..." for name in given)
    load = partial(type(module).load_from_checkpoint, tmp_path / "a.ckpt", weights_only=True)
    with (
        pytest.warns(UserWarning, match=r"trained with torch.optim.sgd.SGD, but this .*adam.Adam"),
        pytest.raises(
            InputError, match=rf"a support.TinyNetwork.*load_from_checkpoint\(path, {wanted}"
        ),
    ):
        load()
    again = load(**{name: TinyNetwork() for name in given}, optimizer=torch.optim.SGD)
    torch.testing.assert_close(again.state_dict(), module.state_dict())


class Lazy(nn.Module):
    """Knows its sizes from the first batch on."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.LazyConv2d(2, 1))

    def forward(self, images):
        return self.layers(images)


def test_networks_that_learn_their_sizes_are_trained(tmp_path):
    module = CoSegModule(Lazy(), Lazy(), noise_level=0.25)
    trainer_of(tmp_path).fit(module, loader(one_batch()))
    assert module.net_a.layers[0].weight.grad is not None
    for unknown in (CoSegModule(Lazy(), Lazy(), noise_level=0.25), SegmentationModule(Lazy())):
        trainer = trainer_of(tmp_path, callbacks=[AveragedWeights()])
        with pytest.raises(InputError, match=r"^LazyConv2d knows its sizes .*; pass a batch throu"):
            trainer.fit(unknown, loader(one_batch()))


def test_peers_that_share_a_part_are_refused():
    shared = nn.Conv2d(1, 4, 3, padding=1)
    nets = [nn.Sequential(shared, nn.Conv2d(4, 2, 1)) for _ in range(2)]
    with pytest.raises(InputError, match="The peers share parameters"):
        CoSegModule(*nets)


def test_the_selection_is_saved_though_a_subclass_calls_no_super(tmp_path):
    class Own(CoSegModule):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 1

        def on_load_checkpoint(self, checkpoint):
            assert checkpoint["mine"] == 1

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    def fit(path, *callbacks, **options):
        torch.manual_seed(1)
        module = Own(TinyNetwork(), TinyNetwork(), noise_level=0.5)
        callbacks = [CorruptionRanking(path), *callbacks]
        trainer = trainer_of(tmp_path, max_epochs=6, callbacks=callbacks)
        trainer.fit(module, DataLoader(Halves(), batch_size=4), **options)
        return module.state_dict()

    whole = fit(tmp_path / "whole.csv", Save())
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert len(saved["selection"]["state"]["excluded_ids"][0]) == 6
    resumed = fit(tmp_path / "resumed.csv", ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_what_an_own_configure_optimizers_monitors_is_monitored(tmp_path):
    class Own(CoSegModule):
        mode = "min"

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.03)
            plateau = ReduceLROnPlateau(optimizer, self.mode, patience=0, factor=0.5, threshold=9)
            config = {"scheduler": plateau, "monitor": "train/loss_a"}
            return {"optimizer": optimizer, "lr_scheduler": config}

    module = Own(TinyNetwork(), TinyNetwork())
    trainer = trainer_of(tmp_path, max_epochs=3)
    trainer.fit(module, loader(one_batch()), loader(one_batch()))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.03 / 8)
    Own.mode = "max"
    with pytest.raises(InputError, match=r"mode='max'\) monitors 'train/loss_a', which falls"):
        trainer_of(tmp_path).fit(Own(TinyNetwork(), TinyNetwork()), loader(one_batch()))


@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
def test_gradients_of_batches_that_a_subclass_leaves_out_are_of_no_other_step(tmp_path, skipped):
    class Some(CoSegModule):
        def training_step(self, batch, batch_idx):
            if batch_idx == skipped:
                return None
            return super().training_step(batch, batch_idx)

    class Sum(pl.Callback):
        seen = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grads = [w.grad.norm() for w in pl_module.net_a.parameters()]
            self.norms.append(float(torch.stack(grads).norm()))

    torch.manual_seed(1)
    batch, watch = one_batch(), Sum()
    watch.norms = []
    module = Some(TinyNetwork(), TinyNetwork(), lr=0.0, lambda_2=0.0)
    options = {"accumulate_grad_batches": 2, "max_epochs": 1, "callbacks": [watch]}
    trainer_of(tmp_path, **options).fit(module, loader(*[batch] * 4))
    # Three equal batches: two together, and then the last one, unless none follows.
    assert len(watch.norms) == (1 if skipped == 3 else 2)
    assert watch.norms[1:] == pytest.approx([watch.norms[0] / 2] * (len(watch.norms) - 1), rel=0.05)


# Masks of which a network could learn nothing, and would be right


class Wrong(Halves):
    """Masks of another writing: class id 1 is another number."""

    def __init__(self, foreground, **options):
        super().__init__(**options)
        self.foreground = foreground

    def __getitem__(self, index):
        image, mask, sample_id = super().__getitem__(index)
        return image, mask * self.foreground, sample_id


@pytest.mark.parametrize("make", [partial(CoSegModule, noise_level=0.25), SegmentationModule])
def test_validation_masks_are_checked_as_those_of_training(tmp_path, make):
    nets = [TinyNetwork(), TinyNetwork()][: 2 if isinstance(make, partial) else 1]
    train = DataLoader(Halves(), 4)
    with pytest.raises(InputError, match="All validation masks that were read hold only 0 and 255"):
        trainer_of(tmp_path).fit(make(*nets), train, DataLoader(Wrong(255), 4))
    with pytest.raises(InputError, match="The validation masks hold the class id 3, but the netw"):
        trainer_of(tmp_path).fit(make(*nets), train, DataLoader(Wrong(3), 4))
    with pytest.raises(InputError, match="give ignore_index=-1 if it means unlabelled"):
        trainer_of(tmp_path).fit(make(*nets), train, DataLoader(Wrong(-1), 4))
    trainer = trainer_of(tmp_path)
    trainer.fit(make(*nets), train, DataLoader(Halves(), 4))
    with pytest.warns(UserWarning, match="All test masks that were read hold only 0 and 255"):
        trainer.test(trainer.lightning_module, DataLoader(Wrong(255), 4), verbose=False)


class OwnEnd(SegmentationModule):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        pass


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"limit_train_batches": 100}, True),
        ({"limit_train_batches": 2}, False),
        ({"limit_train_batches": 0.9}, False),
        ({"overfit_batches": 2}, False),
        ({"max_steps": 2}, False),
        ({}, True),
    ],
)
def test_limits_do_not_hide_masks_of_0_and_255(tmp_path, options, refused):
    module = OwnEnd(TinyNetwork())
    message = "All masks that were read hold only 0 and 255"
    told = pytest.raises(InputError, match=message)
    if not refused:
        told = pytest.warns(UserWarning, match=message)
    with told:
        trainer_of(tmp_path, **options).fit(module, DataLoader(Wrong(255), 4))


# Subclasses


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_networks_that_a_hook_makes_are_those_that_are_trained(tmp_path, hook):
    def make(self, stage=None):
        if self.net_a.layers[0].out_channels == 8:
            self.net_a, self.net_b = TinyNetwork(width=6), TinyNetwork(width=6)

    torch.manual_seed(1)
    own = type("Own", (CoSegModule,), {hook: make})
    module, watch = own(TinyNetwork(width=8), TinyNetwork(width=8), noise_level=0.5), Gradients()
    options = {"gradient_clip_val": 0.01, "callbacks": [watch], "max_epochs": 1}
    trainer_of(tmp_path, **options).fit(module, loader(one_batch()))
    assert watch.norms == pytest.approx(np.full((1, 2), 0.01), rel=1e-3)


def test_peers_that_were_frozen_are_told(tmp_path):
    module = module_of(0.25)
    module.freeze()
    with pytest.warns(UserWarning, match="No weight of CoSegModule learns, .* call unfreeze"):
        trainer_of(tmp_path).fit(module, loader(one_batch()))
    module.net_b.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No weight of")
        trainer_of(tmp_path).fit(module, loader(one_batch()))


def test_an_own_optimizer_without_a_peer_is_refused(tmp_path):
    class One(CoSegModule):
        def configure_optimizers(self):
            return torch.optim.Adam(self.net_a.parameters())

    module = One(TinyNetwork(), TinyNetwork())
    with pytest.raises(InputError, match="gives the optimizer no weight of net_b, which would not"):
        trainer_of(tmp_path).fit(module, loader(one_batch()))
    module.net_b.requires_grad_(False)
    trainer_of(tmp_path).fit(module, loader(one_batch()))


@pytest.mark.parametrize("by", ["the class", "the object"])  # LightningCLI does the latter
def test_a_rate_that_an_own_optimizer_does_not_use_is_told(tmp_path, by):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)

    class Own(CoSegModule):
        pass

    module = Own(TinyNetwork(), TinyNetwork(), lr=0.01, lambda_2=0.1)
    if by == "the class":
        Own.configure_optimizers = configure_optimizers
    else:
        module.configure_optimizers = MethodType(configure_optimizers, module)
    with pytest.warns(UserWarning, match="lr=0.01 and lambda_2=0.1 of Own: the optimizer has no"):
        trainer_of(tmp_path).fit(module, loader(one_batch()))


def test_a_rate_of_one_network_that_is_not_used_is_told_too(tmp_path):
    class Own(SegmentationModule):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    with pytest.warns(UserWarning, match="lr=0.5 of Own: the optimizer has no such value"):
        trainer_of(tmp_path).fit(Own(TinyNetwork(), lr=0.5), loader(one_batch()))


def test_a_rate_that_was_lowered_before_a_fit_goes_on_is_no_reason_to_warn(tmp_path):
    class Own(CoSegModule):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=torch.tensor(self.lr[1]))

        def on_train_epoch_end(self):
            for group in self.optimizers().param_groups:
                group["lr"] = group["lr"] / 2

    def fit(**options):
        module = Own(TinyNetwork(), TinyNetwork(), lr=[0.01, 0.02])  # as a YAML gives them
        trainer = trainer_of(tmp_path, max_epochs=1 + len(options))
        trainer.fit(module, loader(one_batch()), **options)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*the optimizer has no such value")
        fit()
        fit(ckpt_path=tmp_path / "last.ckpt")


def test_rates_that_an_own_optimizer_uses_are_no_reason_to_warn(tmp_path):
    class Own(CoSegModule):
        def configure_optimizers(self):
            options = {"lr": self.lr, "weight_decay": 2 * self.lambda_2}
            optimizer = torch.optim.SGD(self.parameters(), **options)
            return [optimizer], [OneCycleLR(optimizer, self.lr, total_steps=9)]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*the optimizer has no such value")
        for given in ({"lr": 0.01, "lambda_2": 0.1}, {}):
            trainer_of(tmp_path).fit(
                Own(TinyNetwork(), TinyNetwork(), **given), loader(one_batch())
            )


class Config:
    """What no checkpoint can hold without running code."""


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_objects_that_a_subclass_is_given_do_not_spoil_a_checkpoint(tmp_path, base):
    class Own(base):
        def __init__(self, *nets, config, size=3, **options):
            super().__init__(*nets, **options)

    def made():
        nets = [TinyNetwork(), TinyNetwork()][: 2 if base is CoSegModule else 1]
        return Own(*nets, config=Config())

    trainer = trainer_of(tmp_path)
    trainer.fit(made(), loader(one_batch()))
    with pytest.warns(UserWarning, match=r"config of Own are objects, .*\(path, config=...\)"):
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer = trainer_of(tmp_path, max_epochs=3)
    path = tmp_path / "last.ckpt"
    trainer.fit(made(), loader(one_batch()), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 3
    nets = dict(
        zip(("net_a", "net_b") if base is CoSegModule else ("net",), networks(base), strict=True)
    )
    with pytest.raises(TypeError, match="config"):
        Own.load_from_checkpoint(path, **nets)


class Mode(Enum):
    ONE, TWO = 1, 2


class Weighted(SegmentationModule):
    def __init__(self, net, mode=Mode.ONE, weights=None, sizes=(1,), **options):
        super().__init__(net, **options)


def test_a_checkpoint_keeps_what_it_can_and_tells_what_it_lost(tmp_path):
    sizes = OmegaConf.create([8, 4])
    module = Weighted(TinyNetwork(), Mode.TWO, torch.ones(2), sizes)
    trainer, path = trainer_of(tmp_path), tmp_path / "last.ckpt"
    trainer.fit(module, loader(one_batch()))
    with pytest.warns(UserWarning, match="mode of Weighted are objects"):
        trainer.save_checkpoint(path)
    with pytest.warns(UserWarning, match="mode of Weighted are .* Their defaults are used now"):
        loaded = Weighted.load_from_checkpoint(path, net=TinyNetwork(), weights_only=True)
    assert loaded.hparams["mode"] is Mode.ONE
    assert loaded.hparams["weights"].tolist() == [1, 1]
    assert loaded.hparams["sizes"] == [8, 4]


def networks(base):
    return [TinyNetwork(), TinyNetwork()][: 2 if base is CoSegModule else 1]


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_a_subclass_may_log_its_loss_and_take_no_index(tmp_path, base):
    class Own(base):
        def training_step(self, batch):
            loss = super().training_step(batch, 0)
            self.log("loss", loss, on_epoch=True, prog_bar=True)
            return loss

    pair = base is CoSegModule
    module = Own(*[TinyNetwork(), TinyNetwork()][: 2 if pair else 1])
    callbacks = [CorruptionRanking(tmp_path / "scores.csv")] if pair else []
    trainer = trainer_of(tmp_path, callbacks=callbacks)
    trainer.fit(module, DataLoader(Halves(), 4))
    assert "loss_epoch" in trainer.callback_metrics


def test_a_forward_of_one_tensor_is_refused(tmp_path):
    class Mean(CoSegModule):
        def forward(self, images):
            return sum(super().forward(images)) / 2

    with pytest.raises(InputError, match="Mean.forward returned a Tensor; it must return the logi"):
        trainer_of(tmp_path).fit(Mean(TinyNetwork(), TinyNetwork()), loader(one_batch()))


def test_images_of_another_shape_are_named(tmp_path):
    images, masks = one_batch()
    with pytest.raises(
        InputError, match=r"images are \(6, 16, 16\); they must be .* images\[:, Non"
    ):
        trainer_of(tmp_path).fit(SegmentationModule(TinyNetwork()), loader((images[:, 0], masks)))


@pytest.mark.parametrize("make", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize(
    ("monitor", "mode", "better"),
    [("val/dice", "min", "max"), ("val/dice", "max", None), ("train/loss", "max", "min")],
)
def test_callbacks_that_take_a_metric_the_wrong_way_round_are_told(
    tmp_path, recwarn, make, monitor, mode, better
):
    options = {"callbacks": [make(monitor=monitor, mode=mode)], "enable_checkpointing": True}
    data = loader(one_batch())
    trainer_of(tmp_path, **options).fit(SegmentationModule(TinyNetwork()), data, data)
    told = [str(one.message) for one in recwarn if "the worst value counts" in str(one.message)]
    assert len(told) == (better is not None)
    assert all(text.endswith(f"give mode={better!r}.") for text in told)


def own_step(base, width=4):
    class OwnStep(base):
        """Measures a loss of its own, and calls no super()."""

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.step(batch, "val"))

        def test_step(self, batch, batch_idx):
            self.log("test_loss", self.step(batch, "test"))

        def step(self, batch, stage):
            self.outputs.append(stage)
            return batch[0].mean()

    nets = [TinyNetwork(width=width) for _ in range(2 if base is CoSegModule else 1)]
    module = OwnStep(*nets, lr=0.03)
    module.outputs = []
    return module


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_what_a_step_of_ones_own_does_not_measure_is_not_logged(tmp_path, base):
    module, trainer = own_step(base), trainer_of(tmp_path)
    trainer.fit(module, DataLoader(Halves(), 4), DataLoader(Halves(4), 4))
    trainer.test(module, DataLoader(Halves(4), 4), verbose=False)
    assert set(module.outputs) == {"val", "test"}
    assert not [name for name in trainer.callback_metrics if "dice" in name]
    stop = EarlyStopping("val/dice_a" if base is CoSegModule else "val/dice", mode="max")
    with pytest.raises(RuntimeError, match="which is not available"):
        trainer_of(tmp_path, callbacks=[stop]).fit(
            own_step(base), DataLoader(Halves(), 4), DataLoader(Halves(4), 4)
        )


class Validated(OwnTested):
    def val_dataloader(self):
        return DataLoader(Halves(4), 4)


@pytest.mark.rehearsed
def test_a_run_whose_network_measures_nothing_says_so_first(tmp_path):
    options = {"network": lambda: own_step(SegmentationModule, 8), "keep_best": True}
    with pytest.raises(InputError, match="BestNetwork monitors 'val/dice', but a stage"):
        run_of(tmp_path, Validated(), **options)
    assert not (tmp_path / "run" / "robust_training").exists()
    options["keep_best"] = False
    with pytest.warns(UserWarning, match="no test figures, since OwnStep.test_step measures"):
        run_of(tmp_path, Validated(), **options)


class OwnEnds(SegmentationModule):
    """Has hooks that Lightning's own modules leave empty."""

    def on_validation_epoch_end(self):
        pass

    def on_test_epoch_end(self):
        pass

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 1


def test_hooks_of_ones_own_take_nothing_away(tmp_path):
    module = OwnEnds("unet", encoder_name="resnet18", in_channels=1)
    module.hparams["encoder_weights"] = "imagenet"  # as if they were downloaded
    trainer = trainer_of(tmp_path)
    data = DataLoader(Halves(4), 4)
    trainer.fit(module, data, data)
    assert "val/dice" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["mine"] == 1
    assert saved["hyper_parameters"]["encoder_weights"] is None
    trainer.test(module, data, verbose=False)
    assert "test/dice" in trainer.callback_metrics
    with pytest.raises(InputError, match="All validation masks that were read hold only 0 and 255"):
        trainer_of(tmp_path).fit(module, data, DataLoader(Wrong(255), 4))


@pytest.mark.parametrize("seed", range(8))
def test_a_step_that_flips_some_batches_is_let_through(tmp_path, seed):
    class Flipping(CoSegModule):
        def training_step(self, batch, batch_idx):
            if torch.rand(()) < 0.5:
                batch = [batch[0].flip(-1), batch[1].flip(-1), *batch[2:]]
            return super().training_step(batch, batch_idx)

    torch.manual_seed(seed)
    module = Flipping(TinyNetwork(), TinyNetwork())
    trainer_of(tmp_path).fit(module, DataLoader(Halves(), 4), DataLoader(Halves(4), 4))


def test_a_trainer_that_tests_after_a_fit_says_nothing_of_callbacks(tmp_path, caplog):
    module, trainer = SegmentationModule(TinyNetwork()), trainer_of(tmp_path)
    data = DataLoader(Halves(4), 4)
    with caplog.at_level("INFO"):
        trainer.fit(module, data, data)
        trainer.test(module, data, verbose=False)
    assert "callbacks returned in" not in caplog.text
    assert "test/dice" in trainer.callback_metrics


def test_callbacks_of_ones_own_without_the_modules_are_warned_of(tmp_path):
    class OwnCallbacks(CoSegModule):
        def configure_callbacks(self):
            return []

    module, data = OwnCallbacks(TinyNetwork(), TinyNetwork()), DataLoader(Halves(4), 4)
    with pytest.warns(UserWarning, match="leaves out the callbacks that log metrics"):
        trainer_of(tmp_path).validate(module, data, verbose=False)


def test_a_hook_at_the_end_of_a_pass_may_read_its_metrics(tmp_path):
    class Reads(SegmentationModule):
        def on_validation_epoch_end(self):
            self.seen = [*getattr(self, "seen", []), float(self.metrics["val"].compute()["dice"])]

    module, data = Reads(TinyNetwork(), lr=0.03), DataLoader(Halves(4, wrong=0), 4)
    trainer = trainer_of(tmp_path, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(module, data, data)
    assert len(module.seen) == 3
    assert module.seen[-1] == pytest.approx(float(trainer.callback_metrics["val/dice"]))


class OfOneChannel(pl.LightningDataModule):
    def __init__(self, in_channels=1):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(Halves(4), 4)


@pytest.mark.parametrize("make", [CoSegModule, lambda a, _: SegmentationModule(a)])
def test_a_datamodule_has_hyperparameters_of_the_same_name(tmp_path, make):
    module = make(TinyNetwork(), TinyNetwork())
    trainer = trainer_of(tmp_path, logger=CSVLogger(tmp_path))
    trainer.fit(module, datamodule=OfOneChannel())
    assert "in_channels" not in module.hparams
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    networks = {"net_a": TinyNetwork(), "net_b": TinyNetwork()}
    if isinstance(module, SegmentationModule):
        networks = {"net": TinyNetwork()}
    type(module).load_from_checkpoint(tmp_path / "last.ckpt", **networks)


def test_an_encoder_for_networks_that_are_ready_is_refused():
    for given in ({"encoder_name": "resnet34"}, {"encoder_weights": "imagenet"}):
        (name,) = given
        with pytest.raises(InputError, match=f"{name}: CoSegModule has .* or no use for it"):
            CoSegModule(TinyNetwork(), TinyNetwork(), **given)
        with pytest.raises(InputError, match=f"{name}: SegmentationModule has"):
            SegmentationModule(TinyNetwork(), **given)


class Counts(CoSegModule):
    """Counts in a metric, a list, a buffer and an attribute."""

    def __init__(self, *networks, **options):
        super().__init__(*networks, **options)
        self.metric, self.names, self.total = SumMetric(), [], 0
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.metric.update(float(len(batch[0])))
        self.names += batch[2]
        self.seen += len(batch[0])
        self.total += len(batch[0])
        return super().training_step(batch, batch_idx)


def test_a_ranking_leaves_the_counts_of_an_own_step_as_they_are(tmp_path):
    module = Counts(TinyNetwork(), TinyNetwork(), noise_level=0.25)
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    data = DataLoader(Halves(8), 4)
    trainer_of(tmp_path, max_epochs=4, callbacks=[ranking]).fit(module, data)
    found = float(module.metric.compute()), len(module.names), float(module.seen), module.total
    assert found == (32, 32, 32, 32)


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_metrics_of_ones_own_may_have_the_common_name(tmp_path, base):
    class Own(base):
        def __init__(self, *networks):
            super().__init__(*networks)
            self.metrics = nn.ModuleDict({"seen": SumMetric()})

        def validation_step(self, batch, batch_idx):
            self.metrics["seen"].update(len(batch[0]))
            return super().validation_step(batch, batch_idx)

    module = Own(*[TinyNetwork() for _ in base.suffixes])
    trainer = trainer_of(tmp_path)
    data = DataLoader(Halves(4), 4)
    (found,) = trainer.validate(module, data, verbose=False)
    assert {f"val/dice{suffix}" for suffix in base.suffixes} < set(found)
    assert float(module.metrics["seen"].compute()) == 4


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
@pytest.mark.parametrize("again", ["the same trainer", "a checkpoint"])
def test_masks_of_a_later_fit_are_checked_too(tmp_path, base, again):
    module, data = base(*[TinyNetwork() for _ in base.suffixes]), DataLoader(Halves(8), 4)
    trainer = trainer_of(tmp_path)
    trainer.fit(module, data)
    options = {}
    if again == "a checkpoint":
        options["ckpt_path"] = tmp_path / "last.ckpt"
        trainer.save_checkpoint(options["ckpt_path"])
        trainer = trainer_of(tmp_path)
    trainer.fit_loop.max_epochs = 4
    with pytest.raises(InputError, match="All masks that were read hold only 0 and 255"):
        trainer.fit(module, DataLoader(Wrong(255), 4), **options)


def test_some_masks_of_0_and_255_are_told(tmp_path):
    both = ConcatDataset([Halves(8, wrong=0), Wrong(255)])
    with pytest.warns(
        UserWarning, match="12 of 20 masks that were read hold only 0 and 255, which"
    ):
        trainer_of(tmp_path).fit(SegmentationModule(TinyNetwork()), DataLoader(both, 4))


class Thaw(BackboneFinetuning):
    """Lets the first layers learn at a rate of their own from the second epoch on."""

    def parts(self, module):
        return [getattr(module, name).layers[0] for name in module.network_names]

    def on_fit_start(self, trainer, pl_module):
        BaseFinetuning.on_fit_start(self, trainer, pl_module)

    def freeze_before_training(self, module):
        self.freeze(self.parts(module))

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(self.parts(module), optimizer, lr=1e-4)


class ThawAlone(BaseFinetuning):
    """Lets the first layers learn at the rate of all others from the second epoch on."""

    def freeze_before_training(self, module):
        self.freeze(Thaw().parts(module))

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(Thaw().parts(module))


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_frozen_parts_learn_at_their_own_rate_when_they_are_thawed(tmp_path, base):
    module = base(*[TinyNetwork() for _ in base.suffixes], lr=0.03)
    before = [part.weight.detach().clone() for part in Thaw().parts(module)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*params to be frozen already exist.*")
        trainer = trainer_of(tmp_path, max_epochs=3, callbacks=[Thaw()])
        trainer.fit(module, DataLoader(Halves(4), 4))
    (optimizer,) = trainer.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == [0.03] * len(before) + [1e-4]
    for part, weight in zip(Thaw().parts(module), before, strict=True):
        assert 0 < (part.weight - weight).abs().max() < 1e-3


@pytest.mark.parametrize("base", [CoSegModule, SegmentationModule])
def test_parts_that_are_only_thawed_learn_too(tmp_path, base):
    module = base(*[TinyNetwork() for _ in base.suffixes], lr=0.03)
    before = [part.weight.detach().clone() for part in Thaw().parts(module)]
    trainer_of(tmp_path, max_epochs=3, callbacks=[ThawAlone()]).fit(
        module, DataLoader(Halves(4), 4)
    )
    for part, weight in zip(Thaw().parts(module), before, strict=True):
        assert (part.weight - weight).abs().max() > 1e-3


def test_masks_after_a_search_for_a_rate_are_checked_alone(tmp_path):
    module = SegmentationModule(TinyNetwork())
    trainer = trainer_of(tmp_path)
    Tuner(trainer).lr_find(module, DataLoader(Halves(8, wrong=0), 4), num_training=4)
    with pytest.raises(InputError, match="All masks that were read hold only 0 and 255"):
        trainer.fit(module, DataLoader(Wrong(255), 4))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_epochs": 1}, "but 1 epoch is trained, so they will learn from all"),
        ({"max_epochs": -1, "max_time": {"seconds": 1}}, "the number of epochs is unknown"),
        ({"max_epochs": 9, "max_steps": 2}, "but 1 epoch is trained"),
    ],
)
def test_training_that_is_too_short_to_rank_is_told_before_it(tmp_path, limits, message):
    class Stops(pl.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("the first step")

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), Stops()]
    trainer = trainer_of(tmp_path, **limits, callbacks=callbacks)
    with (
        pytest.warns(UserWarning, match=message),
        pytest.raises(RuntimeError, match="the first step"),
    ):
        trainer.fit(module_of(), DataLoader(Halves(), batch_size=4))


@pytest.mark.parametrize("step", [3, 6, 7, 8])  # of three in an epoch
def test_schedules_go_on_as_if_training_had_not_ended(tmp_path, step):
    def fitted(**options):
        torch.manual_seed(0)
        halve = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
        module = CoSegModule(TinyNetwork(), TinyNetwork(), scheduler=halve)
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [] if options else [saver]
        trainer = trainer_of(
            tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=not options
        )
        trainer.fit(module, DataLoader(Halves(), batch_size=4), **options)
        return trainer.optimizers[0].param_groups[0]["lr"]

    whole = fitted()
    assert fitted(ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True) == whole


class Flipping(Halves):
    """Samples whose images and masks are flipped together, at random."""

    def __getitem__(self, index):
        image, mask, name = super().__getitem__(index)
        return (*flipped(image, mask), name)


@pytest.mark.parametrize("step", [4, 6, 7, 8])  # of nine, three in an epoch
def test_a_fit_that_goes_on_within_an_epoch_is_checked_and_corrected(tmp_path, step):
    def fit(name, dataset, **options):
        ranking = CorruptionRanking(tmp_path / name / "scores.csv")
        correction = LabelCorrection(tmp_path / name / "labels", confidence=0.0)
        callbacks = [correction, ranking]
        if not options:
            saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
            callbacks.append(saver)
        trainer = trainer_of(
            tmp_path, max_epochs=3, callbacks=callbacks, enable_checkpointing=not options
        )
        module = CoSegModule(TinyNetwork(), TinyNetwork(), noise_level=0.25)
        trainer.fit(module, DataLoader(dataset, batch_size=4), **options)

    fit("whole", Halves())
    last = {"ckpt_path": tmp_path / f"step={step}.ckpt", "weights_only": True}
    fit("rest", Halves(), **last)
    assert len(LabelStore(tmp_path / "rest" / "labels").ids) == 3
    with pytest.raises(InputError, match="different masks each time it is read"):
        fit("flipped", Flipping(), **last)


@pytest.mark.parametrize("ids", [True, False])
def test_processes_with_training_sets_of_their_own_are_noticed(monkeypatch, ids):
    def batches(first):
        images = [torch.full((1, 1, 4, 4), 0.5 + n, requires_grad=True) for n in range(first, 9)]
        masks = torch.zeros(1, 4, 4, dtype=torch.long)
        return [Batch(image, masks, [f"h{n}"] if ids else None) for n, image in enumerate(images)]

    gathered = []
    monkeypatch.setattr(
        corruption_ranking, "gather_objects", lambda part: gathered.append(part) or gathered
    )
    corruption_ranking.check_one_set(batches(0), 9, None)
    corruption_ranking.check_one_set(batches(0), 9, None)  # of another process
    with pytest.raises(InputError, match="Each process has a training set of its own"):
        corruption_ranking.check_one_set(batches(1), 9, None)


@pytest.mark.parametrize("join", ["subset", "both", "sampler"])
def test_the_kinds_of_a_dataset_are_found_within_others(tmp_path, join):
    class Kinds(Halves):
        kinds = {f"h{n}": "dark" if n % 2 else "light" for n in range(12)}  # noqa: RUF012

    numbers = []

    class Looking(CorruptionRanking):
        def scores(self, evidence, ids, dataset):
            numbers.append(evidence.kinds)
            return super().scores(evidence, ids, dataset)

    parts = [Subset(Kinds(), range(0, 8)), Subset(Kinds(), range(8, 12))]
    dataset = {"subset": parts[0], "both": ConcatDataset(parts)}.get(join, Kinds())
    sampler = SubsetRandomSampler(range(9)) if join == "sampler" else None
    loader = DataLoader(dataset, batch_size=3, sampler=sampler)
    ranking = Looking(tmp_path / "scores.csv")
    trainer_of(tmp_path, max_epochs=2, callbacks=[ranking]).fit(module_of(), loader)
    assert set(numbers[-1].tolist()) == {1, 2}
