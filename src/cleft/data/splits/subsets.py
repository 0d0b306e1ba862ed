"""Subsets of images drawn in the order of a salted hash: whole patients, nested fractions, equal numbers per class.

All draws use `order_key`, which depends neither on the order of rows nor on library versions. Each class and each
purpose has its own salt, so that adding a class does not change the draws of the others. A new salt is a new subset:
never change one, add one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cleft.data.counts import single_class
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, share, verb
from cleft.types import Record, Splits

TEST_SALT = "cleft-test-v1"
VAL_SALT = "cleft-val-v1"
FRACTION_SALT = "cleft-fraction-v1"
PER_CLASS_SALT = "cleft-per-class-v1"

PER_PATIENT = 4
"""Default maximum of images of one patient per class: two breasts in two views."""


class Assignment(NamedTuple):
    """Result of a split recipe. An image in neither the test set nor the pool is left out."""

    test: set[str]
    pool: list[Record]
    """Records for training and validation."""
    val: set[str]


def order_key(salt: str, identifier: str) -> str:
    """Returns the sort key of an id in a salted random order: SHA-256 of `salt|identifier` in hex."""
    return hashlib.sha256(f"{salt}|{identifier}".encode()).hexdigest()


def ids_digest(ids: Iterable[str]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of the sorted ids, one per line.

    Example:
        >>> ids_digest(["b", "a"]) == ids_digest(["a", "b"])
        True
    """
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def take_patients(records: Sequence[Record], target: int, salt: str) -> set[str]:
    """Takes all images of patients, in hash order, until there are `target` images.

    A patient with too many images is skipped. If all are, the first of the patients with the fewest images is selected,
    so that a requested split is never empty.

    Returns:
        Ids of the images selected.
    """
    images: dict[str, list[str]] = {}
    for record in records:
        images.setdefault(record.patient, []).append(record.id)
    order = sorted(images, key=lambda patient: order_key(salt, patient))
    selected: list[str] = []
    for patient in order:
        if len(selected) == target:
            break
        if len(selected) + len(images[patient]) <= target:
            selected += images[patient]
    if target and not selected and len(order) > 1:
        selected = images[min(order, key=lambda patient: len(images[patient]))]
    return set(selected)


def image_count(fraction: float, images: int) -> int:
    """Returns the number of images of a fraction, rounded, and at least 1 if the fraction is above 0."""
    return max(round(fraction * images), 1) if fraction > 0 else 0


def take_fraction(records: Sequence[Record], fraction: float, classes: Sequence[str], *, seed: int = 0) -> list[Record]:
    """Takes a fraction of the training images, by patient and stratified by class.

    Every patient has a position between 0 and 1 within a class, and a fraction takes the positions below it. Subsets
    are therefore nested: 1 % is part of 10 %.

    Args:
        records: Training records only; validation and test sets are not reduced.
        fraction: Share of the images, above 0 and up to 1; met to within one patient per class.
        classes: Findings to stratify by. A patient belongs to the rarest finding of any of the patient's images.
        seed: Seed of the selection of patients.

    Returns:
        The selected records, in the given order.

    Raises:
        ConfigError: If the fraction is not above 0 and up to 1.
        DataError: If it leaves none of the images of a class.

    Source:
        The hash order of the splits (docs/decisions/0015), once per class.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction} must be above 0 and at most 1")
    counts = _count(records, classes)
    positions = _positions(records, sorted(classes, key=lambda name: (counts[name], name)), f"{FRACTION_SALT}|{seed}")
    selected = [record for record in records if positions[record.patient] < fraction]
    remaining = _count(selected, classes)
    empty = [f"{name} ({count(counts[name], 'image')} in all)" for name in classes if not remaining[name]]
    if empty:
        raise DataError(
            f"{fraction:.4g} of {count(len(records), 'training image')} leaves none for {', '.join(empty)}; "
            "take a larger fraction, or omit these classes",
            reason="too-few",
        )
    return selected


def _count(records: Sequence[Record], classes: Sequence[str]) -> Counter[str]:
    return Counter(name for record in records for name in classes if record.labels.get(name) == 1)


def _positions(records: Sequence[Record], rarest_first: Sequence[str], salt: str) -> dict[str, float]:
    """Position of each patient within a class: the share of images before the middle of the patient's own."""
    images = Counter(record.patient for record in records)
    rank: dict[str, int] = {}
    for record in records:
        shown = (i for i, name in enumerate(rarest_first) if record.labels.get(name) == 1)
        rank[record.patient] = min(rank.get(record.patient, len(rarest_first)), next(shown, len(rarest_first)))
    total: Counter[int] = Counter()
    for patient, number in images.items():
        total[rank[patient]] += number
    before: Counter[int] = Counter()
    positions: dict[str, float] = {}
    for patient in sorted(images, key=lambda patient: order_key(salt, patient)):
        stratum = rank[patient]
        positions[patient] = (before[stratum] + images[patient] / 2) / total[stratum]
        before[stratum] += images[patient]
    return positions


def draw_per_class(
    records: Sequence[Record],
    classes: Sequence[str],
    per_class: int,
    per_patient: int = PER_PATIENT,
    salt: str = PER_CLASS_SALT,
) -> list[Record]:
    """Draws the same number of images of each class.

    Args:
        records: Records to draw from.
        classes: Findings. An image with exactly one of them belongs to that class; others are not drawn.
        per_class: Number of images of each class.
        per_patient: Maximum of images of one patient per class.
        salt: Salt of the hash order.

    Returns:
        The drawn records, in the given order.

    Raises:
        DataError: If a class has too few images; says how many are available, and of how many patients.
    """
    pools: dict[str, list[Record]] = {name: [] for name in classes}
    for record in records:
        place = single_class(record.labels, classes)
        if place is not None:
            pools[classes[place]].append(record)
    drawn = {name: _draw(pool, per_class, per_patient, f"{salt}|{name}") for name, pool in pools.items()}
    short = {name: selected for name, selected in drawn.items() if len(selected) < per_class}
    if short:
        found = ", ".join(
            f"{name} {len(selected):,} (of {count(len(pools[name]), 'image')} of "
            f"{count(len({record.patient for record in pools[name]}), 'patient')})"
            for name, selected in short.items()
        )
        most = min(len(selected) for selected in short.values())
        fewer = f"set --per-class {most}, allow more with --per-patient" if most else "take other images"
        raise DataError(
            f"{count(per_class, 'image')} of each class, at most {per_patient} per patient, are not available: "
            f"{found}; {fewer}, or name the other classes with --classes",
            reason="too-few",
        )
    selected = {record.id for part in drawn.values() for record in part}
    return [record for record in records if record.id in selected]


def class_sizes(records: Sequence[Record], classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns the number of images and patients of each class; images of none or several classes do not count."""
    images: Counter[str] = Counter()
    patients: dict[str, set[str]] = {name: set() for name in classes}
    for record in records:
        place = single_class(record.labels, classes)
        if place is not None:
            images[classes[place]] += 1
            patients[classes[place]].add(record.patient)
    return {name: (images[name], len(patients[name])) for name in classes}


def _draw(pool: Sequence[Record], count: int, per_patient: int, salt: str) -> list[Record]:
    """Takes images in hash order, at most `per_patient` of each patient."""
    selected: list[Record] = []
    had: Counter[str] = Counter()
    for record in sorted(pool, key=lambda record: order_key(salt, record.id)):
        if len(selected) == count:
            break
        if had[record.patient] < per_patient:
            had[record.patient] += 1
            selected.append(record)
    return selected


_PAIRS = (("test", "train"), ("test", "val"), ("val", "train"))


class Leakage(NamedTuple):
    """Patients of one part of a split who are also in another."""

    part: str
    """`test` or `val`, whose metrics are too optimistic."""
    into: str
    """`train` or `val`, which also has patients of `part`."""
    patients: int
    of_patients: int
    """Number of patients of `part`."""
    images: int
    """Number of images of the shared patients in `into`."""
    same_study: int
    """Number of these images that are from a study with an image in `part`."""

    def message(self) -> str:
        """Returns the numbers as a sentence."""
        people = (
            f"{share(self.patients, self.of_patients, f'{self.part} patient')} "
            f"{verb(self.patients, 'is', 'are')} also in {self.into}"
        )
        study = f", {self.same_study:,} of them from a study that is also in {self.part}" if self.same_study else ""
        return f"{people}, with {count(self.images, 'other image')}{study}"


def measure_leakage(splits: Splits) -> list[Leakage]:
    """Returns the leakage between test and train, test and val, and val and train, where patients are shared."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    leaks = [_compare(part, parts[part], into, parts[into]) for part, into in _PAIRS]
    return [leak for leak in leaks if leak.patients]


def leakage_notes(splits: Splits, part: str | None = None) -> list[str]:
    """Returns warnings about patients in two parts.

    Args:
        splits: The split.
        part: Warn about this part only; by default about all.
    """
    if not splits.shared_patients:
        return []
    leaks = [leak for leak in measure_leakage(splits) if part in (None, leak.part)]
    return [
        f"Beware: {leak.message()} (split {splits.recipe}); metrics on {leak.part} are too optimistic."
        for leak in leaks
    ]


def _compare(part: str, records: Sequence[Record], into: str, other: Sequence[Record]) -> Leakage:
    patients = {record.patient for record in records}
    studies = {(record.patient, record.study) for record in records if record.study is not None}
    shared = [record for record in other if record.patient in patients]
    return Leakage(
        part=part,
        into=into,
        patients=len({record.patient for record in shared}),
        of_patients=len(patients),
        images=len(shared),
        same_study=sum((record.patient, record.study) in studies for record in shared),
    )
