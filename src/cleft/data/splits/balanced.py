"""The balanced split of RSNA: every positive image, and on each side as many negatives, patients apart.

The paper's sizes are 8,486 and 3,538, which is 2 x 6,012: all positives once more in negatives. Its list of images was
never published, so the sizes are kept and the images are drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence

from cleft.config import DataConfig
from cleft.data.splits.draws import Cut, order_key, share_of, take_patients
from cleft.errors import DataError
from cleft.types import Record

POSITIVE = "Pneumonia"
TEST_POSITIVES = 1_769
ALL_POSITIVES = 6_012
"""The paper tests on 1,769 of the 6,012 positive images; smaller sets are cut at the same share."""

PATIENT_SALT = "cleft-rsna-v1"
NEGATIVE_SALT = "cleft-rsna-neg-v1"
POSITIVE_SALT = "cleft-rsna-pos-v1"
VAL_SALT = "cleft-rsna-val-v1"
"""A new salt is a new split: never change one, add one."""

_DIGITS = 8


def rsna_balanced(records: Sequence[Record], config: DataConfig) -> Cut:
    """Cuts RSNA into a test set and a pool, both with as many images of Pneumonia as without.

    Patients are walked in the order of their hash and go to the test set as long as its positives do not pass their
    share of 1,769 in 6,012; everybody else is trained on. Of each side's negatives, as many as there are positives are
    drawn by the hash of the image. Where a small set has fewer negatives than positives, positives are drawn likewise.
    Validation is drawn by patient from what is left for training, whatever its balance.

    Raises:
        DataError: If no image shows Pneumonia or none is without it.
    """
    positive = {record.id for record in records if record.labels.get(POSITIVE) == 1}
    negative = {record.id for record in records if record.labels.get(POSITIVE) == 0}
    if not positive or not negative:
        raise DataError(
            f"data.split=rsna-balanced needs images with {POSITIVE} and images without; found {len(positive):,} and "
            f"{len(negative):,}; set data.split=patients",
            reason="too-few",
        )
    tested = _test_patients(records, positive)
    sides = [[record for record in records if (record.patient in tested) is side] for side in (True, False)]
    chosen = _balance(sides[0], positive, negative) | _balance(sides[1], positive, negative)
    test = {record.id for record in sides[0] if record.id in chosen}
    pool = [record for record in sides[1] if record.id in chosen]
    return Cut(test, pool, take_patients(pool, share_of(config.val_fraction, len(pool)), VAL_SALT))


def _test_patients(records: Sequence[Record], positive: set[str]) -> set[str]:
    """Walks patients in their order; whoever would bring too many positives is passed over."""
    positives: dict[str, int] = {}
    for record in records:
        positives[record.patient] = positives.get(record.patient, 0) + (record.id in positive)
    target = share_of(TEST_POSITIVES / ALL_POSITIVES, len(positive))
    tested: set[str] = set()
    reached = 0
    # NIH writes its patients with eight digits; the order is that of these names.
    for patient in sorted(positives, key=lambda patient: order_key(PATIENT_SALT, patient.zfill(_DIGITS))):
        if reached == target:
            break
        if reached + positives[patient] <= target:
            tested.add(patient)
            reached += positives[patient]
    return tested


def _balance(records: Sequence[Record], positive: set[str], negative: set[str]) -> set[str]:
    """Draws as many images of either kind as the rarer kind has."""
    with_it = [record.id for record in records if record.id in positive]
    without = [record.id for record in records if record.id in negative]
    each = min(len(with_it), len(without))
    return {*_first(with_it, each, POSITIVE_SALT), *_first(without, each, NEGATIVE_SALT)}


def _first(ids: Sequence[str], count: int, salt: str) -> list[str]:
    return sorted(ids, key=lambda identifier: order_key(salt, identifier))[:count]
