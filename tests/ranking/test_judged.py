"""The noise level from a few masks that a person has judged."""

import numpy as np
import pytest

from coseg_lightning.errors import InputError
from coseg_lightning.ranking.judged import masks_to_judge, noise_level_from_judged, read_judged

IDS = [f"m{n:03}" for n in np.random.default_rng(0).permutation(137)]


def judged(ids, bad):
    return noise_level_from_judged(ids, {i: i in bad for i in masks_to_judge(ids)})


def test_one_mask_of_each_tenth_is_drawn():
    chosen = masks_to_judge(IDS)
    tenths = sorted(IDS.index(i) * 10 // 137 for i in chosen)
    assert len(chosen) == 10
    assert chosen == sorted(chosen)
    assert all(abs(tenth - n) <= 1 for n, tenth in enumerate(tenths))
    assert masks_to_judge(IDS[:4]) == sorted(IDS[:4])


@pytest.mark.parametrize("level", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("skill", [0, 1, 3])
def test_the_interval_holds_the_share_whatever_the_ranking_is_worth(level, skill):
    rng = np.random.default_rng(1)
    held = []
    for trial in range(300):
        bad = rng.random(137) < level
        scores = skill * bad + rng.normal(size=137)
        ids = [f"{trial}-{n}" for n in np.argsort(-scores)]
        names = {f"{trial}-{n}" for n in np.flatnonzero(bad)}
        low, high = judged(ids, names).interval
        held.append(low <= bad.mean() <= high)
    assert np.mean(held) > 0.9


def test_all_or_none_are_bad():
    none, every = judged(IDS, set()), judged(IDS, set(IDS))
    assert none.noise_level == none.interval[0] == 0
    assert 0.2 < none.interval[1] < 0.3
    assert every.noise_level == every.interval[1] == 1
    assert str(none) == (
        f"0.00 (90 % interval 0.00 to {none.interval[1]:.2f}), since 0 of 10 masks that are spread "
        "over the ranking are bad."
    )
    few = judged(IDS[:4], {IDS[0]})
    assert few.interval == (0.25, 0.25)


def test_masks_that_are_not_spread_are_refused():
    with pytest.raises(InputError, match="not spread over the ranking"):
        noise_level_from_judged(IDS, dict.fromkeys(IDS[:10], True))
    with pytest.raises(InputError, match="x is judged, but is not in the ranking"):
        noise_level_from_judged(IDS, {"x": True})
    with pytest.raises(InputError, match="No mask is judged"):
        noise_level_from_judged(IDS, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,decision\na,good\nb,\n", "says '' of b; write good or bad"),
        ("id,decision\na,maybe\n", "says 'maybe' of a"),
        ("id,decision\na,good\na,bad\n", "names a twice"),
        ("id,verdict\na,good\n", "has no column decision"),
    ],
)
def test_a_review_that_cannot_be_read_is_refused(tmp_path, text, message):
    (tmp_path / "review.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_judged(tmp_path / "review.csv")
