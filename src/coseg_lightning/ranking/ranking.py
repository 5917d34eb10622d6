"""The ranking of a training set by corruption score, and its file, scores.csv."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import renamed
from coseg_lightning.files.csv import write_table
from coseg_lightning.ranking.annotators import bad_probability, moved_scores, record_shift
from coseg_lightning.ranking.outline import mean_of_known

if TYPE_CHECKING:
    from coseg_lightning.ranking.evidence import Evidence

Floats = NDArray[np.float64]

# Scores that correct for steady displacements. Other scores, and records, mistake these for errors.
SCORES_WITH_PEOPLE = ("joint", "directed")
_DIRECTION_NAMES = {1: "too large", -1: "too small"}


@dataclass
class Ranking:
    """Corruption scores of all training samples, in the dataset's order.

    Args:
        ids: The samples' ids.
        score_a: `(N,)` scores of the first peer.
        score_b: `(N,)` scores of the second peer.
        noise_level: Share of the samples that count as noisy: the `round(noise_level * N)` samples
            with the highest mean score.
        replaced: Ids of the samples whose masks were replaced by noisy ones, if known.
        label_dice: `(N,)` Dice of each label to the original mask, if known.
        class_scores: `(N, K - 1)` score of each class except background, NaN if the class is
            neither labelled nor predicted.
        size_bias: `(N,)` how much larger the label's foreground is than the predicted one, as a
            share of the image; negative if it is smaller.
        prediction_dice: `(N,)` soft Dice of each label to the prediction, the mean over classes.
        direction: `(K - 1,)` whether bad labels of a class tend to be too large (1), too small
            (-1), or neither (0).
        by_class: Whether a sample counts as noisy if one of its classes does.
        run_id: Identifies the run of this ranking.
        numbered: Whether the samples have no ids of their own, so that their indices serve as ids.
        changed_pixels: Number of pixels that a correction changed, by sample index.
        corrected_dice: Dice of the corrected mask to the original one, by sample index, if known.
        blunders: `(N,)` the names of each mask's blunders, if they were looked for.
        annotators: `(N,)` who drew each mask, empty where unknown; None if all are unknown.
        own_score: `(N,)` the score without the annotators' records, if there are any.
        displacement: `(N, K - 1)` how far the outlines of each mask lie outside their reference,
            in pixels; NaN where unknown.
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
    blunders: Sequence[Sequence[str]] | None = None
    annotators: Sequence[str] | None = None
    own_score: Floats | None = None
    displacement: Floats | None = None

    excess = renamed("excess", "size_bias")

    @classmethod
    def of_evidence(
        cls,
        ids: Sequence[str],
        peers: tuple["Evidence", "Evidence"],
        scores: tuple[Floats, Floats],
        noise_level: float,
        *,
        score: str,
        **known: Any,
    ) -> "Ranking":
        """Rank samples by two peers' evidence on their labels.

        If the annotators are known, each one's record on other labels counts too.

        Args:
            ids: The samples' ids.
            peers: Each peer's evidence.
            scores: Each peer's scores, `(N,)`.
            noise_level: See `Ranking`.
            score: Name of the score by which each class is ranked, see `class_scores`.
            known: Further arguments of `Ranking`.
        """
        from coseg_lightning.ranking.scores import class_scores, direction  # imports torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of two NaN is NaN
            by_class = np.nanmean([class_scores(peer, score) for peer in peers], axis=0)
        people = peers[0].people
        if people is not None:
            mean = (scores[0] + scores[1]) / 2
            shift = np.zeros(len(ids))
            if score in SCORES_WITH_PEOPLE:
                shift = record_shift(bad_probability(mean, noise_level), people)
            scores = moved_scores(scores[0], shift), moved_scores(scores[1], shift)
            by_class = np.stack([moved_scores(column, shift) for column in by_class.T], axis=1)
            known |= {"annotators": people.of_masks(), "own_score": mean}
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
        """The ids that each peer's own scores exclude as noisy; at least one sample is kept."""
        count = min(round(self.noise_level * len(self.ids)), len(self.ids) - 1)
        worst_a, worst_b = (
            worst_first(_comparable(scores), self.ids)[:count]
            for scores in (self.score_a, self.score_b)
        )
        return frozenset(self.ids[i] for i in worst_a), frozenset(self.ids[i] for i in worst_b)

    @property
    def score(self) -> Floats:
        """The mean of both peers' scores, `(N,)`."""
        return (self.score_a + self.score_b) / 2

    @cached_property
    def worst_first(self) -> list[int]:
        """Indices by falling score, NaN first; samples with equal scores are ordered by id."""
        return worst_first(_comparable(self.score), self.ids)

    @property
    def noisy(self) -> list[int]:
        """Indices of the samples that count as noisy, worst first."""
        if self.by_class:
            noisy_classes = self.noisy_classes
            return [i for i in self.worst_first if i in noisy_classes]
        return self.worst_first[: round(self.noise_level * len(self.ids))]

    @property
    def noisy_classes(self) -> dict[int, list[int]]:
        """The noisy classes of each sample, by its index, if each class is ranked separately.

        A class is noisy in the `round(noise_level * n)` samples with its highest scores, of the n
        samples with a score for it.
        """
        noisy_classes: dict[int, list[int]] = {}
        if self.class_scores is None:
            return noisy_classes
        for k, scores in enumerate(self.class_scores.T, start=1):
            concerned = int((~np.isnan(scores)).sum())
            worst = worst_first(np.nan_to_num(scores, nan=-np.inf), self.ids)
            for i in worst[: round(self.noise_level * concerned)]:
                noisy_classes.setdefault(i, []).append(k)
        return noisy_classes

    @property
    def bias(self) -> str | None:
        """Whether bad labels tend to be too large or too small, in a sentence; None if neither."""
        if self.direction is None:
            return None
        directions = [round(float(direction)) for direction in self.direction]
        statements = [
            f"{_subject(k, len(directions))} tend to be {_DIRECTION_NAMES[direction]}"
            for k, direction in enumerate(directions, start=1)
            if direction != 0
        ]
        return "; ".join(statements) + "." if statements else None

    @property
    def auroc(self) -> float | None:
        """AUROC of the score for detecting replaced masks; None if these are unknown.

        The probability that a replaced mask scores higher than another one, with ties counted half.
        """
        if self.replaced is None:
            return None
        replaced = np.array([sample_id in self.replaced for sample_id in self.ids])
        if replaced.all() or not replaced.any():
            return None
        from scipy.stats import mannwhitneyu  # its import takes a second

        scores = _comparable(self.score)
        u = mannwhitneyu(scores[replaced], scores[~replaced]).statistic
        return float(u / (replaced.sum() * (~replaced).sum()))

    @property
    def corrected_label_dice(self) -> Floats | None:
        """Dice of each label to the original mask after correction, `(N,)`, if known."""
        if self.label_dice is None:
            return None
        after = self.label_dice.copy()
        for index, dice in self.corrected_dice.items():
            after[index] = dice
        return after

    def write(self, path: str | Path) -> None:
        """Write `scores.csv`, worst first; unknown values are left empty."""
        write_table(path, self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        score, corrected_dice = self.score, self.corrected_label_dice
        noisy, noisy_classes = set(self.noisy), self.noisy_classes
        for rank, i in enumerate(self.worst_first, start=1):
            row: dict[str, Any] = {
                "id": self.ids[i],
                "score": score[i],
                "score_a": self.score_a[i],
                "score_b": self.score_b[i],
                "rank": rank,
                "noisy": int(i in noisy),
                "changed_pixels": self.changed_pixels.get(i),
                "replaced": None if self.replaced is None else int(self.ids[i] in self.replaced),
                "label_dice": _value_at(self.label_dice, i),
                "corrected_dice": _value_at(corrected_dice, i),
                "prediction_dice": _value_at(self.prediction_dice, i),
                "excess": _value_at(self.size_bias, i),
            }
            if self.class_scores is not None and self.class_scores.shape[1] > 1:
                row |= _class_columns(self.class_scores[i], noisy_classes.get(i, []))
            if self.annotators is not None:
                row |= {"annotator": self.annotators[i], "own_score": _value_at(self.own_score, i)}
                row |= self._displacement_of(i)
            if self.blunders is not None:
                row["blunders"] = "; ".join(self.blunders[i])
            if self.run_id is not None:
                row["run"] = self.run_id
            yield row

    def _displacement_of(self, index: int) -> dict[str, Any]:
        """Return the displacement columns of a mask: the mean, and that of each class."""
        if self.displacement is None:
            return {}
        values = self.displacement[index]
        columns: dict[str, Any] = {"displacement_pixels": mean_of_known(values, axis=0)}
        if len(values) > 1:
            columns |= {f"displacement_class_{k}": v for k, v in enumerate(values, start=1)}
        return {k: None if np.isnan(v) else round(float(v), 3) for k, v in columns.items()}


def _comparable(scores: Floats) -> Floats:
    """Replace NaN by infinity, so that such samples rank worst."""
    return np.nan_to_num(scores, nan=np.inf)


def _value_at(values: Floats | None, index: int) -> float | None:
    return None if values is None else values[index]


def _class_columns(scores: Floats, noisy_classes: list[int]) -> dict[str, Any]:
    """Return the columns of a sample's scores of all classes except background."""
    worst = None if np.isnan(scores).all() else int(np.nanargmax(scores)) + 1
    columns: dict[str, Any] = {
        "suspicious_class": worst,
        "noisy_classes": " ".join(map(str, noisy_classes)),
    }
    for k, score in enumerate(scores, start=1):
        columns[f"score_class_{k}"] = None if np.isnan(score) else score
    return columns


def _subject(k: int, classes: int) -> str:
    return "Bad masks" if classes == 1 else f"Bad outlines of class {k}"


def worst_first(scores: Floats, ids: Sequence[str]) -> list[int]:
    """Return indices by falling score; samples with equal scores are ordered by id."""
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    order = np.argsort(-scores[by_id], kind="stable")
    worst: list[int] = np.array(by_id, dtype=np.int64)[order].tolist()
    return worst
