"""Label layers on disk: opening and writing them."""

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coseg_lightning.errors import InputError, renamed_argument
from coseg_lightning.files.atomic import replacing, write_text
from coseg_lightning.files.images import read_indices, smallest_type
from coseg_lightning.labels.ids import check_ids, label_path
from coseg_lightning.labels.masks import Mask


class LabelStore:
    """A label layer: a folder with one PNG mask per sample and a `manifest.json`.

    The manifest is written last. A folder without one, or with one that says `complete: false`, is
    an unfinished layer and is not opened. The layer holds masks for some samples of a dataset.
    `updated` returns the dataset with these masks in place of its own.

    Args:
        folder: A finished layer.

    Attributes:
        numbered: Whether the samples have no ids, and are named by their index in the dataset.

    Raises:
        InputError: If the folder is not a finished layer.
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
                "make the layer again in a new folder."
            )
        check_ids(manifest["labels"])  # the layer may come from somebody else
        if not all(isinstance(facts, dict) for facts in manifest["labels"].values()):
            raise InputError(
                f"{self.folder / self.MANIFEST} is not the manifest of a label layer; restore or "
                "delete it."
            )
        self._facts: dict[str, dict[str, Any]] = manifest["labels"]
        self.numbered = bool(manifest.get("numbered", False))

    def only(self, ids: Collection[str]) -> "LabelStore":
        """Return the layer with the masks of some samples alone."""
        part = copy.copy(self)
        vars(part)["_facts"] = {i: facts for i, facts in self._facts.items() if i in ids}
        return part

    @classmethod
    def create(cls, folder: str | Path) -> "LabelStoreWriter":
        """Start a new layer, or restart one whose writing was interrupted.

        Args:
            folder: A new or empty folder, or one with an unfinished layer.

        Returns:
            The writer of the layer.

        Raises:
            InputError: If the folder holds anything else, such as a finished layer or other files.
        """
        cls.check_free(folder)
        writer = LabelStoreWriter(Path(folder))
        write_text(Path(folder) / cls.MANIFEST, json.dumps({"complete": False, "labels": {}}))
        return writer

    @classmethod
    def check_free(cls, folder: str | Path) -> None:
        """Raise the errors of `create` without creating anything."""
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
        """The samples with a mask in this layer."""
        return list(self._facts)

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._facts

    def __len__(self) -> int:
        return len(self._facts)

    @renamed_argument("id", "sample_id")
    def facts(self, sample_id: str) -> dict[str, Any]:
        """Return the values that were recorded with a sample's mask when it was written."""
        return self._facts[sample_id]

    @renamed_argument("id", "sample_id")
    def read(self, sample_id: str) -> Mask:
        """Read the mask of one sample, `(H, W)` uint8 or uint16."""
        return read_indices(label_path(self.folder, sample_id))


class LabelStoreWriter:
    """Writes the masks of a new layer. Several processes may each write some of the masks.

    Args:
        folder: The layer's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, sample_id: str, mask: Mask) -> None:
        """Write one mask losslessly and atomically.

        Args:
            sample_id: The sample.
            mask: `(H, W)` integers, or whole floats.

        Raises:
            InputError: If the mask is none, or the id cannot be a file's name.
        """
        mask = np.asarray(mask)
        if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "buif":
            raise InputError(
                f"The mask of {sample_id} is {mask.dtype} of shape {mask.shape}; give (H, W) "
                "class ids."
            )
        if mask.dtype.kind == "f" and not np.array_equal(mask, mask.round()):  # NaN is no number
            raise InputError(
                f"The mask of {sample_id} holds values that are no whole numbers; give class ids."
            )
        image = Image.fromarray(smallest_type(mask))
        with replacing(label_path(self.folder, sample_id)) as temporary:
            image.save(temporary, format="PNG")

    def finish(
        self,
        facts: Mapping[str, Mapping[str, Any]],
        *,
        run_id: str | None = None,
        numbered: bool = False,
    ) -> LabelStore:
        """Write the manifest, which completes the layer.

        Args:
            facts: Plain values to record with each mask, by sample.
            run_id: The run that wrote the layer.
            numbered: Whether the samples have no ids, and are named by their index.

        Returns:
            The finished layer.
        """
        manifest: dict[str, Any] = {} if run_id is None else {"run": run_id}
        if numbered:
            manifest["numbered"] = True
        labels = {sample_id: dict(facts[sample_id]) for sample_id in sorted(facts)}
        manifest |= {"complete": True, "labels": labels}
        manifest["digest"] = _manifest_digest(manifest)
        write_text(self.folder / LabelStore.MANIFEST, json.dumps(manifest, indent=1))
        return LabelStore(self.folder)


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
