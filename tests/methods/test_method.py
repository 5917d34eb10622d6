"""Methods as objects: of this package by name, and of somebody's own."""

import logging
import pkgutil
import re
from dataclasses import replace
from functools import partial

import pytest
import pytorch_lightning as pl

from coseg_lightning import (
    CoSegModule,
    LabelCorrection,
    LabelStore,
    Recipe,
    SegmentationModule,
    run_stages,
)
from coseg_lightning.app.build import make_method, make_network, make_peers
from coseg_lightning.errors import InputError
from coseg_lightning.methods.adele import early_learning
from coseg_lightning.methods.coteaching import robust_training
from coseg_lightning.methods.jocor import JoCoR
from coseg_lightning.methods.method import Method
from coseg_lightning.methods.registry import METHODS, find_method
from coseg_lightning.modules.renamed import MOVED
from coseg_lightning.run import run
from support import (
    MINE,
    PHANTOM,
    ROOT,
    SMALL,
    OwnTested,
    TinyNetwork,
    composed,
    data_of,
    run_of,
    second_look,
)

STAGES = {
    "coseg": ("robust_training", "correction", "retraining"),
    "coteaching": ("robust_training",),
    "supervised": ("supervised_training",),
    "filter": ("robust_training", "filtering", "retraining"),
    "adele": ("early_learning",),
    "forward_correction": ("estimation", "supervised_training"),
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_by_name(name):
    assert find_method(name).stage_names == STAGES[name]
    own = find_method("mine", list(STAGES[name]))
    assert own.name == "mine"
    assert own.stages == METHODS[name].stages


def test_every_method_is_found_by_its_name():
    assert all(find_method(name).name == name for name in METHODS)
    with pytest.raises(InputError, match="there is no such method"):
        find_method("coreg")
    with pytest.raises(InputError, match=r"must be \[early_learning\] or "):
        find_method("mine", ["retraining"])


@pytest.mark.slow
def test_a_method_of_ones_own_with_its_ranking_its_vote_and_its_stage(tmp_path):
    summary = run_of(tmp_path, OwnTested(), method=MINE, recipe=Recipe(confidence=0.0))
    assert list(summary["stages"]) == ["robust_training", "second_look", "test"]
    assert summary["stages"]["second_look"]["epochs"] == 2
    layer = LabelStore(tmp_path / "run" / "labels")
    assert set(layer.ids) == {"h9", "h10", "h11"}  # a quarter of twelve, the last ones
    assert all((layer.read(sample_id) == 1).all() for sample_id in layer.ids)
    assert summary["config"]["method"]["name"] == "mine"


def test_the_app_finds_a_method_by_its_place():
    assert make_method(composed("+method.object=support.MINE")) is MINE
    with pytest.raises(InputError, match=r"method.object=support.NONE: there is no such"):
        make_method(composed("+method.object=support.NONE"))
    cfg = composed("+method.object=coseg_lightning.methods.coteaching.METHOD")
    assert make_method(cfg).stage_names == ("robust_training",)
    cfg = composed("+method.object=coseg_lightning.CoSegModule")
    with pytest.raises(InputError, match="must be a coseg_lightning.methods.method.Method"):
        make_method(cfg)


@pytest.mark.slow
def test_the_app_runs_a_method_of_ones_own(tmp_path):
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "method.confidence=0"]
    summary = run(composed(*settings, "+method.object=support.MINE"), tmp_path / "run")
    assert list(summary["stages"]) == ["robust_training", "second_look", "test"]
    assert summary["second_look"] == {"epochs": 2}


@pytest.mark.parametrize("before", sorted(MOVED))
def test_modules_of_version_0_1_are_found_where_they_are_now(before, caplog):
    names = {
        "coseg_lightning.rivals.dimensionality": "DimensionalityDriven",
        "coseg_lightning.rivals.early_learning": "MultiScaleModule",
        "coseg_lightning.rivals.quality": "PickAndLearn",
        "coseg_lightning.rivals.reweighting": "Reweighted",
        "coseg_lightning.rivals.transition": "LabelTransition",
    }
    name = f"{before}.{names[before]}" if before in names else before
    is_pair = ".peers." in before
    method = "coteaching" if is_pair else "supervised"
    model = ["model=unet_classic", "model.base_channels=2"]
    cfg = composed(f"method={method}", f"++method.module={name}", *model)
    with caplog.at_level(logging.WARNING):
        module = make_peers(cfg) if is_pair else make_network(cfg)
    assert type(module).__name__ == name.rpartition(".")[2]
    assert "the old name goes in version 0.3" in caplog.text


def pair(run, outcome):
    """A stage of one's own that trains two peers."""
    run.runner.stage("pair", lambda: run.runner.fit("pair", run.peers(), run.data) and None)
    return replace(outcome, last_stage="pair", is_pair=True)


def test_peers_of_a_stage_of_ones_own(tmp_path):
    method = Method("mine", (pair,), has_peers=True)
    summary = run_of(tmp_path, OwnTested(), method=method, network=None)
    assert list(summary["stages"]) == ["pair", "test"]
    assert summary["test"]["dice"] is not None


def test_a_stage_may_be_a_partial_function(tmp_path):
    method = Method("mine", (partial(robust_training),))
    assert method.stage_names == ("robust_training",)
    with pytest.raises(InputError, match="mine corrects labels, but has no stage robust_training"):
        Method("mine", (second_look,), correction=LabelCorrection)


def test_a_stage_writes_into_no_folder_that_is_not_its_own(tmp_path):
    precious = tmp_path / "run" / "second_look" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="second_look is not empty, and nothing is ever overwrit"):
        run_of(tmp_path, OwnTested(), method=MINE, recipe=Recipe(confidence=0.0))
    assert [path.name for path in precious.parent.iterdir()] == ["precious.txt"]


def test_a_method_needs_the_modules_of_its_stages(tmp_path):
    with pytest.raises(
        InputError,
        match="method=coseg needs the peers; give run_stages a function that builds the peers",
    ):
        run_stages(OwnTested(), tmp_path / "run", trainer=pl.Trainer)


WITH_MODULES = {name: m for name, m in METHODS.items() if m.module or m.options}


def test_methods_with_a_module_of_their_own():
    assert set(METHODS) - set(WITH_MODULES) == {"coseg", "coteaching", "supervised"}


@pytest.mark.parametrize("name", WITH_MODULES)
@pytest.mark.parametrize("rehearse", [True, False])
def test_a_method_refuses_a_plain_module_and_names_its_own(tmp_path, name, rehearse):
    method = WITH_MODULES[name]
    words = [f"{method.module.__module__}.{method.module.__name__}"] if method.module else []
    if not method.module:
        words = [f"partial(SegmentationModule, ..., pixel_loss={method.options['pixel_loss']!r})"]
    argument = "peers" if method.trains_peers else "network"
    message = f"method={name} trains .* {argument}= made a .*{re.escape(words[0])}"
    options = {"method": name, "rehearse": rehearse, "baselines": True}
    with pytest.raises(InputError, match=message):
        run_of(tmp_path, data_of(tmp_path), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_the_apps_settings_of_a_method_name_its_module(name):
    cfg, method = composed(*SMALL, f"method={name}"), METHODS[name]
    if method.trains_peers:
        method.check_module("peers", make_peers(cfg))
    else:
        method.check_module("network", make_network(cfg))
    assert ("pixel_loss" in method.options) == (name in ("gce", "sce"))


def test_noise_adaptation_needs_a_matrix_that_is_learnt():
    adaptation = METHODS["noise_adaptation"]
    module = adaptation.module(TinyNetwork())
    with pytest.raises(InputError, match=r"with learnt=True, .* give network=.*, learnt=True\)"):
        adaptation.check_module("network", module)


def test_a_module_derived_from_a_methods_own_is_trained(tmp_path):
    class Own(JoCoR):
        pass

    def peers():
        return Own(TinyNetwork(), TinyNetwork(), noise_level=0.25)

    trainer = partial(pl.Trainer, max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    options = {"peers": peers, "network": None, "trainer": trainer, "rehearse": False}
    summary = run_of(tmp_path, OwnTested(), method="jocor", **options)
    assert summary["config"]["peers"]["class"] == "Own"


def test_methods_of_other_names_refuse_no_module():
    own = find_method("mine", ["estimation", "supervised_training"])
    own.check_module("network", SegmentationModule(TinyNetwork()))
    MINE.check_module("peers", CoSegModule(TinyNetwork(), TinyNetwork()))


def test_a_stage_that_needs_a_module_of_its_own_names_it(tmp_path):
    mine = Method("mine", (early_learning,))
    with pytest.raises(InputError, match=r"mine trains .* coseg_lightning.methods.adele.MultiSc"):
        run_of(tmp_path, OwnTested(), method=mine, rehearse=False)


def test_each_sentence_of_the_paper_has_its_function():
    page = (ROOT / "docs" / "methods" / "coseg.md").read_text(encoding="utf-8")
    table = page.partition("sentence by sentence")[2]
    names = re.findall(r"`([a-z]+\.[\w.]+)`", table)
    assert len(names) >= 17
    for name in names:
        found = pkgutil.resolve_name(f"coseg_lightning.{name}")
        assert callable(found) or isinstance(found, property), name
