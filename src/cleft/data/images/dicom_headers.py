"""Attributes of DICOM headers, read without pixel data: for the readers of datasets, and for notes before training.

    headers = read_headers(paths, folder / "headers.parquet")
    headers[path].view, headers[path].age, headers[path].reason
    for note in header_notes(headers.values()):
        print(note)

No name, id, date or free text of a patient is read, so none can be stored.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cleft.data.counts import progress_bar
from cleft.data.images.source import DEFAULT_LIMITS, ReadLimits, may_be_dicom, open_file, refusal
from cleft.errors import DataError
from cleft.files import file_key, write_whole
from cleft.grammar import agree, count, verb

if TYPE_CHECKING:
    from pydicom import Dataset

    from cleft.data.images.dicom_attributes import ParsedFile


class Header(NamedTuple):
    """Attributes of one file. All but `reason` may be unknown."""

    reason: str = ""
    """Why the file cannot be read as DICOM: `missing`, `format`, `malformed`, …; empty if it can."""
    is_image: bool = False
    """Whether it has rows and columns; reports, presentation states and directories have none."""
    sop_class: str = ""
    """Keyword of the SOP class, e.g. `DigitalMammographyXRayImageStorageForPresentation`."""
    transfer_syntax: str = ""
    """UID of the transfer syntax."""
    modality: str | None = None
    """CR, DX, MG, …"""
    photometric: str = ""
    """`MONOCHROME1`, `MONOCHROME2`, `RGB`, …"""
    rows: int = 0
    columns: int = 0
    frames: int = 1
    samples: int = 1
    """Values per pixel: 3 for colour."""
    bits_allocated: int = 0
    bits_stored: int = 0
    signed: bool = False
    display: str = "none"
    """What the file declares for display: a `window`, a `table` (VOI LUT), or `none` that is legal."""
    view: str | None = None
    """Projection: AP, PA, LL; CC, MLO."""
    laterality: str | None = None
    """L, R or B."""
    sex: str | None = None
    """`Male` or `Female`."""
    age: float | None = None
    """In years, 0 to 120. A number without unit counts as years."""
    manufacturer: str | None = None
    for_processing: bool = False
    """Whether it is a raw image for further processing, not for presentation."""
    implant: bool | None = None
    """Whether a breast implant is present."""
    burned_in: bool | None = None
    """Whether the header declares burned-in annotations."""
    oddities: tuple[str, ...] = ()
    """Keys of `ODDITIES`: what was inferred or ignored."""


ODDITIES: Mapping[str, str] = {
    "untold": ("[has|have] no transfer syntax or no DICOM preamble; inferred from [its|their] first bytes"),
    "age": "[has|have] an age outside 0 to 120; read as unknown",
    "window": "[declares|declare] only illegal windows; displayed by the range of [its|their] values",
    "windows": "[declares|declare] some illegal windows or look-up tables; these are ignored",
    "rescale": (
        "[declares|declare] a rescale slope without an intercept, or the reverse; the missing value is read as 1 or 0"
    ),
    "shape": (
        "[has|have] a presentation LUT shape that contradicts [its|their] photometric interpretation; "
        "displayed by the shape"
    ),
    "padding": "[has|have] a pixel padding value that is not an integer; ignored",
    "samples": "[lacks|lack] SamplesPerPixel; read as 1, or as 3 for colours",
    "planar": "[lacks|lack] PlanarConfiguration; read as 0",
    "bits": "[lacks|lack] BitsStored; read from HighBit, or else as BitsAllocated",
    "representation": ("[lacks|lack] PixelRepresentation; read as unsigned, and rejected if that makes a difference"),
    "left-aligned": "[stores|store] [its|their] values in the upper bits, as HighBit declares; shifted down",
    "frames": "[declares|declare] 0 frames; read as one",
    "aspect": "[has|have] pixels that are not square; not corrected",
}
"""Key to the predicate of a sentence that begins with `N images`, for `agree`."""


def read_header(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Header:
    """Read the header of one file.

    Raises:
        DataError: With the reasons of `open_file`, or `empty`, `format` (no DICOM file), `truncated`, `too-large`
            (larger than the limit when inflated) or `malformed`.
    """
    from cleft.data.images.dicom_attributes import parse_dicom, silence_pydicom

    with open_file(path, limits) as (file, status):
        if not status.st_size:
            raise refusal("empty", path, "the file has no bytes; copy it again")
        start = file.read(132)
        if start[128:] != b"DICM" and not may_be_dicom(start):
            raise refusal("format", path, "is not a DICOM file")
        file.seek(0)
        try:
            with silence_pydicom():
                parsed = parse_dicom(file, path, _tags(), limits, pixels=False)
                return _header(parsed)
        except (DataError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - pydicom raises anything, quoting the header.
            raise refusal("malformed", path, f"its header cannot be read: {type(error).__name__}") from None


def read_headers(paths: Sequence[Path], cache: Path | None = None, *, progress: bool = True) -> dict[Path, Header]:
    """Read the header of every file, or take it from a cache if the file has not changed.

    Args:
        paths: Files; one that cannot be read gets a header with a `reason`.
        cache: Parquet file, created if missing. It contains digests instead of paths, because paths contain ids.
        progress: Whether to show a progress bar if the error stream is a terminal.
    """
    known = load_headers(cache) if cache else {}
    found: dict[Path, Header] = {}
    folders: dict[str, str] = {}
    unsaved = 0
    with progress_bar("read headers", len(paths), enabled=progress) as advance:
        for path in paths:
            try:
                key = file_key(path, folders=folders)
            except OSError:
                key = ""
            header = known.get(key)
            if header is None:
                try:
                    header = read_header(path)
                except DataError as error:
                    header = Header(reason=error.reason)
                if key and header.reason not in _UNCACHED:
                    known[key] = header
                    unsaved += 1
            found[path] = header
            advance()
            if cache and unsaved >= _SAVE_EVERY:
                save_headers(cache, known)
                unsaved = 0
    if cache and unsaved:
        save_headers(cache, known)
    return found


def oddity_notes(counts: Mapping[str, int]) -> list[str]:
    """Return a sentence for each oddity that occurs.

    Args:
        counts: Key of `ODDITIES` to the number of images.
    """
    return [_of_images(counts[key], sentence) for key, sentence in ODDITIES.items() if counts.get(key)]


def header_notes(headers: Iterable[Header]) -> list[str]:
    """Return sentences with counts about a set of images; no value of a patient."""
    images = [header for header in headers if not header.reason and header.is_image]
    counts = Counter(oddity for header in images for oddity in header.oddities)
    notes = oddity_notes(counts)
    for what, number in (
        ("[is|are] raw (for processing), not for presentation", sum(header.for_processing for header in images)),
        ("[declares|declare] burned-in annotations", sum(header.burned_in is True for header in images)),
        (
            "[declares|declare] a breast implant",
            sum(header.implant is True for header in images),
        ),
    ):
        if number:
            notes.append(_of_images(number, what))
    return notes


def _of_images(number: int, sentence: str) -> str:
    return f"{count(number, 'image')} {agree(number, sentence)}"


_SEXES = {"M": "Male", "F": "Female"}
_OLDEST = 120
_YEARS = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_UNCACHED = {"missing", "not-a-file", "unreadable"}
"""Reasons that depend on the folder, not on the file: not cached."""
_SAVE_EVERY = 20_000

_NUMBERS = ("Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored PixelRepresentation").split()
_TEXTS = (
    "Modality PhotometricInterpretation PixelAspectRatio PixelSpacing ViewPosition ImageLaterality Laterality "
    "PatientSex PatientAge Manufacturer PresentationIntentType BreastImplantPresent BurnedInAnnotation"
).split()


@functools.cache
def _tags() -> tuple[int, ...]:
    """Attributes to read. A function, because importing pydicom takes half a second."""
    from pydicom.tag import Tag

    from cleft.data.images.dicom_attributes import GRAYSCALE_TAGS, LAYOUT_TAGS

    return tuple(
        dict.fromkeys(Tag(keyword) for keyword in ("SOPClassUID", *_NUMBERS, *_TEXTS, *LAYOUT_TAGS, *GRAYSCALE_TAGS))
    )


def _header(parsed: ParsedFile) -> Header:
    from cleft.data.images.dicom_attributes import number_values
    from cleft.data.images.dicom_attributes import text_value as read_text

    dataset = parsed.dataset
    text = {keyword: read_text(dataset, keyword) for keyword in _TEXTS}
    integers = {keyword: _integer(number_values(dataset, keyword)) for keyword in _NUMBERS}
    age = _age(text["PatientAge"])
    is_image = (integers["Rows"] or 0) > 0 and (integers["Columns"] or 0) > 0
    display, display_oddities = _display(dataset) if is_image else ("none", ())
    present_oddities = {
        "untold": not parsed.has_syntax,
        "age": bool(text["PatientAge"]) and age is None,
        "frames": integers["NumberOfFrames"] == 0,
        "aspect": any(_is_anisotropic(text[keyword]) for keyword in ("PixelAspectRatio", "PixelSpacing")),
    }
    return Header(
        is_image=is_image,
        sop_class=parsed.sop_class,
        transfer_syntax=str(parsed.syntax),
        modality=_code(text["Modality"]),
        photometric=text["PhotometricInterpretation"].upper(),
        rows=integers["Rows"] or 0,
        columns=integers["Columns"] or 0,
        frames=max(1, integers["NumberOfFrames"] or 1),
        samples=max(1, integers["SamplesPerPixel"] or 1),
        bits_allocated=integers["BitsAllocated"] or 0,
        bits_stored=integers["BitsStored"] or 0,
        signed=integers["PixelRepresentation"] == 1,
        display=display,
        view=_code(text["ViewPosition"]),
        laterality=next(
            (v for k in ("ImageLaterality", "Laterality") if (v := text[k].upper()) in ("L", "R", "B")), None
        ),
        sex=_SEXES.get(text["PatientSex"].upper()),
        age=age,
        manufacturer=text["Manufacturer"][:64] or None,
        for_processing=text["PresentationIntentType"].upper() == "FOR PROCESSING",
        implant={"YES": True, "NO": False}.get(text["BreastImplantPresent"].upper()),
        burned_in={"YES": True, "NO": False}.get(text["BurnedInAnnotation"].upper()),
        oddities=tuple(
            dict.fromkeys((*(key for key, present in present_oddities.items() if present), *display_oddities))
        ),
    )


def _display(dataset: Dataset) -> tuple[str, tuple[str, ...]]:
    """What the file declares for display, and what is inferred or ignored in it."""
    from cleft.data.images.dicom_attributes import DicomAttributeError, read_grayscale, read_layout

    try:
        layout = read_layout(dataset)
        if layout.samples > 1:
            return "none", layout.notes
        # The frames that `images.frame` may choose.
        places = sorted({0, layout.frames // 2})
        declared = [read_grayscale(dataset, frame, layout.frames) for frame in places]
    except DicomAttributeError:
        return "none", ()  # Decoding refuses the file and names the attribute.
    first = declared[0]
    display = "table" if first.voi_luts else "window" if any(first.windows) else "none"
    return display, tuple(dict.fromkeys((*layout.notes, *(note for each in declared for note in each.notes))))


def _code(text: str) -> str | None:
    """A defined term such as `MLO`; None for anything else."""
    return text.upper() if re.fullmatch(r"[A-Za-z][A-Za-z ]{0,11}", text) else None


def _integer(values: Sequence[float]) -> int | None:
    """The only value, if it is a non-negative integer."""
    return int(values[0]) if len(values) == 1 and 0 <= values[0] < math.inf and values[0] == int(values[0]) else None


def _age(text: str) -> float | None:
    """Years of `045Y`, `18M`, `3W`, `5D` and of `45` as in RSNA."""
    match = re.fullmatch(r"(\d{1,4})([YMWD]?)", text.upper())
    if match is None:
        return None
    age = int(match[1]) * _YEARS[match[2]]
    return age if age <= _OLDEST else None


def _is_anisotropic(text: str) -> bool:
    try:
        first, second = (float(part) for part in text.split("\\"))
    except ValueError:
        return False
    return math.isfinite(first + second) and min(first, second) > 0 and abs(first / second - 1) > 0.01


class SyntaxCount(NamedTuple):
    """Number of images with a transfer syntax, and whether they can be decoded here."""

    uid: str
    name: str
    images: int
    readable: bool
    remedy: str
    """What to do if they cannot be decoded; empty if they can."""


def count_syntaxes(headers: Iterable[Header]) -> list[SyntaxCount]:
    """Count images by transfer syntax, the most frequent first, with a remedy if it cannot be decoded here."""
    from cleft.data.images.dicom import syntax_support  # Importing pydicom takes half a second.

    counts = Counter((h.transfer_syntax, h.bits_stored > 8) for h in headers if not h.reason and h.is_image)
    by_syntax: dict[tuple[str, str, str], int] = {}
    for (uid, deep), number in counts.items():
        name, remedy = syntax_support(uid, deep=deep)
        by_syntax[uid, name, remedy] = by_syntax.get((uid, name, remedy), 0) + number
    rows = [SyntaxCount(uid, name, number, not remedy, remedy) for (uid, name, remedy), number in by_syntax.items()]
    return sorted(rows, key=lambda row: (-row.images, row.uid))


def undecodable_syntaxes(headers: Iterable[Header]) -> list[str]:
    """Return a sentence for each transfer syntax that cannot be decoded here, with the remedy."""
    return [
        f"{count(row.images, 'image')} {verb(row.images, 'is', 'are')} encoded as {row.name}, which cannot be decoded "
        f"here; {row.remedy}"
        for row in count_syntaxes(headers)
        if not row.readable
    ]


log = logging.getLogger(__name__)

_CACHE_VERSION = 3
"""Increase when `Header` or its keys change; caches of other versions are not used."""


def load_headers(cache: Path) -> dict[str, Header]:
    """Return the headers in a cache; none if it is missing, damaged or of another version."""
    try:
        with open(cache, "rb") as file:
            table = pq.read_table(pa.BufferReader(file.read()))
        if (table.schema.metadata or {}).get(b"form") != str(_CACHE_VERSION).encode():
            return {}
        columns = [table.column(name).to_pylist() for name in ("key", *Header._fields)]
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, pa.ArrowException) as error:
        log.warning(
            "%s: the cache of headers cannot be read (%s); reading the headers again", cache, type(error).__name__
        )
        return {}
    return {key: Header._make([*values[:-1], tuple(values[-1])]) for key, *values in zip(*columns, strict=True)}


def save_headers(cache: Path, known: Mapping[str, Header]) -> None:
    """Write the complete cache atomically, readable for its owner only."""
    columns = dict(zip(Header._fields, map(list, zip(*known.values(), strict=True)), strict=True))
    table = pa.table({"key": list(known), **columns}).replace_schema_metadata({"form": str(_CACHE_VERSION)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(cache, sink.getvalue().to_pybytes())
