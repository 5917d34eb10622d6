"""What the folder of a run may name to be imported and called: it may come from somebody else.

A configuration names Python objects, by `_target_` and by some settings. Making them runs code. So
only those of a short list are made without asking.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from coseg_lightning.errors import InputError
from coseg_lightning.modules.renamed import home_now

# Settings that name an object to import, beside `_target_`.
NAMING = ("method.module", "method.object", "optimizer.name")
# Objects that only build what their name says from plain values.
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
# Arguments by which the safe ones would read a file or ask a server.
UNSAFE_ARGUMENTS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "hf_hub")


def check_trust(config: Mapping[str, Any], folder: Path, named_now: Collection[str] = ()) -> None:
    """Refuse a run's configuration that names objects beyond the short list.

    Args:
        config: The configuration in plain values.
        folder: The run's folder, for the message.
        named_now: Objects that the command itself names, which are trusted.

    Raises:
        InputError: If it does.
    """
    for key, text in texts(config):
        if "${" in text:  # a finished run's settings are resolved; these would be again, now
            raise InputError(
                f"{folder} has {key}={text}, which would be computed here; restore its "
                "summary.json."
            )
    for key, name in named_objects(config):
        if name not in named_now and not is_safe(key, name):
            raise InputError(
                f"{folder} names {name} as its {key}, which would be imported or read here; if "
                "you know what it does and trust whoever made the folder, add trust=true."
            )


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Find all texts of a configuration, keys too, with the keys that lead to them."""
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
    """Find all objects that a configuration names to be imported, with the keys that name them."""
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
    """Whether an object may be made without asking.

    Args:
        key: The setting that names it.
        name: Its full name.
    """
    module, _, last = home_now(name).rpartition(".")
    if key == "method.module":  # only modules of a method can be that
        return module == "coseg_lightning" or module.startswith("coseg_lightning.methods.")
    of_module = SAFE_CLASSES_OF if last[:1].isupper() else SAFE_FUNCTIONS_OF
    return name in SAFE or module in of_module
