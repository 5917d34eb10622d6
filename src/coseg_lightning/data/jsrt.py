"""The paper's own data, JSRT and SCR, for those who obtained them from their owners.

JSRT (Shiraishi et al. 2000 [11]): 247 chest radiographs, 2048 x 2048, 12 bits, stored raw as
big-endian 16-bit integers in which dense tissue is dark. SCR (van Ginneken et al. 2006 [12]):
masks of both lungs, 1024 x 1024. Their terms forbid passing copies on; none is here.
"""

import hashlib
import json
import re
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
    alike,
    outside,
    pixel_digest,
    scan_files,
)
from coseg_lightning.files.mask_folder import leads_outside
from coseg_lightning.labels.masks import Mask

SIDE = 2048
SCR = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
NAME = re.compile(r"JPC[LN]N(\d{3})")


class JSRTImages:
    """Some samples of JSRT with SCR's lungs as class 1; see `MaskedImages`."""

    def __init__(
        self,
        ids: list[str],
        images: dict[str, Path],
        lungs: dict[str, list[Path]],
        digest: str,
    ) -> None:
        self.ids = ids
        self.digest = digest  # of what the files hold
        self._images = images
        self._lungs = lungs

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> NDArray[Any]:
        """The radiograph at its mask's size, `(H, W)`, bones bright."""
        path = self._images[self.ids[index]]
        image = read_raw(path) if path.suffix.lower() == ".img" else read_image(path)
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = image_size(self._lungs[self.ids[index]][0])  # the header alone
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def mask(self, index: int) -> Mask:
        """Both lungs."""
        left, right = (read_indices(path) > 0 for path in self._lungs[self.ids[index]])
        return (left | right).astype(np.uint8)


def jsrt_splits(
    root: str | Path, *, on_bad_sample: OnBadSample = "error", problems: str | Path | None = None
) -> Splits:
    """Find the radiographs and lung masks anywhere below `root`, split as in section 3.

    Images are `JPCLN001.IMG` and so on, or PNGs of the same names (bones bright); masks lie in
    folders named `left lung` and `right lung` (or with an underscore), as SCR ships them; its other
    masks may lie beside them.
    Images with odd numbers train, those with even numbers test: 124 and 123 in the full set.
    Every file is read once, and all that is wrong is told together.

    Args:
        root: The folder.
        on_bad_sample: `error`, or `skip` to leave out samples that cannot be used.
        problems: A CSV file to write what is wrong to, if anything is.

    Raises:
        InputError: If images or masks are missing or unreadable.
    """
    check_on_bad_sample(on_bad_sample)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"data.root={root}: there is no such folder; it must hold JSRT and SCR.")
    images: dict[str, Path] = {}
    lungs: dict[str, dict[str, Path]] = {"left lung": {}, "right lung": {}}
    for path in sorted(root.rglob("*")):
        if not NAME.fullmatch(path.stem):
            continue
        place = path.parent.name.lower().replace("_", " ")
        suffix = path.suffix.lower()
        if place in lungs and suffix in (".gif", ".png"):
            lungs[place][path.stem] = path
        elif place not in SCR and (
            suffix == ".img" or (suffix == ".png" and path.stem not in images)
        ):
            images[path.stem] = path
    if not images:
        raise InputError(f"{root} holds no JSRT image (JPCLN001.IMG ... or PNGs of those names).")
    found = Inspection(root)
    facts: dict[str, dict[str, FileInfo]] = {}
    for kind, paths in (("image", images), *lungs.items()):
        facts[kind] = {}
        looks = scan_files(list(paths.values()), _look_at, kind=kind, title=f"Looking at {kind}s")
        for id, path in paths.items():
            of_file = looks[path]
            if id not in images:
                found.add("no image", [id], f"{path} is the mask of no image; add or remove it.")
            elif outside(path, [root]):
                found.add("link", [id], leads_outside(path))
            elif isinstance(of_file, InputError):
                found.add(f"unreadable {kind}", [id], str(of_file))
            else:
                facts[kind][id] = of_file
    for id in images:
        for place, masks in lungs.items():
            if id not in masks:
                told = f"{root} holds no mask of {id} in a folder named {place!r}."
                found.add("no mask", [id], told)
        left, right = (facts[place].get(id) for place in lungs)
        if left is not None and right is not None and left["size"] != right["size"]:
            told = f"{lungs['left lung'][id]} and the right lung's mask differ in size; mend one."
            found.add("size", [id], told)
    bad = found.bad
    good = {id: of["digest"] for id, of in facts["image"].items() if id not in bad}
    held = {id: [facts[kind][id]["digest"] for kind in facts] for id in good}
    for ids in alike(good):
        same = f"{images[ids[0]]} and {images[ids[1]].name} are the same picture"
        if len({tuple(held[id]) for id in ids}) > 1:
            told = f"{same}, but their masks differ; keep the right one."
            found.add("twice with different masks", ids, told)
        elif len({int(id[-3:]) % 2 for id in ids}) > 1:
            told = f"{same}, in test and train: what is measured there is too good."
            found.warn("in two parts of the split", ids, told)
    found.settle(skip=on_bad_sample == "skip", table=problems)
    images = {id: path for id, path in images.items() if id not in found.bad}

    def part(parity: int) -> JSRTImages | None:
        ids = sorted(id for id in images if int(id[-3:]) % 2 == parity)
        pairs = {id: [masks[id] for masks in lungs.values()] for id in ids}
        if not ids:
            return None
        digest = hashlib.blake2b(json.dumps([held[id] for id in ids]).encode(), digest_size=8)
        return JSRTImages(ids, {id: images[id] for id in ids}, pairs, digest.hexdigest())

    train = part(1)
    if train is None:
        raise InputError(f"{root} holds no image with an odd number, and those are for training.")
    return Splits(train, None, part(0))


def _look_at(path: Path) -> FileInfo:
    suffix = path.suffix.lower()
    if path.parent.name.lower().replace("_", " ") in SCR:
        pixels = read_indices(path)
    else:
        pixels = read_raw(path) if suffix == ".img" else check_image(path)
    return {"size": list(pixels.shape[:2]), "digest": pixel_digest(pixels)}


def read_raw(path: Path) -> NDArray[Any]:
    """A raw `.IMG` radiograph, `(2048, 2048)` float32 in [0, 1], inverted: bones are bright.

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
