"""The meaning of the values in a folder of masks, above all of 255, and checks of them."""

from collections.abc import Mapping
from pathlib import Path

from coseg_lightning.files.inspection import FileInfo, Inspection

IGNORE_INDEX = 255  # of unlabelled pixels, as in functional.equations, which imports torch
HIGHEST_VALUES = (255, 65535)  # the largest values of 8 and of 16 bits


MANY = 40  # classes; masks of more are rather grey pictures


class MaskValues:
    """The values of all masks of a folder, and the rules that they must follow.

    Masks hold class ids `0 .. classes-1` and 255 for unlabelled pixels. If there are two classes
    and no mask holds any value but 0 and 255 (or 0 and 65535), that value means class 1.

    Args:
        folder: The folder, for messages.
        paths: The file of each sample.
        classes: Number of classes, background included.
        file_info: The information on each readable mask, by sample.

    Attributes:
        foreground: The value that means class 1, if it is not 1 itself; otherwise None.
    """

    def __init__(
        self,
        folder: Path,
        paths: Mapping[str, Path],
        classes: int,
        file_info: Mapping[str, FileInfo],
    ) -> None:
        self.folder = folder
        self.paths = paths
        self.classes = classes
        self.file_info = dict(file_info)
        # The format of a two-valued file already says that it holds two classes.
        self.ambiguous = {
            sample_id: set(info["values"])
            for sample_id, info in file_info.items()
            if not info["two_valued"]
        }
        self.all_values = self._union_of_valid_masks()
        self.foreground = self._foreground_value()

    def _union_of_valid_masks(self) -> set[int]:
        """The values of all ambiguous masks. One bad mask must not change what 255 means."""
        highest = set(HIGHEST_VALUES) if self.classes == 2 else {IGNORE_INDEX}
        known = set(range(self.classes)) | highest
        return set[int]().union(*(values for values in self.ambiguous.values() if values <= known))

    def _foreground_value(self) -> int | None:
        if self.classes == 2:
            for highest in HIGHEST_VALUES:
                if highest in self.all_values and self.all_values <= {0, highest}:
                    return highest
        return None

    def check(self, inspection: Inspection) -> dict[str, FileInfo]:
        """Record the masks with a wrong or doubtful meaning.

        Args:
            inspection: Receives problems and warnings.

        Returns:
            The information on the masks whose class ids are valid.
        """
        if self.foreground is None:
            self._check_masks_of_0_and_255(inspection)
        valid = self._check_class_ids(inspection)
        self._warn_of_single_value(valid, 0, "background", inspection)
        if self.foreground is None:
            self._warn_of_single_value(valid, IGNORE_INDEX, "unlabelled pixels", inspection)
        return valid

    def _check_masks_of_0_and_255(self, inspection: Inspection) -> None:
        """Report masks of 0 and 255 alone where 255 means unlabelled."""
        doubtful = [
            sample_id
            for sample_id, values in self.ambiguous.items()
            if 255 in values and values <= {0, 255}
        ]
        if doubtful and self.all_values <= {0, 255}:
            inspection.add(
                "class id",
                doubtful,
                f"{self.folder} holds no class id but 0 and 255, which is unlabelled where "
                f"there are {self.classes} classes; set data.classes=2, or save class ids.",
            )
        elif self.classes == 2 and 2 * len(doubtful) > len(self.ambiguous):
            other = next(sample_id for sample_id, values in self.ambiguous.items() if 1 in values)
            inspection.add(
                "class id",
                doubtful,
                f"{len(doubtful)} masks in {self.folder} hold 0 and 255 alone, but "
                f"{self.paths[other].name} holds 1, so that 255 would mean unlabelled in all of "
                "them; save them all as 0 and 1, or all as 0 and 255.",
            )
        elif doubtful:
            inspection.warn(
                "unlabelled",
                doubtful,
                f"{len(doubtful)} masks in {self.folder}, such as "
                f"{self.paths[doubtful[0]].name}, hold nothing but 0 and 255, others hold 1: "
                "there 255 counts as unlabelled. If it means class 1, save them as 0 and 1.",
            )

    def _check_class_ids(self, inspection: Inspection) -> dict[str, FileInfo]:
        """Report masks with values that are not allowed, and return the others."""
        if self.foreground is None:
            allowed = set(range(self.classes)) | {IGNORE_INDEX}
            rule = (
                f"data.classes={self.classes} allows 0 to {self.classes - 1} (and 255 for "
                f"unlabelled pixels); {self._advice(allowed)}"
            )
        else:
            allowed = {0, self.foreground}
            rule = f"all other masks hold 0 and {self.foreground} alone; mend the mask."
        valid = {}
        for sample_id, info in self.file_info.items():
            wrong = sorted(self.ambiguous.get(sample_id, set()) - allowed)
            if wrong:
                sentence = f"{self.paths[sample_id]} holds the class id {wrong[0]}, but {rule}"
                inspection.add("class id", [sample_id], sentence)
            else:
                valid[sample_id] = info
        return valid

    def _advice(self, allowed: set[int]) -> str:
        """Say what to do: mend the mask, or add classes if many masks have ids of more."""
        wrong = [values - allowed for values in self.ambiguous.values() if values - allowed]
        highest = max((max(values) for values in wrong), default=0)
        if 2 * len(wrong) > len(self.file_info) and highest < MANY:
            return f"set data.classes={highest + 1} if that many are meant, or mend the mask."
        return "set data.classes or mend the mask."

    def _warn_of_single_value(
        self, valid: Mapping[str, FileInfo], value: int, meaning: str, inspection: Inspection
    ) -> None:
        """Warn of masks that hold one value alone."""
        ids = [sample_id for sample_id, info in valid.items() if info["values"] == [value]]
        if ids:
            inspection.warn(
                f"all {meaning}",
                ids,
                f"{len(ids)} of {len(valid)} masks in {self.folder}, such as "
                f"{self.paths[ids[0]].name}, hold nothing but {meaning}.",
            )
