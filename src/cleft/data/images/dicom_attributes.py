"""DICOM data sets: parsing, values of attributes, pixel layout, and the grayscale transformations of a header.

Attributes are read one by one, because pydicom converts all values of an attribute at once and raises an exception if
one is illegal. Messages name attributes by keyword and never quote an illegal value, which may be any text. Nothing
here decodes a pixel. Importing this module imports pydicom.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cleft.data.images.source import ReadLimits, refusal
from cleft.grammar import count


class DicomAttributeError(ValueError):
    """An attribute that the pixels depend on is missing or illegal; the message names it."""


class PixelLayout(NamedTuple):
    """How pixels are stored, with defaults for attributes that may safely be missing."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    """Position of the most significant bit of a value, from 0."""
    signed: bool
    photometric: str
    overlay_mask: int
    """Mask of the bits of a pixel that hold overlays."""
    signed_unknown: bool = False
    """Whether `PixelRepresentation` is missing: values are read as unsigned, and none may have its sign bit set."""
    notes: tuple[str, ...] = ()
    """Keys of `cleft.data.images.dicom_headers.ODDITIES`."""


LAYOUT_TAGS = (
    "SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated "
    "BitsStored HighBit PixelRepresentation"
).split()
"""Attributes that `read_layout` reads, except overlays."""
_OVERLAY_GROUPS = range(0x6000_0000, 0x6020_0000, 0x0002_0000)
_OVERLAY_DEPTH, _OVERLAY_PLACE = 0x0100, 0x0102
OVERLAY_TAGS = tuple(group | element for group in _OVERLAY_GROUPS for element in (_OVERLAY_DEPTH, _OVERLAY_PLACE))


def read_layout(dataset: Dataset) -> PixelLayout:
    """Read how pixels are stored, and set the defaults of missing attributes in the data set.

    Raises:
        DicomAttributeError: If an attribute is illegal, or missing without a safe default.
    """
    notes: list[str] = []
    rows, columns, allocated = (_required(dataset, keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
    if not has_value(dataset, "PhotometricInterpretation"):
        raise DicomAttributeError(_missing("PhotometricInterpretation"))
    photometric = text_value(dataset, "PhotometricInterpretation").upper()
    samples = int_value(dataset, "SamplesPerPixel")
    if samples is None:
        samples = 1 if photometric.startswith(("MONOCHROME", "PALETTE")) else 3
        notes.append("samples")
    if samples > 1 and int_value(dataset, "PlanarConfiguration") is None:
        dataset.PlanarConfiguration = 0
        notes.append("planar")
    frames = int_value(dataset, "NumberOfFrames")
    if frames is not None and frames < 0:
        raise DicomAttributeError("NumberOfFrames is negative")
    if frames == 0:
        notes.append("frames")
    representation = int_value(dataset, "PixelRepresentation")
    if representation not in (0, 1, None):
        raise DicomAttributeError("PixelRepresentation is neither 0 nor 1")
    stored, high = int_value(dataset, "BitsStored"), int_value(dataset, "HighBit")
    if stored is None:
        if representation == 1 and high is None:
            raise DicomAttributeError(_missing("BitsStored"))
        stored = allocated if high is None else high + 1
        notes.append("bits")
    if not 1 <= stored <= allocated:
        raise DicomAttributeError(f"BitsStored is {stored}, but BitsAllocated is {allocated}")
    high = stored - 1 if high is None else high
    if not stored - 1 <= high < allocated:
        raise DicomAttributeError(f"HighBit is {high}, but BitsStored is {stored} and BitsAllocated {allocated}")
    if high != stored - 1:
        notes.append("left-aligned")
    if representation is None:
        notes.append("representation")
    layout = PixelLayout(
        rows=rows,
        columns=columns,
        samples=samples,
        frames=max(1, frames or 0),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        signed=representation == 1,
        photometric=photometric,
        overlay_mask=_overlay_bits(dataset, allocated) if stored < allocated else 0,
        signed_unknown=representation is None,
        notes=tuple(notes),
    )
    # pydicom and its decoders read the same attributes, and raise if one is missing or 0.
    for keyword, value, default in (
        ("SamplesPerPixel", samples, "samples" in notes),
        ("NumberOfFrames", layout.frames, frames == 0),
        ("PixelRepresentation", 0, representation is None),
        ("BitsStored", stored, "bits" in notes),
        ("PhotometricInterpretation", photometric, True),
    ):
        if default:
            dataset.pop(_tag(keyword), None)  # Assigning a value converts the old one.
            setattr(dataset, keyword, value)
    return layout


def has_value(dataset: Dataset, keyword: str | int) -> bool:
    """Return whether an attribute is present and not empty, legal or not."""
    element = _element(dataset, keyword)
    if element is None:
        return False
    value: Any = element.value
    if isinstance(value, str):
        value = value.strip()
    elif isinstance(value, bytes) and isinstance(element, RawDataElement) and _vr(element, keyword) in _TEXTS:
        value = value.strip(b" \0")
    return value is not None and value not in ("", b"")


def text_value(dataset: Dataset, keyword: str) -> str:
    """Return a value as text, empty if it is absent or illegal; several values are separated by backslashes."""
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


def number_values(dataset: Dataset, keyword: str | int) -> list[float]:
    """Return all values of an attribute, NaN for each that is not a number; empty if it is absent or empty."""
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


def number_value(dataset: Dataset, keyword: str) -> float | None:
    """Return the single value of an attribute; None if it is absent or empty.

    Raises:
        DicomAttributeError: If it is not a finite number, or has several values.
    """
    found = number_values(dataset, keyword)
    if not found:
        return None
    if len(found) != 1 or not math.isfinite(found[0]):
        raise DicomAttributeError(f"{keyword} is not one finite number")
    return found[0]


def int_value(dataset: Dataset, keyword: str) -> int | None:
    """Return the single value of an attribute as an integer; None if it is absent or empty.

    Raises:
        DicomAttributeError: If it is not an integer, or has several values.
    """
    found = number_value(dataset, keyword)
    if found is None:
        return None
    if found != int(found):
        raise DicomAttributeError(f"{keyword} is not an integer")
    return int(found)


def sequence_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is absent or empty.

    Raises:
        DicomAttributeError: If it cannot be read.
    """
    if not has_value(dataset, keyword):
        return []
    try:
        found = list(dataset[keyword].value)
    except Exception as error:
        raise DicomAttributeError(f"{keyword} cannot be read") from error
    if not all(isinstance(item, Dataset) for item in found):
        raise DicomAttributeError(f"{keyword} is not a sequence")
    return found


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ASCII = {"AS", "CS", "DS", "IS"}
_TEXTS = {*_ASCII, "LO", "SH", "ST", "LT", "UT", "UC"}
_ILLEGIBLE = SimpleNamespace(value=math.nan)
_WORDS = {"US": "H", "SS": "h"}
"""VR of two-byte integers to their code in `struct`."""


def _element(dataset: Dataset, keyword: str | int) -> Any:
    """Return an attribute, unconverted if pydicom has not converted it; None if it is absent.

    An element of a VR that pydicom does not know, and without a value, is returned with the value NaN.
    """
    try:
        return dataset.get_item(_tag(keyword))
    except Exception:  # noqa: BLE001 - pydicom converts elements without a value, and may raise anything.
        return _ILLEGIBLE


@functools.cache
def _tag(keyword: str | int) -> BaseTag:
    return Tag(keyword)


def _vr(element: RawDataElement, keyword: str | int) -> str:
    """VR of a value by the file, or else by the standard."""
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
    found = int_value(dataset, keyword)
    if found is None:
        raise DicomAttributeError(_missing(keyword))
    if found < 1:
        raise DicomAttributeError(f"{keyword} is {found}")
    return found


def _missing(keyword: str) -> str:
    return f"{keyword} is missing, and the pixels cannot be interpreted without it; export the image again with it"


def _overlay_bits(dataset: Dataset, allocated: int) -> int:
    """Return the bits of a pixel that hold overlays, as in old files; other overlays have one bit allocated."""
    bits = 0
    for group in _OVERLAY_GROUPS:
        places = number_values(dataset, group | _OVERLAY_PLACE)
        if (
            len(places) == 1
            and number_values(dataset, group | _OVERLAY_DEPTH) == [allocated]
            and places[0] in range(allocated)
        ):
            bits |= 1 << int(places[0])
    return bits


class Window(NamedTuple):
    """A VOI window that is legal for its function (PS3.3, C.11.2.1.2)."""

    center: float
    width: float
    function: str
    """`LINEAR`, `LINEAR_EXACT` or `SIGMOID`."""


class Grayscale(NamedTuple):
    """Grayscale transformations that the header declares for a frame."""

    slope: float
    intercept: float
    modality_lut: Dataset | None
    """Item of a modality LUT, used in place of slope and intercept."""
    voi_luts: tuple[Dataset, ...]
    """Items of VOI LUTs, used before windows."""
    windows: tuple[Window | None, ...]
    """VOI windows in the order declared, None for each that is illegal."""
    padding_range: tuple[int, int] | None
    """Lowest and highest pixel padding value, as written: perhaps with the other sign than the pixels."""
    inverted: bool
    """Whether low values are white."""
    notes: tuple[str, ...]
    """Keys of `cleft.data.images.dicom_headers.ODDITIES`."""

    def window(self, index: int) -> Window | None:
        """Return the window with an index if it is legal, or else the first legal one; None if there is none."""
        wanted = self.windows[index] if index < len(self.windows) else None
        return wanted or next((window for window in self.windows if window is not None), None)


GRAYSCALE_TAGS = (
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence RescaleSlope RescaleIntercept "
    "ModalityLUTSequence WindowCenter WindowWidth VOILUTFunction VOILUTSequence PixelPaddingValue "
    "PixelPaddingRangeLimit PresentationLUTShape"
).split()
"""Attributes that `read_grayscale` reads, in addition to the photometric interpretation."""


def read_grayscale(dataset: Dataset, frame: int, frames: int) -> Grayscale:
    """Read the transformations that a header declares for a frame.

    Enhanced objects declare them in functional groups, shared or per frame; others at the top level. The level closest
    to the frame is used. Real world value mappings are not for display and are ignored.

    Args:
        dataset: Data set with a photometric interpretation of gray.
        frame: Index of the frame, from 0.
        frames: Number of frames.

    Raises:
        DicomAttributeError: If a sequence cannot be read, slope or intercept is illegal, or the item of the frame is
            ambiguous.
    """
    notes: list[str] = []
    groups = _functional_groups(dataset, frame, frames)
    slope, intercept, modality = _modality([*_macros(groups, _PIXEL_VALUES), dataset], notes)
    tables, windows = _voi([*_macros(groups, _VOI), dataset], notes)
    # The presentation LUT shape is the last step (PS3.4, N.2.5); the photometric interpretation only implies one.
    implied = text_value(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1"
    inverted = {"IDENTITY": False, "INVERSE": True}.get(text_value(dataset, "PresentationLUTShape").upper(), implied)
    if inverted != implied:
        notes.append("shape")
    padding = _padding(dataset, notes)
    return Grayscale(slope, intercept, modality, tables, windows, padding, inverted, tuple(notes))


_PIXEL_VALUES, _VOI = "PixelValueTransformationSequence", "FrameVOILUTSequence"
"""Functional group macros that determine the display."""
_NARROWEST = {"LINEAR": 1.0, "LINEAR_EXACT": math.ulp(0), "SIGMOID": math.ulp(0)}


def _functional_groups(dataset: Dataset, frame: int, frames: int) -> list[Dataset]:
    """Functional groups that apply to a frame, its own before the shared ones."""
    shared = sequence_items(dataset, "SharedFunctionalGroupsSequence")[:1]
    each = sequence_items(dataset, "PerFrameFunctionalGroupsSequence")
    if not each:
        return shared
    if len(each) != frames and not _are_equal([_declared(item) for item in each]):
        raise DicomAttributeError(
            f"PerFrameFunctionalGroupsSequence has {count(len(each), 'item')} for {count(frames, 'frame')}, and these "
            "declare different windows or rescaling"
        )
    return [each[min(frame, len(each) - 1)], *shared]


def _macros(groups: Sequence[Dataset], name: str) -> list[Dataset]:
    return [macro for group in groups for macro in sequence_items(group, name)[:1]]


def _declared(group: Dataset) -> list[list[Dataset]]:
    """The part of a functional group item that determines the display, for comparing items."""
    return [sequence_items(group, name) for name in (_PIXEL_VALUES, _VOI)]


def _are_equal(declared: Sequence[list[list[Dataset]]]) -> bool:
    try:
        return all(each == declared[0] for each in declared)
    except Exception:  # noqa: BLE001 - comparing converts every value, and pydicom may raise anything.
        return False


def _modality(levels: Sequence[Dataset], notes: list[str]) -> tuple[float, float, Dataset | None]:
    """Slope, intercept and LUT of the first level that declares any; half a rescale is completed by its default."""
    for level in levels:
        if tables := sequence_items(level, "ModalityLUTSequence"):
            return 1.0, 0.0, tables[0]
        slope, intercept = number_value(level, "RescaleSlope"), number_value(level, "RescaleIntercept")
        if slope is None and intercept is None:
            continue
        if slope is None or intercept is None:
            notes.append("rescale")
        if slope == 0:
            raise DicomAttributeError("RescaleSlope is 0, which makes every value the same")
        return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept, None
    return 1.0, 0.0, None


def _voi(levels: Sequence[Dataset], notes: list[str]) -> tuple[tuple[Dataset, ...], tuple[Window | None, ...]]:
    """VOI LUTs and windows of the first level that declares a legal one."""
    illegal = False
    found: tuple[tuple[Dataset, ...], tuple[Window | None, ...]] = (), ()
    for level in levels:
        stated = sequence_items(level, "VOILUTSequence")
        tables = tuple(item for item in stated if has_value(item, "LUTDescriptor") and has_value(item, "LUTData"))
        windows = _windows(level)
        illegal |= len(tables) < len(stated) or None in windows
        if tables or any(windows):
            found = tables, windows
            break
    if illegal:
        notes.append("windows" if any(found) else "window")
    return found


def _windows(level: Dataset) -> tuple[Window | None, ...]:
    centers, widths = number_values(level, "WindowCenter"), number_values(level, "WindowWidth")
    function = text_value(level, "VOILUTFunction").upper() or "LINEAR"
    narrowest = _NARROWEST.get(function, math.inf)
    pairs = zip(centers, widths, strict=False)
    legal = [
        Window(center, width, function) if math.isfinite(center) and narrowest <= width < math.inf else None
        for center, width in pairs
    ]
    # A window without centre or width is illegal too.
    return (*legal, *[None] * (max(len(centers), len(widths)) - len(legal)))


def _padding(dataset: Dataset, notes: list[str]) -> tuple[int, int] | None:
    """Ends of the range of pixel padding values (PS3.3, C.7.5.1.1.2)."""
    ends = [number_values(dataset, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    integers = [[int(end) for end in found if math.isfinite(end) and end == int(end)] for found in ends]
    if any(len(found) > 1 or len(found) != len(kept) for found, kept in zip(ends, integers, strict=True)):
        notes.append("padding")
    first, limit = (found[0] if len(found) == 1 else None for found in integers)
    return None if first is None else (first, first if limit is None else limit)


_START = 132
"""A preamble of 128 bytes, and `DICM`."""


class ParsedFile(NamedTuple):
    """A data set with the requested attributes."""

    dataset: Dataset
    syntax: UID
    """Transfer syntax of the pixel data. Never deflated, because the data set is already inflated."""
    has_syntax: bool
    """Whether the file has a preamble and a transfer syntax; if not, both were inferred from its first bytes."""
    sop_class: str
    """Keyword of the SOP class, e.g. `BasicTextSRStorage`; empty if it is missing or unknown."""


def parse_dicom(
    file: BinaryIO, name: Path | str, tags: Sequence[int], limits: ReadLimits, *, pixels: bool
) -> ParsedFile:
    """Read selected attributes of a file; call it inside `silence_pydicom`.

    Args:
        file: At its beginning.
        name: Name of the file in messages.
        tags: The attributes.
        limits: Limit on the size of an inflated data set: two bytes per allowed pixel.
        pixels: Whether to read pixel data too; otherwise reading stops before it.

    Raises:
        DataError: With reason `format` (no DICOM file), `too-large` or `truncated`. Broken files raise whatever
            pydicom raises.
    """
    marked = file.read(_START)[128:] == b"DICM"
    file.seek(_START if marked else 0)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_behind_meta)
    syntax: UID | None = meta.get("TransferSyntaxUID") or None
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset = _read_deflated(file, name, tags, limits, pixels=pixels)
        return ParsedFile(dataset, ExplicitVRLittleEndian, has_syntax=marked, sop_class=_kind(dataset, meta))
    file.seek(0)
    dataset = dcmread(file, stop_before_pixels=not pixels, force=not marked, specific_tags=list(tags))
    if not marked and not (dataset.get("Rows") and dataset.get("Columns") and (not pixels or "PixelData" in dataset)):
        raise refusal("format", name, "it has no DICOM preamble, and no image when read without one")
    has_syntax = marked and syntax is not None
    if syntax is None:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return ParsedFile(dataset, syntax, has_syntax=has_syntax, sop_class=_kind(dataset, meta))


@contextmanager
def silence_pydicom() -> Generator[None]:
    """Suppress warnings of pydicom and its decoders, which quote values of the header such as names."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg", "_openjpeg", "rle")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _kind(dataset: Dataset, meta: Dataset) -> str:
    return UID(str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")).keyword


def _is_behind_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _is_pixels(tag: int, vr: str | None, length: int) -> bool:
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)


def _read_deflated(
    file: BinaryIO, name: Path | str, tags: Sequence[int], limits: ReadLimits, *, pixels: bool
) -> Dataset:
    """Inflate and parse a data set, up to the limit: a few kilobytes may hold gigabytes."""
    inflate, limit = zlib.decompressobj(-zlib.MAX_WBITS), 2 * limits.pixels
    data = inflate.decompress(file.read(), limit)
    if not inflate.eof:
        if len(data) >= limit:
            raise refusal("too-large", name, f"its data set has more than {limit} bytes when inflated")
        raise refusal("truncated", name, "its deflated data set is incomplete; copy the file again")
    dataset = read_dataset(
        BytesIO(data),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=None if pixels else _is_pixels,
        specific_tags=list(tags),
    )
    dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    return dataset
