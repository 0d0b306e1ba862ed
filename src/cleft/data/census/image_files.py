"""What image files say of themselves, from their first bytes: format, kind of pixels, bits, size, encoding.

Nothing is decoded. PNG and JPEG say it in a few fixed bytes, which are read here without a library; DICOM headers are
`cleft.data.images.dicom_headers`' business. No name, id or date is read.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import ImagesConfig
from cleft.data.images.cache import PreparedImages
from cleft.data.images.decode_pool import prepare_pool
from cleft.data.images.dicom_headers import Header, count_syntaxes, header_notes, read_header, undecodable_syntaxes
from cleft.data.images.preprocess import centre_crop
from cleft.data.images.source import open_file
from cleft.data.progress import progress_bar
from cleft.data.tables.paths import is_junk
from cleft.errors import DataError
from cleft.grammar import agree, count, verb
from cleft.types import Excluded, Record, Tally, Thumbnail

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
    encodings = [(row.name, row.images) for row in count_syntaxes(headers)] if headers else []
    tallies = [
        _tally("format", (look.format for look in looks)),
        _tally("pixels", (f"{look.bits}-bit {look.kind}" for look in looks if look.kind)),
        _tally("size", (f"{look.size[0]} × {look.size[1]}" for look in looks if look.size), most=_MOST_SIZES),
        Tally(name="transfer syntax", counts=tuple(encodings)),
        _tally("frames", (f"{h.frames} frames" for h in headers if h.frames > 1)),
    ]
    notes = [*undecodable_syntaxes(headers), *header_notes(headers)] if headers else []
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


_SIDE = 224
"""Longest side of a picture in pixels."""
_DOUBT = 0.05


class Sample(NamedTuple):
    """What became of the images that were decoded."""

    undecodable: Mapping[str, tuple[str, str]]
    """Record id to the reason and the sentence, which names the file."""
    contents: Mapping[str, str]
    """Record id to the SHA-256 of its file."""
    pictures: tuple[Thumbnail, ...]


def draw(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """Returns some records in a random order that depends on their ids and the seed alone; all for None."""
    order = sorted(records, key=lambda record: hashlib.sha256(f"cleft-check-v1-{seed}|{record.id}".encode()).digest())
    return order if count is None else order[:count]


def decode(
    records: Sequence[Record], images: ImagesConfig, *, pictures: int = 0, jobs: int = 0, progress: bool = True
) -> Sample:
    """Decodes and prepares images without keeping them.

    Args:
        records: What to decode.
        images: As for training.
        pictures: How many of the first to show.
        jobs: Child processes that decode; 0 means one.
        progress: Whether to show a bar where the error stream is a terminal.
    """
    bad: dict[str, tuple[str, str]] = {}
    contents: dict[str, str] = {}
    shown: list[Thumbnail] = []
    with (
        prepare_pool(images, frozenset(), min(jobs, len(records))) as prepare,
        progress_bar("decode", len(records), enabled=progress) as advance,
    ):
        outcomes = prepare([record.image for record in records])
        for record, outcome in zip(records, outcomes, strict=True):
            if outcome.source is not None:
                contents[record.id] = outcome.source.sha256
            if outcome.reason:
                bad[record.id] = (outcome.reason, outcome.message)
            elif outcome.pixels is not None and len(shown) < pictures:
                shown.append(_picture(record, outcome.pixels, images))
            advance()
    return Sample(bad, contents, tuple(shown))


def is_surely_more(bad: int, drawn: int, of: int, share: float) -> bool:
    """Whether more than a share of all images is bad, going by those that were drawn.

    True if the bad ones that were found are more already, or if so many would come up in fewer than one draw of
    twenty with just that share.

    Example:
        >>> is_surely_more(1, 50, 1000, 0.01), is_surely_more(3, 50, 1000, 0.01), is_surely_more(1, 50, 50, 0.01)
        (False, True, True)
    """
    if bad > share * of:
        return True
    if drawn >= of or not bad or not 0 < share < 1:
        return False
    fewer = sum(
        math.exp(
            math.lgamma(drawn + 1)
            - math.lgamma(k + 1)
            - math.lgamma(drawn - k + 1)
            + k * math.log(share)
            + (drawn - k) * math.log1p(-share)
        )
        for k in range(bad)
    )
    return 1 - fewer < _DOUBT


def _picture(record: Record, pixels: NDArray[np.uint8], images: ImagesConfig) -> Thumbnail:
    present = tuple(name for name, value in record.labels.items() if value == 1)
    return Thumbnail(image=_as_png(centre_crop(pixels, images.size)), view=record.view or "", labels=present)


def _as_png(pixels: NDArray[np.uint8]) -> str:
    scale = min(1.0, _SIDE / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()


class Twins(NamedTuple):
    """Records of one picture."""

    ids: tuple[str, ...]
    parts: tuple[str, ...]
    """The splits they stand in, each once, in the order of the splits."""
    patients: int
    """How many patients the picture is said to be of."""
    agree: bool
    """Whether all their labels are equal."""


def shared_contents(parts: Mapping[str, Sequence[Record]], contents: Mapping[str, Hashable]) -> list[Twins]:
    """Finds pictures that several records show.

    Args:
        parts: Name of a split to its records.
        contents: Record id to what its picture is known by, as from `contents_of`; records without one are passed
            over.

    Returns:
        One entry per picture, those in several splits first.
    """
    places = {name: place for place, name in enumerate(parts)}
    found: dict[Hashable, list[tuple[str, Record]]] = {}
    for name, records in parts.items():
        for record in records:
            if record.id in contents:
                found.setdefault(contents[record.id], []).append((name, record))
    twins = [
        Twins(
            ids=tuple(record.id for _, record in members),
            parts=tuple(sorted({name for name, _ in members}, key=places.__getitem__)),
            patients=len({record.patient for _, record in members}),
            agree=all(record.labels == members[0][1].labels for _, record in members),
        )
        for members in found.values()
        if len(members) > 1
    ]
    return sorted(twins, key=lambda twin: (-len(twin.parts), twin.ids))


def contents_of(prepared: PreparedImages) -> dict[str, int]:
    """Returns what tells the prepared pictures apart: two records have the same number if their pixels are equal.

    Copies of a file share one row of the cache. Files that differ elsewhere, as in a header, but hold the same picture
    have rows with the same checksum, and only these are compared.
    """
    rows = prepared.rows
    known: dict[tuple[int, int], int] = {}
    by_check: dict[int, list[int]] = {}
    first: list[int] = []
    for number, (place, check) in enumerate(
        zip(map(tuple, rows.positions.tolist()), rows.checksums.tolist(), strict=True)
    ):
        if place not in known:
            alike = by_check.setdefault(check, [])
            same = next((other for other in alike if np.array_equal(rows[other], rows[number])), number)
            alike += [number] * (same == number)
            known[place] = same
        first.append(known[place])
    return {name: first[number] for name, number in prepared.numbers.items()}


def check_duplicates(twins: Sequence[Twins], *, test: str = "test") -> list[str]:
    """Judges pictures that stand several times.

    A picture in the test set and in another split makes numbers too good: that stops. One in training and
    validation, under two patients, or with two opinions about what it shows, is worth a sentence. Copies within a
    split that agree on everything are harmless.

    Returns:
        Sentences with counts alone, no id.

    Raises:
        DataError: With reason `shared-images`.
    """
    leaking = [twin for twin in twins if test in twin.parts and len(twin.parts) > 1]
    if leaking:
        raise DataError(
            f"{count(len(leaking), 'image')} of the {test} split {verb(len(leaking), 'is', 'are')} in another "
            f"split too, under another name; numbers measured on {verb(len(leaking), 'it', 'them')} would be too good: "
            f"take out one row of {verb(len(leaking), 'it', 'each')}",
            reason="shared-images",
        )
    across = sum(len(twin.parts) > 1 for twin in twins)
    people = sum(twin.patients > 1 for twin in twins)
    opinions = sum(not twin.agree for twin in twins)
    return [
        f"{count(number, 'image')} {agree(number, sentence)}"
        for number, sentence in (
            (across, "[is|are] in training and in validation under two names"),
            (people, "[is|are] listed for two patients: one person may be in two splits"),
            (opinions, "[has|have] two names with different labels"),
        )
        if number
    ]


EXAMPLES = 3
_MOST = 5_000_000
"""Files that are looked at; more would take hours to no purpose."""
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")
_DOCUMENTS = re.compile(r"\.(?:csv|tsv|txt|md|pdf|html?|json|ya?ml|xlsx?|docx?|parquet|zip|gz)$", re.IGNORECASE)


class Unlisted(NamedTuple):
    """What lies among the images."""

    files: tuple[Excluded, ...]
    """By the ending of their names, the commonest first."""
    junk: int


def find_unlisted(images: Sequence[str]) -> Unlisted:
    """Lists the deepest folder that all images share, and everything below it.

    Tables and other documents do not count. Linked folders are not entered.

    Args:
        images: Where the image of every row should lie, also of rows that are not used; a row without an image
            ends in `/`.
    """
    named = {path for path in images if not path.endswith("/")}
    if not named:
        return Unlisted((), 0)
    home = os.path.commonpath({path.rpartition("/")[0] for path in named})
    found: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    junk = 0
    for path in islice(_walk(home), _MOST):
        if path in named:
            continue
        short = path[len(home) + 1 :]
        if is_junk(short):
            junk += 1
        elif not _DOCUMENTS.search(path):
            ending = _ending(path)
            counts[ending] = counts.get(ending, 0) + 1
            if len(found.setdefault(ending, [])) < EXAMPLES:
                found[ending].append(short)
    ranked = sorted(counts, key=lambda ending: (-counts[ending], ending))
    return Unlisted(
        tuple(Excluded(reason=ending, count=counts[ending], examples=tuple(found[ending])) for ending in ranked), junk
    )


def _ending(path: str) -> str:
    match = _ENDING.search(path)
    return match[0].lower() if match else "without ending"


def _walk(home: str) -> Iterator[str]:
    """Every regular file below a folder, in a fixed order; what cannot be listed is passed over."""
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            continue
        waiting += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
        yield from (entry.path for entry in entries if entry.is_file(follow_symlinks=False))
