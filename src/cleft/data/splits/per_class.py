"""As many images of each class as of any other, and few of any patient.

Each class is drawn by itself, in a hash order of its own: another class more or less changes none of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cleft.data.labels import single_class
from cleft.data.splits.draws import order_key
from cleft.errors import DataError
from cleft.grammar import count
from cleft.types import Record

SALT = "cleft-per-class-v1"
"""A new salt is another set: never change it, add one."""

PER_PATIENT = 4
"""Images of one patient in one class, at most, where nothing else is asked for: a breast or two in two views."""


def balanced(
    records: Sequence[Record],
    classes: Sequence[str],
    per_class: int,
    per_patient: int = PER_PATIENT,
    salt: str = SALT,
) -> list[Record]:
    """Draws the same number of images of each class.

    Args:
        records: What to draw from.
        classes: Findings. An image belongs to the one of them that it shows; those that show none or several of them
            are left out.
        per_class: Images of each class.
        per_patient: Most images of one patient in one class.
        salt: Another salt draws other images.

    Returns:
        The images, in the order given.

    Raises:
        DataError: If a class has too few; says how many each could have, and from how many patients.
    """
    pools: dict[str, list[Record]] = {name: [] for name in classes}
    for record in records:
        place = single_class(record.labels, classes)
        if place is not None:
            pools[classes[place]].append(record)
    drawn = {name: _draw(pool, per_class, per_patient, f"{salt}|{name}") for name, pool in pools.items()}
    short = {name: taken for name, taken in drawn.items() if len(taken) < per_class}
    if short:
        found = ", ".join(
            f"{name} {len(taken):,} (of {count(len(pools[name]), 'image')} of "
            f"{count(len({record.patient for record in pools[name]}), 'patient')})"
            for name, taken in short.items()
        )
        most = min(len(taken) for taken in short.values())
        fewer = f"set --per-class {most}, allow more with --per-patient" if most else "take other images"
        raise DataError(
            f"{count(per_class, 'image')} of each class, at most {per_patient} of a patient, cannot be had: {found}; "
            f"{fewer}, or name the other classes with --classes",
            reason="too-few",
        )
    taken = {record.id for part in drawn.values() for record in part}
    return [record for record in records if record.id in taken]


def class_patients(records: Sequence[Record], classes: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Counts the images of each class and the patients they are of; images of none or several classes do not count."""
    images: Counter[str] = Counter()
    patients: dict[str, set[str]] = {name: set() for name in classes}
    for record in records:
        place = single_class(record.labels, classes)
        if place is not None:
            images[classes[place]] += 1
            patients[classes[place]].add(record.patient)
    return {name: (images[name], len(patients[name])) for name in classes}


def _draw(pool: Sequence[Record], count: int, per_patient: int, salt: str) -> list[Record]:
    """Walks the images in their order and passes over patients who have had their share."""
    taken: list[Record] = []
    had: Counter[str] = Counter()
    for record in sorted(pool, key=lambda record: order_key(salt, record.id)):
        if len(taken) == count:
            break
        if had[record.patient] < per_patient:
            had[record.patient] += 1
            taken.append(record)
    return taken
