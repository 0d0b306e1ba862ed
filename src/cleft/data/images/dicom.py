"""Decoding of DICOM images: checks by the header, decompression, display.

Whatever can be rejected is rejected by the header, before a pixel is decoded. Messages contain technical attributes
only; messages of other libraries are dropped, because they may quote a patient's name. Importing this module imports
pydicom.
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
    DicomAttributeError,
    ParsedFile,
    PixelLayout,
    number_values,
    parse_dicom,
    read_grayscale,
    read_layout,
    silence_pydicom,
)
from cleft.data.images.dicom_display import apply_display
from cleft.data.images.integrity import (
    check_jpeg2000_structure,
    check_jpeg_scans,
    check_jpeg_structure,
    check_rle_segments,
)
from cleft.data.images.preprocess import to_luminance
from cleft.data.images.source import ReadLimits, check_size, refusal
from cleft.errors import DataError
from cleft.grammar import count, verb


def decode_dicom(
    data: bytes, name: Path | str, limits: ReadLimits, config: ImagesConfig, notes: list[str]
) -> NDArray[np.uint8]:
    """Decode one image to 8-bit gray for display, `[H, W]`, by `images.dicom`.

    Args:
        data: Bytes of the complete file.
        name: Name of the file in messages.
        limits: Limits on the size that the header declares.
        config: How values are converted to gray.
        notes: Receives keys of `cleft.data.images.dicom_headers.ODDITIES`: what was inferred or ignored.

    Raises:
        DataError: With reason `format` (no DICOM file, or pixels of a type that radiographs do not have), `no-image`
            (a report, for example), `truncated`, `malformed`, `too-large`, `geometry`, `frames` (more than one),
            `colour`, `codec` (no decoder is installed) or `constant`.
    """
    try:
        with silence_pydicom():
            file = BytesIO(data)
            parsed = parse_dicom(file, name, _TAGS, limits, pixels=True)
            if not any(keyword in parsed.dataset for keyword in _PIXELS):
                # pydicom treats a file that ends inside compressed pixel data as empty.
                file.seek(0)
                parsed = parse_dicom(file, name, _TAGS, limits, pixels=False)
            image = _check(parsed, name, limits, config)
            notes += ([] if parsed.has_syntax else ["untold"]) + list(image.layout.notes)
            if image.layout.samples == 3:
                return to_luminance(_decode(parsed, image, name), name)
            declared = read_grayscale(parsed.dataset, image.frame, image.layout.frames)
            notes += declared.notes
            pixels = _decode(parsed, image, name)
            return apply_display(pixels, image.layout, declared, config, name, little=parsed.syntax.is_little_endian)
    except DicomAttributeError as fault:
        raise refusal("malformed", name, str(fault)) from None
    except (DataError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - decoders raise anything and quote the header; Rust panics.
        raise refusal("malformed", name, f"it cannot be decoded ({type(error).__name__}); copy it again") from None


class _Image(NamedTuple):
    """The frame to decode, as the header declares it."""

    layout: PixelLayout
    frame: int
    """Index of the frame."""
    stream: bytes
    """Compressed pixel data of the frame; empty if it is not compressed."""


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


def _check(parsed: ParsedFile, name: Path | str, limits: ReadLimits, config: ImagesConfig) -> _Image:
    """Reject by the header whatever is not a gray image of allowed size that can be decoded here."""
    dataset = parsed.dataset
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise refusal("format", name, "its pixels are floating-point numbers, which radiographs do not have")
    if "PixelData" not in dataset:
        sides = [number_values(dataset, keyword) for keyword in ("Rows", "Columns")]
        if all(side and 0 < side[0] < math.inf for side in sides):
            size = " x ".join(f"{side[0]:g}" for side in sides)
            raise refusal("truncated", name, f"its header declares {size} pixels, and none follow; copy it again")
        if "Image" in parsed.sop_class:
            raise refusal("truncated", name, f"is {parsed.sop_class}, and no pixels follow its header; copy it again")
        raise refusal(
            "no-image", name, f"contains no image, but {parsed.sop_class or 'an object of unknown SOP class'}"
        )
    layout = read_layout(dataset)
    if layout.frames > 1 and config.frame == "reject":
        raise refusal("frames", name, f"contains {layout.frames} frames; set images.frame=middle or first to use one")
    check_size(layout.rows, layout.columns, name, limits)
    if layout.bits_allocated not in (8, 16):
        raise refusal("format", name, f"BitsAllocated is {layout.bits_allocated}; only 8 and 16 are supported")
    _check_colours(layout, name)
    return _check_encoding(parsed, layout, layout.frames // 2 if config.frame == "middle" else 0, name)


def _check_colours(layout: PixelLayout, name: Path | str) -> None:
    if layout.photometric == "PALETTE COLOR":
        raise refusal("colour", name, "its pixels are indices of a colour palette; convert it to grayscale")
    if layout.photometric in ("MONOCHROME1", "MONOCHROME2") and layout.samples == 1:
        return
    if layout.photometric not in _COLOURS or layout.samples != 3:
        raise DicomAttributeError(f"PhotometricInterpretation does not fit {count(layout.samples, 'value')} per pixel")
    if layout.bits_allocated != 8:
        raise refusal("colour", name, f"colour with {layout.bits_allocated} bits per channel; convert it to grayscale")


def _check_encoding(parsed: ParsedFile, layout: PixelLayout, frame: int, name: Path | str) -> _Image:
    syntax, element = parsed.syntax, parsed.dataset["PixelData"]
    encoding, remedy = syntax_support(str(syntax), deep=layout.bits_stored > 8)
    if remedy:
        raise refusal("codec", name, f"encoded as {encoding}, which cannot be decoded here; {remedy}")
    if element.is_undefined_length and not parsed.has_syntax and not syntax.is_compressed:
        raise DicomAttributeError(
            "TransferSyntaxUID is missing, and the pixels are compressed; export the image again with it"
        )
    if syntax.is_compressed != element.is_undefined_length:
        state = "is not" if syntax.is_compressed else "is"
        raise refusal("malformed", name, f"its transfer syntax is {encoding}, but its pixel data {state} compressed")
    data = element.value or b""
    if syntax.is_compressed:
        stream = frame_data(data, frame, layout.frames, parsed.dataset)
        image = _Image(layout, frame, stream)
        if syntax == RLELossless:
            depth = 1 if _has_8_bits(stream, syntax) else layout.bits_allocated // 8
            check_rle_segments(stream, layout.samples * depth, layout.rows * layout.columns, name)
        else:
            _check_stream(stream, syntax, image, name)
        return image
    size = layout.rows * layout.columns * layout.samples * layout.bits_allocated // 8
    if layout.photometric == "YBR_FULL_422":
        size = size * 2 // 3
    if len(data) < size * layout.frames:
        part = f"{count(len(data), 'byte')} of {size * layout.frames:,} {verb(len(data), 'is', 'are')}"
        raise refusal("truncated", name, f"{part} present; copy it again")
    if len(data) >= size * (layout.frames + 1):
        raise refusal(
            "malformed", name, f"{len(data)} bytes of pixel data, but NumberOfFrames implies {size * layout.frames}"
        )
    return _Image(layout, frame, b"")


def _check_stream(stream: bytes, syntax: UID, image: _Image, name: Path | str) -> None:
    """Compare the size in compressed pixel data with the header: a few bytes may declare gigabytes."""
    size = _jpeg2000_size(stream) if syntax in JPEG2000TransferSyntaxes else _jpeg_size(stream)
    if size is None:
        raise refusal("malformed", name, "its compressed pixel data has no frame header")
    if size != image.layout[:2]:
        raise refusal("malformed", name, f"{size} compressed pixels, but the header declares {image.layout[:2]}")
    if b"\xff\xd9" not in stream[-_TAIL:]:
        raise refusal("truncated", name, "its compressed pixel data has no end marker; copy it again")
    if syntax in _JPEG:
        check_jpeg_structure(stream, name)
        check_jpeg_scans(stream, name)
    elif syntax in JPEG2000TransferSyntaxes and syntax not in _HTJ2K:
        check_jpeg2000_structure(stream, name)


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in the frame header of a JPEG or JPEG-LS stream."""
    position = _frame_header(stream)
    return None if position is None else struct.unpack_from(">HH", stream, position + 5)


def _frame_header(stream: bytes) -> int | None:
    """Offset of the frame header of a JPEG or JPEG-LS stream, which holds bits per sample, rows and columns."""
    position = 2
    while position + 9 <= len(stream) and stream[position] == 0xFF:
        marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4])
        if marker == 0xFF:  # Fill bytes may precede a marker.
            position += 1
        elif marker in _FRAME_HEADERS:
            return position
        else:
            position += 2 + length
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in the SIZ marker of a JPEG 2000 code stream, bare or in a JP2 file."""
    position = stream[:_TAIL].find(b"\xff\x4f\xff\x51")
    if position < 0 or len(stream) < position + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", stream, position + 8)
    return bottom - top, right - left


def frame_data(data: bytes, frame: int, frames: int, dataset: Dataset) -> bytes:
    """Return the compressed pixel data of one frame.

    If the fragments alone determine their frame, offset tables are not read; otherwise a table is used only if all its
    offsets are the starts_by_signature of fragments.

    Args:
        data: Encapsulated pixel data of all frames, the basic offset table first.
        frame: Index of the frame, from 0.
        frames: Number of frames.
        dataset: Data set with the extended offset table, if any.

    Raises:
        DicomAttributeError: If fragments cannot be assigned to frames.
    """
    try:
        length = struct.unpack_from("<L", data, 4)[0]
        fragments = list(generate_fragments(data[_ITEM + length :]))
    except (ValueError, struct.error) as error:
        raise DicomAttributeError("the fragments of PixelData cannot be separated; copy the file again") from error
    if frames == 1:
        return b"".join(fragments)
    if len(fragments) == frames:
        return fragments[frame]
    positions: dict[int, int] = {}
    position = 0
    for number, fragment in enumerate(fragments):
        positions[position] = number
        position += _ITEM + len(fragment)
    starts_by_signature = [number for number, fragment in enumerate(fragments) if fragment.startswith(_STARTS)]
    for starts in (
        _starts(_extended_offsets(dataset), positions, frames),
        _starts(struct.unpack_from(f"<{length // 4}L", data, _ITEM), positions, frames),
        starts_by_signature if len(starts_by_signature) == frames and starts_by_signature[0] == 0 else None,
    ):
        if starts is not None:
            return b"".join(fragments[slice(*[*starts, None][frame : frame + 2])])
    raise DicomAttributeError(
        f"NumberOfFrames is {frames}, PixelData has {count(len(fragments), 'fragment')}, and no offset table shows "
        "which fragments form a frame"
    )


def _extended_offsets(dataset: Dataset) -> Sequence[int]:
    value: Any = dataset.get("ExtendedOffsetTable")
    return struct.unpack(f"<{len(value) // 8}Q", value[: len(value) // 8 * 8]) if isinstance(value, bytes) else ()


def _starts(offsets: Sequence[int], positions: dict[int, int], frames: int) -> list[int] | None:
    """Return the first fragment of each frame; None if the offsets are not those of fragments in ascending order."""
    if len(offsets) != frames or offsets[0] != 0 or list(offsets) != sorted(set(offsets)):
        return None
    found = [positions.get(offset) for offset in offsets]
    return None if None in found else [number for number in found if number is not None]


def _decode(parsed: ParsedFile, image: _Image, name: Path | str) -> NDArray[Any]:
    """Decode the frame: `[H, W]` as stored, or `[H, W, 3]` RGB."""
    layout = image.layout
    pixels, decoded = _run_decoder(parsed, image, name)
    if pixels.shape[:2] != layout[:2]:
        raise refusal("malformed", name, f"{pixels.shape[:2]} decoded pixels, but the header declares {layout[:2]}")
    if layout.samples == 3:
        if pixels.dtype != np.uint8 or decoded["photometric_interpretation"] != "RGB":
            raise refusal("colour", name, "its colour space is not supported; convert it to grayscale")
        return pixels
    if pixels.itemsize * 8 > layout.bits_allocated:
        raise refusal(
            "malformed", name, f"its compressed pixels have more bits than BitsAllocated, {layout.bits_allocated}"
        )
    # Some decoders return fewer bits than allocated, and big endian files another byte order.
    pixels = pixels.astype(f"{pixels.dtype.kind}{layout.bits_allocated // 8}", copy=False)
    return np.ascontiguousarray(pixels)


def _run_decoder(parsed: ParsedFile, image: _Image, name: Path | str) -> tuple[NDArray[Any], dict[str, Any]]:
    """Try the installed decoders in a fixed order, so that installing another package does not change a pixel."""
    decoder = get_decoder(parsed.syntax)
    plugins = [plugin for plugin in _PLUGINS if plugin in decoder.available_plugins] or [""]
    if parsed.syntax == JPEGBaseline8Bit:
        plugins = plugins[:1]  # The others read past the end of truncated data.
    dataset, frame = parsed.dataset, image.frame
    if image.stream:
        # Only this frame, so that no offset table is read: with a wrong one, pydicom decodes another frame or none.
        dataset.PixelData = encapsulate([image.stream], has_bot=False)
        dataset["PixelData"].is_undefined_length = True
        dataset.NumberOfFrames, frame = 1, 0
        dataset.pop("ExtendedOffsetTable", None)
    # Bits above those stored are checked before they are removed.
    options: dict[str, Any] = {"correct_unused_bits": False}
    if image.stream and image.layout.bits_allocated == 16 and _has_8_bits(image.stream, parsed.syntax):
        options |= {"bits_allocated": 8, "bits_stored": min(8, image.layout.bits_stored)}
    elif parsed.syntax in (JPEGLossless, JPEGLosslessSV1):
        options |= {"bits_stored": image.layout.bits_allocated}  # Otherwise gdcm truncates values without a message.
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
            message = f"its compressed pixels are damaged: {damage[0].decode('ascii', 'replace')}; copy it again"
            raise refusal("malformed", name, message)
        return decoded


@contextmanager
def _captured_output() -> Generator[list[bytes]]:
    """Yield a list whose only item is, at the end, what native code wrote to the error stream.

    gdcm decodes damaged JPEG Lossless data and reports the damage only there. Redirects the stream of the process.
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


def _has_8_bits(stream: bytes, syntax: UID) -> bool:
    """Whether compressed pixels have one byte each, even if the header allocates two."""
    if syntax == RLELossless:
        return stream[:4] == b"\x01\0\0\0"  # One segment: a pixel of two bytes takes two.
    position = _frame_header(stream) if syntax not in JPEG2000TransferSyntaxes else None
    return position is not None and stream[position + 4] <= 8


_ITEM = 8
"""Bytes of the tag and length of an item."""
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
"""First bytes of a stream: JPEG and JPEG-LS, JPEG 2000."""
_PLUGINS = ("pillow", "pylibjpeg", "gdcm", "pyjpegls", "pydicom")
"""In order of preference; the first is always installed.
On all lossless and JPEG files tried they agree bit for bit."""
_JPEG = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1}
_HTJ2K = {HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL}
_DAMAGE = re.compile(rb"(Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS)[^\n]{0,80}")
"""First words of the warnings of libjpeg, which gdcm contains."""
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"}
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_TAIL = 4096
"""A stream must begin and end within this many bytes of the ends of its data."""


def syntax_support(syntax: str, *, deep: bool) -> tuple[str, str]:
    """Return the name of a transfer syntax, and what to do if it cannot be decoded here; empty if it can.

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
        # The decoders of the extra support it with 8 bits only.
        deeper = plugins - {"pillow", "gdcm"}
        return name, "" if deeper else f"install pylibjpeg-libjpeg (GPL), or {_STORE_AGAIN}"
    return name, "" if plugins else "run: pip install 'cleft[dicom]'"


def common_syntaxes() -> list[tuple[str, str]]:
    """Return name and remedy, as from `syntax_support`, of each compressed transfer syntax that radiographs use."""
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
    return [syntax_support(syntax, deep=True) for syntax in usual]


_STORE_AGAIN = "convert it to another transfer syntax"
