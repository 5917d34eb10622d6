"""Checks of a folder of images and masks. Each check records the problems of its own kind."""

from collections.abc import Mapping
from pathlib import Path

from coseg_lightning.errors import InputError
from coseg_lightning.files.inspection import (
    FileInfo,
    Inspection,
    groups_of_equal,
    image_info,
    links_outside,
    scan_files,
)
from coseg_lightning.files.mask_folder import MaskFolder, link_message, same_stem
from coseg_lightning.labels.ids import check_id, portable_name, same_file_message
from coseg_lightning.labels.masks import mask_digest


def check_image_files(
    split: Mapping[str, str],
    by_stem: Mapping[str, list[Path]],
    folder: Path,
    inspection: Inspection,
) -> None:
    """Report samples without exactly one image file of a usable name."""
    for sample_id in split:
        paths = by_stem.get(sample_id, [])
        if not paths:
            inspection.add(
                "no image",
                [sample_id],
                f"{folder.parent / 'split.csv'} names the sample {sample_id}, but {folder} has no "
                "such image.",
            )
        elif len(paths) > 1:
            inspection.add("same stem", [sample_id], same_stem(paths))
        elif links_outside(paths[0], [folder.parent, folder]):
            inspection.add("link", [sample_id], link_message(paths[0]))
        else:
            try:
                check_id(sample_id)
            except InputError as error:
                inspection.add("name", [sample_id], str(error))


def check_ids_name_different_files(split: Mapping[str, str], inspection: Inspection) -> None:
    """Report ids that differ in letter case or Unicode form alone."""
    for ids in groups_of_equal({sample_id: portable_name(sample_id) for sample_id in split}):
        inspection.add("letter case", ids, same_file_message(*ids[:2]))


def inspect_images(
    split: Mapping[str, str], images: Mapping[str, Path], inspection: Inspection
) -> dict[str, FileInfo]:
    """Report unreadable images, and return the information on the readable ones."""
    unusable = inspection.unusable_ids
    paths = {
        sample_id: images[sample_id]
        for sample_id in split
        if sample_id in images and sample_id not in unusable
    }
    results = scan_files(list(paths.values()), image_info, kind="images", title="Inspecting images")
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
    for sample_id in masks.ids:
        if sample_id not in images:
            inspection.add(
                "no image",
                [sample_id],
                f"{masks.path(sample_id)} is the mask of no image in {folder}; add "
                "the image, or remove the mask.",
            )


def check_sizes_agree(
    image_infos: Mapping[str, FileInfo], masks: MaskFolder, inspection: Inspection
) -> None:
    """Report masks of another size than their image."""
    for sample_id, image in image_infos.items():
        mask = masks.file_info.get(sample_id)
        if mask is not None and mask["size"] != image["size"]:
            (height, width), (image_height, image_width) = mask["size"], image["size"]
            inspection.add(
                "size",
                [sample_id],
                f"{masks.path(sample_id)} is {width}x{height}, but its image is "
                f"{image_width}x{image_height}; both must have the same size.",
            )


def warn_of_blank_images(
    usable: Mapping[str, FileInfo], paths: Mapping[str, Path], inspection: Inspection
) -> None:
    """Warn of images whose pixels are all equal."""
    blank = [sample_id for sample_id, image in usable.items() if image["digest"] is None]
    if blank:
        inspection.warn(
            "blank image",
            blank,
            f"{len(blank)} images, such as {paths[blank[0]]}, are of one value everywhere.",
        )


def check_duplicates(
    usable: Mapping[str, FileInfo],
    paths: Mapping[str, Path],
    masks: MaskFolder,
    split: Mapping[str, str],
    inspection: Inspection,
) -> None:
    """Report pictures that occur twice, with different masks or in two parts of the split."""
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
                f"{names} are the same picture, in {' and '.join(parts)}: what is measured there "
                "is too good.",
            )
