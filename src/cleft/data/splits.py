"""Splits that are the same on every machine: ids in the order of a hash, patients never torn apart by accident.

One primitive decides everything: `order_key`. It depends on neither row order nor library versions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from cleft.config import DataConfig
from cleft.data.chexpert import FINDINGS
from cleft.data.labels import single_class
from cleft.errors import DataError
from cleft.types import Reading, Record, Splits

CLASSES_5X200 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
PER_CLASS = 200

TEST_SALT = "cleft-test-v1"
VAL_SALT = "cleft-val-v1"
SALT_5X200 = "cleft-5x200-v1"
CHEXPERT_VAL_SALT = "cleft-chexpert-val-v1"
IMAGE_VAL_SALT = "cleft-chexpert-val-images-v1"
"""A new salt is a new split: never change one, add one."""

_EXCLUSIVE = FINDINGS[1:]
_FRONTAL = {"AP", "PA", "frontal", None}


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


def split_records(reading: Reading, config: DataConfig) -> Splits:
    """Tells records apart for training, choosing and testing by the rule `config.split`.

    Returns:
        The splits, each in the order of the reading.

    Raises:
        DataError: If there are too few images or patients for a split, or two splits share a patient against
            the rule.
    """
    test, pool, val = SPLITS[config.split](reading.records, config)
    parts = {
        "train": [record for record in pool if record.id not in val],
        "val": [record for record in pool if record.id in val],
        "test": [record for record in reading.records if record.id in test],
    }
    _refuse_empty(parts, len(reading.records), config)
    shared = shared_patients(parts)
    if shared and config.split in DISJOINT:
        refuse_shared(shared, config.split)
    return Splits(
        **parts,
        recipe=config.split,
        digest=ids_digest(f"{name}|{record.id}" for name, part in parts.items() for record in part),
        shared_patients=len(shared),
    )


def shared_patients(parts: Mapping[str, Sequence[Record]]) -> list[str]:
    """Returns the patients who stand in more than one split, sorted."""
    counts = Counter(patient for part in parts.values() for patient in {record.patient for record in part})
    return sorted(patient for patient, count in counts.items() if count > 1)


def refuse_shared(shared: Sequence[str], recipe: str) -> None:
    """Raises a DataError that counts the patients who stand in two splits and names three."""
    raise DataError(
        f"{len(shared):,} patients stand in two splits of the recipe {recipe!r}, such as {', '.join(shared[:3])}; "
        "numbers measured on them would be too good",
        reason="shared-patients",
    )


def draw_5x200(records: Sequence[Record]) -> dict[str, list[str]]:
    """Draws CheXpert-5x200: 200 images per class that show this finding and none other, surely.

    Args:
        records: With `uncertain` filled in: an uncertain finding disqualifies an image whatever it counts as.

    Returns:
        Class to the ids of its 200 images, in the order of their hash.

    Raises:
        DataError: If a class has fewer than 200 such images.

    Source:
        The selection rule of GLoRIA and MGCA, drawn by hash where they draw without or with a seed
        (docs/decisions/0015).
    """
    pools: dict[str, list[str]] = {name: [] for name in CLASSES_5X200}
    for record in records:
        name = _only_finding(record)
        if name is not None and record.view in _FRONTAL:
            pools[name].append(record.id)
    short = {name: len(ids) for name, ids in pools.items() if len(ids) < PER_CLASS}
    if short:
        counts = ", ".join(f"{name} {count}" for name, count in short.items())
        raise DataError(
            f"5x200 needs {PER_CLASS} images per class that show this finding alone; found {counts}; "
            "set data.split=patients",
            reason="too-few",
        )
    return {
        name: sorted(ids, key=lambda identifier: order_key(SALT_5X200, identifier))[:PER_CLASS]
        for name, ids in pools.items()
    }


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


class _Cut(NamedTuple):
    """What a recipe decides. An image that stands in neither the test set nor the pool is left out."""

    test: set[str]
    pool: list[Record]
    """What remains for training and validation."""
    val: set[str]


def _by_patient(records: Sequence[Record], config: DataConfig) -> _Cut:
    test = take_patients(records, _share(config.test_fraction, len(records)), TEST_SALT)
    pool = [record for record in records if record.id not in test]
    return _Cut(test, pool, take_patients(pool, _share(config.val_fraction, len(pool)), VAL_SALT))


def _5x200_strict(records: Sequence[Record], config: DataConfig) -> _Cut:
    """The other images of test patients are left out altogether."""
    test = _all_5x200(records)
    patients = {record.patient for record in records if record.id in test}
    pool = [record for record in records if record.patient not in patients]
    return _Cut(test, pool, take_patients(pool, _share(config.val_fraction, len(pool)), CHEXPERT_VAL_SALT))


def _5x200_paper(records: Sequence[Record], config: DataConfig) -> _Cut:
    """The other images of test patients stay in training."""
    test = _all_5x200(records)
    pool = [record for record in records if record.id not in test]
    return _Cut(test, pool, take_patients(pool, _share(config.val_fraction, len(pool)), CHEXPERT_VAL_SALT))


def _5x200_images(records: Sequence[Record], config: DataConfig) -> _Cut:
    """As `_5x200_paper`, and validation images are drawn without a look at their patient."""
    test = _all_5x200(records)
    pool = [record for record in records if record.id not in test]
    order = sorted((record.id for record in pool), key=lambda identifier: order_key(IMAGE_VAL_SALT, identifier))
    return _Cut(test, pool, set(order[: _share(config.val_fraction, len(pool))]))


SPLITS: dict[str, Callable[[Sequence[Record], DataConfig], _Cut]] = {
    "patients": _by_patient,
    "5x200-strict": _5x200_strict,
    "5x200-paper": _5x200_paper,
    "5x200-images": _5x200_images,
}
"""Recipes by the value of `data.split`."""

DISJOINT = ("patients", "5x200-strict")
"""Recipes that promise that no patient stands in two splits."""


def _all_5x200(records: Sequence[Record]) -> set[str]:
    return {identifier for ids in draw_5x200(records).values() for identifier in ids}


def _only_finding(record: Record) -> str | None:
    """Returns the class an image of 5x200 belongs to. `No Finding` is not looked at, as in the authors' rule."""
    place = single_class(record.labels, _EXCLUSIVE)
    name = _EXCLUSIVE[place] if place is not None else None
    unsure = any(finding in _EXCLUSIVE for finding in record.uncertain) or -1 in record.labels.values()
    return name if name in CLASSES_5X200 and not unsure else None


def _share(fraction: float, images: int) -> int:
    """Rounds to whole images, but never down to none of a share that was asked for."""
    return max(round(fraction * images), 1) if fraction > 0 else 0


def _refuse_empty(parts: Mapping[str, Sequence[Record]], images: int, config: DataConfig) -> None:
    wanted = {
        "train": True,
        "val": config.val_fraction > 0,
        "test": config.split != "patients" or config.test_fraction > 0,
    }
    empty = [name for name, part in parts.items() if wanted[name] and not part]
    if empty:
        raise DataError(
            f"{images:,} images leave none for {' and '.join(empty)} under data.split={config.split}, "
            f"data.val_fraction={config.val_fraction}, data.test_fraction={config.test_fraction}; "
            "a split needs a patient of its own: add patients or change these settings",
            reason="too-few",
        )
