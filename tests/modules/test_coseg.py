"""The co-teaching step, and how it works within Lightning."""

import math
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, Subset

from coseg_lightning import (
    CorruptionRanking,
    CoSegModule,
    NoiseLevelEstimation,
    SegmentationModule,
)
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import corruption_score, segmentation_loss
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.selection import PerBatch
from coseg_lightning.report.figures import read_rows
from support import Halves, TinyNetwork, data_of, loader, module_of, one_batch, trainer_of


def step(module, batch, tmp_path):
    """Run one training step within a real trainer, and return the gradients of both peers."""
    gradients = {}

    class Keep(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for name, parameter in pl_module.named_parameters():
                gradients[name] = parameter.grad.clone()

    trainer = trainer_of(tmp_path, max_epochs=1, limit_train_batches=1, callbacks=[Keep()])
    trainer.fit(module, loader(batch))
    return gradients


@pytest.mark.parametrize("way", ["joint", "picks"])
@pytest.mark.parametrize("learner", ["net_a", "net_b"])
def test_each_peer_learns_from_the_other_ones_picks(tmp_path, learner, way):
    torch.manual_seed(0)
    images, masks = one_batch()
    options = {"noise_level": 0.5, "selection": "eq1", "ramp_epochs": 0, "lambda_1": 0.7}
    module, reference = module_of(step=way, **options), module_of()
    gradients = step(module, (images, masks), tmp_path)

    nets = {"net_a": reference.net_a, "net_b": reference.net_b}
    teacher = nets[{"net_a": "net_b", "net_b": "net_a"}[learner]]
    student = nets[learner]
    reference.train(way == "joint")
    picks = corruption_score(teacher(images), masks).argsort()[:3]
    own = corruption_score(student(images), masks).argsort()[:3]
    assert set(picks.tolist()) != set(own.tolist())  # otherwise the test could not distinguish them
    student.train()
    student.zero_grad()
    logits = student(images)[picks] if way == "joint" else student(images[picks])
    loss = segmentation_loss(logits, masks[picks], lambda_1=0.7)
    loss.mean().backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[f"{learner}.{name}"], parameter.grad)


class Passes(TinyNetwork):
    """Notes how many images pass through it, and when their gradients come back."""

    def __init__(self, name, notes):
        super().__init__()
        self.name, self.notes = name, notes

    def forward(self, images):
        logits = super().forward(images)
        self.notes.append((self.name, len(images), logits.requires_grad))
        if logits.requires_grad:
            logits.register_hook(lambda _: self.notes.append((self.name, "backward")))
        return logits


def passes_of(tmp_path, doubted=None, **options):
    torch.manual_seed(1)
    notes = []
    module = CoSegModule(Passes("a", notes), Passes("b", notes), noise_level=0.5, **options)

    class Doubts(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            if doubted is not None:
                pl_module.selection.exclude(*doubted)

    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[Doubts()])
    trainer.fit(module, loader((*one_batch(), list("012345"))))
    return notes


def test_only_what_is_learnt_from_passes_through_a_peer(tmp_path):
    """The first peer's graph is freed before the second peer's is built."""
    assert passes_of(tmp_path, doubted=["2345", "034"]) == [
        ("a", 3, True),  # of six samples, those that b keeps
        ("a", "backward"),
        ("b", 2, True),
        ("b", "backward"),
    ]


def test_where_a_batch_is_selected_from_it_is_judged_first(tmp_path):
    notes = passes_of(tmp_path, selection="relative", ramp_epochs=0)
    learnt = [("a", 3, True), ("a", "backward"), ("b", 3, True), ("b", "backward")]
    assert notes == [("a", 6, False), ("b", 6, False), *learnt]
    # Nothing is judged where everything is kept.
    notes = passes_of(tmp_path, selection="relative", ramp_epochs=10)
    assert notes == [("a", 6, True), ("a", "backward"), ("b", 6, True), ("b", "backward")]


def test_a_joint_step_passes_the_whole_batch_through_both(tmp_path):
    notes = passes_of(tmp_path, doubted=["2345", "034"], step="joint")
    assert notes[:2] == [("a", 6, True), ("b", 6, True)]


def test_judging_leaves_batch_norm_alone(tmp_path):
    module = module_of(selection="relative", ramp_epochs=0)
    frozen = module.net_b.layers[1].eval()
    counts = []

    class Frozen(pl.Callback):
        def on_train_batch_start(self, *_):
            frozen.eval()

        def on_train_batch_end(self, *_):
            counts.append([net.layers[1].training for net in (module.net_a, module.net_b)])

    trainer_of(tmp_path, max_epochs=1, callbacks=[Frozen()]).fit(module, loader(one_batch()))
    assert counts == [[True, False]]
    assert module.net_a.layers[1].num_batches_tracked == 1


@pytest.mark.parametrize("doubted", ["12345", "012345"])
def test_one_pick_and_none(tmp_path, doubted):
    """BatchNorm after a global pooling refuses a single image, which is all that is left here."""

    class Pooled(TinyNetwork):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(1)

        def forward(self, images):
            return super().forward(images) + self.norm(images.mean((2, 3), keepdim=True))

    torch.manual_seed(1)
    module = CoSegModule(Pooled(), Pooled(), noise_level=0.5)
    before = {name: weight.clone() for name, weight in module.named_parameters()}

    class Doubts(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.selection.exclude(doubted, doubted)

    trainer_of(tmp_path, max_epochs=1, callbacks=[Doubts()]).fit(
        module, loader((*one_batch(), list("012345")))
    )
    learnt = [
        name
        for name, weight in module.named_parameters()
        # A zero gradient still contains the weight decay.
        if (weight - before[name]).abs().max() > 0 and "layers" in name
    ]
    assert learnt
    grads = [weight.grad.abs().max() for weight in module.parameters()]
    assert (max(grads) > 0) == (doubted == "12345")


@pytest.mark.parametrize("noise_level", [0.0, 0.5])
def test_a_frozen_peer_is_left_as_it_is(tmp_path, noise_level):
    module = module_of(noise_level=noise_level, selection="relative", ramp_epochs=0)
    module.net_b.requires_grad_(False)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))
    for name, value in module.named_parameters():
        assert (value != before[name]).any() == (name.startswith("net_a") and value.ndim > 0)


def test_everything_learns_in_mixed_precision(tmp_path):
    """This also holds where samples were judged before, without gradients."""
    module = module_of(selection="relative", ramp_epochs=0)
    missing = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            missing.extend(n for n, w in pl_module.named_parameters() if w.grad is None)

    trainer_of(tmp_path, max_epochs=1, precision="bf16-mixed", callbacks=[Look()]).fit(
        module, loader(one_batch())
    )
    assert missing == []


def test_a_bad_image_does_not_spoil_what_it_only_accompanies(tmp_path):
    images, masks = one_batch(2)
    images[1, 0, 3, 3] = float("nan")
    module = module_of(selection="relative", ramp_epochs=0)
    trainer_of(tmp_path, max_epochs=1).fit(module, loader((images, masks)))
    assert module.optimization.skipped == [0, 0]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_both_peers_are_looked_at_for_probabilities(tmp_path):
    peer = torch.nn.Sequential(TinyNetwork(), torch.nn.Softmax(dim=1))
    module = CoSegModule(TinyNetwork(), peer, noise_level=0.3)
    with pytest.warns(UserWarning, match="probabilities"):
        trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))


def test_an_own_way_to_learn_is_given_the_whole_batch():
    class Own(CoSegModule):
        def peer_losses(self, logits_a, logits_b, sample):
            return logits_a.mean(), logits_b.mean(), None

    class OwnForward(CoSegModule):
        def forward(self, images):
            return super().forward(images)

    nets = TinyNetwork(), TinyNetwork()
    modules = [kind(*nets) for kind in (CoSegModule, Own, OwnForward, CoSegModule)]
    modules[-1].peer_losses = lambda logits_a, logits_b, sample: None
    assert [module.is_joint for module in modules] == [False, True, True, True]
    with pytest.raises(InputError, match="step='both' must be picks or joint"):
        CoSegModule(*nets, step="both")


def test_the_loss_is_a_mean_over_the_picks(tmp_path):
    images, masks = one_batch(1)
    few = step(module_of(ramp_epochs=0), (images, masks), tmp_path)
    same = step(
        module_of(ramp_epochs=0), (images.repeat(4, 1, 1, 1), masks.repeat(4, 1, 1)), tmp_path
    )
    for name, gradient in few.items():
        torch.testing.assert_close(gradient, same[name])


def test_one_optimizer_trains_as_two_would(tmp_path):
    batches = [one_batch() for _ in range(4)]
    module, reference = module_of(noise_level=0.0), module_of(noise_level=0.0)
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(*batches))
    for net in (reference.net_a, reference.net_b):
        net.train()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=2e-5)
        for images, masks in batches:
            optimizer.zero_grad()
            segmentation_loss(net(images), masks).mean().backward()
            optimizer.step()
    torch.testing.assert_close(module.net_a.state_dict(), reference.net_a.state_dict())
    torch.testing.assert_close(module.net_b.state_dict(), reference.net_b.state_dict())


def test_global_step_counts_batches(tmp_path):
    trainer = trainer_of(tmp_path, max_epochs=3)
    trainer.fit(module_of(), loader(*[one_batch() for _ in range(5)]))
    assert trainer.global_step == 15


def test_the_optimizer_has_one_named_group_a_peer():
    module = module_of(lambda_2=0.25)
    groups = module.configure_optimizers().param_groups
    assert [group["name"] for group in groups] == ["net_a", "net_b"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in module.parameters()}


def test_what_is_logged_each_epoch(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    data = data_of(tmp_path, size=12)
    trainer_of(tmp_path, max_epochs=4, logger=logger, log_every_n_steps=1).fit(
        module_of(ramp_epochs=2, noise_level=0.3), data
    )
    rows = read_rows(tmp_path / "metrics.csv")
    keep_rates = [float(row["train/keep_rate"]) for row in rows if row["train/keep_rate"]]
    assert keep_rates == pytest.approx([1, 0.85, 0.7, 0.7])
    for name in (
        "train/loss_a",
        "train/loss_b",
        "val/dice_a",
        "val/dice_b",
        "val/accuracy_a",
        "val/accuracy_b",
        "train/agreement",
        "train/purity_a",
        "train/purity_b",
    ):
        values = [float(row[name]) for row in rows if row.get(name)]
        assert len(values) == 4, name
        assert min(values) >= 0, name
    assert all(0 <= float(r["train/agreement"]) <= 1 for r in rows if r["train/agreement"])
    # While everything is kept, the purity is the share of original masks: 8 of 12.
    first = next(float(row["train/purity_a"]) for row in rows if row["train/purity_a"])
    assert first == pytest.approx(8 / 12)


@pytest.mark.parametrize("way", ["picks", "joint"])
def test_excluded_batches_do_not_lower_the_mean_loss(tmp_path, way):
    class Excludes(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.selection.exclude(["h0", "h1"], [])  # the first batch of the second peer

    def losses(*indices):
        trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[Excludes()])
        trainer.fit(module_of(step=way, lr=0.0), DataLoader(Subset(Halves(), indices), 2))
        return {peer: trainer.callback_metrics.get(f"train/loss_{peer}") for peer in "ab"}

    every, first, second = losses(0, 1, 2, 3), losses(0, 1), losses(2, 3)
    assert every["b"] == pytest.approx(second["b"])
    assert every["a"] == pytest.approx((first["a"] + second["a"]) / 2)
    assert first["b"] is None  # it learnt from nothing


def test_purity_is_not_logged_where_the_truth_is_unknown(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.fit(module_of(), loader(one_batch()))
    assert "train/purity_a" not in trainer.callback_metrics


def test_peers_with_equal_weights_are_refused():
    net = TinyNetwork()
    twin = TinyNetwork()
    twin.load_state_dict(net.state_dict())
    with pytest.raises(InputError, match="equal weights"):
        CoSegModule(net, twin)
    with pytest.raises(InputError, match="net_b must be one too"):
        CoSegModule(net)


def test_peers_may_be_of_different_kinds(tmp_path):
    module = CoSegModule("unet_classic", TinyNetwork(), in_channels=1, base_channels=2)
    trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))
    logits_a, logits_b = module(torch.randn(2, 1, 16, 16))
    assert logits_a.shape == logits_b.shape == (2, 2, 16, 16)


@pytest.mark.parametrize("level", [-0.1, 1, 1.2])
def test_a_wrong_noise_level_is_refused(level):
    with pytest.raises(InputError, match="at least 0 and less than 1"):
        module_of(noise_level=level)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_1": -1}, "lambda_1=-1 must be a number of at least 0"),
        ({"lambda_2": "x"}, "lambda_2=x must be a number of at least 0"),
        ({"include_background": "no"}, "include_background=no must be true or false"),
        ({"ramp_epochs": 2.5}, "ramp_epochs=2.5 must be a whole number of at least 0, or null"),
    ],
)
def test_a_value_that_a_recipe_would_refuse_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        module_of(**options)


def test_a_class_id_without_an_output_is_named(tmp_path):
    images, masks = one_batch()
    masks[0, 0, 0] = 7
    for module in (module_of(), SegmentationModule(TinyNetwork())):
        with pytest.raises(InputError, match="class id 7, but the network has 2 classes"):
            trainer_of(tmp_path).fit(module, loader((images, masks)))


@pytest.mark.parametrize("form", ["triple", "dict", "label", "channel", "float"])
def test_batches_as_people_have_them(tmp_path, form):
    images, masks = one_batch()
    batch = {
        "triple": (images, masks, list("abcdef")),
        "dict": {"image": images, "mask": masks, "id": list("abcdef")},
        "label": {"image": images, "label": masks},
        "channel": (images, masks[:, None]),
        "float": (images, masks.float()),
    }[form]
    plain, other = (step(module_of(), b, tmp_path) for b in ((images, masks), batch))
    torch.testing.assert_close(plain, other)


@pytest.mark.parametrize(
    "batch", [torch.zeros(2), {"picture": 1}, (torch.zeros(2, 1, 8, 8), torch.zeros(2, 4, 4))]
)
def test_other_batches_are_answered_in_a_sentence(tmp_path, batch):
    with pytest.raises(InputError, match="must be"):
        trainer_of(tmp_path).fit(module_of(), loader(batch))


def test_checkpoints_hold_plain_values_and_load(tmp_path):
    torch.manual_seed(0)
    module = CoSegModule("unet_classic", in_channels=1, noise_level=0.3, base_channels=2)
    # As if the network had been built with a download.
    module.hparams["encoder_weights"] = "imagenet"
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, loader(one_batch()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["encoder_weights"] is None
    assert checkpoint["selection"]["state"] == module.selection.state_dict()
    loaded = CoSegModule.load_from_checkpoint(tmp_path / "a.ckpt")
    torch.testing.assert_close(loaded.state_dict(), module.state_dict())


def test_a_resumed_fit_ends_with_the_same_weights(tmp_path):
    data = data_of(tmp_path)
    # The default ramp is a share of max_epochs, which differs here, so its length is given.
    whole = module_of(noise_level=0.3, ramp_epochs=1)
    trainer_of(tmp_path, max_epochs=4).fit(whole, data)
    half = module_of(noise_level=0.3, ramp_epochs=1)
    first = trainer_of(tmp_path, max_epochs=2)
    first.fit(half, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = module_of(noise_level=0.3, ramp_epochs=1)
    trainer_of(tmp_path, max_epochs=4).fit(resumed, data, ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_predict_gives_class_probabilities(tmp_path, outputs):
    module = CoSegModule(
        TinyNetwork(classes=outputs), TinyNetwork(classes=outputs), classes=outputs
    )
    images, _ = one_batch()
    (probabilities,) = trainer_of(tmp_path).predict(module, loader(images))
    assert probabilities.shape == (6, 2, 16, 16)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6, 16, 16))


@pytest.mark.parametrize("where", [0, 2])
def test_a_wrong_class_id_is_found_in_any_batch(tmp_path, where):
    batches = [one_batch() for _ in range(3)]
    batches[where][1][0, 0, 0] = 9
    with pytest.raises(InputError, match="class id 9"):
        trainer_of(tmp_path).fit(module_of(), loader(*batches))


def test_bf16_training_runs(tmp_path):
    trainer = trainer_of(tmp_path, precision="bf16-mixed")
    trainer.fit(module_of(), loader(*[one_batch() for _ in range(2)]))
    assert torch.isfinite(trainer.callback_metrics["train/loss_a"])


@pytest.mark.slow
def test_the_whole_set_is_ranked_after_half_of_the_epochs(tmp_path):
    module = module_of()
    doubted = {}

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            doubted[trainer.current_epoch] = pl_module.selection.excluded_ids, pl_module.alpha

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), Watch()]
    trainer_of(tmp_path, max_epochs=16, callbacks=callbacks).fit(module, data_of(tmp_path))
    assert [doubted[epoch] for epoch in range(8)] == [(None, 1.0)] * 8
    assert all(len(part) == round(0.5 * 11) for part in doubted[8][0])
    assert doubted[8][1] == 0.5
    changes = [n for n in range(9, 16) if doubted[n][0] is not doubted[n - 1][0]]
    assert changes == [10, 12, 14]  # every eighth of 16 epochs
    trainer_of(tmp_path, max_epochs=1, callbacks=[Watch()]).fit(module, data_of(tmp_path))
    assert doubted[0] == (None, 1 - 0.5)  # another fit, without a ranking, selects by batch


class NothingForB(PerBatch):
    """From the second epoch on the first peer picks nothing, from which the second one learns."""

    def __call__(self, batch, predict, alpha):
        nothing = torch.tensor([], dtype=torch.long)
        return (nothing if self.epoch else torch.arange(6)), torch.arange(6)

    def keep_rate(self, noise_level, epoch, max_epochs):
        self.epoch = epoch
        return 1.0


def test_a_peer_that_learns_nothing_for_an_epoch_logs_no_loss(tmp_path):
    module, rows = module_of(selection=NothingForB("relative", 0)), []

    class Rows(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    trainer = trainer_of(tmp_path, callbacks=[Rows()])
    trainer.fit(module, loader(one_batch(), one_batch()))
    assert rows[0]["train/loss_a"] != rows[1]["train/loss_a"]
    assert rows[0]["train/loss_b"] == rows[1].get("train/loss_b", rows[0]["train/loss_b"])
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.slow
def test_training_by_steps_selects_too(tmp_path):
    module, has_exclusions = module_of(), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            has_exclusions.append(pl_module.selection.excluded_ids is not None)

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), Watch()]
    trainer = trainer_of(tmp_path, max_epochs=-1, max_steps=16, callbacks=callbacks)
    trainer.fit(module, data_of(tmp_path))  # two batches per epoch
    assert has_exclusions == [False] * 4 + [True] * 4


def test_something_is_kept_at_any_noise_level(tmp_path):
    module, exclusions = module_of(noise_level=0.99), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            exclusions.append(pl_module.selection.excluded_ids)

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), Watch()]
    trainer_of(tmp_path, max_epochs=4, callbacks=callbacks).fit(module, data_of(tmp_path))
    assert [len(part) for part in exclusions[-1]] == [10, 10]


def test_a_peer_learns_from_what_the_other_one_does_not_doubt():
    module = module_of()
    module.selection.exclude(by_a=["2", "3", "4", "5"], by_b=["0", "3", "4"])
    images, masks = one_batch()
    logits_a, logits_b = module.net_a(images), module.net_b(images)
    sample = Batch(images, masks, ids=torch.arange(6))
    loss_a, loss_b, (picks_a, picks_b) = module.peer_losses(logits_a, logits_b, sample)
    assert picks_a.tolist() == [0, 1]
    assert picks_b.tolist() == [1, 2, 5]
    torch.testing.assert_close(loss_a, segmentation_loss(logits_a, masks)[[1, 2, 5]].mean())
    torch.testing.assert_close(loss_b, segmentation_loss(logits_b, masks)[[0, 1]].mean())


def test_a_batch_that_is_doubted_throughout_has_no_gradient_of_a_joint_step():
    module = module_of()
    module.selection.exclude(*[list("012345")] * 2)
    images, masks = one_batch()
    sample = Batch(images, masks, ids=torch.arange(6))
    loss_a, loss_b, _ = module.peer_losses(*module(images), sample)
    (loss_a + loss_b).backward()
    assert loss_a == loss_b == 0
    assert all((weight.grad == 0).all() for weight in module.parameters())


def test_samples_without_ids_are_selected_batch_by_batch(tmp_path):
    module, alphas = module_of(ramp_epochs=0), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            alphas.append(pl_module.alpha)

    batches = [one_batch() for _ in range(2)]
    dataset = [pair for batch in batches for pair in zip(*batch, strict=True)]
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    with pytest.warns(UserWarning, match="no ids"):
        trainer_of(tmp_path, max_epochs=4, callbacks=[ranking, Watch()]).fit(
            module, DataLoader(dataset, batch_size=4)
        )
    assert set(alphas) == {0.5}
    assert len(ranking.ranking.noisy) == 6


def test_what_is_doubted_survives_a_checkpoint_and_older_ones_load():
    module, other = module_of(), module_of()
    module.selection.exclude(["a", "b"], ["c"])
    checkpoint = {"hyper_parameters": {"encoder_weights": None}}
    module.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert other.selection.excluded_ids == (frozenset("ab"), frozenset("c"))
    state = checkpoint.pop("selection")["state"]
    earlier = {"doubted": state["excluded_ids"], "selection_carry": 0.5}  # of version 0.1
    earlier_module = module_of()
    earlier_module.on_load_checkpoint({**checkpoint, **earlier})
    assert earlier_module.selection.state_dict() == {**state, "per_batch": {"carry": 0.5}}
    module_of().on_load_checkpoint(checkpoint)  # of another module


class Spoilt(TinyNetwork):
    """A network whose output is not a number in some steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.step = set(steps), -1

    def forward(self, images):
        self.step += self.training
        logits = super().forward(images)
        return logits * float("nan") if self.training and self.step in self.steps else logits


def test_a_gradient_that_is_no_number_is_skipped_and_counted(tmp_path):
    torch.manual_seed(1)
    module = CoSegModule(Spoilt([1]), TinyNetwork(), noise_level=0.0)
    weights = {"net_a": [], "net_b": []}

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for name, history in weights.items():
                history.append(getattr(pl_module, name).layers[0].weight.detach().clone())

    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[Watch()])
    trainer.fit(module, loader(*[one_batch() for _ in range(3)]))
    changed = {
        name: [not torch.equal(one, other) for one, other in pairwise(history)]
        for name, history in weights.items()
    }
    assert changed == {"net_a": [False, True], "net_b": [True, True]}
    assert module.optimization.skipped == [1, 0]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_an_image_that_holds_nan_spoils_nothing_for_ever(tmp_path):
    images, masks = one_batch()
    images[0, 0, 3, 3] = float("nan")
    for level, skipped in ((0.0, [1, 1]), (0.5, [0, 0])):  # unless it is not picked at all
        module = module_of(noise_level=level)
        trainer_of(tmp_path, max_epochs=1).fit(module, loader((images, masks), one_batch()))
        assert module.optimization.skipped == skipped
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_gradients_that_never_are_numbers_end_with_advice(tmp_path):
    module = CoSegModule(Spoilt(range(100)), TinyNetwork(), noise_level=0.0)
    with pytest.raises(InputError, match="peer a was not finite in 20 steps in a row; lower"):
        trainer_of(tmp_path, max_epochs=30).fit(module, loader(one_batch()))


class AddsCallbacks(CoSegModule):
    """A module that brings its callbacks along."""

    def __init__(self, *nets, brings, **options):
        super().__init__(*nets, **options)
        self.brings = brings

    def configure_callbacks(self):
        return [*super().configure_callbacks(), *self.brings()]


def test_callbacks_that_a_module_brings_along_count(tmp_path):
    rates = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            rates.append(pl_module.alpha)

    def brings():
        return [CorruptionRanking(tmp_path / "scores.csv")]

    nets = TinyNetwork(), TinyNetwork()
    module = AddsCallbacks(*nets, brings=brings, noise_level=0.5)
    trainer_of(tmp_path, max_epochs=8, callbacks=[Watch()]).fit(module, data_of(tmp_path))
    assert rates == [1.0] * 4 + [0.5] * 4  # the whole set is ranked after half of the epochs
    auto = AddsCallbacks(*nets, brings=lambda: [NoiseLevelEstimation()], noise_level="auto")
    trainer_of(tmp_path, max_epochs=2).fit(auto, data_of(tmp_path))
    assert auto.noise.estimate is not None


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_forward_of_ones_own_may_give_a_list(tmp_path, kind):
    class Own(CoSegModule):
        def forward(self, images):
            return kind([self.net_a(images), self.net_b(images)])

    trainer = trainer_of(tmp_path, max_epochs=1)
    module = Own(TinyNetwork(), TinyNetwork())
    trainer.fit(module, loader(one_batch()), loader(one_batch()))
    assert {"val/dice_a", "val/dice_b"} <= set(trainer.callback_metrics)
    assert trainer.predict(module, loader(one_batch()[0]))[0].shape == (6, 2, 16, 16)


def test_a_checkpoint_loads_into_a_module_with_another_selection(tmp_path):
    module = module_of()
    module.selection.exclude("ab", "c")
    trainer = trainer_of(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    nets = {"net_a": TinyNetwork(), "net_b": TinyNetwork()}
    with pytest.warns(UserWarning, match="selection policy WholeSet, but this module has PerBatch"):
        loaded = CoSegModule.load_from_checkpoint(tmp_path / "a.ckpt", selection="eq1", **nets)
    torch.testing.assert_close(loaded.state_dict(), module.state_dict())
