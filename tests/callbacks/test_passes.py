"""Nothing is done twice: passes over the training set, and the file of scores."""

from collections import Counter

import pytest
import pytorch_lightning as pl
from torch.utils.data import DataLoader, default_collate

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    LabelCorrection,
    LabelStore,
    NoiseLevelEstimation,
)
from coseg_lightning.callbacks import evidence_sum, noise_level_estimation
from coseg_lightning.callbacks.outline_record import OutlineRecord
from coseg_lightning.errors import InputError
from coseg_lightning.ranking.noise_level import NoiseLevelEstimate
from coseg_lightning.ranking.ranking import Ranking
from support import Halves, data_of, module_of, rows_of, trainer_of


def passes_by_step(monkeypatch):
    passes = Counter()
    evaluate = evidence_sum.evaluation_pass

    def counted(trainer, *arguments, **options):
        passes[trainer.global_step] += 1
        return evaluate(trainer, *arguments, **options)

    monkeypatch.setattr(evidence_sum, "evaluation_pass", counted)
    return passes


def test_one_pass_serves_the_ranking_within_training_and_the_average(tmp_path, monkeypatch):
    passes = passes_by_step(monkeypatch)
    ranking = CorruptionRanking(tmp_path / "scores.csv", epochs=4)
    trainer_of(tmp_path, max_epochs=8, callbacks=[ranking]).fit(module_of(), data_of(tmp_path))
    # Two batches an epoch. The set is ranked after 4, 5, 6 and 7 epochs, and 5 to 8 are averaged.
    assert passes == {8: 1, 10: 1, 12: 1, 14: 1, 16: 1}
    assert ranking.evidence.passes == 4


def test_a_longer_fit_counts_its_own_last_epochs_alone(tmp_path):
    ranking = CorruptionRanking(tmp_path / "first.csv", epochs=3)
    trainer = trainer_of(tmp_path, max_epochs=4, callbacks=[ranking])
    trainer.fit(module_of(), data_of(tmp_path))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    assert ranking.evidence.passes == 3
    ranking = CorruptionRanking(tmp_path / "scores.csv", epochs=3)
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking])
    trainer.fit(module_of(), data_of(tmp_path), ckpt_path=tmp_path / "first.ckpt")
    assert trainer.current_epoch == 8
    assert ranking.evidence.passes == 3


def test_one_pass_serves_the_noise_level_and_the_first_ranking(tmp_path, monkeypatch):
    estimate = NoiseLevelEstimate(0.3, (0.2, 0.4), True, {"relative": 0.3}, 3.0, 0.9)
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: estimate
    )
    passes = passes_by_step(monkeypatch)
    callbacks = [NoiseLevelEstimation(epochs=2), CorruptionRanking(tmp_path / "scores.csv")]
    module = module_of(noise_level="auto")
    trainer_of(tmp_path, max_epochs=8, callbacks=callbacks).fit(module, data_of(tmp_path))
    assert passes == {6: 1, 8: 1, 10: 1, 12: 1, 14: 1, 16: 1}


def test_a_level_that_cannot_be_told_costs_nothing_afterwards(tmp_path, monkeypatch):
    made = []

    class Counted(OutlineRecord):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(noise_level_estimation, "OutlineRecord", Counted)
    estimate = NoiseLevelEstimate(0.3, (0.2, 0.4), False, {"relative": 0.3}, 3.0, 0.9)
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda *_: estimate
    )
    callbacks = [NoiseLevelEstimation(), CorruptionRanking(tmp_path / "scores.csv", epochs=3)]
    module = module_of(noise_level="auto")
    trainer_of(tmp_path, max_epochs=6, callbacks=callbacks).fit(module, data_of(tmp_path))
    assert len(made) == 1


def test_patches_are_not_looked_for_in_the_first_epoch(tmp_path, monkeypatch):
    def halved(samples):
        parts = [
            (part, masks, f"{name}-{number}")
            for image, mask, name in samples
            for number, (part, masks) in enumerate(
                zip(image.split(8, 1), mask.split(8), strict=True)
            )
        ]
        return default_collate(parts)

    passes = passes_by_step(monkeypatch)
    trainer = trainer_of(tmp_path, max_epochs=4, callbacks=[CorruptionRanking(tmp_path / "s.csv")])
    trainer.fit(module_of(), DataLoader(Halves(), 4, collate_fn=halved))
    assert passes == {6: 1, 9: 1, 12: 1}  # three batches an epoch


def test_the_scores_are_written_before_the_correction_and_after_it(tmp_path, monkeypatch):
    written = []
    write = Ranking.write
    monkeypatch.setattr(Ranking, "write", lambda self, path: written.append(write(self, path)))
    vote = LabelCorrection.vote

    def look(self, *arguments):
        assert rows_of(self.folder.parent / "scores.csv")[0]["changed_pixels"] == ""
        return vote(self, *arguments)

    monkeypatch.setattr(LabelCorrection, "vote", look)
    for order in (0, 1):
        folder = tmp_path / str(order)
        callbacks = [
            CorruptionRanking(folder / "scores.csv"),
            LabelCorrection(folder / "labels", confidence=0.0),
        ]
        trainer_of(folder, callbacks=callbacks[:: -1 if order else 1]).fit(
            module_of(), data_of(folder)
        )
        assert len(written) == 2 * order + 2
        assert any(row["changed_pixels"] != "" for row in rows_of(folder / "scores.csv"))


def test_a_correction_that_fails_leaves_the_ranking(tmp_path):
    class Failing(LabelCorrection):
        def vote(self, *_):
            raise InputError("no vote")

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), Failing(tmp_path / "labels")]
    callbacks[1].confidence = 0.0
    with pytest.raises(InputError, match="no vote"):
        trainer_of(tmp_path, callbacks=callbacks).fit(module_of(), data_of(tmp_path))
    assert len(rows_of(tmp_path / "scores.csv")) == 11


def test_the_scores_of_a_finished_fit_are_never_written_again(tmp_path):
    path = tmp_path / "scores.csv"
    ranking, module, data = CorruptionRanking(path), module_of(), data_of(tmp_path)
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    trainer.fit(module, data)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists and is never overwritten"):
        trainer_of(tmp_path, callbacks=[ranking]).fit(module, data)

    class Failing(pl.Callback):
        def on_test_start(self, *_):
            raise RuntimeError("no test")

    with pytest.raises(RuntimeError, match="no test"):
        trainer_of(tmp_path, callbacks=[ranking, Failing()]).test(module, data, verbose=False)
    assert path.read_text(encoding="utf-8") == "mine"


def test_callbacks_that_are_used_again_say_nothing_of_the_earlier_fit(tmp_path):
    ranking, correction = CorruptionRanking(tmp_path / "1.csv"), LabelCorrection(tmp_path / "1")
    trainer_of(tmp_path, callbacks=[ranking, correction]).fit(module_of(), data_of(tmp_path))
    assert correction.label_peer_ratio is not None
    correction.correction_skipped = correction.wrong_half_suspected = True
    ranking.path, correction.folder = tmp_path / "2.csv", tmp_path / "2"
    trainer = trainer_of(tmp_path, callbacks=[ranking, correction])
    trainer.fit(module_of(noise_level=0.0), data_of(tmp_path))
    assert correction.label_peer_ratio is None
    assert not correction.correction_skipped
    assert not correction.wrong_half_suspected
    assert not correction.layer.ids


def test_what_another_run_has_written_meanwhile_is_kept(tmp_path):
    scores, labels = tmp_path / "scores.csv", tmp_path / "labels"

    class Other(pl.Callback):
        def on_train_epoch_end(self, *_):
            scores.write_text("another run's", encoding="utf-8")
            for folder in ("labels", "uncertainty", "proposals"):
                LabelStore.create(tmp_path / folder).finish({})

    ranking, correction = CorruptionRanking(scores), LabelCorrection(labels, confidence=0.0)
    correction.show_in(tmp_path / "uncertainty", tmp_path / "proposals")
    callbacks = [ranking, correction, Other()]
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=callbacks)
    with (
        pytest.warns(UserWarning, match=r"scores.csv was written by something else during train"),
        pytest.warns(UserWarning, match=r"masks of this fit are in \S+labels-2"),
    ):
        trainer.fit(module_of(), data_of(tmp_path))
    assert scores.read_text(encoding="utf-8") == "another run's"
    assert not LabelStore(labels).ids
    assert correction.layer.folder == tmp_path / "labels-2"
    assert LabelStore(tmp_path / "proposals-2").ids == sorted(ranking.ranking.ids)
    assert LabelStore(tmp_path / "uncertainty-2").ids == correction.layer.ids
    rows = rows_of(tmp_path / "scores-2.csv")
    assert sum(row["changed_pixels"] != "" for row in rows) == len(correction.layer.ids) > 0


@pytest.mark.parametrize("averaging_first", [True, False])
def test_passes_by_other_weights_are_not_shared(tmp_path, monkeypatch, averaging_first):
    """Behind an average that is not moved yet, the estimation's pass is one of its own."""
    passes = passes_by_step(monkeypatch)
    callbacks = [NoiseLevelEstimation(epochs=1), CorruptionRanking(tmp_path / "s.csv", epochs=8)]
    callbacks.insert(0 if averaging_first else 1, AveragedWeights())
    module = module_of(noise_level="auto")
    trainer_of(tmp_path, max_epochs=8, callbacks=callbacks).fit(module, data_of(tmp_path))
    assert passes[8] == (1 if averaging_first else 2)
