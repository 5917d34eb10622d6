"""Whether the peers know better than the labels."""

import numpy as np
import pytest

from coseg_lightning.ranking.guard import CorrectionGuard


def trust(labels, peers, against_kept=(0.02, 0.02)):
    return CorrectionGuard(
        np.array(labels, float), np.array(peers, float), np.array(against_kept, float)
    )


def test_the_contradiction_is_the_ratio_of_means():
    guard = trust([0.2, 0.4], [0.05, 0.05])
    assert guard.label_peer_ratio == pytest.approx(6)
    assert guard.disagreement == pytest.approx(0.05)
    assert guard.peers_know_better


@pytest.mark.parametrize(
    ("labels", "peers", "against_kept", "better"),
    [
        ([0.14], [0.01], [0.03], True),  # lungs: the peers are far better than the labels
        ([0.23], [0.06], [0.10], True),  # cells with the worst of seven outlines
        ([0.12], [0.06], [0.07], False),  # the labels are hardly worse than the peers
        ([0.40], [0.15], [0.15], False),  # nerves and vessels: the peers know too little
        ([0.90], [0.00], [0.90], False),  # two networks that agree on predicting nothing
    ],
)
def test_who_is_believed(labels, peers, against_kept, better):
    assert trust(labels, peers, against_kept).peers_know_better == better


def test_the_confidence_falls_with_the_contradiction():
    confidence = trust([0.1, 0.2, 0.8], [0.05, 0.05, 0.05]).confidence
    assert (np.diff(confidence) < 0).all()
    assert confidence.min() > 0.5
    # By hand: r = (0.8 + 1.1 / 3) / (0.05 + 0.05).
    assert confidence[2] == pytest.approx(0.5 + 0.1 / (0.8 + 1.1 / 3))


def test_labels_that_agree_are_not_overruled():
    assert (trust([0.0], [0.1]).confidence > 1).all()


def test_nothing_in_doubt():
    guard = trust([], [])
    assert guard.label_peer_ratio is None
    assert guard.peers_know_better
    assert len(guard.confidence) == 0


def spread(excluded_biases, kept_biases):
    return CorrectionGuard(
        np.full(len(excluded_biases), 0.3),
        np.full(len(excluded_biases), 0.02),
        np.full(len(kept_biases), 0.05),
        excluded_size_bias=np.array(excluded_biases, float),
        kept_size_bias=np.array(kept_biases, float),
    )


def test_peers_that_learnt_the_wrong_half_are_not_believed():
    rng = np.random.default_rng(0)
    truth, mistakes = rng.normal(-0.17, 0.008, 40), rng.normal(-0.03, 0.013, 40)
    wrong, right = spread(truth, mistakes), spread(mistakes, truth)
    # The peers are equally sure of both.
    assert wrong.label_peer_ratio == right.label_peer_ratio > 10
    assert wrong.wrong_half_suspected
    assert not wrong.peers_know_better
    assert not right.wrong_half_suspected
    assert right.peers_know_better


def test_spreads_that_may_be_equal_or_of_few_labels_say_nothing():
    biases = np.random.default_rng(0).normal(0, 0.01, 40)
    assert not spread(0.9 * biases, biases).wrong_half_suspected
    assert not spread([0.1], biases).wrong_half_suspected
    assert not spread([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]).wrong_half_suspected
