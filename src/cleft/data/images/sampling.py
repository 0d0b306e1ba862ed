"""A few images, drawn by a hash and decoded as training would decode them, to learn what training would meet.

Nothing is written: neither pixels nor refusals enter a cache.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.config import ImagesConfig
from cleft.data.images.decode_pool import preparing
from cleft.data.images.preprocess import centre_crop
from cleft.data.progress import progress_bar
from cleft.types import Picture, Record

_SIDE = 224
"""Longest side of a picture in pixels."""
_DOUBT = 0.05


class Sample(NamedTuple):
    """What became of the images that were decoded."""

    undecodable: Mapping[str, tuple[str, str]]
    """Record id to the reason and the sentence, which names the file."""
    contents: Mapping[str, str]
    """Record id to the SHA-256 of its file."""
    pictures: tuple[Picture, ...]


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
    shown: list[Picture] = []
    with (
        preparing(images, frozenset(), min(jobs, len(records))) as prepare,
        progress_bar("decode", len(records), enabled=progress) as advance,
    ):
        outcomes = prepare([record.image for record in records])
        for record, outcome in zip(records, outcomes, strict=True):
            if outcome.source is not None:
                contents[record.id] = outcome.source.content
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


def _picture(record: Record, pixels: NDArray[np.uint8], images: ImagesConfig) -> Picture:
    present = tuple(name for name, value in record.labels.items() if value == 1)
    return Picture(image=_as_png(centre_crop(pixels, images.size)), view=record.view or "", labels=present)


def _as_png(pixels: NDArray[np.uint8]) -> str:
    scale = min(1.0, _SIDE / max(pixels.shape))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.imencode(".png", small)[1].tobytes()).decode()
