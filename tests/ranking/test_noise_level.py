"""The noise level is estimated where labels can be told apart, and reported as unknown if not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from coseg_lightning import CorruptionRanking, CoSegModule, NoiseLevelEstimation
from coseg_lightning.errors import InputError
from coseg_lightning.ranking import noise_level
from coseg_lightning.ranking.evidence import Evidence, compute_evidence
from coseg_lightning.ranking.noise_level import (
    FALLBACK,
    NoiseLevelEstimate,
    estimate_noise_level,
    fit_mixture,
)
from support import data_of, module_of, soft_discs, trainer_of


def discs(level, off, size=150, blur=2.0):
    """Evidence on labels of which a share is off by some pixels, and the others by half a pixel."""
    rng = np.random.default_rng(0)
    radii, shift = rng.uniform(10, 20, size), rng.normal(0, 0.5, size)
    bad = round(level * size)
    shift[:bad] = off(rng, bad)
    return Evidence.from_table(compute_evidence(*soft_discs(radii, radii + shift, blur)).numpy())


@pytest.mark.parametrize("level", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("sides", [(1,), (-1, 1)])
def test_a_clear_noise_level_is_found(level, sides):
    e = discs(level, lambda rng, n: rng.choice(sides, n) * rng.normal(5, 0.7, n))
    estimate = estimate_noise_level(e, e)
    assert estimate.separable
    assert estimate.noise_level == pytest.approx(level, abs=0.05)
    assert estimate.interval[0] <= level <= estimate.interval[1] + 0.02
    assert str(estimate).startswith("estimated 0.")


def test_of_very_many_samples_some_are_asked(monkeypatch):
    e = discs(0.3, lambda rng, n: rng.normal(5, 0.7, n), size=400)
    asked = []
    fit = noise_level.fit_mixture

    def counted(values, start=None):
        asked.append(len(values))
        return fit(values, start)

    monkeypatch.setattr(noise_level, "fit_mixture", counted)
    monkeypatch.setattr(noise_level, "MAX_SAMPLES", 200)
    estimate = estimate_noise_level(e, e)
    assert set(asked) == {200}
    assert estimate.noise_level == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_what_cannot_be_told_is_said(level):
    e = discs(level, lambda rng, n: rng.normal(0, 0.6, n))
    estimate = estimate_noise_level(e, e)
    assert not estimate.separable
    assert estimate.noise_level == FALLBACK
    assert str(estimate).startswith(
        "cannot tell, since good and bad labels have too similar scores"
    )


def test_outlines_must_see_what_the_networks_see():
    e = discs(0.4, lambda rng, n: rng.normal(5, 0.7, n))
    bad = np.arange(150) < 60
    rng = np.random.default_rng(1)
    clear, none = rng.normal(-4.0 * bad, 0.3), rng.normal(0, 3, 150)
    for of_label, is_told in ((clear, True), (none, False)):
        outline = np.zeros((150, 1, 4))
        outline[:, 0, :2] = of_label[:, None]
        outline[:, 0, 2:] = rng.normal(0, 0.3, 150)[:, None]
        with_outline = replace(e, outline=outline)
        estimate = estimate_noise_level(with_outline, with_outline)
        assert estimate.separable == is_told
        assert "joint" in estimate.shares
    assert estimate_noise_level(e, e).separable


def test_peers_that_learned_nothing_cannot_tell():
    logits, masks = soft_discs(np.full(60, -30.0), np.linspace(5, 20, 60))
    e = Evidence.from_table(compute_evidence(logits, masks).numpy())
    estimate = estimate_noise_level(e, e)
    assert not estimate.separable
    assert "most labels are far from the predictions" in str(estimate)


def test_the_estimate_is_plain_and_the_same_again():
    e = discs(0.3, lambda rng, n: rng.normal(5, 1, n))
    first, second = estimate_noise_level(e, e), estimate_noise_level(e, e)
    assert first == second
    assert json.loads(json.dumps(first.as_dict()))["separable"] is True


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_handful_of_samples_is_no_reason_to_crash(size):
    e = discs(0.5, lambda rng, n: rng.normal(5, 1, n), size=size)
    assert 0 <= estimate_noise_level(e, e).noise_level < 1


def test_a_mixture_is_recovered():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 700), rng.normal(6, 2, 300)])
    fit = fit_mixture(values)
    np.testing.assert_allclose(fit.weights, [0.7, 0.3], atol=0.02)
    np.testing.assert_allclose(fit.means, [0, 6], atol=0.2)
    np.testing.assert_allclose(fit.deviations, [1, 2], atol=0.25)
    assert fit.distance == pytest.approx(6 / np.sqrt(2.5), abs=0.3)


def test_the_module_keeps_all_until_the_level_is_estimated(tmp_path, monkeypatch):
    module, alphas = module_of(noise_level="auto"), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            alphas.append(pl_module.alpha)

    estimate = NoiseLevelEstimate(0.4, (0.3, 0.5), True, {"relative": 0.4}, 3.0, 0.9)
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: estimate
    )
    estimation, ranking = NoiseLevelEstimation(), CorruptionRanking(tmp_path / "scores.csv")
    callbacks = [estimation, ranking, Watch()]
    trainer = trainer_of(tmp_path, callbacks=callbacks, max_epochs=6)
    trainer.fit(module, data_of(tmp_path))
    assert module.noise.estimate == estimate
    assert alphas == [1.0] * 3 + [0.6] * 3
    assert ranking.ranking.noise_level == 0.4

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["noise_estimate"]["noise_level"] == 0.4


def test_auto_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match="NoiseLevelEstimation; add it to the trainer's callbacks"):
        trainer_of(tmp_path).fit(module_of(noise_level="auto"), data_of(tmp_path))
    for module, epochs, message in (
        (module_of(noise_level=0.3), 4, "leave it out if the level is given"),
        (module_of(noise_level="auto"), 1, "max_epochs=1 is too few to estimate the noise level"),
    ):
        trainer = trainer_of(tmp_path, callbacks=[NoiseLevelEstimation()], max_epochs=epochs)
        with pytest.raises(InputError, match=message):
            trainer.fit(module, data_of(tmp_path))
    with pytest.raises(InputError, match="must be auto, or at least 0"):
        CoSegModule(noise_level=1.5)


class Stop(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("options", "stops", "message"),
    [
        ({"max_steps": 1}, [], "max_steps=1 ends training with the first epoch"),
        ({"fast_dev_run": True}, [], "fast_dev_run=True ends training with the first epoch"),
        ({}, [Stop()], "Training ended before the noise level was estimated"),
    ],
)
def test_training_that_ends_before_the_estimate_is_told(tmp_path, options, stops, message):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), NoiseLevelEstimation(), *stops]
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=callbacks, **options)
    with pytest.warns(UserWarning, match=f"{message}.* learn from all samples alike"):
        trainer.fit(module_of(noise_level="auto"), data_of(tmp_path))


def test_empty_masks_do_not_hide_the_noise():
    discs_only = discs(0.3, lambda rng, n: rng.normal(5, 0.7, n), size=120)
    empty = Evidence.from_table(compute_evidence(*soft_discs([-30.0] * 60, [0.0] * 60)).numpy())
    joined = Evidence(
        **{
            name: np.concatenate([value, getattr(empty, name)])
            for name, value in vars(discs_only).items()
            if value is not None
        }
    )
    estimate = estimate_noise_level(joined, joined)
    assert estimate.separable
    assert estimate.noise_level == pytest.approx(0.3 * 120 / 180, abs=0.04)
    assert not estimate_noise_level(empty, empty).separable


@pytest.mark.parametrize("options", [{"max_epochs": 4}, {"max_epochs": 8, "max_steps": 2}])
def test_peers_that_cannot_tell_keep_all_samples_to_the_end(tmp_path, options):
    module, alphas = module_of(noise_level="auto"), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            alphas.append(pl_module.alpha)

    estimation, ranking = NoiseLevelEstimation(), CorruptionRanking(tmp_path / "scores.csv")
    callbacks = [ranking, estimation, Watch()]
    trainer_of(tmp_path, callbacks=callbacks, **options).fit(module, data_of(tmp_path))
    assert set(alphas) == {1.0}
    assert "too few masks" in str(module.noise.estimate)  # there are eleven
    assert ranking.ranking.noise_level == FALLBACK
    assert len(ranking.ranking.noisy) == round(FALLBACK * 11)


def test_what_cannot_be_told_after_half_may_be_told_at_the_end(tmp_path, monkeypatch):
    unsure = NoiseLevelEstimate(FALLBACK, None, False, {"relative": 0.7}, 1.0, 0.9)
    sure = NoiseLevelEstimate(0.4, (0.3, 0.5), True, {"relative": 0.4}, 3.0, 0.9)
    answers = iter([unsure, sure])
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: next(answers)
    )
    module, ranking = module_of(noise_level="auto"), CorruptionRanking(tmp_path / "scores.csv")
    callbacks = [NoiseLevelEstimation(), ranking]
    trainer_of(tmp_path, callbacks=callbacks, max_epochs=4).fit(module, data_of(tmp_path))
    assert module.noise.estimate == sure
    assert ranking.ranking.noise_level == 0.4


def test_a_resumed_training_keeps_its_estimate(tmp_path, monkeypatch):
    estimate = NoiseLevelEstimate(0.4, (0.3, 0.5), True, {"relative": 0.4}, 3.0, 0.9)
    answers = iter([estimate])
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: next(answers)
    )
    trainer = trainer_of(tmp_path, callbacks=[NoiseLevelEstimation()], max_epochs=4)
    trainer.fit(module_of(noise_level="auto"), data_of(tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module = module_of(noise_level="auto")
    trainer = trainer_of(tmp_path, callbacks=[NoiseLevelEstimation()], max_epochs=12)
    trainer.fit(module, data_of(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert module.noise.estimate == estimate
    assert module.noise.known


def test_another_training_of_the_same_module_is_estimated_anew(tmp_path, monkeypatch):
    levels = [0.4, 0.2, 0.1]
    answers = (NoiseLevelEstimate(n, None, True, {"relative": n}, 3.0, 0.9) for n in levels)
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: next(answers)
    )
    module, alphas = module_of(noise_level="auto"), []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            alphas.append(pl_module.alpha)

    def trainer(number):
        ranking = CorruptionRanking(tmp_path / f"{number}.csv")
        callbacks = [NoiseLevelEstimation(), ranking, Watch()]
        return trainer_of(tmp_path, callbacks=callbacks, max_epochs=4)

    trainer(1).fit(module, data_of(tmp_path))
    trainer(2).fit(module, data_of(tmp_path))  # of other data, for all that is known
    assert alphas == [1.0, 1.0, 0.6, 0.6, 1.0, 1.0, 0.8, 0.8]


def test_an_early_checkpoint_has_no_estimate_to_go_on_with(tmp_path, monkeypatch):
    levels = [0.4, 0.2]
    answers = (NoiseLevelEstimate(n, None, True, {"relative": n}, 3.0, 0.9) for n in levels)
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: next(answers)
    )
    module, data, early = module_of(noise_level="auto"), data_of(tmp_path), tmp_path / "early.ckpt"

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(early)

    trainer = trainer_of(tmp_path, callbacks=[NoiseLevelEstimation(), Save()], max_epochs=4)
    trainer.fit(module, data)
    trainer.test(module, data, ckpt_path=early, verbose=False)
    assert module.noise.estimate.noise_level == 0.4  # what this fit has found
    trainer.fit(module, data, ckpt_path=early)
    assert module.noise.estimate.noise_level == 0.2


def test_a_level_is_estimated_though_a_fit_begins_after_half(tmp_path, monkeypatch):
    sure = NoiseLevelEstimate(0.4, (0.3, 0.5), True, {"relative": 0.4}, 3.0, 0.9)
    monkeypatch.setattr(
        "coseg_lightning.modules.noise_level.estimate_noise_level", lambda a, b: sure
    )
    trainer = trainer_of(tmp_path, max_epochs=3)
    trainer.fit(module_of(), data_of(tmp_path))
    trainer.fit_loop.max_epochs = 5
    trainer.callbacks += [NoiseLevelEstimation(), CorruptionRanking(tmp_path / "scores.csv")]
    module = module_of(noise_level="auto")
    trainer.fit(module, data_of(tmp_path))
    assert module.noise.estimate == sure
    assert trainer.callback_metrics["train/keep_rate"] == pytest.approx(0.6)


def test_why_nothing_can_be_told():
    rng = np.random.default_rng(0)
    scores = {name: np.r_[rng.normal(0, 1, 16), rng.normal(9, 1, 16)] for name in "ab"}
    few = noise_level.estimate_of_scores(scores, np.ones(32, bool))
    assert "there are so few masks that the level stays open (0." in str(few)
    assert "reason" not in few.as_dict()
    alike = {name: rng.normal(0, 1, 200) for name in "ab"}
    assert "have too similar scores" in str(
        noise_level.estimate_of_scores(alike, np.ones(200, bool), min_distance=4)
    )
