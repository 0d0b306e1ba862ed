"""Facts of DICOM headers, read without their pixels: what readers of datasets need, and what to say before training.

    headers = read_headers(paths, folder / "headers.parquet")
    headers[path].view, headers[path].age, headers[path].reason
    for note in header_notes(headers.values()):
        print(note)

No name, id, date or free text of a patient is read, so none can be kept.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cleft.data.pixels.decoders import DEFAULT_LIMITS, ReadLimits, may_be_dicom, refusal
from cleft.data.pixels.opening import open_file
from cleft.data.progress import progress_bar
from cleft.errors import DataError
from cleft.identity import file_key

if TYPE_CHECKING:
    from pydicom import Dataset

    from cleft.data.pixels.dicom_files import Parsed


class Header(NamedTuple):
    """What the header of one file says. Everything but `reason` may be unknown."""

    reason: str = ""
    """Why the file is no DICOM file that can be read: `missing`, `format`, `malformed`, …; empty if it is one."""
    is_image: bool = False
    """Whether it has rows and columns; reports, presentation states and directories have none."""
    sop_class: str = ""
    """What kind of object it is, by its keyword, e.g. `DigitalMammographyXRayImageStorageForPresentation`."""
    transfer_syntax: str = ""
    """UID of how its pixels are encoded."""
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
    """How the file wants its values shown: by a `window`, a `table`, or `none` of them that is legal."""
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
    """Whether it is raw: meant for further processing, not to be looked at."""
    implant: bool | None = None
    """Whether a breast implant is present."""
    burned_in: bool | None = None
    """Whether the file says that annotations are burned into its pixels."""
    oddities: tuple[str, ...] = ()
    """Keys of `ODDITIES`: what was concluded or passed over in reading it."""


ODDITIES: Mapping[str, str] = {
    "untold": "say not how they are encoded, or lack DICOM's mark; concluded from their first bytes",
    "age": "give an age that is none between 0 and 120; read as unknown",
    "window": "declare only windows that are illegal; shown by the range of their values",
    "frames": "declare that they hold 0 pictures; read as one",
    "aspect": "have pixels that are not square; not corrected",
}
"""Key to the sentence behind `N images`."""


def read_header(path: Path, limits: ReadLimits = DEFAULT_LIMITS) -> Header:
    """Reads the header of one file.

    Raises:
        DataError: With the reasons of `open_file`, or `empty`, `format` (no DICOM file), `truncated`, `too-large`
            (deflated, and larger than the limit) or `malformed`.
    """
    from cleft.data.pixels.dicom_files import parse_dicom, quiet

    with open_file(path, limits) as (file, status):
        if not status.st_size:
            raise refusal("empty", path, "the file has no bytes; copy it again")
        start = file.read(132)
        if start[128:] != b"DICM" and not may_be_dicom(start):
            raise refusal("format", path, "is no DICOM file")
        file.seek(0)
        try:
            with quiet():
                parsed = parse_dicom(file, path, _TAGS, limits, pixels=False)
                return _header(parsed)
        except (DataError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - pydicom raises whatever it likes, quoting the header.
            raise refusal("malformed", path, f"its header cannot be read: {type(error).__name__}") from None


def read_headers(paths: Sequence[Path], cache: Path | None = None, *, progress: bool = True) -> dict[Path, Header]:
    """Reads the header of every file, or takes it from a cache where the file has not changed.

    Args:
        paths: Files; one that cannot be read gives a header with a `reason`.
        cache: A Parquet file, made where it is absent. It holds digests in place of paths, because paths hold ids.
        progress: Whether to show a bar where the error stream is a terminal.
    """
    from cleft.data.pixels.header_cache import load_headers, save_headers

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
                if key and header.reason not in _PASSING:
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


def header_notes(headers: Iterable[Header]) -> list[str]:
    """Returns sentences with counts of what a user should know about a set of images; no value of any patient."""
    images = [header for header in headers if not header.reason and header.is_image]
    counts = Counter(oddity for header in images for oddity in header.oddities)
    notes = [f"{counts[key]:,} images {sentence}" for key, sentence in ODDITIES.items() if counts[key]]
    for what, number in (
        ("are raw (for processing), not meant to be looked at", sum(header.for_processing for header in images)),
        ("say that annotations are burned into them", sum(header.burned_in is True for header in images)),
        ("name a breast implant in their headers", sum(header.implant is True for header in images)),
    ):
        if number:
            notes.append(f"{number:,} images {what}")
    return notes


_SEXES = {"M": "Male", "F": "Female"}
_OLDEST = 120
_YEARS = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_PASSING = {"missing", "not-a-file", "unreadable"}
"""Reasons that lie in the folder, not in the file: never kept."""
_SAVE_EVERY = 20_000

_TAGS = (
    "SOPClassUID",
    "Modality",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelAspectRatio",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "ViewPosition",
    "ImageLaterality",
    "Laterality",
    "PatientSex",
    "PatientAge",
    "Manufacturer",
    "PresentationIntentType",
    "BreastImplantPresent",
    "BurnedInAnnotation",
)


def _header(parsed: Parsed) -> Header:
    from cleft.data.pixels.dicom_files import choose_window

    dataset = parsed.dataset
    text = {keyword: _text(dataset, keyword) for keyword in _TAGS if not keyword.startswith(("VOILUTS", "Window"))}
    numbers = {keyword: _whole(text[keyword]) for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored")}
    frames, age = _whole(text["NumberOfFrames"]), _age(text["PatientAge"])
    declares_window = _is_stated(dataset, "WindowCenter") and _is_stated(dataset, "WindowWidth")
    display = (
        "table" if dataset.get("VOILUTSequence") else "window" if choose_window(dataset, 0) is not None else "none"
    )
    odd = {
        "untold": not parsed.told,
        "age": bool(text["PatientAge"]) and age is None,
        "window": declares_window and display == "none",
        "frames": text["NumberOfFrames"] == "0",
        "aspect": any(_is_oblong(text[keyword]) for keyword in ("PixelAspectRatio", "PixelSpacing")),
    }
    return Header(
        is_image=numbers["Rows"] > 0 and numbers["Columns"] > 0,
        sop_class=parsed.kind,
        transfer_syntax=str(parsed.syntax),
        modality=_code(text["Modality"]),
        photometric=text["PhotometricInterpretation"].upper(),
        rows=numbers["Rows"],
        columns=numbers["Columns"],
        frames=max(1, frames),
        samples=max(1, _whole(text["SamplesPerPixel"])),
        bits_allocated=numbers["BitsAllocated"],
        bits_stored=numbers["BitsStored"],
        signed=text["PixelRepresentation"] == "1",
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
        oddities=tuple(key for key, present in odd.items() if present),
    )


def _is_stated(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is there and not empty, legible or not."""
    return keyword in dataset and dataset.get_item(keyword).value not in (None, b"", "")


def _text(dataset: Dataset, keyword: str) -> str:
    """A value as text, empty where it is absent or illegible; several values stand between backslashes."""
    try:
        value: Any = dataset.get(keyword)
    except (ValueError, TypeError, LookupError, NotImplementedError, AttributeError):
        return ""
    if value is None:
        return ""
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    return ("\\".join(str(item) for item in value) if several else str(value)).strip(" \0")


def _code(text: str) -> str | None:
    """A defined term such as `MLO`; None for anything that does not look like one."""
    return text.upper() if re.fullmatch(r"[A-Za-z][A-Za-z ]{0,11}", text) else None


def _whole(text: str) -> int:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else 0


def _age(text: str) -> float | None:
    """Years of `045Y`, `18M`, `3W`, `5D` and, as RSNA writes it, `45`."""
    match = re.fullmatch(r"(\d{1,4})([YMWD]?)", text.upper())
    if match is None:
        return None
    age = int(match[1]) * _YEARS[match[2]]
    return age if age <= _OLDEST else None


def _is_oblong(text: str) -> bool:
    try:
        first, second = (float(part) for part in text.split("\\"))
    except ValueError:
        return False
    return math.isfinite(first + second) and min(first, second) > 0 and abs(first / second - 1) > 0.01
