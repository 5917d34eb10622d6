"""Checks of the values in a folder of masks and of their meaning, above all of 255."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from coseg_lightning.files.inspection import FileInfo, Inspection
from coseg_lightning.files.mask_file import jpeg_message, mark_of_missing, soft_mask_hint
from coseg_lightning.files.mask_rules import HIGHEST_VALUES, IGNORE_INDEX, MaskRules, listed

MANY = 40  # masks with more classes than these are probably grey images
LARGEST_ID = 2**31
FULL = 0.999  # a mask is full if at least this share of it is foreground
# A folder has masks of both polarities if some have foreground along most of the border and over
# most of the image, the others along little of both, and none lies in between.
MOSTLY, HARDLY = 0.75, 0.25
LEAST_OF_POLARITY, LEAST_SHARE_OF_POLARITY = 2, 0.1


class MaskValues:
    """The values of all masks of a folder, and the rules that they must follow.

    Masks hold class ids `0 .. classes-1` and 255 for unlabelled pixels. If there are two classes
    and all masks hold only 0 and 255 (or 0 and 65535), that value means class 1.

    Args:
        folder: The folder, for messages.
        paths: The file of each sample.
        rules: The meaning of the values according to the user.
        file_info: The information on each readable mask, by sample.

    Attributes:
        foreground: The value that means class 1, if it is 255 or 65535; otherwise None.
    """

    def __init__(
        self,
        folder: Path,
        paths: Mapping[str, Path],
        rules: MaskRules,
        file_info: Mapping[str, FileInfo],
    ) -> None:
        self.folder = folder
        self.paths = paths
        self.rules = rules
        self.classes = rules.classes
        self.file_info = dict(file_info)
        # A two-valued mask needs no such rule: its classes are already known.
        mark = mark_of_missing(rules)
        self.ambiguous = {
            sample_id: _stored_values(info, mark)
            for sample_id, info in file_info.items()
            if not info["two_valued"]
        }
        self.all_values = self._union_of_valid_masks()
        self.foreground = self._foreground_value()

    def _file(self, key: str) -> str:
        """A mask's file within the folder, for messages; annotators' files may share a name."""
        path = self.paths[key]
        return str(path.relative_to(self.folder) if self.folder in path.parents else path.name)

    def _union_of_valid_masks(self) -> set[int]:
        """Collect the values of ambiguous masks. A bad mask must not change the meaning of 255."""
        highest = set(HIGHEST_VALUES) if self.classes == 2 else {IGNORE_INDEX}
        known = set(range(self.classes)) | highest
        return set[int]().union(*(values for values in self.ambiguous.values() if values <= known))

    def _foreground_value(self) -> int | None:
        if self.classes == 2 and self.rules.class_ids is None and self.rules.colours is None:
            for highest in HIGHEST_VALUES:
                if highest in self.all_values and self.all_values <= {0, highest}:
                    return highest
        return None

    def check(self, inspection: Inspection) -> dict[str, FileInfo]:
        """Record the masks whose values are wrong or doubtful.

        Args:
            inspection: Receives problems and warnings.

        Returns:
            The information on the masks whose class ids are valid.
        """
        if self.foreground is None and self.rules == MaskRules(self.classes):
            self._check_masks_of_0_and_255(inspection)
        if self.foreground == IGNORE_INDEX:
            self._check_missing_beside_255(inspection)
        if self.rules.instances:
            self._check_objects_of_255(inspection)
        if self.rules.threshold is None:
            self._check_faint(inspection)
        self._check_keys(inspection)
        self._check_transparency(inspection)
        self._check_palettes(inspection)
        valid = self._check_class_ids(inspection)
        if self.classes == 2 and self.rules.class_ids is None:
            self._check_polarity(valid, inspection)
        background = 0 if self.rules.class_ids is None else self.rules.class_ids[0]
        self._warn_of_single_value(valid, background, "background", inspection)
        if self.foreground is None:
            self._warn_of_single_value(valid, IGNORE_INDEX, "unlabelled pixels", inspection)
        self._warn_of_absent_class(valid, inspection)
        self._warn_of_validity_masks(valid, inspection)
        self._warn_of_shares(valid, inspection)
        return valid

    def _check_masks_of_0_and_255(self, inspection: Inspection) -> None:
        """Report masks with only 0 and 255 where 255 means unlabelled."""
        doubtful = [
            sample_id
            for sample_id, values in self.ambiguous.items()
            if 255 in values and values <= {0, 255}
        ]
        if doubtful and self.all_values <= {0, 255}:
            inspection.add(
                "class id",
                doubtful,
                f"{self.folder} holds only the values 0 and 255, but with {self.classes} classes "
                "255 means unlabelled; set data.classes=2, or save class ids.",
            )
        elif doubtful and self.all_values == {0, *HIGHEST_VALUES}:
            inspection.add(
                "class id",
                doubtful,
                f"{len(doubtful)} of {len(self.file_info)} masks in {self.folder}, such as "
                f"{self._file(doubtful[0])}, hold 0 and 255, but others 0 and 65535; save all of "
                "them alike.",
            )
        elif self.classes == 2 and 2 * len(doubtful) > len(self.ambiguous):
            other = next(sample_id for sample_id, values in self.ambiguous.items() if 1 in values)
            inspection.add(
                "class id",
                doubtful,
                f"{len(doubtful)} of {len(self.file_info)} masks in {self.folder} hold only 0 and "
                f"255, but {self._file(other)} holds 1, so 255 would mean unlabelled in all "
                "masks; save all masks as 0 and 1, or all as 0 and 255.",
            )
        elif self.classes == 2 and (whole := self._folders_without_1(doubtful)):
            inspection.add(
                "class id",
                [sample_id for sample_id in doubtful if self.paths[sample_id].parent in whole],
                f"The masks in {min(whole)} hold only 0 and 255, but those in other folders hold "
                "1, so 255 would mean unlabelled; save all masks as 0 and 1, or all as 0 and 255.",
            )
        elif doubtful:
            inspection.warn(
                "unlabelled",
                doubtful,
                f"{len(doubtful)} of {len(self.file_info)} masks in {self.folder}, such as "
                f"{self._file(doubtful[0])}, hold only 0 and 255, but other masks hold 1, so "
                "255 counts as unlabelled. If 255 means class 1, save these masks as 0 and 1.",
            )

    def _folders_without_1(self, doubtful: Collection[str]) -> set[Path]:
        """Return the folders in which 255 must mean class 1, as one person may save masks.

        There several masks hold 255 and none holds 1, and nowhere does a mask hold both.
        """
        values: dict[Path, set[int]] = {}
        for sample_id, found in self.ambiguous.items():
            values.setdefault(self.paths[sample_id].parent, set()).update(found)
        counts = Counter(self.paths[sample_id].parent for sample_id in doubtful)
        if any({1, 255} <= found for found in self.ambiguous.values()):
            return set()
        return {folder for folder in counts if counts[folder] > 1 and 1 not in values[folder]}

    def _check_missing_beside_255(self, inspection: Inspection) -> None:
        """Report missing pixels, which are read as 255, if 255 means class 1."""
        infos = self.file_info
        doubtful = [i for i, info in infos.items() if info["missing"] is not None]
        if doubtful and any(info["holds_255"] for info in infos.values()):
            inspection.add(
                "class id",
                doubtful,
                f"{len(doubtful)} of {len(infos)} masks in {self.folder}, such as "
                f"{self._file(doubtful[0])}, have pixels of {infos[doubtful[0]]['missing']:g}, "
                "which their headers call missing, beside 255 for class 1; set "
                "data.class_ids=[0,255] to tell them apart.",
            )

    def _check_objects_of_255(self, inspection: Inspection) -> None:
        """Report or warn of masks of objects in which 255 means unlabelled."""
        values = {sample_id: set(info["values"]) for sample_id, info in self.file_info.items()}
        unlabelled = [sample_id for sample_id in values if IGNORE_INDEX in values[sample_id]]
        if not unlabelled:
            return
        if set[int]().union(*values.values()) <= {0, IGNORE_INDEX}:
            inspection.add(
                "class id",
                unlabelled,
                f"The masks in {self.folder}, such as {self._file(unlabelled[0])}, hold only 0 and "
                "255, and with data.instances=foreground 255 means unlabelled; leave "
                "data.instances out.",
            )
            return
        inspection.warn(
            "unlabelled",
            unlabelled,
            f"{len(unlabelled)} of {len(values)} masks in {self.folder}, such as "
            f"{self._file(unlabelled[0])}, have pixels of 255, or missing ones, that count as "
            "unlabelled; if 255 is an object there, give it another number.",
        )

    def _check_faint(self, inspection: Inspection) -> None:
        """Report JPEG masks of low values, unless brighter ones show that these are noise."""
        infos = self.file_info.values()
        if any(info["values"] != [0] and not info["is_faint"] for info in infos):
            return
        for sample_id in [i for i, info in self.file_info.items() if info["is_faint"]]:
            inspection.add("class id", [sample_id], jpeg_message(self.paths[sample_id]))

    def _check_keys(self, inspection: Inspection) -> None:
        """Report masks that call class 1 transparent: is what they draw class 1, or the rest?"""
        if self.rules != MaskRules(2):
            return
        doubtful = [
            sample_id
            for sample_id, info in self.file_info.items()
            if info["key"] and info["key"] == (1 if info["two_valued"] else self.foreground or 1)
        ]
        if doubtful:
            key = self.file_info[doubtful[0]]["key"]
            inspection.add(
                "transparent",
                doubtful,
                f"{len(doubtful)} of {len(self.file_info)} masks in {self.folder}, such as "
                f"{self._file(doubtful[0])}, call the value {key} transparent, so it is open which "
                f"part is drawn; set data.class_ids=[{key},0] if it is the other one, else "
                f"[0,{key}].",
            )

    def _check_transparency(self, inspection: Inspection) -> None:
        """Report black masks with transparency if others hold values beside it, as GDAL writes."""
        black = [i for i, info in self.file_info.items() if info["opaque"] == "black"]
        others = [i for i, info in self.file_info.items() if info["opaque"] == "values"]
        if black and others:
            inspection.add(
                "transparent",
                black,
                f"{len(black)} of {len(self.file_info)} masks in {self.folder}, such as "
                f"{self._file(black[0])}, are black where they are opaque, but others, such as "
                f"{self._file(others[0])}, hold several values there, so it is open whether these "
                "are empty; save the masks without transparency.",
            )

    def _check_palettes(self, inspection: Inspection) -> None:
        """Report palettes with different colours for one index, unless a rule sets the meaning."""
        if self.rules.class_ids is not None or self.rules.colours is not None:
            return
        colours: dict[int, tuple[list[int], str]] = {}
        for sample_id, info in self.file_info.items():
            if info["palette"] is None or info["two_valued"]:
                continue
            for value, colour in zip(info["values"], info["palette"], strict=True):
                first, other = colours.setdefault(value, (colour, sample_id))
                if first != colour:
                    inspection.add(
                        "palettes",
                        [sample_id],
                        f"{self.paths[sample_id]} shows the index {value} as {tuple(colour)}, but "
                        f"{self._file(other)} shows it as {tuple(first)}; name the class of "
                        "each colour (data.colours=FILE), or of each index (data.class_ids=[0,1]).",
                    )
                    break

    def _check_class_ids(self, inspection: Inspection) -> dict[str, FileInfo]:
        """Report masks with invalid values, and return the others."""
        class_ids = self.rules.class_ids
        if class_ids is not None:
            allowed = {*class_ids, IGNORE_INDEX}
            rule = f"data.class_ids={list(class_ids)} names others; {self._advice(allowed)}"
        elif self.foreground is None:
            allowed = set(range(self.classes)) | {IGNORE_INDEX}
            rule = (
                f"data.classes={self.classes} allows 0 to {self.classes - 1} (and 255 for "
                f"unlabelled pixels); {self._advice(allowed)}"
            )
        else:
            allowed = {0, self.foreground}
            rule = f"all other masks hold only 0 and {self.foreground}; correct the mask."
        valid = {}
        for sample_id, info in self.file_info.items():
            wrong = sorted(self.ambiguous.get(sample_id, set()) - allowed)
            if wrong:
                ids = "id" if len(wrong) == 1 else "ids"
                text = f"{self.paths[sample_id]} holds the class {ids} {listed(wrong)}, but {rule}"
                hint = None
                if self.classes == 2:
                    hint = soft_mask_hint(info["values"], info["counts"])
                if hint is not None:
                    text = f"{text.rstrip('.')}; {hint}."
                inspection.add("class id", [sample_id], text)
            else:
                valid[sample_id] = info
        return valid

    def _advice(self, allowed: set[int]) -> str:
        """Advise to mend the mask, or to set more classes if most masks have further ids."""
        wrong = [values - allowed for values in self.ambiguous.values() if values - allowed]
        highest = max((max(values) for values in wrong), default=0)
        if self.all_values == {0, *HIGHEST_VALUES}:
            return "other masks hold 0 and 255; save all of them alike."
        if 2 * len(wrong) <= len(self.file_info):
            return "set data.classes or mend the mask."
        everything = sorted(set[int]().union(*self.ambiguous.values()), key=_background_first)
        is_ignored = IGNORE_INDEX in everything
        if highest < MANY and [value for value in everything if value != IGNORE_INDEX] == list(
            range(highest + 1)
        ):
            return (
                f"set data.classes={highest + 1} if there are that many classes, or correct the "
                "mask."
            )
        found = f"the folder holds {listed(everything)}"
        if len(everything) <= MANY:
            left_out = " (without 255, if it means unlabelled)" if is_ignored else ""
            is_grey = min(everything) >= 0 and max(everything) <= IGNORE_INDEX
            no_class = "; a value that is no class may have class 255 in a table data.colours=FILE"
            return (
                f"{found}: set data.classes={len(everything)} data.class_ids={_ids(everything)} if "
                f"these are the classes{left_out}, or correct the mask{no_class * is_grey}."
            )
        return f"{found}: set data.classes or correct the mask."

    def _check_polarity(self, valid: Mapping[str, FileInfo], inspection: Inspection) -> None:
        """Refuse a folder if most masks are full, or if masks have different polarities."""
        foreground = 1 if self.foreground is None else self.foreground
        shares, borders = {}, {}
        for sample_id, info in valid.items():
            value = 1 if info["two_valued"] else foreground
            counts = dict(zip(info["values"], info["counts"], strict=True))
            labelled = sum(n for v, n in counts.items() if v in (0, value))
            shares[sample_id] = counts.get(value, 0) / max(1, labelled)
            borders[sample_id] = dict(zip(info["values"], info["border"], strict=True)).get(
                value, 0
            )
        full = [sample_id for sample_id, share in shares.items() if share >= FULL]
        values = sorted({value for info in valid.values() for value in info["values"]})
        advice = f"if that is right, set data.class_ids=[0,{foreground}]"
        missing = _values_called_missing(valid)
        if len(missing) == 1 and 0 not in values:
            advice = self._advice_on_missing(missing[0], [foreground])
        elif len(values) == 2 and values[0] > 0:
            ids = f"{values[0]},{values[1]}"
            advice = f"if {values[0]} is the background, set data.class_ids=[{ids}]"
        if 2 * len(full) > len(shares) and len(shares) > 1:
            self._refuse(
                inspection,
                full,
                [*full[:1], *[i for i in shares if i not in full][:1], *full[1:2]][:2],
                f"{len(full)} of {len(shares)} masks in {self.folder}, such as "
                f"{self._file(full[0])}, are foreground almost everywhere; {advice}, else save "
                "masks of the objects.",
            )
            return
        light = [i for i, s in shares.items() if s > 0.5 and borders[i] >= MOSTLY]
        dark = [i for i, s in shares.items() if 0 < s < 0.5 and borders[i] <= HARDLY]
        between = sum(0 < s < 1 for s in shares.values()) - len(light) - len(dark)
        few, many = sorted((light, dark), key=len)
        if len(few) < max(LEAST_OF_POLARITY, LEAST_SHARE_OF_POLARITY * len(shares)) or between > 0:
            return
        sizes = sorted(shares[i] for i in dark)
        alike = [i for i in light if sizes[0] / 2 <= 1 - shares[i] <= 2 * sizes[-1]]
        if len(alike) == len(light):  # inverted, they would look like the others
            self._refuse(
                inspection,
                few,
                [few[0], many[0]],
                f"{len(light)} masks in {self.folder}, such as {self._file(light[0])}, are "
                f"foreground along almost the whole border, but the {len(dark)} others, such as "
                f"{self._file(dark[0])}, hardly anywhere: foreground and background are "
                "probably swapped in some masks. Save all masks alike, or set "
                f"data.class_ids=[0,{foreground}] if they are right.",
            )

    def _advice_on_missing(self, missing: float, others: list[int]) -> str:
        """Say how the value that headers call missing becomes the background."""
        text = f"if {missing:g}, which their headers call missing, is the background, "
        is_id = missing.is_integer() and abs(missing) < LARGEST_ID
        if self.rules.threshold is not None or self.rules.instances or not is_id:
            return f"{text}save it as 0"
        return f"{text}set data.class_ids={_ids([int(missing), *others])}"

    def _warn_of_absent_class(self, valid: Mapping[str, FileInfo], inspection: Inspection) -> None:
        """Warn if the unlabelled pixels may be those of a class that no mask holds."""
        if self.foreground is not None or self.rules.colours is not None:
            return
        if any(problem.kind == "polarity" for problem in inspection.problems):
            return  # it was said there
        ids = list(self.rules.class_ids or range(self.classes))
        held = set[int]()
        for info in valid.values():
            numbers = range(2) if info["two_valued"] else ids
            held |= {ids[k] for k, value in enumerate(numbers) if value in info["values"]}
        absent = [k for k, value in enumerate(ids) if value not in held]
        unlabelled = [
            sample_id
            for sample_id, info in valid.items()
            if IGNORE_INDEX in info["values"] and (info["two_valued"] or IGNORE_INDEX not in ids)
        ]
        if not unlabelled or absent not in ([0], [len(ids) - 1]):
            return  # with more classes, a rare one may be absent
        text = (
            f"No mask in {self.folder} holds class {absent[0]}, but {len(unlabelled)} of "
            f"{len(valid)}, such as {self._file(unlabelled[0])}, have unlabelled pixels; "
        )
        missing = _values_called_missing(valid)
        if absent == [0] and len(missing) == 1:
            text += f"{self._advice_on_missing(missing[0], ids[1:])}."
        elif missing or self.rules.threshold is not None or self.rules.instances:
            text += "if they are of that class, save them so."
        else:
            new = [*ids[: absent[0]], IGNORE_INDEX, *ids[absent[0] + 1 :]]
            text += f"if 255 is class {absent[0]}, set data.class_ids={_ids(new)}."
        inspection.warn("no such class", unlabelled, text)

    def _refuse(
        self, inspection: Inspection, ids: Collection[str], shown: Collection[str], sentence: str
    ) -> None:
        inspection.add("polarity", ids, sentence)
        inspection.show(self.paths[sample_id] for sample_id in shown)

    def _warn_of_single_value(
        self, valid: Mapping[str, FileInfo], value: int, meaning: str, inspection: Inspection
    ) -> None:
        """Warn of masks that hold only this value."""
        ids = [sample_id for sample_id, info in valid.items() if info["values"] == [value]]
        if ids:
            inspection.warn(
                f"all {meaning}",
                ids,
                f"{len(ids)} of {len(valid)} masks in {self.folder}, such as "
                f"{self._file(ids[0])}, hold only {meaning}.",
            )

    def _warn_of_validity_masks(
        self, valid: Mapping[str, FileInfo], inspection: Inspection
    ) -> None:
        """Warn of files in which another page says which pixels are valid."""
        ids = [sample_id for sample_id, info in valid.items() if info["has_validity_mask"]]
        if ids:
            inspection.warn(
                "valid pixels",
                ids,
                f"{len(ids)} of {len(valid)} masks in {self.folder}, such as "
                f"{self._file(ids[0])}, hold a mask of valid pixels, which is not read; save 255 "
                "where pixels are unlabelled.",
            )

    def _warn_of_shares(self, valid: Mapping[str, FileInfo], inspection: Inspection) -> None:
        """Warn of a threshold that is a share, for levels that are none."""
        ids = [sample_id for sample_id, info in valid.items() if info["not_shares"] is not None]
        if ids:
            highest = valid[ids[0]]["not_shares"]
            inspection.warn(
                "threshold",
                ids,
                f"{len(ids)} of {len(valid)} masks in {self.folder}, such as {self._file(ids[0])}, "
                f"hold levels up to {highest:g}, of which data.mask_threshold="
                f"{self.rules.threshold:g} makes the faintest class 1; if half is meant, set "
                f"data.mask_threshold={(highest + 1) // 2:g}.",
            )


def _stored_values(info: FileInfo, mark: int) -> set[int]:
    """Return the values of a mask, without the mark of missing pixels if its file holds none."""
    is_stored = mark == IGNORE_INDEX and info["holds_255"]
    return {value for value in info["values"] if value != mark or is_stored}


def _background_first(value: int) -> tuple[bool, int]:
    """Sort values with 0, which is the background nearly always, before negative ones."""
    return value != 0, value


def _ids(values: Collection[int]) -> str:
    """Write class ids without spaces, as the command line wants them."""
    return f"[{','.join(map(str, values))}]"


def _values_called_missing(infos: Mapping[str, FileInfo]) -> list[float]:
    """Return the values that headers call missing, where pixels have them."""
    found = {
        str(info["missing"]): float(info["missing"])
        for info in infos.values()
        if info["missing"] is not None
    }
    return list(found.values())
