"""Habits of other people's projects, which must go on working or be reported."""

import pickle
import random
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, RandomSampler, Subset, random_split

from coseg_lightning import (
    AveragedWeights,
    CorruptionRanking,
    CoSegModule,
    LabelCorrection,
    LabelStore,
    SegmentationModule,
    updated,
)
from coseg_lightning.errors import InputError
from coseg_lightning.labels.masks import mask_digest
from coseg_lightning.labels.store import LabelStoreWriter
from coseg_lightning.labels.updated import as_array
from coseg_lightning.modules.batch import read_batch
from coseg_lightning.modules.loaders import over
from coseg_lightning.runs.wrapped import wrap_datamodule
from support import (
    Gradients,
    Halves,
    OwnTested,
    TinyNetwork,
    flipped,
    loader,
    module_of,
    one_batch,
    run_of,
    trainer_of,
)

RIGHT = Halves(wrong=0)[0][1]


def layer_of(folder, masks, originals=None, **options):
    """Write a layer of the given masks, by name."""
    LabelStore.create(folder)
    writer = LabelStoreWriter(folder)
    for name, mask in masks.items():
        writer.write(name, np.asarray(mask))
    digests = {name: mask_digest(as_array(mask)) for name, mask in (originals or {}).items()}
    facts = {name: {"original": digests[name]} if name in digests else {} for name in masks}
    return writer.finish(facts, **options)


def trained(tmp_path, train, module=None, epochs=8, **options):
    """Peers that know better, and correct every mask that they exclude."""
    torch.manual_seed(0)
    if module is None:
        nets = TinyNetwork(width=8), TinyNetwork(width=8)
        module = CoSegModule(*nets, lr=0.03, noise_level=0.25)
    callbacks = [
        CorruptionRanking(tmp_path / "scores.csv"),
        LabelCorrection(tmp_path / "labels", confidence=0.0),
    ]
    trainer = trainer_of(tmp_path, max_epochs=epochs, callbacks=callbacks, **options)
    trainer.fit(module, train)
    return callbacks


def accuracies(dataset):
    return [
        float((as_array(sample[1]) == RIGHT.numpy()).mean())
        for sample in map(dataset.__getitem__, range(len(dataset)))
    ]


# Which mask goes where -----------------------------------------------------------------------


@pytest.mark.parametrize("ids", [True, False])
def test_a_part_of_a_dataset_gets_its_own_masks(tmp_path, ids):
    part = Subset(Halves(16, ids=ids), [15, 0, 7, 2, 9, 4, 11, 6, 1, 13, 8, 10])
    trained(tmp_path, DataLoader(part, batch_size=4, shuffle=True))
    after = accuracies(updated(part, tmp_path / "labels"))
    assert accuracies(part).count(0.0) == 3
    assert min(after) > 0.9


def test_ids_that_the_collate_function_drops(tmp_path):
    def collate(samples):
        return torch.utils.data.default_collate([sample[:2] for sample in samples])

    data = Halves()
    trained(tmp_path, DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate))
    assert LabelStore(tmp_path / "labels").numbered
    assert min(accuracies(updated(data, tmp_path / "labels"))) > 0.9


def test_masks_that_are_not_those_corrected_are_refused(tmp_path):
    data = Halves()
    layer = layer_of(tmp_path / "labels", {"h0": RIGHT}, {"h0": data[0][1]})
    assert torch.equal(updated(data, layer)[0][1], RIGHT)
    with pytest.raises(InputError, match="sample h0 is not the one that was corrected"):
        updated(Halves(wrong=0), layer)[0]


def test_samples_that_nobody_understands_are_refused(tmp_path):
    class Named(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return {"img": image, "seg": mask, "name": sample_id}

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    with pytest.raises(InputError, match=r"A sample of the dataset is \['img', 'name', 'seg'\]"):
        updated(Named(), layer)[0]


def test_a_corrected_mask_has_the_type_of_the_given_one(tmp_path):
    from torchvision import tv_tensors

    class As(Halves):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return image, self.kind(mask), sample_id

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT})
    palette = [0, 0, 0, 255, 0, 0]

    def paletted(mask):
        picture = Image.fromarray(mask.numpy().astype(np.uint8))
        picture.putpalette(palette)
        return picture

    kinds = [
        tv_tensors.Mask,
        lambda m: m.numpy().astype(np.uint8),
        paletted,
        lambda m: m[None].float(),
    ]
    for kind in kinds:
        original, corrected = As(kind)[0][1], updated(As(kind), layer)[0][1]
        assert type(corrected) is type(original)
        np.testing.assert_array_equal(as_array(corrected), RIGHT.numpy())
        if isinstance(original, Image.Image):
            assert corrected.mode == original.mode == "P"
            assert corrected.getpalette()[:6] == palette
        else:
            assert corrected.dtype == original.dtype
            assert corrected.shape == original.shape


# Augmentation --------------------------------------------------------------------------------


def test_a_collate_function_that_augments_is_found(tmp_path):
    def collate(samples):
        images, masks, ids = torch.utils.data.default_collate(samples)
        return (
            (images.flip(-1), masks.flip(-1), ids)
            if random.random() < 0.3
            else (images, masks, ids)
        )

    random.seed(0)
    with pytest.raises(InputError, match="augment behind the dataset"):
        trained(tmp_path, DataLoader(Halves(), batch_size=4, collate_fn=collate))


@pytest.mark.slow
def test_a_datamodule_that_augments_on_the_device_while_training(tmp_path):
    class Flipping(OwnTested):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training and torch.rand(()) < 0.5:
                batch = [batch[0].flip(-1), batch[1].flip(-1), *batch[2:]]
            return batch

    run_of(tmp_path, Flipping(), confidence=0.0)
    corrected = updated(Halves(), tmp_path / "run" / "labels")
    # No mask is mirrored.
    assert sum(accuracy in (0.0, 1.0) for accuracy in accuracies(corrected)) >= 9


def test_a_dataset_that_augments_behind_plain_is_not_corrected_by_mistake(tmp_path):
    class Augmenting(Halves):
        def __getitem__(self, index):
            image, mask, sample_id = super().__getitem__(index)
            return *flipped(image, mask), sample_id

    layer = layer_of(tmp_path / "labels", {"h0": RIGHT}, {"h0": Halves()[0][1]})
    dataset = updated(Augmenting(), layer)
    with pytest.raises(InputError, match="without augmentation"):
        [dataset[0] for _ in range(20)]


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


# Datamodules ---------------------------------------------------------------------------------


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


def test_a_sampler_that_draws_with_replacement_is_kept():
    data = Halves()
    original = DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, num_samples=64))
    assert len(over(original, Halves(wrong=0))) == 16


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


# Hooks of a subclass, and trainers used again ------------------------------------------------


class OwnHooks(CoSegModule):
    """Overrides hooks without super(), since Lightning's own are empty."""

    def setup(self, stage):
        pass

    def on_before_optimizer_step(self, optimizer):
        pass

    def on_train_epoch_end(self):
        pass


def test_a_subclass_with_hooks_of_its_own_is_clipped_and_scheduled(tmp_path):
    def scheduler(optimizer):
        steps = module.trainer.estimated_stepping_batches
        assert steps == 4
        return StepLR(optimizer, 1, gamma=0.5)

    torch.manual_seed(1)
    module = OwnHooks(TinyNetwork(), TinyNetwork(), noise_level=0.5, scheduler=scheduler)
    watch = Gradients()
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "callbacks": [watch]}
    trainer = trainer_of(tmp_path, **options)
    trainer.fit(module, loader(*[one_batch() for _ in range(4)]))
    assert trainer.global_step == 4
    assert watch.norms[1::2] == pytest.approx(np.full((4, 2), 0.05), rel=1e-3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_hooks_that_would_never_be_called_are_refused(tmp_path):
    class Own(CoSegModule):
        def configure_gradient_clipping(self, optimizer, *values):
            raise AssertionError

    module = Own(TinyNetwork(), TinyNetwork())
    with pytest.raises(InputError, match="configure_gradient_clipping would never be called"):
        trainer_of(tmp_path).fit(module, loader(one_batch()))


def test_a_trainer_whose_fit_failed_still_clips_and_accumulates(tmp_path):
    (tmp_path / "scores.csv").touch()
    watch = Gradients()
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), watch]
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "max_epochs": 1}
    trainer = trainer_of(tmp_path, callbacks=callbacks, **options)
    train = DataLoader(Halves(), batch_size=3)
    with pytest.raises(InputError, match="exists"):
        trainer.fit(module_of(), train)
    (tmp_path / "scores.csv").unlink()
    trainer.fit(module_of(), train)
    assert trainer.global_step == 2
    assert watch.norms[1] == pytest.approx([0.05, 0.05], rel=1e-3)


def test_doubts_of_a_fit_that_failed_are_forgotten(tmp_path):
    class Fails(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                assert pl_module.selection.excluded_ids is not None
                raise RuntimeError("stopped")

    module, train = module_of(), DataLoader(Halves(), batch_size=4)
    ranking = partial(CorruptionRanking, tmp_path / "scores.csv")
    with pytest.raises(RuntimeError, match="stopped"):
        trainer_of(tmp_path, max_epochs=4, callbacks=[ranking(), Fails()]).fit(module, train)
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[ranking()])
    with pytest.warns(UserWarning, match="before the training set was ranked"):
        trainer.fit(module, train)
    assert trainer.callback_metrics["train/keep_rate"] == 1


def test_two_optimizers_are_refused(tmp_path):
    class Two(CoSegModule):
        def configure_optimizers(self):
            return [torch.optim.Adam(net.parameters()) for net in (self.net_a, self.net_b)]

    with pytest.raises(InputError, match="gave 2 optimizers; give one"):
        trainer_of(tmp_path).fit(Two(TinyNetwork(), TinyNetwork()), loader(one_batch()))


# Selection that would not take place ---------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"max_epochs": 1000, "max_steps": 24}, {"max_epochs": 8, "max_steps": -1}]
)
def test_the_nearer_limit_decides_when_the_set_is_ranked(tmp_path, options):
    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, callbacks=[ranking], **options)
    trainer.fit(module_of(), DataLoader(Halves(), batch_size=4))
    assert trainer.callback_metrics["train/keep_rate"] == 0.5


def test_training_that_ends_before_the_first_ranking_warns(tmp_path):
    stop = EarlyStopping("loss", patience=0, min_delta=9.0)
    callbacks = [CorruptionRanking(tmp_path / "scores.csv"), stop]
    with pytest.warns(UserWarning, match="the peers learnt from all samples alike"):
        trainer_of(tmp_path, max_epochs=20, callbacks=callbacks).fit(
            module_of(), DataLoader(Halves(), batch_size=4)
        )


def test_a_view_with_other_ids_than_the_batches_is_refused(tmp_path):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv", dataset=Halves(ids=False))]
    with pytest.raises(InputError, match="The batch holds 'h0', but '0' and others were ranked"):
        trainer_of(tmp_path, max_epochs=4, callbacks=callbacks).fit(
            module_of(), DataLoader(Halves(), batch_size=4)
        )


def test_a_finished_checkpoint_says_that_nothing_is_ranked(tmp_path):
    train = DataLoader(Halves(), batch_size=4)
    trainer = trainer_of(tmp_path, max_epochs=1)
    trainer.fit(module_of(), train)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    callbacks = [CorruptionRanking(tmp_path / "scores.csv")]
    with pytest.warns(UserWarning, match="nothing was ranked"):
        trainer_of(tmp_path, max_epochs=1, callbacks=callbacks).fit(
            module_of(), train, ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


# Networks and batches ------------------------------------------------------------------------


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(dim=1)])
def test_networks_that_give_probabilities_are_noticed(tmp_path, end):
    def net():
        return nn.Sequential(TinyNetwork(), end)

    for module in (CoSegModule(net(), net()), SegmentationModule(net())):
        with pytest.warns(UserWarning, match="must give logits"):
            trainer_of(tmp_path, max_epochs=1).fit(module, loader(one_batch()))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_averaged_weights_in_other_precisions(tmp_path, precision):
    trainer = trainer_of(tmp_path, precision=precision, callbacks=[AveragedWeights()])
    trainer.fit(module_of(), loader(*[one_batch() for _ in range(2)]))
    assert torch.isfinite(trainer.callback_metrics["train/loss_a"])


def test_ids_that_cannot_be_file_names_are_found_before_training(tmp_path):
    class Slashes(Halves):
        def __getitem__(self, index):
            image, mask, _ = super().__getitem__(index)
            return image, mask, f"a/{index}"

    steps = Gradients()
    callbacks = [
        CorruptionRanking(tmp_path / "scores.csv"),
        LabelCorrection(tmp_path / "labels"),
        steps,
    ]
    with pytest.raises(InputError, match="'a/0' cannot be a file name"):
        trainer_of(tmp_path, callbacks=[*callbacks, steps]).fit(
            module_of(), DataLoader(Slashes(), 4)
        )
    assert not steps.norms


def test_what_else_a_batch_holds():
    images, masks = one_batch()
    assert read_batch((images, masks, {"path": ["a"] * 6})).ids is None
    assert read_batch((images, masks, {"id": list("abcdef")})).ids == list("abcdef")
    with pytest.raises(InputError, match=r"ids are \(6, 16, 16\); they must be 6 strings"):
        read_batch((images, masks, torch.ones(6, 16, 16)))
    with pytest.raises(InputError, match="ids are list; they must be 6 strings"):
        read_batch((images, masks, [("a", 1)] * 6))


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
    with pytest.raises(InputError, match=r"no \(N, C, H, W\) tensor"):
        trainer_of(tmp_path).predict(module, loader({"picture": images}))


class Meta(Halves):
    """Its samples end with a dictionary of everything that is known about them."""

    def __getitem__(self, index):
        image, mask, sample_id = super().__getitem__(index)
        return image, mask, {"id": sample_id, "path": f"{sample_id}.png"}


def test_an_id_within_what_is_known_of_a_sample(tmp_path):
    trained(tmp_path, DataLoader(Meta(), batch_size=4, shuffle=True))
    assert min(accuracies(updated(Meta(), tmp_path / "labels"))) > 0.9


def test_ids_that_only_the_collate_function_gives_are_refused_before_training(tmp_path):
    def collate(samples):
        images, masks, ids = torch.utils.data.default_collate(samples)
        return images, masks, [f"p_{sample_id}" for sample_id in ids]

    with pytest.raises(InputError, match="The batch calls a sample 'p_h0', the dataset 'h0'"):
        trained(tmp_path, DataLoader(Halves(), batch_size=4, collate_fn=collate))


def test_whole_numbers_as_ids_are_ids(tmp_path):
    class Numbers(Halves):
        def __getitem__(self, index):
            return *super().__getitem__(index)[:2], index

    trained(tmp_path, DataLoader(Numbers(), batch_size=4, shuffle=True))
    part = Subset(Numbers(), [11, 2, 5, 0])
    assert min(accuracies(updated(part, tmp_path / "labels"))) > 0.9


def test_attributes_of_a_dataset_mean_nothing_here(tmp_path):
    class Attributes(Halves):
        truth, replaced, plain = torch.ones(3), True, False

        def mask(self, index):
            return np.full((64, 64), 255, np.uint8)

    trained(tmp_path, DataLoader(Attributes(), batch_size=4, shuffle=True))
    assert min(accuracies(updated(Attributes(), tmp_path / "labels"))) > 0.9


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


def test_a_trainer_of_peers_may_train_another_module_afterwards(tmp_path):
    def scheduler(optimizer):
        return StepLR(optimizer, 1, gamma=0.5)

    trainer = trainer_of(tmp_path, max_epochs=2)
    train = loader(one_batch())
    trainer.fit(module_of(scheduler=scheduler), train)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(SegmentationModule(TinyNetwork(), scheduler=scheduler, lr=1.0), train)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25)


def test_one_network_is_not_spoilt_by_an_image_that_holds_nan(tmp_path):
    images, masks = one_batch()
    images[0, 0, 3, 3] = float("nan")
    module = SegmentationModule(TinyNetwork())
    with pytest.warns(UserWarning, match="gradient of the network is not a number"):
        trainer_of(tmp_path).fit(module, loader((images, masks), one_batch()))
    assert module.optimization.skipped == [2]
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_ids_that_are_paths_can_be_ranked(tmp_path):
    class Paths(Halves):
        def __getitem__(self, index):
            return *super().__getitem__(index)[:2], f"a/{index}"

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer_of(tmp_path, max_epochs=1, callbacks=[ranking]).fit(
        module_of(noise_level=0.0), DataLoader(Paths(), batch_size=4)
    )
    assert "a/11" in ranking.ranking.ids
