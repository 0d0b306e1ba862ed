"""Counts over records (labels, views, ages, captions, prevalence of findings in groups), and the progress bar.

Records with equal labels share one mapping, so labels are counted once per distinct mapping.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cleft.privacy import MIN_PATIENTS
from cleft.types import Captions, Groups, Record, Tally

_MOST_GROUPS = 8
_DECADE = 10


def count_labels(records: Sequence[Record], findings: Sequence[str]) -> dict[str, tuple[int, int, int, int]]:
    """Return for each finding the number of images with label 1, 0, -1 and none."""
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
    """Return the index of the only class that is present; None if none or several are.

    An image with several present classes has no single true class; the largest label would select the first.

    Example:
        >>> single_class({"Edema": 1.0, "Fracture": 0.0}, ["Fracture", "Edema"])
        1
        >>> single_class({"Edema": 0.0}, ["Fracture", "Edema"]) is None
        True
    """
    present = [i for i, name in enumerate(classes) if labels.get(name) == 1]
    return present[0] if len(present) == 1 else None


def count_values(name: str, values: Iterable[str | None]) -> Tally | None:
    """Count values, the most frequent first and unknown ones last; None if all are unknown.

    Example:
        >>> count_values("view", ["PA", None, "AP", "AP"]).counts
        (('AP', 2), ('PA', 1), ('unknown', 1))
    """
    counts = Counter(values)
    unknown = counts.pop(None, 0)
    if not counts:
        return None
    known = sorted(((value or "", number) for value, number in counts.items()), key=lambda pair: (-pair[1], pair[0]))
    return Tally(name=name, counts=(*known, *([("unknown", unknown)] if unknown else [])))


def count_ages(ages: Iterable[float | None]) -> Tally | None:
    """Count ages by decade, including empty decades in between; None if all are unknown."""
    counts = Counter(None if age is None else int(age // _DECADE) for age in ages)
    unknown = counts.pop(None, 0)
    if not counts:
        return None
    decades = range(min(key for key in counts if key is not None), max(key for key in counts if key is not None) + 1)
    known = [(f"{decade * _DECADE}–{decade * _DECADE + _DECADE - 1}", counts[decade]) for decade in decades]
    return Tally(name="age", counts=(*known, *([("unknown", unknown)] if unknown else [])), ordered=True)


def prevalence_by_group(
    name: str, groups: Mapping[str, Sequence[Record]], findings: Sequence[str], *, min_patients: int = MIN_PATIENTS
) -> Groups:
    """Return the share of images of each group in which each finding is present.

    Args:
        name: What the groups differ in.
        groups: Group name to records, with uncertain labels resolved.
        findings: Findings to count.
        min_patients: Groups with fewer patients get no shares, which would describe these people rather than the data.
    """
    patients = [len({record.patient for record in records}) for records in groups.values()]
    shares: dict[str, list[float | None]] = {finding: [] for finding in findings}
    for records, number in zip(groups.values(), patients, strict=True):
        present = count_labels(records, findings)
        for finding in findings:
            is_shown = records and number >= min_patients
            shares[finding].append(present[finding][0] / len(records) if is_shown else None)
    return Groups(
        name=name,
        groups=tuple(groups),
        images=tuple(map(len, groups.values())),
        patients=tuple(patients),
        shares={finding: tuple(values) for finding, values in shares.items()},
    )


def group_records(records: Iterable[Record], key: Callable[[Record], str | None]) -> dict[str, list[Record]]:
    """Return records by a property, the largest group first, at most eight; records without it are left out."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        value = key(record)
        if value is not None:
            groups.setdefault(value, []).append(record)
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return dict(ranked[:_MOST_GROUPS])


def count_captions(records: Sequence[Record], written: int, *, most: int = 5) -> Captions:
    """Count captions.

    Args:
        records: Records after `add_captions`.
        written: Number of captions from the table.
        most: How many of the most frequent captions to return. A caption shared by fewer than five patients is not
            returned: it may be a report.
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


@contextmanager
def progress_bar(what: str, total: int, *, enabled: bool) -> Generator[Callable[[], None]]:
    """Yield a function to call once per item; it does nothing if disabled or the error stream is not a terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Show the current rate, or nothing before there is one."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")
