"""How many images are encoded in which way, and what is missing to decode them: to be said before training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from cleft.data.images.headers import Header
from cleft.grammar import count, verb


class SyntaxCount(NamedTuple):
    """How many images are encoded in one way, and whether they can be decoded here."""

    uid: str
    name: str
    images: int
    readable: bool
    remedy: str
    """What to do if they cannot be decoded; empty if they can."""


def syntax_census(headers: Iterable[Header]) -> list[SyntaxCount]:
    """Counts how images are encoded, the most frequent first, and says what could not be decoded here and why."""
    counts = Counter((h.transfer_syntax, h.bits_stored > 8) for h in headers if not h.reason and h.is_image)
    census: dict[tuple[str, str, str], int] = {}
    for (uid, deep), number in counts.items():
        name, remedy = decodable(uid, deep=deep)
        census[uid, name, remedy] = census.get((uid, name, remedy), 0) + number
    rows = [SyntaxCount(uid, name, number, not remedy, remedy) for (uid, name, remedy), number in census.items()]
    return sorted(rows, key=lambda row: (-row.images, row.uid))


def check_syntaxes(headers: Iterable[Header]) -> list[str]:
    """Returns one sentence for each encoding that cannot be decoded here, with the remedy; empty if all can."""
    return [
        f"{count(row.images, 'image')} {verb(row.images, 'is', 'are')} encoded as {row.name}, which cannot be decoded "
        f"here; {row.remedy}"
        for row in syntax_census(headers)
        if not row.readable
    ]


def decodable(uid: str, *, deep: bool) -> tuple[str, str]:
    """Returns the name of a transfer syntax, and what to do if it cannot be decoded here; empty if it can.

    Args:
        uid: The transfer syntax.
        deep: Whether pixels have more than 8 bits.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, JPEGExtended12Bit

    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        return "an illegal transfer syntax", _STORE_AGAIN
    name = UID(uid).name
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        return name, _STORE_AGAIN
    plugins = set(decoder.available_plugins) if decoder.is_encapsulated else {"native"}
    if uid == JPEGExtended12Bit and deep:
        # The decoders of the extra take it for 8 bits alone.
        deeper = plugins - {"pillow", "gdcm"}
        return name, "" if deeper else f"pylibjpeg-libjpeg, which is under the GPL, reads it; or {_STORE_AGAIN}"
    return name, "" if plugins else "run: pip install 'cleft[dicom]'"


def usual_syntaxes() -> list[tuple[str, str]]:
    """Return the name of each compressed transfer syntax that radiographs come in, and what `decodable` says of it."""
    from pydicom import uid

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
