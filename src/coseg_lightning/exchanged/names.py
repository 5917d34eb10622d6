"""File names for images that stay recognisable in every tool, and the way back to the ids."""

import contextlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import parse_qs, unquote, urlsplit

from coseg_lightning.errors import InputError

MANIFEST = "ids.csv"  # beside written tasks; maps files to ids
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix for uploaded files
ENDINGS = re.compile(r"\.(png|jpe?g|tiff?|bmp|webp|gif|json|npy|nii|dcm)$", re.IGNORECASE)
MOST_LETTERS = 60


class ImageNames:
    """Names each sample's image file by its rank, so that tools show the worst first.

    The rank makes a name unique. The id, reduced to plain ASCII, follows it. Where that makes ids
    alike, their checksum follows, so that another run has no such name for another sample.

    Args:
        worst_first: The ids of all samples of a run, by rank.
        written: The sample of each file that was written, if it is known.
    """

    def __init__(
        self, worst_first: Sequence[str], written: Mapping[str, str] | None = None
    ) -> None:
        digits = max(4, len(str(len(worst_first))))
        counts = Counter(_plain(sample_id).casefold() for sample_id in worst_first)
        self._names = {}
        for rank, sample_id in enumerate(worst_first, start=1):
            plain = _plain(sample_id)
            if counts[plain.casefold()] > 1 and plain != sample_id:
                plain += f"-{zlib.crc32(sample_id.encode()):08x}"
            self._names[sample_id] = f"{rank:0{digits}d}_{plain}"
        self._samples = {_nfc(sample_id): sample_id for sample_id in worst_first}
        self._ids = {name.casefold(): sample_id for sample_id, name in self._names.items()}
        files = (written or {}).items()
        self._written = {ENDINGS.sub("", file).casefold(): sample_id for file, sample_id in files}

    def name(self, sample_id: str) -> str:
        """The name of a sample's image, without its suffix."""
        return self._names[sample_id]

    def find_own(self, image: str) -> str | None:
        """Return the sample whose own file has an image's name, or None if there is none."""
        return next(filter(None, map(self._samples.get, map(_nfc, _forms(image)))), None)

    def find(self, image: str) -> str | None:
        """Return the sample of an image as named by a tool, or None if there is none.

        The image may have the name that was written for it. If a person gave the tool the
        dataset's own files, it may also have the sample's id.

        Args:
            image: A file name, path or address.

        Raises:
            InputError: If it is the name of one sample and the id of another.
        """
        for name in map(_nfc, _forms(image)):
            if name.casefold() in self._written:
                return self._written[name.casefold()]
            of_rank, own = self._ids.get(name.casefold()), self._samples.get(name)
            if of_rank and own and of_rank != own:
                raise InputError(
                    f"The image {image!r} may be {own} or the task of {of_rank}; put the "
                    f"{MANIFEST} of the tasks beside the export."
                )
            if of_rank or own:
                return of_rank or own
        return None


def _plain(sample_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "_", sample_id)[:MOST_LETTERS].strip("_") or "image"


def _nfc(name: str) -> str:
    """Compose letters and their marks, which macOS separates."""
    return unicodedata.normalize("NFC", name)


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
                yield form.replace("/", "_")  # the id of a file in a subfolder
                if start == len(parts) - 1:
                    yield UPLOADED.sub("", form)
