"""The recipe is the only home of defaults, and refuses what it does not know."""

import inspect
import json
from dataclasses import fields

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    CoSegModule,
    LabelCorrection,
    Recipe,
    SegmentationModule,
    run_stages,
)
from coseg_lightning.app.checks import recipe_of
from coseg_lightning.app.command import CONF
from coseg_lightning.errors import InputError
from coseg_lightning.functional import losses
from coseg_lightning.modules import recipe
from coseg_lightning.modules.selection import PerBatch
from coseg_lightning.ranking import scores
from coseg_lightning.report.figures import score_histogram
from coseg_lightning.report.results import method_settings
from support import OwnTested, TinyNetwork, run_of


def test_every_field_is_a_setting_of_the_app_with_the_same_default():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config")
    nodes = {"training": cfg, "peers": cfg.method, "correction": cfg.method}
    for group, fields_of_group in Recipe.SETTINGS.items():
        node = nodes.get(group, cfg.get(group))
        for name in fields_of_group:
            assert node[name] == getattr(Recipe(), name), name  # it is there
    assert recipe_of(cfg) == Recipe()
    names = [name for group in Recipe.SETTINGS.values() for name in group]
    assert sorted(names) == sorted(field.name for field in fields(Recipe))


@pytest.mark.slow
def test_the_report_of_a_run_from_python_goes_by_its_recipe(tmp_path, monkeypatch):
    drawn = []

    def histogram(rows, score):
        drawn.append(score)
        return score_histogram(rows, score)

    monkeypatch.setattr("coseg_lightning.report.page.score_histogram", histogram)
    summary = run_of(tmp_path, OwnTested(), recipe=Recipe(score="mean", warm_start=False))
    assert drawn == ["mean"]
    assert not method_settings(summary["config"])["warm_start"]


def test_the_names_that_a_recipe_knows_are_those_that_there_are():
    assert tuple(losses.PIXEL_LOSSES) == recipe.PIXEL_LOSSES
    assert recipe.SCORES == scores.SCORES


def test_modules_and_callbacks_have_the_defaults_of_the_recipe():
    parameters = {
        CoSegModule: (*Recipe().of_peers,),
        SegmentationModule: (*Recipe().of_networks,),
        CorruptionRanking: ("score",),
        LabelCorrection: ("confidence", "by_class"),
    }
    for kind, names in parameters.items():
        signature = inspect.signature(kind).parameters
        for name in names:
            assert signature[name].default == getattr(Recipe(), name), (kind, name)
    assert inspect.signature(CorruptionRanking).parameters["epochs"].default == Recipe.score_epochs
    assert inspect.signature(AveragedWeights).parameters["share"].default == Recipe.averaging


def test_no_setting_of_the_recipe_has_its_value_in_a_file_of_the_methods():
    of_correction = Recipe.SETTINGS["correction"]
    paths = list((CONF / "method").glob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        keys = {line.partition(":")[0].strip() for line in path.read_text().splitlines()}
        assert not keys.intersection(of_correction), path


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("lr", -1, "a number of at least 0"),
        ("lambda_1", "much", "a number of at least 0"),
        ("include_background", 1, "true or false"),
        ("averaging", 1.5, "a number from 0 to 1"),
        ("selection", "best", "whole_set, relative or eq1"),
        ("step", "both", "picks or joint"),
        ("ramp_epochs", 0.5, "a whole number of at least 0, or null"),
        ("score_epochs", 0, "a whole number of at least 1"),
        ("confidence", 2, "auto, or a number from 0 to 1"),
        ("warm_start", "yes", "true or false"),
        ("retraining_loss", "hinge", "generalised_cross_entropy"),
        ("retraining_share", 0, "a number above 0"),
        ("rounds", True, "a whole number of at least 1"),
    ],
)
def test_other_values_are_refused(field, value, wanted):
    with pytest.raises(InputError, match=f"^{field}={value} must be .*{wanted}"):
        Recipe(**{field: value})


def test_the_app_names_the_setting():
    with pytest.raises(InputError, match=r"^method.rounds=0 must be"):
        Recipe.of({"method": {"rounds": 0}})
    with pytest.raises(InputError, match=r"^loss.lambda_2=-1 must be"):
        Recipe.of({"loss": {"lambda_2": -1}})
    with pytest.raises(InputError, match=r"^optimizer.lr=fast must be"):
        Recipe.of({"optimizer": {"lr": "fast"}})
    with pytest.raises(InputError, match=r"^method.score=best: there is no such score"):
        Recipe.of({"method": {"score": "best"}})


def test_a_value_that_the_modules_were_not_made_with_is_refused(tmp_path):
    """It would have no effect, since modules are made by functions of the caller."""
    with pytest.raises(InputError, match=r"The recipe has lr=0.1, but .* made with 0.03"):
        run_of(tmp_path, OwnTested(), recipe=Recipe(lr=0.1))
    recipe = Recipe(selection="eq1", lr=0.03)
    recipe.check_module(CoSegModule(TinyNetwork(), TinyNetwork(), **recipe.of_peers).hparams)
    own = CoSegModule(TinyNetwork(), TinyNetwork(), selection=PerBatch("eq1", 0), lr=0.03)
    with pytest.raises(InputError, match="selection=eq1, but .* made with a policy of its own"):
        recipe.check_module(own.hparams)


@pytest.mark.slow
def test_a_run_records_what_was_used(tmp_path):
    run_of(tmp_path, OwnTested(), recipe=Recipe(confidence=0.0))
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["config"]
    assert record["peers"]["lr"] == record["network"]["lr"] == 0.03
    assert record["recipe"]["confidence"] == 0
    assert "lr" not in record["recipe"]  # which is that of the modules


@pytest.mark.slow
def test_fields_one_by_one_still_work_and_say_so(tmp_path):
    with pytest.warns(FutureWarning, match=r"recipe=Recipe\(confidence=...\)"):
        summary = run_of(tmp_path, OwnTested(), confidence=0.0)
    assert summary["correction"]["corrected"] == 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'confidences'"):
        run_stages(OwnTested(), tmp_path / "other", trainer=pl.Trainer, confidences=0.5)


def test_numbers_of_numpy_and_torch_are_numbers():
    given = Recipe(
        confidence=np.float32(0.75),
        rounds=np.int64(2),
        by_class=np.bool_(True),
        lr=torch.tensor(0.5),
    )
    assert given == Recipe(confidence=0.75, rounds=2, by_class=True, lr=0.5)
    assert type(given.rounds) is int
    assert LabelCorrection("labels", confidence=np.float32(0.75)).confidence == 0.75
    assert CorruptionRanking("scores.csv", epochs=np.int64(2)).epochs == 2


@pytest.mark.parametrize("name", ["lr", "lambda_1", "lambda_2", "retraining_share"])
def test_infinite_values_are_refused(name):
    with pytest.raises(InputError, match=f"{name}=inf must be a number"):
        Recipe(**{name: float("inf")})


def test_an_array_is_no_confidence():
    with pytest.raises(InputError, match="must be auto, or a number from 0 to 1"):
        Recipe(confidence=np.array([0.1, 0.2]))


@pytest.mark.parametrize("callback", [CorruptionRanking, LabelCorrection])
def test_by_class_is_no_text(callback):
    """The text "no" would count as true."""
    with pytest.raises(InputError, match="by_class=no must be true or false"):
        callback(by_class="no")


@pytest.mark.parametrize("share", ["0.1", None, float("nan")])
def test_a_share_of_averaging_is_a_number(share):
    with pytest.raises(InputError, match="must be above 0 and at most 1"):
        AveragedWeights(share)
