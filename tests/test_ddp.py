"""Several processes: the same weights on all, and the ranking and layer of a single process."""

import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    CoSegDataModule,
    CoSegModule,
    LabelCorrection,
    LabelStore,
    SegmentationModule,
)
from coseg_lightning.methods.dimensionality import DimensionalityDriven
from coseg_lightning.methods.pick_and_learn import PickAndLearn
from coseg_lightning.methods.reweight import Reweighted
from coseg_lightning.methods.transition import LabelTransition, TransitionEstimation
from coseg_lightning.noise import BoundaryNoise
from coseg_lightning.report.figures import read_rows
from coseg_lightning.runs.wrapped import wrap_datamodule
from support import (
    RIGHT,
    Halves,
    Oracle,
    OwnTested,
    Squares,
    TinyNetwork,
    data_of,
    hashes,
    layer_of,
    module_of,
    trainer_of,
)


class KeepStates(pl.Callback):
    """Saves each process's weights and step count, for the test to compare."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(exist_ok=True)
        state = {**pl_module.state_dict(), "steps": torch.tensor(trainer.global_step)}
        torch.save(state, self.folder / f"{trainer.global_rank}.pt")


def processes(count):
    if count == 1:
        return {}
    return {"strategy": "ddp_fork", "devices": count}


MODULES = {
    "coseg": module_of,
    "supervised": lambda: SegmentationModule(TinyNetwork()),
    "pick_and_learn": lambda: PickAndLearn(TinyNetwork(), in_channels=1),
    "reweight": lambda: Reweighted(TinyNetwork(), clean_ids=["s01", "s02"]),
    "noise_adaptation": lambda: LabelTransition(
        TinyNetwork(), learnt=True, transition=[[0.9, 0.1], [0.1, 0.9]]
    ),
    "dimensionality": lambda: DimensionalityDriven(TinyNetwork()),
}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("coseg", 2),
        *(
            pytest.param(kind, count, marks=pytest.mark.slow)
            for kind, count in [("coseg", 3), *((kind, 2) for kind in MODULES if kind != "coseg")]
        ),
    ],
)
def test_ranks_end_with_the_same_weights(tmp_path, kind, count):
    data, module = data_of(tmp_path), MODULES[kind]()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer_of(
        tmp_path, max_epochs=3, callbacks=[KeepStates(tmp_path / "states")], **processes(count)
    ).fit(module, data)
    first, *others = (
        torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in range(count)
    )
    # 11 samples on 2 processes are 6 each: one batch of 4 per epoch, and the rest is dropped.
    assert first["steps"] == 3
    for other in others:
        torch.testing.assert_close(first, other, rtol=0, atol=0)
    assert any((first[name] != before[name]).any() for name in before)


@pytest.mark.slow
def test_clipping_accumulation_and_schedules_on_two_processes(tmp_path):
    """Each process clips the reduced gradients, so that both take the same step."""
    module = module_of(scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.5))
    trainer_of(
        tmp_path,
        max_epochs=3,
        callbacks=[KeepStates(tmp_path / "states")],
        gradient_clip_val=0.05,
        accumulate_grad_batches=2,
        **processes(2),
    ).fit(module, data_of(tmp_path, size=20))
    first, second = (
        torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert first["steps"] == 3  # two batches per process and epoch
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.slow
def test_a_single_process_of_ddp(tmp_path):
    """DDP wraps the module all the same, and waits for all gradients in one backward."""
    module = module_of()
    before = [weight.clone() for weight in module.parameters()]
    trainer_of(tmp_path, max_epochs=1, strategy="ddp_fork", devices=1).fit(
        module, data_of(tmp_path, size=8)
    )
    assert sum((a != b).any() for a, b in zip(before, module.parameters(), strict=True))


class KeepPicks(pl.Callback):
    """Counts the samples that each process picks from each batch."""

    def __init__(self, folder):
        self.folder, self.counts = folder, []

    def on_train_start(self, trainer, pl_module):
        learn = pl_module.learn_from_picks

        def counted(sample):
            learnt = learn(sample)
            self.counts.append((len(sample.masks), len(learnt.picks[0])))
            return learnt

        pl_module.learn_from_picks = counted

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(exist_ok=True)
        torch.save(self.counts, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
def test_batches_are_selected_from_by_each_process_alone(tmp_path):
    """Selection by batch is within a process's own batch, whatever the other process picks."""
    module = module_of(selection="relative", ramp_epochs=0)
    trainer_of(tmp_path, callbacks=[KeepPicks(tmp_path / "picks")], **processes(2)).fit(
        module, data_of(tmp_path, size=20)
    )
    for rank in (0, 1):
        counts = torch.load(tmp_path / "picks" / f"{rank}.pt", weights_only=True)
        assert counts == [(4, 2)] * 4


class DoubtAll(pl.Callback):
    """Excludes all samples of process 0, and counts the images that pass through its peers."""

    def __init__(self, folder):
        self.folder, self.passed = folder, []

    def on_train_start(self, trainer, pl_module):
        for net in (pl_module.net_a, pl_module.net_b):
            net.register_forward_hook(lambda _, images, __: self.passed.append(len(images[0])))

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(exist_ok=True)
        torch.save(self.passed, self.folder / f"passed{trainer.global_rank}.pt")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        ids = list(batch["id"]) if trainer.global_rank == 0 else []
        pl_module.selection.exclude(ids, ids)


@pytest.mark.slow
def test_a_process_whose_batch_is_doubted_throughout(tmp_path):
    """It takes part in the step all the same, and ends with the same weights."""
    callbacks = [DoubtAll(tmp_path / "states"), KeepStates(tmp_path / "states")]
    trainer_of(tmp_path, callbacks=callbacks, limit_val_batches=0, **processes(2)).fit(
        module_of(), data_of(tmp_path, size=20)
    )
    first, second = (
        torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # With synchronised BatchNorm, the others would wait forever for a process that passes nothing.
    passed = [
        torch.load(tmp_path / "states" / f"passed{rank}.pt", weights_only=True) for rank in (0, 1)
    ]
    assert passed == [[2] * len(passed[1]), [4] * len(passed[1])]


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The app runs under torchrun as docs/how-to/lightning.md says."""
    arguments = ["model=unet_classic", "model.base_channels=2", "noise=type2", "nol=0.25"]
    arguments += ["data.source.train=8", "data.source.val=0", "data.source.test=3"]
    arguments += ["data.image_size=32", "data.batch_size=2", "trainer.max_epochs=1"]
    folder = tmp_path / "run"
    arguments += ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    arguments += [f"hydra.run.dir={folder}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "coseg_lightning.run", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Test Dice") == 1  # printed by the first process alone
    assert len(read_rows(folder / "scores.csv")) == 8
    assert (folder / "report.html").is_file()


def run_of(tmp_path, count, score):
    """Rank and correct with fixed networks, so that only the pass itself can differ."""
    torch.manual_seed(0)
    net_b = Oracle()
    net_b.gain.data *= 0.5
    module = CoSegModule(Oracle(), net_b, noise_level=0.3, lr=0.0)
    data = CoSegDataModule(
        Squares(11, side=40), image_size=32, in_channels=1, batch_size=2, augmentation=None
    )
    folder = tmp_path / str(count)
    ranking = CorruptionRanking(folder / "scores.csv", score=score)
    callbacks = [ranking, LabelCorrection(folder / "labels")]
    trainer_of(tmp_path, max_epochs=1, callbacks=callbacks, **processes(count)).fit(module, data)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("score", ["directed", "joint"])
def test_ranking_and_layer_are_the_same_for_1_2_and_3_processes(tmp_path, score):
    """11 samples on 3 processes, and 3 corrected ones on 2 and 3: every share is uneven."""
    one, *others = (run_of(tmp_path, count, score) for count in (1, 2, 3))
    expected = {path.relative_to(one): digest for path, digest in hashes(one).items()}
    assert len(expected) == 1 + 1 + 3  # scores.csv, manifest.json and 3 masks
    for other in others:
        digests = {path.relative_to(other): digest for path, digest in hashes(other).items()}
        assert digests == expected


class KeepTest(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_test_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            torch.save(metrics, self.path)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_every_test_image_counts_once(tmp_path, count):
    data, module = data_of(tmp_path), SegmentationModule(TinyNetwork())  # 5 test images
    data.prepare_data()
    for n in (1, count):
        callbacks = [KeepTest(tmp_path / f"{n}.pt")]
        trainer_of(tmp_path, callbacks=callbacks, **processes(n)).test(module, data, verbose=False)
    one, several = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, count))
    assert several == pytest.approx(one, nan_ok=True)


class KeepFinal(pl.Callback):
    """Saves each process's weights once everything else is done."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        self.folder.mkdir(exist_ok=True)
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("error:.*sync_dist")  # which Lightning advises for other metrics
@pytest.mark.parametrize("make", [module_of, lambda: SegmentationModule(TinyNetwork())])
def test_skipped_steps_of_two_processes_are_counted_once(tmp_path, make):
    images, masks = torch.rand(4, 1, 16, 16), torch.randint(0, 2, (4, 16, 16))
    images[0, 0, 3, 3] = float("nan")  # in one of two steps
    trainer = trainer_of(tmp_path, max_epochs=1, **processes(2))
    module = make()
    trainer.fit(module, DataLoader(TensorDataset(images, masks), batch_size=1))
    networks = 2 if isinstance(module, CoSegModule) else 1
    assert trainer.callback_metrics["train/skipped"] == networks


@pytest.mark.slow
@pytest.mark.parametrize("averaging", [True, False])
def test_batches_of_which_one_process_keeps_nothing(tmp_path, averaging):
    """With one sample per batch and most of them excluded, a process often has nothing to learn."""
    data = CoSegDataModule(
        Squares(6),
        Squares(3, name="v"),
        None,
        image_size=32,
        in_channels=1,
        batch_size=1,
        noise=BoundaryNoise(8, sign="dilate"),
        noise_level=0.3,
        noise_folder=tmp_path / "noise",
    )
    module = module_of(noise_level=0.7)
    callbacks = [AveragedWeights()] if averaging else []
    callbacks += [
        CorruptionRanking(tmp_path / "scores.csv"),
        LabelCorrection(tmp_path / "labels"),
        KeepFinal(tmp_path / "states"),
        ModelCheckpoint(tmp_path / "checkpoints", save_on_train_epoch_end=True, filename="last"),
    ]
    trainer = trainer_of(
        tmp_path, max_epochs=6, callbacks=callbacks, enable_checkpointing=True, **processes(2)
    )
    trainer.fit(module, data)
    first, second = (
        torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved, first, rtol=1e-6, atol=1e-7)
    assert len(LabelStore(tmp_path / "labels")) == 4


@pytest.mark.slow
def test_a_transition_is_estimated_alike_by_1_and_2_processes(tmp_path):
    transitions = []
    for count in (1, 2):
        torch.manual_seed(0)
        # It has no BatchNorm, whose statistics would change with training.
        network = torch.nn.Conv2d(1, 2, 3, padding=1)
        module, callback = LabelTransition(network, lr=0.0), KeepTransition(tmp_path)
        options = {"max_epochs": 1, "callbacks": [callback], **processes(count)}
        trainer_of(tmp_path, **options).fit(module, data_of(tmp_path / f"{count}"))
        transitions.append(torch.load(tmp_path / "transition.pt", weights_only=True))
    torch.testing.assert_close(transitions[0], transitions[1], atol=1e-6, rtol=0)


class KeepTransition(TransitionEstimation):
    """Saves the transition that the first process estimated, for the test to compare."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero:
            torch.save(torch.tensor(self.transition), self.folder / "transition.pt")


@pytest.mark.slow
def test_a_rollback_is_the_same_on_both_processes(tmp_path):
    class Rising(DimensionalityDriven):
        """Its dimensionality rises after ten epochs."""

        def dimensionality(self, features):
            return 9.0 if self.current_epoch >= 10 else 3.0 - 0.1 * self.current_epoch

    module = Rising(TinyNetwork(), lr=0.05)
    states, turns = KeepStates(tmp_path / "states"), KeepTurn(tmp_path)
    options = {"max_epochs": 12, "callbacks": [states, turns], **processes(2)}
    trainer_of(tmp_path, **options).fit(module, data_of(tmp_path / "data"))
    first, other = (
        torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    torch.testing.assert_close(first, other, rtol=0, atol=0)
    assert [(tmp_path / f"turn_{rank}").read_text() for rank in (0, 1)] == ["9", "9"]


class KeepTurn(pl.Callback):
    """Writes down each process's turning epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        (self.folder / f"turn_{trainer.global_rank}").write_text(str(pl_module.turning_epoch))


class KeepBatches(pl.Callback):
    """Saves what each process is trained on, by id: the image's mean and the mask."""

    def __init__(self, folder):
        self.folder, self.seen = folder, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for image, mask, sample_id in zip(*batch, strict=True):
            self.seen[sample_id] = float(image.mean()), mask

    def on_train_end(self, trainer, pl_module):
        torch.save(self.seen, self.folder / f"{trainer.global_rank}.pt")


class Brightened(DataLoader):
    """Its own iteration changes the images."""

    def __iter__(self):
        return ([images + 100, *rest] for images, *rest in super().__iter__())


class OwnLoader(OwnTested):
    kind = DataLoader

    def train_dataloader(self):
        return self.kind(self.train, batch_size=2, shuffle=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DataLoader, Brightened])
def test_each_process_of_retraining_reads_the_corrected_masks(tmp_path, kind):
    layer = layer_of(tmp_path / "labels", {f"h{n}": RIGHT for n in range(3)})
    own = OwnLoader()
    own.kind = kind
    data = wrap_datamodule(own)
    data.add_label_layer(layer.folder)
    module = SegmentationModule(TinyNetwork())
    options = {"callbacks": [KeepBatches(tmp_path)], **processes(2)}
    trainer_of(tmp_path, max_epochs=1, **options).fit(module, data)
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [len(share) for share in shares] == [6, 6]
    together = shares[0] | shares[1]
    assert set(together) == {f"h{n}" for n in range(12)}
    assert all(torch.equal(mask, RIGHT) for _, mask in together.values())
    assert all((mean > 50) == (kind is Brightened) for mean, _ in together.values())


@pytest.mark.slow
def test_the_last_batch_of_a_process_is_of_its_own_share(tmp_path):
    """Twelve samples that are drawn by weight, in batches of four, are 4 + 2 on each of two."""
    sampler = torch.utils.data.WeightedRandomSampler(torch.ones(12), 12)
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    options = {"callbacks": callbacks, **processes(2)}
    trainer_of(tmp_path, max_epochs=2, **options).fit(
        module_of(), DataLoader(Halves(), 4, sampler=sampler)
    )
    assert len(read_rows(tmp_path / "scores.csv")) == 12
