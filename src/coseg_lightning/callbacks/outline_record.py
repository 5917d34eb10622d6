"""OutlineRecord: outline evidence on labels and predictions, collected in the evidence passes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from coseg_lightning.callbacks.evaluation_pass import of_content, stored_sample
from coseg_lightning.callbacks.evidence_sum import PredictionObserver
from coseg_lightning.callbacks.processes import gather_objects
from coseg_lightning.data.preparation import without_gaps
from coseg_lightning.functional.equations import IGNORE_INDEX, class_logits, predicted_classes
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.labels.masks import mask_digest
from coseg_lightning.modules.batch import Batch
from coseg_lightning.ranking.displacement import Ladder, moved_back, outline_ladder
from coseg_lightning.ranking.evidence import Evidence, Floats
from coseg_lightning.ranking.outline import mean_of_known, outline_evidence
from coseg_lightning.ranking.people import People


class OutlineRecord(PredictionObserver):
    """Judges the outlines of every label, and of the prediction for the same image.

    Samples of this package are judged at their own size, and all others as the networks get them.

    Args:
        dataset: The dataset of the passes.
        ignore_index: Class id of unlabelled pixels.
        annotators: Who drew the labels, by the samples' ids; None to use the batches' annotators.
            If any are known, the outlines are also judged at shifted places. This reveals steady
            displacements.

    Attributes:
        annotators: Who drew the labels that were seen.
    """

    def __init__(
        self,
        dataset: Any,
        ignore_index: int = IGNORE_INDEX,
        annotators: Mapping[str, str] | None = None,
    ) -> None:
        self.dataset = dataset
        self.ignore_index = ignore_index
        self.annotators = dict(annotators or {})
        self._asks_batches = annotators is None
        self._ladders: dict[str, Ladder] = {}
        self._labels: dict[str, Floats] = {}  # by name and digest
        self._rows: dict[str, Floats] = {}  # from the latest pass

    @override
    def observe(self, indices: Sequence[int], sample: Batch, logits: Sequence[Tensor]) -> None:
        mean = torch.stack([class_logits(part).softmax(dim=1) for part in logits]).mean(dim=0)
        is_patched = len(sample.masks) > len(indices)
        ids = [*indices] if sample.ids is None else [*sample.ids]
        rows: dict[str, list[Floats]] = {}  # several rows of one name are patches of one image
        judge = partial(outline_evidence, classes=mean.shape[1])
        for n, name in enumerate(map(sample_name, ids)):
            stored = None if is_patched else stored_sample(self.dataset, indices[n])
            if stored is None:
                image = sample.images[n].float().movedim(0, -1).cpu().numpy()
                mask = sample.masks[n].cpu().numpy()
            else:
                image, mask = (
                    without_gaps(stored[0].dataset.image(stored[1])),
                    stored[0].mask(stored[1]),
                )
            if self._asks_batches and sample.annotators is not None:
                self.annotators[name] = sample.annotators[n]
            key = f"{name}/{mask_digest(mask)}"  # masks may grow within a fit
            label = None if is_patched else self._labels.get(key)
            if label is None:
                label = self._labels[key] = judge(image, mask, ignore_index=self.ignore_index)
                if self.annotators and not is_patched:
                    self._ladders[name] = outline_ladder(
                        image, mask, ignore_index=self.ignore_index, classes=mean.shape[1]
                    )
            shown = mean[n]
            if stored is not None:
                shown = of_content(*stored, shown, mask.shape)
            prediction = judge(image, predicted_mask(shown, mask.shape), ignore_index=-1)
            rows.setdefault(name, []).append(np.concatenate([label, prediction], axis=1))
        self._rows |= {name: mean_of_known(np.stack(r), axis=0) for name, r in rows.items()}

    def added_to(
        self, ids: Sequence[str], peers: tuple[Evidence, Evidence]
    ) -> tuple[Evidence, Evidence]:
        """Gather the evidence of the latest pass from all processes, and add it to the peers'.

        Args:
            ids: The ids of the samples of that pass.
            peers: Each peer's evidence on them.
        """
        rows: dict[str, Floats] = {}
        for part in gather_objects(self._rows):
            rows |= part
        outline = np.stack([rows[name] for name in ids])
        return replace(peers[0], outline=outline), replace(peers[1], outline=outline)

    def without_habits(
        self, ids: Sequence[str], peers: tuple[Evidence, Evidence]
    ) -> tuple[tuple[Evidence, Evidence], Floats | None]:
        """Judge labels after correcting each known annotator's steady displacement.

        Args:
            ids: The ids of the samples of the latest pass.
            peers: Each peer's evidence on them, with outlines.

        Returns:
            The peers' evidence, and the displacement of each label, `(N, K - 1)`; None if no
            annotator is known.
        """
        ladders: dict[str, Ladder] = {}
        drawn_by: dict[str, str] = {}
        for some_ladders, some_names in gather_objects((self._ladders, self.annotators)):
            ladders |= some_ladders
            drawn_by |= some_names
        people = People.of([drawn_by.get(name) for name in ids], peers[0].kinds)
        outline = peers[0].outline
        if not people.names or outline is None:
            return peers, None
        outline, displacement = moved_back(outline, [ladders.get(name) for name in ids], people)
        pair = [replace(peer, outline=outline, people=people) for peer in peers]
        return (pair[0], pair[1]), displacement


def predicted_mask(probabilities: Tensor, size: tuple[int, ...]) -> Any:
    """Return the most probable class at a mask's own size.

    Shape:
        probabilities `(K, h, w)`; returns `(H, W)`.
    """
    if probabilities.shape[1:] != size:
        probabilities = F.interpolate(
            probabilities[None].float(), size=size, mode="bilinear", align_corners=False
        )[0]
    return predicted_classes(probabilities[None])[0].cpu().numpy()
