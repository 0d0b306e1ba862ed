"""Less of the training data: 1 % inside 10 % inside 100 %, patients whole, classes in their shares.

Every patient gets a place between 0 and 1, and a fraction takes the places below it. So the subsets are nested by
construction, whatever the fractions, and the same on every machine.
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
"""A new salt is a new split: never change one, add one."""

FRACTION_SALT = "cleft-fraction-v1"
"""A new salt is another subset: never change it."""

PER_CLASS_SALT = "cleft-per-class-v1"
"""A new salt is another set: never change it, add one."""

PER_PATIENT = 4
"""Images of one patient in one class, at most, where nothing else is asked for: a breast or two in two views."""


class Assignment(NamedTuple):
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


def image_count(fraction: float, images: int) -> int:
    """Rounds to whole images, but never down to none of a share that was asked for."""
    return max(round(fraction * images), 1) if fraction > 0 else 0


def take_fraction(records: Sequence[Record], fraction: float, classes: Sequence[str], *, seed: int = 0) -> list[Record]:
    """Takes a share of the training images, stratified by class.

    Give it the training part alone: what a model is chosen by and asked about stays whole.

    Args:
        records: Of training.
        fraction: Share of the images, above 0 and up to 1. It is met to within a patient per class.
        classes: Findings whose share is kept. A patient counts for the rarest of those he shows in any image.
        seed: Another seed takes other patients.

    Returns:
        The images taken, in the order given.

    Raises:
        ConfigError: If the fraction is not above 0 and up to 1.
        DataError: If it leaves none of the images of a class.

    Source:
        The walk through a hash order by which splits are drawn (docs/decisions/0015), once per class.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction} must lie above 0 and not above 1")
    counts = _count(records, classes)
    places = _places(records, sorted(classes, key=lambda name: (counts[name], name)), f"{FRACTION_SALT}|{seed}")
    taken = [record for record in records if places[record.patient] < fraction]
    left = _count(taken, classes)
    empty = [f"{name} ({count(counts[name], 'image')} in all)" for name in classes if not left[name]]
    if empty:
        raise DataError(
            f"{fraction:.4g} of {count(len(records), 'training image')} leaves none for {', '.join(empty)}; "
            "take a larger fraction, or leave these classes out",
            reason="too-few",
        )
    return taken


def _count(records: Sequence[Record], classes: Sequence[str]) -> Counter[str]:
    return Counter(name for record in records for name in classes if record.labels.get(name) == 1)


def _places(records: Sequence[Record], rarest_first: Sequence[str], salt: str) -> dict[str, float]:
    """The place of each patient among those of his class: the share of its images before the middle of his own."""
    images = Counter(record.patient for record in records)
    rank: dict[str, int] = {}
    for record in records:
        shown = (i for i, name in enumerate(rarest_first) if record.labels.get(name) == 1)
        rank[record.patient] = min(rank.get(record.patient, len(rarest_first)), next(shown, len(rarest_first)))
    total: Counter[int] = Counter()
    for patient, number in images.items():
        total[rank[patient]] += number
    before: Counter[int] = Counter()
    places: dict[str, float] = {}
    for patient in sorted(images, key=lambda patient: order_key(salt, patient)):
        stratum = rank[patient]
        places[patient] = (before[stratum] + images[patient] / 2) / total[stratum]
        before[stratum] += images[patient]
    return places


def draw_per_class(
    records: Sequence[Record],
    classes: Sequence[str],
    per_class: int,
    per_patient: int = PER_PATIENT,
    salt: str = PER_CLASS_SALT,
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


def class_sizes(records: Sequence[Record], classes: Sequence[str]) -> dict[str, tuple[int, int]]:
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


_PAIRS = (("test", "train"), ("test", "val"), ("val", "train"))


class Leakage(NamedTuple):
    """Patients of one split who are also in another."""

    part: str
    """Split whose results are too good: `test` or `val`."""
    into: str
    """Other split with these patients: `train`, or `val`, by which weights are chosen."""
    patients: int
    of_patients: int
    """Number of patients of `part`."""
    images: int
    """Images in `into` of the shared patients."""
    same_study: int
    """Number of them from a study that is also in `part`."""

    def sentence(self) -> str:
        """Returns the leakage in words."""
        people = (
            f"{share(self.patients, self.of_patients, f'{self.part} patient')} "
            f"{verb(self.patients, 'is', 'are')} also in {self.into}"
        )
        study = f", {self.same_study:,} of them from a study that {self.part} shows too" if self.same_study else ""
        return f"{people}, with {count(self.images, 'other image')}{study}"


def measure_leakage(splits: Splits) -> list[Leakage]:
    """Returns the leakage from test to train and val, and from val to train; without entries of no patients."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    leaks = [_compare(part, parts[part], into, parts[into]) for part, into in _PAIRS]
    return [leak for leak in leaks if leak.patients]


def leakage_notes(splits: Splits, part: str | None = None) -> list[str]:
    """Returns a warning for each pair of splits that share patients.

    Args:
        splits: Splits.
        part: Split whose results are read; by default all.
    """
    if not splits.shared_patients:
        return []
    leaks = [leak for leak in measure_leakage(splits) if part in (None, leak.part)]
    return [
        f"Beware: {leak.sentence()} (split {splits.recipe}); numbers on {leak.part} are too good." for leak in leaks
    ]


def _compare(part: str, held: Sequence[Record], into: str, other: Sequence[Record]) -> Leakage:
    patients = {record.patient for record in held}
    studies = {(record.patient, record.study) for record in held if record.study is not None}
    theirs = [record for record in other if record.patient in patients]
    return Leakage(
        part=part,
        into=into,
        patients=len({record.patient for record in theirs}),
        of_patients=len(patients),
        images=len(theirs),
        same_study=sum((record.patient, record.study) in studies for record in theirs),
    )
