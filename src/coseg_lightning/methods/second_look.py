"""Judges masks with networks that are already trained, for folds and after a review."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from coseg_lightning.callbacks.evaluation_pass import of_content
from coseg_lightning.callbacks.label_correction import (
    disagreement,
    proposal,
    resize_probabilities,
)
from coseg_lightning.data.preparation import without_gaps
from coseg_lightning.data.samples import SampleDataset, label_dice
from coseg_lightning.functional.equations import class_logits
from coseg_lightning.labels.store import LabelStoreWriter
from coseg_lightning.ranking.displacement import Ladder, moved_back, outline_ladder
from coseg_lightning.ranking.evidence import Evidence, Floats, compute_evidence, kind_numbers
from coseg_lightning.ranking.outline import outline_evidence
from coseg_lightning.ranking.people import People
from coseg_lightning.ranking.ranking import Ranking
from coseg_lightning.ranking.scores import mask_scores

Predict = Callable[[Tensor], Sequence[Tensor]]  # maps images to the logits of two networks


@dataclass(frozen=True)
class Judgement:
    """The evidence of two networks on masks.

    Args:
        ids: The ids of the masks.
        tables: Both networks' evidence, `(2, N, columns)`.
        outlines: The outline evidence of label and prediction, one row per mask.
        ladders: The evidence of the labels' outlines at shifted places if the annotator is known,
            else None.
    """

    ids: Sequence[str]
    tables: NDArray[Any]
    outlines: Sequence[NDArray[Any]]
    ladders: Sequence[Ladder | None]


@torch.no_grad()
def judge(
    predict: Predict,
    samples: SampleDataset,
    *,
    batch_size: int,
    classes: int,
    proposals: LabelStoreWriter,
    uncertainty: LabelStoreWriter | None = None,
) -> Judgement:
    """Collect two networks' evidence on masks, and write their proposals.

    Args:
        predict: Computes both networks' logits.
        samples: The samples, without augmentation.
        batch_size: Images per batch.
        classes: K, background included.
        proposals: Stores the class with the highest mean probability at each pixel.
        uncertainty: Stores the networks' disagreement.
    """
    tables, outlines = [], []
    ladders: list[Ladder | None] = []
    ids: list[str] = []
    for batch in DataLoader(samples, batch_size):
        logits = [class_logits(part).float().cpu() for part in predict(batch["image"])]
        tables.append(np.stack([compute_evidence(part, batch["mask"]).numpy() for part in logits]))
        for n, sample_id in enumerate(batch["id"]):
            label = samples.mask(len(ids))
            target = torch.empty(label.shape)
            shown = [of_content(samples, len(ids), part[n : n + 1], label.shape) for part in logits]
            pair = [resize_probabilities(part.softmax(dim=1), target) for part in shown]
            drawn = proposal(*pair)
            proposals.write(str(sample_id), drawn)
            if uncertainty is not None:
                uncertainty.write(str(sample_id), disagreement(*pair))
            image = without_gaps(samples.dataset.image(len(ids)))
            both = [outline_evidence(image, mask, classes=classes) for mask in (label, drawn)]
            outlines.append(np.concatenate(both, axis=1))
            ladder = None
            if str(sample_id) in samples.annotators:
                ladder = outline_ladder(image, label, classes=classes)
            ladders.append(ladder)
            ids.append(str(sample_id))
    return Judgement(ids, np.concatenate(tables, axis=1), outlines, ladders)


def evidence_of(
    judgements: Sequence[Judgement],
    kinds: Mapping[str, str] | None,
    annotators: Mapping[str, str] | None = None,
) -> tuple[tuple[Evidence, Evidence], Floats | None]:
    """Return both networks' evidence on all masks, and the displacements of their outlines.

    Args:
        judgements: The judgements of all parts, in order.
        kinds: The kind of each image, if known.
        annotators: Who drew each mask, if known; otherwise there are no displacements.
    """
    ids = [sample_id for part in judgements for sample_id in part.ids]
    outline = np.stack([row for part in judgements for row in part.outlines])
    tables = np.concatenate([part.tables for part in judgements], axis=1)
    pair = [replace(Evidence.from_table(table), outline=outline) for table in tables]
    if kinds:
        pair = [replace(one, kinds=kind_numbers(ids, kinds)) for one in pair]
    displacement = None
    if annotators:
        people = People.of([annotators.get(i) for i in ids], pair[0].kinds)
        ladders = [ladder for part in judgements for ladder in part.ladders]
        outline, displacement = moved_back(outline, ladders, people)
        pair = [replace(one, outline=outline, people=people) for one in pair]
    return (pair[0], pair[1]), displacement


def rank_again(
    networks: tuple[nn.Module, nn.Module],
    samples: SampleDataset,
    noise_level: float,
    *,
    batch_size: int,
    classes: int,
    score: str,
    proposals: LabelStoreWriter,
) -> Ranking:
    """Rank the masks of a dataset with two trained networks, and write their proposals.

    Args:
        networks: The networks, in evaluation mode.
        samples: The samples, without augmentation.
        noise_level: The expected share of bad masks that remain.
        batch_size: Images per batch.
        classes: K, background included.
        score: The score, see `Recipe`.
        proposals: The writer of a new layer, which is not finished here.
    """
    weights = (weight for network in networks for weight in network.parameters())
    device = next(weights).device  # a mirror has no weights

    def predict(images: Tensor) -> list[Tensor]:
        return [network(images.to(device)) for network in networks]

    found = judge(predict, samples, batch_size=batch_size, classes=classes, proposals=proposals)
    pair, displacement = evidence_of([found], samples.kinds, samples.annotators)
    return Ranking.of_evidence(
        list(found.ids),
        pair,
        (mask_scores(pair[0], score), mask_scores(pair[1], score)),
        noise_level,
        score=score,
        replaced=samples.replaced,
        label_dice=label_dice(samples),
        displacement=displacement,
    )
