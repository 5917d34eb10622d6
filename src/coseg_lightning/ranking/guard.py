"""Decides whether the peers are better than the labels, and the confidence to overrule a label.

There are no clean labels to compare with. But two networks trained on the same data reveal their
accuracy by how much they disagree. This is most reliable on samples that were excluded from
training. There, a prediction's error (one minus its Dice to the truth) was about 2.5 times the
peers' disagreement on phantoms, microscopy and ultrasound alike. If a label differs from the peers
hardly more than the peers from each other, it is probably better than their correction.

If half of the labels are wrong, and all in the same direction, the peers may learn the wrong half.
They then contradict the correct labels confidently and unanimously. But mistakes vary more than the
truth does. In this case the kept labels scatter around the predictions, while the excluded labels
all differ from them in the same way.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import levene

Floats = NDArray[np.float64]

ERROR_PER_DISAGREEMENT = 2.5
# Below this ratio, or above this disagreement (masks with a Dice of about 0.75 to each other), the
# corrections were worse than the labels, or no better.
MIN_LABEL_PEER_RATIO = 2.2
MAX_DISAGREEMENT = 0.1
SIGNIFICANCE = 0.05  # of a difference in spread


def _unknown() -> Floats:
    return np.empty(0)


@dataclass(frozen=True)
class CorrectionGuard:
    """Compares two peers and the labels with each other.

    Excluded labels are those ranked noisy, and kept labels are all others. All distances are Dice
    distances: one minus the Dice of two masks.

    Args:
        excluded_distances: `(n,)` distance of each excluded label to the peers' mean prediction.
        peer_distances: `(n,)` distance between the peers' predictions of the same samples.
        kept_distances: `(m,)` distance of each kept label to the peers' mean prediction.
        excluded_size_bias: `(n,)` how much larger each excluded label is than its prediction, as a
            share of the image; empty if unknown.
        kept_size_bias: `(m,)` the same for the kept labels.
    """

    excluded_distances: Floats
    peer_distances: Floats
    kept_distances: Floats
    excluded_size_bias: Floats = field(default_factory=_unknown)
    kept_size_bias: Floats = field(default_factory=_unknown)

    @property
    def label_peer_ratio(self) -> float | None:
        """Mean distance of the excluded labels to the peers over the peers' disagreement.

        None if no sample is excluded.
        """
        if not len(self.excluded_distances):
            return None
        return float(np.mean(self.excluded_distances)) / max(self.disagreement, 1e-6)

    @property
    def peers_know_better(self) -> bool:
        """Whether the excluded labels are corrected at all."""
        if self.label_peer_ratio is None:
            return True
        return (
            self.label_peer_ratio >= MIN_LABEL_PEER_RATIO
            and self.disagreement <= MAX_DISAGREEMENT
            and not self.wrong_half_suspected
        )

    @property
    def wrong_half_suspected(self) -> bool:
        """Whether the size bias of the kept labels scatters more than that of the excluded ones.

        Decided by the test of Brown and Forsythe (1974), which uses medians and is robust to
        outliers.
        """
        excluded, kept = self.excluded_size_bias, self.kept_size_bias
        if min(len(excluded), len(kept)) < 3 or np.std(excluded) >= np.std(kept):
            return False
        return bool(levene(excluded, kept, center="median").pvalue < SIGNIFICANCE)

    @property
    def confidence(self) -> Floats:
        """`(n,)` the mean probability above which the peers overrule each excluded label.

        It is `1/2 + 1/r`, where r is the sample's own label-to-peer ratio. Both distances in r
        are averaged with their means over all samples. If the peers agree with each other far
        more than with the label, a plain majority is enough. If they agree only slightly more,
        only very confident pixels are changed. Above 1 no pixel is changed. Of numerators from 0
        to 1.3, 1 was the best or close to it. This also held for given noise levels that were
        off by 0.2 (`benchmarks/votes.py`).
        """
        if not len(self.excluded_distances):
            return np.empty(0)
        label_distances = self.excluded_distances + self.excluded_distances.mean()
        margin = self.peer_distances + self.disagreement
        result: Floats = 0.5 + margin / np.maximum(label_distances, 1e-6)
        return result

    @property
    def disagreement(self) -> float:
        """Mean distance between the peers on excluded samples, with a floor from the kept ones.

        Peers may agree without having learnt anything, for example on empty masks. Their error on
        the kept labels reveals this. The disagreement is therefore never lower than that error
        suggests.
        """
        kept_error = float(np.mean(self.kept_distances)) if len(self.kept_distances) else 0.0
        return max(float(np.mean(self.peer_distances)), kept_error / ERROR_PER_DISAGREEMENT)
