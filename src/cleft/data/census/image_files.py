"""Image files of a dataset check: format and size from their first bytes, a decoded sample, duplicates, unlisted files.

Nothing is written: neither pixels nor rejections enter a cache. No name, id or date in a header is read.
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
from cleft.data.counts import progress_bar
from cleft.data.images.decode_pool import prepare_pool
from cleft.data.images.dicom_headers import Header, count_syntaxes, header_notes, read_header, undecodable_syntaxes
from cleft.data.images.preprocess import centre_crop
from cleft.data.images.source import open_file
from cleft.data.tables.paths import is_junk
from cleft.errors import DataError
from cleft.grammar import agree, count, verb
from cleft.types import Excluded, Record, Tally, Thumbnail

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with transparency", 6: "RGB with transparency"}
_JPEG_KINDS = {1: "gray", 3: "colour", 4: "CMYK"}
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PHOTOMETRIC = re.compile("MONOCHROME[12]|RGB|ARGB|HSV|CMYK|PALETTE COLOR|YBR_(?:FULL|FULL_422|PARTIAL_42[02]|ICT|RCT)")
"""Defined terms; any other value of a header may be any text."""
_HEAD = 1 << 20
_MOST_SIZES = 5


class FileInfo(NamedTuple):
    """Format, pixel type and size of one file, from its first bytes."""

    format: str
    """`PNG`, `JPEG`, `DICOM`, `other`, or a reason such as `missing` if the file cannot be read."""
    kind: str = ""
    """Type of pixels: `gray`, `RGB`, …; the photometric interpretation of a DICOM file."""
    bits: int = 0
    """Bits per value that are used."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, as stored."""
    header: Header | None = None


class FileSummary(NamedTuple):
    """Counts over many files."""

    tallies: tuple[Tally, ...]
    notes: list[str]
    """What a user should know or fix before training."""


def inspect_file(path: Path) -> FileInfo:
    """Read the first bytes of one file; return any problem as its format."""
    try:
        with open_file(path) as (file, _):
            head = file.read(_HEAD)
    except DataError as error:
        return FileInfo(error.reason)
    if head.startswith(_PNG):
        return _inspect_png(head)
    if head.startswith(b"\xff\xd8\xff"):
        return _inspect_jpeg(head)
    try:
        header = read_header(path)
    except DataError as error:
        return FileInfo("other" if error.reason == "format" else error.reason)
    if not header.is_image:
        return FileInfo("DICOM without an image", header=header)
    kind = header.photometric if _PHOTOMETRIC.fullmatch(header.photometric) else "of unknown type"
    return FileInfo("DICOM", kind, header.bits_stored, (header.rows, header.columns), header)


def inspect_files(paths: Sequence[Path], *, progress: bool = True) -> FileSummary:
    """Read the first bytes of every file and count formats, pixel types, sizes and transfer syntaxes."""
    looks: list[FileInfo] = []
    with progress_bar("inspect files", len(paths), enabled=progress) as advance:
        for path in paths:
            looks.append(inspect_file(path))
            advance()
    headers = [look.header for look in looks if look.header is not None]
    # Without DICOM files pydicom is not imported.
    encodings = [(row.name, row.images) for row in count_syntaxes(headers)] if headers else []
    tallies = [
        _tally("format", (look.format for look in looks)),
        _tally("pixels", (f"{look.bits}-bit {look.kind}" for look in looks if look.kind)),
        _tally("size", (f"{look.size[0]} × {look.size[1]}" for look in looks if look.size), most=_MOST_SIZES),
        Tally(name="transfer syntax", counts=tuple(encodings)),
        _tally("frames", (f"{h.frames} frames" for h in headers if h.frames > 1)),
    ]
    notes = [*undecodable_syntaxes(headers), *header_notes(headers)] if headers else []
    return FileSummary(tuple(tally for tally in tallies if tally.counts), notes)


def _tally(name: str, values: Iterable[str], *, most: int | None = None) -> Tally:
    ranked = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    if most is None or len(ranked) <= most + 1:
        return Tally(name=name, counts=tuple(ranked))
    rest = ranked[most:]
    return Tally(name=name, counts=(*ranked[:most], (f"{len(rest):,} others", sum(number for _, number in rest))))


def _inspect_png(head: bytes) -> FileInfo:
    if len(head) < 26:
        return FileInfo("PNG")
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    return FileInfo("PNG", _PNG_KINDS.get(head[25], "unknown"), head[24], (height, width))


def _inspect_jpeg(head: bytes) -> FileInfo:
    """Skip the segments before the frame header, which holds the size."""
    at = 2
    while at + 10 <= len(head) and head[at] == 0xFF:
        mark = head[at + 1]
        if mark in _FRAME_MARKERS:
            height, width = int.from_bytes(head[at + 5 : at + 7]), int.from_bytes(head[at + 7 : at + 9])
            return FileInfo("JPEG", _JPEG_KINDS.get(head[at + 9], "unknown"), head[at + 4], (height, width))
        # A fill byte, or a segment with its length after the marker.
        at += 1 if mark == 0xFF else 2 + int.from_bytes(head[at + 2 : at + 4])
    return FileInfo("JPEG")


_SIDE = 224
"""Longest side of a thumbnail in pixels."""
_DOUBT = 0.05


class Sample(NamedTuple):
    """Results of the decoded images."""

    undecodable: Mapping[str, tuple[str, str]]
    """Record id to reason and message; the message names the file."""
    contents: Mapping[str, str]
    """Record id to the SHA-256 of its prepared pixels, or of its file if it cannot be decoded."""
    thumbnails: tuple[Thumbnail, ...]


def draw_sample(records: Sequence[Record], count: int | None, seed: int) -> list[Record]:
    """Return some records in a random order that depends on their ids and the seed only; all for None."""
    order = sorted(records, key=lambda record: hashlib.sha256(f"cleft-check-v1-{seed}|{record.id}".encode()).digest())
    return order if count is None else order[:count]


def decode_sample(
    records: Sequence[Record], images: ImagesConfig, *, thumbnails: int = 0, jobs: int = 0, progress: bool = True
) -> Sample:
    """Decode and prepare images without storing them.

    Args:
        records: Images to decode.
        images: Image settings, as for training.
        thumbnails: How many of the first images to return as thumbnails.
        jobs: Child processes that decode; 0 means one.
        progress: Whether to show a progress bar if the error stream is a terminal.
    """
    bad: dict[str, tuple[str, str]] = {}
    contents: dict[str, str] = {}
    shown: list[Thumbnail] = []
    with (
        prepare_pool(images, frozenset(), min(jobs, len(records))) as prepare,
        progress_bar("decode", len(records), enabled=progress) as advance,
    ):
        results = prepare([record.image for record in records])
        for record, result in zip(records, results, strict=True):
            if result.pixels is not None:
                contents[record.id] = hashlib.sha256(result.pixels.data).hexdigest()
            elif result.source is not None:
                contents[record.id] = result.source.sha256
            if result.reason:
                bad[record.id] = (result.reason, result.message)
            elif result.pixels is not None and len(shown) < thumbnails:
                shown.append(_thumbnail(record, result.pixels, images))
            advance()
    return Sample(bad, contents, tuple(shown))


def exceeds_share(bad: int, drawn: int, of: int, share: float) -> bool:
    """Whether more than a share of all images is bad, judged by a random sample.

    True if the bad images of the sample exceed the share already, or if that many have a probability below 5 % when the
    share is exactly met (binomial).

    Example:
        >>> exceeds_share(1, 50, 1000, 0.01), exceeds_share(3, 50, 1000, 0.01), exceeds_share(1, 50, 50, 0.01)
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


def _thumbnail(record: Record, pixels: NDArray[np.uint8], images: ImagesConfig) -> Thumbnail:
    present = tuple(name for name, value in record.labels.items() if value == 1)
    return Thumbnail(image=_as_png(centre_crop(pixels, images.size)), view=record.view or "", labels=present)


def _as_png(pixels: NDArray[np.uint8]) -> str:
    scale = min(1.0, _SIDE / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()


class Duplicate(NamedTuple):
    """Records that show the same image."""

    ids: tuple[str, ...]
    splits: tuple[str, ...]
    """Splits that contain them, in the order of the splits."""
    patients: int
    """Number of distinct patients of these records."""
    same_labels: bool
    """Whether all their labels are equal."""


def find_duplicates(splits: Mapping[str, Sequence[Record]], contents: Mapping[str, Hashable]) -> list[Duplicate]:
    """Find images that several records show.

    Args:
        splits: Name of a split to its records.
        contents: Record id to a digest of its image; records without one are skipped.

    Returns:
        One entry per image, those in several splits first.
    """
    order = {name: position for position, name in enumerate(splits)}
    by_content: dict[Hashable, list[tuple[str, Record]]] = {}
    for name, records in splits.items():
        for record in records:
            if record.id in contents:
                by_content.setdefault(contents[record.id], []).append((name, record))
    duplicates = [
        Duplicate(
            ids=tuple(record.id for _, record in members),
            splits=tuple(sorted({name for name, _ in members}, key=order.__getitem__)),
            patients=len({record.patient for _, record in members}),
            same_labels=all(record.labels == members[0][1].labels for _, record in members),
        )
        for members in by_content.values()
        if len(members) > 1
    ]
    return sorted(duplicates, key=lambda duplicate: (-len(duplicate.splits), duplicate.ids))


def check_duplicates(duplicates: Sequence[Duplicate], *, test: str = "test") -> list[str]:
    """Raise an error for duplicate images across splits; return notes about other duplicates.

    An image in the test set and in another split inflates results. One in training and validation, under two patients,
    or with two sets of labels, is noted. Duplicates within a split that agree in everything are harmless.

    Returns:
        Sentences with counts, without ids.

    Raises:
        DataError: With reason `shared-images`.
    """
    leaking = [duplicate for duplicate in duplicates if test in duplicate.splits and len(duplicate.splits) > 1]
    if leaking:
        raise DataError(
            f"{count(len(leaking), 'image')} of the {test} split {verb(len(leaking), 'is', 'are')} in another "
            f"split too, under another name, which inflates test results; remove one row of "
            f"{verb(len(leaking), 'it', 'each')}",
            reason="shared-images",
        )
    across = sum(len(duplicate.splits) > 1 for duplicate in duplicates)
    across_patients = sum(duplicate.patients > 1 for duplicate in duplicates)
    relabelled = sum(not duplicate.same_labels for duplicate in duplicates)
    return [
        f"{count(number, 'image')} {agree(number, sentence)}"
        for number, sentence in (
            (across, "[is|are] in training and in validation under two names"),
            (across_patients, "[is|are] listed for two patients: one person may be in two splits"),
            (relabelled, "[has|have] two names with different labels"),
        )
        if number
    ]


EXAMPLES = 3
_MOST = 5_000_000
"""Maximum number of files to list; more would take hours."""
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")
_DOCUMENTS = re.compile(r"\.(?:csv|tsv|txt|md|pdf|html?|json|ya?ml|xlsx?|docx?|parquet|zip|gz)$", re.IGNORECASE)


class Unlisted(NamedTuple):
    """Files in the folder of the images that no row names."""

    files: tuple[Excluded, ...]
    """By file extension, the most frequent first."""
    junk: int


def find_unlisted(images: Sequence[str]) -> Unlisted:
    """List all files below the deepest folder that contains all images; report those that no row names.

    Tables and other documents are ignored. Linked folders are not entered.

    Args:
        images: Path of the image of every row, also of rows that are not used; a row without an image ends in `/`.
    """
    named = {path for path in images if not path.endswith("/")}
    if not named:
        return Unlisted((), 0)
    home = os.path.commonpath({path.rpartition("/")[0] for path in named})
    examples: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    junk = 0
    for path in islice(_walk(home), _MOST):
        if path in named:
            continue
        short = path[len(home) + 1 :]
        if is_junk(short):
            junk += 1
        elif not _DOCUMENTS.search(path):
            extension = _extension(path)
            counts[extension] = counts.get(extension, 0) + 1
            if len(examples.setdefault(extension, [])) < EXAMPLES:
                examples[extension].append(short)
    ranked = sorted(counts, key=lambda extension: (-counts[extension], extension))
    return Unlisted(
        tuple(
            Excluded(reason=extension, count=counts[extension], examples=tuple(examples[extension]))
            for extension in ranked
        ),
        junk,
    )


def _extension(path: str) -> str:
    match = _EXTENSION.search(path)
    return match[0].lower() if match else "no extension"


def _walk(home: str) -> Iterator[str]:
    """Yield every regular file below a folder, in a fixed order; folders that cannot be listed are skipped."""
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
