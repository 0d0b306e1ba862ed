"""What a split gives away: patients who are asked about and were learned from, and how much of them.

A recipe that takes images out and not their patients (`5x200-paper`) leaves other images of the same people in
training, some of them from the same visit. How many is a number, and it travels with every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cleft.grammar import count, share, verb
from cleft.types import Record, Splits

_PAIRS = (("test", "train"), ("test", "val"), ("val", "train"))


class Leak(NamedTuple):
    """Patients of one part who stand in another as well."""

    part: str
    """Whose numbers are too good: `test`, or `val`."""
    into: str
    """Where else its patients stand: `train`, or `val`, by which weights are chosen."""
    patients: int
    of_patients: int
    """All patients of `part`."""
    images: int
    """Images in `into` of the shared patients."""
    same_study: int
    """Those of them that are from a study which `part` shows too."""

    def sentence(self) -> str:
        """Says it in numbers."""
        people = (
            f"{share(self.patients, self.of_patients, f'{self.part} patient')} "
            f"{verb(self.patients, 'is', 'are')} also in {self.into}"
        )
        study = f", {self.same_study:,} of them from a study that {self.part} shows too" if self.same_study else ""
        return f"{people}, with {count(self.images, 'other image')}{study}"


def measure_leaks(splits: Splits) -> list[Leak]:
    """Compares test with training and validation, and validation with training; no entry where nobody is shared."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    leaks = [_compare(part, parts[part], into, parts[into]) for part, into in _PAIRS]
    return [leak for leak in leaks if leak.patients]


def leak_notes(splits: Splits, part: str | None = None) -> list[str]:
    """Sentences about patients in two parts, for those who read numbers.

    Args:
        splits: Any.
        part: The one that is asked about; by default all.
    """
    if not splits.shared_patients:
        return []
    leaks = [leak for leak in measure_leaks(splits) if part in (None, leak.part)]
    return [
        f"Beware: {leak.sentence()} (split {splits.recipe}); numbers on {leak.part} are too good." for leak in leaks
    ]


def _compare(part: str, held: Sequence[Record], into: str, other: Sequence[Record]) -> Leak:
    patients = {record.patient for record in held}
    studies = {(record.patient, record.study) for record in held if record.study is not None}
    theirs = [record for record in other if record.patient in patients]
    return Leak(
        part=part,
        into=into,
        patients=len({record.patient for record in theirs}),
        of_patients=len(patients),
        images=len(theirs),
        same_study=sum((record.patient, record.study) in studies for record in theirs),
    )
