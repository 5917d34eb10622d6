"""Samples are ranked, corrected and retrained on as the networks see them in training."""

import gc
import itertools
import threading
import weakref
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from coseg_lightning import CorruptionRanking, CoSegModule, LabelCorrection, SegmentationModule
from coseg_lightning.callbacks.path_guard import check_alike
from coseg_lightning.errors import InputError
from coseg_lightning.modules.batch import Batch
from coseg_lightning.modules.loaders import shortened
from support import Halves, TinyNetwork, flipped, rows_of, run_of, trainer_of


class Raw(Halves):
    """Halves whose images are no input for a network before they are normalised."""

    def __getitem__(self, index):
        image, *rest = super().__getitem__(index)
        return 40 * image + 90, *rest


def normalised(batch):
    return [(batch[0] - 90) / 40, *batch[1:]]


class NormalisingLoader(DataLoader):
    def __iter__(self):
        return map(normalised, super().__iter__())


class Prefetcher:
    """A wrapper around a loader, like `PrefetchLoader` of timm."""

    def __init__(self, loader):
        self.wrapped = loader

    def __iter__(self):
        return map(normalised, self.wrapped)

    def __len__(self):
        return len(self.wrapped)


class InTransfer(CoSegModule):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return normalised(batch)


class AfterTransfer(CoSegModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return normalised(batch)


class Scaler(nn.Module):
    def forward(self, images):
        return (images - 90) / 40


class InPart(CoSegModule):
    """Normalises by a part of the module, as projects with kornia or torchgeo do."""

    def __init__(self, *nets, **options):
        super().__init__(*nets, **options)
        self.scaler = Scaler()

    def training_step(self, batch, batch_idx):
        return super().training_step([self.scaler(batch[0]), *batch[1:]], batch_idx)


class InPlace(CoSegModule):
    """Normalises in place, counts its steps, and draws a random number in each."""

    steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        batch[0].sub_(90).div_(40)
        batch[0].add_(0 * torch.rand(()))
        return super().training_step(batch, batch_idx)


class InStep(CoSegModule):
    def training_step(self, batch, batch_idx):
        batch = normalised(batch)
        self.log("mine", float(batch[0].mean()))
        return super().training_step(batch, batch_idx)


class Data(pl.LightningDataModule):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def train_dataloader(self):
        return DataLoader(Raw(), 4, shuffle=True, **self.options)


class HookedData(Data):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return normalised(batch)


def collated(samples):
    return normalised(torch.utils.data.default_collate(samples))


opened = []


def open_file(worker):
    opened.append("file")


class Reader(Halves):
    """Reads from a file that `worker_init_fn` opens."""

    def __getitem__(self, index):
        assert opened, "the file is not open"
        return super().__getitem__(index)


PLAIN = partial(DataLoader, batch_size=4, shuffle=True)
PATHS = {
    "a loader's own iteration": (CoSegModule, lambda: NormalisingLoader(Raw(), 4, shuffle=True)),
    "a wrapper": (CoSegModule, lambda: Prefetcher(PLAIN(Raw()))),
    "a wrapped wrapper": (CoSegModule, lambda: Nested(Prefetcher(PLAIN(Raw())))),
    "the collate function": (CoSegModule, lambda: PLAIN(Raw(), collate_fn=collated)),
    "a hook before the transfer": (InTransfer, lambda: PLAIN(Raw())),
    "a hook after the transfer": (AfterTransfer, lambda: PLAIN(Raw())),
    "a datamodule's hook": (CoSegModule, HookedData),
    "the training step": (InStep, lambda: PLAIN(Raw())),
    "a part of the module": (InPart, lambda: PLAIN(Raw())),
    "the training step in place": (InPlace, lambda: PLAIN(Raw())),
}


class Nested:
    def __init__(self, loader):
        self.loader, self.dataset = loader, loader.wrapped.dataset

    def __iter__(self):
        return iter(self.loader)

    def __len__(self):
        return len(self.loader)


def peers_of(kind, **options):
    torch.manual_seed(1)
    return kind(TinyNetwork(), TinyNetwork(), noise_level=0.25, lr=0.03, **options)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_ranked_and_corrected_is_what_was_trained_on(tmp_path, path):
    kind, make = PATHS[path]
    module, data = peers_of(kind), make()
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    correction = LabelCorrection(tmp_path / "labels", confidence=0.0)
    trainer_of(tmp_path, max_epochs=8, callbacks=[ranking, correction]).fit(module, data)
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)
    for sample_id in correction.layer.ids:
        mask = torch.from_numpy(correction.layer.read(sample_id).astype(int))
        assert (mask == Halves(wrong=0)[0][1]).float().mean() > 0.9, sample_id


def scores_of(ranking):
    return dict(zip(ranking.ranking.ids, ranking.ranking.score_a.tolist(), strict=True))


def by_hand(module, dataset):
    """Eq. (1) of the first peer, by sample."""
    module.eval()
    scores = {}
    with torch.no_grad():
        for index in range(len(dataset)):
            image, mask, sample_id = dataset[index]
            logits = module.net_a(image[None])
            scores[sample_id] = float(nn.functional.cross_entropy(logits, mask[None]))
    return scores


@pytest.mark.slow
@pytest.mark.parametrize(
    "loader", [NormalisingLoader, lambda *given, **more: Prefetcher(DataLoader(*given, **more))]
)
def test_all_stages_take_the_same_path(tmp_path, loader):
    class Own(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(Raw(16, wrong=4), 4, shuffle=True)

        def test_dataloader(self):
            return NormalisingLoader(Raw(4, wrong=0), 4)

    summary = run_of(tmp_path, Own())
    assert summary["test"]["dice"] > 0.95
    worst = [row["id"] for row in rows_of(tmp_path / "run" / "scores.csv")[:4]]
    assert sorted(worst) == ["h0", "h1", "h2", "h3"]


@pytest.mark.slow
def test_workers_are_begun_as_the_loader_begins_them(tmp_path):
    loader = PLAIN(Reader(), num_workers=1, worker_init_fn=open_file)
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), loader)
    assert len(ranking.ranking.ids) == 12


def test_a_step_that_cannot_be_repeated_is_refused_before_training(tmp_path):
    class Own(CoSegModule):
        steps = 0

        def training_step(self, batch, batch_idx):
            images, masks, _ = normalised(batch)
            loss = nn.functional.cross_entropy(self.net_a(images), masks)
            self.manual_backward(loss)
            self.steps += 1

    module = peers_of(Own)
    before = [weight.clone() for weight in module.parameters()]
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "scores.csv")])
    with pytest.raises(InputError, match=r"Own.training_step changes the images but does not"):
        trainer.fit(module, PLAIN(Raw()))
    assert module.steps == 0
    torch.testing.assert_close(before, list(module.parameters()))


def test_a_step_of_ones_own_that_changes_nothing_is_ranked(tmp_path):
    class Own(CoSegModule):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for net in (self.net_a, self.net_b):
                self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    module = peers_of(Own)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    trainer_of(tmp_path, callbacks=[ranking]).fit(module, PLAIN(Halves()))
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)


def test_what_is_no_loader_is_named_before_training(tmp_path):
    def batches():
        yield from PLAIN(Halves())

    class Streaming:
        def __iter__(self):
            return batches()

    ranking = CorruptionRanking(tmp_path / "scores.csv", dataset=Halves())
    with pytest.raises(InputError, match="is a Streaming, and it holds no torch DataLoader"):
        trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), Streaming())


def tiles(samples):
    """Two tiles of each image, flattened, as a collate function of MONAI makes them of lists."""
    halves = [
        (image[:, rows], mask[rows], name)
        for image, mask, name in samples
        for rows, name in ((slice(8), f"{name}_t"), (slice(8, None), f"{name}_b"))
    ]
    return torch.utils.data.default_collate(halves)


class Tiles(Halves):
    def __getitem__(self, index):
        image, mask, name = super().__getitem__(index // 2)
        rows = slice(8, None) if index % 2 else slice(8)
        return image[:, rows], mask[rows], f"{name}_{'tb'[index % 2]}"


def test_patches_with_ids_of_their_own_are_ranked_as_patches(tmp_path):
    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking])
    trainer.fit(module, PLAIN(Halves(), collate_fn=tiles))
    assert ranking.ranking.ids == [f"h{n}_{side}" for n in range(12) for side in "tb"]
    assert scores_of(ranking) == pytest.approx(by_hand(module, Tiles(24)), abs=1e-5)
    assert float(trainer.callback_metrics["train/keep_rate"]) == 0.75  # they were found again


def test_patches_with_the_ids_of_their_images_are_joined(tmp_path):
    def of_images(samples):
        images, masks, ids = tiles(samples)
        return images, masks, [name[:-2] for name in ids]

    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking])
    trainer.fit(module, PLAIN(Halves(), collate_fn=of_images))
    of_tiles = by_hand(module, Tiles(24))
    expected = {f"h{n}": (of_tiles[f"h{n}_t"] + of_tiles[f"h{n}_b"]) / 2 for n in range(12)}
    assert scores_of(ranking) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("corrected", [False, True])
def test_patches_that_nobody_could_find_again_are_refused_before_training(tmp_path, corrected):
    def collate(samples):
        batch = tiles(samples)
        return batch if corrected else batch[:2]

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    advice = (
        "leave out LabelCorrection" if corrected else "give the patches ids, either their own or"
    )
    trainer = trainer_of(tmp_path, callbacks=callbacks[: 1 + corrected])
    with pytest.raises(InputError, match=f"1 samples were read, but the batch holds 2, .*{advice}"):
        trainer.fit(peers_of(CoSegModule), PLAIN(Halves(), collate_fn=collate))
    assert trainer.global_step == 0


class Unreadable(Halves):
    """Its sample 4 cannot be read; the collate function leaves it out."""

    def __getitem__(self, index):
        return None if index == 4 else super().__getitem__(index)


def readable(samples):
    return torch.utils.data.default_collate([sample for sample in samples if sample is not None])


def test_samples_that_the_collate_function_leaves_out_are_not_ranked(tmp_path):
    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    loader = DataLoader(Unreadable(), 4, collate_fn=readable)
    trainer_of(tmp_path, max_epochs=8, callbacks=[ranking]).fit(module, loader)
    expected = by_hand(module, Halves())
    del expected["h4"]
    assert scores_of(ranking) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ids", [True, False])
def test_left_out_samples_that_nobody_can_tell_are_refused_in_the_first_epoch(tmp_path, ids):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=callbacks[: 1 + ids])
    loader = DataLoader(Unreadable(ids=ids), 4, shuffle=True, collate_fn=readable)
    with pytest.raises(InputError, match="4 samples were read, but the batch holds 3"):
        trainer.fit(peers_of(CoSegModule), loader)
    assert trainer.current_epoch == 0


class Patients(Halves):
    """Two samples of each patient, with the patient's id; neighbours are of different ones."""

    def __getitem__(self, index):
        return *super().__getitem__(index)[:2], f"p{index % 6}"


def test_ids_that_are_none_are_found_in_the_first_epoch(tmp_path):
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[CorruptionRanking(tmp_path / "s.csv")])
    with pytest.raises(
        InputError,
        match=r"2 samples have the id .p\d., but ids .* WeightedRandomSampler",
    ):
        trainer.fit(peers_of(CoSegModule), PLAIN(Patients()))
    assert trainer.current_epoch == 0


@pytest.mark.parametrize(
    "sampler",
    [
        torch.utils.data.SubsetRandomSampler([1, 2, 5, 7, 8, 11]),
        torch.utils.data.WeightedRandomSampler(
            [float(n in (1, 2, 5, 7, 8, 11)) for n in range(12)], 12
        ),
    ],
)
def test_samples_that_are_never_drawn_are_not_ranked(tmp_path, sampler):
    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    correction = LabelCorrection(tmp_path / "labels", confidence=0.0)
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking, correction])
    trainer.fit(module, DataLoader(Halves(), 3, sampler=sampler))
    found = scores_of(ranking)
    assert set(found) == {"h1", "h2", "h5", "h7", "h8", "h11"}
    every = by_hand(module, Halves())
    assert found == pytest.approx({name: every[name] for name in found}, abs=1e-5)
    assert set(correction.layer.ids) <= {"h1", "h2"}


def test_a_set_that_is_drawn_from_in_part_needs_ids(tmp_path):
    sampler = torch.utils.data.SubsetRandomSampler([1, 2, 5])
    loader = DataLoader(Halves(ids=False), 3, sampler=sampler)
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    with pytest.raises(InputError, match="is sampled only in part, so its samples need ids"):
        trainer.fit(peers_of(CoSegModule), loader)
    assert trainer.global_step == 0


class Odd(torch.utils.data.Sampler):
    """Draws some of the samples, and keeps a lock, which cannot be copied, if it is told to."""

    def __init__(self, data, lock=None):
        self.data, self.lock = data, lock

    def __iter__(self):
        return iter(torch.randperm(6).mul(2).add(1).tolist())

    def __len__(self):
        return 6


class Indexed(Halves):
    """Is read by numbers of numpy, as samplers give them that permute with it."""

    def __getitem__(self, index):
        return super().__getitem__(int(index))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(Halves(), 3, sampler=Odd(Halves())),
        lambda: DataLoader(Halves(), batch_sampler=[[1, 3], [5, 7], [9, 11]]),
        lambda: DataLoader(Indexed(), batch_sampler=[np.arange(1, 7, 2), np.arange(7, 12, 2)]),
    ],
)
def test_a_sampler_of_ones_own_tells_what_it_can_draw(tmp_path, make):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), make())
    assert ranking.ranking.ids == [f"h{n}" for n in range(1, 12, 2)]


def test_a_sampler_that_cannot_be_copied_is_taken_to_draw_everything(tmp_path):
    loader = DataLoader(Halves(), 3, sampler=Odd(Halves(), lock=threading.Lock()))
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), loader)
    assert len(ranking.ranking.ids) == 12
    assert shortened(loader, 2) is loader


def test_samples_that_are_drawn_more_often_are_no_mistake(tmp_path):
    sampler = torch.utils.data.SubsetRandomSampler([n for n in range(12) for _ in range(2)])
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    loader = DataLoader(Halves(), 4, sampler=sampler)
    trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), loader)
    assert len(ranking.ranking.ids) == 12


class Epochs(DataLoader):
    """Keeps its workers by keeping its iteration, like `MultiEpochsDataLoader` of timm."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.iterator = super().__iter__()

    def __iter__(self):
        return (next(self.iterator) for _ in range(len(self)))


class Cut:
    """Gives a number of batches of its own."""

    def __init__(self, loader, steps):
        self.loader, self.steps, self.dataset = loader, steps, loader.dataset

    def __iter__(self):
        return itertools.islice(iter(self.loader), self.steps)

    def __len__(self):
        return self.steps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epochs(Halves(), 4), "The Epochs reuses one iterator, so its samples"),
        (lambda: Cut(PLAIN(Halves()), 2), "a Cut, was asked for 41 batches but returned 2"),
    ],
)
def test_loaders_that_cannot_be_read_again_are_refused_before_training(tmp_path, make, message):
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "scores.csv")])
    with pytest.raises(InputError, match=message):
        trainer.fit(peers_of(CoSegModule), make())
    assert trainer.global_step == 0


def test_a_loader_that_keeps_its_workers_for_all_epochs(tmp_path):
    data = pytest.importorskip("timm.data.loader")
    loader = data.MultiEpochsDataLoader(Halves(10), 4, shuffle=True)
    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    callbacks = [ranking, LabelCorrection(tmp_path / "labels")]
    trainer_of(tmp_path, max_epochs=4, callbacks=callbacks).fit(module, loader)
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves(10)), abs=1e-5)


def test_some_samples_that_become_patches(tmp_path):
    def collate(samples):
        parts = [
            part for sample in samples for part in ([sample] if sample[2] == "h0" else cut(sample))
        ]
        return torch.utils.data.default_collate(parts)

    def cut(sample):
        return [(*sample[:2], f"{sample[2]}_{n}") for n in range(2)]

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    loader = PLAIN(Halves(), collate_fn=collate)
    trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), loader)
    assert len(ranking.ranking.ids) == 23


# Scores of several epochs


class Redrawn(pl.LightningDataModule):
    """Draws eight of the twelve samples anew in every epoch."""

    def __init__(self, **options):
        super().__init__()
        self.options, self.parts = options, []

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(len(self.parts))
        self.parts.append(torch.randperm(12, generator=generator)[:8].tolist())
        return PLAIN(Subset(Halves(**self.options), self.parts[-1]))


class States(pl.Callback):
    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        state = pl_module.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})


def mean_by_hand(module, states, parts):
    """Each sample's mean score over the epochs whose part it was in."""
    found = {}
    for state, part in zip(states, parts, strict=True):
        module.load_state_dict(state)
        for sample_id, score in by_hand(module, Halves()).items():
            if int(sample_id[1:]) in part:
                found.setdefault(sample_id, []).append(score)
    return {f"h{n}": sum(found[f"h{n}"]) / len(found[f"h{n}"]) for n in parts[-1]}


def test_scores_of_several_epochs_are_joined_by_id(tmp_path):
    data, module, states = Redrawn(), peers_of(CoSegModule, selection="relative"), States()
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean", epochs=3)
    options = {"callbacks": [ranking, states], "reload_dataloaders_every_n_epochs": 1}
    trainer_of(tmp_path, max_epochs=6, **options).fit(module, datamodule=data)
    expected = mean_by_hand(module, states.states[-3:], data.parts[-3:])
    assert scores_of(ranking) == pytest.approx(expected, abs=1e-5)


class Stopped(pl.Callback):
    """Ends training after an epoch, as `EarlyStopping` does."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def test_the_epoch_in_which_training_stops_counts_once(tmp_path):
    data, module, states = Redrawn(), peers_of(CoSegModule, selection="relative"), States()
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean", epochs=3)
    callbacks = [ranking, states, Stopped(5)]
    options = {"callbacks": callbacks, "reload_dataloaders_every_n_epochs": 1}
    trainer_of(tmp_path, max_epochs=6, **options).fit(module, datamodule=data)
    expected = mean_by_hand(module, states.states[-2:], data.parts[-2:])
    assert scores_of(ranking) == pytest.approx(expected, abs=1e-5)


def test_a_set_that_is_drawn_anew_needs_ids(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking], reload_dataloaders_every_n_epochs=1)
    with pytest.raises(InputError, match="is reloaded every 1 epochs, so its samples need ids"):
        trainer.fit(peers_of(CoSegModule), datamodule=Redrawn(ids=False))


class Shuffling(Halves):
    """Shuffles itself at the beginning of every epoch, like a sequence of Keras."""

    order = tuple(range(12))

    def __getitem__(self, index):
        return super().__getitem__(self.order[index])


class Shuffle(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        generator = torch.Generator().manual_seed(trainer.current_epoch)
        trainer.train_dataloader.dataset.order = torch.randperm(12, generator=generator).tolist()


def test_a_dataset_that_shuffles_itself_is_known_by_its_ids(tmp_path):
    module, states = peers_of(CoSegModule, selection="relative"), States()
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean", epochs=3)
    callbacks = [Shuffle(), ranking, states]
    trainer_of(tmp_path, max_epochs=6, callbacks=callbacks).fit(module, PLAIN(Shuffling()))
    found = scores_of(ranking)
    expected = mean_by_hand(module, states.states[-3:], [range(12)] * 3)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_dataset_that_shuffles_itself_needs_ids(tmp_path):
    callbacks = [Shuffle(), CorruptionRanking(tmp_path / "scores.csv")]
    trainer = trainer_of(tmp_path, max_epochs=6, callbacks=callbacks)
    with pytest.raises(
        InputError, match="returns another sample at .* it probably shuffles itself"
    ):
        trainer.fit(peers_of(CoSegModule), PLAIN(Shuffling(wrong=6, ids=False)))
    assert trainer.current_epoch == 1


class Flipped(Halves):
    """Augments its masks, and gives no ids."""

    def __getitem__(self, index):
        return flipped(*super().__getitem__(index))


def test_masks_that_are_augmented_are_not_taken_for_shuffled_ones(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    with pytest.warns(UserWarning, match="returns different masks each time it is read"):
        trainer_of(tmp_path, max_epochs=3, callbacks=[ranking]).fit(
            peers_of(CoSegModule), PLAIN(Flipped(ids=False))
        )
    assert len(ranking.ranking.ids) == 12


def test_the_network_of_retraining_may_normalise_in_its_step():
    class Own(SegmentationModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(normalised(batch), batch_idx)

    batch = next(iter(PLAIN(Raw())))
    sample = Own(TinyNetwork()).as_trained(batch)
    torch.testing.assert_close(sample.images, normalised(batch)[0])


# The guard


class OnlyInTraining(CoSegModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return normalised(batch) if self.trainer.training else batch


class Augmenting(CoSegModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            batch = [batch[0] * (0.8 + 0.4 * torch.rand(())), *batch[1:]]
        return batch


class OnlyInTrainingAndAugmenting(Augmenting):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return normalised(batch) if self.trainer.training else batch


class Forgetful:
    """A wrapper that normalises only as long as it is not copied."""

    def __init__(self, loader):
        self.loader, self.me = loader, id(self)

    def __iter__(self):
        return map(normalised, self.loader) if self.me == id(self) else iter(self.loader)

    def __len__(self):
        return len(self.loader)


def mixed(samples):
    images, masks, ids = torch.utils.data.default_collate(samples)
    return (images + images.roll(1, 0)) / 2, masks, ids


class AtBatchStart(CoSegModule):
    def on_train_batch_start(self, batch, batch_idx):
        batch[0] = normalised(batch)[0]


class Scaled(Augmenting):
    """Scales in training alone, beside augmentation."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, masks, ids = super().on_after_batch_transfer(batch, dataloader_idx)
        return (images / 0.3, masks, ids) if self.trainer.training else (images, masks, ids)


class Renumbered(Augmenting):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, masks, ids = super().on_after_batch_transfer(batch, dataloader_idx)
        return (images, 2 * masks, ids) if self.trainer.training else (images, masks, ids)


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        (AtBatchStart, lambda: PLAIN(Raw()), r"Sample 'h\d+' is not the same in training"),
        (Scaled, lambda: PLAIN(Halves()), "differ in the same way .* augmentation would not do"),
        (Renumbered, lambda: PLAIN(Halves()), r"the classes \[0, 1\] in .* \[0, 2\] in training"),
        (OnlyInTraining, lambda: PLAIN(Raw()), "Sample 'h0' is not the same in training and in"),
        (OnlyInTrainingAndAugmenting, lambda: PLAIN(Raw()), "Sample 'h0' is not the same in train"),
        (
            CoSegModule,
            lambda: Forgetful(PLAIN(Raw())),
            r"Sample 'h\d+' is not the same in training",
        ),
        (
            CoSegModule,
            lambda: PLAIN(Halves(), collate_fn=mixed),
            "so a collate function or a hook probably mixes",
        ),
    ],
)
def test_a_difference_that_is_no_augmentation_stops_the_run(tmp_path, kind, make, message):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    with pytest.raises(InputError, match=message):
        trainer.fit(peers_of(kind), make())
    assert trainer.current_epoch == 0


def backwards(samples):
    return torch.utils.data.default_collate(samples[::-1])


class Noisy(Halves):
    """Augments its images, not their masks."""

    def __getitem__(self, index):
        image, *rest = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image), *rest


@pytest.mark.parametrize("kind", [Halves, Noisy])
@pytest.mark.parametrize(
    ("ids", "corrected", "message"),
    [(False, False, "known by their places"), (True, True, "are written by place")],
)
def test_a_collate_function_that_changes_the_order_is_refused(
    tmp_path, kind, ids, corrected, message
):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    trainer = trainer_of(tmp_path, callbacks=callbacks[: 1 + corrected])
    with pytest.raises(InputError, match=f"have another order in the batch .* {message}"):
        trainer.fit(peers_of(CoSegModule), PLAIN(kind(ids=ids), collate_fn=backwards))
    assert trainer.global_step == 0


class Crops(Halves):
    """Small random crops, of which the masks are often all alike."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn = drawn

    def __getitem__(self, index):
        image, mask, *_ = super().__getitem__(index)
        alike = int(torch.rand(20)[self.drawn] < 0.5)
        return image + 0.1 * torch.randn_like(image), torch.full_like(mask, alike)


@pytest.mark.parametrize("drawn", [9, 10, 11])  # what is read is drawn alike each time
def test_random_crops_are_not_taken_for_another_order(tmp_path, drawn):
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "scores.csv")])
    trainer.fit(peers_of(CoSegModule), PLAIN(Crops(drawn)))
    assert trainer.global_step


def test_samples_with_ids_are_ranked_in_any_order(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    module = peers_of(CoSegModule)
    loader = PLAIN(Halves(), collate_fn=backwards)
    trainer_of(tmp_path, callbacks=[ranking]).fit(module, loader)
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)


class NormalisingCallback(pl.Callback):
    """Normalises real batches in place, which no copy of a loader sees."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch[0].sub_(90).div_(self.scale)

    def __init__(self, scale):
        self.scale = scale


class WithoutIds(Raw):
    def __getitem__(self, index):
        return super().__getitem__(index)[:2]


@pytest.mark.parametrize("scale", [40, 1])
def test_without_ids_a_difference_is_seen_in_the_images_as_a_whole(tmp_path, scale):
    callbacks = [NormalisingCallback(scale), CorruptionRanking(tmp_path / "scores.csv")]
    trainer = trainer_of(tmp_path, callbacks=callbacks)
    with pytest.raises(InputError, match="Images are not the same in training and in the ranking"):
        trainer.fit(peers_of(CoSegModule, selection="relative"), PLAIN(WithoutIds()))
    assert trainer.current_epoch == 0


def test_without_ids_augmentation_is_let_through(tmp_path):
    class Own(Augmenting):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            batch = super().on_after_batch_transfer(batch, dataloader_idx)
            return [(batch[0] - 90) / 40, *batch[1:]]

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    trainer.fit(peers_of(Own, selection="relative"), PLAIN(WithoutIds()))
    assert len(ranking.ranking.ids) == 12


class Mixing(CoSegModule):
    """Mixes the samples of a batch in training alone, as the guard's message advises."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            batch = [*batch]
            batch[0][..., :4], batch[1][..., :4] = (part[..., :4].roll(1, 0) for part in batch[:2])
        return batch


def test_mixing_in_training_alone_is_let_through(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    module = peers_of(Mixing)
    trainer_of(tmp_path, callbacks=[ranking]).fit(module, PLAIN(Halves()))
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)


def test_statistics_that_the_module_takes_as_training_starts(tmp_path):
    class Own(CoSegModule):
        def on_train_start(self):
            self.mean = 90.0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [(batch[0] - self.mean) / 40, *batch[1:]]

    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    module = peers_of(Own)
    callbacks = [ranking, LabelCorrection(tmp_path / "labels")]
    trainer_of(tmp_path, callbacks=callbacks).fit(module, PLAIN(Raw()))
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)


class InBothSteps(InStep):
    def validation_step(self, batch, batch_idx):
        super().validation_step(normalised(batch), batch_idx)


def test_steps_that_prepare_images_alike_are_let_through(tmp_path):
    trainer = trainer_of(tmp_path, max_epochs=8)
    trainer.fit(peers_of(InBothSteps), PLAIN(Raw(wrong=0)), DataLoader(Raw(4, wrong=0), 4))
    assert float(trainer.callback_metrics["val/dice_a"]) > 0.9


class StepAugments(CoSegModule):
    """Augments in its step, and needs an optimizer there, which no test has."""

    def training_step(self, batch, batch_idx):
        assert self.optimizers().param_groups
        batch = [batch[0] * (0.8 + 0.4 * torch.rand(())), *batch[1:]]
        return super().training_step(batch, batch_idx)


def test_a_step_that_augments_is_let_through_with_a_word(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    module, trainer = peers_of(StepAugments), trainer_of(tmp_path, callbacks=[ranking])
    with pytest.warns(UserWarning, match="returns different images each time it is read"):
        trainer.fit(module, PLAIN(Halves()), DataLoader(Halves(4), 4))
    assert len(ranking.ranking.ids) == 12
    trainer_of(tmp_path).test(module, DataLoader(Halves(4), 4), verbose=False)


@pytest.mark.parametrize("step", ["validation_step", "test_step"])
def test_a_training_step_that_prepares_images_alone_is_refused(tmp_path, step):
    trainer, module, loader = trainer_of(tmp_path), peers_of(InStep), DataLoader(Raw(4), 4)
    measure = partial(trainer.fit, module, PLAIN(Raw()))
    if step == "test_step":
        measure = partial(trainer.test, module)
    with pytest.raises(InputError, match=f"InStep.training_step changes the images but {step} d"):
        measure(loader)
    assert trainer.global_step == 0


def test_augmentation_in_training_alone_is_let_through(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    module = peers_of(Augmenting)
    trainer_of(tmp_path, callbacks=[ranking]).fit(module, PLAIN(Halves()))
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)


def classes_of(*of_samples):
    return [
        Batch(torch.rand(1, 1, 4, 4), torch.tensor(ids).view(1, 1, -1).expand(1, 4, -1))
        for ids in of_samples
    ]


def test_crops_may_show_a_class_that_the_ranked_part_lacks():
    ranked = classes_of([0, 1], [0, 1], [0, 1], [0, 0])
    check_alike(list(zip(ranked, classes_of([0, 1], [0, 2], [1, 2], [0, 0]), strict=True)), 255)
    renamed = classes_of([0, 2], [0, 2], [2, 2], [0, 0])
    with pytest.raises(InputError, match="which augmentation would not do"):
        check_alike(list(zip(ranked, renamed, strict=True)), 255)


def test_augmentation_may_fill_with_what_is_unlabelled():
    pairs = []
    for image, mask, _ in map(Halves().__getitem__, range(4)):
        filled = mask.clone()
        filled[:2] = 254
        alike = Batch(image[None], mask[None]), Batch(image[None], filled[None])
        pairs.append(alike)
    check_alike(pairs, 254)
    with pytest.raises(InputError, match="which augmentation would not do"):
        check_alike(pairs, 255)


def test_looking_at_a_step_does_not_change_training(tmp_path):
    states, steps = [], []
    for callbacks in ([], [CorruptionRanking(tmp_path / "s.csv"), LabelCorrection(tmp_path / "l")]):
        module = peers_of(InPlace, selection="relative")
        trainer = trainer_of(tmp_path, callbacks=callbacks)
        trainer.fit(module, DataLoader(Raw(), 4))
        states.append(module.state_dict())
        steps.append(module.steps)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert steps == [6, 6]


def test_the_guard_changes_nothing(tmp_path, monkeypatch):
    states = []
    for guards in (True, False):
        if not guards:
            monkeypatch.setattr(
                "coseg_lightning.callbacks.corruption_ranking.is_of_this_package", lambda *_: True
            )
        torch.manual_seed(3)
        module = peers_of(Augmenting)
        ranking = CorruptionRanking(tmp_path / f"{guards}.csv")
        trainer_of(tmp_path, callbacks=[ranking]).fit(module, PLAIN(Halves()))
        states.append(module.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


# Streams, and batches of samples of one size


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (Halves()[index] for index in range(12))


class SizedStream(Stream):
    def __len__(self):
        return 12


def test_the_last_batches_of_workers_are_smaller(tmp_path):
    class Shared(Stream):
        def __iter__(self):
            worker = torch.utils.data.get_worker_info()
            return (Halves()[index] for index in range(worker.id, 10, worker.num_workers))

    view = Subset(Halves(), range(10))
    callbacks = [
        CorruptionRanking(tmp_path / "scores.csv", dataset=view),
        LabelCorrection(tmp_path / "labels"),
    ]
    loader = DataLoader(Shared(), 4, num_workers=2)
    trainer_of(tmp_path, callbacks=callbacks).fit(peers_of(CoSegModule), loader)
    assert len(callbacks[0].ranking.ids) == 10


@pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("stream", [Stream, SizedStream])
@pytest.mark.parametrize("limit", [{"max_epochs": 8}, {"max_epochs": -1, "max_steps": 24}])
def test_a_stream_is_ranked_by_a_view_of_it(tmp_path, stream, limit):
    loader = DataLoader(stream(), 4)
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "none.csv")], **limit)
    with pytest.raises(InputError, match="has no map-style dataset to rank; give one"):
        trainer.fit(peers_of(CoSegModule), loader)
    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", dataset=Halves(), score="mean")
    trainer = trainer_of(tmp_path, callbacks=[ranking], **limit)
    trainer.fit(module, loader)
    assert trainer.global_step == 24
    assert float(trainer.callback_metrics["train/keep_rate"]) == 0.75  # it was ranked in between
    assert scores_of(ranking) == pytest.approx(by_hand(module, Halves()), abs=1e-5)


def test_a_view_of_a_stream_without_its_normalisation_is_refused(tmp_path):
    class Normalised(torch.utils.data.IterableDataset):
        def __iter__(self):
            return (
                (image / 0.3 - 2, *rest) for image, *rest in map(Halves().__getitem__, range(12))
            )

    ranking = CorruptionRanking(tmp_path / "scores.csv", dataset=Halves())
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    with pytest.raises(InputError, match="differ in the same way .* augmentation would not do"):
        trainer.fit(peers_of(CoSegModule), DataLoader(Normalised(), 4))
    assert trainer.current_epoch == 0


class TwoSizes(Halves):
    """Halves, of which every second one is narrower."""

    def __getitem__(self, index):
        image, mask, sample_id = super().__getitem__(index)
        width = 12 if index % 2 else 16
        return image[..., -width:], mask[..., -width:], sample_id


def test_samples_of_several_sizes_are_ranked(tmp_path):
    batches = [[0, 2, 4, 6], [1, 3, 5], [7, 9, 11], [8, 10]]
    module = peers_of(CoSegModule)
    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    correction = LabelCorrection(tmp_path / "labels", confidence=0.0)
    trainer = trainer_of(tmp_path, max_epochs=4, callbacks=[ranking, correction])
    trainer.fit(module, DataLoader(TwoSizes(), batch_sampler=batches))
    assert scores_of(ranking) == pytest.approx(by_hand(module, TwoSizes()), abs=1e-5)
    for sample_id in correction.layer.ids:
        assert correction.layer.read(sample_id).shape == (16, 12 if int(sample_id[1:]) % 2 else 16)


def padded(samples):
    """Batches of several sizes, as `cat_list` of torchvision's references makes them."""
    sizes = [sample[0].shape[-1] for sample in samples]
    images, masks = torch.zeros(len(samples), 1, 16, 16), torch.full((len(samples), 16, 16), 255)
    for n, (width, (image, mask, _)) in enumerate(zip(sizes, samples, strict=True)):
        images[n, ..., :width], masks[n, :, :width] = image, mask
    return images[..., : max(sizes)], masks[..., : max(sizes)], [sample[2] for sample in samples]


def test_padding_is_no_difference_but_its_masks_are_not_corrected(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    loader = PLAIN(TwoSizes(), collate_fn=padded)
    trainer_of(tmp_path, callbacks=[ranking]).fit(peers_of(CoSegModule), loader)
    assert len(ranking.ranking.ids) == 12
    callbacks = [CorruptionRanking(tmp_path / "again.csv"), LabelCorrection(tmp_path / "labels")]
    trainer = trainer_of(tmp_path, callbacks=callbacks)
    with pytest.raises(InputError, match="A mask has 16 x 12 pixels .*, but 16 x 16 pix"):
        trainer.fit(peers_of(CoSegModule), loader)
    assert trainer.global_step == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_leaves_neither_trainer_nor_networks_in_memory(tmp_path, fails):
    class Failing(pl.Callback):
        def on_train_batch_end(self, *_):
            if fails:
                raise RuntimeError("stopped")

    def fit():
        module = peers_of(CoSegModule)
        callbacks = [CorruptionRanking(tmp_path / "s.csv"), LabelCorrection(tmp_path / "l")]
        trainer = trainer_of(tmp_path, callbacks=[*callbacks, Failing()])
        with suppress(RuntimeError):
            trainer.fit(module, PLAIN(Halves()))
        return weakref.ref(module)

    module = fit()
    gc.collect()
    assert module() is None
