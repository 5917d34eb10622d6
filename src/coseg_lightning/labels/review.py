"""Reviews of masks: decisions, notes and redrawn masks."""

import logging
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table
from coseg_lightning.files.images import read_indices, smallest_type
from coseg_lightning.files.mask_file import read_mask_file
from coseg_lightning.files.mask_rules import MaskRules
from coseg_lightning.labels.ids import check_id
from coseg_lightning.labels.masks import Mask, mask_digest

log = logging.getLogger(__name__)

TABLE, DRAWN = "review.csv", "masks"
OK, TAKE, REDRAW = DECISIONS = ("ok", "take", "redraw")
EARLIER = {"keep": TAKE, "reject": OK}  # the names in version 0.1
MOST_BYTES = 2**33  # the largest unpacked size of all files in a review.zip
MOST_SHOWN = 10  # most conflicts that a message lists


@dataclass
class Review:
    """Decisions of one or several reviewers on the masks of a run or an audit.

    Args:
        decisions: The decision on each sample: `ok` if the given mask is right, `take` if the
            proposal is right, `redraw` if neither is.
        notes: The note on each sample, if there is one.
        reviewers: Who decided on each sample, if known.
        files: The redrawn mask of each sample, a PNG of class ids, if there is one.
        drawn: The CRC-32 of the file of each mask that the page or `exchange` wrote, as they
            wrote it.
        taken: The digest of each proposal that was taken, if known, see `proposal_digest`.
    """

    decisions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    reviewers: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)

    @property
    def to_redraw(self) -> set[str]:
        """The samples that must be redrawn, but have no redrawn mask in the review."""
        return {i for i, decision in self.decisions.items() if decision == REDRAW} - set(self.files)

    def read(self, sample_id: str, like: Mask, classes: int) -> Mask:
        """Read a redrawn mask.

        Args:
            sample_id: The sample.
            like: The mask that it replaces, `(H, W)`.
            classes: The number of classes, background included.

        Returns:
            `(H, W)` class ids, 255 for unlabelled pixels.

        Raises:
            InputError: If it has another size, values that are not class ids, or new unlabelled
                pixels but no foreground. The last is allowed where the page or `exchange` wrote the
                file, whose 255 is surely no foreground.
        """
        path = self.files[sample_id]
        try:
            mask = read_mask_file(path, MaskRules(classes=classes)).values
        except InputError as error:  # the advice there is for folders of masks
            reason = str(error).partition(";")[0]
            raise InputError(f"{reason}; save it as a grey PNG of class ids.") from error
        if mask.shape != like.shape:
            raise InputError(
                f"{path.name} is {mask.shape[1]} x {mask.shape[0]} pixels, but the mask of "
                f"{sample_id} has {like.shape[1]} x {like.shape[0]}; draw it at that size."
            )
        others = sorted(set(np.unique(mask).tolist()) - {*range(classes), 255})
        if others:
            raise InputError(
                f"{path.name} has the value {others[0]}, but a mask drawn for {sample_id} may hold "
                f"only class ids, 0 to {classes - 1}, and 255 for unlabelled pixels."
            )
        unlabelled = mask == 255
        if (
            unlabelled.any()
            and not (mask[~unlabelled] > 0).any()
            and (unlabelled & (like != 255)).any()
            and self.drawn.get(sample_id) != file_crc(path)
        ):
            raise InputError(
                f"{path.name} holds only 0 and 255, but 255 means unlabelled in a mask drawn for "
                f"{sample_id}; save the foreground as 1."
            )
        return smallest_type(mask)

    def check_taken(self, sample_id: str, *forms: Mask) -> None:
        """Raise an `InputError` if a sample's decision is on another proposal.

        Args:
            sample_id: The sample.
            forms: The proposal, also as an earlier version wrote it.
        """
        if self.taken.get(sample_id) not in (None, *map(proposal_digest, forms)):
            raise InputError(
                f"The review takes a proposal for {sample_id} that is not this run's; give the run "
                f"whose page was reviewed, or decide on {sample_id} in this run's page."
            )


def unknown_id(sample_id: str, ids: Collection[str], *, of: str) -> InputError:
    """Return the error for an id that a review names, and that the run does not know.

    Args:
        sample_id: The id.
        ids: The ids of the run.
        of: What the run's samples are, such as `a training mask of the run`.
    """
    stripped = {i.lstrip("0"): i for i in ids}
    near = stripped.get(sample_id.lstrip("0"))
    hint = "give the review of this run"
    shown = sample_id if sample_id == sample_id.strip() else repr(sample_id)
    if near is not None:
        hint = f"write {near} instead, whose zeros a spreadsheet may have dropped"
    return InputError(f"The review names {shown}, which is not {of}; {hint}.")


def proposal_digest(proposal: Mask) -> str:
    """Digest a proposal; the text begins with a letter, so that no spreadsheet sees a number."""
    return f"p{mask_digest(proposal)}"


def file_crc(path: Path) -> str:
    """Compute the CRC-32 of a file, in eight hexadecimal digits."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


@contextmanager
def opened_review(paths: str | Path | Sequence[str | Path]) -> Iterator[Review]:
    """Open a review, or merge several reviews into one.

    Args:
        paths: One or several reviews. Each is a `review.csv` with the columns `id` and `decision`,
            and optionally `note`, `reviewer`, `drawn` and `proposal`; a folder with such a file,
            redrawn masks `masks/ID.png`, or both; or a `review.zip` of such a folder.

    Yields:
        The review. Its redrawn masks can be read as long as it is open.

    Raises:
        InputError: If a review cannot be read, or two reviews disagree.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    if not several:
        raise InputError(
            "review=[]: the list is empty; give a review.csv, its folder or a review.zip."
        )
    with tempfile.TemporaryDirectory(prefix="coseg-review-") as folder:
        unpacked = [Path(folder) / str(number) for number in range(len(several))]
        try:
            yield _merged(several, unpacked)
        except InputError as error:  # names files as they are in the archive
            text = str(error)
            for path, place in zip(several, unpacked, strict=True):
                text = text.replace(f"{place}/", f"{path}: ")
            if text == str(error):
                raise
            raise InputError(text) from error


def _merged(paths: Sequence[str | Path], unpacked: Sequence[Path]) -> Review:
    """Read reviews, and merge them into one; see `opened_review`.

    Args:
        paths: The reviews.
        unpacked: A new folder for the content of each, if it is a zip file.
    """
    merged = Review()
    places: dict[str, str] = {}  # where each decision was found
    conflicts: dict[str, str] = {}
    for path, place in zip(paths, unpacked, strict=True):
        review = _read(Path(path).expanduser(), place)
        for sample_id, decision in review.decisions.items():
            before = merged.decisions.get(sample_id, decision)
            if before != decision or _masks_differ(sample_id, merged, review):
                conflicts[sample_id] = (
                    f"{sample_id} ({before} in {places[sample_id]}, {decision} in {path})"
                )
            places.setdefault(sample_id, str(path))
        for name in ("decisions", "notes", "reviewers", "files", "drawn", "taken"):
            known = getattr(merged, name)
            known.update({k: v for k, v in getattr(review, name).items() if k not in known})
    if conflicts:
        shown = list(conflicts.values())[:MOST_SHOWN]
        more = len(conflicts) - len(shown)
        raise InputError(
            f"The reviews disagree on {len(conflicts)} "
            f"mask{'s' if len(conflicts) > 1 else ''}: "
            f"{'; '.join(shown)}{f'; and {more} more' if more else ''}. Load all reviews into "
            "the review page, settle these masks, and save one review."
        )
    if not merged.decisions:
        log.warning("%s holds no decision, so nothing changes.", " and ".join(map(str, paths)))
    return merged


def _masks_differ(sample_id: str, one: Review, other: Review) -> bool:
    """Whether two reviews take different proposals for a sample, or have different drawn masks."""
    taken = {review.taken[sample_id] for review in (one, other) if sample_id in review.taken}
    if len(taken) > 1:
        return True
    if sample_id not in one.files or sample_id not in other.files:
        return False
    return not np.array_equal(
        read_indices(one.files[sample_id]), read_indices(other.files[sample_id])
    )


def _read(path: Path, unpacked: Path) -> Review:
    """Read one review; see `opened_review`.

    Args:
        path: The review.
        unpacked: A new folder for the content of a zip file.
    """
    if not path.exists():
        raise InputError(
            f"review={path}: there is no such file or folder; give the review that the review page "
            "saved."
        )
    archive, table = path / "review.zip", path / TABLE
    if path.is_dir() and archive.is_file():
        decided = table.exists() and _read_table(table).decisions
        if decided or any((path / DRAWN).glob("*.png")):
            other = f"a {TABLE} with decisions" if decided else f"{DRAWN}/ID.png"
            raise InputError(
                f"{path} holds {other} and a review.zip; keep one of them, or give several reviews "
                "in a list, as in review=[FILE,FILE]."
            )
        path = archive
    if path.is_dir():
        return _read_folder(path, path)
    if zipfile.is_zipfile(path) or path.suffix == ".zip":
        _unpack(path, unpacked)
        return _read_folder(unpacked, path)
    return _with_all_drawn(_read_table(path), path, "this file")


def _with_all_drawn(review: Review, source: Path, place: str) -> Review:
    """Return a review, unless it says that masks were drawn which it does not hold."""
    drawn = sorted(review.to_redraw & set(review.drawn))
    if drawn:
        more = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
        raise InputError(
            f"{source} says that masks were drawn for {drawn[0]}{more}, which are not in {place}; "
            f"give the folder or the review.zip that holds {DRAWN}/ID.png, or empty the column "
            "drawn to have them drawn later."
        )
    return review


def _read_folder(folder: Path, source: Path) -> Review:
    table, drawn = folder / TABLE, folder / DRAWN
    review = _read_table(table) if table.is_file() else Review()
    there = sorted(drawn.iterdir()) if drawn.is_dir() else []
    masks = [path for path in there if not _is_of_the_system((path.name,))]
    others = [path.name for path in masks if path.suffix != ".png"]
    if others:
        raise InputError(
            f"{source} holds {DRAWN}/{others[0]}, but a redrawn mask must be {DRAWN}/ID.png; save "
            "it as PNG."
        )
    if not table.is_file() and not masks:
        raise InputError(
            f"review={source} holds neither {TABLE} nor {DRAWN}/ID.png; give the review that the "
            "review page saved."
        )
    for path in masks:
        sample_id = path.stem
        composed = unicodedata.normalize("NFC", sample_id)  # macOS separates letters and marks
        if sample_id not in review.decisions and composed in review.decisions:
            sample_id = composed
        check_id(sample_id)
        if review.decisions.setdefault(sample_id, REDRAW) != REDRAW:
            raise InputError(
                f"{source} has the decision {review.decisions[sample_id]} for {sample_id}, but "
                f"also holds a mask drawn for it; decide redraw, or remove {DRAWN}/{path.name}."
            )
        review.files[sample_id] = path
    return _with_all_drawn(review, source, "it")


def _read_table(path: Path) -> Review:
    review = Review()
    seen: set[str] = set()
    for row in read_table(path, ["id", "decision"]):
        sample_id = row["id"]
        decision = row["decision"].strip().lower()
        if sample_id in seen:
            raise InputError(f"{path} names {sample_id} twice; give one decision for it.")
        seen.add(sample_id)
        decision = EARLIER.get(decision, decision)
        if decision and decision not in DECISIONS:
            raise InputError(
                f"{path} has the decision {row['decision']!r} for {sample_id}; it must be ok, take "
                "or redraw (or, from version 0.1, keep or reject)."
            )
        if decision:
            review.decisions[sample_id] = decision
        columns = {"note": review.notes, "reviewer": review.reviewers, "drawn": review.drawn}
        if decision == TAKE:
            columns["proposal"] = review.taken
        for name, values in columns.items():
            if row.get(name, "").strip():
                values[sample_id] = row[name].strip()
    return review


def _unpack(path: Path, folder: Path) -> None:
    """Unpack the table and the masks of a review.zip.

    Raises:
        InputError: If it cannot be unpacked, holds any other file, or is too large.
    """
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            files = [
                (info, PurePosixPath(_name_of(info).replace("\\", "/")).parts)
                for info in archive.infolist()
                if not info.is_dir()
            ]
            # An archive made by hand may hold the folder itself, and files that a Mac adds.
            files = [(info, parts) for info, parts in files if not _is_of_the_system(parts)]
            tops = {parts[0] for _, parts in files if len(parts) > 1 or parts != (TABLE,)}
            inside = len(tops) == 1 and tops != {DRAWN} and all(len(p) > 1 for _, p in files)
            counts = Counter(info.filename for info, _ in files)
            twice = sorted(name for name, count in counts.items() if count > 1)
            if twice:
                raise InputError(
                    f"{path} holds {twice[0]} twice, and it is not known which counts; remove one."
                )
            if sum(info.file_size for info, _ in files) > MOST_BYTES:
                raise InputError(
                    f"{path} is too large for a review.zip; give the unpacked folder instead."
                )
            for info, parts in files:
                parts = parts[1:] if inside else parts
                is_mask = len(parts) == 2 and parts[0] == DRAWN and parts[1].endswith(".png")
                if parts != (TABLE,) and not is_mask:
                    raise InputError(
                        f"{path} holds {info.filename}; a review.zip may hold only {TABLE} and "
                        f"{DRAWN}/ID.png; remove the other file."
                    )
                if is_mask:
                    check_id(parts[1].removesuffix(".png"))
                place = folder.joinpath(*parts)
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(archive.read(info))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(f"{path} cannot be unpacked ({error}); save the review again.") from error


def _name_of(info: zipfile.ZipInfo) -> str:
    """Return a file's name, also if it is in UTF-8 without saying so, as a Mac writes it."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _is_of_the_system(parts: Sequence[str]) -> bool:
    return (
        parts[0] == "__MACOSX"
        or parts[-1].startswith("._")
        or parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini")
    )
