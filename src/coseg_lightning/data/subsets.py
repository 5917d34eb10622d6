"""Parts of datasets, and several as one."""

from collections.abc import Collection, Sequence
from typing import Any

from numpy.typing import NDArray

from coseg_lightning.labels.masks import Mask, MaskedImages


class SomeImages:
    """`MaskedImages` without some of them."""

    def __init__(self, dataset: MaskedImages, left_out: Collection[str]) -> None:
        self.dataset = dataset
        self._places = [i for i, id in enumerate(dataset.ids) if id not in left_out]
        self.ids = [dataset.ids[i] for i in self._places]
        self.digest = getattr(dataset, "digest", None)  # of all of them

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """The image of one sample."""
        return self.dataset.image(self._places[index])

    def mask(self, index: int) -> Mask:
        """The mask of one sample."""
        return self.dataset.mask(self._places[index])


class JoinedImages:
    """Several `MaskedImages`, one after the other."""

    def __init__(self, parts: Sequence[MaskedImages]) -> None:
        self.ids = [id for part in parts for id in part.ids]
        self._places = [(part, index) for part in parts for index in range(len(part.ids))]
        digests = [getattr(part, "digest", None) for part in parts]
        self.digest = None if None in digests else " ".join(map(str, digests))

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """The image of one sample."""
        part, place = self._places[index]
        return part.image(place)

    def mask(self, index: int) -> Mask:
        """The mask of one sample."""
        part, place = self._places[index]
        return part.mask(place)
