"""File names for images that stay recognisable in every tool, and the way back to the ids."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qs, unquote, urlsplit

MANIFEST = "ids.csv"  # beside written tasks; maps files to ids
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix for uploaded files
ENDINGS = re.compile(r"\.(png|jpe?g|tiff?|bmp|webp|gif|json|npy|nii|dcm)$", re.IGNORECASE)
MOST_LETTERS = 60


class ImageNames:
    """Names each sample's image file by its rank, so that tools show the worst first.

    The rank makes a name unique. The id, reduced to plain ASCII, follows it.

    Args:
        worst_first: The ids of all samples of a run, by rank.
    """

    def __init__(self, worst_first: Sequence[str]) -> None:
        digits = max(4, len(str(len(worst_first))))
        self._names = {
            sample_id: f"{rank:0{digits}d}_{_plain(sample_id)}"
            for rank, sample_id in enumerate(worst_first, start=1)
        }
        self._ids = {name.casefold(): sample_id for sample_id, name in self._names.items()}

    def name(self, sample_id: str) -> str:
        """The name of a sample's image, without its suffix."""
        return self._names[sample_id]

    def find(self, image: str) -> str | None:
        """Return the sample of an image as named by a tool, or None if there is none.

        The image may have the name that was written for it. If a person gave the tool the
        dataset's own files, it may also have the sample's id.

        Args:
            image: A file name, path or address.
        """
        for name in _forms(image):
            if name.casefold() in self._ids:
                return self._ids[name.casefold()]
            if name in self._names:
                return name
        return None


def _plain(sample_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "_", sample_id)[:MOST_LETTERS].strip("_") or "image"


def _forms(image: str) -> Iterator[str]:
    """Yield possible names or ids in a path or address, the longest first."""
    paths = [image]
    if re.match(r"^(https?|s3|gs|file)://|^/data/", image):
        with contextlib.suppress(ValueError):  # not a valid address
            address = urlsplit(image)
            paths = [*parse_qs(address.query).get("d", []), address.path]
    for path in dict.fromkeys([*paths, *map(unquote, paths)]):
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            for form in (name, ENDINGS.sub("", name)):
                yield form
                if start == len(parts) - 1:
                    yield UPLOADED.sub("", form)
