"""The model card of a network: its training data, its quality, and its use.

It only states facts from the run's summary. It names no image and no person, and only the last part
of any folder. It can therefore be published with the network.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import PureWindowsPath
from typing import Any

import yaml

from coseg_lightning import __version__
from coseg_lightning.modules.recipe import Recipe
from coseg_lightning.report.results import (
    BASELINES,
    MASKS,
    certainty,
    method_settings,
    never_right,
)

MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "accuracy": "Pixel accuracy",
    "hd95": "HD95",
    "surface_distance": "Mean surface distance",
}
LENGTHS = ("hd95", "surface_distance")
LIBRARIES = {"smp": "segmentation-models-pytorch", "onnx": "onnx"}  # all others: pytorch
# Descriptions of the test masks, by their name in the summary.
TEST_MASKS = {
    MASKS[True]: "trusted masks: somebody checked them, or they are an experiment's original masks",
    MASKS[False]: (
        "masks of the same source as the training masks, which nobody checked. The figures say how "
        "well the network agrees with these masks, not with the truth"
    ),
    MASKS[None]: "the test masks as they were given; the run does not know whether they are right",
}
# Settings that define how the files of a folder are read, with their titles.
READING = {
    "bands": "Bands of the files",
    "nodata": "Value of missing pixels",
    "class_ids": "Values of the classes in the mask files",
    "mask_threshold": "Threshold of soft masks",
    "instances": "Values above 0",
    "tile": "Side of the tiles",
    "folds": "Folds",
}
NOTHING = "not stated"


@dataclass(frozen=True)
class Inputs:
    """The images that a network expects.

    Args:
        channels: Number of channels.
        height: Height in training.
        width: Width in training.
        preparation: How an image is prepared, see `preparation_in_words`.
    """

    channels: int
    height: int
    width: int
    preparation: str


@dataclass(frozen=True)
class NetworkFile:
    """The file or folder that the card describes.

    Args:
        name: The name of the file or folder, without its path.
        kind: `smp` for a folder that smp loads; `weights` for a folder with `model.safetensors` and
            `network.json`; or a format of `export`: `onnx`, `torchscript` or `safetensors`.
        outputs: The number of maps that the network returns; None if unknown.
        multiple_of: The number that must divide height and width of the images.
        class_name: The name of the network's class.
    """

    name: str
    kind: str
    outputs: int | None
    multiple_of: int = 1
    class_name: str | None = None

    @property
    def gives_probabilities(self) -> bool:
        """Whether it returns probabilities and only accepts images of one size."""
        return self.kind in ("onnx", "torchscript")


def model_card(
    summary: Mapping[str, Any],
    file: NetworkFile,
    inputs: Inputs | None = None,
    *,
    trained_with: str | None = __version__,
) -> str:
    """Write a model card for the Hugging Face Hub: a YAML header, then Markdown.

    Args:
        summary: The run's summary.
        file: The file or folder to describe.
        inputs: The network's input, if known.
        trained_with: The version of this package that made the run, if known.
    """
    sections = {
        "Intended use": _intended_use(summary),
        "Data": _data(summary),
        "Noise of the training masks": _noise(summary),
        "Training": _training(summary),
        "Test": _test(summary),
        "Limits": _limits(summary),
        "Input and output": _input_and_output(summary, file, inputs),
        "How to load it": _loading(summary, file),
        "Licence": [
            "No licence is stated. Whoever shares this network must choose a licence, and write it "
            "here and as `license:` in the first lines of this file. The images, the masks and "
            "pretrained weights may have licences of their own."
        ],
        "Versions": _versions(file, trained_with),
    }
    parts = [_front_matter(summary, file), f"# {_title(summary, file)}"]
    for title, paragraphs in sections.items():
        parts += [f"## {title}", *paragraphs]
    return "\n\n".join(parts) + "\n"


def plain(value: Any) -> str:
    """Escape a value as one line of text without any markup for Markdown or HTML."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|~$&#!])", r"\\\1", text)


def _front_matter(summary: Mapping[str, Any], file: NetworkFile) -> str:
    measured = [name for name in ("dice", "iou", "accuracy") if _figure(summary, name) is not None]
    content: dict[str, Any] = {
        "library_name": LIBRARIES.get(file.kind, "pytorch"),
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "noisy-labels", "coseg-lightning"],
    }
    if measured:
        content["metrics"] = measured
    text = yaml.safe_dump(content, sort_keys=False)
    return f"---\n# license: fill in the licence before you share the network\n{text}---"


def _title(summary: Mapping[str, Any], file: NetworkFile) -> str:
    return f"Segmentation network: {_network_name(summary, file)}"


def _intended_use(summary: Mapping[str, Any]) -> list[str]:
    return [
        "The network segments 2-D images like those that it was trained on, prepared as described "
        "below. It is meant for research. This card does not show that the network is fit for "
        "clinical use, or for other decisions on which a person's safety depends."
    ]


def _data(summary: Mapping[str, Any]) -> list[str]:
    data = _of(summary, "data")
    what = "tiles" if data.get("tile") else "images"
    sizes = dict(summary.get("samples") or {})
    items = [f"Source: {_source(data)}"]
    if sizes:
        titles = {"train": "training", "val": "validation", "test": "test"}
        items.append("; ".join(f"{titles.get(k, k)}: {n} {what}" for k, n in sizes.items()))
    if _config(summary).get("fold"):
        items.append(
            f"Cross-validation: this is the network of {plain(_config(summary)['fold'])}, and the "
            "test images are those that it did not learn from"
        )
    items.append(f"Classes: {', '.join(_classes(summary))}")
    for name, title in READING.items():
        if data.get(name) is not None:
            items.append(f"{title}: {_shown(data[name])}")
    labels = summary.get("labels")
    if labels:
        items.append(
            f"{labels['images_with_several']} images have masks by several people, fused by "
            f"`{plain(labels['fusion'])}`"
        )
    return [_list(items)]


def _source(data: Mapping[str, Any]) -> str:
    source = str((data.get("source") or {}).get("_target_", ""))
    if source.endswith(".phantom_splits"):
        return "phantoms of chest radiographs, drawn by coseg-lightning"
    if not data.get("root"):
        own = data.get("_target_") or data.get("class")
        return f"the datamodule {plain(own)}" if own else NOTHING
    folder = f"the folder {plain(PureWindowsPath(str(data['root'])).name or 'without a name')}"
    return f"JSRT with SCR, in {folder}" if source.endswith(".jsrt_splits") else folder


def _noise(summary: Mapping[str, Any]) -> list[str]:
    ranking, noise = summary["ranking"], _of(summary, "noise")
    estimate, level = ranking.get("estimate"), ranking["noise_level"]
    if level is None:
        items = ["The method uses no noise level, and none was estimated."]
    elif estimate is None:
        items = [f"The share of bad masks was given as {level:g}. It was not measured."]
    elif estimate["separable"]:
        items = [f"The share of bad masks was {estimate['sentence']}"]
    else:
        cause = str(estimate["sentence"]).partition("; using ")[0]
        items = [
            "The share of bad masks is not known, since the estimate is not reliable: "
            f"{cause.removeprefix('cannot tell, since ')}. {level:g} was assumed."
        ]
    if "review" in ranking:
        items.append(f"After a review by people: {ranking['review']['sentence']}")
    added = [name for name, model in noise.items() if isinstance(model, Mapping)]
    if added:
        share = noise.get("level")
        of_share = f", at a level of {share:g}" if isinstance(share, int | float) else ""
        items.append(
            f"This is an experiment: noise of the kind {' and '.join(map(plain, added))} was added "
            f"to training masks{of_share}."
        )
    correction = summary["correction"]
    before, after = (correction.get(f"label_dice_{when}") for when in ("before", "after"))
    if before is not None:
        items.append(
            f"Mean Dice of the training masks to the original ones: {before:.4f} before correction"
            + ("." if after is None else f", {after:.4f} after it.")
        )
    return [_list(items)]


def _training(summary: Mapping[str, Any]) -> list[str]:
    config, data, model = _config(summary), _of(summary, "data"), _of(summary, "model")
    settings, trainer = method_settings(config), _of(summary, "trainer")
    optimizer = _of(summary, "optimizer")
    others = {"test", *(f"{name}_baseline" for name in BASELINES)}
    epochs = [
        f"{plain(name)}, epochs: {stage['epochs']}"
        for name, stage in summary["stages"].items()
        if name not in others
    ]
    rows: dict[str, Any] = {
        "Method": settings.get("name"),
        "Stages": "; ".join(epochs),
        "Encoder": model.get("encoder_name"),
        "Pretrained weights": model.get("encoder_weights"),
        "Batch size": data.get("batch_size"),
        "Augmentation": _augmentation(data),
        "Optimizer": optimizer.get("name"),
        "Learning rate": _recipe_values(config).get("lr"),
        "Precision": trainer.get("precision"),
        "Seed": config.get("seed"),
    }
    if config.get("final") == "best" or config.get("early_stopping") is not None:
        rows["Final network"] = "the network of the best epoch on the validation masks"
    for name, value in (settings.get("options") or {}).items():
        rows[f"Option of the method: {plain(name)}"] = value
    table = _table(
        ("Setting", "Value"),
        [
            (name, value if name == "Stages" else _shown(value))
            for name, value in rows.items()
            if value is not None and value != ""
        ],
    )
    return [table, *_differences(config), *_labels(summary)]


def _augmentation(data: Mapping[str, Any]) -> str | None:
    if data.get("augmentation") is not None:
        return "its own"
    if "augment" not in data:
        return None
    return "the default" if data["augment"] else "none"


def _recipe_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the recipe's values that a run records in any part of its settings."""
    parts = [config.get(name) or {} for name in ("network", "peers", "recipe", "method")]
    parts += [config.get("loss") or {}, config.get("optimizer") or {}]
    found = {"averaging": config.get("averaging")} if "averaging" in config else {}
    for part in parts:
        found |= {f.name: part[f.name] for f in fields(Recipe) if f.name in part}
    return found


def _differences(config: Mapping[str, Any]) -> Iterator[str]:
    """Say which values of the recipe are not the measured ones, as far as the run records them."""
    found = _recipe_values(config)
    differing = [
        f"`{field.name}`: {_shown(found[field.name])} (default {_shown(field.default)})"
        for field in fields(Recipe)
        if field.name in found and found[field.name] != field.default
    ]
    if differing:
        yield f"Values of the recipe that differ from the defaults:\n\n{_list(differing)}"
    elif found:
        yield "The recipe has its default values."


def _labels(summary: Mapping[str, Any]) -> Iterator[str]:
    """Describe the changes to the training masks."""
    correction, count = summary["correction"], (summary.get("samples") or {}).get("train")
    of_all = "" if count is None else f" of {count}"
    if "decided" in correction:
        yield (
            f"People decided on {correction['decided']} masks: they rejected "
            f"{correction['rejected']} corrections, took {correction['taken']} proposals for masks "
            f"that the run had not corrected, and redrew {correction['redrawn']} masks. "
            f"{correction['corrected']} masks are as the run corrected them."
        )
    elif correction["corrected"]:
        yield f"The run corrected {correction['corrected']}{of_all} training masks."
    elif correction.get("left_alone"):
        yield (
            "No mask was corrected: the networks were not reliable enough to overrule the masks. "
            "This network learnt from the masks as they were given."
        )
    elif _of(summary, "method").get("name") == "coseg":
        yield "The run corrected no training mask."
    if correction.get("left_out"):
        yield f"{correction['left_out']} masks were left out of training."


def _test(summary: Mapping[str, Any]) -> list[str]:
    test = summary["test"]
    if _figure(summary, "dice") is None:
        return ["The network was not tested, so there are no figures."]
    masks = test.get("masks", MASKS[None])
    text = [f"Tested on {TEST_MASKS.get(masks, plain(masks))}."]
    of_loader = [("", test)]
    if "dataloaders" in test:
        of_loader = [(f", loader {n}", part) for n, part in enumerate(test["dataloaders"], 1)]
    rows = []
    for suffix, part in of_loader:
        for name, title in MEASURES.items():
            if part.get(name) is not None:
                unit = f" {plain(test.get('unit', 'pixels'))}" if name in LENGTHS else ""
                ends = part.get("interval", {}).get(name)
                digits = 2 if name in LENGTHS else 4
                bounds = "" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
                rows.append((f"{title}{suffix}", f"{part[name]:.{digits}f}{unit}", bounds or "-"))
        per_class = part.get("per_class_dice") or []
        if len(per_class) > 2:
            for name, value in zip(_classes(summary), per_class, strict=False):
                known = "-" if value is None else f"{value:.4f}"
                rows.append((f"Dice of {name}{suffix}", known, "-"))
    text.append(_table(("Measure", "Value", "95 % interval"), rows))
    if test.get("images"):
        about = (
            f"Means over {test['images']} test images. Dice and IoU of an image are means over the "
            "classes after the background, at the size that the network gets. Distances are at the "
            "masks' own size. The intervals are bootstrap intervals of the means."
        )
        if test.get("without_distance"):
            about += (
                f" {test['without_distance']} images have no distances, since a class is missing "
                "in the mask or in the prediction."
            )
        text.append(about)
    others = [
        f"{BASELINES[name][0]}: Dice {figures['dice']:.4f}"
        for name, figures in summary.get("baselines", {}).items()
        if name in BASELINES and figures["dice"] is not None
    ]
    if others:
        text.append(f"To compare with, on the same test masks:\n\n{_list(others)}")
        if method_settings(summary["config"]).get("warm_start"):
            text.append(
                "Plain networks were trained for the epochs of one stage, and this one for those "
                "of both, so a part of a gain may be due to longer training."
            )
    return text


def _limits(summary: Mapping[str, Any]) -> list[str]:
    items = ["Some of the training masks may be wrong, and the network may repeat their errors."]
    tested = _figure(summary, "dice") is not None
    if not tested:
        items.append("Nobody has measured how good the network is.")
    else:
        items.append("The figures hold for images of the same kind as the test images.")
        items += [plain(s) for s in (certainty(summary), never_right(summary)) if s is not None]
    items.append("It sees one 2-D image at a time, and knows nothing of neighbouring slices.")
    return [_list(items)]


def _input_and_output(
    summary: Mapping[str, Any], file: NetworkFile, inputs: Inputs | None
) -> list[str]:
    items = []
    if inputs is None:
        items.append(
            "Input: images as the run's datamodule prepares them. This card does not know how."
        )
    else:
        size = f"{inputs.height} x {inputs.width}"
        shape = f"(N, {inputs.channels}, {inputs.height}, {inputs.width})"
        items.append(f"Input: float32 `{shape}`. Channels: {inputs.channels}. Size: {size}")
        items.append(f"Preparation: {inputs.preparation}")
    if not file.gives_probabilities and file.multiple_of > 1:
        items.append(
            f"Height and width must be multiples of {file.multiple_of}; training padded other "
            "images with zeros at the right and at the bottom"
        )
    if file.gives_probabilities:
        items.append(f"Output: probabilities of {file.outputs} classes, background first")
    elif file.outputs == 1:
        items.append("Output: one logit for each pixel; its sigmoid is the probability of class 1")
    else:
        of = "all" if file.outputs is None else str(file.outputs)
        items.append(
            f"Output: logits of {of} classes, background first; their softmax over the classes "
            "gives probabilities"
        )
        if file.outputs is None:
            items.append("A single output map is the logit of class 1, for a sigmoid")
    return [_list(items)]


def _loading(summary: Mapping[str, Any], file: NetworkFile) -> list[str]:
    name = json.dumps(file.name)
    if file.kind == "onnx":
        return [
            _code(
                "import onnxruntime",
                "",
                f"session = onnxruntime.InferenceSession({name})",
                '(probabilities,) = session.run(None, {"images": images})  # a float32 array',
            )
        ]
    if file.kind == "torchscript":
        return [
            _code(
                "import torch",
                "",
                f"network = torch.jit.load({name}).eval()",
                "with torch.no_grad():",
                "    probabilities = network(images)  # a float32 tensor",
            )
        ]
    use = ["with torch.no_grad():", "    logits = network(images)  # a float32 tensor"]
    by_command = (
        "`coseg predict RUN IMAGES OUT` prepares images, and writes masks at their own size. RUN "
        "is the folder of the run."
    )
    predicted = (
        [by_command] if "source" in _of(summary, "data") and file.kind != "safetensors" else []
    )
    if file.kind == "smp":
        return [
            _code(
                "import segmentation_models_pytorch as smp",
                "import torch",
                "",
                f"network = smp.from_pretrained({name}).eval()  # the folder of this card",
                *use,
            ),
            *predicted,
        ]
    weights = json.dumps(f"{file.name}/model.safetensors") if file.kind == "weights" else name
    call = _build_call(_of(summary, "model"))
    if call is None:
        return [
            f"The file {plain(json.loads(weights))} holds only the weights. Build the network as "
            "the run did, then load them:",
            _code(
                "from safetensors.torch import load_file",
                "",
                f"network.load_state_dict(load_file({weights}))",
                "network.eval()",
            ),
            *predicted,
        ]
    return [
        _code(
            "import torch",
            "from coseg_lightning.networks import build_network",
            "from safetensors.torch import load_file",
            "",
            f"network = {call}",
            f"network.load_state_dict(load_file({weights}))",
            "network.eval()",
            *use,
        ),
        *predicted,
    ]


def _build_call(model: Mapping[str, Any]) -> str | None:
    """Return the call that rebuilds a network; None if it cannot be written as code."""
    if model.get("_target_") != "coseg_lightning.networks.build_network":
        return None
    skipped = ("_target_", "name", "encoder_weights")
    options = {k: v for k, v in model.items() if k not in skipped and v is not None}
    if not all(name.isidentifier() and _is_plain(value) for name, value in options.items()):
        return None
    arguments = [repr(str(model["name"])), *(f"{name}={v!r}" for name, v in options.items())]
    return f"build_network({', '.join(arguments)})"


def _versions(file: NetworkFile, trained_with: str | None) -> list[str]:
    items = []
    if trained_with is not None:
        items.append(f"Trained with coseg-lightning {plain(trained_with)}")
    libraries = ["torch", "segmentation-models-pytorch"]
    if file.kind == "onnx":
        libraries.append("onnx")
    known = [f"{name} {found}" for name in libraries if (found := _installed(name)) is not None]
    items.append(f"Written with {', '.join([f'coseg-lightning {__version__}', *known])}")
    items.append("Co-Seg: arXiv 2102.00523")
    return [_list(items)]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _network_name(summary: Mapping[str, Any], file: NetworkFile) -> str:
    model = _of(summary, "model")
    name = model.get("name") or model.get("_target_") or file.class_name
    name = name or _of(summary, "network").get("net") or _of(summary, "peers").get("net_a")
    return plain(name or "a network of the user's own")


def _classes(summary: Mapping[str, Any]) -> list[str]:
    """The names of all classes; unknown ones are numbered."""
    names = _of(summary, "data").get("class_names")
    count = max(2, len(summary["test"].get("per_class_dice") or ()))
    if not isinstance(names, Sequence) or len(names) != count - 1:
        names = [f"class {k}" for k in range(1, count)]
    return ["background", *map(plain, names)]


def _figure(summary: Mapping[str, Any], name: str) -> float | None:
    value: float | None = summary["test"].get(name)
    return value


def _config(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = summary["config"]
    return config


def _of(summary: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    part = _config(summary).get(group)
    return part if isinstance(part, Mapping) else {}


def _is_plain(value: Any) -> bool:
    """Whether a setting is a number or a name, or a list of these, and not a path."""
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    if isinstance(value, str):
        return re.search(r"[/\\\n]", value) is None
    return value is None or isinstance(value, bool | int | float)


def _shown(value: Any) -> str:
    """Show a setting as text: only the last part of a path, and no value that is not plain."""
    if isinstance(value, str):
        return plain(PureWindowsPath(value).name)
    if not _is_plain(value):
        return "set"
    if isinstance(value, list):
        return plain(", ".join(map(str, value)))
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    return plain(value)


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
