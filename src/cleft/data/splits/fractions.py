"""Less of the training data: 1 % inside 10 % inside 100 %, patients whole, classes in their shares.

Every patient gets a place between 0 and 1, and a fraction takes the places below it. So the subsets are nested by
construction, whatever the fractions, and the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cleft.data.splits.draws import order_key
from cleft.errors import ConfigError, DataError
from cleft.grammar import count
from cleft.types import Record

SALT = "cleft-fraction-v1"
"""A new salt is another subset: never change it."""


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
    places = _places(records, sorted(classes, key=lambda name: (counts[name], name)), f"{SALT}|{seed}")
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
