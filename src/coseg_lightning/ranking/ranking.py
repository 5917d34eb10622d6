"""The ranking of a training set by corruption score, and its file, scores.csv."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from coseg_lightning.files.csv import write_table
from coseg_lightning.ranking.evidence import Evidence
from coseg_lightning.ranking.scores import class_scores, direction

Floats = NDArray[np.float64]


@dataclass
class Ranking:
    """Corruption scores of all training samples, in the dataset's order.

    Args:
        ids: The samples.
        score_a: `(N,)` scores of the first peer, and `score_b` of the second.
        noise_level: Share of the samples taken for noisy: the `round(noise_level * N)` with the
            highest mean score.
        replaced: Ids known to have noisy masks, if it is known.
        label_dice: `(N,)` Dice of each label to the original mask, if it is known.
        class_scores: `(N, K - 1)` score of each class but background, NaN where it is neither in
            the label nor predicted.
        size_bias: `(N,)` how much larger the label's foreground is than the predicted one, as a share
            of the image; negative where it is smaller.
        prediction_dice: `(N,)` soft Dice of each label to the prediction, the mean over classes.
        direction: `(K - 1,)` whether bad labels of a class tend to be too large (1), too small
            (-1), or neither.
        by_class: Whether a sample is taken for noisy because one of its classes is.
        run_id: The run that the ranking belongs to.
        numbered: Whether the samples have no ids of their own, but their place in the dataset.
    """

    ids: Sequence[str]
    score_a: Floats
    score_b: Floats
    noise_level: float
    replaced: frozenset[str] | None = None
    label_dice: Floats | None = None
    class_scores: Floats | None = None
    size_bias: Floats | None = None
    prediction_dice: Floats | None = None
    direction: Floats | None = None
    by_class: bool = False
    run_id: str | None = None
    numbered: bool = False
    changed_pixels: dict[int, int] = field(default_factory=dict)
    corrected_dice: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of_evidence(
        cls,
        ids: Sequence[str],
        peers: tuple[Evidence, Evidence],
        scores: tuple[Floats, Floats],
        noise_level: float,
        *,
        score: str,
        **known: Any,
    ) -> "Ranking":
        """Rank samples by what two peers say of their labels.

        Args:
            ids: The samples.
            peers: What each peer says.
            scores: Each peer's scores, `(N,)`.
            noise_level: See `Ranking`.
            score: The score by which each class is ranked, see `class_scores`.
            known: Further arguments of `Ranking`.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NaN of both peers is NaN
            by_class = np.nanmean([class_scores(peer, score) for peer in peers], axis=0)
        return cls(
            ids,
            *scores,
            noise_level,
            class_scores=by_class,
            size_bias=np.mean([peer.size_bias.sum(axis=1) for peer in peers], axis=0),
            prediction_dice=np.mean([peer.dice.mean(axis=1) for peer in peers], axis=0),
            direction=np.mean([direction(peer) for peer in peers], axis=0),
            **known,
        )

    @property
    def excluded_by_peers(self) -> tuple[frozenset[str], frozenset[str]]:
        """What each peer's own scores take for noisy; at least one sample is kept."""
        count = min(round(self.noise_level * len(self.ids)), len(self.ids) - 1)
        worst_a, worst_b = (
            worst_first(scores, self.ids)[:count] for scores in (self.score_a, self.score_b)
        )
        return frozenset(self.ids[i] for i in worst_a), frozenset(self.ids[i] for i in worst_b)

    @property
    def score(self) -> Floats:
        """`(N,)` mean of both peers' scores."""
        return (self.score_a + self.score_b) / 2

    @property
    def _comparable_score(self) -> Floats:
        """The score with what is not a number above everything else, to be looked at first."""
        return np.nan_to_num(self.score, nan=np.inf)

    @cached_property
    def worst_first(self) -> list[int]:
        """Indices by falling score; equal scores by id, scores that are not a number first."""
        return worst_first(self._comparable_score, self.ids)

    @property
    def noisy(self) -> list[int]:
        """Indices of the samples taken for noisy, worst first."""
        if self.by_class:
            found = self.noisy_classes
            return [i for i in self.worst_first if i in found]
        return self.worst_first[: round(self.noise_level * len(self.ids))]

    @property
    def noisy_classes(self) -> dict[int, list[int]]:
        """By the sample's index, the classes taken for noisy when each is ranked by itself.

        Of the labels that concern a class, the `round(noise_level * N)` with the highest score.
        """
        found: dict[int, list[int]] = {}
        scores = np.empty((len(self.ids), 0)) if self.class_scores is None else self.class_scores
        for k, of_class in enumerate(scores.T, start=1):
            concerned = int((~np.isnan(of_class)).sum())
            worst = worst_first(np.nan_to_num(of_class, nan=-np.inf), self.ids)
            for i in worst[: round(self.noise_level * concerned)]:
                found.setdefault(i, []).append(k)
        return found

    @property
    def bias(self) -> str | None:
        """In which direction bad labels err, in a sentence; None if in none, or not known."""
        names = {1: "too large", -1: "too small"}
        sides = [] if self.direction is None else [round(float(side)) for side in self.direction]
        one = len(sides) == 1
        told = [
            f"{'Bad masks' if one else f'Bad outlines of class {k}'} tend to be {names[side]}"
            for k, side in enumerate(sides, start=1)
            if side
        ]
        return "; ".join(told) + "." if told else None

    @property
    def auroc(self) -> float | None:
        """How well the score tells replaced masks from others; None where that is not known.

        The probability that a replaced mask scores higher than another, ties counting half.
        """
        if self.replaced is None:
            return None
        replaced = np.array([id in self.replaced for id in self.ids])
        if replaced.all() or not replaced.any():
            return None
        scores = self._comparable_score
        u = mannwhitneyu(scores[replaced], scores[~replaced]).statistic
        return float(u / (replaced.sum() * (~replaced).sum()))

    @property
    def corrected_label_dice(self) -> Floats | None:
        """`(N,)` Dice of each label to the original mask after correction, if it is known."""
        if self.label_dice is None:
            return None
        after = self.label_dice.copy()
        for index, dice in self.corrected_dice.items():
            after[index] = dice
        return after

    def write(self, path: str | Path) -> None:
        """Write `scores.csv`, worst first; what is not known is left empty."""
        noisy, after, score = set(self.noisy), self.corrected_label_dice, self.score
        of_prediction, noisy_classes = self.prediction_dice, self.noisy_classes

        def row(rank: int, i: int) -> dict[str, Any]:
            return {
                "id": self.ids[i],
                "score": score[i],
                "score_a": self.score_a[i],
                "score_b": self.score_b[i],
                "rank": rank,
                "noisy": int(i in noisy),
                "changed_pixels": self.changed_pixels.get(i),
                "replaced": None if self.replaced is None else int(self.ids[i] in self.replaced),
                "label_dice": None if self.label_dice is None else self.label_dice[i],
                "corrected_dice": None if after is None else after[i],
                "prediction_dice": None if of_prediction is None else of_prediction[i],
                "excess": None if self.size_bias is None else self.size_bias[i],
                **by_class(i),
                **({} if self.run_id is None else {"run": self.run_id}),
            }

        def by_class(i: int) -> dict[str, Any]:
            """Which class is suspicious, where there is more than one."""
            if self.class_scores is None or self.class_scores.shape[1] < 2:
                return {}
            scores = self.class_scores[i]
            worst = None if np.isnan(scores).all() else int(np.nanargmax(scores)) + 1
            named = {
                f"score_class_{k}": None if np.isnan(score) else score
                for k, score in enumerate(scores, start=1)
            }
            noisy_here = " ".join(map(str, noisy_classes.get(i, [])))
            return {"suspicious_class": worst, "noisy_classes": noisy_here, **named}

        write_table(path, (row(rank, i) for rank, i in enumerate(self.worst_first, start=1)))


def worst_first(scores: Floats, ids: Sequence[str]) -> list[int]:
    """Indices by falling score, equal scores by id."""
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    order = np.argsort(-scores[by_id], kind="stable")
    worst: list[int] = np.array(by_id, dtype=np.int64)[order].tolist()
    return worst
