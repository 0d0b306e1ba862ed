"""From bytes to a DICOM data set: which attributes are read, how its syntax is known, what is refused at once.

Nothing here decodes a pixel or looks at a text. Importing this module imports pydicom.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom import Dataset, dcmread
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cleft.data.images.decoders import ReadLimits, refusal

_START = 132
"""A preamble of 128 bytes, and `DICM`."""


class Parsed(NamedTuple):
    """A data set with the attributes asked for."""

    dataset: Dataset
    syntax: UID
    """How its pixels are encoded. Never deflated: what was is inflated already."""
    has_syntax: bool
    """Whether the file has DICOM's mark and says its syntax; if not, both were concluded from its first bytes."""
    kind: str
    """What kind of object it is, by its keyword, e.g. `BasicTextSRStorage`; empty if it says none that is known."""


def parse_dicom(file: BinaryIO, name: Path | str, tags: Sequence[int], limits: ReadLimits, *, pixels: bool) -> Parsed:
    """Reads chosen attributes of a file; call it within `quiet`.

    Args:
        file: At its beginning.
        name: What to call it in messages.
        tags: The attributes.
        limits: How large a deflated data set may become: two bytes for each allowed pixel.
        pixels: Whether to read on from the pixel data; otherwise reading stops before them.

    Raises:
        DataError: With reason `format` (no DICOM file), `too-large` or `truncated`. Broken files end in whatever
            pydicom raises.
    """
    marked = file.read(_START)[128:] == b"DICM"
    file.seek(_START if marked else 0)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_behind_meta)
    syntax: UID | None = meta.get("TransferSyntaxUID") or None
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset = _read_deflated(file, name, tags, limits, pixels=pixels)
        return Parsed(dataset, ExplicitVRLittleEndian, has_syntax=marked, kind=_kind(dataset, meta))
    file.seek(0)
    dataset = dcmread(file, stop_before_pixels=not pixels, force=not marked, specific_tags=list(tags))
    if not marked and not (dataset.get("Rows") and dataset.get("Columns") and (not pixels or "PixelData" in dataset)):
        raise refusal("format", name, "has no DICOM mark, and read without it there is no picture in it")
    has_syntax = marked and syntax is not None
    if syntax is None:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return Parsed(dataset, syntax, has_syntax=has_syntax, kind=_kind(dataset, meta))


@contextmanager
def quiet() -> Generator[None]:
    """Silences pydicom and its plug-ins: their warnings quote what stands in a header, such as names."""
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
    """Inflates no more than the limit: a few kilobytes may hold gigabytes."""
    inflate, limit = zlib.decompressobj(-zlib.MAX_WBITS), 2 * limits.pixels
    data = inflate.decompress(file.read(), limit)
    if not inflate.eof:
        if len(data) >= limit:
            raise refusal("too-large", name, f"its deflated data set grows beyond {limit} bytes")
        raise refusal("truncated", name, "its deflated data set has no end; copy the file again")
    dataset = read_dataset(
        BytesIO(data),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=None if pixels else _is_pixels,
        specific_tags=list(tags),
    )
    dataset.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    return dataset
