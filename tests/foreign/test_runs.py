"""All stages in other people's projects: datamodules, callbacks, loggers, and resuming."""

import json
import pickle
import threading
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, Logger
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset, random_split

from coseg_lightning import (
    CoSegModule,
    SegmentationModule,
)
from coseg_lightning.errors import InputError
from coseg_lightning.report.figures import read_rows
from coseg_lightning.runs.wrapped import wrap_datamodule
from support import (
    RIGHT,
    Halves,
    OwnTested,
    TinyNetwork,
    accuracies,
    layer_of,
    run_of,
    trainer_of,
)


@pytest.mark.slow
def test_a_split_at_random_is_the_same_in_all_stages(tmp_path):
    splits = []

    class Split(OwnTested):
        def setup(self, stage):
            self.train, _ = random_split(Halves(16, wrong=4), [12, 4])
            splits.append(list(self.train.indices))

    run_of(tmp_path, Split(), confidence=0.0)
    assert len(splits) == 3
    assert splits[0] == splits[1] == splits[2]


def test_a_setup_that_adds_to_its_datasets_is_refused(tmp_path):
    class Adding(OwnTested):
        def __init__(self):
            super().__init__()
            self.found = []

        def setup(self, stage):
            self.found += range(12)
            self.train = Subset(Halves(), self.found)

    with pytest.raises(InputError, match="24 training samples now, but there were 12 before"):
        run_of(tmp_path, Adding())


def test_a_datamodule_may_call_its_own_setup():
    class Own(OwnTested):
        def setup(self, stage=None):
            self.train = Halves()

        def train_dataloader(self):
            self.setup()
            return DataLoader(self.train, 4)

    assert len(wrap_datamodule(Own()).train_dataloader()) == 3


@pytest.mark.slow
def test_from_datasets(tmp_path):
    data = pl.LightningDataModule.from_datasets(Halves(), test_dataset=Halves(4, 0), batch_size=4)
    run_of(tmp_path, data, confidence=0.0)
    copied = wrap_datamodule(data)
    copied.add_label_layer(tmp_path / "run" / "labels")
    assert min(accuracies(copied.train_dataloader().dataset)) > 0.9
    assert data.train_dataloader().dataset[0][1].equal(Halves()[0][1])


def test_an_adopted_datamodule_can_be_pickled(tmp_path):
    data = wrap_datamodule(OwnTested())
    data.setup("fit")
    data.add_label_layer(layer_of(tmp_path / "labels", {"h0": RIGHT}).folder)
    again = pickle.loads(pickle.dumps(data))
    assert isinstance(again, OwnTested)
    assert torch.equal(again.train_dataloader().dataset[0][1], RIGHT)


def test_what_is_no_datamodule_is_named(tmp_path):
    with pytest.raises(InputError, match="The data is a DataLoader; give a LightningDataModule"):
        run_of(tmp_path, DataLoader(Halves()))


class Counting(pl.Callback):
    started = 0

    def on_train_start(self, trainer, pl_module):
        Counting.started += 1


@pytest.mark.slow
def test_callbacks_and_loggers_of_a_partial_trainer_are_kept(tmp_path):
    def stages(**trainer):
        nets = partial(TinyNetwork, width=8)
        from coseg_lightning import run_stages

        run_stages(
            OwnTested(),
            tmp_path / "run",
            peers=lambda: CoSegModule(nets(), nets(), noise_level=0.25),
            network=lambda: SegmentationModule(nets()),
            trainer=partial(pl.Trainer, max_epochs=2, enable_progress_bar=False, **trainer),
        )

    Counting.started = 0
    stages(callbacks=[Counting()], logger=CSVLogger(tmp_path / "mine", name="", version=""))
    assert Counting.started == 2
    assert (tmp_path / "mine" / "metrics.csv").is_file()


class Locked(pl.Callback):
    def __init__(self):
        self.lock = threading.Lock()


def test_a_callback_that_cannot_be_copied_is_named(tmp_path):
    from coseg_lightning import run_stages

    trainer = partial(pl.Trainer, max_epochs=1, callbacks=[Counting(), Locked()])
    with pytest.raises(InputError, match="The callbacks Counting, Locked cannot be copied for ea"):
        run_stages(
            OwnTested(),
            tmp_path / "run",
            peers=lambda: CoSegModule(TinyNetwork(), TinyNetwork(), noise_level=0.25),
            network=lambda: SegmentationModule(TinyNetwork()),
            trainer=trainer,
        )


def test_ready_networks_are_copied_for_each_run(tmp_path):
    """A second run, or the baselines of one, start from the same weights."""
    from coseg_lightning import run_stages

    torch.manual_seed(0)
    net_a, net_b, net = TinyNetwork(), TinyNetwork(), TinyNetwork()
    before = [{k: v.clone() for k, v in one.state_dict().items()} for one in (net_a, net_b, net)]
    summaries = [
        run_stages(
            OwnTested(),
            tmp_path / name,
            peers=partial(CoSegModule, net_a, net_b, noise_level=0.25),
            network=partial(SegmentationModule, net),
            trainer=partial(pl.Trainer, max_epochs=2, enable_progress_bar=False),
            method="coteaching",
        )
        for name in ("one", "two")
    ]
    assert summaries[0]["test"] == summaries[1]["test"]
    for one, weights in zip((net_a, net_b, net), before, strict=True):
        assert all(torch.equal(one.state_dict()[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": lambda: SegmentationModule(TinyNetwork(width=3))}, "or warm_start=False"),
        ({"trainer": partial(pl.Trainer, max_epochs=0)}, "max_epochs of at least 1"),
        *(
            (
                {"trainer": partial(pl.Trainer, strategy=strategy, devices=2, accelerator="cpu")},
                "use strategy='ddp'",
            )
            for strategy in ("ddp_fork", "ddp_spawn")
        ),
    ],
)
def test_what_cannot_work_is_said_before_training(tmp_path, options, message):
    from coseg_lightning import run_stages

    arguments = {
        "peers": lambda: CoSegModule(TinyNetwork(), TinyNetwork(), noise_level=0.25),
        "network": lambda: SegmentationModule(TinyNetwork()),
        "trainer": partial(pl.Trainer, max_epochs=1, enable_progress_bar=False),
        **options,
    }
    with pytest.raises(InputError, match=message):
        run_stages(OwnTested(), tmp_path / "run", **arguments)


class Stop(pl.Callback):
    """Fails once, at an epoch of a stage."""

    def __init__(self, kind, epoch):
        self.kind, self.epoch = kind, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if isinstance(pl_module, self.kind) and trainer.current_epoch == self.epoch:
            raise RuntimeError("stopped here")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CoSegModule, SegmentationModule])
def test_a_resumed_run_with_a_shuffled_loader_ends_the_same(tmp_path, kind):
    from coseg_lightning import run_stages

    class Data(OwnTested):
        def __init__(self, root):
            super().__init__()
            self.save_hyperparameters()

    def stages(folder, *callbacks):
        nets = partial(TinyNetwork, width=8)
        return run_stages(
            Data(tmp_path),  # a Path among the hyperparameters
            folder,
            peers=lambda: CoSegModule(nets(), nets(), noise_level=0.25, lr=0.03),
            network=lambda: SegmentationModule(nets(), lr=0.03),
            trainer=partial(
                pl.Trainer, max_epochs=6, enable_progress_bar=False, callbacks=list(callbacks)
            ),
            confidence=0.0,
            resume=True,
        )

    whole = stages(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped here"):
        stages(tmp_path / "run", Stop(kind, 4))
    resumed = stages(tmp_path / "run")
    assert resumed["test"] == whole["test"]
    scores = [(tmp_path / name / "scores.csv").read_text() for name in ("whole", "run")]
    assert scores[0] == scores[1]
    states = [
        torch.load(tmp_path / name / "retraining" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "run")
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


@pytest.mark.slow
def test_another_run_is_not_resumed_from_python_either(tmp_path):
    from coseg_lightning import run_stages

    def stages(epochs=1, level=0.25, **options):
        return run_stages(
            OwnTested(),
            tmp_path / "run",
            peers=lambda: CoSegModule(TinyNetwork(), TinyNetwork(), noise_level=level),
            network=lambda: SegmentationModule(TinyNetwork()),
            trainer=partial(pl.Trainer, max_epochs=epochs, enable_progress_bar=False),
            resume=True,
            **options,
        )

    stages()
    for message, options in {
        r"peers.noise_level=0.5 \(it was 0.25\)": {"level": 0.5},
        r"recipe.rounds=2 \(it was 1\)": {"rounds": 2},
        r"trainer.max_epochs=2 \(it was 1\)": {"epochs": 2},
    }.items():
        with pytest.raises(InputError, match=message):
            stages(**options)


def stages_of(tmp_path, compiled, **options):
    def net():
        return compiled(TinyNetwork(width=8))

    def peers():
        return CoSegModule(net(), net(), lr=0.03, noise_level=0.25)

    def network():
        return SegmentationModule(net(), lr=0.03)

    return run_of(tmp_path, OwnTested(), **({"peers": peers, "network": network} | options))


def inner_compiled(net):
    net.layers[0] = torch.compile(net.layers[0], backend="eager")
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiled", [partial(torch.compile, backend="eager"), inner_compiled], ids=["whole", "inner"]
)
def test_compiled_networks_leave_a_plain_model(tmp_path, compiled):
    assert stages_of(tmp_path, compiled)["test"]["dice"] > 0.9
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert set(weights) == set(TinyNetwork(width=8).state_dict())
    network = json.loads((tmp_path / "run" / "model" / "network.json").read_text())
    assert network == {"class": "support.TinyNetwork"}


@pytest.mark.slow
def test_a_compiled_module_runs_through_all_stages(tmp_path):
    def network():
        module = SegmentationModule(TinyNetwork(width=8), lr=0.03)
        return torch.compile(module, backend="eager")

    assert stages_of(tmp_path, lambda net: net, network=network)["test"]["dice"] > 0.9


class Strict(Logger):
    """Takes one value of each hyperparameter, and keeps everything, like MLflow."""

    name, version = "strict", 0

    def __init__(self):
        self.params, self.metrics = {}, {}

    def log_hyperparams(self, params):
        for stage, values in params.items():
            for name, value in values.items():
                assert self.params.setdefault(f"{stage}/{name}", value) == value, name

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append((step, value))


@pytest.mark.slow
def test_one_logger_of_all_stages_tells_them_apart(tmp_path):
    logger = Strict()
    trainer = partial(
        pl.Trainer, max_epochs=2, enable_progress_bar=False, logger=logger, log_every_n_steps=1
    )
    nets = partial(TinyNetwork, width=8)
    run_of(
        tmp_path,
        OwnTested(),
        trainer=trainer,
        network=lambda: SegmentationModule(nets(), lr=0.01),
    )
    assert logger.params["robust_training/lr"] == 0.03
    assert logger.params["retraining/lr"] == 0.01
    assert {"robust_training/train/loss_a", "retraining/train/loss"} < set(logger.metrics)
    logger.log_metrics({"mine": 1.0})  # it is as it was
    assert logger.metrics["mine"] == [(None, 1.0)]


@pytest.mark.slow
def test_several_test_loaders_are_in_the_summary(tmp_path):
    class Own(OwnTested):
        def test_dataloader(self):
            return [DataLoader(Halves(4, wrong=wrong), 4) for wrong in (0, 4)]

    test = run_of(tmp_path, Own())["test"]
    first, second = test["dataloaders"]
    assert first["dice"] == test["dice"] > 0.9
    assert second["dice"] < 0.5


WRONG = {
    "peers": (
        CoSegModule(TinyNetwork(), TinyNetwork()),
        "peers= is a CoSegModule; give what makes",
    ),
    "network": ("unet", "network= is a str; give what makes one, such as partial"),
    "trainer": (pl.Trainer(logger=False, accelerator="cpu"), "trainer= is a Trainer; give what"),
    "recipe": ({"rounds": 2}, "recipe= is a dict; give a Recipe"),
    "seed": ("x", "seed='x' must be a whole number from 0 to 4294967295"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_of_another_kind_are_refused(tmp_path, name):
    value, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        run_of(tmp_path, OwnTested(), **{name: value})
    assert not (tmp_path / "run").exists()


def test_a_barebones_trainer_is_refused(tmp_path):
    with pytest.raises(InputError, match="trainer= has barebones=True, .*; leave it out"):
        run_of(tmp_path, OwnTested(), trainer=partial(pl.Trainer, barebones=True))
    assert not (tmp_path / "run").exists()


def test_what_makes_another_module_is_refused(tmp_path):
    for name, kind in (("peers", "CoSegModule"), ("network", "SegmentationModule")):
        with pytest.raises(InputError, match=f"{name}= made a NoneType; it must make a {kind}"):
            run_of(tmp_path / name, OwnTested(), **{name: lambda: None}, rehearse=False)


def test_a_run_where_a_file_is_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run cannot be written, since .*run is a file"):
        run_of(tmp_path, OwnTested())


def test_a_run_that_recorded_more_of_its_networks_is_shown(tmp_path):
    summary = run_of(tmp_path, OwnTested(), method="supervised", rehearse=False)
    path = tmp_path / "run" / "run.json"
    begun = json.loads(path.read_text())
    assert "in_channels" not in begun["config"]["network"]
    begun["config"]["network"]["in_channels"] = 3  # until they were no hyperparameters of it
    path.write_text(json.dumps(begun))
    assert run_of(tmp_path, OwnTested(), method="supervised", resume=True) == summary


class Validated(OwnTested):
    def val_dataloader(self):
        return DataLoader(Halves(4), 4)


def test_patience_alone_ends_a_stage_early(tmp_path):
    never = partial(SegmentationModule, TinyNetwork(width=8), lr=0.0)
    run_of(tmp_path, Validated(), method="supervised", network=never, patience=2, rehearse=False)
    rows = read_rows(tmp_path / "run" / "supervised_training" / "metrics.csv")
    assert max(int(row["epoch"]) for row in rows) < 7


@pytest.mark.rehearsed
def test_validation_that_comes_too_rarely_is_found_in_the_rehearsal(tmp_path):
    trainer = partial(trainer_of, tmp_path, max_epochs=4, check_val_every_n_epoch=10)
    with pytest.raises(InputError, match="check_val_every_n_epoch=10 validates nothing in 4 ep"):
        run_of(tmp_path, Validated(), trainer=trainer, keep_best=True, rehearse=True)
