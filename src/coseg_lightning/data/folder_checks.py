"""Checks of a folder of images and masks. Each check records the problems of its own kind."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.annotators import FusedMasks
from coseg_lightning.errors import InputError
from coseg_lightning.files.images import SUFFIXES, ImageRules, read_stored
from coseg_lightning.files.inspection import (
    IMAGE_INFO,
    TILE_INFO,
    FileInfo,
    Inspection,
    groups_of_equal,
    image_info,
    links_outside,
    scan_files,
    tiled_image_info,
)
from coseg_lightning.files.mask_folder import MaskFolder, link_message, same_stem
from coseg_lightning.files.naming import (
    Names,
    guess_patterns,
    likely_patterns,
    mask_key,
    split_key,
    unread,
)
from coseg_lightning.files.volumes import (
    DICOM,
    DICOM_PLACE,
    NIFTI,
    PLACE,
    ending,
    file_of,
    is_volume,
    name_of_file,
)
from coseg_lightning.labels.ids import check_id, portable_name, same_file_message
from coseg_lightning.labels.masks import mask_digest

# Pairs of an image's and the networks' number of bands between which images are converted.
CONVERTED = ((1, 2), (1, 3), (3, 1))
FLAT = 0.02  # a band is flat if it spans less than this share of the range of all bands
FEW_GROUPS = 5
THICK = 2  # slices are often thicker than their pixels by more than this factor


def check_image_files(
    split: Mapping[str, str],
    images: Names,
    table: Path,
    inspection: Inspection,
    *,
    allow_links: bool,
) -> None:
    """Report samples of a table that do not have exactly one image file with a usable name."""
    folder, told = images.folder, inspection.unusable_ids
    for sample_id in split:
        if sample_id in told:
            continue
        paths = images.files.get(sample_id, [])
        if not paths:
            inspection.add("no image", [sample_id], _no_image_message(sample_id, images, table))
        elif len(paths) > 1:
            inspection.add("same stem", [sample_id], same_stem(paths))
        elif not allow_links and links_outside(paths[0], [folder.parent, folder]):
            inspection.add("link", [sample_id], link_message(paths[0]))
        else:
            try:
                check_id(sample_id)
            except InputError as error:
                inspection.add("name", [sample_id], str(error))


def check_no_channels(images: Collection[str], masks: Mapping[str, Any]) -> None:
    """Raise an `InputError` if files hold one channel of an image each, as nnU-Net's do.

    Args:
        images: The images that are used.
        masks: The masks of each image, also of other images.
    """
    channels: dict[str, list[str]] = {}
    for sample_id in sorted(images):
        match = re.fullmatch(r"(.+)_\d{4}", sample_id)
        if match and sample_id not in masks and match[1] in masks and match[1] not in images:
            channels.setdefault(match[1], []).append(sample_id)
    for name, ids in channels.items():
        if len(ids) > 1:
            raise InputError(
                f"{' and '.join(ids[:2])} are two images, but there is one mask {name}, so they "
                "are probably channels of one image, as nnU-Net stores them; join them into one "
                "file of several bands, such as a TIFF or .npy."
            )


def _no_image_message(sample_id: str, images: Names, table: Path) -> str:
    text = f"{table} names the sample {sample_id}, but {images.folder} has no such image."
    path = sample_id.strip().replace("\\", "/")  # perhaps of Windows
    if ending(Path(path)) in SUFFIXES:
        path = path[: -len(ending(Path(path)))]
    name = path.rpartition("/")[2]
    likely = (name, path.replace("/", "_"), name.removesuffix(".0"))
    near = next((i for i in likely if i in images.files), None)
    if name == f"{near}.0":
        return f"{text} Write {near} instead, which a program may have taken for a number."
    if near is not None:
        return f"{text} An id is a file name without its extension: {near}."
    alike = next((i for i in images.files if i.casefold() == name.casefold()), None)
    if alike is not None:
        return f"{text} Write {alike} instead, which differs in letter case alone."
    for one, paths in images.files.items():
        if re.fullmatch(rf"{re.escape(name)}_\d+", one) and file_of(paths[0]) != paths[0]:
            return f"{text} Of a volume each slice has an id, such as {one}; name them all."
    bare = name.lstrip("0")
    zeros = next((i for i in images.files if bare and i != name and i.lstrip("0") == bare), None)
    if zeros is None:
        return text
    return f"{text} Write {zeros} instead, whose zeros a spreadsheet may have dropped."


def check_ids_name_different_files(split: Mapping[str, str], inspection: Inspection) -> None:
    """Report ids that differ only in letter case or Unicode form."""
    for ids in groups_of_equal({sample_id: portable_name(sample_id) for sample_id in split}):
        inspection.add("letter case", ids, same_file_message(*ids[:2]))


def inspect_images(
    split: Mapping[str, str],
    images: Mapping[str, Path],
    inspection: Inspection,
    rules: ImageRules,
    *,
    by_tiles: bool = False,
) -> dict[str, FileInfo]:
    """Report unreadable images, and return the information on the readable ones."""
    read_info = tiled_image_info if by_tiles else image_info
    unusable = inspection.unusable_ids
    paths = {
        sample_id: images[sample_id]
        for sample_id in split
        if sample_id in images and sample_id not in unusable
    }
    results = scan_files(
        list(paths.values()),
        partial(read_info, rules=rules),
        kind=f"images, 6, {rules}",
        title="Inspecting images",
        names=TILE_INFO if by_tiles else IMAGE_INFO,
    )
    infos: dict[str, FileInfo] = {}
    for sample_id, path in paths.items():
        result = results[path]
        if isinstance(result, InputError):
            inspection.add("unreadable image", [sample_id], str(result))
        else:
            infos[sample_id] = result
    return infos


def check_masks_have_an_image(
    masks: MaskFolder, folder: Path, images: Mapping[str, Path], inspection: Inspection
) -> None:
    """Report masks of samples that have no image."""
    told = inspection.unusable_ids  # such as slices that an image does not have
    lost = [key for key in masks.ids if split_key(key)[0] not in images and key not in told]
    files = [file_of(masks.path(key)) for key in lost]
    is_inside = all(path.is_relative_to(masks.folder) for path in files)
    names = [path.relative_to(masks.folder).as_posix() for path in files if is_inside]
    likely = likely_patterns(names, images.keys())
    remedy = "add the image, or remove the mask"
    if likely.of_people:
        remedy += f"; or, if they name persons, set data.mask_glob='{likely.of_people}'"
    if lost and len(lost) == len(masks.ids):
        plain = likely.plain or ("" if likely.of_people else "{id}_mask.*")
        ways = {"as in": plain, "if they name persons,": likely.of_people}
        named = ", or, ".join(
            f"{way} \"data.mask_glob='{ways[way]}'\"" for way in ways if ways[way]
        )
        remedy = f"no mask has the name of an image: tell how masks are named, {named}"
    near = {_without_case_and_zeros(sample_id): sample_id for sample_id in images}
    for key in lost:
        image = near.get(_without_case_and_zeros(split_key(key)[0]))
        text = remedy
        if image is not None:
            text = f"{image} differs in letter case or leading zeros alone; rename one of them"
        inspection.add("no image", [key], f"{masks.path(key)} has no image in {folder}; {text}.")


def _without_case_and_zeros(name: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.casefold())


def warn_of_masks_beside_the_table(
    mask_files: Iterable[str], images: Mapping[str, Path], table: Path, inspection: Inspection
) -> None:
    """Warn of masks that no image fits; `split.csv` says which files are used."""
    lost = sorted({split_key(key)[0] for key in mask_files} - images.keys())
    if lost:
        inspection.warn(
            "no image",
            [],
            f"Masks without an image are not used: {len(lost)}, such as {lost[0]}; rename them if "
            f"an image of {table.name} has no mask.",
        )


def check_volumes(
    split: Collection[str],
    images: Mapping[str, Path],
    masks: Mapping[str, Sequence[Path]],
    inspection: Inspection,
) -> set[str]:
    """Report volumes that cannot be read, together with the slices that need them.

    Such a volume is one file instead of its slices, see `files.naming.Names`.

    Args:
        split: The samples that are used.
        images: The image of each sample.
        masks: The files of each mask, see `files.naming.Names`.
        inspection: Receives the problems.

    Returns:
        The samples and the keys of masks that were reported.
    """
    of_images, of_masks, of_split = map(_by_volume, (images, masks, split))
    told: set[str] = set()
    for sample_id, path in images.items():
        slices = [i for i in of_split[sample_id] if i not in images]
        drawn = [key for key in of_masks[sample_id] if split_key(key)[0] not in images]
        if (slices or (drawn and sample_id in split)) and is_volume(path):
            told |= _unreadable(path, "image", {sample_id, *slices, *drawn}, inspection)
    for key, paths in masks.items():
        name, annotator = split_key(key)
        used = [i for i in of_images[name] if i in split and mask_key(i, annotator) not in masks]
        if used and name not in images and is_volume(paths[0]):
            lost = {key, *(mask_key(i, annotator) for i in used)}
            told |= _unreadable(paths[0], "mask", lost, inspection)
    return told


def _by_volume(keys: Iterable[str]) -> defaultdict[str, list[str]]:
    """Group samples, or the keys of masks, by the id of the volume whose slices they may be."""
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        grouped[split_key(key)[0].rpartition("_")[0]].append(key)
    return grouped


def _unreadable(path: Path, what: str, keys: set[str], inspection: Inspection) -> set[str]:
    """Report the keys if the file cannot be read, and return them."""
    try:
        read_stored(path, of_mask=what == "mask")
    except InputError as error:
        inspection.add(f"unreadable {what}", sorted(keys), str(error))
        return keys
    return set()


def check_counts_of_slices(
    images: Mapping[str, Path],
    masks: Mapping[str, Sequence[Path]],
    own: Mapping[str, Mapping[str, str]],
    inspection: Inspection,
) -> set[str]:
    """Report all slices of volumes whose mask has another number of slices than their image.

    Masks that cannot be read are passed over, since reading them tells a better reason.

    Args:
        images: The image of each sample.
        masks: The files of each mask, see `files.naming.Names`.
        own: The samples that are used, and the keys of their masks.
        inspection: Receives the problems.

    Returns:
        The samples and the keys of masks that were reported.
    """
    unusable: set[str] = set()
    slices: defaultdict[Path, list[str]] = defaultdict(list)  # of images
    for sample_id, path in images.items():
        slices[file_of(path)].append(sample_id)
    keys: defaultdict[Path, list[str]] = defaultdict(list)
    for key, paths in masks.items():
        for path in paths:
            if file_of(path) != path:
                keys[file_of(path)].append(key)
    for file, of_file in keys.items():
        ids = [split_key(key)[0] for key in of_file]
        volumes = {file_of(images[i]) for i in ids if i in own and file_of(images[i]) != images[i]}
        for volume in sorted(volumes):
            if len(slices[volume]) == len(of_file) or not _is_readable(masks[of_file[0]][0]):
                continue
            lost = [k for k, i in zip(of_file, ids, strict=True) if i in own or i not in images]
            lost += [i for i in slices[volume] if i in own and not masks.keys() & own[i].values()]
            segment = ", all of one segment" * (ending(file) in DICOM)
            inspection.add(
                "slices",
                lost,
                f"{file} has {len(of_file)} slices, but its image {volume} has "
                f"{len(slices[volume])}, so none can be used; save a slice for each of the "
                f"image's, empty ones too{segment}.",
            )
            unusable.update(lost)
    return unusable


def _is_readable(mask: Path) -> bool:
    try:
        read_stored(mask)
    except InputError:
        return False
    return True


def check_sizes_agree(
    image_infos: Mapping[str, FileInfo], masks: MaskFolder, inspection: Inspection
) -> None:
    """Report masks whose size differs from their image's."""
    for sample_id, image in image_infos.items():
        mask = masks.file_info.get(sample_id)
        if mask is not None and mask["size"] != image["size"]:
            (height, width), (image_height, image_width) = mask["size"], image["size"]
            remedy = "both must have the same size"
            if image["turned"] and mask["size"] == image["size"][::-1]:
                remedy = (
                    "the image is turned by its orientation tag (EXIF): remove the tag if the mask "
                    "was drawn on the unturned picture, else turn the mask"
                )
            inspection.add(
                "size",
                [sample_id],
                f"{masks.path(sample_id)} is {width}x{height}, but its image is "
                f"{image_width}x{image_height}; {remedy}.",
            )


def check_places_agree(
    image_infos: Mapping[str, FileInfo], masks: MaskFolder, inspection: Inspection
) -> None:
    """Report masks whose position, on the earth or in a scanner, differs from their image's."""
    for sample_id, image in image_infos.items():
        mask = masks.file_info.get(sample_id)
        if mask is None or image["place"] is None or mask["place"] is None:
            continue
        reason = _difference(image["place"], mask["place"])
        if reason is not None:
            remedy = "resample the mask to the image's grid"
            if len(mask["place"]) == DICOM_PLACE:
                remedy += ", with frames in the image's order"
            remedy += ", or correct the header that is wrong"
            inspection.add(
                "place",
                [sample_id],
                f"{masks.path(sample_id)} has another position than its image, according to "
                f"{reason} in both files; {remedy}.",
            )


def warn_of_dicom_and_nifti(
    images: Mapping[str, Path], masks: MaskFolder, inspection: Inspection
) -> None:
    """Warn of images and masks of which one is DICOM and the other is NIfTI.

    Args:
        images: The image of each mask.
        masks: The masks.
        inspection: Receives the warning.
    """
    both = {".dcm", ".nii"}
    mixed = [key for key in images if {_medical(images[key]), _medical(masks.path(key))} == both]
    if mixed:
        inspection.warn(
            "place",
            mixed,
            f"{len(mixed)} masks, such as {name_of_file(masks.path(mixed[0]))}, and their images "
            "are NIfTI and DICOM, whose positions cannot be compared, and the rows of one may be "
            "flipped; look at masks over their images, or convert the images to NIfTI.",
        )


def warn_of_slices_across(
    usable: Mapping[str, FileInfo], paths: Mapping[str, Path], inspection: Inspection
) -> None:
    """Warn of NIfTI volumes whose slices seem to be counted by another axis than the third."""
    axes: dict[Path, tuple[int, NDArray[np.float64]]] = {}
    of_file: defaultdict[Path, list[str]] = defaultdict(list)
    for sample_id, info in usable.items():
        file = file_of(paths[sample_id])
        if info["place"] is None or _medical(paths[sample_id]) != ".nii":
            continue
        of_file[file].append(sample_id)
        sizes = np.linalg.norm(np.reshape(info["place"][3:], (3, 3)), axis=1)
        thick = int(sizes.argmax())
        if thick < 2 and sizes[thick] > THICK * sizes[2] > 0:
            axes[file] = thick, sizes
    across = [file for file in axes if len(of_file[file]) > 1]
    if across:
        thick, sizes = axes[across[0]]
        inspection.warn(
            "slices",
            [sample_id for file in across for sample_id in of_file[file]],
            f"{len(across)} volumes, such as {across[0].name}, are read in slices along the third "
            f"axis, but their voxels are longest along the {('first', 'second')[thick]} "
            f"({sizes[thick]:.3g}, not {sizes[2]:.3g}), so the scanner's slices may be counted by "
            "that one; if so, save images and masks with that axis last.",
        )


def _medical(path: Path) -> str:
    """Return one ending for all DICOM files and one for all NIfTI files."""
    found = ending(file_of(path))
    return ".dcm" if found in DICOM else ".nii" if found in NIFTI else found


def _difference(ours: Sequence[float], others: Sequence[float]) -> str | None:
    """Return what says that two positions differ; None if they agree or cannot be compared.

    Origins agree to 0.1 pixel along each axis, axes to 0.001 of their length, and CRSs if both
    files have one.
    """
    one, other = np.array(ours), np.array(others)
    if DICOM_PLACE in (len(one), len(other)):
        return _dicom_difference(one, other) if len(one) == len(other) else None
    reason = "the transform or the CRS"
    if len(one) != len(other):
        return reason
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None  # a transform that is damaged says nothing
    dimensions = 2 if len(one) == 7 else 3
    if dimensions == 2 and one[-1] and other[-1] and one[-1] != other[-1]:
        return reason
    axes, other_axes = (
        place[dimensions : dimensions + dimensions**2].reshape(dimensions, dimensions)
        for place in (one, other)
    )
    shift = (other[:dimensions] - one[:dimensions]) @ np.linalg.pinv(axes)
    change = np.linalg.norm(other_axes - axes, axis=1) > 1e-3 * np.linalg.norm(axes, axis=1)
    return reason if abs(shift).max() > 0.1 or change.any() else None


def _dicom_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> str | None:
    """Return the element in which two DICOM slices differ, as `_difference` does."""
    difference, spacing = abs(other - one), one[9:]  # NaN, which no limit exceeds, is not known
    pixel = 1.0 if np.isnan(spacing).any() else spacing.min()
    limits = np.repeat([0.1 * pixel, 1e-3, 1e-3 * pixel], [count for _, _, count in PLACE])
    names = np.repeat([name for _, name, _ in PLACE], [count for _, _, count in PLACE])
    differing = names[difference > limits]
    return str(differing[0]) if len(differing) else None


def warn_of_blank_images(
    usable: Mapping[str, FileInfo], paths: Mapping[str, Path], inspection: Inspection
) -> None:
    """Warn of images whose pixels are all equal."""
    blank = [sample_id for sample_id, image in usable.items() if image["digest"] is None]
    if blank:
        inspection.warn(
            "blank image",
            blank,
            f"{len(blank)} images, such as {paths[blank[0]]}, have the same value in all pixels.",
        )


def check_channels(
    image_infos: Mapping[str, FileInfo],
    paths: Mapping[str, Path],
    rules: ImageRules,
    inspection: Inspection,
) -> None:
    """Report images whose bands cannot become the network input, if its channels are known."""
    wanted = rules.channels
    if wanted is None:
        return
    for sample_id, info in image_infos.items():
        count = info["channels"]
        if count != wanted and (count, wanted) not in CONVERTED:
            names = f"{count} band{'s' * (count > 1)}"
            hint = f"set data.in_channels={count}"
            if wanted < count:
                chosen = ",".join(map(str, range(1, wanted + 1)))
                hint += f", or choose bands: data.bands=[{chosen}]"
            inspection.add(
                "bands",
                [sample_id],
                f"{paths[sample_id]} has {names}, but data.in_channels={wanted}; {hint}.",
            )
    flat = [
        band
        for band in range(wanted)
        if wanted in (2, 3)  # if there are more, each band is rescaled by its own range
        and sum(
            info["channels"] == wanted and info["spread"][band] < FLAT
            for info in image_infos.values()
        )
        > len(image_infos) / 2
    ]
    if flat:
        inspection.warn(
            "flat band",
            [],
            f"Band {flat[0] + 1} spans less than {100 * FLAT:.0f} % of the range of all bands in "
            "most images, so the networks hardly see it; rescale it in the files.",
        )


def other_mask_folders(root: Path, images: Path, masks: Path) -> list[str]:
    """Name the folders that hold a file for each image too, as DRIVE's `mask` and `1st_manual`.

    Args:
        root: The dataset's folder.
        images: The folder of images.
        masks: The folder that was taken for that of the masks.
    """
    others = []
    for folder in sorted(root.iterdir()):
        is_known = any(folder in (one, *one.parents) for one in (images, masks))
        if is_known or not folder.is_dir():
            continue
        with suppress(InputError, OSError):  # it cannot be read as a folder of masks
            of_images, of_masks = guess_patterns(images, folder, may_be_people=False)
            ids = Names(images, of_images).stems
            if ids and ids <= Names(folder, of_masks).stems:
                others.append(folder.name)
    return others


def warn_of_other_masks(root: Path, chosen: Names, images: Names, inspection: Inspection) -> None:
    """Warn if another folder than the one found by its name may be that of the masks."""
    if others := other_mask_folders(root, images.folder, chosen.folder):
        inspection.warn(
            "other masks",
            (),
            f"Masks are read from {chosen.folder.name}, but {others_hold_files(others)}; if "
            f"these are the masks, give masks={others[0]}.",
        )


def others_hold_files(others: Sequence[str]) -> str:
    """Say that these folders hold a file for each image."""
    verb = "holds" if len(others) == 1 else "hold"
    return f"{' and '.join(others)} {verb} a file for each image too"


def warn_of_unread_files(names: Names, inspection: Inspection) -> None:
    """Warn of files and folders that are ignored."""
    sentence = unread(names)
    if sentence is not None:
        inspection.warn("not read", [], sentence)


def warn_of_gaps(
    usable: Mapping[str, FileInfo], paths: Mapping[str, Path], inspection: Inspection
) -> None:
    """Report images without any valid pixel. Warn of missing pixels and of transparency."""
    for sample_id in [i for i, info in usable.items() if info["missing"] == 1]:
        inspection.add("no data", [sample_id], f"{paths[sample_id]} holds only missing pixels.")
    gaps = [sample_id for sample_id, info in usable.items() if 0 < info["missing"] < 1]
    if gaps:
        share = sum(usable[i]["missing"] for i in gaps) / len(gaps)
        inspection.warn(
            "missing pixels",
            gaps,
            f"{len(gaps)} images, such as {name_of_file(paths[gaps[0]])}, have missing pixels "
            f"({100 * share:.0f} % on average); they count as unlabelled.",
        )
    far = [sample_id for sample_id, info in usable.items() if info["outlier"]]
    if far:
        value, share = usable[far[0]]["outlier"]
        number = int(value) if value.is_integer() and abs(value) < 2**53 else value
        inspection.warn(
            "far value",
            far,
            f"{len(far)} images, such as {name_of_file(paths[far[0]])}, hold a value far from "
            f"all others ({number} in {100 * share:.1f} % of its pixels), which leaves little "
            f"contrast to the rest; if it means missing, set data.nodata={number}.",
        )
    transparent = [sample_id for sample_id, info in usable.items() if info["transparent"]]
    if transparent:
        bands = usable[transparent[0]]["channels"] + 1
        inspection.warn(
            "transparent",
            transparent,
            f"{len(transparent)} images, such as {name_of_file(paths[transparent[0]])}, have "
            "transparent pixels or a mask of valid pixels, which is not read; if it is a band, set "
            f"data.in_channels={bands}.",
        )


def warn_of_turned_images(
    usable: Mapping[str, FileInfo],
    paths: Mapping[str, Path],
    masks: MaskFolder,
    inspection: Inspection,
) -> None:
    """Warn of images and masks of which only one is rotated by an orientation tag."""
    turned = [
        sample_id
        for sample_id, info in usable.items()
        if info["turned"] != masks.file_info.get(sample_id, info)["turned"]
    ]
    if turned:
        inspection.warn(
            "turned",
            turned,
            f"{len(turned)} images, such as {name_of_file(paths[turned[0]])}, have an orientation "
            "tag (EXIF) that their masks lack, or the reverse, so only one of them is turned; if "
            "masks were drawn on the unturned pictures, remove the tag.",
        )


def check_groups(
    groups: Mapping[str, str], split: Mapping[str, str], inspection: Inspection
) -> None:
    """Warn of groups that the split puts into two parts."""
    parts: dict[str, set[str]] = {}
    for sample_id, part in split.items():
        if sample_id in groups:
            parts.setdefault(groups[sample_id], set()).add(part)
    shared = [group for group, found in parts.items() if len(found) > 1]
    if shared:
        inspection.warn(
            "group in two parts",
            [i for i in split if groups.get(i) in shared],
            f"{len(shared)} groups, such as {shared[0]}, are in "
            f"{' and '.join(sorted(parts[shared[0]]))}, so the metrics there are too good.",
        )


def warn_of_few_groups(
    groups: Mapping[str, str],
    split: Mapping[str, str],
    wanted: Collection[str],
    inspection: Inspection,
) -> None:
    """Warn if whole groups are too few for the parts of a split that was drawn.

    Args:
        groups: The group of each sample.
        split: The part of each sample.
        wanted: The parts that were drawn.
        inspection: The inspection.
    """
    names = sorted({groups[i] for i in split if i in groups})
    if not names or len(names) >= FEW_GROUPS:
        return
    missing = [part for part in wanted if part not in split.values()]
    what = f"the part {missing[0]} stays empty" if missing else "a part may be of one group alone"
    inspection.warn(
        "few groups",
        [],
        "The split keeps the images of a group (such as a folder or a volume) together, and there "
        f"are only {len(names)} groups: {', '.join(names)}; so {what}. If they need not stay "
        "together, name the part of each image in split.csv, in a column split.",
    )


def check_classes_survive(
    masks: MaskFolder, ids: Collection[str], side: int | list[int], inspection: Inspection
) -> None:
    """Report classes that vanish from all masks at the networks' size. Warn of partial losses."""
    for class_id in range(1, masks.classes):
        found = {i: masks.left_of(i, class_id) for i in ids if i in masks.file_info}
        drawn = [sample_id for sample_id, (count, _) in found.items() if count]
        lost = [sample_id for sample_id in drawn if not found[sample_id][1]]
        what = "the foreground" if masks.classes == 2 else f"class {class_id}"
        example = f"such as {name_of_file(masks.path(lost[0]))}" if lost else ""
        if drawn and len(lost) == len(drawn):
            inspection.add(
                "too small",
                lost,
                f"{what[0].upper()}{what[1:]} vanishes in all {len(drawn)} training masks, "
                f"{example}, when they are resized to data.image_size={side}; set a larger size.",
            )
        elif lost:
            inspection.warn(
                "too small",
                lost,
                f"{what[0].upper()}{what[1:]} vanishes in {len(lost)} of {len(drawn)} training "
                f"masks ({100 * len(lost) / len(drawn):.0f} %), {example}, when they are resized "
                f"to data.image_size={side}; a larger size keeps it.",
            )


def check_duplicates(
    usable: Mapping[str, FileInfo],
    paths: Mapping[str, Path],
    masks: MaskFolder | FusedMasks,
    split: Mapping[str, str],
    inspection: Inspection,
) -> None:
    """Report equal images with different masks, and warn of those in two parts of the split."""
    digests = {sample_id: image["digest"] for sample_id, image in usable.items()}
    for ids in groups_of_equal(digests):
        names = f"{paths[ids[0]]} and {paths[ids[1]].name}"
        if len(ids) > 2:
            names += f" (and {len(ids) - 2} more)"
        parts = sorted({split[sample_id] for sample_id in ids})
        if len({mask_digest(masks.read(sample_id)) for sample_id in ids}) > 1:
            inspection.add(
                "twice with different masks",
                ids,
                f"{names} are the same picture, but their masks differ; keep the right one.",
            )
        elif len(parts) > 1:
            inspection.warn(
                "in two parts of the split",
                ids,
                f"{names} are the same picture, in {' and '.join(parts)}, so the metrics there are "
                "too good.",
            )
