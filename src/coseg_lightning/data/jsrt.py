"""The paper's own data, JSRT and SCR, for users who obtained them from their owners.

JSRT (Shiraishi et al. 2000 [11]) has 247 chest radiographs of 2048 x 2048 pixels and 12 bits. They
are stored raw as big-endian 16-bit integers, in which dense tissue is dark. SCR (van Ginneken et
al. 2006 [12]) has masks of both lungs of 1024 x 1024 pixels. Their terms forbid passing copies on,
so this package contains none.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from coseg_lightning.data.folder import Splits, check_on_bad_sample
from coseg_lightning.errors import InputError
from coseg_lightning.files.images import check_image, decoding, image_size, read_image, read_indices
from coseg_lightning.files.inspection import (
    FileInfo,
    Inspection,
    OnBadSample,
    groups_of_equal,
    links_outside,
    pixel_digest,
    scan_files,
)
from coseg_lightning.files.mask_folder import link_message
from coseg_lightning.labels.masks import Mask

SIDE = 2048
LUNGS = ("left lung", "right lung")
SCR = (*LUNGS, "heart", "left clavicle", "right clavicle")
NAME = re.compile(r"JPC[LN]N(\d{3})")

Paths = dict[str, Path]  # by sample id


class JSRTImages:
    """Some samples of JSRT, with SCR's lungs as class 1. It implements `MaskedImages`.

    Args:
        ids: The samples.
        images: The image file of each sample.
        lungs: The mask files of both lungs of each sample.
        digest: A digest of the files' content.
    """

    trusted = True  # observers of the study drew the masks

    def __init__(
        self,
        ids: list[str],
        images: dict[str, Path],
        lungs: dict[str, list[Path]],
        digest: str,
    ) -> None:
        self.ids = ids
        self.digest = digest
        self._images = images
        self._lungs = lungs

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """Read a radiograph resized to its mask's size, `(H, W)`, with bright bones."""
        path = self._images[self.ids[index]]
        image = read_raw(path) if _is_raw(path) else read_image(path)
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = image_size(self._lungs[self.ids[index]][0])  # from the header alone
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def mask(self, index: int) -> Mask:
        """Read the mask of both lungs."""
        left, right = (read_indices(path) > 0 for path in self._lungs[self.ids[index]])
        return (left | right).astype(np.uint8)


def jsrt_splits(
    root: str | Path, *, on_bad_sample: OnBadSample = "error", problems: str | Path | None = None
) -> Splits:
    """Find the radiographs and lung masks anywhere below `root`, and split them as in section 3.

    Images are named `JPCLN001.IMG` and so on, or are PNGs with the same names and bright bones.
    Masks are in folders named `left lung` and `right lung` (or with an underscore), as SCR ships
    them. SCR's other masks may lie beside them.

    Images with odd numbers are for training, and those with even numbers for the test. The full set
    has 124 and 123 of them. Every file is read once before training, and all problems are reported
    together.

    Args:
        root: The folder.
        on_bad_sample: `error`, or `skip` to skip samples that cannot be used.
        problems: A CSV file that is written if there are problems or warnings.

    Returns:
        The training and test parts of the dataset.

    Raises:
        InputError: If images or masks are missing or unreadable.
    """
    check_on_bad_sample(on_bad_sample)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"data.root={root}: there is no such folder; it must hold JSRT and SCR.")
    images, lungs = _find_files(root)
    if not images:
        raise InputError(f"{root} holds no JSRT image (JPCLN001.IMG ... or PNGs of those names).")

    inspection = Inspection(root)
    infos = {
        kind: _inspect_files(kind, paths, images, root, inspection)
        for kind, paths in (("image", images), *lungs.items())
    }
    for sample_id in images:
        _check_both_lungs_exist(sample_id, lungs, root, inspection)
        _check_lung_sizes_agree(sample_id, lungs, infos, inspection)
    unusable = inspection.unusable_ids
    digests = {
        sample_id: [infos[kind][sample_id]["digest"] for kind in infos]
        for sample_id in infos["image"]
        if sample_id not in unusable
    }
    _check_duplicates(digests, images, inspection)
    inspection.report(skip=on_bad_sample == "skip", table=problems)

    usable = {
        sample_id: path
        for sample_id, path in images.items()
        if sample_id not in inspection.unusable_ids
    }
    train = _part(True, usable, lungs, digests)
    if train is None:
        raise InputError(f"{root} holds no image with an odd number, and those are for training.")
    return Splits(train, None, _part(False, usable, lungs, digests))


def _find_files(root: Path) -> tuple[Paths, dict[str, Paths]]:
    """Find the image of each sample, and for each lung the mask of each sample."""
    images: Paths = {}
    lungs: dict[str, Paths] = {lung: {} for lung in LUNGS}
    for path in sorted(root.rglob("*")):
        if not NAME.fullmatch(path.stem):
            continue
        folder, suffix = _folder_name(path), path.suffix.lower()
        if folder in LUNGS and suffix in (".gif", ".png"):
            lungs[folder][path.stem] = path
        elif folder not in SCR and (
            _is_raw(path) or (suffix == ".png" and path.stem not in images)
        ):
            images[path.stem] = path
    return images, lungs


def _folder_name(path: Path) -> str:
    return path.parent.name.lower().replace("_", " ")


def _is_raw(path: Path) -> bool:
    return path.suffix.lower() == ".img"


def _is_for_training(sample_id: str) -> bool:
    return int(sample_id[-3:]) % 2 == 1


def _inspect_files(
    kind: str, paths: Paths, images: Paths, root: Path, inspection: Inspection
) -> dict[str, FileInfo]:
    """Report unusable files, and return the information on the others."""
    results = scan_files(list(paths.values()), _file_info, kind=kind, title=f"Inspecting {kind}s")
    infos: dict[str, FileInfo] = {}
    for sample_id, path in paths.items():
        result = results[path]
        if sample_id not in images:
            sentence = f"{path} has no image; add the image, or remove the mask."
            inspection.add("no image", [sample_id], sentence)
        elif links_outside(path, [root]):
            inspection.add("link", [sample_id], link_message(path))
        elif isinstance(result, InputError):
            inspection.add(f"unreadable {kind}", [sample_id], str(result))
        else:
            infos[sample_id] = result
    return infos


def _file_info(path: Path) -> FileInfo:
    if _folder_name(path) in SCR:
        pixels = read_indices(path)
    else:
        pixels = read_raw(path) if _is_raw(path) else check_image(path)
    return {"size": list(pixels.shape[:2]), "digest": pixel_digest(pixels)}


def _check_both_lungs_exist(
    sample_id: str, lungs: Mapping[str, Paths], root: Path, inspection: Inspection
) -> None:
    for lung, masks in lungs.items():
        if sample_id not in masks:
            sentence = f"{root} holds no mask of {sample_id} in a folder named {lung!r}."
            inspection.add("no mask", [sample_id], sentence)


def _check_lung_sizes_agree(
    sample_id: str,
    lungs: Mapping[str, Paths],
    infos: Mapping[str, Mapping[str, FileInfo]],
    inspection: Inspection,
) -> None:
    left, right = (infos[lung].get(sample_id) for lung in LUNGS)
    if left is not None and right is not None and left["size"] != right["size"]:
        left_path = lungs["left lung"][sample_id]
        sentence = f"{left_path} and the right lung's mask differ in size; correct one of them."
        inspection.add("size", [sample_id], sentence)


def _check_duplicates(
    digests: Mapping[str, Sequence[str]], images: Paths, inspection: Inspection
) -> None:
    """Report equal images with different masks, and warn of those in both parts."""
    for ids in groups_of_equal({sample_id: held[0] for sample_id, held in digests.items()}):
        same = f"{images[ids[0]]} and {images[ids[1]].name} are the same picture"
        if len({tuple(digests[sample_id]) for sample_id in ids}) > 1:
            sentence = f"{same}, but their masks differ; keep the right one."
            inspection.add("twice with different masks", ids, sentence)
        elif len({_is_for_training(sample_id) for sample_id in ids}) > 1:
            sentence = f"{same}, in test and train, so the metrics there are too good."
            inspection.warn("in two parts of the split", ids, sentence)


def _part(
    training: bool,
    images: Paths,
    lungs: Mapping[str, Paths],
    digests: Mapping[str, Sequence[str]],
) -> JSRTImages | None:
    ids = sorted(sample_id for sample_id in images if _is_for_training(sample_id) == training)
    if not ids:
        return None
    content = json.dumps([digests[sample_id] for sample_id in ids])
    return JSRTImages(
        ids,
        {sample_id: images[sample_id] for sample_id in ids},
        {sample_id: [lungs[lung][sample_id] for lung in LUNGS] for sample_id in ids},
        hashlib.blake2b(content.encode(), digest_size=8).hexdigest(),
    )


def read_raw(path: Path) -> NDArray[Any]:
    """Read a raw `.IMG` radiograph, inverted so that bones are bright.

    Args:
        path: The file.

    Shape:
        `(2048, 2048)` float32 in [0, 1].

    Raises:
        InputError: If the file has another size.
    """
    with decoding(path):
        values = np.fromfile(path, dtype=">u2")
    if values.size != SIDE * SIDE:
        raise InputError(
            f"{path} holds {2 * values.size} bytes, not the {2 * SIDE * SIDE} of a JSRT image; "
            "restore the file."
        )
    return (1 - values.reshape(SIDE, SIDE).astype(np.float32) / 4095).clip(0, 1)
