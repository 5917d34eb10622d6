"""Other methods: their formulas, and their behaviour as far as it shows from outside."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset

from coseg_lightning import CoSegDataModule, LabelStore, SegmentationModule
from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import class_logits, segmentation_loss
from coseg_lightning.functional.losses import generalised_cross_entropy, symmetric_cross_entropy
from coseg_lightning.methods.adele import (
    EarlyLearningCorrection,
    MultiScaleModule,
    early_learning_is_over,
)
from coseg_lightning.methods.dimensionality import (
    DimensionalityDriven,
    is_turning_point,
    local_intrinsic_dimensionality,
)
from coseg_lightning.methods.filter import PlainPeers
from coseg_lightning.methods.jocor import JoCoR, symmetric_divergence
from coseg_lightning.methods.pick_and_learn import PickAndLearn, bounded_weights
from coseg_lightning.methods.pixel_coteaching import PixelCoTeaching
from coseg_lightning.methods.reweight import Reweighted
from coseg_lightning.methods.transition import (
    LabelTransition,
    TransitionEstimation,
    anchored,
    by_certainty,
    label_logits,
)
from coseg_lightning.modules.batch import Batch
from support import Squares, TinyNetwork, loader, one_batch, trainer_of


def random_case(classes=3, ignored=True):
    logits = torch.randn(2, classes, 4, 5, dtype=torch.float64)
    masks = torch.randint(0, classes, (2, 4, 5))
    if ignored:
        masks[0, :2] = 255
    return logits, masks


def slow_mean(logits, masks, value):
    """Average a function of the label's probability over the labelled pixels, one by one."""
    result = []
    for scores, mask in zip(logits, masks, strict=True):
        p = scores.softmax(dim=0)
        values = [
            value(float(p[mask[r, c], r, c]))
            for r in range(4)
            for c in range(5)
            if mask[r, c] != 255
        ]
        result.append(sum(values) / len(values))
    return torch.tensor(result, dtype=torch.float64)


def test_generalised_cross_entropy():
    logits, masks = random_case()
    expected = slow_mean(logits, masks, lambda p: (1 - p**0.7) / 0.7)
    torch.testing.assert_close(generalised_cross_entropy(logits, masks), expected)
    near_zero = generalised_cross_entropy(logits, masks, q=1e-6)
    torch.testing.assert_close(
        near_zero, slow_mean(logits, masks, lambda p: -np.log(p)), rtol=1e-4, atol=0
    )


def test_symmetric_cross_entropy():
    logits, masks = random_case()
    expected = slow_mean(logits, masks, lambda p: -0.1 * np.log(p) + 4 * (1 - p))
    torch.testing.assert_close(symmetric_cross_entropy(logits, masks), expected)


@pytest.mark.parametrize("loss", [generalised_cross_entropy, symmetric_cross_entropy])
def test_robust_losses_have_finite_gradients_where_the_label_is_impossible(loss):
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0] = 300
    logits.requires_grad_()
    loss(logits, torch.ones(1, 2, 2, dtype=torch.int64)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_robust_loss_takes_the_place_of_the_cross_entropy():
    images, masks = one_batch()
    net = TinyNetwork()
    robust = SegmentationModule(net, pixel_loss="generalised_cross_entropy", lambda_1=0.5)
    logits = net(images)
    expected = generalised_cross_entropy(logits, masks)
    expected += segmentation_loss(logits, masks, lambda_1=0.5)
    expected -= segmentation_loss(logits, masks, lambda_1=0)
    torch.testing.assert_close(robust.losses(images, masks), expected)
    with pytest.raises(InputError, match="pixel_loss='hinge' must be"):
        SegmentationModule(net, pixel_loss="hinge")


def peers(kind, **options):
    torch.manual_seed(1)
    return kind(TinyNetwork(), TinyNetwork(), noise_level=0.5, ramp_epochs=0, **options)


def losses_of(module, images, masks):
    """Compute the peers' losses of random predictions, which have no ties."""
    module.trainer = trainer_of(".")  # the module asks it for the epoch
    logits = [torch.randn(len(masks), 2, *masks.shape[1:]) for _ in range(2)]
    return logits, module.peer_losses(*logits, Batch(images, masks))


def test_plain_peers_learn_from_everything():
    images, masks = one_batch()
    (logits_a, logits_b), (loss_a, loss_b, picks) = losses_of(peers(PlainPeers), images, masks)
    torch.testing.assert_close(loss_a, segmentation_loss(logits_a, masks).mean())
    torch.testing.assert_close(loss_b, segmentation_loss(logits_b, masks).mean())
    assert picks is None


def test_plain_peers_learn_from_shares_of_votes():
    images, masks = one_batch()
    shares, module = torch.rand(len(masks), 2, *masks.shape[1:]).softmax(dim=1), peers(PlainPeers)
    logits = module(images)
    losses = module.peer_losses(*logits, Batch(images, masks, soft_masks=shares))[:2]
    for loss, of_peer in zip(losses, logits, strict=True):
        torch.testing.assert_close(loss, segmentation_loss(of_peer, shares).mean())


def test_pixels_are_exchanged():
    images, masks = one_batch()
    masks[0] = 255
    (logits_a, logits_b), (loss_a, loss_b, _) = losses_of(peers(PixelCoTeaching), images, masks)
    labelled = masks != 255
    a, b = (F.cross_entropy(x, masks, ignore_index=255, reduction="none")[labelled]
            for x in (logits_a, logits_b))  # fmt: skip
    k = int(0.8 * len(a))  # whatever the noise level is
    torch.testing.assert_close(loss_a, a[b.argsort()[:k]].mean())
    torch.testing.assert_close(loss_b, b[a.argsort()[:k]].mean())


def test_pixel_co_teaching_of_an_unlabelled_batch_is_nothing():
    images, masks = one_batch()
    _, (loss_a, loss_b, _) = losses_of(peers(PixelCoTeaching), images, torch.full_like(masks, 255))
    assert loss_a == loss_b == 0


def test_joint_training_by_common_small_losses():
    images, masks = one_batch()
    module = peers(JoCoR, agreement_weight=0.8)
    (logits_a, logits_b), (loss_a, loss_b, picks) = losses_of(module, images, masks)
    p, q = logits_a.softmax(dim=1), logits_b.softmax(dim=1)
    apart = ((p * (p / q).log()).sum(dim=1) + (q * (q / p).log()).sum(dim=1)).mean(dim=(1, 2))
    torch.testing.assert_close(symmetric_divergence(logits_a, logits_b, masks != 255), apart)
    supervised = segmentation_loss(logits_a, masks) + segmentation_loss(logits_b, masks)
    joint = 0.2 * supervised + 0.8 * apart
    smallest = joint.argsort()[:3]
    assert set(picks[0].tolist()) == set(picks[1].tolist()) == set(smallest.tolist())
    torch.testing.assert_close(loss_a + loss_b, joint[smallest].mean())
    with pytest.raises(InputError, match="agreement_weight=1"):
        peers(JoCoR, agreement_weight=1)


def test_early_learning_is_over_when_the_curve_flattens():
    epochs = np.arange(1, 21)
    fast = 0.9 * (1 - np.exp(-0.8 * epochs**0.9))
    over = [early_learning_is_over(fast[:n]) for n in range(1, 21)]
    slopes = np.exp(-0.8 * epochs**0.9) * epochs**-0.1
    expected = (slopes[0] - slopes) / slopes[0] > 0.9
    assert over[3:] == expected[3:].tolist()
    assert over[:3] == [False] * 3
    assert not early_learning_is_over(0.02 * epochs)  # the curve still rises as at the beginning
    assert not early_learning_is_over(np.array([0, 0.01, 0.05, 0.3]))  # the curve rises ever faster
    late = 0.9 / (1 + np.exp(-(epochs - 8) / 1.5))
    first = next(n for n in range(1, 21) if early_learning_is_over(late[:n]))
    assert late[first - 1] > 0.7


def test_several_scales_give_one_consistent_answer():
    torch.manual_seed(0)
    module = MultiScaleModule(TinyNetwork(classes=3), classes=3).eval()
    images = torch.randn(2, 1, 20, 30)
    masks = torch.randint(0, 3, (2, 20, 30))
    mean = module.mean_probabilities(images)
    assert mean.shape == (2, 3, 20, 30)
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(2, 20, 30))
    logits = [
        F.interpolate(
            module(F.interpolate(images, size=size, mode="bilinear")), (20, 30), mode="bilinear"
        )
        for size in ((14, 21), (20, 30), (30, 45))
    ]
    p = [class_logits(part).softmax(dim=1) for part in logits]
    torch.testing.assert_close(mean, sum(p) / 3)
    apart = sum((part * (part / mean).log()).sum(dim=1) for part in p) / 3
    supervised = sum(segmentation_loss(part, masks) for part in logits) / 3
    expected = supervised + apart.mean(dim=(1, 2))
    torch.testing.assert_close(module.losses(images, masks), expected)


def test_labels_are_corrected_once_when_early_learning_is_over(tmp_path):
    class Cut(Squares):
        """The lower part of every third label is missing."""

        def mask(self, index):
            mask = super().mask(index).copy()
            if index % 3 == 0:
                mask[np.nonzero(mask)[0].max() - 3 :] = 0
            return mask

        def image(self, index):
            return Squares(len(self.ids)).image(index)

    torch.manual_seed(0)
    data = CoSegDataModule(Cut(12), image_size=32, in_channels=1, batch_size=4, augmentation=None)
    module = MultiScaleModule(TinyNetwork(width=8), lr=0.03)
    callback = EarlyLearningCorrection(tmp_path / "labels", {1})
    trainer = trainer_of(tmp_path, max_epochs=40, callbacks=[callback])
    trainer.fit(module, data)
    assert callback.corrected == [1]
    assert 4 <= trainer.current_epoch < 40
    layer = LabelStore(tmp_path / "labels")
    assert len(layer) == 12
    truth = Squares(12)
    cut = [i for i in range(12) if i % 3 == 0]
    errors = [(Cut(12).mask(i) != truth.mask(i)).sum() for i in cut]
    left = [(layer.read(f"s{i:02d}") != truth.mask(i)).sum() for i in cut]
    assert sum(left) < sum(errors) / 2


# Pick-and-Learn ------------------------------------------------------------------------------


def test_quality_weights_are_a_bounded_softmax():
    scores = torch.randn(5, dtype=torch.float64) * 10
    exact = [np.exp(1.5 * np.tanh(float(s))) for s in scores]
    expected = torch.tensor([e / sum(exact) for e in exact], dtype=torch.float64)
    weights = bounded_weights(scores, 1.5)
    torch.testing.assert_close(weights, expected)
    assert weights.max() / weights.min() <= np.exp(2 * 1.5)
    with pytest.raises(InputError, match="limit=0 must be a number above 0"):
        PickAndLearn(TinyNetwork(), limit=0)


def test_quality_is_learnt_with_the_network(tmp_path):
    torch.manual_seed(0)
    module = PickAndLearn(TinyNetwork(), in_channels=1)
    images, masks = one_batch()
    masks[0, :2] = 255
    weights = module.weights(images, masks)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    module.eval()  # so that both passes use the same statistics
    plain = SegmentationModule(module.net).losses(images, masks)
    expected = len(masks) * module.weights(images, masks) * plain
    torch.testing.assert_close(module.losses(images, masks), expected)
    module.train()
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer_of(tmp_path).fit(module, loader((images, masks)))
    changed = {name for name, value in module.named_parameters() if not value.equal(before[name])}
    assert any(name.startswith("net.") for name in changed)
    assert any(name.startswith("quality.encoder") for name in changed)


@pytest.mark.slow
def test_bad_labels_are_found_to_be_of_less_quality(tmp_path):
    """Among similar images, those with empty labels are found by their labels alone."""
    torch.manual_seed(0)
    images, masks = torch.randn(8, 1, 32, 32) * 0.1, torch.zeros(8, 32, 32, dtype=torch.long)
    masks[:, 8:24, 8:24] = 1
    images[:, 0] += masks.float()
    masks[6:] = 0
    module = PickAndLearn(TinyNetwork(width=8), in_channels=1, lr=0.01)
    trainer_of(tmp_path, max_epochs=40).fit(module, loader((images, masks)))
    weights = module.weights(images, masks)
    assert weights[6:].max() < weights[:6].min() / 4


# Reweighting ---------------------------------------------------------------------------------


def weights_by_second_derivatives(module, images, masks, clean, lr=0.1):
    """Algorithm 1 of Ren et al.: a weighted step, the clean loss after it, and its slope."""
    names, learnt = zip(*module.net.named_parameters(), strict=True)
    parts = module.parts(functional_call(module.net, dict(module.net.named_parameters()), images),
                         masks)  # fmt: skip
    epsilon = torch.zeros_like(parts, requires_grad=True)
    gradients = torch.autograd.grad((epsilon * parts).sum(), learnt, create_graph=True)
    stepped = {
        name: weight - lr * gradient
        for name, weight, gradient in zip(names, learnt, gradients, strict=True)
    }
    loss = module.parts(functional_call(module.net, stepped, clean.images), clean.masks).mean()
    weights = (-torch.autograd.grad(loss, epsilon)[0]).clamp_min(0)
    return weights / weights.sum()


@pytest.mark.parametrize("per", ["pixel", "sample"])
def test_weights_are_those_of_the_published_algorithm(per):
    torch.manual_seed(0)
    module = Reweighted(TinyNetwork(classes=3), classes=3, per=per).double()
    images = torch.randn(3, 1, 6, 7, dtype=torch.float64)
    masks = torch.randint(0, 3, (3, 6, 7))
    masks[0, 0] = 255
    clean = Batch(torch.randn(2, 1, 6, 7, dtype=torch.float64), torch.randint(0, 3, (2, 6, 7)))
    statistics = {name: value.clone() for name, value in module.named_buffers()}
    weights = module.weights(images, masks, clean)
    torch.testing.assert_close(dict(module.named_buffers()), statistics)
    expected = weights_by_second_derivatives(module, images, masks, clean)
    assert weights.shape == ((3, 6, 7) if per == "pixel" else (3,))
    assert bool((weights > 0).any())
    torch.testing.assert_close(weights, expected)


def test_pixels_that_contradict_the_clean_samples_count_less():
    torch.manual_seed(0)
    module = Reweighted(TinyNetwork())
    images = torch.rand(4, 1, 16, 16)
    masks = (images[:, 0] > 0.5).long()
    wrong = masks.clone()
    wrong[:2] = 1 - wrong[:2]
    weights = module.weights(images, wrong, Batch(images, masks))
    of_images = weights.sum(dim=(1, 2))
    assert of_images[2:].min() > 1.5 * of_images[:2].max()


@pytest.mark.parametrize("per", ["pixel", "sample"])
def test_the_loss_is_the_weighted_one(per, monkeypatch):
    torch.manual_seed(0)
    module = Reweighted(TinyNetwork(), per=per).eval()
    images, masks = one_batch()
    clean = Batch(images.flip(0), masks.flip(0))
    monkeypatch.setattr(module, "clean_batch", lambda size: clean)
    weights = module.weights(images, masks, clean)
    expected = (weights * module.parts(module(images), masks)).sum()
    torch.testing.assert_close(module.losses(images, masks).mean(), expected)
    assert not torch.allclose(expected, module.parts(module(images), masks).mean())


def test_weights_are_computed_in_full_precision():
    torch.manual_seed(0)
    module = Reweighted(TinyNetwork())
    images, masks = one_batch()
    exact = module.weights(images, masks, Batch(images, masks))
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind):
            weights = module.weights(images, masks, Batch(images, masks))
        torch.testing.assert_close(weights, exact)


def test_synchronised_batchnorm_has_no_forward_mode(tmp_path):
    network = nn.SyncBatchNorm.convert_sync_batchnorm(TinyNetwork())
    module = Reweighted(network, clean_ids=["s2"])
    with pytest.raises(InputError, match="leave out sync_batchnorm"):
        trainer_of(tmp_path).fit(module, DataLoader(Foreign([f"s{n}" for n in range(6)])))


def test_reweighting_learns_from_the_clean_ids_of_the_data(tmp_path):
    torch.manual_seed(0)
    options = {"image_size": 16, "in_channels": 1, "batch_size": 4, "augmentation": None}
    data = CoSegDataModule(Squares(12), clean_ids=["s03", "s07"], **options)
    module = Reweighted(TinyNetwork(), lr=0.01)
    trainer_of(tmp_path, max_epochs=2).fit(module, datamodule=data)
    assert sorted(module.clean_batch(4).ids) == ["s03", "s07"]
    with pytest.raises(InputError, match="needs a few training samples whose masks are right"):
        trainer_of(tmp_path).fit(Reweighted(TinyNetwork()), CoSegDataModule(Squares(12), **options))
    with pytest.raises(InputError, match="clean_ids names 'x', which is not a training sample"):
        trainer_of(tmp_path).fit(Reweighted(TinyNetwork(), clean_ids=["x"]), data)
    with pytest.raises(InputError, match="per='image' must be pixel or sample"):
        Reweighted(TinyNetwork(), per="image")


def test_clean_ids_stay_clean(tmp_path):
    options = {"noise": EmptyMask(), "noise_level": 0.5, "seed": 3}
    ids = Squares(12).ids

    def noisy(folder, **more):
        data = CoSegDataModule(Squares(12), noise_folder=tmp_path / folder, **options, **more)
        data.prepare_data()
        return data, set(LabelStore(tmp_path / folder).ids)

    _, plain = noisy("plain")
    data, with_four = noisy("four", clean_ids=4)
    assert with_four == plain  # a number is drawn from the other samples, so that methods compare
    assert len(data.clean_ids) == 4
    assert not data.clean_ids & plain
    named, chosen = noisy("named", clean_ids=sorted(plain))
    assert named.clean_ids == plain
    assert chosen == set(ids) - plain
    with pytest.raises(InputError, match="6 of 12 masks shall be noisy, but 7 shall stay clean"):
        noisy("seven", clean_ids=ids[:7])
    with pytest.raises(InputError, match="names 'nobody', which is no training sample"):
        noisy("nobody", clean_ids=["nobody"])
    with pytest.raises(InputError, match="clean_ids=3 works only with noise, and for 1 to 12"):
        CoSegDataModule(Squares(12), clean_ids=3)


class EmptyMask:
    def __call__(self, mask, *, id, seed, strength=1.0):
        return np.zeros_like(mask)


# Transition matrices -------------------------------------------------------------------------


def test_labels_are_explained_by_the_matrix():
    logits, masks = random_case()
    matrix = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.0, 0.3, 0.7]])
    module = LabelTransition(TinyNetwork(classes=3), classes=3, transition=matrix)
    torch.testing.assert_close(module.transition, matrix, atol=1e-5, rtol=0)
    explained = label_logits(logits, matrix)
    for n in range(2):
        for r in range(4):
            for c in range(5):
                p = logits[n, :, r, c].softmax(dim=0)
                expected = [sum(float(p[i] * matrix[i, j]) for i in range(3)) for j in range(3)]
                probabilities = explained[n, :, r, c].exp()
                torch.testing.assert_close(
                    probabilities, torch.tensor(expected, dtype=probabilities.dtype)
                )
    losses = module.supervised_losses(logits, masks)
    torch.testing.assert_close(losses, segmentation_loss(explained, masks), atol=1e-4, rtol=1e-4)
    one_output = label_logits(torch.zeros(1, 1, 2, 2), torch.eye(2))
    torch.testing.assert_close(one_output.exp(), torch.full((1, 2, 2, 2), 0.5))


def test_without_a_matrix_the_network_is_a_plain_one():
    logits, masks = random_case()
    module = LabelTransition(TinyNetwork(classes=3), classes=3)
    torch.testing.assert_close(
        module.supervised_losses(logits, masks), segmentation_loss(logits, masks)
    )


@pytest.mark.parametrize("wrong", [[[1, 0]], [[0.5, 0.6], [0, 1]], [[1.5, -0.5], [0, 1]], "ab"])
def test_what_is_no_transition_is_named(wrong):
    with pytest.raises(InputError, match="must be 2 rows of 2 probabilities"):
        LabelTransition(TinyNetwork(), transition=wrong)


def test_anchors_are_the_surest_pixels_of_each_class():
    torch.manual_seed(0)
    p = torch.randn(5000, 3, dtype=torch.float64).mul(3).softmax(dim=1)
    transition = anchored(by_certainty(p))
    for k in range(3):
        of_class = p[p.argmax(dim=1) == k]
        order = of_class[:, k].argsort()
        anchor = of_class[order[int(0.97 * len(order))]]
        torch.testing.assert_close(transition[k, k], anchor[k], atol=1 / 200, rtol=0)
    torch.testing.assert_close(transition.sum(dim=1), torch.ones(3, dtype=torch.float64))
    never = by_certainty(torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(anchored(never)[1:], torch.eye(3, dtype=torch.float64)[1:])


@pytest.mark.parametrize("estimate", ["anchors", "confusion"])
def test_a_known_confusion_is_found(tmp_path, estimate):
    """A network that knows each pixel's class, and labels a third of which are mistaken."""

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            # The network has learnt how sure it may be.
            foreground = torch.where(images > 0.5, 0.7, 0.1)
            return (torch.cat([1 - foreground, foreground], dim=1)).log() * self.scale

    torch.manual_seed(0)
    images = torch.rand(8, 1, 64, 64)
    odds = torch.where(images[:, 0] > 0.5, 0.7, 0.1)
    masks = torch.bernoulli(odds).long()
    masks[0] = 255
    module = LabelTransition(Told(), estimate=estimate, lr=0.0)
    callback = TransitionEstimation()
    batches = DataLoader(list(zip(images, masks, strict=True)), batch_size=3)
    trainer_of(tmp_path, max_epochs=1, callbacks=[callback]).fit(module, batches)
    transition = torch.tensor(callback.transition)
    if estimate == "anchors":
        expected = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    else:  # by predicted mass, which is not certain
        p = torch.where(images[1:, 0] > 0.5, 0.7, 0.1).flatten()
        y = masks[1:].flatten().float()
        expected = torch.stack(
            [
                torch.stack([((1 - p) * (1 - y)).sum(), ((1 - p) * y).sum()]) / (1 - p).sum(),
                torch.stack([(p * (1 - y)).sum(), (p * y).sum()]) / p.sum(),
            ]
        )
    torch.testing.assert_close(transition, expected, atol=1e-3, rtol=0)


def test_the_adaptation_layer_learns(tmp_path):
    torch.manual_seed(0)
    start = [[0.9, 0.1], [0.2, 0.8]]
    fixed = LabelTransition(TinyNetwork(), transition=start)
    learnt = LabelTransition(TinyNetwork(), transition=start, learnt=True)
    for module in (fixed, learnt):
        trainer_of(tmp_path).fit(module, loader(one_batch()))
    torch.testing.assert_close(fixed.transition, torch.tensor(start), atol=1e-5, rtol=0)
    assert not torch.allclose(learnt.transition, torch.tensor(start), atol=1e-5)
    torch.testing.assert_close(learnt.transition.sum(dim=1), torch.ones(2))


# Dimensionality ------------------------------------------------------------------------------


def test_local_intrinsic_dimensionality():
    points = torch.randn(30, 4, dtype=torch.float64)
    expected = []
    for i in range(30):
        r = sorted(float((points[i] - points[j]).norm()) for j in range(30) if j != i)[:7]
        expected.append(-7 / sum(np.log(x / r[-1]) for x in r))
    estimates = local_intrinsic_dimensionality(points, 7)
    torch.testing.assert_close(estimates, torch.tensor(expected, dtype=torch.float64))
    same = torch.ones(30, 4)
    assert local_intrinsic_dimensionality(same, 7).tolist() == [0]
    assert local_intrinsic_dimensionality(same[:2], 7).tolist() == [0]


def test_dimensionality_of_points_in_a_plane_and_in_space():
    generator = torch.Generator().manual_seed(0)
    space = torch.rand(1000, 8, generator=generator)
    plane = torch.cat([space[:, :2], torch.zeros(1000, 6)], dim=1)
    low, high = (local_intrinsic_dimensionality(points, 20).mean() for points in (plane, space))
    assert 1.6 < low < 2.6
    assert high > 5


def test_the_turning_point():
    falling = [9.0, 8.0, 7.0, 6.5, 6.2, 6.0, 5.9, 5.8, 5.75, 5.7]
    assert not is_turning_point(falling)
    assert not is_turning_point([*falling, 5.7])
    assert is_turning_point([*falling, 6.5])
    assert not is_turning_point([*falling[:9], 6.5])  # this is too early


def test_labels_give_way_after_the_turning_point(tmp_path, monkeypatch):
    torch.manual_seed(0)
    images, masks = one_batch()
    masks[0, :2] = 255
    dimensionalities = iter([3.0] * 9 + [2.0, 4.0, 3.0])
    module = DimensionalityDriven(TinyNetwork(), lr=0.05)
    monkeypatch.setattr(module, "dimensionality", lambda _: next(dimensionalities))
    states, alphas = [], []

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            states.append(pl_module.net.state_dict()["layers.0.weight"].clone())
            alphas.append(pl_module.alpha)

    trainer_of(tmp_path, max_epochs=12, callbacks=[Look()]).fit(module, loader((images, masks)))
    assert module.turning_epoch == 9
    assert alphas[:10] == [1] * 10
    assert states[10].equal(states[9])  # the eleventh epoch is rolled back
    assert not states[11].equal(states[10])
    # The loss of the last epoch, computed by hand.
    alpha = np.exp(-11 / 12 * 3.0 / 2.0)
    assert alphas[11] == pytest.approx(alpha)
    module.eval()
    logits = module.net(images)
    predicted = logits.argmax(dim=1).where(masks != 255, masks)
    expected = alpha * segmentation_loss(logits, masks)
    expected += (1 - alpha) * segmentation_loss(logits, predicted)
    module.train()
    monkeypatch.setattr(DimensionalityDriven, "alpha", alpha)
    monkeypatch.setattr(module, "dimensionality", lambda _: 1.0)
    module._seen = images  # as it is during training
    module.net.eval()
    torch.testing.assert_close(module.losses(images, masks), expected)
    assert not any(part._forward_pre_hooks for part in module.net.modules())


def test_dimensionality_goes_on_where_it_was(tmp_path):
    module = DimensionalityDriven(TinyNetwork())
    module.dimensions, module.turning_epoch = [3.0, 2.0], 1
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    other = DimensionalityDriven(TinyNetwork())
    other.on_load_checkpoint(checkpoint)
    assert (other.dimensions, other.turning_epoch) == ([3.0, 2.0], 1)
    with pytest.raises(InputError, match="neighbours=1 must be a whole number of at least 2"):
        DimensionalityDriven(TinyNetwork(), neighbours=1)
    with pytest.raises(InputError, match="Identity has no convolution"):
        DimensionalityDriven(nn.Identity())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: PickAndLearn(TinyNetwork(), in_channels=1),
        lambda: Reweighted(TinyNetwork(), clean_ids=["s01"]),
        lambda: LabelTransition(TinyNetwork(), transition=[[0.9, 0.1], [0.2, 0.8]], learnt=True),
        lambda: DimensionalityDriven(TinyNetwork()),
    ],
)
def test_methods_in_other_precisions(tmp_path, make, precision):
    options = {"image_size": 16, "in_channels": 1, "batch_size": 4, "augmentation": None}
    module, data = make(), CoSegDataModule(Squares(8), **options)
    trainer_of(tmp_path, precision=precision).fit(module, datamodule=data)
    assert all(bool(torch.isfinite(value).all()) for value in module.net.parameters())


def test_label_probabilities_stay_precise_in_mixed_precision():
    logits = 4 * torch.randn(2, 2, 8, 8)
    matrix = torch.tensor([[0.999, 0.001], [0.002, 0.998]])
    exact = label_logits(logits, matrix)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(label_logits(logits, matrix), exact)


def test_a_learnt_transition_is_loaded_and_goes_on(tmp_path):
    net = "unet_classic"
    options = {"in_channels": 1, "base_channels": 2}
    module = LabelTransition(net, learnt=True, **options)
    module.set_transition([[0.7, 0.3], [0.2, 0.8]])
    batch = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 16, 16))
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module, loader(batch))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LabelTransition.load_from_checkpoint(tmp_path / "a.ckpt")
    fresh = LabelTransition(net, learnt=True, **options)
    trainer_of(tmp_path, max_epochs=2).fit(
        fresh, loader(batch), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    for other in (loaded, fresh):
        assert other.known
        assert other.log_transition.requires_grad
    torch.testing.assert_close(loaded.transition, module.transition)
    assert not torch.equal(fresh.transition, module.transition)


class Foreign(Dataset):
    """A foreign dataset: samples `(image, mask)`, with or without an id."""

    def __init__(self, ids):
        self.given = ids

    def __len__(self):
        return 6

    def __getitem__(self, index):
        rest = [] if self.given is None else [self.given[index]]
        return torch.randn(1, 16, 16), torch.randint(0, 2, (16, 16)), *rest


@pytest.mark.parametrize(
    ("ids", "clean"),
    [([f"s{n}" for n in range(6)], ["s2"]), (range(6), ["2"]), (range(6), [2]), (None, [2])],
)
def test_clean_samples_of_any_dataset_are_found(tmp_path, ids, clean):
    module = Reweighted(TinyNetwork(), clean_ids=clean)
    trainer_of(tmp_path).fit(module, DataLoader(Foreign(ids), batch_size=3))
    assert module._clean_places == [2]
    with pytest.raises(InputError, match="give one training loader with a map-style dataset"):
        trainer_of(tmp_path).fit(
            Reweighted(TinyNetwork(), clean_ids=clean), {"a": DataLoader(Foreign(ids))}
        )


def test_what_a_quality_module_cannot_judge_is_named():
    images, masks = torch.randn(2, 1, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)
    with pytest.raises(InputError, match=r"have 1 channels, .* was made for 3; give"):
        PickAndLearn(TinyNetwork()).weights(images, masks)
    with pytest.raises(InputError, match="no encoder 'resnet81'; did you mean resnet18"):
        PickAndLearn(TinyNetwork(), quality_encoder="resnet81")
    with pytest.raises(InputError, match="limit=a must be a number above 0"):
        PickAndLearn(TinyNetwork(), limit="a")
    module = PickAndLearn(TinyNetwork(), in_channels=1)  # the last batch holds one sample
    assert module.weights(images[:1], masks[:1]).tolist() == [1]


def test_dimensionality_needs_to_know_when_training_ends(tmp_path):
    options = {"max_epochs": -1, "max_steps": 2}
    with pytest.raises(InputError, match="give the trainer max_epochs"):
        trainer_of(tmp_path, **options).fit(
            DimensionalityDriven(TinyNetwork()), loader(one_batch())
        )


def test_several_scales_train_auxiliary_outputs_too(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.second = TinyNetwork(), TinyNetwork()

        def forward(self, images):
            return {"out": self.used(images), "aux": self.second(images)}

    module = MultiScaleModule(Two())
    before = next(module.net.second.parameters()).clone()
    trainer_of(tmp_path).fit(module, loader(one_batch()))
    assert not torch.equal(next(module.net.second.parameters()), before)
