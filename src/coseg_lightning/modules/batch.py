"""Reads and checks batches in all supported forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from coseg_lightning.errors import InputError
from coseg_lightning.functional.equations import IGNORE_INDEX
from coseg_lightning.labels.updated import as_named
from coseg_lightning.ranking.people import name_of

MOST_RARE = 0.05  # the share of masks of 0 and 255 that is no reason to warn
MOST_ROUNDING = 0.02  # of shares of votes that sum to 1, in bfloat16


@dataclass(frozen=True)
class Batch:
    """A batch in the form that the modules use.

    Args:
        images: The images.
        masks: The labels.
        ids: The samples' ids, if known.
        replaced: `True` for masks that were replaced by noisy ones, if known.
        annotators: Who drew each mask, if known.
        soft_masks: Each class's share of the votes, where several people drew masks.

    Shape:
        images `(N, C, H, W)` float, masks `(N, H, W)` int64, ids N strings or numbers, replaced
        `(N,)` bool, soft_masks `(N, K, H, W)` float.
    """

    images: Tensor
    masks: Tensor
    ids: Sequence[Any] | None = None
    replaced: Tensor | None = None
    annotators: Sequence[str] | None = None
    soft_masks: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The training targets: the soft masks if there are any, else the masks."""
        return self.masks if self.soft_masks is None else self.soft_masks


def one_of(sample: Batch, n: int) -> Batch:
    """Return one sample of a batch, as a batch of one."""
    ids = None if sample.ids is None else [sample.ids[n]]
    return Batch(sample.images[n : n + 1], sample.masks[n : n + 1], ids)


def read_batch(batch: Any) -> Batch:
    """Read `(image, mask)`, `(image, mask, id)`, or a dict with `image` and `mask` or `label`.

    A named tuple whose fields all have such names is read as a dict, and any other by place.

    Raises:
        InputError: If the batch is none of these.
    """
    annotators = soft_masks = None
    batch = as_named(batch)
    if isinstance(batch, Mapping) and "image" in batch and ("mask" in batch or "label" in batch):
        masks = batch.get("label") if batch.get("mask") is None else batch["mask"]
        other = batch.get("label")
        if other is not masks and isinstance(other, Tensor) and other.ndim >= 3:
            raise InputError(
                "The batch has two masks, mask and label; give only the one to be learnt under "
                "these names, and the other one, such as a field of view, under another name."
            )
        fields = batch["image"], masks, batch.get("id"), batch.get("replaced")
        annotators, soft_masks = batch.get("annotator"), batch.get("soft_mask")
    elif isinstance(batch, Sequence) and len(batch) in (2, 3) and isinstance(batch[1], Tensor):
        rest = batch[2] if len(batch) == 3 else None
        if isinstance(rest, Mapping):  # a project's own metadata
            annotators, rest = rest.get("annotator"), rest.get("id")
        fields = batch[0], batch[1], rest, None
    else:
        content = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        if isinstance(batch, list | tuple):
            kinds = ", ".join(type(part).__name__ for part in batch[:4]) or "nothing"
            content = f"{content} of {len(batch)} ({kinds})"
        raise InputError(
            f"The batch is {content}; it must be (image, mask), (image, mask, id) or a dict with "
            "image and mask (or label), images and masks as tensors."
        )
    images, masks, ids, replaced = fields
    if ids is not None and not _are_ids(ids, len(images)):
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        if isinstance(ids, Sequence) and len(ids) and not isinstance(ids, str):
            shape = f"a {shape} of {len(ids)}, the first a {type(ids[0]).__name__}"
        raise InputError(
            f"The batch's ids are {shape}; they must be {len(images)} strings or whole numbers, "
            "one per sample. The third part of a batch may hold only ids."
        )
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InputError(
            f"The batch's images are {shape}; they must be a tensor (N, C, H, W), grey ones with "
            "C = 1: images[:, None]."
        )
    if not isinstance(masks, Tensor):
        raise InputError(
            f"The batch's masks are a {type(masks).__name__}; they must be a tensor (N, H, W) of "
            "class ids, as torch's default collate function makes one of arrays."
        )
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.is_floating_point() and not bool((masks == masks.round()).all()):
        raise InputError(
            f"A mask holds {float(masks[masks != masks.round()][0]):.4g}, which is not a class id; "
            "give whole numbers: resize masks by nearest-neighbour interpolation, and do not let "
            "ToTensor divide class ids by 255."
        )
    if masks.ndim != 3 or masks.shape != (len(images), *images.shape[-2:]):
        raise InputError(
            f"The batch's masks are {tuple(masks.shape)} and its images {tuple(images.shape)}; "
            "masks must be (N, H, W) or (N, 1, H, W) with the images' number, height and width."
        )
    if soft_masks is not None and not isinstance(soft_masks, Tensor):
        raise InputError(
            f"The batch's soft_mask is a {type(soft_masks).__name__}; it must be a float tensor "
            "(N, K, H, W)."
        )
    if soft_masks is not None and (
        not soft_masks.is_floating_point()
        or soft_masks.ndim != 4
        or soft_masks[:, 0].shape != masks.shape
    ):
        raise InputError(
            f"The batch's soft_mask is {tuple(soft_masks.shape)}, {soft_masks.dtype}; it must be "
            f"float, (N, K, H, W) for masks of {tuple(masks.shape)}."
        )
    if soft_masks is not None:
        _check_shares(soft_masks)
    names = _names(annotators, len(images))
    return Batch(images, masks.long(), ids, replaced, names, soft_masks)


def _check_shares(soft_masks: Tensor) -> None:
    """Raise an `InputError` unless each pixel holds shares of votes."""
    low, high = float(soft_masks.min()), float(soft_masks.sum(dim=1).max())
    if not (low >= -MOST_ROUNDING and high <= 1 + MOST_ROUNDING):  # NaN is neither
        raise InputError(
            f"The batch's soft_mask holds values from {low:.4g}, and up to {high:.4g} in a pixel; "
            "it must hold shares of the votes: at least 0, and 1 in each pixel over all classes (0 "
            "where nobody labelled)."
        )


def _names(annotators: Any, count: int) -> list[str] | None:
    """The annotators' names, one per sample; None if the batch has none."""
    if annotators is None:
        return None
    names = annotators
    if isinstance(annotators, Tensor | np.ndarray):
        names = annotators.reshape(-1).tolist()
    if isinstance(names, str) or not isinstance(names, Sequence) or len(names) != count:
        raise InputError(
            f"The batch's annotator is {annotators!r:.60}; it must be {count} names, one per "
            "sample."
        )
    return [name_of(name) for name in names]


def _are_ids(ids: Any, count: int) -> bool:
    if isinstance(ids, Tensor):
        return ids.shape == (count,) and not ids.is_floating_point()
    if isinstance(ids, str) or not isinstance(ids, Sequence) or len(ids) != count:
        return False
    return all(
        isinstance(sample_id, str | int | np.integer | PathLike)
        or (isinstance(sample_id, Tensor) and not sample_id.ndim)
        for sample_id in ids
    )


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch for prediction, which may have no masks.

    Raises:
        InputError: If the batch has no images of shape `(N, C, H, W)`.
    """
    batch = as_named(batch)
    if isinstance(batch, Mapping) and isinstance(batch.get("image"), Tensor):
        images: Any = batch["image"]
    else:
        images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise InputError(
            f"The batch is a {type(batch).__name__} without an (N, C, H, W) tensor of images; give "
            "the tensor, a list that begins with it, or a dict with image."
        )
    return images


def reads_all(limit: float, *batches: float) -> bool:
    """Whether a pass surely reads all batches.

    Args:
        limit: The trainer's limit: a whole number of batches, or a share.
        batches: The number of batches of each loader, after the limit.
    """
    return limit >= 1.0 if isinstance(limit, float) else all(count < limit for count in batches)


class ClassIds:
    """Checks the class ids of masks, and whether any was foreground in a pass over all of them.

    Args:
        classes: K, the number of the network's classes.
        ignore_index: Class id of unlabelled pixels.
        of: Whose masks they are, for messages.
    """

    def __init__(self, classes: int, ignore_index: int, of: str = "") -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self._whose = f"{of} masks".strip()
        self._is_measured = bool(of)
        # Whether any pixel is foreground, labelled, unlabelled; whether foreground and unlabelled
        # pixels are in one mask; the number of masks of 0 and unlabelled pixels, and of all masks.
        self._found: Tensor | None = None

    @property
    def is_open(self) -> bool:
        """Whether masks were checked after the last `check_pass`."""
        return self._found is not None

    def check(self, masks: Tensor) -> None:
        """Raise an `InputError` if a mask holds a class id without an output of the network."""
        labelled = masks != self.ignore_index
        if self.ignore_index == IGNORE_INDEX < self.classes and not bool(labelled.all()):
            raise InputError(
                f"The {self._whose} hold {IGNORE_INDEX}, which is one of {self.classes} classes "
                "and also means unlabelled; give another ignore_index, such as -1, or another id "
                "to that class."
            )
        wrong = masks[labelled & ((masks < 0) | (masks >= self.classes))]
        if len(wrong):
            advice = f"classes={int(wrong.max()) + 1}, or divide 0/255 masks by 255"
            if int(wrong[0]) < 0:
                advice = f"ignore_index={int(wrong[0])} if it means unlabelled"
            raise InputError(
                f"The {self._whose} hold the class id {int(wrong[0])}, but the network has "
                f"{self.classes} classes, 0 to {self.classes - 1} (and {self.ignore_index} for "
                f"unlabelled pixels); give {advice}."
            )
        parts = (labelled & (masks > 0), labelled, ~labelled)
        object_in, label_in, hole_in = (part.flatten(1).any(dim=1) for part in parts)
        only_0 = ~object_in & label_in & hole_in
        flags = [one.any() for one in (object_in, label_in, hole_in, object_in & hole_in)]
        counts = (*flags, only_0.sum(), torch.tensor(len(masks), device=masks.device))
        now = torch.stack([count.long() for count in counts])
        self._found = now if self._found is None else self._found + now

    def check_pass(self, module: pl.LightningModule, *, is_whole: bool) -> None:
        """Raise an `InputError` at a pass's end if no mask had any labelled foreground.

        This happens for masks of 0 and 255 if 255 means unlabelled. A network could then only
        learn background, and all that it predicts would count as right. All processes must call
        it.

        Args:
            module: The module.
            is_whole: Whether all masks were seen; a few may have no foreground, which is warned of.
        """
        found, self._found = self._found, None
        counts = torch.zeros(6) if found is None else found.float()
        counts = counts.to(module.device)
        total = module.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        foreground, labelled, unlabelled, both, only_0, masks = total
        is_several = only_0 >= MOST_RARE * masks and only_0 > 1
        if self.ignore_index == IGNORE_INDEX and foreground and is_several and not both:
            rank_zero_warn(
                f"{int(only_0)} of {int(masks)} {self._whose} that were read hold only 0 and "
                f"{IGNORE_INDEX}, which means unlabelled, but others hold objects; if "
                f"{IGNORE_INDEX} is an object there, divide these masks by 255."
            )
        # Metrics of images without a label are NaN, which nobody takes for a good result.
        if not unlabelled or foreground or (self._is_measured and not labelled):
            return
        message = (
            f"All {self._whose} that were read hold only 0 and {self.ignore_index}, which means "
            "unlabelled; divide 0/255 masks by 255, or leave out samples without any label."
        )
        if is_whole:
            raise InputError(message)
        rank_zero_warn(message)
