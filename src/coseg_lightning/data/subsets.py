"""Datasets made from others: one without some samples, and several joined into one."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from coseg_lightning.data.annotators import SeveralMasks, annotators_of, several_of
from coseg_lightning.errors import InputError
from coseg_lightning.files.naming import ids_of
from coseg_lightning.labels.masks import Mask, MaskedImages


class SomeImages:
    """`MaskedImages` without some of their samples.

    Args:
        dataset: The images and masks.
        excluded: The ids of the samples that are left out.

    Attributes:
        digest: The digest of the whole dataset, if it has one.
        tiles: The tiles, if the samples are tiles of large images.
        annotators: Who drew the masks, see `FolderImages`.
        several: The samples with several masks, see `FolderImages`.
    """

    def __init__(self, dataset: MaskedImages, excluded: Collection[str]) -> None:
        self.dataset = dataset
        self._indices = [
            index for index, sample_id in enumerate(dataset.ids) if sample_id not in excluded
        ]
        self.ids = [dataset.ids[index] for index in self._indices]
        self.digest = getattr(dataset, "digest", None)
        self.tiles = getattr(dataset, "tiles", None)
        named, several = annotators_of(dataset), several_of(dataset)
        self.annotators = {i: named[i] for i in self.ids if i in named}
        self.several = None if several is None else several.only(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """Return the image of one sample."""
        return self.dataset.image(self._indices[index])

    def mask(self, index: int) -> Mask:
        """Return the mask of one sample."""
        return self.dataset.mask(self._indices[index])


def identity_of(dataset: MaskedImages) -> str:
    """Identify a dataset, so that changes are noticed.

    Returns:
        The number of samples, and a digest of their ids and of the dataset's `digest`, if any.
    """
    content = (list(dataset.ids), getattr(dataset, "digest", None))
    digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=6).hexdigest()
    return f"{len(dataset.ids)} samples {digest}"


class JoinedImages:
    """Several `MaskedImages`, one after the other.

    Args:
        parts: The images and masks, in order.

    Attributes:
        digest: The digests of all parts, or None if a part has none.
        tiles: The first part's tiles, if the samples are tiles of large images.
        file_digests: The file digests of all parts, see `FolderImages`.
        annotators: Who drew the masks of all parts, see `FolderImages`.
        several: The samples with several masks, see `FolderImages`.
    """

    def __init__(self, parts: Sequence[MaskedImages]) -> None:
        self.file_digests = {
            sample_id: pair
            for part in parts
            for sample_id, pair in getattr(part, "file_digests", {}).items()
        }
        self.ids = [sample_id for part in parts for sample_id in part.ids]
        self._indices = [(part, index) for part in parts for index in range(len(part.ids))]
        digests = [getattr(part, "digest", None) for part in parts]
        self.digest = None if None in digests else " ".join(map(str, digests))
        self.tiles = getattr(parts[0], "tiles", None) if parts else None
        self.annotators = {i: name for part in parts for i, name in annotators_of(part).items()}
        self.several: SeveralMasks | None = None
        for several in filter(None, map(several_of, parts)):
            self.several = several if self.several is None else self.several.joined(several)

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """Return the image of one sample."""
        part, index_in_part = self._indices[index]
        return part.image(index_in_part)

    def mask(self, index: int) -> Mask:
        """Return the mask of one sample."""
        part, index_in_part = self._indices[index]
        return part.mask(index_in_part)


def kinds_of_samples(
    dataset: MaskedImages, kinds: Mapping[str, str] | None
) -> dict[str, str] | None:
    """Return the kind of each sample by its id; a tile is of its image's kind.

    Raises:
        InputError: If a sample has no kind.
    """
    if kinds is None:
        return None
    tiles = getattr(dataset, "tiles", None)
    known_as = ids_of(kinds, dataset.ids)
    kinds = {known_as[i]: kind for i, kind in kinds.items()}
    kinds = dict(kinds) if tiles is None else tiles.with_kinds(kinds)
    unnamed = [sample_id for sample_id in dataset.ids if sample_id not in kinds]
    if unnamed:
        raise InputError(
            f"kinds has no kind for {unnamed[0]!r}; give the kind of every training sample, or "
            "leave kinds out."
        )
    return kinds
