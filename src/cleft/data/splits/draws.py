"""What every split is drawn with: ids in the order of a hash, and patients taken whole.

One primitive decides everything: `order_key`. It depends on neither row order nor library versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cleft.types import Record

TEST_SALT = "cleft-test-v1"
VAL_SALT = "cleft-val-v1"
"""A new salt is a new split: never change one, add one."""


class Cut(NamedTuple):
    """What a recipe decides. An image that stands in neither the test set nor the pool is left out."""

    test: set[str]
    pool: list[Record]
    """What remains for training and validation."""
    val: set[str]


def order_key(salt: str, identifier: str) -> str:
    """Returns the place of an id in a salted random order: SHA-256 of `salt|identifier` in hex."""
    return hashlib.sha256(f"{salt}|{identifier}".encode()).hexdigest()


def ids_digest(ids: Iterable[str]) -> str:
    """Returns the first 16 hex digits of SHA-256 over the sorted ids, one a line.

    Example:
        >>> ids_digest(["b", "a"]) == ids_digest(["a", "b"])
        True
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def take_patients(records: Sequence[Record], target: int, salt: str) -> set[str]:
    """Takes whole patients in the order of their hash until they have `target` images.

    A patient who would overshoot is passed over. Where that leaves nobody, the first of the patients with the
    fewest images is taken, so that a split that was asked for is never empty.

    Returns:
        Ids of the images taken.
    """
    images: dict[str, list[str]] = {}
    for record in records:
        images.setdefault(record.patient, []).append(record.id)
    order = sorted(images, key=lambda patient: order_key(salt, patient))
    taken: list[str] = []
    for patient in order:
        if len(taken) == target:
            break
        if len(taken) + len(images[patient]) <= target:
            taken += images[patient]
    if target and not taken and len(order) > 1:
        taken = images[min(order, key=lambda patient: len(images[patient]))]
    return set(taken)


def share_of(fraction: float, images: int) -> int:
    """Rounds to whole images, but never down to none of a share that was asked for."""
    return max(round(fraction * images), 1) if fraction > 0 else 0
