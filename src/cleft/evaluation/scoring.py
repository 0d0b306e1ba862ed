"""Results of predictions: every class, the mean over classes, and subgroups of patients, with intervals.

Multi-class predictions are scored on images that show exactly one class; present-absent predictions for each finding,
on the images where it is labelled.

Shapes: `N` images, `C` classes or findings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from cleft.data.counts import group_records
from cleft.evaluation import Bootstrap
from cleft.evaluation.metrics import (
    MIN_BOOTSTRAP_PATIENTS,
    RANKING_METRICS,
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

HEADLINE_METRICS = ("accuracy", "auc")
AGE_BANDS = ((0, "<40"), (40, "40-60"), (60, "60-80"), (80, "80+"))
"""First year and name of each age band."""


class Predictions(NamedTuple):
    """Scores of a model and true labels."""

    scores: Floats
    """`[N, C]`. Multi-class: logits; the highest is the predicted class. Present-absent: log-odds; above zero the
    finding is predicted as present."""
    truth: Floats
    """Multi-class: class index of each image, `[N]`. Present-absent: 1 present, 0 absent, NaN unknown, `[N, C]`."""
    patients: Sequence[str]
    """Patient of each image, `[N]`."""

    @property
    def multi_class(self) -> bool:
        """Whether each image has one class."""
        return self.truth.ndim == 1


class Measure(NamedTuple):
    """A metric before it is estimated."""

    metric: str
    statistic: Statistic | None
    rows: Flags
    """Images it is computed on, `[N]` bool."""
    reason: str | None = None
    """Why there is no statistic, or a remark on the value."""


def score_classes(
    scores: Floats,
    truth: NDArray[np.intp],
    classes: Sequence[str],
    patients: Sequence[str],
    bootstrap: Bootstrap = Bootstrap(),
    *,
    predicted: NDArray[np.intp] | None = None,
    rule: str = "",
    note: str | None = None,
) -> tuple[Result, ...]:
    """Accuracy and one-vs-rest ranking metrics of images that show exactly one class.

    Args:
        scores: One-vs-rest score of each class, `[N, C]`.
        truth: Class of each image, `[N]`.
        classes: Names of the classes, `[C]`.
        patients: Patient of each image, `[N]`.
        bootstrap: How intervals are estimated.
        predicted: Predicted class of each image; by default that of the highest score.
        rule: Name of a baseline, put in front of each metric.
        note: Remark on every metric.

    Returns:
        `accuracy`, then `auc` (mean over the classes that occur) and `auc/<class>`, and so for all of
        `RANKING_METRICS`.

    Raises:
        NumericsError: If a score is not finite.
    """
    measures = [_with_note(each, note) for each in _class_measures(scores, truth, classes, predicted)]
    return estimate(measures, patients, bootstrap, rule)


def score_findings(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    patients: Sequence[str],
    bootstrap: Bootstrap = Bootstrap(),
    *,
    rule: str = "",
    notes: Mapping[str, str | None] = MappingProxyType({}),
) -> tuple[Result, ...]:
    """Accuracy and ranking metrics of each finding, present against absent, on the images labelled for it.

    Args:
        scores: Above zero if the finding is predicted as present, `[N, C]`.
        labels: 1 present, 0 absent, NaN unknown, `[N, C]`.
        findings: Names of the findings, `[C]`.
        patients: Patient of each image, `[N]`.
        bootstrap: How intervals are estimated.
        rule: Name of a baseline, put in front of each metric.
        notes: Remark on the metrics of a finding.

    Returns:
        `accuracy` (mean over the findings for which it is defined) and `accuracy/<finding>`, and so for all of
        `RANKING_METRICS`.

    Raises:
        NumericsError: If a score is not finite.
    """
    return estimate(_finding_measures(scores, labels, findings, notes), patients, bootstrap, rule)


def classification_measures(
    predictions: Predictions,
    classes: Sequence[str],
    *,
    rows: Flags | None = None,
    rankings: Collection[str] = RANKING_METRICS,
) -> list[Measure]:
    """The metrics of `score_classes` or `score_findings`, before they are estimated.

    Args:
        predictions: Predictions on `N` images.
        classes: Names of the classes or findings, `[C]`.
        rows: Images to score, `[N]` bool; by default all.
        rankings: Which of `RANKING_METRICS`.
    """
    if predictions.multi_class:
        truth, predicted = predictions.truth.astype(np.intp), predictions.scores.argmax(axis=1)
        odds = log_odds(predictions.scores)
        return _class_measures(odds, truth, classes, predicted, rows=rows, rankings=rankings)
    labels = predictions.truth if rows is None else np.where(rows[:, None], predictions.truth, np.nan)
    return _finding_measures(predictions.scores, labels, classes, rankings=rankings)


def log_odds(logits: Floats) -> Floats:
    """Logarithm of each class's softmax odds, `[N, C]`: ranks like the probability, without rounding to 1."""
    odds = np.empty_like(logits)
    for column in range(logits.shape[1]):
        odds[:, column] = logits[:, column] - np.asarray(logsumexp(np.delete(logits, column, axis=1), axis=1))
    return odds


def difference(metric: str, first: Measure, second: Measure) -> Measure:
    """First metric minus second, on the images of either."""
    rows = first.rows | second.rows
    if first.statistic is None or second.statistic is None:
        reasons = [each.reason for each in (first, second) if each.statistic is None and each.reason]
        return Measure(metric, None, rows, "; ".join(dict.fromkeys(reasons)))
    minuend, subtrahend = _on_rows(first, rows), _on_rows(second, rows)
    reasons = [each.reason for each in (first, second) if each.reason]
    reason = "; ".join(dict.fromkeys(reasons)) or None
    return Measure(metric, lambda counts: minuend(counts) - subtrahend(counts), rows, reason)


def estimate(
    measures: Sequence[Measure], patients: Sequence[str], bootstrap: Bootstrap = Bootstrap(), rule: str = ""
) -> tuple[Result, ...]:
    """Values and intervals in the order given; metrics on the same images share their resamples.

    Args:
        measures: Metrics to estimate.
        patients: Patient of each image, `[N]`.
        bootstrap: How intervals are estimated.
        rule: Put in front of each metric.
    """
    results: dict[int, Result] = {}
    for places in group_by_images(measures):
        owners = [patient for patient, scored in zip(patients, measures[places[0]].rows, strict=True) if scored]
        defined = [(place, each) for place in places if (each := measures[place].statistic) is not None]
        bounds = intervals([each for _, each in defined], owners, resamples=bootstrap.resamples, seed=bootstrap.seed)
        values = {place: value_of(each, len(owners)) for place, each in defined}
        interval_of = dict(zip(values, bounds, strict=True))
        for place in places:
            interval, remark = interval_of.get(place, Interval(None))
            results[place] = Result(
                metric=f"{rule}{measures[place].metric}",
                value=values.get(place),
                interval=interval,
                images=len(owners),
                patients=len(set(owners)),
                reason="; ".join(sentence for sentence in (measures[place].reason, remark) if sentence) or None,
            )
    return tuple(results[place] for place in range(len(measures)))


def group_by_images(measures: Sequence[Measure]) -> list[list[int]]:
    """Positions of the metrics that are computed on the same images."""
    groups: dict[bytes, list[int]] = {}
    for place, measure in enumerate(measures):
        groups.setdefault(measure.rows.tobytes(), []).append(place)
    return list(groups.values())


def _class_measures(
    scores: Floats,
    truth: NDArray[np.intp],
    classes: Sequence[str],
    predicted: NDArray[np.intp] | None = None,
    *,
    rows: Flags | None = None,
    rankings: Collection[str] = RANKING_METRICS,
) -> list[Measure]:
    scored = np.ones(len(truth), dtype=bool) if rows is None else rows
    highest = scores.argmax(axis=1) if predicted is None else predicted
    by_class = [_ranking_measures(name, scores[:, c], truth == c, scored) for c, name in enumerate(classes)]
    measures = [Measure("accuracy", accuracy((highest == truth)[scored]), scored)]
    for metric in rankings:
        each = [ranking[metric] for ranking in by_class]
        measures += [_mean(metric, each), *each]
    return measures


def _finding_measures(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    notes: Mapping[str, str | None] = MappingProxyType({}),
    *,
    rankings: Collection[str] = RANKING_METRICS,
) -> list[Measure]:
    by_finding: list[dict[str, Measure]] = []
    for column, name in enumerate(findings):
        known = ~np.isnan(labels[:, column])
        correct = (scores[known, column] > 0) == (labels[known, column] == 1)
        statistic = accuracy(correct) if known.any() else None
        measure = Measure(f"accuracy/{name}", statistic, known, _why_unlabelled(known, name))
        ranked = _ranking_measures(name, scores[:, column], labels[:, column] == 1, known)
        by_finding.append({"accuracy": measure, **ranked})
    measures: list[Measure] = []
    for metric in ("accuracy", *rankings):
        each = [finding[metric] for finding in by_finding]
        noted = [_with_note(measure, notes.get(name)) for measure, name in zip(each, findings, strict=True)]
        measures += [_mean(metric, each), *noted]
    return measures


def _ranking_measures(name: str, scores: Floats, positive: Flags, known: Flags) -> dict[str, Measure]:
    """Ranking metrics of one class on the images labelled for it."""
    statistics = ranking_statistics(scores[known], positive[known])
    shown = positive[known]
    reason = _why_unlabelled(known, name)
    if reason is None and not shown.any():
        reason = f"no image shows {name}"
    elif reason is None and shown.all():
        reason = f"every image shows {name}"
    return {
        metric: Measure(f"{metric}/{name}", None if reason else cache_last(statistic), known, reason)
        for metric, statistic in statistics.items()
    }


def _why_unlabelled(known: Flags, name: str) -> str | None:
    return None if known.any() else f"no image is labelled for {name}"


def _with_note(measure: Measure, note: str | None) -> Measure:
    """Puts a remark in front of the reason of a metric, if it has a value."""
    if measure.statistic is None or note is None:
        return measure
    return measure._replace(reason=f"{note}; {measure.reason}" if measure.reason else note)


def _mean(metric: str, measures: Sequence[Measure]) -> Measure:
    """Mean over the metrics that are defined; the reason has their number."""
    defined = [measure for measure in measures if measure.statistic is not None]
    rows = np.logical_or.reduce([measure.rows for measure in defined or measures])
    missing = "; ".join(measure.reason for measure in measures if measure.reason)
    if not defined:
        return Measure(metric, None, rows, missing)
    reason = f"mean over {len(defined)} of {len(measures)} classes: {missing}" if missing else None
    return Measure(metric, mean_of([_on_rows(measure, rows) for measure in defined]), rows, reason)


def _on_rows(measure: Measure, rows: Flags) -> Statistic:
    """The statistic of a metric for counts of more images than it is computed on."""
    statistic, columns = measure.statistic, np.flatnonzero(measure.rows[rows])
    assert statistic is not None
    if len(columns) == int(rows.sum()):
        return statistic

    def narrowed(counts: Floats) -> Floats:
        return statistic(counts[:, columns])

    return narrowed


class _Group(NamedTuple):
    name: str
    rows: Flags
    patients: int


def age_band(age: float | None) -> str | None:
    """Name of the band of an age in years; the first year belongs to the band.

    Example:
        >>> age_band(39.9), age_band(40), age_band(80), age_band(None)
        ('<40', '40-60', '80+', None)
    """
    return None if age is None else next(name for first, name in reversed(AGE_BANDS) if age >= first)


SUBGROUPS: dict[str, Callable[[Record], str | None]] = {
    "sex": lambda record: record.sex,
    "age": lambda record: age_band(record.age),
    "view": lambda record: record.view,
    "scanner": lambda record: record.scanner,
}
"""Attributes by which results are broken down."""


def subgroup_results(
    predictions: Predictions,
    records: Sequence[Record],
    classes: Sequence[str],
    bootstrap: Bootstrap = Bootstrap(),
    *,
    min_patients: int = MIN_PATIENTS,
) -> tuple[Subgroups, ...]:
    """Accuracy and AUC of each subgroup, and the gap between the best and the worst.

    Args:
        predictions: Predictions of a model.
        records: Their images, in the same order.
        classes: Names of the classes or findings.
        bootstrap: How intervals are estimated.
        min_patients: Patients below which a group is left out: its results would describe individuals.

    Returns:
        One entry for each of `SUBGROUPS` with at least two groups.
    """
    subgroups: list[Subgroups] = []
    for attribute, key in SUBGROUPS.items():
        named = group_records(records, key)
        number_of = {name: number for number, name in enumerate(named)}
        group_of = np.array([number_of.get(key(record) or "", -1) for record in records])
        groups = [
            _Group(name, group_of == number, len({record.patient for record in members}))
            for number, (name, members) in enumerate(named.items())
        ]
        large = [group for group in groups if group.patients >= min_patients]
        if attribute == "age":
            large.sort(key=lambda group: [name for _, name in AGE_BANDS].index(group.name))
        if len(large) < 2:
            continue
        unknown = sum(1 for record in records if key(record) is None)
        measures = {group.name: _headline_measures(predictions, classes, group.rows) for group in large}
        subgroups.append(
            Subgroups(
                by=attribute,
                groups=tuple(
                    Subgroup(
                        name=group.name,
                        images=int(group.rows.sum()),
                        patients=group.patients,
                        results=estimate(measures[group.name], predictions.patients, bootstrap),
                    )
                    for group in large
                ),
                gaps=tuple(
                    _gap(metric, [(group, measures[group.name][place]) for group in large], predictions, bootstrap)
                    for place, metric in enumerate(HEADLINE_METRICS)
                ),
                left_out=len(records) - unknown - sum(int(group.rows.sum()) for group in large),
                unknown=unknown,
            )
        )
    return tuple(subgroups)


def _headline_measures(predictions: Predictions, classes: Sequence[str], rows: Flags) -> list[Measure]:
    measures = classification_measures(predictions, classes, rows=rows, rankings=("auc",))
    return [next(each for each in measures if each.metric == metric) for metric in HEADLINE_METRICS]


def _gap(
    metric: str, groups: Sequence[tuple[_Group, Measure]], predictions: Predictions, bootstrap: Bootstrap
) -> Result:
    """Best group minus worst group, with the interval of the difference between these two."""
    large = [(group, measure) for group, measure in groups if group.patients >= MIN_BOOTSTRAP_PATIENTS]
    # A mean over fewer classes is not comparable: only groups with positives and negatives of every class count.
    complete = [
        (group, measure) for group, measure in large if measure.statistic is not None and measure.reason is None
    ]
    if len(complete) < 2:
        reason = (
            f"fewer than two groups have {MIN_BOOTSTRAP_PATIENTS} patients"
            if len(large) < 2
            else "fewer than two groups have positives and negatives of every class"
        )
        every = np.logical_or.reduce([group.rows for group, _ in groups])
        return estimate([Measure(metric, None, every, reason)], predictions.patients, bootstrap)[0]
    values = [
        value_of(measure.statistic, int(group.rows.sum())) or 0.0 for group, measure in complete if measure.statistic
    ]
    best, worst = int(np.argmax(values)), int(np.argmin(values))
    gap = difference(metric, complete[best][1], complete[worst][1])
    names = f"best {complete[best][0].name}, worst {complete[worst][0].name}"
    return estimate([gap._replace(reason=names)], predictions.patients, bootstrap)[0]
