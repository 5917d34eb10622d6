"""AppRun: a finished run of the app, whose data and network can be rebuilt."""

import copy
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from coseg_lightning.app.trust import check_trust, named_objects
from coseg_lightning.data.annotators import ANNOTATORS
from coseg_lightning.errors import InputError
from coseg_lightning.ranking.outline import IGNORE_INDEX
from coseg_lightning.runs.finished import FinishedRun

if TYPE_CHECKING:
    from torch import nn

    from coseg_lightning.data.datamodule import CoSegDataModule


# Parts of a run's identity that are not settings.
NOT_SET = ("recipe", "samples", "version", "weights_files")


class AppRun(FinishedRun):
    """A finished run of the app, of this or an earlier version.

    Args:
        folder: The run's folder.
        root: The current folder of its data, if the data was moved.
        trust: Whether to import and call everything that the run's configuration names.
            Otherwise only the objects that `coseg_lightning.app.trust` lists are allowed.

    Raises:
        InputError: If the folder holds no finished run, or names an object that is not trusted.
    """

    def __init__(
        self, folder: str | Path, root: str | Path | None = None, *, trust: bool = False
    ) -> None:
        super().__init__(folder)
        self._root = root
        if not trust and not self.has_own_data:  # with own data, nothing can be rebuilt
            check_trust(self.config, self.folder)

    @property
    def has_own_data(self) -> bool:
        """Whether the run was trained on a user's own datamodule."""
        return "_target_" in (self.config.get("data") or {})

    @property
    def cfg(self) -> DictConfig:
        """The configuration of the run.

        Raises:
            InputError: If the run was started from Python, or on a user's own datamodule.
        """
        if self.has_own_data:
            raise InputError(
                f"{self.folder} was trained on your own datamodule, whose images cannot be read "
                f"here; use the network in {self.folder / 'model'} with that datamodule."
            )
        if not self.is_of_the_app:
            raise InputError(
                f"{self.folder} was run from Python, so its data and networks cannot be rebuilt "
                "here; use them in Python."
            )
        config = self.config
        if self._root:
            new = str(Path(self._root).expanduser().absolute())
            config = moved(config, config["data"]["root"], new)
        cfg: DictConfig = OmegaConf.create(config)
        if "retraining_loss" not in cfg.method and self.version == "0.1.0":
            cfg.method.retraining_loss = "cross_entropy"  # the app's default in that version
        if cfg.data.get("normalization") == "auto":  # later runs record the numbers
            cfg.data.normalization = normalization_before(cfg)
        return cfg

    def data(self, redrawn: Collection[str] = ()) -> "CoSegDataModule":
        """Build the run's data with the masks given to the run, without its corrections.

        Args:
            redrawn: Training samples whose mask files may have changed since the run.

        Raises:
            InputError: If the data is missing or was changed.
        """
        from coseg_lightning.app.build import make_data

        if "fold" in self.config:
            raise InputError(
                f"{self.folder} is one fold of a run, whose parts are not drawn again here; give "
                f"the folder of the whole run, {self.folder.parent}."
            )
        # Unusable files need not be listed again, since the identity shows any change.
        folder = self.folder if self.noise is None else self.noise.parent
        everything = "folds" in self.summary or self.is_audit  # these judge all masks
        data = make_data(self.cfg, folder, everything=everything, tells_problems=False)
        before = self.samples
        changed = [
            f"{part}: {now} (it was {before.get(part)})"
            for part, now in data.identity().items()
            if now != before.get(part)
        ]
        if changed and not self._only_redrawn(data, redrawn):
            raise InputError(
                f"The data of {self.folder} has changed: {'; '.join(changed)}. Restore it, or "
                "start a new run on the changed data."
            )
        if changed:
            self._check_drawn_anew(data)
        return data

    @property
    def _takes_redrawn(self) -> bool:
        """Whether a retraining may take masks drawn anew in their place, and those are images."""
        is_retrained = not (self.is_audit or "folds" in self.summary)
        return is_retrained and OmegaConf.select(self.cfg, "data.source.tile") is None

    def _check_drawn_anew(self, data: "CoSegDataModule") -> None:
        """Raise an `InputError` if a changed mask has unlabelled pixels but no class."""
        index = {sample_id: n for n, sample_id in enumerate(data.given_samples().ids)}
        for sample_id in sorted(self.drawn_anew(data) & index.keys()):
            mask = data.given_samples().mask(index[sample_id])
            if set(np.unique(mask).tolist()) == {0, IGNORE_INDEX}:
                raise InputError(
                    f"The redrawn mask of {sample_id} holds only 0 and 255, but the other masks "
                    "hold class ids, where 255 means unlabelled; save it with 0 and 1, or put it "
                    "into the folder masks of the review."
                )

    def drawn_anew(self, data: "CoSegDataModule") -> set[str]:
        """Return the training samples whose mask files have changed since the run."""
        if not self._takes_redrawn:
            return set()
        before = self.file_digests
        now = data.file_digests
        return {i for i, (_, mask) in now.items() if before.get(i, ("", mask))[1] != mask}

    def _only_redrawn(self, data: "CoSegDataModule", redrawn: Collection[str]) -> bool:
        """Whether the data only differs in masks of the given training samples.

        Raises:
            InputError: If masks of other samples differ as well.
        """
        if not self._takes_redrawn:
            return False
        before, now = self.file_digests, data.file_digests
        parts = (self.samples.keys() | data.identity().keys()) - {"train", ANNOTATORS}
        others = [part for part in parts if self.samples.get(part) != data.identity().get(part)]
        images = {i: image for i, (image, _) in now.items()}
        same_images = images == {i: image for i, (image, _) in before.items()}
        if not before or others or not same_images:
            return False
        unnamed = sorted(self.drawn_anew(data) - set(redrawn))
        if unnamed:
            more = f" and {len(unnamed) - 3} more" if len(unnamed) > 3 else ""
            raise InputError(
                f"The data of {self.folder} has changed, in the masks of {', '.join(unnamed[:3])}"
                f"{more}; restore them, or retrain with a review that says redraw for them, and "
                "draws none."
            )
        return bool(redrawn)

    def network(self) -> "nn.Module":
        """Load the run's network, in evaluation mode.

        Raises:
            InputError: If the network cannot be rebuilt, or its weights do not fit.
        """
        import segmentation_models_pytorch as smp
        from hydra.utils import instantiate
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from coseg_lightning.files.images import decoding

        folder = self.folder / "model"
        if self.is_audit:
            raise InputError(
                f"{self.folder} is an audit, which keeps no network; give the folder of a run."
            )
        if "folds" in self.summary:
            raise InputError(
                f"{self.folder} has one network per fold, but none for all of them; give the "
                f"folder of one fold, such as {self.folder / 'fold_1'}."
            )
        network: nn.Module
        try:
            if (folder / "config.json").is_file():
                network = smp.from_pretrained(str(folder))
            else:
                cfg = self.cfg.model
                network = instantiate(cfg, **_without_download(cfg), _convert_="all")
                with decoding(folder / "model.safetensors", "weights"):
                    network.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"{folder} cannot be loaded; restore the run's folder.") from error
        return network.eval()

    def peer(self, name: str) -> "nn.Module":
        """Load one of the two peers at the end of robust training, in evaluation mode.

        Args:
            name: `net_a` or `net_b`.

        Raises:
            InputError: If its weights are missing, or do not fit.
        """
        from hydra.utils import instantiate

        from coseg_lightning.files.checkpoints import check_fits
        from coseg_lightning.networks.mirror import Mirror
        from coseg_lightning.runs.folder import stage_weights

        other = self.cfg.get("peer_b") if name == "net_b" else None
        model = other or self.cfg.model
        network: nn.Module = instantiate(model, **_without_download(model), _convert_="all")
        if isinstance(network, Mirror):
            return Mirror(self.peer("net_a")).eval()
        folder = self.origin.folder / "robust_training"
        state = stage_weights(folder, of=f"{name}.")
        check_fits(state, network, folder)
        network.load_state_dict(state)
        return network.eval()


def settings_begun_with(folder: str | Path, now: DictConfig, *, trust: bool) -> DictConfig | None:
    """Read the settings with which a run of the app was started, finished or not.

    Args:
        folder: The run's folder.
        now: The settings of the command, which may name objects too.
        trust: See `AppRun`.

    Returns:
        The settings, or None if the folder holds no run, or a run that was started from Python.

    Raises:
        InputError: If they cannot be read, or name an object that is not trusted.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} was changed and cannot be read; restore it.") from error
    settings = {key: value for key, value in config.items() if key not in NOT_SET}
    if not {"data", "model", "method", "trainer"} <= settings.keys() or "reviewed_run" in config:
        return None
    if not trust:
        named_now = named_objects(OmegaConf.to_container(now))
        check_trust(settings, Path(folder), {name for _, name in named_now})
    return OmegaConf.create(settings)


def moved(value: Any, old: Any, new: str) -> Any:
    """Replace the data's folder in all values of a configuration.

    Args:
        value: The configuration, or a part of it.
        old: The folder as recorded.
        new: Its place now.
    """
    if isinstance(value, dict):
        return {key: moved(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [moved(part, old, new) for part in value]
    return new if value == old else value


def normalization_before(cfg: DictConfig) -> Any:
    """Return what `auto` meant before runs recorded the numbers.

    Two peers of different statistics got none, and no encoder's weights had any of their own.
    """
    from coseg_lightning.networks.build import default_encoder
    from coseg_lightning.networks.encoders import pretraining_statistics

    found = []
    for model in (cfg.model, cfg.get("peer_b") or cfg.model):
        encoder = model.get("encoder_name") or default_encoder(str(model.get("name")))
        if encoder.startswith("timm-tf_efficientnet_lite"):
            encoder = "resnet18"  # they had ImageNet's statistics
        is_pretrained = model.get("encoder_weights") is not None
        channels = cfg.data.in_channels
        found.append(pretraining_statistics(encoder, channels) if is_pretrained else None)
    if found[0] is None or found[0] != found[1]:
        return "image"
    return [list(values) for values in found[0]]


def without_pretraining(cfg: DictConfig) -> DictConfig:
    """Copy settings so that networks are built without pretrained weights, for others to load."""
    copied = copy.deepcopy(cfg)
    for group in ("model", "peer_b"):
        if copied.get(group):
            copied[group].update(_without_download(copied[group]))
    return copied


def _without_download(model: DictConfig) -> dict[str, None]:
    """Return the arguments that build a network without pretrained weights."""
    target = str(model["_target_"])
    if target.startswith("torchvision.models."):
        return {"weights": None, "weights_backbone": None}
    is_smps = target.startswith("segmentation_models_pytorch.")
    return {"encoder_weights": None} if is_smps or "encoder_weights" in model else {}
