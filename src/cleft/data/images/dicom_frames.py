"""Compressed pixels of one frame, out of the fragments of all."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.encaps import generate_fragments

from cleft.data.images.dicom_attributes import AttributeFault
from cleft.grammar import count

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
