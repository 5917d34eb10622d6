"""Who drew the masks reaches the ranking: by the data, the callback, and the batches."""

import csv

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from coseg_lightning import CorruptionRanking, CoSegDataModule, NoiseLevelEstimation
from coseg_lightning.callbacks.corruption_ranking import named_annotators
from coseg_lightning.errors import InputError
from coseg_lightning.modules.batch import read_batch
from coseg_lightning.ranking.noise_level import estimate_noise_level
from coseg_lightning.run import run
from support import PHANTOM, SMALL, Squares, composed, module_of, trainer_of

NAMES = {f"s{n:02}": "anna" if n % 2 else "ben" for n in range(12)}


class Looking(CorruptionRanking):
    """Keeps who drew the labels whose scores are computed."""

    def scores(self, evidence, ids, dataset):
        people = evidence.people
        self.seen = {} if people is None else dict(zip(ids, people.of_masks(), strict=True))
        return super().scores(evidence, ids, dataset)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("score", ["joint", "directed"])
@pytest.mark.parametrize("given", ["data", "dataset", "callback", "nothing"])
def test_annotators_reach_the_scores(tmp_path, given, score):
    squares = Squares(12)
    if given == "dataset":
        squares.annotators = NAMES
    data = CoSegDataModule(
        squares,
        image_size=16,
        in_channels=1,
        batch_size=4,
        annotators=NAMES if given == "data" else None,
    )
    of_callback = NAMES if given == "callback" else None
    ranking = Looking(tmp_path / "scores.csv", annotators=of_callback, score=score)
    trainer_of(tmp_path, max_epochs=1, callbacks=[ranking]).fit(module_of(0.25), data)
    assert ranking.seen == ({} if given == "nothing" else NAMES)
    rows = rows_of(tmp_path / "scores.csv")
    assert ("annotator" in rows[0]) == (given != "nothing")
    if given != "nothing":
        assert all(row["annotator"] == NAMES[row["id"]] for row in rows)
        assert all(float(row["own_score"]) == pytest.approx(float(row["score"])) for row in rows)


class Own(torch.utils.data.Dataset):
    """Somebody's own dataset, whose samples say who drew them."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        squares = Squares(12)
        sample = {
            "image": torch.from_numpy(squares.image(index)).float()[None] / 255,
            "mask": torch.from_numpy(squares.mask(index).astype(np.int64)),
            "id": squares.ids[index],
        }
        return sample | {"annotator": NAMES[squares.ids[index]]}


@pytest.mark.parametrize("given", ["data", "callback", "batches"])
def test_annotators_and_kinds_count_in_the_noise_level_of_half_of_training(
    tmp_path, monkeypatch, given
):
    kinds = {sample_id: "new" if n < 6 else "old" for n, sample_id in enumerate(NAMES)}
    own = {"annotators": NAMES, "kinds": kinds}
    of_data, of_callback = (own if given == name else {} for name in ("data", "callback"))
    data = CoSegDataModule(Squares(12), image_size=16, in_channels=1, batch_size=4, **of_data)
    seen = []

    def looking(*peers):
        seen.extend(peers)
        return estimate_noise_level(*peers)

    monkeypatch.setattr("coseg_lightning.modules.noise_level.estimate_noise_level", looking)
    ranking = CorruptionRanking(tmp_path / "scores.csv", **of_callback)
    trainer = trainer_of(tmp_path, max_epochs=2, callbacks=[NoiseLevelEstimation(), ranking])
    trainer.fit(module_of("auto"), DataLoader(Own(), 4) if given == "batches" else data)
    assert len(seen) == 4  # after half of training, and at its end
    for peer in seen:
        assert dict(zip(NAMES, peer.people.of_masks(), strict=True)) == NAMES
        assert (peer.kinds is None) == (given == "batches")


def test_batches_say_who_drew_them(tmp_path):
    ranking = Looking(tmp_path / "scores.csv")
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[ranking])
    trainer.fit(module_of(0.25), DataLoader(Own(), 4, shuffle=True))
    assert ranking.seen == NAMES


class Plain(Own):
    """The same without names, and without ids if these are asked for."""

    def __init__(self, with_ids=True):
        self.with_ids = with_ids

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        left_out = ("annotator",) if self.with_ids else ("annotator", "id")
        return {key: value for key, value in sample.items() if key not in left_out}


@pytest.mark.parametrize("setting", ["annotators", "kinds"])
@pytest.mark.parametrize("data", ["ours", "ids in batches", "no ids"])
def test_ids_of_no_sample_are_refused_early(tmp_path, setting, data):
    wrong = {f"{sample_id}.png": name for sample_id, name in NAMES.items()}
    of = {
        "ours": CoSegDataModule(Squares(12), image_size=16, in_channels=1, batch_size=4),
        "ids in batches": DataLoader(Plain(), 4, shuffle=True),
        "no ids": DataLoader(Plain(with_ids=False), 4, shuffle=True),
    }
    example = "0" if data == "no ids" else "s00"
    message = f"{setting} names 's00.png' and others, but no sample has such an id; give ids such"
    ranking = CorruptionRanking(tmp_path / "scores.csv", **{setting: wrong})
    trainer = trainer_of(tmp_path, max_epochs=6, callbacks=[ranking])
    with pytest.raises(InputError, match=f"{message} as '{example}'"):
        trainer.fit(module_of(0.25), of[data])
    assert trainer.current_epoch == (1 if data == "ids in batches" else 0)


def test_a_person_may_be_a_number(tmp_path):
    numbers = {sample_id: int(name == "anna") for sample_id, name in NAMES.items()}
    ranking = Looking(tmp_path / "scores.csv", annotators=numbers)
    trainer = trainer_of(tmp_path, max_epochs=1, callbacks=[ranking])
    trainer.fit(module_of(0.25), DataLoader(Plain(), 4))
    assert ranking.seen == {sample_id: str(number) for sample_id, number in numbers.items()}


@pytest.mark.parametrize("given", ["annotators.csv", ["anna"] * 12, {0: "anna"}, {"s00": ["a"]}])
def test_what_is_no_mapping_from_ids_is_refused_at_once(tmp_path, given):
    with pytest.raises(InputError, match=r"^annotators (is|has) .*; (give a dict such as|convert)"):
        CorruptionRanking(tmp_path / "scores.csv", annotators=given)
    with pytest.raises(InputError, match=r"^kinds (is|has) .*; (give a dict such as|convert)"):
        CorruptionRanking(tmp_path / "scores.csv", kinds=given)


def test_names_that_do_not_fit_the_batch_are_refused():
    image, mask = torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    batch = {"image": image, "mask": mask, "annotator": "anna"}
    with pytest.raises(InputError, match=r"annotator is 'anna'; it must be 2 names"):
        read_batch(batch)
    assert read_batch(batch | {"annotator": ["anna", None]}).annotators == ["anna", ""]
    of_metadata = (image, mask, {"id": ["a", "b"], "annotator": ["anna", "ben"]})
    assert read_batch(of_metadata).annotators == ["anna", "ben"]
    assert read_batch((image, mask)).annotators is None
    for names in (np.array(["1", "2"]), torch.tensor([[1], [2]]), [torch.tensor(1.0), b"2"]):
        assert read_batch(batch | {"annotator": names}).annotators == ["1", "2"]
    with pytest.raises(InputError, match=r"An annotator is \['a', 'b'\], a list; give one text or"):
        read_batch(batch | {"annotator": [["a", "b"], "c"]})


@pytest.mark.parametrize("value", [2.0, -0.5, float("nan")])
def test_votes_that_are_no_shares_are_refused(value):
    image, mask = torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    shares = torch.full((2, 2, 8, 8), 0.5)
    batch = {"image": image, "mask": mask, "soft_mask": shares}
    assert read_batch(batch).soft_masks is shares
    assert read_batch(batch | {"soft_mask": shares - 0.5 - 1e-6}).soft_masks is not None
    shares[0, 0, 0, 0] = value
    with pytest.raises(InputError, match="it must hold shares of the votes: at least 0, and 1 in"):
        read_batch(batch)


def test_annotators_of_a_dataset_within_others_are_found():
    squares = Squares(12)
    squares.annotators = NAMES
    for dataset in (squares, Subset(squares, [0, 1]), ConcatDataset([squares, Squares(2)])):
        assert named_annotators(dataset) == NAMES
    assert named_annotators(Subset(Squares(2), [0])) is None
    squares.annotators = ["anna"]  # has another meaning
    for dataset in (squares, Subset(squares, [0])):
        assert named_annotators(dataset) is None


@pytest.mark.slow
def test_a_run_reports_on_persons(tmp_path):
    run(composed(*SMALL, *PHANTOM, "noise=crowd", "noise.crowd.count=3", "nol=0.2"), tmp_path / "r")
    rows = rows_of(tmp_path / "r" / "annotators.csv")
    assert sum(int(row["masks"]) for row in rows) == 11
    page = (tmp_path / "r" / "report.html").read_text()
    assert '<h2 id="annotators">Annotators</h2>' in page
    assert (tmp_path / "r" / "figures" / "annotators.svg").is_file()
    assert all(row["annotator"] in page for row in rows)
