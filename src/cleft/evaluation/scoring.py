"""Scores and labels to named results: every class, their mean, and the floors on the same images.

Two questions can be asked of an image. *Multi-class*: which one of these classes is it? It is put only to
images that show exactly one of them. *Present-absent*: is this finding there? It is put once per finding, to
every image where that is known.

Shapes: `N` images, `C` classes or findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from cleft.data.counts import group_by
from cleft.evaluation.metrics import MIN_BOOTSTRAP_PATIENTS as FEWEST_DRAWN
from cleft.evaluation.metrics import (
    SPECIFICITIES,
    Flags,
    Floats,
    Interval,
    Statistic,
    accuracy,
    cache_last,
    intervals,
    mean_of,
    ranking_statistics,
    value_of,
)
from cleft.privacy import MIN_PATIENTS
from cleft.results import Result, Subgroup, Subgroups
from cleft.types import Record


class Bootstrap(NamedTuple):
    """How intervals are drawn."""

    resamples: int = 1_000
    seed: int = 0


USUAL_DRAWS = Bootstrap()


RANKINGS = ("auc", "auprc", *(f"sensitivity@{each:.2f}" for each in SPECIFICITIES))
"""What is measured of the ranking by a class's scores, in the order of the results."""


class Predictions(NamedTuple):
    """What a model answered of each image, and what is true: all that numbers are made of."""

    scores: Floats
    """`[N, C]`. Multi-class: logits, the highest is the answer. Present-absent: log-odds, above zero where the finding
    is answered as present."""
    truth: Floats
    """Multi-class: the class of each image, `[N]`. Present-absent: 1 present, 0 absent, NaN not known, `[N, C]`."""
    patients: Sequence[str]
    """Patient of each image, `[N]`."""

    @property
    def multi_class(self) -> bool:
        """Which of the two questions was asked."""
        return self.truth.ndim == 1


class Measure(NamedTuple):
    """One number before it is measured."""

    metric: str
    statistic: Statistic | None
    rows: Flags
    """Images it rests on, `[N]` bool."""
    reason: str | None = None
    """Why there is no statistic, or what must be said beside the value."""


def score_classes(
    scores: Floats,
    truth: NDArray[np.intp],
    classes: Sequence[str],
    patients: Sequence[str],
    draws: Bootstrap = USUAL_DRAWS,
    *,
    answers: NDArray[np.intp] | None = None,
    rule: str = "",
    note: str | None = None,
) -> tuple[Result, ...]:
    """Accuracy, and the rankings one-vs-rest of each class and in the mean, for images that show exactly one class.

    Args:
        scores: One-vs-rest score of each class, `[N, C]`; higher where it is thought shown.
        truth: Class of each image, `[N]`.
        classes: Names of the classes, `[C]`.
        patients: Patient of each image, `[N]`.
        draws: How intervals are drawn.
        answers: Class each image was answered as; by default the one with the highest score.
        rule: Name of the floor these scores come from, put in front of each metric.
        note: A remark for every number.

    Returns:
        `accuracy`, then `auc` (mean over the classes that occur) and `auc/<class>`, and so for all of `RANKINGS`.

    Raises:
        NumericsError: If a score is not finite.
    """
    return estimate(
        [_noted(each, note) for each in _of_classes(scores, truth, classes, answers)], patients, draws, rule
    )


def score_findings(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    patients: Sequence[str],
    draws: Bootstrap = USUAL_DRAWS,
    *,
    rule: str = "",
    notes: Mapping[str, str | None] = MappingProxyType({}),
) -> tuple[Result, ...]:
    """Accuracy and the rankings of each finding, present against absent, over the images where that is known.

    Args:
        scores: Above zero where the finding is answered as present, `[N, C]`.
        labels: 1 present, 0 absent, NaN not known, `[N, C]`.
        findings: Names of the findings, `[C]`.
        patients: Patient of each image, `[N]`.
        draws: How intervals are drawn.
        rule: Name of the floor these scores come from, put in front of each metric.
        notes: Finding to a remark for its numbers.

    Returns:
        `accuracy` (mean over the findings that allow it) and `accuracy/<finding>`, and so for all of `RANKINGS`.

    Raises:
        NumericsError: If a score is not finite.
    """
    return estimate(_of_findings(scores, labels, findings, notes), patients, draws, rule)


def classification_measures(
    scored: Predictions, classes: Sequence[str], *, rows: Flags | None = None, rankings: Sequence[str] = RANKINGS
) -> list[Measure]:
    """What `score_classes` or `score_findings` measure of a model's answers, before it is measured.

    Args:
        scored: The answers, of `N` images.
        classes: Names of the classes or findings, `[C]`.
        rows: Images to look at, `[N]` bool; by default all.
        rankings: Which of `RANKINGS`.
    """
    if scored.multi_class:
        truth, answers = scored.truth.astype(np.intp), scored.scores.argmax(axis=1)
        return _of_classes(log_odds(scored.scores), truth, classes, answers, rows=rows, rankings=rankings)
    labels = scored.truth if rows is None else np.where(rows[:, None], scored.truth, np.nan)
    return _of_findings(scored.scores, labels, classes, rankings=rankings)


def log_odds(logits: Floats) -> Floats:
    """The logarithm of each class's softmax odds, `[N, C]`: it ranks as the probability does, without rounding to 1."""
    odds = np.empty_like(logits)
    for column in range(logits.shape[1]):
        odds[:, column] = logits[:, column] - np.asarray(logsumexp(np.delete(logits, column, axis=1), axis=1))
    return odds


def difference(metric: str, first: Measure, second: Measure) -> Measure:
    """The first number minus the second, on the images of either."""
    rows = first.rows | second.rows
    if first.statistic is None or second.statistic is None:
        reasons = [each.reason for each in (first, second) if each.statistic is None and each.reason]
        return Measure(metric, None, rows, "; ".join(dict.fromkeys(reasons)))
    one, other = _within(first, rows), _within(second, rows)
    reasons = [each.reason for each in (first, second) if each.reason]
    return Measure(metric, lambda counts: one(counts) - other(counts), rows, "; ".join(dict.fromkeys(reasons)) or None)


def _of_classes(
    scores: Floats,
    truth: NDArray[np.intp],
    classes: Sequence[str],
    answers: NDArray[np.intp] | None = None,
    *,
    rows: Flags | None = None,
    rankings: Sequence[str] = RANKINGS,
) -> list[Measure]:
    asked = np.ones(len(truth), dtype=bool) if rows is None else rows
    given = scores.argmax(axis=1) if answers is None else answers
    ranked = [_rankings(name, scores[:, c], truth == c, asked) for c, name in enumerate(classes)]
    found = [Measure("accuracy", accuracy((given == truth)[asked]), asked)]
    for metric in rankings:
        each = [ranking[metric] for ranking in ranked]
        found += [_mean(metric, each), *each]
    return found


def _of_findings(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    notes: Mapping[str, str | None] = MappingProxyType({}),
    *,
    rankings: Sequence[str] = RANKINGS,
) -> list[Measure]:
    numbers: list[dict[str, Measure]] = []
    for column, name in enumerate(findings):
        known = ~np.isnan(labels[:, column])
        right = (scores[known, column] > 0) == (labels[known, column] == 1)
        hits = accuracy(right) if known.any() else None
        number = Measure(f"accuracy/{name}", hits, known, _why_unknown(known, name))
        numbers.append({"accuracy": number, **_rankings(name, scores[:, column], labels[:, column] == 1, known)})
    found: list[Measure] = []
    for metric in ("accuracy", *rankings):
        each = [number[metric] for number in numbers]
        noted = [_noted(measure, notes.get(name)) for measure, name in zip(each, findings, strict=True)]
        found += [_mean(metric, each), *noted]
    return found


def _rankings(name: str, scores: Floats, positive: Flags, known: Flags) -> dict[str, Measure]:
    """The rankings of one class over the images where it is known."""
    statistics = ranking_statistics(scores[known], positive[known])
    shown = positive[known]
    reason = _why_unknown(known, name)
    if reason is None and not shown.any():
        reason = f"no image shows {name}"
    elif reason is None and shown.all():
        reason = f"every image shows {name}"
    return {
        metric: Measure(f"{metric}/{name}", None if reason else cache_last(statistic), known, reason)
        for metric, statistic in statistics.items()
    }


def _why_unknown(known: Flags, name: str) -> str | None:
    return None if known.any() else f"no image says whether {name} is there"


def estimate(
    measures: Sequence[Measure], patients: Sequence[str], draws: Bootstrap = USUAL_DRAWS, rule: str = ""
) -> tuple[Result, ...]:
    """Values and intervals, in the order given; numbers that rest on the same images share their resamples.

    Args:
        measures: What to measure.
        patients: Patient of each image, `[N]`.
        draws: How intervals are drawn.
        rule: Put in front of each metric.
    """
    found: dict[int, Result] = {}
    for places in group_by_images(measures):
        whose = [patient for patient, known in zip(patients, measures[places[0]].rows, strict=True) if known]
        defined = [(place, each) for place in places if (each := measures[place].statistic) is not None]
        bounds = intervals([each for _, each in defined], whose, resamples=draws.resamples, seed=draws.seed)
        values = {place: value_of(each, len(whose)) for place, each in defined}
        doubts = dict(zip(values, bounds, strict=True))
        for place in places:
            interval, doubt = doubts.get(place, Interval(None))
            found[place] = Result(
                metric=f"{rule}{measures[place].metric}",
                value=values.get(place),
                interval=interval,
                images=len(whose),
                patients=len(set(whose)),
                reason="; ".join(sentence for sentence in (measures[place].reason, doubt) if sentence) or None,
            )
    return tuple(found[place] for place in range(len(measures)))


def group_by_images(measures: Sequence[Measure]) -> list[list[int]]:
    """Places of the measures that rest on the same images, so that they can share resamples."""
    alike: dict[bytes, list[int]] = {}
    for place, measure in enumerate(measures):
        alike.setdefault(measure.rows.tobytes(), []).append(place)
    return list(alike.values())


def _noted(part: Measure, note: str | None) -> Measure:
    """The part with a remark in front of its own, where it has a value."""
    if part.statistic is None or note is None:
        return part
    return part._replace(reason=f"{note}; {part.reason}" if part.reason else note)


def _mean(metric: str, parts: Sequence[Measure]) -> Measure:
    """The mean over the parts that are defined; the reason says over how many of how many."""
    defined = [part for part in parts if part.statistic is not None]
    rows = np.logical_or.reduce([part.rows for part in defined or parts])
    missing = "; ".join(part.reason for part in parts if part.reason)
    if not defined:
        return Measure(metric, None, rows, missing)
    over = f"mean over {len(defined)} of {len(parts)} classes: {missing}" if missing else None
    return Measure(metric, mean_of([_within(part, rows) for part in defined]), rows, over)


def _within(part: Measure, rows: Flags) -> Statistic:
    """The part's statistic, asked with the counts of more images than it rests on."""
    statistic, columns = part.statistic, np.flatnonzero(part.rows[rows])
    assert statistic is not None
    if len(columns) == int(rows.sum()):
        return statistic

    def narrowed(counts: Floats) -> Floats:
        return statistic(counts[:, columns])

    return narrowed


AGES = ((0, "<40"), (40, "40-60"), (60, "60-80"), (80, "80+"))
"""First year of each band, and its name."""
HEADLINE_METRICS = ("accuracy", "auc")


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


def subgroup_results(
    scored: Predictions,
    records: Sequence[Record],
    classes: Sequence[str],
    draws: Bootstrap = USUAL_DRAWS,
    *,
    fewest: int = MIN_PATIENTS,
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
                        results=estimate(measures[group.name], scored.patients, draws),
                    )
                    for group in told
                ),
                gaps=tuple(
                    _gap(metric, [(group, measures[group.name][place]) for group in told], scored, draws)
                    for place, metric in enumerate(HEADLINE_METRICS)
                ),
                left_out=len(records) - unknown - sum(int(group.rows.sum()) for group in told),
                unknown=unknown,
            )
        )
    return tuple(found)


def _headlines(scored: Predictions, classes: Sequence[str], rows: Flags) -> list[Measure]:
    measures = classification_measures(scored, classes, rows=rows, rankings=("auc",))
    return [next(each for each in measures if each.metric == metric) for metric in HEADLINE_METRICS]


def _gap(metric: str, groups: Sequence[tuple[_Group, Measure]], scored: Predictions, draws: Bootstrap) -> Result:
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
        return estimate([Measure(metric, None, every, reason)], scored.patients, draws)[0]
    values = [
        value_of(measure.statistic, int(group.rows.sum())) or 0.0 for group, measure in whole if measure.statistic
    ]
    best, worst = int(np.argmax(values)), int(np.argmin(values))
    gap = difference(metric, whole[best][1], whole[worst][1])
    names = f"best {whole[best][0].name}, worst {whole[worst][0].name}"
    return estimate([gap._replace(reason=names)], scored.patients, draws)[0]
