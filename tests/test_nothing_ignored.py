"""What a user sets has its effect, or is refused before it costs time."""

import re
from functools import partial

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from torch.optim.lr_scheduler import ReduceLROnPlateau

from coseg_lightning import CorruptionRanking, CoSegModule, LabelCorrection, SegmentationModule
from coseg_lightning.app.build import (
    make_logger,
    make_method,
    make_network,
    make_peers,
    make_trainer,
)
from coseg_lightning.app.checks import (
    check,
    check_review_is_ordered,
    check_split_is_drawn,
    check_used,
)
from coseg_lightning.app.command import with_folder
from coseg_lightning.errors import InputError
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.networks import build_network
from coseg_lightning.run import _warn_if_it_is_tried_alone, run
from support import (
    PHANTOM,
    SMALL,
    TINY,
    CountedFits,
    TinyNetwork,
    command,
    composed,
    loader,
    one_batch,
    rows_of,
    trainer_of,
)


def peers(**options):
    return CoSegModule(TinyNetwork(), TinyNetwork(), **options)


def network(**options):
    return SegmentationModule(TinyNetwork(), **options)


@pytest.mark.parametrize("make", [peers, network])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_has_the_values_that_it_was_given(tmp_path, make, kind):
    module = make(optimizer=partial(kind, lr=0.05, weight_decay=0.25))
    trainer = trainer_of(tmp_path)
    trainer.fit(module, loader(one_batch()))
    for group in trainer.optimizers[0].param_groups:
        assert (group["lr"], group["weight_decay"]) == (0.05, 0.25)


@pytest.mark.parametrize("make", [peers, network])
@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.01),
        partial(torch.optim.Adam, lr=1e-3, weight_decay=0.0),
        partial(torch.optim.SGD, lr=0.1, weight_decay=0),
    ],
)
def test_values_that_are_the_class_defaults_are_values_too(tmp_path, make, optimizer):
    trainer = trainer_of(tmp_path)
    trainer.fit(make(optimizer=optimizer), loader(one_batch()))
    wanted = optimizer.keywords
    for group in trainer.optimizers[0].param_groups:
        assert (group["lr"], group["weight_decay"]) == (wanted["lr"], wanted["weight_decay"])


class Decayed(torch.optim.AdamW):
    def __init__(self, params, lr=1e-3, weight_decay=0.05):
        super().__init__(params, lr=lr, weight_decay=weight_decay)


def decayed(params, lr=3e-4, weight_decay=0.05):
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)


DECAY = 2 * Recipe.lambda_2


@pytest.mark.parametrize("make", [peers, network])
@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        (Decayed, (Recipe.lr, 0.05)),
        (decayed, (3e-4, 0.05)),
        (lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.05), (Recipe.lr, 0.05)),
        (lambda params: torch.optim.SGD(params, lr=0.1), (0.1, DECAY)),
        (lambda params, lr: torch.optim.AdamW(params, lr=lr), (Recipe.lr, DECAY)),
        (lambda params, **options: torch.optim.SGD(params, **options), (Recipe.lr, DECAY)),
        (torch.optim.AdamW, (Recipe.lr, DECAY)),
    ],
)
def test_values_that_a_function_or_class_of_ones_own_chooses(make, optimizer, wanted):
    for given in (optimizer, partial(optimizer)):  # Hydra's _partial_ makes the latter
        made = make(optimizer=given).configure_optimizers()
        for group in made.param_groups:
            assert (group["lr"], group["weight_decay"]) == wanted


@pytest.mark.parametrize("make", [peers, network])
@pytest.mark.parametrize("optimizer", [decayed, Decayed])
def test_a_partial_overrules_a_value_and_keeps_the_other(make, optimizer):
    made = make(optimizer=partial(optimizer, lr=0.02)).configure_optimizers()
    for group in made.param_groups:
        assert (group["lr"], group["weight_decay"]) == (0.02, 0.05)


@pytest.mark.parametrize("make", [peers, network])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adam"}, "optimizer= is a str; give what makes one, such as torch.optim"),
        ({"scheduler": ["step"]}, "scheduler= is a list; give what makes one from an optimizer"),
    ],
)
def test_what_makes_no_optimizer_is_refused(make, given, message):
    with pytest.raises(InputError, match=message):
        make(**given)


class Follows(torch.optim.lr_scheduler.LRScheduler):
    """A scheduler that follows a metric, as Lightning gives it."""

    def get_lr(self):
        return [0.1]

    def step(self, metrics=None):
        self.seen = metrics


def test_a_scheduler_of_ones_own_that_follows_a_metric(tmp_path):
    def make(optimizer):
        made.append(Follows(optimizer))
        return {"scheduler": made[0], "monitor": "train/loss", "reduce_on_plateau": True}

    made = []
    trainer_of(tmp_path).fit(network(scheduler=make), loader(one_batch()))
    assert made[0].seen is not None


class Counting:
    """A schedule of another library, as timm's."""

    def step(self, epoch):
        pass


@pytest.mark.parametrize("make", [peers, network])
@pytest.mark.parametrize(
    "schedule",
    [lambda o: None, lambda o: [torch.optim.lr_scheduler.StepLR(o, 1)], lambda o: Counting()],
)
def test_what_is_no_scheduler_is_refused(make, schedule):
    with pytest.raises(InputError, match="scheduler= made a .*; it must make one of torch's sch"):
        make(scheduler=schedule).configure_optimizers()


@pytest.mark.parametrize("make", [peers, network])
def test_values_of_the_module_overrule_defaults_alone(make):
    for optimizer in (decayed, Decayed):
        module = make(optimizer=optimizer, lr=0.01, lambda_2=0.25)
        for group in module.configure_optimizers().param_groups:
            assert (group["lr"], group["weight_decay"]) == (0.01, 0.5)
    fixed = make(optimizer=lambda params: torch.optim.SGD(params, lr=0.1), lr=0.01)
    with pytest.raises(InputError, match="optimizer has lr=0.1, but the module has 0.01"):
        fixed.configure_optimizers()


def test_a_function_may_read_and_change_the_groups():
    def slower(params, lr):
        first, second = params
        assert (first["name"], second["name"]) == ("net_a", "net_b")
        second["lr"] *= 0.5
        return torch.optim.Adam(params, lr=lr)

    for optimizer in (slower, partial(slower)):
        groups = peers(optimizer=optimizer, lr=0.01).configure_optimizers().param_groups
        assert [group["lr"] for group in groups] == [0.01, 0.005]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.01}, r"optimizer has lr=0.05, but the module has 0.01; give only one of them"),
        ({"lambda_2": 0.5}, r"optimizer has weight_decay=0.25, but the module has 1.0 by lambda_2"),
    ],
)
def test_two_values_of_one_setting_are_refused(tmp_path, options, message):
    module = peers(optimizer=partial(torch.optim.SGD, lr=0.05, weight_decay=0.25), **options)
    with pytest.raises(InputError, match=message):
        trainer_of(tmp_path).fit(module, loader(one_batch()))


@pytest.mark.parametrize("make", [peers, network])
def test_a_plateau_of_the_wrong_direction_is_refused(tmp_path, make):
    with pytest.raises(InputError, match=r"mode='min'\) monitors 'val/dice.*give partial.*'max'"):
        trainer_of(tmp_path).fit(make(scheduler=ReduceLROnPlateau), loader(one_batch()))
    rising = partial(ReduceLROnPlateau, mode="max")
    wrong = make(scheduler=lambda o: {"scheduler": rising(o), "monitor": "train/loss_a"})
    with pytest.raises(InputError, match=r"mode='max'\) monitors 'train/loss_a', which falls"):
        trainer_of(tmp_path).fit(wrong, loader(one_batch()))


def test_a_loss_of_dice_falls(tmp_path):
    def schedule(optimizer):
        return {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val/dice_loss"}

    with pytest.raises(InputError, match="monitors 'val/dice_loss', which was not logged"):
        trainer_of(tmp_path).fit(peers(scheduler=schedule), loader(one_batch()))


# The app


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("+noise.levl=0.2", "no setting noise.levl, .* noise.level"),
        ("+worst=5", "no setting worst"),
        ("+n=1", "no setting n,"),
        ("+logger.project=x", "no setting logger.project"),
        ("on_bad_sample=foo", "on_bad_sample=foo must be error or skip"),
        ("trust=maybe", "trust=maybe must be true or false"),
        ("data.keep_shape='off'", "data.keep_shape=off must be true or false"),
        ("data.allow_links='no'", "data.allow_links=no must be true or false"),
        ("data.cache='no'", "data.cache=no must be true, false, or a folder"),
        ("noise.level=0.2", "noise.level=0.2 would have no effect without a kind of noise"),
        ("noise.label_dice=0.7", "noise.label_dice=0.7 would have no effect without a kind"),
        ("objective=null", "objective=None must be a logged metric"),
        (
            "loss=3",
            "loss=3 does not name a setting; give one of its settings, as in loss.lambda_1=",
        ),
        ("optimizer=Adam", "optimizer=Adam does not name a setting; .* as in optimizer.name="),
        ("+trainer.callbacks=5", "trainer.callbacks=5 must be a list of classes"),
    ],
)
def test_a_value_of_a_wrong_kind_is_refused(setting, message):
    cfg = composed()
    key, _, value = setting.lstrip("+").partition("=")
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, key, yaml.safe_load(value), merge=False)
    with pytest.raises(InputError, match=message):
        check(cfg)


def test_a_run_that_an_earlier_version_began_is_not_refused_for_what_had_no_effect(tmp_path):
    (tmp_path / "run.json").write_text('{"config": {"seed": 0}}')
    cfg = composed("noise.level=0.2", f"resume={tmp_path}")
    OmegaConf.update(cfg, "data.keep_shape", "no", force_add=True)
    check(cfg)


def test_an_argument_that_a_scheduler_lacks_is_refused():
    scheduler = "+optimizer.scheduler={_target_: torch.optim.lr_scheduler.StepLR, stepsize: 3}"
    with pytest.raises(InputError, match="optimizer.scheduler.stepsize, .*scheduler.step_size"):
        make_network(composed(*SMALL, scheduler))


@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ("+epochs=1", "trainer.max_epochs"),
        ("+data.augmentt=false", "data.augment"),
        ("+method.noise_ramp=3", "it would have no effect"),
        ("+loss.class_weights=[1,2]", "did you mean"),
        ("+method.warmstart=false", "method.warm_start"),
        ("+sed=3", "seed"),
        ("+xyzzy=1", "--help lists"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(setting, near):
    name = setting.lstrip("+").partition("=")[0]
    with pytest.raises(InputError, match=f"There is no setting {name}, so .*{near}"):
        check(composed(setting))


def test_a_setting_for_others_to_refer_to_is_no_mistake():
    check(composed("+my_folder=/data", "data.source.seed=${seed}", "+trainer.x=${my_folder}"))


def test_hydras_advice_to_add_it_is_not_given(tmp_path):
    result = command("run", "epochs=3", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "There is no setting epochs, so it would have no effect; did you mean trainer.max_epochs?"
    )


def test_numbers_out_of_range_are_refused_with_the_range():
    with pytest.raises(InputError, match="seed=99999999999 must be a whole number from 0 to 42949"):
        check(composed("seed=99999999999"))
    with pytest.raises(InputError, match="base_channels=-1 must be a whole number of at least 1"):
        build_network("unet_classic", base_channels=-1)


def test_an_argument_of_lightnings_trainer_is_said_to_need_a_plus(tmp_path):
    result = command("run", "trainer.max_steps=3", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("Trainer need a plus, as in +trainer.max_steps=...")


@pytest.mark.parametrize("value", ["{rotate: 30}", "3", "strong", "null"])
def test_augmentation_is_on_or_off(value):
    with pytest.raises(InputError, match="data.augment=.* must be true or false"):
        check(composed(f"data.augment={value}"))


def test_a_limit_of_time_is_a_text_or_a_mapping(tmp_path):
    for given in ("+trainer.max_time={minutes:2}", "+trainer.max_time=00:00:02:00"):
        trainer = make_trainer(composed(given), logger=False, default_root_dir=tmp_path)
        (timer,) = (one for one in trainer.callbacks if isinstance(one, Timer))
        assert timer.time_remaining() == 120


@pytest.mark.parametrize(("given", "batches"), [("true", "1 batch"), ("3", "3 batches")])
def test_a_run_that_only_tries_the_code_is_told(caplog, given, batches):
    _warn_if_it_is_tried_alone(composed(f"+trainer.fast_dev_run={given}"))
    assert f"trains and tests on {batches}, so no figure of this run means anything" in caplog.text
    caplog.clear()
    for other in ([], ["+trainer.fast_dev_run=false"]):
        _warn_if_it_is_tried_alone(composed(*other))
    assert not caplog.text


def test_further_settings_of_the_optimizer_are_its_arguments():
    cfg = composed(*SMALL, "optimizer.name=torch.optim.SGD", "+optimizer.momentum=0.9")
    module = make_network(cfg)
    assert module.optimizer_factory.keywords == {"momentum": 0.9}
    cfg = composed(*SMALL, "optimizer.name=torch.optim.SGD", "+optimizer.momentun=0.9")
    with pytest.raises(InputError, match=r"momentun, so .* did you mean optimizer.momentum"):
        make_network(cfg)


@pytest.mark.slow
def test_callbacks_of_the_trainer_are_called_in_every_stage(tmp_path):
    callbacks = "+trainer.callbacks=[{_target_: support.CountedFits}]"
    run(composed(*SMALL, *PHANTOM, callbacks), tmp_path / "run")
    assert CountedFits.fits == 2
    for name in ("logger", "default_root_dir"):
        with pytest.raises(InputError, match=f"trainer.{name}=x: each stage sets its own"):
            run(composed(*SMALL, *PHANTOM, f"+trainer.{name}=x"), tmp_path / name)


@pytest.mark.slow
def test_the_loss_that_is_logged_is_the_one_that_was_used(tmp_path):
    run(composed(*SMALL, *PHANTOM, "method.confidence=0"), tmp_path / "run")
    logged = yaml.safe_load((tmp_path / "run" / "retraining" / "hparams.yaml").read_text())
    assert logged["pixel_loss"] == "generalised_cross_entropy"


# Settings of the recipe that a method has no use for


@pytest.mark.parametrize(
    "settings",
    [
        ["method=coteaching", "+method.confidence=0.5"],
        ["method=supervised", "+method.selection=eq1"],
        ["method=gce", "+method.rounds=2"],
    ],
)
def test_a_setting_that_the_method_does_not_use_is_refused(settings):
    method = make_method(composed(*settings))
    with pytest.raises(InputError, match=f"{settings[0]} does not use {settings[1][1:]}, so it"):
        check_used(method, settings)
    check_used(method, [settings[0], f"+{settings[1]}"])  # meant for several methods
    check_used(make_method(composed("method=coseg")), [settings[1]])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["method=gce", "method.pixel_loss=cross_entropy"],
            "method.pixel_loss=cross_entropy would make another method of method=gce, which needs "
            "generalised_cross_entropy; leave it out, or give method=supervised",
        ),
        (
            ["method=noise_adaptation", "method.options.learnt=false"],
            "method.options.learnt=False would make another method of method=noise_adaptation",
        ),
        (
            ["method=jocor", "method.module=coseg_lightning.CoSegModule"],
            "method=jocor trains a JoCoR, which method.module=coseg_lightning.CoSegModule is not",
        ),
    ],
)
def test_another_loss_or_module_than_the_methods_is_refused_by_its_setting(given, sentence):
    cfg = composed(*TINY, *given)
    with pytest.raises(InputError, match=re.escape(sentence)):
        make_peers(cfg) if make_method(cfg).trains_peers else make_network(cfg)
    make_network(composed(*TINY, "method=supervised", "method.pixel_loss=symmetric_cross_entropy"))


@pytest.mark.parametrize("given", ["model@peer_b=fpn", "model@peer_b=mirror"])
def test_a_second_peer_of_a_single_network_is_refused(given):
    method = make_method(composed("method=gce", given))
    with pytest.raises(InputError, match=f"method=gce trains a single network, so {given} would"):
        check_used(method, ["method=gce", given])
    check_used(method, ["method=gce", "model@peer_b=null"])
    check_used(make_method(composed("method=coseg")), [given])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("method=supervised", "method=supervised ranks no masks"),
        ("method=adele", "method=adele ranks no masks"),
        ("+data._target_=support.OwnData", "the masks of a datamodule of your own cannot be read"),
        ("method=filter", None),
    ],
)
def test_a_review_that_no_masks_would_be_listed_for_is_refused(given, reason):
    cfg = composed(given, "review_budget=5")
    if reason is None:
        check_review_is_ordered(cfg, make_method(cfg))
        return
    with pytest.raises(InputError, match=f"review_budget=5 would have no effect, since {reason}"):
        check_review_is_ordered(cfg, make_method(cfg))
    check_review_is_ordered(composed(given), make_method(cfg))


def test_a_run_that_began_with_a_review_budget_goes_on(tmp_path):
    """An earlier version took it with any method."""
    (tmp_path / "run.json").write_text('{"config": {"review_budget": 5}}')
    cfg = composed("method=supervised", "review_budget=5", f"resume={tmp_path}")
    check_review_is_ordered(cfg, make_method(cfg))


class Renamed(TensorBoardLogger):
    def __init__(self, **options):
        super().__init__(name="", version="", **options)


class Placeless(DummyLogger):
    def __init__(self, project="mine", **of_service):
        super().__init__()
        assert not of_service


def renamed(**options):
    return Renamed(**options)


@pytest.mark.parametrize(
    ("logger", "folder"),
    [
        (["logger=tensorboard"], "run/stage"),
        ([f"+logger._target_={__name__}.Renamed"], "run/stage"),
        ([f"+logger._target_={__name__}.renamed"], "run/stage"),
        ([f"+logger._target_={__name__}.Placeless"], None),
        (["logger=tensorboard", "+logger.save_dir=${oc.env:HOME}/mine"], "mine/stage"),
        (["+logger._target_=pytorch_lightning.loggers.logger.DummyLogger"], None),
    ],
)
def test_a_logger_writes_where_it_is_told(tmp_path, monkeypatch, logger, folder):
    """Or into the folder of the run; not all of them have a folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    made = make_logger(composed(*logger), tmp_path / "run" / "stage")
    assert folder is None or made.save_dir == str(tmp_path / folder)


@pytest.mark.parametrize("value", ["3", "[a,b]"])
def test_clean_samples_that_nothing_learns_from_are_refused(value):
    with pytest.raises(InputError, match="data.clean_ids would have no effect with method=coseg"):
        check(composed(f"data.clean_ids={value}"))
    check(composed(f"data.clean_ids={value}", "method=reweight"))
    check(composed(f"data.clean_ids={value}", "noise=type2", "nol=0.2"))  # noise leaves them clean


@pytest.mark.parametrize(
    ("split_by", "refused"),
    [
        ("by split.csv", {"test_share", "val_share", "seed"}),
        ("the trusted masks for the test", {"test_share"}),
        ("drawn by seed=0", set()),
        (None, set()),
    ],
)
@pytest.mark.parametrize("name", ["test_share", "val_share", "seed"])
def test_shares_of_a_split_that_is_not_drawn_are_refused(split_by, refused, name):
    if name not in refused:
        check_split_is_drawn(split_by, [f"data.source.{name}=0.3"])
        return
    with pytest.raises(InputError, match=f"data.source.{name}=0.3 would have no effect, since"):
        check_split_is_drawn(split_by, [f"data.source.{name}=0.3"])


@pytest.mark.parametrize(("name", "args"), [("check", []), ("audit", ["training=none"])])
def test_commands_refuse_shares_that_have_no_effect(make_folder, tmp_path, name, args):
    root = make_folder(4)
    (root / "split.csv").write_text("id,split\ns00,test\ns01,train\ns02,train\ns03,train\n")
    given = [f"data.root={root}", "data.source.test_share=0.5", f"hydra.run.dir={tmp_path}/out"]
    result = command(name, "data=folder", *given, *args)
    assert result.returncode
    assert "data.source.test_share=0.5" in result.stderr
    assert "no effect" in result.stderr


class OwnScores(CorruptionRanking):
    def scores(self, evidence, ids, dataset):
        return evidence.cross_entropy


@pytest.mark.parametrize("of", ["ranking", "correction"])
def test_scores_of_ones_own_that_would_not_rank_the_classes_are_refused(tmp_path, of):
    ranking = OwnScores(tmp_path / "scores.csv", by_class=of == "ranking")
    correction = LabelCorrection(tmp_path / "labels", by_class=of == "correction")
    trainer = trainer_of(tmp_path, callbacks=[ranking, correction])
    with pytest.raises(
        InputError, match=r"OwnScores.scores would have no effect on which samples count"
    ):
        trainer.fit(peers(), loader(one_batch()))


@pytest.mark.slow
def test_classes_are_ranked_by_themselves_without_a_correction_too(tmp_path):
    noisy = []
    for by_class in (True, False):
        settings = [*SMALL, *PHANTOM, "data.classes=3", "method=coteaching", "nol=0.3"]
        run(composed(*settings, f"method.by_class={by_class}".lower()), tmp_path / str(by_class))
        rows = rows_of(tmp_path / str(by_class) / "scores.csv")
        noisy.append(sum(row["noisy"] == "1" for row in rows))
    assert noisy[0] > noisy[1] == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["data.root=a", "nol=0.2"], ["data=folder", "data.root=a", "nol=0.2"]),
        (["-m", "data.root=a"], ["-m", "data=folder", "data.root=a"]),
        *(
            ([other, "data.root=a"], [other, "data.root=a"])
            for other in ("data=jsrt", "review=a", "experiment=b", "--config-dir=c")
        ),
        (["nol=0.2"], ["nol=0.2"]),
        (["resume=a", "data.root=b"], ["resume=a", "data=folder", "data.root=b"]),
    ],
)
def test_a_folder_that_is_named_is_taken(given, expected):
    assert with_folder(given) == expected


def test_phantoms_do_not_stand_in_for_a_folder():
    with pytest.raises(
        InputError, match=r"^data.root=a would not be read, .*; give data=folder\.$"
    ):
        check(composed("data.root=a"))
