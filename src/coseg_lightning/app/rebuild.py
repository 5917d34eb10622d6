"""AppRun: a finished run of the app, whose data and network can be made again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from coseg_lightning.errors import InputError
from coseg_lightning.runs.finished import FinishedRun

if TYPE_CHECKING:
    from torch import nn

    from coseg_lightning.data.datamodule import CoSegDataModule


class AppRun(FinishedRun):
    """A finished run of the app, of this version or of an earlier one.

    Args:
        folder: The run's.
        root: Where its data lies now, if it was moved.

    Raises:
        InputError: If it holds no finished run.
    """

    def __init__(self, folder: str | Path, root: str | Path | None = None) -> None:
        super().__init__(folder)
        self._root = root

    @property
    def cfg(self) -> DictConfig:
        """The configuration of the run.

        Raises:
            InputError: If it was started from Python.
        """
        if not self.is_of_the_app:
            raise InputError(
                f"{self.folder} was run from Python, with data and networks that it cannot make "
                "again; use them there."
            )
        config = self.config
        if self._root:
            new = str(Path(self._root).expanduser().absolute())
            config = _moved(config, config["data"]["root"], new)
        cfg: DictConfig = OmegaConf.create(config)
        return cfg

    def data(self) -> "CoSegDataModule":
        """The run's data, under the masks that it was given: without its corrections.

        Raises:
            InputError: If it is not there, or not what it was.
        """
        from coseg_lightning.app.build import make_data

        # What was inspected before is known to be as it was, or else shown by its identity.
        folder = self.folder if self.noise is None else self.noise.parent
        data = make_data(self.cfg, folder, tells_problems=False)
        before = self.samples
        changed = [
            f"{part}: {now} (it was {before.get(part)})"
            for part, now in data.identity().items()
            if now != before.get(part)
        ]
        if changed:
            raise InputError(
                f"The data of {self.folder} is not what it was: {'; '.join(changed)}. Restore it, "
                "or run anew on the data as it is."
            )
        return data

    def network(self) -> "nn.Module":
        """The run's network, in evaluation mode.

        Raises:
            InputError: If it cannot be made again, or its weights do not fit it.
        """
        import segmentation_models_pytorch as smp
        from hydra.utils import instantiate
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from coseg_lightning.files.images import decoding

        folder = self.folder / "model"
        network: nn.Module
        try:
            if (folder / "config.json").is_file():
                network = smp.from_pretrained(str(folder))
            else:
                # Its weights are here: making it must not download others first.
                no_download = (
                    {"encoder_weights": None} if "encoder_weights" in self.cfg.model else {}
                )
                network = instantiate(self.cfg.model, **no_download)
                with decoding(folder / "model.safetensors", "weights"):
                    network.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise InputError(f"{folder} cannot be loaded; restore the run's folder.") from error
        return network.eval()


def _moved(value: Any, old: Any, new: str) -> Any:
    """A configuration whose data lies elsewhere; several of its values name the place."""
    if isinstance(value, dict):
        return {key: _moved(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, old, new) for part in value]
    return new if value == old else value
