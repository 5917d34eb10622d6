"""Other methods: their formulas, and what of them can be told from outside."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Squares, TinyNetwork
from test_coseg_module import one_batch, trainer_of

from coseg_lightning import CoSegDataModule, LabelStore, SegmentationModule
from coseg_lightning.data.samples import Batch
from coseg_lightning.equations import class_logits, segmentation_loss
from coseg_lightning.errors import InputError
from coseg_lightning.pixel_losses import generalised_cross_entropy, symmetric_cross_entropy
from coseg_lightning.rivals.early_learning import (
    EarlyLearningCorrection,
    MultiScaleModule,
    early_learning_is_over,
)
from coseg_lightning.rivals.peers import JoCoR, PixelCoTeaching, PlainPeers, symmetric_divergence


def random_case(classes=3, ignored=True):
    logits = torch.randn(2, classes, 4, 5, dtype=torch.float64)
    masks = torch.randint(0, classes, (2, 4, 5))
    if ignored:
        masks[0, :2] = 255
    return logits, masks


def slow_mean(logits, masks, value):
    """Pixel by pixel, from the probability of the label."""
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
    """Of predictions that have no ties."""
    module.trainer = trainer_of(".")  # for the epoch
    logits = [torch.randn(len(masks), 2, *masks.shape[1:]) for _ in range(2)]
    return logits, module.peer_losses(*logits, Batch(images, masks))


def test_plain_peers_learn_from_everything():
    images, masks = one_batch()
    (logits_a, logits_b), (loss_a, loss_b, picks) = losses_of(peers(PlainPeers), images, masks)
    torch.testing.assert_close(loss_a, segmentation_loss(logits_a, masks).mean())
    torch.testing.assert_close(loss_b, segmentation_loss(logits_b, masks).mean())
    assert picks is None


def test_pixels_are_exchanged():
    images, masks = one_batch()
    masks[0] = 255
    (logits_a, logits_b), (loss_a, loss_b, _) = losses_of(peers(PixelCoTeaching), images, masks)
    labelled = masks != 255
    a, b = (F.cross_entropy(x, masks, ignore_index=255, reduction="none")[labelled]
            for x in (logits_a, logits_b))  # fmt: skip
    k = int(0.8 * len(a))  # whatever the noise level
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
    assert not early_learning_is_over(0.02 * epochs)  # still rising as in the beginning
    assert not early_learning_is_over(np.array([0, 0.01, 0.05, 0.3]))  # rising ever faster
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
