"""Label layers: masks on disk that lie over a dataset's own masks, which stay untouched."""

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset, Subset

from coseg_lightning.atomic import replacing, write_text
from coseg_lightning.errors import InputError
from coseg_lightning.image_files import read_indices, smallest_type

Mask = NDArray[np.integer[Any]]
LONGEST_ID = 220  # bytes: most disks allow names of 255, and a temporary file's is longer


class MaskedImages(Protocol):
    """Images and their masks at their own resolution: what a label layer lies over.

    Shape:
        `image(i)` is `(H, W)` or `(H, W, C)`, numbers of any type and range; `mask(i)` is
        `(H, W)` integer class ids, 255 where unlabelled.
    """

    @property
    def ids(self) -> Sequence[str]:
        """One unique name a sample, in the dataset's order."""

    def image(self, index: int) -> NDArray[Any]:
        """The image of one sample."""

    def mask(self, index: int) -> Mask:
        """The mask of one sample."""


class LabelStore:
    """A label layer: one PNG a sample in a folder, and `manifest.json` that makes it whole.

    The manifest is written last. A folder without it, or with one that says `complete: false`, is
    a layer that was never finished, and is not opened. The layer holds masks for some of a
    dataset's samples; `updated` puts them in the place of the originals.

    Args:
        folder: A finished layer.

    Raises:
        InputError: If the folder is no finished layer.
    """

    MANIFEST = "manifest.json"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = self._manifest(self.folder)
        if manifest is None or not manifest["complete"]:
            raise InputError(
                f"{self.folder} is not a finished label layer (no complete {self.MANIFEST}); "
                "give the folder that LabelCorrection wrote."
            )
        if manifest.pop("digest", None) != _manifest_digest(manifest):
            raise InputError(
                f"{self.folder / self.MANIFEST} was changed after it was written; restore it, or "
                "have the layer made again in a new folder."
            )
        check_ids(manifest["labels"])  # whoever wrote it
        if not all(isinstance(facts, dict) for facts in manifest["labels"].values()):
            raise InputError(f"{self.folder / self.MANIFEST} is no layer's; restore or delete it.")
        self._facts: dict[str, dict[str, Any]] = manifest["labels"]
        # Whether its samples had no ids, and are named by their place in the dataset.
        self.numbered = bool(manifest.get("numbered", False))

    @classmethod
    def create(cls, folder: str | Path) -> "LabelStoreWriter":
        """Start a new layer, or one again whose writing was interrupted.

        Raises:
            InputError: If the folder holds anything else, such as a finished layer or your masks.
        """
        cls.check_free(folder)
        writer = LabelStoreWriter(Path(folder))
        write_text(Path(folder) / cls.MANIFEST, json.dumps({"complete": False, "labels": {}}))
        return writer

    @classmethod
    def check_free(cls, folder: str | Path) -> None:
        """Raise the error of `create` without creating anything."""
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a new folder for the label layer.")
        manifest = cls._manifest(folder)
        if manifest is not None and manifest["complete"]:
            raise InputError(
                f"{folder} already holds a finished label layer, which is never overwritten; "
                "give a new folder."
            )
        if manifest is None and folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and holds no label layer; give a new folder, so that none "
                "of your files is overwritten."
            )

    @classmethod
    def is_finished(cls, folder: str | Path) -> bool:
        """Whether the folder is a layer that can be opened."""
        manifest = cls._manifest(Path(folder))
        return manifest is not None and bool(manifest["complete"])

    @classmethod
    def _manifest(cls, folder: Path) -> dict[str, Any] | None:
        path = folder / cls.MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest["complete"], bool) and isinstance(manifest["labels"], dict):
                return dict(manifest)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise InputError(f"{path} is not the manifest of a label layer; restore or delete it.")

    @property
    def ids(self) -> list[str]:
        """The samples that have a mask in this layer."""
        return list(self._facts)

    def __contains__(self, id: str) -> bool:
        return id in self._facts

    def __len__(self) -> int:
        return len(self._facts)

    def facts(self, id: str) -> dict[str, Any]:
        """What was recorded about a mask when it was written."""
        return self._facts[id]

    def read(self, id: str) -> Mask:
        """The mask of one sample, `(H, W)` uint8 or uint16."""
        return read_indices(label_path(self.folder, id))


class LabelStoreWriter:
    """Writes the masks of a new layer; several processes may write their own samples' masks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, id: str, mask: Mask) -> None:
        """Write one mask, `(H, W)` integers, losslessly and atomically."""
        image = Image.fromarray(smallest_type(mask))
        with replacing(label_path(self.folder, id)) as temporary:
            image.save(temporary, format="PNG")

    def finish(
        self,
        facts: Mapping[str, Mapping[str, Any]],
        *,
        run_id: str | None = None,
        numbered: bool = False,
    ) -> LabelStore:
        """Write the manifest, with plain values by sample, and open the layer."""
        manifest: dict[str, Any] = {} if run_id is None else {"run": run_id}
        if numbered:
            manifest["numbered"] = True
        labels = {id: dict(facts[id]) for id in sorted(facts)}
        manifest |= {"complete": True, "labels": labels}
        manifest["digest"] = _manifest_digest(manifest)
        write_text(self.folder / LabelStore.MANIFEST, json.dumps(manifest, indent=1))
        return LabelStore(self.folder)


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def label_path(folder: Path, id: str) -> Path:
    """Where a sample's mask lies.

    Raises:
        InputError: If the id is no plain file name, and might lead out of the folder.
    """
    if id in ("", ".", "..") or any(sign in id for sign in "/\\\0"):
        raise InputError(
            f"The sample id {id!r} cannot be a file name; use ids without slashes, backslashes and "
            "dots alone."
        )
    try:
        length = len(id.encode())
    except UnicodeEncodeError as error:
        raise InputError(
            f"The sample id {id!r} is no UTF-8, as names from another system may be; rename it."
        ) from error
    if length > LONGEST_ID:
        raise InputError(
            f"The sample id {id[:40]}... is {length} bytes long, too long for a file "
            f"name; use ids of at most {LONGEST_ID}."
        )
    return folder / f"{id}.png"


def check_ids(ids: Iterable[str]) -> None:
    """Raise an `InputError` unless every id can be a file name, and each one of its own."""
    names = FileNames()
    names.add(ids)


class FileNames:
    """The ids that files are named by, as far as they were seen."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def add(self, ids: Iterable[str]) -> None:
        """Raise an `InputError` unless every id can be a file name, and each one of its own."""
        for id in ids:
            label_path(Path(), id)
            other = self._seen.setdefault(on_any_disk(id), id)
            if other != id:
                raise InputError(same_on_some_disks(other, id))


def on_any_disk(id: str) -> str:
    """What ids share that would be one file where letter case or Unicode forms do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", id).casefold())


def same_on_some_disks(one: str, other: str) -> str:
    """That two ids would be one file."""
    return (
        f"The sample ids {one} and {other} would be one file on disks that do not tell letter case "
        "apart; rename one."
    )


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


def sample_name(id: Any) -> str:
    """A sample's id as text, also where it comes as a number in a tensor."""
    return str(id.item() if hasattr(id, "item") else id)


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


def mask_digest(mask: NDArray[Any]) -> str:
    """A short digest of a mask's class ids, whatever type holds them."""
    content = np.ascontiguousarray(mask.astype(np.uint16))
    return hashlib.blake2b(content.tobytes(), digest_size=8).hexdigest()


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
