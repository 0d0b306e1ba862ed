"""Integrity checks of the compressed data of JPEG, PNG, JPEG 2000 and RLE images, by every means their formats offer.

Pillow and OpenCV return an image for most damaged files: libjpeg counts damage as warnings, which they drop, and
neither verifies all checksums of a PNG. The checks here only accept or reject; they change no pixel.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import NoReturn

import simplejpeg

from cleft.data.images.source import refusal
from cleft.grammar import count, verb


def check_jpeg_structure(data: bytes, name: Path | str) -> None:
    """Reject JPEG data whose segments are incomplete, illegal or inconsistent with each other.

    Checked are the lengths and contents of all segments up to the end of the image, the number and order of restart
    markers, and that the scans together contain every coefficient of every component. Bytes after the end of the image
    are legal. No entropy-coded data is decoded.

    Raises:
        DataError: With reason `truncated` if the data ends before the image does or a scan is missing, else
            `malformed`.

    Source:
        ITU-T T.81, annex B, G.1.1.1 and H.
    """
    _JpegWalk(data, name).run()


def check_jpeg_scans(data: bytes, name: Path | str) -> None:
    """Reject 8-bit JPEG data whose entropy-coded scans are damaged; call it after `check_jpeg_structure`.

    Decodes at an eighth of the size, which reads every code, and treats the warnings of libjpeg-turbo as errors.
    Not checked are lossless data, data of more than 8 bits, and rare chroma subsampling that libjpeg-turbo's own
    interface does not support; for such files only the structure is checked.

    Raises:
        DataError: With reason `malformed`.
    """
    marker, bits, bare = _without_applications(data)
    if marker not in _LOSSY or bits != 8:
        return
    try:
        simplejpeg.decode_jpeg(bare, colorspace="GRAY", min_height=1, min_width=1, min_factor=1, strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            return
        raise refusal("malformed", name, f"its JPEG data is damaged: {error}; copy the file again") from None


def check_png_chunks(data: bytes, name: Path | str) -> None:
    """Reject a PNG file if a chunk is incomplete, misplaced or differs from its CRC-32.

    This includes chunks that do not affect pixels: with a wrong checksum, the file is not the one that was written.
    Bytes after the last chunk are accepted.

    Raises:
        DataError: With reason `truncated` or `malformed`.
    """
    kinds: list[bytes] = []
    coloured = False
    for kind, body, crc in _png_chunks(data, name):
        if zlib.crc32(body, zlib.crc32(kind)) != crc:
            raise refusal(
                "malformed", name, f"its {kind.decode('ascii')} chunk differs from its checksum; copy the file again"
            )
        if (kind == b"IHDR") != (not kinds) or (kind == b"IHDR" and len(body) != 13):
            raise refusal("malformed", name, "it does not start with one IHDR chunk; copy the file again")
        coloured = coloured or (kind == b"IHDR" and body[9] == _PNG_PALETTE)
        if kind == b"PLTE" and (kind in kinds or b"IDAT" in kinds or len(body) not in range(3, 769, 3)):
            raise refusal(
                "malformed", name, "its PLTE chunk is misplaced or has an illegal length; copy the file again"
            )
        if kind == b"IDAT" and coloured and b"PLTE" not in kinds:
            raise refusal("malformed", name, "its PLTE chunk is missing; copy the file again")
        if kind[0] & 0x20 == 0 and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise refusal("malformed", name, f"its {kind.decode('ascii')} chunk is unknown; store it again as PNG")
        if kind == b"IDAT" and b"IDAT" in kinds and kinds[-1] != b"IDAT":
            raise refusal("malformed", name, "its IDAT chunks are not consecutive; copy the file again")
        kinds.append(kind)
    if b"IDAT" not in kinds:
        raise refusal("malformed", name, "it has no IDAT chunk; copy the file again")


def check_png_pixels(data: bytes, name: Path | str) -> None:
    """Reject a PNG file whose compressed pixels differ from their Adler-32 or from the declared size.

    Call it after `check_png_chunks` and a check of the declared size. Bytes after the compressed pixels are accepted.

    Raises:
        DataError: With reason `truncated` or `malformed`.
    """
    chunks = list(_png_chunks(data, name))
    expected = _png_raw_size(chunks[0][1], name)
    inflate, size = zlib.decompressobj(), 0
    try:
        for body in (body for kind, body, _ in chunks if kind == b"IDAT"):
            pending: bytes = bytes(body)
            while pending and not inflate.eof and size <= expected:
                size += len(inflate.decompress(pending, _BLOCK))
                pending = inflate.unconsumed_tail
    except zlib.error as error:
        raise refusal("malformed", name, f"its compressed pixels are damaged: {error}; copy the file again") from None
    if size > expected:
        raise refusal("malformed", name, f"it holds more than the {expected} bytes of pixels its header declares")
    if size < expected or not inflate.eof:
        raise refusal(
            "truncated",
            name,
            f"{size} of {expected} bytes of pixels {verb(size, 'is', 'are')} present; copy the file again",
        )


def check_jpeg2000_structure(stream: bytes, name: Path | str) -> None:
    """Reject a JPEG 2000 code stream, bare or in a JP2 file, whose tile-parts are incomplete or contain a marker.

    No two bytes of encoded data exceed FF8F (ITU-T T.800, annex B.10.1 and C.2.1), which most longer damage violates.
    Code blocks have no checksum, so other damage cannot be detected.

    Raises:
        DataError: With reason `truncated` or `malformed`.
    """
    position = stream.find(b"\xff\x4f\xff\x51") + 2
    if position < 2:
        raise refusal("malformed", name, "its JPEG 2000 data has no start marker; copy the file again")
    tiles = 0
    while (marker := stream[position : position + 2]) != b"\xff\xd9":
        if len(stream) < position + 12:
            raise refusal(
                "truncated", name, f"its {len(stream)} bytes of JPEG 2000 data have no end marker; copy it again"
            )
        length = int.from_bytes(stream[position + 2 : position + 4])
        if marker[0] != 0xFF or marker[1] not in _JPEG2000_SEGMENTS or length < 2:
            raise refusal("malformed", name, f"its JPEG 2000 data is damaged at byte {position}; copy the file again")
        if marker != _SOT:
            position += 2 + length
            continue
        tiles += 1
        size = int.from_bytes(stream[position + 6 : position + 10])
        end = position + size if size else stream.rfind(b"\xff\xd9")
        if end > len(stream) or end < 0:
            raise refusal("truncated", name, f"tile part {tiles} of its JPEG 2000 data is incomplete; copy it again")
        start = stream.find(_SOD, position, end) + 2
        if start < 2 or _JPEG2000_MARKER.search(stream, start, end):
            raise refusal("malformed", name, f"tile part {tiles} of its JPEG 2000 data is damaged; copy it again")
        position = end
    if not tiles:
        raise refusal("truncated", name, "its JPEG 2000 data has no tile; copy the file again")


def check_rle_segments(stream: bytes, segments: int, size: int, name: Path | str) -> None:
    """Reject a frame of RLE Lossless data if the lengths of its segments do not match its pixels.

    Args:
        stream: Header and segments of one frame.
        segments: Number of segments: samples times bytes per sample.
        size: Bytes of each decoded segment: rows times columns.
        name: Name of the file in messages.

    Raises:
        DataError: With reason `truncated` or `malformed`.

    Source:
        DICOM PS3.5, annex G.
    """
    if len(stream) < 64:
        size_text = f"its {count(len(stream), 'byte')} of RLE data {verb(len(stream), 'ends', 'end')}"
        raise refusal("truncated", name, f"{size_text} inside the header; copy it again")
    stated, *offsets = struct.unpack_from("<16I", stream)
    bounds = [*offsets[:segments], len(stream)]
    if stated != segments or bounds[0] != 64 or any(a >= b for a, b in pairwise(bounds)):
        raise refusal("malformed", name, f"the header of its RLE data does not list {segments} segments; copy it again")
    for number, (position, end) in enumerate(pairwise(bounds), 1):
        length = 0
        while position < end and length < size:
            head = stream[position]
            if head < 128:
                length += head + 1
                position += head + 2
            elif head > 128:
                length += 257 - head
                position += 2
            else:
                position += 1
        if position > end or length < size:
            raise refusal("truncated", name, f"segment {number} of its RLE data is incomplete; copy the file again")
        # Padding: zeros or no-op headers.
        if length > size or (end - position > 1 and stream[position:end].strip(b"\x00\x80")):
            raise refusal(
                "malformed", name, f"segment {number} of its RLE data is longer than its pixels; copy it again"
            )


def _png_chunks(data: bytes, name: Path | str) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield type, content and CRC of each chunk up to `IEND`."""
    view, position = memoryview(data), 8
    while True:
        if position + 12 > len(data):
            raise refusal("truncated", name, f"its {len(data)} bytes end before its IEND chunk; copy the file again")
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha():
            raise refusal("malformed", name, f"there is no chunk at byte {position}; copy the file again")
        if length > _MAX_CHUNK:
            raise refusal("malformed", name, f"its {kind.decode('ascii')} chunk has an illegal length")
        end = position + 12 + length
        if end > len(data):
            raise refusal("truncated", name, f"its {len(data)} bytes end before its IEND chunk; copy the file again")
        yield kind, view[position + 8 : end - 4], int.from_bytes(data[end - 4 : end])
        if kind == b"IEND":
            return
        position = end


def _png_raw_size(header: memoryview, name: Path | str) -> int:
    """Return the number of bytes of the pixels before compression, with one filter byte per line."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if colour not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise refusal("malformed", name, f"its header declares colour type {colour} with {depth} bits per channel")
    bits = depth * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = ((ceil((width - x) / step_x), ceil((height - y) / step_y)) for x, y, step_x, step_y in passes)
    return sum(lines * (1 + ceil(columns * bits / 8)) for columns, lines in sizes if columns > 0 and lines > 0)


@dataclass
class _Component:
    sampling: tuple[int, int]
    """Horizontally, vertically."""
    table: int
    """Index of the quantisation table."""
    precision: list[int | None] = field(default_factory=lambda: [None] * 64)
    """For each coefficient the lowest bit in the scans so far, 0 for all."""


class _JpegWalk:
    """One pass over the segments of a JPEG stream."""

    def __init__(self, data: bytes, name: Path | str) -> None:
        self._data, self._name = data, name
        self._position = 2
        self._kind = -1
        """Second byte of the frame header's marker; -1 before it."""
        self._size = (0, 0)
        """Lines, samples per line."""
        self._components: dict[int, _Component] = {}
        self._quantisation: set[int] = set()
        self._huffman: set[tuple[int, int]] = set()
        self._restart = 0
        """MCUs between restart markers."""

    def run(self) -> None:
        if not self._data.startswith(b"\xff\xd8"):
            self._malformed("it does not start with an SOI marker")
        while (marker := self._next_marker()) != _EOI:
            content = self._content(marker)
            if marker in _FRAMES:
                self._frame(marker, content)
            elif marker == _DQT:
                self._quantisation_tables(content)
            elif marker == _DHT:
                self._huffman_tables(content)
            elif marker == _DRI:
                if len(content) != 2:
                    self._malformed("its DRI segment has an illegal length")
                self._restart = int.from_bytes(content)
            elif marker == _SOS:
                self._scan(content)
            elif marker not in _PASSED:
                self._malformed(f"marker FF{marker:02X} is not allowed before the end of the image")
        if self._kind < 0:
            self._malformed("it has no frame header")
        if any(bit != 0 for component in self._components.values() for bit in component.precision):
            self._truncated("a scan is missing")

    def _truncated(self, sentence: str) -> NoReturn:
        raise refusal("truncated", self._name, f"its JPEG data is incomplete: {sentence}; copy the file again")

    def _malformed(self, sentence: str) -> NoReturn:
        raise refusal("malformed", self._name, f"its JPEG data is damaged: {sentence}; copy the file again")

    def _next_marker(self) -> int:
        match = _MARKER.match(self._data, self._position)
        if match is None:
            if len(self._data) - self._position < 2:
                self._truncated(f"its {len(self._data)} bytes hold no EOI marker")
            self._malformed(f"there is no marker at byte {self._position}")
        self._position = match.end()
        return self._data[self._position - 1]

    def _content(self, marker: int) -> bytes:
        if marker in _BARE:
            return b""
        length = int.from_bytes(self._data[self._position : self._position + 2])
        end = self._position + length
        if end > len(self._data) or len(self._data) < self._position + 2:
            self._truncated(f"its {len(self._data)} bytes end inside segment FF{marker:02X}")
        if length < 2:
            self._malformed(f"segment FF{marker:02X} has an illegal length")
        content, self._position = self._data[self._position + 2 : end], end
        return content

    def _frame(self, marker: int, content: bytes) -> None:
        if self._kind >= 0:
            self._malformed("it has several frame headers")
        if len(content) < 6 or len(content) != 6 + 3 * content[5] or not content[5]:
            self._malformed("its frame header has an illegal length")
        self._kind, self._size = marker, struct.unpack_from(">HH", content, 1)
        for identifier, sampling, table in zip(content[6::3], content[7::3], content[8::3], strict=True):
            component = _Component((sampling >> 4, sampling & 15), table)
            if identifier in self._components or not all(1 <= factor <= 4 for factor in component.sampling):
                self._malformed("its frame header lists illegal components")
            if marker in _LOSSLESS:
                component.precision = [None]
            self._components[identifier] = component

    def _quantisation_tables(self, content: bytes) -> None:
        while content:
            wide, table = content[0] >> 4, content[0] & 15
            length = 1 + 64 * (1 + wide)
            if wide > 1 or table > 3 or len(content) < length:
                self._malformed("its DQT segment is illegal")
            values = struct.unpack_from(">64H" if wide else "64B", content, 1)
            if 0 in values:
                self._malformed("its quantisation table contains a zero")
            self._quantisation.add(table)
            content = content[length:]

    def _huffman_tables(self, content: bytes) -> None:
        while content:
            counts = content[1:17]
            length = 17 + sum(counts)
            symbols = content[17:length]
            codes = sum(count << (16 - bits) for bits, count in enumerate(counts, 1))
            # The code of all ones is not allowed, so fewer than 2^16 of the longest codes fit.
            if len(content) < length or content[0] >> 4 > 1 or content[0] & 15 > 3 or codes >= 2**16:
                self._malformed("its DHT segment is illegal")
            if len(set(symbols)) != len(symbols):
                self._malformed("its Huffman table contains a symbol twice")
            self._huffman.add((content[0] >> 4, content[0] & 15))
            content = content[length:]

    def _scan(self, content: bytes) -> None:
        if self._kind < 0:
            self._malformed("a scan precedes the frame header")
        count = content[0] if content else 0
        if not 1 <= count <= 4 or len(content) != 4 + 2 * count:
            self._malformed("a scan header has an illegal length")
        first, last, bits = content[-3:]
        chosen: list[_Component] = []
        for identifier, tables in zip(content[1:-3:2], content[2:-3:2], strict=True):
            component = self._components.get(identifier)
            if component is None or component in chosen:
                self._malformed("a scan header lists illegal components")
            chosen.append(component)
            self._check_tables(component, tables, first, bits >> 4)
            self._cover(component, first, last, bits >> 4, bits & 15)
        self._skip_entropy_coded(self._units(chosen))

    def _check_tables(self, component: _Component, tables: int, first: int, high: int) -> None:
        """Check that the tables a scan uses are defined before it."""
        needed: set[tuple[int, int]] = set()
        if self._kind in _HUFFMAN:
            if self._kind in _LOSSLESS or (first == 0 and not high):
                needed.add((0, tables >> 4))
            if self._kind not in _LOSSLESS and (first > 0 or self._kind != _PROGRESSIVE):
                needed.add((1, tables & 15))
        if needed - self._huffman:
            self._malformed("a scan uses a Huffman table that is not defined")
        if self._kind not in _LOSSLESS and component.table not in self._quantisation:
            self._malformed("a scan uses a quantisation table that is not defined")

    def _cover(self, component: _Component, first: int, last: int, high: int, low: int) -> None:
        """Record the coefficients that a scan contains."""
        if self._kind in _LOSSLESS:
            first, last, high, low = 0, 0, 0, 0
        elif self._kind not in _PROGRESSIVES:
            # Sequential encoders need not set the fields that only progressive scans use.
            first, last, high, low = 0, 63, 0, 0
        before: int | None = high if high else None
        if last > 63 or first > last or (high and low != high - 1):
            self._malformed("a scan header contains illegal values")
        if any(bit != before for bit in component.precision[first : last + 1]):
            self._malformed("a scan repeats coefficients, or precedes the scan that it refines")
        component.precision[first : last + 1] = [low] * (last + 1 - first)

    def _units(self, chosen: list[_Component]) -> int:
        """Return the number of MCUs of a scan, or 0 if the header leaves it undefined (DNL)."""
        lines, columns = self._size
        block = 1 if self._kind in _LOSSLESS else 8
        across, down = (max(c.sampling[axis] for c in self._components.values()) for axis in (0, 1))
        if len(chosen) > 1:
            return ceil(columns / (block * across)) * ceil(lines / (block * down))
        own_across, own_down = chosen[0].sampling
        return ceil(ceil(columns * own_across / across) / block) * ceil(ceil(lines * own_down / down) / block)

    def _skip_entropy_coded(self, units: int) -> None:
        """Skip to the marker after a scan; check the restart markers inside."""
        restarts, end = 0, self._position
        for match in _MARKER.finditer(self._data, self._position):
            marker = match[0][-1]
            if not _RST0 <= marker < _RST0 + 8:
                self._position = match.start()
                break
            if not self._restart or marker != _RST0 + restarts % 8:
                self._malformed("a restart marker is out of order")
            restarts, end = restarts + 1, match.end()
        else:
            self._truncated(f"its {len(self._data)} bytes end inside a scan")
        expected = ceil(units / self._restart) - 1 if self._restart else 0
        if restarts == expected + 1 and end == self._position:
            return  # Some encoders write one after the last MCU.
        if units and restarts != expected:
            self._malformed(f"a scan has {restarts} of {expected} restart markers")


def _without_applications(data: bytes) -> tuple[int, int, bytes]:
    """Return the second byte of the frame header's marker, bits per sample, and the data without application segments.

    Application segments and comments do not affect scans, and libjpeg warns of legal ones, such as a JFIF version.
    """
    kind, bits, kept, position = -1, 0, [data[:2]], 2
    while (match := _MARKER.match(data, position)) is not None and match.end() + 3 <= len(data):
        marker = match[0][-1]
        if marker == _SOS:
            break
        end = match.end() + (0 if marker in _BARE else int.from_bytes(data[match.end() : match.end() + 2]))
        if marker in _FRAMES:
            kind, bits = marker, data[match.end() + 2]
        if marker not in _APPLICATIONS:
            kept.append(data[position:end])
        position = end
    return kind, bits, b"".join([*kept, data[position:]])


_BLOCK = 2**20
"""Bytes to inflate at once: a few kilobytes of a file may hold gigabytes."""
_MAX_CHUNK = 2**31 - 1
_PNG_PALETTE = 3
"""Colour type of indexed pixels."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first line, and their steps in each pass of an interlaced PNG."""

_MARKER = re.compile(rb"\xff+[^\xff\x00]")
"""A marker, which any number of fill bytes may precede; in entropy-coded data FF00 encodes a byte FF."""
_SOT, _SOD = b"\xff\x90", b"\xff\x93"
_JPEG2000_SEGMENTS = {*range(0x50, 0x60), 0x60, 0x61, 0x63, 0x64, 0x90}
_JPEG2000_MARKER = re.compile(rb"\xff[\x90\x93-\xff]")
"""Byte pairs that encoded data cannot contain. SOP (FF91) and EPH (FF92) may occur between packets."""
_RST0, _EOI, _SOS, _DQT, _DHT, _DRI = 0xD0, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LOSSY = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_HUFFMAN = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7}
_PROGRESSIVE = 0xC2
_PROGRESSIVES = {0xC2, 0xC6, 0xCA, 0xCE}
_BARE = {0x01, 0xD8, _EOI, *range(_RST0, _RST0 + 8)}
"""Markers without a segment."""
_APPLICATIONS = {0xFE, *range(0xE0, 0xF0)}
"""Segments of applications, and comments."""
_PASSED = {0xCC, 0xDC, *_APPLICATIONS}
"""Segments with nothing to check: arithmetic conditioning, number of lines, comments and applications."""
