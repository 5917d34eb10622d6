"""Datasets whose masks come from a label layer."""

import copy
import operator
import warnings
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from coseg_lightning.errors import InputError
from coseg_lightning.labels.ids import sample_name
from coseg_lightning.labels.masks import Mask, MaskedImages, mask_digest
from coseg_lightning.labels.store import LabelStore
from coseg_lightning.labels.views import (
    has_method,
    has_views,
    isolated_rng,
    known_ids,
    makes_samples,
    over_dataset,
    over_parts,
    plain,
    spread,
    within,
)

READINGS = 4  # of a sample, to see whether it is augmented
MOST_READ = 2000  # samples that are read to find some of a layer
# The names of a sample's parts, in dicts and named tuples.
FIELDS = ("image", "mask", "label", "id", "replaced", "annotator", "soft_mask")


def updated(dataset: Any, layer: "LabelStore | str | Path") -> Any:
    """Return the dataset with a layer's masks in place of the originals, before augmentation.

    Args:
        dataset: A dataset of this package, or any map-style dataset of `(image, mask)`,
            `(image, mask, id)` or dicts with `image`, `mask` or `label`, and optionally `id`.
            Samples without ids are numbered: "0", "1", ...
        layer: A finished layer, or its folder.

    Returns:
        A dataset of the same kind. The given dataset and its files are not changed. A `soft_mask`
        (shares of votes) follows its mask where that was corrected; other fields that were made
        from the mask do not.

    Raises:
        InputError: If it is a stream that cannot replace its own masks, or no dataset.
    """
    if not isinstance(layer, LabelStore):
        layer = LabelStore(layer)
    if makes_samples(dataset):
        with isolated_rng():  # of a training that goes on
            # The layer's masks may be those of the samples within, which it then replaces.
            gives_others = not _holds_masks_of(layer, within(dataset))
            if gives_others and _holds_masks_of(layer, plain(dataset)):
                return _over_its_samples(dataset, layer)
    # The numbers of a numbered layer are indices into the subset, not into the whole dataset.
    if isinstance(dataset, Subset) and (not layer.numbered or _is_beginning(dataset)):
        return over_dataset(dataset, updated(dataset.dataset, layer))
    if (
        isinstance(dataset, ConcatDataset)
        and not layer.numbered
        and any(map(has_views, dataset.datasets))
    ):
        parts = _layers_of_parts(layer, dataset.datasets)
        return over_parts(dataset, [updated(*part) for part in parts])
    if has_method(dataset, "updated"):
        return dataset.updated(layer)
    has_samples = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    has_parts = all(callable(getattr(dataset, name, None)) for name in ("image", "mask"))
    if isinstance(dataset, IterableDataset) or not (has_samples or has_parts):
        raise InputError(
            f"updated() was given a {type(dataset).__name__}; give a dataset whose samples have "
            "an index, dataset[0], and then the label layer."
        )
    gives_parts = has_parts and not hasattr(dataset, "__getitem__")  # else its samples count
    if gives_parts and isinstance(getattr(dataset, "ids", None), Sequence | np.ndarray):
        return UpdatedImages(dataset, layer)
    return UpdatedSamples(dataset, layer)


def _over_its_samples(dataset: Any, layer: LabelStore) -> "UpdatedSamples":
    """Replace the masks that a user's subclass gives, which must be the same in each reading."""
    for index in spread(len(dataset)):
        masks = [as_array(mask_of(dataset, index)[0]) for _ in range(READINGS)]
        masks.append(as_array(mask_of(plain(dataset), index)[0]))
        if not all(np.array_equal(masks[0], mask) for mask in masks[1:]):
            raise InputError(
                f"{type(dataset).__name__} changes the masks of a dataset that augments them, so "
                "corrected masks cannot replace either; let it change them before augmentation, or "
                "give it a method updated(layer)."
            )
    return UpdatedSamples(dataset, layer)


def mask_of(dataset: Any, index: int) -> tuple[Any, Any]:
    """Read the mask and the id of one sample as loaders do, which prefer `__getitems__`."""
    several = getattr(dataset, "__getitems__", None)
    sample = dataset[index] if several is None else several([index])[0]
    key, sample_id = mask_and_id(sample)
    return sample[key], sample_id


def _holds_masks_of(layer: LabelStore, dataset: Any) -> bool:
    """Whether a layer's masks were made of a dataset's samples.

    Up to eight samples of the layer are compared, among at most `MOST_READ`. A dataset within may
    hold other masks, or have no ids.
    """
    read: set[int] = set()
    is_found = False
    for start in spread(len(dataset)) if layer.ids else ():
        for index in range(start, len(dataset)):
            if index in read or len(read) == MOST_READ:
                break
            read.add(index)
            mask, sample_id = mask_of(dataset, index)
            if sample_id is None and not layer.numbered:
                return False
            name = str(index) if layer.numbered else sample_name(sample_id)
            if name in layer:
                if layer.facts(name).get("original") not in (None, mask_digest(as_array(mask))):
                    return False
                is_found = True
                break
    return is_found


def _layers_of_parts(layer: LabelStore, parts: Sequence[Any]) -> "list[tuple[Any, LabelStore]]":
    """Give each part of a concatenation the masks of its own samples, where their ids are known.

    Raises:
        InputError: If the ids of all parts are known, and the layer holds a mask of another one.
    """
    known = [known_ids(part) if has_views(part) else None for part in parts]
    ids = [None if of is None else {sample_name(i) for i in of} for of in known]
    if all(of is not None for of in ids):
        check_known(layer, set().union(*(of or set() for of in ids)))
    return [
        (part, layer if of is None else layer.only(of)) for part, of in zip(parts, ids, strict=True)
    ]


def check_known(layer: LabelStore, ids: Collection[str]) -> None:
    """Raise an `InputError` if a layer holds a mask of a sample that is not among these."""
    unknown_ids = set(layer.ids) - set(ids)
    if unknown_ids:
        raise InputError(
            f"{layer.folder} holds a mask of {min(unknown_ids)}, which is not in the dataset; "
            "give the dataset that the layer was made from."
        )


def _is_beginning(subset: "Subset[Any]") -> bool:
    """Whether the samples of a subset have the same indices as in the whole dataset."""
    return all(index == place for place, index in enumerate(subset.indices))


def changed_labels(dataset: Any, layers: Sequence[LabelStore]) -> dict[str, LabelStore]:
    """Find the samples whose masks under label layers differ from the dataset's own.

    Args:
        dataset: The dataset with the original masks.
        layers: The label layers. The last one is on top.

    Returns:
        The layer that holds the changed mask, by sample. The masks stay on disk, because all of
        them may be too large for the memory.
    """
    changed: dict[str, LabelStore] = {}
    for index, sample_id in enumerate(dataset.ids):
        layers_with_mask = [layer for layer in layers if sample_id in layer]
        if not layers_with_mask:
            continue
        top = layers_with_mask[-1]
        if not np.array_equal(top.read(sample_id), dataset.mask(index)):
            changed[sample_id] = top
    return changed


class UpdatedImages:
    """`MaskedImages` with a label layer's masks for the samples that the layer holds.

    Args:
        dataset: The images and their own masks.
        layer: The label layer.

    Raises:
        InputError: If the layer holds a mask of a sample that is not in the dataset.
    """

    def __init__(self, dataset: MaskedImages, layer: LabelStore) -> None:
        check_known(layer, dataset.ids)
        self.dataset = dataset
        self.layer = layer

    def __len__(self) -> int:
        return len(self.dataset.ids)

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the underlying dataset."""
        return self.dataset.ids

    def image(self, index: int) -> NDArray[Any]:
        """Return the image of the underlying dataset."""
        return self.dataset.image(index)

    def mask(self, index: int) -> Mask:
        """Return the layer's mask if it has one, or else the dataset's own."""
        sample_id = self.dataset.ids[index]
        if sample_id in self.layer:
            return self.layer.read(sample_id)
        return self.dataset.mask(index)


class PassesOn:
    """Has the attributes of its `dataset` too, such as a `set_epoch` that a project calls.

    So a `worker_init_fn` may open a file of the dataset. Names that tell this package what a
    dataset can do are not passed on.

    Attributes:
        own: The attributes that it has itself.
        hidden: Those that are not passed on.
    """

    dataset: Any
    own: ClassVar[tuple[str, ...]] = ("dataset",)
    hidden: ClassVar[tuple[str, ...]] = ("plain", "updated", "image", "mask", "ids")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in (*self.own, *self.hidden):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        takes_any = hasattr(self.__dict__.get("dataset"), "__dict__")  # a list does not
        if name in self.own or name.startswith("__") or not takes_any:
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataset, name, value)


class UpdatedSamples(PassesOn, Dataset[Any]):
    """A dataset of complete samples whose masks come from a label layer.

    The dataset must not augment its samples, because a layer's mask would not be transformed with
    its image. Augment the samples of this dataset instead. A mask keeps the dataset's type: a
    tensor (or torchvision's subclasses), an array, or a Pillow image.

    Args:
        dataset: The dataset; see `updated`.
        layer: The label layer.

    Raises:
        InputError: When a sample is read whose original mask is not the one that was corrected.
    """

    own = ("dataset", "layer", "_unknown")
    hidden = ("plain", "updated", "image", "mask")

    def __init__(self, dataset: Any, layer: LabelStore) -> None:
        self.dataset = dataset
        self.layer = layer
        # The samples read before the first whose mask the layer holds; None after that one.
        self._unknown: set[Any] | None = set() if len(layer.ids) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "__getitems__" and hasattr(self.dataset, name):  # which loaders prefer
            return self._several
        return super().__getattr__(name)

    def __getitem__(self, index: int) -> Any:
        if type(self.dataset).__getitem__ is Dataset.__getitem__:  # it has only __getitems__
            return self._several([index])[0]
        return self._updated(index, self.dataset[index])

    def _several(self, indices: list[int]) -> list[Any]:
        samples = self.dataset.__getitems__(indices)
        return [self._updated(i, sample) for i, sample in zip(indices, samples, strict=True)]

    def _updated(self, index: int, sample: Any) -> Any:
        """Return a sample of the dataset with the layer's mask, if it has one."""
        mask_key, sample_id = mask_and_id(sample)
        if self.layer.numbered or sample_id is None:
            # Also of a tensor; the dataset may have other keys than numbers.
            name = str(index)
            if hasattr(index, "__index__"):
                place = operator.index(index)
                name = str(place + len(self) if place < 0 else place)
        else:
            name = sample_name(sample_id)
        if name not in self.layer:
            self._count_unknown(index, name)
            return sample
        self._unknown = None
        original = sample[mask_key]
        corrected = self.layer.read(name)
        self._check_same_mask(name, as_array(original), corrected)
        changed = _replace_item(sample, mask_key, like(original, corrected))
        soft_key, shares = _soft_mask_of(sample)
        if shares is None:
            return changed
        is_corrected = as_array(original) != corrected
        return _replace_item(changed, soft_key, _as_shares(corrected, shares, is_corrected))

    def _count_unknown(self, index: Any, name: str) -> None:
        """Warn once if all samples have been read, and the layer holds none of them."""
        if self._unknown is None or not hasattr(self.dataset, "__len__"):
            return
        self._unknown.add(int(index) if hasattr(index, "__index__") else index)
        if len(self._unknown) == len(self):
            self._unknown = None
            warnings.warn(
                f"No sample of the dataset is in {self.layer.folder}, so no mask was replaced: "
                f"the layer holds {min(self.layer.ids)!r}, and the dataset {name!r}; give both the "
                "same ids.",
                stacklevel=2,
            )

    def _check_same_mask(self, name: str, original: NDArray[Any], corrected: Mask) -> None:
        if corrected.shape != original.shape:
            raise InputError(
                f"The layer's mask of sample {name} is {corrected.shape}, but the dataset gives "
                f"{original.shape}; resize and augment after updated(), not in the dataset."
            )
        digest = self.layer.facts(name).get("original")
        if digest is not None and digest != mask_digest(original):
            raise InputError(
                f"The dataset's mask of sample {name} is not the mask that was corrected; give the "
                "same samples in the same order and without augmentation; augment after updated()."
            )


def _soft_mask_of(sample: Any) -> tuple[Any, Any]:
    """Return the key or index of a sample's shares of votes, and the shares, or None."""
    named = as_named(sample)
    shares = named.get("soft_mask") if isinstance(named, Mapping) else None
    if shares is None or isinstance(sample, Mapping):
        return "soft_mask", shares
    return next(n for n in range(len(sample)) if sample[n] is shares), shares


def _as_shares(mask: Mask, shares: Any, is_corrected: NDArray[np.bool_]) -> Any:
    """Give all votes of each corrected pixel to its class, and none where it is unlabelled.

    Args:
        mask: `(H, W)` class ids.
        shares: `(K, H, W)` shares of votes, whose type the result has.
        is_corrected: `(H, W)` the pixels whose shares are replaced.

    Raises:
        InputError: If they are of another shape.
    """
    if np.ndim(shares) < 3 or tuple(shares.shape[-2:]) != mask.shape:
        raise InputError(
            f"A sample's soft_mask is {tuple(np.shape(shares))}; it must be (K, H, W), of the "
            f"mask's {mask.shape[0]} x {mask.shape[1]} pixels."
        )
    classes = np.arange(shares.shape[-3]).reshape(-1, 1, 1)
    votes = mask.astype(np.int64)[None] == classes
    if isinstance(shares, torch.Tensor):
        votes_of_mask = torch.from_numpy(votes).to(shares).reshape(shares.shape)
        replaced = torch.from_numpy(is_corrected).to(shares.device)
        return shares.clone().copy_(torch.where(replaced, votes_of_mask, shares))
    array = np.asarray(shares)
    return np.where(is_corrected, votes.astype(array.dtype).reshape(array.shape), array)


def _replace_item(sample: Any, key: Any, value: Any) -> Any:
    """Copy a sample (a mapping or sequence) with another value for one key."""
    if isinstance(sample, MutableMapping):  # the copy keeps its class
        copied = copy.copy(sample)
        copied[key] = value
        return copied
    if isinstance(sample, Mapping):
        return {**sample, key: value}
    if hasattr(sample, "_fields"):  # a named tuple
        return type(sample)(*(value if n == key else part for n, part in enumerate(sample)))
    items = list(sample)
    items[key] = value
    return tuple(items)


def as_named(sample: Any) -> Any:
    """Turn a named tuple of the known fields into a dict, whatever the order of its fields."""
    if not isinstance(sample, tuple) or not hasattr(sample, "image"):
        return sample
    named = {name: getattr(sample, name) for name in FIELDS if hasattr(sample, name)}
    return named if len(named) == len(sample) else sample  # by place where others are among them


def mask_and_id(sample: Any) -> tuple[Any, Any]:
    """Find the mask and the id in a sample of any dataset.

    Args:
        sample: The sample; see `updated`.

    Returns:
        The key or index of the mask, and the id, or None if there is none.

    Raises:
        InputError: If the sample has an unknown form.
    """
    named = as_named(sample)
    if isinstance(named, Mapping) and {"mask", "label"} & set(named):
        key: Any = "label" if named.get("mask") is None and "label" in named else "mask"
        if not isinstance(sample, Mapping):
            places = range(len(sample))
            return next(n for n in places if sample[n] is named[key]), named.get("id")
        return key, named.get("id")
    if isinstance(sample, tuple | list) and len(sample) in (2, 3):
        last = sample[2] if len(sample) == 3 else None
        return 1, last.get("id") if isinstance(last, Mapping) else last
    form = sorted(sample) if isinstance(sample, Mapping) else type(sample).__name__
    raise InputError(
        f"A sample of the dataset is {form}; to replace its mask by a corrected one, it must be "
        "(image, mask), (image, mask, id) or a dict with mask (or label). Let the dataset return "
        "that form, not the collate function."
    )


def as_array(mask: Any) -> NDArray[Any]:
    """Convert a mask of any common type to `(H, W)` int64."""
    if isinstance(mask, torch.Tensor):  # numpy has no bfloat16
        mask = mask.detach().to("cpu", torch.float64 if mask.is_floating_point() else torch.int64)
    array = np.asarray(mask)
    return array.reshape([side for side in array.shape if side != 1] or [1, 1]).astype(np.int64)


def like(original: Any, mask: Mask) -> Any:
    """Convert a mask to the type and shape of the original one."""
    if isinstance(original, torch.Tensor):
        # A clone keeps the tensor's class, by which torchvision transforms it as a mask. It also
        # keeps metadata such as MONAI's affine, by which it is rotated with its image.
        corrected = original.clone()
        corrected.copy_(torch.from_numpy(mask.astype(np.int64)).reshape(original.shape))
        return corrected
    if isinstance(original, np.ndarray):
        return mask.astype(original.dtype).reshape(original.shape)
    if isinstance(original, Image.Image):
        # To the same mode, since transforms read values by it: a picture of mode L is divided by
        # 255 where one of mode 1 or I is not.
        values = mask.astype(np.asarray(original).dtype)
        picture = Image.fromarray(values.reshape(original.height, original.width))
        if original.mode == "P" and (palette := original.getpalette()) is not None:
            picture.putpalette(palette)
        if picture.mode != original.mode:
            raise InputError(
                f"A mask is a Pillow image of mode {original.mode}, to which a corrected mask "
                "cannot be converted; let the dataset return masks of mode L, or arrays."
            )
        return picture
    return mask
