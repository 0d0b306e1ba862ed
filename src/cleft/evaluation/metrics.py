"""Classification metrics and patient bootstrap.

A metric is a *statistic*: a function of the weights of the images. Weights of one give its value; the counts of a
bootstrap resample of patients give one draw. Value and interval therefore come from the same code. A statistic is NaN
where the metric is undefined; public functions return None with a reason.

Shapes: `N` images, `C` classes, `R` resamples, `P` patients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cleft.errors import NumericsError
from cleft.grammar import count, share, verb

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]
"""From image counts in each resample, `[R, N]`, to one value per resample, `[R]`; NaN if undefined."""
Tally = Callable[[Floats], tuple[Floats, Floats]]
"""From image counts, `[R, N]`, to counts of positives and negatives at each distinct score in order, `[R, K]`."""
RankingMetric = Callable[[Floats, Floats], Floats]
"""From counts of positives and negatives at each distinct score in order, `[R, K]` each, to one value per resample."""
Value = TypeVar("Value")

MIN_BOOTSTRAP_PATIENTS = 20
"""With fewer patients a bootstrap interval is too narrow (reliability H9)."""
MAX_UNDEFINED = 0.01
"""Share of resamples without a class above which no interval is given."""
_CELLS = 1_000_000  # counts of one block of resamples: 8 MB, and twice as much per class


class Interval(NamedTuple):
    """95 % bootstrap interval, or the reason why there is none."""

    bounds: tuple[float, float] | None
    reason: str | None = None


def accuracy(hits: ArrayLike) -> Statistic:
    """Share of correct predictions.

    Args:
        hits: Whether each prediction is correct, `[N]`.
    """
    correct = np.asarray(hits, dtype=np.float64)

    def statistic(counts: Floats) -> Floats:
        return _ratio(counts @ correct, counts.sum(axis=1))

    return statistic


def _auc(present: Floats, absent: Floats) -> Floats:
    """Area under the ROC curve: probability that a positive scores higher than a negative, ties counting half.

    It is 0.5 if all scores are equal, and undefined without both a positive and a negative.
    """
    below = np.cumsum(absent, axis=1) - absent
    wins = (present * (below + absent / 2)).sum(axis=1)
    return _ratio(wins, present.sum(axis=1) * absent.sum(axis=1))


def _average_precision(present: Floats, absent: Floats) -> Floats:
    """Area under the precision-recall curve as a step function.

    It is the share of positives if all scores are equal, and undefined without a positive.
    """
    detected = _from_above(present)
    precision = np.nan_to_num(_ratio(detected, detected + _from_above(absent)))
    return _ratio((present * precision).sum(axis=1), present.sum(axis=1))


def _sensitivity_at(specificity: float) -> RankingMetric:
    """Largest sensitivity of a threshold whose specificity is at least `specificity`, in (0, 1).

    Thresholds are the scores themselves, without interpolation, and each resample chooses its own. It is 0 if all
    scores are equal, and undefined without both a positive and a negative.
    """

    def metric(present: Floats, absent: Floats) -> Floats:
        negatives = absent.sum(axis=1)
        # A tenth of 30 negatives is 3.0000000000000004 in floating point; counts are whole numbers.
        allowed = _from_above(absent) <= ((1 - specificity) * negatives + 1e-6)[:, None]
        detected = np.max(_from_above(present), axis=1, where=allowed, initial=0.0)
        return np.where(negatives > 0, _ratio(detected, present.sum(axis=1)), np.nan)

    return metric


RANKING_METRICS: Mapping[str, RankingMetric] = MappingProxyType(
    {
        "auc": _auc,
        "auprc": _average_precision,
        "sensitivity@0.90": _sensitivity_at(0.90),
        "sensitivity@0.95": _sensitivity_at(0.95),
    }
)
"""Metrics of the ranking of images by the scores of a class, in the order of the results."""


def ranking_statistics(scores: ArrayLike, positive: ArrayLike) -> dict[str, Statistic]:
    """Statistics of all `RANKING_METRICS`, which count each resample once for all of them.

    Args:
        scores: Scores of the class, `[N]`.
        positive: Whether each image shows the class, `[N]` bool.

    Raises:
        NumericsError: If a score is not finite.
    """
    tally = cache_last(_tally(scores, positive))

    def statistic_of(metric: RankingMetric) -> Statistic:
        return lambda counts: metric(*tally(counts))

    return {name: statistic_of(metric) for name, metric in RANKING_METRICS.items()}


def auc(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    """Area under the ROC curve; as `ranking_statistics`."""
    return ranking_statistics(scores, positive)["auc"]


def cache_last(function: Callable[[Floats], Value]) -> Callable[[Floats], Value]:
    """Caches the last result: several statistics are computed on the same resamples one after the other."""
    last: list[tuple[Floats, Value]] = []

    def cached(counts: Floats) -> Value:
        if not last or last[0][0] is not counts:
            last[:] = [(counts, function(counts))]
        return last[0][1]

    return cached


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """Unweighted mean of several statistics; undefined if one of them is."""

    def statistic(counts: Floats) -> Floats:
        return np.mean([each(counts) for each in statistics], axis=0)

    return statistic


def value_of(statistic: Statistic, images: int) -> float | None:
    """Value of the statistic with every image counted once; None if undefined."""
    if images == 0:
        return None
    value = float(statistic(np.ones((1, images)))[0])
    return None if np.isnan(value) else value


def intervals(
    statistics: Sequence[Statistic], patients: Sequence[str], *, resamples: int = 1_000, seed: int = 0
) -> list[Interval]:
    """95 % percentile intervals of several statistics, from the same bootstrap resamples of patients.

    Images of one patient are not independent, so patients are drawn with replacement, with all their images.

    Args:
        statistics: Statistics.
        patients: Patient of each image, `[N]`.
        resamples: Number of resamples.
        seed: Seed; equal seeds draw equal patients.

    Returns:
        One interval per statistic. Its bounds are None, with a reason, for fewer than 20 patients and if more than 1 %
        of the resamples lack a class; if fewer do, they are left out and counted in the reason.
    """
    drawn = _bootstrap(statistics, patients, resamples, seed)
    return [_bounds(each) if isinstance(each, np.ndarray) else each for each in drawn]


class PairedInterval(NamedTuple):
    """Interval and p-value of a difference."""

    interval: Interval
    p_value: float | None
    """Two-sided; None without an interval."""


def paired_intervals(
    statistics: Sequence[Statistic], patients: Sequence[str], *, resamples: int = 1_000, seed: int = 0
) -> list[PairedInterval]:
    """Intervals of differences, as `intervals`, with p-values of no difference.

    The p-value is twice the share of resamples on the rarer side of 0. Resamples at 0 count for both sides, and one is
    added to each, so that it is never 0. It is below 0.05 about when the 95 % interval excludes 0.

    Args:
        statistics: Differences.
        patients: Patient of each image, `[N]`.
        resamples: Number of resamples.
        seed: Seed; equal seeds draw equal patients.
    """
    paired: list[PairedInterval] = []
    for each in _bootstrap(statistics, patients, resamples, seed):
        interval = _bounds(each) if isinstance(each, np.ndarray) else each
        if interval.bounds is None or isinstance(each, Interval):
            paired.append(PairedInterval(interval, None))
            continue
        defined = each[~np.isnan(each)]
        rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
        paired.append(PairedInterval(interval, min(1.0, 2 * (rarer + 1) / (len(defined) + 1))))
    return paired


def _bootstrap(
    statistics: Sequence[Statistic], patients: Sequence[str], resamples: int, seed: int
) -> list[Floats] | list[Interval]:
    """Each statistic on each resample, `[R]`, or the reason why there is no interval."""
    names, patient_of = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    if len(names) < MIN_BOOTSTRAP_PATIENTS:
        reason = f"no interval: {count(len(names), 'patient')}, needs {MIN_BOOTSTRAP_PATIENTS}"
        return [Interval(None, reason) for _ in statistics]
    if not statistics:
        return []
    blocks = [
        np.stack([statistic(counts) for statistic in statistics])
        for counts in _resampled(patient_of, len(names), resamples, seed)
    ]
    return list(np.concatenate(blocks, axis=1))


def _resampled(patient_of: NDArray[np.intp], patients: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Counts of each image in each resample, in blocks `[r, N]` that fit in memory."""
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
    return Interval((float(low), float(high)), _left_out(lacking, len(drawn)))


def _left_out(lacking: int, resamples: int) -> str | None:
    if not lacking:
        return None
    parts = verb(lacking, "lacks", "lack"), verb(lacking, "was", "were")
    return f"{share(lacking, resamples, 'resample')} {parts[0]} a class and {parts[1]} left out"


def roc_points(scores: ArrayLike, positive: ArrayLike, *, most: int = 100) -> list[tuple[float, float]]:
    """Vertices of the ROC curve, from (0, 0) to (1, 1), thinned to at most `most` points.

    Args:
        scores: Scores of the class, `[N]`.
        positive: Whether each image shows the class, `[N]` bool.
        most: Maximum number of points; both ends are kept.

    Returns:
        Pairs (false positive rate, true positive rate), in rising order; empty without both a positive and a negative.

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


def confusion(truth: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[tuple[int, ...], ...]:
    """Confusion matrix: number of images by true class (row) and predicted class (column), `[C, C]`.

    Args:
        truth: Class of each image, `[N]` int.
        predicted: Predicted class of each image, `[N]` int.
        classes: Number of classes.
    """
    cells = np.asarray(truth, dtype=np.intp) * classes + np.asarray(predicted, dtype=np.intp)
    table = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    return tuple(tuple(int(count) for count in row) for row in table)


def finite(scores: ArrayLike) -> Floats:
    """Returns scores as float64.

    Raises:
        NumericsError: If one of them is NaN or infinite.
    """
    values = np.asarray(scores, dtype=np.float64)
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise NumericsError(
            f"{share(bad, values.size, 'score')} {verb(bad, 'is', 'are')} not finite; check the weights and the images"
        )
    return values


def _ranking(scores: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order of rising scores, and the start of each distinct score in it."""
    order = np.argsort(scores, kind="stable")
    risen = scores[order]
    starts = np.flatnonzero(np.r_[True, risen[1:] != risen[:-1]]) if risen.size else np.zeros(0, dtype=np.intp)
    return order, starts


def _tally(scores: ArrayLike, positive: ArrayLike) -> Tally:
    order, starts = _ranking(finite(scores))
    hit = np.asarray(positive, dtype=bool)[order]
    positives, negatives = np.where(hit, 1.0, 0.0), np.where(hit, 0.0, 1.0)

    def tally(counts: Floats) -> tuple[Floats, Floats]:
        rising = counts[:, order]
        present = np.add.reduceat(rising * positives, starts, axis=1)
        return present, np.add.reduceat(rising * negatives, starts, axis=1)

    return tally


def _from_above(tallies: Floats) -> Floats:
    """Number of images with each score or a higher one."""
    return np.cumsum(tallies[:, ::-1], axis=1)[:, ::-1]


def _corners(rates: Floats) -> Flags:
    """Whether each point is an end of the curve or a vertex."""
    steps = np.diff(rates, axis=0)
    turns = steps[:-1, 0] * steps[1:, 1] != steps[:-1, 1] * steps[1:, 0]
    return np.r_[True, turns, True]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient; NaN if the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
