"""Ranking and label correction at the end of a plain `Trainer.fit`."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from coseg_lightning import (
    CorruptionRanking,
    CoSegDataModule,
    CoSegModule,
    LabelCorrection,
    LabelStore,
    SegmentationModule,
)
from coseg_lightning.callbacks import evidence_sum, prediction_store
from coseg_lightning.callbacks.evidence_sum import EvidencePass, EvidenceShare, EvidenceSum
from coseg_lightning.data.samples import SampleDataset
from coseg_lightning.errors import InputError
from coseg_lightning.files.background import background_writer
from coseg_lightning.functional.dice import dice_by_class, foreground_dice, mask_dice
from coseg_lightning.modules.batch import Batch
from coseg_lightning.noise import AffineNoise, BoundaryNoise
from coseg_lightning.ranking import guard
from coseg_lightning.ranking.evidence import CLASS_COLUMNS, MASK_COLUMNS
from coseg_lightning.ranking.guard import CorrectionGuard
from coseg_lightning.ranking.ranking import Ranking
from support import (
    Oracle,
    Squares,
    TinyNetwork,
    data_of,
    hashes,
    loader,
    module_of,
    one_batch,
    trainer_of,
)

# Eq. (1) of the trained peers, without an average over epochs.
LAST_EQ1 = {"score": "mean", "epochs": 1}


def fit(tmp_path, module, data, name="run", ranking=None, correction=None, **options):
    ranking = CorruptionRanking(tmp_path / name / "scores.csv", **(ranking or {}))
    correction = LabelCorrection(tmp_path / name / "labels", **(correction or {}))
    # The less obvious order of the callbacks: it must not matter.
    trainer = trainer_of(tmp_path, callbacks=[correction, ranking], **options)
    trainer.fit(module, data)
    return ranking.ranking, correction.layer


def rows_of(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def slow_scores(module, data):
    """Score every training sample on its own, in evaluation mode, straight from Eq. (1)."""
    module.eval()
    samples = data.given_samples().plain()
    result = {}
    for sample in samples:
        with torch.no_grad():
            result[sample["id"]] = [
                F.cross_entropy(net(sample["image"][None]), sample["mask"][None]).item()
                for net in (module.net_a, module.net_b)
            ]
    return result


def test_ranking_scores_every_sample_once_unaugmented_and_in_evaluation_mode(tmp_path):
    data, module = data_of(tmp_path), module_of(noise_level=0.3)
    fit(tmp_path, module, data, ranking=LAST_EQ1)
    rows = rows_of(tmp_path / "run" / "scores.csv")
    assert list(rows[0])[:7] == [
        "id", "score", "score_a", "score_b", "rank", "noisy", "changed_pixels",
    ]  # fmt: skip
    expected = slow_scores(module, data)
    assert sorted(row["id"] for row in rows) == sorted(expected)
    for row in rows:
        a, b = expected[row["id"]]
        assert float(row["score_a"]) == pytest.approx(a, rel=1e-4)
        assert float(row["score_b"]) == pytest.approx(b, rel=1e-4)
        assert float(row["score"]) == pytest.approx((a + b) / 2, rel=1e-4)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert [int(row["rank"]) for row in rows] == list(range(1, 12))
    assert [row["noisy"] for row in rows] == ["1"] * 3 + ["0"] * 8


def test_what_is_known_of_the_truth_is_recorded(tmp_path):
    data = data_of(tmp_path)
    ranking, layer = fit(tmp_path, module_of(noise_level=0.3), data)
    noise, squares = LabelStore(tmp_path / "noise"), Squares(11)
    for row in rows_of(tmp_path / "run" / "scores.csv"):
        sample_id, index = row["id"], squares.ids.index(row["id"])
        assert row["replaced"] == str(int(sample_id in noise))
        label = noise.read(sample_id) if sample_id in noise else squares.mask(index)
        assert float(row["label_dice"]) == pytest.approx(mask_dice(label, squares.mask(index)))
        after = layer.read(sample_id) if sample_id in layer else label
        assert float(row["corrected_dice"]) == pytest.approx(mask_dice(after, squares.mask(index)))
        changed = int((layer.read(sample_id) != label).sum()) if sample_id in layer else ""
        assert row["changed_pixels"] == str(changed)
    assert ranking.auroc is not None


def test_the_ranking_is_the_same_for_any_number_of_workers(tmp_path):
    texts = []
    for workers in (0, 2):
        data = data_of(tmp_path, num_workers=workers)
        fit(tmp_path, module_of(), data, name=str(workers), max_epochs=1)
        texts.append((tmp_path / str(workers) / "scores.csv").read_text())
    assert texts[0] == texts[1]


class Sharp(Squares):
    """Squares without image noise, so that a threshold separates them."""

    def image(self, index):
        return (200 * self.mask(index)).astype(np.uint8)


@pytest.mark.parametrize("side", [64, 48])
def test_correction_votes_at_the_masks_own_resolution(tmp_path, side):
    """The networks see 32 pixels, and probabilities are resized to the mask's size, not labels."""
    squares = Sharp(6, side=side)
    data = CoSegDataModule(squares, image_size=32, in_channels=1, batch_size=4, augmentation=None)
    net_a, net_b = Oracle(), Oracle()
    net_b.gain.data *= 1.5
    module = CoSegModule(net_a, net_b, noise_level=0.9, lr=0.0)
    _, layer = fit(tmp_path, module, data, max_epochs=1, correction={"confidence": 0})
    assert len(layer) == round(0.9 * 6)
    plain = SampleDataset(squares, image_size=32, in_channels=1)
    for sample_id in layer.ids:
        index = squares.ids.index(sample_id)
        image = plain[index]["image"][None]
        votes = []
        for net in (net_a, net_b):
            probabilities = net(image).softmax(dim=1)
            votes.append(
                F.interpolate(probabilities, (side, side), mode="bilinear").argmax(dim=1)[0]
            )
        label = torch.from_numpy(squares.mask(index).astype(np.int64))
        expected = torch.where(votes[0] == votes[1], votes[0], label)
        np.testing.assert_array_equal(layer.read(sample_id), expected)
        assert layer.facts(sample_id)["changed_pixels"] == int((expected != label).sum())
        assert layer.read(sample_id).shape == (side, side)


def test_correction_repairs_what_both_peers_know_better(tmp_path):
    class Cut(Sharp):
        """Images of whole squares; the lower part of the first two labels is missing."""

        def mask(self, index):
            mask = super().mask(index).copy()
            if index > 1:
                return mask
            mask[np.nonzero(mask)[0].max() - 3 :] = 0
            return mask

        def image(self, index):
            return Sharp().image(index)

    net_b = Oracle()
    net_b.gain.data *= 2
    module = CoSegModule(Oracle(), net_b, noise_level=0.5, lr=0.0)
    data = CoSegDataModule(Cut(4), image_size=32, in_channels=1, augmentation=None)
    _, layer = fit(tmp_path, module, data, max_epochs=1)
    assert list(layer.ids) == Sharp().ids[:2]
    for sample_id in layer.ids:
        np.testing.assert_array_equal(
            layer.read(sample_id), Sharp().mask(Sharp().ids.index(sample_id))
        )


def test_peers_that_disagree_change_nothing(tmp_path):
    module = CoSegModule(Oracle(), Oracle(wrong=True), noise_level=0.5, lr=0.0)
    data = CoSegDataModule(Sharp(4), image_size=32, in_channels=1, augmentation=None)
    ranking, layer = fit(tmp_path, module, data, max_epochs=1)
    assert set(ranking.changed_pixels.values()) == {0}
    for sample_id in layer.ids:
        np.testing.assert_array_equal(
            layer.read(sample_id), Sharp(4).mask(Sharp(4).ids.index(sample_id))
        )


def test_the_users_files_are_not_touched(make_folder, tmp_path):
    from coseg_lightning.data.folder import folder_splits

    root = make_folder()
    before = hashes(root)
    splits = folder_splits(root)
    data = CoSegDataModule(splits.train, None, splits.test, image_size=32, in_channels=1)
    _, layer = fit(tmp_path, module_of(noise_level=0.5), data)
    assert len(layer)
    assert hashes(root) == before


def test_nothing_is_noisy_at_noise_level_zero(tmp_path):
    ranking, layer = fit(tmp_path, module_of(noise_level=0), data_of(tmp_path))
    assert ranking.noisy == []
    assert len(layer) == 0
    assert len(rows_of(tmp_path / "run" / "scores.csv")) == 11


def test_noise_of_another_setting_is_not_taken_for_this_one(tmp_path):
    data_of(tmp_path).prepare_data()
    data_of(tmp_path).prepare_data()
    for changed in (
        {"noise_level": 0.5},
        {"noise": BoundaryNoise(max_pixels=3)},
        {"noise": AffineNoise()},
    ):
        other = data_of(tmp_path)
        vars(other).update(changed)
        with pytest.raises(InputError, match="noisy masks of other settings"):
            other.prepare_data()
    everything = data_of(tmp_path / "all")
    everything.noise_level = 1.0
    everything.prepare_data()
    everything.seed += 1  # draws the same samples
    with pytest.raises(InputError, match="noisy masks of other settings"):
        everything.prepare_data()


def test_the_last_epochs_are_averaged(tmp_path):
    data, module, epoch_scores = data_of(tmp_path), module_of(), []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            epoch_scores.append(slow_scores(pl_module, data))
            pl_module.train()

    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean", epochs=3)
    trainer_of(tmp_path, callbacks=[ranking, Watch()], max_epochs=5).fit(module, data)
    for sample_id, a, b in zip(
        ranking.ranking.ids, ranking.ranking.score_a, ranking.ranking.score_b, strict=True
    ):
        expected = np.mean([scores[sample_id] for scores in epoch_scores[-3:]], axis=0)
        np.testing.assert_allclose([a, b], expected, rtol=1e-4)


def test_a_ranking_of_no_score_is_refused():
    with pytest.raises(InputError, match="score=loss: there is no such score; use one of joint"):
        CorruptionRanking(score="loss")
    with pytest.raises(InputError, match="epochs=0 must be a whole number of at least 1"):
        CorruptionRanking(epochs=0)


class TwoSquares(Sharp):
    """Class 1 on the left at half brightness, class 2 on the right at full brightness."""

    def mask(self, index):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 4:14], mask[8:20, 18:28] = 1, 2
        return mask

    def image(self, index):
        return (100 * self.mask(index)).astype(np.uint8)


class ThreeClasses(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, images):
        level = images - images.amin(dim=(2, 3), keepdim=True)
        level = 2 * level / level.amax(dim=(2, 3), keepdim=True)
        return torch.cat([-self.gain * (level - k).abs() for k in range(3)], dim=1)


@pytest.mark.parametrize("by_class", [False, True])
def test_only_the_noisy_class_of_a_mask_is_corrected(tmp_path, by_class):
    class Drawn(TwoSquares):
        def image(self, index):
            return (100 * super().mask(index)).astype(np.uint8)

        def mask(self, index):
            mask = super().mask(index)
            if index < 2:
                mask[8:14, 18:28] = 0  # half of class 2 is missing in two masks of eight
            mask[8, 4:14] = 0  # a row of class 1 is missing in all masks
            return mask

    data = CoSegDataModule(Drawn(8), image_size=32, in_channels=1, augmentation=None)
    module = CoSegModule(ThreeClasses(8.0), ThreeClasses(9.0), classes=3, noise_level=0.25, lr=0.0)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="relative")
    correction = LabelCorrection(tmp_path / "labels", by_class=by_class)
    trainer_of(tmp_path, callbacks=[ranking, correction], max_epochs=1).fit(module, data)
    assert set(correction.layer.ids) >= {"s00", "s01"}
    for index in (0, 1):
        mask = correction.layer.read(f"s{index:02d}")
        np.testing.assert_array_equal(mask == 2, TwoSquares(8).mask(index) == 2)
    rows = {row["id"]: row for row in rows_of(tmp_path / "scores.csv")}
    assert rows["s00"]["suspicious_class"] == "2"
    assert "2" in rows["s00"]["noisy_classes"].split()
    assert float(rows["s00"]["score_class_2"]) > float(rows["s05"]["score_class_2"])
    noisy_in_1 = {
        sample_id for sample_id, row in rows.items() if "1" in row["noisy_classes"].split()
    }
    assert len(noisy_in_1) == 2
    for sample_id in set(correction.layer.ids):
        restored = (correction.layer.read(sample_id)[8, 4:14] == 1).all()
        assert restored == (sample_id in noisy_in_1 if by_class else True)


class Plain(Dataset):
    """A foreign dataset: its samples have no ids, so that the ranking numbers them."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        image = torch.from_numpy(Squares().image(index).astype(np.float32))[None] / 100
        return image, torch.from_numpy(Squares().mask(index).astype(np.int64))


def test_the_sum_over_pixels_is_an_option(tmp_path):
    data, module = data_of(tmp_path), module_of()
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="sum", epochs=1)
    trainer_of(tmp_path, callbacks=[ranking]).fit(module, data)
    expected = slow_scores(module, data)
    for sample_id, a in zip(ranking.ranking.ids, ranking.ranking.score_a, strict=True):
        assert a == pytest.approx(32 * 32 * expected[sample_id][0], rel=1e-4)


def test_a_diverged_training_corrects_nothing(tmp_path):
    class Broken(Oracle):
        def forward(self, images):
            return super().forward(images) * (1 if self.training else float("nan"))

    net_b = Broken()
    net_b.gain.data *= 2
    data = CoSegDataModule(Sharp(4), image_size=32, in_channels=1)
    with pytest.raises(InputError, match="training diverged"):
        fit(tmp_path, CoSegModule(Broken(), net_b, noise_level=0.5), data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_ranking_and_correction_in_other_precisions(tmp_path, precision):
    ranking, layer = fit(tmp_path, module_of(), data_of(tmp_path), precision=precision)
    assert np.isfinite(ranking.score).all()
    assert len(layer) == round(0.5 * 11)


def test_a_part_of_a_dataset_is_ranked_unaugmented_and_corrected_at_its_own_resolution(tmp_path):
    data = data_of(tmp_path)
    data.prepare_data()
    part = Subset(data.given_samples(), [4, 1, 7, 2])
    module = module_of(noise_level=0.5)
    ranking, layer = fit(tmp_path, module, DataLoader(part, batch_size=2), ranking=LAST_EQ1)
    expected = slow_scores(module, data)
    assert list(ranking.ids) == ["s04", "s01", "s07", "s02"]
    for sample_id, a in zip(ranking.ids, ranking.score_a, strict=True):
        assert a == pytest.approx(expected[sample_id][0], rel=1e-4)
    assert len(layer) == 2


def test_two_samples_of_one_id_are_refused(tmp_path):
    class Patients(Plain):
        def __getitem__(self, index):
            return (*super().__getitem__(index), f"patient{index // 2}")

    with pytest.raises(InputError, match="2 samples have the id 'patient0'"):
        fit(tmp_path, module_of(), DataLoader(Patients(), batch_size=3))


def test_ids_that_cannot_be_files_are_refused_before_training(tmp_path):
    squares = Squares(3)
    squares.ids[1] = "a\\b"
    with pytest.raises(InputError, match="cannot be a file name"):
        CoSegDataModule(squares)


def test_an_ignore_index_that_no_png_can_hold_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="ignore_index=-100 cannot be stored"):
        fit(tmp_path, module_of(ignore_index=-100), loader(one_batch()))


def test_samples_without_ids_are_numbered(tmp_path):
    ranking, layer = fit(tmp_path, module_of(), DataLoader(Plain(), batch_size=3, shuffle=True))
    assert list(ranking.ids) == [str(i) for i in range(7)]
    assert len(layer) == round(0.5 * 7)
    assert layer.read(layer.ids[0]).shape == (32, 32)


def test_both_refuse_at_the_start_what_would_fail_at_the_end(tmp_path):
    (tmp_path / "scores.csv").write_text("mine")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"mine")
    ranking = CorruptionRanking(tmp_path / "new.csv")
    cases = [
        ([CorruptionRanking(tmp_path / "scores.csv")], module_of(), "exists and is never"),
        ([ranking, LabelCorrection(tmp_path / "masks")], module_of(), "is not empty"),
        ([LabelCorrection(tmp_path / "labels")], module_of(), "add a CorruptionRanking"),
        ([ranking], SegmentationModule(TinyNetwork()), "SegmentationModule has none"),
    ]
    for callbacks, module, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            trainer_of(tmp_path, callbacks=callbacks).fit(module, loader(one_batch()))
    assert (tmp_path / "scores.csv").read_text() == "mine"
    assert (tmp_path / "masks" / "a.png").read_bytes() == b"mine"


def test_ranking_order_auroc_and_cut():
    scores = np.array([0.1, 0.9, 0.5, np.nan, 0.9])
    ranking = Ranking(
        list("abcde"), scores, scores, 0.6, replaced=frozenset("be"), label_dice=np.ones(5)
    )
    assert [ranking.ids[i] for i in ranking.worst_first] == list("dbeca")
    assert [ranking.ids[i] for i in ranking.noisy] == list("dbe")
    assert ranking.excluded_by_peers == (frozenset("dbe"), frozenset("dbe"))
    finite = Ranking(list("abce"), scores[[0, 1, 2, 4]], scores[[0, 1, 2, 4]], 0.5, frozenset("bc"))
    # Pairs (replaced, other): (b,a) is won, (b,e) is tied, (c,a) is won, (c,e) is lost.
    assert finite.auroc == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert 0 <= Ranking(list("abd"), scores[1:4], scores[1:4], 0.5, frozenset("b")).auroc <= 1
    assert Ranking(list("ab"), scores[:2], scores[:2], 0.5, frozenset()).auroc is None
    assert Ranking(list("ab"), scores[:2], scores[:2], 0.5).auroc is None


def test_layer_files_are_png_of_the_id(tmp_path):
    fit(tmp_path, module_of(noise_level=0.3), data_of(tmp_path))
    files = sorted((tmp_path / "run" / "labels").glob("*.png"))
    noisy = {r["id"] for r in rows_of(tmp_path / "run" / "scores.csv") if r["noisy"] == "1"}
    assert {path.stem for path in files} == noisy
    assert Image.open(files[0]).mode == "L"


def test_labels_are_left_alone_where_those_kept_vary_more(tmp_path, monkeypatch):
    guards = []

    def inverted(of_run):
        guards.append(of_run)
        return True

    monkeypatch.setattr(CorrectionGuard, "wrong_half_suspected", property(inverted))
    monkeypatch.setattr(guard, "MIN_LABEL_PEER_RATIO", 0)
    monkeypatch.setattr(guard, "MAX_DISAGREEMENT", 1)
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    correction = LabelCorrection(tmp_path / "labels")
    trainer = trainer_of(tmp_path, callbacks=[ranking, correction])
    trainer.fit(module_of(noise_level=0.3), data_of(tmp_path))
    assert correction.correction_skipped
    assert correction.wrong_half_suspected
    rows = rows_of(tmp_path / "scores.csv")
    assert all(row["changed_pixels"] in ("", "0") for row in rows)
    for noisy, excess in (
        ("1", guards[0].excluded_size_bias),
        ("0", guards[0].kept_size_bias),
    ):
        written = [float(row["excess"]) for row in rows if row["noisy"] == noisy]
        assert sorted(excess) == pytest.approx(sorted(written))


def test_what_is_frozen_stays_frozen_through_the_passes(tmp_path):
    class Frozen(CoSegModule):
        def on_fit_start(self):
            super().on_fit_start()
            self.net_a.layers[1].eval()

    module, modes = Frozen(TinyNetwork(), TinyNetwork(width=5), noise_level=0.3), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            modes.append(pl_module.net_a.layers[1].training)

    ranking = CorruptionRanking(tmp_path / "scores.csv", epochs=3)
    trainer = trainer_of(tmp_path, callbacks=[ranking, Watch()], max_epochs=3)
    trainer.fit(module, data_of(tmp_path))
    assert modes == [False] * 3
    assert module.net_b.layers[1].training


def test_correction_is_the_same_whether_predictions_were_kept_or_not(tmp_path, monkeypatch):
    """Predictions that do not fit into memory are computed again, with the same result."""
    layers, passed = [], []

    def count(net, images, _):
        if not net.training:
            passed[-1] += len(images[0])

    for most in (2**30, 0):
        monkeypatch.setattr(prediction_store, "MOST_BYTES", most)
        folder = tmp_path / str(most)
        callbacks = [CorruptionRanking(folder / "scores.csv"), LabelCorrection(folder / "labels")]
        module = module_of()
        module.net_a.register_forward_hook(count)
        passed.append(0)
        trainer_of(folder, callbacks=callbacks).fit(module, data_of(folder, size=20))
        layers.append({path.name: path.read_bytes() for path in (folder / "labels").iterdir()})
    assert layers[0] == layers[1]
    assert passed[1] - passed[0] == len(layers[0]) - 1 == 10


def test_an_error_while_a_mask_is_written_is_raised(tmp_path):
    def spoilt(number):
        if number == 3:
            raise OSError("disk full")

    def write():
        with background_writer() as do:
            for number in range(200):
                do(spoilt, number)

    with pytest.raises(OSError, match="disk full"):
        write()


def test_torch_is_told_its_threads_before_masks_are_written_in_threads(monkeypatch):
    """Else two threads of a forked process could rebuild torch's pool at once ("Invalid pool")."""
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    with background_writer() as do:
        before = list(told)
        do(lambda: None)
    assert before == told == [torch.get_num_threads()]


def test_dice_of_a_batch_is_that_of_its_masks():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 4, (6, 8, 8), generator=generator) for _ in range(2))
    first[0], second[0] = 0, 0
    first[1] = 255
    second[2, :4] = 255
    labelled = (first != 255) & (second != 255)
    dices = foreground_dice(*dice_by_class(first, second, 4, labelled))
    expected = [mask_dice(a, b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert dices.numpy() == pytest.approx(expected)


def test_writing_a_ranking_sorts_and_scores_once(tmp_path):
    """It is not computed once per row: with a million samples that would never end."""

    class Counted(Ranking):
        calls = 0

        @property
        def score(self):
            Counted.calls += 1
            return super().score

    scores = np.arange(200.0)
    Counted([f"{n:03d}" for n in range(200)], scores, scores, 0.5).write(tmp_path / "scores.csv")
    assert Counted.calls <= 3
    assert [row["id"] for row in rows_of(tmp_path / "scores.csv")][:2] == ["199", "198"]


def test_a_high_class_id_for_unlabelled_pixels_is_kept(tmp_path):
    look = prediction_store.PredictionStore(2, 65535)
    masks = torch.zeros((2, 4, 4), dtype=torch.long)
    masks[0, 0] = 65535
    images = torch.zeros((2, 1, 4, 4))
    logits = torch.randn(2, 2, 4, 4)
    look.add([0, 1], Batch(images, masks), [logits, -logits])
    peers, label = look.prediction(0)
    assert torch.equal(label, masks[0])
    torch.testing.assert_close(peers[0], logits.softmax(dim=1)[0], rtol=0, atol=1e-5)


def test_what_is_too_much_for_one_batch_is_not_kept_of_others(monkeypatch):
    monkeypatch.setattr(prediction_store, "MOST_BYTES", 1000)
    look = prediction_store.PredictionStore(4, 255)
    for side in (2, 16, 2):
        masks = torch.zeros((1, side, side), dtype=torch.long)
        look.add([side], Batch(masks[:, None].float(), masks), [torch.randn(1, 2, side, side)] * 2)
    assert not look.keeps_predictions
    assert look.prediction(2) is None
    assert len(look.distances) == 3


COLUMNS = len(MASK_COLUMNS) + len(CLASS_COLUMNS)


STEPS = itertools.count(1)


def pass_of(*indices):
    ids, ones = [str(i) for i in indices], np.ones((len(indices), 2, COLUMNS))
    share = EvidenceShare.joined([EvidenceShare(np.array(indices), ids, ones)])
    return EvidencePass(share, numbered=False, step=(next(STEPS), 0))


def test_evidence_goes_on_after_a_resumption_on_two_processes(monkeypatch):
    """Each process reads both processes' rows from the checkpoint; none may count twice."""
    first = EvidenceSum()
    first.add(pass_of(0, 1, 2, 3))
    state = first.state_dict()
    resumed = [EvidenceSum(), EvidenceSum()]
    for part in resumed:
        part.load_state_dict(state)
    monkeypatch.setattr(evidence_sum, "gather_objects", lambda _: [e.parts for e in resumed])
    assert (
        resumed[0].state_dict()["parts"][0]["ids"] == state["parts"][0]["ids"]
    )  # from a checkpoint within the epoch
    resumed[0].load_state_dict(resumed[1].state_dict())
    resumed[0].add(pass_of(2, 0))
    resumed[1].add(pass_of(1, 3))
    ids, peers = resumed[0].gathered()
    assert ids == ["0", "1", "2", "3"]
    assert all((peer.eq1 == 1).all() and (peer.overlap == 1).all() for peer in peers)
    (part,) = resumed[0].state_dict()["parts"]
    assert part["totals"].tolist() == [[[2.0] * COLUMNS] * 2] * 4


def test_a_process_whose_share_stays_while_anothers_changes(monkeypatch):
    processes = [EvidenceSum(), EvidenceSum()]
    for part, passes in zip(processes, ([(0, 1), (0, 1)], [(2, 3), (3, 4)]), strict=True):
        for indices in passes:
            part.add(pass_of(*indices))
    monkeypatch.setattr(evidence_sum, "gather_objects", lambda _: [e.parts for e in processes])
    for part in processes:
        ids, peers = part.gathered()
        assert ids == ["0", "1", "3", "4"]  # those of the last pass
        assert all((peer.eq1 == 1).all() for peer in peers)


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    ranking = CorruptionRanking(tmp_path / "file" / "scores.csv")
    with pytest.raises(InputError, match="scores.csv cannot be written, since .*file is a file"):
        trainer_of(tmp_path, callbacks=[ranking]).fit(module_of(), data_of(tmp_path))
    correction = LabelCorrection(tmp_path / "file" / "labels")
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), correction]
    with pytest.raises(InputError, match="labels cannot be written, since .*file is a file"):
        trainer_of(tmp_path, callbacks=callbacks).fit(module_of(), data_of(tmp_path))


def test_half_an_epoch_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"epochs=2.5 must be a whole number of at least 1"):
        CorruptionRanking(tmp_path / "scores.csv", epochs=2.5)
