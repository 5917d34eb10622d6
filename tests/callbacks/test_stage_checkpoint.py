"""An epoch that was saved goes on as it would have gone on without an interruption."""

from collections import Counter
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, BaseFinetuning
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from coseg_lightning import CoSegModule, SegmentationModule
from coseg_lightning.callbacks import stage_checkpoint
from coseg_lightning.callbacks.best_network import BestNetwork
from coseg_lightning.callbacks.epoch_seeds import EpochSeeds
from coseg_lightning.callbacks.stage_checkpoint import CHECKPOINT, UNFINISHED, StageCheckpoint
from coseg_lightning.files.checkpoints import load_checkpoint
from support import Halves, TinyNetwork, trainer_of

EPOCHS = 5


def first_layers(module):
    return nn.ModuleList([getattr(module, name).layers[:2] for name in module.network_names])


class Peers(CoSegModule):
    backbone = property(first_layers)


class Network(SegmentationModule):
    backbone = property(first_layers)


def peers(**options):
    torch.manual_seed(0)
    return Peers(TinyNetwork(), TinyNetwork(), lr=0.1, noise_level=0.25, **options)


def network(**options):
    torch.manual_seed(0)
    return Network(TinyNetwork(), lr=0.1, **options)


class Stop(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            raise RuntimeError("stopped here")


class Epochs(pl.Callback):
    """Keeps the number, the first step and the rate of each epoch, and whether all weights learn.

    The layers that track statistics count too.
    """

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            group = trainer.optimizers[0].param_groups[-1]
            learn = [weight.requires_grad for weight in pl_module.parameters()]
            names = pl_module.network_names
            learn += [getattr(pl_module, name).layers[1].track_running_stats for name in names]
            epoch = trainer.current_epoch, trainer.global_step, group["lr"], learn
            self.seen.append((*epoch, batch[2]))


class Thaw(BaseFinetuning):
    """Lets weights learn that were in the optimizer from the start."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.backbone)


def fit(folder, make, callbacks, options, *, stop=False, resume=False):
    seen = Epochs()
    own = [make_one() for make_one in callbacks]
    last = [EpochSeeds(0), StageCheckpoint(folder)]
    options = {"max_epochs": EPOCHS, **options}
    stops = [Stop()] if stop else []
    trainer = trainer_of(
        folder, callbacks=[*own, seen, *stops, *last], enable_checkpointing=True, **options
    )
    path = folder / UNFINISHED if resume else None
    loaders = DataLoader(Halves(), 4, shuffle=True), DataLoader(Halves(4), 4)
    trainer.fit(make(), *loaders, ckpt_path=path, weights_only=True)
    return seen.seen, torch.load(folder / CHECKPOINT, weights_only=True)


def weights_of(state):
    return state["state_dict"], state["optimizer_states"][0]["state"]


# A rate that falls in every epoch.
FALLING = partial(ReduceLROnPlateau, mode="max", patience=0, threshold=10.0, factor=0.5)
UNFREEZES = partial(BackboneFinetuning, unfreeze_backbone_at_epoch=1, train_bn=False)
CASES = {
    "max_steps above": ({}, [], {"max_steps": 100}),
    "max_steps alone": ({}, [], {"max_epochs": 1000, "max_steps": 3 * EPOCHS}),
    "max_steps within an epoch": ({}, [], {"max_epochs": 1000, "max_steps": 3 * EPOCHS - 1}),
    "plateau": ({"scheduler": FALLING}, [], {}),
    "plateau and max_steps": ({"scheduler": FALLING}, [], {"max_steps": 100}),
    "plateau every second epoch": (
        {"scheduler": lambda optimizer: {"scheduler": FALLING(optimizer), "frequency": 2}},
        [],
        {},
    ),
    "backbone": ({}, [UNFREEZES], {}),
    "backbone and max_steps": ({}, [UNFREEZES], {"max_steps": 100}),
    "finetuning": ({}, [Thaw], {}),
    "best": ({}, [partial(BestNetwork, 3)], {}),
    "best and plateau": ({"scheduler": FALLING}, [partial(BestNetwork, 3)], {}),
    "validated by steps": (
        {"scheduler": FALLING},
        [],
        {"check_val_every_n_epoch": None, "val_check_interval": 2},
    ),
}


PAIRS = [(network, case) for case in CASES]
PAIRS += [(peers, case) for case in CASES if "best" not in case]  # kept of one network alone


@pytest.mark.parametrize(("make", "case"), PAIRS)
def test_what_goes_on_is_what_would_have_gone_on(tmp_path, monkeypatch, make, case):
    monkeypatch.setattr(stage_checkpoint, "MAX_SAVE_SHARE", 1e12)  # every epoch is saved
    settings, callbacks, options = CASES[case]
    make = partial(make, **settings)
    whole, one = tmp_path / "whole", tmp_path / "stopped"
    seen, state = fit(whole, make, callbacks, options)
    assert len(seen) == EPOCHS
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(one, make, callbacks, options, stop=True)
    seen_again, state_again = fit(one, make, callbacks, options, resume=True)
    assert seen_again == seen[3:]
    assert state_again["global_step"] == state["global_step"]
    assert str(state_again["lr_schedulers"]) == str(state["lr_schedulers"])
    for parts in zip(weights_of(state_again), weights_of(state), strict=True):
        torch.testing.assert_close(*parts, rtol=0, atol=0)


def test_no_state_stays_for_other_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_checkpoint, "MAX_SAVE_SHARE", 1e12)
    _, state = fit(tmp_path, network, [], {})
    saved = torch.load(tmp_path / UNFINISHED, weights_only=True)
    assert saved["callbacks"]["StageCheckpoint"].keys() == {"plateaus", "learns"}
    assert "StageCheckpoint" not in state["callbacks"]


class Remembers(pl.Callback):
    """Has a state that only a checkpoint with code could hold as it is."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


@pytest.mark.parametrize(
    ("value", "saved"),
    [
        (np.float64(0.5), 0.5),
        ([(np.int64(3), Path("a"))], [(3, "a")]),
        (torch.device("cpu"), torch.device("cpu")),
        (Counter("ab"), Counter("ab")),
        (b"ab", b"ab"),
        (np.zeros(2), None),
        (datetime(2026, 1, 1), None),
    ],
)
def test_states_of_callbacks_do_not_spoil_a_checkpoint(tmp_path, value, saved):
    callbacks = [Remembers(value), StageCheckpoint(tmp_path)]
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    says = pytest.warns(UserWarning, match="The state of Remembers is not saved, since it holds")
    with says if saved is None else nullcontext():
        trainer.fit(network(), DataLoader(Halves(), 4))
    states = load_checkpoint(tmp_path / CHECKPOINT)["callbacks"]
    assert states.get("Remembers") == (None if saved is None else {"value": saved})
    assert saved is None or type(states["Remembers"]["value"]) is type(saved)
