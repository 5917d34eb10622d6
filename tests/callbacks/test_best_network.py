"""The network of the best epoch, by checked validation masks, and early stopping."""

import pytest
import pytorch_lightning as pl
import torch

from coseg_lightning import AveragedWeights, SegmentationModule
from coseg_lightning.callbacks.best_network import BestNetwork
from coseg_lightning.errors import InputError
from coseg_lightning.run import run
from support import PHANTOM, SMALL, TinyNetwork, composed, data_of, one_batch, trainer_of


class Spoilt(pl.Callback):
    """Destroys the network after some epochs, as overfitting would."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.current_epoch >= self.epoch:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.zero_()


class Silent(SegmentationModule):
    """Validates, and logs nothing."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return None

    def on_validation_epoch_end(self):
        pass


@pytest.mark.parametrize("averages", [False, True])
def test_the_best_epochs_network_is_the_last(tmp_path, averages):
    best = BestNetwork()
    callbacks = [*([AveragedWeights()] if averages else []), Spoilt(6), best]
    trainer = trainer_of(tmp_path, max_epochs=9, callbacks=callbacks)
    module = SegmentationModule(TinyNetwork(), lr=0.02)
    data = data_of(tmp_path)
    trainer.fit(module, datamodule=data)
    assert best.epoch < 8
    assert any(parameter.abs().sum() > 0 for parameter in module.parameters())
    (found,) = trainer.validate(module, datamodule=data, verbose=False)
    assert found["val/dice"] == pytest.approx(best.best, abs=1e-6)


def test_training_stops_after_some_epochs_without_a_better_one(tmp_path):
    best = BestNetwork(patience=2)
    trainer = trainer_of(tmp_path, max_epochs=30, callbacks=[Spoilt(3), best])
    trainer.fit(SegmentationModule(TinyNetwork(), lr=0.02), datamodule=data_of(tmp_path))
    assert best.epoch <= 3
    assert trainer.current_epoch == best.epoch + 3


def test_the_best_network_survives_a_checkpoint(tmp_path):
    best = BestNetwork()
    trainer = trainer_of(tmp_path, max_epochs=2, callbacks=[best])
    module = SegmentationModule(TinyNetwork(), lr=0.02)
    trainer.fit(module, datamodule=data_of(tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["BestNetwork"]
    other = BestNetwork()
    other.load_state_dict(saved)
    assert (other.best, other.epoch) == (best.best, best.epoch)


def test_without_a_metric_there_is_no_best(tmp_path):
    module = Silent(TinyNetwork())
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[BestNetwork()])
    loader = torch.utils.data.DataLoader([tuple(part[0] for part in one_batch())] * 4, 2)
    with pytest.raises(InputError, match="needs the metric val/dice, but .* is logged"):
        trainer.fit(module, loader, loader)


def test_without_labelled_validation_there_is_no_best(tmp_path):
    trainer = trainer_of(tmp_path, max_epochs=3, callbacks=[BestNetwork()])
    image, mask = (part[0] for part in one_batch())
    loader = torch.utils.data.DataLoader([(image, mask)] * 4, 2)
    unlabelled = torch.utils.data.DataLoader([(image, torch.full_like(mask, 255))] * 4, 2)
    with pytest.raises(InputError, match="no pixel of the validation masks is labelled"):
        trainer.fit(SegmentationModule(TinyNetwork()), loader, unlabelled)
    assert trainer.current_epoch == 0


def test_without_validation_there_is_no_best(tmp_path):
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[BestNetwork()])
    loader = torch.utils.data.DataLoader([tuple(part[0] for part in one_batch())] * 4, 2)
    with pytest.raises(InputError, match="nothing is validated; give validation data"):
        trainer.fit(SegmentationModule(TinyNetwork()), loader)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check_val_every_n_epoch": 5}, "check_val_every_n_epoch=5 validates nothing in 3 epochs"),
        (
            {"max_epochs": -1, "max_steps": 3, "check_val_every_n_epoch": 5},
            "check_val_every_n_epoch=5 validates nothing in 2 epochs",
        ),
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 50},
            "val_check_interval=50 validates nothing in the 6 batches of 3 epochs",
        ),
    ],
)
def test_validation_that_comes_too_rarely_is_refused_before_training(tmp_path, settings, message):
    settings = {"max_epochs": 3, **settings}
    trainer = trainer_of(tmp_path, callbacks=[BestNetwork()], **settings)
    loader = torch.utils.data.DataLoader([tuple(part[0] for part in one_batch())] * 4, 2)
    with pytest.raises(InputError, match=message):
        trainer.fit(SegmentationModule(TinyNetwork()), loader, loader)
    assert trainer.global_step == 0


@pytest.mark.slow
def test_a_run_keeps_the_best_network_of_its_last_stage(tmp_path):
    settings = [*SMALL, *PHANTOM, "noise=type2", "nol=0.3", "trainer.max_epochs=6"]
    run(composed(*settings, "early_stopping=1", "optimizer.lr=0.5"), tmp_path / "run")
    stages = {}
    for name in ("robust_training", "retraining"):
        path = tmp_path / "run" / name / "last.ckpt"
        stages[name] = torch.load(path, weights_only=True)["callbacks"]
    assert "BestNetwork" in stages["retraining"]
    assert "BestNetwork" not in stages["robust_training"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["final=first"], "final=first must be last or best"),
        (["early_stopping=0"], "early_stopping=0 must be a whole number of at least 1"),
        (["final=best", "method=coteaching"], "no effect, since method=coteaching trains only pe"),
        (["final=best"], "final=best uses the Dice of validation images, but there are none"),
        (
            ["early_stopping=3", "data.source.val_share=0.2"],
            "early_stopping=3 would choose a network by validation masks that nobody checked",
        ),
    ],
)
def test_validation_masks_must_be_checked(tmp_path, make_folder, settings, sentence):
    given = [*SMALL, "data=folder", f"data.root={make_folder()}", "nol=0.2", *settings]
    with pytest.raises(InputError, match=sentence):
        run(composed(*given), tmp_path / "run")


def test_checked_validation_masks_may_choose(make_folder, tmp_path):
    root = make_folder()
    parts = ["test", "val", "val", *["train"] * 5]
    rows = [f"s{n:02},{part},{int(part != 'train')}" for n, part in enumerate(parts)]
    (root / "split.csv").write_text("\n".join(["id,split,trusted", *rows]))
    given = [*SMALL, "data=folder", f"data.root={root}", "data.image_size=32", "nol=0.2"]
    summary = run(composed(*given, "final=best", "method=supervised"), tmp_path / "run")
    assert summary["test"]["masks"] == "trusted test masks"
