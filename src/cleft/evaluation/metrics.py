"""Numbers that say how well scores fit labels, and how sure that is; no model in sight.

A number is a *statistic*: a function of how often each image counts. Counting every image once gives
the value; counting each as often as a resample of patients drew it gives one draw of the bootstrap. So
value and interval come from the same lines. A statistic answers NaN where it is not defined, and what
leaves this file says None and why.

Shapes: `N` images, `C` classes, `R` resamples, `P` patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cleft.errors import NumericsError
from cleft.grammar import count, share, verb

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]
"""From how often each image counts, `[R, N]`, to one value per row, `[R]`; NaN where it is not defined."""
Tally = Callable[[Floats], tuple[Floats, Floats]]
"""From how often each image counts, `[R, N]`, to positives and negatives of each distinct score, rising, `[R, K]`."""
Answer = TypeVar("Answer")

SPECIFICITIES = (0.90, 0.95)
"""At which sensitivity is measured: one false alarm in ten, or in twenty, of those who have nothing."""

MIN_BOOTSTRAP_PATIENTS = 20
"""Below this a bootstrap interval is too narrow to be believed (reliability H9)."""
MAX_UNDEFINED = 0.01
"""Share of resamples that may lack a class before the interval is withheld."""
_CELLS = 1_000_000  # numbers of one block of resamples: 8 MB, of which every class keeps two more


class Interval(NamedTuple):
    """A 95 % bootstrap interval, or why there is none."""

    bounds: tuple[float, float] | None
    reason: str | None = None


def accuracy(hits: ArrayLike) -> Statistic:
    """Share of images answered rightly.

    Args:
        hits: Whether each image was answered rightly, `[N]`.
    """
    right = np.asarray(hits, dtype=np.float64)

    def statistic(counts: Floats) -> Floats:
        return _ratio(counts @ right, counts.sum(axis=1))

    return statistic


def auc(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    """Area under the ROC curve: how often a positive outscores a negative, ties counting half.

    It is 0.5 when all scores are equal, and not defined without both a positive and a negative.

    Args:
        scores: Higher where the class is thought present, `[N]`.
        positive: Whether it is, `[N]` bool.

    Raises:
        NumericsError: If a score is not finite.
    """
    return _auc(_tally(scores, positive))


def _auc(tally: Tally) -> Statistic:
    def statistic(counts: Floats) -> Floats:
        present, absent = tally(counts)
        below = np.cumsum(absent, axis=1) - absent
        wins = (present * (below + absent / 2)).sum(axis=1)
        return _ratio(wins, present.sum(axis=1) * absent.sum(axis=1))

    return statistic


def average_precision(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    """Area under the precision-recall curve as steps: the mean, over the positives, of the precision at their score.

    It is the share of positives when all scores are equal, and not defined without a positive.

    Args:
        scores: Higher where the class is thought present, `[N]`.
        positive: Whether it is, `[N]` bool.

    Raises:
        NumericsError: If a score is not finite.
    """
    return _average_precision(_tally(scores, positive))


def _average_precision(tally: Tally) -> Statistic:
    def statistic(counts: Floats) -> Floats:
        present, absent = tally(counts)
        found = _from_above(present)
        precision = np.nan_to_num(_ratio(found, found + _from_above(absent)))
        return _ratio((present * precision).sum(axis=1), present.sum(axis=1))

    return statistic


def sensitivity_at(scores: ArrayLike, positive: ArrayLike, specificity: float) -> Statistic:
    """Largest share of positives found by a threshold that leaves at least `specificity` of the negatives alone.

    The threshold is one of the scores, with nothing drawn between two of them, and each resample chooses its own.
    It is 0 when all scores are equal, and not defined without both a positive and a negative.

    Args:
        scores: Higher where the class is thought present, `[N]`.
        positive: Whether it is, `[N]` bool.
        specificity: Share of the negatives, in (0, 1).

    Raises:
        NumericsError: If a score is not finite.
    """
    return _sensitivity_at(_tally(scores, positive), specificity)


def _sensitivity_at(tally: Tally, specificity: float) -> Statistic:
    def statistic(counts: Floats) -> Floats:
        present, absent = tally(counts)
        negatives = absent.sum(axis=1)
        # A tenth of 30 negatives is 3, and 3.0000000000000004 in floating point: half an image is no image.
        allowed = _from_above(absent) <= ((1 - specificity) * negatives + 1e-6)[:, None]
        found = np.max(_from_above(present), axis=1, where=allowed, initial=0.0)
        return np.where(negatives > 0, _ratio(found, present.sum(axis=1)), np.nan)

    return statistic


def ranking_statistics(scores: ArrayLike, positive: ArrayLike) -> dict[str, Statistic]:
    """All that is measured of a ranking: `auc`, `auprc`, `sensitivity@0.90` and `sensitivity@0.95`.

    They are those above, but count each resample once for all of them.

    Args:
        scores: Higher where the class is thought present, `[N]`.
        positive: Whether it is, `[N]` bool.

    Raises:
        NumericsError: If a score is not finite.
    """
    tally = cache_last(_tally(scores, positive))
    return {
        "auc": _auc(tally),
        "auprc": _average_precision(tally),
        **{f"sensitivity@{each:.2f}": _sensitivity_at(tally, each) for each in SPECIFICITIES},
    }


def cache_last(function: Callable[[Floats], Answer]) -> Callable[[Floats], Answer]:
    """Keeps the last answer: several statistics are asked about the same resamples one after the other."""
    last: list[tuple[Floats, Answer]] = []

    def answered(counts: Floats) -> Answer:
        if not last or last[0][0] is not counts:
            last[:] = [(counts, function(counts))]
        return last[0][1]

    return answered


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """Plain mean of several statistics; not defined where one of them is not."""

    def statistic(counts: Floats) -> Floats:
        return np.mean([each(counts) for each in statistics], axis=0)

    return statistic


def value_of(statistic: Statistic, images: int) -> float | None:
    """The statistic with every image counted once; None where it is not defined."""
    if images == 0:
        return None
    value = float(statistic(np.ones((1, images)))[0])
    return None if np.isnan(value) else value


def intervals(
    statistics: Sequence[Statistic], patients: Sequence[str], *, resamples: int = 1_000, seed: int = 0
) -> list[Interval]:
    """95 % percentile intervals of several statistics, from the same resamples of patients.

    Two images of one patient are not two observations, so whole patients are drawn, with replacement.

    Args:
        statistics: What is measured.
        patients: Patient of each image, `[N]`.
        resamples: How many times to draw.
        seed: Equal seeds draw equal patients.

    Returns:
        One interval per statistic. Its bounds are None, with a reason, for fewer than 20 patients and where
        more than 1 % of the resamples lack a class; fewer than that are set aside and counted in the reason.
    """
    drawn = _drawn(statistics, patients, resamples, seed)
    return [_bounds(each) if isinstance(each, np.ndarray) else each for each in drawn]


class PairedInterval(NamedTuple):
    """The interval of a difference, and how sure it is that there is one."""

    interval: Interval
    p_value: float | None
    """Two-sided; None where there is no interval."""


def paired_intervals(
    statistics: Sequence[Statistic], patients: Sequence[str], *, resamples: int = 1_000, seed: int = 0
) -> list[PairedInterval]:
    """Intervals as `intervals` draws them, of statistics that are differences, and the p-value of none.

    The p-value is twice the share of resamples on the rarer side of 0, those at 0 counting for both sides and one
    more being added to each, so that it is never 0: below 0.05 about where the 95 % interval excludes 0.

    Args:
        statistics: Differences.
        patients: Patient of each image, `[N]`.
        resamples: How many times to draw.
        seed: Equal seeds draw equal patients.
    """
    found: list[PairedInterval] = []
    for each in _drawn(statistics, patients, resamples, seed):
        interval = _bounds(each) if isinstance(each, np.ndarray) else each
        if interval.bounds is None or isinstance(each, Interval):
            found.append(PairedInterval(interval, None))
            continue
        defined = each[~np.isnan(each)]
        rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
        found.append(PairedInterval(interval, min(1.0, 2 * (rarer + 1) / (len(defined) + 1))))
    return found


def _drawn(
    statistics: Sequence[Statistic], patients: Sequence[str], resamples: int, seed: int
) -> list[Floats] | list[Interval]:
    """Each statistic on each resample, `[R]`; or why there is no interval."""
    names, patient_of = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    if len(names) < MIN_BOOTSTRAP_PATIENTS:
        reason = f"no interval: {_count(len(names), 'patient')}, needs {MIN_BOOTSTRAP_PATIENTS}"
        return [Interval(None, reason) for _ in statistics]
    if not statistics:
        return []
    blocks = [
        np.stack([statistic(counts) for statistic in statistics])
        for counts in _resampled(patient_of, len(names), resamples, seed)
    ]
    return list(np.concatenate(blocks, axis=1))


def _resampled(patient_of: NDArray[np.intp], patients: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each image counts in each resample, in blocks `[r, N]` that fit in memory."""
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // len(patient_of))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(patients, size=(rows, patients)) + np.arange(rows)[:, None] * patients
        times = np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients)
        yield times[:, patient_of].astype(np.float64)


def _bounds(drawn: Floats) -> Interval:
    defined = drawn[~np.isnan(drawn)]
    lacking = len(drawn) - len(defined)
    if lacking > MAX_UNDEFINED * len(drawn):
        return Interval(
            None, f"no interval: {share(lacking, len(drawn), 'resample')} {verb(lacking, 'lacks', 'lack')} a class"
        )
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval((float(low), float(high)), _set_aside(lacking, len(drawn)))


def _set_aside(lacking: int, resamples: int) -> str | None:
    if not lacking:
        return None
    parts = verb(lacking, "lacks", "lack"), verb(lacking, "was", "were")
    return f"{share(lacking, resamples, 'resample')} {parts[0]} a class and {parts[1]} set aside"


def roc_points(scores: ArrayLike, positive: ArrayLike, *, most: int = 100) -> list[tuple[float, float]]:
    """Corners of the ROC curve, from (0, 0) to (1, 1), thinned to at most `most` points.

    Args:
        scores: Higher where the class is thought present, `[N]`.
        positive: Whether it is, `[N]` bool.
        most: Points to keep; both ends always stay.

    Returns:
        Pairs (false positive rate, true positive rate), never falling; empty without both a positive and a negative.

    Raises:
        NumericsError: If a score is not finite.
    """
    order, starts = _ranking(-finite(scores))
    hit = np.asarray(positive, dtype=bool)[order].astype(np.float64)
    if hit.size == 0 or hit.all() or not hit.any():
        return []
    rates = np.zeros((len(starts) + 1, 2))
    rates[1:, 0] = np.cumsum(np.add.reduceat(1 - hit, starts)) / (1 - hit).sum()
    rates[1:, 1] = np.cumsum(np.add.reduceat(hit, starts)) / hit.sum()
    kept = rates[_corners(rates)]
    if len(kept) > most:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, most).round().astype(int))]
    return [(float(x), float(y)) for x, y in kept]


def confusion(truth: ArrayLike, answers: ArrayLike, classes: int) -> tuple[tuple[int, ...], ...]:
    """Counts images of each class (row) by the class they were answered as (column).

    Args:
        truth: Class of each image, `[N]` int.
        answers: Class each image was answered as, `[N]` int.
        classes: How many classes there are.

    Returns:
        A square table of counts, `[C, C]`.
    """
    cells = np.asarray(truth, dtype=np.intp) * classes + np.asarray(answers, dtype=np.intp)
    table = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    return tuple(tuple(int(count) for count in row) for row in table)


def finite(scores: ArrayLike) -> Floats:
    """The scores as float64 numbers.

    Raises:
        NumericsError: If one of them is NaN or infinite: a ranking of such scores means nothing.
    """
    values = np.asarray(scores, dtype=np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise NumericsError(
            f"{share(bad, values.size, 'score')} {verb(bad, 'is', 'are')} not finite; check the weights and the images"
        )
    return values


def _ranking(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order of rising scores, and where each distinct score starts in it."""
    order = np.argsort(scores, kind="stable")
    risen = scores[order]
    starts = np.flatnonzero(np.r_[True, risen[1:] != risen[:-1]]) if risen.size else np.zeros(0, dtype=np.intp)
    return order, starts


def _tally(scores: ArrayLike, positive: ArrayLike) -> Tally:
    order, starts = _ranking(finite(scores))
    hit = np.asarray(positive, dtype=bool)[order]
    sick, well = np.where(hit, 1.0, 0.0), np.where(hit, 0.0, 1.0)

    def tally(counts: Floats) -> tuple[Floats, Floats]:
        risen = counts[:, order]
        return np.add.reduceat(risen * sick, starts, axis=1), np.add.reduceat(risen * well, starts, axis=1)

    return tally


def _from_above(tallies: Floats) -> Floats:
    """How many have each score or a higher one."""
    return np.cumsum(tallies[:, ::-1], axis=1)[:, ::-1]


def _corners(rates: Floats) -> Flags:
    """Marks both ends and the points where the curve turns."""
    steps = np.diff(rates, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] != steps[:-1, 1] * steps[1:, 0]
    return np.r_[True, turns, True]


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part by whole; NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _count(number: int, noun: str) -> str:
    return count(number, noun)
