"""Reviewable: the masks of a run or an audit, worst first, with the networks' proposals."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.tasks import Classes
from coseg_lightning.files.csv import read_table
from coseg_lightning.labels.masks import Mask, with_unlabelled
from coseg_lightning.labels.store import LabelStore


class Reviewable:
    """The ranked masks of a finished run or of an audit, read from its folder.

    Args:
        folder: The folder of the run or the audit.
        root: The current place of its data, if it was moved.
        trust: See `AppRun`.

    Attributes:
        worst_first: The ids of all ranked samples.
        config: The settings.

    Raises:
        InputError: If the folder does not belong to a run or an audit, if nothing was ranked, or
            if the data is missing or was changed.
    """

    def __init__(
        self, folder: str | Path, root: str | Path | None = None, *, trust: bool = False
    ) -> None:
        self.folder = Path(folder)
        run = AppRun(folder, root=root, trust=trust)
        self.config = run.cfg
        data = run.data()
        self._images = data.given_samples().dataset
        parts = [data.samples(part) for part in ("val", "test")]
        self._others = [sample_id for part in parts if part is not None for sample_id in part.ids]
        self._corrections = [LabelStore(layer) for layer in reversed(run.layers)]
        self._proposals = run.proposals
        self._index = {sample_id: index for index, sample_id in enumerate(self._images.ids)}
        self.worst_first = self._ranked()

    def _ranked(self) -> list[str]:
        path = self.folder / "scores.csv"
        if not path.is_file():
            raise InputError(
                f"{self.folder} has no scores.csv, since nothing was ranked; give a run or an "
                "audit that ranked its masks."
            )
        try:
            rows = sorted(read_table(path, ["id", "rank"]), key=lambda row: int(row["rank"]))
        except ValueError as error:
            raise InputError(f"{path} was changed and cannot be read; restore it.") from error
        ids = [row["id"] for row in rows]
        lost = [sample_id for sample_id in ids if sample_id not in self._index]
        if lost or not ids or len(set(ids)) != len(ids):
            named = f"the sample {lost[0]}, which is not in the data" if lost else "no samples"
            raise InputError(f"{path} names {named}; restore it, or give root=DIR.")
        return ids

    @property
    def not_ranked(self) -> list[str]:
        """The ids of the data's other samples, such as test images."""
        ranked = set(self.worst_first)
        return [i for i in (*self._images.ids, *self._others) if i not in ranked]

    @property
    def classes(self) -> Classes:
        """The names of the classes."""
        data = self.config.data
        count = max(2, int(data.get("classes", 2)))  # a single output has two classes
        return Classes.of(data.get("class_names"), count)

    @property
    def data_folders(self) -> list[Path]:
        """The folders of the images and masks, if known."""
        data = self.config.data
        parts = [data.get(key) for key in ("images", "masks") if data.get("root")]
        return [Path(str(data.root), str(part)).expanduser() for part in parts if part]

    def image(self, sample_id: str) -> NDArray[Any]:
        """Return a sample's image at its own size, with any bands and range."""
        return self._images.image(self._index[sample_id])

    def mask(self, sample_id: str) -> Mask:
        """Return a sample's mask as it was given."""
        return self._images.mask(self._index[sample_id])

    def proposal(self, sample_id: str) -> Mask | None:
        """Return the correction of a sample's mask, or else the networks' proposal, if known.

        A correction that changed nothing does not count, and of several the last one does. What
        the given mask leaves unlabelled stays so.
        """
        given = self.mask(sample_id)
        layer = next((layer for layer in self._corrections if sample_id in layer), None)
        if layer is not None and not np.array_equal(mask := layer.read(sample_id), given):
            return mask
        if self._proposals is not None and sample_id in self._proposals:
            return with_unlabelled(self._proposals.read(sample_id), given)
        return None
