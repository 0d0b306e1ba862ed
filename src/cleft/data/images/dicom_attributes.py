"""Attributes of a DICOM header, read one by one: an illegal value of one never stops the others from being read.

pydicom converts all values of an attribute at once and raises if one is illegal, so numbers are parsed here. Messages
name attributes by keyword and never quote an illegal value: it may be any text.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from types import SimpleNamespace
from typing import Any, NamedTuple

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag


class AttributeFault(ValueError):
    """An attribute without which the pixels have no certain meaning is missing or illegal; the text names it."""


class Layout(NamedTuple):
    """How the pixels are stored, with defaults in place of what may safely be missing."""

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    """Place of a value's most significant bit, from 0."""
    signed: bool
    photometric: str
    overlays: int
    """Bits of a pixel that hold overlays, as a mask."""
    signed_unknown: bool = False
    """Whether `PixelRepresentation` is missing: values are read as unsigned, and none may have its sign bit set."""
    notes: tuple[str, ...] = ()
    """Keys of `cleft.data.images.headers.ODDITIES`."""


LAYOUT_TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
"""What `read_layout` reads, but for overlays."""
_OVERLAY_GROUPS = range(0x6000_0000, 0x6020_0000, 0x0002_0000)
_OVERLAY_DEPTH, _OVERLAY_PLACE = 0x0100, 0x0102
OVERLAY_TAGS = tuple(group | element for group in _OVERLAY_GROUPS for element in (_OVERLAY_DEPTH, _OVERLAY_PLACE))


def read_layout(dataset: Dataset) -> Layout:
    """Read how the pixels are stored, and put the defaults of missing attributes into the data set.

    Raises:
        AttributeFault: If an attribute is illegal, or missing without a safe default.
    """
    notes: list[str] = []
    rows, columns, allocated = (_required(dataset, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    if not is_stated(dataset, "PhotometricInterpretation"):
        raise AttributeFault(_missing("PhotometricInterpretation"))
    photometric = text(dataset, "PhotometricInterpretation").upper()
    samples = whole(dataset, "SamplesPerPixel")
    if samples is None:
        samples = 1 if photometric.startswith(("MONOCHROME", "PALETTE")) else 3
        notes.append("samples")
    if samples > 1 and whole(dataset, "PlanarConfiguration") is None:
        dataset.PlanarConfiguration = 0
        notes.append("planar")
    frames = whole(dataset, "NumberOfFrames")
    if frames is not None and frames < 0:
        raise AttributeFault("NumberOfFrames is negative")
    if frames == 0:
        notes.append("frames")
    representation = whole(dataset, "PixelRepresentation")
    if representation not in (0, 1, None):
        raise AttributeFault("PixelRepresentation is neither 0 nor 1")
    stored, high = whole(dataset, "BitsStored"), whole(dataset, "HighBit")
    if stored is None:
        if representation == 1 and high is None:
            raise AttributeFault(_missing("BitsStored"))
        stored = allocated if high is None else high + 1
        notes.append("bits")
    if not 1 <= stored <= allocated:
        raise AttributeFault(f"BitsStored is {stored} where BitsAllocated is {allocated}")
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        raise AttributeFault(f"HighBit is {high} where BitsStored is {stored} and BitsAllocated {allocated}")
    if high != stored - 1:
        notes.append("left-aligned")
    if representation is None:
        notes.append("representation")
    layout = Layout(
        rows=rows,
        columns=columns,
        samples=samples,
        frames=max(1, frames or 0),
        allocated=allocated,
        stored=stored,
        high=high,
        signed=representation == 1,
        photometric=photometric,
        overlays=_overlay_bits(dataset, allocated) if stored < allocated else 0,
        signed_unknown=representation is None,
        notes=tuple(notes),
    )
    # pydicom and its plug-ins read the same attributes, and raise where one is missing or 0.
    for keyword, value, default in (
        ("SamplesPerPixel", samples, "samples" in notes),
        ("NumberOfFrames", layout.frames, frames == 0),
        ("PixelRepresentation", 0, representation is None),
        ("BitsStored", stored, "bits" in notes),
        ("PhotometricInterpretation", photometric, True),
    ):
        if default:
            dataset.pop(_tag(keyword), None)  # Setting a value converts what is there.
            setattr(dataset, keyword, value)
    return layout


def is_stated(dataset: Dataset, keyword: str | int) -> bool:
    """Return whether an attribute is there and not empty, legal or not."""
    element = _element(dataset, keyword)
    if element is None:
        return False
    value: Any = element.value
    if isinstance(value, str):
        value = value.strip()
    elif isinstance(value, bytes) and isinstance(element, RawDataElement) and _vr(element, keyword) in _TEXTS:
        value = value.strip(b" \0")
    return value is not None and value not in ("", b"")


def text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text, empty where it is absent or illegal; several values are separated by backslashes."""
    element = _element(dataset, keyword)
    if element is None:
        return ""
    value: Any = element.value
    if isinstance(element, RawDataElement):
        if isinstance(value, bytes) and _vr(element, keyword) in _ASCII:
            return value.decode("ascii", "replace").strip(" \0")
        try:
            value = dataset[_tag(keyword)].value
        except (ValueError, TypeError, LookupError, NotImplementedError, AttributeError):
            return ""
    if value is None:
        return ""
    if element is _ILLEGIBLE:
        return ""
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    return ("\\".join(str(item) for item in value) if several else str(value)).strip(" \0")


def numbers(dataset: Dataset, keyword: str | int) -> list[float]:
    """Return all values of an attribute, NaN in place of each that is no number; empty where it is absent or empty."""
    element = _element(dataset, keyword)
    if element is None:
        return []
    value: Any = element.value
    if isinstance(element, RawDataElement):
        vr = _vr(element, keyword)
        if isinstance(value, bytes) and vr in _TEXTS:
            return _parse(value.decode("ascii", "replace"))
        if isinstance(value, bytes) and vr in _WORDS:
            order = "<" if element.is_little_endian else ">"
            count, rest = divmod(len(value), 2)
            return [math.nan] if rest else list(struct.unpack(f"{order}{count}{_WORDS[vr]}", value))
        try:
            value = dataset[_tag(keyword)].value
        except Exception:  # noqa: BLE001 - pydicom may raise anything; the value is illegal.
            return [math.nan]
    if value is None:
        return []
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, (int, float)):
        return [float(value)]
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    return [_number(item) for item in value] if several else [math.nan]


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return the only value of an attribute; None where it is absent or empty.

    Raises:
        AttributeFault: If it is no finite number, or there are several.
    """
    found = numbers(dataset, keyword)
    if not found:
        return None
    if len(found) != 1 or not math.isfinite(found[0]):
        raise AttributeFault(f"{keyword} is not one finite number")
    return found[0]


def whole(dataset: Dataset, keyword: str) -> int | None:
    """Return the only value of an attribute as a whole number; None where it is absent or empty.

    Raises:
        AttributeFault: If it is none, or there are several.
    """
    found = number(dataset, keyword)
    if found is None:
        return None
    if found != int(found):
        raise AttributeFault(f"{keyword} is not a whole number")
    return int(found)


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none where it is absent or empty.

    Raises:
        AttributeFault: If it cannot be read.
    """
    if not is_stated(dataset, keyword):
        return []
    try:
        found = list(dataset[keyword].value)
    except Exception as error:
        raise AttributeFault(f"{keyword} cannot be read") from error
    if not all(isinstance(item, Dataset) for item in found):
        raise AttributeFault(f"{keyword} is no sequence")
    return found


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ASCII = {"AS", "CS", "DS", "IS"}
_TEXTS = {*_ASCII, "LO", "SH", "ST", "LT", "UT", "UC"}
_ILLEGIBLE = SimpleNamespace(value=math.nan)
_WORDS = {"US": "H", "SS": "h"}
"""Types of two bytes to their code in `struct`."""


def _element(dataset: Dataset, keyword: str | int) -> Any:
    """Return an attribute, not yet converted where pydicom has not done so; None where it is absent.

    An element of a type that pydicom does not know, and without a value, is one whose value is NaN.
    """
    try:
        return dataset.get_item(_tag(keyword))
    except Exception:  # noqa: BLE001 - pydicom converts elements without a value, and may raise anything.
        return _ILLEGIBLE


@functools.cache
def _tag(keyword: str | int) -> BaseTag:
    return Tag(keyword)


def _vr(element: RawDataElement, keyword: str | int) -> str:
    """Type of a value by the file, or else by the standard."""
    return _standard_vr(keyword) if element.VR in (None, "UN") else str(element.VR)


@functools.cache
def _standard_vr(keyword: str | int) -> str:
    return dictionary_VR(_tag(keyword))


def _parse(value: str) -> list[float]:
    value = value.strip(" \0")
    return [_number(part) for part in value.split("\\")] if value else []


def _number(value: Any) -> float:
    if isinstance(value, str):
        value = value.strip(" \0")
        return float(value) if _NUMBER.fullmatch(value) else math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan


def _required(dataset: Dataset, keyword: str) -> int:
    found = whole(dataset, keyword)
    if found is None:
        raise AttributeFault(_missing(keyword))
    if found < 1:
        raise AttributeFault(f"{keyword} is {found}")
    return found


def _missing(keyword: str) -> str:
    return f"{keyword} is missing, without which the pixels have no certain meaning; export the image again with it"


def _overlay_bits(dataset: Dataset, allocated: int) -> int:
    """Return the bits of a pixel that hold overlays, as in old files; other overlays have one bit allocated."""
    bits = 0
    for group in _OVERLAY_GROUPS:
        places = numbers(dataset, group | _OVERLAY_PLACE)
        if (
            len(places) == 1
            and numbers(dataset, group | _OVERLAY_DEPTH) == [allocated]
            and places[0] in range(allocated)
        ):
            bits |= 1 << int(places[0])
    return bits
