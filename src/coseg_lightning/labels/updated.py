"""Datasets whose masks come from a label layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.labels.masks import Mask, MaskedImages, mask_digest
from coseg_lightning.labels.store import LabelStore


def updated(dataset: Any, layer: "LabelStore | str | Path") -> Any:
    """The dataset with the layer's masks in place of the originals, before augmentation.

    Args:
        dataset: This package's datasets, or any map-style dataset of `(image, mask)`,
            `(image, mask, id)` or dicts with `image`, `mask` or `label`, and perhaps `id`. One
            without ids is numbered: "0", "1", ...
        layer: A finished layer, or its folder.

    Returns:
        A dataset of the same kind. Neither the dataset given nor its files are changed.
    """
    if not isinstance(layer, LabelStore):
        layer = LabelStore(layer)
    if isinstance(dataset, Subset) and not layer.numbered:  # else numbered within the part
        return Subset(updated(dataset.dataset, layer), dataset.indices)
    if callable(getattr(dataset, "updated", None)):
        return dataset.updated(layer)
    if callable(getattr(dataset, "image", None)) and callable(getattr(dataset, "mask", None)):
        return UpdatedImages(dataset, layer)
    return UpdatedSamples(dataset, layer)


class UpdatedImages:
    """`MaskedImages` whose masks come from a label layer where it has them."""

    def __init__(self, dataset: MaskedImages, layer: LabelStore) -> None:
        strangers = set(layer.ids) - set(dataset.ids)
        if strangers:
            raise InputError(
                f"{layer.folder} holds a mask of {min(strangers)}, which is not in the dataset; "
                "give the dataset that the layer was made of."
            )
        self.dataset = dataset
        self.layer = layer

    def __len__(self) -> int:
        return len(self.dataset.ids)

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the dataset below."""
        return self.dataset.ids

    def image(self, index: int) -> NDArray[Any]:
        """The image of the dataset below."""
        return self.dataset.image(index)

    def mask(self, index: int) -> Mask:
        """The layer's mask, or the dataset's own."""
        id = self.dataset.ids[index]
        return self.layer.read(id) if id in self.layer else self.dataset.mask(index)


def changed_labels(dataset: Any, layers: Sequence[LabelStore]) -> dict[str, LabelStore]:
    """The samples whose masks differ from the dataset's own under layers, the last on top.

    Returns:
        The layer that each one's mask lies in; all masks together may be too many for the memory.
    """
    found: dict[str, LabelStore] = {}
    for index, id in enumerate(dataset.ids):
        over = [layer for layer in layers if id in layer]
        if over and not np.array_equal(over[-1].read(id), dataset.mask(index)):
            found[id] = over[-1]
    return found


class UpdatedSamples(Dataset[Any]):
    """Somebody's dataset of ready samples, whose masks come from a label layer.

    The samples must come out of the dataset unaugmented: a layer's mask cannot follow a rotation
    that it does not see. Augment behind this dataset, not in front of it. A mask keeps the type
    that the dataset gives it: a tensor, also of torchvision's kinds, an array, or a Pillow image.

    Raises:
        InputError: When a sample is read whose mask is not the one that was corrected.
    """

    def __init__(self, dataset: Any, layer: LabelStore) -> None:
        self.dataset = dataset
        self.layer = layer

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        mask_key, id = mask_and_id(sample)
        name = str(index) if self.layer.numbered or id is None else sample_name(id)
        if name not in self.layer:
            return sample
        given = sample[mask_key]
        corrected = self.layer.read(name)
        before = as_array(given)
        if corrected.shape != before.shape:
            raise InputError(
                f"The layer's mask of sample {name} is {corrected.shape}, but the dataset gives "
                f"{before.shape}; resize and augment behind updated(), not in the dataset."
            )
        digest = self.layer.facts(name).get("original")
        if digest is not None and digest != mask_digest(before):
            raise InputError(
                f"The dataset's mask of sample {name} is not the one that was corrected; give the "
                "same samples in the same order and without augmentation, which belongs behind "
                "updated()."
            )
        is_dict = isinstance(sample, Mapping)
        items = dict(sample) if is_dict else list(sample)
        items[mask_key] = like(given, corrected)
        return items if is_dict else tuple(items)


def mask_and_id(sample: Any) -> tuple[Any, Any]:
    """Where in somebody's sample its mask is, and its id, or None.

    Raises:
        InputError: If the sample has no form that is known.
    """
    if isinstance(sample, Mapping) and {"mask", "label"} & set(sample):
        return "mask" if "mask" in sample else "label", sample.get("id")
    if isinstance(sample, tuple | list) and len(sample) in (2, 3):
        rest = sample[2] if len(sample) == 3 else None
        return 1, rest.get("id") if isinstance(rest, Mapping) else rest
    found = sorted(sample) if isinstance(sample, Mapping) else type(sample).__name__
    raise InputError(
        f"A sample of the dataset is {found}; to lay corrected masks over it, it must be "
        "(image, mask), (image, mask, id) or a dict with mask (or label). Let the dataset, and not "
        "the collate function, bring it into that form."
    )


def as_array(mask: Any) -> NDArray[Any]:
    """A mask of any of the usual types as `(H, W)` integers."""
    array = np.asarray(mask)
    return array.reshape([side for side in array.shape if side != 1] or [1, 1]).astype(np.int64)


def like(given: Any, mask: Mask) -> Any:
    """A mask in the type and shape of another one."""
    if isinstance(given, torch.Tensor):
        tensor = torch.from_numpy(mask.astype(np.int64)).to(given.dtype).reshape(given.shape)
        return tensor.as_subclass(type(given))  # torchvision's are flipped as masks are
    if isinstance(given, np.ndarray):
        return mask.astype(given.dtype).reshape(given.shape)
    if isinstance(given, Image.Image):
        picture = Image.fromarray(mask)
        if given.mode == "P" and (palette := given.getpalette()) is not None:
            picture.putpalette(palette)
        return picture
    return mask
