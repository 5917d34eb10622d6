"""Whether the peers know better than the labels."""

import numpy as np
import pytest

from coseg_lightning.trust import Trust


def trust(labels, peers, kept=(0.02, 0.02)):
    return Trust(np.array(labels, float), np.array(peers, float), np.array(kept, float))


def test_the_contradiction_is_the_ratio_of_means():
    found = trust([0.2, 0.4], [0.05, 0.05])
    assert found.contradiction == pytest.approx(6)
    assert found.disagreement == pytest.approx(0.05)
    assert found.peers_know_better


@pytest.mark.parametrize(
    ("labels", "peers", "kept", "better"),
    [
        ([0.14], [0.01], [0.03], True),  # lungs: peers far better than the labels
        ([0.23], [0.06], [0.10], True),  # cells, the worst of seven outlines
        ([0.12], [0.06], [0.07], False),  # labels hardly worse than the peers
        ([0.40], [0.15], [0.15], False),  # nerves and vessels: the peers know too little
        ([0.90], [0.00], [0.90], False),  # two networks that agree on saying nothing
    ],
)
def test_who_is_believed(labels, peers, kept, better):
    assert trust(labels, peers, kept).peers_know_better == better


def test_the_confidence_falls_with_the_contradiction():
    found = trust([0.1, 0.2, 0.8], [0.05, 0.05, 0.05]).confidence
    assert (np.diff(found) < 0).all()
    assert found.min() > 0.5
    # By hand: r = (0.8 + 1.1 / 3) / (0.05 + 0.05).
    assert found[2] == pytest.approx(0.5 + 1.3 * 0.1 / (0.8 + 1.1 / 3))


def test_labels_that_agree_are_not_overruled():
    assert (trust([0.0], [0.1]).confidence > 1).all()


def test_nothing_in_doubt():
    found = trust([], [])
    assert found.contradiction is None
    assert found.peers_know_better
    assert len(found.confidence) == 0
