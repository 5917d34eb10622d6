"""Whether the peers know better than the labels, and how sure they must be to overrule one.

Nobody has clean labels to ask. But two networks that learnt from the same data tell by their own
disagreement how good they are, most honestly on samples that they dropped from learning: there a
prediction's error, one minus its Dice to the truth, was about 2.5 times that disagreement on
phantoms, microscopy and ultrasound alike. So a label that contradicts the peers little more than
they contradict each other is likely to be better than what they would put in its place.

Where half of the labels err, and all to one side, two peers may learn the wrong half, and
contradict the right one surely and with one voice. But mistakes are more various than the truth:
then the labels that they kept scatter about the predictions, and those in doubt lie beside them all
alike.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import levene

Floats = NDArray[np.float64]

ERROR_PER_DISAGREEMENT = 2.5
# Below this contradiction, or above this disagreement (masks of a Dice of about 0.75), what the
# peers would have written was worse than the labels, or no better.
LEAST_CONTRADICTION = 2.2
MOST_DISAGREEMENT = 0.1
SIGNIFICANCE = 0.05  # of a difference in spread


def _none_known() -> Floats:
    return np.empty(0)


@dataclass(frozen=True)
class CorrectionGuard:
    """What two peers and the labels say of each other.

    Args:
        against_doubted: `(n,)` one minus the Dice of each label in doubt to the peers' mean
            prediction.
        among_peers: `(n,)` one minus the Dice of the peers' predictions of the same samples to
            each other.
        against_kept: `(m,)` as the first, of the labels that are not in doubt.
        size_bias_of_doubted: `(n,)` how much larger each label in doubt is than predicted, as a share
            of the image; if it is known.
        size_bias_of_kept: `(m,)` the same of the labels that are not in doubt.
    """

    against_doubted: Floats
    among_peers: Floats
    against_kept: Floats
    size_bias_of_doubted: Floats = field(default_factory=_none_known)
    size_bias_of_kept: Floats = field(default_factory=_none_known)

    @property
    def label_peer_ratio(self) -> float | None:
        """How many times more the labels in doubt contradict the peers than these each other.

        None where nothing is in doubt.
        """
        if not len(self.against_doubted):
            return None
        return float(np.mean(self.against_doubted)) / max(self.disagreement, 1e-6)

    @property
    def peers_know_better(self) -> bool:
        """Whether the labels in doubt are to be corrected at all."""
        if self.label_peer_ratio is None:
            return True
        enough = self.label_peer_ratio >= LEAST_CONTRADICTION
        return enough and self.disagreement <= MOST_DISAGREEMENT and not self.wrong_half_suspected

    @property
    def wrong_half_suspected(self) -> bool:
        """Whether the kept labels' sizes scatter more about the peers' than those in doubt.

        By the test of Brown and Forsythe (1974), which is about medians and bears outliers.
        """
        doubted, kept = self.size_bias_of_doubted, self.size_bias_of_kept
        if min(len(doubted), len(kept)) < 3 or np.std(doubted) >= np.std(kept):
            return False
        return bool(levene(doubted, kept, center="median").pvalue < SIGNIFICANCE)

    @property
    def confidence(self) -> Floats:
        """`(n,)` the least mean probability at which the peers overrule each label in doubt.

        `1/2 + 1.3/r`, with r the sample's own contradiction, drawn half-way to that of all: where
        the peers are far surer of each other than of the label, their bare vote does; where they
        are hardly surer, only what they are certain of. Above 1 nothing is overruled.
        """
        if not len(self.against_doubted):
            return np.empty(0)
        labels = self.against_doubted + self.against_doubted.mean()
        caution = 1.3 * (self.among_peers + self.disagreement)
        result: Floats = 0.5 + caution / np.maximum(labels, 1e-6)
        return result

    @property
    def disagreement(self) -> float:
        """One minus the Dice of the peers to each other, the mean over what is in doubt.

        Peers that agree without having learnt, on nothing say, betray themselves on the kept
        labels: it is no less than the error there suggests.
        """
        kept = float(np.mean(self.against_kept)) if len(self.against_kept) else 0.0
        return max(float(np.mean(self.among_peers)), kept / ERROR_PER_DISAGREEMENT)
