"""All commands with their arguments and examples. This module imports nothing heavy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRUST = (False, "also import and call any code that the run names, not only well-known libraries")
ROOT = ("", "the new folder of the run's data, if it was moved")


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
        "Show the other commands at work on synthetic images, in about a minute.",
        {},
        {
            "folder": ("demo", "a new folder for images, masks and results"),
            "seed": (0, "seed of the images, of the errors in the masks, and of the networks"),
            "open": (False, "open the report in the browser, if there is a display"),
        },
        (
            ("", "run audit, run and apply in demo/, and print the results"),
            ("open=true", "also open the report in the browser"),
        ),
    ),
    "run": Command(
        TRAIN,
        "Train a segmentation network on masks that you do not trust, rank the masks, and correct "
        "them.",
        {"dir": f"{FOLDER}; without it, synthetic images are drawn"},
        examples=(
            ("", "a first look, on synthetic images"),
            ("DIR", "your own images and masks; the share of bad masks is estimated"),
            (
                "DIR nol=0.2 data.classes=3",
                "the same, if a fifth of the masks is bad, with three classes",
            ),
            ("DIR model=fpn model.encoder_name=resnet50", "another network"),
            ("resume=outputs/DATE/TIME", "continue a run that was interrupted"),
            ("-m noise=type1,type2 nol=0.1,0.3", "a sweep, with one folder per job"),
        ),
        config="config",
        stands_for={"dir": "data.root"},
    ),
    "table": Command(
        TRAIN,
        "Show a table of a sweep, with mean and standard deviation over seeds, even while it runs.",
        {"folder": "a sweep's folder, or any folder of runs"},
        {
            "metric": ("dice", "dice or accuracy"),
            "format": ("text", "format of the printed table: text, csv, markdown or latex"),
        },
        (("multirun/DATE/TIME format=markdown", "print a table to paste into a text"),),
    ),
    "check": Command(
        LOOK,
        "Report what a folder holds, what a run on it would do, and how long it would take.",
        {"dir": FOLDER},
        examples=(
            ("DIR", "report images, masks, split, blunders, time and memory; write nothing"),
            ("DIR data.image_size=128 model=fpn", "the same, for a run with these settings"),
        ),
        config="check",
        stands_for={"dir": "data.root"},
    ),
    "audit": Command(
        LOOK,
        "Rank all masks of a folder, worst first, without correcting them.",
        {"dir": FOLDER},
        examples=(
            ("DIR training=none", "rank by outlines and shapes only, in seconds"),
            ("DIR data.image_size=128", "rank by two networks that are trained on the masks"),
            ("DIR predictions=FOLDER", "rank by the predictions of your own network"),
            ("review=audits/DATE/TIME", "estimate how many masks are bad, after you judged ten"),
        ),
        config="audit",
        stands_for={"dir": "data.root"},
    ),
    "corrupt": Command(
        LOOK,
        "Write a corrupted copy of a folder of masks, to test any method on the same noise.",
        {"masks": "a folder of masks, which is only read", "out": "a new folder for all masks"},
        examples=(
            ("DIR/masks DIR/masks_type2 noise=type2 nol=0.3", "make 30 % of the masks noisy"),
        ),
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
            "flips": (False, "average the predictions of the image and its mirror image"),
            "overlays": (False, "also write out/overlays/ID.jpg, the image with its outlines"),
            "uncertainty": (
                False,
                "also write out/uncertainty/ID.png, which shows where peers differ",
            ),
            "batch_size": (8, "images per batch"),
            "num_workers": (0, "processes that read images"),
            "device": ("auto", "auto, cpu, cuda, cuda:1 or mps"),
            "trust": TRUST,
        },
        (("RUN IMAGES OUT flips=true", "slower, but slightly better"),),
    ),
    "apply": Command(
        USE,
        "Write a copy of all masks in their own format, with the run's corrections.",
        {"run": "the folder of a finished run or audit", "dest": "a new folder"},
        {
            "root": ROOT,
            "review": ("", "the file that the review page saved; [A,B] for several people"),
            "trust": TRUST,
        },
        (
            ("RUN DEST", "your masks, corrected where the run corrected them"),
            ("RUN DEST review=review.zip", "apply people's decisions and the masks that they drew"),
        ),
    ),
    "exchange": Command(
        USE,
        "Write the worst masks as tasks for an annotation tool, and read the answers back.",
        {"run": "the folder of a finished run or of an audit", "out": "a new folder"},
        {
            "to": ("", "write tasks for cvat, label_studio, coco, labelme or fiftyone"),
            "from": ("", "read the answers from one of these tools"),
            "source": ("", "with from: the file, zip or folder that the tool exported"),
            "worst": (50, "the number of masks, worst first"),
            "masks": (
                "proposal",
                "proposal or given: the mask at the start; given is used if there is no proposal",
            ),
            "unchanged": ("count", "count unchanged masks as answers, or skip them"),
            "empty": ("skip", "skip images without any area, or take them as background"),
            "root": ROOT,
            "trust": TRUST,
        },
        (
            ("RUN OUT to=cvat worst=20", "write images and proposals; see docs/how-to/exchange.md"),
            (
                "RUN REVIEW from=cvat source=annotations.zip",
                "write REVIEW/review.csv and REVIEW/masks",
            ),
        ),
    ),
    "export": Command(
        USE,
        "Export the network of a finished run, and compare its output with torch's.",
        {"run": "the folder of a finished run"},
        {
            "format": (
                "onnx",
                "onnx (with the extra onnx), torchscript or safetensors (only the weights)",
            ),
            "out": ("", "the file; default RUN/export/model.SUFFIX"),
            "trust": TRUST,
        },
        (("RUN format=torchscript", "write one file that needs no Python code"),),
    ),
    "report": Command(
        USE,
        "Write report.html and the figures of a finished run again.",
        {"run": "the folder of a finished run"},
        {"root": ROOT, "trust": TRUST},
        (("RUN root=/new/place", "the same, if the data was moved"),),
    ),
}
