"""From the bytes of a DICOM file to gray pixels.

What can be refused is refused by the header, before a pixel is decoded. Messages hold technical attributes only:
no library's sentence is passed on, for it may quote a name. Importing this module imports pydicom.
"""

from __future__ import annotations

import math
import os
import re
import struct
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels.decoders.base import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from cleft.config import ImagesConfig
from cleft.data.images.dicom_attributes import (
    GRAYSCALE_TAGS,
    LAYOUT_TAGS,
    OVERLAY_TAGS,
    AttributeFault,
    Layout,
    Parsed,
    numbers,
    parse_dicom,
    quiet,
    read_grayscale,
    read_layout,
)
from cleft.data.images.dicom_display import show
from cleft.data.images.integrity import (
    check_jpeg2000_structure,
    check_jpeg_scans,
    check_jpeg_structure,
    check_rle_segments,
)
from cleft.data.images.preprocess import flatten_colours
from cleft.data.images.source import ReadLimits, check_size, refusal
from cleft.errors import DataError
from cleft.grammar import count, verb

_ITEM = 8
"""Bytes of an item's tag and length."""
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
"""How streams begin: JPEG and JPEG-LS, JPEG 2000."""


def frame_stream(data: bytes, frame: int, frames: int, dataset: Dataset) -> bytes:
    """Return the compressed pixels of one frame.

    Where fragments alone say which frame they belong to, offset tables are not read; elsewhere one counts only if all
    its offsets are beginnings of fragments.

    Args:
        data: Encapsulated pixels of all frames, the basic offset table first.
        frame: Which frame, from 0.
        frames: How many there are.
        dataset: For its extended offset table.

    Raises:
        AttributeFault: If fragments cannot be assigned to frames.
    """
    try:
        length = struct.unpack_from("<L", data, 4)[0]
        fragments = list(generate_fragments(data[_ITEM + length :]))
    except (ValueError, struct.error) as error:
        raise AttributeFault("the fragments of PixelData cannot be separated; copy the file again") from error
    if frames == 1:
        return b"".join(fragments)
    if len(fragments) == frames:
        return fragments[frame]
    places: dict[int, int] = {}
    place = 0
    for number, fragment in enumerate(fragments):
        places[place] = number
        place += _ITEM + len(fragment)
    beginnings = [number for number, fragment in enumerate(fragments) if fragment.startswith(_STARTS)]
    for starts in (
        _starts(_extended_offsets(dataset), places, frames),
        _starts(struct.unpack_from(f"<{length // 4}L", data, _ITEM), places, frames),
        beginnings if len(beginnings) == frames and beginnings[0] == 0 else None,
    ):
        if starts is not None:
            return b"".join(fragments[slice(*[*starts, None][frame : frame + 2])])
    raise AttributeFault(
        f"NumberOfFrames is {frames}, PixelData has {count(len(fragments), 'fragment')}, and no offset table says "
        "which belong together"
    )


def _extended_offsets(dataset: Dataset) -> Sequence[int]:
    value: Any = dataset.get("ExtendedOffsetTable")
    return struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8]) if isinstance(value, bytes) else ()


def _starts(offsets: Sequence[int], places: dict[int, int], frames: int) -> list[int] | None:
    """First fragment of each frame; None if the offsets are not those of fragments in order."""
    if len(offsets) != frames or offsets[0] != 0 or list(offsets) != sorted(set(offsets)):
        return None
    found = [places.get(offset) for offset in offsets]
    return None if None in found else [number for number in found if number is not None]


def decode_dicom(
    data: bytes, name: Path | str, limits: ReadLimits, config: ImagesConfig, notes: list[str]
) -> NDArray[np.uint8]:
    """Decodes one image, `[H, W]`, shown by `images.dicom`.

    Args:
        data: Bytes of a whole file.
        name: What to call it in messages.
        limits: What is refused by its header.
        config: How its values become gray.
        notes: Receives keys of `cleft.data.images.dicom_headers.ODDITIES`: what was inferred or ignored.

    Raises:
        DataError: With reason `format` (no DICOM file, or pixels of a kind that radiographs do not have), `no-image`
            (a report or the like), `truncated`, `malformed`, `too-large`, `geometry`, `frames` (more than one),
            `colour`, `codec` (no decoder is installed) or `constant`.
    """
    try:
        with quiet():
            file = BytesIO(data)
            parsed = parse_dicom(file, name, _TAGS, limits, pixels=True)
            if not any(keyword in parsed.dataset for keyword in _PIXELS):
                # pydicom takes a file that breaks off within compressed pixels for an empty one.
                file.seek(0)
                parsed = parse_dicom(file, name, _TAGS, limits, pixels=False)
            image = _check(parsed, name, limits, config)
            notes += ([] if parsed.has_syntax else ["untold"]) + list(image.layout.notes)
            if image.layout.samples == 3:
                return flatten_colours(_decode(parsed, image, name), name)
            declared = read_grayscale(parsed.dataset, image.frame, image.layout.frames)
            notes += declared.notes
            pixels = _decode(parsed, image, name)
            return show(pixels, image.layout, declared, config, name, little=parsed.syntax.is_little_endian)
    except AttributeFault as fault:
        raise refusal("malformed", name, str(fault)) from None
    except (DataError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - plug-ins raise whatever they like, quoting the header; Rust panics.
        raise refusal("malformed", name, f"it cannot be decoded ({type(error).__name__}); copy it again") from None


class _Image(NamedTuple):
    """What the header says about the picture that is wanted."""

    layout: Layout
    frame: int
    """Place of the picture that is wanted."""
    stream: bytes
    """Its compressed pixels; empty where they are not compressed."""


_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_TAGS = tuple(
    Tag(tag)
    for tag in (
        "SOPClassUID",
        *LAYOUT_TAGS,
        *GRAYSCALE_TAGS,
        *OVERLAY_TAGS,
        "ExtendedOffsetTable",
        *_PIXELS,
    )
)


def _check(parsed: Parsed, name: Path | str, limits: ReadLimits, config: ImagesConfig) -> _Image:
    """Refuses by the header what is not one gray picture of allowed size that can be decoded here."""
    dataset = parsed.dataset
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise refusal("format", name, "its pixels are floating-point numbers; no radiograph's are")
    if "PixelData" not in dataset:
        sides = [numbers(dataset, keyword) for keyword in ("Rows", "Columns")]
        if all(side and 0 < side[0] < math.inf for side in sides):
            size = " x ".join(f"{side[0]:g}" for side in sides)
            raise refusal("truncated", name, f"its header says {size} pixels, and none follow; copy it again")
        if "Image" in parsed.kind:
            raise refusal("truncated", name, f"is {parsed.kind}, and no pixels follow its header; copy it again")
        raise refusal("no-image", name, f"holds no picture, but {parsed.kind or 'an object of unknown kind'}")
    layout = read_layout(dataset)
    if layout.frames > 1 and config.frame == "reject":
        raise refusal("frames", name, f"holds {layout.frames} pictures; images.frame=middle or first takes one of them")
    check_size(layout.rows, layout.columns, name, limits)
    if layout.allocated not in (8, 16):
        raise refusal("format", name, f"BitsAllocated is {layout.allocated}; 8 and 16 are read")
    _check_colours(layout, name)
    return _check_encoding(parsed, layout, layout.frames // 2 if config.frame == "middle" else 0, name)


def _check_colours(layout: Layout, name: Path | str) -> None:
    if layout.photometric == "PALETTE COLOR":
        raise refusal("colour", name, "its values are places in a palette of colours; store it as gray")
    if layout.photometric in ("MONOCHROME1", "MONOCHROME2") and layout.samples == 1:
        return
    if layout.photometric not in _COLOURS or layout.samples != 3:
        raise AttributeFault(f"PhotometricInterpretation does not fit {count(layout.samples, 'value')} per pixel")
    if layout.allocated != 8:
        raise refusal("colour", name, f"colour of {layout.allocated} bits per channel; store it as gray")


def _check_encoding(parsed: Parsed, layout: Layout, frame: int, name: Path | str) -> _Image:
    syntax, element = parsed.syntax, parsed.dataset["PixelData"]
    called, remedy = decodable(str(syntax), deep=layout.stored > 8)
    if remedy:
        raise refusal("codec", name, f"encoded as {called}, which cannot be decoded here; {remedy}")
    if element.is_undefined_length and not parsed.has_syntax and not syntax.is_compressed:
        raise AttributeFault(
            "TransferSyntaxUID is missing, and the pixels are compressed; export the image again with it"
        )
    if syntax.is_compressed != element.is_undefined_length:
        state = "is not" if syntax.is_compressed else "is"
        raise refusal("malformed", name, f"its pixels should be {called}, and what follows {state} compressed")
    data = element.value or b""
    if syntax.is_compressed:
        stream = frame_stream(data, frame, layout.frames, parsed.dataset)
        image = _Image(layout, frame, stream)
        if syntax == RLELossless:
            depth = 1 if _is_shallow(stream, syntax) else layout.allocated // 8
            check_rle_segments(stream, layout.samples * depth, layout.rows * layout.columns, name)
        else:
            _check_stream(stream, syntax, image, name)
        return image
    size = layout.rows * layout.columns * layout.samples * layout.allocated // 8
    if layout.photometric == "YBR_FULL_422":
        size = size * 2 // 3
    if len(data) < size * layout.frames:
        part = f"{count(len(data), 'byte')} of {size * layout.frames:,} {verb(len(data), 'is', 'are')}"
        raise refusal("truncated", name, f"{part} there; copy it again")
    if len(data) >= size * (layout.frames + 1):
        raise refusal(
            "malformed", name, f"{len(data)} bytes of pixels, where NumberOfFrames says {size * layout.frames}"
        )
    return _Image(layout, frame, b"")


def _check_stream(stream: bytes, syntax: UID, image: _Image, name: Path | str) -> None:
    """Compares a compressed picture's own size with the header's: a few bytes may declare gigabytes."""
    size = _jpeg2000_size(stream) if syntax in JPEG2000TransferSyntaxes else _jpeg_size(stream)
    if size is None:
        raise refusal("malformed", name, "its compressed pixels have no beginning")
    if size != image.layout[:2]:
        raise refusal("malformed", name, f"{size} compressed pixels where the header says {image.layout[:2]}")
    if b"\xff\xd9" not in stream[-_TAIL:]:
        raise refusal("truncated", name, "its compressed pixels have no end; copy it again")
    if syntax in _JPEG:
        check_jpeg_structure(stream, name)
        check_jpeg_scans(stream, name)
    elif syntax in JPEG2000TransferSyntaxes and syntax not in _HTJ2K:
        check_jpeg2000_structure(stream, name)


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in the frame header of a JPEG or JPEG-LS stream."""
    place = _frame_header(stream)
    return None if place is None else struct.unpack_from(">HH", stream, place + 5)


def _frame_header(stream: bytes) -> int | None:
    """Where the frame header of a JPEG or JPEG-LS stream begins, which says bits per value, rows and columns."""
    place = 2
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker, length = stream[place + 1], int.from_bytes(stream[place + 2 : place + 4])
        if marker == 0xFF:  # Fill bytes may stand before a marker.
            place += 1
        elif marker in _FRAME_HEADERS:
            return place
        else:
            place += 2 + length
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in the size marker of a JPEG 2000 code stream, bare or within a JP2 file."""
    place = stream[:_TAIL].find(b"\xff\x4f\xff\x51")
    if place < 0 or len(stream) < place + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", stream, place + 8)
    return bottom - top, right - left


def _decode(parsed: Parsed, image: _Image, name: Path | str) -> NDArray[Any]:
    """Decodes the wanted picture: `[H, W]` as stored, or `[H, W, 3]` red, green and blue."""
    layout = image.layout
    pixels, decoded = _run_decoder(parsed, image, name)
    if pixels.shape[:2] != layout[:2]:
        raise refusal("malformed", name, f"{pixels.shape[:2]} decoded pixels where the header says {layout[:2]}")
    if layout.samples == 3:
        if pixels.dtype != np.uint8 or decoded["photometric_interpretation"] != "RGB":
            raise refusal("colour", name, "its colours are in a space that is not read; store it as gray")
        return pixels
    if pixels.itemsize * 8 > layout.allocated:
        raise refusal("malformed", name, f"compressed pixels of more bits than BitsAllocated, {layout.allocated}")
    # Some decoders give fewer bits than are allocated, and big endian files another order of bytes.
    pixels = pixels.astype(f"{pixels.dtype.kind}{layout.allocated // 8}", copy=False)
    return np.ascontiguousarray(pixels)


def _run_decoder(parsed: Parsed, image: _Image, name: Path | str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Tries the decoders that are installed, in our order: so an extra that is there or not changes no pixel."""
    decoder = get_decoder(parsed.syntax)
    plugins = [plugin for plugin in _PLUGINS if plugin in decoder.available_plugins] or [""]
    if parsed.syntax == JPEGBaseline8Bit:
        plugins = plugins[:1]  # The others read over the end of one that breaks off.
    dataset, frame = parsed.dataset, image.frame
    if image.stream:
        # Alone, so that no offset table is looked at: where one is wrong, pydicom decodes another frame or none.
        dataset.PixelData = encapsulate([image.stream], has_bot=False)
        dataset["PixelData"].is_undefined_length = True
        dataset.NumberOfFrames, frame = 1, 0
        dataset.pop("ExtendedOffsetTable", None)
    # Bits above those stored are checked before they are removed.
    options: dict[str, Any] = {"correct_unused_bits": False}
    if image.stream and image.layout.allocated == 16 and _is_shallow(image.stream, parsed.syntax):
        options |= {"bits_allocated": 8, "bits_stored": min(8, image.layout.stored)}
    elif parsed.syntax in (JPEGLossless, JPEGLosslessSV1):
        options |= {"bits_stored": image.layout.allocated}  # Otherwise gdcm truncates values without a message.
    while True:
        plugin = plugins.pop(0)
        try:
            with _captured_output() as output:
                decoded = decoder.as_array(dataset, index=frame, decoding_plugin=plugin, **options)
        except RuntimeError:
            if not plugins:
                raise
            continue
        if damage := _DAMAGE.search(output[0]):
            sentence = f"its compressed pixels are damaged: {damage[0].decode('ascii', 'replace')}; copy it again"
            raise refusal("malformed", name, sentence)
        return decoded


@contextmanager
def _captured_output() -> Generator[list[bytes]]:
    """Give a list whose only item is, at the end, what native code has written to the error stream meanwhile.

    gdcm decodes damaged JPEG Lossless data and reports damage only there. Redirects the stream of the whole process.
    """
    output = [b""]
    try:
        stream, file = os.dup(2), _memory_file()
    except OSError:  # The process has no error stream, hence nothing can be written to it.
        yield output
        return
    with file:
        os.dup2(file.fileno(), 2)
        try:
            yield output
        finally:
            os.dup2(stream, 2)
            os.close(stream)
            file.seek(0)
            output[0] = file.read()


def _memory_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("decoder"), "w+b")
    return tempfile.TemporaryFile()


def _is_shallow(stream: bytes, syntax: UID) -> bool:
    """Whether compressed pixels have one byte each, also where the header allocates two."""
    if syntax == RLELossless:
        return stream[:4] == b"\x01\0\0\0"  # One segment: a pixel of two bytes takes two.
    place = _frame_header(stream) if syntax not in JPEG2000TransferSyntaxes else None
    return place is not None and stream[place + 4] <= 8


_PLUGINS = ("pillow", "pylibjpeg", "gdcm", "pyjpegls", "pydicom")
"""The one that is always there first. On lossless files and the JPEG files tried they agree to the bit."""
_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1}
_HTJ2K = {HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL}
_DAMAGE = re.compile(rb"(Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS)[^\n]{0,80}")
"""How libjpeg, which gdcm contains, begins its warnings."""
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"}
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_TAIL = 4096
"""Within so many bytes of its ends a stream must say where it begins and ends."""


def decodable(syntax: str, *, deep: bool) -> tuple[str, str]:
    """Returns the name of a transfer syntax, and what to do if it cannot be decoded here; empty if it can.

    Args:
        syntax: UID of the transfer syntax.
        deep: Whether pixels have more than 8 bits.
    """
    if not re.fullmatch(r"[0-9.]{1,64}", syntax):
        return "an illegal transfer syntax", _STORE_AGAIN
    name = UID(syntax).name
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return name, _STORE_AGAIN
    plugins = set(decoder.available_plugins) if decoder.is_encapsulated else {"native"}
    if syntax == JPEGExtended12Bit and deep:
        # The decoders of the extra take it for 8 bits alone.
        deeper = plugins - {"pillow", "gdcm"}
        return name, "" if deeper else f"pylibjpeg-libjpeg, which is under the GPL, reads it; or {_STORE_AGAIN}"
    return name, "" if plugins else "run: pip install 'cleft[dicom]'"


def usual_syntaxes() -> list[tuple[str, str]]:
    """Return the name of each compressed transfer syntax that radiographs come in, and what `decodable` says of it."""
    usual = [
        uid.RLELossless,
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEGLSNearLossless,
        uid.JPEG2000Lossless,
        uid.JPEG2000,
        uid.HTJ2KLossless,
        uid.HTJ2K,
    ]
    return [decodable(syntax, deep=True) for syntax in usual]


_STORE_AGAIN = "store it again in another transfer syntax"
