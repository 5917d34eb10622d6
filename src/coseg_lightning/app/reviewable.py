"""Reviewable: the masks of a run or an audit, worst first, with what the networks would draw."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.rebuild import AppRun
from coseg_lightning.app.trust import check_trust
from coseg_lightning.errors import InputError
from coseg_lightning.exchanged.tasks import Classes
from coseg_lightning.files.csv import read_table
from coseg_lightning.labels.masks import Mask, MaskedImages
from coseg_lightning.labels.store import LabelStore


class Reviewable:
    """The ranked masks of a finished run or of an audit, read from its folder.

    Args:
        folder: The folder of the run or the audit.
        root: Where its data is now, if it was moved.
        trust: See `AppRun`.

    Attributes:
        worst_first: The ids of all ranked samples.
        config: The settings.

    Raises:
        InputError: If the folder is none of a run or an audit, it ranked nothing, or its data is
            missing or was changed.
    """

    def __init__(
        self, folder: str | Path, root: str | Path | None = None, *, trust: bool = False
    ) -> None:
        self.folder = Path(folder)
        # An audit is no run that can go on, so it has no run.json.
        is_run = (self.folder / "run.json").is_file()
        read = _read_run if is_run else _read_audit
        self.config, self._images, self._corrections = read(self.folder, root, trust=trust)
        proposals = self.folder / "proposals"
        is_there = LabelStore.is_finished(proposals)
        self._proposals = LabelStore(proposals) if is_there else None
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
    def classes(self) -> Classes:
        """The names of the classes."""
        data = self.config.data
        count = max(2, int(data.get("classes", 2)))  # a single output has two classes
        return Classes.of(data.get("class_names"), count)

    @property
    def data_folders(self) -> list[Path]:
        """The folders of the images and of the masks, if they are known."""
        data = self.config.data
        parts = [data.get(key) for key in ("images", "masks") if data.get("root")]
        return [Path(str(data.root), str(part)).expanduser() for part in parts if part]

    def image(self, sample_id: str) -> NDArray[Any]:
        """Return a sample's image at its own size, any bands and range."""
        return self._images.image(self._index[sample_id])

    def mask(self, sample_id: str) -> Mask:
        """Return a sample's mask as it was given."""
        return self._images.mask(self._index[sample_id])

    def proposal(self, sample_id: str) -> Mask | None:
        """Return the correction of a sample's mask, else what the networks would draw, if known.

        A correction that changed nothing is none.
        """
        given = self.mask(sample_id)
        for layer in self._corrections:
            if sample_id in layer and not np.array_equal(mask := layer.read(sample_id), given):
                return mask
        if self._proposals is not None and sample_id in self._proposals:
            return self._proposals.read(sample_id)
        return None


class _Read(NamedTuple):
    """Settings, samples as given, and the layers with corrections, the uppermost first."""

    config: DictConfig
    images: MaskedImages
    corrections: list[LabelStore]


def _read_run(folder: Path, root: str | Path | None, *, trust: bool) -> _Read:
    run = AppRun(folder, root=root, trust=trust)
    layers = [LabelStore(layer) for layer in reversed(run.layers)]
    samples = run.data().given_samples()
    return _Read(run.cfg, samples.dataset, layers)


def _read_audit(folder: Path, root: str | Path | None, *, trust: bool) -> _Read:
    from coseg_lightning.app.build import read_parts
    from coseg_lightning.data.subsets import JoinedImages
    from coseg_lightning.labels.updated import UpdatedImages

    path = folder / "summary.json"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no finished run and no audit (no summary.json); give one."
        )
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8"))["config"])
        if not {"data", "noise"} <= config.keys() or "source" not in config["data"]:
            raise KeyError("data")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is none of a run or an audit; restore it.") from error
    if not trust:
        check_trust(config, folder)
    if root:
        config = _moved(config, str(Path(root).expanduser().absolute()))
    cfg = OmegaConf.create(config)
    images: MaskedImages = JoinedImages(
        [part for part in read_parts(cfg, None) if part is not None]
    )
    noise = folder / "noise"
    if LabelStore.is_finished(noise):
        images = UpdatedImages(images, LabelStore(noise))
    return _Read(cfg, images, [])


def _moved(config: dict[str, Any], root: str) -> dict[str, Any]:
    """Replace the folder of the data wherever the settings name it."""
    before = config["data"].get("root")

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(part) for key, part in value.items()}
        if isinstance(value, list):
            return [replaced(part) for part in value]
        return root if before is not None and value == before else value

    return {key: replaced(value) for key, value in config.items()}
