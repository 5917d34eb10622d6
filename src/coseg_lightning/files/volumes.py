"""NIfTI and DICOM files. A volume is read as if its file were a folder of its slices.

Slice 7 of `ct.nii.gz` is the path `ct.nii.gz/7`, and its sample is `ct_007`.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coseg_lightning.errors import InputError

NIFTI, DICOM = (".nii", ".nii.gz"), (".dcm", ".dicom", ".ima")
PAIR = (b"\x5c\1\0\0", b"\0\0\1\x5c")  # starts of a volume's header in a file of its own
MAX_BANDS = 16  # if a fourth dimension is longer, it is time
DIGITS = 3  # the least digits of a slice's number in an id
# What places a frame of a DICOM file: a sequence of functional groups, its element, its numbers.
PLACE = (
    ("PlanePositionSequence", "ImagePositionPatient", 3),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PixelMeasuresSequence", "PixelSpacing", 2),
)
DECODED_TO_RGB = ("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
DICOM_PLACE = sum(count for _, _, count in PLACE)  # numbers of `volume_place`


class UnreadableVolumeError(InputError):
    """A volume whose header cannot be read, so that its slices are not known."""


def ending(path: Path) -> str:
    """Return the ending of a file's name in lower case; `.nii.gz` is one ending."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def is_volume(path: Path) -> bool:
    """Whether a file is NIfTI or DICOM according to its name."""
    return ending(path) in (*NIFTI, *DICOM)


def advice_on(path: Path) -> str | None:
    """Say what to do with a file of another ending that holds DICOM, or half of a volume.

    Returns:
        The start of a sentence's part, or None if it is another file.
    """
    if not path.is_file() or path.name.upper() == "DICOMDIR":  # an index of other files
        return None
    with suppress(OSError), path.open("rb") as file:
        start = file.read(132)
        if start[128:] == b"DICM":
            return f"rename the DICOM files to end in .dcm, such as {path.name} to {path.name}.dcm"
        if ending(path) == ".hdr" and start[:4] in PAIR:
            return (
                "convert the volumes of .hdr and .img, such as by nibabel.save(nibabel.load("
                f"'{path.name}'), '{path.stem}.nii.gz')"
            )
    return None


def file_of(path: Path) -> Path:
    """Return the file of a path, which may be a file or a slice of one."""
    return path.parent if path.parent.is_file() else path


def name_of_file(path: Path) -> str:
    """Return the name of a file, or of a slice with its file."""
    return path.name if file_of(path) == path else f"{path.parent.name}/{path.name}"


def slices_of(path: Path) -> list[tuple[str, Path]]:
    """List the slices of a volume, each by the suffix of its id and its path.

    Args:
        path: The file. A DICOM file with one slice is a sample itself.

    Raises:
        InputError: If it cannot be read, or the library for it is missing.
    """
    if ending(path) in DICOM:
        frames = int(getattr(_dicom_header(path), "NumberOfFrames", 1) or 1)
        if frames == 1:
            return [("", path)]
        count = frames
    else:
        count = _nifti(path).shape[2] if len(_nifti(path).shape) > 2 else 1
    digits = max(DIGITS, len(str(count - 1)))
    return [(f"_{number:0{digits}d}", path / str(number)) for number in range(count)]


def patient_and_series(path: Path) -> tuple[str, str]:
    """Return the patient and the series in a DICOM file's header; each may be empty."""
    header = _dicom_header(path)
    names = ("PatientID", "SeriesInstanceUID")
    patient, series = (str(getattr(header, name, "") or "").strip() for name in names)
    return patient, series


def read_slice(path: Path, *, of_mask: bool = False) -> NDArray[Any]:
    """Read one slice, `(H, W)`, or `(H, W, C)` if there are several bands.

    Args:
        path: A slice, or a DICOM file with one slice.
        of_mask: Whether the values are class ids, which no photometric interpretation inverts. A
            padding value of 0 is the background then.

    Raises:
        InputError: If it cannot be read as a slice.
    """
    file = file_of(path)
    if ending(file) not in DICOM:
        values = _slice(_nifti_values(file, _modified(file)), int(path.name), file)
        return values if of_mask else _with_bands(values)
    segments = _segments(file, _modified(file)) if of_mask else 1
    if segments > 1:
        raise InputError(
            f"{file} holds {segments} segments one after the other, but a mask needs one frame for "
            "each slice; save the segments in the same frames as class ids."
        )
    return _dicom_slice(file, _number(path), of_mask=of_mask)


def volume_place(path: Path) -> list[float] | None:
    """Return the position of a NIfTI volume, or of a DICOM slice, in the scanner's space.

    Args:
        path: A slice, or a file.

    Returns:
        Of a NIfTI volume its origin and its three axes. Of a DICOM slice the `DICOM_PLACE` numbers
        of its position, orientation and spacing, NaN where the header has none. None if both codes
        of a NIfTI volume are 0, or a slice has no position.
    """
    file = file_of(path)
    if ending(file) in DICOM:
        places = _dicom_frames(file, _modified(file)).places
        return places[min(_number(path), len(places) - 1)]
    if ending(file) in NIFTI:
        image = _nifti(file)
        if image.header["qform_code"] == image.header["sform_code"] == 0:
            return None
        affine = np.asarray(image.affine)
        return [float(value) for value in (*affine[:3, 3], *affine[:3, :3].T.ravel())]
    return None


def write_slices(original: Path, path: Path, slices: Mapping[int, NDArray[Any]]) -> None:
    """Write a NIfTI volume like another one, with new values in some slices.

    Args:
        original: The volume whose header is used.
        path: The new file.
        slices: `(H, W)` values by the number of the slice.

    Raises:
        InputError: If the original is a DICOM file, since these are only read.
    """
    if ending(original) in DICOM:
        raise InputError(
            f"{original} is DICOM, which can be read but not written; save your masks as PNG or "
            "NIfTI."
        )
    nibabel = _library("nibabel")
    image = _nifti(original)
    values = np.array(image.dataobj.get_unscaled())
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    for number, new in slices.items():
        stored = new if (slope, intercept) == (1, 0) else (new - intercept) / slope
        if np.issubdtype(values.dtype, np.integer):
            stored = np.rint(stored)
        values[_index(values.ndim, number)] = stored.T.reshape(
            values[_index(values.ndim, number)].shape
        )
    # Without an affine, nibabel keeps both transforms and their codes as they are in the header.
    changed = type(image)(values, None, image.header)
    if (slope, intercept) != (1, 0):
        changed.header.set_slope_inter(slope, intercept)
    nibabel.save(changed, path)


def is_nifti_slice(path: Path) -> bool:
    """Whether a path is a slice of a NIfTI volume."""
    return file_of(path) != path and ending(path.parent) in NIFTI


def write_mask_volume(image: Path, path: Path, slices: Mapping[int, NDArray[Any]]) -> None:
    """Write masks of an image's slices as a volume with the image's header.

    Both transforms, their codes and the units stay. What describes the image's values does not.

    Args:
        image: The NIfTI volume of the image.
        path: The new file; `.gz` compresses it.
        slices: `(H, W)` masks by the number of the slice. Other slices are 0.
    """
    nibabel = _library("nibabel")
    source = _nifti(image)
    shape = source.shape[:3]
    volume = np.zeros(shape, np.result_type(*slices.values()))
    for number, mask in slices.items():
        volume[_index(len(shape), number)] = mask.T.reshape(
            volume[_index(len(shape), number)].shape
        )
    header = source.header.copy()
    header.set_data_dtype(volume.dtype)
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    nibabel.save(type(source)(volume, None, header), path)


def _index(dimensions: int, number: int) -> tuple[Any, ...]:
    return (slice(None), slice(None)) if dimensions == 2 else (slice(None), slice(None), number)


def _number(path: Path) -> int:
    """Return the number of a slice, 0 for a file."""
    return 0 if file_of(path) == path else int(path.name)


def _modified(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns


def _with_bands(values: NDArray[Any]) -> NDArray[Any]:
    """Return the colours of a slice, whose voxels are RGB or RGBA, as three bands."""
    names = values.dtype.names
    if values.ndim > 2 or names not in (("R", "G", "B"), ("R", "G", "B", "A")):
        return values
    return np.stack([values[name] for name in names[:3]], axis=2)


def _slice(values: NDArray[Any], number: int, path: Path) -> NDArray[Any]:
    if values.ndim > 4 or (values.ndim == 4 and values.shape[3] > MAX_BANDS):
        raise InputError(
            f"{path} holds {values.shape}, which is a volume at several points in time; save each "
            "point as a separate file."
        )
    if values.ndim > 2 and values.shape[2] > 1 and 1 in values.shape[:2]:
        raise InputError(
            f"{path} has the shape {values.shape}, and its third axis counts the slices, so each "
            "would be a line; save it with the axis of length 1 last."
        )
    picked = values[_index(values.ndim, number)]
    if picked.ndim == 3 and picked.shape[2] == 1:
        picked = picked[..., 0]
    return np.ascontiguousarray(picked.swapaxes(0, 1))


@lru_cache(maxsize=2)  # slices of one volume are read one after the other
def _nifti_values(path: Path, modified: tuple[int, int]) -> NDArray[Any]:
    return np.asarray(_nifti(path).dataobj)


def _nifti(path: Path) -> Any:
    nibabel = _library("nibabel")
    try:
        return nibabel.load(path)
    except Exception as error:
        raise UnreadableVolumeError(
            f"{path} cannot be read as NIfTI ({error}); restore the file."
        ) from error


def _dicom(path: Path, **options: Any) -> Any:
    """Read a DICOM file, also one without the preamble, as older programs write it."""
    pydicom = _library("pydicom")
    try:
        data = pydicom.dcmread(path, force=True, **options)
        if data.preamble is None:  # it may be anything
            if "Rows" not in data or "BitsAllocated" not in data:
                raise ValueError("it does not begin as DICOM files do")
            names = pydicom.uid
            syntax = {
                (True, True): names.ImplicitVRLittleEndian,
                (False, True): names.ExplicitVRLittleEndian,
                (False, False): names.ExplicitVRBigEndian,
            }[data.original_encoding]
            data.file_meta.setdefault("TransferSyntaxUID", syntax)
    except Exception as error:
        raise UnreadableVolumeError(
            f"{path} cannot be read as DICOM ({error}); restore the file."
        ) from error
    return data


def _dicom_header(path: Path) -> Any:
    return _dicom(path, stop_before_pixels=True)


class _Frames(NamedTuple):
    """What a DICOM file's header says of its frames.

    Attributes:
        places: The place of each frame, see `volume_place`; one for all if there is no other.
        segments: The number of segments to which the frames belong, 1 if they name none.
    """

    places: list[list[float] | None]
    segments: int


@lru_cache(maxsize=2)  # as for the values of NIfTI
def _dicom_frames(path: Path, modified: tuple[int, int]) -> _Frames:
    header = _dicom_header(path)
    try:
        shared = _first(header, "SharedFunctionalGroupsSequence")
        frames = getattr(header, "PerFrameFunctionalGroupsSequence", None) or [None]
        places, segments = [], set()
        for frame in frames:
            place: list[float] = []
            for sequence, name, count in PLACE:
                found = (
                    _numbers(holder, name, count)
                    for holder in (_first(frame, sequence), _first(shared, sequence), header)
                )
                place += next(filter(None, found), [math.nan] * count)
            places.append(None if math.isnan(place[0]) else place)
            segment = _first(frame, "SegmentIdentificationSequence")
            segments.add(str(getattr(segment, "ReferencedSegmentNumber", "")))
    except Exception as error:
        raise InputError(f"{path} cannot be read as DICOM ({error}); restore the file.") from error
    if not any(any(place[:3]) for place in places if place is not None):
        places = [None]  # zeros are what programs write that know no position
    return _Frames(places, len(segments))


@lru_cache(maxsize=2**16)  # masks are read in any order, and headers of many frames are long
def _segments(path: Path, modified: tuple[int, int]) -> int:
    return _dicom_frames(path, modified).segments


def _first(data: Any, sequence: str) -> Any:
    """Return the first item of a sequence in DICOM data; None if there is none."""
    items = getattr(data, sequence, None)
    return items[0] if items else None


def _numbers(data: Any, name: str, count: int) -> list[float] | None:
    """Return an element of DICOM data if it holds this many numbers."""
    values = getattr(data, name, None)
    if not isinstance(values, Sequence) or len(values) != count:
        return None
    numbers = [float(value) for value in values]
    return numbers if all(map(math.isfinite, numbers)) else None


def _dicom_slice(path: Path, number: int, *, of_mask: bool) -> NDArray[Any]:
    data = _dicom(path)
    if not any(name in data for name in PIXELS):
        kind = str(getattr(data, "Modality", "") or "of no named kind")
        outlines = ", and draw its outlines as masks" * (kind == "RTSTRUCT")
        raise InputError(
            f"{path} is a DICOM file without a picture ({kind}); move it to another folder"
            f"{outlines}."
        )
    try:
        values = data.pixel_array
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot be decoded ({text}); install the package that this names, or save the "
            "file uncompressed."
        ) from error
    _check_bits(data, path)
    frames = int(getattr(data, "NumberOfFrames", 1) or 1)
    if frames > 1:
        values = values[number]
    kind = str(data.PhotometricInterpretation)
    if kind.startswith("YBR") and (of_mask or kind not in DECODED_TO_RGB):
        raise InputError(f"{path} holds colours as {kind}, which cannot be read; save them as RGB.")
    if kind == "PALETTE COLOR":
        coloured = values if of_mask else _looked_up("apply_color_lut", values, data, path)
        return np.ascontiguousarray(coloured)
    missing = _is_padding(values, data)
    if of_mask:
        missing &= values != 0
    slope = float(getattr(data, "RescaleSlope", 1) or 1)
    intercept = float(getattr(data, "RescaleIntercept", 0) or 0)
    if getattr(data, "ModalityLUTSequence", None):
        values = _looked_up("apply_modality_lut", values, data, path)
    elif (slope, intercept) != (1, 0):
        values = (values * slope + intercept).astype(np.float32)
    if missing.any():
        values = values.astype(np.float32)
        values[missing] = np.nan
    if kind == "MONOCHROME1" and not of_mask:  # small values are white
        with np.errstate(over="ignore"):  # the sum may wrap around, and the difference wraps back
            values = np.nanmax(values) + np.nanmin(values) - values
    return np.ascontiguousarray(values)


def _check_bits(data: Any, path: Path) -> None:
    """Raise an `InputError` if a DICOM file's values are not in the lowest bits, which are read."""
    stored, high = int(getattr(data, "BitsStored", 0)), int(getattr(data, "HighBit", 0))
    syntax = data.file_meta.TransferSyntaxUID
    if 0 < stored <= high and (not syntax.is_encapsulated or syntax.name == "RLE Lossless"):
        raise InputError(
            f"{path} has BitsStored={stored} and HighBit={high}, so its values are not in the "
            f"lowest bits, which are read; save it with HighBit={stored - 1}, or as NIfTI."
        )


def _looked_up(function: str, values: NDArray[Any], data: Any, path: Path) -> NDArray[Any]:
    """Return what a table of a DICOM file makes of values, by a function of `pydicom.pixels`."""
    try:
        return np.asarray(getattr(import_module("pydicom.pixels"), function)(values, data))
    except Exception as error:
        what, remedy = "palette", "as RGB"
        if function == "apply_modality_lut":
            what, remedy = "ModalityLUTSequence", "without it"
        raise InputError(
            f"{path} has a {what} that cannot be read ({error}); save it {remedy}."
        ) from error


def _is_padding(values: NDArray[Any], data: Any) -> NDArray[np.bool_]:
    """Return the pixels that are padding according to a DICOM file's header."""
    padding = getattr(data, "PixelPaddingValue", None)
    if padding is None:
        return np.zeros(values.shape, np.bool_)
    limit = getattr(data, "PixelPaddingRangeLimit", None)
    low, high = sorted(_signed(v, data) for v in (padding, padding if limit is None else limit))
    inside: NDArray[np.bool_] = (values >= low) & (values <= high)
    return inside if not inside.all() else np.zeros(values.shape, np.bool_)


def _signed(value: Any, data: Any) -> int:
    """Return a value of a DICOM file's header as its pixels mean it.

    Some programs write 65536 - 2000 for -2000, beside signed pixels of 16 bits.
    """
    bits, number = int(data.BitsAllocated), int(value)
    is_wrapped = data.PixelRepresentation == 1 and 2 ** (bits - 1) <= number < 2**bits
    return number - 2**bits if is_wrapped else number


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"NIfTI and DICOM files need the package {name}; install it by pip install -e "
            "'.[medical]' in the clone of coseg-lightning."
        ) from error
