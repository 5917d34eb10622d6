"""A dataset in a folder: images, masks with the same names, and a split into parts."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from coseg_lightning.data.annotators import (
    FusedMasks,
    Fusion,
    annotator_rows,
    check_annotators,
    check_label,
    check_several,
    doubt_of_agreement,
    keys_by_image,
    warn_of_similar_names,
)
from coseg_lightning.data.finding import MASKS, files_of, find_files, mask_names
from coseg_lightning.data.folder_checks import (
    check_channels,
    check_classes_survive,
    check_counts_of_slices,
    check_duplicates,
    check_groups,
    check_ids_name_different_files,
    check_image_files,
    check_masks_have_an_image,
    check_no_channels,
    check_places_agree,
    check_sizes_agree,
    check_volumes,
    inspect_images,
    warn_of_blank_images,
    warn_of_dicom_and_nifti,
    warn_of_gaps,
    warn_of_masks_beside_the_table,
    warn_of_other_masks,
    warn_of_slices_across,
    warn_of_turned_images,
    warn_of_unread_files,
)
from coseg_lightning.data.preparation import without_gaps
from coseg_lightning.data.split import SPLITS, divide, read_split, warn_of_division, warn_of_lists
from coseg_lightning.data.tiles import TiledImages, Tiles, check_tile
from coseg_lightning.errors import InputError
from coseg_lightning.files.canvas import Canvas
from coseg_lightning.files.images import ImageRules
from coseg_lightning.files.inspection import FileInfo, Inspection, OnBadSample
from coseg_lightning.files.mask_folder import MaskFolder
from coseg_lightning.files.mask_rules import IGNORE_INDEX, MaskRules, unnamed_background
from coseg_lightning.files.naming import PLAIN, Names, match_ids, split_key
from coseg_lightning.labels.masks import Mask, MaskedImages
from coseg_lightning.ranking.people import name_of


class Splits(NamedTuple):
    """The three parts of a dataset. Validation and test may be missing."""

    train: MaskedImages
    val: MaskedImages | None
    test: MaskedImages | None


class FolderImages:
    """Some samples of a folder. It implements `MaskedImages`.

    Args:
        ids: The samples.
        images: The image file of each sample.
        masks: The folder of masks, or its fused masks if images have several.
        digest: A digest of the files' content.
        digests: A digest of each image's pixels, None if all of its pixels are equal.
        trusted: Whether somebody checked the masks, so that results on them can be trusted.
        rules: Which bands of the image files are read, and how.
        with_gaps: The samples with missing pixels.
        groups: The group of each sample, such as its patient, if known.
        annotators: Who drew the mask of each sample, if known.
        split_by: What decided which samples these are, in words.

    Attributes:
        annotators: The annotator of each sample with one mask, if known.
        several: The samples with masks by several annotators, or None.
        sizes: Height and width of each sample.
        file_digests: Digests of each sample's image and of its mask file.
    """

    def __init__(
        self,
        ids: Sequence[str],
        images: Mapping[str, Path],
        masks: MaskFolder | FusedMasks,
        digest: str,
        digests: Mapping[str, str | None] | None = None,
        trusted: bool = False,
        rules: ImageRules | None = None,
        with_gaps: Collection[str] = (),
        groups: Mapping[str, str] | None = None,
        annotators: Mapping[str, str] | None = None,
        split_by: str = "",
    ) -> None:
        self.split_by = split_by
        people = masks if isinstance(masks, FusedMasks) else None
        named = (people.annotators if people else {}) | dict(annotators or {})
        self.annotators = {i: named[i] for i in ids if i in named}
        self.several = people.several.only(ids) if people and people.several else None
        self.trusted = trusted
        self.groups = {i: groups[i] for i in ids if i in groups} if groups else {}
        self._rules = ImageRules() if rules is None else rules
        self._with_gaps = frozenset(with_gaps)
        self.ids = list(ids)
        self.digests = {sample_id: (digests or {}).get(sample_id) for sample_id in ids}
        self.digest = digest
        self.file_digests = {
            i: (str(self.digests[i]), str(masks.file_info[i]["digest"])) for i in ids
        }
        self.sizes = {sample_id: masks.file_info[sample_id]["size"] for sample_id in ids}
        self._images = images
        self._masks = masks

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """Read one image as it is stored. Missing values are NaN."""
        return self._rules.read(self._images[self.ids[index]])

    def mask(self, index: int) -> Mask:
        """Read one mask as class ids, at its stored size.

        Pixels that the image lacks are unlabelled.
        """
        mask = self._masks.read(self.ids[index])
        if self.ids[index] in self._with_gaps:
            image = self.image(index)
            missing = np.isnan(image)
            mask[missing if image.ndim == 2 else missing.all(axis=2)] = IGNORE_INDEX
        return mask


def folder_splits(
    root: str | Path,
    *,
    classes: int = 2,
    images: str = "auto",
    masks: str | Sequence[str] = "auto",
    image_glob: str = "auto",
    mask_glob: str = "auto",
    annotators: Any = "auto",
    label: str | None = None,
    val_share: float = 0.0,
    test_share: float = 0.2,
    seed: int = 0,
    group: str | None = None,
    trusted_ids: Collection[str] | None = None,
    in_channels: int | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    image_size: int | Sequence[int] | None = None,
    keep_shape: bool = True,
    class_ids: Sequence[int] | None = None,
    colours: str | None = None,
    mask_threshold: float | None = None,
    instances: str | None = None,
    allow_links: bool = False,
    tile: int | None = None,
    overlap: int = 64,
    copies: str | Path | None = None,
    on_bad_sample: OnBadSample = "error",
    problems: str | Path | None = None,
    hide_annotators: bool = False,
) -> Splits:
    r"""Open a dataset: a folder of images and a folder of masks, with files of the same stem.

    Every file is read once before training, and all problems are reported together. A file
    `root/split.csv` with the columns `id` and `split` (train, val or test) decides the split.
    Images that it does not name are not used. If it has a column `group` but no `split`, the split
    is drawn so that no group is in two parts. Without the file, folders named train, val and test
    or VOC's lists decide. If there are none, the split is drawn.

    Args:
        root: The folder.
        classes: Number of classes, background included.
        images: Name of the folder of images in `root`; `auto` finds it, see `find_folder`.
        masks: Name of the folder of masks in `root`; `auto` finds it. A list names one folder per
            annotator; an image may then have several masks.
        image_glob: Pattern of the images' names below their folder, see `Names`. `auto` is
            `{id}.*`, or the pattern that fits the files, see `guess_patterns`.
        mask_glob: Pattern of the masks' names below theirs. It may contain `{annotator}`.
        annotators: Who drew each mask: a table with the columns `id` and `annotator`, pairs of
            both, a mapping from id to annotator, or None. `auto` reads `root/annotators.csv` if it
            exists.
        label: How several masks of an image are fused, one of `labels.fusion.LABELS`; by default
            by the majority.
        val_share: Share of the samples for validation, if the split is drawn.
        test_share: Share of the samples for the test, if the split is drawn.
        seed: Seed of the random split.
        group: A regular expression that matches every id. Its only group is the sample's patient,
            place or the like: `(P\d+)_.*`.
        trusted_ids: Samples whose masks somebody checked. Only they are tested on. A column
            `trusted` of `split.csv`, with 1 or 0, names them too. If the split is drawn, all of
            them are test samples, and no others.
        in_channels: Number of bands of the network input, if known. Images that cannot be converted
            to it are refused.
        bands: The bands that are read, counted from 1.
        nodata: The value of missing pixels; by default the one in the file's header.
        image_size: Side of the network input, or its height and width, if known. No class may
            vanish from all training masks at this size.
        keep_shape: See `CoSegDataModule`.
        class_ids: The value of each class in the masks, if these are not 0, 1, 2 and so on.
        colours: What the colours of masks mean, see `read_colours`.
        mask_threshold: The value from which soft masks mean class 1.
        instances: `foreground` if every value but 0 is an object of class 1.
        allow_links: Whether links may lead out of `root`.
        tile: Side of the tiles that images are cut into, see `Tiles`; by default they are not cut.
        overlap: The least overlap of neighbouring tiles.
        copies: With tiles, the folder for decoded copies of files that cannot be read by windows.
            These are all but most TIFF files and images in `.npy`. The default is in the user's
            cache folder.
        on_bad_sample: `error`, or `skip` to skip samples that cannot be used.
        problems: A CSV file that is written if there are problems or warnings.
        hide_annotators: Whether problems and warnings name no annotator.

    Returns:
        The parts of the dataset.

    Raises:
        InputError: If anything is missing or does not fit together.
    """
    check_on_bad_sample(on_bad_sample)
    check_label(label)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"data.root={root}: there is no such folder; give one that holds a folder of images "
            "and a folder of masks."
        )
    image_rules = ImageRules.from_settings(
        {"bands": bands, "in_channels": in_channels, "nodata": nodata}
    )
    mask_rules = MaskRules.from_settings(
        {
            "classes": classes,
            "class_ids": class_ids,
            "colours": colours,
            "mask_threshold": mask_threshold,
            "instances": instances,
        }
    )
    found = find_files(root, images, masks, image_glob, mask_glob)
    files = {sample_id: paths[0] for sample_id, paths in found.images.files.items()}
    division = divide(
        root,
        found.images,
        val_share=val_share,
        test_share=test_share,
        seed=seed,
        group=group,
        trusted_ids=trusted_ids,
    )
    split, groups, trusted = division.parts, division.groups, division.trusted

    inspection = Inspection(root)
    warn_of_division(division, files, trusted_ids or (), inspection)
    if not division.has_table:
        warn_of_lists(root, inspection)
    if isinstance(colours, str) and (sentence := unnamed_background(colours)) is not None:
        inspection.warn("background", [], sentence)
    mask_files = match_ids(files, found.mask_files)
    unreadable = check_volumes(split, files, mask_files, inspection)
    check_image_files(split, found.images, division.source, inspection, allow_links=allow_links)
    check_ids_name_different_files(split, inspection)
    if tile is not None:
        check_tile(tile, overlap)
    image_infos = inspect_images(split, files, inspection, image_rules, by_tiles=tile is not None)
    with_image = [sample_id for sample_id in split if sample_id in files]
    by_image = keys_by_image(mask_files)
    check_no_channels(with_image, by_image)
    own = {i: by_image.get(i, {"": i}) for i in with_image}
    check_several(label, own, tile=tile)
    unequal = check_counts_of_slices(files, mask_files, own, inspection)
    keys = [key for masks_of_image in own.values() for key in masks_of_image.values()]
    named = check_annotators(
        *annotator_rows(annotators, root),
        files,
        {i: [name or None for name in own[i]] for i in own},
        inspection,
        hidden=hide_annotators,
    )
    mask_folder = MaskFolder(
        found.mask_root,
        classes=classes,
        ids=[key for key in keys if key not in unequal | unreadable],
        inspection=inspection,
        rules=mask_rules,
        files=mask_files,
        dataset=root if found.mask_root == root else None,
        canvas=None
        if image_size is None or tile is not None
        else Canvas.of(image_size, keeps_shape=keep_shape),
        allow_links=allow_links,
    )
    if division.has_table:  # which says which files are used
        warn_of_masks_beside_the_table(mask_files, files, division.source, inspection)
    else:
        check_masks_have_an_image(mask_folder, found.images.folder, files, inspection)
    for names in (found.images, *found.masks):
        warn_of_unread_files(names, inspection)
    if masks == "auto" and found.mask_root.name != MASKS[0]:
        warn_of_other_masks(root, found.masks[0], found.images, inspection)
    of_masks = {key: image_infos[i] for key in keys if (i := split_key(key)[0]) in image_infos}
    check_sizes_agree(of_masks, mask_folder, inspection)
    check_places_agree(of_masks, mask_folder, inspection)
    check_channels(image_infos, files, image_rules, inspection)
    usable, unusable = _usable_masks(own, mask_folder, inspection)
    good_images = {i: info for i, info in image_infos.items() if i not in unusable}
    good_masks = {key: image_infos[i] for i in good_images for key in usable[i].values()}
    warn_of_blank_images(good_images, files, inspection)
    warn_of_gaps(good_images, files, inspection)
    warn_of_slices_across(good_images, files, inspection)
    image_of_mask = {key: files[split_key(key)[0]] for key in good_masks}
    warn_of_turned_images(good_masks, image_of_mask, mask_folder, inspection)
    warn_of_dicom_and_nifti(image_of_mask, mask_folder, inspection)
    label_masks: MaskFolder | FusedMasks = mask_folder
    doubt = None
    if any(split_key(key)[1] is not None for key in keys):
        fusion = Fusion(mask_folder, label or "majority", seed, _Reader(files, image_rules))
        label_masks = FusedMasks(fusion, usable)
        if label_masks.several is not None:
            doubt = doubt_of_agreement(label_masks.several, inspection, hidden=hide_annotators)
    drawn_by = {name_of(split_key(key)[1]) for key in good_masks} | set(named.values())
    warn_of_similar_names(drawn_by, inspection, hidden=hide_annotators)
    check_duplicates(good_images, files, label_masks, split, inspection)
    check_groups(groups, split, inspection)
    training = [key for key in good_masks if split[split_key(key)[0]] == "train"]
    if image_size is not None and tile is None:
        size = image_size if isinstance(image_size, int) else [int(n) for n in image_size]
        check_classes_survive(mask_folder, training, size, inspection)
    inspection.report(skip=on_bad_sample == "skip", table=problems)
    if doubt is not None:
        raise InputError(doubt)

    _, unusable = _usable_masks(own, mask_folder, inspection)
    parts = _usable_parts(split, unusable)
    if not parts["train"]:
        raise InputError(f"{root} holds no usable sample for training.")
    if tile is not None:
        good = {i: image_infos[i] for ids in parts.values() for i in ids}
        tiles = Tiles(
            files,
            mask_folder,
            good,
            image_rules,
            tile=tile,
            overlap=overlap,
            folder=tile_copies() if copies is None else Path(copies),
        )
        tiled = [
            TiledImages(
                ids,
                tiles,
                _digest(ids, image_infos, mask_folder, image_rules),
                file_digests={
                    i: (str(image_infos[i]["digest"]), str(mask_folder.file_info[i]["digest"]))
                    for i in ids
                },
                trusted=part != "train" and bool(ids) and trusted.issuperset(ids),
                groups=groups,
                annotators=named,
                split_by=division.words,
            )
            for part, ids in parts.items()
        ]
        return Splits(tiled[0], *(part if len(part) else None for part in tiled[1:]))
    digests = {sample_id: info["digest"] for sample_id, info in image_infos.items()}
    train, val, test = (
        FolderImages(
            ids,
            files,
            label_masks,
            _digest(ids, image_infos, label_masks, image_rules),
            digests,
            trusted=part != "train" and bool(ids) and trusted.issuperset(ids),
            rules=image_rules,
            with_gaps=[i for i in ids if image_infos[i]["missing"] > 0],
            groups=groups,
            annotators=named,
            split_by=division.words,
        )
        for part, ids in parts.items()
    )
    return Splits(train, val if len(val) else None, test if len(test) else None)


@dataclass(frozen=True)
class _Reader:
    """Reads the image of a sample, without gaps."""

    files: Mapping[str, Path]
    rules: ImageRules

    def __call__(self, sample_id: str) -> NDArray[Any]:
        return without_gaps(self.rules.read(self.files[sample_id]))


def _usable_masks(
    keys: Mapping[str, Mapping[str, str]], masks: MaskFolder, inspection: Inspection
) -> tuple[dict[str, dict[str, str]], frozenset[str]]:
    """Return the usable masks of each image, by annotator, and the unusable samples.

    An image stays usable as long as one annotator's mask is usable.
    """
    unusable = inspection.unusable_ids
    usable = {
        i: {n: key for n, key in of.items() if key in masks.file_info and key not in unusable}
        for i, of in keys.items()
    }
    lost = frozenset(i for i, of in usable.items() if not of)
    return {i: of for i, of in usable.items() if of}, unusable | lost


def tile_copies() -> Path:
    """Return the default folder for decoded copies."""
    return user_cache_path("coseg-lightning") / "tiles"


class JudgedMasks(NamedTuple):
    """The masks of a dataset's folder: those that a run reads, and all others.

    Attributes:
        images: The samples that a run reads. Their masks are those that the run sees.
        folder: Their mask files.
        others: The mask files that the run does not read.
        files: The image file of each sample.
        infos: Information on each image, if there are images.
        keys: The key of each sample's first mask file, see `files.naming.mask_key`.
    """

    images: FolderImages
    folder: MaskFolder
    others: list[Path]
    files: Mapping[str, Path]
    infos: Mapping[str, FileInfo]
    keys: Mapping[str, str]


def judged_masks(source: Mapping[str, Any], *, skip: bool = False) -> JudgedMasks:
    """Open the masks of a dataset as `folder_splits` reads them.

    Args:
        source: The arguments of `folder_splits`.
        skip: Whether unusable masks are skipped with a warning.

    Raises:
        InputError: If masks are missing or cannot be used, and are not skipped.
    """
    root = Path(source["root"]).expanduser()
    if isinstance(source["masks"], str) and not (root / source["masks"]).is_dir():
        raise InputError(
            f"{root / source['masks']}, the folder of the run's masks, does not exist; if the data "
            "was moved, give root=DIR."
        )
    # Version 0.1 saved no patterns.
    patterns = (source.get("image_glob", PLAIN), source.get("mask_glob", PLAIN))
    images_folder = root / source.get("images", "images")
    images = Names(images_folder, patterns[0]) if images_folder.is_dir() else None
    image_files = images.files if images is not None else {}
    stems = images.stems if images is not None else None
    names, mask_root = mask_names(root, source["masks"], patterns[1], stems)
    mask_files = files_of(names, mask_root)
    table = root / "split.csv"
    ids = list(read_split(table)) if table.exists() else list(image_files)
    if image_files:
        mask_files = match_ids(image_files, mask_files)
    by_image = keys_by_image(mask_files)
    read = [i for i in ids if i in by_image and i in image_files] or list(by_image)
    rules = ImageRules.from_settings(source)
    folder = MaskFolder(
        mask_root,
        classes=source["classes"],
        ids=[key for sample_id in read for key in by_image[sample_id].values()],
        skip=skip,
        rules=MaskRules.from_settings(source),
        files=mask_files,
        allow_links=bool(source.get("allow_links")),
        dataset=root if mask_root == root else None,
    )
    files = {sample_id: paths[0] for sample_id, paths in image_files.items()}
    by_tiles = source.get("tile") is not None
    infos = inspect_images(
        {i: "" for i in read if any(key in folder.file_info for key in by_image[i].values())},
        files,
        Inspection(root),
        rules,
        by_tiles=by_tiles,
    )
    keys = {i: _of_its_size(by_image[i], folder, infos.get(i)) for i in read}
    keys = {sample_id: usable for sample_id, usable in keys.items() if usable}
    read = list(keys)
    gaps = [sample_id for sample_id, info in infos.items() if info["missing"] > 0]
    masks: MaskFolder | FusedMasks = folder
    if any(split_key(key)[1] is not None for key in mask_files):
        label = source.get("label") or "majority"
        seed = int(source.get("seed") or 0)
        masks = FusedMasks(Fusion(folder, label, seed, _Reader(files, rules)), keys)
    judged = FolderImages(read, files, masks, "", rules=rules, with_gaps=gaps)
    used = {folder.path(key) for of in keys.values() for key in of.values()}
    others = [
        path
        for key, paths in mask_files.items()
        for path in paths
        if path not in used and (split_key(key)[1] is None or split_key(key)[0] not in keys)
    ]
    first = {sample_id: next(iter(of.values())) for sample_id, of in keys.items()}
    return JudgedMasks(judged, folder, others, files, infos, first)


def _of_its_size(
    keys: Mapping[str, str], masks: MaskFolder, image: FileInfo | None
) -> dict[str, str]:
    """Return an image's usable masks. If it has several, a run reads only those of its size."""
    usable = {name: key for name, key in keys.items() if key in masks.file_info}
    if len(keys) == 1 or image is None:
        return usable
    return {n: key for n, key in usable.items() if masks.file_info[key]["size"] == image["size"]}


def judged_tiles(judged: JudgedMasks, source: Mapping[str, Any], copies: Path) -> TiledImages:
    """Cut the masks that a run reads into the run's tiles.

    Args:
        judged: The masks.
        source: The arguments of `folder_splits`.
        copies: The folder of decoded copies.

    Raises:
        InputError: If an image is missing or cannot be read.
    """
    lost = [image_id for image_id in judged.images.ids if image_id not in judged.infos]
    if lost:
        raise InputError(
            f"The image of {lost[0]} is missing or cannot be read, but a run by tiles needs it; "
            "restore the images, or give the folder of the data with root=DIR."
        )
    tiles = Tiles(
        judged.files,
        judged.folder,
        {image_id: judged.infos[image_id] for image_id in judged.images.ids},
        ImageRules.from_settings(source),
        tile=source["tile"],
        overlap=source["overlap"],
        folder=copies,
    )
    return TiledImages(judged.images.ids, tiles, "")


def check_on_bad_sample(value: str) -> None:
    """Raise an `InputError` unless the value is `error` or `skip`."""
    if value not in ("error", "skip"):
        raise InputError(f"on_bad_sample={value} must be error or skip.")


def _usable_parts(split: Mapping[str, str], unusable: Collection[str]) -> dict[str, list[str]]:
    return {part: [i for i in split if split[i] == part and i not in unusable] for part in SPLITS}


def _digest(
    ids: Sequence[str],
    images: Mapping[str, FileInfo],
    masks: MaskFolder | FusedMasks,
    rules: ImageRules,
) -> str:
    """Return a digest of the images and masks of one part, and of the rules for reading them."""
    content: list[Any] = [
        (images[i]["digest"], images[i]["size"], masks.file_info[i]["digest"]) for i in ids
    ]
    if rules.bands is not None or rules.nodata is not None or masks.rules.class_ids is not None:
        content.append([repr(rules), repr(masks.rules.class_ids)])
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
