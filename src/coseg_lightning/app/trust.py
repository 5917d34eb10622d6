"""Restricts the objects that the folder of a run can import and call, as others may have made it.

A configuration names Python objects by `_target_` and by some settings. Building them runs code.
Without consent, only objects on a short list are built.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.modules.renamed import home_now

# Settings, besides `_target_`, that name an object to import.
NAMING = ("method.module", "method.object", "optimizer.name")
# Objects that only build something from plain values.
SAFE = frozenset(
    {
        "coseg_lightning.networks.build_network",
        "coseg_lightning.data.folder.folder_splits",
        "coseg_lightning.data.jsrt.jsrt_splits",
        "coseg_lightning.data.phantom.phantom_splits",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.loggers.TensorBoardLogger",
        "pytorch_lightning.loggers.WandbLogger",
        "segmentation_models_pytorch.create_model",
        "timm.create_model",
    }
)
# Modules whose classes are safe. Their functions are not, since some read or write files.
SAFE_CLASSES_OF = (
    "coseg_lightning.noise",
    "segmentation_models_pytorch",
    "torch.optim",
    "torch.optim.lr_scheduler",
)
SAFE_FUNCTIONS_OF = ("torchvision.models.segmentation",)
# Arguments with which safe objects would read a file or contact a server.
UNSAFE_ARGUMENTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "hf_hub")


def check_trust(config: Mapping[str, Any], folder: Path, named_now: Collection[str] = ()) -> None:
    """Refuse a run's configuration that names objects beyond the short list.

    Args:
        config: The configuration in plain values.
        folder: The run's folder, for the message.
        named_now: Objects that the command itself names; these are trusted.

    Raises:
        InputError: If the configuration names such objects.
    """
    for key, text in texts(config):
        if "${" in text:  # a finished run's settings are resolved; this would be resolved again
            raise InputError(
                f"{folder} has {key}={text}, an expression that would be evaluated here; restore "
                "its summary.json."
            )
    for key, name in named_objects(config):
        if name not in named_now and not is_safe(key, name):
            raise InputError(
                f"{folder} names {name} as its {key}, which would be imported or read here; if "
                "you know what it does and trust whoever made the folder, add trust=true."
            )


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Find all texts of a configuration, including keys, with the keys that lead to them."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield key, str(name)
            yield from texts(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from texts(value, f"{key}.{index}")
    elif isinstance(node, str):
        yield key, node


def named_objects(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Find all objects that a configuration imports by name, with the keys that name them."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "_target_" or inner in NAMING or name in UNSAFE_ARGUMENTS:
                if value:
                    yield inner, str(value)
            else:
                yield from named_objects(value, inner)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from named_objects(value, f"{key}.{index}")


def is_safe(key: str, name: str) -> bool:
    """Whether an object may be built without consent.

    Args:
        key: The setting that names it.
        name: The object's full name.
    """
    module, _, last = home_now(name).rpartition(".")
    if key == "method.module":  # only modules of methods are allowed here
        return module == "coseg_lightning" or module.startswith("coseg_lightning.methods.")
    of_module = SAFE_CLASSES_OF if last[:1].isupper() else SAFE_FUNCTIONS_OF
    return name in SAFE or module in of_module
