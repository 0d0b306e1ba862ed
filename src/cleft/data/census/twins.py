"""One picture under several names: told by the content of files, and of prepared pixels.

Splits keep patients apart, but only by their ids. A copy of an image under another id, or under the id of another
dataset, passes by every such rule; its content does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cleft.data.images.cache import PreparedImages
from cleft.errors import DataError
from cleft.grammar import agree, count, verb
from cleft.types import Record


class Twins(NamedTuple):
    """Records of one picture."""

    ids: tuple[str, ...]
    parts: tuple[str, ...]
    """The splits they stand in, each once, in the order of the splits."""
    patients: int
    """How many patients the picture is said to be of."""
    agree: bool
    """Whether all their labels are equal."""


def shared_contents(parts: Mapping[str, Sequence[Record]], contents: Mapping[str, Hashable]) -> list[Twins]:
    """Finds pictures that several records show.

    Args:
        parts: Name of a split to its records.
        contents: Record id to what its picture is known by, as from `contents_of`; records without one are passed
            over.

    Returns:
        One entry per picture, those in several splits first.
    """
    places = {name: place for place, name in enumerate(parts)}
    found: dict[Hashable, list[tuple[str, Record]]] = {}
    for name, records in parts.items():
        for record in records:
            if record.id in contents:
                found.setdefault(contents[record.id], []).append((name, record))
    twins = [
        Twins(
            ids=tuple(record.id for _, record in members),
            parts=tuple(sorted({name for name, _ in members}, key=places.__getitem__)),
            patients=len({record.patient for _, record in members}),
            agree=all(record.labels == members[0][1].labels for _, record in members),
        )
        for members in found.values()
        if len(members) > 1
    ]
    return sorted(twins, key=lambda twin: (-len(twin.parts), twin.ids))


def contents_of(prepared: PreparedImages) -> dict[str, int]:
    """Returns what tells the prepared pictures apart: two records have the same number if their pixels are equal.

    Copies of a file share one row of the cache. Files that differ elsewhere, as in a header, but hold the same picture
    have rows with the same checksum, and only these are compared.
    """
    rows = prepared.rows
    known: dict[tuple[int, int], int] = {}
    by_check: dict[int, list[int]] = {}
    first: list[int] = []
    for number, (place, check) in enumerate(zip(map(tuple, rows.places.tolist()), rows.checks.tolist(), strict=True)):
        if place not in known:
            alike = by_check.setdefault(check, [])
            same = next((other for other in alike if np.array_equal(rows[other], rows[number])), number)
            alike += [number] * (same == number)
            known[place] = same
        first.append(known[place])
    return {name: first[number] for name, number in prepared.numbers.items()}


def refuse_twins(twins: Sequence[Twins], *, test: str = "test") -> list[str]:
    """Judges pictures that stand several times.

    A picture in the test set and in another split makes numbers too good: that stops. One in training and
    validation, under two patients, or with two opinions about what it shows, is worth a sentence. Copies within a
    split that agree on everything are harmless.

    Returns:
        Sentences with counts alone, no id.

    Raises:
        DataError: With reason `shared-images`.
    """
    leaking = [twin for twin in twins if test in twin.parts and len(twin.parts) > 1]
    if leaking:
        raise DataError(
            f"{count(len(leaking), 'image')} of the {test} split {verb(len(leaking), 'is', 'are')} in another "
            f"split too, under another name; numbers measured on {verb(len(leaking), 'it', 'them')} would be too good: "
            f"take out one row of {verb(len(leaking), 'it', 'each')}",
            reason="shared-images",
        )
    across = sum(len(twin.parts) > 1 for twin in twins)
    people = sum(twin.patients > 1 for twin in twins)
    opinions = sum(not twin.agree for twin in twins)
    return [
        f"{count(number, 'image')} {agree(number, sentence)}"
        for number, sentence in (
            (across, "[is|are] in training and in validation under two names"),
            (people, "[is|are] listed for two patients: one person may be in two splits"),
            (opinions, "[has|have] two names with different labels"),
        )
        if number
    ]
