"""Loaders and batches as other people have them."""

import time
from collections import namedtuple
from contextlib import nullcontext

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, Subset, default_collate

from coseg_lightning import (
    CorruptionRanking,
    LabelCorrection,
    SegmentationModule,
)
from coseg_lightning.errors import InputError
from coseg_lightning.modules.batch import images_of, read_batch
from coseg_lightning.modules.loaders import over
from support import (
    Halves,
    TinyNetwork,
    loader,
    module_of,
    one_batch,
    trained,
    trainer_of,
)


class Lazy(Halves):
    """Opens a file at its first sample, as datasets on archives do."""

    def __init__(self, path):
        super().__init__()
        self.path, self.file = path, None

    def __getitem__(self, index):
        if self.file is None:
            assert torch.utils.data.get_worker_info() is not None, "opened in the main process"
            self.file = self.path.open("rb")
        return super().__getitem__(index)


def test_files_are_opened_by_workers_alone(tmp_path):
    (tmp_path / "archive").write_text("x")
    train = DataLoader(Lazy(tmp_path / "archive"), batch_size=4, num_workers=1)
    trained(tmp_path, train, epochs=1)


def test_a_sampler_that_draws_with_replacement_is_kept():
    data = Halves()
    original = DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=64))
    assert len(over(original, Halves(wrong=0))) == 16


@pytest.mark.parametrize("form", ["tensor", "list", "named", "dict"])
def test_predicting_needs_images_alone(tmp_path, form):
    images, _ = one_batch()
    batch = {
        "tensor": images,
        "list": [images],
        "named": (images, list("abcdef")),
        "dict": {"image": images, "id": list("abcdef")},
    }[form]
    for module in (module_of(), SegmentationModule(TinyNetwork())):
        (predictions,) = trainer_of(tmp_path).predict(module, loader(batch))
        assert predictions.shape == (6, 2, 16, 16)
    with pytest.raises(InputError, match=r"without an \(N, C, H, W\) tensor"):
        trainer_of(tmp_path).predict(module, loader({"picture": images}))


def four(wrong):
    return DataLoader(Halves(4, wrong=wrong), batch_size=4)


@pytest.mark.parametrize("kind", ["peers", "network"])
def test_several_loaders_are_measured_each_by_itself(tmp_path, kind):
    torch.manual_seed(1)
    module = module_of(lr=0.03) if kind == "peers" else SegmentationModule(TinyNetwork(), lr=0.03)
    name = "dice_a" if kind == "peers" else "dice"
    trainer = trainer_of(tmp_path, max_epochs=8)
    trainer.fit(module, DataLoader(Halves(wrong=0), 4), [four(0), four(4)])
    metrics = trainer.callback_metrics
    alone = []
    for wrong in (0, 4):
        (figures,) = trainer_of(tmp_path).test(module, four(wrong), verbose=False)
        alone.append(figures[f"test/{name}"])
    assert alone[0] > 0.9 > 0.5 > alone[1]
    found = [float(metrics[f"val/{name}/dataloader_idx_{n}"]) for n in range(2)]
    assert found == pytest.approx(alone)
    assert float(metrics[f"val/{name}"]) == found[0]
    figures, _ = trainer_of(tmp_path).test(module, [four(4), four(0)], verbose=False)
    of_each = [figures[f"test/{name}/dataloader_idx_{n}"] for n in range(2)]
    assert of_each == pytest.approx(alone[::-1])
    assert figures[f"test/{name}"] == of_each[0]
    predictions = trainer_of(tmp_path).predict(module, [four(0), four(4)])
    assert [len(batches) for batches in predictions] == [1, 1]


def test_a_loader_of_whole_batches_is_named(tmp_path):
    class Batches(Halves):
        def __getitem__(self, index):
            return torch.utils.data.default_collate([Halves()[n] for n in range(4)])

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    with pytest.raises(
        InputError, match="has batch_size=None, so its dataset returns whole batches"
    ):
        trainer_of(tmp_path, callbacks=[ranking]).fit(
            module_of(), DataLoader(Batches(), batch_size=None)
        )


def test_a_dataset_that_is_not_read_by_whole_numbers_is_named(tmp_path):
    class Geographic(Halves):
        def __getitem__(self, box):
            return super().__getitem__(box.start)

    class Boxes(torch.utils.data.Sampler):
        def __iter__(self):
            return (slice(n, n + 1) for n in range(12))

        def __len__(self):
            return 12

    train = DataLoader(Geographic(), 4, sampler=Boxes())
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    with pytest.raises(InputError, match=r"A sample of the Geographic could not be read as datas"):
        trainer_of(tmp_path, callbacks=[ranking]).fit(module_of(), train)


def test_workers_that_give_batches_out_of_order(tmp_path):
    class Slow(Halves):
        def __getitem__(self, index):
            time.sleep(0.1 * (index < 4))
            return super().__getitem__(index)

    ranking = CorruptionRanking(tmp_path / "scores.csv", score="mean")
    module = module_of(selection="relative")
    train = DataLoader(Slow(ids=False), 4, num_workers=2, in_order=False)
    trainer_of(tmp_path, max_epochs=1, callbacks=[ranking]).fit(module, train)
    module.eval()
    for index in range(12):
        image, mask = Halves(ids=False)[index]
        expected = torch.nn.functional.cross_entropy(module.net_a(image[None]), mask[None])
        assert ranking.ranking.score_a[index] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("drops", [False, True])
def test_a_short_batch_that_workers_give_early_is_no_mistake(tmp_path, drops):
    class Slow(Halves):
        def __getitem__(self, index):
            time.sleep(0.5 * (index == 7))  # of the second batch
            return super().__getitem__(index)

    def collate(samples):  # leaves out one of a full batch
        return default_collate(samples[: 3 if drops else 4])

    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), LabelCorrection(tmp_path / "labels")]
    train = DataLoader(Slow(10), 4, num_workers=2, in_order=False, collate_fn=collate)
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=callbacks)
    with (
        pytest.raises(InputError, match="4 samples were read, but the batch holds 3")
        if drops
        else nullcontext()
    ):
        trainer.fit(module_of(), train)


def test_a_sampler_that_draws_twice_as_many_is_no_mistake(tmp_path):
    data = Halves()
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    train = DataLoader(data, 4, sampler=RandomSampler(data, num_samples=24))
    trainer_of(tmp_path, callbacks=[ranking]).fit(module_of(), train)
    assert len(ranking.ranking.ids) == 12


def test_a_part_of_the_set_that_overfits_is_told(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking], overfit_batches=1)
    with pytest.warns(UserWarning, match="overfit_batches=1 trains on a few batches, but the whol"):
        trainer.fit(module_of(), DataLoader(Halves(), 4))


class Growing(Sampler):
    """Draws more samples in later epochs, as a curriculum does."""

    def __init__(self, told):
        self.told, self.level = told, 0

    def set_epoch(self, epoch):
        if self.told:
            self.level = epoch

    def __len__(self):
        return 12

    def __iter__(self):
        return iter([n % (6 + 2 * min(self.level, 3)) for n in range(12)])


def test_a_sampler_that_is_told_the_epoch_is_ranked_with_all_it_will_draw(tmp_path):
    train = DataLoader(Halves(), batch_size=4, sampler=Growing(told=True))
    ranking, _ = trained(tmp_path, train, epochs=8)
    assert len(ranking.ranking.ids) == 12


def test_samples_that_are_trained_on_and_not_ranked_are_told(tmp_path):
    class Later(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            sampler.level = trainer.current_epoch

    sampler = Growing(told=False)
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), Later()]
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=callbacks)
    message = r"2 samples, such as h6, were trained on but are not among the 6 that are ranked"
    with pytest.raises(InputError, match=message):
        trainer.fit(module_of(), DataLoader(Halves(), batch_size=4, sampler=sampler))
    assert trainer.current_epoch == 1  # not only as they are ranked, after half of the epochs


def test_a_view_without_some_samples_is_refused_in_the_first_epoch(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv", dataset=Subset(Halves(), range(8)))
    trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking])
    message = r"4 samples, such as h10, were trained on but are not among the 8 of CorruptionRank"
    with pytest.raises(InputError, match=message):
        trainer.fit(module_of(), DataLoader(Halves(), batch_size=4))
    assert trainer.current_epoch == 0


class Redrawn(pl.LightningDataModule):
    """Draws other samples for each of its loaders."""

    def __init__(self):
        super().__init__()
        self.loaders = 0

    def train_dataloader(self):
        self.loaders += 1
        return DataLoader(Subset(Halves(), [(self.loaders + i) % 12 for i in range(8)]), 4)


class Sampled(pl.LightningDataModule):
    """Draws other samples in each epoch, by its sampler."""

    def train_dataloader(self):
        dataset = Halves()
        return DataLoader(dataset, 4, sampler=RandomSampler(dataset, num_samples=8))


def test_a_set_that_is_loaded_anew_is_refused_in_the_second_epoch(tmp_path):
    def fit(data, name, **options):
        ranking = CorruptionRanking(tmp_path / f"{name}.csv", **options)
        reloads = {"reload_dataloaders_every_n_epochs": 1}
        trainer = trainer_of(tmp_path, max_epochs=8, callbacks=[ranking], **reloads)
        try:
            trainer.fit(module_of(), datamodule=data)
        finally:
            assert trainer.current_epoch == (8 if ranking.ranking else 1)
        return ranking.ranking

    with pytest.raises(InputError, match=r"1 samples.*let train_dataloader always give all of th"):
        fit(Redrawn(), "redrawn")
    assert len(fit(Redrawn(), "given", dataset=Halves()).ids) == 12  # the two remedies
    assert len(fit(Sampled(), "sampled").ids) == 12


def test_samples_of_an_earlier_fit_are_not_missed(tmp_path):
    module = module_of()
    for fold, part in enumerate((range(8), range(4, 12))):
        ranking = CorruptionRanking(tmp_path / f"scores{fold}.csv")
        trainer = trainer_of(tmp_path, max_epochs=4, callbacks=[ranking])
        trainer.fit(module, DataLoader(Subset(Halves(), part), batch_size=4))
        assert len(ranking.ranking.ids) == 8


def test_a_batch_of_two_masks_is_refused():
    images, masks = one_batch()
    with pytest.raises(InputError, match="two masks, mask and label"):
        read_batch({"image": images, "mask": masks, "label": masks + 0})
    assert read_batch({"image": images, "mask": masks, "label": torch.ones(6)}).masks.shape[0] == 6


def test_named_fields_are_read_by_name():
    images, masks = one_batch()
    sample = namedtuple("sample", ("mask", "id", "image"))(masks, [*"abcdef"], images)
    found = read_batch(sample)
    assert found.images is images
    assert torch.equal(found.masks, masks)
    assert images_of(sample) is images
    by_place = namedtuple("sample", ("picture", "label"))(images, masks)
    assert read_batch(by_place).images is images
    for names in (("image", "mask", "name"), ("image", "target", "id")):  # some names are foreign
        found = read_batch(namedtuple("sample", names)(images, masks, [*"abcdef"]))
        assert (found.images is images, found.ids) == (True, [*"abcdef"])
    with_meta = namedtuple("sample", ("image", "mask", "meta"))
    assert read_batch(with_meta(images, masks, {"id": [*"abcdef"]})).ids == [*"abcdef"]


class Even(RandomSampler):
    def __iter__(self):
        return iter([index for index in super().__iter__() if index % 2 == 0])


def test_a_subclass_of_a_known_sampler_may_draw_otherwise(tmp_path):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    data = Halves()
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    trainer.fit(module_of(0.25), DataLoader(data, 3, sampler=Even(data)))
    assert sorted(ranking.ranking.ids) == sorted(f"h{n}" for n in range(0, 12, 2))


class Twice(RandomSampler):
    def __iter__(self):
        return iter([index for index in super().__iter__() for _ in range(2)])


def test_a_subclass_of_a_known_sampler_may_draw_twice(tmp_path):
    ranking, data = CorruptionRanking(tmp_path / "scores.csv"), Halves()
    trainer = trainer_of(tmp_path, callbacks=[ranking])
    trainer.fit(module_of(0.25), DataLoader(data, 4, sampler=Twice(data)))
    assert len(ranking.ranking.ids) == 12


@pytest.mark.parametrize(
    ("options", "unseen"), [({"limit_train_batches": 2}, 4), ({}, 0), ({"drop_last": True}, 2)]
)
def test_samples_that_were_never_trained_on_are_told(tmp_path, options, unseen, recwarn):
    options = dict(options)
    drop_last = options.pop("drop_last", False)
    data = Halves(10 if drop_last else 12)
    trainer = trainer_of(tmp_path, callbacks=[CorruptionRanking(tmp_path / "s.csv")], **options)
    trainer.fit(module_of(0.25), DataLoader(data, 4, drop_last=drop_last))
    told = [str(one.message) for one in recwarn if "were not trained on" in str(one.message)]
    assert [text.split(" of the ")[0] for text in told] == ([str(unseen)] if unseen else [])


def test_masks_that_are_not_of_the_images_are_refused():
    images, masks = torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long)
    for fewer in (masks[:2], masks[:1]):
        with pytest.raises(InputError, match="with the images' number, height and width"):
            read_batch((images, fewer))


def test_arrays_and_missing_masks_are_told_as_such():
    images, masks = torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long)
    for mask, kind in ((masks.numpy(), "ndarray"), (masks.tolist(), "list"), (None, "NoneType")):
        with pytest.raises(InputError, match=f"The batch's masks are a {kind}; they must be"):
            read_batch({"image": images, "mask": mask})
    with pytest.raises(InputError, match=r"The batch is tuple of 2 \(Tensor, ndarray\)"):
        read_batch((images, masks.numpy()))
    shares = np.full((4, 2, 8, 8), 0.5)
    with pytest.raises(InputError, match="The batch's soft_mask is a ndarray"):
        read_batch({"image": images, "mask": masks, "soft_mask": shares})
