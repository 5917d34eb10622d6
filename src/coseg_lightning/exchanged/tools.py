"""The annotation tools by name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from coseg_lightning.errors import InputError, unknown_name_message
from coseg_lightning.exchanged import coco, cvat, fiftyone, label_studio, labelme
from coseg_lightning.exchanged.source import Source
from coseg_lightning.exchanged.tasks import Answers, Classes, Task


@dataclass(frozen=True)
class Tool:
    """An annotation tool.

    Args:
        title: The tool's own name.
        write: Writes tasks into a folder that already holds the images.
        read: Reads the answers of an export.
        images: The name of the images' folder.
        knows_answered: Whether the tool's exports show which tasks a person finished.
    """

    title: str
    write: Callable[[Path, Iterable[Task], Classes], None]
    read: Callable[[Source, Classes], Answers]
    images: str = "images"
    knows_answered: bool = False


TOOLS = {
    "cvat": Tool("CVAT", cvat.write, cvat.read),
    "label_studio": Tool(
        "Label Studio", label_studio.write, label_studio.read, knows_answered=True
    ),
    "coco": Tool("COCO", coco.write, coco.read),
    "labelme": Tool("labelme", labelme.write, labelme.read),
    "fiftyone": Tool("FiftyOne", fiftyone.write, fiftyone.read, images="data"),
}


def tool_named(name: str) -> Tool:
    """Return the tool with the given name.

    Raises:
        InputError: If there is no such tool.
    """
    if name not in TOOLS:
        raise InputError(unknown_name_message("annotation tool", name, list(TOOLS)))
    return TOOLS[name]
