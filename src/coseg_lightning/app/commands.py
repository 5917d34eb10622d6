"""All commands with their arguments and examples. This module imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRUST = (False, "also import and call whatever the run names, not only well-known libraries")
ROOT = ("", "where the run's data is now, if it was moved")


@dataclass(frozen=True)
class Command:
    """One command, `coseg NAME` or `python -m coseg_lightning.NAME`.

    Args:
        task: The group of the command in the list of all commands.
        summary: What the command does, in one sentence.
        positional: The meaning of each positional argument, by name. Those of a composed command
            are optional; `stands_for` names their settings.
        options: The default and the meaning of each further setting of a command that Hydra does
            not compose.
        examples: Arguments and their effects.
        config: The configuration in `conf/` of a command that Hydra composes.
        stands_for: The setting for each positional argument of a composed command.
    """

    task: str
    summary: str
    positional: Mapping[str, str]
    options: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    examples: Sequence[tuple[str, str]] = ()
    config: str | None = None
    stands_for: Mapping[str, str] = field(default_factory=dict)


FOLDER = "a folder that holds your images and your masks"
TRY, TRAIN, LOOK, USE = "Try it", "Train", "Look at your masks", "Use a finished run"
COMMANDS: dict[str, Command] = {
    "demo": Command(
        TRY,
        "Show in about a minute what the other commands do, on images that it draws.",
        {},
        {
            "folder": ("demo", "a new folder for images, masks and results"),
            "seed": (0, "of the images, of the errors in the masks, and of the networks"),
            "open": (False, "open the report in the browser, if there is a display"),
        },
        (("", "audit, run and apply in demo/, with the figures"), ("open=true", "then the report")),
    ),
    "run": Command(
        TRAIN,
        "Train a segmentation network on masks that you do not trust, rank the masks, and correct "
        "them.",
        {"dir": f"{FOLDER}; without it, phantoms are drawn"},
        examples=(
            ("", "phantoms: a first look"),
            ("DIR", "your own images and masks; how many masks are bad is estimated"),
            ("DIR nol=0.2 data.classes=3", "a fifth of the masks is bad; three classes"),
            ("DIR model=fpn model.encoder_name=resnet50", "another network"),
            ("resume=outputs/DATE/TIME", "go on with a run that was interrupted"),
            ("-m noise=type1,type2 nol=0.1,0.3", "a sweep, one folder a job"),
        ),
        config="config",
        stands_for={"dir": "data.root"},
    ),
    "table": Command(
        TRAIN,
        "Show the table of a sweep: mean and standard deviation over seeds, also while it runs.",
        {"folder": "a sweep's folder, or any folder of runs"},
        {
            "metric": ("dice", "or accuracy"),
            "format": ("text", "or csv, markdown, latex: what is printed; all are written"),
        },
        (("multirun/DATE/TIME format=markdown", "a table for a text"),),
    ),
    "check": Command(
        LOOK,
        "Say what a folder holds, what a run of it would do, and how long it would take.",
        {"dir": FOLDER},
        examples=(
            ("DIR", "images, masks, split, blunders, time and memory; nothing is written"),
            ("DIR data.image_size=128 model=fpn", "the same, of a run with these settings"),
        ),
        config="check",
        stands_for={"dir": "data.root"},
    ),
    "audit": Command(
        LOOK,
        "Rank all masks of a folder, worst first, and correct none.",
        {"dir": FOLDER},
        examples=(
            ("DIR training=none", "by outlines and shapes alone, in seconds"),
            ("DIR data.image_size=128", "by two networks, which are trained on them"),
            ("DIR predictions=FOLDER", "by the predictions of your own network"),
            ("review=audits/DATE/TIME", "how many are bad, once you judged ten of them"),
        ),
        config="audit",
        stands_for={"dir": "data.root"},
    ),
    "corrupt": Command(
        LOOK,
        "Write a corrupted copy of a folder of masks, to test any method on the same noise.",
        {"masks": "a folder of masks, which is only read", "out": "a new folder for all of them"},
        examples=(("DIR/masks DIR/masks_type2 noise=type2 nol=0.3", "three of ten masks change"),),
        config="corrupt",
        stands_for={"masks": "masks", "out": "out"},
    ),
    "predict": Command(
        USE,
        "Predict masks of new images, at their own size, with the network of a finished run.",
        {
            "run": "the folder of a finished run",
            "images": "a folder of images",
            "out": "a new folder for the masks",
        },
        {
            "probabilities": (False, "also write out/probabilities/ID.npy, (K, H, W) float16"),
            "flips": (False, "average over the image and its mirror image"),
            "overlays": (False, "also write out/overlays/ID.jpg, the image with its outlines"),
            "uncertainty": (False, "also write out/uncertainty/ID.png, where the peers disagree"),
            "batch_size": (8, "images per batch"),
            "num_workers": (0, "processes that read images"),
            "device": ("auto", "or cpu, cuda, cuda:1, mps"),
            "trust": TRUST,
        },
        (("RUN IMAGES OUT flips=true", "slower, and a bit better"),),
    ),
    "apply": Command(
        USE,
        "Write a complete folder of masks in your own format, with the run's corrections.",
        {"run": "the folder of a finished run or audit", "dest": "a new folder"},
        {
            "root": ROOT,
            "review": ("", "what the report's page saved; [A,B] of several people"),
            "trust": TRUST,
        },
        (
            ("RUN DEST", "your masks, corrected where the run corrected them"),
            ("RUN DEST review=review.zip", "as people decided, with the masks that they drew"),
        ),
    ),
    "exchange": Command(
        USE,
        "Write the worst masks as tasks for an annotation tool, and read back what was drawn.",
        {"run": "the folder of a finished run or of an audit", "out": "a new folder"},
        {
            "to": ("", "write tasks for cvat, label_studio, coco, labelme or fiftyone"),
            "from": ("", "read the answers of one of these"),
            "source": ("", "with from: the file, zip or folder that the tool exported"),
            "worst": (50, "how many masks, the worst first"),
            "masks": (
                "proposal",
                "or given: what a person begins with; proposal where there is one",
            ),
            "unchanged": ("count", "or skip: answers that are as they were written count as none"),
            "empty": ("skip", "or background: what an image without any area means"),
            "root": ROOT,
            "trust": TRUST,
        },
        (
            ("RUN OUT to=cvat worst=20", "images and proposals, see docs/how-to/exchange.md"),
            ("RUN REVIEW from=cvat source=annotations.zip", "REVIEW/review.csv and REVIEW/masks"),
        ),
    ),
    "export": Command(
        USE,
        "Export the network of a finished run, checked against torch's own output.",
        {"run": "the folder of a finished run"},
        {
            "format": ("onnx", "or torchscript, safetensors (the weights alone)"),
            "out": ("", "the file; default RUN/export/model.SUFFIX"),
            "trust": TRUST,
        },
        (("RUN format=torchscript", "one file that needs no Python code"),),
    ),
    "report": Command(
        USE,
        "Write report.html and the figures of a finished run again.",
        {"run": "the folder of a finished run"},
        {"root": ROOT, "trust": TRUST},
        (("RUN root=/new/place", "its data was moved"),),
    ),
}
