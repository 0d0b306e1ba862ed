"""What image files say of themselves, from their first bytes: format, kind of pixels, bits, size, encoding.

Nothing is decoded. PNG and JPEG say it in a few fixed bytes, which are read here without a library; DICOM headers are
`cleft.data.images.dicom_headers`' business. No name, id or date is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cleft.data.images.dicom_headers import Header, check_syntaxes, header_notes, read_header, syntax_census
from cleft.data.images.source import open_file
from cleft.data.progress import progress_bar
from cleft.errors import DataError
from cleft.types import Tally

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with transparency", 6: "RGB with transparency"}
_JPEG_KINDS = {1: "gray", 3: "colour", 4: "printer's colours"}
_SIZE_MARKS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PHOTOMETRIC = re.compile("MONOCHROME[12]|RGB|ARGB|HSV|CMYK|PALETTE COLOR|YBR_(?:FULL|FULL_422|PARTIAL_42[02]|ICT|RCT)")
"""Any other text of a header may be anything."""
_HEAD = 1 << 20
_MOST_SIZES = 5


class Look(NamedTuple):
    """What one file says."""

    format: str
    """`PNG`, `JPEG`, `DICOM`; `another` for anything else, and a reason such as `missing` for what cannot be read."""
    kind: str = ""
    """Of pixels: `gray`, `RGB`, …; in DICOM's words for a DICOM file."""
    bits: int = 0
    """Per value, as far as they are used."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, as stored."""
    header: Header | None = None


class Looks(NamedTuple):
    """What many files say."""

    tallies: tuple[Tally, ...]
    notes: list[str]
    """What a user should know or fix before training."""


def look_at(path: Path) -> Look:
    """Reads the beginning of one file; whatever is wrong with it becomes a format that is no format."""
    try:
        with open_file(path) as (file, _):
            head = file.read(_HEAD)
    except DataError as error:
        return Look(error.reason)
    if head.startswith(_PNG):
        return _look_at_png(head)
    if head.startswith(b"\xff\xd8\xff"):
        return _look_at_jpeg(head)
    try:
        header = read_header(path)
    except DataError as error:
        return Look("another" if error.reason == "format" else error.reason)
    if not header.is_image:
        return Look("DICOM without an image", header=header)
    kind = header.photometric if _PHOTOMETRIC.fullmatch(header.photometric) else "of no legal kind"
    return Look("DICOM", kind, header.bits_stored, (header.rows, header.columns), header)


def look_at_all(paths: Sequence[Path], *, progress: bool = True) -> Looks:
    """Reads the beginning of every file and counts what they say."""
    looks: list[Look] = []
    with progress_bar("look at files", len(paths), enabled=progress) as advance:
        for path in paths:
            looks.append(look_at(path))
            advance()
    headers = [look.header for look in looks if look.header is not None]
    # Without DICOM files nothing of pydicom is imported.
    encodings = [(row.name, row.images) for row in syntax_census(headers)] if headers else []
    tallies = [
        _tally("format", (look.format for look in looks)),
        _tally("pixels", (f"{look.bits}-bit {look.kind}" for look in looks if look.kind)),
        _tally("size", (f"{look.size[0]} × {look.size[1]}" for look in looks if look.size), most=_MOST_SIZES),
        Tally(name="transfer syntax", counts=tuple(encodings)),
        _tally("frames", (f"{h.frames} frames" for h in headers if h.frames > 1)),
    ]
    notes = [*check_syntaxes(headers), *header_notes(headers)] if headers else []
    return Looks(tuple(tally for tally in tallies if tally.counts), notes)


def _tally(name: str, values: Iterable[str], *, most: int | None = None) -> Tally:
    ranked = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    if most is None or len(ranked) <= most + 1:
        return Tally(name=name, counts=tuple(ranked))
    rest = ranked[most:]
    return Tally(name=name, counts=(*ranked[:most], (f"{len(rest):,} others", sum(number for _, number in rest))))


def _look_at_png(head: bytes) -> Look:
    if len(head) < 26:
        return Look("PNG")
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    return Look("PNG", _PNG_KINDS.get(head[25], "unknown"), head[24], (height, width))


def _look_at_jpeg(head: bytes) -> Look:
    """Walks over the segments in front of the one that gives the size."""
    at = 2
    while at + 10 <= len(head) and head[at] == 0xFF:
        mark = head[at + 1]
        if mark in _SIZE_MARKS:
            height, width = int.from_bytes(head[at + 5 : at + 7]), int.from_bytes(head[at + 7 : at + 9])
            return Look("JPEG", _JPEG_KINDS.get(head[at + 9], "unknown"), head[at + 4], (height, width))
        # A filling byte, or a segment with its length behind the mark.
        at += 1 if mark == 0xFF else 2 + int.from_bytes(head[at + 2 : at + 4])
    return Look("JPEG")
