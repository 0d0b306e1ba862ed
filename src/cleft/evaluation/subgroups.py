"""Numbers by sex, age, view and scanner, and how far the best group lies from the worst.

Groups of fewer than five patients are left out: such numbers say more of these people than of the model.

Shapes: `N` images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cleft.data.counts import FEWEST_PATIENTS, group_by
from cleft.evaluation.metrics import FEWEST_PATIENTS as FEWEST_DRAWN
from cleft.evaluation.metrics import Flags, value_of
from cleft.evaluation.scoring import USUAL_DRAWS, Draws, Measure, Scored, difference, measured, measures_of
from cleft.results import Result, Subgroup, Subgroups
from cleft.types import Record

AGES = ((0, "<40"), (40, "40-60"), (60, "60-80"), (80, "80+"))
"""First year of each band, and its name."""
HEADLINES = ("accuracy", "auc")


class _Group(NamedTuple):
    name: str
    rows: Flags
    patients: int


def age_band(age: float | None) -> str | None:
    """The band an age falls in; its first year belongs to it.

    Example:
        >>> age_band(39.9), age_band(40), age_band(80), age_band(None)
        ('<40', '40-60', '80+', None)
    """
    return None if age is None else next(name for first, name in reversed(AGES) if age >= first)


KINDS: dict[str, Callable[[Record], str | None]] = {
    "sex": lambda record: record.sex,
    "age": lambda record: age_band(record.age),
    "view": lambda record: record.view,
    "scanner": lambda record: record.scanner,
}
"""What groups are told apart by."""


def by_subgroup(
    scored: Scored,
    records: Sequence[Record],
    classes: Sequence[str],
    draws: Draws = USUAL_DRAWS,
    *,
    fewest: int = FEWEST_PATIENTS,
) -> tuple[Subgroups, ...]:
    """Measures accuracy and AUC of each group, and the gap between the best and the worst.

    Args:
        scored: A model's answers.
        records: The images they are about, in the same order.
        classes: Names of the classes or findings.
        draws: How intervals are drawn.
        fewest: Patients a group needs to be told.

    Returns:
        One entry for each of `KINDS` of which two groups or more can be told.
    """
    found: list[Subgroups] = []
    for kind, key in KINDS.items():
        named = group_by(records, key)
        place = {name: number for number, name in enumerate(named)}
        group_of = np.array([place.get(key(record) or "", -1) for record in records])
        groups = [
            _Group(name, group_of == number, len({record.patient for record in members}))
            for number, (name, members) in enumerate(named.items())
        ]
        told = [group for group in groups if group.patients >= fewest]
        if kind == "age":
            told.sort(key=lambda group: [name for _, name in AGES].index(group.name))
        if len(told) < 2:
            continue
        unknown = sum(1 for record in records if key(record) is None)
        measures = {group.name: _headlines(scored, classes, group.rows) for group in told}
        found.append(
            Subgroups(
                by=kind,
                groups=tuple(
                    Subgroup(
                        name=group.name,
                        images=int(group.rows.sum()),
                        patients=group.patients,
                        results=measured(measures[group.name], scored.patients, draws),
                    )
                    for group in told
                ),
                gaps=tuple(
                    _gap(metric, [(group, measures[group.name][place]) for group in told], scored, draws)
                    for place, metric in enumerate(HEADLINES)
                ),
                left_out=len(records) - unknown - sum(int(group.rows.sum()) for group in told),
                unknown=unknown,
            )
        )
    return tuple(found)


def _headlines(scored: Scored, classes: Sequence[str], rows: Flags) -> list[Measure]:
    measures = measures_of(scored, classes, rows=rows, rankings=("auc",))
    return [next(each for each in measures if each.metric == metric) for metric in HEADLINES]


def _gap(metric: str, groups: Sequence[tuple[_Group, Measure]], scored: Scored, draws: Draws) -> Result:
    """The best group minus the worst, as they were found: the interval is that of the difference of these two."""
    fit = [(group, measure) for group, measure in groups if group.patients >= FEWEST_DRAWN]
    # A mean over fewer classes is another number: only groups that show all of them are held against each other.
    whole = [(group, measure) for group, measure in fit if measure.statistic is not None and measure.reason is None]
    every = np.logical_or.reduce([group.rows for group, _ in groups])
    if len(whole) < 2:
        reason = (
            f"fewer than two groups have {FEWEST_DRAWN} patients"
            if len(fit) < 2
            else "fewer than two groups show every class, and deny it too"
        )
        return measured([Measure(metric, None, every, reason)], scored.patients, draws)[0]
    values = [
        value_of(measure.statistic, int(group.rows.sum())) or 0.0 for group, measure in whole if measure.statistic
    ]
    best, worst = int(np.argmax(values)), int(np.argmin(values))
    gap = difference(metric, whole[best][1], whole[worst][1])
    names = f"best {whole[best][0].name}, worst {whole[worst][0].name}"
    return measured([gap._replace(reason=names)], scored.patients, draws)[0]
