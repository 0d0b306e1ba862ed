"""Scores and labels to named results: every class, their mean, and the floors on the same images.

Two questions can be asked of an image. *Multi-class*: which one of these classes is it? It is put only to
images that show exactly one of them. *Present-absent*: is this finding there? It is put once per finding, to
every image where that is known.

Shapes: `N` images, `C` classes or findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from cleft.evaluation.floors import ap_rule, majority_scores, view_rule, why_no_view
from cleft.evaluation.metrics import (
    SPECIFICITIES,
    Flags,
    Floats,
    Interval,
    Statistic,
    accuracy,
    intervals,
    mean_of,
    once,
    ranking_statistics,
    value_of,
)
from cleft.results import Result


class Draws(NamedTuple):
    """How intervals are drawn."""

    resamples: int = 1_000
    seed: int = 0


USUAL_DRAWS = Draws()


RANKINGS = ("auc", "auprc", *(f"sensitivity@{each:.2f}" for each in SPECIFICITIES))
"""What is measured of the ranking by a class's scores, in the order of the results."""


class Scored(NamedTuple):
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
    draws: Draws = USUAL_DRAWS,
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
    return measured(
        [_noted(each, note) for each in _of_classes(scores, truth, classes, answers)], patients, draws, rule
    )


def score_findings(
    scores: Floats,
    labels: Floats,
    findings: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
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
    return measured(_of_findings(scores, labels, findings, notes), patients, draws, rule)


def measures_of(
    scored: Scored, classes: Sequence[str], *, rows: Flags | None = None, rankings: Sequence[str] = RANKINGS
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


def class_floors(
    truth: NDArray[np.intp],
    views: Sequence[str | None],
    classes: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
) -> tuple[Result, ...]:
    """What the majority class and the AP-view rule reach on the images of `score_classes`."""
    counts = [int(index) for index in truth]
    majority = majority_scores(counts, len(classes))
    floors = score_classes(majority, truth, classes, patients, draws, rule="majority-class/")
    scores, note = view_rule(counts, views, classes)
    if scores is None:
        return (*floors, *_unmeasured("ap-view/", note, len(truth), patients))
    return (*floors, *score_classes(scores, truth, classes, patients, draws, rule="ap-view/", note=note))


def finding_floors(
    labels: Floats,
    views: Sequence[str | None],
    findings: Sequence[str],
    patients: Sequence[str],
    draws: Draws = USUAL_DRAWS,
) -> tuple[Result, ...]:
    """What the majority answer and the AP-view rule, finding by finding, reach on the images of `score_findings`."""
    present = (labels == 1).sum(axis=0) > (labels == 0).sum(axis=0)
    majority = np.tile(np.where(present, 1.0, -1.0), (len(labels), 1))
    floors = score_findings(majority, labels, findings, patients, draws, rule="majority-class/")
    silent = why_no_view(views)
    if silent is not None:
        return (*floors, *_unmeasured("ap-view/", silent, len(labels), patients))
    rules = {
        name: ap_rule(labels[:, c] == 1, views, name, known=~np.isnan(labels[:, c])) for c, name in enumerate(findings)
    }
    by_view = np.stack([scores for scores, _ in rules.values()], axis=1)
    notes = {name: note for name, (_, note) in rules.items()}
    return (*floors, *score_findings(by_view, labels, findings, patients, draws, rule="ap-view/", notes=notes))


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
        metric: Measure(f"{metric}/{name}", None if reason else once(statistic), known, reason)
        for metric, statistic in statistics.items()
    }


def _why_unknown(known: Flags, name: str) -> str | None:
    return None if known.any() else f"no image says whether {name} is there"


def measured(
    measures: Sequence[Measure], patients: Sequence[str], draws: Draws = USUAL_DRAWS, rule: str = ""
) -> tuple[Result, ...]:
    """Values and intervals, in the order given; numbers that rest on the same images share their resamples.

    Args:
        measures: What to measure.
        patients: Patient of each image, `[N]`.
        draws: How intervals are drawn.
        rule: Put in front of each metric.
    """
    found: dict[int, Result] = {}
    for places in same_images(measures):
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


def same_images(measures: Sequence[Measure]) -> list[list[int]]:
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


def _unmeasured(rule: str, reason: str | None, images: int, patients: Sequence[str]) -> tuple[Result, ...]:
    people = len(set(patients))
    return tuple(
        Result(metric=f"{rule}{metric}", value=None, images=images, patients=people, reason=reason)
        for metric in ("accuracy", *RANKINGS)
    )
