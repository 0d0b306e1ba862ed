"""Counts records by what is known of them: labels, views, ages, captions, and how often findings are present where.

Records with equal labels share one mapping, so whatever concerns labels is counted once per distinct mapping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from cleft.privacy import MIN_PATIENTS
from cleft.types import Captions, Groups, Record, Tally

_MOST_GROUPS = 8
_DECADE = 10


def count_labels(records: Sequence[Record], findings: Sequence[str]) -> dict[str, tuple[int, int, int, int]]:
    """Returns for each finding how many images have 1, 0, -1 and nothing."""
    mappings = {id(record.labels): record.labels for record in records}
    times = Counter(id(record.labels) for record in records)
    counts: dict[str, tuple[int, int, int, int]] = {}
    for name in findings:
        seen: Counter[float | None] = Counter()
        for key, mapping in mappings.items():
            seen[mapping.get(name)] += times[key]
        counts[name] = (seen[1.0], seen[0.0], seen[-1.0], seen[None])
    return counts


def single_class(labels: Mapping[str, float], classes: Sequence[str]) -> int | None:
    """Returns the position of the one class that is present.

    None where none or several are present: such an image has no single right answer, and taking the largest
    label would call it the first class.

    Example:
        >>> single_class({"Edema": 1.0, "Fracture": 0.0}, ["Fracture", "Edema"])
        1
        >>> single_class({"Edema": 0.0}, ["Fracture", "Edema"]) is None
        True
    """
    present = [i for i, name in enumerate(classes) if labels.get(name) == 1]
    return present[0] if len(present) == 1 else None


def tally(name: str, values: Iterable[str | None]) -> Tally | None:
    """Counts values, the most frequent first and unknown ones last; None where none is known.

    Example:
        >>> tally("view", ["PA", None, "AP", "AP"]).counts
        (('AP', 2), ('PA', 1), ('unknown', 1))
    """
    counts = Counter(values)
    unknown = counts.pop(None, 0)
    if not counts:
        return None
    known = sorted(((value or "", number) for value, number in counts.items()), key=lambda pair: (-pair[1], pair[0]))
    return Tally(name=name, counts=(*known, *([("unknown", unknown)] if unknown else [])))


def tally_ages(ages: Iterable[float | None]) -> Tally | None:
    """Counts ages by decade, empty decades between others included; None where none is known."""
    counts = Counter(None if age is None else int(age // _DECADE) for age in ages)
    unknown = counts.pop(None, 0)
    if not counts:
        return None
    decades = range(min(key for key in counts if key is not None), max(key for key in counts if key is not None) + 1)
    known = [(f"{decade * _DECADE}–{decade * _DECADE + _DECADE - 1}", counts[decade]) for decade in decades]
    return Tally(name="age", counts=(*known, *([("unknown", unknown)] if unknown else [])), ordered=True)


def share_present(
    name: str, groups: Mapping[str, Sequence[Record]], findings: Sequence[str], *, fewest: int = MIN_PATIENTS
) -> Groups:
    """Returns how often each finding is present among the images of each group.

    Args:
        name: What the groups are told apart by.
        groups: Name to records, uncertain labels decided.
        findings: To count.
        fewest: Patients that a group needs for its shares to be told.
    """
    patients = [len({record.patient for record in records}) for records in groups.values()]
    shares: dict[str, list[float | None]] = {finding: [] for finding in findings}
    for records, people in zip(groups.values(), patients, strict=True):
        present = count_labels(records, findings)
        for finding in findings:
            told = records and people >= fewest
            shares[finding].append(present[finding][0] / len(records) if told else None)
    return Groups(
        name=name,
        groups=tuple(groups),
        images=tuple(map(len, groups.values())),
        patients=tuple(patients),
        shares={finding: tuple(values) for finding, values in shares.items()},
    )


def group_by(records: Iterable[Record], key: Callable[[Record], str | None]) -> dict[str, list[Record]]:
    """Returns records by a property, the largest group first, at most eight; those without it belong to none."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        value = key(record)
        if value is not None:
            groups.setdefault(value, []).append(record)
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return dict(ranked[:_MOST_GROUPS])


def count_captions(records: Sequence[Record], written: int, *, most: int = 5) -> Captions:
    """Counts the sentences of records that have one.

    Args:
        records: After `add_captions`.
        written: How many of them stand in the table.
        most: How many of the most frequent to name. One that fewer than five patients share is not named: it may
            be a report.
    """
    counts = Counter(record.caption or "" for record in records)
    common: list[tuple[str, int]] = []
    patients: dict[str, set[str]] = {text: set() for text, _ in counts.most_common(most)}
    for record in records:
        if record.caption in patients:
            patients[record.caption].add(record.patient)
    for text, number in counts.most_common(most):
        if len(patients[text]) >= MIN_PATIENTS:
            common.append((text, number))
    return Captions(
        distinct=len(counts),
        from_table=written,
        longest=max((len(text.split()) for text in counts), default=0),
        common=tuple(common),
    )
