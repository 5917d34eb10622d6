"""Ids as other people's datasets and batches have them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from coseg_lightning import (
    CorruptionRanking,
    LabelCorrection,
    LabelStore,
    updated,
)
from coseg_lightning.errors import InputError
from coseg_lightning.modules.batch import read_batch
from support import (
    Gradients,
    Halves,
    accuracies,
    module_of,
    one_batch,
    trained,
    trainer_of,
)


def test_ids_that_the_collate_function_drops(tmp_path):
    def collate(samples):
        return torch.utils.data.default_collate([sample[:2] for sample in samples])

    data = Halves()
    trained(tmp_path, DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate))
    assert LabelStore(tmp_path / "labels").numbered
    assert min(accuracies(updated(data, tmp_path / "labels"))) > 0.9


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
    with pytest.raises(
        InputError, match="ids are a list of 6, the first a tuple; they must be 6 strings"
    ):
        read_batch((images, masks, [("a", 1)] * 6))


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

    with pytest.raises(
        InputError, match="A sample has the id 'p_h0' in the batch, but 'h0' in the dataset"
    ):
        trained(tmp_path, DataLoader(Halves(), batch_size=4, collate_fn=collate))


def test_whole_numbers_as_ids_are_ids(tmp_path):
    class Numbers(Halves):
        def __getitem__(self, index):
            return *super().__getitem__(index)[:2], index

    trained(tmp_path, DataLoader(Numbers(), batch_size=4, shuffle=True))
    part = Subset(Numbers(), [11, 2, 5, 0])
    assert min(accuracies(updated(part, tmp_path / "labels"))) > 0.9


def test_ids_that_are_paths_can_be_ranked(tmp_path):
    class Paths(Halves):
        def __getitem__(self, index):
            return *super().__getitem__(index)[:2], f"a/{index}"

    ranking = CorruptionRanking(tmp_path / "scores.csv")
    trainer_of(tmp_path, max_epochs=1, callbacks=[ranking]).fit(
        module_of(noise_level=0.0), DataLoader(Paths(), batch_size=4)
    )
    assert "a/11" in ranking.ranking.ids


def test_a_view_with_other_ids_than_the_batches_is_refused(tmp_path):
    callbacks = [CorruptionRanking(tmp_path / "scores.csv", dataset=Halves(ids=False))]
    with pytest.raises(
        InputError, match="such as 'h0', but the samples of the ranked dataset have none"
    ):
        trainer_of(tmp_path, max_epochs=4, callbacks=callbacks).fit(
            module_of(), DataLoader(Halves(), batch_size=4)
        )


def test_paths_and_numbers_of_numpy_are_ids(tmp_path):
    class Own(Halves):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def __getitem__(self, index):
            return *super().__getitem__(index)[:2], self.kind(index)

    def collate(samples):
        images, masks = torch.utils.data.default_collate([sample[:2] for sample in samples])
        return images, masks, [sample[2] for sample in samples]

    for name, kind in (("a", np.int64), ("b", lambda index: Path(f"p{index}"))):
        ranking = CorruptionRanking(tmp_path / f"{name}.csv")
        train = DataLoader(Own(kind), 4, collate_fn=collate)
        trainer_of(tmp_path, callbacks=[ranking]).fit(module_of(), train)
        assert ranking.ranking.ids == [str(kind(index)) for index in range(12)]
